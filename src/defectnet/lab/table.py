"""The table of lab spectra: one row for each pair of host and doped sample, checked line by line.

All faults of a table are found in one pass and given in one error, so that a user mends it once.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from defectnet.config import MODEL_GRID, Grid
from defectnet.elements import chemical_system, composition, element_index, parse_formula
from defectnet.errors import DefectNetError, LabError, SpectrumError, format_error
from defectnet.files import file_sha256
from defectnet.io import read_spectrum
from defectnet.measure.encode import candidate_mask, encode_pair
from defectnet.measure.plausible import overlap
from defectnet.spectrum import UNITS, Spectrum, parse_kind, parse_unit

TABLE: Final = "pairs.csv"
"""Name of the table in a folder."""

REQUIRED: Final = ("sample", "host_file", "doped_file", "formula", "dopants")
OPTIONAL: Final = ("unit", "kind", "element", "weight", "resolution_mev", "candidates")
"""Columns that a table must and may have; their order is free."""

MIN_SAMPLES: Final = 4
"""Fewer samples cannot be parted into some to learn from and some to judge by."""

MAX_CONCENTRATION: Final = 0.5
"""Largest concentration, of a dopant and of all together: beyond it the dopant is the host."""

LEAST_CHECKED, LEAST_CHANGE = 0.05, 0.1
"""Concentration from which on the spectra must differ, by at least this share of it: of simulated pairs none by less
than 0.67. Less is an amount in per cent."""

MAX_SHOWN: Final = 20
"""So many faults are shown; the rest is counted."""

_COLUMNS: Final = f"Columns are {', '.join(REQUIRED)} and, if needed, {', '.join(OPTIONAL)}"
_DOPANTS_FIX: Final = "Write atomic fractions of all atoms, such as Al:0.05;Ga:0.01; leave it empty where undoped"
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class LabPair:
    """One row: a sample, the spectra of it and of its host, and what is truly in it.

    Attributes:
        sample: Name of the sample; all rows of a sample are held out together.
        host: DOS of the pristine host.
        doped: DOS of the sample.
        formula: Formula of the host.
        dopants: Element -> concentration, atomic fraction of all atoms; empty for an undoped control.
        candidates: Elements that are asked for; None draws some beside the true ones.
        weight: What the row counts for in training; 1 by default.
        resolution_mev: Gaussian resolution of the measurement (FWHM) in meV; None where not known.
        line: Line of the table, for errors; 0 if it comes from elsewhere.
    """

    sample: str
    host: Spectrum
    doped: Spectrum
    formula: str
    dopants: dict[str, float]
    candidates: tuple[str, ...] | None = None
    weight: float = 1.0
    resolution_mev: float | None = None
    line: int = 0

    @property
    def system(self) -> str:
        """Chemical system of the host, such as ``As-Ga``."""
        return chemical_system(parse_formula(self.formula))

    @property
    def key(self) -> str:
        """Fixes what is drawn for this row, wherever it stands in the table."""
        return f"{self.sample}\x1f{Path(self.doped.source).name}\x1f{Path(self.host.source).name}"


class _Fault(NamedTuple):
    line: int
    what: str
    fix: str


@dataclass
class _Faults:
    """What is wrong with a table so far."""

    found: list[_Fault] = field(default_factory=list)

    def add(self, line: int, column: str, what: str, fix: str, why: str = "") -> None:
        place = ", ".join(part for part in (f"line {line}" if line else "", column) if part)
        reason = f" ({why})" if why else ""
        self.found.append(_Fault(line, f"{place}: {what}{reason}" if place else f"{what}{reason}", fix))

    def checked(self, line: int, column: str, check: Callable[[], _T]) -> _T | None:
        """Run a check; an error of this package becomes a fault of the cell."""
        try:
            return check()
        except DefectNetError as error:
            self.add(line, column, error.what, error.fix, error.why)
            return None

    def raise_if_any(self, path: Path) -> None:
        faults = sorted(self.found, key=lambda fault: fault.line)
        if len(faults) == 1:
            raise LabError(f"{path}, {faults[0].what}", fix=faults[0].fix)
        if faults:
            listed = [f"  {format_error(fault.what, fix=fault.fix)}" for fault in faults[:MAX_SHOWN]]
            more = [f"  and {len(faults) - MAX_SHOWN} more"] if len(faults) > MAX_SHOWN else []
            lines = "\n".join([*listed, *more])
            raise LabError(f"{path} has {len(faults)} faults", fix=f"Mend these:\n{lines}")


def read_table(source: str | os.PathLike[str], *, grid: Grid = MODEL_GRID, fewest: int = MIN_SAMPLES) -> list[LabPair]:
    """Read a table of lab spectra and every spectrum that it names.

    Args:
        source: The table, or the folder that holds it as ``pairs.csv``. Files in it are relative to the table.
        grid: Grid of the network, onto which every pair is put once, as a check.
        fewest: Samples that there must be.

    Returns:
        Pairs in the order of the table.

    Raises:
        LabError: One error that lists every fault with its line, its column and the way out.
    """
    path = _table_path(Path(source))
    faults = _Faults()
    pairs = _pairs(path, faults, grid, fewest)
    faults.raise_if_any(path)
    return pairs


def _table_path(path: Path) -> Path:
    if not path.exists():
        raise LabError(f"lab data {path} does not exist", fix=f"Give a table (.csv), or a folder with {TABLE}")
    if not path.is_dir():
        return path
    if not (path / TABLE).is_file():
        raise LabError(f"folder {path} holds no {TABLE}", fix=f"Call its table {TABLE}, or give the table's own path")
    return path / TABLE


def _pairs(path: Path, faults: _Faults, grid: Grid, fewest: int) -> list[LabPair]:
    rows = _rows(path, faults)
    pairs, files = [], _Files(path.parent)
    for line, row in rows:
        before = len(faults.found)
        pair = _pair(line, row, files, faults, grid)
        if pair is not None and len(faults.found) == before:
            pairs.append(pair)
    _check_together(pairs, files, faults)
    samples = {row["sample"] for _, row in rows}
    if rows and len(samples) < fewest:
        fix = f"Give {fewest} samples at least: some are held out, to judge by"
        faults.add(0, "", f"{len(samples)} different samples are too few", fix)
    return pairs


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data[:4] == b"PK\x03\x04" or b"\0" in data:
        raise LabError(f"table {path} is not text", fix="Save it from the spreadsheet as CSV (UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise LabError(
            f"table {path}, line {line} is not UTF-8", why=f"byte 0x{data[error.start]:02x}", fix="Save it as UTF-8"
        ) from error


def _rows(path: Path, faults: _Faults) -> list[tuple[int, dict[str, str]]]:
    """Return (line, cells) of each row; a table whose columns are wrong has none."""
    reader = csv.reader(io.StringIO(_text(path)), skipinitialspace=True, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            if not any(stripped):
                continue
            if not stripped[0].startswith("#"):
                lines.append((reader.line_num, stripped))
            elif lines and len(stripped) == len(lines[0][1]) and re.match(r"#\w", stripped[0]):
                fix = "Call the sample otherwise; or, if the row is a comment, put a blank behind its #"
                faults.add(reader.line_num, "", f"{stripped[0]!r} begins a whole row: a sample, or a comment?", fix)
    except csv.Error as error:
        fix = "Close every quotation mark, and double those inside a cell"
        raise LabError(f"{path}, line {reader.line_num} is broken", why=str(error), fix=fix) from error
    if len(lines) < 2:
        state = "holds no rows" if lines else "is empty"
        raise LabError(f"table {path} {state}", fix=f"Give one row for each pair. {_COLUMNS}")
    (top, titles), body = lines[0], lines[1:]
    if not _columns_are_right(top, titles, faults):
        return []
    rows = []
    for line, cells in body:
        if len(cells) == len(titles):
            rows.append((line, dict(zip(titles, cells, strict=True))))
        else:
            fix = "Give one cell for each column; put cells that hold commas into quotation marks"
            faults.add(line, "", f"{len(cells)} cells, the header has {len(titles)}", fix)
    return rows


def _columns_are_right(line: int, titles: list[str], faults: _Faults) -> bool:
    before = len(faults.found)
    if len(titles) == 1 and any(mark in titles[0] for mark in ";\t"):
        faults.add(line, "", "columns are not separated by commas", "Save the table as CSV with commas")
        return False
    for title in dict.fromkeys(titles):
        if title not in REQUIRED + OPTIONAL:
            faults.add(line, title or "(no title)", "unknown column", _COLUMNS)
        elif titles.count(title) > 1:
            faults.add(line, title, "the column is there twice", "Keep one of them")
    for title in REQUIRED:
        if title not in titles:
            faults.add(line, title, "the column is missing", _COLUMNS)
    return len(faults.found) == before


@dataclass
class _Files:
    """Spectra of a table, each read once for each way of reading it."""

    folder: Path
    read: dict[tuple[str, ...], Spectrum | None] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    def spectrum(self, role: str, line: int, row: dict[str, str], faults: _Faults) -> Spectrum | None:
        """Read the spectrum of a row; None after a fault, of which each file makes one, however many rows name it."""
        name = row[f"{role}_file"]
        settings = {key: row.get(key) or None for key in ("unit", "kind", "element")}
        key = (name, *(value or "" for value in settings.values()))
        if key not in self.read:
            found = faults.checked(line, f"{role}_file", lambda: self._read(name, settings))
            self.read[key] = found
        return self.read[key]

    def _read(self, name: str, settings: dict[str, str | None]) -> Spectrum:
        try:
            return read_spectrum(self.folder / name, **settings)
        except DefectNetError as error:
            raise self._without_unit(error, name, settings) from error

    def _without_unit(self, error: DefectNetError, name: str, settings: dict[str, str | None]) -> DefectNetError:
        """Return the error, in the table's words if it is the unit alone that is missing."""
        if settings["unit"] is not None:
            return error
        try:
            read_spectrum(self.folder / name, **(settings | {"unit": "meV"}))
        except DefectNetError:
            return error
        fix = f"Fill the column unit with one of {', '.join(UNITS)}"
        return SpectrumError(f"{name} declares no energy unit, and the row none", fix=fix)

    def digest(self, spectrum: Spectrum) -> str:
        """Return the sha256 of the file that a spectrum came from."""
        if spectrum.source not in self.digests:
            self.digests[spectrum.source] = file_sha256(spectrum.source)
        return self.digests[spectrum.source]


