"""The baselines fit, answer row by row, and beat the floor where a spectrum tells something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from defectnet.batch import Batch
from defectnet.benchmark.baselines import BASELINES, linear
from defectnet.benchmark.baselines.base import RawScores, ScoreCalibration
from defectnet.benchmark.baselines.composition import Candidates, HostComposition, Prior
from defectnet.benchmark.baselines.features import E, Preprocess, contrasts, moments, prior_features, relations
from defectnet.benchmark.baselines.nearest import Library, Matching
from defectnet.benchmark.baselines.pairs import sample_pairs
from defectnet.benchmark.baselines.table import CONDITIONS, FitArrays, Questions
from defectnet.benchmark.baselines.trees import LightGbm
from defectnet.benchmark.baselines.unmixing import Templates, _sparse_nnls
from defectnet.benchmark.protocol import FitData, TrainableEstimator
from defectnet.data.candidates import TRACKS
from defectnet.data.module import SpectraDataModule
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import ConfigError
from make_shards import toy_folder

SPECTRAL = sorted(set(BASELINES) - {"mean", "composition", "candidates"})


@pytest.fixture(scope="module", autouse=True)
def _short_searches():
    """Trees take long where they learn little; the larger ones are searched no differently."""
    with pytest.MonkeyPatch.context() as patch:
        logistic, trees = Candidates.options[1], {**Candidates.options[3], "n_estimators": 20}
        for cls in (Candidates, HostComposition):
            patch.setattr(cls, "options", (logistic, trees))
        patch.setattr(Prior, "options", (logistic,))
        sizes = [{**size, "n_estimators": 40, "min_child_samples": 20} for size in LightGbm.sizes[:2]]
        patch.setattr(LightGbm, "sizes", tuple(sizes))
        patch.setattr(linear, "_WINDOWS", (0, 7))
        patch.setattr(linear.Pls, "_COMPONENTS", (5, 20))
        patch.setattr(linear.Ridge, "_PENALTIES", (100.0, 1000.0))
        patch.setattr(linear.Ridge, "_GAMMAS", (1.0,))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = toy_folder(tmp_path_factory.mktemp("toy"), train=120, val=60, test=60)
    return SpectraDataModule(str(folder), batch_size=64)


@pytest.fixture(scope="module")
def arrays(data):
    return FitArrays(FitData(data))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same rows twice, fewer of them."""
    folder = toy_folder(tmp_path_factory.mktemp("few"), train=20, val=10, test=10)
    return [FitArrays(FitData(SpectraDataModule(str(folder), batch_size=64))) for _ in range(2)]


