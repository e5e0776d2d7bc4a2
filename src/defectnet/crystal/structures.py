"""One structure from a user: from any file that ase reads, or as an object of ase, pymatgen or phonopy.

It is checked, reduced to its standardised primitive cell, and its atoms are put on the symmetric positions.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import spglib
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray

from defectnet.crystal.hosts import Host, host_from_atoms, read_frames
from defectnet.elements import INDEX
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal

FloatArray = NDArray[np.float64]

SYMPREC: Final = 1e-2
"""Angstrom within which atoms are on symmetric positions: files round coordinates, relaxations leave some forces."""

VACUUM_ANGSTROM: Final = 8.0
"""Widest gap between planes of nuclei that a crystal may have; layered crystals have about 3."""

OVERLAP: Final = 0.5
"""Least distance of two atoms, in sums of their covalent radii."""

VOLUMES: Final = (2.0, 150.0)
"""Least and most volume for an atom, cubic angstrom: diamond has 5.7, caesium 115."""

FILLINGS: Final = (0.6, 16.0)
"""Least and most volume over that of spheres with the covalent radii: bcc tungsten has 0.9, silicon 3.5. Lengths in
bohr for angstrom, or the reverse, change it by a factor of 6.7."""

LARGEST: Final = 60
"""Most atoms in the primitive cell."""

CONTACT: Final = 1.3
"""Longest contact of two atoms, in sums of covalent radii, or `CONTACT_ANGSTROM` if that is more."""

CONTACT_ANGSTROM: Final = 5.0
"""Iodides of the Materials Project, whose functional does not bind layers, have 4.7 between them."""


def read_structure(source: Any) -> Host:
    """Read one crystal and reduce it to its standardised primitive cell.

    Args:
        source: Path of a structure file that ase reads (CIF, POSCAR, extended xyz, JSON of ase, ...), an ase `Atoms`,
            a pymatgen `Structure` or a `PhonopyAtoms`. The cell may be conventional, or a supercell.

    Returns:
        The host in the primitive cell that spglib makes standard, with symmetry found to `SYMPREC` angstrom. Its id
        is the file's name without endings, or the formula; characters that an id cannot have become dashes. Charges and
        magnetic moments are dropped, with a warning.

    Raises:
        SimulationError: There is no such file, or it cannot be read, or it holds several structures; or the structure
            is empty, disordered, not periodic in three directions, not a crystal, or outside what can be computed.
    """
    atoms, where, name = _load(source)
    _check_order(atoms, where)
    _check_numbers(atoms, where)
    _check_periodic(atoms, where)
    _check_elements(atoms, where)
    _warn_of_dropped(atoms, where)
    _check_dense(atoms, where)
    _check_overlaps(atoms, where)
    _check_vacuum(atoms, where)
    _check_connected(atoms, where)
    _check_thin(atoms, where)  # last: vacuum thins, and has its own error
    primitive = _primitive(atoms, where)
    if len(primitive) > LARGEST:
        raise SimulationError(
            f"{where} has {len(primitive)} atoms in its primitive cell",
            why=f"at most {LARGEST} can be computed",
            fix="Give a smaller crystal; an alloy as its ordered parent",
        )
    return host_from_atoms(primitive, _id(name or primitive.symbols.formula.reduce()[0].format("metal")), where)


def spacegroup(crystal: Crystal, symprec: float = SYMPREC) -> int:
    """Return the international number of the space group, 1 to 230, found to `symprec` angstrom.

    Raises:
        SimulationError: spglib finds none: atoms overlap.
    """
    found = _quietly(spglib.get_symmetry_dataset, (crystal.cell, crystal.frac, crystal.numbers), symprec)
    if found is None:
        raise SimulationError("structure: spglib finds no symmetry in it", fix="Check that no atoms overlap")
    return int(found.number)


# -- reading -----------------------------------------------------------------------------------------------------------


def _load(source: Any) -> tuple[Atoms, str, str]:
    """Return the structure as ase's, how errors call it, and its name if it has one."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        return _read_file(path), f"structure {path}", path.name.split(".")[0]
    if isinstance(source, Atoms):
        return source, "structure", ""
    if hasattr(source, "lattice") and hasattr(source, "sites"):
        return _from_pymatgen(source), "structure", ""
    if all(hasattr(source, part) for part in ("cell", "scaled_positions", "symbols")):
        atoms = Atoms(list(source.symbols), scaled_positions=source.scaled_positions, cell=source.cell, pbc=True)
        moments = getattr(source, "magnetic_moments", None)
        if moments is not None:
            atoms.set_initial_magnetic_moments(np.asarray(moments))  # type: ignore[no-untyped-call]
        return atoms, "structure", ""
    raise SimulationError(
        f"structure: a {type(source).__name__} is no structure",
        fix="Give a path, an ase Atoms, a pymatgen Structure or a PhonopyAtoms",
    )


