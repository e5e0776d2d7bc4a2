"""What `identify` would say of many changes at once: log evidence of one dopant alone, and of nothing, on a grid.

A plan asks about thousands of samples that nobody has measured yet. Sampling, as `posterior` does it for one, would
take hours; with one dopant its concentration can be summed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from defectnet.inference.posterior import OTHER_AMOUNTS, OTHER_PRIOR, ErrorSize, Likelihood

FloatArray = NDArray[np.float64]

CHUNK: Final = 500
"""Changes that are looked at together, which bounds memory."""

BESIDE: Final = ((0.0, 1.0 - OTHER_PRIOR), *((float(a), OTHER_PRIOR / 3.0) for a in OTHER_AMOUNTS[::2]))
"""Amounts of something else beside a dopant, and their probabilities; the first is nothing else."""


class DopantEvidence:
    """Log evidence of one dopant alone, with or without something else beside it.

    As in `identify`, covariances are held as they are at the likeliest concentration of each change: where the mean
    fits best, weighed by the covariance there.

    Args:
        likelihood: Of the measurement.
        covariance: (S,) amounts of the dopant, an amount of something else, and a size of errors -> (S, D, D).
        nodes: (N,) concentrations, ascending. logs: (N,) logarithms of their prior weights.
        mean: (N, D) changes at the nodes. slope: (N, D) derivatives by the logarithm of the concentration.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        covariance: Callable[[FloatArray, float, ErrorSize], FloatArray],
        nodes: FloatArray,
        logs: FloatArray,
        mean: FloatArray,
        slope: FloatArray,
    ) -> None:
        self.likelihood, self.covariance = likelihood, covariance
        self.nodes, self.logs, self.mean = nodes, logs, mean
        roots = [np.linalg.inv(np.linalg.cholesky(covariance(nodes, 0.0, size))) for size in likelihood.sizes]
        self._roots = np.stack(roots)  # (W, N, D, D)
        self._white_mean = (self._roots @ mean[..., None])[..., 0]
        self._white_slope = (self._roots @ slope[..., None])[..., 0]
        self._constant = np.log(np.diagonal(self._roots, axis1=-2, axis2=-1)).sum(
            -1
        )  # minus half of the log determinant

    def log(self, changes: FloatArray, *, beside: bool = True) -> FloatArray:
        """Return the (...) log evidence of (..., D) changes, with something else beside the dopant or without."""
        flat = changes.reshape(-1, changes.shape[-1])
        out = np.empty(len(flat))
        for start in range(0, len(flat), CHUNK):
            part = slice(start, start + CHUNK)
            held = self._likeliest(flat[part])
            for node in np.unique(held):
                rows = start + np.flatnonzero(held == node)
                logs = self.by_node(flat[rows], float(self.nodes[node]), beside=beside) + self.logs
                out[rows] = logsumexp(logs, axis=-1)
        return out.reshape(changes.shape[:-1])

    def by_node(self, changes: FloatArray, held: float, *, beside: bool = True) -> FloatArray:
        """Return the (S, N) log likelihoods of (S, D) changes at the nodes, covariances held at one concentration."""
        at, parts = np.array([held]), []
        for other, prior in BESIDE if beside else ((0.0, 1.0),):
            for size in self.likelihood.sizes:
                covariance = self.covariance(at, other, size)[0]
                log_prior = float(np.log(prior * size.probability))
                parts.append(log_prior + gaussian_logs(changes, self.mean, covariance, self.likelihood.errors.power))
        return np.asarray(logsumexp(np.stack(parts), axis=0))

    def _likeliest(self, changes: FloatArray) -> NDArray[np.int64]:
        """Return the (S,) nodes where (S, D) changes are likeliest, among those where the mean fits best."""
        power = self.likelihood.errors.power
        logs, scores = [], []
        for k in range(len(self._roots)):
            rest = np.einsum("nde,se->snd", self._roots[k], changes) - self._white_mean[k]
            fit = power * (self._constant[k] - 0.5 * (rest**2).sum(-1))
            logs.append(self.likelihood.log_sizes[k] + fit)
            scores.append((rest * self._white_slope[k]).sum(-1))
        size = np.argmax(logs, axis=0)[None]
        score = np.take_along_axis(np.stack(scores), size, axis=0)[0]  # (S, N): above zero, the mean fits better above
        between = (score[:, :-1] > 0.0) & (score[:, 1:] <= 0.0)
        first = np.abs(score[:, :-1]) < np.abs(score[:, 1:])
        turns = np.zeros(score.shape, dtype=bool)
        turns[:, :-1] |= between & first
        turns[:, 1:] |= between & ~first
        turns[:, 0] |= score[:, 0] <= 0.0
        turns[:, -1] |= score[:, -1] > 0.0
        return np.asarray(np.where(turns, logsumexp(np.stack(logs), axis=0), -np.inf).argmax(-1))


def log_nothing(likelihood: Likelihood, changes: FloatArray) -> FloatArray:
    """Return the (...) log evidence of (..., D) changes of no dopant, with or without something else."""
    none = np.zeros((1, len(likelihood.emulator.dopants)))
    amounts: Sequence[tuple[float, float]] = (
        (0.0, 1.0 - OTHER_PRIOR),
        *((float(a), OTHER_PRIOR / len(OTHER_AMOUNTS)) for a in OTHER_AMOUNTS),
    )
    flat, mean = changes.reshape(-1, changes.shape[-1]), np.zeros((1, changes.shape[-1]))
    parts = [
        np.log(prior) + gaussian_logs(flat, mean, likelihood.covariance(none, other)[0], likelihood.errors.power)[:, 0]
        for other, prior in amounts
    ]
    return np.asarray(logsumexp(np.stack(parts), axis=0).reshape(changes.shape[:-1]))


def gaussian_logs(changes: FloatArray, mean: FloatArray, covariance: FloatArray, power: float) -> FloatArray:
    """Return the (S, N) log likelihoods of (S, D) changes for (N, D) means, raised to a power as `identify` does."""
    root = np.linalg.inv(np.linalg.cholesky(covariance))
    x, m = changes @ root.T, mean @ root.T
    square = (x**2).sum(-1)[:, None] + (m**2).sum(-1) - 2.0 * x @ m.T
    return np.asarray(power * (np.log(np.diag(root)).sum() - 0.5 * square))
