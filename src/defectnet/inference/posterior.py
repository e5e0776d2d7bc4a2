"""Which dopants, at what concentrations: the posterior over subsets of candidates, by enumeration and sampling.

The evidence of a subset is its likelihood averaged over concentrations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import chdtrc, logsumexp

from defectnet.inference.emulator import FULL, HIGHEST, LOWEST
from defectnet.inference.likelihood import Likelihood, solved

FloatArray = NDArray[np.float64]

NUMBER_PRIOR: Final = (0.3, 0.35, 0.2, 0.09, 0.04, 0.013, 0.007)
"""Prior probability of 0, 1, 2, ... dopants among the candidates."""

OTHER_PRIOR: Final = 0.1
"""Prior probability that something is in the sample that is no candidate."""

UNLISTED_PRIOR: Final = 0.35
"""Prior probability that one of the pack's dopants that are no candidates is in the sample."""

TAUGHT_UNLISTED_PRIOR: Final = 0.1
"""The same where there are standards: whoever has them knows what is put in. Beyond the standards' concentrations what
is learnt of a candidate fails first, and a dopant of which nothing is learnt would be taken in its place."""

OTHER_AMOUNTS: Final = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16])
"""Concentrations of something else over which its evidence is averaged."""

EXHAUSTIVE: Final = 3
"""Subsets up to this size are enumerated, if there are at most `FEW` candidates; larger ones grow from the best."""

FEW: Final = 12

SAMPLES: Final = 192
"""Concentrations drawn for a subset, around the best."""

DRAWN: Final = 4000
"""Concentrations drawn from the posterior, for pictures of it."""

STEPS: Final = 25
"""Most steps to the likeliest concentrations."""

HOPELESS: Final = 9.0
"""Logarithm of the evidence by which a subset may be worse than the best and still be sampled."""

FALLING: Final = 5.0
"""Logarithm of the evidence by which the best of a size may lie below the best before no larger ones are tried."""

WITH_OTHER: Final = 4
"""Subsets of a size beside which something else is considered."""

POOLED: Final = 0.5
"""Weight of another opinion."""

UNHEARD: Final = 1e-3
"""Least probability of another opinion, and of its contrary: nobody is surer than that."""

PRIOR_DENSITY: Final = -float(np.log(np.log(HIGHEST / LOWEST)))
"""Logarithm of the prior density of the logarithm of a concentration: uniform."""

KEPT, GROWN = 24, 5
"""Subsets of one size that are grown, and that are where many candidates are screened."""


@dataclass(frozen=True)
class Hypothesis:
    """A subset of the candidates, with or without something else.

    Attributes:
        subset: Positions of the candidates, and perhaps of a dopant that is none.
        other: Whether something else is there.
        log_evidence: Of the data, prior of the subset included.
        concentration: (S, len(subset)) samples. weight: (S,) of the samples, sum 1.
        place: (len(subset),) concentrations that fit best.
    """

    subset: tuple[int, ...]
    other: bool
    log_evidence: float
    concentration: FloatArray
    weight: FloatArray
    place: FloatArray


@dataclass(frozen=True)
class Likely:
    """One explanation of a measured change.

    Attributes:
        probability: Of it.
        dopants: What it puts in. other: Whether it holds something else, too.
        concentration: (K,) mean of each candidate.
    """

    probability: float
    dopants: tuple[str, ...]
    other: bool
    concentration: FloatArray


