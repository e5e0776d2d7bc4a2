"""docs/extending.md holds: a network of one's own is a file, two lines of the table of networks, and a recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import defectnet

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(defectnet.__file__).parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PAIR = ["--host", str(ROOT / "examples" / "host.csv"), "--doped", str(ROOT / "examples" / "doped.csv")]


def block(kind: str, begin: str) -> str:
    """Return the code block of the document whose first line begins so."""
    return next(code for code in re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) if code.startswith(begin))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A copy of the package with the network of the document, in the two files that it names."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(PACKAGE, root / "defectnet", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "defectnet" / "models" / "mean_shift.py").write_text(
        block("python", "# src/defectnet/models/mean_shift.py")
    )
    networks = root / "defectnet" / "models" / "networks.py"
    text = networks.read_text(encoding="utf-8")
    for line in block("diff", "--- src/defectnet/models/networks.py").splitlines()[1:]:
        assert line.startswith((" ", "+")), line
    parts = block("diff", "--- src/defectnet/models/networks.py").splitlines()[1:]
    for number, line in enumerate(parts):
        if line.startswith("+"):
            before = next(other[1:] for other in reversed(parts[:number]) if other.startswith(" "))
            assert f"{before}\n" in text
            text = text.replace(f"{before}\n", f"{before}\n{line[1:]}\n", 1)
    networks.write_text(text, encoding="utf-8")
    (root / "mean-shift.yaml").write_text(block("yaml", "# configs/mean-shift.yaml"))
    return root


COMMANDS = """
import contextlib, io, json, pathlib, sys
from defectnet.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main([next(pathlib.Path().rglob(word[1:])).as_posix() if word.startswith("?") else word for word in words])
    print(json.dumps(said.getvalue()))
"""


def run(own: Path, *commands: list[str]) -> list[str]:
    """Run commands of the copy in one process, which imports it; return what each says.

    A word such as ?*.ckpt is the file that a command before has written.
    """
    environment = os.environ | {"PYTHONPATH": str(own), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(words, cwd=own, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_network_in_two_files_goes_all_the_way(own):
    data = str(ROOT / "tests" / "data" / "pilot-mini")
    asked = ["--formula", "CdTe", "--candidates", "Zn,Se", "--json"]
    rows = ["--track", "candidates", "--condition", "clean", "--bootstrap", "0", "--data", data, "--json"]
    tuned = ["--data", str(ROOT / "examples" / "lab"), "--checkpoint", "./mean-shift", "--out", "tuned", "--json"]
    *_, identified, measured, report = run(
        own,
        ["fit", "-c", "mean-shift.yaml", f"--data.folder={data}"],
        ["export", "--run", "?*.ckpt", "--data", data, "--out", "mean-shift", "--coverage", "0.5"],
        ["identify", "--checkpoint", "./mean-shift", *PAIR, *asked],
        ["benchmark", "--model", "./mean-shift", *rows],
        ["finetune", *tuned],  # measured responses, with this network inside
    )
    noted = next(own.rglob("metrics.csv")).read_text(encoding="utf-8")
    assert "train/loss_spread" in noted  # its own term of the loss
    elements = json.loads(identified)["elements"]
    assert {element["element"] for element in elements} == {"Zn", "Se"}
    assert all(element["spread"] > 0 for element in elements)  # its own output
    assert json.loads(measured)[0]["notes"]["architecture"] == "MeanShift"
    report = json.loads(report)
    assert (
        report["held_out"]["after"]["candidates/mae"]["value"] < report["held_out"]["before"]["candidates/mae"]["value"]
    )


def test_the_files_that_the_document_names_exist():
    named = set(re.findall(r"`((?:src|tests|configs|docs|notebooks|benchmarks)/[\w./-]+)`", TEXT))
    assert len(named) > 10
    assert [name for name in sorted(named) if "mean" not in name and not (ROOT / name).exists()] == []
