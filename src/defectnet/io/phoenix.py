"""PHOENIX's `_dos.dat`: partial DOS from nuclear resonant inelastic X-ray scattering, as text for Grace.

Lines with `@` carry the labels of the plot, among them the units; then come energy in meV, DOS per eV, and its
standard deviation. The DOS is projected on the resonant nucleus, which the file does not name (57Fe most often).
"""

from __future__ import annotations

import re

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw, rows
from defectnet.spectrum import parse_unit

_LABEL = re.compile(r'@\s*(xaxis|yaxis)\s+label\s+"([^"]*)"', re.IGNORECASE)


def matches(text: str) -> bool:
    """Tell whether a text is made for Grace."""
    return text.lstrip().startswith("@") or (
        text.lstrip().startswith("#")
        and re.search(r"^@\s*xaxis\s+label", text[:20_000], re.IGNORECASE | re.MULTILINE) is not None
    )


def read(text: str, source: str, element: str | None) -> Raw:
    """Read a partial DOS; `element` says which nucleus was resonant.

    Raises:
        SpectrumError: It is another of PHOENIX's plots, or a line is not three numbers.
    """
    labels = {axis.lower(): label for axis, label in _LABEL.findall(text)}
    if "dos" not in labels.get("yaxis", "").lower():
        found = f"its y axis is {labels['yaxis']!r}" if "yaxis" in labels else "it names no y axis"
        raise SpectrumError(
            f"{source} is a Grace plot, but not of a DOS",
            why=found,
            fix="Use the file that PHOENIX calls <name>_dos.dat",
        )
    unit = re.search(r"\(([^)]*)\)", labels.get("xaxis", ""))
    if unit is None:
        raise SpectrumError(f"{source}: the x axis names no unit", fix='Restore the line @xaxis label "energy (meV)"')
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip() and line.lstrip()[0] not in "@#&"]
    values = rows(lines, source, fix="Run PHOENIX again, or leave energy, DOS and, if known, its standard deviation")
    if values.shape[1] > 3:
        raise SpectrumError(
            f"{source} has {values.shape[1]} columns", fix="Leave energy, DOS and its standard deviation"
        )
    kind = "projected" if "partial" in labels["yaxis"].lower() else None
    declared = parse_unit(unit.group(1), field=f"{source}, x axis")
    return Raw(
        values[:, 0], values[:, 1], declared, kind, element, error=values[:, 2] if values.shape[1] == 3 else None
    )
