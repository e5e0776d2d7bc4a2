"""Spectra that a program has in memory: arrays, tables, and what other libraries call a DOS.

None of these libraries is imported: an object is known by what it has, and read like the file that its library writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectnet.elements import element_index
from defectnet.errors import ConfigError, SpectrumError
from defectnet.io import euphonic, pymatgen, table
from defectnet.io.raw import Raw
from defectnet.io.read import JSON, checked, read_spectrum
from defectnet.spectrum import UNITS, Spectrum, parse_kind, parse_unit

_FORMS_TEXT: Final = (
    "Give a file, a Spectrum, arrays (energy, dos) or (energy, dos, error), or a DOS of a library in docs/pipelines.md"
)


def as_spectrum(
    source: Any, role: str, *, unit: str | None = None, kind: str | None = None, element: str | None = None
) -> Spectrum:
    """Return a spectrum of any form as a `Spectrum`.

    Args:
        source: A file; a `Spectrum`; arrays (energy, dos[, error]); an (n, 2) or (n, 3) array; a DataFrame, whose
            titles count as those of a CSV file do; `PhononDos` or `CompletePhononDos` of pymatgen, or a document
            that holds one; `TotalDos`, `ProjectedDos` or `Phonopy` of phonopy; `Spectrum1D` or `Spectrum1DCollection`
            of Euphonic; `GridDOSData` or `GridDOSCollection` of ase. docs/pipelines.md says which know their unit.
        role: What errors call it.
        unit: Energy unit of files that declare none, and of arrays. Objects that know their unit keep it.
        kind: Kind of DOS of files that declare none, and of arrays.
        element: Element to select from what holds projected DOS, or that the DOS is projected on.

    Raises:
        SpectrumError: It is no DOS.
        ConfigError: The form is not known, or arrays come without a unit.
    """
    if isinstance(source, Spectrum):
        return source
    if isinstance(source, str | os.PathLike):
        return read_spectrum(source, unit=unit, kind=kind, element=element)
    if element is not None:
        element_index(element)
    unit = None if unit is None else parse_unit(unit)
    kind = None if kind is None else parse_kind(kind)
    raw = next((found for form in FORMS if (found := form(source, role, element)) is not None), None)
    if raw is None:
        raw = _arrays(source, role, element)
    if raw.unit is None and raw.usual_unit is None and unit is None:
        raise ConfigError(f"{role} is given as arrays without a unit", fix=f"Say unit=, one of {', '.join(UNITS)}")
    return checked(raw, role, unit=None if raw.unit else unit, kind=kind)


def _document(source: Any, role: str, element: str | None) -> Raw | None:
    source = getattr(source, "phonon_dos", None) or source  # of emmet and atomate2
    if not isinstance(source, dict):
        return _pymatgen(source, role, element)
    for matches, read in JSON:
        if matches(source):
            return read(source, role, element)
    raise SpectrumError(f"{role} is a document without a phonon DOS", fix=_FORMS_TEXT)


def _pymatgen(source: Any, role: str, element: str | None) -> Raw | None:
    if not (hasattr(source, "frequencies") and hasattr(source, "densities") and hasattr(source, "as_dict")):
        return None
    return pymatgen.read(source.as_dict(), role, element)


def _phonopy(source: Any, role: str, element: str | None) -> Raw | None:
    symbols = None
    if hasattr(source, "run_total_dos") and hasattr(source, "primitive"):
        symbols = source.primitive.symbols
        try:
            source = source.total_dos if element is None else source.projected_dos
        except RuntimeError:
            source = None
        if source is None:
            what = "total" if element is None else "projected"
            raise SpectrumError(f"{role} is a Phonopy without a {what} DOS", fix=f"Call its run_{what}_dos() first")
    if not hasattr(source, "frequency_points") or not (hasattr(source, "dos") or hasattr(source, "projected_dos")):
        return None
    dos = np.asarray(source.dos if hasattr(source, "dos") else source.projected_dos, np.float64)
    if element is not None:
        chosen = [i for i, symbol in enumerate(symbols or ()) if symbol == element]
        if dos.ndim != 2 or not chosen:
            raise SpectrumError(
                f"{role} has no DOS projected on {element}", fix="Give a Phonopy whose run_projected_dos() was called"
            )
        dos = dos[chosen]
    dos = dos.sum(axis=0) if dos.ndim == 2 else dos
    kind = "total" if element is None else "projected"
    return Raw(np.asarray(source.frequency_points, np.float64), dos, "THz", kind, element)


def _euphonic(source: Any, role: str, element: str | None) -> Raw | None:
    if not (hasattr(source, "x_data") and hasattr(source, "y_data") and hasattr(source, "to_dict")):
        return None
    return euphonic.read({**source.to_dict(), euphonic.CLASS_KEY: type(source).__name__}, role, element)


def _ase(source: Any, role: str, element: str | None) -> Raw | None:
    if not hasattr(source, "get_energies"):
        return None
    collection = hasattr(source, "get_all_weights")
    if not collection and not hasattr(source, "get_weights"):
        raise SpectrumError(
            f"{role} is ase's {type(source).__name__}, of electrons", fix="Give the DOS of phonons: Phonons.get_dos()"
        )
    lines = list(source) if collection else [source]
    if any(type(line).__name__.startswith("Raw") for line in lines):
        raise SpectrumError(
            f"{role} is a {type(source).__name__} of ase: modes, not a curve", fix="Call sample_grid(npts, width=...)"
        )
    species = [line.info.get("symbol", line.info.get("element")) for line in lines]
    chosen = [line for line, symbol in zip(lines, species, strict=True) if element in (None, symbol)]
    if not chosen:
        raise SpectrumError(
            f"{role} has no DOS projected on {element}", fix="Name it in the info of a DOS: {'symbol': ...}"
        )
    projected = element or (str(species[0]) if not collection and species[0] else None)
    dos = np.sum([np.asarray(line.get_weights(), np.float64) for line in chosen], axis=0)
    return Raw(
        np.asarray(lines[0].get_energies(), np.float64), dos, "eV", "projected" if projected else "total", projected
    )


def _frame(source: Any, role: str, element: str | None) -> Raw | None:
    if hasattr(source, "reset_index") and not hasattr(source, "columns"):  # a Series over energies
        source = source.reset_index()
    if not hasattr(source, "columns") or not hasattr(source, "to_numpy"):
        return None
    unnamed = np.asarray(source.index).dtype.kind == "f" and not table.is_energy(str(source.columns[0]))
    if table.is_energy(str(source.index.name or "")) or unnamed:
        source = source.reset_index()
    columns, values = [str(title) for title in source.columns], _floats(source.to_numpy(), role)
    if len(columns) < 2 or all(title.isdigit() for title in columns):
        return _arrays(values, role, element)
    return table.from_columns(values, columns, role, element, energy=columns[:1])


FORMS: Final[tuple[Callable[[Any, str, str | None], Raw | None], ...]] = (_document, _phonopy, _euphonic, _ase, _frame)
"""Each returns what an object holds, or None where it is not of its form."""


def _arrays(source: Any, role: str, element: str | None) -> Raw:
    """Return two or three columns."""
    if not isinstance(source, tuple | list | np.ndarray):
        raise ConfigError(f"{role} is a {type(source).__name__}", fix=_FORMS_TEXT)
    if len(source) > 3:  # points, not columns
        source = _floats(source, role)
    found: list[ArrayLike] = list(source.T if isinstance(source, np.ndarray) and source.ndim == 2 else source)
    if len(found) not in (2, 3):
        raise ConfigError(f"{role} has {len(found)} columns", fix=_FORMS_TEXT)
    unit = _unit_of(found[0], role)
    energy, dos, *error = (_floats(getattr(part, "magnitude", part), role) for part in found)
    return Raw(energy, dos, unit, None, element, error[0] if error else None)


def _unit_of(values: Any, role: str) -> str | None:
    """Return the unit of a quantity of pint; None for plain numbers."""
    if not hasattr(values, "magnitude"):
        return None
    return parse_unit(f"{values.units:~C}", field=f"{role}, energies")


def _floats(values: Any, role: str) -> NDArray[np.float64]:
    if np.ma.is_masked(values) or np.iscomplexobj(values):
        what = "complex numbers" if np.iscomplexobj(values) else "masked points"
        raise ConfigError(f"{role} holds {what}", fix="Leave them out: give plain numbers")
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{role} does not hold plain numbers", why=str(error), fix=_FORMS_TEXT) from error