@pytest.fixture(scope="module")
def fitted(arrays):
    """`fitted(name)`: that baseline, fitted once for all tests."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = BASELINES[name]().fit_arrays(arrays)
        return kept[name]

    return get


def unseen(data, track, condition="clean"):
    items = list(data.evaluation("test", track, condition))
    batch = Batch.join([item.batch for item in items])
    return batch, torch.cat([item.targets.true_concentration for item in items])


def scores(model, data, track, condition="clean"):
    """Return micro average precision and the mean absolute error of the expected concentration."""
    batch, true = unseen(data, track, condition)
    said, asked = model.estimate(batch), batch.candidates
    precision = average_precision_score((true > 0)[asked].numpy(), said.probability[asked].numpy())
    return precision, float((said.expected_concentration - true)[asked].abs().mean())


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_keeps_the_protocol(fitted, data, name):
    model = fitted(name)
    assert isinstance(model, TrainableEstimator)
    assert model.describe()["description"]
    assert isinstance(model.settings, dict)
    for track in TRACKS:
        batch, _ = unseen(data, track, "lab")
        said = model.estimate(batch)
        for field in said[:3]:
            assert field.shape == batch.candidates.shape
            assert torch.isfinite(field).all()
            assert ((field >= 0) & (field <= 1)).all()
        asked = batch.candidates
        torch.testing.assert_close(
            said.expected_concentration[asked], (said.probability * said.concentration_if_present)[asked].clamp(max=0.5)
        )
        assert said.probability[asked].std() > 0


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_reads_spectra_beats_the_mean(fitted, data, name, condition):
    for track, factor in (("candidates", 1.05), ("blind", 1.5)):
        precision, error = scores(fitted(name), data, track, condition)
        floor, floor_error = scores(fitted("mean"), data, track, condition)
        assert precision > factor * floor
        assert error < floor_error


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_answers_do_not_depend_on_batch_mates(fitted, data, name):
    model = fitted(name)
    for track in TRACKS:
        batch, _ = unseen(data, track)
        together = model.estimate(batch)
        for chosen in (slice(0, 1), torch.tensor([17, 3, 40]), slice(50, 60)):
            alone = model.estimate(batch.rows(chosen))
            for a, b in zip(alone[:3], together[:3], strict=True):
                torch.testing.assert_close(a, b[chosen], rtol=1e-5, atol=1e-7)
        assert model.estimate(batch.rows(slice(0))).probability.shape == (0, E)


def test_tracks_may_be_mixed_in_a_batch(fitted, data):
    parts = [unseen(data, track)[0] for track in TRACKS]
    mixed = Batch.join(parts)
    for name in ("ridge", "lightgbm", "mean"):
        said = fitted(name).estimate(mixed).probability
        torch.testing.assert_close(said, torch.cat([fitted(name).estimate(part).probability for part in parts]))


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_a_second_fit_is_the_same(few, name):
    one, other = (BASELINES[name]().fit_arrays(arrays) for arrays in few)
    assert one.settings == other.settings
    batch, _ = unseen(few[0]._data._module, "blind", "lab")
    for a, b in zip(one.estimate(batch)[:3], other.estimate(batch)[:3], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["mean", "candidates", "composition"])
def test_what_reads_no_spectra_does_not(fitted, data, name):
    for track in TRACKS:
        batch, _ = unseen(data, track)
        swapped = batch._replace(
            host=batch.doped.flip(0), doped=batch.host, edge_mev=2.0 * batch.edge_mev, kind=1 - batch.kind.clamp(max=1)
        )
        for a, b in zip(fitted(name).estimate(batch)[:3], fitted(name).estimate(swapped)[:3], strict=True):
            assert torch.equal(a, b)
    other = batch._replace(composition=batch.composition.flip(0))
    same = torch.equal(fitted(name).estimate(other).probability, fitted(name).estimate(batch).probability)
    assert same == (name != "composition")


def test_no_baseline_reaches_the_test_rows(data, monkeypatch):
    asked = []
    evaluation = data.evaluation
    monkeypatch.setattr(data, "evaluation", lambda split, *rest: (asked.append(split), evaluation(split, *rest))[1])
    BASELINES["pls"]().fit(FitData(data))
    assert set(asked) == {"train", "val"}


def test_both_conditions_and_tracks_are_learnt_from(data, arrays):
    rows = len(data.index("train"))
    assert len(arrays.spectra.true_concentration) == len(arrays.named.true_concentration) == 2 * rows
    np.testing.assert_array_equal(arrays.spectra.true_concentration, arrays.named.true_concentration)
    np.testing.assert_array_equal(arrays.spectra.questions.doped, arrays.named.questions.doped)
    assert set(arrays.spectra.questions.kind) == {0, 1}
    assert arrays.named.questions.given.all()
    assert not arrays.spectra.questions.given.any()


def test_another_grid_is_refused(fitted, data):
    batch, _ = unseen(data, "blind")
    with pytest.raises(ConfigError, match="the spectra have 128 bins"):
        fitted("ridge").estimate(batch._replace(host=batch.host[:, ::2], doped=batch.doped[:, ::2]))


# The parts


def test_relations_are_those_of_the_element_most_alike():
    share = np.zeros((1, E))
    share[0, [INDEX["Ga"], INDEX["As"]]] = 0.5
    table = relations(share)[0]
    mass = np.log([26.982 / 69.723, 30.974 / 74.922])  # Al on Ga, P on As
    spread = np.log([float(x) for x in (69.723,)])[0] - relations(share)[0, INDEX["Ga"], -1]
    assert spread == pytest.approx(0.0, abs=1e-4)  # the last column is the log mass itself
    scale = table[INDEX["Al"], 0] / mass[0]
    assert table[INDEX["P"], 0] == pytest.approx(scale * mass[1], rel=1e-3)
    assert table[INDEX["Ga"], :5] == pytest.approx(0.0)
    assert table[INDEX["Ga"], 10] == pytest.approx(1.0)


def test_scaled_contrast_keeps_its_shape_and_nothing_else(arrays):
    questions = arrays.spectra.questions.take(slice(0, 20))
    half = questions._replace(doped=(questions.host + questions.doped) / 2)
    channel = slice(0, 256)  # the difference, which is linear in the contrast
    plain, snv = Preprocess(), Preprocess(snv=True)
    np.testing.assert_allclose(
        contrasts(half, plain)[:, channel], contrasts(questions, plain)[:, channel] / 2, atol=1e-5
    )
    strong = np.abs(contrasts(half, plain)[:, channel]).max(axis=1) > 1.0
    assert strong.any()
    np.testing.assert_allclose(
        contrasts(half, snv)[strong, channel], contrasts(questions, snv)[strong, channel], atol=0.1
    )


def test_no_contrast_gives_no_features(arrays):
    questions = arrays.spectra.questions
    same = questions._replace(doped=questions.host)
    for how in (Preprocess(), Preprocess(window=7, snv=True), Preprocess(derivative=1)):
        assert np.abs(contrasts(same, how)).max() < 1e-9
    assert np.abs(moments(same)[:, [0, 3, 4, 5, 6]]).max() < 1e-9


def test_prior_features_of_the_list_alone_do_not_know_the_host(arrays):
    questions = arrays.named.questions.take(slice(0, 10))
    other = questions._replace(composition=questions.composition[::-1])
    np.testing.assert_array_equal(prior_features(questions, host=False), prior_features(other, host=False))
    assert not np.array_equal(prior_features(questions, host=True), prior_features(other, host=True))


def test_sampled_pairs_stand_for_all(arrays):
    part = arrays.spectra
    pairs = sample_pairs(part, lambda questions, _: questions.asked[..., None] * 1.0)
    assert pairs.present.sum() == part.present.sum()
    assert pairs.weight.sum() == pytest.approx(part.questions.asked.sum())
    assert (pairs.features == 1.0).all()  # only elements in question
    assert len(pairs.amount) < 0.3 * part.questions.asked.sum()


def test_sparse_nnls_finds_what_was_mixed():
    rng = np.random.default_rng(0)
    templates = rng.normal(size=(20, 48))
    true = np.zeros(20)
    true[[3, 11]] = 2.0, 5.0
    mixed = true @ templates + 0.01 * rng.normal(size=48)
    np.testing.assert_allclose(_sparse_nnls(templates, mixed, 0.0), true, atol=0.05)
    assert (_sparse_nnls(templates, mixed, 0.0) >= 0).all()
    assert (_sparse_nnls(templates, mixed, 1e4) == 0).all()
    assert (_sparse_nnls(templates, -mixed, 0.0)[[3, 11]] == 0).all()


def test_templates_unmix_a_pair_that_was_never_seen(arrays):
    """A mixture of two templates in a host, made up here, is taken apart again."""
    model = Templates(window=0, penalty=1.0, directions=48, sparsity=0.0).fit(arrays.spectra)
    questions = arrays.spectra.questions.take(slice(0, 8))
    chosen = [INDEX["Li"], INDEX["Pb"]]
    made = model._templates(questions)[:, chosen].sum(axis=1) * 0.05
    asked = np.zeros((8, E), dtype=bool)
    asked[:, [*chosen, INDEX["Zn"], INDEX["Ca"]]] = True
    mixed = questions._replace(doped=questions.host + made, asked=asked)
    raw = model.raw(mixed)
    np.testing.assert_allclose(raw.amount[:, chosen], 0.05, rtol=0.2)
    best = np.argsort(-np.where(asked, raw.scores[..., 0], -np.inf), axis=1)[:, :2]
    assert (np.sort(best, axis=1) == chosen).all()


def test_the_library_finds_a_training_pair_again(arrays):
    part = arrays.spectra
    library = Library(Matching(neighbours=1, relation=0.0)).fit(part)
    one = np.flatnonzero(part.present.sum(axis=1) == 1)[:10]
    raw = library.raw(part.questions.take(one))
    assert (raw.scores[..., 0].argmax(axis=1) == part.true_concentration[one].argmax(axis=1)).all()
    found = raw.amount[np.arange(len(one)), part.true_concentration[one].argmax(axis=1)]
    np.testing.assert_allclose(found, part.true_concentration[one].max(axis=1), rtol=0.1)


def test_a_neighbour_votes_for_what_stands_to_the_host_alike(arrays):
    part = arrays.spectra
    one = np.flatnonzero(part.present.sum(axis=1) == 1)[:10]
    truth = part.true_concentration[one].argmax(axis=1)
    narrow = Library(Matching(neighbours=1, relation=0.05)).fit(part).raw(part.questions.take(one)).scores[..., 0]
    wide = Library(Matching(neighbours=1, relation=1.0)).fit(part).raw(part.questions.take(one)).scores[..., 0]
    assert (narrow.argmax(axis=1) == truth).all()
    # Width spreads the vote over elements of like mass and size.
    assert (np.exp(wide).sum(axis=1) > 2.0 * np.exp(narrow).sum(axis=1)).all()


def test_the_calibration_turns_scores_into_rates(arrays):
    rng = np.random.default_rng(0)
    parts = [part for track in TRACKS for part in arrays.val[track]]

    def raw_of(part):
        noise = rng.normal(size=part.present.shape)
        return RawScores((3.0 * part.present + noise)[..., None], np.full(noise.shape, 0.01))

    raws = [raw_of(part) for part in parts]
    calibrator = ScoreCalibration(reads_spectra=False).fit(parts, raws)
    for part, raw in zip(parts, raws, strict=True):
        probability, amount = calibrator.apply(part.questions, raw)
        asked = part.questions.asked
        assert probability[asked].mean() == pytest.approx(part.present[asked].mean(), rel=0.1)
        assert probability[part.present].mean() > 3 * probability[asked & ~part.present].mean()
        assert (probability[~asked] == 0).all()
        median = np.median(part.true_concentration[part.present])
        assert np.median(amount[part.present]) == pytest.approx(median, rel=0.5)


def test_too_few_validation_rows_are_one_error(arrays):
    parts = [part.take(part.present.sum(axis=1) == 0) for part in arrays.val["candidates"]]
    raws = [RawScores(part.true_concentration[..., None], part.true_concentration) for part in parts]
    with pytest.raises(ConfigError, match=r"the validation rows ask about no dopant\. Give more validation rows"):
        ScoreCalibration(reads_spectra=True).fit(parts, raws)


def test_systems_number_the_sets_of_host_elements():
    share = np.zeros((4, E))
    for row, names in enumerate((("Ga", "As"), ("Si",), ("As", "Ga"), ("Ga",))):
        share[row, [INDEX[name] for name in names]] = 1.0 / len(names)
    empty = np.zeros((4, 1))
    asked = np.zeros((4, len(VOCABULARY)), dtype=bool)
    kind = np.zeros(4, dtype=np.int64)
    numbers = Questions(empty, empty, empty[:, 0], share, asked, asked[:, 0], kind).systems
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3
