"""Malformed packs, dopant lists, settings and structures: one clear error each, that names what is wrong, and a fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from safetensors.torch import load_file, save_file

from defectnet.crystal.host import make_host
from defectnet.crystal.hosts import Host, host_from_atoms
from defectnet.crystal.make import MakeSettings, choose_dopants, make_packs
from defectnet.crystal.pack import HostPack
from defectnet.crystal.structures import read_structure
from defectnet.errors import DefectNetError, FormulaError, SimulationError
from defectnet.files import file_sha256
from defectnet.potentials.folder import bundled_potentials
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import load_potential
from host_models import host_of, model, nep, single
from make_potential import write_morse_nep

SETTINGS = MakeSettings(potential="defectnet-nep", atoms=16)


def check(error, match: str, names: str = "", kind: type[DefectNetError] = SimulationError) -> None:
    """The error says what, names the file or the field, and gives a way out, all in one line."""
    assert type(error.value) is kind
    text = str(error.value)
    assert names in text
    assert error.value.fix
    assert "\n" not in text
    assert error.match(match)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A pack of gallium arsenide with indium and nitrogen, made by hand."""
    folder = tmp_path_factory.mktemp("sound") / "GaAs"
    HostPack(model("GaAs"), {("In", 0): single("GaAs", "In", "Ga"), ("N", 1): single("GaAs", "N", "As")}).save(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "GaAs"))


Damage = Callable[[Path], Any]


def text(content: str | bytes) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "config.json").write_bytes(data)


def config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(folder):
        path = folder / "config.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))

    return damage


def field(*keys: str | int, value: Any) -> Damage:
    def change(found):
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    return config(change)


def without(*keys: str | int) -> Damage:
    def change(found):
        for key in keys[:-1]:
            found = found[key]
        del found[keys[-1]]

    return config(change)


def sign(folder: Path) -> None:
    field("weights_sha256", value=file_sha256(folder / "model.safetensors"))(folder)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    """Change tensors, and sign them again."""

    def damage(folder):
        path = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        sign(folder)

    return damage


