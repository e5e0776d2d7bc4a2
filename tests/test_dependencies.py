"""The oldest versions that are allowed are those of constraints-lowest.txt, which were installed together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

import lowest_versions
from defectnet.errors import CheckpointError
from defectnet.export import read_run

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("plot", "data", "sim", "parsl", "physics", "benchmark", "app", "hdf5")


def requirements() -> dict[str, str]:
    """Return what a user may install, and the lower bound of each."""
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra])]
    found = {}
    for text in texts:
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=([\w.]+))?", text)
        assert match
        if match[1] != "defectnet":
            assert match[2], f"{text} has no lower bound"
            assert found.setdefault(match[1], match[2]) == match[2], f"{match[1]} has two lower bounds"
    return found


def test_the_lowest_constraints_are_the_lower_bounds():
    assert lowest_versions.pinned() == requirements()


def test_the_usual_constraints_are_allowed():
    usual, lowest = lowest_versions.pinned(ROOT / "constraints.txt"), requirements()
    for name, bound in lowest.items():
        assert [int(x) for x in re.findall(r"\d+", usual[name])] >= [int(x) for x in re.findall(r"\d+", bound)]


def test_the_conda_recipe_asks_for_what_the_project_does():
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    names = {"torch": "pytorch", "matplotlib": "matplotlib-base", "jsonargparse[signatures]": "jsonargparse"}
    asked = list(PROJECT["dependencies"])
    for extra in ("plot", "data", "hdf5", "formats", "sim"):
        asked += PROJECT["optional-dependencies"][extra]
    wanted = {f"python {PROJECT['requires-python']}", "docstring_parser", "typeshed_client"}  # of [signatures]
    for text in asked:
        name, bounds = re.fullmatch(r"([\w.-]+(?:\[[\w,]+\])?)(.*)", text).groups()
        if not name.startswith("defectnet"):
            wanted.add(f"{names.get(name, name)} {bounds}")
    assert PROJECT["optional-dependencies"]["lab"] == ["defectnet[plot,sim,formats]"]
    assert set(recipe["requirements"]["run"]) == wanted
    assert recipe["package"] == {"name": PROJECT["name"], "version": PROJECT["version"]}
    assert recipe["build"]["python"]["entry_points"] == [f"{k} = {v}" for k, v in PROJECT["scripts"].items()]
    assert recipe["about"]["summary"] == PROJECT["description"]


@pytest.mark.parametrize(
    ("name", "broken"), [("torch", "2.5.1"), ("jsonargparse", "4.40.0"), ("pandas", "2.2.0"), ("torchmetrics", "1.4.0")]
)
def test_what_is_known_to_be_broken_is_not_allowed(name, broken):
    assert [int(x) for x in requirements()[name].split(".")] > [int(x) for x in broken.split(".")]


def test_a_torch_that_runs_code_while_it_reads_is_not_used(tmp_path, monkeypatch):
    torch.save({}, tmp_path / "run.ckpt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu124")
    with pytest.raises(CheckpointError, match=r"not read with torch 2.5.1.*CVE-2025-32434"):
        read_run(tmp_path / "run.ckpt")
