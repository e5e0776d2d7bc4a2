"""Blind questions about known crystals: which one dopant of all elements that a pack holds, in the pack's own world?

    python benchmarks/blind.py --hosts 4 --json        # blind.json; five minutes a host on a core

For the first test crystals of the order of packs a pack of all elements is made with `defectnet-nep`, and full
simulations of one of the eight likeliest dopants each, of 2 to 20 at.%, in 128 to 192 atoms. No candidate is named.
Packs and simulations are kept under `runs/`, so that a run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from defectnet.config import MODEL_GRID
from defectnet.crystal.make import choose_dopants
from defectnet.crystal.pack import HostPack
from defectnet.data.module import LoaderSettings, SpectraDataModule
from defectnet.data.shards import read_shard, shard_files
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.spectrum import Spectrum
from known_crystal import chosen_hosts, own_world

ROOT = Path(__file__).parents[1]
LEAST, MOST, PAIRS = 0.02, 0.2, 6


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "blind")
    parser.add_argument("--json", action="store_true", help="what is printed anyway")
    chosen = parser.parse_args()
    data, packs = own_world(
        chosen_hosts(chosen.hosts), lambda host: choose_dopants(host, ["all"]), chosen.out,
        f"data-{chosen.hosts}-{PAIRS}", spectra_per_host=PAIRS, smallest=128, largest=192, most_dopants=1,
        lowest=LEAST, highest=MOST,
    )  # fmt: skip
    samples = [sample for path in shard_files(data) for sample in read_shard(path)]
    module = SpectraDataModule(str(data), batch_size=1, grid=MODEL_GRID, loader=LoaderSettings(cache_rows=0))
    rows: list[dict[str, Any]] = []
    crystal, host = None, ""
    for sample, item in zip(samples, module.evaluation("test", "candidates", "clean"), strict=True):
        if host != sample.host_id or crystal is None:
            host, crystal = sample.host_id, KnownCrystal(HostPack.load(packs / sample.host_id))
        began, edge = time.process_time(), float(item.batch.edge_mev[0])
        energy = MODEL_GRID.centres * edge
        pair = [Spectrum(energy, dos[0].double().numpy(), "meV") for dos in (item.batch.host, item.batch.doped)]
        answer = crystal.identify(*pair, edge_mev=edge, same_potential=True, sample_atoms=float(sample.atoms))
        found = answer.posterior
        order = [found.elements[i] for i in np.argsort(-found.probability, kind="stable")]
        ((symbol, amount),) = sample.concentrations.items()
        place = order.index(symbol) if symbol in order else len(order)
        rows.append(
            {
                "row": sample.row_id,
                "formula": sample.formula,
                "dopant": symbol,
                "at_percent": round(100.0 * amount, 2),
                "place": place + 1,
                "likeliest": order[:3],
                "named": list(answer.present),
                "found_at_percent": round(100.0 * float(found.if_present[found.elements.index(symbol)]), 2)
                if symbol in found.elements
                else None,
                "elements": len(found.elements),
                "seconds": round(time.process_time() - began, 1),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    first = np.array([row["place"] for row in rows])
    told = {
        "rows": len(rows),
        "hosts": len({row["formula"] for row in rows}),
        "first": round(float((first == 1).mean()), 3),
        "among_five": round(float((first <= 5).mean()), 3),
        "named_right_alone": round(float(np.mean([row["named"] == [row["dopant"]] for row in rows])), 3),
        "named_wrong": round(float(np.mean([bool(set(row["named"]) - {row["dopant"]}) for row in rows])), 3),
        "seconds_a_row": round(float(np.mean([row["seconds"] for row in rows])), 1),
        "answers": rows,
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
