"""Supercells, and which elements go where: everything drawn from one random generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.build.supercells import make_supercell
from numpy.typing import NDArray

from defectnet.elements import INDEX, NUMBERS, VOCABULARY, properties
from defectnet.errors import SimulationError
from defectnet.simulate.neighbours import Crystal

FloatArray = NDArray[np.float64]

LOWEST, HIGHEST = 0.002, 0.25
"""Range of the total dopant concentration."""

NUMBER_WEIGHTS = (0.32, 0.24, 0.16, 0.12, 0.09, 0.07)
"""Chances of 1 to 6 coexisting dopants."""

CONTROLS = 0.02
"""Share of cells without a dopant."""

LIKENESS = 0.5
"""Share of cells whose dopants are chosen by chemical likeness; the rest is uniform, so that the composition alone
does not give the answer away."""


@dataclass(frozen=True)
class Recipe:
    """What is to be substituted, before a supercell is chosen.

    Attributes:
        dopants: Symbols, none for a control.
        shares: Share of each in the total; sums to 1.
        total: Total concentration wished.
        replaced: Host element that each dopant prefers to replace.
    """

    dopants: tuple[str, ...]
    shares: tuple[float, ...]
    total: float
    replaced: tuple[str, ...]


@dataclass(frozen=True)
class DopedCell:
    """A supercell of the host with substituted sites.

    Attributes:
        crystal: The unrelaxed doped cell.
        supercell: (3, 3) integers that made it.
        sites: (n,) substituted sites; symbols: the element on each.
    """

    crystal: Crystal
    supercell: NDArray[np.int64]
    sites: NDArray[np.int64]
    symbols: tuple[str, ...]


def draw_recipe(host: Crystal, rng: np.random.Generator) -> Recipe:
    """Draw dopants, their shares and their total concentration for a host."""
    host_symbols = _symbols(host)
    if rng.random() < CONTROLS:
        return Recipe((), (), 0.0, ())
    count = int(rng.choice(len(NUMBER_WEIGHTS), p=np.array(NUMBER_WEIGHTS) / sum(NUMBER_WEIGHTS))) + 1
    similarity = likeness(host_symbols)
    by_likeness = rng.random() < LIKENESS
    weights = similarity.max(axis=1) if by_likeness else np.ones(len(VOCABULARY))
    weights = np.where(np.isin(VOCABULARY, host_symbols), 0.0, weights)
    chosen = rng.choice(len(VOCABULARY), size=count, replace=False, p=weights / weights.sum())
    total = float(np.exp(rng.uniform(np.log(LOWEST), np.log(HIGHEST))))
    shares = rng.dirichlet(np.ones(count))
    replaced = []
    for index in chosen:
        row = similarity[index] if by_likeness else np.sqrt(similarity[index])
        replaced.append(host_symbols[int(rng.choice(len(host_symbols), p=row / row.sum()))])
    return Recipe(tuple(VOCABULARY[i] for i in chosen), tuple(float(s) for s in shares), total, tuple(replaced))


def likeness(host_symbols: tuple[str, ...]) -> FloatArray:
    """Return how well each element of the vocabulary fits each host element's site, (62, len(host_symbols)).

    A Gaussian in covalent radius (0.2 angstrom) and electronegativity (0.5), with a floor so that nothing is
    impossible.
    """
    columns = [INDEX[symbol] for symbol in host_symbols]
    radius, chi = properties("covalent_radius_angstrom"), properties("electronegativity")
    d_radius = (radius[:, None] - radius[None, columns]) / 0.2
    d_chi = (chi[:, None] - chi[None, columns]) / 0.5
    return np.asarray(np.exp(-0.5 * (d_radius**2 + d_chi**2)) + 1e-3)


def supercell_matrix(cell: FloatArray, atoms: int, wanted: int, bounds: tuple[int, int]) -> NDArray[np.int64]:
    """Return an integer matrix that makes a compact supercell of about `wanted` atoms.

    Cubes of growing size are expressed in the cell vectors, rounded to integers, once with and once without
    off-diagonal terms. Of the matrices within the bounds the best is taken by shape (distance of the metric tensor
    from a cube's) and size (logarithm of the ratio to the wanted number).

    Args:
        cell: (3, 3) host cell, angstrom.
        atoms: Atoms in the host cell.
        wanted: Atoms wished.
        bounds: Fewest and most atoms; left only if no matrix lies within, and by at most a factor of 2.

    Raises:
        SimulationError: The host cell alone is more than twice too large.
    """
    inverse, volume = np.linalg.inv(cell), abs(np.linalg.det(cell))
    lengths = np.linalg.norm(cell, axis=1)
    best, best_score = None, np.inf
    for size in np.linspace(0.5, 1.6, 111):
        edge = (wanted / atoms * volume) ** (1 / 3) * size
        for matrix in (np.round(edge * inverse), np.diag(np.maximum(np.round(edge / lengths), 1.0))):
            count = round(abs(np.linalg.det(matrix))) * atoms
            if not 0 < count <= 2 * bounds[1]:
                continue
            outside = 0.0 if bounds[0] <= count <= bounds[1] else 100.0
            vectors = matrix @ cell
            metric = vectors @ vectors.T / np.linalg.det(vectors @ vectors.T) ** (1 / 3)
            score = outside + float(np.linalg.norm(metric - np.eye(3))) + 2.0 * abs(np.log(count / wanted))
            if score < best_score - 1e-9:
                best, best_score = matrix.astype(np.int64), score
    if best is None:
        raise SimulationError(
            f"the host cell has {atoms} atoms, supercells should have {bounds[0]} to {bounds[1]}",
            fix="Allow more atoms with --atoms",
        )
    return best if np.linalg.det(best) > 0 else -best


def build(host: Crystal, recipe: Recipe, rng: np.random.Generator, smallest: int, largest: int) -> DopedCell:
    """Make the supercell, substitute, and rattle a little so that no force vanishes by symmetry.

    The cell has between `smallest` and `largest` atoms and is as small as the concentration allows: random within
    what is left, so that the size does not give the concentration away.
    """
    count = len(recipe.dopants)
    least = count / recipe.total if count else smallest
    wanted = int(rng.uniform(min(max(smallest, least), largest), largest))
    matrix = supercell_matrix(host.cell, len(host), wanted, (smallest, largest))
    pristine = supercell(host, matrix)
    atoms = len(pristine)
    sites, symbols = _substitute(pristine, recipe, rng)
    numbers = pristine.numbers.copy()
    numbers[sites] = [NUMBERS[INDEX[symbol]] for symbol in symbols]
    rattle = rng.normal(0.0, 0.01, (atoms, 3))
    return DopedCell(Crystal(numbers, pristine.cell, pristine.positions + rattle), matrix, sites, symbols)


def _substitute(
    pristine: Crystal, recipe: Recipe, rng: np.random.Generator
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Choose sites: each dopant on its preferred host element, at random; others only when those are used up."""
    atoms, count = len(pristine), len(recipe.dopants)
    if not count:
        return np.zeros(0, dtype=np.int64), ()
    total = int(np.clip(round(recipe.total * atoms), count, max(count, int(HIGHEST * atoms))))
    extra = rng.multinomial(total - count, recipe.shares)
    free = np.ones(atoms, dtype=bool)
    sites: list[int] = []
    symbols: list[str] = []
    for symbol, replaced, more in zip(recipe.dopants, recipe.replaced, extra, strict=True):
        wished = int(more) + 1
        preferred = np.flatnonzero(free & (pristine.numbers == NUMBERS[INDEX[replaced]]))
        others = np.flatnonzero(free & (pristine.numbers != NUMBERS[INDEX[replaced]]))
        chosen = np.concatenate([rng.permutation(preferred), rng.permutation(others)])[:wished]
        free[chosen] = False
        sites += [int(site) for site in chosen]
        symbols += [symbol] * wished
    return np.array(sites, dtype=np.int64), tuple(symbols)


def supercell(host: Crystal, matrix: NDArray[np.int64]) -> Crystal:
    """Repeat the host; atoms of one host atom are consecutive."""
    atoms = Atoms(host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    repeated = make_supercell(atoms, matrix, order="atom-major")  # type: ignore[no-untyped-call]
    return Crystal(repeated.numbers.astype(np.int64), repeated.cell.array, repeated.positions)


def _symbols(host: Crystal) -> tuple[str, ...]:
    by_number = dict(zip(NUMBERS.tolist(), VOCABULARY, strict=True))
    unknown = sorted({int(z) for z in host.numbers} - set(by_number))
    if unknown:
        raise SimulationError(
            f"the host holds the element with Z = {unknown[0]}, which is outside the vocabulary", fix="Leave it out"
        )
    return tuple(by_number[int(z)] for z in np.unique(host.numbers))
