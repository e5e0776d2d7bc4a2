"""Form of the student, and the properties of the elements that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from defectnet.config import Settings, bounded
from defectnet.elements import properties


@dataclass(frozen=True)
class StudentConfig(Settings, called="student"):
    """Form of the potential, and of what makes its numbers.

    Attributes:
        cutoff_radial, cutoff_angular: Angstrom.
        n_radial, n_angular: Radial functions.
        basis_radial, basis_angular: Polynomials that a radial function is made of.
        l_max: Highest degree of the three-body invariants.
        four_body, five_body: Whether the invariants of higher order are used.
        neurons: Of the network of each element.
        zbl_inner, zbl_outer: Radii between which the repulsion of nuclei is switched off, angstrom; both 0 without.
        embedding: Width of an element's embedding.
        rank: Products of embeddings that the radial functions of a pair are made of.
        net_rank: Terms that the network of an element is made of.
    """

    retired: ClassVar[Mapping[str, Any]] = {"fixed_base": False}

    cutoff_radial: float = bounded(6.0, above=0.0)
    cutoff_angular: float = bounded(5.0, above=0.0)
    n_radial: int = bounded(8, 1)
    n_angular: int = bounded(5, 1)
    basis_radial: int = bounded(10, 1)
    basis_angular: int = bounded(10, 1)
    l_max: int = bounded(4, 2, 8)  # the four-body invariant is made of l = 2
    four_body: bool = True
    five_body: bool = True
    neurons: int = bounded(64, 1)
    zbl_inner: float = bounded(1.0, 0.0)
    zbl_outer: float = bounded(2.0, 0.0)
    embedding: int = bounded(24, 1)
    rank: int = bounded(48, 1)
    net_rank: int = bounded(16, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        ordered = self.cutoff_angular <= self.cutoff_radial
        self.require(ordered, "cutoff_angular", f"Use cutoff_radial, {self.cutoff_radial:g}, at most")
        ordered = 0.0 < self.zbl_inner < self.zbl_outer or self.zbl_inner == self.zbl_outer == 0.0
        self.require(ordered, "zbl_inner", f"Use less than zbl_outer, {self.zbl_outer:g}, or 0 for both")

    @property
    def descriptors(self) -> int:
        """Invariants that enter a network, Q."""
        return self.n_radial + self.n_angular * (self.l_max + self.four_body + self.five_body)

    @property
    def cutoff(self) -> float:
        """Angstrom within which pairs are needed."""
        return max(self.cutoff_radial, self.cutoff_angular, self.zbl_outer)


def element_features() -> Tensor:
    """Return (62, 8) physical properties of the elements, each with mean 0 and variance 1 over the vocabulary."""
    group, period = properties("group"), properties("period")
    columns = [
        properties("covalent_radius_angstrom"),
        properties("electronegativity"),
        np.log(properties("mass_u")),
        period,
        group,
        (group >= 13) * (group - 12),  # electrons in the p shell
        (group <= 2) * (3 - group),  # easily lost electrons
        ((group > 2) & (group < 13)) * 1.0,
    ]
    table = torch.tensor(np.stack(columns, axis=1), dtype=torch.float32)
    return (table - table.mean(0)) / table.std(0)
