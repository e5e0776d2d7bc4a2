"""A network's raw answers to many questions, beside what is true: what calibration is fitted to and judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from defectnet.batch import Batch, Item, Output, Targets

if TYPE_CHECKING:
    from defectnet.models.base import DefectModel


class Answers(NamedTuple):
    """Questions of one track, answered.

    Attributes:
        output: What was said, before calibration.
        expected_concentration: (B, E) what that means by `DefectModel.expected`.
        batch: What was asked.
        targets: What is true.
    """

    output: Output
    expected_concentration: Tensor
    batch: Batch
    targets: Targets

    def rows(self, rows: Tensor) -> Answers:
        """Return some rows (an index or mask tensor)."""
        return Answers(
            self.output.rows(rows), self.expected_concentration[rows], self.batch.rows(rows), self.targets.rows(rows)
        )

    @classmethod
    def join(cls, parts: Sequence[Answers]) -> Answers:
        """Put the rows of one part or more, of one network, one after the other."""
        return cls(
            Output.join([part.output for part in parts]),
            torch.cat([part.expected_concentration for part in parts]),
            Batch.join([part.batch for part in parts]),
            Targets(torch.cat([part.targets.true_concentration for part in parts])),
        )


def answer(model: DefectModel, items: Iterable[Item], *, precision: int = 64) -> Answers:
    """Ask a network about every batch of a loader and join the answers, in order.

    Args:
        model: The network; its calibration is not applied.
        items: Batches with targets, of one loader.
        precision: As in `DefectModel.predict_batch`.
    """
    parts = []
    for item in items:
        output = model.predict_batch(item.batch, precision=precision)
        true = Targets(item.targets.true_concentration)
        parts.append(Answers(output, model.expected(output), item.batch, true))
    return Answers.join(parts)
