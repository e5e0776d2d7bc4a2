"""Crystals of the suite: textbook cells, supercells with substituted sites, and their phonons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers
from numpy.typing import NDArray

from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, modes, q_mesh
from defectnet.potentials.potential import Potential
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.relax import CellMode, Relaxation, relax
from defectnet.potentials.supercells import Supercell

FloatArray = NDArray[np.float64]

LATTICES: dict[str, tuple[str, tuple[float, ...]]] = {
    "Si": ("diamond", (5.4309,)),
    "Ge": ("diamond", (5.6575,)),
    "GaAs": ("zincblende", (5.6533,)),
    "GaP": ("zincblende", (5.4505,)),
    "CdTe": ("zincblende", (6.482,)),
    "AlAs": ("zincblende", (5.6611,)),
    "InP": ("zincblende", (5.8687,)),
    "GaSb": ("zincblende", (6.0959,)),
    "MgB2": ("AlB2", (3.086, 3.524)),
    "V": ("bcc", (3.024,)),
}
"""Structure and lattice constants (a, or a and c; angstrom) at room temperature: where relaxations start."""

TOLERANCE = 0.002
"""Largest force left (eV/angstrom; virial per atom, eV): a hundredth of a meV in a phonon."""

TOLERANCE_DISPLACED = 0.005
"""The same where atoms are displaced by a hundredth of an angstrom: second derivatives are no more exact."""

VOLUME_LIMIT = 0.2
"""Largest relative change of volume: beyond, the potential describes another crystal."""

MESH_ANGSTROM = 30.0
"""Length that a mesh of wave vectors stands for along each lattice vector."""

DISPLACED_ANGSTROM, DISPLACED_ATOMS = 10.0, 130
"""Least width of the supercell that finite displacements take, and most atoms in it (the first gives way)."""


class Failed(Exception):  # noqa: N818  (an outcome that is listed, not an error)
    """A potential does not hold a crystal, with the reason."""


class Preconditioned:
    """A slow potential that relaxes with the help of a fast one.

    Args:
        potential: Everything is computed with it.
        preconditioner: Its Hessian guides relaxations; see `relax`.
    """

    def __init__(self, potential: Potential, preconditioner: Potential) -> None:
        self.potential, self.preconditioner = potential, preconditioner
        self.name, self.sha256, self.exact = potential.name, potential.sha256, potential.exact
        self.check, self.evaluate, self.force_constants = potential.check, potential.evaluate, potential.force_constants


def textbook(name: str) -> Crystal:
    """Return the primitive cell of a crystal of `LATTICES`."""
    kind, lengths = LATTICES[name]
    if kind == "AlB2":
        a, c = lengths
        frac = [[0.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]]
        atoms = Atoms(name, scaled_positions=frac, cell=[a, a, c, 90, 90, 120], pbc=True)
    else:
        atoms = bulk(name, kind, a=lengths[0])
    return from_ase(atoms)


def from_ase(atoms: Atoms) -> Crystal:
    """Return an ase structure as a crystal."""
    return Crystal(atoms.numbers.astype(np.int64), np.asarray(atoms.cell.array, dtype=np.float64), atoms.positions)


def box(name: str, repeats: int) -> NDArray[np.int64]:
    """Return the matrix of a compact supercell of a textbook crystal.

    Args:
        name: Of `LATTICES`.
        repeats: Of the cubic cell (8 atoms in diamond and zincblende, 2 in bcc), of the primitive cell in AlB2.
    """
    cells = {
        "bcc": np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
        "AlB2": np.eye(3, dtype=np.int64),
    }
    fcc = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    return np.asarray(repeats * cells.get(LATTICES[name][0], fcc), dtype=np.int64)


def attempt(
    potential: Potential, start: Crystal, cell: CellMode, *, tolerance: float, evaluations: int, rounds: int
) -> Relaxation:
    """Relax a crystal, with the help of the fast potential of a `Preconditioned` one; arguments as of `relax`.

    Raises:
        Failed: The potential does not know an element.
    """
    try:
        potential.check(start)
    except SimulationError as error:
        raise Failed(error.what) from error
    return relax(
        potential,
        start,
        cell=cell,
        tolerance=tolerance,
        evaluations=evaluations,
        rounds=rounds,
        preconditioner=potential.preconditioner if isinstance(potential, Preconditioned) else None,
    )


def settle(potential: Potential, crystal: Crystal, cell: CellMode, rattle: float = 0.0) -> Crystal:
    """Relax a crystal.

    Args:
        potential: Relaxes.
        crystal: Start.
        cell: What of the cell may change, see `relax`.
        rattle: Standard deviation of random displacements before, angstrom; seeded.

    Raises:
        Failed: The potential does not know an element, or the crystal does not converge, or ends as another one.
    """
    start = crystal
    if rattle > 0:
        start = crystal.moved(np.random.default_rng(0).normal(0.0, rattle, (len(crystal), 3)))
    tolerance = TOLERANCE if potential.exact else TOLERANCE_DISPLACED
    result = attempt(potential, start, cell, tolerance=tolerance, evaluations=80, rounds=4)
    if not np.isfinite(result.max_force):
        raise Failed("collapses")
    if not result.converged:
        raise Failed(f"does not relax: {result.max_force:.3f} eV/angstrom are left")
    change = result.crystal.volume / crystal.volume - 1.0
    if abs(change) > VOLUME_LIMIT:
        raise Failed(f"changes its volume by {change:.0%}")
    return result.crystal


def substitute(crystal: Crystal, sites: NDArray[np.int64], symbol: str) -> Crystal:
    """Return the crystal with another element on some sites."""
    numbers = crystal.numbers.copy()
    numbers[sites] = atomic_numbers[symbol]
    return Crystal(numbers, crystal.cell, crystal.positions)


def random_sites(crystal: Crystal, symbol: str, share: float, seed: int) -> NDArray[np.int64]:
    """Return random sites of an element: `share` of them, at least one."""
    sites = np.flatnonzero(crystal.numbers == atomic_numbers[symbol])
    count = max(1, round(share * len(sites)))
    return np.sort(np.random.default_rng(seed).choice(sites, count, replace=False))


def mesh(cell: FloatArray, length: float = MESH_ANGSTROM) -> list[FloatArray]:
    """Return a mesh of wave vectors shifted by half a step, which avoids Gamma; time reversal gives the other half.

    Args:
        cell: (3, 3) lattice vectors, angstrom.
        length: Steps along each reciprocal vector are `length` over the lattice vector's length, rounded up to even.
    """
    steps = [2 * max(1, int(np.ceil(length / np.linalg.norm(vector) / 2))) for vector in cell]
    axes = [(np.arange(n) + 0.5) / n - 0.5 for n in steps]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return list(points[points[:, 0] > 0])


@dataclass(frozen=True)
class Vibrating:
    """A relaxed crystal with its second derivatives and phonons."""

    crystal: Crystal
    force_constants: ForceConstants
    phonons: Modes


def displaced_repeats(cell: FloatArray, atoms: int) -> tuple[int, int, int]:
    """Return how often a cell is repeated before its atoms are displaced; see `DISPLACED_ANGSTROM`."""
    lengths = np.linalg.norm(cell, axis=1)
    repeats = np.ones(3, dtype=np.int64)
    while lengths[short := int(np.argmin(lengths * repeats))] * repeats[short] < DISPLACED_ANGSTROM:
        more = repeats.copy()
        more[short] += 1
        if atoms * more.prod() > DISPLACED_ATOMS:
            break
        repeats = more
    return int(repeats[0]), int(repeats[1]), int(repeats[2])


def pristine(potential: Potential, crystal: Crystal) -> Vibrating:
    """Relax a small cell wholly and return its phonons on a dense mesh.

    A potential without an exact Hessian displaces atoms in a supercell, whose force constants are interpolated.

    Raises:
        Failed: See `settle`.
    """
    relaxed = settle(potential, crystal, "full")
    slow = potential.potential if isinstance(potential, Preconditioned) else potential
    if isinstance(slow, ReferencePotential):
        repeated = Supercell.of(relaxed, np.diag(displaced_repeats(relaxed.cell, len(relaxed))))
        force_constants = repeated.unfolded(slow.force_constants(repeated.crystal))
    else:
        force_constants = slow.force_constants(relaxed)
    return Vibrating(relaxed, force_constants, modes(force_constants, relaxed, mesh(relaxed.cell)))


def vibrating_supercell(potential: Potential, crystal: Crystal, cell: CellMode, rattle: float = 0.01) -> Vibrating:
    """Relax a supercell, doped or not, and return its phonons; a potential without an exact Hessian takes Gamma only.

    Raises:
        Failed: See `settle`.
    """
    relaxed = settle(potential, crystal, cell, rattle)
    force_constants = potential.force_constants(relaxed)
    points = q_mesh(len(relaxed)) if potential.exact else [np.zeros(3)]
    return Vibrating(relaxed, force_constants, modes(force_constants, relaxed, points))
