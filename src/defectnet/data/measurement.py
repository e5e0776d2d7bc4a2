"""The forward model of a measurement: from simulated projected DOS to the pair of curves that a user would have.

Every step is a pure function of arrays (and a random generator, where it draws). Host and doped sample are measured
on the same instrument: they share weighting, resolution, energy calibration and range, and have their own noise.

Pairs are measured many at a time, for speed, but each with its own generator and by operations that treat every row
alike: a pair comes out the same, to the bit, whatever it is batched with.

Shape letters: P pairs, T rows of projected DOS of all of them, N the bins of `STORAGE_GRID`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

from defectnet.config import MODEL_GRID, PROJECTED_BINS, STORAGE_GRID, Grid
from defectnet.elements import INDEX, NEUTRON_WEIGHT, VOCABULARY
from defectnet.errors import ConfigError
from defectnet.spectrum import EDGE_CELLS, EDGE_THRESHOLD, KINDS, band_edge_mev

if TYPE_CHECKING:
    from defectnet.data.shards import Row, Sample

FloatArray = NDArray[np.float64]
Kind = Literal["total", "neutron-weighted", "projected"]

NOISE_BIN: Final = 0.01
"""Width, in units of the edge, of the bin that a stated counting noise refers to (narrower bins are noisier)."""

_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_FWHM_TO_SIGMA: Final = 1.0 / np.sqrt(8.0 * np.log(2.0))
_CENTRES: Final = STORAGE_GRID.centres
_BINS: Final = np.arange(STORAGE_GRID.bins)
_REACH: Final = 4.5  # standard deviations of the resolution: 7e-6 of a line lies beyond
_REACHES: Final = np.array([8, 16, 24, 32, 48, 64, 96, 128, 192])  # bins; beyond, a full kernel is cheaper
_BLOCK: Final = 24  # bins whose lines are taken together; a divisor of the number of bins
_COARSE: Final = 4  # bins taken together where projected DOS go onto bins eight times as wide
_CHUNK: Final = 8  # pairs broadened at a time, for the processor's cache


@dataclass(frozen=True)
class Measurement:
    """How a pair is measured: a range for each property, ``(low, high)``; equal ends fix it.

    Attributes:
        weights: Odds of the kinds of DOS: total, neutron-weighted, projected on one host element.
        fwhm_mev: Gaussian resolution at zero energy, full width at half maximum; drawn log-uniformly.
        fwhm_growth: Resolution at the host's band edge over that at zero energy; linear in between and above.
        noise: Counting noise (standard deviation) at the peak, relative to the peak, in a bin of `NOISE_BIN`.
        background: Area of a smooth background that was not subtracted, relative to the area of the DOS.
        energy_scale: Standard deviation of the relative error of the energy axis, shared by host and doped sample.
        cut_low_mev: Energy below which nothing was measured; the DOS is continued as energy squared (Debye).
        cut_high: End of the measured range, in units of the host's edge.
        clean_share: Share of the pairs that is measured as `CLEAN` instead.
    """

    weights: tuple[float, float, float] = (1.0, 0.0, 0.0)
    fwhm_mev: tuple[float, float] = (1.0, 1.0)
    fwhm_growth: tuple[float, float] = (1.0, 1.0)
    noise: tuple[float, float] = (0.0, 0.0)
    background: tuple[float, float] = (0.0, 0.0)
    energy_scale: float = 0.0
    cut_low_mev: tuple[float, float] = (0.0, 0.0)
    cut_high: tuple[float, float] = (3.0, 3.0)
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if len(self.weights) != len(KINDS) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ConfigError(f"measurement.weights is {self.weights}", fix="Give three odds, none negative")
        limits = {
            "fwhm_mev": (0.05, 20.0),
            "fwhm_growth": (0.1, 10.0),
            "noise": (0.0, 0.5),
            "background": (0.0, 0.05),
            "cut_low_mev": (0.0, 50.0),
            "cut_high": (1.4, STORAGE_GRID.reach),
        }
        for name, (lowest, highest) in limits.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ConfigError(
                    f"measurement.{name} is {(low, high)}", fix=f"Give low <= high between {lowest} and {highest}"
                )
        if not 0.0 <= self.energy_scale <= 0.2 or not 0.0 <= self.clean_share <= 1.0:
            raise ConfigError(
                f"measurement.energy_scale is {self.energy_scale}, clean_share {self.clean_share}",
                fix="Use 0 to 0.2 and 0 to 1",
            )


CLEAN: Final = Measurement()
"""Benchmark condition: the bare total DOS at 1 meV resolution, without noise."""

LAB: Final = Measurement(
    weights=(0.0, 1.0, 0.0),
    fwhm_mev=(2.0, 2.0),
    fwhm_growth=(1.5, 1.5),
    noise=(0.01, 0.01),
    background=(0.02, 0.02),
    energy_scale=0.02,
)
"""Benchmark condition: neutron weighting, 2 meV growing to 3 at the edge, 1 % noise, 2 % energy error."""

AUGMENT: Final = Measurement(
    weights=(0.5, 0.4, 0.1),
    fwhm_mev=(0.5, 4.0),
    fwhm_growth=(0.7, 2.0),
    noise=(0.0005, 0.03),
    background=(0.0, 0.04),
    energy_scale=0.03,
    cut_low_mev=(0.0, 5.0),
    cut_high=(1.5, 3.0),
    clean_share=0.25,
)
"""Training: wide ranges around both conditions, up to 6 meV at the edge, and a quarter of clean pairs."""

MEASUREMENTS: Final[dict[str, Measurement]] = {"clean": CLEAN, "lab": LAB, "augment": AUGMENT}
"""Named settings, as recipes and benchmark tracks call them."""


class Measured(NamedTuple):
    """A measured pair on a common grid.

    Attributes:
        host: (L,) float32 DOS of the host per relative energy, unit area.
        doped: (L,) float32 the same of the doped sample, in units of the *host's* observed edge.
        edge_mev: Band edge as read from the measured host, in meV.
        kind: Index into `defectnet.spectrum.KINDS`.
    """

    host: NDArray[np.float32]
    doped: NDArray[np.float32]
    edge_mev: float
    kind: int


def measurement_named(name: str) -> Measurement:
    """Return a named setting.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in MEASUREMENTS:
        raise ConfigError(f"measurement {name!r} is not known", fix=f"Use one of {', '.join(MEASUREMENTS)}")
    return MEASUREMENTS[name]


