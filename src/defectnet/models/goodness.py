"""Goodness of fit: how much of the change of a spectrum the elements account for that an answer names."""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from defectnet.config import PROJECTED_BINS

_SWEEPS: Final = 200
_MAD: Final = 0.6745 * 6.0**0.5  # median of the size of a second difference of white noise, over its deviation
_LEAST_SIGNAL: Final = 1.0  # power of a change over that of its noise, below which there is nothing to explain


class Goodness(NamedTuple):
    """What answers account for.

    Attributes:
        predicted: (B, L) change of the DOS per relative energy.
        explained: (B,) share of the change that is seen, beyond noise, 0 to 1; NaN where noise may be all there is.
    """

    predicted: Tensor
    explained: Tensor


def goodness(change: Tensor, responses: Tensor, low: Tensor, high: Tensor) -> Goodness:
    """Fit the responses of elements, with amounts within bounds, to changes.

    Noise is what neighbouring bins do not share. Compared is in bins four times as wide, where it averages out.

    Args:
        change: (B, L) DOS of the doped sample less that of the host, per relative energy.
        responses: (B, E, L) change per concentration.
        low: (B, E) least amount of each element; zero of those that the answer does not name.
        high: (B, E) largest amount; zero of those that it does not name.
    """
    pool = change.shape[1] // PROJECTED_BINS
    noise = (change[:, 2:] - 2.0 * change[:, 1:-1] + change[:, :-2]).abs().median(dim=1).values / _MAD
    seen, basis = avg_pool1d(change.unsqueeze(1), pool).squeeze(1), avg_pool1d(responses, pool)
    gram, overlap = basis @ basis.transpose(1, 2), (basis @ seen.unsqueeze(-1)).squeeze(-1)
    amount = bounded_fit(gram, overlap, low, high)
    rest = seen - (amount.unsqueeze(1) @ basis).squeeze(1)
    power, random = seen.square().mean(dim=1), noise.square() / pool
    explained = 1.0 - (rest.square().mean(dim=1) - random) / (power - random)
    explained = explained.clamp(0.0, 1.0).masked_fill(power < (1.0 + _LEAST_SIGNAL) * random, torch.nan)
    return Goodness((amount.unsqueeze(1) @ responses).squeeze(1), explained)


def bounded_fit(gram: Tensor, overlap: Tensor, low: Tensor, high: Tensor | float) -> Tensor:
    """Solve least squares within bounds, by coordinate descent.

    Args:
        gram: (B, K, K) positive definite.
        overlap: (B, K).
        low: (B, K) least values.
        high: (B, K) largest values, or one number for all.

    Returns:
        (B, K), the x within its bounds with the least x^T gram x / 2 - overlap^T x.
    """
    x = low.clone()
    most = torch.as_tensor(high, dtype=x.dtype).expand_as(x)
    size = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
    for _ in range(_SWEEPS):
        before = x.clone()
        for k in range(x.shape[1]):
            rest = overlap[:, k] - (gram[:, k] * x).sum(dim=1) + gram[:, k, k] * x[:, k]
            x[:, k] = torch.minimum(torch.maximum(rest / size[:, k], low[:, k]), most[:, k])
        if not (x - before).abs().gt(1e-9).any():
            break
    return x
