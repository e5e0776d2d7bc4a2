"""Pairs of atoms that symmetry makes alike: of a few blocks of force constants all others follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import ForceConstants, aligned
from defectnet.potentials.symmetry import Operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

REACH = 64
"""Lattice vectors of the primitive cell are shorter than this in each component."""


def as_pairs(parts: Sequence[ForceConstants]) -> tuple[IntArray, FloatArray]:
    """Return (B, 8) pairs and (K, B, 3, 3) blocks of K force constants of a crystal, without the diagonal."""
    keys, blocks = aligned(parts)
    first, second, shift = keys[:, 0].numpy(), keys[:, 1].numpy(), keys[:, 2:].numpy()
    between = (first != second) | (shift != 0).any(1)
    pairs = np.column_stack([first, np.zeros_like(shift), second, shift])
    return pairs[between], blocks.numpy()[:, between]


def from_pairs(atoms: int, pairs: IntArray, blocks: FloatArray) -> list[ForceConstants]:
    """Return K force constants of a crystal, with the acoustic sum rule: the reverse of `as_pairs`."""
    first, second = torch.from_numpy(pairs[:, 0].copy()), torch.from_numpy(pairs[:, 4].copy())
    shift = torch.from_numpy(pairs[:, 5:] - pairs[:, 1:4])
    return [
        ForceConstants(atoms, first, second, shift, torch.from_numpy(block)).with_acoustic_sum_rule()
        for block in blocks
    ]


def reduced(pairs: IntArray, blocks: FloatArray, group: Operations, site: int | None) -> tuple[IntArray, FloatArray]:
    """Keep one pair of each set of like ones, with the mean of the blocks of all, turned back.

    Args:
        pairs: (B, 8) atom of the primitive cell and lattice vector of the first, then of the second atom.
        blocks: (K, B, 3, 3) force constants, several kinds of them side by side.
        group: Operations that the force constants have.
        site: Atom that the group leaves where it is, in the cell at the origin; None for the pristine crystal, where
            pairs are alike by translation, too.

    Returns:
        (b,) positions of the kept pairs, and (K, b, 3, 3) their blocks.
    """
    keys = encoded(pairs)
    order = np.argsort(keys)
    least = keys.copy()
    total = np.zeros_like(blocks)
    count = np.zeros(len(keys))
    for image, rotation, turned_over in _images(pairs, group, site):
        found = encoded(image)
        least = np.minimum(least, found)
        place = order[np.minimum(np.searchsorted(keys[order], found), len(keys) - 1)]
        there = keys[place] == found
        block = blocks[:, place[there]]
        if turned_over:
            block = block.swapaxes(2, 3)
        total[:, there] += rotation.T @ block @ rotation
        count[there] += 1.0
    kept = np.flatnonzero(least == keys)
    return kept, total[:, kept] / count[kept, None, None]


def expanded(pairs: IntArray, blocks: FloatArray, group: Operations, site: int | None) -> tuple[IntArray, FloatArray]:
    """Return all (B, 8) pairs and their (K, B, 3, 3) blocks from the kept ones: the reverse of `reduced`."""
    images, turned = [], []
    for image, rotation, turned_over in _images(pairs, group, site):
        block = rotation @ (blocks.swapaxes(2, 3) if turned_over else blocks) @ rotation.T
        images.append(image)
        turned.append(block)
    everything = np.concatenate(images)
    keys, place = np.unique(encoded(everything), return_inverse=True)
    first = np.empty(len(keys), dtype=np.int64)
    first[place] = np.arange(len(place))  # any of them: those of one key are the same
    out = np.zeros((len(blocks), len(keys), 3, 3))
    for k, values in enumerate(np.concatenate(turned, axis=1)):
        np.add.at(out[k], place, values)
    return everything[first], out / np.bincount(place)[None, :, None, None]


def _images(pairs: IntArray, group: Operations, site: int | None) -> Iterator[tuple[IntArray, FloatArray, bool]]:
    """Yield what each operation makes of pairs, both ways round, with the rotation that turns their blocks.

    The block of the image is R B R^T; of the image the other way round, its transpose.
    """
    a, b, first, second = pairs[:, 0], pairs[:, 4], pairs[:, 1:4], pairs[:, 5:8]
    for rotation, cartesian, image, shift in zip(
        group.rotation, group.cartesian, group.image, group.shift, strict=True
    ):
        home = 0 if site is None else shift[site]
        one = np.column_stack([image[a], first @ rotation.T + shift[a] - home])
        other = np.column_stack([image[b], second @ rotation.T + shift[b] - home])
        if site is None:
            yield np.column_stack([_home(one, one), _home(other, one)]), cartesian, False
            yield np.column_stack([_home(other, other), _home(one, other)]), cartesian, True
        else:
            yield np.column_stack([one, other]), cartesian, False
            yield np.column_stack([other, one]), cartesian, True


def _home(atoms: IntArray, origin: IntArray) -> IntArray:
    """Return (B, 4) atoms with the cells of others as origin."""
    return np.column_stack([atoms[:, :1], atoms[:, 1:] - origin[:, 1:]])


def encoded(pairs: IntArray) -> IntArray:
    """Return (B,) one number for each pair."""
    if len(pairs) and (np.abs(pairs) >= REACH).any():
        raise SimulationError("force constants reach too far", fix=f"Use a cell of fewer than {REACH} atoms")
    out = np.zeros(len(pairs), dtype=np.int64)
    for k in range(8):
        offset, span = (0, REACH) if k in (0, 4) else (REACH, 2 * REACH)
        out = out * span + pairs[:, k] + offset
    return out


def fixing(operations: Operations, site: int, rotations: IntArray) -> Operations:
    """Return the operations that leave a site where it is and have one of (K, 3, 3) rotations.

    Raises:
        SimulationError: One of the rotations is none of the crystal.
    """
    here = operations.fixing(site)
    known = {rotation.tobytes(): k for k, rotation in enumerate(here.rotation)}
    wanted = [np.ascontiguousarray(rotation, dtype=np.int64).tobytes() for rotation in rotations]
    if not set(wanted) <= set(known):
        raise SimulationError("a substitution has a symmetry that the host has not", fix="Make the pack again")
    return here.only(np.array([known[key] for key in wanted]))
