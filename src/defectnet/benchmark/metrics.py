"""What the benchmark reports of one answerer on one track under one condition.

Concentrations are reported in at.%, everything else as a share between 0 and 1. A value that nothing contributes to
is None.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from defectnet.batch import Batch, Output, Targets
from defectnet.config import Calibration
from defectnet.models.base import DefectModel
from defectnet.tasks.losses import expected_concentration
from defectnet.tasks.metrics import Answers, answer

RANGES: Final = ((0.0, 0.01), (0.01, 0.05), (0.05, 1.0))
"""Ranges of the true concentration that are reported apart: up to 1, 1 to 5, and above 5 at.%."""

Values = dict[str, Any]


class Answerer(Protocol):
    """What can be benchmarked: a calibrated network or a floor."""

    loss: str
    """Says what its concentration means; see `defectnet.tasks.losses.expected_concentration`."""

    calibration: Calibration | None
    """Temperature and threshold of each track; the interval if it has one."""

    def predict_batch(self, batch: Batch) -> Output:
        """Answer a batch."""


class Scores(NamedTuple):
    """Answers as plain arrays, (N, E).

    Attributes:
        probability: Probability that the element is there, after the temperature; 0 for what is not in question.
        expected: Expected concentration.
        amount: Concentration if present.
        asked: Bool, elements in question.
        present: Bool, elements that are there.
        true: True concentrations.
        claimed: Bool, probability at or above the threshold.
    """

    probability: NDArray[np.float64]
    expected: NDArray[np.float64]
    amount: NDArray[np.float64]
    asked: NDArray[np.bool_]
    present: NDArray[np.bool_]
    true: NDArray[np.float64]
    claimed: NDArray[np.bool_]

    def rows(self, chosen: NDArray[Any]) -> Scores:
        """Return the scores of some rows."""
        return Scores(*(field[chosen] for field in self))


def evaluate(answerer: Answerer, items: Iterable[tuple[Batch, Targets, Tensor]], track: str) -> Values:
    """Answer all batches of a loader and score the answers.

    Args:
        answerer: Network or floor.
        items: Batches of one track, as `SpectraDataModule.evaluation` gives them.
        track: ``candidates`` or ``blind``.

    Returns:
        Plain values, JSON-able: see `summary`.
    """
    return summary(scores_of(answerer, answer(answerer.predict_batch, items), track), answerer.calibration)


def scores_of(answerer: Answerer, answers: Answers, track: str) -> Scores:
    """Apply the calibration of a track to answers."""
    calibration = answerer.calibration or Calibration()
    temperature = getattr(calibration, f"temperature_{track}")
    threshold = getattr(calibration, f"threshold_{track}")
    logits = answers.output.identity_logits.double() / temperature
    output = Output(logits, answers.output.concentration.double())
    asked = answers.batch.candidates
    probability = torch.sigmoid(logits).masked_fill(~asked, 0.0)
    return Scores(
        probability=probability.numpy(),
        expected=expected_concentration(output, answerer.loss).masked_fill(~asked, 0.0).numpy(),
        amount=output.concentration.numpy(),
        asked=asked.numpy(),
        present=answers.targets.present.numpy(),
        true=answers.targets.concentration.double().numpy(),
        claimed=((probability >= threshold) & asked).numpy(),
    )


def summary(scores: Scores, calibration: Calibration | None) -> Values:
    """Return all metrics, and the main ones by number of dopants and by range of concentration."""
    count = scores.present.sum(axis=1)
    return {
        "rows": len(scores.true),
        "identity": _identity(scores),
        "concentration": _concentration(scores),
        "interval": _interval(scores, calibration),
        "by_dopants": {
            str(n): {"rows": int((count == n).sum()), **_short(scores.rows(count == n))} for n in np.unique(count)
        },
        "by_range": {f"{100 * low:g}-{100 * high:g} at.%": _range(scores, low, high) for low, high in RANGES},
    }


def _identity(scores: Scores) -> Values:
    """Average precision: micro over all elements in question; macro, the mean over elements that occur."""
    columns = [
        _average_precision(scores.probability[asked, e], scores.present[asked, e])
        for e, asked in enumerate(scores.asked.T)
        if scores.present[asked, e].any()
    ]
    return {
        "ap_micro": _average_precision(scores.probability[scores.asked], scores.present[scores.asked]),
        "ap_macro": _mean(np.array(columns)),
        "prevalence": _mean(scores.present[scores.asked]),
        "recall_at_k": _recall_at_k(scores),
        "f1": _f1(scores),
        "exact": _mean((scores.claimed == scores.present).all(axis=1)),
    }


def _average_precision(probability: NDArray[np.float64], present: NDArray[np.bool_]) -> float | None:
    if not present.any():
        return None
    return float(binary_average_precision(torch.from_numpy(probability), torch.from_numpy(present.astype(np.int64))))


def _recall_at_k(scores: Scores) -> float | None:
    """Share of the true dopants among a row's k most probable elements, k being their true number."""
    shares = []
    for probability, present in zip(scores.probability, scores.present, strict=True):
        if k := int(present.sum()):
            top = np.argsort(-probability, kind="stable")[:k]
            shares.append(present[top].mean())
    return _mean(np.array(shares))


