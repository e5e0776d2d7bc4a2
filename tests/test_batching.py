"""Cells of several threads in one call, single precision, and eigenvalues on a device: the path for accelerators."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from crystals import host, layered
from defectnet.config import STORAGE_GRID
from defectnet.data.shards import read_shard
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import eigenvalues_and_shares, modes, q_mesh
from defectnet.potentials.potential import load_potential
from defectnet.potentials.relax import relax
from defectnet.simulate.batching import BatchedPotential
from defectnet.simulate.rows import SimulationSettings
from defectnet.simulate.runner import Shard, ToolNames, make_shard
from make_potential import write_morse_nep


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_morse_nep(tmp_path_factory.mktemp("nep") / "morse.txt", ("Al", "Ti", "Cu"))


@pytest.fixture(scope="module")
def potential(path):
    return load_potential(path)


def rattled(seed: int) -> Crystal:
    crystal = host(layered("AlCu") * (2, 2, 1 + seed % 3)).crystal
    return crystal.moved(np.random.default_rng(seed).normal(0.0, 0.08, (len(crystal), 3)))


def test_many_are_what_each_is_alone(potential):
    crystals = [rattled(seed) for seed in range(5)]
    for crystal, found in zip(crystals, potential.evaluate_many(crystals), strict=True):
        alone = potential.evaluate(crystal)
        assert found.energy == pytest.approx(alone.energy, abs=1e-10)
        assert np.abs(found.forces - alone.forces).max() < 1e-12
        assert np.abs(found.stress - alone.stress).max() < 1e-14


def test_threads_relax_side_by_side(potential):
    crystals = [rattled(seed) for seed in range(6)]
    batched = BatchedPotential(potential, 4)
    with ThreadPoolExecutor(len(crystals)) as threads:
        found = list(threads.map(lambda crystal: relax(batched, crystal), crystals))
    assert 1 < batched.largest <= 4
    for crystal, result in zip(crystals, found, strict=True):
        alone = relax(potential, crystal)
        assert result.converged
        assert result.evaluations == alone.evaluations
        assert np.abs(result.crystal.positions - alone.crystal.positions).max() < 1e-6


def test_an_error_reaches_its_own_thread_only(potential):
    good, bad = rattled(0), rattled(0)
    bad = Crystal(np.full(len(bad), 79), bad.cell, bad.positions)
    batched = BatchedPotential(potential, 4)

    def energy(crystal):
        try:
            return batched.evaluate(crystal).energy
        except SimulationError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(energy, [good, bad, good, good]))
    assert "Z = 79" in found[1]
    assert [found[0], found[2], found[3]] == pytest.approx([potential.evaluate(good).energy] * 3)


def test_single_precision(path, potential):
    crystal = relax(potential, rattled(1)).crystal
    points = [*q_mesh(20), np.zeros(3)]
    single = load_potential(path, precision=32)
    assert single.force_constants(crystal).hessian().dtype == torch.float32
    exact, found = (modes(p.force_constants(crystal), crystal, points) for p in (potential, single))
    real = exact.energy_mev > 1.0
    assert np.abs(found.energy_mev - exact.energy_mev)[real].max() < 1e-3
    assert single.evaluate(crystal).energy == potential.evaluate(crystal).energy
    with pytest.raises(SimulationError, match="precision is 16 bits"):
        load_potential(path, precision=16)


@pytest.mark.parametrize("q", [np.zeros(3), np.array([0.25, 0.25, -0.25])], ids=["Gamma", "away"])
def test_eigenvalues_of_both_solvers(q, potential):
    crystal = relax(potential, rattled(2)).crystal
    force_constants = potential.force_constants(crystal)
    matrix = force_constants.at(q[None])[0] if q.any() else force_constants.hessian()
    root = np.linspace(0.1, 0.3, 3 * len(crystal))
    values, shares = eigenvalues_and_shares(matrix.clone(), root, solver="lapack")
    ours, parts = eigenvalues_and_shares(matrix.clone(), root, solver="torch")
    assert np.allclose(ours, values, atol=1e-10)
    assert shares.shape == (len(values), len(crystal))
    assert np.allclose(parts.sum(1), 1.0)
    # Shares of single modes are arbitrary where energies coincide; weighted sums are not.
    assert np.allclose(ours**2 @ parts, values**2 @ shares, rtol=1e-8)


def test_a_shard_made_side_by_side_holds_the_same_rows(tmp_path):
    """As `defectnet simulate --device cuda --batch 3 --precision 32` would make it, on a CPU."""
    potential = str(write_morse_nep(tmp_path / "morse.txt"))
    hosts = tuple(host(layered(name), name) for name in ("AlCu", "TiAl", "AlNi"))
    settings = SimulationSettings(seed=3, spectra_per_host=2, smallest=13, largest=19)
    found = {}
    for name, options in (("alone", {}), ("beside", {"batch": 3, "precision": 32})):
        shard = Shard(tmp_path / name / "shard-00000.parquet", hosts)
        shard.path.parent.mkdir()
        make_shard(ToolNames(potential, device="cpu", **options).load(), shard, settings)
        found[name] = list(read_shard(shard.path))
    assert len(found["alone"]) > 3
    for one, other in zip(found["alone"], found["beside"], strict=True):
        assert (one.row_id, one.sites, one.dopants) == (other.row_id, other.sites, other.dopants)
        assert other.edge_mev == pytest.approx(one.edge_mev, rel=1e-3)
        difference = np.cumsum(one.doped_dos.sum(0) - other.doped_dos.sum(0)) * STORAGE_GRID.width
        assert np.abs(difference).max() < 0.02
    with pytest.raises(SimulationError, match="batch is 0"):
        ToolNames(potential, batch=0).load()
