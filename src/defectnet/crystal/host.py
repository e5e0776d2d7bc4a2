"""A relaxed host in its supercell, with force constants and how they change with the volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from defectnet.crystal.hosts import Host
from defectnet.errors import SimulationError
from defectnet.potentials.finite_displacements import plan_displacements
from defectnet.potentials.force_constants import ForceConstants, total
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, band_edge, modes
from defectnet.potentials.potential import Potential
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.relax import CellMode, relax
from defectnet.potentials.supercells import Supercell, supercell_candidates
from defectnet.potentials.symmetry import Operations, find_operations, symmetrised

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SYMMETRY = 0.01
"""Atoms this near to their symmetric places, in angstrom, are put there."""

EXACT = 1e-5
"""Atoms that are on their symmetric places are found there within this, in angstrom."""

STRAIN = 0.03
"""Change of ln V at which the host's force constants are computed again, both ways."""

VOLUME_CHANGE = 0.2
"""Largest relative change of volume in relaxing: beyond, the potential describes another crystal."""

IMAGINARY = 1e-3
"""Largest share of imaginary modes at Gamma of the supercell in a host that counts as stable."""

EDGES_MEV = (2.0, 250.0)
"""Lowest and highest believable band edge: below, atoms do not touch; above, they sit on each other."""

WITH_SYMMETRY = 1.3
"""Worth of a supercell with the crystal's symmetry, as a factor of the distance of its images: it saves most
displacements, and does not tear apart what reaches beyond the cell."""

SHORT = np.array([v for v in itertools.product((-1, 0, 1), repeat=3) if any(v)])[:, None, :]
"""(26, 1, 3) lattice vectors among which the shortest one is guessed."""

SUPERCELL_ATOMS = 80
"""Most atoms of the supercell in which substitutions are made, where the host's cell allows it."""


HOST_ATOMS = (200, 500)
"""Fewest and most atoms of the supercell in which a host's own atoms are displaced, where the potential is not exact:
Nequix's force constants of GaAs reach 13 angstrom. Derivatives by the volume take the smaller."""

HOST_WORK = 3000
"""Displacements times atoms of that supercell: the more symmetric the crystal, the more atoms are affordable."""


@dataclass(frozen=True)
class HostModel:
    """A host as one potential sees it; n atoms in the primitive cell, N in the supercell.

    Attributes:
        id, formula: Of the crystal.
        potential, potential_sha256: What computed it.
        cell: The relaxed, symmetric primitive cell and the supercell in which substitutions are made.
        force_constants: Of the primitive cell.
        by_volume: Their first and second derivatives by ln V; atoms relax with the volume.
        energy: eV per primitive cell.
    """

    id: str
    formula: str
    potential: str
    potential_sha256: str
    cell: Supercell
    force_constants: ForceConstants
    by_volume: tuple[ForceConstants, ForceConstants]
    energy: float
    _at_gamma: tuple[ForceConstants, ForceConstants, ForceConstants] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @property
    def primitive(self) -> Crystal:
        """The primitive cell."""
        return self.cell.primitive

    @cached_property
    def operations(self) -> Operations:
        """Symmetry of the primitive cell."""
        return find_operations(self.primitive, EXACT)

    @cached_property
    def sites(self) -> IntArray:
        """Inequivalent atoms of the primitive cell: the first of each set of like ones."""
        return np.unique(self.operations.orbits())

    def at_volume(self, log_volume: float) -> ForceConstants:
        """Return the force constants of the primitive cell at V = V0 exp(log_volume)."""
        first, second = self.by_volume
        return total([self.force_constants, first * log_volume, second * (0.5 * log_volume**2)])

    @cached_property
    def in_supercell(self) -> tuple[ForceConstants, ForceConstants, ForceConstants]:
        """Force constants and their two derivatives by ln V, of the supercell."""
        first, second = self.by_volume
        return self.cell.folded(self.force_constants), self.cell.folded(first), self.cell.folded(second)

    def at_gamma(
        self, potential: Potential, preconditioner: Potential | None = None
    ) -> tuple[ForceConstants, ForceConstants, ForceConstants]:
        """Return what displacements in the pristine supercell itself tell of `in_supercell`.

        What a substitution changes is the difference of two cells of one shape. Where the potential is not exact,
        images of a pair are not told apart in either, nor is what reaches beyond the cell; it cancels.
        """
        if potential.exact:
            return self.in_supercell
        if self._at_gamma is None:
            rest = _Rest(potential, self.id, self.operations, self.primitive.volume, preconditioner)
            crystals = (self.primitive, *rest.strained(self.primitive))
            parts = [_displaced(potential, c, self.cell.matrix, self.operations) for c in crystals]
            middle, first, second = map(self.cell.at_gamma, _by_volume(parts))
            object.__setattr__(self, "_at_gamma", (middle, first, second))
        assert self._at_gamma is not None
        return self._at_gamma

    @cached_property
    def band_edge_mev(self) -> float:
        """Highest phonon energy at Gamma of the supercell, meV."""
        return band_edge(self._gamma)

    @cached_property
    def _gamma(self) -> Modes:
        return modes(self.in_supercell[0], self.cell.crystal, [np.zeros(3)])

    def check_stable(self) -> None:
        """See that the crystal is a minimum of the energy, and that its edge can be believed.

        Raises:
            SimulationError: It is not.
        """
        share = self._gamma.imaginary_fraction
        if share > IMAGINARY:
            raise SimulationError(
                f"host {self.id}: {self.potential} finds it unstable",
                why=f"{share:.1%} of its modes are imaginary, the lowest at {self._gamma.energy_mev.min():.1f} meV",
                fix="Give the structure of the phase that is stable at 0 K, or take another potential",
            )
        if not EDGES_MEV[0] < self.band_edge_mev < EDGES_MEV[1]:
            raise SimulationError(
                f"host {self.id}: phonons reach {self.band_edge_mev:.0f} meV",
                fix="Check the structure for bonds that are too short, or for atoms that do not touch",
            )


