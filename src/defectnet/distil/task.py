"""The training task: a student learns forces, and above all how forces change, from a slow potential."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import huber_loss
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import CatMetric, MeanMetric

from defectnet.distil.data import DistilDataModule
from defectnet.errors import ConfigError, SimulationError
from defectnet.potentials.batch import CellBatch
from defectnet.potentials.folder import find_folder, load_folder
from defectnet.potentials.form import StudentConfig
from defectnet.potentials.student import Student
from defectnet.tasks.defect import OptimiserSettings

STUDENT_KEY = "student"
"""Key of a .ckpt under which the student's config lies, as plain values."""

_MEANS = ("force_mae", "energy_mae", "stress_mae", "loss")
_MEDIANS = ("difference_error", "hessian_error", "phonon_error")


@dataclass(frozen=True)
class DistilWeights:
    """Weights of the terms of the loss.

    Attributes:
        forces: Per eV/angstrom of mean error.
        differences: Per unit of relative error of force differences between cells of one structure.
        hessians: The same where the difference comes from a Hessian.
        energy: Per eV/atom.
        stress: Per eV/angstrom^3.
        mass_power: Force differences count by the atom's mass to minus this power: with 1 as in the dynamical matrix,
            where light atoms make the highest modes.
        noise: Force changes below this, eV/angstrom RMS, are not asked to be right to their last per cent.
    """

    forces: float = 1.0
    differences: float = 2.0
    hessians: float = 2.0
    energy: float = 0.5
    stress: float = 5.0
    mass_power: float = 0.0
    noise: float = 0.01


