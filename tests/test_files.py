"""What is written is whole whatever happens, and one process at a time writes it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import make_random_batch
from crystals import PAIRS, write_hosts
from defectnet import files
from defectnet.cli import main
from defectnet.errors import CheckpointError, ConfigError, SimulationError
from defectnet.files import is_file_name, locked, put_back, read_json, replacing_folder
from defectnet.hub import load, save
from defectnet.lab.finetune import finetune
from defectnet.potentials.folder import write_folder
from lab_tables import write_lab
from make_potential import write_morse_nep

WRITER = """
import sys
from itertools import count
from pathlib import Path
from defectnet.files import replacing_folder
for number in count():
    with replacing_folder(sys.argv[1]) as folder:
        for name in ("one", "other"):
            (folder / name).write_text(str(number))
    print(number, flush=True)
"""


def test_a_folder_is_whole_whenever_its_writer_is_killed(tmp_path):
    folder = tmp_path / "x"
    for turn in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout
        for _ in range(turn + 1):
            writer.stdout.readline()
        time.sleep(0.001 * turn)
        writer.kill()
        writer.wait()
        one, other = ((folder / name).read_text() for name in ("one", "other"))
        assert one == other
        assert int(one) >= turn


def test_a_folder_set_aside_by_a_killed_process_comes_back(tmp_path, tiny_model, tiny_batch):
    """On a file system that cannot exchange two folders in one step."""
    folder = save(tiny_model("DefectNet"), tmp_path / "tiny", golden=tiny_batch, card="# Tiny", training={})
    folder.rename(tmp_path / ".tiny.old")  # where a kill between the two steps leaves it
    assert load(folder).name == "tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    put_back(tmp_path / "nothing")


@pytest.mark.parametrize("exchanges", [True, False])
def test_folders_are_replaced_with_all_that_is_in_them(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for number in range(3):
        with replacing_folder(tmp_path / "a" / "x") as folder:
            (folder / f"file-{number}").write_text("x")
    with pytest.raises(KeyError), replacing_folder(tmp_path / "a" / "x") as folder:
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]
    assert [path.name for path in (tmp_path / "a" / "x").iterdir()] == ["file-2"]


def test_threads_save_one_checkpoint(tmp_path, tiny_model, tiny_batch):
    model, failed = tiny_model("PaperDefectNet"), []

    def write() -> None:
        try:
            save(model, tmp_path / "tiny", golden=tiny_batch, card="# Tiny", training={})
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    load(tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


# What is not a checkpoint is not replaced

FOREIGN = {"config.json": '{"model_type": "bert"}', "model.safetensors": "x", "README.md": "# Mine"}


def ours_and_more(folder: Path) -> None:
    (folder / "notes.txt").write_text("precious")


def another_programs(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, text in FOREIGN.items():
        (folder / name).write_text(text)


def a_config_alone(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    (folder / "config.json").write_text("[]")


@pytest.mark.parametrize("through_link", [False, True])
@pytest.mark.parametrize("change", [ours_and_more, another_programs, a_config_alone])
def test_what_is_no_checkpoint_is_left_alone(tmp_path, tiny_model, change, through_link):
    model, batch = tiny_model("PaperDefectNet"), make_random_batch(2)
    folder = save(model, tmp_path / "tiny", golden=batch, card="# Tiny", training={})
    change(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "link" if through_link else folder
    if through_link:
        out.symlink_to(folder)
    with pytest.raises(CheckpointError, match="exists and is no checkpoint"):
        save(model, out, golden=batch, card="# Other", training={})
    with pytest.raises(CheckpointError, match="exists and is no checkpoint"):
        finetune("nothing", tmp_path / "no-table", out)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_pack_does_not_replace_another_programs_folder(tmp_path):
    folder = tmp_path / "bert"
    folder.mkdir()
    another_programs(folder)
    with pytest.raises(SimulationError, match="missing or no int"):
        write_folder(folder, {}, {}, card="# Pack")
    assert {path.name: path.read_text() for path in folder.iterdir()} == FOREIGN


# One at a time


def test_a_lock_keeps_out_processes_and_threads_and_leaves_nothing(tmp_path):
    code = "import sys\nfrom defectnet.files import locked\nwith locked(sys.argv[1], 'x'):\n    print('in')\n"

    def other() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True)

    with locked(tmp_path / "x", "testing"):
        assert "another process is at work on" in other().stderr
        with (
            pytest.raises(ConfigError, match=r"at work on .*x \(testing again\)"),
            locked(tmp_path / "x", "testing again"),
        ):
            pass
    assert other().stdout == "in\n"
    assert list(tmp_path.iterdir()) == []


def test_commands_into_one_place_say_that_it_is_taken(tmp_path, capsys):
    hosts, potential = write_hosts(tmp_path / "hosts.json", 2), write_morse_nep(tmp_path / "morse.txt")
    lab, sets, packs, mine = write_lab(tmp_path / "lab"), tmp_path / "sets", tmp_path / "packs", tmp_path / "mine"
    simulate = ["simulate", "--hosts", hosts, "--potential", potential, "--out", sets, "--spectra-per-host", 1]
    simulate += ["--atoms", "13-19"]
    make = ["host", "make", "--structure", hosts, "--dopants", "Ga", "--potential", potential, "--out", packs]
    for held, words in {
        sets / "shards-0-1": simulate,
        sets / "shards-0-7": [*simulate, "--shards", "0"],
        packs / f"layered-{PAIRS[0]}": make,
        mine: ["finetune", "--data", lab, "--out", mine, "--checkpoint", "defectnet-small"],
    }.items():
        with locked(held, "testing"), pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        *_, said = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2
        assert said.startswith("defectnet: another process is at work on ")


# Small things


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply|recursion"),
        ('{"a": NaN}', "NaN is not a number of JSON"),
        ("{", "Expecting property name"),
        ("\udcff", "decode"),
    ],
)
def test_json_that_is_none_is_one_error(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match="No such file"):
        read_json(tmp_path / "absent.json")


def test_json_is_read_up_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    (tmp_path / "x.json").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(ValueError, match="15 bytes, 10 at most"):
        read_json(tmp_path / "x.json")


def test_names_of_files():
    assert all(is_file_name(name) for name in ("a", "mp-1", "Si.diamond", "a b", "..."))
    assert not any(is_file_name(name) for name in ("", ".", "..", "a/b", "../a", "/a", "a\\b", "a\0", "a\n", "x" * 200))
