"""Two processes train what one does: pytest -m ddp. On the CPU, over gloo; nothing but this machine is needed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from itertools import pairwise
from multiprocessing import forkserver
from pathlib import Path

import psutil
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

import ddp_killed
import ddp_runs
from conftest import TINY_NETS, make_random_batch
from defectnet.errors import ConfigError, LabError
from defectnet.hub import from_pretrained, save
from defectnet.lab import jobs
from defectnet.lab.data import Augmentation, EncodedPairs
from defectnet.lab.finetune import Holdout, finetune
from defectnet.lab.jobs import Job, TrainingSettings, run_jobs
from defectnet.lab.progress import TrainingLog
from defectnet.lab.table import read_table
from defectnet.models.registry import build_model
from defectnet.processes import forking
from lab_tables import SHARES, write_lab

pytestmark = pytest.mark.ddp
TESTS = Path(__file__).parent
RANKS = 2
LOSS_TOLERANCE = 1e-4
"""Relative: the order of sums differs, and Adam, which divides by roots of small squares, lets the difference grow."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """23 samples: an odd number, so that ranks get unequal parts."""
    return write_lab(tmp_path_factory.mktemp("lab"), [*SHARES, *(share * 0.9 for share in SHARES[1:])])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Without dropout, whose masks no two ranks share."""
    torch.manual_seed(0)
    model = build_model("DefectNet", net=TINY_NETS["DefectNet"])
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    return str(save(model, folder, golden=make_random_batch(2), card="# Tiny", training={}))


@pytest.fixture(scope="module")
def runs(lab, checkpoint, tmp_path_factory):
    """One run in one process, and on each of two ranks."""
    out = tmp_path_factory.mktemp("runs")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    forkserver._forkserver._stop()  # one of earlier tests has not imported Lightning, and each rank would
    arguments = [(lab, checkpoint, out, common | {"LOCAL_RANK": str(rank)}) for rank in range(RANKS)]
    ranks = [forking(jobs.__name__).Process(target=ddp_runs.rank, args=each) for each in arguments]
    try:
        for process in ranks:
            process.start()
        alone = {"run": ddp_runs.run(lab, checkpoint, 1)}
        for process in ranks:
            process.join(timeout=240)
        assert [process.exitcode for process in ranks] == [0] * RANKS
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return alone, [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(RANKS)]


def largest_difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_the_loss_curve_is_that_of_one_process(runs):
    alone, ranks = runs
    for rank in ranks:
        assert rank["run"]["losses"] == pytest.approx(alone["run"]["losses"], rel=LOSS_TOLERANCE)
    losses = alone["run"]["losses"]
    assert any(abs(a - b) > 10 * LOSS_TOLERANCE * a for a, b in pairwise(losses))  # a flat curve would prove nothing


def test_weights_are_the_same_on_every_rank(runs):
    alone, ranks = runs
    assert largest_difference(ranks[0]["run"]["weights"], ranks[1]["run"]["weights"]) == 0.0
    # This bias cancels (see test_changes.py): its gradient is rounding, of which Adam makes whole steps.
    idle = "impurity.changes.share.bias"
    ours, theirs = ({k: v for k, v in one["weights"].items() if k != idle} for one in (ranks[0]["run"], alone["run"]))
    assert len(ours) == len(alone["run"]["weights"]) - 1
    assert largest_difference(ours, theirs) < 1e-3


def test_unfreezing_with_the_usual_callback_lets_ranks_drift_apart(runs):
    """Parameters that were frozen when DDP began are not reduced after: the check above can fail."""
    _, ranks = runs
    assert largest_difference(ranks[0]["naive"]["weights"], ranks[1]["naive"]["weights"]) > 1e-4


def test_no_row_is_seen_twice_in_training(runs):
    alone, ranks = runs
    for epoch in range(ddp_runs.EPOCHS):
        seen = [[r for e, rows in rank["run"]["seen"] if e == epoch for r in rows] for rank in ranks]
        whole = sorted(r for e, rows in alone["run"]["seen"] if e == epoch for r in rows)
        assert sorted(seen[0] + seen[1]) == whole == list(range(16))
        assert len({len(rank["run"]["seen"]) for rank in ranks}) == 1  # else one rank would wait for ever


def test_no_row_is_scored_twice_in_validation(runs):
    _, ranks = runs
    for epoch in range(ddp_runs.EPOCHS):
        for track in range(2):
            parts = [rank["run"]["validated"] for rank in ranks]
            scored = [r for part in parts for e, t, rows in part if (e, t) == (epoch, track) for r in rows]
            assert sorted(scored) == list(range(7))


def test_a_plain_loader_scores_a_row_twice(runs):
    """Lightning's own sampler fills up the ranks: 17 rows become 18."""
    _, ranks = runs
    scored = sorted(ranks[0]["naive"]["validated"] + ranks[1]["naive"]["validated"])
    assert len(scored) == 18
    assert len(set(scored)) == 17


