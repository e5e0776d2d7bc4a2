"""Spectra that a program has in memory: arrays, tables, and what other libraries call a DOS."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from defectnet.errors import ConfigError
from defectnet.io.read import read_spectrum
from defectnet.spectrum import Spectrum, parse_unit

_FORMS: Final = "Give a file, a Spectrum, or arrays (energy, dos) or (energy, dos, error)"
_THZ: Final = (("frequencies", "densities"), ("frequency_points", "dos"), ("frequency_points", "projected_dos"))
"""Attributes of pymatgen's and phonopy's DOS."""


def as_spectrum(source: Any, role: str, *, unit: str | None = None, kind: str | None = None) -> Spectrum:
    """Return a spectrum of any form as a `Spectrum`.

    Args:
        source: A file; a `Spectrum`; arrays (energy, dos[, error]); an (n, 2) or (n, 3) array or DataFrame; a DOS of
            pymatgen or phonopy (THz) or a `Spectrum1D` of Euphonic, which has its unit.
        role: What errors call it.
        unit: Energy unit of files that declare none, and of arrays.
        kind: Kind of DOS of files that declare none, and of arrays.

    Raises:
        SpectrumError: It is no DOS.
        ConfigError: The form is not known, or arrays come without a unit.
    """
    if isinstance(source, Spectrum):
        return source
    if isinstance(source, str | os.PathLike):
        return read_spectrum(source, unit=unit, kind=kind)
    columns: list[ArrayLike]
    for energy, dos in _THZ:
        if hasattr(source, energy) and hasattr(source, dos):
            values = np.asarray(getattr(source, dos), dtype=np.float64)
            columns, unit = [getattr(source, energy), values.sum(axis=0) if values.ndim == 2 else values], unit or "THz"
            break
    else:
        if hasattr(source, "get_bin_centres") and hasattr(source, "y_data"):
            columns = [source.get_bin_centres().magnitude, source.y_data.magnitude]
            unit = parse_unit(str(source.x_data_unit), field=f"{role}, x_data_unit")
        else:
            columns = _columns(source, role)
    if unit is None:
        raise ConfigError(f"{role} is given as arrays without a unit", fix="Say unit='meV', 'THz', 'cm-1' or 'eV'")
    error = np.asarray(columns[2], dtype=np.float64) if len(columns) == 3 else None
    energies, values = (np.asarray(part, dtype=np.float64) for part in columns[:2])
    return Spectrum(energies, values, unit, kind or "total", source=role, error=error, kind_told=kind is not None)


def _columns(source: Any, role: str) -> list[ArrayLike]:
    """Return two or three columns."""
    if isinstance(source, tuple | list):
        found = list(source)
    elif hasattr(source, "to_numpy") or isinstance(source, np.ndarray):
        table = source.to_numpy() if hasattr(source, "to_numpy") else source
        found = list(table.T) if table.ndim == 2 else []
    else:
        raise ConfigError(f"{role} is a {type(source).__name__}", fix=_FORMS)
    if len(found) not in (2, 3):
        raise ConfigError(f"{role} has {len(found)} columns", fix=_FORMS)
    return found
