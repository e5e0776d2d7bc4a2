"""Confidence belts: intervals of a concentration that cover as often at small amounts as at large ones.

Neyman's construction (Phil. Trans. R. Soc. A 236, 333 (1937)): of dopants with about the true amount y, the predicted
amounts lie between two quantiles, a(y) and b(y). The interval of a prediction holds all y whose quantiles enclose it.
So it covers with the stated frequency at each y, whatever the prior, where an interval around the prediction covers on
average. Belts are fitted apart for elements that are called present and for those that are not, which get an upper
limit, and by the number of dopants that the probabilities add up to: it goes with how predictions err.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from defectnet.config import Settings, within
from defectnet.elements import VOCABULARY

FloatArray = NDArray[np.float64]

LEAST: Final = 60
"""Dopants that a belt needs for each of its knots."""

_GROUPS: Final = 3
_FEWEST: Final = 3 * LEAST  # dopants of a belt
_CUTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # large amounts are few, and spread far
_MANY: Final = 3  # so many dopants and more are taken together


@dataclass(frozen=True)
class Belt(Settings, called="interval.belts"):
    """A belt of one kind of elements in question.

    Attributes:
        named: Whether candidates were named.
        found: Whether it is for elements that are called present; the others have no lower end.
        dopants: Largest sum of the probabilities of a question that it is for.
        true: (knots,) true concentrations, not decreasing.
        least: (knots,) quantile of the predicted concentration, below which few lie; not decreasing.
        most: (knots,) quantile above which few lie; not decreasing.
    """

    named: bool
    found: bool
    dopants: float = field(metadata=within(0.0, len(VOCABULARY)))
    true: tuple[float, ...] = field(metadata=within(above=0.0, most=1.0))
    least: tuple[float, ...] = field(metadata=within(above=0.0, most=1.0))
    most: tuple[float, ...] = field(metadata=within(above=0.0, most=1.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        same = 1 <= len(self.true) == len(self.least) == len(self.most) <= 64
        self.require(same, "true", "Give 1 to 64 knots, and as many quantiles")
        for name in ("true", "least", "most"):
            self.require((np.diff(getattr(self, name)) >= 0).all(), name, "Give numbers that do not decrease")

    def ends(self, predicted: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return lower and upper ends (n,) of the intervals of (n,) predicted concentrations."""
        high = np.maximum(_inverse(predicted, self.true, self.least), predicted)
        if not self.found:
            return np.zeros_like(predicted), np.clip(high, 0.0, 1.0)
        low = np.minimum(_inverse(predicted, self.true, self.most), predicted)
        return np.where(predicted < self.most[0], 0.0, low), np.clip(high, 0.0, 1.0)


def _inverse(predicted: FloatArray, true: Sequence[float], quantile: Sequence[float]) -> FloatArray:
    """Return the true concentration at which a quantile is as predicted; in proportion beyond the last knot."""
    x, y = np.log(np.asarray(quantile)), np.log(np.asarray(true))
    x = x + 1e-9 * np.arange(len(x))  # strictly increasing
    at = np.log(np.maximum(predicted, 1e-9))
    return np.asarray(np.exp(np.interp(at, x, y) + np.maximum(at - x[-1], 0.0)))


def belt_of(belts: Sequence[Belt], named: bool, found: bool, dopants: float) -> Belt | None:
    """Return the belt of elements in question; None if there is none for them."""
    fits = [b for b in belts if b.named == named and b.found == found and b.dopants >= dopants]
    return min(fits, key=lambda belt: belt.dopants) if fits else None


def fit_belts(
    predicted: FloatArray,
    true: FloatArray,
    found: NDArray[np.bool_],
    expected: FloatArray,
    number: NDArray[np.intp],
    named: bool,
    coverage: float,
) -> tuple[Belt, ...]:
    """Fit the belts of one track.

    Where too few dopants are called present, all of the track stand for them.

    Args:
        predicted: (n,) predicted concentrations of dopants that are there, and in question.
        true: (n,) their true concentrations.
        found: (n,) whether each was called present.
        expected: (n,) sum of the probabilities of the question.
        number: (n,) true number of dopants of the sample.
        named: Whether candidates were named.
        coverage: Share of true concentrations that the intervals shall hold.
    """
    # Half way between rows as they come and equal numbers of rows with one, two and more dopants.
    counts = np.bincount(np.minimum(number, _MANY), minlength=_MANY + 1)
    weight = 1.0 / np.sqrt(counts[np.minimum(number, _MANY)])
    belts = []
    for present in (True, False):
        chosen = found == present
        chosen = chosen if chosen.sum() >= _FEWEST else np.ones_like(chosen)
        groups = int(np.clip(chosen.sum() // _FEWEST, 1, _GROUPS))
        cuts = np.quantile(expected[chosen], np.arange(1, groups) / groups)
        group = np.searchsorted(cuts, expected, side="left")
        for i, most in enumerate([*cuts.tolist(), float(len(VOCABULARY))]):
            rows = np.flatnonzero(chosen & (group == i))
            if len(rows) >= LEAST:
                curves = _quantiles(predicted[rows], true[rows], weight[rows], coverage, two_sided=present)
                belts.append(Belt(named, present, most, *(tuple(map(float, column)) for column in curves)))
    return tuple(belts)


def _quantiles(
    predicted: FloatArray, true: FloatArray, weight: FloatArray, coverage: float, *, two_sided: bool
) -> list[FloatArray]:
    """Return (knots,) true concentrations, and the quantiles of the predicted ones around them."""
    order = np.argsort(true, kind="stable")
    wide = [0, *(int(share * len(order)) for share in _CUTS), len(order)]
    cuts = [0]
    for cut in wide[1:]:
        if cut - cuts[-1] >= LEAST:
            cuts.append(cut)
    cuts[-1] = len(order)
    tail = (1.0 - coverage) / (2.0 if two_sided else 1.0)
    found = []
    for first, last in pairwise(cuts):
        part = order[first:last]
        part = part[np.argsort(predicted[part], kind="stable")]
        # Conformal: one more than there are, at either end.
        running = np.cumsum(weight[part]) / (weight[part].sum() + weight[part].max())
        low = max(int(np.searchsorted(running, tail, side="right")) - 1, 0)
        high = min(int(np.searchsorted(running, 1.0 - tail)), len(part) - 1)
        found.append((math.exp(np.log(true[part]).mean()), predicted[part[low]], predicted[part[high]]))
    return [np.maximum.accumulate(np.clip(column, 1e-6, 1.0)) for column in zip(*found, strict=True)]
