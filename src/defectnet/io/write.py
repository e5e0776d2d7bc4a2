"""Write a spectrum as CSV that `read_spectrum` reads back without loss."""

from __future__ import annotations

import os
from pathlib import Path

from defectnet.errors import SpectrumError
from defectnet.files import replacing
from defectnet.spectrum import Spectrum


def write_spectrum(path: str | os.PathLike[str], spectrum: Spectrum) -> None:
    """Write a spectrum as CSV with its unit and kind declared; to a temporary name first, then renamed.

    Args:
        path: File to write; the folder must exist.
        spectrum: What to write. Its `source` is not kept.

    Raises:
        SpectrumError: The file cannot be written.
    """
    path = Path(path)
    lines = [f"# unit: {spectrum.unit}", f"# kind: {spectrum.kind}"]
    if spectrum.element is not None:
        lines.append(f"# element: {spectrum.element}")
    lines.append("energy,dos")
    lines += [f"{e!r},{d!r}" for e, d in zip(spectrum.energy.tolist(), spectrum.dos.tolist(), strict=True)]
    try:
        with replacing(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise SpectrumError(
            f"file {path} cannot be written",
            why=error.strerror or "",
            fix="Check that its folder exists and is writable",
        ) from error
