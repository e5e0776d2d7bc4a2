"""Student against teacher on crystals and doped cells that neither training has seen.

The teacher is slow: its curves are computed once, stored with the structures that they belong to, and read from there.
Each potential relaxes the same start by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.doping import build, draw_mix
from defectnet.crystal.hosts import Host
from defectnet.data.splits import split_of
from defectnet.errors import SimulationError
from defectnet.files import read_npz, replacing
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import modes
from defectnet.potentials.potential import Potential
from defectnet.potentials.supercells import supercell_matrix
from defectnet.simulate.rows import row_generator
from physics_suite.cells import Failed, pristine, settle
from physics_suite.curves import Curve, coarse, from_modes, shape_distance

FloatArray = NDArray[np.float64]
Kind = Literal["pristine", "doped"]

WANTED: dict[Kind, int] = {"pristine": 20, "doped": 12}
"""Cells that the teacher holds, of each kind."""

SPARE = 3
"""As many times more are listed: the teacher does not hold all of them."""

LARGEST_PRISTINE = 14
"""Atoms of a pristine cell: more would take the teacher an hour."""

DOPED_ATOMS = (24, 50)
"""Fewest and most atoms of a doped cell."""

UNSTABLE = 0.02
"""Share of imaginary modes from which the teacher itself does not hold a crystal."""

SEED = 606
"""Of the dopants."""

SCHEMA = 1
"""Of the file with the teacher's curves."""


@dataclass(frozen=True)
class Start:
    """A crystal before relaxation.

    Attributes:
        key: Unique, for instance ``mp-406`` or ``mp-406/doped``.
        kind: ``pristine`` or ``doped``.
        crystal: The cell.
    """

    key: str
    kind: Kind
    crystal: Crystal


@dataclass(frozen=True)
class Taught:
    """What the teacher says of one crystal.

    Attributes:
        start: The crystal before the teacher relaxed it.
        curve: Its DOS; empty where it failed.
        imaginary_fraction: Share of imaginary modes.
        failed: Why there is no curve, or nothing.
    """

    start: Start
    curve: Curve
    imaginary_fraction: float
    failed: str


def held_out(hosts: Sequence[Host], salt: str) -> list[Host]:
    """Return the crystals of the test split, in the order of a hash of the salt and their ids."""
    return sorted(
        (host for host in hosts if split_of(host.chemical_system) == "test"),
        key=lambda host: hashlib.sha256(f"{salt}/{host.id}".encode()).digest(),
    )


def choose(hosts: Sequence[Host]) -> list[Start]:
    """Choose crystals of the test split by hash, one for each chemical system, and put dopants into the second lot.

    Returns:
        `SPARE` times as many as are wanted, of each kind, in the order of their hashes; fewer from a short list.
    """
    found: dict[Kind, list[Start]] = {"pristine": [], "doped": []}
    seen: set[str] = set()
    for host in held_out(hosts, "physics"):
        if host.chemical_system in seen:
            continue
        for kind in get_args(Kind):
            start = _start(host, kind) if len(found[kind]) < SPARE * WANTED[kind] else None
            if start is not None:
                seen.add(host.chemical_system)
                found[kind].append(start)
                break
    return found["pristine"] + found["doped"]


def _start(host: Host, kind: Kind) -> Start | None:
    """Return the crystal, or None where its size does not fit."""
    if kind == "pristine":
        return Start(host.id, kind, host.crystal) if len(host.crystal) <= LARGEST_PRISTINE else None
    try:
        matrix = supercell_matrix(host.crystal.cell, len(host.crystal), DOPED_ATOMS[1], DOPED_ATOMS)
    except SimulationError:
        return None
    rng = row_generator(SEED, host.id)
    mix = draw_mix(host.crystal, rng, most=3, lowest=0.02)
    cell = build(host.crystal, mix, rng, matrix)
    return Start(f"{host.id}/doped", kind, cell.crystal) if len(cell.sites) else None


def vibrate(potential: Potential, start: Start) -> tuple[Curve, float]:
    """Relax a crystal wholly and return its DOS and its share of imaginary modes.

    Pristine crystals are sampled on a dense mesh, doped cells at Gamma: there finite displacements are exact, so that
    two potentials are sampled alike.

    Raises:
        Failed: The potential does not hold it.
    """
    if start.kind == "pristine":
        phonons = pristine(potential, start.crystal).phonons
    else:
        relaxed = settle(potential, start.crystal, "full")
        phonons = modes(potential.force_constants(relaxed), relaxed, [np.zeros(3)])
    return from_modes(phonons), phonons.imaginary_fraction


