"""Projected phonon DOS of large cells from a sparse dynamical matrix, without diagonalising it.

The projected DOS of an element is a trace over its 3 n degrees of freedom, and a trace is estimated by random vectors
r of signs on the element's atoms: the mean of <r|f(D)|r> with a Gaussian f in energy. Each <r|f(D)|r> is a polynomial
of degree 2 K - 1 in D after K products D r. The kernel polynomial method takes these moments by Chebyshev recursion;
here they are taken by Lanczos recursion and Gauss quadrature ("stochastic Lanczos quadrature"). With few products
Chebyshev has the smaller error; where errors are small enough to be of use both are alike, and with local modes Lanczos
is far ahead. Error of the area, same vectors, relaxed Si0.81Ge0.19 of 216 atoms, FWHM 1 % of the edge:

    products per vector                                60      150      200      300
    Lanczos                                          2e-1     5e-4     3e-6    9e-12
    Chebyshev, Gaussian kernel                       2e-2     1e-4     3e-6     2e-7
    Lanczos, with B (modes at 1.8 of the edge)       4e-1     1e-2     6e-4     5e-8
    Chebyshev, with B                                8e-2     2e-2     5e-3     2e-4

Sixteen vectors leave a statistical error of 7e-2 there. Lanczos needs no bounds of the spectrum (Chebyshev diverges
where they are wrong, and pays for a single high local mode with products in proportion), its DOS is never negative,
and its nodes show imaginary modes as such, so that they can be left out. In 32 bits its error is 2e-6. Random vectors:
signs, Gaussians, phases, orthogonal ones and Hadamard rows gave the same statistical error within a tenth.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import atomic_masses
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.special import ndtr
from torch import Tensor

from defectnet.config import Grid
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import IMAGINARY_MEV, MEV_PER_ROOT

FloatArray = NDArray[np.float64]

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))

TRUNCATION = 5e-3
"""Products go on until the last `STEP` of them change the area of a vector's DOS by less; what is left is then 1e-4."""

STEP = 32
"""Products between two looks at whether they are enough."""

LONGEST = 2048
"""Products for one vector, at most."""

FINEST = 1e-3
"""Least FWHM in units of the edge; some 1,500 products resolve it."""

COLUMNS = 64
"""Vectors that are multiplied together: a sparse product of many vectors is several times as fast as of one."""

LOOKED_AT = 8
"""Vectors of a block, by which it is judged whether products are enough."""


@dataclass(frozen=True)
class EstimatedDos:
    """A projected DOS with its statistical error; E elements, R random vectors, L bins.

    Attributes:
        elements: (E,) atomic numbers, ascending.
        dos: (E, L) DOS per relative energy, each with its atomic fraction as area, as `phonons.projected_dos`.
        deviation: (E, R, L) what each random vector alone would change, from which errors follow; zero for elements
            whose every degree of freedom was used.
        fwhm_mev: Resolution, the same at all energies: the DOS is that of `broadened` with this FWHM.
        truncation: What the last `STEP` products still changed, as area; the remaining error is smaller.
        steps: Most products D r for one vector.
        above: Share of the real modes above the grid, which is counted into the last bin.
        imaginary: Share of the modes below minus `phonons.IMAGINARY_MEV`, which are left out of the DOS.
        lowest_mev: Lowest energy, imaginary ones negative; approached from above.
        highest_mev: Highest energy; approached from below.
    """

    elements: NDArray[np.int64]
    dos: FloatArray
    deviation: FloatArray
    fwhm_mev: float
    truncation: float
    steps: int
    above: float
    imaginary: float
    lowest_mev: float
    highest_mev: float

    @property
    def standard_error(self) -> FloatArray:
        """(E, L) statistical standard error of `dos`; from a spread of R vectors, itself uncertain by 1 / sqrt(2 R)."""
        return _standard_error(self.deviation)

    @property
    def total_error(self) -> FloatArray:
        """(L,) statistical standard error of the total DOS, the sum of `dos`."""
        return _standard_error(self.deviation.sum(0))


def _standard_error(deviation: FloatArray) -> FloatArray:
    vectors = deviation.shape[-2]
    return np.asarray(np.sqrt((deviation**2).sum(-2) / (vectors * (vectors - 1))))


