"""Making host packs: a host first, then its substitutions, each kept as soon as it is done."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from defectnet.config import Bounded, bounded
from defectnet.crystal.host import make_host
from defectnet.crystal.hosts import Host
from defectnet.crystal.pack import FailedSubstitution, HostPack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.substitution import KEEP, RADIUS, substitute
from defectnet.elements import INDEX, SYMBOLS, VOCABULARY, element_index
from defectnet.errors import SimulationError
from defectnet.files import locked, replacing
from defectnet.potentials.folder import CONFIG
from defectnet.potentials.potential import Potential, load_potential
from defectnet.processes import forking

EXACT_ATOMS, DISPLACED_ATOMS = 130, 100
"""Most atoms of a supercell, where the potential has exact force constants, and where atoms are displaced."""

TOGETHER = 256
"""Packs that are in work at a time: each is locked, which takes an open file."""

PLAUSIBLE = 12
"""Number of dopants that ``plausible`` stands for."""

FASTER = "defectnet-nep"
"""Bundled potential that preconditions the relaxation with one that has no exact force constants."""

Item = tuple[str, int]
"""A dopant and the site that it replaces, one of the inequivalent atoms of the primitive cell."""


@dataclass(frozen=True)
class MakeSettings(Bounded, error=SimulationError):
    """How packs are made.

    Attributes:
        potential: Name or path.
        atoms: Most atoms of the supercell; 0 for what suits the potential.
        starts: Rattled starts of a substitution that may leave its site.
        radius, keep: See `substitute`.
        volume_step: See `substitute`.
        device: Where it is computed.
    """

    potential: str = "nequix"
    atoms: int = bounded(0, 0, 1000)
    starts: int = bounded(2, 0, 100)
    radius: float = bounded(RADIUS, 1.0, 100.0)
    keep: float = bounded(KEEP, 0.0, 1.0)
    volume_step: float = bounded(0.03, 0.0, 0.2)
    device: str = "cpu"


@dataclass(frozen=True)
class Progress:
    """What has been done of a pack: substitutions or failures, of how many."""

    host: str
    done: int
    total: int
    last: str


def choose_dopants(host: Host, wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Return (dopant, replaced element) from what a user names.

    Args:
        host: The crystal.
        wanted: ``Al@Ga``; ``Al`` for every element of the host; ``all``: every element of the vocabulary everywhere;
            ``plausible``: the `PLAUSIBLE` likeliest.

    Raises:
        SimulationError: A name is no element of the vocabulary, or is in the host already; or the site is not.
    """
    symbols = _symbols(host)
    if isinstance(wanted, str) or not all(isinstance(text, str) for text in wanted):
        raise SimulationError(f"dopants are {wanted!r}", fix="Give a list of names, such as ['Al@Ga', 'In']")
    out: list[tuple[str, str]] = []
    for text in wanted:
        if text == "plausible":
            names = list(plausible_dopants(host.crystal, PLAUSIBLE))
        elif text == "all":
            names = [symbol for symbol in VOCABULARY if symbol not in symbols]
        else:
            names = [text]
        for name in names:
            dopant, at, site = (part.strip() for part in name.partition("@"))
            if at and site not in symbols:
                raise SimulationError(
                    f"dopant {name!r}: {site or 'nothing'} is not in {host.formula}",
                    fix=f"Sites are {', '.join(symbols)}",
                )
            element_index(dopant, field="dopants")
            if dopant in symbols:
                raise SimulationError(f"dopant {name!r} is in {host.formula} already", fix="Name another element")
            out += [(dopant, symbol) for symbol in ([site] if at else symbols)]
    if not out:
        raise SimulationError("no dopants are named", fix="Name some, such as Al@Ga, or `plausible`, or `all`")
    return list(dict.fromkeys(out))


def _symbols(host: Host) -> list[str]:
    return sorted({SYMBOLS[int(z)] for z in host.crystal.numbers}, key=INDEX.__getitem__)


