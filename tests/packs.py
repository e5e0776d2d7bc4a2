"""Host packs, each made or read once in a session; small ones are made with the bundled `defectnet-nep`."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from ase.build import bulk

from defectnet.crystal.make import MakeSettings, choose_dopants, make_packs
from defectnet.crystal.pack import HostPack
from defectnet.crystal.responses import HostResponses
from defectnet.crystal.structures import read_structure
from defectnet.inference.responses import compute_responses


@cache
def bundled(name: str) -> HostPack:
    """Return a bundled pack; reading one takes a second."""
    return HostPack.load(name)


@cache
def gallium_arsenide() -> HostPack:
    """Return GaAs in 16 atoms, with aluminium on both sites and phosphorus on arsenic."""
    host = read_structure(bulk("GaAs", "zincblende", a=5.65))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "GaAs"
        settings = MakeSettings(potential="defectnet-nep", atoms=16, starts=1)
        assert make_packs([(host, choose_dopants(host, ["Al", "P@As"]), folder)], settings) == {}
        return HostPack.load(folder)


@cache
def gallium_arsenide_responses() -> HostResponses:
    """Return what that pack says of each of its dopants."""
    return compute_responses(gallium_arsenide())
