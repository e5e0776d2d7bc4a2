"""Fine-tuning with a plain Trainer: the methods, and the traps that the naive ways fall into."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from safetensors.torch import load_file, save_file

from conftest import TINY_NETS, make_random_batch
from defectnet.batch import Output, Targets
from defectnet.cli import main
from defectnet.data.candidates import TrackSettings
from defectnet.errors import CheckpointError, ConfigError
from defectnet.files import file_sha256
from defectnet.hub import from_pretrained, save
from defectnet.lab import jobs, progress
from defectnet.lab.data import LabDataModule
from defectnet.lab.progress import TrainingLog
from defectnet.models.registry import build_model
from defectnet.tasks.finetuning import FinetuneTask
from lab_tables import SHARES, write_lab

ROOT = Path(__file__).resolve().parents[1]
NET = TINY_NETS["DefectNet"] | {"decoder_layers": 2, "dropout": 0.2}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return write_lab(tmp_path_factory.mktemp("lab"), SHARES[:8])


def written(folder, name="DefectNet", net=NET):
    torch.manual_seed(0)
    model = build_model(name, net=net)
    return str(save(model, folder, golden=make_random_batch(2), card="# Tiny", training={}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return written(tmp_path_factory.mktemp("tiny") / "tiny")


def quiet(**settings):
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


def moved(task, source):
    """Names of the parameters that differ from the checkpoint's."""
    start = from_pretrained(source).state_dict()
    return {name for name, value in task.model.named_parameters() if not torch.equal(value, start[name])}


def test_the_whole_network_learns(checkpoint, lab):
    task = FinetuneTask.from_pretrained(checkpoint)
    quiet(max_epochs=2).fit(task, LabDataModule(lab, batch_size=4))
    names = {name for name, _ in task.model.named_parameters()}
    # Elements that occur nowhere have no gradient, but their embedding is one matrix with those that do.
    assert {name.split(".")[0] for name in moved(task, checkpoint)} == {name.split(".")[0] for name in names}


class Naive(LightningModule):
    """What a user would write at first: the loaded network in a module."""

    def __init__(self, source):
        super().__init__()
        self.model, self.modes = from_pretrained(source), []

    def training_step(self, item):
        self.modes.append(self.model.training)
        return self.model.loss_terms(self.model(item.batch), item.batch, item.targets)["identity"].mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


def test_evaluation_mode_does_not_survive_into_fit(checkpoint, lab):
    """Lightning leaves a network in the mode in which it comes: the naive module trains without dropout."""
    data = {"batch_size": 4, "validation": 0.0}
    naive = Naive(checkpoint)
    quiet(max_epochs=1).fit(naive, LabDataModule(lab, **data))
    assert set(naive.modes) == {False}
    seen = []

    class Watched(FinetuneTask):
        def training_step(self, item):
            seen.append(all(module.training for module in self.model.modules()))
            return super().training_step(item)

    task = Watched(from_pretrained(checkpoint))
    task.model.eval()  # as if a user had looked at a prediction before
    quiet(max_epochs=1).fit(task, LabDataModule(lab, **data))
    assert set(seen) == {True}


def test_weights_that_do_not_fit_are_refused(checkpoint, tmp_path, lab, capsys):
    """`load_state_dict(strict=False)` would take this checkpoint, of which one tensor has another name."""
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[f"model.{name}"] = weights.pop(name)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["weights_sha256"] = file_sha256(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    naive = build_model("DefectNet", net=NET).load_state_dict(weights, strict=False)
    assert naive.missing_keys == [name]
    with pytest.raises(CheckpointError, match=r"tensor .* is missing"):
        FinetuneTask.from_pretrained(str(folder))
    with pytest.raises(SystemExit):
        main(["finetune", "--data", str(lab), "--checkpoint", str(folder), "--out", str(tmp_path / "out")])
    assert f"tensor {name} is missing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_the_loss_of_a_batch_is_the_mean_of_its_rows():
    batch, model = make_random_batch(6), build_model("DefectNet", net=NET)
    concentration = torch.where(batch.candidates & (torch.rand(6, 62) < 0.1), 0.05, 0.0)
    output = Output(torch.randn(6, 62), torch.rand(6, 62) * 0.2)
    terms = model.loss_terms(output, batch, Targets(concentration))
    for name in ("identity", "concentration_if_present"):
        assert terms[name].mean().item() == pytest.approx(terms[name].rows.mean().item(), rel=1e-5)
    expected = terms["expected"]
    assert torch.equal(expected.rows == 0.0, ~batch.candidates_given)
    asked = batch.candidates & batch.candidates_given[:, None]
    error = 100.0 * (model.expected(output) - concentration).abs()[asked].mean()
    assert expected.mean().item() == pytest.approx(error.item(), rel=1e-5)


def test_weights_of_rows_scale_their_gradients(checkpoint, lab):
    data = LabDataModule(lab, batch_size=8, validation=0.0)
    item = next(iter(data.train_dataloader()))
    assert item.weight is not None
    assert item.weight.sum().item() == pytest.approx(1.0)
    assert sorted(item.rows.tolist()) == list(range(8))
    task = FinetuneTask(from_pretrained(checkpoint))
    task.model.eval()
    task.log = lambda *_, **__: None
    whole = task._step(item, "train")
    parts = [task._step(item._replace(weight=item.weight * (item.rows == i)), "train") for i in range(8)]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)


