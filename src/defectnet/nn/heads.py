"""Heads: from a query per element to what is said of the element. Identity and concentration share no weights."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

MAX_CONCENTRATION: Final = 0.5
"""Upper bound of the concentration head: twice the highest concentration that is simulated."""

_PRIOR_PRESENCE = 0.1  # start near the base rates, so that the first steps do not unlearn a bias
_PRIOR_CONCENTRATION = 0.03


class _Head(nn.Module):
    """LayerNorm, Linear, GELU, Linear to one number, whose bias starts at a prior."""

    def __init__(self, width: int, prior: float) -> None:
        super().__init__()
        last = nn.Linear(width, 1)
        nn.init.constant_(last.bias, math.log(prior / (1.0 - prior)))
        self.net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), last)


class IdentityHead(_Head):
    """Log-odds that an element is present.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, _PRIOR_PRESENCE)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, D) -> (B, E) logits."""
        out: Tensor = self.net(x).squeeze(-1)
        return out


class ConcentrationHead(_Head):
    """Concentration of an element if it is present: `0.5 sigmoid(raw)`.

    Dopant concentrations span two decades (0.002 to 0.25). At small values the sigmoid is an exponential, so equal
    steps of the raw output are equal *ratios*, with no separate log scale; near 0.5 it saturates. The result is
    never 0, so a loss may take its logarithm or root.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, _PRIOR_CONCENTRATION / MAX_CONCENTRATION)

    def forward(self, x: Tensor) -> Tensor:
        """(B, E, D) -> (B, E) concentrations in (0, 0.5), atomic fractions."""
        return MAX_CONCENTRATION * torch.sigmoid(self.net(x).squeeze(-1))
