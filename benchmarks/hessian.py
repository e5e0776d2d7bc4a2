"""Seconds for the exact Hessian of a doped silicon cell, beside calorine through phonopy's finite displacements.

Usage: ``python benchmarks/hessian.py --atoms 512 --json [--potential PATH|nep89] [--threads 2]``, or with
``--growth 64,216,512`` a table of how relaxation, Hessian and eigenvalues grow with the number of atoms, or with
``--against nep89`` how much faster one potential is than another.

Both sides run in this one process on the same relaxed cell. Without symmetry, which a doped cell does not have,
phonopy needs 6 N displacements. A sample of them is timed and scaled; the answer says how many. Only the force calls
are counted for that side: making the displaced cells and putting the force constants together comes on top.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from defectnet.crystal.doping import DopantMix, build
from defectnet.crystal.hosts import host_from_atoms
from defectnet.errors import DefectNetError, SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import modes
from defectnet.potentials.potential import FastPotential, fetch_potential, load_nep
from defectnet.potentials.relax import relax
from defectnet.potentials.supercells import supercell_matrix

MIX = DopantMix(("Ge", "C", "B"), (0.5, 0.25, 0.25), 0.04, ("Si", "Si", "Si"))
LATTICE_ANGSTROM = 5.43


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def peak_memory_gb() -> float:
    """Return the largest resident size of this process so far, in GB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size * (1 if sys.platform == "darwin" else 1024) / 1e9


def doped_silicon(atoms: int, seed: int) -> Crystal:
    """Return a cubic cell with about `atoms` atoms, 4 % of them Ge, C and B, before relaxation."""
    host = host_from_atoms(bulk("Si", "diamond", a=LATTICE_ANGSTROM), "silicon")
    matrix = supercell_matrix(host.crystal.cell, len(host.crystal), atoms, (atoms, atoms))
    return build(host.crystal, MIX, np.random.default_rng(seed), matrix).crystal


def measure(potential: FastPotential, atoms: int, seed: int) -> tuple[dict[str, Any], Crystal, np.ndarray]:
    """Relax a cell, compute Hessian and modes; returns the seconds, the relaxed cell and the Hessian."""
    start = doped_silicon(atoms, seed)
    relaxed, relax_seconds = timed(lambda: relax(potential, start, cell="volume"))
    crystal = relaxed.crystal
    if not relaxed.converged or abs(crystal.volume / start.volume - 1.0) > 0.2:
        raise SimulationError(f"potential {potential.name} does not hold doped silicon", fix="Use another potential")
    hessian, hessian_seconds = timed(lambda: potential.force_constants(crystal).hessian())
    phonons, eigen_seconds = timed(lambda: modes(_Known(hessian), crystal, [np.zeros(3)]))
    numbers = {
        "atoms": len(crystal),
        "relax_seconds": relax_seconds,
        "relax_force_calls": relaxed.evaluations,
        "relax_converged": relaxed.converged,
        "hessian_seconds": hessian_seconds,
        "eigenvalue_seconds": eigen_seconds,
        "total_seconds": relax_seconds + hessian_seconds + eigen_seconds,
        "imaginary_fraction": phonons.imaginary_fraction,
        "peak_memory_gb": peak_memory_gb(),
    }
    return numbers, crystal, hessian.numpy()


class _Known:
    """A Hessian that is already computed, so that eigenvalues are timed alone."""

    def __init__(self, hessian: torch.Tensor) -> None:
        self._hessian = hessian

    def hessian(self) -> torch.Tensor:
        return self._hessian.clone()

    def at(self, q_points: np.ndarray) -> torch.Tensor:
        raise NotImplementedError("only Gamma is known")


