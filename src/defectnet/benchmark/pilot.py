"""The pilot's report: ``python -m defectnet.benchmark.pilot --data DIR --checkpoints NAME ... --out FILE``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from defectnet.benchmark.baselines import CompositionOnly, TrainingMean
from defectnet.benchmark.metrics import Answerer, CalibratedModel, evaluate
from defectnet.benchmark.report import to_markdown
from defectnet.config import Grid
from defectnet.data.candidates import TRACKS, TrackSettings
from defectnet.data.dataset import targets_of
from defectnet.data.module import LoaderSettings, SpectraDataModule
from defectnet.data.shards import read_shard
from defectnet.data.splits import Split
from defectnet.errors import ConfigError
from defectnet.files import replacing
from defectnet.hub import from_pretrained

CONDITIONS = ("clean", "lab")


def run(data: str | Path, checkpoints: Sequence[str], split: Split = "test") -> dict[str, Any]:
    """Evaluate checkpoints and floors on both tracks under both conditions.

    Args:
        data: Folder of shards.
        checkpoints: What `defectnet.from_pretrained` takes.
        split: Crystals to evaluate on.

    Returns:
        JSON-able: ``results[track][condition][name]`` as `defectnet.benchmark.metrics.summary`.
    """
    models = {_label(source): from_pretrained(source) for source in checkpoints}
    grids = {model.spec.grid for model in models.values()} or {SpectraDataModule(str(data)).grid}
    if len(grids) > 1:
        raise ConfigError("checkpoints are on different grids", fix="Evaluate them one at a time")
    module = _module(data, grids.pop())
    answerers: dict[str, Answerer] = {"TrainingMean": TrainingMean().fit(module)}
    answerers["CompositionOnly"] = CompositionOnly().fit(module)
    answerers |= {name: CalibratedModel(model) for name, model in models.items()}
    results: dict[str, Any] = {}
    for track in TRACKS:
        for condition in CONDITIONS:
            items = list(module.evaluation(split, track, condition))
            # The published network takes the candidates as its query: it cannot be asked without.
            able = {name: a for name, a in answerers.items() if track == "candidates" or a.loss != "paper"}
            scores = {name: evaluate(answerer, items, track) for name, answerer in able.items()}
            results.setdefault(track, {})[condition] = scores
    return {"split": split, **_counts(module, split), "results": results}


def _module(data: str | Path, grid: Grid) -> SpectraDataModule:
    return SpectraDataModule(str(data), batch_size=256, grid=grid, tracks=TrackSettings(), loader=LoaderSettings())


def _label(source: str) -> str:
    return Path(source).name


def _counts(module: SpectraDataModule, split: Split) -> dict[str, int]:
    index = module.index(split)
    hosts, dopants = set(), 0
    for number, path in enumerate(index.paths):
        wanted = set(index.row[index.shard == number].tolist())
        for row, sample in enumerate(read_shard(path)):
            if row in wanted:
                hosts.add(sample.host_id)
                dopants += int(targets_of([sample]).present.sum())
    return {"rows": len(index), "hosts": len(hosts), "dopants": dopants}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line and write its JSON; the tables go to the screen."""
    parser = argparse.ArgumentParser(prog="python -m defectnet.benchmark.pilot", description=__doc__)
    parser.add_argument("--data", required=True, help="folder of shards")
    parser.add_argument("--checkpoints", nargs="*", default=[], help="names, or paths that start with ./ or /")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    chosen = parser.parse_args(arguments)
    report = run(chosen.data, chosen.checkpoints, chosen.split)
    if chosen.out:
        with replacing(chosen.out) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(to_markdown(report))


if __name__ == "__main__":
    main()
