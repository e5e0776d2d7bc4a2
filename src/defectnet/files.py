"""Small helpers for files: whole or absent, checked by their hash, and written by one process at a time."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ConfigError

LARGEST_JSON: Final = 64 * 2**20
"""Bytes of a JSON file that is read: larger than any that this package writes."""

_FILE_NAME: Final = re.compile(r"[^/\\\x00-\x1f\x7f]{1,128}")


def is_file_name(text: str) -> bool:
    """Return whether a text names a file in a folder, and neither another folder nor the folder itself."""
    return _FILE_NAME.fullmatch(text) is not None and text not in (".", "..")


def plain_name(name: str | None) -> str:
    """Return a file's name without folders and what a file system or a terminal may stumble over."""
    last = re.split(r"[\\/]", name or "")[-1]
    return re.sub(r"[^\w.()+, -]", "_", last).strip(". ")[-80:] or "file"


def home_expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path whose ``~`` or ``~user`` is replaced.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{os.fspath(path)}: {error}", fix="Check the path") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file of moderate size.

    Raises:
        ValueError: It cannot be read, is too large or too deeply nested, is no JSON, or holds NaN or infinity; the
            text says which, in one line.
    """
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes, {LARGEST_JSON} at most are read")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (OSError, ValueError) as error:  # JSON and text encoding alike
        raise ValueError(" ".join(str(error).split())[:160]) from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_npz(path: str | os.PathLike[str], names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return arrays of an ``.npz`` file, by name; nothing in it is unpickled.

    Raises:
        ValueError: The file is missing, damaged or no such file, or lacks an array; the text says which, in one line.
    """
    try:
        with Path(path).open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("a single array, not an .npz file")
            return {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(" ".join(str(error).split())[:120]) from error


def _beside(path: Path) -> Path:
    """Return a hidden name beside a path that no other process or thread uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends without an error."""
    path = Path(path)
    temporary = _beside(path)
    try:
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def replacing_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new, empty folder beside `folder`, which takes its place when the block ends without an error.

    Whoever looks, at whatever moment, finds the old folder or the new one, whole, whether this process goes on or is
    killed. Of several that write one folder, the last wins.
    """
    folder = Path(folder)
    temporary = _beside(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.iterdir():
            if path.is_file():
                _to_disk(path)
        _swap(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    """Put a folder in the place of another, which is afterwards where the first one was, or gone."""
    try:
        new.rename(folder)  # where nothing is, or an empty folder
        return
    except OSError:
        if not folder.exists():
            raise
    if _exchange(new, folder):
        return
    old = _aside(folder)  # this file system cannot exchange: a kill between here and there is mended by `put_back`
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def put_back(folder: str | os.PathLike[str]) -> None:
    """Undo a replacement that was killed half way, where the file system cannot exchange two folders in one step."""
    folder = Path(folder)
    if not folder.exists():
        with suppress(OSError):  # there is none, or another process did it
            _aside(folder).rename(folder)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; returns False where the system or the file system cannot."""
    call = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    library = ctypes.CDLL(None) if call else None
    if library is None or not hasattr(library, str(call)):
        return False
    here, swap = (-100 if sys.platform == "linux" else -2), 2  # AT_FDCWD; RENAME_EXCHANGE, RENAME_SWAP
    return bool(getattr(library, str(call))(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


@contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Keep other processes and threads from doing the same to `path`, until the block ends or this process does.

    The lock is one of the system on a file ``.NAME.lock`` beside it, removed at the end (the package filelock leaves
    its file behind). Windows has no such locks: there nothing is kept from anybody.

    Args:
        path: What is worked on; it need not exist.
        what: What is done to it, for the error.

    Raises:
        ConfigError: Somebody else is at work.
    """
    try:
        import fcntl
    except ImportError:  # pragma: no cover
        yield
        return
    path = Path(path)
    place = path.with_name(f".{path.name}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(
                f"another process is at work on {path} ({what})", fix="Wait until it has ended, or name another place"
            ) from None
        except OSError:  # a file system without locks
            break
        # Whoever held it before may have removed the file between our opening and locking it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), place.stat()):
                break
        os.close(handle)
    try:
        yield
    finally:
        place.unlink(missing_ok=True)
        os.close(handle)


def into_block(document: str, name: str, content: str) -> str:
    """Replace what a document holds between ``<!-- name:start -->`` and ``<!-- name:end -->``.

    Args:
        document: Markdown text.
        name: Name of the block.
        content: Markdown that takes its place.

    Raises:
        ConfigError: The document has no such block, or more than one.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, _, rest = document.partition(start)
    _, _, after = rest.partition(end)
    if document.count(start) != 1 or document.count(end) != 1 or end not in rest:
        raise ConfigError(f"the document has not exactly one block {name!r}", fix=f"Put {start} above {end}, once")
    return f"{before}{start}\n{content.strip()}\n{end}{after}"