def test_losses_are_in_single_precision_when_the_trunk_is_not(checkpoint, lab):
    dtypes = {"trunk": set(), "loss": set()}

    class Watched(FinetuneTask):
        def training_step(self, item):
            handle = self.model.spectrum.smooth.register_forward_hook(lambda *args: dtypes["trunk"].add(args[2].dtype))
            loss = super().training_step(item)
            handle.remove()
            dtypes["loss"].add(loss.dtype)
            return loss

    task = Watched(from_pretrained(checkpoint))
    trainer = quiet(max_epochs=2, precision="bf16-mixed")
    trainer.fit(task, LabDataModule(lab, batch_size=4))
    assert dtypes["trunk"] == {torch.bfloat16}
    assert dtypes["loss"] == {torch.float32}
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert math.isfinite(trainer.callback_metrics["val/loss"].item())
    assert trainer.callback_metrics["val/loss"].dtype == torch.float32


def test_the_published_network_is_tuned_on_named_candidates_alone(tmp_path, lab):
    source = written(tmp_path / "paper", "PaperDefectNet", TINY_NETS["PaperDefectNet"])
    data = LabDataModule(lab, batch_size=4, tracks=TrackSettings(blind_share=0.0))
    task = FinetuneTask.from_pretrained(source)
    quiet(max_epochs=1).fit(task, data)
    assert all(item.batch.candidates_given.all() for item in data.train_dataloader())
    assert "mlp" in {name.split(".")[0] for name in moved(task, source)}


def test_ten_lines_of_python_are_enough(checkpoint, lab):
    data = LabDataModule(lab)
    task = FinetuneTask.from_pretrained(checkpoint, spec=data.spec)
    trainer = quiet(max_epochs=2)
    trainer.fit(task, data)
    assert 0.0 < trainer.callback_metrics["val/loss"].item() < 100.0
    answer = task.model.predict(lab / "host.csv", lab / "s3.csv", "GaAs", candidates=["Al", "In"])
    assert set(answer.elements) == {"Al", "In"}
    assert task.model.training  # as Trainer left it, and as it was


def test_a_rate_of_zero_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="learning_rate"):
        FinetuneTask(from_pretrained(checkpoint), learning_rate=0.0)


def test_the_python_of_the_documentation_runs(monkeypatch, capsys):
    text = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    block = next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "predict(" in part)
    assert len([line for line in block.splitlines() if line.strip()]) < 10
    short = block.replace("max_epochs=60", "max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False")
    assert short != block
    monkeypatch.chdir(ROOT)
    exec(short, {"__name__": "__main__"})
    assert "candidates given" in capsys.readouterr().out


def test_a_small_network_trains_on_one_thread(checkpoint, monkeypatch):
    model, before = from_pretrained(Path(checkpoint)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with jobs._one_thread(model):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(jobs, "SMALL", 1)
        with jobs._one_thread(model):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_logger_is_chosen_by_name(tmp_path, monkeypatch):
    there = {"tensorboard": True, "wandb": False}
    monkeypatch.setattr(progress, "_installed", lambda name: there[name])
    assert TrainingLog("auto").chosen == "tensorboard"
    there["tensorboard"] = False
    assert TrainingLog("auto").chosen == "csv"
    assert TrainingLog("none").logger("run") is None
    with pytest.raises(ConfigError, match=r"logger wandb is not installed. pip install wandb"):
        TrainingLog("wandb")
    with pytest.raises(ConfigError, match=r"logger is 'neptune'. Use one of auto, tensorboard"):
        TrainingLog("neptune")
    logger = TrainingLog("csv", tmp_path).logger("fold-1-of-2")
    assert Path(logger.log_dir) == tmp_path / "fold-1-of-2" / "version_0"


COMMAND = """
import sys
from defectnet.cli import main
from defectnet.lab import jobs, progress
progress.EVERY_SECONDS, jobs.SAVED_EVERY = 0.0, 2
main(sys.argv[1:])
"""
LAST_LINE = "fold 2 of 2: epoch 3 of 4"  # the last state that was kept is of epoch 2


def words(checkpoint, lab, out, *more):
    """Words of the command."""
    found = ["finetune", "--checkpoint", checkpoint, "--data", str(lab), "--out", str(out), "--method", "full"]
    found += ["--folds", "2", "--epochs", "4", "--learning-rate", "0.01", "--accelerator", "cpu", "--batch-size", "2"]
    return [*found, *more]


def stopped_process(command, *_):
    """Stop the command in a process of its own; return its exit code and what it said last."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith(LAST_LINE):
            process.send_signal(signal.SIGTERM)
            break
    _, said = process.communicate(timeout=240)
    return process.returncode, said


def stopped_here(command, monkeypatch, capsys):
    """The same in this process."""

    def say(text):
        if text.startswith(LAST_LINE):
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "say", say)
        with pytest.raises(SystemExit) as ended:
            main(command)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("stopped", "more"),
    [(stopped_process, ()), (stopped_here, ("--ema", "0.5", "--validation", "0.3"))],
    ids=["plain", "ema and validation"],
)
def test_a_run_stopped_by_sigterm_says_so_and_ends_as_if_undisturbed(
    checkpoint, lab, tmp_path, monkeypatch, capsys, stopped, more
):
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)  # as `COMMAND` does: a line after every epoch
    monkeypatch.setattr(jobs, "SAVED_EVERY", 2)
    main(words(checkpoint, lab, tmp_path / "whole", "--logger", "csv", *more))
    assert capsys.readouterr().err.count("epoch 4 of 4") == 3
    again = words(checkpoint, lab, tmp_path / "mine", *more)
    code, said = stopped(again, monkeypatch, capsys)
    assert code == 2
    assert said.splitlines()[-1].startswith("defectnet: fine-tuning was stopped by SIGTERM. Give the same command")
    assert not (tmp_path / "mine").exists()
    main(again)
    said = capsys.readouterr().err
    assert "fold 2 of 2: goes on after epoch 2" in said
    assert "fold 1 of 2" not in said
    reports = [json.loads((tmp_path / name / "finetune.json").read_text()) for name in ("whole", "mine")]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "mine")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
