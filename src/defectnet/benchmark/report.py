"""Benchmark results as Markdown tables, for cards and the README."""

from __future__ import annotations

from typing import Any

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
