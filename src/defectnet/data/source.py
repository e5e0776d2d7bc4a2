"""From what a recipe names as its data to a local folder of shards; and a folder of shards to the Hub."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from defectnet.data.shards import check_shard
from defectnet.errors import ShardError

_log = logging.getLogger(__name__)

_SCHEME: Final = "hf://datasets/"
_NAME: Final = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_URL: Final = re.compile(rf"{_SCHEME}({_NAME})(?:@([^@/]+))?((?:/[\w][\w.-]*)*)/?")
_FORMS: Final = "Use a folder, org/name, or hf://datasets/org/name[@revision][/folder]"
FILES: Final = ("shard-*.parquet", "dataset.json")
"""What a data set holds, and all that is ever downloaded of one."""


@dataclass(frozen=True)
class HubData:
    """A data set on the Hugging Face Hub.

    Attributes:
        repo: ``org/name``.
        revision: Branch, tag or commit; None for the main branch.
        folder: Folder inside the repository; empty for its root.
    """

    repo: str
    revision: str | None = None
    folder: str = ""


def parse_source(text: str | os.PathLike[str]) -> Path | HubData:
    """Tell what a text names, without guessing and without the network.

    ``hf://datasets/org/name[@revision][/folder]`` is on the Hub. So is a text with exactly one slash that is no
    existing path and does not start with ``.``, ``/`` or ``~``. Everything else is a local folder.

    Raises:
        ShardError: It starts like an address on the Hub and is none.
    """
    name = os.fspath(text)
    if name.startswith("hf:"):
        match = _URL.fullmatch(name)
        if match is None:
            raise ShardError(f"data {name!r} is no address of a data set", fix=_FORMS)
        repo, revision, folder = match.groups()
        return HubData(repo, unquote(revision) if revision else None, folder.strip("/"))
    local = not isinstance(text, str) or name.startswith((".", "/", "~")) or Path(name).exists()
    if not local and re.fullmatch(_NAME, name):
        return HubData(name)
    return Path(name).expanduser()


def fetch(source: Path | HubData, *, local_files_only: bool = False) -> Path:
    """Return the local folder of a data set, downloading its shards if they are not in the Hub's cache.

    Args:
        source: What `parse_source` returned; a local folder is returned as it is.
        local_files_only: Do not use the network. ``HF_HUB_OFFLINE=1`` does the same for the whole process.

    Raises:
        ShardError: The repository, the revision or the network is not there.
    """
    if isinstance(source, Path):
        return source
    # Here, because local shards need no HTTP library.
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever HTTP library the Hub uses

    what = f"data set {source.repo!r}" + (f" at revision {source.revision!r}" if source.revision else "")
    begin = f"{source.folder}/" if source.folder else ""
    try:
        path = snapshot_download(
            source.repo,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=[begin + name for name in FILES],
            local_files_only=local_files_only,
        )
    except errors.LocalEntryNotFoundError as error:
        fix = "Connect to the network once, without HF_HUB_OFFLINE, or give a local folder"
        raise ShardError(f"{what} is not in the cache and was not fetched", fix=fix) from error
    except errors.RevisionNotFoundError as error:
        raise ShardError(f"{what} does not exist", fix="Check the revision on the data set's page") from error
    except errors.RepositoryNotFoundError as error:
        fix = f"Check the name (there is no local folder {source.repo} either); for a private one, run `hf auth login`"
        raise ShardError(f"{what} does not exist or is not public", fix=fix) from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        why = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        raise ShardError(f"{what} could not be fetched", why=why, fix="Try again, or give a local folder") from error
    if source.revision is None:
        _log.info("%s resolved to commit %s; name @revision to keep to it", source.repo, Path(path).name)
    return Path(path) / source.folder


def push_dataset(folder: str | os.PathLike[str], repo: str, *, private: bool = True) -> str:
    """Upload a folder of shards, with its README.md if there is one, as one commit; every shard is read first.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        repo: ``org/name`` on the Hugging Face Hub; made if it is not there.
        private: Whether a repository that is made is private.

    Returns:
        The address of the commit.

    Raises:
        ShardError: There are no shards, one is damaged, or the upload failed.
    """
    folder = Path(folder)
    shards = sorted(folder.glob(FILES[0]))
    if not shards:
        raise ShardError(f"data folder {folder} holds no {FILES[0]}", fix="Run `defectnet simulate --out` first")
    for shard in shards:
        check_shard(shard)
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        api = HfApi()
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type="dataset", allow_patterns=[*FILES, "README.md"]
        )
    except (OSError, ValueError, httpx.HTTPError) as error:
        why = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
        fix = "Check the name, and log in with `hf auth login`"
        raise ShardError(f"data set {repo!r} could not be written", why=why, fix=fix) from error
    return str(commit.commit_url)
