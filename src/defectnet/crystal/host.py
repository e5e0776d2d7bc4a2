"""A relaxed host in its supercell, with force constants and how they change with the volume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from defectnet.crystal.hosts import Host
from defectnet.errors import SimulationError
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

SUPERCELL_ATOMS = 80
"""Most atoms of the supercell in which substitutions are made, where the host's cell allows it."""


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


def make_host(
    potential: Potential,
    host: Host,
    *,
    atoms: int = SUPERCELL_ATOMS,
    preconditioner: Potential | None = None,
    tolerance: float = 0.001,
) -> HostModel:
    """Relax a host and compute its force constants.

    Args:
        potential: What computes it.
        host: Its primitive cell, as `read_structure` returns it.
        atoms: See `SUPERCELL_ATOMS`.
        preconditioner: See `relax`.
        tolerance: Largest force left, eV/angstrom.

    Raises:
        SimulationError: The potential does not know an element; the crystal does not come to rest, changes its volume
            too much or loses its symmetry.
    """
    potential.check(host.crystal)
    symmetry = find_operations(host.crystal, SYMMETRY)
    start = symmetrised(host.crystal, symmetry)

    def rest(crystal: Crystal, cell: CellMode) -> Crystal:
        found = relax(potential, crystal, cell=cell, tolerance=tolerance, preconditioner=preconditioner)
        change = found.crystal.volume / start.volume - 1.0
        if not np.isfinite(found.max_force):
            raise SimulationError(
                f"host {host.id} does not hold together with {potential.name}",
                why="it collapses or flies apart, or its forces are not finite",
                fix="Check the structure for atoms on top of each other, or take another potential",
            )
        if abs(change) > VOLUME_CHANGE:
            raise SimulationError(
                f"host {host.id}: {potential.name} changes its volume by {change:+.0%}",
                fix="Check the structure, or take another potential",
            )
        if not found.converged:
            raise SimulationError(
                f"host {host.id} does not come to rest with {potential.name}",
                why=f"forces of {found.max_force:.3f} eV/angstrom are left",
                fix="Check the structure, or take another potential",
            )
        return symmetrised(found.crystal, symmetry)

    primitive = rest(start, "full")
    matrix = choose_supercell(primitive, symmetry, atoms)
    repeated = Supercell.of(primitive, matrix)
    found = _force_constants(potential, repeated)
    strained = []
    for step in (STRAIN, -STRAIN):
        crystal = rest(primitive.strained(np.eye(3) * np.exp(step / 3.0)), "fixed")
        strained.append(_force_constants(potential, Supercell.of(crystal, matrix)))
    # Least squares through the middle: an odd and an even part.
    odd = total([strained[0], strained[1] * -1.0]) * (0.5 / STRAIN)
    even = total([strained[0], strained[1], found * -2.0]) * (1.0 / STRAIN**2)
    return HostModel(
        host.id,
        host.formula,
        potential.name,
        potential.sha256,
        repeated,
        found,
        (odd, even),
        potential.evaluate(primitive).energy,
    )


def _force_constants(potential: Potential, repeated: Supercell) -> ForceConstants:
    """Return the force constants of a primitive cell, by its supercell where the potential is not exact."""
    if potential.exact:
        return potential.force_constants(repeated.primitive).with_acoustic_sum_rule()
    assert isinstance(potential, ReferencePotential)
    operations = find_operations(repeated.crystal, EXACT)
    hessian = potential.hessian(repeated.crystal, operations)
    return repeated.unfolded(ForceConstants.from_hessian(hessian, repeated.crystal)).with_acoustic_sum_rule()


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
    best: tuple[float, IntArray] | None = None
    for matrix in supercell_candidates(primitive.cell, n, most):
        count = round(abs(float(np.linalg.det(matrix))))
        if not 1 <= count <= most // n:
            continue
        vectors = matrix @ primitive.cell
        apart = float(np.linalg.norm(minkowski_reduce(vectors)[0], axis=1).min())  # type: ignore[no-untyped-call]
        inverse = np.linalg.inv(matrix)
        # Rows transform with the inverse transpose of what columns of fractional coordinates do.
        turned = np.einsum("ab,gcb,cd->gad", matrix, symmetry.rotation, inverse)
        whole = bool((np.abs(turned - np.round(turned)) < 1e-6).all())
        # With the symmetry most displacements are saved, and what reaches beyond the cell is not torn apart by it.
        score = apart * (1.3 if whole else 1.0) - 0.002 * count * n
        if best is None or score > best[0] + 1e-9:
            best = score, np.asarray(matrix, dtype=np.int64)
    if best is None:
        return np.eye(3, dtype=np.int64)
    return best[1] if np.linalg.det(best[1]) > 0 else -best[1]
