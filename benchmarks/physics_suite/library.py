"""Pristine crystals with a DOS from density-functional theory: NCrystal's data library.

The library (Cai and Kittelmann, Comput. Phys. Commun. 246, 106851 (2020)) has a structure and a DOS for each element
of a crystal; most curves come from the Kyoto University database of phonon calculations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.formula import Formula

from defectnet.elements import INDEX
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import Potential
from physics_suite.cells import from_ase, pristine
from physics_suite.curves import Curve, coarse, from_modes, from_table, shape_distance
from physics_suite.local_modes import read_csv

KYOTO = "phonondb.mtl.kyoto-u.ac.jp"
"""Named by the files whose curves come from the database in Kyoto, all of them computed."""


@dataclass(frozen=True)
class Reference:
    """A crystal and its computed DOS.

    Attributes:
        file: Name in the library.
        formula: Reduced formula.
        crystal: Primitive cell as measured, before relaxation.
        curve: Total DOS.
        source: Of the curve.
    """

    file: str
    formula: str
    crystal: Crystal
    curve: Curve
    source: str


def _ncrystal() -> Any:
    try:
        import NCrystal
    except ImportError as error:
        raise SimulationError(
            "curves of pristine crystals need the package ncrystal",
            why=str(error),
            fix="pip install 'defectnet[physics]'",
        ) from error
    return NCrystal


def read_library(folder: Path) -> tuple[list[Reference], dict[str, str]]:
    """Read the data library of NCrystal.

    Args:
        folder: Holds ``ncrystal.csv``: files outside the Kyoto database whose curves are computed too.

    Returns:
        The usable crystals, by name of the file; and of every other file the reason why it is not used.

    Raises:
        SimulationError: The package ncrystal is missing.
    """
    library = _ncrystal()
    computed = {row["file"]: row["source"] for row in read_csv(folder / "ncrystal.csv")}
    found, skipped = [], {}
    names = sorted(entry.name for entry in library.browseFiles() if entry.name.endswith(".ncmat"))
    for name in names:
        info = library.createInfo(name)
        source = "Kyoto University database" if KYOTO in library.createTextData(name).rawData else computed.get(name)
        reason = _why_not(info, source)
        if reason:
            skipped[name] = reason
        else:
            found.append(_reference(name, info, str(source)))
    return found, skipped


def _why_not(info: Any, source: str | None) -> str:
    """Return why a file is not used, or nothing."""
    elements = {info_of.atomData.elementName() for info_of in info.dyninfos if info_of.atomData.isElement()}
    if not info.hasAtomInfo():
        return "no crystal structure"
    if any(not part.atomData.isElement() for part in info.dyninfos):
        return "a mixed site"
    if "H" in elements:
        return "hydrogen"
    if {type(part).__name__ for part in info.dyninfos} != {"DI_VDOS"}:
        return "no curve for every element"
    outside = sorted(elements - set(INDEX))
    if outside:
        return f"{outside[0]} is outside the vocabulary"
    if source is None:
        return "a metal, or a curve that is measured or fitted to measurements"
    return ""


def _reference(name: str, info: Any, source: str) -> Reference:
    cell = info.structure_info
    symbols, frac = [], []
    for site in info.atominfos:
        symbols += [site.atomData.elementName()] * site.count
        frac += list(site.positions)
    lengths = [cell[key] for key in ("a", "b", "c", "alpha", "beta", "gamma")]
    atoms = Atoms(symbols, scaled_positions=frac, cell=lengths, pbc=True)
    curves, weights = [], []
    for part in info.dyninfos:
        density = np.asarray(part.vdosOrigDensity(), dtype=np.float64)
        grid = np.asarray(part.vdosOrigEgrid(), dtype=np.float64) * 1e3
        energy = np.linspace(grid[0], grid[-1], len(density)) if len(grid) == 2 else grid
        curves.append(from_table(energy, density))
        weights.append(part.fraction)
    return Reference(
        name.removesuffix(".ncmat"),
        Formula(atoms.symbols.formula.format("metal")).reduce()[0].format("metal"),
        primitive(atoms),
        total(curves, weights),
        source,
    )


def primitive(atoms: Atoms) -> Crystal:
    """Return the primitive cell, or the cell itself where none smaller is found."""
    crystal = from_ase(atoms)
    cell: Any = (crystal.cell, crystal.frac, crystal.numbers)  # spglib asks for lists, and takes arrays
    found = spglib.find_primitive(cell, symprec=1e-3)
    if found is None or len(found[2]) >= len(atoms):
        return crystal
    lattice, frac, numbers = found
    return from_ase(Atoms(numbers, scaled_positions=frac, cell=lattice, pbc=True))


def total(curves: list[Curve], weights: list[float]) -> Curve:
    """Return the weighted sum of the elements' curves."""
    size = max(len(curve.dos) for curve in curves)
    dos = sum(
        weight * np.pad(curve.dos, (0, size - len(curve.dos))) for curve, weight in zip(curves, weights, strict=True)
    )
    return Curve(np.asarray(dos / np.sum(dos)))


def compare(potential: Potential, reference: Reference) -> dict[str, Any]:
    """Compare a crystal's phonons with its computed curve.

    Raises:
        Failed: The potential does not hold the crystal.
    """
    found = pristine(potential, reference.crystal)
    curve = from_modes(found.phonons)
    return {
        "formula": reference.formula,
        "atoms": len(found.crystal),
        "volume_change": round(found.crystal.volume / reference.crystal.volume - 1.0, 4),
        "imaginary_fraction": round(found.phonons.imaginary_fraction, 5),
        "shape_distance": round(shape_distance(curve, reference.curve), 4),
        "mean_mev": round(curve.mean_mev, 3),
        "dft_mean_mev": round(reference.curve.mean_mev, 3),
        "mean_error": round(curve.mean_mev / reference.curve.mean_mev - 1.0, 4),
        "source": reference.source,
        "dos": coarse(curve),
        "dft_dos": coarse(reference.curve),
    }
