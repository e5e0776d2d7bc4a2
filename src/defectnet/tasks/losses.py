"""Losses: one function of (output, item) for each way of training, chosen by the model class's `loss`.

A loss returns its terms by name; the value that is minimised is their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, huber_loss

from defectnet.batch import Batch, Output, Targets
from defectnet.errors import ConfigError
from defectnet.models.paper import TARGET_SCALE

AMOUNT_SCALE: Final = 10.0
"""Amounts are compared as this times the root of the concentration: 0.2 at.% is 0.45, 25 at.% is 5."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the hurdle loss.

    Attributes:
        identity: Of the negative log-likelihood of which elements are present, summed over a row's elements.
        amount: Of the error of the amounts of the present elements, in units of `AMOUNT_SCALE` times a root.
        expected: Of the error of the expected concentration over given candidates, in at.%.
        response: Of the share of the change of the spectrum that predicted responses do not explain; see
            `defectnet.nn.impurity.ResponseDictionary`.
        share: Of the divergence of each host element's share of the host's spectrum; this and the following of
            `DefectNet` alone, see `defectnet.nn.changes.ElementChanges.misfits`.
        own: Of the divergence of the dopants' own DOS.
        change: Of the share of the changes of the host's elements that is not explained.
    """

    identity: float = 1.0
    amount: float = 1.0
    expected: float = 0.2
    response: float = 2.0
    share: float = 1.0
    own: float = 0.5
    change: float = 1.0

    def of(self, term: str) -> float:
        """Return the weight of a further term that a network adds in training (`DefectModel.learn`)."""
        weight: float = getattr(self, term)
        return weight


def expected_concentration(output: Output, loss: str = "hurdle") -> Tensor:
    """Return the expected concentration of each element, (B, E): what the candidates track is scored on.

    With identity and amount apart (hurdle), it is the probability times the concentration if present. The published
    network regresses the concentration over all candidates, so that its output is the expectation already.

    Args:
        output: What the network says.
        loss: The model class's `loss`.
    """
    if loss == "paper":
        return output.concentration.clamp(0.0, 1.0)
    return torch.sigmoid(output.identity_logits) * output.concentration


def hurdle_rows(output: Output, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Presence first, then amount.

    Args:
        output: Logits and concentrations, (B, E).
        batch: Says which elements are in question.
        targets: True concentrations.
        weights: Weights of the terms.

    Returns:
        (B,) each. ``identity``: cross entropy, summed over the elements in question (a likelihood of the set).
        ``amount``: Huber loss of the scaled root, summed over present elements. ``expected``: absolute error of the
        expected concentration in at.%, mean over the candidates; zero where none are named.
    """
    present = targets.present & batch.candidates
    cross = binary_cross_entropy_with_logits(output.identity_logits, present.float(), reduction="none")
    # Absent elements are replaced before the root is taken: at zero its gradient is infinite.
    predicted, true = (torch.where(present, x, 1.0) for x in (output.concentration, targets.concentration))
    amount = huber_loss(
        AMOUNT_SCALE * predicted.clamp_min(1e-6).sqrt(), AMOUNT_SCALE * true.sqrt(), reduction="none", delta=1.0
    )
    error = (expected_concentration(output) - targets.concentration).abs()
    return {
        "identity": weights.identity * (cross * batch.candidates).sum(dim=1),
        "amount": weights.amount * amount.sum(dim=1),
        "expected": weights.expected * 100.0 * _mean(error, batch.candidates & batch.candidates_given[:, None]),
    }


def paper_rows(output: Output, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Mean squared error of ten times the concentration, over the candidates only (arXiv 2506.00725).

    Returns:
        ``expected``: the one term, (B,); it has no weight.
    """
    error = TARGET_SCALE * (output.concentration - targets.concentration)
    return {"expected": _mean(error.square(), batch.candidates)}


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of (B, E) values over what is chosen of each row, (B,); zero where nothing is."""
    return (values * chosen).sum(dim=1) / chosen.sum(dim=1).clamp_min(1)


def hurdle_loss(output: Output, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Return `hurdle_rows` as means: over rows; of ``expected`` over all candidates that are named."""
    terms = hurdle_rows(output, batch, targets, weights)
    named = (batch.candidates & batch.candidates_given[:, None]).sum(dim=1)
    return {name: value.mean() for name, value in terms.items()} | {"expected": _weighted(terms["expected"], named)}


def paper_loss(output: Output, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Return `paper_rows` as a mean over all candidates."""
    terms = paper_rows(output, batch, targets, weights)
    return {"expected": _weighted(terms["expected"], batch.candidates.sum(dim=1))}


def _weighted(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum() / counts.sum().clamp_min(1)


Loss = Callable[[Output, Batch, Targets, LossWeights], dict[str, Tensor]]
LOSSES: Final[dict[str, Loss]] = {"hurdle": hurdle_loss, "paper": paper_loss}
"""The losses of a batch by name."""

ROW_LOSSES: Final[dict[str, Loss]] = {"hurdle": hurdle_rows, "paper": paper_rows}
"""The same for every row by itself: a mean over rows does not depend on how they are spread over batches."""


def loss_named(name: str, *, rows: bool = False) -> Loss:
    """Return a loss by name.

    Args:
        name: Key of `LOSSES`.
        rows: Whether each row has its own.

    Raises:
        ConfigError: There is none of that name.
    """
    known = ROW_LOSSES if rows else LOSSES
    if name not in known:
        raise ConfigError(f"loss {name!r} is not known", fix=f"Use one of {', '.join(known)}")
    return known[name]
