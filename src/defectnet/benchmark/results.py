"""Result files of the benchmark: one JSON file for each entrant, read strictly.

`results[track][condition]` holds the groups of `GROUPS`, tables, intervals, resampled
values for paired comparisons, and points of curves.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ConfigError
from defectnet.files import replacing

SCHEMA_VERSION: Final = 1

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "identity": ("ap_micro", "ap_macro", "prevalence", "recall_at_k", "f1", "exact"),
    "concentration": ("mae", "rmse", "r2", "mae_present"),
    "one_dopant": ("rows", "top_1", "top_5", "mae", "r2"),
    "one_dopant_plenty": ("rows", "top_1", "top_5"),
    "many_dopants": ("rows", "recall_at_k", "mae", "r2"),
    "calibration": ("error", "brier", "sharpness"),
}
"""Groups of single numbers that every result has, and the numbers in them."""

MAIN: Final = (
    "concentration.mae",
    "concentration.r2",
    "identity.ap_micro",
    "identity.recall_at_k",
    "identity.f1",
    "one_dopant.r2",
    "many_dopants.r2",
)
"""Numbers that get an interval."""

KEPT: Final = ("concentration.mae", "identity.ap_micro")
"""Numbers whose resampled values are kept, so that entrants can be compared later."""

LEVEL: Final = 0.95
"""Coverage of the intervals."""

_MOST_UNDEFINED: Final = 0.05

_KEYS: Final[dict[str, type | tuple[type, ...]]] = {
    "schema": int,
    "entrant": str,
    "kind": str,
    "notes": dict,
    "data": dict,
    "versions": dict,
    "split": str,
    "bootstrap": dict,
    "skipped": dict,
    "results": dict,
    "seconds": dict,
}
_DATA_KEYS: Final = ("name", "sha256", "rows", "hosts", "systems", "rows_sha256")
_PARTS: Final[dict[str, type | tuple[type, ...]]] = {
    "rows": int,
    "dopants": int,
    "threshold": float,
    **dict.fromkeys(GROUPS, dict),
    "interval": (dict, type(None)),
    **dict.fromkeys(("by_dopants", "by_placement", "by_range", "detection", "elements"), dict),
    **dict.fromkeys(("intervals", "resampled", "curves"), dict),
}
_FIX: Final = "Give files that `defectnet benchmark --out` wrote, and run it again for a damaged one"


def file_name(entrant: str) -> str:
    """Return the name of an entrant's result file."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '--', entrant).lstrip('.-') or 'entrant'}.json"


