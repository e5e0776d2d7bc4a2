"""The reference path, and the benchmark that times it: finite displacements agree with the exact Hessian."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from calorine.calculators import CPUNEP

import hessian as benchmark
from crystals import host, layered
from defectnet.crystal.doping import DopantMix, build, draw_mix
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import load_potential
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.relax import Relaxation, relax
from defectnet.potentials.supercells import Supercell
from defectnet.simulate.rows import HostSimulation, SimulationSettings, relax_host, row_generator
from make_potential import write_morse_nep

SETTINGS = SimulationSettings(seed=3, smallest=13, largest=19)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A potential of few elements: CPUNEP reads its file anew for every structure."""
    row = draw_mix(host(layered("AlCu")).crystal, row_generator(SETTINGS.seed, "host/0001"))
    symbols = sorted({"Al", "Cu", "Ti", "B", *row.dopants})
    return write_morse_nep(tmp_path_factory.mktemp("nep") / "morse.txt", symbols)


@pytest.fixture(scope="module")
def fast(path):
    return load_potential(path)


@pytest.fixture(scope="module")
def relaxed(fast):
    return relax_host(fast, host(layered("AlCu")), SETTINGS)


@pytest.fixture(scope="module")
def cell(fast):
    """A relaxed doped cell."""
    mix = DopantMix(("Ti", "B"), (0.5, 0.5), 0.2, ("Al", "Cu"))
    start = build(host(layered("AlCu")).crystal, mix, np.random.default_rng(1), np.diag([2, 2, 2])).crystal
    return relax(fast, start).crystal


def reference(path, **options):
    return ReferencePotential(CPUNEP(str(path)), name="CPUNEP", **options)


def test_energy_forces_and_stress(path, fast, cell):
    moved = cell.moved(np.random.default_rng(0).normal(0.0, 0.05, (len(cell), 3)))
    ours, theirs = fast.evaluate(moved), reference(path).evaluate(moved)
    assert ours.energy == pytest.approx(theirs.energy, abs=1e-9)
    assert np.abs(ours.forces - theirs.forces).max() < 1e-9
    assert np.abs(ours.stress - theirs.stress).max() < 1e-9


def test_hessian_of_a_doped_cell(path, fast, cell):
    exact = fast.force_constants(cell).hessian()
    found = reference(path, displacement=1e-4).force_constants(cell).hessian()
    assert (found - exact).abs().max() < 1e-4  # symmetry is taken to hold where it nearly does
    coarse = reference(path, displacement=0.01).force_constants(cell).hessian()
    assert 1e-4 < (coarse - exact).abs().max() < 0.05  # what 0.01 angstrom costs


def test_one_way_is_for_cells_without_symmetry_alone(path, fast, cell, monkeypatch):
    """What anharmonicity does to one atom it does to all that are like it, and errors of one sign add up."""
    displaced = []
    plain = ReferencePotential.displaced_forces

    def counted(self, crystal, atoms, shifts):
        displaced.append(int((np.abs(shifts).max(1) > 0).sum()))  # not the cell at rest
        return plain(self, crystal, atoms, shifts)

    monkeypatch.setattr(ReferencePotential, "displaced_forces", counted)
    one_way, both = reference(path, both_directions=False), reference(path)
    symmetric = one_way.force_constants(cell).hessian()
    assert sum(displaced) < 6 * len(cell)
    np.testing.assert_array_equal(symmetric, both.force_constants(cell).hessian())
    rattled = cell.moved(np.random.default_rng(0).normal(0.0, 0.02, (len(cell), 3)))
    displaced.clear()
    lone = one_way.force_constants(rattled).hessian()
    assert sum(displaced) == 3 * len(cell)
    displaced.clear()
    both.force_constants(rattled)
    assert sum(displaced) == 6 * len(cell)
    exact = fast.force_constants(rattled).hessian()
    assert (lone - exact).abs().max() < 0.03 * exact.abs().max()


def test_wave_vectors(path, fast, relaxed):
    """At wave vectors that the displaced supercell holds, both paths agree, phases included."""
    q = np.array([[0.0, 0.0, 0.0], [0.25, 0.5, 0.5], [-0.25, 0.25, 0.0]])
    repeated = Supercell.of(relaxed, np.diag([4, 4, 2]))
    displaced = reference(path, displacement=1e-4).force_constants(repeated.crystal)
    exact = fast.force_constants(relaxed).at(q)
    assert exact[1].imag.abs().max() > 0.1
    assert (repeated.unfolded(displaced).at(q) - exact).abs().max() < 1e-4


def test_rows_from_the_reference_path(path, fast, relaxed):
    crystal = host(layered("AlCu"))
    settings = dataclasses.replace(SETTINGS, host_imaginary_limit=0.1, imaginary_limit=0.1)
    slow = HostSimulation(reference(path), crystal, relaxed, settings, preconditioner=fast).row(1).samples[0]
    quick = HostSimulation(fast, crystal, relaxed, settings).row(1).samples[0]
    assert slow.potential == "CPUNEP"
    assert (slow.dopants, slow.sites, slow.supercell) == (quick.dopants, quick.sites, quick.supercell)
    assert slow.edge_mev == pytest.approx(quick.edge_mev, rel=0.03)  # interpolated from a cell of 16 atoms


def test_displacements_are_checked(path):
    with pytest.raises(SimulationError, match=r"displacement is 0\.0"):
        reference(path, displacement=0.0)


# -- benchmarks/hessian.py ---------------------------------------------------------------------------------------------


def test_benchmark_compares_like_with_like(path, fast, cell):
    hessian = fast.force_constants(cell).hessian().numpy()
    found = benchmark.reference(str(path), cell, hessian, sample=24, step=2e-5)
    assert found["displacements"] == 6 * len(cell)
    assert found["displacements_timed"] == 24
    assert found["columns_compared"] == 12
    assert found["largest_difference_ev_per_square_angstrom"] < 1e-5
    assert found["largest_element_ev_per_square_angstrom"] > 1.0
    wrong = hessian + np.eye(len(hessian))
    found = benchmark.reference(str(path), cell, wrong, sample=24, step=2e-5)
    assert found["largest_difference_ev_per_square_angstrom"] == pytest.approx(1.0, abs=1e-3)


def test_benchmark_cell():
    cell = benchmark.doped_silicon(216, seed=0)
    assert isinstance(cell, Crystal)
    assert len(cell) == 216
    assert (cell.numbers != 14).sum() == 9
    assert np.allclose(cell.cell, 3 * benchmark.LATTICE_ANGSTROM * np.eye(3))


def test_benchmark_refuses_a_potential_that_does_not_hold_silicon(fast, monkeypatch):
    monkeypatch.setattr(benchmark, "relax", lambda _, start, **options: Relaxation(start, False, 1.0, 1.0, 240))
    with pytest.raises(SimulationError, match="morse does not hold doped silicon"):
        benchmark.measure(fast, 16, seed=0)
