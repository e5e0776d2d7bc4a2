"""What computed responses are worth to a network: the same questions with them, and with formula and spectra alone.

    D=data/defectnet-sim-v2
    python benchmarks/computed_responses.py --data $D/defectnet-nep --responses runs/responses --json

Each host's eight dopants that have a response are in question. With responses of the rows' own potential this is
in-world, with those of another cross-world. Beside the networks: non-negative least squares of the same responses,
brought into line with the same host, and the answer zero.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.metrics import average_precision_score
from torch.nn.functional import avg_pool1d
from torchmetrics.functional.classification import binary_calibration_error

from defectnet.batch import Batch, Estimate
from defectnet.data.candidates import TrackSettings
from defectnet.data.module import SpectraDataModule
from defectnet.hub import from_pretrained
from defectnet.models.base import DefectModel
from defectnet.nn.computed import BINS, Alignment

FloatArray = NDArray[np.float64]

CANDIDATES = 8


def questions(data: str, responses: str, split: str, condition: str) -> tuple[Batch, torch.Tensor]:
    """Return questions about the first dopants with a response of each host, and true concentrations (B, E)."""
    module = SpectraDataModule(data, tracks=TrackSettings(blind_share=0.0), responses=[responses])
    parts, true = [], []
    for item in module.evaluation(split, "candidates", condition):
        if item.batch.computed is None:
            continue
        known, there = item.batch.computed.known, item.targets.present
        chosen = known.any(1) & (known | ~there).all(1)
        parts.append(item.batch.rows(chosen))
        true.append(item.targets.true_concentration[chosen])
    batch, truth = Batch.join(parts), torch.cat(true)
    assert batch.computed is not None
    # What is there, and others by chance of the row's number alone.
    order = torch.rand(batch.candidates.shape, generator=torch.Generator().manual_seed(0))
    order = order * batch.computed.known + 2.0 * (truth > 0)
    candidates = torch.zeros_like(batch.candidates).scatter(1, order.topk(CANDIDATES).indices, True)
    return batch._replace(candidates=candidates & batch.computed.known), truth


def least_squares(batch: Batch, align: Alignment) -> Estimate:
    """Answer by non-negative least squares: amounts, and for probabilities their share in the change."""
    computed = batch.computed
    assert computed is not None
    host, doped = (avg_pool1d(x[:, None], x.shape[1] // BINS)[:, 0].double() for x in (batch.host, batch.doped))
    operator, _ = align(host.float(), computed.host)
    response = torch.einsum("bnl,bel->ben", operator, computed.response[:, :, 0]).double().numpy()
    amount, score = torch.zeros(2, *batch.candidates.shape, dtype=torch.float64)
    for i, (seen, found) in enumerate(zip((doped - host).numpy(), response, strict=True)):
        asked = np.flatnonzero(batch.candidates[i].numpy())
        a, _ = nnls(found[asked].T, seen)
        amount[i, asked] = torch.from_numpy(a)
        norm = np.linalg.norm(found[asked], axis=1) * a / (np.linalg.norm(seen) + 1e-9)
        score[i, asked] = torch.from_numpy(np.clip(norm, 0.0, 1.0))
    return Estimate(score, amount.clamp(0.0, 1.0))


def scores(found: Estimate, batch: Batch, truth: torch.Tensor) -> dict[str, Any]:
    """Return the figures of an answer."""
    asked = batch.candidates
    there = truth > 0
    p, c, t = (x[asked].double().numpy() for x in (found.probability, found.expected_concentration, truth))
    one = (there.sum(1) == 1)[:, None] & asked
    plenty = (there.sum(1) == 1) & (truth.sum(1) >= 0.02)
    first = found.probability.masked_fill(~asked, -1.0).argmax(1)
    x, y = (v[one].double().numpy() for v in (found.expected_concentration, truth))
    out: dict[str, Any] = {
        "average_precision": average_precision_score(t > 0, p),
        "mae_over_zero": np.abs(c - t).mean() / t.mean(),
        "r2": 1.0 - ((c - t) ** 2).sum() / ((t - t.mean()) ** 2).sum(),
        "r2_one_dopant": 1.0 - ((x - y) ** 2).sum() / ((y - y.mean()) ** 2).sum() if len(y) else None,
        "first_of_one_dopant": there[plenty].gather(1, first[plenty, None]).double().mean().item(),
        "calibration_error": binary_calibration_error(torch.from_numpy(p), torch.from_numpy(t > 0).long(), n_bins=10),
    }
    if found.low is not None and found.high is not None:
        present = there & asked
        low, high, true = (v[present].double() for v in (found.low, found.high, truth))
        out["coverage"] = ((low <= true + 1e-9) & (true <= high + 1e-9)).double().mean().item()
    return {name: None if value is None else round(float(value), 4) for name, value in out.items()}


def timed(model: DefectModel, batch: Batch) -> tuple[Estimate, float]:
    """Return the answer, and milliseconds for each question."""
    start = time.perf_counter()
    found = model.estimate(batch)
    return found, 1e3 * (time.perf_counter() - start) / len(batch.host)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of shards")
    parser.add_argument("--responses", required=True, help="folder of computed responses of its hosts")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", action="append", help="checkpoint; may be repeated")
    parser.add_argument("--condition", choices=("clean", "lab"), action="append")
    parser.add_argument("--json", action="store_true", help="what is printed anyway")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"data": Path(chosen.data).name, "responses": Path(chosen.responses).name}
    for condition in chosen.condition or ("clean", "lab"):
        batch, truth = questions(chosen.data, chosen.responses, chosen.split, condition)
        hosts = len({tuple(row.nonzero()[:, 0].tolist()) for row in batch.composition})
        told: dict[str, Any] = {"rows": len(truth), "hosts": hosts}
        for name in chosen.model or ["defectnet-small"]:
            model = from_pretrained(name)
            for label, asked in (("with responses", batch), ("formula only", batch._replace(computed=None))):
                found, ms = timed(model, asked)
                told[f"{model.name}, {label}"] = {**scores(found, batch, truth), "milliseconds": round(ms, 2)}
        told["least squares"] = scores(least_squares(batch, Alignment(model.spec.grid)), batch, truth)
        result[condition] = told
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
