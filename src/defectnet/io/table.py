"""CSV and text tables: energy, DOS and, in a third column, its standard deviation; the unit must be declared.

A file declares in its header, by any of
- the title of the energy column: ``energy_meV,dos``, ``E (cm-1)``, ``frequency/THz``, or a row of units below it;
- comments: ``# unit: THz``, ``# kind: neutron-weighted``, ``# kind: projected``, ``# element: Fe``,
  ``# quantity: 57Fe partial phonon DOS``, ``# 1st column: omega (rad/ps)``;
- words: a GDOS is neutron-weighted, a partial DOS projected; a Raman spectrum is none (`defectnet.io.words`).

More columns are read where the titles say what they are: the total, shares of elements, an integral. Numbers may have
Fortran's exponents or, where that is not ambiguous, decimal commas.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from defectnet.elements import INDEX, element_index
from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw, number, select_elements
from defectnet.io.words import doubt, element_of, quantity
from defectnet.spectrum import is_unit, parse_kind, parse_unit

_COMMENT = ("#", "%", "!")
_LONGEST = 2000  # characters of a line of words: more is no title
_ENTRY = re.compile(r"[#%!\s]*(?:energy[\s_]*)?(unit|kind|element|fraction|quantity)s?\s*[:=]\s*(.+)", re.IGNORECASE)
_PARTIAL = re.compile(r"\b\d*([A-Z][a-z]?)[\s-]+(?i:partial|projected)\b")
_ERROR_TITLE = re.compile(
    r"(?<![a-z])(?:[yg]|dos|d)?(?:err(?:or)?s?|er)(?![a-z])|fehler|(?<![a-z])(?:sig(?:ma)?|st\.?[\s_-]?d(?:ev)?|unc|dev)(?![a-z])"
    r"|uncert|standard|deviation|±|\u03c3|^e$|^d[yg]?$|^[dΔδ]\s*(?:y|g|dos|intensity)|^s\.?[de]\.?$",
    re.IGNORECASE,
)
_NO_ERROR_TITLE = re.compile(r"^\s*Se\s*$|(?i:gauss|smooth|broad|convol|fwhm)")  # selenium; a smoothed curve
_OTHER_ERROR = re.compile(
    r"%|per\s?cent|(?<![a-z])rel(?![a-z])|relative|squared|\^\s?2|²|\bvar|(?<![a-z])(?:x|e|en|energy|freq)[\s_.-]*err",
    re.IGNORECASE,
)
_SCALED = re.compile(
    r"10\s*\^|^\s*\d{2,}\s*[*x]|[x*]\s*10+\b|(?<![a-z])(?:log|ln)(?:10)?(?![a-z])|/\s*E_?max|normali[sz]ed",
    re.IGNORECASE,
)
_NOT_A_UNIT = re.compile(r"(?<![A-Za-z])(?:m?Ry|Rydberg|[GM]?Hz|[kK]elvin|[μµu]eV|k(?:J|cal)/mol|ps-1)$|(?<=[/_])[KJ]$")
_OTHER_ENERGY = re.compile(
    r"(?:total|incident|incoming|final|fixed|cut-?off|fermi|kinetic|free|binding|ground[\s-]state|zero[\s-]point)\s*$",
    re.IGNORECASE,
)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?")
_ENERGY_TITLE = re.compile(
    r"energ|freq|wave[\s_-]?number|omega|ω|raman[\s_-]?shift|^\s*(?:e|w|nu|\u03bd|hw|ħω|e-e_?f)\s*(?:$|[([_/])",
    re.IGNORECASE,
)
_DOS_TITLE = re.compile(r"dos|densit|intens|^\s*(?:g|y)\s*(?:$|[([])", re.IGNORECASE)
_TOTAL = re.compile(r"\btot(?:al)?(?:\b|_)|^sum$", re.IGNORECASE)
_INTEGRAL = re.compile(r"integ|cumul|\bint[\s_-]|\bidos\b|_idos|^dx$", re.IGNORECASE)  # and errors of energies
_ATOMS = re.compile(r"p-?dos|projected|partial|atom", re.IGNORECASE)
_IN_WORDS = re.compile(
    r"(?:energ(?:y|ies)|freq(?:uency|uencies|\.)?|omega|ω|wave[\s_-]?numbers?|\bx[\s_-]?(?:data|axis)?|\bE)"
    r"\s*(?:unit\w*|axis)?\s*(?:is|are|in|:|=)?\s*(?:in\s+)?[(\[]?\s*([^\s,;()\[\]]+)",
    re.IGNORECASE,
)
_INTENSITY_UNIT = re.compile(r"a\.?u\.?$|arb|states|1/|counts?$|barn", re.IGNORECASE)
_FIX_TEXT = "Leave only numbers below the header, two or three in a line"
_KEEP = "Keep energy, DOS and, if known, its standard deviation"
_LARGE = 1 << 20  # characters of a table from which on the lines of numbers are not looked at one by one
_HEAD = 1 << 16  # but for so many
_NUMBERS = b"0123456789+-.eE,;\t \r\n"
_FEWEST = 5
"""Points of a block."""


@dataclass(frozen=True)
class _Header:
    """What comments and column titles declare; None where they say nothing."""

    unit: str | None = None
    kind: str | None = None
    element: str | None = None


def read(text: str, source: str, element: str | None, *, names: Sequence[str] = ()) -> Raw:
    """Read a table.

    Args:
        text: Contents of the file.
        source: File name, for errors.
        element: Element that the caller says the DOS is projected on, or selects.
        names: Titles of the columns, where a format has them always.

    Raises:
        SpectrumError: Columns are missing or unknown, a cell is no number, or the header contradicts itself.
    """
    if len(text) > _LARGE and (end := text.find("\n", _HEAD) + 1) and (rest := _plain(text, end)):
        with suppress(SpectrumError, ValueError):  # then line by line, which finds the line that is wrong
            return _read(text[:end], rest, source, element, names)
    return _read(text, b"", source, element, names)


def _read(text: str, rest: bytes, source: str, element: str | None, names: Sequence[str]) -> Raw:
    """Read a table whose last part may be plain numbers."""
    lines = [(place, line.strip()) for place, line in enumerate(text.splitlines(), 1) if line.strip()]
    comments = [line[:_LONGEST] for _, line in lines if line.startswith(_COMMENT)]
    body = _without_empty_cells([entry for entry in lines if not entry[1].startswith(_COMMENT)])
    first, delimiter = _first(body, source)
    values = _values(body[first:], delimiter, source)
    if rest:
        values = np.concatenate([values, _numbers(rest, delimiter, values.shape[1])])
    above = [_cells(line[:_LONGEST], delimiter, values.shape[1]) for _, line in body[:first]]
    titles = [row for row in above if len(row) == values.shape[1]]
    loose = [" ".join(row) for row in above if len(row) != values.shape[1]]
    if not above and comments and ":" not in comments[-1]:  # numpy.savetxt writes titles as a comment
        titles = [_comment_cells(comments[-1].lstrip("#%! "), delimiter, values.shape[1])]
    columns = [" ".join(row[i] for row in titles if i < len(row)) for i in range(max([0, *map(len, titles)]))]
    columns = columns or list(names[: values.shape[1]])
    words = [*(comments[:-1] if titles and not above else comments), *loose]
    energy = [row[0] for row in titles]
    return from_columns(values, columns, source, element, energy=energy, comments=comments, words=words)


def from_columns(
    values: FloatArray,
    columns: Sequence[str],
    source: str,
    element: str | None,
    *,
    energy: Sequence[str],
    comments: Sequence[str] = (),
    words: Sequence[str] = (),
) -> Raw:
    """Return what columns of numbers are by their titles.

    Args:
        values: (n, columns) numbers.
        columns: Titles; none where there are none.
        source: What errors call the table.
        element: As in `read`.
        energy: Titles of the first column, one above the other, which may end with a unit.
        comments: Lines that may declare something.
        words: Other words of the table.

    Raises:
        SpectrumError: As `read`.
    """
    _check_energy(values, columns, source)
    dos, error, shared = _roles(values, columns, element, source)
    header = _header(comments, energy, columns, words, source)
    if shared is not None:
        return Raw(values[:, 0], dos, header.unit, "projected", shared)
    several = values.shape[1] > 3 or (values.shape[1] == 3 and error is None)
    if several and header.kind in (None, "projected"):  # the total was chosen, or the sum of shares
        header = _Header(header.unit, "total")
    if element is not None and header.element not in (None, element):
        raise SpectrumError(
            f"{source} declares element {header.element}, not {element}", fix="Leave element out, or give another file"
        )
    kind = "total" if header.kind is None and len(columns) > 1 and _is_total(columns[1]) else header.kind
    remark = doubt(columns[:2], words, kind, source)
    return Raw(values[:, 0], dos, header.unit, kind, header.element or element, error, remark=remark)


def _plain(text: str, start: int) -> bytes:
    """Return what follows a place, if it is nothing but plain numbers and what separates them; else nothing."""
    try:
        rest = text[start:].encode("ascii")
    except UnicodeEncodeError:
        return b""
    return b"" if rest.translate(None, _NUMBERS) else rest


def _numbers(rest: bytes, delimiter: str | None, width: int) -> FloatArray:
    """Return the (n, width) plain numbers of a large table.

    Raises:
        ValueError: They are none, or not `width` in each line.
    """
    found = np.loadtxt(io.BytesIO(rest), delimiter=delimiter, comments=None, ndmin=2)
    if found.shape[1] != width:
        raise ValueError(f"not {width} numbers in each line")
    return found


def _without_empty_cells(rows: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Drop rows, and columns at the end, that a spreadsheet wrote without any content."""
    rows = [(place, line) for place, line in rows if line.strip(",; \t&")]  # & ends a curve of Grace
    while rows and all(line.endswith((",", ";")) for _, line in rows):
        rows = [(place, line[:-1].rstrip()) for place, line in rows]
    return rows


