"""Doping, relaxation, spectra and rows. Cells are tiny, and every element knows every other (see make_potential)."""

from __future__ import annotations

import dataclasses
import json
import lzma

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from scipy.ndimage import gaussian_filter1d

from crystals import cubic, entry, host, layered, write_hosts
from defectnet import cli
from defectnet.config import STORAGE_GRID
from defectnet.crystal.doping import HIGHEST, LOWEST, DopantMix, build, draw_mix, likeness
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import read_extra, read_shard, write_shard
from defectnet.data.splits import split_of
from defectnet.elements import INDEX, NUMBERS, VOCABULARY
from defectnet.errors import SimulationError
from defectnet.potentials import phonons
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, band_edge, folded, modes, projected_dos, q_mesh
from defectnet.potentials.potential import load_potential
from defectnet.potentials.relax import relax
from defectnet.potentials.supercells import supercell, supercell_matrix
from defectnet.simulate import rows
from defectnet.simulate.regenerate import FORGIVEN, differences, regenerate
from defectnet.simulate.rows import (
    HostSimulation,
    RejectedCell,
    SimulationSettings,
    atom_range,
    read_settings,
    relax_host,
    row_generator,
)
from defectnet.simulate.runner import Shard, Tools, make_shard, simulate_host
from defectnet.simulate.stiffness import SPREAD, StiffnessFactors, scaled
from make_potential import write_morse_nep

SETTINGS = SimulationSettings(seed=3, spectra_per_host=4, smallest=13, largest=19)


@pytest.fixture(scope="module")
def potential(tmp_path_factory):
    return load_potential(write_morse_nep(tmp_path_factory.mktemp("nep") / "morse.txt"))


@pytest.fixture(scope="module")
def relaxed(potential):
    return relax_host(potential, host(layered("AlCu")), SETTINGS)


def distance(first, second):
    """Total-variation distance of two total DOS, after smoothing by 3 bins (0.01 of the edge)."""
    difference = gaussian_filter1d(first.sum(0), 3) - gaussian_filter1d(second.sum(0), 3)
    return 0.5 * np.abs(difference).sum() * STORAGE_GRID.width


# -- doping ----------------------------------------------------------------------------------------------------


def test_mixes():
    crystal = host(cubic("Al", "Ni")).crystal
    mixes = [draw_mix(crystal, np.random.default_rng(seed)) for seed in range(1500)]
    counts = np.array([len(mix.dopants) for mix in mixes])
    totals = np.array([mix.total for mix in mixes if mix.dopants])
    assert 0.01 < (counts == 0).mean() < 0.035  # controls
    assert set(counts) == set(range(7))
    assert 0.27 < (counts == 1).mean() < 0.36
    assert LOWEST <= totals.min() < 0.0022
    assert 0.24 < totals.max() <= HIGHEST
    for count in (1, 2):  # log-uniform
        alone = totals[counts[counts > 0] == count]
        lowest = count * LOWEST
        assert np.log(alone / lowest).mean() == pytest.approx(0.5 * np.log(HIGHEST / lowest), rel=0.1)
    seen = {symbol for mix in mixes for symbol in mix.dopants}
    assert seen == set(VOCABULARY) - {"Al", "Ni"}
    for mix in mixes:
        assert len(set(mix.dopants)) == len(mix.dopants) == len(mix.shares) == len(mix.replaced)
        assert not mix.dopants or sum(mix.shares) == pytest.approx(1.0)
        assert set(mix.replaced) <= {"Al", "Ni"}
    assert draw_mix(crystal, np.random.default_rng(5)) == mixes[5]


