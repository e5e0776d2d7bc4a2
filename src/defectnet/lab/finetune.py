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

import torch

from defectnet.config import Settings, bounded
from defectnet.data.candidates import Track
from defectnet.data.module import SpectraDataModule
from defectnet.elements import VOCABULARY, parse_formula
from defectnet.errors import CheckpointError, ConfigError
from defectnet.files import file_sha256, home_expanded, locked, replacing
from defectnet.hub import load, resolve, save
from defectnet.hub.io import check_replaceable
from defectnet.lab.data import EncodedPairs
from defectnet.lab.jobs import RESPONSES, Job, TrainingSettings, run_jobs, stopped_by_sigterm
from defectnet.lab.judge import Judgement, ask, join, judge
from defectnet.lab.progress import TrainingLog, say
from defectnet.lab.report import REPORT, REPORT_SCHEMA, to_card
from defectnet.lab.splits import FOLDS, MANY_GROUPS, folds, groups_of, hold_out
from defectnet.lab.table import LabPair, read_table
from defectnet.measure.encode import stack
from defectnet.models.answers import Answers, answer
from defectnet.models.base import DefectModel
from defectnet.models.calibration import Calibration, HostCalibration, fit_calibration
from defectnet.models.measured import MEASURED, MeasuredResponses

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

    def parts(self, groups: Sequence[str], seed: int) -> list[list[int]]:
        """Return the positions of the pairs that are held out, for each turn."""
        count = len(set(groups))
        turns = self.folds or (1 if count >= MANY_GROUPS else min(FOLDS, count))
        return folds(groups, turns, seed) if turns > 1 else [hold_out(groups, self.share, seed)]


def finetune(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    training: TrainingSettings = TrainingSettings(),  # noqa: B008
    holdout: Holdout = Holdout(),
    logger: str = "auto",
) -> dict[str, Any]:
    """Fine-tune a checkpoint on a table of lab spectra and write the better network as a checkpoint.

    A run that was interrupted goes on where it was, when it is started again with the same arguments, and ends as if it
    had not been. Lines on standard error say where it stands; training is noted by a logger in ``<out>-logs``.

    Args:
        checkpoint: A bundled name, a folder, or org/repo on the Hugging Face Hub.
        data: The table, or the folder that holds it as ``pairs.csv``.
        out: Folder to write; a checkpoint that lies there is replaced.
        training: How to train.
        holdout: What to judge by.
        logger: One of `defectnet.lab.progress.LOGGERS`.

    Returns:
        The report, as it also stands in ``finetune.json`` of the folder: errors before and after on held-out pairs,
        the verdict, and which network was kept.

    Raises:
        LabError: The table cannot be used, a process of the training ended, or this one was told to (SIGTERM).
        CheckpointError: The checkpoint is not found, or `out` holds something else.
        ConfigError: A setting has a value that it cannot have, or another process fine-tunes into `out`.
    """
    target = check_replaceable(out)
    with stopped_by_sigterm(), locked(target, "fine-tuning"):
        begin = time.monotonic()
        study = _prepared(checkpoint, data, target, training, holdout, logger)
        if training.method != RESPONSES and study.log.chosen != "none":
            say(f"training is noted in {study.log.folder} ({study.log.chosen})")
        jobs = [study.job(number, part) for number, part in enumerate(study.parts)]
        run_jobs(jobs, study.log)
        judgement, answers, measured = _judged(study, jobs)
        tuned = None
        if judgement.verdict == "improved":
            last = jobs[0] if len(jobs) == 1 else study.job(len(jobs), ())
            run_jobs([last], study.log)
            tuned = last.result()
        report = _report(study, judgement)
        kept = tuned or study.base
        kept.calibration, report["calibration"] = _calibration(study, tuned, answers, measured)
        report["forgetting"] = _forgetting(study.base, tuned, study.training)
        report["seconds"] = round(time.monotonic() - begin, 1)
        _write(study, tuned, report)
        shutil.rmtree(study.work)
    return report


@dataclass(frozen=True)
class _Study:
    """Everything that is settled before training.

    Attributes:
        base: The network to start from.
        pairs: Rows of the table, on its grid.
        groups: Group of each pair.
        grouping: ``sample`` or ``host``.
        parts: Positions of the pairs that are held out, for each turn.
        training: How to train.
        target: Folder to write.
        log: Where the course of training is noted.
    """

    base: DefectModel
    pairs: EncodedPairs
    groups: list[str]
    grouping: str
    parts: list[list[int]]
    training: TrainingSettings
    target: Path
    log: TrainingLog

    @property
    def work(self) -> Path:
        """Where training leaves its state."""
        return self.target.with_name(f".{self.target.name}.run")

    def job(self, number: int, held_out: Sequence[int]) -> Job:
        """Return the run that learns from what is not held out."""
        rows = sorted(set(range(len(self.pairs))) - set(held_out))
        turns = len(self.parts)
        label = "all pairs" if not held_out else f"fold {number + 1} of {turns}" if turns > 1 else "holdout"
        return Job(label, self.work / f"run-{number}", self.base, self.pairs.take(rows), self.training)


