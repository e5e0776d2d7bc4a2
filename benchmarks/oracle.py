"""What the spectra themselves allow: could anybody tell two dopants apart, or how much there is of one?

An oracle knows the host, has simulated every dopant in it, many times, and knows the noise. What is left to confuse it
is the random placement of the atoms in a finite cell, the measurement's noise and background, and the amount, which it
does not know. Two dopants part where the angle between their contrasts (doped minus host), counted in units of that
scatter, is wide enough. Nothing that sees the same spectra can do better; how far a network falls short of it is
what a better network could gain.

Contrasts grow in proportion to the concentration, and their scatter over placements with its root, as independent
scatterers do; so one concentration, simulated, speaks for others of like size.

Shape letters: E dopant elements, P placements, L bins of the model grid, K components that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from defectnet.config import MODEL_GRID
from defectnet.data.shards import Row, Sample, projected_pairs
from defectnet.errors import ConfigError
from defectnet.measure.forward import measure_pairs
from defectnet.measure.settings import NOISE_BIN, Measurement
from defectnet.rng import row_rng

FloatArray = NDArray[np.float64]

STORAGE_NOISE: Final = 0.002
"""Standard deviation, relative to the peak, of what storing the spectra as single bytes adds."""

COMPONENTS: Final = 30
"""Directions of the contrasts that are kept: those that carry most, in units of the noise."""

_SHAPES: Final = np.stack(
    [
        np.ones(MODEL_GRID.bins),
        (1.0 - MODEL_GRID.centres / MODEL_GRID.reach) ** 2,
        MODEL_GRID.centres / MODEL_GRID.reach,
    ]
)
"""(3, L) the smooth backgrounds of the forward model."""


@dataclass(frozen=True)
class Contrasts:
    """Noise-free contrasts of one host and one concentration, and what scatters them.

    Attributes:
        elements: The dopants.
        values: (E, P, L) doped minus host.
        noise: (L,) standard deviation of the counting noise of a difference of two spectra.
        background: Area of the background that may be left in a spectrum, standard deviation.
        concentration: Of the simulated cells, atomic fraction.
    """

    elements: tuple[str, ...]
    values: FloatArray
    noise: FloatArray
    background: float
    concentration: float

    @classmethod
    def of_samples(cls, samples: Sequence[Sample], measurement: Measurement) -> Contrasts:
        """Measure simulated cells of one host, each with a single dopant.

        Args:
            samples: The same number of cells, with the same concentration, for each element.
            measurement: Its noise and background are counted in the scatter, not drawn.

        Raises:
            ConfigError: The cells do not belong together, or there are fewer than two of an element.
        """
        by_element: dict[str, list[Sample]] = {}
        for sample in samples:
            if len(sample.dopants) != 1:
                raise ConfigError(
                    f"row {sample.row_id} has {len(sample.dopants)} dopants", fix="Give cells of one dopant"
                )
            by_element.setdefault(sample.dopants[0], []).append(sample)
        counts = {len(found) for found in by_element.values()}
        amounts = {round(sum(sample.dopant_counts) / sample.atoms, 4) for sample in samples}
        hosts = {sample.host_id for sample in samples}
        if len(counts) != 1 or counts == {1} or len(amounts) != 1 or len(hosts) != 1:
            raise ConfigError(
                f"cells of {len(hosts)} hosts, {len(amounts)} concentrations, {sorted(counts)} for an element",
                fix="Give one host, one concentration, and equally many cells, two at least, of every element",
            )
        silent = replace(measurement, noise=(0.0, 0.0), background=(0.0, 0.0), energy_scale=0.0)
        rows = [sample for found in by_element.values() for sample in found]
        rngs = [row_rng("limits", sample.host_id) for sample in rows]
        pairs = measure_pairs(projected_pairs([Row.of(sample) for sample in rows]), silent, rngs)
        host, doped = pairs.host.astype(np.float64), pairs.doped.astype(np.float64)
        level = np.hypot(measurement.noise[1], STORAGE_NOISE)
        curve = host.mean(axis=0)
        noise = level * np.sqrt(2.0 * curve * curve.max() * NOISE_BIN / MODEL_GRID.width)
        return cls(
            tuple(by_element),
            (doped - host).reshape(len(by_element), -1, MODEL_GRID.bins),
            np.hypot(noise, level * 0.02 * curve.max()),  # a detector counts a little everywhere
            measurement.background[1],
            amounts.pop(),
        )

    def noisier(self, noise: float) -> Contrasts:
        """Return contrasts of noise-free spectra with this counting noise, as `Measurement.noise` has it."""
        return replace(self, noise=self.noise * (np.hypot(noise, STORAGE_NOISE) / STORAGE_NOISE))

    @property
    def backgrounds(self) -> FloatArray:
        """(3, L) smooth shapes that may be left in a difference, one standard deviation each."""
        area = _SHAPES.sum(axis=1, keepdims=True) * MODEL_GRID.width
        return np.asarray(self.background * np.sqrt(2.0) * _SHAPES / area)


class Whitened(NamedTuple):
    """Contrasts in a space where all scatter is one standard deviation in every direction.

    Attributes:
        values: (E, P, K).
        scale: Concentration over the simulated one that the scatter was taken for.
    """

    values: FloatArray
    scale: float


def whiten(contrasts: Contrasts, concentration: float | None = None) -> Whitened:
    """Count contrasts in units of their scatter.

    Args:
        contrasts: Simulated ones.
        concentration: Atomic fraction to speak of; that of the simulated cells by default.
    """
    scale = 1.0 if concentration is None else concentration / contrasts.concentration
    elements, placements, bins = contrasts.values.shape
    values = contrasts.values / contrasts.noise
    mean = values.mean(axis=1, keepdims=True)
    # Independent scatterers: the mean grows as the concentration, the spread over placements as its root.
    values = scale * mean + np.sqrt(scale) * (values - mean)
    _, _, directions = np.linalg.svd(values.reshape(-1, bins), full_matrices=False)
    basis = directions[: min(COMPONENTS, elements * (placements - 1) // 2)].T
    reduced = values.reshape(-1, bins) @ basis
    residuals = reduced.reshape(elements, placements, -1)
    residuals = (residuals - residuals.mean(axis=1, keepdims=True)).reshape(-1, basis.shape[1])
    free = elements * (placements - 1)
    # The inverse of a sampled covariance is too large on average (Hartlap et al., A&A 464, 399 (2007)).
    spread = residuals.T @ residuals / (free - basis.shape[1] - 1.0)
    smooth = (contrasts.backgrounds / contrasts.noise) @ basis
    covariance = spread + np.eye(basis.shape[1]) + smooth.T @ smooth
    lower = np.linalg.cholesky(covariance)
    return Whitened(np.linalg.solve(lower, reduced.T).T.reshape(elements, placements, -1), scale)


def separation(whitened: Whitened) -> FloatArray:
    """Return how far each element stands from every other whose amount is free, in standard deviations.

    The distance of A from the line through B's contrasts, over all amounts of B. Squares of means over few placements
    are too long by the scatter itself; products of means over different placements are not (Walther et al.,
    NeuroImage 137, 188 (2016)), and are used throughout. What is left, about 1 where there is nothing, comes from the
    directions, which are chosen on the same cells.

    Args:
        whitened: See `whiten`.

    Returns:
        (E, E), rows A, columns B; 0 where the scatter hides it.
    """
    products = _products(whitened.values)
    length = np.maximum(np.diag(products), 1e-9)
    rest = length[:, None] - products.clip(0.0) ** 2 / length[None, :]
    return np.asarray(np.sqrt(rest.clip(0.0)))


def detectability(whitened: Whitened) -> FloatArray:
    """Return (E,) how far each element's contrast stands out of an undoped pair, in standard deviations."""
    return np.asarray(np.sqrt(np.diag(_products(whitened.values)).clip(0.0)))


