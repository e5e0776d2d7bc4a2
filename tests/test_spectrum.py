from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectnet.config import MODEL_GRID, STORAGE_GRID
from defectnet.errors import FormulaError, SpectrumError
from defectnet.measure.curves import rebin
from defectnet.measure.edge import band_edges
from defectnet.measure.encode import candidate_mask, encode_pair, stack, symbols
from defectnet.spectrum import KINDS, UNITS, Spectrum, parse_unit
from spectra import band_edge, dos_of, grid, spectrum

FEW = settings(max_examples=30, deadline=None)
EDGES = st.floats(8.0, 170.0)
SEEDS = st.integers(0, 2**32 - 1)


def relative(energy, dos, edge, relative_grid):
    return rebin(energy, dos, np.array(edge), relative_grid)


def random_spectrum(seed: int, edge: float = 36.0) -> Spectrum:
    """Random positive DOS on a random, uneven grid that reaches twice the edge."""
    rng = np.random.default_rng(seed)
    inside = np.sort(rng.uniform(0.0, 2.0 * edge, rng.integers(60, 400)))
    energy = np.unique(np.concatenate([[0.0], inside, [2.0 * edge]]))
    return Spectrum(energy, dos_of(energy, edge) * rng.uniform(0.8, 1.2, len(energy)), "meV")


@FEW
@given(SEEDS, st.sampled_from(sorted(UNITS)))
def test_conversion_keeps_area_and_comes_back(seed, unit):
    before = random_spectrum(seed)
    there = before.to(unit)
    assert there.area == pytest.approx(before.area, rel=1e-12)
    np.testing.assert_allclose(there.energy_mev, before.energy_mev, rtol=1e-12)
    back = there.to("meV")
    np.testing.assert_allclose(back.dos, before.dos, rtol=1e-12)


def test_units_agree_with_known_frequencies():
    # Raman lines of silicon and germanium: 520.2 and 300.7 cm-1 are 15.59 and 9.015 THz.
    assert 520.2 * UNITS["cm-1"] == pytest.approx(64.50, abs=0.005)
    assert 520.2 * UNITS["cm-1"] / UNITS["THz"] == pytest.approx(15.595, abs=0.001)
    assert 300.7 * UNITS["cm-1"] / UNITS["THz"] == pytest.approx(9.015, abs=0.001)


@pytest.mark.parametrize("text", ["1/cm", "cm^-1", "cm⁻¹", "CM-1", "1 / centimeter", "cm**-1", " cm-1 "])
def test_spellings_of_wavenumbers(text):
    assert parse_unit(text) == "cm-1"


@FEW
@given(SEEDS, st.integers(16, 900))
def test_resampling_keeps_area(seed, points):
    before = random_spectrum(seed)
    after = before.resampled(np.linspace(0.0, before.energy[-1] * 1.1, points))
    assert after.area == pytest.approx(before.area, rel=1e-9)
    assert (after.dos >= 0).all()


def test_resampling_refuses_to_cut_the_spectrum():
    with pytest.raises(SpectrumError, match=r"lies outside the new energies"):
        spectrum().resampled(np.linspace(0.0, 30.0, 100))


@FEW
@given(SEEDS, st.floats(0.0, 12.0))
def test_broadening_keeps_area(seed, fwhm):
    before = random_spectrum(seed)
    after = before.broadened(fwhm)
    assert after.area == pytest.approx(before.area, rel=1e-9)
    assert (after.dos >= 0).all()


def test_broadening_gives_the_stated_width():
    energy = np.linspace(0.0, 60.0, 1201)
    line = Spectrum(energy, np.exp(-0.5 * ((energy - 30.0) / 0.1) ** 2), "meV").broadened(4.0)
    half = line.energy[line.dos >= 0.5 * line.dos.max()]
    assert half[-1] - half[0] == pytest.approx(np.hypot(4.0, 0.2355), abs=0.1)


def test_broadening_lets_the_edge_smear_out_of_the_grid():
    energy = np.linspace(0.0, 40.0, 400)
    cut = Spectrum(energy, energy**2, "meV").broadened(4.0)
    assert cut.energy[-1] > 42.0
    assert cut.dos[-1] < 0.01 * cut.dos.max()


