"""``defectnet finetune``: learn from a lab's own pairs, judge on pairs held out, keep the better network."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from defectnet.config import Calibration, Settings, bounded
from defectnet.data.candidates import TRACKS, Track
from defectnet.data.module import SpectraDataModule
from defectnet.elements import VOCABULARY, parse_formula
from defectnet.errors import CheckpointError, ConfigError
from defectnet.files import file_sha256, replacing
from defectnet.hub import load, resolve, save
from defectnet.lab.data import EncodedPairs
from defectnet.lab.jobs import RESPONSES, Job, TrainingSettings, run_jobs
from defectnet.lab.judge import Judgement, ask, join, judge
from defectnet.lab.report import REPORT, REPORT_SCHEMA, to_card
from defectnet.lab.splits import FOLDS, MANY_GROUPS, folds, groups_of, hold_out
from defectnet.lab.table import TABLE, LabPair, read_table
from defectnet.measure.encode import stack
from defectnet.models.base import DefectModel
from defectnet.tasks.losses import expected_concentration
from defectnet.tasks.metrics import Answers, answer
from defectnet.uncertainty.calibration import best_threshold, fit_interval, fit_temperature

MIN_CALIBRATION: Final = 20
"""Pairs, and dopants in them, from which on probabilities and intervals are fitted to the lab's own spectra."""

_GOLDEN_ROWS: Final = 2
_FORGETTING_ROWS: Final = 256


@dataclass(frozen=True)
class Holdout(Settings, called="holdout"):
    """What is held out, to judge by.

    Attributes:
        share: Share of the groups that is held out where there are many.
        folds: Turns in which all groups are held out; 0 decides by their number (see `defectnet.lab.splits`), 1 holds
            out `share` once.
        group: ``sample``, ``host`` or ``auto``.
    """

    share: float = bounded(0.25, above=0.0, below=1.0)
    folds: int = bounded(0, 0)
    group: str = "auto"

    def parts(self, pairs: Sequence[LabPair], groups: Sequence[str], seed: int) -> list[list[int]]:
        """Return the positions of the pairs that are held out, for each turn."""
        count = len(set(groups))
        turns = self.folds or (1 if count >= MANY_GROUPS else min(FOLDS, count))
        if turns > 1:
            return folds(groups, turns, seed)
        _, out = hold_out(pairs, groups, self.share, seed)
        return [[i for i, pair in enumerate(pairs) if pair in out]]


def finetune(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    training: TrainingSettings = TrainingSettings(),  # noqa: B008
    holdout: Holdout = Holdout(),
) -> dict[str, Any]:
    """Fine-tune a checkpoint on a table of lab spectra and write the better network as a checkpoint.

    A run that was interrupted goes on where it was, when it is started again with the same arguments.

    Args:
        checkpoint: A bundled name, a folder, or org/repo on the Hugging Face Hub.
        data: The table, or the folder that holds it as ``pairs.csv``.
        out: Folder to write; a checkpoint that lies there is replaced.
        training: How to train.
        holdout: What to judge by.

    Returns:
        The report, as it also stands in ``finetune.json`` of the folder: errors before and after on held-out pairs,
        the verdict, and which network was kept.

    Raises:
        LabError: The table cannot be used, or a process of the training ended.
        CheckpointError: The checkpoint is not found, or `out` holds something else.
        ConfigError: A setting has a value that it cannot have.
    """
    begin = time.monotonic()
    study = _prepared(checkpoint, data, out, training, holdout)
    jobs = [study.job(number, part) for number, part in enumerate(study.parts)]
    run_jobs(jobs)
    judgement, answers = _judged(study, jobs)
    tuned = None
    if judgement.verdict == "improved":
        last = jobs[0] if len(jobs) == 1 else study.job(len(jobs), ())
        run_jobs([last])
        tuned = last.result()
    report = _report(study, judgement)
    calibration, says = _calibration(study.base, tuned, answers)
    report["calibration"] = {"fitted": calibration is not study.base.calibration, "says": says}
    report["forgetting"] = _forgetting(study.base, tuned, study.training)
    report["seconds"] = round(time.monotonic() - begin, 1)
    _write(study, tuned, calibration, report)
    shutil.rmtree(study.work)
    return report


@dataclass(frozen=True)
class _Study:
    """Everything that is settled before training.

    Attributes:
        base: The network to start from.
        source: Its folder.
        table: Path of the table.
        pairs: Its rows.
        groups: Group of each pair.
        grouping: ``sample`` or ``host``.
        parts: Positions of the pairs that are held out, for each turn.
        training: How to train.
        target: Folder to write.
    """

    base: DefectModel
    source: Path
    table: Path
    pairs: list[LabPair]
    groups: list[str]
    grouping: str
    parts: list[list[int]]
    training: TrainingSettings
    target: Path

    @property
    def work(self) -> Path:
        """Where training leaves its state."""
        return self.target.with_name(f".{self.target.name}.run")

    def job(self, number: int, held_out: Sequence[int]) -> Job:
        """Return the run that learns from what is not held out."""
        rows = tuple(sorted(set(range(len(self.pairs))) - set(held_out)))
        return Job(str(self.work / f"run-{number}"), str(self.source), str(self.table), rows, self.training)


