"""Measured responses: known answers, what lies outside, and the way through files and the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from defectnet.batch import Batch, Targets
from defectnet.config import MODEL_GRID
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import ConfigError
from defectnet.hub import load, save
from defectnet.lab.jobs import TrainingSettings
from defectnet.models.calibration import Calibration, HostCalibration
from defectnet.models.goodness import bounded_fit
from defectnet.models.measured import CURVED, FEWEST, MeasuredResponses, same_host, saturated

DOPANTS = ("Al", "In", "P")
X = torch.as_tensor(MODEL_GRID.centres, dtype=torch.float32)


def bump(centre, width=0.05):
    return torch.exp(-0.5 * ((X - centre) / width) ** 2)


def hosts():
    """Return the DOS of two crystals, (2, L), unit area."""
    curves = torch.stack([bump(0.4, 0.12) + bump(0.85, 0.08), bump(0.25, 0.1) + bump(0.7, 0.1) + bump(0.95, 0.03)])
    curves = curves + 0.2  # room for noise
    return curves / (curves.sum(1, keepdim=True) * MODEL_GRID.width)


def responses():
    """Return what each of `DOPANTS` changes, (3, L); no area is gained."""
    return torch.stack([8 * (bump(1.2) - bump(0.8)), 6 * (bump(0.3) - bump(0.45)), 9 * (bump(1.05) - bump(0.9))])


def pairs(rows, seed=0, host=0, noise=0.002, formula="GaAs", dopants=DOPANTS, saturation=0.0):
    """Return pairs of one host with one or two dopants each, all asked for with two that are never there."""
    rng = np.random.default_rng(seed)
    amount = np.zeros((rows, len(DOPANTS)))
    for row in amount:
        chosen = rng.choice(len(dopants), size=1 + int(rng.random() < 0.4), replace=False)
        row[[DOPANTS.index(dopants[k]) for k in chosen]] = rng.uniform(0.01, 0.1, len(chosen))
    pristine = hosts()[host].repeat(rows, 1)
    doped = pristine + saturated(torch.as_tensor(amount, dtype=torch.float32), saturation) @ responses()
    doped = (doped + noise * torch.as_tensor(rng.normal(size=doped.shape), dtype=torch.float32)).clamp_min(0.0)
    composition, concentration = torch.zeros(rows, len(VOCABULARY)), torch.zeros(rows, len(VOCABULARY))
    composition[:, [INDEX[e] for e in {"GaAs": ("Ga", "As"), "ZnTe": ("Zn", "Te")}[formula]]] = 0.5
    concentration[:, [INDEX[e] for e in DOPANTS]] = torch.as_tensor(amount, dtype=torch.float32)
    candidates = torch.zeros(rows, len(VOCABULARY), dtype=torch.bool)
    candidates[:, [INDEX[e] for e in (*DOPANTS, "Be", "Sb")]] = True
    batch = Batch(
        host=pristine,
        doped=doped,
        edge_mev=torch.full((rows,), 33.0),
        composition=composition,
        candidates=candidates,
        candidates_given=torch.ones(rows, dtype=torch.bool),
        kind=torch.zeros(rows, dtype=torch.long),
    )
    return batch, Targets(concentration)


def error(model, batch, targets):
    expected = model.expected(model.predict_batch(batch))
    return 100 * float((expected - targets.true_concentration).abs()[batch.candidates].mean())


@pytest.fixture
def inner(tiny_model):
    return tiny_model("DefectNet")


@pytest.fixture
def measured(inner):
    return MeasuredResponses.fit(inner, *pairs(20))


def test_linear_responses_are_found(inner, measured):
    batch, targets = pairs(30, seed=1)
    assert error(measured, batch, targets) < 0.05 < 1.0 < error(inner, batch, targets)
    output = measured.predict_batch(batch)
    present = targets.true_concentration > 0
    assert (output.identity_logits[present] > 5).all()
    absent = batch.candidates & ~present
    assert (output.identity_logits[absent] < 0).all()


def test_responses_that_saturate_are_found(inner, measured, monkeypatch):
    assert measured.saturation.tolist() == [0.0]
    batch, targets = pairs(30, seed=1, saturation=4.0)
    learnt = pairs(CURVED, saturation=4.0)
    bent = MeasuredResponses.fit(inner, *learnt)
    assert bent.saturation.tolist() == [4.0]
    assert error(bent, batch, targets) < 0.05
    monkeypatch.setattr("defectnet.models.measured.SATURATIONS", (0.0,))
    assert error(MeasuredResponses.fit(inner, *learnt), batch, targets) > 0.1
    # A few pairs do not say whether they bend.
    few = MeasuredResponses.fit(inner, *pairs(CURVED - 1, saturation=4.0))
    assert (few.saturation.tolist(), few.growth.tolist()) == ([0.0], [0.0])


def test_amounts_beyond_those_learnt_are_scaled_no_further(inner):
    batch, targets = pairs(20, saturation=4.0)
    model = MeasuredResponses.fit(inner, batch, targets)
    far = batch._replace(doped=(batch.host + 5.0 * (batch.doped - batch.host)).clamp_min(0.0))
    concentration = model.predict_batch(far).concentration_if_present
    assert torch.isfinite(concentration).all()
    assert concentration.max() <= 0.5
    assert model.most[0] == pytest.approx(float(saturated(targets.true_concentration, 4.0).sum(1).max()), rel=1e-5)


def test_errors_that_grow_with_the_amount_make_traces_sure_and_much_unsure(inner, measured):
    assert measured.growth.tolist() == [0.0]
    batch, targets = pairs(40, noise=0.0)
    rng = torch.Generator().manual_seed(0)
    size = targets.true_concentration.sum(1, keepdim=True)
    noisy = batch._replace(doped=batch.doped + 4.0 * size * torch.randn(batch.doped.shape, generator=rng))
    assert MeasuredResponses.fit(inner, noisy, targets).growth[0] >= 1e3


def test_what_the_network_expects_is_where_measuring_begins(inner, monkeypatch):
    """Few pairs and a right expectation do well; a wrong one is not believed."""
    batch, targets = pairs(30, seed=1)
    alone = error(MeasuredResponses.fit(inner, *pairs(4, noise=0.1)), batch, targets)
    right = torch.zeros(len(VOCABULARY), batch.host.shape[1])
    right[[INDEX[e] for e in DOPANTS]] = responses()
    for factor, pairs_learnt, bound in ((1.0, 4, 0.5 * alone), (-1.0, 20, 0.05)):
        monkeypatch.setattr(
            type(inner), "expected_responses", lambda _, b, f=factor: f * right.expand(len(b.host), -1, -1)
        )
        noise = 0.1 if factor > 0 else 0.002
        assert error(MeasuredResponses.fit(inner, *pairs(pairs_learnt, noise=noise)), batch, targets) < bound


def test_the_network_says_what_it_expects(inner):
    batch, _ = pairs(3)
    expected = inner.expected_responses(batch)
    assert expected.shape == (3, len(VOCABULARY), batch.host.shape[1])
    # Of the pair only the host matters.
    again = inner.expected_responses(batch._replace(doped=batch.host, candidates=~batch.candidates))
    assert torch.allclose(expected, again, atol=1e-5)


def test_more_pairs_and_less_noise_are_better(inner):
    batch, targets = pairs(30, seed=1)
    few, many = (error(MeasuredResponses.fit(inner, *pairs(n, noise=0.1)), batch, targets) for n in (5, 40))
    assert many < few
    assert error(MeasuredResponses.fit(inner, *pairs(40, noise=0.01)), batch, targets) < many


def test_noise_makes_a_trace_doubtful(inner):
    batch, targets = pairs(1, seed=3, noise=0.0)
    trace = batch._replace(doped=batch.host + 0.02 * (batch.doped - batch.host))
    sure, unsure = (
        MeasuredResponses.fit(inner, *pairs(20, noise=noise))
        .predict_batch(trace)
        .identity_logits[targets.true_concentration > 0]
        for noise in (0.001, 0.3)
    )
    assert unsure.max() < 0.0 < sure.max()


def test_other_hosts_get_the_answer_of_the_network_inside(inner, measured):
    for batch, _ in (pairs(4, host=1), pairs(4, formula="ZnTe")):
        assert (measured.host_of(batch) == -1).all()
        for mine, its in zip(measured.predict_batch(batch)[:2], inner.predict_batch(batch)[:2], strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=0)
    neutron = pairs(4)[0]._replace(kind=torch.ones(4, dtype=torch.long))
    assert (measured.host_of(neutron) == -1).all()


def test_every_answer_says_which_way_it_came_about_and_why_not_the_better_one(measured):
    known, other, neutron = pairs(1)[0], pairs(1, formula="ZnTe")[0], pairs(1)[0]
    changed = pairs(1, host=1)[0]
    neutron = neutron._replace(kind=torch.ones(1, dtype=torch.long))
    batch = Batch.join([known, other, neutron, changed])
    found = measured.provenance(batch)
    assert [part.answered_by for part in found] == ["measured responses", "network", "network", "network"]
    assert found[0].reason == "no pair of this host held Be, Sb: of these the network answers"
    assert found[1].reason == "no responses were measured of ZnTe, only of GaAs"
    assert found[2].reason == "responses of GaAs were measured on total DOS, this one is neutron-weighted"
    assert found[3].reason.startswith("host not recognised: its spectrum differs by 0.")
    blind = known._replace(candidates=known.composition == 0)
    assert "the 57 other elements" in measured.provenance(blind)[0].reason
    alone = known._replace(candidates=known.candidates & (measured.counts[0] > 0))
    assert measured.provenance(alone)[0].reason == ""


def test_the_calibration_of_a_host_is_that_of_no_other(inner, measured):
    general, own = Calibration(temperature_candidates=2.0), Calibration(temperature_candidates=0.5)
    measured.calibration = replace(general, hosts=(HostCalibration("GaAs", "total", own, measured=0),))
    inner.calibration = general
    other, known = pairs(4, formula="ZnTe")[0], pairs(4, seed=3)[0]
    assert torch.equal(measured.estimate(other).probability, inner.estimate(other).probability)
    logits = measured.predict_batch(known).identity_logits.double()
    torch.testing.assert_close(measured.estimate(known).probability, torch.sigmoid(logits / 0.5))
    # A crystal of the same formula whose spectrum is another one's is not recognised, and not calibrated as if it were.
    foreign = pairs(4, host=1)[0]
    assert torch.equal(measured.estimate(foreign).probability, inner.estimate(foreign).probability)


def test_two_hosts_are_kept_apart(inner):
    first, second = pairs(8), pairs(8, host=1, seed=5, formula="ZnTe")
    both = Batch.join([first[0], second[0]])
    model = MeasuredResponses.fit(inner, both, Targets(torch.cat([first[1][0], second[1][0]])))
    assert model.net.hosts == 2
    assert model.host_of(both).tolist() == [0] * 8 + [1] * 8
    alone = MeasuredResponses.fit(inner, *first)
    batch, _ = pairs(5, seed=9)
    for a, b in zip(model.predict_batch(batch)[:2], alone.predict_batch(batch)[:2], strict=True):
        torch.testing.assert_close(a, b)


def test_a_dopant_that_was_never_there_is_less_probable_not_impossible(inner, measured):
    batch, _ = pairs(5, seed=2)
    new, old = INDEX["Be"], inner.predict_batch(batch).identity_logits[:, INDEX["Be"]]
    mine = measured.predict_batch(batch)
    assert (mine.identity_logits[:, new] < old).all()
    assert (mine.identity_logits[:, new] > old - 10).all()


def test_answers_do_not_depend_on_what_else_is_in_the_batch(measured):
    batch, _ = pairs(7, seed=4)
    together = measured.predict_batch(batch)
    for row in range(7):
        alone = measured.predict_batch(batch.rows(slice(row, row + 1)))
        for a, b in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(a[0], b[row])


def test_elements_that_are_not_asked_for_say_nothing(measured):
    batch, _ = pairs(6, seed=4)
    batch.candidates[:, INDEX["In"]] = False
    output = measured.predict_batch(batch)
    assert (output.identity_logits[:, INDEX["In"]] == -30).all()
    assert (output.concentration_if_present[:, INDEX["In"]] == 0).all()


def test_pairs_without_any_dopant_are_answered(inner):
    batch, targets = pairs(6)
    model = MeasuredResponses.fit(inner, batch._replace(doped=batch.host), Targets(0 * targets.true_concentration))
    assert torch.isfinite(model.predict_batch(batch).identity_logits).all()


def test_too_few_pairs_are_refused(inner, tiny_model):
    with pytest.raises(ConfigError, match=f"no host has {FEWEST} pairs"):
        MeasuredResponses.fit(inner, *pairs(FEWEST - 1))
    with pytest.raises(ConfigError, match="PaperDefectNet cannot answer"):
        MeasuredResponses.fit(tiny_model("PaperDefectNet"), *pairs(8))


def test_nothing_measured_is_trained_further(measured):
    with pytest.raises(ConfigError, match="not trained further"):
        measured.forward_training(*pairs(2))


def test_a_checkpoint_like_any_other(measured, tmp_path):
    batch, _ = pairs(3, seed=8)
    save(measured, tmp_path / "mine", golden=batch, card="# mine", training={})
    again = load(tmp_path / "mine")
    for a, b in zip(again.predict_batch(batch)[:2], measured.predict_batch(batch)[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["net"]["inner"] == "DefectNet"


@pytest.mark.parametrize("net", [{"inner": "os.system"}, {"hosts": -1}, {"inner_net": 3}, {"inner_net": {"depth": 3}}])
def test_a_damaged_config_is_refused(net):
    with pytest.raises(ConfigError):
        MeasuredResponses.from_config(MeasuredResponses().spec.to_dict(), net)


def test_nonnegative_least_squares_is_that_of_scipy():
    rng = np.random.default_rng(0)
    design, seen = rng.normal(size=(20, 30, 6)), rng.normal(size=(20, 30))
    gram = torch.as_tensor(np.einsum("bnk,bnl->bkl", design, design))
    overlap = torch.as_tensor(np.einsum("bnk,bn->bk", design, seen))
    found = bounded_fit(gram, overlap, torch.zeros_like(overlap), torch.inf).numpy()
    assert np.allclose(found, [nnls(a, y)[0] for a, y in zip(design, seen, strict=True)], atol=1e-6)


def test_hosts_are_told_apart_by_spectrum_formula_and_kind():
    parts = [pairs(2)[0], pairs(2, host=1)[0], pairs(1, formula="ZnTe")[0], pairs(1)[0]]
    parts[3] = parts[3]._replace(kind=torch.ones(1, dtype=torch.long))
    batch = Batch.join(parts)
    assert [group.tolist() for group in same_host(batch)] == [[0, 1], [2, 3], [4], [5]]


def test_several_devices_have_nothing_to_do():
    with pytest.raises(ConfigError, match="devices is 2"):
        TrainingSettings(method="responses", devices=2, accelerator="cpu")
    with pytest.raises(ConfigError, match=r"replay with method responses. It trains nothing; use method full"):
        TrainingSettings(method="responses", replay="data")