def _split(line: str, delimiter: str | None) -> list[str]:
    """Split a line into cells; a delimiter inside quotation marks is none."""
    if delimiter is None:
        return line.split()
    if '"' in line:
        line = re.sub(r'\s*"\s*', '"', line)
        return [cell.strip(" \t\"'") for cell in next(csv.reader([line], delimiter=delimiter))]
    return [cell.strip(" \t'") for cell in line.split(delimiter)]


def _cells(line: str, delimiter: str | None, columns: int) -> list[str]:
    """Split titles: those that blanks separate may have units in brackets, or several words each."""
    if delimiter is not None:
        cells = _split(line, delimiter)
        return cells[:columns] if not any(cells[columns:]) else cells
    words = re.sub(r"\s([(\[])", r"\1", " ".join(line.split())).split()
    share = len(words) // columns if len(words) > columns and len(words) % columns == 0 else 1
    return [" ".join(words[i : i + share]).strip(",;") for i in range(0, len(words), share)]


def _comment_cells(line: str, delimiter: str | None, columns: int) -> list[str]:
    """Split titles in a comment, which need not be separated as the numbers are."""
    ways = [_split(line, mark) for mark in (",", ";", "\t") if mark in line]
    ways = [way for way in ways if len(way) == columns or (1 < len(way) < columns and _ATOMS.search(way[-1]))]
    return ways[0] if ways else _cells(line, delimiter, columns)


