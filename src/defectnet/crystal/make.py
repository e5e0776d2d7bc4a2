"""Making host packs: a host first, then its substitutions, each kept as soon as it is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from defectnet.crystal.host import make_host
from defectnet.crystal.hosts import Host
from defectnet.crystal.pack import Failure, HostPack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.substitution import KEEP, RADIUS, substitute
from defectnet.elements import INDEX, VOCABULARY, element_index
from defectnet.errors import SimulationError
from defectnet.files import replacing
from defectnet.potentials.folder import CONFIG
from defectnet.potentials.potential import Potential, load_potential

EXACT_ATOMS, DISPLACED_ATOMS = 130, 100
"""Most atoms of a supercell, where the potential has exact force constants, and where atoms are displaced."""

PLAUSIBLE = 12
"""Number of dopants that ``plausible`` stands for."""

FASTER = "defectnet-nep"
"""Bundled potential that preconditions the relaxation with one that has no exact force constants."""

Item = tuple[str, int]
"""A dopant and the site that it replaces, one of the inequivalent atoms of the primitive cell."""


@dataclass(frozen=True)
class MakeSettings:
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
    atoms: int = 0
    starts: int = 2
    radius: float = RADIUS
    keep: float = KEEP
    volume_step: float = 0.03
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least, most in (("atoms", 0, 1000), ("starts", 0, 100), ("volume_step", 0.0, 0.2)):
            if not least <= getattr(self, name) <= most:
                raise SimulationError(f"{name} is {getattr(self, name)}", fix=f"Use {least} to {most}")
        for name in ("radius", "keep"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise SimulationError(f"{name} is {getattr(self, name)}", fix="Use a number from 0 on")


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
    from defectnet.elements import NUMBERS

    known = dict(zip(NUMBERS.tolist(), VOCABULARY, strict=True))
    return sorted({known[int(z)] for z in host.crystal.numbers}, key=INDEX.__getitem__)


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
    """
    if workers < 1:
        raise SimulationError(f"workers is {workers}", fix="Use 1 or more")
    builds = [_Build(host, tuple(pairs), Path(folder).resolve(), settings) for host, pairs, folder in jobs]
    for build in builds:
        build.check()
    failed: dict[str, str] = {}
    if workers == 1:
        for build in builds:
            try:
                for _ in build.run(report):
                    pass
            except SimulationError as error:
                failed[build.host.id] = str(error)
        return failed
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
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
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        wanted = {"host": _fingerprint(self.host), **asdict(replace(self.settings, device="cpu"))}
        if self.folder.exists() and any(self.folder.iterdir()):
            pack = HostPack.load(self.folder)
            potential, _ = _potentials(self.settings.potential, self.settings.device)
            if (pack.host.id, pack.host.potential_sha256) != (self.host.id, potential.sha256):
                raise SimulationError(
                    f"{self.folder} is the pack of {pack.host.id} with {pack.host.potential}", fix="Give a new folder"
                )
        path = self.parts / "settings.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found != wanted:
                raise SimulationError(
                    f"{self.parts} holds parts of another pack, or made with other settings",
                    fix="Use the same arguments as before, or another --out",
                )
        else:
            self.parts.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(wanted), encoding="utf-8")

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
        HostPack(model, {}).save(self.parts / "host")

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
            reason = error.what if isinstance(error, SimulationError) else f"{type(error).__name__}: {error}"[:120]
            part = HostPack(pack.host, {}, (Failure(dopant, site, reason),))
        part.save(self._part(item))

    def progress(self, item: Item) -> Progress:
        """Return how far the pack is."""
        total = len(self.items())
        last = f"{item[0]}@{self._pristine().replaced(item[1])}"
        return Progress(self.host.id, total - len(self.missing()), total, last)

    def finish(self) -> None:
        """Put the parts together and leave the pack."""
        pack = self._pristine()
        substitutions, failures = dict(pack.substitutions), list(pack.failures)
        for item in self.items():
            if self._part(item).is_dir():
                part = HostPack.load(self._part(item))
                substitutions |= part.substitutions
                failures += part.failures
        HostPack(pack.host, substitutions, tuple(failures)).save(self.folder)
        shutil.rmtree(self.parts)


def _fingerprint(host: Host) -> dict[str, object]:
    crystal = host.crystal
    return {
        "id": host.id,
        "numbers": crystal.numbers.tolist(),
        "cell": crystal.cell.round(6).tolist(),
        "frac": crystal.frac.round(6).tolist(),
    }