def tensor(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return weights(lambda tensors: tensors.update({name: value(tensors[name])}))


def put(name: str, place: Any, value: float) -> Damage:
    return weights(lambda tensors: tensors[name].__setitem__(place, value))


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_and_sign(folder: Path) -> None:
    cut(folder)
    sign(folder)


def one_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def potential_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(bundled_potentials()["defectnet-nep"], folder)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


QUARTER = torch.tensor([[[0, -1, 0], [1, 0, 0], [0, 0, 1]]], dtype=torch.int8)
"""In coordinates of the primitive cell of zincblende no rotation of the crystal."""

PACKS: dict[str, tuple[Damage, str]] = {
    "empty folder": (emptied, r"holds no config\.json"),
    "a file in its place": (file_in_its_place, "there is no such folder"),
    "nothing there": (shutil.rmtree, "there is no such folder"),
    "a potential's folder": (potential_in_its_place, "describes a student, not a host"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is missing"),
    "truncated weights": (cut, r"model\.safetensors is truncated"),
    "truncated weights, right hash": (cut_and_sign, "holds no tensors"),
    "a changed byte": (one_byte, "is truncated, changed, or of another folder"),
    "config is empty": (text(""), "is not valid JSON"),
    "config is no JSON": (text("{"), "is not valid JSON"),
    "config is binary": (text(bytes(range(256))), "is not valid JSON"),
    "config is a list": (text("[]"), "holds a list, not an object"),
    "config is nested too deep": (text("[" * 100_000), "is not valid JSON"),
    "config is nested too deep inside": (text('{"a":' * 100_000), "is not valid JSON"),
    "config is a number": (text("3"), "holds a int, not an object"),
    "newer schema": (field("schema_version", value=2), "has schema version 2.*Upgrade defectnet"),
    "older schema": (field("schema_version", value=0), "has schema version 0"),
    "schema is a text": (field("schema_version", value="1"), "schema_version is missing or no int"),
    "schema is true": (field("schema_version", value=True), "schema_version is missing or no int"),
    "another architecture": (field("architecture", value="nequix"), "describes a nequix, not a host"),
    "architecture is a list": (field("architecture", value=["host"]), "not a host"),
    "no id": (without("id"), "id is missing or no str"),
    "no potential": (without("potential_sha256"), "potential_sha256 is missing or no str"),
    "no form": (without("form"), "form is missing or no dict"),
    "no table": (without("substitutions"), "substitutions is missing or no list"),
    "table is an object": (field("substitutions", value={}), "substitutions is missing or no list"),
    "energy is a text": (field("energy_ev", value="low"), "energy_ev is missing or no float"),
    "energy is NaN": (field("energy_ev", value=float("nan")), "config.json is not valid JSON .NaN is not a number"),
    "settings are a list": (field("made_with", value=[]), "made_with is no object"),
    "a row is a text": (field("substitutions", 0, value="In"), r"substitutions\[0\]: dopant is missing"),
    "a row without a site": (without("substitutions", 1, "site"), r"substitutions\[1\]: site is missing or no int"),
    "site is a text": (field("substitutions", 0, "site", value="0"), r"substitutions\[0\]: site is missing or no int"),
    "site is true": (field("substitutions", 0, "site", value=True), r"site is missing or no int"),
    "site out of range": (field("substitutions", 0, "site", value=2), "site 2 is not in the host"),
    "site below zero": (field("substitutions", 0, "site", value=-1), "site -1 is not in the host"),
    "unknown element": (
        field("substitutions", 0, "dopant", value="Xx"),
        r"substitutions\[0\] names an unknown element",
    ),
    "volume is infinite": (
        field("substitutions", 0, "volume_angstrom3", value=float("inf")),
        "config.json is not valid JSON .Infinity is not a number",
    ),
    "replaces another": (field("substitutions", 0, "replaces", value="As"), "In on site 0: there is no As on it"),
    "orientations that cannot be": (field("substitutions", 0, "orientations", value=7), "has no 7 orientations"),
    "no orientation": (field("substitutions", 0, "orientations", value=0), "has no 0 orientations"),
    "the same twice": (
        config(lambda c: c["substitutions"][1].update(c["substitutions"][0])),
        "In on site 0 comes twice",
    ),
    "made and failed": (
        field("failures", value=[{"dopant": "In", "site": 0, "reason": "x"}]),
        "In on site 0 comes twice",
    ),
    "a row too few": (config(lambda c: c["substitutions"].pop()), "numbers of atoms or substitutions differ"),
    "a failure without a reason": (field("failures", value=[{"dopant": "Al", "site": 0}]), r"failures\[0\]: reason"),
    "a failure that is a text": (field("failures", value=["Al"]), r"failures\[0\]: dopant is missing"),
    "a failure elsewhere": (
        field("failures", value=[{"dopant": "Al", "site": 9, "reason": "x"}]),
        "failures: site 9 is not in the host",
    ),
    "supercell is missing": (field("form", value={}), r"form\.supercell is no matrix"),
    "supercell is a number": (field("form", "supercell", value=2), r"form\.supercell is no matrix"),
    "supercell of two": (field("form", "supercell", value=[[1, 0], [0, 1]]), r"form\.supercell is no matrix"),
    "supercell of fractions": (
        field("form", "supercell", value=[[1.5, 0, 0], [0, 1, 0], [0, 0, 1]]),
        r"form\.supercell is no matrix",
    ),
    "supercell of 1e9": (
        field("form", "supercell", value=[[10**9, 0, 0], [0, 1, 0], [0, 0, 1]]),
        r"form\.supercell has no believable size",
    ),
    "supercell of 1e30": (
        field("form", "supercell", value=[[10**30, 0, 0], [0, 1, 0], [0, 0, 1]]),
        r"form\.supercell has no believable size",
    ),
    "supercell of too many": (
        field("form", "supercell", value=[[50, 0, 0], [0, 50, 0], [0, 0, 1]]),
        r"form\.supercell has no believable size",
    ),
    "flat supercell": (
        field("form", "supercell", value=[[1, 1, 0], [1, 1, 0], [0, 0, 1]]),
        r"form\.supercell has no believable size",
    ),
    "left-handed supercell": (
        field("form", "supercell", value=[[-2, 0, 0], [0, 2, 0], [0, 0, 2]]),
        r"form\.supercell has no believable size",
    ),
    "a tensor too few": (weights(lambda t: t.pop("sizes")), "does not hold what config.json says .tensors are"),
    "a tensor too many": (weights(lambda t: t.update(extra=torch.zeros(1))), "does not hold what config.json says"),
    "cell of another shape": (tensor("cell", lambda t: t[:2]), r"cell is torch\.float64 of shape \(2, 3\)"),
    "blocks in single precision": (tensor("blocks", torch.Tensor.float), r"blocks is torch\.float32"),
    "blocks with NaN": (put("blocks", (0, 0, 0, 0), float("nan")), "blocks holds NaN or infinity"),
    "host with infinity": (put("host_blocks", (0, 0, 0, 0), float("inf")), "host_blocks holds NaN or infinity"),
    "cell with NaN": (put("cell", (0, 0), float("nan")), "cell holds NaN or infinity"),
    "cell without volume": (tensor("cell", torch.zeros_like), "the cell has no volume"),
    "no atoms": (
        weights(lambda t: t.update(numbers=t["numbers"][:0], frac=t["frac"][:0])),
        "numbers are not those of known elements",
    ),
    "an element of number 0": (put("numbers", 0, 0), "numbers are not those of known elements"),
    "a noble gas": (put("numbers", 0, 54), "numbers are not those of known elements"),
    "positions too few": (tensor("frac", lambda t: t[:1]), "numbers of atoms or substitutions differ"),
    "atoms on top of each other": (put("frac", 1, 0.0), "a symmetry that the host has not"),
    "another host's elements": (weights(lambda t: t["numbers"].copy_(t["numbers"].flip(0))), "there is no Ga on it"),
    "host pairs of no atom": (put("host_pairs", (0, 4), 2), "host_pairs names atoms that are not there"),
    "pairs of no atom": (put("pairs", (0, 0), -1), "pairs names atoms that are not there"),
    "pairs that reach too far": (put("pairs", (0, 1), 100), "force constants reach too far"),
    "pairs and blocks differ": (tensor("pairs", lambda t: t[1:]), "lengths of the substitutions do not add up"),
    "far pairs of no atom": (
        tensor("far_pairs", lambda t: torch.cat([t[:-1], t[-1:] + 100])),
        "names atoms that are not",
    ),
    "host pairs and blocks differ": (
        tensor("host_pairs", lambda t: t[1:]),
        "host_pairs and host_blocks differ in number",
    ),
    "sizes below zero": (put("sizes", (0, 0), -1), "numbers of atoms or substitutions differ"),
    "sizes that do not add up": (put("sizes", (0, 0), 1), "lengths of the substitutions do not add up"),
    "no rotation": (
        weights(lambda t: t.update(sizes=t["sizes"] - torch.tensor([[0, t["sizes"][0, 1], 0], [0, 0, 0]]).int())),
        "numbers of atoms or substitutions differ",
    ),
    "a rotation that the host does not have": (
        tensor("rotations", lambda t: torch.cat([QUARTER, t[1:]])),
        "a substitution has a symmetry that the host has not",
    ),
}


@pytest.mark.parametrize("case", PACKS)
def test_packs(case, folder):
    damage, match = PACKS[case]
    HostPack.load(folder)  # sound before
    damage(folder)
    with pytest.raises(SimulationError) as error:
        HostPack.load(folder)
    check(error, match, str(folder))


@pytest.mark.parametrize("source", [None, 3, ["GaAs"]])
def test_what_is_no_folder(source):
    with pytest.raises(SimulationError) as error:
        HostPack.load(source)
    check(error, "a host pack is a folder, not a", type(source).__name__)


def test_a_pack_is_no_potential(folder):
    with pytest.raises(SimulationError) as error:
        load_potential(folder)
    check(error, "describes a host, not a student", str(folder))


def test_nothing_is_written_where_something_else_is(folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SimulationError) as error:
        HostPack(model("GaAs"), {}).save(folder)
    check(error, "exists and holds other files", str(folder))
    assert (folder / "notes.txt").read_text() == "mine"


# -- dopants and settings ----------------------------------------------------------------------------------------------

DOPANTS: dict[str, tuple[Any, str, type[DefectNetError]]] = {
    "unknown element": (["Xx"], "dopants: 'Xx' is not an element", FormulaError),
    "a noble gas": (["Xe@Ga"], "dopants: 'Xe' is not an element", FormulaError),
    "lower case": (["al"], "Did you mean Al", FormulaError),
    "unknown site": (["Al@Xx"], "dopant 'Al@Xx': Xx is not in GaAs", SimulationError),
    "a site that is not there": (["Al@Mg"], "dopant 'Al@Mg': Mg is not in GaAs", SimulationError),
    "no site": (["Al@"], "dopant 'Al@': nothing is not in GaAs", SimulationError),
    "no dopant": (["@Ga"], "dopants: '' is not an element", FormulaError),
    "nothing but the sign": (["@"], "dopant '@': nothing is not in GaAs", SimulationError),
    "empty text": ([""], "dopants: '' is not an element", FormulaError),
    "two signs": (["Al@Ga@As"], "Ga@As is not in GaAs", SimulationError),
    "the host's own element": (["Ga@As"], "dopant 'Ga@As' is in GaAs already", SimulationError),
    "the second is wrong": (["Al", "Xx"], "'Xx' is not an element", FormulaError),
    "empty list": ([], "no dopants are named", SimulationError),
    "a text for a list": ("Al", "dopants are 'Al'", SimulationError),
    "numbers": ([13], r"dopants are \[13\]", SimulationError),
    "nothing": ([None], r"dopants are \[None\]", SimulationError),
}


@pytest.mark.parametrize("case", DOPANTS)
def test_dopants(case):
    wanted, match, kind = DOPANTS[case]
    with pytest.raises(DefectNetError) as error:
        choose_dopants(host_of("GaAs"), wanted)
    check(error, match, kind=kind)


BAD_SETTINGS: list[tuple[str, Any]] = [
    ("atoms", -1),
    ("atoms", 10**6),
    ("atoms", 20.5),
    ("atoms", "80"),
    ("atoms", True),
    ("starts", -1),
    ("starts", 1.5),
    ("starts", None),
    ("radius", 0.0),
    ("radius", -8.0),
    ("radius", float("nan")),
    ("radius", float("inf")),
    ("radius", "8"),
    ("keep", -0.1),
    ("keep", float("nan")),
    ("keep", 100.0),
    ("volume_step", -0.03),
    ("volume_step", 1.0),
    ("volume_step", float("nan")),
    ("volume_step", [0.03]),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_settings(name, value):
    with pytest.raises(SimulationError) as error:
        MakeSettings(**{name: value})
    check(error, "is ", f"{name} is {value!r}")


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", None, True])
def test_workers(workers, tmp_path):
    with pytest.raises(SimulationError) as error:
        make_packs([(host_of("GaAs"), [("In", "Ga")], tmp_path / "x")], SETTINGS, workers=workers)
    check(error, "workers is", repr(workers))
    assert not list(tmp_path.iterdir())


# -- making ------------------------------------------------------------------------------------------------------------


def refused(folder: Path, match: str, host: Host | None = None, **settings: Any) -> None:
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    changed = MakeSettings(**({"potential": "defectnet-nep", "atoms": 16} | settings))
    with pytest.raises(SimulationError) as error:
        make_packs([(host or host_of("GaAs"), [("In", "Ga")], folder)], changed)
    check(error, match, str(folder.parent))
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "GaAs"
    assert make_packs([(host_of("GaAs"), [("In", "Ga")], folder)], SETTINGS) == {}
    return folder


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"atoms": 54}, "made with another atoms .16 there, 54 here"),
        ({"keep": 0.02}, "made with another keep"),
        ({"volume_step": 0.0}, "made with another volume_step"),
        ({"starts": 5}, "made with another starts"),
    ],
)
def test_a_pack_of_other_settings(finished, settings, match):
    refused(finished, match, **settings)


