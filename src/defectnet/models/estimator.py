"""The one interface of all that answers: networks, measured responses, baselines, ensembles, classes of a user's own.

class HalfAPercent(Estimator):
def estimate(self, batch):
asked = batch.candidates.float()
return Estimate(probability=0.1 * asked, expected_concentration=0.0005 * asked)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final, Literal

from defectnet.batch import Batch, Estimate
from defectnet.config import MODEL_GRID, Grid

NamedTrack = Literal["candidates", "blind", "known-crystal"]

NEEDS_CANDIDATES: Final = "takes the candidates as its query"
"""Why an estimator whose `asks_blind` is false is not asked about every element."""


class Estimator(ABC):
    """What answers a batch of questions.

    Attributes:
        asks_blind: Whether it can be asked without candidates.
    """

    asks_blind: bool = True

    @abstractmethod
    def estimate(self, batch: Batch) -> Estimate:
        """Answer a batch of any size; an answer must not depend on its batch mates.

        Args:
            batch: Spectra (B, L), composition and candidates (B, E), on `grid`.
        """

    @property
    def grid(self) -> Grid:
        """Grid that it reads spectra on."""
        return MODEL_GRID

    @property
    def coverage(self) -> float | None:
        """Nominal coverage of its intervals, 0 to 1; None without intervals."""
        return None

    @property
    def tracks(self) -> tuple[NamedTrack, ...]:
        """Questions that it can be asked."""
        return ("candidates", "blind") if self.asks_blind else ("candidates",)

    def describe(self) -> dict[str, Any]:
        """Return plain values that are kept with its results; ``description`` is one line."""
        return {"description": (type(self).__doc__ or "").strip().partition("\n")[0]}
