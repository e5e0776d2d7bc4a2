"""Questions as NumPy arrays, and what a baseline may learn from.

Shape letters: B rows, L energy bins, E elements of the vocabulary, R what an element is beside a host, S scores.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defectnet.batch import Batch
from defectnet.benchmark.protocol import FitData
from defectnet.data.candidates import CONDITIONS, TRACKS, Track

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

SEARCH_ROWS: Final = 6000
"""Training rows that a search is made on; the final fit takes all."""


class Questions(NamedTuple):
    """A batch as arrays; the fields of `defectnet.batch.Batch`.

    Attributes:
        host: (B, L) float32 DOS of the host per relative energy.
        doped: (B, L) float32 the same of the doped sample.
        edge_mev: (B,) band edge of the host.
        composition: (B, E) atomic fractions of the host.
        asked: (B, E) bool, elements in question.
        given: (B,) bool, whether the user named them.
        kind: (B,) index into `defectnet.spectrum.KINDS`.
    """

    host: NDArray[np.float32]
    doped: NDArray[np.float32]
    edge_mev: Array
    composition: Array
    asked: Mask
    given: Mask
    kind: NDArray[np.int64]

    @classmethod
    def of(cls, batch: Batch) -> Questions:
        """Take over a batch."""
        return cls(
            batch.host.float().cpu().numpy(),
            batch.doped.float().cpu().numpy(),
            batch.edge_mev.double().cpu().numpy(),
            batch.composition.double().cpu().numpy(),
            batch.candidates.cpu().numpy(),
            batch.candidates_given.cpu().numpy(),
            batch.kind.cpu().numpy(),
        )

    def take(self, rows: Any) -> Questions:
        """Select rows (a slice, a mask or positions)."""
        return Questions(*(field[rows] for field in self))

    @property
    def systems(self) -> NDArray[np.int64]:
        """(B,) a number for each set of host elements: rows of one number must not part in cross-validation."""
        return np.asarray(np.unique(self.composition > 0, axis=0, return_inverse=True)[1].reshape(-1))


class FitRows(NamedTuple):
    """Rows of one split, track and condition.

    Attributes:
        questions: What is asked.
        true_concentration: (B, E) 0 where an element is absent.
    """

    questions: Questions
    true_concentration: Array

    @property
    def present(self) -> Mask:
        """(B, E) bool, true where an element was substituted in."""
        return self.true_concentration > 0

    def take(self, rows: Any) -> FitRows:
        """Select rows."""
        return FitRows(self.questions.take(rows), self.true_concentration[rows])


def join(parts: list[FitRows]) -> FitRows:
    """Put parts one after the other."""
    questions = Questions(*(np.concatenate(fields) for fields in zip(*(p.questions for p in parts), strict=True)))
    return FitRows(questions, np.concatenate([part.true_concentration for part in parts]))


def thin(part: FitRows, rows: int = SEARCH_ROWS) -> FitRows:
    """Return at most so many rows, evenly spaced."""
    count = len(part.true_concentration)
    return part if count <= rows else part.take(np.linspace(0, count - 1, rows).astype(int))


class FitArrays:
    """What a baseline may learn from: training and validation rows under both conditions, each read once.

    Args:
        data: Rows of the benchmark; the test split cannot be reached from there.

    Attributes:
        shared: What was fitted to these rows by one baseline and serves others.
    """

    def __init__(self, data: FitData) -> None:
        self._data = data
        self.shared: dict[str, Any] = {}

    @cached_property
    def spectra(self) -> FitRows:
        """Training rows under both conditions, asked blind: for what does not depend on the candidates."""
        return join([self._part("train", "blind", condition) for condition in CONDITIONS])

    @cached_property
    def named(self) -> FitRows:
        """The training rows of `spectra`, in the same order, with candidates."""
        return join([self._part("train", "candidates", condition) for condition in CONDITIONS])

    @cached_property
    def val(self) -> dict[Track, list[FitRows]]:
        """Validation rows by track, one part for each of `CONDITIONS`."""
        return {track: [self._part("val", track, condition) for condition in CONDITIONS] for track in TRACKS}

    def _part(self, split: str, track: Track, condition: str) -> FitRows:
        rows = (self._data.train if split == "train" else self._data.val)(track, condition)
        return FitRows(Questions.of(rows.batch), rows.true_concentration.double().numpy())
