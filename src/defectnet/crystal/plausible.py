"""Which elements are plausible on which sites of a host: by size, charge, electronegativity and group.

The charges of the host's elements are guessed first: the neutral assignment of tabulated oxidation states in which the
more electronegative elements have the lower charge. Where there is one, a dopant is compared with the ion that it
replaces; where there is none (elements, alloys, borides), with the atom. This ranks candidates for calculations: it
knows no energies, and no solubility follows from a score.

The table `ions.csv` beside this file holds facts: oxidation states as in pymatgen (the common ones of Greenwood and
Earnshaw and those found in ICSD), and ionic radii of Shannon (1976), sixfold coordinated and high spin where there are
such, for the states that have one. A test compares it with pymatgen.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Final, NamedTuple

import numpy as np

from defectnet.elements import INDEX, SYMBOLS, VOCABULARY, properties
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal

COVALENT_WIDTH: Final = 0.3
"""Relative difference of two covalent radii at which likeness falls to exp(-1/2)."""

IONIC_WIDTH: Final = 0.30
"""The same of two ionic radii, which differ more."""

ELECTRONEGATIVITY_WIDTH: Final = 0.7
"""The same of two Pauling electronegativities."""

CHARGE_FACTORS: Final = (1.0, 0.8, 0.15, 0.04, 0.01)
"""Likeness of ions whose charges differ by 0, 1, ...: one is doping, more needs several compensating defects."""

VALENCE_FACTORS: Final = (1.0, 0.8, 0.4, 0.2)
"""Likeness of atoms whose valence electrons differ by 0, 1, ..., where there are no charges."""

D_BLOCK_FACTORS: Final = (1.0, 0.95, 0.85, 0.7, 0.5)
"""The same of two d elements, whose groups differ by 0, 1, ...: they mix over wider ranges."""

D_ON_SP: Final = 0.4
"""Factor of a d element in the place of an s or p element: deep levels, where the bonds are covalent."""

SP_ON_D: Final = 0.6
"""Factor of the reverse."""

LONE_PAIR: Final = 0.6
"""Factor of a cation with a lone pair (Sn2+, Sb3+) in the place of one without, or the reverse."""

SAME_GROUP: Final = 1.3
"""Factor of ions of one group, which make mixed crystals."""

NON_METAL_AS_CATION: Final = 0.3
"""Factor of a non-metal in the place of a cation that is not of a neighbouring group."""

UNCOMMON_STATE: Final = 0.6
"""Factor of an oxidation state that is known but not common."""

NON_METALS: Final = frozenset({"C", "N", "O", "F", "P", "S", "Cl", "As", "Se", "Br", "Te", "I"})
"""Elements that are anions before they are cations."""

SCARCE: Final = frozenset({"Rb", "Cs", "Ru", "Rh", "Re", "Os", "Ir", "Pt", "Au", "Pd", "Tl", "Hg"})
"""Elements that are rarely used as dopants because they are precious, toxic or hard to handle."""

SCARCE_FACTOR: Final = 0.4

GROUP_SLOPE: Final = 0.15
"""What each group of the p block beyond the tenth adds to an electronegativity when anions are told from cations."""

CROWDING: Final = 0.95
"""Factor for each better dopant of the same site, so that a list is not all of one site."""


class Ion(NamedTuple):
    """A row of the table of ions; the radius is in angstrom, NaN if unknown."""

    charge: int
    common: bool
    radius: float


@dataclass(frozen=True)
class RankedSubstitution:
    """An element on the sites of another.

    Attributes:
        dopant: The element that goes in.
        replaced: The host's element that it replaces.
        score: 0 to about 1; only the order has a meaning.
    """

    dopant: str
    replaced: str
    score: float

    def __str__(self) -> str:
        """Return it as the simulator reads it: ``Al@Ga``."""
        return f"{self.dopant}@{self.replaced}"


@cache
def ions() -> dict[str, tuple[Ion, ...]]:
    """Return the known ions of each element of the vocabulary, by charge."""
    table: dict[str, list[Ion]] = {symbol: [] for symbol in VOCABULARY}
    with files("defectnet.crystal").joinpath("ions.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            radius = float(row["ionic_radius_angstrom"] or "nan")
            table[row["symbol"]].append(Ion(int(row["charge"]), row["common"] == "1", radius))
    return {symbol: tuple(found) for symbol, found in table.items()}


def guess_charges(composition: dict[str, int]) -> dict[str, int] | None:
    """Guess the charges of a compound's elements.

    Args:
        composition: Atoms of each element in a formula unit or a cell.

    Returns:
        Charge of each element; None if no assignment of known states is neutral and orders the charges by
        electronegativity, as in elements, alloys, and compounds with bonds between anions.
    """
    chi = properties("electronegativity")
    # Lead is more electronegative than tellurium: the group has a say.
    rank = chi + GROUP_SLOPE * np.maximum(properties("group") - 10.0, 0.0) * (properties("group") > 12)
    elements = sorted(composition, key=lambda symbol: (rank[INDEX[symbol]], symbol))
    if len(elements) < 2:
        return None
    best: tuple[float, tuple[int, ...]] | None = None
    for states in product(*(ions()[symbol] for symbol in elements)):
        charges = tuple(ion.charge for ion in states)
        if sum(q * composition[s] for q, s in zip(charges, elements, strict=True)) or not _ordered(charges):
            continue
        # Common states first; then small charges, which of two ways to the same sum is the usual one.
        cost = sum(not ion.common for ion in states) + 0.01 * sum(abs(q) for q in charges)
        if best is None or cost < best[0]:
            best = (cost, charges)
    return None if best is None else dict(zip(elements, best[1], strict=True))


def _ordered(charges: tuple[int, ...]) -> bool:
    """Return whether all cations come before all anions, in order of electronegativity."""
    negative = [charge < 0 for charge in charges]
    return negative == sorted(negative)


def plausible_dopants(host: Crystal, count: int) -> tuple[str, ...]:
    """Return the most plausible dopants of a host as ``Al@Ga``, each once, on the site where it fits best.

    Args:
        host: The crystal; only its composition counts.
        count: How many, at least 1.

    Raises:
        SimulationError: `count` is below 1, or the host holds an element outside the vocabulary.
    """
    if count < 1:
        raise SimulationError(f"plausible dopants: count is {count}", fix="Ask for at least one")
    composition = _composition(host)
    best = {
        symbol: max(_substitutions(symbol, composition), key=lambda one: round(one.score, 9))
        for symbol in VOCABULARY
        if symbol not in composition
    }
    return tuple(str(one) for one in _crowded(list(best.values()))[:count])


def _substitutions(dopant: str, composition: dict[str, int]) -> list[RankedSubstitution]:
    charges = guess_charges(composition)
    return [RankedSubstitution(dopant, site, likeness_on_site(dopant, site, charges)) for site in composition]


def _crowded(substitutions: list[RankedSubstitution]) -> list[RankedSubstitution]:
    """Sort by score, where each substitution counts less for every better one of the same site."""
    lowered = []
    taken: Counter[str] = Counter()
    # Rounded, so that of equally good ones the order is the same on every machine.
    for one in sorted(substitutions, key=lambda one: -round(one.score, 9)):
        lowered.append(replace(one, score=one.score * CROWDING ** taken[one.replaced]))
        taken[one.replaced] += 1
    return sorted(lowered, key=lambda one: -round(one.score, 9))


def likeness_on_site(dopant: str, replaced: str, charges: dict[str, int] | None) -> float:
    """Return how well an element fits the sites of another, 0 to about 1.

    Args:
        dopant: Symbol of the element that goes in.
        replaced: Symbol of the host's element.
        charges: Of the host's elements, or None where there are none.
    """
    size = float(np.log(_property("covalent_radius_angstrom", dopant, replaced)) / COVALENT_WIDTH) ** 2
    chi = properties("electronegativity")
    affinity = float((chi[INDEX[dopant]] - chi[INDEX[replaced]]) / ELECTRONEGATIVITY_WIDTH) ** 2
    if charges is None:
        fit = _as_atom(dopant, replaced) * np.exp(-0.5 * (size + affinity))
    else:
        # The more ionic, the less the covalent radius and the electronegativity count.
        ionicity = _ionicity(replaced, charges)
        fit = _as_ion(dopant, replaced, charges[replaced], size, ionicity) * np.exp(-0.5 * (1.0 - ionicity) * affinity)
    return float(fit * (SCARCE_FACTOR if dopant in SCARCE else 1.0))


def _property(name: str, dopant: str, replaced: str) -> float:
    """Return the ratio of a property of two elements."""
    values = properties(name)
    return float(values[INDEX[dopant]] / values[INDEX[replaced]])


def _as_atom(dopant: str, replaced: str) -> float:
    if _is_d(dopant) != _is_d(replaced):
        return D_ON_SP if _is_d(dopant) else SP_ON_D
    factors = D_BLOCK_FACTORS if _is_d(dopant) else VALENCE_FACTORS
    return factors[min(abs(_valence(dopant) - _valence(replaced)), len(factors) - 1)]


def _as_ion(dopant: str, replaced: str, charge: int, covalent_size: float, ionicity: float) -> float:
    """Return the likeness of the dopant's best ion: of the same sign, near in charge, like in size."""
    host_radius = next((ion.radius for ion in ions()[replaced] if ion.charge == charge), float("nan"))
    best = 0.0
    for ion in ions()[dopant]:
        if (ion.charge > 0) != (charge > 0):
            continue
        size = covalent_size
        if charge > 0 and np.isfinite(ion.radius * host_radius):
            ionic_size = (np.log(ion.radius / host_radius) / IONIC_WIDTH) ** 2
            size = (1.0 - ionicity) * covalent_size + ionicity * ionic_size
        fit = CHARGE_FACTORS[min(abs(ion.charge - charge), len(CHARGE_FACTORS) - 1)] * np.exp(-0.5 * size)
        fit *= 1.0 if ion.common else UNCOMMON_STATE
        if charge > 0 and _lone_pair(dopant, ion.charge) != _lone_pair(replaced, charge):
            fit *= LONE_PAIR
        best = max(best, float(fit))
    if _is_d(dopant) and not _is_d(replaced):
        best *= D_ON_SP + (1.0 - D_ON_SP) * ionicity
    if _is_d(replaced) and not _is_d(dopant):
        best *= SP_ON_D + (1.0 - SP_ON_D) * ionicity
    if _group(dopant) == _group(replaced):
        best *= SAME_GROUP
    if charge > 0 and dopant in NON_METALS and abs(_valence(dopant) - _valence(replaced)) > 1:
        best *= NON_METAL_AS_CATION
    return best