def teach(potential: Potential, starts: Sequence[Start], path: Path, most: int | None = None) -> Iterator[Taught]:
    """Compute the teacher's curves until there are as many as wanted; the file is written after each.

    Args:
        potential: The teacher.
        starts: What `choose` returned.
        path: File; what is in it is not computed again.
        most: Stop after as many new ones.

    Yields:
        Each new result.

    Raises:
        SimulationError: The file is damaged, or holds curves of another potential.
    """
    done = {item.start.key: item for item in read_taught(path, potential.sha256)[1]} if path.exists() else {}
    for start in starts:
        good = sum(item.start.kind == start.kind and not item.failed for item in done.values())
        if start.key in done or good >= WANTED[start.kind]:
            continue
        if most is not None and most <= 0:
            return
        most = None if most is None else most - 1
        try:
            curve, imaginary = vibrate(potential, start)
            if imaginary > UNSTABLE:
                raise Failed(f"{imaginary:.1%} of the modes are imaginary")
            done[start.key] = Taught(start, curve, imaginary, "")
        except Failed as reason:
            done[start.key] = Taught(start, Curve(np.zeros(0)), 0.0, str(reason))
        write_taught(path, potential, list(done.values()))
        yield done[start.key]


_FIELDS = ("key", "kind", "failed", "imaginary", "atoms", "numbers", "cell", "frac", "bins", "dos")


def write_taught(path: Path, potential: Potential, items: Sequence[Taught]) -> None:
    """Write the teacher's curves on their full grid (0.25 meV), so that the comparison chooses the resolution."""
    crystals = [item.start.crystal for item in items]
    arrays: dict[str, Any] = {
        "schema": np.array(SCHEMA),
        "potential": np.array([potential.name, potential.sha256]),
        "key": np.array([item.start.key for item in items]),
        "kind": np.array([item.start.kind for item in items]),
        "failed": np.array([item.failed for item in items]),
        "imaginary": np.array([item.imaginary_fraction for item in items]),
        "atoms": np.array([len(crystal) for crystal in crystals], dtype=np.uint16),
        "numbers": np.concatenate([crystal.numbers for crystal in crystals]).astype(np.uint8),
        "cell": np.concatenate([crystal.cell for crystal in crystals]),
        "frac": np.concatenate([crystal.frac for crystal in crystals]),
        "bins": np.array([len(item.curve.dos) for item in items], dtype=np.uint16),
        "dos": np.concatenate([item.curve.dos for item in items]).astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_taught(path: Path, sha256: str | None = None) -> tuple[str, list[Taught]]:
    """Read the teacher's curves.

    Args:
        path: File.
        sha256: Of the teacher that they must be of; None for any.

    Returns:
        Name of the teacher, and its results.

    Raises:
        SimulationError: The file is missing or damaged, has another schema, or is of another potential.
    """
    try:
        arrays = read_npz(path, ("schema", "potential", *_FIELDS))
        schema, (name, found) = int(arrays["schema"]), arrays["potential"].tolist()
    except (ValueError, TypeError) as error:  # the first two may be of another form
        raise SimulationError(
            f"teacher's curves {path} are missing or damaged",
            why=str(error)[:120],
            fix="Compute them with benchmarks/physics_teacher.py",
        ) from error
    if schema != SCHEMA:
        raise SimulationError(f"teacher's curves {path} have schema {schema}", fix=f"Schema {SCHEMA} is needed")
    if sha256 is not None and found != sha256:
        raise SimulationError(
            f"teacher's curves {path} are of another potential", why=str(name), fix="Give another file with --out"
        )
    atoms, bins = (np.concatenate([[0], np.cumsum(arrays[field].astype(int))]) for field in ("atoms", "bins"))
    items = []
    for k, key in enumerate(arrays["key"].tolist()):
        mine = slice(atoms[k], atoms[k + 1])
        cell = arrays["cell"][3 * k : 3 * k + 3]
        crystal = Crystal(arrays["numbers"][mine].astype(np.int64), cell, arrays["frac"][mine] @ cell)
        curve = Curve(arrays["dos"][bins[k] : bins[k + 1]].astype(np.float64))
        start = Start(key, arrays["kind"][k].item(), crystal)
        items.append(Taught(start, curve, float(arrays["imaginary"][k]), arrays["failed"][k].item()))
    return str(name), items


def compare(potential: Potential, taught: Taught) -> dict[str, Any]:
    """Compare a student's curve with the teacher's.

    Raises:
        Failed: The student does not hold the crystal.
    """
    curve, imaginary = vibrate(potential, taught.start)
    return {
        "kind": taught.start.kind,
        "atoms": len(taught.start.crystal),
        "shape_distance": round(shape_distance(curve, taught.curve), 4),
        "mean_mev": round(curve.mean_mev, 3),
        "teacher_mean_mev": round(taught.curve.mean_mev, 3),
        "mean_error": round(curve.mean_mev / taught.curve.mean_mev - 1.0, 4),
        "imaginary_fraction": round(imaginary, 5),
        "teacher_imaginary_fraction": round(taught.imaginary_fraction, 5),
        "dos": coarse(curve),
        "teacher_dos": coarse(taught.curve),
    }
