"""Speed and memory of the data loader, from shards on disk to batches: ``python benchmarks/loader.py --data DIR``.

Prints JSON. Times are those of the processor, on one thread, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy is imported

# ruff: noqa: E402
import pyarrow as pa
import torch

from defectnet.data.module import LoaderSettings, ShardLoader, SpectraDataModule
from defectnet.measure.settings import MEASUREMENTS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of shards")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--buffer-rows", type=int, default=1024)
    parser.add_argument("--cache-rows", type=int, default=0, help="rows kept in memory; 0 reads every row every time")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    settings = LoaderSettings(buffer_rows=options.buffer_rows, cache_rows=options.cache_rows)

    def loader(name: str) -> ShardLoader:
        module = SpectraDataModule(
            options.data, batch_size=options.batch_size, train_measurement=name, loader=settings, seed=0
        )
        return module.train_dataloader()

    speed: dict[str, float] = {}
    memory: dict[str, list[float | None]] = {"peak_mb": [], "after_mb": []}
    pairs = 0
    for name in sorted(MEASUREMENTS):  # augment comes first, while the peak is still its own
        batches, rates = loader(name), []
        for _ in range(options.epochs):
            begin = time.process_time()
            pairs = sum(len(item.rows) for item in batches)
            rates.append(pairs / (time.process_time() - begin))
            if name == "augment":
                memory["peak_mb"].append(peak_mb())
                memory["after_mb"].append(now_mb())
        speed[name] = round(max(rates), 1)
    report = {
        "pairs": pairs,
        "batch_size": options.batch_size,
        "buffer_rows": options.buffer_rows,
        "cache_rows": options.cache_rows,
        "pairs_per_second_and_core": speed,
        "memory_after_epochs": memory,
    }
    json.dump(report, sys.stdout, indent=1)
    print()


def peak_mb() -> float:
    """Return the largest memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def now_mb() -> float | None:
    """Return the memory of this process now, where the system tells."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return None
    return round(int(status.read_text().split()[1]) * resource.getpagesize() / 1e6, 1)


if __name__ == "__main__":
    main()
