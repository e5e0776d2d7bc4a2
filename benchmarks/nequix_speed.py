"""Seconds for energy and forces of a Nequix network, in torch and by the package itself (JAX), paired.

    python benchmarks/nequix_speed.py --potential nequix-oam-1-pft.nqx --data data/defectnet-hifi-v1 --cells 6

Doped cells of a data set as they were before relaxation; JAX compiles each shape first, which is not counted. `torch`
is one call, `displaced` one of the displacements of a Hessian, which share what does not move. One thread each. Needs
defectnet[reference].
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu")
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import numpy as np
import torch
from nequix.calculator import NequixCalculator

from defectnet.data.shards import read_shard
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nequix import NequixPotential
from defectnet.simulate.structure import doped_supercell

DISPLACEMENTS = 12
"""Of each cell, timed together."""


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--potential", required=True, help="weights, .nqx")
    parser.add_argument("--data", type=Path, default=Path("data/defectnet-hifi-v1"), help="folder of shards")
    parser.add_argument("--cells", type=int, default=6, help="cells")
    parser.add_argument("--repeat", type=int, default=5, help="calls of each; the median is taken")
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = (sample for path in sorted(options.data.glob("shard-*.parquet")) for sample in read_shard(path))
    ours = NequixPotential(options.potential)
    package = NequixCalculator(model_path=options.potential, backend="jax", use_kernel=False)
    cells: list[dict[str, Any]] = []
    for sample in islice(samples, options.cells):
        atoms = doped_supercell(sample)
        atoms.calc = package
        crystal = Crystal(atoms.numbers, atoms.cell.array, atoms.positions.copy())
        difference = np.abs(ours.evaluate(crystal).forces - atoms.get_forces()).max()
        times: dict[str, list[float]] = {"torch": [], "displaced": [], "package": []}
        atoms_displaced = np.arange(DISPLACEMENTS) % len(crystal)
        shifts = np.full((DISPLACEMENTS, 3), 0.005)
        for k in range(options.repeat):
            moved = crystal.moved(np.full((len(crystal), 3), 0.001 * (k + 1)))  # the calculator keeps what it knows
            atoms.positions = moved.positions
            times["torch"].append(seconds(partial(ours.evaluate, moved)))
            whole = seconds(partial(ours.displaced_forces, moved, atoms_displaced, shifts))
            times["displaced"].append(whole / DISPLACEMENTS)
            times["package"].append(seconds(atoms.get_forces))
        spent = {name: statistics.median(values) for name, values in times.items()}
        cells.append(
            {
                "row": sample.row_id,
                "atoms": len(crystal),
                "seconds": {name: round(value, 3) for name, value in spent.items()},
                "speedup": {name: round(spent["package"] / spent[name], 2) for name in ("torch", "displaced")},
                "largest_force_difference_ev_per_angstrom": float(f"{difference:.2g}"),
            }
        )
    medians = {name: statistics.median(cell["speedup"][name] for cell in cells) for name in ("torch", "displaced")}
    print(json.dumps({"cells": cells, "speedup_median": medians}, indent=1))


if __name__ == "__main__":
    main()
