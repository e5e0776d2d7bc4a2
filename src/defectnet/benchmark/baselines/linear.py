"""Linear methods of chemometrics: PLS2, and ridge regression in three forms."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import product
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.cross_decomposition import PLSRegression
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from defectnet.benchmark.baselines.base import LEAST, RawScores, from_log
from defectnet.benchmark.baselines.composition import WithPrior
from defectnet.benchmark.baselines.features import (
    CHUNK,
    RELATIONS,
    E,
    Preprocess,
    contrasts,
    host_features,
    moments,
    principal_components,
    relations,
    smooth,
)
from defectnet.benchmark.baselines.pairs import sample_pairs
from defectnet.benchmark.baselines.table import Array, FitArrays, FitRows, Questions, thin
from defectnet.config import MODEL_GRID

_WINDOWS: Final = (0, 7, 15)
_WIDTH: Final = 200  # principal components that PLS starts from: more than 99.9 % of the variance


def design(questions: Questions, how: Preprocess) -> NDArray[np.float32]:
    """Return (B, 4 L + 84): three channels of contrast, the host's spectrum, moments, composition, host descriptors."""
    blocks = []
    for begin in range(0, len(questions.host), CHUNK):
        piece = questions.take(slice(begin, begin + CHUNK))
        columns = (contrasts(piece, how), smooth(piece.host, how.window), moments(piece), piece.composition)
        blocks.append(np.concatenate([*columns, host_features(piece)], axis=1).astype(np.float32))
    return np.concatenate(blocks)


class Columns:
    """Standardised columns in blocks of equal say: each contrast channel as a whole counts as much as the moments.

    A column is divided by the spread of its *block*, not by its own: above the edge most bins hold noise alone, and a
    bin's own spread would blow that up. The moments, composition and descriptors have their own.
    """

    def fit(self, x: NDArray[np.float32], channels: int = 4) -> Self:
        """Learn means and spreads from (n, F) rows, which start with so many channels of L bins."""
        length = MODEL_GRID.bins
        self._mean = x.mean(axis=0, dtype=np.float64)
        spread = x.std(axis=0, dtype=np.float64)
        for k in range(channels):
            block = slice(k * length, (k + 1) * length)
            spread[block] = np.sqrt((spread[block] ** 2).mean())
        self._spread = np.maximum(spread, 1e-6)
        return self

    def __call__(self, x: NDArray[np.float32]) -> Array:
        """Return (n, F) scaled rows."""
        return np.asarray((x - self._mean) / self._spread)


class Pls(WithPrior):
    """PLS2 (Wold et al., Chemom. Intell. Lab. Syst. 58, 109 (2001)): contrast to the roots of 62 concentrations.

    Columns are those of `design`; a principal component analysis to 200 components goes before, for speed. Searched on
    validation, one after the other: Savitzky-Golay window, derivative, standard normal variate, response (the root of
    the concentration, or 1 where present), number of latent components.
    """

    _COMPONENTS: Final = (5, 10, 15, 20, 30, 40)

    def _fit_method(self, data: FitArrays) -> None:
        part = thin(data.spectra)
        best = (Preprocess(), "root", 20)
        score = self._try(part, data, best)
        for window in _WINDOWS[1:]:
            best, score = self._better(part, data, (replace(best[0], window=window), *best[1:]), best, score)
        for change in ({"derivative": 1}, {"snv": True}):
            best, score = self._better(part, data, (replace(best[0], **change), *best[1:]), best, score)
        best, score = self._better(part, data, (best[0], "presence", best[2]), best, score)
        self._fit(part, best)
        for count in self._COMPONENTS:
            self._components = min(count, self._limit)
            found = self._skill(data)
            if found > score:
                best, score = (*best[:2], count), found
        self._fit(data.spectra, best)
        self.settings = {**asdict(best[0]), "response": best[1], "components": self._components}

    def _try(self, part: FitRows, data: FitArrays, setting: tuple[Preprocess, str, int]) -> float:
        self._fit(part, setting)
        return self._skill(data)

    def _better(self, part: FitRows, data: FitArrays, new: Any, best: Any, score: float) -> tuple[Any, float]:
        found = self._try(part, data, new)
        return (new, found) if found > score else (best, score)

    def _fit(self, part: FitRows, setting: tuple[Preprocess, str, int]) -> None:
        self._how, response, components = setting
        x = design(part.questions, self._how)
        self._columns = Columns().fit(x)
        scaled = self._columns(x)
        self._pca = principal_components(scaled, _WIDTH)
        y = np.sqrt(part.true_concentration) if response == "root" else part.present.astype(np.float64)
        # One fit serves every smaller number of components: the first ones stay the same.
        self._limit = min(max(self._COMPONENTS), self._pca.n_components_ - 1)
        pls = PLSRegression(self._limit, scale=False, tol=1e-4).fit(self._pca.transform(scaled), y)
        self._rotations, self._loadings, self._centre = pls.x_rotations_, pls.y_loadings_, y.mean(axis=0)
        self._components = min(components, self._limit)
        self._spread = y.std(axis=0) + 0.02

    def _raw(self, questions: Questions) -> RawScores:
        x = self._pca.transform(self._columns(design(questions, self._how)))
        k = self._components
        y = x @ self._rotations[:, :k] @ self._loadings[:, :k].T
        root = y + self._centre
        return RawScores(np.stack([y / self._spread, root], axis=2), np.square(root.clip(np.sqrt(LEAST), 1.0)))


