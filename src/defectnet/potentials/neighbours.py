"""Crystals as plain arrays, and the pair list from which everything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Crystal:
    """A periodic structure.

    Attributes:
        numbers: (N,) atomic numbers.
        cell: (3, 3) lattice vectors as rows, angstrom.
        positions: (N, 3) Cartesian coordinates, angstrom.
    """

    numbers: NDArray[np.int64]
    cell: FloatArray
    positions: FloatArray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume of the cell in cubic angstrom."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def frac(self) -> FloatArray:
        """(N, 3) fractional coordinates."""
        return np.asarray(np.linalg.solve(self.cell.T, self.positions.T).T)

    def strained(self, deformation: FloatArray) -> Crystal:
        """Return the crystal with cell and positions multiplied by a (3, 3) deformation from the right."""
        return Crystal(self.numbers, self.cell @ deformation, self.positions @ deformation)

    def moved(self, displacement: FloatArray) -> Crystal:
        """Return the crystal with atoms displaced by (N, 3) angstrom."""
        return Crystal(self.numbers, self.cell, self.positions + displacement)


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs within a cut-off, every periodic image counted; P pairs.

    Attributes:
        centre: (P,) long; neighbour: (P,) long, indices of atoms.
        shift: (P, 3) integer lattice shift of the neighbour.
        vector: (P, 3) from centre to neighbour, angstrom.
        distance: (P,) angstrom.
    """

    centre: Tensor
    neighbour: Tensor
    shift: Tensor
    vector: Tensor
    distance: Tensor

    def within(self, cutoff: float) -> Pairs:
        """Return the pairs closer than `cutoff` angstrom."""
        keep = torch.nonzero(self.distance < cutoff)[:, 0]
        fields = (self.centre, self.neighbour, self.shift, self.vector, self.distance)
        return Pairs(*(field.index_select(0, keep) for field in fields))


def find_pairs(crystal: Crystal, cutoff: float, device: torch.device | str = "cpu") -> Pairs:
    """List all ordered pairs closer than `cutoff` angstrom, ordered by centre, neighbour and shift.

    The order is fixed so that sums, and with them everything stored, do not depend on how the list was made.
    """
    neighbours = vesin.NeighborList(cutoff=cutoff, full_list=True)
    i, j, shift, vector, distance = neighbours.compute(
        points=crystal.positions, box=crystal.cell, periodic=True, quantities="ijSDd"
    )
    reach = np.abs(shift).max(axis=0, initial=0)
    spans = (len(crystal), len(crystal), *(2 * reach + 1))
    order = np.argsort(np.ravel_multi_index((i, j, *(shift + reach).T), spans), kind="stable")
    return Pairs(
        centre=torch.as_tensor(i[order].astype(np.int64), device=device),
        neighbour=torch.as_tensor(j[order].astype(np.int64), device=device),
        shift=torch.as_tensor(shift[order].astype(np.int64), device=device),
        vector=torch.as_tensor(vector[order], device=device),
        distance=torch.as_tensor(distance[order], device=device),
    )
