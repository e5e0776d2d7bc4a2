"""From a table of lab spectra to a checkpoint: splits, augmentation, the verdict, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import TINY_NETS, make_random_batch
from defectnet import from_pretrained
from defectnet.batch import Output
from defectnet.cli import main
from defectnet.config import STORAGE_GRID
from defectnet.errors import CheckpointError, ConfigError, LabError
from defectnet.hub import save, verify
from defectnet.io import read_spectrum
from defectnet.lab import virtual
from defectnet.lab.data import Augmentation, EncodedPairs, LabDataModule, Replay
from defectnet.lab.finetune import Holdout, finetune
from defectnet.lab.jobs import TrainingSettings
from defectnet.lab.judge import ask, average_precision, join, judge
from defectnet.lab.report import REPORT, sentence
from defectnet.lab.splits import folds, groups_of, hold_out
from defectnet.lab.table import read_table
from defectnet.lab.virtual import Instrument
from defectnet.models.answers import Answers
from defectnet.models.calibration import Calibration, Interval
from defectnet.models.registry import build_model
from lab_tables import SHARES, write_lab
from make_shards import toy_folder, toy_sample

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION = Calibration(temperature_blind=1.5, interval=Interval(0.9, 0.01, 0.3))
TRAINING = {"edge_mev": [20.0, 30.0], "host_elements": ["Si"]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return write_lab(tmp_path_factory.mktemp("lab"), SHARES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("DefectNet", net=TINY_NETS["DefectNet"])
    model.calibration = CALIBRATION
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    return str(save(model, folder, golden=make_random_batch(2), card="# Tiny", training=TRAINING))


@pytest.fixture(scope="module")
def replay(tmp_path_factory):
    return str(toy_folder(tmp_path_factory.mktemp("toy")))


FAST = TrainingSettings(method="full", epochs=8, learning_rate=1e-2, batch_size=2, accelerator="cpu")
STILL = TrainingSettings(method="full", epochs=1, learning_rate=1e-9, accelerator="cpu")


# Splits


def test_whole_samples_are_held_out(lab):
    pairs = read_table(lab)
    twice = [*pairs, *(replace(pair, line=pair.line + 100) for pair in pairs)]
    samples = [pair.sample for pair in twice]
    out = hold_out(samples, 0.25, seed=0)
    assert len(out) == 6
    assert not {samples[i] for i in out} & {name for i, name in enumerate(samples) if i not in out}
    assert hold_out(samples, 0.25, seed=1) != out


def test_folds_hold_every_pair_once_and_no_group_twice():
    groups = [name for name, size in zip("abcdefg", (5, 1, 1, 1, 2, 2, 4), strict=True) for _ in range(size)]
    parts = folds(groups, 3, seed=0)
    assert sorted(i for part in parts for i in part) == list(range(16))
    assert sorted(map(len, parts)) == [5, 5, 6]
    for one in parts:
        assert not {groups[i] for i in one} & {groups[i] for other in parts if other is not one for i in other}
    for count in (1, 8):
        with pytest.raises(ConfigError, match="folds is"):
            folds(groups, count, seed=0)


def test_hosts_are_held_out_whole_where_there_are_several(lab):
    pairs = read_table(lab)
    assert groups_of(pairs, "auto")[1] == "sample"
    formulas = ("GaAs", "AsGa", "GaP", "CdTe", "Ge", "Si")
    many = [replace(pair, formula=formulas[i % 6]) for i, pair in enumerate(pairs)]
    names, grouping = groups_of(many, "auto")
    assert grouping == "host"
    assert names[0] == names[1] == "As-Ga"
    with pytest.raises(ConfigError, match="group is 'crystal'"):
        groups_of(pairs, "crystal")


# Batches


def test_without_augmentation_a_batch_is_what_predict_sees(lab, checkpoint):
    pairs = EncodedPairs(read_table(lab))
    item = pairs.augmented([3, 1], Augmentation(share=0.0, blend=0.0), (0, 0), "blind")
    answer = from_pretrained(checkpoint).predict(lab / "host.csv", lab / "s3.csv", "GaAs")
    output = from_pretrained(checkpoint).predict_batch(item.batch)
    logits = output.identity_logits[0][item.batch.candidates[0]] / CALIBRATION.temperature_blind
    np.testing.assert_allclose(answer.probability, torch.sigmoid(logits).double(), atol=1e-6)
    assert item.targets.true_concentration[0].sum().item() == pytest.approx(SHARES[3])


def test_augmentation_is_small_seeded_and_new_in_every_epoch(lab):
    pairs = EncodedPairs(read_table(lab))
    plain = pairs.item(range(12), "candidates").batch
    first, again, later = (
        pairs.augmented(range(12), Augmentation(share=1.0), (0, epoch), "mixed").batch for epoch in (0, 0, 1)
    )
    assert torch.equal(first.doped, again.doped)
    assert torch.equal(first.candidates, again.candidates)
    assert not torch.equal(first.doped, later.doped)
    assert not torch.equal(first.candidates, later.candidates)
    width = pairs.grid.width
    for curve in (first.host, first.doped):
        assert torch.allclose(curve.sum(dim=1) * width, torch.ones(12), atol=1e-4)
    assert 0.0 < (first.doped - plain.doped).abs().sum(dim=1).max() * width / 2 < 0.25
    assert (first.edge_mev / plain.edge_mev - 1.0).abs().max() < 0.08
    # A pair comes out the same whatever it is batched with.
    alone = pairs.augmented([5], Augmentation(share=1.0), (0, 0), "mixed").batch
    assert torch.equal(alone.doped[0], first.doped[5])


def test_an_augmentation_of_nothing_changes_next_to_nothing(lab):
    pairs = EncodedPairs(read_table(lab))
    none = Augmentation(share=1.0, blend=0.0, broadening=0.0, noise=0.0, energy_scale=0.0)
    changed, plain = pairs.augmented(range(12), none, (0, 0), "blind").batch, pairs.item(range(12), "blind").batch
    # It passes through the grid on which data sets are stored.
    assert ((changed.doped - plain.doped).abs().sum(dim=1) * pairs.grid.width / 2).max() < 0.03


def test_a_blend_holds_what_its_parts_hold(lab):
    pairs = EncodedPairs(read_table(lab))
    assert [len(partners) for partners in pairs.partners] == [len(pairs) - 1] * len(pairs)
    only = Augmentation(share=0.0, blend=1.0, broadening=0.0, noise=0.0, energy_scale=0.0)
    item = pairs.augmented(range(12), only, (0, 0), "candidates")
    said = item.targets.true_concentration.sum(dim=1)
    assert (said > 0).all()
    assert not torch.allclose(said, torch.tensor(SHARES))
    # The area of the local mode, which lies above all else of the host, is linear in the concentration of a table row.
    above = torch.as_tensor(pairs.grid.centres) * item.batch.edge_mev[0] > 40.0
    slope = [
        (batch.doped - batch.host)[:, above].sum(dim=1) / concentration
        for batch, concentration in ((item.batch, said), (pairs.batch, pairs.targets.true_concentration.sum(dim=1)))
    ]
    assert slope[0].mean().item() == pytest.approx(slope[1].mean().item(), rel=0.1)


def test_a_blend_keeps_to_the_candidates_and_the_host(lab):
    table = read_table(lab)
    table[0] = replace(table[0], candidates=("In", "P"), dopants={"In": 0.01})
    table[1] = replace(table[1], formula="InP", dopants={"Al": 0.03})
    pairs = EncodedPairs(table)
    assert pairs.partners[0] == []
    assert pairs.partners[1] == []
    assert set(pairs.partners[2]) == set(range(len(pairs))) - {1, 2}


def test_named_candidates_are_what_is_asked(lab):
    pairs = [replace(pair, candidates=("Al", "In", "P")) for pair in read_table(lab)]
    asked = EncodedPairs(pairs).item(range(12), "candidates").batch
    assert asked.candidates.sum(dim=1).tolist() == [3] * 12
    assert EncodedPairs(pairs).item(range(12), "blind").batch.candidates.sum(dim=1).tolist() == [60] * 12


def test_replayed_rows_make_up_their_share(lab, replay):
    data = LabDataModule(lab, batch_size=4, replay=Replay(replay, 0.5), validation=0.0)
    items = list(data.train_dataloader())
    assert len(items) == 3
    for item in items:
        assert (item.rows >= 0).sum() == (item.rows < 0).sum() == 4
        assert item.weight.sum().item() == pytest.approx(1.0)
    assert "projected" in data.spec.kinds
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match=r"replay\.share is"):
            Replay(replay, share)


# The verdict


def answers_of(pairs, error, seed=0, shift=0.0):
    """Answers to candidate questions whose concentrations err by a normal number of this size."""
    item = EncodedPairs(pairs).item(range(len(pairs)), "candidates")
    rng = torch.Generator().manual_seed(seed)
    noise = error * torch.randn(len(pairs), 62, generator=rng).abs() + shift
    logits = torch.where(item.targets.present, 20.0, -20.0)
    amount = torch.where(item.targets.present, (item.targets.true_concentration + noise).clamp(0.0, 0.5), 0.0)
    return {"candidates": Answers(Output(logits, amount), torch.sigmoid(logits) * amount, item.batch, item.targets)}


def verdict(pairs, before, after):
    return judge(before, after, [pair.sample for pair in pairs])


def test_a_better_network_is_called_better_and_a_worse_one_worse(lab):
    pairs = read_table(lab)
    good, bad = answers_of(pairs, 0.01), answers_of(pairs, 0.05, seed=1)
    judged = verdict(pairs, bad, good)
    assert judged.verdict == "improved"
    assert judged.difference["candidates/mae"].high < 0.0
    assert judged.difference["candidates/mae"].value == pytest.approx(
        judged.after["candidates/mae"].value - judged.before["candidates/mae"].value
    )
    assert verdict(pairs, good, bad).verdict == "worse"
    assert verdict(pairs, good, good).verdict == "not distinguishable"


def test_chance_is_seldom_called_better(lab):
    """Two networks of the same quality: at most 5 % of the verdicts may be wrong, with some room for 60 tries."""
    pairs = read_table(lab)
    said = [
        verdict(pairs, answers_of(pairs, 0.03, 2 * i), answers_of(pairs, 0.03, 2 * i + 1)).verdict for i in range(60)
    ]
    assert said.count("improved") <= 6
    assert said.count("not distinguishable") >= 50


def test_four_samples_never_suffice(lab):
    pairs = read_table(lab)
    for count, wanted in ((4, "not distinguishable"), (5, "improved")):
        judged = verdict(pairs[:count], answers_of(pairs[:count], 0.0, shift=0.1), answers_of(pairs[:count], 0.0))
        assert judged.verdict == wanted
        assert judged.p_better == pytest.approx(2.0**-count)


def test_lost_identification_is_worse_whatever_the_concentrations(lab):
    pairs = read_table(lab)
    before, after = answers_of(pairs, 0.1), answers_of(pairs, 0.0)
    output = after["candidates"].output
    turned = {"candidates": after["candidates"]._replace(output=output._replace(identity_logits=torch.zeros(12, 62)))}
    assert verdict(pairs, before, turned).verdict == "worse"


def test_average_precision_is_that_of_torchmetrics():
    from torchmetrics.functional.classification import binary_average_precision

    rng = np.random.default_rng(0)
    score, present = np.round(rng.standard_normal(300), 1), rng.random(300) < 0.2
    counts = np.stack([np.ones(300), rng.integers(0, 4, 300).astype(float)])
    found = average_precision(score, present, counts)
    for weight, value in zip(counts.astype(int), found, strict=True):
        repeated = np.repeat(score, weight), np.repeat(present, weight)
        probability = torch.sigmoid(torch.from_numpy(repeated[0]))
        wanted = binary_average_precision(probability, torch.from_numpy(repeated[1]).long())
        assert value == pytest.approx(wanted.item(), abs=1e-6)
    assert np.isnan(average_precision(score, np.zeros(300, dtype=bool), counts)).all()


def test_answers_of_folds_come_back_in_order(lab, checkpoint):
    pairs, model = read_table(lab), from_pretrained(checkpoint)
    encoded = EncodedPairs(pairs)
    whole = ask(model, encoded)
    parts = [[7, 2, 4], [0, 1, 3, 5, 6, 8, 9, 10, 11]]
    joined = join([(part, ask(model, encoded.take(part))) for part in parts])
    for track, found in whole.items():
        assert torch.equal(joined[track].output.identity_logits, found.output.identity_logits)
        assert torch.equal(joined[track].batch.candidates, found.batch.candidates)
        assert torch.equal(joined[track].targets.true_concentration, found.targets.true_concentration)


# The whole


@pytest.fixture(scope="module")
def improved(lab, checkpoint, tmp_path_factory):
    """An untrained network gains from anything."""
    out = tmp_path_factory.mktemp("improved") / "mine"
    return out, finetune(checkpoint, lab, out, FAST, Holdout(folds=2))


def test_a_better_network_is_written_as_a_checkpoint_like_any_other(improved, checkpoint, lab):
    out, report = improved
    assert report["verdict"] == "improved"
    assert report["kept"] == "after"
    verify(out)
    model = from_pretrained(out)
    start = from_pretrained(checkpoint)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert model.spec.kinds == ("total",)
    assert {"Si", "Ga", "As"} == set(model.training_info["host_elements"])
    assert model.training_info["edge_mev"][1] > 30.0
    assert model.training_info["finetuning"]["checkpoint"] == "tiny"
    assert not [text for text in model.predict(lab / "host.csv", lab / "s1.csv", "GaAs").warnings if "domain" in text]
    assert sorted(path.name for path in out.parent.iterdir()) == ["mine", "mine-logs"]


def test_the_report_stands_in_the_folder_and_on_the_card(improved):
    out, report = improved
    assert json.loads((out / REPORT).read_text(encoding="utf-8")) == report
    card = (out / "README.md").read_text(encoding="utf-8")
    assert sentence(report) in card
    assert f"{report['held_out']['after']['candidates/mae']['value']:.3f}" in card
    assert "| MAE (at.%), blind |" in card
    assert report["pairs_held_out"] == 12
    assert report["folds"] == 2


def test_a_calibration_that_few_pairs_cannot_give_is_taken_over_and_marked(improved, lab):
    out, report = improved
    assert report["calibration"]["fitted"] is False
    model = from_pretrained(out)
    assert model.calibration == CALIBRATION
    (warning,) = model.predict(lab / "host.csv", lab / "s1.csv", "GaAs").warnings
    assert warning.endswith("are those of the weights before fine-tuning")
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "taken over from tiny: 12 held-out pairs are too few" in card


def test_a_calibration_is_fitted_where_there_are_enough_pairs(checkpoint, tmp_path):
    lab = write_lab(tmp_path / "lab", [*SHARES, *(0.9 * share for share in SHARES)])
    report = finetune(checkpoint, lab, tmp_path / "out", replace(FAST, epochs=4), Holdout(folds=2))
    assert report["calibration"]["fitted"] is True
    model = from_pretrained(tmp_path / "out")
    assert replace(model.calibration, hosts=()) == CALIBRATION  # which other hosts keep
    (host,) = model.calibration.hosts
    assert (host.formula, host.kind, host.measured) == ("GaAs", "total", -1)
    assert host.numbers.interval.coverage == 0.9
    assert host.numbers.interval != CALIBRATION.interval
    inside = model.predict(lab / "host.csv", lab / "s1.csv", "GaAs")
    assert not [text for text in inside.warnings if "before fine-tuning" in text]
    assert inside.threshold == host.numbers.threshold_blind
    assert inside.reason == "fine-tuned on pairs of GaAs"
    outside = model.predict(lab / "host.csv", lab / "s1.csv", "InP")
    assert outside.threshold == CALIBRATION.threshold_blind
    assert outside.reason == "fine-tuned on pairs of GaAs, not of this host"


@pytest.mark.parametrize("method", ["responses", "full"])
def test_a_table_and_a_checkpoint_are_read_once(checkpoint, lab, tmp_path, monkeypatch, method):
    import defectnet.hub.io
    import defectnet.lab.finetune as command
    import defectnet.lab.table

    calls = []

    def counted(name, function):
        return lambda *words, **more: (calls.append(name), function(*words, **more))[1]

    monkeypatch.setattr(command, "read_table", counted("table", command.read_table))
    monkeypatch.setattr(defectnet.lab.table, "read_spectrum", counted("spectrum", read_spectrum))
    monkeypatch.setattr(command, "load", counted("start", command.load))
    monkeypatch.setattr(defectnet.hub.io, "load", counted("written", defectnet.hub.io.load))
    finetune(checkpoint, lab, tmp_path / "out", replace(STILL, method=method), Holdout(folds=2))
    # Twelve samples of one host; what was written is read back once.
    assert {name: calls.count(name) for name in set(calls)} == {"table": 1, "spectrum": 13, "start": 1, "written": 1}


def test_a_network_that_is_not_better_is_not_kept(checkpoint, lab, tmp_path):
    report = finetune(checkpoint, lab, tmp_path / "out", STILL, Holdout(folds=2))
    assert report["verdict"] == "not distinguishable"
    assert report["kept"] == "before"
    model, start = from_pretrained(tmp_path / "out"), from_pretrained(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert model.calibration == CALIBRATION
    assert model.training_info["edge_mev"] == TRAINING["edge_mev"]
    assert "cannot be told from tiny" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_measured_responses_are_a_method_of_the_command(checkpoint, lab, tmp_path, capsys):
    out = tmp_path / "mine"
    words = ["finetune", "--checkpoint", str(checkpoint), "--data", str(lab), "--logger", "none"]
    main([*words, "--out", str(out)])
    captured = capsys.readouterr()
    said = captured.out
    assert captured.err.splitlines() == [f"fold {i + 1} of 4: measuring responses" for i in range(4)]
    assert "Fine-tuning improved" in said
    assert "the network inside is the same" in " ".join(said.split())
    verify(out)
    found = from_pretrained(out).predict(lab / "host.csv", lab / "s8.csv", "GaAs", candidates=["Al", "P"])
    assert found.concentration_if_present[found.elements.index("Al")] == pytest.approx(SHARES[8], rel=0.1)
    with pytest.raises(SystemExit):
        main([*words[:2], str(out), *words[3:], "--out", str(tmp_path / "again")])
    assert "MeasuredResponses cannot answer" in capsys.readouterr().err


def test_what_is_said_of_other_crystals_is_what_was_said_before(tmp_path):
    """A calibration fitted to two hosts once turned "Zn (56 %)" into "Zn (100 %)" for a third."""
    examples = ROOT / "examples"
    report = finetune("defectnet-small", examples / "lab", tmp_path / "mine", logger="none")
    assert report["calibration"]["fitted"] is True
    assert "is at its bound" in report["calibration"]["says"]  # no held-out answer is wrong
    before, after = from_pretrained("defectnet-small"), from_pretrained(tmp_path / "mine")
    question = (examples / "host.csv", examples / "doped.csv", "CdTe", ["Hg", "Mn", "Se", "Zn"])
    old, new = (model.predict_many([question])[0] for model in (before, after))
    for name in ("probability", "concentration_if_present", "low", "high", "expected_concentration"):
        np.testing.assert_array_equal(getattr(new, name), getattr(old, name))
    assert (new.threshold, new.coverage, new.warnings) == (old.threshold, old.coverage, old.warnings)
    assert (new.answered_by, new.reason) == ("network", "no responses were measured of CdTe, only of Si, MgB2")
    inside = after.predict(
        examples / "lab" / "MgB2.csv", examples / "lab" / "MgB2-Al-08.csv", "MgB2", candidates=["Al"]
    )
    assert (inside.answered_by, inside.present) == ("measured responses", ("Al",))
    assert any("is at its bound" in text for text in inside.warnings)


def test_responses_of_hosts_with_few_pairs_are_refused_before_any_work(checkpoint, tmp_path):
    lab = write_lab(tmp_path / "lab", SHARES[:4])
    with pytest.raises(ConfigError, match="no host has 4 pairs"):
        finetune(checkpoint, lab, tmp_path / "mine", TrainingSettings(method="responses"))
    assert [path.name for path in tmp_path.iterdir()] == ["lab"]


def test_forgetting_is_measured_where_simulated_rows_are_at_hand(checkpoint, lab, tmp_path, replay):
    training = replace(FAST, replay=replay, learning_rate=3e-3)
    report = finetune(checkpoint, lab, tmp_path / "out", training, Holdout(folds=1, share=0.5))
    assert report["kept"] == "after"
    assert report["forgetting"]["rows"] == 4
    assert report["forgetting"]["before"] != report["forgetting"]["after"]
    assert report["settings"]["replay"] == Path(replay).name
    assert from_pretrained(tmp_path / "out").spec.kinds == ("total", "neutron-weighted", "projected")


def test_the_command_prints_before_and_after(checkpoint, lab, tmp_path, capsys):
    words = ["finetune", "--checkpoint", checkpoint, "--data", str(lab), "--out", str(tmp_path / "out")]
    words += ["--method", "full", "--logger", "csv"]
    main([*words, "--epochs", "1", "--learning-rate", "1e-9", "--folds", "2", "--accelerator", "cpu"])
    captured = capsys.readouterr()
    printed = captured.out
    lines = captured.err.splitlines()
    assert lines[0] == f"training is noted in {tmp_path / 'out-logs'} (csv)"
    assert [line.partition(", ")[0] for line in lines[1:]] == [f"fold {i} of 2: epoch 1 of 1" for i in (1, 2)]
    noted = (tmp_path / "out-logs" / "fold-2-of-2" / "version_0" / "metrics.csv").read_text(encoding="utf-8")
    assert noted.startswith("epoch,step,train/loss")
    assert printed.startswith("On 12 held-out pairs of 12 samples the fine-tuned network cannot be told from tiny")
    assert "before" in printed
    assert "MAE (at.%), candidates given" in printed
    main([*words, "--epochs", "1", "--folds", "2", "--accelerator", "cpu", "--json"])
    assert json.loads(capsys.readouterr().out)["schema"] == 1


WRONG = {
    "method": ({"method": "lora"}, {}, "method is 'lora'"),
    "gone": ({"method": "gradual"}, {}, "method is 'gradual'. Use responses or full"),
    "epochs": ({"epochs": 0}, {}, "epochs is 0"),
    "rate": ({"learning_rate": -1.0}, {}, "learning_rate is -1"),
    "ema": ({"ema": 1.0}, {}, "ema is 1"),
    "precision": ({"precision": "16"}, {}, "precision is '16'"),
    "accelerator": ({"accelerator": "abacus"}, {}, "accelerator is 'abacus'"),
    "no GPU": ({"method": "full", "accelerator": "gpu", "devices": 1000}, {}, "devices is 1000, with [0-9]+ GPUs"),
    "replay": ({"method": "full", "replay": "nowhere"}, {}, "replay folder nowhere does not exist"),
    "holdout": ({}, {"share": 1.0}, "holdout.share is 1.0"),
    "folds": ({}, {"folds": 13}, "folds is 13, with 12 groups"),
    "group": ({}, {"group": "crystal"}, "group is 'crystal'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_setting_is_one_clear_error_before_any_work(name, checkpoint, lab, tmp_path):
    training, holdout, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        finetune(checkpoint, lab, tmp_path / "out", TrainingSettings(**training), Holdout(**holdout))
    assert list(tmp_path.iterdir()) == []


def test_what_stands_in_the_way_is_not_overwritten(checkpoint, lab, tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        finetune(checkpoint, lab, tmp_path)
    with pytest.raises(CheckpointError, match="is the checkpoint to start from"):
        finetune(checkpoint, lab, checkpoint)
    (tmp_path / ".out.run").mkdir()
    (tmp_path / ".out.run" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is no unfinished fine-tuning"):
        finetune(checkpoint, lab, tmp_path / "out")
    assert (tmp_path / ".out.run" / "mine").is_file()


def test_an_interrupted_run_goes_on_and_that_of_other_data_begins_anew(checkpoint, lab, tmp_path, monkeypatch):
    import defectnet.lab.jobs as jobs

    runs, finished = [], jobs.run

    def interrupted(job, log):
        if len(runs) == 1:
            raise KeyboardInterrupt
        runs.append(job.pairs.pairs)
        finished(job, log)

    monkeypatch.setattr(jobs, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(checkpoint, lab, tmp_path / "out", STILL, Holdout(folds=2))
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith("-logs")] == [".out.run"]
    monkeypatch.setattr(jobs, "run", lambda job, log: (runs.append(job.pairs.pairs), finished(job, log)))
    finetune(checkpoint, lab, tmp_path / "out", STILL, Holdout(folds=2))
    assert len(runs) == 2
    assert sorted(pair.line for run in runs for pair in run) == list(range(2, 14))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-logs"]


# The example


def test_the_example_table_is_good():
    pairs = read_table(ROOT / "examples" / "lab")
    assert len(pairs) >= 20
    assert {pair.host.kind for pair in pairs} == {"neutron-weighted"}
    assert sum(path.stat().st_size for path in (ROOT / "examples" / "lab").iterdir()) < 200_000


def test_what_a_virtual_lab_writes_is_a_good_table(tmp_path):
    instrument = Instrument(energy_factor=1.05)
    samples = [toy_sample(i, "test", dopants=1) for i in range(4)]
    assert virtual.write_lab(tmp_path, samples, instrument) == 4
    pairs = read_table(tmp_path)
    assert [pair.dopants for pair in pairs] == [pytest.approx(sample.concentrations, rel=1e-4) for sample in samples]
    assert {(pair.host.kind, pair.resolution_mev) for pair in pairs} == {("neutron-weighted", 2.0)}
    edges = EncodedPairs(pairs).batch.edge_mev
    wanted = torch.tensor([sample.edge_mev * instrument.energy_factor for sample in samples])
    assert (edges / wanted - 1.0).abs().max() < 0.25


def test_a_virtual_lab_sees_one_element_where_it_projects():
    sample = replace(toy_sample(0, "test", dopants=1), variant="as-is")
    element = sample.host_elements[0]
    assert element in sample.doped_elements
    seen = Instrument(kind="projected", element=element, noise=0.0, fwhm_mev=0.05, fwhm_growth=1.0).measure(sample)
    own = sample.host_dos[0] / (sample.host_dos[0].sum() * STORAGE_GRID.width)
    assert np.abs(seen.host - own).mean() < 0.05 * own.mean()
    with pytest.raises(LabError, match="Bi to project on"):
        Instrument(kind="projected", element="Bi").measure(sample)


def test_a_virtual_lab_measures_as_far_as_there_are_modes(tmp_path):
    sample = toy_sample(0, "test", dopants=1)
    doped = sample.doped_dos.copy()
    doped[:, -40:-20] += doped.max()  # light atoms, far above the host's edge
    assert virtual.write_lab(tmp_path, [replace(sample, doped_dos=doped)], Instrument(noise=0.0)) == 1
    seen = read_spectrum(tmp_path / f"{sample.row_id.replace('/', '-')}.csv")
    assert seen.energy[-1] > 0.9 * STORAGE_GRID.reach * sample.edge_mev
    assert seen.dos[-3:].max() < 0.05 * seen.dos.max()


def test_data_measure_takes_a_folder_of_shards(tmp_path, replay, capsys):
    main(["data", "measure", replay, "--out", str(tmp_path), "--kind", "total", "--noise", "0.02"])
    pairs = read_table(tmp_path)
    assert f"{len(pairs)} pairs" in capsys.readouterr().out
    assert {pair.host.kind for pair in pairs} == {"total"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "partial"], "instrument.kind is 'partial'"),
        (["--kind", "projected"], "Name the element"),
        (["--element", "Fe"], "Name the element"),
        (["--energy-factor", "3"], "energy_factor is 3"),
        (["--noise", "-1"], "measurement.noise"),
    ],
)
def test_an_instrument_that_cannot_be(tmp_path, replay, capsys, words, message):
    with pytest.raises(SystemExit):
        main(["data", "measure", replay, "--out", str(tmp_path / "out"), *words])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_shards_cannot_be_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["data", "measure", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "holds no shard" in capsys.readouterr().err
