"""Fine-tuning with a plain Trainer: the methods, and the traps that the naive ways fall into."""

from __future__ import annotations

import json
import math
import re
import shutil
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
from defectnet.lab import jobs
from defectnet.lab.data import LabDataModule
from defectnet.models.registry import build_model
from defectnet.tasks.finetuning import (
    METHODS,
    FinetuneTask,
    method_named,
    parameter_groups,
    stages,
)
from defectnet.tasks.losses import LossWeights, loss_named
from lab_tables import SHARES, write_lab

ROOT = Path(__file__).resolve().parents[1]
NET = TINY_NETS["DefectNet"] | {"decoder_layers": 2, "dropout": 0.2}
HEAD = ("identity.", "concentration.", "decoder.1.")


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


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_says(method, checkpoint, lab):
    task = FinetuneTask.from_pretrained(checkpoint, method=method)
    quiet(max_epochs=2).fit(task, LabDataModule(lab, batch_size=4))
    names = {name for name, _ in task.model.named_parameters()}
    head = {name for name in names if name.startswith(HEAD)}
    changed = moved(task, checkpoint)
    assert head <= changed
    if method == "head":
        assert changed == head
    else:
        # Elements that occur nowhere have no gradient, but their embedding is one matrix with those that do.
        assert {name.split(".")[0] for name in changed} == {name.split(".")[0] for name in names}


def test_what_is_frozen_is_in_evaluation_mode_and_the_rest_is_not(checkpoint, lab):
    modes = []

    class Watched(FinetuneTask):
        def training_step(self, item):
            named = dict(self.model.named_modules())
            modes.append({name: module.training for name, module in named.items() if name})
            return super().training_step(item)

    trainer = {"max_epochs": 6, "limit_val_batches": 0}
    quiet(**trainer).fit(Watched(checkpoint, "head"), LabDataModule(lab, batch_size=4))
    assert all(
        mode == f"{name}.".startswith(HEAD) for seen in modes for name, mode in seen.items() if name != "decoder"
    )
    modes.clear()
    quiet(**trainer).fit(Watched(checkpoint, "gradual"), LabDataModule(lab, batch_size=4))
    counts = [sum(seen.values()) for seen in modes]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == len(modes[-1])


class Naive(LightningModule):
    """What a user would write at first: the loaded network in a module."""

    def __init__(self, source):
        super().__init__()
        self.model, self.modes = from_pretrained(source), []

    def training_step(self, item):
        self.modes.append(self.model.training)
        return loss_named("hurdle")(self.model(item.batch), item.batch, item.targets, LossWeights())["identity"]

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

    task = Watched(checkpoint, "full")
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


@pytest.mark.parametrize("name", sorted(TINY_NETS))
def test_stages_hold_every_parameter_once(name):
    model = build_model(name, net=TINY_NETS[name])
    modules = [module for stage in stages(model) for module in stage]
    assert len(set(modules)) == len(modules)
    owners = {key: [m for m in modules if key.startswith(f"{m}.")] for key, _ in model.named_parameters()}
    assert all(len(found) == 1 for found in owners.values())
    grouped = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_an_unknown_network_has_its_last_module_as_head():
    class Mine(type(build_model("PaperDefectNet", net=TINY_NETS["PaperDefectNet"]))):
        pass

    assert stages(Mine()) == [["mlp"], ["convolutions", "query", "attention"]]


def test_gradual_unlocks_from_the_answer_down():
    settings = method_named("gradual")
    first = [next(step for step in range(100) if settings.factor(stage, step, 100) > 0) for stage in range(4)]
    assert first == [0, 15, 30, 45]
    assert settings.factor(2, 60, 100) == pytest.approx(settings.factor(0, 60, 100) * settings.fall**2)
    assert not any(method_named("head").factor(1, step, 100) for step in range(100))
    with pytest.raises(ConfigError, match="method 'lora'"):
        method_named("lora")


def test_the_pull_is_the_squared_distance(checkpoint):
    task = FinetuneTask(checkpoint, "l2sp")
    assert task._pull().item() == 0.0
    with torch.no_grad():
        task.model.get_parameter("summary.bias").add_(0.5)
    width = NET["d_model"]
    assert task._pull().item() == pytest.approx(task.method.penalty * 0.25 * width)


def test_the_pull_keeps_the_network_near_its_start(checkpoint, lab):
    def distance(method, penalty=None):
        task = FinetuneTask(checkpoint, method, learning_rate=1e-3)
        if penalty is not None:
            object.__setattr__(task.method, "penalty", penalty)
        quiet(max_epochs=8).fit(task, LabDataModule(lab, batch_size=4, validation=0.0))
        start = from_pretrained(checkpoint).state_dict()
        return sum((p - start[name]).square().sum().item() for name, p in task.model.named_parameters())

    torch.manual_seed(0)
    assert distance("l2sp", 100.0) < 0.1 * distance("l2sp", 0.0)


def test_row_losses_add_up_to_the_loss_of_the_batch():
    batch = make_random_batch(6)
    concentration = torch.where(batch.candidates & (torch.rand(6, 62) < 0.1), 0.05, 0.0)
    output = Output(torch.randn(6, 62), torch.rand(6, 62) * 0.2)
    terms = loss_named("hurdle", rows=True)(output, batch, Targets(concentration), LossWeights())
    whole = loss_named("hurdle")(output, batch, Targets(concentration), LossWeights())
    for name in ("identity", "amount"):
        assert terms[name].mean().item() == pytest.approx(whole[name].item(), rel=1e-5)
    assert torch.equal(terms["expected"] == 0.0, ~batch.candidates_given)


def test_weights_of_rows_scale_their_gradients(checkpoint, lab):
    data = LabDataModule(lab, batch_size=8, validation=0.0)
    item = next(iter(data.train_dataloader()))
    assert item.weight is not None
    assert item.weight.sum().item() == pytest.approx(1.0)
    assert sorted(item.rows.tolist()) == list(range(8))
    task = FinetuneTask(checkpoint, "full")
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

    task = Watched(checkpoint, "full")
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
    task = FinetuneTask.from_pretrained(source, method="head")
    quiet(max_epochs=1).fit(task, data)
    assert all(item.batch.candidates_given.all() for item in data.train_dataloader())
    assert {name.split(".")[0] for name in moved(task, source)} == {"mlp"}


def test_ten_lines_of_python_are_enough(checkpoint, lab):
    data = LabDataModule(lab)
    task = FinetuneTask.from_pretrained(checkpoint, method="gradual", spec=data.spec)
    trainer = quiet(max_epochs=2)
    trainer.fit(task, data)
    assert 0.0 < trainer.callback_metrics["val/loss"].item() < 100.0
    answer = task.model.predict(lab / "host.csv", lab / "s3.csv", "GaAs", candidates=["Al", "In"])
    assert set(answer.elements) == {"Al", "In"}
    assert task.model.training  # as Trainer left it, and as it was


def test_a_rate_of_zero_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="learning_rate"):
        FinetuneTask(checkpoint, learning_rate=0.0)


def test_the_python_of_the_documentation_runs():
    text = (ROOT / "docs" / "fine-tuning.md").read_text(encoding="utf-8")
    block = next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "predict(" in part)
    assert len([line for line in block.splitlines() if line.strip()]) < 10
    short = block.replace("max_epochs=60", "max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False")
    assert short != block
    done = subprocess.run([sys.executable, "-c", short], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "MgB2, candidates given" in done.stdout


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
