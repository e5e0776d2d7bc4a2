"""Does the wheel work where there is no checkout?

    python benchmarks/wheel.py --python python3.12 > wheel.json
    python benchmarks/wheel.py --packages-of .venv          # seconds: dependencies are those of an environment

Builds the wheel, installs it into a new environment in a temporary folder, and from there runs what a user does first:
list checkpoints and host packs, identify with the formula and with a pack, a table of pairs. Prints JSON: sizes, what
each command took, and the last line of what failed. Exit code 1 if anything did.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAIR = ("--host", "host.csv", "--doped", "doped.csv")
COMMANDS: dict[str, tuple[str, ...]] = {
    "version": ("--version",),
    "checkpoints": ("checkpoints",),
    "packs": ("host", "list"),
    "formula": ("identify", *PAIR, "--formula", "CdTe", "--candidates", "Mg,Zn", "--json"),
    "pack": ("identify", *PAIR, "--pack", "CdTe", "--candidates", "Mg", "--json"),
    "table": ("identify", "--table", "pairs.csv", "--out", "answers.jsonl"),
}


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside the checkout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_CONSTRAINT")}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=clean)


def install(python: str, packages_of: Path | None, folder: Path) -> Path:
    """Build the wheel, install it, and return the environment's Python."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True)
    wheel = next((folder / "dist").glob("*.whl"))
    subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
    inside = folder / "venv" / "bin" / "python"
    pip = [str(inside), "-m", "pip", "install", "-q"]
    if packages_of is None:
        pip += ["-c", str(ROOT / "constraints.txt"), f"{wheel}[sim]"]
    else:
        where = "import site; print(site.getsitepackages()[0])"
        theirs, own = (
            run([str(one), "-c", where], folder).stdout.strip() for one in (packages_of / "bin" / "python", inside)
        )
        Path(own, "packages.pth").write_text(theirs + "\n", encoding="utf-8")
        pip += ["--no-deps", "--force-reinstall", str(wheel)]
    subprocess.run(pip, check=True)
    return inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="interpreter to make the environment with")
    parser.add_argument("--packages-of", type=Path, help="environment whose packages are taken, of the same Python")
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        packages_of = options.packages_of and options.packages_of.absolute()
        inside = install(options.python, packages_of, folder)
        for name in ("host.csv", "doped.csv"):
            shutil.copy(ROOT / "examples" / name, folder)
        (folder / "pairs.csv").write_text("host_file,doped_file,formula\nhost.csv,doped.csv,CdTe\n", encoding="utf-8")
        where = run([str(inside), "-c", "import defectnet; print(defectnet.__file__)"], folder).stdout.strip()
        if not where.startswith(str(folder)):
            failed["import"] = f"it is imported from {where or 'nowhere'}"
        for name, words in COMMANDS.items():
            begin = time.monotonic()
            done = run([str(inside), "-m", "defectnet.cli", *words], folder)
            seconds[name] = round(time.monotonic() - begin, 1)
            if done.returncode or not done.stdout.strip():
                failed[name] = (done.stderr.strip().splitlines() or ["no word"])[-1][:300]
        size = next((folder / "dist").glob("*.whl")).stat().st_size
        version = run([str(inside), "--version"], folder).stdout.split()[-1]
    print(
        json.dumps(
            {"python": version, "wheel_mb": round(size / 1e6, 1), "seconds": seconds, "failed": failed}, indent=1
        )
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
