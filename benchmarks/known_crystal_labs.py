"""Concentrations in the virtual labs from one relaxed substitution per dopant, and no standards.

    python benchmarks/known_crystal_labs.py --potential nequix --json          # SiGe and MgB2 with Al, some minutes
    python benchmarks/known_crystal_labs.py --potential defectnet-nep --json

The labs (`virtual_lab/`) are full simulations by the teacher in cells of 36 atoms. Here a host pack is made of the
pristine crystal; its mean spectrum is a cubic in the concentration, fitted to random cells; least squares gives the
concentration of each sample, from the DOS broadened to `--resolution` of the band edge. The pack knows nothing of the
lab's cells: that they are small is part of the error.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from defectnet.config import STORAGE_GRID
from defectnet.crystal.host import make_host
from defectnet.crystal.hosts import read_hosts
from defectnet.crystal.make import DISPLACED_ATOMS, EXACT_ATOMS, FASTER
from defectnet.crystal.substitution import substitute
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.data.shards import read_shard, shard_files
from defectnet.measure.broadening import broaden
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, band_edge, projected_dos, q_mesh
from defectnet.potentials.potential import load_potential
from defectnet.potentials.supercells import supercell_matrix

ROOT = Path(__file__).parents[1]
FloatArray = NDArray[np.float64]

LABS = {"SiGe": ("Si-diamond", "Ge"), "MgB2-Al": ("MgB2", "Al")}
HIGHEST = 0.3
CELLS = 100


def blurred(dos: FloatArray, resolution: float) -> FloatArray:
    """Broaden a DOS on the storage grid to a FWHM in band edges."""
    one = np.ones(1)
    return broaden(dos[None, None].astype(np.float32), one, resolution * one, one)[0, 0].astype(np.float64)


def study(lab: str, potential_name: str, atoms: int, resolution: float) -> dict[str, Any]:
    """Return the errors of one lab."""
    host_id, dopant = LABS[lab]
    potential = load_potential(potential_name)
    faster = None if potential.exact else load_potential(FASTER)
    host = {h.id: h for h in read_hosts(ROOT / "data" / "zoo.json")}[host_id]
    most = atoms or (EXACT_ATOMS if potential.exact else DISPLACED_ATOMS)
    model = make_host(potential, host, atoms=most, preconditioner=faster)
    single = substitute(potential, model, 0, dopant, preconditioner=faster)
    n = len(model.primitive)
    matrix = supercell_matrix(model.primitive.cell, n, 100, (80, 130))
    cell = Superposition(model, {(dopant, 0): single}, matrix, q_mesh(n * round(abs(np.linalg.det(matrix)))))
    pristine = cell.host_modes()
    edge = band_edge(pristine)

    def total(found: Modes, numbers: NDArray[np.int64]) -> FloatArray:
        crystal = Crystal(numbers, cell.cell.crystal.cell, cell.cell.crystal.positions)
        return blurred(projected_dos(found, crystal, edge, STORAGE_GRID)[0].sum(0), resolution)

    orbits = model.operations.orbits()[cell.cell.basis]
    sites = np.flatnonzero(orbits == 0)
    rng = np.random.default_rng(0)
    host_dos = total(pristine, cell.cell.crystal.numbers)
    concentrations, changes, unstable = [], [], 0
    for _ in range(CELLS):
        count = int(rng.integers(0, int(HIGHEST * len(cell.cell))))
        chosen = rng.choice(sites, min(count, len(sites)), replace=False)
        occupation = Occupation(tuple(int(s) for s in chosen), (dopant,) * len(chosen))
        found = cell.modes(occupation)
        unstable += found.imaginary_fraction > 0.005
        concentrations.append(len(chosen) / len(cell.cell))
        changes.append(total(found, cell.numbers(occupation)) - host_dos)
    powers = np.arange(1, 4)
    coefficients = np.linalg.lstsq(np.array(concentrations)[:, None] ** powers, np.array(changes), rcond=None)[0]
    truth, answers = [], []
    for path in shard_files(ROOT / "benchmarks" / "virtual_lab" / lab):
        for row in read_shard(path):
            seen = blurred(row.doped_dos.sum(0).astype(float) - row.host_dos.sum(0).astype(float), resolution)
            fits = [
                least_squares(lambda c, seen=seen: (c**powers) @ coefficients - seen, start, bounds=(0.0, 0.5))
                for start in (0.02, 0.1)
            ]
            truth.append(dict(zip(row.dopants, row.dopant_counts, strict=True)).get(dopant, 0) / row.atoms)
            answers.append(float(min(fits, key=lambda fit: fit.cost).x[0]))
    error = np.array(answers) - np.array(truth)
    spread = ((np.array(truth) - np.mean(truth)) ** 2).sum()
    return {
        "samples": len(truth),
        "supercell_atoms": len(model.cell),
        "mae_at_percent": round(100 * float(np.abs(error).mean()), 3),
        "bias_at_percent": round(100 * float(error.mean()), 3),
        "answering_zero_at_percent": round(100 * float(np.mean(truth)), 3),
        "r2": round(1.0 - float((error**2).sum() / spread), 4),
        "unstable_cells": int(unstable),
    }


def main() -> None:
    """Run the labs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="nequix")
    parser.add_argument("--labs", nargs="+", default=list(LABS), choices=list(LABS))
    parser.add_argument("--atoms", type=int, default=0, help="most atoms of the pack's supercell")
    parser.add_argument("--resolution", type=float, default=0.12, help="FWHM over the band edge")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    result: dict[str, Any] = {"potential": chosen.potential, "resolution": chosen.resolution}
    for lab in chosen.labs:
        result[lab] = study(lab, chosen.potential, chosen.atoms, chosen.resolution)
        if not chosen.json:
            print(lab, result[lab], flush=True)
        else:
            print(lab, file=sys.stderr, flush=True)
    if chosen.json:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
