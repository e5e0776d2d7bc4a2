"""The published regime: pairs are split by spectrum, so that each crystal of a question has been seen in training.

    python benchmarks/paper_regime.py --make runs/paper-regime/data     # defectnet-sim-v1, split anew
    D=runs/paper-regime/data
    for n in defectnet-base defectnet-small paper-defectnet; do
      defectnet fit -c configs/$n.yaml --data.folder $D --trainer.default_root_dir runs/paper-regime/$n \\
        --trainer.callbacks.init_args.dirpath runs/paper-regime/$n
      defectnet export --run runs/paper-regime/$n/best.ckpt --data $D --out runs/paper-regime/export/$n
    done
    defectnet benchmark --data $D --track candidates --model runs/paper-regime/export/defectnet-base --model lightgbm ...

Everywhere else a crystal's chemical system is in one split alone. Here a pair is (80/10/10 % by sha256 of its row id, its
randomised stiffness along with it), as the published code splits, and nothing else is changed; so the figures of this
column say what a network knows of crystals that it was trained on, and are not to be set beside the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

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


def main() -> None:
    """Split anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "defectnet-sim-v1", help="data set to split")
    chosen = parser.parse_args()
    print(json.dumps(make(chosen.data, chosen.make), indent=1))


if __name__ == "__main__":
    main()
