"""Force constants by finite displacements, of as few atoms as symmetry and a radius leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.potentials.force_constants import ForceConstants, nearest_images, total
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import Operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DisplacedForces = Callable[[Crystal, Sequence[int], FloatArray], list[FloatArray]]
"""(crystal, (D,) atoms, (D, 3) shifts in angstrom) -> D of (N, 3) forces, eV/angstrom."""

_DIRECTIONS = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, -1, 0], [1, 0, -1], [0, 1, -1], [1, 1, 1]],
    dtype=float,
)
"""Along lattice vectors and between them."""

SAME = 1e-6
"""Directions and rotations that differ by less are the same."""

RANK = 1e-3
"""Smallest singular value of unit vectors that counts as a direction of its own."""


@dataclass(frozen=True)
class Displacements:
    """What has to be displaced.

    Attributes:
        atoms: (D,) atoms.
        directions: (D, 3) unit vectors.
    """

    atoms: IntArray
    directions: FloatArray


def plan_displacements(
    crystal: Crystal, operations: Operations, atoms: IntArray, *, both_directions: bool
) -> Displacements:
    """Choose displacements from which the force constants of atoms follow.

    Args:
        crystal: N atoms.
        operations: Its symmetry.
        atoms: Whose force constants are wanted.
        both_directions: Displace the other way too where no operation turns a displacement round.
    """
    chosen: list[int] = []
    directions: list[FloatArray] = []
    orbits = operations.orbits()
    for first in np.unique(orbits[atoms]):
        rotations = operations.fixing(int(first)).cartesian
        for direction in _spanning(rotations, crystal.cell):
            turned_round = bool((np.abs(rotations @ direction + direction).max(1) < SAME).any())
            both = both_directions and not turned_round
            chosen += [int(first)] * (1 + both)
            directions += [direction, -direction][: 1 + both]
    return Displacements(np.array(chosen), np.array(directions))


def _spanning(rotations: FloatArray, cell: FloatArray) -> list[FloatArray]:
    """Return the fewest directions whose images under rotations span space; well conditioned ones first."""
    candidates = np.concatenate([_DIRECTIONS @ cell, np.eye(3)])
    candidates /= np.linalg.norm(candidates, axis=1)[:, None]
    images = [rotations @ direction for direction in candidates]
    out: list[FloatArray] = []
    spanned = np.zeros((0, 3))
    while len(spanned) == 0 or np.linalg.matrix_rank(spanned, tol=RANK) < 3:
        grown = [np.concatenate([spanned, more]) for more in images]
        best = max(range(len(grown)), key=[_conditioned(rows) for rows in grown].__getitem__)
        out.append(candidates[best])
        spanned = grown[best]
    return out


def _conditioned(rows: FloatArray) -> tuple[int, float]:
    """Return the rank of (K, 3) rows, and how far the weakest of the directions that they span is from being lost."""
    values = np.linalg.svd(rows, compute_uv=False)
    rank = int((values > RANK).sum())
    return rank, float(values[rank - 1] / values[0])


def displaced_hessian(
    displaced_forces: DisplacedForces,
    crystal: Crystal,
    operations: Operations,
    *,
    atoms: IntArray | None = None,
    distance: float = 0.01,
    both_directions: bool = True,
    fallback: FloatArray | None = None,
) -> FloatArray:
    """Compute the Hessian of a cell from forces on displaced atoms.

    Args:
        displaced_forces: Evaluates displaced cells.
        crystal: N atoms, at rest.
        operations: Its symmetry, met to rounding.
        atoms: Which atoms are displaced; all by default. Whatever they are mapped onto counts as displaced, too.
        distance: Of a displacement, angstrom.
        both_directions: See `plan_displacements`. One way only, the third derivative enters with half the distance.
        fallback: (3 N, 3 N) of a crystal that differs near `atoms` alone: gives the blocks between all other atoms.

    Returns:
        (3 N, 3 N) eV/angstrom^2, symmetric, with the acoustic sum rule.
    """
    n = len(crystal)
    wanted = np.arange(n) if atoms is None else atoms
    plan = plan_displacements(crystal, operations, wanted, both_directions=both_directions)
    cells, shifts = plan.atoms, plan.directions * distance
    # What is left of the forces at rest, atoms being at their symmetric places to rounding only, is no response.
    found = displaced_forces(crystal, [0, *cells.tolist()], np.concatenate([np.zeros((1, 3)), shifts]))
    forces = np.array(found[1:]) - found[0]
    blocks = np.zeros((n, n, 3, 3))
    done = np.zeros(n, dtype=bool)
    orbits = operations.orbits()
    for first in np.unique(orbits[wanted]):
        mine = np.flatnonzero(cells == first)
        site = operations.fixing(int(first))
        row = _row(forces[mine], shifts[mine], site.image, site.cartesian)
        for image, rotation in zip(operations.image, operations.cartesian, strict=True):
            target = image[first]
            if not done[target]:
                blocks[target, image] = rotation @ row @ rotation.T
                done[target] = True
    return _completed(blocks, done, fallback)


def displaced_primitive(
    displaced_forces: DisplacedForces,
    cell: Supercell,
    operations: Operations,
    *,
    distance: float = 0.01,
) -> ForceConstants:
    """Compute the force constants of a primitive cell from forces on atoms displaced in a supercell.

    Only atoms of the cell at the origin are displaced, and no list of the supercell's operations is needed, which has
    thousands of entries. Pairs are attributed to their nearest images, see `ForceConstants.from_hessian`.

    Args:
        displaced_forces: Evaluates displaced cells.
        cell: The supercell, of N atoms.
        operations: Of the primitive cell, met to rounding. Those that the supercell lacks are not used.
        distance: Of a displacement, angstrom; both ways.

    Returns:
        Of the primitive cell, with the acoustic sum rule.
    """
    operations = cell.keeping(operations)
    primitive, home, orbits = cell.primitive, cell.home, operations.orbits()
    plan = plan_displacements(primitive, operations, np.arange(len(primitive)), both_directions=True)
    shifts = plan.directions * distance
    atoms = [0, *home[plan.atoms].tolist()]
    found = displaced_forces(cell.crystal, atoms, np.concatenate([np.zeros((1, 3)), shifts]))
    forces = np.array(found[1:]) - found[0]
    rows = np.zeros((len(primitive), len(cell), 3, 3))
    for first in np.unique(orbits):
        mine = plan.atoms == first
        images = cell.images(operations, int(first))
        target = operations.image[:, first]
        site = target == first
        row = _row(forces[mine], shifts[mine], images[site], operations.cartesian[site])
        for atom in np.flatnonzero(orbits == first):
            one = int(np.flatnonzero(target == atom)[0])
            rotation = operations.cartesian[one]
            rows[atom, images[one]] = rotation @ row @ rotation.T
    first, second, shift, share = nearest_images(cell.crystal, home)
    lattice = cell.lattice[second] - cell.lattice[home[first]] + shift @ cell.matrix
    block = rows[first, second] * (0.5 * share)[:, None, None]
    there = ForceConstants(len(primitive), *map(torch.from_numpy, (first, cell.basis[second], lattice, block)))
    back = ForceConstants(len(primitive), there.second, there.first, -there.shift, there.block.mT)
    return total([there, back]).with_acoustic_sum_rule()


def _row(forces: FloatArray, shifts: FloatArray, images: IntArray, cartesian: FloatArray) -> FloatArray:
    """Return the (N, 3, 3) force constants of an atom: shift of the atom, then force on each other, by least squares.

    Args:
        forces: (D, N, 3) eV/angstrom.
        shifts: (D, 3) angstrom.
        images: (S, N) atoms onto which operations that leave the atom where it is map each, and
        cartesian: (S, 3, 3) their rotations: each makes further equations of every displacement.
    """
    turned_shifts, turned_forces = [], []
    for image, rotation in zip(images, cartesian, strict=True):
        turned_shifts.append(shifts @ rotation.T)
        turned = np.empty_like(forces)
        turned[:, image] = forces @ rotation.T
        turned_forces.append(turned)
    left = np.concatenate(turned_shifts)  # (K, 3)
    right = np.concatenate(turned_forces)
    solved = -np.linalg.lstsq(left, right.reshape(len(left), -1), rcond=None)[0]  # (3, N 3)
    return np.asarray(solved.reshape(3, -1, 3).transpose(1, 0, 2))


def _completed(blocks: FloatArray, done: NDArray[np.bool_], fallback: FloatArray | None) -> FloatArray:
    """Return the Hessian, symmetric and with the sum rule, from the (N, N, 3, 3) rows of some atoms."""
    n = len(done)
    reverse = blocks.transpose(1, 0, 3, 2)
    both = done[:, None] & done[None, :]
    out = np.where(both[..., None, None], 0.5 * (blocks + reverse), blocks + reverse)
    if not done.all():
        if fallback is None:
            raise ValueError("blocks between atoms that are not displaced need a fallback")
        neither = ~done[:, None] & ~done[None, :]
        out[neither] = fallback.reshape(n, 3, n, 3).transpose(0, 2, 1, 3)[neither]
    diagonal = np.arange(n)
    out[diagonal, diagonal] = 0.0
    own = -out.sum(axis=1)
    out[diagonal, diagonal] = 0.5 * (own + own.transpose(0, 2, 1))
    return np.asarray(out.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n))
