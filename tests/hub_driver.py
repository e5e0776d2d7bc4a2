"""Publishes and loads against a `HubServer`, in a process of its own, and prints what it saw as JSON.

The Hub's client reads its settings when it is imported, and a test wants another address, another cache, and sometimes
another version of the client. Run by tests/test_hub_client.py as ``hub_driver.py regular|lfs FOLDER``, where the folder
holds two versions of a checkpoint (``v1``, ``v2``), a benchmark's result (``result.json``) and shards (``data``); and
as ``hub_driver.py offline FOLDER`` after that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hub_server import HubServer

WRITER, READER = "hf_writer", "hf_reader"


class Report(dict[str, dict[str, Any]]):
    """Step -> what came out of it, or the error, and the requests that the server had to answer."""

    def __init__(self, requests: list[str]) -> None:
        super().__init__()
        self.requests = requests

    def step(self, name: str, call: Callable[[], Any]) -> Any:
        """Run a step; only errors of defectnet are part of the report, any other ends the process."""
        from defectnet.errors import DefectNetError

        before = len(self.requests)
        value, error = None, ""
        try:
            value = call()
        except DefectNetError as problem:
            error = str(problem)
        self[name] = {"error": error, "requests": self.requests[before:]}
        return value


def fingerprint(model: Any) -> str:
    """Return a text that is the same for the same weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:12]


