"""The torch NEP against calorine's CPUNEP, the reference implementation, and against what symmetry demands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk, make_supercell
from calorine.calculators import CPUNEP

from defectnet.potentials import hessian as hessian_module
from defectnet.potentials.hessian import force_constants
from defectnet.potentials.neighbours import Crystal, find_pairs
from defectnet.potentials.nep import NEP
from defectnet.potentials.nep_file import read_nep
from defectnet.potentials.phonons import folded
from make_potential import write_tiny_nep

SYMBOLS = ("Li", "Be", "O", "F", "Mg", "Si", "S", "Zn")

# Host, repetitions, dopants as (site, element). Bonds of BeO, 1.65 angstrom, lie well inside the range of the ZBL.
CRYSTALS = {
    "BeO": (bulk("BeO", "wurtzite", a=2.70, c=4.38, u=0.378), (2, 2, 1), ((0, "Mg"), (5, "S"))),
    "LiF": (bulk("LiF", "rocksalt", a=3.90), (2, 2, 2), ((2, "Be"),)),
    "MgO": (bulk("MgO", "rocksalt", a=4.21), (2, 2, 2), ((0, "Zn"), (7, "F"))),
    "ZnS": (bulk("ZnS", "zincblende", a=5.41), (2, 2, 2), ((4, "Si"), (9, "O"))),
    "Si": (bulk("Si", "diamond", a=5.43), (2, 2, 2), ((3, "Be"), (8, "Zn"), (11, "O"))),
}
FORMATS = {
    "NEP4 ZBL 4 2 1": {},
    "NEP4 ZBL 4 2 0": {"l_max": "4 2 0"},
    "NEP4 4 2 1": {"zbl": False},
    "NEP4 4 0 0": {"zbl": False, "l_max": "4 0 0"},
}
STEP = 2e-5
"""Angstrom. Small, because second derivatives jump at the cut-offs: a pair that crosses one spoils a difference."""

HESSIAN_LIMIT = 1e-6
"""eV/angstrom^2; what is left is the error of the difference."""


def doped(name, seed=0):
    """A rattled supercell with dopants, as ase structure."""
    host, repetitions, dopants = CRYSTALS[name]
    atoms = host.repeat(repetitions)
    for site, symbol in dopants:
        atoms.symbols[site] = symbol
    atoms.positions += np.random.default_rng(seed).normal(0.0, 0.04, atoms.positions.shape)
    return atoms


def crystal_of(atoms):
    return Crystal(atoms.numbers.astype(np.int64), atoms.cell.array.copy(), atoms.positions.copy())


def differences(atoms, path):
    """Hessian from central differences of CPUNEP's forces, (3 N, 3 N)."""
    atoms = atoms.copy()
    atoms.calc = CPUNEP(str(path))
    start = atoms.positions.copy()
    columns = []
    for k in range(start.size):
        forces = []
        for sign in (1.0, -1.0):
            moved = start.copy()
            moved.flat[k] += sign * STEP
            atoms.positions = moved
            forces.append(atoms.get_forces().ravel())
        columns.append((forces[1] - forces[0]) / (2 * STEP))
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def potential(tmp_path_factory):
    return write_tiny_nep(tmp_path_factory.mktemp("nep") / "tiny.txt", SYMBOLS, seed=1)


@pytest.fixture(scope="module")
def model(potential):
    return NEP.from_file(potential)


def assert_first_derivatives(atoms, path):
    reference = atoms.copy()
    reference.calc = CPUNEP(str(path))
    ours = NEP.from_file(path).evaluate(crystal_of(atoms))
    assert ours.energy == pytest.approx(reference.get_potential_energy(), abs=1e-9)
    assert np.abs(ours.forces - reference.get_forces()).max() < 1e-8
    assert np.abs(ours.stress - reference.get_stress(voigt=False)).max() < 1e-8
    return ours


@pytest.mark.parametrize("name", CRYSTALS)
def test_energy_forces_and_stress(name, potential):
    ours = assert_first_derivatives(doped(name), potential)
    assert np.abs(ours.forces).max() > 0.05  # there is something to compare
    assert np.abs(ours.stress).max() > 1e-3  # some 0.2 GPa


@pytest.mark.parametrize("name", CRYSTALS)
def test_hessian(name, potential, model):
    atoms = doped(name)
    ours = force_constants(model, crystal_of(atoms)).hessian().numpy()
    assert np.abs(ours).max() > 1.0  # there is something to compare
    assert np.abs(ours - differences(atoms, potential)).max() < HESSIAN_LIMIT


