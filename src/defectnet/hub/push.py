"""Publish a checkpoint: its files, a card with metrics in both forms that the Hub reads, and a tag, in one commit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from defectnet.batch import Batch
from defectnet.errors import CheckpointError, ConfigError
from defectnet.hub.card import STALE, Results, eval_results, model_card, read_results
from defectnet.hub.io import CARD, CONFIG, GOLDEN, WEIGHTS, load, read_golden, save, verify
from defectnet.hub.remote import REPO, Pushed, Remote, check_writable, own_file, publish
from defectnet.hub.resolve import resolve
from defectnet.models.base import DefectModel


def push_checkpoint(
    source: str | os.PathLike[str],
    repo: str,
    *,
    tag: str | None = None,
    private: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    metrics: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    dataset: str | None = None,
) -> Pushed:
    """Upload a checkpoint to the Hugging Face Hub, after it has been loaded and has reproduced its golden outputs.

    Args:
        source: The checkpoint, as for `defectnet.from_pretrained`.
        repo: ``org/repo``; made if it is not there.
        tag: Name of the version, such as v1; one that exists with other files is never moved.
        private: Whether a repository that is made is private; one that exists stays as it is.
        token: By default the one of ``hf auth login`` or HF_TOKEN.
        commit_message: By default the checkpoint's name, the tag and what is uploaded.
        metrics: A result of ``defectnet benchmark``: its JSON file, or its content. By default `training.metrics` of
            the checkpoint, if that is one.
        dataset: ``org/name`` of the data set that the metrics were measured on; without it they go into the card
            only, not into `.eval_results`, which names a data set of the Hub.

    Returns:
        The commit; `changed` is False if the Hub had the same already.

    Raises:
        CheckpointError: The checkpoint is not whole, the metrics are not of it, or the server refused.
    """
    how: dict[str, Any] = {"tag": tag, "private": private, "token": token, "commit_message": commit_message}
    return _push(*resolve(source), repo, **how, metrics=metrics, dataset=dataset)


def _push(
    folder: Path,
    name: str,
    repo: str,
    *,
    token: str | None = None,
    commit_message: str | None = None,
    metrics: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    dataset: str | None = None,
    tag: str | None = None,
    private: bool = False,
) -> Pushed:
    """Check a folder and upload it; arguments are those of `push_checkpoint`, and the name to show."""
    remote = Remote(repo, "model", CheckpointError)
    check_writable(remote, token)
    if dataset is not None and not REPO.fullmatch(dataset):
        raise CheckpointError(f"dataset {dataset!r} is no data set on the Hub", fix="Give it as org/name")
    model = load(folder)
    verify(folder, model)
    return publish(
        remote,
        _files(folder, repo, _results(model, name, metrics), dataset),
        message=commit_message or f"{name}{f' {tag}' if tag else ''}: weights, golden outputs and card",
        tag=tag,
        private=private,
        token=token,
        stale=STALE,
    )


def _results(
    model: DefectModel, name: str, metrics: str | os.PathLike[str] | Mapping[str, Any] | None
) -> Results | None:
    if metrics is not None:
        return read_results(metrics, name)
    own = model.training_info.get("metrics")
    return read_results(own) if isinstance(own, dict) and "results" in own else None


def _files(folder: Path, repo: str, results: Results | None, dataset: str | None) -> dict[str, Path | bytes]:
    """Return what is uploaded; a checkpoint without a card is not whole."""
    card = folder / CARD
    if not card.is_file():
        raise CheckpointError(f"{card} is missing", fix="Say what the checkpoint is for, and how good it is")
    text = model_card(own_file(card, CheckpointError).read_text(encoding="utf-8"), repo, results, dataset)
    files: dict[str, Path | bytes] = {name: folder / name for name in (CONFIG, WEIGHTS, GOLDEN)}
    files[CARD] = text.encode()
    return files | (eval_results(results, dataset) if results is not None and dataset is not None else {})


def save_pretrained(
    model: DefectModel, folder: str | os.PathLike[str], *, card: str | None = None, golden: Batch | None = None
) -> Path:
    """Write a network as it is now, as `defectnet.hub.save` does, with what it was loaded with.

    Args:
        model: The network.
        folder: Where to write; its name becomes the checkpoint's.
        card: Text of README.md; by default that of the folder it was loaded from, if it is still the same network.
        golden: Sample inputs; by default those of that folder.

    Raises:
        ConfigError: The network was changed, or never loaded, and the card or the inputs are not given.
    """
    source = model.source
    if golden is None:
        if source is None:
            raise ConfigError(f"{model.name} has no sample inputs yet", fix="Pass golden=, a Batch of a few rows")
        golden = read_golden(source)[0]
    if card is None:
        card = _card_of(model, source)
    return save(model, folder, golden=golden, card=card, training=model.training_info)


def _card_of(model: DefectModel, source: Path | None) -> str:
    """Return the card that a network was loaded with, which says nothing of a network that was changed since."""
    fix = "Pass card=: what it is for, what it was trained on, how good it is"
    if source is None or not (source / CARD).is_file():
        raise ConfigError(f"{model.name} has no card yet", fix=fix)
    if not _unchanged(model, source):
        raise ConfigError(f"{model.name} is not the network any more that the card of {source} describes", fix=fix)
    return (source / CARD).read_text(encoding="utf-8")


def _unchanged(model: DefectModel, source: Path) -> bool:
    """Return whether a network is what the folder that it was loaded from holds."""
    old, new = load(source), model.state_dict()
    same = all(torch.equal(value, new[name].cpu()) for name, value in old.state_dict().items())
    return same and (old.calibration, old.training_info) == (model.calibration, model.training_info)


def push_model(
    model: DefectModel, repo: str, *, card: str | None = None, golden: Batch | None = None, **settings: Any
) -> Pushed:
    """Publish a network as it is now; one that is as it was loaded, as the files that it was loaded from.

    Args:
        model: The network.
        repo: ``org/repo``.
        card: As in `save_pretrained`.
        golden: As in `save_pretrained`.
        **settings: As in `push_checkpoint`.
    """
    if card is None and golden is None and model.source is not None and _unchanged(model, model.source):
        return _push(model.source, model.name, repo, **settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(model, Path(scratch) / "checkpoint", card=card, golden=golden)
        return _push(folder, model.name, repo, **settings)
