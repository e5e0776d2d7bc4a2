"""Fixtures that several test files share. Everything is small, seeded and offline."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from typing import Any

import hypothesis
import pytest
import torch

from defectnet.batch import Batch
from defectnet.config import MODEL_GRID
from defectnet.elements import VOCABULARY
from defectnet.models.base import DefectModel
from defectnet.models.registry import ARCHITECTURES, build_model

# The same examples every time: a test that fails has been seen to fail. Searching further: --hypothesis-profile=default
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

_TINY: dict[str, int | float] = {
    "d_model": 16,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "patch": 16,
    "dropout": 0.0,
}
TINY_NETS: dict[str, dict[str, Any]] = {
    "DefectNet": _TINY,
    "MeasuredResponses": {"inner": "DefectNet", "inner_net": _TINY},
    "PaperDefectNet": {"channels": 16, "heads": 2, "hidden": 16},
    "ResNet1d": {"channels": 8, "blocks": 2, "hidden": 16, "dropout": 0.0},
}


class NotFoundResponse:
    """As much of an HTTP response as the Hub's errors read."""

    headers: dict[str, str] = {}  # noqa: RUF012
    request = None
    status_code = 404


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while all is imported, and never go through what was: a million objects, each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_random_batch(rows: int, seed: int = 0) -> Batch:
    """Pairs of random spectra with hosts of 1 to 3 elements; odd rows have candidates given, even rows are blind."""
    rng = torch.Generator().manual_seed(seed)
    bins, width, elements = MODEL_GRID.bins, MODEL_GRID.width, len(VOCABULARY)
    relative = torch.as_tensor(MODEL_GRID.centres, dtype=torch.float32)
    host = torch.rand(rows, bins, generator=rng) * relative**2 * (relative < 1.0)
    doped = host * (0.7 + 0.6 * torch.rand(rows, bins, generator=rng)) + 0.02 * (relative < 1.5)
    composition = torch.zeros(rows, elements)
    for row in range(rows):
        inside = torch.randperm(elements, generator=rng)[: 1 + row % 3]
        composition[row, inside] = 1.0 / len(inside)
    given = torch.arange(rows) % 2 == 1
    named = torch.rand(rows, elements, generator=rng) < 0.2
    named[:, torch.randint(elements, (1,), generator=rng)] = True
    return Batch(
        host=host / (host.sum(dim=1, keepdim=True) * width),
        doped=doped / (doped.sum(dim=1, keepdim=True) * width),
        edge_mev=15.0 + 150.0 * torch.rand(rows, generator=rng),
        composition=composition,
        candidates=(composition == 0) & (named | ~given[:, None]),
        candidates_given=given,
        kind=torch.zeros(rows, dtype=torch.long),
    )


@pytest.fixture
def random_batch() -> Callable[..., Batch]:
    """`random_batch(rows, seed=0)`."""
    return make_random_batch


@pytest.fixture
def tiny_batch() -> Batch:
    """Six pairs."""
    return make_random_batch(6)


@pytest.fixture
def tiny_model() -> Callable[[str], DefectModel]:
    """`tiny_model(name)`: a small network of that architecture, seeded, in evaluation mode."""

    def build(name: str) -> DefectModel:
        torch.manual_seed(0)
        return build_model(name, net=TINY_NETS[name]).eval()

    return build


@pytest.fixture(params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest, tiny_model: Callable[[str], DefectModel]) -> DefectModel:
    """Each architecture in turn, small."""
    return tiny_model(request.param)
