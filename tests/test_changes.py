"""Responses that are put together element by element."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from defectnet.batch import Targets
from defectnet.config import MODEL_GRID, PROJECTED_BINS
from defectnet.elements import INDEX, NEUTRON_WEIGHT, VOCABULARY
from defectnet.nn.changes import ElementChanges, HostAtoms, HostModes
from defectnet.spectrum import KINDS

WIDTH, ELEMENTS, ROWS = 8, 5, 4
BIN = MODEL_GRID.reach / PROJECTED_BINS
TOTAL = torch.full((ROWS,), KINDS.index("total"))
DOPANTS = torch.arange(20, 20 + ELEMENTS).expand(ROWS, -1)


def unit(dos: torch.Tensor) -> torch.Tensor:
    return dos / (dos.sum(-1, keepdim=True) * BIN)


def crystals(seed: int = 0) -> tuple[torch.Tensor, HostAtoms]:
    """Spectra of hosts and their elements, the last slot of each but the first empty."""
    rng = torch.Generator().manual_seed(seed)
    fraction = torch.rand(ROWS, 3, generator=rng) + 0.2
    fraction[1:, 2] = 0.0
    fraction = fraction / fraction.sum(1, keepdim=True)
    gain = torch.rand(ROWS, 3, generator=rng) + 0.5
    gain = gain / (gain * fraction).sum(1, keepdim=True)
    slots = torch.tensor([[1, 5, 9]]).expand(ROWS, -1)
    dos = unit(torch.rand(ROWS, PROJECTED_BINS, generator=rng).double())
    return dos, HostAtoms(slots, fraction.double(), gain.double(), torch.randn(ROWS, 3, WIDTH, generator=rng).double())


@pytest.fixture
def changes() -> ElementChanges:
    torch.manual_seed(0)
    module = ElementChanges(MODEL_GRID.reach, WIDTH).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def asked() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is known of elements in question: tokens, their DOS by theory, what an atom of each counts for."""
    rng = torch.Generator().manual_seed(1)
    theory = unit(torch.rand(ROWS, ELEMENTS, PROJECTED_BINS, generator=rng).double())
    gain = torch.rand(ROWS, ELEMENTS, generator=rng) + 0.5
    return torch.randn(ROWS, ELEMENTS, WIDTH, generator=rng).double(), theory, gain.double()


def test_pieces_of_a_host_add_up():
    dos = unit(torch.rand(3, PROJECTED_BINS))
    pieces = HostModes(MODEL_GRID.reach)(dos)
    under, moved, blurred = pieces.unflatten(1, (3, -1)).unbind(1)
    band = (torch.arange(PROJECTED_BINS) + 0.5) * BIN < 1.2
    torch.testing.assert_close(under.sum(1)[:, band], dos[:, band])
    for change in (moved, blurred):  # modes go elsewhere, none is lost
        assert change[:, 2:12].sum(-1).abs().max() < 1e-4 * dos.sum(-1).max()
    # All energies higher by a little: of a smooth DOS, minus the derivative of energy times DOS.
    x = (torch.arange(PROJECTED_BINS) + 0.5) * BIN
    smooth = torch.exp(-(((x - 0.5) / 0.15) ** 2))
    grown = HostModes(MODEL_GRID.reach)(smooth).unflatten(0, (3, -1))[1].sum(0)
    exact = torch.exp(-(((x / 1.001 - 0.5) / 0.15) ** 2)) / 1.001 - smooth
    torch.testing.assert_close(0.001 * grown, exact, rtol=0.0, atol=0.07 * float(exact.abs().max()))


def test_a_response_leaves_the_area_as_it_is(changes):
    response, _ = changes(*crystals(), *asked())
    assert response.sum(-1).abs().max() * BIN < 1e-9


def test_a_response_is_the_sum_of_its_parts(changes):
    host, atoms = crystals()
    _, parts = changes(host, atoms, *asked())
    torch.testing.assert_close(parts.share.exp().sum(1), torch.ones_like(host))
    torch.testing.assert_close(parts.dopant_dos.exp().sum(-1), torch.ones(ROWS, ELEMENTS).double())
    assert not parts.change[1:, :, 2].any()  # an element that is not there does not change
    assert not parts.share[1:, 2].exp().any()


def test_an_atom_like_that_it_replaces_changes_nothing():
    torch.manual_seed(0)
    fresh = ElementChanges(MODEL_GRID.reach, WIDTH).double()
    host = unit(torch.rand(ROWS, PROJECTED_BINS) + 0.2).double()
    one = torch.ones(ROWS, 1).double()
    atoms = HostAtoms(torch.zeros(ROWS, 1, dtype=torch.long), one, one, torch.zeros(ROWS, 1, WIDTH).double())
    x = torch.randn(ROWS, 1, WIDTH).double()
    response, _ = fresh(host, atoms, x, host.unsqueeze(1), one)
    assert response.abs().max() < 0.05 * host.max()  # the level that is added before the logarithm


