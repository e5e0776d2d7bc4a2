"""What can be benchmarked: any `Estimator`, and a `TrainableEstimator` if it learns from the training rows.

    class HalfAPercent(Estimator):
        def estimate(self, batch):
            asked = batch.candidates.float()
            return Estimate(probability=0.1 * asked, expected_concentration=0.0005 * asked)

    $ defectnet benchmark --model my_module:HalfAPercent --track candidates --condition clean

The same from Python: `defectnet.benchmark.runner`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from defectnet.batch import Batch
from defectnet.data.candidates import TRACKS, Track
from defectnet.data.module import SpectraDataModule
from defectnet.measure.encode import stack
from defectnet.models.estimator import Estimator

KNOWN_CRYSTAL: Final = "known-crystal"
"""Track in which each host's likeliest dopants are in question; see `defectnet.benchmark.known_crystal`."""

ALL_TRACKS: Final[tuple[Track, ...]] = (*TRACKS, KNOWN_CRYSTAL)


class Rows(NamedTuple):
    """Rows of one split, in memory.

    Attributes:
        batch: What is asked.
        true_concentration: (B, E) 0 where an element is absent.
    """

    batch: Batch
    true_concentration: Tensor


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
        true = torch.cat([item.targets.true_concentration for item in items])
        return Rows(stack([item.batch for item in items]), true)


class TrainableEstimator(Estimator):
    """What is fitted first."""

    @abstractmethod
    def fit(self, data: FitData) -> Self:
        """Fit to training rows, of both tracks and conditions, choosing settings on validation rows."""
