"""Spectra from host packs: projected phonon DOS of a host and of doped cells of any composition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from ase.data import atomic_masses
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.crystal.compositions import Composition, draw_occupation, parse_composition
from defectnet.crystal.substitution import Substitution
from defectnet.crystal.superposition import EXPECTED_SPREAD, Occupation, Superposition
from defectnet.elements import INDEX, NEUTRON_WEIGHT, SYMBOLS
from defectnet.errors import SimulationError
from defectnet.potentials.kernel_polynomial import broadened, dynamical_matrix_sparse, kernel_polynomial_dos
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import IMAGINARY_MEV, Modes, folded, modes, projected_dos, q_mesh
from defectnet.potentials.supercells import supercell_matrix
from defectnet.spectrum import Spectrum

if TYPE_CHECKING:
    from defectnet.crystal.pack import HostPack

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Kind = Literal["total", "neutron-weighted", "projected"]
Method = Literal["diagonalised", "lanczos"]

DIAGONALISED: Final = 300
"""Most atoms of a cell that is diagonalised; in larger ones the DOS is estimated from products of a sparse matrix."""

LARGEST: Final = 10_000
"""Most atoms of a cell."""

UNSTABLE: Final = 0.005
"""Share of imaginary modes, beyond that of the host at the same wave vectors, from which on a doped cell is left out:
that of full simulations. Below, imaginary modes are left out of the DOS."""

RESOLUTION: Final = 0.01
"""FWHM, in units of the host's edge, of the DOS of large cells where none is given."""


DOUBTFUL: Final = 0.05
"""Expected unexplained share from which on a spectrum says that it is doubtful."""


@dataclass(frozen=True, eq=False)
class DopedSpectrum:
    """Projected DOS of a host and of doped cells of it, on `STORAGE_GRID`; C cells, E elements, L bins.

    Energies are in units of the host's edge; each projected DOS has the element's atomic fraction as its area.

    Attributes:
        host, formula, potential, potential_sha256: Whose pack it was made from, and what had computed that.
        wished: The composition asked for.
        concentrations: Dopant -> dopant atoms over all atoms, reached in the cells on average.
        edge_mev: Edge of the host, unit of the energies.
        host_elements: Symbols, by atomic number. host_dos: (H, L).
        elements: Symbols of the doped cells, by atomic number. cells: (C, E, L), each cell's own.
        atoms: Of a cell.
        method: ``diagonalised``, or ``lanczos``: estimated, see `kernel_polynomial_dos`.
        fwhm_mev: Width of the Gaussian that the DOS are broadened with; None for none: then a bin resolves it.
        sampling_error: Statistical error of one cell's total DOS from random vectors, as area; 0 if diagonalised.
        imaginary: Mean share of imaginary modes of the cells, which are not in the DOS. host_imaginary: The host's.
        left_out: Number of cells that were unstable, and are not among the C, see `UNSTABLE`.
        volume_change: Relative change of volume, mean of the cells.
        expected_unexplained: Share of the change of the DOS that superposition is expected to leave unexplained, see
            `Superposition.expected_unexplained`; geometric mean of the cells.
        remarks: What a reader of the numbers must know; sentences.
    """

    host: str
    formula: str
    potential: str
    potential_sha256: str
    wished: Composition
    concentrations: dict[str, float]
    edge_mev: float
    host_elements: tuple[str, ...]
    host_dos: FloatArray
    elements: tuple[str, ...]
    cells: FloatArray
    atoms: int
    method: Method
    fwhm_mev: float | None
    sampling_error: float
    imaginary: float
    host_imaginary: float
    left_out: int
    volume_change: float
    expected_unexplained: float
    remarks: tuple[str, ...]

    @property
    def doped_dos(self) -> FloatArray:
        """(E, L) mean over the cells."""
        return np.asarray(self.cells.mean(axis=0))

    @property
    def standard_error(self) -> FloatArray:
        """(E, L) standard error of `doped_dos`, from the spread of the cells."""
        return _standard_error(self.cells)

    @property
    def energy_mev(self) -> FloatArray:
        """(L,) centres of the bins, meV."""
        return STORAGE_GRID.centres * self.edge_mev

    def host_spectrum(self, kind: Kind = "total", element: str | None = None) -> Spectrum:
        """Return the host's DOS per meV, of unit area.

        Args:
            kind: How elements are weighted, see `defectnet.spectrum.KINDS`.
            element: The one of a projected DOS.
        """
        curve = element_weights(self.host_elements, kind, element) @ self.host_dos
        return self._spectrum(curve / _area(curve, element), kind, element, f"{self.host} host")

    def doped_spectrum(self, kind: Kind = "total", element: str | None = None) -> Spectrum:
        """Return the mean DOS of the doped cells per meV, of unit area; arguments as in `host_spectrum`."""
        curve = element_weights(self.elements, kind, element) @ self.doped_dos
        return self._spectrum(curve / _area(curve, element), kind, element, f"{self.host} {self.wished}")

    def doped_error(self, kind: Kind = "total", element: str | None = None) -> FloatArray:
        """Return the (L,) standard error of `doped_spectrum`, per meV."""
        curves = np.einsum("e,cel->cl", element_weights(self.elements, kind, element), self.cells)
        return _standard_error(curves) / (_area(curves.mean(axis=0), element) * self.edge_mev)

    def _spectrum(self, curve: FloatArray, kind: Kind, element: str | None, source: str) -> Spectrum:
        return Spectrum(self.energy_mev, curve / self.edge_mev, "meV", kind=kind, element=element, source=source)


