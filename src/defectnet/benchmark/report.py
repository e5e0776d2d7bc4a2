"""Benchmark results as Markdown tables, printed or put into a card.

python -m defectnet.benchmark.report REPORT.json [--into MODEL_CARD.md ...]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defectnet.errors import ConfigError
from defectnet.files import replacing

_COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "candidates": (
        ("AP micro", "identity", "ap_micro"),
        ("AP macro", "identity", "ap_macro"),
        ("recall@k", "identity", "recall_at_k"),
        ("F1", "identity", "f1"),
        ("MAE at.%", "concentration", "mae"),
        ("RMSE at.%", "concentration", "rmse"),
        ("R2", "concentration", "r2"),
        ("coverage", "interval", "coverage"),
    ),
    "blind": (
        ("AP micro", "identity", "ap_micro"),
        ("AP macro", "identity", "ap_macro"),
        ("recall@k", "identity", "recall_at_k"),
        ("F1", "identity", "f1"),
        ("coverage", "interval", "coverage"),
    ),
}


def to_markdown(report: dict[str, Any]) -> str:
    """Render what `defectnet.benchmark.pilot` wrote.

    Args:
        report: Its JSON.

    Returns:
        A table for each track and condition, then each answerer's parts by number of dopants and by concentration.
    """
    lines = [f"{report['split']} split, {report['rows']} pairs of {report['hosts']} crystals.", ""]
    for track, conditions in report["results"].items():
        for condition, answers in conditions.items():
            lines += [f"**{track}, {condition}**", "", *_overview(track, answers), ""]
    lines += ["By number of dopants and by concentration (candidates, clean):", ""]
    lines += _parts(report["results"].get("candidates", {}).get("clean", {}))
    return "\n".join(lines).rstrip() + "\n"


def _overview(track: str, answers: dict[str, Any]) -> list[str]:
    columns = _COLUMNS[track]
    lines = _head(["", *(title for title, _, _ in columns)])
    for name, values in answers.items():
        cells = [_number((values[group] or {}).get(key)) for _, group, key in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _parts(answers: dict[str, Any]) -> list[str]:
    lines = _head(["", "part", "pairs or dopants", "recall", "MAE at.%"])
    for name, values in answers.items():
        for count, part in values["by_dopants"].items():
            title = "1 dopant" if count == "1" else f"{count} dopants"
            cells = [title, str(part["rows"]), _number(part["recall_at_k"]), _number(part["mae"])]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for title, part in values["by_range"].items():
            cells = [title, str(part["dopants"]), _number(part["recall"]), _number(part["mae"])]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _head(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def into_block(document: str, name: str, content: str) -> str:
    """Replace what a document holds between ``<!-- name:start -->`` and ``<!-- name:end -->``.

    Args:
        document: Markdown text.
        name: Name of the block.
        content: Markdown that takes its place.

    Raises:
        ConfigError: The document has no such block, or more than one.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, _, rest = document.partition(start)
    _, _, after = rest.partition(end)
    if document.count(start) != 1 or document.count(end) != 1 or end not in rest:
        raise ConfigError(f"the document has not exactly one block {name!r}", fix=f"Put {start} above {end}, once")
    return f"{before}{start}\n{content.strip()}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a saved report as tables, or put them into the block ``results`` of documents."""
    parser = argparse.ArgumentParser(prog="python -m defectnet.benchmark.report", description=__doc__)
    parser.add_argument("report", type=Path, help="JSON that defectnet.benchmark.pilot wrote")
    parser.add_argument("--into", type=Path, nargs="+", default=[], help="Markdown files with a block 'results'")
    chosen = parser.parse_args(arguments)
    tables = to_markdown(json.loads(chosen.report.read_text(encoding="utf-8")))
    if not chosen.into:
        print(tables)
    changed = {path: into_block(path.read_text(encoding="utf-8"), "results", tables) for path in chosen.into}
    for path, text in changed.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