@FEW
@given(SEEDS, EDGES, st.sampled_from([MODEL_GRID, STORAGE_GRID]))
def test_relative_dos_has_unit_area(seed, edge, relative_grid):
    before = random_spectrum(seed, edge)
    density = relative(before.energy_mev, before.dos, edge, relative_grid)
    assert density.dtype == np.float32
    assert density.sum() * relative_grid.width == pytest.approx(1.0, abs=1e-5)
    assert (density >= 0).all()


@FEW
@given(SEEDS, st.floats(0.1, 10.0))
def test_relative_dos_knows_no_energy_scale(seed, scale):
    before = random_spectrum(seed)
    plain = relative(before.energy, before.dos, 36.0, MODEL_GRID)
    scaled = relative(before.energy * scale, before.dos, 36.0 * scale, MODEL_GRID)
    np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-6)


def test_relative_dos_integrates_a_linear_dos_exactly():
    energy = np.linspace(0.0, 2.56, 18)  # far coarser than the bins
    density = relative(energy, energy, 1.0, MODEL_GRID)
    np.testing.assert_allclose(density, MODEL_GRID.centres / (0.5 * 2.56**2), rtol=1e-5)


def test_relative_dos_cuts_above_its_reach():
    energy = np.linspace(0.0, 200.0, 2001)
    dos = np.exp(-0.5 * ((energy - 20) / 2) ** 2) + np.exp(-0.5 * ((energy - 150) / 2) ** 2)
    density = relative(energy, dos, 36.0, MODEL_GRID)
    assert density.sum() * MODEL_GRID.width == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(SpectrumError, match="Check the units"):
        relative(energy[1200:], dos[1200:], 36.0, MODEL_GRID)


# Of noise-free spectra, as read when the networks that come with the package were trained: (end, points, edge), meV.
NOISE_FREE = [
    (37.0, 120, 35.306366), (40.0, 300, 35.293281), (55.0, 100, 35.342286), (90.0, 361, 35.302655),
    (150.0, 90, 35.680832),
]  # fmt: skip
JAGGED = [(38.0, 95, 35.353382), (45.0, 120, 35.313777), (60.0, 120, 35.300015), (90.0, 200, 35.428945)]
"""The same of spectra with structure in every point, of few points and little room above the edge."""


def test_the_edge_of_noise_free_spectra_is_what_it_was():
    for end, points, edge in NOISE_FREE:
        energy = grid(end, points)
        assert band_edge(energy, dos_of(energy)) == pytest.approx(edge, abs=1e-6)
    rng = np.random.default_rng(0)
    for end, points, edge in JAGGED:
        energy = grid(end, points)
        assert band_edge(energy, dos_of(energy) * rng.uniform(0.5, 1.5, points)) == pytest.approx(edge, abs=1e-6)
    for seed, end, edge in ((17, 37.0, 35.368041), (164, 36.5, 35.415929), (139, 40.0, 35.339041)):
        energy = grid(end, 95)
        dos = dos_of(energy) * np.random.default_rng(seed).uniform(0.2, 1.8, 95)
        assert band_edge(energy, dos) == pytest.approx(edge, abs=1e-6)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("end", [1.05, 1.2, 1.5, 2.0, 2.4, 3.0])
@pytest.mark.parametrize("level", [0.002, 0.005, 0.01, 0.02, 0.03])
def test_band_edge_is_robust_to_constant_noise(level, end, cut):
    energy = grid(end * 36.0, 300)
    clean = dos_of(energy)
    reference = band_edge(energy, clean)
    assert reference == pytest.approx(36.0, rel=0.03)
    for seed in range(12):
        seen = clean + np.random.default_rng(seed).normal(0.0, level * clean.max(), len(energy))
        assert band_edge(energy, np.maximum(seen, 0.0) if cut else seen) == pytest.approx(reference, rel=0.025)


def test_band_edge_is_robust_to_constant_noise_where_points_are_few():
    energy = grid(108.0, 150)  # two points to a standard deviation of the smoothing
    clean = dos_of(energy)
    reference, wrong = band_edge(energy, clean), 0
    for seed in range(40):
        seen = clean + np.random.default_rng(seed).normal(0.0, 0.03 * clean.max(), len(energy))
        for curve in (seen, np.maximum(seen, 0.0)):
            wrong += abs(band_edge(energy, curve) / reference - 1.0) > 0.03
    assert wrong <= 2  # of 80


