"""Randomised stiffness: the same crystal with force constants that are somewhat different.

Masses are exact in every potential, stiffnesses are not. So a network should not believe in one potential's: pair
blocks of the Hessian are scaled with a factor per pair of elements, host and doped cell alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.potentials.force_constants import ForceConstants, total

FloatArray = NDArray[np.float64]

SPREAD = 0.25
"""Standard deviation of the logarithm of a factor: about the error of a fast potential on doped cells."""


@dataclass(frozen=True)
class StiffnessFactors:
    """Scaling factors, one per pair of elements.

    Attributes:
        seed: Of the data set.
        key: Names the variant; the same key scales host and doped cells alike.
    """

    seed: int
    key: str

    def factor(self, first: int, second: int) -> float:
        """Return the log-normal factor of a pair of atomic numbers, in any order."""
        low, high = sorted((int(first), int(second)))
        digest = hashlib.sha256(f"{self.key}/{low}-{high}".encode()).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "big")])
        return float(np.exp(SPREAD * rng.standard_normal()))

    def of(self, numbers: NDArray[np.int64]) -> FloatArray:
        """Return (N, N) factors of the pairs of atoms."""
        elements, place = np.unique(numbers, return_inverse=True)
        table = np.array([[self.factor(a, b) for b in elements] for a in elements])
        return np.asarray(table[place[:, None], place[None, :]])


def scaled(force_constants: ForceConstants, factors: FloatArray) -> ForceConstants:
    """Return force constants with pair blocks scaled, translations left free.

    For a pair of atoms the symmetric part K of the block is a spring between them, -K (u_i - u_j): it is scaled as
    a whole, with its share of the blocks on the diagonal. So the sum rule holds, and every block stays Hermitian.

    Args:
        force_constants: Unscaled.
        factors: (N, N) factors, see `StiffnessFactors.of`.
    """
    first, second = force_constants.first, force_constants.second
    block = force_constants.block
    change = torch.from_numpy(factors - 1.0).to(block)[first, second]
    own = (first == second) & (force_constants.shift == 0).all(1)
    springs = torch.where(own, 0.0, change)[:, None, None] * 0.5 * (block + block.mT)
    pull = block.new_zeros(force_constants.atoms, 3, 3).index_add_(0, first, springs)
    index = torch.arange(force_constants.atoms, device=first.device)
    diagonal = ForceConstants(
        force_constants.atoms, index, index, force_constants.shift.new_zeros(len(index), 3), -pull
    )
    return total([force_constants, replace(force_constants, block=springs), diagonal])
