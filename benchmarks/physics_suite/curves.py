"""Phonon densities of states as curves, and how two of them differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from defectnet.potentials.phonons import IMAGINARY_MEV, Modes

FloatArray = NDArray[np.float64]

CM1_PER_MEV = 8.0655439
"""Wave numbers (1/cm) of one meV: 1e-3 e / (100 h c)."""

STEP_MEV = 0.25
"""Width of a bin of every curve: a quarter of the resolution at which curves are compared."""

SIGMA_MEV = 1.0
"""Gaussian resolution (standard deviation) at which curves are compared."""

TAIL = 5.0
"""Standard deviations by which a smoothed curve reaches above its highest energy."""


@dataclass(frozen=True)
class Curve:
    """A density of states on bins of `STEP_MEV` from zero.

    Attributes:
        dos: (n,) share of the states in each bin; sums to 1.
    """

    dos: FloatArray

    @property
    def energy_mev(self) -> FloatArray:
        """(n,) centres of the bins."""
        return np.asarray((np.arange(len(self.dos)) + 0.5) * STEP_MEV, dtype=np.float64)

    @property
    def mean_mev(self) -> float:
        """Mean energy."""
        return float(self.dos @ self.energy_mev)

    def smoothed(self, sigma_mev: float = SIGMA_MEV) -> Curve:
        """Return the curve seen with a Gaussian resolution; at zero energy it is reflected, so that no area is lost."""
        room = int(np.ceil(TAIL * sigma_mev / STEP_MEV))
        padded = np.concatenate([self.dos, np.zeros(room)])
        smooth = gaussian_filter1d(padded, sigma_mev / STEP_MEV, mode="reflect", truncate=TAIL)
        total = smooth.sum()
        return Curve(smooth / total if total > 0 else smooth)

    def peaks_mev(self, *, height: float = 0.05, prominence: float = 0.02) -> list[float]:
        """Return the maxima, to a fraction of a bin.

        Args:
            height: Least height, relative to the highest maximum.
            prominence: Least rise above the higher of the two valleys beside it, relative likewise.
        """
        top = float(self.dos.max())
        if not top > 0:
            return []
        found, _ = find_peaks(self.dos, height=height * top, prominence=prominence * top)
        return [self._vertex(int(i)) for i in found]

    def _vertex(self, i: int) -> float:
        """Return the energy of the vertex of the parabola through a maximum and its two neighbours."""
        left, top, right = self.dos[i - 1 : i + 2]
        bend = left - 2.0 * top + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
        return float((i + 0.5 + shift) * STEP_MEV)


def histogram(energy_mev: ArrayLike, weight: ArrayLike | None = None) -> Curve:
    """Return modes as a curve; a mode is shared between the two nearest bins, so that the mean energy is kept.

    Args:
        energy_mev: (M,) energies. Imaginary modes (negative) are left out; what is zero within noise counts as zero.
        weight: (M,) weights, 1 by default.
    """
    energy = np.asarray(energy_mev, dtype=np.float64)
    weights = np.ones_like(energy) if weight is None else np.asarray(weight, dtype=np.float64)
    real = energy >= -IMAGINARY_MEV
    position = np.maximum(energy[real] / STEP_MEV - 0.5, 0.0)
    low = position.astype(np.int64)
    part = position - low
    bins = int(low.max(initial=0)) + 2
    dos = np.bincount(low, weights[real] * (1.0 - part), bins) + np.bincount(low + 1, weights[real] * part, bins)
    total = dos.sum()
    return Curve(np.asarray(dos / max(total, np.finfo(np.float64).tiny), dtype=np.float64))


def from_modes(phonons: Modes) -> Curve:
    """Return the total DOS of modes."""
    return histogram(phonons.energy_mev)


def from_table(energy_mev: ArrayLike, dos: ArrayLike) -> Curve:
    """Return a tabulated DOS as a curve; below its first energy it grows as the square of the energy.

    Args:
        energy_mev: (n,) increasing energies.
        dos: (n,) DOS in any scale, taken as linear in between; what is negative counts as zero.
    """
    energy, values = np.asarray(energy_mev, dtype=np.float64), np.maximum(np.asarray(dos, dtype=np.float64), 0.0)
    fine = STEP_MEV / 20  # so that the mean over a bin is exact enough for any table
    grid = (np.arange(round(np.ceil(energy[-1] / STEP_MEV)) * 20) + 0.5) * fine
    sampled = np.interp(grid, energy, values, right=0.0)
    below = grid < energy[0]
    sampled[below] = values[0] * (grid[below] / energy[0]) ** 2 if energy[0] > 0 else 0.0
    binned = sampled.reshape(-1, 20).sum(1)
    return Curve(binned / binned.sum())


def shape_distance(first: Curve, second: Curve, sigma_mev: float = SIGMA_MEV) -> float:
    """Return the total-variation distance of two smoothed curves: 0 for the same, 1 for disjoint ones."""
    a, b = first.smoothed(sigma_mev).dos, second.smoothed(sigma_mev).dos
    size = max(len(a), len(b))
    difference = np.pad(a, (0, size - len(a))) - np.pad(b, (0, size - len(b)))
    return float(0.5 * np.abs(difference).sum())


def coarse(curve: Curve, step_mev: float = 1.0) -> list[float]:
    """Return the smoothed curve as DOS per meV on bins of `step_mev`, rounded: small enough for a results file."""
    every = round(step_mev / STEP_MEV)
    dos = curve.smoothed().dos
    padded = np.pad(dos, (0, -len(dos) % every)).reshape(-1, every).sum(1) / step_mev
    return [round(float(value), 5) for value in padded]
