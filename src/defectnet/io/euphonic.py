"""Euphonic's JSON of `Spectrum1D` and `Spectrum1DCollection`.

Energies are bin centres, or bin edges where there is one more of them than values. Metadata may name the species of
a line and the weighting by scattering cross sections.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw, numbers, select_elements
from defectnet.spectrum import parse_unit

CLASS_KEY = "__euphonic_class__"
_CLASSES = ("Spectrum1D", "Spectrum1DCollection")


def matches(document: dict[str, Any]) -> bool:
    """Tell whether a JSON object was written by Euphonic."""
    return CLASS_KEY in document


def read(document: dict[str, Any], source: str, element: str | None) -> Raw:
    """Read a spectrum, or the sum of a collection's species or of one of them.

    Raises:
        SpectrumError: It is another class, lengths do not fit, or the element is not there.
    """
    name = document[CLASS_KEY]
    if name not in _CLASSES:
        raise SpectrumError(
            f"{source} holds Euphonic's class {name!r}", fix=f"Save a DOS as {' or '.join(_CLASSES)}, with to_json_file"
        )
    x = numbers(document.get("x_data"), f"{source}: x_data")
    y = numbers(document.get("y_data"), f"{source}: y_data")
    expected = 1 if name == "Spectrum1D" else 2
    if x.ndim != 1 or y.ndim != expected or len(x) - y.shape[-1] not in (0, 1):
        raise SpectrumError(
            f"{source}: x_data and y_data of {name} have shapes {x.shape} and {y.shape}",
            fix="x_data needs as many points as y_data (centres) or one more (edges); write the file again",
        )
    if len(x) == y.shape[-1] + 1:
        x = (x[1:] + x[:-1]) / 2
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    unit = parse_unit(str(document.get("x_data_unit")), field=f"{source}, x_data_unit")
    dos, projected = _line(y, metadata, element, source) if y.ndim == 1 else _sum(y, metadata, element, source)
    weighted = any("weighting" in part for part in (metadata, *_lines(metadata)))
    kind = "projected" if projected else "neutron-weighted" if weighted else None
    if projected and weighted:
        raise SpectrumError(
            f"{source} is weighted by scattering cross sections and projected on {projected}",
            fix="Give the sum of all elements, or the unweighted projected DOS",
        )
    return Raw(x, dos, unit, kind, projected)


def _lines(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    lines = metadata.get("line_data", [])
    return [line if isinstance(line, dict) else {} for line in lines] if isinstance(lines, list) else []


def _species(text: Any) -> str | None:
    """Return the element of a species, which may carry an isotope or a label: 11B, Fe:1."""
    match = re.match(r"\d*([A-Z][a-z]?)(?![a-z])", text) if isinstance(text, str) else None
    return match.group(1) if match else None


def _line(y: FloatArray, metadata: dict[str, Any], element: str | None, source: str) -> tuple[FloatArray, str | None]:
    own = _species(metadata.get("species"))
    if element is not None and own != element:
        found = f"it is projected on {own}" if own else "it names no species"
        raise SpectrumError(
            f"{source} has no DOS projected on {element}", why=found, fix="Leave element out, or give another file"
        )
    return y, own


def _sum(y: FloatArray, metadata: dict[str, Any], element: str | None, source: str) -> tuple[FloatArray, str | None]:
    lines = [*_lines(metadata), *({} for _ in y)][: len(y)]
    # Species of a line, or of all lines, where they do not differ.
    species = [_species(line.get("species", metadata.get("species"))) for line in lines]
    totals = [i for i, line in enumerate(lines) if str(line.get("label", "")).lower() == "total"]
    if element is None and len(totals) == 1:
        return y[totals[0]], None
    known = [i for i, symbol in enumerate(species) if symbol is not None]
    if not known or (element is None and len(known) < len(y)):
        if element is None and len(y) == 1:
            return y[0], None
        raise SpectrumError(
            f"{source}: line_data does not name the species of each of {len(y)} lines",
            fix="Save the total DOS as Spectrum1D, or keep the species in the metadata",
        )
    dos, projected = select_elements(y[known], [str(species[i]) for i in known], element, source)
    return np.asarray(dos), projected or (str(species[0]) if len(y) == 1 else None)
