"""From what a user writes to a local folder. Checkpoints touch the network here alone."""

from __future__ import annotations

import logging
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from defectnet.errors import CheckpointError
from defectnet.hub.catalogue import bundled

_log = logging.getLogger(__name__)

FILES: Final = ("config.json", "model.safetensors", "golden.safetensors", "README.md")
"""What a checkpoint folder holds, and all that is ever downloaded."""

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FORMS: Final = "Use a bundled name, a folder (starting with ./, / or ~), or org/repo"


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> tuple[Path, str]:
    """Find a checkpoint's folder, downloading it if need be.

    In this order, without guessing: a Path, or a text that starts with ``.``, ``/`` or ``~``, is a folder; the exact
    name of a bundled checkpoint is that; ``org/repo`` is a repository on the Hugging Face Hub.

    Args:
        source: One of the three forms.
        revision: Branch, tag or commit of a repository.
        cache_dir: Where downloads are kept.
        local_files_only: Do not use the network.

    Returns:
        The folder, and the name to show.

    Raises:
        CheckpointError: The source has none of the forms, or nothing is there.
    """
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(f"source is a {type(source).__name__}", fix=_FORMS)
    text = os.fspath(source)
    names = bundled()
    local = not isinstance(source, str) or text.startswith((".", "/", "~"))
    if revision is not None and (local or text in names):
        raise CheckpointError(
            f"revision={revision!r} is given with {text!r}, which has none",
            fix="Leave revision out; it belongs to repositories (org/repo) only",
        )
    if local:
        return _local(text)
    if text in names:
        return names[text], text
    if "@" in text:
        raise CheckpointError(f"source {text!r} contains '@'", fix="Give the revision apart: revision='...'")
    if _REPO.fullmatch(text):
        return _download(text, revision, cache_dir, local_files_only), text
    near = get_close_matches(text, names, n=3)
    hint = f"Did you mean {' or '.join(near)}? " if near else f"Bundled are: {', '.join(names) or 'none'}. "
    raise CheckpointError(f"no checkpoint is called {text!r}", fix=hint + _FORMS)


def _local(text: str) -> tuple[Path, str]:
    folder = Path(text).expanduser()
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file", fix="Give the folder that holds config.json and model.safetensors")
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} does not exist", fix="Check the path")
    return folder, folder.resolve().name


def _download(repo: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, offline: bool) -> Path:
    """Return the local snapshot of a repository."""
    # Here, because a bundled or local checkpoint needs no HTTP library.
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever HTTP library the Hub uses

    what = f"repository {repo!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=offline,
            allow_patterns=list(FILES),
        )
    except errors.LocalEntryNotFoundError as error:
        fix = "Drop local_files_only=True once" if offline else "Connect to the network once, or give a local folder"
        raise CheckpointError(f"{what} is not in the cache and was not fetched", fix=fix) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{what} does not exist", fix="Check the revision on the repository's page") from error
    except errors.RepositoryNotFoundError as error:
        fix = "Check the name; for a private or gated one, log in with `hf auth login`"
        raise CheckpointError(f"{what} does not exist or is not public", fix=fix) from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        why = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise CheckpointError(
            f"{what} could not be fetched", why=why, fix="Try again, or give a local folder"
        ) from error
    folder = Path(path)
    if revision is None:
        _log.info("%s resolved to commit %s; pass revision= to keep to it", repo, folder.name)
    return folder
