"""How long pairs from host packs take, beside full simulations of the same cells: ``python benchmarks/pack_pairs.py``.

    python benchmarks/pack_pairs.py --packs DIR --rows 16 > benchmarks/pack-pairs.json

Packs are made with the potential first if the folder does not exist. Prints JSON. One process on one thread; times are
those of the processor. Each host is visited for eight rows, and its pack loaded for them, as with many packs. Some of
the cells are then relaxed and simulated in full with that potential; the spectra differ by what superposition leaves
out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before numpy is imported

# ruff: noqa: E402
import numpy as np
import torch
from ase.build import bulk

from defectnet.config import STORAGE_GRID
from defectnet.crystal.doping import DopedCell
from defectnet.crystal.hosts import Host, host_from_atoms
from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.crystal.pack import HostPack
from defectnet.crystal.superposition import Superposition
from defectnet.data import packs as packs_module
from defectnet.data import sample as sample_module
from defectnet.data.packs import PackPairs, PairSettings, find_packs
from defectnet.data.shards import Sample, in_brief
from defectnet.elements import INDEX, NUMBERS
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import Potential, load_potential
from defectnet.potentials.supercells import supercell
from defectnet.simulate.rows import HostSimulation, RejectedCell, SimulationSettings

SIZES = (64, 128, 200)
"""Atoms in a supercell, met within a tenth."""

CRYSTALS = {
    "MgO": (bulk("MgO", "rocksalt", 4.21), [("Ca", "Mg"), ("Zn", "Mg"), ("S", "O"), ("Al", "Mg")]),
    "GaAs": (bulk("GaAs", "zincblende", 5.65), [("Al", "Ga"), ("In", "Ga"), ("P", "As"), ("Si", "Ga")]),
}


def timed(seconds: Counter[str], stage: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that adds the time of its calls to a stage."""

    def call(*args: Any, **options: Any) -> Any:
        begin = time.process_time()
        try:
            return plain(*args, **options)
        finally:
            seconds[stage] += time.process_time() - begin

    return call


def superposed(pairs: PackPairs, rows: int) -> tuple[list[Sample], dict[str, Any]]:
    """Make rows; returns them, and seconds by stage."""
    in_brief([PackPairs(pairs.packs, pairs.settings).row(0)])  # what is done once in a process
    seconds: Counter[str] = Counter()
    stages = [
        (Superposition, "hessians", "assembly"),
        (packs_module, "modes_of", "diagonalisation"),
        (sample_module, "projected_dos", "DOS"),
        (pairs, "_load", "loading packs"),
    ]
    plain = [(where, name, getattr(where, name)) for where, name, _ in stages]
    for (where, name, stage), (*_, function) in zip(stages, plain, strict=True):
        setattr(where, name, timed(seconds, stage, function))
    begin = time.process_time()
    try:
        drawn = [pairs.draw(number) for number in range(rows)]
        timed(seconds, "storing", in_brief)([one.sample for one in drawn])
    finally:
        for where, name, function in plain:
            setattr(where, name, function)
    whole = time.process_time() - begin
    seconds["host and rest"] = whole - sum(seconds.values())
    return [one.sample for one in drawn], {
        "seconds_per_row": round(whole / rows, 4),
        "rows_per_second_and_core": round(rows / whole, 2),
        "core_hours_per_million": round(1e6 * whole / rows / 3600, 1),
        "share": {stage: round(spent / whole, 3) for stage, spent in seconds.most_common()},
        "rejected_draws": sum(len(one.rejects) for one in drawn),
    }


def simulated(potential: Potential, pairs: PackPairs, samples: list[Sample]) -> dict[str, Any]:
    """Relax and simulate the same cells in full; seconds a row, and how far the spectra are apart."""
    settings = SimulationSettings(imaginary_limit=0.05, host_imaginary_limit=0.05)
    hosts = {pack.id: HostPack.load(pack.folder).host.primitive for pack in pairs.packs}
    simulations = {
        name: HostSimulation(potential, Host(name, name, crystal), crystal, settings) for name, crystal in hosts.items()
    }
    spent, left, failed = [], [], 0
    for number, sample in enumerate(samples):
        matrix = np.reshape(sample.supercell, (3, 3))
        pristine = supercell(hosts[sample.host_id], matrix)
        numbers = pristine.numbers.copy()
        numbers[list(sample.sites)] = [NUMBERS[INDEX[symbol]] for symbol in sample.site_dopants]
        shaken = pristine.positions + np.random.default_rng(number).normal(0.0, 0.01, pristine.positions.shape)
        sites = np.array(sample.sites, dtype=np.int64)
        cell = DopedCell(Crystal(numbers, pristine.cell, shaken), matrix, sites, sample.site_dopants, "random")
        begin = time.process_time()
        try:
            full = simulations[sample.host_id].vibrate(f"{sample.host_id}/{number}", cell).samples[0]
        except (RejectedCell, SimulationError):
            failed += 1
            continue
        spent.append(time.process_time() - begin)
        left.append(unexplained(sample, full))
    known = [value for value in left if value is not None]
    return {
        "seconds_per_row": round(float(np.mean(spent)), 3) if spent else None,
        "failed": failed,
        "unexplained_median": round(float(np.median(known)), 4) if known else None,
    }


def unexplained(sample: Sample, full: Sample) -> float | None:
    """Return the share of the change of the total DOS, broadened, that superposition gets wrong; None for controls."""
    if not sample.dopants:
        return None
    kernel = np.exp(-0.5 * (np.arange(-12, 13) * STORAGE_GRID.width / 0.02) ** 2)

    def total(dos: np.ndarray) -> np.ndarray:
        return np.convolve(dos.sum(0), kernel / kernel.sum(), "same")

    change = total(full.doped_dos) - total(full.host_dos)
    wrong = total(full.doped_dos) - total(sample.doped_dos)
    return float((wrong**2).sum() / (change**2).sum())


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", required=True, help="folder of packs; made if it is not there")
    parser.add_argument("--potential", default="defectnet-nep", help="of the packs")
    parser.add_argument("--rows", type=int, default=16, help="rows of each size")
    parser.add_argument("--simulate", type=int, default=6, help="rows of each size that are simulated in full, too")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="atoms in a supercell")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not Path(options.packs).exists():
        jobs = [
            (host_from_atoms(atoms, name), dopants, Path(options.packs) / name)
            for name, (atoms, dopants) in CRYSTALS.items()
        ]
        failed = make_packs(jobs, MakeSettings(potential=options.potential))
        if failed:
            raise SystemExit(str(failed))
    packs, potential = find_packs(options.packs), load_potential(options.potential)
    found = {}
    for size in options.sizes:
        settings = PairSettings(smallest=round(0.9 * size), largest=round(1.1 * size), cells=1)
        pairs = PackPairs(packs, settings)
        samples, report = superposed(pairs, options.rows)
        full = simulated(potential, pairs, samples[:: max(1, options.rows // options.simulate)][: options.simulate])
        ratio = full["seconds_per_row"] and round(full["seconds_per_row"] / report["seconds_per_row"], 1)
        atoms = float(np.mean([sample.atoms for sample in samples]))
        found[str(size)] = {"atoms": atoms, **report, "full_simulation": {**full, "times_slower": ratio}}
    print(json.dumps({"potential": potential.name, "packs": len(packs), "threads": 1, "sizes": found}, indent=1))


if __name__ == "__main__":
    main()
