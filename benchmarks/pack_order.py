"""The order in which crystals of ``data/hosts.json.xz`` should get force constants of their substitutions.

    python benchmarks/pack_order.py --count 400 --out data/pack-order.json

Cheap ones first: a substitution has to be made on each inequivalent site, and the displacements that give its force
constants are reduced by the symmetry of the site. Summed over the sites of a primitive cell with N atoms and a point
group of order G this goes as N / G, times the atoms N that are displaced. Crystals of elements, chemical systems and
space groups that have been chosen already are put back, and 70, 15 and 15 % are of the training, validation and test
split, so that the start of the list is already a fair sample.

Left out: crystals of which ``data/defectnet-sim-v1`` has fewer than half of the wished pairs (unstable ones among
them), those that `read_structure` refuses (vacuum between layers), and molecular ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import spglib
from ase import Atoms

from defectnet.crystal.hosts import Host, read_hosts
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.structures import SYMPREC, bonded_directions, read_structure
from defectnet.data.shards import AS_IS, shard_files
from defectnet.data.splits import Split, split_of
from defectnet.elements import VOCABULARY
from defectnet.errors import SimulationError
from defectnet.files import replacing

DATA = Path(__file__).parents[1] / "data"

QUOTAS: dict[Split, float] = {"train": 0.7, "val": 0.15, "test": 0.15}

PAIRS = 4
"""Least pairs as they are, of 8 wished, in the data set."""

AGAIN = {"element": 0.12, "system": 1.5, "spacegroup": 0.08}
"""What is added to the logarithm of the cost for each chosen crystal with an element (mean over the host's), the
chemical system or the space group of the candidate."""

FEWEST, MOST = 8, 12
"""Dopants of a crystal."""

PLAUSIBLE = 0.75
"""Share of the dopants that are plausible; the others are any element on any site."""


@dataclass(frozen=True)
class Candidate:
    """A host with what decides its place.

    Attributes:
        host: The crystal as listed.
        elements: Of the host.
        atoms: In the primitive cell.
        spacegroup: International number.
        cost: Estimated work, without a unit.
    """

    host: Host
    elements: tuple[str, ...]
    atoms: int
    spacegroup: int
    cost: float


def candidate(host: Host) -> Candidate | None:
    """Return a host with its cost, or None if it is no crystal to compute: refused when read, or molecular."""
    crystal = host.crystal
    try:
        found = read_structure(Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)).crystal
    except SimulationError:
        return None
    primitive = Atoms(found.numbers, positions=found.positions, cell=found.cell, pbc=True)
    if bonded_directions(primitive) == 0:
        return None
    cell: Any = (found.cell, found.frac, found.numbers)
    symmetry = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    cost = len(found) ** 2 / len(symmetry.rotations)
    return Candidate(host, tuple(host.chemical_system.split("-")), len(found), int(symmetry.number), cost)


def order(candidates: Iterable[Candidate], count: int) -> list[Candidate]:
    """Choose one after the other: of the split that lags most, the cheapest that is not too like those before."""
    candidates = list(candidates)
    left = {split: [one for one in candidates if split_of(one.host.chemical_system) == split] for split in QUOTAS}
    seen: Counter[str] = Counter()
    chosen: list[Candidate] = []
    taken = dict.fromkeys(QUOTAS, 0)
    while len(chosen) < count and any(left.values()):
        open_splits = [split for split in QUOTAS if left[split]]
        split = min(open_splits, key=lambda name: (taken[name] + 0.5) / QUOTAS[name])
        best = min(left[split], key=lambda one: (round(_price(one, seen), 9), one.host.id))
        left[split].remove(best)
        taken[split] += 1
        chosen.append(best)
        seen.update([*best.elements, best.host.chemical_system + " system", f"group {best.spacegroup}"])
    return chosen


def _price(one: Candidate, seen: Counter[str]) -> float:
    elements = float(np.mean([seen[symbol] for symbol in one.elements]))
    system, group = seen[one.host.chemical_system + " system"], seen[f"group {one.spacegroup}"]
    again = AGAIN["element"] * elements + AGAIN["system"] * system + AGAIN["spacegroup"] * group
    return float(np.log(one.cost)) + again


def dopants(host: Host) -> list[str]:
    """Return 8 to 12 dopants: three quarters plausible, the others arbitrary, by a generator seeded with the id."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(host.id.encode()).digest()[:8], "big"))
    count = int(rng.integers(FEWEST, MOST + 1))
    plausible = plausible_dopants(host.crystal, round(PLAUSIBLE * count))
    inside = host.chemical_system.split("-")
    others = sorted(set(VOCABULARY) - set(inside) - {one.split("@")[0] for one in plausible})
    drawn = rng.choice(others, size=count - len(plausible), replace=False)
    return [*plausible, *(f"{symbol}@{rng.choice(inside)}" for symbol in drawn)]


def yields(folder: Path) -> Counter[str]:
    """Return the number of pairs, as they are, of each host of a data set."""
    counts: Counter[str] = Counter()
    for shard in shard_files(folder):
        table = pq.read_table(shard, columns=["host_id", "variant"]).to_pydict()
        counts.update(
            host for host, variant in zip(table["host_id"], table["variant"], strict=True) if variant == AS_IS
        )
    return counts


def entry(one: Candidate) -> dict[str, Any]:
    """Return what the list says of a crystal."""
    return {
        "id": one.host.id,
        "formula": one.host.formula,
        "split": split_of(one.host.chemical_system),
        "atoms": one.atoms,
        "spacegroup": one.spacegroup,
        "cost": round(one.cost, 4),
        "dopants": dopants(one.host),
    }


def main() -> None:
    """Write the list, an entry a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    pairs = yields(DATA / "defectnet-sim-v1")
    hosts = [host for host in read_hosts(DATA / "hosts.json.xz") if pairs[host.id] >= PAIRS]
    found = [one for one in map(candidate, hosts) if one is not None]
    chosen = order(found, arguments.count)
    with replacing(arguments.out) as temporary:
        lines = ",\n".join(json.dumps(entry(one)) for one in chosen)
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(hosts)} of enough pairs, {len(found)} crystals, {len(chosen)} chosen")


if __name__ == "__main__":
    main()
