"""Fine-tuning of a whole network with a plain Lightning Trainer, on one device or many.

data = LabDataModule("examples/lab")
Trainer(max_epochs=60).fit(FinetuneTask.from_pretrained("defectnet-small", spec=data.spec), data)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor

from defectnet.batch import Item
from defectnet.config import ModelSpec
from defectnet.hub import from_pretrained
from defectnet.models.base import DefectModel
from defectnet.tasks.defect import DefectTask, OptimiserSettings, pretrained

LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 0.05


class FinetuneTask(DefectTask):
    """Trains a pretrained network further; all of it learns.

    Losses and metrics are computed in single precision whatever the trainer's precision.

    Args:
        model: The network to start from; it is trained in place.
        spec: What the data measure; kinds of DOS that are new to the network are added to its own.
        learning_rate: Peak learning rate.
        weights: Weights of the terms of the loss that differ from the network's own.

    Raises:
        ConfigError: The network does not fit the data.
    """

    simulated: ClassVar[bool] = False

    def __init__(
        self,
        model: DefectModel,
        spec: ModelSpec | None = None,
        learning_rate: float = LEARNING_RATE,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        optimiser = OptimiserSettings(learning_rate=learning_rate, weight_decay=WEIGHT_DECAY)
        self._set_up(pretrained(model, spec), optimiser, weights or {})

    @classmethod
    def from_pretrained(cls, source: str, **settings: Any) -> Self:
        """Return a task on the weights of a checkpoint, ready for ``Trainer(devices=N)``.

        Args:
            source: As for `defectnet.from_pretrained`.
            **settings: `spec`, `learning_rate` and `weights` of the task.

        Raises:
            CheckpointError: The checkpoint is not found or not whole.
        """
        return cls(from_pretrained(source), **settings)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the network to training mode: it may come in evaluation mode, which Lightning would keep."""
        self.model.train()

    def _step(self, item: Item, stage: str) -> Tensor:
        batch, targets = item.batch, item.targets
        output, terms = self._answer(batch, targets, stage)
        losses = torch.stack([self.weights[name] * term.rows for name, term in terms.items()]).sum(dim=0)
        if stage == "train":
            weight = torch.full_like(losses, 1.0 / len(losses)) if item.weight is None else item.weight
            loss = (weight * losses).sum()  # no product of matrices, which autocast would take in half precision
            # One value a step, which the weights have made fit for a plain mean over the ranks.
            self.log("train/loss", loss.detach(), batch_size=1, on_step=False, on_epoch=True, sync_dist=True)
            return loss
        self._score(output, batch, targets, losses)
        return losses.mean()
