"""Symmetry operations as permutations of atoms, and force constants from the displacements that they leave."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal as spaced
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from defectnet.errors import SimulationError
from defectnet.potentials.finite_displacements import displaced_hessian, plan_displacements
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import modes
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.relax import relax
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import find_operations, kept_by, symmetrised, symmetrised_displacements
from host_models import crystal_of, largest, model, nep, number, zoo_atoms

# Space group and the order of its point group, times the lattice points of the cell that is given.
CRYSTALS = {
    "triclinic": (
        lambda: Atoms("AlCu", scaled_positions=[[0, 0, 0], [0.45, 0.53, 0.41]], cell=[4, 4.4, 5, 81, 77, 95]),
        1,
        1,
    ),
    "monoclinic": (
        lambda: spaced(
            ["Zr", "O", "O"],
            [(0.276, 0.041, 0.208), (0.07, 0.332, 0.345), (0.45, 0.757, 0.479)],
            spacegroup=14,
            cellpar=[5.15, 5.21, 5.32, 90, 99.2, 90],
        ),
        14,
        4,
    ),
    "orthorhombic": (
        lambda: spaced(
            ["Sn", "S"],
            [(0.12, 0.25, 0.118), (0.85, 0.25, 0.479)],
            spacegroup=62,
            cellpar=[11.2, 3.99, 4.34, 90, 90, 90],
        ),
        62,
        8,
    ),
    "rutile": (lambda: zoo_atoms("SnO2-rutile"), 136, 16),
    "anatase": (lambda: zoo_atoms("mp-390"), 141, 16),
    "tellurium": (lambda: zoo_atoms("Te-trigonal"), 152, 6),
    "quartz": (lambda: zoo_atoms("SiO2-quartz"), 154, 6),
    "corundum": (lambda: zoo_atoms("mp-1143"), 167, 12),
    "wurtzite": (lambda: zoo_atoms("ZnO-wurtzite"), 186, 12),
    "B20": (lambda: zoo_atoms("FeSi-B20"), 198, 12),
    "zincblende, conventional": (lambda: bulk("GaAs", "zincblende", a=5.65, cubic=True), 216, 96),
    "fluorite": (lambda: zoo_atoms("CaF2-fluorite"), 225, 48),
    "diamond": (lambda: bulk("Si", a=5.43), 227, 48),
}


def get(name: str) -> Crystal:
    atoms = CRYSTALS[name][0]()
    atoms.pbc = True
    return crystal_of(atoms)


@pytest.mark.parametrize("name", CRYSTALS)
def test_operations_map_the_crystal_onto_itself(name):
    crystal = get(name)
    found = find_operations(crystal, 0.01)
    dataset = spglib.get_symmetry_dataset((crystal.cell, crystal.frac, crystal.numbers), symprec=0.01)
    assert dataset.number == CRYSTALS[name][1]
    assert len(found) == CRYSTALS[name][2] == len(dataset.rotations)
    frac = crystal.frac
    for w, t, c, image, shift in zip(
        found.rotation, found.translation, found.cartesian, found.image, found.shift, strict=True
    ):
        assert sorted(image) == list(range(len(crystal)))
        np.testing.assert_array_equal(crystal.numbers[image], crystal.numbers)
        assert largest((frac @ w.T + t - shift - frac[image]) @ crystal.cell) < 0.02
        assert largest(c @ c.T - np.eye(3)) < 1e-3
        # The Cartesian rotation is that of vectors between atoms.
        vectors = (frac - frac[0]) @ crystal.cell
        there = (frac[image] + shift - frac[image[0]] - shift[0]) @ crystal.cell
        assert largest(vectors @ c.T - there) < 0.03
    orbits = found.orbits()
    same = dataset.crystallographic_orbits
    assert len(np.unique(orbits)) == len(np.unique(same))
    assert len({(int(a), int(b)) for a, b in zip(orbits, same, strict=True)}) == len(np.unique(same))
    assert all(orbits[o] == o for o in orbits)


@pytest.mark.parametrize("name", ["rutile", "corundum", "wurtzite", "diamond", "zincblende, conventional"])
def test_the_number_of_operations_that_fix_an_atom(name):
    found = find_operations(get(name), 0.01)
    orbits = found.orbits()
    for atom in range(found.image.shape[1]):
        site = found.fixing(atom)
        assert len(site) * (orbits == orbits[atom]).sum() == len(found)
        assert (site.image[:, atom] == atom).all()


@pytest.mark.parametrize("name", CRYSTALS)
def test_symmetrised_puts_a_perturbed_crystal_back(name):
    crystal = get(name)
    exact = symmetrised(crystal, find_operations(crystal, 0.01))
    operations = find_operations(exact, 1e-5)
    assert len(operations) == CRYSTALS[name][2]
    rng = np.random.default_rng(0)
    strain = np.eye(3) + 1e-4 * rng.normal(size=(3, 3))
    perturbed = exact.moved(rng.normal(0.0, 1e-3, (len(exact), 3))).strained(strain)
    if name != "triclinic":
        assert len(find_operations(perturbed, 1e-5)) < len(operations)
    for use in (operations, find_operations(perturbed, 0.02)):
        back = symmetrised(perturbed, use)
        assert len(find_operations(back, 1e-5)) == len(operations)
        moved = np.einsum("gab,nb->gna", use.rotation, back.frac) + use.translation[:, None] - use.shift
        assert largest(moved - np.stack([back.frac[image] for image in use.image])) < 1e-12
        assert (
            largest(use.rotation.swapaxes(1, 2) @ (back.cell @ back.cell.T) @ use.rotation - back.cell @ back.cell.T)
            < 1e-9
        )
        assert largest(back.cell - perturbed.cell) < 0.01  # and no further than it has to be
        again = symmetrised(back, use)
        assert largest(again.positions - back.positions) < 1e-10


def test_symmetrised_is_exact_where_nothing_is_free():
    """In diamond, atoms and the shape of the cell are fixed by symmetry; only the volume is left."""
    crystal = crystal_of(bulk("Si", a=5.43))
    operations = find_operations(crystal, 1e-5)
    rng = np.random.default_rng(1)
    back = symmetrised(
        crystal.moved(rng.normal(0.0, 0.02, (2, 3))).strained(np.eye(3) + rng.normal(0, 0.003, (3, 3))), operations
    )
    scale = (back.volume / crystal.volume) ** (1 / 3)
    assert scale != pytest.approx(1.0, abs=1e-5)
    metric = crystal.cell @ crystal.cell.T
    np.testing.assert_allclose(back.cell @ back.cell.T, scale**2 * metric, atol=1e-9)
    np.testing.assert_allclose(back.frac[1] - back.frac[0], crystal.frac[1] - crystal.frac[0], atol=1e-12)


def test_overlapping_atoms_have_no_symmetry():
    crystal = Crystal(np.array([14, 14]), 4.0 * np.eye(3), np.zeros((2, 3)))
    with pytest.raises(SimulationError, match="symmetry of the crystal cannot be found"):
        find_operations(crystal, 0.01)


# -- displacements that lower the symmetry -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doped():
    """GaAs with one indium: 24 operations."""
    cell = Supercell.of(model("GaAs").primitive, 2 * np.eye(3, dtype=int))
    numbers = cell.crystal.numbers.copy()
    numbers[0] = number("In")
    ideal = Crystal(numbers, cell.crystal.cell, cell.crystal.positions)
    return ideal, find_operations(ideal, 1e-3)


def is_group(operations) -> bool:
    keys = {(w.tobytes(), i.tobytes()) for w, i in zip(operations.rotation, operations.image, strict=True)}
    products = [
        ((a @ b).tobytes(), i[j].tobytes())
        for a, i in zip(operations.rotation, operations.image, strict=True)
        for b, j in zip(operations.rotation, operations.image, strict=True)
    ]
    return len(keys) == len(operations) and set(products) == keys


@pytest.mark.parametrize(
    ("direction", "order"), [((0, 0, 0), 24), ((1, 1, 1), 6), ((1, 0, 0), 4), ((1, 1, 0), 2), ((0.3, 0.5, 1), 1)]
)
def test_kept_by_is_the_subgroup_of_a_displacement(doped, direction, order):
    ideal, operations = doped
    assert len(operations) == 24
    displacement = np.zeros((len(ideal), 3))
    displacement[0] = 0.2 * np.array(direction)
    kept = kept_by(displacement, operations, 0.03)
    assert len(kept) == order
    assert is_group(kept)


def test_kept_by_is_a_group_at_any_tolerance(doped):
    """Near the tolerance some operations pass and others do not: what is left must still be closed."""
    ideal, operations = doped
    rng = np.random.default_rng(0)
    orders = set()
    for _ in range(40):
        displacement = rng.normal(0.0, 0.01, (len(ideal), 3)) + 0.02 * rng.normal(size=3)
        displacement[0] += 0.04 * rng.normal(size=3)
        kept = kept_by(displacement, operations, rng.uniform(0.03, 0.15))
        assert is_group(kept)
        orders.add(len(kept))
        mean = symmetrised_displacements(displacement, kept)
        for rotation, image in zip(kept.cartesian, kept.image, strict=True):
            assert largest(mean[image] - mean @ rotation.T) < 1e-12
    assert len(orders) > 2


# -- finite displacements ----------------------------------------------------------------------------------------------


class Counted:
    """Displaced forces of the fast potential, counting the displacements."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, crystal, atoms, shifts):
        out = []
        for atom, shift in zip(atoms, shifts, strict=True):
            self.count += bool(np.abs(shift).max() > 0)
            displacement = np.zeros((len(crystal), 3))
            displacement[atom] = shift
            out.append(nep().evaluate(crystal.moved(displacement)).forces)
        return out