def test_named_dopants_are_the_only_ones():
    crystal = host(cubic("Al", "Ni")).crystal
    named = ("Cu@Ni", "Fe", "Ni", "Mg@Zn")  # an element of the host and a site that it has not are passed over
    mixes = [
        draw_mix(crystal, np.random.default_rng(seed), dopants=named, controls=0.0, highest=0.1, lowest=0.02)
        for seed in range(300)
    ]
    drawn = [symbol for mix in mixes for symbol in mix.dopants]
    assert set(drawn) == {"Cu", "Fe"}
    assert 0.4 < drawn.count("Cu") / len(drawn) < 0.6
    assert {len(mix.dopants) for mix in mixes} == {1, 2}
    replaced = {(d, r) for mix in mixes for d, r in zip(mix.dopants, mix.replaced, strict=True)}
    assert replaced == {("Cu", "Ni"), ("Fe", "Al"), ("Fe", "Ni")}
    assert 0.02 <= min(mix.total for mix in mixes) < max(mix.total for mix in mixes) <= 0.1
    with pytest.raises(SimulationError, match="none of the dopants Ni"):
        draw_mix(crystal, np.random.default_rng(0), dopants=("Ni",))


def test_settings_of_the_first_data_sets_are_described_as_they_were(tmp_path):
    assert not {"highest", "controls", "dopants"} & set(SimulationSettings().to_dict())
    settings = SimulationSettings(dopants=("Al@Mg", "C"), highest=0.2, controls=0.1)
    (tmp_path / "settings.json").write_text(json.dumps(settings.to_dict()))
    assert read_settings(SimulationSettings, tmp_path / "settings.json") == settings