def test_what_was_made_of_the_parts_has_no_loss(changes):
    host, atoms = crystals()
    response, parts = changes(host, atoms, *asked())
    amounts = torch.rand(ROWS, ELEMENTS).double() * 0.05
    amounts[:, -1] = 0.0
    concentration = torch.zeros(ROWS, len(VOCABULARY)).double().scatter(1, DOPANTS, amounts)
    before = host[:, None] * parts.share.exp() / atoms.gain.unsqueeze(-1)
    after = before + torch.einsum("bk,bksn->bsn", amounts, parts.change)
    dopant_dos = parts.dopant_dos.exp() / BIN * amounts.unsqueeze(-1)
    projected = torch.zeros(ROWS, 2, len(VOCABULARY), PROJECTED_BINS).double()
    at = atoms.slots.unsqueeze(-1).expand(-1, -1, PROJECTED_BINS)
    projected[:, 0].scatter_(1, at, before)
    projected[:, 1].scatter_(1, at, after)
    projected[:, 1].scatter_(1, DOPANTS.unsqueeze(-1).expand(-1, -1, PROJECTED_BINS), dopant_dos)
    targets = Targets(concentration, projected)
    losses = changes.losses(parts, TOTAL, DOPANTS, targets)
    names = ("host_share", "dopant_dos", "host_change")
    assert {name: value.shape for name, value in losses.items()} == dict.fromkeys(names, (ROWS,))
    for value in losses.values():
        assert value.abs().max() < 2e-3
    # The response is what these changes do to the spectrum: in this host every atom counts for its gain.
    one = torch.zeros_like(amounts)
    one[:, 0] = 1e-6
    moved = (atoms.gain.unsqueeze(-1) * torch.einsum("bk,bksn->bsn", one, parts.change)).sum(1)
    gain = asked()[2]
    doped = unit(host + moved + 1e-6 * gain[:, :1] * parts.dopant_dos[:, 0].exp() / BIN)
    torch.testing.assert_close((doped - host) / 1e-6, response[:, 0], rtol=1e-3, atol=1e-3)
    # And each misfit sees what it is of.
    wrong = targets._replace(projected=projected.roll(7, dims=-1))
    assert min(value.min() for value in changes.losses(parts, TOTAL, DOPANTS, wrong).values()) > 0.01
    unknown = torch.full((ROWS,), KINDS.index("projected"))
    hidden = changes.losses(parts, unknown, DOPANTS, wrong)
    assert not hidden["host_share"].any()
    assert not hidden["host_change"].any()


def test_training_teaches_the_parts(tiny_model, random_batch):
    batch, model = random_batch(6), tiny_model("DefectNet")
    concentration = 0.02 * batch.candidates.float() * (torch.rand(batch.candidates.shape) < 0.1)
    projected = torch.rand(6, 2, len(VOCABULARY), PROJECTED_BINS)
    output, terms = model.forward_training(batch, Targets(concentration, projected))
    assert set(terms) == {"response", "host_share", "dopant_dos", "host_change"}
    for ours, plain in zip(output[:2], model(batch)[:2], strict=True):
        torch.testing.assert_close(ours, plain)
    sum(term.rows.sum() for term in terms.values()).backward()
    silent = [name for name, p in model.impurity.changes.named_parameters() if p.grad is None]
    assert not silent
    assert set(model.forward_training(batch, Targets(concentration))[1]) == {"response"}


def test_what_all_elements_of_a_host_share_alike_cancels(tiny_model, random_batch):
    batch, model = random_batch(6), tiny_model("DefectNet")
    before = model(batch)
    with torch.no_grad():
        model.impurity.changes.share.bias += torch.linspace(-0.5, 0.5, PROJECTED_BINS)
    for ours, plain in zip(model(batch)[:2], before[:2], strict=True):
        torch.testing.assert_close(ours, plain)


def test_neutrons_count_elements_by_cross_section_over_mass(tiny_model, random_batch):
    dictionary = tiny_model("DefectNet").impurity
    batch = random_batch(3)
    composition = torch.zeros_like(batch.composition)
    composition[:, INDEX["Ga"]], composition[:, INDEX["As"]] = 0.25, 0.75
    kinds = torch.tensor([KINDS.index(kind) for kind in ("neutron-weighted", "total", "projected")])
    batch = batch._replace(composition=composition, kind=kinds)
    asked = torch.tensor([[INDEX["Al"], INDEX["In"]]]).expand(3, -1)
    atoms = dictionary(batch, asked).parts.atoms
    weight = NEUTRON_WEIGHT[[INDEX["As"], INDEX["Ga"]]]
    np.testing.assert_allclose(atoms.gain[0], weight / (weight @ [0.75, 0.25]), rtol=1e-5)
    assert torch.equal(atoms.gain[1:], torch.ones(2, 2))
    assert atoms.slots.tolist() == [[INDEX["As"], INDEX["Ga"]]] * 3
