"""Settings that data, networks and checkpoints share; plain values, written to and read from JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, Self, cast, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError, DefectNetError


class Bounds(NamedTuple):
    """What values a field of settings may have; None does not bind. Of a tuple each item is meant.

    Attributes:
        least: Smallest value.
        most: Largest value.
        above: The value is larger than this.
        below: The value is smaller than this.
        multiple: The value is a multiple of this.
        choices: All values that there are.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    multiple: int = 1
    choices: tuple[str, ...] = ()

    def hold(self, value: Any, whole: bool) -> bool:
        """Return whether a value lies within, and is a whole number if it should be one."""
        if isinstance(value, tuple):
            return all(self.hold(item, whole) for item in value)
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (value % self.multiple == 0 if whole else math.isfinite(value))
        )

    def advice(self, whole: bool) -> str:
        """Return what to use, for an error."""
        if self.choices:
            return f"Use {', '.join(self.choices[:-1])} or {self.choices[-1]}"
        ends = {"from": self.least, "above": self.above, "up to": self.most, "below": self.below}
        words = ", ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)
        kind = f"a multiple of {self.multiple}" if self.multiple > 1 else "a whole number" if whole else "a number"
        return f"Use {kind} {words}"


def bounded(default: Any, least: float | None = None, most: float | None = None, **further: Any) -> Any:
    """Declare a field of a `Bounded` dataclass: its default, and the `Bounds` of its values."""
    return dataclasses.field(default=default, metadata=within(least, most, **further))


def within(least: float | None = None, most: float | None = None, **further: Any) -> dict[str, Bounds]:
    """Return the metadata of a field that has no default: ``field(metadata=within(0.0, 1.0))``."""
    return {"bounds": Bounds(least, most, **further)}


class Bounded:
    """Base of frozen dataclasses whose fields are held within bounds, see `bounded`.

    A subclass may say how it is called in errors, and which errors it raises: ``class X(Bounded, called="tracks")``.
    Fields that depend on each other are looked after in its own ``__post_init__``, by `require`.
    """

    _called: ClassVar[str] = ""
    _error: ClassVar[type[DefectNetError]] = ConfigError

    def __init_subclass__(cls, *, called: str | None = None, error: type[DefectNetError] | None = None) -> None:
        super().__init_subclass__()
        cls._called = cls._called if called is None else called
        cls._error = error or cls._error

    def __post_init__(self) -> None:
        hints = _hints(cast(Any, type(self)))
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            bounds, value = each.metadata.get("bounds"), getattr(self, each.name)
            if isinstance(value, list) and get_origin(hints.get(each.name)) is tuple:  # JSON has lists
                value = tuple(value)
                object.__setattr__(self, each.name, value)
            if bounds is None and each.name in hints:
                try:
                    _typed(value, hints[each.name], f"{self._called}.{each.name}" if self._called else each.name)
                except ConfigError as error:
                    raise self._error(error.what, fix=error.fix) from error
            if bounds is not None and not (value is None and "None" in str(each.type)):
                whole = str(each.type).removeprefix("tuple[").startswith("int")
                self.require(bounds.hold(value, whole), each.name, bounds.advice(whole))

    def require(self, condition: object, name: str, fix: str) -> None:
        """Raise the error of the class, which names a field, its value and what to do, unless a condition holds."""
        if not condition:
            place = f"{self._called}.{name}" if self._called else name
            raise self._error(f"{place} is {getattr(self, name)!r:.80}", fix=fix)


class Settings(Bounded):
    """Base of frozen dataclasses that travel as JSON objects: strict both ways, so that a typing error is an error.

    Attributes:
        retired: Fields that once could be chosen: files may hold them, with the one value that is left.
    """

    retired: ClassVar[Mapping[str, Any]] = {}

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
        fields = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key, only in cls.retired.items():
            if key in values and (type(values[key]) is not type(only) or values[key] != only):
                raise ConfigError(
                    f"{where}.{key} is {values[key]!r:.80}",
                    why=f"this version knows {only!r} alone",
                    fix="Train the network again, or read it with the version that wrote it",
                )
        values = {key: value for key, value in values.items() if key not in cls.retired}
        for key in values:
            if key not in fields:
                raise ConfigError(f"{where}.{key} is not a known field", fix=f"Known are {', '.join(fields)}")
        for name, each in fields.items():
            required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
            if required and name not in values:
                raise ConfigError(f"{where}.{name} is missing", fix=f"Add the field {name}")
        hints = get_type_hints(cls)
        return cls(**{key: _typed(value, hints[key], f"{where}.{key}") for key, value in values.items()})


