"""Gaussian broadening: on any points by the full kernel, of many pairs on `STORAGE_GRID` as far as lines reach.

Resolutions are stated as full widths at half maximum (FWHM). One of a measurement may grow with energy, linearly from
that at zero energy to `growth` times as much at the edge and on above it, and never falls below a fifth of the first.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID

FloatArray = NDArray[np.float64]

FWHM_TO_SIGMA: Final = 1.0 / np.sqrt(8.0 * np.log(2.0))
"""Standard deviation of a Gaussian over its FWHM."""

_REACH: Final = 4.5  # standard deviations of the resolution: 7e-6 of a line lies beyond
_REACHES: Final = np.array([8, 16, 24, 32, 48, 64, 96, 128, 192])  # bins; beyond, a full kernel is cheaper
_BLOCK: Final = 24  # bins whose lines are taken together; a divisor of the number of bins
_CHUNK: Final = 8  # pairs broadened at a time, for the processor's cache
_SHARPEST: Final = 0.05  # bins: a line much narrower than its bin stays there


def line_sigma(fwhm: FloatArray, growth: FloatArray, at: FloatArray) -> FloatArray:
    """Return the standard deviation of lines, in the unit of `fwhm`.

    Args:
        fwhm: (P,) resolution at zero energy.
        growth: (P,) resolution at the edge over that at zero.
        at: (N,) energies of the lines, relative to the edge.

    Returns:
        (P, N) standard deviations.
    """
    return np.asarray(fwhm[:, None] * np.maximum(1.0 + (growth[:, None] - 1.0) * at, 0.2) * FWHM_TO_SIGMA)


def broadening_kernel(
    to: NDArray[np.floating[Any]],
    at: NDArray[np.floating[Any]],
    sigma: NDArray[np.floating[Any]] | float,
    weight: NDArray[np.floating[Any]] | None = None,
) -> NDArray[np.floating[Any]]:
    """Return the matrix that spreads lines over points; what would fall outside of the points stays on them.

    Args:
        to: (m,) points; their precision is that of the result.
        at: (n,) places of the lines.
        sigma: (n,) or one standard deviation, in the same unit, not zero.
        weight: (m,) what each point counts for in an integral; 1 by default.

    Returns:
        (m, n) values; a column's integral is 1.
    """
    kernel = (to[:, None] - at) * np.asarray(np.sqrt(0.5) / sigma).astype(to.dtype)
    np.square(kernel, out=kernel)
    np.negative(kernel, out=kernel)
    # Beyond exp(-80) lie denormal numbers, which are slow.
    np.exp(np.maximum(kernel, -80.0, out=kernel), out=kernel)
    kernel /= kernel.sum(axis=0) if weight is None else weight @ kernel
    return kernel


def broaden(
    dos: NDArray[np.float32], edge_mev: FloatArray, fwhm_mev: FloatArray, growth: FloatArray
) -> NDArray[np.float32]:
    """Broaden pairs as `broadening_kernel` does, but only as far as the lines reach.

    Args:
        dos: (P, curves, N) curves on `STORAGE_GRID`; those of a pair share its resolution.
        edge_mev: (P,) units of the relative energies; ones, if the resolutions are relative to the edge, too.
        fwhm_mev: (P,) resolutions at zero energy.
        growth: (P,) resolutions at the edge over those at zero.

    Returns:
        (P, curves, N) broadened curves of the same area.
    """
    width = edge_mev[:, None] * STORAGE_GRID.width
    sigma = np.maximum(line_sigma(fwhm_mev, growth, STORAGE_GRID.centres) / width, _SHARPEST)
    filled = np.any(dos != 0, axis=1)
    ends = STORAGE_GRID.bins - np.argmax(filled[:, ::-1], axis=1)  # nothing lies from here on
    # How far is asked of each pair alone, so that it does not depend on the others.
    reach = np.searchsorted(_REACHES, _REACH * np.where(filled, sigma, 0.0).max(axis=1))
    factor = (-0.5 / sigma**2).astype(np.float32)
    out = np.empty_like(dos)
    bins = np.arange(STORAGE_GRID.bins, dtype=np.float32)
    for i in np.flatnonzero(reach == len(_REACHES)):
        out[i] = dos[i, :, : ends[i]] @ broadening_kernel(bins, bins[: ends[i]], sigma[i, : ends[i]]).T
    for number, far in enumerate(_REACHES.tolist()):
        rows = np.flatnonzero(reach == number)
        rows = rows[np.argsort(ends[rows], kind="stable")]  # pairs of a chunk are as long as its longest
        for begin in range(0, len(rows), _CHUNK):
            chosen = rows[begin : begin + _CHUNK]
            blocks = -(-int(ends[chosen].max()) // _BLOCK)
            out[chosen] = _in_blocks(dos[chosen], factor[chosen, : blocks * _BLOCK], far)
    return out


def _in_blocks(dos: NDArray[np.float32], factor: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Broaden pairs: the lines of a block of bins reach into the bins around it, as one product of small matrices.

    Args:
        dos: (P, curves, N) curves, empty from bin n on.
        factor: (P, n) -1/2 over the squared standard deviation, in bins; n is a number of whole blocks.
        reach: How far the kernels reach, in bins.
    """
    (pairs, curves, bins), blocks, span = dos.shape, factor.shape[1] // _BLOCK, _BLOCK + 2 * reach
    distance = np.arange(-reach, _BLOCK + reach) - np.arange(_BLOCK)[:, None]
    kernel = factor.reshape(pairs, blocks, _BLOCK, 1) * np.square(distance).astype(np.float32)
    if factor.min() * (_BLOCK + reach) ** 2 < -80.0:  # beyond exp(-80) lie denormal numbers, which are slow
        np.maximum(kernel, np.float32(-80.0), out=kernel)
    np.exp(kernel, out=kernel)
    for block in range(blocks):  # what would fall off the grid stays on it
        below, above = reach - block * _BLOCK, (block + 1) * _BLOCK + reach - bins
        if below > 0:
            kernel[:, block, :, :below] = 0.0
        if above > 0:
            kernel[:, block, :, span - above :] = 0.0
    mass = dos[:, :, : factor.shape[1]].reshape(pairs, curves, blocks, _BLOCK).transpose(0, 2, 1, 3)
    spread = (mass / (kernel @ np.ones(span, np.float32))[:, :, None]) @ kernel
    out = np.zeros((pairs, curves, bins + 2 * reach), dtype=np.float32)
    for block in range(blocks):
        out[:, :, block * _BLOCK : block * _BLOCK + span] += spread[:, block]
    return out[:, :, reach : reach + bins]


