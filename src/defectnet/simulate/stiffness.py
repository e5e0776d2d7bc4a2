"""Randomised stiffness: the same crystal in a world whose force constants are somewhat different.

Masses are exact in every potential, stiffnesses are not. So a network should not believe in one potential's: pair
blocks of the Hessian are scaled with a factor per pair of elements, host and doped cell alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectnet.potentials.potential import ForceConstants

FloatArray = NDArray[np.float64]

SPREAD = 0.25
"""Standard deviation of the logarithm of a factor: about the error of a fast potential on doped cells."""


@dataclass(frozen=True)
class World:
    """Scaling factors, one per pair of elements.

    Attributes:
        seed: Of the data set.
        key: Names the world; the same key scales host and doped cells alike.
    """

    seed: int
    key: str

    def factor(self, first: int, second: int) -> float:
        """Return the log-normal factor of a pair of atomic numbers, in any order."""
        low, high = sorted((int(first), int(second)))
        digest = hashlib.sha256(f"{self.key}/{low}-{high}".encode()).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "big")])
        return float(np.exp(SPREAD * rng.standard_normal()))

    def factors(self, numbers: NDArray[np.int64]) -> FloatArray:
        """Return (N, N) factors of the pairs of atoms."""
        elements, place = np.unique(numbers, return_inverse=True)
        table = np.array([[self.factor(a, b) for b in elements] for a in elements])
        return np.asarray(table[place[:, None], place[None, :]])


class Computed:
    """Second derivatives that are kept once they are computed.

    Args:
        force_constants: Where they come from.
        q_points: (Q, 3) wave vectors that will be asked for.
    """

    def __init__(self, force_constants: ForceConstants, q_points: FloatArray) -> None:
        self._curvature = force_constants
        self._q_points = [tuple(q) for q in q_points]

    @cached_property
    def _gamma(self) -> Tensor:
        return self._curvature.hessian()

    @cached_property
    def _away(self) -> dict[tuple[float, ...], Tensor]:
        points = [q for q in self._q_points if any(q)]
        return dict(zip(points, self._curvature.at(np.array(points)), strict=True)) if points else {}

    def hessian(self) -> Tensor:
        """Return the real (3 N, 3 N) Hessian, eV/angstrom^2."""
        return self._gamma.clone()

    def at(self, q_points: FloatArray) -> Tensor:
        """Return the complex Hessian at wave vectors that were named before."""
        found = [self._away[tuple(q)] if np.any(q) else self._gamma for q in q_points]
        return torch.stack([matrix.to(matrix.dtype.to_complex()) for matrix in found])


class Stiffened:
    """Second derivatives with pair blocks scaled, translations left free.

    For a pair of atoms the symmetric part K of the block is a spring between them, -K (u_i - u_j): it is scaled as
    a whole, with its share of the blocks on the diagonal. So the sum rule holds, and every block stays Hermitian.

    Args:
        force_constants: Unscaled.
        factors: (N, N) factors, see `World.factors`.
    """

    def __init__(self, force_constants: ForceConstants, factors: FloatArray) -> None:
        self.force_constants = force_constants
        self.change = torch.from_numpy(np.repeat(np.repeat(factors - 1.0, 3, axis=0), 3, axis=1))

    def hessian(self) -> Tensor:
        """Return the real (3 N, 3 N) Hessian, eV/angstrom^2."""
        gamma = self.force_constants.hessian()
        return self._scaled(gamma, gamma)

    def at(self, q_points: FloatArray) -> Tensor:
        """Return the complex Hessian at (Q, 3) wave vectors; (Q, 3 N, 3 N), eV/angstrom^2."""
        gamma = self.force_constants.hessian()
        return torch.stack([self._scaled(matrix, gamma) for matrix in self.force_constants.at(q_points)])

    def _scaled(self, matrix: Tensor, gamma: Tensor) -> Tensor:
        # An atom's own images are in the block on the diagonal too: what that block changes with the wave vector.
        between = matrix.clone()
        _diagonal(between).sub_(_diagonal(gamma))
        change = self.change.to(gamma.device, gamma.dtype)
        springs = change * _symmetric_blocks(between)
        at_gamma = gamma.clone()
        _diagonal(at_gamma).zero_()
        atoms = len(gamma) // 3
        pull = (change * _symmetric_blocks(at_gamma)).view(3 * atoms, atoms, 3).sum(1)
        out = matrix + springs
        _diagonal(out).sub_(pull.view(atoms, 3, 3).permute(1, 2, 0))
        return out


def _diagonal(matrix: Tensor) -> Tensor:
    """View the (3, 3) blocks on the diagonal as (3, 3, N)."""
    atoms = len(matrix) // 3
    return matrix.view(atoms, 3, atoms, 3).diagonal(dim1=0, dim2=2)


def _symmetric_blocks(matrix: Tensor) -> Tensor:
    """Return the matrix with each (3, 3) block replaced by its symmetric part."""
    atoms = len(matrix) // 3
    blocks = matrix.view(atoms, 3, atoms, 3)
    return (0.5 * (blocks + blocks.transpose(1, 3))).reshape(3 * atoms, 3 * atoms)
