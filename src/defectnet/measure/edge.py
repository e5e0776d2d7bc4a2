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


def band_edges(
    energy: FloatArray,
    dos: Curves,
    *,
    total: FloatArray | None = None,
    unit_mev: FloatArray | float = 1.0,
    source: str = "host",
) -> FloatArray:
    """Find the upper band edges of hosts.

    It is the highest energy at which the DOS, lightly smoothed, is still 5 % of its maximum. The Gaussian's sigma is
    1.5 % of the energy below which 95 % of the DOS lie. A stretch above 5 % that holds less than 0.5 % of the area is
    noise, not a phonon branch, and does not count.

    Args:
        energy: (n,) increasing energies, of all hosts.
        dos: (P, n) DOS in any scale.
        total: (P, n) what `cumulative` returns of `dos`, if it is known.
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
    at = np.arange(len(dos))
    live = _reached(energy, total, _INSIDE)
    sigma = _SMOOTHING * live
    width = (np.minimum(energy[-1], 4.0 * live) + 4.0 * sigma) / _CELLS
    density = np.diff(integrals(energy, dos, total, width[:, None] * np.arange(_CELLS + 1))).astype(dos.dtype)
    smooth = smoothed(density, sigma / width, np.ceil(4.0 * sigma / width).astype(int))
    limit = dos.dtype.type(EDGE_THRESHOLD) * smooth.max(axis=1)
    at_end = np.minimum(dos[:, -1], dos[:, -3:].mean(axis=1)) * width
    for row in np.flatnonzero(at_end >= limit):
        unit = float(np.broadcast_to(unit_mev, len(dos))[row])
        raise SpectrumError(
            f"{source}: the grid ends below the band edge",
            why=f"the DOS is still {dos[row, -3:].mean() * width[row] / smooth[row].max():.0%} of its maximum at "
            f"{energy[-1] * unit:.4g} meV",
            fix="Give the DOS up to energies where it has fallen to zero",
        )
    last = _last_branch(smooth, smooth >= limit[:, None])
    following = np.minimum(last + 1, _CELLS - 1)
    step = smooth[at, last] - smooth[at, following]
    part = (smooth[at, last] - limit) / np.where(last + 1 < _CELLS, step, 1.0)
    return np.asarray(np.where(last + 1 < _CELLS, last + 0.5 + part, _CELLS) * width)


def _reached(energy: FloatArray, total: FloatArray, share: float) -> FloatArray:
    """Return the (P,) energies at which a share of the area is first reached."""
    target, at = share * total[:, -1], np.arange(len(total))
    i = np.clip(np.argmax(total >= target[:, None], axis=1), 1, total.shape[1] - 1)
    missing = (total[at, i] - target) / np.maximum(total[at, i] - total[at, i - 1], 1e-30)
    return np.asarray(energy[i] - (energy[i] - energy[i - 1]) * missing)


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
