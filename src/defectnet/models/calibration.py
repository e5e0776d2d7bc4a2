"""Calibration: what turns a network's raw answer into what a user sees, how it is fitted, and how it is applied.

Numbers fitted on crystals or samples that were not trained on: temperature, threshold, width of the concentration's
interval.

The interval is split conformal with a normalised score (Lei et al., JASA 113, 1094 (2018)): residuals are divided by
a width that grows linearly with the predicted concentration, and the quantile of the ratio scales that width. Its
coverage holds for dopants exchangeable with those of the calibration rows: simulated ones, of unseen crystals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from defectnet.batch import Batch, Estimate, Output
from defectnet.config import Settings, bounded, within
from defectnet.elements import parse_formula
from defectnet.errors import ConfigError, FormulaError
from defectnet.models.answers import Answers
from defectnet.spectrum import KINDS

FloatArray = NDArray[np.float64]

MIN_OFFSET: Final = 1e-4
"""Smallest half-width, atomic fraction: no interval is narrower than 0.01 at.%."""

TEMPERATURES: Final = (0.05, 20.0)
"""Bounds of the search for a temperature."""

_AT_BOUND: Final = 0.01  # of the logarithm of a temperature: twice the precision of the search


@dataclass(frozen=True)
class Interval(Settings, called="interval"):
    """A conformal band: `c - (offset + slope c)` to `c + (offset + slope c)`, cut to 0 and 1.

    Attributes:
        coverage: Share of true concentrations that the band holds on calibration data, 0 to 1.
        offset: Half-width at concentration 0, atomic fraction.
        slope: Growth of the half-width with the concentration.
    """

    coverage: float = field(metadata=within(above=0.0, below=1.0))
    offset: float = field(metadata=within(0.0, 1.0))
    slope: float = bounded(0.0, 0.0, 100.0)


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
        hosts: Calibrations of single hosts, which take the place of this one for questions about them.
    """

    temperature_candidates: float = bounded(1.0, 0.01, 100.0)
    temperature_blind: float = bounded(1.0, 0.01, 100.0)
    threshold_candidates: float = bounded(0.5, above=0.0, below=1.0)
    threshold_blind: float = bounded(0.5, above=0.0, below=1.0)
    interval: Interval | None = None
    hosts: tuple[HostCalibration, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; without `hosts` where there are none, as older versions read them."""
        plain = super().to_dict()
        return plain if self.hosts else {key: value for key, value in plain.items() if key != "hosts"}

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


def fit_calibration(answers: Mapping[str, Answers], coverage: float = 0.9) -> Calibration:
    """Fit temperature and threshold of each track, and the interval over all of them.

    Args:
        answers: Answers by track, ``candidates`` and ``blind``; a track that is not there keeps neutral numbers.
        coverage: Nominal coverage of the interval.

    Raises:
        ConfigError: There are too few dopants for this coverage.
    """
    numbers: dict[str, Any] = {}
    predicted, true = list[FloatArray](), list[FloatArray]()
    for track, found in answers.items():
        asked, present = found.batch.candidates, found.targets.present
        logits = found.output.identity_logits[asked]
        temperature = fit_temperature(logits, present[asked])
        numbers[f"temperature_{track}"] = temperature
        numbers[f"threshold_{track}"] = best_threshold(torch.sigmoid(logits / temperature), present[asked])
        predicted.append(found.output.concentration_if_present[present].double().numpy())
        true.append(found.targets.true_concentration[present].double().numpy())
    return Calibration(**numbers, interval=fit_interval(np.concatenate(predicted), np.concatenate(true), coverage))


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
    amount = warm.concentration_if_present
    low = high = None
    if any(c.interval is not None for c in calibrations):
        bands = [
            (math.nan, math.nan) if c.interval is None else (c.interval.offset, c.interval.slope) for c in calibrations
        ]
        offset, slope = torch.tensor(bands, dtype=torch.float64).reshape(-1, 2, 1).unbind(1)
        half = offset + slope * amount
        low, high = (amount - half).clamp(0.0, 1.0), (amount + half).clamp(0.0, 1.0)
    other = None
    if double.something_else is not None:
        other = torch.sigmoid(double.something_else).masked_fill(~batch.candidates_given.cpu(), math.nan)
    return Estimate(torch.sigmoid(warm.identity_logits), expected(warm), amount, low, high, warm.further, other)


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
