"""Which dopants, at what concentrations: the posterior over subsets of candidates, by enumeration and sampling.

In M bins y = mean(c) + e, and e is Gaussian: counting noise; the scatter of where dopants sit; what superposition
cannot know; the potential's error (discrepancy), which is each dopant's own and grows with its concentration; and
perhaps something else, a response of no candidate. Evidence of a subset is its likelihood averaged over concentrations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import chdtrc, logsumexp

from defectnet.inference.emulator import HIGHEST, LOWEST, Emulator

FloatArray = NDArray[np.float64]

NUMBER_PRIOR: Final = (0.3, 0.35, 0.2, 0.09, 0.04, 0.013, 0.007)
"""Prior probability of 0, 1, 2, ... dopants among the candidates."""

SMALL_CELLS: Final = 0.02
"""Share of the change that cells of some 64 atoms get wrong: they sample few wave vectors, and dopants have
their own images for neighbours."""

BENT: Final = 0.05
"""Share of a taught dopant's error that is not in proportion to its concentration, and so cannot be taught."""

OTHER_PRIOR: Final = 0.1
"""Prior probability that something is in the sample that is no candidate."""

OTHER_AMOUNTS: Final = np.array([0.005, 0.01, 0.02, 0.04, 0.08, 0.16])
"""Concentrations of something else over which its evidence is averaged."""

DIMENSIONS: Final = 48
"""Most directions in the space of spectra in which hypotheses differ."""

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

PRIOR_DENSITY: Final = -float(np.log(np.log(HIGHEST / LOWEST)))
"""Logarithm of the prior density of the logarithm of a concentration: uniform."""

KEPT: Final = 24
"""Subsets of one size that are grown."""


@dataclass(frozen=True)
class SeenStandard:
    """A sample of known content in M bins.

    Attributes:
        concentration: (K,) of each candidate.
        change: (M,) measured doped less host. noise: (M, M) covariance of its counting noise.
    """

    concentration: FloatArray
    change: FloatArray
    noise: FloatArray


@dataclass(frozen=True)
class Amplitude:
    """By what factors the responses of a host's dopants are larger or smaller than a potential's.

    Attributes:
        mean: Expected factor. own: Deviation from it of each dopant alone. common: Of all dopants of a host together.
    """

    mean: float
    own: float
    common: float


@dataclass(frozen=True)
class Errors:
    """Gaussian errors of a measured change in M bins.

    Attributes:
        noise: (M, M) covariance of counting noise, of both spectra.
        nuisance: (R, M) changes of unit prior deviation that are no dopant's: energy scale, background, resolution.
        sample_atoms: Atoms of the sample: infinite for a measured one, those of the cell for a simulated one.
        discrepancy: Shares of each response, as its squared norm, that the potential may get wrong, and the probability
            of each share; most responses are nearly right, some are quite wrong. Empty in the potential's own world.
        amplitude: By what factors true responses are larger or smaller than the potential's; None in its own world.
        shape: (M, M) correlation of that error, of unit trace.
        other: (M, M) covariance of the response of an unknown dopant per squared concentration.
        standards: Samples of known content, measured on the same instrument.
        power: To which the likelihood is raised: below 1 where the model of the errors is itself uncertain.
    """

    noise: FloatArray
    nuisance: FloatArray
    sample_atoms: float
    discrepancy: tuple[tuple[float, float], ...]
    amplitude: Amplitude | None
    shape: FloatArray
    other: FloatArray
    standards: tuple[SeenStandard, ...] = ()
    power: float = 1.0


