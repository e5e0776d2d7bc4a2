"""Intervals by resampling whole chemical systems, and differences of two entrants on the same resamples.

Rows of one system are alike: resampling rows would make intervals too narrow. All entrants are resampled alike, so that
two of them can be compared pair by pair (Efron and Tibshirani, An Introduction to the Bootstrap, 1993).
Everything that is a sum over rows is summed for each system once; average precision is taken anew in every resample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.benchmark.metrics import recall_at_k
from defectnet.benchmark.scores import Bools, Floats, Scores
from defectnet.errors import ConfigError
from defectnet.rng import row_rng

_CHUNK_ELEMENTS: Final = 4_000_000


@dataclass(frozen=True)
class Resamples:
    """How often each chemical system is drawn in each resample.

    Attributes:
        systems: (S,) names, sorted.
        counts: (R, S) draws; each resample has S of them.
        seed: Seed of the draws; with the systems it fixes them.
    """

    systems: NDArray[np.str_]
    counts: Floats
    seed: int

    @classmethod
    def draw(cls, system: NDArray[np.str_], number: int, seed: int = 0) -> Resamples:
        """Draw resamples.

        Args:
            system: (N,) chemical system of each row.
            number: Resamples, R; 0 draws none.
            seed: Seed.

        Raises:
            ConfigError: The number is negative.
        """
        if number < 0:
            raise ConfigError(f"bootstrap is {number}", fix="Use 0 or more resamples, for instance 1000")
        systems = np.unique(system)
        chances = np.full(len(systems), 1.0 / max(len(systems), 1))
        counts = row_rng("bootstrap", seed).multinomial(len(systems), chances, size=number)
        return cls(systems, counts.astype(np.float64), seed)


def replicate(scores: Scores, claimed: Bools, resamples: Resamples) -> dict[str, Floats]:
    """Return the numbers of `defectnet.benchmark.results.MAIN` in every resample.

    Args:
        scores: Answers and truth.
        claimed: (N, E) elements that are called present.
        resamples: Draws of the chemical systems of these rows.

    Returns:
        Name -> (R,) values; NaN where a resample does not define them.
    """
    place = np.searchsorted(resamples.systems, scores.facts.system)
    count = scores.dopants
    sums = _Sums(place, resamples.counts)
    found: dict[str, Floats] = {}
    found["concentration.mae"], found["concentration.r2"] = _errors(scores, sums, np.ones(len(count), dtype=bool))
    found["identity.ap_micro"] = average_precision(scores, place, resamples.counts)
    inside = count > 0
    recalls = np.zeros(len(count))
    recalls[inside] = recall_at_k(scores)
    hits, claims = (claimed & scores.present).sum(axis=1), claimed.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["identity.recall_at_k"] = sums(recalls) / sums(inside)
        found["identity.f1"] = 2.0 * sums(hits) / sums(claims + count)
    found["one_dopant.r2"] = _errors(scores, sums, count == 1)[1]
    found["many_dopants.r2"] = _errors(scores, sums, count > 1)[1]
    return found


class _Sums:
    """Weighted sums over rows: `sums(values)` is (R,)."""

    def __init__(self, place: NDArray[np.intp], counts: Floats) -> None:
        self._place, self._counts = place, counts

    def __call__(self, values: NDArray[Any]) -> Floats:
        by_system = np.bincount(self._place, weights=values.astype(np.float64), minlength=self._counts.shape[1])
        return np.asarray(self._counts @ by_system)


def _errors(scores: Scores, sums: _Sums, rows: Bools) -> tuple[Floats, Floats]:
    """Return (R,) mean absolute errors in at.% and (R,) R2 over the elements in question of some rows."""
    asked = scores.asked & rows[:, None]
    error = np.where(asked, scores.expected - scores.true, 0.0)
    true = np.where(asked, scores.true, 0.0)
    number = sums(asked.sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        mae = 100 * sums(np.abs(error).sum(axis=1)) / number
        spread = sums((true**2).sum(axis=1)) - sums(true.sum(axis=1)) ** 2 / number
        r2 = np.where(spread > 1e-12, 1.0 - sums((error**2).sum(axis=1)) / spread, np.nan)
    return mae, r2


def average_precision(scores: Scores, place: NDArray[np.intp], counts: Floats) -> Floats:
    """Return the micro average precision in each resample, (R,).

    As `sklearn.metrics.average_precision_score` with the draws as sample weights, but sorted once for all resamples.

    Args:
        scores: Answers and truth.
        place: (N,) position of each row's system among the columns of `counts`.
        counts: (R, S) draws.
    """
    row, element = np.nonzero(scores.asked)
    order = np.argsort(-scores.probability[row, element], kind="stable")
    row, element = row[order], element[order]
    probability, present = scores.probability[row, element], scores.present[row, element]
    # Equal probabilities are taken together: precision is only read where a group ends, and only where it has hits.
    ends = np.flatnonzero(np.diff(probability, append=-np.inf))
    system = place[row]
    found = []
    size = max(1, _CHUNK_ELEMENTS // max(len(row), 1))
    for begin in range(0, len(counts), size):
        weight = counts[begin : begin + size][:, system]
        taken = np.cumsum(weight, axis=1)[:, ends]
        weight *= present
        hits = np.cumsum(weight, axis=1)[:, ends]
        gained = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(taken > 0, hits / taken, 0.0)
            found.append((gained * precision).sum(axis=1) / hits[:, -1] if len(ends) else np.full(len(weight), np.nan))
    return np.concatenate(found) if found else np.zeros(0)