@dataclass(frozen=True)
class Posterior:
    """What is known of the dopants of a sample; K candidates.

    Attributes:
        dopants: Names of the candidates, such as ``Al@Ga``, and of dopants that something else may be; K of both.
        elements: J elements among the candidates: sites of one element are taken together.
        probability: (J,) that each is in the sample.
        other: Probability that something else is.
        mean: (J,) expected concentration, 0 where it is absent. if_present: (J,) given that it is there.
        low, high: (J,) ends of the interval given that it is there, of `coverage`.
        upper: (J,) concentration below which it is with probability `coverage`, given that it is there.
        ceiling: (J,) concentration from which on it alone would change the spectrum by more than it is changed, even if
            its response were smaller than computed by two deviations of the amplitude.
        explained: Share of the change that the best explanation accounts for, beyond noise.
        p_value: Probability of a misfit as large as this under the best explanation.
        likeliest: The likeliest explanations, at most ten.
        best: (K,) concentrations of the likeliest.
        unlisted: (U,) probability that each of the last of `dopants`, which are no candidates, is what else is there.
        samples: (`DRAWN`, J) concentrations drawn from the posterior, 0 where an element is absent.
    """

    dopants: tuple[str, ...]
    elements: tuple[str, ...]
    probability: FloatArray
    other: float
    mean: FloatArray
    if_present: FloatArray
    low: FloatArray
    high: FloatArray
    upper: FloatArray
    ceiling: FloatArray
    coverage: float
    explained: float
    p_value: float
    likeliest: tuple[Likely, ...]
    best: FloatArray
    unlisted: FloatArray
    samples: FloatArray

    def among(self, dopants: Sequence[str], probability: FloatArray, place: FloatArray) -> Posterior:
        """Return the posterior of many candidates, of which those of this one were chosen for a closer look.

        The others are told as `screened` has them, with intervals of a factor of two either way.

        Args:
            dopants: Names of all of them.
            probability: (N,) rough ones.
            place: (N,) concentrations at which each is likeliest.
        """
        rest = [i for i, name in enumerate(dopants) if name not in self.dopants]
        symbols = [dopants[i].partition("@")[0] for i in rest]
        new = [symbol for symbol in dict.fromkeys(symbols) if symbol not in self.elements]
        sites = [[i for i, one in zip(rest, symbols, strict=True) if one == symbol] for symbol in new]
        at = [max(some, key=lambda i: probability[i]) for some in sites]
        p, c = probability[at], place[at]
        # What a closer look leaves for the others: that they were not chosen speaks against them.
        p = np.minimum(p, self.probability.min() if len(self.probability) else 1.0)
        own = [dopants.index(name) for name in self.dopants]

        def in_order(concentration: FloatArray) -> FloatArray:
            out = np.zeros(len(dopants))
            out[own] = concentration
            return out

        def with_rest(own: FloatArray, more: FloatArray) -> FloatArray:
            return np.concatenate([own, more])

        return replace(
            self,
            dopants=tuple(dopants),
            elements=(*self.elements, *new),
            probability=with_rest(self.probability, p),
            mean=with_rest(self.mean, p * c),
            if_present=with_rest(self.if_present, c),
            low=with_rest(self.low, 0.5 * c),
            high=with_rest(self.high, 2.0 * c),
            upper=with_rest(self.upper, 2.0 * c),
            ceiling=with_rest(self.ceiling, np.ones(len(new))),
            best=in_order(self.best),
            likeliest=tuple(replace(one, concentration=in_order(one.concentration)) for one in self.likeliest),
            samples=np.pad(self.samples, [(0, 0), (0, len(new))]),
        )

    @property
    def by_unlisted(self) -> dict[str, float]:
        """Names of the dopants that are no candidates -> probability that each is what else is there."""
        names = self.dopants[len(self.dopants) - len(self.unlisted) :]
        return dict(zip(names, self.unlisted.tolist(), strict=True))


@dataclass(frozen=True)
class Opinion:
    """What someone else says of the same question.

    Attributes:
        elements: J symbols, those of the candidates.
        probability: (J,) that each is in the sample.
    """

    elements: tuple[str, ...]
    probability: FloatArray

    def log(self, present: Collection[str]) -> float:
        """Return the log probability that these elements are there, and no other candidates."""
        there = np.array([symbol in present for symbol in self.elements])
        p = np.clip(self.probability, UNHEARD, 1.0 - UNHEARD)
        return float(np.log(np.where(there, p, 1.0 - p)).sum())


