"""Checkpoints: where they are (`catalogue`, `resolve`), and what is in them (`io`)."""

from __future__ import annotations

import os

import torch

from defectnet.errors import ConfigError
from defectnet.hub.catalogue import list_checkpoints
from defectnet.hub.io import load, read_golden, save, verify
from defectnet.hub.resolve import resolve
from defectnet.models.base import DefectModel

__all__ = ["from_pretrained", "list_checkpoints", "load", "read_golden", "resolve", "save", "verify"]


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> DefectModel:
    """Load a trained network, in evaluation mode.

    Args:
        source: A bundled name (`list_checkpoints`); a folder, as a Path or a text that starts with ``.``, ``/`` or
            ``~``; or ``org/repo`` on the Hugging Face Hub. Nothing is guessed: a plain name is never a folder.
        revision: Branch, tag or commit of a Hub repository; not for the other two.
        device: Where to put the network.
        cache_dir: Where downloads are kept; the Hub's own cache by default.
        local_files_only: Take a Hub repository from the cache only, without a network.

    Returns:
        The network; call `predict` on it.

    Raises:
        CheckpointError: The source is not found, or the checkpoint is not whole.
        ConfigError: The device cannot be used.
    """
    place = _device(device)
    folder, name = resolve(source, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
    model = load(folder)
    model.name = name
    return model.to(place)


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device is {device!r}", fix="Use 'cpu', 'cuda', 'cuda:0' or 'mps'") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not there", fix="Use 'cpu', or install torch for your GPU")
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {device!r} is not there", fix="Use 'cpu'")
    return place
