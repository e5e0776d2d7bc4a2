"""What can be said of a pair before it is answered: edge, likeness, reach, tails, backgrounds, errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from defectnet.config import MODEL_GRID
from defectnet.elements import multi_hot
from defectnet.errors import ConfigError, SpectrumError
from defectnet.io import read_spectrum, write_spectrum
from defectnet.io.objects import as_spectrum
from defectnet.measure import plausible
from defectnet.measure.curves import integral_covariance, integral_errors
from defectnet.measure.encode import examine_pair, host_edge_mev
from defectnet.spectrum import UNITS, Spectrum
from spectra import dos_of, grid, spectrum

GAAS = 35.3


def noisy(dos, level, seed, *, error=True, energy=None):
    energy = grid() if energy is None else energy
    sigma = np.broadcast_to(level, len(energy)) * dos.max()
    seen = dos + sigma * np.random.default_rng(seed).normal(size=len(energy))
    return Spectrum(energy, seen, "meV", error=sigma if error else None)


# Errors


def test_errors_follow_the_values_through_units_and_scale():
    original = Spectrum(grid(), dos_of(grid()), "meV", error=0.1 + 0.1 * dos_of(grid()))
    there = original.to("THz").normalised()
    np.testing.assert_allclose(there.error / there.dos[80], original.error / original.dos[80])
    with pytest.raises(ValueError, match="read-only"):
        there.error[0] = 0.0


@pytest.mark.parametrize("change", ["resampled", "broadened"])
def test_errors_are_propagated_as_repeated_measurements_scatter(change):
    energy = grid(90.0, 181)
    clean, sigma = dos_of(energy), 0.02 + 0.05 * dos_of(energy)
    seen = []
    for seed in range(400):
        one = Spectrum(energy, clean + sigma * np.random.default_rng(seed).normal(size=181), "meV", error=sigma)
        seen.append(one.resampled(np.linspace(0.0, 90.0, 64)) if change == "resampled" else one.broadened(2.0))
    scatter = np.std([one.dos for one in seen], axis=0)
    live = scatter > 1e-3 * scatter.max()
    np.testing.assert_allclose(seen[0].error[live], scatter[live], rtol=0.15)


def test_errors_of_integrals_are_exact():
    rng = np.random.default_rng(0)
    energy, error = np.sort(rng.uniform(0, 10, 40)), rng.uniform(0.1, 1, 40)
    edges = np.linspace(-1, 11, 25)
    columns = []
    for unit in np.eye(40):  # what each point adds to each integral
        fine = np.linspace(energy[0], energy[-1], 200_001)
        area = np.concatenate(
            [[0], np.cumsum((np.interp(fine, energy, unit)[1:] + np.interp(fine, energy, unit)[:-1]) / 2)]
        )
        at = np.interp(edges, fine, area * (fine[1] - fine[0]))
        columns.append(np.diff(at))
    weights = np.array(columns).T * error
    np.testing.assert_allclose(integral_errors(energy, error, edges), np.sqrt((weights**2).sum(1)), atol=1e-4)
    np.testing.assert_allclose(integral_covariance(energy, error, edges), weights @ weights.T, atol=2e-4)


def test_errors_survive_a_file(tmp_path):
    original = Spectrum(grid(), dos_of(grid()), "THz", error=0.1 + dos_of(grid()))
    write_spectrum(tmp_path / "a.csv", original)
    np.testing.assert_array_equal(read_spectrum(tmp_path / "a.csv").error, original.error)


@pytest.mark.parametrize(
    ("error", "message"),
    [(np.ones(5), "shape"), (np.full(361, -1.0), "error is -1 at point 1"), (np.full(361, np.nan), "error is nan")],
)
def test_wrong_errors(error, message):
    with pytest.raises(SpectrumError, match=message):
        Spectrum(grid(), dos_of(grid()), "meV", error=error)


def test_white_noise_below_zero_is_kept():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen = dos_of(grid()) + rng.normal(0.0, 0.02 * dos_of(grid()).max(), 361)
        np.testing.assert_array_equal(Spectrum(grid(), seen, "meV").dos, seen)


def test_the_edge_is_found_by_errors_that_grow():
    energy = grid(86.4, 200)
    level = 0.06 * (0.2 + 1.6 * energy / energy[-1])
    off = {True: 0, False: 0}
    for seed in range(25):
        for error in off:
            try:
                edge = host_edge_mev(noisy(dos_of(energy), level, seed, error=error, energy=energy))
            except SpectrumError:
                edge = 0.0
            off[error] += abs(edge / 36.0 - 1.0) > 0.04
    assert off[True] == 0
    assert off[False] > 10  # what errors are for


def test_the_encoded_pair_knows_its_noise():
    pair = examine_pair(noisy(dos_of(grid()), 0.02, 0), noisy(dos_of(grid()), 0.02, 1), "GaAs", grid=MODEL_GRID)
    assert pair.error.shape == (2, MODEL_GRID.bins)
    difference = (pair.batch.doped - pair.batch.host)[0].numpy() / np.hypot(*pair.error)
    assert difference[: MODEL_GRID.bins * 3 // 4].std() == pytest.approx(1.0, abs=0.25)
    assert examine_pair(spectrum(), spectrum(), "GaAs", grid=MODEL_GRID).error is None


# Changes within the noise


@pytest.mark.parametrize("level", [0.002, 0.005, 0.01, 0.02])
@pytest.mark.parametrize("end", [1.02, 1.5, 2.0, 3.0])
def test_noise_is_no_change_and_a_change_is(level, end):
    energy = grid(36.0 * end, 200)
    wrong = missed = 0
    for seed in range(25):
        host = noisy(dos_of(energy), level, [seed, 0], error=False, energy=energy)
        same = noisy(dos_of(energy), level, [seed, 1], error=False, energy=energy)
        other = noisy(dos_of(energy, 37.0), level, [seed, 2], error=False, energy=energy)
        tests = [plausible.change_within_errors(host, one, GAAS) for one in (same, other)]
        wrong += tests[0][1] < plausible.SIGNIFICANT
        missed += tests[1][1] >= plausible.SIGNIFICANT
    assert wrong <= 2
    assert missed == 0


def test_without_errors_and_without_noise_nothing_is_said():
    assert plausible.change_within_errors(spectrum(), spectrum(), GAAS) is None
    few = Spectrum(grid(40.0, 20), dos_of(grid(40.0, 20)), "meV", error=np.ones(20))
    assert plausible.change_within_errors(few, few, GAAS) is None


# What is not plausible


@pytest.mark.parametrize(
    ("formula", "edge"),
    [
        *(("Si", 61.4), ("MgB2", 100.0), ("CdTe", 19.7), ("Fe", 39.7), ("C", 165.0), ("NaCl", 32.0), ("Al", 40.0)),
        *(("Cu", 30.0), ("Ni", 36.0), ("W", 27.0), ("Nb", 27.0), ("GaN", 92.0), ("BN", 165.0), ("BaTiO3", 90.0)),
        *(("Ti", 35.0), ("Mo", 34.0)),
    ],
)
def test_measured_edges_are_plausible_and_those_in_a_wrong_unit_are_not(formula, edge):
    assert plausible.edge_warning(edge, formula, "meV") is None
    for right, wrong in (("meV", "THz"), ("THz", "meV"), ("cm-1", "meV"), ("meV", "cm-1"), ("rad/ps", "THz")):
        warning = plausible.edge_warning(edge * UNITS[wrong] / UNITS[right], formula, wrong)
        assert f"(read as {wrong})" in warning
        assert right in warning.partition("; in ")[2]


def test_edges_of_another_crystal():
    assert "Si is expected to have 59 meV" in plausible.edge_warning(100.0, "Si", "meV")
    assert "times less" in plausible.edge_warning(100.0, "Si", "meV")
    assert plausible.edge_warning(20.0, "SnO2", "meV") is not None
    assert plausible.edge_warning(20.0, "SnO2", "meV", projected=True) is None  # tin ends where oxygen goes on


def test_an_electronic_energy_scale_is_refused():
    with pytest.raises(SpectrumError, match=r"reaches to 3\.\d+e\+04 meV, as read in eV .*no phonon lies above 600"):
        examine_pair(*[Spectrum(grid(), dos_of(grid()), "eV")] * 2, "GaAs", grid=MODEL_GRID)


def test_two_crystals_are_doubted_or_refused():
    energy = grid(180.0, 700)
    host, silicon = (Spectrum(energy, dos_of(energy, edge), "meV") for edge in (100.0, 61.0))
    with pytest.raises(SpectrumError, match=r"share only \d+% of their area .*Check that both are of one crystal"):
        examine_pair(
            host, Spectrum(energy, dos_of(energy, 25.0) + 1e-3 * dos_of(energy, 100.0), "meV"), "MgB2", grid=MODEL_GRID
        )
    found = examine_pair(host, Spectrum(energy, silicon.dos + 0.05 * host.dos, "meV"), "MgB2", grid=MODEL_GRID)
    assert any("share only" in text for text in found.warnings)


@pytest.mark.parametrize("start", [0.5, 1.5, 4.0])
def test_tails_of_elastic_lines_are_told(start):
    energy = np.linspace(start, 90.0, 360)
    clean = Spectrum(energy, dos_of(energy), "meV")
    tail = Spectrum(energy, dos_of(energy) + 0.27 * np.exp(-(energy - start) / 1.5), "meV")
    softer = Spectrum(energy, dos_of(energy, 34.0), "meV")
    assert plausible.tail_warning(clean, clean, GAAS) is None
    assert plausible.tail_warning(clean, softer, GAAS) is None
    assert "the host begins too high" in plausible.tail_warning(tail, clean, GAAS)
    assert "the doped spectrum begins too high" in plausible.tail_warning(clean, tail, GAAS)


def test_a_background_is_told_from_a_local_mode():
    energy = grid()
    for dos, told in (
        (dos_of(energy), False),
        (dos_of(energy) + 0.04, True),
        (dos_of(energy) + 0.5 * np.exp(-0.5 * ((energy - 60.0) / 1.5) ** 2), False),
    ):
        found = plausible.floor_warning(Spectrum(energy, dos, "meV"), GAAS, "doped spectrum")
        assert (found is not None) == told


@pytest.mark.parametrize("points", [60, 90, 200])
def test_soft_modes_on_coarse_grids_are_no_elastic_line(points):
    """The second point of a coarse grid may lie on a soft branch."""
    energy = np.linspace(0.0, 90.0, points)
    soft = dos_of(energy) + 0.5 * np.exp(-0.5 * ((energy - energy[1]) / 0.4) ** 2) * (energy > 0)
    assert Spectrum(energy, soft, "meV").dos[1] > 0.3
    with pytest.raises(SpectrumError, match="at zero energy"):
        Spectrum(energy, dos_of(energy) + 0.5 * np.exp(-0.5 * (energy / 2.0) ** 2), "meV")


def test_a_dos_that_is_even_is_read_at_positive_energies():
    energy = np.linspace(-90.0, 90.0, 721)
    even = Spectrum(energy, dos_of(np.abs(energy)), "rad/ps")
    assert even.energy[0] == 0.0
    with pytest.raises(SpectrumError, match="lies at negative energies"):
        Spectrum(energy, dos_of(np.abs(energy)) * np.where(energy < 0, 0.5, 1.0), "meV")


def test_whose_local_modes_are_beyond_the_file():
    asked = multi_hot(["B", "C", "Ge", "P"])
    assert "B, C would lie above" in plausible.reach_warning(68.0, 61.4, "Si", asked)
    assert plausible.reach_warning(100.0, 61.4, "Si", asked) is None
    assert plausible.reach_warning(61.4, 61.4, "Si", multi_hot(["Ge"])) is None
    assert "and 4 more" in plausible.reach_warning(
        36.0, 35.3, "GaAs", multi_hot(["Li", "Be", "B", "C", "N", "O", "F", "Na", "Mg"])
    )


# Forms


def test_forms_in_memory():
    energy, dos, error = grid(), dos_of(grid()), 0.1 + dos_of(grid())
    forms = {
        "tuple": (energy, dos, error),
        "array": np.column_stack([energy, dos, error]),
        "frame": pd.DataFrame({"E": energy, "g": dos, "err": error}),
    }
    for form in forms.values():
        found = as_spectrum(form, "host", unit="meV")
        np.testing.assert_array_equal(found.error, error)
        assert not found.kind_told
    assert as_spectrum((energy, dos), "host", unit="meV", kind="total").error is None


def test_what_other_libraries_call_a_dos():
    from pymatgen.phonon.dos import PhononDos

    class Dos:  # as phonopy.phonon.dos.TotalDos
        frequency_points, dos = grid() / UNITS["THz"], dos_of(grid())

    for source in (PhononDos(grid() / UNITS["THz"], dos_of(grid())), Dos()):
        np.testing.assert_allclose(as_spectrum(source, "host").energy_mev, grid())


@pytest.mark.parametrize(
    ("source", "unit", "message"),
    [
        (5, "meV", "host is a int"),
        ((grid(),), "meV", "1 columns"),
        ((grid(), dos_of(grid())), None, "without a unit"),
        (np.ones((20, 4)), "meV", "4 columns"),
    ],
)
def test_forms_that_are_none(source, unit, message):
    with pytest.raises(ConfigError, match=message):
        as_spectrum(source, "host", unit=unit)
