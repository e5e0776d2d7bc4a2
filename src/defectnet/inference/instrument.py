"""How computed spectra of a host pack reach the bins in which a measured pair is compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.special import ndtr

from defectnet.config import STORAGE_GRID
from defectnet.crystal.spectra import element_weights
from defectnet.measure.broadening import FWHM_TO_SIGMA
from defectnet.potentials.kernel_polynomial import REACH_OF_GAUSSIAN

FloatArray = NDArray[np.float64]

KNOTS: Final = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])
"""Energies over the edge at which the map of energies is free; linear between, constant beyond."""

STIFF: Final = 0.03
"""Prior deviation of the map's logarithm at a knot: two potentials differ by some hundredths in a phonon energy."""

SAME: Final = 0.001
"""The same of differences between knots where the potential is the spectra's own: then an axis is off by a factor."""

UNRESOLVED: Final = 0.01
"""Weight of the host's misfit against that prior: root mean square of a DOS, over its own, that is not explained."""

SHARP_UNRESOLVED: Final = 0.05
"""The same of a spectrum as sharp as it is, where potentials differ: their peaks do not match one by one, and to bring
them together bends the map too far."""

WIDTH: Final = (0.03, 0.6)
"""Prior of the resolution where it is not known: FWHM in edges, and deviation of its logarithm."""

FITS: Final = 5.0
"""Cost below which a fit needs no other start: some 3 % of the host's DOS are left."""

WIDTHS: Final = (0.005, 0.2)
"""Narrowest and widest FWHM, in edges, that is looked for."""

SHARP: Final = 0.03
"""Root mean square, over its own, by which a spectrum may differ from one that is blurred throughout."""


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
        near = np.abs(z) < REACH_OF_GAUSSIAN
        below = (z > 0.0).astype(np.float64)
        below[near] = ndtr(z[near])
        # What a Gaussian puts below zero energy is mirrored, as at a wall.
        low = at < REACH_OF_GAUSSIAN * sigma
        below[:, low] -= ndtr((-self.edges[:, None] - at[low]) / sigma)
        return np.diff(below, axis=0)

    def seen(self, elements: Sequence[str], dos: FloatArray) -> FloatArray:
        """Return the (..., M) DOS per edge in the bins, of unit area, of (..., E, L) projected DOS."""
        curve = np.einsum("e,...el->...l", element_weights(tuple(elements), self.kind, self.element), dos)
        shares = curve @ self.operator().T
        return np.asarray(shares / shares.sum(-1, keepdims=True) / self.width)


def widest(middle: FloatArray, measured: FloatArray, noise: float) -> float:
    """Return the largest resolution that a spectrum can have been measured with: its sharpest structure tells.

    Whatever the DOS, a Gaussian has broadened it: it must be one of the curves that a Gaussian makes of positive ones.
    Without this bound a host that the potential describes badly is taken for a blurred one.

    Args:
        middle: (M,) middles of the bins, any unit.
        measured: (M,) spectrum.
        noise: Sum of the variances of its bins.

    Returns:
        FWHM in the unit of `middle`, within `WIDTHS`.
    """
    allowed = (SHARP**2) * float((measured**2).sum()) + 2.0 * noise
    low, high = np.log(WIDTHS[0]), np.log(WIDTHS[1])
    for _ in range(6):
        log_fwhm = 0.5 * (low + high)
        kernel = gaussian_kernel(middle, np.exp(log_fwhm))
        try:
            blurred = bool(nnls(kernel, measured, maxiter=30 * len(middle))[1] ** 2 <= allowed)
        except RuntimeError:  # wide kernels are all but singular: nothing speaks against one that ends nowhere
            blurred = True
        if blurred:
            low = log_fwhm
        else:
            high = log_fwhm
    return float(np.exp(high))


def gaussian_kernel(middle: FloatArray, fwhm: float) -> FloatArray:
    """Return the (M, M) matrix that broadens a spectrum in bins; what would leave them at an end stays."""
    kernel = np.exp(-0.5 * ((middle[:, None] - middle) / (fwhm * FWHM_TO_SIGMA)) ** 2)
    return np.asarray(kernel / kernel.sum(0))


def fit_instrument(
    start: InstrumentMap,
    elements: Sequence[str],
    dos: FloatArray,
    measured: FloatArray,
    *,
    noise: float = 0.0,
    same_potential: bool = False,
    coarse: float = 0.0,
) -> InstrumentMap:
    """Refine the map of energies, and the resolution where it is not known, by the pristine crystal's spectrum.

    Args:
        start: Bins, kind, and `fwhm`: 0 where it is not known.
        elements: Of the host.
        dos: (E, L) its computed projected DOS, from a fine mesh of wave vectors.
        measured: (M,) its measured DOS in the bins, unit area.
        noise: Sum of the variances of its bins.
        same_potential: It was simulated with the potential of `dos`.
        coarse: FWHM at which both should agree above all; 0 for the spectrum's own.

    Returns:
        The instrument under which the two agree best.
    """
    known = start.fwhm > 0.0
    bend = SAME if same_potential else STIFF
    size = float(np.sqrt((measured**2).sum()))
    smooth = gaussian_kernel(start.middle, coarse) / (size * UNRESOLVED) if coarse else np.zeros((0, len(measured)))
    scale = size * (SHARP_UNRESOLVED if coarse else UNRESOLVED)

    def built(values: FloatArray) -> InstrumentMap:
        fwhm = start.fwhm if known else float(np.exp(values[-1]))
        return InstrumentMap(start.edges, fwhm, start.kind, start.element, tuple(values[: len(KNOTS)]))

    def misfit(values: FloatArray) -> FloatArray:
        rest = built(values).seen(elements, dos) - measured
        prior = np.append(values[: len(KNOTS)] / STIFF, np.diff(values[: len(KNOTS)]) / bend)
        width = [] if known else [(values[-1] - np.log(WIDTH[0])) / WIDTH[1]]
        return np.concatenate([rest / scale, smooth @ rest, prior, width])

    low, high = np.log(WIDTHS[0]), 0.0 if known else np.log(1.02 * widest(start.middle, measured, noise))
    best = None
    # A shift by a whole peak is a minimum of its own: several starts, until one fits.
    for shift in (0.0, -0.03, 0.03, -0.06, 0.06):
        values = np.full(len(KNOTS) + (not known), shift)
        lower, upper = np.full(len(KNOTS), -0.3), np.full(len(KNOTS), 0.3)
        if not known:
            values[-1] = min(np.log(WIDTH[0]), 0.5 * (low + high))
            lower, upper = np.append(lower, low), np.append(upper, high)
        found = least_squares(misfit, values, bounds=(lower, upper), diff_step=np.full(len(values), 1e-4))
        if best is None or found.cost < best.cost:
            best = found
        if best.cost < FITS:
            break
    assert best is not None
    return built(best.x)
