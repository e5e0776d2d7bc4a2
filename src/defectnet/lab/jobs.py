"""The training runs of a fine-tuning, and the processes that share one.

With one device a run happens in this process. With more, each device has a process of its own, started and watched
from here: this process is none of the ranks, so that it notices the end of any of them, ends the others, and says so.
Training leaves its state in the run's folder every few epochs; the same call again goes on from there, and ends as if
it had never stopped: what is drawn in a step depends on seed, step and rank alone.
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from defectnet.config import Settings, bounded
from defectnet.data.candidates import OPEN_SHARE, TrackSettings
from defectnet.errors import ConfigError, DefectNetError, LabError
from defectnet.export import read_run
from defectnet.files import replacing
from defectnet.lab import progress
from defectnet.lab.data import EncodedPairs, LabDataModule, Replay
from defectnet.lab.progress import NO_LOG, ProgressLines, TrainingLog
from defectnet.models.base import DefectModel
from defectnet.models.measured import MeasuredResponses
from defectnet.processes import end_with_parent, forking
from defectnet.rng import row_rng
from defectnet.tasks.defect import pretrained
from defectnet.tasks.finetuning import LEARNING_RATE, FinetuneTask

WEIGHTS: Final = "weights.safetensors"
"""What a finished run leaves."""

RESPONSES: Final = "responses"
FULL: Final = "full"
METHODS: Final = (RESPONSES, FULL)
"""Ways to fine-tune: measured responses, which is no training; and the whole network."""

SAVED_EVERY: Final = 5
"""Epochs after which a run that is killed goes on."""

SMALL: Final = 1_000_000
"""Parameters of a network that one thread serves best."""

AGAIN: Final = "Give the same command again: it goes on from the last checkpoint"


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How a network is trained further.

    Attributes:
        method: ``responses``, which measures how each dopant changes the spectrum of a host
            (`defectnet.models.measured`) and trains nothing, so that other settings say nothing; or ``full``, which
            trains the whole network.
        epochs: Most epochs; an epoch asks one question about every pair.
        learning_rate: Peak learning rate.
        batch_size: Pairs of a batch, over all devices together.
        patience: Epochs without a better validation loss after which training stops.
        validation: Share of the samples that is kept aside to stop by; 0 trains for all epochs. A part of a handful
            says nothing of when to stop: with 16 pairs to learn from it left errors half as large again.
        ema: Decay of an average of the weights that is kept in their place; 0 for none.
        replay: Folder of simulated shards that are mixed in; None for none.
        replay_share: Share of each batch that they make up.
        seed: Fixes order, augmentation, questions, dropout and splits.
        devices: Devices, one process each.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Of the trainer: ``32-true`` or ``bf16-mixed``.
    """

    method: str = bounded(RESPONSES, choices=METHODS)
    epochs: int = bounded(60, 1)
    learning_rate: float = bounded(LEARNING_RATE, above=0.0, most=1.0)
    batch_size: int = bounded(8, 1)
    patience: int = bounded(40, 1)
    validation: float = bounded(0.0, 0.0, below=1.0)
    ema: float = bounded(0.0, 0.0, below=1.0)
    replay: str | None = None
    replay_share: float = bounded(0.5, 0.0, below=1.0)
    seed: int = bounded(0, 0)
    devices: int = bounded(1, 1)
    accelerator: str = bounded("auto", choices=("auto", "cpu", "gpu"))
    precision: str = bounded("32-true", choices=("32-true", "bf16-mixed"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == RESPONSES and (self.devices > 1 or self.replay is not None):
            what = "replay" if self.devices == 1 else f"devices is {self.devices}"
            raise ConfigError(f"{what} with method {RESPONSES}", fix=f"It trains nothing; use method {FULL}")
        found = torch.cuda.device_count()
        if found < self.devices and (self.accelerator == "gpu" or (found and self.accelerator == "auto")):
            raise ConfigError(f"devices is {self.devices}, with {found} GPUs", fix="Use fewer, or accelerator cpu")


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a fine-tuning.

    Attributes:
        label: What it is called on the screen and by a logger, such as ``fold 1 of 4``.
        folder: Where its state and its result lie.
        start: The network to start from, which stays as it is.
        pairs: Pairs to learn from, on the network's grid.
        training: How.
    """

    label: str
    folder: Path
    start: DefectModel
    pairs: EncodedPairs
    training: TrainingSettings

    def result(self) -> DefectModel:
        """Return the fine-tuned network, in evaluation mode, not calibrated anew."""
        if self.training.method == RESPONSES:
            weight = torch.tensor([pair.weight for pair in self.pairs.pairs])
            return MeasuredResponses.fit(self.start, self.pairs.batch, self.pairs.targets, weight / weight.mean())
        model = pretrained(copy.deepcopy(self.start), self.data().spec)
        model.load_state_dict(load_file(self.folder / WEIGHTS), strict=True)
        return model.eval()

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return self.training.method == RESPONSES or (self.folder / WEIGHTS).is_file()

    def data(self) -> LabDataModule:
        """Return what the run trains on."""
        training = self.training
        return LabDataModule(
            self.pairs,
            training.batch_size,
            tracks=TrackSettings(
                blind_share=0.5 if self.start.asks_blind else 0.0,
                open_share=OPEN_SHARE if self.start.tells_something_else else 0.0,
            ),
            replay=Replay(training.replay, training.replay_share) if training.replay else None,
            validation=training.validation,
            seed=training.seed,
        )


def run_jobs(jobs: Sequence[Job], log: TrainingLog = NO_LOG) -> None:
    """Train all that are not done yet.

    Args:
        jobs: Runs with equal settings, of pairs of one table.
        log: Where the course of training is noted.

    Raises:
        DefectNetError: A run cannot be started, or one of its processes ended.
    """
    left = [job for job in jobs if not job.done]
    for job in left:
        job.folder.mkdir(parents=True, exist_ok=True)
    if not left:
        return
    if left[0].training.devices == 1:
        for job in left:
            run(job, log)
    else:
        _run_in_processes(left, log)


@contextmanager
def _one_thread(model: DefectModel) -> Iterator[None]:
    """Keep a small network to one thread: more gain nothing, and wait for each other where other programs are at work.

    On a machine that was busy with two of them, two threads took six times as long as one.
    """
    threads = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(job: Job, log: TrainingLog = NO_LOG) -> None:
    """Train, in this process; under several devices, this rank's part.

    Raises:
        LabError: It was stopped by Ctrl-C.
    """
    training, data = job.training, job.data()
    task = FinetuneTask(copy.deepcopy(job.start), spec=data.spec, learning_rate=training.learning_rate)
    with _quiet():
        trainer = _trainer(job, log, stops=data.val is not None)
    last = job.folder / "last.ckpt"
    try:
        with _quiet(), _one_thread(task.model):
            trainer.fit(task, data, ckpt_path=last if last.is_file() else None, weights_only=True)
            if data.val is None:
                trainer.save_checkpoint(last)  # the end is what counts
    except SystemExit as exit_:  # what Lightning makes of Ctrl-C
        raise LabError("fine-tuning was stopped", fix=AGAIN) from exit_
    if trainer.is_global_zero:
        best = job.folder / "best.ckpt"
        model = read_run(best if best.is_file() else last)
        weights = {name: x.contiguous().clone() for name, x in model.state_dict().items()}
        with replacing(job.folder / WEIGHTS) as temporary:
            temporary.write_bytes(to_bytes(weights))
    trainer.strategy.barrier()


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Make SIGTERM an error of this package, in the main thread; elsewhere signals are not ours to handle.

    Python would end without a word, and Lightning, which puts a handler of its own in place while it trains, with exit
    code 0.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: Any) -> None:
    raise LabError(f"fine-tuning was stopped by {signal.Signals(number).name}", fix=AGAIN)


class _OwnHandler(Callback):
    """Puts the handler of SIGTERM back that Lightning has replaced: its own waits for all ranks, which may not hear."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._handler is _stop and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _stop)


class _SeededSteps(Callback):
    """Seeds every step by itself, for dropout: a run that goes on draws what it would have drawn.

    A seed for each rank: with one for all, the same activations would be dropped on every rank. Seeding an epoch would
    not do: loaders draw from the same stream, and of a run that goes on at other times.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rng = row_rng("dropout", self._seed, trainer.global_step, trainer.global_rank)
        torch.manual_seed(int(rng.integers(2**31)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Lightning says at every start, of devices and loaders, from a user who trains a dozen times."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _trainer(job: Job, log: TrainingLog, *, stops: bool) -> Trainer:
    training = job.training
    common: dict[str, Any] = {"dirpath": job.folder, "enable_version_counter": False, "save_top_k": 1}
    callbacks: list[Callback] = [_OwnHandler(), _SeededSteps(training.seed), ProgressLines(job.label)]
    if training.ema:
        callbacks.append(EMAWeightAveraging(decay=training.ema))
    if stops:
        callbacks.append(ModelCheckpoint(monitor="val/loss", filename="best", save_weights_only=True, **common))
        callbacks.append(EarlyStopping("val/loss", patience=training.patience))
    # Not after every epoch: of a small table it takes no longer than writing.
    callbacks.append(ModelCheckpoint(filename="last", every_n_epochs=SAVED_EVERY, **common))
    several = training.devices > 1
    return Trainer(
        accelerator=training.accelerator,
        devices=training.devices,
        strategy="ddp" if several else "auto",
        # Else an environment of a cluster, in which this command may run, would be taken for that of the ranks.
        plugins=[LightningEnvironment()],
        precision=training.precision,  # type: ignore[arg-type]  # checked by the settings
        max_epochs=training.epochs,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=log.logger(job.label.replace(" ", "-")) or False,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job.folder,
    )


def _run_in_processes(jobs: Sequence[Job], log: TrainingLog) -> None:
    """Run jobs on several ranks, one process each, and watch over them.

    Raises:
        LabError: A rank ended before its time; the others have been ended too.
    """
    folder, devices = jobs[0].folder.parent, jobs[0].training.devices
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    work = pickle.dumps((jobs, log))  # tensors by value: else they would go by shared memory, of which there is little
    ranks: list[BaseProcess] = []
    try:
        for rank in range(devices):
            environment = os.environ | common | {"LOCAL_RANK": str(rank)}
            arguments = work, dict(environment), folder / f"rank-{rank}.log"
            ranks.append(forking(__name__).Process(target=_rank, args=arguments))
            ranks[-1].start()
        failed = _first_failure(ranks)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    if failed is not None:
        raise _failure(folder, failed, ranks[failed].exitcode or 0, devices)


def _first_failure(ranks: Sequence[BaseProcess]) -> int | None:
    """Wait for all ranks, or until one fails; return which."""
    left: dict[Any, int] = {process.sentinel: rank for rank, process in enumerate(ranks)}
    while left:
        for sentinel in wait(list(left)):
            rank = left.pop(sentinel)
            ranks[rank].join()
            if ranks[rank].exitcode != 0:
                return rank
    return None


def _failure(folder: Path, rank: int, code: int, devices: int) -> DefectNetError:
    """Say how a rank ended."""
    lines = (folder / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    who = f"process {rank} of {devices} (counted from 0)"
    if code < 0:
        fix = f"{AGAIN}. If memory ran out, use fewer devices"
        return LabError(f"{who} was killed by {signal.Signals(-code).name} while training", fix=fix)
    return LabError(f"{who} ended with code {code}", why=lines[-1][:300] if lines else "no word", fix=AGAIN)


def _rank(work: bytes, environment: dict[str, str], log_file: Path) -> None:
    """Do this rank's part of pickled jobs. What it says of an error goes to a file, of progress to standard error."""
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    progress.stream = os.fdopen(os.dup(2), "w", encoding="utf-8")
    with log_file.open("wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        with stopped_by_sigterm():
            jobs, log = pickle.loads(work)
            for job in jobs:
                run(job, log)
    except DefectNetError as error:
        print(str(error).replace("\n", " "), file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