@pytest.mark.parametrize(
    "wrong", [{"dopants": ("Xx",)}, {"dopants": "Al"}, {"dopants": ("Al@",)}, {"highest": 0.3}, {"controls": 2.0}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(SimulationError, match=next(iter(wrong)).rstrip("s")):
        SimulationSettings(**wrong)


def test_likeness_knows_chemistry():
    fit = likeness(("Ga", "As"))
    assert fit[INDEX["In"], 0] > fit[INDEX["In"], 1]
    assert fit[INDEX["P"], 1] > fit[INDEX["P"], 0]
    assert fit[INDEX["Cs"]].max() < 0.01
    assert fit[INDEX["Ga"], 0] == fit[INDEX["As"], 1] == pytest.approx(1.001)


@pytest.mark.parametrize("name", ["AlCu", "cubic", "primitive"])
@pytest.mark.parametrize("total", [0.002, 0.04, 0.25])
def test_cells(name, total):
    hosts = {"cubic": cubic("Al", "Ni"), "primitive": bulk("Si", "diamond", a=5.43)}
    crystal = host(hosts.get(name, layered("AlCu"))).crystal
    mix = DopantMix(("Be", "Ti"), (0.7, 0.3), total, ("Si" if name == "primitive" else "Al",) * 2)
    for seed in range(8):
        matrix = supercell_matrix(crystal.cell, len(crystal), 90, (60, 130))
        cell = build(crystal, mix, np.random.default_rng(seed), matrix)
        assert 60 <= len(cell.crystal) <= 130
        assert len(cell.crystal) == len(crystal) * round(np.linalg.det(cell.supercell))
        assert len(set(cell.sites.tolist())) == len(cell.sites) == len(cell.symbols)
        assert {"Be", "Ti"} == set(cell.symbols)
        wished = max(2, round(total * len(cell.crystal)))
        assert len(cell.sites) == min(wished, int(HIGHEST * len(cell.crystal)))
        pristine = supercell(crystal, cell.supercell)
        changed = np.flatnonzero(cell.crystal.numbers != pristine.numbers)
        assert np.array_equal(np.sort(cell.sites), changed)
        assert [int(z) for z in cell.crystal.numbers[cell.sites]] == [NUMBERS[INDEX[s]] for s in cell.symbols]
        preferred = int((pristine.numbers == NUMBERS[INDEX[mix.replaced[0]]]).sum())
        on_preferred = pristine.numbers[cell.sites] == NUMBERS[INDEX[mix.replaced[0]]]
        assert on_preferred.sum() == min(preferred, len(cell.sites))
        rattle = cell.crystal.positions - pristine.positions
        assert 0.005 < rattle.std() < 0.015
        again = build(crystal, mix, np.random.default_rng(seed), matrix)
        assert np.array_equal(again.crystal.positions, cell.crystal.positions)
        assert again.symbols == cell.symbols


def test_clustered_dopants_sit_side_by_side():
    crystal = host(layered("AlCu")).crystal
    matrix = supercell_matrix(crystal.cell, len(crystal), 120, (100, 140))
    mix = DopantMix(("Be", "Ti"), (0.5, 0.5), 0.04, ("Al", "Cu"))
    near = {}
    for placement in ("random", "clustered"):
        distances = []
        for seed in range(12):
            cell = build(crystal, dataclasses.replace(mix, placement=placement), np.random.default_rng(seed), matrix)
            assert cell.placement == placement
            assert set(cell.symbols) == {"Be", "Ti"}
            atoms = Atoms(cell.crystal.numbers, positions=cell.crystal.positions, cell=cell.crystal.cell, pbc=True)
            between = atoms.get_all_distances(mic=True)[np.ix_(cell.sites, cell.sites)]
            distances.append(np.sort(between, axis=1)[:, 1].mean())  # to the nearest other dopant
        near[placement] = np.mean(distances)
    assert near["clustered"] < 0.8 * near["random"]
    alone = build(crystal, DopantMix(("Be",), (1.0,), 0.005, ("Al",), "clustered"), np.random.default_rng(0), matrix)
    assert (len(alone.sites), alone.placement) == (1, "random")


def test_a_control_has_no_dopant():
    cell = build(
        host(layered("AlCu")).crystal, DopantMix((), (), 0.0, ()), np.random.default_rng(0), np.diag([2, 2, 2])
    )
    assert cell.symbols == ()
    assert len(cell.sites) == 0


@pytest.mark.parametrize(
    "skew", [np.eye(3), np.array([[1.0, 0, 0], [0.9, 1, 0], [0.4, -0.8, 1]])], ids=["plain", "skew"]
)
def test_supercells_are_compact(skew):
    cell = skew @ np.diag([3.0, 3.5, 4.0])
    matrix = supercell_matrix(cell, 2, 120, (100, 140))
    assert 100 <= 2 * np.linalg.det(matrix) <= 140
    lengths = np.linalg.norm(matrix @ cell, axis=1)
    assert lengths.max() / lengths.min() < 1.4


# -- relaxation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fixed", "volume", "full"])
def test_relaxation(mode, potential):
    mix = DopantMix(("Cs", "B"), (0.5, 0.5), 0.15, ("Al", "Cu"))
    start = build(host(layered("AlCu")).crystal, mix, np.random.default_rng(1), np.diag([3, 3, 2])).crystal
    start = Crystal(
        start.numbers, start.cell, start.positions + np.random.default_rng(2).normal(0, 0.05, (len(start), 3))
    )
    result = relax(potential, start, cell=mode, tolerance=0.002)
    assert result.converged
    assert result.evaluations <= 40
    before, after = potential.evaluate(start), potential.evaluate(result.crystal)
    assert np.abs(after.forces).max() == pytest.approx(result.max_force)
    assert result.max_force < 0.002 < 0.1 < np.abs(before.forces).max()
    assert after.energy < before.energy - 0.1
    ratio = np.linalg.solve(start.cell, result.crystal.cell)
    virial = after.stress * result.crystal.volume / len(start)
    if mode == "fixed":
        assert np.array_equal(result.crystal.cell, start.cell)
    if mode == "volume":
        assert np.allclose(ratio, ratio[0, 0] * np.eye(3), atol=1e-12)
        assert abs(ratio[0, 0] - 1) > 1e-3
        assert abs(np.trace(virial)) < 0.002
    if mode == "full":
        assert np.abs(virial).max() < 0.002


def test_relaxation_stays_where_it_is_done(potential, relaxed):
    again = relax(potential, relaxed, cell="full", tolerance=0.001)
    assert again.converged
    assert again.evaluations == 1
    assert np.array_equal(again.crystal.positions, relaxed.positions)


def test_hosts_that_leave_their_structure_are_rejected(potential):
    stretched = layered("AlCu")
    stretched.set_cell(stretched.cell * 1.2, scale_atoms=True)
    with pytest.raises(RejectedCell, match=r"host volume changed|host not relaxed"):
        relax_host(potential, host(stretched), SETTINGS)


def test_hosts_with_soft_modes_are_rejected(potential):
    """A simple cubic crystal with central forces shears without resistance."""
    simple = Crystal(np.array([13]), np.eye(3) * 2.6, np.zeros((1, 3)))
    simple = relax(potential, simple, cell="volume").crystal
    with pytest.raises(RejectedCell, match="imaginary modes in the host"):
        simulation(potential, simple, dataclasses.replace(SETTINGS, smallest=20, largest=30)).row(0)


# -- spectra ---------------------------------------------------------------------------------------------------


def test_unit_of_energy():
    expected = units._hbar * np.sqrt(units._e / (1e-20 * units._amu)) / units._e * 1000
    assert pytest.approx(expected, rel=1e-6) == phonons.MEV_PER_ROOT


def test_projected_dos_by_hand():
    """Three modes at 0.5, 1 and 1.5 of the edge; the middle one belongs to the copper atom alone."""
    crystal = Crystal(np.array([29, 13, 13]), np.eye(3) * 4, np.zeros((3, 3)))
    weight = np.array([[0.5, 0.25, 0.25], [1.0, 0, 0], [0, 0.5, 0.5]])
    dos, overflow = projected_dos(Modes(np.array([10.0, 20.0, 30.0]), weight), crystal, 20.0, STORAGE_GRID)
    assert dos.shape == (2, STORAGE_GRID.bins)
    assert np.allclose(dos.sum(1) * STORAGE_GRID.width, [2 / 3, 1 / 3])  # Al before Cu
    mean = (dos * STORAGE_GRID.centres).sum(1) / dos.sum(1)
    assert mean == pytest.approx([(0.5 * 0.5 + 1.5) / 1.5, (0.5 * 0.5 + 1.0) / 1.5])
    near_one = np.abs(STORAGE_GRID.centres - 1.0) < 1.5 * STORAGE_GRID.width
    assert dos[0, near_one].sum() == 0.0
    assert dos[1, near_one].sum() > 0.0
    assert overflow == 0.0


def test_modes_above_the_grid_and_imaginary_modes():
    crystal = Crystal(np.array([14]), np.eye(3), np.zeros((1, 3)))
    found = Modes(np.array([-5.0, -0.1, 10.0, 1000.0]), np.ones((4, 1)))
    dos, overflow = projected_dos(found, crystal, 20.0, STORAGE_GRID)
    assert found.imaginary_fraction == 0.25
    assert overflow == pytest.approx(1 / 3)
    assert dos[0, -1] * STORAGE_GRID.width == pytest.approx(1 / 3)
    assert dos[0, 0] * STORAGE_GRID.width == pytest.approx(1 / 3)  # -0.1 meV is noise at zero


@pytest.mark.parametrize("matrix", [np.diag([3, 2, 2]), np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]])], ids=str)
@pytest.mark.parametrize("mesh", ["Gamma", "shifted"])
def test_folded_host_is_the_supercell(matrix, mesh, potential, relaxed):
    q_points = q_mesh(400) if mesh == "Gamma" else q_mesh(32)
    points = [k for q in q_points for k in folded(matrix, q)]
    small = modes(potential.force_constants(relaxed), relaxed, points)
    repeated = supercell(relaxed, matrix)
    large = modes(potential.force_constants(repeated), repeated, q_points)
    assert np.allclose(np.sort(small.energy_mev), np.sort(large.energy_mev), atol=1e-6)
    edge = band_edge(small)
    first, _ = projected_dos(small, relaxed, edge, STORAGE_GRID)
    second, _ = projected_dos(large, repeated, edge, STORAGE_GRID)
    assert np.abs(first - second).max() < 1e-4 * first.max()


