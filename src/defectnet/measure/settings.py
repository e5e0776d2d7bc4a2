"""Conditions of a measurement, and how they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.errors import ConfigError
from defectnet.spectrum import KINDS

FloatArray = NDArray[np.float64]

NOISE_BIN: Final = 0.01
"""Width, in units of the edge, of the bin that a stated noise refers to (narrower bins are noisier)."""

_LIMITS: Final = {
    "fwhm_mev": (0.05, 20.0),
    "fwhm_growth": (0.1, 10.0),
    "noise": (0.0, 0.5),
    "background": (-0.05, 0.05),
    "cut_low_mev": (0.0, 50.0),
    "cut_high": (1.0, STORAGE_GRID.reach),
    "floor": (0.0, 0.1),
    "multiphonon": (0.0, 0.2),
    "elastic": (0.0, 0.05),
    "start": (0.0, 0.3),
    "fwhm_ratio": (0.5, 2.0),
    "noise_ratio": (0.1, 10.0),
}


@dataclass(frozen=True)
class Measurement:
    """How a pair is measured: a range for each property, ``(low, high)``; equal ends fix it.

    Attributes:
        weights: Odds of the kinds of DOS: total, neutron-weighted, projected on one host element.
        fwhm_mev: Gaussian resolution at zero energy, full width at half maximum; drawn log-uniformly.
        fwhm_growth: Resolution at the host's band edge over that at zero energy; linear in between and above.
        noise: Counting noise (standard deviation) at the peak, relative to the peak, in a bin of `NOISE_BIN`.
        background: Area of a smooth background that was not subtracted, relative to the area of the DOS; negative
            where too much was.
        energy_scale: Standard deviation of the relative error of the energy axis, shared by host and doped sample.
        cut_low_mev: Energy below which nothing was measured; the DOS is continued as energy squared (Debye).
        cut_high: End of the measured range, in units of the host's edge.
        clean_share: Share of the pairs that is measured as `CLEAN` instead.
        floor: Noise that does not depend on the signal, also where there is none, in the units of `noise`; drawn
            log-uniformly. Where there is some, values below zero stay: to cut them makes a background out of noise.
        multiphonon: Area of what is left of scattering by two phonons, relative to the area of the DOS.
        elastic: Area of what is left of the elastic line up to the host's edge, relative to the area of the DOS.
        start: Energy, in units of the host's edge, at which the range begins; below it there is nothing.
        scale_mismatch: Largest relative difference between the energy axes of host and doped sample.
        fwhm_ratio: Resolution of the doped sample over that of the host; drawn log-uniformly.
        noise_ratio: Noise of the doped sample over that of the host, both kinds, of which the louder one is as stated;
            drawn log-uniformly.
        start_apart: Share of the pairs whose ranges begin at two energies, drawn apart.
        fault_share: Share of the pairs that has each of the faults from `floor` on, drawn apart for each fault.
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
    floor: tuple[float, float] = (0.0, 0.0)
    multiphonon: tuple[float, float] = (0.0, 0.0)
    elastic: tuple[float, float] = (0.0, 0.0)
    start: tuple[float, float] = (0.0, 0.0)
    scale_mismatch: float = 0.0
    fwhm_ratio: tuple[float, float] = (1.0, 1.0)
    noise_ratio: tuple[float, float] = (1.0, 1.0)
    start_apart: float = 0.0
    fault_share: float = 1.0

    def __post_init__(self) -> None:
        if len(self.weights) != len(KINDS) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ConfigError(f"measurement.weights is {self.weights}", fix="Give three odds, none negative")
        for name, (lowest, highest) in _LIMITS.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ConfigError(
                    f"measurement.{name} is {(low, high)}", fix=f"Give low <= high between {lowest} and {highest}"
                )
        for name, most in (
            ("energy_scale", 0.2),
            ("clean_share", 1.0),
            ("scale_mismatch", 0.05),
            ("start_apart", 1.0),
            ("fault_share", 1.0),
        ):
            if not 0.0 <= getattr(self, name) <= most:
                raise ConfigError(f"measurement.{name} is {getattr(self, name)}", fix=f"Use 0 to {most:g}")

    @property
    def raw(self) -> bool:
        """Whether any of the faults of raw files is asked for, which take random numbers of their own."""
        return any(getattr(self, name) != getattr(CLEAN, name) for name in _RAW)


_RAW: Final = ("floor", "multiphonon", "elastic", "start", "scale_mismatch", "fwhm_ratio", "noise_ratio")

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

RAW: Final = replace(
    AUGMENT,
    background=(-0.02, 0.04),
    cut_high=(1.0, 3.0),
    floor=(0.0005, 0.03),
    multiphonon=(0.0, 0.05),
    elastic=(0.0, 0.01),
    start=(0.0, 0.15),
    scale_mismatch=0.01,
    fwhm_ratio=(0.8, 1.25),
)
"""As `AUGMENT`, with all faults of raw files at once."""

