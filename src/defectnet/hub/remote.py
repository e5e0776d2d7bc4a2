"""What talks to the Hugging Face Hub: a snapshot comes in, a commit goes out, and every failure is one error.

Checkpoints and data sets travel the same way. The Hub's client is imported inside functions, because what is bundled
or local needs no HTTP library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from defectnet.errors import DefectNetError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoType: TypeAlias = Literal["model", "dataset"]

REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""``org/repo``, the form of a repository's name."""

READING: Final = 20.0
"""Seconds of silence after which a request is given up; the client tries some of them again, up to five times."""

WRITING: Final = 120.0
"""The same where the server has work to do."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_TAG: Final = re.compile(r"[A-Za-z0-9][\w.-]*")
_LOG_IN: Final = "Log in with `hf auth login`, or set HF_TOKEN"
_FIXES: Final = {
    401: f"The token is missing or not valid. {_LOG_IN}",
    403: "Use an account and a token that have the right to do this",
    404: "Check the name",
    429: "Too many requests; try again later",
}


@dataclass(frozen=True)
class Remote:
    """A repository on the Hub, and the error that anything wrong with it raises.

    Attributes:
        repo: ``org/repo``.
        repo_type: What it holds.
        error: Class of the error.
    """

    repo: str
    repo_type: RepoType
    error: type[DefectNetError]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"{'repository' if self.repo_type == 'model' else 'data set'} {self.repo!r}"


@dataclass(frozen=True)
class Pushed:
    """What a push came to.

    Attributes:
        repo: ``org/repo``.
        commit: The full commit that holds the files.
        url: Its address.
        tag: The tag that names it; None without one.
        changed: False if the Hub had the same files already.
    """

    repo: str
    commit: str
    url: str
    tag: str | None
    changed: bool

    def __str__(self) -> str:
        """Say where it is, and the commit by which it is found for good."""
        done = "pushed" if self.changed else "was there already, unchanged"
        return f"{self.repo} {done}: commit {self.commit}{f', tag {self.tag}' if self.tag else ''}\n{self.url}"


def download(
    remote: Remote,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return the local snapshot of a repository, fetching what is not in the cache.

    Args:
        remote: The repository.
        patterns: Names or glob patterns of the files; no other is ever fetched.
        revision: Branch, tag or commit; the main branch by default. A full commit whose files are all in the cache
            costs no request.
        cache_dir: Where downloads are kept; the Hub's own cache by default.
        token: For a private repository; by default the one of ``hf auth login`` or HF_TOKEN.
        local_files_only: Use the cache only. ``HF_HUB_OFFLINE=1`` does the same for the whole process.
        force_download: Fetch the files although they are in the cache.

    Raises:
        DefectNetError: Of the remote's class: the repository, the revision or the network is not there.
    """
    from huggingface_hub import snapshot_download

    cache = None if cache_dir is None else Path(cache_dir)
    if revision is not None and _COMMIT.fullmatch(revision) and not force_download:
        found = _cached(remote, patterns, revision, cache)
        if found is not None:
            return found
    with _reading(remote, revision, local_files_only), _impatient(READING):
        path = Path(
            snapshot_download(
                remote.repo,
                repo_type=remote.repo_type,
                revision=revision,
                cache_dir=cache,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=list(patterns),
            )
        )
        if not (_COMMIT.fullmatch(path.name) and path.is_dir()):
            raise ValueError(f"the server calls the commit {path.name!r:.50}, or lists no files of it")
    return path


def _cached(remote: Remote, names: Sequence[str], commit: str, cache: Path | None) -> Path | None:
    """Return the snapshot of a commit if the cache holds all of its files, without a request; None if not.

    A glob pattern is the name of no file, so data sets, whose shards are not known beforehand, are never found here.
    """
    from huggingface_hub import try_to_load_from_cache

    paths = [
        try_to_load_from_cache(remote.repo, name, cache_dir=cache, revision=commit, repo_type=remote.repo_type)
        for name in names
    ]
    whole = [Path(path) for path in paths if isinstance(path, str)]
    return whole[0].parent if whole and len(whole) == len(paths) else None


@contextmanager
def _impatient(seconds: float) -> Iterator[None]:
    """Give up on a server that says nothing for so long; the Hub's client by itself waits for ever."""
    from huggingface_hub import get_session

    def limit(request: Any) -> None:  # the client of a session would not do: some requests ask for no limit
        waits = request.extensions.setdefault("timeout", {})
        waits |= {name: seconds for name in ("connect", "read", "write", "pool") if waits.get(name) is None}

    client = get_session()
    before = client.event_hooks
    client.event_hooks = {**before, "request": [*before["request"], limit]}
    try:
        yield
    finally:
        client.event_hooks = before


