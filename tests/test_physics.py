"""The physics suite: its measures on curves of known shape, and its parts on small crystals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_masses, atomic_numbers
from calorine.calculators import CPUNEP

from crystals import cubic, host, layered
from defectnet.data.splits import split_of
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import find_pairs
from defectnet.potentials.phonons import MEV_PER_ROOT, band_edge
from defectnet.potentials.potential import load_potential
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.supercells import supercell
from make_potential import write_morse_nep
from physics_suite import alloys, cells, heldout, library, local_modes, stability, suite, summary
from physics_suite.cells import Failed
from physics_suite.curves import Curve, coarse, from_modes, from_table, histogram, shape_distance
from physics_suite.suite import Context, run

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "benchmarks" / "physics"
SYMBOLS = ["Al", "Cu", "V", "Pt", "B", "Ti", "Mg", "Zn"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_morse_nep(tmp_path_factory.mktemp("nep") / "morse.txt", SYMBOLS)


@pytest.fixture(scope="module")
def potential(path):
    return load_potential(path)


# -- curves ------------------------------------------------------------------------------------------------------------


def test_histogram_and_resolution_keep_area_and_mean():
    energy = np.random.default_rng(0).uniform(10.0, 60.0, 500)
    curve = histogram(np.append(energy, [-5.0, -0.1]))  # an imaginary mode, and a translation within noise
    assert curve.dos.sum() == pytest.approx(1.0)
    assert curve.mean_mev == pytest.approx(energy.sum() / 501, abs=0.001)
    smooth = curve.smoothed(2.0)
    assert smooth.dos.sum() == pytest.approx(1.0)
    assert smooth.mean_mev == pytest.approx(curve.mean_mev, abs=0.01)
    assert sum(coarse(curve)) == pytest.approx(1.0, abs=1e-3)


def test_shape_distance_of_lines():
    first = histogram([30.0])
    assert shape_distance(first, first) == 0.0
    assert shape_distance(first, histogram([50.0])) == pytest.approx(1.0, abs=1e-6)
    # Two unit Gaussians two standard deviations apart: erf(1 / sqrt 2).
    assert shape_distance(first, histogram([32.0])) == pytest.approx(0.6827, abs=0.003)
    assert shape_distance(first, histogram([31.0])) < shape_distance(first, histogram([31.5]))


def test_peaks_between_bins():
    curve = histogram([20.11, 45.37, 45.37]).smoothed(1.0)
    assert curve.peaks_mev() == pytest.approx([20.11, 45.37], abs=0.02)
    assert histogram([20.1, *[45.0] * 30]).smoothed(1.0).peaks_mev(height=0.1) == pytest.approx([45.0], abs=0.02)
    assert Curve(np.zeros(40)).smoothed().peaks_mev() == []


def test_table_grows_as_energy_squared_below_its_start():
    full = np.linspace(0.0, 30.0, 601)
    whole, cut = from_table(full, full**2), from_table(full[100:], full[100:] ** 2)
    assert cut.mean_mev == pytest.approx(whole.mean_mev, rel=1e-4)
    assert whole.mean_mev == pytest.approx(22.5, rel=1e-3)
    assert from_table([1.0, 2.0, 3.0], [1.0, -1.0, 1.0]).dos.min() >= 0.0


# -- crystals ----------------------------------------------------------------------------------------------------------


def test_mesh_avoids_gamma_and_takes_half():
    points = np.array(cells.mesh(np.diag([3.0, 5.0, 30.0])))
    assert len(points) == 10 * 6 * 2 / 2
    everything = np.concatenate([points, -points])
    assert len(np.unique(everything.round(9), axis=0)) == 2 * len(points)
    assert np.abs(points).max() < 0.5
    assert (np.abs(everything).max(1) > 1e-9).all()


@pytest.mark.parametrize(
    ("name", "repeats", "atoms"), [("Si", 2, 64), ("GaAs", 3, 216), ("V", 4, 128), ("MgB2", 4, 192)]
)
def test_supercells(name, repeats, atoms):
    crystal = supercell(cells.textbook(name), cells.box(name, repeats))
    assert len(crystal) == atoms
    lengths = np.linalg.norm(crystal.cell, axis=1)
    assert lengths.max() / lengths.min() < 1.2


def test_exact_and_displaced_phonons_agree(path, potential):
    start = host(layered("AlCu")).crystal
    exact = cells.pristine(potential, start)
    slow = ReferencePotential(CPUNEP(str(path)), name="CPUNEP", displacement=0.002)
    displaced = cells.pristine(cells.Preconditioned(slow, potential), start)
    assert exact.phonons.energy_mev.shape == displaced.phonons.energy_mev.shape
    first, second = from_modes(exact.phonons), from_modes(displaced.phonons)
    assert second.mean_mev == pytest.approx(first.mean_mev, rel=0.002)
    assert shape_distance(first, second) < 0.03


def test_what_a_potential_does_not_hold(potential):
    with pytest.raises(Failed, match="does not know"):
        cells.settle(potential, cells.textbook("Si"), "full")  # an element it does not know
    squeezed = host(cubic("Al", "Cu")).crystal.strained(0.8 * np.eye(3))
    with pytest.raises(Failed, match="volume"):
        cells.settle(potential, squeezed, "volume")


# -- local modes -------------------------------------------------------------------------------------------------------


def mode(mass_u, isotope, measured_cm1=500.0):
    return local_modes.LocalMode("AlCu3", "B", "B_Cu", isotope, mass_u, measured_cm1, 300.0, True, "V", "none")


@pytest.fixture(scope="module")
def boron(potential):
    """A light atom in close-packed AlCu3."""
    pure = cells.pristine(potential, host(cubic("Al", "Cu")).crystal)
    perfect = supercell(pure.crystal, 2 * np.eye(3, dtype=np.int64))
    atom = int(np.flatnonzero(perfect.numbers == atomic_numbers["Cu"])[0])
    relaxed = cells.settle(potential, cells.substitute(perfect, np.array([atom]), "B"), "fixed")
    force_constants = potential.force_constants(relaxed)
    return local_modes.Impurity(force_constants, relaxed.numbers, atom, False, band_edge(pure.phonons))


def test_local_mode_of_a_light_atom(boron):
    record = local_modes.record(boron, mode(11.009305, "11B"))
    assert record["ratio"] > 1.0
    assert record["localised"] > 0.3  # of 1/3: the place is not cubic, one of three directions
    assert record["cm1"] == pytest.approx(record["ratio"] * record["edge_cm1"], rel=1e-3)
    assert record["ratio_error"] == pytest.approx(record["ratio"] / (500 / 300) - 1.0, abs=1e-3)


def test_isotopes_differ_by_mass_alone(boron):
    light, heavy = mode(10.012937, "10B", 520.0), mode(11.009305, "11B", 500.0)
    shift = local_modes.isotope_shift(boron, light, heavy)
    # An atom that vibrates alone would change by the root of the masses; neighbours that take part lessen it.
    assert 1.0 < shift["ratio"] < shift["lone_atom_ratio"]
    assert shift["shift_cm1"] == pytest.approx(shift["light_cm1"] - shift["heavy_cm1"], abs=0.11)
    none = local_modes.isotope_shift(boron, heavy, mode(11.009305, "11B", 480.0))
    assert none["shift_cm1"] == 0.0


def test_choice_of_the_local_mode():
    energy = np.array([10.0, 50.0, 70.0, 70.2, 90.0])
    share = np.array([0.9, 0.1, 0.4, 0.5, 0.2])
    found, localised = local_modes.local_energy(energy, share, 55.0)
    assert found == pytest.approx((70.0 * 0.4 + 70.2 * 0.5) / 0.9)
    assert localised == pytest.approx(0.3)
    with pytest.raises(Failed, match="edge"):
        local_modes.local_energy(energy, share, 200.0)


def test_facts():
    modes = local_modes.read_local_modes(FACTS)
    assert sum(m.scored for m in modes) == 13
    for m in modes:
        assert m.isotope == "natural" or abs(m.mass_u - float(m.isotope.rstrip("AlBCNOPSiegM"))) < 0.05, m
        assert 200 < m.measured_cm1 < 800
        assert m.measured_ratio > 1.0
        assert m.site.split("_")[0] == m.dopant
        assert m.site.split("_")[1] in m.host
    with pytest.raises(SimulationError, match=r"local_modes\.csv cannot be read"):
        local_modes.read_csv(FACTS / "nowhere" / "local_modes.csv")


# -- alloys ------------------------------------------------------------------------------------------------------------


def springs(crystal, stiffness=8.0):
    """The Hessian of springs between neighbours on a diamond lattice, eV/angstrom^2."""
    pairs = find_pairs(crystal, alloys.BOND_ANGSTROM)
    hessian = np.zeros((len(crystal), 3, len(crystal), 3))
    for i, j, vector in zip(pairs.centre.tolist(), pairs.neighbour.tolist(), pairs.vector.numpy(), strict=True):
        block = stiffness * np.outer(vector, vector) / (vector @ vector)
        hessian[i, :, i] += block
        hessian[i, :, j] -= block
    return hessian.reshape(3 * len(crystal), -1)


def test_raman_of_an_element_is_one_line():
    crystal = cells.from_ase(bulk("Si", "diamond", a=5.43, cubic=True) * (2, 2, 2))
    energy, intensity = alloys.raman(crystal, springs(crystal))
    optic = MEV_PER_ROOT * np.sqrt(8.0 * 8.0 / 3.0 / atomic_masses[14])  # omega^2 = 8 k / 3 m
    at_line = np.abs(energy - optic) < 0.01
    assert intensity["all"][at_line].sum() == pytest.approx(intensity["all"].sum(), rel=1e-6)
    assert intensity["Ge-Ge"].sum() == intensity["Si-Ge"].sum() == 0.0


def test_raman_of_an_alloy_has_a_line_for_each_bond():
    """Masses alone make the three modes."""
    pure = cells.from_ase(bulk("Si", "diamond", a=5.5, cubic=True) * (3, 3, 3))
    crystal = cells.substitute(pure, cells.random_sites(pure, "Si", 0.5, 0), "Ge")
    assert (crystal.numbers == 32).sum() == 108
    energy, intensity = alloys.raman(crystal, springs(crystal))
    found = [alloys._highest_cm1(energy, intensity[bond]) for bond in alloys.BONDS]
    assert found == sorted(found)
    assert found[2] / found[0] == pytest.approx(np.sqrt(atomic_masses[32] / atomic_masses[14]), rel=0.1)


def test_lines_of_sige_are_the_quoted_ones():
    measured = alloys.sige_lines(FACTS, 0.5)
    assert measured == pytest.approx({"Si-Si": 487.25, "Si-Ge": 407.04, "Ge-Ge": 290.0}, abs=0.02)


def test_peaks_are_matched_once():
    assert alloys.matched([56.0, 91.0, 110.0], [54.0, 78.0, 89.0, 97.0]) == [56.0, None, 91.0, 110.0]
    assert alloys.matched([], [54.0]) == [None]
    assert alloys.matched([80.0, 78.5, 60.0], [54.0, 78.0]) == [60.0, 78.5]
    assert alloys.matched([80.0], [54.0, 110.0]) == [None, None]  # too far from either


def test_heavy_atoms_lower_the_mean_by_mass_alone(potential, monkeypatch):
    monkeypatch.setitem(cells.LATTICES, "V", ("fcc", (3.9,)))  # which the potential of the tests holds
    pure = cells.pristine(potential, cells.textbook("V"))
    record = alloys.vanadium_platinum(potential, pure, 0.0625, 2)
    assert record["x"] == pytest.approx(0.0625)
    # Roughly, the energies of those sites fall by the root of the masses.
    heavier = 1.0 - np.sqrt(atomic_masses[23] / atomic_masses[78])
    assert record["mean_shift_by_mass_alone"] == pytest.approx(-0.0625 * heavier, rel=0.5)
    assert record["stiffens"] == (record["mean_shift"] > 0)
    assert record["imaginary_fraction"] < 0.01
    assert len(record["dos"]) > 10


# -- NCrystal's library ------------------------------------------------------------------------------------------------


def test_library():
    found, skipped = library.read_library(FACTS)
    names = {reference.file for reference in found}
    assert len(found) >= 50
    assert {"Si_sg227", "MgO_sg225_Periclase", "Al2O3_sg167_Corundum"} <= names
    assert skipped["Al_sg225.ncmat"].startswith("a metal")
    assert skipped["MgD2_sg136_MagnesiumDeuteride.ncmat"] == "hydrogen"
    assert skipped["CeO2_sg225_CeriumOxide.ncmat"] == "Ce is outside the vocabulary"
    silicon = next(reference for reference in found if reference.file == "Si_sg227")
    assert len(silicon.crystal) == 2
    assert silicon.curve.energy_mev[silicon.curve.dos > 0].max() == pytest.approx(61.8, abs=0.5)
    for reference in found:
        assert reference.curve.dos.sum() == pytest.approx(1.0)
        assert 5 < reference.curve.mean_mev < 130, reference.file
        assert find_pairs(reference.crystal, 5.0).distance.min() > 1.0, reference.file


def test_library_needs_ncrystal(monkeypatch):
    monkeypatch.setitem(sys.modules, "NCrystal", None)
    with pytest.raises(SimulationError, match=r"defectnet\[physics\]"):
        library.read_library(FACTS)


# -- the teacher -------------------------------------------------------------------------------------------------------


@pytest.fixture
def starts():
    """One pristine crystal and one doped cell."""
    crystal = host(layered("AlCu")).crystal
    doped = supercell(crystal, np.diag([3, 2, 2]))
    return [
        heldout.Start("AlCu", "pristine", crystal),
        heldout.Start("AlCu/doped", "doped", cells.substitute(doped, np.array([3, 17]), "Ti")),
    ]


def test_a_potential_is_its_own_teacher(potential, starts, tmp_path):
    file = tmp_path / "teacher.npz"
    first = list(heldout.teach(potential, starts, file, most=1))
    assert [item.start.key for item in first] == ["AlCu"]
    rest = list(heldout.teach(potential, starts, file))
    assert [item.start.key for item in rest] == ["AlCu/doped"]
    assert list(heldout.teach(potential, starts, file)) == []
    name, taught = heldout.read_taught(file, potential.sha256)
    assert name == "morse"
    for item in taught:
        record = heldout.compare(potential, item)
        assert record["shape_distance"] < 0.01
        assert abs(record["mean_error"]) < 0.001
    results = run(Context(potential, FACTS, file), ["g"], tmp_path / "out.json")
    assert results["parts"]["g"]["summary"]["doped"]["shape_distance_median"] < 0.01
    hosts = run(Context(potential, FACTS, file), ["h"], tmp_path / "out.json")["parts"]["h"]
    assert list(hosts["items"]) == ["AlCu"]  # pristine crystals alone
    assert hosts["summary"]["unstable_share"] == hosts["summary"]["teacher_unstable_share"] == 0.0
    with pytest.raises(SimulationError, match="of another potential"):
        heldout.read_taught(file, "0" * 64)


def test_a_crystal_that_the_teacher_does_not_hold_is_noted(potential, starts, tmp_path):
    unknown = heldout.Start("Si", "pristine", cells.textbook("Si"))
    found = list(heldout.teach(potential, [unknown, starts[0]], tmp_path / "teacher.npz"))
    assert [bool(item.failed) for item in found] == [True, False]
    context = Context(potential, FACTS, tmp_path / "teacher.npz")
    assert list(suite.against_teacher(context)) == ["AlCu"]
    assert "Si" in context.skipped["g"]
    summary = run(context, ["h"], tmp_path / "out.json")["parts"]["h"]["summary"]
    assert summary == {"hosts": 2, "failed": 1, "unstable_share": 0.5, "teacher_unstable_share": 0.5}


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_curves_of_the_teacher(content, tmp_path):
    file = tmp_path / "teacher.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SimulationError, match=r"missing or damaged.*physics_teacher\.py"):
        heldout.read_taught(file)


def test_choice_is_of_held_out_systems():
    pairs = [
        "AlCu",
        "NiAl",
        "MgZn",
        "TiAl",
        "AgAu",
        "PdCu",
        "FePt",
        "GaAs",
        "SiGe",
        "NaK",
        "CaSr",
        "ZrNb",
        "CdTe",
        "MoW",
    ]
    hosts = [host(layered(pair), f"layered-{pair}") for pair in pairs]
    chosen = heldout.choose(hosts)
    held = {h.id for h in hosts if split_of(h.chemical_system) == "test"}
    assert chosen
    assert {start.key.split("/")[0] for start in chosen} <= held
    again = heldout.choose(hosts[::-1])
    assert [start.key for start in again] == [start.key for start in chosen]
    assert all(np.array_equal(a.crystal.numbers, b.crystal.numbers) for a, b in zip(chosen, again, strict=True))


# -- relaxations -------------------------------------------------------------------------------------------------------


def test_doped_cells_are_of_held_out_hosts(potential):
    hosts = [host(layered(pair), f"layered-{pair}") for pair in ("SiGe", "GaAs", "AlCu", "MgZn", "TiAl")]
    held = {h.id for h in hosts if split_of(h.chemical_system) == "test"}
    chosen = stability.choose_cells(hosts)
    assert {start.key for start in chosen} == held
    assert [start.key for start in stability.choose_cells(hosts, 1)] == [chosen[0].key]
    for start, again in zip(chosen, stability.choose_cells(hosts[::-1]), strict=True):
        assert np.array_equal(start.crystal.numbers, again.crystal.numbers)
        assert stability.ATOMS[0] <= len(start.crystal) <= stability.ATOMS[2]
        foreign = ~np.isin(start.crystal.numbers, [atomic_numbers[s] for s in ("Si", "Ge", "Ga", "As")])
        assert 0 < foreign.mean() <= stability.HIGHEST


def test_relaxation_of_a_doped_cell(potential, starts):
    record = stability.relaxes(potential, starts[1])
    assert record["atoms"] == len(starts[1].crystal)
    assert not record["another_crystal"]
    squeezed = heldout.Start("x", "doped", starts[1].crystal.strained(0.9 * np.eye(3)))
    assert stability.relaxes(potential, squeezed)["another_crystal"]
    with pytest.raises(Failed, match="does not know"):
        stability.relaxes(potential, heldout.Start("Si", "doped", cells.textbook("Si")))
    items = {"a": record, "b": {"failed": "explodes"}, "c": {**record, "another_crystal": True}}
    assert summary.relaxations(items) == {
        "cells": 3,
        "relaxed_share": 0.6667,
        "exploded": 1,
        "another_crystal_share": 0.5,
        "evaluations_median": record["evaluations"],
    }
