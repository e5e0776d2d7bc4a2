"""Running a whole data set over worker processes; killed and started again, it ends in the same shards."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from defectnet.crystal.hosts import Host
from defectnet.data.shards import (
    SCHEMA_VERSION,
    check_shard,
    manifest_file,
    merge_shards,
    read_extra,
    read_manifest,
    write_shard,
)
from defectnet.errors import ShardError, SimulationError
from defectnet.files import locked, replacing
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import FastPotential, Potential, load_potential
from defectnet.simulate.batching import BatchedPotential
from defectnet.simulate.executors import Executor, Failure, LocalExecutor
from defectnet.simulate.hessians import hessian_file, merge_hessians, read_hessians, write_hessians
from defectnet.simulate.rows import HostSimulation, RejectedCell, SimulatedCell, SimulationSettings, relax_host

HOPELESS = 2
"""After so many rejects and not one row, a host is given up: most are molecular crystals that never relax."""

PARTS = ".parts"
"""Folder for hosts of unfinished shards."""

DEADLY = 4
"""A host that was begun so often, and each time its process vanished, is given up: it kills its worker, or takes all
the memory of the machine. Not fewer: a kill of the whole run looks the same to the host that was at work."""


@dataclass(frozen=True)
class Tools:
    """What a worker computes with.

    Attributes:
        potential: Relaxes and vibrates.
        preconditioner: See `simulate`.
        batch: Hosts at work side by side, each in a thread of its own.
    """

    potential: Potential
    preconditioner: Potential | None
    batch: int = 1

    def check(self, crystal: Crystal) -> None:
        """Raise `SimulationError` if an element is not known."""
        self.potential.check(crystal)
        if self.preconditioner is not None:
            self.preconditioner.check(crystal)


@dataclass(frozen=True)
class ToolNames:
    """Paths or names of `Tools`, which every process loads for itself.

    Attributes:
        potential, preconditioner, device, batch, precision: See `simulate`.
    """

    potential: str
    preconditioner: str | None = None
    device: str = "cpu"
    batch: int = 1
    precision: int = 64

    def load(self) -> Tools:
        """Load the potentials."""
        if self.batch < 1:
            raise SimulationError(f"batch is {self.batch}", fix="Use 1 or more")
        second = None if self.preconditioner is None else load_potential(self.preconditioner)
        potential = load_potential(self.potential, self.device, precision=self.precision)
        if self.batch > 1 and isinstance(potential, FastPotential):
            return Tools(BatchedPotential(potential, self.batch), second, self.batch)
        return Tools(potential, second)


@dataclass(frozen=True)
class Shard:
    """One unit of work: a shard to be written.

    Attributes:
        path: Where it goes.
        hosts: What is in it.
    """

    path: Path
    hosts: tuple[Host, ...]

    def __len__(self) -> int:
        return len(self.hosts)


class Unit(Protocol):
    """A shard to be written, of so many hosts or rows."""

    @property
    def path(self) -> Path:
        """Where it goes."""
        ...

    def __len__(self) -> int: ...


Work = TypeVar("Work", bound=Unit)


def simulate(
    hosts: Sequence[Host],
    potential: str,
    out: Path,
    settings: SimulationSettings,
    *,
    executor: Executor | None = None,
    device: str = "cpu",
    preconditioner: str | None = None,
    batch: int = 1,
    precision: int = 64,
    only: range | None = None,
) -> Counter[str]:
    """Simulate a data set into a folder; shards that are there and whole are kept.

    Args:
        hosts: Crystals; their order and number are part of the data set's identity.
        potential: Path or name, see `load_potential`.
        out: Folder; made if needed.
        settings: See `SimulationSettings`.
        executor: Who does the work; by default one process beside this one.
        device: Where potentials are evaluated.
        preconditioner: A second, cheaper potential that tells the relaxation which way is soft.
        batch: Hosts that each process works on side by side, their cells evaluated in one call: for a GPU.
        precision: Bits of the Hessian's products, see `FastPotential`.
        only: Numbers of the shards to make; all by default.

    Returns:
        Number of rows (``"rows"``) and of rejects by reason, of the shards that were asked for.

    Raises:
        SimulationError: The folder holds another data set, or shards could not be made; the others are made first.
    """
    names = ToolNames(potential, preconditioner, device, batch, precision)
    tools = names.load()  # fails early, and fetches once for all workers
    for host in hosts:
        tools.check(host.crystal)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, identity_of(hosts, tools, settings), ("keep_hessians",))
    shards = run_shards(
        plan(hosts, out, settings.hosts_per_shard),
        out,
        ShardWork(names, settings),
        whole=lambda shard: _whole(shard, settings) is not None,
        executor=executor,
        only=only,
        deaths=(DEADLY + 1) * settings.hosts_per_shard,
        units="hosts",
    )
    for shard in shards:  # left over where a kill came after a shard was written
        shutil.rmtree(out / PARTS / shard.path.stem, ignore_errors=True)
    with suppress(OSError):  # others may be at work on other shards
        (out / PARTS).rmdir()
    totals: Counter[str] = Counter()
    for shard in shards:
        totals.update(counts(read_extra(shard.path)))
    return totals


def run_shards(
    planned: Sequence[Work],
    out: Path,
    work: Callable[[Work], Counter[str]],
    *,
    whole: Callable[[Work], bool],
    executor: Executor | None,
    only: range | None,
    deaths: int,
    units: str,
) -> Sequence[Work]:
    """Write the shards of a data set that are not there yet.

    Args:
        planned: All shards, in order.
        out: Their folder.
        work: Writes one and returns its numbers of rows and rejects; travels to other processes.
        whole: Whether a shard is there and whole.
        executor: By default one process beside this one.
        only: Numbers of the shards to make; all by default.
        deaths: See `Executor.run`.
        units: What shards hold, for the progress bar.

    Returns:
        The shards that were asked for.

    Raises:
        SimulationError: The folder holds other shards, or shards could not be made; the others are made first.
        ConfigError: Another process is at work on some of them.
    """
    only = only or range(len(planned))
    shards = planned[only.start : only.stop]
    if not shards:
        raise SimulationError(
            f"no shard is numbered {only.start} to {only.stop - 1}" if planned else f"there are no {units}",
            fix=f"The data set has shards 0 to {len(planned) - 1}",
        )
    with _alone(out, only):
        for leftover in (path for shard in shards for path in out.glob(f".{shard.path.name}*.tmp")):
            leftover.unlink()
        todo = [shard for shard in shards if not whole(shard)]
        unexpected = sorted(
            {path.name for path in out.glob("shard-*.parquet")} - {shard.path.name for shard in planned}
        )
        if unexpected:
            raise SimulationError(
                f"{out / unexpected[0]} does not belong to this data set", fix="Use an empty --out folder"
            )
        failures: dict[str, Failure] = {}
        with progress_bar() as bar:
            asked = sum(len(shard) for shard in shards)
            task = bar.add_task(units, total=asked, completed=asked - sum(len(shard) for shard in todo))
            with closing((executor or LocalExecutor()).run(work, todo, deaths=deaths)) as run:
                for shard, outcome in run:
                    bar.update(task, advance=len(shard))
                    if isinstance(outcome, Failure):
                        failures[shard.path.name] = outcome
                    elif not bar.console.is_terminal:
                        print(f"{shard.path.name}: {outcome['rows']} rows", file=sys.stderr, flush=True)
    if failures:
        name, failure = next(iter(failures.items()))
        raise SimulationError(
            f"{len(failures)} of {len(shards)} shards could not be made",
            why=f"{name}: {failure.why}",
            fix="Run the same command again: it goes on with what is missing",
        )
    return shards


@contextmanager
def _alone(out: Path, only: range) -> Iterator[None]:
    """Keep other processes, who may make other shards of the folder at the same time, from these."""
    own = out / f"shards-{only.start}-{only.stop}"
    with locked(own, "simulating"):
        # Each shows its range before it looks at those of others, so that of two one at least sees the other.
        for other in out.glob(".shards-*-*.lock"):
            name = other.name.removeprefix(".").removesuffix(".lock")
            first, last = (int(part) for part in name.split("-")[1:])
            if name != own.name and first < only.stop and only.start < last:
                with locked(out / name, "simulating"):
                    pass
        yield


@dataclass(frozen=True)
class ShardWork:
    """`make_shard` as a worker process calls it, with tools that it loads for itself."""

    tools: ToolNames
    settings: SimulationSettings

    def __call__(self, shard: Shard) -> Counter[str]:
        """Make a shard."""
        return make_shard(_load(self.tools), shard, self.settings)


@lru_cache(maxsize=1)
def _load(names: ToolNames) -> Tools:
    return names.load()


def plan(hosts: Sequence[Host], out: Path, hosts_per_shard: int) -> list[Shard]:
    """Cut the hosts into shards, in order."""
    chunks = [tuple(hosts[i : i + hosts_per_shard]) for i in range(0, len(hosts), hosts_per_shard)]
    return [Shard(out / f"shard-{i:05d}.parquet", chunk) for i, chunk in enumerate(chunks)]


def shard_range(text: str) -> range:
    """Read ``7`` or ``100-199``.

    Raises:
        SimulationError: It is neither.
    """
    first, dash, last = text.partition("-")
    if not first.isdecimal() or not (last.isdecimal() if dash else True) or int(last or first) < int(first):
        raise SimulationError(f"shards: {text!r} is no number and no range", fix="Write 7 or 100-199")
    return range(int(first), int(last or first) + 1)


def make_shard(tools: Tools, shard: Shard, settings: SimulationSettings) -> Counter[str]:
    """Simulate and write one shard; returns the numbers of rows and rejects.

    Each host is written as it is done, to a folder beside the shard, so that a kill costs no more than one host.
    """
    folder = shard.path.parent / PARTS / shard.path.stem
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"{number:03d}.parquet" for number in range(len(shard.hosts))]

    def make(host: Host, part: Path) -> dict[str, Any]:
        return _whole(Shard(part, (host,)), settings) or _make_part(tools, host, part, settings)

    if tools.batch > 1:
        with ThreadPoolExecutor(tools.batch) as threads:
            notes = list(threads.map(make, shard.hosts, parts))
    else:
        notes = [make(host, part) for host, part in zip(shard.hosts, parts, strict=True)]
    extra = {
        "hosts": [host.id for host in shard.hosts],
        "rejects": [reject for note in notes for reject in note["rejects"]],
        "rows": sum(note["rows"] for note in notes),
        "settings": settings.to_dict(),
    }
    if settings.keep_hessians:
        merge_hessians(hessian_file(shard.path), [hessian_file(part) for part in parts])
    merge_shards(shard.path, parts, extra)
    shutil.rmtree(folder)
    with suppress(OSError):  # the last one to leave
        folder.parent.rmdir()
    return counts(extra)


def _make_part(tools: Tools, host: Host, path: Path, settings: SimulationSettings) -> dict[str, Any]:
    begun = path.with_suffix(".begun")
    rows: list[SimulatedCell] = []
    if _attempts(begun) >= DEADLY:
        rejects = [{"id": host.id, "reason": "worker died"}]
    else:
        with _attempt(begun):
            rows, rejects = simulate_host(tools, host, settings)
    samples = [sample for row in rows for sample in row.samples]
    extra = {"hosts": [host.id], "rejects": rejects, "rows": len(samples), "settings": settings.to_dict()}
    if settings.keep_hessians:
        kept = {row.samples[0].row_id: (row.crystal, row.force_constants.hessian().cpu().numpy()) for row in rows}
        write_hessians(hessian_file(path), kept)
    write_shard(path, samples, extra)
    return extra


def _attempts(begun: Path) -> int:
    return begun.stat().st_size if begun.exists() else 0


@contextmanager
def _attempt(begun: Path) -> Iterator[None]:
    """Count an attempt at a host, one byte each, until the block is left.

    It is left on every end that Python knows of, SIGTERM and Ctrl-C included. The count stays when the process
    vanishes: killed, for instance by the system for want of memory, or crashed.
    """
    before = _attempts(begun)
    with begun.open("ab") as file:
        file.write(b".")
    try:
        yield
    finally:
        with begun.open("r+b") as file:
            file.truncate(before)


def simulate_host(
    tools: Tools, host: Host, settings: SimulationSettings
) -> tuple[list[SimulatedCell], list[dict[str, str]]]:
    """Simulate all rows of a host.

    Returns:
        The rows, and the rejects with id and reason. A structure on which numerics break is a reject too: it must
        not stop the others.
    """
    rows: list[SimulatedCell] = []
    rejects: list[dict[str, str]] = []
    broken = (RejectedCell, SimulationError, np.linalg.LinAlgError, ValueError, RuntimeError, MemoryError)
    try:
        relaxed = relax_host(tools.potential, host, settings, tools.preconditioner)
        simulation = HostSimulation(tools.potential, host, relaxed, settings, tools.preconditioner)
    except broken as error:
        return [], [{"id": host.id, "reason": _reason(error)}]
    for number in range(settings.spectra_per_host):
        try:
            rows.append(simulation.row(number))
        except broken as error:
            rejects.append({"id": f"{host.id}/{number:04d}", "reason": _reason(error)})
            if not rows and len(rejects) == HOPELESS:
                break
    return rows, rejects


def _reason(error: Exception) -> str:
    # torch raises a RuntimeError for what NumPy calls a MemoryError.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return "out of memory"
    return str(error) if isinstance(error, RejectedCell) else f"{type(error).__name__}: {str(error)[:100]}"


def counts(extra: dict[str, Any]) -> Counter[str]:
    """Return the numbers of rows and of rejects by reason from the notes of a shard."""
    found = Counter(reject["reason"] for reject in extra["rejects"])
    found["rows"] = extra["rows"]
    return found


# -- what is there already ---------------------------------------------------------------------------------


def whole_shard(path: Path, wanted: dict[str, Any], *, hessians: bool = False) -> dict[str, Any] | None:
    """Return the notes of a shard that is there and whole; a damaged one is named and will be rebuilt.

    Args:
        path: The shard.
        wanted: What its notes must say.
        hessians: Whether Hessians must lie beside it.
    """
    if not path.exists():
        return None
    try:
        extra = check_shard(path)
        if any(_of_rows(extra.get(key)) != _of_rows(value) for key, value in wanted.items()):
            raise ShardError(f"shard {path} holds other rows or settings", fix="It is rebuilt")
        if hessians:
            read_hessians(hessian_file(path))
    except ShardError as error:
        print(f"Rebuilding: {error.what}", file=sys.stderr)
        return None
    return extra


def _whole(shard: Shard, settings: SimulationSettings) -> dict[str, Any] | None:
    wanted = {"hosts": [host.id for host in shard.hosts], "settings": settings.to_dict()}
    return whole_shard(shard.path, wanted, hessians=settings.keep_hessians)


def _of_rows(note: Any) -> Any:
    """Leave out of settings what changes no row: a data set may go on with or without Hessians."""
    return {k: v for k, v in note.items() if k != "keep_hessians"} if isinstance(note, dict) else note


def identity_of(hosts: Sequence[Host], tools: Tools, settings: SimulationSettings) -> dict[str, Any]:
    """Return what a data set is made from, as plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "potential": tools.potential.name,
        "potential_sha256": tools.potential.sha256,
        "preconditioner": None if tools.preconditioner is None else tools.preconditioner.name,
        "hosts": len(hosts),
        "hosts_sha256": _hosts_sha256(hosts),
        "settings": settings.to_dict(),
    }


