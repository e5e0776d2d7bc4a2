"""Speed of prediction: ``python benchmarks/predict.py defectnet-small ./my-model > benchmarks/speed.json``.

Prints JSON: pairs a second of `predict_batch` for each checkpoint, precision, batch size and number of threads, and the
milliseconds of one pair through `predict` with a loaded model, from arrays to the answer. Wall times, the best of
several rounds: what else runs on the machine makes them longer, never shorter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch

import defectnet
from defectnet.batch import Batch
from defectnet.config import Grid
from defectnet.measure.encode import encode_pair, stack
from defectnet.models.base import DefectModel
from defectnet.spectrum import Spectrum

PAIR_BINS = 400


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="what defectnet.from_pretrained takes")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=512, help="pairs of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    if min(*options.batch_sizes, *options.threads, options.pairs, options.rounds, 1) < 1:
        parser.error("sizes, threads, pairs and rounds must be 1 or more")
    report = {
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "torch": torch.__version__},
        "pairs": options.pairs,
        "checkpoints": {name: measure(defectnet.from_pretrained(name), options) for name in options.checkpoints},
    }
    json.dump(report, sys.stdout, indent=1)
    print()


def measure(model: DefectModel, options: argparse.Namespace) -> dict[str, Any]:
    batch = many(options.pairs, model.spec.grid)
    host, doped = pair(0)
    candidates = ["Al", "In", "P", "Sb"]
    batches, alone, before = [], [], torch.get_num_threads()
    try:
        for threads in options.threads:
            torch.set_num_threads(threads)
            for size, bits in product(options.batch_sizes, (64, 32)):
                work = partial(model.predict_batch, batch, size, precision=bits)
                row = {"threads": threads, "batch_size": size, "precision": bits}
                batches.append({**row, "pairs_per_second": round(options.pairs / best(work, options.rounds), 1)})
            seconds = best(lambda: model.predict(host, doped, "GaAs", candidates=candidates), 10 * options.rounds)
            alone.append({"threads": threads, "milliseconds": round(1000 * seconds, 2)})
    finally:
        torch.set_num_threads(before)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "batches": batches, "one_pair": alone}


def best(work: Callable[[], object], rounds: int) -> float:
    """Return the shortest time of several rounds, in seconds, after one that does not count."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def pair(number: int) -> tuple[Spectrum, Spectrum]:
    """Return two smooth spectra; what they are of does not matter to the speed."""
    energy = torch.linspace(0.1, 60.0, PAIR_BINS, dtype=torch.float64)
    shift = 0.02 * number
    found = []
    for centre in (28.0, 27.0 - shift % 5.0):
        dos = energy**2 * torch.exp(-((energy / 14.0) ** 2)) + 60.0 * torch.exp(-(((energy - centre) / 2.0) ** 2))
        found.append(Spectrum(energy.numpy(), dos.numpy(), "meV"))
    return found[0], found[1]


def many(rows: int, grid: Grid) -> Batch:
    """Return a batch of different pairs; every other one names candidates."""
    different = min(rows, 16)
    batch = stack(
        [
            encode_pair(*pair(i), "GaAs", grid=grid, candidates=None if i % 2 else ["Al", "In", "P", "Sb"])
            for i in range(different)
        ]
    )
    copies = -(-rows // different)
    return batch.map(lambda field: field.repeat(copies, *[1] * (field.ndim - 1))[:rows])


if __name__ == "__main__":
    main()
