"""Losses of an answer, for networks to choose from; each returns terms by name, a value for every row."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

from defectnet.batch import Batch, Output, Targets

ROOT_SCALE: Final = 10.0
"""Concentrations are compared as this times their root: 0.2 at.% is 0.45, 25 at.% is 5."""

HURDLE_WEIGHTS: Final[Mapping[str, float]] = MappingProxyType(
    {"identity": 1.0, "concentration_if_present": 1.0, "expected": 0.2}
)
"""Weights of the terms of `hurdle_terms`."""


class LossTerm(NamedTuple):
    """One term of a loss.

    Attributes:
        rows: (B,) value of each row.
        weight: (B,) how many elements a row's value is a mean over, and so what it weighs in the mean over a batch;
            None where all rows count alike.
    """

    rows: Tensor
    weight: Tensor | None = None

    def mean(self) -> Tensor:
        """Return the mean over a batch, a scalar."""
        if self.weight is None:
            return self.rows.mean()
        return (self.rows * self.weight).sum() / self.weight.sum().clamp_min(1)


def mean_over(values: Tensor, chosen: Tensor) -> LossTerm:
    """Return the mean of (B, E) values over what is chosen of each row; zero where nothing is."""
    count = chosen.sum(dim=1)
    return LossTerm((values * chosen).sum(dim=1) / count.clamp_min(1), count)


def hurdle_expected(output: Output) -> Tensor:
    """Return (B, E): probability times concentration if present."""
    return torch.sigmoid(output.identity_logits) * output.concentration_if_present


def hurdle_terms(output: Output, batch: Batch, targets: Targets) -> dict[str, LossTerm]:
    """Presence first, then concentration.

    Args:
        output: Logits and concentrations, (B, E).
        batch: Says which elements are in question.
        targets: True concentrations.

    Returns:
        ``identity``: cross entropy, summed over the elements in question (a likelihood of the set).
        ``concentration_if_present``: Huber loss of the scaled root, summed over present elements. ``expected``:
        absolute error of the expected concentration in at.%, mean over the candidates; zero where none are named.
    """
    present = targets.present & batch.candidates
    cross = binary_cross_entropy_with_logits(output.identity_logits, present.float(), reduction="none")
    # Absent elements are replaced before the root is taken: at zero its gradient is infinite.
    pair = (output.concentration_if_present, targets.true_concentration)
    predicted, true = (torch.where(present, x, 1.0) for x in pair)
    root = huber_loss(
        ROOT_SCALE * predicted.clamp_min(1e-6).sqrt(), ROOT_SCALE * true.sqrt(), reduction="none", delta=1.0
    )
    error = 100.0 * (hurdle_expected(output) - targets.true_concentration).abs()
    return {
        "identity": LossTerm((cross * batch.candidates).sum(dim=1)),
        "concentration_if_present": LossTerm(root.sum(dim=1)),
        "expected": mean_over(error, batch.candidates & batch.candidates_given[:, None]),
    }
