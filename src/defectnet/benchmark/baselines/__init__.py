"""Answers that a network has to beat, each fitted on the same rows, with settings searched on the validation split."""

from __future__ import annotations

from typing import Final

from defectnet.benchmark.baselines.composition import Candidates, HostComposition
from defectnet.benchmark.baselines.linear import Pls, Ridge
from defectnet.benchmark.baselines.mean import Mean
from defectnet.benchmark.baselines.nearest import Nearest
from defectnet.benchmark.baselines.trees import LightGbm
from defectnet.benchmark.baselines.unmixing import Nnls
from defectnet.benchmark.protocol import TrainableEstimator

__all__ = ["BASELINES"]

BASELINES: Final[dict[str, type[TrainableEstimator]]] = {
    "mean": Mean,
    "composition": HostComposition,
    "candidates": Candidates,
    "nearest": Nearest,
    "nnls": Nnls,
    "pls": Pls,
    "ridge": Ridge,
    "lightgbm": LightGbm,
}
"""The baselines by name; each class is made without arguments."""