@contextmanager
def _reading(remote: Remote, revision: str | None, local_files_only: bool) -> Iterator[None]:
    """Turn whatever goes wrong with a download into one error."""
    from huggingface_hub import errors

    what = remote.label + (f" at revision {revision!r}" if revision else "")
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise _not_fetched(remote, what, error, local_files_only) from error
    except errors.RevisionNotFoundError as error:
        raise remote.error(f"{what} does not exist", fix="Check the revision on the repository's page") from error
    except errors.GatedRepoError as error:
        fix = f"Accept its terms on its page on the Hub. {_LOG_IN}"
        raise remote.error(f"{what} is gated", fix=fix) from error
    except errors.RepositoryNotFoundError as error:
        fix = f"Check the name (there is no local folder {remote.repo} either). If it is private: {_LOG_IN}"
        raise remote.error(f"{what} does not exist or is not public", fix=fix) from error
    except Exception as error:  # a server can answer with anything, and the client does not look
        fix = _FIXES.get(_status(error), "Try again, or give a local folder")
        raise remote.error(f"{what} could not be fetched", why=_reason(error), fix=fix) from error


def _not_fetched(remote: Remote, what: str, error: Exception, local_files_only: bool) -> DefectNetError:
    """Return the error of a snapshot that is neither in the cache nor could be fetched, with the reason."""
    cause = error.__cause__
    status = _status(cause)
    if status:
        fix = _FIXES.get(status, "Try again later")
        return remote.error(f"{what} could not be fetched", why=f"the server answered {status}", fix=fix)
    missing = f"{what} is not in the cache and was not fetched"
    if local_files_only:
        return remote.error(missing, fix="Drop local_files_only=True once, or give a local folder")
    fix = "Connect to the network once, without HF_HUB_OFFLINE, or give a local folder"
    return remote.error(missing, why=_reason(cause) if cause else "", fix=fix)


def _status(error: BaseException | None) -> int:
    """Return the HTTP status that an error of the Hub's client carries; 0 if it carries none."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _reason(error: BaseException) -> str:
    """Return the first line of an error that says something, at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, LookupError | TypeError | AttributeError | AssertionError):
        return f"its answer makes no sense: {type(error).__name__}: {(lines or ['no word'])[0]}"[:160]
    return (lines or [type(error).__name__])[0][:160]


def damaged(folder: Path) -> list[Path]:
    """Return the files of a snapshot whose content is not what the Hub said, from the cache alone.

    In the cache a file is a link to a blob named by its hash: sha256, or git's own for a small file. Where the system
    has no links, nothing can be told, and nothing is returned.
    """
    links = {path: path.resolve() for path in sorted(folder.iterdir()) if path.is_symlink()}
    return [
        path
        for path, blob in links.items()
        if blob.parent.name == "blobs" and blob.is_file() and _hash(blob, like=blob.name) != blob.name
    ]


def own_file(path: Path, error: type[DefectNetError]) -> Path:
    """Return a file that may be published: one that lies where it is, or a link into the Hub's own cache.

    Raises:
        DefectNetError: It is a link, or no file: what is published should be what is seen.
    """
    cached = path.parent.parent.name == "snapshots" and path.resolve().parent == path.parents[2].resolve() / "blobs"
    if not path.is_file() or (path.is_symlink() and not cached):
        what = f"is a link to {path.resolve()}" if path.is_symlink() else "is no file"
        raise error(f"{path} {what}", fix="Put the file itself there: links are not published")
    return path


