"""A network as a program without Python: torch's exported form.

ONNX knows no Cholesky factorisation, by which the networks compare fits: they cannot be written as that.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from defectnet.batch import Batch
from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError
from defectnet.models.base import DefectModel
from defectnet.models.calibration import Calibration

INPUTS: Final = ("host", "doped", "edge_mev", "composition", "candidates", "candidates_given", "kind")
"""What a program gets, in this order, see `defectnet.batch.Batch`: `defectnet.measure.encode.encode_pair` makes it."""

OUTPUTS: Final = ("probability", "expected_concentration", "concentration_if_present", "something_else")

LARGEST_BATCH: Final = 4096


class FormulaOnly(nn.Module):
    """What a network answers from formula and spectra, calibrated; no intervals, no computed responses.

    Args:
        model: Network whose sizes do not depend on what is asked.
    """

    def __init__(self, model: DefectModel) -> None:
        super().__init__()
        self.model = model
        found = model.calibration or Calibration()
        self.temperatures = found.temperature_candidates, found.temperature_blind

    def forward(
        self,
        host: Tensor,
        doped: Tensor,
        edge_mev: Tensor,
        composition: Tensor,
        candidates: Tensor,
        candidates_given: Tensor,
        kind: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return `OUTPUTS`, (B, E) each and (B,) the last; elements that are not in question have 0."""
        batch = Batch(host, doped, edge_mev, composition, candidates, candidates_given, kind, None)
        output = self.model(batch)
        named, blind = self.temperatures
        warm = output._replace(
            identity_logits=output.identity_logits / torch.where(candidates_given, named, blind)[:, None]
        )
        other = output.something_else
        told = torch.zeros_like(edge_mev) if other is None else torch.sigmoid(other) * candidates_given
        probability = torch.sigmoid(warm.identity_logits)
        return probability, self.model.expected(warm), warm.concentration_if_present, told


def as_program(model: DefectModel) -> ExportedProgram:
    """Export a network, with any number of rows up to `LARGEST_BATCH`.

    Args:
        model: Of `from_pretrained`. What computed responses or measured ones add is left out.

    Returns:
        A program from `INPUTS` to `OUTPUTS`; `torch.export.save` writes it.

    Raises:
        ConfigError: The network cannot be exported.
    """
    model = model.eval().cpu()
    bins, elements = len(model.spec.grid.centres), len(VOCABULARY)
    floats = [torch.rand(3, size) if size else torch.full((3,), 40.0) for size in (bins, bins, 0, elements)]
    asked = torch.zeros(3, elements, dtype=torch.bool)
    asked[:, :4] = True
    example = (*floats, asked, torch.tensor([True, True, False]), torch.zeros(3, dtype=torch.long))
    rows = Dim("rows", min=1, max=LARGEST_BATCH)
    try:
        with torch.no_grad():
            return torch.export.export(FormulaOnly(model), example, dynamic_shapes=tuple({0: rows} for _ in example))
    except Exception as error:  # what a network does that cannot be traced, torch says in many ways
        raise ConfigError(
            f"{type(model).__name__} cannot be exported", why=str(error)[:200], fix="Export another network"
        ) from error
