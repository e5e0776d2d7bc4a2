"""Results as tables: every number beside what is expected, potentials side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from physics_suite.alloys import BONDS, WINDOWS_MEV

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One number.

    Attributes:
        part: Letter.
        item: What it is of; quantity: what it is, with its unit.
        expected: What experiment or density-functional theory says.
        found: What the potential says; error: how far that is off.
    """

    part: str
    item: str
    quantity: str
    expected: str
    found: str
    error: str = ""


def _percent(value: float | None, signed: bool = True) -> str:
    if value is None:
        return "-"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def lines(results: Record) -> Iterator[Line]:
    """Yield every number of a run."""
    for part, entry in results["parts"].items():
        for key, record in entry["items"].items():
            if "failed" in record:
                yield Line(part, key, "held", "yes", "no", record["failed"])
            else:
                yield from _LINES[part](part, key, record)


def _curves(part: str, key: str, record: Record) -> Iterator[Line]:
    expected = record["dft_mean_mev"] if part == "a" else record["teacher_mean_mev"]
    found, error = _number(record["mean_mev"]), _percent(record["mean_error"])
    yield Line(part, key, "mean energy, meV", _number(expected), found, error)
    distance = _number(record["shape_distance"], 3)
    yield Line(part, key, "shape distance", "0", distance, distance)
    if record["imaginary_fraction"] > 0:
        yield Line(part, key, "imaginary modes", "0", _percent(record["imaginary_fraction"], False))


def _local(part: str, key: str, record: Record) -> Iterator[Line]:
    name = key + ("" if record["scored"] else " (not scored)")
    columns = (("frequency, 1/cm", "cm1", 1), ("host's edge, 1/cm", "edge_cm1", 1), ("over host's edge", "ratio", 3))
    errors = ("error", "edge_error", "ratio_error")
    for (quantity, field, digits), error in zip(columns, errors, strict=True):
        found = _number(record[field], digits)
        yield Line(part, name, quantity, _number(record[f"measured_{field}"], digits), found, _percent(record[error]))


def _isotope(part: str, key: str, record: Record) -> Iterator[Line]:
    expected, found = _number(record["measured_shift_cm1"], 1), _number(record["shift_cm1"], 1)
    yield Line(part, key, "10B - 11B, 1/cm", expected, found, _percent(record["shift_error"]))
    expected, found = _number(record["measured_ratio"], 4), _number(record["ratio"], 4)
    yield Line(part, key, "10B / 11B", expected, found, _percent(record["ratio_error"]))


def _sige(part: str, key: str, record: Record) -> Iterator[Line]:
    for bond in BONDS:
        line = record["lines"][bond]
        quantity = f"{bond} line, 1/cm"
        yield Line(
            part, key, quantity, _number(line["measured_cm1"], 0), _number(line["cm1"], 0), _percent(line["error"])
        )


def _mgb2(part: str, key: str, record: Record) -> Iterator[Line]:
    if "matched_mev" in record:
        for expected, found, error in zip(record["measured_mev"], record["matched_mev"], record["error"], strict=True):
            missing = "no such peak" if error is None else _percent(error)
            yield Line(part, key, f"optic peak {expected:g}, meV", _number(expected, 0), _number(found, 1), missing)
        return
    yield Line(part, key, "mean energy changes by", "rises", _percent(record["mean_shift"]))
    yield Line(part, key, "change of shape", "large", _number(record["shape_distance"], 3))
    for name in WINDOWS_MEV:
        window = record[f"near_{name}_mev"]
        moved = f"{window['centre_shift_mev']:+.2f} meV, {_percent(window['moved_share'], False)} of the area"
        yield Line(part, key, f"near {name} meV", "changes", moved)


def _vanadium(part: str, key: str, record: Record) -> Iterator[Line]:
    right = "right" if record["stiffens"] else "wrong sign"
    yield Line(part, key, "mean energy changes by", "rises", _percent(record["mean_shift"]), right)
    yield Line(part, key, "of V atoms", "rises", _percent(record["mean_shift_of_vanadium"]))
    yield Line(part, key, "by mass alone", "falls", _percent(record["mean_shift_by_mass_alone"]))


def _host(part: str, key: str, record: Record) -> Iterator[Line]:
    expected = "too many" if record["teacher_unstable"] else "under 1 %"
    yield Line(part, key, "imaginary modes; teacher", expected, _percent(record["imaginary_fraction"], False))


def _relaxation(part: str, key: str, record: Record) -> Iterator[Line]:
    yield Line(part, key, "volume changes by", "under 20 %", _percent(record["volume_change"]))


_LINES = {
    "a": _curves,
    "b": _local,
    "c": _isotope,
    "d": _sige,
    "e": _mgb2,
    "f": _vanadium,
    "g": _curves,
    "h": _host,
    "i": _relaxation,
}