def infer(likelihood: Likelihood, *, coverage: float = 0.9, seed: int = 0, opinion: Opinion | None = None) -> Posterior:
    """Compute the posterior.

    Args:
        likelihood: Of one measured change.
        coverage: Of the intervals.
        seed: Of the samples.
        opinion: What is pooled with it: probabilities of elements are the geometric mean of both (logarithmic opinion
            pool; Genest and Zidek, Stat. Sci. 1, 114 (1986)), whether something else is there or not. How likely that
            is, and concentrations, are those of the posterior.
    """
    rng = np.random.default_rng(seed)
    found = [_nothing(likelihood, other) for other in (False, True)]
    for size, peaks in _peaks_by_size(likelihood):
        level = [_evaluated(likelihood, one, False, rng) for one in _likely(peaks, found)]
        level.sort(key=lambda one: -one.log_evidence)
        found += level
        beside = _peaks(likelihood, [one.subset for one in level[:WITH_OTHER]], float(OTHER_AMOUNTS[2]), {})
        found += [_evaluated(likelihood, one, True, rng) for one in _likely(beside, found)]
        if size >= EXHAUSTIVE and level[0].log_evidence < max(one.log_evidence for one in found) - FALLING:
            break
    found += _with_unlisted(likelihood, found, rng)
    if opinion is not None:
        found = _pooled(likelihood, found, opinion)
    return _summary(likelihood, found, coverage)


def _pooled(likelihood: Likelihood, found: Sequence[Hypothesis], opinion: Opinion) -> list[Hypothesis]:
    """Return hypotheses with the evidence that both together give to what they say of elements.

    Something else keeps its probability: with the network's, an element was named in 0.19 of validation samples whose
    list lacked the true dopants; with its own in 0.08, and complete lists were answered as well.
    """
    symbols = [name.partition("@")[0] for name in likelihood.emulator.dopants[: likelihood.listed]]
    named = [frozenset(symbols[i] for i in one.subset if i < likelihood.listed) for one in found]
    other, logs = np.array([one.other for one in found]), np.array([one.log_evidence for one in found])
    pooled = logs.copy()
    for beside in (False, True):
        own = {what: [k for k, one in enumerate(named) if one == what and other[k] == beside] for what in set(named)}
        for what, rows in own.items():
            if rows:
                pooled[rows] += POOLED * (opinion.log(what) - logsumexp(logs[rows]))
        chosen = other == beside
        if chosen.any():
            pooled[chosen] += logsumexp(logs[chosen]) - logsumexp(pooled[chosen])
    return [replace(one, log_evidence=float(log)) for one, log in zip(found, pooled, strict=True)]


def _with_unlisted(likelihood: Likelihood, found: Sequence[Hypothesis], rng: np.random.Generator) -> list[Hypothesis]:
    """Return the best small subsets with a dopant beside them that is no candidate, of which the pack knows all."""
    unlisted = range(likelihood.listed, len(likelihood.emulator.dopants))
    best = sorted((one for one in found if not one.other), key=lambda one: -one.log_evidence)[:WITH_OTHER]
    subsets = {one.subset for one in best if len(one.subset) < EXHAUSTIVE} | {()}
    peaks = [
        peak
        for size in range(EXHAUSTIVE)
        for peak in _peaks(likelihood, [(*one, u) for one in subsets for u in unlisted if len(one) == size], 0.0, {})
    ]
    return [_evaluated(likelihood, one, False, rng) for one in _likely(peaks, list(found))] if peaks else []


