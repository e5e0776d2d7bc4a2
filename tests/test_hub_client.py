"""Publish, load, pin, go offline: the Hub's real client against a Hub on loopback, on its oldest and newest version.

What happens in which order is in tests/hub_driver.py; here is what must have come out. Xet, the Hub's own storage
protocol, is not part of it: large files go by LFS, which every server understands, or inside the commit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import TINY_NETS, make_random_batch
from defectnet.hub import save
from defectnet.models.calibration import Calibration
from defectnet.models.registry import build_model
from make_shards import toy_folder

pytestmark = pytest.mark.hub

TESTS = Path(__file__).parent
OLDEST = ("huggingface_hub==1.31.0", "httpx==0.28.1", "httpcore==1.0.9")
"""The lowest version that pyproject.toml allows, and the HTTP library of the first major version."""

RUNS = ("newest-regular", "newest-lfs", "oldest-lfs")
"""Version of the client, and how it uploads large files; small ones go inside the commit in both."""

RESULT = {
    "entrant": "v1",
    "data": {"name": "toy"},
    "split": "test",
    "results": {
        "candidates": {
            "clean": {"concentration": {"mae": 0.93, "r2": None}, "identity": {"ap_micro": 0.60551264}},
            "lab": {"concentration": {"mae": 1.25}},
        }
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """What each run of the driver sees, all of them side by side."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("client", *RUNS)}
    for name in RUNS:
        prepare(folders[name])
    with ThreadPoolExecutor(2 * len(RUNS)) as pool:
        client = pool.submit(install, folders["client"])
        yield {name: pool.submit(run_all, name, folders[name], client) for name in RUNS}


def prepare(work: Path) -> None:
    """Write what the driver works on."""
    for seed, name in enumerate(("v1", "v2")):
        torch.manual_seed(seed)
        model = build_model("DefectNet", net=TINY_NETS["DefectNet"]).eval()
        model.calibration = Calibration()
        golden = make_random_batch(2, seed=seed)
        save(model, work / name, golden=golden, card="---\nlicense: mit\n---\n\n# Tiny", training={})
    (work / "result.json").write_text(json.dumps(RESULT))
    (work / "other.json").write_text(json.dumps(RESULT | {"entrant": "v7"}))
    toy_folder(work / "data")


