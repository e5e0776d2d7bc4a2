"""Supercells, with the place of each atom in the lattice of the small cell."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from ase import Atoms
from ase.build.supercells import make_supercell
from numpy.typing import NDArray

from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import ForceConstants, total
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.symmetry import Operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

WHOLE = 1e-6
"""Matrices of operations that are integers within this turn the lattice onto itself."""

LARGEST_ATOMS = 20_000
"""Most atoms of a supercell."""


@dataclass(frozen=True)
class Supercell:
    """A crystal of n atoms repeated C times; N = n C atoms, those of one small atom consecutive.

    Attributes:
        primitive: The small cell.
        matrix: (3, 3) integers; rows are the supercell vectors in units of the cell vectors.
        crystal: The large cell.
        lattice: (N, 3) lattice vector of the small cell that each atom is in.
    """

    primitive: Crystal
    matrix: IntArray
    crystal: Crystal
    lattice: IntArray

    @classmethod
    def of(cls, primitive: Crystal, matrix: IntArray) -> Supercell:
        """Repeat a crystal.

        Raises:
            SimulationError: The matrix is none of 3 x 3 integers, or makes no cell, or one beyond `LARGEST_ATOMS`.
        """
        matrix = _checked(matrix, len(primitive))
        crystal = supercell(primitive, matrix)
        frac = np.linalg.solve(primitive.cell.T, crystal.positions.T).T
        repeats = len(crystal) // len(primitive)
        lattice = np.round(frac - np.repeat(primitive.frac, repeats, axis=0)).astype(np.int64)
        return cls(primitive, matrix, crystal, lattice)

    def __len__(self) -> int:
        return len(self.crystal)

    @property
    def repeats(self) -> int:
        """C."""
        return len(self.crystal) // len(self.primitive)

    @property
    def basis(self) -> IntArray:
        """(N,) atom of the small cell that each atom is an image of."""
        return np.repeat(np.arange(len(self.primitive)), self.repeats)

    @cached_property
    def _keys(self) -> tuple[IntArray, IntArray]:
        keys = self._key(self.basis, self.lattice)
        order = np.argsort(keys)
        return keys[order], order

    def _key(self, basis: IntArray, lattice: IntArray) -> IntArray:
        """Number atoms of the small cell modulo the lattice of the supercell."""
        count = self.repeats
        adjugate = np.round(np.linalg.inv(self.matrix) * np.linalg.det(self.matrix)).astype(np.int64)
        place = (lattice @ adjugate) % count
        return np.asarray(((basis * count + place[..., 0]) * count + place[..., 1]) * count + place[..., 2])

    @property
    def home(self) -> IntArray:
        """(n,) the small cell's atoms at the origin, in the supercell."""
        return self.find(np.arange(len(self.primitive)), np.zeros((len(self.primitive), 3), dtype=np.int64))[0]

    def find(self, basis: IntArray, lattice: IntArray) -> tuple[IntArray, IntArray]:
        """Find atoms of the infinite crystal.

        Args:
            basis: (...) atoms of the small cell.
            lattice: (..., 3) lattice vectors of the small cell.

        Returns:
            (...) indices in the supercell and (..., 3) lattice shifts of the supercell.
        """
        keys, order = self._keys
        index = order[np.searchsorted(keys, self._key(basis, lattice))]
        shift = np.round((lattice - self.lattice[index]) @ np.linalg.inv(self.matrix)).astype(np.int64)
        return index, shift

    def keeping(self, operations: Operations) -> Operations:
        """Return those of the small cell's operations that turn the lattice of the supercell onto itself."""
        # Rows transform with the inverse transpose of what columns of fractional coordinates do.
        turned = np.einsum("ab,gcb,cd->gad", self.matrix, operations.rotation, np.linalg.inv(self.matrix))
        return operations.only((np.abs(turned - np.round(turned)) < WHOLE).all((1, 2)))

    def images(self, operations: Operations, atom: int) -> IntArray:
        """Return (G, N) the atom of the supercell onto which operations map each.

        Args:
            operations: From `keeping`; each is followed by the translation that puts `atom` into the cell at the
                origin.
            atom: Of the small cell, in the cell at the origin.
        """
        basis = self.basis
        turned = np.einsum("nb,gab->gna", self.lattice, operations.rotation)
        lattice = turned + operations.shift[:, basis] - operations.shift[:, atom][:, None]
        return self.find(operations.image[:, basis], lattice)[0]

    def at_gamma(self, force_constants: ForceConstants) -> ForceConstants:
        """Return those of the supercell as displacements in it would tell: images of a pair are not told apart."""
        return ForceConstants.from_hessian(self.folded(force_constants).hessian().numpy(), self.crystal)

    def unfolded(self, force_constants: ForceConstants) -> ForceConstants:
        """Return the force constants of the small cell from those of the supercell: the mean over translations."""
        first, second = force_constants.first.numpy(), force_constants.second.numpy()
        lattice = self.lattice[second] - self.lattice[first] + force_constants.shift.numpy() @ self.matrix
        unfolded = ForceConstants(
            len(self.primitive),
            torch.from_numpy(self.basis[first]),
            torch.from_numpy(self.basis[second]),
            torch.from_numpy(lattice),
            force_constants.block / self.repeats,
        )
        return total([unfolded])

    def folded(self, force_constants: ForceConstants) -> ForceConstants:
        """Return the force constants of the supercell from those of the small cell."""
        pairs = len(force_constants.first)
        start = self.lattice.reshape(len(self.primitive), self.repeats, 3)
        first, second = force_constants.first.numpy(), force_constants.second.numpy()
        lattice = start[first] + force_constants.shift.numpy()[:, None]  # (B, C, 3)
        index, shift = self.find(np.repeat(second[:, None], self.repeats, axis=1), lattice)
        home = first[:, None] * self.repeats + np.arange(self.repeats)
        return ForceConstants(
            len(self),
            torch.from_numpy(home.ravel()),
            torch.from_numpy(index.ravel()),
            torch.from_numpy(shift.reshape(-1, 3)),
            force_constants.block[:, None].expand(pairs, self.repeats, 3, 3).reshape(-1, 3, 3),
        )


