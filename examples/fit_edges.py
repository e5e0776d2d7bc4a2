"""Fit what band edge a composition is expected to have: ``python examples/fit_edges.py``.

Writes src/defectnet/measure/edges.json: a ridge of the logarithm of the edge on atomic fractions and their square
roots, fitted on training hosts of the bundled data sets alone, and the edges of all hosts by composition, of the data
sets and of the bundled host packs. Prints how far test hosts are from the ridge.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from defectnet.data.shards import read_shard
from defectnet.data.splits import split_of
from defectnet.elements import VOCABULARY, chemical_system, composition, parse_formula
from defectnet.measure.plausible import features, key

ROOT = Path(__file__).parents[1]
PENALTY = 1.0


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "src/defectnet/measure/edges.json")
    options = parser.parse_args()
    seen: dict[str, tuple[str, float]] = {}
    for name in ("defectnet-sim-v1", "defectnet-hifi-v1"):
        for path in sorted((ROOT / "data" / name).glob("shard-*.parquet")):
            for row in read_shard(path):
                seen.setdefault(f"{name}/{row.host_id}", (row.formula, float(row.edge_mev)))
    rows = [(formula, edge) for host, (formula, edge) in seen.items() if "sim" in host]
    for path in sorted((ROOT / "checkpoints/hosts").glob("*/config.json")):
        pack = json.loads(path.read_text(encoding="utf-8"))
        seen[f"packs/{path.parent.name}"] = (pack["formula"], float(pack["band_edge_mev"]))
    x = np.stack([features(composition(formula)) for formula, _ in rows])
    y = np.log([edge for _, edge in rows])
    split = np.array([split_of(chemical_system(parse_formula(formula))) for formula, _ in rows])
    train, test = split == "train", split == "test"
    penalty = np.diag([0.0] + [PENALTY] * (x.shape[1] - 1))
    weights = np.linalg.solve(x[train].T @ x[train] + penalty, x[train].T @ y[train])
    off = np.exp(np.abs(x[test] @ weights - y[test]))
    print(
        f"{train.sum()} training hosts; of {test.sum()} test hosts half are within a factor of {np.median(off):.2f}, "
    )
    print(f"99 % within {np.quantile(off, 0.99):.2f}, {(off > 2).mean():.2%} beyond 2")
    hosts: dict[str, list[float]] = {}
    for formula, edge in seen.values():
        hosts.setdefault(key(formula), []).append(edge)
    values = [round(float(w), 4) for w in weights]
    split_at = 1 + len(VOCABULARY)
    document = {
        "constant": values[0],
        "share": dict(zip(VOCABULARY, values[1:split_at], strict=True)),
        "root": dict(zip(VOCABULARY, values[split_at:], strict=True)),
        "hosts": {k: sorted({round(min(v), 1), round(max(v), 1)}) for k, v in sorted(hosts.items())},
    }
    text = json.dumps(document, separators=(",", ":"))
    options.out.write_text(text.replace('],"', '],\n"').replace('{"', '{\n"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
