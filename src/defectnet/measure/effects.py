"""The steps of a measurement, on curves (P, 2, N) of P pairs on the N bins of `STORAGE_GRID`: host and doped sample."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.elements import NEUTRON_WEIGHT
from defectnet.measure.broadening import broaden
from defectnet.measure.settings import NOISE_BIN, Conditions
from defectnet.spectrum import KINDS

FloatArray = NDArray[np.float64]
Curves = NDArray[np.float32]

_CENTRES: Final = STORAGE_GRID.centres
_BINS: Final = np.arange(STORAGE_GRID.bins)
_BACKGROUND: Final = np.stack([np.ones(STORAGE_GRID.bins), (1.0 - _CENTRES / 3.0) ** 2, _CENTRES / 3.0])
_IN_BAND: Final = int(np.searchsorted(_CENTRES, 1.0))  # bins below the edge


def element_weights(
    elements: NDArray[np.intp], starts: NDArray[np.intp], kind: NDArray[np.intp], uniform: FloatArray
) -> tuple[NDArray[np.intp], FloatArray]:
    """Return what the projected DOS of each element counts for.

    Args:
        elements: (T,) positions in the vocabulary of all rows of projected DOS: host, doped, host, doped and so on.
        starts: (2 P,) first row of each curve.
        kind: (P,) wished kinds, index into `KINDS`.
        uniform: (P,) numbers that choose the element of a projected DOS.

    Returns:
        (P,) kinds, of which what cannot be projected is total; and (T,) weights.
    """
    cuts = np.append(starts, len(elements))
    kind = kind.copy()
    neutron = np.repeat(kind, cuts[2::2] - cuts[:-1:2]) == KINDS.index("neutron-weighted")
    weights = np.where(neutron, NEUTRON_WEIGHT[elements], 1.0)
    for i in np.flatnonzero(kind == KINDS.index("projected")):
        host, doped = elements[cuts[2 * i] : cuts[2 * i + 1]], elements[cuts[2 * i + 1] : cuts[2 * i + 2]]
        # Sorted: the order of a row's elements must not matter.
        common = np.intersect1d(host, doped)
        if len(common):
            chosen = common[int(uniform[i] * len(common))]
            weights[cuts[2 * i] : cuts[2 * i + 2]] = elements[cuts[2 * i] : cuts[2 * i + 2]] == chosen
        else:
            kind[i] = KINDS.index("total")
    return kind, weights


def with_resolution(dos: Curves, edge_mev: FloatArray, given: Conditions) -> Curves:
    """Broaden pairs; host and doped sample alike unless their resolutions differ."""
    out = broaden(dos, edge_mev, given.fwhm_mev, given.fwhm_growth)
    other = np.flatnonzero(given.fwhm_ratio != 1.0)
    if len(other):
        # Pairs, of which only the sample is taken: products of other shapes are rounded otherwise on some machines.
        fwhm = given.fwhm_ratio[other] * given.fwhm_mev[other]
        out[other, 1] = broaden(dos[other], edge_mev[other], fwhm, given.fwhm_growth[other])[:, 1]
    return out


def with_background(dos: Curves, share: FloatArray, uniform: FloatArray) -> Curves:
    """Add what a smooth background leaves: constant, falling and rising with energy, in random proportions.

    Args:
        dos: (P, 2, N) curves.
        share: (P, 2) area relative to that of the curve; negative where too much was subtracted.
        uniform: (P, 2, 3) numbers in (0, 1] that choose the proportions.
    """
    if not share.any():
        return dos
    parts = -np.log(uniform)  # in proportion, these are uniform on the simplex
    area = (parts * _BACKGROUND.sum(axis=1)).sum(axis=2)
    factor = share * dos.sum(axis=2) / np.maximum(area, 1e-30)
    flat, falling, rising = np.moveaxis((parts * factor[..., None]).astype(dos.dtype)[..., None], 2, 0)
    shape = _BACKGROUND.astype(dos.dtype)
    return np.asarray(dos + (flat + falling * shape[1] + rising * shape[2]))


def with_multiphonon(dos: Curves, share: FloatArray) -> Curves:
    """Add what scattering by two phonons leaves: the DOS convolved with itself, up to twice the edge.

    Args:
        dos: (P, 2, N) curves without noise.
        share: (P,) area relative to that of the curve.
    """
    some = np.flatnonzero(share)
    if not len(some):
        return dos
    bins = dos.shape[2]
    # Twice as many points, so that the end does not run into the beginning.
    both = np.fft.irfft(np.fft.rfft(dos[some].astype(np.float64), 2 * bins) ** 2, 2 * bins)[..., :bins]
    both = np.maximum(both, 0.0)
    factor = share[some, None] * dos[some].sum(axis=2) / np.maximum(both.sum(axis=2), 1e-30)
    out = dos.copy()
    out[some] += (both * factor[..., None]).astype(dos.dtype)
    return out


def with_elastic(dos: Curves, share: FloatArray, fwhm: FloatArray) -> Curves:
    """Add what the wings of the elastic line leave, a Lorentzian that was converted to a DOS with all the rest.

    Conversion multiplies by the energy, so that it rises up to half the width of the line and falls slowly above.

    Args:
        dos: (P, 2, N) curves.
        share: (P,) area up to the edge relative to that of the curve.
        fwhm: (P,) width of the elastic line in units of the edge.
    """
    if not share.any():
        return dos
    wing = _CENTRES / (_CENTRES**2 + (0.5 * fwhm[:, None]) ** 2)
    wing /= wing[:, :_IN_BAND].sum(axis=1, keepdims=True)
    return np.asarray(dos + (share[:, None] * wing)[:, None].astype(dos.dtype) * dos.sum(axis=2, keepdims=True))


def with_noise(dos: Curves, given: Conditions, rngs: Any) -> Curves:
    """Add counting noise, whose variance is proportional to the signal, and noise that is the same everywhere.

    Below zero the curves are cut where counting noise is all there is: it leaves nothing there.

    Args:
        dos: (P, 2, N) curves.
        given: `noise` and `floor`: standard deviations at the peak, relative to the peak, in a bin of `NOISE_BIN`.
        rngs: One generator for each pair.
    """
    if not (given.noise.any() or given.floor.any()):
        return dos
    counting, constant = np.zeros_like(dos), np.zeros_like(dos)
    for number, rng in enumerate(rngs):
        if given.noise[number]:
            rng.standard_normal(out=counting[number], dtype=np.float32)
        if given.floor[number]:
            rng.standard_normal(out=constant[number], dtype=np.float32)
    per_bin = np.float32(np.sqrt(NOISE_BIN / STORAGE_GRID.width))
    peak = dos.max(axis=2, keepdims=True)
    # Normal in place of Poisson: the two agree above some tens of counts, and a 3 % noise means 1,000 at the peak.
    counting *= np.sqrt(np.maximum(dos, 0.0) * peak)
    # (P, 2, 1): one of the two may have been measured for longer, or in wider bins.
    apart = np.minimum(np.stack([1.0 / given.noise_ratio, given.noise_ratio], axis=1), 1.0)[..., None]
    counting *= (given.noise[:, None, None] * apart).astype(np.float32) * per_bin
    counting += dos
    least = np.where(given.floor > 0, -np.inf, np.where(given.noise > 0, 0.0, -np.inf)).astype(np.float32)
    if given.floor.any():
        constant *= peak * ((given.floor[:, None, None] * apart).astype(np.float32) * per_bin)
        counting += constant
    return np.asarray(np.maximum(counting, least[:, None, None], out=counting))


def cut_off(dos: Curves, low: FloatArray, high: FloatArray, start: FloatArray) -> Curves:
    """Cut the range that was not measured, in place.

    Args:
        dos: (P, 2, N) curves.
        low: (P,) energies below which the curve goes on as energy squared, in units of the edge.
        high: (P,) energies above which there is nothing.
        start: (P, 2) energies below which there is nothing.
    """
    first, last = np.searchsorted(_CENTRES, low), np.searchsorted(_CENTRES, high)
    if (last < STORAGE_GRID.bins).any():
        dos *= (last[:, None, None] > _BINS).astype(dos.dtype)
    below, at = int(first.max(initial=0)), np.arange(len(dos))
    if below:
        level = (dos[at, :, first] + dos[at, :, first + 1] + dos[at, :, first + 2]) / 3.0
        foot = (_CENTRES[:below] / _CENTRES[first][:, None]) ** 2
        debye = level[:, :, None] * foot[:, None].astype(dos.dtype)
        dos[:, :, :below] = np.where(_BINS[:below] < first[:, None, None], debye, dos[:, :, :below])
    begin = np.searchsorted(_CENTRES, start)
    if begin.any():
        dos *= (begin[..., None] <= _BINS).astype(dos.dtype)
    return dos