def test_modes_know_the_masses(potential, relaxed):
    """Heavier atoms, same springs: for one element energies scale as the root of the mass."""
    crystal = Crystal(np.array([13, 13]), relaxed.cell, relaxed.positions)
    force_constants = potential.force_constants(crystal)
    q = [np.array([0.25, 0.1, 0.3])]
    light = modes(force_constants, crystal, q)
    heavy = modes(force_constants, Crystal(np.array([79, 79]), crystal.cell, crystal.positions), q)
    assert np.allclose(heavy.energy_mev * np.sqrt(196.966569 / 26.9815385), light.energy_mev, rtol=1e-6)
    assert np.allclose(light.weight.sum(1), 1.0)


# -- rows ------------------------------------------------------------------------------------------------------


def simulation(potential, relaxed, settings=SETTINGS, name="host"):
    return HostSimulation(potential, host(layered("AlCu"), name), relaxed, settings)


def test_control_cells_come_out_as_undoped(potential, relaxed, monkeypatch):
    monkeypatch.setattr(rows, "draw_mix", lambda *_, **__: DopantMix((), (), 0.0, ()))
    settings = dataclasses.replace(SETTINGS, smallest=30, largest=60, stiffness_share=1.0)
    for number in range(3):
        pristine, *stiffened = simulation(potential, relaxed, settings).row(number).samples
        assert pristine.dopants == ()
        assert distance(pristine.host_dos, pristine.doped_dos) < 0.02
        for row in stiffened:  # host and doped cell live in the same world
            assert row.variant.startswith("stiffness-")
            assert distance(row.host_dos, row.doped_dos) < 0.02
            assert distance(row.host_dos, pristine.host_dos) > 0.1
    monkeypatch.undo()
    doped = simulation(potential, relaxed, settings).row(_number_with_dopants(relaxed)).samples[0]
    assert distance(doped.host_dos, doped.doped_dos) > 0.1  # the measure sees a dopant


