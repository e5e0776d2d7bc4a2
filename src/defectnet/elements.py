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
from typing import Any, Final

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
_WRITE: Final = "Write it like GaAs, Si0.7Ge0.3 or Ca3(PO4)2"
_NONMETALS: Final = frozenset("BCNOFPSI")
_SHIFT: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")


def formula_text(host: Any) -> str:
    """Return the formula of a text, or of a Composition, Structure or Element of pymatgen, or Atoms of ase.

    Raises:
        FormulaError: It is none of these.
    """
    if isinstance(host, str):
        return host.strip()
    composition = getattr(host, "composition", host)  # of a structure
    if hasattr(composition, "reduced_formula"):
        return str(composition.reduced_formula)
    if hasattr(host, "get_chemical_formula"):
        return str(host.get_chemical_formula(empirical=True))
    if hasattr(host, "symbol"):
        return str(host.symbol)
    raise FormulaError(f"formula is a {type(host).__name__}", fix="Give a text, a Composition, a Structure or Atoms")


def parse_formula(formula: str) -> dict[str, float]:
    """Read a formula such as ``GaAs``, ``Si0.7Ge0.3``, ``Ca3(PO4)2`` or ``Al2O3·2SiO2``.

    Returns:
        Amount of each element, in order of first appearance.

    Raises:
        FormulaError: The text is no formula, names an element outside the vocabulary, or has two meanings: isotopes,
            charges, and symbols in capitals are not guessed.
    """
    formula = formula_text(formula)
    text = formula.replace(" ", "").translate(_SHIFT)
    _check_meaning(formula, text)
    return _amounts(formula, text)


def _amounts(formula: str, text: str) -> dict[str, float]:
    """Read a formula whose meaning is clear."""
    amounts: dict[str, float] = {}
    for part in re.split("[·•⋅∙*]", text):  # adducts
        multiple, rest = re.fullmatch(r"(\d+\.?\d*)?(.*)", part, re.DOTALL).groups()  # type: ignore[union-attr]
        many = multiple is not None and part != text
        for symbol, amount in _parse_part(formula, rest if many else part).items():
            _add(amounts, symbol, amount * (float(multiple) if many else 1.0))
    return amounts


def _check_meaning(formula: str, text: str) -> None:
    """Refuse what can be read in two ways, or means more than a composition."""
    where = f"formula: {formula!r}"
    plain = re.sub(r"^\d+", "", re.sub(r"[\[(]\d+([A-Z][a-z]?)[\])]", r"\1", text))
    if re.search(r"[-+]|\^|⁺|⁻", text) and re.search(r"[A-Z]", text) and not re.search(r"\d[eE][-+]?\d", text):
        isotope = re.search(r"\^\{?\d+\}?[A-Z]", text)
        raise FormulaError(
            f"{where} has {'an isotope' if isotope else 'a charge, or a dash'}",
            fix="Leave isotopes out: the atomic masses are natural"
            if isotope
            else "Leave charges out, and give x as a number",
        )
    leading = re.match(r"[\[(]?(\d+)([A-Z][a-z]?)", text) or re.search(r"[\[(](\d+)([A-Z][a-z]?)", text)
    if leading:
        raise FormulaError(
            f"{where} has a number before {leading[2]}",
            why=f"an isotope {leading[1]}{leading[2]}, or a multiple",
            fix=f"Leave isotopes out ({plain}): the atomic masses are natural; write multiples of groups behind them",
        )
    for match in re.finditer(r"(?<=[A-Za-z])(\d+)(?=([A-Z][a-z]?))", text):
        mass = float(_TABLE[INDEX[match[2]]]["mass_u"]) if match[2] in INDEX else np.inf
        if abs(float(match[1]) - mass) <= 1.0 + 0.065 * mass < np.inf:  # stable isotopes
            other = text[: match.start()] + text[match.end() :]
            largest = max([float(number) for number in re.findall(r"\d+\.?\d*", other)], default=1.0)
            if largest <= 6:  # W18O49 would be one 18O tungsten with 49
                raise FormulaError(
                    f"{where} has two meanings: {match[1]} atoms of the element before, or the isotope "
                    f"{match[1]}{match[2]}",
                    fix=f"Write {other}: isotopes are not told apart; or, if {match[1]} atoms are meant, "
                    f"{text[: match.end()]}({match[2]}){text[match.end() + len(match[2]) :]}",
                )
    dotted = re.search(r"\d\.\d+(?=([A-Z].*))", text)
    if dotted and set(_symbols(dotted[1])) & set(_symbols(text[: dotted.start()])):
        raise FormulaError(
            f"{where} has two meanings: a decimal number, or a hydrate or adduct", fix="Write the dot as · or *"
        )
    symbols = re.findall(r"[A-Z]", text)
    better = re.sub(r"([A-Z])([A-Z])", lambda m: m[0].title() if m[0].title() in INDEX else m[0], text)
    wrong = [symbol for symbol in symbols if symbol not in INDEX]
    molecule = re.fullmatch(r"[A-Z][a-z]\d+", better)  # CO2 and CS2 are what they say
    if not re.search("[a-z]", text) and better != text and (wrong or set(symbols) <= _NONMETALS) and not molecule:
        raise FormulaError(
            f"{where} reads as {' '.join(symbols)}"
            + (f"; {wrong[0]} is no element of the vocabulary" if wrong else ""),
            fix=f"Did you mean {better}? Write the second letter of a symbol small",
        )


def _symbols(text: str) -> list[str]:
    return re.findall(r"[A-Z][a-z]?", text)


def _parse_part(formula: str, text: str) -> dict[str, float]:
    """Read a formula without adducts."""
    stack: list[dict[str, float]] = [{}]
    closed: dict[str, float] | None = None  # the group or element that a number may still multiply
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise FormulaError(f"formula: {formula!r} cannot be read at {text[position:]!r}", fix=_WRITE)
        symbol, opening, closing, number = match.groups()
        position = match.end()
        if number is not None:
            if closed is None:
                raise FormulaError(f"formula: {formula!r} has a number that follows no element", fix=_WRITE)
            if float(number) == 0.0:
                raise FormulaError(f"formula: {formula!r} has an amount of zero", fix="Leave out what is not there")
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
                raise FormulaError(f"formula: {formula!r} closes a bracket that it does not open", fix=_WRITE)
            closed = stack.pop()
            for key, amount in closed.items():
                _add(stack[-1], key, amount)
    amounts = {key: amount for key, amount in stack[0].items() if amount > 0}
    if len(stack) != 1 or not amounts:
        raise FormulaError(f"formula: {formula!r} is not complete", fix=_WRITE)
    return amounts


def _add(amounts: dict[str, float], symbol: str, amount: float) -> None:
    amounts[symbol] = amounts.get(symbol, 0.0) + amount


def composition(formula: str) -> FloatArray:
    """Return the atomic fractions of a formula, (62,), summing to 1."""
    fractions = np.zeros(len(VOCABULARY))
    for symbol, amount in _amounts(formula, formula.replace(" ", "")).items():  # of programs, too: IN2O4F5 is one
        fractions[INDEX[symbol]] = amount
    return np.asarray(fractions / fractions.sum())


def chemical_system(symbols: Iterable[str]) -> str:
    """Return the sorted set of elements, joined by dashes: ``As-Ga``. Splits are made by this."""
    return "-".join(sorted(set(symbols)))
