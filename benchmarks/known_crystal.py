"""Known-crystal inference on crystals of the test split, by the track `known-crystal` of the benchmark, in short.

    python benchmarks/known_crystal.py --hosts 3                 # makes packs and simulations of its own: a first look
    D=data/defectnet-sim-v2/defectnet-nep
    python benchmarks/known_crystal.py --data $D --packs data/known-crystal-v1/packs     # another: -cross-world.json
    python benchmarks/known_crystal.py --data $D --packs runs/packs-nep --same-potential # their own: known-crystal.json
    # ... and with --condition lab: known-crystal-lab.json

In the packs' own world packs are made of the first test crystals of the order of packs, and full simulations of one to
three of their eight likeliest dopants, 0.5 to 20 at.%; both are kept under `runs/`, so that a run goes on where it was.
Answering zero is the measure: the mean of the true concentrations. `defectnet-small` answers the same rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from defectnet.benchmark.entrants import entrant_named, entrant_of
from defectnet.benchmark.known_crystal import CANDIDATES, KnownCrystalEstimator
from defectnet.benchmark.protocol import KNOWN_CRYSTAL
from defectnet.benchmark.runner import Benchmark
from defectnet.crystal.hosts import Host, read_hosts
from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.crystal.plausible import plausible_dopants
from defectnet.data.shards import read_shard, shard_files
from defectnet.simulate.rows import SimulationSettings
from defectnet.simulate.runner import simulate

ROOT = Path(__file__).parents[1]
POTENTIAL = "defectnet-nep"


def chosen_hosts(count: int) -> list[Host]:
    """Return the first crystals of the order of packs that are of the test split."""
    listed = {host.id: host for host in read_hosts(ROOT / "data" / "hosts.json.xz")}
    order = json.loads((ROOT / "data" / "pack-order.json").read_text(encoding="utf-8"))
    return [listed[one["id"]] for one in order if one["split"] == "test"][:count]


def likeliest(host: Host) -> list[tuple[str, str]]:
    """Return the likeliest dopants of a host, each with the element that it replaces."""
    names = [name.partition("@") for name in plausible_dopants(host.crystal, CANDIDATES)]
    return [(dopant, replaced) for dopant, _, replaced in names]


def own_world(
    hosts: list[Host], dopants: Callable[[Host], list[tuple[str, str]]], out: Path, data: str, **settings: Any
) -> tuple[Path, Path]:
    """Make packs and full simulations with one potential; return the folders of the simulations and of the packs.

    Args:
        hosts: Crystals.
        dopants: Those of the pack of a crystal.
        out: Folder of both.
        data: Name of the simulations.
        settings: Of the simulations, whose dopants are the likeliest.
    """
    packs = out / "packs"
    failed = make_packs(
        [(host, dopants(host), packs / host.id) for host in hosts], MakeSettings(potential=POTENTIAL, starts=1)
    )
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr, flush=True)
    made = [host for host in hosts if host.id not in failed]
    simulate(made, POTENTIAL, out / data, SimulationSettings(controls=0.0, plausible=CANDIDATES, **settings))
    return out / data, packs


def summary(result: dict[str, Any], condition: str, zero: float) -> dict[str, Any]:
    """Return the figures of the project's table."""
    found = result["results"][KNOWN_CRYSTAL][condition]
    ranges = found["by_range"].values()
    dopants = sum(one["dopants"] for one in ranges)
    figures = {
        "mae_at_percent": found["concentration"]["mae"],
        "mae_over_zero": found["concentration"]["mae"] / zero,
        "r2": found["concentration"]["r2"],
        "r2_one_dopant": found["one_dopant"]["r2"],
        "average_precision": found["identity"]["ap_micro"],
        "prevalence": found["identity"]["prevalence"],
        "recall_at_k": found["identity"]["recall_at_k"],
        "calibration_error": found["calibration"]["error"],
        "coverage": sum(one["dopants"] * one["coverage"] for one in ranges if one["dopants"]) / dopants,
        "seconds_a_row": result["seconds"]["answer"] / result["data"]["rows"],
    }
    return {
        **{name: None if value is None else round(value, 3) for name, value in figures.items()},
        "coverage_by_range": {name: one["coverage"] for name, one in found["by_range"].items()},
        "one_dopant_plenty": found["one_dopant_plenty"],
        "intervals": found["intervals"],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="full simulations; made, in the packs' own world, where not given")
    parser.add_argument("--packs", type=Path, help="host packs of their crystals")
    parser.add_argument("--same-potential", action="store_true", help="the packs are of the simulations' potential")
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--atoms", type=int, default=128)
    parser.add_argument("--condition", choices=("clean", "lab"), default="clean")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "known-crystal")
    parser.add_argument("--json", action="store_true", help="what is printed anyway")
    chosen = parser.parse_args()
    if (chosen.data is None) != (chosen.packs is None):
        parser.error("--data and --packs go together")
    own = chosen.data is None
    same = own or chosen.same_potential
    data, packs = chosen.data, chosen.packs
    if own:
        pairs, atoms = chosen.pairs, chosen.atoms
        data, packs = own_world(
            chosen_hosts(chosen.hosts), likeliest, chosen.out, f"data-{chosen.hosts}-{pairs}-{atoms}",
            spectra_per_host=pairs, smallest=atoms, largest=round(1.5 * atoms), most_dopants=3, lowest=0.005,
            highest=0.2,
        )  # fmt: skip
    rows = [row for path in shard_files(data) for row in read_shard(path)]
    zero = 100.0 * sum(sum(row.concentrations.values()) for row in rows) / (CANDIDATES * len(rows))
    # Small cells have sampling noise that no sample has: in their own world the inference is told their size.
    atoms = sum(row.atoms for row in rows) / len(rows)
    told: dict[str, Any] = {"same_potential": True, "sample_atoms": atoms} if same else {}
    known = KnownCrystalEstimator(packs, **told)
    bench = Benchmark(str(data))
    result: dict[str, Any] = {"data": data.name, "condition": chosen.condition, "zero_at_percent": round(zero, 3)}
    for entrant in (entrant_of(known, "known-crystal"), entrant_named("defectnet-small")):
        measured = bench.measure(entrant, [KNOWN_CRYSTAL], [chosen.condition])
        result[entrant.name] = summary(measured, chosen.condition, zero)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
