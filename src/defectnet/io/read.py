"""Find out what a file contains, and read it as a spectrum."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from defectnet.elements import element_index
from defectnet.errors import SpectrumError
from defectnet.io import euphonic, phoenix, phonopy, pymatgen, table
from defectnet.io.raw import Raw
from defectnet.spectrum import UNITS, Spectrum, parse_kind, parse_unit

NOISE_SIGMAS = 4.0
"""Negative values within so many of their standard deviations are noise."""


def read_spectrum(
    path: str | os.PathLike[str], *, unit: str | None = None, kind: str | None = None, element: str | None = None
) -> Spectrum:
    """Read a phonon DOS. The format is told from what the file contains, never from its name.

    Known are CSV and text tables of two or three columns, phonopy's ``total_dos.dat`` and ``projected_dos.dat``,
    Euphonic's ``Spectrum1D`` and ``Spectrum1DCollection`` JSON, pymatgen's ``PhononDos`` and ``CompletePhononDos``
    JSON, and PHOENIX's ``_dos.dat``.

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
    raw = _parse(_text(Path(path), source), source, element)
    unit = _agreed(source, "unit", raw.unit, unit)
    kind = _agreed(source, "kind", raw.kind, kind)
    if unit is None:
        raise SpectrumError(
            f"{source} declares no energy unit",
            fix=f"Say unit=... (--unit), one of {', '.join(UNITS)}, or write the header energy_meV,dos or # unit: meV",
        )
    dos = raw.dos
    if raw.error is not None:
        dos = np.where((dos < 0) & (dos >= -NOISE_SIGMAS * raw.error), 0.0, dos)
    kind = kind or ("projected" if raw.element else "total")
    return Spectrum(raw.energy, dos, unit, kind=kind, element=raw.element, source=source)


def _text(path: Path, source: str) -> str:
    """Read a file as text; UTF-8 with or without mark, or Latin-1."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reasons = {FileNotFoundError: "does not exist", IsADirectoryError: "is a folder"}
        what = reasons.get(type(error), f"cannot be read: {error.strerror}")
        raise SpectrumError(f"file {source} {what}", fix="Give the path of a spectrum's file") from error
    if not data.strip():
        raise SpectrumError(f"file {source} is empty", fix="Give a file with energies and DOS")
    if b"\0" in data or data[:4] == b"%PDF":
        raise SpectrumError(
            f"file {source} is not text",
            fix="Export energy and DOS as CSV; HDF5, NeXus, spreadsheets and pictures are not read",
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse(text: str, source: str, element: str | None) -> Raw:
    if text.lstrip()[0] in "{[":
        return _parse_json(text, source, element)
    if phonopy.matches(text):
        return phonopy.read(text, source, element)
    if phoenix.matches(text):
        return phoenix.read(text, source, element)
    return table.read(text, source, element)


def _parse_json(text: str, source: str, element: str | None) -> Raw:
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise SpectrumError(f"{source} is broken JSON", why=str(error), fix="Write the file again") from error
    if isinstance(document, dict) and euphonic.matches(document):
        return euphonic.read(document, source, element)
    if isinstance(document, dict) and pymatgen.matches(document):
        return pymatgen.read(document, source, element)
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
