"""Numbers fitted on validation crystals: temperature, threshold, and the width of the concentration's interval.

The interval is split conformal with a normalised score (Lei et al., JASA 113, 1094 (2018)): residuals are divided by
a width that grows linearly with the predicted concentration, and the quantile of the ratio scales that width. Its
coverage holds for dopants exchangeable with those of the calibration rows: simulated ones, of unseen crystals.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from defectnet.config import Interval
from defectnet.errors import ConfigError

FloatArray = NDArray[np.float64]

MIN_OFFSET: Final = 1e-4
"""Smallest half-width, atomic fraction: no interval is narrower than 0.01 at.%."""


def fit_temperature(logits: Tensor, present: Tensor) -> float:
    """Return the temperature that the logits are divided by for the smallest cross entropy.

    Args:
        logits: (n,) log-odds of elements in question.
        present: (n,) bool, which of them are there.

    Returns:
        Temperature between 0.05 and 20, to 0.5 %.
    """
    x, y = logits.double(), present.double()

    def cost(temperature: float) -> float:
        return float(binary_cross_entropy_with_logits(x / temperature, y))

    # The cost is convex in 1/T, so it has one minimum: a golden section in log T finds it.
    low, high = math.log(0.05), math.log(20.0)
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    while high - low > 5e-3:
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        if cost(math.exp(inner)) < cost(math.exp(outer)):
            high = outer
        else:
            low = inner
    return math.exp((low + high) / 2.0)


def best_threshold(probability: Tensor, present: Tensor) -> float:
    """Return the probability from which an element should count as present, for the largest F1 over all of them.

    Args:
        probability: (n,) probabilities of elements in question.
        present: (n,) bool, which of them are there.

    Returns:
        A value midway between two that occur, so that it does not hang on the last digit; 0.5 if nothing is present.
    """
    if not present.any():
        return 0.5
    p, order = probability.double().sort(descending=True)
    hits = present[order].double().cumsum(0)
    taken = torch.arange(1, len(p) + 1, dtype=torch.float64)
    f1 = 2.0 * hits / (taken + hits[-1])
    ends = torch.cat([p[1:] < p[:-1], torch.tensor([True])])  # only whole groups of equal values can be taken
    best = int(torch.where(ends, f1, -1.0).argmax())
    below = float(p[best + 1]) if best + 1 < len(p) else 0.0
    return float(np.clip((float(p[best]) + below) / 2.0, 1e-6, 1.0 - 1e-6))


def fit_interval(predicted: FloatArray, true: FloatArray, coverage: float = 0.9) -> Interval:
    """Fit a conformal band `offset + slope c` around the predicted concentration.

    Args:
        predicted: (n,) predicted concentrations of dopants that are there.
        true: (n,) their true concentrations.
        coverage: Share of true concentrations that the band shall hold.

    Raises:
        ConfigError: There are too few dopants for this coverage.
    """
    residual: FloatArray = np.abs(predicted - true)
    # Every other one fits the shape of the band, the others its scale: the quantile must not see its own fit.
    shape, scale = slice(0, None, 2), slice(1, None, 2)
    n = len(residual[scale])
    rank = math.ceil((n + 1) * coverage)
    if rank > n:
        raise ConfigError(f"{len(residual)} dopants are too few to calibrate", fix="Give more validation rows")
    offset, slope = _line(predicted[shape], residual[shape])
    score: FloatArray = residual[scale] / (offset + slope * predicted[scale])
    quantile = float(np.sort(score)[rank - 1])
    return Interval(coverage, float(np.clip(quantile * offset, MIN_OFFSET, 1.0)), float(min(quantile * slope, 100.0)))


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Fit y = offset + slope x with neither negative, and the offset not below `MIN_OFFSET`."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = max(float(centred @ y) / spread, 0.0) if spread > 1e-12 else 0.0
    offset = float(y.mean() - slope * x.mean())
    if offset < MIN_OFFSET:
        offset, slope = MIN_OFFSET, max(float(x @ (y - MIN_OFFSET)), 0.0) / max(float(x @ x), 1e-12)
    return offset, slope