def _number_with_dopants(relaxed):
    for number in range(100):
        mix = draw_mix(relaxed, row_generator(SETTINGS.seed, f"host/{number:04d}"))
        if mix.total > 0.15:
            return number
    raise AssertionError("no such mix")


def test_rows_are_a_function_of_the_seed(potential, relaxed):
    first, again = (simulation(potential, relaxed).row(1).samples[0] for _ in range(2))
    other = simulation(potential, relaxed).row(2).samples[0]
    assert same(first, again)
    assert not same(first, dataclasses.replace(other, row_id=first.row_id))
    reseeded = simulation(potential, relaxed, dataclasses.replace(SETTINGS, seed=4)).row(1).samples[0]
    assert (first.dopants, first.sites) != (reseeded.dopants, reseeded.sites)


def test_a_row_can_be_made_again_from_what_is_stored(potential, relaxed, tmp_path):
    made = simulation(potential, relaxed).row(_number_with_dopants(relaxed)).samples
    write_shard(tmp_path / "shard.parquet", made, {})
    (stored,) = read_shard(tmp_path / "shard.parquet")
    again = regenerate(stored, potential, SETTINGS)
    assert distance(again.doped_dos, made[0].doped_dos) < 1e-6  # before it was rounded
    assert differences(stored, again) == differences(stored, again, exact=True) == []
    edge = dataclasses.replace(again, edge_mev=again.edge_mev * (1 + 1e-12))
    assert differences(stored, edge) == []
    assert differences(stored, edge, exact=True) == ["edge_mev"]
    moved = np.roll(stored.doped_dos, 1, axis=1) - stored.doped_dos
    share = FORGIVEN / (0.5 * np.abs(moved).sum() * STORAGE_GRID.width)
    nudged = dataclasses.replace(again, doped_dos=again.doped_dos + 0.1 * share * moved)
    assert differences(stored, nudged) == []
    assert differences(stored, nudged, exact=True) == ["doped_dos"]
    beyond = dataclasses.replace(again, doped_dos=again.doped_dos + 3.0 * share * moved)
    assert differences(stored, beyond) == ["doped_dos"]
    other = dataclasses.replace(
        again, sites=tuple(site + 1 for site in again.sites), doped_dos=again.doped_dos[:, ::-1]
    )
    assert differences(stored, other) == ["doped_dos", "sites"]