def publish(
    remote: Remote,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    tag: str | None = None,
    private: bool = False,
    token: str | None = None,
    stale: str | None = None,
) -> Pushed:
    """Upload files as one commit, make the repository if it is not there, and tag the commit.

    Published content never changes under its tag: where the tag exists with the same files, nothing is done; where it
    exists with others, that is an error. The same command again after a failure goes on where it was.

    Args:
        remote: The repository.
        files: Path in the repository -> local file, or content.
        message: Of the commit.
        tag: Name of the version, such as v1.
        private: Whether a repository that is made is private; one that exists stays as it is.
        token: By default the one of ``hf auth login`` or HF_TOKEN.
        stale: Regular expression; files of the repository whose path matches and that are not among `files` are
            deleted in the same commit.

    Raises:
        DefectNetError: Of the remote's class: the name, the token or the tag cannot be used, a file is a link, or the
            server refused.
    """
    for path in files.values():
        if isinstance(path, Path):
            own_file(path, remote.error)
    if tag is not None and (tag == "main" or not _TAG.fullmatch(tag)):
        raise remote.error(f"tag {tag!r} cannot be used", fix="Use letters, digits, '.', '_' and '-', such as v1.0")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    with _writing(remote):
        api.create_repo(remote.repo, repo_type=remote.repo_type, private=private, exist_ok=True)
        done = None if tag is None else _published(api, remote, tag, files)
        if done is not None:
            return done
        before = _contents(api, remote, "main")
        odd = [path for path in before if stale and re.fullmatch(stale, path) and path not in files]
        changes: list[Any] = [CommitOperationAdd(path, source) for path, source in files.items()]
        changes += [CommitOperationDelete(path) for path in odd]
        # Not upload_folder: with Xet it makes several commits of one folder.
        commit = api.create_commit(remote.repo, changes, commit_message=message, repo_type=remote.repo_type)
    if tag is not None:
        with _writing(remote, f"commit {commit.oid} of {remote.label} was made; its tag {tag!r}"):
            api.create_tag(remote.repo, tag=tag, revision=commit.oid, repo_type=remote.repo_type)
    return Pushed(remote.repo, commit.oid, str(commit.commit_url), tag, changed=bool(odd) or not _same(before, files))


def check_writable(remote: Remote, token: str | None) -> None:
    """Refuse to start without a proper name and a token, before anything is read or sent.

    Raises:
        DefectNetError: Of the remote's class: the name is none, no token is given and nobody is logged in.
    """
    from huggingface_hub import get_token

    if not REPO.fullmatch(remote.repo):
        raise remote.error(f"{remote.repo!r} is no name of a repository", fix="Give it as org/repo")
    if not token and not get_token():
        raise remote.error(f"{remote.label} cannot be written without a token", fix=_LOG_IN)


@contextmanager
def _writing(remote: Remote, what: str = "") -> Iterator[None]:
    """Turn whatever goes wrong between here and the server into one error."""
    try:
        with _impatient(WRITING):
            yield
    except DefectNetError:
        raise
    except Exception as error:  # as in `_reading`
        fix = _FIXES.get(_status(error), "Check the name and the network, then give the same command again")
        raise remote.error(f"{what or remote.label} could not be written", why=_reason(error), fix=fix) from error


def _published(api: HfApi, remote: Remote, tag: str, files: Mapping[str, Path | bytes]) -> Pushed | None:
    """Return what a tag names, if it exists and holds these files; None if there is no such tag."""
    from huggingface_hub import errors

    try:
        commit = api.repo_info(remote.repo, revision=tag, repo_type=remote.repo_type).sha
    except errors.RevisionNotFoundError:
        return None
    if not commit or not _same(_contents(api, remote, commit), files):
        fix = "What is published stays as it is; give a new tag"
        raise remote.error(f"tag {tag!r} of {remote.label} holds other files", fix=fix)
    kind = "" if remote.repo_type == "model" else f"{remote.repo_type}s/"
    return Pushed(remote.repo, commit, f"{api.endpoint}/{kind}{remote.repo}/commit/{commit}", tag, changed=False)


def _contents(api: HfApi, remote: Remote, revision: str) -> dict[str, str]:
    """Return path -> hash of a repository's files: sha256 of a large one, git's own hash of a small one."""
    from huggingface_hub.hf_api import RepoFile

    found = api.list_repo_tree(remote.repo, recursive=True, revision=revision, repo_type=remote.repo_type)
    return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in found if isinstance(item, RepoFile)}


def _same(contents: Mapping[str, str], files: Mapping[str, Path | bytes]) -> bool:
    """Return whether a repository has all of these files, with this content."""
    return all(
        path in contents and _hash(source, like=contents[path]) == contents[path] for path, source in files.items()
    )


def _hash(source: Path | bytes, like: str) -> str:
    """Return the hash of a file or of bytes, of the kind that `like` is: 64 digits are sha256, 40 are git's own."""
    from huggingface_hub.utils.sha import git_hash

    data = source if isinstance(source, bytes) else source.read_bytes()
    return sha256(data).hexdigest() if len(like) == 64 else git_hash(data)
