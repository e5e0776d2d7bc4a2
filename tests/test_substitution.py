"""Single substitutions: symmetry, volume, dopants off their sites, and those that fail."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms

from defectnet.crystal import substitution as engine
from defectnet.crystal.host import make_host
from defectnet.crystal.structures import read_structure, spacegroup
from defectnet.crystal.substitution import KEEP, Substitution, substitute
from defectnet.crystal.superposition import Occupation, Superposition, turned
from defectnet.errors import DefectNetError, SimulationError
from defectnet.potentials.nep import EnergyForcesStress
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.supercells import Supercell
from host_models import dense, host_of, largest, model, nep, single, site_of


def aligned_changes(one, other) -> tuple[np.ndarray, np.ndarray]:
    """The changes of two substitutions on the atoms of both, (M, M, 3, 3)."""
    atoms = [[(int(b), *map(int, v)) for b, v in zip(x.basis, x.lattice, strict=True)] for x in (one, other)]
    keys = {key: k for k, key in enumerate(sorted({*atoms[0], *atoms[1]}))}
    out = np.zeros((2, len(keys), len(keys), 3, 3))
    for blocks, mine, x in zip(out, atoms, (one, other), strict=True):
        place = np.array([keys[key] for key in mine])
        m = len(mine)
        whole = dense(x) if hasattr(x, "first") else x.change.reshape(m, 3, m, 3).transpose(0, 2, 1, 3)
        blocks[np.ix_(place, place)] = whole
    return out[0], out[1]


# Space groups 136, 141, 161, 166, 167, 186, 191, 194, 198, 224, 225 and 227.
ROTATED = [
    ("SnO2-rutile", "Ge", "Sn"),
    ("SnO2-rutile", "F", "O"),
    ("mp-390", "Zr", "Ti"),
    ("mp-3731", "Na", "Li"),
    ("Bi2Te3-tetradymite", "Sb", "Bi"),
    ("mp-1143", "In", "Al"),
    ("AlN-wurtzite", "Ga", "Al"),
    ("MgB2", "C", "B"),
    ("WSe2-2H", "Mo", "W"),
    ("Ti-hcp", "V", "Ti"),
    ("FeSi-B20", "Mn", "Fe"),
    ("Cu2O-cuprite", "Ag", "Cu"),
    ("Mg2Si-antifluorite", "Ca", "Mg"),
    ("Si-diamond", "Ge", "Si"),
]


@pytest.mark.parametrize(("name", "dopant", "replaced"), ROTATED)
def test_turned_onto_another_site_it_is_the_one_made_there(name, dopant, replaced):
    host = model(name, 13)
    first = single(name, dopant, replaced, 13)
    orbits = host.operations.orbits()
    other = int(np.flatnonzero(orbits == first.site)[-1])
    assert other != first.site
    direct = substitute(nep(), host, other, dopant, volume_step=0.0, tolerance=1e-4)
    assert direct.volume == pytest.approx(first.volume, abs=1e-3)
    assert direct.far_volume == pytest.approx(first.far_volume, abs=2e-3)
    assert direct.energy == pytest.approx(first.energy, abs=1e-4)
    assert first.orientations == 1
    onto = host.operations.only(host.operations.image[:, first.site] == other)
    assert len(onto) > 0
    for k in range(len(onto)):  # whichever operation it is
        placed = turned(first, onto.only(np.array([k])), other)
        mine, want = aligned_changes(placed, direct)
        assert largest(mine - want) < 1e-3 * largest(want)


def test_sites_turned_are_of_many_space_groups():
    assert len({spacegroup(model(name, 13).primitive) for name, *_ in ROTATED}) >= 10


def test_a_supercell_of_lower_symmetry_leaves_the_substitution_the_crystals():
    """The supercell of 24 atoms of wurtzite has no operation but the identity that leaves a site."""
    found = single("AlN-wurtzite", "Ga", "Al", 24)
    host = model("AlN-wurtzite", 24)
    site = host.operations.fixing(found.site)
    assert len(site) == len(found.rotations) == 6
    for k in range(len(site)):
        mine, want = aligned_changes(turned(found, site.only(np.array([k])), found.site), found)
        assert largest(mine - want) < 1e-9


@pytest.mark.parametrize(
    ("name", "dopant", "replaced"), [("GaAs", "In", "Ga"), ("MgO", "Ca", "Mg"), ("ZnO-wurtzite", "S", "O")]
)
def test_a_change_is_symmetric_and_costs_a_common_shift_nothing(name, dopant, replaced):
    found = single(name, dopant, replaced, step=0.03)
    for change in (found.change, found.by_volume):
        assert largest(change - change.T) < 1e-12
        shift = np.tile(np.eye(3), (len(found.basis), 1))
        sums = (change @ shift).reshape(-1, 3, 3)
        assert largest(sums + sums.swapaxes(1, 2)) < 1e-9
        assert largest(shift.T @ change @ shift) < 1e-9
        assert largest(change) > 0.1


def test_larger_atoms_make_the_crystal_larger():
    volumes = {x: single("GaAs", x, "As").volume for x in ("N", "P", "Sb")}
    assert volumes["N"] < volumes["P"] < 0.0 < volumes["Sb"]
    assert single("GaAs", "In", "Ga").volume > 5.0 > abs(single("GaAs", "Al", "Ga").volume)


@pytest.mark.parametrize(("dopant", "replaced"), [("In", "Ga"), ("Sb", "As"), ("N", "As")])
def test_far_away_less_of_the_volume_is_felt(dopant, replaced):
    """Part of a volume change is at the dopant itself, as in Eshelby's inclusion."""
    found = single("GaAs", dopant, replaced, 54)
    assert 0.3 < found.far_volume / found.volume < 0.95


