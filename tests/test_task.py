import math
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer

from defectnet.batch import Batch, Output, Targets
from defectnet.cli import main
from defectnet.config import ModelSpec
from defectnet.crystal.responses import save_responses
from defectnet.data.candidates import TrackSettings
from defectnet.data.module import SpectraDataModule
from defectnet.elements import VOCABULARY
from defectnet.errors import CheckpointError, ConfigError
from defectnet.export import export, read_run, training_record
from defectnet.hub import from_pretrained
from defectnet.measure.settings import CLEAN
from defectnet.models.answers import answer
from defectnet.models.base import ABSENT_LOGIT
from defectnet.models.calibration import best_threshold, fit_interval, fit_temperature
from defectnet.models.registry import build_model
from defectnet.tasks.defect import DefectTask, OptimiserSettings
from defectnet.tasks.metrics import TrackMetrics
from make_shards import toy_folder, toy_sample, write_toy_folder
from packs import gallium_arsenide_responses

ROOT = Path(__file__).parent.parent
TINY = {
    "d_model": 16,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "patch": 16,
    "mlp_ratio": 1,
    "dropout": 0.0,
}
E = len(VOCABULARY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"), train=24, val=24, test=10)


def quiet(**settings):
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"enable_checkpointing": False, **settings},
    )  # fmt: skip


def question(true, candidates, given=True):
    """One row: true concentrations and candidates by position."""
    concentration, mask = torch.zeros(1, E), torch.zeros(1, E, dtype=torch.bool)
    for position, value in true.items():
        concentration[0, position] = value
    mask[0, candidates] = True
    spectra, one = torch.ones(1, 256), torch.ones(1)
    composition = torch.zeros(1, E)
    batch = Batch(spectra, spectra, one, composition, mask, torch.tensor([given]), torch.zeros(1, dtype=torch.long))
    return batch, Targets(concentration)


def terms_of(name, output, batch, targets):
    """Terms of the loss of a network that is never asked, as means over a batch."""
    return {key: term.mean() for key, term in build_model(name).loss_terms(output, batch, targets).items()}


def test_hurdle_loss_is_what_a_hand_computes():
    batch, targets = question({3: 0.04}, [3, 5])
    logits = torch.full((1, E), ABSENT_LOGIT)
    logits[0, 3], logits[0, 5] = math.log(3.0), -math.log(3.0)  # probabilities 3/4 and 1/4
    amount = torch.zeros(1, E)
    amount[0, 3], amount[0, 5] = 0.09, 0.08
    terms = terms_of("DefectNet", Output(logits, amount), batch, targets)
    assert terms["identity"].item() == pytest.approx(2 * math.log(4 / 3))
    assert terms["concentration_if_present"].item() == pytest.approx(1.0 - 0.5)  # Huber of 10 (0.3 - 0.2)
    assert terms["expected"].item() == pytest.approx(100 * (abs(0.75 * 0.09 - 0.04) + 0.25 * 0.08) / 2, rel=1e-5)


def test_paper_loss_is_what_a_hand_computes():
    batch, targets = question({3: 0.04}, [3, 5])
    amount = torch.full((1, E), 0.1)
    terms = terms_of("PaperDefectNet", Output(torch.zeros(1, E), amount), batch, targets)
    assert terms["expected"].item() == pytest.approx(((10 * 0.06) ** 2 + (10 * 0.1) ** 2) / 2)


def test_what_is_not_in_question_has_no_gradient():
    batch, targets = question({3: 0.04}, [3, 5])
    for name in ("DefectNet", "PaperDefectNet"):
        logits = torch.zeros(1, E, requires_grad=True)
        amount = torch.zeros(1, E).index_fill(1, torch.tensor([3, 5]), 0.02).requires_grad_()
        sum(terms_of(name, Output(logits, amount), batch, targets).values()).backward()
        for x in (logits, amount):
            gradient = torch.zeros_like(x) if x.grad is None else x.grad
            assert gradient.isfinite().all()
            assert set(gradient.nonzero()[:, 1].tolist()) <= {3, 5}


def test_a_batch_without_dopants_or_named_candidates_has_a_finite_loss():
    batch, targets = question({}, [3, 5], given=False)
    terms = terms_of("DefectNet", Output(torch.zeros(1, E), torch.zeros(1, E)), batch, targets)
    assert all(value.isfinite() for value in terms.values())
    assert terms["expected"].item() == 0


