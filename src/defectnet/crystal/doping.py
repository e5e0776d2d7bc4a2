"""Supercells, and which elements go where: everything drawn from one random generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ase.geometry import get_distances
from numpy.typing import NDArray

from defectnet.elements import INDEX, NUMBERS, SYMBOLS, VOCABULARY, properties
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.supercells import supercell

FloatArray = NDArray[np.float64]
Placement = Literal["random", "clustered"]

LOWEST, HIGHEST = 0.002, 0.25
"""Least concentration of each dopant, and greatest of all together."""

NUMBER_WEIGHTS = (0.32, 0.24, 0.16, 0.12, 0.09, 0.07)
"""Chances of 1 to 6 coexisting dopants."""

EVENNESS = 2.0
"""Parameter of the Dirichlet distribution of the shares; 1 would be uniform, and nearly always leave one a trace."""

CONTROLS = 0.02
"""Share of cells without a dopant."""

CLUSTER_SIZE = 4
"""Least mean number of dopant atoms in a cluster."""

LIKENESS = 0.5
"""Share of cells whose dopants are chosen by chemical likeness; the rest is uniform, so that the composition alone
does not give the answer away."""


@dataclass(frozen=True)
class DopantMix:
    """What is to be substituted, before a supercell is chosen.

    Attributes:
        dopants: Symbols, none for a control.
        shares: Share of each in the total; sums to 1.
        total: Total concentration wished.
        replaced: Host element that each dopant prefers to replace.
        placement: ``random``, or ``clustered``: dopants of all kinds side by side.
    """

    dopants: tuple[str, ...]
    shares: tuple[float, ...]
    total: float
    replaced: tuple[str, ...]
    placement: Placement = "random"


@dataclass(frozen=True)
class DopedCell:
    """A supercell of the host with substituted sites.

    Attributes:
        crystal: The unrelaxed doped cell.
        supercell: (3, 3) integers that made it.
        sites: (n,) substituted sites; symbols: the element on each.
        placement: As in the mix; a single atom is always ``random``.
    """

    crystal: Crystal
    supercell: NDArray[np.int64]
    sites: NDArray[np.int64]
    symbols: tuple[str, ...]
    placement: Placement


def draw_mix(
    host: Crystal,
    rng: np.random.Generator,
    *,
    most: int = len(NUMBER_WEIGHTS),
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    clustered: float = 0.0,
    controls: float = CONTROLS,
    dopants: Sequence[str] = (),
) -> DopantMix:
    """Draw dopants, their shares and their total concentration for a host.

    Args:
        host: What is doped.
        rng: Source of every choice.
        most: Most coexisting dopants.
        lowest: Least concentration of each dopant; the total is log-uniform from as many times this to `highest`.
        highest: Greatest of all together.
        clustered: Share of cells with clustered dopants.
        controls: Share of cells without a dopant.
        dopants: The only ones that are drawn, each as likely as the others: ``Al``, or ``Al@Mg`` for one that replaces
            magnesium. Any element of the vocabulary if there are none.

    Raises:
        SimulationError: None of `dopants` is left without those that are in the host, or replace what is not.
    """
    host_symbols = _symbols(host)
    sites = _allowed(dopants, host_symbols)
    if rng.random() < controls:
        return DopantMix((), (), 0.0, ())
    chances = np.array(NUMBER_WEIGHTS[: min(most, len(sites))])
    count = int(rng.choice(len(chances), p=chances / chances.sum())) + 1
    similarity = likeness(host_symbols)
    by_likeness = rng.random() < LIKENESS
    weights = similarity.max(axis=1) if by_likeness and not dopants else np.ones(len(VOCABULARY))
    weights = np.where(np.isin(VOCABULARY, list(sites)), weights, 0.0)
    chosen = rng.choice(len(VOCABULARY), size=count, replace=False, p=weights / weights.sum())
    total = float(np.exp(rng.uniform(np.log(min(lowest * count, highest)), np.log(highest))))
    shares = rng.dirichlet(np.full(count, EVENNESS))
    replaced = []
    for index in chosen:
        site = sites[VOCABULARY[index]]
        if site is not None:
            replaced.append(site)
            continue
        row = similarity[index] if by_likeness else np.sqrt(similarity[index])
        replaced.append(host_symbols[int(rng.choice(len(host_symbols), p=row / row.sum()))])
    return DopantMix(
        tuple(VOCABULARY[i] for i in chosen),
        tuple(float(s) for s in shares),
        total,
        tuple(replaced),
        "clustered" if rng.random() < clustered else "random",
    )


def split_dopant(text: str) -> tuple[str, str | None]:
    """Read ``Al`` or ``Al@Mg``: a dopant, and the host element that it replaces, if it matters.

    Raises:
        SimulationError: An element is not in the vocabulary, or replaces itself.
    """
    dopant, _, site = (part.strip() for part in text.partition("@"))
    for symbol in (dopant, site) if "@" in text else (dopant,):
        if symbol not in INDEX:
            raise SimulationError(f"dopant {text!r}: {symbol!r} is not in the vocabulary", fix="Write Al or Al@Mg")
    if dopant == site:
        raise SimulationError(f"dopant {text!r} replaces itself", fix="Write Al or Al@Mg")
    return dopant, site or None


def _allowed(dopants: Sequence[str], host_symbols: tuple[str, ...]) -> dict[str, str | None]:
    """Return what may be drawn, with the host element that it replaces or None for any."""
    if not dopants:
        return {symbol: None for symbol in VOCABULARY if symbol not in host_symbols}
    sites = dict(split_dopant(text) for text in dopants)
    fitting = {
        k: site for k, site in sites.items() if k not in host_symbols and (site or host_symbols[0]) in host_symbols
    }
    if not fitting:
        raise SimulationError(
            f"none of the dopants {', '.join(dopants)} can replace an element of the host, {', '.join(host_symbols)}",
            fix="Name others",
        )
    return fitting


def likeness(host_symbols: tuple[str, ...]) -> FloatArray:
    """Return how well each element of the vocabulary fits each host element's site, (62, len(host_symbols)).

    A Gaussian in covalent radius (0.2 angstrom) and electronegativity (0.5), with a floor so that nothing is
    impossible.
    """
    columns = [INDEX[symbol] for symbol in host_symbols]
    radius, chi = properties("covalent_radius_angstrom"), properties("electronegativity")
    d_radius = (radius[:, None] - radius[None, columns]) / 0.2
    d_chi = (chi[:, None] - chi[None, columns]) / 0.5
    return np.asarray(np.exp(-0.5 * (d_radius**2 + d_chi**2)) + 1e-3)


def build(host: Crystal, mix: DopantMix, rng: np.random.Generator, matrix: NDArray[np.int64]) -> DopedCell:
    """Make the supercell, substitute, and rattle a little so that no force vanishes by symmetry."""
    pristine = supercell(host, matrix)
    sites, symbols = _substitute(pristine, mix, rng)
    numbers = pristine.numbers.copy()
    numbers[sites] = [NUMBERS[INDEX[symbol]] for symbol in symbols]
    rattle = rng.normal(0.0, 0.01, (len(pristine), 3))
    placement = mix.placement if len(sites) > 1 else "random"
    return DopedCell(Crystal(numbers, pristine.cell, pristine.positions + rattle), matrix, sites, symbols, placement)


def _substitute(
    pristine: Crystal, mix: DopantMix, rng: np.random.Generator
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Choose sites: each dopant on its preferred host element; others only when those are used up."""
    atoms, count = len(pristine), len(mix.dopants)
    if not count:
        return np.zeros(0, dtype=np.int64), ()
    total = int(np.clip(round(mix.total * atoms), count, max(count, int(HIGHEST * atoms))))
    extra = rng.multinomial(total - count, mix.shares)
    order = site_order(pristine, mix.placement, total, rng)
    free = np.ones(atoms, dtype=bool)
    sites: list[int] = []
    symbols: list[str] = []
    for symbol, replaced, more in zip(mix.dopants, mix.replaced, extra, strict=True):
        wished = int(more) + 1
        candidates = order[free[order]]
        preferred = pristine.numbers[candidates] == NUMBERS[INDEX[replaced]]
        chosen = np.concatenate([candidates[preferred], candidates[~preferred]])[:wished]
        free[chosen] = False
        sites += [int(site) for site in chosen]
        symbols += [symbol] * wished
    return np.array(sites, dtype=np.int64), tuple(symbols)


