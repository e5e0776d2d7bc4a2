"""Rows of a table that are not spectra but (spectrum, element in question): sampling, and the models on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from defectnet.benchmark.baselines.base import from_log
from defectnet.benchmark.baselines.features import CHUNK
from defectnet.benchmark.baselines.table import Array, FitRows, Questions

ABSENT: Final = 6
"""Absent elements that are kept of a row; their weight makes up for the others."""

TREES: Final[dict[str, Any]] = {
    "n_jobs": 0,  # as many threads as OpenMP is allowed
    "random_state": 0,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
    "subsample": 0.8,
    "subsample_freq": 1,
    "colsample_bytree": 0.6,
    "importance_type": "gain",
}


class ElementPairs(NamedTuple):
    """Sampled pairs of a row and an element in question.

    Attributes:
        features: (n, F) float32.
        amount: (n,) true concentration.
        weight: (n,) how many pairs one stands for.
    """

    features: NDArray[np.float32]
    amount: Array
    weight: Array

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n,) bool."""
        return self.amount > 0


def sample_pairs(
    part: FitRows, features: Callable[[Questions, slice], NDArray[Any]], absent: int = ABSENT, seed: int = 0
) -> ElementPairs:
    """Keep all present elements of each row and a few of the absent ones, in pieces of rows.

    Args:
        part: Rows.
        features: From rows, and which of the part's they are, to (B, E, F) features.
        absent: Most absent elements kept of a row.
        seed: Of the choice.
    """
    rng, found = np.random.default_rng(seed), []
    for begin in range(0, len(part.true_concentration), CHUNK):
        rows = slice(begin, begin + CHUNK)
        piece = part.take(rows)
        gone = piece.questions.asked & ~piece.present
        draw = np.where(gone, rng.random(gone.shape), 2.0)
        kept = gone & (draw <= np.sort(draw, axis=1)[:, absent - 1 : absent])
        weight = np.where(kept, gone.sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True).clip(1), 1.0)
        chosen = kept | (piece.present & piece.questions.asked)
        x = features(piece.questions, rows)[chosen].astype(np.float32)
        found.append((x, piece.true_concentration[chosen], weight[chosen]))
    return ElementPairs(*(np.concatenate(fields) for fields in zip(*found, strict=True)))


def stack_pairs(pairs: list[ElementPairs]) -> ElementPairs:
    """Put samples one after the other."""
    return ElementPairs(*(np.concatenate(fields) for fields in zip(*pairs, strict=True)))


class LinearPairs:
    """Logistic regression of presence and ridge regression of the log amount.

    Args:
        c: Inverse strength of the logistic regression's penalty.
    """

    def __init__(self, c: float = 0.1) -> None:
        self._identity = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300))
        self._amount = make_pipeline(StandardScaler(), Ridge(alpha=30.0))

    def fit(self, pairs: ElementPairs) -> Self:
        """Fit to sampled pairs."""
        x = pairs.features.astype(np.float64)
        self._identity.fit(x, pairs.present, logisticregression__sample_weight=pairs.weight)
        self._amount.fit(x[pairs.present], np.log(pairs.amount[pairs.present]))
        return self

    def predict(self, x: NDArray[Any]) -> tuple[Array, Array]:
        """Return log-odds and amount of (n, F) features, (n,) each."""
        x = x.astype(np.float32).astype(np.float64)
        return self._identity.decision_function(x), from_log(self._amount.predict(x))


class TreePairs:
    """LightGBM for presence, and another for the log amount of what is present (Ke et al., NeurIPS 2017).

    Args:
        settings: Of `lightgbm.LGBMClassifier`; trees, learning rate, leaves.
    """

    def __init__(self, **settings: Any) -> None:
        self._identity = lightgbm.LGBMClassifier(**(TREES | settings))
        # There are far fewer present elements than pairs: smaller trees.
        leaves = min(int(settings.get("num_leaves", 31)), 15)
        self._amount = lightgbm.LGBMRegressor(**(TREES | settings | {"num_leaves": leaves, "objective": "l1"}))

    def fit(self, pairs: ElementPairs) -> Self:
        """Fit to sampled pairs."""
        self._identity.fit(pairs.features, pairs.present, sample_weight=pairs.weight)
        inside = pairs.present
        self._amount.fit(pairs.features[inside], np.log(pairs.amount[inside]))
        return self

    def predict(self, x: NDArray[Any]) -> tuple[Array, Array]:
        """Return log-odds and amount of (n, F) features, (n,) each."""
        x = x.astype(np.float32)
        odds = self._identity.booster_.predict(x, raw_score=True)
        return np.asarray(odds), from_log(np.asarray(self._amount.booster_.predict(x)))
