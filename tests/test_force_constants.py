"""Force constants in real space, and the supercells that they are folded into and unfolded from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from defectnet.potentials.force_constants import (
    TIE_ANGSTROM,
    ForceConstants,
    aligned,
    nearest_images,
    total,
    unique_rows,
)
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.supercells import Supercell, supercell_candidates
from host_models import largest, model, nep

SKEW = np.array([[1, 1, -1], [-1, 2, 1], [2, 0, 1]])
Q = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.13, -0.41, 0.27], [1.0, 2.0, -1.0]])


def crystals():
    """Cells of every kind: cubic, oblique beyond Minkowski's conditions, flat, and left-handed."""
    rng = np.random.default_rng(3)
    oblique = np.array([[4.0, 0, 0], [7.5, 3.9, 0], [-5.0, 6.0, 4.4]])
    flat = np.array([[9.0, 0.4, 0], [0.3, 8.1, 0], [0.2, 0.1, 3.0]])
    cells = [4.0 * np.eye(3), oblique, flat, oblique[[1, 0, 2]]]
    return [Crystal(np.full(5, 14), cell, rng.uniform(-1.5, 1.5, (5, 3)) @ cell) for cell in cells]


def random_hessian(crystal: Crystal, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with the acoustic sum rule."""
    n = len(crystal)
    found = np.random.default_rng(seed).normal(size=(3 * n, 3 * n))
    found = found + found.T
    blocks = found.reshape(n, 3, n, 3)
    for i in range(n):
        blocks[i, :, i] = 0.0
        own = -blocks[i].sum(1)
        blocks[i, :, i] = 0.5 * (own + own.T)
    return found


def random_constants(atoms: int, pairs: int, seed: int = 0) -> ForceConstants:
    rng = np.random.default_rng(seed)
    first, second = torch.from_numpy(rng.integers(atoms, size=(2, pairs)))
    return ForceConstants(
        atoms,
        first,
        second,
        torch.from_numpy(rng.integers(-2, 3, (pairs, 3))),
        torch.from_numpy(rng.normal(size=(pairs, 3, 3))),
    )


@pytest.mark.parametrize("number", range(4))
def test_from_hessian_is_the_hessian_again_at_gamma_and_hermitian_elsewhere(number):
    crystal = crystals()[number]
    hessian = random_hessian(crystal)
    found = ForceConstants.from_hessian(hessian, crystal)
    assert largest(found.hessian().numpy() - hessian) < 1e-12
    at = found.at(Q).numpy()
    assert largest(at[[0, 3]] - hessian) < 1e-12  # reciprocal lattice vectors are Gamma
    assert largest(at - at.conj().swapaxes(1, 2)) < 1e-12
    assert largest(found.at(-Q).numpy() - at.conj()) < 1e-12
    assert largest(at[2].imag) > 0.1


@pytest.mark.parametrize("number", range(4))
def test_nearest_images_are_those_of_brute_force(number):
    crystal = crystals()[number]
    shifts = np.array(list(itertools.product(range(-9, 10), repeat=3)))
    want: dict[tuple[int, ...], float] = {}
    for i, j in itertools.product(range(len(crystal)), repeat=2):
        distance = np.linalg.norm(crystal.positions[j] + shifts @ crystal.cell - crystal.positions[i], axis=1)
        near = np.flatnonzero(distance < distance.min() + TIE_ANGSTROM)
        want |= {(i, j, *map(int, shifts[k])): 1.0 / len(near) for k in near}
    first, second, shift, share = nearest_images(crystal)
    found = {(int(i), int(j), *map(int, s)): w for i, j, s, w in zip(first, second, shift, share, strict=True)}
    assert len(found) == len(first)
    assert found == want


def test_equally_near_images_share_what_their_pair_has():
    """In rocksalt repeated twice, an atom at half a lattice vector has two images, at the body's centre eight."""
    crystal = Crystal(
        np.array([12, 12, 12, 12]), 4.0 * np.eye(3), 2.0 * np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]])
    )
    moved = crystal.moved(np.random.default_rng(1).uniform(-0.003, 0.003, (4, 3)))
    first, second, _, share = nearest_images(moved)  # what differs by less than the tolerance is still a tie
    for j, count in enumerate((1, 2, 4, 8)):
        mine = (first == 0) & (second == j)
        assert mine.sum() == count
        assert share[mine] == pytest.approx(1.0 / count)
    hessian = random_hessian(crystal)
    found = ForceConstants.from_hessian(hessian, crystal)
    eight = found.block[(found.first == 0) & (found.second == 3)].numpy()
    assert largest(eight - hessian[:3, 9:] / 8) < 1e-14
    far = moved.moved(np.array([[0.05, 0, 0]] + 3 * [[0.0] * 3]))
    first, second, _, _ = nearest_images(far)
    assert ((first == 0) & (second == 3)).sum() == 4  # no tie any more along x


