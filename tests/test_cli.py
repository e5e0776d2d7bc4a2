from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import make_random_batch
from defectnet import cli
from defectnet.hub import from_pretrained, save
from defectnet.io import read_spectrum
from defectnet.prediction import BLIND_ROWS, Prediction
from defectnet.spectrum import UNITS
from spectra import spectrum, table, write_table


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a pair of spectra; the doped one has a local mode."""
    folder = tmp_path_factory.mktemp("cli")
    write_table(folder / "host.csv", table())
    rows = table()
    rows[(rows[:, 0] > 42) & (rows[:, 0] < 43), 1] = 0.5
    write_table(folder / "doped.csv", rows)
    return folder


@pytest.fixture
def checkpoint(tmp_path, tiny_model):
    training = {"edge_mev": [5.0, 150.0], "host_elements": ["Ga", "As"]}
    return save(
        tiny_model("DefectNet"), tmp_path / "tiny", golden=make_random_batch(2), card="A test.", training=training
    )


def run(work: Path, checkpoint: Path | str, *words: str) -> None:
    pair = ["--host", str(work / "host.csv"), "--doped", str(work / "doped.csv")]
    cli.main(["identify", *pair, "--formula", "GaAs", "--checkpoint", str(checkpoint), *words])


def test_json_is_all_there_is_on_stdout(work, checkpoint, capsys):
    run(work, checkpoint, "--candidates", "Al, In", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["formula"] == "GaAs"
    assert answer["candidates_given"] is True
    assert {row["element"] for row in answer["elements"]} == {"Al", "In"}
    assert all(0 <= row["probability"] <= 1 for row in answer["elements"])


@pytest.mark.parametrize("written", ["Al,In", " Al , In,", "Al In", "Al;In"])
def test_candidates_may_be_separated_as_in_any_list(work, checkpoint, capsys, written):
    run(work, checkpoint, "--candidates", written, "--json")
    assert {row["element"] for row in json.loads(capsys.readouterr().out)["elements"]} == {"Al", "In"}


def test_units_of_two_files(work, tmp_path, checkpoint, capsys):
    rows = table()
    host = write_table(tmp_path / "host.dat", np.column_stack([rows[:, 0] / UNITS["THz"], rows[:, 1]]), "", " ")
    doped = write_table(tmp_path / "doped.dat", rows, "", " ")
    words = ["--host", str(host), "--doped", str(doped), "--checkpoint", str(checkpoint)]
    cli.main(["identify", *words, "--formula", "GaAs", "--host-unit", "THz", "--unit", "meV", "--json"])
    assert json.loads(capsys.readouterr().out)["unit"] == "THz and meV"
    with pytest.raises(SystemExit):
        cli.main(["identify", *words, "--formula", "GaAs", "--unit", "meV"])
    assert "--host-unit" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--candidates", "null"), ("--candidates=~",), ("--plot", "null")])
def test_null_is_no_value(work, checkpoint, capsys, words):
    with pytest.raises(SystemExit):
        run(work, checkpoint, *words)
    assert "has no value. Leave the option out" in capsys.readouterr().err


HIDDEN = """
import sys
from defectnet.cli import main
for hidden, words, _ in {commands}:
    sys.modules[hidden] = None
    try: main(words)
    except SystemExit: pass
    del sys.modules[hidden]
