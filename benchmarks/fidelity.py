"""What the wrong world costs: errors on crystals simulated with a better potential, over those on the model's own.

    defectnet simulate --hosts data/hosts.json.xz --potential nep89 --settings configs/defectnet-hifi-v1.json \
        --out runs/defectnet-hifi-v1-nep89 --workers 2
    python benchmarks/fidelity.py --model fast=./runs/fast --model variants=defectnet-small --model tuned=./runs/tuned \
        --home runs/defectnet-hifi-v1-nep89 --away data/defectnet-hifi-v1 > benchmarks/fidelity.json

Both sets are made with the same settings: cells are alike in size and concentration. Only rows of test hosts that both
hold are asked about. Candidates named. Intervals (95 %) are over resampled chemical systems, the same for both sets.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
from numpy.typing import NDArray

from defectnet.benchmark.bootstrap import Resamples, replicate
from defectnet.benchmark.entrants import entrant_named
from defectnet.benchmark.metrics import summary
from defectnet.benchmark.results import interval
from defectnet.benchmark.runner import Benchmark
from defectnet.benchmark.scores import Scores
from defectnet.data.candidates import CONDITIONS
from defectnet.errors import ConfigError, DefectNetError


def errors(scores: Scores, resamples: Resamples) -> tuple[float, NDArray[np.float64]]:
    """Return the mean absolute error in at.%, and that of each resample."""
    mae = summary(scores, threshold=0.5)["concentration"]["mae"]
    return mae, replicate(scores, scores.present, resamples)["concentration.mae"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=CHECKPOINT")
    parser.add_argument("--home", required=True, help="shards of the potential that the models were trained on")
    parser.add_argument("--away", required=True, help="shards of the better potential")
    parser.add_argument("--split", default="test", choices=("test", "val"))
    parser.add_argument("--bootstrap", type=int, default=1000)
    options = parser.parse_args()
    sets = {name: Benchmark(getattr(options, name), options.split, bootstrap=0) for name in ("home", "away")}
    shared = np.intersect1d(*(bench.facts.host_id for bench in sets.values()))
    if not len(shared):
        raise ConfigError(
            f"{options.home} and {options.away} share no {options.split} host", fix="Use the same settings"
        )
    systems = sets["home"].facts.system[np.isin(sets["home"].facts.host_id, shared)]
    resamples = Resamples.draw(systems, options.bootstrap)
    report: dict[str, object] = {
        "hosts": len(shared),
        "systems": len(resamples.systems),
        "rows": {name: int(np.isin(bench.facts.host_id, shared).sum()) for name, bench in sets.items()},
    }
    models = {}
    for name, _, source in (text.partition("=") for text in options.model):
        entrant, found = entrant_named(source), {}
        for condition in CONDITIONS:
            scores = {key: bench.scores(entrant, "candidates", condition) for key, bench in sets.items()}
            parts = {key: errors(s.rows(np.isin(s.facts.host_id, shared)), resamples) for key, s in scores.items()}
            (home, homes), (away, aways) = parts["home"], parts["away"]
            found[condition] = {
                "mae_home": round(home, 4),
                "mae_away": round(away, 4),
                "ratio": round(away / home, 3),
                "ratio_interval": interval(aways / homes),
            }
        models[name] = found
    json.dump(report | {"models": models}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    try:
        main()
    except DefectNetError as error:
        raise SystemExit(f"fidelity: {error}") from None
