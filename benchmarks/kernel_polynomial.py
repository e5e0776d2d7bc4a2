"""Seconds and error of the projected DOS of large cells without diagonalisation, JSON.

Usage: ``python benchmarks/kernel_polynomial.py [--atoms 216,512,1000,2000,10000] [--diagonalise 1000]
[--vectors 32] [--fwhm 0.01] [--bits 64] [--threads 1]``

Silicon with a fifth of the masses those of germanium, springs of silicon: blocks within 8 angstrom of defectnet-nep's
force constants of a 216-atom cell, repeated, so that cells of any size are made in a moment. Errors are areas between
two projected DOS, all elements summed, hence of 1: what was found, and what the standard error said to expect
(sqrt(2 / pi) of it summed over bins). Up to `--diagonalise` atoms they are found by diagonalising.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch
from ase.build import bulk
from ase.data import atomic_masses

from defectnet.config import STORAGE_GRID
from defectnet.potentials.kernel_polynomial import (
    band_limits,
    broadened,
    dynamical_matrix_sparse,
    kernel_polynomial_dos,
)
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import IMAGINARY_MEV, MEV_PER_ROOT, eigenvalues_and_shares
from defectnet.potentials.potential import load_potential

LATTICE_ANGSTROM = 5.43
REACH_ANGSTROM = 8.0
SHAPES = {216: (3, 3, 3), 512: (4, 4, 4), 1000: (5, 5, 5), 2000: (5, 5, 10), 4000: (5, 10, 10), 10000: (5, 10, 25)}


def silicon(repeats: tuple[int, int, int]) -> Crystal:
    atoms = bulk("Si", "diamond", a=LATTICE_ANGSTROM, cubic=True) * repeats
    return Crystal(atoms.numbers.astype(np.int64), np.array(atoms.cell), atoms.positions)


def springs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return atom of the cubic cell, (S,), displacement in quarters of its edge, (S, 3), and blocks, (S, 3, 3)."""
    crystal = silicon((3, 3, 3))
    hessian = load_potential("defectnet-nep").force_constants(crystal).hessian().numpy()
    atom, step, block = [], [], []
    for k in range(8):
        offset = crystal.frac - crystal.frac[k]
        vector = (offset - np.round(offset)) @ crystal.cell
        near = np.flatnonzero(np.linalg.norm(vector, axis=1) < REACH_ANGSTROM)
        own = np.stack([hessian[3 * k : 3 * k + 3, 3 * j : 3 * j + 3] for j in near])
        own[near == k] -= own.sum(0)  # the cut springs go, so does what held them in balance
        atom.append(np.full(len(near), k))
        step.append(np.round(vector[near] * 4 / LATTICE_ANGSTROM).astype(int))
        block.append(own)
    return np.concatenate(atom), np.concatenate(step), np.concatenate(block)


def tiled(repeats: tuple[int, int, int], part: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[Any, ...]:
    """Return the crystal and first, second, block of its springs."""
    atom, step, block = part
    crystal = silicon(repeats)
    box = 4 * np.array(repeats)
    place = np.round(crystal.positions * 4 / LATTICE_ANGSTROM).astype(int) % box
    index = np.full(box, -1)
    index[tuple(place.T)] = np.arange(len(crystal))
    first, second, spring = [], [], []
    for k in range(8):
        own = np.arange(k, len(crystal), 8)
        rows = np.flatnonzero(atom == k)
        target = (place[own][:, None] + step[rows]) % box
        first.append(np.repeat(own, len(rows)))
        second.append(index[tuple(np.moveaxis(target, -1, 0))].ravel())
        spring.append(np.tile(rows, len(own)))
    numbers = crystal.numbers.copy()
    numbers[np.random.default_rng(0).permutation(len(numbers))[: len(numbers) // 5]] = 32
    crystal = Crystal(numbers, crystal.cell, crystal.positions)
    blocks = torch.from_numpy(block[np.concatenate(spring)])
    return crystal, torch.from_numpy(np.concatenate(first)), torch.from_numpy(np.concatenate(second)), blocks


def diagonalised(matrix: torch.Tensor, crystal: Crystal, edge_mev: float, fwhm_mev: float) -> np.ndarray:
    """Return the projected DOS of all modes, broadened alike."""
    values, share = eigenvalues_and_shares(matrix.to_dense().double(), np.ones(3 * len(crystal)))
    keep = np.sort(np.argsort(np.abs(values))[3:])
    energy = np.sign(values[keep]) * np.sqrt(np.abs(values[keep])) * MEV_PER_ROOT
    real = energy >= -IMAGINARY_MEV
    shape = broadened(energy[real], edge_mev, STORAGE_GRID, fwhm_mev)
    dos = []
    for number in np.unique(crystal.numbers):
        own = crystal.numbers == number
        one = share[keep][real][:, own].sum(1) @ shape
        dos.append(one * own.mean() / one.sum() / STORAGE_GRID.width)
    return np.stack(dos)


def measure(atoms: int, part: tuple[np.ndarray, np.ndarray, np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Build one cell and estimate its DOS."""
    crystal, first, second, block = tiled(SHAPES[atoms], part)
    device, dtype = torch.device(options.device), torch.float64 if options.bits == 64 else torch.float32
    start = time.perf_counter()
    moved = [part.to(device) for part in (first, second, block)]
    matrix = dynamical_matrix_sparse(*moved, atomic_masses[crystal.numbers], dtype=dtype)
    built = time.perf_counter()
    _, edge = band_limits(matrix, crystal)
    found_edge = time.perf_counter()
    fwhm = options.fwhm * edge
    found = kernel_polynomial_dos(matrix, crystal, edge, STORAGE_GRID, fwhm_mev=fwhm, vectors=options.vectors)
    end = time.perf_counter()
    width = STORAGE_GRID.width
    row: dict[str, Any] = {
        "atoms": len(crystal),
        "blocks_per_atom": len(first) / len(crystal),
        "matrix_seconds": built - start,
        "edge_seconds": found_edge - built,
        "dos_seconds": end - found_edge,
        "products_per_vector": found.steps,
        "edge_mev": edge,
        "lowest_mev": found.lowest_mev,
        "imaginary": found.imaginary,
        "truncation": found.truncation,
        "expected_error": float(found.standard_error.sum() * width * np.sqrt(2.0 / np.pi)),
    }
    if atoms <= options.diagonalise:
        start = time.perf_counter()
        exact = diagonalised(matrix, crystal, edge, fwhm)
        row["diagonalisation_seconds"] = time.perf_counter() - start
        row["error"] = float(np.abs(found.dos - exact).sum() * width)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", default="216,512,1000,2000,10000", help=f"of {', '.join(map(str, SHAPES))}")
    parser.add_argument("--diagonalise", type=int, default=1000, help="largest cell that is diagonalised to compare")
    parser.add_argument("--vectors", type=int, default=32, help="for each element")
    parser.add_argument("--fwhm", type=float, default=0.01, help="in units of the edge")
    parser.add_argument("--bits", type=int, default=64, choices=(32, 64))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    part = springs()
    rows = [measure(int(atoms), part, options) for atoms in options.atoms.split(",")]
    print(json.dumps({"settings": vars(options), "cells": rows}, indent=2))


if __name__ == "__main__":
    main()