def _number(text: str) -> float:
    return number(text.replace(",", ".", 1))  # a comma in a cell is a decimal comma


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _first(body: list[tuple[int, str]], source: str) -> tuple[int, str | None]:
    """Return where the numbers begin, and what separates them."""
    single = None
    for i, (_, line) in enumerate(body):
        if len(line) > _LONGEST and not line[0].isdigit():
            continue
        for mark in (";", "\t", ",", None):
            if mark is not None and mark not in line:
                continue
            cells = _split(line, mark)
            if not _is_number(cells[0]):
                continue
            if len(cells) > 1 and all(_is_number(cell) for cell in cells):
                return i, mark
            single = single or (i, mark if len(cells) > 1 else None)
    if single is None:
        raise SpectrumError(f"{source} holds no numbers", fix="Give a table of energy and DOS")
    return single


def _values(rows: list[tuple[int, str]], delimiter: str | None, source: str) -> FloatArray:
    """Return the (n, columns) numbers of a table."""
    try:
        found = np.loadtxt([line for _, line in rows], delimiter=delimiter, comments=None, ndmin=2, quotechar='"')
    except ValueError:
        found = _one_by_one(rows, delimiter, source)
    if delimiter == "," and found.shape[1] in (4, 6) and not any("." in line or "e" in line for _, line in rows):
        raise SpectrumError(
            f"{source} has decimal commas, and commas between its columns",
            why=f"line {rows[0][0]}: {rows[0][1]}",
            fix="Write decimal points, or separate columns by semicolons",
        )
    return found