@pytest.fixture(scope="module")
def relaxed(doped):
    ideal, operations = doped
    found = relax(nep(), ideal, cell="volume", tolerance=1e-4).crystal
    return symmetrised(found, operations), operations


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: Supercell.of(model("GaAs").primitive, 2 * np.eye(3, dtype=int)).crystal, 4),
        (lambda: Supercell.of(model("SnO2-rutile").primitive, np.diag([1, 1, 2])).crystal, 12),
        (lambda: model("ZnO-wurtzite").primitive, 12),
        (lambda: model("mp-1143").primitive, 12),
        (lambda: model("FeSi-B20").primitive, 12),
    ],
    ids=["zincblende", "rutile", "wurtzite", "corundum", "B20"],
)
def test_displaced_hessian_with_and_without_symmetry(make, most):
    crystal = make()
    operations = find_operations(crystal, 1e-5)
    exact = nep().force_constants(crystal).hessian().numpy()
    with_symmetry, without = Counted(), Counted()
    one = displaced_hessian(with_symmetry, crystal, operations, distance=1e-3)
    identity = operations.only(np.array([np.flatnonzero((operations.rotation == np.eye(3)).all((1, 2)))[0]]))
    two = displaced_hessian(without, crystal, identity, distance=1e-3)
    assert largest(one - exact) < 2e-4 * largest(exact)
    assert largest(two - exact) < 2e-4 * largest(exact)
    assert largest(one - two) < 2e-4 * largest(exact)
    assert largest(one - one.T) == 0.0
    assert without.count == 6 * len(crystal)
    assert with_symmetry.count <= most


