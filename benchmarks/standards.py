"""What standards are worth where the crystal is known: error against their number, beside measured responses alone.

    defectnet host make --structure data/zoo.json --dopants listed --out runs/packs      # or bundled packs
    python benchmarks/standards.py --lab GaAs --pack GaAs --json
    python benchmarks/standards.py --lab SiGe --pack Si --json

The virtual labs (`virtual_lab.py`) are measured as there, by an instrument whose energy axis reads 3 % too high; the
same samples are asked about, and the same ones learnt from in the same order. Candidates are all dopants of the lab
that the pack holds, for both ways; samples with others are left out. Answers are kept under `runs/`, so that a run goes
on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from defectnet import from_pretrained
from defectnet.crystal.pack import HostPack
from defectnet.inference.comparison import Standard
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.lab.data import EncodedPairs
from defectnet.lab.jobs import Job, run_jobs
from defectnet.lab.table import MIN_SAMPLES, LabPair, read_table
from defectnet.lab.virtual import as_is, write_lab
from virtual_lab import FAMILIES, FOLDER, INSTRUMENT, METHODS, RUNS, metrics, rows_of, split

ATOMS = {"SiGe": 36, "MgB2-Al": 36, "GaAs": 128, "LiAlO2": 128}
"""Atoms of the cells that the samples were simulated in, about: they scatter as no measured sample does, and the
inference is told so."""


def samples(lab: str) -> list[LabPair]:
    """Return the pairs of a lab as its instrument shows them."""
    table = RUNS / "labs" / lab
    if not table.exists():
        write_lab(table, as_is(FOLDER / lab), INSTRUMENT)
    return read_table(table)


def responses_alone(pairs: list[LabPair], learn: list[int], asked: list[int], size: int, out: Path) -> dict[str, float]:
    """Return the errors of measured responses, which know no crystal, from as many standards."""
    base = from_pretrained("defectnet-small")
    encoded = EncodedPairs(pairs, base.spec.grid)
    job = Job("responses", out, base, encoded.take(learn[:size]), METHODS["responses"].training)
    out.mkdir(parents=True, exist_ok=True)
    run_jobs([job])
    found = metrics(job.result(), [rows_of(encoded.item(range(len(pairs)), "candidates"), asked)])
    return {"mae_at_percent": round(found["mae"], 3)}


def study(lab: str, pack: HostPack, sizes: list[int], most: int, same: bool, out: Path) -> dict[str, Any]:
    """Return errors by number of standards."""
    pairs = samples(lab)
    held = {name.partition("@")[0] for name in pack.dopants}
    elements = sorted({symbol for pair in pairs for symbol in pair.dopants} & held)
    learn, asked = split(len(pairs), FAMILIES[lab].asked, 0)
    learn, asked = ([i for i in rows if set(pairs[i].dopants) <= held] for rows in (learn, asked))
    named = [replace(pair, candidates=tuple(elements)) for pair in pairs]
    known = KnownCrystal(pack, elements)
    rows = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for size in [size for size in sizes if size <= len(learn)]:
        standards = [Standard(pairs[i].host, pairs[i].doped, pairs[i].dopants) for i in learn[:size]]
        for i in asked[:most]:
            key = f"{size}/{pairs[i].sample}"
            if key in rows:
                continue
            answer = known.identify(
                pairs[i].host, pairs[i].doped, standards=standards, same_potential=same, sample_atoms=ATOMS[lab]
            )
            p = answer.posterior
            true = [pairs[i].dopants.get(symbol, 0.0) for symbol in p.elements]
            rows[key] = {name: getattr(p, name).tolist() for name in ("probability", "mean", "low", "high")}
            rows[key] |= {"true": true, "other": p.other}
            print(key, json.dumps(rows[key]["true"]), json.dumps(rows[key]["mean"]), file=sys.stderr, flush=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rows), encoding="utf-8")
    return {
        "candidates": elements,
        "potential": pack.host.potential,
        "same_potential": same,
        "standards": {
            str(size): summary([row for key, row in rows.items() if key.startswith(f"{size}/")])
            for size in sizes
            if any(key.startswith(f"{size}/") for key in rows)
        },
        "responses_alone": {
            str(size): responses_alone(named, learn, asked[:most], size, out.with_suffix(f".{size}"))
            for size in sizes
            if MIN_SAMPLES <= size <= len(learn)
        },
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean error over the candidates, that of answering zero, and how often intervals cover."""
    true, mean = (np.concatenate([row[name] for row in rows]) for name in ("true", "mean"))
    low, high = (np.concatenate([row[name] for row in rows]) for name in ("low", "high"))
    there = true > 0
    return {
        "samples": len(rows),
        "mae_at_percent": round(100 * float(np.abs(true - mean).mean()), 3),
        "zero_at_percent": round(100 * float(true.mean()), 3),
        "coverage": round(float(((low <= true) & (true <= high))[there].mean()), 3),
    }


def main() -> None:
    """Run a lab."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--pack", required=True, help="bundled name or folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1, 2, 5, 10, 20])
    parser.add_argument("--asked", type=int, default=20, help="most samples that are asked about")
    parser.add_argument(
        "--same-potential", action="store_true", help="the lab was simulated with the pack's potential; no standards"
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    pack = HostPack.load(chosen.pack)
    same = chosen.same_potential
    out = RUNS / "standards" / f"{chosen.lab}-{pack.host.potential}{'-same' if same else ''}.json"
    sizes = [0] if same else chosen.sizes
    print(json.dumps({chosen.lab: study(chosen.lab, pack, sizes, chosen.asked, same, out)}, indent=1))


if __name__ == "__main__":
    main()