def reference(path: str, crystal: Crystal, hessian: np.ndarray, sample: int, step: float) -> dict[str, Any]:
    """Time a sample of phonopy's displacements with CPUNEP, and compare the Hessian's columns that they give."""
    from calorine.calculators import CPUNEP
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(numbers=crystal.numbers, cell=crystal.cell, positions=crystal.positions)
    phonon = Phonopy(cell, supercell_matrix=np.eye(3), primitive_matrix=np.eye(3), is_symmetry=False, log_level=0)
    phonon.generate_displacements(distance=step, is_plusminus=True, is_diagonal=False)
    displacements = phonon.dataset["first_atoms"]
    count = len(displacements)
    if count != 6 * len(crystal):
        raise RuntimeError(f"phonopy wants {count} displacements of {len(crystal)} atoms")
    atoms = Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)
    atoms.calc = CPUNEP(path)
    atoms.get_forces()  # reading the potential is not counted
    seconds, errors = 0.0, []
    for first in np.linspace(0, count // 2 - 1, sample // 2).astype(int):
        plus, minus = displacements[2 * first], displacements[2 * first + 1]
        atom, shift = plus["number"], np.asarray(plus["displacement"])
        if minus["number"] != atom or not np.allclose(minus["displacement"], -shift):
            raise RuntimeError("phonopy's displacements do not come in pairs")
        forces = []
        for sign in (1.0, -1.0):
            positions = crystal.positions.copy()
            positions[atom] += sign * shift
            atoms.positions = positions
            found, spent = timed(atoms.get_forces)
            forces.append(found.ravel())
            seconds += spent
        length = np.linalg.norm(shift)
        column = hessian[:, 3 * atom : 3 * atom + 3] @ (shift / length)  # phonopy moves atoms along the cell vectors
        errors.append(np.abs(column - (forces[1] - forces[0]) / (2.0 * length)).max())
    done = 2 * len(errors)
    return {
        "calorine_seconds": seconds * count / done,
        "calorine_scaled": True,
        "displacements": count,
        "displacements_timed": done,
        "step_angstrom": step,
        "columns_compared": len(errors),
        "largest_difference_ev_per_square_angstrom": float(max(errors)),
        "largest_element_ev_per_square_angstrom": float(np.abs(hessian).max()),
    }


def compare(potential: FastPotential, path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides on one cell. A load average above the threads used says that the machine was busy."""
    numbers, crystal, hessian = measure(potential, options.atoms, options.seed)
    numbers |= reference(path, crystal, hessian, options.sample, options.step)
    numbers["ratio"] = numbers["calorine_seconds"] / numbers["hessian_seconds"]
    machine = {"threads": options.threads, "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    return {"potential": potential.name, **machine, **numbers}


def against(first: FastPotential, second: FastPotential, atoms: int, seed: int, rounds: int = 5) -> dict[str, Any]:
    """Time energy, forces and Hessian of two potentials by turns on one cell, as it was substituted."""
    crystal = doped_silicon(atoms, seed)
    seconds: dict[str, list[float]] = {first.name: [], second.name: []}
    for turn in range(rounds + 1):
        for potential in (first, second):
            _, spent = timed(lambda p=potential: (p.evaluate(crystal), p.force_constants(crystal).hessian()))
            if turn:  # the first call of many a function is slow
                seconds[potential.name].append(spent)
    ratio = float(np.median([b / a for a, b in zip(*seconds.values(), strict=True)]))
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    machine = {"threads": torch.get_num_threads(), "cores": os.cpu_count(), "load_average": os.getloadavg()[0]}
    return {"atoms": len(crystal), **machine, "seconds": medians, "speed_ratio": ratio}


def report(numbers: dict[str, Any]) -> str:
    """Say the comparison in words."""
    return (
        f"{numbers['atoms']} atoms, {numbers['threads']} threads, potential {numbers['potential']}\n"
        f"relaxation   {numbers['relax_seconds']:9.2f} s  ({numbers['relax_force_calls']} force calls)\n"
        f"Hessian      {numbers['hessian_seconds']:9.2f} s\n"
        f"eigenvalues  {numbers['eigenvalue_seconds']:9.2f} s\n"
        f"memory       {numbers['peak_memory_gb']:9.2f} GB\n"
        f"calorine     {numbers['calorine_seconds']:9.1f} s  through phonopy, scaled from "
        f"{numbers['displacements_timed']} of {numbers['displacements']} displacements\n"
        f"ratio        {numbers['ratio']:9.1f}\n"
        f"difference   {numbers['largest_difference_ev_per_square_angstrom']:9.1e} eV/angstrom^2 at most, "
        f"in {numbers['columns_compared']} columns"
    )


def growth(potential: FastPotential, sizes: list[int], seed: int) -> list[dict[str, Any]]:
    """Measure our side for several numbers of atoms."""
    return [measure(potential, size, seed)[0] for size in sorted(sizes)]


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows of `growth`."""
    columns = ("atoms", "relax_seconds", "relax_force_calls", "hessian_seconds", "eigenvalue_seconds", "total_seconds")
    lines = ["  atoms   relax s   force calls   Hessian s   eigenvalues s   total s"]
    for row in rows:
        values = [row[name] for name in columns]
        lines.append("{:7d} {:9.2f} {:13d} {:11.2f} {:15.2f} {:9.2f}".format(*values))
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--atoms", type=int, default=512)
    parser.add_argument("--potential", default="nep89", help="path of a NEP file, or a name; nep89 is fetched once")
    parser.add_argument("--threads", type=int, default=2, help="of torch; CPUNEP has one thread")
    parser.add_argument("--sample", type=int, default=60, help="displacements that are timed, of 6 N")
    parser.add_argument(
        "--step", type=float, default=2e-5, help="displacement in angstrom; the time does not depend on it"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--growth", metavar="N,N,...", help="numbers of atoms for a table of our side alone")
    parser.add_argument("--against", help="another NEP: only the ratio of their speeds, JSON; 2 is twice as fast as it")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        potential = load_nep(options.potential)
        if options.against:
            print(json.dumps(against(potential, load_nep(options.against), options.atoms, options.seed), indent=2))
            return
        path = str(fetch_potential("nep89")) if options.potential == "nep89" else options.potential
        measure(potential, 64, options.seed)  # the first call of many a function is slow
        if options.growth:
            rows = growth(potential, [int(size) for size in options.growth.split(",")], options.seed)
            print(json.dumps(rows, indent=2) if options.json else table(rows))
        else:
            numbers = compare(potential, path, options)
            print(json.dumps(numbers, indent=2) if options.json else report(numbers))
    except DefectNetError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
