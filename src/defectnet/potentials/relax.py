"""Relaxation of atoms and cell with the exact Hessian as preconditioner."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import fmin_l_bfgs_b

from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import Potential

FloatArray = NDArray[np.float64]
CellMode = Literal["fixed", "volume", "full"]

_STRAINS: dict[str, FloatArray] = {
    "fixed": np.zeros((0, 3, 3)),
    "volume": np.eye(3)[None],
    "full": np.array(
        [
            [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
            [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
            [[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]],
            [[0, 0, 0.5], [0, 0, 0], [0.5, 0, 0]],
            [[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]],
        ]
    ),
}
SOFTEST = 0.5
"""Smallest curvature (eV/angstrom^2) that the preconditioner believes in: bounds the step along soft modes."""

LONGEST_STEP = 0.25
"""Largest displacement of an atom in one trial, angstrom: keeps atoms from jumping over each other."""


@dataclass(frozen=True)
class Relaxation:
    """Result of a relaxation.

    Attributes:
        crystal: The last structure.
        converged: Whether forces and stress are below the tolerance.
        max_force: Largest force component, eV/angstrom.
        max_virial: Largest component of volume times stress per atom along the free strains, eV.
        evaluations: Force calls.
    """

    crystal: Crystal
    converged: bool
    max_force: float
    max_virial: float
    evaluations: int


VOLUMES = (0.2, 8.0)
"""Volume relative to the start within which a crystal is believed: a collapsing cell has ever more neighbours."""


class _Collapsed(Exception):  # noqa: N818  (a signal, not an error)
    """Raised when a trial leaves `VOLUMES`."""


class _Done(Exception):  # noqa: N818  (a signal, not an error)
    """Raised inside the minimiser when the tolerance is met or the budget is spent."""


class _Problem:
    """Energy of a crystal over displacements and strains in preconditioned coordinates."""

    def __init__(self, potential: Potential, start: Crystal, cell: CellMode, tolerance: float, volume: float) -> None:
        self.potential = potential
        self.start = start
        self.strains = _STRAINS[cell]
        self.tolerance = tolerance
        self.volume = volume
        self.evaluations = 0
        self.last = Relaxation(start, False, np.inf, np.inf, 0)

    def gradient(self, x: FloatArray) -> tuple[float, FloatArray]:
        """Return energy and gradient; notes the structure and whether it is converged."""
        crystal, deformation = self._at(x)
        if not VOLUMES[0] < crystal.volume / self.volume < VOLUMES[1]:
            raise _Collapsed
        result = self.potential.evaluate(crystal)
        self.evaluations += 1
        virial = crystal.volume * result.stress
        force = float(np.abs(result.forces).max())
        strain = float(np.abs(np.einsum("ab,kab->k", virial, self.strains)).max(initial=0.0)) / len(self.start)
        done = force < self.tolerance and strain < self.tolerance and np.isfinite(result.energy)
        self.last = Relaxation(crystal, bool(done), force, strain, self.evaluations)
        return result.energy, self._chain(result.forces, virial, deformation)

    def _at(self, x: FloatArray) -> tuple[Crystal, FloatArray]:
        atoms = 3 * len(self.start)
        deformation = np.eye(3) + np.einsum("k,kab->ab", x[atoms:], self.strains)
        return self.start.moved(x[:atoms].reshape(-1, 3)).strained(deformation), deformation

    def _chain(self, forces: FloatArray, virial: FloatArray, deformation: FloatArray) -> FloatArray:
        """Return the gradient by displacements and strains."""
        by_strain = np.einsum("ab,kab->k", np.linalg.solve(deformation, virial), self.strains)
        return np.concatenate([-(forces @ deformation.T).ravel(), by_strain])

    def preconditioner(self, potential: Potential) -> FloatArray:
        """Return T with x = T y, so that the energy is nearly a unit parabola in y.

        The Hessian by the positions is exact; columns of the strains come from differences of forces and stress.
        Negative curvatures are turned positive: a saddle is then left downhill.
        """
        atoms, free = 3 * len(self.start), len(self.strains)
        hessian = np.zeros((atoms + free, atoms + free))
        hessian[:atoms, :atoms] = potential.force_constants(self.start).hessian().cpu().numpy()
        step = 1e-3
        for k in range(free):
            sides = []
            for sign in (1.0, -1.0):
                x = np.zeros(atoms + free)
                x[atoms + k] = sign * step
                crystal, deformation = self._at(x)
                result = potential.evaluate(crystal)
                sides.append(self._chain(result.forces, crystal.volume * result.stress, deformation))
            column = (sides[0] - sides[1]) / (2 * step)
            hessian[:, atoms + k] = hessian[atoms + k] = column
        # Strains are put on the scale of displacements before curvatures are compared.
        length = np.ones(atoms + free)
        length[atoms:] = 1.0 / (len(self.start) ** 0.5 * (self.start.volume / len(self.start)) ** (1 / 3))
        scaled = hessian * length[:, None] * length[None, :]
        values, vectors = eigh(0.5 * (scaled + scaled.T), driver="evd")
        return np.asarray(length[:, None] * vectors / np.sqrt(np.maximum(np.abs(values), SOFTEST)))


def relax(
    potential: Potential,
    crystal: Crystal,
    *,
    cell: CellMode = "volume",
    tolerance: float = 0.005,
    evaluations: int = 50,
    rounds: int = 3,
    preconditioner: Potential | None = None,
) -> Relaxation:
    """Relax positions and cell with L-BFGS, preconditioned by the Hessian at the start of each round.

    Args:
        potential: What to relax with.
        crystal: Start.
        cell: ``fixed``, ``volume`` (uniform strain) or ``full`` (six strains).
        tolerance: Largest force component (eV/angstrom) and virial per atom (eV).
        evaluations: Force calls a round; then the Hessian is computed afresh.
        rounds: Rounds at most.
        preconditioner: A cheaper potential whose Hessian is near enough; by default `potential` itself.

    Returns:
        The last structure; see `Relaxation.converged`.
    """
    spent, volume = 0, crystal.volume
    for _ in range(rounds):
        problem = _Problem(potential, crystal, cell, tolerance, volume)
        size = 3 * len(crystal) + len(problem.strains)
        try:
            problem.gradient(np.zeros(size))
            if not problem.last.converged and np.isfinite(problem.last.max_force):
                _minimise(problem, problem.preconditioner(preconditioner or potential), evaluations)
        except _Collapsed:
            return Relaxation(crystal, False, np.inf, np.inf, spent + problem.evaluations)
        spent += problem.evaluations
        last = problem.last
        crystal = last.crystal
        if last.converged or not np.isfinite(last.max_force):
            break
    return Relaxation(last.crystal, last.converged, last.max_force, last.max_virial, spent)


def _minimise(problem: _Problem, transform: FloatArray, evaluations: int) -> None:
    best = (np.inf, problem.last)
    limit = problem.evaluations + evaluations
    atoms = 3 * len(problem.start)

    def energy(y: FloatArray) -> tuple[float, FloatArray]:
        nonlocal best
        x = transform @ y
        value, gradient = problem.gradient(x)
        if np.isfinite(value) and value < best[0]:
            best = (value, problem.last)
        if problem.last.converged or problem.evaluations >= limit:
            raise _Done
        return value, transform.T @ gradient

    # The first trial of SciPy's L-BFGS has unit length: scale y so that this is the Newton step, or what is safe of it.
    _, first = problem.gradient(np.zeros(transform.shape[0]))
    downhill = transform.T @ first
    longest = float(np.abs((transform @ downhill)[:atoms]).max())
    transform = transform * (np.linalg.norm(downhill) * min(1.0, LONGEST_STEP / max(longest, 1e-12)))
    with suppress(_Done):
        fmin_l_bfgs_b(energy, np.zeros(transform.shape[1]), m=30, factr=0.0, pgtol=0.0)
    if not problem.last.converged and np.isfinite(best[0]):
        problem.last = best[1]
