"""The vocabulary of 62 elements, their tabulated properties, and chemical formulas.

The table `elements.csv` beside this file holds facts: standard atomic weights and covalent radii (Cordero 2008) as
in ase, Pauling electronegativities as in pymatgen, bound scattering cross sections (coherent plus incoherent,
natural isotopes, NIST) as in periodictable. A test compares it with those libraries.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import FormulaError

FloatArray = NDArray[np.float64]

with files("defectnet").joinpath("elements.csv").open(encoding="utf-8") as _file:
    _TABLE = list(csv.DictReader(_file))

VOCABULARY: Final[tuple[str, ...]] = tuple(row["symbol"] for row in _TABLE)
"""Li to Bi without noble gases, Tc, Pm and Ce to Lu: 62 symbols in order of atomic number."""

INDEX: Final[dict[str, int]] = {symbol: i for i, symbol in enumerate(VOCABULARY)}
"""Symbol -> position in `VOCABULARY`."""

NUMBERS: Final = np.array([int(row["number"]) for row in _TABLE])
"""(62,) atomic numbers."""

SYMBOLS: Final[dict[int, str]] = dict(zip(NUMBERS.tolist(), VOCABULARY, strict=True))
"""Atomic number -> symbol."""

PROPERTIES: Final[tuple[str, ...]] = tuple(key for key in _TABLE[0] if key not in ("symbol", "number"))
"""Names of the tabulated properties, with units."""


def properties(name: str) -> FloatArray:
    """Return one column of the table, (62,), in the order of `VOCABULARY`.

    Args:
        name: One of `PROPERTIES`, for instance ``"mass_u"``.
    """
    return np.array([float(row[name]) for row in _TABLE])


NEUTRON_WEIGHT: Final = properties("scattering_cross_section_barn") / properties("mass_u")
"""(62,) scattering cross section over mass, barn/u: what an element's DOS counts for in incoherent scattering."""


def element_index(symbol: str, *, field: str = "element") -> int:
    """Return an element's position in the vocabulary.

    Raises:
        FormulaError: The symbol is no element of the vocabulary.
    """
    if symbol not in INDEX:
        near = get_close_matches(symbol.capitalize(), VOCABULARY, n=1, cutoff=0.7)  # al is Al, but H is not Hg
        hint = f"Did you mean {near[0]}? " if near else ""
        raise FormulaError(
            f"{field}: {symbol!r} is not an element of the vocabulary",
            fix=hint + "Known are Li to Bi without noble gases, Tc, Pm and Ce to Lu",
        )
    return INDEX[symbol]


def multi_hot(symbols: Iterable[str], *, field: str = "elements") -> NDArray[np.bool_]:
    """Return a (62,) mask that is true at the given elements."""
    mask = np.zeros(len(VOCABULARY), dtype=bool)
    for symbol in symbols:
        mask[element_index(symbol, field=field)] = True
    return mask


_TOKEN = re.compile(r"([A-Z][a-z]?)|(\()|(\))|(\d+\.?\d*|\.\d+)")


def parse_formula(formula: str) -> dict[str, float]:
    """Read a formula such as ``GaAs``, ``Si0.7Ge0.3`` or ``Ca3(PO4)2``.

    Returns:
        Amount of each element, in order of first appearance.

    Raises:
        FormulaError: The text is no formula, or names an element outside the vocabulary.
    """
    fix = "Write it like GaAs, Si0.7Ge0.3 or Ca3(PO4)2"
    text = formula.replace(" ", "")
    stack: list[dict[str, float]] = [{}]
    closed: dict[str, float] | None = None  # the group or element that a number may still multiply
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise FormulaError(f"formula: {formula!r} cannot be read at {text[position:]!r}", fix=fix)
        symbol, opening, closing, number = match.groups()
        position = match.end()
        if number is not None:
            if closed is None:
                raise FormulaError(f"formula: {formula!r} has a number that follows no element", fix=fix)
            for key, amount in closed.items():
                _add(stack[-1], key, amount * (float(number) - 1.0))
            closed = None
        elif symbol is not None:
            element_index(symbol, field=f"formula {formula!r}")
            _add(stack[-1], symbol, 1.0)
            closed = {symbol: 1.0}
        elif opening is not None:
            stack.append({})
            closed = None
        elif closing is not None:
            if len(stack) == 1:
                raise FormulaError(f"formula: {formula!r} closes a bracket that it does not open", fix=fix)
            closed = stack.pop()
            for key, amount in closed.items():
                _add(stack[-1], key, amount)
    amounts = {key: amount for key, amount in stack[0].items() if amount > 0}
    if len(stack) != 1 or not amounts:
        raise FormulaError(f"formula: {formula!r} is not complete", fix=fix)
    return amounts


def _add(amounts: dict[str, float], symbol: str, amount: float) -> None:
    amounts[symbol] = amounts.get(symbol, 0.0) + amount


def composition(formula: str) -> FloatArray:
    """Return the atomic fractions of a formula, (62,), summing to 1."""
    fractions = np.zeros(len(VOCABULARY))
    for symbol, amount in parse_formula(formula).items():
        fractions[INDEX[symbol]] = amount
    return np.asarray(fractions / fractions.sum())


def chemical_system(symbols: Iterable[str]) -> str:
    """Return the sorted set of elements, joined by dashes: ``As-Ga``. Splits are made by this."""
    return "-".join(sorted(set(symbols)))
