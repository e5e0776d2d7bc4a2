"""Do the oldest versions that pyproject.toml allows work?

Run in an environment of its own:

    python3.11 -m venv lowest
    lowest/bin/pip install -c constraints-lowest.txt ".[plot,sim,benchmark,parsl,physics,app]"
    lowest/bin/python benchmarks/lowest_versions.py

Runs commands that use every direct dependency, on bundled data, and prints JSON: which versions are installed, which of
them are not those of constraints-lowest.txt, and how long each command took. Exit code 1 if one fails.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PAIR = ("--host", str(EXAMPLES / "host.csv"), "--doped", str(EXAMPLES / "doped.csv"))


def pinned(path: Path = ROOT / "constraints-lowest.txt") -> dict[str, str]:
    """Return name -> version of a constraints file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2] for line in lines if (match := re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()))}


def commands(work: Path) -> dict[str, list[str]]:
    """Return commands by what they show."""
    folder, host = str(ROOT / "data" / "defectnet-hifi-v1"), str(work / "host.json")
    cell = {"id": "al", "cell": [4.05, 4.05, 4.05, 90, 90, 90], "species": ["Al"] * 4}
    cell["frac"] = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    Path(host).write_text(json.dumps([cell]), encoding="utf-8")
    simulate = ["simulate", "--hosts", host, "--out", str(work / "simulated")]
    net = ["--model.architecture", "DefectNet", "--model.net", '{"d_model": 8, "heads": 1, "encoder_layers": 1}']
    trainer = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    trainer += ["--trainer.default_root_dir", str(work)]
    return {
        "identify": ["identify", *PAIR, "--formula", "CdTe", "--candidates", "Hg,Zn", "--plot", str(work / "a.png")],
        "stats": ["data", "stats", folder, "--json"],
        "simulate": [*simulate, "--potential", "defectnet-nep", "--spectra-per-host", "2", "--atoms", "32"],
        "show": ["host", "list"],
        "fit": ["fit", *net, "--data.folder", folder, *trainer],
        "finetune": ["finetune", "--data", str(EXAMPLES / "lab"), "--out", str(work / "mine"), "--logger", "none"],
        "benchmark": ["benchmark", "--model", "mean", "--data", folder, "--bootstrap", "10", "--json"],
    }


def main() -> None:
    installed = {}
    for name in pinned():
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "missing"
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in commands(Path(scratch)).items():
            begin = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "defectnet.cli", *words], capture_output=True, text=True, check=False
            )
            seconds[name] = round(time.monotonic() - begin, 1)
            if done.returncode:
                failed[name] = done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "no word"
    other = {name: found for name, found in installed.items() if found.partition("+")[0] != pinned()[name]}
    print(json.dumps({"installed": installed, "other": other, "seconds": seconds, "failed": failed}, indent=1))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
