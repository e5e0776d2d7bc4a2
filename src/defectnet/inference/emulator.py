"""Mean and scatter of a host's spectra as functions of what is substituted, learnt from superposed cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from defectnet.config import STORAGE_GRID
from defectnet.crystal.compositions import Composition, draw_occupation
from defectnet.crystal.pack import HostPack
from defectnet.crystal.spectra import host_dos, on_elements
from defectnet.crystal.superposition import Superposition
from defectnet.elements import INDEX, SYMBOLS
from defectnet.errors import SimulationError
from defectnet.inference.instrument import InstrumentMap
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, projected_dos
from defectnet.potentials.supercells import supercell_matrix

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

CELL_ATOMS: Final = 64
"""Atoms wished in a superposed cell: placement scatters as one over their number, the cost is its cube."""

SOURCES: Final = 24
"""Wave vectors at which cells are sampled by turns, host and doped alike. They fill the Brillouin zone evenly: those
where the Hessian is real lie on its faces alone, and in crystals with soft modes at Gamma (PbSe) the mean of their
changes missed the true one by as much as there is."""

SIZES: Final = (1.0, 0.8, 1.2)
"""Cells by turns have so many times the atoms wished: one alone keeps dopants apart from their images one way."""

HOST_FWHM: Final = 0.01
"""FWHM, in edges, of the DOS of the pristine crystal at all wave vectors."""

UNSTABLE: Final = 0.005
"""Share of imaginary modes beyond the host's from which on a cell tells nothing."""

LOWEST, HIGHEST = 0.002, 0.25
"""Range of concentrations, dopant atoms over all atoms."""

FULL: Final = 1.2 * HIGHEST
"""Largest total concentration that is sampled, and that a standard may have."""

REACH: Final = 0.5
"""How far, over the total concentration, cells count as near."""

FLOOR: Final = 0.03
"""Weight of cells that are far from what is looked at."""

COMMON: Final = 0.3
"""Share of the scatter of all dopants in that of each, of which there are few cells."""

BLURRED_AT: Final = 0.02
"""Total concentration at which half of what dopants blur is blurred."""

RIDGES: Final = tuple(10.0 ** np.arange(-8.0, 1.0))
"""Ridge penalties among which leaving one cell out decides."""


BY_CELL: Final = ("concentration", "doped", "source", "misfit", "atoms")
"""What `Cells` hold for each cell."""


@dataclass(frozen=True)
class Cells:
    """N superposed cells of one host.

    Attributes:
        dopants: K names such as ``Al@Ga``.
        concentration: (N, K) dopant atoms over all atoms.
        elements: E symbols, by atomic number. doped: (N, E, L) projected DOS on `STORAGE_GRID`.
        pristine: (P, E, L) of the pristine cells, and source: (N,) which of them belongs to each.
        host: (E, L) of the pristine crystal, at all wave vectors.
        misfit: (N,) share of the change that superposition is expected to leave unexplained.
        atoms: (N,) of each.
        left_out: Cells that were unstable.
    """

    dopants: tuple[str, ...]
    concentration: FloatArray
    elements: tuple[str, ...]
    doped: FloatArray
    pristine: FloatArray
    source: IntArray
    host: FloatArray
    misfit: FloatArray
    atoms: IntArray
    left_out: int

    def joined(self, other: Cells) -> Cells:
        """Return the cells of both; dopants and elements must be the same."""
        of_both: dict[str, Any] = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in BY_CELL
        }
        return replace(self, **of_both, left_out=self.left_out + other.left_out)

    def only(self, kept: NDArray[np.bool_]) -> Cells:
        """Return the cells of some of the (K,) dopants, without those that hold another."""
        cells = self.of(np.asarray(~self.concentration[:, ~kept].any(axis=1)))
        names = tuple(name for name, wanted in zip(self.dopants, kept, strict=True) if wanted)
        return replace(cells, dopants=names, concentration=cells.concentration[:, kept])

    def of(self, chosen: NDArray[np.bool_]) -> Cells:
        """Return some of the (N,) cells."""
        return replace(self, **{name: getattr(self, name)[chosen] for name in BY_CELL})


