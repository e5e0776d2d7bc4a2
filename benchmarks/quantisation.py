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

from defectnet.config import STORAGE_GRID
from defectnet.data.dataset import View
from defectnet.data.shards import Row, Sample, decoded, manifest_file, projected_pairs, read_shard, shard_files
from defectnet.elements import NEUTRON_WEIGHT
from defectnet.errors import ShardError
from defectnet.hub import from_pretrained
from defectnet.lab.judge import average_precision
from defectnet.measure.broadening import broaden
from defectnet.measure.settings import measurement_named
from defectnet.models.base import DefectModel
from defectnet.potentials.potential import load_potential
from defectnet.simulate.regenerate import differences, regenerate
from defectnet.simulate.rows import SimulationSettings, read_settings

FWHM_MEV = 1.0
"""Resolution at which shapes are also compared: finer than nearly any instrument's."""


def chosen(folder: Path, rows: int, seed: int) -> list[Sample]:
    """Return random rows of the test split."""
    found = [s for path in shard_files(folder) for s in read_shard(path) if s.split == "test"]
    if len(found) < rows:
        raise ShardError(f"{folder} has {len(found)} test rows, {rows} are wanted", fix="Use --rows with fewer")
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[i] for i in order[:rows]]


def shape(first: Sample, second: Sample, *, fwhm_mev: float, kind: str) -> float:
    """Return the total-variation distance of the doped spectra of two versions of a row."""
    curves = []
    for sample in (first, second):
        pairs = projected_pairs([Row.of(sample)])
        weights = NEUTRON_WEIGHT[pairs.elements] if kind == "neutron-weighted" else np.ones(len(pairs.elements))
        curve = pairs.curves(weights)
        if fwhm_mev:
            curve = broaden(curve, pairs.edge_mev, np.array([fwhm_mev]), np.ones(1))
        curves.append(curve[0, 1].astype(float))
    return float(0.5 * np.abs(curves[0] - curves[1]).sum() * STORAGE_GRID.width)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, 90th percentile and maximum."""
    found: NDArray[np.float64] = np.quantile(values, [0.5, 0.9, 1.0])
    return dict(zip(("median", "90 %", "largest"), (float(f"{v:.3g}") for v in found), strict=True))


def errors(samples: Sequence[Sample], model: DefectModel, condition: str) -> dict[str, float]:
    """Return a checkpoint's main errors on rows: at.% over the candidates, and average precision over all of them."""
    view = View(model.spec.grid, measurement_named(condition))
    item = view.collate([Row.of(sample) for sample in samples], range(len(samples)), 0)
    output, asked = model.predict_batch(item.batch), item.batch.candidates
    error = (model.expected(output) - item.targets.true_concentration).abs()[asked]
    score, present = output.identity_logits[asked].double().numpy(), item.targets.present[asked].numpy()
    precision = average_precision(score, present, np.ones((1, len(score))))[0]
    return {"mae": 100.0 * float(error.mean()), "ap_micro": float(precision)}


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
    settings = read_settings(SimulationSettings, manifest_file(options.data))
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
