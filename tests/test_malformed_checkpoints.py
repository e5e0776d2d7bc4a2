"""Every damaged checkpoint, wrong source or wrong argument gives one error that names it and says how to mend it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from defectnet.config import DefectNetConfig, Grid, ModelSpec
from defectnet.errors import CheckpointError, ConfigError, DefectNetError
from defectnet.hub import from_pretrained, load, read_golden, save, verify
from defectnet.models.calibration import Calibration, Interval
from defectnet.models.paper import PaperConfig
from defectnet.models.registry import build_model
from defectnet.prediction import Prediction


@pytest.fixture
def folder(tiny_model, tiny_batch, tmp_path) -> Path:
    model = tiny_model("DefectNet")
    model.calibration = Calibration()
    return save(model, tmp_path / "tiny", golden=tiny_batch, card="# Tiny", training={})


def edit_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return apply


def set_field(*keys: str, value: Any) -> Callable[[Path], None]:
    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return edit_config(change)


def edit_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Change tensors and write the matching hash, so that only the tensors are wrong."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        sign(folder)

    return apply


def sign(folder: Path) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    set_field("weights_sha256", value=digest)(folder)


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def truncate_and_sign(folder: Path) -> None:
    truncate(folder)
    sign(folder)


def swap_weights(folder: Path) -> None:
    other = {name: value + 1.0 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "model.safetensors")


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


FIRST = "identity.net.1.weight"

MALFORMED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "config is empty": (write("config.json", b""), "config.json is not valid JSON"),
    "config is truncated": (write("config.json", b'{"schema_version": 1,'), "config.json is not valid JSON"),
    "config is binary": (write("config.json", b"\xff\xfe\x00\x01"), "config.json is not valid JSON"),
    "config is a list": (write("config.json", b"[]"), "holds a list"),
    "config holds NaN": (write("config.json", b'{"schema_version": NaN}'), "NaN is not a number of JSON"),
    "no schema version": (edit_config(lambda c: c.pop("schema_version")), "schema_version is None"),
    "schema version is a text": (set_field("schema_version", value="1"), "schema_version is '1'"),
    "schema version zero": (set_field("schema_version", value=0), "schema_version is 0"),
    "newer schema": (
        edit_config(lambda c: c.update(schema_version=2, defectnet_version="3.1")),
        "reads up to 1.*pip install 'defectnet>=3.1'",
    ),
    "missing field": (edit_config(lambda c: c.pop("net")), "config.json: net is missing"),
    "unknown field": (set_field("auto_map", value="module.Class"), "auto_map is not a known field"),
    "field of the wrong type": (set_field("training", value=[]), "training is a list"),
    "unknown architecture": (set_field("architecture", value="DefektNet"), "Did you mean DefectNet"),
    "architecture is a path": (set_field("architecture", value="os.system"), "architecture 'os.system' is not known"),
    "another architecture": (set_field("architecture", value="PaperDefectNet"), "net.d_model is not a known field"),
    "unknown setting": (set_field("net", "d_modle", value=64), "net.d_modle is not a known field"),
    "setting of the wrong type": (set_field("net", "d_model", value="64"), "net.d_model is '64'"),
    "setting is true": (set_field("net", "heads", value=True), "net.heads is True"),
    "setting out of range": (set_field("net", "d_model", value=-8), "net.d_model is -8"),
    "heads do not divide": (set_field("net", "heads", value=5), "must divide d_model = 16"),
    "patch does not divide": (set_field("net", "patch", value=7), "must divide the grid's 256 bins"),
    "grid ends at the edge": (set_field("spec", "grid", "reach", value=1.0), "grid.reach is 1.0"),
    "grid is a list": (set_field("spec", "grid", value=[256, 2.56]), "spec.grid is list"),
    "shorter vocabulary": (edit_config(lambda c: c["spec"]["elements"].pop()), "vocabulary is .'Bi'."),
    "reordered vocabulary": (edit_config(lambda c: c["spec"]["elements"].reverse()), "the order differs"),
    "unknown kind": (set_field("spec", "kinds", value=["partial"]), "spec.kinds names partial"),
    "no kind": (set_field("spec", "kinds", value=[]), "spec.kinds is"),
    "calibration out of range": (set_field("calibration", "threshold_blind", value=1.5), "threshold_blind is 1.5"),
    "calibration of no host": (
        set_field("calibration", "hosts", value=[{"formula": "Xx", "kind": "total", "numbers": {}}]),
        "calibration.hosts.formula",
    ),
    "calibration of no kind": (
        set_field("calibration", "hosts", value=[{"formula": "Si", "kind": "partial", "numbers": {}}]),
        "calibration.hosts.kind is 'partial'",
    ),
    "calibration of a host in a host": (
        set_field(
            "calibration",
            "hosts",
            value=[
                {
                    "formula": "Si",
                    "kind": "total",
                    "numbers": {"hosts": [{"formula": "Si", "kind": "total", "numbers": {}}]},
                }
            ],
        ),
        "calibration.hosts.numbers.hosts",
    ),
    "calibration lacks coverage": (set_field("calibration", "interval", value={"offset": 0.1}), "coverage is missing"),
    "training range reversed": (set_field("training", "edge_mev", value=[90, 10]), "training.edge_mev is"),
    "training range is a text": (set_field("training", "edge_mev", value="10-90"), "training.edge_mev is"),
    "unknown training host": (set_field("training", "host_elements", value=["Xx"]), "training.host_elements is"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "only a pickle": (only_pickle, "Pickle files are never read"),
    "truncated weights": (truncate, "model.safetensors is truncated"),
    "truncated weights, right hash": (truncate_and_sign, "no safetensors file"),
    "weights of another checkpoint": (swap_weights, "of another checkpoint"),
    "hash of another checkpoint": (set_field("weights_sha256", value="0" * 64), "sha256 is not 000000000000"),
    "nested too deeply": (write("config.json", b"[" * 100_000), "nested too deeply|recursion"),
    "too many bins": (set_field("spec", "grid", "bins", value=10**6), "grid.bins is 1000000"),
    "larger than its weights": (
        edit_config(lambda c: c["net"].update(d_model=4096, encoder_layers=64, decoder_layers=64)),
        "ask for a network larger than its weights file",
    ),
    "hosts that its weights do not hold": (
        edit_config(
            lambda c: c.update(
                architecture="MeasuredResponses",
                net={"inner": "DefectNet", "inner_net": c["net"], "hosts": 1000},
                spec={**c["spec"], "grid": {"bins": 2048, "reach": 2.56}},
            )
        ),
        "ask for a network larger than its weights file",
    ),
    "record of fine-tuning is a list": (set_field("training", value={"finetuning": []}), "training.finetuning is"),
    "fine-tuned on no hosts": (set_field("training", value={"finetuning": {"hosts": ["Xx"]}}), "formula"),
    "missing tensor": (edit_weights(lambda t: t.pop(FIRST)), f"tensor {FIRST} is missing"),
    "unknown tensor": (edit_weights(lambda t: t.update(extra=torch.ones(1))), "tensor extra is not part"),
    "tensor of another shape": (edit_weights(lambda t: t.update({FIRST: torch.ones(2, 2)})), r"\(2, 2\) float32"),
    "tensor of another type": (edit_weights(lambda t: t.update({FIRST: t[FIRST].double()})), "float64"),
    "tensor with NaN": (edit_weights(lambda t: t[FIRST].fill_(torch.nan)), "holds NaN or infinity"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_checkpoint(folder, case):
    damage, message = MALFORMED[case]
    load(folder)  # whole before
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(folder)
    assert str(folder) in str(caught.value)
    assert caught.value.fix


def edit_golden(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "golden.safetensors"
        tensors = load_file(path)
        for name, change in changes.items():
            key = name.replace("__", ".")
            tensors[key] = change(tensors[key]).contiguous()
        save_file(tensors, path)

    return apply


def no_rows(folder: Path) -> None:
    path = folder / "golden.safetensors"
    save_file({name: x[:0].contiguous() for name, x in load_file(path).items()}, path)


GOLDEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no golden file": (lambda f: (f / "golden.safetensors").unlink(), "golden.safetensors is missing"),
    "golden file is empty": (write("golden.safetensors", b""), "golden.safetensors is missing or not whole"),
    "golden file of something else": (
        lambda f: save_file({"x": torch.ones(1)}, f / "golden.safetensors"),
        "has other tensors",
    ),
    "no rows": (no_rows, "has another shape or type.*of at least one row"),
    "double precision": (edit_golden(input__host=lambda x: x.double()), "input.host .*float64, not"),
    "candidates are numbers": (edit_golden(input__candidates=lambda x: x.float()), "input.candidates has another"),
    "a row less": (edit_golden(input__doped=lambda x: x[1:]), "input.doped has another shape"),
    "few elements": (edit_golden(input__composition=lambda x: x[:, :5]), "input.composition has another shape"),
    "a number": (edit_golden(input__host=lambda x: x[0, 0]), "has another shape or type"),
    "answers of half precision": (edit_golden(output__concentration=lambda x: x.half()), "output.concentration has"),
    "NaN": (edit_golden(output__concentration=lambda x: x * torch.nan), "output.concentration holds NaN"),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_golden(input__kind=lambda x: x + 99), "golden.safetensors: row 0 of the batch: kind"),
        (edit_golden(input__edge_mev=lambda x: 0 * x), "golden.safetensors: row 0 of the batch: the band edge"),
        (
            edit_golden(input__host=lambda x: x[:, :9], input__doped=lambda x: x[:, :9]),
            "Use 256 bins|golden.safetensors",
        ),
    ],
)
def test_golden_input_that_cannot_be_asked(folder, change, message):
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


@pytest.mark.parametrize("case", GOLDEN)
def test_malformed_golden_file(folder, case):
    damage, message = GOLDEN[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        read_golden(folder)
    with pytest.raises(CheckpointError, match=message):
        verify(folder)


SOURCES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown name": ("defectnet-huge", {}, "no checkpoint is called 'defectnet-huge'"),
    "near miss": ("tinny", {}, "Did you mean tiny"),
    "empty name": ("", {}, "no checkpoint is called ''"),
    "folder in the working directory": ("subfolder", {}, "no checkpoint is called 'subfolder'"),
    "three parts": ("org/repo/file", {}, "no checkpoint is called 'org/repo/file'"),
    "revision in the name": ("org/repo@v1", {}, "contains '@'"),
    "revision of a folder": ("./tiny", {"revision": "v1"}, "Leave revision out"),
    "revision of a bundled name": ("tiny", {"revision": "v1"}, "Leave revision out"),
    "no folder": ("./missing", {}, "missing does not exist"),
    "a file": ("./tiny/config.json", {}, "is a file"),
    "folder without a checkpoint": ("./subfolder", {}, "holds no config.json"),
    "number": (7, {}, "source is a int"),
    "nothing": (None, {}, "source is a NoneType"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_malformed_source(folder, monkeypatch, case):
    source, settings, message = SOURCES[case]
    (folder.parent / "subfolder").mkdir()
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("defectnet.hub.catalogue.bundled_root", lambda: folder.parent)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(source, **settings)
    assert caught.value.fix


NUMBERS = ("probability", "concentration_if_present", "low", "high", "expected_concentration")


def prediction(**change: Any) -> Prediction:
    fields: dict[str, Any] = {name: np.zeros(2) for name in NUMBERS}
    fields |= {"elements": ("C", "Ge"), "coverage": 0.9, "threshold": 0.5, "candidates_given": True}
    return Prediction(**(fields | {"formula": "Si", "model": "tiny"} | change))


ARGUMENTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unknown device": (lambda f: from_pretrained(f, device="abacus"), "device is 'abacus'"),
    "device of another maker": (lambda f: from_pretrained(f, device="xpu"), "device 'xpu' is not there"),
    "device without numbers": (lambda f: from_pretrained(f, device="meta"), "device 'meta' is not there"),
    "nobody's folder": (lambda f: from_pretrained("~nouser/x"), "~nouser/x: Could not determine home"),
    "absent device": (lambda f: from_pretrained(f, device="cuda:99"), "device 'cuda:99' is not there"),
    "unknown network": (lambda f: build_model("ResNet"), "architecture 'ResNet' is not known"),
    "unknown size": (lambda f: build_model("DefectNet", net={"width": 3}), "net.width is not a known field"),
    "dropout of one": (lambda f: DefectNetConfig(dropout=1.0), "net.dropout is 1.0"),
    "odd width": (lambda f: DefectNetConfig(d_model=9, heads=3), "net.d_model is 9"),
    "even kernel": (lambda f: PaperConfig(kernel=4), "net.kernel is 4"),
    "too few bins for the vocabulary": (lambda f: PaperConfig(bins=50), "net.bins is 50"),
    "heads do not divide channels": (lambda f: PaperConfig(heads=7), "must divide channels = 128"),
    "infinite number": (lambda f: Grid.from_dict({"reach": float("inf")}), "Grid.reach is inf"),
    "grid of three bins": (lambda f: Grid(bins=3), "grid.bins is 3"),
    "spec is a list": (lambda f: ModelSpec.from_dict([]), "ModelSpec is list"),
    "elements is a text": (lambda f: ModelSpec.from_dict({"elements": "LiBe"}), "ModelSpec.elements is 'LiBe'"),
    "kinds twice": (lambda f: ModelSpec(kinds=("total", "total")), "spec.kinds is"),
    "coverage in percent": (lambda f: Interval(coverage=90.0, offset=0.1), "interval.coverage is 90.0"),
    "negative half-width": (lambda f: Interval(coverage=0.9, offset=-0.1), "interval.offset is -0.1"),
    "temperature zero": (lambda f: Calibration(temperature_blind=0.0), "calibration.temperature_blind is 0.0"),
    "batch size zero": (lambda f: load(f).predict_batch(None, batch_size=0), "batch_size is 0"),
    "arrays without a unit": (lambda f: load(f).predict(([1], [1]), ([1], [1]), "Si"), "without a unit"),
    "a number for a spectrum": (lambda f: load(f).predict(3.0, 3.0, "Si"), "host is a float"),
    "probabilities of another length": (lambda f: prediction(probability=np.zeros(3)), r"probability has shape \(3,\)"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_malformed_argument(folder, case):
    call, message = ARGUMENTS[case]
    with pytest.raises(ConfigError, match=message) as caught:
        call(folder)
    assert caught.value.fix
    assert isinstance(caught.value, DefectNetError)