def _one_by_one(rows: list[tuple[int, str]], delimiter: str | None, source: str) -> FloatArray:
    """Read what numpy does not, and find the line that is wrong."""
    table: list[list[str]] = []
    for place, line in rows:
        cells = _split(line, delimiter)
        wrong = [cell for cell in cells if not _is_number(cell)]
        if wrong:
            raise SpectrumError(f"{source}, line {place}: {wrong[0]!r} is not a number", fix=_FIX_TEXT)
        if table and len(cells) != len(table[0]):
            raise SpectrumError(
                f"{source}, line {place}: {len(cells)} columns, {len(table[0])} in the lines above", fix=_FIX_TEXT
            )
        table.append(cells)
    _check_thousands(table, source)
    return np.array([[_number(cell) for cell in cells] for cells in table])


def _check_thousands(table: Sequence[Sequence[str]], source: str) -> None:
    """Refuse commas that part thousands: where decimal commas are used, nearly every cell of a column has one."""
    for column in zip(*table, strict=True):
        with_comma = [cell for cell in column if "," in cell]
        if with_comma and len(with_comma) < len(column) and all(map(_THOUSANDS.fullmatch, with_comma)):
            raise SpectrumError(
                f"{source}: {with_comma[0]!r} has a comma between thousands, or a decimal one",
                why="other numbers of the column have none",
                fix="Write numbers without separators of thousands, decimals with a point",
            )


def _check_energy(values: FloatArray, columns: Sequence[str], source: str) -> None:
    """Refuse swapped columns, and several curves one below the other."""
    if values.shape[1] == 1:
        raise SpectrumError(f"{source} has one column", fix="Give energy and DOS, separated by a comma or blanks")
    rises = [bool((np.diff(column) > 0).all()) for column in values.T[:2]]
    titled = bool(columns) and is_energy(columns[0])
    counted = values[0, 0] in (0.0, 1.0) and bool((np.diff(values[:, 0]) == 1.0).all())
    if counted and values.shape[1] > 2 and rises[1] and not titled:
        raise SpectrumError(
            f"{source}: the first column only counts the rows",
            why="the second one rises like energies",
            fix="Leave it out (pandas: index=False)",
        )
    named = len(columns) > 1 and is_energy(columns[1]) and not is_energy(columns[0])
    if named or (rises[1] and not rises[0] and not titled and len(values) > _FEWEST):
        raise SpectrumError(
            f"{source}: the columns are swapped",
            why=f"{columns[1]!r} stands over the second one" if named else "the second one rises like energies",
            fix="Give energy first, then the DOS",
        )
    starts = np.flatnonzero(np.diff(values[:, 0]) < 0) + 1
    blocks = np.split(values[:, 0], starts)
    if len(starts) and min(map(len, blocks)) >= _FEWEST:
        raise SpectrumError(
            f"{source} holds {len(blocks)} blocks, one below the other: energies start again at {blocks[1][0]:g}",
            fix="Keep the one that is meant in a file of its own",
        )


def is_energy(title: str) -> bool:
    """Tell whether a title is that of energies."""
    words = re.split(r"[\s_/([\])]+", title.strip())
    return bool(_ENERGY_TITLE.search(title)) or (len(words) > 1 and is_unit(words[-1]) and not _DOS_TITLE.search(title))


