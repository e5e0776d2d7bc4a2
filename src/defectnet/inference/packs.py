"""The host pack that a question needs: a bundled one that fits, or one that is computed now and kept."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from defectnet.crystal.compositions import CLEARLY
from defectnet.crystal.hosts import Host
from defectnet.crystal.make import MakeSettings, Progress, choose_dopants, make_packs, structure_sha256
from defectnet.crystal.pack import HostPack
from defectnet.crystal.plausible import guess_charges, likeness_on_site
from defectnet.crystal.structures import read_structure, spacegroup
from defectnet.data.packs import PackFile, find_packs
from defectnet.elements import SYMBOLS, parse_formula
from defectnet.errors import SimulationError
from defectnet.inference.known_crystal import known_dopants

VOLUMES: Final = (0.93, 1.15)
"""Smallest and largest volume per atom of a pack over that of a structure of the same crystal: potentials like ours
make volumes too large by some hundredths, in layered crystals more; heat makes the measured one larger by few."""

STARTS: Final = 1
"""Rattled starts of a substitution that is computed because somebody waits for it."""


def cache_folder() -> Path:
    """Return where packs that were computed for a question are kept: DEFECTNET_CACHE, or the user's cache folder."""
    root = os.environ.get("DEFECTNET_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "defectnet" / "hosts"


def check_fits(pack: HostPack, host: Host) -> None:
    """See that a pack is of this crystal: formula, space group and volume per atom.

    Raises:
        SimulationError: It is of another one; what differs is named.
    """
    ours, theirs = pack.host.primitive, host.crystal
    name = f"the pack of {pack.host.id}"
    fix = "Name another pack, or leave it out: one is made for the structure"
    if parse_formula(pack.host.formula) != parse_formula(host.formula):
        raise SimulationError(f"{name} is of {pack.host.formula}, the structure is {host.formula}", fix=fix)
    groups = spacegroup(ours), spacegroup(theirs)
    if groups[0] != groups[1] or sorted(ours.numbers) != sorted(theirs.numbers):
        raise SimulationError(
            f"{name} has another structure",
            why=f"space group {groups[0]} and {len(ours)} atoms in the primitive cell, the structure given {groups[1]} "
            f"and {len(theirs)}",
            fix=fix,
        )
    if not VOLUMES[0] < ours.volume / theirs.volume < VOLUMES[1]:
        raise SimulationError(
            f"{name} has a volume per atom of {ours.volume / len(ours):.2f} cubic angstrom",
            why=f"the structure given {theirs.volume / len(theirs):.2f}: beyond what potentials and heat change",
            fix="Check the lattice constants of the structure, and their unit",
        )


def find_pack_for(
    structure: Any,
    candidates: Sequence[str] | None,
    *,
    potential: str = "nequix",
    minutes: float | None = None,
    workers: int = 1,
    report: Callable[[Progress], None] = lambda _: None,
) -> tuple[HostPack, tuple[str, ...]]:
    """Return a pack of a structure with the candidates, and remarks on where it comes from.

    A bundled pack is taken if it fits and holds them all. Otherwise substitutions are computed, and kept in
    `cache_folder` for the next question.

    Args:
        structure: As for `read_structure`.
        candidates: Such as ``Al`` or ``Al@Ga``; None for a bundled pack's own, or the plausible ones.
        potential: Bundled name, or a path.
        minutes: When to stop computing; what is not done by then is left out, and said.
        workers: Processes.
        report: Called after each substitution.

    Raises:
        SimulationError: The structure or a candidate cannot be used; the host is unstable; or no substitution was done.
    """
    if minutes is not None and not 0.0 <= minutes < np.inf:
        raise SimulationError(f"minutes is {minutes:g}", fix="Give a number from 0")
    host = read_structure(structure)
    pairs = choose_dopants(host, ["plausible"] if candidates is None else list(candidates))
    if candidates is not None:
        pairs = _plausible_sites(host, pairs, candidates)
    for file in bundled_packs_of(host.formula):
        if file.potential != potential:
            continue
        pack = HostPack.load(file.folder)
        with suppress(SimulationError):
            check_fits(pack, host)
            known_dopants(pack, candidates)
            return pack, (f"bundled pack {file.folder.name}, computed with {potential}",)
    return _computed(host, pairs, potential, minutes, workers, report)


def bundled_packs_of(formula: str) -> list[PackFile]:
    """Return the bundled packs of a formula, not loaded: that takes longer."""
    return [file for file in find_packs("bundled") if parse_formula(file.formula) == parse_formula(formula)]


def in_time(pack: HostPack, candidates: Sequence[str] | None, minutes: float) -> Sequence[str] | None:
    """Return those of the candidates that were computed before time was up.

    Raises:
        SimulationError: None was.
    """
    if candidates is None:
        return None

    def held(name: str) -> bool:
        with suppress(SimulationError):
            return bool(known_dopants(pack, [name]))
        return False

    found = [name for name in candidates if held(name)]
    if candidates and not found:
        why = next((f"{f.dopant}: {f.reason}" for f in pack.failures), "")
        raise SimulationError(
            f"{minutes:g} minutes were not enough for any of {', '.join(candidates)}",
            why=why,
            fix="Give more --minutes",
        )
    return found


def _plausible_sites(host: Host, pairs: Sequence[tuple[str, str]], candidates: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs without those sites of a dopant that are clearly less plausible, where no site was named."""
    symbols = [SYMBOLS[int(z)] for z in host.crystal.numbers]
    charges = guess_charges(Counter(symbols))
    likeness = {(x, z): likeness_on_site(x, z, charges) for x, z in pairs}
    best = {x: max(value for (y, _), value in likeness.items() if y == x) for x, _ in pairs}
    return [(x, z) for x, z in pairs if f"{x}@{z}" in candidates or likeness[x, z] * CLEARLY > best[x]]


class _TimeIsUpError(Exception):
    """Ends the making of a pack."""


def _computed(
    host: Host,
    pairs: Sequence[tuple[str, str]],
    potential: str,
    minutes: float | None,
    workers: int,
    report: Callable[[Progress], None],
) -> tuple[HostPack, tuple[str, ...]]:
    host = replace(host, id=host.formula)  # what its file is called tells no crystals apart
    folder = cache_folder() / f"{host.formula}-{structure_sha256(host)[:12]}-{Path(potential).name}"
    end = np.inf if minutes is None else time.monotonic() + 60.0 * minutes
    done: list[str] = []

    def watch(progress: Progress) -> None:
        done.append(progress.last)
        report(progress)
        if time.monotonic() > end:
            raise _TimeIsUpError

    settings = MakeSettings(potential=potential, starts=STARTS)
    left: list[str] = []
    try:
        failed = make_packs([(host, pairs, folder)], settings, workers=workers, report=watch)
    except _TimeIsUpError:
        # What is finished is kept beside the pack; asked for alone, it is put together.
        finished = [pair for pair in pairs if f"{pair[0]}@{pair[1]}" in done]
        left = [f"{x}@{z}" for x, z in pairs if (x, z) not in finished]
        failed = make_packs([(host, finished, folder)], settings)
    if failed:
        raise SimulationError(next(iter(failed.values())), fix="Give another structure or --potential")
    pack = HostPack.load(folder)
    remarks = [f"computed for this question with {potential}, kept in {folder}"]
    if left:
        remarks.append(f"after {minutes:g} minutes these were left out: {', '.join(left)}")
    return pack, tuple(remarks)