def _summary_rows(summaries: Mapping[str, Record]) -> Iterator[tuple[str, str, str]]:
    """Yield part, quantity and value of the figures by which potentials are compared."""
    if "a" in summaries:
        yield from _curve_rows("a", "DFT curves", summaries["a"])
    if "b" in summaries:
        s = summaries["b"]
        yield "b", "local mode over host's edge, mean error", _percent(s["ratio_error_mean"], False)
        yield "b", "local mode, mean error", _percent(s["frequency_error_mean"], False)
        yield "b", "worst over host's edge", f"{_percent(s['worst_ratio_error'])} ({s['worst']})"
        yield "b", "systems that fail", f"{s['failed']} of {s['systems']}"
    if "c" in summaries:
        yield "c", "10B/11B shift, mean error", _percent(summaries["c"]["shift_error_mean"], False)
    if "d" in summaries:
        s = summaries["d"]
        yield "d", "SiGe lines, mean error", _percent(s["line_error_mean"], False)
        yield "d", "three modes in order / trends", f"{_yes(s['three_modes'])} / {_yes(s['trends'])}"
    if "e" in summaries:
        s = summaries["e"]
        yield "e", "MgB2 optic peaks, mean error", _percent(s["peak_error_mean"], False)
        yield "e", "MgB2 optic peaks missing", str(s["peaks_missing"])
        yield "e", "25 % Al: mean energy", _percent(s["al_mean_shift"])
    if "f" in summaries:
        s = summaries["f"]
        yield "f", "V with 6 % Pt stiffens", f"{_yes(s['stiffens'])} ({_percent(s['shift'])})"
    if "g" in summaries:
        yield from _curve_rows("g", "teacher", summaries["g"])
        for kind in ("pristine", "doped"):
            if kind in summaries["g"]:
                median = summaries["g"][kind]["shape_distance_median"]
                yield "g", f"shape against the teacher, {kind}, median", _number(median, 3)

    if "h" in summaries:
        s = summaries["h"]
        yield "h", "hosts with over 1 % imaginary modes, or not held", _percent(s["unstable_share"], False)
        yield "h", "the same of the teacher", _percent(s["teacher_unstable_share"], False)
    if "i" in summaries:
        s = summaries["i"]
        yield "i", "doped cells that come to rest", _percent(s["relaxed_share"], False)
        yield "i", "of them, another crystal (volume by over 20 %)", _percent(s["another_crystal_share"], False)


def _curve_rows(part: str, name: str, summary: Record) -> Iterator[tuple[str, str, str]]:
    yield part, f"shape against {name}, median", _number(summary["shape_distance_median"], 3)
    yield part, f"mean energy against {name}, median error", _percent(summary["mean_error_median"], False)
    yield part, f"mean energy against {name}, mean error", _percent(summary["mean_error_mean"], False)
    yield part, f"crystals that fail ({name})", f"{summary['failed']} of {summary['crystals']}"
    yield part, f"with over 1 % imaginary modes ({name})", f"{summary['unstable']} of {summary['crystals']}"


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "no"


def summary_table(runs: Sequence[Record]) -> Table:
    """Return the summary, one column a potential."""
    table = Table(title="Physics suite", title_justify="left")
    table.add_column("part")
    table.add_column("")
    by_row: dict[tuple[str, str], dict[int, str]] = {}
    for number, results in enumerate(runs):
        table.add_column(results["potential"]["name"], justify="right")
        summaries = {part: entry["summary"] for part, entry in results["parts"].items() if "summary" in entry}
        for part, quantity, value in _summary_rows(summaries):
            by_row.setdefault((part, quantity), {})[number] = value
    for (part, quantity), values in sorted(by_row.items(), key=lambda row: row[0][0]):
        table.add_row(part, quantity, *[values.get(number, "") for number in range(len(runs))])
    return table


def detail_table(runs: Sequence[Record]) -> Table:
    """Return every number beside what is expected, one pair of columns a potential."""
    table = Table(title="Every number", title_justify="left")
    for heading in ("part", "of", "quantity"):
        table.add_column(heading)
    table.add_column("expected", justify="right")
    by_row: dict[tuple[str, str, str, str], dict[int, Line]] = {}
    for number, results in enumerate(runs):
        table.add_column(results["potential"]["name"], justify="right")
        table.add_column("error", justify="right")
        for line in lines(results):
            by_row.setdefault((line.part, line.item, line.quantity, line.expected), {})[number] = line
    for key, found in sorted(by_row.items(), key=lambda row: row[0][0]):
        cells = []
        for number in range(len(runs)):
            cells += [found[number].found, found[number].error] if number in found else ["", ""]
        table.add_row(*key, *cells)
    return table


def skipped_lines(results: Record) -> list[str]:
    """Return what was left out, gathered by reason."""
    out = []
    for part, entry in results["parts"].items():
        reasons: dict[str, list[str]] = {}
        for name, reason in entry.get("skipped", {}).items():
            reasons.setdefault(reason, []).append(name.removesuffix(".ncmat"))
        out += [f"{part}, left out ({reason}): {', '.join(names)}" for reason, names in reasons.items()]
    return out
