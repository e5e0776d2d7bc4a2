"""What every network must hold, and what tells the two apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import TINY_NETS
from defectnet.batch import Batch, Output, Targets
from defectnet.config import MODEL_GRID, Grid, ModelSpec
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import ConfigError
from defectnet.models.base import ABSENT_LOGIT, Query
from defectnet.models.calibration import Calibration, Interval
from defectnet.models.paper import PaperDefectNet, rebin_matrix
from defectnet.models.registry import ARCHITECTURES, build_model
from defectnet.nn.heads import MAX_CONCENTRATION


def rows(batch: Batch, index) -> Batch:
    return batch.rows(index)


def assert_close(a: Output, b: Output, tolerance: float = 1e-6) -> None:
    for x, y in zip(a[:2], b[:2], strict=True):
        torch.testing.assert_close(x, y, rtol=0.0, atol=tolerance)


def differ(a: Output, b: Output) -> bool:
    return any((x - y).abs().max() > 1e-4 for x, y in zip(a[:2], b[:2], strict=True))


def test_shapes_and_bounds(model, tiny_batch):
    for output in (model(tiny_batch), model.predict_batch(tiny_batch)):
        assert output.identity_logits.shape == output.concentration_if_present.shape == (6, len(VOCABULARY))
        assert torch.isfinite(output.identity_logits).all()
        assert (output.identity_logits >= ABSENT_LOGIT).all()
    assert ((output.concentration_if_present >= 0) & (output.concentration_if_present <= 1)).all()


def test_elements_that_are_no_candidates_are_absent(model, tiny_batch):
    output = model(tiny_batch)
    assert (~tiny_batch.candidates).any()
    assert (output.identity_logits[~tiny_batch.candidates] == ABSENT_LOGIT).all()
    assert (output.concentration_if_present[~tiny_batch.candidates] == 0).all()
    assert (output.identity_logits[tiny_batch.candidates] > ABSENT_LOGIT).all()


@pytest.mark.parametrize("batch_size", [1, 2, 5, 6, 100])
def test_prediction_does_not_depend_on_batch_size(model, tiny_batch, batch_size):
    assert_close(model.predict_batch(tiny_batch, batch_size=batch_size), model.predict_batch(tiny_batch))


def test_prediction_does_not_depend_on_batch_mates(model, random_batch):
    sample = random_batch(1, seed=3)
    alone = model.predict_batch(sample)
    for seed, count in ((4, 1), (5, 7), (6, 40)):
        mates = random_batch(count, seed=seed)
        mixed = Batch.join([mates, sample, mates])
        assert_close(model.predict_batch(mixed).map(lambda x, at=count: x[at : at + 1]), alone)


def test_single_precision_is_near_and_other_precisions_are_refused(model, tiny_batch):
    single = model.predict_batch(tiny_batch, precision=32)
    assert_close(single, model.predict_batch(tiny_batch), 1e-4)
    assert not torch.equal(single.concentration_if_present, model.predict_batch(tiny_batch).concentration_if_present)
    with pytest.raises(ConfigError, match=r"precision is 16. Use 32 or 64"):
        model.predict_batch(tiny_batch, precision=16)


def test_single_precision_forward_does_not_depend_on_batch_mates(model, tiny_batch):
    with torch.no_grad():
        together, alone = model(tiny_batch), [model(rows(tiny_batch, slice(i, i + 1))) for i in range(6)]
    assert_close(together, Output.join(alone), 1e-5)


def test_permuting_rows_permutes_answers(model, tiny_batch):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = model.predict_batch(rows(tiny_batch, order))
    assert_close(permuted, model.predict_batch(tiny_batch).rows(order))


def test_output_means_the_same_in_training(model, tiny_batch):
    with torch.no_grad():
        evaluated = model(tiny_batch)
        trained = model.train()(tiny_batch)
    assert_close(trained, evaluated)


def test_predict_batch_leaves_mode_and_weights(model, tiny_batch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.predict_batch(tiny_batch)
    assert model.training
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)


def test_predict_batch_ignores_dropout(tiny_batch):
    torch.manual_seed(0)
    model = build_model("DefectNet", net={"d_model": 16, "heads": 2, "patch": 16, "dropout": 0.5}).train()
    assert_close(model.predict_batch(tiny_batch), model.predict_batch(tiny_batch), 0.0)


WITHOUT_EFFECT = ("impurity.changes.site.bias", "impurity.changes.share.bias")
"""The same for all elements that a softmax is over: their gradient is rounding, which may be zero."""


def test_gradient_reaches_every_parameter(model, random_batch):
    batch = random_batch(16)
    with torch.no_grad():  # layers that start at zero hide those before them
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.1)
    output = model.train()(batch)
    weight = torch.linspace(-1.0, 2.0, len(VOCABULARY))
    total = (output.identity_logits * weight).sum() + 10.0 * (output.concentration_if_present * weight).sum()
    total.backward()
    reached = {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in model.named_parameters()}
    assert [n for n, size in reached.items() if not n.endswith(WITHOUT_EFFECT) and not size > 0] == []
    for name in (n for n in reached if n.endswith(WITHOUT_EFFECT)):
        assert reached[name] <= 1e-3 * reached[name.replace("bias", "weight")]


def test_swapping_host_and_doped_changes_the_answer(model, tiny_batch):
    swapped = tiny_batch._replace(host=tiny_batch.doped, doped=tiny_batch.host)
    assert differ(model.predict_batch(tiny_batch), model.predict_batch(swapped))


def test_candidates_change_the_answer_for_the_others(model, tiny_batch):
    chosen = tiny_batch.candidates.clone()
    dropped = int(torch.nonzero(chosen[0])[0])
    chosen[0, dropped] = False
    fewer = model.predict_batch(tiny_batch._replace(candidates=chosen))
    both = chosen[0]
    change = fewer.identity_logits[0, both] - model.predict_batch(tiny_batch).identity_logits[0, both]
    assert change.abs().max() > 1e-6


def test_no_candidate_at_all_is_not_an_error(model, tiny_batch):
    none = tiny_batch._replace(candidates=torch.zeros_like(tiny_batch.candidates))
    output = model.predict_batch(none)
    assert (output.identity_logits == ABSENT_LOGIT).all()
    assert (output.concentration_if_present == 0).all()


def test_config_round_trip(model):
    again = type(model).from_config(model.config["spec"], model.config["net"])
    assert again.spec == model.spec
    assert again.net == model.net
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_default_size_fits_a_megabyte(name):
    state = build_model(name).state_dict()
    # ResNet1d is a baseline that is not bundled: about half a million numbers.
    largest = 2_100_000 if name == "ResNet1d" else 2**20
    assert sum(value.numel() * value.element_size() for value in state.values()) < largest


def test_other_grids_work(tiny_batch):
    spec = ModelSpec(grid=Grid(bins=192, reach=3.0))
    other = tiny_batch._replace(host=tiny_batch.host[:, :192], doped=tiny_batch.doped[:, :192])
    for name in ARCHITECTURES:
        assert build_model(name, spec).predict_batch(other).identity_logits.shape == (6, len(VOCABULARY))


def test_wrong_net_for_an_architecture_is_an_error():
    with pytest.raises(ConfigError, match="net is a DefectNetConfig"):
        PaperDefectNet(net=ARCHITECTURES["DefectNet"].config_type())


# What is particular to DefectNet


def test_defectnet_concentration_stays_in_bounds(tiny_model, tiny_batch):
    model = tiny_model("DefectNet")
    with torch.no_grad():
        model.concentration.net[-1].bias.fill_(100.0)
        high = model(tiny_batch).concentration_if_present[tiny_batch.candidates]
    assert (high <= MAX_CONCENTRATION).all()
    assert (high > 0.99 * MAX_CONCENTRATION).all()


def test_defectnet_never_reads_elements_that_are_no_candidates(tiny_model, tiny_batch):
    model = tiny_model("DefectNet")
    before = model.predict_batch(rows(tiny_batch, slice(1, 2)))
    assert tiny_batch.candidates_given[1]
    with torch.no_grad():
        model.queries.element.weight[~tiny_batch.candidates[1]] += 5.0
    assert_close(model.predict_batch(rows(tiny_batch, slice(1, 2))), before)


@pytest.mark.parametrize("field", ["edge_mev", "candidates_given", "kind", "composition"])
def test_defectnet_uses_every_field(tiny_model, tiny_batch, field):
    changed = {
        "edge_mev": tiny_batch.edge_mev * 1.5,
        "candidates_given": ~tiny_batch.candidates_given,
        "kind": tiny_batch.kind + 1,
        "composition": tiny_batch.composition.roll(1, dims=1),
    }
    model = tiny_model("DefectNet")
    assert differ(model.predict_batch(tiny_batch), model.predict_batch(tiny_batch._replace(**{field: changed[field]})))


def with_local_mode(batch: Batch) -> Batch:
    doped = batch.doped.clone()
    doped[:, 160] += 5.0  # at 1.6 of the band edge
    return batch._replace(doped=doped)


def test_defectnet_sees_local_modes_above_the_edge_and_the_paper_does_not(tiny_model, tiny_batch):
    new, old = tiny_model("DefectNet"), tiny_model("PaperDefectNet")
    assert differ(new.predict_batch(tiny_batch), new.predict_batch(with_local_mode(tiny_batch)))
    assert_close(old.predict_batch(tiny_batch), old.predict_batch(with_local_mode(tiny_batch)))


# What is particular to the paper's network


def test_rebin_keeps_the_area_below_the_edge():
    for grid in (MODEL_GRID, Grid(bins=192, reach=3.0), Grid(bins=600, reach=2.0)):
        density = np.where(grid.edges[1:] <= 1.0 + 1e-9, 1.0 + grid.centres, 0.0)
        area = (density @ rebin_matrix(grid, 100)).sum() / 100
        assert area == pytest.approx(density.sum() * grid.width, rel=1e-12)


def test_rebin_on_the_default_grid_takes_the_first_hundred_bins():
    np.testing.assert_allclose(rebin_matrix(MODEL_GRID, 100), np.eye(256, 100), atol=1e-12)


def test_paper_input_is_as_published(tiny_model, tiny_batch):
    channels = tiny_model("PaperDefectNet").preprocess(tiny_batch)
    assert channels.shape == (6, 3, 100)
    host = tiny_batch.host[:, :100] / tiny_batch.host[:, :100].mean(dim=1, keepdim=True)
    doped = tiny_batch.doped[:, :100] / tiny_batch.doped[:, :100].mean(dim=1, keepdim=True)
    torch.testing.assert_close(channels[:, 0], host)
    torch.testing.assert_close(channels[:, 1], torch.log10((doped + 0.01) / (host + 0.01)))
    torch.testing.assert_close(channels[:, 2, :62], tiny_batch.composition)
    assert (channels[:, 2, 62:] == 0).all()


def test_paper_ranks_by_concentration(tiny_model, tiny_batch):
    output = tiny_model("PaperDefectNet")(tiny_batch)
    for row in range(len(tiny_batch.host)):
        chosen = tiny_batch.candidates[row]
        logits, amounts = output.identity_logits[row, chosen], output.concentration_if_present[row, chosen]
        assert torch.equal(logits.argsort(stable=True), amounts.argsort(stable=True))
    assert (output.concentration_if_present < 0).any()  # the order must hold among negative outputs too


def test_paper_on_the_grid_differs_in_its_input_alone(tiny_model, tiny_batch):
    paper = tiny_model("PaperDefectNet")
    torch.manual_seed(0)
    grid = build_model("PaperDefectNet", net={**TINY_NETS["PaperDefectNet"], "input": "grid"}).eval()
    assert {n: p.shape for n, p in grid.named_parameters()} == {n: p.shape for n, p in paper.named_parameters()}
    channels = grid.preprocess(tiny_batch)
    assert channels.shape == (6, 3, MODEL_GRID.bins)
    torch.testing.assert_close(channels[:, 0], tiny_batch.host)
    assert differ(grid.predict_batch(tiny_batch), grid.predict_batch(with_local_mode(tiny_batch)))
    mates = grid.predict_batch(rows(tiny_batch, slice(2, 5)))
    assert_close(mates, grid.predict_batch(tiny_batch).map(lambda x: x[2:5]))


def test_paper_input_has_two_names():
    with pytest.raises(ConfigError, match=r"net.input is 'both'. Use paper or grid"):
        build_model("PaperDefectNet", net={"input": "both"})
    with pytest.raises(ConfigError, match="The composition needs 62 bins"):
        build_model("PaperDefectNet", ModelSpec(grid=Grid(bins=32)), net={"input": "grid"})


# What is particular to ResNet1d


@pytest.mark.parametrize("field", ["edge_mev", "candidates_given", "kind", "composition"])
def test_resnet_uses_every_field(tiny_model, tiny_batch, field):
    changed = {
        "edge_mev": tiny_batch.edge_mev * 1.5,
        "candidates_given": ~tiny_batch.candidates_given,
        "kind": tiny_batch.kind + 1,
        "composition": tiny_batch.composition.roll(1, dims=1),
    }
    model = tiny_model("ResNet1d")
    assert differ(model.predict_batch(tiny_batch), model.predict_batch(tiny_batch._replace(**{field: changed[field]})))


def test_resnet_sees_local_modes_above_the_edge(tiny_model, tiny_batch):
    model = tiny_model("ResNet1d")
    assert differ(model.predict_batch(tiny_batch), model.predict_batch(with_local_mode(tiny_batch)))


def test_resnet_concentration_stays_in_bounds(tiny_model, tiny_batch):
    model = tiny_model("ResNet1d")
    with torch.no_grad():
        model.amount.bias.fill_(100.0)
        high = model(tiny_batch).concentration_if_present[tiny_batch.candidates]
    assert (high <= MAX_CONCENTRATION).all()
    assert (high > 0.99 * MAX_CONCENTRATION).all()


def test_resnet_learns_16_pairs_by_heart(random_batch):
    torch.manual_seed(0)
    batch = random_batch(16)
    present = batch.candidates & (torch.rand(batch.candidates.shape) < 0.1)
    targets = Targets(torch.where(present, 0.01 + 0.2 * torch.rand(present.shape), 0.0))
    model = build_model("ResNet1d", net={"channels": 16, "hidden": 64, "dropout": 0.0}).train()
    solver = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        terms = model.loss_terms(model(batch), batch, targets)
        loss = sum(model.loss_weights[name] * term.mean() for name, term in terms.items())
        solver.zero_grad()
        loss.backward()
        solver.step()
    said = model.predict_batch(batch)
    assert torch.equal(said.identity_logits > 0, present)
    assert (said.concentration_if_present - targets.true_concentration)[present].abs().mean() < 0.01


@pytest.mark.parametrize(
    ("wrong", "text"), [({"channels": 12}, "multiple of 8"), ({"blocks": 0}, "from 1, up to 6"), ({"kernel": 4}, "odd")]
)
def test_resnet_sizes_are_checked(wrong, text):
    with pytest.raises(ConfigError, match=text):
        build_model("ResNet1d", net=wrong)


# Prediction

ENERGY = np.linspace(0.0, 90.0, 181)


def silicon(shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two peaks and an edge near 64 meV, growing as E^2 from zero."""
    peaks = np.exp(-(((ENERGY - 20.0 - shift) / 5) ** 2)) + np.exp(-(((ENERGY - 60.0 - shift) / 3) ** 2))
    return ENERGY, peaks * np.minimum(ENERGY / 10.0, 1.0) ** 2


