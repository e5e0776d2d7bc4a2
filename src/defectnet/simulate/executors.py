"""Who does the work of a run: processes of this machine, or parsl here and on clusters.

An executor only calls a function on every task; what a task computes does not depend on where it is done. Processes
that die are replaced, and their tasks are done again.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for_futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from defectnet.errors import DefectNetError, SimulationError
from defectnet.processes import end_with_parent, forking

if TYPE_CHECKING:
    from parsl import Config, DataFlowKernel

Task = TypeVar("Task")
Result = TypeVar("Result")

EXECUTORS = ("local", "parsl")
GIB = 2**30


@dataclass(frozen=True)
class Failure:
    """What came of a task in place of a result.

    Attributes:
        why: One line.
        again: Whether another try may help.
        died: Whether the process died that worked on it.
    """

    why: str
    again: bool
    died: bool = False


class Executor(Protocol):
    """Calls a function on tasks, each in a process with one thread."""

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], *, deaths: int = 0
    ) -> Generator[tuple[Task, Result | Failure]]:
        """Yield each task with its result or its last failure, in the order in which they end.

        Closing the iterator early ends all processes.

        Args:
            work: What to do; it travels to other processes, as the tasks do.
            tasks: What to do it on.
            deaths: How many workers may die over one task before it is given up.
        """
        ...


def make_executor(
    name: str, *, workers: int, folder: Path, memory_gib: float = 0.0, parsl_config: str | Path | None = None
) -> Executor:
    """Make an executor from words of the command line.

    Args:
        name: One of `EXECUTORS`.
        workers: Processes.
        folder: Data set's folder; parsl keeps its own files in it while it runs.
        memory_gib: Most memory of a worker; 0 for no limit.
        parsl_config: See `ParslExecutor`.

    Raises:
        SimulationError: An argument cannot be used, or parsl is missing.
    """
    if name not in EXECUTORS:
        raise SimulationError(f"executor {name!r} does not exist", fix=f"Use one of {', '.join(EXECUTORS)}")
    if name == "local":
        if parsl_config is not None:
            raise SimulationError("a parsl config is given, but the executor is local", fix="Use --executor parsl")
        return LocalExecutor(workers, memory_gib)
    config = None if parsl_config is None else read_parsl_config(parsl_config)
    return ParslExecutor(workers, memory_gib, folder=folder / ".parsl", config=config)


# -- what is the same in every worker ----------------------------------------------------------------------------------

_ONE_XLA_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""For glibc: large arrays come and go thousands of times, and a fresh page each time costs a tenth of the run."""


