"""Networks as exported programs."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

import defectnet
from defectnet.data.module import SpectraDataModule
from defectnet.errors import DefectNetError
from defectnet.models.program import INPUTS, OUTPUTS, as_program

ROWS = 100


def batches():
    """Two times 100 pairs and more: with candidates, and blind, as the benchmark asks them."""
    module = SpectraDataModule("data/defectnet-sim-v1", batch_size=ROWS // 2)
    module.setup("test")
    for loader in module.test_dataloader():
        for item in islice(iter(loader), 3):
            yield item.batch


def test_a_program_answers_as_its_network(tmp_path):
    model = defectnet.from_pretrained("defectnet-small")
    torch.export.save(as_program(model), tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2").module()
    seen = 0
    for batch in batches():
        with torch.no_grad():
            found = dict(zip(OUTPUTS, program(*(getattr(batch, name) for name in INPUTS)), strict=True))
        expected = model.estimate(batch)
        for name, values in found.items():
            torch.testing.assert_close(values.double(), getattr(expected, name).nan_to_num(0.0), atol=2e-4, rtol=0.0)
        seen += len(batch.host)
    assert seen >= 2 * ROWS


def test_what_cannot_be_exported_says_so(monkeypatch):
    model = defectnet.from_pretrained("paper-defectnet")
    as_program(model)
    monkeypatch.setattr(
        model, "expected", lambda output: output.identity_logits * bool(output.identity_logits[0, 0] > 0)
    )
    with pytest.raises(DefectNetError, match="cannot be exported"):
        as_program(model)
