"""Compositions as users write them, and which atoms of a supercell they stand for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from ase.geometry import get_distances
from numpy.typing import NDArray

from defectnet.crystal.plausible import guess_charges, likeness_on_site
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.elements import INDEX, NUMBERS, element_index
from defectnet.errors import SimulationError

if TYPE_CHECKING:
    from defectnet.crystal.pack import HostPack

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HIGHEST: Final = 0.25
"""Greatest concentration of all dopants together: beyond, single substitutions do not add up."""

KT_EV: Final = 0.1
"""Temperature, about 1160 K times Boltzmann's constant, at which dopants settle on inequivalent sites of one element:
that of growth or annealing. Energies are those of single substitutions, so that sites fill up independently."""

CLEARLY: Final = 2.0
"""Ratio of two likenesses, see `likeness_on_site`, from which on the better site is taken without being named."""

CLUSTER_SIZE: Final = 4
"""Least mean number of dopant atoms in a cluster."""


@dataclass(frozen=True)
class Component:
    """A dopant of a composition.

    Attributes:
        dopant: Symbol.
        replaced: Symbol of the host's element whose sites it takes.
        concentration: Dopant atoms over all atoms.
    """

    dopant: str
    replaced: str
    concentration: float

    def __str__(self) -> str:
        """Return it as it is written: ``Al@Ga=0.03``."""
        return f"{self.dopant}@{self.replaced}={self.concentration:g}"


@dataclass(frozen=True)
class Composition:
    """What is substituted in a host.

    Attributes:
        components: Each pair of a dopant and a replaced element once.
        remarks: What was decided in the user's place, and what is missing; sentences.
    """

    components: tuple[Component, ...]
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str], concentrations: Iterable[float]) -> Composition:
        """Return that of names such as ``Al@Ga``, which are taken as they are; those of zero are left out."""
        there = [(name.partition("@"), float(c)) for name, c in zip(names, concentrations, strict=True) if c > 0.0]
        return cls(tuple(Component(dopant, replaced, c) for (dopant, _, replaced), c in there))

    def __str__(self) -> str:
        """Return it as it is written: ``Al@Ga=0.03,In@Ga=0.01``."""
        return ",".join(map(str, self.components)) or "none"

    @property
    def total(self) -> float:
        """Concentration of all dopants together."""
        return sum(one.concentration for one in self.components)


def parse_composition(pack: HostPack, wanted: str | Mapping[str, float] | Composition) -> Composition:
    """Read a composition for a host pack.

    Args:
        pack: Host and its substitutions.
        wanted: ``Al=0.03,In=0.01`` or a mapping such as ``{"Al@Ga": 0.03}``; dopant atoms over all atoms. ``@`` names
            the element that is replaced; where the pack has the dopant on sites of several, it must be said unless
            one of them is `CLEARLY` the more plausible. An empty mapping is the host itself.

    Raises:
        SimulationError: It cannot be read, is in percent, names what the pack does not have, is more than `HIGHEST` in
            total, or more than there are sites.
    """
    if isinstance(wanted, Composition):
        wanted = {f"{one.dopant}@{one.replaced}": one.concentration for one in wanted.components}
    entries = _entries(wanted) if isinstance(wanted, str) else list(wanted.items())
    components, remarks = [], []
    for name, value in entries:
        dopant, replaced, remark = _placed(pack, name)
        components.append(Component(dopant, replaced, _concentration(name, value)))
        remarks += remark
    seen = Counter((one.dopant, one.replaced) for one in components)
    for (dopant, replaced), count in seen.items():
        if count > 1:
            raise SimulationError(f"composition names {dopant}@{replaced} {count} times", fix="Name it once")
    found = Composition(tuple(components), tuple(dict.fromkeys(remarks)))
    if found.total > HIGHEST + 1e-9:
        raise SimulationError(
            f"composition has {found.total:g} in total",
            why="single substitutions do not add up in concentrated crystals",
            fix=f"Use {HIGHEST:g} of all atoms at most",
        )
    _check_room(pack, found)
    return found


def _entries(text: str) -> list[tuple[str, float | str]]:
    parts = [part.strip() for part in re.split(r"[,;]", text) if part.strip()]
    fix = "Write Al=0.03,In=0.01 or, in place of gallium alone, Al@Ga=0.03: dopant atoms over all atoms"
    if not parts:
        raise SimulationError("composition is empty", fix=fix)
    found: list[tuple[str, float | str]] = []
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name and equals and value):
            raise SimulationError(f"composition: {part!r} cannot be read", fix=fix)
        found.append((name, value))
    return found


def _concentration(name: str, value: float | str) -> float:
    where = f"composition: {name} is {value}"
    text = str(value)
    if text.endswith("%"):
        raise SimulationError(where, why="percent", fix=f"Write {_hundredth(text[:-1])}: dopant atoms over all atoms")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 <= number < np.inf:
        raise SimulationError(where, fix=f"Use a number from 0 to {HIGHEST:g}: dopant atoms over all atoms")
    if number > 1.0:
        raise SimulationError(
            where, why="more than all atoms", fix=f"Write {_hundredth(text)} if it is {text} at.%: a part of all atoms"
        )
    return number


def _hundredth(text: str) -> str:
    try:
        return f"{float(text) / 100.0:g}"
    except ValueError:
        return "0.03 for 3 at.%"


def _placed(pack: HostPack, name: str) -> tuple[str, str, list[str]]:
    """Return the dopant and the replaced element that a name means, and remarks."""
    dopant, at, replaced = (piece.strip() for piece in name.partition("@"))
    element_index(dopant, field="composition")
    symbols = [pack.replaced(int(site)) for site in pack.host.sites]
    if dopant in symbols:
        raise SimulationError(
            f"composition: {dopant} is in {pack.host.formula} already", fix="Name elements that the host does not have"
        )
    if at and replaced not in symbols:
        raise SimulationError(
            f"composition: {name!r} replaces {replaced or 'nothing'}, which is not in {pack.host.formula}",
            fix=f"Sites are {', '.join(dict.fromkeys(symbols))}",
        )
    options = list(dict.fromkeys(pack.replaced(site) for x, site in pack.substitutions if x == dopant))
    remarks: list[str] = []
    if at:
        options = [symbol for symbol in options if symbol == replaced]
    if not options:
        raise _missing(pack, dopant, replaced)
    if len(options) > 1:
        options, remarks = _plausible(pack, dopant, options)
    missing = [f for f in pack.failures if f.dopant == dopant and pack.replaced(f.site) == options[0]]
    remarks += [f"{dopant}@{options[0]} on site {f.site} could not be made ({f.reason}): left empty" for f in missing]
    return dopant, options[0], remarks


def _missing(pack: HostPack, dopant: str, replaced: str) -> SimulationError:
    name = f"{dopant}@{replaced}" if replaced else dopant
    failed = [f for f in pack.failures if f.dopant == dopant and replaced in ("", pack.replaced(f.site))]
    why = f"could not be made: {failed[0].reason}" if failed else ""
    known = ", ".join(pack.dopants) or "none"
    return SimulationError(
        f"composition: the pack of {pack.host.id} has no {name}",
        why=why,
        fix=f"Known are {known}; `defectnet host make` with the same --out adds others",
    )


def _plausible(pack: HostPack, dopant: str, options: list[str]) -> tuple[list[str], list[str]]:
    """Return the site of several that is clearly the plausible one, and say so."""
    charges = guess_charges(pack.amounts)
    ranked = sorted(options, key=lambda symbol: -likeness_on_site(dopant, symbol, charges))
    best, second = (likeness_on_site(dopant, symbol, charges) for symbol in ranked[:2])
    if best < CLEARLY * second:
        raise SimulationError(
            f"composition: {dopant} may replace {' or '.join(options)}",
            fix=f"Say which, such as {dopant}@{ranked[0]}",
        )
    return ranked[:1], [f"{dopant} is taken to replace {ranked[0]}, the more plausible of {' and '.join(options)}"]


def _check_room(pack: HostPack, composition: Composition) -> None:
    symbols = pack.amounts
    for replaced in dict.fromkeys(one.replaced for one in composition.components):
        share = symbols[replaced] / symbols.total()
        asked = sum(one.concentration for one in composition.components if one.replaced == replaced)
        for one in composition.components:
            if one.replaced == replaced:
                usable = _usable(pack, one)
                if one.concentration > usable + 1e-9:
                    raise _full(pack, replaced, usable, one.concentration)
        if asked > share + 1e-9:
            raise _full(pack, replaced, share, asked)


def _full(pack: HostPack, replaced: str, share: float, asked: float) -> SimulationError:
    return SimulationError(
        f"composition puts {asked:g} of all atoms on sites of {replaced}",
        why=f"these sites are {share:g} of the atoms of {pack.host.formula}",
        fix="Use a lower concentration, or other sites",
    )


def _usable(pack: HostPack, component: Component) -> float:
    """Return the share of atoms that a dopant can replace: sites that the pack has a substitution for."""
    orbits = pack.host.operations.orbits()
    there = [site for site in pack.host.sites if (component.dopant, int(site)) in pack.substitutions]
    there = [site for site in there if pack.replaced(int(site)) == component.replaced]
    return float(np.isin(orbits, there).mean())


# -- placing -----------------------------------------------------------------------------------------------------------


def draw_occupation(
    superposition: Superposition,
    composition: Composition,
    rng: np.random.Generator,
    *,
    clustered: bool = False,
    offset: float | None = None,
) -> Occupation:
    """Draw which atoms of a supercell are substituted.

    Numbers of atoms are rounded at random, up or down, so that their mean over many cells is that of the composition;
    of dopants that share sites the total is rounded alike. Among inequivalent sites of an element each atom is taken
    with a weight of exp(-E / `KT_EV`), E being the energy of the single substitution there.

    Args:
        superposition: The supercell, and the host's substitutions.
        composition: See `parse_composition`.
        rng: Source of every choice.
        clustered: Put the dopants side by side, around one or several centres; otherwise anywhere.
        offset: 0 to 1, decides how numbers are rounded: evenly spaced ones over several cells give the best mean.
            Drawn by default.

    Raises:
        SimulationError: There are not enough sites.
    """
    numbers = superposition.cell.crystal.numbers
    offset = float(rng.random()) if offset is None else offset
    counts = rounded_counts(composition, len(numbers), offset)
    distance = _from_centres(superposition, composition, sum(counts), rng) if clustered else None
    free = np.ones(len(numbers), dtype=bool)
    sites: list[int] = []
    dopants: list[str] = []
    for one, count in zip(composition.components, counts, strict=True):
        candidates = np.flatnonzero(free & (numbers == NUMBERS[INDEX[one.replaced]]))
        chosen = _choose(superposition, one.dopant, candidates, count, rng, distance)
        if len(chosen) < count:
            raise SimulationError(
                f"a cell of {len(numbers)} atoms has no sites for {count} atoms of {one.dopant}@{one.replaced}",
                fix="Use a lower concentration",
            )
        free[chosen] = False
        sites += chosen.tolist()
        dopants += [one.dopant] * count
    return Occupation(tuple(sites), tuple(dopants))


def rounded_counts(composition: Composition, atoms: int, offset: float) -> list[int]:
    """Return the number of atoms of each component in a cell of `atoms`, see `draw_occupation`."""
    running: dict[str, float] = {}
    out = []
    for one in composition.components:
        before = running.get(one.replaced, 0.0)
        running[one.replaced] = before + one.concentration * atoms
        edges = np.floor(np.array([before, running[one.replaced]]) + offset + 1e-9)
        out.append(int(edges[1] - edges[0]))
    return out


def _choose(
    superposition: Superposition,
    dopant: str,
    candidates: IntArray,
    count: int,
    rng: np.random.Generator,
    distance: FloatArray | None,
) -> IntArray:
    """Return `count` of the candidates, fewer if there are no more; the nearest ones if distances are given."""
    first = superposition.host.operations.orbits()[superposition.cell.basis[candidates]]
    found = [superposition.substitutions.get((dopant, int(site))) for site in first]
    there = np.array([one is not None for one in found], dtype=bool)
    candidates, first = candidates[there], first[there]
    energy = np.array([one.energy for one in found if one is not None])
    if not count or not len(candidates):
        return candidates[:0]
    # The lowest of these keys are a weighted sample without replacement; logarithms, as weights may underflow.
    keys = np.log(rng.exponential(size=len(candidates))) + (energy - energy.min()) / KT_EV
    chosen = candidates[np.argsort(keys, kind="stable")[:count]]
    if distance is None:
        return chosen
    # How many on which kind of site is kept, where they are is not.
    taken = Counter(superposition.host.operations.orbits()[superposition.cell.basis[chosen]].tolist())
    near = [
        np.array(sorted(candidates[first == site].tolist(), key=lambda atom: distance[atom])[:number])
        for site, number in taken.items()
    ]
    return np.concatenate(near).astype(np.int64)


def _from_centres(
    superposition: Superposition, composition: Composition, total: int, rng: np.random.Generator
) -> FloatArray:
    """Return the (N,) distance of each atom from the nearest centre of a cluster, angstrom."""
    crystal = superposition.cell.crystal
    replaced = [int(NUMBERS[INDEX[one.replaced]]) for one in composition.components]
    sites = np.flatnonzero(np.isin(crystal.numbers, replaced))
    clusters = int(rng.integers(1, max(1, total // CLUSTER_SIZE) + 1))
    centres = rng.permutation(sites)[:clusters]
    if not len(centres):
        return np.zeros(len(crystal))
    _, distances = get_distances(  # type: ignore[no-untyped-call]
        crystal.positions, crystal.positions[centres], cell=crystal.cell, pbc=True
    )
    # A little noise decides among atoms that are equally far.
    return np.asarray(distances.min(axis=1) + 1e-3 * rng.random(len(crystal)))