class Ridge(WithPrior):
    """Ridge regression in two forms whose scores the calibration weighs.

    1. Of all elements at once: `design` to presence and root of the concentration of 62 elements, either linearly or
       on Nystroem features of a Gaussian kernel (kernel ridge; Williams & Seeger, NIPS 2000).
    2. Of one element beside a host: products of the contrast's principal components and moments with the `relations`
       of the element to the host, one model for all elements, so that what was seen of one pair of host and dopant
       serves another.

    Searched on validation, one after the other: Savitzky-Golay window, derivative, standard normal variate, penalty,
    linear or kernel and its width.
    """

    _PENALTIES: Final = (10.0, 100.0, 1000.0, 10000.0)
    _GAMMAS: Final = (0.3, 1.0, 3.0, 10.0)  # over the total variance
    _KERNEL_PENALTIES: Final = (0.3, 3.0)

    def _fit_method(self, data: FitArrays) -> None:
        part = thin(data.spectra)
        score, how = -np.inf, Preprocess()
        rest: dict[str, Any] = {"alpha": 300.0, "kernel": None}
        tries: list[dict[str, Any]] = [{"window": 0}, *({"window": w} for w in _WINDOWS[1:])]
        for change in [*tries, {"derivative": 1}, {"snv": True}]:
            new = replace(how, **change)
            if (found := self._try(part, data, new, rest)) > score:
                score, how = found, new
        for alpha in self._PENALTIES:
            new_rest = {**rest, "alpha": alpha}
            if (found := self._try(part, data, how, new_rest)) > score:
                score, rest = found, new_rest
        for gamma, alpha in product(self._GAMMAS, self._KERNEL_PENALTIES):
            new_rest = {"alpha": alpha, "kernel": gamma}
            if (found := self._try(part, data, how, new_rest)) > score:
                score, rest = found, new_rest
        self._together = Together(how, **rest).fit(data.spectra)
        self._beside = Beside(how).fit(data.spectra)
        self.settings = {**asdict(how), **rest, "elements": "together and one beside the host"}

    def _try(self, part: FitRows, data: FitArrays, how: Preprocess, rest: dict[str, Any]) -> float:
        model = Together(how, **rest).fit(part)
        return self._skill(data, model.raw)

    def _raw(self, questions: Questions) -> RawScores:
        one, other = self._together.raw(questions), self._beside.raw(questions)
        scores = np.concatenate([one.scores[..., :1] + other.scores[..., :1], one.scores, other.scores], axis=2)
        return RawScores(scores, np.sqrt(one.amount * other.amount))