class Steps:
    """The steps, in order; each finds the server as the last one left it."""

    def __init__(self, server: HubServer, work: Path) -> None:
        self.server, self.work, self.report = server, work, Report(server.requests)

    def load(self, step: str, source: str, **settings: Any) -> None:
        import defectnet

        model = self.report.step(step, lambda: defectnet.from_pretrained(source, **settings))
        if model is not None:
            self.report[step] |= {"weights": fingerprint(model), "name": model.name, "training": model.training}

    def push(self, step: str, call: Callable[[], Any]) -> Any:
        pushed = self.report.step(step, call)
        if pushed is not None:
            self.report[step] |= {"commit": pushed.commit, "changed": pushed.changed, "url": pushed.url}
        repos = self.server.repos.items()
        self.report[step]["commits"] = {name: len(repo.commits) for (_, name), repo in repos}
        return pushed

    def refused_pushes(self) -> None:
        from defectnet.hub import push_checkpoint as push

        v1 = self.work / "v1"
        self.push("push without a token", lambda: push(v1, "lab/tiny"))
        self.push("push with a wrong token", lambda: push(v1, "lab/tiny", token="hf_wrong"))
        self.push("push with a token that may only read", lambda: push(v1, "lab/tiny", token=READER))
        os.environ["HF_TOKEN"] = WRITER
        broken = shutil.copytree(v1, self.work / "broken")
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        self.push("push of a damaged folder", lambda: push(broken, "lab/tiny"))
        shutil.copy(self.work / "v2" / "golden.safetensors", shutil.copytree(v1, self.work / "mixed"))
        self.push("push with the golden file of another", lambda: push(self.work / "mixed", "lab/tiny"))
        self.push("push to no repository", lambda: push(v1, "tiny"))
        self.push("push with a tag that is none", lambda: push(v1, "lab/tiny", tag="version 1"))
        self.push("push with the result of another", lambda: push(v1, "lab/tiny", metrics=self.work / "other.json"))

    def pushes(self) -> str:
        """Publish version 1 from the command line, then again in other ways."""
        import defectnet
        from defectnet import cli
        from defectnet.hub import push_checkpoint as push
        from defectnet.hub import push_model

        v1, result = self.work / "v1", str(self.work / "result.json")
        words = ["push", str(v1), "lab/tiny", "--tag", "v1", "--metrics", result, "--dataset", "lab/pairs"]
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.push("push", lambda: cli.main(words))
        repo = self.server.repos["models", "lab/tiny"]
        files = repo.files()
        self.report["push"] |= {
            "said": said.getvalue(),
            "head": repo.refs["main"],
            "tag": repo.refs["v1"],
            "files": {path: files[path].sha256 for path in files},
            "large": [path for path in files if files[path].lfs],
            "card": files["README.md"].content.decode(),
            "results": {path: files[path].content.decode() for path in files if path.startswith(".eval_results/")},
        }
        settings = {"metrics": result, "dataset": "lab/pairs"}
        self.push("push again", lambda: push(v1, "lab/tiny", tag="v1", **settings))
        self.push("push again without a tag", lambda: push(v1, "lab/tiny", **settings))
        model = defectnet.from_pretrained(v1)
        self.push("push of the model", lambda: push_model(model, "lab/tiny", tag="v1", **settings))
        fetched = defectnet.from_pretrained("lab/tiny", cache_dir=self.work / "third-cache")
        self.push("push of what came from there", lambda: push_model(fetched, "lab/tiny", tag="v1"))
        self.push("push of others under the tag", lambda: push(self.work / "v2", "lab/tiny", tag="v1"))
        self.push("private push", lambda: push(v1, "lab/secret", private=True))
        self.report["private push"]["private"] = self.server.repos["models", "lab/secret"].private
        return repo.refs["v1"]

    def loads(self, commit: str) -> None:
        from defectnet.hub import catalogue

        del os.environ["HF_TOKEN"]
        self.load("cold", "lab/tiny")
        self.load("warm", "lab/tiny")
        self.load("by tag", "lab/tiny", revision="v1")
        self.load("by commit", "lab/tiny", revision=commit)
        catalogue.PUBLISHED["tiny"] = ("lab/tiny", commit)
        self.load("by name", "tiny")
        self.load("by commit, cold", "lab/tiny", revision=commit, cache_dir=self.work / "other-cache")
        self.load("from the cache only", "lab/tiny", local_files_only=True)
        self.load("private with a token", "lab/secret", token=READER)
        from huggingface_hub import snapshot_download  # what `hf download --local-dir` calls

        self.load("carried over", snapshot_download("lab/tiny", revision="v1", local_dir=self.work / "carried"))

    def second_version(self) -> None:
        from defectnet.hub import push_checkpoint as push

        pushed = self.push("changed push", lambda: push(self.work / "v2", "lab/tiny", tag="v2", token=WRITER))
        files = self.server.repos["models", "lab/tiny"].files(pushed.commit)
        self.report["changed push"]["paths"] = sorted(files)
        self.load("main after it", "lab/tiny")
        self.load("old tag after it", "lab/tiny", revision="v1")
        self.load("new tag after it", "lab/tiny", revision="v2")

    def wrong_sources(self) -> None:
        server = self.server
        gated = server.add("lab/gated", {"config.json": b"{}"})
        gated.closed = (403, "GatedRepo")
        forbidden = server.add("lab/forbidden", {"config.json": b"{}"})
        forbidden.closed = (403, "")
        failing = server.add("lab/failing", {"config.json": b"{}"})
        failing.closed = (500, "")
        self.load("no repository", "lab/none")
        self.load("no repository, with a token", "lab/none", token=READER)
        self.load("no revision", "lab/tiny", revision="v9")
        self.load("no commit", "lab/tiny", revision="0" * 40)
        self.load("private without a token", "lab/secret", cache_dir=self.work / "other-cache")
        self.load("private with a wrong token", "lab/secret", token="hf_wrong", cache_dir=self.work / "other-cache")
        self.load("gated", "lab/gated")
        self.load("forbidden", "lab/forbidden")
        self.load("failing", "lab/failing")
        self.load("not in the cache", "lab/absent", local_files_only=True)

    def wrong_contents(self) -> None:
        """Put checkpoints there that `push` would have refused."""
        import torch
        from safetensors.torch import load, save

        whole = {path.name: path.read_bytes() for path in (self.work / "v1").iterdir()}
        tensors = load(whole["model.safetensors"])
        name = next(iter(tensors))
        wrong_key = save({**{k: v for k, v in tensors.items() if k != name}, "renamed": tensors[name]})
        pickle = io.BytesIO()
        torch.save(tensors, pickle)
        without = {path: data for path, data in whole.items() if path != "model.safetensors"}
        newer = json.dumps(json.loads(whole["config.json"]) | {"schema_version": 99}).encode()
        odd = {
            "wrong key": whole | _signed(whole, wrong_key),
            "pickle": without | {"pytorch_model.bin": pickle.getvalue()},
            "pickle under the name of safetensors": whole | _signed(whole, pickle.getvalue()),
            "no config": {path: data for path, data in whole.items() if path != "config.json"},
            "weights of another": whole | {"model.safetensors": wrong_key},
            "newer schema": whole | {"config.json": newer},
        }
        for number, (step, files) in enumerate(odd.items()):
            self.server.add(f"lab/odd-{number}", files)
            self.load(step, f"lab/odd-{number}")
        cache = Path(os.environ["HF_HOME"]) / "hub"
        self.report["pickle"]["cached"] = sorted(path.name for path in cache.glob("models--lab--odd-1/snapshots/*/*"))

    def damage(self, commit: str) -> None:
        snapshot = Path(os.environ["HF_HOME"]) / "hub" / "models--lab--tiny" / "snapshots" / commit
        for name in ("model.safetensors", "config.json"):
            blob = (snapshot / name).resolve()
            blob.chmod(0o644)
            blob.write_bytes(blob.read_bytes()[:-100])
            self.load(f"damaged {name}", "lab/tiny", revision=commit)
            self.load(f"damaged {name}, fetched again", "lab/tiny", revision=commit, force_download=True)

    def data(self) -> None:
        """Publish shards, and stream the same rows from the Hub and from the folder."""
        from defectnet.data.module import SpectraDataModule
        from defectnet.data.source import push_dataset

        folder = self.work / "data"
        self.push("data push", lambda: push_dataset(folder, "lab/pairs", tag="v1", token=WRITER, private=False))
        self.push("data push again", lambda: push_dataset(folder, "lab/pairs", tag="v1", token=WRITER))
        repo = self.server.repos["datasets", "lab/pairs"]
        self.report["data push"] |= {"paths": sorted(repo.files()), "private": repo.private, "refs": dict(repo.refs)}
        local = self.report.step("data of the folder", lambda: _rows(SpectraDataModule(str(folder), batch_size=4)))
        for step, source in {
            "data of the Hub": "lab/pairs",
            "data of a tag": "hf://datasets/lab/pairs@v1",
            "data of a commit": f"hf://datasets/lab/pairs@{repo.refs['v1']}",
        }.items():
            found = self.report.step(step, lambda source=source: _rows(SpectraDataModule(source, batch_size=4)))
            self.report[step] |= {"same": found == local, "rows": len(found[0])}
        self.report.step("no data", lambda: _rows(SpectraDataModule("hf://datasets/lab/none")))
        (folder / sorted(path.name for path in folder.glob("shard-*"))[-1]).unlink()
        self.push("data push of fewer shards", lambda: push_dataset(folder, "lab/pairs", token=WRITER))
        self.report["data push of fewer shards"]["paths"] = sorted(repo.files())

    def without_a_server(self) -> None:
        from defectnet.hub import push_checkpoint as push

        self.server.stop()
        self.load("server dead", "lab/tiny")
        self.load("server dead, by tag", "lab/tiny", revision="v1")
        self.load("server dead, cold", "lab/never")
        self.report.step("server dead, push", lambda: push(self.work / "v1", "lab/tiny", token=WRITER))


