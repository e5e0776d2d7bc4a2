"""Piecewise linear curves: exact integrals, and onto bins of relative energy with unit area."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.config import Grid
from defectnet.errors import SpectrumError

FloatArray = NDArray[np.float64]
Curves = NDArray[np.floating[Any]]


def unit_area(dos: Curves, width: float) -> Curves:
    """Scale (..., bins) values to unit area; where there is none, they stay zero."""
    return np.asarray(dos / np.maximum(dos.sum(axis=-1, keepdims=True) * dos.dtype.type(width), 1e-30))


def cumulative(energy: FloatArray, dos: Curves) -> FloatArray:
    """Integrate up to each point.

    Args:
        energy: (n,) increasing energies, of all curves.
        dos: (..., n) values.

    Returns:
        (..., n) integrals, 0 at the first point.
    """
    step = _step(energy)
    means = (dos[..., 1:] + dos[..., :-1]) * dos.dtype.type(0.5)
    if step is None:
        means = means * np.diff(energy)
    total = np.zeros(dos.shape)
    np.cumsum(means, axis=-1, dtype=np.float64, out=total[..., 1:])
    if step is not None:
        total *= step
    return total


def integrals(energy: FloatArray, dos: Curves, total: FloatArray, at: FloatArray) -> FloatArray:
    """Integrate from the first point to any energies, exactly; nothing lies outside of the points.

    Args:
        energy: (n,) increasing energies, of all curves.
        dos: (..., n) values.
        total: (..., n) what `cumulative` returns of them.
        at: (..., m) energies, for each curve its own.

    Returns:
        (..., m) integrals.
    """
    points, step = len(energy), _step(energy)
    curves, total = dos.reshape(-1, points), total.reshape(-1, points)
    place = at.reshape(len(curves), -1) - energy[0]
    width: FloatArray | float
    if step is None:
        np.clip(place, 0.0, energy[-1] - energy[0], out=place)
        i = np.minimum(np.searchsorted(energy - energy[0], place, side="right") - 1, points - 2)
        width = np.diff(energy)[i]
        place -= (energy - energy[0])[i]
        place /= width
    else:
        place /= step
        np.clip(place, 0.0, points - 1.0, out=place)
        i, width = place.astype(np.intp), step
        np.minimum(i, points - 2, out=i)
        place -= i
    i += np.arange(len(curves))[:, None] * points
    here = curves.take(i)
    # total + width t (here + t (next - here) / 2), t the place between the two points.
    result = place * (curves.take(i + 1) - here)
    result *= 0.5
    result += here
    result *= place
    result *= width
    result += total.take(i)
    return np.asarray(result.reshape(at.shape))


def integral_errors(energy: FloatArray, error: FloatArray, edges: FloatArray) -> FloatArray:
    """Propagate independent errors of points to integrals between edges, exactly: each is a sum of points.

    Args:
        energy: (n,) increasing energies.
        error: (n,) standard deviations of the values there.
        edges: (m + 1,) increasing energies.

    Returns:
        (m,) standard deviations of the integrals; 0 outside of the points.
    """
    integral, point, shares = _weights(energy, edges)
    return np.asarray(np.sqrt(np.bincount(integral, (shares * error[point]) ** 2, len(edges) - 1)))


def integral_covariance(energy: FloatArray, error: FloatArray, edges: FloatArray) -> FloatArray:
    """Return the (m, m) covariance of what `integral_errors` is about: neighbours share points."""
    integral, point, shares = _weights(energy, edges)
    weights = np.zeros((len(edges) - 1, len(energy)))
    weights[integral, point] = shares * error[point]
    return np.asarray(weights @ weights.T)


def _weights(energy: FloatArray, edges: FloatArray) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """Return integrals between edges, points, and what each value adds to each integral; arguments as above."""
    inside = edges[(edges > energy[0]) & (edges < energy[-1])]
    cuts = np.union1d(energy, inside)
    middle, step = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    left = np.clip(np.searchsorted(energy, middle) - 1, 0, len(energy) - 2)
    part = (middle - energy[left]) / (energy[left + 1] - energy[left])
    place = np.searchsorted(edges, middle) - 1
    counts = (place >= 0) & (place < len(edges) - 1)
    # What each point adds to each integral, from the pieces on both of its sides.
    keys = np.concatenate([place[counts] * len(energy) + left[counts], place[counts] * len(energy) + left[counts] + 1])
    shares = np.concatenate([((1.0 - part) * step)[counts], (part * step)[counts]])
    pairs, of = np.unique(keys, return_inverse=True)
    summed = np.asarray(np.bincount(of, shares, len(pairs)), dtype=np.float64)
    return pairs // len(energy), pairs % len(energy), summed


def rebin(
    energy: FloatArray, dos: Curves, edge: FloatArray, grid: Grid, *, total: FloatArray | None = None
) -> NDArray[np.float32]:
    """Put curves on relative energies E / edge, each bin the mean over its width.

    What lies above the grid's reach is cut, and the rest has unit area. Outside of its points a curve is zero.

    Args:
        energy: (n,) increasing energies, of all curves.
        dos: (..., n) DOS in any scale.
        edge: (...,) the *host's* band edge in the same unit, for the doped sample too.
        grid: Relative energies.
        total: (..., n) what `cumulative` returns of `dos`, if it is known.

    Returns:
        (..., grid.bins) DOS per relative energy; its sum times `grid.width` is 1.

    Raises:
        SpectrumError: Nothing lies on the grid.
    """
    total = cumulative(energy, dos) if total is None else total
    shares = np.diff(integrals(energy, dos, total, grid.edges * edge[..., None]))
    area = shares.sum(axis=-1, keepdims=True)
    if not (area > 0).all():
        raise SpectrumError(
            f"no part of the DOS lies below {grid.reach:g} times the host's band edge of {float(edge.min()):.4g}",
            fix="Check the units of both spectra",
        )
    return np.asarray(shares / (area * grid.width), dtype=np.float32)


def _step(energy: FloatArray) -> float | None:
    """Return the distance of evenly spaced points, or None: there a point is found without a search."""
    step = np.diff(energy)
    return float(energy[-1] - energy[0]) / len(step) if np.ptp(step) <= 1e-9 * energy[-1] else None