@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats(kind, tmp_path):
    path = write_tiny_nep(tmp_path / "nep.txt", ("Be", "O", "Mg", "S"), seed=7, **FORMATS[kind])
    atoms = doped("BeO", seed=3)
    assert_first_derivatives(atoms, path)
    ours = force_constants(NEP.from_file(path), crystal_of(atoms)).hessian().numpy()
    assert np.abs(ours - differences(atoms, path)).max() < HESSIAN_LIMIT


@pytest.mark.parametrize("zbl", [True, False])
def test_nep3_is_nep4_with_the_same_network_for_all(zbl, tmp_path):
    """calorine reads NEP4 only, so a NEP3 file is compared with the NEP4 file that must mean the same."""
    symbols = ("Be", "O", "Mg", "S")
    third = write_tiny_nep(tmp_path / "third.txt", symbols, seed=4, version=3, zbl=zbl)
    lines = third.read_text().splitlines()
    start, size = 6 + zbl, 10 * (35 + 2)
    network, rest = lines[start : start + size], lines[start + size :]
    fourth = tmp_path / "fourth.txt"
    header = [lines[0].replace("nep3", "nep4"), *lines[1:start]]
    fourth.write_text("\n".join([*header, *network * len(symbols), *rest]) + "\n")
    atoms = doped("BeO", seed=3)
    expected = assert_first_derivatives(atoms, fourth)
    found = NEP.from_file(third).evaluate(crystal_of(atoms))
    assert found.energy == expected.energy
    assert np.array_equal(found.forces, expected.forces)
    assert np.array_equal(found.stress, expected.stress)
    hessians = [force_constants(NEP.from_file(path), crystal_of(atoms)).hessian() for path in (third, fourth)]
    assert torch.equal(*hessians)


def test_cell_smaller_than_the_cutoff(potential, model):
    """Atoms see their own images: two atoms, cut-off 5 angstrom."""
    atoms = bulk("MgO", "rocksalt", a=4.21)
    atoms.positions[1] += (0.05, -0.02, 0.03)
    assert_first_derivatives(atoms, potential)
    ours = force_constants(model, crystal_of(atoms)).hessian().numpy()
    assert np.abs(ours - differences(atoms, potential)).max() < HESSIAN_LIMIT


def test_atoms_out_of_reach(potential, model):
    """A pair and a lone atom, and no pair at all: what a relaxation meets that blows a cell up."""
    far = bulk("MgO", "rocksalt", a=4.21).repeat((1, 1, 2))[:3]
    far.set_cell(np.diag([40.0, 40.0, 40.0]))
    far.positions[2] = (20.0, 20.0, 20.0)
    assert_first_derivatives(far, potential)
    far.positions[1] = (0.0, 20.0, 0.0)
    none = model.evaluate(crystal_of(far))
    assert np.all(none.forces == 0.0)
    assert np.all(none.stress == 0.0)
    assert not force_constants(model, crystal_of(far)).hessian().any()


def test_repulsion_acts_below_two_angstrom(potential, tmp_path):
    """Without the ZBL line the same parameters give other forces for BeO, and the same for silicon."""
    lines = potential.read_text().splitlines()
    without = tmp_path / "without.txt"
    without.write_text("\n".join([lines[0].replace("_zbl", ""), *lines[2:]]) + "\n")
    change = {
        name: np.abs(
            NEP.from_file(potential).evaluate(crystal_of(atoms)).forces
            - NEP.from_file(without).evaluate(crystal_of(atoms)).forces
        ).max()
        for name, atoms in (("BeO", doped("BeO")), ("Si", bulk("Si", "diamond", a=5.43).repeat(2)))
    }
    assert change["BeO"] > 0.1
    assert change["Si"] == 0.0


def test_hessian_is_symmetric_and_blind_to_translations(model):
    crystal = crystal_of(doped("ZnS"))
    hessian = force_constants(model, crystal).hessian()
    assert (hessian - hessian.T).abs().max() < 1e-11
    assert hessian.view(len(crystal), 3, -1).sum(0).abs().max() < 1e-10  # acoustic sum rule
    moved = Crystal(crystal.numbers, crystal.cell, crystal.positions + np.array([0.31, -7.7, 2.9]))
    assert model.evaluate(moved).energy == pytest.approx(model.evaluate(crystal).energy, abs=1e-10)
    assert (force_constants(model, moved).hessian() - hessian).abs().max() < 1e-9
    assert np.abs(model.evaluate(crystal).forces.sum(0)).max() < 1e-11


def test_rotation(model):
    crystal = crystal_of(doped("BeO"))
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turned = Crystal(crystal.numbers, crystal.cell @ rotation, crystal.positions @ rotation)
    before, after = model.evaluate(crystal), model.evaluate(turned)
    assert after.energy == pytest.approx(before.energy, abs=1e-10)
    assert np.allclose(after.forces, before.forces @ rotation, atol=1e-10)
    assert np.allclose(after.stress, rotation.T @ before.stress @ rotation, atol=1e-11)
    whole = np.kron(np.eye(len(crystal)), rotation)
    expected = whole.T @ force_constants(model, crystal).hessian().numpy() @ whole
    assert np.abs(force_constants(model, turned).hessian().numpy() - expected).max() < 1e-9


