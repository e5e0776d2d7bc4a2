"""Settings that data, networks and checkpoints share; plain values, written to and read from JSON."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError


class Settings:
    """Base of frozen dataclasses that travel as JSON objects: strict both ways, so that a typing error is an error."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values: numbers, strings, lists and nested dictionaries."""
        plain = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {key: _plain(value) for key, value in plain.items()}

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "") -> Self:
        """Build the settings from what `to_dict` returned; fields left out take their defaults.

        Args:
            values: A JSON object.
            where: What the object is called in errors, for instance ``"config.json: net"``.

        Raises:
            ConfigError: Not an object, an unknown or missing key, a value of the wrong type or out of range.
        """
        where = where or cls.__name__
        if not isinstance(values, dict):
            raise ConfigError(f"{where} is {type(values).__name__}", fix="It must be an object with named fields")
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in values:
            if key not in fields:
                raise ConfigError(f"{where}.{key} is not a known field", fix=f"Known are {', '.join(fields)}")
        for name, field in fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise ConfigError(f"{where}.{name} is missing", fix=f"Add the field {name}")
        hints = get_type_hints(cls)
        return cls(**{key: _typed(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the annotated type, or raise a ConfigError that names the field."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        return hint.from_dict(value, where=where)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_typed(value[i], kind, f"{where}[{i}]") for i, kind in enumerate(kinds))
    elif get_origin(hint) is dict and isinstance(value, dict):
        return value
    elif get_origin(hint) is None and isinstance(value, bool) == (hint is bool):
        if hint is float and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
        if isinstance(value, hint) and hint is not float:
            return value
    elif type(None) in get_args(hint):  # `X | None`
        inner = next(kind for kind in get_args(hint) if kind is not type(None))
        return None if value is None else _typed(value, inner, where)
    expected = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}.get(
        hint, "a list"
    )
    raise ConfigError(f"{where} is {value!r:.80}", fix=f"It must be {expected}")


def check(condition: bool, field: str, value: object, fix: str) -> None:
    """Raise a ConfigError that names a field and its value, unless a condition holds."""
    if not condition:
        raise ConfigError(f"{field} is {value!r:.80}", fix=fix)


@dataclass(frozen=True)
class Grid(Settings):
    """Energies relative to the host's band edge.

    Heavy hosts end at 15 meV and diamond at 165: an absolute grid would resolve one and lose the other.
    Bin i covers `i * width` to `(i + 1) * width`; 1.0 is the edge.

    Attributes:
        bins: Number of bins, L.
        reach: Upper end in units of the edge; local modes of light dopants lie above 1.
    """

    bins: int = 256
    reach: float = 2.56

    def __post_init__(self) -> None:
        if self.bins < 16:
            raise ConfigError(f"grid.bins is {self.bins}", fix="Use at least 16 bins")
        if not 1.0 < self.reach <= 10.0:
            raise ConfigError(f"grid.reach is {self.reach}", fix="Use a value above 1 (the host's edge), up to 10")

    @property
    def width(self) -> float:
        """Width of a bin, in units of the edge."""
        return self.reach / self.bins

    @property
    def edges(self) -> NDArray[np.float64]:
        """(bins + 1,) bin edges, in units of the host's band edge."""
        return np.linspace(0.0, self.reach, self.bins + 1, dtype=np.float64)

    @property
    def centres(self) -> NDArray[np.float64]:
        """(bins,) bin centres, in units of the host's band edge."""
        return np.asarray((np.arange(self.bins) + 0.5) * self.width, dtype=np.float64)


MODEL_GRID = Grid(bins=256, reach=2.56)
"""What networks see, by default: 0.01 of the edge."""

STORAGE_GRID = Grid(bins=600, reach=3.0)
"""What shards store: 0.005 of the edge (0.08 meV in a heavy host, 0.8 meV in diamond)."""

PROJECTED_BINS = 64
"""Bins, on the range of a network's grid, of the projected DOS that training may show and of what is compared to it."""


@dataclass(frozen=True)
class ModelSpec(Settings):
    """What a network reads and answers; two networks with equal specs take the same batches.

    Attributes:
        grid: Energies of the spectra.
        elements: The vocabulary, in order; only the package's own is known today, and is stored to notice a change.
        kinds: Kinds of DOS (`defectnet.spectrum.KINDS`) that the network was trained on; others draw a warning.
    """

    grid: Grid = MODEL_GRID
    elements: tuple[str, ...] = VOCABULARY
    kinds: tuple[str, ...] = ("total",)

    def __post_init__(self) -> None:
        fix = "Use a checkpoint and a package of the same vocabulary: upgrade the older of the two"
        different = sorted(set(self.elements) ^ set(VOCABULARY))[:5] or "the order differs"
        check(self.elements == VOCABULARY, "spec.elements: difference from this vocabulary", different, fix)
        ok = bool(self.kinds) and len(set(self.kinds)) == len(self.kinds)
        check(ok, "spec.kinds", self.kinds, "Name one kind of DOS or more, each once")


@dataclass(frozen=True)
class DefectNetConfig(Settings):
    """Size of `defectnet.models.defectnet.DefectNet`.

    Attributes:
        d_model: Width of the tokens, D.
        heads: Attention heads; must divide `d_model`.
        encoder_layers: Blocks over the tokens of spectra and composition.
        decoder_layers: Blocks over the element queries.
        patch: Energy bins per token; must divide the grid's bins.
        mlp_ratio: Hidden width of a block's MLP over `d_model`.
        dropout: Share of activations dropped in training.
        impurity: Whether the queries hold fits of predicted responses to each element (`defectnet.nn.impurity`).
        correlated: Whether they also hold fits that allow for correlated errors of the responses; needs `impurity`.
        resolved: Whether responses are put together element by element (`defectnet.nn.changes`), which is learnt from
            projected DOS (`data.projected`); needs `impurity`.
    """

    d_model: int = 48
    heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    patch: int = 8
    mlp_ratio: int = 2
    dropout: float = 0.1
    impurity: bool = True
    correlated: bool = False
    resolved: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("d_model", 8, 4096),
            ("heads", 1, 64),
            ("encoder_layers", 1, 64),
            ("decoder_layers", 1, 64),
            ("patch", 1, 64),
            ("mlp_ratio", 1, 8),
        ):
            value = getattr(self, name)
            check(low <= value <= high, f"net.{name}", value, f"Use a whole number from {low} to {high}")
        check(self.d_model % self.heads == 0, "net.heads", self.heads, f"It must divide d_model = {self.d_model}")
        check(self.d_model % 2 == 0, "net.d_model", self.d_model, "Use an even number")
        check(0.0 <= self.dropout < 1.0, "net.dropout", self.dropout, "Use a number from 0 up to, not including, 1")
        for name in ("correlated", "resolved"):
            check(self.impurity or not getattr(self, name), f"net.{name}", True, "Set net.impurity: true too")
