"""The forward model: each step on arrays, all steps together, and what training is shown."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from defectnet.config import MODEL_GRID, PROJECTED_BINS, STORAGE_GRID, Grid
from defectnet.data.module import SpectraDataModule
from defectnet.data.shards import Row, projected_pairs
from defectnet.elements import INDEX, NEUTRON_WEIGHT, VOCABULARY, composition
from defectnet.errors import ConfigError
from defectnet.measure.broadening import broaden, broadening_kernel, line_sigma
from defectnet.measure.curves import unit_area
from defectnet.measure.edge import band_edges
from defectnet.measure.effects import (
    cut_off,
    with_background,
    with_elastic,
    with_multiphonon,
    with_noise,
    with_resolution,
)
from defectnet.measure.encode import encode_pair
from defectnet.measure.forward import measure_pairs
from defectnet.measure.settings import (
    AUGMENT,
    CLEAN,
    LAB,
    MEASUREMENTS,
    NOISE_BIN,
    RAW,
    Conditions,
    Measurement,
)
from defectnet.rng import row_rng
from defectnet.spectrum import KINDS, Spectrum
from make_shards import permuted, toy_folder, toy_sample

numbers = st.integers(0, 10**6)
X = STORAGE_GRID.centres
SHARP = Measurement(fwhm_mev=(0.05, 0.05))
"""Changes nothing in a host of 200 meV: far sharper than a bin."""


def flat(pairs: int = 1, end: float = 1.0) -> np.ndarray:
    """Boxes up to the edge, as curves of pairs."""
    return np.tile(unit_area((end > X).astype(np.float32), STORAGE_GRID.width), (pairs, 2, 1))


def drawn(setting: Measurement, pairs: int, key: object = 0) -> tuple[Conditions, list[np.random.Generator]]:
    rngs = [row_rng(str(key), i) for i in range(pairs)]
    return Conditions.draw(setting, rngs), rngs


def measured(samples, setting, keys=None, **more):
    keys = range(len(samples)) if keys is None else keys
    return measure_pairs(projected_pairs([Row.of(s) for s in samples]), setting, [row_rng(k) for k in keys], **more)


def with_curves(host: dict[str, np.ndarray], doped: dict[str, np.ndarray], edge_mev: float = 200.0):
    """A row of given projected DOS."""
    return replace(
        toy_sample(0),
        host_elements=tuple(host),
        host_dos=np.stack(list(host.values())).astype(np.float32),
        doped_elements=tuple(doped),
        doped_dos=np.stack(list(doped.values())).astype(np.float32),
        edge_mev=edge_mev,
    )


def box(low: float, high: float, area: float) -> np.ndarray:
    inside = ((low <= X) & (high > X)).astype(float)
    return inside * area / (inside.sum() * STORAGE_GRID.width)


# Resolution


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(5.0, 200.0), st.floats(0.05, 20.0), st.floats(0.1, 10.0), st.integers(1, STORAGE_GRID.bins))
def test_broadening_of_many_agrees_with_the_full_kernel_and_with_one(number, edge_mev, fwhm_mev, growth, end):
    rng = np.random.default_rng(number)
    dos = rng.random((3, 2, STORAGE_GRID.bins)).astype(np.float32)
    dos[..., end:] = 0.0
    dos /= dos.sum(axis=2, keepdims=True) * STORAGE_GRID.width
    edges, widths = (x * np.array([1.0, 0.5, 2.0]) for x in (edge_mev, fwhm_mev))
    growths = np.full(3, growth)
    broad = broaden(dos, edges, widths, growths)
    assert broad.min() >= 0
    np.testing.assert_allclose(broad.sum(axis=2), dos.sum(axis=2), rtol=1e-4)
    sigma = line_sigma(widths, growths, X) / (edges[:, None] * STORAGE_GRID.width)
    bins = np.arange(STORAGE_GRID.bins, dtype=float)
    for i in range(3):
        wanted = dos[i].astype(float) @ broadening_kernel(bins, bins, np.maximum(sigma[i], 0.05)).T
        assert 0.5 * np.abs(broad[i] - wanted).sum(axis=1).max() * STORAGE_GRID.width < 1e-4
        one = slice(i, i + 1)
        assert np.array_equal(broad[i], broaden(dos[one], edges[one], widths[one], growths[one])[0])


def test_broadening_is_linear_so_that_differences_can_be_broadened():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 1, STORAGE_GRID.bins)).astype(np.float32)
    settings_ = np.array([50.0]), np.array([2.0]), np.array([1.3])
    np.testing.assert_allclose(broaden(a - b, *settings_), broaden(a, *settings_) - broaden(b, *settings_), atol=1e-5)


@pytest.mark.parametrize(("place", "fwhm_mev"), [(0.5, 2.5), (1.0, 3.0), (2.0, 4.0)])
def test_broadening_has_the_stated_width(place, fwhm_mev):
    line = np.zeros((1, 1, STORAGE_GRID.bins), dtype=np.float32)
    line[0, 0, round(place / STORAGE_GRID.width)] = 1.0
    broad = broaden(line, np.array([50.0]), np.array([2.0]), np.array([1.5]))[0, 0]
    step = STORAGE_GRID.width * 50.0
    assert broad @ X == pytest.approx(place, abs=0.004)
    assert np.sqrt(broad @ (X - broad @ X) ** 2) * 50.0 * 2.3548 == pytest.approx(fwhm_mev, rel=0.02)
    above = np.flatnonzero(broad >= broad.max() / 2)
    assert (above[-1] - above[0]) * step == pytest.approx(fwhm_mev, abs=2 * step)


def test_broadening_agrees_with_the_spectrum_class():
    energy = X * 50.0
    dos = flat() * X.astype(np.float32) ** 2
    ours = broaden(dos, np.array([50.0]), np.array([3.0]), np.ones(1))[0, 0]
    theirs = Spectrum(energy, dos[0, 0], "meV").broadened(3.0)
    assert np.abs(ours - np.interp(energy, theirs.energy, theirs.dos)).max() < 1e-3 * dos.max()


def test_a_resolution_far_below_a_bin_changes_nothing():
    dos = np.random.default_rng(0).random((1, 1, STORAGE_GRID.bins)).astype(np.float32)
    np.testing.assert_allclose(broaden(dos, np.array([200.0]), np.array([0.05]), np.ones(1)), dos, atol=1e-5)


def test_host_and_doped_sample_may_differ_in_resolution():
    line = np.zeros((3, 2, STORAGE_GRID.bins), dtype=np.float32)
    line[:, :, 120] = 1.0
    given_, _ = drawn(Measurement(fwhm_mev=(2.0, 2.0), fwhm_ratio=(1.5, 1.5)), 3)
    broad = with_resolution(line, np.full(3, 50.0), given_)
    widths = np.sqrt(broad @ (X - X[120]) ** 2)
    np.testing.assert_allclose(widths[:, 1] / widths[:, 0], 1.5, rtol=0.02)
    np.testing.assert_array_equal(broad[:, :1], with_resolution(line, np.full(3, 50.0), drawn(CLEAN_2MEV, 3)[0])[:, :1])


CLEAN_2MEV = Measurement(fwhm_mev=(2.0, 2.0))


# Noise, background, cuts


@pytest.mark.parametrize("name", ["noise", "floor"])
def test_noise_has_the_stated_size_and_keeps_the_area_on_average(name):
    dos = flat(400)
    given_, rngs = drawn(Measurement(**{name: (0.02, 0.02)}), 400)
    runs = with_noise(dos, given_, rngs)[:, 0]
    inside = X < 1.0
    merged = runs[:, inside].reshape(400, -1, 2).mean(axis=2)  # bins of NOISE_BIN
    assert pytest.approx(2 * STORAGE_GRID.width) == NOISE_BIN
    assert merged.std(axis=0).mean() / dos.max() == pytest.approx(0.02, rel=0.03)
    assert runs.sum(axis=1).mean() == pytest.approx(dos[0, 0].sum(), rel=2e-3)


def test_counting_noise_grows_with_the_root_of_the_signal_and_leaves_nothing_where_there_is_none():
    dos = flat(400) * np.where(X < 0.5, 1.0, 0.25).astype(np.float32)
    given_, rngs = drawn(Measurement(noise=(0.02, 0.02)), 400)
    runs = with_noise(dos, given_, rngs)
    spread = runs[:, 0].std(axis=0)
    assert spread[50:95].mean() / spread[105:195].mean() == pytest.approx(2.0, rel=0.05)
    assert (runs[..., X > 1.0] == 0).all()
    assert runs.min() >= 0
    loud, rngs = drawn(Measurement(noise=(0.5, 0.5)), 50)
    assert with_noise(flat(50), loud, rngs).min() == 0  # cut there


def test_constant_noise_is_everywhere_and_is_not_cut_at_zero():
    given_, rngs = drawn(Measurement(floor=(0.02, 0.02)), 200)
    runs = with_noise(flat(200), given_, rngs)[:, :, X > 1.5]
    assert runs.std() / flat().max() == pytest.approx(0.02 * np.sqrt(2.0), rel=0.02)
    assert abs(runs.mean()) < 0.05 * runs.std()  # cut at zero, the mean is 0.4 standard deviations
    assert (runs < 0).mean() == pytest.approx(0.5, abs=0.02)
    both, rngs = drawn(Measurement(noise=(0.02, 0.02), floor=(0.02, 0.02)), 200)
    runs = with_noise(flat(200), both, rngs)[:, :, X < 1.0]
    assert runs.std() / flat().max() == pytest.approx(0.04, rel=0.03)  # they add in squares


def test_noise_of_host_and_doped_sample_is_their_own():
    for setting in (Measurement(noise=(0.02, 0.02)), Measurement(floor=(0.02, 0.02))):
        given_, rngs = drawn(setting, 50)
        host, doped = np.moveaxis(with_noise(flat(50), given_, rngs)[:, :, 20:180] - flat(50)[:, :, 20:180], 1, 0)
        assert abs(np.corrcoef(host.ravel(), doped.ravel())[0, 1]) < 0.05


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(-0.05, 0.05))
def test_background_adds_its_area_and_is_smooth(number, share):
    dos = flat(3)
    shares = share * np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.5]])
    more = with_background(dos, shares, 1.0 - np.random.default_rng(number).random((3, 2, 3)))
    np.testing.assert_allclose(more.sum(axis=2) / dos.sum(axis=2), 1.0 + shares, rtol=1e-4)
    assert ((more - dos) * np.sign(share) >= -1e-6).all()
    assert np.abs(np.diff(more - dos)).max() < 0.02 * abs(share) * dos.max() + 1e-6


def test_backgrounds_have_every_shape():
    uniform = np.full((3, 2, 3), 1.0 - 1e-9)
    for i in range(3):
        uniform[i, :, i] = 0.5
    added = with_background(flat(3), np.full((3, 2), 0.05), uniform)[:, 0] - flat()[0, 0]
    constant, falling, rising = added / added.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(constant, 1.0, atol=2e-3)
    assert (np.diff(falling) < 1e-4).all()
    assert falling[0] > 2.5
    np.testing.assert_allclose(rising, X / X.mean(), atol=5e-3)


def test_what_two_phonons_leave_is_the_dos_convolved_with_itself():
    dos = np.zeros((2, 2, STORAGE_GRID.bins), dtype=np.float32)
    dos[:, :, [80, 160]] = 100.0, 50.0
    more = with_multiphonon(dos, np.array([0.0, 0.1])) - dos
    assert not more[0].any()
    np.testing.assert_allclose(more[1].sum(axis=1), 0.1 * dos[1].sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(np.flatnonzero(more[1, 0] > 1e-3), [160, 240, 320])
    np.testing.assert_allclose(more[1, 0, [160, 240, 320]] / more[1, 0, 160], [1.0, 1.0, 0.25], rtol=1e-4)
    beyond = np.zeros((1, 2, STORAGE_GRID.bins), dtype=np.float32)
    beyond[:, :, [100, 400]] = 1.0  # 2 x 400 lies beyond the grid, and does not come back at its beginning
    more = with_multiphonon(beyond, np.array([0.1])) - beyond
    assert more[0, 0, 200] / more[0, 0, 500] == pytest.approx(0.5)


def test_what_the_elastic_line_leaves_falls_from_its_width_on():
    dos = flat(2)
    more = with_elastic(dos, np.array([0.0, 0.02]), np.array([0.04, 0.04])) - dos
    assert not more[0].any()
    assert more[1, 0, X < 1.0].sum() * STORAGE_GRID.width == pytest.approx(0.02, rel=1e-3)
    assert X[more[1, 0].argmax()] == pytest.approx(0.02, abs=0.005)
    assert more[1, 0, 400] / more[1, 0, 200] == pytest.approx(X[200] / X[400], rel=0.01)


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(0.0, 0.2), st.floats(1.0, 3.0), st.floats(0.0, 0.2))
def test_cuts_keep_the_middle(number, low, high, start):
    dos = np.random.default_rng(number).random((2, 2, STORAGE_GRID.bins)).astype(np.float32)
    cut = cut_off(dos.copy(), np.array([low, 0.0]), np.array([high, 3.0]), np.array([[start] * 2, [0.0] * 2]))
    assert np.array_equal(cut[1], dos[1])
    assert (cut[0][:, (high < X) | (start > X)] == 0).all()
    kept = (max(low, start) <= X) & (high > X)
    assert np.array_equal(cut[0][:, kept], dos[0][:, kept])


def test_below_the_low_cut_off_stands_debyes_law():
    cut = cut_off(np.ones((1, 2, STORAGE_GRID.bins), np.float32), np.array([0.1]), np.array([3.0]), np.zeros(1))[0]
    np.testing.assert_allclose(cut[:, X < 0.1], np.tile((X[X < 0.1] / X[X >= 0.1][0]) ** 2, (2, 1)), rtol=1e-5)


# Together


def test_weights_of_elements():
    sample = with_curves(
        {"V": box(0.1, 0.4, 0.5), "Pb": box(0.6, 1.0, 0.5)},
        {"V": box(0.1, 0.4, 0.4), "Pb": box(0.6, 1.0, 0.5), "Li": box(1.2, 1.4, 0.1)},
    )
    low, middle = MODEL_GRID.centres < 0.5, (MODEL_GRID.centres > 0.5) & (MODEL_GRID.centres < 1.1)

    def areas(setting, key=0):
        found = measured([sample], setting, [key])
        return (
            [
                [float(curve[part].sum() * MODEL_GRID.width) for part in (low, middle)]
                for curve in (found.host[0], found.doped[0])
            ],
            KINDS[found.kind[0]],
            found.edge_mev[0],
        )

    vanadium, lead, lithium = 5.10 / 50.94, 11.118 / 207.2, 1.37 / 6.94
    told, kind, edge = areas(SHARP)
    assert kind == "total"
    assert edge == pytest.approx(200.0, rel=0.03)
    np.testing.assert_allclose(told, [[0.5, 0.5], [0.4, 0.5]], atol=2e-3)
    told, kind, _ = areas(replace(SHARP, weights=(0.0, 1.0, 0.0)))
    assert kind == "neutron-weighted"
    doped = 0.4 * vanadium + 0.5 * lead + 0.1 * lithium
    np.testing.assert_allclose(told[0][0], vanadium / (vanadium + lead), rtol=4e-3)
    np.testing.assert_allclose(told[1], [0.4 * vanadium / doped, 0.5 * lead / doped], rtol=4e-3)
    seen = set()
    for key in range(20):
        told, kind, edge = areas(replace(SHARP, weights=(0.0, 0.0, 1.0)), key)
        assert kind == "projected"
        assert told[0][0] == pytest.approx(told[1][0], abs=1e-3)  # one element, the same in both
        seen.add(round(edge / 200.0, 1))
    assert seen == {0.4, 1.0}  # where vanadium ends, and lead


def test_curves_have_unit_area_whatever_the_weights():
    pairs = projected_pairs([Row.of(toy_sample(i)) for i in range(5)])
    for weights in (np.ones(len(pairs.elements)), NEUTRON_WEIGHT[pairs.elements]):
        np.testing.assert_allclose(pairs.curves(weights).sum(axis=2) * STORAGE_GRID.width, 1.0, rtol=1e-4)


def test_what_cannot_be_projected_is_seen_as_a_whole():
    sample = with_curves({"V": box(0.1, 1.0, 1.0)}, {"Pb": box(0.1, 0.9, 1.0)})
    assert measured([sample], Measurement(weights=(0.0, 0.0, 1.0))).kind.tolist() == [KINDS.index("total")]


def test_many_pairs_are_measured_as_one_is():
    samples = [toy_sample(i) for i in range(20)]
    for setting in (CLEAN, LAB, AUGMENT, RAW):
        many = measured(samples, setting)
        for i, sample in enumerate(samples):
            one = measured([sample], setting, [i])
            for alone, together in zip(one[:4], many[:4], strict=True):
                assert np.array_equal(alone[0], together[i])


@settings(max_examples=20, deadline=None)
@given(numbers)
def test_projected_dos_add_up_to_the_spectra(number):
    # Without noise, background and cuts a spectrum is the weighted sum of what its elements have.
    setting = Measurement(weights=(0.5, 0.5, 0.0), fwhm_mev=(0.5, 4.0), fwhm_growth=(0.7, 2.0), energy_scale=0.03)
    samples = [toy_sample(number + i) for i in range(5)]
    samples.append(permuted(samples[0]))
    pairs = measured(samples, setting, [*range(5), 0], projected=True)
    assert pairs.projected.shape == (6, 2, len(VOCABULARY), PROJECTED_BINS)
    assert pairs.projected.min() >= 0
    width = MODEL_GRID.reach / PROJECTED_BINS
    for i, sample in enumerate(samples):
        for side, (elements, dos, whole) in enumerate(
            (
                (sample.host_elements, sample.host_dos, pairs.host[i]),
                (sample.doped_elements, sample.doped_dos, pairs.doped[i]),
            )
        ):
            parts = pairs.projected[i, side]
            held = [INDEX[symbol] for symbol in elements]
            assert not parts[np.setdiff1d(np.arange(len(VOCABULARY)), held)].any()
            inside = parts[held].sum(axis=1) * width
            assert (inside <= dos.sum(axis=1) * STORAGE_GRID.width + 1e-5).all()  # what lies above the grid is lost
            weights = NEUTRON_WEIGHT if pairs.kind[i] else np.ones(len(VOCABULARY))
            total = weights @ parts
            coarse = whole.reshape(PROJECTED_BINS, -1).mean(axis=1)
            np.testing.assert_allclose(total / (total.sum() * width), coarse, atol=0.03 * coarse.max())
    np.testing.assert_allclose(pairs.projected[5], pairs.projected[0], atol=1e-5)
    alone = measured(samples[2:3], setting, [2], projected=True)
    np.testing.assert_allclose(alone.projected[0], pairs.projected[2], atol=1e-5)
    assert measured(samples[2:3], setting, [2]).projected is None


def test_an_element_that_a_blend_holds_twice_has_the_sum():
    sample = toy_sample(3)
    row, first = Row.of(sample), len(sample.host_elements)
    parts = slice(first, None)
    twice = replace(
        row,
        codes=np.concatenate([row.codes, row.codes[parts]]),
        areas=np.concatenate([row.areas[:first], row.areas[parts] / 2, row.areas[parts] / 2]),
        elements=np.concatenate([row.elements, row.elements[parts]]),
    )
    a, b = (measure_pairs(projected_pairs([x]), LAB, [row_rng(0)], projected=True) for x in (row, twice))
    np.testing.assert_allclose(a.projected, b.projected, atol=1e-5)
    np.testing.assert_allclose(a.doped, b.doped, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(numbers, st.sampled_from([CLEAN, LAB, AUGMENT, RAW]))
def test_a_measured_pair_has_unit_area_and_its_hosts_edge(number, setting):
    sample = toy_sample(number % 50)
    pair = measured([sample], setting, [number])
    for curve in (pair.host[0], pair.doped[0]):
        assert curve.shape == (MODEL_GRID.bins,)
        assert curve.dtype == np.float32
        assert setting is RAW or curve.min() >= -1e-12
        assert curve.sum() * MODEL_GRID.width == pytest.approx(1.0, abs=1e-5)
    # The edge of what was measured: of one element alone it may lie far below the crystal's.
    first = sample.edge_mev
    if KINDS[pair.kind[0]] != "total":
        first = float(band_edges(X * sample.edge_mev, sample.host_dos).min())
    assert 0.7 * first < pair.edge_mev[0] < 1.6 * sample.edge_mev + 10.0


@settings(max_examples=20, deadline=None)
@given(numbers, st.sampled_from([CLEAN, LAB, AUGMENT]))
def test_the_order_of_elements_does_not_matter(number, setting):
    sample = toy_sample(number % 50, dopants=3)
    a, b = (measured([s], setting, [number]) for s in (sample, permuted(sample)))
    assert np.allclose(a.host, b.host, atol=1e-5)
    assert np.allclose(a.doped, b.doped, atol=1e-5)
    assert a.kind == b.kind


def test_the_same_key_gives_the_same_pair_and_another_key_another():
    for setting in (AUGMENT, RAW):
        first, again, other = (measured([toy_sample(1)], setting, [f"x{key}"]) for key in (0, 0, 1))
        assert np.array_equal(first.doped, again.doped)
        assert not np.array_equal(first.doped, other.doped)


def test_host_and_doped_have_their_own_noise_but_one_edge():
    sample = toy_sample(1, dopants=0)
    pair, clean = measured([sample], LAB), measured([sample], CLEAN)
    assert not np.array_equal(pair.host, pair.doped)
    assert np.array_equal(clean.host, clean.doped)


def test_the_energy_scale_is_shared_and_has_the_stated_spread():
    pairs = measured([toy_sample(1)] * 300, replace(SHARP, energy_scale=0.02))
    assert pairs.edge_mev.std() / pairs.edge_mev.mean() == pytest.approx(0.02, rel=0.15)
    # On relative energies a common error of scale cannot be seen.
    assert np.abs(pairs.doped - pairs.doped[0]).max() < 0.05


def test_the_axis_of_the_doped_sample_may_be_off_by_the_stated_most():
    samples = [toy_sample(1, dopants=0)] * 200
    pairs = measured(samples, replace(SHARP, scale_mismatch=0.01))
    assert (pairs.host == pairs.host[0]).all()
    mean = MODEL_GRID.centres * MODEL_GRID.width
    off = (pairs.doped @ mean) / (pairs.host @ mean) - 1.0
    assert np.abs(off).max() == pytest.approx(0.01, rel=0.1)
    assert off.std() == pytest.approx(0.01 / np.sqrt(3.0), rel=0.1)


def test_a_clean_share_is_measured_as_the_clean_condition():
    samples = [toy_sample(i) for i in range(20)] * 20
    plain = measured(samples, CLEAN)
    for setting in (AUGMENT, replace(RAW, clean_share=0.25)):
        found = measured(samples, setting)
        same = (found.host == plain.host).all(axis=1) & (found.doped == plain.doped).all(axis=1)
        assert same.mean() == pytest.approx(0.25, abs=0.06)
        assert (found.kind[same] == 0).all()


def test_ranges_are_drawn_evenly():
    given_, _ = drawn(replace(RAW, clean_share=0.0), 2000)
    for name, log in {
        "fwhm_mev": True, "fwhm_growth": True, "noise": True, "background": False, "cut_low_mev": False,
        "cut_high": False, "floor": True, "multiphonon": False, "elastic": False, "start": False, "fwhm_ratio": True,
    }.items():  # fmt: skip
        low, high = getattr(RAW, name)
        values = getattr(given_, name).ravel()
        place = np.log(values / low) / np.log(high / low) if log else (values - low) / (high - low)
        np.testing.assert_allclose(np.quantile(place, [0.0, 0.25, 0.5, 0.75, 1.0]), [0, 0.25, 0.5, 0.75, 1], atol=0.05)
    assert np.bincount(given_.kind) / 2000 == pytest.approx(RAW.weights, abs=0.04)
    assert np.std(given_.energy_factor) == pytest.approx(RAW.energy_scale, rel=0.1)


def test_the_faults_of_raw_files_do_not_change_what_else_is_drawn():
    shipped, _ = drawn(AUGMENT, 50)
    raw, _ = drawn(replace(RAW, background=AUGMENT.background, cut_high=AUGMENT.cut_high), 50)
    for name in ("kind", "fwhm_mev", "noise", "background", "energy_factor", "cut_low_mev", "cut_high", "shapes"):
        np.testing.assert_array_equal(getattr(shipped, name), getattr(raw, name))


SHIPPED = {
    # What the networks that come with the package were trained on: (edge of the host in meV, mean relative energy of
    # the doped sample, its maximum) of two toy rows.
    "clean": [(84.25445, 0.5723, 2.52799), (55.16983, 0.64506, 3.3293)],
    "lab": [(85.38, 0.65788, 4.22747), (55.5022, 0.6515, 3.27002)],
    "augment": [(85.23664, 0.65503, 4.51865), (55.22519, 0.65768, 3.29258)],
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_conditions_of_shipped_networks_give_what_they_gave(name):
    found = measured([toy_sample(2, dopants=2), toy_sample(5, dopants=1)], MEASUREMENTS[name])
    mean = found.doped @ MODEL_GRID.centres * MODEL_GRID.width
    told = np.stack([found.edge_mev, mean, found.doped.max(axis=1)], axis=1)
    np.testing.assert_allclose(told, SHIPPED[name], rtol=2e-4)


def test_a_dopant_shows_where_its_line_is():
    sample = toy_sample(11, dopants=1)
    found = measured([sample], CLEAN)
    guest = sample.doped_dos[sample.doped_elements.index(sample.dopants[0])]
    line = X[guest.argmax()] * sample.edge_mev / found.edge_mev[0]
    bin_ = int(line / MODEL_GRID.width)
    assert (found.doped - found.host)[0, bin_ - 3 : bin_ + 4].max() > 0.05


@pytest.mark.parametrize("number", range(8))
def test_a_users_files_are_encoded_as_training_shows_them(number):
    sample = toy_sample(number)
    shown = measured([sample], CLEAN)
    pairs = projected_pairs([Row.of(sample)])
    seen = broaden(pairs.curves(np.ones(len(pairs.elements))), pairs.edge_mev, np.ones(1), np.ones(1))[0]
    energy = X * sample.edge_mev
    files = [Spectrum(energy, curve / sample.edge_mev, "meV").to("THz") for curve in seen]
    batch = encode_pair(*files, sample.formula, grid=MODEL_GRID)
    assert float(batch.edge_mev[0]) == pytest.approx(shown.edge_mev[0], rel=1e-6)
    np.testing.assert_allclose(batch.host[0].numpy(), shown.host[0], atol=1e-5 * shown.host.max())
    np.testing.assert_allclose(batch.doped[0].numpy(), shown.doped[0], atol=1e-5 * shown.doped.max())
    np.testing.assert_allclose(batch.composition[0].numpy(), composition(sample.formula))


# What training is shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"), train=60, val=4, test=4, shards=2)


@pytest.fixture
def shown(folder, monkeypatch):
    """Return what a DataModule yields of the training rows under a setting, in the order of the rows, as arrays."""

    def show(grid: Grid = MODEL_GRID, **setting):
        monkeypatch.setitem(MEASUREMENTS, "this", Measurement(**setting))
        module = SpectraDataModule(str(folder), batch_size=16, grid=grid, train_measurement="this", seed=5)
        items = list(module.train_dataloader())
        order = torch.argsort(torch.cat([item.rows for item in items]))
        fields = {
            name: torch.cat([getattr(item.batch, name) for item in items])[order].numpy()
            for name in ("host", "doped", "edge_mev", "kind")
        }
        return fields | {"present": torch.cat([item.targets.present for item in items])[order].numpy()}

    return show


def test_training_shows_the_kinds_of_dos(shown):
    plain = shown()
    for kind, name in enumerate(KINDS):
        found = shown(weights=tuple(float(k == name) for k in KINDS))
        assert (found["kind"] == kind).all()
        assert np.array_equal(found["host"], plain["host"]) == (kind == 0)
    assert set(shown(weights=(0.4, 0.3, 0.3))["kind"]) == {0, 1, 2}


def test_training_shows_the_resolution(shown):
    sharp, broad = shown(fwhm_mev=(0.5, 0.5)), shown(fwhm_mev=(4.0, 4.0))
    growing = shown(fwhm_mev=(4.0, 4.0), fwhm_growth=(2.0, 2.0))
    for one, other in ((sharp, broad), (broad, growing)):
        assert (one["host"].max(axis=1) > other["host"].max(axis=1)).mean() >= 0.9
    different = shown(fwhm_mev=(2.0, 2.0), fwhm_ratio=(2.0, 2.0))
    assert (different["host"] == shown(fwhm_mev=(2.0, 2.0))["host"]).all()
    assert (different["doped"].max(axis=1) < shown(fwhm_mev=(2.0, 2.0))["doped"].max(axis=1)).mean() > 0.9


def test_training_shows_noise(shown):
    plain, noisy = shown(), shown(noise=(0.03, 0.03))
    above = MODEL_GRID.centres > 1.5
    for name in ("host", "doped"):
        off = noisy[name] - plain[name]
        assert 0.005 < (off.std(axis=1) / plain[name].max(axis=1)).mean() < 0.03
        assert noisy[name].min() >= 0
    assert np.abs(noisy["host"][:, above]).max() < 1e-3
    constant = shown(floor=(0.03, 0.03))
    for name in ("host", "doped"):
        beyond = constant[name][:, above]
        assert (beyond < 0).mean() > 0.4
        assert (beyond.std(axis=1) / plain[name].max(axis=1)).mean() == pytest.approx(0.03, rel=0.2)


def test_training_shows_backgrounds(shown):
    plain = shown()
    above = MODEL_GRID.centres > 1.6
    clear = plain["host"][:, above].sum(axis=1) < 1e-4
    assert clear.sum() > 50
    for share in (0.04, -0.04):
        found = shown(background=(share, share))
        area = found["host"][clear][:, above].sum(axis=1) * MODEL_GRID.width
        assert 0.15 < np.median(area / share) < 0.5  # a third lies there, more or less
        assert (found["host"] != found["doped"]).any(axis=1).all()
    two = shown(multiphonon=(0.1, 0.1))["host"][clear] - plain["host"][clear]
    assert ((two[:, (MODEL_GRID.centres > 1.2) & ~above].sum(axis=1) * MODEL_GRID.width) > 0.005).mean() > 0.8
    wings = shown(elastic=(0.05, 0.05))["host"] - plain["host"]
    assert (wings[:, 1:4].mean(axis=1) > 0.1).mean() > 0.9


def test_training_shows_cuts(shown):
    plain, centres = shown(), MODEL_GRID.centres
    cut = shown(cut_high=(1.2, 1.2))
    assert (cut["doped"][:, centres > 1.45] == 0).all()
    assert (plain["doped"][:, centres > 1.45] > 0).any()
    low = shown(cut_low_mev=(4.0, 4.0))
    for host, edge in zip(low["host"], low["edge_mev"], strict=True):
        below = np.flatnonzero(centres * edge < 0.9 * min(4.0, 0.2 * edge))
        if len(below) > 6:
            # The mean over a bin of E squared, to the step between the points that lie in it.
            np.testing.assert_allclose(
                host[below[3:]] / host[below[-1]], (centres[below[3:]] / centres[below[-1]]) ** 2, rtol=0.15
            )
    assert not np.array_equal(low["host"], plain["host"])
    begun = shown(start=(0.25, 0.25))
    assert (begun["host"][:, centres < 0.2] == 0).all()
    assert (plain["host"][:, centres < 0.2] > 0).any(axis=1).all()


def test_training_shows_errors_of_the_energy_axis(shown):
    plain, found = shown(), shown(energy_scale=0.03)
    assert (found["edge_mev"] / plain["edge_mev"] - 1.0).std() == pytest.approx(0.03, rel=0.3)
    apart = shown(scale_mismatch=0.05)
    controls = ~apart["present"].any(axis=1)
    assert controls.sum() > 5
    assert np.array_equal(plain["host"][controls], plain["doped"][controls])
    mean = MODEL_GRID.centres * MODEL_GRID.width
    off = (apart["doped"] @ mean)[controls] / (apart["host"] @ mean)[controls] - 1.0
    assert 0.01 < np.abs(off).mean() < 0.05
    assert np.array_equal(apart["edge_mev"], plain["edge_mev"])


def test_training_reads_the_edge_through_noise_and_wherever_files_end(shown):
    plain = shown()
    for name in ({"floor": (0.03, 0.03)}, {"floor": (0.0, 0.03), "cut_high": (1.0, 3.0), "start": (0.0, 0.1)}):
        off = shown(**name)["edge_mev"] / plain["edge_mev"] - 1.0
        assert (np.abs(off) < 0.04).mean() >= 0.95
        assert abs(np.median(off)) < 0.01


def test_what_was_not_measured_is_not_taken_for_a_quiet_spectrum():
    samples = [toy_sample(i) for i in range(100)]
    plain, wrong = measured(samples, CLEAN).edge_mev, 0
    for end in (1.6, 2.0, 2.4):
        found = measured(samples, Measurement(floor=(0.04, 0.04), cut_high=(end, end)))
        wrong += (np.abs(found.edge_mev / plain - 1.0) > 0.04).sum()
    assert wrong <= 1  # of 300


def test_training_shows_a_share_of_clean_pairs(shown):
    plain = shown()
    found = shown(clean_share=0.5, noise=(0.02, 0.02), floor=(0.01, 0.01))
    same = (found["host"] == plain["host"]).all(axis=1)
    assert 0.3 < same.mean() < 0.7
    for name in ("host", "doped"):
        np.testing.assert_allclose(found[name].sum(axis=1) * MODEL_GRID.width, 1.0, atol=1e-5)


def test_raw_pairs_can_be_learnt_from(folder, tiny_model):
    item = next(iter(SpectraDataModule(str(folder), batch_size=60, train_measurement="raw").train_dataloader()))
    assert (item.batch.doped < -0.02).any()  # where a logarithm would have no value
    for name in ("DefectNet", "ResNet1d", "PaperDefectNet"):
        output = tiny_model(name)(item.batch)
        assert all(torch.isfinite(field).all() for field in output[:2]), name


# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", (0.0, 0.0, 0.0)),
        ("weights", (1.0, -1.0, 1.0)),
        ("fwhm_mev", (2.0, 1.0)),
        ("fwhm_mev", (0.0, 1.0)),
        ("noise", (0.0, 0.9)),
        ("background", (-0.1, 0.0)),
        ("cut_high", (0.9, 3.0)),
        ("energy_scale", 0.5),
        ("clean_share", 1.5),
        ("floor", (-0.1, 0.0)),
        ("multiphonon", (0.0, 1.0)),
        ("elastic", (0.0, 0.1)),
        ("start", (0.0, 0.5)),
        ("scale_mismatch", 0.1),
        ("fwhm_ratio", (0.1, 1.0)),
    ],
)
def test_a_setting_out_of_range_is_one_clear_error(field, value):
    with pytest.raises(ConfigError, match=field):
        Measurement(**{field: value})


def test_the_conditions_of_the_benchmark_know_nothing_of_raw_files():
    assert not any(setting.raw for setting in (CLEAN, LAB, AUGMENT))
    assert RAW.raw
