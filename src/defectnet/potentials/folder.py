"""Checkpoint folders of potentials: config.json, model.safetensors and README.md, as those of networks.

Of a student what is kept is what the numbers of the potential are made from, a tenth of the numbers themselves.
`architecture` in config.json tells which potential it is; without it, it is a student.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from defectnet.errors import ConfigError, SimulationError
from defectnet.files import file_sha256, put_back, read_json, replacing_folder
from defectnet.hub.catalogue import bundled_root
from defectnet.potentials.form import StudentConfig
from defectnet.potentials.nep_file import NEPParameters
from defectnet.potentials.student import Student

SCHEMA_VERSION: Final = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

STUDENT: Final = "student"
"""Architecture of a folder that names none."""

HOST: Final = "host"
"""What the config of a host pack says in the place of a potential's architecture."""

_KEYS: Final = {"schema_version": int, "form": dict, "licence": str, "weights_sha256": str, "defectnet_version": str}
AGAIN: Final = "Copy or download the folder again"


def bundled_potentials() -> dict[str, Path]:
    """Return name -> folder of the potentials that come with the package, sorted by name."""
    root = bundled_root()
    found = [] if root is None else sorted(path.parent for path in (root / "potentials").glob(f"*/{CONFIG}"))
    return {folder.name: folder for folder in found if not folder.name.startswith(".")}


def find_folder(source: str | Path) -> Path | None:
    """Return a bundled potential's folder by its name, in any case, or `source` itself; None where it is no folder."""
    folder = bundled_potentials().get(str(source).lower(), Path(source))
    return folder if folder.is_dir() else None


def save_student(folder: str | Path, student: Student, *, licence: str, training: dict[str, Any], card: str) -> None:
    """Write a student as a folder, whole or not at all; a potential that is there is replaced.

    Args:
        folder: Where; its name becomes the potential's.
        student: Trained.
        licence: Of the weights, for instance ``MIT``.
        training: A record of where they come from, plain values.
        card: Text of the README.

    Raises:
        SimulationError: A weight is NaN or infinite, or the folder holds anything else.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    entries = {"form": student.config.to_dict(), "licence": licence, "training": training}
    write_folder(folder, state, entries, card=card)


def write_folder(folder: str | Path, state: dict[str, Tensor], entries: dict[str, Any], *, card: str) -> None:
    """Write a potential or a host pack as a folder, whole or not at all; one that is there is replaced.

    Args:
        folder: Where; its name becomes that of what it holds.
        state: Tensors.
        entries: Of config.json, between the schema's version and the hash of the weights.
        card: Text of the README.

    Raises:
        SimulationError: A tensor holds NaN or infinity, or the folder holds anything else.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
        if held and not {CONFIG} <= held <= {CONFIG, WEIGHTS, CARD}:
            raise SimulationError(f"{folder} exists and holds other files", fix="Give a new folder")
        if held:
            read_config(folder)  # other programs keep files of these names
    broken = _first_broken(state)
    if broken:
        fix = "Train again with a lower learning rate, or get the weights again"
        raise SimulationError(f"{folder}: {broken} holds NaN or infinity", fix=fix)
    with replacing_folder(folder) as fresh:
        (fresh / WEIGHTS).write_bytes(to_bytes(state))
        config = {
            "schema_version": SCHEMA_VERSION,
            **entries,
            "weights_sha256": file_sha256(fresh / WEIGHTS),
            "defectnet_version": version("defectnet"),
        }
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (fresh / CARD).write_text(card, encoding="utf-8")


