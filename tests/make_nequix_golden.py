"""Write `data/nequix-golden.json`: what the package nequix itself computes for two rattled cells.

    python tests/make_nequix_golden.py nequix-oam-1-pft.nqx

Needs the package, see docs/potentials.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.build import bulk

GOLDEN = Path(__file__).parent / "data" / "nequix-golden.json"


def cells() -> dict[str, Atoms]:
    """Gallium arsenide with an aluminium atom, and hexagonal magnesium diboride, doubled."""
    gallium = bulk("GaAs", "zincblende", a=5.75, cubic=True)
    gallium.numbers[0] = 13
    cell = [3.08, 3.08, 3.52, 90, 90, 120]
    diboride = Atoms(
        "MgB2", scaled_positions=[[0, 0, 0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]], cell=cell, pbc=True
    )
    found = {"GaAs:Al": gallium, "MgB2": diboride * (2, 1, 1)}
    for seed, atoms in enumerate(found.values()):
        atoms.rattle(0.05, seed=seed)
    return found


def answers(weights: str) -> dict[str, dict[str, Any]]:
    """Return arrays, energies (eV), forces (eV/angstrom) and stresses (eV/angstrom^3) of the cells, as lists."""
    from nequix.calculator import NequixCalculator

    calculator = NequixCalculator(model_path=weights, backend="jax", use_kernel=False)
    out = {}
    for name, atoms in cells().items():
        atoms.calc = calculator
        out[name] = {
            "numbers": atoms.numbers.tolist(),
            "cell": atoms.cell.array.tolist(),
            "positions": atoms.positions.tolist(),
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces().astype(float).tolist(),
            "stress": atoms.get_stress(voigt=False).astype(float).tolist(),
        }
    return out


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(answers(sys.argv[1]), indent=1) + "\n", encoding="utf-8")
