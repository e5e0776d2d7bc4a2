"""From second derivatives to projected phonon densities of states, host and doped cell sampled alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from ase.data import atomic_masses
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor

from defectnet.config import Grid
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal

FloatArray = NDArray[np.float64]

MEV_PER_ROOT = 64.654151
"""sqrt(eV / (angstrom^2 u)) as a phonon energy: hbar * sqrt(e / (1e-20 m^2 u)) in meV."""

IMAGINARY_MEV = 0.5
"""Modes softer than minus this are imaginary; nearer to zero is numerical noise of a translation."""

BATCH_BYTES = 256 * 2**20
"""Memory for dynamical matrices of several wave vectors at a time."""

SMALL = 48
"""Largest matrices, 3 N, that are diagonalised many at a time."""


@dataclass(frozen=True)
class Modes:
    """Phonons of a cell, all wave vectors together; M modes, N atoms.

    Attributes:
        energy_mev: (M,) energies; imaginary ones are negative.
        weight: (M, N) share of each atom, ``|e|^2``; rows sum to 1.
    """

    energy_mev: FloatArray
    weight: FloatArray

    @property
    def imaginary_fraction(self) -> float:
        """Share of imaginary modes."""
        return float((self.energy_mev < -IMAGINARY_MEV).mean())


def q_mesh(atoms: int) -> list[FloatArray]:
    """Return the wave vectors at which a supercell, pristine or doped, is sampled.

    From 350 atoms on Gamma is enough: the cell folds that many wave vectors of the host onto it. Smaller cells take
    two, or below 128 atoms four, of the points of the shifted 2 x 2 x 2 mesh, which avoid Gamma; time reversal gives
    the others.

    Returns:
        Wave vectors in units of the supercell's reciprocal lattice vectors.
    """
    if atoms >= 350:
        return [np.zeros(3)]
    signs = [(1, 1), (-1, -1)] if atoms >= 128 else [(1, 1), (-1, -1), (1, -1), (-1, 1)]
    return [np.array([0.25, 0.25 * b, 0.25 * c]) for b, c in signs]


def folded(supercell: NDArray[np.int64], q: FloatArray) -> list[FloatArray]:
    """Return the wave vectors of the primitive cell that a wave vector of its supercell stands for.

    Args:
        supercell: (3, 3) integers; rows are the supercell vectors in units of the cell vectors.
        q: (3,) in units of the supercell's reciprocal lattice vectors.

    Returns:
        ``|det(supercell)|`` vectors in units of the primitive reciprocal lattice vectors.
    """
    count = round(abs(np.linalg.det(supercell)))
    inverse = np.linalg.inv(supercell)
    # Reciprocal lattice vectors of the supercell, modulo those of the cell: a group of `count` elements.
    found: dict[tuple[int, ...], FloatArray] = {}
    for shift in _boxes(range(count)):
        # Components are multiples of 1 / count: whole numbers identify the vector.
        key = tuple(int(v) % count for v in np.round(inverse @ np.array(shift) * count))
        if key not in found:
            found[key] = inverse @ (q + np.array(shift))
        if len(found) == count:
            break
    return list(found.values())


def _boxes(reach: range) -> Iterable[tuple[int, ...]]:
    """Integer triples in growing cubes, so that small groups are found early."""
    for size in reach:
        for triple in itertools.product(range(size + 1), repeat=3):
            if max(triple) == size:
                yield triple


def modes(force_constants: ForceConstants, crystal: Crystal, q_points: Sequence[FloatArray]) -> Modes:
    """Diagonalise the dynamical matrix at the given wave vectors.

    At Gamma the three translations are left out: they are no phonons, and would stand as a line at zero energy.

    Args:
        force_constants: Second derivatives of `crystal`.
        crystal: For the masses (standard atomic weights).
        q_points: In units of the crystal's reciprocal lattice vectors.
    """
    return modes_of(_hessians(force_constants, crystal, q_points), crystal, _ordered(q_points))


def modes_of(hessians: Iterable[Tensor], crystal: Crystal, q_points: Sequence[FloatArray]) -> Modes:
    """Diagonalise Hessians at given wave vectors; see `modes`.

    Args:
        hessians: (3 N, 3 N) at each wave vector, real or complex, eV/angstrom^2; overwritten.
        crystal: For the masses.
        q_points: Wave vectors of the Hessians.
    """
    root = np.repeat(1.0 / np.sqrt(atomic_masses[crystal.numbers]), 3)
    energies, weights = [], []
    small = len(root) <= SMALL
    found = _of_small(list(hessians), root) if small else (eigenvalues_and_shares(one, root) for one in hessians)
    for q, (values, share) in zip(q_points, found, strict=True):
        if _is_gamma(q):
            keep = np.ones(len(values), dtype=bool)
            keep[np.argsort(np.abs(values))[:3]] = False
            values, share = values[keep], share[keep]
        energies.append(np.sign(values) * np.sqrt(np.abs(values)) * MEV_PER_ROOT)
        weights.append(share)
    return Modes(np.concatenate(energies), np.concatenate(weights))


def _of_small(hessians: Sequence[Tensor], root: FloatArray) -> Iterable[tuple[FloatArray, FloatArray]]:
    """Diagonalise many small matrices in one call: else the calls cost more than the work."""
    matrices = torch.stack([hessian.to(torch.complex128) for hessian in hessians]).cpu().numpy()
    values, vectors = np.linalg.eigh(matrices * (root[:, None] * root))
    shares = (np.abs(vectors) ** 2).reshape(len(values), len(root) // 3, 3, -1).sum(2)
    return zip(values, shares.transpose(0, 2, 1), strict=True)


def eigenvalues_and_shares(
    hessian: Tensor, root: FloatArray, *, solver: Literal["lapack", "torch"] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Diagonalise a dynamical matrix where it is.

    Args:
        hessian: (3 N, 3 N) real or complex, on any device; overwritten.
        root: (3 N,) inverse roots of the masses.
        solver: LAPACK's divide and conquer, the default on a CPU, or torch's, the default elsewhere.

    Returns:
        (M,) eigenvalues and (M, N) shares of the atoms.
    """
    atoms = len(root) // 3
    if (solver or ("lapack" if hessian.device.type == "cpu" else "torch")) == "lapack":
        matrix = hessian.numpy()
        matrix *= (root[:, None] * root[None, :]).astype(matrix.real.dtype, copy=False)
        values, vectors = eigh(matrix, driver="evd", overwrite_a=True, check_finite=False)
        share = (np.abs(vectors) ** 2).reshape(atoms, 3, -1).sum(1).T
        return np.asarray(values, dtype=np.float64), np.asarray(share, dtype=np.float64)
    scale = torch.from_numpy(root).to(hessian.device, hessian.real.dtype)
    found, modes_ = torch.linalg.eigh(hessian * scale[:, None] * scale[None, :])
    shares = modes_.abs().square().view(atoms, 3, -1).sum(1).T
    return found.double().cpu().numpy(), shares.double().cpu().numpy()


