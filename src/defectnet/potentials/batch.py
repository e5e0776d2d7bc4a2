"""Whole structures side by side, as a potential that is trained sees them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from defectnet.potentials.neighbours import Pairs


@dataclass(frozen=True)
class CellBatch:
    """B cells of S structures, N atoms in all; M atoms in the C comparisons of two cells of one structure.

    Attributes:
        types: (N,) positions in the vocabulary.
        pairs: Of all cells.
        bounds: (B + 1) offsets of the cells' atoms.
        volume: (B,) cubic angstrom.
        labelled: (B,) whether energy, forces and stress are known; only differences are where a Hessian is.
        energy: (B,) eV; forces: (N, 3) eV/angstrom; stress: (B, 3, 3) eV/angstrom^3; zero where not labelled.
        left, right: (M,) atoms that are compared: the target is the force on `left` minus that on `right`.
        change: (M, 3) targets, eV/angstrom.
        comparison: (M,) which comparison an atom belongs to.
        structure: (C,) which structure a comparison belongs to.
        exact: (C,) whether the target comes from a Hessian.
    """

    types: Tensor
    pairs: Pairs
    bounds: tuple[int, ...]
    volume: Tensor
    labelled: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor
    left: Tensor
    right: Tensor
    change: Tensor
    comparison: Tensor
    structure: Tensor
    exact: Tensor

    def to(self, *args: Any, **kwargs: Any) -> CellBatch:
        """Return the batch on another device or with other floats; arguments as of `torch.Tensor.to`."""

        def move(value: Any) -> Any:
            if isinstance(value, Pairs):
                return Pairs(**{name: move(part) for name, part in vars(value).items()})
            if not isinstance(value, Tensor):
                return value
            moved = value.to(*args, **kwargs)
            return moved if value.is_floating_point() else moved.to(value.dtype)

        return replace(self, **{name: move(value) for name, value in vars(self).items()})

    @property
    def sizes(self) -> Tensor:
        """(B,) atoms of each cell."""
        return torch.diff(torch.tensor(self.bounds, device=self.types.device))

    @property
    def cell_of_atom(self) -> Tensor:
        """(N,) which cell an atom belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.volume), device=self.types.device), self.sizes)