def write_result(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write a result to ``<folder>/<entrant>.json``; the folder is made if it is not there."""
    path = Path(folder) / file_name(result["entrant"])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False)
    # A number a line would make a file of 30,000 lines: lists of numbers stay on one.
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda match: " ".join(match[0].split()), text)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        ConfigError: The file is missing, damaged, of another schema, or no result of the benchmark.
    """
    path = Path(path)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError(f"result {path} cannot be read", why=str(error.strerror), fix=_FIX) from error
    except (ValueError, RecursionError) as error:  # JSON, text encoding, and NaN alike
        raise ConfigError(f"result {path} is not valid JSON", why=str(error)[:160], fix=_FIX) from error
    if not isinstance(tree, dict) or "schema" not in tree or "entrant" not in tree:
        raise ConfigError(f"{path} is no result of the benchmark", fix=_FIX)
    if tree["schema"] != SCHEMA_VERSION:
        raise ConfigError(
            f"result {path} has schema {tree['schema']!r:.40}, this defectnet reads {SCHEMA_VERSION}",
            fix="Run `defectnet benchmark` again, or upgrade defectnet",
        )
    fault = _fault(tree)
    if fault:
        raise ConfigError(f"result {path}: {fault}", fix=_FIX)
    return tree


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _fault(tree: dict[str, Any]) -> str:
    """Return what is wrong with a result; empty if nothing is."""
    for key, kind in _KEYS.items():
        if not isinstance(tree.get(key), kind):
            return f"{key} is missing or of the wrong type"
    unknown = sorted(set(tree) - set(_KEYS))
    if unknown:
        return f"{unknown[0]} is not known"
    for key in _DATA_KEYS:
        if key not in tree["data"]:
            return f"data.{key} is missing"
    for track, conditions in tree["results"].items():
        for condition, found in conditions.items() if isinstance(conditions, dict) else ((None, None),):
            fault = _part_fault(found)
            if fault:
                return f"results.{track}.{condition}: {fault}"
    return "" if tree["results"] else "results is empty"


def _part_fault(found: Any) -> str:
    if not isinstance(found, dict):
        return "is no object"
    for key, kind in _PARTS.items():
        if key not in found or not isinstance(found[key], kind):
            return f"{key} is missing or of the wrong type"
    for group, names in GROUPS.items():
        if set(found[group]) != set(names):
            return f"{group} holds other numbers than {', '.join(names)}"
        for name in names:
            if not _number_or_none(found[group][name]):
                return f"{group}.{name} is {found[group][name]!r:.40}"
    for name, values in found["resampled"].items():
        if not isinstance(values, list) or not all(_number_or_none(value) for value in values):
            return f"resampled.{name} holds something else than numbers"
    return ""


def _number_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def read_results(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Read results of the same rows; a folder stands for all of its JSON files, sorted by name.

    Raises:
        ConfigError: As `read_result`; there is none; or they are not of the same rows, or two of one name.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"folder {path} holds no results", fix="Run `defectnet benchmark --out` first")
        files += inside
    results = [read_result(path) for path in files]
    first = results[0]
    for path, result in zip(files, results, strict=True):
        for key in ("rows_sha256", "name"):
            if result["data"][key] != first["data"][key]:
                raise ConfigError(
                    f"{files[0]} and {path} are measured on different rows",
                    why=f"{first['data']['rows']} of {first['data']['name']}, {result['data']['rows']} of "
                    f"{result['data']['name']}",
                    fix="Run `defectnet benchmark` again for the older one",
                )
    names = [result["entrant"] for result in results]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"there are two results of {twice[0]!r}", fix="Give each entrant once")
    return results


def by_name(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return results by the entrant's name."""
    return {result["entrant"]: result for result in results}


def part(result: Mapping[str, Any], track: str, condition: str) -> Mapping[str, Any] | None:
    """Return what was measured on a track under a condition; None if it was not."""
    found: Mapping[str, Any] | None = result["results"].get(track, {}).get(condition)
    return found


def interval(values: NDArray[np.float64]) -> list[float] | None:
    """Return the percentile interval of resampled values; None where too many resamples do not define the value."""
    good = values[np.isfinite(values)]
    if not len(good) or len(good) < (1.0 - _MOST_UNDEFINED) * len(values):
        return None
    tail = (1.0 - LEVEL) / 2.0
    return [float(x) for x in np.quantile(good, [tail, 1.0 - tail])]


class Ratio(NamedTuple):
    """A number of one entrant over that of another.

    Attributes:
        value: The ratio.
        low: Lower end of its interval; None without resamples.
        high: Upper end.
    """

    value: float
    low: float | None
    high: float | None


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Ratio]]]:
    """Divide the main numbers of one entrant by those of another, with intervals over the same resamples.

    Args:
        one: A result.
        other: A result on the same rows.

    Returns:
        ``[track][condition][name]`` for what both were asked, name being one of `KEPT`.

    Raises:
        ConfigError: They are of different rows, or were resampled differently.
    """
    for key in ("data", "bootstrap", "split"):
        if one[key] != other[key]:
            raise ConfigError(
                f"{one['entrant']} and {other['entrant']} differ in {key}",
                fix="Run `defectnet benchmark` for both again",
            )
    found: dict[str, dict[str, dict[str, Ratio]]] = {}
    for track, conditions in one["results"].items():
        for condition, own in conditions.items():
            against = part(other, track, condition)
            if against is not None:
                ratios = {name: ratio for name in KEPT if (ratio := _ratio(own, against, name)) is not None}
                found.setdefault(track, {})[condition] = ratios
    return found


def _ratio(own: Mapping[str, Any], against: Mapping[str, Any], name: str) -> Ratio | None:
    group, key = name.split(".")
    above, below = own[group][key], against[group][key]
    if above is None or not below:
        return None
    values = [np.array(x["resampled"].get(name, []), dtype=np.float64) for x in (own, against)]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = interval(values[0] / values[1]) if len(values[0]) == len(values[1]) else None
    return Ratio(above / below, *(found or (None, None)))
