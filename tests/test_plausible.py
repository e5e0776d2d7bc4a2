"""Which elements are plausible on which sites, the crystals of the zoo, and the order of the force-constant packs."""

import csv
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.data import covalent_radii
from ase.formula import Formula
from ase.neighborlist import neighbor_list
from pymatgen.core import Element

import pack_order
from defectnet.crystal.doping import likeness, split_dopant
from defectnet.crystal.hosts import read_hosts
from defectnet.crystal.plausible import guess_charges, ions, likeness_on_site, plausible_dopants
from defectnet.crystal.structures import read_structure, spacegroup
from defectnet.data.splits import split_of
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from dopings import HELD_OUT, KNOWN, pairs

ROOT = Path(__file__).parents[1]
COUNT = 12


def composed(formula: str) -> Crystal:
    """A crystal of which only the composition counts."""
    numbers = Atoms(formula).numbers.astype(np.int64)
    return Crystal(numbers, 5.0 * np.eye(3), np.zeros((len(numbers), 3)))


def by_likeness(formula: str) -> list[tuple[str, str]]:
    """The ranking by the simulator's likeness, for comparison."""
    inside = tuple(sorted(Formula(formula).count()))
    matrix = likeness(inside)
    best = {symbol: inside[int(matrix[INDEX[symbol]].argmax())] for symbol in VOCABULARY if symbol not in inside}
    ordered = sorted(best, key=lambda symbol: -matrix[INDEX[symbol]].max())
    return [(symbol, best[symbol]) for symbol in ordered[:COUNT]]


def by_chemistry(formula: str) -> list[tuple[str, str]]:
    return [tuple(one.split("@")) for one in plausible_dopants(composed(formula), COUNT)]


def recall(table, method) -> float:
    """Share of the known dopings that are among the first dozen."""
    found = total = 0
    for formula, text in table.items():
        got = method(formula)
        known = pairs(text)
        found += sum(any(dopant == d and site in ("", s) for d, s in got) for dopant, site in known)
        total += len(known)
    return found / total


@pytest.mark.parametrize(("table", "old", "new"), [(KNOWN, 0.56, 0.80), (HELD_OUT, 0.45, 0.70)])
def test_known_dopings_are_found(table, old, new):
    assert recall(table, by_chemistry) > new
    assert recall(table, by_likeness) < old


