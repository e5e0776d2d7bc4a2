"""Symmetry operations of a crystal as permutations of its atoms, and crystals put on their symmetric places."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import spglib
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.spatial import cKDTree

from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Operations:
    """G symmetry operations of a crystal with N atoms: x -> W x + w in fractional coordinates.

    Attributes:
        rotation: (G, 3, 3) integers W; translation: (G, 3) w.
        cartesian: (G, 3, 3) the rotation of Cartesian column vectors.
        image: (G, N) atom onto which each atom is mapped.
        shift: (G, N, 3) lattice shift of the image.
    """

    rotation: IntArray
    translation: FloatArray
    cartesian: FloatArray
    image: IntArray
    shift: IntArray

    def __len__(self) -> int:
        return len(self.rotation)

    def only(self, keep: NDArray[np.bool_] | IntArray) -> Operations:
        """Return some of them."""
        return Operations(
            self.rotation[keep], self.translation[keep], self.cartesian[keep], self.image[keep], self.shift[keep]
        )

    def fixing(self, atom: int) -> Operations:
        """Return the operations that leave an atom where it is, or put it on an image of its own."""
        return self.only(self.image[:, atom] == atom)

    def orbits(self) -> IntArray:
        """Return (N,) the first atom that each atom is mapped onto: one number for each set of like atoms."""
        return np.asarray(self.image.min(axis=0))


def find_operations(crystal: Crystal, tolerance: float) -> Operations:
    """Find the symmetry operations of a crystal.

    Args:
        crystal: N atoms.
        tolerance: How far atoms may be from symmetric places, angstrom.

    Raises:
        SimulationError: spglib finds none, not even the identity; or the crystal holds NaN or infinity, or no volume.
    """
    values = np.concatenate([crystal.cell, crystal.positions])
    if not np.isfinite(values).all() or crystal.volume == 0.0:  # spglib would end the process
        raise SimulationError("the crystal holds NaN or infinity, or has no volume", fix="Check the structure")
    frac = crystal.frac
    found = None
    with warnings.catch_warnings():  # spglib announces another way of reporting errors
        warnings.simplefilter("ignore", DeprecationWarning)
        cell = crystal.cell.tolist(), frac.tolist(), crystal.numbers.tolist()
        with suppress(Exception):  # which one depends on spglib's version; older ones return None
            found = spglib.get_symmetry(cell, symprec=tolerance)
    if found is None:
        raise SimulationError("the symmetry of the crystal cannot be found", fix="Check for atoms on top of each other")
    rotation = np.asarray(found["rotations"], dtype=np.int64)
    translation = np.asarray(found["translations"], dtype=np.float64)
    moved = np.einsum("gab,nb->gna", rotation, frac) + translation[:, None]
    image, shift = _matched(crystal, moved)
    lattice = crystal.cell.T
    cartesian = lattice @ rotation @ np.linalg.inv(lattice)
    return Operations(rotation, translation, cartesian, image, shift)


def _matched(crystal: Crystal, moved: FloatArray) -> tuple[IntArray, IntArray]:
    """Return (G, N) the atom nearest to each of (G, N, 3) fractional positions, and its lattice shift."""
    frac = crystal.frac
    inside = np.mod(np.mod(frac, 1.0), 1.0)  # twice: a tiny negative number becomes 1.0 at first
    _, image = cKDTree(inside, boxsize=np.ones(3)).query(np.mod(np.mod(moved, 1.0), 1.0))
    image = np.asarray(image, dtype=np.int64)
    return image, np.round(moved - frac[image]).astype(np.int64)


def symmetrised(crystal: Crystal, operations: Operations) -> Crystal:
    """Return a crystal whose atoms and cell have given operations exactly; it must have them nearly.

    Args:
        crystal: Near to its symmetric places.
        operations: Of it, or of the symmetric crystal.
    """
    metric = crystal.cell @ crystal.cell.T
    # Lattice vectors are columns of the transposed cell: (L W)^T (L W) = W^T M W.
    mean = np.einsum("gba,bc,gcd->ad", operations.rotation, metric, operations.rotation) / len(operations)
    inverse = np.linalg.inv(crystal.cell)
    strain = np.real(sqrtm(inverse @ mean @ inverse.T))
    cell = crystal.cell @ strain
    frac = crystal.frac
    moved = np.einsum("gab,nb->gna", operations.rotation, frac) + operations.translation[:, None]
    total = np.zeros_like(frac)
    for image, positions, shift in zip(operations.image, moved, operations.shift, strict=True):
        apart = positions - shift - frac[image]
        total[image] += frac[image] + apart - np.round(apart)
    return Crystal(crystal.numbers, cell, (total / len(operations)) @ cell)


def symmetrised_displacements(displacement: FloatArray, operations: Operations) -> FloatArray:
    """Return the mean of (N, 3) displacements over what operations make of them."""
    out = np.zeros_like(displacement)
    for rotation, image in zip(operations.cartesian, operations.image, strict=True):
        out[image] += displacement @ rotation.T
    return out / len(operations)


def kept_by(displacement: FloatArray, operations: Operations, tolerance: float) -> Operations:
    """Return the largest group among operations that (N, 3) displacements keep within a tolerance in angstrom."""
    error = np.array(
        [
            np.linalg.norm(displacement[image] - displacement @ rotation.T, axis=1).max()
            for rotation, image in zip(operations.cartesian, operations.image, strict=True)
        ]
    )
    order = np.argsort(error, kind="stable")
    order = order[error[order] < tolerance]
    while True:
        found = operations.only(order)
        known = {_key(r, i) for r, i in zip(found.rotation, found.image, strict=True)}
        closed = all(
            _key(a @ b, i[j]) in known
            for a, i in zip(found.rotation, found.image, strict=True)
            for b, j in zip(found.rotation, found.image, strict=True)
        )
        if closed:
            return found
        order = order[:-1]  # the operation that is kept least well


def _key(rotation: IntArray, image: IntArray) -> bytes:
    return rotation.tobytes() + image.tobytes()
