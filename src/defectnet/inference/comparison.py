"""Measured spectra and computed ones in the same bins, and whether they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.pack import HostPack
from defectnet.elements import formula_text, parse_formula
from defectnet.errors import SimulationError, SpectrumError
from defectnet.inference.emulator import FULL
from defectnet.inference.instrument import InstrumentMap
from defectnet.inference.responses import likeliest_sites
from defectnet.io.objects import as_spectrum
from defectnet.measure.curves import cumulative, integral_covariance, integrals
from defectnet.measure.encode import host_edge_mev
from defectnet.spectrum import UNITS, Spectrum

FloatArray = NDArray[np.float64]

OTHER_EDGE: Final = 2.0
"""Factor between measured and computed edge from which on the spectrum is not of this crystal, or not in its unit."""

SAME_EDGE: Final = 0.2
"""Logarithm of that factor below which a unit would fit."""

REACH: Final = 2.2
"""Highest energy, in edges, that is compared."""

QUIET: Final = 0.002
"""Least noise, as a share of the highest value: interpolation and rounding of a file."""

LIVE, FEWEST = 0.1, 20
"""Share of the highest value from which on points tell the noise, and the least number of such points."""

ANOTHER_HOST: Final = 0.05
"""Squared distance, over the square of one, from which on the hosts of a standard and of the pair are not one crystal:
those of four virtual labs, whose resolution grows from sample to sample, stay below 0.01."""

LEAST_NOISE: Final = 6.0
"""However much of the scatter looks like the curve's, a tenth of its square is taken for noise."""


@dataclass(frozen=True)
class Compared:
    """A measured pair in M bins.

    Attributes:
        instrument: Bins, resolution, and map of energies.
        edge_mev: Band edge of the measured host.
        pristine: (M,) host, per edge, of unit area. change: (M,) doped less host.
        noise: (M, M) covariance of the change's noise.
        deviation: (M,) measured host less computed one.
        smooth: (M, M) broadening that was applied to what is measured.
    """

    instrument: InstrumentMap
    edge_mev: float
    pristine: FloatArray
    change: FloatArray
    noise: FloatArray
    deviation: FloatArray
    smooth: FloatArray

    @property
    def distance(self) -> float:
        """Squared distance of measured and computed host over the former's square."""
        return float((self.deviation**2).sum() / (self.pristine**2).sum())


@dataclass(frozen=True)
class Standard:
    """A sample of known content, measured on the same instrument as what is asked about.

    Attributes:
        host, doped: DOS of the pristine crystal and of the sample; made of what `as_spectrum` takes.
        dopants: Element, or ``Al@Ga`` where a pack has it on several sites -> dopant atoms over all atoms.
        formula: Of the pristine crystal, where it is told: it is compared with that of what is asked about.

    Raises:
        SimulationError: The dopants are no contents.
    """

    host: Spectrum
    doped: Spectrum
    dopants: Mapping[str, float]
    formula: str | None = None

    def __post_init__(self) -> None:
        for role in ("host", "doped"):
            object.__setattr__(self, role, as_spectrum(getattr(self, role), f"a standard's {role}"))
        fix = 'Give dopant atoms over all atoms, such as {"Al": 0.06}'
        if not isinstance(self.dopants, Mapping):
            raise SimulationError(f"standard {self.doped.name}: its dopants are {self.dopants!r}", fix=fix)
        for name, amount in self.dopants.items():
            if not (isinstance(amount, int | float | np.number) and 0.0 <= amount <= 1.0):
                raise SimulationError(f"standard {self.doped.name}: the content of {name} is {amount!r}", fix=fix)
        total = sum(self.dopants.values())
        if total > FULL:
            raise SimulationError(
                f"standard {self.doped.name} holds {total:.0%} dopants",
                why=f"beyond {FULL:.0%} spectra are not superposed",
                fix="Leave this standard out",
            )


def check_formula(formula: Any, pack: HostPack, *, of: str = "") -> None:
    """See that a formula, where one is given, is the pack's.

    Args:
        formula: Text, or what else `formula_text` takes; None for none.
        pack: Of the crystal.
        of: Whose formula it is, for the error, with a colon and a blank.

    Raises:
        SimulationError: It is another one.
    """
    if formula is None:
        return
    given, own = (parse_formula(formula_text(one)) for one in (formula, pack.host.formula))
    total = sum(given.values()), sum(own.values())
    same = given.keys() == own.keys() and np.allclose(
        [given[x] / total[0] for x in given], [own[x] / total[1] for x in given], atol=1e-6
    )
    if not same:
        raise SimulationError(
            f"{of}the formula is {formula}, the crystal {pack.host.formula}", fix="Correct one of them"
        )


def meant(name: str, dopants: Sequence[str]) -> list[str]:
    """Return which of some dopants ``Al`` (on any site) or ``Al@Ga`` stands for."""
    return [one for one in dopants if name in (one, one.partition("@")[0])]