def test_displaced_hessian_of_a_doped_cell(relaxed):
    crystal, operations = relaxed
    exact = nep().force_constants(crystal).hessian().numpy()
    few = Counted()
    found = displaced_hessian(few, crystal, operations, distance=1e-3)
    assert largest(found - exact) < 2e-4 * largest(exact)
    assert few.count < 6 * len(crystal) / 3


def test_one_way_costs_half(relaxed):
    crystal, operations = relaxed
    both = plan_displacements(crystal, operations, np.arange(len(crystal)), both_directions=True)
    one = plan_displacements(crystal, operations, np.arange(len(crystal)), both_directions=False)
    assert len(one.atoms) < len(both.atoms) <= 2 * len(one.atoms)
    assert largest(np.linalg.norm(both.directions, axis=1) - 1.0) < 1e-12


def test_atoms_near_a_place_alone(relaxed):
    """Rows of displaced atoms are exact; what is between others is the fallback's, but for the sum rule."""
    crystal, operations = relaxed
    exact = nep().force_constants(crystal).hessian().numpy()
    apart = crystal.frac - crystal.frac[0]
    apart -= np.round(apart)
    near = np.flatnonzero(np.linalg.norm(apart @ crystal.cell, axis=1) < 4.5)
    assert 1 < len(near) < len(crystal)
    fallback = exact + 0.5 * np.kron(np.eye(len(crystal))[::-1], np.eye(3))
    some, every = Counted(), Counted()
    found = displaced_hessian(some, crystal, operations, atoms=near, distance=1e-3, fallback=fallback)
    displaced_hessian(every, crystal, operations, distance=1e-3)
    assert some.count < every.count
    n = len(crystal)
    done = np.isin(operations.orbits(), operations.orbits()[near])
    blocks = (slice(None), slice(None))
    got, want, else_ = (m.reshape(n, 3, n, 3).transpose(0, 2, 1, 3)[blocks] for m in (found, exact, fallback))
    touched = (done[:, None] | done[None, :]) & ~np.eye(n, dtype=bool)
    assert largest(got[touched] - want[touched]) < 2e-4 * largest(exact)
    rest = ~done[:, None] & ~done[None, :] & ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(got[rest], else_[rest])
    assert rest.any()
    right = displaced_hessian(some, crystal, operations, atoms=near, distance=1e-3, fallback=exact)
    assert largest(right - exact) < 2e-4 * largest(exact)
    with pytest.raises(ValueError, match="need a fallback"):
        displaced_hessian(some, crystal, operations, atoms=near)


