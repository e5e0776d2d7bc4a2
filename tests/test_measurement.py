import numpy as np
import pytest
from defectnet.data.measurement import (
    AUGMENT,
    CLEAN,
    LAB,
    NOISE_BIN,
    Measurement,
    Stack,
    broaden,
    cut_off,
    measure,
    measure_pairs,
    relative_edges,
    resolution_kernel,
    row_rng,
    unit_area,
    weighted_dos,
    with_background,
    with_noise,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from defectnet.config import MODEL_GRID, PROJECTED_BINS, STORAGE_GRID
from defectnet.elements import INDEX, NEUTRON_WEIGHT, VOCABULARY
from defectnet.errors import ConfigError
from defectnet.spectrum import KINDS, Spectrum, band_edge_mev
from make_shards import permuted, toy_sample

numbers = st.integers(0, 10**6)


def flat() -> np.ndarray:
    return unit_area((STORAGE_GRID.centres < 1.0).astype(float))


@settings(max_examples=40)
@given(numbers, st.floats(5.0, 200.0), st.floats(0.05, 20.0), st.floats(0.1, 10.0))
def test_broadening_keeps_the_area_and_the_sign(number, edge_mev, fwhm_mev, growth):
    dos = weighted_dos(("Si",), np.random.default_rng(number).random((1, STORAGE_GRID.bins)), "total")
    broad = resolution_kernel(edge_mev, fwhm_mev, growth).astype(float) @ dos
    assert broad.min() >= 0
    assert broad.sum() == pytest.approx(dos.sum(), rel=1e-5)


def test_broadening_has_the_stated_width_at_zero_and_at_the_edge():
    kernel = resolution_kernel(50.0, 2.0, 1.5)
    step = STORAGE_GRID.width * 50.0
    for relative, fwhm_mev in ((0.5, 2.5), (1.0, 3.0)):
        line = kernel[:, round(relative / STORAGE_GRID.width)]
        above = np.flatnonzero(line >= line.max() / 2)
        assert (above[-1] - above[0]) * step == pytest.approx(fwhm_mev, abs=2 * step)


def test_broadening_agrees_with_the_spectrum_class():
    energy = STORAGE_GRID.centres * 50.0
    dos = flat() * STORAGE_GRID.centres**2
    ours = resolution_kernel(50.0, 3.0, 1.0) @ dos
    theirs = Spectrum(energy, dos, "meV").broadened(3.0)
    assert np.abs(ours - np.interp(energy, theirs.energy, theirs.dos)).max() < 1e-3 * dos.max()


@settings(max_examples=40)
@given(numbers, st.floats(5.0, 200.0), st.floats(0.05, 20.0), st.floats(0.1, 10.0), st.integers(1, STORAGE_GRID.bins))
def test_broadening_of_many_agrees_with_the_full_kernel_and_with_one(number, edge_mev, fwhm_mev, growth, end):
    rng = np.random.default_rng(number)
    dos = rng.random((3, 2, STORAGE_GRID.bins)).astype(np.float32)
    dos[..., end:] = 0.0
    dos /= dos.sum(axis=2, keepdims=True) * STORAGE_GRID.width
    edges, widths, growths = (x * np.array([1.0, 0.5, 2.0]) for x in (edge_mev, fwhm_mev, 1.0))
    growths *= growth
    broad = broaden(dos, edges, widths, growths)
    for i in range(3):
        kernel = resolution_kernel(edges[i], widths[i], growths[i]).astype(float)
        wanted = dos[i].astype(float) @ kernel.T
        assert 0.5 * np.abs(broad[i] - wanted).sum(axis=1).max() * STORAGE_GRID.width < 1e-4
        one = slice(i, i + 1)
        assert np.array_equal(broad[i], broaden(dos[one], edges[one], widths[one], growths[one])[0])


@settings(max_examples=30)
@given(numbers)
def test_edges_of_many_agree_with_the_edge_of_one(number):
    rng = np.random.default_rng(number)
    samples = [toy_sample(number % 50 + i) for i in range(4)]
    curves = []
    for sample in samples:
        clean = resolution_kernel(sample.edge_mev, 1.5, 1.2) @ sample.host_dos.sum(axis=0)
        curves.append(with_noise(with_background(clean, 0.03 * rng.random(), rng), 0.04 * rng.random(), rng))
    edges = np.array([sample.edge_mev for sample in samples])
    wanted = [band_edge_mev(STORAGE_GRID.centres * e, c) / e for e, c in zip(edges, curves, strict=True)]
    assert relative_edges(np.stack(curves), edges) == pytest.approx(wanted, rel=1e-5)


def test_many_pairs_are_measured_as_one_is():
    samples = [toy_sample(i) for i in range(20)]
    stacks = [Stack.of_sample(sample) for sample in samples]
    starts = np.cumsum([0, *(len(stack.dos) for stack in stacks[:-1])])
    together = Stack(
        *(np.concatenate([stack[i] for stack in stacks]) for i in range(3)),
        np.concatenate([stack.starts + start for stack, start in zip(stacks, starts, strict=True)]),
        np.concatenate([stack.edge_mev for stack in stacks]),
    )
    for measurement in (CLEAN, LAB, AUGMENT):
        many = measure_pairs(together, measurement, [row_rng("pair", i) for i in range(20)])
        for i, sample in enumerate(samples):
            one = measure(sample, measurement, row_rng("pair", i))
            assert np.array_equal(one.host, many.host[i])
            assert np.array_equal(one.doped, many.doped[i])
            assert (one.edge_mev, one.kind) == (many.edge_mev[i], many.kind[i])


@settings(max_examples=20)
@given(numbers)
def test_projected_dos_add_up_to_the_spectra(number):
    # Without noise, background and cuts a spectrum is the weighted sum of what its elements have.
    measurement = Measurement(weights=(0.5, 0.5, 0.0), fwhm_mev=(0.5, 4.0), fwhm_growth=(0.7, 2.0), energy_scale=0.03)
    samples = [toy_sample(number + i) for i in range(5)]
    samples.append(permuted(samples[0]))
    stacks = [Stack.of_sample(sample) for sample in samples]
    starts = np.cumsum([0, *(len(stack.dos) for stack in stacks[:-1])])
    together = Stack(
        *(np.concatenate([getattr(stack, name) for stack in stacks]) for name in ("dos", "areas", "elements")),
        np.concatenate([stack.starts + start for stack, start in zip(stacks, starts, strict=True)]),
        np.concatenate([stack.edge_mev for stack in stacks]),
    )
    keys = [*range(5), 0]
    pairs = measure_pairs(together, measurement, [row_rng("pair", i) for i in keys], projected=True)
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
            np.testing.assert_allclose(total / (total.sum() * width), coarse, atol=0.02 * coarse.max())
    np.testing.assert_allclose(pairs.projected[5], pairs.projected[0], atol=1e-5)
    alone = measure_pairs(stacks[2], measurement, [row_rng("pair", 2)], projected=True)
    np.testing.assert_allclose(alone.projected[0], pairs.projected[2], atol=1e-5)
    assert measure_pairs(stacks[2], measurement, [row_rng("pair", 2)]).projected is None


def test_an_element_that_a_blend_holds_twice_has_the_sum():
    sample = toy_sample(3)
    stack = Stack.of_sample(sample)
    half = stack.areas / 2
    first, rest = len(sample.host_elements), len(stack.dos) - len(sample.host_elements)
    order = [*range(first), *range(first, first + rest), *range(first, first + rest)]
    areas = np.concatenate([stack.areas[:first], half[first:], half[first:]])
    twice = Stack(stack.dos[order], areas, stack.elements[order], stack.starts, stack.edge_mev)
    a, b = (measure_pairs(x, LAB, [row_rng("pair", 0)], projected=True).projected for x in (stack, twice))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_resolution_far_below_a_bin_changes_nothing():
    assert np.allclose(resolution_kernel(200.0, 0.05, 1.0), np.eye(STORAGE_GRID.bins), atol=1e-6)


@settings(max_examples=40)
@given(numbers, st.floats(0.0, 0.2))
def test_background_adds_its_area_and_nothing_negative(number, share):
    dos = flat()
    more = with_background(dos, share, np.random.default_rng(number))
    assert (more >= dos).all()
    assert more.sum() == pytest.approx(dos.sum() * (1 + share))
    assert np.abs(np.diff(more - dos)).max() < 0.02 * max(share, 1e-9) * dos.max()  # smooth


@settings(max_examples=40)
@given(numbers, st.floats(0.0, 0.3))
def test_noise_is_not_negative(number, level):
    assert with_noise(flat(), level, np.random.default_rng(number)).min() >= 0


def test_noise_has_the_stated_size_and_keeps_the_area_on_average():
    dos, rng = flat(), np.random.default_rng(0)
    runs = np.stack([with_noise(dos, 0.02, rng) for _ in range(400)])
    inside = dos > 0
    merged = runs[:, inside].reshape(400, -1, 2).mean(axis=2)  # bins of NOISE_BIN
    assert pytest.approx(2 * STORAGE_GRID.width) == NOISE_BIN
    assert merged.std(axis=0).mean() / dos.max() == pytest.approx(0.02, rel=0.03)
    assert runs.sum(axis=1).mean() == pytest.approx(dos.sum(), rel=2e-3)
    assert (runs[:, ~inside] == 0).all()


def test_noise_grows_with_the_root_of_the_signal():
    dos, rng = flat() * np.where(STORAGE_GRID.centres < 0.5, 1.0, 0.25), np.random.default_rng(0)
    runs = np.stack([with_noise(dos, 0.02, rng) for _ in range(400)]).std(axis=0)
    assert runs[50:95].mean() / runs[105:195].mean() == pytest.approx(2.0, rel=0.05)


@settings(max_examples=40)
@given(numbers, st.floats(0.0, 0.2), st.floats(1.4, 3.0))
def test_cut_off_keeps_the_middle_and_is_not_negative(number, low, high):
    dos = np.random.default_rng(number).random(STORAGE_GRID.bins)
    cut = cut_off(dos, low, high)
    x = STORAGE_GRID.centres
    assert cut.min() >= 0
    assert (cut[x > high] == 0).all()
    assert np.array_equal(cut[(x >= low) & (x < high)], dos[(x >= low) & (x < high)])


def test_below_the_low_cut_off_stands_debyes_law():
    x = STORAGE_GRID.centres
    cut = cut_off(np.ones(STORAGE_GRID.bins), 0.1, 3.0)
    assert np.allclose(cut[x < 0.1], (x[x < 0.1] / x[x >= 0.1][0]) ** 2)


def test_neutron_weighting_is_cross_section_over_mass():
    dos = np.zeros((2, STORAGE_GRID.bins))
    dos[0, 100], dos[1, 200] = 1.0, 1.0
    curve = weighted_dos(("V", "Pb"), dos, "neutron-weighted")
    assert curve[100] / curve[200] == pytest.approx((5.10 / 50.94) / (11.118 / 207.2), rel=2e-3)
    assert NEUTRON_WEIGHT.min() > 0


def test_projection_is_one_element_of_unit_area():
    sample = toy_sample(3, dopants=2)
    curve = weighted_dos(sample.doped_elements, sample.doped_dos, "projected", sample.doped_elements[0])
    assert np.allclose(curve, unit_area(sample.doped_dos[0].astype(float)))


@settings(max_examples=30)
@given(numbers, st.sampled_from([CLEAN, LAB, AUGMENT]))
def test_a_measured_pair_has_unit_area_no_negative_value_and_its_hosts_edge(number, measurement):
    sample = toy_sample(number % 50)
    pair = measure(sample, measurement, row_rng(number))
    for curve in (pair.host, pair.doped):
        assert curve.shape == (MODEL_GRID.bins,)
        assert curve.dtype == np.float32
        assert curve.min() >= 0
        assert curve.sum() * MODEL_GRID.width == pytest.approx(1.0, abs=1e-5)
    # The edge of what was measured: of one element alone it may lie far below the crystal's.
    first = sample.edge_mev
    if KINDS[pair.kind] != "total":
        first = min(
            band_edge_mev(
                STORAGE_GRID.centres * sample.edge_mev,
                weighted_dos(sample.host_elements, sample.host_dos, "projected", element),
            )
            for element in sample.host_elements
        )
    assert 0.7 * first < pair.edge_mev < 1.6 * sample.edge_mev + 10.0


@settings(max_examples=20)
@given(numbers, st.sampled_from([CLEAN, LAB, AUGMENT]))
def test_the_order_of_elements_does_not_matter(number, measurement):
    sample = toy_sample(number % 50, dopants=3)
    a, b = (measure(s, measurement, row_rng(number)) for s in (sample, permuted(sample)))
    assert np.allclose(a.host, b.host, atol=1e-5)
    assert np.allclose(a.doped, b.doped, atol=1e-5)
    assert a.kind == b.kind


def test_the_same_key_gives_the_same_pair_and_another_key_another():
    sample = toy_sample(1)
    first, again, other = (measure(sample, AUGMENT, row_rng("x", key)) for key in (0, 0, 1))
    assert np.array_equal(first.doped, again.doped)
    assert not np.array_equal(first.doped, other.doped)


def test_host_and_doped_have_their_own_noise_but_one_edge():
    sample = toy_sample(1, dopants=0)
    pair = measure(sample, LAB, row_rng(0))
    clean = measure(sample, CLEAN, row_rng(0))
    assert not np.array_equal(pair.host, pair.doped)
    assert np.array_equal(clean.host, clean.doped)


def test_the_energy_scale_is_shared_and_has_the_stated_spread():
    sample, setting = toy_sample(1), Measurement(energy_scale=0.02, fwhm_mev=(0.05, 0.05))
    pairs = [measure(sample, setting, row_rng(i)) for i in range(300)]
    edges = np.array([pair.edge_mev for pair in pairs])
    assert edges.std() / edges.mean() == pytest.approx(0.02, rel=0.15)
    # On relative energies a common error of scale cannot be seen.
    assert max(np.abs(pair.doped - pairs[0].doped).max() for pair in pairs) < 0.05


def test_the_named_conditions_are_fixed_and_training_covers_every_kind():
    sample = toy_sample(2)
    assert {measure(sample, CLEAN, row_rng(i)).kind for i in range(20)} == {KINDS.index("total")}
    assert {measure(sample, LAB, row_rng(i)).kind for i in range(20)} == {KINDS.index("neutron-weighted")}
    assert {measure(sample, AUGMENT, row_rng(i)).kind for i in range(60)} == {0, 1, 2}


def test_the_edge_is_read_from_the_measured_host():
    sample = toy_sample(4)
    pair = measure(sample, CLEAN, row_rng(0))
    dos = resolution_kernel(sample.edge_mev, 1.0, 1.0) @ sample.host_dos.sum(axis=0)
    assert pair.edge_mev == pytest.approx(band_edge_mev(STORAGE_GRID.centres * sample.edge_mev, dos), rel=1e-4)


def test_a_dopant_shows_where_its_line_is():
    sample = toy_sample(11, dopants=1)
    host, doped = (measure(sample, CLEAN, row_rng(0))[i] for i in (0, 1))
    guest = sample.doped_dos[sample.doped_elements.index(sample.dopants[0])]
    line = STORAGE_GRID.centres[guest.argmax()] * sample.edge_mev / measure(sample, CLEAN, row_rng(0)).edge_mev
    bin_ = int(line / MODEL_GRID.width)
    assert (doped - host)[bin_ - 3 : bin_ + 4].max() > 0.05


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", (0.0, 0.0, 0.0)),
        ("weights", (1.0, -1.0, 1.0)),
        ("fwhm_mev", (2.0, 1.0)),
        ("fwhm_mev", (0.0, 1.0)),
        ("noise", (0.0, 0.9)),
        ("background", (-0.1, 0.0)),
        ("cut_high", (1.0, 3.0)),
        ("energy_scale", 0.5),
        ("clean_share", 1.5),
    ],
)
def test_a_setting_out_of_range_is_one_clear_error(field, value):
    with pytest.raises(ConfigError, match=field):
        Measurement(**{field: value})
