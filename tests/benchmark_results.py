"""Scores and results for tests of the benchmark: made up, seeded, of a skill that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np

from defectnet.benchmark.bootstrap import Resamples, replicate
from defectnet.benchmark.curves import curves
from defectnet.benchmark.metrics import summary
from defectnet.benchmark.results import KEPT, MAIN, SCHEMA_VERSION, interval
from defectnet.benchmark.scores import Facts, Scores
from defectnet.config import MODEL_GRID
from defectnet.elements import VOCABULARY

ELEMENTS = len(VOCABULARY)


def toy_scores(rows: int = 120, skill: float = 2.0, seed: int = 0, *, blind: bool = True, bands: bool = True) -> Scores:
    """Answers whose log-odds of present elements are raised by `skill`; 0 is guessing."""
    truth = np.random.default_rng(seed)
    count = truth.integers(0, 4, rows)
    present = np.zeros((rows, ELEMENTS), dtype=bool)
    for row, n in enumerate(count):
        present[row, truth.choice(ELEMENTS, n, replace=False)] = True
    true = np.where(present, np.exp(truth.uniform(np.log(0.004), np.log(0.2), present.shape)), 0.0)
    asked = present | (truth.random(present.shape) < (0.95 if blind else 0.05))
    asked[:, 0] = True
    ratio = np.where(present, np.exp(truth.normal(0.0, 0.8, present.shape)), np.nan)
    said = np.random.default_rng([seed, 1])
    odds = -2.0 + skill * present + said.normal(0.0, 1.0, present.shape)
    probability = 1.0 / (1.0 + np.exp(-odds))
    noise = np.exp(said.normal(0.0, 1.0 / (1.0 + skill), present.shape))
    amount = np.clip(np.where(present, true, 0.02) * noise, 0.0, 0.9)
    return Scores(
        probability=np.where(asked, probability, -1.0),
        expected=np.where(asked, probability * amount, 0.0),
        amount=np.where(asked, amount, 0.0),
        asked=asked,
        present=present,
        true=true,
        low=0.5 * amount if bands else None,
        high=1.6 * amount if bands else None,
        facts=Facts(
            row_id=np.array([f"host-{row // 3}/{row % 3}" for row in range(rows)]),
            host_id=np.array([f"host-{row // 3}" for row in range(rows)]),
            formula=np.array(["GaAs"] * rows),
            system=np.array([f"system-{row // 5}" for row in range(rows)]),
            placement=np.where(np.arange(rows) % 4 == 0, "clustered", "random"),
            mass_ratio=ratio,
        ),
    )


def toy_part(scores: Scores, resamples: int = 60) -> dict[str, Any]:
    """What is measured of one track under one condition."""
    threshold = 0.4
    values = summary(scores, threshold, 0.9)
    draws = Resamples.draw(scores.facts.system, resamples)
    found = replicate(scores, scores.asked & (scores.probability >= threshold), draws)
    values["intervals"] = {name: interval(found[name]) for name in MAIN}
    values["resampled"] = {name: [float(x) for x in found[name]] for name in KEPT}
    x = MODEL_GRID.centres
    host = x**2 * (x < 1.0)
    values["curves"] = curves(scores, lambda row: (host, host * (1.0 + 0.1 * (row % 5))), MODEL_GRID)
    return values


def toy_result(name: str, skill: float, architecture: str | None = None, *, blind: bool = True) -> dict[str, Any]:
    """A whole result."""
    tracks = ["candidates", "blind"] if blind else ["candidates"]
    results = {
        track: {
            condition: toy_part(toy_scores(skill=skill * factor, blind=track == "blind"))
            for condition, factor in (("clean", 1.0), ("lab", 0.7))
        }
        for track in tracks
    }
    notes = {"architecture": architecture, "parameters": 1234} if architecture else {"settings": {"alpha": 3}}
    return {
        "schema": SCHEMA_VERSION,
        "entrant": name,
        "kind": "checkpoint" if architecture else "baseline",
        "notes": {"description": f"A {name}.", **notes},
        "data": {"name": "toy", "sha256": None, "rows": 120, "hosts": 40, "systems": 24, "rows_sha256": "1" * 64},
        "versions": {"defectnet": "0"},
        "split": "test",
        "bootstrap": {"resamples": 60, "seed": 0},
        "skipped": {} if blind else {"blind": "takes the candidates as its query"},
        "results": results,
        "seconds": {"fit": 0.0, "answer": 1.0},
    }
