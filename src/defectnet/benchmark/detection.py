"""Detection limit: the lowest concentration from which a dopant is found nine times in ten, at few false alarms.

Of the elements that are in question and absent, 5 % may be called present: that fixes the threshold. Whether a dopant
is called present is then regressed on its concentration, rising or level but nothing else assumed (isotonic regression,
Zadrozny and Elkan, KDD 2002).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np
from sklearn.isotonic import IsotonicRegression

from defectnet.benchmark.scores import RANGES, Bools, Floats, Scores
from defectnet.elements import VOCABULARY

RECALL: Final = 0.9
"""Share of dopants that must be found."""

FALSE_POSITIVES: Final = 0.05
"""Share of absent elements that may be called present."""

LEAST_DOPANTS: Final = 20
"""Fewest dopants that a limit is given for: with fewer, the regression says what chance says."""

LEAST_ABOVE: Final = 10
"""Fewest dopants that must lie above a limit."""

LEAST_ABSENT: Final = 50
"""Fewest absent cases from which an element gets a threshold of its own."""

MASS_EDGES: Final = (-1.0, -0.6, -0.3, -0.1, 0.1, 0.5, 1.5, 4.0, 100.0)
"""Bins of the relative mass difference, dopant minus replaced atom over replaced atom."""


def detection(scores: Scores) -> dict[str, Any]:
    """Return detection limits in at.%: overall, for each element, and by mass difference to the replaced atom.

    Overall and by mass difference all elements share one threshold; in the table of elements each has its own, so
    that an element that is suspected everywhere does not look easy to find.

    Args:
        scores: Answers and truth.

    Returns:
        ``limit``, ``recall`` of all dopants and the ``threshold``; ``elements``: symbol -> limit; ``by_mass``: a list
        of bins with their recall, also by range of concentration. A limit that is not reached, or that too few
        dopants speak for, is None.
    """
    threshold = false_alarm_threshold(scores.probability[scores.asked & ~scores.present])
    hit = scores.probability > threshold
    present = scores.present
    difference = np.where(present, scores.facts.mass_ratio, np.nan) - 1.0
    return {
        "threshold": threshold,
        "limit": limit(scores.true[present], hit[present]),
        "recall": _share(hit[present]),
        "elements": {
            symbol: found for e, symbol in enumerate(VOCABULARY) if (found := _limit_of_element(scores, e)) is not None
        },
        "by_mass": [
            _bin(scores, hit, present & (difference >= low) & (difference < high), low, high)
            for low, high in pairwise(MASS_EDGES)
        ],
    }


def false_alarm_threshold(absent: Floats) -> float:
    """Return the probability that at most `FALSE_POSITIVES` of the absent elements exceed; 0 if there are none."""
    return float(np.quantile(absent, 1.0 - FALSE_POSITIVES, method="higher")) if len(absent) else 0.0


def limit(concentration: Floats, hit: Bools) -> float | None:
    """Return the lowest concentration from which the regressed recall is at least `RECALL`, in at.%.

    Args:
        concentration: (n,) true concentrations of dopants, atomic fractions.
        hit: (n,) whether each was found.

    Returns:
        None where the recall is not reached, or where there are too few dopants to say so.
    """
    if len(hit) < LEAST_DOPANTS:
        return None
    x = np.log(concentration)
    fitted = IsotonicRegression(increasing=True).fit(x, hit.astype(np.float64)).predict(x)
    enough = fitted >= RECALL
    return float(100 * concentration[enough].min()) if enough.sum() >= LEAST_ABOVE else None


def _limit_of_element(scores: Scores, element: int) -> float | None:
    asked, present = scores.asked[:, element], scores.present[:, element]
    absent = scores.probability[asked & ~present, element]
    if len(absent) < LEAST_ABSENT:
        return None
    hit = scores.probability[present, element] > false_alarm_threshold(absent)
    return limit(scores.true[present, element], hit)


def _bin(scores: Scores, hit: Bools, chosen: Bools, low: float, high: float) -> dict[str, Any]:
    parts = [chosen & (scores.true > begin) & (scores.true <= end) for begin, end in RANGES]
    return {
        "from": low,
        "to": high,
        "dopants": int(chosen.sum()),
        "recall": _share(hit[chosen]),
        "limit": limit(scores.true[chosen], hit[chosen]),
        "by_range": [{"dopants": int(part.sum()), "recall": _share(hit[part])} for part in parts],
    }


def _share(values: Bools) -> float | None:
    return float(values.mean()) if len(values) else None
