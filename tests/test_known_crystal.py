"""Known-crystal inference: what a pack's own spectra, and others, are taken for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from defectnet.benchmark.known_crystal import KnownCrystalEstimator, likeliest_candidates
from defectnet.cli import main
from defectnet.config import MODEL_GRID, STORAGE_GRID
from defectnet.crystal.compositions import Composition, draw_occupation
from defectnet.crystal.hosts import host_from_atoms
from defectnet.crystal.make import MakeSettings
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.spectra import host_dos
from defectnet.crystal.structures import read_structure
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import DefectNetError, SimulationError, SpectrumError
from defectnet.inference import comparison, known_crystal
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.answer_text import NAMED, rows, sentence, verdict
from defectnet.inference.comparison import Standard, check_formula
from defectnet.inference.emulator import CellSource, Emulator, draw_concentrations, spread_wave_vectors
from defectnet.inference.instrument import InstrumentMap, fit_instrument, gaussian_kernel, widest
from defectnet.inference.known_crystal import KnownCrystal, known_dopants
from defectnet.inference.likelihood import Likelihood
from defectnet.inference.packs import check_fits, find_pack_for
from defectnet.measure.encode import encode_pair
from defectnet.plotting import plot_corner
from defectnet.spectrum import Spectrum
from packs import bundled, gallium_arsenide

CANDIDATES = ["Al", "In", "P", "Zn"]
ATOMS = 2 * 100
"""Wave vectors times atoms of the cells that play the sample, all sampled alike; with two dopants half more."""


@pytest.fixture(scope="module")
def pack():
    return bundled("GaAs")


CELLS = known_crystal.CELLS


@pytest.fixture(scope="module", autouse=True)
def _few_cells():
    """A third of the cells: what most tests here ask is far from what they blur."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_crystal, "CELLS", (12, 24))
        patch.setattr(known_crystal, "NEAR_CELLS", 20)
        yield


@pytest.fixture(scope="module")
def crystal(pack):
    return KnownCrystal(pack, CANDIDATES)


@cache
def simulated(**composition):
    atoms = 100 if len(composition) < 2 else 150
    return bundled("GaAs").spectrum(composition, cells=4, atoms=atoms, fwhm_mev=3.0, seed=3)


def spectra(composition):
    found = simulated(**composition)
    return found.host_spectrum(), found.doped_spectrum(), found.concentrations


@pytest.mark.parametrize("composition", [{"Al": 0.05}, {"In": 0.03}, {"P": 0.06, "Zn": 0.03}])
def test_what_the_pack_itself_predicts_is_found(pack, crystal, composition):
    host, doped, true = spectra(composition)
    atoms = ATOMS if len(composition) < 2 else 1.5 * ATOMS
    answer = crystal.identify(host, doped, same_potential=True, sample_atoms=atoms)
    assert set(answer.present) == set(composition)
    p = answer.posterior
    for symbol, amount in true.items():
        i = p.elements.index(symbol)
        assert p.if_present[i] == pytest.approx(amount, rel=0.15)
        assert p.low[i] - 0.004 < amount < p.high[i] + 0.004
    assert answer.verdict == "explains"
    assert "explains the change" in verdict(answer)
    assert all(symbol in sentence(answer) for symbol in composition)


def test_the_host_itself_holds_nothing(pack, crystal):
    host, _, _ = spectra({"Al": 0.05})
    rng = np.random.default_rng(0)
    noisy = [
        Spectrum(host.energy, np.maximum(host.dos + rng.normal(0.0, 0.01 * host.dos.max(), len(host.dos)), 0.0), "meV")
        for _ in range(2)
    ]
    answer = crystal.identify(noisy[0], noisy[1])
    assert answer.present == ()
    assert answer.posterior.other < 0.5
    assert "No dopant found" in sentence(answer)
    assert (answer.posterior.upper < 0.03).all()


def test_with_a_list_that_lacks_the_dopant_something_else_is_there(pack):
    host, doped, _ = spectra({"Al": 0.08})
    answer = KnownCrystal(pack, ["Zn"], unlisted=0).identify(host, doped, same_potential=True, sample_atoms=ATOMS)
    assert answer.posterior.other > 0.9
    assert answer.verdict != "explains"
    assert answer.resembles == {}
    assert "something" in sentence(answer)