def test_a_pack_of_another_host(finished):
    refused(finished, "is the pack of GaAs with defectnet-nep", host_of("MgO"))
    stretched = host_from_atoms(bulk("GaAs", "zincblende", a=5.9), "GaAs")
    refused(finished, "made with another structure_sha256", stretched)


def test_a_pack_of_another_potential(finished, tmp_path):
    other = write_morse_nep(tmp_path / "morse.txt")
    refused(finished, "is the pack of GaAs with defectnet-nep", potential=str(other))


def test_parts_of_other_settings(tmp_path):
    parts = tmp_path / ".GaAs.parts"
    parts.mkdir()
    for content, match in (('{"atoms": 54}', "was made with another"), ("{", "is not valid JSON"), ("[]", "another")):
        (parts / "settings.json").write_text(content)
        refused(tmp_path / "GaAs", match)


def test_folders_of_something_else(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "file is a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x")
    refused(tmp_path / "full", r"holds no config\.json")
    jobs = [(host_of(name), [("In", "Ga")], tmp_path / "same") for name in ("GaAs", "MgO")]
    with pytest.raises(SimulationError) as error:
        make_packs(jobs, SETTINGS)
    check(error, "is named for two packs", str(tmp_path / "same"))


def test_no_such_potential(tmp_path):
    refused_name = MakeSettings(potential="nowhere", atoms=16)
    with pytest.raises(SimulationError) as error:
        make_packs([(host_of("GaAs"), [("In", "Ga")], tmp_path / "x")], refused_name)
    check(error, "no potential is called 'nowhere'")


