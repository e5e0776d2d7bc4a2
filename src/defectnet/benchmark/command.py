"""``defectnet benchmark``: from words to results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from defectnet.benchmark.entrants import entrant_named
from defectnet.benchmark.protocol import KNOWN_CRYSTAL
from defectnet.benchmark.results import file_name, write_result
from defectnet.benchmark.runner import Benchmark
from defectnet.data.candidates import CONDITIONS, TRACKS, Track
from defectnet.data.splits import Split
from defectnet.errors import ConfigError
from defectnet.rng import checked_seed


def measure(
    models: Sequence[str],
    *,
    track: str = "all",
    condition: str = "all",
    split: str = "test",
    data: str,
    extra: Sequence[str] = (),
    bootstrap: int = 1000,
    seed: int = 0,
    out: str | None = None,
) -> list[dict[str, Any]]:
    """Measure models one after the other; each result is written as soon as it is there.

    Args:
        models: See `defectnet.benchmark.entrants.entrant_named`.
        track: ``candidates``, ``blind``, ``all`` for both, or ``known-crystal``.
        condition: ``clean``, ``lab`` or ``all``.
        split: ``test`` or ``val``.
        data: Folder of shards, or a data set on the Hub.
        extra: Further data sets whose training rows baselines learn from.
        bootstrap: Resamples.
        seed: Of the resamples.
        out: Folder for one file of each model; None writes nothing.

    Returns:
        Results in the order of the models.

    Raises:
        DefectNetError: A word is unknown, a model cannot be made or breaks the protocol, or the data cannot be used.
    """
    checked_seed(seed)
    if bootstrap < 0:
        raise ConfigError(f"bootstrap is {bootstrap}", fix="Use a number of resamples, or 0 for no intervals")
    tracks: Sequence[Track] = (KNOWN_CRYSTAL,) if track == KNOWN_CRYSTAL else _choice("track", track, TRACKS)
    conditions = _choice("condition", condition, CONDITIONS)
    entrants = [entrant_named(text) for text in models]  # all of them, before any is measured for minutes
    files = [file_name(entrant.name) for entrant in entrants]
    twice = next((entrant.name for entrant, file in zip(entrants, files, strict=True) if files.count(file) > 1), None)
    if twice is not None:
        raise ConfigError(f"two models are called {twice!r}", fix="Measure them in two commands, into two folders")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    bench = Benchmark(data, cast(Split, split), extra=extra, bootstrap=bootstrap, seed=seed)
    results = []
    for number, entrant in enumerate(entrants, start=1):
        print(f"{number} of {len(entrants)}: {entrant.name}", file=sys.stderr, flush=True)
        for skipped in set(entrant.cannot) & set(tracks):
            print(f"  not asked {skipped}: {entrant.cannot[skipped]}", file=sys.stderr, flush=True)
        results.append(bench.measure(entrant, tracks, conditions))
        if out is not None:
            write_result(results[-1], out)
    return results


def _choice(name: str, value: str, known: Sequence[str]) -> Any:
    if value != "all" and value not in known:
        raise ConfigError(f"{name} is {value!r}", fix=f"Use {', '.join(known)} or all")
    return cast("tuple[Track, ...]", tuple(known) if value == "all" else (value,))
