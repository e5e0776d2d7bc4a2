"""Read and write checkpoint folders: config.json, model.safetensors, golden.safetensors, README.md.

Reading is strict: every tensor and every field is known and has its shape and type, the weights have the hash that
the config states, and no pickle is ever opened. No class named in a file is imported; names are looked up in
`defectnet.models.registry`.
"""

from __future__ import annotations

import json
import math
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.overrides import TorchFunctionMode

from defectnet.batch import MEASURED, Batch, Output
from defectnet.elements import INDEX, VOCABULARY, parse_formula
from defectnet.errors import CheckpointError, ConfigError, FormulaError
from defectnet.files import file_sha256, home_expanded, put_back, read_json, replacing_folder
from defectnet.models.base import DefectModel
from defectnet.models.calibration import Calibration
from defectnet.models.registry import architecture

SCHEMA_VERSION: Final = 1
CONFIG, WEIGHTS, GOLDEN, CARD = "config.json", "model.safetensors", "golden.safetensors", "README.md"
BESIDE: Final = ("finetune.json",)
"""What else may lie in the folder of a checkpoint."""

_KEYS: Final = {
    "schema_version": int,
    "architecture": str,
    "spec": dict,
    "net": dict,
    "weights_sha256": str,
    "calibration": dict | None,
    "training": dict,
    "defectnet_version": str,
}
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TOLERANCE: Final = 1e-5
NEWER: Final = "Upgrade"
"""How the fix begins of a checkpoint that is whole, but too new for this version."""
_OUTPUTS: Final = {"identity_logits": "output.identity_logits", "concentration_if_present": "output.concentration"}
"""Names in a golden file of what every network says; the second is older than the field's."""
_FURTHER: Final = "output.further."
_OTHER: Final = "output.something_else"
_MAKERS: Final = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full})
"""What makes tensors of any size from nothing."""
_SLACK: Final = 4  # numbers a byte: weights are made, filled and copied
_BUFFERS: Final = 2**25  # numbers that a small network may make beside its weights
_AGAIN: Final = "Copy or download the checkpoint again"
_EARLIER: Final = "Export an earlier training state"


def load(folder: str | os.PathLike[str]) -> DefectModel:
    """Load a network from a folder, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: Anything is missing, damaged, unknown, or of another shape than the config says.
    """
    folder = Path(folder)
    config = _read_config(folder)
    path = folder / CONFIG
    try:
        cls = architecture(config["architecture"])
        with _NoLargerThan(_checked_size(folder / WEIGHTS, config["weights_sha256"])):
            model = cls.from_config(config["spec"], config["net"])
        calibration = config["calibration"]
        if calibration is not None:
            model.calibration = Calibration.from_dict(calibration, where="calibration")
        _check_training(config["training"])
    except (ConfigError, FormulaError) as error:
        raise CheckpointError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error
    model.training_info = config["training"]
    model.load_state_dict(_read_weights(folder / WEIGHTS, model), strict=True)
    model.name, model.source = folder.resolve().name, folder.resolve()
    return model.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    """Read config.json and check its own fields; what lies inside `spec` and `net` is checked where it is used."""
    path = folder / CONFIG
    put_back(folder)
    if not folder.is_dir():
        raise CheckpointError(f"folder {folder} does not exist", fix="Check the path")
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}", fix="Give the folder of a checkpoint, as `save` wrote it")
    try:
        config = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON", why=str(error), fix=_AGAIN) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not an object", fix=_AGAIN)
    schema = config.get("schema_version")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise CheckpointError(f"{path}: schema_version is {schema!r}", fix="Give a checkpoint that defectnet wrote")
    if schema > SCHEMA_VERSION:
        writer = str(config.get("defectnet_version", "a newer version"))[:20]
        raise CheckpointError(
            f"{path} has schema version {schema}, this defectnet reads up to {SCHEMA_VERSION}",
            fix=f"{NEWER}: pip install 'defectnet>={writer}'",
        )
    for key in [*config, *_KEYS]:
        if key not in _KEYS or key not in config:
            state = "is missing" if key in _KEYS else "is not a known field"
            raise CheckpointError(f"{path}: {key} {state}", fix=f"Fields are {', '.join(_KEYS)}. {_AGAIN}")
        if not isinstance(config[key], _KEYS[key]):
            raise CheckpointError(f"{path}: {key} is a {type(config[key]).__name__}", fix=_AGAIN)
    return config


