"""Other ways to infer what is in a known crystal, beside `defectnet.inference`, on the same full simulations.

    python benchmarks/known_crystal.py --hosts 3                  # makes packs and full simulations of one potential
    python benchmarks/inference_rivals.py --data runs/known-crystal/data-3-6-128 --packs runs/known-crystal/packs --json

All know the potential, and learn from superposed cells of the same pack, each host by itself:

- `inference`: ours, with `same_potential`.
- `responses`: linear with saturation, `defectnet finetune` (`MeasuredResponses`) fed with superposed pairs.
- `gaussian process`: a Gaussian process in the concentrations for the leading components of the change
  (scikit-learn), all subsets up to three by least squares, weighed by BIC.
- `neural posterior`: neural posterior estimation on the same components (package sbi; left out where it is missing).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.metrics import average_precision_score, r2_score

from defectnet import from_pretrained
from defectnet.config import MODEL_GRID, STORAGE_GRID
from defectnet.crystal.pack import HostPack
from defectnet.data.packs import find_packs
from defectnet.data.shards import Row, Sample, projected_pairs, read_shard, shard_files
from defectnet.elements import INDEX
from defectnet.inference.emulator import HIGHEST, LOWEST, draw_concentrations
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.lab.data import EncodedPairs
from defectnet.lab.jobs import Job, run_jobs
from defectnet.lab.table import LabPair
from defectnet.measure.forward import measure_pairs
from defectnet.measure.settings import CLEAN
from defectnet.rng import row_rng
from defectnet.spectrum import Spectrum
from virtual_lab import METHODS, answer

try:
    import sbi.inference
    import sbi.utils
except ImportError:
    sbi = None

FloatArray = NDArray[np.float64]
Answer = tuple[FloatArray, FloatArray]
"""(K,) probabilities and expected concentrations."""

OUT = Path(__file__).parents[1] / "runs" / "rivals"

COMPONENTS = 16
"""Leading components of the change in superposed cells."""

PAIRS = 60
"""Superposed pairs that `responses` learns from: more are no use to a few coefficients for each dopant."""

SIMULATIONS = 3000
"""Superposed cells for the neural posterior."""


class Host:
    """A crystal, its superposed cells, and a row as it is compared with them."""

    def __init__(self, pack: HostPack) -> None:
        self.known = KnownCrystal(pack, pack.dopants, unlisted=0)
        self.elements = [name.partition("@")[0] for name in pack.dopants]
        self.edge = pack.host.band_edge_mev
        self._learnt: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what is learnt once for all rows of the host."""
        if name not in self._learnt:
            self._learnt[name] = make()
        return self._learnt[name]

    def changes(self, row: Sample, cells: Any) -> tuple[FloatArray, FloatArray]:
        """Return the (M,) change of a row and the (N, M) of cells, in the bins that inference uses."""
        seen = self.known.compare(*pair(row), None, row.edge_mev, True)
        host = seen.instrument.seen(cells.elements, cells.pristine)[cells.source]
        return seen.change, seen.instrument.seen(cells.elements, cells.doped) - host


def pair(row: Sample) -> tuple[Spectrum, Spectrum]:
    """Return the spectra of a row as the benchmark shows them, clean."""
    rng = row_rng("rivals", row.row_id)
    seen = measure_pairs(projected_pairs([Row.of(row)]), CLEAN, [rng], grid=MODEL_GRID)
    energies = MODEL_GRID.centres * float(seen.edge_mev[0])
    host, doped = (Spectrum(energies, dos[0].astype(float), "meV") for dos in (seen.host, seen.doped))
    return host, doped


