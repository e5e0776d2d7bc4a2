"""From what a user names to something that can be asked: a baseline, a checkpoint, or an own class.

Answers are checked here, once, for every entrant alike: what passes can be scored.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from defectnet.batch import Batch, Output
from defectnet.benchmark.protocol import Answerer, Estimate
from defectnet.config import MODEL_GRID, Calibration, Grid
from defectnet.data.candidates import Track
from defectnet.errors import ConfigError, DefectNetError
from defectnet.hub import from_pretrained
from defectnet.hub.catalogue import list_checkpoints
from defectnet.models.base import DefectModel
from defectnet.tasks.losses import expected_concentration

Kind = Literal["baseline", "checkpoint", "module"]

ALONE: Final = 3
"""Rows of a split that are asked again, alone, to see whether their answers depend on their batch mates."""

TOLERANCE: Final = {"probability": 1e-3, "concentration": 1e-4, "amount": 1e-3, "low": 1e-3, "high": 1e-3}
"""Largest difference of an answer in a batch from the same answer alone: more than rounding in single precision."""

_SLACK: Final = 1e-5  # rounding just outside of 0 to 1
_PROTOCOL: Final = "It must return an Estimate(probability, concentration, ...), see defectnet.benchmark.protocol"


@dataclass(frozen=True)
class Entrant:
    """Something that is benchmarked.

    Attributes:
        name: Name in tables, and of its result file.
        answerer: What answers.
        kind: Where it comes from.
        grid: Grid that its spectra are measured on.
        cannot: Tracks that it cannot answer -> why.
        coverage: Nominal coverage of its intervals; None without.
        notes: Plain values that are kept with its result.
    """

    name: str
    answerer: Answerer
    kind: Kind = "module"
    grid: Grid = MODEL_GRID
    cannot: Mapping[Track, str] = field(default_factory=dict)
    coverage: float | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint:
    """A trained network as an answerer, with its calibration applied.

    Args:
        model: A loaded network.
    """

    def __init__(self, model: DefectModel) -> None:
        self.model = model
        self.calibration = model.calibration or Calibration()

    def predict(self, batch: Batch) -> Estimate:
        """Answer a batch: probability after the track's temperature, and the conformal interval if there is one."""
        output = self.model.predict_batch(batch)
        numbers = self.calibration
        temperature = torch.where(
            batch.candidates_given, numbers.temperature_candidates, numbers.temperature_blind
        ).double()
        logits = output.identity_logits.double() / temperature[:, None]
        amount = output.concentration.double()
        expected = expected_concentration(Output(logits, amount), self.model.loss)
        band = numbers.interval
        if band is None:
            return Estimate(torch.sigmoid(logits), expected, amount)
        half = band.offset + band.slope * amount
        low, high = (amount - half).clamp(0.0, 1.0), (amount + half).clamp(0.0, 1.0)
        return Estimate(torch.sigmoid(logits), expected, amount, low, high)


class Ensemble:
    """The mean of what several answerers say; without intervals, which a mean does not have.

    Args:
        members: Who is asked.
    """

    def __init__(self, members: Sequence[Answerer]) -> None:
        self.members = tuple(members)

    def predict(self, batch: Batch) -> Estimate:
        """Answer a batch."""
        answers = [member.predict(batch) for member in self.members]
        amounts = [answer.concentration if answer.amount is None else answer.amount for answer in answers]
        return Estimate(
            torch.stack([answer.probability for answer in answers]).mean(0),
            torch.stack([answer.concentration for answer in answers]).mean(0),
            torch.stack(amounts).mean(0),
        )


def _ensemble(text: str, names: Sequence[str]) -> Entrant:
    members = [entrant_named(name) for name in names]
    if any(callable(getattr(member.answerer, "fit", None)) for member in members):
        raise ConfigError(f"ensemble {text!r} has a member that learns", fix="Name checkpoints, or fitted instances")
    if len({member.grid for member in members}) > 1:
        raise ConfigError(f"ensemble {text!r} has members of different grids", fix="Name networks of one grid")
    cannot = {track: why for member in members for track, why in member.cannot.items()}
    name = "+".join(member.name for member in members)
    architectures = [m.notes["architecture"] for m in members if "architecture" in m.notes]
    notes = {"description": f"Mean of {name.replace('+', ', ')}.", "members": architectures}
    return Entrant(name, Ensemble([m.answerer for m in members]), grid=members[0].grid, cannot=cannot, notes=notes)