def load_folder(folder: str | Path) -> tuple[Student, str]:
    """Load a student, in double precision, and the sha256 of its weights.

    Raises:
        SimulationError: Anything is missing, damaged, unknown, or of another shape than the config says.
    """
    folder = Path(folder)
    config = read_config(folder, STUDENT, {"training": dict})
    try:
        student = Student(StudentConfig.from_dict(config["form"], where=f"{folder / CONFIG}: form"))
    except ConfigError as error:
        raise SimulationError(error.what, why=error.why, fix=error.fix) from error
    state, sha256 = read_weights(folder, config)
    try:
        student.load_state_dict(state)
    except RuntimeError as error:  # torch lists what does not fit
        why = " ".join(str(error).split())[:160]
        raise SimulationError(f"{folder / WEIGHTS} does not hold what {CONFIG} says", why=why, fix=AGAIN) from error
    return student.double(), sha256


def read_weights(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a folder whose config is known, and their sha256.

    Raises:
        SimulationError: They are missing, damaged, not finite, or others than those of the config.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise SimulationError(f"{path} is missing", fix=AGAIN)
    found = file_sha256(path)
    if found != config["weights_sha256"]:
        why = f"sha256 is not {config['weights_sha256'][:12]}..., as {CONFIG} states"
        raise SimulationError(f"{path} is truncated, changed, or of another folder", why=why, fix=AGAIN)
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SimulationError(f"{path} holds no tensors", why=str(error)[:120], fix=AGAIN) from error
    broken = _first_broken(state)
    if broken:
        raise SimulationError(f"{path}: {broken} holds NaN or infinity", fix=AGAIN)
    return state, found


def architecture_of(folder: str | Path) -> str:
    """Return the architecture of the potential in a folder.

    Raises:
        SimulationError: See `read_config`.
    """
    return str(read_config(Path(folder)).get("architecture", STUDENT))


def licence_of(folder: str | Path) -> str:
    """Return the licence of the weights in a folder.

    Raises:
        SimulationError: See `load_folder`.
    """
    return str(read_config(Path(folder))["licence"])


@torch.no_grad()
def read_folder(folder: str | Path) -> NEPParameters:
    """Return the numbers of the potential in a folder.

    Raises:
        SimulationError: See `load_folder`.
    """
    student, sha256 = load_folder(folder)
    return replace(student.tables(), name=Path(folder).resolve().name, sha256=sha256)


def read_config(
    folder: Path, architecture: str | None = None, more: Mapping[str, type] | None = None
) -> dict[str, Any]:
    """Return the config of a folder.

    Args:
        folder: Of a potential.
        architecture: What it must be; anything by default.
        more: Keys beside those of every potential, and their types.

    Raises:
        SimulationError: It is missing, damaged, of a later version, or of another architecture.
    """
    path = folder / CONFIG
    what = (
        "host pack that `defectnet host make`" if architecture == HOST else "potential that `defectnet.distil export`"
    )
    fix = f"Give a bundled name, or the folder of a {what} wrote"
    put_back(folder)
    if not path.is_file():
        raise SimulationError(f"{path.parent} holds no {CONFIG}", fix=fix)
    try:
        config = read_json(path)
    except ValueError as error:
        raise SimulationError(f"{path} is not valid JSON", why=str(error)[:120], fix=AGAIN) from error
    if not isinstance(config, dict):
        raise SimulationError(f"{path} holds a {type(config).__name__}, not an object", fix=AGAIN)
    schema = config.get("schema_version")
    if type(schema) is int and schema > SCHEMA_VERSION:
        raise SimulationError(
            f"{path} has schema version {schema}, this defectnet reads up to {SCHEMA_VERSION}", fix="Upgrade defectnet"
        )
    if type(schema) is int and schema < 1:
        raise SimulationError(f"{path} has schema version {schema}; the first is 1", fix=AGAIN)
    found = config.get("architecture", STUDENT)
    if architecture is not None and found != architecture:
        raise SimulationError(f"{path} describes a {found}, not a {architecture}", fix=fix)
    for key, kind in {**_KEYS, **(more or {})}.items():
        if type(config.get(key)) is not kind:
            raise SimulationError(f"{path}: {key} is missing or no {kind.__name__}", fix=fix)
    return config


def _first_broken(state: Mapping[str, Tensor]) -> str | None:
    return next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)
