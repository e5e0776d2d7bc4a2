"""Batches for training: whole structures side by side, with pair lists that are made once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectnet.distil.labels import Curved, Structure
from defectnet.elements import NUMBERS
from defectnet.potentials.batch import CellBatch
from defectnet.potentials.neighbours import Crystal, Pairs, find_pairs
from defectnet.potentials.nep import joined_pairs

FloatArray = NDArray[np.float64]

_TYPES = np.full(256, -1)
_TYPES[NUMBERS] = np.arange(len(NUMBERS))


def element_types(crystal: Crystal) -> Tensor:
    """Return (N,) positions of the atoms' elements in the vocabulary."""
    return torch.from_numpy(_TYPES[crystal.numbers])


@dataclass(frozen=True)
class Example:
    """One structure, ready to be batched: the fields of a `CellBatch` with one structure.

    Attributes:
        crystals: B cells of the same atoms.
        energy, forces, stress: As in `CellBatch`; None where only the difference is known.
        compared: (C) pairs of cells.
        change: (C, N / B, 3) differences of their forces.
    """

    crystals: tuple[Crystal, ...]
    energy: FloatArray | None
    forces: FloatArray | None
    stress: FloatArray | None
    compared: tuple[tuple[int, int], ...]
    change: FloatArray

    @property
    def atoms(self) -> int:
        """Atoms of all cells."""
        return sum(len(crystal) for crystal in self.crystals)

    @classmethod
    def of_labels(cls, structure: Structure) -> Example:
        """Make an example of labelled records."""
        records = structure.records
        forces = np.stack([record.forces for record in records])
        compared = structure.differences
        change = [forces[a] - forces[b] for a, b in compared]
        return cls(
            crystals=tuple(record.crystal for record in records),
            energy=np.array([record.energy for record in records]),
            forces=forces.reshape(-1, 3),
            stress=np.stack([record.stress for record in records]),
            compared=compared,
            change=np.stack(change) if change else np.zeros((0, forces.shape[1], 3)),
        )

    @classmethod
    def of_hessian(cls, curved: Curved, displacement: FloatArray) -> Example:
        """Make an example of a Hessian: two cells displaced oppositely by (N, 3) angstrom."""
        crystals, change = curved.displaced(displacement)
        return cls(crystals, None, None, None, ((0, 1),), change[None])


class PairCache:
    """Pair lists of cells, made when first asked for and kept up to a limit.

    Args:
        cutoff: Angstrom.
        gigabytes: Of memory at most; beyond it lists are made anew each time.
    """

    def __init__(self, cutoff: float, gigabytes: float = 2.0) -> None:
        self.cutoff = cutoff
        self._free = int(gigabytes * 2**30)
        self._kept: dict[int, list[Pairs]] = {}

    def pairs(self, key: int, example: Example) -> list[Pairs]:
        """Return the pairs of an example's cells, vectors in single precision.

        Args:
            key: Number of the example; the same example must always come with it.
            example: The cells.
        """
        if key not in self._kept:
            lists = [self._find(crystal) for crystal in example.crystals]
            size = sum(t.nbytes for pairs in lists for t in (pairs.centre, pairs.neighbour, pairs.vector))
            if size > self._free:
                return lists
            self._free -= size
            self._kept[key] = lists
        return self._kept[key]

    def _find(self, crystal: Crystal) -> Pairs:
        pairs = find_pairs(crystal, self.cutoff)
        vector = pairs.vector.to(torch.float32)
        empty = pairs.shift.new_zeros(len(vector), 0)  # no wave vector is asked for here
        return Pairs(pairs.centre, pairs.neighbour, empty, vector, pairs.distance.to(torch.float32))


def collate(examples: Sequence[Example], lists: Sequence[Sequence[Pairs]]) -> CellBatch:
    """Put examples side by side, with their pair lists."""
    crystals = [crystal for example in examples for crystal in example.crystals]
    bounds = tuple(itertools.accumulate((len(crystal) for crystal in crystals), initial=0))
    left, right, comparison = [], [], []
    structure: list[int] = []
    exact: list[bool] = []
    first = 0
    for k, example in enumerate(examples):
        size = len(example.crystals[0])
        for a, b in example.compared:
            left.append(np.arange(size) + bounds[first + a])
            right.append(np.arange(size) + bounds[first + b])
            comparison.append(np.full(size, len(structure)))
            structure.append(k)
            exact.append(example.forces is None)
        first += len(example.crystals)
    empty = np.zeros(0, dtype=np.int64)

    def column(name: str, *shape: int) -> Tensor:
        blank = [np.zeros((len(e.crystals) if name != "forces" else e.atoms, *shape)) for e in examples]
        values = [getattr(e, name) for e in examples]
        kept = [b if v is None else v for b, v in zip(blank, values, strict=True)]
        return torch.from_numpy(np.concatenate(kept)).to(torch.float32 if shape else torch.float64)

    return CellBatch(
        types=torch.cat([element_types(crystal) for crystal in crystals]),
        pairs=joined_pairs([pairs for part in lists for pairs in part], bounds),
        bounds=bounds,
        volume=torch.tensor([crystal.volume for crystal in crystals], dtype=torch.float32),
        labelled=torch.tensor([e.forces is not None for e in examples for _ in e.crystals]),
        energy=column("energy"),
        forces=column("forces", 3),
        stress=column("stress", 3, 3),
        left=torch.from_numpy(np.concatenate([*left, empty])),
        right=torch.from_numpy(np.concatenate([*right, empty])),
        change=torch.from_numpy(np.concatenate([e.change.reshape(-1, 3) for e in examples])).to(torch.float32),
        comparison=torch.from_numpy(np.concatenate([*comparison, empty])),
        structure=torch.tensor(structure, dtype=torch.int64),
        exact=torch.tensor(exact, dtype=torch.bool),
    )