def screened(likelihood: Likelihood, most: int) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """Return which of many candidates are worth a closer look, and what is known of all: roughly, by Laplace's method.

    Subsets grow from the `GROWN` best of one dopant less, up to `EXHAUSTIVE`.

    Args:
        likelihood: Of one measured change; its emulator may know single dopants alone.
        most: How many candidates to return.

    Returns:
        (n,) positions of the candidates, the likeliest first; (K,) probabilities of all; (K,) concentrations at which
        each is likeliest, in the best subset that holds it.
    """
    k = likelihood.listed
    none = float(likelihood.log(np.zeros((1, k)))[0]) + _log_prior(likelihood, (), False)
    peaks = [one for _, some in _peaks_by_size(likelihood, EXHAUSTIVE, GROWN) for one in some]
    logs = np.array([one.laplace + _log_prior(likelihood, one.subset, False) for one in peaks])
    holds, place = np.full((len(peaks), k), -np.inf), np.zeros((len(peaks), k))
    for row, one in enumerate(peaks):
        holds[row, list(one.subset)], place[row, list(one.subset)] = logs[row], np.exp(one.place)
    probability = np.exp(logsumexp(holds, axis=0) - logsumexp(np.append(logs, none)))
    chosen = np.argsort(-holds.max(axis=0), kind="stable")[:most]
    return chosen, probability, place[holds.argmax(axis=0), np.arange(k)]


def likely_places(likelihood: Likelihood) -> list[tuple[float, FloatArray]]:
    """Return where concentrations are likeliest, roughly: of at most `EXHAUSTIVE` dopants, by Laplace's method.

    Returns:
        Probability and (K,) concentrations of each subset that has more than one in fifty.
    """
    k = len(likelihood.emulator.dopants)
    logs, places = [float(likelihood.log(np.zeros((1, k)))[0]) + _log_prior(likelihood, (), False)], [np.zeros(k)]
    alone = _peaks(likelihood, [(u,) for u in range(likelihood.listed, k)], 0.0, {})
    for peaks in [alone, *(peaks for _, peaks in _peaks_by_size(likelihood, EXHAUSTIVE))]:
        for one in peaks:
            c = np.zeros(k)
            c[list(one.subset)] = np.exp(one.place)
            logs.append(one.laplace + _log_prior(likelihood, one.subset, False))
            places.append(c)
    share = np.exp(np.array(logs) - logsumexp(logs))
    return [(float(p), c) for p, c in zip(share, places, strict=True) if p > 0.02 and c.any()]


def _peaks_by_size(
    likelihood: Likelihood, most: int = len(NUMBER_PRIOR) - 1, kept: int = KEPT
) -> Iterator[tuple[int, list[_Peak]]]:
    """Yield the peaks of the subsets of 1, 2, ... candidates: all subsets, and from some size on those that grow."""
    k = likelihood.listed
    subsets: list[tuple[int, ...]] = [(i,) for i in range(k)]
    known: dict[tuple[int, ...], tuple[float, FloatArray]] = {}
    for size in range(1, min(k, most) + 1):
        peaks = _peaks(likelihood, subsets, 0.0, known)
        known = {one.subset: (one.value, one.place) for one in peaks}
        yield size, peaks
        if size < EXHAUSTIVE and k <= FEW:
            subsets = list(combinations(range(k), size + 1))
        else:
            best = [one.subset for one in sorted(peaks, key=lambda one: -one.value)[:kept]]
            subsets = sorted({tuple(sorted((*one, i))) for one in best for i in range(k) if i not in one})


@dataclass(frozen=True)
class _Peak:
    """The likeliest concentrations of a subset.

    Attributes:
        subset: Positions of s candidates.
        place: (s,) logarithms of concentrations. covariance: (s, s) of them.
        value: Log likelihood there. laplace: Laplace's estimate of its mean over concentrations.
    """

    subset: tuple[int, ...]
    place: FloatArray
    covariance: FloatArray
    value: float
    laplace: float


def _likely(peaks: list[_Peak], found: list[Hypothesis]) -> list[_Peak]:
    """Return the peaks that are worth sampling: not hopelessly below the best."""
    top = max([one.laplace for one in peaks] + [one.log_evidence for one in found])
    ranked = sorted(peaks, key=lambda one: -one.laplace)
    return [one for place, one in enumerate(ranked) if place < 2 or one.laplace > top - HOPELESS]


