"""Known-crystal inference on crystals of the test split: full simulations in, dopants and concentrations out.

    python benchmarks/known_crystal.py --hosts 8 --json                     # truth and force constants: defectnet-nep

For each host a pack is made of its `--candidates` likeliest dopants, and `--pairs` doped cells are relaxed and vibrated
in full, with one to three of them, 0.5 to 20 at.%. The pair of spectra, `--fwhm` of the edge wide, is then asked about.
Spectra are kept under `runs/`, so that a run goes on where it was. Answering zero is the measure: the mean of the true
concentrations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.crystal.compositions import Composition, draw_occupation
from defectnet.crystal.hosts import Host, read_hosts
from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.crystal.pack import HostPack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.superposition import Superposition
from defectnet.errors import SimulationError
from defectnet.inference.emulator import draw_concentrations
from defectnet.inference.instrument import InstrumentMap
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import modes, projected_dos, q_mesh
from defectnet.potentials.potential import load_potential
from defectnet.potentials.relax import relax
from defectnet.potentials.supercells import supercell_matrix
from defectnet.spectrum import Spectrum

ROOT = Path(__file__).parents[1]
FloatArray = NDArray[np.float64]


def chosen_hosts(count: int) -> list[Host]:
    """Return the first crystals of the order of packs that are of the test split."""
    listed = {host.id: host for host in read_hosts(ROOT / "data" / "hosts.json.xz")}
    order = json.loads((ROOT / "data" / "pack-order.json").read_text(encoding="utf-8"))
    return [listed[one["id"]] for one in order if one["split"] == "test"][:count]


def candidates(host: Host, count: int) -> tuple[str, ...]:
    """Return the likeliest dopants, each element once."""
    found: dict[str, str] = {}
    for name in plausible_dopants(host.crystal, 3 * count):
        found.setdefault(name.partition("@")[0], name)
    return tuple(found.values())[:count]


def simulate(pack: HostPack, pairs: int, atoms: int) -> list[dict[str, Any]]:
    """Return full simulations of doped cells: counts, and DOS of pristine and doped cell on `STORAGE_GRID`."""
    potential = load_potential(pack.host.potential)
    n, unit = len(pack.host.primitive), pack.host.band_edge_mev
    matrix = supercell_matrix(
        pack.host.primitive.cell, n, max(atoms, n), (int(0.75 * atoms), max(int(1.25 * atoms), 2 * n))
    )
    cell = Superposition(pack.host, pack.substitutions, matrix, q_mesh(n * round(abs(np.linalg.det(matrix)))))
    sites = cell.cell.crystal
    rng = np.random.default_rng(int.from_bytes(pack.host.id.encode()[-6:], "big"))
    pristine = modes(potential.force_constants(sites), sites, list(cell.q_points))
    host = projected_dos(pristine, sites, unit, STORAGE_GRID)[0].sum(0)
    room = np.array([(sites.numbers == pack.host.primitive.numbers[_site(pack, d)]).mean() for d in pack.dopants])
    wished = draw_concentrations(room, pairs, rng)
    wished *= np.minimum(1.0, 0.2 / wished.sum(1))[:, None]
    out = []
    for row in wished:
        occupation = draw_occupation(cell, Composition.of(pack.dopants, row), rng)
        if not occupation.sites:
            continue
        numbers = cell.numbers(occupation)
        rattled = Crystal(numbers, sites.cell, sites.positions + rng.normal(0.0, 0.01, sites.positions.shape))
        relaxed = relax(potential, rattled, cell="volume", tolerance=0.005)
        if not relaxed.converged:
            continue
        full = modes(potential.force_constants(relaxed.crystal), relaxed.crystal, list(cell.q_points))
        if full.imaginary_fraction > pristine.imaginary_fraction + 0.005:
            continue
        doped = projected_dos(full, cell.crystal(occupation), unit, STORAGE_GRID)[0].sum(0)
        counts = {x: occupation.dopants.count(x) / len(sites) for x in dict.fromkeys(occupation.dopants)}
        out.append({"true": counts, "host": host.tolist(), "doped": doped.tolist(), "atoms": len(sites)})
    return out


def _site(pack: HostPack, name: str) -> int:
    return next(site for x, site in pack.substitutions if f"{x}@{pack.replaced(site)}" == name)


def ask(pack: HostPack, rows: list[dict[str, Any]], fwhm: float, *, same: bool) -> list[dict[str, Any]]:
    """Return what is answered to each pair."""
    unit = pack.host.band_edge_mev
    known = KnownCrystal(pack)
    bins = np.arange(0.0, 2.2, 0.005)
    instrument = InstrumentMap(bins, fwhm)
    operator, middle = instrument.operator(), instrument.middle * unit
    out = []
    for row in rows:
        start = time.perf_counter()
        pair = [Spectrum(middle, operator @ np.array(row[name]), "meV") for name in ("host", "doped")]
        answer = known.identify(*pair, fwhm_mev=fwhm * unit, same_potential=same, sample_atoms=row["atoms"])
        p = answer.posterior
        true = np.array([row["true"].get(symbol, 0.0) for symbol in p.elements])
        there = true > 0
        out.append(
            {
                "host": pack.host.id,
                "true": {s: round(100 * c, 2) for s, c in row["true"].items()},
                "answer": {s: round(100 * float(c), 2) for s, c in zip(p.elements, p.mean, strict=True) if c > 1e-3},
                "probability": [round(float(v), 4) for v in p.probability],
                "present": there.tolist(),
                "truth": true.tolist(),
                "mean": p.mean.tolist(),
                "covered": ((p.low <= true) & (true <= p.high))[there].tolist(),
                "other": p.other,
                "verdict": answer.verdict,
                "seconds": time.perf_counter() - start,
            }
        )
    return out


def average_precision(probability: FloatArray, present: NDArray[np.bool_]) -> float:
    """Return the mean precision at each dopant that is there, by falling probability."""
    order = np.argsort(-probability, kind="stable")
    hits = present[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def calibration_error(probability: FloatArray, present: NDArray[np.bool_]) -> float:
    """Return the mean distance of stated probabilities from frequencies, in ten bins."""
    place = np.minimum((10 * probability).astype(int), 9)
    count, said, true = (np.bincount(place, w, 10) for w in (None, probability, present))
    return float(np.abs(said - true).sum() / count.sum())


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the project's table."""
    true, mean = (np.concatenate([row[name] for row in rows]) for name in ("truth", "mean"))
    probability = np.concatenate([row["probability"] for row in rows])
    single = [row for row in rows if sum(row["present"]) == 1]
    firm = [row for row in single if max(row["truth"]) >= 0.02]

    def r2(of: list[dict[str, Any]]) -> float | None:
        t, m = (np.concatenate([row[name] for row in of]) for name in ("truth", "mean")) if of else (None, None)
        return None if t is None else round(1.0 - float(((t - m) ** 2).sum() / ((t - t.mean()) ** 2).sum()), 3)

    return {
        "rows": len(rows),
        "hosts": len({row["host"] for row in rows}),
        "mae_at_percent": round(100 * float(np.abs(true - mean).mean()), 3),
        "mae_over_zero": round(float(np.abs(true - mean).mean() / true.mean()), 3),
        "r2": r2(rows),
        "r2_one_dopant": r2(single),
        "average_precision": round(average_precision(probability, true > 0), 3),
        "first_of_one_dopant": round(
            float(np.mean([np.argmax(r["probability"]) == np.argmax(r["truth"]) for r in single])), 3
        )
        if single
        else None,
        "first_of_one_dopant_from_2_percent": round(
            float(np.mean([np.argmax(r["probability"]) == np.argmax(r["truth"]) for r in firm])), 3
        )
        if firm
        else None,
        "coverage": round(float(np.mean(np.concatenate([row["covered"] for row in rows]))), 3),
        "calibration_error": round(calibration_error(probability, true > 0), 3),
        "seconds": round(float(np.median([row["seconds"] for row in rows])), 2),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--atoms", type=int, default=128)
    parser.add_argument("--fwhm", type=float, default=0.05)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "known-crystal")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for host in chosen_hosts(chosen.hosts):
        folder = chosen.out / host.id
        pairs = [tuple(name.split("@")) for name in candidates(host, chosen.candidates)]
        settings = MakeSettings(potential="defectnet-nep", starts=1)
        failed = make_packs([(host, pairs, folder)], settings)  # type: ignore[list-item]
        if failed:
            print(f"{host.id}: {failed[host.id]}", file=sys.stderr, flush=True)
            continue
        pack = HostPack.load(folder)
        try:
            path = chosen.out / f"{host.id}-{chosen.pairs}-{chosen.atoms}.json"
            if not path.exists():
                path.write_text(json.dumps(simulate(pack, chosen.pairs, chosen.atoms)), encoding="utf-8")
            found = ask(pack, json.loads(path.read_text(encoding="utf-8")), chosen.fwhm, same=True)
        except SimulationError as error:
            print(f"{host.id}: {error}", file=sys.stderr, flush=True)
            continue
        rows += found
        for row in found:
            shown = {k: row[k] for k in ("true", "answer", "other", "verdict")}
            print(host.id, host.formula, json.dumps(shown), file=sys.stderr, flush=True)
    result = {
        "in-world": summary(rows),
        "settings": {k: str(v) for k, v in vars(chosen).items() if k not in ("json", "out")},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
