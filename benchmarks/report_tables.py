"""Results as tables in documents (Markdown), from the columns that the screen shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from defectnet.benchmark.results import Ratio, compare, part
from defectnet.benchmark.tables import (
    LEADERBOARD,
    PART_TITLES,
    Column,
    Results,
    describe,
    number,
    part_rows,
    ranked,
    with_interval,
)
from defectnet.data.candidates import CONDITIONS

_SHORT: Final[dict[str, tuple[Column, ...]]] = {
    "candidates": (
        Column("MAE at.%", "concentration", "mae"),
        Column("R2, 1 dopant", "one_dopant", "r2"),
        Column("AP micro", "identity", "ap_micro"),
    ),
    "blind": (
        Column("AP micro", "identity", "ap_micro"),
        Column("top 1 *", "one_dopant_plenty", "top_1"),
        Column("top 5 *", "one_dopant_plenty", "top_5"),
    ),
}


def leaderboard(results: Results, track: str, condition: str) -> list[str]:
    """Return one leaderboard as lines of Markdown, with intervals; the best value of each column is bold."""
    columns = LEADERBOARD[track]
    names = ranked(results, track, condition)
    best = [_best(results, names, track, condition, column) for column in columns]
    lines = head(["", *(column.title for column in columns)])
    for name in names:
        cells = _cells(results[name], track, condition, columns)
        marked = [f"**{cell}**" if name == top else cell for cell, top in zip(cells, best, strict=True)]
        lines.append(line([name, *marked]))
    return lines


def _best(results: Results, names: Sequence[str], track: str, condition: str, column: Column) -> str | None:
    values = {
        name: value
        for name in names
        if (value := results[name]["results"][track][condition][column.group][column.key]) is not None
    }
    lower = column.key in ("mae", "rmse", "error", "limit")
    chosen = min if lower else max
    return chosen(values, key=lambda name: values[name]) if len(values) > 1 else None


def _cells(result: Mapping[str, Any], track: str, condition: str, columns: Sequence[Column]) -> list[str]:
    found = result["results"][track][condition]
    return [with_interval(found, column) for column in columns]


def short_form(results: Results) -> list[str]:
    """Return two small tables, one for each track, both conditions side by side: for README and model card."""
    first = next(iter(results.values()))
    lines = [describe(first), ""]
    for track, columns in _SHORT.items():
        names = ranked(results, track, "clean") or ranked(results, track, "lab")
        if not names:
            continue
        lines += [f"**{track}**, *clean* / *lab*", "", *head(["", *(column.title for column in columns)])]
        for name in names:
            pairs = [[part(results[name], track, condition) for condition in CONDITIONS]] * len(columns)
            cells = [
                " / ".join(number(found[column.group][column.key]) if found else "-" for found in pair)
                for pair, column in zip(pairs, columns, strict=True)
            ]
            lines.append(line([name, *cells]))
        lines.append("")
    if any("blind" in result["results"] for result in results.values()):
        lines += [
            "\\* share of rows whose single dopant, of 2 at.% or more, is the most probable element, or among five.",
            "",
        ]
    return lines[:-1]


def parts(names: Sequence[str], results: Results, track: str, condition: str) -> list[str]:
    """Return results by number of dopants, concentration and placement, as lines of Markdown."""
    return [*head(list(PART_TITLES)), *(line(cells) for cells in part_rows(names, results, track, condition))]


def ratios(results: Results, model: str) -> list[str]:
    """Return the ratios of a model's numbers to those of every other entrant, as lines of Markdown."""
    titles = ["", *(f"{track}, {condition}: {what}" for track, condition, _, what in _RATIOS)]
    lines = head(titles)
    for other in results:
        if other != model:
            found = compare(results[model], results[other])
            cells = [_ratio(found.get(track, {}).get(condition, {}).get(name)) for track, condition, name, _ in _RATIOS]
            lines.append(line([other, *cells]))
    return lines


_RATIOS: Final = tuple(
    (track, condition, name, what)
    for track, name, what in (("candidates", "concentration.mae", "MAE"), ("blind", "identity.ap_micro", "AP micro"))
    for condition in CONDITIONS
)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return number(ratio.value) + ("" if ratio.low is None else f" ({number(ratio.low)} to {number(ratio.high)})")


def elements(result: Mapping[str, Any]) -> list[str]:
    """Return the table of elements of a model, both tracks under clean conditions, as lines of Markdown."""
    tracks = [track for track in LEADERBOARD if part(result, track, "clean") is not None]
    titles = ["dopants", "AP", "recall", "recall@k", "MAE at.%", "detection limit at.%"]
    lines = head(["", *(f"{track}: {title}" for track in tracks for title in titles)])
    symbols = list(dict.fromkeys(s for track in tracks for s in result["results"][track]["clean"]["elements"]))
    for symbol in symbols:
        cells = [symbol]
        for track in tracks:
            found = result["results"][track]["clean"]
            row = found["elements"].get(symbol)
            limit = found["detection"]["elements"].get(symbol)
            values = [None if row is None else row[key] for key in ("ap", "recall", "recall_at_k", "mae")]
            cells += [str(row["dopants"]) if row else "-", *(number(value) for value in (*values, limit))]
        lines.append(line(cells))
    return lines


def head(titles: Sequence[str]) -> list[str]:
    """Return the two first lines of a table; all columns but the first are set to the right."""
    return [line(titles), f"|{'---|' + '---:|' * (len(titles) - 1)}"]


def line(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"