def _nothing(likelihood: Likelihood, other: bool) -> Hypothesis:
    k = len(likelihood.emulator.dopants)
    none = np.zeros((1, k))
    logs = [float(likelihood.log(none, a)[0]) for a in OTHER_AMOUNTS] if other else [float(likelihood.log(none)[0])]
    evidence = float(_log_mean(np.array(logs))) + _log_prior(likelihood, (), other)
    return Hypothesis((), other, evidence, np.zeros((1, 0)), np.ones(1), np.zeros(0))


def _log_mean(values: FloatArray) -> FloatArray:
    """Return the logarithm of the mean over the first axis of what `values` are logarithms of."""
    return np.asarray(logsumexp(values, axis=0) - np.log(len(values)))


def _log_prior(likelihood: Likelihood, subset: tuple[int, ...], other: bool) -> float:
    """Return the log prior of a subset: of its size, over all subsets of that size, and of what is no candidate."""
    listed, unlisted = likelihood.listed, likelihood.errors.unlisted
    own = sum(i < listed for i in subset)
    among = likelihood.errors.asked or listed
    prior = NUMBER_PRIOR[min(len(subset), len(NUMBER_PRIOR) - 1)] / comb(among, own)
    elsewhere = TAUGHT_UNLISTED_PRIOR if likelihood.errors.standards else UNLISTED_PRIOR
    elsewhere = elsewhere if unlisted else 0.0
    if own < len(subset):
        prior *= elsewhere / unlisted
    else:
        prior *= OTHER_PRIOR if other else 1.0 - OTHER_PRIOR - elsewhere
    return float(np.log(prior))


def _evaluated(likelihood: Likelihood, peak: _Peak, other: bool, rng: np.random.Generator) -> Hypothesis:
    """Return a subset's evidence and samples: importance sampling around the best, in logarithms of concentrations."""
    subset, s, k = peak.subset, len(peak.subset), len(likelihood.emulator.dopants)
    elsewhere = other or max(subset) >= likelihood.listed
    values, vectors = np.linalg.eigh(peak.covariance)
    spread = vectors * np.sqrt(np.clip(values, 1e-5, 2.0))
    standard = rng.standard_t(5, (SAMPLES, s))
    draws = peak.place + standard @ spread.T
    proposal = (-3.0 * np.log1p(standard**2 / 5.0)).sum(1) + s * T5 - np.log(abs(np.linalg.det(spread)))
    c = np.zeros((SAMPLES, k))
    c[:, list(subset)] = np.exp(draws)
    inside = (draws > np.log(LOWEST)).all(1) & (np.exp(draws).sum(1) < FULL)
    logs = np.full(SAMPLES, -np.inf)
    if inside.any():
        amounts = OTHER_AMOUNTS[::2] if other else np.zeros(1)
        place = np.zeros((1, k))
        place[0, list(subset)] = np.exp(peak.place)
        held = [likelihood.factors(place, float(a)) for a in amounts]
        sizes = _log_mean(np.stack([likelihood.log_by_world(place, one)[:, 0] for one in held]))
        logs[inside] = _log_mean(np.stack([logsumexp(likelihood.log_by_world(c[inside], one), axis=0) for one in held]))
    logs = logs + s * PRIOR_DENSITY - proposal
    top = logs.max()
    if not np.isfinite(top):
        return Hypothesis(subset, elsewhere, -1e300, np.exp(draws[:1]), np.ones(1), np.exp(draws[0]))
    share = np.exp(logs - top)
    # One draw in the tails of the proposal is no evidence: truncated (Ionides, J. Comput. Graph. Stat. 17, 2008).
    share = np.minimum(share, share.mean() * np.sqrt(SAMPLES))
    evidence = top + np.log(share.mean()) + _log_prior(likelihood, subset, other)
    weight = share / share.sum()
    own, common = likelihood.factor_deviation(place[0], sizes)
    factor = own[list(subset)] * rng.standard_normal((SAMPLES, s)) + common * rng.standard_normal((SAMPLES, 1))
    return Hypothesis(subset, elsewhere, float(evidence), np.exp(draws + factor), weight, weight @ np.exp(draws))