def test_random_rows_of_a_data_set_come_out_again(tmp_path, capsys):
    path = write_morse_nep(tmp_path / "morse.txt")
    write_hosts(tmp_path / "hosts.json", 2)
    out = tmp_path / "out"
    words = ["simulate", "--hosts", tmp_path / "hosts.json", "--potential", path, "--out", out, "--atoms", "13-19"]
    assert cli.main([str(word) for word in (*words, "--spectra-per-host", 2)]) in (0, None)
    command = ["data", "verify", str(out), "--potential", str(path), "--rows", "3", "--json"]
    capsys.readouterr()
    assert cli.main(command) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3
    assert all(result == {"identical": True, "differs": []} for result in found.values())
    other = write_morse_nep(tmp_path / "other.txt", ("Al", "Cu", "Ti"))
    with pytest.raises(SystemExit):
        cli.main(["data", "verify", str(out), "--potential", str(other)])
    assert "Name the potential of the data set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*command, "--preconditioner", str(path)])
    assert "was made with no preconditioner" in capsys.readouterr().err


def test_a_stiffened_row_can_be_made_again(potential, relaxed, tmp_path):
    settings = dataclasses.replace(SETTINGS, stiffness_share=1.0)
    made = simulation(potential, relaxed, settings).row(1).samples
    write_shard(tmp_path / "shard.parquet", made, {})
    stored = list(read_shard(tmp_path / "shard.parquet"))
    assert len(stored) > 1
    assert differences(stored[-1], regenerate(stored[-1], potential, settings)) == []
    with pytest.raises(SimulationError, match="cannot be made again"):
        regenerate(stored[-1], potential, SETTINGS)


def test_large_cells_hold_the_dilute_dopants(potential, relaxed):
    settings = dataclasses.replace(
        SETTINGS, smallest=20, largest=30, lowest=0.03, dilute_smallest=60, dilute_largest=80, dilute_share=0.5,
        dilute_lowest=0.01,
    )  # fmt: skip
    sizes = set()
    for number in range(8):
        row = simulation(potential, relaxed, settings).row(number).samples[0]
        sizes.add(row.atoms)
        assert row.atoms >= 60 or min(row.concentrations.values(), default=1.0) >= 0.03
    assert len(sizes) == 2  # a host has one supercell of either kind
    assert 20 <= min(sizes) <= 30
    assert 60 <= max(sizes) <= 80


def test_stiffened_rows_are_for_training_only(potential, relaxed):
    settings = dataclasses.replace(SETTINGS, stiffness_share=1.0)
    found = {}
    for name in ("AlCu", "TiCu", "TiAl", "CuNi", "AlNi", "TiNi", "BeCu", "BeAl"):
        crystal = Crystal(host(layered(name)).crystal.numbers, relaxed.cell, relaxed.positions)
        crystal = relax(potential, crystal, cell="full", tolerance=1e-3).crystal
        found[name] = HostSimulation(potential, host(layered(name), name), crystal, settings).row(1).samples
    by_split = {split_of(rows_of[0].chemical_system): rows_of for rows_of in found.values()}
    assert len(by_split) > 1
    for split, rows_of in by_split.items():
        assert (len(rows_of) > 1) == (split == "train")
    train = by_split["train"]
    assert [row.row_id for row in train[1:]] == [f"{train[0].row_id}/stiffness-{k}" for k in range(1, len(train))]
    assert all(row.sites == train[0].sites for row in train)


