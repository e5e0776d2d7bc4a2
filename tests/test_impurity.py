"""Impurity theory against what is known exactly, and the dictionary of responses that rests on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import eigh_tridiagonal

from conftest import TINY_NETS
from defectnet.batch import Batch, Targets
from defectnet.config import MODEL_GRID, Grid, ModelSpec
from defectnet.elements import INDEX, VOCABULARY, properties
from defectnet.errors import ConfigError
from defectnet.models.registry import build_model
from defectnet.nn.impurity import BINS, POINTS, STIFFNESS, CorrelatedFit, ImpurityTheory

UNCHANGED = STIFFNESS.index(1.0)
CENTRES = (np.arange(BINS) + 0.5) * (MODEL_GRID.reach / BINS)
SILICON = torch.tensor([[float(symbol == "Si") for symbol in VOCABULARY]])
ALL = torch.arange(len(VOCABULARY))[None]
MASS = properties("mass_u") / properties("mass_u")[INDEX["Si"]]


def debye() -> torch.Tensor:
    """(1, L) DOS of a Debye crystal."""
    x = torch.as_tensor(MODEL_GRID.centres, dtype=torch.float32)
    return (3.0 * x.square() * (x < 1.0))[None]


def chain(stiffness: float, mass: float, atoms: int = 401) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies, in units of the pure chain's highest, and weights on the middle atom of a chain with an impurity."""
    springs = np.full(atoms + 1, 0.25)
    middle = atoms // 2
    springs[[middle, middle + 1]] *= stiffness
    masses = np.ones(atoms)
    masses[middle] = mass
    root = np.sqrt(masses)
    diagonal, beside = (springs[:-1] + springs[1:]) / masses, -springs[1:-1] / (root[1:] * root[:-1])
    values, vectors = eigh_tridiagonal(diagonal, beside)
    return np.sqrt(values.clip(0.0)), vectors[middle] ** 2


def chain_dos() -> torch.Tensor:
    """(1, L) DOS of the pure chain."""
    cumulated = 2.0 / np.pi * np.arcsin(np.clip(MODEL_GRID.edges, 0.0, 1.0))
    return torch.as_tensor(np.diff(cumulated) / MODEL_GRID.width, dtype=torch.float32)[None]


def test_the_atom_itself_changes_nothing():
    dos = ImpurityTheory(MODEL_GRID)(debye(), SILICON, ALL)[0, INDEX["Si"], UNCHANGED].numpy()
    before = debye().reshape(BINS, -1).mean(1).numpy()
    inside = CENTRES < 0.9  # at the edge the line's width blurs the step, and its tail holds some per cent
    np.testing.assert_allclose(dos[inside], before[inside], rtol=0.08)


def test_every_impurity_has_unit_area():
    area = ImpurityTheory(MODEL_GRID)(debye(), SILICON, ALL).sum(-1)[0] * (MODEL_GRID.reach / BINS)
    inside = MASS > 0.5  # lighter ones have part of their line above the grid, where springs are stiff
    np.testing.assert_allclose(area[inside], 1.0, atol=0.03)