@dataclass(frozen=True)
class Hypothesis:
    """A subset of the candidates, with or without something else.

    Attributes:
        subset: Positions of the candidates. other: Whether something else is there.
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
class DiscrepancyPosterior:
    """What standards say of the potential's error, if it gets one share of each response wrong.

    T dopants are in the standards; D directions.

    Attributes:
        share: That share. log_evidence: Of the standards, prior of the share included.
        error: (T, D) expected error of each response, per concentration. amplitude: Expected error of the amplitude.
        covariance: (T T, D D) what is still unknown of `error`. with_amplitude: (T, D) covariance with the amplitude.
        amplitude_variance: Of the amplitude.
    """

    share: float
    log_evidence: float
    error: FloatArray
    amplitude: float
    covariance: FloatArray
    with_amplitude: FloatArray
    amplitude_variance: float

    def corrected(self, mean: FloatArray, taught: FloatArray) -> FloatArray:
        """Return the (..., D) mean change that is computed as `mean`, at (..., T) concentrations of taught dopants."""
        return np.asarray(mean * (1.0 + self.amplitude) + taught @ self.error)


class Likelihood:
    """Log likelihood of concentrations, projected on the directions in which spectra of the host differ.

    Args:
        emulator: Of K dopants, M bins.
        errors: See `Errors`.
        change: (M,) measured doped less host.
    """

    def __init__(self, emulator: Emulator, errors: Errors, change: FloatArray) -> None:
        self.emulator, self.errors, self.change = emulator, errors, change
        self.root = np.linalg.inv(np.linalg.cholesky(errors.noise))
        typical = 0.05 * emulator.responses
        signal = [self.root @ errors.nuisance.T]
        signal += [self.root @ part.T for part in (typical, 0.2 * emulator.responses)]
        scatter = 0.1 * emulator.scatter.mean(0)
        second = self.root @ (scatter + 0.02**2 * errors.other) @ self.root.T
        total = sum(part @ part.T for part in signal) + second
        values, vectors = np.linalg.eigh(total)
        count = int(min(DIMENSIONS, (values > 1e-7 * values[-1]).sum()))
        self.onto = vectors[:, -count:].T @ self.root  # (D, M)
        self.measured = self.onto @ change
        project = self.onto
        nuisance = project @ errors.nuisance.T
        self.scatter = np.stack([project @ part @ project.T for part in emulator.scatter])
        self.shape = project @ errors.shape @ project.T
        self.fixed = np.eye(count) + nuisance @ nuisance.T
        self.unknown = project @ errors.other @ project.T
        self.amplitude = errors.amplitude or Amplitude(1.0, 0.0, 0.0)
        self.coefficients = self.amplitude.mean * (emulator.coefficients @ project.T) / emulator.scale[:, None]
        self.norm2 = emulator.norms**2
        k = len(emulator.dopants)
        linear, square, cube, pair = np.split(self.coefficients, [k, 2 * k, 3 * k])
        first, second = np.triu_indices(k, 1)
        both = np.zeros((k, k, count))
        both[first, second] = both[second, first] = pair
        self._slopes = linear, 2.0 * square, 3.0 * cube, both.reshape(k, k * count)
        # Cells of one kind sample the crystal's wave vectors alike: that does not average out over all of them.
        self.cells = emulator.atoms / errors.sample_atoms + 1.0 / emulator.sources
        self.typical = sum(share * weight for share, weight in errors.discrepancy)
        taught = [k for k in range(k) if any(one.concentration[k] > 0 for one in errors.standards)]
        self.taught = np.array(taught, dtype=np.int64)
        self.learnt: list[DiscrepancyPosterior] = []
        if len(self.taught):
            self.learnt = [self._learn(share, probability) for share, probability in errors.discrepancy]

    def _learn(self, share: float, probability: float) -> DiscrepancyPosterior:
        """Return what standards teach of the potential's error, if it is of one share.

        The unknowns are the error of the response of each taught dopant, (D,) each, and the amplitude; a standard of
        known content shows their sum, weighted by its concentrations, and errors of its own. All of it is Gaussian.
        """
        taught, d = self.taught, len(self.fixed)
        size = len(taught) * d + 1
        responses = self.amplitude.mean * (self.emulator.responses @ self.onto.T)
        prior = np.zeros((size, size))
        for place, k in enumerate(taught):
            block = slice(place * d, (place + 1) * d)
            own = self.amplitude.own**2 * np.outer(responses[k], responses[k])
            prior[block, block] = share * self.norm2[k] * self.shape + own
        prior[-1, -1] = self.amplitude.common**2
        found, covariance, log = np.zeros(size), prior, np.log(probability)
        for one in self.errors.standards:
            c = one.concentration[None]
            mean = self._computed(c)[0]
            seen = np.concatenate([*(x * np.eye(d) for x in one.concentration[taught]), mean[:, None]], axis=1)
            error = self.onto @ one.noise @ self.onto.T + self.fixed - np.eye(d)
            error = error + np.tensordot(self.weights(c)[0], self.scatter, axes=1)
            # What is not taught of a standard's dopants, and what of the response does not grow with concentration.
            error = error + (self._superposed(c)[0] + BENT * self._shifted(c, share)[0]) * self.shape
            gain = covariance @ seen.T
            total = seen @ gain + error
            rest = self.onto @ one.change - mean - seen @ found
            solved = np.linalg.solve(total, np.concatenate([rest[:, None], gain.T], axis=1))
            log += -0.5 * float(rest @ solved[:, 0]) - 0.5 * float(np.linalg.slogdet(total)[1])
            found = found + gain @ solved[:, 0]
            covariance = covariance - gain @ solved[:, 1:]
        k = len(taught)
        blocks = covariance[:-1, :-1].reshape(k, d, k, d).transpose(0, 2, 1, 3)
        return DiscrepancyPosterior(
            share,
            float(log),
            found[:-1].reshape(k, d),
            float(found[-1]),
            blocks.reshape(k * k, d * d),
            covariance[:-1, -1].reshape(k, d),
            float(covariance[-1, -1]),
        )

    @cached_property
    def _likeliest(self) -> DiscrepancyPosterior | None:
        return max(self.learnt, key=lambda one: one.log_evidence, default=None)

    def _computed(self, c: FloatArray) -> FloatArray:
        return np.asarray(self.emulator.features(c) @ self.coefficients)

    def mean(self, concentration: FloatArray) -> FloatArray:
        """Return the (..., D) projected mean change at (..., K) concentrations, with what standards have taught."""
        mean, learnt = self._computed(concentration), self._likeliest
        return mean if learnt is None else learnt.corrected(mean, concentration[..., self.taught])

    def jacobian(self, concentration: FloatArray) -> FloatArray:
        """Return the (S, K, D) derivatives of `mean` by each concentration."""
        c = concentration
        linear, square, cube, both = self._slopes
        out = linear + c[..., None] * (square + c[..., None] * cube)
        out = out + (c @ both).reshape(out.shape)
        learnt = self._likeliest
        if learnt is not None:
            out = out * (1.0 + learnt.amplitude)
            out[:, self.taught] += learnt.error
        return np.asarray(out)

    def covariance(self, concentration: FloatArray, other: float = 0.0, share: float | None = None) -> FloatArray:
        """Return the (S, D, D) covariance at (S, K) concentrations and an amount of something else."""
        c = concentration
        learnt = self._likeliest
        if learnt is not None:
            return self._taught(learnt, c, self._computed(c), other)
        return np.asarray(self._covariance(c, other) + self.amount(c, share)[:, None, None] * self.shape)

    def _covariance(self, c: FloatArray, other: float) -> FloatArray:
        """Return the covariance without what superposition and the potential get wrong of the shape."""
        count = len(self.fixed)
        out = self.fixed + other**2 * self.unknown
        out = out + (self.weights(c) @ self.scatter.reshape(-1, count**2)).reshape(-1, count, count)
        return np.asarray(out)

    @cached_property
    def factor_deviation(self) -> tuple[FloatArray, float]:
        """(K,) deviation of the logarithm of each dopant's own factor of amplitude, and that of the common one.

        A factor of the response cannot be told from one of the concentration. It is no part of the covariance but
        multiplies what is drawn, so that it stays a factor. What standards have taught is in the covariance.
        """
        own = np.full(len(self.emulator.dopants), self.amplitude.own)
        own[self.taught] = 0.0
        return own, 0.0 if len(self.taught) else self.amplitude.common

    def weights(self, concentration: FloatArray) -> FloatArray:
        """Return the (S, K) weights of the dopants' scatter: that of the sample, and the error of the mean."""
        c = concentration
        total = np.maximum(c.sum(-1, keepdims=True), 1e-12)
        return np.asarray(self.cells * c + self.emulator.leverage(c)[:, None] * c / total)

    def spread(self, concentration: FloatArray) -> FloatArray:
        """Return the (M, M) covariance of scatter, superposition and discrepancy at (K,) concentrations."""
        c = concentration[None]
        scatter = np.tensordot(self.weights(c)[0], self.emulator.scatter, axes=1)
        return np.asarray(scatter + self.amount(c)[0] * self.errors.shape)

    def amount(self, concentration: FloatArray, share: float | None = None) -> FloatArray:
        """Return the (S,) trace of what superposition and the potential get wrong, at (S, K) concentrations."""
        return self._superposed(concentration) + self._shifted(concentration, share)

    def _superposed(self, c: FloatArray) -> FloatArray:
        return np.asarray((self.emulator.misfit(c) + SMALL_CELLS) * self.emulator.squared(c))

    def _shifted(self, c: FloatArray, share: float | None) -> FloatArray:
        return np.asarray((self.typical if share is None else share) * (c**2 @ self.norm2))

    @cached_property
    def _log_weights(self) -> FloatArray:
        """(W,) log weights of the sizes that the potential's error may have; what standards say is in them."""
        if self.learnt:
            logs = np.array([one.log_evidence for one in self.learnt])
            return np.asarray(logs - logsumexp(logs))
        return np.log([p for _, p in self.errors.discrepancy or ((0.0, 1.0),)])

    def _means(self, c: FloatArray) -> FloatArray:
        """Return the (W or 1, S, D) mean changes at (S, K) concentrations in each of W worlds."""
        mean = self._computed(c)
        if not self.learnt:
            return mean[None]
        return np.stack([one.corrected(mean, c[:, self.taught]) for one in self.learnt])

    def _covariances(self, c: FloatArray, other: float) -> FloatArray:
        """Return the (W, S, D, D) covariances at (S, K) concentrations in each of W worlds."""
        if self.learnt:
            mean = self._computed(c)
            return np.stack([self._taught(one, c, mean, other) for one in self.learnt])
        common, superposed = self._covariance(c, other), self._superposed(c)
        shares = [share for share, _ in self.errors.discrepancy or ((0.0, 1.0),)]
        amounts = np.stack([superposed + self._shifted(c, share) for share in shares])
        return np.asarray(common + amounts[:, :, None, None] * self.shape)

    def factors(self, concentration: FloatArray, other: float = 0.0) -> FloatArray:
        """Return the (W, S, D, D) roots of the covariances at (S, K) concentrations, lower triangles.

        W are the sizes that the potential's error may have.
        """
        return np.asarray(np.linalg.cholesky(self._covariances(concentration, other)), dtype=np.float64)

    def log_by_world(self, concentration: FloatArray, factors: FloatArray) -> FloatArray:
        """Return the (W, S) log likelihoods at (S, K) concentrations, with (W, S or 1, D, D) `factors`."""
        rest = self.measured - self._means(concentration)
        if factors.shape[1] == 1:  # one root for all concentrations: they are columns
            white = _solved(factors[:, 0], rest.transpose(0, 2, 1)).transpose(0, 2, 1)
        else:
            white = _solved(factors, rest[..., None])[..., 0]
        size = np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(-1)
        return np.asarray(self._log_weights[:, None] - self.errors.power * (0.5 * (white**2).sum(-1) + size))

    def log(self, concentration: FloatArray, other: float = 0.0) -> FloatArray:
        """Return the (S,) log likelihood at (S, K) concentrations, averaged over shares of discrepancy."""
        logs = self.log_by_world(concentration, self.factors(concentration, other))
        return np.asarray(logsumexp(logs, axis=0))

    def _taught(self, learnt: DiscrepancyPosterior, c: FloatArray, mean: FloatArray, other: float) -> FloatArray:
        """Return the (S, D, D) covariance at (S, K) concentrations where standards have taught something."""
        d, own = len(self.fixed), c[:, self.taught]
        out = self._covariance(c, other)
        rest = c.copy()
        rest[:, self.taught] = 0.0
        amount = self._superposed(c) + self._shifted(rest, learnt.share) + BENT * self._shifted(c - rest, learnt.share)
        out += amount[:, None, None] * self.shape
        pairs = (own[:, :, None] * own[:, None, :]).reshape(len(c), -1)
        out += (pairs @ learnt.covariance).reshape(-1, d, d)
        cross = own @ learnt.with_amplitude
        both = cross[:, :, None] * mean[:, None, :]
        out += both + both.transpose(0, 2, 1)
        out += learnt.amplitude_variance * mean[:, :, None] * mean[:, None, :]
        return out

    def predicted(self, concentration: FloatArray) -> FloatArray:
        """Return the (M,) change that (K,) concentrations make, with what standards have taught."""
        c = concentration[None]
        computed = self.amplitude.mean * self.emulator.mean(c)[0]
        if not self.learnt:
            return np.asarray(computed)
        # Back from the directions in which hypotheses differ.
        return np.asarray(computed + np.linalg.pinv(self.onto) @ (self.mean(c) - self._computed(c))[0])


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
        dopants: Names of the candidates, such as ``Al@Ga``.
        elements: J elements among them: sites of one element are taken together.
        probability: (J,) that each is in the sample.
        other: Probability that something else is.
        mean: (J,) expected concentration, 0 where it is absent. if_present: (J,) given that it is there.
        low, high: (J,) ends of the interval given that it is there, of `coverage`.
        upper: (J,) concentration below which it is with probability `coverage`, absent or not.
        ceiling: (J,) concentration from which on it alone would change the spectrum by more than it is changed, even if
            its response were smaller than computed by two deviations of the amplitude.
        explained: Share of the change that the best explanation accounts for, beyond noise.
        p_value: Probability of a misfit as large as this under the best explanation.
        likeliest: The likeliest explanations, at most ten.
        best: (K,) concentrations of the likeliest.
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
    samples: FloatArray


