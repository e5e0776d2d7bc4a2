"""Whoever does the work, and whatever dies meanwhile: the same shards, and no process stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

import defectnet.simulate.runner as runner
from crystals import write_hosts
from defectnet.cli import main
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import read_extra, read_shard
from defectnet.errors import SimulationError
from defectnet.processes import forking
from defectnet.simulate.executors import (
    Executor,
    Failure,
    LocalExecutor,
    ParslExecutor,
    _call,
    make_executor,
    one_thread_in_children,
    read_parsl_config,
)
from defectnet.simulate.rows import SimulationSettings
from defectnet.simulate.runner import DEADLY, Shard, ShardWork, simulate
from make_potential import write_morse_nep
from odd_jobs import killed, odd_job

HOSTS = 6
SETTINGS = SimulationSettings(seed=11, spectra_per_host=1, hosts_per_shard=2, smallest=13, largest=19)
SECOND_OF_SHARD_1 = 3  # host that the tests kill


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Hosts and the path of the potential."""
    folder = tmp_path_factory.mktemp("inputs")
    return read_hosts(write_hosts(folder / "hosts.json", HOSTS)), str(write_morse_nep(folder / "morse.txt"))


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """Folder of a run with one worker that nobody disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    simulate(*inputs, out, SETTINGS)
    return out


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The tests' functions travel by name, also to workers that do not inherit sys.path."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def _nobody_stays(tmp_path, monkeypatch):
    """Every test runs in a folder of its own, which tells its processes from others."""
    monkeypatch.chdir(tmp_path)
    yield
    assert left_behind(tmp_path, seconds=60) == []


def helps(process: psutil.Process) -> bool:
    """Whether it is one of multiprocessing's own, which live as long as the tests; what is forked has their words."""
    words = " ".join(process.cmdline())
    return "resource_tracker" in words or ("forkserver" in words and process.ppid() == os.getpid())


def left_behind(folder: Path, seconds: float) -> list[str]:
    """Processes that work in a folder and are still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and Path(process.cwd()) == folder.resolve() and not helps(process):
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def executor(kind: str, workers: int, folder: Path, **options) -> Executor:
    if kind == "local":
        return LocalExecutor(workers, **options)
    return ParslExecutor(workers, folder=folder / ".parsl", **options)


both = pytest.mark.parametrize("kind", ["local", "parsl"])


# -- whole data sets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbed(ShardWork):
    """Shard work with something that happens over one host, before it is relaxed."""

    def __call__(self, shard: Shard):
        def relax(potential, host, *rest):
            self.happens(shard.path.parent.parent, host.id, host.id == os.environ["TEST_VICTIM"])
            return before(potential, host, *rest)

        before, runner.relax_host = runner.relax_host, relax
        try:
            return super().__call__(shard)
        finally:
            runner.relax_host = before

    def happens(self, folder: Path, name: str, victim: bool) -> None:
        raise NotImplementedError


class KilledOnce(Disturbed):
    def happens(self, folder, name, victim):
        if victim and not (folder / "killed").exists():
            (folder / "killed").touch()
            killed()


class Poisoned(Disturbed):
    def happens(self, folder, name, victim):
        with (folder / "begun").open("a") as file:
            file.write(f"{name}\n")
        if victim:
            killed()


class Greedy(Disturbed):
    def happens(self, folder, name, victim):
        if victim:
            np.empty(2**29)  # 4 GiB


class FullDisk(ShardWork):
    def __call__(self, shard):
        if shard.path.name == "shard-00000.parquet":
            raise OSError("disk full")
        return super().__call__(shard)


@both
def test_killed_worker_costs_nothing(kind, inputs, undisturbed, tmp_path, monkeypatch, capfd):
    """Two workers of any kind end in the bytes of one local worker, though one of them is killed."""
    monkeypatch.setattr(runner, "ShardWork", KilledOnce)
    monkeypatch.setenv("TEST_VICTIM", inputs[0][SECOND_OF_SHARD_1].id)
    out = tmp_path / "out"
    totals = simulate(*inputs, out, SETTINGS, executor=executor(kind, 2, out))
    assert (tmp_path / "killed").exists()
    assert capfd.readouterr().err.count("Trying again") == 1
    assert contents(out) == contents(undisturbed)
    assert totals["rows"] > 0


def test_command_line_with_a_parsl_config(inputs, undisturbed, tmp_path, capsys):
    """Relative paths are those of the command, and a config's own `worker_init` holds, too."""
    write_hosts(Path("hosts.json"), HOSTS)
    Path("settings.json").write_text(json.dumps(SETTINGS.to_dict()))
    Path("config.py").write_text(CONFIG)
    words = ["--hosts", "hosts.json", "--potential", inputs[1], "--settings", "settings.json", "--out", "out"]
    main(["simulate", *words, "--executor", "parsl", "--parsl-config", "config.py"])
    assert capsys.readouterr().out.splitlines()[0].endswith(" rows in out")
    assert contents(Path("out")) == contents(undisturbed)
    assert Path("init").read_text() == "1\n"


