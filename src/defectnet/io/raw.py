"""What every reader returns: the numbers of a file, and what the file itself declares about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import SpectrumError

FloatArray = NDArray[np.float64]

_EXPONENT = re.compile(r"(?<=[\d.])[dD](?=[-+]?\d)|(?<=\d)(?=[-+]\d{3}$)")


@dataclass(frozen=True)
class Raw:
    """Numbers of a file before any check that they are a DOS.

    Attributes:
        energy: (n,) energies.
        dos: (n,) DOS.
        unit: Energy unit that the file declares; None if it does not.
        kind: Kind of DOS that the file or its format declares; None if neither does.
        element: Element that the DOS is projected on, where the file says so.
        error: (n,) standard deviation of the DOS, where the file has it.
        remark: What is doubtful of it, for a warning.
        usual_unit: Unit that the format has where nobody says otherwise; a caller's takes precedence over it.
        program: What wrote it, where one reader knows files of several programs.
    """

    energy: FloatArray
    dos: FloatArray
    unit: str | None
    kind: str | None = None
    element: str | None = None
    error: FloatArray | None = None
    usual_unit: str | None = None
    remark: str = ""
    program: str = ""


def numbers(values: Any, what: str) -> FloatArray:
    """Return a JSON list, or an array of NumPy, also as monty writes it, as a float array.

    Args:
        values: What the JSON holds.
        what: File and field, for the error.

    Raises:
        SpectrumError: It is no list of numbers.
    """
    fix = "Write the file again with the program that made it"
    if isinstance(values, dict) and values.get("@module") == "numpy":
        values = values.get("data")
    if not isinstance(values, list | np.ndarray) or not len(values):
        raise SpectrumError(f"{what} is missing or empty", fix=fix)
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SpectrumError(f"{what} does not hold plain numbers", why=str(error), fix=fix) from error


def number(text: str) -> float:
    """Read a number, also as Fortran writes it: ``0.25D+00``, ``0.25-101``.

    Raises:
        ValueError: It is none.
    """
    if "_" in text:  # Python's own, in no file
        raise ValueError(text)
    try:
        return float(text)
    except ValueError:
        return float(_EXPONENT.sub("e", text.strip()))


def uncommented(text: str) -> list[tuple[int, str]]:
    """Return the lines, with their numbers, that are neither empty nor a comment."""
    return [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] != "#"]


def rows(lines: Iterable[tuple[int, str]], source: str, *, fix: str, width: int | None = None) -> FloatArray:
    """Read lines of numbers that blanks separate.

    Args:
        lines: Numbers of lines in the file, and lines.
        source: File name, for the error.
        fix: The way out, for the error.
        width: Number of columns; that of the first line if None.

    Returns:
        (n, width) numbers.

    Raises:
        SpectrumError: There are none, lines differ in length, or a cell is no number.
    """
    table: list[list[float]] = []
    for place, line in lines:
        try:
            table.append([number(cell) for cell in line.split()])
        except ValueError as error:
            raise SpectrumError(f"{source}, line {place}: {line.strip()!r} are not all numbers", fix=fix) from error
        width = width or max(len(table[0]), 2)
        if len(table[-1]) != width:
            raise SpectrumError(f"{source}, line {place}: {len(table[-1])} columns, not {width}", fix=fix)
    if not table:
        raise SpectrumError(f"{source} holds no numbers", fix=fix)
    return np.array(table)


def select_elements(
    lines: FloatArray, elements: Sequence[str], element: str | None, source: str
) -> tuple[FloatArray, str | None]:
    """Sum the DOS of all atoms, or of one element's atoms.

    Args:
        lines: (atoms, n) DOS of each atom or species.
        elements: Element of each line.
        element: Element to select; None sums all.
        source: File name, for the error.

    Returns:
        (n,) DOS, and the element that it is projected on.

    Raises:
        SpectrumError: The element is not in the file.
    """
    if element is None:
        return np.asarray(lines.sum(axis=0)), None
    chosen = np.array([symbol == element for symbol in elements])
    if not chosen.any():
        raise SpectrumError(
            f"{source} has no DOS projected on {element}",
            fix=f"Choose one of {', '.join(dict.fromkeys(elements))}, or none for the total",
        )
    return np.asarray(lines[chosen].sum(axis=0)), element
