"""Floors: answers that never look at a spectrum. A network that does not beat them has learnt nothing from one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from defectnet.batch import Batch, Output
from defectnet.config import Calibration
from defectnet.data.candidates import LIKENESS, TRACKS
from defectnet.data.module import SpectraDataModule
from defectnet.elements import VOCABULARY, properties
from defectnet.models.base import ABSENT_LOGIT
from defectnet.tasks.metrics import answer
from defectnet.uncertainty.calibration import best_threshold

_PRIOR: Final = 5.0  # rows that an element's own mean is mixed with the mean over all elements
_RIDGE: Final = 1e-2
_ROOT_FLOOR: Final = 1e-6


class Floor(ABC):
    """What the floors share: fitted on the training split, threshold chosen on the validation split."""

    loss = "hurdle"

    def __init__(self) -> None:
        self.calibration: Calibration | None = None

    def fit(self, module: SpectraDataModule) -> Self:
        """Fit to the training rows and choose a threshold for each track on the validation rows.

        Args:
            module: Data; the measurement does not matter, as no spectrum is read.
        """
        found = [answer(_nothing, module.evaluation("train", track, "clean")) for track in TRACKS]
        batch = Batch(*(torch.cat(fields) for fields in zip(*(a.batch for a in found), strict=True)))
        self._fit(batch, torch.cat([a.targets.concentration for a in found]))
        thresholds: dict[str, Any] = {}
        for track in TRACKS:
            val = answer(self.predict_batch, module.evaluation("val", track, "clean"))
            asked = val.batch.candidates
            probability = torch.sigmoid(val.output.identity_logits[asked])
            thresholds[f"threshold_{track}"] = best_threshold(probability, val.targets.present[asked])
        self.calibration = Calibration(**thresholds)
        return self

    @abstractmethod
    def _fit(self, batch: Batch, concentration: Tensor) -> None:
        """Fit to the rows of both tracks together."""

    @abstractmethod
    def predict_batch(self, batch: Batch) -> Output:
        """Answer a batch."""


def _nothing(batch: Batch) -> Output:
    empty = torch.zeros(len(batch.host), 0)
    return Output(empty, empty)


class TrainingMean(Floor):
    """How often an element is there when it is asked about, and how much on average when it is, on training rows."""

    def _fit(self, batch: Batch, concentration: Tensor) -> None:
        present, given = concentration > 0, batch.candidates_given[:, None]
        self._logits = {}
        for named in (True, False):
            asked = batch.candidates & (given == named)
            base = (present & asked).sum() / asked.sum().clamp_min(1)
            rate = ((present & asked).sum(0) + _PRIOR * base) / (asked.sum(0) + _PRIOR)
            self._logits[named] = torch.logit(rate.clamp(1e-6, 1.0 - 1e-6))
        mean = concentration.sum() / present.sum().clamp_min(1)
        self._amount = (concentration.sum(0) + _PRIOR * mean) / (present.sum(0) + _PRIOR)

    def predict_batch(self, batch: Batch) -> Output:
        """Answer a batch from the means."""
        logits = torch.where(batch.candidates_given[:, None], self._logits[True], self._logits[False])
        amount = self._amount.expand_as(logits)
        asked = batch.candidates
        return Output(logits.masked_fill(~asked, ABSENT_LOGIT), amount.masked_fill(~asked, 0.0))


class CompositionOnly(Floor):
    """Logistic regression of presence and ridge regression of the amount's root, from host and candidates.

    Features of an element in question: which it is, how its mass, radius, electronegativity, group and period differ
    from the nearest host element's, likeness to the host and to the other candidates, and how many are asked about.
    """

    def _fit(self, batch: Batch, concentration: Tensor) -> None:
        features = self._features(batch)
        asked, present = batch.candidates, concentration > 0
        x, y = features[asked], present[asked].double()
        mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
        self._mean, self._scale = mean, scale
        self._identity = _logistic((x - mean) / scale, y)
        inside = (features[present] - mean) / scale
        self._amount = _ridge(inside, concentration[present].double().sqrt())

    def predict_batch(self, batch: Batch) -> Output:
        """Answer a batch from composition and candidates."""
        x = (self._features(batch) - self._mean) / self._scale
        asked = batch.candidates
        logits = (_with_one(x) @ self._identity).float().clamp(ABSENT_LOGIT, -ABSENT_LOGIT)
        amount = (_with_one(x) @ self._amount).clamp(_ROOT_FLOOR, 1.0).square().float()
        return Output(logits.masked_fill(~asked, ABSENT_LOGIT), amount.masked_fill(~asked, 0.0))

    @staticmethod
    def _features(batch: Batch) -> Tensor:
        """Return (B, E, F) float64 features."""
        names = ("mass_u", "covalent_radius_angstrom", "electronegativity", "group", "period")
        table = torch.stack([torch.from_numpy(properties(name)) for name in names], dim=1)
        table = (table - table.mean(0)) / table.std(0)
        likeness = torch.from_numpy(LIKENESS)
        rows, count = batch.candidates.shape
        host = batch.composition > 0
        to_host = likeness.expand(rows, -1, -1).masked_fill(~host[:, None, :], -1.0)
        closest = to_host.argmax(2)  # (B, E)
        difference = table.expand(rows, -1, -1) - table[closest]
        others = batch.candidates[:, None, :] & ~torch.eye(count, dtype=torch.bool)
        to_others = (likeness * others).sum(2) / others.sum(2).clamp_min(1)
        number = batch.candidates.sum(1, keepdim=True).double().expand(-1, count)
        given = batch.candidates_given[:, None].double().expand(-1, count)
        single = torch.stack([to_host.amax(2), to_others, number.log(), 1.0 / number, given], dim=2)
        one_hot = torch.eye(len(VOCABULARY), dtype=torch.float64).expand(rows, -1, -1)
        return torch.cat([single, given[..., None] * single, difference, difference.abs(), one_hot], dim=2)


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Return (F + 1,) weights, the last one the offset; only that one is not held small."""
    a = _with_one(x)
    penalty = _RIDGE * len(a) * torch.eye(a.shape[1], dtype=a.dtype)
    penalty[-1, -1] = 1e-9
    weights: Tensor = torch.linalg.solve(a.T @ a + penalty, a.T @ y)
    return weights


def _logistic(x: Tensor, y: Tensor) -> Tensor:
    """Return (F + 1,) weights of a logistic regression with a small quadratic penalty, by L-BFGS."""
    a = _with_one(x)
    weights = torch.zeros(a.shape[1], dtype=a.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        cost = binary_cross_entropy_with_logits(a @ weights, y) + _RIDGE / 10 * weights[:-1].square().sum()
        cost.backward()  # type: ignore[no-untyped-call]
        return cost

    solver.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()
