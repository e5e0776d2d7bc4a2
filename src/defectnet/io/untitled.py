"""Tables of numbers alone, without a unit, that programs are known by: how they write, and what they write.

GPUMD's `dos.out`: "%g", four columns: angular frequency from its step on, and the DOS along x, y and z, of one area.
ShengBTE's `BTE.dos` and `BTE.pdos`: Fortran's E14.5; angular frequency, total or a column for each atom.
The `PHDOS.OUT` of elk and exciting: Fortran's G18.10; energies in Hartree, far below those of any other unit.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw, rows, uncommented
from defectnet.spectrum import MIN_POINTS

_SHENGBTE: Final = re.compile(r"(?:(?=.{14})\s+-?0\.\d{5}E[+-]\d\d){2,}")
_ELK: Final = re.compile(r"(?=.{18})\s+-?\d\.\d{9,10}(?:E[+-]\d\d|\s{4})(?=.{18}|.{14}$)\s+-?\d*\.\d+(?:E[+-]\d\d|\s*)")
_HARTREE: Final = 0.02  # 544 meV; of a DOS in eV it would be 20 meV
_EVEN: Final = 0.02  # by so much the areas of GPUMD's columns may differ: noise, and what lies above the last frequency
_STEP: Final = 1e-5  # of the highest frequency: six digits are written


def matches(text: str) -> bool:
    """Tell whether a text is one of these tables."""
    return _program(text) is not None


def read(text: str, source: str, element: str | None) -> Raw:
    """Read the total.

    Raises:
        SpectrumError: One element is asked for, or a line is not numbers.
    """
    program, unit = _program(text) or ("", None)
    if element is not None:
        raise SpectrumError(
            f"{source}: {program} does not write which column belongs to {element}",
            fix="Leave element out, or sum the columns of its atoms into a two-column file yourself",
        )
    values = rows(uncommented(text), source, fix=f"Run {program} again")
    return Raw(values[:, 0], values[:, 1:].sum(axis=1), None, "total", usual_unit=unit, program=program)


def _program(text: str) -> tuple[str, str | None] | None:
    """Return which program wrote a text, and the unit that it has."""
    head = text[:2000].splitlines()[:4]
    if all(map(_SHENGBTE.fullmatch, head)):
        return "ShengBTE", "rad/ps"
    last = text[-200:].split("\n")[-1 if text[-1:] != "\n" else -2].split()
    if all(map(_ELK.fullmatch, head)) and last and abs(float(last[0])) < _HARTREE:
        return "elk", "Hartree"
    return _gpumd(text) if all(len(line.split()) == 4 for line in head) else None


def _gpumd(text: str) -> tuple[str, str | None] | None:
    try:
        values: FloatArray = np.loadtxt(text.splitlines(), ndmin=2)
    except ValueError:
        return None
    if values.shape[1] != 4 or len(values) < MIN_POINTS:
        return None
    frequency, area = values[:, 0], values[:, 1:].sum(axis=0)
    step = np.diff(frequency)
    if np.ptp(step) > _STEP * frequency[-1] or np.ptp(area) > _EVEN * area.mean():
        return None
    # Shares of three atoms are of one area, too, and their sum is the total; but programs begin elsewhere.
    return "GPUMD", "rad/ps" if abs(frequency[0] - step.mean()) < _STEP * step.mean() * len(step) else None