def _checked_size(path: Path, sha256: str) -> int:
    """Return the bytes of a weights file that is there and has its hash."""
    if not path.is_file():
        pickles = sorted(file.name for file in path.parent.iterdir() if file.suffix in _PICKLES)
        fix = "Pickle files are never read; convert it with safetensors" if pickles else _AGAIN
        raise CheckpointError(f"{path} is missing", why=f"found {', '.join(pickles)}" if pickles else "", fix=fix)
    if file_sha256(path) != sha256:
        why = f"sha256 is not {sha256[:12]}..., as {CONFIG} states"
        raise CheckpointError(f"{path} is truncated, changed, or of another checkpoint", why=why, fix=_AGAIN)
    return path.stat().st_size


class _NoLargerThan(TorchFunctionMode):
    """Refuses to make a network of more numbers than its weights file can hold.

    A config of a kilobyte can ask for any amount of memory, and for hours to fill it.

    Args:
        size: Bytes of the file.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._left = _SLACK * size + _BUFFERS

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS:
            asked = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            self._left -= math.prod(x for x in asked if isinstance(x, int))
            if self._left < 0:
                raise ConfigError("spec and net ask for a network larger than its weights file", fix=_AGAIN)
        return func(*args, **kwargs)


def _read_weights(path: Path, model: DefectModel) -> dict[str, Tensor]:
    """Read the weights; names, shapes and types must be those of `model`, but for weights kept in half precision."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file", why=str(error)[:160], fix=_AGAIN) from error
    wanted, halved = model.state_dict(), {name for name, _ in model.named_parameters()}
    for name in [*wanted, *found]:
        if name not in found or name not in wanted:
            state = "is missing" if name in wanted else "is not part of the network"
            raise CheckpointError(f"{path}: tensor {name} {state}", fix=_AGAIN)
        types = (wanted[name].dtype, torch.float16) if name in halved else (wanted[name].dtype,)
        if found[name].shape != wanted[name].shape or found[name].dtype not in types:
            why = f"{_form(found[name])}, the config asks for {_form(wanted[name])}"
            raise CheckpointError(f"{path}: tensor {name} has another shape or type", why=why, fix=_AGAIN)
        if not torch.isfinite(found[name]).all():
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity", fix=_EARLIER)
    return {name: x.to(wanted[name].dtype) for name, x in found.items()}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _form(x: Tensor) -> str:
    return f"{tuple(x.shape)} {_short(x.dtype)}"


def _check_training(training: dict[str, Any]) -> None:
    """Check the fields of `training` that `predict` uses; the rest is a record."""
    edges = training.get("edge_mev", [0.0, 1.0])
    numbers = isinstance(edges, list | tuple) and all(type(x) in (int, float) and math.isfinite(x) for x in edges)
    if not numbers or len(edges) != 2 or not 0.0 <= edges[0] < edges[1]:
        raise ConfigError(f"training.edge_mev is {edges!r:.80}", fix="Give the lowest and the highest edge, in meV")
    hosts = training.get("host_elements", [])
    if not isinstance(hosts, list | tuple) or any(not isinstance(x, str) or x not in INDEX for x in hosts):
        raise ConfigError(f"training.host_elements is {hosts!r:.80}", fix="Give a list of symbols of the vocabulary")
    tuned = training.get("finetuning", {})
    formulas = tuned.get("hosts", []) if isinstance(tuned, dict) else None
    if not isinstance(formulas, list) or not all(isinstance(formula, str) for formula in formulas):
        raise ConfigError(f"training.finetuning is {tuned!r:.80}", fix="Give an object with a list of hosts")
    for formula in formulas:
        parse_formula(formula)


