"""Fine-tuning with a plain Lightning Trainer, on one device or many: four methods, one task.

    task = FinetuneTask.from_pretrained("defectnet-small", method="gradual")
    Trainer(max_epochs=60).fit(task, LabDataModule("examples/lab"))

What is frozen has a learning rate of 0 and nothing else is special about it: its gradients are reduced over the ranks
like all others. So no parameter changes its state while DDP runs, and the ranks cannot drift apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from defectnet.batch import Item, Output
from defectnet.config import ModelSpec
from defectnet.errors import ConfigError
from defectnet.models.base import DefectModel
from defectnet.tasks.defect import DefectTask, OptimiserSettings
from defectnet.tasks.losses import LossWeights, loss_named

Method = Literal["head", "gradual", "full", "l2sp"]


@dataclass(frozen=True)
class MethodSettings:
    """How a method trains.

    Attributes:
        optimiser: Peak learning rate and its schedule.
        penalty: Strength of the pull to the pretrained weights: times the sum of squared distances, in nats.
        unlock_every: Share of all steps after which the next stage begins to learn; 0 lets all learn at once, and
            infinity the first alone.
        fall: Learning rate of a stage over that of the stage above it.
    """

    optimiser: OptimiserSettings
    penalty: float = 0.0
    unlock_every: float = 0.0
    fall: float = 1.0

    def factor(self, stage: int, step: int, steps: int) -> float:
        """Return the learning rate of a stage at a step, relative to the peak; exactly 0 while it is frozen."""
        if stage and step < stage * self.unlock_every * steps:
            return 0.0
        return self.fall**stage * self.optimiser.factor(step, steps)


METHODS: Final[dict[str, MethodSettings]] = {
    "head": MethodSettings(OptimiserSettings(learning_rate=2e-3, weight_decay=0.05), unlock_every=math.inf),
    # The lower a stage, the later and the less it learns: Howard and Ruder, arXiv 1801.06146, who fall by 2.6.
    "gradual": MethodSettings(OptimiserSettings(learning_rate=2e-3, weight_decay=0.05), unlock_every=0.15, fall=0.5),
    "full": MethodSettings(OptimiserSettings(learning_rate=1e-3, weight_decay=0.05)),
    # The pull to the start takes the place of the decay to zero: Li, Grandvalet and Davoine, arXiv 1802.01483.
    "l2sp": MethodSettings(OptimiserSettings(learning_rate=1e-3, weight_decay=0.0), penalty=0.1),
}
"""The methods by name."""


def method_named(name: str) -> MethodSettings:
    """Return a method by name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is not known", fix=f"Use one of {', '.join(METHODS)}")
    return METHODS[name]


def stages(model: DefectModel) -> list[list[str]]:
    """Return the names of a network's modules in stages, from the answer down to the input.

    The first stage is what `head` trains: of DefectNet the two heads and the last block of the decoder, of another
    network the module that was registered last. Together the stages hold every module once.
    """
    children = [name for name, _ in model.named_children()]
    upper: list[list[str]]
    match type(model).__name__:
        case "DefectNet":
            blocks = [f"decoder.{i}" for i in range(len(model.get_submodule("decoder")._modules))]
            upper = [
                ["identity", "concentration", blocks[-1]],
                [*blocks[:-1], "queries", "summary"],
                ["encoder", "encoded"],
            ]
        case "PaperDefectNet":
            upper = [["mlp"], ["attention", "query"]]
        case "ResNet1d":
            upper = [["identity", "amount"], ["trunk"]]
        case _:
            upper = [children[-1:]]
    taken = {name.split(".")[0] for stage in upper for name in stage}
    return [stage for stage in (*upper, [name for name in children if name not in taken]) if stage]


