"""The floor of floors: how often an element is there when it is asked about, and how much of it on average."""

from __future__ import annotations

from typing import Any, Final, Self

import numpy as np
import torch

from defectnet.batch import Batch, Estimate
from defectnet.benchmark.baselines.table import Array, FitArrays, Questions
from defectnet.benchmark.protocol import FitData, TrainableEstimator

_PRIOR: Final = 5.0  # rows that an element's own mean is mixed with the mean over all elements


class Mean(TrainableEstimator):
    """Rates of presence for each track and mean amounts, of each element, on training rows.

    No setting is searched. An element that is seldom asked about is drawn to the mean over all elements.
    """

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def fit(self, data: FitData) -> Self:
        """Count on the training rows."""
        return self.fit_arrays(FitArrays(data))

    def fit_arrays(self, data: FitArrays) -> Self:
        """Do what `fit` does, on rows that are in memory already."""
        self._rate: dict[bool, Array] = {}
        for given, part in ((True, data.named), (False, data.spectra)):
            asked = part.questions.asked
            hits = (part.present & asked).sum(axis=0)
            base = hits.sum() / max(asked.sum(), 1)
            self._rate[given] = (hits + _PRIOR * base) / (asked.sum(axis=0) + _PRIOR)
        amounts, present = part.true_concentration, part.present
        mean = amounts.sum() / max(present.sum(), 1)
        self._amount = (amounts.sum(axis=0) + _PRIOR * mean) / (present.sum(axis=0) + _PRIOR)
        return self

    def estimate(self, batch: Batch) -> Estimate:
        """Answer a batch from the means; nothing but the candidates is read."""
        questions = Questions.of(batch)
        rate = np.where(questions.given[:, None], self._rate[True], self._rate[False])
        probability = np.where(questions.asked, rate, 0.0)
        amount = np.broadcast_to(self._amount, probability.shape)
        said = [torch.from_numpy(np.array(x)).float() for x in (probability, probability * amount, amount)]
        return Estimate(said[0], said[1], said[2])