def _ionicity(symbol: str, charges: dict[str, int]) -> float:
    """Return Pauling's ionicity of the bonds of an element with the host's ions of the other sign, 0 to 1."""
    chi = properties("electronegativity")
    others = [chi[INDEX[other]] for other, charge in charges.items() if charge * charges[symbol] < 0]
    return float(1.0 - np.exp(-0.25 * (chi[INDEX[symbol]] - np.mean(others)) ** 2))


def _lone_pair(symbol: str, charge: int) -> bool:
    """Return whether a cation of the p block keeps its two s electrons."""
    return _group(symbol) >= 13 and charge == _group(symbol) - 12


def _group(symbol: str) -> int:
    return int(properties("group")[INDEX[symbol]])


def _is_d(symbol: str) -> bool:
    """Return whether an element has an open d shell, or had one: groups 3 to 11."""
    return 3 <= _group(symbol) <= 11


def _valence(symbol: str) -> int:
    """Return the number of valence electrons; closed d shells do not count."""
    return _group(symbol) - 10 if _group(symbol) >= 12 else _group(symbol)


def _composition(host: Crystal) -> dict[str, int]:
    counts = Counter(host.numbers.tolist())
    unknown = sorted(set(counts) - set(SYMBOLS))
    if unknown:
        raise SimulationError(
            f"the host holds the element with Z = {unknown[0]}, which is outside the vocabulary", fix="Leave it out"
        )
    return {SYMBOLS[number]: counts[number] for number in sorted(counts)}