def test_what_the_pack_holds_beside_the_list_is_told_as_what_else_there_may_be(pack):
    host, doped, true = spectra({"Al": 0.08})
    answer = KnownCrystal(pack, ["Zn", "In"]).identify(host, doped, same_potential=True, sample_atoms=ATOMS)
    assert answer.present == ()
    assert answer.posterior.other > 0.9
    assert next(iter(answer.resembles)) == "Al"
    assert answer.resembles["Al"] > 0.8
    assert answer.verdict == "explains"  # with what is no candidate
    assert "of what else the pack holds, Al fits best" in sentence(answer)
    assert "with Al, which is no candidate" in verdict(answer)
    assert rows(answer)[-1][0] == "something else (Al?)"
    assert "something else (Al?): " in answer.plot().axes[-1].texts[-1].get_text()
    assert dict(zip(answer.posterior.dopants, answer.posterior.best, strict=True))["Al@Ga"] == pytest.approx(
        true["Al"], rel=0.15
    )
    again = KnownCrystalAnswer.from_dict(json.loads(json.dumps(answer.to_dict())))
    assert again.resembles == answer.resembles
    assert sentence(again) == sentence(answer)


def test_what_is_no_candidate_and_unstable_is_left_out(pack, monkeypatch):
    monkeypatch.setattr(CellSource, "draw", unstable_with("Al@Ga"))
    crystal = KnownCrystal(pack, ["Zn"])
    assert crystal.unlisted
    assert "Al@Ga" not in crystal.unlisted
    assert crystal.cells.dopants == ("Zn@Ga", *crystal.unlisted) == crystal.source.dopants
    assert crystal.cells.concentration.shape[1] == len(crystal.source.room) == 1 + len(crystal.unlisted)
    assert crystal.cells.concentration.any(axis=1).all()


def unstable_with(name):
    """`CellSource.draw` as if cells with a dopant were unstable."""
    draw = CellSource.draw

    def drawn(self, wished, *rest):
        return draw(self, wished[wished[:, self.dopants.index(name)] == 0.0], *rest)

    return drawn


def test_two_instruments_are_no_dopant(crystal):
    host, _, _ = spectra({"Al": 0.05})
    answer = crystal.identify(host, replace(host, energy=1.006 * np.asarray(host.energy)))
    assert answer.changed
    assert answer.present == ()
    assert "two measurements may differ by" in verdict(answer)


def test_what_no_candidate_explains_is_not_claimed(pack):
    """A new peak far from what any candidate does: none is named, and limits leave room for as much as is changed."""
    host, doped, true = spectra({"In": 0.03})
    moved = np.interp(host.energy - 4.0, host.energy, host.dos)
    answer = KnownCrystal(pack, ["Al", "In"]).identify(host, replace(doped, dos=0.8 * doped.dos + 0.2 * moved))
    assert answer.verdict == "does not explain"
    p = replace(answer.posterior, probability=np.array([NAMED, 1.0]))  # whatever probabilities say
    answer = replace(answer, posterior=p)
    assert answer.present == ()
    assert answer.to_dict()["present"] == []
    assert "Cannot tell" in sentence(answer)
    i = p.elements.index("In")
    assert answer.upper_limit[i] >= max(true["In"], p.upper[i])
    assert f"{100 * answer.upper_limit[i]:.2g} at.% In" in sentence(answer)
    assert answer.to_dict()["elements"][0]["upper_limit"] == answer.upper_limit[p.probability.argmax()]
    again = KnownCrystalAnswer.from_dict(answer.to_dict())
    assert again.to_dict()["elements"] == answer.to_dict()["elements"]
    assert sentence(again) == sentence(answer)


def test_errors_weigh(pack):
    crystal = KnownCrystal(pack, CANDIDATES, unlisted=0)  # with few cells those would widen the sharper one
    host, doped, _ = spectra({"In": 0.03})
    sharp = crystal.identify(host, doped, same_potential=True, sample_atoms=ATOMS).posterior
    wide = crystal.identify(
        host,
        doped,
        doped_error=np.full(len(doped.dos), 0.05 * doped.dos.max()),
        same_potential=True,
        sample_atoms=ATOMS,
    ).posterior
    i = sharp.elements.index("In")
    assert wide.high[i] - wide.low[i] > 1.5 * (sharp.high[i] - sharp.low[i])


def test_plain_values_and_draws_hold_the_answer(pack, crystal, tmp_path):
    host, doped, _ = spectra({"Al": 0.05})
    answer = crystal.identify(host, doped, same_potential=True, sample_atoms=ATOMS)
    p, found = answer.posterior, answer.to_dict()
    np.testing.assert_allclose((p.samples > 0.0).mean(0), p.probability, atol=0.03)
    np.testing.assert_allclose(p.samples.mean(0), p.mean, atol=0.003)
    figure = plot_corner(answer, tmp_path / "corner.png")
    assert (tmp_path / "corner.png").stat().st_size > 0
    assert figure.axes[0].get_title(loc="left").split()[0] == "Al"
    assert found["present"] == ["Al"]
    assert found["elements"][0]["element"] == "Al"
    assert sum(one["probability"] for one in found["explanations"]) <= 1.0 + 1e-9


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_map_of_energies_and_the_resolution_are_found(pack):
    edge = pack.host.band_edge_mev
    elements, dos = host_dos(pack, 0.01 * edge)
    bins = np.linspace(0.0, 1.5, 120)
    true = InstrumentMap(bins, 0.06, log_scale=(0.04,) * 6)
    found = fit_instrument(InstrumentMap(bins, 0.0), elements, dos, true.seen(elements, dos))
    live = found.scale()[(bins[1:] > 0.4) & (bins[1:] < 1.0)]
    assert np.abs(live / np.exp(0.04) - 1.0).max() < 0.01
    assert found.fwhm == pytest.approx(0.06, abs=0.01)


