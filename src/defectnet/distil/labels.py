"""Labels of a slow potential: energies, forces and stresses of cells near equilibrium, and Hessians of relaxed ones.

A label file is a compressed ``.npz``: forces in half precision and fractional coordinates in 16 bits, about 11 bytes
an atom. Consecutive records of one host with the same atoms are one *structure*; the differences of their forces
carry its curvature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.hosts import Host
from defectnet.data.shards import read_shard, shard_files
from defectnet.data.splits import Split, split_of
from defectnet.elements import NUMBERS, VOCABULARY
from defectnet.errors import SimulationError
from defectnet.files import read_npz, replacing
from defectnet.potentials.neighbours import Crystal
from defectnet.simulate.hessians import hessian_file, read_hessians

FloatArray = NDArray[np.float64]

_KINDS: dict[str, type[np.generic]] = {
    "natoms": np.uint8,
    "numbers": np.uint8,
    "frac": np.uint16,
    "forces": np.float16,
    "cell": np.float32,
    "energy": np.float64,
    "stress": np.float32,
    "host": np.str_,
    "doped": np.bool_,
    "step": np.int8,
}
_STEPS = 65536
"""Fractional coordinates are kept in steps of 1/65536."""

_VOLUMES = (2.0, 200.0)
"""Cubic angstrom an atom; diamond has 5.7."""

_FIX = "Make the labels again, or leave the file out"


@dataclass(frozen=True)
class Record:
    """What the slow potential says of one cell.

    Attributes:
        crystal: The cell.
        energy: eV per cell, up to the potential's own reference of each element.
        forces: (N, 3) eV/angstrom.
        stress: (3, 3) eV/angstrom^3; ASE's sign: negative under compression.
        host: Id of the host crystal that the cell was made from.
        doped: Whether some of its atoms were substituted.
        step: Steps of descent since the substitution; 0 is as substituted, 9 a rattled cell at the end.
    """

    crystal: Crystal
    energy: float
    forces: FloatArray
    stress: FloatArray
    host: str
    doped: bool
    step: int

    @property
    def near_equilibrium(self) -> bool:
        """Whether differences of its forces are curvature: atoms just substituted may be far from their places."""
        return not (self.doped and self.step == 0)


@dataclass(frozen=True)
class Structure:
    """Records of one set of atoms.

    Attributes:
        records: One or more, in the order of the file.
        chemical_system: Of the host, which decides the split; a doped cell holds foreign elements too.
    """

    records: tuple[Record, ...]
    chemical_system: str

    @property
    def split(self) -> Split:
        """``train``, ``val`` or ``test``."""
        return split_of(self.chemical_system)

    @property
    def differences(self) -> tuple[tuple[int, int], ...]:
        """Pairs of consecutive records near equilibrium: the difference of their forces is curvature."""
        near = [k for k, record in enumerate(self.records) if record.near_equilibrium]
        return tuple(pairwise(near))


@dataclass(frozen=True)
class Curved:
    """A relaxed cell with its Hessian.

    Attributes:
        crystal: The cell, at rest.
        hessian: (3 N, 3 N) eV/angstrom^2.
        chemical_system: Of the host.
    """

    crystal: Crystal
    hessian: FloatArray
    chemical_system: str

    @property
    def split(self) -> Split:
        """``train``, ``val`` or ``test``."""
        return split_of(self.chemical_system)

    def displaced(self, displacement: FloatArray) -> tuple[tuple[Crystal, Crystal], FloatArray]:
        """Displace all atoms both ways.

        Args:
            displacement: u, (N, 3) angstrom.

        Returns:
            The cells at x + u and x - u, and (N, 3) F(x + u) - F(x - u) = -2 H u, exact to third order in u.
        """
        change = -2.0 * (self.hessian @ displacement.ravel()).reshape(-1, 3)
        return (self.crystal.moved(displacement), self.crystal.moved(-displacement)), change


def write_labels(path: str | Path, records: Sequence[Record]) -> None:
    """Write records as a label file.

    Raises:
        SimulationError: A cell is too large, or a value is not finite in the file's precision.
    """
    path = Path(path)
    columns: dict[str, list[Any]] = {name: [] for name in _KINDS}
    for record in records:
        crystal = record.crystal
        if not 0 < len(crystal) < 256:
            raise SimulationError(
                f"labels {path}: a cell of {record.host} has {len(crystal)} atoms", fix="Use cells of 1 to 255 atoms"
            )
        columns["natoms"].append([len(crystal)])
        columns["numbers"].append(crystal.numbers)
        columns["frac"].append(np.rint((crystal.frac % 1.0) * _STEPS).astype(np.int64) % _STEPS)
        columns["forces"].append(record.forces)
        columns["cell"].append(crystal.cell[None])
        columns["stress"].append(record.stress[None])
        for name in ("energy", "host", "doped", "step"):
            columns[name].append([getattr(record, name)])
    with np.errstate(over="ignore"):  # found below
        arrays = {k: np.concatenate(v).astype(_KINDS[k]) if v else _empty(k) for k, v in columns.items()}
    _check(path, arrays)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_labels(path: str | Path) -> list[Record]:
    """Read a label file.

    Raises:
        SimulationError: The file is missing, truncated, or of another form.
    """
    path = Path(path)
    try:
        arrays = read_npz(path, tuple(_KINDS))
    except ValueError as error:
        raise SimulationError(f"labels {path} are missing or damaged", why=str(error), fix=_FIX) from error
    _check(path, arrays)
    ends = np.cumsum(arrays["natoms"], dtype=np.int64)
    cells = arrays["cell"].astype(np.float64)
    records = []
    for k, end in enumerate(ends.tolist()):
        atoms = slice(end - int(arrays["natoms"][k]), end)
        positions = (arrays["frac"][atoms].astype(np.float64) / _STEPS) @ cells[k]
        records.append(
            Record(
                crystal=Crystal(arrays["numbers"][atoms].astype(np.int64), cells[k], positions),
                energy=float(arrays["energy"][k]),
                forces=arrays["forces"][atoms].astype(np.float64),
                stress=arrays["stress"][k].astype(np.float64),
                host=str(arrays["host"][k]),
                doped=bool(arrays["doped"][k]),
                step=int(arrays["step"][k]),
            )
        )
    return records


def _empty(name: str) -> NDArray[Any]:
    shapes = {"frac": (0, 3), "forces": (0, 3), "cell": (0, 3, 3), "stress": (0, 3, 3)}
    return np.zeros(shapes.get(name, 0), dtype=_KINDS[name])


def _check(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """See that the arrays are what a label file holds.

    Raises:
        SimulationError: They are not.
    """
    records, atoms = len(arrays["natoms"]), int(arrays["natoms"].sum(dtype=np.int64))
    for name, array in arrays.items():
        count = atoms if name in ("numbers", "frac", "forces") else records
        shape = (count, *_empty(name).shape[1:])
        if array.shape != shape or not np.issubdtype(array.dtype, _KINDS[name]):
            raise SimulationError(
                f"labels {path}: {name} is {array.dtype} of shape {array.shape}",
                why=f"expected {_KINDS[name].__name__.rstrip('_')} of shape {shape}",
                fix=_FIX,
            )
    for name in ("forces", "cell", "energy", "stress"):
        if not np.isfinite(arrays[name]).all():
            raise SimulationError(f"labels {path}: {name} holds a value that is not finite", fix=_FIX)
    unknown = sorted({int(z) for z in arrays["numbers"]} - {int(z) for z in NUMBERS})
    if unknown:
        raise SimulationError(f"labels {path}: no element of the vocabulary has Z = {unknown[0]}", fix=_FIX)
    if (arrays["natoms"] == 0).any():
        raise SimulationError(f"labels {path}: a cell is empty", fix=_FIX)
    share = np.abs(np.linalg.det(arrays["cell"].astype(np.float64))) / arrays["natoms"]
    odd = (share < _VOLUMES[0]) | (share > _VOLUMES[1])
    if odd.any():
        raise SimulationError(
            f"labels {path}: a cell of {arrays['host'][odd][0]} has {share[odd][0]:.3g} cubic angstrom an atom",
            why="crystals have {:g} to {:g}".format(*_VOLUMES),
            fix=f"Give lattice vectors in angstrom, as rows. {_FIX}",
        )


def chemical_systems(hosts: Iterable[Host]) -> dict[str, str]:
    """Return host id -> chemical system."""
    return {host.id: host.chemical_system for host in hosts}


def structures(records: Iterable[Record], systems: Mapping[str, str]) -> list[Structure]:
    """Group consecutive records of one host with the same atoms.

    Args:
        records: In the order of their file.
        systems: From `chemical_systems`.

    Raises:
        SimulationError: A host is not in the list, or is another crystal there.
    """
    groups: list[list[Record]] = []
    for record in records:
        if record.host not in systems:
            raise SimulationError(
                f"labels: the host {record.host} is not in the list of hosts",
                why="its chemical system decides which split the label belongs to",
                fix="Give the list of hosts that the labels were made from",
            )
        elements = {VOCABULARY[k] for k in np.flatnonzero(np.isin(NUMBERS, record.crystal.numbers))}
        if not record.doped and elements != set(systems[record.host].split("-")):
            raise SimulationError(
                f"labels: a pristine cell of {record.host} holds {'-'.join(sorted(elements))}",
                why=f"the host with that id is of {systems[record.host]}",
                fix="Give the list of hosts that the labels were made from",
            )
        last = groups[-1][-1] if groups else None
        same = last is not None and last.host == record.host and last.doped == record.doped
        if same and last is not None and np.array_equal(last.crystal.numbers, record.crystal.numbers):
            groups[-1].append(record)
        else:
            groups.append([record])
    return [Structure(tuple(group), systems[group[0].host]) for group in groups]


def read_curved(folder: str | Path) -> list[Curved]:
    """Read the relaxed doped cells whose Hessians were kept beside the shards of a data set.

    Raises:
        ShardError: The folder holds no shard.
        SimulationError: It holds no Hessians, or one belongs to no row of its shard.
    """
    folder = Path(folder)
    found = []
    for shard in shard_files(folder):
        path = hessian_file(shard)
        if not path.is_file():
            continue
        systems = {sample.row_id: sample.chemical_system for sample in read_shard(shard)}
        for row_id, (crystal, hessian) in read_hessians(path).items():
            if row_id not in systems:
                raise SimulationError(
                    f"{path}: {row_id} is no row of {shard.name}", fix="Simulate the shard and its Hessians again"
                )
            found.append(Curved(crystal, hessian, systems[row_id]))
    if not found:
        raise SimulationError(
            f"folder {folder} holds no Hessians", fix="Give a folder made with kept Hessians, or none at all"
        )
    return found
