"""Phonon densities of states as a user has them: validated, converted, resampled, broadened.

A phonon DOS vanishes as E^2 at zero energy, is nowhere negative but for noise, and ends at the band edge. What breaks
one of these is not a DOS, and is refused with one error that says so.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectnet.elements import element_index
from defectnet.errors import SpectrumError
from defectnet.measure.broadening import FWHM_TO_SIGMA, broadening_kernel
from defectnet.measure.curves import cumulative, integral_errors, integrals

FloatArray = NDArray[np.float64]

KINDS: Final[tuple[str, ...]] = ("total", "neutron-weighted", "projected")
"""How the elements' shares are weighted in a DOS; `Batch.kind` is the index.

total: all atoms alike. neutron-weighted: sigma_k / m_k, as inelastic neutron scattering from powders gives it.
projected: one element's share only, as nuclear resonant scattering gives it.
"""

UNITS: Final[dict[str, float]] = {
    "meV": 1.0,
    "THz": 4.135667696923859,
    "cm-1": 0.12398419843320026,
    "eV": 1000.0,
    "rad/ps": 0.6582119569509066,
    "Hartree": 27211.386245988,
}
"""Energy unit -> meV per unit (CODATA 2018). Angular frequencies, 2 pi THz, are in rad/ps."""

MIN_POINTS: Final = 16
LARGEST: Final = 1e100  # number of a file: squares of larger ones are none
NEGATIVE_LIMIT: Final = 0.05  # of the maximum: what errors and scatter do not explain stays within this
NEGATIVE_AREA_LIMIT: Final = 0.05  # of the area
NOISE_SIGMAS: Final = 5.5  # a negative value within so many standard deviations is noise, also among some thousand
IMAGINARY_LIMIT: Final = 0.02  # of the area: smearing of the acoustic modes around zero stays within this
SYMMETRIC: Final = 0.1  # of its area: a DOS that differs by less from its mirror image at negative energies is even
FEWEST_FOR_NOISE: Final = 40  # points: fewer do not tell noise from structure

_ALIASES: Final = {
    "mev": "meV",
    "millielectronvolt": "meV",
    "thz": "THz",
    "terahertz": "THz",
    "cm-1": "cm-1",
    "1/cm": "cm-1",
    "cm^-1": "cm-1",
    "cm^(-1)": "cm-1",
    "cm^{-1}": "cm-1",
    "cm**-1": "cm-1",
    "cm⁻¹": "cm-1",
    "cm−1": "cm-1",  # noqa: RUF001 - the minus sign that word processors write
    "invcm": "cm-1",
    "1/centimeter": "cm-1",
    "reciprocalcentimeter": "cm-1",
    "ev": "eV",
    "electronvolt": "eV",
    **dict.fromkeys(("rad/ps", "radian/picosecond", "radps-1", "rad/picosecond", "radthz", "thzrad"), "rad/ps"),
    **dict.fromkeys(("2pithz", "2πthz", "2pi*thz", "2π*thz", "2*pi*thz", "2π·thz", "2pi·thz", "thz*2pi"), "rad/ps"),
    **dict.fromkeys(("hartree", "hartrees", "ha"), "Hartree"),
}


def parse_unit(text: str, *, field: str = "unit") -> str:
    """Return the unit of `UNITS` that a text such as ``1/cm`` or ``terahertz`` names.

    Args:
        text: What was written.
        field: Where it was written, for the error.

    Raises:
        SpectrumError: No such unit is known. ``MeV`` is refused: it is 10^9 times the unit that was meant.
    """
    if not isinstance(text, str):
        raise SpectrumError(f"{field} is {text!r}", fix=f"Use one of {', '.join(UNITS)}")
    plain = re.sub(r"[\s_]", "", text)
    unit = _ALIASES.get(plain.lower())
    if unit is None or plain == "MeV":
        raise SpectrumError(f"{field}: unknown unit {text!r}", fix=f"Use one of {', '.join(UNITS)}")
    return unit


def is_unit(text: str) -> bool:
    """Tell whether a text reads as an energy unit, rightly or wrongly written."""
    return re.sub(r"[\s_]", "", text).lower() in _ALIASES


def parse_kind(text: str, *, field: str = "kind") -> str:
    """Return the kind of `KINDS` that a text such as ``neutron weighted`` names.

    Raises:
        SpectrumError: No such kind is known.
    """
    if not isinstance(text, str):
        raise SpectrumError(f"{field} is {text!r}", fix=f"Use one of {', '.join(KINDS)}")
    plain = re.sub(r"[\s_]+", "-", text.strip().lower())
    plain = {"partial": "projected"}.get(plain, plain)
    if plain not in KINDS:
        raise SpectrumError(f"{field}: unknown kind of DOS {text!r}", fix=f"Use one of {', '.join(KINDS)}")
    return plain


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A phonon density of states on a grid of energies; checked when it is made.

    Points below zero energy are cut if next to nothing lies there, or the same as at positive energies. Values below
    zero are kept where errors or scatter explain them: cut, they would make a background out of noise. Others are set
    to zero if they are small, and refused if not. The arrays are copies and cannot be written to.

    Attributes:
        energy: (n,) energies in `unit`, strictly increasing, not negative; n is 16 at least.
        dos: (n,) DOS per `unit`, in any scale; positive area.
        unit: One of `UNITS`.
        kind: One of `KINDS`.
        element: The element of a projected DOS, where known; None for the other kinds.
        source: File it came from, named in errors.
        error: (n,) standard deviation of the DOS, not negative; None where not known.
        kind_told: Whether a file or a person said the kind; false where it is total by default.
        remark: What its reader found doubtful; empty by default.

    Raises:
        SpectrumError: The values are no phonon DOS, or a unit or kind is unknown.
    """

    energy: FloatArray
    dos: FloatArray
    unit: str
    kind: str = "total"
    element: str | None = None
    source: str = ""
    error: FloatArray | None = None
    kind_told: bool = True
    remark: str = ""

    def __post_init__(self) -> None:
        unit, kind = (
            parse_unit(self.unit, field=f"{self.name}, unit"),
            parse_kind(self.kind, field=f"{self.name}, kind"),
        )
        if self.element is not None:
            element_index(self.element, field=f"{self.name}, element")
            if kind != "projected":
                raise SpectrumError(
                    f"{self.name} names element {self.element}, but its kind is {kind}",
                    fix='Leave element out, or set kind="projected"',
                )
        energy, dos, error = _checked(self.energy, self.dos, self.error, self.name)
        for array in (energy, dos, error):
            if array is not None:
                array.setflags(write=False)
        for key, value in {"energy": energy, "dos": dos, "error": error, "unit": unit, "kind": kind}.items():
            object.__setattr__(self, key, value)

    @property
    def name(self) -> str:
        """What errors call this spectrum: its file, or just ``spectrum``."""
        return self.source or "spectrum"

    @property
    def energy_mev(self) -> FloatArray:
        """(n,) energies in meV."""
        return self.energy * UNITS[self.unit]

    @property
    def area(self) -> float:
        """Integral of the DOS over energy, by the trapezoidal rule."""
        return float(np.trapezoid(self.dos, self.energy))

    def to(self, unit: str) -> Spectrum:
        """Return the same spectrum in another unit; the DOS is per that unit, so the area is kept."""
        unit = parse_unit(unit)
        factor = UNITS[self.unit] / UNITS[unit]
        return self._scaled(1.0 / factor, energy=self.energy * factor, unit=unit)

    def normalised(self) -> Spectrum:
        """Return the same spectrum with unit area."""
        return self._scaled(1.0 / self.area)

    def _scaled(self, factor: float, **changes: Any) -> Spectrum:
        return self._with(dos=self.dos * factor, error=None if self.error is None else self.error * factor, **changes)

    def _with(self, **changes: Any) -> Spectrum:
        """Return a copy with other values, which are not checked again: smoothed noise looks like structure."""
        made = copy(self)
        for name, value in changes.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(made, name, value)
        return made

    def resampled(self, energy: ArrayLike) -> Spectrum:
        """Return the spectrum on other energies, each value the mean over its cell; the area is kept.

        Args:
            energy: (m,) energies in the spectrum's unit, strictly increasing.

        Raises:
            SpectrumError: More than 1 % of the area lies outside the new energies.
        """
        grid = np.array(energy, dtype=np.float64)
        _check_grid(grid, f"{self.name}, new energies")
        cells = np.concatenate([grid[:1], (grid[1:] + grid[:-1]) / 2, grid[-1:]])
        # The widths of these cells are the weights of the trapezoidal rule, so the sum of the cells is the area.
        total = cumulative(self.energy, self.dos)
        shares = np.diff(integrals(self.energy, self.dos, total, cells))
        lost = 1.0 - shares.sum() / self.area
        if lost > 0.01:
            raise SpectrumError(
                f"{self.name}: {lost:.0%} of the area lies outside the new energies",
                why=f"{grid[0]:g} to {grid[-1]:g} {self.unit}",
                fix="Resample on energies that cover the spectrum",
            )
        factor = 1.0 / (np.diff(cells) * (1.0 - lost))
        error = None if self.error is None else integral_errors(self.energy, self.error, cells) * factor
        return self._with(energy=grid, dos=shares * factor, error=error)

    def broadened(self, fwhm_mev: float) -> Spectrum:
        """Return the spectrum seen with a Gaussian resolution; the area is kept.

        The grid grows upwards by four standard deviations, with its last step, so that the band edge may smear out;
        what would leave it at the lower end stays inside, as at a reflecting wall.

        Args:
            fwhm_mev: Full width at half maximum in meV; 0 changes nothing.

        Raises:
            SpectrumError: The width is negative or not finite.
        """
        if not (np.isfinite(fwhm_mev) and fwhm_mev >= 0):
            raise SpectrumError(f"fwhm_mev is {fwhm_mev}", fix="Use a finite width that is not negative")
        sigma = fwhm_mev * FWHM_TO_SIGMA / UNITS[self.unit]
        step = np.diff(self.energy)
        if sigma < 0.1 * step.min():  # the kernel would fall between the points
            return self
        extra = int(np.ceil(4.0 * sigma / step[-1]))
        energy = np.append(self.energy, self.energy[-1] + step[-1] * np.arange(1, extra + 1))
        steps = _trapezoid_weights(self.energy)
        weight = _trapezoid_weights(energy)
        dos, variance = np.zeros_like(energy), np.zeros_like(energy)
        for start in range(0, len(steps), 512):  # blocks bound the memory for long grids
            block = slice(start, start + 512)
            kernel = broadening_kernel(energy, self.energy[block], sigma, weight) * steps[block]
            dos += kernel @ self.dos[block]
            if self.error is not None:
                variance += kernel**2 @ self.error[block] ** 2
        return self._with(energy=energy, dos=dos, error=None if self.error is None else np.sqrt(variance))


