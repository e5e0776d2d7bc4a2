"""All steps of a measurement, for many pairs at a time.

Host and doped sample are measured on the same instrument: they share weighting, resolution, energy calibration and
range (but for what a setting makes different), and have their own noise. Each pair has its own generator, and every
operation treats every row alike: a pair comes out the same, to the bit, whatever it is batched with.

Shape letters: P pairs, T rows of projected DOS of all of them, N the bins of `STORAGE_GRID`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defectnet.config import MODEL_GRID, PROJECTED_BINS, STORAGE_GRID, Grid
from defectnet.elements import VOCABULARY
from defectnet.measure.broadening import binned_kernel, line_sigma
from defectnet.measure.curves import cumulative, rebin, unit_area
from defectnet.measure.edge import band_edges
from defectnet.measure.effects import (
    cut_off,
    element_weights,
    with_background,
    with_elastic,
    with_multiphonon,
    with_noise,
    with_resolution,
)
from defectnet.measure.settings import Conditions, Measurement

FloatArray = NDArray[np.float64]

_CENTRES: Final = STORAGE_GRID.centres
_COARSE: Final = 4  # bins taken together where projected DOS go onto bins eight times as wide
_LEAST_AREA: Final = 0.3  # of a spectrum without noise, that is left with noise
_TOGETHER: Final = 4  # rows of projected DOS in one product of matrices
_HIGHEST_FOOT: Final = 0.2  # of the edge: no more than this is continued by Debye's law


class ProjectedPairs(NamedTuple):
    """Projected DOS of many pairs: the rows of host, doped, host, doped and so on, one after the other.

    Attributes:
        dos: (T, N) float32 projected DOS in any scale.
        areas: (T,) area that each of them has.
        elements: (T,) positions of their elements in the vocabulary; one may stand in a curve repeatedly.
        starts: (2 P,) first row of each curve.
        edge_mev: (P,) units of the relative energies.
    """

    dos: NDArray[np.float32]
    areas: NDArray[np.floating[Any]]
    elements: NDArray[np.intp]
    starts: NDArray[np.intp]
    edge_mev: FloatArray

    def curves(self, weights: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Sum over the elements.

        Args:
            weights: (T,) what the area of each projected DOS counts for.

        Returns:
            (P, 2, N) curves of unit area.
        """
        scale = (weights * self.areas / np.maximum(self.dos.sum(axis=1), 1e-30)).astype(np.float32)
        rows = np.diff(self.starts, append=len(scale))
        curves = self.dos[self.starts] * scale[self.starts, None]
        for number in range(1, int(rows.max())):  # the second row of all curves, the third and so on
            more = np.flatnonzero(rows > number)
            at = self.starts[more] + number
            curves[more] += self.dos[at] * scale[at, None]
        curves = unit_area(curves, STORAGE_GRID.width)
        return np.asarray(curves.reshape(len(self.edge_mev), 2, STORAGE_GRID.bins))


class MeasuredPairs(NamedTuple):
    """Measured pairs on a common grid.

    Attributes:
        host: (P, L) float32 DOS of the host per relative energy, unit area.
        doped: (P, L) float32 the same of the doped sample, in units of the *host's* observed edge.
        edge_mev: (P,) band edge as read from the measured host, in meV.
        kind: (P,) index into `defectnet.spectrum.KINDS`.
        projected: (P, 2, E, N) DOS of each element in host and doped sample, see `defectnet.batch.Targets`; if wanted.
    """

    host: NDArray[np.float32]
    doped: NDArray[np.float32]
    edge_mev: FloatArray
    kind: NDArray[np.intp]
    projected: NDArray[np.float32] | None = None


