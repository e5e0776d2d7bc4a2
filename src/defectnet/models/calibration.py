"""Calibration: what turns a network's raw answer into what a user sees, how it is fitted, and how it is applied.

Numbers fitted on crystals or samples that were not trained on: temperature, threshold, intervals of the concentration.
Thresholds are those of a stated rate of false alarms where there are questions without a true dopant to fit them to,
and else those of the largest F1.

Intervals are belts (`defectnet.models.belts`), or, where dopants are few, split conformal with a normalised score (Lei
et al., JASA 113, 1094 (2018)): residuals are divided by a width that grows linearly with the predicted concentration,
and the quantile of the ratio scales that width. Coverage holds for dopants exchangeable with those of the calibration
rows: simulated ones, of unseen crystals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from defectnet.batch import Batch, Estimate, Output
from defectnet.config import Settings, bounded, within
from defectnet.elements import VOCABULARY, parse_formula
from defectnet.errors import ConfigError, FormulaError
from defectnet.models.answers import Answers
from defectnet.models.belts import Belt, belt_of, fit_belts
from defectnet.prediction import UNSURE
from defectnet.spectrum import KINDS

FloatArray = NDArray[np.float64]

MIN_OFFSET: Final = 1e-4
"""Smallest half-width, atomic fraction: no interval is narrower than 0.01 at.%."""

TEMPERATURES: Final = (0.05, 20.0)
"""Bounds of the search for a temperature."""

_AT_BOUND: Final = 0.01  # of the logarithm of a temperature: twice the precision of the search


FALSE_ALARMS: Final = 0.05
"""Stated share of undoped samples of which some element is called present."""

WRONG_LISTS: Final = 0.1
"""The same of doped samples, of `DOPED` at least in all, whose list holds no true dopant."""

DOPED: Final = 0.03

_FEW: Final = 3  # so many candidates and fewer have a threshold of their own: the fewer, the surer is the surest

_MARGIN: Final = 0.75  # of the stated rates, so that they hold on other crystals than those of the fit


@dataclass(frozen=True)
class Interval(Settings, called="interval"):
    """A conformal band: `c - (offset + slope c)` to `c + (offset + slope c)`, cut to 0 and 1; or confidence belts.

    Attributes:
        coverage: Share of true concentrations that the band holds on calibration data, 0 to 1.
        offset: Half-width at concentration 0, atomic fraction.
        slope: Growth of the half-width with the concentration.
        belts: Belts, which take the place of the band for the elements that they are for.
    """

    coverage: float = field(metadata=within(above=0.0, below=1.0))
    offset: float = field(metadata=within(0.0, 1.0))
    slope: float = bounded(0.0, 0.0, 100.0)
    belts: tuple[Belt, ...] = ()

    def ends(
        self, amount: FloatArray, probability: FloatArray, threshold: float, named: bool
    ) -> tuple[FloatArray, FloatArray]:
        """Return lower and upper ends (E,) for one question.

        Args:
            amount: (E,) concentrations if present.
            probability: (E,) of the elements in question, zero of all others.
            threshold: Probability from which an element is called present.
            named: Whether candidates were named.
        """
        half = self.offset + self.slope * amount
        low, high = np.clip(amount - half, 0.0, 1.0), np.clip(amount + half, 0.0, 1.0)
        for present in (True, False) if self.belts else ():
            belt = belt_of(self.belts, named, present, float(probability.sum()))
            chosen = (probability >= threshold) == present
            if belt is not None and chosen.any():
                low[chosen], high[chosen] = belt.ends(amount[chosen])
        return low, high


@dataclass(frozen=True)
class Calibration(Settings, called="calibration"):
    """Numbers fitted on validation crystals, which turn a network's raw answer into what a user sees.

    `candidates` and `blind` are the two tracks: they have different base rates, hence their own numbers.

    Attributes:
        temperature_candidates: Identity logits are divided by it where candidates are given.
        temperature_blind: The same where nothing is named.
        threshold_candidates: Probability from which an element counts as present where candidates are given.
        threshold_blind: The same where nothing is named.
        interval: Band of the concentration if present; None where it was not fitted.
        threshold_few: Thresholds of lists of 1, 2 and more candidates; longer lists have `threshold_candidates`.
        hosts: Calibrations of single hosts, which take the place of this one for questions about them.
        computed: That of questions with computed responses, which takes the place of this one for them.
    """

    temperature_candidates: float = bounded(1.0, 0.01, 100.0)
    temperature_blind: float = bounded(1.0, 0.01, 100.0)
    threshold_candidates: float = bounded(0.5, above=0.0, below=1.0)
    threshold_blind: float = bounded(0.5, above=0.0, below=1.0)
    interval: Interval | None = None
    threshold_few: tuple[float, ...] = bounded((), above=0.0, below=1.0)
    hosts: tuple[HostCalibration, ...] = ()
    computed: Calibration | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without what is not there: so older versions read them."""
        plain = super().to_dict()
        if self.interval is not None and not self.interval.belts:
            del plain["interval"]["belts"]
        if self.computed is not None:
            plain["computed"] = self.computed.to_dict()
        optional = ("hosts", "threshold_few", "computed")
        return {key: value for key, value in plain.items() if value or key not in optional}

    def threshold(self, named: bool, candidates: int) -> float:
        """Return the probability from which an element counts as present, of so many in question."""
        if not named:
            return self.threshold_blind
        few = self.threshold_few
        return few[candidates - 1] if 1 <= candidates <= len(few) else self.threshold_candidates

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """What is to be said of temperatures at a bound of the search: the answers held no error to fit them to."""
        found = []
        for track in ("candidates", "blind"):
            value = getattr(self, f"temperature_{track}")
            bound = next((x for x in TEMPERATURES if abs(math.log(value / x)) < _AT_BOUND), None)
            if bound is not None:
                found.append(f"the temperature ({track}) is at its bound of {bound:g}: how sure to be is not known")
        return tuple(found)