def pack_spectrum(
    pack: HostPack,
    composition: str | Mapping[str, float] | Composition,
    *,
    cells: int = 8,
    atoms: int = 200,
    seed: int = 0,
    fwhm_mev: float | None = None,
    clustered: bool = False,
    q_points: Sequence[FloatArray] | None = None,
    vectors: int = 32,
) -> DopedSpectrum:
    """Compute the DOS of a host with dopants: the mean over supercells in which they are placed at random.

    Cells up to `DIAGONALISED` atoms are diagonalised at a few wave vectors, the host at the same ones. Larger ones are
    taken at Gamma alone, and their DOS is estimated from random vectors by Lanczos recursion; the host's is exact.

    Args:
        pack: Host and its substitutions.
        composition: Such as ``Al=0.03,In@Ga=0.01``, see `parse_composition`.
        cells: How many; their spread gives the standard error.
        atoms: Wished in a cell; met within a fifth.
        seed: The same seed gives the same spectrum.
        fwhm_mev: Width of a Gaussian to broaden with; by default none, or `RESOLUTION` of the edge in large cells.
        clustered: See `draw_occupation`.
        q_points: Wave vectors in units of the cell's reciprocal lattice vectors; `q_mesh` by default.
        vectors: Random vectors for each element of a large cell.

    Raises:
        SimulationError: The composition cannot be used, see `parse_composition`; a setting is out of range; or fewer
            than two cells are stable.
    """
    wished = parse_composition(pack, composition)
    _check_settings(cells, atoms, seed, fwhm_mev)
    matrix = _cell_matrix(pack, atoms)
    count = round(abs(float(np.linalg.det(matrix)))) * len(pack.host.primitive)
    large = count > DIAGONALISED
    if large and q_points is not None:
        raise SimulationError(
            f"q_points are given for cells of {count} atoms", why="large cells are taken at Gamma", fix="Leave them out"
        )
    edge = pack.host.band_edge_mev
    points = [np.zeros(3)] if large else (q_mesh(count) if q_points is None else list(q_points))
    width = RESOLUTION * edge if large and fwhm_mev is None else fwhm_mev
    superposition = Superposition(pack.host, pack.substitutions, matrix, points)
    host_modes = modes(pack.host.force_constants, pack.host.primitive, [k for q in points for k in folded(matrix, q)])
    elements = _elements(pack.host.primitive.numbers, wished)
    offsets = _offsets(cells, seed)
    found: list[_Cell] = []
    for number, offset in enumerate(offsets):
        rng = np.random.default_rng([seed, number])
        occupation = draw_occupation(superposition, wished, rng, clustered=clustered, offset=offset)
        if large:
            assert width is not None
            cell = _estimated(superposition, occupation, rng, elements, width, vectors, seed + number)
        else:
            cell = _diagonalised(superposition, occupation, rng, elements, width)
        found.append(cell)
    stable = [cell for cell in found if cell.imaginary <= host_modes.imaginary_fraction + UNSTABLE]
    if len(stable) < 2:
        raise SimulationError(
            f"{pack.host.id} with {wished}: {cells - len(stable)} of {cells} cells are unstable",
            why=f"{np.mean([cell.imaginary for cell in found]):.1%} of their modes are imaginary",
            fix="Use lower concentrations; the sum of single substitutions fails in crowded cells",
        )
    beyond = [max(0.0, cell.imaginary - host_modes.imaginary_fraction) for cell in stable]
    shares = [
        superposition.expected_unexplained(cell.occupation, share) for cell, share in zip(stable, beyond, strict=True)
    ]
    expected = float(np.exp(np.mean(np.log(shares))))
    return DopedSpectrum(
        host=pack.host.id,
        formula=pack.host.formula,
        potential=pack.host.potential,
        potential_sha256=pack.host.potential_sha256,
        wished=wished,
        concentrations=_reached(stable, wished, count),
        edge_mev=edge,
        host_elements=_elements(pack.host.primitive.numbers, Composition(())),
        host_dos=_projected(host_modes, pack.host.primitive, edge, width)[0],
        elements=elements,
        cells=np.stack([cell.dos for cell in stable]),
        atoms=count,
        method="lanczos" if large else "diagonalised",
        fwhm_mev=width,
        sampling_error=float(np.mean([cell.error for cell in stable])),
        imaginary=float(np.mean([cell.imaginary for cell in stable])),
        host_imaginary=host_modes.imaginary_fraction,
        left_out=cells - len(stable),
        volume_change=float(np.mean([superposition.volume_change(cell.occupation) for cell in stable])),
        expected_unexplained=expected,
        remarks=_remarks(pack, wished, stable, cells, host_modes.imaginary_fraction, expected),
    )


