"""Hessians of relaxed doped cells, kept beside a shard: what a fast potential can be taught from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ShardError
from defectnet.files import read_npz, replacing
from defectnet.potentials.neighbours import Crystal

FloatArray = NDArray[np.float64]

_FIELDS = ("row_id", "atoms", "numbers", "cell", "frac", "hessian")


def hessian_file(shard: Path) -> Path:
    """Return the file with the Hessians of a shard."""
    return shard.with_name(shard.stem.replace("shard", "hessians") + ".npz")


def write_hessians(path: Path, rows: Mapping[str, tuple[Crystal, FloatArray]]) -> None:
    """Write crystals with their (3 N, 3 N) Hessians, eV/angstrom^2; by row id.

    Of each Hessian the upper triangle is kept in half precision, rounded to 1 part in 2,000: the finite displacements
    that it comes from are no better.
    """
    arrays: dict[str, list[Any]] = {name: [] for name in _FIELDS}
    for row_id, (crystal, hessian) in rows.items():
        arrays["row_id"].append([row_id])
        arrays["atoms"].append([len(crystal)])
        arrays["numbers"].append(crystal.numbers)
        arrays["cell"].append(crystal.cell.ravel())
        arrays["frac"].append(crystal.frac.ravel())
        arrays["hessian"].append(hessian[np.triu_indices(len(hessian))])
    kinds = dict(zip(_FIELDS, (np.str_, np.uint16, np.uint8, np.float32, np.float32, np.float16), strict=True))
    whole: dict[str, Any] = {
        k: np.concatenate(v).astype(kinds[k]) if v else np.zeros(0, kinds[k]) for k, v in arrays.items()
    }
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **whole)


def read_hessians(path: Path) -> dict[str, tuple[Crystal, FloatArray]]:
    """Read what `write_hessians` wrote.

    Raises:
        ShardError: The file is missing, truncated or no such file.
    """
    try:
        whole = read_npz(path, _FIELDS)
    except ValueError as error:
        raise ShardError(f"{path} is missing or damaged", why=str(error), fix="Simulate it again") from error
    rows, atom, entry = {}, 0, 0
    for k, (row_id, count) in enumerate(zip(whole["row_id"], whole["atoms"].astype(int), strict=True)):
        size = 3 * count
        cell = whole["cell"][9 * k : 9 * k + 9].reshape(3, 3).astype(np.float64)
        frac = whole["frac"][3 * atom : 3 * (atom + count)].reshape(-1, 3).astype(np.float64)
        numbers = whole["numbers"][atom : atom + count].astype(np.int64)
        hessian = np.zeros((size, size))
        entries = size * (size + 1) // 2
        hessian[np.triu_indices(size)] = whole["hessian"][entry : entry + entries]
        rows[str(row_id)] = Crystal(numbers, cell, frac @ cell), hessian + np.triu(hessian, 1).T
        atom, entry = atom + count, entry + entries
    return rows


def merge_hessians(path: Path, parts: Sequence[Path]) -> None:
    """Write the rows of several files as one."""
    write_hessians(path, {row_id: row for part in parts for row_id, row in read_hessians(part).items()})