@dataclass(frozen=True)
class HostCalibration(Settings, called="calibration.hosts"):
    """The calibration of questions about one host.

    Attributes:
        formula: Formula of the host.
        kind: Kind of DOS that it was fitted on.
        numbers: The calibration; its own `hosts` are empty.
        measured: Which of the hosts of a `MeasuredResponses` it is, counted from 0; -1 where a host is told by formula
            and kind.
    """

    formula: str
    kind: str = field(metadata=within(choices=KINDS))
    numbers: Calibration
    measured: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.numbers.hosts:
            hosts = f"{self.numbers.hosts!r:.80}"
            raise ConfigError(f"calibration.hosts.numbers.hosts is {hosts}", fix="Leave it out")
        try:
            parse_formula(self.formula)
        except FormulaError as error:
            raise ConfigError(f"calibration.hosts.formula: {error.what}", why=error.why, fix=error.fix) from error


def fit_calibration(
    answers: Mapping[str, Answers], coverage: float = 0.9, nothing: Mapping[str, Sequence[Answers]] | None = None
) -> Calibration:
    """Fit temperature and threshold of each track, and the intervals.

    Args:
        answers: Answers by track, ``candidates`` and ``blind``; a track that is not there keeps neutral numbers.
        coverage: Nominal coverage of the interval.
        nothing: By track, answers about undoped samples, and about doped ones whose list holds no true dopant: these
            give the thresholds. Without them thresholds are those of the largest F1.

    Raises:
        ConfigError: There are too few dopants for this coverage.
    """
    numbers: dict[str, Any] = {}
    belts = list[Belt]()
    predicted, true = list[FloatArray](), list[FloatArray]()
    for track, found in answers.items():
        asked, present = found.batch.candidates, found.targets.present & found.batch.candidates
        logits = found.output.identity_logits
        temperature = fit_temperature(logits[asked], present[asked])
        probability = torch.sigmoid(logits.double() / temperature)
        count = asked.sum(dim=1, keepdim=True)
        if nothing and track in nothing:
            rows = [_surest(part, temperature) for part in nothing[track]]
            few = tuple(quiet_threshold(rows, n) for n in range(1, _FEW + 1)) if track == "candidates" else ()
            threshold = quiet_threshold(rows, _FEW + 1, len(VOCABULARY))
            limit = torch.tensor([*few, threshold])[(count - 1).clamp(0, len(few))]
            numbers["threshold_few"] = numbers.get("threshold_few") or few
        else:
            threshold = best_threshold(probability[asked], present[asked])
            limit = torch.full(count.shape, threshold)
        numbers |= {f"temperature_{track}": temperature, f"threshold_{track}": threshold}
        amount = found.output.concentration_if_present[present].double().numpy()
        truth = found.targets.true_concentration[present].double().numpy()
        predicted.append(amount)
        true.append(truth)
        if nothing:
            counts = (probability * asked).sum(dim=1, keepdim=True), found.targets.present.sum(dim=1, keepdim=True)
            expected, number = (x.expand_as(asked)[present].numpy() for x in counts)
            sure = (probability >= limit)[present].numpy()
            belts += fit_belts(amount, truth, sure, expected, number, track == "candidates", coverage)
    band = fit_interval(np.concatenate(predicted), np.concatenate(true), coverage)
    return Calibration(**numbers, interval=replace(band, belts=tuple(belts)))