"""


def test_a_missing_package_says_what_to_install(tmp_path):
    commands = [  # what lacks ase first: others import it, and it is loaded once
        ("ase", ["simulate", "--hosts", "x", "--potential", "defectnet-nep", "--out", str(tmp_path / "y")], "sim"),
        ("ase", ["host", "list"], "sim"),
        ("pyarrow", ["data", "stats", "x"], "data"),
        ("pyarrow", ["fit", "--help"], "data"),
        ("pyarrow", ["finetune", "--data", "x", "--out", "y"], "data"),
        ("sklearn", ["benchmark", "--model", "ridge"], "benchmark"),
    ]
    code = HIDDEN.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    lines = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    for line, (package, _, extra) in zip(lines, commands, strict=True):
        assert line == f"defectnet: this command needs {package}. Install it: pip install 'defectnet[{extra}]'."


def test_json_agrees_with_python(work, checkpoint, capsys):
    run(work, checkpoint, "--json")
    answer = json.loads(capsys.readouterr().out)
    prediction = from_pretrained(checkpoint).predict(work / "host.csv", work / "doped.csv", "GaAs")
    assert answer["elements"] == prediction.to_dict()["elements"]


def test_an_edge_on_the_command_line_is_the_one_of_python(work, checkpoint, capsys):
    from defectnet import from_pretrained

    run(work, checkpoint, "--json")
    read = json.loads(capsys.readouterr().out)
    run(work, checkpoint, "--json", "--edge", "40")
    given = json.loads(capsys.readouterr().out)
    assert read["edge_mev"] == pytest.approx(35.3, abs=0.5)
    assert given["edge_mev"] == 40.0
    assert given["elements"] != read["elements"]
    prediction = from_pretrained(checkpoint).predict(work / "host.csv", work / "doped.csv", "GaAs", edge=40.0)
    assert given["elements"] == prediction.to_dict()["elements"]


def test_the_command_prints_what_python_prints(work, checkpoint, capsys):
    run(work, checkpoint)
    prediction = from_pretrained(checkpoint).predict(work / "host.csv", work / "doped.csv", "GaAs")
    said = capsys.readouterr().out
    assert said == f"{prediction}\n"
    assert sum(line.split()[-1:] in (["yes"], ["no"]) for line in said.splitlines()) == BLIND_ROWS


def test_plot_is_written(work, checkpoint, tmp_path, capsys):
    run(work, checkpoint, "--plot", str(tmp_path / "answer.png"))
    assert (tmp_path / "answer.png").read_bytes().startswith(b"\x89PNG")
    run(work, checkpoint, "--plot", str(tmp_path / "answer.svg"))
    assert "<svg" in (tmp_path / "answer.svg").read_text()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    capsys.readouterr()


WRONG = {
    "missing file": (["--host", "nope.csv"], r"file nope\.csv does not exist"),
    "unit against header": (["--unit", "THz"], "declares unit meV"),
    "unknown unit": (["--unit", "K"], "unknown unit 'K'"),
    "unknown kind": (["--kind", "x"], "unknown kind of DOS 'x'"),
    "formula": (["--formula", "gaas"], "formula: 'gaas'"),
    "host as candidate": (["--candidates", "Ga"], "candidates: Ga is part of the host"),
    "small letters": (["--candidates", "al"], "Did you mean Al"),
    "hydrogen": (["--candidates", "H"], r"vocabulary\. Known are"),
    "no candidates": (["--candidates", ","], "candidates is empty"),
    "checkpoint": (["--checkpoint", "nope"], "nope"),
    "plot": (["--plot", "answer.xyz"], "unknown ending '.xyz'"),
    "plot folder": (["--plot", "absent/answer.png"], "cannot be written"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(work, checkpoint, capsys, name):
    words, message = WRONG[name]
    with pytest.raises(SystemExit) as stop:
        run(work, checkpoint, *words)
    captured = capsys.readouterr()
    assert stop.value.code == cli.EXIT_ERROR
    assert captured.out == ""
    assert captured.err.startswith("defectnet: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)


TRAINING_ERRORS = {
    "option": (["--model.foo", "3"], r"fit: unrecognized arguments: --model.foo 3.*fit --help"),
    "recipe": (["-c", "nowhere.yaml"], r"File does not exist.*nowhere\.yaml"),
    "type": (["--data.folder", "x", "--data.batch_size", "many"], r"data\.batch_size.*Expected a <class 'int'>"),
    "nothing": ([], "required: fit.data.folder"),
}


@pytest.mark.parametrize("name", TRAINING_ERRORS)
def test_errors_of_training_are_not_buried(capsys, name):
    words, message = TRAINING_ERRORS[name]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words])
    captured = capsys.readouterr()
    assert stop.value.code == cli.EXIT_ERROR
    assert captured.err.startswith("defectnet: fit: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err)


def test_training_is_in_the_list_of_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert re.search(r"^    fit +Train a network", capsys.readouterr().out, re.MULTILINE)


def test_unknown_option_is_refused(work, checkpoint, capsys):
    with pytest.raises(SystemExit) as stop:
        run(work, checkpoint, "--dopants", "Al")
    assert stop.value.code == cli.EXIT_ERROR
    assert "--dopants" in capsys.readouterr().err


def test_checkpoints_lists_what_is_bundled(capsys):
    from defectnet import list_checkpoints

    cli.main(["checkpoints"])
    out = capsys.readouterr().out
    assert out.strip()
    for name in list_checkpoints():
        assert name in out


def test_version(capsys):
    import defectnet

    cli.main(["--version"])
    assert capsys.readouterr().out.split() == ["defectnet", defectnet.__version__]


@pytest.mark.parametrize("command", cli.TRAINING)
def test_training_is_handed_over(monkeypatch, command):
    import defectnet.train

    seen = []
    monkeypatch.setattr(defectnet.train, "main", seen.append)
    cli.main([command, "-c", "recipe.yaml"])
    assert seen == [[command, "-c", "recipe.yaml"]]


def test_help_and_reading_need_no_heavy_imports(work):
    """A fresh process: neither help nor the report of a wrong file waits for torch."""
    code = (
        "import sys\nfrom defectnet.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'pyarrow', 'scipy', 'ase', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    words = ["identify", "--host", str(work / "host.csv"), "--doped", "nope", "--formula", "GaAs"]
    for arguments in (["--help"], words):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "[]"
    assert "does not exist" in done.stderr


def prediction(probability, **changes):
    values = {
        "elements": ("Al", "In"),
        "probability": probability,
        "concentration_if_present": (0.031, 0.002),
        "expected_concentration": (0.02, 0.001),
        "low": (0.02, 0.001),
        "high": (0.045, 0.004),
        "coverage": 0.9,
        "threshold": 0.5,
        "candidates_given": True,
        "formula": "GaAs",
        "model": "test",
    }
    return Prediction(**(values | changes))


def test_plot_shows_what_was_found(work):
    from defectnet.plotting import plot_pair

    figure = plot_pair(read_spectrum(work / "host.csv"), spectrum("THz"), prediction((0.9, 0.1)))
    top, bottom, left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["Al", "In"]
    assert [bar.get_width() for bar in left.patches] == [0.9, 0.1]
    assert "at.%" in right.get_xlabel()
    assert bottom.get_xlabel() == "Energy (meV)"
    host, doped = (line.get_ydata() for line in top.get_lines()[:2])
    energy = top.get_lines()[0].get_xdata()
    for curve in (host, doped):
        area = ((curve[1:] + curve[:-1]) / 2 * (energy[1:] - energy[:-1])).sum()
        assert area == pytest.approx(1.0, abs=0.01)


def test_plot_shows_fit_and_something_else(work):
    import numpy as np

    from defectnet.plotting import plot_pair
    from defectnet.prediction import Fit

    energy, change = np.linspace(0.0, 40.0, 50), np.sin(np.linspace(0.0, 3.0, 50))
    answer = prediction((0.9, 0.1), fit=Fit(energy, change, 0.7 * change), explained=0.91, something_else=0.6)
    _, bottom, left, _ = plot_pair(read_spectrum(work / "host.csv"), spectrum("THz"), answer).axes
    by_name = {line.get_label(): line.get_ydata() for line in bottom.get_lines()}
    np.testing.assert_allclose(by_name["by the answer"] + by_name["left over"], change)
    assert "explains (91% of the change)" in bottom.get_title(loc="left")
    assert [text.get_text() for text in left.texts] == ["something else: 60%"]


def test_plot_without_matplotlib_names_the_extra(work, monkeypatch):
    from defectnet.errors import ConfigError
    from defectnet.plotting import plot_pair

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    host = read_spectrum(work / "host.csv")
    with pytest.raises(ConfigError, match=r"defectnet\[plot\]"):
        plot_pair(host, host, prediction((0.9, 0.1)))