def test_predict_from_arrays(model):
    answer = model.predict(silicon(), silicon(-1.0), "Si", candidates=["Ge", "C"], unit="meV")
    assert answer.elements == ("C", "Ge")  # in order of atomic number
    assert answer.candidates_given
    assert answer.formula == "Si"
    assert answer.model == type(model).__name__
    assert np.isnan(answer.low).all()
    assert "not calibrated" in answer.warnings[0]
    blind = model.predict(silicon(), silicon(-1.0), "Si", unit="meV")
    assert not blind.candidates_given
    assert "Si" not in blind.elements
    assert len(blind.elements) == len(VOCABULARY) - 1


def test_predict_many_equals_predict(model):
    queries = [
        Query(silicon(), silicon(-1.0), "Si", ["Ge", "C"]),
        Query(silicon(), silicon(2.0), "AlP"),
        (silicon(), silicon(0.5), "SiC", ["N"]),
        Query(silicon(), silicon(0.5), "Si", edge=70.0),
    ]
    many = model.predict_many(queries, unit="meV")
    for query, answer in zip(queries, many, strict=True):
        host, doped, formula, candidates, edge, _ = Query(*query)
        one = model.predict(host, doped, formula, candidates=candidates, unit="meV", edge=edge)
        assert one.elements == answer.elements
        np.testing.assert_allclose(one.probability, answer.probability, atol=1e-6)
        np.testing.assert_allclose(one.concentration_if_present, answer.concentration_if_present, atol=1e-6)
    assert model.predict_many([]) == []


