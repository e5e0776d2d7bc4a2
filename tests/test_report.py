"""Results reach tables, figures and documents whole, or not at all."""

from __future__ import annotations

import copy
import json
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

import predict
import report
from benchmark_results import toy_result
from conftest import make_random_batch
from defectnet.benchmark import tables
from defectnet.benchmark.results import compare, file_name, read_result, read_results, write_result
from defectnet.errors import ConfigError
from defectnet.files import into_block
from defectnet.hub import save
from report import featured, main, page
from report_figures import FIGURES, LARGEST_KB, write_figures
from report_tables import leaderboard, short_form
from targets import best_without_attention, flagship, read_speed, targets
from targets import main as targets_main

CARD = "# Card\n<!-- results:start -->\nold\n<!-- results:end -->\nend\n"
SPEED = {
    "checkpoints": {
        "defectnet-base": {
            "batches": [
                {"threads": 1, "batch_size": 64, "precision": 64, "pairs_per_second": 900.0},
                {"threads": 2, "batch_size": 64, "precision": 64, "pairs_per_second": 620.0},
                {"threads": 2, "batch_size": 64, "precision": 32, "pairs_per_second": 480.0},
            ],
            "one_pair": [{"threads": 1, "milliseconds": 41.0}],
        }
    }
}


@pytest.fixture(scope="module")
def results():
    """A good network, one that cannot be asked blind, and two baselines."""
    return {
        "defectnet-base": toy_result("defectnet-base", skill=3.0, architecture="DefectNet"),
        "paper-defectnet": toy_result("paper-defectnet", skill=1.0, architecture="PaperDefectNet", blind=False),
        "ridge": toy_result("ridge", skill=1.5),
        "mean": toy_result("mean", skill=0.0),
    }