def worker_environment() -> dict[str, str]:
    """Return the variables that give a process one thread for linear algebra.

    Libraries read these variables when they are loaded. Sums that are split over threads end in other last digits, and
    a relaxation can carry these into another stored spectrum.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_XLA_THREAD}".strip()
    return {**_KEEP_MEMORY, **dict.fromkeys(names, "1"), "XLA_FLAGS": flags}


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def one_thread_in_children() -> Iterator[None]:
    """Give processes that are started meanwhile the variables of `worker_environment`."""
    with _environment(worker_environment()):
        yield


@lru_cache(maxsize=1)  # once in a process
def _prepare(memory_gib: float) -> None:
    end_with_parent()
    threadpool_limits(1)  # where NumPy was loaded before the variables of `worker_environment` were set
    if "torch" in sys.modules:  # loaded with the work, if at all
        sys.modules["torch"].set_num_threads(1)  # as `worker_environment` does for NumPy and SciPy
    if memory_gib:
        import resource

        # Not RLIMIT_AS: JAX, CUDA and thread stacks reserve many times the address space that they ever fill.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = round(memory_gib * GIB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


class _Ended(BaseException):
    """Somebody asked this process to end."""


def _raise_ended(*_: Any) -> None:
    raise _Ended


def _call(work: Callable[[Task], Result], task: Task, memory_gib: float) -> Result | Failure:
    """Do a task; errors become values, since not all of them travel between processes.

    On SIGTERM the task is left as on any exception, through its ``finally`` blocks, so that it can tell an orderly end
    from a sudden one. Asked twice, the process ends at once.
    """
    before = signal.signal(signal.SIGTERM, _raise_ended)
    try:
        _prepare(memory_gib)
        return work(task)
    except DefectNetError as error:
        return Failure(str(error), again=False)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or ["no message"])[0]
        return Failure(f"{type(error).__name__}: {first[:200]}", again=True)
    except _Ended:
        os._exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Patience:
    """Decides which tasks are tried again.

    Attributes:
        retries: Further tries of a task that failed.
        deaths: See `Executor.run`. Counted apart: a shard can hold several structures that each kill several workers.
    """

    retries: int
    deaths: int
    failed: Counter[int] = field(default_factory=Counter)
    died: Counter[int] = field(default_factory=Counter)

    def again(self, number: int, failure: Failure) -> bool:
        """Note that a task, by number, failed; return whether it is to be tried again."""
        count, most = (self.died, self.deaths) if failure.died else (self.failed, self.retries)
        count[number] += 1
        again = failure.again and count[number] <= most
        if again:
            print(f"Trying again: {failure.why}", file=sys.stderr, flush=True)
        return again


def _check(workers: int, memory_gib: float) -> None:
    if workers < 1:
        raise SimulationError(f"workers is {workers}", fix="Use at least one worker")
    if memory_gib and not 0.5 <= memory_gib < 2**20:
        raise SimulationError(f"memory-gib is {memory_gib:g}", fix="Use at least 0.5 GiB a worker, or 0 for no limit")
    if memory_gib and sys.platform != "linux":
        raise SimulationError("memory-gib works on Linux only", fix="Leave it out")


# -- this machine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalExecutor:
    """Processes of this machine.

    Not a `ProcessPoolExecutor`: where one of its processes dies it ends all of them, so that every death would cost
    the others their work, too, and nobody could tell whose structure it was.

    Attributes:
        workers: Processes.
        memory_gib: Most memory of a worker; 0 for no limit.
        retries: Further tries of a task that failed.
    """

    workers: int = 1
    memory_gib: float = 0.0
    retries: int = 2

    def __post_init__(self) -> None:
        _check(self.workers, self.memory_gib)

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], *, deaths: int = 0
    ) -> Generator[tuple[Task, Result | Failure]]:
        """See `Executor.run`."""
        patience = _Patience(self.retries, deaths)
        waiting = deque(range(len(tasks)))
        idle: list[_Worker] = []
        busy: dict[Connection[Any, Any], tuple[_Worker, int]] = {}
        try:
            idle += [_Worker() for _ in range(min(self.workers, len(tasks)))]
            while waiting or busy:
                while waiting and idle:
                    worker, number = idle.pop(), waiting.popleft()
                    busy[worker.connection] = worker, number
                    with suppress(OSError):  # it died already: found below
                        worker.connection.send((work, tasks[number], self.memory_gib))
                ready = wait(list(busy))
                for connection in [each for each in busy if each in ready]:
                    worker, number = busy.pop(connection)
                    idle.append(worker)
                    try:
                        outcome = worker.connection.recv()
                    except (EOFError, OSError):
                        outcome = worker.end()
                        idle[-1] = _Worker()
                    if isinstance(outcome, Failure) and patience.again(number, outcome):
                        waiting.append(number)
                    else:
                        yield tasks[number], outcome
        finally:
            everyone = [*idle, *(worker for worker, _ in busy.values())]
            for worker in everyone:
                worker.process.terminate()  # all at once, then wait for each
            for worker in everyone:
                worker.end()


class _Worker:
    """A process of a `LocalExecutor`."""

    def __init__(self) -> None:
        context = forking("defectnet.simulate.runner")
        self.connection, theirs = context.Pipe()
        with one_thread_in_children():
            self.process = context.Process(target=_serve, args=(theirs, dict(os.environ)), daemon=True)
            self.process.start()
        theirs.close()

    def end(self) -> Failure:
        """End the process, if it has not ended, and say what it ended of."""
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return Failure(f"a worker process died ({how})", again=True, died=True)


def _serve(connection: Connection[Any, Any], environment: dict[str, str]) -> None:
    """Do tasks until told to stop; a process that was forked has the environment of the first one's starter."""
    os.environ.clear()
    os.environ.update(environment)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            connection.send(_call(*connection.recv()))


# -- parsl -------------------------------------------------------------------------------------------------------------