def infer(likelihood: Likelihood, *, coverage: float = 0.9, seed: int = 0) -> Posterior:
    """Compute the posterior.

    Args:
        likelihood: Of one measured change.
        coverage: Of the intervals.
        seed: Of the samples.
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
    return _summary(likelihood, found, coverage)


def likely_places(likelihood: Likelihood) -> list[tuple[float, FloatArray]]:
    """Return where concentrations are likeliest, roughly: of at most `EXHAUSTIVE` dopants, by Laplace's method.

    Returns:
        Probability and (K,) concentrations of each subset that has more than one in fifty.
    """
    k = len(likelihood.emulator.dopants)
    logs, places = [float(likelihood.log(np.zeros((1, k)))[0]) + _log_prior(0, k, False)], [np.zeros(k)]
    for size, peaks in _peaks_by_size(likelihood, EXHAUSTIVE):
        for one in peaks:
            c = np.zeros(k)
            c[list(one.subset)] = np.exp(one.place)
            logs.append(one.laplace + _log_prior(size, k, False))
            places.append(c)
    share = np.exp(np.array(logs) - logsumexp(logs))
    return [(float(p), c) for p, c in zip(share, places, strict=True) if p > 0.02 and c.any()]


def _peaks_by_size(likelihood: Likelihood, most: int = len(NUMBER_PRIOR) - 1) -> Iterator[tuple[int, list[_Peak]]]:
    """Yield the peaks of the subsets of 1, 2, ... dopants: all subsets, and from some size on those that grow."""
    k = len(likelihood.emulator.dopants)
    subsets: list[tuple[int, ...]] = [(i,) for i in range(k)]
    known: dict[tuple[int, ...], tuple[float, FloatArray]] = {}
    for size in range(1, min(k, most) + 1):
        peaks = _peaks(likelihood, subsets, 0.0, known)
        known = {one.subset: (one.value, one.place) for one in peaks}
        yield size, peaks
        if size < EXHAUSTIVE and k <= FEW:
            subsets = list(combinations(range(k), size + 1))
        else:
            best = [one.subset for one in sorted(peaks, key=lambda one: -one.value)[:KEPT]]
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
    return Hypothesis(
        (), other, float(_log_mean(np.array(logs))) + _log_prior(0, k, other), np.zeros((1, 0)), np.ones(1), np.zeros(0)
    )


def _log_mean(values: FloatArray) -> FloatArray:
    """Return the logarithm of the mean over the first axis of what `values` are logarithms of."""
    return np.asarray(logsumexp(values, axis=0) - np.log(len(values)))


def _log_prior(size: int, candidates: int, other: bool) -> float:
    """Return the log prior of a subset: of its size, over all subsets of that size."""
    number = NUMBER_PRIOR[size] / comb(candidates, size)
    return float(np.log(number) + np.log(OTHER_PRIOR if other else 1.0 - OTHER_PRIOR))


def _evaluated(likelihood: Likelihood, peak: _Peak, other: bool, rng: np.random.Generator) -> Hypothesis:
    """Return a subset's evidence and samples: importance sampling around the best, in logarithms of concentrations."""
    subset, s, k = peak.subset, len(peak.subset), len(likelihood.emulator.dopants)
    values, vectors = np.linalg.eigh(peak.covariance)
    spread = vectors * np.sqrt(np.clip(values, 1e-5, 2.0))
    standard = rng.standard_t(5, (SAMPLES, s))
    draws = peak.place + standard @ spread.T
    proposal = (-3.0 * np.log1p(standard**2 / 5.0)).sum(1) + s * T5 - np.log(abs(np.linalg.det(spread)))
    c = np.zeros((SAMPLES, k))
    c[:, list(subset)] = np.exp(draws)
    inside = (draws > np.log(LOWEST)).all(1) & (np.exp(draws).sum(1) < 1.2 * HIGHEST)
    logs = np.full(SAMPLES, -np.inf)
    if inside.any():
        amounts = OTHER_AMOUNTS[::2] if other else np.zeros(1)
        place = np.zeros((1, k))
        place[0, list(subset)] = np.exp(peak.place)
        held = [likelihood.factors(place, float(a)) for a in amounts]
        logs[inside] = _log_mean(np.stack([logsumexp(likelihood.log_by_world(c[inside], one), axis=0) for one in held]))
    logs = logs + s * PRIOR_DENSITY - proposal
    top = logs.max()
    if not np.isfinite(top):
        return Hypothesis(subset, other, -1e300, np.exp(draws[:1]), np.ones(1), np.exp(draws[0]))
    share = np.exp(logs - top)
    # One draw in the tails of the proposal is no evidence: truncated (Ionides, J. Comput. Graph. Stat. 17, 2008).
    share = np.minimum(share, share.mean() * np.sqrt(SAMPLES))
    evidence = top + np.log(share.mean()) + _log_prior(s, k, other)
    weight = share / share.sum()
    own, common = likelihood.factor_deviation
    factor = own[list(subset)] * rng.standard_normal((SAMPLES, s)) + common * rng.standard_normal((SAMPLES, 1))
    return Hypothesis(subset, other, float(evidence), np.exp(draws + factor), weight, weight @ np.exp(draws))


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
    middle = np.full((1, k), 0.05 / k)
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
        white = _solved(held, _right(likelihood, c, chosen, rows))
        jacobian, rest = white[..., :-1], white[..., -1]
        information = jacobian.transpose(0, 2, 1) @ jacobian
        gradient = (jacobian * rest[..., None]).sum(1)
        step = np.linalg.solve(information + (damping[:, None, None] + 1e-6) * np.eye(s), gradient[..., None])[..., 0]
        trial = limited(x + np.clip(step, -1.0, 1.0))
        there = (_solved(held, (likelihood.measured - likelihood.mean(full(trial)))[..., None]) ** 2).sum((1, 2))
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
    white = _solved(held, _right(likelihood, c, chosen, rows)[..., :-1])
    information = likelihood.errors.power * (white.transpose(0, 2, 1) @ white)
    covariance = np.linalg.inv(information + 0.25 * np.eye(s))
    return np.asarray(logsumexp(logs, axis=0)), x, np.asarray(covariance, dtype=np.float64)


