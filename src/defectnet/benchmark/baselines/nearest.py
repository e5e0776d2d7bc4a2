"""Spectral library matching: what was in the training pairs whose contrast looks most like this one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from defectnet.benchmark.baselines.base import LEAST, RawScores
from defectnet.benchmark.baselines.composition import WithPrior
from defectnet.benchmark.baselines.features import (
    E,
    Preprocess,
    contrasts,
    host_features,
    moments,
    principal_components,
    relations,
    smooth,
)
from defectnet.benchmark.baselines.table import Array, FitArrays, FitRows, Questions, thin

_DOPANTS: Final = 6  # most dopants of a row
_BLOCK: Final = 128  # questions that are compared with the library at a time


@dataclass(frozen=True)
class Matching:
    """How a library is searched.

    Attributes:
        how: Preparation of the spectra.
        neighbours: Training pairs that vote.
        host: Weight of the host's own spectrum and composition in the distance, beside the contrast.
        relation: Width of a vote: a dopant votes for elements that stand to the asked host as it stands to its own, in
            standardised mass, radius, electronegativity and group; 0 votes for the same element alone.
    """

    how: Preprocess = field(default_factory=lambda: Preprocess(window=7))
    neighbours: int = 40
    host: float = 0.5
    relation: float = 0.5


class Nearest(WithPrior):
    """Votes of the nearest training pairs, weighted by distance.

    The distance is Euclidean between contrasts of unit size (so that the concentration does not count) with a share
    of the host's spectrum and descriptors; both as 48 principal components. A vote goes to the element itself, or to
    the elements that stand to the asked host as the neighbour's dopant stands to its own. The amount is the
    neighbours' own, times the ratio of the sizes of the contrasts.

    Searched on validation, one after the other: kind of vote and its width, neighbours, share of the host,
    Savitzky-Golay window, derivative.
    """

    def _fit_method(self, data: FitArrays) -> None:
        best, score = Matching(), -np.inf
        part = thin(data.spectra, 10_000)
        steps: list[list[dict[str, Any]]] = [
            [{"relation": width} for width in (0.0, 0.25, 0.5, 1.0)],
            [{"neighbours": count} for count in (10, 100, 300)],
            [{"host": weight} for weight in (0.0, 1.0, 2.0)],
            [{"how": Preprocess(window=15)}, {"how": Preprocess(window=7, derivative=1)}],
        ]
        for step in steps:
            options = [replace(best, **change) for change in step]
            found = [self._skill(data, Library(option).fit(part).raw) for option in options]
            if max(found) > score:
                score, best = max(found), options[int(np.argmax(found))]
        self._library = Library(best).fit(data.spectra)
        self.settings = asdict(best)

    def _raw(self, questions: Questions) -> RawScores:
        return self._library.raw(questions)


class Library:
    """Training pairs to compare with.

    Args:
        matching: How they are searched.
    """

    def __init__(self, matching: Matching) -> None:
        self._matching = matching

    def fit(self, part: FitRows) -> Self:
        """Take in training pairs; those without a dopant too, they vote for nothing."""
        few = thin(part)
        x, host = self._shape(few.questions), self._host(few.questions)
        self._pca = principal_components(x, 48)
        self._host_mean, self._host_spread = host.mean(axis=0), np.sqrt(host.var(axis=0).sum())
        self._spread = np.sqrt(self._pca.explained_variance_.sum())
        self._points = self._embed(part.questions)
        self._size = self._log_size(part.questions)
        order = np.argsort(-part.true_concentration, axis=1, kind="stable")[:, :_DOPANTS]
        self._dopant = order  # (n, 6), largest first
        self._amount = np.take_along_axis(part.true_concentration, order, axis=1)
        # Systems come in many rows, so relations are kept for the dopants alone.
        self._relation: NDArray[np.float32] = np.concatenate(
            [
                np.take_along_axis(_relation(part.questions.composition[i : i + 1024]), o[..., None], axis=1)
                for i, o in ((i, order[i : i + 1024]) for i in range(0, len(order), 1024))
            ]
        ).astype(np.float32)
        return self

    def raw(self, questions: Questions) -> RawScores:
        """Let the nearest pairs vote."""
        parts = [self._vote(questions.take(slice(i, i + _BLOCK))) for i in range(0, len(questions.host), _BLOCK)]
        return RawScores(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def _vote(self, questions: Questions) -> RawScores:
        points = self._embed(questions)
        squared = (points**2).sum(1)[:, None] - 2.0 * points @ self._points.T + (self._points**2).sum(1)
        k = min(self._matching.neighbours, len(self._points))
        near = np.argpartition(squared, k - 1, axis=1)[:, :k]
        distance = np.take_along_axis(squared, near, axis=1).clip(0.0)
        # A Gaussian whose width is the mean squared distance of the neighbours: the bandwidth follows the density.
        weight = np.exp(-distance / (distance.mean(axis=1, keepdims=True) + 1e-9))
        weight /= weight.sum(axis=1, keepdims=True)
        amount = self._amount[near]  # (B, k, 6)
        scale = np.exp(self._log_size(questions)[:, None] - self._size[near])[..., None]
        votes = weight[..., None] * (amount > 0)
        scaled = np.where(amount > 0, amount * scale, LEAST).clip(LEAST, 1.0)
        ballots = np.stack([votes, votes * np.sqrt(scaled), votes * np.log(scaled)], axis=1)  # (B, 3, k, 6)
        match = self._match(questions, near)  # (B, 6 k, E)
        found = ballots.reshape(len(near), 3, -1).astype(np.float32) @ match
        total, heavy, logs = np.moveaxis(found.astype(np.float64), 1, 0)
        usual = (votes * np.log(scaled)).sum((1, 2)) / votes.sum((1, 2)).clip(1e-9)
        mean = np.exp((logs + 1e-2 * usual[:, None]) / (total + 1e-2))
        return RawScores(np.stack([np.log(total + 1e-3), np.log(heavy + 1e-3)], axis=2), mean.clip(LEAST, 1.0))

    def _match(self, questions: Questions, near: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (B, 6 k, E): how much a neighbour's dopant speaks for each element."""
        if not self._matching.relation:
            return np.asarray(np.eye(E, dtype=np.float32)[self._dopant[near].reshape(len(near), -1)])
        own = _relation(questions.composition).astype(np.float32)  # (B, E, 4)
        theirs = self._relation[near].reshape(len(near), -1, own.shape[2])  # (B, 6 k, 4)
        squared = (theirs**2).sum(2)[..., None] - 2.0 * theirs @ own.transpose(0, 2, 1) + (own**2).sum(2)[:, None, :]
        return np.asarray(np.exp(squared.clip(0.0) / np.float32(-2.0 * self._matching.relation**2)))

    def _embed(self, questions: Questions) -> Array:
        """Return (n, 48 + F) points."""
        rows = range(0, len(questions.host), 1024)
        pieces = [questions.take(slice(i, i + 1024)) for i in rows]
        shape = np.concatenate([self._pca.transform(self._shape(piece)) for piece in pieces]) / self._spread
        host = np.concatenate([self._host(piece) for piece in pieces]) - self._host_mean
        return np.column_stack([shape, self._matching.host * host / self._host_spread])

    def _shape(self, questions: Questions) -> Array:
        """Return (n, 3 L) contrast of unit size."""
        x = contrasts(questions, replace(self._matching.how, snv=True))
        return np.asarray(x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6))

    def _host(self, questions: Questions) -> Array:
        """Return (n, L / 4 + 10): the host's coarse spectrum, and its descriptors, of about equal say."""
        coarse = smooth(questions.host, 0).reshape(len(questions.host), -1, 4).mean(axis=2)
        return np.concatenate([coarse, host_features(questions)[:, :10]], axis=1)

    @staticmethod
    def _log_size(questions: Questions) -> Array:
        """Return (n,) logarithm of the distance of the two spectra in coarse bins."""
        return np.asarray(moments(questions)[:, 2])


def _relation(composition: Array) -> Array:
    """Return (B, E, 4): mass, radius, electronegativity and group beside the replaced element."""
    return relations(composition)[..., :4]
