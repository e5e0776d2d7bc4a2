"""Mean and scatter of a host's spectra as functions of what is substituted, learnt from superposed cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from defectnet.config import STORAGE_GRID
from defectnet.crystal.compositions import Component, Composition, draw_occupation
from defectnet.crystal.pack import HostPack
from defectnet.crystal.superposition import Superposition
from defectnet.elements import INDEX, SYMBOLS
from defectnet.errors import SimulationError
from defectnet.inference.instrument import Instrument
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, projected_dos
from defectnet.potentials.supercells import supercell_matrix

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CELL_ATOMS: Final = 64
"""Atoms wished in a superposed cell: placement and sampling scatter as one over the number of atoms, cost as its cube."""

WAVE_VECTOR: Final = (0.5, 0.5, 0.5)
"""At which cells are sampled, host and doped alike: the Hessian is real there, and no mode has zero energy."""

UNSTABLE: Final = 0.005
"""Share of imaginary modes beyond the host's from which on a cell tells nothing."""

LOWEST, HIGHEST = 0.002, 0.25
"""Range of concentrations, dopant atoms over all atoms."""

RIDGES: Final = tuple(10.0 ** np.arange(-8.0, 1.0))
"""Ridge penalties among which leaving one cell out decides."""


@dataclass(frozen=True)
class Cells:
    """N superposed cells of one host.

    Attributes:
        dopants: K names such as ``Al@Ga``.
        concentration: (N, K) dopant atoms over all atoms.
        elements: E symbols, by atomic number. change: (N, E, L) projected DOS of the doped less that of the pristine
            cell, on `STORAGE_GRID`. pristine: (E, L) of the latter.
        misfit: (N,) share of the change that superposition is expected to leave unexplained.
        atoms: Of a cell.
        left_out: Cells that were unstable.
    """

    dopants: tuple[str, ...]
    concentration: FloatArray
    elements: tuple[str, ...]
    change: FloatArray
    pristine: FloatArray
    misfit: FloatArray
    atoms: int
    left_out: int

    def joined(self, other: Cells) -> Cells:
        """Return the cells of both; dopants and elements must be the same."""
        return Cells(
            self.dopants,
            np.concatenate([self.concentration, other.concentration]),
            self.elements,
            np.concatenate([self.change, other.change]),
            self.pristine,
            np.concatenate([self.misfit, other.misfit]),
            self.atoms,
            self.left_out + other.left_out,
        )


class CellSource:
    """Superposed cells of a host pack with any of some dopants.

    Args:
        pack: Host and its substitutions.
        dopants: Names such as ``Al@Ga``.
        atoms: See `CELL_ATOMS`.
        seed: Of placements.
    """

    def __init__(self, pack: HostPack, dopants: Sequence[str], *, atoms: int = CELL_ATOMS, seed: int = 0) -> None:
        self.pack, self.dopants = pack, tuple(dopants)
        n = len(pack.host.primitive)
        most = max(int(1.3 * atoms), n)
        matrix = supercell_matrix(pack.host.primitive.cell, n, max(atoms, n), (min(int(0.7 * atoms), n), most))
        self.superposition = Superposition(pack.host, pack.substitutions, matrix, [np.array(WAVE_VECTOR)])
        symbols = {SYMBOLS[int(z)] for z in pack.host.primitive.numbers}
        self.elements = tuple(sorted(symbols | {d.partition("@")[0] for d in dopants}, key=INDEX.__getitem__))
        self._rng = np.random.default_rng([seed, len(pack.host.primitive)])
        self._host = self.superposition.host_modes()
        self.pristine = self._projected(self._host, self.superposition.cell.crystal.numbers)

    @cached_property
    def room(self) -> FloatArray:
        """(K,) share of atoms that each dopant can replace."""
        replaced = [dopant.partition("@")[2] for dopant in self.dopants]
        symbols = [SYMBOLS[int(z)] for z in self.pack.host.primitive.numbers]
        return np.array([symbols.count(symbol) / len(symbols) for symbol in replaced])

    def draw(self, wished: FloatArray, report: Callable[[int], None] | None = None) -> Cells:
        """Compute cells of wished concentrations; unstable ones are left out.

        Args:
            wished: (N, K) dopant atoms over all atoms; met to an atom.
            report: Called with the number of cells that are done.
        """
        cell, atoms = self.superposition.cell, len(self.superposition.cell)
        found: list[tuple[FloatArray, FloatArray, float]] = []
        left_out = 0
        for number, row in enumerate(wished):
            parts = [
                Component(*name.partition("@")[::2], concentration=float(value))
                for name, value in zip(self.dopants, row, strict=True)
                if value > 0.0
            ]
            try:
                occupation = draw_occupation(self.superposition, Composition(tuple(parts)), self._rng)
            except SimulationError:  # more than there are sites
                left_out += 1
                continue
            modes = self.superposition.modes(occupation, self._rng)
            beyond = modes.imaginary_fraction - self._host.imaginary_fraction
            if beyond > UNSTABLE or not occupation.sites:
                left_out += bool(occupation.sites)
                continue
            change = self._projected(modes, self.superposition.numbers(occupation)) - self.pristine
            names = [
                f"{x}@{SYMBOLS[int(cell.crystal.numbers[s])]}"
                for x, s in zip(occupation.dopants, occupation.sites, strict=True)
            ]
            counts = np.array([names.count(name) for name in self.dopants]) / atoms
            share = self.superposition.expected_unexplained(occupation, max(beyond, 0.0))
            found.append((counts, change, share))
            if report is not None:
                report(number + 1)
        if not found:
            raise SimulationError(
                f"{self.pack.host.id}: every cell with {', '.join(self.dopants)} is unstable", fix="Leave some out"
            )
        counts, changes, shares = (np.array(column) for column in zip(*found, strict=True))
        return Cells(self.dopants, counts, self.elements, changes, self.pristine, shares, atoms, left_out)

    def _projected(self, modes: Modes, numbers: IntArray) -> FloatArray:
        crystal = self.superposition.cell.crystal
        doped = Crystal(numbers, crystal.cell, crystal.positions)
        dos, _ = projected_dos(modes, doped, self.pack.host.band_edge_mev, STORAGE_GRID)
        out = np.zeros((len(self.elements), STORAGE_GRID.bins))
        out[[self.elements.index(SYMBOLS[int(z)]) for z in np.unique(numbers)]] = dos
        return out


