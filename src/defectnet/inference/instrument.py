"""How computed spectra of a host pack reach the bins in which a measured pair is compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtr

from defectnet.config import STORAGE_GRID
from defectnet.crystal.spectra import element_weights
from defectnet.measure.broadening import FWHM_TO_SIGMA

FloatArray = NDArray[np.float64]

KNOTS: Final = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
"""Energies over the edge at which the map of energies is free; linear between, constant beyond."""

STIFF: Final = 0.03
"""Prior deviation of the map's logarithm at a knot: two potentials differ by some hundredths in a phonon energy."""

UNRESOLVED: Final = 0.01
"""Weight of the host's misfit against that prior: root mean square of a DOS, over its own, that is not explained."""

FITS: Final = 5.0
"""Cost below which a fit needs no other start: some 3 % of the host's DOS are left."""

WIDTHS: Final = (0.005, 0.2)
"""Narrowest and widest FWHM, in edges, that is looked for."""


REACH: Final = 9.0
"""Deviations beyond which nothing of a Gaussian is left in double precision."""


@dataclass(frozen=True)
class InstrumentMap:
    """A linear map from projected DOS on `STORAGE_GRID` to M bins of measured energy.

    Attributes:
        edges: (M + 1,) edges of the bins, in units of the pack's edge.
        fwhm: Of the Gaussian that a measurement broadens with, same unit.
        kind, element: How elements are weighted, see `defectnet.spectrum.KINDS`.
        log_scale: (len(KNOTS),) logarithm of measured over computed energies, at `KNOTS`.
    """

    edges: FloatArray
    fwhm: float
    kind: str = "total"
    element: str | None = None
    log_scale: tuple[float, ...] = (0.0,) * len(KNOTS)

    @property
    def width(self) -> FloatArray:
        """(M,) widths of the bins."""
        return np.diff(self.edges)

    @property
    def middle(self) -> FloatArray:
        """(M,) middles of the bins."""
        return np.asarray(0.5 * (self.edges[1:] + self.edges[:-1]))

    def scale(self) -> FloatArray:
        """Return the (M,) ratio of measured to computed energies at the bins' middles."""
        return np.exp(np.interp(self.middle, KNOTS, self.log_scale))

    def operator(self) -> FloatArray:
        """Return the (M, L) share of each bin of `STORAGE_GRID` that comes to lie in each bin; columns sum to <= 1."""
        at = STORAGE_GRID.centres * np.exp(np.interp(STORAGE_GRID.centres, KNOTS, self.log_scale))
        sigma = max(self.fwhm * FWHM_TO_SIGMA, 0.3 * STORAGE_GRID.width)
        z = (self.edges[:, None] - at) / sigma
        near = np.abs(z) < REACH
        below = (z > 0.0).astype(np.float64)
        below[near] = ndtr(z[near])
        # What a Gaussian puts below zero energy is mirrored, as at a wall.
        low = at < REACH * sigma
        below[:, low] -= ndtr((-self.edges[:, None] - at[low]) / sigma)
        return np.diff(below, axis=0)

    def seen(self, elements: Sequence[str], dos: FloatArray) -> FloatArray:
        """Return the (..., M) DOS per edge in the bins, of unit area, of (..., E, L) projected DOS."""
        curve = np.einsum("e,...el->...l", element_weights(tuple(elements), self.kind, self.element), dos)
        shares = curve @ self.operator().T
        return np.asarray(shares / shares.sum(-1, keepdims=True) / self.width)


def fit_instrument(
    start: InstrumentMap, elements: Sequence[str], dos: FloatArray, measured: FloatArray
) -> InstrumentMap:
    """Refine the map of energies, and the resolution where it is not known, by the pristine crystal's spectrum.

    Args:
        start: Bins, kind, and `fwhm`: 0 where it is not known.
        elements: Of the host.
        dos: (E, L) its computed projected DOS, from a fine mesh of wave vectors.
        measured: (M,) its measured DOS in the bins, unit area.

    Returns:
        The instrument under which the two agree best.
    """
    known = start.fwhm > 0.0
    scale = np.sqrt((measured**2).mean()) * UNRESOLVED * np.sqrt(len(measured))

    def built(values: FloatArray) -> InstrumentMap:
        fwhm = start.fwhm if known else float(np.exp(values[-1]))
        return InstrumentMap(start.edges, fwhm, start.kind, start.element, tuple(values[: len(KNOTS)]))

    def misfit(values: FloatArray) -> FloatArray:
        rest = built(values).seen(elements, dos) - measured
        prior = np.append(values[: len(KNOTS)] / STIFF, np.diff(values[: len(KNOTS)]) / STIFF)
        return np.concatenate([rest / scale, prior])

    low, high = np.log(WIDTHS[0]), np.log(WIDTHS[1])
    best = None
    # A shift by a whole peak is a minimum of its own: several starts, until one fits.
    for shift in (0.0, -0.03, 0.03, -0.06, 0.06):
        values = np.full(len(KNOTS) + (not known), shift)
        bounds = np.full(len(KNOTS), 0.3)
        lower, upper = -bounds, bounds
        if not known:
            values[-1] = np.log(0.03)
            lower, upper = np.append(lower, low), np.append(upper, high)
        found = least_squares(misfit, values, bounds=(lower, upper), diff_step=np.full(len(values), 1e-4))
        if best is None or found.cost < best.cost:
            best = found
        if best.cost < FITS:
            break
    assert best is not None
    return built(best.x)
