r"""The published regime: pairs are split by spectrum, so that each crystal of a question has been seen in training.

    python benchmarks/paper_regime.py --make runs/paper-regime/data     # defectnet-sim-v1, split anew
    D="--data.folder runs/paper-regime/data"; R=runs/paper-regime/defectnet-base
    defectnet fit -c configs/defectnet-base.yaml $D --trainer.default_root_dir $R \
      --trainer.callbacks.init_args.dirpath $R                          # and so with paper-defectnet
    defectnet export --run $R/best.ckpt --data runs/paper-regime/data --out runs/paper-regime/export/defectnet-base
    defectnet benchmark --data runs/paper-regime/data --track candidates --out runs/paper-regime/results \
      --model ./runs/paper-regime/export/defectnet-base --model ./runs/paper-regime/export/paper-defectnet
    python benchmarks/paper_regime.py --results runs/paper-regime/results                # paper-regime.json

Everywhere else a crystal's chemical system is in one split alone. Here a pair is (80/10/10 % by sha256 of its row id,
its randomised stiffness along with it), as the published code splits, and nothing else is changed; so the figures of
this column say what a network knows of crystals that it was trained on, and are not to be set beside the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from defectnet.data.shards import Sample, read_extra, read_shard, shard_files, write_shard
from defectnet.data.splits import Split

ROOT = Path(__file__).parents[1]


def split_by_spectrum(sample: Sample) -> Split:
    """Return the split of a pair, by its row id; rows of randomised stiffness go with the row that they vary."""
    key = "/".join(sample.row_id.split("/")[:2])
    fraction = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") / 2**64
    return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"


def make(source: Path, out: Path) -> dict[str, int]:
    """Write the shards of a data set with pairs split by spectrum; return rows of each split and unseen test rows."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "dataset.json", out / "dataset.json")
    rows: dict[str, int] = {"train": 0, "val": 0, "test": 0}
    seen: set[str] = set()
    tested: list[str] = []
    for path in shard_files(source):
        samples = [replace(sample, split=split_by_spectrum(sample)) for sample in read_shard(path)]
        for sample in samples:
            rows[sample.split] += 1
            if sample.split == "train":
                seen.add(sample.host_id)
            elif sample.split == "test":
                tested.append(sample.host_id)
        write_shard(out / path.name, samples, read_extra(path))
    return {**rows, "test_of_unseen_crystals": sum(host not in seen for host in tested)}


def told(results: Path) -> dict[str, Any]:
    """Return the figures of the track `candidates` of each model that was measured."""
    out: dict[str, Any] = {}
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        for condition, found in result["results"]["candidates"].items():
            out.setdefault(path.stem, {"rows": result["data"]["rows"]})[condition] = {
                "mae_at_percent": round(found["concentration"]["mae"], 3),
                "r2": round(found["concentration"]["r2"], 3),
                "r2_one_dopant": round(found["one_dopant"]["r2"], 3),
                "average_precision": round(found["identity"]["ap_micro"], 3),
            }
    return out


def main() -> None:
    """Split anew, or tell the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--make", type=Path, metavar="DIR", help="folder to write the split data set to")
    asked.add_argument("--results", type=Path, metavar="DIR", help="folder of what `defectnet benchmark` measured")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "defectnet-sim-v1", help="data set to split")
    chosen = parser.parse_args()
    print(json.dumps(make(chosen.data, chosen.make) if chosen.make else told(chosen.results), indent=1))


if __name__ == "__main__":
    main()