@lru_cache(maxsize=256)
def _hints(cls: type) -> dict[str, Any]:
    """Return the types of the fields of a class, as far as they can be looked up."""
    try:
        return get_type_hints(cls)
    except NameError:  # a name that is imported for type checkers alone
        return {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the annotated type, or raise a ConfigError that names the field."""
    if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, int | float | np.generic):
        return value
    if isinstance(hint, type) and issubclass(hint, Settings):
        return hint.from_dict(value, where=where)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_typed(value[i], kind, f"{where}[{i}]") for i, kind in enumerate(kinds))
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ConfigError(f"{where} is {value!r:.80}", fix=f"Use {' or '.join(map(str, get_args(hint)))}")
    elif get_origin(hint) in (dict, Mapping) and isinstance(value, Mapping):
        return value
    elif get_origin(hint) is None and isinstance(value, bool) == (hint is bool):
        if hint is float and isinstance(value, int | float | np.number) and math.isfinite(value):
            return float(value)
        if hint is int and isinstance(value, np.integer):
            return int(value)
        if isinstance(value, hint) and hint is not float:
            return value
    elif type(None) in get_args(hint):  # `X | None`
        inner = next(kind for kind in get_args(hint) if kind is not type(None))
        return None if value is None else _typed(value, inner, where)
    expected = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}.get(
        hint, "a list"
    )
    raise ConfigError(f"{where} is {value!r:.80}", fix=f"It must be {expected}")


@dataclass(frozen=True)
class Grid(Settings, called="grid"):
    """Energies relative to the host's band edge.

    Heavy hosts end at 15 meV and diamond at 165: an absolute grid would resolve one and lose the other.
    Bin i covers `i * width` to `(i + 1) * width`; 1.0 is the edge.

    Attributes:
        bins: Number of bins, L.
        reach: Upper end in units of the edge; local modes of light dopants lie above 1.
    """

    bins: int = bounded(256, 16)
    reach: float = bounded(2.56, above=1.0, most=10.0)

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

MOST_BINS = 4096
"""Most bins that a network may read: a config says how much memory is taken before weights are looked at."""

PROJECTED_BINS = 64
"""Bins, on the range of a network's grid, of the projected DOS that training may show and of what is compared to it."""


@dataclass(frozen=True)
class ModelSpec(Settings, called="spec"):
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
        super().__post_init__()
        if self.elements != VOCABULARY:
            different = sorted(set(self.elements) ^ set(VOCABULARY))[:5] or "the order differs"
            raise ConfigError(
                f"spec.elements: difference from this vocabulary is {different}",
                fix="Use a checkpoint and a package of the same vocabulary: upgrade the older of the two",
            )
        if self.grid.bins > MOST_BINS:
            raise ConfigError(f"grid.bins is {self.grid.bins}", fix=f"Use {MOST_BINS} at most for a network")
        once = self.kinds and len(set(self.kinds)) == len(self.kinds)
        self.require(once, "kinds", "Name one kind of DOS or more, each once")


@dataclass(frozen=True)
class DefectNetConfig(Settings, called="net"):
    """Size of `defectnet.models.defectnet.DefectNet`.

    Attributes:
        d_model: Width of the tokens, D.
        heads: Attention heads; must divide `d_model`.
        encoder_layers: Blocks over the tokens of spectra and composition.
        decoder_layers: Blocks over the element queries.
        patch: Energy bins per token; must divide the grid's bins.
        mlp_ratio: Hidden width of a block's MLP over `d_model`.
        dropout: Share of activations dropped in training.
        something_else: Whether it says how probable a dopant is that is not in the list.
        computed_responses: Whether it reads what a host pack says of the crystal, where there is one.
    """

    retired: ClassVar[Mapping[str, Any]] = {"impurity": True, "correlated": True, "resolved": True}

    d_model: int = bounded(48, 8, 4096, multiple=2)
    heads: int = bounded(4, 1, 64)
    encoder_layers: int = bounded(2, 1, 64)
    decoder_layers: int = bounded(2, 1, 64)
    patch: int = bounded(8, 1, 64)
    mlp_ratio: int = bounded(2, 1, 8)
    dropout: float = bounded(0.1, 0.0, below=1.0)
    something_else: bool = False
    computed_responses: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.d_model % self.heads == 0, "heads", f"It must divide d_model = {self.d_model}")
