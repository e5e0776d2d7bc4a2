"""abinit's `PHDOS` and `PHDOS_by_atom`: the total DOS behind the energy, then shares of types or atoms without a name.

Its netCDF file, `PHDOS.nc`, names the elements; `defectnet.io.hdf5` reads it.
"""

from __future__ import annotations

import re

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw, rows, uncommented
from defectnet.spectrum import parse_unit

_HEAD = re.compile(r"^#\s*Phonon density of states and atom (?:type )?projected DOS", re.MULTILINE)
_UNIT = re.compile(r"^#\s*Energy in (\w+)", re.MULTILINE)


def matches(text: str) -> bool:
    """Tell whether a text starts with abinit's comment."""
    return _HEAD.search(text[:400]) is not None


def read(text: str, source: str, element: str | None) -> Raw:
    """Read the total DOS.

    Raises:
        SpectrumError: One element is asked for, the unit is missing, or a line is not numbers.
    """
    if element is not None:
        raise SpectrumError(
            f"{source}: abinit does not write here which column belongs to {element}",
            fix="Leave element out, or give the file PHDOS.nc of the same run",
        )
    unit = _UNIT.search(text[:2000])
    if unit is None:
        raise SpectrumError(f"{source} has no line '# Energy in Ha'", fix="Write it again with anaddb")
    values = rows(uncommented(text), source, fix="Run anaddb again")
    return Raw(values[:, 0], values[:, 1], parse_unit(unit[1], field=f"{source}, Energy"), "total")