def test_order_of_atoms_does_not_matter(model):
    crystal = crystal_of(doped("LiF"))
    order = np.random.default_rng(2).permutation(len(crystal))
    shuffled = Crystal(crystal.numbers[order], crystal.cell, crystal.positions[order])
    hessian = force_constants(model, crystal).hessian().numpy().reshape(len(crystal), 3, len(crystal), 3)
    expected = hessian[order][:, :, order].reshape(3 * len(crystal), -1)
    assert np.abs(force_constants(model, shuffled).hessian().numpy() - expected).max() < 1e-10


@pytest.mark.parametrize("matrix", [np.diag([2, 2, 2]), np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])], ids=str)
def test_folded_wave_vectors_give_the_supercell(matrix, model):
    primitive = bulk("ZnS", "zincblende", a=5.41)
    primitive.positions[1] += (0.03, 0.01, -0.02)
    found = force_constants(model, crystal_of(primitive))
    for q in (np.zeros(3), np.array([0.25, -0.1, 0.4])):
        points = np.array(folded(matrix, q))
        assert len(points) == round(abs(np.linalg.det(matrix)))
        small = torch.linalg.eigvalsh(found.at(points)).flatten().sort().values
        whole = force_constants(model, crystal_of(make_supercell(primitive, matrix))).at(q[None])[0]
        assert (torch.linalg.eigvalsh(whole) - small).abs().max() < 1e-9


def test_wave_vectors(model):
    crystal = crystal_of(doped("MgO"))
    found = force_constants(model, crystal)
    q = np.array([0.13, -0.37, 0.21])
    at_q, at_minus_q, at_gamma, at_lattice = found.at(np.array([q, -q, 0 * q, q + np.array([1, 0, -2])]))
    assert (at_q - at_q.conj().T).abs().max() < 1e-11
    assert (at_minus_q - at_q.conj()).abs().max() < 1e-11
    assert (at_lattice - at_q).abs().max() < 1e-9
    assert at_q.imag.abs().max() > 1e-2
    assert (at_gamma - found.hessian()).abs().max() < 1e-11


def test_chunks_change_nothing(model, monkeypatch):
    crystal = crystal_of(doped("Si"))
    whole = force_constants(model, crystal).hessian()
    monkeypatch.setattr(hessian_module, "CHUNK_BYTES", 1)  # one atom at a time
    assert (force_constants(model, crystal).hessian() - whole).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["cpu", "meta"])
def test_device_is_an_argument(name, potential):
    model = NEP.from_file(potential, name)
    tensors = (model.w0, model.c_angular, model.cubic, model.members, model.tables.second)
    assert {tensor.device.type for tensor in tensors} == {name}
    assert NEP.from_file(potential, torch.device(name)).device.type == name


def test_pairs_are_complete_and_ordered():
    """Against a sum over all images near by."""
    crystal = crystal_of(doped("ZnS"))
    pairs = find_pairs(crystal, 4.5)
    images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
    vectors = crystal.positions[None, :, None] + (images @ crystal.cell)[None, None] - crystal.positions[:, None, None]
    distance = np.linalg.norm(vectors, axis=-1)
    i, j, image = np.nonzero((distance < 4.5) & (distance > 1e-6))
    expected = np.column_stack([i, j, images[image]])
    found = torch.column_stack([pairs.centre, pairs.neighbour, pairs.shift]).numpy()
    assert np.array_equal(found, expected[np.lexsort(expected.T[::-1])])
    assert np.allclose(pairs.vector.norm(dim=1), pairs.distance)


def test_file_is_read_as_written(potential):
    parameters = read_nep(potential)
    assert parameters.species == (3, 4, 8, 9, 12, 14, 16, 30)
    assert (parameters.cutoff_radial, parameters.cutoff_angular) == (5.0, 4.0)
    assert (parameters.zbl_inner, parameters.zbl_outer) == (1.0, 2.0)
    assert parameters.w0.shape == (8, 10, 35)
    assert parameters.c_radial.shape == parameters.c_angular.shape == (8, 8, 5, 9)
    numbers = np.array(potential.read_text().splitlines()[7:], dtype=float)
    assert np.array_equal(parameters.scaler.numpy(), numbers[-35:])
    # c is stored with the pair of species fastest
    start = 8 * 10 * 37 + 1
    assert parameters.c_radial[2, 3, 1, 4] == numbers[start + ((1 * 9 + 4) * 8 + 2) * 8 + 3]
