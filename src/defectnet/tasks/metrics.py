"""Metrics that are watched during training, one set for each track."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

from defectnet.batch import Batch, Item, Output, Targets
from defectnet.elements import VOCABULARY
from defectnet.measure.encode import stack
from defectnet.tasks.losses import expected_concentration


def track_of(batch: Batch) -> str:
    """Return the track that a batch belongs to, ``candidates`` or ``blind``; batches of evaluation are never mixed."""
    return "candidates" if bool(batch.candidates_given[0]) else "blind"


class TrackMetrics(nn.Module):
    """Identity over the vocabulary and expected concentration over the elements in question.

    Args:
        loss: The model class's `loss`, which says what its concentration means.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss
        labels = len(VOCABULARY)
        self.identity = MetricCollection(
            {
                "ap": MultilabelAveragePrecision(labels, average="micro"),
                "ap_macro": MultilabelAveragePrecision(labels, average="macro"),
                "f1": MultilabelF1Score(labels, average="micro"),
                "exact": MultilabelExactMatch(labels),
            },
            prefix="identity/",
            compute_groups=False,
        )
        self.concentration = MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score()}, prefix="concentration/")

    @property
    def updated(self) -> bool:
        """Whether there was a batch since the last reset."""
        return next(iter(self.concentration.values())).update_called

    def update(self, output: Output, batch: Batch, targets: Targets) -> None:
        """Take in a batch."""
        self.identity.update(torch.sigmoid(output.identity_logits.float()), targets.present.long())
        asked = batch.candidates
        expected = expected_concentration(output, self.loss).float()
        self.concentration.update(expected[asked], targets.concentration[asked])

    def compute(self) -> dict[str, Tensor]:
        """Return all values since the last reset, over all ranks."""
        with warnings.catch_warnings():
            # Elements that no row contains have no average precision; the mean leaves them out, as it should.
            warnings.filterwarnings("ignore", message="(No positive samples|Average precision score for one or more)")
            return {**self.identity.compute(), **self.concentration.compute()}

    def reset(self) -> None:
        """Forget all batches."""
        self.identity.reset()
        self.concentration.reset()


class Answers(NamedTuple):
    """A whole split, answered.

    Attributes:
        output: What was said.
        batch: What was asked.
        targets: What is true.
    """

    output: Output
    batch: Batch
    targets: Targets


def answer(predict: Callable[[Batch], Output], items: Iterable[Item]) -> Answers:
    """Answer every batch of a loader and join the answers, in order.

    Args:
        predict: For instance `DefectModel.predict_batch`.
        items: Batches with targets, of one loader.
    """
    parts = [(predict(item.batch), item.batch, item.targets) for item in items]
    outputs, batches, targets = zip(*parts, strict=True)
    return Answers(
        Output(*(torch.cat(fields) for fields in zip(*outputs, strict=True))),
        stack(batches),
        Targets(torch.cat([t.concentration for t in targets])),
    )
