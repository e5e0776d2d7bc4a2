"""The benchmark: every entrant is asked about the same rows, in the same way.

    bench = Benchmark("data/defectnet-sim-v1")
    result = bench.measure(entrant_named("lightgbm"))
    result["results"]["blind"]["clean"]["identity"]["ap_micro"]

A result is plain JSON; `results.compare` puts two of them side by side, `benchmarks/report.py` all of them.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from defectnet.batch import Estimate, Item, Targets
from defectnet.benchmark.bootstrap import Resamples, replicate
from defectnet.benchmark.curves import curves
from defectnet.benchmark.entrants import TOLERANCE, Entrant, ask, call, check_alone
from defectnet.benchmark.metrics import summary
from defectnet.benchmark.protocol import ALL_TRACKS, KNOWN_CRYSTAL, FitData, Rows, TrainableEstimator
from defectnet.benchmark.results import KEPT, MAIN, SCHEMA_VERSION, interval
from defectnet.benchmark.scores import Facts, Scores, read_facts
from defectnet.config import MODEL_GRID, Grid
from defectnet.data.candidates import CONDITIONS, TRACKS, Track
from defectnet.data.module import LoaderSettings, SpectraDataModule
from defectnet.data.shards import manifest_file
from defectnet.data.splits import Split
from defectnet.errors import ConfigError
from defectnet.files import file_sha256
from defectnet.measure.settings import measurement_named
from defectnet.models.calibration import best_threshold

_BATCH_ROWS: Final = 256
LIKELY: Final = 0.5
"""Threshold of the track `KNOWN_CRYSTAL`, whose data have no rows to choose one on."""

_PACKAGES: Final = ("defectnet", "torch", "numpy", "scikit-learn", "lightgbm")


class SharedFitData(FitData):
    """`FitData` that measures its rows once for all entrants.

    Each gets its own copy: one that changes its rows changes nobody else's.
    """

    def __init__(self, module: SpectraDataModule) -> None:
        super().__init__(module)
        self._kept: dict[tuple[str, ...], Rows] = {}

    def _rows(self, split: str, track: Track, condition: str) -> Rows:
        key = (split, track, condition)
        if key not in self._kept:
            self._kept[key] = super()._rows(split, track, condition)
        rows = self._kept[key]
        return Rows(rows.batch.map(torch.clone), rows.true_concentration.clone())


class Benchmark:
    """The rows that every entrant is asked about, measured once for each track and condition.

    Args:
        data: Folder of shards, or a data set on the Hugging Face Hub (see `defectnet.data.source`).
        split: ``test``, or ``val`` while choosing between one's own models.
        extra: Further data sets whose training rows an entrant may learn from.
        bootstrap: Resamples of the intervals; 0 for none.
        seed: Of the resamples, and of what is drawn for the figures.

    Raises:
        ShardError: The data cannot be used.
        ConfigError: The split or the number of resamples cannot be used.
    """

    def __init__(
        self,
        data: str | Path,
        split: Split = "test",
        *,
        extra: Sequence[str] = (),
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> None:
        if split not in ("val", "test"):
            raise ConfigError(f"split is {split!r}", fix="Use test, or val while choosing between models")
        self.split, self._seed = split, seed
        self._modules: dict[Grid, SpectraDataModule] = {}
        self._fit_data: dict[Grid, SharedFitData] = {}
        self._items: dict[tuple[Grid, str, Track, str], list[Item]] = {}
        self._data, self._extra = str(data), extra
        module = self._module(MODEL_GRID)
        self.folder = module.folder
        self.facts: Facts = read_facts(module.index(split))
        self.resamples = Resamples.draw(self.facts.system, bootstrap, seed)

    def measure(
        self, entrant: Entrant, tracks: Sequence[Track] = TRACKS, conditions: Sequence[str] = CONDITIONS
    ) -> dict[str, Any]:
        """Fit an entrant if it learns, ask it, and score what it says.

        Args:
            entrant: See `defectnet.benchmark.entrants.entrant_named`.
            tracks: Questions.
            conditions: Measurements.

        Returns:
            A result as `defectnet.benchmark.results` writes it.

        Raises:
            ConfigError: A track or condition is unknown, or the entrant breaks the protocol.
        """
        _check_asked(entrant, tracks, conditions)
        begin = time.perf_counter()
        if isinstance(entrant.estimator, TrainableEstimator):
            module = self._module(entrant.estimator.grid)
            call(entrant, "fit", self._fit_data.setdefault(module.grid, SharedFitData(module)))
        fitted = time.perf_counter()
        found: dict[str, Any] = {}
        for track in tracks:
            if track not in entrant.cannot:
                found[track] = {name: self._measure(entrant, track, name) for name in conditions}
        settings = plain(getattr(entrant.estimator, "settings", None) or {})
        return {
            "schema": SCHEMA_VERSION,
            "entrant": entrant.name,
            "kind": entrant.kind,
            "notes": plain({**entrant.notes, **({"settings": settings} if settings else {})}),
            "data": self.describe(),
            "versions": versions(),
            "split": self.split,
            "bootstrap": {"resamples": len(self.resamples.counts), "seed": self.resamples.seed},
            "skipped": {track: why for track, why in entrant.cannot.items() if track in tracks},
            "results": found,
            "seconds": {"fit": round(fitted - begin, 2), "answer": round(time.perf_counter() - fitted, 2)},
        }

    def describe(self) -> dict[str, Any]:
        """Return what the rows are: name and hash of the data set, counts, and a hash of the rows' names."""
        manifest = manifest_file(self.folder)
        names = "\n".join(sorted(self.facts.row_id.tolist()))
        return {
            "name": self.folder.resolve().name,
            "sha256": file_sha256(manifest) if manifest.is_file() else None,
            "rows": len(self.facts.row_id),
            "hosts": len(np.unique(self.facts.host_id)),
            "systems": len(self.resamples.systems),
            "rows_sha256": hashlib.sha256(names.encode()).hexdigest(),
        }

    def scores(self, entrant: Entrant, track: Track, condition: str, split: Split | None = None) -> Scores:
        """Ask a fitted entrant about all rows and return its answers beside the truth.

        Args:
            entrant: Who is asked.
            track: Question.
            condition: Measurement.
            split: Rows; those of the benchmark by default.
        """
        split = split or self.split
        items = self._rows(entrant.estimator.grid, split, track, condition)
        parts = []
        for number, item in enumerate(items):
            parts.append(ask(entrant, item.batch))
            if number == 0:
                check_alone(entrant, item.batch, parts[0])
        columns = {name: [getattr(part, name) for part in parts] for name in TOLERANCE}
        kinds = {name: {field is None for field in column} for name, column in columns.items()}
        if any(len(kind) > 1 for kind in kinds.values()):
            raise ConfigError(
                f"{entrant.name}: concentration_if_present or interval is missing in some batches", fix="Give it always"
            )
        joined = {name: None if column[0] is None else torch.cat(column) for name, column in columns.items()}
        facts = self.facts if split == self.split else read_facts(self._module(MODEL_GRID).index(split))
        order = torch.cat([item.rows for item in items]).numpy()
        return Scores.of(
            Estimate(**joined),  # type: ignore[arg-type]
            Targets(torch.cat([item.targets.true_concentration for item in items])),
            torch.cat([item.batch.candidates for item in items]),
            facts.rows(order),
        )

    def _measure(self, entrant: Entrant, track: Track, condition: str) -> dict[str, Any]:
        threshold = LIKELY
        if track == KNOWN_CRYSTAL:
            scores = self.scores(entrant, track, condition)
        else:
            chosen = self.scores(entrant, track, condition, "val")
            threshold = best_threshold(
                torch.from_numpy(chosen.probability[chosen.asked]), torch.from_numpy(chosen.present[chosen.asked])
            )
            scores = self.scores(entrant, track, condition) if self.split != "val" else chosen
        values = summary(scores, threshold, entrant.estimator.coverage)
        claimed = scores.asked & (scores.probability >= threshold)
        resampled = replicate(scores, claimed, self.resamples) if len(self.resamples.counts) else {}
        values["intervals"] = {name: interval(resampled[name]) for name in MAIN if name in resampled}
        values["resampled"] = {
            name: [None if np.isnan(x) else float(f"{x:.5g}") for x in resampled[name]]
            for name in KEPT
            if name in resampled
        }
        values["curves"] = curves(
            scores, self._spectra(entrant.estimator.grid, track, condition), entrant.estimator.grid, self._seed
        )
        return values

    def _spectra(self, grid: Grid, track: Track, condition: str) -> Callable[[int], tuple[Any, Any]]:
        """Return a function from a row of the scores to its host and doped spectrum."""
        items = self._rows(grid, self.split, track, condition)
        place = [(item, i) for item in items for i in range(len(item.rows))]

        def spectra(row: int) -> tuple[Any, Any]:
            item, i = place[row]
            return item.batch.host[i].numpy(), item.batch.doped[i].numpy()

        return spectra

    def _module(self, grid: Grid) -> SpectraDataModule:
        if grid not in self._modules:
            loader = LoaderSettings(cache_rows=0)
            self._modules[grid] = SpectraDataModule(
                self._data, batch_size=_BATCH_ROWS, grid=grid, loader=loader, extra=dict.fromkeys(self._extra, 1)
            )
        return self._modules[grid]

    def _rows(self, grid: Grid, split: Split, track: Track, condition: str) -> list[Item]:
        key = (grid, split, track, condition)
        if key not in self._items:
            known = track == KNOWN_CRYSTAL
            items = list(self._module(grid).evaluation(split, "candidates" if known else track, condition))
            self._items[key] = [_about_likeliest(item) for item in items] if known else items
        return self._items[key]