def test_the_derivative_by_volume_is_what_a_strained_cell_says():
    """The change of the change over two steps of volume: the derivative holds for both."""
    small, large = (single("GaAs", "In", "Ga", step=step) for step in (0.01, 0.03))
    a, b = small.by_volume, large.by_volume
    assert a.shape == b.shape
    assert largest(a) > 1.0
    assert largest(a - b) < 0.15 * largest(a)
    assert not single("GaAs", "In", "Ga").by_volume.any()


def test_what_is_kept_falls_with_the_threshold():
    sizes = {keep: np.count_nonzero(single("GaAs", "In", "Ga", 54, keep=keep).change) for keep in (0.0, KEEP, 0.1)}
    assert sizes[0.0] > sizes[KEEP] > sizes[0.1] > 0


# -- off their sites ---------------------------------------------------------------------------------------------------


def test_off_centre_dopants_are_said_so():
    found = single("MgO", "Be", "Mg")
    assert found.off_centre
    assert 0.3 < found.displacement < 0.8
    assert found.orientations == 8  # towards a face of the octahedron of oxygen
    assert len(found.rotations) * found.orientations == 48
    centred = single("MgO", "Zn", "Mg")
    assert not centred.off_centre
    assert centred.orientations == 1
    assert len(centred.rotations) == 48


def test_off_centre_is_lower_than_centred():
    """With no rattled start the dopant cannot leave; that is a saddle, and an error."""
    host = model("MgO")
    with pytest.raises(SimulationError, match="Be on site 0 of MgO has no stable place") as error:
        substitute(nep(), host, site_of(host, "Mg"), "Be", starts=0, volume_step=0.0)
    assert "more starts" in error.value.fix
    assert "eV/angstrom^2" in error.value.why


def test_making_it_again_gives_the_same_bits():
    again = substitute(nep(), model("MgO"), 0, "Be", volume_step=0.0, tolerance=1e-4)
    before = single("MgO", "Be", "Mg")
    for name in set(Substitution.__dataclass_fields__) - {"far"}:
        np.testing.assert_array_equal(getattr(again, name), getattr(before, name))
    for name in ("first", "second", "shift", "block"):
        np.testing.assert_array_equal(getattr(again.far, name), getattr(before.far, name))


# -- what fails --------------------------------------------------------------------------------------------------------


class Pushing:
    """The fast potential with another answer."""

    exact = True
    name, sha256 = "pushing", ""

    def __init__(self, change):
        self.change = change

    def check(self, crystal):
        nep().check(crystal)

    def evaluate(self, crystal):
        return self.change(nep().evaluate(crystal), crystal)

    def force_constants(self, crystal):
        return nep().force_constants(crystal)


def one_error(match: str, **options):
    arguments = {"potential": nep(), "host": model("GaAs"), "site": 0, "dopant": "In", "volume_step": 0.0} | options
    with pytest.raises(SimulationError, match=match) as error:
        substitute(
            arguments.pop("potential"),
            arguments.pop("host"),
            arguments.pop("site"),
            arguments.pop("dopant"),
            **arguments,
        )
    assert error.value.fix
    assert "\n" not in str(error.value)


def test_forces_that_never_vanish():
    push = Pushing(
        lambda r, c: EnergyForcesStress(r.energy, r.forces + 0.1 * np.eye(3)[np.arange(len(c)) % 3], r.stress)
    )
    one_error("In on site 0 of GaAs does not come to rest", potential=push)