def write_manifest(out: Path, identity: dict[str, Any], free: Sequence[str] = ()) -> None:
    """Write the data set's identity, or check that the folder has the same.

    Args:
        out: Folder of the data set.
        identity: Plain values, ``settings`` among them.
        free: SimulationSettings that may differ.

    Raises:
        SimulationError: The folder has another one.
        ShardError: It is not readable.
    """
    path = manifest_file(out)
    if path.exists():
        found = read_manifest(out)
        fixed = {key: value for key, value in identity["settings"].items() if key not in free}
        # Rows are the same in every schema: a data set that was begun in an older one may go on.
        wanted = {key: value for key, value in identity.items() if key != "schema_version"}
        different = _differences(found, {**wanted, "settings": fixed})
        if different:
            raise SimulationError(
                f"{path} describes another data set",
                why=different[0],
                fix="Use the same arguments as before, or an empty --out folder",
            )
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Say which entries of two descriptions of a data set differ."""
    out = []
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(found.get(key), dict):
            out += _differences(found[key], value)
        elif found.get(key) != value:
            out.append(f"{key} is {found.get(key)} there and {value} here")
    return out


def _hosts_sha256(hosts: Sequence[Host]) -> str:
    digest = hashlib.sha256()
    for host in hosts:
        digest.update(host.id.encode())
        for array in (host.crystal.numbers, host.crystal.cell.round(6), host.crystal.frac.round(6)):
            digest.update(array.tobytes())
    return digest.hexdigest()


def progress_bar() -> Progress:
    """Return a bar on stderr with what is done, of how many, and the time that is left."""
    rest = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *rest, console=Console(stderr=True))
