"""NCMAT, the files of NCrystal (`pip install 'defectnet[formats]'`): a vibrational DOS of each element, in eV.

Each is normalised of its own: the total is their sum by the fractions of the atoms.
"""

from __future__ import annotations

import numpy as np

from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw, select_elements

_POINTS = 1000


def matches(text: str) -> bool:
    """Tell whether a text is NCMAT."""
    return text.startswith("NCMAT v")


def read(text: str, source: str, element: str | None) -> Raw:
    """Read the total DOS, or one element's share.

    Raises:
        SpectrumError: NCrystal is not installed or does not read it, an element has no DOS, or it is not there.
    """
    try:
        import NCrystal  # here, because it is an extra
    except ModuleNotFoundError as error:
        raise SpectrumError(
            f"file {source} is NCMAT, which needs NCrystal",
            fix="Install it: pip install 'defectnet[formats]'; or save a CSV",
        ) from error
    try:
        info = NCrystal.directLoad(text, dtype="ncmat", doScatter=False, doAbsorption=False).info
    except NCrystal.NCException as error:
        raise SpectrumError(f"file {source} is not read by NCrystal", why=str(error), fix="Mend the file") from error
    dynamics = info.dyninfos  # valid as long as `info` is
    without = [one.atomData.displayLabel() for one in dynamics if not isinstance(one, NCrystal.Info.DI_VDOS)]
    if without or not dynamics:
        raise SpectrumError(
            f"{source} holds no vibrational DOS of {', '.join(without) or 'any element'}",
            why="a Debye temperature, a scattering kernel or free atoms stand in its place",
            fix="Give a file whose @DYNINFO sections are all of type vdos",
        )
    curves = [(np.asarray(one.vdosOrigEgrid()), np.asarray(one.vdosOrigDensity()), one.fraction) for one in dynamics]
    energy = np.linspace(0.0, max(grid[-1] for grid, _, _ in curves) * (1.0 + 2.0 / _POINTS), _POINTS)
    shares = np.array([fraction * _normalised(grid, dos, energy) for grid, dos, fraction in curves])
    names = [one.atomData.elementName() for one in dynamics]
    if element is None:
        return Raw(energy, shares.sum(axis=0), "eV", "total")
    dos, projected = select_elements(shares, names, element, source)
    return Raw(energy, dos, "eV", "projected", projected)


def _normalised(grid: FloatArray, dos: FloatArray, energy: FloatArray) -> FloatArray:
    """Return an element's DOS, of unit area, on other energies; below its first one it grows as E^2."""
    grid = np.linspace(grid[0], grid[-1], len(dos)) if len(grid) == 2 else grid
    found = np.interp(energy, grid, dos, right=0.0)
    found = np.where(energy < grid[0], dos[0] * (energy / grid[0]) ** 2, found)
    return np.asarray(found / np.trapezoid(found, energy))
