"""What the project asks of its own model, and what the results say: one row for each bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from defectnet.benchmark.results import Ratio, compare
from defectnet.errors import ConfigError

FLAGSHIPS: Final = ("defectnet-base", "defectnet-small")
"""Models that the bars are about, the first that was measured."""

PUBLISHED: Final = "paper-defectnet"
"""The reimplementation of the published network."""

ATTENTION: Final = ("DefectNet", "PaperDefectNet")
"""Architectures with attention; the blind bar compares with the best of all others."""

CONDITIONS: Final = ("clean", "lab")

Results = Mapping[str, Mapping[str, Any]]


class Bar(NamedTuple):
    """One bar.

    Attributes:
        what: What is measured.
        asked: What it must reach, as text.
        measured: What was measured, as text; a dash where nothing was.
        reached: Whether it was reached; None where nothing was measured.
    """

    what: str
    asked: str
    measured: str
    reached: bool | None


def by_name(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return results by the entrant's name."""
    return {result["entrant"]: result for result in results}


def flagship(results: Results) -> str | None:
    """Return the first of `FLAGSHIPS` that was measured."""
    return next((name for name in FLAGSHIPS if name in results), None)


def part(result: Mapping[str, Any], track: str, condition: str) -> Mapping[str, Any] | None:
    """Return what was measured on a track under a condition; None if it was not."""
    found: Mapping[str, Any] | None = result["results"].get(track, {}).get(condition)
    return found


def best_without_attention(results: Results, track: str, condition: str) -> str | None:
    """Return the entrant without attention that has the highest micro average precision."""
    scores = {
        name: found["identity"]["ap_micro"]
        for name, result in results.items()
        if not {result["notes"].get("architecture"), *result["notes"].get("members", ())} & set(ATTENTION)
        and name not in FLAGSHIPS
        and (found := part(result, track, condition)) is not None
        and found["identity"]["ap_micro"] is not None
    }
    return max(scores, key=lambda name: scores[name]) if scores else None


def bars(results: Results, model: str, speed: Mapping[str, Any] | None = None) -> list[Bar]:
    """Return all bars for a model.

    Args:
        results: Results by name.
        model: One of them.
        speed: What ``benchmarks/predict.py`` printed; None leaves its bars unmeasured.

    Raises:
        ConfigError: The model was not measured.
    """
    if model not in results:
        raise ConfigError(f"there is no result of {model!r}", fix=f"Measured are {', '.join(results)}")
    own = results[model]
    return [
        *_error_over_published(results, model),
        *_at_least(own, "candidates", ("one_dopant", "r2"), "R2, one dopant", 0.90),
        *_at_least(own, "candidates", ("many_dopants", "r2"), "R2, two to six dopants", 0.70),
        *_blind_gain(results, model),
        *_at_least(own, "blind", ("one_dopant_plenty", "top_1"), "recall, one dopant of 2 at.% or more, top 1", 0.70),
        *_at_least(own, "blind", ("one_dopant_plenty", "top_5"), "recall, one dopant of 2 at.% or more, top 5", 0.90),
        _lab_over_clean(own),
        *_speed(model, speed),
    ]


def _error_over_published(results: Results, model: str) -> Iterator[Bar]:
    ratios = _ratios(results, model, PUBLISHED, "candidates", "concentration.mae")
    for condition in CONDITIONS:
        ratio = ratios.get(condition)
        what = f"candidates, {condition}: MAE over that of {PUBLISHED}"
        yield _bar(what, ratio.value if ratio else None, "at most", 0.5, ratio)


def _blind_gain(results: Results, model: str) -> Iterator[Bar]:
    for condition in CONDITIONS:
        other = best_without_attention(results, "blind", condition)
        ratio = None
        if other is not None:
            ratio = _ratios(results, model, other, "blind", "identity.ap_micro").get(condition)
        what = f"blind, {condition}: AP micro over that of the best without attention ({other or 'none measured'})"
        yield _bar(what, ratio.value if ratio else None, "at least", 1.3, ratio)


def _ratios(results: Results, model: str, other: str, track: str, name: str) -> dict[str, Ratio]:
    if model not in results or other not in results:
        return {}
    found = compare(results[model], results[other]).get(track, {})
    return {condition: values[name] for condition, values in found.items() if name in values}


def _at_least(own: Mapping[str, Any], track: str, key: tuple[str, str], what: str, least: float) -> Iterator[Bar]:
    for condition in CONDITIONS:
        found = part(own, track, condition)
        ends = None if found is None else found["intervals"].get(".".join(key))
        ratio = Ratio(0.0, *ends) if ends else None
        value = None if found is None else found[key[0]][key[1]]
        yield _bar(f"{track}, {condition}: {what}", value, "at least", least, ratio)


def _lab_over_clean(own: Mapping[str, Any]) -> Bar:
    parts = [part(own, "candidates", condition) for condition in ("lab", "clean")]
    errors = [found["concentration"]["mae"] if found else None for found in parts]
    value = errors[0] / errors[1] if errors[0] is not None and errors[1] else None
    return _bar("candidates: MAE under lab over clean", value, "at most", 1.5)


def _speed(model: str, speed: Mapping[str, Any] | None) -> Iterator[Bar]:
    found = (speed or {}).get("checkpoints", {}).get(model)
    wished = 5000.0 if model.endswith("small") else 500.0
    for bits in (64, 32):
        rows = [row for row in found["batches"] if row["threads"] == 2 and row["precision"] == bits] if found else []
        pairs = max((row["pairs_per_second"] for row in rows), default=None)
        yield _bar(f"pairs a second in batches, two threads, {bits} bits", pairs, "at least", wished)
    alone = min((row["milliseconds"] for row in found["one_pair"]), default=None) if found else None
    yield _bar("one pair, loaded model, ms", alone, "at most", 30.0)


def _bar(what: str, value: float | None, relation: str, limit: float, band: Ratio | None = None) -> Bar:
    asked = f"{relation} {limit:g}"
    if value is None:
        return Bar(what, asked, "-", None)
    ends = f" ({number(band.low)} to {number(band.high)})" if band and band.low is not None else ""
    reached = value <= limit if relation == "at most" else value >= limit
    return Bar(what, asked, number(value) + ends, bool(reached))


def number(value: float | None) -> str:
    """Write a number with as many digits as a table needs; a dash for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def read_speed(path: str | Path) -> dict[str, Any]:
    """Read what ``benchmarks/predict.py`` printed.

    Raises:
        ConfigError: The file cannot be read, or is something else.
    """
    import json

    fix = "Give the output of benchmarks/predict.py"
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"speed {path} cannot be read", why=str(error)[:160], fix=fix) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("checkpoints"), dict):
        raise ConfigError(f"{path} holds no speeds", fix=fix)
    return tree