def test_ions_are_those_of_pymatgen():
    with files("defectnet.crystal").joinpath("ions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["symbol"] for row in rows} == set(VOCABULARY)
    for row in rows:
        element, charge = Element(row["symbol"]), int(row["charge"])
        known = set(element.common_oxidation_states) | set(element.icsd_oxidation_states)
        assert charge in known or charge == element.group - 18
        assert (row["common"] == "1") == (charge in element.common_oxidation_states)
        radii = element.data["Shannon radii"].get(str(charge), {})
        if row["ionic_radius_angstrom"]:
            spins = radii[row["coordination"]].values()
            assert float(row["ionic_radius_angstrom"]) in {spin["ionic_radius"] for spin in spins}
            assert row["coordination"] == "VI" or "VI" not in radii
        else:
            assert not radii


def test_every_known_state_with_a_radius_is_there():
    for symbol, known in ions().items():
        element = Element(symbol)
        states = set(element.common_oxidation_states) | set(element.icsd_oxidation_states)
        with_radius = {q for q in states if q > 0 and str(q) in element.data["Shannon radii"]}
        assert with_radius <= {ion.charge for ion in known}, symbol


@pytest.mark.parametrize(
    ("formula", "charges"),
    [
        ("GaAs", {"Ga": 3, "As": -3}),
        ("PbTe", {"Pb": 2, "Te": -2}),
        ("SrTiO3", {"Sr": 2, "Ti": 4, "O": -2}),
        ("Mg2Si", {"Mg": 2, "Si": -4}),
        ("Cu2O", {"Cu": 1, "O": -2}),
        ("LiFePO4", {"Li": 1, "Fe": 2, "P": 5, "O": -2}),
        ("SiC", {"Si": 4, "C": -4}),
        ("Bi2Te3", {"Bi": 3, "Te": -2}),
    ],
)
def test_charges(formula, charges):
    assert guess_charges(Formula(formula).count()) == charges


@pytest.mark.parametrize("formula", ["Si", "Fe", "NiAl", "MgB2", "CoSb3"])
def test_where_there_are_no_charges(formula):
    assert guess_charges(Formula(formula).count()) is None


def test_metals_stay_away_from_anions():
    charges = {"Mg": 2, "O": -2}
    assert likeness_on_site("Ca", "O", charges) == 0.0
    assert likeness_on_site("F", "Mg", charges) < 0.01
    for dopant, replaced in map(split_dopant, plausible_dopants(composed("MgO"), 30)):
        assert (replaced == "O") == (dopant in {"N", "F", "S", "Cl", "C", "Se", "P", "Br"})


def test_ranking():
    everything = plausible_dopants(composed("GaAs"), 100)
    assert everything[0] == "Al@Ga"
    assert len(everything) == len({one.split("@")[0] for one in everything}) == 60
    assert all(split_dopant(one)[1] in ("Ga", "As") for one in everything)
    assert everything[:5] == plausible_dopants(composed("GaAs"), 5)


def test_plausible_dopants_of_nonsense():
    with pytest.raises(SimulationError, match="count is 0"):
        plausible_dopants(composed("GaAs"), 0)
    with pytest.raises(SimulationError, match="Z = 54, which is outside"):
        plausible_dopants(composed("Xe"), 3)


# -- data/zoo.json -----------------------------------------------------------------------------------------------------

ZOO = json.loads((ROOT / "data" / "zoo.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def listed():
    return {host.id: host for host in read_hosts(ROOT / "data" / "hosts.json.xz")}


def check_dopants(dopants, inside):
    assert len(set(dopants)) == len(dopants)
    for one in dopants:
        dopant, site = split_dopant(one)
        assert dopant not in inside
        assert site in inside


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry["id"])
def test_zoo(entry, listed):
    atoms = Atoms(entry["species"], scaled_positions=entry["frac"], cell=entry["cell"], pbc=True)
    host = read_structure(atoms)
    assert len(host.crystal) == len(entry["species"])
    assert spacegroup(host.crystal) == entry["spacegroup"]
    assert Formula(entry["formula"]).count() == Formula(host.formula).count()
    assert entry["split"] == split_of(host.chemical_system)
    first, second, distance = neighbor_list("ijd", atoms, 4.0)
    ratio = distance / (covalent_radii[atoms.numbers[first]] + covalent_radii[atoms.numbers[second]])
    assert 0.8 < ratio.min() < 1.25
    assert set(first) == set(range(len(atoms)))
    low, high = (16, 20) if entry["formula"] in ("GaAs", "Si", "MgB2", "MgO") else (8, 16)
    assert low <= len(entry["dopants"]) <= high
    check_dopants(entry["dopants"], set(entry["species"]))
    if entry["source"] == "hosts.json.xz":
        listed = listed[entry["id"]].crystal
        assert sorted(listed.numbers) == sorted(atoms.numbers)
        assert listed.volume == pytest.approx(atoms.cell.volume, rel=1e-6)
    else:
        assert entry["source"] == "textbook"
        assert entry["id"] not in listed


def test_zoo_as_a_list_of_hosts():
    hosts = read_hosts(ROOT / "data" / "zoo.json")
    assert len(hosts) == len(ZOO) >= 32
    assert {entry["split"] for entry in ZOO} == {"train", "val", "test"}


# -- benchmarks/pack_order.py ------------------------------------------------------------------------------------------


def test_order_of_packs(listed):
    names = ["Si-diamond", "GaAs-zincblende", "MgB2", "mp-1143", "mp-1317", "mp-22862", "mp-23193", "mp-2176"]
    candidates = [pack_order.candidate(listed[name]) for name in names]
    assert [one.spacegroup for one in candidates] == [227, 216, 191, 167, 204, 225, 225, 216]
    silicon, _, _, corundum = candidates[:4]
    assert silicon.cost == pytest.approx(4 / 48)
    assert corundum.cost == pytest.approx(100 / 12)
    ordered = [one.host.id for one in pack_order.order(candidates, 99)]
    assert sorted(ordered) == sorted(names)
    assert pack_order.order(iter(candidates), 3) == pack_order.order(candidates, 99)[:3]
    assert ordered.index("mp-22862") < ordered.index("mp-1143")
    assert pack_order.candidate(listed["mp-1030119"]) is None  # a layer with 12 angstrom of vacuum


def test_list_of_packs(listed):
    path = ROOT / "data" / "pack-order.json"
    assert path.stat().st_size < 150_000
    entries = json.loads(path.read_text(encoding="utf-8"))
    assert len(entries) == len({entry["id"] for entry in entries}) == 400
    for start in (entries[:40], entries):
        splits = Counter(entry["split"] for entry in start)
        assert splits["val"] == splits["test"] == pytest.approx(0.15 * len(start), abs=1)
    for entry in entries:
        host = listed[entry["id"]]
        assert entry["split"] == split_of(host.chemical_system)
        assert 8 <= len(entry["dopants"]) <= 12
        check_dopants(entry["dopants"], set(host.chemical_system.split("-")))
    for entry in entries[::40]:
        assert entry == pack_order.entry(pack_order.candidate(listed[entry["id"]]))
