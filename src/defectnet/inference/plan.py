"""What a measurement of a known crystal will tell, before it is made: detection limits, intervals, look-alikes.

Measured changes are drawn from the very `Likelihood` by which `KnownCrystal.identify` answers, and put to the
hypotheses that it weighs: nothing, a dopant, something else, both. All are Gaussians that do not depend on what is
measured, so their densities at some thousand draws are one product of matrices, and evidences are sums over a grid of
concentrations in place of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtri

from defectnet.config import Bounded, bounded
from defectnet.crystal.pack import HostPack
from defectnet.elements import element_index
from defectnet.errors import ConfigError
from defectnet.inference.answer_text import NAMED
from defectnet.inference.comparison import REACH
from defectnet.inference.emulator import FULL, HIGHEST, LOWEST, Emulator
from defectnet.inference.evidence import DopantEvidence, log_nothing
from defectnet.inference.instrument import InstrumentMap
from defectnet.inference.known_crystal import KnownCrystal, atoms_of_sample
from defectnet.inference.likelihood import ErrorSize, Likelihood
from defectnet.inference.posterior import NUMBER_PRIOR, PRIOR_DENSITY
from defectnet.spectrum import KINDS, Spectrum

FloatArray = NDArray[np.float64]

POWER, FALSE_ALARMS = 0.9, 0.05
"""A concentration can be detected if so many samples of it are found while so many undoped ones are."""

APART: Final = 0.95
"""Share of samples, of either dopant, for which the right one is the more likely: then two can be told apart."""

MOST_NOISE: Final = 0.5
"""Largest noise that is planned with."""

TYPICAL: Final = 0.03
"""Concentration at which responses are compared, and at which their factors are taken to scatter."""

SMALLEST: Final = 0.0005
"""Smallest concentration that is looked at."""

SEED: Final = 0
"""Of all draws: instruments are compared with the same chances."""

COARSE_DRAWS, FINE_DRAWS, NULL_DRAWS, PAIR_DRAWS, INTERVAL_DRAWS = 80, 500, 1000, 120, 80

SPACING: Final = (0.05, 0.15)
"""Finest and coarsest step of the grid, in logarithms of the concentration."""

FWHM_FACTORS, NOISE_FACTORS = (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0)
"""Resolutions and noises beside those asked about. Noise falls with the root of the counting time."""

ALIKE: Final = 8
"""Dopants, the most alike, that each is compared with."""

STANDARDS: Final = (0, 1, 2, 5)
"""Numbers of samples of known content whose worth is told."""

STANDARD_CONTENT: Final = 0.05
"""Content of a standard, or half of what fits in."""

FEW_DOPANTS: Final = 6
"""Most dopants for which other instruments and standards are looked at, too."""


@dataclass(frozen=True)
class Setup(Bounded):
    """How a pair will be measured; host and sample alike.

    Attributes:
        kind: Of DOS: total, neutron-weighted or projected. element: Host element of a projected one.
        fwhm_mev: Resolution, FWHM in meV.
        noise: Standard deviation at each point, as a share of the host's highest value: 0.02 for 2 %.
        step_mev: Distance of points; a third of `fwhm_mev` by default.
        reach_mev: Energy at which the spectra end; the highest that is compared by default.
        same_potential: The spectra will be simulated with the pack's own potential.
        sample_atoms: Atoms of the cell that is simulated, as for `KnownCrystal.identify`.
    """

    kind: str = bounded("total", choices=KINDS)
    element: str | None = None
    fwhm_mev: float = bounded(3.0, above=0.0)
    noise: float = 0.02
    step_mev: float | None = bounded(None, above=0.0)
    reach_mev: float | None = bounded(None, above=0.0)
    same_potential: bool = False
    sample_atoms: int | None = bounded(None, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0.0 <= self.noise <= MOST_NOISE, "noise", "Use a share of the highest value: 0.02 for 2 %")
        fix = "Name one of the host's with kind projected, and only there"
        self.require((self.kind == "projected") == (self.element is not None), "element", fix)

    @property
    def points_mev(self) -> float:
        """Distance of points."""
        return self.step_mev or self.fwhm_mev / 3.0


@dataclass(frozen=True)
class Detection:
    """What is expected of one dopant that is in question alone; concentrations are dopant atoms over all atoms.

    Attributes:
        dopant: Such as ``Al@Ga``. room: Highest concentration that was looked at.
        limit: Smallest concentration that `POWER` of samples are found at, with `FALSE_ALARMS`; None if there is none.
        threshold: Probability of the dopant from which on it counts as found in that; undoped samples exceed it in
            `FALSE_ALARMS`.
        named: Smallest concentration that `identify` names, at `NAMED`, in `POWER` of samples; None if there is none.
        false_alarms: Share of undoped samples in which it would.
        intervals: For each concentration asked about the ends of the expected 90 % interval (medians of samples);
            None where it does not fit in.
    """

    dopant: str
    room: float
    limit: float | None
    threshold: float
    named: float | None
    false_alarms: float
    intervals: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class Plan:
    """What a measurement will tell; K dopants, lower triangle and upper of matrices alike.

    Attributes:
        host, formula, potential: Of the pack. edge_mev: Its band edge.
        setup: How it is measured. fwhm_mev: Resolution at which the pair is compared, see docs/known-crystal.md.
        amounts: Concentrations of `Detection.intervals`.
        detections: Of each dopant.
        likeness: (K, K) cosine of the angle between the changes that two dopants make, in units of noise and of what
            may differ between two measurements.
        apart: (K, K) smallest concentration from which on two can be told apart, see `APART`; NaN for none, 0 where
            neither is among the `ALIKE` that are most like the other.
        fwhms_mev, noises: (F,) and (N,) other instruments. by_instrument: (K, F, N) limits; NaN for none. Empty if
            there are more than `FEW_DOPANTS`, as `by_standards`.
        standards: (S,) numbers of standards. standard_content: (K,) of each.
        by_standards: (K, S) limits with them.
        intervals_by_standards: (K, S, A, 2) expected intervals at `amounts` with them; NaN where one does not fit in.
    """

    host: str
    formula: str
    potential: str
    edge_mev: float
    setup: Setup
    fwhm_mev: float
    amounts: tuple[float, ...]
    detections: tuple[Detection, ...]
    likeness: FloatArray
    apart: FloatArray
    fwhms_mev: tuple[float, ...]
    noises: tuple[float, ...]
    by_instrument: FloatArray
    standards: tuple[int, ...]
    standard_content: FloatArray
    by_standards: FloatArray
    intervals_by_standards: FloatArray

    @property
    def dopants(self) -> tuple[str, ...]:
        """Names such as ``Al@Ga``."""
        return tuple(one.dopant for one in self.detections)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what there is not is None."""
        s = self.setup
        return {
            "host": self.host,
            "formula": self.formula,
            "potential": self.potential,
            "edge_mev": self.edge_mev,
            "kind": s.kind,
            "element": s.element,
            "fwhm_mev": s.fwhm_mev,
            "compared_fwhm_mev": self.fwhm_mev,
            "noise": s.noise,
            "step_mev": s.points_mev,
            "reach_mev": s.reach_mev,
            "same_potential": s.same_potential,
            "power": POWER,
            "false_alarms": FALSE_ALARMS,
            "dopants": [
                {
                    "dopant": one.dopant,
                    "limit": one.limit,
                    "threshold": one.threshold,
                    "named_from": one.named,
                    "false_alarms_when_named": one.false_alarms,
                    "intervals": [
                        {"concentration": amount, "low": ends and ends[0], "high": ends and ends[1]}
                        for amount, ends in zip(self.amounts, one.intervals, strict=True)
                    ],
                }
                for one in self.detections
            ],
            "likeness": _plain(self.likeness),
            "apart": _plain(self.apart),
            "instruments": {
                "fwhm_mev": list(self.fwhms_mev),
                "noise": list(self.noises),
                "limits": _plain(self.by_instrument),
            },
            "standards": {
                "number": list(self.standards),
                "concentration": _plain(self.standard_content),
                "limits": _plain(self.by_standards),
                "intervals": _plain(self.intervals_by_standards),
            },
        }