class Together:
    """Ridge regression of presence and root concentration of all elements at once.

    Args:
        how: Preparation of the spectra.
        alpha: Penalty.
        kernel: Inverse squared width of the Gaussian kernel, times the total variance of the columns; None for linear.
        components: Rows that stand for the kernel.
    """

    def __init__(self, how: Preprocess, alpha: float, kernel: float | None, components: int = 1000) -> None:
        self._how, self._alpha, self._kernel, self._count = how, alpha, kernel, components

    def fit(self, part: FitRows) -> Self:
        """Fit to rows."""
        x = design(part.questions, self._how)
        self._columns = Columns().fit(x)
        x = self._columns(x).astype(np.float32)
        self._map: Pipeline | None = None
        if self._kernel is not None:
            pca = principal_components(x, 64)
            gamma = self._kernel / float(pca.explained_variance_.sum())
            nystroem = Nystroem(gamma=gamma, n_components=min(self._count, len(x)), random_state=0)
            self._map = make_pipeline(pca, nystroem).fit(x)
            x = self._map.transform(x).astype(np.float64)  # kernels of neighbours are nearly the same
        y = np.concatenate([part.present.astype(np.float64), np.sqrt(part.true_concentration)], axis=1)
        self._ridge = RidgeRegression(self._alpha, solver="cholesky").fit(x, y.astype(x.dtype))
        # Elements are compared by how far a prediction stands out of what is usual for the element.
        self._spread = y.std(axis=0) + 0.02
        self._mean = y.mean(axis=0)
        return self

    def raw(self, questions: Questions) -> RawScores:
        """Score all elements."""
        x = self._columns(design(questions, self._how))
        y = self._ridge.predict(x if self._map is None else self._map.transform(x))
        z = (y - self._mean) / self._spread
        root = y[:, E:].clip(np.sqrt(LEAST), 1.0)
        return RawScores(np.stack([z[:, :E], z[:, E:]], axis=2), np.square(root))


class Beside:
    """Ridge regression of one element beside a host: contrast times relation.

    Args:
        how: Preparation of the spectra.
        components: Principal components of the contrast.
        alpha: Penalty.
    """

    def __init__(self, how: Preprocess, components: int = 24, alpha: float = 30.0) -> None:
        self._how, self._count, self._alpha = how, components, alpha

    def fit(self, part: FitRows) -> Self:
        """Fit to rows: to all present elements and some absent ones."""
        sample = thin(part)
        x = self._spectra(sample.questions)
        self._scale = Columns().fit(x, channels=3)
        self._pca = principal_components(self._scale(x), self._count)
        sizes = moments(sample.questions)
        self._size = StandardScaler().fit(sizes)
        self._relation = StandardScaler().fit(relations(sample.questions.composition).reshape(-1, RELATIONS))
        # 832 columns a pair: fewer rows than elsewhere, and fewer absent elements, bound the memory.
        pairs = sample_pairs(thin(part, 20_000), lambda questions, _: self._features(questions), absent=4)
        self._features_scale = StandardScaler().fit(pairs.features)
        targets = np.column_stack([pairs.present, np.sqrt(pairs.amount)]).astype(np.float64)
        z = self._features_scale.transform(pairs.features)
        self._ridge = RidgeRegression(self._alpha, solver="cholesky").fit(z, targets, sample_weight=pairs.weight)
        inside = pairs.present
        self._amount = RidgeRegression(self._alpha, solver="cholesky").fit(z[inside], np.log(pairs.amount[inside]))
        return self

    def raw(self, questions: Questions) -> RawScores:
        """Score all elements."""
        answers = []
        for begin in range(0, len(questions.host), CHUNK):
            piece = self._features(questions.take(slice(begin, begin + CHUNK))).astype(np.float32)
            flat = self._features_scale.transform(piece.reshape(-1, piece.shape[2]))
            found = np.column_stack([self._ridge.predict(flat), self._amount.predict(flat)])
            answers.append(found.reshape(*piece.shape[:2], 3))
        said = np.concatenate(answers)
        # In units of the spread of presence and of the root over all pairs, which go with the row's own rates.
        return RawScores(said[..., :2] * np.array([4.0, 20.0]), from_log(said[..., 2]))

    def _spectra(self, questions: Questions) -> NDArray[np.float32]:
        return contrasts(questions, self._how).astype(np.float32)

    def _features(self, questions: Questions) -> Array:
        scores = self._pca.transform(self._scale(self._spectra(questions)))
        scores /= np.sqrt(self._pca.explained_variance_)
        row = np.column_stack([np.ones(len(scores)), scores, self._size.transform(moments(questions))])
        relation = relations(questions.composition)
        own = self._relation.transform(relation.reshape(-1, RELATIONS)).reshape(relation.shape)
        # Squares let an effect be largest at some mass ratio; ten of them: mass, radius, ... to site and to mean.
        beside = np.concatenate([np.ones((*own.shape[:2], 1)), own, own[..., :10] ** 2], axis=2)
        products = row[:, None, :, None] * beside[:, :, None, :]
        return np.asarray(products.reshape(*own.shape[:2], -1).astype(np.float32))