def _prepared(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str],
    target: Path,
    training: TrainingSettings,
    holdout: Holdout,
    logger: str,
) -> _Study:
    """Check all that can be checked before any work is done, and only then enter the folder of the runs."""
    folder, name = resolve(checkpoint)
    source = folder.resolve()
    if target == source:
        raise CheckpointError(f"{target} is the checkpoint to start from", fix="Give another folder to write to")
    base = load(source)
    base.name = name
    pairs = EncodedPairs(read_table(data, grid=base.spec.grid), base.spec.grid)
    groups, grouping = groups_of(pairs.pairs, holdout.group)
    parts = holdout.parts(groups, training.seed)
    _check_sizes(len(pairs), parts, training)
    settled = _with_absolute_replay(training)
    log = TrainingLog(logger, target.with_name(f"{target.name}-logs"))
    study = _Study(base, pairs, groups, grouping, parts, settled, target, log)
    if settled.method == RESPONSES:
        for number, part in enumerate(parts):
            study.job(number, part).result()  # a second's work: too few pairs are noticed before any folder is made
    _enter(study.work, _fingerprint(source, pairs.pairs, settled, holdout))
    return study


def _check_sizes(pairs: int, parts: Sequence[Sequence[int]], training: TrainingSettings) -> None:
    # A fifth of the samples may be kept aside to stop by, and every device needs one of those, too.
    least = min(pairs - len(part) for part in parts)
    if training.devices > 1 and least < 10 * training.devices:
        raise ConfigError(
            f"devices is {training.devices}, with {least} pairs to learn from",
            fix="Give ten pairs for each device, or use fewer devices: so few pairs train faster on one",
        )


def _with_absolute_replay(training: TrainingSettings) -> TrainingSettings:
    if training.replay is None:
        return training
    folder = home_expanded(training.replay)
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


def _judged(study: _Study, jobs: Sequence[Job]) -> tuple[Judgement, dict[Track, Answers], dict[str, list[int]]]:
    """Ask the network before and after about the held-out pairs.

    Returns:
        The judgement; the answers after, in order of the table; and for each host that fine-tuning is about, named by
        formula, the rows of these answers that speak of it.
    """
    before, after, hosts = [], [], dict[int, str]()
    for part, job in zip(study.parts, jobs, strict=True):
        if study.training.method == RESPONSES:
            say(f"{job.label}: measuring responses")
        held_out, tuned = study.pairs.take(part), job.result()
        before.append((part, ask(study.base, held_out)))
        after.append((part, ask(tuned, held_out)))
        for row, provenance in zip(part, tuned.provenance(held_out.batch), strict=True):
            if study.training.method != RESPONSES or provenance.answered_by == MEASURED:
                hosts[row] = study.pairs.pairs[row].formula
    answers = join(after)
    asked = sorted(i for part in study.parts for i in part)
    rows: dict[str, list[int]] = {}
    for place, row in enumerate(asked):
        if row in hosts:
            rows.setdefault(hosts[row], []).append(place)
    judgement = judge(join(before), answers, [study.groups[i] for i in asked], study.training.seed)
    return judgement, answers, rows


def _report(study: _Study, judgement: Judgement) -> dict[str, Any]:
    settings = study.training.to_dict()
    # A report travels; the path of a folder on this machine does not.
    settings["replay"] = Path(study.training.replay).name if study.training.replay else None
    return {
        "schema": REPORT_SCHEMA,
        "checkpoint": study.base.name,
        "pairs": len(study.pairs),
        "samples": len({pair.sample for pair in study.pairs.pairs}),
        "systems": sorted({pair.system for pair in study.pairs.pairs}),
        "hosts": _formulas(study.pairs),
        "kind": study.pairs.kinds[0],
        "grouped_by": study.grouping,
        "folds": len(study.parts) if len(study.parts) > 1 else 0,
        "pairs_held_out": sum(map(len, study.parts)),
        "held_out": judgement.to_dict(),
        "verdict": judgement.verdict,
        "kept": "after" if judgement.verdict == "improved" else "before",
        "settings": settings,
        "versions": {name: version(name) for name in ("defectnet", "lightning", "torch")},
    }