def _f1(scores: Scores) -> float | None:
    hits = (scores.claimed & scores.present).sum()
    total = scores.claimed.sum() + scores.present.sum()
    return float(2 * hits / total) if total else None


def _concentration(scores: Scores) -> Values:
    """Errors of the expected concentration over the elements in question, at.%; R2 against their mean."""
    error = (scores.expected - scores.true)[scores.asked]
    true = scores.true[scores.asked]
    spread = ((true - true.mean()) ** 2).sum() if len(true) else 0.0
    return {
        "mae": _mean(100 * np.abs(error)),
        "rmse": None if not len(error) else float(100 * np.sqrt((error**2).mean())),
        "r2": float(1.0 - (error**2).sum() / spread) if spread > 0 else None,
        "mae_present": _mean(100 * np.abs(scores.amount - scores.true)[scores.present]),
    }


def _interval(scores: Scores, calibration: Calibration | None) -> Values | None:
    """Share of true concentrations of present dopants inside the interval, and its mean width in at.%."""
    if calibration is None or calibration.interval is None:
        return None
    band = calibration.interval
    amount, true = scores.amount[scores.present].clip(0.0, 1.0), scores.true[scores.present]
    half = band.offset + band.slope * amount
    low, high = np.clip(amount - half, 0.0, 1.0), np.clip(amount + half, 0.0, 1.0)
    return {
        "nominal": band.coverage,
        "coverage": _mean((low <= true) & (true <= high)),
        "width": _mean(100 * (high - low)),
    }


def _short(scores: Scores) -> Values:
    return {
        "recall_at_k": _recall_at_k(scores),
        "f1": _f1(scores),
        "exact": _mean((scores.claimed == scores.present).all(axis=1)),
        "mae": _mean(100 * np.abs(scores.expected - scores.true)[scores.asked]),
    }


def _range(scores: Scores, low: float, high: float) -> Values:
    chosen = scores.present & (scores.true > low) & (scores.true <= high)
    return {
        "dopants": int(chosen.sum()),
        "recall": _mean(scores.claimed[chosen]),
        "mae": _mean(100 * np.abs(scores.expected - scores.true)[chosen]),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


class CalibratedModel:
    """A checkpoint as an `Answerer`.

    Args:
        model: A loaded network.
    """

    def __init__(self, model: DefectModel) -> None:
        self.model, self.loss, self.calibration = model, model.loss, model.calibration

    def predict_batch(self, batch: Batch) -> Output:
        """Answer a batch with the network."""
        return self.model.predict_batch(batch)
