"""Find out what a file contains, and read it as a spectrum."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from defectnet.elements import element_index
from defectnet.errors import SpectrumError
from defectnet.io import (
    abinit,
    castep,
    dave,
    euphonic,
    hdf5,
    mantid,
    ncmat,
    phoenix,
    phonopy,
    pymatgen,
    table,
    untitled,
)
from defectnet.io.raw import Raw
from defectnet.spectrum import UNITS, Spectrum, parse_kind, parse_unit

TEXT: Final = (
    (phonopy.matches, phonopy.read),
    (phoenix.matches, phoenix.read),
    (castep.matches, castep.read),
    (euphonic.matches_text, euphonic.read_text),
    (mantid.matches, mantid.read),
    (abinit.matches, abinit.read),
    (dave.matches, dave.read),
    (ncmat.matches, ncmat.read),
    (untitled.matches, untitled.read),
)
"""Formats of text, by what tells them; what none of them knows is a table."""

_SECTION: Final = re.compile(r"\s*\[\s*(?!true|false|null|NaN|Infinity)[A-Za-z]")
"""Begin of a text in sections, as AFLOW writes it: no JSON."""

JSON: Final = ((euphonic.matches, euphonic.read), (pymatgen.matches, pymatgen.read))

NAMES: Final = {
    "abinit": "abinit",
    "castep": "CASTEP",
    "dave": "DAVE",
    "euphonic": "Euphonic",
    "hdf5": "HDF5",
    "mantid": "Mantid",
    "ncmat": "NCMAT",
    "phoenix": "PHOENIX",
    "phonopy": "phonopy",
    "pymatgen": "pymatgen, Materials Project",
    "table": "table of text",
}
"""What a person calls the format that a module reads; of those of `untitled` the program is told (`Raw.program`)."""

PACKED: Final[dict[bytes, Callable[..., Any]]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of compressed files, and what unpacks them."""

LARGEST: Final = 1 << 30
"""Bytes of a file, unpacked: a spectrum is far smaller."""


def read_spectrum(
    path: str | os.PathLike[str], *, unit: str | None = None, kind: str | None = None, element: str | None = None
) -> Spectrum:
    """Read a phonon DOS. The format is told from what the file contains, never from its name.

    docs/formats.md lists what is known; compressed files (gzip, bzip2, xz) and UTF-16 are read like others.

    Args:
        path: The file.
        unit: Energy unit, one of `UNITS`; needed where the file does not declare it.
        kind: Kind of DOS, one of `KINDS`; total where neither file nor caller says so.
        element: Element to select from a file of projected DOS, or that the DOS is projected on.

    Raises:
        SpectrumError: The file cannot be read, does not declare its unit, contradicts an argument, or is no DOS.
        FormulaError: The element is not in the vocabulary.
    """
    source = os.fspath(path)
    unit = None if unit is None else parse_unit(unit)
    kind = None if kind is None else parse_kind(kind)
    if element is not None:
        element_index(element)
    return checked(_parse(_bytes(Path(path), source), source, element), source, unit=unit, kind=kind)


def checked(raw: Raw, source: str, *, unit: str | None, kind: str | None) -> Spectrum:
    """Return a spectrum of what a file holds and a caller says.

    Raises:
        SpectrumError: They contradict each other, nobody says the unit, or the numbers are no DOS.
    """
    unit = _agreed(source, "unit", raw.unit, unit) or raw.usual_unit
    kind = _agreed(source, "kind", raw.kind, kind)
    if unit is None:
        raise SpectrumError(
            f"{source} declares no energy unit",
            fix=f"Say unit=... (--unit), one of {', '.join(UNITS)}, or write the header energy_meV,dos or # unit: meV",
        )
    told = kind or ("projected" if raw.element else None)
    return Spectrum(
        raw.energy,
        raw.dos,
        unit,
        told or "total",
        raw.element,
        source,
        error=raw.error,
        kind_told=told is not None,
        remark=raw.remark if kind is None else "",
    )


def _bytes(path: Path, source: str) -> bytes:
    """Return what a file holds, unpacked."""
    if not source:
        raise SpectrumError("the name of a file is empty", fix="Give the path of a spectrum")
    try:
        data = path.read_bytes()
    except OSError as error:
        reasons = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder"}
        what = reasons.get(type(error), f"cannot be read: {error.strerror}")
        raise SpectrumError(f"file {source} {what}", fix="Give the path of a spectrum's file") from error
    unpack = next((unpack for magic, unpack in PACKED.items() if data.startswith(magic)), None)
    if unpack is not None:
        try:
            with unpack(io.BytesIO(data)) as file:
                data = file.read(LARGEST + 1)
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise SpectrumError(f"file {source} is damaged", why=str(error), fix="Compress it again") from error
        if len(data) > LARGEST:
            raise SpectrumError(f"file {source} unpacks to more than {LARGEST >> 20} MiB", fix="Give a spectrum")
    if not data.strip():
        raise SpectrumError(f"file {source} is empty", fix="Give a file with energies and DOS")
    return data


def _text(data: bytes, source: str) -> str:
    """Decode text: UTF-8 or UTF-16 with or without mark, or Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in data[:64] and not any(data[1:64:2]):
        encoding = "utf-16-le"
    elif b"\0" in data[:64] and not any(data[0:64:2]):
        encoding = "utf-16-be"
    elif b"\0" in data or data[:4] in (b"%PDF", b"PK\x03\x04"):
        raise SpectrumError(
            f"file {source} is not text",
            fix="Export energy and DOS as CSV; spreadsheets, archives and pictures are not read",
        )
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("latin-1")


def describe_file(path: str | os.PathLike[str], *, element: str | None = None) -> tuple[str, Raw]:
    """Return the name of a file's format, and its numbers with what the file itself declares of them.

    Args:
        path: The file.
        element: Element to select from a file of projected DOS.

    Raises:
        SpectrumError: The file cannot be read, or is no DOS.
    """
    source = os.fspath(path)
    read, content = _reader(_bytes(Path(path), source), source)
    raw = read(content, source, element)
    return raw.program or NAMES[read.__module__.rpartition(".")[2]], raw


def _parse(data: bytes, source: str, element: str | None) -> Raw:
    read, content = _reader(data, source)
    return read(content, source, element)


def _reader(data: bytes, source: str) -> tuple[Callable[..., Raw], Any]:
    """Return what reads a file, and what it reads: bytes, text, or a JSON document."""
    if data.startswith(hdf5.MAGIC):
        return hdf5.read, data
    text = _text(data, source)
    if text.lstrip()[:1] not in ("{", "[") or _SECTION.match(text):
        return next((read for matches, read in TEXT if matches(text)), table.read), text
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SpectrumError(f"{source} is broken JSON", why=str(error), fix="Write the file again") from error
    for matches, read in JSON:
        if matches(document):
            return read, document
    raise SpectrumError(
        f"{source} is JSON of no known class",
        fix="Give Euphonic's Spectrum1D or Spectrum1DCollection, pymatgen's PhononDos or CompletePhononDos, or a CSV",
    )


def _agreed(source: str, field: str, declared: str | None, given: str | None) -> str | None:
    """Return what file and caller agree on.

    Raises:
        SpectrumError: They contradict each other.
    """
    if declared is not None and given is not None and declared != given:
        raise SpectrumError(
            f"{source} declares {field} {declared}, but {field}={given!r} was given",
            fix=f"Leave {field} out if the file is right, or mend the file",
        )
    return declared or given