def _signed(whole: dict[str, bytes], weights: bytes) -> dict[str, bytes]:
    config = json.loads(whole["config.json"]) | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
    return {"model.safetensors": weights, "config.json": json.dumps(config).encode()}


def _rows(module: Any) -> tuple[list[int], str]:
    """Return the numbers of the rows that training sees, in their order, and a text that stands for their spectra."""
    numbers, digest = [], hashlib.sha256()
    for item in module.train_dataloader():
        numbers += item.rows.tolist()
        digest.update(item.batch.doped.numpy().tobytes())
    return numbers, digest.hexdigest()


def run(mode: str, work: Path) -> Report:
    with HubServer(lfs=mode == "lfs") as server:
        os.environ["HF_ENDPOINT"] = server.address  # before the client is imported
        steps = Steps(server, work)
        steps.refused_pushes()
        commit = steps.pushes()
        steps.loads(commit)
        steps.second_version()
        steps.wrong_sources()
        steps.wrong_contents()
        steps.damage(commit)
        if mode == "lfs":
            steps.data()
        steps.without_a_server()
        return steps.report


def run_offline(work: Path) -> Report:
    """Load with HF_HUB_OFFLINE=1 what an earlier process left in the cache; there is no server."""
    with HubServer(lfs=False) as server:
        os.environ["HF_ENDPOINT"] = server.address
        steps = Steps(server, work)
        steps.load("offline", "lab/tiny")
        steps.load("offline, by tag", "lab/tiny", revision="v1")
        steps.load("offline, cold", "lab/never")
        return steps.report


if __name__ == "__main__":
    report = run_offline(Path(sys.argv[2])) if sys.argv[1] == "offline" else run(sys.argv[1], Path(sys.argv[2]))
    import huggingface_hub

    print(json.dumps({"client": huggingface_hub.__version__, "steps": report}))