@dataclass(frozen=True)
class _Rest:
    """Brings a host to rest.

    Attributes:
        potential, preconditioner, tolerance: See `make_host`.
        host: Its name.
        symmetry: That it must keep.
        volume: That it must nearly keep, cubic angstrom.
    """

    potential: Potential
    host: str
    symmetry: Operations
    volume: float
    preconditioner: Potential | None
    tolerance: float = 0.001

    def __call__(self, crystal: Crystal, cell: CellMode) -> Crystal:
        """Relax a crystal and put it on symmetric places; errors as `make_host`."""
        name = self.potential.name
        found = relax(self.potential, crystal, cell=cell, tolerance=self.tolerance, preconditioner=self.preconditioner)
        change = found.crystal.volume / self.volume - 1.0
        if not np.isfinite(found.max_force):
            raise SimulationError(
                f"host {self.host} does not hold together with {name}",
                why="it collapses or flies apart, or its forces are not finite",
                fix="Check the structure for atoms on top of each other, or take another potential",
            )
        if abs(change) > VOLUME_CHANGE:
            raise SimulationError(
                f"host {self.host}: {name} changes its volume by {change:+.0%}",
                fix="Check the structure, or take another potential",
            )
        if not found.converged:
            raise SimulationError(
                f"host {self.host} does not come to rest with {name}",
                why=f"forces of {found.max_force:.3f} eV/angstrom are left",
                fix="Check the structure, or take another potential",
            )
        return symmetrised(found.crystal, self.symmetry)

    def strained(self, primitive: Crystal) -> list[Crystal]:
        """Return a primitive cell at V0 exp(+-STRAIN)."""
        return [self(primitive.strained(np.eye(3) * np.exp(step / 3.0)), "fixed") for step in (STRAIN, -STRAIN)]