# -- hosts -------------------------------------------------------------------------------------------------------------


def test_an_unstable_host(tmp_path):
    with pytest.raises(SimulationError) as error:
        model("SiO2-quartz").check_stable()
    check(error, r"host SiO2-quartz: defectnet-nep finds it unstable .*% of its modes are imaginary")
    failed = make_packs([(host_of("SiO2-quartz"), [("Ge", "Si")], tmp_path / "x")], SETTINGS)
    assert "finds it unstable" in failed["SiO2-quartz"]
    assert "\n" not in failed["SiO2-quartz"]


def test_an_element_that_the_potential_does_not_know(tmp_path):
    path = write_morse_nep(tmp_path / "narrow.txt", ("Ga", "Al"))
    with pytest.raises(SimulationError) as error:
        make_host(load_potential(path), host_of("GaAs"))
    check(error, "does not know the element with Z = 33", "narrow")
    failed = make_packs([(host_of("GaAs"), [("Al", "Ga")], tmp_path / "x")], MakeSettings(potential=str(path)))
    assert "does not know the element with Z = 33" in failed["GaAs"]


def test_a_dopant_that_the_potential_does_not_know_is_a_failure(tmp_path):
    path = write_morse_nep(tmp_path / "narrow.txt", ("Al", "Cu"))
    crystal = host_from_atoms(bulk("Cu", a=3.6), "Cu")
    settings = MakeSettings(potential=str(path), atoms=8)
    assert make_packs([(crystal, [("Au", "Cu"), ("Al", "Cu")], tmp_path / "Cu")], settings) == {}
    failures = HostPack.load(tmp_path / "Cu").failures
    assert any(one.dopant == "Au" and "does not know the element with Z = 79" in one.reason for one in failures)


