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
    """

    identity: float = 1.0
    amount: float = 1.0
    expected: float = 0.2


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


def hurdle_loss(output: Output, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Presence first, then amount.

    Args:
        output: Logits and concentrations, (B, E).
        batch: Says which elements are in question.
        targets: True concentrations.
        weights: Weights of the terms.

    Returns:
        ``identity``: cross entropy over the elements in question, summed over a row (a likelihood of the set), mean
        over rows. ``amount``: Huber loss of the scaled root over present elements, summed over a row. ``expected``:
        absolute error of the expected concentration in at.%, mean over the candidates of rows that name them.
    """
    rows = len(batch.host)
    present = targets.present & batch.candidates
    cross = binary_cross_entropy_with_logits(output.identity_logits, present.float(), reduction="none")
    # Selected before the root is taken: at the zeros of other elements its gradient is infinite.
    predicted, true = output.concentration[present], targets.concentration[present]
    amount = huber_loss(
        AMOUNT_SCALE * predicted.clamp_min(1e-6).sqrt(), AMOUNT_SCALE * true.sqrt(), reduction="sum", delta=1.0
    )
    named = batch.candidates & batch.candidates_given[:, None]
    error = (expected_concentration(output) - targets.concentration).abs()
    return {
        "identity": weights.identity * cross[batch.candidates].sum() / rows,
        "amount": weights.amount * amount / rows,
        "expected": weights.expected * 100.0 * error[named].sum() / named.sum().clamp_min(1),
    }


def paper_loss(output: Output, batch: Batch, targets: Targets, weights: LossWeights) -> dict[str, Tensor]:
    """Mean squared error of ten times the concentration, over the candidates only (arXiv 2506.00725).

    Returns:
        ``expected``: the one term; it has no weight.
    """
    error = TARGET_SCALE * (output.concentration - targets.concentration)
    return {"expected": error[batch.candidates].square().mean()}


Loss = Callable[[Output, Batch, Targets, LossWeights], dict[str, Tensor]]
LOSSES: Final[dict[str, Loss]] = {"hurdle": hurdle_loss, "paper": paper_loss}
"""The losses by name."""


def loss_named(name: str) -> Loss:
    """Return a loss by name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in LOSSES:
        raise ConfigError(f"loss {name!r} is not known", fix=f"Use one of {', '.join(LOSSES)}")
    return LOSSES[name]
