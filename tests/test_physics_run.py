"""Runs of the physics suite: going on, files, tables, figure and command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import physics
import physics_figure
from defectnet.errors import DefectNetError, SimulationError
from defectnet.potentials.potential import load_potential
from make_potential import write_morse_nep
from physics_suite import suite
from physics_suite.cells import Failed
from physics_suite.report import detail_table, lines, skipped_lines, summary_table
from physics_suite.suite import Context, Part, parse_parts, read_results, run
from physics_suite.summary import SUMMARIES

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "benchmarks" / "physics"
RESULT = ROOT / "benchmarks" / "physics-nep89.json"
SYMBOLS = ["Al", "Cu", "V", "Pt", "B", "Ti", "Mg", "Zn"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_morse_nep(tmp_path_factory.mktemp("nep") / "morse.txt", SYMBOLS)


@pytest.fixture(scope="module")
def potential(path):
    return load_potential(path)


# -- the run and its files ---------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_was(potential, monkeypatch, tmp_path):
    calls = []
    stop = {"now": True}

    def item(name):
        def compute():
            calls.append(name)
            if name == "second" and stop["now"]:
                raise KeyboardInterrupt
            if name == "third":
                raise Failed("collapses")
            return {"mean_error": 0.1, "shape_distance": 0.2, "imaginary_fraction": 0.0}

        return compute

    names = ("first", "second", "third")
    monkeypatch.setitem(suite.PARTS, "a", Part("test", lambda context: {name: item(name) for name in names}))
    context, out = Context(potential, FACTS, tmp_path), tmp_path / "deep" / "out.json"
    with pytest.raises(KeyboardInterrupt):
        run(context, ["a"], out)
    assert list(read_results(out)["parts"]["a"]["items"]) == ["first"]
    stop["now"] = False
    results = run(context, ["a"], out)
    assert calls == ["first", "second", "second", "third"]
    assert results["parts"]["a"]["items"]["third"]["failed"] == "collapses"
    assert results["parts"]["a"]["summary"]["failed"] == 1
    assert results == read_results(out)
    assert list(out.parent.iterdir()) == [out]


def test_another_teacher_means_another_comparison(potential, monkeypatch, tmp_path):
    calls, told = [], []
    record = {"mean_error": 0.1, "shape_distance": 0.2, "imaginary_fraction": 0.0}
    part = Part(
        "test", lambda context: {"one": lambda: calls.append(1) or dict(record)}, lambda context: context.teacher
    )
    monkeypatch.setitem(suite.PARTS, "a", part)
    context, out = Context(potential, FACTS, tmp_path / "teacher.npz"), tmp_path / "out.json"
    for text, times in (("old", 1), ("old", 1), ("new", 2)):
        context.teacher.write_text(text)
        run(context, ["a"], out, told.append)
        assert len(calls) == times
    assert any("teacher.npz has changed" in line for line in told)


def test_failures_make_a_median_worse():
    good = {"shape_distance": 0.1, "mean_error": 0.02, "imaginary_fraction": 0.0}
    bad = {"shape_distance": 0.5, "mean_error": 0.2, "imaginary_fraction": 0.0}
    failed = {"failed": "collapses"}
    assert SUMMARIES["a"]({"1": good, "2": good, "3": bad})["shape_distance_median"] == 0.1
    assert SUMMARIES["a"]({"1": good, "2": bad, "3": failed})["shape_distance_median"] == 0.5
    assert SUMMARIES["a"]({"1": good, "2": failed, "3": failed})["shape_distance_median"] is None


def test_results_of_another_potential_are_kept(potential, tmp_path):
    out = tmp_path / "out.json"
    text = json.dumps({"schema": 1, "potential": {"name": "other", "sha256": "0"}, "parts": {}})
    out.write_text(text)
    with pytest.raises(SimulationError, match="other, not morse"):
        run(Context(potential, FACTS, tmp_path), ["f"], out)
    assert out.read_text() == text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": 99, "potential": {}, "parts": {}}'])
def test_results_that_are_none(content, tmp_path):
    file = tmp_path / "out.json"
    file.write_text(content)
    with pytest.raises(SimulationError, match=r"results .*out\.json"):
        read_results(file)


def test_parts():
    assert parse_parts("b, A,b") == ["a", "b"]
    for text in ("", "x", "a,pristine"):
        with pytest.raises(SimulationError, match="of the physics suite is unknown"):
            parse_parts(text)


def test_the_stored_result_is_whole():
    results = read_results(RESULT)
    assert set("abcdef") <= set(results["parts"])
    for part, entry in results["parts"].items():
        assert SUMMARIES[part](entry["items"]) == entry["summary"]
    assert len({line.part for line in lines(results)}) == len(results["parts"])
    assert detail_table([results]).row_count == len(list(lines(results)))
    assert summary_table([results]).row_count > 15
    assert any("hydrogen" in line for line in skipped_lines(results))


def test_two_results_side_by_side():
    results = read_results(RESULT)
    other = {**results, "potential": {"name": "other", "sha256": ""}, "parts": {"f": results["parts"]["f"]}}
    table = summary_table([results, other])
    assert [column.header for column in table.columns][2:] == ["nep89", "other"]
    assert table.row_count == summary_table([results]).row_count


def test_figure(tmp_path, monkeypatch):
    draw = physics_figure.draw
    results = read_results(RESULT)
    draw([results, {**results, "parts": {"g": results["parts"]["a"]}}], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(DefectNetError, match="cannot be written"):
        draw([results], tmp_path / "figure.doc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--potential", "nowhere"], "no potential is called 'nowhere'"),
        (["--potential", "nowhere", "--parts", "z"], "part 'z' of the physics suite is unknown"),
        (["--potential", "{path}", "--parts", "g", "--teacher", "nowhere.npz"], "teacher's curves nowhere.npz"),
        ([], "nothing to do"),
    ],
)
def test_command_gives_one_clear_error(arguments, message, path, tmp_path, monkeypatch, capsys):
    arguments = [argument.format(path=path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["physics.py", *arguments])
    monkeypatch.chdir(tmp_path)
    assert physics.main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_command_shows_a_result(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["physics.py", "--beside", str(RESULT)])
    assert physics.main() == 0
    shown = capsys.readouterr().out
    assert "local mode over host's edge, mean error" in shown
    assert "left out (hydrogen)" in shown
    monkeypatch.setattr(sys, "argv", ["physics.py", "--beside", str(RESULT), "--json"])
    assert physics.main() == 0
    assert json.loads(capsys.readouterr().out) == read_results(RESULT)
