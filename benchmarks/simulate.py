"""How long spectra take: seconds by stage, spectra an hour, and what a million would cost.

    python benchmarks/simulate.py --potential nep89 --hosts data/hosts.json.xz --cells 6 --json

One process on one thread, as the workers of `defectnet simulate` compute; divide by the number of workers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.crystal.hosts import Host, read_hosts
from defectnet.data.shards import write_shard
from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import EnergyForcesStress
from defectnet.potentials.potential import Potential, load_potential
from defectnet.simulate import rows
from defectnet.simulate.rows import HostSimulation, RejectedCell, SimulationSettings, relax_host

SIZES = (200, 350, 500)
"""Atoms in a supercell, met within a tenth."""


@dataclass
class Clock:
    """Seconds by stage; an inner stage is not counted into the one around it."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=lambda: [0.0])

    def time(self, stage: str, call: Callable[[], Any]) -> Any:
        """Call, and add the time it takes, without that of stages inside, to a stage."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            return call()
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[stage] = self.seconds.get(stage, 0.0) + own


class TimedForceConstants:
    """Second derivatives that are timed."""

    def __init__(self, force_constants: ForceConstants, clock: Clock) -> None:
        self.force_constants, self.clock = force_constants, clock

    def hessian(self) -> torch.Tensor:
        """Return the Hessian of the cell."""
        return self.clock.time("hessian", self.force_constants.hessian)

    def at(self, q_points: NDArray[np.float64]) -> torch.Tensor:
        """Return the Hessian at wave vectors."""
        return self.clock.time("hessian", lambda: self.force_constants.at(q_points))


class TimedPotential:
    """A potential that is timed; counts its force calls."""

    def __init__(self, potential: Potential, clock: Clock) -> None:
        self.potential, self.clock = potential, clock
        self.name, self.sha256, self.exact = potential.name, potential.sha256, potential.exact
        self.calls = 0

    def check(self, crystal: Crystal) -> None:
        """See that the potential knows all elements."""
        self.potential.check(crystal)

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress."""
        self.calls += 1
        return self.clock.time("relax: force calls", lambda: self.potential.evaluate(crystal))

    def force_constants(self, crystal: Crystal) -> TimedForceConstants:
        """Compute the second derivatives."""
        return TimedForceConstants(
            self.clock.time("hessian", lambda: self.potential.force_constants(crystal)), self.clock
        )


def timed_stages(clock: Clock) -> dict[str, Callable[..., Any]]:
    """Return timed stand-ins for the stages of `defectnet.simulate.rows`, by the name they have there."""

    def timed(name: str, stage: str) -> Callable[..., Any]:
        plain = getattr(rows, name)
        return lambda *args, **options: clock.time(stage, lambda: plain(*args, **options))

    stages = {"build": "build", "relax": "relax: rest", "modes": "eigenvalues", "projected_dos": "projected DOS"}
    return {name: timed(name, stage) for name, stage in stages.items()}


def measure(potential: Potential, hosts: list[Host], atoms: int, cells: int, seed: int) -> dict[str, Any]:
    """Simulate cells of one size, one per host; returns the mean seconds by stage over those that end in a row."""
    settings = SimulationSettings(seed=seed, smallest=round(0.9 * atoms), largest=round(1.1 * atoms))
    clock, sizes, calls, rejected, kept = Clock(), [], [], 0, 0.0
    stages = timed_stages(clock)
    plain = {name: getattr(rows, name) for name in stages}
    with tempfile.TemporaryDirectory() as folder:
        for host in hosts:
            if len(sizes) == cells:
                break
            try:
                relaxed = relax_host(potential, host, settings)
                simulation = HostSimulation(TimedPotential(potential, clock), host, relaxed, settings)
            except (RejectedCell, SimulationError):
                continue
            before = dict(clock.seconds)
            for name, stage in stages.items():
                setattr(rows, name, stage)
            start = time.perf_counter()
            try:
                row = simulation.row(0)
                clock.time("write", lambda row=row: write_shard(Path(folder) / "shard.parquet", row.samples, {}))
                sizes.append(row.samples[0].atoms)
                calls.append(simulation.potential.calls)
                kept += time.perf_counter() - start
            except RejectedCell:
                rejected += 1
                clock.seconds = before
            finally:
                for name, stage in plain.items():
                    setattr(rows, name, stage)
    if not sizes:
        raise SimulationError("no host ended in a row", fix="Give more hosts")
    mean = {stage: round(spent / len(sizes), 3) for stage, spent in clock.seconds.items()}
    total = kept / len(sizes)
    return {
        "atoms": float(np.mean(sizes)),
        "cells": len(sizes),
        "rejected": rejected,
        "force_calls": float(np.mean(calls)),
        "seconds": {**mean, "rest": round(total - sum(mean.values()), 3), "all": round(total, 3)},
        "spectra_per_hour_and_core": round(3600 / total),
        "core_hours_per_million": round(1e6 * total / 3600),
        "days_per_million_on_64_cores": round(1e6 * total / 3600 / 64 / 24, 1),
    }


def main() -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="nep89", help="path, or nep89")
    parser.add_argument("--hosts", default="data/hosts.json.xz", help="list of crystals")
    parser.add_argument("--cells", type=int, default=6, help="cells of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="atoms in a supercell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="JSON only; it is all there is anyway")
    options = parser.parse_args()
    torch.set_num_threads(1)
    potential = load_potential(options.potential, options.device)
    hosts = read_hosts(options.hosts)
    order = np.random.default_rng(options.seed).permutation(len(hosts))
    shuffled = [hosts[i] for i in order]
    sizes = {str(n): measure(potential, shuffled, n, options.cells, options.seed) for n in options.sizes}
    print(json.dumps({"potential": potential.name, "device": options.device, "threads": 1, "sizes": sizes}, indent=1))


if __name__ == "__main__":
    main()
