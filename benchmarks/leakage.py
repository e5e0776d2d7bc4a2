"""How near the held-out crystals are to those of training: ``python benchmarks/leakage.py --data DIR ...``.

Prints JSON. Chemical systems must not be shared between splits. Crystals of different elements may still have spectra
of the same shape; how often is told by the distance of each held-out host to its nearest host of training, beside the
same within training (leave-one-out). The distance is the total variation (0 same, 1 disjoint) of the hosts' total
phonon DOS on energies relative to their edges, unit area, seen with a Gaussian of 2 % of the edge (standard deviation).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.data.shards import AS_IS, open_shard, projected_pairs, read_rows, shard_files
from defectnet.data.splits import SPLITS
from defectnet.measure.broadening import FWHM_TO_SIGMA, broaden

SIGMA = 0.02
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COLUMNS = ["host_id", "formula", "chemical_system", "split", "variant"]


@dataclass(frozen=True)
class Hosts:
    """Hosts of a data set, each once: (n,) columns, and `dos` (n, 600) of unit area."""

    ids: NDArray[np.str_]
    formulas: NDArray[np.str_]
    systems: NDArray[np.str_]
    splits: NDArray[np.str_]
    dos: NDArray[np.float32]

    def of(self, split: str) -> NDArray[np.intp]:
        """Return the hosts of a split."""
        return np.flatnonzero(self.splits == split)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, nargs="+", help="folders of shards, taken together")
    parser.add_argument("--worst", type=int, default=20, help="how many of the nearest pairs are listed")
    options = parser.parse_args(arguments)
    shards = [path for folder in options.data for path in shard_files(folder)]
    json.dump(report(read_hosts(shards), options.worst), sys.stdout, indent=1)
    print()


def read_hosts(shards: Sequence[Path]) -> Hosts:
    """Read the first row of each host that has the potential's own stiffness."""
    seen: set[str] = set()
    columns: list[list[str]] = [[] for _ in COLUMNS]
    spectra = [np.zeros((0, STORAGE_GRID.bins), np.float32)]
    for path in shards:
        with open_shard(path) as file:
            table = file.read(columns=COLUMNS).to_pylist()
        wanted = []
        for number, row in enumerate(table):
            if row["variant"] == AS_IS and row["host_id"] not in seen:
                seen.add(row["host_id"])
                wanted.append(number)
                for column, name in zip(columns, COLUMNS, strict=True):
                    column.append(row[name])
        if wanted:
            pairs, one = projected_pairs([row for _, row in read_rows(path, wanted)]), np.ones(len(wanted))
            curves = pairs.curves(np.ones(len(pairs.elements)))[:, :1]
            spectra.append(broaden(curves, one, SIGMA / FWHM_TO_SIGMA * one, one)[:, 0])
    ids, formulas, systems, splits, _ = (np.array(column, dtype=np.str_) for column in columns)
    return Hosts(ids, formulas, systems, splits, np.concatenate(spectra))


def nearest(dos: NDArray[np.float32], to: NDArray[np.float32], *, itself: bool) -> tuple[NDArray, NDArray]:
    """Return each host's distance to the nearest of others, and which that is.

    Args:
        dos: (n, 600) spectra.
        to: (m, 600) spectra; the same as `dos` if `itself`.
        itself: Whether a host must not be compared with itself.
    """
    distances, indices = [], []
    others = torch.from_numpy(to)
    for begin in range(0, len(dos), 256):
        block = torch.cdist(torch.from_numpy(dos[begin : begin + 256]), others, p=1.0) * (0.5 * STORAGE_GRID.width)
        if itself:
            rows = torch.arange(len(block))
            block[rows, rows + begin] = torch.inf
        least = block.min(dim=1)
        distances.append(least.values.numpy())
        indices.append(least.indices.numpy())
    return np.concatenate(distances), np.concatenate(indices)


def report(hosts: Hosts, worst: int) -> dict[str, object]:
    """Return everything that is printed."""
    systems = {split: set(hosts.systems[hosts.of(split)].tolist()) for split in SPLITS}
    train = hosts.of("train")
    result: dict[str, object] = {
        "hosts": {split: len(hosts.of(split)) for split in SPLITS},
        "chemical_systems": {split: len(names) for split, names in systems.items()},
        "shared_chemical_systems": {f"{a} and {b}": len(systems[a] & systems[b]) for a, b in combinations(SPLITS, 2)},
    }
    if len(train) < 2:
        return result
    within, _ = nearest(hosts.dos[train], hosts.dos[train], itself=True)
    limit = float(np.quantile(within, 0.01))
    result["distance_to_nearest_training_host"] = {"train, leave-one-out": _quantiles(within)}
    result["nearer_than"] = {"distance": round(limit, 4), "what": "1 % quantile within training"}
    for split in ("val", "test"):
        rows = hosts.of(split)
        if not len(rows):
            continue
        distance, found = nearest(hosts.dos[rows], hosts.dos[train], itself=False)
        result["distance_to_nearest_training_host"] |= {split: _quantiles(distance)}  # type: ignore[operator]
        result["nearer_than"] |= {split: round(float((distance < limit).mean()), 4)}  # type: ignore[operator]
        result[f"nearest_pairs_of_{split}"] = [
            {
                split: f"{hosts.formulas[rows[i]]} ({hosts.ids[rows[i]]})",
                "train": f"{hosts.formulas[train[found[i]]]} ({hosts.ids[train[found[i]]]})",
                "distance": round(float(distance[i]), 4),
            }
            for i in np.argsort(distance, kind="stable")[:worst]
        ]
    return result


def _quantiles(values: NDArray[np.float32]) -> dict[str, float]:
    return {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES}


if __name__ == "__main__":
    main()
