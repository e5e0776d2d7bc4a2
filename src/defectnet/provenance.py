"""What an answer was made with: version, weights, host pack, options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from defectnet.files import file_sha256


def made_with(folder: Path | None, what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same for an answer to come out again, as plain values.

    Args:
        folder: Of the network or host pack; None where it was never saved, and so has no hash.
        what: ``weights`` or ``pack``.
        options: As given; those that are None are left out.

    Returns:
        ``defectnet`` (the version), ``weights`` or ``pack`` (the folder's name), ``..._sha256`` of its safetensors,
        and ``options``.
    """
    return {
        "defectnet": version("defectnet"),
        what: None if folder is None else folder.name,
        f"{what}_sha256": weights_sha256(folder),
        "options": {name: value for name, value in options.items() if value is not None},
    }


def weights_sha256(folder: Path | None) -> str | None:
    """Return the sha256 of the model.safetensors of a checkpoint, potential or pack; None where there is none."""
    path = None if folder is None else folder / "model.safetensors"
    if path is None or not path.is_file():
        return None
    state = os.stat(path)
    return _sha256(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _sha256(path: Path, changed: int, size: int) -> str:
    """Hash a file once, as long as it is not written anew."""
    return file_sha256(path)
