"""pymatgen's JSON of `PhononDos` and `CompletePhononDos`, as the Materials Project serves it: frequencies in THz."""

from __future__ import annotations

from typing import Any

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw, numbers, select_elements

_CLASSES = ("PhononDos", "CompletePhononDos")


def matches(document: dict[str, Any]) -> bool:
    """Tell whether a JSON object was written by pymatgen."""
    return "@class" in document


def read(document: dict[str, Any], source: str, element: str | None) -> Raw:
    """Read the total DOS, or one element's share from the sites of a `CompletePhononDos`.

    Raises:
        SpectrumError: It is another class, densities are missing, lengths do not fit, or the element is not there.
    """
    name = document["@class"]
    if name not in _CLASSES:
        raise SpectrumError(
            f"{source} holds the class {name!r}", fix=f"Save pymatgen's {' or '.join(_CLASSES)}, with as_dict"
        )
    frequencies = numbers(document.get("frequencies"), f"{source}: frequencies")
    densities = numbers(document.get("densities"), f"{source}: densities")
    if frequencies.ndim != 1 or densities.shape != frequencies.shape:
        raise SpectrumError(
            f"{source}: frequencies and densities have shapes {frequencies.shape} and {densities.shape}",
            fix="Give one density for each frequency",
        )
    if element is None:
        return Raw(frequencies, densities, unit="THz", kind="total")
    sites = numbers(document.get("pdos"), f"{source}: pdos, the DOS of each site, needed for element {element},")
    species = _site_elements(document, source)
    if sites.shape != (len(species), len(frequencies)):
        raise SpectrumError(
            f"{source}: pdos has shape {sites.shape}, for {len(species)} sites and {len(frequencies)} frequencies",
            fix="Write the file again with pymatgen",
        )
    dos, projected = select_elements(sites, species, element, source)
    return Raw(frequencies, dos, unit="THz", kind="projected", element=projected)


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
