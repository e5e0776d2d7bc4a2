"""phonopy's `total_dos.dat` and `projected_dos.dat` (and the older `partial_dos.dat`): frequencies in THz.

Both start with one comment, how the DOS was integrated. The total has one column of DOS, the projected one a column
for each atom of the primitive cell, without saying which atom is which element. With `--factor` phonopy writes another
unit and does not say so.
"""

from __future__ import annotations

import re

from defectnet.errors import SpectrumError
from defectnet.io.raw import Raw, rows, uncommented

_HEADER = re.compile(r"#\s*(Sigma\s*=\s*[-+.\deE]+|Tetrahedron method)\s*$")


def matches(text: str) -> bool:
    """Tell whether a text starts with phonopy's comment."""
    return _HEADER.match(text.lstrip().split("\n", 1)[0].strip()) is not None


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
    values = rows(uncommented(text), source, fix="Run phonopy again")
    return Raw(values[:, 0], values[:, 1:].sum(axis=1), unit=None, usual_unit="THz", kind="total")
