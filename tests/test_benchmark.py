"""The benchmark measures what it says: metrics against other ways of computing them, and every entrant asked alike."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, r2_score

from benchmark_results import ELEMENTS, toy_part, toy_scores
from defectnet.batch import Estimate
from defectnet.benchmark import bootstrap, detection
from defectnet.benchmark.bootstrap import Resamples, replicate
from defectnet.benchmark.curves import CURVE_POINTS, SCATTER_POINTS, curves, precision_recall, reliability
from defectnet.benchmark.entrants import Entrant
from defectnet.benchmark.metrics import inclusion, recall_at_k, summary
from defectnet.benchmark.protocol import TrainableEstimator
from defectnet.benchmark.results import GROUPS, MAIN, compare, interval, read_result, write_result
from defectnet.benchmark.runner import Benchmark, plain
from defectnet.benchmark.scores import Facts, read_facts
from defectnet.config import MODEL_GRID
from defectnet.data.dataset import index_folder
from defectnet.data.shards import read_shard
from defectnet.elements import INDEX, VOCABULARY, properties
from defectnet.errors import ConfigError, ShardError
from defectnet.models.estimator import Estimator
from make_shards import toy_sample, write_toy_folder

MASS = properties("mass_u")


@pytest.fixture(scope="module")
def scores():
    return toy_scores()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Toy rows of all splits, each of a host of its own."""
    wanted, samples, hosts, number = {"train": 12, "val": 16, "test": 24}, [], set(), 0
    while any(wanted.values()):
        split = next(name for name, left in wanted.items() if left)
        sample, number = toy_sample(number, split), number + 1
        if sample.chemical_system not in hosts:
            hosts.add(sample.chemical_system)
            samples.append(sample)
            wanted[split] -= 1
    return write_toy_folder(tmp_path_factory.mktemp("benchmark") / "toy", samples)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_agree_with_plain_loops(scores):
    threshold = 0.4
    values = summary(scores, threshold, 0.9)
    asked, present, p = scores.asked, scores.present, scores.probability
    claimed = (p >= threshold) & asked
    identity = values["identity"]
    assert identity["ap_micro"] == pytest.approx(average_precision_score(present[asked], p[asked]))
    assert identity["f1"] == pytest.approx(f1_score(present[asked], claimed[asked]))
    columns = [
        average_precision_score(present[asked[:, e], e], p[asked[:, e], e])
        for e in range(ELEMENTS)
        if present[:, e].any()
    ]
    assert identity["ap_macro"] == pytest.approx(np.mean(columns))
    shares = []
    for row in range(len(p)):
        if k := present[row].sum():
            shares.append(present[row][np.argsort(-p[row])[:k]].mean())
    assert identity["recall_at_k"] == pytest.approx(np.mean(shares))
    assert identity["exact"] == pytest.approx(np.mean([(a == b).all() for a, b in zip(claimed, present, strict=True)]))
    error = 100 * (scores.expected - scores.true)[asked]
    assert values["concentration"]["mae"] == pytest.approx(np.abs(error).mean())
    assert values["concentration"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    assert values["concentration"]["r2"] == pytest.approx(r2_score(scores.true[asked], scores.expected[asked]))
    assert values["calibration"]["brier"] == pytest.approx(((p - present)[asked] ** 2).mean())
    assert {group: tuple(values[group]) for group in GROUPS} == GROUPS
    assert values["rows"] == 120
    assert values["dopants"] == present.sum()


def test_parts_add_up(scores):
    values = summary(scores, 0.4, 0.9)
    count = scores.dopants
    for group in ("by_dopants", "by_placement"):
        assert sum(part["rows"] for part in values[group].values()) == 120
    assert values["by_dopants"]["1"]["rows"] == values["one_dopant"]["rows"] == (count == 1).sum()
    assert values["many_dopants"]["rows"] == (count > 1).sum()
    assert sum(part["dopants"] for part in values["by_range"].values()) == values["dopants"]
    assert sum(row["dopants"] for row in values["elements"].values()) == values["dopants"]
    assert sum(row["dopants"] for row in values["detection"]["by_mass"]) == values["dopants"]
    among = [row["recall_at_k"] * row["dopants"] for row in values["elements"].values() if row["dopants"]]
    assert sum(among) == pytest.approx(inclusion(scores, count).sum())
    inside = (scores.low <= scores.true) & (scores.true <= scores.high)
    assert values["interval"]["coverage"] == pytest.approx(inside[scores.present].mean())
    covered = [part["coverage"] * part["dopants"] for part in values["by_range"].values() if part["dopants"]]
    assert sum(covered) == pytest.approx(inside[scores.present].sum())


def test_one_dopant_counts_the_first_and_the_first_five(scores):
    values = summary(scores, 0.4)
    rows = np.flatnonzero((scores.dopants == 1) & (scores.true.sum(axis=1) >= 0.02))
    for k in (1, 5):
        hits = [scores.present[row][np.argsort(-scores.probability[row])[:k]].any() for row in rows]
        assert values["one_dopant_plenty"][f"top_{k}"] == pytest.approx(np.mean(hits))
    assert values["one_dopant_plenty"]["rows"] == len(rows)


def test_ties_are_broken_at_random_in_the_mean(scores):
    """Who answers the same for every element finds a dopant as often as chance does, wherever it stands."""
    flat = scores._replace(probability=np.where(scores.asked, 0.3, -1.0))
    asked = scores.asked.sum(axis=1)
    some = scores.dopants > 0
    assert np.allclose(recall_at_k(flat), (scores.dopants / asked)[some])


def test_without_intervals_and_without_dopants():
    values = summary(toy_scores(bands=False), 0.4)
    assert values["interval"] is None
    scores = toy_scores()
    none = summary(scores.rows(scores.dopants == 0), 0.4)
    assert none["identity"]["ap_micro"] is None
    assert none["concentration"]["r2"] is None
    assert none["one_dopant"] == {"rows": 0, "top_1": None, "top_5": None, "mae": None, "r2": None}
    json.dumps(none, allow_nan=False)


def test_perfect_and_absurd_answers_get_what_they_deserve():
    scores = toy_scores()
    perfect = scores._replace(probability=np.where(scores.asked, scores.present * 1.0, -1.0), expected=scores.true)
    values = summary(perfect, 0.5)
    assert all(values["identity"][name] == 1.0 for name in ("ap_micro", "ap_macro", "recall_at_k", "f1", "exact"))
    assert values["concentration"]["mae"] == 0.0
    assert values["concentration"]["r2"] == values["many_dopants"]["r2"] == 1.0
    assert values["calibration"]["error"] == 0.0
    absurd = scores._replace(probability=np.where(scores.asked, 1.0 - scores.present, -1.0))
    assert summary(absurd, 0.5)["identity"]["f1"] == 0.0
    assert summary(absurd, 0.5)["calibration"]["error"] == pytest.approx(1.0)


# -- detection limit ---------------------------------------------------------------------------------------------------


def test_the_limit_of_a_known_step_is_found():
    rng = np.random.default_rng(0)
    concentration = np.exp(rng.uniform(np.log(0.002), np.log(0.2), 2000))
    hit = rng.random(2000) < np.where(concentration > 0.03, 0.97, 0.5)
    assert detection.limit(concentration, hit) == pytest.approx(3.0, rel=0.1)
    assert detection.limit(concentration, np.ones(2000, dtype=bool)) == pytest.approx(0.2, rel=0.01)
    assert detection.limit(concentration, rng.random(2000) < 0.6) is None


def test_few_dopants_give_no_limit():
    concentration = np.geomspace(0.002, 0.2, detection.LEAST_DOPANTS)
    assert detection.limit(concentration, np.ones(len(concentration), dtype=bool)) is not None
    assert detection.limit(concentration[1:], np.ones(len(concentration) - 1, dtype=bool)) is None
    # Nine hits at the top are no limit: chance does that too.
    few = np.arange(len(concentration)) >= len(concentration) - detection.LEAST_ABOVE + 1
    assert detection.limit(concentration, few) is None


def test_false_alarms_stay_below_what_is_allowed():
    rng = np.random.default_rng(0)
    for absent in (rng.random(1000), rng.integers(0, 3, 1000) / 3, np.full(1000, 0.2)):
        threshold = detection.false_alarm_threshold(absent)
        assert (absent > threshold).mean() <= detection.FALSE_POSITIVES
    assert detection.false_alarm_threshold(np.zeros(0)) == 0.0


def test_mass_differences_are_sorted_into_their_bins(scores):
    found = detection.detection(scores)["by_mass"]
    difference = scores.facts.mass_ratio[scores.present] - 1.0
    for row in found:
        assert row["dopants"] == ((difference >= row["from"]) & (difference < row["to"])).sum()
        assert sum(part["dopants"] for part in row["by_range"]) == row["dopants"]


# -- resamples ---------------------------------------------------------------------------------------------------------


def test_each_resample_is_what_the_metric_gives_on_its_rows(scores):
    """A system that is drawn twice counts twice: the same as measuring the rows written twice."""
    draws = Resamples.draw(scores.facts.system, 5, seed=3)
    claimed = scores.asked & (scores.probability >= 0.4)
    found = replicate(scores, claimed, draws)
    for number, counts in enumerate(draws.counts):
        times = counts[np.searchsorted(draws.systems, scores.facts.system)].astype(int)
        values = summary(scores.rows(np.repeat(np.arange(120), times)), 0.4)
        for name in MAIN:
            group, key = name.split(".")
            assert found[name][number] == pytest.approx(values[group][key]), name


def test_average_precision_of_resamples_agrees_with_sklearn_on_ties():
    rng = np.random.default_rng(0)
    scores = toy_scores(40)
    scores = scores._replace(probability=np.where(scores.asked, rng.integers(0, 4, scores.asked.shape) / 4, -1.0))
    draws = Resamples.draw(scores.facts.system, 7)
    place = np.searchsorted(draws.systems, scores.facts.system)
    found = bootstrap.average_precision(scores, place, draws.counts)
    for value, counts in zip(found, draws.counts, strict=True):
        weight = np.broadcast_to(counts[place][:, None], scores.asked.shape)[scores.asked]
        wanted = average_precision_score(
            scores.present[scores.asked], scores.probability[scores.asked], sample_weight=weight
        )
        assert value == pytest.approx(wanted)


def test_small_pieces_give_the_same(scores, monkeypatch):
    draws = Resamples.draw(scores.facts.system, 9)
    place = np.searchsorted(draws.systems, scores.facts.system)
    whole = bootstrap.average_precision(scores, place, draws.counts)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 1)
    assert np.allclose(bootstrap.average_precision(scores, place, draws.counts), whole, rtol=1e-12)


