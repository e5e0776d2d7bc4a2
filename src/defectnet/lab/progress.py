"""What is seen of a fine-tuning while it runs: lines on standard error, and a logger of Lightning's."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TextIO

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from defectnet.errors import ConfigError

LOGGERS: Final = ("auto", "tensorboard", "csv", "wandb", "none")
"""Loggers by name; ``auto`` is TensorBoard if that is installed, and CSV otherwise."""

EVERY_SECONDS: Final = 10.0
"""Least time between two lines of one run."""

_PACKAGES: Final = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}


stream: TextIO | None = None
"""Where lines go; standard error if None, where they do not mix with a result."""


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=stream or sys.stderr, flush=True)


@dataclass(frozen=True)
class TrainingLog:
    """Where the course of training is noted.

    Attributes:
        name: One of `LOGGERS`.
        folder: Folder of the notes; each run has a folder of its own in it.

    Raises:
        ConfigError: There is no such logger, or what it needs is not installed.
    """

    name: str = "none"
    folder: Path = Path("logs")

    def __post_init__(self) -> None:
        if self.name not in LOGGERS:
            raise ConfigError(f"logger is {self.name!r}", fix=f"Use one of {', '.join(LOGGERS)}")
        if self.name in _PACKAGES and not _installed(self.name):
            raise ConfigError(f"logger {self.name} is not installed", fix=f"pip install {_PACKAGES[self.name][0]}")

    @property
    def chosen(self) -> str:
        """The logger that ``auto`` stands for here, or `name`."""
        if self.name != "auto":
            return self.name
        return "tensorboard" if _installed("tensorboard") else "csv"

    def logger(self, run: str) -> Logger | None:
        """Return the logger of one run, or none; a run that goes on gets a further version."""
        settings: dict[str, Any] = {"save_dir": str(self.folder), "name": run}
        match self.chosen:
            case "tensorboard":
                return TensorBoardLogger(**settings)
            case "csv":
                return CSVLogger(**settings, flush_logs_every_n_steps=1)
            case "wandb":
                return WandbLogger(**settings)
        return None


NO_LOG: Final = TrainingLog()


def _installed(logger: str) -> bool:
    return any(find_spec(package) for package in _PACKAGES[logger])


class ProgressLines(Callback):
    """Prints where training stands: the first epoch, the last, and some in between.

    Args:
        label: Name of the run.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._begin = self._told = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin, self._told = time.monotonic(), 0.0
        if trainer.is_global_zero and trainer.current_epoch:
            say(f"{self._label}: goes on after epoch {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line if it is time."""
        now, epoch, epochs = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or 0
        if not trainer.is_global_zero or (now - self._told < EVERY_SECONDS and epoch < epochs):
            return
        self._told = now
        values = {name: trainer.callback_metrics.get(name) for name in ("train/loss", "val/loss")}
        told = ", ".join(f"{name} {float(value):.3f}" for name, value in values.items() if value is not None)
        say(f"{self._label}: epoch {epoch} of {epochs}, {told}, {now - self._begin:.0f} s")
