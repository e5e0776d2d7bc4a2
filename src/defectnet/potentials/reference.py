"""The reference path: any ASE calculator, through phonopy's finite displacements. Slow, and exact to the calculator.

It has the same protocol as the fast path, so that relaxation, sampling and rows are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms
from torch import Tensor

from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import EnergyForcesStress

FloatArray = NDArray[np.float64]

SYMMETRY_ANGSTROM = 1e-4
"""Atoms this near to their symmetric places are taken to be there: relaxed ones never are to the last digit."""


@dataclass(frozen=True)
class FiniteDisplacements:
    """Second derivatives from finite displacements.

    Attributes:
        phonon: With force constants.
        masses: (N,) atomic masses, u.
        frac: (N, 3) fractional coordinates of the crystal; phonopy's own may be other periodic images.
    """

    phonon: Phonopy
    masses: FloatArray
    frac: FloatArray

    def hessian(self) -> Tensor:
        """Return the (3 N, 3 N) Hessian of the cell in eV/angstrom^2."""
        return self.at(np.zeros((1, 3)))[0].real.contiguous()

    def at(self, q_points: FloatArray) -> Tensor:
        """Return the complex Hessian at (Q, 3) wave vectors in reciprocal units; (Q, 3 N, 3 N), eV/angstrom^2.

        The phase is that of the lattice shift, as in the fast path. Wave vectors that the displaced supercell does
        not hold are interpolated by phonopy.
        """
        root = np.sqrt(np.repeat(self.masses, 3))
        # phonopy puts the distance of the atoms into the phase; the fast path only the lattice shift.
        out = []
        q_points = np.asarray(q_points, dtype=np.float64)
        matrices = self.phonon.run_qpoints(q_points, with_dynamical_matrices=True).dynamical_matrices
        assert matrices is not None  # asked for
        for q, matrix in zip(q_points, matrices, strict=True):
            phase = np.repeat(np.exp(2j * np.pi * self.frac @ q), 3)
            out.append(phase[:, None] * (matrix * root[:, None] * root) * phase.conj()[None, :])
        return torch.from_numpy(np.array(out, dtype=np.complex128))


class ReferencePotential:
    """An ASE calculator as a potential.

    Args:
        calculator: Any ASE calculator with energy, forces and stress.
        name: Of the potential, stored with every row.
        sha256: Of its weights.
        supercell: Repetitions of the cell that is displaced; (1, 1, 1) for cells that are supercells already.
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
        supercell: tuple[int, int, int] = (1, 1, 1),
        displacement: float = 0.01,
        both_directions: bool = True,
    ) -> None:
        if displacement <= 0 or min(supercell) < 1:
            raise SimulationError("displacement and supercell must be positive", fix="Use 0.01 angstrom and (1, 1, 1)")
        self.calculator = calculator
        self.name = name
        self.sha256 = sha256
        self.supercell = supercell
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

    def force_constants(self, crystal: Crystal) -> FiniteDisplacements:
        """Displace the atoms that symmetry leaves, and collect the forces."""
        cell = PhonopyAtoms(numbers=crystal.numbers, cell=crystal.cell, positions=crystal.positions)
        phonon = Phonopy(
            cell,
            supercell_matrix=np.diag(self.supercell),
            primitive_matrix=np.eye(3),
            symprec=SYMMETRY_ANGSTROM,
            log_level=0,
        )
        alone = len(phonon.symmetry.symmetry_operations["rotations"]) == 1
        both: Literal["auto"] | bool = False if alone and not self.both_directions else "auto"
        phonon.generate_displacements(distance=self.displacement, is_plusminus=both)
        whole = phonon.supercell
        undisplaced = Crystal(np.asarray(whole.numbers), np.asarray(whole.cell), whole.positions)
        atoms, shifts = zip(*((int(row[0]), np.asarray(row[1:])) for row in phonon.displacements), strict=True)
        phonon.forces = self.displaced_forces(undisplaced, atoms, np.array(shifts))
        phonon.produce_force_constants()
        phonon.symmetrize_force_constants()
        return FiniteDisplacements(phonon, np.asarray(phonon.primitive.masses, dtype=np.float64), crystal.frac)
