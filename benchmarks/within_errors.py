"""How often noise is taken for a change, and a change for noise: ``python benchmarks/within_errors.py --data DIR``.

Pairs of ten hosts of a data set on plain grids, with white noise of both spectra, told to the test or not. Prints
JSON: the share of undoped pairs that are said to differ, and of pairs with 3 at.% or more that are said not to.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from defectnet.config import STORAGE_GRID
from defectnet.data.shards import Row, projected_pairs, read_shard
from defectnet.elements import NEUTRON_WEIGHT
from defectnet.errors import SpectrumError
from defectnet.measure.broadening import broaden
from defectnet.measure.encode import host_edge_mev
from defectnet.measure.plausible import SIGNIFICANT, change_within_errors
from defectnet.spectrum import Spectrum

LEVELS, ENDS = (0.002, 0.005, 0.01, 0.02), (1.02, 1.5, 2.0, 3.0)
"""Noise of a point over the maximum; last energies in edges."""
POINTS, HOSTS, LEAST = (100, 200, 400), 10, 0.03


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of shards")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    samples = {}
    for path in sorted(options.data.glob("shard-*.parquet"))[::7]:
        for sample in read_shard(path):
            if sum(sample.concentrations.values()) >= LEAST:
                samples.setdefault(sample.host_id, sample)
    chosen = list(samples.values())[:: max(1, len(samples) // HOSTS)][:HOSTS]
    pairs = projected_pairs([Row.of(sample) for sample in chosen])
    one, rng = np.ones(len(pairs.edge_mev)), np.random.default_rng(0)
    kinds = {"total": np.ones(len(pairs.elements)), "neutron-weighted": NEUTRON_WEIGHT[pairs.elements]}
    found: dict[str, list[int]] = {}
    for kind, weights in kinds.items():
        curves = broaden(pairs.curves(weights), pairs.edge_mev, 2.0 * one, one).astype(float)
        for (host, doped), edge in zip(curves, pairs.edge_mev, strict=True):
            for points in POINTS:
                for level in LEVELS:
                    for end in ENDS:
                        energy = np.linspace(0.0, end * edge, points)
                        clean = [
                            np.interp(energy / edge, STORAGE_GRID.centres, c, left=0.0) for c in (host, host, doped)
                        ]
                        for told in (True, False):
                            for _ in range(options.draws):
                                seen = [
                                    Spectrum(
                                        energy,
                                        curve + level * curve.max() * rng.normal(size=points),
                                        "meV",
                                        error=np.full(points, level * curve.max()) if told else None,
                                    )
                                    for curve in clean
                                ]
                                try:
                                    read = host_edge_mev(seen[0])
                                except SpectrumError:
                                    continue
                                for name, other in (("undoped", seen[1]), ("doped", seen[2])):
                                    test = change_within_errors(seen[0], other, read)
                                    same = test is not None and test[1] >= SIGNIFICANT
                                    wrong = same if name == "doped" else not same
                                    for key in (
                                        "all",
                                        kind,
                                        f"noise {level:g}",
                                        f"to {end:g} edges",
                                        f"{points} points",
                                    ):
                                        where = f"{name}, errors {'told' if told else 'not told'}, {key}"
                                        found.setdefault(where, []).append(wrong)
    report = {key: {"wrong": round(float(np.mean(values)), 4), "pairs": len(values)} for key, values in found.items()}
    print(json.dumps({"hosts": [sample.host_id for sample in chosen], **dict(sorted(report.items()))}, indent=1))


if __name__ == "__main__":
    main()