def _roles(
    values: FloatArray, columns: Sequence[str], element: str | None, source: str
) -> tuple[FloatArray, FloatArray | None, str | None]:
    """Return the DOS, its error if there is one, and the element that was selected.

    Raises:
        SpectrumError: It is not known what the columns are.
    """
    count = values.shape[1]
    if count == 2:
        return values[:, 1], None, None
    whole = len(columns) == count and (_ATOMS.search(columns[1]) or _is_error_title(columns[-1], source))
    if len(columns) > 1 and not whole and _ATOMS.search(columns[-1]):
        # One title over the columns of all atoms.
        if element is not None:
            raise SpectrumError(f"{source} does not say which column belongs to {element}", fix="Leave element out")
        total = len(columns) > 2
        return (values[:, 1] if total else values[:, 1:].sum(axis=1)), None, None
    names = columns if len(columns) == count else []
    if count == 3 and (not names or _is_error_title(names[2], source)):
        if not names and not _is_error(values[:, 1], values[:, 2]):
            raise SpectrumError(
                f"{source}: the third column is too large for a standard deviation, and no title says what it is",
                fix="Title it error if it is one; if columns are atoms' shares, give energy and their sum",
            )
        return values[:, 1], values[:, 2], None
    peak = np.abs(values[:, 1]).max()
    if not names and count > 3 and np.allclose(values[:, 2:].sum(axis=1), values[:, 1], atol=0.02 * peak):
        if element is not None:
            raise SpectrumError(f"{source} does not say which column belongs to {element}", fix="Leave element out")
        return values[:, 1], None, None  # the total, and what adds up to it
    of = {i: element_of(names[i], alone=True) for i in range(1, count) if names and not _is_total(names[i])}
    shares = [i for i, symbol in of.items() if symbol]
    if len(shares) == 1 and not element_of(names[shares[0]]):  # Y may be an axis
        shares = []
    totals = [i for i in range(1, count) if names and i not in shares and _is_total(names[i])]
    integrals = [i for i in range(1, count) if names and _INTEGRAL.search(names[i])]
    plain = [i for i in range(1, count) if names and i not in shares + integrals and _DOS_TITLE.search(names[i])]
    added = (
        len(shares) > 1
        and len(plain) == 1
        and np.allclose(
            values[:, shares].sum(axis=1), values[:, plain[0]], atol=0.02 * np.abs(values[:, plain[0]]).max()
        )
    )
    if not totals and len(plain) == 1 and (integrals or added):
        totals = plain
    rest = [i for i in range(1, count) if i not in shares + totals + integrals]
    errors = [i for i in rest if names and _is_error_title(names[i], source)]
    if not names or rest != errors or len(errors) > 1 or len(totals) > 1 or not (totals or shares):
        if count == 3:
            raise SpectrumError(
                f"{source}: the third column is called {names[2]!r}",
                why="a third column must be the standard deviation of the DOS",
                fix="Keep energy and DOS only, or call the third column error",
            )
        raise SpectrumError(f"{source} has {count} columns of unknown meaning", why=", ".join(names), fix=_KEEP)
    if element is None and totals:
        return values[:, totals[0]], values[:, errors[0]] if errors else None, None
    dos, projected = select_elements(values[:, shares].T, [str(of[i]) for i in shares], element, source)
    return dos, None, projected


def _is_error_title(title: str, source: str) -> bool:
    """Tell whether a title says that a column is the standard deviation of the DOS.

    Raises:
        SpectrumError: It says that it is another measure of an error.
    """
    if not _ERROR_TITLE.search(title) or _NO_ERROR_TITLE.search(title):
        return False
    if _OTHER_ERROR.search(title):
        raise SpectrumError(
            f"{source}: a column is called {title!r}",
            why="an error must be the standard deviation of the DOS, in its unit",
            fix="Convert it, or leave it out",
        )
    return True


def _is_total(title: str) -> bool:
    return bool(_TOTAL.search(title)) and not _INTEGRAL.search(title)


def _is_error(dos: FloatArray, error: FloatArray) -> bool:
    """Tell whether a column without a title can be a standard deviation: small, and not far above the scatter."""
    if (error < 0).any() or error.max() > 0.3 * np.abs(dos).max():
        return False
    live = dos > 0.1 * dos.max()
    third = np.abs(np.diff(dos, 3))
    scatter = float(np.median(third[live[1:-2]])) / 0.6745 / np.sqrt(20.0) if live[1:-2].any() else 0.0
    stated = float(np.median(error[live]))
    return stated < 0.05 * float(np.median(dos[live])) or scatter > 0.1 * stated