def _products(values: FloatArray) -> FloatArray:
    """Return (E, E) mean products of the elements' contrasts, over all pairs of different placements."""
    placements = values.shape[1]
    total = values.sum(axis=1)
    same = np.einsum("apk,bpk->ab", values, values)
    return np.asarray((total @ total.T - same) / (placements * (placements - 1)))


def right_choice(separations: FloatArray) -> FloatArray:
    """Return the probability that the best decision between two elements is the right one."""
    return np.asarray(norm.cdf(separations / 2.0))


class Oracle(NamedTuple):
    """What an oracle answers of cells that it has not seen itself, in the hosts that it knows.

    Attributes:
        top_1: Share of cells whose element it names.
        top_5: Share of cells whose element is among its five best.
        amount_error: Median relative error of the concentration, the element being known.
    """

    top_1: float
    top_5: float
    amount_error: float


def oracle(whitened: Whitened, rng: np.random.Generator) -> Oracle:
    """Identify each placement from the others: the element on whose line it lies closest, noise added.

    Args:
        whitened: See `whiten`; with few placements the lines themselves are uncertain, which makes the oracle worse
            than it could be.
        rng: Source of the noise. The scatter over placements is in the values already; the rest has unit variance at
            most.
    """
    values = whitened.values
    elements, placements, size = values.shape
    ranks, errors = [], []
    for held in range(placements):
        lines = np.delete(values, held, axis=1).mean(axis=1)
        length = (lines**2).sum(axis=1)
        seen = values[:, held] + rng.standard_normal((elements, size)) * np.sqrt(_noise_share(values))
        amounts = (seen @ lines.T / length).clip(0.0, None)
        distance = ((seen[:, None] - amounts[..., None] * lines) ** 2).sum(axis=2)
        ranks.append((distance < np.diag(distance)[:, None]).sum(axis=1))
        errors.append(np.abs(np.diag(amounts) - 1.0))
    rank = np.concatenate(ranks)
    return Oracle(float((rank == 0).mean()), float((rank < 5).mean()), float(np.median(np.concatenate(errors))))