def _plain(values: FloatArray) -> Any:
    if values.ndim:
        return [_plain(one) for one in values]
    return float(values) if np.isfinite(values) else None


def percent(value: float | None, room: float) -> str:
    """Return a concentration in at.% as text: beyond what was looked at where there is none."""
    if value is None or not np.isfinite(value):
        return f"> {100 * room:.2g}"
    return f"{'<' if value <= SMALLEST else ''}{100 * value:.2g}"


def sentence(plan: Plan) -> str:
    """Say a plan in one sentence."""
    found = sorted(plan.detections, key=lambda one: one.limit or np.inf)
    parts = [f"{one.dopant} from {percent(one.limit, one.room)} at.%" for one in found if one.limit is not None]
    missing = [one.dopant for one in found if one.limit is None]
    if len(parts) > FEW_DOPANTS:
        parts = [*parts[:3], f"... {parts[-1]}"]
    text = f"In {plan.formula} this measurement finds {', '.join(parts)}" if parts else ""
    if missing:
        text += "; it does not find " if text else f"In {plan.formula} this measurement does not find "
        text += f"{', '.join(missing)} in any amount that fits in"
    return text + "."


def look_alikes(plan: Plan, dopant: int, most: int = 3) -> list[str]:
    """Return the dopants that are hardest to tell from one, each with the at.% from which on they can be."""
    others = [j for j in range(len(plan.dopants)) if j != dopant]
    others.sort(key=list(-np.nan_to_num(plan.apart[dopant], nan=np.inf)).__getitem__)
    room = plan.detections[dopant].room
    return [f"{plan.dopants[j]} {percent(plan.apart[dopant, j], room)}" for j in others[:most]]


