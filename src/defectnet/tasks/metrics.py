"""Metrics that are watched during training, one set for each track."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MetricCollection, R2Score
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

from defectnet.batch import Batch, Output, Targets
from defectnet.elements import VOCABULARY


def track_of(batch: Batch) -> str:
    """Return the track that a batch belongs to, ``candidates`` or ``blind``; batches of evaluation are never mixed."""
    return "candidates" if bool(batch.candidates_given[0]) else "blind"


class TrackMetrics(nn.Module):
    """Identity over the vocabulary and expected concentration over the elements in question."""

    def __init__(self) -> None:
        super().__init__()
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

    def update(self, output: Output, expected: Tensor, batch: Batch, targets: Targets) -> None:
        """Take in a batch; `expected` is `DefectModel.expected` of the output, (B, E)."""
        self.identity.update(torch.sigmoid(output.identity_logits.float()), targets.present.long())
        asked = batch.candidates
        self.concentration.update(expected.float()[asked], targets.true_concentration[asked])

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
