"""What samples of known content are worth where the pack's potential is not the sample's: error against their number.

    defectnet host make --structure list.json --dopants listed --out runs/packs-nep --potential defectnet-nep
    python benchmarks/standards_across.py --truth bundled --packs runs/packs-nep --json

For each crystal of the training and validation part that both have, samples are superposed from the pack of one
potential, each the mean of twelve cells with another placement, and asked with the pack of the other: one candidate,
and three. The same samples are asked about whatever the number of standards. The settings of `defectnet.inference` for
standards were chosen by such figures, so they are no test of them; the virtual labs (`standards.py`) are.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.pack import HostPack
from defectnet.data.packs import find_packs
from defectnet.errors import DefectNetError
from defectnet.inference.comparison import Standard
from defectnet.inference.emulator import CellSource
from defectnet.inference.instrument import InstrumentMap
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.spectrum import Spectrum

FloatArray = NDArray[np.float64]

CELLS, ATOMS = 12, 64
"""Superposed cells of a sample, and atoms wished in each."""

POINTS, FWHM, AXIS, NOISE = 600, 0.03, 1.03, 0.02
"""Of the instrument: points up to 1.6 edges, FWHM in edges, factor of its energies, noise of the highest value."""

LOWEST, HIGHEST = 0.02, 0.2
"""Total concentrations of the samples, drawn log-uniformly."""


def crystals(truth: str, packs: Path) -> dict[str, tuple[Path, Path]]:
    """Return host -> packs of both potentials, of those that are not of the test part."""
    sides = [{one.id: one for one in find_packs(where)} for where in (truth, packs)]
    shared = sides[0].keys() & sides[1].keys()
    return {
        host: (sides[0][host].folder, sides[1][host].folder)
        for host in sorted(shared)
        if sides[0][host].split != "test"
    }


def samples(pack: HostPack, names: list[str], count: int, rng: np.random.Generator) -> list[Standard]:
    """Return samples with one or two of the dopants, as the instrument shows them."""
    source = CellSource(pack, names, atoms=ATOMS)
    edge = pack.host.band_edge_mev
    instrument = InstrumentMap(np.linspace(0.0, 1.6, POINTS + 1), FWHM)

    def measured(dos: FloatArray) -> Spectrum:
        noise = NOISE * np.sqrt(dos * dos.max()) * rng.normal(size=dos.shape)
        return Spectrum(AXIS * edge * instrument.middle, np.maximum(dos + noise, 0.0), "meV")

    out: list[Standard] = []
    while len(out) < count:
        chosen = rng.choice(len(names), rng.integers(1, min(len(names), 2) + 1), replace=False)
        wished = np.zeros(len(names))
        wished[chosen] = np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST))) * rng.dirichlet(np.ones(len(chosen)))
        cells = source.draw(np.repeat(wished[None], CELLS, axis=0), rng)
        if cells.left_out > 2:
            continue
        host, doped = (instrument.seen(cells.elements, dos) for dos in (cells.pristine[cells.source], cells.doped))
        content = cells.concentration.mean(0)
        amounts = {name: float(x) for name, x in zip(names, content, strict=True) if x > 0}
        out.append(Standard(measured(host.mean(0)), measured(doped.mean(0)), amounts))
    return out


def asked(truth: HostPack, pack: HostPack, candidates: int, sizes: list[int], most: int) -> list[dict[str, Any]]:
    """Return, for each number of standards and sample, what is true and what is said of each candidate."""
    rng = np.random.default_rng([zlib.crc32(truth.host.id.encode()), candidates])
    names: list[str] = []
    for name in rng.permutation([name for name in truth.dopants if name in pack.dopants]):
        if str(name).partition("@")[0] not in {one.partition("@")[0] for one in names}:
            names.append(str(name))
    if len(names) < candidates:
        return []
    known = KnownCrystal(pack, names[:candidates])
    made = samples(truth, names[:candidates], max(sizes) + most, rng)
    found = []
    for size in sizes:
        for one in made[max(sizes) :]:
            answer = known.identify(one.host, one.doped, standards=made[:size], sample_atoms=float(CELLS * ATOMS))
            p = answer.posterior
            amounts = {name.partition("@")[0]: x for name, x in one.dopants.items()}
            true = [amounts.get(symbol, 0.0) for symbol in p.elements]
            found.append({"size": size, "true": true, **{k: getattr(p, k).tolist() for k in ("mean", "low", "high")}})
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return errors over those of answering zero, crystal by crystal, and how often intervals cover."""
    ratio, covered = [], []
    for host in sorted({row["host"] for row in rows}):
        true, mean, low, high = (
            np.array([row[name] for row in rows if row["host"] == host]) for name in ("true", "mean", "low", "high")
        )
        ratio.append(np.abs(true - mean).mean() / true.mean())
        covered += list(((low <= true) & (true <= high))[true > 0])
    return {
        "crystals": len(ratio),
        "samples": len(rows),
        "mae_over_zero": round(float(np.mean(ratio)), 3),
        "mae_over_zero_geometric_mean": round(float(np.exp(np.mean(np.log(ratio)))), 3),
        "coverage": round(float(np.mean(covered)), 3),
    }


def main() -> None:
    """Ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", required=True, help="packs of the samples' potential: a folder, or bundled")
    parser.add_argument("--packs", type=Path, required=True, help="packs that are asked")
    parser.add_argument("--hosts", nargs="+", help="only these")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1, 2, 5, 10])
    parser.add_argument("--asked", type=int, default=3, help="samples that are asked about, of each crystal")
    parser.add_argument("--json", action="store_true", help="what is printed anyway")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for host, (truth, packs) in crystals(chosen.truth, chosen.packs).items():
        if chosen.hosts and host not in chosen.hosts:
            continue
        for candidates in (1, 3):
            try:
                found = asked(HostPack.load(truth), HostPack.load(packs), candidates, chosen.sizes, chosen.asked)
            except DefectNetError as error:
                print(f"{host}: {error}", file=sys.stderr, flush=True)
                continue
            rows += [{"host": host, "candidates": candidates, **one} for one in found]
            print(f"{host}, {candidates}: {len(found)} answers", file=sys.stderr, flush=True)
    out = {
        f"candidates_{n}": {
            str(size): summary([row for row in rows if row["candidates"] == n and row["size"] == size])
            for size in chosen.sizes
        }
        for n in (1, 3)
    }
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
