"""What a user wants to have made: crystals from a file, a folder or a list, with the dopants named for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ase import Atoms

from defectnet.crystal.host import SYMMETRY
from defectnet.crystal.hosts import Host, json_list, read_hosts
from defectnet.crystal.make import choose_dopants
from defectnet.crystal.structures import read_structure
from defectnet.elements import SYMBOLS
from defectnet.errors import SimulationError
from defectnet.potentials.symmetry import find_operations

LISTED: Final = "listed"
"""Stands for the dopants that each entry of a JSON list has of its own."""


@dataclass(frozen=True)
class Request:
    """A pack to be made.

    Attributes:
        host: Its crystal, reduced to the standardised primitive cell.
        pairs: Each dopant and the element that it replaces.
        substitutions: Their number: each inequivalent site counts.
    """

    host: Host
    pairs: tuple[tuple[str, str], ...]
    substitutions: int


def read_requests(source: str | Path, dopants: Sequence[str]) -> list[Request]:
    """Read crystals and choose their dopants.

    Args:
        source: A structure file, a folder of them, or a JSON list as `read_hosts` takes it.
        dopants: As for `choose_dopants`; or ``listed``: those of the entries of the list.

    Raises:
        SimulationError: A crystal or a dopant cannot be used.
    """
    source = Path(source)
    hosts, listed = _crystals(source)
    out = []
    for host in hosts:
        wanted = [name for text in dopants for name in ([text] if text != LISTED else _listed(host, listed, source))]
        pairs = tuple(choose_dopants(host, wanted))
        out.append(Request(host, pairs, _count(host, pairs)))
    return out


def _crystals(source: Path) -> tuple[list[Host], dict[str, list[str]]]:
    """Return the crystals, and the dopants that entries of a list name, by id."""
    entries = json_list(source) if source.is_file() else None
    if entries is not None:
        hosts = [_reduced(host) for host in read_hosts(source)]
        return hosts, {str(one["id"]): _names(one["dopants"], one, source) for one in entries if "dopants" in one}
    if not source.is_dir():
        return [read_structure(source)], {}
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise SimulationError(f"structure {source} holds no files", fix="Give a folder of structure files")
    hosts = [read_structure(path) for path in files]
    for name, count in Counter(host.id for host in hosts).items():
        if count > 1:
            raise SimulationError(f"structure {source} has {count} files called {name}", fix="Rename all but one")
    return hosts, {}


def _reduced(host: Host) -> Host:
    crystal = host.crystal
    atoms = Atoms(crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True)
    try:
        return replace(read_structure(atoms), id=host.id)
    except SimulationError as error:
        raise SimulationError(f"{host.id}: {error.what}", why=error.why, fix=error.fix) from error


def _names(found: object, entry: dict[str, object], source: Path) -> list[str]:
    if not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
        raise SimulationError(f"{source}: dopants of {entry['id']} are no list of texts", fix='Write ["Al@Ga", "In"]')
    return found


def _listed(host: Host, listed: dict[str, list[str]], source: Path) -> list[str]:
    if not listed.get(host.id):
        raise SimulationError(
            f"{source} lists no dopants for {host.id}", fix="Give each entry of the JSON list a list `dopants`"
        )
    return listed[host.id]


def _count(host: Host, pairs: Sequence[tuple[str, str]]) -> int:
    orbits = find_operations(host.crystal, SYMMETRY).orbits()
    sites = Counter(SYMBOLS[int(host.crystal.numbers[site])] for site in set(orbits.tolist()))
    return sum(sites[replaced] for _, replaced in pairs)
