"""The band edge of a host, read from its spectrum: the unit of all relative energies, in training and in use."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import SpectrumError
from defectnet.measure.broadening import smoothed
from defectnet.measure.curves import cumulative, integrals

FloatArray = NDArray[np.float64]
Curves = NDArray[np.floating[Any]]

EDGE_THRESHOLD: Final = 0.05
"""Share of the maximum at which a DOS ends."""

_CELLS: Final = 640  # in which the edge is looked for; two or three to a standard deviation of the smoothing
_INSIDE: Final = 0.95  # share of the area that lies below the energy that the smoothing is relative to
_SMOOTHING: Final = 0.015
_BRANCH: Final = 0.005  # share of the area: less is noise; one branch of a 28-atom cell holds 1.2 %

_QUIET: Final = 0.0015  # of the maximum: noise of the smoothed DOS, in its quietest window, that needs no care
_FEWEST: Final = 90  # points: fewer do not tell noise from structure
_WINDOWS: Final = (5, 16)  # in which noise is looked for, fewest and most
_WINDOW_POINTS: Final = 12  # if there are enough: where negative values were cut, fewer may all be zero
_SIGNIFICANT: Final = 4.5  # standard deviations of the noise above which a smoothed DOS is one
_BEYOND: Final = 1.5  # edges that must have been measured: with less, little noise lies where it can do harm
_REST: Final = 0.03  # of the area: as much background, or tail of the DOS, may lie above the edge
_LOUDEST: Final = 0.06  # of the maximum: what scatters more is structure that the points do not resolve
_TOP: Final = 0.85  # of the energies: above, there is nothing but noise if there is room for it
_CUT: Final = 0.25  # share of points there that are exactly zero, from which on negative values are taken to be cut
_CUT_SIGMA, _CUT_MEAN = 0.5838, 0.3989  # deviation and mean of normal noise whose negative values are zero


def band_edges(
    energy: FloatArray,
    dos: Curves,
    *,
    total: FloatArray | None = None,
    span: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None,
    unit_mev: FloatArray | float = 1.0,
    source: str = "host",
) -> FloatArray:
    """Find the upper band edges of hosts.

    It is the highest energy at which the DOS, lightly smoothed, is still 5 % of its maximum. The Gaussian's sigma is
    1.5 % of the energy below which 95 % of the DOS lie. A stretch above 5 % that holds less than 0.5 % of the area is
    noise, not a phonon branch, and does not count.

    Noise that is there at all energies, whatever the signal, would make both the 95 % and the stretches. It is told
    from structure by the quietest part of the spectrum: where even there the smoothed DOS scatters by 0.15 % of its
    maximum, the 95 % are of what stands out of the noise, and 5 % become 4.5 standard deviations if these are more. The
    edge found so is taken if there are 90 points, which reach half as far again (with less there is no room for the
    noise to do harm) and hold nothing there but noise.

    Args:
        energy: (n,) increasing energies, of all hosts.
        dos: (P, n) DOS in any scale.
        total: (P, n) what `cumulative` returns of `dos`, if it is known.
        span: (P,) first measured points and (P,) numbers of points up to the last one; all by default.
        unit_mev: (P,) or one unit of `energy` in meV, for errors.
        source: What to call the spectra in errors.

    Returns:
        (P,) edges, in the unit of `energy`.

    Raises:
        SpectrumError: A DOS has no area, or the points end while it is still above 5 %.
    """
    total = cumulative(energy, dos) if total is None else total
    if not (total[:, -1] > 0).all():
        raise SpectrumError(f"{source}: the DOS has no area", fix="Give a spectrum that is not zero everywhere")
    smooth, width, sigma = _smooth(energy, dos, total, _reached(energy, total, _INSIDE))
    limit = dos.dtype.type(EDGE_THRESHOLD) * smooth.max(axis=1)
    edges = _ends(smooth, width, limit)
    at_end = np.minimum(dos[:, -1], dos[:, -3:].mean(axis=1)) * width
    step = (energy[-1] - energy[0]) / (len(energy) - 1)
    first, end = span or (np.zeros(len(dos), np.intp), np.full(len(dos), len(energy)))
    quiet = _QUIET * smooth.max(axis=1) / (np.sqrt(_averaged(step, sigma)) * width)
    noisy = np.flatnonzero(_last_noise(dos, end) > quiet) if len(energy) >= _FEWEST else np.zeros(0, np.intp)
    if len(noisy):
        quietest, noise = _noise(energy, dos[noisy], first[noisy], end[noisy])
        noisy, noise = noisy[quietest > quiet[noisy]], noise[quietest > quiet[noisy]]
    if len(noisy):
        found = smooth[noisy], width[noisy], sigma[noisy]
        reach = energy[np.maximum(end[noisy], 1) - 1]
        better, at_end[noisy] = _above_noise(energy, dos[noisy], total[noisy], found, noise, reach)
        edges[noisy] = np.where(np.isnan(better), edges[noisy], better)
    for row in np.flatnonzero(at_end >= limit):
        unit = float(np.broadcast_to(unit_mev, len(dos))[row])
        raise SpectrumError(
            f"{source}: the grid ends below the band edge",
            why=f"the DOS is still {dos[row, -3:].mean() * width[row] / smooth[row].max():.0%} of its maximum at "
            f"{energy[-1] * unit:.4g} meV",
            fix="Give the DOS up to energies where it has fallen to zero",
        )
    return edges


def _ends(smooth: Curves, width: FloatArray, limit: NDArray[np.floating[Any]]) -> FloatArray:
    """Return the (P,) energies at which smoothed cells fall below (P,) limits for the last time, interpolated."""
    at, last = np.arange(len(smooth)), _last_branch(smooth, smooth >= limit[:, None])
    following = np.minimum(last + 1, _CELLS - 1)
    fall = smooth[at, last] - smooth[at, following]
    part = (smooth[at, last] - limit) / np.where(last + 1 < _CELLS, fall, 1.0)
    return np.asarray(np.where(last + 1 < _CELLS, last + 0.5 + part, _CELLS) * width)


def _reached(energy: FloatArray, total: FloatArray, share: float) -> FloatArray:
    """Return the (P,) energies at which a share of the area is first reached."""
    target, at = share * total[:, -1], np.arange(len(total))
    i = np.clip(np.argmax(total >= target[:, None], axis=1), 1, total.shape[1] - 1)
    missing = (total[at, i] - target) / np.maximum(total[at, i] - total[at, i - 1], 1e-30)
    return np.asarray(energy[i] - (energy[i] - energy[i - 1]) * missing)


def _smooth(
    energy: FloatArray, dos: Curves, total: FloatArray, live: FloatArray
) -> tuple[Curves, FloatArray, FloatArray]:
    """Return (P, cells) areas of smoothed cells, their (P,) widths, and the (P,) sigmas of the smoothing."""
    sigma = _SMOOTHING * live
    width = (np.minimum(energy[-1], 4.0 * live) + 4.0 * sigma) / _CELLS
    density = np.diff(integrals(energy, dos, total, width[:, None] * np.arange(_CELLS + 1))).astype(dos.dtype)
    return smoothed(density, sigma / width, np.ceil(4.0 * sigma / width).astype(int)), width, sigma


def _averaged(step: float, sigma: FloatArray) -> FloatArray:
    """Return by how much smoothing lowers the variance of points at this distance."""
    return np.asarray(np.minimum(step / (2.0 * np.sqrt(np.pi) * sigma), 1.0))


def _last_noise(dos: Curves, end: NDArray[np.intp]) -> FloatArray:
    """Estimate the noise of the last measured points alone: nearly every spectrum without noise is known by them."""
    at = np.maximum(end[:, None] - dos.shape[1] // _WINDOWS[1] + np.arange(dos.shape[1] // _WINDOWS[1]), 0)
    bent = np.diff(np.take_along_axis(dos, at, axis=1), 2, axis=1)
    return np.asarray(np.sqrt((bent**2).mean(axis=1) / 6.0), dtype=np.float64)


def _noise(
    energy: FloatArray, dos: Curves, first: NDArray[np.intp], end: NDArray[np.intp]
) -> tuple[FloatArray, FloatArray]:
    """Estimate the noise of points that is there at all energies, by how they leave the line through their neighbours.

    Structure does so too, but not everywhere: of windows, the quietest tells whether there is noise, and as it is quiet
    by chance, too, one of the next (the third of sixteen) how much.

    Returns:
        (P,) standard deviations in the quietest window, and in the other one.
    """
    t = ((energy[1:-1] - energy[:-2]) / (energy[2:] - energy[:-2])).astype(dos.dtype)
    off = dos[:, 1:-1] - (dos[:, :-2] * (1.0 - t) + dos[:, 2:] * t)
    off *= off
    off /= 1.0 + t**2 + (1.0 - t) ** 2
    running = np.zeros((len(dos), off.shape[1] + 1))
    np.cumsum(off, axis=1, dtype=np.float64, out=running[:, 1:])
    points = off.shape[1]
    end = np.maximum(np.minimum(end - 2, points), first + 2)
    windows = int(np.clip(points // _WINDOW_POINTS, *_WINDOWS))
    cuts = (first[:, None] + (end - first)[:, None] * np.linspace(0.0, 1.0, windows + 1)).astype(np.intp)
    cuts = np.minimum(cuts, points)
    sums = np.diff(np.take_along_axis(running, cuts, axis=1)) / np.maximum(np.diff(cuts), 1)
    ordered = np.sqrt(np.sort(np.maximum(sums, 0.0), axis=1))
    return ordered[:, 0], ordered[:, windows // 6]


def _above_noise(
    energy: FloatArray,
    dos: Curves,
    total: FloatArray,
    found: tuple[Curves, FloatArray, FloatArray],
    noise: FloatArray,
    reach: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Find the edges of noisy spectra by what stands out of their noise.

    Returns:
        (P,) edges, not a number where more than noise lies above them or too few points do; and the (P,) least areas
        that a cell at the last points can have.
    """
    step, at = (energy[-1] - energy[0]) / (len(energy) - 1), np.arange(len(dos))
    top = (energy > _TOP * reach[:, None]) & (energy <= reach[:, None])
    cut = (dos.min(axis=1) >= 0.0) & (((dos == 0.0) & top).sum(axis=1) > _CUT * top.sum(axis=1))
    noise = np.where(cut, noise / _CUT_SIGMA, noise)
    level = np.where(cut, _CUT_MEAN * noise, 0.0)
    smooth, width, sigma = found
    for _ in range(2):  # the first width is that of noise and all
        above = np.maximum(smooth - ((level + 2.0 * noise * np.sqrt(_averaged(step, sigma))) * width)[:, None], 0.0)
        running = np.cumsum(above, axis=1, dtype=np.float64)
        target = _INSIDE * running[:, -1]
        i = np.argmax(running >= target[:, None], axis=1)
        live = (i + 1 - (running[at, i] - target) / np.maximum(above[at, i], 1e-30)) * width
        smooth, width, sigma = _smooth(energy, dos, total, live)
    least = level + _SIGNIFICANT * noise * np.sqrt(_averaged(step, sigma))
    limit = np.maximum(EDGE_THRESHOLD * smooth.max(axis=1), least * width)
    at_end = np.minimum(dos[:, -1] - 2.0 * noise, dos[:, -3:].mean(axis=1) - 2.0 * noise / np.sqrt(3.0)) - level
    edges = _ends(smooth, width, limit)
    beyond = np.maximum(reach - edges, 0.0)
    rest = total[:, -1] - integrals(energy, dos, total, edges[:, None])[:, 0] - level * beyond
    empty = np.abs(rest) < _SIGNIFICANT * noise * np.sqrt(step * beyond) + _REST * total[:, -1]
    usable = empty & (reach > _BEYOND * edges) & (noise < _LOUDEST * dos.max(axis=1))
    return np.where(usable, edges, np.nan), at_end * found[1]


def _last_branch(smooth: Curves, above: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return the (P,) last cells of the highest stretches above the limit that hold enough of the area."""
    at, cells = np.arange(len(smooth)), smooth.shape[1]
    running = np.zeros((len(smooth), cells + 1))
    np.cumsum(smooth, axis=1, dtype=np.float64, out=running[:, 1:])
    last = first = cells - 1 - np.argmax(above[:, ::-1], axis=1)
    searched = np.ones(len(smooth), dtype=bool)
    while True:
        # Counted from the end, so that the first of the cells below the limit is the last before this stretch.
        below = ~above[:, ::-1] & (np.arange(cells)[::-1] < last[:, None])
        before = np.where(below.any(axis=1), cells - 1 - np.argmax(below, axis=1), -1)  # -1: from zero energy on
        small = searched & (running[at, last + 1] - running[at, before + 1] < _BRANCH * running[:, -1])
        if not small.any():
            return np.asarray(last)
        lower = above[:, ::-1] & (np.arange(cells)[::-1] <= before[:, None])
        searched = small & lower.any(axis=1)
        # A DOS of nothing but lines that are too small ends with its highest.
        last = np.where(searched, cells - 1 - np.argmax(lower, axis=1), np.where(small, first, last))