def entrant_named(text: str) -> Entrant:
    """Make what a text names: a baseline's name, ``module:attr``, or what `defectnet.from_pretrained` takes.

    Args:
        text: For instance ``lightgbm``, ``defectnet-small``, ``./my-model``, ``org/repo``, ``my_module:MyClass``. A
            class is made without arguments, an instance is taken as it is, a function is called. Several of them,
            joined by ``+``, are an ensemble: ``defectnet-base+./my-model``.

    Raises:
        ConfigError: There is no such baseline, module or attribute, or it does not answer.
        CheckpointError: The checkpoint is not found, or not whole.
    """
    from defectnet.benchmark.baselines import BASELINES  # here, because they bring scikit-learn and LightGBM

    if text in BASELINES:
        baseline = BASELINES[text]
        return Entrant(text, baseline(), "baseline", notes={"description": _first_line(baseline)})
    if "+" in text and not Path(text).expanduser().exists():
        return _ensemble(text, text.split("+"))
    if text.startswith((".", "/", "~")) or ":" not in text:
        if not text.startswith((".", "/", "~")) and "/" not in text and text not in list_checkpoints():
            raise ConfigError(
                f"model {text!r} is neither a baseline nor a checkpoint",
                fix=f"Baselines: {', '.join(BASELINES)}. Checkpoints: {', '.join(list_checkpoints()) or 'none'}. "
                "Or give a folder (./path), org/repo, or module:attr for an own class",
            )
        return entrant_of_model(from_pretrained(text))
    module, _, attribute = text.partition(":")
    with _working_directory_importable():
        found = _attribute(_module(module, text), attribute, text)
        answerer = _made(found, text)
    name = attribute.rpartition(".")[2]
    if isinstance(answerer, DefectModel):
        return entrant_of_model(answerer, name)
    return Entrant(name, answerer, notes={"description": _first_line(answerer), "from": text})


def entrant_of_model(model: DefectModel, name: str | None = None) -> Entrant:
    """Make a trained network an entrant.

    Args:
        model: A loaded network.
        name: Its name in tables; the network's own by default.
    """
    # The published network takes the candidates as its query: it cannot be asked without.
    cannot: dict[Track, str] = {"blind": "takes the candidates as its query"} if model.loss == "paper" else {}
    band = model.calibration.interval if model.calibration else None
    keys = ("data_sha256", "train_rows", "train_pairs", "train_hosts")
    notes = {
        "description": _first_line(model),
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": {key: model.training_info[key] for key in keys if key in model.training_info},
    }
    coverage = band.coverage if band else None
    return Entrant(name or model.name, Checkpoint(model), "checkpoint", model.spec.grid, cannot, coverage, notes)


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().partition("\n")[0]


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _module(name: str, text: str) -> Any:
    fix = "Give module:attr, the module being a file of the working directory (my_module.py) or installed"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"model {text!r}: {name!r} is no name of a module", fix=fix)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"model {text!r}: there is no module {name!r}", fix=fix) from error
        raise ConfigError(f"model {text!r}: module {name!r} cannot be imported", why=str(error), fix=fix) from error
    except Exception as error:  # whatever a module does when it is imported
        why = _told(error)
        raise ConfigError(f"model {text!r}: module {name!r} cannot be imported", why=why, fix="Mend it") from error


def _attribute(module: Any, path: str, text: str) -> Any:
    found = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            offered = ", ".join(name for name in vars(module) if not name.startswith("_"))[:200]
            raise ConfigError(
                f"model {text!r}: module {module.__name__!r} has no {path!r}", fix=f"It has: {offered or 'nothing'}"
            ) from error
    return found


def _made(found: Any, text: str) -> Answerer:
    """Return an instance: made of a class, as it is, or from a function."""
    if isinstance(found, type) or not callable(getattr(found, "predict", None)):
        if not callable(found):
            raise ConfigError(f"model {text!r} is a {type(found).__name__} without predict(batch)", fix=_PROTOCOL)
        try:
            found = found()
        except DefectNetError:
            raise
        except Exception as error:  # whatever an own class does when it is made
            raise ConfigError(
                f"model {text!r} cannot be made without arguments",
                why=_told(error),
                fix="Give defaults to all arguments, or name a function that makes it",
            ) from error
    if not callable(getattr(found, "predict", None)):
        raise ConfigError(f"model {text!r} is a {type(found).__name__} without predict(batch)", fix=_PROTOCOL)
    answerer: Answerer = found
    return answerer