def test_metrics_are_those_of_one_process(runs):
    alone, ranks = runs
    wanted = {name: value for name, value in alone["run"]["metrics"].items() if name.startswith("val/")}
    assert len(wanted) > 10
    for rank in ranks:
        found = {name: rank["run"]["metrics"][name] for name in wanted}
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)


def job_of(lab, checkpoint, folder, rows=range(20), epochs=4, **settings):
    training = TrainingSettings(
        method="full", epochs=epochs, devices=RANKS, accelerator="cpu", validation=0.3, **settings
    )
    pairs = EncodedPairs(read_table(lab)).take(rows)
    return Job("training", folder / "run-0", from_pretrained(checkpoint), pairs, training)


@pytest.fixture
def mortal(tmp_path, monkeypatch):
    """Ranks that note their epochs in a file, and that `KILL` kills."""
    monkeypatch.setattr(jobs, "_rank", ddp_killed.rank)
    monkeypatch.setenv("EPOCHS_LOG", str(tmp_path / "epochs"))
    return tmp_path / "epochs"


def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_resumes(lab, checkpoint, tmp_path, monkeypatch, mortal):
    """The first one: usual launchers start from it, so that nobody would notice. The end of another: below."""
    assert jobs.SAVED_EVERY == 5
    monkeypatch.setenv("KILL", "0 6")
    job, log = job_of(lab, checkpoint, tmp_path, epochs=7), mortal
    with pytest.raises(LabError, match=r"process 0 of 2 .* was killed by SIGKILL") as caught:
        run_jobs([job])
    assert "goes on from the last checkpoint" in caught.value.fix
    assert not job.done
    log.unlink()
    monkeypatch.delenv("KILL")
    run_jobs([job])
    assert sorted(log.read_text(encoding="utf-8").splitlines()) == ["0 5", "0 6", "1 5", "1 6"]
    assert job.done
    run_jobs([job])  # nothing is left to do
    assert len(log.read_text(encoding="utf-8").splitlines()) == 4


def test_an_error_of_a_rank_is_named(lab, checkpoint, tmp_path):
    gone = job_of(lab, checkpoint, tmp_path, replay=str(tmp_path / "gone"))
    with pytest.raises(LabError, match=r"process [01] of 2 .* ended with code 2 \(data folder .*gone does not exist"):
        run_jobs([gone])


def test_a_rank_that_is_told_to_stop_ends_the_run(lab, checkpoint, tmp_path, monkeypatch, mortal):
    """Lightning's own handler would wait for a rank that has heard nothing, and the rank end with exit code 0."""
    monkeypatch.setenv("STOP", "1 2")
    with pytest.raises(LabError, match=r"process 1 of 2 .* ended with code 2 \(.*stopped by SIGTERM"):
        run_jobs([job_of(lab, checkpoint, tmp_path)])


def test_ranks_get_the_same_jobs(lab, checkpoint, tmp_path):
    jobs_ = [job_of(lab, checkpoint, tmp_path, rows) for rows in (range(12), (3, 15, 22))]
    log = TrainingLog("csv", tmp_path / "logs")
    found, same_log = pickle.loads(pickle.dumps((jobs_, log)))  # as they go to ranks
    assert same_log == log
    for old, new in zip(jobs_, found, strict=True):
        assert (new.label, new.folder, new.training) == (old.label, old.folder, old.training)
        assert all(torch.equal(a, b) for a, b in zip(new.pairs.batch[:-1], old.pairs.batch[:-1], strict=True))
        assert torch.equal(new.pairs.targets.true_concentration, old.pairs.targets.true_concentration)
        one, other = (
            job.pairs.augmented(range(3), Augmentation(share=1.0), (0, 1), "mixed").batch.doped for job in (old, new)
        )
        assert torch.equal(one, other)
        assert all(torch.equal(a, b) for a, b in zip(new.start.parameters(), old.start.parameters(), strict=True))


def test_ranks_end_with_the_process_that_started_them():
    code = (
        "import odd_jobs as o; from defectnet.processes import forking as f; p = f('math').Process(target=o.outlives)"
    )
    words = [sys.executable, "-c", f"{code}; p.start(); p.join()"]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as starter:
        rank = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    assert psutil.wait_procs([rank], timeout=60)[1] == []


def test_the_whole_command_says_the_same_on_two_devices(lab, checkpoint, tmp_path):
    def told(devices):
        training = TrainingSettings(method="full", epochs=2, devices=devices, accelerator="cpu", learning_rate=3e-3)
        return finetune(checkpoint, lab, tmp_path / f"out-{devices}", training, Holdout(share=0.1, folds=1))

    one, two = told(1), told(2)
    for part in ("before", "after"):
        values = [{name: e["value"] for name, e in report["held_out"][part].items()} for report in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-4)
    assert one["verdict"] == two["verdict"]


def test_too_many_devices_for_the_pairs_is_one_clear_error(lab, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="devices is 8, with 17 pairs"):
        finetune(checkpoint, lab, tmp_path / "out", TrainingSettings(method="full", devices=8, accelerator="cpu"))
    assert list(tmp_path.iterdir()) == []
