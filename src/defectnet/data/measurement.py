"""The forward model of a measurement: from simulated projected DOS to the pair of curves that a user would have.

Every step is a pure function of arrays (and a random generator, where it draws). Host and doped sample are measured
on the same instrument: they share weighting, resolution, energy calibration and range, and have their own noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from defectnet.config import MODEL_GRID, STORAGE_GRID, Grid
from defectnet.elements import INDEX, properties
from defectnet.errors import ConfigError
from defectnet.spectrum import KINDS, band_edge_mev, relative_dos

if TYPE_CHECKING:
    from defectnet.data.shards import Sample

FloatArray = NDArray[np.float64]
Kind = Literal["total", "neutron-weighted", "projected"]

NEUTRON_WEIGHT: Final = properties("scattering_cross_section_barn") / properties("mass_u")
"""(62,) scattering cross section over mass, barn/u: what an element's DOS counts for in incoherent scattering."""

NOISE_BIN: Final = 0.01
"""Width, in units of the edge, of the bin that a stated counting noise refers to (narrower bins are noisier)."""

_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_FWHM_TO_SIGMA: Final = 1.0 / np.sqrt(8.0 * np.log(2.0))


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


def row_rng(*keys: str | int) -> np.random.Generator:
    """Return a generator fixed by its keys, the same on every machine and in every process.

    Evaluation uses the row's id (and a purpose) alone; training adds the seed and the epoch.
    """
    digest = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


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


def resolution_kernel(edge_mev: float, fwhm_mev: float, growth: float) -> NDArray[np.float32]:
    """Return the (bins, bins) matrix that broadens a DOS on `STORAGE_GRID`; columns sum to 1, so the area is kept.

    Args:
        edge_mev: Unit of the relative energies.
        fwhm_mev: Resolution at zero energy.
        growth: Resolution at the edge over that at zero; it never falls below a fifth of `fwhm_mev`.
    """
    centres = STORAGE_GRID.centres.astype(np.float32)
    width = fwhm_mev * np.maximum(1.0 + (growth - 1.0) * centres, 0.2)
    # In units of a bin; a line much narrower than its bin stays there.
    sigma = np.maximum(width * (_FWHM_TO_SIGMA / (edge_mev * STORAGE_GRID.width)), 0.05)
    bins = np.arange(STORAGE_GRID.bins, dtype=np.float32)
    kernel = (bins[:, None] - bins) * (np.sqrt(0.5) / sigma).astype(np.float32)
    np.square(kernel, out=kernel)
    np.negative(kernel, out=kernel)
    # Beyond exp(-80) lie denormal numbers, which are slow.
    np.exp(np.maximum(kernel, -80.0, out=kernel), out=kernel)
    return np.asarray(kernel / kernel.sum(axis=0))


def with_background(dos: FloatArray, share: float, rng: np.random.Generator) -> FloatArray:
    """Add a smooth positive background of the given area, relative to the area of the DOS."""
    if share == 0.0:
        return dos
    x = STORAGE_GRID.centres / STORAGE_GRID.reach
    flat, falling, rising = rng.dirichlet((1.0, 1.0, 1.0))
    shape = flat + falling * (1.0 - x) ** 2 + rising * x
    return np.asarray(dos + shape * (share * dos.sum() / shape.sum()))


def with_noise(dos: FloatArray, level: float, rng: np.random.Generator) -> FloatArray:
    """Add counting noise whose variance is proportional to the signal; what falls below zero is cut.

    Args:
        dos: (bins,) values on `STORAGE_GRID`.
        level: Standard deviation at the peak, relative to the peak, in a bin of `NOISE_BIN`.
        rng: Source of randomness.
    """
    if level == 0.0:
        return dos
    per_bin = level * np.sqrt(NOISE_BIN / STORAGE_GRID.width)
    # Normal in place of Poisson: the two agree above some tens of counts, and a 3 % noise means 1,000 at the peak.
    sigma = per_bin * np.sqrt(dos.max() * dos)
    return np.asarray(np.maximum(dos + sigma * rng.standard_normal(dos.shape), 0.0))


def cut_off(dos: FloatArray, low: float, high: float) -> FloatArray:
    """Cut the range that was not measured, in units of the edge: Debye's law below `low`, zero above `high`."""
    x = STORAGE_GRID.centres
    first, last = np.searchsorted(x, [low, high])
    out = dos.copy()
    out[last:] = 0.0
    if first > 0:
        level = dos[first : first + 3].mean()
        out[:first] = level * (x[:first] / x[first]) ** 2
    return out


def _draw(bounds: tuple[float, float], rng: np.random.Generator, *, log: bool = False) -> float:
    low, high = bounds
    if low == high:
        return low
    return float(low * (high / low) ** rng.random()) if log and low > 0 else float(rng.uniform(low, high))


def _draw_kind(sample: Sample, weights: tuple[float, ...], rng: np.random.Generator) -> tuple[Kind, str | None]:
    kind = _KINDS[int(rng.choice(len(_KINDS), p=np.array(weights) / sum(weights)))]
    if kind != "projected":
        return kind, None
    # Sorted: the order of a row's elements must not matter.
    common = sorted(set(sample.host_elements) & set(sample.doped_elements))
    return (kind, common[int(rng.integers(len(common)))]) if common else ("total", None)


def measure(sample: Sample, measurement: Measurement, rng: np.random.Generator, *, grid: Grid = MODEL_GRID) -> Measured:
    """Measure a pair: weight, mis-scale, broaden, add background and noise, cut, and put on the common grid.

    The grid is relative to the edge that is read from the *measured* host, as it will be for a user's data.

    Args:
        sample: Row of a shard.
        measurement: Instrument and conditions.
        rng: Source of every random choice; the same generator state gives the same pair.
        grid: Grid of the result.
    """
    if measurement.clean_share and rng.random() < measurement.clean_share:
        measurement = CLEAN
    kind, element = _draw_kind(sample, measurement.weights, rng)
    edge = sample.edge_mev * float(np.clip(1.0 + measurement.energy_scale * rng.standard_normal(), 0.8, 1.2))
    kernel = resolution_kernel(
        edge, _draw(measurement.fwhm_mev, rng, log=True), _draw(measurement.fwhm_growth, rng, log=True)
    )
    noise = _draw(measurement.noise, rng, log=True)
    low = min(_draw(measurement.cut_low_mev, rng) / edge, 0.2)
    high = _draw(measurement.cut_high, rng)
    curves = []
    for elements, dos in ((sample.host_elements, sample.host_dos), (sample.doped_elements, sample.doped_dos)):
        curve = np.asarray(kernel @ weighted_dos(elements, dos, kind, element).astype(np.float32), dtype=np.float64)
        curve = with_background(curve, _draw(measurement.background, rng), rng)
        curves.append(cut_off(with_noise(curve, noise, rng), low, high))
    energy_mev = STORAGE_GRID.centres * edge
    observed = band_edge_mev(energy_mev, curves[0])
    host, doped = (relative_dos(energy_mev, curve, observed, grid) for curve in curves)
    return Measured(host, doped, observed, KINDS.index(kind))
