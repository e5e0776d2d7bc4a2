"""The networks by name. A new one is a file, an import and a line here, and a recipe: docs/architecture.md."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from defectnet.config import ModelSpec
from defectnet.errors import ConfigError
from defectnet.models.base import DefectModel
from defectnet.models.defectnet import DefectNet
from defectnet.models.measured import MeasuredResponses
from defectnet.models.paper import PaperDefectNet
from defectnet.models.resnet import ResNet1d

ARCHITECTURES: dict[str, type[DefectModel]] = {
    "DefectNet": DefectNet,
    "MeasuredResponses": MeasuredResponses,
    "PaperDefectNet": PaperDefectNet,
    "ResNet1d": ResNet1d,
}


def architecture(name: str) -> type[DefectModel]:
    """Return a network's class by name.

    Raises:
        ConfigError: There is no such network.
    """
    if name not in ARCHITECTURES:
        near = get_close_matches(str(name), ARCHITECTURES, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"architecture {name!r} is not known", fix=f"{hint}Known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_model(name: str, spec: ModelSpec | None = None, net: dict[str, Any] | None = None) -> DefectModel:
    """Build an untrained network.

    Args:
        name: A key of `ARCHITECTURES`.
        spec: What it reads and answers.
        net: Fields of its size that differ from the defaults.

    Raises:
        ConfigError: The name or a field is not known, or a value is out of range.
    """
    cls = architecture(name)
    return cls(spec, cls.config_type.from_dict(net or {}, where="net"))
