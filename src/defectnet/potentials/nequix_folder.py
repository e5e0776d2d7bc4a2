"""Nequix networks in checkpoint folders of potentials, see `folder`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from defectnet.errors import ConfigError, SimulationError
from defectnet.potentials.folder import AGAIN, CONFIG, WEIGHTS, read_config, read_weights, write_folder
from defectnet.potentials.nequix_network import NequixForm

ARCHITECTURE: Final = "nequix"


def save_network(
    folder: str | Path,
    form: NequixForm,
    tensors: Mapping[str, Tensor],
    *,
    licence: str,
    source: dict[str, Any],
    card: str,
) -> None:
    """Write a network as a folder, whole or not at all; a potential that is there is replaced.

    Args:
        folder: Where; its name becomes the potential's.
        form: Its settings.
        tensors: See `NequixForm.shapes`.
        licence: Of the weights, for instance ``MIT``.
        source: Where they come from, plain values.
        card: Text of the README.

    Raises:
        SimulationError: Tensors are not those of the form, or not finite; or the folder holds anything else.
    """
    wrong = _misfit(form, tensors)
    if wrong:
        raise SimulationError(f"potential {folder}: {wrong}", fix="Convert a Nequix network of the usual kind")
    entries = {"architecture": ARCHITECTURE, "form": form.to_dict(), "licence": licence, "source": source}
    write_folder(folder, dict(tensors), entries, card=card)


def load_network(folder: str | Path) -> tuple[NequixForm, dict[str, Tensor], str]:
    """Load form and tensors of a network, and the sha256 of its weights.

    Raises:
        SimulationError: Anything is missing, damaged, unknown, or of another shape than the config says.
    """
    folder = Path(folder)
    config = read_config(folder, ARCHITECTURE, {"source": dict})
    try:
        form = NequixForm.from_dict(config["form"], where=f"{folder / CONFIG}: form")
    except ConfigError as error:
        raise SimulationError(error.what, why=error.why, fix=error.fix) from error
    tensors, sha256 = read_weights(folder, config)
    wrong = _misfit(form, tensors)
    if wrong:
        raise SimulationError(f"{folder / WEIGHTS} does not hold what {CONFIG} says", why=wrong, fix=AGAIN)
    return form, tensors, sha256


def _misfit(form: NequixForm, tensors: Mapping[str, Tensor]) -> str:
    """Return what is wrong with tensors, or nothing."""
    shapes = form.shapes()
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors:
            return f"{name} is missing"
        if name not in shapes:
            return f"{name} is unknown"
        found = tuple(tensors[name].shape)
        if found != shapes[name]:
            return f"{name} has shape {found}, not {shapes[name]}"
        if tensors[name].dtype not in (torch.float32, torch.float64):
            return f"{name} holds {tensors[name].dtype}"
    return ""
