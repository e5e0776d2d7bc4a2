"""The executor of `defectnet simulate`: whatever is done to it, the same arguments end in the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest

from crystals import write_hosts
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import MANIFEST, read_extra, read_shard
from defectnet.errors import SimulationError
from defectnet.simulate.executors import LocalExecutor
from defectnet.simulate.rows import SimulationSettings
from defectnet.simulate.runner import PARTS, shard_range, simulate
from make_potential import write_morse_nep

HOSTS = 5
SETTINGS = SimulationSettings(seed=11, spectra_per_host=2, hosts_per_shard=1, smallest=13, largest=19)
SHARDS = HOSTS // SETTINGS.hosts_per_shard


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
    return out, simulate(read_hosts(hosts), str(potential), out, SETTINGS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(inputs, out, workers):
    """Start the command in a session of its own; its progress comes on stderr, one line a shard."""
    hosts, potential = inputs
    words = ["--hosts", str(hosts), "--potential", str(potential), "--out", str(out), "--workers", str(workers)]
    settings = out.with_name("settings.json")
    settings.write_text(json.dumps(SETTINGS.to_dict()))
    words += ["--settings", str(settings)]
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
    assert {path.name for path in out.iterdir()} == {MANIFEST, *(path.name for path in shards)}
    assert totals["rows"] == sum(read_extra(path)["rows"] for path in shards) > HOSTS
    ids = [row.host_id for path in shards for row in read_shard(path)]
    order = [host.id for host in read_hosts(inputs[0])]
    assert ids == sorted(ids, key=order.index)


@pytest.mark.slow
def test_killed_twice_and_started_again(inputs, undisturbed, tmp_path):
    """Two workers. Once the whole group is killed, once the parent alone: its workers must go with it."""
    out = tmp_path / "out"
    for kill in (os.killpg, os.kill):
        process = start(inputs, out, workers=2)
        wait_for_a_shard(process)
        kill(process.pid, signal.SIGKILL)
        end(process)
        assert process.returncode == -signal.SIGKILL
    assert 2 <= len(list(out.glob("shard-*.parquet"))) <= SHARDS
    (out / ".shard-00004.parquet.12345.tmp").write_bytes(b"left over by a kill")
    (out / PARTS / "shard-00000").mkdir(parents=True, exist_ok=True)  # by a kill after the shard was written
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
    column = next(c for c in columns if c.path_in_schema.startswith("doped_dos"))
    first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    data = bytearray(path.read_bytes())
    data[first + column.total_compressed_size - 2] ^= 0xFF
    path.write_bytes(data)


def test_hessians_can_be_left_out_from_some_shard_on(inputs, undisturbed, tmp_path, capfd):
    """They change no row, so that the shards with and without them are one data set."""
    hosts, keeping = read_hosts(inputs[0]), dataclasses.replace(SETTINGS, keep_hessians=True)
    out = tmp_path / "out"
    simulate(hosts, str(inputs[1]), out, keeping, only=range(2))
    assert simulate(hosts, str(inputs[1]), out, SETTINGS) == undisturbed[1]
    assert "Rebuilding" not in capfd.readouterr().err
    assert len(list(out.glob("hessians-*.npz"))) == 2


@pytest.mark.parametrize("damage", [truncate, flip])
def test_damaged_shard_is_named_and_rebuilt(damage, inputs, undisturbed, tmp_path, capfd):
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    damage(out / "shard-00002.parquet")
    assert contents(out) != contents(undisturbed[0])
    totals = simulate(read_hosts(inputs[0]), str(inputs[1]), out, SETTINGS)
    lines = [line for line in capfd.readouterr().err.splitlines() if "Rebuilding" in line]
    assert len(lines) == 1
    assert str(out / "shard-00002.parquet") in lines[0]
    assert contents(out) == contents(undisturbed[0])
    assert totals == undisturbed[1]


def test_nothing_is_done_twice(inputs, undisturbed, tmp_path):
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert simulate(read_hosts(inputs[0]), str(inputs[1]), out, SETTINGS, executor=LocalExecutor(2)) == undisturbed[1]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_machines_share_the_shards(inputs, undisturbed, tmp_path):
    out = tmp_path / "out"
    totals = [
        simulate(read_hosts(inputs[0]), str(inputs[1]), out, SETTINGS, only=shard_range(text))
        for text in ("3-9", "0-2")
    ]
    assert sorted(path.name for path in out.glob("shard-*")) == [f"shard-{i:05d}.parquet" for i in range(SHARDS)]
    assert contents(out) == contents(undisturbed[0])
    assert sum(totals, Counter()) == undisturbed[1]


def test_parts_of_others_are_left_alone(inputs, tmp_path):
    out = tmp_path / "out"
    theirs = out / PARTS / "shard-00004" / "000.parquet"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"at work")
    simulate(read_hosts(inputs[0]), str(inputs[1]), out, SETTINGS, only=range(1))
    assert theirs.read_bytes() == b"at work"


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "5-4", "1-2-3", "1.5"])
def test_what_is_no_range_of_shards(text):
    with pytest.raises(SimulationError, match="no number and no range"):
        shard_range(text)


def test_shards_that_do_not_exist(inputs, tmp_path):
    with pytest.raises(SimulationError, match=f"shards 0 to {SHARDS - 1}"):
        simulate(read_hosts(inputs[0]), str(inputs[1]), tmp_path, SETTINGS, only=shard_range(f"{SHARDS}-99"))