def test_draws_depend_on_the_systems_and_the_seed_alone(scores):
    system = scores.facts.system
    one = Resamples.draw(system, 4, seed=1)
    assert np.array_equal(one.counts, Resamples.draw(system[::-1], 4, seed=1).counts)
    assert not np.array_equal(one.counts, Resamples.draw(system, 4, seed=2).counts)
    assert (one.counts.sum(axis=1) == len(one.systems)).all()
    assert Resamples.draw(system, 0).counts.shape == (0, len(one.systems))
    with pytest.raises(ConfigError, match="bootstrap is -1"):
        Resamples.draw(system, -1)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Whole systems share an error; intervals over systems must allow for it."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(200):
        values = rng.normal(0.0, 1.0, 30)
        counts = rng.multinomial(30, np.full(30, 1 / 30), size=200)
        low, high = interval(counts @ values / 30)
        covered.append(low <= 0.0 <= high)
    assert np.mean(covered) == pytest.approx(0.94, abs=0.05)
    assert interval(np.full(10, np.nan)) is None
    assert interval(np.zeros(0)) is None


# -- curves ------------------------------------------------------------------------------------------------------------


def test_curves_are_short_and_right(scores):
    curve = precision_recall(scores)
    recall, precision = np.array(curve["recall"]), np.array(curve["precision"])
    assert len(recall) <= CURVE_POINTS
    assert (np.diff(recall) >= 0).all()
    area = float((np.diff(recall, prepend=0.0) * precision).sum())
    assert area == pytest.approx(summary(scores, 0.4)["identity"]["ap_micro"], abs=0.02)
    bins = reliability(scores)
    assert sum(row["count"] for row in bins) == scores.asked.sum()
    share = sum(row["count"] * row["true"] for row in bins) / scores.asked.sum()
    assert share == pytest.approx(scores.present[scores.asked].mean(), abs=1e-4)


