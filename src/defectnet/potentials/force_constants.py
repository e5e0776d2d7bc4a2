"""Force constants of a periodic cell in real space, and the Hessian that they make at any wave vector."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray
from torch import Tensor

from defectnet.potentials.neighbours import Crystal

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TIE_ANGSTROM = 0.02
"""Images of a pair whose distances differ by less are equally near, and share its force constants."""

IMAGES: IntArray = np.array(list(itertools.product((0, 1, -1), repeat=3)))
"""(27, 3) lattice shifts among which the nearest image of an atom in a Minkowski-reduced cell is found."""


@dataclass(frozen=True)
class ForceConstants:
    """Second derivatives of the energy of a crystal by the positions of its atoms; B pairs of atoms.

    A pair may come more than once: its blocks add up. Every pair stands with its reverse.

    Attributes:
        atoms: N, of the cell.
        first: (B,) long, atom of the home cell.
        second: (B,) long, and shift: (B, 3) long, the other atom and the lattice shift of its cell.
        block: (B, 3, 3) d2E / du_first du_second, eV/angstrom^2.
    """

    atoms: int
    first: Tensor
    second: Tensor
    shift: Tensor
    block: Tensor

    def hessian(self) -> Tensor:
        """Return the real (3 N, 3 N) Hessian of the cell at Gamma, eV/angstrom^2, atom index slow."""
        return self._folded(self.block[None])[0]

    def at(self, q_points: FloatArray) -> Tensor:
        """Return the complex Hessian at wave vectors, (Q, 3 N, 3 N) in eV/angstrom^2.

        Args:
            q_points: (Q, 3) in units of the reciprocal lattice vectors. The phase is that of the lattice shift.
        """
        q = torch.as_tensor(np.asarray(q_points), dtype=torch.float64, device=self.block.device)
        phase = torch.exp(2j * torch.pi * (q @ self.shift.to(torch.float64).T))
        return self._folded(phase.to(self.block.dtype.to_complex())[:, :, None, None] * self.block)

    def _folded(self, blocks: Tensor) -> Tensor:
        """Add (Q, B, 3, 3) blocks up to (Q, 3 N, 3 N)."""
        n = self.atoms
        out = blocks.new_zeros(len(blocks), n * n, 3, 3).index_add_(1, self.first * n + self.second, blocks)
        return out.view(-1, n, n, 3, 3).transpose(2, 3).reshape(-1, 3 * n, 3 * n)

    def to(self, dtype: torch.dtype) -> ForceConstants:
        """Return the same in another precision."""
        return self._with(self.block.to(dtype))

    def __mul__(self, factor: float) -> ForceConstants:
        return self._with(self.block * factor)

    def _with(self, block: Tensor) -> ForceConstants:
        return ForceConstants(self.atoms, self.first, self.second, self.shift, block)

    def __add__(self, other: ForceConstants) -> ForceConstants:
        """Return the sum, each pair once."""
        return total([self, other])

    def __sub__(self, other: ForceConstants) -> ForceConstants:
        return total([self, other * -1.0])

    def within(self, crystal: Crystal, radius: float) -> ForceConstants:
        """Return the pairs nearer than a radius in angstrom, with the acoustic sum rule restored."""
        cell, positions = torch.as_tensor(crystal.cell), torch.as_tensor(crystal.positions)
        vector = positions[self.second] + self.shift.to(cell) @ cell - positions[self.first]
        keep = vector.norm(dim=1) < radius
        kept = ForceConstants(self.atoms, self.first[keep], self.second[keep], self.shift[keep], self.block[keep])
        return kept.with_acoustic_sum_rule()

    def with_acoustic_sum_rule(self) -> ForceConstants:
        """Return the same with the blocks of atoms with themselves such that a common shift costs no energy."""
        own = (self.first == self.second) & (self.shift == 0).all(1)
        rest = self.block[~own]
        diagonal = self.block.new_zeros(self.atoms, 3, 3).index_add_(0, self.first[~own], -rest)
        index = torch.arange(self.atoms, device=self.first.device)
        return ForceConstants(
            self.atoms,
            torch.cat([self.first[~own], index]),
            torch.cat([self.second[~own], index]),
            torch.cat([self.shift[~own], self.shift.new_zeros(self.atoms, 3)]),
            torch.cat([rest, 0.5 * (diagonal + diagonal.mT)]),
        )

    @classmethod
    def from_hessian(cls, hessian: FloatArray, sites: Crystal) -> ForceConstants:
        """Attribute the Hessian of a cell at Gamma to the nearest images of its pairs, equally near ones alike.

        This is the usual interpolation of force constants from a supercell (Parlinski, Li, Kawazoe, PRL 78, 4063
        (1997)): at Gamma it is the Hessian again.

        Args:
            hessian: (3 N, 3 N) eV/angstrom^2.
            sites: The cell; ideal positions, where atoms have relaxed a little, so that images that are equally near
                by symmetry stay so.
        """
        first, second, shift, share = nearest_images(sites)
        blocks = hessian.reshape(len(sites), 3, len(sites), 3).transpose(0, 2, 1, 3)
        return cls(
            len(sites),
            torch.from_numpy(first),
            torch.from_numpy(second),
            torch.from_numpy(shift),
            torch.from_numpy(blocks[first, second] * share[:, None, None]),
        )


def total(parts: Sequence[ForceConstants]) -> ForceConstants:
    """Return the sum of force constants of one cell, each pair once, in the order of (first, second, shift)."""
    keys, blocks = aligned(parts)
    return ForceConstants(parts[0].atoms, keys[:, 0], keys[:, 1], keys[:, 2:], blocks.sum(0))


def aligned(parts: Sequence[ForceConstants]) -> tuple[Tensor, Tensor]:
    """Put K force constants of one cell on the same pairs of atoms.

    Returns:
        (B, 5) first, second and shift, sorted, each pair once; and (K, B, 3, 3) blocks, zero where there are none.
    """
    keys = [torch.cat([part.first[:, None], part.second[:, None], part.shift], dim=1) for part in parts]
    found, place = unique_rows(torch.cat(keys))
    blocks = parts[0].block.new_zeros(len(parts), len(found), 3, 3)
    for block, part, mine in zip(blocks, parts, torch.split(place, [len(key) for key in keys]), strict=True):
        block.index_add_(0, mine, part.block.to(block))
    return found, blocks


def unique_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sorted unique rows of (B, C) integers, and (B,) the place of each row among them."""
    if not len(rows):
        return rows, rows.new_zeros(0)
    low = rows.amin(0)
    span = rows.amax(0) - low + 1
    factors = torch.cat([torch.flip(torch.cumprod(torch.flip(span[1:], [0]), 0), [0]), span.new_ones(1)])
    keys, place = torch.unique(((rows - low) * factors).sum(1), return_inverse=True)
    return keys[:, None] // factors % span + low, place


def nearest_images(sites: Crystal, first: IntArray | None = None) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """Find the nearest images of pairs of atoms of a cell.

    Args:
        sites: N atoms.
        first: (F,) atoms whose pairs with all others are wanted; all by default.

    Returns:
        (B,) place of the first atom in `first`, (B,) second, (B, 3) lattice shift of the second, and (B,) share of the
        pair: 1 / number of images that are equally near.
    """
    reduced, change = minkowski_reduce(sites.cell)  # type: ignore[no-untyped-call]
    frac = np.linalg.solve(reduced.T, sites.positions.T).T
    start = frac if first is None else frac[first]
    apart = frac[None, :, :] - start[:, None, :]  # (F, N, 3) from first to second
    base = -np.round(apart)
    vectors = (apart + base)[:, :, None, :] + IMAGES  # (F, N, 27, 3)
    distance = np.linalg.norm(vectors @ reduced, axis=3)
    near = distance < distance.min(axis=2, keepdims=True) + TIE_ANGSTROM
    share = 1.0 / near.sum(axis=2)
    one, second, image = np.nonzero(near)
    shift = np.round((base[one, second] + IMAGES[image]) @ change).astype(np.int64)
    return one, second, shift, share[one, second]
