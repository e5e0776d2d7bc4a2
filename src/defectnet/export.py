"""From the state of a training run to a checkpoint that can be published: ``defectnet export``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from defectnet.batch import Batch
from defectnet.data.candidates import CONDITIONS, OPEN_SHARE, TRACKS, Track, TrackSettings
from defectnet.data.dataset import ShardIndex
from defectnet.data.module import LoaderSettings, SpectraDataModule
from defectnet.data.shards import AS_IS, Sample, read_shard
from defectnet.elements import VOCABULARY
from defectnet.errors import CheckpointError, ConfigError
from defectnet.files import file_sha256
from defectnet.hub import save
from defectnet.hub.card import checkpoint_card
from defectnet.hub.io import check_replaceable, round_to_half
from defectnet.measure.encode import stack
from defectnet.models.answers import Answers, answer
from defectnet.models.base import DefectModel
from defectnet.models.calibration import Calibration, fit_calibration
from defectnet.models.registry import architecture
from defectnet.tasks.defect import CHECKPOINT_KEY

_PREFIX = "model."
_GOLDEN_ROWS = 4
FAULTY = "train"
"""Condition with the faults of raw files, under which false alarms are counted."""


def export(
    checkpoint: str | Path,
    folder: str | Path,
    data: str | Path,
    *,
    extra: Sequence[str] = (),
    card: str | None = None,
    coverage: float = 0.9,
    half: bool = False,
    known: Mapping[str, str] | None = None,
) -> Path:
    """Calibrate a trained network on the validation crystals and write it as a checkpoint folder.

    Args:
        checkpoint: The .ckpt of a training run.
        folder: Folder to write, for instance ``checkpoints/defectnet-small``.
        data: Folder of shards that the network was trained on.
        extra: Further data sets whose training rows it was trained on.
        card: Text of README.md; by default a short one that says how it was made.
        coverage: Nominal coverage of the concentration's intervals.
        half: Round the weights to half precision, which halves the file; outputs change in the third or fourth digit.
        known: Folders of shards, and of the responses of their hosts as another potential computes them: for networks
            that read computed responses, answers to these questions have a calibration of their own.

    Returns:
        The folder; it has been read back and gives the same outputs.

    Raises:
        CheckpointError: The .ckpt is not whole, or not of this package; or `folder` holds something else.
        ShardError: The data cannot be used.
    """
    check_replaceable(folder)  # before minutes of work
    model = read_run(checkpoint)
    if half:
        round_to_half(model)
    loader = LoaderSettings(cache_rows=100_000)
    module = SpectraDataModule(str(data), grid=model.spec.grid, loader=loader, extra=dict.fromkeys(extra, 1))
    others = [
        SpectraDataModule(name, grid=model.spec.grid, loader=loader, responses=[responses])
        for name, responses in (known or {}).items()
    ]
    model.calibration = calibration = calibrate(model, module, coverage, known=others)
    golden = stack([_first_rows(module, track, "lab" if i else "clean") for i, track in enumerate(TRACKS)])
    training = training_record(module, Path(checkpoint))
    about = {**model.config, "calibration": calibration.to_dict(), "training": training}
    text = card or checkpoint_card(Path(folder).name, about, sum(p.numel() for p in model.parameters()))
    return save(model, folder, golden=golden, card=text, training=training, half=half)


def read_run(checkpoint: str | Path) -> DefectModel:
    """Read the network of a .ckpt, without running anything that is in it.

    Raises:
        CheckpointError: The file is missing, damaged, holds other objects than tensors and plain values, or is not
            a run of this package.
    """
    path = Path(checkpoint)
    fix = "Give the .ckpt of a `defectnet fit` run"
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", fix=fix)
    if torch.torch_version.TorchVersion(torch.__version__) < "2.6":  # as versions, not as text
        raise CheckpointError(
            f"{path} is not read with torch {torch.__version__}",
            why="before 2.6 a file can run code while it is read (CVE-2025-32434)",
            fix="pip install 'torch>=2.6'",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of bytes that are no run, torch's reader raises whatever it stumbles over
        why = str(error).partition("\n")[0][:160]
        raise CheckpointError(f"{path} is damaged, or no run", why=why, fix=fix) from error
    config: Any = state.get(CHECKPOINT_KEY) if isinstance(state, dict) else None
    whole = isinstance(config, dict) and {"architecture", "spec", "net"} <= set(config)
    if not whole or not isinstance(state.get("state_dict"), dict):
        raise CheckpointError(f"{path} is no training run of defectnet", fix=fix)
    try:
        model = architecture(config["architecture"]).from_config(config["spec"], config["net"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error
    weights = {k.removeprefix(_PREFIX): v for k, v in state["state_dict"].items() if str(k).startswith(_PREFIX)}
    try:
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: weights do not fit the network", why=str(error)[:160], fix=fix) from error
    return model.eval()


def calibrate(
    model: DefectModel,
    module: SpectraDataModule,
    coverage: float = 0.9,
    *,
    known: Sequence[SpectraDataModule] = (),
) -> Calibration:
    """Fit temperature and threshold of each track, and the intervals, on the validation split.

    Lists are as in training, complete or open. Networks that tell what is not in the list get the thresholds of stated
    rates of false alarms, on undoped samples and on lists without a true dopant, with the faults that training shows;
    others those of the largest F1, under `CONDITIONS`.

    Args:
        model: Trained network.
        module: Its data.
        coverage: Nominal coverage of the interval.
        known: Data with computed responses, for the calibration of answers to questions with them.
    """
    general = _calibration(model, [module], model.tracks, coverage)
    if not known:
        return general
    return replace(general, computed=_calibration(model, known, TRACKS[:1], coverage))


def _calibration(
    model: DefectModel, modules: Sequence[SpectraDataModule], tracks: Sequence[Track], coverage: float
) -> Calibration:
    def asked(track: Track, *conditions: str, **settings: Any) -> Answers:
        loaders = [module.evaluation("val", track, name, **settings) for module in modules for name in conditions]
        found = Answers.join([answer(model, loader, precision=32) for loader in loaders])
        known = found.batch.computed
        return found if known is None else found.rows(known.known.any(dim=1))

    lists = TrackSettings(open_share=OPEN_SHARE if model.tells_something_else else 0.0)
    answers: dict[str, Answers] = {track: asked(track, *CONDITIONS, tracks=lists) for track in tracks}
    if not model.tells_something_else:
        return fit_calibration(answers, coverage)
    wrong = TrackSettings(open_share=1.0, missing_all=1.0)
    nothing: dict[str, list[Answers]] = {track: [asked(track, FAULTY, undoped=True)] for track in tracks}
    for most in (wrong.max_distractors, 1):  # of lists with one element there are few among the others
        lists = replace(wrong, max_distractors=most)
        # One after the other: the rate shall hold under each.
        nothing["candidates"] += [asked("candidates", name, tracks=lists) for name in (CONDITIONS[0], FAULTY)]
    return fit_calibration(answers, coverage, nothing)


def training_record(module: SpectraDataModule, checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its training: data and their hash, and what hosts were seen.

    Rows count once, however often they come in an epoch; those of randomised stiffness are rows, but no pairs.
    """
    index = module.index("train")
    edges: list[float] = []
    hosts: set[str] = set()
    elements: set[str] = set()
    pairs = 0
    for sample in _rows(index):
        edges.append(sample.edge_mev)
        hosts.add(sample.host_id)
        elements.update(sample.host_elements)
        pairs += sample.variant == AS_IS
    paths = dict.fromkeys(index.paths)
    digest = hashlib.sha256("".join(file_sha256(path) for path in paths).encode()).hexdigest()
    return {
        "data_sha256": digest,
        "train_rows": len(edges),
        "train_pairs": pairs,
        "train_hosts": len(hosts),
        "val_rows": len(module.index("val")),
        "edge_mev": [min(edges), max(edges)],
        "host_elements": [symbol for symbol in VOCABULARY if symbol in elements],
        "run_sha256": file_sha256(checkpoint),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "calibration_conditions": list(CONDITIONS),
    }


def _rows(index: ShardIndex) -> Iterator[Sample]:
    for path in dict.fromkeys(index.paths):
        wanted = set(index.row[index.shard == index.paths.index(path)].tolist())
        yield from (sample for row, sample in enumerate(read_shard(path)) if row in wanted)


def _first_rows(module: SpectraDataModule, track: Track, condition: str) -> Batch:
    batch = next(iter(module.evaluation("val", track, condition))).batch
    return batch.rows(slice(_GOLDEN_ROWS))