def _pair(line: int, row: dict[str, str], files: _Files, faults: _Faults, grid: Grid) -> LabPair | None:
    """Read one row; None if a fault leaves nothing to return."""
    for column in ("sample", "host_file", "doped_file", "formula"):
        if not row[column]:
            faults.add(line, column, "the cell is empty", "Fill it in")
    usable = _reading_is_known(line, row, faults)
    host, doped = (
        files.spectrum(role, line, row, faults) if usable and row[f"{role}_file"] else None
        for role in ("host", "doped")
    )
    formula = row["formula"]
    hosts = faults.checked(line, "formula", lambda: parse_formula(formula)) if formula else None
    dopants = _dopants(line, row["dopants"], hosts, faults)
    candidates = _candidates(line, row.get("candidates", ""), formula if hosts else "", dopants, faults)
    weight = _number(line, "weight", row, 1000.0, faults)
    resolution = _number(line, "resolution_mev", row, 20.0, faults)
    if host is None or doped is None or hosts is None or dopants is None:
        return None
    if faults.checked(line, "host_file, doped_file", lambda: encode_pair(host, doped, formula, grid=grid)) is None:
        return None
    total, changed = sum(dopants.values()), 1.0 - overlap(host, doped)
    if total >= LEAST_CHECKED and changed < LEAST_CHANGE * total:
        what = f"{100 * total:.3g} at.% are said to be in it, yet the spectra share all but {changed:.1%} of their area"
        faults.add(line, "dopants", what, f"Write atomic fractions, not per cent: {total / 100:g} for {total:g} %")
        return None
    return LabPair(
        row["sample"], host, doped, formula, dopants, candidates, 1.0 if weight is None else weight, resolution, line
    )


