"""Every command and code block of README.md and of the site runs; where it says why not, it is parsed."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest

import refresh_readme
from defectnet import cli, read_spectrum
from documents import ROOT, Block, blocks

TRUST = refresh_readme.TRUST.read_text(encoding="utf-8")
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "data" / "README.md"]
MEASUREMENTS = [*sorted((ROOT / "benchmarks").glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]
"""Their commands take minutes to days, set up, or write what is committed: all of them are parsed only."""
BLOCKS = [block for path in GUIDES for block in blocks(path)]
ALL = [*BLOCKS, *(block for path in MEASUREMENTS for block in blocks(path))]
SCRIPTS = re.compile(r"(?:benchmarks|examples)/\w+\.py")


def named(chosen: list[Block]) -> Any:
    return pytest.mark.parametrize("block", chosen, ids=[block.id for block in chosen])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that documents speak of."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("examples", "data", "configs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("host", "doped"):
        (folder / f"{name}.csv").symlink_to(ROOT / "examples" / f"{name}.csv")
    (folder / "packs").mkdir()
    (folder / "packs" / "gaas").symlink_to(ROOT / "checkpoints" / "hosts" / "GaAs")
    (folder / "doped").mkdir()
    for name, place in (("host", folder), ("doped", folder / "doped")):
        spectrum = read_spectrum(ROOT / "examples" / f"{name}.csv").to("THz")
        rows = np.column_stack([spectrum.energy, spectrum.dos])
        np.savetxt(place / "total_dos.dat", rows, header="# Tetrahedron method", comments="")
    return folder


def parse(words: list[str]) -> None:
    """Check the words of a command line against what there is."""
    program, *rest = words
    if program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), words
    elif "pip" in program or rest[:2] == ["-m", "pip"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = {one for word in rest for found in re.findall(r"\[([\w,]+)\]", word) for one in found.split(",")}
        assert extras <= set(project["optional-dependencies"]), words
    elif "python" in program:
        for name in SCRIPTS.findall(" ".join(rest)):
            assert (ROOT / name).is_file(), name
    elif program == "defectnet" and rest[0] in cli.TRAINING:
        assert (ROOT / rest[rest.index("-c") + 1]).is_file(), words
    elif program == "defectnet" and ("..." in rest or "$" in " ".join(rest)):  # not whole: its options are known
        function: Callable[..., Any] = cli.COMMANDS[rest[0]]
        options = {word.removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")} - {"from"}
        assert options <= set(inspect.signature(function).parameters), words
    elif program == "defectnet":
        with pytest.MonkeyPatch.context() as patch:  # a parser serves once; that of one command is soon made
            patch.setattr(cli, "COMMANDS", {rest[0]: cli.COMMANDS[rest[0]]})
            parser = jsonargparse.capture_parser(lambda: cli._parse_and_run([]))
        parser.parse_args(rest)


@named([block for block in ALL if block.commands])
def test_commands_are_right(block):
    for words in block.commands:
        try:
            parse(words)
        except SystemExit:
            pytest.fail(" ".join(words))


def test_a_wrong_command_is_noticed():
    for words in (
        "identify --hots a.csv",
        "host shwo GaAs",
        "plan --pack GaAs",
        "identify --host a --doped b --minutes x",
    ):
        with pytest.raises((SystemExit, jsonargparse.ArgumentError)):
            parse(["defectnet", *words.split()])
    for words in (
        "make dmeo",
        "pip install defectnet[smi]",
        "python examples/galery.py",
        "defectnet simulate ... --ot x",
    ):
        with pytest.raises(AssertionError):
            parse(words.split())


@named([block for block in BLOCKS if block.commands and not block.mark and block.language != "text"])
def test_commands_run(block, bench, monkeypatch, capsys):
    monkeypatch.chdir(bench)
    for words in block.commands:
        if words[0] == "defectnet":
            cli.main(words[1:])
            assert capsys.readouterr().out, words


@named([block for block in BLOCKS if block.python and block.path != ROOT / "README.md"])  # whose run as pasted
def test_python_is_right(block, bench, monkeypatch):
    """It runs, or, marked, it is Python whose imports there are."""
    monkeypatch.chdir(bench)
    if block.mark is None:
        exec(compile(block.text, block.id, "exec"), {"__name__": "documented"})
        return
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            module = importlib.import_module(node.module)
            assert [one.name for one in node.names if not hasattr(module, one.name)] == [], block.id


def test_the_reader_that_is_shown_reads():
    (shown,) = (one for one in BLOCKS if one.path.name == "extending.md" and "def matches" in one.text)
    space: dict[str, Any] = {}
    exec(compile(shown.text, shown.id, "exec"), space)
    text = "# MYCODE\n0.0 0.0\n1.0 2.0\n2.0 0.5\n"
    assert space["matches"](text)
    assert not space["matches"](text[2:])
    raw = space["read"](text, "my.dos", None)
    assert (raw.unit, raw.energy.tolist(), raw.dos.tolist()) == ("THz", [0.0, 1.0, 2.0], [0.0, 2.0, 0.5])


def test_a_mark_says_why():
    """Marks name a reason; the tests and notebooks that they name exist."""
    marks = [block.mark for block in BLOCKS if block.mark]
    assert len(marks) > 20
    names = {name for mark in marks for name in re.findall(r"(?:tests|notebooks)/\w+\.\w+", mark)}
    assert len(names) > 5
    assert [name for name in sorted(names) if not (ROOT / name).exists()] == []


def test_tables_of_trust_are_current():
    assert refresh_readme.trust(TRUST) == TRUST, "run: make docs"


def test_pictures_are_small_and_shown():
    pictures = sorted((ROOT / "docs" / "images").glob("*.png"))
    assert sum(path.stat().st_size for path in pictures) < 600_000
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert [path.name for path in pictures if f"images/{path.name}" not in pages] == []
