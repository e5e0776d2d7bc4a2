"""Seconds for forces of the bundled Nequix network, here and by the package nequix (JAX, torch), interleaved.

    python benchmarks/nequix_speed.py --weights nequix-oam-1-pft.nqx

A rattled cell of 64 atoms of GaAs, one thread each: `ours` is one call, `displaced` one of the displacements
of a Hessian, which share what does not move; `jax` and `torch` are the package's calculator with either backend, left
out where it is not installed (docs/potentials.md; torch needs e3nn and torch-geometric too). What JAX compiles is not
counted. Numbers are medians; ratios are those of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nequix import NequixPotential
from defectnet.potentials.potential import load_potential

DISPLACEMENTS = 12
"""Timed together."""


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def calculator(weights: Path, backend: str) -> Any | None:
    """Return the package's calculator, or None where it is not installed."""
    try:
        from nequix.calculator import NequixCalculator

        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            copy = Path(shutil.copy(weights, folder))  # for torch it writes its own file beside the weights
            return NequixCalculator(model_name=weights.stem, model_path=copy, backend=backend, use_kernel=False)
    except ImportError as error:
        print(f"{backend}: left out, {error}", file=sys.stderr)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", type=Path, help="the same network for the package (.nqx); ours alone by default")
    parser.add_argument("--repeat", type=int, default=7, help="rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours = load_potential("nequix")
    assert isinstance(ours, NequixPotential)
    backends = () if options.weights is None else ("jax", "torch")
    theirs = {name: found for name in backends if (found := calculator(options.weights, name)) is not None}
    atoms = bulk("GaAs", "zincblende", a=5.75, cubic=True) * 2
    atoms.rattle(0.02, seed=0)
    times: dict[str, list[float]] = {name: [] for name in ("ours", "displaced", *theirs)}
    differences: dict[str, float] = {}
    displaced, shifts = np.arange(DISPLACEMENTS), np.full((DISPLACEMENTS, 3), 0.005)
    for k in range(-1, options.repeat):  # the first is not counted
        moved = Atoms(atoms, positions=atoms.positions + 0.001 * k)  # the calculator keeps what it knows
        crystal = Crystal(moved.numbers, moved.cell.array, moved.positions)
        forces = ours.evaluate(crystal).forces
        spent = {
            "ours": seconds(lambda crystal=crystal: ours.evaluate(crystal)),
            "displaced": seconds(lambda crystal=crystal: ours.displaced_forces(crystal, displaced, shifts))
            / DISPLACEMENTS,
        }
        for name, found in theirs.items():
            moved.calc = found
            spent[name] = seconds(moved.get_forces)
            differences[name] = float(np.abs(moved.get_forces() - forces).max())
        for name, value in spent.items():
            times[name] += [value] if k >= 0 else []
    ratios = {
        f"{name} / {mine}": round(statistics.median(a / b for a, b in zip(times[name], times[mine], strict=True)), 2)
        for name in theirs
        for mine in ("ours", "displaced")
    }
    result = {
        "atoms": len(atoms),
        "compiled_kernels": ours.network.chunk == 0,
        "seconds": {name: round(statistics.median(values), 4) for name, values in times.items()},
        "ratios": ratios,
        "largest_force_difference_ev_per_angstrom": {name: float(f"{d:.2g}") for name, d in differences.items()},
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