HOSTS: dict[str, tuple[Callable[[], Any], str]] = {
    "far too dense": (
        lambda: bulk("GaAs", "zincblende", a=2.0),
        "changes its volume|come to rest|hold together|no crystal is so dense",
    ),
    "far too thin": (
        lambda: bulk("GaAs", "zincblende", a=13.0),
        "host GaAs: phonons reach [01] meV|an isolated molecule|is a layer",
    ),
}


@pytest.mark.parametrize("case", HOSTS)
def test_hosts_that_are_no_crystals(case):
    make, match = HOSTS[case]
    with pytest.raises(SimulationError) as error:
        make_host(nep(), host_from_atoms(make(), "GaAs"), atoms=16).check_stable()
    check(error, match, "GaAs")
    with pytest.raises(SimulationError) as error:
        read_structure(make())
    check(error, match, "structure")


def test_atoms_on_top_of_each_other():
    for numbers, match in (
        ([31, 33], "host GaAs does not hold together"),
        ([31, 31], "symmetry of the crystal cannot be"),
    ):
        crystal = Crystal(np.array(numbers), 4.0 * np.eye(3), np.zeros((2, 3)))
        with pytest.raises(SimulationError) as error:
            make_host(nep(), Host("GaAs", "GaAs", crystal))
        check(error, match)


@pytest.mark.parametrize("what", ["cell", "positions"])
def test_structures_with_nan(what):
    atoms = bulk("GaAs", "zincblende", a=5.65)
    getattr(atoms, what)[1, 1] = np.nan
    with pytest.raises(SimulationError) as error:
        make_host(
            nep(), Host("GaAs", "GaAs", Crystal(atoms.numbers.astype(np.int64), atoms.cell.array, atoms.positions))
        )
    assert error.value.fix