def _is_gamma(q: FloatArray) -> bool:
    return bool(np.allclose(q, np.round(q), atol=1e-9))


def _ordered(q_points: Sequence[FloatArray]) -> list[FloatArray]:
    """Return the wave vectors in the order of `_hessians`: Gamma first, where the matrix is real."""
    return sorted(q_points, key=lambda q: not _is_gamma(q))


def _hessians(force_constants: ForceConstants, crystal: Crystal, q_points: Sequence[FloatArray]) -> Iterator[Tensor]:
    """Yield Hessians in the order of `_ordered`, a bounded number in memory; real ones at Gamma."""
    batch = max(1, BATCH_BYTES // (16 * (3 * len(crystal)) ** 2))
    rest = []
    for q in _ordered(q_points):
        if _is_gamma(q):
            yield force_constants.hessian()
        else:
            rest.append(q)
    for start in range(0, len(rest), batch):
        yield from force_constants.at(np.array(rest[start : start + batch]))


def projected_dos(phonons: Modes, crystal: Crystal, edge_mev: float, grid: Grid) -> tuple[FloatArray, float]:
    """Histogram the modes by element on energies relative to the host's edge, without smoothing.

    A mode is shared between the two nearest bins, so that the mean energy is kept. Imaginary modes are left out.

    Args:
        phonons: Modes of the crystal.
        crystal: For the elements, in order of first appearance by atomic number.
        edge_mev: Highest energy of the host.
        grid: Bins.

    Returns:
        (elements, bins) DOS per relative energy, ordered by atomic number, each with its atomic fraction as area; and
        the share of the modes above the grid, which is counted into the last bin.
    """
    real = phonons.energy_mev >= -IMAGINARY_MEV
    position = np.maximum(phonons.energy_mev[real], 0.0) / edge_mev / grid.width - 0.5
    above = position > grid.bins - 1
    position = np.clip(position, 0.0, grid.bins - 1)
    low = np.minimum(position.astype(int), grid.bins - 2)
    part = position - low
    elements = np.unique(crystal.numbers)
    share = np.stack([phonons.weight[real][:, crystal.numbers == z].sum(1) for z in elements])
    out = np.zeros((len(elements), grid.bins))
    for k in range(len(elements)):
        out[k] = np.bincount(low, share[k] * (1.0 - part), grid.bins) + np.bincount(low + 1, share[k] * part, grid.bins)
    fraction = np.array([(crystal.numbers == z).mean() for z in elements])
    out *= (fraction / out.sum(1) / grid.width)[:, None]
    return out, float(above.mean())


def band_edge(phonons: Modes) -> float:
    """Return the highest phonon energy in meV."""
    return float(phonons.energy_mev.max())