def check_pair(
    pack: HostPack, host: Spectrum, doped: Spectrum, *, fwhm_mev: float | None = None, edge_mev: float | None = None
) -> float:
    """See that a pair can be asked about, and return the host's band edge in meV; arguments as for `identify`.

    Raises:
        SpectrumError: The spectra do not belong together, or end too early; or a width or edge cannot be one.
    """
    if host.kind != doped.kind:
        raise SpectrumError(
            f"{host.name} and {doped.name} are different kinds of DOS",
            why=f"{host.kind} and {doped.kind}",
            fix="Give two spectra of one kind",
        )
    elements = list(dict.fromkeys(pack.replaced(atom) for atom in range(len(pack.host.primitive))))
    if host.kind == "projected":
        element = host.element or doped.element
        if element is None or element not in elements:
            raise SpectrumError(
                f"{host.name}: projected on {element or 'no element that is named'}",
                fix=f"Name one of {', '.join(elements)} with element=",
            )
    if edge_mev is not None and not 0.0 < edge_mev < np.inf:
        raise SpectrumError(f"the band edge is {edge_mev:g} meV", fix="Give the host's highest energy, in meV")
    edge = edge_mev or host_edge_mev(host)
    own = pack.host.band_edge_mev
    if edge > OTHER_EDGE * own or (host.kind != "projected" and edge * OTHER_EDGE < own):
        fitting = [
            name for name, size in UNITS.items() if abs(np.log(edge / UNITS[host.unit] * size / own)) < SAME_EDGE
        ]
        raise SpectrumError(
            f"{host.name}: the host's edge is {edge:.4g} meV, read as {host.unit}; {pack.host.formula} as computed has "
            f"{own:.4g} meV",
            fix=f"{f'In {fitting[0]} it would fit: give --unit. ' if fitting else ''}Check unit, structure and --edge",
        )
    if fwhm_mev is not None and not 0.0 < fwhm_mev <= 0.5 * edge:
        raise SpectrumError(
            f"the resolution is {fwhm_mev:g} meV, the host's edge {edge:.4g}", fix="Give a FWHM in meV, or leave it out"
        )
    end = min(float(host.energy_mev[-1]), float(doped.energy_mev[-1]), REACH * edge)
    if end < 0.95 * edge:
        raise SpectrumError(
            f"{doped.name}: the pair ends at {end:.4g} meV, below the host's edge of {edge:.4g} meV",
            fix="Give both spectra until they have fallen to zero",
        )
    return edge


def check_standard(pack: HostPack, names: Sequence[str], standard: Standard, kind: str) -> FloatArray:
    """See that a standard belongs to a question, and return its (K,) concentrations of the candidates' names.

    Raises:
        SpectrumError: Its spectra do not belong together, end too early, or are of another kind than the pair's.
        SimulationError: It holds what is no candidate.
    """
    check_formula(standard.formula, pack, of=f"standard {standard.doped.name}: ")
    check_pair(pack, standard.host, standard.doped)
    if standard.doped.kind != kind:
        raise SpectrumError(
            f"standard {standard.doped.name} is of another kind of DOS than the pair in question",
            why=f"{standard.doped.kind} and {kind}",
            fix="Say its kind if it is taken for another, or leave this standard out",
        )
    concentration = np.zeros(len(names))
    for name, amount in standard.dopants.items():
        asked = meant(name, names)
        if not asked:
            raise SimulationError(
                f"standard {standard.doped.name} holds {name}",
                why=f"the candidates are {', '.join(names)}",
                fix="Name it among the candidates too, or leave this standard out",
            )
        concentration[names.index(likeliest_sites(pack, asked)[0])] += amount
    return concentration


def estimated_noise(dos: FloatArray) -> float:
    """Return the standard deviation of the noise of (N,) values that scatter about a smooth curve.

    Third differences know neither level, slope nor curvature; their mean square is 20 times the noise's. What they
    know of the curve itself is eight times as large between points that are twice as far apart. They count where there
    is signal: elsewhere noise is cut at zero.
    """
    squares = []
    for step in (1, 2):
        third = np.abs(dos[3 * step :] - 3.0 * dos[2 * step : -step] + 3.0 * dos[step : -2 * step] - dos[: -3 * step])
        live = dos[step : len(third) + step] > LIVE * dos.max()
        third = third[live] if live.sum() >= FEWEST else third
        squares.append((np.median(third) / 0.6745) ** 2 / 20.0)
    near, far = squares
    return float(np.sqrt(max(64.0 * near - far, LEAST_NOISE * near) / 63.0))


def binned(spectrum: Spectrum, instrument: InstrumentMap, unit_mev: float) -> tuple[FloatArray, FloatArray]:
    """Return the (M,) DOS per edge in the bins, of unit area, and the (M, M) covariance of its noise.

    Errors are the spectrum's own, or estimated from its scatter.
    """
    energy = spectrum.energy_mev / unit_mev
    dos = np.asarray(spectrum.dos, dtype=np.float64)
    shares = np.diff(integrals(energy, dos, cumulative(energy, dos), instrument.edges).ravel())
    area = float(shares.sum())
    width = instrument.width
    sigma = np.full(len(dos), estimated_noise(dos)) if spectrum.error is None else spectrum.error
    covariance = integral_covariance(energy, sigma, instrument.edges) / np.outer(width, width)
    outside = np.where(np.diag(covariance) > 0.0, 0.0, np.interp(instrument.middle, energy, sigma**2))
    return shares / area / width, (covariance + np.diag(outside)) / area**2


def changed(
    host: Spectrum, doped: Spectrum, instrument: InstrumentMap, unit_mev: float, smooth: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the (M,) host and (M,) change of a pair with its errors, broadened, and the (M, M) noise of the change."""
    (pristine, host_noise), (sample, doped_noise) = (binned(one, instrument, unit_mev) for one in (host, doped))
    noise = smooth @ (host_noise + doped_noise) @ smooth.T
    pristine = smooth @ pristine
    quiet = 2.0 * (QUIET * pristine.max()) ** 2 * np.eye(len(pristine))
    return pristine, smooth @ sample - pristine, noise + quiet