def _noise_share(values: FloatArray) -> FloatArray:
    """Return (K,) the part of the unit variance that is not spread over placements."""
    residuals = values - values.mean(axis=1, keepdims=True)
    spread = (residuals**2).sum(axis=(0, 1)) / (values.shape[0] * (values.shape[1] - 1))
    return np.asarray((1.0 - spread).clip(0.0))


def parting_noise(
    samples: Sequence[Sample], measurement: Measurement, concentration: float, *, certainty: float = 0.9
) -> dict[tuple[str, str], float]:
    """Find the noise at which each pair of neighbours in the list of elements can just be told apart.

    Args:
        samples: As for `Contrasts.of_samples`.
        measurement: Resolution and weighting; its noise level is varied.
        concentration: Atomic fraction to speak of.
        certainty: Probability of the right choice that counts as apart.

    Returns:
        For each pair the highest counting noise, relative to the peak, in a bin of 0.01 of the edge; 0 where not even
        noise-free spectra part, since the placements hide the difference.
    """
    wanted = 2.0 * float(norm.ppf(certainty))
    levels = np.concatenate([[0.0], np.geomspace(1e-4, 0.2, 34)])
    contrasts = Contrasts.of_samples(samples, replace(measurement, noise=(0.0, 0.0)))
    apart = []
    for level in levels:
        far = separation(whiten(contrasts.noisier(float(level)), concentration))
        near = np.minimum(far, far.T)
        apart.append(np.diagonal(near, offset=1) >= wanted)
    held = np.logical_and.accumulate(np.stack(apart), axis=0)
    # The highest level up to which every lower one parts them too.
    highest = np.where(held.any(axis=0), levels[np.maximum(held.sum(axis=0) - 1, 0)], 0.0)
    elements = contrasts.elements
    return {
        (first, second): float(level) for first, second, level in zip(elements[:-1], elements[1:], highest, strict=True)
    }
