"""The training task: any network of the registry, its loss, its optimiser and its metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Self

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from defectnet.batch import Batch, Item, Output, Targets
from defectnet.config import Bounded, ModelSpec, bounded
from defectnet.data.candidates import TRACKS
from defectnet.data.module import SpectraDataModule
from defectnet.errors import ConfigError
from defectnet.hub import from_pretrained
from defectnet.models.base import DefectModel
from defectnet.models.losses import LossTerm
from defectnet.models.registry import build_model
from defectnet.tasks.metrics import TrackMetrics, track_of

CHECKPOINT_KEY = "defectnet"
"""Key of a .ckpt under which the network's config lies, as plain values; `defectnet export` reads it."""


@dataclass(frozen=True)
class OptimiserSettings(Bounded, called="optimiser"):
    """AdamW with a linear warm-up and a cosine decay.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Decay of matrices; vectors (biases, norms) have none.
        warmup_share: Share of all steps over which the learning rate rises from 0.
        final_share: Learning rate at the end, relative to the peak.
        decay: False keeps the learning rate at its peak after the warm-up.
    """

    learning_rate: float = bounded(1e-3, above=0.0)
    weight_decay: float = bounded(0.05, 0.0)
    warmup_share: float = bounded(0.05, 0.0, 1.0)
    final_share: float = bounded(0.01, 0.0, 1.0)
    decay: bool = True

    def factor(self, step: int, steps: int) -> float:
        """Return the learning rate at a step, relative to the peak."""
        warmup = max(1, round(self.warmup_share * steps))
        if step < warmup:
            return (step + 1) / warmup
        if not self.decay:
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return self.final_share + (1.0 - self.final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


class DefectTask(LightningModule):
    """Trains a network to say which elements were substituted in, and how much of each.

    Args:
        architecture: Name of the network in the registry; not needed with `init_from`.
        net: Fields of the network's size that differ from its defaults; not needed with `init_from`.
        spec: What the network reads and answers; `defectnet fit` takes it from the data.
        init_from: Checkpoint to start from: a bundled name, a path (./ or /) or org/repo. None starts from scratch.
        optimiser: Learning rate and its schedule.
        weights: Weights of the terms of the loss that differ from the network's own (`DefectModel.loss_weights`).
    """

    simulated: ClassVar[bool] = True
    """Whether training rows are simulated, so that projected DOS can be shown; a laboratory has none."""

    def __init__(
        self,
        architecture: str | None = None,
        net: dict[str, Any] | None = None,
        spec: ModelSpec | None = None,
        init_from: str | None = None,
        optimiser: OptimiserSettings = OptimiserSettings(),
        weights: dict[str, float] | None = None,
    ) -> None:
        if init_from is None:
            if architecture is None:
                raise ConfigError("model.architecture is not given", fix="Name a network, or give init_from")
            model = build_model(architecture, spec, net)
        else:
            model = from_pretrained(init_from)
            wanted = {**model.net.to_dict(), **(net or {})}
            model = able_to(model, [name for name in ABILITIES if wanted.get(name)])
            if architecture not in (None, type(model).__name__) or wanted != model.net.to_dict():
                raise ConfigError(
                    f"model.init_from {init_from!r} is a {type(model).__name__} of another size than model.net",
                    fix="Use the recipe that it was trained with, or leave out model.architecture and model.net",
                )
            model = pretrained(model, spec)
        self._set_up(model, optimiser, weights or {})

    def _set_up(self, model: DefectModel, optimiser: OptimiserSettings, weights: Mapping[str, float]) -> None:
        super().__init__()
        unknown = [name for name in weights if name not in model.loss_weights]
        if unknown:
            raise ConfigError(
                f"model.weights.{unknown[0]} is no term of the loss of {type(model).__name__}",
                fix=f"Use {', '.join(model.loss_weights)}",
            )
        self.model, self.optimiser = model, optimiser
        self.weights = {**model.loss_weights, **weights}
        self.metrics = nn.ModuleDict({name: TrackMetrics() for name in TRACKS})
        # Not logged with sync_dist: Lightning's mean over ranks of unequal parts divides by a rounded count.
        self.mean_loss = nn.ModuleDict({name: MeanMetric() for name in TRACKS})

    @classmethod
    def from_pretrained(cls, source: str, **settings: Any) -> Self:
        """Return a task on the weights of a checkpoint, in training mode: ready for ``Trainer(devices=N)``.

        Args:
            source: As for `defectnet.from_pretrained`.
            **settings: `optimiser` and `weights` of the task.
        """
        return cls(init_from=source, **settings)

    def forward(self, batch: Batch) -> Output:
        """Return what the network says of a batch."""
        output: Output = self.model(batch)
        return output

    def setup(self, stage: str) -> None:
        """Let the data show projected DOS in training, where the network learns from them."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, SpectraDataModule):
            data.projected = self.model.wants_projected

    def training_step(self, item: Item) -> Tensor:
        """Return the loss of a batch.

        Raises:
            ConfigError: The network learns from projected DOS, and the data show none.
        """
        if self.simulated and self.model.wants_projected and item.targets.projected is None:
            raise ConfigError(
                f"{type(self.model).__name__} learns from projected DOS, which are not shown",
                fix="Train it on a SpectraDataModule, given as datamodule=",
            )
        return self._step(item, "train")

    def validation_step(self, item: Item, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch; the loader of each track comes in turn."""
        self._step(item, "val")

    def test_step(self, item: Item, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score a batch of the test crystals."""
        self._step(item, "test")

    def _step(self, item: Item, stage: str) -> Tensor:
        batch, targets = item.batch, item.targets
        output, found = self._answer(batch, targets, stage)
        terms = {name: self.weights[name] * term.mean() for name, term in found.items()}
        loss = torch.stack(list(terms.values())).sum()
        size = len(batch.host)
        if stage == "train":
            values = {"train/loss": loss, **{f"train/loss_{name}": value for name, value in terms.items()}}
            self.log_dict(values, sync_dist=True, batch_size=size, on_step=False, on_epoch=True)
        else:
            self._score(output, batch, targets, loss, size)
        return loss

    def _answer(self, batch: Batch, targets: Targets, stage: str) -> tuple[Output, dict[str, LossTerm]]:
        """Return what the network says, and the terms of its loss without their weights, in single precision."""
        output, auxiliary = self.model.forward_training(batch, targets) if stage == "train" else (self(batch), {})
        output = output.map(lambda x: x.float())
        with torch.autocast(self.device.type, enabled=False):
            terms = self.model.loss_terms(output, batch, targets)
        auxiliary = {name: term._replace(rows=term.rows.float()) for name, term in auxiliary.items()}
        return output, {**terms, **auxiliary}

    def _score(
        self, output: Output, batch: Batch, targets: Targets, loss: Tensor, weight: float | Tensor = 1.0
    ) -> None:
        """Count a batch of validation or test: its metrics, and losses that count for `weight` each."""
        metrics, mean_loss = self.metrics[track_of(batch)], self.mean_loss[track_of(batch)]
        assert isinstance(metrics, TrackMetrics)
        assert isinstance(mean_loss, MeanMetric)
        metrics.update(output, self.model.expected(output), batch, targets)
        mean_loss.update(loss, weight)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of each track that was asked."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of each track that was asked."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        scores, losses = [], []
        for track, metrics in self.metrics.items():
            assert isinstance(metrics, TrackMetrics)
            # A rank without rows of a track would hang the others: every rank has rows of every loader, or none has.
            if metrics.updated:
                values = metrics.compute()
                mean_loss = self.mean_loss[track]
                assert isinstance(mean_loss, MeanMetric)
                losses.append(mean_loss.compute())
                values = {**values, "loss": losses[-1]}
                self.log_dict({f"{stage}/{track}/{name}": value for name, value in values.items()})
                scores.append(values["identity/ap"])
                metrics.reset()
                mean_loss.reset()
        if scores:
            # One number each to choose a checkpoint by or to stop, also where the blind track is not asked.
            self.log(f"{stage}/identity/ap", torch.stack(scores).mean(), prog_bar=True)
            self.log(f"{stage}/loss", torch.stack(losses).mean())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule over the whole run."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.optimiser.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.optimiser.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ConfigError("trainer has no end, so the learning rate has no schedule", fix="Set trainer.max_epochs")
        schedule = LambdaLR(optimizer, lambda step: self.optimiser.factor(step, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the network's config beside its weights, as plain values, in place of pickled hyperparameters."""
        checkpoint[CHECKPOINT_KEY] = self.model.config


ABILITIES: Final = ("something_else", "computed_responses")
"""Fields of a network's size that a leg of training may add to what the one before it had."""


def able_to(model: DefectModel, abilities: Sequence[str]) -> DefectModel:
    """Return a network with the weights of another, and untrained parts for what it is to be able to.

    Args:
        model: The network.
        abilities: Among `ABILITIES`. What it has already stays as it is.
    """
    size = model.net.to_dict()
    new = {name: True for name in abilities if size.get(name) is False}
    if not new:
        return model
    able = type(model).from_config(model.config["spec"], {**size, **new})
    able.load_state_dict({**able.state_dict(), **model.state_dict()})
    able.name, able.source, able.training_info = model.name, model.source, model.training_info
    return able


def pretrained(model: DefectModel, spec: ModelSpec | None = None) -> DefectModel:
    """Make a loaded network ready to be trained further, in place.

    Args:
        model: The network.
        spec: What the data measure; kinds of DOS that are new to the network are added to its own.

    Raises:
        ConfigError: The data are on another grid.
    """
    if spec is not None and spec.grid != model.spec.grid:
        raise ConfigError(
            f"{model.name} was trained on {model.spec.grid}, the data are on {spec.grid}",
            fix="Set data.grid to the checkpoint's",
        )
    if spec is not None:
        kinds = tuple(dict.fromkeys((*model.spec.kinds, *spec.kinds)))
        model.spec = replace(model.spec, kinds=kinds)
    # Numbers fitted to the old weights say nothing of the new ones.
    model.calibration = None
    # A loaded network is in evaluation mode, and Lightning would leave it there: no dropout, without an error.
    return model.train()