_INTERCHANGE: Final = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Starts parsl's interchange so that it ends with the process that started it, however that ends. Blocks that miss it
for their `heartbeat_threshold` end with their workers; by itself it would live on, and they would go on writing."""

_SENDING: Final = 0.2  # seconds that a worker's last result has to get out, before the next task may end the worker


@dataclass(frozen=True)
class ParslExecutor:
    """Processes that parsl starts: on this machine, or through a batch system.

    Attributes:
        workers: Processes on this machine; a `config` has numbers of its own.
        memory_gib: Most memory of a worker; 0 for no limit.
        retries: Further tries of a task that failed.
        folder: For parsl's own files. It is removed after a run without failures, and must be one that the workers
            see too.
        config: Where to run; None for this machine. It serves for one run, as parsl would have it.
    """

    workers: int = 1
    memory_gib: float = 0.0
    retries: int = 2
    folder: Path = Path(".parsl")
    config: Config | None = None

    def __post_init__(self) -> None:
        _check(self.workers, self.memory_gib)
        _check_parsl()

    def run(
        self, work: Callable[[Task], Result], tasks: Sequence[Task], *, deaths: int = 0
    ) -> Generator[tuple[Task, Result | Failure]]:
        """See `Executor.run`."""
        if not tasks:
            return
        import parsl

        patience = _Patience(self.retries, deaths)
        whole = True
        with self._kernel() as kernel:
            app = parsl.python_app(_call_there, data_flow_kernel=kernel)

            def submit(number: int) -> Future[Any]:
                future: Future[Any] = app(work, tasks[number], self.memory_gib, os.getcwd())
                return future

            running = {submit(number): number for number in range(len(tasks))}
            while running:
                for future in wait_for_futures(running, return_when=FIRST_COMPLETED).done:
                    number = running.pop(future)
                    outcome = _outcome(future)
                    if isinstance(outcome, Failure):
                        if patience.again(number, outcome):
                            running[submit(number)] = number
                            continue
                        whole = False
                    yield tasks[number], outcome
        if whole:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _kernel(self) -> Iterator[DataFlowKernel]:
        """Start parsl, and end it with all of its processes."""
        from parsl import DataFlowKernel

        config = self.config or _this_machine(self.workers)
        config.run_dir = str(self.folder.absolute())
        # Its programs (interchange.py, process_worker_pool.py) are looked up on the PATH, where nothing says that
        # this Python's come first, or at all.
        programs = str(Path(sys.executable).parent)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in worker_environment().items()]
        lines.append(f"export PATH={shlex.quote(programs)}:$PATH")
        for executor in config.executors:
            chosen: Any = executor  # `read_parsl_config` saw to its class
            chosen.interchange_launch_cmd = [sys.executable, "-c", _INTERCHANGE, *chosen.interchange_launch_cmd]
            # First, so that the config's own lines, such as `module load`, have the last word on the PATH.
            chosen.provider.worker_init = "\n".join([*lines, chosen.provider.worker_init])
        with _environment({"PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}):
            kernel = DataFlowKernel(config)
        try:
            yield kernel
        finally:
            kernel.cleanup()


def _call_there(work: Callable[[Task], Result], task: Task, memory_gib: float, cwd: str) -> Result | Failure:
    os.chdir(cwd)  # relative paths are meant as in the command
    # A parsl worker hands results to a thread that sends them, and takes its next task meanwhile. If that task ends the
    # process at once, the result before it is lost, and parsl waits for it for ever.
    time.sleep(_SENDING)
    return _call(work, task, memory_gib)


def _outcome(future: Future[Any]) -> Any:
    from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

    error = future.exception()
    if error is None:
        return future.result()
    died = isinstance(error, WorkerLost | ManagerLost)
    first = (str(error).splitlines() or ["no message"])[0]
    return Failure(f"{type(error).__name__}: {first[:200]}", again=died, died=died)


def _this_machine(workers: int) -> Config:
    from parsl import Config, HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        label="this-machine",
        address="127.0.0.1",
        max_workers_per_node=workers,
        cores_per_worker=1e-6,  # else it starts fewer workers where there are fewer cores
        heartbeat_period=2,  # seconds until a worker is missed
        heartbeat_threshold=30,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),  # type: ignore[no-untyped-call]
    )
    return Config(executors=[executor], strategy_period=2)


def _check_parsl() -> None:
    try:
        import parsl  # noqa: F401
    except ImportError as error:
        raise SimulationError(
            "parsl is not installed", why=str(error), fix='Run pip install "defectnet[parsl]", or use --executor local'
        ) from error


def read_parsl_config(path: str | Path) -> Config:
    """Read a Python file that sets ``config`` to a `parsl.Config` of `HighThroughputExecutor`s. The file is run.

    Raises:
        SimulationError: It cannot be run or sets no such variable, or parsl is missing.
    """
    _check_parsl()
    from parsl import Config, HighThroughputExecutor

    example = "See configs/parsl-slurm.py for an example"
    if not Path(path).is_file():
        raise SimulationError(f"parsl config {path} does not exist", fix="Check the path")
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:
        why = f"{type(error).__name__}: {str(error)[:200]}"
        raise SimulationError(f"parsl config {path} cannot be run", why=why, fix=example) from error
    if not isinstance(config, Config):
        raise SimulationError(f"parsl config {path} sets no variable config to a parsl.Config", fix=example)
    for executor in config.executors:
        if not isinstance(executor, HighThroughputExecutor):
            kind = type(executor).__name__
            raise SimulationError(f"parsl config {path} has a {kind}", fix="Use HighThroughputExecutor only")
    return config