def test_unique_rows_is_that_of_numpy():
    rng = np.random.default_rng(0)
    rows = rng.integers(-40, 40, (300, 5)) * np.array([1, 0, 30, 1, 1])
    rows[100:200] = rows[:100]
    found, place = unique_rows(torch.from_numpy(rows))
    want, inverse = np.unique(rows, axis=0, return_inverse=True)
    np.testing.assert_array_equal(found.numpy(), want)
    np.testing.assert_array_equal(place.numpy(), inverse.ravel())


def test_aligned_and_total_add_blocks_of_the_same_pair():
    parts = [random_constants(3, 40, seed) for seed in (0, 1)]
    keys, blocks = aligned(parts)
    assert len({tuple(key) for key in keys.tolist()}) == len(keys)
    assert keys.tolist() == sorted(keys.tolist())
    for part, mine in zip(parts, blocks, strict=True):
        want = torch.zeros_like(mine)
        place = {tuple(key): k for k, key in enumerate(keys.tolist())}
        for i, j, s, block in zip(part.first, part.second, part.shift, part.block, strict=True):
            want[place[int(i), int(j), *s.tolist()]] += block
        assert (mine - want).abs().max() < 1e-14
    summed = total(parts)
    want_sum = parts[0].at(Q) + parts[1].at(Q)
    assert (summed.at(Q) - want_sum).abs().max() < 1e-12
    assert ((parts[0] + parts[1]).at(Q) - want_sum).abs().max() < 1e-12
    assert ((parts[0] - parts[1] * 2.0).at(Q) - (parts[0].at(Q) - 2 * parts[1].at(Q))).abs().max() < 1e-12
    assert parts[0].to(torch.float32).at(Q).dtype is torch.complex64


def test_acoustic_sum_rule_costs_a_common_shift_no_energy():
    crystal = crystals()[1]
    broken = random_hessian(crystal) + np.diag(np.arange(15.0))
    found = ForceConstants.from_hessian(broken, crystal)
    shift = np.tile(np.eye(3), (len(crystal), 1))
    assert largest(found.hessian().numpy() @ shift) > 1.0
    whole = found.with_acoustic_sum_rule()
    hessian = whole.hessian().numpy()
    # Its own blocks are symmetric, so the rule holds for the symmetric part of the sums of a row.
    sums = (hessian @ shift).reshape(-1, 3, 3)
    assert largest(sums + sums.swapaxes(1, 2)) < 1e-12
    assert largest(shift.T @ hessian @ shift) < 1e-11
    assert largest(hessian - hessian.T) < 1e-12
    others = ~np.kron(np.eye(len(crystal), dtype=bool), np.ones((3, 3), dtype=bool))
    np.testing.assert_allclose(hessian[others], broken[others], atol=1e-12)
    again = whole.with_acoustic_sum_rule()
    assert (again.at(Q) - whole.at(Q)).abs().max() < 1e-12


def test_within_a_radius():
    host = model("GaAs")
    near = host.force_constants.within(host.primitive, 3.0)
    between = (near.first != near.second) | (near.shift != 0).any(1)
    assert int(between.sum()) == 8  # four bonds, both ways
    shift = np.tile(np.eye(3), (2, 1))
    assert largest(near.hessian().numpy() @ shift) < 1e-9
    everything = host.force_constants.within(host.primitive, 1000.0)
    assert (everything.at(Q) - host.force_constants.at(Q)).abs().max() < 1e-9


