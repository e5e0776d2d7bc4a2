"""Make the example pair from one row of a data set.

python examples/make_example.py --data data/defectnet-sim-v2/defectnet-nep --row CdTe-zincblende/0004
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from defectnet.config import STORAGE_GRID
from defectnet.data.candidates import CONDITIONS
from defectnet.data.shards import Row, Sample, projected_pairs, read_shard, shard_files
from defectnet.errors import ShardError
from defectnet.files import replacing
from defectnet.measure.forward import measure_pairs
from defectnet.measure.settings import measurement_named
from defectnet.rng import row_rng
from defectnet.spectrum import KINDS, Spectrum

STEP_MEV = 0.25
REACH = 2.5  # of the band edge: until both spectra have long fallen to zero


def find_row(data: Path, row_id: str) -> Sample:
    """Return one row of a folder of shards."""
    for path in shard_files(data):
        for sample in read_shard(path):
            if sample.row_id == row_id:
                return sample
    raise ShardError(f"{data} has no row {row_id}", fix="Give a folder of shards and <host id>/<number>")


def measured_pair(sample: Sample, condition: str) -> dict[str, Spectrum]:
    """Measure a row under a condition of the benchmark, on a plain grid in meV."""
    pairs = projected_pairs([Row.of(sample)])
    measured = measure_pairs(pairs, measurement_named(condition), [row_rng(sample.row_id)], grid=STORAGE_GRID)
    edge = float(measured.edge_mev[0])
    energy = STORAGE_GRID.centres * edge
    plain = np.arange(0.0, REACH * edge, STEP_MEV)
    curves = {"host": measured.host[0], "doped": measured.doped[0]}
    kind = KINDS[int(measured.kind[0])]
    return {name: Spectrum(energy, dos, "meV", kind=kind).normalised().resampled(plain) for name, dos in curves.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write host.csv, doped.csv and answer.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--row", required=True, help="<host id>/<number>")
    parser.add_argument("--candidates", default="Hg,Mg,Mn,S,Se,Zn", help="what the demo names as possible dopants")
    parser.add_argument("--condition", choices=CONDITIONS, default="lab", help="how it is measured")
    parser.add_argument("--pack", default="CdTe", help="host pack that the demo asks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    chosen = parser.parse_args(arguments)
    sample = find_row(chosen.data, chosen.row)
    for name, spectrum in measured_pair(sample, chosen.condition).items():
        rows = [f"{e:.2f},{d:.6f}" for e, d in zip(spectrum.energy, spectrum.dos, strict=True)]
        with replacing(chosen.out / f"{name}.csv") as temporary:
            header = [f"# kind: {spectrum.kind}", "energy_meV,dos"]
            temporary.write_text("\n".join([*header, *rows]) + "\n", encoding="utf-8")
    answer = {
        "formula": sample.formula,
        "candidates": chosen.candidates,
        "pack": chosen.pack,
        "dopants": {symbol: round(share, 6) for symbol, share in sample.concentrations.items()},
        "row": sample.row_id,
        "split": sample.split,
        "atoms": sample.atoms,
        "potential": sample.potential,
    }
    with replacing(chosen.out / "answer.json") as temporary:
        temporary.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
