"""The networks that read spectra themselves, by name: a new one is a file, two lines here, and a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from defectnet.errors import ConfigError
from defectnet.models.base import DefectModel
from defectnet.models.defectnet import DefectNet
from defectnet.models.paper import PaperDefectNet
from defectnet.models.resnet import ResNet1d

NETWORKS: dict[str, type[DefectModel]] = {
    "DefectNet": DefectNet,
    "PaperDefectNet": PaperDefectNet,
    "ResNet1d": ResNet1d,
}


def named(name: str, known: Mapping[str, type[DefectModel]] = NETWORKS) -> type[DefectModel]:
    """Return a network's class by name.

    Raises:
        ConfigError: There is no such network.
    """
    if name not in known:
        near = get_close_matches(str(name), known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"architecture {name!r} is not known", fix=f"{hint}Known are {', '.join(known)}")
    return known[name]
