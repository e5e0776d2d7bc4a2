"""How well a host's band edge is read through noise: ``python benchmarks/band_edge.py --data DIR``.

Hosts of a data set, seen with 2 meV, on plain grids that end at 1 to 3 edges, with constant noise, and with negative
values cut or kept. Prints JSON: the share of files whose edge is off by more than 3 %, or not found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from defectnet.config import STORAGE_GRID
from defectnet.data.shards import Row, projected_pairs, read_shard
from defectnet.errors import SpectrumError
from defectnet.measure.broadening import broaden
from defectnet.measure.edge import band_edges

LEVELS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.03)
"""Standard deviations of a point, relative to the maximum."""
ENDS, POINTS = (1.05, 1.2, 1.5, 2.0, 2.4, 3.0), (100, 150, 300, 600)
TOLERANCE = 0.03


def wrong(energy: np.ndarray, dos: np.ndarray, edge: float) -> bool:
    """Tell whether an edge is off, or not found."""
    try:
        return bool(abs(band_edges(energy, dos[None])[0] / edge - 1.0) > TOLERANCE)
    except SpectrumError:
        return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of shards")
    parser.add_argument("--hosts", type=int, default=200)
    options = parser.parse_args()
    samples = {}
    for path in sorted(options.data.glob("shard-*.parquet")):
        samples |= {sample.host_id: sample for sample in read_shard(path)}
        if len(samples) >= options.hosts:
            break
    pairs = projected_pairs([Row.of(sample) for sample in list(samples.values())[: options.hosts]])
    one = np.ones(len(pairs.edge_mev))
    hosts = broaden(pairs.curves(np.ones(len(pairs.elements))), pairs.edge_mev, 2.0 * one, one)[:, 0].astype(float)
    edges, rng = band_edges(STORAGE_GRID.centres, hosts), np.random.default_rng(0)
    report: dict[str, dict[str, dict[str, float]]] = {}
    for points in POINTS:
        for level in LEVELS:
            found = {}
            for end in ENDS:
                off = []
                for dos, edge in zip(hosts, edges, strict=True):
                    energy = np.linspace(0.0, end * edge, points)
                    clean = np.interp(energy, STORAGE_GRID.centres, dos, left=0.0)
                    seen = clean + rng.normal(0.0, level * clean.max(), points)
                    off += [wrong(energy, curve, edge) for curve in (seen, np.maximum(seen, 0.0))]
                found[f"to {end:g} edges"] = round(float(np.mean(off)), 4)
            report.setdefault(f"{points} points", {})[f"noise {level:g}"] = found
    print(json.dumps({"hosts": len(hosts), "tolerance": TOLERANCE, "wrong": report}, indent=1))


if __name__ == "__main__":
    main()
