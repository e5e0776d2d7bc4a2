"""One training run of a fine-tuning, and the processes that share it.

With one device a run happens in this process. With more, each device has a process of its own, started and watched
from here: this process is none of the ranks, so that it notices the end of any of them, ends the others, and says so.
Training leaves its state in the run's folder every few epochs; the same call again goes on from there.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from defectnet.config import Settings, bounded
from defectnet.data.candidates import TrackSettings
from defectnet.errors import ConfigError, DefectNetError, LabError
from defectnet.export import read_run
from defectnet.files import replacing
from defectnet.hub import from_pretrained
from defectnet.lab.data import EncodedPairs, LabDataModule, Replay
from defectnet.lab.table import read_table
from defectnet.models.base import DefectModel
from defectnet.models.measured import MeasuredResponses
from defectnet.tasks.finetuning import METHODS, FinetuneTask

WEIGHTS: Final = "weights.safetensors"
"""What a finished run leaves."""

RESPONSES: Final = "responses"
"""The method that is no training."""

SAVED_EVERY: Final = 5
"""Epochs after which a run that is killed goes on."""

SMALL: Final = 1_000_000
"""Parameters of a network that one thread serves best."""

ENDED_WITH_PARENT: Final = 3  # exit code of a rank whose parent is gone
_PLAN = "plan.json"
_RANK = ("-m", "defectnet.lab.jobs")  # what a rank runs
_AGAIN: Final = "Give the same command again: it goes on from the last checkpoint"


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How a network is trained further.

    Attributes:
        method: ``head``, ``gradual``, ``full`` or ``l2sp``; or ``responses``, which measures how each dopant changes
            the spectrum of a host (`defectnet.models.measured`) and trains nothing, so that other settings say nothing.
        epochs: Most epochs; an epoch asks one question about every pair.
        learning_rate: Peak learning rate; the method's own if None.
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

    method: str = bounded("l2sp", choices=(*METHODS, RESPONSES))
    epochs: int = bounded(60, 1)
    learning_rate: float | None = bounded(None, above=0.0, most=1.0)
    batch_size: int = bounded(8, 1)
    patience: int = bounded(40, 1)
    validation: float = bounded(0.0, 0.0, below=1.0)
    ema: float = bounded(0.0, 0.0, below=1.0)
    replay: str | None = None
    replay_share: float = bounded(0.5, 0.0, below=1.0)
    seed: int = 0
    devices: int = bounded(1, 1)
    accelerator: str = bounded("auto", choices=("auto", "cpu", "gpu"))
    precision: str = bounded("32-true", choices=("32-true", "bf16-mixed"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == RESPONSES and self.devices > 1:
            raise ConfigError(f"devices is {self.devices} with method {RESPONSES}", fix="It takes a second on one")
        found = torch.cuda.device_count()
        if found < self.devices and (self.accelerator == "gpu" or (found and self.accelerator == "auto")):
            raise ConfigError(f"devices is {self.devices}, with {found} GPUs", fix="Use fewer, or accelerator cpu")


@dataclass(frozen=True)
class Job(Settings):
    """One training run.

    Attributes:
        folder: Where its state and its result lie.
        checkpoint: Folder of the network to start from.
        table: Table of the pairs.
        rows: Positions in the table of the pairs to learn from.
        training: How.
    """

    folder: str
    checkpoint: str
    table: str
    rows: tuple[int, ...]
    training: TrainingSettings

    def result(self) -> DefectModel:
        """Return the trained network, in evaluation mode."""
        if self.training.method == RESPONSES:
            return _measured(self)
        task = FinetuneTask(self.checkpoint, self.training.method, spec=_data(self).spec)
        task.model.load_state_dict(load_file(Path(self.folder) / WEIGHTS), strict=True)
        return task.model.eval()

    @property
    def done(self) -> bool:
        """Whether the run has ended."""
        return self.training.method == RESPONSES or (Path(self.folder) / WEIGHTS).is_file()


def _measured(job: Job) -> DefectModel:
    model = from_pretrained(Path(job.checkpoint))
    table = read_table(job.table, grid=model.spec.grid)
    pairs = EncodedPairs([table[i] for i in job.rows], model.spec.grid)
    weight = torch.tensor([pair.weight for pair in pairs.pairs])
    return MeasuredResponses.fit(model, pairs.batch, pairs.targets, weight / weight.mean())


def run_jobs(jobs: Sequence[Job]) -> None:
    """Train all that are not done yet.

    Args:
        jobs: Runs with equal settings of devices.

    Raises:
        DefectNetError: A run cannot be started, or one of its processes ended.
    """
    left = [job for job in jobs if not job.done]
    for job in left:
        Path(job.folder).mkdir(parents=True, exist_ok=True)
    if not left:
        return
    if left[0].training.devices == 1:
        for job in left:
            run(job)
    else:
        _run_in_processes(left)


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


def run(job: Job) -> None:
    """Train, in this process; under several devices, this rank's part."""
    training, folder = job.training, Path(job.folder)
    # A seed for each rank: with one for all, the same activations would be dropped on every rank.
    torch.manual_seed(1000 * training.seed + int(os.environ.get("LOCAL_RANK", "0")))
    data = _data(job)
    task = FinetuneTask(job.checkpoint, training.method, spec=data.spec, learning_rate=training.learning_rate)
    with _quiet():
        trainer = _trainer(training, folder, stops=data.val is not None)
    last = folder / "last.ckpt"
    with _quiet(), _one_thread(task.model):
        trainer.fit(task, data, ckpt_path=last if last.is_file() else None, weights_only=True)
        if data.val is None:
            trainer.save_checkpoint(last)  # the end is what counts
    if trainer.is_global_zero:
        best = folder / "best.ckpt"
        model = read_run(best if best.is_file() else last)
        weights = {name: x.contiguous().clone() for name, x in model.state_dict().items()}
        with replacing(folder / WEIGHTS) as temporary:
            temporary.write_bytes(to_bytes(weights))
    trainer.strategy.barrier()


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


