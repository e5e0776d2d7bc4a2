"""What the project asks of its own model, and what the results say: one row for each target.

python benchmarks/targets.py benchmarks/results --speed benchmarks/speed.json --into benchmarks/README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from defectnet.benchmark.results import Ratio, by_name, compare, part, read_results
from defectnet.benchmark.tables import number
from defectnet.data.candidates import CONDITIONS
from defectnet.errors import ConfigError
from defectnet.files import into_block, replacing
from report_tables import head, line

FLAGSHIPS: Final = ("defectnet-base", "defectnet-small")
"""Models that the targets are for, the first that was measured."""

PUBLISHED: Final = "paper-defectnet"
"""The reimplementation of the published network."""

ATTENTION: Final = ("DefectNet", "PaperDefectNet")
"""Architectures with attention; the blind target compares with the best of all others."""

Results = Mapping[str, Mapping[str, Any]]


class Target(NamedTuple):
    """One target.

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


def flagship(results: Results) -> str | None:
    """Return the first of `FLAGSHIPS` that was measured."""
    return next((name for name in FLAGSHIPS if name in results), None)


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


def targets(results: Results, model: str, speed: Mapping[str, Any] | None = None) -> list[Target]:
    """Return all targets for a model.

    Args:
        results: Results by name.
        model: One of them.
        speed: What ``benchmarks/predict.py`` printed; None leaves its targets unmeasured.

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


def _error_over_published(results: Results, model: str) -> Iterator[Target]:
    ratios = _ratios(results, model, PUBLISHED, "candidates", "concentration.mae")
    for condition in CONDITIONS:
        ratio = ratios.get(condition)
        what = f"candidates, {condition}: MAE over that of {PUBLISHED}"
        yield _target(what, ratio.value if ratio else None, "at most", 0.5, ratio)


def _blind_gain(results: Results, model: str) -> Iterator[Target]:
    for condition in CONDITIONS:
        other = best_without_attention(results, "blind", condition)
        ratio = None
        if other is not None:
            ratio = _ratios(results, model, other, "blind", "identity.ap_micro").get(condition)
        what = f"blind, {condition}: AP micro over that of the best without attention ({other or 'none measured'})"
        yield _target(what, ratio.value if ratio else None, "at least", 1.3, ratio)


def _ratios(results: Results, model: str, other: str, track: str, name: str) -> dict[str, Ratio]:
    if model not in results or other not in results:
        return {}
    found = compare(results[model], results[other]).get(track, {})
    return {condition: values[name] for condition, values in found.items() if name in values}


def _at_least(own: Mapping[str, Any], track: str, key: tuple[str, str], what: str, least: float) -> Iterator[Target]:
    for condition in CONDITIONS:
        found = part(own, track, condition)
        ends = None if found is None else found["intervals"].get(".".join(key))
        ratio = Ratio(0.0, *ends) if ends else None
        value = None if found is None else found[key[0]][key[1]]
        yield _target(f"{track}, {condition}: {what}", value, "at least", least, ratio)


def _lab_over_clean(own: Mapping[str, Any]) -> Target:
    parts = [part(own, "candidates", condition) for condition in ("lab", "clean")]
    errors = [found["concentration"]["mae"] if found else None for found in parts]
    value = errors[0] / errors[1] if errors[0] is not None and errors[1] else None
    return _target("candidates: MAE under lab over clean", value, "at most", 1.5)


def _speed(model: str, speed: Mapping[str, Any] | None) -> Iterator[Target]:
    found = (speed or {}).get("checkpoints", {}).get(model)
    wished = 5000.0 if model.endswith("small") else 500.0
    for bits in (64, 32):
        rows = [row for row in found["batches"] if row["threads"] == 2 and row["precision"] == bits] if found else []
        pairs = max((row["pairs_per_second"] for row in rows), default=None)
        yield _target(f"pairs a second in batches, two threads, {bits} bits", pairs, "at least", wished)
    alone = min((row["milliseconds"] for row in found["one_pair"]), default=None) if found else None
    yield _target("one pair, loaded model, ms", alone, "at most", 30.0)


def _target(what: str, value: float | None, relation: str, limit: float, band: Ratio | None = None) -> Target:
    asked = f"{relation} {limit:g}"
    if value is None:
        return Target(what, asked, "-", None)
    ends = f" ({number(band.low)} to {number(band.high)})" if band and band.low is not None else ""
    reached = value <= limit if relation == "at most" else value >= limit
    return Target(what, asked, number(value) + ends, bool(reached))


def read_speed(path: str | Path) -> dict[str, Any]:
    """Read what ``benchmarks/predict.py`` printed.

    Raises:
        ConfigError: The file cannot be read, or is something else.
    """
    fix = "Give the output of benchmarks/predict.py"
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"speed {path} cannot be read", why=str(error)[:160], fix=fix) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("checkpoints"), dict):
        raise ConfigError(f"{path} holds no speeds", fix=fix)
    return tree


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or put it into the block ``targets`` of documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folder of result files, or single files")
    parser.add_argument("--speed", type=Path, help="JSON that benchmarks/predict.py printed")
    parser.add_argument("--into", type=Path, nargs="+", default=[], help="Markdown files with a block 'targets'")
    chosen = parser.parse_args(arguments)
    table = "\n".join(target_table(by_name(read_results(chosen.results)), chosen.speed and read_speed(chosen.speed)))
    changed = {path: into_block(path.read_text(encoding="utf-8"), "targets", table) for path in chosen.into}
    for path, text in changed.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if not changed:
        print(table)


def target_table(results: Results, speed: Mapping[str, Any] | None = None) -> list[str]:
    """Return the targets for the first of `FLAGSHIPS` that was measured, as lines of Markdown.

    Raises:
        ConfigError: None of them was.
    """
    model = flagship(results)
    if model is None:
        raise ConfigError(f"there are no results of {' or '.join(FLAGSHIPS)}", fix="Run `defectnet benchmark` first")
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [line([t.what, t.asked, t.measured, words[t.reached]]) for t in targets(results, model, speed)]
    return [f"For {model}:", "", *head(["", "asked", "measured", "reached"]), *rows]


if __name__ == "__main__":
    main()