def parameter_groups(model: DefectModel, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: two for each stage, matrices with decay and vectors without.

    Each group carries its ``stage``, for the schedule. A parameter that belongs to no module of `stages` (registered
    on the network itself) is part of the last stage.
    """
    names = stages(model)
    parts: list[list[nn.Parameter]] = [[] for _ in names]
    for name, parameter in model.named_parameters():
        owners = [i for i, stage in enumerate(names) if any(name.startswith(f"{module}.") for module in stage)]
        parts[owners[0] if owners else -1].append(parameter)
    return [
        {"params": chosen, "weight_decay": decay, "stage": stage}
        for stage, parameters in enumerate(parts)
        for chosen, decay in (
            ([p for p in parameters if p.ndim >= 2], weight_decay),
            ([p for p in parameters if p.ndim < 2], 0.0),
        )
        if chosen
    ]


class FinetuneTask(DefectTask):
    """Trains a pretrained network further.

    Losses and metrics are computed in single precision whatever the trainer's precision.

    Args:
        init_from: Checkpoint to start from: a bundled name, a path (./ or /) or org/repo.
        method: ``head``, ``gradual``, ``full`` or ``l2sp``.
        spec: What the data measure; kinds of DOS that are new to the network are added to its own.
        learning_rate: Peak learning rate; the method's own if None.
        weights: Weights of the terms of the loss.

    Raises:
        ConfigError: There is no such method, or the network does not fit the data.
        CheckpointError: The checkpoint is not found or not whole.
    """

    simulated: ClassVar[bool] = False

    def __init__(
        self,
        init_from: str,
        method: str = "l2sp",
        spec: ModelSpec | None = None,
        learning_rate: float | None = None,
        weights: LossWeights = LossWeights(),  # noqa: B008
    ) -> None:
        settings = method_named(method)
        optimiser = settings.optimiser
        if learning_rate is not None:
            optimiser = OptimiserSettings(learning_rate=learning_rate, weight_decay=optimiser.weight_decay)
        super().__init__(spec=spec, init_from=init_from, optimiser=optimiser, weights=weights)
        self.method = MethodSettings(optimiser, settings.penalty, settings.unlock_every, settings.fall)
        self._stages = stages(self.model)
        # Not part of the state: a resumed run builds the task from the same checkpoint, and so has them again.
        self._start = [p.detach().clone() for p in self.model.parameters()] if self.method.penalty else []

    @classmethod
    def from_pretrained(cls, source: str, **settings: Any) -> Self:
        """Return a task on the weights of a checkpoint, ready for ``Trainer(devices=N)``.

        Args:
            source: As for `defectnet.from_pretrained`.
            **settings: `method`, `spec`, `learning_rate` and `weights` of the task.
        """
        return cls(init_from=source, **settings)

    def on_fit_start(self) -> None:
        """Bring the pretrained weights to the device."""
        self._start = [p.to(self.device) for p in self._start]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let what learns train, with dropout, and keep what is frozen in evaluation mode.

        Set at every step: a loaded network may come in evaluation mode, which Lightning would keep.
        """
        steps = int(self.trainer.estimated_stepping_batches)
        self.model.train()
        for stage, names in enumerate(self._stages):
            frozen = self.method.factor(stage, self.global_step, steps) == 0.0
            for name in names:
                self.model.get_submodule(name).train(not frozen)

    def _step(self, item: Item, stage: str) -> Tensor:
        batch, targets = item.batch, item.targets
        output, further = self.model.learn(batch, targets) if stage == "train" else (self(batch), {})
        output = Output(*(x.float() for x in output))
        with torch.autocast(self.device.type, enabled=False):
            terms = loss_named(self.model.loss, rows=True)(output, batch, targets, self.weights)
            terms |= {name: self.weights.of(name) * value.float() for name, value in further.items()}
        losses = torch.stack(list(terms.values())).sum(dim=0)
        if stage == "train":
            loss = losses.mean() if item.weight is None else item.weight @ losses
            # One value a step, which the weights have made fit for a plain mean over the ranks.
            self.log("train/loss", loss.detach(), batch_size=1, on_step=False, on_epoch=True, sync_dist=True)
            return loss + self._pull()
        self._score(output, batch, targets, losses)
        return losses.mean()

    def _pull(self) -> Tensor:
        """Return the penalty on the distance from the pretrained weights; the same on every rank."""
        if not self._start:
            return torch.zeros((), device=self.device)
        squares = [(p - start).square().sum() for p, start in zip(self.model.parameters(), self._start, strict=True)]
        return self.method.penalty * torch.stack(squares).sum()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with the stages as groups, and a schedule in which a frozen one has learning rate 0."""
        groups = parameter_groups(self.model, self.optimiser.weight_decay)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ConfigError("trainer has no end, so the learning rate has no schedule", fix="Set trainer.max_epochs")

        def schedule(stage: int) -> Callable[[int], float]:
            return lambda step: self.method.factor(stage, step, int(steps))

        schedules: Sequence[Callable[[int], float]] = [schedule(group["stage"]) for group in groups]
        optimizer = AdamW(groups, lr=self.optimiser.learning_rate)
        scheduler = LambdaLR(optimizer, list(schedules))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
