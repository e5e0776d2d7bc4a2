"""Results as tables on the screen; `benchmarks/report.py` of the project writes documents from the same columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from defectnet.benchmark.results import part
from defectnet.data.candidates import CONDITIONS

if TYPE_CHECKING:
    from rich.table import Table


class Column(NamedTuple):
    """One number of a result.

    Attributes:
        title: Heading.
        group: Group of the result (see `defectnet.benchmark.results.GROUPS`).
        key: Number in that group.
    """

    title: str
    group: str
    key: str


_WITH_CANDIDATES: Final = (
    Column("MAE at.%", "concentration", "mae"),
    Column("RMSE", "concentration", "rmse"),
    Column("R2", "concentration", "r2"),
    Column("R2, 1 dopant", "one_dopant", "r2"),
    Column("R2, 2 to 6", "many_dopants", "r2"),
    Column("AP micro", "identity", "ap_micro"),
    Column("AP macro", "identity", "ap_macro"),
    Column("recall@k", "identity", "recall_at_k"),
    Column("F1", "identity", "f1"),
    Column("exact set", "identity", "exact"),
    Column("ECE", "calibration", "error"),
    Column("limit at.%", "detection", "limit"),
)

LEADERBOARD: Final[dict[str, tuple[Column, ...]]] = {
    "candidates": _WITH_CANDIDATES,
    "known-crystal": _WITH_CANDIDATES,
    "blind": (
        Column("AP micro", "identity", "ap_micro"),
        Column("AP macro", "identity", "ap_macro"),
        Column("recall@k", "identity", "recall_at_k"),
        Column("top 1 *", "one_dopant_plenty", "top_1"),
        Column("top 5 *", "one_dopant_plenty", "top_5"),
        Column("F1", "identity", "f1"),
        Column("exact set", "identity", "exact"),
        Column("MAE at.%", "concentration", "mae"),
        Column("ECE", "calibration", "error"),
        Column("limit at.%", "detection", "limit"),
    ),
}
"""Columns of the leaderboards."""

SCREEN_NOTE: Final = (
    "AP: average precision. recall@k: among the k most probable, k being the number of dopants. *: rows whose only "
    "dopant has 2 at.% or more. ECE: expected calibration error. limit: of detection, nine of "
    "ten at 5 % false alarms. In brackets: 95 % intervals."
)
"""What the columns mean, for the screen."""

Results = Mapping[str, Mapping[str, Any]]


def number(value: float | None) -> str:
    """Write a number with as many digits as a table needs; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def ranked(results: Results, track: str, condition: str) -> list[str]:
    """Return the names of those who were asked, best first: by error with candidates, by average precision blind."""

    def key(name: str) -> tuple[float, str]:
        found = results[name]["results"][track][condition]
        value = found["concentration"]["mae"] if track != "blind" else found["identity"]["ap_micro"]
        return (float("inf") if value is None else value if track != "blind" else -value), name

    return sorted((name for name in results if part(results[name], track, condition) is not None), key=key)


def screen_tables(results: Results) -> Iterator[tuple[str, Table]]:
    """Yield a title and a table for each track and condition, and the parts of a result that stands alone."""
    for track in LEADERBOARD:
        for condition in CONDITIONS:
            names = ranked(results, track, condition)
            if names:
                columns = LEADERBOARD[track]
                rows = [[name, *_screen_cells(results[name]["results"][track][condition], columns)] for name in names]
                yield f"{track}, {condition}", _rich([column.title for column in columns], rows)
    if len(results) == 1:
        name, result = next(iter(results.items()))
        for track, conditions in result["results"].items():
            for condition in conditions:
                rows = [cells[1:] for cells in part_rows([name], results, track, condition)]
                yield f"{name}: {track}, {condition}, in parts", _rich(list(PART_TITLES[2:]), rows)


def _screen_cells(found: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    """Return the numbers of a line; a screen has room for one interval."""
    return [with_interval(found, columns[0]), *(number(found[column.group][column.key]) for column in columns[1:])]


def _rich(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(["", *titles]):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def with_interval(found: Mapping[str, Any], column: Column) -> str:
    """Write a number of a result, with its interval if it has one."""
    value = found[column.group][column.key]
    ends = found["intervals"].get(f"{column.group}.{column.key}")
    return number(value) + (f" ({number(ends[0])} to {number(ends[1])})" if ends and value is not None else "")


def describe(result: Mapping[str, Any]) -> str:
    """Say in a sentence what rows a result was measured on."""
    data = result["data"]
    return (
        f"{data['name']}, {result['split']} split: {data['rows']:,} pairs of {data['hosts']:,} crystals "
        f"in {data['systems']:,} chemical systems."
    )


PART_TITLES: Final = ("", "part", "pairs or dopants", "recall", "MAE at.%", "R2", "coverage", "width at.%")


def part_rows(names: Sequence[str], results: Results, track: str, condition: str) -> Iterator[list[str]]:
    """Yield the cells of `PART_TITLES` for entrants: by number of dopants, by placement, by concentration."""
    for name in names:
        found = part(results[name], track, condition)
        if found is None:
            continue
        for count, values in found["by_dopants"].items():
            title = "1 dopant" if count == "1" else f"{count} dopants"
            yield [name, title, *_part_cells(values)]
        for title, values in found["by_placement"].items():
            yield [name, title, *_part_cells(values)]
        for title, values in found["by_range"].items():
            numbers = [values[key] for key in ("recall", "mae", "coverage", "width")]
            cells = [number(value) for value in numbers]
            yield [name, title, f"{values['dopants']:,}", *cells[:2], "-", *cells[2:]]


def _part_cells(values: Mapping[str, Any]) -> list[str]:
    return [f"{values['rows']:,}", *(number(values[key]) for key in ("recall_at_k", "mae", "r2")), "-", "-"]