def test_examples_are_of_the_best_and_the_worst(scores):
    host = np.ones(MODEL_GRID.bins)
    found = curves(scores, lambda row: (host, row * host), MODEL_GRID)
    assert len(found["concentration"]["true"]) == min(scores.present.sum(), SCATTER_POINTS)
    rows = scores.facts.row_id.tolist()
    cost = []
    for example in found["examples"]:
        row = rows.index(example["row"])
        assert example["doped"][0] == pytest.approx(row, rel=1e-2)
        assert example["true"] == {
            VOCABULARY[e]: pytest.approx(100 * scores.true[row, e], abs=1e-3)
            for e in np.flatnonzero(scores.present[row])
        }
        p = scores.probability[row].clip(1e-6, 1 - 1e-6)
        cost.append(-np.log(np.where(scores.present[row], p, 1 - p))[scores.asked[row]].sum())
    assert [example["good"] for example in found["examples"]] == [True, True, False, False]
    assert max(cost[:2]) < min(cost[2:])
    assert curves(scores, lambda row: (host, row * host), MODEL_GRID) == found


# -- facts of the rows -------------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_shards(folder):
    index = index_folder(folder, "test")
    facts = read_facts(index)
    samples = {s.row_id: s for path in index.paths for s in read_shard(path) if s.split == "test"}
    assert facts.row_id.tolist() == [s.row_id for s in samples.values()]
    for row, name in enumerate(facts.row_id):
        sample = samples[str(name)]
        assert facts.system[row] == sample.chemical_system
        present = np.isfinite(facts.mass_ratio[row])
        assert [VOCABULARY[e] for e in np.flatnonzero(present)] == sorted(sample.dopants, key=VOCABULARY.index)
        # In the toy cells the first half of the sites belongs to the first host atom.
        first, second = (MASS[INDEX[symbol]] for symbol in sample.host_elements)
        for symbol in sample.dopants:
            sites = [s for s, d in zip(sample.sites, sample.site_dopants, strict=True) if d == symbol]
            replaced = np.mean([first if site < sample.atoms // 2 else second for site in sites])
            assert facts.mass_ratio[row, INDEX[symbol]] == pytest.approx(MASS[INDEX[symbol]] / replaced)


def test_sites_outside_of_the_cell_are_one_clear_error(tmp_path):
    from dataclasses import replace

    bad = replace(toy_sample(5, "test", 1), sites=(9_999,), site_dopants=("Li",))
    index = index_folder(write_toy_folder(tmp_path / "bad", [bad], shards=1), "test")
    with pytest.raises(ShardError, match="sites outside the cell"):
        read_facts(index)


# -- the run -----------------------------------------------------------------------------------------------------------


class Noted(TrainableEstimator):
    """Answers by a rule, and notes what it was given."""

    def __init__(self):
        self.batches, self.seen = [], None
        self.settings = {"neighbours": np.int64(3), "shares": (np.float32(0.5),)}

    def fit(self, data):
        self.seen = {
            (split, track, condition): getattr(data, split)(track, condition)
            for split in ("train", "val")
            for track in ("candidates", "blind")
            for condition in ("clean", "lab")
        }
        data.train("blind", "clean").batch.host.zero_()  # its own copy
        return self

    def estimate(self, batch):
        self.batches.append(batch.map(torch.clone))
        change = (batch.doped - batch.host).abs().sum(1, keepdim=True)
        weights = torch.linspace(0.1, 1.0, ELEMENTS, dtype=batch.host.dtype)
        probability = torch.sigmoid(weights * change / 50.0 - 1.0)
        batch.host.zero_()  # a rude guest: the next one must not notice
        return Estimate(probability, 0.02 * probability)


@pytest.fixture(scope="module")
def bench(folder):
    return Benchmark(folder, bootstrap=30)


@pytest.fixture(scope="module")
def measured(bench):
    noted = Noted()
    return noted, bench.measure(Entrant("noted", noted))


def test_a_result_is_written_and_read(measured, tmp_path):
    _, result = measured
    assert read_result(write_result(result, tmp_path)) == result
    assert set(result["results"]) == {"candidates", "blind"}
    assert set(result["results"]["blind"]) == {"clean", "lab"}
    assert result["notes"]["settings"] == {"neighbours": 3, "shares": [0.5]}
    assert result["data"]["rows"] == result["results"]["blind"]["lab"]["rows"] == 24
    assert result["data"]["sha256"] is None
    assert set(result["results"]["blind"]["lab"]["intervals"]) == set(MAIN)
    assert len(result["results"]["blind"]["lab"]["resampled"]["concentration.mae"]) == 30


def test_no_test_row_is_learnt_from(measured, folder):
    noted, _ = measured
    rows = {split: len(index_folder(folder, split)) for split in ("train", "val")}
    for (split, track, _), (batch, concentration) in noted.seen.items():
        assert len(batch.host) == len(concentration) == rows[split]
        assert bool(batch.candidates_given[0]) == (track == "candidates")
        assert bool(((concentration > 0) <= batch.candidates).all())
    test = Benchmark(folder, bootstrap=0)._rows(MODEL_GRID, "test", "blind", "clean")[0].batch
    seen = torch.cat([lesson.batch.composition for lesson in noted.seen.values()])
    assert not (test.composition[:, None] > 0).eq(seen[None] > 0).all(dim=2).any()


def test_rows_stay_what_they_were_whatever_an_entrant_does(measured, bench):
    noted, first = measured
    assert all(bool((batch.host.sum(1) > 0).all()) for batch in noted.batches)
    again = Noted()
    second = bench.measure(Entrant("noted", again))
    for key, lesson in again.seen.items():
        assert all(torch.equal(a, b) for a, b in zip(lesson.batch[:-1], noted.seen[key].batch[:-1], strict=True))
    for result in (first, second):
        result["seconds"] = {}
    assert first == second


def test_the_threshold_is_chosen_on_validation_rows(bench):
    """The best threshold there, and no other, whatever is best on the test rows."""
    entrant = Entrant("noted", Noted())
    chosen = bench.scores(entrant, "blind", "clean", "val")
    result = bench.measure(entrant, ["blind"], ["clean"])["results"]["blind"]["clean"]
    present, p = chosen.present[chosen.asked], chosen.probability[chosen.asked]
    precision, recall, _ = precision_recall_curve(present, p)  # at every threshold
    best = (2.0 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert f1_score(present, p >= result["threshold"]) == pytest.approx(best)
    scores = bench.scores(entrant, "blind", "clean")
    claimed = (scores.probability >= result["threshold"])[scores.asked]
    assert result["identity"]["f1"] == pytest.approx(f1_score(scores.present[scores.asked], claimed))


def test_rows_and_facts_belong_together(bench, folder):
    scores = bench.scores(Entrant("noted", Noted()), "candidates", "clean")
    assert np.array_equal(np.isfinite(scores.facts.mass_ratio), scores.present)
    samples = {s.row_id: s for path in sorted(folder.glob("*.parquet")) for s in read_shard(path)}
    for row, name in enumerate(scores.facts.row_id):
        wanted = {INDEX[symbol]: value for symbol, value in samples[str(name)].concentrations.items()}
        assert {e: pytest.approx(scores.true[row, e]) for e in np.flatnonzero(scores.present[row])} == wanted


def test_comparison_of_two_entrants(bench):
    class Oracle(Estimator):
        """Knows the answer: what the best possible looks like."""

        def estimate(self, batch):
            rows = [key.index(tuple(composition.tolist())) for composition in batch.composition]
            true = torch.stack([concentration[row] for row in rows])
            return Estimate((true > 0).double(), true)

    items = bench._rows(MODEL_GRID, "val", "blind", "clean") + bench._rows(MODEL_GRID, "test", "blind", "clean")
    key = [tuple(row.tolist()) for item in items for row in item.batch.composition]
    concentration = torch.cat([item.targets.true_concentration for item in items]).double()
    best = bench.measure(Entrant("oracle", Oracle()))
    assert best["results"]["blind"]["lab"]["identity"]["exact"] == 1.0
    assert best["results"]["candidates"]["lab"]["concentration"]["mae"] == pytest.approx(0.0, abs=1e-5)
    other = bench.measure(Entrant("noted", Noted()))
    gain = compare(best, other)["blind"]["clean"]["identity.ap_micro"]
    assert gain.low > 1.0
    assert gain.value == pytest.approx(1.0 / other["results"]["blind"]["clean"]["identity"]["ap_micro"])


def test_a_track_that_cannot_be_asked_is_left_out(bench):
    needy = Noted()
    needy.asks_blind = False
    entrant = Entrant("half", needy)
    result = bench.measure(entrant, ["candidates", "blind"], ["clean"])
    assert list(result["results"]) == ["candidates"]
    assert result["skipped"] == {"blind": "takes the candidates as its query"}
    with pytest.raises(ConfigError, match="half cannot be asked blind"):
        bench.measure(entrant, ["blind"], ["clean"])


def test_wrong_words_are_one_clear_error(bench, folder, tmp_path):
    entrant = Entrant("noted", Noted())
    with pytest.raises(ConfigError, match="track is 'sighted'"):
        bench.measure(entrant, ["sighted"])
    with pytest.raises(ConfigError, match="measurement 'dirty'"):
        bench.measure(entrant, ["blind"], ["dirty"])
    with pytest.raises(ConfigError, match="split is 'train'"):
        Benchmark(folder, "train")
    with pytest.raises(ShardError, match="does not exist"):
        Benchmark(tmp_path / "absent")


def test_plain_values_are_what_json_takes():
    found = plain({1: np.float64(0.5), "a": (np.bool_(True), {"b": np.nan}), "c": Facts})
    assert found == {"1": 0.5, "a": [True, {"b": "nan"}], "c": str(Facts)}
    json.dumps(found, allow_nan=False)


def test_toy_parts_are_whole():
    """What other tests draw figures from has every number that a measured result has."""
    part = toy_part(toy_scores(skill=1.0))
    assert all(part["intervals"][name] is not None for name in MAIN)