def _reading_is_known(line: int, row: dict[str, str], faults: _Faults) -> bool:
    """Check unit, kind and element once, not once for each of the files."""
    before = len(faults.found)
    checks: dict[str, Callable[[str], object]] = {"unit": parse_unit, "kind": parse_kind, "element": element_index}
    for column, check in checks.items():
        text = row.get(column, "")
        if text:
            faults.checked(line, column, lambda check=check, text=text: check(text))  # type: ignore[misc]
    return len(faults.found) == before


def _dopants(line: int, text: str, hosts: dict[str, float] | None, faults: _Faults) -> dict[str, float] | None:
    """Read ``Al:0.05;Ga:0.01``; None after a fault."""
    before, dopants = len(faults.found), dict[str, float]()
    for part in filter(None, (part.strip() for part in text.split(";"))):
        symbol, colon, value = (word.strip() for word in part.partition(":"))
        if not colon:
            faults.add(line, "dopants", f"{part!r} has no concentration", _DOPANTS_FIX)
            continue
        if faults.checked(line, "dopants", lambda symbol=symbol: element_index(symbol, field="dopants")) is None:  # type: ignore[misc]
            continue
        if hosts is not None and symbol in hosts:
            faults.add(line, "dopants", f"{symbol} is part of the host", "Name only elements that are not in the host")
        if symbol in dopants:
            faults.add(line, "dopants", f"{symbol} is named twice", "Give its concentration once")
        share = _share(line, symbol, value, faults)
        if share is not None:
            dopants[symbol] = share
    total = sum(dopants.values())
    if len(faults.found) == before and total > MAX_CONCENTRATION:
        faults.add(line, "dopants", f"concentrations add up to {total:g}, more than half of all atoms", _DOPANTS_FIX)
    return dopants if len(faults.found) == before else None


