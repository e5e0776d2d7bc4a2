"""Publishes a host pack to a `HubServer` and loads it again, in a process of its own; prints what it saw as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from hub_server import HubServer


def run(folder: Path) -> dict[str, object]:
    with HubServer(lfs=True) as server:
        os.environ |= {"HF_ENDPOINT": server.address, "HF_TOKEN": "hf_writer"}  # before the client is imported
        from defectnet import HostPack
        from defectnet.crystal.publish import push_pack
        from defectnet.errors import SimulationError

        def error(source: str, **settings: object) -> str:
            try:
                HostPack.load(source, **settings)
            except SimulationError as problem:
                return str(problem)
            return ""

        pushed = push_pack(folder, "lab/gaas", tag="v1")
        seen: dict[str, object] = {"files": sorted(server.repos["models", "lab/gaas"].files())}
        seen["dopants"] = HostPack.load("lab/gaas", revision="v1").dopants
        before = len(server.requests)
        seen["dopants again"] = HostPack.load("lab/gaas", revision=pushed.commit).dopants
        seen["requests of a commit"] = len(server.requests) - before
        seen["no revision"] = error("lab/gaas", revision="v9")
        seen["no repository"] = error("lab/none")
        snapshots = Path(os.environ["HF_HOME"]) / "hub" / "models--lab--gaas" / "snapshots"
        blob = (snapshots / pushed.commit / "model.safetensors").resolve()
        blob.chmod(0o644)
        blob.write_bytes(blob.read_bytes()[:-10])
        seen["damaged"] = error("lab/gaas", revision=pushed.commit)
        seen["fetched again"] = HostPack.load("lab/gaas", revision=pushed.commit, force_download=True).dopants
        return seen


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