def _read_file(path: Path) -> Atoms:
    fix = "Give a CIF, a POSCAR, an extended xyz or another structure file that ase reads"
    if not path.exists():
        raise SimulationError(f"structure {path} does not exist", fix="Check the path")
    if path.is_dir():
        raise SimulationError(f"structure {path} is a folder", fix="Give one file in it")
    if not path.stat().st_size:
        raise SimulationError(f"structure {path} is an empty file", fix=fix)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ase comments on space groups and labels; what matters is checked here
            found = read_frames(path)
    except Exception as error:  # ase raises whatever its many readers raise
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise SimulationError(f"structure {path} cannot be read", why=why, fix=fix) from error
    frames: list[Atoms] = found if isinstance(found, list) else [found]
    if len(frames) != 1:
        raise SimulationError(
            f"structure {path} holds {len(frames)} structures",
            why="one is wanted",
            fix="Write the one into its own file",
        )
    return frames[0]


def _from_pymatgen(structure: Any) -> Atoms:
    """Convert without importing pymatgen: from its sites and its lattice."""
    symbols, occupancies = [], {}
    for i, site in enumerate(structure.sites):
        species = {getattr(one, "symbol", str(one)): float(share) for one, share in site.species.items()}
        if len(species) != 1 or abs(sum(species.values()) - 1.0) > 1e-3:
            occupancies[str(i)] = species
        symbols.append(max(species, key=lambda symbol: species[symbol]))
    if not symbols:
        return Atoms(cell=structure.lattice.matrix, pbc=True)
    _known_symbols(symbols)
    lattice = structure.lattice
    frac = [site.frac_coords for site in structure.sites]
    atoms = Atoms(symbols, scaled_positions=frac, cell=lattice.matrix, pbc=getattr(lattice, "pbc", (True, True, True)))
    if occupancies:
        atoms.info["occupancy"] = occupancies
    charge = getattr(structure, "_charge", None)
    if charge:
        atoms.info["charge"] = charge
    properties = [getattr(site, "properties", None) or {} for site in structure.sites]
    if any(one.get("magmom") is not None for one in properties):
        moments = [np.linalg.norm(float(one.get("magmom") or 0.0)) for one in properties]
        atoms.set_initial_magnetic_moments(np.array(moments))  # type: ignore[no-untyped-call]
    return atoms


def _known_symbols(symbols: list[str]) -> None:
    for symbol in symbols:
        if symbol not in atomic_numbers:
            raise SimulationError(f"structure: {symbol!r} is no element", fix="Give a crystal of real atoms")


def _id(name: str) -> str:
    """Return the name with only characters that an id may have."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "structure"


# -- checks ------------------------------------------------------------------------------------------------------------


def _check_order(atoms: Atoms, where: str) -> None:
    """Refuse sites that are shared or partly empty; ase keeps a CIF's occupancies by the kind of site."""
    for site, shares in (atoms.info.get("occupancy") or {}).items():
        if len(shares) > 1 or any(abs(float(share) - 1.0) > 1e-3 for share in shares.values()):
            text = ", ".join(f"{symbol} {float(share):g}" for symbol, share in shares.items())
            raise SimulationError(
                f"{where} is disordered",
                why=f"site {site} is occupied by {text}",
                fix="Give an ordered crystal: the parent compound, with what is mixed in as dopants",
            )


