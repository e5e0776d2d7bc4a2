"""All that can be trained, saved and loaded, by name: the networks, and measured responses around one of them."""

from __future__ import annotations

from typing import Any

from defectnet.config import ModelSpec
from defectnet.models.base import DefectModel
from defectnet.models.measured import MeasuredResponses
from defectnet.models.networks import NETWORKS, named

ARCHITECTURES: dict[str, type[DefectModel]] = {**NETWORKS, "MeasuredResponses": MeasuredResponses}


def architecture(name: str) -> type[DefectModel]:
    """Return a network's class by name.

    Raises:
        ConfigError: There is no such network.
    """
    return named(name, ARCHITECTURES)


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
