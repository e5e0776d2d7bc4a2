"""What the benchmark reports of one entrant on one track under one condition.

Concentrations are reported in at.%, everything else as a share between 0 and 1. A value that nothing contributes to
is None.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import binary_calibration_error

from defectnet.benchmark.detection import detection
from defectnet.benchmark.results import GROUPS
from defectnet.benchmark.scores import RANGES, Bools, Floats, Scores
from defectnet.elements import VOCABULARY

PLENTY: Final = 0.02
"""Concentration from which a single dopant counts as plenty, for `one_dopant_plenty`."""

BINS: Final = 10
"""Bins of the calibration error and of the reliability curve."""

Values = dict[str, Any]


def summary(scores: Scores, threshold: float, nominal: float | None = None) -> Values:
    """Return all metrics of one track under one condition, JSON-able.

    Args:
        scores: Answers and truth.
        threshold: Probability from which an element counts as present; chosen on validation rows.
        nominal: Coverage that the entrant states for its intervals.
    """
    claimed = scores.asked & (scores.probability >= threshold)
    count = scores.dopants
    plenty = (count == 1) & (scores.true.sum(axis=1) >= PLENTY)
    return {
        "rows": len(scores.true),
        "dopants": int(scores.present.sum()),
        "threshold": threshold,
        "identity": _identity(scores, claimed),
        "concentration": _concentration(scores),
        "one_dopant": _one(scores.rows(count == 1)),
        "one_dopant_plenty": {k: v for k, v in _one(scores.rows(plenty)).items() if k in GROUPS["one_dopant_plenty"]},
        "many_dopants": _part(scores.rows(count > 1)),
        "calibration": _calibration(scores),
        "interval": _interval(scores, nominal),
        "by_dopants": {str(n): _part(scores.rows(count == n)) for n in np.unique(count)},
        "by_placement": {
            str(name): _part(scores.rows(scores.facts.placement == name)) for name in np.unique(scores.facts.placement)
        },
        "by_range": {range_name(low, high): _range(scores, claimed, low, high) for low, high in RANGES},
        "detection": detection(scores),
        "elements": _elements(scores, claimed),
    }


def range_name(low: float, high: float) -> str:
    """Name a range of concentrations."""
    return f"above {100 * low:g} at.%" if high >= 1.0 else f"{100 * low:g} to {100 * high:g} at.%"


def inclusion(scores: Scores, k: NDArray[np.integer[Any]]) -> Floats:
    """Return the chance that each dopant is among its row's k most probable elements, ties being broken at random.

    Args:
        scores: Answers and truth.
        k: (N,) how many elements are taken.

    Returns:
        (n,) chances, for each dopant in the order of `np.nonzero(scores.present)`.
    """
    row, element = np.nonzero(scores.present)
    own = scores.probability[row, element][:, None]
    above = ((scores.probability[row] > own) & scores.asked[row]).sum(axis=1)
    tied = ((scores.probability[row] == own) & scores.asked[row]).sum(axis=1)
    return np.asarray(np.clip((k[row] - above) / tied, 0.0, 1.0))


def recall_at_k(scores: Scores) -> Floats:
    """Return, for each row with dopants, the share of them among its k most probable elements, k their true number."""
    count = scores.dopants
    row = np.nonzero(scores.present)[0]
    hits = np.bincount(row, weights=inclusion(scores, count), minlength=len(count))
    return np.asarray(hits[count > 0] / count[count > 0])


def _identity(scores: Scores, claimed: Bools) -> Values:
    """Average precision: micro over all elements in question; macro, the mean over elements that occur."""
    columns = [
        _average_precision(scores.probability[asked, e], scores.present[asked, e])
        for e, asked in enumerate(scores.asked.T)
        if scores.present[asked, e].any()
    ]
    return {
        "ap_micro": _average_precision(scores.probability[scores.asked], scores.present[scores.asked]),
        "ap_macro": mean(np.array(columns)),
        "prevalence": mean(scores.present[scores.asked]),
        "recall_at_k": mean(recall_at_k(scores)),
        "f1": _f1(claimed, scores.present),
        "exact": mean((claimed == scores.present).all(axis=1)),
    }


def _average_precision(probability: Floats, present: Bools) -> float | None:
    return float(average_precision_score(present, probability)) if present.any() else None


def _f1(claimed: Bools, present: Bools) -> float | None:
    total = claimed.sum() + present.sum()
    return float(2 * (claimed & present).sum() / total) if total else None


def _concentration(scores: Scores) -> Values:
    """Errors of the expected concentration over the elements in question, at.%; R2 against their mean."""
    error = (scores.expected - scores.true)[scores.asked]
    true = scores.true[scores.asked]
    spread = float(((true - true.mean()) ** 2).sum()) if len(true) else 0.0
    return {
        "mae": mean(100 * np.abs(error)),
        "rmse": float(100 * np.sqrt((error**2).mean())) if len(error) else None,
        "r2": float(1.0 - (error**2).sum() / spread) if spread > 0 else None,
        "mae_present": mean(100 * np.abs(scores.amount - scores.true)[scores.present]),
    }


def _one(scores: Scores) -> Values:
    """Rows of one dopant: how often it is the most probable element, or one of the five most probable."""
    rows = len(scores.true)
    found = {f"top_{k}": mean(inclusion(scores, np.full(rows, k))) for k in (1, 5)}
    part = _part(scores)
    return {"rows": rows, **found, "mae": part["mae"], "r2": part["r2"]}


def _part(scores: Scores) -> Values:
    concentration = _concentration(scores)
    return {
        "rows": len(scores.true),
        "recall_at_k": mean(recall_at_k(scores)),
        "mae": concentration["mae"],
        "r2": concentration["r2"],
    }


def _range(scores: Scores, claimed: Bools, low: float, high: float) -> Values:
    chosen = scores.present & (scores.true > low) & (scores.true <= high)
    return {
        "dopants": int(chosen.sum()),
        "recall": mean(claimed[chosen]),
        "mae": mean(100 * np.abs(scores.expected - scores.true)[chosen]),
        "mae_present": mean(100 * np.abs(scores.amount - scores.true)[chosen]),
        **_band(scores, chosen),
    }


def _calibration(scores: Scores) -> Values:
    """Expected calibration error (Guo et al., ICML 2017), Brier score and spread of the probabilities."""
    probability, present = scores.probability[scores.asked], scores.present[scores.asked]
    if not len(probability):
        return dict.fromkeys(GROUPS["calibration"])
    error = binary_calibration_error(torch.from_numpy(probability), torch.from_numpy(present.astype(np.int64)), BINS)
    return {
        "error": float(error),
        "brier": float(((probability - present) ** 2).mean()),
        "sharpness": float(probability.std()),
    }


def _interval(scores: Scores, nominal: float | None) -> Values | None:
    """Share of true concentrations of present dopants inside the interval, and its mean width in at.%."""
    if scores.low is None or scores.high is None:
        return None
    return {"nominal": nominal, **_band(scores, scores.present)}


def _band(scores: Scores, chosen: Bools) -> Values:
    if scores.low is None or scores.high is None:
        return {"coverage": None, "width": None}
    low, high, true = scores.low[chosen], scores.high[chosen], scores.true[chosen]
    return {"coverage": mean((low <= true) & (true <= high)), "width": mean(100 * (high - low))}


def _elements(scores: Scores, claimed: Bools) -> Values:
    """One line for each element that is asked about: recall at the threshold, and among the k most probable."""
    table = {}
    element = np.nonzero(scores.present)[1]
    among = inclusion(scores, scores.dopants)
    for e, symbol in enumerate(VOCABULARY):
        asked, present = scores.asked[:, e], scores.present[:, e]
        if asked.any():
            table[symbol] = {
                "asked": int(asked.sum()),
                "dopants": int(present.sum()),
                "ap": _average_precision(scores.probability[asked, e], present[asked]),
                "recall": mean(claimed[present, e]),
                "recall_at_k": mean(among[element == e]),
                "mae": mean(100 * np.abs(scores.expected - scores.true)[asked, e]),
            }
    return table


def mean(values: NDArray[Any]) -> float | None:
    """Return the mean; None of nothing."""
    return float(values.mean()) if len(values) else None