def make_host(
    potential: Potential,
    host: Host,
    *,
    atoms: int = SUPERCELL_ATOMS,
    host_atoms: tuple[int, int] = HOST_ATOMS,
    preconditioner: Potential | None = None,
    tolerance: float = 0.001,
) -> HostModel:
    """Relax a host and compute its force constants.

    Args:
        potential: What computes it.
        host: Its primitive cell, as `read_structure` returns it.
        atoms: See `SUPERCELL_ATOMS`.
        host_atoms: See `HOST_ATOMS`.
        preconditioner: See `relax`.
        tolerance: Largest force left, eV/angstrom.

    Raises:
        SimulationError: The potential does not know an element; the crystal does not come to rest, changes its volume
            too much or loses its symmetry.
    """
    potential.check(host.crystal)
    symmetry = find_operations(host.crystal, SYMMETRY)
    start = symmetrised(host.crystal, symmetry)
    rest = _Rest(potential, host.id, symmetry, start.volume, preconditioner, tolerance)
    primitive = rest(start, "full")
    repeated = Supercell.of(primitive, choose_supercell(primitive, symmetry, atoms))
    crystals = (primitive, *rest.strained(primitive))
    if potential.exact:
        found = by_volume = [potential.force_constants(crystal).with_acoustic_sum_rule() for crystal in crystals]
    else:
        fewest, most = host_atoms
        symmetry = find_operations(primitive, EXACT)
        plan = plan_displacements(primitive, symmetry, np.arange(len(primitive)), both_directions=True)
        count = min(most, max(fewest, HOST_WORK // len(plan.atoms)))
        few, many = (choose_supercell(primitive, symmetry, n) for n in (fewest, count))
        by_volume = [_displaced(potential, crystal, few, symmetry) for crystal in crystals]
        found = [_displaced(potential, primitive, many, symmetry) if count > fewest else by_volume[0]]
    _, first, second = _by_volume(by_volume)
    return HostModel(
        host.id,
        host.formula,
        potential.name,
        potential.sha256,
        repeated,
        found[0],
        (first, second),
        potential.evaluate(primitive).energy,
    )


def _displaced(potential: Potential, primitive: Crystal, matrix: IntArray, symmetry: Operations) -> ForceConstants:
    """Return the force constants of a primitive cell by displacements in a supercell."""
    assert isinstance(potential, ReferencePotential)
    return potential.primitive_force_constants(Supercell.of(primitive, matrix), symmetry)


def _by_volume(parts: Sequence[ForceConstants]) -> tuple[ForceConstants, ForceConstants, ForceConstants]:
    """Return force constants and their two derivatives by ln V from those at V0 and at V0 exp(+-STRAIN)."""
    middle, wide, narrow = parts
    first = total([wide, narrow * -1.0]) * (0.5 / STRAIN)
    second = total([wide, narrow, middle * -2.0]) * (1.0 / STRAIN**2)
    return middle, first, second


def choose_supercell(primitive: Crystal, symmetry: Operations, most: int) -> IntArray:
    """Return the supercell whose images are farthest apart for its size; with the crystal's symmetry, if possible.

    Args:
        primitive: n atoms.
        symmetry: Of it.
        most: Most atoms; where n is more than half of it, twice as many.
    """
    n = len(primitive)
    most = most if 2 * n <= most else 2 * most
    if n > most:
        return np.eye(3, dtype=np.int64)
    matrices = supercell_candidates(primitive.cell, n, most)
    vectors = matrices @ primitive.cell
    count = np.abs(np.linalg.det(matrices)).round()
    # The shortest of some lattice vectors is no shorter than the shortest of all, which takes longer to find.
    apart = np.linalg.norm(SHORT @ vectors[:, None], axis=-1).reshape(len(matrices), -1).min(axis=1)
    size = 0.002 * count * n
    best: tuple[float, int] | None = None
    for k in np.argsort(size - WITH_SYMMETRY * apart, kind="stable"):
        if best is not None and WITH_SYMMETRY * apart[k] - size[k] < best[0] - 1e-9:
            break
        exact = float(np.linalg.norm(minkowski_reduce(vectors[k])[0], axis=1).min())  # type: ignore[no-untyped-call]
        whole = len(Supercell.of(primitive, matrices[k]).keeping(symmetry)) == len(symmetry)
        score = exact * (WITH_SYMMETRY if whole else 1.0) - size[k]
        # Of equally good ones the first is taken, on every machine.
        if best is None or score > best[0] + 1e-9 or (score > best[0] - 1e-9 and k < best[1]):
            best = score, int(k)
    assert best is not None
    matrix = np.asarray(matrices[best[1]], dtype=np.int64)
    return matrix if np.linalg.det(matrix) > 0 else -matrix