def measure_pairs(
    pairs: ProjectedPairs,
    measurement: Measurement,
    rngs: Sequence[np.random.Generator],
    *,
    grid: Grid = MODEL_GRID,
    projected: bool = False,
) -> MeasuredPairs:
    """Measure pairs: weight, mis-scale, broaden, add background and noise, cut, and put on the common grid.

    The grid is relative to the edge that is read from the *measured* host, as it will be for a user's data.

    Args:
        pairs: Projected DOS of P pairs.
        measurement: Instrument and conditions.
        rngs: One generator for each pair, the source of every random choice on it.
        grid: Grid of the result.
        projected: Whether the DOS of each element is wanted too.
    """
    given = Conditions.draw(measurement, rngs)
    kind, weights = element_weights(pairs.elements, pairs.starts, given.kind, given.element)
    edge = pairs.edge_mev * given.energy_factor
    curves = with_resolution(pairs.curves(weights), edge, given)
    curves = with_multiphonon(curves, given.multiphonon)
    curves = with_background(curves, given.background, given.shapes)
    curves = with_elastic(curves, given.elastic, given.fwhm_mev / edge)
    starts = np.stack([given.start, given.doped_start], axis=1)
    cuts = np.minimum(given.cut_low_mev / edge, _HIGHEST_FOOT), given.cut_high, starts
    noisy = with_noise(curves, given, rngs)
    seen = cut_off(noisy.copy() if noisy is curves else noisy, *cuts)
    # Noise that drowns a spectrum, or a range that begins above it (of a heavy atom between light ones), leaves nothing
    # to measure: nobody would show the pair, and it is shown without.
    drowned = np.flatnonzero((seen.sum(axis=2) < _LEAST_AREA * curves.sum(axis=2)).any(axis=1))
    if len(drowned):
        seen[drowned] = cut_off(curves[drowned], cuts[0][drowned], cuts[1][drowned], 0.0 * starts[drowned])
    curves = seen
    total = cumulative(_CENTRES, curves)
    span = np.searchsorted(_CENTRES, given.start), np.searchsorted(_CENTRES, given.cut_high)
    observed = band_edges(_CENTRES, curves[:, 0], total=total[:, 0], span=span, unit_mev=edge)
    # On an axis that reads too high a bin holds what truly lies lower.
    unit = observed[:, None] / np.stack([np.ones_like(given.doped_factor), given.doped_factor], axis=1)
    result = rebin(_CENTRES, curves, unit, grid, total=total)
    parts = None
    if projected:
        parts = _projected(pairs, given.fwhm_mev / edge, given.fwhm_growth, observed, grid.reach)
    return MeasuredPairs(result[:, 0], result[:, 1], observed * edge, kind, parts)


def _projected(
    pairs: ProjectedPairs, fwhm: FloatArray, growth: FloatArray, observed: FloatArray, reach: float
) -> NDArray[np.float32]:
    """Broaden projected DOS and put them on `PROJECTED_BINS` bins; no background, noise or cuts.

    Args:
        pairs: Projected DOS of P pairs.
        fwhm: (P,) resolution at zero energy, in units of the true edge.
        growth: (P,) resolution at the edge over that at zero energy.
        observed: (P,) observed edges, in units of the true ones.
        reach: Upper end of the result's grid, in units of the observed edge.

    Returns:
        (P, 2, E, N) DOS of each element of the vocabulary in the host and in the doped sample.
    """
    dos = pairs.dos.reshape(len(pairs.dos), -1, _COARSE).sum(axis=2)
    dos *= (pairs.areas / np.maximum(dos.sum(axis=1), 1e-30)).astype(np.float32)[:, None]
    step = _COARSE * STORAGE_GRID.width
    sources = (np.arange(dos.shape[1]) + 0.5) * step
    spread = np.sqrt(np.square(line_sigma(fwhm, growth, sources)) + step**2 / 12.0)  # that of a bin is added
    edges = np.linspace(0.0, reach, PROJECTED_BINS + 1) * observed[:, None]
    kernel = binned_kernel(edges, sources, spread) / np.float32(reach / PROJECTED_BINS)  # (P, N, sources)
    # Curves of unequal numbers of elements are filled up, so that one product does for all.
    rows = np.diff(pairs.starts, append=len(dos))
    curve = np.repeat(np.arange(len(rows)), rows)
    number = np.arange(len(dos)) - pairs.starts[curve]
    # Products of one shape, whatever it is batched with: others are rounded otherwise on some machines.
    most = -(-int(rows.max()) // _TOGETHER) * _TOGETHER
    filled = np.zeros((len(rows), most, dos.shape[1]), dtype=np.float32)
    filled[curve, number] = dos
    broad = filled.reshape(len(fwhm), -1, _TOGETHER, dos.shape[1]) @ kernel.transpose(0, 2, 1)[:, None]
    out = np.zeros((len(rows), len(VOCABULARY), PROJECTED_BINS), dtype=np.float32)
    # Blended rows have an element repeatedly.
    np.add.at(out, (curve, pairs.elements), broad.reshape(*filled.shape[:2], PROJECTED_BINS)[curve, number])
    return out.reshape(len(fwhm), 2, len(VOCABULARY), PROJECTED_BINS)
