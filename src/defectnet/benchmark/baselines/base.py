"""What the baselines share: fit, calibrate on validation rows, answer in pieces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, NamedTuple, Self

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from defectnet.batch import Batch, Estimate
from defectnet.benchmark.baselines.features import CHUNK, moments
from defectnet.benchmark.baselines.table import Array, FitArrays, FitRows, Questions, thin
from defectnet.benchmark.protocol import FitData, TrainableEstimator
from defectnet.config import MODEL_GRID
from defectnet.data.candidates import TRACKS
from defectnet.errors import ConfigError

_SKILL_ROWS: Final = 1000
LEAST: Final = 1e-3
MOST: Final = 0.5
"""Bounds of an amount, atomic fraction: half of the lowest and twice the highest concentration that is simulated."""


class RawScores(NamedTuple):
    """What a method says before calibration.

    Attributes:
        scores: (B, E, S); the first one says best which elements are present.
        amount: (B, E) concentration if present, as the method has it.
    """

    scores: Array
    amount: Array


class Baseline(TrainableEstimator):
    """A method that scores elements, and the two regressions that turn scores into a probability and an amount.

    The calibration is fitted on validation rows, for each track apart and both conditions together: a logistic
    regression of presence on the scores, on how they stand among the scores of the other elements in question, and on
    cheap context (size of the contrast, number of candidates, and what composition and candidates alone say); and a
    ridge regression of the logarithm of the amount. The expected concentration is probability times amount.

    Attributes:
        settings: What the search on the validation rows chose.
    """

    reads_spectra: ClassVar[bool] = True

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self._prior: Baseline | None = None

    def fit(self, data: FitData) -> Self:
        """Fit to the training rows of both tracks and conditions; settings and calibration on the validation rows."""
        return self.fit_arrays(FitArrays(data))

    def fit_arrays(self, data: FitArrays) -> Self:
        """Do what `fit` does, on rows that are in memory already."""
        self._prior = self._make_prior(data)
        self._fit_method(data)
        parts = [part for track in TRACKS for part in data.val[track]]
        answers = [self._raw_in_pieces(part.questions) for part in parts]
        self._calibrator = ScoreCalibration(self.reads_spectra).fit(parts, answers)
        return self

    def estimate(self, batch: Batch) -> Estimate:
        """Answer a batch; each row by itself."""
        questions = Questions.of(batch)
        check_grid(questions)
        if not len(batch.host):
            nothing = torch.zeros(batch.candidates.shape)
            return Estimate(nothing, nothing, nothing)
        pieces = [questions.take(slice(i, i + CHUNK)) for i in range(0, len(batch.host), CHUNK)]
        answers = [self._calibrator.apply(piece, self._with_prior(piece)) for piece in pieces]
        probability, amount = (np.concatenate(fields) for fields in zip(*answers, strict=True))
        expected = np.clip(probability * amount, 0.0, MOST)
        said = [torch.from_numpy(x).float() for x in (probability, expected, amount)]
        return Estimate(said[0], said[1], said[2])

    @abstractmethod
    def _fit_method(self, data: FitArrays) -> None:
        """Fit the method and choose its settings."""

    @abstractmethod
    def _raw(self, questions: Questions) -> RawScores:
        """Score elements."""

    def _make_prior(self, data: FitArrays) -> Baseline | None:
        """Return what composition and candidates say, for methods that read spectra; see `composition.WithPrior`."""
        return None

    def _with_prior(self, questions: Questions) -> RawScores:
        raw = self._raw(questions)
        if self._prior is None:
            return raw
        prior = self._prior._raw(questions)
        scores = np.concatenate([raw.scores, prior.scores[..., :1]], axis=2)
        return RawScores(scores, raw.amount)

    def _raw_in_pieces(self, questions: Questions) -> RawScores:
        rows = len(questions.host)
        pieces = [self._with_prior(questions.take(slice(i, i + CHUNK))) for i in range(0, rows, CHUNK)]
        return RawScores(*(np.concatenate(fields) for fields in zip(*pieces, strict=True)))

    def _skill(self, data: FitArrays, raw: Callable[[Questions], RawScores] | None = None) -> float:
        """Return how well a method does on (at most 1,000 of each part of) the validation rows; see `skill`."""
        parts = [thin(part, _SKILL_ROWS) for track in TRACKS for part in data.val[track]]
        answers = [(raw or self._raw)(part.questions) for part in parts]
        calibrator = ScoreCalibration(self.reads_spectra).fit(parts, answers)
        pairs = zip(parts, answers, strict=True)
        return float(np.mean([skill(part, *calibrator.apply(part.questions, answer)) for part, answer in pairs]))


class ScoreCalibration:
    """From scores to probability and amount, for each track apart.

    Args:
        reads_spectra: Whether the size of the contrast may be looked at.
    """

    def __init__(self, reads_spectra: bool) -> None:
        self._reads_spectra = reads_spectra

    def fit(self, parts: Sequence[FitRows], raws: Sequence[RawScores]) -> Self:
        """Fit on rows that the method was not fitted on.

        Args:
            parts: Rows, each part of one track.
            raws: What the method says of them.

        Raises:
            ConfigError: There are too few rows to tell present from absent.
        """
        self._identity: dict[bool, Pipeline] = {}
        self._amount: dict[bool, Pipeline] = {}
        for given in (True, False):
            chosen = [(p, r) for p, r in zip(parts, raws, strict=True) if bool(p.questions.given[0]) == given]
            features = np.concatenate([self._context(p.questions, r)[p.questions.asked] for p, r in chosen])
            present = np.concatenate([p.present[p.questions.asked] for p, _ in chosen])
            if present.all() or not present.any():
                what = "only dopants" if present.any() else "no dopant"
                raise ConfigError(f"the validation rows ask about {what}", fix="Give more validation rows")
            true = np.concatenate([p.true_concentration[p.questions.asked] for p, _ in chosen])
            amount = np.concatenate([r.amount[p.questions.asked] for p, r in chosen])
            identity = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
            self._identity[given] = identity.fit(features, present)
            inside = _amount_features(amount, features)[present]
            self._amount[given] = make_pipeline(StandardScaler(), Ridge(alpha=3.0)).fit(inside, np.log(true[present]))
        return self

    def apply(self, questions: Questions, raw: RawScores) -> tuple[Array, Array]:
        """Return probability and amount, (B, E) each; what is not in question has probability 0."""
        probability, amount = np.zeros(questions.asked.shape), np.full(questions.asked.shape, LEAST)
        context = self._context(questions, raw)
        for given in (True, False):
            asked = questions.asked & (questions.given == given)[:, None]
            if not asked.any():
                continue
            features = context[asked]
            probability[asked] = self._identity[given].predict_proba(features)[:, 1]
            said = self._amount[given].predict(_amount_features(raw.amount[asked], features))
            amount[asked] = from_log(said)
        return probability, amount

    def _context(self, questions: Questions, raw: RawScores) -> Array:
        """Return (B, E, S + 3 or 4): scores, lead over the best other element, rank, number asked, size of contrast."""
        first = np.where(questions.asked, raw.scores[..., 0], -np.inf)
        top = np.sort(first, axis=1)
        best, second = top[:, -1:], top[:, -2:-1]
        other = np.where(first == best, second, best)
        lead = np.zeros(first.shape)  # of a single candidate, and of what is not in question
        np.subtract(first, other, out=lead, where=np.isfinite(other) & np.isfinite(first))
        rank = (first[:, None, :] > first[:, :, None]).sum(axis=2)
        number = questions.asked.sum(axis=1, keepdims=True).clip(1)
        columns = [lead, np.log1p(rank), np.broadcast_to(np.log(number), first.shape)]
        if self._reads_spectra:
            size = moments(questions)[:, 2:3]  # in coarse bins, where noise averages out
            columns.append(np.broadcast_to(size, first.shape))
        return np.concatenate([raw.scores, np.stack(columns, axis=2)], axis=2)


def _amount_features(amount: Array, features: Array) -> Array:
    return np.column_stack([np.log(amount.clip(LEAST, MOST)), features])


def skill(part: FitRows, probability: Array, amount: Array) -> float:
    """Return micro average precision less the relative error of the expected concentration.

    That error is the mean absolute one over that of answering zero everywhere; both over the elements in question.
    """
    asked = part.questions.asked
    true = part.true_concentration[asked]
    precision = average_precision_score(part.present[asked], probability[asked])
    error = np.abs((probability * amount)[asked] - true).mean() / max(true.mean(), 1e-12)
    return float(precision - error)


def from_log(amount: Array) -> Array:
    """Return e to the power of a predicted logarithm, between `LEAST` and `MOST`; cut first, so that none overflows."""
    return np.asarray(np.exp(amount.clip(np.log(LEAST), np.log(MOST))))


def check_grid(questions: Questions) -> None:
    """Refuse spectra on another grid than the project's.

    Raises:
        ConfigError: The number of bins is another one.
    """
    bins = questions.host.shape[1]
    if bins != MODEL_GRID.bins:
        raise ConfigError(f"the spectra have {bins} bins", fix=f"Baselines read the default grid, {MODEL_GRID.bins}")