def _header(
    comments: Sequence[str], energy: Sequence[str], columns: Sequence[str], words: Sequence[str], source: str
) -> _Header:
    entries = [(match[1].lower(), match[2].strip()) for match in map(_ENTRY.match, comments) if match]
    columns_said = any(re.search(r"column", line, re.IGNORECASE) for line in comments)
    units = [
        parse_unit(re.split(r"[;,]", text)[0], field=f"{source}, unit")
        for key, text in entries
        if key == "unit" and not (columns_said and _INTENSITY_UNIT.match(text))
    ]
    units += [unit for title in energy if (unit := _unit_in(title, source)) is not None]
    if not units:
        units = list(dict.fromkeys(unit for line in comments for unit in _units_in_words(line)))
        units = units if len(units) == 1 else []  # of two, ask which is that of the table
    if len(set(units)) > 1:
        raise SpectrumError(f"{source} declares {' and '.join(dict.fromkeys(units))}", fix="Declare one unit")
    kind, element = _kind(entries, source)
    named, of = quantity(columns[:2], words, source)
    if kind is None and not any(key == "element" for key, _ in entries):
        kind, element = named, of
    return _Header(units[0] if units else None, kind, element)


def _unit_in(title: str, source: str) -> str | None:
    """Return the unit that a column title ends with: in brackets, or after a slash, underscore or blank."""
    field = f"{source}, title {title!r}"
    if _SCALED.search(title):
        raise SpectrumError(f"{field}: energies are scaled", fix="Give energies themselves, in one of the units")
    brackets = re.search(r"[(\[]([^()\[\]]*)[)\]]$", title)
    angular = re.search(r"angular|circular|(?<!/)(?<!/ )\b2\s*\*?\s*(?:pi|π)(?!\s*\*?\s*THz)", title, re.IGNORECASE)
    if angular and re.search(r"(?<!pi )(?<!pi)\bTHz\W*$", title, re.IGNORECASE):
        return None  # of 2 pi THz or of THz: ask
    if brackets:
        return parse_unit(brackets[1], field=field)
    title = re.sub(r"/\s*\(?\s*2\s*\*?\s*(?:pi|π)\s*\)?", " ", title)  # a divisor, no part of the unit
    tails = [title[match.end() :] for match in re.finditer(r"^|[\s_/:]", title[-80:])] if len(title) <= 80 else []
    foreign = _NOT_A_UNIT.search(title)
    return next((parse_unit(tail, field=field) for tail in tails if is_unit(tail)), None) or (
        parse_unit(foreign[0], field=field) if foreign else None
    )


def _units_in_words(line: str) -> list[str]:
    """Return the units of energy that a comment names: "Energy in Hartree", "x_data in (meV)"."""
    found = [match for match in _IN_WORDS.finditer(line) if is_unit(match[1])]
    return [
        parse_unit(match[1])
        for match in found
        if not _OTHER_ENERGY.search(line[: match.start()])
        and not re.match(r"[)\]]?\s*[:=]\s*[-+\d]", line[match.end() :])
    ]


def _kind(entries: Sequence[tuple[str, str]], source: str) -> tuple[str | None, str | None]:
    """Return the kind and element that comments declare."""
    kinds: list[str] = []
    element = None
    alone = any(key == "fraction" and _is_number(text) and float(text) == 1.0 for key, text in entries)
    for key, text in entries:
        if key == "kind" and not text.upper().startswith(("EXP-", "DFT")):  # these say how a curve was obtained
            kinds.append(parse_kind(text, field=f"{source}, kind"))
        elif key == "quantity" and (match := _PARTIAL.search(text)):
            element = match[1]
        elif key == "element" and text.lower().startswith("total"):
            kinds.append("neutron-weighted" if "neutron" in text.lower() else "total")
        elif key == "element" and re.fullmatch(r"(?:[A-Z][a-z]?\d*[\s,;+-]*){2,}", text) and text not in INDEX:
            continue  # the elements of the crystal
        elif key == "element":
            element_index(text, field=f"{source}, element")
            element = None if alone else text  # the share of the only element is the total
    if element is not None:
        kinds.append("projected")
    if len(set(kinds)) > 1:
        raise SpectrumError(f"{source} declares two kinds of DOS, {' and '.join(dict.fromkeys(kinds))}", fix="Keep one")
    return (kinds[0] if kinds else None), element