@pytest.mark.parametrize("points", [200, 500])
def test_band_edges_through_noise_are_those_of_each_alone(points):
    rng = np.random.default_rng(0)
    energy = grid(2.5, points)
    clean = np.stack([dos_of(energy, 1.0), dos_of(energy, 0.8), dos_of(energy, 0.6)])
    seen = np.maximum(clean + rng.normal(0.0, 1.0, clean.shape) * np.array([[0.0], [0.03], [0.04]]), 0.0)
    together = band_edges(energy, seen)
    assert together[0] == band_edge(energy, clean[0])
    for one, edge, true in zip(seen, together, (1.0, 0.8, 0.6), strict=True):
        assert edge == band_edge(energy, one)
        assert edge == pytest.approx(true, rel=0.03)


def test_a_dos_that_goes_on_at_the_end_is_an_error_with_noise_too():
    energy = grid(32.0, 300)  # the edge is at 36 meV
    for level in (0.0, 0.03):
        dos = np.maximum(dos_of(energy) + np.random.default_rng(1).normal(0.0, level, 300), 0.0)
        with pytest.raises(SpectrumError, match="the grid ends below the band edge"):
            band_edge(energy, dos)


@FEW
@given(EDGES, st.floats(0.0, 0.05))
def test_band_edge_moves_less_than_the_resolution(edge, width):
    energy = grid(3.0 * edge, 600)
    clean = Spectrum(energy, dos_of(energy, edge), "meV")
    seen = clean.broadened(width * edge)
    shift = band_edge(seen.energy, seen.dos) - band_edge(energy, clean.dos)
    assert -0.01 * edge <= shift <= width * edge


@FEW
@given(st.integers(90, 3000), st.floats(1.15, 4.0))
def test_band_edge_does_not_depend_on_the_grid(points, reach):
    fine = grid(90.0, 2000)
    coarse = grid(36.0 * reach, int(points * reach))
    assert band_edge(coarse, dos_of(coarse)) == pytest.approx(band_edge(fine, dos_of(fine)), rel=0.01)


def test_band_edge_skips_gaps_but_not_optic_branches():
    energy = grid(200.0, 2001)
    branch = dos_of(energy) + 0.5 * np.exp(-0.5 * ((energy - 110.0) / 1.0) ** 2)  # 4 % of the area
    assert band_edge(energy, branch) == pytest.approx(112.5, abs=1.5)
    spike = dos_of(energy) + 0.2 * np.exp(
        -0.5 * ((energy - 110.0) / 0.2) ** 2
    )  # above 5 % lies less than 0.5 % of the area
    assert band_edge(energy, spike) == pytest.approx(band_edge(energy, dos_of(energy)), rel=0.01)


def test_small_negative_values_and_energies_are_cut():
    energy = np.linspace(-2.0, 90.0, 400)
    dos = dos_of(np.abs(energy)) * (energy >= 0) - 0.01 * (energy > 60)
    dos[(energy < 0) & (energy > -0.5)] = 0.001
    mended = Spectrum(energy, dos, "meV")
    assert mended.energy[0] >= 0
    assert mended.dos.min() == 0