def _checked(matrix: IntArray, atoms: int) -> IntArray:
    """Return a supercell's matrix, if it is one."""
    found = np.asarray(matrix)
    if found.shape != (3, 3) or not np.array_equal(found, np.round(found)):
        raise SimulationError(f"supercell {found.tolist()} is no matrix of 3 x 3 integers", fix="Give one")
    size = abs(float(np.linalg.det(found.astype(float)))) * atoms
    if not atoms / 2 < size <= LARGEST_ATOMS:
        raise SimulationError(
            f"supercell {found.tolist()} has {size:.3g} atoms",
            fix=f"Give three vectors that are not in a plane, for {atoms} to {LARGEST_ATOMS} atoms",
        )
    return found.astype(np.int64)


def supercell(host: Crystal, matrix: IntArray) -> Crystal:
    """Repeat a crystal; atoms of one small atom are consecutive."""
    atoms = Atoms(host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    repeated = make_supercell(atoms, matrix, order="atom-major")  # type: ignore[no-untyped-call]
    return Crystal(repeated.numbers.astype(np.int64), repeated.cell.array, repeated.positions)


def supercell_matrix(cell: FloatArray, atoms: int, wanted: int, bounds: tuple[int, int]) -> NDArray[np.int64]:
    """Return an integer matrix that makes a compact supercell of about `wanted` atoms.

    Of many matrices within the bounds the best is taken by shape (distance of the metric tensor from a cube's) and
    size (logarithm of the ratio to the wanted number).

    Args:
        cell: (3, 3) host cell, angstrom.
        atoms: Atoms in the host cell.
        wanted: Atoms wished.
        bounds: Fewest and most atoms.

    Raises:
        SimulationError: No multiple of the host cell lies within the bounds.
    """
    fewest, most = -(-bounds[0] // atoms), bounds[1] // atoms
    if not 0 < fewest <= most:
        raise SimulationError(
            f"the host cell has {atoms} atoms, supercells should have {bounds[0]} to {bounds[1]}",
            fix="Allow more atoms with --atoms",
        )
    matrices = _candidates(cell, atoms, wanted, fewest, most)
    count = np.round(np.abs(np.linalg.det(matrices))).astype(np.int64)
    inside = (fewest <= count) & (count <= most)
    matrices, count = matrices[inside], count[inside]
    vectors = matrices @ cell
    metric = vectors @ vectors.transpose(0, 2, 1)
    metric /= np.linalg.det(metric)[:, None, None] ** (1 / 3)
    score = np.linalg.norm(metric - np.eye(3), axis=(1, 2)) + 2.0 * np.abs(np.log(count * atoms / wanted))
    # Rounded, so that of equally good ones the first is taken on every machine.
    best = matrices[int(np.argmin(score.round(9)))].astype(np.int64)
    return np.asarray(best if np.linalg.det(best) > 0 else -best)


def supercell_candidates(cell: FloatArray, atoms: int, most: int) -> IntArray:
    """Return (K, 3, 3) integer matrices that make supercells of at most `most` atoms: compact ones, each once."""
    matrices = _candidates(cell, atoms, most, 1, max(1, most // atoms))
    count = np.round(np.abs(np.linalg.det(matrices)))
    inside = matrices[(count >= 1) & (count * atoms <= most)]
    return np.unique(inside.astype(np.int64), axis=0)


def _candidates(cell: FloatArray, atoms: int, wanted: int, fewest: int, most: int) -> FloatArray:
    """Return (K, 3, 3) integer matrices: near cubes of growing size, and plain repetitions of every allowed size."""
    edges = (wanted / atoms * abs(np.linalg.det(cell))) ** (1 / 3) * np.linspace(0.5, 1.6, 111)
    single = np.concatenate([np.zeros((1, 9)), np.eye(9), -np.eye(9)]).reshape(-1, 3, 3)
    near = np.round(edges[:, None, None, None] * np.linalg.inv(cell)) + single
    repeats = np.maximum(np.round(edges[:, None] / np.linalg.norm(cell, axis=1)), 1.0)
    found = np.concatenate([near, repeats[:, None, :, None] * np.eye(3)], axis=1)
    plain = [
        (first, second, count // (first * second))
        for count in range(fewest, most + 1)
        for first in _divisors(count)
        for second in _divisors(count // first)
    ]
    return np.concatenate([found.reshape(-1, 3, 3), np.array(plain, dtype=float)[:, :, None] * np.eye(3)])


@lru_cache(maxsize=4096)
def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
