"""Structures from users: what is read, and what each malformed input says."""

import re
import warnings

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, make_supercell, molecule
from ase.spacegroup import crystal
from phonopy.structure.atoms import PhonopyAtoms
from pymatgen.core import Lattice, Structure

from crystals import host as small_host
from defectnet.crystal.hosts import read_hosts
from defectnet.crystal.structures import read_structure, spacegroup
from defectnet.errors import SimulationError


def gallium_arsenide() -> Atoms:
    return bulk("GaAs", "zincblende", a=5.65, cubic=True)


def rutile() -> Atoms:
    return crystal(
        ["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[4.594, 4.594, 2.959, 90, 90, 90]
    )


CIF = """data_test
_symmetry_space_group_name_H-M 'P 1'
_cell_length_a {a}
_cell_length_b 5.65
_cell_length_c 5.65
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
{rows}
"""


def cif(*rows: str, a: str = "5.65") -> str:
    return CIF.format(a=a, rows="\n".join(rows))


def text(name, content):
    def make(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def written(name, atoms, **options):
    def make(folder):
        ase.io.write(folder / name, atoms(), **options)
        return folder / name

    return make


def changed(change):
    """A sound crystal of ase with a change."""

    def make(_):
        atoms = gallium_arsenide()
        return change(atoms) or atoms

    return make


def scaled(factor):
    def change(atoms):
        atoms.set_cell(atoms.cell * factor, scale_atoms=True)

    return changed(change)


def moved_to(i, j, apart):
    def change(atoms):
        atoms.positions[i] = atoms.positions[j] + [apart, 0, 0]

    return changed(change)


def nan(what):
    def change(atoms):
        getattr(atoms, what)[1, 1] = np.nan

    return changed(change)


def amorphous(_):
    rng = np.random.default_rng(0)
    atoms = bulk("Si", "diamond", a=5.43, cubic=True) * (2, 2, 2)
    atoms.positions += rng.uniform(-0.15, 0.15, atoms.positions.shape)
    return atoms


def in_box(name, edge):
    return lambda _: Atoms(molecule(name), cell=[edge] * 3, pbc=True)


SLAB = Atoms("Al", cell=[2.86, 2.86, 0], pbc=[True, True, False])
MONOLAYER = graphene(vacuum=6.0)
BAD = {
    "no such file": (lambda folder: folder / "absent.cif", r"absent\.cif does not exist"),
    "a folder": (lambda folder: folder, "is a folder"),
    "empty file": (text("empty.cif", ""), "is an empty file"),
    "prose": (text("POSCAR", "Lorem ipsum"), "cannot be read"),
    "prose without a format": (text("notes.dat", "Lorem ipsum"), "cannot be read"),
    "binary": (text("a.cif", bytes(range(256))), "cannot be read"),
    "cut POSCAR": (text("POSCAR", "Si\n1.0\n5 0 0\n0 5 0\n"), "cannot be read"),
    "CIF without atoms": (
        text("a.cif", "data_x\n_cell_length_a 3\n"),
        "cannot be read|holds no atoms|holds 0 structures",
    ),
    "word for a length": (text("a.cif", cif("Ga1 Ga 0 0 0 1", a="wide")), "cannot be read"),
    "project's list": (text("a.json", "[]"), "cannot be read"),
    "unknown symbol": (text("a.vasp", "x\n1\n3 0 0\n0 3 0\n0 0 3\nXq\n1\nDirect\n0 0 0\n"), "cannot be read"),
    "several frames": (written("a.extxyz", lambda: [gallium_arsenide()] * 3), "holds 3 structures"),
    "no atoms": (lambda _: Atoms(cell=[3, 3, 3], pbc=True), "holds no atoms"),
    "NaN in positions": (nan("positions"), "NaN or infinity in its positions"),
    "NaN in the cell": (nan("cell"), "NaN or infinity in its cell"),
    "plain xyz": (written("a.xyz", lambda: molecule("CO"), format="xyz"), "has no lattice"),
    "no periodicity": (changed(lambda atoms: atoms.set_pbc(False)), "has no lattice"),
    "periodic in two": (changed(lambda atoms: atoms.set_pbc([True, True, False])), "is not periodic along c"),
    "no third vector": (lambda _: SLAB, "is not periodic along c"),
    "flat cell": (lambda _: Atoms("Al", cell=[[3, 0, 0], [0, 3, 0], [3, 3, 0]], pbc=True), "has a flat cell"),
    "slab": (lambda _: fcc111("Al", (1, 1, 4), vacuum=7.0, periodic=True), r"along c there is a gap of 14\.0 angstrom"),
    "layer in vacuum": (lambda _: Atoms(MONOLAYER, pbc=True), r"along c there is a gap of 12\.0 angstrom"),
    "layer, long vacuum": (lambda _: Atoms("C", cell=[2.5, 2.5, 90], pbc=True), r"along c there is a gap of 90\.0"),
    "layer, narrow vacuum": (lambda _: Atoms(graphene(vacuum=3.0), pbc=True), "is an isolated layer"),
    "molecule, wide box": (in_box("CO", 12.0), "there is a gap of 1"),
    "molecule, narrow box": (in_box("CO", 6.4), "is an isolated molecule"),
    "overlap": (moved_to(1, 0, 0.6), r"atoms overlap.*atom 0\).*atom 1\) are 0\.60 angstrom"),
    "same place": (moved_to(1, 0, 0.0), r"atoms overlap.*are 0\.00 angstrom"),
    "partial occupancy": (text("a.cif", cif("Ga1 Ga 0 0 0 0.5", "As1 As 0.25 0.25 0.25 1")), "is disordered.*Ga 0.5"),
    "shared site": (
        text("a.cif", cif("Ga1 Ga 0 0 0 0.7", "Al1 Al 0 0 0 0.3", "As1 As 0.25 0.25 0.25 1")),
        r"is disordered.*Ga 0\.7, Al 0\.3",
    ),
    "two whole atoms on a site": (
        text("a.vasp", "x\n1\n5 0 0\n0 5 0\n0 0 5\nGa Al\n1 1\nDirect\n0 0 0\n0 0 0\n"),
        "atoms overlap",
    ),
    "disordered pymatgen": (
        lambda _: Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]),
        r"is disordered.*Cu 0\.5, Au 0\.5",
    ),
    "vacancies in pymatgen": (lambda _: Structure(Lattice.cubic(3.6), [{"Cu": 0.9}], [[0, 0, 0]]), r"Cu 0\.9"),
    "hydrogen": (
        lambda _: crystal(["Li", "H"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=225, cellpar=[4.08] * 3 + [90] * 3),
        "holds H,",
    ),
    "xenon and uranium": (lambda _: bulk("XeU", "rocksalt", a=6.0), "holds U, Xe, outside"),
    "dummy atom": (changed(lambda atoms: atoms.symbols.__setitem__(0, "X")), "holds X, outside"),
    "nanometres": (scaled(0.1), "cubic angstrom for an atom .no crystal is so dense"),
    "bohr for angstrom": (scaled(1 / 0.529), "cubic angstrom for an atom .no crystal is so thin"),
    "picometres": (scaled(100.0), "is a layer or a molecule in vacuum|no crystal is so thin"),
    "bohr for angstrom, silicon": (
        lambda _: bulk("Si", a=5.43 / 0.529),
        "135 cubic angstrom for an atom .no crystal is so thin",
    ),
    "angstrom for bohr": (scaled(0.529), "cubic angstrom for an atom .no crystal is so dense"),
    "too many atoms": (amorphous, "has 64 atoms in its primitive cell"),
    "something else": (lambda _: {"cell": 3}, "a dict is no structure"),
    "nothing": (lambda _: None, "a NoneType is no structure"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed(case, tmp_path):
    make, match = BAD[case]
    source = make(tmp_path)
    with pytest.raises(SimulationError) as error:
        read_structure(source)
    found = str(error.value)
    assert re.search(match, found), found
    assert "\n" not in found
    assert error.value.fix
    if hasattr(source, "exists"):
        assert str(source) in found


FORMATS = {
    "gaas.cif": {},
    "POSCAR": {"format": "vasp"},
    "gaas.vasp": {},
    "CONTCAR": {"format": "vasp", "direct": True},
    "gaas.extxyz": {},
    "gaas.json": {},
    "gaas.db": {},
    "gaas.xsf": {},
    "gaas.traj": {},
    "gaas.res": {},
    "gaas.cell": {},
    "galliumarsenid größer 砷化镓.cif": {},
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name, tmp_path):
    ase.io.write(tmp_path / name, gallium_arsenide(), **FORMATS[name])
    found = read_structure(tmp_path / name)
    assert found.formula == "GaAs"
    assert len(found.crystal) == 2
    assert spacegroup(found.crystal) == 216
    assert found.crystal.volume == pytest.approx(5.65**3 / 4, rel=1e-4)
    assert re.fullmatch(r"[\w.-]+", found.id)
    assert read_structure(str(tmp_path / name)).id == found.id


def test_objects():
    atoms = rutile()
    frac = atoms.get_scaled_positions()
    sources = {
        "ase": atoms,
        "pymatgen": Structure(atoms.cell.array, atoms.get_chemical_symbols(), frac),
        "phonopy": PhonopyAtoms(symbols=atoms.get_chemical_symbols(), cell=atoms.cell.array, scaled_positions=frac),
    }
    for name, source in sources.items():
        found = read_structure(source)
        assert (found.id, len(found.crystal), spacegroup(found.crystal)) == ("TiO2", 6, 136), name


def test_oxidation_states_of_pymatgen_are_elements():
    found = read_structure(
        Structure(
            Lattice.cubic(4.21),
            ["Mg2+"] * 4 + ["O2-"] * 4,
            bulk("MgO", "rocksalt", a=4.21, cubic=True).get_scaled_positions()[[0, 2, 4, 6, 1, 3, 5, 7]],
        )
    )
    assert (found.formula, len(found.crystal)) == ("MgO", 2)


def test_supercells_are_reduced_and_positions_made_symmetric():
    atoms = make_supercell(rutile(), [[2, 0, 0], [0, 1, 0], [1, 0, 1]])
    atoms.positions += np.random.default_rng(1).uniform(-1e-3, 1e-3, atoms.positions.shape)
    found = read_structure(atoms)
    assert len(found.crystal) == 6
    assert spacegroup(found.crystal, 1e-6) == 136  # exact, where the input was only near


def test_left_handed_cells_become_right_handed():
    atoms = gallium_arsenide()
    found = read_structure(
        Atoms(atoms.numbers, scaled_positions=atoms.get_scaled_positions(), cell=atoms.cell.array[[1, 0, 2]], pbc=True)
    )
    assert np.linalg.det(found.crystal.cell) > 0


def test_layered_and_molecular_crystals_and_large_atoms_are_crystals():
    carbon = [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)]
    sulfide = [(1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)]
    for atoms, count in (
        (bulk("Cs", "bcc", a=6.14), 1),
        (crystal(["C", "C"], carbon, spacegroup=194, cellpar=[2.46, 2.46, 6.71, 90, 90, 120]), 4),
        (crystal(["Mo", "S"], sulfide, spacegroup=194, cellpar=[3.16, 3.16, 12.3, 90, 90, 120]), 6),
        (crystal("I", [(0, 0.154, 0.117)], spacegroup=64, cellpar=[7.14, 4.69, 9.78, 90, 90, 90]), 4),
    ):
        assert len(read_structure(atoms).crystal) == count


def test_moments_and_charges_are_ignored_with_a_warning():
    atoms = bulk("Fe")
    atoms.set_initial_magnetic_moments([2.2])
    with pytest.warns(UserWarning, match="magnetic moments are ignored"):
        read_structure(atoms)
    atoms = gallium_arsenide()
    atoms.set_initial_charges([1.0] * 8)
    with pytest.warns(UserWarning, match="charges are ignored"):
        read_structure(atoms)
    charged = Structure(np.eye(3) * 3.6, ["Cu"], [[0, 0, 0]], charge=1, site_properties={"magmom": [0.5]})
    with pytest.warns(UserWarning, match="magnetic moments and charges are ignored"):
        read_structure(charged)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_structure(gallium_arsenide())


def test_lists_of_hosts_keep_their_cells(tmp_path):
    """`read_hosts` reduces nothing: data sets are made again from its cells."""
    ase.io.write(tmp_path / "a.cif", gallium_arsenide())
    (listed,) = read_hosts(tmp_path / "a.cif")
    assert len(listed.crystal) == 8
    assert len(small_host(gallium_arsenide()).crystal) == 8