def _check_numbers(atoms: Atoms, where: str) -> None:
    if len(atoms) == 0:
        raise SimulationError(f"{where} holds no atoms", fix="Check the structure")
    for what, values in (("cell", atoms.cell.array), ("positions", atoms.positions)):
        if not np.isfinite(np.asarray(values, dtype=float)).all():
            raise SimulationError(f"{where} has NaN or infinity in its {what}", fix="Check the structure")


def _check_periodic(atoms: Atoms, where: str) -> None:
    lengths = atoms.cell.lengths()
    for i, axis in enumerate("abc"):
        if not atoms.pbc[i] or lengths[i] < 1e-6:
            what = "has no lattice" if not atoms.pbc.any() else f"is not periodic along {axis}"
            raise SimulationError(
                f"{where} {what}",
                why="crystals are periodic in three directions",
                fix="Give the unit cell of a crystal",
            )
    if atoms.cell.volume < 1e-3 * float(np.prod(lengths)):
        raise SimulationError(
            f"{where} has a flat cell", why="its lattice vectors lie in a plane", fix="Check the cell"
        )


def _check_elements(atoms: Atoms, where: str) -> None:
    unknown = sorted({symbol for symbol in atoms.symbols if symbol not in INDEX})
    if unknown:
        raise SimulationError(
            f"{where} holds {', '.join(unknown)}, outside the vocabulary",
            fix="Known are Li to Bi without noble gases, Tc, Pm and Ce to Lu",
        )


def _warn_of_dropped(atoms: Atoms, where: str) -> None:
    dropped = []
    if np.any(np.abs(atoms.get_initial_magnetic_moments()) > 1e-6):  # type: ignore[no-untyped-call]
        dropped.append("magnetic moments")
    if np.any(np.abs(atoms.get_initial_charges()) > 1e-6) or atoms.info.get("charge"):  # type: ignore[no-untyped-call]
        dropped.append("charges")
    if dropped:
        warnings.warn(f"{where}: {' and '.join(dropped)} are ignored, there is no such thing here", stacklevel=3)


def _densities(atoms: Atoms) -> tuple[float, float]:
    """Return the volume for an atom, cubic angstrom, and over that of spheres with the covalent radii."""
    volume = float(atoms.cell.volume) / len(atoms)
    return volume, volume / float(np.mean(4.0 / 3.0 * np.pi * covalent_radii[atoms.numbers] ** 3))


def _check_dense(atoms: Atoms, where: str) -> None:
    volume, filling = _densities(atoms)
    if volume < VOLUMES[0] or filling < FILLINGS[0]:
        raise SimulationError(
            f"{where} has {volume:.3g} cubic angstrom for an atom",
            why="no crystal is so dense",
            fix="Check that lengths are in angstrom, not in nm or bohr, and that no atom is there twice",
        )


def _check_thin(atoms: Atoms, where: str) -> None:
    volume, filling = _densities(atoms)
    if volume > VOLUMES[1] or filling > FILLINGS[1]:
        raise SimulationError(
            f"{where} has {volume:.3g} cubic angstrom for an atom",
            why="no crystal is so thin",
            fix="Check that lengths are in angstrom, not in pm or bohr, and that no atoms are missing",
        )


def _check_overlaps(atoms: Atoms, where: str) -> None:
    radii = covalent_radii[atoms.numbers]
    first, second, distance = neighbor_list("ijd", atoms, OVERLAP * radii)  # type: ignore[no-untyped-call]
    if len(distance):
        near = int(np.argmin(distance))
        symbols = list(atoms.symbols)
        i, j = sorted((int(first[near]), int(second[near])))
        raise SimulationError(
            f"{where}: atoms overlap",
            why=f"{symbols[i]} (atom {i}) and {symbols[j]} (atom {j}) are {distance[near]:.2f} angstrom apart",
            fix="Check coordinates and lengths: fractional or Cartesian, angstrom or not, an atom there twice",
        )


