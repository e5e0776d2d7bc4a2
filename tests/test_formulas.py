"""Formulas: what is read, what has two meanings, and objects of other libraries."""

from __future__ import annotations

import pytest
from ase.build import bulk
from pymatgen.core import Composition, Element, Lattice, Structure

from defectnet.elements import composition, formula_text, parse_formula
from defectnet.errors import FormulaError


@pytest.mark.parametrize(
    ("formula", "amounts"),
    [
        ("MgB2", {"Mg": 1, "B": 2}),
        ("Si0.7Ge0.3", {"Si": 0.7, "Ge": 0.3}),
        ("Ca3(PO4)2", {"Ca": 3, "P": 2, "O": 8}),
        ("Si₃N₄", {"Si": 3, "N": 4}),
        ("Al2O3·2SiO2", {"Al": 2, "O": 7, "Si": 2}),
        ("W18O49", {"W": 18, "O": 49}),  # 18O would be one tungsten with 49
        ("Al12Mg17", {"Al": 12, "Mg": 17}),
        ("YBa2Cu3O6.9", {"Y": 1, "Ba": 2, "Cu": 3, "O": 6.9}),
        ("Na1.5Ca0.5TiO3", {"Na": 1.5, "Ca": 0.5, "Ti": 1, "O": 3}),
        ("KSCN", {"K": 1, "S": 1, "C": 1, "N": 1}),
        ("BN", {"B": 1, "N": 1}),
        ("CS2", {"C": 1, "S": 2}),
        ("VO2", {"V": 1, "O": 2}),
    ],
)
def test_what_is_meant(formula, amounts):
    assert parse_formula(formula) == pytest.approx(amounts)


@pytest.mark.parametrize(
    ("formula", "what", "fix"),
    [
        ("Mg11B2", "two meanings: 11 atoms of the element before, or the isotope 11B", "Write MgB2"),
        ("Mg(11B)2", "a number before B", r"(MgB2)"),
        ("Mg[11B]2", "a number before B", r"(MgB2)"),
        ("Mg^{11}B2", "an isotope", "Leave isotopes out"),
        ("57Fe", "a number before Fe", "(Fe)"),
        ("Zn18O", "the isotope 18O", "Write ZnO"),
        ("Fe3+", "a charge", "Leave charges out"),
        ("Mg2+O2-", "a charge", "Leave charges out"),
        ("Ga1-xAlxAs", "a dash", "give x as a number"),
        ("Al2O3.2SiO2", "a decimal number, or a hydrate", "Write the dot as"),
        ("SI", "reads as S I", "Did you mean Si?"),
        ("PBS", "reads as P B S", "Did you mean PbS?"),
        ("CSI", "reads as C S I", "Did you mean CsI?"),
        ("NIO", "reads as N I O", "Did you mean NiO?"),
        ("SI3N4", "reads as S I N", "Did you mean Si3N4?"),
        ("GAAS", "G is no element", "Did you mean GaAs?"),
        ("CdTe0", "an amount of zero", "Leave out"),
        ("CuSO4·5H2O", "'H' is not an element", "Known are"),
    ],
)
def test_what_could_be_meant_otherwise_is_asked(formula, what, fix):
    with pytest.raises(FormulaError) as error:
        parse_formula(formula)
    assert what in str(error.value)
    assert fix in error.value.fix


def test_formulas_of_programs_are_taken_as_they_are():
    assert composition("IN2O4F5").sum() == pytest.approx(1.0)


def test_objects_of_other_libraries():
    structure = Structure(Lattice.cubic(5.6), ["Ga", "As"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    for host in (Composition("GaAs"), structure, bulk("GaAs", "zincblende", 5.65)):
        assert parse_formula(host) == {"Ga": 1.0, "As": 1.0}
    assert formula_text(Element("Si")) == "Si"
    with pytest.raises(FormulaError, match="formula is a int"):
        formula_text(5)