def _told(error: BaseException) -> str:
    """Say an error of somebody else's code, and the line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:160]}{place}"


def call(entrant: Entrant, method: str, *arguments: Any) -> Any:
    """Call `fit` or `predict` of an entrant; an error in it becomes one clear error that names the line.

    Raises:
        ConfigError: It raised something else than an error of this package.
    """
    try:
        return getattr(entrant.answerer, method)(*arguments)
    except DefectNetError:
        raise
    except Exception as error:  # whatever somebody else's code does
        raise ConfigError(f"{entrant.name}: {method} fails", why=_told(error), fix="Mend it; see the cause") from error


def ask(entrant: Entrant, batch: Batch) -> Estimate:
    """Ask an entrant and check what it says.

    Args:
        entrant: Who is asked; gets a copy, so that nobody can change what the next one sees.
        batch: What is asked.

    Returns:
        Float tensors (B, E) on the CPU; what is not in question is 0.

    Raises:
        ConfigError: The answer is no Estimate, of another shape, not finite, or outside of 0 to 1.
    """
    with torch.no_grad():
        answer = call(entrant, "predict", Batch(*(field.clone() for field in batch)))
    if not isinstance(answer, Estimate):
        raise ConfigError(f"{entrant.name}: predict returns a {type(answer).__name__}", fix=_PROTOCOL)
    if (answer.low is None) != (answer.high is None):
        raise ConfigError(f"{entrant.name}: only one end of the interval is given", fix="Give both low and high")
    fields = {name: _checked(entrant.name, name, value, batch) for name, value in answer._asdict().items()}
    if fields["probability"] is None or fields["concentration"] is None:
        raise ConfigError(f"{entrant.name}: probability or concentration is None", fix=_PROTOCOL)
    low, high = fields["low"], fields["high"]
    if low is not None and high is not None and bool((low > high).any()):
        raise ConfigError(f"{entrant.name}: an interval has low above high", fix="Swap them")
    return Estimate(**fields)  # type: ignore[arg-type]  # None was refused above


def _checked(entrant: str, name: str, value: Any, batch: Batch) -> Tensor | None:
    """Return one field of an answer, cut to 0 to 1 and 0 where an element is not in question."""
    if value is None:
        return None
    where = f"{entrant}: {name}"
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where} is a {type(value).__name__}", fix="Return a tensor (B, E) of numbers") from error
    asked = batch.candidates
    if tensor.shape != asked.shape:
        raise ConfigError(
            f"{where} has shape {tuple(tensor.shape)}, for {len(asked)} rows",
            fix=f"Return one number for each row and element, {tuple(asked.shape)}",
        )
    tensor = torch.where(asked, tensor.double(), 0.0)
    if not bool(torch.isfinite(tensor).all()):
        raise ConfigError(f"{where} is not finite for an element in question", fix="Answer with numbers from 0 to 1")
    least, most = float(tensor.min()) if len(tensor) else 0.0, float(tensor.max()) if len(tensor) else 0.0
    if least < -_SLACK or most > 1.0 + _SLACK:
        unit = "" if name == "probability" else ": atomic fractions, not at.%"
        raise ConfigError(f"{where} is {least if least < -_SLACK else most:.3g}", fix=f"Use 0 to 1{unit}")
    return tensor.clamp(0.0, 1.0)


def check_alone(entrant: Entrant, batch: Batch, answer: Estimate) -> None:
    """Ask a few rows of a batch again, alone, and compare.

    Raises:
        ConfigError: An answer depends on the batch mates, on the order, or on chance.
    """
    rows = sorted({0, len(batch.host) // 2, len(batch.host) - 1})[:ALONE]
    for row in rows:
        alone = ask(entrant, batch.rows(slice(row, row + 1)))
        for name, limit in TOLERANCE.items():
            one, many = getattr(alone, name), getattr(answer, name)
            if (one is None) != (many is None):
                raise ConfigError(f"{entrant.name}: {name} is given for some rows only", fix="Give it always, or never")
            if one is not None and float((one[0] - many[row]).abs().max()) > limit:
                raise ConfigError(
                    f"{entrant.name}: {name} of a row differs when it is asked alone",
                    why=f"by up to {float((one[0] - many[row]).abs().max()):.2g}",
                    fix="Answer each row by itself, without chance: no statistics over the batch, no dropout",
                )
