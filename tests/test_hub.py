"""Checkpoint folders are written whole, found without guessing, and reproduce their golden outputs."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

import defectnet
from conftest import NotFoundResponse
from defectnet import files
from defectnet.errors import CheckpointError, ConfigError
from defectnet.files import file_sha256
from defectnet.hub import from_pretrained, io, load, read_golden, resolve, save, verify
from defectnet.hub.catalogue import PUBLISHED, bundled
from defectnet.models.calibration import Calibration

CALIBRATION = {
    "temperature_candidates": 1.5,
    "temperature_blind": 2.0,
    "threshold_candidates": 0.4,
    "threshold_blind": 0.6,
    "interval": {"coverage": 0.9, "offset": 0.01, "slope": 0.2},
}
TRAINING = {"data_sha256": "0" * 64, "edge_mev": [10.0, 120.0], "host_elements": ["Ga", "As"], "epochs": 3}


@pytest.fixture
def folder(model, tiny_batch, tmp_path) -> Path:
    model.calibration = Calibration.from_dict(CALIBRATION)
    return save(model, tmp_path / "tiny-v1", golden=tiny_batch, card="# Tiny", training=TRAINING)


def test_round_trip(folder, model, tiny_batch):
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "golden.safetensors",
        "README.md",
    }
    again = from_pretrained(folder)
    assert type(again) is type(model)
    assert not again.training
    assert again.name == "tiny-v1"
    assert again.calibration == Calibration.from_dict(CALIBRATION)
    assert again.training_info == TRAINING
    assert (again.spec, again.net) == (model.spec, model.net)
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for old, new in zip(model.predict_batch(tiny_batch)[:2], again.predict_batch(tiny_batch)[:2], strict=True):
        assert torch.equal(old, new)


def test_weights_in_half_precision(folder, model, tiny_batch, tmp_path):
    with pytest.raises(ConfigError, match=r"is not of half precision.*round_to_half"):
        save(model, tmp_path / "half", golden=tiny_batch, card="# Half", training={}, half=True)
    assert not (tmp_path / "half").exists()
    io.round_to_half(model)
    half = save(model, tmp_path / "half", golden=tiny_batch, card="# Half", training={}, half=True)
    weights = sum(2 * weight.numel() for weight in model.parameters())
    smaller = (folder / "model.safetensors").stat().st_size - (half / "model.safetensors").stat().st_size
    assert abs(smaller - weights) < 4096  # the header names types
    again = load(half)
    assert {weight.dtype for weight in again.state_dict().values() if weight.is_floating_point()} == {torch.float32}
    for old, new in zip(model.predict_batch(tiny_batch)[:2], again.predict_batch(tiny_batch)[:2], strict=True):
        assert torch.equal(old, new)
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    with pytest.raises(ConfigError, match="beyond half precision"):
        io.round_to_half(model)


def test_buffers_in_half_precision_are_refused(tiny_model, tiny_batch, tmp_path):
    model = tiny_model("DefectNet")
    folder = save(model, tmp_path / "tiny", golden=tiny_batch, card="# Tiny", training={})
    path, name = folder / "model.safetensors", "edge.omega"
    weights = load_file(path)
    assert name in dict(model.named_buffers())
    save_file({**weights, name: weights[name].half()}, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "weights_sha256": file_sha256(path)}))
    with pytest.raises(CheckpointError, match=f"tensor {name} has another shape or type"):
        load(folder)


def test_saving_twice_gives_the_same_bytes(folder, model, tiny_batch, tmp_path):
    other = save(load(folder), tmp_path / "again", golden=tiny_batch, card="# Tiny", training=TRAINING)
    for file in folder.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_config_says_what_a_reader_needs(folder, model):
    config = json.loads((folder / "config.json").read_text())
    assert config["schema_version"] == io.SCHEMA_VERSION
    assert config["architecture"] == type(model).__name__
    assert config["spec"]["grid"] == {"bins": 256, "reach": 2.56}
    assert len(config["spec"]["elements"]) == 62
    assert config["defectnet_version"] == defectnet.__version__


def test_golden_reproduces_and_notices_a_change(folder, tiny_batch):
    verify(folder)
    batch, output = read_golden(folder)
    assert all(torch.equal(a, b) for a, b in zip(batch[:-1], tiny_batch[:-1], strict=True))
    assert output.concentration_if_present.shape == (6, 62)
    changed = load(folder)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.01)
    with pytest.raises(CheckpointError, match="identity_logits is not reproduced"):
        verify(folder, changed)


def test_saving_replaces_a_checkpoint_as_a_whole(folder, model, tiny_batch):
    (folder / "finetune.json").write_text("{}")  # a part of checkpoints that fine-tuning wrote
    model.calibration = None
    save(model, folder, golden=tiny_batch, card="# New card", training={})
    assert (folder / "README.md").read_text() == "# New card\n"
    old = os.umask(0o022)
    os.umask(old)
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("README.md", "config.json", "golden.safetensors", "model.safetensors"), 0o666 & ~old
    )
    assert not (folder / "finetune.json").exists()
    assert load(folder).calibration is None
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_failed_save_leaves_the_old_checkpoint(folder, model, tiny_batch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match="NaN"):
        save(model, folder, golden=tiny_batch, card="# Bad", training={})
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_failed_swap_puts_the_old_checkpoint_back(folder, model, tiny_batch, monkeypatch):
    """On a file system that cannot exchange two folders in one step."""
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no space"):
        save(model, folder, golden=tiny_batch, card="# New", training={})
    assert (folder / "README.md").read_text() == "# Tiny\n"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_saving_over_something_else_is_refused(model, tiny_batch, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        save(model, tmp_path / "thesis", golden=tiny_batch, card="# Tiny", training={})
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"card": "  "}, "card is empty"),
        ({"training": {"when": object()}}, "cannot be written as JSON"),
        ({"training": {"loss": float("nan")}}, "cannot be written as JSON"),
        ({"training": {"edge_mev": [50.0, 10.0]}}, "training.edge_mev"),
        ({"training": {"host_elements": ["Xx"]}}, "training.host_elements"),
    ],
)
def test_saving_nonsense_is_an_error(model, tiny_batch, tmp_path, change, message):
    arguments = {"golden": tiny_batch, "card": "# Tiny", "training": {}} | change
    with pytest.raises((CheckpointError, ConfigError), match=message):
        save(model, tmp_path / "tiny", **arguments)
    assert list(tmp_path.iterdir()) == []


# Where a source leads


@pytest.fixture
def zoo(folder, monkeypatch) -> Path:
    """Make the folder the only bundled checkpoint, and a folder of the same name stand in the working directory."""
    monkeypatch.setattr("defectnet.hub.catalogue.bundled_root", lambda: folder.parent)
    elsewhere = folder.parent / "elsewhere" / "tiny-v2"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere.parent)
    return folder


@pytest.mark.parametrize("form", ["name", "path", "absolute", "relative", "home"])
def test_sources(zoo, monkeypatch, form):
    monkeypatch.setenv("HOME", str(zoo.parent))
    source = {
        "name": "tiny-v1",
        "path": Path("..") / "tiny-v1",
        "absolute": str(zoo),
        "relative": "../tiny-v1",
        "home": "~/tiny-v1",
    }[form]
    found, name = resolve(source)
    assert found.resolve() == zoo
    assert name == "tiny-v1"
    assert from_pretrained(source).name == "tiny-v1"


def test_bundled_checkpoints_are_listed(zoo):
    (zoo.parent / ".tiny-v3.1.tmp").mkdir()
    (zoo.parent / ".tiny-v3.1.tmp" / "config.json").write_text("{}")
    assert defectnet.list_checkpoints() == ["tiny-v1"]


def snapshot(folder: Path) -> Path:
    """Return a copy of a checkpoint as the Hub's client keeps it: in a folder that is called by its commit."""
    return Path(shutil.copytree(folder, folder.parent / "snapshots" / ("0123456789abcdef" * 2 + "01234567")))