def read_golden(folder: str | os.PathLike[str]) -> tuple[Batch, Output]:
    """Read a checkpoint's sample inputs and the outputs that it gave when it was saved.

    Raises:
        CheckpointError: The file is missing or not whole.
    """
    path = Path(folder) / GOLDEN
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is missing or not whole", why=str(error)[:160], fix=_AGAIN) from error
    wanted = {f"input.{name}" for name in MEASURED} | set(_OUTPUTS.values())
    further = {name for name in set(found) - wanted if name.startswith(_FURTHER)}
    if set(found) - {_OTHER} != wanted | further:
        odd = ", ".join(sorted((set(found) - {_OTHER}) ^ (wanted | further)))
        raise CheckpointError(f"{path} has other tensors than a golden file", why=odd[:160], fix=_AGAIN)
    _check_golden(path, found)
    batch = Batch._make((*(found[f"input.{name}"] for name in MEASURED), None))
    logits, concentration = (found[name] for name in _OUTPUTS.values())
    more = {name.removeprefix(_FURTHER): found[name] for name in sorted(further)}
    return batch, Output(logits, concentration, more, found.get(_OTHER))


def _check_golden(path: Path, found: dict[str, Tensor]) -> None:
    """Check that the tensors of a golden file have types and shapes of one batch of a row or more."""
    rows = len(found["input.host"]) if found["input.host"].dim() else 0
    elements = len(VOCABULARY)
    bins = found["input.host"].shape[-1] if found["input.host"].dim() else 0
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("input.host", "input.doped"), (rows, bins)),
        **dict.fromkeys(("input.edge_mev", "input.candidates_given", "input.kind", _OTHER), (rows,)),
    }
    kinds = {"input.candidates": torch.bool, "input.candidates_given": torch.bool, "input.kind": torch.int64}
    for name, x in found.items():
        shape, dtype = shapes.get(name, (rows, elements)), kinds.get(name, torch.float32)
        if not rows or not bins or tuple(x.shape) != shape or x.dtype != dtype:
            why = f"{_form(x)}, not {shape} {_short(dtype)} of at least one row"
            raise CheckpointError(f"{path}: {name} has another shape or type", why=why, fix=_AGAIN)
        if not torch.isfinite(_told(name, x)).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity", fix=_AGAIN)


def _told(name: str, x: Tensor) -> Tensor:
    """Return the numbers that an output must tell: whether something else is there it may leave open, as NaN."""
    return x[~torch.isnan(x)] if name == _OTHER else x


def _outputs(output: Output) -> dict[str, Tensor]:
    """Return the tensors of an output by their names in a golden file."""
    return {
        **{name: getattr(output, field) for field, name in _OUTPUTS.items()},
        **{f"{_FURTHER}{name}": x for name, x in output.further.items()},
        **({} if output.something_else is None else {_OTHER: output.something_else}),
    }


