"""What the bars of the benchmark would read for somebody who knows the host: some of its samples, measured before.

    defectnet simulate --hosts GaAs.json --potential nep89 --dopants Al,In,P,Sb,Si,Zn,N,B --spectra-per-host 110 \
        --atoms 128-199 --out runs/known-GaAs
    python benchmarks/known_host.py runs/known-GaAs runs/known-MgO > benchmarks/known-host.json

Each folder holds pairs of one host with one to six of some dopants together, 0.2 to 25 at.% in all. Responses are
measured on so many of them (`defectnet finetune --method responses`), and others are asked about, with all dopants of
the folder as candidates; over several orders, pooled. Beside it the checkpoint as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, r2_score
from torch import Tensor

from defectnet import from_pretrained
from defectnet.batch import Batch, Targets
from defectnet.data.candidates import CONDITIONS
from defectnet.data.module import SpectraDataModule
from defectnet.data.shards import read_shard, shard_files
from defectnet.errors import ConfigError
from defectnet.measure.encode import stack
from defectnet.models.base import DefectModel
from defectnet.models.measured import MeasuredResponses


def rows(folder: str, condition: str) -> tuple[Batch, Tensor]:
    """Return all pairs of a folder, asked about its dopants, and their concentrations."""
    split = next(read_shard(shard_files(folder)[0])).split
    items = list(SpectraDataModule(folder, batch_size=256).evaluation(split, "candidates", condition))
    batch, true = stack([item.batch for item in items]), torch.cat([item.targets.true_concentration for item in items])
    if len(torch.unique(batch.composition, dim=0)) != 1:
        raise ConfigError(f"{folder} holds several hosts", fix="Simulate one host into each folder")
    return batch._replace(candidates=(true > 0).any(dim=0).expand(len(true), -1)), true


def score(model: DefectModel, batch: Batch, true: Tensor, ask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return truth, expectation, probability and number of dopants of the row, for each element in question."""
    batch, true = batch.rows(torch.as_tensor(ask)), true[ask]
    answer, asked = model.estimate(batch), batch.candidates
    count = (true > 0).sum(dim=1, keepdim=True).expand_as(true)
    return tuple(x[asked].numpy() for x in (true, answer.expected_concentration, answer.probability, count))


def summary(parts: list[tuple[np.ndarray, ...]]) -> dict[str, float]:
    """Return the numbers of the bars over what several orders gave."""
    true, found, probability, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    one, many = count == 1, count > 1
    return {
        "mae": round(100 * float(np.abs(found - true).mean()), 3),
        "r2_one_dopant": round(float(r2_score(true[one], found[one])), 3),
        "r2_many_dopants": round(float(r2_score(true[many], found[many])), 3),
        "ap_micro": round(float(average_precision_score(true > 0, probability)), 3),
    }


def study(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    inner, found = from_pretrained(options.checkpoint), {}
    for condition in CONDITIONS:
        batch, true = rows(folder, condition)
        if len(true) < max(options.learn) + options.ask:
            raise ConfigError(f"{folder} holds {len(true)} pairs", fix="Simulate more, or ask about fewer (--ask)")
        orders = [np.random.default_rng(seed).permutation(len(true)) for seed in range(options.orders)]
        asked = [order[: options.ask] for order in orders]
        found[condition] = {"as it is": summary([score(inner, batch, true, ask) for ask in asked])}
        for number in options.learn:
            parts = []
            for order in orders:
                ask, learn = order[: options.ask], order[options.ask : options.ask + number]
                model = MeasuredResponses.fit(inner, batch.rows(torch.as_tensor(learn)), Targets(true[learn]))
                parts.append(score(model, batch, true, ask))
            found[condition][str(number)] = summary(parts)
    return {"pairs": len(true), "dopants": int(batch.candidates[0].sum()), "results": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="shards of one host each")
    parser.add_argument("--checkpoint", default="defectnet-small")
    parser.add_argument("--learn", type=int, nargs="+", default=[10, 20, 40, 60], help="pairs learnt from")
    parser.add_argument("--ask", type=int, default=30, help="pairs asked about")
    parser.add_argument("--orders", type=int, default=5)
    options = parser.parse_args()
    report = {Path(folder).name: study(folder, options) for folder in options.folders}
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
