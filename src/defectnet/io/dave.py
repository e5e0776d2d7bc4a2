"""DAVE's grouped ASCII, `.grp`, which Mantid's SaveDaveGrp writes too: energies, groups, then values with errors.

# Number of Energy transfer values
400
# Number of Y values
1
# Energy transfer (meV) values
...
# Y () values
1
# Group 0
(value and error in each line)
"""

from __future__ import annotations

import re

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw, number
from defectnet.spectrum import parse_unit

_HEAD = re.compile(r"#\s*Number of (.+?) values", re.IGNORECASE)
_UNIT = re.compile(r"\(([^()]*)\)\s*values", re.IGNORECASE)
_MICRO = re.compile(r"(?:micro|u|µ|μ|\\mu)[\s_-]*eV", re.IGNORECASE)
_FIX = "Write it again with DAVE, or with Mantid's SaveDaveGrp"
_NEUTRON = "{} is DAVE's, of neutrons, and does not say the kind: is the DOS neutron-weighted (--kind)?"


def matches(text: str) -> bool:
    """Tell whether a text starts with DAVE's comment."""
    return _HEAD.match(text.lstrip()) is not None


def read(text: str, source: str, element: str | None) -> Raw:
    """Read the one group of a file, with its errors.

    Raises:
        SpectrumError: The file holds several groups (S(Q,E)), its axis is no energy, or it is not whole.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    heads = [i for i, line in enumerate(lines) if line.startswith("#")]
    parts = [(lines[i], lines[i + 1 : end]) for i, end in zip(heads, [*heads[1:], len(lines)], strict=True)]
    try:
        count, groups = (int(number(body[0])) for _, body in parts[:2])
        energy = [number(line) for line in parts[2][1]]
        values = [[number(cell) for cell in line.split()] for line in parts[4][1]]
    except (IndexError, ValueError) as error:
        raise SpectrumError(f"{source} is not whole, for DAVE's format", why=str(error), fix=_FIX) from error
    if groups != 1:
        raise SpectrumError(
            f"{source} holds {groups} groups of {parts[1][0].strip('# ').partition(' of ')[2].removesuffix(' values')}",
            why="an S(Q,E), or several spectra",
            fix="Convert it to a DOS first, and save that as one group",
        )
    if len(energy) != count or len(values) != count or any(len(row) != 2 for row in values):
        raise SpectrumError(
            f"{source}: {count} values are said, there are {len(energy)} energies and {len(values)} values", fix=_FIX
        )
    name = parts[2][0]
    found = _UNIT.search(name)
    if found is None:
        raise SpectrumError(f"{source}: {name!r} names no unit", fix=_FIX)
    micro = _MICRO.fullmatch(found[1].strip())
    unit = "meV" if micro else parse_unit(found[1], field=f"{source}, {name.strip('# ')}")
    scale = 1e-3 if micro else 1.0
    remark = "" if element else _NEUTRON.format(source)
    dos, sigma = np.array(values).T
    return Raw(scale * np.array(energy), dos, unit, None, element, sigma, remark=remark)
