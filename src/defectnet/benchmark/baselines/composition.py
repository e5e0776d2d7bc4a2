"""Answers without a spectrum: from the host and the list of candidates, or from that list alone."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np

from defectnet.benchmark.baselines.base import LEAST, Baseline, RawScores
from defectnet.benchmark.baselines.features import E, prior_features
from defectnet.benchmark.baselines.pairs import ElementPairs, LinearPairs, TreePairs, sample_pairs, stack_pairs
from defectnet.benchmark.baselines.table import Array, FitArrays, Questions

_TREES: Final = tuple(
    {"n_estimators": n, "learning_rate": 0.05, "num_leaves": leaves, "min_child_samples": 50}
    for n, leaves in ((150, 7), (300, 15), (600, 31))
)
_PENALTIES: Final = (0.001, 0.01, 0.1)


class Candidates(Baseline):
    """What the list of candidates gives away: its length, and how alike its members are.

    Searched on validation: logistic regression (three penalties) or LightGBM (three sizes).
    """

    reads_spectra: ClassVar[bool] = False
    reads_host: ClassVar[bool] = False
    options: ClassVar[tuple[dict[str, Any], ...]] = (
        *({"model": "logistic", "c": c} for c in _PENALTIES),
        *({"model": "lightgbm", **settings} for settings in _TREES),
    )

    def _fit_method(self, data: FitArrays) -> None:
        pairs = self._pairs(data)
        best = -np.inf
        for option in self.options:
            settings = {key: value for key, value in option.items() if key != "model"}
            model = LinearPairs(**settings) if option["model"] == "logistic" else TreePairs(**settings)
            self._model: LinearPairs | TreePairs = model.fit(pairs)
            if (found := self._skill(data)) > best:
                best, chosen, self.settings = found, self._model, dict(option)
        self._model = chosen

    def _pairs(self, data: FitArrays) -> ElementPairs:
        # Composition and candidates are the same under both conditions, so one of them is enough.
        rows = slice(0, len(data.spectra.true_concentration) // 2)
        parts = [data.named.take(rows), data.spectra.take(rows)]
        return stack_pairs([sample_pairs(part, lambda questions, _: self._features(questions)) for part in parts])

    def _features(self, questions: Questions) -> Array:
        """Return (B, E, F): `prior_features`, their products with whether candidates are named, element one-hot."""
        table = prior_features(questions, host=self.reads_host)
        ones = np.broadcast_to(np.eye(E), (len(table), E, E))
        return np.concatenate([table, table * questions.given[:, None, None], ones], axis=2)

    def _raw(self, questions: Questions) -> RawScores:
        asked = questions.asked
        score, amount = np.full(asked.shape, -30.0), np.full(asked.shape, LEAST)
        if asked.any():
            score[asked], amount[asked] = self._model.predict(self._features(questions)[asked])
        return RawScores(score[..., None], amount)


class HostComposition(Candidates):
    """The same with the host's composition: what each element is beside it, and how likely it is to sit in it.

    Searched on validation: logistic regression (three penalties) or LightGBM (three sizes).
    """

    reads_host: ClassVar[bool] = True


class Prior(HostComposition):
    """What the baselines that read spectra take from composition and candidates: the logistic regression alone."""

    options: ClassVar[tuple[dict[str, Any], ...]] = HostComposition.options[: len(_PENALTIES)]


class WithPrior(Baseline):
    """A method that reads spectra, and takes from `Prior` what it says without them."""

    def _make_prior(self, data: FitArrays) -> Baseline:
        if "prior" not in data.shared:
            data.shared["prior"] = Prior().fit_arrays(data)
        prior: Baseline = data.shared["prior"]
        return prior
