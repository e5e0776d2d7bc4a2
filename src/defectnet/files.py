"""Small helpers for files: whole or absent, and checked by their hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ConfigError


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


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def swap_folder(new: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Put the folder `new` in the place of `folder`, which is removed; on failure the old one is put back."""
    new, folder = Path(new), Path(folder)
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_suffix(".old")
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)
