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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from defectnet.batch import Batch, Estimate
from defectnet.benchmark.protocol import ALL_TRACKS, KNOWN_CRYSTAL, TrainableEstimator
from defectnet.config import Grid
from defectnet.data.candidates import Track
from defectnet.errors import ConfigError, DefectNetError
from defectnet.files import home_expanded
from defectnet.hub import from_pretrained
from defectnet.hub.catalogue import list_checkpoints
from defectnet.models.base import DefectModel
from defectnet.models.estimator import NEEDS_CANDIDATES, Estimator

Kind = Literal["baseline", "checkpoint", "module"]

ONLY_KNOWN: Final = "holds the likeliest dopants of each host alone"

ALONE: Final = 3
"""Rows of a split that are asked again, alone, to see whether their answers depend on their batch mates."""

TOLERANCE: Final = {
    "probability": 1e-3,
    "expected_concentration": 1e-4,
    "concentration_if_present": 1e-3,
    "low": 1e-3,
    "high": 1e-3,
}
"""Largest difference of an answer in a batch from the same answer alone: more than rounding in single precision."""

_SLACK: Final = 1e-5  # rounding just outside of 0 to 1
_PROTOCOL: Final = (
    "Derive it from defectnet.models.estimator.Estimator; estimate(batch) must return an "
    "Estimate(probability, expected_concentration, ...) of defectnet.batch"
)


@dataclass(frozen=True)
class Entrant:
    """Something that is benchmarked.

    Attributes:
        name: Name in tables, and of its result file.
        estimator: What answers.
        kind: Where it comes from.
        notes: Plain values that are kept with its result.
    """

    name: str
    estimator: Estimator
    kind: Kind = "module"
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cannot(self) -> dict[Track, str]:
        """Tracks that it cannot answer -> why."""
        can = self.estimator.tracks
        if KNOWN_CRYSTAL in can:
            return dict.fromkeys((track for track in ALL_TRACKS if track not in can), ONLY_KNOWN)
        # Whoever takes candidates can be asked about those of a known crystal.
        wanted: dict[Track, Track] = {KNOWN_CRYSTAL: "candidates"}
        return {track: NEEDS_CANDIDATES for track in ALL_TRACKS if wanted.get(track, track) not in can}


class Ensemble(Estimator):
    """The mean of what several estimators say; without intervals, which a mean does not have.

    Args:
        members: Who is asked, all on one grid.
    """

    def __init__(self, members: Sequence[Estimator]) -> None:
        self.members = tuple(members)
        self.asks_blind = all(member.asks_blind for member in members)

    @property
    def grid(self) -> Grid:
        """Grid of the members."""
        return self.members[0].grid

    def estimate(self, batch: Batch) -> Estimate:
        """Answer a batch."""
        answers = [member.estimate(batch) for member in self.members]
        if_present = [
            x.expected_concentration if x.concentration_if_present is None else x.concentration_if_present
            for x in answers
        ]
        return Estimate(
            torch.stack([answer.probability for answer in answers]).mean(0),
            torch.stack([answer.expected_concentration for answer in answers]).mean(0),
            torch.stack(if_present).mean(0),
        )


def _ensemble(text: str, names: Sequence[str]) -> Entrant:
    members = [entrant_named(name) for name in names]
    if any(isinstance(member.estimator, TrainableEstimator) for member in members):
        raise ConfigError(f"ensemble {text!r} has a member that learns", fix="Name checkpoints, or fitted instances")
    if len({member.estimator.grid for member in members}) > 1:
        raise ConfigError(f"ensemble {text!r} has members of different grids", fix="Name networks of one grid")
    name = "+".join(member.name for member in members)
    architectures = [m.notes["architecture"] for m in members if "architecture" in m.notes]
    notes = {"description": f"Mean of {name.replace('+', ', ')}.", "members": architectures}
    return Entrant(name, Ensemble([member.estimator for member in members]), notes=notes)


