"""The crystals of `data/pack-order.json` with their structures: what `defectnet host make` reads.

python benchmarks/pack_list.py --first 40 --out runs/pack-list.json
defectnet host make --structure runs/pack-list.json --dopants listed --starts 1 --out runs/packs --workers 2

Killed, the second command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

from defectnet.files import replacing

DATA = Path(__file__).parents[1] / "data"


def ordered(data: Path) -> list[tuple[dict[str, Any], str]]:
    """Return the crystals of the order in a folder, each with structure and dopants, and the split that it is of."""
    with lzma.open(data / "hosts.json.xz", "rt", encoding="utf-8") as file:
        structures = {one["id"]: one for one in json.load(file)}
    order = json.loads((data / "pack-order.json").read_text(encoding="utf-8"))
    return [({**structures[one["id"]], "dopants": one["dopants"]}, one["split"]) for one in order]


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=None, help="only so many, from the top of the order")
    parser.add_argument("--skip", type=int, default=0, help="not the first ones")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    entries = [entry for entry, _ in ordered(DATA)][chosen.skip :][: chosen.first]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(chosen.out) as temporary:
        temporary.write_text(json.dumps(entries) + "\n", encoding="utf-8")
    print(f"{len(entries)} crystals")


if __name__ == "__main__":
    main()
