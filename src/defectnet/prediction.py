"""The answer to one question: which elements, with what probability, at what concentration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

FloatArray = NDArray[np.float64]
_ARRAYS = ("probability", "concentration", "low", "high")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one pair of spectra. Concentrations are atomic fractions, 0 to 1.

    Attributes:
        elements: The elements in question, in order of atomic number.
        probability: (len(elements),) probability that the element was substituted in.
        concentration: (len(elements),) expected concentration if it is present.
        low: (len(elements),) lower end of the interval of the concentration; NaN without calibration.
        high: (len(elements),) upper end.
        coverage: Nominal coverage of the intervals, 0 to 1; NaN without calibration.
        threshold: Probability from which an element counts as present.
        candidates_given: True where the user named the elements, false where the whole vocabulary was in question.
        formula: Formula of the host.
        model: Name of the checkpoint or architecture.
        edge_mev: Band edge as read from the host's spectrum, meV; NaN where it is not known.
        warnings: Reasons to trust the answer less, one sentence each.
    """

    elements: tuple[str, ...]
    probability: FloatArray
    concentration: FloatArray
    low: FloatArray
    high: FloatArray
    coverage: float
    threshold: float
    candidates_given: bool
    formula: str
    model: str
    warnings: tuple[str, ...] = ()
    edge_mev: float = math.nan

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != (len(self.elements),):
                raise ConfigError(
                    f"prediction.{name} has shape {array.shape}", fix=f"It needs one number for {len(self.elements)}"
                )
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @property
    def order(self) -> NDArray[np.intp]:
        """(len(elements),) positions by falling probability; ties stay in order of atomic number."""
        return np.argsort(-self.probability, kind="stable")

    @property
    def present(self) -> tuple[str, ...]:
        """Elements that count as present, the most probable first."""
        return tuple(self.elements[i] for i in self.order if self.probability[i] >= self.threshold)

    def to_frame(self) -> pd.DataFrame:
        """Return a table, the most probable element first.

        Returns:
            Columns element, probability, concentration, low, high, present.
        """
        import pandas as pd  # here, because it takes longer to import than a prediction takes

        order = self.order
        columns: dict[str, Any] = {"element": [self.elements[i] for i in order]}
        columns |= {name: getattr(self, name)[order] for name in _ARRAYS}
        columns["present"] = columns["probability"] >= self.threshold
        return pd.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an interval or coverage that is not known is None."""
        rows = [
            {
                "element": self.elements[i],
                **{name: _number(getattr(self, name)[i]) for name in _ARRAYS},
                "present": bool(self.probability[i] >= self.threshold),
            }
            for i in self.order
        ]
        return {
            "formula": self.formula,
            "model": self.model,
            "candidates_given": self.candidates_given,
            "edge_mev": _number(self.edge_mev),
            "threshold": self.threshold,
            "coverage": _number(self.coverage),
            "present": list(self.present),
            "elements": rows,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        """A small table: every candidate, or, where nothing was named, the ten most probable elements."""
        question = "candidates given" if self.candidates_given else "blind"
        interval = "" if math.isnan(self.coverage) else f"{self.coverage:.0%} interval"
        lines = [
            f"{self.formula}, {question}, {self.model}",
            f"{'element':<8} {'probability':>11} {'at.%':>7}  {interval or 'interval':<16} present",
        ]
        rows = self.order if self.candidates_given else self.order[:10]
        for i in rows:
            known = not math.isnan(self.low[i])
            band = f"{100 * self.low[i]:.2f} to {100 * self.high[i]:.2f}" if known else "not calibrated"
            mark = "yes" if self.probability[i] >= self.threshold else "no"
            amount = 100 * self.concentration[i]
            lines.append(f"{self.elements[i]:<8} {self.probability[i]:>11.3f} {amount:>7.2f}  {band:<16} {mark}")
        lines += [f"warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