class _Words(ISeedSequence):
    """Seeds a generator with given words, which saves NumPy's own mixing: a hash has done that already."""

    def __init__(self, digest: bytes) -> None:
        self._words = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        return self._words[:n_words]


def row_rng(*keys: str | int) -> np.random.Generator:
    """Return a generator fixed by its keys, the same on every machine and in every process.

    Evaluation uses the row's id (and a purpose) alone; training adds the seed and the epoch.
    """
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    # NumPy documents that any ISeedSequence will do; its type stubs know SeedSequence alone.
    return np.random.Generator(np.random.PCG64(_Words(digest)))  # type: ignore[arg-type]


def weighted_dos(
    elements: Sequence[str], dos: NDArray[np.floating[Any]], kind: Kind, element: str | None = None
) -> FloatArray:
    """Sum projected DOS over the elements, weighted by the kind.

    Args:
        elements: Elements, in the order of the rows of `dos`.
        dos: (elements, bins) projected DOS per relative energy on `STORAGE_GRID`.
        kind: What is summed: all alike, weighted by cross section over mass, or one element alone.
        element: The one element, for ``projected``.

    Returns:
        (bins,) DOS of unit area.
    """
    if kind == "projected":
        weights = np.array([float(symbol == element) for symbol in elements])
    elif kind == "neutron-weighted":
        weights = NEUTRON_WEIGHT[[INDEX[symbol] for symbol in elements]]
    else:
        weights = np.ones(len(elements))
    return unit_area(weights @ dos)


