"""From what a user writes to a local folder. Checkpoints are fetched through here alone."""

from __future__ import annotations

import logging
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from defectnet.errors import CheckpointError
from defectnet.files import home_expanded, put_back
from defectnet.hub import catalogue
from defectnet.hub.remote import REPO, Remote, download

_log = logging.getLogger(__name__)

FILES: Final = ("config.json", "model.safetensors", "golden.safetensors", "README.md")
"""What a checkpoint folder holds, and all that is ever downloaded."""

_FORMS: Final = "Use a bundled name, a folder (starting with ./, / or ~), or org/repo"


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> tuple[Path, str]:
    """Find a checkpoint's folder, downloading it if need be.

    In this order: a Path, or a text that starts with ``.``, ``/`` or ``~``, is a folder; then come the exact names of
    bundled checkpoints, those of `catalogue.PUBLISHED`, and ``org/repo`` on the Hugging Face Hub. Nothing is guessed.

    Args:
        source: One of the four forms.
        revision: Branch, tag or commit of a repository; a full commit that is in the cache costs no request.
        cache_dir: Where downloads are kept.
        token: For a private repository; by default the one of ``hf auth login`` or HF_TOKEN.
        local_files_only: Do not use the network.
        force_download: Fetch the files although they are in the cache.

    Returns:
        The folder, and the name to show.

    Raises:
        CheckpointError: The source has none of the forms, or nothing is there.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"source is a {type(source).__name__}", fix=_FORMS)
    if local_files_only and force_download:
        raise CheckpointError("force_download and local_files_only exclude each other", fix="Leave one of them out")
    text = os.fspath(source)
    names = catalogue.bundled()
    local = not isinstance(source, str) or text.startswith((".", "/", "~"))
    settings: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
    settings["force_download"] = force_download
    if local or text in names:
        _refuse(text, revision=revision, force_download=force_download or None)
        return _local(text) if local else (names[text], text)
    if text in catalogue.PUBLISHED:
        _refuse(text, revision=revision)
        repo, commit = catalogue.PUBLISHED[text]
        return download(Remote(repo, "model", CheckpointError), FILES, revision=commit, **settings), text
    if REPO.fullmatch(text):
        folder = download(Remote(text, "model", CheckpointError), FILES, revision=revision, **settings)
        if revision is None:
            _log.info("%s resolved to commit %s; pass revision= to keep to it", text, folder.name)
        return folder, text
    raise _unknown(text)


def _unknown(text: str) -> CheckpointError:
    if "@" in text:
        return CheckpointError(f"source {text!r} contains '@'", fix="Give the revision apart: revision='...'")
    known = catalogue.list_checkpoints()
    near = get_close_matches(text, known, n=3)
    hint = f"Did you mean {' or '.join(near)}? " if near else f"Known are: {', '.join(known) or 'none'}. "
    return CheckpointError(f"no checkpoint is called {text!r}", fix=hint + _FORMS)


def _refuse(text: str, **settings: str | bool | None) -> None:
    """Refuse settings that a source has no use for."""
    for name, value in settings.items():
        if value is not None:
            raise CheckpointError(
                f"{name}={value!r} is given with {text!r}, which has none",
                fix=f"Leave {name} out; it belongs to repositories (org/repo) only",
            )


def _local(text: str) -> tuple[Path, str]:
    folder = home_expanded(text)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file", fix="Give the folder that holds config.json and model.safetensors")
    put_back(folder)
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} does not exist", fix="Check the path")
    return folder, folder.resolve().name
