"""The likelihood of concentrations, given a measured change, and what standards teach of a potential's error.

In M bins y = mean(c) + e, and e is Gaussian: counting noise; the scatter of where dopants sit; what superposition
cannot know; the potential's error (discrepancy), which is each dopant's own and grows with its concentration; and
perhaps something else, a response of no candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from defectnet.inference.emulator import BLURRED_AT, Emulator

FloatArray = NDArray[np.float64]

SMALL_CELLS: Final = 0.003
"""Share of the change that cells of some 64 atoms get wrong, in which dopants have their own images for neighbours."""

MISFITS: Final = ((0.2, 0.3), (1.0, 0.35), (5.0, 0.25), (25.0, 0.1))
"""Factors by which superposition misses more, or less, than is expected of it, and their probabilities: what is
expected is right to a factor of five. With one factor 66 full simulations of eleven training and validation crystals
were less likely by 3 nats each, and those of a twelfth with soft modes by hundreds. What is missed may point along the
response: it is an error of the amplitude, too (with it 0.87 of the 90 % intervals held the truth, without 0.73)."""

CURVED, CURVED_AT = 0.35, 0.1
"""Squared norm, over that of the error in proportion to the concentration, of the error in proportion to its square, at
a total concentration: the median of 49 dopants of 12 training crystals, defectnet-nep against Nequix."""

UNTAUGHT: Final = 0.01
"""Share of a taught dopant's error that is neither, and so cannot be taught."""

SHARES: Final = ((16.0, 0.02), (64.0, 0.01))
"""Shares and probabilities that standards may tell of beyond those of `Errors.discrepancy`: responses that are several
times as large as computed. Without standards nothing could be said with them."""

TELLING: Final = 24
"""Most standards by which the shares of the dopants are told; all of them teach the errors."""

SAMPLED_AT: Final = 0.05
"""Concentration at which what cells sample alike is in proportion to it, once it is learnt."""

