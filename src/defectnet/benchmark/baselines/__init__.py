"""Answers that a network has to beat, each fitted on the same rows, with settings searched on the validation split."""

from __future__ import annotations

from typing import Final

from defectnet.benchmark.protocol import TrainableEstimator
from defectnet.errors import ConfigError

try:
    from defectnet.benchmark.baselines.composition import Candidates, HostComposition
    from defectnet.benchmark.baselines.linear import Pls, Ridge
    from defectnet.benchmark.baselines.mean import Mean
    from defectnet.benchmark.baselines.nearest import Nearest
    from defectnet.benchmark.baselines.trees import LightGbm
    from defectnet.benchmark.baselines.unmixing import Nnls
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("lightgbm", "scipy", "sklearn"):
        raise
    fix = "Install it: pip install 'defectnet[benchmark]'"
    raise ConfigError(f"the baselines need {error.name}", fix=fix) from error

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
