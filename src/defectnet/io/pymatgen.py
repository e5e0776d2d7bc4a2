"""pymatgen's JSON of `PhononDos` and `CompletePhononDos`, and documents that hold one: frequencies in THz.

The Materials Project (emmet) and atomate2 write such documents; there the class is not named.
"""

from __future__ import annotations

from typing import Any

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw, numbers, select_elements
from defectnet.spectrum import parse_unit

_CLASSES = ("PhononDos", "CompletePhononDos")


_KNOWN = (*_CLASSES, "PhononDOS")  # the last is emmet's

_DEEPEST = 4
"""Levels of a document at which a DOS is looked for."""


def matches(document: Any) -> bool:
    """Tell whether a JSON value is of pymatgen's classes, or holds frequencies and densities."""
    return (isinstance(document, dict) and "@class" in document) or bool(_found(document))


def _found(document: Any, depth: int = 0) -> list[dict[str, Any]]:
    """Return all that has frequencies and densities."""
    if isinstance(document, dict):
        if {"frequencies", "densities"} <= document.keys() and document.get("@class", "PhononDOS") in _KNOWN:
            return [document]
        parts = list(document.values())
    else:
        parts = document if isinstance(document, list) and len(document) < 10 else []
    return [one for part in parts for one in _found(part, depth + 1)] if depth < _DEEPEST else []


def read(document: Any, source: str, element: str | None) -> Raw:
    """Read the total DOS, or one element's share from the DOS of the sites.

    Raises:
        SpectrumError: There is none or several, densities are missing, lengths do not fit, or the element is not there.
    """
    found = [document] if isinstance(document, dict) and document.get("@class") in _CLASSES else _found(document)
    if len(found) != 1:
        raise SpectrumError(
            f"{source} holds {len(found)} phonon DOS" if found else f"{source} holds the class {document['@class']!r}",
            fix=f"Save pymatgen's {' or '.join(_CLASSES)}, with as_dict",
        )
    whole, document = document, found[0]
    frequencies = numbers(document.get("frequencies"), f"{source}: frequencies")
    densities = numbers(document.get("densities"), f"{source}: densities")
    if frequencies.ndim != 1 or densities.shape != frequencies.shape:
        raise SpectrumError(
            f"{source}: frequencies and densities have shapes {frequencies.shape} and {densities.shape}",
            fix="Give one density for each frequency",
        )
    # Classes and what the Materials Project has are in THz; two lists alone are so usually.
    unit = "THz" if "@class" in document or whole is not document else None
    if isinstance(said := document.get("unit", document.get("units")), str):
        unit = parse_unit(said, field=f"{source}, unit")
    if element is None:
        return Raw(frequencies, densities, unit, "total", usual_unit="THz")
    sites = numbers(
        document.get("pdos") or document.get("projected_densities"),
        f"{source}: pdos, the DOS of each site, needed for element {element},",
    )
    species = _site_elements(document if "structure" in document or not isinstance(whole, dict) else whole, source)
    if sites.shape != (len(species), len(frequencies)):
        raise SpectrumError(
            f"{source}: pdos has shape {sites.shape}, for {len(species)} sites and {len(frequencies)} frequencies",
            fix="Write the file again with pymatgen",
        )
    dos, projected = select_elements(sites, species, element, source)
    return Raw(frequencies, dos, unit, "projected", projected, usual_unit="THz")


def _site_elements(document: dict[str, Any], source: str) -> list[str]:
    try:
        sites = [site["species"] for site in document["structure"]["sites"]]
        if any(len(species) != 1 for species in sites):
            raise SpectrumError(
                f"{source}: a site of the structure holds several elements", fix="Give a file of an ordered structure"
            )
        return [str(species[0]["element"]) for species in sites]
    except (KeyError, TypeError, IndexError) as error:
        raise SpectrumError(
            f"{source}: the structure does not name the element of each site", fix="Write the file again with pymatgen"
        ) from error