DIMENSIONS: Final = 48
"""Most directions in the space of spectra in which hypotheses differ."""


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
        unlisted: How many of the emulator's dopants, the last ones, are no candidates, but what something else may be.
        power: To which the likelihood is raised: below 1 where the model of the errors is itself uncertain.
        asked: Number of candidates among which those of the emulator were chosen; 0 for all of them.
        deviation: (M,) what the host shows that the computed crystal does not, as its cell samples few wave vectors;
            None for nothing.
    """

    noise: FloatArray
    nuisance: FloatArray
    sample_atoms: float
    discrepancy: tuple[tuple[float, float], ...]
    amplitude: Amplitude | None
    shape: FloatArray
    other: FloatArray
    standards: tuple[SeenStandard, ...] = ()
    unlisted: int = 0
    power: float = 1.0
    asked: int = 0
    deviation: FloatArray | None = None


class ErrorSize(NamedTuple):
    """How large the errors of a host's computed responses may be.

    Attributes:
        share: Of each response, as its squared norm, that the potential gets wrong.
        missed: Factor by which superposition misses more than is expected of it.
        probability: Of this size.
    """

    share: float
    missed: float
    probability: float


@dataclass(frozen=True)
class DiscrepancyPosterior:
    """What standards say of the potential's error in D directions.

    T dopants are in the standards. Each has two errors: one grows with its concentration, one with that times the
    total concentration.

    Attributes:
        share: (T,) of each response, as its squared norm, that is wrong: expected.
        error: (2 T, D) expected errors. amplitude: Expected error of the amplitude.
        covariance: (2 T, 2 T, D, D) what is still unknown of `error`. with_amplitude: (2 T, D) covariance with the
            amplitude. amplitude_variance: Of the amplitude.
    """

    share: FloatArray
    error: FloatArray
    amplitude: float
    covariance: FloatArray
    with_amplitude: FloatArray
    amplitude_variance: float

    def corrected(self, mean: FloatArray, growth: FloatArray) -> FloatArray:
        """Return the (..., D) mean change that is computed as `mean`, at (..., 2 T) of what errors grow with."""
        return np.asarray(mean * (1.0 + self.amplitude) + growth @ self.error)


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
        self.listed = k - errors.unlisted
        linear, square, cube, pair = np.split(self.coefficients, [k, 2 * k, 3 * k])
        first, second = emulator.pairs
        both = np.zeros((k, k, count))
        both[first, second] = both[second, first] = pair
        self._slopes = linear, 2.0 * square, 3.0 * cube, both.reshape(k, k * count)
        self.blurred, self.shifted = np.zeros((2, k, count))
        if errors.deviation is not None:
            terms = emulator.kept[:, :, None] * (emulator.deviation_terms(errors.deviation) @ project.T)[:, None]
            self.blurred, self.shifted = terms[0] + terms[2], terms[1]
        self.typical = sum(share * weight for share, weight in errors.discrepancy)
        taught = [k for k in range(k) if any(one.concentration[k] > 0 for one in errors.standards)]
        self.taught = np.array(taught, dtype=np.int64)
        self.by_pack = np.ones(k)
        self.by_pack[self.taught] = 0.0
        # Cells of one kind sample the crystal's wave vectors alike: that does not average out over all of them. Of
        # what standards have taught it is part of what was learnt.
        self.cells = emulator.atoms / errors.sample_atoms + self.by_pack / emulator.sources
        self.sizes = [ErrorSize(share, 1.0, p) for share, p in errors.discrepancy]
        if not errors.discrepancy:
            self.sizes = [ErrorSize(0.0, missed, p) for missed, p in MISFITS]
        elif len(taught) == k:  # standards have taught all there is
            self.sizes = [ErrorSize(0.0, 1.0, 1.0)]
        self.usual = ErrorSize(self.typical, 1.0, 1.0)
        self.learnt = self._learn() if taught else None

    def _learn(self) -> DiscrepancyPosterior:
        """Return what standards teach of the potential's error.

        The unknowns are the errors of the response of each taught dopant, (D,) each, and the amplitude; a standard of
        known content shows their sum, weighted by `_growth`, and errors of its own. All of it is Gaussian but for how
        much of each response is wrong, its share: one after the other, those are averaged over.
        """
        d, t, standards = len(self.fixed), len(self.taught), self.errors.standards
        c = np.stack([one.concentration for one in standards])
        mean, growth = self._computed(c), self._growth(c)
        rest = (np.stack([self.onto @ one.change for one in standards]) - mean).ravel()
        responses = self.amplitude.mean * (self.emulator.responses[self.taught] @ self.onto.T)
        own = self.amplitude.own**2 * responses[:, :, None] * responses[:, None, :]
        own = own + self.scatter[self.taught] / (self.emulator.sources * SAMPLED_AT)
        shape = self.norm2[self.taught, None, None] * self.shape
        covered = self.amplitude.common**2 * np.outer(mean, mean)
        alone = self._superposed(c)[:, None, None] * self.shape
        for n, one in enumerate(standards):
            block = slice(n * d, (n + 1) * d)
            found = self.onto @ one.noise @ self.onto.T + self.fixed - np.eye(d) + alone[n]
            covered[block, block] += found + np.tensordot(self.weights(c[n : n + 1])[0], self.scatter, axes=1)
        first, curved = growth[:, :t].T, growth[:, t:].T
        together = first[:, :, None] * first[:, None] + CURVED * curved[:, :, None] * curved[:, None]  # (T, N, N)
        for k in range(t):
            covered += np.kron(together[k], own[k])
        together += UNTAUGHT * first[:, :, None] ** 2 * np.eye(len(c))
        told = slice(0, TELLING * d)
        parts = [np.kron(together[k, :TELLING, :TELLING], shape[k]) for k in range(t)]
        share = self._told_shares(rest[told], covered[told, told], parts) + SMALL_CELLS
        for k in range(t):
            covered += np.kron(together[k], share[k] * shape[k])
        errors = own + share[:, None, None] * shape
        errors = np.concatenate([errors, CURVED * errors])
        cross = np.concatenate([np.kron(growth[:, k], errors[k]) for k in range(2 * t)])
        cross = np.concatenate([cross, self.amplitude.common**2 * mean.reshape(1, -1)])
        solved = np.linalg.solve(covered, np.concatenate([rest[:, None], cross.T], axis=1))
        found, known = cross @ solved[:, 0], cross @ solved[:, 1:]
        blocks = -known[:-1, :-1].reshape(2 * t, d, 2 * t, d).transpose(0, 2, 1, 3)
        blocks[np.arange(2 * t), np.arange(2 * t)] += errors
        return DiscrepancyPosterior(
            share,
            found[:-1].reshape(2 * t, d),
            float(found[-1]),
            blocks,
            -known[:-1, -1].reshape(2 * t, d),
            float(self.amplitude.common**2 - known[-1, -1]),
        )

    def _told_shares(self, rest: FloatArray, covered: FloatArray, parts: Sequence[FloatArray]) -> FloatArray:
        """Return the (T,) expected shares: of each dopant given the others', starting from what is expected of all.

        Args:
            rest: (N D,) what the computed responses leave of the standards.
            covered: Covariance of that without the parts that are in proportion to the shares.
            parts: These, T of them.
        """
        shares, weights = np.array([*self.errors.discrepancy, *SHARES]).T
        found = np.full(len(parts), self.typical)
        total = covered + self.typical * sum(parts)
        for _ in range(2):
            for k, part in enumerate(parts):
                total -= found[k] * part
                logs = np.log(weights)
                for i, share in enumerate(shares):
                    root = np.linalg.cholesky(total + share * part)
                    white = solve_triangular(root, rest, lower=True)
                    logs[i] -= 0.5 * float(white @ white) + float(np.log(np.diag(root)).sum())
                found[k] = np.exp(logs - logsumexp(logs)) @ shares
                total += found[k] * part
        return found

    def _growth(self, concentration: FloatArray) -> FloatArray:
        """Return the (..., 2 T) factors that the errors of taught dopants grow with at (..., K) concentrations."""
        own = concentration[..., self.taught]
        return np.concatenate([own, own * (concentration.sum(-1, keepdims=True) / CURVED_AT)], axis=-1)

    def _computed(self, c: FloatArray) -> FloatArray:
        carried = c @ self.blurred / (c.sum(-1, keepdims=True) + BLURRED_AT) + c @ self.shifted
        return np.asarray(self.emulator.features(c) @ self.coefficients + carried)

    def mean(self, concentration: FloatArray) -> FloatArray:
        """Return the (..., D) projected mean change at (..., K) concentrations, with what standards have taught."""
        mean, learnt = self._computed(concentration), self.learnt
        return mean if learnt is None else learnt.corrected(mean, self._growth(concentration))

    def jacobian(self, concentration: FloatArray) -> FloatArray:
        """Return the (S, K, D) derivatives of `mean` by each concentration."""
        c = concentration
        linear, square, cube, both = self._slopes
        out = linear + c[..., None] * (square + c[..., None] * cube)
        out = out + (c @ both).reshape(out.shape)
        blurring = c.sum(-1)[:, None, None] + BLURRED_AT
        out += self.blurred / blurring - (c @ self.blurred)[:, None] / blurring**2 + self.shifted
        learnt = self.learnt
        if learnt is not None:
            out = out * (1.0 + learnt.amplitude)
            first, curved = np.split(learnt.error, 2)
            total = c.sum(-1)[:, None, None]
            out[:, self.taught] += first + total / CURVED_AT * curved
            out += (c[:, self.taught] @ curved / CURVED_AT)[:, None]
        return np.asarray(out)

    def covariance(self, concentration: FloatArray, other: float = 0.0, size: ErrorSize | None = None) -> FloatArray:
        """Return the (S, D, D) covariance at (S, K) concentrations and an amount of something else."""
        return np.asarray(self._covariances(concentration, other, [size or self.usual])[0])

    def _covariance(self, c: FloatArray, other: float) -> FloatArray:
        """Return the covariance without what superposition and the potential get wrong of the shape."""
        count = len(self.fixed)
        out = self.fixed + other**2 * self.unknown
        out = out + (self.weights(c) @ self.scatter.reshape(-1, count**2)).reshape(-1, count, count)
        return np.asarray(out)

    def factor_deviation(self, concentration: FloatArray, logs: FloatArray) -> tuple[FloatArray, float]:
        """Return the deviation of the logarithm of each dopant's own factor of amplitude, (K,), and of the common one.

        A factor of the response cannot be told from one of the concentration. It is no part of the covariance but
        multiplies what is drawn, so that it stays a factor. What standards have taught is in the covariance.

        Args:
            concentration: (K,) at which superposition misses what it misses.
            logs: (W,) log likelihoods there of the sizes that errors may have.
        """
        if self.errors.amplitude is None:
            expected = np.exp(logs - logsumexp(logs)) @ np.array([size.missed for size in self.sizes])
            missed = expected * self.emulator.misfit(concentration)
            return np.asarray(np.sqrt(missed) * self.by_pack), 0.0
        return self.amplitude.own * self.by_pack, 0.0 if len(self.taught) else self.amplitude.common

    def weights(self, concentration: FloatArray) -> FloatArray:
        """Return the (S, K) weights of the dopants' scatter: that of the sample, and the error of the mean."""
        c = concentration
        total = np.maximum(c.sum(-1, keepdims=True), 1e-12)
        return np.asarray(self.cells * c + self.emulator.leverage(c)[:, None] * c / total)

    def spread(self, concentration: FloatArray) -> FloatArray:
        """Return the (M, M) covariance of scatter, superposition and discrepancy at (K,) concentrations."""
        c = concentration[None]
        scatter = np.tensordot(self.weights(c)[0], self.emulator.scatter, axes=1)
        return np.asarray(scatter + self.amount(c, self.usual)[0] * self.errors.shape)

    def amount(self, concentration: FloatArray, size: ErrorSize) -> FloatArray:
        """Return the (S,) trace of what superposition and the potential get wrong, at (S, K) concentrations."""
        return self._superposed(concentration, size.missed) + self._shifted(concentration, size)

    def _superposed(self, c: FloatArray, missed: float = 1.0) -> FloatArray:
        small = SMALL_CELLS * self.emulator.squared(c * self.by_pack)
        return np.asarray(missed * self.emulator.misfit(c) * self.emulator.squared(c) + small)

    def _shifted(self, c: FloatArray, size: ErrorSize) -> FloatArray:
        return np.asarray(size.share * (c**2 @ self.norm2))

    @cached_property
    def log_sizes(self) -> FloatArray:
        """(W,) log prior probabilities of the sizes that errors may have."""
        return np.log([size.probability for size in self.sizes])

    def _covariances(self, c: FloatArray, other: float, sizes: Sequence[ErrorSize]) -> FloatArray:
        """Return the (W, S, D, D) covariances at (S, K) concentrations for each of W sizes of errors."""
        if self.learnt is not None:
            return self._taught(self.learnt, c, other, sizes)
        amounts = np.stack([self.amount(c, size) for size in sizes])
        return np.asarray(self._covariance(c, other) + amounts[:, :, None, None] * self.shape)

    def factors(self, concentration: FloatArray, other: float = 0.0) -> FloatArray:
        """Return the (W, S, D, D) roots of the covariances at (S, K) concentrations, lower triangles.

        W are the sizes that errors may have.
        """
        return np.asarray(np.linalg.cholesky(self._covariances(concentration, other, self.sizes)), dtype=np.float64)

    def log_by_world(self, concentration: FloatArray, factors: FloatArray) -> FloatArray:
        """Return the (W, S) log likelihoods at (S, K) concentrations, with (W, S or 1, D, D) `factors`."""
        rest = self.measured - self.mean(concentration)
        rest = np.broadcast_to(rest, (len(factors), *rest.shape))
        if factors.shape[1] == 1:  # one root for all concentrations: they are columns
            white = solved(factors[:, 0], rest.transpose(0, 2, 1)).transpose(0, 2, 1)
        else:
            white = solved(factors, rest[..., None])[..., 0]
        size = np.log(np.diagonal(factors, axis1=-2, axis2=-1)).sum(-1)
        return np.asarray(self.log_sizes[:, None] - self.errors.power * (0.5 * (white**2).sum(-1) + size))

    def log(self, concentration: FloatArray, other: float = 0.0) -> FloatArray:
        """Return the (S,) log likelihood at (S, K) concentrations, averaged over shares of discrepancy."""
        logs = self.log_by_world(concentration, self.factors(concentration, other))
        return np.asarray(logsumexp(logs, axis=0))

    def _taught(
        self, learnt: DiscrepancyPosterior, c: FloatArray, other: float, sizes: Sequence[ErrorSize]
    ) -> FloatArray:
        """Return (W, S, D, D) covariances where standards have taught something, by the size of what they have not."""
        d, mean, growth, own = len(self.fixed), self._computed(c), self._growth(c), c[:, self.taught]
        out = self._covariance(c, other)
        amount = self._superposed(c) + UNTAUGHT * (own**2 @ (learnt.share * self.norm2[self.taught]))
        out += amount[:, None, None] * self.shape
        there = np.flatnonzero(growth.any(axis=0))  # of many candidates a subset holds few
        pairs = (growth[:, there, None] * growth[:, None, there]).reshape(len(c), -1)
        out += (pairs @ learnt.covariance[np.ix_(there, there)].reshape(-1, d * d)).reshape(-1, d, d)
        cross = growth @ learnt.with_amplitude
        both = cross[:, :, None] * mean[:, None, :]
        out += both + both.transpose(0, 2, 1)
        out += learnt.amplitude_variance * mean[:, :, None] * mean[:, None, :]
        untaught = np.stack([self._shifted(c * self.by_pack, size) for size in sizes])
        return np.asarray(out + untaught[:, :, None, None] * self.shape)

    def predicted(self, concentration: FloatArray) -> FloatArray:
        """Return the (M,) change that (K,) concentrations make, with what standards have taught."""
        c = concentration[None]
        computed = self.amplitude.mean * self.emulator.mean(c)[0]
        if self.errors.deviation is not None:
            computed = computed + self.emulator.carried(c, self.errors.deviation)[0]
        if self.learnt is None:
            return np.asarray(computed)
        # Back from the directions in which hypotheses differ.
        return np.asarray(computed + np.linalg.pinv(self.onto) @ (self.mean(c) - self._computed(c))[0])


def solved(root: FloatArray, right: FloatArray) -> FloatArray:
    """Return what (..., D, D) lower triangles make (..., D, N) right sides of."""
    # NumPy has no triangular solver for many matrices at once.
    sides = np.array(np.broadcast_to(right, (*root.shape[:-2], *right.shape[-2:])))
    return np.asarray(
        torch.linalg.solve_triangular(torch.from_numpy(root), torch.from_numpy(sides), upper=False).numpy()
    )