def _data(job: Job) -> LabDataModule:
    training, model = job.training, from_pretrained(Path(job.checkpoint))
    pairs = read_table(job.table, grid=model.spec.grid)
    chosen = [pairs[i] for i in job.rows]
    return LabDataModule(
        chosen,
        training.batch_size,
        model.spec.grid,
        # The published network cannot be asked without candidates.
        TrackSettings(blind_share=0.0 if model.loss == "paper" else 0.5),
        replay=Replay(training.replay, training.replay_share) if training.replay else None,
        validation=training.validation,
        seed=training.seed,
    )


def _trainer(training: TrainingSettings, folder: Path, *, stops: bool) -> Trainer:
    common: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False, "save_top_k": 1}
    callbacks: list[Callback] = [EMAWeightAveraging(decay=training.ema)] if training.ema else []
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
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _run_in_processes(jobs: Sequence[Job]) -> None:
    """Run jobs on several ranks, one process each, and watch over them.

    Raises:
        LabError: A rank ended before its time; the others have been ended too.
    """
    folder, devices = Path(jobs[0].folder).parent, jobs[0].training.devices
    with replacing(folder / _PLAN) as temporary:
        temporary.write_text(json.dumps([job.to_dict() for job in jobs]), encoding="utf-8")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(devices):
            environment = os.environ | common | {"LOCAL_RANK": str(rank)}
            words = [sys.executable, *_RANK, str(folder / _PLAN)]
            with (folder / f"rank-{rank}.log").open("wb") as log:
                # The pipe is never written to: it ends with this process, and the rank with it.
                ranks.append(subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log))
        failed = _first_failure(ranks)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    if failed is not None:
        raise _failure(folder, failed, ranks[failed].returncode, devices)


def _first_failure(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all ranks, or until one fails; return which, with the others killed."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        waits = {pool.submit(process.wait): rank for rank, process in enumerate(ranks)}
        try:
            for finished in as_completed(waits):
                if finished.result() != 0:
                    return waits[finished]
        finally:
            for process in ranks:  # before the pool is left, which waits for every process
                if process.poll() is None:
                    process.kill()
    return None


def _failure(folder: Path, rank: int, code: int, devices: int) -> DefectNetError:
    """Say how a rank ended."""
    lines = (folder / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    who = f"process {rank} of {devices} (counted from 0)"
    if code < 0:
        fix = f"{_AGAIN}. If memory ran out, use fewer devices"
        return LabError(f"{who} was killed by {signal.Signals(-code).name} while training", fix=fix)
    return LabError(f"{who} ended with code {code}", why=lines[-1][:300] if lines else "no word", fix=_AGAIN)


def _end_with_parent() -> None:
    """End this rank when the process that started it is gone, however it went."""

    def watch() -> None:
        # Not through sys.stdin: a thread that holds its lock would abort the interpreter at its end.
        while os.read(0, 1):
            pass
        os._exit(ENDED_WITH_PARENT)

    threading.Thread(target=watch, daemon=True).start()


def _main(plan: str) -> None:
    _end_with_parent()
    try:
        for job in json.loads(Path(plan).read_text(encoding="utf-8")):
            run(Job.from_dict(job))
    except DefectNetError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        raise SystemExit(2) from None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1])
