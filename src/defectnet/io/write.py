"""Write a spectrum as CSV that `read_spectrum` reads back without loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import SpectrumError
from defectnet.files import replacing
from defectnet.spectrum import Spectrum


def write_spectrum(
    path: str | os.PathLike[str],
    spectrum: Spectrum,
    *,
    error: NDArray[np.float64] | None = None,
    comments: Sequence[str] = (),
) -> None:
    """Write a spectrum as CSV with its unit and kind declared; to a temporary name first, then renamed.

    Args:
        path: File to write; the folder must exist.
        spectrum: What to write. Its `source` is not kept.
        error: (n,) standard deviations of the DOS, as a third column; by default those of the spectrum.
        comments: Lines for a reader, above the declarations; they must not declare anything themselves.

    Raises:
        SpectrumError: The file cannot be written.
    """
    path = Path(path)
    sigma = spectrum.error if error is None else error
    lines = [f"# {line}" for line in comments]
    lines += [f"# unit: {spectrum.unit}", f"# kind: {spectrum.kind}"]
    if spectrum.element is not None:
        lines.append(f"# element: {spectrum.element}")
    columns = [spectrum.energy.tolist(), spectrum.dos.tolist()] + ([] if sigma is None else [sigma.tolist()])
    lines.append("energy,dos" if sigma is None else "energy,dos,error")
    lines += [",".join(map(repr, row)) for row in zip(*columns, strict=True)]
    try:
        with replacing(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as wrong:
        raise SpectrumError(
            f"file {path} cannot be written",
            why=wrong.strerror or "",
            fix="Check that its folder exists and is writable",
        ) from wrong