def test_a_network_says_what_its_concentration_means():
    output = Output(torch.tensor([[0.0]]), torch.tensor([[0.2]]))
    assert build_model("DefectNet", net=TINY).expected(output).item() == pytest.approx(0.1)
    assert build_model("PaperDefectNet").expected(output).item() == pytest.approx(0.2)


def test_weights_are_those_of_the_terms_of_the_network():
    task = DefectTask("DefectNet", net=TINY, weights={"response": 3.0})
    assert task.weights["response"] == 3.0
    assert task.weights["expected"] == task.model.loss_weights["expected"]
    with pytest.raises(ConfigError, match=r"model.weights.hinge is no term .* of PaperDefectNet. Use expected"):
        DefectTask("PaperDefectNet", weights={"hinge": 1.0})


def test_metrics_of_right_answers_are_1_and_of_wrong_ones_0():
    batch, targets = question({3: 0.04, 9: 0.1}, [3, 5, 9])
    for right in (True, False):
        metrics = TrackMetrics()
        logits = torch.full((1, E), ABSENT_LOGIT)
        logits[0, [3, 5, 9]] = torch.tensor([20.0, -20.0, 20.0]) * (1 if right else -1)
        output = Output(logits, targets.true_concentration)
        metrics.update(output, torch.sigmoid(logits) * targets.true_concentration, batch, targets)
        values = metrics.compute()
        assert values["identity/f1"].item() == right
        assert values["identity/exact"].item() == right
        assert (values["concentration/mae"].item() < 1e-6) == right
        assert (values["identity/ap"].item() > 0.999) == right


