"""Checkpoints: where they are (`catalogue`, `resolve`), what is in them (`io`), and how they get around (`push`)."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from defectnet.errors import CheckpointError, ConfigError
from defectnet.hub.catalogue import list_checkpoints
from defectnet.hub.io import NEWER, load, read_golden, save, verify
from defectnet.hub.push import push_checkpoint, push_model, save_pretrained
from defectnet.hub.remote import Pushed, damaged
from defectnet.hub.resolve import resolve
from defectnet.models.base import DefectModel

__all__ = [
    "Pushed",
    "from_pretrained",
    "list_checkpoints",
    "load",
    "push_checkpoint",
    "push_model",
    "read_golden",
    "resolve",
    "save",
    "save_pretrained",
    "verify",
]


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> DefectModel:
    """Load a trained network, in evaluation mode.

    Args:
        source: A name (`list_checkpoints`); a folder, as a Path or a text that starts with ``.``, ``/`` or ``~``; or
            ``org/repo`` on the Hugging Face Hub. Nothing is guessed: a plain name is never a folder.
        revision: Branch, tag or commit of a Hub repository; not for the others. A full commit that is in the cache
            costs no request.
        device: Where to put the network.
        cache_dir: Where downloads are kept; the Hub's own cache by default.
        token: For a private repository; by default the one of ``hf auth login`` or HF_TOKEN.
        local_files_only: Take a Hub repository from the cache only, without a network.
        force_download: Fetch a Hub repository's files again, for instance because the cache is damaged.

    Returns:
        The network; call `predict` on it.

    Raises:
        CheckpointError: The source is not found, or the checkpoint is not whole.
        ConfigError: The device cannot be used.
    """
    place = _device(device)
    folder, name = resolve(
        source,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    try:
        model = load(folder)
    except CheckpointError as error:
        if folder.parent.name != "snapshots":  # not from the Hub's cache
            raise
        raise _fault(error, folder, name, revision) from error
    model.name = name
    return model.to(place)


def _fault(error: CheckpointError, snapshot: Path, name: str, revision: str | None) -> CheckpointError:
    """Say whose fault it is that a downloaded checkpoint does not load: that of the cache, or of the repository."""
    wrong = damaged(snapshot)
    if wrong:
        call = f"{name!r}, " + (f"revision={revision!r}, " if revision else "") + "force_download=True"
        return CheckpointError(
            f"{wrong[0]} is damaged",
            why="in the cache; its hash is not the one that the Hub gave it",
            fix=f"Fetch it again: defectnet.from_pretrained({call})",
        )
    if error.fix.startswith(NEWER):
        return error
    state = f"as it is in the repository, commit {snapshot.name[:12]}"
    return CheckpointError(
        error.what,
        why=f"{error.why}; {state}" if error.why else state,
        fix=f"Choose another revision, or tell the owner of {name}. Pickles are never fetched",
    )


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device is {device!r}", fix="Use 'cpu', 'cuda', 'cuda:0' or 'mps'") from error
    try:
        torch.zeros(1, device=place).cpu()  # the device meta, for instance, holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        why = (str(error).splitlines() or ["no word"])[0][:120]
        raise ConfigError(
            f"device {str(device)!r} is not there", why=why, fix="Use 'cpu', or install torch for your GPU"
        ) from error
    return place
