"""What is said of a measured pair of a known crystal: the posterior, what it explains, and how that is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ConfigError
from defectnet.inference.answer_text import NAMED, OTHER, SURE, about, rows, sentence, verdict
from defectnet.inference.posterior import Likely, Posterior
from defectnet.prediction import answer_html, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

UNFIT: Final = 1e-3
"""p-value below which an answer does not explain the spectrum."""

EXPLAINS, EXPLAINS_PART = 0.9, 0.5
"""Shares of the change from which on an answer explains it, and a part of it that is worth a name."""

_CURVES: Final = ("energy_mev", "measured", "predicted", "band", "noise", "pristine", "scale")
_PLAIN: Final = ("host", "formula", "potential", "kind", "edge_mev", "fwhm_mev", "host_distance", "changed", "pooled")
_COLUMNS: Final = {
    "probability": "probability",
    "mean": "expected_concentration",
    "if_present": "concentration_if_present",
    "low": "low",
    "high": "high",
    "upper": "upper_limit",
}


@dataclass(frozen=True, repr=False, eq=False)
class KnownCrystalAnswer:
    """What a measured pair says of a known crystal.

    Attributes:
        posterior: Elements, probabilities and concentrations (dopant atoms over all atoms).
        host, formula, potential: What it was compared with.
        kind: Of the spectra. edge_mev: Band edge of the measured host.
        energy_mev: (M,) bins; measured: (M,) change, doped less host, per edge; predicted: (M,) that of the best
            explanation; band: (M,) its standard deviation; noise: (M,) that of the measurement; pristine: (M,) host.
        scale: (M,) measured over computed energy, from the host's spectra. fwhm_mev: Resolution taken.
        host_distance: Squared distance of measured and computed host over the former's square.
        pooled: What answered: the inference alone, or with a network, whose probabilities are pooled with it.
        warnings: Reasons to trust the answer less.
        provenance: What it was made with, see `defectnet.provenance`.
        changed: Whether the spectra differ by more than noise; by default it is told from the curves.
    """

    posterior: Posterior
    host: str
    formula: str
    potential: str
    kind: str
    edge_mev: float
    energy_mev: FloatArray
    measured: FloatArray
    predicted: FloatArray
    band: FloatArray
    noise: FloatArray
    pristine: FloatArray
    scale: FloatArray
    fwhm_mev: float
    host_distance: float
    pooled: str = "inference alone"
    warnings: tuple[str, ...] = field(default=())
    provenance: Mapping[str, Any] = field(default_factory=dict)
    changed: bool | None = None

    def __post_init__(self) -> None:
        if self.changed is None:
            changed = float((self.measured**2).sum()) > 2.0 * float((self.noise**2).sum())
            object.__setattr__(self, "changed", changed)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same."""
        return isinstance(other, KnownCrystalAnswer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.sentence, self.host))

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        return sentence(self)

    @property
    def verdict(self) -> str:
        """``explains``, ``explains part`` or ``does not explain``."""
        found = self.posterior
        fits = found.p_value >= UNFIT
        # Without a dopant what is left may be an instrument's: energy scale, background and resolution.
        if not self.changed or (fits and (found.explained >= EXPLAINS or not found.best.any())):
            return "explains"
        return "explains part" if found.explained >= EXPLAINS_PART else "does not explain"

    @property
    def present(self) -> tuple[str, ...]:
        """Elements that are likely enough to be named, the likeliest first; none if they do not explain the change.

        Where something else is there, what it leaves of the change tells little: then only those that are sure.
        """
        p = self.posterior.probability
        if self.verdict == "does not explain":
            return ()
        least = SURE if self.posterior.other >= OTHER else NAMED
        return tuple(self.posterior.elements[i] for i in np.argsort(-p, kind="stable") if p[i] >= least)

    @property
    def resembles(self) -> dict[str, float]:
        """Elements that are no candidates and that the pack holds -> probability that each is what else is there."""
        out: dict[str, float] = {}
        for name, value in self.posterior.by_unlisted.items():
            symbol = name.partition("@")[0]
            out[symbol] = out.get(symbol, 0.0) + value
        return dict(sorted(out.items(), key=lambda one: -one[1]))

    @property
    def upper_limit(self) -> FloatArray:
        """(J,) concentrations below which elements are, absent or not.

        With the posterior's coverage where the answer explains the change; else as much as the change has room for.
        """
        p = self.posterior
        return np.maximum(p.upper, p.ceiling) if self.verdict == "does not explain" else p.upper

    def to_frame(self) -> pd.DataFrame:
        """Return a table, the likeliest element first.

        Returns:
            Columns element, probability, expected_concentration, concentration_if_present, low, high, upper_limit,
            present.
        """
        import pandas as pd  # here, because it takes longer to import than an answer takes to print

        return pd.DataFrame([{**row, "present": row["element"] in self.present} for row in self.to_dict()["elements"]])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw what the answer explains, see `defectnet.plotting.plot_known`.

        Raises:
            ConfigError: It was read again without its curves, or matplotlib is not installed.
        """
        from defectnet.plotting import plot_known  # only when asked: nothing else of an answer needs what lies above it

        if not len(self.energy_mev):
            raise ConfigError("the answer does not hold its curves", fix="Keep them: to_dict(curves=True)")
        return plot_known(self, path)

    def __str__(self) -> str:
        """The sentence, the verdict, a table, warnings."""
        table = rows(self)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in table
        ]
        warned = [f"warning: {text}" for text in self.warnings]
        return "\n".join([sentence(self), verdict(self), about(self), "", *map(str.rstrip, lines), *warned])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        warned = [f"warning: {text}" for text in self.warnings]
        return answer_html(sentence(self), [verdict(self), about(self)], rows(self), warned)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> KnownCrystalAnswer:
        """Return the answer that `to_dict` wrote, with its curves if it wrote them.

        Raises:
            ConfigError: It is not one.
        """
        try:
            found, dopants = document["elements"], tuple(document["dopants"])
            likeliest = tuple(
                Likely(
                    one["probability"],
                    tuple(one["dopants"]),
                    one["something_else"],
                    np.array([one["dopants"].get(name, 0.0) for name in dopants]),
                )
                for one in document["explanations"]
            )
            values: dict[str, Any] = {
                "dopants": dopants,
                "elements": tuple(row["element"] for row in found),
                "other": document["something_else"],
                "likeliest": likeliest,
                "best": np.array([document["best"].get(name, 0.0) for name in dopants]),
                "unlisted": np.array(list(document.get("unlisted", {}).values())),
                **{name: document[name] for name in ("coverage", "explained", "p_value")},
                **{mine: np.array([row[name] for row in found]) for mine, name in _COLUMNS.items()},
            }
            values["ceiling"] = values["upper"]  # which was told already as the larger of the two
            curves = document.get("curves", {})
            own: dict[str, Any] = {name: document[name] for name in _PLAIN}
            own |= {name: np.array(curves.get(name, ()), dtype=np.float64) for name in _CURVES}
            return cls(
                # What it holds beside these, such as draws, is not kept.
                posterior=Posterior(**{one.name: values.get(one.name, np.zeros(0)) for one in fields(Posterior)}),
                **own,
                warnings=tuple(document["warnings"]),
                provenance=document["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                "this is no answer about a known crystal",
                why=f"{type(error).__name__}: {error}",
                fix="Give what to_dict returned",
            ) from error

    def to_dict(self, *, curves: bool = False) -> dict[str, Any]:
        """Return plain values for JSON.

        Args:
            curves: Whether the spectra are among them, so that what is read again can be drawn.
        """
        p = self.posterior
        return {
            "way": "known crystal",
            "sentence": sentence(self),
            "host": self.host,
            "formula": self.formula,
            "potential": self.potential,
            "kind": self.kind,
            "edge_mev": self.edge_mev,
            "fwhm_mev": self.fwhm_mev,
            "present": list(self.present),
            "something_else": p.other,
            "verdict": self.verdict,
            "explained": p.explained,
            "p_value": p.p_value,
            "coverage": p.coverage,
            "changed": self.changed,
            "host_distance": self.host_distance,
            "pooled": self.pooled,
            "dopants": list(p.dopants),
            "unlisted": p.by_unlisted,
            "best": {name: float(x) for name, x in zip(p.dopants, p.best, strict=True) if x},
            "elements": [
                {"element": p.elements[i], **{name: float(getattr(p, own)[i]) for own, name in _COLUMNS.items()}}
                | {"upper_limit": float(self.upper_limit[i])}
                for i in np.argsort(-p.probability, kind="stable")
            ],
            "explanations": [
                {
                    "probability": one.probability,
                    "dopants": {name: float(one.concentration[p.dopants.index(name)]) for name in one.dopants},
                    "something_else": one.other,
                }
                for one in p.likeliest[:5]
            ],
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
            **({"curves": plain({name: getattr(self, name) for name in _CURVES})} if curves else {}),
        }