T5: Final = float(np.log(8.0 / (3.0 * np.pi * np.sqrt(5.0))))
"""Logarithm of Student's t density of five degrees of freedom at zero."""


def _peaks(
    likelihood: Likelihood,
    subsets: Sequence[tuple[int, ...]],
    other: float,
    known: Mapping[tuple[int, ...], tuple[float, FloatArray]],
) -> list[_Peak]:
    """Find the likeliest concentrations of subsets of one size, side by side."""
    if not subsets:
        return []
    chosen = np.array(subsets)  # (B, s)
    starts = [_linear_start(likelihood, chosen)]
    if chosen.shape[1] == 1:
        starts += [np.full((len(chosen), 1), np.log(c)) for c in (0.005, 0.03, 0.12)]
    elif known:
        starts.append(np.array([_grown(one, known) for one in subsets]))
    found = [_climbed(likelihood, chosen, start, other) for start in starts]
    values = np.stack([one[0] for one in found])
    best = values.argmax(axis=0)
    out = []
    for row, number in enumerate(best):
        value, place, covariance = (part[row] for part in found[number])
        laplace = value + 0.5 * np.linalg.slogdet(2.0 * np.pi * covariance)[1] + len(place) * PRIOR_DENSITY
        out.append(_Peak(tuple(chosen[row].tolist()), place, covariance, float(value), float(laplace)))
    return out


def _grown(subset: tuple[int, ...], known: Mapping[tuple[int, ...], tuple[float, FloatArray]]) -> FloatArray:
    """Return the (s,) peak of the likeliest known subset with one dopant less, with 1 at.% of that one."""
    parts = [(known[part], i) for i in range(len(subset)) if (part := subset[:i] + subset[i + 1 :]) in known]
    (_, place), i = max(parts, key=lambda one: one[0][0])
    return np.insert(place, i, np.log(0.01))


def _linear_start(likelihood: Likelihood, chosen: NDArray[np.int64]) -> FloatArray:
    """Return (B, s) logarithms of the concentrations that fit best as if spectra were linear in them."""
    k = len(likelihood.emulator.dopants)
    middle = np.zeros((1, k))
    middle[:, : likelihood.listed] = 0.05 / likelihood.listed
    factor = np.linalg.cholesky(likelihood.covariance(middle)[0])
    response = np.linalg.solve(factor, likelihood.jacobian(middle)[0].T)  # (D, K)
    measured = np.linalg.solve(factor, likelihood.measured)
    found = np.array([nnls(response[:, list(subset)], measured)[0] for subset in chosen.tolist()])
    return np.asarray(np.log(np.clip(found, 1.5 * LOWEST, 0.8 * HIGHEST)))