def host_dos(pack: HostPack, fwhm_mev: float, *, points: int = 1000) -> tuple[tuple[str, ...], FloatArray]:
    """Return the elements of a host and its (H, L) projected DOS on `STORAGE_GRID`, from a fine mesh of wave vectors.

    Args:
        pack: The host's.
        fwhm_mev: Width of a Gaussian to broaden with.
        points: About how many wave vectors.
    """
    primitive = pack.host.primitive
    matrix = supercell_matrix(primitive.cell, 1, points, (points // 2, 2 * points))
    found = modes(pack.host.force_constants, primitive, folded(matrix, np.full(3, 0.25)))
    dos = _projected(found, primitive, pack.host.band_edge_mev, fwhm_mev)[0]
    return _elements(primitive.numbers, Composition(())), dos


def _check_settings(cells: int, atoms: int, seed: int, fwhm_mev: float | None) -> None:
    if cells < 2:
        raise SimulationError(f"cells is {cells}", fix="Use 2 or more: their spread is the error")
    if not 0 < atoms <= LARGEST:
        raise SimulationError(f"atoms is {atoms}", fix=f"Use 1 to {LARGEST}")
    if seed < 0:
        raise SimulationError(f"seed is {seed}", fix="Use 0 or a positive whole number")
    if fwhm_mev is not None and not 0.01 <= fwhm_mev <= 100.0:
        raise SimulationError(f"fwhm_mev is {fwhm_mev}", fix="Use 0.01 to 100 meV")


def _cell_matrix(pack: HostPack, atoms: int) -> IntArray:
    """Return a compact supercell of about so many atoms; large ones within less, as there are more to choose from."""
    primitive = pack.host.primitive
    slack = max(0.2 * min(atoms, DIAGONALISED), float(len(primitive)))
    bounds = (int(np.ceil(max(atoms - slack, 1.0))), int(atoms + slack))
    return supercell_matrix(primitive.cell, len(primitive), atoms, bounds)


def _offsets(cells: int, seed: int) -> FloatArray:
    """Return what numbers of dopant atoms are rounded with: evenly spread, so that their mean is right."""
    rng = np.random.default_rng([seed, cells])
    return np.asarray((rng.permutation(cells) + rng.random()) / cells)


@dataclass(frozen=True)
class _Cell:
    """A doped cell; `error` is the statistical one of its total DOS, as area."""

    occupation: Occupation
    dos: FloatArray
    imaginary: float
    above: float
    error: float


def _diagonalised(
    superposition: Superposition,
    occupation: Occupation,
    rng: np.random.Generator,
    elements: tuple[str, ...],
    fwhm_mev: float | None,
) -> _Cell:
    phonons = superposition.modes(occupation, rng)
    crystal = superposition.crystal(occupation)
    dos, above = _projected(phonons, crystal, superposition.host.band_edge_mev, fwhm_mev)
    return _Cell(occupation, on_elements(elements, crystal.numbers, dos), phonons.imaginary_fraction, above, 0.0)


def _estimated(
    superposition: Superposition,
    occupation: Occupation,
    rng: np.random.Generator,
    elements: tuple[str, ...],
    fwhm_mev: float,
    vectors: int,
    seed: int,
) -> _Cell:
    crystal = superposition.crystal(occupation)
    constants = superposition.force_constants(occupation, rng)
    matrix = dynamical_matrix_sparse(constants.first, constants.second, constants.block, atomic_masses[crystal.numbers])
    edge = superposition.host.band_edge_mev
    found = kernel_polynomial_dos(matrix, crystal, edge, STORAGE_GRID, fwhm_mev=fwhm_mev, vectors=vectors, seed=seed)
    # The mean absolute value of a Gaussian error is sqrt(2 / pi) of its deviation.
    error = float(np.sqrt(2.0 / np.pi) * found.total_error.sum() * STORAGE_GRID.width)
    dos = on_elements(elements, crystal.numbers, found.dos)
    return _Cell(occupation, dos, found.imaginary, found.above, error)


def _projected(phonons: Modes, crystal: Crystal, edge_mev: float, fwhm_mev: float | None) -> tuple[FloatArray, float]:
    """Return the DOS of `projected_dos`, broadened if there is a width, and the share of modes above the grid."""
    dos, above = projected_dos(phonons, crystal, edge_mev, STORAGE_GRID)
    if fwhm_mev is None:
        return dos, above
    real = phonons.energy_mev >= -IMAGINARY_MEV
    shapes = broadened(phonons.energy_mev[real], edge_mev, STORAGE_GRID, fwhm_mev)
    numbers = np.unique(crystal.numbers)
    curves = np.stack([phonons.weight[real][:, crystal.numbers == z].sum(1) @ shapes for z in numbers])
    return np.asarray(curves * (dos.sum(1) / curves.sum(1))[:, None]), above


def _elements(numbers: IntArray, wished: Composition) -> tuple[str, ...]:
    """Return the symbols of a doped crystal, by atomic number."""
    there = {SYMBOLS[int(z)] for z in numbers} | {one.dopant for one in wished.components}
    return tuple(sorted(there, key=INDEX.__getitem__))


def on_elements(elements: tuple[str, ...], numbers: IntArray, dos: FloatArray) -> FloatArray:
    """Return the (E, L) DOS of all elements, zero for those that a cell does not hold."""
    rows = [elements.index(SYMBOLS[int(z)]) for z in np.unique(numbers)]
    out = np.zeros((len(elements), dos.shape[1]))
    out[rows] = dos
    return out


def _reached(cells: list[_Cell], wished: Composition, atoms: int) -> dict[str, float]:
    placed = [symbol for cell in cells for symbol in cell.occupation.dopants]
    names = sorted({one.dopant for one in wished.components}, key=INDEX.__getitem__)
    return {symbol: placed.count(symbol) / (atoms * len(cells)) for symbol in names}


def _remarks(
    pack: HostPack, wished: Composition, stable: list[_Cell], cells: int, host_imaginary: float, expected: float
) -> tuple[str, ...]:
    out = list(wished.remarks)
    if len(stable) < cells:
        out.append(f"{cells - len(stable)} of {cells} cells are unstable and left out")
    if host_imaginary > 0.0:
        out.append(f"{host_imaginary:.2%} of the host's modes are imaginary at these wave vectors")
    if expected > DOUBTFUL:
        out.append(
            f"dopants crowd each other: single substitutions are expected to leave {expected:.0%} of the change "
            f"unexplained, {min(1.0, expected * EXPECTED_SPREAD):.0%} in a bad case"
        )
    above = max(cell.above for cell in stable)
    if above > 0.0:
        out.append(f"{above:.2%} of the modes lie above {STORAGE_GRID.reach:g} times the edge, and are put there")
    off = [f"{one.dopant}@{pack.replaced(one.site)}" for one in _used(pack, wished) if one.off_centre]
    if off:
        out.append(f"{', '.join(dict.fromkeys(off))}: off its site; orientations are drawn at random")
    return tuple(out)


def _used(pack: HostPack, wished: Composition) -> list[Substitution]:
    pairs = {(one.dopant, one.replaced) for one in wished.components}
    return [one for (x, site), one in pack.substitutions.items() if (x, pack.replaced(site)) in pairs]


def _standard_error(cells: FloatArray) -> FloatArray:
    """Return the standard error of the mean over the first axis."""
    return np.asarray(cells.std(axis=0, ddof=1) / np.sqrt(len(cells)))


def element_weights(elements: tuple[str, ...], kind: str, element: str | None) -> FloatArray:
    """Return (E,) what each element's DOS counts for.

    Raises:
        SimulationError: The kind is unknown, or an element is named that is not there, or none where one must be.
    """
    if (kind == "projected") != (element is not None):
        raise SimulationError(
            f"kind is {kind!r}, element {element!r}", fix="Name an element with kind='projected', and only there"
        )
    if kind == "projected":
        if element not in elements:
            raise SimulationError(f"element {element!r} is not in the crystal", fix=f"Use {', '.join(elements)}")
        return np.array([float(symbol == element) for symbol in elements])
    if kind == "neutron-weighted":
        return np.asarray(NEUTRON_WEIGHT[[INDEX[symbol] for symbol in elements]])
    if kind != "total":
        raise SimulationError(f"kind is {kind!r}", fix="Use total, neutron-weighted or projected")
    return np.ones(len(elements))


def _area(curve: FloatArray, element: str | None) -> float:
    area = float(curve.sum() * STORAGE_GRID.width)
    if area <= 0.0:
        raise SimulationError(f"no cell holds {element}", fix="Use larger cells, or more of them")
    return area