def make_packs(
    jobs: Sequence[tuple[Host, Sequence[tuple[str, str]], Path]],
    settings: MakeSettings,
    *,
    workers: int = 1,
    report: Callable[[Progress], None] = lambda _: None,
) -> dict[str, str]:
    """Make packs; those that are there are gone on with, finished substitutions are kept.

    Args:
        jobs: For each pack the host, (dopant, replaced element) pairs, and the folder.
        settings: How.
        workers: Processes.
        report: Called after each substitution.

    Returns:
        Id -> reason of hosts that could not be made.

    Raises:
        SimulationError: A folder holds something else, or a pack of another host, potential or settings.
        ConfigError: Another process is at work on one.
    """
    if type(workers) is not int or workers < 1:
        raise SimulationError(f"workers is {workers!r}", fix="Use a whole number, 1 or more")
    builds = [_Build(host, tuple(pairs), Path(folder).resolve(), settings) for host, pairs, folder in jobs]
    folders = [build.folder for build in builds]
    for folder in folders:
        if folders.count(folder) > 1:
            raise SimulationError(f"{folder} is named for two packs", fix="Give each its own folder")
    for build in builds:
        with locked(build.folder, "making the pack"):
            build.check()
    failed: dict[str, str] = {}
    for first in range(0, len(builds), TOGETHER):
        with ExitStack() as locks:
            some = builds[first : first + TOGETHER]
            for build in some:
                locks.enter_context(locked(build.folder, "making the pack"))
            failed |= _make(some, workers, report)
    return failed


def _make(builds: Sequence[_Build], workers: int, report: Callable[[Progress], None]) -> dict[str, str]:
    """Make packs that nobody else is at work on."""
    failed: dict[str, str] = {}
    if workers == 1:
        for build in builds:
            try:
                for _ in build.run(report):
                    pass
            except SimulationError as error:
                failed[build.host.id] = str(error)
        return failed
    with ProcessPoolExecutor(workers, mp_context=forking(__name__), initializer=_one_thread) as pool:
        waiting: dict[Future[object], tuple[_Build, Item | None]] = {
            pool.submit(build.make_host): (build, None) for build in builds
        }
        left = {build.folder: 0 for build in builds}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                build, item = waiting.pop(future)
                try:
                    future.result()
                except SimulationError as error:
                    failed[build.host.id] = str(error)
                    continue
                if item is None:
                    items = build.missing()
                    left[build.folder] = len(items)
                    for more in items:
                        waiting[pool.submit(build.make, more)] = (build, more)
                else:
                    left[build.folder] -= 1
                    report(build.progress(item))
                if left[build.folder] == 0:
                    build.finish()
    return failed


def _one_thread() -> None:
    torch.set_num_threads(1)


@lru_cache(maxsize=2)
def _potentials(name: str, device: str) -> tuple[Potential, Potential | None]:
    potential = load_potential(name, device)
    return potential, None if potential.exact else load_potential(FASTER)


@lru_cache(maxsize=2)
def _loaded(folder: Path, written: int) -> HostPack:
    """Load a pack once, as long as it is not written anew."""
    del written
    return HostPack.load(folder)


