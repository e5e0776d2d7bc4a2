"""Which measurement would part the two likeliest explanations of a measured change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtr

from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.emulator import HIGHEST, LOWEST
from defectnet.inference.known_crystal import COARSE, FINE, KnownCrystal
from defectnet.inference.likelihood import Likelihood
from defectnet.inference.plan import APART, MOST_NOISE, Expected, Setup

FloatArray = NDArray[np.float64]

RESONANT: Final = ("Fe", "Sn", "Eu", "Sm", "Dy", "Sb", "Te")
"""Elements with an isotope on which nuclear resonant scattering projects a DOS."""

WORTH_NAMING: Final = 0.05
"""Probability from which on another explanation is one."""


@dataclass(frozen=True)
class Parting:
    """Two explanations and what would part them.

    Attributes:
        first, second: The explanations: dopants and their concentrations.
        now: Share of samples that the measurement, as it is, would give to the right one of the two.
        options: Words for a change of the measurement, and that share with it; in order of effort.
    """

    first: dict[str, float]
    second: dict[str, float]
    now: float
    options: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        names = " and ".join(_named(one) for one in (self.first, self.second))
        enough = next((option for option in self.options if option[1] >= APART), None)
        if enough is not None:
            return f"To part {names}: {enough[0]} ({enough[1]:.0%} of samples; now {self.now:.0%})."
        best = max(self.options, key=lambda option: option[1])
        return f"No measurement that was thought of parts {names}; nearest comes: {best[0]} ({best[1]:.0%} of samples)."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "right_now": self.now,
            "options": [{"change": words, "right": share} for words, share in self.options],
            "sentence": str(self),
        }


def _named(dopants: dict[str, float]) -> str:
    return " with ".join(name.partition("@")[0] for name in dopants) or "no dopant"


def part(
    crystal: KnownCrystal, answer: KnownCrystalAnswer, *, element: str | None = None, same_potential: bool = False
) -> Parting | None:
    """Return what would part the likeliest explanation and the next, or None where there is no other.

    One is taken for the truth; the other may hold as much of its dopants as looks most like it. Half the distance of
    the two in units of the errors is the normal quantile of the share that is taken for the right one. Something else
    is left out of both.

    Args:
        crystal: Which was asked.
        answer: What it answered.
        element: Of a projected spectrum.
        same_potential: As in the question.
    """
    first, *others = answer.posterior.likeliest
    others = [one for one in others if one.dopants != first.dopants and one.probability >= WORTH_NAMING]
    if not others:
        return None
    second = others[0]
    # Of two that hold each other the smaller one may be as large as it likes.
    truth, foil = (second, first) if set(first.dopants) < set(second.dopants) else (first, second)
    unit = crystal.pack.host.band_edge_mev
    now = as_measured(answer, element=element, same_potential=same_potential)
    a, b = truth.concentration, foil.concentration
    as_is = Expected(crystal, now)
    options = []
    for words, setup in _changes(now, crystal, unit):
        options.append((words, _right(Expected(crystal, setup).likelihood, a, b)))
    if not same_potential:
        names = " and ".join(dict.fromkeys(_named({n: 1.0}) for n in sorted({*first.dopants, *second.dopants})))
        options.append((f"samples of known content, of {names}", _right(as_is.exact, a, b)))
    told = [
        {n: float(one.concentration[answer.posterior.dopants.index(n)]) for n in one.dopants} for one in (first, second)
    ]
    return Parting(told[0], told[1], _right(as_is.likelihood, a, b), tuple(options))


def as_measured(answer: KnownCrystalAnswer, *, element: str | None = None, same_potential: bool = False) -> Setup:
    """Return how the spectra of an answer were measured, as a plan needs it; arguments as for `part`."""
    noise = float(np.sqrt((answer.noise**2).mean() / 2.0) / answer.pristine.max())
    return Setup(
        kind=answer.kind,
        element=element,
        fwhm_mev=answer.fwhm_mev,
        noise=min(noise, MOST_NOISE),
        step_mev=float(answer.energy_mev[1] - answer.energy_mev[0]),
        same_potential=same_potential,
    )


def _changes(now: Setup, crystal: KnownCrystal, unit_mev: float) -> Iterator[tuple[str, Setup]]:
    for times in (4, 16):
        yield f"{times} times the counting time", replace(now, noise=now.noise / np.sqrt(times))
    finest = (FINE if now.same_potential else COARSE) * unit_mev
    if now.fwhm_mev > 1.1 * finest:
        fwhm = max(0.5 * now.fwhm_mev, finest)
        yield f"a resolution of {fwhm:.2g} meV", replace(now, fwhm_mev=fwhm)
    if now.kind != "neutron-weighted":
        yield "a neutron-weighted spectrum as good", replace(now, kind="neutron-weighted", element=None)
    for element in crystal.host[0]:
        if element in RESONANT and element != now.element:
            words = f"a spectrum projected on {element}, as good"
            yield words, replace(now, kind="projected", element=element)


def _right(likelihood: Likelihood, a: FloatArray, b: FloatArray) -> float:
    """Return the share of samples of composition `a` that are taken for it, and not for anything like `b`."""
    truth = likelihood.mean(a[None])[0]
    covariance = 0.5 * sum(likelihood.covariance(c[None])[0] for c in (a, b))
    white = np.linalg.inv(np.linalg.cholesky(covariance))
    free = np.flatnonzero(b)

    def full(logs: FloatArray) -> FloatArray:
        c = np.zeros((1, len(b)))
        c[0, free] = np.exp(logs)
        return c

    def rest(logs: FloatArray) -> FloatArray:
        return np.asarray(white @ (likelihood.mean(full(logs))[0] - truth))

    if not len(free):
        distance = float(np.linalg.norm(white @ truth))
    else:
        start = np.clip(np.log(b[free]), np.log(LOWEST) + 1e-6, np.log(HIGHEST) - 1e-6)
        found = least_squares(rest, start, bounds=(np.log(LOWEST), np.log(HIGHEST)))
        distance = float(np.sqrt(2.0 * found.cost))
    return float(ndtr(0.5 * distance))