def test_errors_of_a_spectrum_are_its_own_unless_others_are_given(pack, crystal):
    host, doped, _ = spectra({"In": 0.03})
    sigma = 0.01 * doped.dos.max() * np.linspace(1.0, 2.0, len(doped.dos))
    own, larger = (crystal.identify(host, replace(doped, error=by * sigma)) for by in (1.0, 2.0))
    for spectrum in (doped, replace(doped, error=5.0 * sigma)):
        np.testing.assert_allclose(crystal.identify(host, spectrum, doped_error=sigma).noise, own.noise)
    assert (larger.noise > own.noise).all()
    instrument, unit = InstrumentMap(np.linspace(0.0, 1.5, 60), 0.0), pack.host.band_edge_mev
    once, twice = (comparison.binned(replace(doped, error=by * sigma), instrument, unit)[1] for by in (1.0, 2.0))
    np.testing.assert_allclose(twice, 4.0 * once)


def test_noise_of_neighbouring_bins_is_correlated(pack):
    """They share points, so that means over several bins scatter more than if they did not."""
    host, _, _ = spectra({"In": 0.03})
    unit, rng = pack.host.band_edge_mev, np.random.default_rng(0)
    instrument = InstrumentMap(np.arange(0.0, 1.2, 1.5 * np.diff(host.energy_mev[:2])[0] / unit), 0.0)
    noisy = replace(host, error=np.full(len(host.dos), 0.02 * host.dos.max()))
    seen, drawn = comparison.binned(noisy, instrument, unit)[1], []
    for _ in range(800):
        shaken = noisy.dos + noisy.error * rng.standard_normal(len(noisy.dos))
        drawn.append(comparison.binned(replace(noisy, dos=shaken), instrument, unit)[0])
    live = instrument.middle < 1.0
    smooth = np.convolve(np.eye(1, live.sum(), live.sum() // 2)[0], np.ones(4) / 4.0, "same")
    told = smooth @ seen[np.ix_(live, live)] @ smooth
    assert told == pytest.approx(np.var(np.array(drawn)[:, live] @ smooth), rel=0.25)
    assert told > 1.3 * smooth**2 @ np.diag(seen)[live]


def test_bins_hold_all_of_what_lies_in_them():
    bins = np.linspace(0.0, 3.2, 65)
    operator = InstrumentMap(bins, 0.05).operator()
    assert operator.sum(0) == pytest.approx(np.ones(operator.shape[1]), abs=1e-6)


def test_the_emulator_predicts_cells_that_it_has_not_seen(pack):
    source = CellSource(pack, ("Al@Ga", "In@Ga"))
    rng = np.random.default_rng(1)
    cells, others = (source.draw(draw_concentrations(source.room, n, rng), rng) for n in (140, 30))
    instrument = InstrumentMap(np.linspace(0.0, 1.6, 81), 0.08)
    emulator = Emulator(cells, instrument)
    pristine = instrument.seen(others.elements, others.pristine)[others.source]
    change = instrument.seen(others.elements, others.doped) - pristine
    rest = change - emulator.mean(others.concentration)
    # Cells sample few wave vectors: their hosts show how they deviate from the crystal for it.
    deviation = pristine - instrument.seen(others.elements, others.host)
    left = ((rest - emulator.carried(others.concentration, deviation)) ** 2).sum(1)
    assert np.median(left / (change**2).sum(1)) < 0.1
    assert left.mean() < 0.9 * (rest**2).sum(1).mean()
    # Of a small cell all of it is expected, of a larger one a part.
    all_of_it, part = (emulator.sampled(2.0 * deviation[0], atoms) for atoms in (4.0, 1e5))
    np.testing.assert_array_equal(all_of_it, 2.0 * deviation[0])
    assert 0.0 < np.linalg.norm(part) < 0.01 * np.linalg.norm(all_of_it)
    # Its own scatter says how far single cells are off.
    expected = np.einsum("nk,kmm->n", others.concentration, emulator.scatter)
    assert 0.3 < np.mean(left / expected) < 3.0


def test_wave_vectors_fill_the_reciprocal_cell():
    found = spread_wave_vectors(24)
    assert found.shape == (24, 3)
    assert ((found >= 0.0) & (found < 1.0)).all()
    # Lattice vectors up to the third shell hardly see them bunched; of random ones they would see 24^-1/2.
    shells = np.array([n for n in product((-1, 0, 1), repeat=3) if any(n)])
    assert np.abs(np.exp(2j * np.pi * found @ shells.T).mean(0)).mean() < 0.08
    assert not np.isclose(2.0 * found, np.round(2.0 * found)).all(1).any()


def test_cells_in_single_precision_have_the_same_spectra(pack):
    one, rng = CellSource(pack, ("Al@Ga",)).superpositions[4], np.random.default_rng(0)
    double = one.at(one.q_points)
    occupation = draw_occupation(double, Composition.of(("Al@Ga",), (0.06,)), rng)
    found, exact = one.modes(occupation), double.modes(occupation)
    np.testing.assert_allclose(found.energy_mev, exact.energy_mev, atol=1e-3 * exact.energy_mev.max())
    assert one.hessians(occupation).dtype == np.complex64


def test_the_mean_and_its_derivatives_agree(crystal):
    emulator = Emulator(crystal.cells, InstrumentMap(np.linspace(0.0, 1.5, 60), 0.1))
    instrument = InstrumentMap(np.linspace(0.0, 1.5, 60), 0.1)
    host = instrument.seen(*crystal.host)
    errors = crystal.errors(emulator, instrument, 1e-4 * np.eye(59), host, True, 100.0)
    deviation = instrument.seen(crystal.cells.elements, crystal.cells.pristine[0]) - host
    likelihood = Likelihood(emulator, replace(errors, deviation=deviation), np.zeros(59))
    c = np.linspace(0.01, 0.04, len(emulator.dopants))[None]
    steps = 1e-5 * np.eye(len(emulator.dopants))
    numeric = [(likelihood.mean(c + step) - likelihood.mean(c - step))[0] / 2e-5 for step in steps]
    np.testing.assert_allclose(likelihood.jacobian(c)[0], numeric, rtol=1e-4, atol=1e-4 * np.abs(numeric).max())
    without = Likelihood(emulator, errors, np.zeros(59))
    assert np.abs(likelihood.mean(c) - without.mean(c)).max() > 1e-3 * np.abs(without.mean(c)).max()


def test_superposition_that_fails_is_no_surprise(crystal):
    """In the pack's own world it may miss much more than is expected: then amounts are less sure, too."""
    instrument = InstrumentMap(np.linspace(0.0, 1.5, 60), 0.1)
    emulator = Emulator(crystal.cells, instrument)
    errors = crystal.errors(emulator, instrument, 1e-6 * np.eye(59), instrument.seen(*crystal.host), True, 1e6)
    c = np.zeros((1, len(emulator.dopants)))
    c[0, 0] = 0.08
    size = np.sqrt(25.0 * emulator.misfit(c)[0] * emulator.squared(c)[0])
    off = np.random.default_rng(0).multivariate_normal(np.zeros(59), size**2 * errors.shape)
    likelihood = Likelihood(emulator, errors, emulator.mean(c)[0] + off)
    logs = likelihood.log_by_world(c, likelihood.factors(c))[:, 0]
    assert logs.argmax() == 3  # the largest
    own, common = likelihood.factor_deviation(c[0], logs)
    usual, _ = likelihood.factor_deviation(c[0], np.array([0.0, -1e3, -1e3, -1e3]))
    assert own[0] > 5.0 * usual[0] > 0.0
    assert common == 0.0


def test_of_many_candidates_each_is_looked_at_alone_and_the_likeliest_closer(pack, monkeypatch):
    host, doped, true = spectra({"P": 0.06, "Zn": 0.03})
    monkeypatch.setattr(known_crystal, "SCREENED", 8)
    monkeypatch.setattr(known_crystal, "CLOSER", 4)
    crystal = KnownCrystal(pack)
    assert crystal.many
    assert ((crystal.cells.concentration > 0).sum(1) == 1).all()
    answer = crystal.identify(host, doped, same_potential=True, sample_atoms=1.5 * ATOMS)
    p = answer.posterior
    assert p.dopants == crystal.dopants
    assert set(p.elements) == {name.partition("@")[0] for name in crystal.dopants}
    assert set(answer.present) == {"P", "Zn"}
    for symbol, amount in true.items():
        assert p.if_present[p.elements.index(symbol)] == pytest.approx(amount, rel=0.2)
        (name,) = [name for name, x in zip(p.dopants, p.best, strict=True) if x and name.startswith(f"{symbol}@")]
        assert p.likeliest[0].concentration[p.dopants.index(name)] == pytest.approx(amount, rel=0.25)
    # Those that were not looked at closer are told, too, and less likely than those that were.
    assert len(p.probability) == len(p.upper) == p.samples.shape[1] == len(p.elements)
    assert (np.sort(p.probability)[:-4] <= np.sort(p.probability)[-4]).all()
    assert crystal.identify(host, doped, same_potential=True, sample_atoms=1.5 * ATOMS).to_dict() == answer.to_dict()
    assert KnownCrystalAnswer.from_dict(answer.to_dict()).present == answer.present


def test_what_cells_cannot_hold_is_left_out_of_many_and_said(pack, monkeypatch):
    monkeypatch.setattr(known_crystal, "SCREENED", 3)
    draw = CellSource.draw

    def without_indium(self, wished, rng, report=None):
        cells = draw(self, wished, rng, report)
        return cells.of(~(cells.concentration[:, [name.startswith("In") for name in self.dopants]] > 0.0).any(1))

    monkeypatch.setattr(CellSource, "draw", without_indium)
    crystal = KnownCrystal(pack, CANDIDATES)
    host, doped, _ = spectra({"Al": 0.05})
    answer = crystal.identify(host, doped, same_potential=True, sample_atoms=ATOMS)
    assert "In" not in answer.posterior.elements
    assert any("In@Ga" in text for text in answer.warnings)


@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_noise_is_told_from_how_a_curve_scatters(noise):
    x = np.linspace(0.0, 1.0, 400)
    curve = np.exp(-0.5 * ((x - 0.4) / 0.02) ** 2) + 0.6 * np.exp(-0.5 * ((x - 0.7) / 0.03) ** 2) + 0.3
    noisy = curve + np.random.default_rng(1).normal(0.0, noise, 400)
    assert comparison.estimated_noise(noisy) == pytest.approx(noise, rel=0.2)
    assert comparison.estimated_noise(curve) < 1e-3


@pytest.mark.parametrize("atoms", [0.0, -5.0, float("nan")])
def test_atoms_of_a_simulated_cell_are_checked(crystal, atoms):
    host, doped, _ = spectra({"Al": 0.05})
    with pytest.raises(DefectNetError, match="atoms of the simulated cell"):
        crystal.identify(host, doped, same_potential=True, sample_atoms=atoms)


def test_a_simulated_sample_is_a_cell_unless_it_is_told(crystal):
    host, doped, _ = spectra({"Al": 0.05})
    usual, cell, endless = (
        crystal.identify(host, doped, same_potential=True, sample_atoms=atoms)
        for atoms in (None, known_crystal.SIMULATED_ATOMS, 1e6)
    )
    np.testing.assert_array_equal(usual.band, cell.band)
    assert usual.band.sum() > 1.1 * endless.band.sum()


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_a_bundled_pack_that_fits_is_taken():
    found, remarks = find_pack_for(bulk("GaAs", "zincblende", 5.7), ["Al", "In@Ga"])
    assert found.host.formula == "GaAs"
    assert "bundled" in remarks[0]


def test_what_no_pack_holds_is_computed_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFECTNET_CACHE", str(tmp_path))
    monkeypatch.setattr("defectnet.inference.packs.MakeSettings", partial(MakeSettings, atoms=16))
    for name in ("one.cif", "renamed.cif"):
        bulk("LiF", "rocksalt", 4.03).write(tmp_path / name)
    found, remarks = find_pack_for(tmp_path / "one.cif", ["Na"], potential="defectnet-nep")
    assert "Na@Li" in found.dopants
    assert str(tmp_path) in remarks[0]
    calls = []
    again, _ = find_pack_for(tmp_path / "renamed.cif", ["Na"], potential="defectnet-nep", report=calls.append)
    assert again.dopants == found.dopants
    assert not calls


@pytest.mark.parametrize(
    ("structure", "match"),
    [
        (bulk("GaAs", "zincblende", 6.2), "volume per atom"),
        (bulk("GaAs", "rocksalt", 5.4), "another structure"),
        (bulk("GaP", "zincblende", 5.45), "is of GaAs"),
    ],
)
def test_the_pack_of_another_crystal(pack, structure, match):
    with pytest.raises(DefectNetError, match=match) as error:
        check_fits(pack, read_structure(structure))
    assert error.value.fix


@pytest.mark.parametrize("formula", ["GaP", "Ga2As", "Si"])
def test_another_formula(pack, formula):
    with pytest.raises(DefectNetError, match="the formula is"):
        check_formula(formula, pack)
    check_formula("Ga2As2", pack)


@pytest.mark.parametrize(("candidates", "match"), [(["Au"], "does not hold Au"), (["Al@As"], "Al@As"), (["Xx"], "Xx")])
def test_candidates_without_a_substitution(pack, candidates, match):
    with pytest.raises(DefectNetError, match=match):
        KnownCrystal(pack, candidates)


def test_spectra_that_do_not_belong_together(pack, crystal):
    host, doped, _ = spectra({"Al": 0.05})
    short = Spectrum(doped.energy[doped.energy < 20.0], doped.dos[doped.energy < 20.0], "meV")
    with pytest.raises(DefectNetError, match="below the host's edge"):
        crystal.identify(host, short)
    other = Spectrum(doped.energy, doped.dos, "meV", kind="neutron-weighted")
    with pytest.raises(DefectNetError, match="different kinds"):
        crystal.identify(host, other)
    with pytest.raises(DefectNetError, match="errors have shape"):
        crystal.identify(host, doped, doped_error=np.ones(5))


def test_the_spectrum_of_another_crystal_is_noticed(crystal, monkeypatch):
    monkeypatch.setattr(known_crystal, "ROUNDS", 0)
    host, far = (bundled(name).spectrum({}, cells=2, atoms=64, fwhm_mev=3.0).host_spectrum() for name in ("Fe", "MgO"))
    host = host.resampled(np.arange(host.energy_mev[0], host.energy_mev[-1], 1.5))  # five starts, in few bins
    answer = crystal.identify(host, host)
    assert any("not that of GaAs" in text for text in answer.warnings)
    with pytest.raises(DefectNetError, match=r"the host's edge is .* GaAs as computed has 30"):
        crystal.identify(far, far)


def test_the_benchmark_asks_packs_and_networks_the_same(tmp_path, monkeypatch, capsys):
    settings = {"seed": 1, "spectra_per_host": 1, "smallest": 12, "largest": 20, "plausible": 8, "lowest": 0.03}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    bulk("GaAs", "zincblende", 5.65).write(tmp_path / "GaAs.cif")
    data, out = tmp_path / "data", tmp_path / "results"
    simulated = ["--hosts", str(tmp_path / "GaAs.cif"), "--potential", "defectnet-nep", "--out", str(data)]
    main(["simulate", *simulated, "--settings", str(tmp_path / "settings.json")])
    monkeypatch.setattr(known_crystal, "CELLS", (3, 20))
    monkeypatch.setattr(known_crystal, "ROUNDS", 0)
    gallium_arsenide().save(tmp_path / "pack")
    asked = ["--track", "known-crystal", "--condition", "clean", "--data", str(data), "--bootstrap", "0"]
    models = ["--model", f"known-crystal:{tmp_path / 'pack'}", "--model", "defectnet-small"]
    main(["benchmark", *asked, *models, "--out", str(out)])
    capsys.readouterr()
    known, network = (json.loads((out / f"{name}.json").read_text()) for name in ("known-crystal", "defectnet-small"))
    assert known["data"] == network["data"]
    assert known["notes"]["settings"]["potentials"] == ["defectnet-nep"]
    for found in (known, network):
        assert set(found["results"]) == {"known-crystal"}
        assert found["results"]["known-crystal"]["clean"]["concentration"]["mae"] > 0.0


def test_the_likeliest_candidates_are_those_of_the_crystal():
    crystals = [bulk("GaAs", "zincblende", 5.65), bulk("MgO", "rocksalt", 4.21), bulk("CaF2", "fluorite", 5.46)]
    shares = torch.zeros(len(crystals), len(VOCABULARY))
    for row, atoms in zip(shares, crystals, strict=True):
        for symbol in atoms.symbols:
            row[INDEX[symbol]] += 1.0 / len(atoms)
    for row, atoms in zip(likeliest_candidates(shares), crystals, strict=True):
        wanted = plausible_dopants(host_from_atoms(atoms, "host").crystal, 8)
        assert {VOCABULARY[i] for i in row.nonzero()[:, 0]} == {name.partition("@")[0] for name in wanted}


def test_a_crystal_without_a_pack_is_one_error(pack):
    host, doped, _ = spectra({"Al": 0.05})
    batch = encode_pair(host, doped, "MgO", grid=MODEL_GRID, candidates=["Al"])
    with pytest.raises(DefectNetError, match="no host pack is of the crystal"):
        KnownCrystalEstimator("GaAs").answer(batch)


def weaker(amount, factor=0.4):
    """A pair of another world: all that Al changes is smaller by a factor."""
    host, doped, true = spectra({"Al": amount})
    there = host.dos + factor * (doped.resampled(host.energy).dos - host.dos)
    return host, Spectrum(host.energy, there, "meV"), true["Al"]


def test_standards_teach_what_the_potential_gets_wrong(pack, monkeypatch):
    monkeypatch.setattr(known_crystal, "CELLS", CELLS)  # to a tenth
    crystal = KnownCrystal(pack, ["Al", "Zn"])
    standards = [Standard(host, doped, {"Al": true}) for host, doped, true in (weaker(x) for x in (0.03, 0.05, 0.10))]
    host, doped, true = weaker(0.07)
    before, after = (crystal.identify(host, doped, standards=known).posterior for known in ((), standards))
    at = before.elements.index("Al")
    assert before.if_present[at] < 0.75 * true
    assert after.if_present[at] == pytest.approx(true, rel=0.1)
    widths = [float((one.high[at] - one.low[at]) / one.if_present[at]) for one in (before, after)]
    assert widths[1] < 0.6 * widths[0]
    assert after.low[at] < true < after.high[at]


def test_standards_teach_an_error_that_is_not_in_proportion(pack, monkeypatch):
    monkeypatch.setattr(known_crystal, "CELLS", CELLS)
    crystal = KnownCrystal(pack, ["Al"])
    host, *_ = asked = weaker(0.11, 0.3 + 4.0 * 0.11)
    taught = [weaker(x, 0.3 + 4.0 * x) for x in (0.03, 0.06, 0.09)]
    standards = [Standard(host, doped, {"Al": true}) for host, doped, true in taught]
    found = crystal.identify(host, asked[1], standards=standards).posterior
    assert found.if_present[0] == pytest.approx(asked[2], rel=0.08)  # a quarter too much if it were in proportion
    assert found.low[0] < asked[2] < found.high[0]


def test_standards_tell_how_much_of_a_response_is_wrong_for_each_dopant_alone(pack, monkeypatch):
    monkeypatch.setattr(known_crystal, "CELLS", CELLS)
    crystal, seen = KnownCrystal(pack, ["Al", "Zn"]), []
    monkeypatch.setattr(known_crystal, "Likelihood", lambda *given: seen.append(Likelihood(*given)) or seen[-1])
    right = [spectra({"Zn": x}) for x in (0.03, 0.06)]
    standards = [Standard(host, doped, true) for host, doped, true in right]
    strange = [spectra({"Sb": x}) for x in (0.03, 0.06)]  # as if Al did what Sb is computed to do
    standards += [Standard(host, doped, {"Al": true["Sb"]}) for host, doped, true in strange]
    crystal.identify(*right[0][:2], standards=standards)
    aluminium, zinc = seen[-1].learnt.share
    assert aluminium > 2.0 * zinc


def test_a_standard_that_holds_no_candidate_is_one_error(pack, crystal):
    host, doped, true = weaker(0.05)
    with pytest.raises(DefectNetError, match=r"standard .* holds Sb"):
        crystal.identify(host, doped, standards=[Standard(host, doped, {"Sb": true})])
    with pytest.raises(SimulationError, match="the formula is InP, the crystal GaAs"):
        crystal.identify(host, doped, standards=[Standard(host, doped, {"Al": true}, "InP")])
    scaled = replace(host, energy=0.85 * host.energy)
    with pytest.raises(SpectrumError, match="its host is not that of the pair"):
        crystal.identify(host, doped, standards=[Standard(scaled, replace(doped, energy=0.85 * doped.energy), {})])
    pair = [replace(one, kind="neutron-weighted") for one in (host, doped)]
    with pytest.raises(DefectNetError, match=r"another kind of DOS .* \(neutron-weighted and total\)"):
        crystal.identify(host, doped, standards=[Standard(*pair, {"Al": true})])


def test_a_spectrum_says_how_blurred_it_can_be(pack):
    rng = np.random.default_rng(0)
    dos = host_dos(pack, 0.01 * pack.host.band_edge_mev)
    for fwhm in (0.03, 0.06, 0.12):
        instrument = InstrumentMap(np.linspace(0.0, 1.5, 126), fwhm)
        seen = instrument.seen(*dos)
        assert fwhm < widest(instrument.middle, seen, 0.0) < 2.0 * fwhm
        sigma = 0.01 * seen.max()
        noisy = seen + rng.normal(0.0, sigma, len(seen))
        assert fwhm < widest(instrument.middle, noisy, len(seen) * sigma**2) < 2.5 * fwhm


def test_a_host_that_is_badly_described_is_not_taken_for_a_blurred_one(pack):
    """Silicon's bands where GaAs is computed: the fit may not hide them in a resolution that the spectrum has not."""
    other = host_dos(bundled("Si"), 0.4)
    bins = np.linspace(0.0, 1.5, 126)
    measured = InstrumentMap(bins, 0.03).seen(*other)
    found = fit_instrument(InstrumentMap(bins, 0.0), *host_dos(pack, 0.3), measured)
    assert found.fwhm < 2.0 * 0.03 < known_crystal.COARSE


def test_in_its_own_world_an_axis_is_off_by_a_factor_alone(pack):
    dos = host_dos(pack, 0.01 * pack.host.band_edge_mev)
    bins = np.linspace(0.0, 1.5, 126)
    rough = InstrumentMap(bins, 0.04, log_scale=(0.03, 0.02, 0.04, 0.03, 0.02, 0.03)).seen(*dos)
    same, free = (fit_instrument(InstrumentMap(bins, 0.0), *dos, rough, same_potential=x) for x in (True, False))
    assert np.ptp(same.log_scale) < 0.004 < 0.01 < np.ptp(free.log_scale)
    assert 0.02 < np.mean(same.log_scale) < 0.04


@pytest.mark.parametrize("name", ["CdTe", "MgB2", "AlN"])
def test_sharp_peaks_of_another_potential_do_not_bend_the_map(name):
    """Peaks that another potential places 2 % to either side cannot be brought together one by one.

    What is compared is ten times as coarse: there the hosts have to agree.
    """
    elements, dos = host_dos(bundled(name), 0.004 * bundled(name).host.band_edge_mev)
    x = STORAGE_GRID.centres
    moved = np.stack([np.interp(x * (1.02 + 0.025 * np.sin(2.0 * np.pi * x / 0.15)), x, row) for row in dos])
    bins = np.linspace(0.0, 1.5, 126)
    measured = InstrumentMap(bins, 0.02).seen(elements, moved)
    blurred = gaussian_kernel(0.5 * (bins[1:] + bins[:-1]), 0.098) @ measured
    left = []
    for coarse in (0.0, 0.1):
        found = fit_instrument(InstrumentMap(bins, 0.0), elements, dos, measured, coarse=coarse)
        seen = InstrumentMap(bins, 0.1, log_scale=found.log_scale).seen(elements, dos)
        left.append(float(((seen - blurred) ** 2).sum() / (blurred**2).sum()))
    assert left[1] < 0.8 * left[0]
    assert left[1] < 0.02


def test_a_unit_that_cannot_be_is_named(pack, crystal):
    host, doped, _ = spectra({"Al": 0.05})
    wrong = [replace(one.to("cm-1"), unit="meV") for one in (host, doped)]
    with pytest.raises(DefectNetError, match=r"read as meV; GaAs as computed has .* In cm-1 it would fit"):
        crystal.identify(*wrong)


def test_limits_say_how_much_may_hide(crystal):
    """Also of what is very likely not there: zero is no limit."""
    host, _, _ = spectra({"Al": 0.05})
    limits = crystal.identify(host, host).upper_limit
    assert (limits > 1e-3).all()
    assert (limits < 0.05).all()


@pytest.mark.parametrize(
    ("dopants", "message"),
    [
        (["Al"], "its dopants are"),
        ({"Al": np.nan}, "the content of Al is nan"),
        ({"Al": 6.0}, "the content of Al is 6.0"),
        ({"Al": -0.06}, "the content of Al is -0.06"),
        ({"Al": "6"}, "the content of Al is '6'"),
        ({"Al": 0.3, "In": 0.15}, "holds 45% dopants"),
    ],
)
def test_a_standard_without_a_content(dopants, message):
    host, doped, _ = spectra({"In": 0.03})
    with pytest.raises(SimulationError, match=message):
        Standard(host, doped, dopants)


def test_a_standard_of_files():
    examples = Path(__file__).parents[1] / "examples"
    one = Standard(examples / "host.csv", str(examples / "doped.csv"), {"Mg": 0.03})
    assert (one.host.kind, one.doped.unit) == ("neutron-weighted", "meV")


def test_an_undoped_standard_teaches_nothing(crystal):
    host, doped, _ = spectra({"In": 0.03})
    alone, beside = (crystal.identify(host, doped, standards=some) for some in ((), [Standard(host, host, {})]))
    np.testing.assert_array_equal(alone.posterior.probability, beside.posterior.probability)
    assert beside.pooled == alone.pooled


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("Ga", "Ga is in GaAs already", "Leave it out"),
        ("Al@Zz", "Al@Zz names no site of GaAs", "Al@Ga"),
        ("Al@", "Al@ names no site", "Al@Ga"),
        ("Ru", "does not hold Ru", "--structure FILE --dopants Ru --out FOLDER"),
    ],
)
def test_candidates_that_a_pack_cannot_have(pack, name, message, fix):
    with pytest.raises(SimulationError, match=message) as error:
        known_dopants(pack, [name])
    assert fix in error.value.fix
