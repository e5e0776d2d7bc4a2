"""Host crystals: from the project's JSON list, or from any structure files that ase reads."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.formula import Formula

from defectnet.elements import VOCABULARY, chemical_system
from defectnet.errors import SimulationError
from defectnet.files import is_file_name
from defectnet.potentials.neighbours import Crystal


@dataclass(frozen=True)
class Host:
    """A pristine crystal before relaxation.

    Attributes:
        id: Unique in its list; letters, digits, dots, dashes and underscores.
        formula: Reduced formula.
        crystal: The cell.
    """

    id: str
    formula: str
    crystal: Crystal

    @property
    def chemical_system(self) -> str:
        """Elements, sorted, joined by dashes."""
        return chemical_system(Formula(self.formula).count())


def read_hosts(source: str | Path, *more: str | Path) -> list[Host]:
    """Read hosts.

    Args:
        source: A JSON list (``.json`` or ``.json.xz``) of objects with `id`, `cell` (a, b, c in angstrom and three
            angles in degrees), `species` and `frac`; or a structure file; or a folder of structure files.
        more: Others, whose hosts come after those of the first.

    Raises:
        SimulationError: Nothing is there, a file cannot be read, an entry is not a crystal of known elements, or an id
            comes twice.
    """
    hosts = [host for one in (source, *more) for host in _read(Path(one))]
    _check_ids(hosts, " and ".join(str(one) for one in (source, *more)))
    return hosts


def _read(source: Path) -> list[Host]:
    if not source.exists():
        raise SimulationError(f"hosts: {source} does not exist", fix="Give a JSON list or structure files")
    if source.is_dir():
        files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        hosts = [host for path in files for host in _read_structures(path)]
    else:
        entries = json_list(source)
        hosts = _read_structures(source) if entries is None else [_entry(e, i, source) for i, e in enumerate(entries)]
    if not hosts:
        raise SimulationError(f"hosts: {source} holds no structure", fix="Give a JSON list or structure files")
    return hosts


def json_list(path: Path) -> list[Any] | None:
    """Return the entries if the file is the project's own list, None if it is something else."""
    if not path.name.endswith((".json", ".json.xz")):
        return None
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError, lzma.LZMAError, EOFError, OSError) as error:
        raise SimulationError(
            f"hosts: {path} is no readable JSON", why=str(error)[:120], fix="Check the file"
        ) from error
    return content if isinstance(content, list) else None


def _entry(entry: Any, number: int, path: Path) -> Host:
    where = f"hosts: {path}, entry {number}"
    fix = "Each entry needs id, cell [a, b, c, alpha, beta, gamma], species and frac"
    if not isinstance(entry, dict) or not {"id", "cell", "species", "frac"} <= set(entry):
        raise SimulationError(f"{where} lacks a field", fix=fix)
    try:
        cell, frac = np.array(entry["cell"], dtype=float), np.array(entry["frac"], dtype=float)
        if cell.shape != (6,) or frac.shape != (len(entry["species"]), 3):
            raise ValueError(f"cell has shape {cell.shape}, frac {frac.shape}")
        atoms = Atoms(entry["species"], scaled_positions=frac, cell=cell, pbc=True)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise SimulationError(f"{where} ({entry['id']}) is no structure", why=str(error)[:120], fix=fix) from error
    return host_from_atoms(atoms, str(entry["id"]), where)


def read_frames(path: Path) -> Any:
    """Return what ase reads of a file; whatever its many readers raise."""
    import ase.io  # here, because it takes half a second to import, and few questions need it

    return ase.io.read(str(path), index=":")


def _read_structures(path: Path) -> list[Host]:
    try:
        frames = read_frames(path)
    except Exception as error:  # ase raises whatever its many readers raise
        raise SimulationError(
            f"hosts: ase cannot read {path}", why=str(error)[:120] or type(error).__name__, fix="Give a structure file"
        ) from error
    frames = frames if isinstance(frames, list) else [frames]
    stem = path.name.split(".")[0]
    names = [stem if len(frames) == 1 else f"{stem}-{i}" for i in range(len(frames))]
    return [host_from_atoms(atoms, name, f"hosts: {path}") for atoms, name in zip(frames, names, strict=True)]


def host_from_atoms(atoms: Atoms, name: str, where: str = "hosts") -> Host:
    """Check an ase structure and make it a host."""
    positions = np.asarray(atoms.positions, dtype=float)
    cell = np.asarray(atoms.cell.array, dtype=float)
    if len(atoms) == 0 or not np.isfinite(positions).all() or not np.isfinite(cell).all():
        raise SimulationError(f"{where} ({name}) is empty or holds NaN", fix="Check the structure")
    if abs(np.linalg.det(cell)) < 1.0:
        raise SimulationError(f"{where} ({name}) has no three-dimensional cell", fix="Give a periodic crystal")
    unknown = sorted(set(atoms.symbols) - set(VOCABULARY))
    if unknown:
        raise SimulationError(
            f"{where} ({name}) holds {unknown[0]}, which is outside the vocabulary",
            fix="Known are Li to Bi without noble gases, Tc, Pm and Ce to Lu",
        )
    formula = atoms.symbols.formula.reduce()[0].format("metal")
    return Host(name, formula, Crystal(atoms.numbers.astype(np.int64), cell, positions))


def _check_ids(hosts: Sequence[Host], source: str) -> None:
    seen: set[str] = set()
    for host in hosts:
        if host.id in seen:
            raise SimulationError(f"hosts: {source} has the id {host.id!r} twice", fix="Give each host its own id")
        if not is_file_name(host.id) or not all(c.isalnum() or c in "._-" for c in host.id):
            raise SimulationError(
                f"hosts: {source} has the id {host.id!r}", fix="Use letters, digits, dots, dashes and underscores"
            )
        seen.add(host.id)
