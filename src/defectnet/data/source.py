"""From what a recipe names as its data to a local folder of shards; and a folder of shards to the Hub."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from defectnet.data.shards import MANIFEST, OLDER_MANIFEST, check_shard
from defectnet.errors import ShardError
from defectnet.files import home_expanded

if TYPE_CHECKING:
    from defectnet.hub.remote import Pushed

_log = logging.getLogger(__name__)

_SCHEME: Final = "hf://datasets/"
_NAME: Final = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_URL: Final = re.compile(rf"{_SCHEME}({_NAME})(?:@([^@/]+))?((?:/[\w][\w.-]*)*)/?")
_FORMS: Final = "Use a folder, org/name, or hf://datasets/org/name[@revision][/folder]"
FILES: Final = ("shard-*.parquet", MANIFEST, OLDER_MANIFEST)
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
    existing path and does not start with ``.``, ``/``, ``~`` or ``data/``, the folder of the bundled data sets.
    Everything else is a local folder.

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
    local = not isinstance(text, str) or name.startswith((".", "/", "~", "data/")) or Path(name).exists()
    if not local and re.fullmatch(_NAME, name):
        return HubData(name)
    return home_expanded(name)


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
    # Here, because local shards need neither torch nor an HTTP library.
    from defectnet.hub.remote import Remote, download

    begin = f"{source.folder}/" if source.folder else ""
    path = download(
        Remote(source.repo, "dataset", ShardError),
        [begin + name for name in FILES],
        revision=source.revision,
        local_files_only=local_files_only,
    )
    if source.revision is None:
        _log.info("%s resolved to commit %s; name @revision to keep to it", source.repo, path.name)
    return path / source.folder


def push_dataset(
    folder: str | os.PathLike[str],
    repo: str,
    *,
    tag: str | None = None,
    private: bool = True,
    token: str | None = None,
    commit_message: str | None = None,
) -> Pushed:
    """Upload a folder of shards, with its README.md if there is one, as one commit; every shard is read first.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        repo: ``org/name`` on the Hugging Face Hub; made if it is not there.
        tag: Name of the version, such as v1; one that exists with other files is never moved.
        private: Whether a repository that is made is private; one that exists stays as it is.
        token: By default the one of ``hf auth login`` or HF_TOKEN.
        commit_message: By default the folder's name and the number of shards.

    Returns:
        The commit; shards of an earlier push that the folder no longer has are gone from it.

    Raises:
        ShardError: There are no shards, one is damaged, or the upload failed.
    """
    from defectnet.hub.remote import Remote, check_writable, publish

    folder = Path(folder)
    remote = Remote(repo, "dataset", ShardError)
    shards = sorted(folder.glob(FILES[0]))
    if not shards:
        raise ShardError(f"data folder {folder} holds no {FILES[0]}", fix="Run `defectnet simulate --out` first")
    check_writable(remote, token)
    for shard in shards:
        check_shard(shard)
    texts = [folder / name for name in (*FILES[1:], "README.md")]
    return publish(
        remote,
        {path.name: path for path in [*shards, *texts] if path.is_file()},
        message=commit_message or f"{folder.resolve().name}: {len(shards)} shards",
        tag=tag,
        private=private,
        token=token,
        stale=r"shard-[^/]*\.parquet",
    )