def _share(line: int, symbol: str, value: str, faults: _Faults) -> float | None:
    """Read one concentration."""
    percent = value.endswith("%")
    try:
        share = float(value.rstrip("% "))
    except ValueError:
        share = math.nan
    if not math.isfinite(share):
        faults.add(line, "dopants", f"{value!r} of {symbol} is not a number", _DOPANTS_FIX)
    elif percent or share > 1.0:
        written = f"{symbol}:{share / 100:g}"
        faults.add(line, "dopants", f"{symbol}:{value} is written in per cent", f"Write atomic fractions: {written}")
    elif share > MAX_CONCENTRATION:
        fix = "Give the formula of the more abundant crystal as the host; a concentration is 0.5 at most"
        faults.add(line, "dopants", f"concentration {value} of {symbol} is above 0.5", fix)
    elif share <= 0.0:
        fix = "Give a positive atomic fraction; leave out what is not there"
        faults.add(line, "dopants", f"concentration {value} of {symbol} is not positive", fix)
    else:
        return share
    return None


def _candidates(
    line: int, text: str, formula: str, dopants: dict[str, float] | None, faults: _Faults
) -> tuple[str, ...] | None:
    names = tuple(text.replace(",", " ").replace(";", " ").split())
    if not names or not formula:
        return None
    faults.checked(line, "candidates", lambda: candidate_mask(formula, names))
    missing = [symbol for symbol in dopants or () if symbol not in names]
    if missing:
        faults.add(line, "candidates", f"{', '.join(missing)} is a dopant, but no candidate", "Name all the dopants")
    return names


def _number(line: int, column: str, row: dict[str, str], largest: float, faults: _Faults) -> float | None:
    """Read an optional positive number; None where the cell is empty or wrong."""
    text = row.get(column, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        faults.add(line, column, f"{text!r} is not a number", "Write it with a decimal point, without a unit")
        return None
    if not 0.0 < value <= largest:
        faults.add(line, column, f"{text} is not above 0 and up to {largest:g}", "Leave the cell empty if not known")
        return None
    return value


def _check_together(pairs: Sequence[LabPair], files: _Files, faults: _Faults) -> None:
    """Find what only several rows show: duplicates, samples and hosts that contradict themselves, mixed kinds."""
    seen: dict[tuple[str, str], LabPair] = {}
    doped: dict[str, LabPair] = {}
    samples: dict[str, LabPair] = {}
    hosts: dict[str, LabPair] = {}
    for pair in pairs:
        own, host = files.digest(pair.doped), files.digest(pair.host)
        if own == host and pair.dopants:
            fix = "Give the spectrum of the doped sample; or leave dopants empty"
            faults.add(pair.line, "doped_file", "it holds the same as host_file, yet there are dopants", fix)
        first = seen.setdefault((host, own), pair)
        crystal = hosts.setdefault(host, pair)
        if not np.allclose(composition(crystal.formula), composition(pair.formula)):
            what = f"the host of {pair.formula} is that of line {crystal.line}, {crystal.formula}"
            faults.add(pair.line, "host_file", what, "Correct the formula, or give the right file")
        spectrum, same = doped.setdefault(own, pair), samples.setdefault(pair.sample, pair)
        if first is not pair:
            faults.add(pair.line, "doped_file", f"the pair is line {first.line} again", "Keep one of the two rows")
        elif spectrum.sample != pair.sample:
            what = f"it holds the same as that of line {spectrum.line}, another sample"
            faults.add(pair.line, "doped_file", what, "Call them one sample, or give the right file")
        if (same.dopants, same.system) != (pair.dopants, pair.system):
            what = f"{pair.sample} has another host or other dopants in line {same.line}"
            faults.add(pair.line, "sample", what, "Give different samples different names")
    kinds = {pair.host.kind: pair for pair in reversed(pairs)}
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} in line {pair.line}" for kind, pair in sorted(kinds.items()))
        fix = "Fill the column kind where it is missing, or make one table for each kind"
        faults.add(0, "kind", f"rows are of different kinds of DOS: {listed}", fix)