def entrant_named(text: str) -> Entrant:
    """Make what a text names: a baseline's name, ``module:attr``, or what `defectnet.from_pretrained` takes.

    Args:
        text: For instance ``lightgbm``, ``defectnet-small``, ``./my-model``, ``org/repo``, ``my_module:MyClass``, or
            ``known-crystal:FOLDER`` of host packs. A class is made without arguments, an instance is taken as it is, a
            function is called. Several of them, joined by ``+``, are an ensemble: ``defectnet-base+./my-model``.

    Raises:
        ConfigError: There is no such baseline, module or attribute, or it does not answer.
        CheckpointError: The checkpoint is not found, or not whole.
    """
    from defectnet.benchmark.baselines import BASELINES  # here, because they bring scikit-learn and LightGBM
    from defectnet.benchmark.known_crystal import PREFIX, KnownCrystalEstimator

    if text.startswith(PREFIX):
        return entrant_of(KnownCrystalEstimator(text.removeprefix(PREFIX).split(",")), "known-crystal")
    if text in BASELINES:
        baseline = BASELINES[text]
        return _entrant(text, baseline(), "baseline")
    if "+" in text and not home_expanded(text).exists():
        return _ensemble(text, text.split("+"))
    if text.startswith((".", "/", "~")) or ":" not in text:
        if not text.startswith((".", "/", "~")) and "/" not in text and text not in list_checkpoints():
            raise ConfigError(
                f"model {text!r} is neither a baseline nor a checkpoint",
                fix=f"Baselines: {', '.join(BASELINES)}. Checkpoints: {', '.join(list_checkpoints()) or 'none'}. "
                "Or give a folder (./path), org/repo, or module:attr for an own class",
            )
        return entrant_of(from_pretrained(text))
    module, _, attribute = text.partition(":")
    with _working_directory_importable():
        found = _attribute(_module(module, text), attribute, text)
        estimator = _made(found, text)
    entrant = entrant_of(estimator, attribute.rpartition(".")[2])
    return entrant if entrant.kind == "checkpoint" else replace(entrant, notes={**entrant.notes, "from": text})


def entrant_of(estimator: Estimator, name: str | None = None) -> Entrant:
    """Make an estimator an entrant.

    Args:
        estimator: For instance a loaded network.
        name: Its name in tables; by default a network's own, or the name of the class.
    """
    if isinstance(estimator, DefectModel):
        return _entrant(name or estimator.name, estimator, "checkpoint")
    return _entrant(name or type(estimator).__name__, estimator, "module")


def _entrant(name: str, estimator: Estimator, kind: Kind) -> Entrant:
    return Entrant(name, estimator, kind, estimator.describe())


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


def _made(found: Any, text: str) -> Estimator:
    """Return an instance: made of a class, as it is, or from a function."""
    if not isinstance(found, Estimator):
        if not callable(found):
            raise ConfigError(f"model {text!r} is a {type(found).__name__}, no Estimator", fix=_PROTOCOL)
        try:
            found = found()
        except DefectNetError:
            raise
        except Exception as error:  # whatever an own class does when it is made
            raise ConfigError(
                f"model {text!r} cannot be made without arguments",
                why=_told(error),
                fix="Write all its methods, give defaults to all arguments, or name a function that makes it",
            ) from error
    if not isinstance(found, Estimator):
        raise ConfigError(f"model {text!r} is a {type(found).__name__}, no Estimator", fix=_PROTOCOL)
    return found


def _told(error: BaseException) -> str:
    """Say an error of somebody else's code, and the line of it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:160]}{place}"


def call(entrant: Entrant, method: str, *arguments: Any) -> Any:
    """Call `fit` or `estimate` of an entrant; an error in it becomes one clear error that names the line.

    Raises:
        ConfigError: It raised something else than an error of this package.
    """
    try:
        return getattr(entrant.estimator, method)(*arguments)
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
        answer = call(entrant, "estimate", batch.map(torch.clone))
    if not isinstance(answer, Estimate):
        raise ConfigError(f"{entrant.name}: estimate returns a {type(answer).__name__}", fix=_PROTOCOL)
    if (answer.low is None) != (answer.high is None):
        raise ConfigError(f"{entrant.name}: only one end of the interval is given", fix="Give both low and high")
    fields = {name: _checked(entrant.name, name, getattr(answer, name), batch) for name in TOLERANCE}
    if fields["probability"] is None or fields["expected_concentration"] is None:
        raise ConfigError(f"{entrant.name}: probability or expected_concentration is None", fix=_PROTOCOL)
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
