"""The answer to one question: which elements, with what probability, at what concentration; and how it is shown."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectnet.elements import INDEX, parse_formula
from defectnet.errors import ConfigError, DefectNetError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from defectnet.spectrum import Spectrum

FloatArray = NDArray[np.float64]

BLIND_ROWS: Final = 10
"""So many elements are shown of an answer to a question that named none."""

SURE: Final = 0.9
"""Least probability of an element that is said to be there without a "probably"."""

UNSURE: Final = 0.3
"""Where no element reaches this probability, none is named as found, whatever the threshold."""

LIKELY: Final = 0.5
"""Probability from which something that is not in the list is said to be there; nothing is then said for sure."""

EXPLAINS: Final = 0.6
"""Share of the change from which an answer explains it."""

EXPLAINS_PART: Final = 0.2
"""Share of the change below which an answer does not explain it."""

_NUMBERS: Final = ("edge_mev", "threshold", "coverage", "something_else", "explained")
_PLAIN: Final = (
    "formula",
    "model",
    "answered_by",
    "reason",
    "candidates_given",
    "unit",
    "kind",
    "kind_told",
    "unchanged",
)
_ARRAYS: Final = ("probability", "concentration_if_present", "low", "high", "expected_concentration")


class Fit(NamedTuple):
    """What an answer makes of the change of the spectrum, (n,) each.

    Attributes:
        energy_mev: Energies.
        measured: DOS of the doped sample less that of the host, unit area each; per meV.
        predicted: What the elements that were found account for.
    """

    energy_mev: FloatArray
    measured: FloatArray
    predicted: FloatArray


@dataclass(frozen=True)
class Unanswered:
    """Takes the place of an answer that could not be given.

    Attributes:
        error: What is wrong, why, and how to mend it.
        what: Name of the error's class.
    """

    error: str
    what: str

    def __bool__(self) -> bool:
        return False

    @classmethod
    def of(cls, error: Exception) -> Unanswered:
        """Record an error."""
        return cls(" ".join(str(error).split()), type(error).__name__)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"error": self.error, "what": self.what}


_Q = TypeVar("_Q")
_A = TypeVar("_A")


def recorded(ask: Callable[[Sequence[_Q]], list[_A]], queries: Sequence[_Q]) -> list[_A | Unanswered]:
    """Answer questions; one that cannot be answered is an `Unanswered` in its place, and ends nothing.

    Args:
        ask: Answers many at once, or raises for one of them.
        queries: The questions.
    """
    try:
        return list(ask(queries))
    except (DefectNetError, ArithmeticError, OSError, np.linalg.LinAlgError) as error:
        if len(queries) == 1:
            return [Unanswered.of(error)]
    half = len(queries) // 2
    return [*recorded(ask, queries[:half]), *recorded(ask, queries[half:])]


def _made(kind: type[Prediction], values: dict[str, Any]) -> Prediction:
    return kind(**values)


@dataclass(frozen=True, repr=False, eq=False)
class Prediction:
    """What a model says of one pair of spectra. Concentrations are atomic fractions, 0 to 1.

    Attributes:
        elements: The elements in question, in order of atomic number.
        probability: (len(elements),) probability that the element was substituted in.
        concentration_if_present: (len(elements),) expected concentration if it is present.
        low: (len(elements),) lower end of the interval of `concentration_if_present`; NaN without calibration.
        high: (len(elements),) upper end.
        expected_concentration: (len(elements),) expected concentration, present or not: near 0 where likely absent.
        coverage: Nominal coverage of the intervals, 0 to 1; NaN without calibration.
        threshold: Probability from which an element counts as present.
        candidates_given: True where the user named the elements, false where the whole vocabulary was in question.
        formula: Formula of the host.
        model: Name of the checkpoint or architecture.
        answered_by: ``network`` or ``measured responses``.
        reason: Why it was not the better of the two, or what it holds for; empty where there is nothing to say.
        edge_mev: Band edge as read from the host's spectrum, meV; NaN where it is not known.
        unit: Energy unit that the spectra were read in; empty where it is not known.
        kind: Kind of DOS that they were taken for; empty where it is not known.
        kind_told: Whether a file or a person said so, of both.
        unchanged: Why host and doped sample are taken for the same, so that nothing is present; empty otherwise.
        warnings: Reasons to trust the answer less, one sentence each.
        further: What else the network says of each element, by name, (len(elements),) each.
        something_else: Probability that an element was substituted in that is not in the list; NaN where it is not
            told, and where none were named, for then all are in question.
        explained: Share of the change of the spectrum, beyond noise, that the elements found account for, 0 to 1; NaN
            where it is not told, or where noise may be all there is.
        fit: The change, measured and predicted, where it is told.
        provenance: What it was made with, see `defectnet.provenance`.
        pair: The spectra of host and doped sample, for `plot`; None where they are not kept.
    """

    elements: tuple[str, ...]
    probability: FloatArray
    concentration_if_present: FloatArray
    low: FloatArray
    high: FloatArray
    expected_concentration: FloatArray
    coverage: float
    threshold: float
    candidates_given: bool
    formula: str
    model: str
    answered_by: str = "network"
    reason: str = ""
    warnings: tuple[str, ...] = ()
    edge_mev: float = math.nan
    unit: str = ""
    kind: str = ""
    kind_told: bool = True
    unchanged: str = ""
    further: Mapping[str, FloatArray] = field(default_factory=dict)
    something_else: float = math.nan
    explained: float = math.nan
    fit: Fit | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    pair: tuple[Spectrum, Spectrum] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        further = {name: self._checked(name, values) for name, values in self.further.items()}
        object.__setattr__(self, "further", MappingProxyType(further))

    def __reduce__(self) -> tuple[Any, ...]:
        """Come out of another process as it went in: what must not be written to is no plain dictionary."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return _made, (type(self), {**values, "further": dict(self.further), "provenance": dict(self.provenance)})

    def __eq__(self, other: object) -> bool:
        """Whether both say the same."""
        return isinstance(other, Prediction) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.sentence, self.model))

    def _checked(self, name: str, values: Any) -> FloatArray:
        array = np.array(values, dtype=np.float64)
        if array.shape != (len(self.elements),):
            raise ConfigError(
                f"prediction.{name} has shape {array.shape}", fix=f"It needs one number for {len(self.elements)}"
            )
        array.flags.writeable = False
        return array

    @property
    def order(self) -> NDArray[np.intp]:
        """(len(elements),) positions by falling probability; ties stay in order of atomic number."""
        return np.argsort(-self.probability, kind="stable")

    @property
    def present(self) -> tuple[str, ...]:
        """Elements whose probability reaches the threshold, the most probable first; none where nothing changed."""
        if self.unchanged:
            return ()
        return tuple(self.elements[i] for i in self.order if self.probability[i] >= self.threshold)

    @property
    def found(self) -> tuple[str, ...]:
        """Elements that the answer names as found: those of `present`, if any of all elements stands out (`UNSURE`)."""
        return self.present if max(self.probability, default=0.0) >= UNSURE else ()

    @property
    def verdict(self) -> str:
        """Goodness of fit: ``explains``, ``explains part`` or ``does not explain`` the change; else ``not known``."""
        if math.isnan(self.explained):
            return "not known"
        if self.explained >= EXPLAINS:
            return "explains"
        return "explains part" if self.explained >= EXPLAINS_PART else "does not explain"

    @property
    def something_else_is_likely(self) -> bool:
        """Whether something that is not in the list is said to be there."""
        return self.something_else >= LIKELY

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        if self.unchanged:
            return f"No dopant found in {self.formula}: {self.unchanged}."
        listed = self._of_the_list
        if not self.something_else_is_likely:
            return listed
        rest = listed[0].lower() + listed[1:] if listed.startswith("No dopant") else listed
        return f"Something that is not in the list is probably there ({self.something_else:.0%}); of the list: {rest}"

    @property
    def _of_the_list(self) -> str:
        """What is said of the elements in question, in one sentence."""
        if not self.present:
            best = self.order[0]
            return (
                f"No dopant found in {self.formula}: the most probable element, {self.elements[best]}, "
                f"has probability {self.probability[best]:.2f}, below the threshold of {self.threshold:.2f}."
                f"{' Yet the spectrum has changed by more than noise.' if self.verdict == 'does not explain' else ''}"
            )
        if not self.found:
            likely = [f"{self.elements[i]} ({self.probability[i]:.0%})" for i in self.order[:3]]
            return f"No dopant of {self.formula} stands out; the most probable are {', '.join(likely)}."
        chosen = [i for i in self.order if self.elements[i] in self.found]
        parts = []
        for i in chosen:
            band = self._interval(i)
            amount = f"about {100 * self.concentration_if_present[i]:.1f} at.%{', ' + band if band else ''}"
            parts.append(f"{self.elements[i]} ({self.probability[i]:.0%}; {amount})")
        listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        least = self.probability[chosen].min()
        doubt = self.something_else_is_likely or self.verdict == "does not explain"
        verb = "contains" if least >= SURE else "probably contains" if least >= 0.5 else "may contain"
        verb = "may contain" if doubt else verb
        return f"{self.formula} {verb} {listed}."

    @property
    def atoms_per_formula_unit(self) -> float:
        """Atoms of the formula as written: times a concentration they are x, as in Mg1-xAlxB2."""
        return sum(parse_formula(self.formula).values())

    def to_frame(self) -> pd.DataFrame:
        """Return a table, the most probable element first.

        Returns:
            Columns element, probability, concentration_if_present, low, high, expected_concentration, those of
            `further`, present.
        """
        import pandas as pd  # here, because it takes longer to import than a prediction takes

        order = self.order
        columns: dict[str, Any] = {"element": [self.elements[i] for i in order]}
        columns |= {name: values[order] for name, values in self._columns().items()}
        columns["present"] = [symbol in self.present for symbol in columns["element"]]
        return pd.DataFrame(columns)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw spectra, difference and elements, see `defectnet.plotting.plot_pair`.

        Raises:
            ConfigError: The spectra are not kept: it was read from JSON. Or matplotlib is not installed.
        """
        from defectnet.plotting import plot_pair  # only when asked: nothing else of an answer needs what lies above it

        if self.pair is None:
            raise ConfigError("the answer does not hold its spectra", fix="Keep them: to_dict(curves=True)")
        return plot_pair(*self.pair, self, path)

    def _repr_html_(self) -> str:
        lines = str(self).split("\n")
        start = lines.index("") + 1
        cells = [self._cells(i) for i in (self.order if self.candidates_given else self.order[:BLIND_ROWS])]
        return answer_html(lines[0], lines[1 : start - 1], [self._titles(), *cells], lines[start + len(cells) + 1 :])

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Prediction:
        """Return the answer that `to_dict` wrote, with its curves if it wrote them.

        Raises:
            ConfigError: It is not one.
        """
        from defectnet.spectrum import Spectrum  # here, because only what is read again needs it

        try:
            rows = sorted(document["elements"], key=lambda row: INDEX[row["element"]])
            names = [name for name in rows[0] if name not in ("element", "present")] if rows else list(_ARRAYS)
            columns: dict[str, Any] = {name: np.array([_from_number(row[name]) for row in rows]) for name in names}
            values: dict[str, Any] = {name: _from_number(document[name]) for name in _NUMBERS}
            values |= {name: columns.pop(name) for name in _ARRAYS} | {name: document[name] for name in _PLAIN}
            curves = document.get("curves", {})
            fit, pair = curves.get("fit"), curves.get("pair")
            return cls(
                elements=tuple(row["element"] for row in rows),
                further=columns,
                warnings=tuple(document["warnings"]),
                provenance=document.get("provenance", {}),
                fit=None if fit is None else Fit(*(np.array(fit[name]) for name in Fit._fields)),
                pair=None if pair is None else (Spectrum(**pair[0]), Spectrum(**pair[1])),
                **values,
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ConfigError(
                "this is no answer of a network",
                why=f"{type(error).__name__}: {error}",
                fix="Give what to_dict returned",
            ) from error

    def to_dict(self, *, curves: bool = False) -> dict[str, Any]:
        """Return plain values for JSON; an interval or coverage that is not known is None.

        Args:
            curves: Whether spectra and fit are among them, so that what is read again can be drawn.
        """
        columns = self._columns()
        rows = [
            {
                "element": self.elements[i],
                **{name: _number(values[i]) for name, values in columns.items()},
                "present": self.elements[i] in self.present,
            }
            for i in self.order
        ]
        return {
            "sentence": self.sentence,
            "formula": self.formula,
            "model": self.model,
            "answered_by": self.answered_by,
            "reason": self.reason,
            "candidates_given": self.candidates_given,
            "edge_mev": _number(self.edge_mev),
            "unit": self.unit,
            "kind": self.kind,
            "kind_told": self.kind_told,
            "unchanged": self.unchanged,
            "atoms_per_formula_unit": self.atoms_per_formula_unit,
            "threshold": self.threshold,
            "coverage": _number(self.coverage),
            "something_else": _number(self.something_else),
            "explained": _number(self.explained),
            "verdict": self.verdict,
            "present": list(self.present),
            "found": list(self.found),
            "elements": rows,
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
            **({"curves": self._curves()} if curves else {}),
        }

    def _curves(self) -> dict[str, Any]:
        fit = self.fit and {name: values.tolist() for name, values in self.fit._asdict().items()}
        return {"fit": fit, "pair": self.pair and [plain(vars(one)) for one in self.pair]}

    def __str__(self) -> str:
        """The sentence, how it was answered, and a table: all candidates, or, where none were named, the first ten."""
        asked = "candidates given" if self.candidates_given else f"every element in question, {BLIND_ROWS} shown"
        edge = "" if math.isnan(self.edge_mev) else f"host's band edge {self.edge_mev:.1f} meV"  # a wrong unit shows
        assumed = "" if self.kind_told else " (assumed: no file says the kind, nor --kind)"
        read = (f"read as {self.kind} DOS{assumed} in {self.unit}" if self.kind else "", edge)
        lines = [
            self.sentence,
            f"{self.model}, {asked}, threshold {self.threshold:.2f}",
            *([", ".join(filter(None, read))] if any(read) else []),
            f"answered by {'the ' if self.answered_by.startswith('network') else ''}{self.answered_by}"
            f"{': ' + self.reason if self.reason else ''}",
            *self._beyond(),
            "",
            *self._table(),
            *self._per_formula_unit(),
            *(f"warning: {text}" for text in self.warnings),
        ]
        return "\n".join(lines)

    __repr__ = __str__

    def _beyond(self) -> list[str]:
        """Say what is told of the list as a whole: something else, goodness of fit."""
        lines = []
        if not math.isnan(self.something_else):
            lines.append(f"something that is not in the list: {self.something_else:.0%}")
        if not math.isnan(self.explained):
            lines.append(f"goodness of fit: {self.verdict}, {self.explained:.0%} of the change of the spectrum")
        return lines

    def _titles(self) -> tuple[str, ...]:
        interval = "interval" if math.isnan(self.coverage) else f"{self.coverage:.0%} interval"
        return "element", "probability", "at.% if present", interval, "found"

    def _cells(self, i: int) -> tuple[str, ...]:
        return (
            self.elements[i],
            f"{self.probability[i]:.3f}",
            f"{100 * self.concentration_if_present[i]:.2f}",
            self._interval(i) or "not calibrated",
            "yes" if self.elements[i] in self.found else "no",
        )

    def _table(self) -> list[str]:
        table = [self._titles(), *map(self._cells, self.order if self.candidates_given else self.order[:BLIND_ROWS])]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [
            "  ".join(
                [
                    row[0].ljust(widths[0]),
                    *(cell.rjust(w) for cell, w in zip(row[1:4], widths[1:4], strict=True)),
                    row[4],
                ]
            )
            for row in table
        ]

    def _per_formula_unit(self) -> list[str]:
        """Say at.% again as x of Mg1-xAlxB2, where that is another number."""
        atoms = self.atoms_per_formula_unit
        if atoms == 1.0 or not self.found:
            return []
        parts = []
        for i in (self.elements.index(symbol) for symbol in self.found):
            low, high = atoms * self.low[i], atoms * self.high[i]
            band = "" if math.isnan(low) else f" ({low:.2g} to {high:.2g})"
            parts.append(f"{self.elements[i]} {atoms * self.concentration_if_present[i]:.2g}{band}")
        return [f"at.% count all atoms; per formula unit {self.formula}: {', '.join(parts)}"]

    def _columns(self) -> dict[str, FloatArray]:
        return {**{name: getattr(self, name) for name in _ARRAYS}, **self.further}

    def _interval(self, i: int) -> str:
        """Return the interval of an element in at.%, an upper limit where it was not found; empty if not calibrated."""
        low, high = self.low[i], self.high[i]
        if math.isnan(low):
            return ""
        return f"{100 * low:.1f} to {100 * high:.1f}" if self.elements[i] in self.found else f"below {100 * high:.1f}"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with arrays as lists, for JSON."""
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _from_number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def answer_html(title: str, above: Iterable[str], rows: Sequence[Sequence[str]], below: Iterable[str] = ()) -> str:
    """Return an answer for a notebook: a sentence, lines, a table whose first row holds the titles, lines."""
    cells = [
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(rows)], rows, strict=False)
    ]
    parts = [f"<p><b>{html.escape(title)}</b></p>", *(f"<div>{html.escape(line)}</div>" for line in above)]
    parts += ["<table>", *(f"<tr>{row}</tr>" for row in cells), "</table>"]
    return "\n".join([*parts, *(f"<div>{html.escape(line)}</div>" for line in below)])