@dataclass(frozen=True)
class _Build:
    """One pack in the making: parts in a folder beside it, until all are there."""

    host: Host
    pairs: tuple[tuple[str, str], ...]
    folder: Path
    settings: MakeSettings

    @property
    def parts(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.parts")

    def check(self) -> None:
        """See that what is there belongs to this pack."""
        wanted = self.made_with()
        if self.folder.exists() and not self.folder.is_dir():
            raise SimulationError(f"{self.folder} is a file", fix="Give a new folder")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.exists() and any(self.folder.iterdir()):
            pack = HostPack.load(self.folder)
            if (pack.host.id, pack.host.potential_sha256) != (self.host.id, wanted["potential_sha256"]):
                raise SimulationError(
                    f"{self.folder} is the pack of {pack.host.id} with {pack.host.potential}", fix="Give a new folder"
                )
            if pack.made_with:
                self._compare(pack.made_with, wanted, self.folder)
        path = self.parts / "settings.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, RecursionError, OSError) as error:
                raise SimulationError(
                    f"{path} is not valid JSON", why=str(error)[:120], fix=f"Remove {self.parts}"
                ) from error
            self._compare(found, wanted, self.parts)
        else:
            self.parts.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(wanted), encoding="utf-8")

    def made_with(self) -> dict[str, Any]:
        """Return what a pack depends on beside its dopants; paths and devices are no part of it."""
        potential, _ = _potentials(self.settings.potential, self.settings.device)
        settings = asdict(self.settings)
        del settings["potential"], settings["device"]
        return {
            "structure_sha256": structure_sha256(self.host),
            "potential_sha256": potential.sha256,
            **settings,
        }

    @staticmethod
    def _compare(found: Any, wanted: dict[str, Any], where: Path) -> None:
        """See that what is there was made with the same settings."""
        found = found if isinstance(found, dict) else {}
        other = [name for name in wanted if found.get(name) != wanted[name]]
        if other:
            raise SimulationError(
                f"{where} was made with another {other[0]}",
                why=f"{found.get(other[0])} there, {wanted[other[0]]} here",
                fix="Use the same arguments as before, or another --out",
            )

    def run(self, report: Callable[[Progress], None]) -> Iterator[None]:
        """Make everything in this process."""
        self.make_host()
        for item in self.missing():
            self.make(item)
            report(self.progress(item))
            yield
        self.finish()

    def make_host(self) -> None:
        """Compute the host, unless it is there."""
        if (self.parts / "host").is_dir() or self.folder.is_dir():
            return
        potential, faster = _potentials(self.settings.potential, self.settings.device)
        atoms = self.settings.atoms or (EXACT_ATOMS if potential.exact else DISPLACED_ATOMS)
        model = make_host(potential, self.host, atoms=atoms, preconditioner=faster)
        model.check_stable()
        HostPack(model, {}, made_with=self.made_with()).save(self.parts / "host")

    def _pristine(self) -> HostPack:
        """Return the host as it is kept: a pack does not depend on where its making was interrupted."""
        folder = self.folder if self.folder.is_dir() else self.parts / "host"
        return _loaded(folder, (folder / CONFIG).stat().st_mtime_ns)

    def items(self) -> list[Item]:
        """Return all substitutions that are wanted."""
        pack = self._pristine()
        return [(x, int(s)) for x, z in self.pairs for s in pack.host.sites if pack.replaced(int(s)) == z]

    def missing(self) -> list[Item]:
        """Return the substitutions that are not there yet."""
        pack = self._pristine()
        known = {*pack.substitutions, *((f.dopant, f.site) for f in pack.failures)}
        return [item for item in self.items() if item not in known and not self._part(item).exists()]

    def _part(self, item: Item) -> Path:
        return self.parts / f"{item[0]}-{item[1]}"

    def make(self, item: Item) -> None:
        """Compute a substitution and keep it, or why it failed."""
        potential, faster = _potentials(self.settings.potential, self.settings.device)
        pack = self._pristine()
        dopant, site = item
        broken = (SimulationError, np.linalg.LinAlgError, ValueError, RuntimeError, MemoryError)
        try:
            found = substitute(
                potential,
                pack.host,
                site,
                dopant,
                starts=self.settings.starts,
                radius=self.settings.radius,
                keep=self.settings.keep,
                volume_step=self.settings.volume_step,
                preconditioner=faster,
            )
            part = HostPack(pack.host, {item: found})
        except broken as error:
            reason = (
                error.what
                if isinstance(error, SimulationError)
                else " ".join(f"{type(error).__name__}: {error}".split())[:120]
            )
            part = HostPack(pack.host, {}, (FailedSubstitution(dopant, site, reason),))
        part.save(self._part(item))

    def progress(self, item: Item) -> Progress:
        """Return how far the pack is."""
        total = len(self.items())
        last = f"{item[0]}@{self._pristine().replaced(item[1])}"
        return Progress(self.host.id, total - len(self.missing()), total, last)

    def finish(self) -> None:
        """Put the parts together and leave the pack."""
        pack = self._pristine()
        substitutions = dict(pack.substitutions)
        failures = {(failure.dopant, failure.site): failure for failure in pack.failures}
        known = {*substitutions, *failures}
        fresh = [item for item in self.items() if item not in known and self._part(item).is_dir()]
        for item in fresh:
            part = HostPack.load(self._part(item))
            substitutions |= part.substitutions
            failures |= {(failure.dopant, failure.site): failure for failure in part.failures}
        if fresh or not self.folder.is_dir():  # a pack with nothing new stays as it is, to the last byte
            HostPack(pack.host, substitutions, tuple(failures.values()), self.made_with()).save(self.folder)
        shutil.rmtree(self.parts)


def structure_sha256(host: Host) -> str:
    """Return the hash of a crystal and its id, which tells packs of different ones apart."""
    crystal = host.crystal
    found = {
        "id": host.id,
        "numbers": crystal.numbers.tolist(),
        "cell": crystal.cell.round(6).tolist(),
        "frac": crystal.frac.round(6).tolist(),
    }
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