def _prepared(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    training: TrainingSettings,
    holdout: Holdout,
) -> _Study:
    """Check all that can be checked before any work is done, and only then enter the folder of the runs."""
    target = _checked_target(out)
    folder, name = resolve(checkpoint)
    source = folder.resolve()
    if target == source:
        raise CheckpointError(f"{target} is the checkpoint to start from", fix="Give another folder to write to")
    base = load(source)
    base.name = name
    table = Path(data) / TABLE if Path(data).is_dir() else Path(data)
    pairs = read_table(data, grid=base.spec.grid)
    groups, grouping = groups_of(pairs, holdout.group)
    parts = holdout.parts(pairs, groups, training.seed)
    _check_sizes(pairs, parts, training)
    settled = _with_absolute_replay(training)
    study = _Study(base, source, table.resolve(), pairs, groups, grouping, parts, settled, target)
    if settled.method == RESPONSES:
        for part in parts:
            study.job(0, part).result()  # a second's work, and the error of too few pairs comes before any folder
    _enter(study.work, _fingerprint(source, pairs, settled, holdout))
    return study


def _checked_target(out: str | os.PathLike[str]) -> Path:
    """Return the folder to write to, before any work is done for it."""
    target = Path(out).expanduser().resolve()
    if target.exists() and not (target / "config.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is no checkpoint", fix="Give a new folder")
    return target


def _check_sizes(pairs: Sequence[LabPair], parts: Sequence[Sequence[int]], training: TrainingSettings) -> None:
    # A fifth of the samples may be kept aside to stop by, and every device needs one of those, too.
    least = min(len(pairs) - len(part) for part in parts)
    if training.devices > 1 and least < 10 * training.devices:
        raise ConfigError(
            f"devices is {training.devices}, with {least} pairs to learn from",
            fix="Give ten pairs for each device, or use fewer devices: so few pairs train faster on one",
        )


def _with_absolute_replay(training: TrainingSettings) -> TrainingSettings:
    if training.replay is None:
        return training
    folder = Path(training.replay).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"replay folder {folder} does not exist", fix="Give a folder of simulated shards")
    return replace(training, replay=str(folder.resolve()))


