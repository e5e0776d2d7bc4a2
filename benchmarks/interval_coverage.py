"""How often intervals of the concentration hold the true one: ``python benchmarks/coverage.py --json``.

All dopants of the test split, complete lists and blind, clean and lab: by true concentration, by predicted
concentration, by the number of dopants of the sample, and by whether the element is called present.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet import from_pretrained
from defectnet.data.candidates import CONDITIONS
from defectnet.data.module import SpectraDataModule
from defectnet.errors import ConfigError
from defectnet.models.base import DefectModel

RANGES = ((0.0, 0.01), (0.01, 0.05), (0.05, 1.0))
"""Concentrations."""


def dopants(model: DefectModel, module: SpectraDataModule, split: Any, track: Any, condition: str) -> dict[str, Any]:
    """Return columns of all dopants that are in question."""
    parts: list[dict[str, NDArray[Any]]] = []
    for item in module.evaluation(split, track, condition):
        found = model.estimate(item.batch)
        if found.low is None or found.high is None or found.concentration_if_present is None:
            raise ConfigError(f"{model.name} has no intervals", fix="Name a calibrated checkpoint")
        true = item.targets.true_concentration
        chosen = (true > 0) & item.batch.candidates
        counts = zip(model.calibrations(item.batch), item.batch.candidates.sum(dim=1).tolist(), strict=True)
        limit = torch.tensor([c.threshold(track == "candidates", count) for c, count in counts])
        columns = {
            "true": true,
            "predicted": found.concentration_if_present,
            "low": found.low,
            "high": found.high,
            "found": found.probability >= limit[:, None],
            "dopants": (true > 0).sum(dim=1, keepdim=True).expand_as(true),
        }
        parts.append({name: x[chosen].double().numpy() for name, x in columns.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def groups(columns: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield what coverage is told of."""
    yield "all", np.ones(len(columns["true"]), dtype=np.bool_)
    for name in ("true", "predicted"):
        for low, high in RANGES:
            words = f"{100 * low:g} to {100 * high:g} at.%" if high < 1 else f"{100 * low:g} at.% and more"
            yield f"{name}, {words}", (columns[name] >= low) & (columns[name] < high)
    for number in (1, 2):
        yield f"{number} dopant{'s' if number > 1 else ''}", columns["dopants"] == number
    yield "3 dopants and more", columns["dopants"] >= 3
    yield "called present", columns["found"] > 0
    yield "not called present", columns["found"] == 0


def study(model: DefectModel, module: SpectraDataModule, split: Any) -> dict[str, Any]:
    """Return coverage by track, condition and group."""
    report: dict[str, Any] = {"nominal": model.coverage}
    for track in model.tracks:
        for condition in CONDITIONS:
            columns = dopants(model, module, split, track, condition)
            inside = (columns["low"] <= columns["true"]) & (columns["true"] <= columns["high"])
            width = 100.0 * (columns["high"] - columns["low"])
            report[f"{track}, {condition}"] = {
                name: {
                    "dopants": int(chosen.sum()),
                    "coverage": round(float(inside[chosen].mean()), 3),
                    "width": round(float(np.median(width[chosen])), 2),
                    "lower end above 0": round(float((columns["low"][chosen] > 0).mean()), 3),
                }
                for name, chosen in groups(columns)
                if chosen.any()
            }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="names or folders; defectnet-base and defectnet-small")
    parser.add_argument("--data", default="data/defectnet-sim-v1", help="folder of shards")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--json", action="store_true", help="print JSON, with numbers and widths")
    options = parser.parse_args()
    module = SpectraDataModule(options.data, batch_size=256)
    names = options.model or ("defectnet-base", "defectnet-small")
    report = {name: study(from_pretrained(name), module, options.split) for name in names}
    if options.json:
        print(json.dumps({"split": options.split, **report}, indent=1))
        return
    for name, parts in report.items():
        for asked, found in parts.items():
            if isinstance(found, dict):
                print(
                    name,
                    asked,
                    *(f"  {group}: {numbers['coverage']:.3f}" for group, numbers in found.items()),
                    sep="\n",
                )


if __name__ == "__main__":
    main()
