"""Rules that hold for the repository as a whole."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

import defectnet
from defectnet.benchmark.results import by_name, read_results
from defectnet.files import into_block
from defectnet.hub.catalogue import bundled
from report import page
from report_tables import short_form
from targets import read_speed, target_table

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".ipynb", ".csv", ".cff", ".cfg", ""}
# Written so that this file does not hold what it looks for.
PLACES = [re.compile(rf"(?<![\w.~:/-])/{name}/") for name in ("home", "work", "tmp", "root", "Users")]
PLACES.append(re.compile(r"\.\./" + "shared"))
# Not part of the repository: what git ignores, at the root.
IGNORED = {".git", ".venv", "runs", "demo", "dist", "build", "site", "lightning_logs", ".hypothesis"}


def is_ours(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return parts[0] not in IGNORED and not any(part.endswith("cache") or part == "__pycache__" for part in parts[:-1])


def found(text: str) -> list[str]:
    return [match[0] for place in PLACES for match in place.finditer(text)]


def test_no_paths_of_one_machine():
    files = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix in TEXT and is_ours(path)]
    assert len(files) > 50
    hits = {str(path.relative_to(ROOT)): found(path.read_text(encoding="utf-8", errors="ignore")) for path in files}
    assert {name: hit for name, hit in hits.items() if hit} == {}


def test_the_search_for_paths_can_fail():
    for text in ("see /ho" + "me/me/x.csv", "'/tm" + "p/x'", "open(../sha" + "red/data)"):
        assert found(text)
    assert not found("relative/home/x https://a.org/tmp/b ~/work/x")


def test_changelog_has_this_version():
    titles = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[0] == defectnet.__version__


def test_citation_has_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == defectnet.__version__
    assert citation["authors"] == [{"name": "The defectnet developers"}]
    assert citation["references"][0]["identifiers"][0]["value"] == "arXiv:2506.00725"


def test_constraints_pin_every_dependency():
    """A direct dependency without a pin would drift; a pin is exact."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted} - {"defectnet"}
    assert names <= set(pins)
    assert all(re.fullmatch(r"[\d.]+(dev\d+)?", version) for version in pins.values())


def test_every_bundled_checkpoint_has_a_recipe_of_its_name():
    assert bundled()
    for name, folder in bundled().items():
        recipe = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        assert recipe["model"]["architecture"] == config["architecture"]


def test_results_stand_where_they_should():
    """The page, the model card, and README.md if it has room for them, show what the result files say."""
    folder = ROOT / "benchmarks"
    results = by_name(read_results([folder / "results"]))
    again = "make it again with the commands of benchmarks/README.md"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"--show ((?:[\w-]+ )+)", readme)[1].split()
    assert (
        into_block(readme, "targets", "\n".join(target_table(results, read_speed(folder / "speed.json")))) == readme
    ), again
    assert page(results, shown, "figures") == (folder / "RESULTS.md").read_text(encoding="utf-8"), again
    for name in ("MODEL_CARD.md", "README.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        if name == "MODEL_CARD.md" or "<!-- results:start -->" in text:
            assert into_block(text, "results", "\n".join(short_form(results))) == text, again
    assert set(bundled()) <= set(results)


@pytest.mark.parametrize("goal", ["demo", "test", "lint", "docs", "gallery", "docs-site", "clean"])
def test_makefile_has_the_goal(goal):
    done = subprocess.run(["make", "--dry-run", goal], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ci_runs_the_tests_and_builds_the_site():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-2:] == ["make test", "make docs-site"]