def test_arrays_are_copies_that_cannot_be_written():
    energy = grid()
    kept = Spectrum(energy, dos_of(energy), "meV")
    energy[0] = -5
    assert kept.energy[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        kept.dos[0] = 1.0


def test_smeared_acoustic_modes_are_no_elastic_line():
    heavy = Spectrum(grid(30.0, 300), dos_of(grid(30.0, 300), 12.0), "meV").broadened(5.0)
    assert heavy.dos[0] > 0


def test_encoding_ignores_grid_and_unit():
    host, doped = spectrum(), Spectrum(grid(), dos_of(grid(), 37.0), "meV")
    plain = encode_pair(host, doped, "GaAs", grid=MODEL_GRID, candidates=["Al", "In"])
    other = encode_pair(
        host.to("THz"), doped.resampled(grid(100.0, 1200)).to("cm-1"), "GaAs", grid=MODEL_GRID, candidates=["In", "Al"]
    )
    for one, two in zip(plain.tensors().values(), other.tensors().values(), strict=True):
        assert one.shape == two.shape
        assert np.allclose(one.numpy(), two.numpy(), atol=0.05 * float(one.max()))
    assert plain.host.shape == (1, MODEL_GRID.bins)
    assert symbols(plain.candidates[0].numpy()) == ("Al", "In")
    assert bool(plain.candidates_given[0])
    assert int(plain.kind[0]) == KINDS.index("total")


def test_blind_asks_about_all_but_the_host():
    mask = candidate_mask("GaAs", None)
    assert mask.sum() == len(mask) - 2
    assert not {"Ga", "As"} & set(symbols(mask))


def test_local_modes_above_the_host_edge_are_kept():
    energy = grid(90.0, 900)
    local = dos_of(energy) + 0.5 * np.exp(-0.5 * ((energy - 65.0) / 0.5) ** 2)
    batch = encode_pair(spectrum(), Spectrum(energy, local, "meV"), "Ge", grid=MODEL_GRID)
    position = 65.0 / float(batch.edge_mev[0])
    near = np.abs(MODEL_GRID.centres - position) < 0.06
    assert float(batch.doped[0].numpy()[near].sum()) * MODEL_GRID.width > 0.01
    assert float(batch.host[0].numpy()[near].sum()) < 1e-3


def test_a_given_edge_takes_the_place_of_the_one_that_is_read():
    read = encode_pair(spectrum(), spectrum(), "GaAs", grid=MODEL_GRID)
    edge = float(read.edge_mev[0])
    same = encode_pair(spectrum(), spectrum(), "GaAs", grid=MODEL_GRID, edge_mev=edge)
    np.testing.assert_allclose(same.host.numpy(), read.host.numpy(), atol=1e-5)
    wider = encode_pair(spectrum("THz"), spectrum("THz"), "GaAs", grid=MODEL_GRID, edge_mev=1.25 * edge)
    assert float(wider.edge_mev[0]) == pytest.approx(1.25 * edge)
    mean = MODEL_GRID.centres * MODEL_GRID.width
    assert wider.host[0].numpy() @ mean == pytest.approx(read.host[0].numpy() @ mean / 1.25, rel=1e-3)
    short = Spectrum(grid(34.0, 200), dos_of(grid(34.0, 200)), "meV")  # ends below its edge, which is known
    with pytest.raises(SpectrumError, match="the grid ends below"):
        encode_pair(short, spectrum(), "GaAs", grid=MODEL_GRID)
    assert float(encode_pair(short, spectrum(), "GaAs", grid=MODEL_GRID, edge_mev=36.0).edge_mev[0]) == 36.0


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (0.0, "given as 0.0 meV"),
        (-3.0, "positive"),
        (float("nan"), "given as nan"),
        (8.7e3, "ends at 90 meV"),
        (1.0, "90"),
    ],
)
def test_an_edge_that_cannot_be(edge, message):
    with pytest.raises(SpectrumError, match=message):
        encode_pair(spectrum(), spectrum(), "GaAs", grid=MODEL_GRID, edge_mev=edge)


def test_stacking_keeps_rows():
    one = encode_pair(spectrum(), spectrum(), "GaAs", grid=MODEL_GRID)
    two = encode_pair(spectrum(), spectrum(), "Si", grid=MODEL_GRID, candidates=["C"])
    both = stack([one, two])
    assert both.host.shape == (2, MODEL_GRID.bins)
    assert both.candidates_given.tolist() == [False, True]
    with pytest.raises(SpectrumError, match="no pairs"):
        stack([])


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], "candidates is empty"),
        ("Al", "Give a list"),
        (["Al", "Al"], "more than once"),
        (["Ga"], "is part of the host"),
        (["Xx"], "candidates: 'Xx' is not an element"),
        (["He"], "candidates: 'He' is not an element"),
    ],
)
def test_wrong_candidates(candidates, message):
    with pytest.raises(FormulaError, match=message):
        candidate_mask("GaAs", candidates)