def _climbed(
    likelihood: Likelihood, chosen: NDArray[np.int64], start: FloatArray, other: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Scoring steps of B subsets, damped; returns (B,) values, (B, s) places and (B, s, s) covariances."""
    k, (count, s) = len(likelihood.emulator.dopants), chosen.shape
    low, high = np.log(LOWEST), np.log(HIGHEST)
    rows = np.arange(count)[:, None]

    def full(x: FloatArray) -> FloatArray:
        c = np.zeros((len(x), k))
        c[rows[: len(x)], chosen] = np.exp(x)
        return c

    def limited(x: FloatArray) -> FloatArray:
        over = np.log(np.maximum(np.exp(x).sum(1) / HIGHEST, 1.0))
        return np.asarray(np.clip(x - over[:, None], low, high))

    # Concentrations are those at which the mean fits best, weighed by the covariance there: that covariance is held
    # while they are moved. If it moved along, an error that is smaller than its model allows would be taken for a
    # smaller concentration (quasi-likelihood; McCullagh, Ann. Stat. 11, 59 (1983)).
    x = limited(start)
    damping = np.full(count, 1e-2)
    for _ in range(STEPS):
        c = full(x)
        factors = likelihood.factors(c, other)
        world = likelihood.log_by_world(c, factors).argmax(axis=0)
        held = factors[world, np.arange(count)]
        white = solved(held, _right(likelihood, c, chosen, rows))
        jacobian, rest = white[..., :-1], white[..., -1]
        information = jacobian.transpose(0, 2, 1) @ jacobian
        gradient = (jacobian * rest[..., None]).sum(1)
        step = np.linalg.solve(information + (damping[:, None, None] + 1e-6) * np.eye(s), gradient[..., None])[..., 0]
        trial = limited(x + np.clip(step, -1.0, 1.0))
        there = (solved(held, (likelihood.measured - likelihood.mean(full(trial)))[..., None]) ** 2).sum((1, 2))
        gain = 0.5 * ((rest**2).sum(-1) - there)
        better = gain > 0.0
        x = np.where(better[:, None], trial, x)
        damping = np.where(better, damping * 0.2, np.maximum(damping * 10.0, 1e-2))
        if np.where(better, gain, 0.0).max() < 1e-3 and bool((better | (damping > 1e3)).all()):
            break
    c = full(x)
    factors = likelihood.factors(c, other)
    logs = likelihood.log_by_world(c, factors)
    held = factors[logs.argmax(axis=0), np.arange(count)]
    white = solved(held, _right(likelihood, c, chosen, rows)[..., :-1])
    information = likelihood.errors.power * (white.transpose(0, 2, 1) @ white)
    covariance = np.linalg.inv(information + 0.25 * np.eye(s))
    return np.asarray(logsumexp(logs, axis=0)), x, np.asarray(covariance, dtype=np.float64)


def _right(likelihood: Likelihood, c: FloatArray, chosen: NDArray[np.int64], rows: NDArray[np.int64]) -> FloatArray:
    """Return (B, D, s + 1): derivatives of the mean by the logarithms of chosen concentrations, and what it leaves."""
    slope = likelihood.jacobian(c)[rows, chosen] * c[rows, chosen][..., None]
    return np.concatenate([slope.transpose(0, 2, 1), (likelihood.measured - likelihood.mean(c))[..., None]], 2)


def _summary(likelihood: Likelihood, found: list[Hypothesis], coverage: float) -> Posterior:
    dopants = likelihood.emulator.dopants
    symbols = [name.partition("@")[0] for name in dopants[: likelihood.listed]]
    elements = tuple(dict.fromkeys(symbols))
    k, j = len(dopants), len(elements)
    logs = np.array([one.log_evidence for one in found])
    share = np.exp(logs - logs.max())
    share /= share.sum()
    probability, mean = np.zeros(j), np.zeros(j)
    values: list[list[FloatArray]] = [[np.zeros(0)] for _ in range(j)]
    weights: list[list[FloatArray]] = [[np.zeros(0)] for _ in range(j)]
    other, unlisted = 0.0, np.zeros(k - likelihood.listed)
    for one, p in zip(found, share, strict=True):
        other += p * one.other
        unlisted[[i - likelihood.listed for i in one.subset if i >= likelihood.listed]] += p
        named = [symbols[i] for i in one.subset if i < likelihood.listed]
        for symbol in dict.fromkeys(named):
            place = elements.index(symbol)
            total = one.concentration[:, [n for n, name in enumerate(named) if name == symbol]].sum(1)
            probability[place] += p
            mean[place] += p * float(one.weight @ total)
            values[place].append(total)
            weights[place].append(p * one.weight)
    low, high, upper = np.zeros(j), np.zeros(j), np.zeros(j)
    for i in range(j):
        v, w = np.concatenate(values[i]), np.concatenate(weights[i])
        low[i], high[i], upper[i] = _quantiles(v, w, [0.5 - coverage / 2, 0.5 + coverage / 2, coverage])
    order = np.argsort(-share)
    first = found[int(order[0])]
    best = np.zeros(k)
    if first.subset:
        best[list(first.subset)] = first.place
    likeliest = []
    for i in order[:10]:
        one = found[int(i)]
        c = np.zeros(k)
        c[list(one.subset)] = one.weight @ one.concentration
        likeliest.append(Likely(float(share[i]), tuple(dopants[n] for n in one.subset), one.other, c))
    explained, p_value = _fit(likelihood, best)
    alone = _ceiling(likelihood)
    ceiling = np.array([max(alone[i] for i, name in enumerate(symbols) if name == symbol) for symbol in elements])
    return Posterior(
        dopants,
        elements,
        np.clip(probability, 0.0, 1.0),
        float(np.clip(other, 0.0, 1.0)),
        mean,
        np.divide(mean, probability, out=np.zeros(j), where=probability > 0),
        low,
        high,
        upper,
        ceiling,
        coverage,
        explained,
        p_value,
        tuple(likeliest),
        best,
        unlisted,
        _drawn(found, share, [elements.index(symbol) for symbol in symbols], j),
    )


def _drawn(found: Sequence[Hypothesis], share: FloatArray, element: Sequence[int], elements: int) -> FloatArray:
    """Draw concentrations of elements: hypotheses by their share, and of each its samples by their weight.

    Args:
        found: Hypotheses.
        share: Their probabilities, sum 1.
        element: (K,) position of each candidate's element.
        elements: Their number, J.
    """
    rng = np.random.default_rng(0)
    out, end = np.zeros((DRAWN, elements)), 0
    for one, count in zip(found, rng.multinomial(DRAWN, share), strict=True):
        start, end = end, end + int(count)
        if not count:
            continue
        chosen = one.concentration[rng.choice(len(one.weight), count, p=one.weight)]
        for column, candidate in enumerate(one.subset):
            if candidate < len(element):
                out[start:end, element[candidate]] += chosen[:, column]
    return out


def _quantiles(values: FloatArray, weights: FloatArray, at: Sequence[float]) -> FloatArray:
    if not len(values):
        return np.zeros(len(at))
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    if not total[-1] > 0:
        return np.zeros(len(at))
    return np.asarray(np.interp(np.array(at) * total[-1], total, values[order]))


def _ceiling(likelihood: Likelihood) -> FloatArray:
    """Return the (K,) concentrations at which each candidate alone changes the spectrum as much as it is changed."""
    amplitude = likelihood.amplitude
    smallest = amplitude.mean * np.exp(-2.0 * np.hypot(amplitude.own, amplitude.common))
    found = np.linalg.norm(likelihood.change) / np.maximum(smallest * likelihood.emulator.norms, 1e-12)
    return np.asarray(np.minimum(found, 1.0))


def _fit(likelihood: Likelihood, best: FloatArray) -> tuple[float, float]:
    """Return the share of the change that concentrations explain beyond noise, and the p-value of what they leave."""
    change, errors = likelihood.change, likelihood.errors
    noise = errors.noise
    predicted = likelihood.predicted(best)
    size = float((change**2).sum() - np.trace(noise))
    left = max(0.0, float(((change - predicted) ** 2).sum() - np.trace(noise)))
    explained = 1.0 - min(1.0, left / size) if size > 0 else 1.0
    # In all bins: scatter and discrepancy reach beyond the directions in which hypotheses differ.
    covariance = noise + errors.nuisance.T @ errors.nuisance + likelihood.spread(best)
    covariance = covariance + likelihood.amplitude.own**2 * np.outer(predicted, predicted)
    white = np.linalg.solve(np.linalg.cholesky(covariance), change - predicted)
    return explained, float(chdtrc(len(noise), (white**2).sum()))