def unit_area(dos: FloatArray) -> FloatArray:
    """Scale (bins,) values on `STORAGE_GRID` to unit area per relative energy."""
    return np.asarray(dos / max(float(dos.sum()) * STORAGE_GRID.width, 1e-30))


def resolution_kernel(
    edge_mev: float, fwhm_mev: float, growth: float, *, sources: int | None = None
) -> NDArray[np.float32]:
    """Return the (bins, bins) matrix that broadens a DOS on `STORAGE_GRID`; columns sum to 1, so the area is kept.

    It defines the resolution; `broaden` does the same for many pairs.

    Args:
        edge_mev: Unit of the relative energies.
        fwhm_mev: Resolution at zero energy.
        growth: Resolution at the edge over that at zero; it never falls below a fifth of `fwhm_mev`.
        sources: Only the first so many columns; all by default.
    """
    centres = STORAGE_GRID.centres.astype(np.float32)[:sources]
    width = fwhm_mev * np.maximum(1.0 + (growth - 1.0) * centres, 0.2)
    # In units of a bin; a line much narrower than its bin stays there.
    sigma = np.maximum(width * (_FWHM_TO_SIGMA / (edge_mev * STORAGE_GRID.width)), 0.05)
    bins = np.arange(STORAGE_GRID.bins, dtype=np.float32)
    kernel = (bins[:, None] - bins[:sources]) * (np.sqrt(0.5) / sigma).astype(np.float32)
    np.square(kernel, out=kernel)
    np.negative(kernel, out=kernel)
    # Beyond exp(-80) lie denormal numbers, which are slow.
    np.exp(np.maximum(kernel, -80.0, out=kernel), out=kernel)
    return np.asarray(kernel / kernel.sum(axis=0))


