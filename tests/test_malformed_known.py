"""Questions about a known crystal that cannot be answered: one clear error each, before anything long is computed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from defectnet import cli
from defectnet.crystal.make import MakeSettings
from defectnet.crystal.pack import FailedSubstitution, HostPack
from defectnet.errors import DefectNetError
from defectnet.inference import packs as finding
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.inference.packs import find_pack_for, in_time
from packs import gallium_arsenide
from spectra import dos_of, grid, table, write_table

GAAS = bulk("GaAs", "zincblende", 5.65)

STRUCTURES = {
    "GaAs": GAAS,
    "rocksalt": bulk("GaAs", "rocksalt", 5.4),
    "wurtzite": bulk("GaAs", "wurtzite", 3.99, 6.57),
    "stretched": bulk("GaAs", "zincblende", 1.05 * 5.65),
    "pressed": bulk("GaAs", "zincblende", 0.95 * 5.65),
    "GaP": bulk("GaP", "zincblende", 5.45),
    "Si": bulk("Si", "diamond", 5.43),
    "swapped": bulk("AsGa", "zincblende", 5.65),
    "two-fold": GAAS.repeat((2, 1, 1)),
    "NpN": bulk("NpN", "rocksalt", 4.9),
    "overlapping": Atoms("GaAs", scaled_positions=[[0, 0, 0], [0.01, 0, 0]], cell=[4, 4, 4], pbc=True),
    "slab": Atoms("GaAs", scaled_positions=[[0, 0, 0], [0.25, 0.25, 0.25]], cell=[4, 4, 4], pbc=[True, True, False]),
}
DISORDERED = """data_x
_cell_length_a 5.65
_cell_length_b 5.65
_cell_length_c 5.65
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'F -4 3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Ga1 Ga 0 0 0 0.5
In1 In 0 0 0 0.5
As1 As 0.25 0.25 0.25 1.0
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with structures, packs and spectra, good ones and others."""
    folder = tmp_path_factory.mktemp("known")
    for name, atoms in STRUCTURES.items():
        write(folder / f"{name}.extxyz", atoms)
    write(folder / "molecule.xyz", molecule("H2O"))
    (folder / "text.cif").write_text("not a structure", encoding="utf-8")
    (folder / "disordered.cif").write_text(DISORDERED, encoding="utf-8")
    pack = gallium_arsenide()
    pack.save(folder / "pack")
    replace(pack, substitutions={}, failures=(FailedSubstitution("In", 0, "not converged"),)).save(folder / "bare")
    shutil.copytree(folder / "pack", folder / "halved")
    weights = folder / "halved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    write_table(folder / "host.csv", table())
    write_table(folder / "doped.csv", table())
    write_table(folder / "neutron.csv", table(), header="# kind: neutron-weighted\nenergy_meV,dos")
    write_table(folder / "bare.csv", table(), header="")
    energy = grid()
    write_table(folder / "short.csv", np.column_stack([energy, dos_of(energy)])[energy < 25.0])
    return folder


def ask(work: Path, **options: str | None) -> None:
    """Run `identify` in a folder; an option that is None is a switch."""
    chosen = {"host": "host.csv", "doped": "doped.csv", **options}
    words: list[str] = []
    for name, value in chosen.items():
        place = work / str(value)
        words.append("--" + name.replace("_", "-"))
        words += [] if value is None else [str(place) if place.exists() else value]
    cli.main(["identify", *words])


CASES = [
    # The structure and the pack are of two crystals.
    (
        {"structure": "rocksalt.extxyz", "pack": "GaAs"},
        "space group 216 and 2 atoms in the primitive cell, the structure given 225 and 2",
    ),
    ({"structure": "wurtzite.extxyz", "pack": "GaAs"}, "the structure given 186 and 4"),
    ({"structure": "stretched.extxyz", "pack": "GaAs"}, "Check the lattice constants"),
    ({"structure": "pressed.extxyz", "pack": "GaAs"}, "Check the lattice constants"),
    ({"structure": "GaP.extxyz", "pack": "GaAs"}, "is of GaAs, the structure is GaP"),
    ({"structure": "Si.extxyz", "pack": "pack"}, "is of GaAs, the structure is Si"),
    # The formula fits neither.
    ({"formula": "GaP", "pack": "pack"}, "the formula is GaP, the crystal GaAs"),
    ({"formula": "Ga2As", "pack": "pack"}, "the formula is Ga2As, the crystal GaAs"),
    ({"formula": "InAs", "structure": "GaAs.extxyz", "candidates": "Al"}, "the formula is InAs, the crystal GaAs"),
    ({"formula": "Gaz", "pack": "pack"}, "Gaz"),
    # No such pack, or a damaged or empty one.
    ({"pack": "Unobtainium"}, "no host pack is called 'Unobtainium'"),
    ({"pack": "halved"}, "model.safetensors"),
    ({"pack": "bare"}, "there is no candidate (the pack of GaAs holds no substitution)"),
    ({"pack": "bare", "candidates": "In"}, "it could not be made: not converged"),
    # No structure, or one that is no crystal that can be simulated.
    ({"structure": "nowhere.cif"}, "nowhere.cif does not exist"),
    ({"structure": "text.cif"}, "cannot be read"),
    ({"structure": "disordered.cif"}, "disordered.cif"),
    ({"structure": "molecule.xyz"}, "molecule.xyz"),
    ({"structure": "NpN.extxyz"}, "Np"),
    ({"structure": "overlapping.extxyz"}, "overlapping.extxyz"),
    ({"structure": "slab.extxyz"}, "slab.extxyz"),
    # Candidates.
    ({"pack": "pack", "candidates": "Au"}, "does not hold Au (it holds Al@Ga, Al@As, P@As)"),
    ({"pack": "pack", "candidates": "P@Ga"}, "does not hold P@Ga"),
    ({"pack": "pack", "candidates": "Ga"}, "Ga is in GaAs already"),
    ({"pack": "pack", "candidates": "al"}, "Did you mean Al?"),
    ({"pack": "pack", "candidates": " , "}, "there is no candidate"),
    ({"structure": "GaAs.extxyz", "candidates": "Uuo"}, "'Uuo' is not an element"),
    ({"structure": "GaAs.extxyz", "candidates": "Ga"}, "'Ga' is in GaAs already"),
    ({"structure": "GaAs.extxyz", "candidates": "Al@In"}, "In is not in GaAs"),
    # What computes, and for how long.
    ({"structure": "rocksalt.extxyz", "candidates": "Al", "potential": "nequick"}, "nequick"),
    ({"structure": "GaAs.extxyz", "candidates": "Al", "minutes": "-1"}, "minutes is -1"),
    # Spectra.
    ({"pack": "pack", "doped": "neutron.csv"}, "different kinds of DOS"),
    ({"pack": "pack", "doped": "short.csv"}, "below the host's edge"),
    ({"pack": "pack", "doped": "bare.csv"}, "unit"),
    ({"pack": "pack", "kind": "projected"}, "Name one of Ga, As"),
    ({"pack": "pack", "kind": "projected", "element": "Fe"}, "projected on Fe"),
    ({"pack": "pack", "kind": "neutrons"}, "neutrons"),
    ({"pack": "pack", "host": "nowhere.csv"}, "nowhere.csv"),
    # The instrument.
    ({"pack": "pack", "fwhm_mev": "0"}, "the resolution is 0 meV"),
    ({"pack": "pack", "fwhm_mev": "-2"}, "the resolution is -2 meV"),
    ({"pack": "pack", "fwhm_mev": "200"}, "the resolution is 200 meV, the host's edge"),
    ({"pack": "pack", "edge": "-36"}, "the band edge is -36 meV"),
    ({"pack": "pack", "edge": "0"}, "the band edge is 0 meV"),
    ({"pack": "pack", "edge": "400"}, "the host's edge is 400 meV, read as meV; GaAs as computed has"),
    ({"pack": "pack", "sample_atoms": "100"}, "--sample-atoms is 100 (it is of a cell that is simulated)"),
    ({"pack": "pack", "same_potential": None, "sample_atoms": "0"}, "--sample-atoms is 0"),
    ({"pack": "pack", "same_potential": None, "sample_atoms": "-3"}, "--sample-atoms is -3"),
    ({}, "Give --structure, --pack or --formula"),
]


@pytest.mark.parametrize(("options", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_a_question_that_cannot_be_asked_is_one_line(options, message, work, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DEFECTNET_CACHE", str(tmp_path))
    monkeypatch.setattr(KnownCrystal, "__init__", lambda *_, **__: pytest.fail("cells were made"))
    with pytest.raises(SystemExit) as ended:
        ask(work, **options)
    assert ended.value.code == cli.EXIT_ERROR
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("defectnet: ")]
    assert message in line
    assert line.count(". ") >= 1  # what is wrong, and what to do
    assert not shown.out


# -- what is answered in another way, and said -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GaAs", "swapped", "two-fold"])
def test_another_setting_of_the_same_crystal_is_the_same(name, work):
    found, remarks = find_pack_for(work / f"{name}.extxyz", ["Al"])
    assert found.host.formula == "GaAs"
    assert remarks == ("bundled pack GaAs, computed with nequix",)


@pytest.mark.parametrize("name", ["rocksalt", "stretched"])
def test_a_crystal_that_no_pack_is_of_is_computed(name, work, monkeypatch):
    asked = []
    monkeypatch.setattr(finding, "_computed", lambda host, pairs, *_: asked.append((host.formula, pairs)))
    find_pack_for(work / f"{name}.extxyz", ["Al@Ga"])
    assert asked == [("GaAs", [("Al", "Ga")])]


def test_a_candidate_that_no_bundled_pack_holds_is_computed(work, monkeypatch):
    asked = []
    monkeypatch.setattr(finding, "_computed", lambda host, pairs, *_: asked.append(pairs))
    find_pack_for(work / "GaAs.extxyz", ["Al@Ga", "Au@Ga"])
    assert asked == [[("Al", "Ga"), ("Au", "Ga")]]


def test_an_unstable_host_is_said(work, tmp_path, monkeypatch):
    monkeypatch.setenv("DEFECTNET_CACHE", str(tmp_path))
    with pytest.raises(DefectNetError, match="Give another structure or --potential") as error:
        find_pack_for(bulk("NaCl", "zincblende", 4.5), ["K"], potential="defectnet-nep")
    assert "\n" not in str(error.value)


def test_when_time_is_up_the_rest_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("DEFECTNET_CACHE", str(tmp_path))
    monkeypatch.setattr(finding, "MakeSettings", partial(MakeSettings, atoms=16))
    structure = bulk("LiF", "rocksalt", 4.03)
    found, remarks = find_pack_for(structure, ["Na", "K"], potential="defectnet-nep", minutes=0.0)
    left = [name for name in ("Na@Li", "K@Li") if name not in found.dopants]
    assert left
    assert any("left out" in text and all(name in text for name in left) for text in remarks)


def test_candidates_that_were_not_done_in_time_are_not_asked_about():
    pack = gallium_arsenide()
    assert in_time(pack, ["Al", "Au"], 1.0) == ["Al"]
    assert in_time(pack, None, 1.0) is None
    with pytest.raises(DefectNetError, match=r"1 minutes were not enough for any of Au\. Give more --minutes"):
        in_time(pack, ["Au"], 1.0)


def test_the_python_interface_says_the_same(work):
    pack = HostPack.load(work / "pack")
    for wrong in ([], ["Au"], ["al"]):
        with pytest.raises(DefectNetError) as error:
            KnownCrystal(pack, wrong)
        assert error.value.fix