def parse_amounts(text: str) -> tuple[float, ...]:
    """Return the concentrations that a text such as ``1,3,10``, in at.%, names.

    Raises:
        ConfigError: They are not numbers, or out of range.
    """
    try:
        found = tuple(float(word) / 100.0 for word in text.replace(",", " ").split())
    except ValueError:
        raise ConfigError(f"amounts: {text!r} are not numbers", fix="Give at.%, such as 1,3,10") from None
    _check_amounts(found)
    return found


def _check_amounts(amounts: Sequence[float]) -> None:
    for amount in amounts:
        if not LOWEST <= amount <= HIGHEST:
            raise ConfigError(
                f"an amount is {100 * amount:g} at.%",
                fix=f"Use {100 * LOWEST:g} to {100 * HIGHEST:g} at.% of all atoms",
            )


def plan(
    crystal: KnownCrystal | HostPack | str,
    dopants: Sequence[str] | None = None,
    *,
    setup: Setup | None = None,
    amounts: Sequence[float] = (0.01, 0.03, 0.1),
    vary: bool = True,
    report: Callable[[int, int], None] = lambda done, total: None,
    **settings: Any,
) -> Plan:
    """Say what a measurement will tell of dopants in a known crystal.

    Args:
        crystal: A pack, the name of one, or a `KnownCrystal` that was made of it.
        dopants: Such as ``["Al@Mg", "C"]``; None for all that the pack holds. Not with a `KnownCrystal`, which has its.
        setup: How it is measured.
        amounts: Concentrations, dopant atoms over all atoms, at which intervals are told.
        vary: Whether other instruments and standards are looked at, too, where dopants are at most `FEW_DOPANTS`.
        report: Called with the number of steps done and of all.
        **settings: Fields of `Setup`.

    Raises:
        ConfigError: A setting has a value that it cannot have.
        SimulationError: The pack does not hold a dopant.
        SpectrumError: The spectra would end too early, or be projected on an element that is not there.
    """
    how = setup if setup is not None else Setup(**settings)
    if setup is not None and settings:
        raise ConfigError(f"setup is given, and {', '.join(settings)} beside it", fix="Give one of the two")
    _check_amounts(amounts)
    if isinstance(crystal, KnownCrystal):
        if dopants is not None:
            raise ConfigError("dopants are given with a KnownCrystal", fix="Give them when it is made")
        check_setup(crystal.pack, how)
        if crystal.unlisted:  # a plan weighs what it is asked about alone
            crystal = KnownCrystal(crystal.pack, crystal.dopants, unlisted=0, report=report)
        return _planned(crystal, how, tuple(amounts), vary, report)
    pack = crystal if isinstance(crystal, HostPack) else HostPack.load(crystal)
    check_setup(pack, how)  # before cells are made
    known = KnownCrystal(pack, dopants, unlisted=0, report=report)
    return _planned(known, how, tuple(amounts), vary, report)


