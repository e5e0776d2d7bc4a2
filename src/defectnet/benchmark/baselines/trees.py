"""LightGBM on (pair of spectra, element in question): what an expert makes of tabular data."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from sklearn.model_selection import GroupKFold

from defectnet.benchmark.baselines.base import LEAST, RawScores
from defectnet.benchmark.baselines.composition import WithPrior
from defectnet.benchmark.baselines.features import (
    CHUNK,
    LOG_MASS,
    Preprocess,
    contrasts,
    host_features,
    moments,
    principal_components,
    prior_features,
    replaced,
)
from defectnet.benchmark.baselines.linear import Beside, Together
from defectnet.benchmark.baselines.nearest import Library, Matching
from defectnet.benchmark.baselines.pairs import ElementPairs, TreePairs, sample_pairs, stack_pairs
from defectnet.benchmark.baselines.table import Array, FitArrays, FitRows, Questions, thin
from defectnet.benchmark.baselines.unmixing import Templates
from defectnet.config import MODEL_GRID

_FOLDS: Final = 4
_COMPONENTS: Final = 12
_ALIGNED: Final = (0.5, 0.7, 0.85, 1.0, 1.15)
"""Where the contrast is looked at, in units of the edge times the root of replaced mass over the element's own: an
isotope-like impurity moves a mode by that factor (mass-defect approximation; Maradudin et al., 1963)."""


class LightGbm(WithPrior):
    """Gradient-boosted trees for presence and for the log amount of what is present.

    One row of the table is a pair of spectra and an element in question. Its features: what is known without a
    spectrum (`prior_features`); moments and principal components of the contrast; the contrast where a mode of that
    mass would be; the concentration that the shift of the mean log energy would mean for that mass; and what ridge
    regression, unmixing and library matching say of the element, how far that leads over the other elements in
    question, and its rank among them. For training rows those methods are fitted on rows of other chemical systems
    (four folds), as they will be for unseen ones.

    Of a training row all present elements are kept and six absent ones, weighted to make up for the rest; both tracks
    have the same total weight. Searched on validation: number and size of the trees.
    """

    sizes: ClassVar[tuple[dict[str, Any], ...]] = (
        {"n_estimators": 200, "learning_rate": 0.05, "num_leaves": 7, "min_child_samples": 50},
        {"n_estimators": 400, "learning_rate": 0.05, "num_leaves": 15, "min_child_samples": 50},
        {"n_estimators": 800, "learning_rate": 0.05, "num_leaves": 31, "min_child_samples": 100},
    )

    def _fit_method(self, data: FitArrays) -> None:
        systems = data.spectra.questions.systems
        folds = GroupKFold(min(_FOLDS, len(set(systems)))).split(systems, groups=systems)
        said = np.zeros((*data.spectra.true_concentration.shape, Members.COUNT), dtype=np.float32)
        for inside, outside in folds:
            members = Members().fit(data.spectra.take(inside))
            for piece in np.array_split(outside, -(-len(outside) // CHUNK)):
                said[piece] = members.say(data.spectra.questions.take(piece))
        self._members = Members().fit(data.spectra)
        shapes = contrasts(thin(data.spectra).questions, Preprocess(window=7))
        self._pca = principal_components(shapes, _COMPONENTS)
        pairs = stack_pairs([self._sample(part, said) for part in (data.named, data.spectra)])
        best = -np.inf
        for settings in self.sizes:
            self._model = TreePairs(**settings).fit(pairs)
            if (found := self._skill(data)) > best:
                best, chosen, self.settings = found, self._model, dict(settings)
        self._model = chosen

    def _sample(self, part: FitRows, said: NDArray[np.float32]) -> ElementPairs:
        pairs = sample_pairs(part, lambda questions, rows: self._features(questions, said[rows]))
        return pairs._replace(weight=pairs.weight / pairs.weight.mean())

    def _raw(self, questions: Questions) -> RawScores:
        parts = [self._answer(questions.take(slice(i, i + CHUNK))) for i in range(0, len(questions.host), CHUNK)]
        return RawScores(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))

    def _answer(self, questions: Questions) -> RawScores:
        asked = questions.asked
        score, amount = np.full(asked.shape, -30.0), np.full(asked.shape, LEAST)
        if asked.any():
            features = self._features(questions, self._members.say(questions))[asked]
            score[asked], amount[asked] = self._model.predict(features)
        return RawScores(score[..., None], amount)

    def _features(self, questions: Questions, said: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (B, E, F)."""
        sizes = moments(questions)
        shape = self._pca.transform(contrasts(questions, Preprocess(window=7)))
        whole = np.concatenate([sizes, shape, host_features(questions)[:, 10:]], axis=1)
        rows = np.broadcast_to(whole[:, None, :], (*questions.asked.shape, whole.shape[1]))
        blocks = [
            prior_features(questions, host=True),
            rows,
            aligned(questions),
            implied(questions, sizes[:, 0]),
            said,
            standing(said[..., list(Members.RANKED)], questions.asked),
        ]
        return np.concatenate([block.astype(np.float32) for block in blocks], axis=2)