def onto_components(changes: FloatArray, concentration: FloatArray) -> FloatArray:
    """Return the (C, M) leading components of changes, in units of what placement scatters in each at 1 at.%."""
    weight = 1.0 / np.sqrt(concentration.sum(1, keepdims=True))
    directions = np.linalg.svd(changes * weight, full_matrices=False)[2][:COMPONENTS]
    found = changes @ directions.T
    fit = np.linalg.lstsq(concentration * weight, found * weight, rcond=None)[0]
    scatter = 0.1 * np.std((found - concentration @ fit) * weight, axis=0)
    return np.asarray(directions / scatter[:, None])


def by_inference(host: Host, row: Sample) -> Answer:
    """Answer as the project does."""
    found = host.known.identify(*pair(row), edge_mev=row.edge_mev, same_potential=True, sample_atoms=float(row.atoms))
    return found.posterior.probability, found.posterior.mean


def by_responses(host: Host, row: Sample) -> Answer:
    """Answer by responses and their saturation, learnt from superposed pairs as a laboratory learns from its own."""

    def learn() -> Any:
        cells, base = host.known.cells, from_pretrained("defectnet-small")
        energies = STORAGE_GRID.centres * host.edge
        made = []
        for n in range(min(PAIRS, len(cells.doped))):
            spectra = (
                Spectrum(energies, dos.sum(0), "meV") for dos in (cells.pristine[cells.source[n]], cells.doped[n])
            )
            amounts = zip(host.elements, cells.concentration[n], strict=True)
            dopants = {symbol: float(x) for symbol, x in amounts if x > 0}
            made.append(LabPair(f"cell {n}", *spectra, row.formula, dopants, tuple(host.elements)))
        out = OUT / row.host_id
        out.mkdir(parents=True, exist_ok=True)
        job = Job("responses", out, base, EncodedPairs(made, base.spec.grid), METHODS["responses"].training)
        run_jobs([job])
        return job.result()

    model = host.once("responses", learn)
    asked = LabPair("row", *pair(row), row.formula, dict(row.concentrations), tuple(host.elements))
    found = answer(model, [EncodedPairs([asked], model.spec.grid).item([0], "candidates")])
    at = [INDEX[symbol] for symbol in host.elements]
    return found.output.identity_logits[0, at].sigmoid().double().numpy(), found.expected_concentration[
        0, at
    ].double().numpy()


def by_gaussian_process(host: Host, row: Sample) -> Answer:
    """Answer by subsets under a Gaussian process in the concentrations."""
    cells = host.known.cells
    change, changes = host.changes(row, cells)
    onto = onto_components(changes, cells.concentration)
    seen, found = onto @ change, changes @ onto.T
    k, spread = cells.concentration.shape[1], found.std(0)
    # Learnt for each row: its bins are its own.
    kernel = ConstantKernel(1.0) * RBF(np.full(k, 0.2), (0.02, 5.0)) + WhiteKernel(0.01)
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=0).fit(cells.concentration, found / spread)

    def rest(c: FloatArray, subset: tuple[int, ...]) -> FloatArray:
        place = np.zeros((1, k))
        place[0, list(subset)] = c
        scatter = np.sqrt(1.0 + 100.0 * c.sum() * 100.0 / row.atoms)
        return np.asarray((process.predict(place)[0] * spread - seen) / scatter)

    subsets = [s for size in range(4) for s in combinations(range(k), size)]
    scores, places = [], []
    for subset in subsets:
        c = np.zeros(0)
        if subset:
            start = np.full(len(subset), 0.02)
            c = least_squares(rest, start, bounds=(LOWEST, HIGHEST), args=(subset,), max_nfev=30).x
        misfit = float((rest(c, subset) ** 2).sum())
        scores.append(-0.5 * misfit - 0.5 * len(subset) * np.log(COMPONENTS))
        places.append(c)
    weight = np.exp(np.array(scores) - max(scores))
    weight /= weight.sum()
    probability, mean = np.zeros(k), np.zeros(k)
    for subset, c, w in zip(subsets, places, weight, strict=True):
        probability[list(subset)] += w
        mean[list(subset)] += w * c
    return probability, mean


