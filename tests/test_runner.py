"""The executor of `defectnet simulate`: whatever is done to it, the same arguments end in the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from crystals import write_hosts
from defectnet.data.shards import read_extra, read_shard
from defectnet.simulate.hosts import read_hosts
from defectnet.simulate.rows import Settings
from defectnet.simulate.runner import HOSTS_PER_SHARD, one_thread_in_children, simulate
from make_potential import write_morse_nep

HOSTS = 20
SHARDS = HOSTS // HOSTS_PER_SHARD
SETTINGS = Settings(seed=11, spectra_per_host=2, smallest=13, largest=19)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Hosts and potential: paths."""
    folder = tmp_path_factory.mktemp("inputs")
    return write_hosts(folder / "hosts.json", HOSTS), write_morse_nep(folder / "morse.txt")


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """Folder of a run that nobody disturbed, with its totals."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    hosts, potential = inputs
    return out, simulate(read_hosts(hosts), str(potential), out, SETTINGS, workers=1)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(inputs, out, workers):
    """Start the command in a session of its own; its progress comes on stderr, one line a shard."""
    hosts, potential = inputs
    words = ["--hosts", str(hosts), "--potential", str(potential), "--out", str(out), "--workers", str(workers)]
    words += ["--spectra-per-host", "2", "--atoms", "13-19", "--seed", "11"]
    return subprocess.Popen(
        [sys.executable, "-m", "defectnet.cli", "simulate", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_a_shard(process):
    """Block until one more shard is written."""
    for line in process.stderr:
        if line.startswith("shard-"):
            return
    raise AssertionError("the run ended before it could be killed")


def end(process):
    """Close a killed run: returns when nobody holds its pipes any more, so when the last worker is gone."""
    try:
        process.communicate(timeout=60)
    finally:
        # A worker that outlived its parent is in the same group; without this it would outlive the tests, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_undisturbed_run(undisturbed, inputs):
    out, totals = undisturbed
    shards = sorted(out.glob("shard-*.parquet"))
    assert len(shards) == SHARDS
    assert {path.name for path in out.iterdir()} == {"dataset.json", *(path.name for path in shards)}
    assert totals["rows"] == sum(read_extra(path)["rows"] for path in shards) > HOSTS
    ids = [row.host_id for path in shards for row in read_shard(path)]
    order = [host.id for host in read_hosts(inputs[0])]
    assert ids == sorted(ids, key=order.index)


@pytest.mark.slow
def test_killed_three_times_and_started_again(inputs, undisturbed, tmp_path):
    """Two workers. Twice the whole group is killed, once the parent alone: its workers must go with it."""
    out = tmp_path / "out"
    for kill in (os.killpg, os.kill, os.killpg):
        process = start(inputs, out, workers=2)
        wait_for_a_shard(process)
        kill(process.pid, signal.SIGKILL)
        end(process)
        assert process.returncode == -signal.SIGKILL
    assert 3 <= len(list(out.glob("shard-*.parquet"))) <= SHARDS
    (out / ".shard-00004.parquet.12345.tmp").write_bytes(b"left over by a kill")
    process = start(inputs, out, workers=2)
    stdout, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert stdout.splitlines()[0] == f"{undisturbed[1]['rows']} rows in {out}"
    assert contents(out) == contents(undisturbed[0])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    """Change one byte of the doped spectra: only a checksum notices that."""
    with pq.ParquetFile(path) as file:
        columns = [file.metadata.row_group(0).column(k) for k in range(file.metadata.num_columns)]
    column = next(c for c in columns if c.path_in_schema == "doped_dos")
    first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    data = bytearray(path.read_bytes())
    data[first + column.total_compressed_size - 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_shard_is_named_and_rebuilt(damage, inputs, undisturbed, tmp_path, capfd):
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    damage(out / "shard-00002.parquet")
    assert contents(out) != contents(undisturbed[0])
    totals = simulate(read_hosts(inputs[0]), str(inputs[1]), out, SETTINGS, workers=1)
    lines = [line for line in capfd.readouterr().err.splitlines() if "Rebuilding" in line]
    assert len(lines) == 1
    assert str(out / "shard-00002.parquet") in lines[0]
    assert contents(out) == contents(undisturbed[0])
    assert totals == undisturbed[1]


def test_nothing_is_done_twice(inputs, undisturbed, tmp_path):
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert simulate(read_hosts(inputs[0]), str(inputs[1]), out, SETTINGS, workers=2) == undisturbed[1]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_workers_compute_on_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    code = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['OPENBLAS_NUM_THREADS'])"
    with one_thread_in_children():
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.split() == ["1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ
