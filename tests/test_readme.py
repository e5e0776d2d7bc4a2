"""What README.md shows is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import make_example
import refresh_readme
from defectnet import list_checkpoints
from defectnet.cli import COMMANDS, TRAINING
from defectnet.errors import ShardError
from defectnet.files import into_block
from defectnet.hub.catalogue import bundled

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_there_are_python_blocks():
    assert BLOCKS


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_block_runs_as_pasted(number, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(BLOCKS[number], {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_blocks_are_current():
    """In a stale text, too: every block is put anew."""
    stale = into_block(README, "checkpoints", "| name |\n|---|\n| `gone` |")
    assert stale != README
    assert refresh_readme.refresh(stale) == README, "run: make docs"


@pytest.mark.parametrize("name", sorted(bundled()))
def test_every_checkpoint_has_a_current_card_of_its_own(name):
    text = (bundled()[name] / "README.md").read_text(encoding="utf-8")
    assert text == refresh_readme.card(name), "run: make docs"
    assert f"# {name}\n" in text
    assert text.count(" | ") > 20


def test_table_names_every_checkpoint():
    assert list_checkpoints()
    rows = refresh_readme.checkpoint_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list_checkpoints()


def test_commands_exist():
    commands = re.findall(r"^ {4}defectnet (\S+)", README, re.MULTILINE)
    assert commands
    assert set(commands) <= {*COMMANDS, *TRAINING}


def test_options_of_commands_exist():
    """Every option that README.md names is one of the command's function."""
    for command, words in re.findall(r"^ {4}defectnet (\S+)(.*)$", README, re.MULTILINE):
        if command in COMMANDS:
            function = COMMANDS[command]
            if isinstance(function, dict):
                function = function[words.split()[0]]
            known = set(function.__annotations__)
            named = {word.removeprefix("--").replace("-", "_") for word in re.findall(r"--\S+", words)}
            assert named <= known, command


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("https://"):
            path, _, heading = target.partition("#")
            assert (ROOT / path).exists(), target
            if heading:
                headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings], target


def test_example_is_the_same_everywhere():
    """The example's row may change; then every place where a person reads its formula must."""
    answer = json.loads((EXAMPLES / "answer.json").read_text(encoding="utf-8"))
    assert answer["split"] == "test"
    notebook = json.loads((ROOT / "notebooks" / "01_identify.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for code in (BLOCKS, cells):
        calls = re.findall(r"model\.predict\(.*", "\n".join(code))
        assert calls
        assert [call for call in calls if f'"{answer["formula"]}"' not in call] == []
    assert f"--row {answer['row']}" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_example_is_that_row_of_the_data(tmp_path):
    answer = json.loads((EXAMPLES / "answer.json").read_text(encoding="utf-8"))
    data = ROOT / "data" / "defectnet-sim-v2" / "defectnet-nep"
    words = ["--data", str(data), "--row", answer["row"], "--out", str(tmp_path)]
    make_example.main(words)
    assert json.loads((tmp_path / "answer.json").read_text(encoding="utf-8")) == answer
    for name in ("host.csv", "doped.csv"):
        old, new = (np.loadtxt(folder / name, delimiter=",", skiprows=2) for folder in (EXAMPLES, tmp_path))
        np.testing.assert_allclose(new, old, atol=2e-6)


def test_example_of_an_unknown_row_is_one_clear_error(tmp_path):
    words = ["--data", str(ROOT / "tests" / "data" / "pilot-mini"), "--row", "Si/9", "--out", str(tmp_path)]
    with pytest.raises(ShardError, match="has no row Si/9"):
        make_example.main(words)