def check_setup(pack: HostPack, setup: Setup) -> None:
    """See that a setup can be used for a crystal.

    Raises:
        ConfigError: It cannot; what is wrong is named.
    """
    edge, name = pack.host.band_edge_mev, pack.host.id
    if setup.element is not None:
        element_index(setup.element)
        if setup.element not in (own := dict.fromkeys(pack.replaced(i) for i in range(len(pack.host.primitive)))):
            raise ConfigError(f"element: {setup.element} is not in {name}", fix=f"Use {', '.join(own)}")
    if setup.fwhm_mev > 0.5 * edge:
        raise ConfigError(
            f"fwhm_mev is {setup.fwhm_mev:g}: that hides all of {name}, which ends at {edge:.1f} meV",
            fix="Give the resolution in meV",
        )
    if setup.points_mev > 0.1 * edge:
        raise ConfigError(
            f"step_mev is {setup.points_mev:g}: {name} ends at {edge:.1f} meV", fix="Give the distance of points in meV"
        )
    if setup.reach_mev is not None and not edge <= setup.reach_mev:
        raise ConfigError(
            f"reach_mev is {setup.reach_mev:g}, below the edge of {name}, {edge:.1f} meV",
            fix="Measure up to the edge at least; it is in meV",
        )


def expected_spectrum(crystal: KnownCrystal, setup: Setup) -> Spectrum:
    """Return the host as the setup will show it, with its errors."""
    unit = crystal.pack.host.band_edge_mev
    reach = min(setup.reach_mev or np.inf, REACH * unit)
    edges = np.arange(0.0, reach / unit + 1e-9, setup.points_mev / unit)
    instrument = InstrumentMap(edges, setup.fwhm_mev / unit, setup.kind, setup.element)
    dos = instrument.seen(*crystal.host) / unit
    told: dict[str, Any] = {"kind": setup.kind, "element": setup.element, "source": "host"}
    return Spectrum(instrument.middle * unit, dos, "meV", error=np.full(len(dos), setup.noise * dos.max()), **told)


