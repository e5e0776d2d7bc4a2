"""Whether a pair of spectra can be what it is said to be: its band edge, its reach, its likeness, its noise.

`edges.json` holds a ridge of the logarithm of the edge on the composition, and the edges of the hosts of the bundled
data sets and packs; `examples/fit_edges.py` writes it.
"""

from __future__ import annotations

import json
import math
from functools import cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from defectnet.elements import INDEX, VOCABULARY, composition, parse_formula, properties
from defectnet.measure.curves import cumulative, integral_errors, integrals
from defectnet.spectrum import UNITS, Spectrum

FloatArray = NDArray[np.float64]

FACTOR: Final = 2.0
"""Between an edge and the one that the composition lets expect: of 298 crystals not used in the fit 99 % are within
1.73, one is beyond 2."""

FACTOR_KNOWN: Final = 1.5
"""The same where the very composition is in the table: two potentials differ by up to 1.4 in 98 of 100 crystals."""

HIGHEST: Final = 600.0
"""meV: no phonon or molecular vibration lies above (H2: 546)."""

LOCAL_MARGIN: Final = 0.97
"""Share of the energy that a local mode is estimated to have, up to which a file must reach."""

SHOWN: Final = 5
"""Elements that a warning names."""

ALIKE, STRANGE = 0.5, 0.28
"""Overlap of the areas of host and doped sample below which it is doubtful, and below which it cannot be, that they are
of one crystal: of 2,344 simulated pairs, up to 25 at.%, one in a thousand is below 0.51, none below 0.41 (neutron-
weighted 0.42 and 0.35); of a virtual lab's, GaAs with 24 at.% N is at 0.31."""

SIGNIFICANT: Final = 0.01
"""p-value from which on a change is within the errors."""

QUIETEST: Final = 0.74
"""Of white noise, the scatter in the quietest third of its windows over that of all: they are quiet by chance, too."""

FEWEST: Final = 12
"""Bins that a change is judged by, and points above the edge that noise is told by."""

TAIL: Final = (0.02, 0.03, 6, 0.1)
"""Begin, in edges, up to which a spectrum reaches down to zero energy; width of cells, in edges, and their number, in
which an elastic line's tail is looked for; least height as a share of the maximum."""

FLOOR: Final = (1.3, 5, 0.005)
"""Edges that must have been measured, parts of the energies above, and least level of a background over the maximum."""


def features(fractions: FloatArray) -> FloatArray:
    """Return what the ridge is on: 1, (E,) atomic fractions, and their square roots."""
    return np.concatenate([[1.0], fractions, np.sqrt(fractions)])


def key(formula: str) -> str:
    """Return a composition as text, whatever order and multiple it is written in."""
    amounts = parse_formula(formula)
    least = min(amounts.values())
    return "".join(f"{symbol}{amounts[symbol] / least:.3g}" for symbol in sorted(amounts))


