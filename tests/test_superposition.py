"""Superposed substitutions: exact in their own cell, the same however the crystal is written, near the potential."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.data import atomic_masses
from scipy.spatial.transform import Rotation

from defectnet.crystal.host import make_host
from defectnet.crystal.hosts import host_from_atoms
from defectnet.crystal.substitution import substitute
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, modes
from defectnet.potentials.relax import relax
from defectnet.potentials.supercells import Supercell
from host_models import dense, host_of, largest, model, nep, number, single, site_of

GAMMA = np.zeros(3)
Q = [GAMMA, np.array([0.25, 0.25, 0.25]), np.array([0.13, -0.41, 0.27])]
SKEW = np.array([[2, 1, -1], [-1, 2, 1], [1, 0, 2]])
SMALL = np.array([[1, 1, -1], [-1, 2, 1], [1, 0, 1]])


def superposed(name: str, *pairs: tuple[str, str], matrix, q=Q, atoms: int = 16, **options) -> Superposition:
    """A superposition of substitutions, each (dopant, replaced)."""
    host = model(name, atoms)
    made = {(x, site_of(host, z)): single(name, x, z, atoms, **options) for x, z in pairs}
    return Superposition(host, made, matrix, q)


def relaxed_single(name: str, dopant: str, atoms: int = 16) -> tuple[Crystal, int]:
    """The relaxed cell that a centred substitution is made in, and the atom that is substituted."""
    host = model(name, atoms)
    numbers = host.cell.crystal.numbers.copy()
    numbers[0] = number(dopant)
    start = Crystal(numbers, host.cell.crystal.cell, host.cell.crystal.positions)
    return relax(nep(), start, cell="volume", tolerance=1e-4).crystal, 0


# -- exact where it must be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dopant", "replaced"), [("GaAs", "In", "Ga"), ("MgO", "Ca", "Mg"), ("SnO2-rutile", "Ge", "Sn")]
)
def test_in_its_own_cell_a_substitution_is_the_relaxed_cell(name, dopant, replaced):
    """Nothing left out, at Gamma and elsewhere: what the volume does and what the substitution does add up again."""
    host = model(name)
    found = superposed(name, (dopant, replaced), matrix=host.cell.matrix, keep=0.0)
    crystal, atom = relaxed_single(name, dopant)
    direct = nep().force_constants(crystal).at(np.array(Q)).numpy()
    hessians = found.hessians(Occupation((atom,), (dopant,)))
    assert largest(hessians[0] - direct[0]) < 2e-4 * largest(direct[0])  # relaxed once more, to 1e-4 eV/angstrom
    for a, b in zip(hessians, direct, strict=True):
        assert largest(np.linalg.eigvalsh(a) - np.linalg.eigvalsh(b)) < 2e-3 * largest(direct[0])
    pristine = found.hessians(Occupation((), ()))
    assert largest(pristine[0] - direct[0]) > 0.05 * largest(direct[0])  # or there would be nothing to reproduce


def test_on_any_site_of_its_own_cell():
    host = model("GaAs")
    found = superposed("GaAs", ("In", "Ga"), matrix=host.cell.matrix)
    want = found.modes(Occupation((0,), ("In",))).energy_mev
    for site in range(host.cell.repeats):
        assert largest(np.sort(found.modes(Occupation((site,), ("In",))).energy_mev) - np.sort(want)) < 1e-6


def test_without_dopants_it_is_the_host():
    found = superposed("GaAs", matrix=SKEW)
    plain, doped = found.host_modes(), found.modes(Occupation((), ()))
    np.testing.assert_array_equal(plain.energy_mev, doped.energy_mev)
    direct = modes(found.cell.folded(found.host.force_constants), found.cell.crystal, Q)
    assert largest(np.sort(direct.energy_mev) - np.sort(plain.energy_mev)) < 1e-6
    again = found.host_modes()
    np.testing.assert_array_equal(plain.energy_mev, again.energy_mev)  # nothing was overwritten


# -- what holds in any cell --------------------------------------------------------------------------------------------

CELLS = {
    "its own": 2 * np.eye(3, dtype=int),
    "larger": np.array([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]),
    "skew": SKEW,
    "long": np.diag([1, 1, 5]),
    "the primitive cell": np.eye(3, dtype=int),
}


@pytest.mark.parametrize("cell", CELLS)
def test_hermitian_and_without_energy_for_a_common_shift(cell):
    found = superposed("GaAs", ("In", "Ga"), ("N", "As"), matrix=CELLS[cell], step=0.03)
    count = found.cell.repeats
    sites = (0, count) if count == 1 else (0, count - 1, count)
    occupation = Occupation(sites, ("In", "N") if count == 1 else ("In", "In", "N"))
    hessians = found.hessians(occupation)
    for one in hessians:
        assert largest(one - one.conj().T) < 1e-10
    n = len(found.cell)
    shift = np.tile(np.eye(3), (n, 1))
    sums = (hessians[0] @ shift).reshape(n, 3, 3)
    assert largest(sums + sums.swapaxes(1, 2)) < 1e-8  # own blocks are symmetric, see the acoustic sum rule
    assert largest(shift.T @ hessians[0] @ shift) < 1e-8
    softest = np.sort(np.abs(np.linalg.eigvalsh(hessians[0])))[:3]
    assert largest(softest) < 0.02
    assert largest(hessians[0].imag) < 1e-10
    assert np.abs(hessians[1].imag).max() > 0.1


def test_wave_vectors_of_real_matrices():
    """Where all phases are signs the matrices are real, and the same."""
    points = [GAMMA, np.array([0.5, 0.0, 0.5])]
    occupation = Occupation((0, 9), ("In", "In"))
    real = superposed("GaAs", ("In", "Ga"), matrix=SKEW, q=points).hessians(occupation)
    both = superposed("GaAs", ("In", "Ga"), matrix=SKEW, q=[*points, Q[2]]).hessians(occupation)
    assert real.dtype == np.float64
    assert both.dtype == np.complex128
    assert largest(real - both[:2]) < 1e-10


def test_volumes_add_up():
    found = superposed("GaAs", ("In", "Ga"), ("N", "As"), matrix=CELLS["larger"])
    one, other = single("GaAs", "In", "Ga"), single("GaAs", "N", "As")
    count = found.cell.repeats
    occupation = Occupation((1, 4, count + 2), ("In", "In", "N"))
    assert found.volume_change(occupation) * found.cell.crystal.volume == pytest.approx(2 * one.volume + other.volume)
    assert found.volume_change(Occupation((), ())) == 0.0
    # Many dopants: the solid solution InAs-in-GaAs follows Vegard's law, against the potential itself.
    numbers = found.numbers(Occupation((0, 3, 5), ("In",) * 3))
    start = Crystal(numbers, found.cell.crystal.cell, found.cell.crystal.positions)
    volume = relax(nep(), start, cell="volume", tolerance=1e-3).crystal.volume
    change = volume / start.volume - 1.0
    assert found.volume_change(Occupation((0, 3, 5), ("In",) * 3)) == pytest.approx(change, rel=0.1)


def test_two_dopants_far_apart_give_the_sum_of_their_changes():
    found = superposed("GaAs", ("In", "Ga"), ("Al", "Ga"), matrix=CELLS["larger"] * 1, q=[GAMMA])
    far = int(np.argmax(distances(found.cell, 0)[: found.cell.repeats]))
    a, b = Occupation((0,), ("In",)), Occupation((far,), ("Al",))
    both = Occupation((0, far), ("In", "Al"))
    none, one, other, together = (found.hessians(x)[0] for x in (Occupation((), ()), a, b, both))
    excess = together - one - other + none
    # All that is left is the second derivative by ln V, times both changes of it.
    volumes = [single("GaAs", x, "Ga").far_volume / found.cell.crystal.volume for x in ("In", "Al")]
    second = found.cell.folded(found.host.by_volume[1]).hessian().numpy()
    assert largest(excess - volumes[0] * volumes[1] * second) < 1e-10
    assert largest(excess) < 1e-3 * largest(one - none)


def distances(cell: Supercell, atom: int) -> np.ndarray:
    apart = cell.crystal.frac - cell.crystal.frac[atom]
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), -1).reshape(-1, 1, 3)
    return np.linalg.norm((apart - np.round(apart) + shifts) @ cell.crystal.cell, axis=2).min(0)


def test_masses_are_those_of_the_dopants():
    found = superposed("GaAs", ("In", "Ga"), matrix=CELLS["skew"])
    numbers = found.numbers(Occupation((2,), ("In",)))
    assert numbers[2] == 49
    assert (numbers != found.cell.crystal.numbers).sum() == 1
    hessians = found.hessians(Occupation((2,), ("In",)))
    crystal = Crystal(numbers, found.cell.crystal.cell, found.cell.crystal.positions)
    root = np.repeat(atomic_masses[crystal.numbers] ** -0.5, 3)
    values = np.linalg.eigvalsh(hessians[1] * root[:, None] * root[None, :])
    got = found.modes(Occupation((2,), ("In",))).energy_mev
    squares = np.sign(values) * np.sqrt(np.abs(values)) * 64.654151
    assert np.abs(got[:, None] - squares[None, :]).min(0).max() < 1e-4


# -- the same crystal, written otherwise -------------------------------------------------------------------------------

UNIMODULAR = np.array([[1, 1, 0], [0, 1, 0], [-1, 0, 1]])


def written(name: str, how: str) -> tuple[Atoms, np.ndarray, np.ndarray, np.ndarray]:
    """A crystal written otherwise, with the rotation, the translation and the change of the cell vectors."""
    crystal = host_of(name).crystal
    rotation, translation, change = np.eye(3), np.zeros(3), np.eye(3, dtype=int)
    order = np.arange(len(crystal))
    if how == "rotated":
        rotation = Rotation.random(random_state=5).as_matrix()
    elif how == "translated":
        translation = np.array([0.37, -1.2, 5.1])
    elif how == "permuted":
        order = np.random.default_rng(2).permutation(len(crystal))[::-1]
    elif how == "another primitive cell":
        change = UNIMODULAR
    elif how == "atoms in other cells":
        cells = np.random.default_rng(3).integers(-2, 3, (len(crystal), 3))
        crystal = crystal.moved(cells @ crystal.cell)
    cell = change @ crystal.cell @ rotation.T
    positions = (crystal.positions[order] + translation) @ rotation.T
    return Atoms(crystal.numbers[order], positions=positions, cell=cell, pbc=True), rotation, translation, change


WAYS = ["rotated", "translated", "permuted", "another primitive cell", "atoms in other cells"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(
    ("name", "dopant", "replaced", "atoms"),
    [("GaAs", "In", "Ga", 16), ("SnO2-rutile", "Ge", "Sn", 12), ("AlN-wurtzite", "Ga", "Al", 16)],
)
def test_how_a_crystal_is_written_changes_no_spectrum(name, dopant, replaced, atoms, how, monkeypatch):
    base = superposed(name, (dopant, replaced), matrix=SMALL, q=Q[1:], atoms=atoms, keep=0.0)
    structure, rotation, translation, change = written(name, how)
    # The cell in which substitutions are made is a choice that `read_structure` makes unique; here it is the same.
    same = np.round(base.host.cell.matrix @ np.linalg.inv(change)).astype(int)
    monkeypatch.setattr("defectnet.crystal.host.choose_supercell", lambda *_: same)
    host = make_host(nep(), host_from_atoms(structure, name), atoms=atoms, tolerance=1e-4)
    site = site_of(host, replaced)
    made = substitute(nep(), host, site, dopant, volume_step=0.0, tolerance=1e-4, keep=0.0)
    matrix = np.round(SMALL @ np.linalg.inv(change)).astype(int)
    other = Superposition(host, {(dopant, site): made}, matrix, Q[1:])
    assert other.cell.crystal.volume == pytest.approx(base.cell.crystal.volume, rel=1e-4)
    # Two dopants side by side on the same two places, on different sites of the primitive cell where there are such.
    sites = np.flatnonzero(base.cell.crystal.numbers == number(replaced))
    near = sites[np.argsort(distances(base.cell, sites[0])[sites])[1]]
    chosen = (int(sites[0]), int(near))
    origin = base.cell.crystal.positions[list(chosen)]
    places = other.cell.crystal.positions
    frac = np.linalg.solve(other.cell.crystal.cell.T, ((origin + translation) @ rotation.T).T).T
    apart = frac[:, None] - other.cell.crystal.frac[None]
    apart -= np.round(apart)
    distance = np.linalg.norm(apart @ other.cell.crystal.cell, axis=2)
    moved = distance.argmin(1)
    assert distance.min(1).max() < 0.3, places  # relaxed places differ a little from those of the file
    one = np.sort(base.modes(Occupation(chosen, (dopant,) * 2)).energy_mev)
    two = np.sort(other.modes(Occupation(tuple(map(int, moved)), (dopant,) * 2)).energy_mev)
    assert largest(one - two) < 0.01
    assert largest(one - np.sort(base.host_modes().energy_mev)) > 0.3


# -- dopants off their sites -------------------------------------------------------------------------------------------


def towards(placed, cell: np.ndarray) -> tuple[float, ...]:
    """The direction in which the blocks between a dopant and its neighbours, on a lattice alike, are large."""
    (own,) = np.flatnonzero((placed.basis == 0) & (placed.lattice == 0).all(1))
    sizes = np.linalg.norm(dense(placed)[own], axis=(1, 2))
    like = placed.basis == 0
    return tuple((np.sign(np.round(sizes[like] @ placed.lattice[like] @ cell, 3)) + 0.0).tolist())


def test_off_centre_dopants_are_oriented_at_random():
    found = superposed("MgO", ("Be", "Mg"), matrix=SKEW, q=[Q[1]])
    made = single("MgO", "Be", "Mg")
    assert made.off_centre
    pair = Occupation((0, 3), ("Be", "Be"))
    first = found.modes(pair).energy_mev
    np.testing.assert_array_equal(first, found.modes(pair).energy_mev)
    rng = np.random.default_rng(0)
    drawn = [found.modes(pair, rng).energy_mev for _ in range(12)]
    assert len({round(float(one.sum()), 4) for one in drawn}) > 3
    again = np.random.default_rng(0)
    np.testing.assert_array_equal(drawn[0], found.modes(pair, again).energy_mev)
    # All orientations are drawn, about equally often.
    onto = found.host.operations.fixing(0)
    rng = np.random.default_rng(1)
    counts: dict[tuple[float, ...], int] = {}
    for _ in range(400):
        placed = found._turned("Be", 0, rng)
        axis = towards(placed, found.host.primitive.cell)
        counts[axis] = counts.get(axis, 0) + 1
    assert len(onto) == 48
    assert len(counts) == made.orientations == 8
    assert min(counts.values()) > 25


def test_one_orientation_is_as_good_as_another_alone():
    found = superposed("MgO", ("Be", "Mg"), matrix=2 * np.eye(3, dtype=int), q=[GAMMA])
    energies = []
    for seed in range(6):
        energies.append(np.sort(found.modes(Occupation((0,), ("Be",)), np.random.default_rng(seed)).energy_mev))
    assert largest(np.array(energies) - energies[0]) < 1e-6


def test_a_centred_dopant_draws_nothing():
    found = superposed("GaAs", ("In", "Ga"), matrix=SKEW)
    rng = np.random.default_rng(0)
    found.modes(Occupation((0, 1), ("In", "In")), rng)
    assert rng.random() == np.random.default_rng(0).random()


# -- against full simulations ------------------------------------------------------------------------------------------


def dos(found: Modes, grid: np.ndarray, width: float) -> np.ndarray:
    """Sum of Gaussians at the modes, unit area."""
    curve = np.exp(-0.5 * ((grid[:, None] - found.energy_mev[None, :]) / width) ** 2).sum(1)
    return np.asarray(curve / curve.sum())


@pytest.mark.parametrize(
    "dopants", [(("In", "Ga"), ("P", "As")), (("Al", "Ga"), ("Sb", "As"))], ids=["In and P", "Al and Sb"]
)
def test_two_dopants_in_gallium_arsenide_are_those_of_a_full_simulation(dopants):
    q = [Q[1], np.array([0.25, -0.25, 0.25])]
    found = superposed("GaAs", *dopants, matrix=CELLS["larger"], q=q, atoms=54, step=0.03)
    count = found.cell.repeats
    occupation = Occupation((0, 5, count + 3), (dopants[0][0], dopants[0][0], dopants[1][0]))
    start = Crystal(found.numbers(occupation), found.cell.crystal.cell, found.cell.crystal.positions)
    relaxed = relax(nep(), start, cell="volume", tolerance=1e-3)
    assert relaxed.converged
    truth = modes(nep().force_constants(relaxed.crystal), relaxed.crystal, q)
    host, guess = found.host_modes(), found.modes(occupation)
    grid, width = np.linspace(0.0, 50.0, 400), 1.5 / 2.355
    true_change = dos(truth, grid, width) - dos(host, grid, width)
    error = dos(guess, grid, width) - dos(truth, grid, width)
    assert (error**2).sum() / (true_change**2).sum() < 0.05
    masses = Modes(
        *vars(
            Superposition(found.host, {}, CELLS["larger"], q)._modes(
                found._pristine[0].copy(), found.numbers(occupation)
            )
        ).values()
    )
    alone = dos(masses, grid, width) - dos(truth, grid, width)
    assert (alone**2).sum() / (true_change**2).sum() > 0.1  # masses alone do not do it


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("occupation", "match"),
    [
        (Occupation((0,), ("Al",)), "has no substitution of Al on site 0"),
        (Occupation((40,), ("In",)), "has no substitution of In on site 1"),
        (Occupation((0, 1), ("In",)), "2 sites have 1 dopants"),
        (Occupation((1000,), ("In",)), "site 1000"),
        (Occupation((-1,), ("In",)), "site -1"),
        (Occupation((0, 0), ("In", "In")), "site 0 is substituted twice"),
    ],
)
def test_occupations_that_cannot_be(occupation, match):
    found = superposed("GaAs", ("In", "Ga"), matrix=CELLS["larger"], q=[GAMMA])
    for ask in (found.modes, found.hessians, found.volume_change):
        with pytest.raises(SimulationError, match=match) as error:
            ask(occupation)
        assert error.value.fix


@pytest.mark.parametrize(
    "matrix",
    [
        np.zeros((3, 3), dtype=int),
        np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]),
        10**9 * np.eye(3, dtype=int),
        np.eye(2, dtype=int),
    ],
)
def test_supercells_that_cannot_be(matrix):
    with pytest.raises(SimulationError, match="supercell") as error:
        superposed("GaAs", matrix=matrix)
    assert error.value.fix


# -- how far it can be trusted -----------------------------------------------------------------------------------------


def test_crowded_dopants_overlap_and_are_expected_to_fail():
    found = superposed("MgO", ("Ca", "Mg"), matrix=np.diag([3, 3, 3]), q=[GAMMA])
    mg = [int(k) for k in np.flatnonzero(found.cell.crystal.numbers == 12)]
    alone, few, many = (Occupation(tuple(mg[:k]), ("Ca",) * k) for k in (1, 3, 12))
    assert found.overlap(alone) == pytest.approx(0.0, abs=0.05)  # only with its own images
    assert found.overlap(alone) < found.overlap(few) < found.overlap(many)
    assert found.overlap(Occupation((), ())) == 0.0
    assert found.expected_unexplained(alone) < found.expected_unexplained(few) < found.expected_unexplained(many)
    assert found.expected_unexplained(few) < found.expected_unexplained(few, imaginary=0.05) <= 1.0