def draw_concentrations(room: FloatArray, count: int, rng: np.random.Generator, *, most: int = 3) -> FloatArray:
    """Draw (N, K) concentrations: 1 to `most` dopants, totals log-uniform from one atom in 100 to `HIGHEST`.

    Args:
        room: (K,) share of atoms that each dopant can replace.
        count: N.
        rng: Source of every choice.
        most: Dopants together.
    """
    out = np.zeros((count, len(room)))
    number = 1 + rng.permutation(np.arange(count) % min(most, len(room)))
    order = rng.permutation(np.arange(count) % len(room))  # each dopant as often as any other
    for row, kinds, first in zip(out, number, order, strict=True):
        others = rng.permutation(np.delete(np.arange(len(room)), first))[: kinds - 1]
        chosen = np.append(first, others)
        total = np.exp(rng.uniform(np.log(0.01 * kinds), np.log(HIGHEST)))
        row[chosen] = np.minimum(total * rng.dirichlet(np.ones(kinds)), 0.9 * room[chosen])
    return out


class Emulator:
    """Mean change of a measured spectrum, how it scatters, and how far superposition can be trusted; M bins.

    The mean is a cubic in each concentration with products of pairs; ridge regression, each cell weighted by the
    inverse of its total concentration, as placements scatter with its root.

    Args:
        cells: What it learns from.
        instrument: How spectra are seen.
        near: (K,) concentrations near which it should be right, if any; and `reach`: how near, in logarithms.
    """

    def __init__(self, cells: Cells, instrument: Instrument, weight: FloatArray | None = None) -> None:
        self.dopants, self.atoms = cells.dopants, cells.atoms
        host = instrument.seen(cells.elements, cells.pristine)
        seen = instrument.seen(cells.elements, cells.pristine + cells.change)
        change = seen - host
        total = cells.concentration.sum(1)
        root = 1.0 / np.sqrt(total) if weight is None else np.sqrt(weight / total)
        features = self._features(cells.concentration)
        self.scale = np.abs(features).max(0)
        self.scale[self.scale == 0.0] = 1.0
        design, target = features / self.scale * root[:, None], change * root[:, None]
        self.coefficients, rest = _ridge(design, target)
        # Leaving one out measures the scatter of cells and the error of the mean together.
        self.scatter = rest.T @ rest / len(rest)
        squared = (rest**2).sum(1) * total
        weights, _ = nnls(cells.concentration, squared)
        mean = float(squared.mean() / total.mean())
        self.scatter_by_dopant = np.maximum(weights, 0.2 * mean) / max(np.trace(self.scatter), 1e-300)
        self._fit_misfit(cells)
        self.responses = self.mean(0.03 * np.eye(len(self.dopants))) / 0.03
        self.norms = np.linalg.norm(self.responses, axis=1)

    def _features(self, concentration: FloatArray) -> FloatArray:
        c = np.asarray(concentration, dtype=np.float64)
        first, second = np.triu_indices(c.shape[-1], 1)
        return np.concatenate([c, c**2, c**3, c[..., first] * c[..., second]], axis=-1)

    def _fit_misfit(self, cells: Cells) -> None:
        c = cells.concentration
        design = np.column_stack([np.ones(len(c)), np.log(c.sum(1) + 0.01), np.sqrt(c)])
        penalty = np.eye(design.shape[1]) * 0.1
        penalty[0, 0] = 0.0
        self._misfit = np.linalg.solve(design.T @ design + penalty, design.T @ np.log(cells.misfit))

    def mean(self, concentration: FloatArray) -> FloatArray:
        """Return the (..., M) mean change at (..., K) concentrations."""
        return np.asarray(self._features(concentration) / self.scale @ self.coefficients)

    def scatter_of(self, concentration: FloatArray) -> FloatArray:
        """Return (...) what `scatter` is multiplied with for one cell of `atoms`."""
        return np.asarray(concentration @ self.scatter_by_dopant)

    def misfit(self, concentration: FloatArray) -> FloatArray:
        """Return the (...) share of the change that superposition is expected to leave unexplained."""
        c = np.asarray(concentration)
        design = np.concatenate([np.ones((*c.shape[:-1], 1)), np.log(c.sum(-1, keepdims=True) + 0.01), np.sqrt(c)], -1)
        return np.minimum(np.exp(design @ self._misfit), 1.0)


def _ridge(design: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return coefficients and the errors of leaving each row out, with the penalty that makes them smallest."""
    u, s, vt = np.linalg.svd(design, full_matrices=False)
    projected = u.T @ target
    best: tuple[float, FloatArray, FloatArray] | None = None
    for ridge in RIDGES:
        penalty = ridge * s[0] ** 2
        shrunk = s**2 / (s**2 + penalty)
        leverage = np.minimum((u**2 * shrunk).sum(1), 0.99)
        rest = (target - u @ (shrunk[:, None] * projected)) / (1.0 - leverage)[:, None]
        error = float((rest**2).sum())
        if best is None or error < best[0]:
            best = error, vt.T @ ((s / (s**2 + penalty))[:, None] * projected), rest
    assert best is not None
    return best[1], best[2]