def _fingerprint(source: Path, pairs: Sequence[LabPair], training: TrainingSettings, holdout: Holdout) -> str:
    """Return what an interrupted run must agree in to be gone on with."""
    files = [file_sha256(spectrum.source) for pair in pairs for spectrum in (pair.host, pair.doped)]
    rows = [[p.key, p.formula, p.dopants, p.candidates, p.weight, p.resolution_mev] for p in pairs]
    read = [[p.host.kind, p.host.element, p.host.unit, p.doped.unit] for p in pairs]
    config = (source / "config.json").read_text(encoding="utf-8")
    everything = [version("defectnet"), config, files, rows, read, training.to_dict(), holdout.to_dict()]
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def _enter(work: Path, fingerprint: str) -> None:
    """Make the folder of the runs, or go back into it if it is of the same fine-tuning."""
    mark = work / "fingerprint"
    if work.exists() and not mark.is_file() and (not work.is_dir() or any(work.iterdir())):
        raise ConfigError(f"{work} exists and is no unfinished fine-tuning", fix="Move it away, or give another --out")
    if work.exists() and not (mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    with replacing(mark) as temporary:
        temporary.write_text(fingerprint, encoding="utf-8")


def _judged(study: _Study, jobs: Sequence[Job]) -> tuple[Judgement, dict[Track, Answers]]:
    """Ask the network before and after about the held-out pairs; return the judgement and the answers after."""
    before, after = [], []
    for part, job in zip(study.parts, jobs, strict=True):
        held_out = [study.pairs[i] for i in part]
        before.append((part, ask(study.base, held_out)))
        after.append((part, ask(job.result(), held_out)))
    answers = join(after)
    asked = [study.groups[i] for i in sorted(i for part in study.parts for i in part)]
    return judge(join(before), answers, asked, study.base.loss, study.training.seed), answers


def _report(study: _Study, judgement: Judgement) -> dict[str, Any]:
    settings = study.training.to_dict()
    # A report travels; the path of a folder on this machine does not.
    settings["replay"] = Path(study.training.replay).name if study.training.replay else None
    return {
        "schema": REPORT_SCHEMA,
        "checkpoint": study.base.name,
        "pairs": len(study.pairs),
        "samples": len({pair.sample for pair in study.pairs}),
        "systems": sorted({pair.system for pair in study.pairs}),
        "kind": study.pairs[0].host.kind,
        "grouped_by": study.grouping,
        "folds": len(study.parts) if len(study.parts) > 1 else 0,
        "pairs_held_out": sum(map(len, study.parts)),
        "held_out": judgement.to_dict(),
        "verdict": judgement.verdict,
        "kept": "after" if judgement.verdict == "improved" else "before",
        "settings": settings,
        "versions": {name: version(name) for name in ("defectnet", "lightning", "torch")},
    }


def _write(study: _Study, tuned: DefectModel | None, calibration: Calibration | None, report: dict[str, Any]) -> None:
    """Write the checkpoint, and the report beside it."""
    model, target = tuned or study.base, study.target
    encoded = EncodedPairs(study.pairs[:_GOLDEN_ROWS], model.spec.grid)
    tracks = TRACKS if model.loss != "paper" else TRACKS[:1]
    golden = stack([encoded.item(range(len(encoded)), track).batch for track in tracks])
    record = _training_record(study.base, study.pairs if tuned else (), report)
    save(model, target, golden=golden, card=to_card(target.name, report), training=record, calibration=calibration)
    with replacing(target / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _calibration(
    base: DefectModel, tuned: DefectModel | None, answers: dict[Track, Answers]
) -> tuple[Calibration | None, str]:
    """Fit temperatures, thresholds and the interval to answers on held-out pairs, if there are enough."""
    old = base.calibration
    if tuned is None:
        return old, "Calibration is that of the network that is kept."
    rows = len(answers["candidates"].batch.host)
    dopants = int(answers["candidates"].targets.present.sum())
    if rows < MIN_CALIBRATION or dopants < MIN_CALIBRATION:
        return old, (
            f"Calibration is taken over from {base.name}: {rows} held-out pairs with {dopants} dopants are too few to "
            f"fit it ({MIN_CALIBRATION} each). Probabilities and intervals are not calibrated for these weights."
        )
    numbers: dict[str, Any] = {}
    predicted, true = list[np.ndarray](), list[np.ndarray]()
    for track, found in answers.items():
        asked, present = found.batch.candidates, found.targets.present
        logits = found.output.identity_logits[asked]
        temperature = fit_temperature(logits, present[asked])
        numbers[f"temperature_{track}"] = temperature
        numbers[f"threshold_{track}"] = best_threshold(torch.sigmoid(logits / temperature), present[asked])
        predicted.append(found.output.concentration[present].double().numpy())
        true.append(found.targets.concentration[present].double().numpy())
    coverage = old.interval.coverage if old is not None and old.interval is not None else 0.9
    interval = fit_interval(np.concatenate(predicted), np.concatenate(true), coverage)
    return Calibration(**numbers, interval=interval), (
        f"Calibration is fitted to the answers to {rows} held-out pairs with {dopants} dopants; intervals hold for "
        "spectra and samples like these."
    )


def _forgetting(base: DefectModel, tuned: DefectModel | None, training: TrainingSettings) -> dict[str, Any] | None:
    """Return the error on simulated crystals before and after, where such are at hand."""
    if tuned is None or training.replay is None:
        return None
    loader = SpectraDataModule(training.replay, batch_size=64, grid=base.spec.grid).evaluation("val", "candidates")
    items = []
    for item in loader:
        items.append(item)
        if sum(len(found.rows) for found in items) >= _FORGETTING_ROWS:
            break
    numbers = {"rows": float(sum(len(item.rows) for item in items))}
    for side, model in (("before", base), ("after", tuned)):
        found = answer(model.predict_batch, items)
        error = expected_concentration(found.output, model.loss) - found.targets.concentration
        numbers[side] = 100.0 * float(error.abs()[found.batch.candidates].mean())
    return numbers | {"rows": int(numbers["rows"])}


def _training_record(base: DefectModel, pairs: Sequence[LabPair], report: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the network that was started from, widened by what has been seen since."""
    record = dict(base.training_info)
    if pairs and "edge_mev" in record:
        edges = EncodedPairs(pairs, base.spec.grid).batch.edge_mev.double().tolist()
        low, high = record["edge_mev"]
        record["edge_mev"] = [min(low, *edges), max(high, *edges)]
    if pairs and "host_elements" in record:
        seen = {symbol for pair in pairs for symbol in parse_formula(pair.formula)} | set(record["host_elements"])
        record["host_elements"] = [symbol for symbol in VOCABULARY if symbol in seen]
    kept = {key: report[key] for key in ("checkpoint", "pairs", "samples", "verdict", "kept", "settings")}
    record["finetuning"] = kept | {"calibration_fitted": report["calibration"]["fitted"]}
    return record