class Surest(NamedTuple):
    """The most probable element of questions without a true dopant.

    Attributes:
        probability: (n,) of each question.
        candidates: (n,) how many elements were in question.
        rate: Share of questions like these of which an element may be called present.
    """

    probability: FloatArray
    candidates: NDArray[np.intp]
    rate: float


def _surest(found: Answers, temperature: float) -> Surest:
    total = found.targets.true_concentration.sum(dim=1)
    chosen = (total == 0) | (total >= DOPED)
    logits = found.output.identity_logits[chosen].amax(dim=1).double()
    count = found.batch.candidates[chosen].sum(dim=1).numpy()
    return Surest(torch.sigmoid(logits / temperature).numpy(), count, WRONG_LISTS if total.any() else FALSE_ALARMS)


def quiet_threshold(rows: Sequence[Surest], fewest: int, most: int | None = None) -> float:
    """Return the probability that not more than a share of the questions without a true dopant reach.

    It is not below `UNSURE`: so that what is called present stands out.

    Args:
        rows: Questions of each kind.
        fewest: Of so many candidates, at least.
        most: And at most; the same number if None.
    """
    least = UNSURE
    for probability, candidates, rate in rows:
        alike = probability[(candidates >= fewest) & (candidates <= (most or fewest))]
        if len(alike):
            least = max(least, float(np.quantile(alike, 1.0 - _MARGIN * rate, method="higher")))
    return float(np.clip(np.nextafter(least, 1.0), 1e-6, 1.0 - 1e-6))


def calibrated(
    output: Output, batch: Batch, calibrations: Sequence[Calibration], expected: Callable[[Output], Tensor]
) -> Estimate:
    """Apply a calibration to each row of an output, in double precision.

    Args:
        output: What a network says, (B, E).
        batch: What it was asked.
        calibrations: B calibrations.
        expected: From output to expected concentrations, `DefectModel.expected`.

    Returns:
        Probabilities after the track's temperature, and intervals; NaN in rows whose calibration has none, and None
        where no row has one.
    """
    given = batch.candidates_given.tolist()
    temperature = [
        c.temperature_candidates if named else c.temperature_blind for c, named in zip(calibrations, given, strict=True)
    ]
    double = output.map(lambda x: x.double())
    warm = double._replace(
        identity_logits=double.identity_logits / torch.tensor(temperature, dtype=torch.float64).reshape(-1, 1)
    )
    amount, probability = warm.concentration_if_present, torch.sigmoid(warm.identity_logits)
    low = high = None
    if any(c.interval is not None for c in calibrations):
        asked, values, sure = (x.cpu().numpy() for x in (batch.candidates, amount, probability))
        ends = np.full((2, *values.shape), math.nan)
        for i, (c, named) in enumerate(zip(calibrations, given, strict=True)):
            if c.interval is not None:
                ends[:, i] = c.interval.ends(
                    values[i], sure[i] * asked[i], c.threshold(named, int(asked[i].sum())), named
                )
        low, high = torch.from_numpy(ends)
    other = None
    if double.something_else is not None:
        other = torch.sigmoid(double.something_else).masked_fill(~batch.candidates_given.cpu(), math.nan)
    return Estimate(probability, expected(warm), amount, low, high, warm.further, other)


