"""CASTEP's `.phonon_dos`: a block of wavenumbers, the total DOS, and a column for each species."""

from __future__ import annotations

import re

from defectnet.io.raw import Raw, rows, select_elements
from defectnet.spectrum import parse_unit

_BLOCK = re.compile(r"^\s*BEGIN DOS\s+Freq\s*\(([^)]*)\)\s+g\(f\)(.*)$", re.MULTILINE | re.IGNORECASE)


def matches(text: str) -> bool:
    """Tell whether a text is CASTEP's output of phonons."""
    return text.lstrip().startswith("BEGIN header") and _BLOCK.search(text) is not None


def read(text: str, source: str, element: str | None) -> Raw:
    """Read the total DOS, or one species' share.

    Raises:
        SpectrumError: A line of the block is not numbers, the unit is unknown, or the element is not there.
    """
    found = _BLOCK.search(text)
    assert found is not None
    species = found[2].split()
    lines = []
    for place, line in enumerate(text[found.end() :].splitlines()[1:], text[: found.end()].count("\n") + 2):
        if line.strip().upper().startswith("END"):
            break
        if line.strip():
            lines.append((place, line))
    values = rows(lines, source, fix="Run CASTEP again", width=2 + len(species))
    unit = parse_unit(found[1], field=f"{source}, BEGIN DOS")
    if element is None:
        return Raw(values[:, 0], values[:, 1], unit, "total")
    names = [re.split(r"[:\d]", name)[0] for name in species]  # Fe:1 is a label
    dos, projected = select_elements(values[:, 2:].T, names, element, source)
    return Raw(values[:, 0], dos, unit, "projected", projected)
