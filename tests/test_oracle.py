"""The oracle's limits on contrasts whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from defectnet.config import MODEL_GRID
from defectnet.errors import ConfigError
from defectnet.measure.settings import CLEAN, LAB
from make_shards import toy_sample
from oracle import (
    Contrasts,
    detectability,
    oracle,
    parting_noise,
    right_choice,
    separation,
    whiten,
)

BINS = MODEL_GRID.bins
ELEMENTS = ("Li", "Be", "B", "C", "N", "O", "F", "Na", "Mg", "Al", "Si", "P")


def made(means: np.ndarray, spread: float, placements: int = 6, seed: int = 0) -> Contrasts:
    """Contrasts with given means, and placements scattered by `spread` times the noise."""
    rng = np.random.default_rng(seed)
    scatter = spread * rng.standard_normal((len(means), placements, BINS))
    return Contrasts(ELEMENTS[: len(means)], means[:, None] + scatter, np.ones(BINS), 0.0, 0.05)


def test_separation_is_the_distance_from_the_line_through_the_other():
    means = np.zeros((2, BINS))
    means[0, 10], means[1, 10], means[1, 20] = 8.0, 6.0, 6.0
    far = separation(whiten(made(means, spread=0.0, placements=8)))
    assert far[0, 1] == pytest.approx(8.0 / np.sqrt(2.0), rel=0.02)
    assert far[1, 0] == pytest.approx(6.0, rel=0.02)
    assert np.diag(far) == pytest.approx([0.0, 0.0], abs=1e-3)


def test_the_same_contrast_in_another_amount_does_not_part():
    means = np.random.default_rng(1).standard_normal((1, BINS)) * np.array([[1.0], [2.5]])
    far = separation(whiten(made(means, spread=0.0)))
    assert far.max() < 1e-3
    assert right_choice(far).max() == pytest.approx(0.5, abs=1e-3)


def test_scatter_alone_is_hardly_a_separation():
    """Means over few placements differ by chance, and that must not count; the choice of directions leaves a little."""
    means = np.zeros((len(ELEMENTS), BINS))
    found = [whiten(made(means, 1.0, seed=seed)) for seed in range(20)]
    seen = np.median([np.median(detectability(one)) for one in found])
    naive = np.median([np.linalg.norm(one.values.mean(axis=1), axis=1) for one in found])
    assert seen < 1.6 < naive


def test_oracle_names_what_differs_and_guesses_what_does_not():
    rng = np.random.default_rng(2)
    apart = oracle(whiten(made(5.0 * rng.standard_normal((len(ELEMENTS), BINS)), 0.5)), rng)
    alike = oracle(whiten(made(np.tile(5.0 * rng.standard_normal(BINS), (len(ELEMENTS), 1)), 0.5)), rng)
    assert apart.top_1 > 0.95
    assert apart.amount_error < 0.05
    assert alike.top_1 < 0.35  # one in twelve by chance


def test_less_of_a_dopant_is_harder_to_see():
    means = np.random.default_rng(3).standard_normal((len(ELEMENTS), BINS))
    contrasts = made(means, 0.3)
    strong, weak = (detectability(whiten(contrasts, amount)).mean() for amount in (0.05, 0.01))
    assert strong > 2.0 * weak > 0.0


def alike(count: int, **wrong):
    """Toy cells of one host with one dopant each; not physics, but whole rows."""
    from dataclasses import replace

    first = toy_sample(3, dopants=1)
    samples = []
    for element in ("Li", "Al", "Ag"):
        for placement in range(count):
            dos = np.roll(first.doped_dos, {"Li": 12, "Al": 5, "Ag": -5}[element] + placement, axis=1)
            names = tuple(element if symbol == first.dopants[0] else symbol for symbol in first.doped_elements)
            samples.append(
                replace(
                    first,
                    row_id=f"toy/{element}-{placement}",
                    dopants=(element,),
                    doped_elements=names,
                    site_dopants=(element,) * len(first.sites),
                    doped_dos=dos,
                    **wrong,
                )
            )
    return samples


@pytest.mark.parametrize("measurement", [CLEAN, LAB])
def test_rows_become_contrasts(measurement):
    contrasts = Contrasts.of_samples(alike(3), measurement)
    assert contrasts.elements == ("Li", "Al", "Ag")
    assert contrasts.values.shape == (3, 3, BINS)
    assert np.isfinite(contrasts.values).all()
    assert (contrasts.noise > 0).all()
    levels = parting_noise(alike(3), measurement, 0.05)
    assert set(levels) == {("Li", "Al"), ("Al", "Ag")}


def test_more_noise_parts_less():
    silent = Contrasts.of_samples(alike(3), replace(LAB, noise=(0.0, 0.0)))
    assert silent.noisier(LAB.noise[1]).noise == pytest.approx(Contrasts.of_samples(alike(3), LAB).noise)
    far = [separation(whiten(silent.noisier(noise))).sum() for noise in (0.01, 0.05, 0.25)]
    assert far[0] > far[1] > far[2]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lambda: [toy_sample(5, dopants=2)], "has 2 dopants"),
        (lambda: alike(1), "two at least"),
        (lambda: alike(3)[:-1], "equally many cells"),
        (lambda: alike(2) + [toy_sample(9, dopants=1)] * 2, "2 hosts"),
    ],
)
def test_cells_that_do_not_belong_together_are_one_clear_error(samples, message):
    with pytest.raises(ConfigError) as error:
        Contrasts.of_samples(samples(), CLEAN)
    assert message in str(error.value)