def site_order(crystal: Crystal, placement: Placement, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the (N,) atoms of a crystal in the order in which `count` dopants take them.

    Anywhere, or near one of a few centres that dopants of all kinds share.
    """
    order = rng.permutation(len(crystal))
    if placement == "clustered":
        clusters = int(rng.integers(1, max(1, count // CLUSTER_SIZE) + 1))
        order = order[np.argsort(_distance_to_nearest(crystal, order[:clusters])[order], kind="stable")]
    return order


def _distance_to_nearest(crystal: Crystal, centres: NDArray[np.int64]) -> FloatArray:
    """Return (N,) distances, over periodic images, to the nearest of the given atoms, angstrom."""
    _, distances = get_distances(  # type: ignore[no-untyped-call]
        crystal.positions, crystal.positions[centres], cell=crystal.cell, pbc=True
    )
    return np.asarray(distances.min(axis=1))


def _symbols(host: Crystal) -> tuple[str, ...]:
    unknown = sorted({int(z) for z in host.numbers} - set(SYMBOLS))
    if unknown:
        raise SimulationError(
            f"the host holds the element with Z = {unknown[0]}, which is outside the vocabulary", fix="Leave it out"
        )
    return tuple(SYMBOLS[int(z)] for z in np.unique(host.numbers))