def install(folder: Path) -> str:
    """Put the oldest client into a folder, and return that; empty if there is no package index."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    words = [*pip, "--retries", "0", "--timeout", "5", "--no-deps", "--target", str(folder), *OLDEST]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    return str(folder) if done.returncode == 0 else ""


def run_all(name: str, work: Path, oldest: Future[str]) -> dict[str, Any]:
    """Run the driver, in one mode also a second time without a network; empty if the client is not there."""
    which, mode = name.split("-")
    client = "" if which == "newest" else oldest.result()
    if which == "oldest" and not client:
        return {}
    seen = drive(mode, work, client)
    if mode == "lfs":
        seen["steps"] |= drive("offline", work, client, HF_HUB_OFFLINE="1")["steps"]
    return seen


def drive(mode: str, work: Path, client: str, **settings: str) -> dict[str, Any]:
    """Run the driver in a process with an empty cache of its own, and without whatever the user has set."""
    user = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    xet = {"HF_HUB_DISABLE_XET": "1"} if mode != "regular" else {}
    hub = {"HF_HOME": str(work / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, str(TESTS / "hub_driver.py"), mode, str(work)],
        env=user | xet | hub | settings | {"PYTHONPATH": client, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def result(runs: dict[str, Future[dict[str, Any]]], name: str) -> dict[str, Any]:
    seen = runs[name].result()
    if not seen:
        pytest.skip(f"{OLDEST[0]} could not be installed beside the other: no package index can be reached")
    return seen


@pytest.fixture(scope="module", params=RUNS)
def run(request, runs) -> dict[str, Any]:
    """What one run of the driver saw."""
    return result(runs, request.param) | {"name": request.param}


@pytest.fixture(scope="module")
def steps(run) -> dict[str, dict[str, Any]]:
    return run["steps"]


@pytest.fixture(scope="module", params=[name for name in RUNS if name.endswith("lfs")])
def lfs(request, runs) -> dict[str, dict[str, Any]]:
    """Steps that are taken in one of the two modes only."""
    return result(runs, request.param)["steps"]


def one_error(step: dict[str, Any], message: str) -> None:
    assert re.search(message, step["error"]), step["error"]
    assert "\n" not in step["error"]


def test_the_client_is_the_one_that_was_asked_for(run):
    assert run["client"] == ("1.31.0" if run["name"].startswith("oldest") else version("huggingface_hub"))


def test_the_oldest_client_is_the_oldest_that_is_allowed():
    (allowed,) = (line for line in requires("defectnet") or [] if re.match("huggingface[-_]hub", line))
    lowest = re.search(r">=([\d.]+)", allowed)
    assert lowest
    assert OLDEST[0].startswith(f"huggingface_hub=={lowest[1]}")


# Publishing


def test_a_push_is_one_commit_and_a_tag(run, steps):
    push = steps["push"]
    assert not push["error"]
    assert push["commits"] == {"lab/tiny": 2}  # the first is that of the new repository
    assert sum("/commit/" in request for request in push["requests"]) == 1
    assert push["tag"] == push["head"]
    assert set(push["files"]) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "golden.safetensors",
        "model.safetensors",
        ".eval_results/defectnet-pairs.yaml",
    }
    large = ["golden.safetensors", "model.safetensors"] if run["name"].endswith("lfs") else []
    assert sorted(push["large"]) == large


def test_a_push_prints_the_full_commit_and_its_address(steps):
    first, address = steps["push"]["said"].splitlines()
    head = steps["push"]["head"]
    assert first == f"lab/tiny pushed: commit {head}, tag v1"
    assert address.endswith(f"/lab/tiny/commit/{head}")


def test_metrics_are_published_in_both_forms(steps):
    _, front, text = steps["push"]["card"].split("---\n", 2)
    card = yaml.safe_load(front)
    assert text.strip() == "# Tiny"
    assert (card["license"], card["library_name"], card["datasets"]) == ("mit", "defectnet", ["lab/pairs"])
    (index,) = card["model-index"]
    assert index["name"] == "tiny"
    metrics = {
        (part["dataset"]["config"], metric["type"]): metric["value"]
        for part in index["results"]
        for metric in part["metrics"]
    }
    assert metrics == {
        ("candidates-clean", "mae"): 0.93,
        ("candidates-clean", "average_precision"): 0.605513,
        ("candidates-lab", "mae"): 1.25,
    }
    (entries,) = (yaml.safe_load(content) for content in steps["push"]["results"].values())
    assert {entry["dataset"]["id"] for entry in entries} == {"lab/pairs"}
    assert {entry["dataset"]["task_id"]: entry["value"] for entry in entries} == {
        "candidates-clean-concentration-mae": 0.93,
        "candidates-clean-identity-ap-micro": 0.605513,
        "candidates-lab-concentration-mae": 1.25,
    }


@pytest.mark.parametrize(
    "step",
    [
        "push again",
        "push again without a tag",
        "push of the model",
        "push of what came from there",
    ],
)
def test_pushing_the_same_again_changes_nothing(steps, step):
    assert not steps[step]["error"]
    assert steps[step]["changed"] is False
    assert steps[step]["commit"] == steps["push"]["head"]
    assert steps[step]["commits"]["lab/tiny"] == 2


def test_a_tag_is_never_moved(steps):
    refused = steps["push of others under the tag"]
    assert "tag 'v1' of repository 'lab/tiny' holds other files" in refused["error"]
    assert refused["commits"]["lab/tiny"] == 2
    assert steps["private push"]["private"] is True


REFUSED = {
    "push without a token": "cannot be written without a token.*HF_TOKEN",
    "push with a wrong token": "could not be written.*The token is missing or not valid",
    "push with a token that may only read": "could not be written.*have the right",
    "push of a damaged folder": "model.safetensors is truncated",
    "push with the golden file of another": "identity_logits is not reproduced",
    "push to no repository": "'tiny' is no name of a repository",
    "push with a tag that is none": "tag 'version 1' cannot be used",
    "push with the result of another": "is a result of 'v7', not of 'v1'",
}


@pytest.mark.parametrize("step", REFUSED)
def test_a_push_that_cannot_be_is_one_error_and_leaves_nothing(steps, step):
    one_error(steps[step], REFUSED[step])
    assert steps[step]["commits"] == {}


def test_a_new_version_is_a_new_commit_without_stale_metrics(steps):
    changed = steps["changed push"]
    assert changed["changed"] is True
    assert changed["commits"]["lab/tiny"] == 3
    assert changed["paths"] == [".gitattributes", "README.md", "config.json", "golden.safetensors", "model.safetensors"]


# Loading


LOADS = {
    "cold": "v1",
    "warm": "v1",
    "by tag": "v1",
    "by commit": "v1",
    "by commit, cold": "v1",
    "by name": "v1",
    "from the cache only": "v1",
    "private with a token": "v1",
    "carried over": "v1",
    "main after it": "v2",
    "old tag after it": "v1",
    "new tag after it": "v2",
    "server dead": "v2",
    "server dead, by tag": "v1",
    "damaged model.safetensors, fetched again": "v1",
    "damaged config.json, fetched again": "v1",
}


@pytest.mark.parametrize("step", LOADS)
def test_every_way_to_load_gives_the_weights_that_were_pushed(steps, step):
    pushed = {"v1": steps["cold"]["weights"], "v2": steps["main after it"]["weights"]}
    assert pushed["v1"] != pushed["v2"]
    assert not steps[step]["error"]
    assert steps[step]["weights"] == pushed[LOADS[step]]
    assert steps[step]["training"] is False


@pytest.mark.parametrize("step", ["by commit", "by name", "from the cache only"])
def test_a_commit_in_the_cache_costs_no_request(steps, step):
    assert steps[step]["requests"] == []


@pytest.mark.parametrize("step", ["warm", "by tag", "old tag after it"])
def test_a_branch_or_tag_in_the_cache_costs_no_download(steps, step):
    assert steps[step]["requests"]
    assert not any(request.startswith("GET") and "/resolve/" in request for request in steps[step]["requests"])


def test_a_cold_load_fetches_four_files_and_no_more(steps):
    for step in ("cold", "by commit, cold"):
        fetched = [r.rpartition("/")[2] for r in steps[step]["requests"] if r.startswith("GET") and "/resolve/" in r]
        assert sorted(fetched) == ["README.md", "config.json", "golden.safetensors", "model.safetensors"]


WRONG = {
    "no repository": "'lab/none' does not exist or is not public",
    "no repository, with a token": "'lab/none' does not exist or is not public",
    "no revision": "at revision 'v9' does not exist",
    "no commit": "at revision '0000.* does not exist",
    "private without a token": "'lab/secret' does not exist or is not public.*hf auth login",
    "private with a wrong token": "'lab/secret' could not be fetched .*token is missing or not valid",
    "gated": "'lab/gated' is gated. Accept its terms",
    "forbidden": "'lab/forbidden' could not be fetched .the server answered 403",
    "failing": "'lab/failing' could not be fetched .the server answered 500.. Try again later",
    "not in the cache": "'lab/absent' is not in the cache and was not fetched. Drop local_files_only",
    "wrong key": "model.safetensors: tensor .* is missing .as it is in the repository, commit",
    "pickle": "model.safetensors is missing .*Pickles are never fetched",
    "pickle under the name of safetensors": "model.safetensors is no safetensors file",
    "no config": "holds no config.json .as it is in the repository",
    "weights of another": "of another checkpoint .*as it is in the repository",
    "newer schema": "has schema version 99.*Upgrade: pip install",
    "damaged model.safetensors": "model.safetensors is damaged .in the cache.*Fetch it again.*force_download=True",
    "damaged config.json": "config.json is damaged .in the cache.*Fetch it again.*force_download=True",
    "server dead, cold": "'lab/never' is not in the cache and was not fetched .*Connection refused",
    "server dead, push": "'lab/tiny' could not be written .*Connection refused",
}


@pytest.mark.parametrize("step", WRONG)
def test_what_cannot_be_loaded_is_one_error(steps, step):
    one_error(steps[step], WRONG[step])


def test_a_pickle_is_not_even_fetched(steps):
    assert steps["pickle"]["cached"] == ["README.md", "config.json", "golden.safetensors"]
    assert not any("pytorch_model.bin" in request for request in steps["pickle"]["requests"])


def test_offline_the_cache_is_enough(lfs):
    for step, weights in {"offline": "main after it", "offline, by tag": "cold"}.items():
        assert lfs[step]["weights"] == lfs[weights]["weights"]
    one_error(lfs["offline, cold"], "'lab/never' is not in the cache.*without HF_HUB_OFFLINE")
    assert [lfs[step]["requests"] for step in ("offline", "offline, by tag", "offline, cold")] == [[], [], []]


# Data


def test_a_data_set_is_pushed_as_one_commit(lfs):
    push = lfs["data push"]
    assert not push["error"]
    assert push["commits"]["lab/pairs"] == 2
    assert push["paths"] == [".gitattributes", *(f"shard-0000{i}.parquet" for i in range(3))]
    assert push["private"] is False
    assert push["refs"] == {"main": push["commit"], "v1": push["commit"]}
    assert lfs["data push again"]["changed"] is False
    assert lfs["data push again"]["commits"]["lab/pairs"] == 2
    assert lfs["data push of fewer shards"]["paths"] == [".gitattributes", "shard-00000.parquet", "shard-00001.parquet"]


@pytest.mark.parametrize("step", ["data of the Hub", "data of a tag", "data of a commit"])
def test_data_stream_the_same_rows_from_the_hub_and_from_the_folder(lfs, step):
    assert not lfs[step]["error"]
    assert lfs[step]["same"] is True
    assert lfs[step]["rows"] == 16


def test_data_that_are_not_there_are_one_error(lfs):
    one_error(lfs["no data"], "data set 'lab/none' does not exist or is not public")