@pytest.mark.parametrize("matrix", [np.diag([3, 2, 2]), np.array([[2, 1, 0], [0, 2, 1], [1, 0, 2]])], ids=str)
def test_stiffness_is_the_same_for_small_and_large_cells(matrix, potential, relaxed):
    """Scaled springs of the small cell, of an atom to its own images too, fold onto those of the supercell."""
    world = StiffnessFactors(1, "any")
    repeated = supercell(relaxed, matrix)
    q_points = [*q_mesh(100), np.zeros(3)]
    large = scaled(potential.force_constants(repeated), world.of(repeated.numbers))
    small = scaled(potential.force_constants(relaxed), world.of(relaxed.numbers))
    points = [k for q in q_points for k in folded(matrix, q)]
    here, there = modes(large, repeated, q_points), modes(small, relaxed, points)
    assert np.allclose(np.sort(here.energy_mev), np.sort(there.energy_mev), atol=1e-6)
    plain = modes(potential.force_constants(relaxed), relaxed, points)
    assert np.abs(np.sort(plain.energy_mev) - np.sort(there.energy_mev)).max() > 0.5


def test_stiffness_leaves_translations_free(potential, relaxed):
    repeated = supercell(relaxed, np.diag([2, 2, 2]))
    factors = StiffnessFactors(7, "any").of(repeated.numbers)
    assert np.array_equal(factors, factors.T)
    assert factors.min() > 0.3
    hessian = scaled(potential.force_constants(repeated), factors).hessian().numpy()
    assert np.abs(hessian - hessian.T).max() < 1e-12
    assert np.abs(hessian.reshape(len(hessian), -1, 3).sum(1)).max() < 1e-10
    uniform = scaled(potential.force_constants(repeated), np.full_like(factors, 1.3)).hessian().numpy()
    exact = potential.force_constants(repeated).hessian().numpy().reshape(len(repeated), 3, len(repeated), 3)
    springs = (exact + exact.transpose(0, 3, 2, 1)).reshape(hessian.shape) / 2  # the symmetric part of each block
    rest = exact.reshape(hessian.shape) - springs
    between = np.kron(1 - np.eye(len(repeated)), np.ones((3, 3))) > 0
    assert np.abs(uniform - (1.3 * springs + rest))[between].max() < 1e-9


def test_factors_are_log_normal():
    factors = np.log([StiffnessFactors(0, str(k)).factor(14, 32) for k in range(2000)])
    assert abs(factors.mean()) < 0.02
    assert factors.std() == pytest.approx(SPREAD, rel=0.05)
    assert StiffnessFactors(0, "a").factor(14, 32) == StiffnessFactors(0, "a").factor(32, 14)


def same(first, second):
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
    )


def test_what_a_row_says(potential, relaxed):
    row = simulation(potential, relaxed, name="here").row(1).samples[0]
    assert row.row_id == "here/0001"
    assert (row.formula, row.chemical_system, row.host_elements) == ("AlCu", "Al-Cu", ("Al", "Cu"))
    assert row.host_dos.sum() * STORAGE_GRID.width == pytest.approx(1.0, abs=1e-5)
    shares = np.array(row.doped_counts) / row.atoms
    assert np.allclose(row.doped_dos.sum(1) * STORAGE_GRID.width, shares, atol=1e-5)
    assert row.host_dos[:, STORAGE_GRID.centres > 1.01].sum() == 0.0  # energies are relative to the host's edge
    assert row.atoms == 2 * round(np.linalg.det(np.reshape(row.supercell, (3, 3))))
    assert [row.site_dopants.count(symbol) for symbol in row.dopants] == list(row.dopant_counts)
    assert (row.seed, row.potential, row.potential_sha256) == (3, "morse", potential.sha256)
    assert row.max_force_ev_per_angstrom < SETTINGS.tolerance
    assert np.allclose(np.reshape(row.host_cell, (3, 3)), relaxed.cell)