class CellSource:
    """Superposed cells of a host pack with any of some dopants.

    Args:
        pack: Host and its substitutions.
        dopants: Names such as ``Al@Ga``.
        atoms: See `CELL_ATOMS`.
        unstable: See `UNSTABLE`.
    """

    def __init__(
        self, pack: HostPack, dopants: Sequence[str], *, atoms: int = CELL_ATOMS, unstable: float = UNSTABLE
    ) -> None:
        self.pack, self.dopants, self.unstable = pack, tuple(dopants), unstable
        n, cell = len(pack.host.primitive), pack.host.primitive.cell
        matrices = []
        for size in SIZES:
            count = max(1, round(atoms * size / n))
            slack = max(1, round(0.1 * count))
            bounds = n * max(1, count - slack), n * (count + slack)
            matrices.append(supercell_matrix(cell, n, n * count, bounds))
        symbols = {SYMBOLS[int(z)] for z in pack.host.primitive.numbers}
        self.elements = tuple(sorted(symbols | {d.partition("@")[0] for d in dopants}, key=INDEX.__getitem__))
        q_points = list(spread_wave_vectors(SOURCES))
        cells = [Superposition(pack.host, pack.substitutions, matrix, q_points[:1]) for matrix in matrices]
        self.superpositions = [cells[i % len(cells)].at([q], single=True) for i, q in enumerate(q_points)]
        self._host = [one.host_modes() for one in self.superpositions]
        self.pristine = np.stack(
            [
                self.projected(found, one.cell.crystal)
                for found, one in zip(self._host, self.superpositions, strict=True)
            ]
        )
        _, dos = host_dos(pack, HOST_FWHM * pack.host.band_edge_mev)
        self.host = on_elements(self.elements, pack.host.primitive.numbers, dos)

    def only(self, dopants: Sequence[str], *, unstable: float | None = None) -> CellSource:
        """Return a source of cells with some of the dopants; what is computed of the host is shared.

        Args:
            dopants: Their names.
            unstable: See `UNSTABLE`; by default as here.
        """
        other = copy(self)
        other.dopants = tuple(dopants)
        other.unstable = self.unstable if unstable is None else unstable
        other.__dict__.pop("room", None)
        return other

    @cached_property
    def room(self) -> FloatArray:
        """(K,) share of atoms that each dopant can replace."""
        replaced = [dopant.partition("@")[2] for dopant in self.dopants]
        symbols = [SYMBOLS[int(z)] for z in self.pack.host.primitive.numbers]
        return np.array([symbols.count(symbol) / len(symbols) for symbol in replaced])

    def draw(self, wished: FloatArray, rng: np.random.Generator, report: Callable[[int], None] | None = None) -> Cells:
        """Compute cells of wished concentrations; unstable ones are left out.

        Args:
            wished: (N, K) dopant atoms over all atoms; met to an atom.
            rng: Source of the placements.
            report: Called with the number of cells that are done.
        """
        found: list[tuple[FloatArray, FloatArray, int, float, int]] = []
        left_out = 0
        for number, row in enumerate(wished):
            turn = number % len(self.superpositions)
            one = self.superpositions[turn]
            try:
                occupation = draw_occupation(one, Composition.of(self.dopants, row), rng)
            except SimulationError:  # more than there are sites
                left_out += 1
                continue
            if not occupation.sites:
                continue
            modes = one.modes(occupation, rng)
            beyond = modes.imaginary_fraction - self._host[turn].imaginary_fraction
            if beyond > self.unstable:
                left_out += 1
                continue
            replaced = one.cell.crystal.numbers[list(occupation.sites)]
            names = [f"{x}@{SYMBOLS[int(z)]}" for x, z in zip(occupation.dopants, replaced, strict=True)]
            counts = np.array([names.count(name) for name in self.dopants]) / len(one.cell)
            doped = self.projected(modes, one.crystal(occupation))
            share = one.expected_unexplained(occupation, max(beyond, 0.0))
            found.append((counts, doped, turn, share, len(one.cell)))
            if report is not None:
                report(number + 1)
        if not found:
            raise SimulationError(
                f"{self.pack.host.id}: every cell with {', '.join(self.dopants)} is unstable", fix="Leave some out"
            )
        counts, doped, source, shares, atoms = (np.array(column) for column in zip(*found, strict=True))
        host = self.pristine, source, self.host
        return Cells(self.dopants, counts, self.elements, doped, *host, shares, atoms, left_out)

    def projected(self, modes: Modes, crystal: Crystal) -> FloatArray:
        """Return the (E, L) projected DOS of a cell, pristine or doped."""
        dos, _ = projected_dos(modes, crystal, self.pack.host.band_edge_mev, STORAGE_GRID)
        return on_elements(self.elements, crystal.numbers, dos)


