"""Lists that may be incomplete: how they are drawn, what else is shown in training, and what an answer says of them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import lsq_linear

from conftest import TINY_NETS
from defectnet.batch import Targets
from defectnet.cli import main
from defectnet.data.candidates import LIKENESS, TrackSettings, questions
from defectnet.data.dataset import View
from defectnet.data.shards import Row
from defectnet.elements import multi_hot
from defectnet.errors import CheckpointError, ConfigError
from defectnet.hub import read_golden, save, verify
from defectnet.measure.forward import ProjectedPairs, measure_pairs
from defectnet.measure.settings import CLEAN, TRAIN, Conditions, Measurement
from defectnet.models.base import ABSENT_LOGIT
from defectnet.models.belts import Belt, belt_of, fit_belts
from defectnet.models.calibration import Calibration, Interval, Surest, calibrated, fit_calibration, quiet_threshold
from defectnet.models.goodness import bounded_fit, goodness
from defectnet.models.registry import build_model
from defectnet.prediction import UNSURE, Prediction
from defectnet.rng import row_rng
from defectnet.tasks.defect import able_to
from make_shards import toy_folder, toy_sample

ROWS = 400
HOSTS, DOPANTS = [("Ga", "As")] * ROWS, [("Al", "In", "Sb")] * ROWS


def asked(settings: TrackSettings) -> np.ndarray:
    masks = [np.stack([multi_hot(symbols) for symbols in rows]) for rows in (HOSTS, DOPANTS)]
    return questions(*masks, "candidates", settings, [np.random.default_rng(i) for i in range(ROWS)])[0]


@pytest.mark.parametrize(
    ("share", "missing_all", "missed"), [(0.0, 1.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.5), (0.4, 0.5, 0.3)]
)
def test_open_lists_miss_dopants(share, missing_all, missed):
    named = asked(TrackSettings(open_share=share, missing_all=missing_all))
    true = multi_hot(DOPANTS[0])
    assert 1.0 - named[:, true].mean() == pytest.approx(missed, abs=0.04)
    assert named.any(axis=1).all()
    assert not named[:, multi_hot(HOSTS[0])].any()
    others = named[:, ~true].sum(axis=1)
    assert set(others[named[:, true].any(axis=1)]) <= set(range(7))
    assert (others[~named[:, true].any(axis=1)] >= 1).all()


def test_complete_lists_are_what_they_were():
    settings = TrackSettings(open_share=1e-9)
    np.testing.assert_array_equal(asked(settings), asked(TrackSettings()))


def test_twins_look_like_the_dopants():
    true = multi_hot(DOPANTS[0])
    alike = LIKENESS[true].max(axis=0)

    def mean(share: float) -> float:
        named = asked(TrackSettings(twin_share=share))
        return float(np.mean([alike[row & ~true].mean() for row in named if (row & ~true).any()]))

    assert mean(1.0) > 1.5 * mean(0.0)


def test_undoped_pairs_are_two_measurements_of_the_host():
    rows = [Row.of(toy_sample(number, dopants=2)) for number in range(20)]
    for measurement in (CLEAN, TRAIN):
        item = View(measurement=measurement, undoped=1.0).collate(rows, range(20), 0)
        assert not item.targets.present.any()
        assert item.batch.candidates.any(dim=1).all()
        same = (item.batch.host == item.batch.doped).all(dim=1)
        assert same.all() if measurement is CLEAN else same.float().mean() < 0.6
        plain = View(measurement=measurement).collate(rows, range(20), 0)
        torch.testing.assert_close(plain.batch.host, item.batch.host, atol=1e-5, rtol=1e-4)
    some = View(undoped=0.5, seed=1).collate(rows, range(20), 0).targets.present.any(dim=1)
    assert 3 < some.sum() < 17
    again = View(undoped=0.5, seed=1).collate(rows, range(20), 1).targets.present.any(dim=1)
    assert not torch.equal(some, again)


def test_each_fault_comes_in_its_share_of_the_pairs():
    given = Conditions.draw(replace(TRAIN, clean_share=0.0), [np.random.default_rng(i) for i in range(3000)])
    there = {
        "floor": given.floor > 0, "multiphonon": given.multiphonon > 0, "elastic": given.elastic > 0,
        "start": given.start > 0, "scale": given.doped_factor != 1, "width": given.fwhm_ratio != 1,
        "noise": given.noise_ratio != 1,
    }  # fmt: skip
    for name, faulty in there.items():
        assert faulty.mean() == pytest.approx(TRAIN.fault_share, abs=0.03), name
    apart = there["start"] & (given.doped_start != given.start)
    assert apart.sum() / there["start"].sum() == pytest.approx(TRAIN.start_apart, abs=0.05)
    everywhere = np.stack(list(there.values())).mean(axis=0)
    assert 0.0 == everywhere.min() < everywhere.max()  # drawn apart, not all at once


def flat(pairs: int) -> ProjectedPairs:
    dos = np.tile((np.arange(600) < 200).astype(np.float32), (2 * pairs, 1))
    return ProjectedPairs(
        dos, np.ones(2 * pairs), np.zeros(2 * pairs, np.intp), np.arange(2 * pairs), np.full(pairs, 50.0)
    )


def test_the_louder_of_the_two_is_as_loud_as_stated():
    quiet, loud = (
        measure_pairs(
            flat(60),
            Measurement(floor=(0.02, 0.02), noise_ratio=(ratio, ratio)),
            [row_rng("noise", i) for i in range(60)],
        )
        for ratio in (0.25, 4.0)
    )
    inside = slice(10, 80)
    assert np.std(quiet.doped[:, inside]) == pytest.approx(0.25 * np.std(quiet.host[:, inside]), rel=0.1)
    assert np.std(loud.host[:, inside]) == pytest.approx(0.25 * np.std(loud.doped[:, inside]), rel=0.1)
    assert np.std(loud.doped[:, inside]) == pytest.approx(np.std(quiet.host[:, inside]), rel=0.1)


def test_a_pair_that_noise_drowns_is_shown_without():
    narrow = flat(200)
    narrow.dos[:, :] = 0.0
    narrow.dos[:, 190:192] = 1.0
    rngs = [row_rng("drowned", i) for i in range(200)]
    found = measure_pairs(narrow, Measurement(floor=(0.1, 0.1), cut_high=(2.0, 2.0)), rngs)
    assert np.isfinite(found.host).all()
    assert (np.abs(found.doped).max(axis=1) < 400.0).all()


# the network


@pytest.fixture(scope="module")
def pair():
    """The same network with and without a head for what is not in the list."""
    torch.manual_seed(0)
    plain = build_model("DefectNet", net={**TINY_NETS["DefectNet"], "something_else": False}).eval()
    return plain, able_to(plain, ["something_else"]).eval()


def test_the_head_changes_nothing_else(pair, random_batch):
    plain, able = pair
    batch = random_batch(8)
    old, new = plain(batch), able(batch)
    assert old.something_else is None
    torch.testing.assert_close(new.identity_logits, old.identity_logits)
    torch.testing.assert_close(new.concentration_if_present, old.concentration_if_present)
    assert (new.something_else[~batch.candidates_given] == ABSENT_LOGIT).all()
    assert (new.something_else[batch.candidates_given] > ABSENT_LOGIT).all()


def test_it_reads_the_list(pair, random_batch):
    batch = random_batch(8)
    other = batch._replace(candidates=batch.candidates & (torch.arange(62) % 3 > 0))
    given = batch.candidates_given
    assert not torch.allclose(pair[1](batch).something_else[given], pair[1](other).something_else[given])


def test_it_learns_from_named_lists_that_miss_a_dopant(pair, random_batch):
    batch = random_batch(4)
    true = torch.zeros(4, 62)
    true[:, int((~batch.candidates[1] & (batch.composition[1] == 0)).nonzero()[0])] = 0.1
    output = pair[1](batch)._replace(something_else=torch.full((4,), 2.0))
    term = pair[1].loss_terms(output, batch, Targets(true))["something_else"]
    assert term.weight.tolist() == batch.candidates_given.float().tolist()
    missed = (true > 0).logical_and(~batch.candidates).any(dim=1)
    wanted = torch.where(missed, torch.tensor(2.0).neg().exp().log1p(), torch.tensor(2.0).exp().log1p())
    torch.testing.assert_close(term.rows, wanted * batch.candidates_given)
    assert missed[1]
    assert "something_else" not in pair[0].loss_terms(pair[0](batch), batch, Targets(true))


def test_it_is_told_where_elements_are_named(pair, random_batch):
    batch = random_batch(4)
    found = calibrated(pair[1].predict_batch(batch), batch, [Calibration()] * 4, pair[1].expected)
    assert torch.equal(found.something_else.isnan(), ~batch.candidates_given)
    assert ((found.something_else > 0) & (found.something_else < 1))[batch.candidates_given].all()
    assert pair[0].estimate(batch).something_else is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * torch.nan, None),  # where it is not told
        (lambda x: x * torch.inf, "something_else holds NaN or infinity"),
        (lambda x: x[:, None], "something_else has another shape"),
    ],
)
def test_it_stands_in_golden_files(pair, random_batch, tmp_path, change, message):
    folder = save(pair[1], tmp_path / "able", golden=random_batch(3), card="# Able", training={})
    verify(folder)
    path = folder / "golden.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "output.something_else": change(tensors["output.something_else"]).contiguous()}, path)
    with nullcontext() if message is None else pytest.raises(CheckpointError, match=message):
        read_golden(folder)


def test_the_third_leg_runs_through_the_command_line(tmp_path, monkeypatch):
    root = Path(__file__).parents[1] / "configs"
    folder = toy_folder(tmp_path / "toy", train=24, val=24, test=10)
    monkeypatch.chdir(tmp_path)
    main(
        ["fit", "-c", str(root / "debug.yaml"), "-c", str(root / "legs/open-lists.yaml"), f"--data.folder={folder}",
         f"--data.extra={{{folder}: 2}}", "--trainer.fast_dev_run=2", "--model.init_from=defectnet-small"]
    )  # fmt: skip


# the answer


def prediction(**change: Any) -> Prediction:
    fields: dict[str, Any] = {
        "elements": ("Al", "Pb"), "probability": np.array([0.2, 0.96]), "low": np.array([0.0, 0.02]),
        "concentration_if_present": np.array([0.01, 0.067]), "high": np.array([0.02, 0.1]),
        "expected_concentration": np.array([0.002, 0.06]), "coverage": 0.9, "threshold": 0.5,
        "candidates_given": True, "formula": "MgB2", "model": "tiny",
    }  # fmt: skip
    return Prediction(**(fields | change))


def test_nothing_is_said_for_sure_where_something_else_is_likely():
    assert prediction(something_else=0.1).sentence == "MgB2 contains Pb (96%; about 6.7 at.%, 2.0 to 10.0)."
    doubtful = prediction(something_else=0.87).sentence
    assert doubtful == (
        "Something that is not in the list is probably there (87%); of the list: MgB2 may contain Pb (96%; about 6.7 "
        "at.%, 2.0 to 10.0)."
    )
    none = prediction(something_else=0.87, threshold=0.99).sentence
    assert none.startswith("Something that is not in the list is probably there (87%); of the list: no dopant found")
    assert "may contain" in prediction(explained=0.05).sentence
    assert prediction(explained=0.0, threshold=0.99).sentence.endswith(
        "Yet the spectrum has changed by more than noise."
    )


@pytest.mark.parametrize(
    ("explained", "verdict"),
    [(0.9, "explains"), (0.4, "explains part"), (0.1, "does not explain"), (float("nan"), "not known")],
)
def test_verdicts(explained, verdict):
    found = prediction(explained=explained, something_else=0.3)
    assert found.verdict == verdict
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (values["verdict"], values["something_else"]) == (verdict, 0.3)
    assert values["explained"] == (None if np.isnan(explained) else explained)
    assert "something that is not in the list: 30%" in str(found)
    assert (f"{verdict}, {explained:.0%} of the change" in str(found)) is not np.isnan(explained)


def test_an_element_that_is_not_found_has_an_upper_limit():
    lines = str(prediction()).splitlines()
    assert any(line.split()[:1] == ["Pb"] and "2.0 to 10.0" in line for line in lines)
    assert any(line.split()[:1] == ["Al"] and "below 2.0" in line for line in lines)


# goodness of fit


def test_goodness_finds_what_is_explained():
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.standard_normal((3, 5, 256)), axis=2)
    responses = torch.as_tensor(smooth - smooth.mean(axis=2, keepdims=True))
    amounts = torch.tensor([[0.1, 0.0, 0.05, 0.0, 0.0]]).double().expand(3, -1)
    change = (amounts.unsqueeze(1) @ responses).squeeze(1)
    free = torch.full((3, 5), 0.5).double()
    none = torch.zeros(3, 5).double()
    whole = goodness(change, responses, none, free)
    assert (whole.explained > 0.999).all()
    torch.testing.assert_close(whole.predicted, change, atol=1e-4, rtol=0.0)
    assert (goodness(change, responses, none, none).explained < 0.02).all()
    held = goodness(change, responses, none, torch.tensor([0.03, 0.0, 0.05, 0.0, 0.0]).double().expand(3, -1))
    assert (held.explained < 0.99).all()  # amounts stay within their bounds
    noise = torch.as_tensor(rng.standard_normal((3, 256)))
    assert goodness(noise, responses, none, free).explained.isnan().all()
    waves = torch.as_tensor(np.stack([np.sin(np.outer(np.arange(1, 6), np.linspace(0.0, 3.0, 256)))] * 3))
    change = (amounts.unsqueeze(1) @ waves).squeeze(1)
    loud = goodness(change + 1.2 * change.square().mean().sqrt() * noise, waves, none, free)
    assert (loud.explained > 0.88).all()  # what noise leaves, a quarter, is not counted as unexplained


def test_a_bounded_fit_is_that_of_scipy():
    rng = np.random.default_rng(1)
    design, seen = rng.normal(size=(6, 30, 4)), rng.normal(size=(6, 30))
    low, high = np.full((6, 4), -0.05), np.full((6, 4), 0.1)
    gram, overlap = torch.as_tensor(np.einsum("bnk,bnl->bkl", design, design)), np.einsum("bnk,bn->bk", design, seen)
    found = bounded_fit(gram, torch.as_tensor(overlap), torch.as_tensor(low), torch.as_tensor(high)).numpy()
    wanted = [lsq_linear(a, y, (-0.05, 0.1), tol=1e-12).x for a, y in zip(design, seen, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# thresholds and belts


def test_a_threshold_holds_the_stated_rates():
    rng = np.random.default_rng(0)
    undoped, wrong = rng.beta(1, 9, 5000), rng.beta(2, 5, 5000)
    many = rng.integers(1, 7, 5000)
    rows = [Surest(undoped, many, 0.05), Surest(np.where(many == 1, wrong**0.5, wrong), many, 0.1)]
    threshold = quiet_threshold(rows, 2, 62)
    assert 0.06 < (wrong[many > 1] >= threshold).mean() < 0.1
    assert (undoped >= threshold).mean() < 0.05
    single = quiet_threshold(rows, 1)
    assert single > threshold
    assert 0.05 < (rows[1].probability[many == 1] >= single).mean() < 0.1
    assert quiet_threshold([Surest(0.1 * undoped, many, 0.05)], 1) == pytest.approx(UNSURE)


def draw(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, ...]:
    """Dopants whose predictions are drawn to the middle, more so where there is one alone."""
    number = rng.integers(1, 5, rows)
    true = np.exp(rng.uniform(np.log(0.002), np.log(0.25), rows))
    alone = np.where(number == 1, -0.4, 0.1)
    predicted = np.exp(0.6 * np.log(true) + 0.4 * np.log(0.02) + alone + 0.4 * rng.standard_normal(rows))
    expected = number + 0.5 * rng.standard_normal(rows)
    return predicted, true, predicted > 0.02, np.clip(expected, 0.0, 62.0), number


def test_belts_cover_alike_at_small_and_large_amounts():
    rng = np.random.default_rng(0)
    belts = fit_belts(*draw(rng, 6000), True, 0.9)
    assert {belt.found for belt in belts} == {True, False}
    predicted, true, found, expected, number = draw(rng, 6000)
    ends = [
        belt_of(belts, True, bool(f), float(e)).ends(np.array([p]))
        for p, f, e in zip(predicted, found, expected, strict=True)
    ]
    low, high = np.array(ends)[..., 0].T
    inside = (low <= true) & (true <= high)
    for part in (true < 0.01, (true >= 0.01) & (true < 0.05), true >= 0.05, number == 1, number == 2, number >= 3):
        assert inside[part].mean() == pytest.approx(0.9, abs=0.05)
    assert (low[~found] == 0).all()
    assert (low[found & (true > 0.05)] > 0).mean() > 0.5
    assert ((low <= predicted) & (predicted <= high)).all()
    assert belt_of(belts, False, True, 1.0) is None


def test_belts_travel_as_json_and_are_checked():
    belt = Belt(True, True, 2.0, (0.01, 0.1), (0.005, 0.02), (0.02, 0.1))
    calibration = Calibration(interval=Interval(0.9, 0.01, 0.5, (belt,)))
    plain = json.loads(json.dumps(calibration.to_dict()))
    assert Calibration.from_dict(plain) == calibration
    assert "belts" not in Calibration(interval=Interval(0.9, 0.01)).to_dict()["interval"]
    for wrong in ({"most": [0.1, 0.02]}, {"least": [0.1]}, {"true": []}, {"dopants": -1.0}, {"true": [0.0, 0.1]}):
        with pytest.raises(ConfigError, match=r"interval.belts"):
            Belt.from_dict({**belt.to_dict(), **wrong}, where="interval.belts")
    low, high = calibration.interval.ends(np.array([0.03, 0.03]), np.array([0.9, 0.1]), 0.5, named=True)
    assert low[0] > 0.01
    assert high[1] == pytest.approx(0.03 + 0.01 + 0.5 * 0.03)  # the band, where there is no belt


def test_calibration_takes_thresholds_from_questions_without_a_dopant(pair, random_batch):
    from defectnet.models.answers import Answers

    able = pair[1]

    def answers(seed: int, share: float, *, inside: bool) -> Answers:
        batch = random_batch(100, seed)
        batch = batch._replace(candidates_given=torch.ones(100, dtype=torch.bool))
        output = able.predict_batch(batch, precision=32)
        rng = torch.Generator().manual_seed(seed)
        chosen = (torch.rand(100, 62, generator=rng) < share) & (batch.candidates if inside else ~batch.candidates)
        true = chosen * 0.1
        return Answers(output, able.expected(output), batch, Targets(true))

    known = {"candidates": answers(1, 0.3, inside=True)}
    nothing = {"candidates": [answers(2, 0.0, inside=True), answers(3, 0.2, inside=False)]}
    found = fit_calibration(known, 0.9, nothing)
    for part, rate in zip(nothing["candidates"], (0.05, 0.1), strict=True):
        logits = part.output.identity_logits.double() / found.temperature_candidates
        limit = torch.tensor([found.threshold(True, n) for n in part.batch.candidates.sum(dim=1).tolist()])
        assert (torch.sigmoid(logits).amax(dim=1) >= limit).double().mean() <= rate
    assert found.interval.belts
    assert not fit_calibration(known, 0.9).interval.belts