class Expected:
    """What changes a setup will measure, and what they are taken for: the likelihood of `identify`, and draws from it.

    Args:
        crystal: Host and dopants.
        setup: How it is measured.
        like: Of the same crystal with another noise alone, to save time.
    """

    def __init__(self, crystal: KnownCrystal, setup: Setup, like: Expected | None = None) -> None:
        host = expected_spectrum(crystal, setup)
        unit = crystal.pack.host.band_edge_mev
        self.setup, self.crystal = setup, crystal
        self.compared = crystal.compare(host, host, setup.fwhm_mev, unit, setup.same_potential, refine=False)
        self.emulator: Emulator = (
            like.emulator if like is not None else Emulator(crystal.cells, self.compared.instrument)
        )
        seen = self.compared
        errors = crystal.errors(
            self.emulator,
            seen.instrument,
            seen.noise,
            seen.pristine,
            setup.same_potential,
            atoms_of_sample(setup.sample_atoms, setup.same_potential),
        )
        self.likelihood = Likelihood(self.emulator, errors, seen.change)
        # The same without the potential's error, which standards reduce.
        self.exact = Likelihood(self.emulator, replace(errors, discrepancy=(), amplitude=None), seen.change)
        self.sizes = self.likelihood.sizes
        self.size = len(self.likelihood.measured)
        self.top = np.minimum(HIGHEST, 0.95 * crystal.source.room)

    def alone(self, dopant: int, amounts: FloatArray) -> FloatArray:
        """Return (S, K) concentrations that are those of one dopant."""
        out = np.zeros((len(amounts), len(self.emulator.dopants)))
        out[:, dopant] = amounts
        return out

    def covariance(
        self, dopant: int, amounts: FloatArray, other: float, size: ErrorSize, standards: int = 0
    ) -> FloatArray:
        """Return the (S, D, D) covariance at (S,) amounts of one dopant, after a number of standards of it.

        A standard of content c shows c times what the potential gets wrong of the response, plus errors of its own;
        the covariance of that is what is left by Gauss's conditioning. How likely each size of the errors is, and
        the response itself, are left as they are.
        """
        c = self.alone(dopant, amounts)
        if not standards:
            return self.likelihood.covariance(c, other, size)
        at = self.standard(dopant)
        one = self.alone(dopant, np.array([at]))
        error = self.exact.covariance(one)[0]
        prior = self.likelihood.covariance(one, 0.0, size)[0] - error
        left = prior - prior @ np.linalg.solve(prior + error / standards, prior)
        return np.asarray(self.exact.covariance(c, other) + (amounts**2)[:, None, None] * (left / at**2))

    def standard(self, dopant: int) -> float:
        """Return the content of a standard."""
        return float(min(STANDARD_CONTENT, 0.5 * self.top[dopant]))

    def deviation(self, dopant: int, amounts: FloatArray, standards: int = 0) -> FloatArray:
        """Return the (S,) standard deviation of the logarithm of a concentration, by Fisher's information."""
        c = self.alone(dopant, amounts)
        slope = self.likelihood.jacobian(c)[:, dopant] * amounts[:, None]
        covariance = sum(
            size.probability * self.covariance(dopant, amounts, 0.0, size, standards) for size in self.sizes
        )
        solved = np.linalg.solve(covariance, slope[..., None])[..., 0]
        return np.asarray(1.0 / np.sqrt(np.maximum((slope * solved).sum(-1), 1e-12)))

    def factor_deviation(self, dopant: int, standards: int = 0) -> float:
        """Return the deviation of the logarithm of the factor of true and computed responses; standards teach it."""
        typical = self.alone(dopant, np.array([TYPICAL]))[0]
        own, common = self.likelihood.factor_deviation(typical, self.likelihood.log_sizes)
        return 0.0 if standards else float(np.hypot(own[dopant], common))

    def draw(
        self, dopant: int, amounts: FloatArray, count: int, rng: np.random.Generator, standards: int = 0
    ) -> FloatArray:
        """Draw (S, count, D) changes of samples with (S,) amounts of one dopant; the same chances at each amount."""
        mean = self.likelihood.mean(self.alone(dopant, amounts))[:, None]
        normal = rng.standard_normal((count, self.size))
        kind = np.searchsorted(
            np.cumsum([size.probability for size in self.sizes]), rng.uniform(0.0, 1.0 - 1e-9, count)
        )
        mean = mean * np.exp(self.factor_deviation(dopant, standards) * rng.standard_normal((count, 1)))
        out = np.empty((len(amounts), count, self.size))
        for number, size in enumerate(self.sizes):
            factor = np.linalg.cholesky(self.covariance(dopant, amounts, 0.0, size, standards))
            out[:, kind == number] = mean[:, kind == number] + normal[kind == number] @ factor.transpose(0, 2, 1)
        return out

    def draw_undoped(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Draw (count, D) changes of samples that hold nothing."""
        return np.asarray(rng.standard_normal((count, self.size)) @ np.linalg.cholesky(self.likelihood.fixed).T)

    # -- evidences -----------------------------------------------------------------------------------------------

    def hypothesis(self, dopant: int, standards: int = 0) -> DopantEvidence:
        """Return the evidence of one dopant, summed over concentrations, more finely where they are known better."""
        rough = np.geomspace(LOWEST, FULL, 25)
        step = np.clip(0.7 * self.deviation(dopant, rough, standards), *SPACING)
        place = np.concatenate([[0.0], np.cumsum(np.diff(np.log(rough)) * 2.0 / (step[1:] + step[:-1]))])
        nodes = np.exp(np.interp(np.linspace(0.0, place[-1], round(place[-1]) + 2), place, np.log(rough)))
        steps = np.diff(np.log(nodes), prepend=np.log(nodes[0]), append=np.log(nodes[-1]))
        logs = np.log(0.5 * (steps[1:] + steps[:-1])) + PRIOR_DENSITY  # the trapezium rule
        return self._evidence(dopant, nodes, logs, standards)

    def _evidence(self, dopant: int, nodes: FloatArray, logs: FloatArray, standards: int) -> DopantEvidence:
        c = self.alone(dopant, nodes)
        return DopantEvidence(
            self.likelihood,
            lambda amounts, other, size: self.covariance(dopant, amounts, other, size, standards),
            nodes,
            logs,
            self.likelihood.mean(c),
            self.likelihood.jacobian(c)[:, dopant] * nodes[:, None],
        )

    def log_odds(self, changes: FloatArray, hypothesis: DopantEvidence) -> FloatArray:
        """Return the (...) log odds that a dopant is there, alone in question, for (..., D) changes."""
        logs = hypothesis.log(changes) - log_nothing(self.likelihood, changes)
        return np.asarray(logs + np.log(NUMBER_PRIOR[1] / NUMBER_PRIOR[0]))

    # -- answers -------------------------------------------------------------------------------------------------

    def smallest(
        self,
        dopant: int,
        thresholds: Sequence[float],
        hypothesis: DopantEvidence,
        seed: int,
        standards: int = 0,
    ) -> list[float | None]:
        """Return the smallest concentration at which `POWER` of samples have log odds above each threshold."""

        def power(amounts: FloatArray, count: int) -> FloatArray:
            drawn = self.draw(dopant, amounts, count, np.random.default_rng(seed), standards)
            odds = self.log_odds(drawn, hypothesis)
            return np.array([(odds > threshold).mean(-1) for threshold in thresholds])

        rough = np.geomspace(SMALLEST, self.top[dopant], 13)
        found = power(rough, COARSE_DRAWS)
        near = [np.flatnonzero((share > 0.5) & (share < 0.995)) for share in found]
        chosen = sorted({int(i) for each in near for i in each})
        if chosen:
            found[:, chosen] = power(rough[chosen], FINE_DRAWS)
        return [_crossing(rough, share, POWER) for share in found]

    def interval(
        self, dopant: int, amount: float, rng: np.random.Generator, standards: int = 0, coverage: float = 0.9
    ) -> tuple[float, float] | None:
        """Return the ends of the expected interval at a concentration: medians of samples; None if it does not fit."""
        if amount > self.top[dopant] / 0.95:
            return None
        drawn = self.draw(dopant, np.array([amount]), INTERVAL_DRAWS, rng, standards)[0]
        low, high = np.median(self.intervals(drawn, dopant, amount, standards, coverage), axis=0)
        return float(low), float(high)

    def intervals(
        self, drawn: FloatArray, dopant: int, amount: float, standards: int = 0, coverage: float = 0.9
    ) -> FloatArray:
        """Return the (S, 2) ends of the intervals of (S, D) changes of samples with an amount of one dopant."""
        at = np.array([amount])
        width = float(np.clip(self.deviation(dopant, at, standards)[0], 0.002, 0.6))
        factor = self.factor_deviation(dopant, standards)
        # A sixth of a deviation apart, as far as six of those that are found, which the factor scatters.
        steps = int(np.ceil(36.0 * np.hypot(1.0, factor / width)))
        logs = np.log(amount) + np.arange(-steps, steps + 1) * (width / 6.0)
        logs = logs[(logs > np.log(LOWEST)) & (logs < np.log(FULL))]
        # As in `identify`, what is unknown is held as it is at the likeliest while concentrations are moved.
        evidence = self._evidence(dopant, np.exp(logs), np.zeros(len(logs)), standards)
        density = evidence.by_likeliest(drawn)
        share = np.exp(density - logsumexp(density, axis=1, keepdims=True))
        if factor:  # it multiplies what is found
            wider = np.linspace(logs[0] - 4.0 * factor, logs[-1] + 4.0 * factor, 400)
            kernel = np.exp(-0.5 * ((wider - logs[:, None]) / factor) ** 2)
            share, logs = share @ (kernel / kernel.sum(1, keepdims=True)), wider
        total = np.cumsum(share, axis=1) - 0.5 * share
        ends = [[np.interp(q, one, np.exp(logs)) for q in (0.5 - coverage / 2, 0.5 + coverage / 2)] for one in total]
        return np.array(ends)

    def likeness(self) -> FloatArray:
        """Return the (K, K) cosines of the changes of dopants, in units of noise and of what may differ otherwise."""
        change = self.likelihood.mean(TYPICAL * np.eye(len(self.emulator.dopants)))
        white = np.linalg.solve(np.linalg.cholesky(self.likelihood.fixed), change.T).T
        white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
        return np.asarray(white @ white.T)


def _crossing(grid: FloatArray, share: FloatArray, wanted: float) -> float | None:
    """Return where a share that grows with the concentration is as large as wanted; None for nowhere."""
    share = np.maximum.accumulate(share)
    if share[-1] < wanted:
        return None
    probit = ndtri(np.clip(share, 1e-3, 1.0 - 1e-3)) + 1e-9 * np.arange(len(share))
    return float(np.exp(np.interp(ndtri(wanted), probit, np.log(grid))))


def _planned(
    crystal: KnownCrystal,
    setup: Setup,
    amounts: tuple[float, ...],
    vary: bool,
    report: Callable[[int, int], None],
) -> Plan:
    k = len(crystal.dopants)
    few = vary and k <= FEW_DOPANTS
    total = k + (k * len(FWHM_FACTORS) * len(NOISE_FACTORS) + k * len(STANDARDS) if few else 0)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        report(done, total)

    asked = Expected(crystal, setup)
    rng = np.random.default_rng(SEED)
    undoped = asked.draw_undoped(NULL_DRAWS, rng)
    hypotheses = [asked.hypothesis(i) for i in range(k)]
    detections = []
    for i in range(k):
        odds = asked.log_odds(undoped, hypotheses[i])
        threshold = float(np.quantile(odds, 1.0 - FALSE_ALARMS))
        always = float(np.log(NAMED / (1.0 - NAMED)))
        limit, named = asked.smallest(i, [threshold, always], hypotheses[i], SEED + 1)
        detections.append(
            Detection(
                crystal.dopants[i],
                float(asked.top[i]),
                limit,
                float(1.0 / (1.0 + np.exp(-threshold))),
                named,
                float((odds > always).mean()),
                tuple(asked.interval(i, amount, rng) for amount in amounts),
            )
        )
        step()
    widest = 0.5 * crystal.pack.host.band_edge_mev
    fwhms = tuple(setup.fwhm_mev * f for f in FWHM_FACTORS if setup.fwhm_mev * f < widest)
    noises = tuple(dict.fromkeys(setup.noise * f for f in NOISE_FACTORS if setup.noise * f <= MOST_NOISE))
    by_instrument = np.full((k if few else 0, len(fwhms), len(noises)), np.nan)
    for f, fwhm in enumerate(fwhms if few else ()):
        like = None
        for n, noise in enumerate(noises):
            like = Expected(crystal, replace(setup, fwhm_mev=fwhm, noise=noise, step_mev=setup.points_mev), like)
            for i in range(k):
                by_instrument[i, f, n] = _nan(_limit(like, i))
                step()
    standards = STANDARDS if few and not setup.same_potential else ()
    by_standards = np.full((k, len(standards)), np.nan)
    intervals = np.full((k, len(standards), len(amounts), 2), np.nan)
    for s, number in enumerate(standards):
        for i in range(k):
            by_standards[i, s] = _nan(detections[i].limit if not number else _limit(asked, i, number))
            for a, amount in enumerate(amounts):
                ends = detections[i].intervals[a] if not number else asked.interval(i, amount, rng, number)
                intervals[i, s, a] = (np.nan, np.nan) if ends is None else ends
            step()
    report(total, total)
    host = crystal.pack.host
    return Plan(
        host=host.id,
        formula=host.formula,
        potential=host.potential,
        edge_mev=host.band_edge_mev,
        setup=setup,
        fwhm_mev=asked.compared.instrument.fwhm * host.band_edge_mev,
        amounts=amounts,
        detections=tuple(detections),
        likeness=asked.likeness(),
        apart=told_apart(asked, hypotheses),
        fwhms_mev=fwhms,
        noises=noises,
        by_instrument=by_instrument,
        standards=standards,
        standard_content=np.array([asked.standard(i) for i in range(k)]),
        by_standards=by_standards,
        intervals_by_standards=intervals,
    )


def _nan(value: float | None) -> float:
    return np.nan if value is None else value


def _limit(expected: Expected, dopant: int, standards: int = 0) -> float | None:
    """Return the detection limit of a dopant, see `Detection.limit`."""
    hypothesis = expected.hypothesis(dopant, standards)
    odds = expected.log_odds(expected.draw_undoped(NULL_DRAWS, np.random.default_rng(SEED)), hypothesis)
    threshold = float(np.quantile(odds, 1.0 - FALSE_ALARMS))
    return expected.smallest(dopant, [threshold], hypothesis, SEED + 1, standards)[0]


def told_apart(expected: Expected, hypotheses: Sequence[DopantEvidence]) -> FloatArray:
    """Return the (K, K) smallest concentrations from which on dopants can be told apart, see `Plan.apart`.

    Args:
        expected: Of K dopants.
        hypotheses: Of each, from `Expected.hypothesis`.
    """
    k = len(hypotheses)
    grid = np.geomspace(SMALLEST, HIGHEST, 13)
    right = np.zeros((k, k, len(grid)))
    ranks = np.argsort(np.argsort(-np.abs(expected.likeness()), axis=1), axis=1)
    nearest = ranks <= ALIKE  # the first is the dopant itself
    nearest |= nearest.T
    for i in range(k):
        amounts = grid[grid <= expected.top[i]]
        drawn = expected.draw(i, amounts, PAIR_DRAWS, np.random.default_rng(0))
        own = hypotheses[i].log(drawn, beside=False)
        for j in np.flatnonzero(nearest[i]).tolist():
            right[i, j, : len(amounts)] = (own > hypotheses[j].log(drawn, beside=False)).mean(-1)
    out = np.zeros((k, k))
    for i in range(k):
        for j in np.flatnonzero(nearest[i, :i]).tolist():
            fits = grid <= min(expected.top[i], expected.top[j])
            out[i, j] = out[j, i] = _nan(_crossing(grid[fits], 0.5 * (right[i, j] + right[j, i])[fits], APART))
    return out