def spread_wave_vectors(count: int) -> FloatArray:
    """Return (Q, 3) wave vectors that fill a reciprocal cell evenly, none of them at a point of symmetry.

    An additive recurrence with powers of the root of x^4 = x + 1, which generalises the golden ratio.
    """
    root = 1.2207440846057596
    return np.asarray((0.5 + np.arange(1, count + 1)[:, None] / root ** np.arange(1, 4)) % 1.0)


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

    The mean is a cubic in each concentration with products of pairs, unless each cell holds one dopant alone; ridge
    regression, each cell weighted by the inverse of its total concentration, as placements scatter with its root.

    Args:
        cells: What it learns from.
        instrument: How spectra are seen.
        near: Weights and (K,) concentrations near which it should be right; empty for everywhere.
    """

    def __init__(
        self,
        cells: Cells,
        instrument: InstrumentMap,
        near: Sequence[tuple[float, FloatArray]] = (),
    ) -> None:
        self.dopants, self.atoms, self.sources = cells.dopants, float(cells.atoms.mean()), len(cells.pristine)
        alone = ((cells.concentration > 0.0).sum(axis=1) < 2).all()
        self.pairs = np.triu_indices(0 if alone else len(cells.dopants), 1)
        host = instrument.seen(cells.elements, cells.pristine)
        change = instrument.seen(cells.elements, cells.doped) - host[cells.source]
        total = cells.concentration.sum(1)
        root = np.sqrt(_closeness(cells.concentration, near) / total)
        features = self.features(cells.concentration)
        self.scale = np.abs(features).max(0)
        self.scale[self.scale == 0.0] = 1.0
        design, target = features / self.scale * root[:, None], change * root[:, None]
        deviation = (host - instrument.seen(cells.elements, cells.host))[cells.source]
        self._middle = instrument.middle
        self._deviates = self.atoms * float((deviation**2).sum(-1).mean())
        self.kept = self._fit_kept(cells.concentration, deviation, _ridge(design, target)[1], root)
        target = target - root[:, None] * self.carried(cells.concentration, deviation)
        self.coefficients, rest, inverse = _ridge(design, target)
        # Roots of quadratic forms of the features: one product each.
        self._inverse_root = _root(inverse) / self.scale[:, None]
        self._norm_root = _root(self.coefficients @ self.coefficients.T) / self.scale[:, None]
        rest = rest * (1.0 / (root * np.sqrt(total)))[:, None]  # of all cells alike
        closeness = root**2 * total
        # Leaving one out measures the scatter of cells and the error of the mean together.
        self.scatter = _scatter(rest, cells.concentration / total[:, None], closeness)
        self._fit_misfit(cells)
        self.responses = self.mean(0.03 * np.eye(len(self.dopants))) / 0.03
        self.norms = np.linalg.norm(self.responses, axis=1)

    def features(self, concentration: FloatArray) -> FloatArray:
        """Return the (..., F) terms of the polynomial at (..., K) concentrations: linear, square, cube, pairs."""
        c = np.asarray(concentration, dtype=np.float64)
        first, second = self.pairs
        square = c * c
        return np.concatenate([c, square, square * c, c[..., first] * c[..., second]], axis=-1)

    def carried(self, concentration: FloatArray, deviation: FloatArray) -> FloatArray:
        """Return the (..., M) part of a change that is there because a cell samples few wave vectors.

        The host of the same cell has a DOS that deviates from the crystal's for that reason. Dopants blur and shift
        this deviation with all else, so that it is in the change, too: a control variate.

        Args:
            concentration: (..., K) of the cell.
            deviation: (..., M) of its pristine spectrum from the crystal's.
        """
        weights = _blurring(concentration)
        terms = self.deviation_terms(deviation)
        return np.asarray(np.einsum("...jk,jk,...jm->...m", weights, self.kept, terms))

    def sampled(self, deviation: FloatArray, atoms: float) -> FloatArray:
        """Return as much of a host's (M,) deviation as is there where a cell of so many atoms samples few wave vectors.

        The rest is a potential's or an instrument's.

        Args:
            deviation: Of the measured host from the crystal's computed spectrum.
            atoms: Of the cell.
        """
        share = self._deviates / atoms / max(float((deviation**2).sum()), 1e-300)
        return min(1.0, share) * deviation

    def deviation_terms(self, deviation: FloatArray) -> FloatArray:
        """Return the (..., 3, M) directions in which dopants change (..., M) deviations: less, shifted, and blurred."""
        x = self._middle
        slope = np.gradient(deviation, x, axis=-1)
        curvature = 1e-3 * np.gradient(slope, x, axis=-1)
        return np.stack([deviation, x * slope + deviation, curvature], axis=-2)

    def _fit_kept(self, c: FloatArray, deviation: FloatArray, rest: FloatArray, root: FloatArray) -> FloatArray:
        """Return the (3, K) shares of the terms of `carried` that the (N, M) errors of the mean are fitted by."""
        weights = _blurring(c) * root[:, None, None]
        terms = self.deviation_terms(deviation)
        # Normal equations of the N M equations, without their matrix.
        products = np.einsum("nim,njm->nij", terms, terms)
        normal = np.einsum("nik,njl,nij->ikjl", weights, weights, products)
        right = np.einsum("njk,njm,nm->jk", weights, terms, rest)
        size = right.size
        normal = normal.reshape(size, size)
        normal += 1e-3 * np.trace(normal) / size * np.eye(size)
        return np.asarray(np.linalg.solve(normal, right.ravel()).reshape(right.shape))

    def _fit_misfit(self, cells: Cells) -> None:
        c = cells.concentration
        design = np.column_stack([np.ones(len(c)), np.log(c.sum(1) + 0.01), np.sqrt(c)])
        penalty = np.eye(design.shape[1]) * 0.1
        penalty[0, 0] = 0.0
        self._misfit = np.linalg.solve(design.T @ design + penalty, design.T @ np.log(cells.misfit))

    def mean(self, concentration: FloatArray) -> FloatArray:
        """Return the (..., M) mean change at (..., K) concentrations."""
        return np.asarray(self.features(concentration) / self.scale @ self.coefficients)

    def leverage(self, concentration: FloatArray) -> FloatArray:
        """Return the (S,) error of the mean at (S, K) concentrations, as variance over the scatter of unit weight."""
        return np.asarray(((self.features(concentration) @ self._inverse_root) ** 2).sum(-1))

    def squared(self, concentration: FloatArray) -> FloatArray:
        """Return the (...) squared norm of the mean change at (..., K) concentrations."""
        return np.asarray(((self.features(concentration) @ self._norm_root) ** 2).sum(-1))

    def misfit(self, concentration: FloatArray) -> FloatArray:
        """Return the (...) share of the change that superposition is expected to leave unexplained."""
        c = np.asarray(concentration)
        design = np.concatenate([np.ones((*c.shape[:-1], 1)), np.log(c.sum(-1, keepdims=True) + 0.01), np.sqrt(c)], -1)
        return np.asarray(np.minimum(np.exp(design @ self._misfit), 1.0))


def _blurring(concentration: FloatArray) -> FloatArray:
    """Return the (..., 3, K) weights of the terms of `Emulator.carried`: what is blurred is so by few dopants."""
    c = np.asarray(concentration)
    blurred = c / (c.sum(-1, keepdims=True) + BLURRED_AT)
    return np.stack([blurred, c, blurred], axis=-2)


def _closeness(concentration: FloatArray, near: Sequence[tuple[float, FloatArray]]) -> FloatArray:
    """Return the (N,) weights of cells: `FLOOR`, and up to 1 where they are near to what is looked at."""
    if not near:
        return np.ones(len(concentration))
    out = np.zeros(len(concentration))
    for weight, place in near:
        apart = np.abs(concentration - place).sum(1) / (REACH * (place.sum() + 0.01))
        out += weight * np.exp(-0.5 * apart**2)
    return np.asarray(FLOOR + (1.0 - FLOOR) * out / sum(weight for weight, _ in near))


def _scatter(rest: FloatArray, share: FloatArray, closeness: FloatArray) -> FloatArray:
    """Return the (K, M, M) scatter of one cell per concentration of each dopant.

    Args:
        rest: (N, M) errors of the mean over the root of the total concentration.
        share: (N, K) of the total that each dopant has.
        closeness: (N,) what each cell counts for.
    """
    root = np.sqrt(closeness / closeness.mean())[:, None]
    rest = rest * root
    common = rest.T @ rest / len(rest)
    size = (rest**2).sum(1)
    weights, _ = nnls(share * root**2, size)  # the mean square of each dopant alone
    weights = np.maximum(weights, 0.2 * size.mean())
    out = []
    for k in range(share.shape[1]):
        own = share[:, k] ** 2
        shape = (rest * own[:, None]).T @ rest
        trace = np.trace(shape)
        own_share = 1.0 - COMMON if trace > 0.0 else 0.0
        mixed = own_share * shape / max(trace, 1e-300) + (1.0 - own_share) * common / np.trace(common)
        out.append(weights[k] * mixed)
    return np.array(out)


def _root(form: FloatArray) -> FloatArray:
    """Return a matrix R with R R^T equal to a positive semidefinite matrix, without directions that vanish."""
    values, vectors = np.linalg.eigh(form)
    kept = values > 1e-12 * values[-1]
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _ridge(design: FloatArray, target: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fit with the penalty that makes the errors of leaving each row out smallest.

    Returns:
        (F, M) coefficients, (N, M) those errors, and (F, F) the covariance of coefficients of rows of unit variance.
    """
    u, s, vt = np.linalg.svd(design, full_matrices=False)
    projected = u.T @ target
    best: tuple[float, float, FloatArray] | None = None
    for ridge in RIDGES:
        penalty = ridge * s[0] ** 2
        shrunk = s**2 / (s**2 + penalty)
        leverage = np.minimum((u**2 * shrunk).sum(1), 0.99)
        rest = (target - u @ (shrunk[:, None] * projected)) / (1.0 - leverage)[:, None]
        error = float((rest**2).sum())
        if best is None or error < best[0]:
            best = error, penalty, rest
    assert best is not None
    _, penalty, rest = best
    inverse = 1.0 / (s**2 + penalty)
    return vt.T @ ((s * inverse)[:, None] * projected), rest, (vt.T * inverse) @ vt
