"""The checkpoints that have a name: one folder each that comes with the package, and a table of published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PUBLISHED: Final[dict[str, tuple[str, str]]] = {}
"""Name -> (``org/repo``, full commit) of checkpoints on the Hugging Face Hub.

A commit never changes, so one that is in the cache is loaded without a request. A bundled folder of the same name wins
over this table. `defectnet push` prints what an entry needs. Nothing is published yet.
"""


def bundled_root() -> Path | None:
    """Return the folder of bundled checkpoints: inside the package (wheel), or at the root of a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "checkpoints"
    if inside.is_dir():
        return inside
    root = package.parents[1]
    beside = root / "checkpoints"
    return beside if beside.is_dir() and (root / "pyproject.toml").is_file() else None


def bundled() -> dict[str, Path]:
    """Return name -> folder of the bundled checkpoints, sorted by name.

    A folder with a leading dot is a checkpoint that is just being written.
    """
    root = bundled_root()
    folders = [] if root is None else sorted(path.parent for path in root.glob("*/config.json"))
    return {folder.name: folder for folder in folders if not folder.name.startswith(".")}


def list_checkpoints() -> list[str]:
    """Return the names that `defectnet.from_pretrained` knows: bundled, then published checkpoints."""
    return list(dict.fromkeys([*bundled(), *PUBLISHED]))