def test_forces_that_are_not_finite():
    nan = Pushing(lambda r, c: EnergyForcesStress(float("nan"), r.forces * np.nan, r.stress))
    one_error("In on site 0 of GaAs does not come to rest", potential=nan)


def test_a_crystal_that_becomes_another(monkeypatch):
    plain = engine.relax

    def thrown(potential, crystal, **options):
        found = plain(potential, crystal, **options)
        displacement = np.zeros((len(crystal), 3))
        displacement[3] = 2.0
        return replace(found, crystal=found.crystal.moved(displacement))

    monkeypatch.setattr(engine, "relax", thrown)
    one_error("In on site 0 of GaAs changes the crystal into another")


def test_an_element_that_is_there_already():
    one_error("Ga is on site 0 of GaAs already", dopant="Ga")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dopant": "Xx"}, "'Xx' is not an element"),
        ({"site": 2}, "site is 2"),
        ({"site": -1}, "site is -1"),
    ],
)
def test_what_does_not_exist(options, match):
    arguments = {"site": 0, "dopant": "In"} | options
    with pytest.raises(DefectNetError, match=match) as error:
        substitute(nep(), model("GaAs"), arguments["site"], arguments["dopant"])
    assert error.value.fix


# -- by finite displacements -------------------------------------------------------------------------------------------


class Slow(ReferencePotential):
    """The fast potential in the place of a calculator: by finite displacements."""

    def __init__(self):
        super().__init__(None, name="slow", displacement=0.003)

    def evaluate(self, crystal):
        return nep().evaluate(crystal)


def test_by_finite_displacements_it_is_nearly_the_exact_one():
    host = make_host(Slow(), host_of("GaAs"), atoms=16, preconditioner=nep(), tolerance=1e-4)
    exact = single("GaAs", "In", "Ga", keep=0.0)
    found = substitute(Slow(), host, 0, "In", volume_step=0.0, keep=0.0, tolerance=1e-4, preconditioner=nep())
    assert found.volume == pytest.approx(exact.volume, abs=1e-3)
    # Images are attributed to the nearest ones here, and are known there: compared in the supercell, at Gamma.
    hessians = [
        Superposition(one_host, {("In", 0): one}, host.cell.matrix, [np.zeros(3)]).hessians(Occupation((0,), ("In",)))
        for one_host, one in ((model("GaAs"), exact), (host, found))
    ]
    assert largest(hessians[0] - hessians[1]) < 2e-3 * largest(hessians[0])


def test_the_host_is_displaced_in_a_larger_cell_and_differences_are_of_one_cell():
    """Force constants that reach beyond the cell of the substitution are the host's; they cancel in what changes."""
    host = make_host(Slow(), host_of("GaAs"), atoms=16, host_atoms=(16, 64), preconditioner=nep(), tolerance=1e-4)
    narrow = make_host(Slow(), host_of("GaAs"), atoms=16, host_atoms=(16, 16), preconditioner=nep(), tolerance=1e-4)
    exact = model("GaAs")

    def off(one):
        """How far the host's Hessian is off in a cell that none of them was made in."""
        other = Supercell.of(exact.primitive, np.diag([3, 3, 3]))
        return largest(other.folded(one.force_constants).hessian() - other.folded(exact.force_constants).hessian())

    assert len(host.cell) == len(narrow.cell) == 16
    assert off(host) < 0.5 * off(narrow)

    found = substitute(Slow(), host, 0, "In", volume_step=0.0, keep=0.0, tolerance=1e-4, preconditioner=nep())
    again = substitute(Slow(), narrow, 0, "In", volume_step=0.0, keep=0.0, tolerance=1e-4, preconditioner=nep())
    # Both are differences of the same two cells.
    assert largest(found.change - again.change) < 1e-6 * largest(found.change)


def test_a_crystal_that_relaxes_to_nearly_a_higher_symmetry():
    """Sr2NiN2 in 139: its supercell has, within the tolerance, operations that the relaxed crystal has not."""
    atoms = Atoms(
        ["Sr", "Sr", "Ni", "N", "N"],
        cell=[3.851538, 3.851538, 6.804851, 73.560699, 73.560699, 90.0],
        scaled_positions=[
            (0.643128, 0.643128, 0.713743),
            (0.347057, 0.347057, 0.305885),
            (0.994089, 0.994089, 0.011821),
            (0.134851, 0.134851, 0.730298),
            (0.853174, 0.853174, 0.293652),
        ],
        pbc=True,
    )
    host = make_host(nep(), read_structure(atoms), atoms=40)
    assert isinstance(substitute(nep(), host, site_of(host, "Ni"), "V"), Substitution)