def _checked(
    energy: ArrayLike, dos: ArrayLike, error: ArrayLike | None, name: str
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Check what a DOS must fulfil; return copies without negative energies and what no noise explains below zero."""
    try:
        energy, dos = np.array(energy, dtype=np.float64), np.array(dos, dtype=np.float64)
        sigma = None if error is None else np.array(error, dtype=np.float64)
    except (TypeError, ValueError) as wrong:
        raise SpectrumError(
            f"{name}: energies and DOS must be numbers", why=str(wrong), fix="Give two 1-D arrays"
        ) from wrong
    if energy.ndim != 1 or energy.shape != dos.shape:
        raise SpectrumError(
            f"{name}: energies and DOS have shapes {energy.shape} and {dos.shape}",
            fix="Give two 1-D arrays of one length",
        )
    _check_grid(energy, name)
    if not np.isfinite(dos).all():
        row = int(np.flatnonzero(~np.isfinite(dos))[0]) + 1
        raise SpectrumError(f"{name}: the DOS is {dos[row - 1]} at point {row}", fix="Remove or mend that point")
    if sigma is not None:
        check_errors(sigma, dos, name)
    largest = max(float(np.abs(column).max()) for column in (energy, dos, sigma) if column is not None)
    if largest > LARGEST:
        raise SpectrumError(f"{name}: a number is as large as {largest:.3g}", fix="Check the file, or give other units")
    sigma = None if sigma is not None and not sigma.any() else sigma  # a column of zeros says nothing
    peak = float(dos.max())
    if peak <= 0:
        raise SpectrumError(f"{name}: the DOS is nowhere positive", fix="Check that the second column is the DOS")
    clipped = np.where(_explained(dos, sigma), dos, np.maximum(dos, 0.0))
    _check_negative(energy, dos, clipped, name)
    positive = energy >= 0
    if np.count_nonzero(positive) < MIN_POINTS:
        raise SpectrumError(
            f"{name}: only {np.count_nonzero(positive)} points at positive energies",
            fix=f"Give {MIN_POINTS} points at least, with energy loss (phonon creation) counted positive",
        )
    _check_elastic(energy[positive], dos[positive], name)
    area = float(np.trapezoid(clipped, energy))
    if area <= 0:
        raise SpectrumError(f"{name}: the DOS has no area", fix="Check that the second column is the DOS")
    below = float(np.trapezoid(clipped[~positive], energy[~positive]))
    if below > IMAGINARY_LIMIT * area and not _is_even(energy, clipped):
        raise SpectrumError(
            f"{name}: {below / area:.0%} of the DOS lies at negative energies",
            why="imaginary modes: the structure is not relaxed or not stable; or the gain side of S(E); or electrons",
            fix="Relax the structure and compute the DOS again; from a measurement give the DOS at positive energies",
        )
    return energy[positive].copy(), clipped[positive].copy(), None if sigma is None else sigma[positive].copy()


def check_errors(sigma: FloatArray, dos: FloatArray, name: str) -> None:
    """See that there is a standard deviation for each of (n,) values.

    Raises:
        SpectrumError: They are more or fewer, or one is NaN, infinite or negative.
    """
    if sigma.shape != dos.shape:
        raise SpectrumError(
            f"{name}: errors have shape {sigma.shape}",
            fix=f"Give {len(dos)} standard deviations, one for each point, or none",
        )
    wrong = np.flatnonzero(~(np.isfinite(sigma) & (sigma >= 0.0)))
    if len(wrong):
        raise SpectrumError(
            f"{name}: the error is {sigma[wrong[0]]:g} at point {wrong[0] + 1}",
            fix="Give standard deviations, 0 or more, or none",
        )


def _check_grid(energy: FloatArray, name: str) -> None:
    if energy.ndim != 1 or len(energy) < MIN_POINTS:
        raise SpectrumError(f"{name}: {energy.size} points are too few", fix=f"Give {MIN_POINTS} points at least")
    if not np.isfinite(energy).all():
        row = int(np.flatnonzero(~np.isfinite(energy))[0]) + 1
        raise SpectrumError(f"{name}: the energy is {energy[row - 1]} at point {row}", fix="Remove or mend that point")
    step = np.diff(energy)
    if (step <= 0).any():
        row = int(np.flatnonzero(step <= 0)[0]) + 2
        what = "is there twice" if step[row - 2] == 0 else "is smaller than the one before"
        raise SpectrumError(
            f"{name}: energy {energy[row - 1]:g} at point {row} {what}",
            fix="Sort the points by energy" if step[row - 2] < 0 else "Keep one point for each energy",
        )


def _explained(dos: FloatArray, error: FloatArray | None) -> NDArray[np.bool_]:
    """Tell of each value whether noise could have put it below zero.

    A stated error may be far too small, above all where nothing was counted: that of its neighbours counts, too, and
    how the points scatter.
    """
    low = np.flatnonzero(dos < 0.0)
    if not len(low):
        return np.ones(len(dos), dtype=bool)
    sigma = np.zeros(len(low))
    if len(dos) >= FEWEST_FOR_NOISE:
        # Third differences know neither level, slope nor curvature; their mean square is 20 times the noise's.
        sigma += float(np.median(np.abs(np.diff(dos, 3)))) / 0.6745 / np.sqrt(20.0)
    if error is not None:
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(error, 8, constant_values=np.nan), 17)
        sigma = np.maximum.reduce([sigma, error[low], np.nanmedian(windows[low], axis=1)])
    found = np.ones(len(dos), dtype=bool)
    found[low] = dos[low] >= -NOISE_SIGMAS * sigma
    return found


def _is_even(energy: FloatArray, dos: FloatArray) -> bool:
    """Tell whether a DOS is the same at negative energies, as the Fourier transform of a correlation is."""
    reach = min(-float(energy[0]), float(energy[-1]))
    grid = np.linspace(0.0, reach, 400)
    right, left = np.interp(grid, energy, dos), np.interp(-grid, energy, dos)
    return bool(np.abs(right - left).sum() < SYMMETRIC * np.abs(right).sum())


def _check_negative(energy: FloatArray, dos: FloatArray, clipped: FloatArray, name: str) -> None:
    """Refuse large values below zero that no noise explains: a background that was subtracted too far."""
    cut = clipped - dos
    lowest = int(cut.argmax())
    area = float(np.trapezoid(np.maximum(dos, 0.0), energy))
    lost = float(np.trapezoid(cut, energy)) / area
    if cut[lowest] > NEGATIVE_LIMIT * dos.max() or lost > NEGATIVE_AREA_LIMIT:
        raise SpectrumError(
            f"{name}: the DOS is negative beyond noise",
            why=f"{dos[lowest] / dos.max():.0%} of the maximum at energy {energy[lowest]:g}, {lost:.0%} of the area",
            fix="Subtract less background, or cut energies where noise is all there is; give errors if you have them",
        )


def _check_elastic(energy: FloatArray, dos: FloatArray, name: str) -> None:
    """Refuse S(E): there the elastic line towers at zero energy, where a DOS vanishes as E^2."""
    total = cumulative(energy, dos)
    if energy[0] > 0.05 * energy[np.argmax(total >= 0.95 * total[-1])]:
        return  # the grid does not reach down to the elastic line
    head, peak = float(dos[0]), float(dos.max())
    lowest = np.minimum.accumulate(dos)
    rises = np.flatnonzero(dos > lowest + 0.05 * peak)  # the first valley ends where the curve rises again
    valley = float(dos[: rises[0]].min() if len(rises) else dos.min())
    if head > 0.2 * peak and valley < 0.5 * head:
        raise SpectrumError(
            f"{name}: the intensity rises to {head / peak:.0%} of its maximum at zero energy",
            why="a DOS vanishes there; this looks like S(E) with its elastic line",
            fix="Subtract the elastic line and convert S(E) to a DOS first",
        )


def _trapezoid_weights(energy: FloatArray) -> FloatArray:
    step = np.diff(energy)
    return np.asarray((np.append(step, 0.0) + np.append(0.0, step)) / 2)