def _solved(root: FloatArray, right: FloatArray) -> FloatArray:
    """Return what (..., D, D) lower triangles make (..., D, N) right sides of."""
    # NumPy has no triangular solver for many matrices at once.
    sides = np.array(np.broadcast_to(right, (*root.shape[:-2], *right.shape[-2:])))
    return np.asarray(
        torch.linalg.solve_triangular(torch.from_numpy(root), torch.from_numpy(sides), upper=False).numpy()
    )


def _right(likelihood: Likelihood, c: FloatArray, chosen: NDArray[np.int64], rows: NDArray[np.int64]) -> FloatArray:
    """Return (B, D, s + 1): derivatives of the mean by the logarithms of chosen concentrations, and what it leaves."""
    slope = likelihood.jacobian(c)[rows, chosen] * c[rows, chosen][..., None]
    return np.concatenate([slope.transpose(0, 2, 1), (likelihood.measured - likelihood.mean(c))[..., None]], 2)


def _summary(likelihood: Likelihood, found: list[Hypothesis], coverage: float) -> Posterior:
    dopants = likelihood.emulator.dopants
    symbols = [name.partition("@")[0] for name in dopants]
    elements = tuple(dict.fromkeys(symbols))
    k, j = len(dopants), len(elements)
    logs = np.array([one.log_evidence for one in found])
    share = np.exp(logs - logs.max())
    share /= share.sum()
    probability, mean = np.zeros(j), np.zeros(j)
    values: list[list[FloatArray]] = [[np.zeros(0)] for _ in range(j)]
    weights: list[list[FloatArray]] = [[np.zeros(0)] for _ in range(j)]
    other = 0.0
    for one, p in zip(found, share, strict=True):
        other += p * one.other
        named = [symbols[i] for i in one.subset]
        for symbol in dict.fromkeys(named):
            place = elements.index(symbol)
            total = one.concentration[:, [name == symbol for name in named]].sum(1)
            probability[place] += p
            mean[place] += p * float(one.weight @ total)
            values[place].append(total)
            weights[place].append(p * one.weight)
    low, high, upper = np.zeros(j), np.zeros(j), np.zeros(j)
    for i in range(j):
        v, w = np.concatenate(values[i]), np.concatenate(weights[i])
        low[i], high[i] = _quantiles(v, w, [0.5 - coverage / 2, 0.5 + coverage / 2])
        absent = max(0.0, 1.0 - float(w.sum()))
        upper[i] = _quantiles(np.append(v, 0.0), np.append(w, absent), [coverage])[0]
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
    ceiling = np.array([alone[[name == symbol for name in symbols]].max() for symbol in elements])
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