MATRICES = [
    np.diag([2, 1, 3]),
    SKEW,
    -SKEW,
    SKEW[[1, 0, 2]],
    np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    np.array([[3, 1, 0], [0, 1, 0], [5, 0, 2]]),
]


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_find_is_the_inverse_of_basis_and_lattice(number):
    matrix = MATRICES[number]
    cell = Supercell.of(model("MgO").primitive, matrix)
    assert len(cell) == 2 * round(abs(np.linalg.det(matrix)))
    places = cell.primitive.positions[cell.basis] + cell.lattice @ cell.primitive.cell
    assert largest(places - cell.crystal.positions) < 1e-9
    rng = np.random.default_rng(0)
    index = rng.integers(len(cell), size=200)
    shift = rng.integers(-5, 6, (200, 3))
    found, back = cell.find(cell.basis[index], cell.lattice[index] + shift @ matrix)
    np.testing.assert_array_equal(found, index)
    np.testing.assert_array_equal(back, shift)


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_unfolded_is_the_inverse_of_folded(number):
    small = total([random_constants(2, 30)])
    cell = Supercell.of(model("MgO").primitive, MATRICES[number])
    back = cell.unfolded(cell.folded(small))
    for name in ("first", "second", "shift"):
        assert torch.equal(getattr(back, name), getattr(small, name))
    assert (back.block - small.block).abs().max() < 1e-13


@pytest.mark.parametrize("number", range(len(MATRICES)))
def test_folded_force_constants_have_the_phonons_of_the_small_cell(number):
    host, matrix = model("MgO"), MATRICES[number]
    cell = Supercell.of(host.primitive, matrix)
    q = np.array([0.2, -0.1, 0.35])
    large = np.linalg.eigvalsh(cell.folded(host.force_constants).at(q[None]).numpy()[0])
    count = round(abs(np.linalg.det(matrix)))
    inverse = np.linalg.inv(matrix)
    waves = {
        tuple(np.round(inverse @ shift * count).astype(int) % count): inverse @ (q + shift)
        for shift in itertools.product(range(-6, 7), repeat=3)
    }
    assert len(waves) == count
    small = np.linalg.eigvalsh(host.force_constants.at(np.array(list(waves.values()))).numpy())
    assert largest(np.sort(small.ravel()) - np.sort(large)) < 1e-9


def test_the_supercell_computed_itself_is_the_folded_one():
    host = model("GaAs")
    cell = Supercell.of(host.primitive, SKEW)
    direct = nep().force_constants(cell.crystal)
    assert (direct.at(Q) - cell.folded(host.force_constants).at(Q)).abs().max() < 1e-6
    assert (cell.unfolded(direct).at(Q) - host.force_constants.at(Q)).abs().max() < 1e-6


def test_atoms_of_the_small_cell_may_stand_in_any_cell():
    """Moving them by lattice vectors changes neither the supercell's phonons nor which atom is found."""
    host = model("MgO")
    offset = np.array([[3, -2, 1], [-1, 0, 5]])
    moved = Crystal(
        host.primitive.numbers, host.primitive.cell, host.primitive.positions + offset @ host.primitive.cell
    )
    old = host.force_constants
    shift = old.shift + torch.from_numpy(offset)[old.first] - torch.from_numpy(offset)[old.second]
    constants = ForceConstants(2, old.first, old.second, shift, old.block)
    cell, other = Supercell.of(host.primitive, SKEW), Supercell.of(moved, SKEW)
    q = np.array([[0.0, 0.0, 0.0], [0.2, -0.1, 0.35]])
    one, two = cell.folded(old).at(q).numpy(), other.folded(constants).at(q).numpy()
    assert largest(np.linalg.eigvalsh(one) - np.linalg.eigvalsh(two)) < 1e-9
    index, _ = other.find(other.basis, other.lattice)
    np.testing.assert_array_equal(index, np.arange(len(other)))
    back = other.unfolded(other.folded(constants))
    assert (back.at(q) - constants.at(q)).abs().max() < 1e-10


def test_candidates_of_supercells_are_distinct_and_small_enough():
    found = supercell_candidates(model("MgO").primitive.cell, 2, 24)
    count = np.round(np.abs(np.linalg.det(found)))
    assert count.min() >= 1
    assert count.max() <= 12
    assert len(np.unique(found, axis=0)) == len(found)
    assert {1, 2, 4, 8} <= set(count.astype(int).tolist())