@pytest.mark.parametrize("symbol", ["B", "P", "Ge", "Sn"])
@pytest.mark.parametrize("number", range(len(STIFFNESS)))
def test_theory_is_exact_in_a_chain(symbol, number):
    # The springs of the impurity are in series with the half chain on each side: what the theory assumes is true here.
    frequencies, weights = chain(STIFFNESS[number], MASS[INDEX[symbol]])
    points = (np.arange(POINTS) + 0.5) * (MODEL_GRID.reach / POINTS)
    z = (points + 1j * MODEL_GRID.reach / POINTS) ** 2  # lines as wide as the theory's
    exact = -2.0 / np.pi * points * (weights / (z[:, None] - frequencies**2)).sum(1).imag
    dos = ImpurityTheory(MODEL_GRID)(chain_dos(), SILICON, ALL)[0, INDEX[symbol], number].numpy()
    np.testing.assert_allclose(dos, exact.reshape(BINS, -1).mean(1), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("symbol", ["B", "C", "N", "O"])
def test_local_modes_of_light_atoms_lie_where_a_chain_has_them(symbol):
    mass = MASS[INDEX[symbol]]
    frequencies, _ = chain(1.0, mass)
    assert frequencies[-1] == pytest.approx(1.0 / np.sqrt(mass * (2.0 - mass)), rel=1e-4)  # the textbook's formula
    dos = ImpurityTheory(MODEL_GRID)(chain_dos(), SILICON, ALL)[0, INDEX[symbol], UNCHANGED].numpy()
    above = CENTRES > 1.02
    peak = CENTRES[above][dos[above].argmax()]
    assert peak == pytest.approx(frequencies[-1], abs=MODEL_GRID.reach / BINS)


def test_stiffer_springs_and_lighter_atoms_mean_higher_energies():
    dos = ImpurityTheory(MODEL_GRID)(debye(), SILICON, ALL)[0].numpy()
    mean = dos @ CENTRES / dos.sum(-1)
    heavy = MASS > 0.8
    assert (np.diff(mean[heavy], axis=1) > 0).all()
    assert (np.diff(mean[heavy][np.argsort(MASS[heavy], kind="stable"), UNCHANGED]) < 1e-6).all()


def dictionary_and(batch: Batch, tiny_model):
    model = tiny_model("DefectNet").double()
    batch = batch.map(lambda x: x.double() if x.is_floating_point() else x)
    elements = torch.arange(len(VOCABULARY)).expand(len(batch.host), -1)
    return model.impurity, batch, elements


def test_what_was_made_of_responses_is_explained_by_them(tiny_model, random_batch):
    dictionary, batch, elements = dictionary_and(random_batch(4), tiny_model)
    response = dictionary(batch, elements).response
    truth = torch.zeros_like(batch.composition)
    truth[:, [3, 20]] = torch.tensor([0.02, 0.05], dtype=torch.float64)
    change = (truth.unsqueeze(-1) * response).sum(1).repeat_interleave(MODEL_GRID.bins // BINS, dim=1)
    made = batch._replace(doped=batch.host + change)
    assert dictionary.response_loss(made, truth, response).max() < 1e-12
    assert (dictionary.response_loss(made, 0.0 * truth, response) > 0.5).all()


def test_responses_know_nothing_of_the_doped_sample(tiny_model, random_batch):
    dictionary, batch, elements = dictionary_and(random_batch(4), tiny_model)
    response = dictionary(batch, elements).response
    other = dictionary(batch._replace(doped=batch.doped.flip(0)), elements).response
    torch.testing.assert_close(response, other, rtol=0.0, atol=0.0)


def test_few_queries_give_the_answer_of_many(tiny_model, tiny_batch):
    # The same candidates, asked as named ones in one batch with rows of more candidates, and alone.
    model = tiny_model("DefectNet")
    named = tiny_batch._replace(candidates_given=torch.ones(6, dtype=torch.bool))
    counts = named.candidates.sum(1)
    assert counts.min() < counts.max() == len(VOCABULARY) - 1
    together = model.predict_batch(named)
    for row in range(6):
        alone = model.predict_batch(named.rows(slice(row, row + 1)))
        torch.testing.assert_close(alone.identity_logits[0], together.identity_logits[row])
        torch.testing.assert_close(alone.concentration_if_present[0], together.concentration_if_present[row])


def test_training_adds_the_loss_of_the_responses(tiny_model, random_batch):
    batch, model = random_batch(6), tiny_model("DefectNet")
    truth = Targets(0.02 * batch.candidates.float() * (torch.rand(batch.candidates.shape) < 0.1))
    output, terms = model.forward_training(batch, truth)
    assert set(terms) == {"response"}
    for ours, plain in zip(output[:2], model(batch)[:2], strict=True):
        torch.testing.assert_close(ours, plain)
    assert terms["response"].rows.shape == (6,)
    terms["response"].rows.sum().backward()
    assert model.impurity.changes.correction.weight.grad.abs().max() > 0
    assert model.identity.net[1].weight.grad is None


def fit_problem(seed: int, rows: int = 200) -> tuple[torch.Tensor, ...]:
    """Responses (B, 3, N), amounts (B, 3), shapes (B, 6, N), and changes (B, N) whose errors are made of the shapes."""
    rng = np.random.default_rng(seed)
    shapes = np.abs(rng.standard_normal((rows, 6, 64)))
    response, amount = rng.standard_normal((rows, 3, 64)) + shapes[:, :3], rng.standard_normal((rows, 3)) * 0.03
    errors = np.einsum("bk,bkn->bn", 0.02 * rng.standard_normal((rows, 6)), shapes)
    seen = np.einsum("bk,bkn->bn", amount, response) + errors + 0.002 * rng.standard_normal((rows, 64))
    return tuple(torch.as_tensor(x) for x in (response, amount, shapes, seen))


def test_a_correlated_fit_is_generalised_least_squares():
    response, _, shapes, seen = (x[0].numpy() for x in fit_problem(0, rows=1))
    fit = CorrelatedFit().double()
    found = fit(*(torch.as_tensor(x)[None] for x in (response, seen, shapes)))[0].detach().numpy()
    variance = np.repeat(np.exp([-4.0, -3.0, -4.0]), 2)
    cover = (np.mean(seen**2) + 1e-4) * (np.exp(-2.0) * np.eye(64) + (shapes.T * variance) @ shapes)
    gram, right = (response @ np.linalg.solve(cover, x) for x in (response.T, seen))
    after = np.linalg.inv(gram + np.exp(4.0) * np.eye(3))
    mean, deviation = after @ right, np.sqrt(np.diag(after))
    np.testing.assert_allclose(found[:, 2], 8.0 * mean, rtol=1e-3)
    np.testing.assert_allclose(found[:, 3], 0.5 * mean / deviation, rtol=1e-3)
    np.testing.assert_allclose(found[:, 4], np.log(deviation) + 3.0, rtol=1e-3)
    np.testing.assert_allclose(found[:, 0], 5.0 * right / (np.diag(gram) + 10.0), rtol=1e-9)


def test_errors_that_hang_together_mislead_a_correlated_fit_less():
    response, amount, shapes, seen = fit_problem(1)
    fit, plain = CorrelatedFit().double(), CorrelatedFit().double()
    with torch.no_grad():
        fit.log_white.fill_(-5.0)
        fit.log_shapes.fill_(-1.0)
        plain.log_shapes.fill_(-40.0)  # held at the lowest that is allowed
        error, other = ((f(response, seen, shapes)[..., 2] / 8.0 - amount).square().mean() for f in (fit, plain))
    assert error < 0.3 * other


@pytest.mark.parametrize("name", ["impurity", "correlated", "resolved"])
def test_what_once_could_be_switched_off_is_on(name):
    net = {**TINY_NETS["DefectNet"], name: True}
    assert name not in build_model("DefectNet", net=net).config["net"]
    for value in (False, 0, "true", None):
        with pytest.raises(ConfigError, match=rf"net.{name} is {value!r}.*this version knows True alone"):
            build_model("DefectNet", net={**net, name: value})


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"DefectNet with a grid of 200 bins.*multiple of 64"):
        build_model("DefectNet", ModelSpec(grid=Grid(bins=200, reach=2.0)))


def test_half_precision_leaves_the_fits_whole(tiny_model, random_batch):
    batch, model = random_batch(6), tiny_model("DefectNet")
    with torch.no_grad():
        plain = model(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(batch)
    assert torch.isfinite(half.identity_logits).all()
    torch.testing.assert_close(
        half.concentration_if_present.float(), plain.concentration_if_present, rtol=0.2, atol=2e-3
    )
