"""Plans: what is expected of a measurement agrees with what `identify`'s posterior says of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from defectnet import cli
from defectnet.cli.plan_screen import print_plan
from defectnet.errors import DefectNetError
from defectnet.inference import known_crystal, posterior
from defectnet.inference import plan as planning
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.emulator import LOWEST
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.inference.likelihood import ErrorSize, Likelihood
from defectnet.inference.parting import part
from defectnet.inference.plan import Expected, Setup, parse_amounts, percent, plan, sentence, told_apart
from defectnet.inference.posterior import Likely, infer
from defectnet.plotting import plot_plan
from packs import gallium_arsenide

SETUP = Setup(fwhm_mev=1.5, noise=0.01)


def known(*dopants: str) -> KnownCrystal:
    """A crystal with fewer cells than usual: plans and questions see the same ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_crystal, "CELLS", (15, 25))
        return KnownCrystal(gallium_arsenide(), dopants, unlisted=0)  # a plan weighs what it is asked about alone


@pytest.fixture(scope="module")
def crystal():
    return known("Al@Ga", "P@As")


@pytest.fixture(scope="module")
def alone():
    return known("Al@Ga")


@pytest.fixture(scope="module")
def made(crystal):
    return plan(crystal, setup=SETUP, vary=False)


@pytest.fixture(scope="module")
def varied(alone):
    """A plan with a few other instruments and standards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "STANDARDS", (0, 5))
        patch.setattr(planning, "FWHM_FACTORS", (1.0,))
        patch.setattr(planning, "NOISE_FACTORS", (0.5, 1.0))
        return plan(alone, setup=SETUP, amounts=(0.03, 0.24))


def posterior_of_identify(expected, change):
    """Return the posterior for a change in the projected space."""
    likelihood = Likelihood(expected.emulator, expected.likelihood.errors, np.zeros(len(expected.compared.change)))
    likelihood.measured = change
    return infer(likelihood, seed=1)


def odds_of_identify(expected, change) -> float:
    """Return the log odds of the only candidate."""
    p = posterior_of_identify(expected, change).probability[0]
    return float(np.log(p / (1.0 - p)))


@pytest.mark.parametrize("same", [False, True])
def test_the_odds_are_those_of_identify(alone, same):
    expected = Expected(alone, replace(SETUP, same_potential=same))
    rng = np.random.default_rng(5)
    amounts = np.array([0.004, 0.01, 0.03])
    drawn = np.concatenate([expected.draw_undoped(4, rng), *expected.draw(0, amounts, 6, rng)])
    found = expected.log_odds(drawn, expected.hypothesis(0))
    wanted = np.array([odds_of_identify(expected, change) for change in drawn])
    # Where a change is unlike the response, the likeliest concentration depends on where it is looked for.
    assert (np.abs(found - wanted) < 0.2 + 0.03 * np.abs(wanted)).mean() > 0.9


@pytest.mark.parametrize("same", [False, True])
def test_so_many_are_found_at_the_limit_and_so_many_false_alarms_raised(alone, same):
    setup = replace(SETUP, same_potential=same)
    one = plan(alone, setup=setup, amounts=(0.03,), vary=False).detections[0]
    expected, rng = Expected(alone, setup), np.random.default_rng(77)  # other draws than the plan's
    hypothesis = expected.hypothesis(0)
    least = np.log(one.threshold / (1.0 - one.threshold))
    doped = expected.log_odds(expected.draw(0, np.array([one.limit]), 1500, rng)[0], hypothesis)
    undoped = expected.log_odds(expected.draw_undoped(1500, rng), hypothesis)
    assert (doped > least).mean() == pytest.approx(planning.POWER, abs=0.04)
    assert (undoped > least).mean() == pytest.approx(planning.FALSE_ALARMS, abs=0.025)


@pytest.mark.parametrize("same", [False, True])
def test_expected_intervals_are_those_of_identify(alone, same, monkeypatch):
    """Sample by sample, of an `identify` that draws more of each posterior: so few tell its tails roughly."""
    monkeypatch.setattr(posterior, "SAMPLES", 2000)
    expected = Expected(alone, replace(SETUP, same_potential=same))
    drawn = expected.draw(0, np.array([0.04]), planning.INTERVAL_DRAWS, np.random.default_rng(3))[0]
    found = [posterior_of_identify(expected, change) for change in drawn]
    apart = np.log(expected.intervals(drawn, 0, 0.04) / np.array([(p.low[0], p.high[0]) for p in found]))
    assert np.abs(np.median(apart, axis=0)).max() < np.log(1.1)
    medians = np.median(expected.intervals(drawn, 0, 0.04), axis=0)
    assert expected.interval(0, 0.04, np.random.default_rng(3)) == pytest.approx(medians)


def test_intervals_cover_what_is_drawn(alone):
    expected, rng = Expected(alone, SETUP), np.random.default_rng(3)
    low, high = expected.interval(0, 0.04, rng)
    assert low < 0.04 < high
    narrow = Expected(alone, replace(SETUP, noise=0.002)).interval(0, 0.04, rng)
    assert narrow[1] - narrow[0] < high - low


def test_less_noise_finds_less(alone):
    loud, quiet = (plan(alone, fwhm_mev=1.5, noise=noise, vary=False).detections[0].limit for noise in (0.02, 0.005))
    assert 1.5 < loud / quiet < 8.0


def test_other_instruments_and_standards(varied):
    found = varied
    assert found.by_instrument.shape == (1, 1, 2)
    assert found.by_instrument[0, 0, 0] < found.by_instrument[0, 0, 1]
    assert found.by_instrument[0, 0, 1] == pytest.approx(found.detections[0].limit, rel=0.05)
    widths = found.intervals_by_standards[0, :, 0] @ [-1.0, 1.0]
    assert widths[1] < 0.9 * widths[0]
    assert found.standard_content[0] == pytest.approx(0.05)


def test_standards_take_away_the_potential_s_error(alone):
    expected, at = Expected(alone, SETUP), np.array([0.03])
    sizes = [np.trace(expected.covariance(0, at, 0.0, ErrorSize(0.6, 1.0, 1.0), n)[0]) for n in (0, 1, 5, 10**6)]
    assert sizes == sorted(sizes, reverse=True)
    exact = np.trace(expected.exact.covariance(expected.alone(0, at))[0])
    assert sizes[-1] == pytest.approx(exact, rel=0.01)


def test_look_alikes(crystal, made):
    assert np.diag(made.likeness) == pytest.approx(np.ones(2))
    # Across potentials no amount parts these two in 95 of 100 samples.
    assert np.isnan(made.apart[0, 1])
    expected = Expected(crystal, replace(SETUP, same_potential=True))
    one, other = (expected.hypothesis(i) for i in range(2))
    apart = told_apart(expected, [one, other])
    assert 0.0 < apart[0, 1] == apart[1, 0] < 0.03
    # Two that are one: nothing parts them.
    assert np.isnan(told_apart(expected, [one, one])[0, 1])


def test_what_is_told(made):
    told = json.loads(json.dumps(made.to_dict()))
    assert [one["dopant"] for one in told["dopants"]] == ["Al@Ga", "P@As"]
    assert told["dopants"][0]["limit"] < told["dopants"][0]["intervals"][2]["concentration"]
    assert told["compared_fwhm_mev"] >= 1.5
    assert all(one.dopant in sentence(made) for one in made.detections)
    lost = replace(made, detections=(replace(made.detections[0], limit=None), made.detections[1]))
    assert "does not find Al@Ga" in sentence(lost)
    assert (percent(None, 0.25), percent(0.0005, 0.25), percent(0.0123, 0.25)) == ("> 25", "<0.05", "1.2")


@pytest.mark.parametrize("fixture", ["varied", "made"])
def test_a_plan_is_drawn(request, fixture, tmp_path):
    found = request.getfixturevalue(fixture)
    figure = plot_plan(found, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 20_000
    labels = {axes.get_xlabel() for axes in figure.axes} | {axes.get_ylabel() for axes in figure.axes}
    assert any("at.%" in label for label in labels)
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert percent(found.detections[0].limit, 0.25) in texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("packs") / "GaAs16"
    gallium_arsenide().save(path)
    return path


def test_the_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(planning, "FEW_DOPANTS", 0)
    monkeypatch.setattr(known_crystal, "CELLS", (15, 25))
    words = ["plan", "--pack", str(folder), "--dopants", "Al@Ga", "--fwhm-mev", "1.5", "--amounts", "2,5"]
    cli.main([*words, "--json", "--plot", str(tmp_path / "plan.pdf")])
    told = json.loads(capsys.readouterr().out)
    assert [one["dopant"] for one in told["dopants"]] == ["Al@Ga"]
    assert [one["concentration"] for one in told["dopants"][0]["intervals"]] == [0.02, 0.05]
    assert (tmp_path / "plan.pdf").exists()


def test_the_command_prints(made, capsys):
    print_plan(made, ["pack GaAs"])
    text = capsys.readouterr().out
    assert sentence(made) in text
    assert "told apart" in text


# -- what parts two explanations -------------------------------------------------------------------------------------


def answer_of(crystal, first, second) -> KnownCrystalAnswer:
    """An answer with two explanations, of a measurement of `SETUP`."""
    expected = Expected(crystal, SETUP)
    seen = expected.compared
    found = infer(expected.likelihood)
    likely = tuple(
        Likely(p, tuple(name for name, c in zip(crystal.dopants, one, strict=True) if c), False, np.array(one))
        for p, one in ((0.6, first), (0.3, second))
    )
    unit = crystal.pack.host.band_edge_mev
    size = len(seen.change)
    return KnownCrystalAnswer(
        posterior=replace(found, likeliest=likely),
        host="GaAs",
        formula="GaAs",
        potential="defectnet-nep",
        kind="total",
        edge_mev=unit,
        energy_mev=seen.instrument.middle * unit,
        measured=seen.change,
        predicted=np.zeros(size),
        band=np.zeros(size),
        noise=np.sqrt(np.diag(seen.noise)),
        pristine=seen.pristine,
        scale=np.ones(size),
        fwhm_mev=seen.instrument.fwhm * unit,
        host_distance=0.0,
    )


def test_what_parts_two_explanations(crystal):
    found = part(crystal, answer_of(crystal, (0.01, 0.0), (0.0, 0.01)))
    assert (list(found.first), list(found.second)) == (["Al@Ga"], ["P@As"])
    shares = dict(found.options)
    assert found.now <= shares["4 times the counting time"] <= shares["16 times the counting time"]
    assert any("neutron-weighted" in words for words in shares)
    assert "Al and P" in str(found)
    assert found.to_dict()["sentence"] == str(found)


def test_more_of_a_dopant_parts_better(crystal):
    shares = [part(crystal, answer_of(crystal, (c, 0.0), (0.0, 0.0))).now for c in (0.003, 0.01, 0.05)]
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[-1]


def test_without_another_explanation_there_is_nothing_to_part(crystal):
    assert part(crystal, answer_of(crystal, (0.01, 0.0), (0.02, 0.0))) is None


# -- what cannot be planned --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"noise": -0.01}, "noise is -0.01.*0.02 for 2 %"),
        ({"noise": 2.0}, "noise is 2.0.*0.02 for 2 %"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"fwhm_mev": 0.0}, "fwhm_mev is 0.0"),
        ({"fwhm_mev": -1.0}, "fwhm_mev is -1.0"),
        ({"fwhm_mev": 40.0}, "hides all of GaAs.*in meV"),
        ({"fwhm_mev": 8.0, "step_mev": 5.0}, "step_mev is 5.*in meV"),
        ({"step_mev": 0.0}, "step_mev is 0.0"),
        ({"reach_mev": 20.0}, "reach_mev is 20, below the edge"),
        ({"kind": "weighted"}, "kind is 'weighted'.*neutron-weighted"),
        ({"kind": "projected"}, "element is None.*Name one"),
        ({"element": "Ga"}, "element is 'Ga'.*kind projected"),
        ({"kind": "projected", "element": "Fe"}, "Fe is not in GaAs.*Ga, As"),
        ({"kind": "projected", "element": "Xx"}, "'Xx' is not an element"),
        ({"dopants": ["Au"]}, "does not hold Au"),
        ({"dopants": ["al"]}, "Did you mean Al"),
        ({"dopants": ["Al@In"]}, "Al@In names no site"),
        ({"amounts": (0.5,)}, "50 at.%.*0.2 to 25"),
        ({"amounts": (LOWEST / 2,)}, "0.1 at.%"),
    ],
)
def test_a_wrong_setup_is_one_error(settings, match):
    with pytest.raises(DefectNetError, match=match) as error:
        plan(gallium_arsenide(), **settings)
    assert error.value.fix
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--dopants", "Al"], "the host is not named"),
        (["--pack", "GaAs", "--dopants", ","], "--dopants names none"),
        (["--pack", "GaAs", "--dopants", "Al", "--amounts", "one"], "'one' are not numbers"),
        (["--pack", "GaAs", "--dopants", "Al", "--noise", "2"], "noise is 2.0"),
        (["--pack", "Unobtainium", "--dopants", "Al"], "no host pack is called 'Unobtainium'"),
        (["--pack", "GaAs", "--dopants", "Uuo"], "'Uuo' is not an element"),
        (["--structure", "nowhere.cif", "--dopants", "Al"], "nowhere.cif"),
    ],
)
def test_a_wrong_plan_is_one_line(words, match, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", *words])
    assert ended.value.code == cli.EXIT_ERROR
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("defectnet: ")
    assert match in line


def test_amounts_are_read():
    assert parse_amounts("1, 3;10".replace(";", " ")) == pytest.approx((0.01, 0.03, 0.1))
    with pytest.raises(DefectNetError, match="Give them when it is made"):
        plan(KnownCrystal.__new__(KnownCrystal), ["Al"])
    with pytest.raises(DefectNetError, match="Give one of the two"):
        plan("GaAs", setup=SETUP, noise=0.1)