def _check_vacuum(atoms: Atoms, where: str) -> None:
    gap, axis = _widest_gap(atoms)
    if gap > VACUUM_ANGSTROM:
        raise SimulationError(
            f"{where} is a layer or a molecule in vacuum",
            why=f"along {axis} there is a gap of {gap:.1f} angstrom without atoms",
            fix="Give the bulk crystal; layers and surfaces cannot be computed. Lengths are in angstrom",
        )


def _widest_gap(atoms: Atoms) -> tuple[float, str]:
    """Return the widest empty slab across a lattice direction, between planes of nuclei, and that direction."""
    frac = np.sort(atoms.get_scaled_positions(wrap=True), axis=0)  # type: ignore[no-untyped-call]
    gaps = np.diff(np.concatenate([frac, frac[:1] + 1.0]), axis=0).max(axis=0)
    widths = gaps / np.linalg.norm(atoms.cell.reciprocal().array, axis=1)
    axis = int(np.argmax(widths))
    return float(widths[axis]), "abc"[axis]


def _check_connected(atoms: Atoms, where: str) -> None:
    """Refuse molecules, chains and layers in a box that is too narrow for `_check_vacuum`."""
    directions = _directions(atoms, np.maximum(CONTACT * covalent_radii[atoms.numbers], CONTACT_ANGSTROM / 2))
    if directions < 3:
        raise SimulationError(
            f"{where} is {('an isolated molecule', 'an isolated chain', 'an isolated layer')[directions]}",
            why=f"its atoms have contacts below {CONTACT_ANGSTROM:g} angstrom along {directions} directions only",
            fix="Give the bulk crystal; check that lengths are in angstrom",
        )


def bonded_directions(atoms: Atoms) -> int:
    """Return in how many directions the bonds of a crystal go on: 0 for a molecular one, 2 for one of layers.

    Bonds are contacts below `CONTACT` times the sum of the covalent radii.
    """
    return _directions(atoms, CONTACT * covalent_radii[atoms.numbers])


def _directions(atoms: Atoms, reach: FloatArray) -> int:
    """Return the rank of the lattice vectors by which paths of contacts lead to images of their first atom.

    Args:
        atoms: N of them.
        reach: (N,) angstrom; two atoms are in contact if they are nearer than the sum of theirs.
    """
    first, second, shift = neighbor_list("ijS", atoms, reach)  # type: ignore[no-untyped-call]
    neighbours: list[list[tuple[int, NDArray[np.int64]]]] = [[] for _ in range(len(atoms))]
    for i, j, s in zip(first, second, shift, strict=True):
        neighbours[i].append((int(j), s))
    cells: dict[int, NDArray[np.int64]] = {}
    loops = [np.zeros(3, dtype=np.int64)]
    for start in range(len(atoms)):
        waiting = [] if start in cells else [start]
        cells.setdefault(start, np.zeros(3, dtype=np.int64))
        while waiting:
            i = waiting.pop()
            for j, s in neighbours[i]:
                if j in cells:
                    loops.append(cells[i] + s - cells[j])
                else:
                    cells[j] = cells[i] + s
                    waiting.append(j)
    return int(np.linalg.matrix_rank(np.array(loops)))


# -- the primitive cell ------------------------------------------------------------------------------------------------


def _primitive(atoms: Atoms, where: str) -> Atoms:
    """Return the standardised primitive cell with atoms on symmetric positions."""
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)  # type: ignore[no-untyped-call]
    found = _quietly(spglib.standardize_cell, cell, SYMPREC, to_primitive=True, no_idealize=False)
    if found is None:
        raise SimulationError(f"{where}: spglib finds no symmetry in it", fix="Check that no atoms overlap")
    lattice, frac, numbers = found
    return Atoms(numbers, scaled_positions=frac, cell=lattice, pbc=True)


def _quietly(function: Any, cell: Any, symprec: float, **options: Any) -> Any:
    """Call spglib, which warns about or raises what it then also returns as None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(cell, symprec=symprec, **options)
        except Exception:  # which one depends on spglib's version
            return None
