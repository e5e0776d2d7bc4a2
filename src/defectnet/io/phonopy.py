"""phonopy's `total_dos.dat` and `projected_dos.dat` (and the older `partial_dos.dat`): frequencies in THz.

Both start with one comment, how the DOS was integrated. The total has one column of DOS, the projected one a column
for each atom of the primitive cell, without saying which atom is which element.
"""

from __future__ import annotations

import re

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw

_HEADER = re.compile(r"#\s*(Sigma\s*=\s*[-+.\deE]+|Tetrahedron method)\s*$")


def matches(text: str) -> bool:
    """Tell whether a text starts with phonopy's comment."""
    return _HEADER.match(text.lstrip().split("\n", 1)[0]) is not None


def read(text: str, source: str, element: str | None) -> Raw:
    """Read the total, or sum the columns of the atoms to it.

    Raises:
        SpectrumError: A value is no number, lines differ in length, or one element is asked for.
    """
    if element is not None:
        raise SpectrumError(
            f"{source}: phonopy does not write which column belongs to {element}",
            fix="Leave element out, or sum the columns of its atoms into a two-column file yourself",
        )
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, cells) for number, cells in rows if cells and not cells[0].startswith("#")]
    if not rows:
        raise SpectrumError(f"{source} holds no numbers", fix="Run phonopy again")
    width = len(rows[0][1])
    for number, cells in rows:
        if len(cells) != width or width < 2:
            raise SpectrumError(
                f"{source}, line {number}: {len(cells)} columns",
                why=f"the first line has {width}",
                fix="Run phonopy again",
            )
    values = np.array([_floats(cells, number, source) for number, cells in rows])
    return Raw(values[:, 0], values[:, 1:].sum(axis=1), unit="THz", kind="total")


def _floats(cells: list[str], number: int, source: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise SpectrumError(
            f"{source}, line {number}: {' '.join(cells)!r} are not all numbers", fix="Run phonopy again"
        ) from error
