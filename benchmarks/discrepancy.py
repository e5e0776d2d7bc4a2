"""How far two potentials disagree on what a dopant does to the DOS: what known-crystal inference must allow for.

    defectnet host make --structure data/zoo.json --dopants listed --starts 1 --out runs/nequix
    defectnet host make --structure data/zoo.json --dopants listed --starts 1 --out runs/nep --potential defectnet-nep
    python benchmarks/discrepancy.py runs/nequix runs/nep --json

Either folder's packs play nature once, and the other's are what is known. For each host in both, and each dopant, the
same cells with the same sites give the change of the DOS in both worlds; energies of what is known are mapped onto
nature's by the two hosts, as for a measured one. Of what is left the share of the squared change is told, and the
mixture of shares, length of correlation and factor between the two under which all of it is likeliest: hosts of the
training and validation split choose, those of the test split judge.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from defectnet.crystal.compositions import Composition, draw_occupation
from defectnet.crystal.pack import HostPack
from defectnet.crystal.spectra import host_dos
from defectnet.data.packs import find_packs
from defectnet.inference.emulator import CellSource
from defectnet.inference.instrument import InstrumentMap, fit_instrument
from defectnet.inference.known_crystal import COARSE, discrepancy_shape

FloatArray = NDArray[np.float64]
CONCENTRATION, CELLS, BIN, REACH = 0.04, 6, 0.02, 1.8
SHARES = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4])
LENGTHS, FACTORS, OWN = (0.03, 0.05, 0.08), (0.6, 0.7, 0.8), (0.2, 0.35, 0.5)
STEPS = 300


@dataclass(frozen=True)
class Response:
    """One dopant of one host: (M,) change in both worlds at one composition, and (M,) middles of the bins.

    `all_known` is (N, M): what is known of all dopants of the host.
    """

    host: str
    split: str
    dopant: str
    true: FloatArray
    known: FloatArray
    x: FloatArray
    all_known: FloatArray


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
    out: list[tuple[str, FloatArray, FloatArray]] = []
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
            out.append((name, true, known))
    every = np.array([known for _, _, known in out])
    return [Response(truth.host.id, split, name, true, known, instrument.middle, every) for name, true, known in out]


def log_likelihoods(found: list[Response], length: float, factor: float, own: float) -> FloatArray:
    """Return the (N, S) log likelihoods of what is left of responses under each of `SHARES`."""
    out = np.empty((len(found), len(SHARES)))
    for row, one in zip(out, found, strict=True):
        size = np.linalg.norm(one.known)
        known, rest = one.known / size, (one.true - factor * one.known) / size
        shape = discrepancy_shape(one.all_known, one.x, length)
        fixed = own**2 * np.outer(known, known) + 1e-3 * np.eye(len(known)) / len(known)
        for k, share in enumerate(SHARES):
            root = np.linalg.cholesky(fixed + share * shape)
            white = np.linalg.solve(root, rest)
            row[k] = -0.5 * float(white @ white) - float(np.log(np.diag(root)).sum())
    return out


def mixture(logs: FloatArray) -> FloatArray:
    """Return the (S,) probabilities of the shares under which (N, S) log likelihoods are largest: by EM."""
    weights = np.full(logs.shape[1], 1.0 / logs.shape[1])
    for _ in range(STEPS):
        share = logs + np.log(weights)
        weights = np.exp(share - logsumexp(share, axis=1, keepdims=True)).mean(0) + 1e-9
        weights /= weights.sum()
    return weights


def fit(found: list[Response]) -> tuple[float, tuple[float, float, float], FloatArray]:
    """Return the largest mean log likelihood, with length, factor and own deviation, and mixture, that it has."""
    best: tuple[float, tuple[float, float, float], FloatArray] | None = None
    for setting in product(LENGTHS, FACTORS, OWN):
        logs = log_likelihoods(found, *setting)
        weights = mixture(logs)
        value = float(logsumexp(logs + np.log(weights), axis=1).mean())
        if best is None or value > best[0]:
            best = value, setting, weights
    assert best is not None
    return best


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
            print(one.id, file=sys.stderr, flush=True)
            pair = HostPack.load(one.folder), HostPack.load(known[one.id].folder)
            found += responses(pair[0], pair[1], one.split) + responses(pair[1], pair[0], one.split)
    left = np.array([((r.true - r.known) ** 2).sum() / (r.known**2).sum() for r in found])
    value, setting, weights = fit([r for r in found if r.split != "test"])
    judging = [r for r in found if r.split == "test"]
    tested = logsumexp(log_likelihoods(judging, *setting) + np.log(weights), axis=1).mean() if judging else None
    result: dict[str, Any] = {
        "hosts": len({r.host for r in found}),
        "responses": len(found),
        "resolution": COARSE,
        "left": {str(q): round(float(np.quantile(left, q)), 3) for q in (0.1, 0.25, 0.5, 0.75, 0.9)},
        "correlation": round(float(np.median([np.corrcoef(r.true, r.known)[0, 1] for r in found])), 3),
        "amplitude": [round(float(np.quantile([amplitude(r) for r in found], q)), 3) for q in (0.1, 0.5, 0.9)],
        "length": setting[0],
        "factor": setting[1],
        "own": setting[2],
        "shares": {f"{share:g}": round(float(w), 3) for share, w in zip(SHARES, weights, strict=True)},
        "log_likelihood": round(value, 2),
        "log_likelihood_test": None if tested is None else round(float(tested), 2),
        "worst": [
            {"host": found[k].host, "dopant": found[k].dopant, "left": round(float(left[k]), 2)}
            for k in np.argsort(-left)[:10]
        ],
    }
    print(json.dumps(result, indent=1) if chosen.json else "\n".join(f"{k}: {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
