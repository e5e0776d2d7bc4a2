"""The training part of `data/defectnet-sim-v2`: host packs, then pairs by superposition.

    python benchmarks/sim_v2.py --out runs/sim-v2 --dry-run          # how long it will take on this machine
    python benchmarks/sim_v2.py --out runs/sim-v2 --workers 8
    python benchmarks/sim_v2.py --evaluation data/defectnet-sim-v2   # part of what is bundled

Packs are those of the repository that `nequix` computed, and packs of further crystals of `data/pack-order.json`, in
its order, that are made with `defectnet-nep` into OUT/packs. Crystals of the test split are left out. Pairs go to
OUT/pairs; each is a function of the settings, the set of packs and its number. Killed, the same command goes on where
it was.

With --evaluation, validation and test rows of `data/defectnet-hifi-v1` are written as the part `nequix` of the bundled
data set. Its other part is `defectnet simulate --settings FOLDER/_dataset.json` of the 14 crystals of
`data/known-crystal-v1/packs` with defectnet-nep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch

from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.crystal.requests import LISTED, read_requests
from defectnet.data.packs import PackFile, PackPairs, PairSettings, find_packs
from defectnet.data.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    Sample,
    manifest_file,
    read_manifest,
    read_shard,
    shard_files,
    write_shard,
)
from defectnet.errors import SimulationError
from defectnet.files import replacing
from defectnet.simulate.executors import LocalExecutor
from defectnet.simulate.from_packs import simulate_packs
from defectnet.simulate.rows import read_settings
from pack_list import ordered

ROOT: Final = Path(__file__).parents[1]
DATA: Final = ROOT / "data"
NEQUIX: Final = (ROOT / "checkpoints" / "hosts", DATA / "packs")

SECONDS_A_HOST: Final = 53.0
YIELD: Final = 0.75
"""Time of one core on a crystal with 8 to 12 dopants, and share of the crystals that gave a pack: means of 93."""

TIMED: Final = 3
"""Packs of which the time of a pair is measured, spread over those that are there."""


def bundled_packs(folders: Sequence[Path] = NEQUIX) -> list[PackFile]:
    """Return the packs of folders that may be trained with, each crystal once, the first of them."""
    found: dict[str, PackFile] = {}
    for folder in folders:
        for pack in find_packs(folder):
            if pack.split != "test":
                found.setdefault(pack.id, pack)
    return list(found.values())


def further_hosts(known: Sequence[PackFile], count: int | None) -> list[dict[str, Any]]:
    """Return entries of the list of hosts, with dopants: the first of the order that have no pack yet."""
    there = {pack.id for pack in known}
    wanted = [entry for entry, split in ordered(DATA) if split != "test" and entry["id"] not in there]
    return wanted[:count]


def seconds_a_pair(packs: Sequence[PackFile], settings: PairSettings) -> float:
    """Measure the time of a core for a pair: the mean of visits to some packs, from reading them on."""
    some = packs[:: max(1, len(packs) // TIMED)][:TIMED]
    begin = time.process_time()
    for pack in some:
        pairs = PackPairs([pack], settings)
        for number in range(settings.visit):
            pairs.row(number)
    return (time.process_time() - begin) / (len(some) * settings.visit)


def make(out: Path, entries: Sequence[dict[str, Any]], workers: int) -> list[PackFile]:
    """Make packs of crystals into a folder; those that are there are kept, those that fail are named."""
    out.mkdir(parents=True, exist_ok=True)
    listed = out.with_suffix(".json")
    with replacing(listed) as temporary:
        temporary.write_text(json.dumps(entries), encoding="utf-8")
    jobs = [(one.host, one.pairs, out / one.host.id) for one in read_requests(listed, [LISTED])]
    failed = make_packs(jobs, MakeSettings(potential="defectnet-nep", starts=1), workers=workers)
    found: list[PackFile] = []
    for host, _, folder in jobs:
        try:
            found += find_packs(folder) if host.id not in failed else ()
        except SimulationError as error:  # all of its substitutions failed
            failed[host.id] = str(error)
    for name, reason in failed.items():
        print(f"{name}: no pack: {' '.join(reason.split())}", file=sys.stderr)
    return found


def evaluation(out: Path) -> None:
    """Write the part of the evaluation rows that `nequix` simulated in small cells."""
    source, part = DATA / "defectnet-hifi-v1", out / "nequix"
    rows: list[Sample] = [s for path in shard_files(source) for s in read_shard(path) if s.split != "train"]
    part.mkdir(parents=True, exist_ok=True)
    notes = {"hosts": [row.host_id for row in rows], "rejects": [], "rows": len(rows)}  # each host has one row
    write_shard(part / "shard-00000.parquet", rows, notes)
    kept = {key: value for key, value in read_manifest(source).items() if not key.startswith("hosts")}
    for path, content in (
        (manifest_file(part), {**kept, "schema_version": SCHEMA_VERSION}),
        (out / MANIFEST, {"parts": ["defectnet-nep", "nequix"]}),
    ):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Say how long it takes, make packs, then pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sim-v2"))
    parser.add_argument("--hosts", type=int, default=None, help="make packs of so many crystals; by default of all")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--settings", type=Path, default=ROOT / "configs" / "defectnet-sim-v2.json")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it takes")
    parser.add_argument("--evaluation", type=Path, default=None, help="write the part `nequix` of this folder instead")
    options = parser.parse_args(arguments)
    if options.evaluation is not None:
        evaluation(options.evaluation)
        return
    torch.set_num_threads(1)
    settings = read_settings(PairSettings, options.settings)
    known = bundled_packs()
    entries = further_hosts(known, options.hosts)
    pair = seconds_a_pair(known, settings)
    hours = {"packs": len(entries) * SECONDS_A_HOST, "pairs": options.rows * pair}
    print(
        f"{len(known)} packs are there, {len(entries)} crystals more are tried, of which some {YIELD:.0%} give one; "
        f"then {options.rows} pairs of {pair:.2f} s each. With {options.workers} workers "
        + " and ".join(f"{timedelta(seconds=round(one / options.workers))} for {name}" for name, one in hours.items())
    )
    if options.dry_run:
        return
    packs = [*known, *make(options.out / "packs", entries, options.workers)] if entries else known
    totals = simulate_packs(
        [pack.folder for pack in packs],
        options.out / "pairs",
        options.rows,
        settings,
        executor=LocalExecutor(options.workers),
    )
    print(f"{totals['rows']} rows in {options.out / 'pairs'}")


if __name__ == "__main__":
    main()
