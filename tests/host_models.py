"""Hosts and substitutions with the bundled fast potential, each computed once a session however many tests ask."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk

from defectnet.crystal.host import HostModel, make_host
from defectnet.crystal.hosts import Host, host_from_atoms
from defectnet.crystal.substitution import KEEP, Substitution, substitute
from defectnet.elements import INDEX, NUMBERS
from defectnet.potentials.potential import Potential, load_potential

ZOO = Path(__file__).resolve().parents[1] / "data" / "zoo.json"


@cache
def nep() -> Potential:
    return load_potential("defectnet-nep")


@cache
def zoo_atoms(name: str) -> Atoms:
    """A crystal of the zoo by its id."""
    (found,) = (entry for entry in json.loads(ZOO.read_text(encoding="utf-8")) if entry["id"] == name)
    return Atoms(found["species"], scaled_positions=found["frac"], cell=found["cell"], pbc=True)


@cache
def host_of(name: str) -> Host:
    """A crystal of the zoo, or GaAs or MgO in the primitive cell."""
    if name == "GaAs":
        return host_from_atoms(bulk("GaAs", "zincblende", a=5.65), "GaAs")
    if name == "MgO":
        return host_from_atoms(bulk("MgO", "rocksalt", a=4.21), "MgO")
    return host_from_atoms(zoo_atoms(name), name)


@cache
def model(name: str, atoms: int = 16) -> HostModel:
    return make_host(nep(), host_of(name), atoms=atoms, tolerance=1e-4)


@cache
def single(
    name: str, dopant: str, replaced: str, atoms: int = 16, keep: float = KEEP, step: float = 0.0
) -> Substitution:
    """A substitution on the first site of an element."""
    host = model(name, atoms)
    return substitute(nep(), host, site_of(host, replaced), dopant, keep=keep, volume_step=step, tolerance=1e-4)


def site_of(host: HostModel, symbol: str) -> int:
    """The first inequivalent site of an element."""
    return next(int(s) for s in host.sites if host.primitive.numbers[s] == number(symbol))


def number(symbol: str) -> int:
    return int(NUMBERS[INDEX[symbol]])


def crystal_of(atoms: Atoms):
    return host_from_atoms(atoms, "host").crystal


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def dense(placed) -> np.ndarray:
    """Return the (m, m, 3, 3) change of a placed substitution, of which only blocks that are not zero are kept."""
    out = np.zeros((len(placed.basis), len(placed.basis), 3, 3))
    np.add.at(out, (placed.first, placed.second), placed.change)
    return out