class Members:
    """The methods whose word the trees weigh: ridge regression in both forms, templates, library in both forms."""

    COUNT: Final = 14
    RANKED: Final = (0, 3, 6, 8, 11)
    """Positions of each method's leading score."""

    def fit(self, part: FitRows) -> Self:
        """Fit to rows, with settings that suit most data; the trees weigh what comes out."""
        few = thin(part, 12_000)
        how = Preprocess(window=7)
        self._methods = (
            Together(how, alpha=300.0, kernel=None).fit(few),
            Beside(how).fit(few),
            Library(Matching(relation=0.0)).fit(part),
            Library(Matching(relation=0.5)).fit(part),
        )
        self._templates = Templates(window=7, penalty=1.0, directions=48, sparsity=0.0).fit(few)
        return self

    def say(self, questions: Questions) -> NDArray[np.float32]:
        """Return (B, E, 14): the scores and the log amount of each method."""
        together, beside, same, alike = (method.raw(questions) for method in self._methods)
        found = []
        for raw in (together, beside, self._templates.matched(questions), same, alike):
            found += [raw.scores, np.log(raw.amount.clip(LEAST, 1.0))[..., None]]
        return np.concatenate(found, axis=2).astype(np.float32)


def aligned(questions: Questions) -> Array:
    """Return (B, E, 10): difference and log ratio where modes of an element's mass are expected."""
    pair = contrasts(questions, Preprocess()).reshape(len(questions.host), 3, -1)[:, :2]
    # A local mode is some per cent of the edge wide, and the rule places it no better than that.
    smoothed = gaussian_filter1d(pair, 0.03 / MODEL_GRID.width, axis=2)
    sites = replaced(questions.composition)
    scale = np.exp(0.5 * (LOG_MASS[sites] - LOG_MASS))  # (B, E)
    where = scale[..., None] * np.array(_ALIGNED)  # (B, E, 5)
    bins = np.clip((where / MODEL_GRID.width).astype(int), 0, MODEL_GRID.bins - 1)
    rows = np.arange(len(bins))[:, None, None]
    return np.concatenate([smoothed[rows, 0, bins], smoothed[rows, 1, bins]], axis=2)


def implied(questions: Questions, shift: Array) -> Array:
    """Return (B, E, 2): concentration that a shift of the mean log energy means, by the replaced and by the mean mass.

    See `defectnet.nn.embed.ElementQueries`; the ratio is damped where the masses agree.
    """
    share = questions.composition
    to_site = LOG_MASS - LOG_MASS[replaced(share)]
    heavier = np.stack([to_site, LOG_MASS - (share @ LOG_MASS)[:, None]], axis=2)
    return np.asarray(-2.0 * shift[:, None, None] * heavier / (heavier**2 + 0.05))


def standing(scores: NDArray[np.float32], asked: NDArray[np.bool_]) -> Array:
    """Return (B, E, 2 S): rank among the elements in question, and the lead over the best of them."""
    inside = np.where(asked[..., None], scores, -np.inf)
    rank = np.stack([(x[:, None, :] > x[:, :, None]).sum(axis=2) for x in np.moveaxis(inside, 2, 0)], axis=2)
    some = asked.any(axis=1, keepdims=True)
    best = np.where(some, inside.max(axis=1), 0.0)
    return np.concatenate([rank, scores - best[:, None, :]], axis=2)
