"""Close-packed crystals that the Morse potential of `make_potential` holds together, and lists of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from defectnet.crystal.hosts import Host, host_from_atoms

PAIRS = ["AlCu", "NiAl", "MgZn", "TiAl", "AgAu", "PdCu", "FePt", "GaAs", "SiGe", "NaK", "CaSr", "ZrNb"]
PAIRS += ["InSb", "CdTe", "LiMg", "ScY", "VCr", "MnCo", "MoW", "RuRh", "HfTa", "BC", "ZnSe", "SnPb"]


def layered(name: str) -> Atoms:
    """Hexagonal close packing with the two elements of `name` in alternating layers, two atoms a cell."""
    frac = [[0.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.5]]
    return Atoms(name, scaled_positions=frac, cell=[2.62, 2.62, 4.42, 90, 90, 120], pbc=True)


def cubic(first: str, second: str) -> Atoms:
    """The ordered alloy A B3 on face-centred cubic sites, four atoms a cell."""
    frac = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    return Atoms([first, second, second, second], scaled_positions=frac, cell=[3.67] * 3, pbc=True)


def host(atoms: Atoms, name: str = "host") -> Host:
    return host_from_atoms(atoms, name)


def entry(atoms: Atoms, name: str) -> dict[str, Any]:
    """One entry of the project's JSON list."""
    cell, frac = atoms.cell.cellpar().tolist(), np.round(atoms.get_scaled_positions(), 10).tolist()
    return {"id": name, "cell": cell, "species": atoms.get_chemical_symbols(), "frac": frac}


def write_hosts(path: Path, count: int) -> Path:
    """Write a JSON list of the first `count` layered crystals."""
    entries = [entry(layered(name), f"layered-{name}") for name in PAIRS[:count]]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path