def _write(study: _Study, tuned: DefectModel | None, report: dict[str, Any]) -> None:
    """Write the checkpoint, and the report beside it."""
    model, target = tuned or study.base, study.target
    encoded = study.pairs.take(range(min(_GOLDEN_ROWS, len(study.pairs))))
    golden = stack([encoded.item(range(len(encoded)), track).batch for track in model.tracks])
    record = _training_record(study.base, study.pairs if tuned else None, report)
    save(model, target, golden=golden, card=to_card(target.name, report), training=record)
    with replacing(target / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _formulas(pairs: EncodedPairs) -> list[str]:
    return list(dict.fromkeys(pair.formula for pair in pairs.pairs))


def _calibration(
    study: _Study, tuned: DefectModel | None, answers: dict[Track, Answers], rows: dict[str, list[int]]
) -> tuple[Calibration | None, dict[str, Any]]:
    """Fit a calibration for each host of the table to answers on held-out pairs; all others keep the old one.

    A host with too few pairs for one of its own shares one with the other hosts of the table.
    """
    old = study.base.calibration
    if tuned is None:
        return old, {"fitted": False, "says": "Calibration is that of the network that is kept."}
    coverage = old.interval.coverage if old is not None and old.interval is not None else 0.9
    everything = [row for inside in rows.values() for row in inside]
    shared = _fitted(answers, everything, coverage)
    found: list[HostCalibration] = []
    says, together = list[str](), list[str]()
    for formula, kind, measured in _hosts(study, tuned):
        own = _fitted(answers, rows.get(formula, []), coverage)
        if own is not None:
            says.append(f"Calibration of {formula} is fitted to {len(rows[formula])} held-out pairs of it.")
        elif shared is not None:
            together.append(formula)
        else:
            continue
        found.append(HostCalibration(formula, kind, own or shared or Calibration(), measured))
    if not found:
        why = f"{len(everything)} held-out pairs are too few to fit it ({MIN_CALIBRATION}, and as many dopants)"
        text = f"Calibration is taken over from {study.base.name}: {why}. It says little of answers about these hosts."
        return old, {"fitted": False, "says": text}
    if together:
        says.append(f"Calibration of {', '.join(together)} is fitted to all {len(everything)} held-out pairs together.")
    says.append(f"It holds for spectra and samples like these; all other hosts keep the one of {study.base.name}.")
    bounds = {
        text: [h.formula for h in found if text in h.numbers.at_bounds] for h in found for text in h.numbers.at_bounds
    }
    says += [f"Of {', '.join(formulas)}, {text}." for text, formulas in bounds.items()]
    new = {(host.formula, host.kind) for host in found}
    kept = [host for host in (old.hosts if old else ()) if (host.formula, host.kind) not in new]
    return replace(old or Calibration(), hosts=(*found, *kept)), {"fitted": True, "says": " ".join(says)}


def _fitted(answers: dict[Track, Answers], rows: Sequence[int], coverage: float) -> Calibration | None:
    """Fit to some rows; None if they, or the dopants in them, are too few."""
    chosen: dict[str, Answers] = {
        track: found.rows(torch.tensor(rows, dtype=torch.long)) for track, found in answers.items()
    }
    dopants = int(chosen["candidates"].targets.present.sum())
    if len(rows) < MIN_CALIBRATION or dopants < MIN_CALIBRATION:
        return None
    return fit_calibration(chosen, coverage)


def _hosts(study: _Study, tuned: DefectModel) -> list[tuple[str, str, int]]:
    """Return formula, kind of DOS, and number among the measured hosts, of each host that fine-tuning is about."""
    if isinstance(tuned, MeasuredResponses):
        owners = tuned.host_of(study.pairs.batch).tolist()
        first = {owner: study.pairs.pairs[row] for row, owner in reversed(list(enumerate(owners))) if owner >= 0}
        return [(pair.formula, pair.host.kind, owner) for owner, pair in sorted(first.items())]
    return [(formula, study.pairs.kinds[0], -1) for formula in _formulas(study.pairs)]


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
        found = answer(model, items)
        error = found.expected_concentration - found.targets.true_concentration
        numbers[side] = 100.0 * float(error.abs()[found.batch.candidates].mean())
    return numbers | {"rows": int(numbers["rows"])}


def _training_record(base: DefectModel, pairs: EncodedPairs | None, report: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the network that was started from, widened by what has been seen since."""
    record = dict(base.training_info)
    if pairs is not None and "edge_mev" in record:
        edges = pairs.batch.edge_mev.double().tolist()
        low, high = record["edge_mev"]
        record["edge_mev"] = [min(low, *edges), max(high, *edges)]
    if pairs is not None and "host_elements" in record:
        seen = {symbol for formula in _formulas(pairs) for symbol in parse_formula(formula)}
        record["host_elements"] = [symbol for symbol in VOCABULARY if symbol in seen | set(record["host_elements"])]
    kept = {key: report[key] for key in ("checkpoint", "pairs", "samples", "hosts", "verdict", "kept", "settings")}
    record["finetuning"] = kept | {"calibration_fitted": report["calibration"]["fitted"]}
    return record