def fit_temperature(logits: Tensor, present: Tensor) -> float:
    """Return the temperature that the logits are divided by for the smallest cross entropy.

    Args:
        logits: (n,) log-odds of elements in question.
        present: (n,) bool, which of them are there.

    Returns:
        Temperature within `TEMPERATURES`, to 0.5 %.
    """
    x, y = logits.double(), present.double()

    def cost(temperature: float) -> float:
        return float(binary_cross_entropy_with_logits(x / temperature, y))

    # The cost is convex in 1/T, so it has one minimum: a golden section in log T finds it.
    low, high = (math.log(bound) for bound in TEMPERATURES)
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    while high - low > 5e-3:
        inner, outer = high - golden * (high - low), low + golden * (high - low)
        if cost(math.exp(inner)) < cost(math.exp(outer)):
            high = outer
        else:
            low = inner
    return math.exp((low + high) / 2.0)


def best_threshold(probability: Tensor, present: Tensor) -> float:
    """Return the probability from which an element should count as present, for the largest F1 over all of them.

    Args:
        probability: (n,) probabilities of elements in question.
        present: (n,) bool, which of them are there.

    Returns:
        A value midway between two that occur, so that it does not hang on the last digit; 0.5 if nothing is present.
    """
    if not present.any():
        return 0.5
    p, order = probability.double().sort(descending=True)
    hits = present[order].double().cumsum(0)
    taken = torch.arange(1, len(p) + 1, dtype=torch.float64)
    f1 = 2.0 * hits / (taken + hits[-1])
    ends = torch.cat([p[1:] < p[:-1], torch.tensor([True])])  # only whole groups of equal values can be taken
    best = int(torch.where(ends, f1, -1.0).argmax())
    below = float(p[best + 1]) if best + 1 < len(p) else 0.0
    return float(np.clip((float(p[best]) + below) / 2.0, 1e-6, 1.0 - 1e-6))


def fit_interval(predicted: FloatArray, true: FloatArray, coverage: float = 0.9) -> Interval:
    """Fit a conformal band `offset + slope c` around the predicted concentration.

    Args:
        predicted: (n,) predicted concentrations of dopants that are there.
        true: (n,) their true concentrations.
        coverage: Share of true concentrations that the band shall hold.

    Raises:
        ConfigError: There are too few dopants for this coverage.
    """
    residual: FloatArray = np.abs(predicted - true)
    # Every other one fits the shape of the band, the others its scale: the quantile must not see its own fit.
    shape, scale = slice(0, None, 2), slice(1, None, 2)
    n = len(residual[scale])
    rank = math.ceil((n + 1) * coverage)
    if rank > n:
        raise ConfigError(f"{len(residual)} dopants are too few to calibrate", fix="Give more validation rows")
    offset, slope = _line(predicted[shape], residual[shape])
    score: FloatArray = residual[scale] / (offset + slope * predicted[scale])
    quantile = float(np.sort(score)[rank - 1])
    return Interval(coverage, float(np.clip(quantile * offset, MIN_OFFSET, 1.0)), float(min(quantile * slope, 100.0)))


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Fit y = offset + slope x with neither negative, and the offset not below `MIN_OFFSET`."""
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = max(float(centred @ y) / spread, 0.0) if spread > 1e-12 else 0.0
    offset = float(y.mean() - slope * x.mean())
    if offset < MIN_OFFSET:
        offset, slope = MIN_OFFSET, max(float(x @ (y - MIN_OFFSET)), 0.0) / max(float(x @ x), 1e-12)
    return offset, slope
