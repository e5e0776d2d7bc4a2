"""Every broken potential, host or argument of `defectnet simulate` gives one clear error that names it."""

from __future__ import annotations

import json
import lzma
import re

import ase.io
import numpy as np
import pytest
from ase import Atoms

from crystals import entry, layered, write_hosts
from defectnet import cli
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import MANIFEST
from defectnet.errors import SimulationError
from defectnet.potentials.nep_file import read_nep
from defectnet.potentials.potential import load_potential
from defectnet.simulate.rows import SimulationSettings, atom_range
from defectnet.simulate.runner import Tools, identity_of, write_manifest
from make_potential import write_morse_nep, write_tiny_nep


def line(number, text):
    """A change of one line of a potential."""

    def change(lines):
        return [*lines[:number], text, *lines[number + 1 :]]

    return change


# The sound file starts: nep4_zbl, zbl, cutoff, n_max, basis_size, l_max, ANN, then numbers.
POTENTIALS = {
    "empty": (lambda lines: [], "no kind of potential"),
    "truncated in the numbers": (lambda lines: lines[: len(lines) // 2], r"numbers follow the header, \d+ are needed"),
    "truncated in the header": (lambda lines: lines[:4], "expected 'basis_size', found 'the end'"),
    "one number too many": (lambda lines: [*lines, "0.5"], "numbers follow the header"),
    "other potential": (line(0, "tersoff_1989 1 Si"), "'tersoff_1989' is no kind of potential"),
    "temperature model": (line(0, "nep4_temperature 2 Al Cu"), "'nep4_temperature' is no kind of potential"),
    "prose": (lambda lines: ["Lorem ipsum", "dolor sit amet"], "'Lorem' is no kind of potential"),
    "wrong keyword": (line(3, "nmax 4 4"), "line 4: expected 'n_max', found 'nmax'"),
    "word for a number": (line(2, "cutoff five 4"), "line 3: 'cutoff' is followed by something that is no number"),
    "too few values": (line(3, "n_max 4"), "line 4: 'n_max' has 1 values"),
    "too many values": (line(4, "basis_size 8 8 8"), "line 5: 'basis_size' has 3 values"),
    "species do not count": (line(0, "nep4_zbl 3 Al Cu"), "line 1: the number of species"),
    "no species": (line(0, "nep4_zbl 0"), "line 1: the number of species"),
    "unknown element": (line(0, "nep4_zbl 2 Al Xx"), "line 1: 'Xx' is no element"),
    "element twice": (line(0, "nep4_zbl 2 Al Al"), "line 1: .*twice"),
    "flexible ZBL": (line(1, "zbl 0 0"), "line 2: a flexible ZBL"),
    "ZBL radii out of order": (line(1, "zbl 2 1"), "line 2: a flexible ZBL"),
    "ZBL of NaN": (line(1, "zbl nan 2"), "line 2:"),
    "cut-off below zero": (line(2, "cutoff -5 4"), "line 3:"),
    "cut-off of NaN": (line(2, "cutoff nan nan"), "line 3:"),
    "negative n_max": (line(3, "n_max -1 4"), "line 4:"),
    "n_max of NaN": (line(3, "n_max nan 4"), "line 4:"),
    "half a basis function": (line(4, "basis_size 8.5 8"), "line 5:"),
    "huge degree": (line(5, "l_max 9 2 1"), "line 6: l_max beyond 8"),
    "unknown invariant": (line(5, "l_max 4 3 1"), "line 6: l_max beyond 8, or invariants"),
    "no neurons": (line(6, "ANN 0 0"), "line 7:"),
    "a number that is none": (line(40, "0.1.2"), "after the header is no number"),
    "NaN": (line(40, "nan"), "a parameter is NaN or infinite"),
    "infinity": (line(40, "-inf"), "a parameter is NaN or infinite"),
}


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return write_tiny_nep(tmp_path_factory.mktemp("sound") / "nep.txt", ("Al", "Cu"), seed=0).read_text().splitlines()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Sound hosts and a sound potential."""
    folder = tmp_path_factory.mktemp("inputs")
    return write_hosts(folder / "hosts.json", 2), write_morse_nep(folder / "morse.txt")


@pytest.fixture
def command(inputs, tmp_path, capsys):
    """Run `defectnet simulate` with some options replaced; returns its one line on stderr."""

    def run(**options):
        words = {"hosts": inputs[0], "potential": inputs[1], "out": tmp_path / "out", "spectra-per-host": 1}
        words |= {"atoms": "13-19"} | {name.replace("_", "-"): value for name, value in options.items()}
        with pytest.raises(SystemExit) as ended:
            cli.main(["simulate", *(word for name, value in words.items() for word in (f"--{name}", str(value)))])
        captured = capsys.readouterr()
        assert ended.value.code == 2
        assert captured.out == ""
        (only,) = captured.err.splitlines()
        assert only.startswith("defectnet: ")
        return only

    return run


def check(error, match, names):
    """The error says what, names the file or the field, and gives a way out, all in one line."""
    assert type(error.value) is SimulationError
    text = str(error.value)
    assert names in text
    assert error.value.fix
    assert "\n" not in text
    assert error.match(match)


@pytest.mark.parametrize("case", POTENTIALS)
def test_potentials(case, lines, tmp_path):
    change, match = POTENTIALS[case]
    path = tmp_path / "broken.txt"
    path.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(SimulationError) as error:
        read_nep(path)
    check(error, match, str(path))


def test_potentials_that_are_no_text(tmp_path):
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(SimulationError, match="is no text file"):
        load_potential(tmp_path / "binary.txt")
    with pytest.raises(SimulationError, match=r"absent\.txt does not exist"):
        load_potential(tmp_path / "absent.txt")
    with pytest.raises(SimulationError, match=r"holds no config\.json"):
        load_potential(tmp_path)


def changed(**fields):
    sound = entry(layered("AlCu"), "a")
    return json.dumps([{name: value for name, value in (sound | fields).items() if value is not None}])


GOOD = entry(layered("AlCu"), "a")
HOSTS = {
    "not JSON": ("hosts.json", "[{", "is no readable JSON"),
    "not xz": ("hosts.json.xz", "[]", "is no readable JSON"),
    "empty list": ("hosts.json", "[]", "holds no structure"),
    "no id": ("hosts.json", changed(id=None), "entry 0 lacks a field"),
    "no cell": ("hosts.json", changed(cell=None), "entry 0 lacks a field"),
    "not an object": ("hosts.json", '["AlCu"]', "entry 0 lacks a field"),
    "second entry": ("hosts.json", json.dumps([GOOD, {"id": "b"}]), "entry 1 lacks a field"),
    "matrix for a cell": ("hosts.json", changed(cell=np.eye(3).tolist()), r"entry 0 \(a\) is no structure"),
    "five numbers of a cell": ("hosts.json", changed(cell=[3, 3, 3, 90, 90]), r"entry 0 \(a\) is no structure"),
    "impossible angles": ("hosts.json", changed(cell=[3, 3, 3, 170, 20, 90]), r"entry 0 \(a\)"),
    "NaN in the cell": ("hosts.json", changed(cell=[float("nan"), 3, 3, 90, 90, 90]), r"entry 0 \(a\)"),
    "words for positions": ("hosts.json", changed(frac=[["x", 0, 0], [0, 0, 0]]), r"entry 0 \(a\) is no structure"),
    "NaN in positions": ("hosts.json", changed(frac=[[float("nan"), 0, 0], [0, 0, 0.5]]), "is empty or holds NaN"),
    "an atom too few": ("hosts.json", changed(frac=[[0, 0, 0]]), r"entry 0 \(a\) is no structure"),
    "no atoms": ("hosts.json", changed(species=[], frac=[]), r"entry 0 \(a\)"),
    "no element": ("hosts.json", changed(species=["Al", "Xq"]), r"entry 0 \(a\) is no structure"),
    "outside the vocabulary": ("hosts.json", changed(species=["Al", "Xe"]), "holds Xe, which is outside"),
    "flat cell": ("hosts.json", changed(cell=[3, 3, 0.0, 90, 90, 90]), r"entry 0 \(a\)"),
    "same id twice": ("hosts.json", json.dumps([GOOD, GOOD]), "the id 'a' twice"),
    "id with a slash": ("hosts.json", changed(id="a/b"), "has the id 'a/b'"),
    "empty id": ("hosts.json", changed(id=""), "has the id ''"),
    "JSON of something else": ("hosts.json", '{"a": 1}', "ase cannot read"),
    "no structure file": ("POSCAR", "Lorem ipsum", "ase cannot read"),
    "unknown format": ("notes.txt", "Lorem ipsum", "ase cannot read"),
}


@pytest.mark.parametrize("case", HOSTS)
def test_hosts(case, tmp_path):
    name, text, match = HOSTS[case]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(SimulationError) as error:
        read_hosts(path)
    check(error, match, str(path))


def test_hosts_that_are_not_there_or_not_periodic(tmp_path):
    with pytest.raises(SimulationError, match=r"absent\.json does not exist"):
        read_hosts(tmp_path / "absent.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SimulationError, match="holds no structure"):
        read_hosts(tmp_path / "empty")
    ase.io.write(tmp_path / "molecule.xyz", Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]]))
    with pytest.raises(SimulationError, match="has no three-dimensional cell"):
        read_hosts(tmp_path / "molecule.xyz")
    slab = Atoms("Al", cell=[3, 3, 0], pbc=[True, True, False])
    ase.io.write(tmp_path / "slab.extxyz", slab)
    with pytest.raises(SimulationError, match="has no three-dimensional cell"):
        read_hosts(tmp_path / "slab.extxyz")
    whole = lzma.compress(b"[]" * 1000)
    (tmp_path / "cut.json.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SimulationError, match="is no readable JSON"):
        read_hosts(tmp_path / "cut.json.xz")


ARGUMENTS = {
    "atoms, a word": ({"atoms": "abc"}, "atoms: 'abc' is no number and no range"),
    "atoms, three parts": ({"atoms": "1-2-3"}, "atoms: '1-2-3' is no number and no range"),
    "atoms, backwards": ({"atoms": "250-100"}, "atoms: 250 to 100 is no range"),
    "atoms, too few": ({"atoms": "2"}, "atoms: 2 to 2 is no range"),
    "atoms, too many": ({"atoms": "90000"}, "is no range within 8 to 5000"),
    "no workers": ({"workers": 0}, "workers is 0"),
    "no spectra": ({"spectra_per_host": 0}, "spectra_per_host is 0"),
    "seed below zero": ({"seed": -1}, "seed is -1"),
    "no such device": ({"device": "abacus"}, "device.*abacus"),
    "absent device": ({"device": "cuda:99"}, "device.*cuda:99"),
    "no such hosts": ({"hosts": "nowhere.json"}, r"nowhere\.json does not exist"),
    "no such potential": ({"potential": "nowhere.txt"}, r"nowhere\.txt does not exist"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(case, command, tmp_path):
    options, match = ARGUMENTS[case]
    assert re.search(match, command(**options))
    assert not (tmp_path / "out").exists()  # nothing is left behind


def test_settings():
    for values, match in (
        ({"seed": -1}, "seed is -1"),
        ({"spectra_per_host": 0}, "spectra_per_host is 0"),
        ({"smallest": 4}, "atoms: 4 to 250"),
        ({"smallest": 30, "largest": 20}, "atoms: 30 to 20"),
    ):
        with pytest.raises(SimulationError, match=match):
            SimulationSettings(**values)
    with pytest.raises(SimulationError, match="is no number and no range"):
        atom_range("")


# -- the folder --------------------------------------------------------------------------------------------------------


def test_unknown_elements_are_found_before_the_work(command, lines, tmp_path):
    path = tmp_path / "narrow.txt"
    path.write_text("\n".join(lines) + "\n")
    assert "does not know the element with Z = 28" in command(potential=path)  # NiAl is the second host


@pytest.mark.parametrize("text", ["{}", '{"schema_version": 99}', "[]", "not JSON", ""])
def test_folder_of_another_data_set(text, command, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.json").write_text(text)
    assert str(out / "dataset.json") in command()
    assert [path.name for path in out.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(
    ("option", "difference"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"atoms": "14-20"}, "smallest is 13 there and 14 here"),
        ({"spectra_per_host": 2}, "spectra_per_host is 1 there and 2 here"),
    ],
)
def test_other_arguments_into_the_same_folder(option, difference, inputs, command, tmp_path):
    settings = SimulationSettings(spectra_per_host=1, smallest=13, largest=19)
    path = tmp_path / "out" / MANIFEST
    path.parent.mkdir()
    tools = Tools(load_potential(inputs[1]), None)
    write_manifest(path.parent, identity_of(read_hosts(inputs[0]), tools, settings))
    manifest = json.loads(path.read_text())
    found = command(**option)
    assert f"describes another data set ({difference})" in found
    assert json.loads(path.read_text()) == manifest


def test_shards_of_something_else(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-00007.parquet").write_bytes(b"PAR1")
    assert "shard-00007.parquet does not belong to this data set" in command()


def test_out_is_a_file(command, tmp_path):
    (tmp_path / "out").write_text("here")
    assert str(tmp_path / "out") in command()
