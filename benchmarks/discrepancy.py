"""How far two potentials disagree on what a dopant does to the DOS: what known-crystal inference must allow for.

    defectnet host make --structure data/zoo.json --dopants listed --starts 1 --out runs/nequix
    defectnet host make --structure data/zoo.json --dopants listed --starts 1 --out runs/nep --potential defectnet-nep
    python benchmarks/discrepancy.py runs/nequix runs/nep --json

The first folder's packs play nature, the second's are what is known. For each host in both, and each dopant, the same
cells with the same sites give the change of the DOS in both worlds; energies of the second are mapped onto the first
by the two hosts, as for a measured one. Of what is left the share of the squared change is told, and the share and
correlation length under which all of it is likeliest: hosts of the training and validation split choose, others judge.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.compositions import Composition, draw_occupation
from defectnet.crystal.pack import HostPack
from defectnet.crystal.spectra import host_dos
from defectnet.data.packs import find_packs
from defectnet.inference.emulator import CellSource
from defectnet.inference.instrument import InstrumentMap, fit_instrument
from defectnet.inference.known_crystal import COARSE, discrepancy_shape

FloatArray = NDArray[np.float64]
CONCENTRATION, CELLS, BIN, REACH = 0.04, 6, 0.02, 1.8
SHARES = np.array([0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2])
LENGTHS = np.array([0.02, 0.03, 0.05, 0.08, 0.12, 0.2])


@dataclass(frozen=True)
class Response:
    """One dopant of one host: (M,) change in both worlds at one composition, and (M,) middles of the bins."""

    host: str
    split: str
    dopant: str
    true: FloatArray
    known: FloatArray
    x: FloatArray


def responses(truth: HostPack, pack: HostPack, split: str) -> list[Response]:
    """Return the responses of the dopants that both packs hold."""
    names = [name for name in pack.dopants if name in truth.dopants]
    if not names:
        return []
    scale = pack.host.band_edge_mev / truth.host.band_edge_mev
    bins = np.arange(0.0, REACH + 1e-9, BIN)
    # The truth is seen in its own unit; the same bins in the pack's are narrower by the ratio of the edges.
    seen = InstrumentMap(bins, COARSE)
    start = InstrumentMap(bins / scale, COARSE / scale)
    elements, dos = host_dos(truth, 0.01 * truth.host.band_edge_mev)
    measured = seen.seen(elements, dos) * scale
    instrument = fit_instrument(start, *host_dos(pack, 0.01 * pack.host.band_edge_mev), measured)
    one, other = CellSource(truth, names), CellSource(pack, names)
    out = []
    for name in names:
        found: list[tuple[FloatArray, FloatArray]] = []
        for number in range(CELLS):
            turn = number % len(one.superpositions)
            a, b = one.superpositions[turn], other.superpositions[turn]
            if not np.array_equal(a.cell.matrix, b.cell.matrix):
                continue
            composition = Composition.of([name], [CONCENTRATION])
            occupation = draw_occupation(a, composition, np.random.default_rng(number))
            changes = []
            for source, cell, eye in ((one, a, seen), (other, b, instrument)):
                doped = source.projected(cell.modes(occupation), cell.crystal(occupation))
                changes.append(eye.seen(source.elements, doped) - eye.seen(source.elements, source.pristine[turn]))
            found.append((changes[0] * scale, changes[1]))
        if found:
            true, known = (np.mean(column, axis=0) for column in zip(*found, strict=True))
            out.append(Response(truth.host.id, split, name, true, known, instrument.middle))
    return out


def log_likelihood(found: list[Response], share: float, length: float) -> float:
    """Return the mean log likelihood of what is left, per response."""
    total = 0.0
    for one in found:
        size = float((one.known**2).sum())
        covariance = share * size * discrepancy_shape(one.known[None], one.x, length)
        covariance += 1e-4 * size * np.eye(len(one.x)) / len(one.x) * 10
        rest = one.true - one.known
        _, log = np.linalg.slogdet(covariance)
        total += -0.5 * float(rest @ np.linalg.solve(covariance, rest)) - 0.5 * log
    return total / len(found)


def amplitude(one: Response) -> float:
    """Return the factor of the known response that fits the true one best."""
    return float(one.true @ one.known / (one.known @ one.known))


def main() -> None:
    """Compare two folders of packs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("truth", type=Path)
    parser.add_argument("packs", type=Path)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    known = {one.id: one for one in find_packs(chosen.packs)}
    found: list[Response] = []
    for one in find_packs(chosen.truth):
        if one.id in known:
            found += responses(HostPack.load(one.folder), HostPack.load(known[one.id].folder), one.split)
    left = np.array([((r.true - r.known) ** 2).sum() / (r.known**2).sum() for r in found])
    choosing = [r for r in found if r.split != "test"] or found
    grid = {(s, length): log_likelihood(choosing, s, length) for s in SHARES for length in LENGTHS}
    share, length = max(grid, key=grid.__getitem__)
    judging = [r for r in found if r.split == "test"]
    result: dict[str, Any] = {
        "hosts": len({r.host for r in found}),
        "responses": len(found),
        "resolution": COARSE,
        "left": {str(q): round(float(np.quantile(left, q)), 3) for q in (0.1, 0.25, 0.5, 0.75, 0.9)},
        "correlation": round(float(np.median([np.corrcoef(r.true, r.known)[0, 1] for r in found])), 3),
        "amplitude": [round(float(np.quantile([amplitude(r) for r in found], q)), 3) for q in (0.1, 0.5, 0.9)],
        "share": float(share),
        "length": float(length),
        "log_likelihood": round(grid[share, length], 2),
        "log_likelihood_test": round(log_likelihood(judging, share, length), 2) if judging else None,
        "worst": sorted(
            (
                {"host": r.host, "dopant": r.dopant, "left": round(float(v), 2)}
                for r, v in zip(found, left, strict=True)
            ),
            key=lambda row: -row["left"],
        )[:10],
    }
    print(json.dumps(result, indent=1) if chosen.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