def verify(folder: str | os.PathLike[str], model: DefectModel | None = None) -> None:
    """Check that a checkpoint reproduces its golden outputs on this machine.

    Args:
        folder: The checkpoint.
        model: The network, if it is loaded already.

    Raises:
        CheckpointError: It does not load, or an output differs.
    """
    model = model or load(folder)
    batch, wanted = read_golden(folder)
    try:
        kept, found = _outputs(wanted), _outputs(model.predict_batch(batch))
    except ConfigError as error:
        raise CheckpointError(f"{Path(folder) / GOLDEN}: {error.what}", why=error.why, fix=_AGAIN) from error
    for name in dict.fromkeys([*kept, *found]):
        if name not in kept or name not in found:
            which = "the network" if name in kept else "the file"
            raise CheckpointError(f"{Path(folder) / GOLDEN}: {which} holds no {name}", fix=_AGAIN)
        old, new = kept[name], found[name]
        if old.shape != new.shape or not torch.allclose(old, new, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
            why = f"by up to {(old - new).abs().max():.2g}" if old.shape == new.shape else f"{_form(old)}, {_form(new)}"
            fix = f"{_AGAIN}; if that does not help, report it with the versions of defectnet and torch"
            raise CheckpointError(f"{Path(folder) / GOLDEN}: {name} is not reproduced", why=why, fix=fix)


def save(
    model: DefectModel,
    folder: str | os.PathLike[str],
    *,
    golden: Batch,
    card: str,
    training: dict[str, Any],
    half: bool = False,
) -> Path:
    """Write a checkpoint, load it back, and compare outputs; only then does it take its place.

    Everything is written to a temporary folder beside the target, which then takes its place in one step. An older
    checkpoint of the same name is replaced as a whole; a folder with anything else in it is left alone.

    Args:
        model: The trained network, with its calibration.
        folder: Where to write; its name is the checkpoint's name.
        golden: Sample inputs, a few rows, to be stored with the outputs.
        card: Text of README.md: intended use, data, metrics, where it fails.
        training: Record of data, recipe and versions, JSON-able; `edge_mev` and `host_elements` draw warnings.
        half: Write weights in half precision, which they must have been rounded to (`round_to_half`).

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder holds something else, or what was written does not reproduce the outputs.
        ConfigError: A setting has a value that it cannot have.
    """
    folder = check_replaceable(folder)
    if not card.strip():
        raise ConfigError("card is empty", fix="Say what the checkpoint is for, what it was trained on, how good it is")
    if not len(golden.host):
        raise ConfigError("golden has no rows", fix="Give one sample at least")
    with replacing_folder(folder) as temporary:
        _write(temporary, model, golden, card, training, half)
        verify(temporary)
    return folder


def check_replaceable(folder: str | os.PathLike[str]) -> Path:
    """Return where a checkpoint can be written, links followed: a place that is free, or a checkpoint.

    Raises:
        CheckpointError: A file is there, or a folder with anything that is no part of a checkpoint; other programs keep
            files of the same names, too.
    """
    folder = home_expanded(folder).resolve()
    put_back(folder)
    if not folder.exists():
        return folder
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if not held:
        return folder
    why = ""
    other = sorted(held - {CONFIG, WEIGHTS, GOLDEN, CARD, *BESIDE})
    if CONFIG in held and not other:
        try:
            _read_config(folder)
        except CheckpointError as error:
            why = error.what
        else:
            return folder
    elif CONFIG in held:
        why = f"it also holds {', '.join(other[:3])}"
    raise CheckpointError(f"{folder} exists and is no checkpoint", why=why, fix="Give a new folder")


def round_to_half(model: DefectModel) -> None:
    """Round the weights of a network to half precision, in place; buffers, such as wavelengths, stay as they are.

    Raises:
        ConfigError: A weight is beyond the range of half precision, or no number.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not torch.isfinite(weight.half()).all():
                raise ConfigError(f"weight {name} is beyond half precision", fix="Export without --half")
            weight.copy_(weight.half())


def _write(
    folder: Path,
    model: DefectModel,
    golden: Batch,
    card: str,
    training: dict[str, Any],
    half: bool,
) -> None:
    """Write the four files."""
    # Cloned, because buffers may share memory, which safetensors refuses.
    weights = {name: x.detach().cpu().clone().contiguous() for name, x in model.state_dict().items()}
    if half:
        for name, _ in model.named_parameters():
            if not torch.equal(weights[name].half().to(weights[name].dtype), weights[name]):
                raise ConfigError(f"weight {name} is not of half precision", fix="Use round_to_half first")
            weights[name] = weights[name].half()
    (folder / WEIGHTS).write_bytes(to_bytes(weights))  # `save_file` would shut out all but its owner
    output = model.predict_batch(golden)
    if not all(torch.isfinite(_told(name, x)).all() for name, x in _outputs(output).items()):
        raise CheckpointError("the network answers the sample inputs with NaN or infinity", fix=_EARLIER)
    tensors = {f"input.{name}": x.cpu().contiguous() for name, x in golden.tensors().items()}
    tensors |= {name: x.contiguous() for name, x in _outputs(output).items()}
    (folder / GOLDEN).write_bytes(to_bytes(tensors))
    config = {
        "schema_version": SCHEMA_VERSION,
        "defectnet_version": version("defectnet"),
        **model.config,
        "weights_sha256": file_sha256(folder / WEIGHTS),
        "calibration": None if model.calibration is None else model.calibration.to_dict(),
        "training": training,
    }
    try:
        text = json.dumps(config, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        fix = "Use only numbers, texts, lists and dictionaries"
        raise ConfigError("training or calibration cannot be written as JSON", why=str(error)[:160], fix=fix) from error
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    (folder / CARD).write_text(card.rstrip() + "\n", encoding="utf-8")