def dynamical_matrix_sparse(
    first: Tensor, second: Tensor, block: Tensor, masses: FloatArray, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Put the dynamical matrix at Gamma together from blocks of force constants.

    Args:
        first: (B,) long, atoms; the same pair may come several times, and adds up.
        second: (B,) long, the other atom of each pair.
        block: (B, 3, 3) second derivatives, eV/angstrom^2; on any device, where the matrix will be.
        masses: (N,) in u.
        dtype: torch.float64, or torch.float32: half the memory, and products two to three times as fast.

    Returns:
        (3 N, 3 N) sparse CSR, eV/(angstrom^2 u).

    Raises:
        SimulationError: Numbers that are not finite, atoms that do not exist, masses that are not positive.
    """
    atoms, device = len(masses), block.device
    if not (np.isfinite(masses).all() and (masses > 0).all()):
        raise SimulationError("masses are not all positive and finite", fix="Give standard atomic weights in u")
    if first.shape != second.shape or block.shape != (len(first), 3, 3):
        raise SimulationError(
            "force constants: first, second and block do not belong together",
            why=f"their shapes are {tuple(first.shape)}, {tuple(second.shape)} and {tuple(block.shape)}",
            fix="Give (B,), (B,) and (B, 3, 3)",
        )
    _require_finite(block, "force constants")
    if (
        len(first)
        and not 0 <= int(torch.minimum(first, second).min()) <= int(torch.maximum(first, second).max()) < atoms
    ):
        raise SimulationError(f"force constants name atoms outside 0 to {atoms - 1}", fix="Give one mass for each atom")
    key, place = torch.unique(first.to(device) * atoms + second.to(device), return_inverse=True)
    summed = torch.zeros(len(key), 3, 3, dtype=torch.float64, device=device)
    summed.index_add_(0, place, block.double())
    row, column = key // atoms, key % atoms
    root = torch.as_tensor(1.0 / np.sqrt(masses), device=device)
    summed *= (root[row] * root[column])[:, None, None]
    # Entries of a row of blocks lie as three rows of numbers, one after the other.
    count = torch.bincount(row, minlength=atoms)
    start = torch.cumsum(count, 0) - count
    xyz = torch.arange(3, device=device)
    within = 3 * (torch.arange(len(key), device=device) - start[row])
    target = (9 * start)[row][:, None, None] + (3 * count)[row][:, None, None] * xyz[:, None] + xyz
    target = (target + within[:, None, None]).ravel()
    values = torch.empty(9 * len(key), dtype=dtype, device=device)
    values[target] = summed.to(dtype).ravel()
    columns = torch.empty(9 * len(key), dtype=torch.int32, device=device)
    columns[target] = (3 * column[:, None, None] + xyz).expand(-1, 3, 3).to(torch.int32).ravel()
    ends = torch.zeros(3 * atoms + 1, dtype=torch.int32, device=device)
    ends[1:] = torch.cumsum((3 * count).repeat_interleave(3), 0)
    # 32-bit indices: MKL would convert longer ones at every product.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(ends, columns, values, size=(3 * atoms, 3 * atoms), check_invariants=True)


REACH_OF_GAUSSIAN = 9.0
"""Deviations beyond which nothing of a Gaussian is left in double precision."""


def broadened(energy_mev: FloatArray, edge_mev: float, grid: Grid, fwhm_mev: float) -> FloatArray:
    """Return the histogram of `phonons.projected_dos` for each of M energies, convolved with a Gaussian.

    The Gaussian is mirrored at zero energy; what would lie above the grid is in the last bin.

    Returns:
        (M, L) per relative energy; rows have area 1.
    """
    sigma = fwhm_mev / FWHM_PER_SIGMA / edge_mev / grid.width
    nodes = np.arange(-1, grid.bins + 1)

    def shared(position: FloatArray) -> FloatArray:
        # Sharing between two bins is a triangle, the second difference of |x| / 2; with a Gaussian that is this one's.
        x = (position[:, None] - nodes) / sigma
        smooth = sigma * (x * ndtr(x) + np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi))
        return np.asarray(smooth[:, 2:] - 2.0 * smooth[:, 1:-1] + smooth[:, :-2])

    position = np.maximum(energy_mev, 0.0) / edge_mev / grid.width - 0.5
    out = shared(position)
    low = position < REACH_OF_GAUSSIAN * sigma  # others have no mirror image on the grid
    out[low] += shared(-1.0 - position[low])
    out[:, -1] += 1.0 - out.sum(1)
    return np.maximum(out, 0.0) / grid.width


def kernel_polynomial_dos(
    matrix: Tensor,
    crystal: Crystal,
    edge_mev: float,
    grid: Grid,
    *,
    fwhm_mev: float,
    vectors: int = 32,
    seed: int = 0,
) -> EstimatedDos:
    """Estimate the projected DOS at Gamma from products of the dynamical matrix with vectors.

    The three translations are left out, as in `phonons.modes`. Elements of few atoms, 3 n <= `vectors`, take every
    degree of freedom in place of random vectors, and have no statistical error. Others have an error that falls as
    1 / sqrt(vectors * n). Random signs belong to the seed and the place of the atom in the crystal, not to its element:
    of host and doped cell with the same order of sites much of the error cancels in the difference.

    Args:
        matrix: (3 N, 3 N) sparse CSR, see `dynamical_matrix_sparse`; where it is, and in its precision, is computed.
        crystal: For elements and masses (standard atomic weights).
        edge_mev: Highest energy of the host.
        grid: Bins.
        fwhm_mev: Resolution wished, at all energies: FWHM of the Gaussian with which the DOS is broadened.
        vectors: Random vectors for each element.
        seed: The same seed gives the same numbers.

    Raises:
        SimulationError: The matrix is not finite, not symmetric or of another crystal; a setting is out of range.
    """
    _check_settings(edge_mev, grid, fwhm_mev, vectors, seed)
    numbers = np.unique(crystal.numbers)
    masks = [np.repeat(crystal.numbers == z, 3) for z in numbers]
    columns = [column for k in range(len(numbers)) for column in _columns(k, masks[k], vectors)]
    starts = [_start(column, masks[column.element], seed) for column in columns]
    found = _spectra(matrix, _translations(matrix, crystal), starts, edge_mev, grid, fwhm_mev)
    dos, deviation = np.zeros((len(numbers), grid.bins)), np.zeros((len(numbers), vectors, grid.bins))
    shares = np.zeros(3)
    for k, mask in enumerate(masks):
        own = np.array([column.element == k for column in columns])
        shape, spread = _ratio(found.dos[own], found.weight[own, 0])
        dos[k] = mask.mean() * shape
        if mask.sum() > vectors:
            deviation[k] = mask.mean() * spread
        shares += found.weight[own].sum(0) / (vectors if mask.sum() > vectors else 1)
    return EstimatedDos(
        elements=numbers,
        dos=dos,
        deviation=deviation,
        fwhm_mev=fwhm_mev,
        truncation=found.truncation,
        steps=found.steps,
        above=float(shares[1] / shares[0]),
        imaginary=float(shares[2] / (shares[0] + shares[2])),
        lowest_mev=found.lowest_mev,
        highest_mev=found.highest_mev,
    )


def _check_settings(edge_mev: float, grid: Grid, fwhm_mev: float, vectors: int, seed: int) -> None:
    if not (math.isfinite(edge_mev) and edge_mev > 0.0):
        raise SimulationError(f"edge_mev is {edge_mev}", fix="Give the highest energy of the host, above 0")
    finest = edge_mev * max(grid.width, FINEST)
    if not (math.isfinite(fwhm_mev) and fwhm_mev >= finest * (1.0 - 1e-9)):
        raise SimulationError(
            f"fwhm_mev is {fwhm_mev:g}", fix=f"Use {finest:.4g} meV or more: a bin, and {FINEST:g} of the edge"
        )
    if vectors < 2:
        raise SimulationError(f"vectors is {vectors}", fix="Use 2 or more: their spread is the statistical error")
    if seed < 0:
        raise SimulationError(f"seed is {seed}", fix="Use 0 or a positive whole number")


@dataclass(frozen=True)
class _Spectra:
    """What start vectors say, each of its own: (V, L) DOS, not normalised, and (V, 3) weights, see `_spectrum`."""

    dos: FloatArray
    weight: FloatArray
    truncation: float
    steps: int
    lowest_mev: float
    highest_mev: float


def _spectra(
    matrix: Tensor, translation: Tensor, starts: list[FloatArray], edge_mev: float, grid: Grid, fwhm_mev: float
) -> _Spectra:
    """Run the recursions, `COLUMNS` at a time."""
    dos, weight = np.zeros((len(starts), grid.bins)), np.zeros((len(starts), 3))
    steps, truncation, energies = 3 * STEP, 0.0, []
    for begin in range(0, len(starts), COLUMNS):
        block = starts[begin : begin + COLUMNS]
        lanczos = _Lanczos(matrix, translation, np.stack(block, 1))
        truncation = max(truncation, _until_enough(lanczos, steps - STEP, edge_mev, grid, fwhm_mev))
        steps = max(steps, lanczos.steps)
        for k in range(len(block)):
            energy, share = lanczos.quadrature(k)
            dos[begin + k], weight[begin + k] = _spectrum(energy, share, edge_mev, grid, fwhm_mev)
            energies += [float(energy.min()), float(energy.max())]
    return _Spectra(dos, weight, truncation, steps, min(energies), max(energies))


def band_limits(matrix: Tensor, crystal: Crystal, *, seed: int = 0) -> tuple[float, float]:
    """Return the lowest and the highest energy at Gamma in meV, translations left out, imaginary ones negative.

    Raises:
        SimulationError: The matrix is not finite, not symmetric or of another crystal.
    """
    translation = _translations(matrix, crystal)
    everywhere = np.ones(3 * len(crystal), dtype=bool)
    starts = [_start(_Column(0, k, single=False), everywhere, seed) for k in range(4)]
    lanczos = _Lanczos(matrix, translation, np.stack(starts, 1))
    before, found = np.zeros(2), np.full(2, math.inf)
    while np.abs(found - before).max() > 1e-5 * np.abs(found).max() or lanczos.steps < 3 * STEP:
        lanczos.advance(STEP)
        energy = np.concatenate([lanczos.quadrature(k)[0] for k in range(4)])
        before, found = found, np.array([energy.min(), energy.max()])
    return float(found[0]), float(found[1])


@dataclass(frozen=True)
class _Column:
    """A start vector: of signs, the `index`-th of its element, or a `single` degree of freedom `index`."""

    element: int
    index: int
    single: bool


def _columns(element: int, mask: NDArray[np.bool_], vectors: int) -> list[_Column]:
    """Return the cheaper of all degrees of freedom of an element, (3 N,) mask, and of random vectors."""
    own = np.flatnonzero(mask)
    if len(own) <= vectors:
        return [_Column(element, int(index), single=True) for index in own]
    return [_Column(element, index, single=False) for index in range(vectors)]


def _start(column: _Column, mask: NDArray[np.bool_], seed: int) -> FloatArray:
    """Return the (3 N,) start vector."""
    if column.single:
        return np.asarray(np.arange(len(mask)) == column.index, dtype=np.float64)
    signs = 2.0 * np.random.default_rng([seed, column.index]).integers(0, 2, len(mask)) - 1.0
    return np.asarray(signs * mask)


def _translations(matrix: Tensor, crystal: Crystal) -> Tensor:
    """Return the orthonormal (3 N, 3) translations, in mass-weighted coordinates, after a look at the matrix."""
    size = 3 * len(crystal)
    if matrix.layout != torch.sparse_csr or matrix.shape != (size, size) or len(crystal) < 2:
        raise SimulationError(
            f"dynamical matrix of {len(crystal)} atoms",
            why=f"it is {matrix.layout} of shape {tuple(matrix.shape)}",
            fix="Give a crystal of two atoms or more, and its matrix as dynamical_matrix_sparse makes it",
        )
    _require_finite(matrix.values(), "dynamical matrix")
    rng = np.random.default_rng(0)
    pair = torch.as_tensor(rng.normal(size=(size, 2)), dtype=matrix.dtype, device=matrix.device)
    products = pair.T @ (matrix @ pair)
    largest = float(pair[:, 0].norm() * (matrix @ pair[:, 1:]).norm())
    if abs(float(products[0, 1] - products[1, 0])) > (1e-6 if matrix.dtype == torch.float64 else 1e-5) * largest:
        raise SimulationError(
            "dynamical matrix is not symmetric",
            fix="Give the blocks (first, second) and (second, first), which is its transpose, of every pair",
        )
    root = np.sqrt(atomic_masses[crystal.numbers])
    moved = np.kron((root / np.linalg.norm(root))[:, None], np.eye(3))
    return torch.as_tensor(moved, dtype=matrix.dtype, device=matrix.device)


def _require_finite(values: Tensor, name: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise SimulationError(
            f"{name}: some numbers are not finite", fix="Check the potential, and that no atoms lie on each other"
        )


class _Lanczos:
    """Lanczos recursions from several start vectors, each on its own; translations are projected out throughout.

    Without reorthogonalisation: copies of a node, which then appear, share its weight, so that sums over nodes hold.

    Args:
        matrix: (3 N, 3 N) sparse.
        translation: (3 N, 3) orthonormal.
        start: (3 N, C).
    """

    def __init__(self, matrix: Tensor, translation: Tensor, start: FloatArray) -> None:
        self._matrix, self._translation = matrix, translation
        first = self._project(torch.as_tensor(start, dtype=matrix.dtype, device=matrix.device))
        norm = first.norm(dim=0)
        self._weight = norm.double().square().cpu().numpy()
        self._now, self._before = first / norm, torch.zeros_like(first)
        self._beta = torch.zeros_like(norm)
        self._alphas: list[Tensor] = []
        self._betas: list[Tensor] = []
        self._scale = (matrix @ self._now).norm(dim=0)

    @property
    def steps(self) -> int:
        """Products so far, for each vector."""
        return len(self._alphas)

    def some(self, count: int) -> range:
        """Return up to `count` columns, spread evenly."""
        return range(0, len(self._weight), max(1, len(self._weight) // count))

    def _project(self, vectors: Tensor) -> Tensor:
        return vectors - self._translation @ (self._translation.T @ vectors)

    def advance(self, steps: int) -> None:
        """Multiply `steps` times."""
        tiny = 16.0 * torch.finfo(self._now.dtype).eps * self._scale
        for _ in range(steps):
            after = self._matrix @ self._now
            after.addcmul_(self._before, self._beta, value=-1.0)
            alpha = (self._now * after).sum(0)
            # Last of all, or the recursion would blow rounding up to a node at zero energy.
            after = self._project(after.addcmul_(self._now, alpha, value=-1.0))
            beta = after.norm(dim=0)
            # Nothing but rounding is left where all modes of a vector are found: end there, with exact zeros.
            going = beta > tiny
            self._beta = torch.where(going, beta, 0.0)
            self._before, self._now = self._now, after.mul_(torch.where(going, 1.0 / beta, 0.0))
            self._alphas.append(alpha)
            self._betas.append(self._beta)

    def quadrature(self, column: int) -> tuple[FloatArray, FloatArray]:
        """Return the nodes of one vector as energies in meV, imaginary ones negative, and their weights."""
        alpha = torch.stack(self._alphas)[:, column].double().cpu().numpy()
        beta = torch.stack(self._betas)[:, column].double().cpu().numpy()
        length = int(np.argmin(beta > 0.0)) + 1 if (beta <= 0.0).any() else len(beta)
        values, nodes = eigh_tridiagonal(alpha[:length], beta[: length - 1])
        return np.sign(values) * np.sqrt(np.abs(values)) * MEV_PER_ROOT, self._weight[column] * nodes[0] ** 2


def _until_enough(lanczos: _Lanczos, steps: int, edge_mev: float, grid: Grid, fwhm_mev: float) -> float:
    """Advance, at least `steps`, until the DOS of some of the vectors stay as they are; returns the last change."""

    def look() -> FloatArray:
        spectra = [_spectrum(*lanczos.quadrature(k), edge_mev, grid, fwhm_mev) for k in lanczos.some(LOOKED_AT)]
        return np.stack([spectrum / weight.sum() for spectrum, weight in spectra])

    lanczos.advance(steps)
    before = look()
    while lanczos.steps < LONGEST:
        lanczos.advance(STEP)
        now = look()
        changed = float(np.abs(now - before).sum(1).mean() * grid.width)
        if changed < TRUNCATION:
            return changed
        before = now
    raise SimulationError(
        f"fwhm_mev is {fwhm_mev:g}: {LONGEST} products of the matrix with a vector do not resolve it",
        fix="Use a wider one",
    )


def _spectrum(
    energy: FloatArray, share: FloatArray, edge_mev: float, grid: Grid, fwhm_mev: float
) -> tuple[FloatArray, FloatArray]:
    """Return the (L,) DOS of nodes, and the (3,) weights of real ones, of those above the grid, of imaginary ones."""
    real = energy >= -IMAGINARY_MEV
    above = real & (energy / edge_mev > grid.reach - 0.5 * grid.width)
    return share[real] @ broadened(energy[real], edge_mev, grid, fwhm_mev), np.array(
        [share[real].sum(), share[above].sum(), share[~real].sum()]
    )


def _ratio(spectra: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the (L,) DOS of area 1 from (V, L) of the vectors and their (V,) areas, and what each deviates.

    The area is known, so that the estimate is a ratio of two means; the linear part of it carries the error.
    """
    if weight.sum() <= 0.0:
        raise SimulationError("all modes of an element are imaginary", fix="Relax the crystal first")
    shape = spectra.sum(0) / weight.sum()
    return shape, (spectra - weight[:, None] * shape) / weight.mean()