def _about_likeliest(item: Item) -> Item:
    """Ask about the likeliest dopants of each host, in place of the elements that were drawn.

    Raises:
        ConfigError: A row holds another dopant: its data set was not made for this track.
    """
    from defectnet.benchmark.known_crystal import likeliest_candidates  # here, because it brings the potentials

    mask = likeliest_candidates(item.batch.composition)
    if bool((item.targets.present & ~mask).any()):
        raise ConfigError(
            "a row holds a dopant that is none of its host's likeliest",
            fix="Ask it of data made with the setting `plausible`, such as data/defectnet-sim-v2/defectnet-nep",
        )
    return item._replace(batch=item.batch._replace(candidates=mask))


def _check_asked(entrant: Entrant, tracks: Sequence[Track], conditions: Sequence[str]) -> None:
    for track in tracks:
        if track not in ALL_TRACKS:
            raise ConfigError(f"track is {track!r}", fix=f"Use {', '.join(ALL_TRACKS)} or all")
    for condition in conditions:
        measurement_named(condition)
    if all(track in entrant.cannot for track in tracks):
        why = "; ".join(entrant.cannot[track] for track in tracks)
        raise ConfigError(f"{entrant.name} cannot be asked {' or '.join(tracks)}", why=why, fix="Choose another track")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Return a value as JSON takes it: NumPy numbers as numbers, everything unknown as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