def test_shards_round_trip(potential, tmp_path):
    far = layered("TiAl")
    far.set_cell(far.cell * 1.2, scale_atoms=True)
    hosts = (host(layered("AlCu"), "good"), host(far, "far"))
    shard = Shard(tmp_path / "shard-00000.parquet", hosts)
    counts = make_shard(Tools(potential, None), shard, SETTINGS)
    expected = [row.samples[0] for row in simulate_host(Tools(potential, None), hosts[0], SETTINGS)[0]]
    found = list(read_shard(shard.path))
    assert counts["rows"] == len(found) == len(expected) == SETTINGS.spectra_per_host
    for ours, theirs in zip(found, expected, strict=True):
        assert distance(ours.doped_dos, theirs.doped_dos) < 0.005
        plain = {"host_dos": ours.host_dos, "doped_dos": ours.doped_dos}
        plain |= {name: getattr(ours, name) for name in ("imaginary_fraction", "overflow", "max_force_ev_per_angstrom")}
        assert same(dataclasses.replace(theirs, **plain), ours)  # but for the quantised and the 32-bit columns
        assert ours.max_force_ev_per_angstrom == pytest.approx(theirs.max_force_ev_per_angstrom)
    extra = read_extra(shard.path)
    assert extra["hosts"] == ["good", "far"]
    assert [reject["id"] for reject in extra["rejects"]] == ["far"]
    assert extra["settings"] == SETTINGS.to_dict()


def test_an_unknown_dopant_is_a_reject_and_no_stop(tmp_path):
    """A potential that knows the host alone refuses every doped cell, by name."""
    narrow = load_potential(write_morse_nep(tmp_path / "narrow.txt", ("Al", "Cu")))
    found, rejects = simulate_host(Tools(narrow, None), host(layered("AlCu")), SETTINGS)
    assert len(found) + len(rejects) == SETTINGS.spectra_per_host
    assert all("does not know the element with Z" in reject["reason"] for reject in rejects)
    assert rejects
    assert all(row.samples[0].dopants == () for row in found)


def test_atom_range():
    assert atom_range("160") == (128, 192)
    assert atom_range("100-250") == (100, 250)


# -- hosts -----------------------------------------------------------------------------------------------------


def test_hosts_from_a_json_list(tmp_path):
    path = write_hosts(tmp_path / "hosts.json", 3)
    packed = tmp_path / "hosts.json.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    for source in (path, packed):
        found = read_hosts(source)
        assert [h.id for h in found] == ["layered-AlCu", "layered-NiAl", "layered-MgZn"]
        assert [h.chemical_system for h in found] == ["Al-Cu", "Al-Ni", "Mg-Zn"]
        assert np.allclose(found[0].crystal.frac, layered("AlCu").get_scaled_positions(), atol=1e-9)


def test_hosts_from_structure_files(tmp_path):
    gallium = bulk("GaAs", "zincblende", a=5.65)
    ase.io.write(tmp_path / "GaAs.vasp", gallium, format="vasp")
    ase.io.write(tmp_path / "Ni3Al.cif", cubic("Al", "Ni"))
    ase.io.write(tmp_path / "POSCAR", layered("MgZn"), format="vasp")
    (single,) = read_hosts(tmp_path / "GaAs.vasp")
    assert (single.id, single.formula, len(single.crystal)) == ("GaAs", "GaAs", 2)
    assert single.crystal.volume == pytest.approx(gallium.get_volume())
    found = read_hosts(tmp_path)
    assert [h.id for h in found] == ["GaAs", "Ni3Al", "POSCAR"]
    assert [h.chemical_system for h in found] == ["As-Ga", "Al-Ni", "Mg-Zn"]


def test_hosts_from_a_trajectory(tmp_path):
    ase.io.write(tmp_path / "two.extxyz", [layered("AlCu"), layered("MgZn")])
    assert [h.id for h in read_hosts(tmp_path / "two.extxyz")] == ["two-0", "two-1"]


def test_a_json_file_of_ase_is_a_structure_file(tmp_path):
    ase.io.write(tmp_path / "db.json", layered("AlCu"))
    assert [h.formula for h in read_hosts(tmp_path / "db.json")] == ["AlCu"]
    (tmp_path / "list.json").write_text(json.dumps([entry(layered("AlCu"), "mp-1")]))
    assert [h.id for h in read_hosts(tmp_path / "list.json")] == ["mp-1"]
