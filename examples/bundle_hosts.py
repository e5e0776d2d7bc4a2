"""Copy host packs of the zoo to where bundled packs are, under names that people know.

    defectnet host make --structure data/zoo.json --dopants listed --out packs --starts 1
    python examples/bundle_hosts.py packs

Crystals that the potential finds unstable have no pack and are left out.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from defectnet.crystal.pack import HostPack

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "checkpoints" / "hosts"


def bundled_names(entries: list[dict[str, str]]) -> dict[str, str]:
    """Return id -> name: the formula, with the prototype where several crystals have it."""
    formulas = Counter(entry["formula"] for entry in entries)
    return {
        entry["id"]: entry["formula"]
        if formulas[entry["formula"]] == 1
        else f"{entry['formula']}-{entry['prototype']}".replace(" ", "-")
        for entry in entries
    }


def main() -> None:
    """Copy, and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", type=Path)
    packs = parser.parse_args().packs
    entries = json.loads((ROOT / "data" / "zoo.json").read_text(encoding="utf-8"))
    missing = []
    names = bundled_names(entries)
    BUNDLED.mkdir(exist_ok=True)
    for entry in entries:
        if (packs / entry["id"] / "config.json").is_file():
            HostPack.load(packs / entry["id"]).save(BUNDLED / names[entry["id"]])
        else:
            missing.append(entry["id"])
    print(f"{len(entries) - len(missing)} packs; missing: {', '.join(missing) or 'none'}")


if __name__ == "__main__":
    main()
