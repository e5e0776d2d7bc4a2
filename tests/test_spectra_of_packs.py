"""Compositions as users write them, occupations that are drawn for them, and spectra that follow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from defectnet import HostPack
from defectnet.config import STORAGE_GRID
from defectnet.crystal import spectra
from defectnet.crystal.compositions import (
    KT_EV,
    Component,
    Composition,
    draw_occupation,
    parse_composition,
    rounded_counts,
)
from defectnet.crystal.pack import FailedSubstitution
from defectnet.crystal.spectra import pack_spectrum
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.elements import INDEX, NEUTRON_WEIGHT
from defectnet.errors import FormulaError, SimulationError
from packs import gallium_arsenide
from spectra import band_edge

WIDTH = STORAGE_GRID.width


@pytest.fixture(scope="module")
def pack() -> HostPack:
    return gallium_arsenide()


def superposition(pack: HostPack, repeats: int = 2, q_points=((0.0, 0.0, 0.0),)) -> Superposition:
    return Superposition(pack.host, pack.substitutions, np.eye(3, dtype=np.int64) * repeats, q_points)


# -- compositions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Al@Ga=0.03,P=0.01", " Al@Ga = 0.03 ; P@As=0.01,", {"Al@Ga": 0.03, "P": 0.01}])
def test_a_composition_is_read(pack, text):
    found = parse_composition(pack, text)
    assert found.components == (Component("Al", "Ga", 0.03), Component("P", "As", 0.01))
    assert found.remarks == ()
    assert str(found) == "Al@Ga=0.03,P@As=0.01"
    assert parse_composition(pack, found) == found


def test_the_plausible_site_is_taken_and_named(pack):
    found = parse_composition(pack, "Al=0.03")
    assert found.components == (Component("Al", "Ga", 0.03),)
    assert found.remarks == ("Al is taken to replace Ga, the more plausible of Ga and As",)


def test_a_site_that_is_not_clear_must_be_said(pack, monkeypatch):
    monkeypatch.setattr(
        "defectnet.crystal.compositions.likeness_on_site", lambda _, site, __: 0.5 + 0.3 * (site == "Ga")
    )
    with pytest.raises(SimulationError, match=r"Al may replace Ga or As\. Say which, such as Al@Ga"):
        parse_composition(pack, "Al=0.03")


WRONG = {
    "": "composition is empty",
    "Al": "'Al' cannot be read",
    "Al=": "'Al=' cannot be read",
    "Al@Ga=3%": r"percent\). Write 0.03",
    "Al@Ga=3": r"more than all atoms\). Write 0.03 if it is 3 at.%",
    "Al@Ga=0.3": "0.3 in total.*Use 0.25 of all atoms at most",
    "Al@Ga=-0.1": "Use a number from 0 to 0.25",
    "Al@Ga=nan": "Use a number from 0 to 0.25",
    "Al@Ga=much": "Use a number from 0 to 0.25",
    "As=0.01": "As is in GaAs already",
    "Al@In=0.01": "replaces In, which is not in GaAs. Sites are Ga, As",
    "P@Ga=0.01": "has no P@Ga. Known are Al@Ga, Al@As, P@As; `defectnet host make`",
    "In=0.01": "has no In. Known are",
    "Al=0.01,Al@Ga=0.02": "names Al@Ga 2 times",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_composition_is_one_error(pack, text):
    with pytest.raises(SimulationError, match=WRONG[text]) as caught:
        parse_composition(pack, text)
    assert "\n" not in str(caught.value)


def test_an_unknown_element_is_one_error(pack):
    with pytest.raises(FormulaError, match=r"'al' is not an element of the vocabulary\. Did you mean Al"):
        parse_composition(pack, "al=0.03")


def test_why_a_substitution_failed_is_said(pack):
    failed = replace(pack, failures=(FailedSubstitution("In", 0, "does not come to rest"),))
    with pytest.raises(SimulationError, match=r"no In \(could not be made: does not come to rest\)"):
        parse_composition(failed, "In=0.01")


def test_there_must_be_sites(pack, monkeypatch):
    monkeypatch.setattr("defectnet.crystal.compositions.HIGHEST", 1.0)
    with pytest.raises(SimulationError, match=r"puts 0.6 of all atoms on sites of Ga \(these sites are 0.5"):
        parse_composition(pack, "Al@Ga=0.6")


# -- occupations -------------------------------------------------------------------------------------------------------


def test_numbers_of_atoms_are_right_on_average():
    wished = Composition((Component("Al", "Ga", 0.013), Component("In", "Ga", 0.021), Component("P", "As", 0.004)))
    offsets = (np.arange(1000) + 0.5) / 1000
    counts = np.array([rounded_counts(wished, 54, offset) for offset in offsets])
    np.testing.assert_allclose(counts.mean(0) / 54, [0.013, 0.021, 0.004], atol=2e-5)
    assert np.ptp(counts[:, :2].sum(1)) <= 1


def test_dopants_go_to_their_sites_and_never_to_one_twice(pack):
    cell = superposition(pack, 3)
    wished = parse_composition(pack, "Al@Ga=0.1,Al@As=0.05,P=0.1")
    found = draw_occupation(cell, wished, np.random.default_rng(0))
    assert len(set(found.sites)) == len(found.sites)
    numbers = cell.cell.crystal.numbers[list(found.sites)].tolist()
    assert set(zip(found.dopants, numbers, strict=True)) == {("Al", 31), ("Al", 33), ("P", 33)}
    assert len(found.sites) == pytest.approx(0.25 * 54, abs=2)


def test_inequivalent_sites_are_taken_with_their_boltzmann_weights(pack):
    """A host in which the two sites would be of one element: energies 0 and kT ln 3 apart."""
    low = replace(pack.substitutions["Al", 0], energy=0.0)
    high = replace(pack.substitutions["Al", 1], energy=KT_EV * np.log(3.0))
    cell = superposition(pack, 4)
    cell.substitutions = {("Al", 0): low, ("Al", 1): high}
    cell.cell.crystal.numbers[:] = 31
    wished = Composition((Component("Al", "Ga", 0.01),))
    rng = np.random.default_rng(0)
    sites = [site for _ in range(400) for site in draw_occupation(cell, wished, rng).sites]
    assert len(sites) == pytest.approx(400 * 1.28, rel=0.1)
    assert np.mean(cell.cell.basis[sites] == 0) == pytest.approx(0.75, abs=0.06)
    crowded = Composition((Component("Al", "Ga", 0.75),))
    found = draw_occupation(cell, crowded, rng)
    assert len(set(found.sites)) == 96


def test_clustered_dopants_have_more_dopants_beside_them(pack):
    cell = superposition(pack, 4)
    wished = parse_composition(pack, "Al@Ga=0.05")

    def neighbours(clustered: bool) -> float:
        rng = np.random.default_rng(1)
        found = [draw_occupation(cell, wished, rng, clustered=clustered) for _ in range(10)]
        atoms = cell.cell.crystal.frac
        vectors = [atoms[list(one.sites)][:, None] - atoms[list(one.sites)] for one in found]
        lengths = [np.linalg.norm((v - np.round(v)) @ cell.cell.crystal.cell, axis=2) for v in vectors]
        return float(np.mean([(d < 4.2).sum(1).mean() for d in lengths])) - 1.0

    assert neighbours(True) > 2.0 * neighbours(False)


# -- force constants ---------------------------------------------------------------------------------------------------


def test_sparse_force_constants_are_the_dense_ones(pack):
    q_points = np.array([[0.0, 0.0, 0.0], [0.25, 0.25, -0.25], [0.1, 0.2, 0.3]])
    cell = superposition(pack, 2, q_points)
    wished = parse_composition(pack, "Al@Ga=0.13,P=0.07")
    found = draw_occupation(cell, wished, np.random.default_rng(3), offset=0.5)
    assert len(found.sites) >= 3
    dense = cell.hessians(found, np.random.default_rng(4))
    sparse = cell.force_constants(found, np.random.default_rng(4))
    np.testing.assert_allclose(sparse.at(q_points).numpy(), dense, atol=1e-10)
    pristine = cell.force_constants(Occupation((), ())).at(q_points).numpy()
    assert np.abs(pristine - dense).max() > 1.0


# -- spectra -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(pack) -> spectra.DopedSpectrum:
    return pack.spectrum("Al@Ga=0.08,P=0.01", cells=4, atoms=64, fwhm_mev=1.0)


def test_a_spectrum_holds_what_was_asked_for(pack, found):
    assert (found.host, found.formula, found.potential) == ("GaAs", "GaAs", "defectnet-nep")
    assert (found.atoms, len(found.cells), found.method, found.left_out) == (64, 4, "diagonalised", 0)
    assert found.concentrations == pytest.approx({"Al": 0.08, "P": 0.01}, abs=1 / 64 / 4)
    assert list(found.concentrations) == ["Al", "P"]
    assert found.elements == ("Al", "P", "Ga", "As")
    assert found.host_elements == ("Ga", "As")
    areas = found.doped_dos.sum(1) * WIDTH
    assert areas.sum() == pytest.approx(1.0)
    assert areas[:2] == pytest.approx(list(found.concentrations.values()))
    assert found.host_dos.sum(1) * WIDTH == pytest.approx([0.5, 0.5])
    assert found.edge_mev == pytest.approx(pack.host.band_edge_mev)
    assert found.sampling_error == 0.0
    # Aluminium is lighter than what it replaces, and in GaAs has a local mode above the band.
    share = found.doped_dos[0, STORAGE_GRID.centres > 1.05].sum() / found.doped_dos[0].sum()
    assert share > 0.3
    assert found.host_dos[:, STORAGE_GRID.centres > 1.1].sum() < 1e-3 * found.host_dos.sum()


def test_a_spectrum_comes_again_by_its_seed(pack, found):
    again = pack_spectrum(pack, {"Al@Ga": 0.08, "P": 0.01}, cells=4, atoms=64, fwhm_mev=1.0)
    assert np.array_equal(again.cells, found.cells)
    other = pack_spectrum(pack, "Al@Ga=0.08,P=0.01", cells=4, atoms=64, fwhm_mev=1.0, seed=1)
    assert not np.array_equal(other.cells, found.cells)


def test_without_dopants_the_host_comes_out(pack):
    found = pack.spectrum({}, cells=2, atoms=16)
    np.testing.assert_allclose(found.doped_dos, found.host_dos, atol=1e-4 / WIDTH)
    assert found.concentrations == {}
    assert np.abs(found.standard_error).max() < 1e-12


def test_spectra_of_a_kind(found):
    host, doped = found.host_spectrum(), found.doped_spectrum("neutron-weighted")
    assert (host.kind, doped.kind, host.unit) == ("total", "neutron-weighted", "meV")
    for one in (host, doped, found.doped_spectrum("projected", "Al")):
        assert one.area == pytest.approx(1.0, abs=0.01)
    expected = NEUTRON_WEIGHT[[INDEX[symbol] for symbol in found.elements]] @ found.doped_dos
    np.testing.assert_allclose(doped.dos, expected / expected.sum() / WIDTH / found.edge_mev, rtol=1e-10, atol=1e-15)
    assert band_edge(host.energy, host.dos) == pytest.approx(found.edge_mev, rel=0.06)
    error = found.doped_error()
    assert error.shape == (600,)
    assert 0.0 < error.max() < 0.3 * found.doped_spectrum().dos.max()
    total = found.cells.sum(1).std(0, ddof=1) / 2.0 / found.edge_mev
    np.testing.assert_allclose(error, total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kind", "element"), [("total", "Al"), ("projected", None), ("projected", "In"), ("x", None)])
def test_a_wrong_kind_is_one_error(found, kind, element):
    with pytest.raises(SimulationError, match=r"kind is|is not in the crystal"):
        found.doped_spectrum(kind, element)


def test_a_large_cell_gives_what_a_diagonalised_one_does(pack, monkeypatch):
    """The same cells both ways, at Gamma; the statistical error is the one that is stated."""
    settings = {"cells": 2, "atoms": 128, "fwhm_mev": 2.0, "seed": 2}
    exact = pack.spectrum("Al@Ga=0.1", q_points=[np.zeros(3)], **settings)
    monkeypatch.setattr(spectra, "DIAGONALISED", 100)
    found = pack.spectrum("Al@Ga=0.1", vectors=64, **settings)
    assert (exact.method, found.method) == ("diagonalised", "lanczos")
    assert found.concentrations == exact.concentrations
    np.testing.assert_allclose(found.host_dos, exact.host_dos, atol=1e-9)
    missed = np.abs(found.cells.sum(1) - exact.cells.sum(1)).sum(1).mean() * WIDTH
    assert 0.4 * found.sampling_error < missed < 2.0 * found.sampling_error
    assert 0.0 < found.sampling_error < 0.1
    with pytest.raises(SimulationError, match="large cells are taken at Gamma"):
        pack.spectrum("Al@Ga=0.1", q_points=[np.zeros(3)], **settings)


def test_unstable_cells_are_left_out_and_counted(pack):
    """A substitution that pushes its neighbours away, so that cells that hold it are no minimum."""
    one = pack.substitutions["P", 1]
    broken = replace(one, change=one.change - 60.0 * np.abs(one.change).max() * _spring(len(one.basis)))
    odd = HostPack(pack.host, {**pack.substitutions, ("P", 1): broken})
    with pytest.raises(SimulationError, match=r"4 of 4 cells are unstable .* of their modes are imaginary"):
        odd.spectrum("P=0.1", cells=4, atoms=64)
    some = odd.spectrum("P=0.01", cells=4, atoms=64)
    assert some.left_out == 2
    assert len(some.cells) == 2
    assert "2 of 4 cells are unstable and left out" in some.remarks


def _spring(atoms: int) -> np.ndarray:
    """A spring between two atoms, along x."""
    pull = np.zeros(3 * atoms)
    pull[0], pull[3] = 1.0, -1.0
    return np.outer(pull, pull)


@pytest.mark.parametrize(
    "setting", [{"cells": 1}, {"atoms": 0}, {"atoms": 10**6}, {"seed": -1}, {"fwhm_mev": 0.0}, {"fwhm_mev": np.nan}]
)
def test_a_setting_out_of_range_is_one_error(pack, setting):
    with pytest.raises(SimulationError, match=f"{next(iter(setting))} is"):
        pack.spectrum("Al@Ga=0.05", **setting)
