"""What storing one byte a bin costs: shape of the spectra, and errors of a checkpoint.

    python benchmarks/quantisation.py --data data/defectnet-sim-v1 --potential nep89 --rows 60

Test rows are simulated again from what is stored, in full precision, and compared with what the data set holds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.batch import Batch, Targets
from defectnet.benchmark.metrics import CalibratedModel, evaluate
from defectnet.config import STORAGE_GRID
from defectnet.data.candidates import TrackSettings, question
from defectnet.data.dataset import targets_of
from defectnet.data.measurement import Measurement, broaden, measure, measurement_named, row_rng, weighted_dos
from defectnet.data.shards import Sample, decoded, read_shard
from defectnet.elements import composition
from defectnet.encode import stack
from defectnet.errors import ShardError
from defectnet.hub import from_pretrained
from defectnet.models.base import DefectModel
from defectnet.potentials.potential import load_potential
from defectnet.simulate.regenerate import differences, regenerate
from defectnet.simulate.rows import SimulationSettings

FWHM_MEV = 1.0
"""Resolution at which shapes are also compared: finer than nearly any instrument's."""


def chosen(folder: Path, rows: int, seed: int) -> list[Sample]:
    """Return random rows of the test split."""
    found = [s for path in sorted(folder.glob("shard-*.parquet")) for s in read_shard(path) if s.split == "test"]
    if len(found) < rows:
        raise ShardError(f"{folder} has {len(found)} test rows, {rows} are wanted", fix="Use --rows with fewer")
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in order[:rows]]


def shape(first: Sample, second: Sample, *, fwhm_mev: float, kind: str) -> float:
    """Return the total-variation distance of the doped spectra of two versions of a row."""
    curves = []
    for sample in (first, second):
        curve = weighted_dos(sample.doped_elements, sample.doped_dos, kind).astype(np.float32)
        if fwhm_mev:
            curve = broaden(curve[None, None], np.array([sample.edge_mev]), np.array([fwhm_mev]), np.array([1.0]))[0, 0]
        curves.append(curve.astype(float))
    return float(0.5 * np.abs(curves[0] - curves[1]).sum() * STORAGE_GRID.width)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, 90th percentile and maximum."""
    found: NDArray[np.float64] = np.quantile(values, [0.5, 0.9, 1.0])
    return dict(zip(("median", "90 %", "largest"), (float(f"{v:.3g}") for v in found), strict=True))


def batches(samples: Sequence[Sample], model: DefectModel, measurement: Measurement) -> tuple[Batch, Targets]:
    """Measure rows, each from its own generator, and name candidates as the benchmark does."""
    rows = []
    for sample in samples:
        pair = measure(sample, measurement, row_rng("measurement", sample.row_id), grid=model.spec.grid)
        rng = row_rng("candidates", sample.row_id)
        asked, given = question(sample.host_elements, sample.dopants, "candidates", TrackSettings(), rng)
        rows.append(
            Batch(
                host=torch.from_numpy(pair.host)[None],
                doped=torch.from_numpy(pair.doped)[None],
                edge_mev=torch.tensor([pair.edge_mev], dtype=torch.float32),
                composition=torch.from_numpy(composition(sample.formula).astype(np.float32))[None],
                candidates=torch.from_numpy(asked)[None],
                candidates_given=torch.tensor([given]),
                kind=torch.tensor([pair.kind]),
            )
        )
    return stack(rows), targets_of(samples)


def errors(samples: Sequence[Sample], model: DefectModel, condition: str) -> dict[str, float | None]:
    """Return a checkpoint's main errors on rows."""
    batch, targets = batches(samples, model, measurement_named(condition))
    found = evaluate(CalibratedModel(model), [(batch, targets, torch.arange(len(samples)))], "candidates")
    return {"mae": found["concentration"]["mae"], "ap_micro": found["identity"]["ap_micro"]}


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of shards")
    parser.add_argument("--potential", default="nep89", help="the one that the data set was made with")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default="defectnet-small")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = SimulationSettings.read(options.data / "dataset.json")
    potential = load_potential(options.potential)
    stored = chosen(options.data, options.rows, options.seed)
    exact = [regenerate(sample, potential, settings) for sample in stored]
    model = from_pretrained(options.checkpoint)
    shapes: dict[str, Any] = {
        f"{kind}, {fwhm_mev:g} meV": quantiles(
            [shape(a, b, fwhm_mev=fwhm_mev, kind=kind) for a, b in zip(exact, stored, strict=True)]
        )
        for kind in ("total", "neutron-weighted")
        for fwhm_mev in (0.0, FWHM_MEV)
    }
    report = {
        "rows": len(stored),
        "rows that differ when made again": sum(bool(differences(a, b)) for a, b in zip(stored, exact, strict=True)),
        "total_variation": shapes,
        "checkpoint": options.checkpoint,
        "errors": {
            condition: {
                "full precision": errors(exact, model, condition),
                "as stored": errors([decoded(sample) for sample in exact], model, condition),
            }
            for condition in ("clean", "lab")
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
