"""Projected DOS from products with random vectors, beside the diagonalised matrix of the same crystal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.data import atomic_masses

from defectnet.config import STORAGE_GRID, Grid
from defectnet.errors import SimulationError
from defectnet.potentials import kernel_polynomial
from defectnet.potentials.kernel_polynomial import (
    band_limits,
    broadened,
    dynamical_matrix_sparse,
    kernel_polynomial_dos,
)
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import IMAGINARY_MEV, Modes, modes, projected_dos
from defectnet.potentials.potential import load_potential

EDGE_MEV = 64.0
FWHM_MEV = 0.01 * EDGE_MEV
WIDTH = STORAGE_GRID.width


@dataclasses.dataclass(frozen=True)
class Known:
    """A crystal with its Hessian, sparse blocks and modes at Gamma."""

    crystal: Crystal
    dense: torch.Tensor
    phonons: Modes

    def hessian(self):
        return self.dense.clone()

    def blocks(self):
        atoms = len(self.crystal)
        block = self.dense.reshape(atoms, 3, atoms, 3).permute(0, 2, 1, 3)
        first, second = torch.nonzero(block.abs().amax((2, 3)) > 0).T
        return first, second, block[first, second]

    def matrix(self, dtype=torch.float64):
        return dynamical_matrix_sparse(*self.blocks(), atomic_masses[self.crystal.numbers], dtype=dtype)

    def dos(self, *, dtype=torch.float64, edge=EDGE_MEV, grid=STORAGE_GRID, fwhm_mev=FWHM_MEV, **settings):
        return kernel_polynomial_dos(self.matrix(dtype), self.crystal, edge, grid, fwhm_mev=fwhm_mev, **settings)

    def exact(self, edge=EDGE_MEV, fwhm_mev=FWHM_MEV):
        """Projected DOS of all modes, broadened as `kernel_polynomial_dos` broadens."""
        real = self.phonons.energy_mev >= -IMAGINARY_MEV
        shape = broadened(self.phonons.energy_mev[real], edge, STORAGE_GRID, fwhm_mev)
        numbers = self.crystal.numbers
        dos = np.stack([self.phonons.weight[real][:, numbers == z].sum(1) @ shape for z in np.unique(numbers)])
        fraction = np.array([(numbers == z).mean() for z in np.unique(numbers)])
        return dos * (fraction / dos.sum(1) / WIDTH)[:, None]


def silicon(repeats, dopants) -> Known:
    """Silicon, not relaxed, with the given numbers of atoms replaced at random."""
    atoms = bulk("Si", "diamond", a=5.43, cubic=True) * repeats
    sites = iter(np.random.default_rng(1).permutation(len(atoms)))
    for number, count in dopants.items():
        for _ in range(count):
            atoms.numbers[next(sites)] = number
    crystal = Crystal(atoms.numbers.astype(np.int64), np.array(atoms.cell), atoms.positions)
    known = Known(crystal, load_potential("defectnet-nep").force_constants(crystal).hessian(), None)
    return dataclasses.replace(known, phonons=modes(known, crystal, [np.zeros(3)]))


@pytest.fixture(scope="module")
def alloy():
    return silicon((2, 3, 3), {32: 30, 15: 3})


@pytest.fixture(scope="module")
def unstable():
    return silicon((2, 2, 2), {6: 2})


# -- the matrix ------------------------------------------------------------------------------------------------


def test_matrix_is_the_dense_one(unstable):
    root = np.repeat(atomic_masses[unstable.crystal.numbers] ** -0.5, 3)
    expected = unstable.dense.numpy() * np.outer(root, root)
    first, second, block = unstable.blocks()
    # Halves of every block, in another order, add up.
    order = torch.randperm(2 * len(first), generator=torch.Generator().manual_seed(0))
    twice = [torch.cat([part, part])[order] for part in (first, second, 0.5 * block)]
    matrix = dynamical_matrix_sparse(*twice, atomic_masses[unstable.crystal.numbers])
    np.testing.assert_allclose(matrix.to_dense().numpy(), expected, atol=1e-12)
    assert matrix.values().numel() == 9 * len(first)
    assert unstable.matrix(torch.float32).dtype == torch.float32


def test_rows_may_be_empty():
    block = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    matrix = dynamical_matrix_sparse(torch.tensor([2, 0]), torch.tensor([0, 2]), block, np.ones(4)).to_dense()
    assert matrix[:3, 6:9].equal(block[0])
    assert matrix[6:9, :3].equal(block[0])
    assert float(matrix.abs().sum()) == 6.0


# -- the spectrum ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [EDGE_MEV, 15.0])
def test_broadening_by_nothing_is_the_histogram(unstable, edge):
    histogram, above = projected_dos(unstable.phonons, unstable.crystal, edge, STORAGE_GRID)
    assert (above > 0.0) == (edge < EDGE_MEV)  # at 15 meV modes lie above the grid
    np.testing.assert_allclose(unstable.exact(edge, fwhm_mev=1e-7), histogram, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_with_diagonalisation_within_the_stated_error(alloy, dtype):
    expected = alloy.exact()
    error, stated = {}, {}
    for vectors in (8, 64):
        found = alloy.dos(vectors=vectors, dtype=dtype)
        assert list(found.elements) == [14, 15, 32]
        deviation, expect = found.dos - expected, found.standard_error
        error[vectors], stated[vectors] = np.abs(deviation).sum(1) * WIDTH, expect.sum(1) * WIDTH
        fractions = [(alloy.crystal.numbers == z).mean() for z in found.elements]
        np.testing.assert_allclose(found.dos.sum(1) * WIDTH, fractions, rtol=1e-9)
        assert found.dos.min() >= 0.0
        assert found.imaginary == 0.0
        assert found.highest_mev == pytest.approx(alloy.phonons.energy_mev.max(), rel=1e-5)
        assert found.lowest_mev == pytest.approx(alloy.phonons.energy_mev.min(), rel=1e-2)
        for k in np.flatnonzero(expect.any(1)):
            seen = expected[k] > 0.02 * expected[k].max()
            ratio = deviation[k, seen] / expect[k, seen]
            assert 0.4 < (ratio**2).mean() < 4.0
            assert vectors == 8 or np.abs(ratio).max() < 6.0
    assert stated[64][1] == 0.0  # three P atoms: nine degrees of freedom, each of them taken
    assert error[64][1] < 1e-3 * 3 / 144
    assert stated[8][0] / stated[64][0] == pytest.approx(np.sqrt(8.0), rel=0.15)
    assert 1.5 < error[8][0] / error[64][0] < 5.0
    assert error[64][0] < 0.06


def test_all_degrees_of_freedom_leave_no_statistical_error(alloy):
    """The low energies, shapes of all peaks and what lies above the grid, without noise."""
    small = silicon((2, 2, 1), {32: 8})
    for edge, fwhm in ((EDGE_MEV, FWHM_MEV), (EDGE_MEV, 4 * FWHM_MEV), (15.0, 0.3)):
        found = small.dos(vectors=96, edge=edge, fwhm_mev=fwhm)
        assert not found.standard_error.any()
        assert np.abs(found.dos - small.exact(edge, fwhm)).sum() * WIDTH < 1e-3
        assert found.above == pytest.approx(
            projected_dos(small.phonons, small.crystal, edge, STORAGE_GRID)[1], abs=1e-3
        )
        assert found.fwhm_mev == fwhm


def test_imaginary_modes_are_reported_and_left_out(unstable):
    found = unstable.dos(vectors=192)
    assert unstable.phonons.imaginary_fraction > 0.01
    assert found.imaginary == pytest.approx(unstable.phonons.imaginary_fraction, abs=1e-3)
    assert found.lowest_mev == pytest.approx(unstable.phonons.energy_mev.min(), rel=1e-4)
    assert found.lowest_mev < -10.0
    assert np.abs(found.dos - unstable.exact()).sum() * WIDTH < 1e-3
    low, high = band_limits(unstable.matrix(), unstable.crystal)
    assert low == pytest.approx(unstable.phonons.energy_mev.min(), rel=1e-4)
    assert high == pytest.approx(unstable.phonons.energy_mev.max(), rel=1e-4)


def test_a_broken_sum_rule_does_not_make_translations_modes():
    small = silicon((2, 2, 1), {32: 8})
    shifted = dataclasses.replace(small, dense=small.dense + 0.05 * torch.eye(len(small.dense)))
    low, _ = band_limits(shifted.matrix(torch.float32), shifted.crystal)
    assert low > small.phonons.energy_mev.min() > 5.0  # translations are at 2 meV now
    assert shifted.dos(vectors=96).dos[:, : int(5.0 / EDGE_MEV / WIDTH)].sum() * WIDTH < 1e-6


def test_broadening_keeps_the_area_at_zero_energy():
    shape = broadened(np.array([0.0, 0.5]), EDGE_MEV, STORAGE_GRID, 4 * FWHM_MEV)
    np.testing.assert_allclose(shape.sum(1) * WIDTH, 1.0)
    assert shape[:, 100:].max() < 1e-9


def test_the_same_seed_gives_the_same_numbers(alloy):
    first, again, other = (alloy.dos(vectors=4, seed=seed, fwhm_mev=4 * FWHM_MEV) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.dos, again.dos)
    np.testing.assert_array_equal(first.deviation, again.deviation)
    assert np.abs(first.dos - other.dos).sum() * WIDTH > 0.01


def test_common_random_numbers_steady_a_difference():
    host, doped = silicon((2, 3, 3), {}), silicon((2, 3, 3), {32: 2})
    wide = {"fwhm_mev": 4 * FWHM_MEV}
    truth = doped.exact(**wide).sum(0) - host.exact(**wide).sum(0)
    same, other = [], []
    for seed in range(3):
        before, after = (known.dos(vectors=16, seed=seed, **wide) for known in (host, doped))
        apart = doped.dos(vectors=16, seed=seed + 10, **wide)
        same.append(np.abs(after.dos.sum(0) - before.dos.sum(0) - truth).sum() * WIDTH)
        other.append(np.abs(apart.dos.sum(0) - before.dos.sum(0) - truth).sum() * WIDTH)
        stated = kernel_polynomial._standard_error(after.deviation.sum(0) - before.deviation.sum(0)).sum() * WIDTH
        independent = np.hypot(before.total_error, after.total_error).sum() * WIDTH
        assert stated < 0.6 * independent
        assert same[-1] < 2.5 * stated
    assert np.mean(same) < 0.6 * np.mean(other)


# -- input that cannot be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"vectors": 0}, "vectors is 0"),
        ({"vectors": 1}, "vectors is 1"),
        ({"seed": -1}, "seed is -1"),
        ({"fwhm_mev": -1.0}, "fwhm_mev is -1"),
        ({"fwhm_mev": float("nan")}, "fwhm_mev is nan"),
        ({"fwhm_mev": 0.1}, "Use 0.32 meV or more"),
        ({"edge": 0.0}, "edge_mev is 0"),
        ({"edge": float("inf")}, "edge_mev is inf"),
        ({"grid": Grid(bins=6000, reach=3.0), "fwhm_mev": 0.04}, "Use 0.064 meV or more"),
    ],
)
def test_settings_that_cannot_be(unstable, settings, match):
    with pytest.raises(SimulationError, match=match):
        unstable.dos(**settings)


def test_a_resolution_that_is_not_reached(unstable, monkeypatch):
    monkeypatch.setattr(kernel_polynomial, "LONGEST", 64)
    with pytest.raises(SimulationError, match="64 products of the matrix with a vector do not resolve it"):
        unstable.dos(vectors=4)


def test_matrices_that_cannot_be(unstable):
    crystal, matrix = unstable.crystal, unstable.matrix()
    first, second, block = unstable.blocks()
    masses = atomic_masses[crystal.numbers]
    lopsided = block.clone()
    lopsided[1, 0, 1] += 0.1
    wrong = dynamical_matrix_sparse(first, second, lopsided, masses)
    with pytest.raises(SimulationError, match="not symmetric"):
        kernel_polynomial_dos(wrong, crystal, EDGE_MEV, STORAGE_GRID, fwhm_mev=FWHM_MEV)
    matrix.values()[5] = float("nan")
    for broken, match in ((matrix, "not finite"), (wrong.to_dense(), "it is torch.strided")):
        with pytest.raises(SimulationError, match=match):
            kernel_polynomial_dos(broken, crystal, EDGE_MEV, STORAGE_GRID, fwhm_mev=FWHM_MEV)
        with pytest.raises(SimulationError, match=match):
            band_limits(broken, crystal)
    with pytest.raises(SimulationError, match="not finite"):
        dynamical_matrix_sparse(first, second, block * float("inf"), masses)
    with pytest.raises(SimulationError, match="atoms outside 0 to 62"):
        dynamical_matrix_sparse(first, second, block, masses[:-1])
    with pytest.raises(SimulationError, match="masses"):
        dynamical_matrix_sparse(first, second, block, 0.0 * masses)
    with pytest.raises(SimulationError, match="belong together"):
        dynamical_matrix_sparse(first[1:], second, block, masses)