def test_calibration_is_applied_per_track(tiny_model):
    model = tiny_model("DefectNet")
    ask = {
        track: lambda names=names: model.predict(silicon(), silicon(-1.0), "Si", candidates=names, unit="meV")
        for track, names in (("candidates", ["Ge", "C"]), ("blind", None))
    }
    raw = {track: question() for track, question in ask.items()}
    model.calibration = Calibration(
        temperature_candidates=2.0,
        temperature_blind=0.5,
        threshold_candidates=0.25,
        threshold_blind=0.75,
        interval=Interval(coverage=0.9, offset=0.01, slope=0.5),
    )
    for track, temperature, threshold in (("candidates", 2.0, 0.25), ("blind", 0.5, 0.75)):
        old, new = raw[track], ask[track]()
        odds = (old.probability / (1 - old.probability)) ** (1 / temperature)
        np.testing.assert_allclose(new.probability, odds / (1 + odds), rtol=1e-5)
        amount = new.concentration_if_present
        np.testing.assert_allclose(amount, old.concentration_if_present)
        np.testing.assert_allclose(new.high, amount + 0.01 + 0.5 * amount)
        np.testing.assert_allclose(new.low, np.maximum(amount * 0.5 - 0.01, 0.0), atol=1e-12)
        np.testing.assert_allclose(new.expected_concentration, new.probability * amount)
        assert (new.threshold, new.coverage) == (threshold, 0.9)
        assert new.warnings == ()


def test_out_of_domain_warnings(tiny_model):
    model = tiny_model("DefectNet")
    model.calibration = Calibration(interval=Interval(0.9, 0.01))
    model.training_info = {"edge_mev": [10.0, 40.0], "host_elements": ["Ga", "As"]}
    model.spec = replace(model.spec, kinds=("neutron-weighted",))
    found = model.predict(silicon(), silicon(-1.0), "Si", unit="meV").warnings
    assert len(found) == 3
    for text, word in zip(found, ("a total DOS", "band edge is 6", "contains Si"), strict=True):
        assert text.startswith("out of domain")
        assert word in text


def test_descriptors_tell_neighbours_apart(tiny_model):
    table = tiny_model("DefectNet").queries.descriptors
    torch.testing.assert_close(table.mean(dim=0), torch.zeros(5), atol=1e-5, rtol=0.0)
    assert table[INDEX["C"], 0] < table[INDEX["Si"], 0] < table[INDEX["Ge"], 0]  # log mass
    assert torch.cdist(table, table).add(torch.eye(62)).min() > 0.02