def test_what_is_left_of_forces_at_rest_is_no_response(relaxed):
    """Forces that do not vanish at rest, as after a relaxation to some tolerance, are subtracted."""
    crystal, operations = relaxed
    push = np.random.default_rng(0).normal(0.0, 0.01, (len(crystal), 3))
    counted = Counted()

    def pushed(*arguments):
        return [forces + push for forces in counted(*arguments)]

    plain = displaced_hessian(counted, crystal, operations, distance=1e-3)
    assert largest(displaced_hessian(pushed, crystal, operations, distance=1e-3) - plain) < 1e-9


def test_phonopy_finds_the_same_force_constants():
    host = model("SnO2-rutile")
    cell = Supercell.of(host.primitive, np.diag([1, 1, 2]))
    unit = PhonopyAtoms(numbers=host.primitive.numbers, cell=host.primitive.cell, scaled_positions=host.primitive.frac)
    phonon = Phonopy(unit, supercell_matrix=np.diag([1, 1, 2]), primitive_matrix=np.eye(3))
    phonon.generate_displacements(distance=1e-3, is_plusminus=True)
    forces = []
    for displaced in phonon.supercells_with_displacements:
        crystal = Crystal(
            displaced.numbers.astype(np.int64), displaced.cell, displaced.scaled_positions @ displaced.cell
        )
        forces.append(nep().evaluate(crystal).forces)
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()

    class Fast(ReferencePotential):
        def evaluate(self, crystal):
            return nep().evaluate(crystal)

    counted = Fast(None, name="fast", displacement=1e-3)
    operations = find_operations(cell.crystal, 1e-5)
    hessian = counted.hessian(cell.crystal, operations)
    ours = cell.unfolded(ForceConstants.from_hessian(hessian, cell.crystal))
    for q in ([0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.17, 0.31, -0.23]):
        phonon.run_qpoints([q])
        theirs = phonon.qpoints.frequencies[0] * 4.135667696  # THz to meV
        found = np.sort(modes(ours, host.primitive, [np.array(q)]).energy_mev)
        if not np.any(q):
            theirs = np.sort(theirs)[np.argsort(np.abs(np.sort(theirs)))[3:]]
        np.testing.assert_allclose(found, np.sort(theirs), atol=0.02)
