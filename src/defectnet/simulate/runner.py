"""Running a whole data set over worker processes; killed and started again, it ends in the same shards."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from defectnet.data.shards import SCHEMA_VERSION, Sample, check_shard, read_extra, write_shard
from defectnet.errors import ShardError, SimulationError
from defectnet.files import replacing
from defectnet.simulate.hosts import Host
from defectnet.simulate.potential import FastPotential, load_potential
from defectnet.simulate.rows import Rejected, Settings, relax_host, simulate_row

HOSTS_PER_SHARD = 4
"""Hosts in one shard: the most that a kill can cost a worker."""

MANIFEST = "dataset.json"


@dataclass(frozen=True)
class Shard:
    """One unit of work: a shard to be written.

    Attributes:
        path: Where it goes.
        hosts: What is in it.
    """

    path: Path
    hosts: tuple[Host, ...]


def simulate(
    hosts: Sequence[Host], potential: str, out: Path, settings: Settings, *, workers: int = 1, device: str = "cpu"
) -> Counter[str]:
    """Simulate a data set into a folder; shards that are there and whole are kept.

    Args:
        hosts: Crystals; their order and number are part of the data set's identity.
        potential: Path or name, see `load_potential`.
        out: Folder; made if needed.
        settings: See `Settings`.
        workers: Processes, one thread each.
        device: Where potentials are evaluated.

    Returns:
        Number of rows (``"rows"``) and of rejects by reason.

    Raises:
        SimulationError: The folder holds another data set, or a worker process died.
    """
    if workers < 1:
        raise SimulationError(f"workers is {workers}", fix="Use at least one worker")
    model = load_potential(potential, device)  # fails early, and fetches once for all workers
    _check_elements(hosts, model)
    out.mkdir(parents=True, exist_ok=True)
    _write_manifest(out, hosts, model, settings)
    shards = plan(hosts, out)
    for leftover in out.glob(".shard-*.tmp"):
        leftover.unlink()
    todo = [shard for shard in shards if not _is_whole(shard, settings)]
    unexpected = sorted({path.name for path in out.glob("shard-*.parquet")} - {shard.path.name for shard in shards})
    if unexpected:
        raise SimulationError(
            f"{out / unexpected[0]} does not belong to this data set", fix="Use an empty --out folder"
        )
    totals: Counter[str] = Counter()
    with _progress() as bar:
        task = bar.add_task("hosts", total=len(hosts), completed=len(hosts) - sum(len(s.hosts) for s in todo))
        for shard, counts in _run(todo, potential, settings, workers, device):
            totals.update(counts)
            bar.update(task, advance=len(shard.hosts))
            if not bar.console.is_terminal:
                print(f"{shard.path.name}: {counts['rows']} rows", file=sys.stderr, flush=True)
    totals.clear()
    for shard in shards:
        totals.update(_counts(read_extra(shard.path)))
    return totals


def plan(hosts: Sequence[Host], out: Path) -> list[Shard]:
    """Cut the hosts into shards, in order."""
    chunks = [tuple(hosts[i : i + HOSTS_PER_SHARD]) for i in range(0, len(hosts), HOSTS_PER_SHARD)]
    return [Shard(out / f"shard-{i:05d}.parquet", chunk) for i, chunk in enumerate(chunks)]


def make_shard(model: FastPotential, shard: Shard, settings: Settings) -> Counter[str]:
    """Simulate and write one shard; returns the numbers of rows and rejects."""
    samples: list[Sample] = []
    rejects: list[dict[str, str]] = []
    for host in shard.hosts:
        rows, refused = simulate_host(model, host, settings)
        samples += rows
        rejects += refused
    extra = {
        "hosts": [host.id for host in shard.hosts],
        "rejects": rejects,
        "rows": len(samples),
        "settings": settings.to_dict(),
    }
    write_shard(shard.path, samples, extra)
    return _counts(extra)


def simulate_host(model: FastPotential, host: Host, settings: Settings) -> tuple[list[Sample], list[dict[str, str]]]:
    """Simulate all rows of a host.

    Returns:
        The rows, and the rejects with id and reason. A structure on which numerics break is a reject too: it must
        not stop the others.
    """
    rows: list[Sample] = []
    rejects: list[dict[str, str]] = []
    try:
        relaxed = relax_host(model, host, settings)
    except (Rejected, SimulationError, np.linalg.LinAlgError, ValueError, RuntimeError) as error:
        return [], [{"id": host.id, "reason": _reason(error)}]
    for number in range(settings.spectra_per_host):
        try:
            rows.append(simulate_row(model, host, relaxed, number, settings))
        except (Rejected, SimulationError, np.linalg.LinAlgError, ValueError, RuntimeError) as error:
            rejects.append({"id": f"{host.id}/{number:04d}", "reason": _reason(error)})
    return rows, rejects


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Rejected) else f"{type(error).__name__}: {str(error)[:100]}"


def _counts(extra: dict[str, Any]) -> Counter[str]:
    counts = Counter(reject["reason"] for reject in extra["rejects"])
    counts["rows"] = extra["rows"]
    return counts


# -- worker processes --------------------------------------------------------------------------------------------------

_MODEL: FastPotential | None = None


@contextmanager
def one_thread_in_children() -> Iterator[None]:
    """Give processes that are started meanwhile one thread for linear algebra.

    Libraries read these variables when they are loaded. Sums that are split over threads end in other last digits, and
    a relaxation can carry these into another stored spectrum.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """End this process when its parent does: an orphan would go on writing, and then wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _start_worker(potential: str, device: str) -> None:
    global _MODEL
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # as `one_thread_in_children` does for NumPy and SciPy
    _MODEL = load_potential(potential, device)


def _work(shard: Shard, settings: Settings) -> Counter[str]:
    assert _MODEL is not None
    return make_shard(_MODEL, shard, settings)


def _run(
    todo: Sequence[Shard], potential: str, settings: Settings, workers: int, device: str
) -> Iterator[tuple[Shard, Counter[str]]]:
    if not todo:
        return
    pool = ProcessPoolExecutor(
        min(workers, len(todo)),
        mp_context=get_context("spawn"),
        initializer=_start_worker,
        initargs=(potential, device),
    )
    with pool:
        with one_thread_in_children():  # submitting starts the processes
            running: dict[Future[Counter[str]], Shard] = {pool.submit(_work, shard, settings): shard for shard in todo}
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise SimulationError(
                "a worker process died", why="perhaps out of memory", fix="Run the same command again: it goes on"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# -- what is there already ---------------------------------------------------------------------------------


def _is_whole(shard: Shard, settings: Settings) -> bool:
    """Say whether a shard is there and whole; a damaged one is named and will be rebuilt."""
    if not shard.path.exists():
        return False
    try:
        extra = check_shard(shard.path)
        wanted = [host.id for host in shard.hosts]
        if extra.get("hosts") != wanted or extra.get("settings") != settings.to_dict():
            raise ShardError(f"shard {shard.path} holds other hosts or settings", fix="It is rebuilt")
    except ShardError as error:
        print(f"Rebuilding: {error.what}", file=sys.stderr)
        return False
    return True


def _write_manifest(out: Path, hosts: Sequence[Host], model: FastPotential, settings: Settings) -> None:
    """Write the data set's identity, or check that the folder has the same."""
    identity = {
        "schema_version": SCHEMA_VERSION,
        "potential": model.name,
        "potential_sha256": model.sha256,
        "hosts": len(hosts),
        "hosts_sha256": _hosts_sha256(hosts),
        "hosts_per_shard": HOSTS_PER_SHARD,
        "settings": settings.to_dict(),
    }
    path = out / MANIFEST
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SimulationError(f"{path} is no JSON", fix="Use an empty --out folder") from error
        if not isinstance(found, dict):
            raise SimulationError(f"{path} is no JSON object", fix="Use an empty --out folder")
        different = _differences(found, identity)
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


def _check_elements(hosts: Sequence[Host], model: FastPotential) -> None:
    for host in hosts:
        model.model.types(host.crystal)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True))