CONFIG = """
from parsl import Config, HighThroughputExecutor
from parsl.providers import LocalProvider

init = "echo $OMP_NUM_THREADS > init"
provider = LocalProvider(worker_init=init, max_blocks=1)
executor = HighThroughputExecutor(address="127.0.0.1", max_workers_per_node=1, provider=provider)
config = Config(executors=[executor])
"""


def test_poisoned_host_is_recorded_and_skipped(inputs, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ShardWork", Poisoned)
    hosts = inputs[0]
    victim = hosts[SECOND_OF_SHARD_1].id
    monkeypatch.setenv("TEST_VICTIM", victim)
    out = tmp_path / "out"
    totals = simulate(*inputs, out, SETTINGS, executor=LocalExecutor(2))
    assert totals["worker died"] == 1
    begun = (tmp_path / "begun").read_text().split()
    assert {host.id: begun.count(host.id) for host in hosts} == {
        host.id: DEADLY if host.id == victim else 1 for host in hosts
    }
    assert {"id": victim, "reason": "worker died"} in read_extra(out / "shard-00001.parquet")["rejects"]
    for shard in sorted(path.name for path in undisturbed.glob("shard-*")):
        expected = [row.row_id for row in read_shard(undisturbed / shard) if row.host_id != victim]
        assert [row.row_id for row in read_shard(out / shard)] == expected
        if shard != "shard-00001.parquet":
            assert (out / shard).read_bytes() == (undisturbed / shard).read_bytes()


def test_too_little_memory_is_a_reject(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ShardWork", Greedy)
    victim = inputs[0][SECOND_OF_SHARD_1].id
    monkeypatch.setenv("TEST_VICTIM", victim)
    out = tmp_path / "out"
    totals = simulate(*inputs, out, SETTINGS, executor=LocalExecutor(1, memory_gib=3))
    assert totals["out of memory"] == 1
    assert {"id": victim, "reason": "out of memory"} in read_extra(out / "shard-00001.parquet")["rejects"]


def begins_and_ends(hosts: Path, potential: str, out: Path, end: int) -> None:
    """Do a shard in this process, which gets a signal over its first host."""
    runner.relax_host = lambda *_: killed(end)
    work = ShardWork(runner.ToolNames(potential, None, "cpu"), SETTINGS)
    _call(work, runner.plan(read_hosts(hosts), out, 2)[0], 0.0)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_only_a_sudden_end_counts(end, inputs, tmp_path):
    """A worker that is asked to end takes its attempt back; one that vanishes leaves it."""
    out = tmp_path / "out"
    out.mkdir()
    arguments = write_hosts(tmp_path / "hosts.json", 2), inputs[1], out, int(end)
    process = forking(runner.__name__).Process(target=begins_and_ends, args=arguments)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == (-end if end == signal.SIGKILL else 128 + end)
    marks = [mark.stat().st_size for mark in out.rglob("*.begun")]
    assert marks == [1 if end == signal.SIGKILL else 0]


# -- the executors alone -----------------------------------------------------------------------------------------------


@both
def test_what_comes_of_a_task(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    words = ["works", "fails once", "kills once", "fails", "kills", "wrong", "environment"]
    tasks = [(tmp_path / word, word) for word in words]
    found = {task[1]: outcome for task, outcome in executor(kind, 2, tmp_path).run(odd_job, tasks, deaths=2)}
    tries = {word: len((tmp_path / word).read_text()) for word in words}
    assert tries == {
        "works": 1,
        "fails once": 2,
        "kills once": 2,
        "fails": 3,
        "kills": 3,
        "wrong": 1,
        "environment": 1,
    }
    assert [found[word] for word in words[:3]] == ["works done", "fails once done", "kills once done"]
    assert found["fails"] == Failure("OSError: disk full", again=True)
    assert found["kills"].died
    assert found["wrong"] == Failure("this is wrong. Do not.", again=False)
    environment = found["environment"]
    assert environment.startswith("OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=4")
    assert "intra_op_parallelism_threads=1" in environment
    assert environment.endswith("torch=1")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    if kind == "parsl":
        assert (tmp_path / ".parsl").exists()  # its logs stay where tasks failed


@both
def test_closed_early(kind, tmp_path):
    """Whoever stops listening leaves no process: `_nobody_stays` looks."""
    run = executor(kind, 2, tmp_path).run(odd_job, [(tmp_path / "1", "works"), (tmp_path / "2", "sleeps")])
    assert next(run)[1] == "works done"
    run.close()
    assert left_behind(tmp_path, seconds=60) == []


TWO_BLOCKS = """
from parsl import Config, HighThroughputExecutor
from parsl.providers import LocalProvider

executor = HighThroughputExecutor(
    address="127.0.0.1",
    max_workers_per_node=1,
    cores_per_worker=1e-6,
    heartbeat_period=1,
    heartbeat_threshold=5,
    provider=LocalProvider(init_blocks=2, min_blocks=2, max_blocks=2),
)
config = Config(executors=[executor], strategy="none")
"""


def test_two_blocks_share_the_tasks_and_one_that_dies_costs_a_retry(tmp_path):
    pytest.importorskip("parsl")
    (tmp_path / "two.py").write_text(TWO_BLOCKS)
    two = ParslExecutor(folder=tmp_path / ".parsl", config=read_parsl_config(tmp_path / "two.py"))
    tasks = [(tmp_path / name, what) for name, what in (("1", "meets"), ("2", "meets"), ("3", "ends its block once"))]
    found = {path.name: outcome for (path, _), outcome in two.run(odd_job, tasks, deaths=1)}
    assert sorted([found["1"], found["2"]]) == ["0", "1"]  # each waited for the other: they were at work together
    assert found["3"] == "ends its block once done"
    assert (tmp_path / "3").read_text() == ".."


def test_parsl_ends_when_its_starter_is_killed(tmp_path):
    (tmp_path / "two.py").write_text(TWO_BLOCKS)
    code = (
        "import sys; from odd_jobs import *\n"
        "from defectnet.simulate.executors import ParslExecutor, read_parsl_config\n"
        "folder = Path(sys.argv[1]); tasks = [(folder / word, word) for word in ('works', 'sleeps')]\n"
        "config = read_parsl_config(folder / 'two.py')\n"
        "for _ in ParslExecutor(folder=folder / '.parsl', config=config).run(odd_job, tasks):\n"
        "    print('one', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "one\n"
        process.kill()
    assert left_behind(tmp_path, seconds=20) == []


def test_workers_compute_on_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
    with one_thread_in_children():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_failed_shards_are_named_and_the_others_made(inputs, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "ShardWork", FullDisk)
    out = tmp_path / "out"
    with pytest.raises(SimulationError, match=r"1 of 3 shards.*shard-00000\.parquet: OSError: disk full.*Run the same"):
        simulate(*inputs, out, SETTINGS)
    assert contents(out) == {k: v for k, v in contents(undisturbed).items() if k != "shard-00000.parquet"}


# -- arguments ---------------------------------------------------------------------------------------------------------


CONFIGS = {
    "no Python": ("config = (", "cannot be run.*SyntaxError"),
    "fails": ("1 / 0", "cannot be run.*ZeroDivisionError"),
    "no config": ("settings = 1", "sets no variable config"),
    "another config": ("config = {}", "sets no variable config"),
    "threads": (
        "from parsl import Config, ThreadPoolExecutor\nconfig = Config(executors=[ThreadPoolExecutor()])",
        "has a ThreadPoolExecutor.*HighThroughputExecutor",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_parsl_config(case, tmp_path):
    text, match = CONFIGS[case]
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(SimulationError, match=match) as caught:
        read_parsl_config(path)
    assert "config.py" in str(caught.value)


def test_example_config_can_be_read():
    config = read_parsl_config(Path(__file__).parents[1] / "configs" / "parsl-slurm.py")
    assert [each.label for each in config.executors] == ["slurm"]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("cluster", {}, "executor 'cluster' does not exist.*local, parsl"),
        ("local", {"parsl_config": "x.py"}, "the executor is local.*--executor parsl"),
        ("parsl", {"parsl_config": "nowhere.py"}, r"nowhere\.py does not exist"),
        ("parsl", {"workers": 0}, "workers is 0"),
        ("local", {"memory_gib": -1.0}, "memory-gib is -1"),
        ("local", {"memory_gib": 0.01}, "memory-gib is 0.01"),
        ("local", {"memory_gib": float("nan")}, "memory-gib is nan"),
    ],
)
def test_wrong_arguments(name, options, match, tmp_path):
    with pytest.raises(SimulationError, match=match):
        make_executor(name, **{"workers": 1, "folder": tmp_path, **options})


def test_without_parsl(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "parsl", None)
    with pytest.raises(SimulationError, match=r"parsl is not installed.*--executor local"):
        make_executor("parsl", workers=1, folder=tmp_path)


def test_command_line(inputs, tmp_path, capsys):
    words = ["simulate", "--hosts", str(write_hosts(tmp_path / "hosts.json", HOSTS)), "--potential", inputs[1]]
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "out"), "--executor", "cluster"])
    assert "executor 'cluster' does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