def test_published_checkpoints_are_their_commit(zoo, monkeypatch):
    asked, fetched = [], snapshot(zoo)

    def download(repo: str, **settings: object) -> str:
        asked.append((repo, settings["revision"]))
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    commit = fetched.name
    monkeypatch.setitem(PUBLISHED, "tiny-v9", ("lab/tiny", commit))
    monkeypatch.setitem(PUBLISHED, "tiny-v1", ("lab/other", commit))
    assert defectnet.list_checkpoints() == ["tiny-v1", "tiny-v9"]
    assert from_pretrained("tiny-v9", cache_dir=zoo.parent / "empty").name == "tiny-v9"
    assert resolve("tiny-v1")[0] == zoo  # the bundled folder wins
    assert asked == [("lab/tiny", commit)]
    with pytest.raises(CheckpointError, match="Leave revision out"):
        resolve("tiny-v9", revision="v1")


def test_the_table_of_published_checkpoints_is_sound():
    for name, (repo, commit) in PUBLISHED.items():
        assert "/" not in name
        assert repo.count("/") == 1
        assert len(bytes.fromhex(commit)) == 20


@pytest.mark.parametrize("source", ["tiny-v1", "../tiny-v1"])
def test_only_downloads_can_be_forced(zoo, source):
    with pytest.raises(CheckpointError, match="force_download=True is given with"):
        resolve(source, force_download=True)
    with pytest.raises(CheckpointError, match="exclude each other"):
        resolve("lab/tiny", force_download=True, local_files_only=True)


def test_repository(zoo, monkeypatch, caplog):
    asked, fetched = {}, snapshot(zoo)

    def download(repo: str, **settings: object) -> str:
        asked.update(settings, repo=repo)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = from_pretrained("lab/tiny", revision="v1", cache_dir=zoo.parent, local_files_only=True)
    assert model.name == "lab/tiny"
    assert (asked["repo"], asked["revision"], asked["local_files_only"]) == ("lab/tiny", "v1", True)
    assert not any(name.endswith((".bin", ".pt")) for name in asked["allow_patterns"])
    with caplog.at_level(logging.INFO):
        from_pretrained("lab/tiny")
    assert "resolved to commit" in caplog.text


def test_repository_that_is_not_cached_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="'lab/tiny' is not in the cache"):
        from_pretrained("lab/tiny", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("404", response=NotFoundResponse()), "does not exist or is not public"),
        (errors.RevisionNotFoundError("404", response=NotFoundResponse()), "at revision 'v9' does not exist"),
        (errors.LocalEntryNotFoundError("offline"), "not in the cache"),
        (ConnectionResetError("reset by peer"), "could not be fetched .reset by peer."),
        (errors.HFValidationError("bad name"), "could not be fetched .bad name."),
    ],
)
def test_failed_downloads_are_one_clear_error(monkeypatch, error, message):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained("lab/tiny", revision="v9")
    assert caught.value.fix


def test_bundled_checkpoints_reproduce_their_golden_outputs():
    for name in bundled():
        verify(resolve(name)[0], from_pretrained(name))
