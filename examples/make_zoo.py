"""Make ``data/zoo.json``: crystals that laboratories measure, with the dopants that they, or chemistry, would put in.

    python examples/make_zoo.py --out data/zoo.json

Crystals of ``data/hosts.json.xz`` are taken from there, under their ids; the others are textbook structures with
lattice constants measured at room temperature, rounded. Dopants are those of `PEOPLE`, then the most plausible ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.formula import Formula
from ase.spacegroup import crystal

from defectnet.crystal.hosts import Host, read_hosts
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.structures import read_structure, spacegroup
from defectnet.data.splits import split_of
from defectnet.files import replacing

HOSTS = Path(__file__).parents[1] / "data" / "hosts.json.xz"

LISTED = {
    "Si-diamond": "diamond",
    "Ge-diamond": "diamond",
    "C-diamond": "diamond",
    "SiC-zincblende": "zincblende",
    "GaAs-zincblende": "zincblende",
    "GaP-zincblende": "zincblende",
    "mp-20351": "zincblende",
    "InAs-zincblende": "zincblende",
    "InSb-zincblende": "zincblende",
    "mp-2172": "zincblende",
    "mp-2624": "zincblende",
    "mp-1190": "zincblende",
    "mp-2176": "zincblende",
    "CdTe-zincblende": "zincblende",
    "CdSe-zincblende": "zincblende",
    "mp-672": "wurtzite",
    "mp-2201": "rocksalt",
    "mp-1883": "rocksalt",
    "mp-22862": "rocksalt",
    "mp-23193": "rocksalt",
    "mp-1342": "rocksalt",
    "mp-938": "rhombohedral GeTe",
    "MgB2": "aluminium diboride",
    "mp-390": "anatase",
    "mp-1143": "corundum",
    "mp-3731": "lithium niobate",
    "mp-4651": "tetragonal perovskite",
    "mp-3536": "spinel",
    "mp-924129": "half-Heusler",
    "mp-1317": "skutterudite",
    "mp-541837": "tetradymite",
    "mp-2815": "molybdenite",
    "mp-7991": "hexagonal boron nitride",
    "mp-22526": "delafossite",
    "Te-trigonal": "trigonal selenium",
}
"""Prototypes of the crystals that are taken from the list of hosts."""


Basis = list[tuple[str, tuple[float, float, float]]]


def cubic(edge: float) -> list[float]:
    """Return the six numbers of a cubic cell."""
    return [edge, edge, edge, 90, 90, 90]


def tetragonal(a: float, c: float) -> list[float]:
    """Return the six numbers of a tetragonal cell."""
    return [a, a, c, 90, 90, 90]


def hexagonal(a: float, c: float) -> list[float]:
    """Return the six numbers of a hexagonal cell."""
    return [a, a, c, 90, 90, 120]


def rocksalt(cation: str, anion: str) -> Basis:
    """Return the two sites of rocksalt."""
    return [(cation, (0, 0, 0)), (anion, (0.5, 0.5, 0.5))]


def zincblende(cation: str, anion: str) -> Basis:
    """Return the two sites of zincblende."""
    return [(cation, (0, 0, 0)), (anion, (0.25, 0.25, 0.25))]


def wurtzite(cation: str, anion: str, u: float) -> Basis:
    """Return the two sites of wurtzite."""
    return [(cation, (1 / 3, 2 / 3, 0)), (anion, (1 / 3, 2 / 3, u))]


def fluorite(at_origin: str, tetrahedral: str) -> Basis:
    """Return the two sites of fluorite, or of antifluorite."""
    return [(at_origin, (0, 0, 0)), (tetrahedral, (0.25, 0.25, 0.25))]


def rutile(metal: str, u: float) -> Basis:
    """Return the two sites of a rutile oxide."""
    return [(metal, (0, 0, 0)), ("O", (u, u, 0))]


def half_heusler(first: str, centre: str, third: str) -> Basis:
    """Return the three sites of a half-Heusler compound; the second element has the tetrahedral sites."""
    return [(first, (0, 0, 0)), (centre, (0.25, 0.25, 0.25)), (third, (0.5, 0.5, 0.5))]


def tetradymite(metal: str, anion: str, metal_z: float, anion_z: float) -> Basis:
    """Return the three sites of tetradymite, hexagonal axes."""
    return [(metal, (0, 0, metal_z)), (anion, (0, 0, 0)), (anion, (0, 0, anion_z))]


def element(symbol: str) -> Basis:
    """Return the one site of a cubic metal."""
    return [(symbol, (0, 0, 0))]


def packed(symbol: str) -> Basis:
    """Return the one site of hexagonal close packing."""
    return [(symbol, (1 / 3, 2 / 3, 0.25))]


TEXTBOOK: dict[str, tuple[str, int, list[float], Basis]] = {
    "SiC-4H": (
        "4H silicon carbide",
        186,
        hexagonal(3.073, 10.053),
        [
            ("Si", (0, 0, 0)),
            ("Si", (1 / 3, 2 / 3, 0.25)),
            ("C", (0, 0, 0.1875)),
            ("C", (1 / 3, 2 / 3, 0.4375)),
        ],
    ),
    "GaN-wurtzite": ("wurtzite", 186, hexagonal(3.189, 5.186), wurtzite("Ga", "N", 0.377)),
    "AlN-wurtzite": ("wurtzite", 186, hexagonal(3.112, 4.982), wurtzite("Al", "N", 0.382)),
    "InN-wurtzite": ("wurtzite", 186, hexagonal(3.545, 5.703), wurtzite("In", "N", 0.379)),
    "ZnO-wurtzite": ("wurtzite", 186, hexagonal(3.250, 5.207), wurtzite("Zn", "O", 0.382)),
    "BeO-wurtzite": ("wurtzite", 186, hexagonal(2.698, 4.377), wurtzite("Be", "O", 0.378)),
    "ZnS-zincblende": ("zincblende", 216, cubic(5.409), zincblende("Zn", "S")),
    "BN-zincblende": ("zincblende", 216, cubic(3.616), zincblende("B", "N")),
    "BP-zincblende": ("zincblende", 216, cubic(4.538), zincblende("B", "P")),
    "BAs-zincblende": ("zincblende", 216, cubic(4.778), zincblende("B", "As")),
    "GaSb-zincblende": ("zincblende", 216, cubic(6.096), zincblende("Ga", "Sb")),
    "MgO-rocksalt": ("rocksalt", 225, cubic(4.212), rocksalt("Mg", "O")),
    "CaO-rocksalt": ("rocksalt", 225, cubic(4.811), rocksalt("Ca", "O")),
    "SrO-rocksalt": ("rocksalt", 225, cubic(5.160), rocksalt("Sr", "O")),
    "LiF-rocksalt": ("rocksalt", 225, cubic(4.027), rocksalt("Li", "F")),
    "NaF-rocksalt": ("rocksalt", 225, cubic(4.634), rocksalt("Na", "F")),
    "KBr-rocksalt": ("rocksalt", 225, cubic(6.598), rocksalt("K", "Br")),
    "PbTe-rocksalt": ("rocksalt", 225, cubic(6.462), rocksalt("Pb", "Te")),
    "PbS-rocksalt": ("rocksalt", 225, cubic(5.936), rocksalt("Pb", "S")),
    "TiN-rocksalt": ("rocksalt", 225, cubic(4.241), rocksalt("Ti", "N")),
    "TiC-rocksalt": ("rocksalt", 225, cubic(4.328), rocksalt("Ti", "C")),
    "ScN-rocksalt": ("rocksalt", 225, cubic(4.501), rocksalt("Sc", "N")),
    "CaF2-fluorite": ("fluorite", 225, cubic(5.463), fluorite("Ca", "F")),
    "SrF2-fluorite": ("fluorite", 225, cubic(5.800), fluorite("Sr", "F")),
    "BaF2-fluorite": ("fluorite", 225, cubic(6.200), fluorite("Ba", "F")),
    "Mg2Si-antifluorite": ("antifluorite", 225, cubic(6.351), fluorite("Si", "Mg")),
    "Mg2Sn-antifluorite": ("antifluorite", 225, cubic(6.763), fluorite("Sn", "Mg")),
    "Li2O-antifluorite": ("antifluorite", 225, cubic(4.619), fluorite("O", "Li")),
    "TiO2-rutile": ("rutile", 136, tetragonal(4.594, 2.959), rutile("Ti", 0.305)),
    "SnO2-rutile": ("rutile", 136, tetragonal(4.737, 3.186), rutile("Sn", 0.307)),
    "SiO2-quartz": (
        "alpha quartz",
        154,
        hexagonal(4.913, 5.405),
        [("Si", (0.4697, 0, 2 / 3)), ("O", (0.4135, 0.2669, 0.7858))],
    ),
    "Cu2O-cuprite": ("cuprite", 224, cubic(4.270), [("O", (0, 0, 0)), ("Cu", (0.25, 0.25, 0.25))]),
    "FeS2-pyrite": ("pyrite", 205, cubic(5.418), [("Fe", (0, 0, 0)), ("S", (0.385, 0.385, 0.385))]),
    "FeSi-B20": ("B20", 198, cubic(4.493), [("Fe", (0.137, 0.137, 0.137)), ("Si", (0.842, 0.842, 0.842))]),
    "TiNiSn-half-Heusler": ("half-Heusler", 216, cubic(5.921), half_heusler("Sn", "Ni", "Ti")),
    "HfNiSn-half-Heusler": ("half-Heusler", 216, cubic(6.083), half_heusler("Sn", "Ni", "Hf")),
    "NbFeSb-half-Heusler": ("half-Heusler", 216, cubic(5.950), half_heusler("Sb", "Fe", "Nb")),
    "Fe2VAl-Heusler": (
        "Heusler",
        225,
        cubic(5.761),
        [("Al", (0, 0, 0)), ("V", (0.5, 0.5, 0.5)), ("Fe", (0.25, 0.25, 0.25))],
    ),
    "Bi2Te3-tetradymite": ("tetradymite", 166, hexagonal(4.386, 30.50), tetradymite("Bi", "Te", 0.400, 0.212)),
    "Sb2Te3-tetradymite": ("tetradymite", 166, hexagonal(4.264, 30.46), tetradymite("Sb", "Te", 0.399, 0.211)),
    "WSe2-2H": (
        "molybdenite",
        194,
        hexagonal(3.286, 12.98),
        [("W", (1 / 3, 2 / 3, 0.25)), ("Se", (1 / 3, 2 / 3, 0.621))],
    ),
    "C-graphite": ("graphite", 194, hexagonal(2.461, 6.708), [("C", (0, 0, 0.25)), ("C", (1 / 3, 2 / 3, 0.25))]),
    "Fe-bcc": ("bcc", 229, cubic(2.866), element("Fe")),
    "V-bcc": ("bcc", 229, cubic(3.024), element("V")),
    "Nb-bcc": ("bcc", 229, cubic(3.301), element("Nb")),
    "Mo-bcc": ("bcc", 229, cubic(3.147), element("Mo")),
    "W-bcc": ("bcc", 229, cubic(3.165), element("W")),
    "Al-fcc": ("fcc", 225, cubic(4.050), element("Al")),
    "Cu-fcc": ("fcc", 225, cubic(3.615), element("Cu")),
    "Ni-fcc": ("fcc", 225, cubic(3.524), element("Ni")),
    "Mg-hcp": ("hcp", 194, hexagonal(3.209, 5.211), packed("Mg")),
    "Ti-hcp": ("hcp", 194, hexagonal(2.951, 4.686), packed("Ti")),
    "Zr-hcp": ("hcp", 194, hexagonal(3.232, 5.147), packed("Zr")),
}
"""Prototype, space group, cell (angstrom, degrees) and inequivalent sites of the others."""

PEOPLE = {
    "Si": "B P As Al Ga Sb Ge C In Sn",
    "Ge": "Ga As Sb P B Si Sn",
    "C": "B N P Si",
    "SiC": "Al@Si B@Si N@C P@Si Ge@Si V@Si Ti@Si",
    "GaAs": "Al In Si@Ga Zn@Ga N@As P@As Sb@As Te@As Se@As Be@Ga Mg@Ga C@As Cr@Ga Mn@Ga Ge@Ga Bi@As",
    "GaP": "N@P Zn@Ga Te@P S@P As@P In@Ga Al@Ga Mg@Ga",
    "InP": "Ga@In Zn@In Si@In S@P As@P Fe@In Al@In Sn@In",
    "InAs": "Ga@In Sb@As P@As Mn@In Al@In S@As Zn@In",
    "InSb": "Ga@In As@Sb Te@Sb Al@In Bi@Sb Cd@In Mn@In",
    "GaSb": "In@Ga As@Sb Te@Sb Al@Ga Zn@Ga N@Sb",
    "AlAs": "Ga@Al In@Al Si@Al Be@Al P@As C@As",
    "AlSb": "Ga@Al As@Sb Te@Sb Be@Al Se@Sb",
    "GaN": "In@Ga Al@Ga Mg@Ga Si@Ga Zn@Ga Ge@Ga Mn@Ga Fe@Ga C@N As@N P@N",
    "AlN": "Ga@Al Sc@Al Si@Al Mg@Al In@Al B@Al O@N",
    "InN": "Ga@In Al@In Mg@In Si@In O@N",
    "ZnO": "Al@Zn Ga@Zn Mg@Zn In@Zn Co@Zn Mn@Zn Li@Zn Cu@Zn N@O Cd@Zn",
    "ZnS": "Mn@Zn Cu@Zn Ag@Zn Cl@S Al@Zn Se@S Cd@Zn Fe@Zn",
    "ZnSe": "Te@Se S@Se Cl@Se N@Se Mn@Zn Cd@Zn Mg@Zn Co@Zn Fe@Zn Cr@Zn",
    "ZnTe": "Se@Te N@Te Cd@Zn Mn@Zn Mg@Zn Cr@Zn Cu@Zn O@Te Be@Zn",
    "CdTe": "Zn@Cd Mn@Cd Se@Te Hg@Cd Cl@Te In@Cd Cu@Cd As@Te Mg@Cd",
    "CdSe": "Zn@Cd Mn@Cd S@Se Te@Se In@Cd Cu@Cd Co@Cd",
    "CdS": "Zn@Cd Mn@Cd Se@S In@Cd Cu@Cd Te@S Cl@S",
    "MgO": "Ca Ni Zn Fe Mn Co Li Be Al Cr V Sr Ti Cd Cu@Mg",
    "CaO": "Mg Sr Ba Mn Fe",
    "SrO": "Ca Ba Mg",
    "BaO": "Sr Ca Mg",
    "LiF": "Mg Na Ti Cu Ca",
    "NaCl": "K@Na Br@Cl Ag@Na Cu@Na Ca@Na Mn@Na F@Cl Tl@Na",
    "NaF": "Li K Mg Ca Cl@F",
    "KCl": "Br@Cl Na@K Rb@K Tl@K Ca@K I@Cl Li@K Ag@K",
    "KBr": "Cl@Br I@Br Na@K Rb@K Tl@K Li@K Ag@K",
    "PbTe": "Na@Pb Se@Te Sn@Pb Tl@Pb I@Te Bi@Pb S@Te Mg@Pb K@Pb Mn@Pb",
    "PbSe": "Na@Pb Te@Se Sn@Pb Br@Se Bi@Pb S@Se Sr@Pb Cd@Pb Tl@Pb",
    "PbS": "Na@Pb Se@S Te@S Cl@S Bi@Pb Ag@Pb Sr@Pb",
    "SnTe": "In@Sn Pb@Sn Ge@Sn Mn@Sn Bi@Sn Sb@Sn Se@Te I@Te Cd@Sn",
    "GeTe": "Sn@Ge Pb@Ge Bi@Ge Sb@Ge In@Ge Mn@Ge Se@Te",
    "TiN": "Al@Ti C@N V@Ti Zr@Ti Nb@Ti O@N Cr@Ti",
    "TiC": "N@C W@Ti Nb@Ti V@Ti Ta@Ti Zr@Ti O@C",
    "ScN": "Mg@Sc Mn@Sc Al@Sc O@N F@N Ca@Sc",
    "CaF2": "Sr La Y Ba Na Mn Mg",
    "SrF2": "Ca Ba La Y Na",
    "BaF2": "Sr Ca La Y",
    "Mg2Si": "Sn@Si Ge@Si Bi@Si Sb@Si Ag@Mg Al@Mg Ca@Mg Li@Mg",
    "Mg2Sn": "Si@Sn Ge@Sn Sb@Sn Bi@Sn Ag@Mg Li@Mg",
    "Li2O": "Na Mg F@O S@O Be",
    "MgB2": "Al@Mg C@B Li@Mg Zn@Mg Mn@Mg Sc@Mg Na@Mg Ca@Mg Ti@Mg Zr@Mg Be@B Si@B Cu@Mg Fe@Mg",
    "TiO2": "Nb V N@O W Ta Sn Zr Fe Cr F@O C@O Al",
    "SnO2": "Sb F@O In Ta Nb Ti Zn Ge",
    "SiO2": "Al@Si Ge@Si Ti@Si B@Si P@Si Fe@Si F@O",
    "BeO": "Mg Zn Li Al",
    "Al2O3": "Cr Ti Fe Ga Mg V Ni Si In",
    "MgAl2O4": "Cr@Al Fe@Al Co@Mg Mn@Mg Zn@Mg Ni@Mg Ga@Al Ti@Al",
    "LiNbO3": "Mg@Li Fe@Li Zn@Li Ta@Nb Na@Li Cu@Li In@Li Zr@Nb",
    "SrTiO3": "Nb@Ti La@Sr Ba@Sr Ca@Sr Fe@Ti Zr@Ti Mn@Ti Cr@Ti",
    "LiCoO2": "Al@Co Ni@Co Mn@Co Mg@Co Na@Li Ti@Co Fe@Co Zr@Co",
    "Cu2O": "Ag Li N@O Mg Zn Ni Cl@O",
    "FeS2": "Co@Fe Ni@Fe As@S Cu@Fe Zn@Fe Se@S",
    "FeSi": "Co@Fe Al@Si Mn@Fe Ge@Si Ir@Fe",
    "TiNiSn": "Zr@Ti Hf@Ti Sb@Sn Co@Ni Cu@Ni Nb@Ti Sc@Ti Pt@Ni",
    "ZrNiSn": "Hf@Zr Ti@Zr Sb@Sn Co@Ni Cu@Ni Nb@Zr Sc@Zr Pd@Ni",
    "HfNiSn": "Zr@Hf Ti@Hf Sb@Sn Co@Ni Cu@Ni Nb@Hf Ta@Hf",
    "NbFeSb": "Ti@Nb Hf@Nb Zr@Nb Sn@Sb V@Nb Co@Fe Ta@Nb Mo@Nb",
    "Fe2VAl": "Si@Al Ge@Al Ti@V Mo@V W@V Co@Fe Sn@Al Ta@V",
    "CoSb3": "Fe@Co Ni@Co Te@Sb Sn@Sb Pd@Co Ge@Sb Se@Sb As@Sb",
    "Bi2Te3": "Sb@Bi Se@Te Sn@Bi Pb@Bi I@Te In@Bi Cu@Bi Ca@Bi",
    "Bi2Se3": "Sb@Bi Te@Se Sn@Bi Ca@Bi In@Bi Cu@Bi S@Se Mn@Bi",
    "Sb2Te3": "Bi@Sb Se@Te Sn@Sb In@Sb V@Sb Cr@Sb Pb@Sb",
    "MoS2": "W@Mo Nb@Mo Re@Mo Se@S Te@S V@Mo Fe@Mo O@S",
    "WSe2": "Mo@W Nb@W Re@W S@Se V@W Te@Se Ta@W",
    "BN": "C@B C@N Al@B Si@B O@N Be@B",
    "BP": "C@P Si@P Al@B As@P N@P",
    "BAs": "C@As Si@B Ga@B P@As N@As Be@B",
    "Te": "Se As Sb Bi S I",
    "Fe": "Ni Co Cr Mn V Si Al C N Cu Mo W P",
    "V": "Cr Ti Al Fe Mo Nb Ta W Ni",
    "Nb": "Ti Zr V Mo Ta W Hf",
    "Mo": "W Re Nb Ti Zr V Ta Cr",
    "W": "Re Mo Ta Os Nb V Ti",
    "Al": "Cu Mg Si Zn Mn Li Sc Zr Fe Cr Ag",
    "Cu": "Zn Sn Ni Al Be Ag Au Mn Cr Pd Zr",
    "Ni": "Fe Co Cr Al Cu Mo W Ti Re Mn Pd",
    "Mg": "Al Zn Mn Y Ca Li Zr Sn Ag",
    "Ti": "Al V Mo Zr Nb Sn Ta Cr Fe",
    "Zr": "Sn Nb Fe Cr Ni Hf Ti",
}
"""What people put in, by formula; a symbol alone goes on the site where it fits best."""

LONG_LISTS = ("GaAs", "Si", "MgB2", "MgO")
"""Hosts with `MANY` dopants; the others have `FEW`."""

MANY, FEW = 18, 14


def textbook(name: str) -> Host:
    """Return a textbook structure in its primitive cell."""
    _, group, cell, basis = TEXTBOOK[name]
    symbols, sites = zip(*basis, strict=True)
    atoms: Atoms = crystal(symbols, basis=list(sites), spacegroup=group, cellpar=cell)
    return replace(read_structure(atoms), id=name)


def common_name(host: Host) -> str:
    """Return the key of `PEOPLE` with the host's composition, whatever the order of its elements."""
    return next(name for name in PEOPLE if Formula(name).count() == Formula(host.formula).count())