TRAIN: Final = replace(
    RAW,
    floor=(0.001, 0.03),
    elastic=(0.0, 0.02),
    start=(0.0, 0.2),
    scale_mismatch=0.012,
    fwhm_ratio=(0.6, 1.67),
    noise_ratio=(0.25, 4.0),
    start_apart=0.3,
    fault_share=0.35,
)
"""Training of the networks that are shipped: each fault of raw files in a third of the pairs that are not clean."""

MEASUREMENTS: Final[dict[str, Measurement]] = {
    "clean": CLEAN,
    "lab": LAB,
    "augment": AUGMENT,
    "raw": RAW,
    "train": TRAIN,
}
"""Named settings, as recipes and benchmark tracks call them."""


def measurement_named(name: str) -> Measurement:
    """Return a named setting.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in MEASUREMENTS:
        raise ConfigError(f"measurement {name!r} is not known", fix=f"Use one of {', '.join(MEASUREMENTS)}")
    return MEASUREMENTS[name]


@dataclass(frozen=True)
class Conditions:
    """What `Measurement` describes, drawn for P pairs: (P,) each, `background` (P, 2) for host and doped sample.

    Attributes:
        kind: Wished kind of DOS, index into `KINDS`.
        element: Uniform number that chooses the element of a projected DOS.
        energy_factor: Energy that the instrument reads over the true one.
        doped_factor: The same of the doped sample over that of the host.
        doped_start: `start` of the doped sample.
        shapes: (P, 2, 3) uniform numbers, not zero, that choose the shapes of the backgrounds.
    """

    kind: NDArray[np.intp]
    element: FloatArray
    fwhm_mev: FloatArray
    fwhm_growth: FloatArray
    noise: FloatArray
    background: FloatArray
    energy_factor: FloatArray
    cut_low_mev: FloatArray
    cut_high: FloatArray
    floor: FloatArray
    multiphonon: FloatArray
    elastic: FloatArray
    start: FloatArray
    doped_factor: FloatArray
    fwhm_ratio: FloatArray
    noise_ratio: FloatArray
    doped_start: FloatArray
    shapes: FloatArray

    @classmethod
    def draw(cls, measurement: Measurement, rngs: Sequence[np.random.Generator]) -> Conditions:
        """Draw conditions.

        Args:
            measurement: What to draw from.
            rngs: One generator for each pair; it alone decides what is drawn for that pair.
        """
        # Every pair draws the same numbers in the same order, whether its conditions use them or not.
        uniform, normal, more = np.empty((len(rngs), 16)), np.empty(len(rngs)), np.zeros((len(rngs), 2 * len(_RAW) + 2))
        raw = measurement.raw
        for number, rng in enumerate(rngs):
            rng.random(out=uniform[number])
            normal[number] = rng.standard_normal()
            if raw:
                rng.random(out=more[number])
        clean = uniform[:, 0] < measurement.clean_share
        without = {name: more[:, len(_RAW) + i] >= measurement.fault_share for i, name in enumerate(_RAW)}

        def between(name: str, number: Any, *, log: bool = False) -> FloatArray:
            low, high = getattr(measurement, name)
            if low == high:
                value = np.full(number.shape, low)
            else:
                value = low * (high / low) ** number if log and low > 0 else low + (high - low) * number
            usual = getattr(CLEAN, name)[0]
            none = (clean | without.get(name, False)).reshape(-1, *[1] * (number.ndim - 1))
            return np.asarray(np.where(none, usual, value))

        odds = np.cumsum(measurement.weights) / sum(measurement.weights)
        kind = np.minimum(np.searchsorted(odds, uniform[:, 1], side="right"), np.flatnonzero(measurement.weights)[-1])
        scale = np.where(clean, CLEAN.energy_scale, measurement.energy_scale)
        mismatch = np.where(clean | without["scale_mismatch"], CLEAN.scale_mismatch, measurement.scale_mismatch)
        start, other = between("start", more[:, 3]), between("start", more[:, -2])
        return cls(
            kind=np.where(clean, 0, kind),
            element=uniform[:, 2],
            fwhm_mev=between("fwhm_mev", uniform[:, 3], log=True),
            fwhm_growth=between("fwhm_growth", uniform[:, 4], log=True),
            noise=between("noise", uniform[:, 5], log=True),
            background=between("background", uniform[:, 8:10]),
            energy_factor=np.clip(1.0 + scale * normal, 0.8, 1.2),
            cut_low_mev=between("cut_low_mev", uniform[:, 6]),
            cut_high=between("cut_high", uniform[:, 7]),
            floor=between("floor", more[:, 0], log=True),
            multiphonon=between("multiphonon", more[:, 1]),
            elastic=between("elastic", more[:, 2]),
            start=start,
            doped_factor=1.0 + mismatch * (2.0 * more[:, 4] - 1.0),
            fwhm_ratio=between("fwhm_ratio", more[:, 5], log=True),
            noise_ratio=between("noise_ratio", more[:, 6], log=True),
            doped_start=np.where(more[:, -1] < measurement.start_apart, other, start),
            shapes=1.0 - uniform[:, 10:].reshape(-1, 2, 3),
        )
