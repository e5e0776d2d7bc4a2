"""The reference path: any ASE calculator, by finite displacements. Slow, and exact to the calculator.

It has the same protocol as the fast path, so that relaxation, sampling and rows are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from defectnet.errors import SimulationError
from defectnet.potentials.finite_displacements import displaced_hessian, displaced_primitive
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import EnergyForcesStress
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import Operations, find_operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SYMMETRY_ANGSTROM = 1e-4
"""Atoms this near to their symmetric places are taken to be there: relaxed ones never are to the last digit."""

ONE_WAY = 0.5
"""Share of the displacement where atoms are displaced one way only: the third derivative then enters."""


class ReferencePotential:
    """An ASE calculator as a potential.

    Args:
        calculator: Any ASE calculator with energy, forces and stress.
        name: Of the potential, stored with every row.
        sha256: Of its weights.
        displacement: Angstrom.
        both_directions: Displace both ways where symmetry does not make that superfluous. Otherwise one way only, for
            half the time, in cells without any symmetry: there the errors of the atoms average out. Where symmetry
            makes atoms alike their errors add up, to whole modes that are wrong, so that it is both ways again.
    """

    exact = False
    """Second derivatives hold for the cell that was displaced; other wave vectors are interpolated."""

    def __init__(
        self,
        calculator: Any,
        *,
        name: str,
        sha256: str = "",
        displacement: float = 0.01,
        both_directions: bool = True,
    ) -> None:
        if displacement <= 0:
            raise SimulationError(f"displacement is {displacement}", fix="Use a positive one, such as 0.01 angstrom")
        self.calculator = calculator
        self.name = name
        self.sha256 = sha256
        self.displacement = displacement
        self.both_directions = both_directions

    def check(self, crystal: Crystal) -> None:
        """Do nothing: what a calculator knows, only the calculator knows."""

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress."""
        atoms = Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)
        atoms.calc = self.calculator
        return EnergyForcesStress(
            energy=float(atoms.get_potential_energy()),  # type: ignore[no-untyped-call]
            forces=np.asarray(atoms.get_forces(), dtype=np.float64),  # type: ignore[no-untyped-call]
            stress=np.asarray(atoms.get_stress(voigt=False), dtype=np.float64),  # type: ignore[no-untyped-call]
        )

    def evaluate_many(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Compute energy, forces and stress of several crystals."""
        return [self.evaluate(crystal) for crystal in crystals]

    def displaced_forces(self, crystal: Crystal, atoms: Sequence[int], shifts: FloatArray) -> list[FloatArray]:
        """Compute the (N, 3) forces when one atom is displaced, for each of (D,) atoms by one of (D, 3) shifts."""
        displacements = np.zeros((len(atoms), len(crystal), 3))
        displacements[np.arange(len(atoms)), atoms] = shifts
        return [result.forces for result in self.evaluate_many([crystal.moved(part) for part in displacements])]

    def force_constants(self, crystal: Crystal) -> ForceConstants:
        """Displace the atoms that symmetry leaves, and attribute what the forces say to the nearest images."""
        return ForceConstants.from_hessian(self.hessian(crystal, find_operations(crystal, SYMMETRY_ANGSTROM)), crystal)

    def primitive_force_constants(self, cell: Supercell, operations: Operations) -> ForceConstants:
        """Return the force constants of a primitive cell by displacements in a supercell; see `displaced_primitive`."""
        return displaced_primitive(self.displaced_forces, cell, operations, distance=self.displacement)

    def hessian(
        self,
        crystal: Crystal,
        operations: Operations,
        *,
        atoms: IntArray | None = None,
        fallback: FloatArray | None = None,
    ) -> FloatArray:
        """Return the (3 N, 3 N) Hessian of a cell at Gamma, eV/angstrom^2; see `displaced_hessian`."""
        one_way = not self.both_directions and len(operations) == 1
        return displaced_hessian(
            self.displaced_forces,
            crystal,
            operations,
            atoms=atoms,
            distance=self.displacement * (ONE_WAY if one_way else 1.0),
            both_directions=not one_way,
            fallback=fallback,
        )
