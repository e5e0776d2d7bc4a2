"""What the figures of the benchmark are drawn from: few enough points to be kept in a JSON file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve

from defectnet.benchmark.metrics import BINS
from defectnet.benchmark.scores import Scores
from defectnet.config import Grid
from defectnet.elements import VOCABULARY
from defectnet.rng import row_rng

CURVE_POINTS: Final = 100
SCATTER_POINTS: Final = 600
EXAMPLES: Final = 2
"""Rows that are shown of the best and of the worst answers."""

_SHOWN_ELEMENTS: Final = 5


def curves(
    scores: Scores, spectra: Callable[[int], tuple[NDArray[Any], NDArray[Any]]], grid: Grid, seed: int = 0
) -> dict[str, Any]:
    """Return points of all curves, JSON-able.

    Args:
        scores: Answers and truth.
        spectra: Row -> host and doped spectrum, (L,) each.
        grid: Grid of the spectra.
        seed: Of the points that are drawn.
    """
    return {
        "precision_recall": precision_recall(scores),
        "reliability": reliability(scores),
        "concentration": _scatter(scores, seed),
        "examples": _examples(scores, spectra, grid, seed),
    }


def precision_recall(scores: Scores) -> dict[str, list[float]]:
    """Return at most `CURVE_POINTS` points of the curve over all elements in question, by rising recall."""
    probability, present = scores.probability[scores.asked], scores.present[scores.asked]
    if not present.any():
        return {"recall": [], "precision": []}
    precision, recall, _ = precision_recall_curve(present, probability)
    precision, recall = precision[::-1][1:], recall[::-1][1:]  # without the made-up point at recall 0
    # Evenly spaced in recall: the many points of equal recall would otherwise crowd out the rest.
    wanted = np.linspace(recall[0], 1.0, CURVE_POINTS)
    kept = np.unique(np.searchsorted(recall, wanted).clip(0, len(recall) - 1))
    return {"recall": _rounded(recall[kept]), "precision": _rounded(precision[kept])}


def reliability(scores: Scores) -> list[dict[str, Any]]:
    """Return, for each tenth of the probability that occurs, its mean, the share present, and the number of cases."""
    probability, present = scores.probability[scores.asked], scores.present[scores.asked]
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    table = []
    for i in np.unique(place):
        chosen = place == i
        said, true = float(probability[chosen].mean()), float(present[chosen].mean())
        table.append({"said": round(said, 5), "true": round(true, 5), "count": int(chosen.sum())})
    return table


def _scatter(scores: Scores, seed: int) -> dict[str, Any]:
    """Return true and predicted concentrations in at.% of some dopants; the number of dopants of each one's row."""
    row, element = np.nonzero(scores.present)
    kept = row_rng("scatter", seed).permutation(len(row))[:SCATTER_POINTS]
    kept.sort()
    row, element = row[kept], element[kept]
    return {
        "true": _rounded(100 * scores.true[row, element]),
        "expected": _rounded(100 * scores.expected[row, element]),
        "dopants": scores.dopants[row].tolist(),
    }


def _examples(
    scores: Scores, spectra: Callable[[int], tuple[NDArray[Any], NDArray[Any]]], grid: Grid, seed: int
) -> list[dict[str, Any]]:
    """Return rows that are answered well and badly, drawn from the best and the worst tenth, not picked by hand."""
    rows = np.flatnonzero(scores.dopants > 0)
    if len(rows) < 2 * EXAMPLES:
        return []
    # Cross entropy of the set of dopants: counts both what was missed and what was wrongly suspected.
    p = scores.probability.clip(1e-6, 1.0 - 1e-6)
    cost = np.where(scores.asked, -np.where(scores.present, np.log(p), np.log1p(-p)), 0.0).sum(axis=1)
    ranked = rows[np.argsort(cost[rows], kind="stable")]
    tenth = max(len(rows) // 10, EXAMPLES)
    rng = row_rng("examples", seed)
    chosen = [
        *((int(row), True) for row in rng.choice(ranked[:tenth], EXAMPLES, replace=False)),
        *((int(row), False) for row in rng.choice(ranked[-tenth:], EXAMPLES, replace=False)),
    ]
    return [_example(scores, row, good, spectra(row), grid) for row, good in chosen]


def _example(
    scores: Scores, row: int, good: bool, pair: tuple[NDArray[Any], NDArray[Any]], grid: Grid
) -> dict[str, Any]:
    order = np.argsort(-scores.probability[row], kind="stable")
    top = [e for e in order[:_SHOWN_ELEMENTS] if scores.asked[row, e]]
    used = int(np.flatnonzero((pair[0] > 0) | (pair[1] > 0)).max(initial=0)) + 1
    return {
        "row": str(scores.facts.row_id[row]),
        "formula": str(scores.facts.formula[row]),
        "good": good,
        "true": {
            VOCABULARY[e]: round(float(100 * scores.true[row, e]), 3) for e in np.flatnonzero(scores.present[row])
        },
        "said": {
            VOCABULARY[e]: {
                "probability": round(float(scores.probability[row, e]), 4),
                "concentration": round(float(100 * scores.amount[row, e]), 3),
            }
            for e in top
        },
        "bin": grid.width,
        "host": _rounded(pair[0][:used], 3),
        "doped": _rounded(pair[1][:used], 3),
    }


def _rounded(values: NDArray[Any], digits: int = 4) -> list[float]:
    """Round to significant digits."""
    return [float(f"{x:.{digits}g}") for x in np.asarray(values).tolist()]