def binned_kernel(edges: FloatArray, at: FloatArray, sigma: FloatArray) -> NDArray[np.float32]:
    """Return how lines are shared out between wide bins; what falls outside of them is lost.

    Args:
        edges: (P, m + 1) edges of the bins.
        at: (n,) places of the lines.
        sigma: (P, n) standard deviations, in the same unit.

    Returns:
        (P, m, n) shares.
    """
    import torch  # here: whoever reads a spectrum needs none

    place = ((edges[:, :, None] - at) / sigma[:, None]).astype(np.float32)
    return np.diff(torch.special.ndtr(torch.from_numpy(place)).numpy(), axis=1)


def smoothed(
    density: NDArray[np.floating[Any]], sigma: FloatArray, reach: NDArray[np.int_]
) -> NDArray[np.floating[Any]]:
    """Convolve curves with Gaussians; zero lies outside, so that what falls off is lost.

    Args:
        density: (P, cells) values.
        sigma: (P,) standard deviations, in cells.
        reach: (P,) distances at which they are cut, in cells.

    Returns:
        (P, cells) values.
    """
    cells, distance = density.shape[1], np.arange(int(reach.max()) + 1)
    kernel = np.where(distance <= reach[:, None], np.exp(-0.5 * (distance / sigma[:, None]) ** 2), 0.0)
    # Summed one after the other: zeros at the end, for wider kernels of other curves, change nothing.
    kernel = (kernel / (2.0 * np.cumsum(kernel, axis=1)[:, -1:] - 1.0)).astype(density.dtype)
    far = len(distance) - 1
    padded = np.zeros((len(density), cells + 2 * far), dtype=density.dtype)
    padded[:, far : far + cells] = density
    out, both = density * kernel[:, :1], np.empty_like(density)
    for step in range(1, far + 1):
        np.add(padded[:, far - step :][:, :cells], padded[:, far + step :][:, :cells], out=both)
        both *= kernel[:, step, None]
        out += both
    return np.asarray(out)