class DistilTask(LightningModule):
    """Trains a student.

    Args:
        student: Fields of `StudentConfig` that differ from its defaults.
        init_from: Whose student goes on learning, for instance from more labels: checkpoint of a run, folder of a
            potential, or a bundled name. Its form and references stay; `student` is not looked at.
        optimiser: Learning rate and its schedule.
        weights: Weights of the terms of the loss.
        precision: Bits of floats in training, 32 or 64.
        prepare_batches: Batches from which scales and reference energies are taken.
    """

    def __init__(
        self,
        student: dict[str, Any] | None = None,
        init_from: str | None = None,
        optimiser: OptimiserSettings = OptimiserSettings(weight_decay=1e-4),  # noqa: B008
        weights: DistilWeights = DistilWeights(),
        precision: int = 32,
        prepare_batches: int = 50,
    ) -> None:
        super().__init__()
        if precision not in (32, 64) or prepare_batches < 1:
            raise ConfigError(
                f"model: precision {precision}, prepare_batches {prepare_batches}",
                fix="Use 32 or 64 bits, and one batch or more",
            )
        config = StudentConfig.from_dict(student or {}, where="model.student")
        self.student = Student(config) if init_from is None else open_student(init_from)
        self.optimiser, self.weights = optimiser, weights
        self.floats = torch.float32 if precision == 32 else torch.float64
        self.prepare_batches = prepare_batches
        self.means = nn.ModuleDict({name: MeanMetric() for name in _MEANS})
        self.medians = nn.ModuleDict({name: CatMetric() for name in _MEDIANS})

    def setup(self, stage: str) -> None:
        """Tell the data how far the student sees."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DistilDataModule):
            data.cutoff = self.student.config.cutoff

    # -- preparation -------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Take scales and references from the data, unless a checkpoint brought them."""
        self._prepare()

    def on_validation_start(self) -> None:
        """The same where nothing is trained: then the figures are those of the potential started from."""
        self._prepare()

    on_test_start = on_validation_start

    def _prepare(self) -> None:
        if bool(self.student.prepared):
            return
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DistilDataModule):
            raise ConfigError("the student is not prepared", fix="Train with a DistilDataModule, or call prepare")
        loader = data.loader("train", shuffle=True)
        members = loader.plan(0)[: self.prepare_batches]
        self.student.prepare(self._cast(loader.batch(numbers)) for numbers in members)

    def _cast(self, batch: CellBatch) -> CellBatch:
        return batch.to(self.device, self.floats)

    # -- steps -------------------------------------------------------------------------------------------------

    def training_step(self, batch: CellBatch) -> Tensor:
        """Return the loss of a batch."""
        terms, _ = self._terms(self._cast(batch))
        loss = torch.stack(list(terms.values())).sum()
        values = {"train/loss": loss, **{f"train/{name}": value for name, value in terms.items()}}
        self.log_dict(values, batch_size=len(batch.volume), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch: CellBatch) -> None:
        """Score a batch of the validation crystals."""
        self._score(self._cast(batch))

    def test_step(self, batch: CellBatch) -> None:
        """Score a batch of the test crystals."""
        self._score(self._cast(batch))

    def _terms(self, batch: CellBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the weighted terms of the loss, and for the metrics the errors and the (N, 3) forces."""
        energy, forces, stress = self.student(batch)
        atoms, cells = batch.labelled[batch.cell_of_atom], batch.labelled
        per_atom = (energy - batch.energy) / batch.sizes
        errors = {
            "force_mae": (forces - batch.forces)[atoms],
            "energy_mae": per_atom[cells],
            "stress_mae": (stress - batch.stress)[cells],
        }
        wrong, right = self._changes(batch, forces, self.weights.mass_power)
        relative = (wrong / (right + self.weights.noise**2)).sqrt()
        w = self.weights
        terms = {
            "forces": w.forces * _robust(errors["force_mae"], 0.1),
            "differences": w.differences * _mean(relative[~batch.exact]),
            "hessians": w.hessians * _mean(relative[batch.exact]),
            "energy": w.energy * _robust(errors["energy_mae"], 0.01),
            "stress": w.stress * _robust(errors["stress_mae"], 0.01),
        }
        return terms, errors | {"forces": forces}

    def _changes(self, batch: CellBatch, forces: Tensor, mass_power: float) -> tuple[Tensor, Tensor]:
        """Return (C,) weighted mean squares of the error of each force change, and of the change itself."""
        change = forces.index_select(0, batch.left) - forces.index_select(0, batch.right)
        weight = self.student.masses[batch.types[batch.left]].to(forces).pow(-mass_power)
        squares = torch.stack([(change - batch.change).square().mean(1), batch.change.square().mean(1)], 1)
        columns = weight[:, None] * torch.cat([squares, torch.ones_like(weight)[:, None]], 1)
        count = len(batch.structure)
        sums = columns.new_zeros(count, 3).index_add(0, batch.comparison, columns)
        wrong, right = (sums[:, :2] / sums[:, 2:].clamp_min(1e-12)).unbind(1)
        return wrong + 1e-12, right  # a root has no slope at 0

    def _score(self, batch: CellBatch) -> None:
        terms, errors = self._terms(batch)
        for name in ("force_mae", "energy_mae", "stress_mae"):
            if errors[name].numel():
                self._update(self.means[name], errors[name].abs())
        self._update(self.means["loss"], torch.stack(list(terms.values())).sum())
        for name, chosen, mass_power in (
            ("difference_error", ~batch.exact, 0.0),
            ("hessian_error", batch.exact, 0.0),
            ("phonon_error", torch.ones_like(batch.exact), 1.0),
        ):
            # one figure a structure, over all its comparisons
            ids, place = torch.unique(batch.structure[chosen], return_inverse=True)
            wrong, right = (
                part.new_zeros(len(ids)).index_add(0, place, part[chosen])
                for part in self._changes(batch, errors["forces"], mass_power)
            )
            if len(ids):
                self._update(self.medians[name], (wrong / right.clamp_min(1e-12)).sqrt())

    @staticmethod
    def _update(metric: nn.Module, value: Tensor) -> None:
        assert isinstance(metric, MeanMetric | CatMetric)
        metric.update(value)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        for metrics, reduce in ((self.means, torch.mean), (self.medians, torch.median)):
            for name, metric in metrics.items():
                assert isinstance(metric, MeanMetric | CatMetric)
                if metric.update_count:
                    value = metric.compute()
                    value = torch.cat([v.reshape(-1) for v in value]) if isinstance(value, list) else value
                    self.log(f"{stage}/{name}", reduce(value), prog_bar=name == "difference_error")
                metric.reset()

    # -- optimiser and checkpoint ------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule over the whole run."""
        optimizer = AdamW(
            self.student.parameters(), lr=self.optimiser.learning_rate, weight_decay=self.optimiser.weight_decay
        )
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise ConfigError("trainer has no end, so the learning rate has no schedule", fix="Set trainer.max_steps")
        schedule = LambdaLR(optimizer, lambda step: self.optimiser.factor(step, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the student's config beside its weights, as plain values."""
        checkpoint[STUDENT_KEY] = self.student.config.to_dict()


def _mean(values: Tensor) -> Tensor:
    return values.mean() if len(values) else values.sum()


def _robust(error: Tensor, width: float) -> Tensor:
    """Mean of a Huber loss that is the absolute error far beyond `width`."""
    return huber_loss(error, torch.zeros_like(error), delta=width) / width if error.numel() else error.sum()


def load_student(path: str | Path) -> Student:
    """Load the student of a training checkpoint, with averaged weights where the run kept them.

    Raises:
        SimulationError: The file is missing, or no checkpoint of this task.
    """
    path = Path(path)
    fix = "Give a .ckpt that `python -m defectnet.distil fit` wrote"
    if not path.is_file():
        raise SimulationError(f"checkpoint {path} does not exist", fix=fix)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state: Mapping[str, Tensor] = content["state_dict"]
        student = Student(StudentConfig.from_dict(content[STUDENT_KEY], where=f"{path.name}: student"))
        prefix = "student."
        student.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    except Exception as error:  # torch raises whatever its pickle meets
        raise SimulationError(
            f"checkpoint {path} is no checkpoint of a student", why=(str(error).splitlines() or [""])[0][:120], fix=fix
        ) from error
    return student


def open_student(source: str) -> Student:
    """Return a student to be trained on: of a bundled potential's name, a folder, or a training checkpoint.

    Raises:
        SimulationError: There is none, or it is damaged.
    """
    folder = find_folder(source)
    if folder is None:
        return load_student(source)
    kept = load_folder(folder)[0]
    student = Student(kept.config)
    student.load_state_dict(kept.state_dict())  # in single precision again
    return student


def training_record(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint that `load_student` reads tells of its run: steps, and its validation score."""
    content = torch.load(Path(path), map_location="cpu", weights_only=True)
    record: dict[str, Any] = {"steps": int(content["global_step"])}
    for state in content.get("callbacks", {}).values():
        score = state.get("current_score") if isinstance(state, dict) else None
        if score is not None:
            record[str(state.get("monitor"))] = round(float(score), 4)
    return record