@pytest.fixture
def folder(results, tmp_path):
    for result in results.values():
        write_result(result, tmp_path / "results")
    return tmp_path / "results"


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(results, folder):
    assert {result["entrant"]: result for result in read_results([folder])} == results
    assert file_name("org/repo") == "org--repo.json"
    assert file_name("../../x") == "x.json"
    text = (folder / "mean.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) < len(json.dumps(results["mean"], indent=1).splitlines()) / 2


def _without(tree, *path):
    for key in path[:-1]:
        tree = tree[key]
    del tree[path[-1]]


def _with(tree, value, *path):
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


CLEAN = ("results", "blind", "clean")
DAMAGE = {
    "no object": (lambda tree: [tree], "no result of the benchmark"),
    "other file": (lambda tree: {"rows": 3}, "no result of the benchmark"),
    "newer schema": (lambda tree: _with(tree, 99, "schema"), "has schema 99"),
    "schema as text": (lambda tree: _with(tree, "1", "schema"), "has schema '1'"),
    "no data": (lambda tree: _without(tree, "data"), "data is missing"),
    "no hash of the rows": (lambda tree: _without(tree, "data", "rows_sha256"), r"data\.rows_sha256 is missing"),
    "nothing measured": (lambda tree: _with(tree, {}, "results"), "results is empty"),
    "unknown key": (lambda tree: _with(tree, 1, "extra"), "extra is not known"),
    "track is a number": (lambda tree: _with(tree, 3, "results", "blind"), r"results\.blind"),
    "part is missing": (lambda tree: _without(tree, *CLEAN, "identity"), r"blind\.clean: identity is missing"),
    "metric is missing": (lambda tree: _without(tree, *CLEAN, "identity", "f1"), "identity holds other numbers"),
    "metric is text": (lambda tree: _with(tree, "0.5", *CLEAN, "identity", "f1"), r"identity\.f1 is '0.5'"),
    "metric is true": (lambda tree: _with(tree, True, *CLEAN, "identity", "f1"), r"identity\.f1 is True"),
    "resamples are text": (
        lambda tree: _with(tree, ["a"], *CLEAN, "resampled", "identity.ap_micro"),
        "resampled.identity.ap_micro",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_wrong_file_is_one_clear_error(results, tmp_path, name):
    change, message = DAMAGE[name]
    tree = copy.deepcopy(results["mean"])
    tree = change(tree) or tree
    (tmp_path / "x.json").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        read_result(tmp_path / "x.json")
    assert "x.json" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema": NaN}', b"[" * 100_000])
def test_a_damaged_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.json is not valid JSON"):
        read_result(tmp_path / "x.json")
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read"):
        read_result(tmp_path / "absent.json")


def test_results_of_different_rows_are_not_put_together(results, folder, tmp_path):
    other = copy.deepcopy(results["mean"])
    other["entrant"], other["data"]["rows_sha256"] = "other", "0" * 64
    path = write_result(other, tmp_path / "more")
    with pytest.raises(ConfigError, match="different rows"):
        read_results([folder, path])
    with pytest.raises(ConfigError, match="two results of 'mean'"):
        read_results([folder, folder / "mean.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no results"):
        read_results([tmp_path / "empty"])


def test_nothing_is_left_of_a_result_that_is_not_whole(results, tmp_path):
    bad = copy.deepcopy(results["mean"])
    bad["seconds"]["fit"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_result(bad, tmp_path)
    assert not list(tmp_path.iterdir())


# -- comparisons -------------------------------------------------------------------------------------------------------


def test_ratios_are_those_of_the_numbers(results):
    one, other = results["defectnet-base"], results["mean"]
    found = compare(one, other)["candidates"]["clean"]["concentration.mae"]
    parts = [result["results"]["candidates"]["clean"]["concentration"]["mae"] for result in (one, other)]
    assert found.value == pytest.approx(parts[0] / parts[1])
    assert found.low < found.value < found.high
    same = compare(one, one)["blind"]["lab"]["identity.ap_micro"]
    assert same == pytest.approx((1.0, 1.0, 1.0))
    assert "blind" not in compare(one, results["paper-defectnet"])


def test_results_that_were_resampled_differently_are_not_compared(results):
    other = copy.deepcopy(results["mean"])
    other["bootstrap"]["seed"] = 1
    with pytest.raises(ConfigError, match="differ in bootstrap"):
        compare(results["ridge"], other)


def test_targets_say_what_was_measured(results):
    assert flagship(results) == "defectnet-base"
    assert best_without_attention(results, "blind", "clean") == "ridge"
    ensemble = copy.deepcopy(results["ridge"])
    ensemble["results"]["blind"]["clean"]["identity"]["ap_micro"] = 1.0
    ensemble["notes"]["members"] = ["DefectNet", "ResNet1d"]
    assert best_without_attention({**results, "a+b": ensemble}, "blind", "clean") == "ridge"
    found = {target.what: target for target in targets(results, "defectnet-base", SPEED)}
    gain = found["blind, clean: AP micro over that of the best without attention (ridge)"]
    values = [
        results[name]["results"]["blind"]["clean"]["identity"]["ap_micro"] for name in ("defectnet-base", "ridge")
    ]
    assert gain.measured.startswith(tables.number(values[0] / values[1]))
    assert gain.reached == (values[0] / values[1] >= 1.3)
    rates = [found[f"pairs a second in batches, two threads, {bits} bits"] for bits in (64, 32)]
    assert [(target.asked, target.measured, target.reached) for target in rates] == [
        ("at least 500", "620", True),
        ("at least 500", "480", False),
    ]
    assert found["one pair, loaded model, ms"].reached is False
    assert len(found) == 16
    unmeasured = targets({"ridge": results["ridge"]}, "ridge")
    assert [target.reached for target in unmeasured[:2]] == [None, None]
    with pytest.raises(ConfigError, match="no result of 'x'"):
        targets(results, "x")


def test_targets_are_put_into_documents(results, folder, tmp_path, capsys):
    (tmp_path / "speed.json").write_text(json.dumps(SPEED), encoding="utf-8")
    (tmp_path / "card.md").write_text(CARD.replace("results:", "targets:"), encoding="utf-8")
    words = [str(folder), "--speed", str(tmp_path / "speed.json")]
    targets_main(words)
    table = capsys.readouterr().out
    assert "| one pair, loaded model, ms | at most 30 | 41.0 | no |" in table
    targets_main([*words, "--into", str(tmp_path / "card.md")])
    assert table.strip() in (tmp_path / "card.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="no results of defectnet-base"):
        targets_main([str(folder / "mean.json")])


def test_speeds_are_read_strictly(tmp_path):
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(SPEED), encoding="utf-8")
    assert read_speed(path) == SPEED
    for text in ("", "[]", "{}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"speed\.json"):
            read_speed(path)


def test_speeds_are_measured(tmp_path, tiny_model, capsys):
    folder = tmp_path / "defectnet-base"
    save(tiny_model("DefectNet"), folder, golden=make_random_batch(2), card="A test.", training={})
    words = ["--pairs", "6", "--rounds", "1", "--batch-sizes", "2", "4", "--threads", "1"]  # two wait for each other
    predict.main([str(folder), *words])
    (tmp_path / "speed.json").write_text(capsys.readouterr().out, encoding="utf-8")
    found = read_speed(tmp_path / "speed.json")["checkpoints"][str(folder)]
    keys = ("threads", "batch_size", "precision")
    assert [tuple(row[key] for key in keys) for row in found["batches"]] == [
        (1, size, bits) for size in (2, 4) for bits in (64, 32)
    ]
    assert all(row["pairs_per_second"] > 0 for row in found["batches"])
    assert found["one_pair"][0]["milliseconds"] > 0
    with pytest.raises(SystemExit):
        predict.main([str(folder), "--pairs", "0"])


# -- the page ----------------------------------------------------------------------------------------------------------


def test_leaderboard_is_ranked_and_marks_the_best(results):
    lines = leaderboard(results, "blind", "clean")
    assert [text.split(" | ")[0] for text in lines[2:]] == ["| defectnet-base", "| ridge", "| mean"]
    values = results["defectnet-base"]["results"]["blind"]["clean"]
    low, high = values["intervals"]["identity.ap_micro"]
    shown = f"**{tables.number(values['identity']['ap_micro'])} ({tables.number(low)} to {tables.number(high)})**"
    assert lines[2].split(" | ")[1] == shown
    assert "paper-defectnet" in "\n".join(leaderboard(results, "candidates", "lab"))


def test_every_table_has_as_many_cells_as_headings(results):
    blocks = page(results).split("\n\n")
    found = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(found) >= 9
    for block in found:
        assert len({text.count("|") for text in block}) == 1, block[0]


def test_page_holds_what_it_should(results):
    text = page(results, figures="figures")
    for name in FIGURES:
        assert f"(figures/{name})" in text
    for name in results:
        assert f"| {name} |" in text
    assert "paper-defectnet is not asked blind" in text
    assert "## defectnet-base over the others" in text
    assert "None" not in text
    assert "nan" not in text
    assert "over the others" not in page({"mean": results["mean"]})
    assert featured(results) == ["defectnet-base", "ridge", "paper-defectnet", "mean"]
    assert "## mean over the others" in page(results, ["mean", "ridge"])
    with pytest.raises(ConfigError, match="no result of 'x'"):
        page(results, ["x"])


def test_number_has_the_digits_of_a_table():
    shown = [tables.number(x) for x in (None, 0.01234, -0.5, 12.345, 1234.5)]
    assert shown == ["-", "0.012", "-0.500", "12.3", "1,234"]


@pytest.fixture(scope="module")
def drawn(results, tmp_path_factory):
    """Figures of two entrants, of which one cannot be asked blind."""
    return write_figures(results, ["defectnet-base", "paper-defectnet"], tmp_path_factory.mktemp("drawn"))


def test_figures_are_small_and_not_empty(drawn):
    assert [path.name for path in drawn] == list(FIGURES)
    for path in drawn:
        assert path.stat().st_size < 1000 * LARGEST_KB
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] > 600
        assert (pixels < 200).mean() > 0.005, path.name
    assert sorted(path.name for path in drawn[0].parent.iterdir()) == sorted(FIGURES)


def test_figures_show_what_was_measured(results, drawn, tmp_path):
    """Where a track was not measured, its panels stay empty: nothing fails, nothing is made up."""
    before = {path.name: path.read_bytes() for path in drawn}
    after = {path.name: path.read_bytes() for path in write_figures(results, ["paper-defectnet"], tmp_path)}
    assert all(before[name] != after[name] for name in FIGURES)


def test_into_block_replaces_one_block_only():
    new = into_block(CARD, "results", "new\n")
    assert new == CARD.replace("old", "new")
    assert into_block(new, "results", "new") == new


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- x:start -->",
        "<!-- x:end --><!-- x:start -->",
        "<!-- x:end --><!-- x:start --><!-- x:end -->",
        2 * "<!-- x:start --><!-- x:end -->",
    ],
)
def test_into_block_wants_one_block(text):
    with pytest.raises(ConfigError, match="exactly one block 'x'"):
        into_block(text, "x", "new")


def test_command_writes_page_figures_and_block(results, folder, tmp_path, capsys):
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    words = [str(folder), "--out", str(tmp_path / "RESULTS.md"), "--show", "mean", "ridge"]
    main([*words, "--into", str(tmp_path / "card.md")])
    assert capsys.readouterr().out == ""
    # Files are read in the order of their names.
    ordered = {result["entrant"]: result for result in read_results([folder])}
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == page(ordered, ["mean", "ridge"], "figures")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == set(FIGURES)
    short = "\n".join(short_form(ordered))
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == into_block(CARD, "results", short)
    assert "| defectnet-base |" in short
    main([str(folder)])
    assert capsys.readouterr().out.strip() == page(ordered).strip()


def test_one_document_without_a_block_leaves_all_as_they_were(folder, tmp_path):
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    (tmp_path / "other.md").write_text("nothing", encoding="utf-8")
    words = [str(folder), "--out", str(tmp_path / "RESULTS.md"), "--into", str(tmp_path / "card.md")]
    with pytest.raises(ConfigError, match="exactly one block"):
        main([*words, str(tmp_path / "other.md")])
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == CARD
    assert not (tmp_path / "RESULTS.md").exists()


def test_module_reports_errors_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(report.__file__, run_name="__main__")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "holds no results" in said