def test_the_learning_rate_rises_and_falls():
    settings = OptimiserSettings(warmup_share=0.1, final_share=0.02)
    factors = [settings.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == 1.0
    assert factors[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert OptimiserSettings(decay=False).factor(90, 100) == 1.0


def test_a_network_learns_16_pairs_by_heart(tmp_path):
    samples = [toy_sample(i, "train", dopants=1 + i % 3) for i in range(16)]
    folder = write_toy_folder(tmp_path, [*samples, toy_sample(900, "val")], shards=1)
    settings = {"batch_size": 16, "tracks": TrackSettings(blind_share=0.5), "train_measurement": "clean"}
    data = SpectraDataModule(str(folder), **settings)
    torch.manual_seed(0)
    net = {**TINY, "d_model": 32, "decoder_layers": 2}
    task = DefectTask("DefectNet", net=net, optimiser=OptimiserSettings(learning_rate=8e-3, weight_decay=0.0))
    quiet(max_epochs=150, limit_val_batches=0, gradient_clip_val=1.0).fit(task, data)
    for track in ("candidates", "blind"):
        output, _, _, targets = answer(task.model, data.evaluation("train", track))
        assert torch.equal(output.identity_logits > 0, targets.present), track
        assert (output.concentration_if_present - targets.true_concentration)[targets.present].abs().mean() < 0.01


RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml") if not path.stem.startswith("potential"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_through_the_command_line(recipe, folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    small = [
        f"--data.folder={folder}",
        "--data.loader.workers=0",
        "--trainer.fast_dev_run=2",
        "--data.batch_size=8",
    ]
    path = ROOT / f"configs/{recipe}.yaml"
    if "responses:" in path.read_text(encoding="utf-8"):  # pairs and responses that take hours
        save_responses(tmp_path / "responses" / "GaAs.safetensors", gallium_arsenide_responses())
        small += [f"--data.extra={{{folder}: 1}}", f"--data.responses=[{tmp_path / 'responses'}]"]
    main(["fit", "-c", str(path), *small])
    assert "max_steps=2" in caplog.text
    head = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    _, option, second = "\n".join(head).replace("\\\n", " ").partition("--model.init_from")
    if option:  # the second leg, as the head of the recipe has it
        words = [word.replace("data/defectnet-hifi-v1", str(folder)) for word in shlex.split(second, comments=True)]
        main(["fit", "-c", str(path), f"--model.init_from={recipe}", *words[1:], *small])


def test_the_debug_recipe_writes_only_below_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", "-c", str(ROOT / "configs/debug.yaml"), f"--data.folder={folder}"])
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    trainer = quiet(max_epochs=3, default_root_dir=root)
    data = SpectraDataModule(str(folder), batch_size=8)
    task = DefectTask("DefectNet", net=TINY, spec=data.spec)
    trainer.fit(task, data)
    trainer.save_checkpoint(root / "run.ckpt")
    return root / "run.ckpt", task, trainer


def test_validation_logs_both_tracks(run):
    logged = run[2].callback_metrics
    names = {"identity/ap", "identity/f1", "identity/exact", "concentration/mae", "concentration/r2", "loss"}
    for track in ("candidates", "blind"):
        assert {f"val/{track}/{name}" for name in names} <= set(logged)
    mean = (logged["val/candidates/identity/ap"] + logged["val/blind/identity/ap"]) / 2
    assert logged["val/identity/ap"].item() == pytest.approx(mean.item())


def test_a_batch_counts_for_its_rows_in_the_validation_loss(folder):
    torch.manual_seed(0)
    data = SpectraDataModule(str(folder), batch_size=5)
    task = DefectTask("DefectNet", net=TINY, spec=data.spec)
    logged = quiet().validate(task, data, verbose=False)
    items = list(data.evaluation("val", "blind"))
    assert len({len(item.rows) for item in items}) == 2  # 24 rows in five batches
    task.eval()
    with torch.no_grad():
        found = [(task.model.loss_terms(task(i.batch), i.batch, i.targets), len(i.rows)) for i in items]
    losses = [sum(task.weights[name] * term.mean() for name, term in terms.items()) * size for terms, size in found]
    mean = sum(losses).item() / sum(len(item.rows) for item in items)
    found = {name: value for part in logged for name, value in part.items()}
    assert found["val/blind/loss"] == pytest.approx(mean, rel=1e-5)
    assert found["val/loss"] == pytest.approx((mean + found["val/candidates/loss"]) / 2, rel=1e-5)


def test_a_checkpoint_holds_plain_values_only(run):
    state = torch.load(run[0], weights_only=True)
    assert state["defectnet"]["architecture"] == "DefectNet"
    assert "hyper_parameters" not in state


def test_export_calibrates_and_gives_the_same_network(run, folder, tmp_path):
    out = export(run[0], tmp_path / "tiny", folder)
    model = from_pretrained(out)
    data = SpectraDataModule(str(folder), val_measurement="lab")
    item = next(iter(data.evaluation("test", "blind")))
    for a, b in zip(run[1].model.predict_batch(item.batch)[:2], model.predict_batch(item.batch)[:2], strict=True):
        assert torch.equal(a, b)
    assert model.calibration.temperature_candidates != 1.0
    assert model.calibration.interval.coverage == 0.9
    info = model.training_info
    assert info["train_rows"] == 24
    assert info["edge_mev"][0] < info["edge_mev"][1]
    assert model.spec.kinds == data.spec.kinds


def test_a_network_that_learns_from_projected_dos_is_shown_them(folder):
    with pytest.raises(ConfigError, match=r"DefectNet learns from projected DOS.*SpectraDataModule"):
        quiet(max_epochs=1).fit(DefectTask("DefectNet", net=TINY), SpectraDataModule(str(folder)).train_dataloader())
    task = DefectTask("DefectNet", net=TINY)
    quiet(max_epochs=1).fit(task, SpectraDataModule(str(folder)))
    assert {f"train/loss_{name}" for name in ("response", "host_share", "dopant_dos", "host_change")} <= set(
        task.trainer.callback_metrics
    )


def test_export_in_half_precision_is_half_as_large_and_nearly_the_same(run, folder, tmp_path):
    out = export(run[0], tmp_path / "tiny", folder)
    half = export(run[0], tmp_path / "half", folder, half=True)
    sizes = [(path / "model.safetensors").stat().st_size for path in (out, half)]
    assert sizes[1] < 0.6 * sizes[0]
    batch = next(iter(SpectraDataModule(str(folder)).evaluation("test", "blind"))).batch
    whole, rounded = (from_pretrained(path).predict_batch(batch) for path in (out, half))
    pair = [x.concentration_if_present for x in (rounded, whole)]
    torch.testing.assert_close(*pair, rtol=0.02, atol=1e-4)
    assert not torch.equal(*pair)


def test_the_record_of_training_counts_each_row_once_and_tells_pairs_from_variants(run, folder, tmp_path):
    samples = [replace(toy_sample(500 + i, "train"), host_id=f"further-{i // 2}") for i in range(4)]
    samples += [replace(s, row_id=f"{s.row_id}/stiffness-1", variant="stiffness-1") for s in samples[:3]]
    more = write_toy_folder(tmp_path / "more", samples, shards=2)
    alone = training_record(SpectraDataModule(str(folder)), run[0])
    once = training_record(SpectraDataModule(str(folder), extra={str(more): 1}), run[0])
    assert once["train_rows"] == alone["train_rows"] + 7
    assert once["train_pairs"] == alone["train_pairs"] + 4
    assert once["train_hosts"] == alone["train_hosts"] + 2
    assert once["data_sha256"] != alone["data_sha256"]
    assert training_record(SpectraDataModule(str(folder), extra={str(more): 3}), run[0]) == once


def test_a_loaded_network_trains_in_training_mode(run, folder, tmp_path):
    out = export(run[0], tmp_path / "tiny", folder)
    assert not from_pretrained(out).training
    task = DefectTask.from_pretrained(str(out), optimiser=OptimiserSettings(learning_rate=1e-4))
    assert all(module.training for module in task.modules())
    assert task.model.calibration is None  # it was fitted to other weights
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    quiet(max_epochs=1, limit_val_batches=0).fit(task, SpectraDataModule(str(folder), batch_size=8))
    assert task.model.training
    assert any(not torch.equal(before[name], value) for name, value in task.model.state_dict().items())


def test_what_does_not_fit_a_loaded_network_is_one_clear_error(run, folder, tmp_path):
    out = str(export(run[0], tmp_path / "tiny", folder))
    grid = SpectraDataModule(str(folder)).grid
    other = ModelSpec(grid=type(grid)(bins=128, reach=2.56))
    DefectTask("DefectNet", net=TINY, init_from=out)  # the recipe that it was trained with
    for settings in ({"net": {**TINY, "d_model": 32}}, {"architecture": "PaperDefectNet"}):
        with pytest.raises(ConfigError, match="init_from"):
            DefectTask(init_from=out, **settings)
    with pytest.raises(ConfigError, match=r"tiny was trained on .* the data are on"):
        DefectTask(init_from=out, spec=other)
    with pytest.raises(ConfigError, match="architecture"):
        DefectTask()


@pytest.mark.parametrize("content", [b"", b"no torch file", "missing", {"state_dict": {}}, {"defectnet": 3}])
def test_a_broken_run_is_one_clear_error(content, tmp_path):
    path = tmp_path / "run.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"run\.ckpt"):
        read_run(path)


def test_the_temperature_of_known_odds_is_found():
    rng = torch.Generator().manual_seed(0)
    odds = 2.0 * torch.randn(20_000, generator=rng)
    present = torch.rand(20_000, generator=rng) < torch.sigmoid(odds)
    for temperature in (0.5, 1.0, 3.0):
        assert fit_temperature(odds * temperature, present) == pytest.approx(temperature, rel=0.05)


def test_the_threshold_has_the_best_f1():
    rng = torch.Generator().manual_seed(0)
    probability = torch.rand(200, generator=rng).round(decimals=2)
    present = torch.rand(200, generator=rng) < probability**2

    def f1(threshold):
        claimed = probability.double() >= threshold
        return float(2 * (claimed & present).sum() / (claimed.sum() + present.sum()))

    best = best_threshold(probability, present)
    assert f1(best) == pytest.approx(max(f1(t) for t in np.arange(0.005, 1.0, 0.01)))
    assert best_threshold(probability, torch.zeros(200, dtype=torch.bool)) == 0.5


def test_the_interval_covers_what_it_says_on_new_data():
    rng = np.random.default_rng(0)

    def draw(n):
        predicted = rng.uniform(0.002, 0.25, n)
        return predicted, np.clip(predicted + (0.002 + 0.2 * predicted) * rng.standard_normal(n), 0, 1)

    covered = []
    for _ in range(60):
        band = fit_interval(*draw(200), coverage=0.8)
        predicted, true = draw(2000)
        inside = np.abs(true - predicted) <= band.offset + band.slope * predicted
        covered.append(inside.mean())
        assert band.slope > 0
    assert np.mean(covered) == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ConfigError, match="too few"):
        fit_interval(*draw(10))


def test_a_batch_of_clean_pairs_is_what_the_name_says(folder):
    assert SpectraDataModule(str(folder), train_measurement="clean").train_measurement == CLEAN