def broaden(
    dos: NDArray[np.float32],
    edge_mev: NDArray[np.floating[Any]],
    fwhm_mev: NDArray[np.floating[Any]],
    growth: NDArray[np.floating[Any]],
) -> NDArray[np.float32]:
    """Broaden pairs as `resolution_kernel` does, but only as far as the kernels reach.

    Args:
        dos: (P, curves, N) curves on `STORAGE_GRID`; those of a pair share its resolution.
        edge_mev: (P,) units of the relative energies.
        fwhm_mev: (P,) resolutions at zero energy.
        growth: (P,) resolutions at the edge over those at zero.

    Returns:
        (P, curves, N) broadened curves of the same area.
    """
    width = fwhm_mev[:, None] * np.maximum(1.0 + (growth[:, None] - 1.0) * _CENTRES, 0.2)
    sigma = np.maximum(width * (_FWHM_TO_SIGMA / (edge_mev[:, None] * STORAGE_GRID.width)), 0.05)
    filled = np.any(dos > 0, axis=1)
    ends = STORAGE_GRID.bins - np.argmax(filled[:, ::-1], axis=1)  # nothing lies from here on
    # How far is asked of each pair alone, so that it does not depend on the others.
    reach = np.searchsorted(_REACHES, _REACH * np.where(filled, sigma, 0.0).max(axis=1))
    factor = (-0.5 / sigma**2).astype(np.float32)
    out = np.empty_like(dos)
    for i in np.flatnonzero(reach == len(_REACHES)):
        kernel = resolution_kernel(float(edge_mev[i]), float(fwhm_mev[i]), float(growth[i]), sources=int(ends[i]))
        out[i] = dos[i, :, : ends[i]] @ kernel.T
    for number, bins in enumerate(_REACHES.tolist()):
        rows = np.flatnonzero(reach == number)
        rows = rows[np.argsort(ends[rows], kind="stable")]  # pairs of a chunk are as long as its longest
        for begin in range(0, len(rows), _CHUNK):
            chosen = rows[begin : begin + _CHUNK]
            blocks = -(-int(ends[chosen].max()) // _BLOCK)
            out[chosen] = _in_blocks(dos[chosen], factor[chosen, : blocks * _BLOCK], bins)
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


def with_background(dos: FloatArray, share: float, rng: np.random.Generator) -> FloatArray:
    """Add a smooth positive background of the given area, relative to the area of the DOS."""
    uniform = 1.0 - rng.random((1, 1, 3))
    return np.asarray(_with_background(dos[None, None].astype(np.float64), np.array([[share]]), uniform)[0, 0])


def _with_background(
    dos: NDArray[np.floating[Any]], share: NDArray[np.floating[Any]], uniform: FloatArray
) -> NDArray[np.floating[Any]]:
    """Add to (P, 2, N) curves; `share` is (P, 2), `uniform` (P, 2, 3) in (0, 1]."""
    if not share.any():
        return dos
    parts = -np.log(uniform)  # in proportion, these are uniform on the simplex
    area = (parts * _BACKGROUND.sum(axis=1)).sum(axis=2)
    factor = share * dos.sum(axis=2) / np.maximum(area, 1e-30)
    flat, falling, rising = np.moveaxis((parts * factor[..., None]).astype(dos.dtype)[..., None], 2, 0)
    shape = _BACKGROUND.astype(dos.dtype)
    return np.asarray(dos + (flat + falling * shape[1] + rising * shape[2]))


_BACKGROUND: Final = np.stack([np.ones(STORAGE_GRID.bins), (1.0 - _CENTRES / 3.0) ** 2, _CENTRES / 3.0])


def with_noise(dos: FloatArray, level: float, rng: np.random.Generator) -> FloatArray:
    """Add counting noise whose variance is proportional to the signal; what falls below zero is cut.

    Args:
        dos: (bins,) values on `STORAGE_GRID`.
        level: Standard deviation at the peak, relative to the peak, in a bin of `NOISE_BIN`.
        rng: Source of randomness.
    """
    if level == 0.0:
        return dos
    return np.asarray(_with_noise(dos, np.float64(level), rng.standard_normal(dos.shape)))


def _with_noise(
    dos: NDArray[np.floating[Any]], level: Any, normal: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Add to (..., N) curves; `level` is a number, or (P, 1, 1)."""
    per_bin = level * np.sqrt(NOISE_BIN / STORAGE_GRID.width)
    # Normal in place of Poisson: the two agree above some tens of counts, and a 3 % noise means 1,000 at the peak.
    sigma = np.sqrt(dos * dos.max(axis=-1, keepdims=True))
    sigma *= per_bin
    sigma *= normal
    sigma += dos
    return np.asarray(np.maximum(sigma, 0.0, out=sigma))


def cut_off(dos: FloatArray, low: float, high: float) -> FloatArray:
    """Cut the range that was not measured, in units of the edge: Debye's law below `low`, zero above `high`."""
    return np.asarray(_cut_off(dos[None, None].copy(), np.array([low]), np.array([high]))[0, 0])


def _cut_off(
    dos: NDArray[np.floating[Any]], low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Cut (P, 2, N) curves in place; `low` and `high` are (P,)."""
    first, last = np.searchsorted(_CENTRES, low), np.searchsorted(_CENTRES, high)
    if (last < STORAGE_GRID.bins).any():
        dos *= (last[:, None, None] > _BINS).astype(dos.dtype)
    below, at = int(first.max(initial=0)), np.arange(len(dos))
    if below:
        level = (dos[at, :, first] + dos[at, :, first + 1] + dos[at, :, first + 2]) / 3.0
        foot = (_CENTRES[:below] / _CENTRES[first][:, None]) ** 2
        debye = level[:, :, None] * foot[:, None].astype(dos.dtype)
        dos[:, :, :below] = np.where(_BINS[:below] < first[:, None, None], debye, dos[:, :, :below])
    return dos


class Stack(NamedTuple):
    """Projected DOS of many pairs: the rows of host, doped, host, doped and so on, one after the other.

    Attributes:
        dos: (T, N) float32 projected DOS in any scale.
        areas: (T,) area that each of them has.
        elements: (T,) positions of their elements in the vocabulary.
        starts: (2 P,) first row of each curve.
        edge_mev: (P,) units of the relative energies.
    """

    dos: NDArray[np.float32]
    areas: NDArray[np.floating[Any]]
    elements: NDArray[np.intp]
    starts: NDArray[np.intp]
    edge_mev: FloatArray

    @classmethod
    def of_rows(cls, rows: Sequence[Row]) -> Stack:
        """Stack rows as a loader reads them."""
        counts = [n for row in rows for n in (row.hosts, len(row.elements) - row.hosts)]
        dos = np.concatenate([row.codes for row in rows]).astype(np.float32)
        return cls(
            np.square(dos, out=dos),
            np.concatenate([row.areas for row in rows]),
            np.concatenate([row.elements for row in rows]),
            np.cumsum([0, *counts[:-1]]),
            np.array([row.edge_mev for row in rows]),
        )

    @classmethod
    def of_sample(cls, sample: Sample) -> Stack:
        """Return a stack of one."""
        dos = np.concatenate([sample.host_dos, sample.doped_dos]).astype(np.float32)
        return cls(
            dos,
            dos.sum(axis=1) * STORAGE_GRID.width,
            np.array([INDEX[symbol] for symbol in (*sample.host_elements, *sample.doped_elements)]),
            np.array([0, len(sample.host_elements)]),
            np.array([sample.edge_mev]),
        )

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
        curves /= np.maximum(curves.sum(axis=1, keepdims=True) * np.float32(STORAGE_GRID.width), 1e-30)
        return np.asarray(curves.reshape(len(self.edge_mev), 2, STORAGE_GRID.bins))


class MeasuredPairs(NamedTuple):
    """Measured pairs on a common grid; the fields of `Measured`, stacked.

    Attributes:
        host: (P, L) float32.
        doped: (P, L) float32.
        edge_mev: (P,).
        kind: (P,) index into `defectnet.spectrum.KINDS`.
        projected: (P, 2, E, N) DOS of each element in host and doped sample, see `defectnet.batch.Targets`; if wanted.
    """

    host: NDArray[np.float32]
    doped: NDArray[np.float32]
    edge_mev: FloatArray
    kind: NDArray[np.intp]
    projected: NDArray[np.float32] | None = None


def measure(sample: Sample, measurement: Measurement, rng: np.random.Generator, *, grid: Grid = MODEL_GRID) -> Measured:
    """Measure a pair: weight, mis-scale, broaden, add background and noise, cut, and put on the common grid.

    The grid is relative to the edge that is read from the *measured* host, as it will be for a user's data.

    Args:
        sample: Row of a shard.
        measurement: Instrument and conditions.
        rng: Source of every random choice; the same generator state gives the same pair.
        grid: Grid of the result.
    """
    pairs = measure_pairs(Stack.of_sample(sample), measurement, [rng], grid=grid)
    return Measured(pairs.host[0], pairs.doped[0], float(pairs.edge_mev[0]), int(pairs.kind[0]))


def measure_pairs(
    stack: Stack,
    measurement: Measurement,
    rngs: Sequence[np.random.Generator],
    *,
    grid: Grid = MODEL_GRID,
    projected: bool = False,
) -> MeasuredPairs:
    """Measure many pairs as `measure` does.

    Args:
        stack: Projected DOS of P pairs.
        measurement: Instrument and conditions.
        rngs: One generator for each pair; it alone decides what is drawn for that pair.
        grid: Grid of the result.
        projected: Whether the DOS of each element is wanted too.
    """
    # Every pair draws the same numbers in the same order, whether its conditions use them or not.
    uniform = np.empty((len(rngs), 16))
    normal = np.empty(len(rngs))
    for number, rng in enumerate(rngs):
        rng.random(out=uniform[number])
        normal[number] = rng.standard_normal()
    drawn = _Drawn.of(measurement, uniform)
    kind, weights = _weights(stack, drawn.kind, uniform[:, 2])
    edge = stack.edge_mev * np.clip(1.0 + drawn.energy_scale * normal, 0.8, 1.2)
    curves = broaden(stack.curves(weights), edge, drawn.fwhm_mev, drawn.growth)
    curves = _with_background(curves, drawn.background, 1.0 - uniform[:, 10:].reshape(-1, 2, 3)).astype(np.float32)
    if drawn.noise.any():
        noise = np.zeros_like(curves)
        for number in np.flatnonzero(drawn.noise).tolist():
            rngs[number].standard_normal(out=noise[number], dtype=np.float32)
        curves = _with_noise(curves, drawn.noise[:, None, None].astype(np.float32), noise).astype(np.float32)
    curves = _cut_off(curves, np.minimum(drawn.low_mev / edge, 0.2), drawn.high)
    running = _running(curves)
    observed = relative_edges(curves[:, 0], edge, total=running[:, 0])
    cells = grid.edges * observed[:, None]
    shares = np.diff(_integrals(curves, running, np.broadcast_to(cells[:, None], (*curves.shape[:2], cells.shape[1]))))
    result = (shares / (shares.sum(axis=2, keepdims=True) * grid.width)).astype(np.float32)
    parts = None
    if projected:
        parts = _projected(stack, drawn.fwhm_mev * _FWHM_TO_SIGMA / edge, drawn.growth, observed, grid.reach)
    return MeasuredPairs(result[:, 0], result[:, 1], observed * edge, kind, parts)


def _projected(
    stack: Stack, sigma: FloatArray, growth: FloatArray, observed: FloatArray, reach: float
) -> NDArray[np.float32]:
    """Broaden projected DOS and put them on `PROJECTED_BINS` bins; no background, noise or cuts.

    Args:
        stack: Projected DOS of P pairs.
        sigma: (P,) resolution at zero energy, a standard deviation in units of the true edge.
        growth: (P,) resolution at the edge over that at zero energy.
        observed: (P,) observed edges, in units of the true ones.
        reach: Upper end of the result's grid, in units of the observed edge.

    Returns:
        (P, 2, E, N) DOS of each element of the vocabulary in the host and in the doped sample.
    """
    dos = stack.dos.reshape(len(stack.dos), -1, _COARSE).sum(axis=2)
    dos *= (stack.areas / np.maximum(dos.sum(axis=1), 1e-30)).astype(np.float32)[:, None]
    step = _COARSE * STORAGE_GRID.width
    sources = (np.arange(dos.shape[1]) + 0.5) * step
    spread = sigma[:, None] * np.maximum(1.0 + (growth[:, None] - 1.0) * sources, 0.2)
    spread = np.sqrt(np.square(spread) + step**2 / 12.0)  # that of a bin is added
    edges = np.linspace(0.0, reach, PROJECTED_BINS + 1) * observed[:, None]
    place = ((edges[:, :, None] - sources) / spread[:, None]).astype(np.float32)
    below = torch.special.ndtr(torch.from_numpy(place)).numpy()
    kernel = np.diff(below, axis=1) / np.float32(reach / PROJECTED_BINS)  # (P, N, sources)
    # Curves of unequal numbers of elements are filled up, so that one product does for all.
    rows = np.diff(stack.starts, append=len(dos))
    curve = np.repeat(np.arange(len(rows)), rows)
    number = np.arange(len(dos)) - stack.starts[curve]
    filled = np.zeros((len(rows), rows.max(), dos.shape[1]), dtype=np.float32)
    filled[curve, number] = dos
    broad = filled.reshape(len(sigma), -1, dos.shape[1]) @ kernel.transpose(0, 2, 1)
    out = np.zeros((len(rows), len(VOCABULARY), PROJECTED_BINS), dtype=np.float32)
    # Blended rows have an element repeatedly.
    np.add.at(out, (curve, stack.elements), broad.reshape(*filled.shape[:2], PROJECTED_BINS)[curve, number])
    return out.reshape(len(sigma), 2, len(VOCABULARY), PROJECTED_BINS)


@dataclass(frozen=True)
class _Drawn:
    """Conditions of P pairs, as `Measurement` describes them; (P,) each, `background` (P, 2)."""

    kind: NDArray[np.intp]
    fwhm_mev: FloatArray
    growth: FloatArray
    noise: FloatArray
    background: FloatArray
    energy_scale: FloatArray
    low_mev: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, measurement: Measurement, uniform: FloatArray) -> _Drawn:
        """Turn (P, 16) uniform numbers into conditions."""
        clean = uniform[:, 0] < measurement.clean_share

        def between(name: str, number: Any, *, log: bool = False) -> FloatArray:
            low, high = getattr(measurement, name)
            if low == high:
                value = np.full(number.shape, low)
            else:
                value = low * (high / low) ** number if log and low > 0 else low + (high - low) * number
            usual = getattr(CLEAN, name)[0]
            return np.asarray(np.where(clean.reshape(-1, *[1] * (number.ndim - 1)), usual, value))

        odds = np.cumsum(measurement.weights) / sum(measurement.weights)
        kind = np.minimum(np.searchsorted(odds, uniform[:, 1], side="right"), np.flatnonzero(measurement.weights)[-1])
        return cls(
            kind=np.where(clean, 0, kind),
            fwhm_mev=between("fwhm_mev", uniform[:, 3], log=True),
            growth=between("fwhm_growth", uniform[:, 4], log=True),
            noise=between("noise", uniform[:, 5], log=True),
            background=between("background", uniform[:, 8:10]),
            energy_scale=np.where(clean, CLEAN.energy_scale, measurement.energy_scale),
            low_mev=between("cut_low_mev", uniform[:, 6]),
            high=between("cut_high", uniform[:, 7]),
        )


def _weights(stack: Stack, kind: NDArray[np.intp], uniform: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
    """Return the kinds, and what each row of a stack counts for; what cannot be projected is measured as a whole."""
    cuts = np.append(stack.starts, len(stack.elements))
    kind = kind.copy()
    weights = np.where(
        np.repeat(kind, cuts[2::2] - cuts[:-1:2]) == _KINDS.index("neutron-weighted"),
        NEUTRON_WEIGHT[stack.elements],
        1.0,
    )
    for i in np.flatnonzero(kind == _KINDS.index("projected")):
        host, doped = stack.elements[cuts[2 * i] : cuts[2 * i + 1]], stack.elements[cuts[2 * i + 1] : cuts[2 * i + 2]]
        # Sorted: the order of a row's elements must not matter.
        common = np.intersect1d(host, doped)
        if len(common):
            chosen = common[int(uniform[i] * len(common))]
            weights[cuts[2 * i] : cuts[2 * i + 2]] = stack.elements[cuts[2 * i] : cuts[2 * i + 2]] == chosen
        else:
            kind[i] = _KINDS.index("total")
    return kind, weights


def relative_edges(
    dos: NDArray[np.floating[Any]], edge_mev: FloatArray, *, total: FloatArray | None = None
) -> FloatArray:
    """Find band edges as `defectnet.spectrum.band_edge_mev` does, of many hosts at a time.

    Args:
        dos: (P, N) curves on `STORAGE_GRID`.
        edge_mev: (P,) their units, for errors.
        total: (P, N) their integrals up to each bin, where they are known already.

    Returns:
        (P,) observed edges, in these units.

    Raises:
        SpectrumError: As there.
    """
    total = _running(dos) if total is None else total
    step, cells = STORAGE_GRID.width, EDGE_CELLS
    target = 0.95 * total[:, -1]
    # The first point at which 95 % are reached, and the way to it from the point before.
    i = np.clip(np.count_nonzero(total < target[:, None], axis=1), 1, total.shape[1] - 1)
    at = np.arange(len(dos))
    live = _CENTRES[i] - step * (total[at, i] - target) / np.maximum(total[at, i] - total[at, i - 1], 1e-30)
    sigma = 0.015 * live
    top = np.minimum(_CENTRES[-1], 4.0 * live) + 4.0 * sigma
    width = top / cells
    density = np.diff(_integrals(dos, total, width[:, None] * np.arange(cells + 1))).astype(np.float32)
    smooth = _smoothed(density, sigma / width, np.ceil(4.0 * sigma / width).astype(int))
    limit = np.float32(EDGE_THRESHOLD) * smooth.max(axis=1)
    above = smooth >= limit[:, None]
    last = cells - 1 - np.argmax(above[:, ::-1], axis=1)
    # Counted from the end, so that the first of the cells below the limit is the last before this stretch.
    before = cells - 1 - np.argmax(~above[:, ::-1] & (np.arange(cells)[::-1] < last[:, None]), axis=1)
    before[before > last] = -1  # none: the stretch begins at zero energy
    running = np.zeros((len(dos), cells + 1))
    np.cumsum(smooth, axis=1, dtype=np.float64, out=running[:, 1:])
    held, whole = running[at, last + 1] - running[at, before + 1], running[:, -1]
    # Noise above the edge, or a host that cannot be used: seldom, and looked at one by one.
    at_end = np.minimum(dos[:, -1], dos[:, -3:].mean(axis=1)) * width
    odd = (held < 0.00501 * whole) | (last + 1 >= cells) | (at_end >= 0.99 * limit) | ~(whole > 0)
    following = np.minimum(last + 1, cells - 1)
    part = (smooth[at, last] - limit) / np.where(odd, 1.0, smooth[at, last] - smooth[at, following])
    edges = (last + 0.5 + part) * width
    for row in np.flatnonzero(odd):
        edges[row] = band_edge_mev(_CENTRES * edge_mev[row], dos[row].astype(np.float64)) / edge_mev[row]
    return np.asarray(edges)


def _smoothed(density: NDArray[np.float32], sigma: FloatArray, reach: NDArray[np.int_]) -> NDArray[np.float32]:
    """Convolve (P, cells) with Gaussians of (P,) standard deviations, cut at (P,) distances; zero lies outside."""
    cells, distance = density.shape[1], np.arange(int(reach.max()) + 1)
    kernel = np.where(distance <= reach[:, None], np.exp(-0.5 * (distance / sigma[:, None]) ** 2), 0.0)
    # Summed one after the other: zeros at the end, for wider kernels of other curves, change nothing.
    kernel = (kernel / (2.0 * np.cumsum(kernel, axis=1)[:, -1:] - 1.0)).astype(np.float32)
    far = len(distance) - 1
    padded = np.zeros((len(density), cells + 2 * far), dtype=np.float32)
    padded[:, far : far + cells] = density
    out, both = density * kernel[:, :1], np.empty_like(density)
    for step in range(1, far + 1):
        np.add(padded[:, far - step :][:, :cells], padded[:, far + step :][:, :cells], out=both)
        both *= kernel[:, step, None]
        out += both
    return np.asarray(out)


def _running(dos: NDArray[np.floating[Any]]) -> FloatArray:
    """Integrate piecewise linear curves (..., N) on `STORAGE_GRID` up to each centre, in units of its bins."""
    total = np.zeros(dos.shape)
    np.cumsum((dos[..., 1:] + dos[..., :-1]) * dos.dtype.type(0.5), axis=-1, dtype=np.float64, out=total[..., 1:])
    return total


def _integrals(dos: NDArray[np.floating[Any]], total: FloatArray, at: FloatArray) -> FloatArray:
    """Integrate piecewise linear curves on `STORAGE_GRID` from its first centre, exactly; nothing lies outside.

    Args:
        dos: (..., N) curves.
        total: (..., N) what `_running` returns of them.
        at: (..., n) relative energies.

    Returns:
        (..., n) integrals.
    """
    bins, step = STORAGE_GRID.bins, STORAGE_GRID.width
    curves, total = dos.reshape(-1, bins), total.reshape(-1, bins)
    place = np.clip(at.reshape(len(curves), -1) / step - 0.5, 0.0, bins - 1)
    i = np.minimum(place.astype(np.intp), bins - 2)
    t = place - i
    i += np.arange(len(curves))[:, None] * bins
    here = curves.take(i)
    result = step * (total.take(i) + t * (here + 0.5 * t * (curves.take(i + 1) - here)))
    return np.asarray(result.reshape(at.shape))
