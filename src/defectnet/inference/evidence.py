"""What `identify` would say of many changes at once: log evidence of one dopant alone, and of nothing, on a grid.

A plan asks about thousands of samples that nobody has measured yet. Sampling, as `posterior` does it for one, would
take hours; with one dopant its concentration can be summed over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from defectnet.inference.likelihood import ErrorSize, Likelihood
from defectnet.inference.posterior import OTHER_AMOUNTS, OTHER_PRIOR

FloatArray = NDArray[np.float64]

CHUNK: Final = 500
"""Changes that are looked at together, which bounds memory."""


def _with_something_else(amounts: FloatArray) -> list[tuple[float, float]]:
    """Return amounts of something else and their prior probabilities, the first for nothing else."""
    return [(0.0, 1.0 - OTHER_PRIOR), *((float(a), OTHER_PRIOR / len(amounts)) for a in amounts)]


BESIDE: Final = _with_something_else(OTHER_AMOUNTS[::2])
"""What is beside a dopant; without one, all of `OTHER_AMOUNTS` are looked at."""


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
        self.nodes, self.logs, self.mean, self.slope = nodes, logs, mean, slope
        self._by_held: dict[float, list[tuple[float, FloatArray, FloatArray]]] = {}

    @cached_property
    def _roots(self) -> FloatArray:
        """(W, N, D, D) inverse roots of the covariances at the nodes, with nothing else beside."""
        sizes = self.likelihood.sizes
        return np.stack([np.linalg.inv(np.linalg.cholesky(self.covariance(self.nodes, 0.0, one))) for one in sizes])

    def log(self, changes: FloatArray, *, beside: bool = True) -> FloatArray:
        """Return the (...) log evidence of (..., D) changes, and, unless `beside`, of nothing else being there."""
        flat = changes.reshape(-1, changes.shape[-1])
        return np.asarray(logsumexp(self.by_likeliest(flat, beside=beside), axis=-1).reshape(changes.shape[:-1]))

    def by_likeliest(self, changes: FloatArray, *, beside: bool = True) -> FloatArray:
        """Return the (S, N) log densities of (S, D) changes at the nodes, covariances held at the likeliest of each."""
        out = np.empty((len(changes), len(self.nodes)))
        for start in range(0, len(changes), CHUNK):
            held = self._likeliest(changes[start : start + CHUNK])
            for node in np.unique(held):
                rows = start + np.flatnonzero(held == node)
                out[rows] = self._by_node(changes[rows], float(self.nodes[node]), beside=beside) + self.logs
        return out

    def _by_node(self, changes: FloatArray, held: float, *, beside: bool) -> FloatArray:
        """Return the (S, N) log likelihoods of (S, D) changes at the nodes, covariances held at one concentration."""
        gaussians = self._gaussians(held)
        if not beside:
            gaussians = gaussians[: len(self.likelihood.sizes)]
        power = self.likelihood.errors.power
        parts = [log_prior + gaussian_logs(changes, root, mean, power) for log_prior, root, mean in gaussians]
        return np.asarray(logsumexp(np.stack(parts), axis=0))

    def _gaussians(self, held: float) -> list[tuple[float, FloatArray, FloatArray]]:
        """Return log prior, root, and means times the root for each of `BESIDE` and in it each size of errors."""
        if held not in self._by_held:
            at, found = np.array([held]), []
            for other, prior in BESIDE:
                for size in self.likelihood.sizes:
                    root = np.linalg.inv(np.linalg.cholesky(self.covariance(at, other, size)[0]))
                    found.append((float(np.log(prior * size.probability)), root, self.mean @ root.T))
            self._by_held[held] = found
        return self._by_held[held]

    def _likeliest(self, changes: FloatArray) -> NDArray[np.int64]:
        """Return the (S,) nodes where (S, D) changes are likeliest, among those where the mean fits best."""
        power = self.likelihood.errors.power
        logs, scores = [], []
        for root, log_size in zip(self._roots, self.likelihood.log_sizes, strict=True):
            rest = root @ changes.T - root @ self.mean[..., None]  # (N, D, S)
            constant = np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
            logs.append(log_size + power * (constant - 0.5 * np.einsum("nds,nds->sn", rest, rest)))
            scores.append(((root @ self.slope[..., None]).transpose(0, 2, 1) @ rest)[:, 0].T)
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
    flat, mean = changes.reshape(-1, changes.shape[-1]), np.zeros((1, changes.shape[-1]))
    parts = []
    for other, prior in _with_something_else(OTHER_AMOUNTS):
        root = np.linalg.inv(np.linalg.cholesky(likelihood.covariance(none, other)[0]))
        parts.append(np.log(prior) + gaussian_logs(flat, root, mean, likelihood.errors.power)[:, 0])
    return np.asarray(logsumexp(np.stack(parts), axis=0).reshape(changes.shape[:-1]))


def gaussian_logs(changes: FloatArray, root: FloatArray, mean: FloatArray, power: float) -> FloatArray:
    """Return the (S, N) log likelihoods of (S, D) changes, raised to a power as `identify` does.

    Args:
        changes: See above.
        root: (D, D) inverse root of the covariance.
        mean: (N, D) means, multiplied by it.
        power: See `Errors.power`.
    """
    x = changes @ root.T
    square = (x**2).sum(-1)[:, None] + (mean**2).sum(-1) - 2.0 * x @ mean.T
    return np.asarray(power * (np.log(np.diag(root)).sum() - 0.5 * square))