def by_neural_posterior(host: Host, row: Sample) -> Answer:
    """Answer by samples of a neural posterior of the logarithms of concentrations, small ones standing for none."""
    k = len(host.elements)

    def draw() -> Any:
        rng = np.random.default_rng(5)
        return host.known.source.draw(draw_concentrations(host.known.source.room, SIMULATIONS, rng), rng)

    cells = host.once("cells", draw)
    change, changes = host.changes(row, cells)

    def learn() -> tuple[FloatArray, Any]:
        onto = onto_components(changes, cells.concentration)
        rng = np.random.default_rng(6)
        small = np.exp(rng.uniform(np.log(1e-5), np.log(LOWEST), cells.concentration.shape))
        amounts = np.log(np.where(cells.concentration > 0.0, cells.concentration, small))
        prior = sbi.utils.BoxUniform(torch.full((k,), float(np.log(1e-5))), torch.full((k,), float(np.log(0.3))))
        OUT.mkdir(parents=True, exist_ok=True)
        with chdir(OUT), redirect_stdout(sys.stderr):  # it logs where it is called, and tells each epoch
            inference = sbi.inference.NPE(prior=prior)
            torch.manual_seed(0)
            inference.append_simulations(torch.tensor(amounts).float(), torch.tensor(changes @ onto.T).float())
            return onto, inference.build_posterior(inference.train())

    onto, posterior = host.once(f"posterior in {len(change)} bins", learn)
    seen = onto @ change
    torch.manual_seed(1)
    samples = posterior.sample((2000,), x=torch.tensor(seen).float(), show_progress_bars=False).exp().numpy()
    there = samples > LOWEST
    return there.mean(0), np.where(there, samples, 0.0).mean(0)


RIVALS: dict[str, Callable[[Host, Sample], Answer]] = {
    "inference": by_inference,
    "responses": by_responses,
    "gaussian process": by_gaussian_process,
    **({"neural posterior": by_neural_posterior} if sbi is not None else {}),
}


def summary(rows: list[tuple[FloatArray, FloatArray, FloatArray]], seconds: float) -> dict[str, float]:
    """Return the figures of the project's table; rows are true concentrations, probabilities, expected ones."""
    true, probability, mean = (np.array(column) for column in zip(*rows, strict=True))
    one = (true > 0).sum(1) == 1
    first = probability[one].argmax(1) == true[one].argmax(1)
    return {
        "mae_over_zero": round(float(np.abs(true - mean).mean() / true.mean()), 3),
        "r2": round(float(r2_score(true.ravel(), mean.ravel())), 3),
        "average_precision": round(float(average_precision_score((true > 0).ravel(), probability.ravel())), 3),
        "one_dopant_first": round(float(first.mean()), 3),
        "seconds_a_row": round(seconds / len(rows), 2),
    }


def main() -> None:
    """Ask all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="full simulations")
    parser.add_argument("--packs", type=Path, required=True, help="packs of the same potential")
    parser.add_argument("--rivals", nargs="+", choices=sorted(RIVALS), default=list(RIVALS))
    parser.add_argument("--json", action="store_true", help="what is printed anyway")
    chosen = parser.parse_args()
    samples = [row for path in shard_files(chosen.data) for row in read_shard(path)]
    hosts = {one.id: Host(HostPack.load(one.folder)) for one in find_packs(chosen.packs)}
    out: dict[str, Any] = {"rows": len(samples), "hosts": len(hosts)}
    for name in chosen.rivals:
        rows, begin = [], time.process_time()
        for row in samples:
            host = hosts[row.host_id]
            true = np.array([row.concentrations.get(symbol, 0.0) for symbol in host.elements])
            rows.append((true, *RIVALS[name](host, row)))
            print(name, row.row_id, np.round(true, 3), np.round(rows[-1][2], 3), file=sys.stderr, flush=True)
        out[name] = summary(rows, time.process_time() - begin)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
