"""CSV and text tables: energy, DOS and, in a third column, its standard deviation; the unit must be declared.

A file declares in its header, by any of
- the title of the energy column: ``energy_meV,dos``, ``E (cm-1)``, ``frequency/THz``;
- comments: ``# unit: THz``, ``# kind: neutron-weighted``, ``# kind: projected``, ``# element: Fe``,
  ``# quantity: 57Fe partial phonon DOS``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from defectnet.elements import element_index
from defectnet.errors import SpectrumError
from defectnet.io.raw import FloatArray, Raw
from defectnet.spectrum import is_unit, parse_kind, parse_unit

_COMMENT = ("#", "%", "!")
_ENTRY = re.compile(r"[#%!\s]*(?:energy[\s_]*)?(unit|kind|element|fraction|quantity)s?\s*[:=]\s*(.+)", re.IGNORECASE)
_PARTIAL = re.compile(r"\b\d*([A-Z][a-z]?)[\s-]+(?i:partial|projected)\b")
_ERROR_TITLE = re.compile(r"err|sig|std|unc|dev|±|^e$|^d[yg]?$", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"\d,\d+[;\s]+[-+]?\d|\d[;\s]+[-+]?\d+,\d")
_FIX_TEXT = "Leave only numbers below the header, two or three in a line"


@dataclass(frozen=True)
class _Header:
    """What comments and column titles declare; None where they say nothing."""

    unit: str | None = None
    kind: str | None = None
    element: str | None = None


def read(text: str, source: str, element: str | None) -> Raw:
    """Read a table of two or three columns.

    Args:
        text: Contents of the file.
        source: File name, for errors.
        element: Element that the caller says the DOS is projected on.

    Raises:
        SpectrumError: Columns are missing or unknown, a cell is no number, or the header contradicts itself.
    """
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    comments = [line for _, line in lines if line.startswith(_COMMENT)]
    body = _without_empty_cells([entry for entry in lines if not entry[1].startswith(_COMMENT)])
    first = next((i for i, (_, line) in enumerate(body) if _is_number(re.split(r"[,;\s]", line)[0])), None)
    if first is None:
        raise SpectrumError(f"{source} holds no numbers", fix="Give a table of energy and DOS")
    delimiter = next((mark for mark in (";", ",", "\t") if mark in body[first][1]), None)
    values = _values(body[first:], delimiter, source)
    titles = [_split(line, delimiter, values.shape[1]) for _, line in body[:first]]
    if not titles and comments and ":" not in comments[-1]:  # numpy.savetxt writes titles as a comment
        titles = [_split(comments[-1].lstrip("#%! "), delimiter, values.shape[1])]
    _check_columns(values.shape[1], titles, source)
    header = _header(comments, titles, source)
    if element is not None and header.element not in (None, element):
        raise SpectrumError(
            f"{source} declares element {header.element}, not {element}", fix="Leave element out, or give another file"
        )
    error = values[:, 2] if values.shape[1] == 3 else None
    return Raw(values[:, 0], values[:, 1], header.unit, header.kind, header.element or element, error)


def _without_empty_cells(rows: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Drop rows, and columns at the end, that a spreadsheet wrote without any content."""
    rows = [(number, line) for number, line in rows if line.strip(",; \t")]
    while rows and all(line.endswith((",", ";")) for _, line in rows):
        rows = [(number, line[:-1].rstrip()) for number, line in rows]
    return rows


def _split(line: str, delimiter: str | None, columns: int) -> list[str]:
    """Split a line into cells; titles that blanks separate may have units in brackets, or several words each."""
    if delimiter is not None:
        return [cell.strip(" \t\"'") for cell in line.split(delimiter)]
    words = re.sub(r"\s+([(\[])", r"\1", line).split()
    share = len(words) // columns if len(words) > columns and len(words) % columns == 0 else 1
    return [" ".join(words[i : i + share]) for i in range(0, len(words), share)]


def _is_number(text: str) -> bool:
    try:
        float(text.strip(" \t\"'"))
    except ValueError:
        return False
    return "_" not in text


def _values(rows: list[tuple[int, str]], delimiter: str | None, source: str) -> FloatArray:
    """Return the (n, columns) numbers of a table."""
    table: list[list[float]] = []
    for number, line in rows:
        cells = [cell.strip(" \t\"'") for cell in line.split(delimiter)]
        wrong = [cell for cell in cells if not _is_number(cell)]
        if wrong and _DECIMAL_COMMA.search(line):
            raise SpectrumError(
                f"{source} has decimal commas", why=f"line {number}: {line}", fix="Write numbers with decimal points"
            )
        if wrong:
            raise SpectrumError(f"{source}, line {number}: {wrong[0]!r} is not a number", fix=_FIX_TEXT)
        if table and len(cells) != len(table[0]):
            raise SpectrumError(
                f"{source}, line {number}: {len(cells)} columns, {len(table[0])} in the lines above", fix=_FIX_TEXT
            )
        table.append([float(cell) for cell in cells])
    return np.array(table)


def _check_columns(columns: int, titles: list[list[str]], source: str) -> None:
    if columns == 1:
        raise SpectrumError(f"{source} has one column", fix="Give energy and DOS, separated by a comma or blanks")
    names = titles[-1] if titles and len(titles[-1]) == columns else []
    if columns > 3:
        raise SpectrumError(
            f"{source} has {columns} columns of unknown meaning",
            why=", ".join(names),
            fix="Keep energy, DOS and, if known, its standard deviation",
        )
    if columns == 3 and names and not _ERROR_TITLE.search(names[2]):
        raise SpectrumError(
            f"{source}: the third column is called {names[2]!r}",
            why="a third column must be the standard deviation of the DOS",
            fix="Keep energy and DOS only, or call the third column error",
        )


def _header(comments: list[str], titles: list[list[str]], source: str) -> _Header:
    entries = [(match[1].lower(), match[2].strip()) for match in map(_ENTRY.match, comments) if match]
    units = [parse_unit(re.split(r"[;,]", text)[0], field=f"{source}, unit") for key, text in entries if key == "unit"]
    units += [unit for row in titles if row and (unit := _unit_in(row[0], source)) is not None]
    if len(set(units)) > 1:
        raise SpectrumError(f"{source} declares {' and '.join(dict.fromkeys(units))}", fix="Declare one unit")
    kind, element = _kind(entries, source)
    return _Header(units[0] if units else None, kind, element)


def _unit_in(title: str, source: str) -> str | None:
    """Return the unit that a column title ends with: in brackets, or after a slash, underscore or blank."""
    field = f"{source}, title {title!r}"
    brackets = re.search(r"[(\[]([^()\[\]]*)[)\]]$", title)
    if brackets:
        return parse_unit(brackets[1], field=field)
    tails = [title[match.end() :] for match in re.finditer(r"^|[\s_/:]", title)]
    return next((parse_unit(tail, field=field) for tail in tails if is_unit(tail)), None)


def _kind(entries: list[tuple[str, str]], source: str) -> tuple[str | None, str | None]:
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
        elif key == "element":
            element_index(text, field=f"{source}, element")
            element = None if alone else text  # the share of the only element is the total
    if element is not None:
        kinds.append("projected")
    if len(set(kinds)) > 1:
        raise SpectrumError(f"{source} declares two kinds of DOS, {' and '.join(dict.fromkeys(kinds))}", fix="Keep one")
    return (kinds[0] if kinds else None), element
