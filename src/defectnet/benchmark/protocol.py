"""What can be benchmarked: anything with `predict(batch)`, and `fit(data)` if it learns from the training rows.

    class HalfAPercent:
        def predict(self, batch):
            asked = batch.candidates.float()
            return Estimate(probability=0.1 * asked, concentration=0.005 * asked)

    $ defectnet benchmark --model my_module:HalfAPercent --track candidates --condition clean

The same from Python: `defectnet.benchmark.runner`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from defectnet.batch import Batch
from defectnet.data.candidates import Track
from defectnet.data.module import SpectraDataModule
from defectnet.measure.encode import stack


class Estimate(NamedTuple):
    """What an answerer says of a batch. Concentrations are atomic fractions, 0 to 1.

    Elements that are not in question (`Batch.candidates`) are left out of every score, whatever stands there.

    Attributes:
        probability: (B, E) that the element was substituted in, 0 to 1. Only its order matters to average precision
            and recall; the threshold of F1 is chosen on validation rows by the benchmark, for every answerer alike.
        concentration: (B, E) expected concentration, near 0 where the element is likely absent: probability times
            concentration if present, where an answerer keeps the two apart.
        amount: (B, E) concentration if the element is present; `concentration` where None.
        low: (B, E) lower end of the interval of the concentration if present; None without intervals.
        high: (B, E) upper end.
    """

    probability: Tensor
    concentration: Tensor
    amount: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None


class Rows(NamedTuple):
    """Rows of one split, in memory.

    Attributes:
        batch: What is asked.
        concentration: (B, E) true concentrations, 0 where an element is absent.
    """

    batch: Batch
    concentration: Tensor


class FitData:
    """Training and validation rows, measured; test rows cannot be reached from here.

    Args:
        module: The data. Rows of randomised stiffness come with the training rows if it has them.
    """

    def __init__(self, module: SpectraDataModule) -> None:
        self._module = module

    def train(self, track: Track, condition: str) -> Rows:
        """Return all training rows, for instance ``train("blind", "lab")``; the same at every call."""
        return self._rows("train", track, condition)

    def val(self, track: Track, condition: str) -> Rows:
        """Return all validation rows: for settings, not for fitting."""
        return self._rows("val", track, condition)

    def _rows(self, split: str, track: Track, condition: str) -> Rows:
        assert split in ("train", "val")
        items = list(self._module.evaluation(split, track, condition))  # type: ignore[arg-type]
        return Rows(stack([item.batch for item in items]), torch.cat([item.targets.concentration for item in items]))


@runtime_checkable
class Answerer(Protocol):
    """What can be benchmarked."""

    def predict(self, batch: Batch) -> Estimate:
        """Answer a batch of any size; an answer must not depend on its batch mates."""


@runtime_checkable
class Learner(Answerer, Protocol):
    """What is fitted first."""

    def fit(self, data: FitData) -> Self:
        """Fit to training rows, of both tracks and conditions, choosing settings on validation rows."""