def dopants(host: Host) -> list[str]:
    """Return what people dope with and then what is plausible, each element once unless people use two of its sites."""
    ranked = plausible_dopants(host.crystal, 61)
    site = dict(one.split("@") for one in ranked)
    people = PEOPLE[common_name(host)].split()
    found = [one if "@" in one else f"{one}@{site[one]}" for one in people]
    taken = {one.split("@")[0] for one in found}
    found += [one for one in ranked if one.split("@")[0] not in taken]
    return found[: MANY if common_name(host) in LONG_LISTS else FEW]


def entry(host: Host, prototype: str, source: str) -> dict[str, Any]:
    """Return one entry of the list."""
    atoms = Atoms(host.crystal.numbers, positions=host.crystal.positions, cell=host.crystal.cell, pbc=True)
    return {
        "id": host.id,
        "formula": common_name(host),
        "spacegroup": spacegroup(host.crystal),
        "prototype": prototype,
        "source": source,
        "split": split_of(host.chemical_system),
        "cell": [round(float(x), 8) for x in atoms.cell.cellpar()],
        "species": list(atoms.symbols),
        "frac": np.round(atoms.get_scaled_positions(), 8).tolist(),
        "dopants": dopants(host),
    }


def zoo() -> list[dict[str, Any]]:
    """Return all entries: those of the list of hosts, then the textbook's."""
    listed = {host.id: host for host in read_hosts(HOSTS)}
    entries = [entry(listed[name], prototype, "hosts.json.xz") for name, prototype in LISTED.items()]
    return entries + [entry(textbook(name), TEXTBOOK[name][0], "textbook") for name in TEXTBOOK]


def main() -> None:
    """Write the list, an entry a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/zoo.json"))
    out = parser.parse_args().out
    lines = ",\n".join(json.dumps(one) for one in zoo())
    with replacing(out) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