@cache
def _table() -> dict[str, Any]:
    text = files("defectnet").joinpath("measure/edges.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    weights = [document["share"][s] for s in VOCABULARY] + [document["root"][s] for s in VOCABULARY]
    return {"weights": np.array([document["constant"], *weights]), "hosts": document["hosts"]}


def expected_edge(formula: str) -> tuple[float, float, float]:
    """Return the band edge that a composition lets expect, and from where to where it may lie; meV."""
    known = _table()["hosts"].get(key(formula))
    if known:
        return math.sqrt(known[0] * known[-1]), known[0] / FACTOR_KNOWN, known[-1] * FACTOR_KNOWN
    edge = float(np.exp(features(composition(formula)) @ _table()["weights"]))
    return edge, edge / FACTOR, edge * FACTOR


def edge_warning(edge_mev: float, formula: str, unit: str, *, projected: bool = False) -> str | None:
    """Say that a host's edge is not that of its formula, and which unit would mend it; None where it is plausible.

    Args:
        edge_mev: As read.
        formula: Of the host.
        unit: That the spectrum was read in.
        projected: The DOS is one element's, which may end far below that of the others.
    """
    expected, low, high = expected_edge(formula)
    if (projected or low <= edge_mev) and edge_mev <= high:
        return None
    others = [name for name, size in UNITS.items() if name != unit and low <= edge_mev / UNITS[unit] * size <= high]
    more = f"; in {' or '.join(others)} it would fit" if others else ""
    ratio = max(edge_mev / expected, expected / edge_mev)
    return (
        f"implausible: the host's band edge is {edge_mev:.1f} meV (read as {unit}), {formula} is expected to have "
        f"{expected:.0f} meV, {ratio:.1f} times {'less' if edge_mev > expected else 'more'}{more}: "
        "check unit and formula"
    )


def tail_warning(host: Spectrum, doped: Spectrum, edge_mev: float) -> str | None:
    """Say that what an elastic line leaves is in one of two spectra.

    At zero energy a DOS that falls shows it. Above, acoustic modes and soft branches fall, too: there one spectrum must
    exceed the other, and less and less.
    """
    named = (("host", host, doped), ("doped spectrum", doped, host))
    start = max(float(host.energy_mev[0]), float(doped.energy_mev[0]))
    cells: FloatArray = start + edge_mev * TAIL[1] * np.arange(TAIL[2] + 1, dtype=np.float64)
    for name, spectrum, other in named:
        own, their = (_means(one, cells) for one in (spectrum, other))
        peak, noise = float(spectrum.normalised().dos.max()), noise_of(spectrum, edge_mev)
        least = TAIL[3] * peak + (0.0 if noise is None else 4.0 * float(noise[0][:3].mean()) / spectrum.area)
        if start <= TAIL[0] * edge_mev:
            left = own[0] - own.min() > least and own[0] > 2.0 * own.min() and own.argmin() > 0
        else:
            more = own - their
            left = (
                more[0] > least
                and own[0] > 2.0 * their[0]
                and more[-1] < 0.3 * more[0]
                and bool((np.diff(more[:3]) < 0).all())
            )
        if left:
            return (
                f"the {name} begins too high, at {start:.3g} meV: where a DOS rises it falls, as the tail of an "
                "elastic line does; subtract more, or begin at higher energies"
            )
    return None


def _means(spectrum: Spectrum, cells: FloatArray) -> FloatArray:
    """Return the means of a spectrum of unit area over cells."""
    energy, dos = spectrum.energy_mev, spectrum.normalised().dos
    return np.asarray(np.diff(integrals(energy, dos, cumulative(energy, dos), cells)) / np.diff(cells))


def floor_warning(spectrum: Spectrum, edge_mev: float, name: str) -> str | None:
    """Say that a DOS does not fall to zero above the edge; local modes lie somewhere, a background everywhere."""
    energy, dos = spectrum.energy_mev, spectrum.dos
    above = dos[energy > 1.05 * edge_mev]
    if energy[-1] < FLOOR[0] * edge_mev or len(above) < 2 * FLOOR[1]:
        return None
    parts = np.array([part.mean() for part in np.array_split(above, FLOOR[1])])
    noise = noise_of(spectrum, edge_mev)
    doubt = 0.0 if noise is None else 4.0 * float(noise[0][-len(above) :].mean()) / np.sqrt(len(above) / FLOOR[1])
    level = float(parts.min())
    if level < FLOOR[2] * dos.max() + doubt or level < 0.6 * np.median(parts):
        return None
    return (
        f"the {name} does not fall to zero: {level / dos.max():.1%} of its maximum or more from the edge to its end, "
        f"{energy[-1]:.4g} meV; a background is left in it and may be taken for a dopant"
    )


def reach_warning(
    end_mev: float, edge_mev: float, formula: str, candidates: NDArray[np.bool_], *, named: bool = True
) -> str | None:
    """Say whose local modes would lie above the end of a file.

    A light atom in a chain of the host's lightest vibrates at the edge over sqrt(1 - e^2), e being the mass that it
    lacks, as a share: 1.27 edges for B in Si, where 1.25 is measured.

    Args:
        end_mev: Last energy of the doped spectrum.
        edge_mev: Of the host.
        formula: Of the host.
        candidates: (E,) elements in question.
        named: Somebody thinks of them; where all are in question, 1.3 edges are enough not to be reminded of lithium.
    """
    if not named and end_mev > 1.3 * edge_mev:
        return None
    mass = properties("mass_u")
    lacking = 1.0 - mass / min(mass[INDEX[symbol]] for symbol in parse_formula(formula))
    local = np.where(lacking > 0, edge_mev / np.sqrt(1.0 - np.clip(lacking, 0.0, 0.999) ** 2), 0.0)
    hidden = [VOCABULARY[i] for i in np.flatnonzero(candidates & (local * LOCAL_MARGIN > end_mev))]
    if not hidden:
        return None
    more = f" and {len(hidden) - SHOWN} more" if len(hidden) > SHOWN else ""
    return (
        f"the doped spectrum ends at {end_mev:.1f} meV, {end_mev / edge_mev:.2f} of the host's edge: local modes of "
        f"{', '.join(hidden[:SHOWN])}{more} would lie above, so these cannot be excluded"
    )


def overlap(host: Spectrum, doped: Spectrum) -> float:
    """Return the area that two spectra of unit area share, 0 to 1."""
    edges = np.linspace(0.0, max(host.energy_mev[-1], doped.energy_mev[-1]), 201)
    shares = []
    for spectrum in (host, doped):
        energy, dos = spectrum.energy_mev, np.maximum(spectrum.dos, 0.0)
        part = np.diff(integrals(energy, dos, cumulative(energy, dos), edges))
        shares.append(part / part.sum())
    return float(np.minimum(*shares).sum())


def noise_of(spectrum: Spectrum, edge_mev: float) -> tuple[FloatArray, float] | None:
    """Return the errors of a spectrum: those stated, or how it scatters where nothing else is.

    Returns:
        (n,) standard deviations, and the degrees of freedom with which they are known; None without noise.
    """
    if spectrum.error is not None:
        positive = spectrum.error[spectrum.error > 0]
        return (np.maximum(spectrum.error, positive.min()), math.inf) if len(positive) else None
    # Second differences know neither level nor slope; their mean square is 6 times the noise's.
    bent = np.abs(np.diff(spectrum.dos, 2))
    above = bent[spectrum.energy_mev[1:-1] > 1.1 * edge_mev]
    if len(above) >= 2 * FEWEST:
        quiet, short = above, 1.0
    elif len(bent) >= 6 * FEWEST:
        windows = np.array_split(bent, int(np.clip(len(bent) // FEWEST, 6, 16)))
        order = np.argsort([float((window**2).mean()) for window in windows])[: len(windows) // 3]
        quiet, short = np.concatenate([windows[i] for i in order]), QUIETEST
    else:
        return None
    quiet = quiet[quiet <= 3.5 * np.median(quiet) / 0.6745]  # a local mode is few of the points
    sigma = float(np.sqrt((quiet**2).mean() / 6.0)) / short
    return (np.full(len(spectrum.dos), sigma), 0.5 * len(quiet)) if sigma > 1e-4 * spectrum.dos.max() else None


def change_within_errors(host: Spectrum, doped: Spectrum, edge_mev: float) -> tuple[float, float] | None:
    """Test whether two spectra differ by more than their errors, after one is scaled to the other.

    All common energies are tested, and those up to 1.1 edges: noise above hides what is there.

    Returns:
        Chi-square over its degrees of freedom, of the test that is passed worse, and the p-value of both; None if no
        errors are known, or points are too few.
    """
    errors = [noise_of(spectrum, edge_mev) for spectrum in (host, doped)]
    known = min((error[1] for error in errors if error is not None), default=0.0)
    step = max(float(np.diff(spectrum.energy_mev).max()) for spectrum in (host, doped))
    start = max(host.energy_mev[0], doped.energy_mev[0])
    end = min(host.energy_mev[-1], doped.energy_mev[-1])
    tests = []
    for last in {end, min(end, 1.1 * edge_mev)} if known else ():
        count = int((last - start) / (2.0 * step))  # two points or more in a bin: neighbours are nearly independent
        edges = np.linspace(start, last, max(count, 1) + 1)
        curves = []
        for spectrum, error in zip((host, doped), errors, strict=True):
            energy, dos = spectrum.energy_mev, spectrum.dos
            variance = np.zeros(len(edges) - 1) if error is None else integral_errors(energy, error[0], edges) ** 2
            curves.append((np.diff(integrals(energy, dos, cumulative(energy, dos), edges)), variance))
        if (found := _compared(curves[0], curves[1], known)) is not None:
            tests.append(found)
    if not tests:
        return None
    chi, p = min(tests, key=lambda test: test[1])
    return chi, min(1.0, len(tests) * p)


def _compared(
    host: tuple[FloatArray, FloatArray], doped: tuple[FloatArray, FloatArray], known: float
) -> tuple[float, float] | None:
    """Return chi-square over its degrees of freedom and the p-value of (M,) integrals and variances of two spectra."""
    (h, hv), (d, dv) = host, doped
    scale = d.sum() / h.sum()
    for _ in range(5):
        weight = 1.0 / np.maximum(dv + scale**2 * hv, 1e-300)
        scale = (weight * h * d).sum() / (weight * h**2).sum()
    variance = dv + scale**2 * hv
    there = variance > 0
    freedom = np.count_nonzero(there) - 1
    if freedom < FEWEST:
        return None
    chi = float(((d - scale * h)[there] ** 2 / variance[there]).sum()) / freedom
    # F, or chi-square where the errors are known exactly, by Paulson's approximation: its cube root is nearly normal.
    one, two, root = 2.0 / (9.0 * freedom), 2.0 / (9.0 * known), chi ** (1.0 / 3.0)
    z = ((1.0 - two) * root - (1.0 - one)) / math.sqrt(one + two * root**2)
    return chi, 0.5 * math.erfc(z / math.sqrt(2.0))
