"""Toy pairs for tests: each element has its own lines, lower for a heavier one. Not physics, but learnable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from defectnet.config import STORAGE_GRID
from defectnet.data.shards import Sample, write_shard
from defectnet.data.splits import Split, split_of
from defectnet.elements import INDEX, NUMBERS, VOCABULARY, chemical_system, properties

MASS = properties("mass_u")
ATOMS = 64


def _lines(mass: float, lightest: float) -> np.ndarray:
    """Two Gaussian lines and a Debye foot; ends near 1 for the host's lightest element, above for a lighter one."""
    x = STORAGE_GRID.centres
    top = 0.9 * (lightest / mass) ** 0.3
    dos = np.exp(-0.5 * ((x - top) / 0.04) ** 2) + 0.7 * np.exp(-0.5 * ((x - 0.5 * top) / 0.06) ** 2)
    dos *= 1.0 - np.exp(-((x / 0.2) ** 2))
    return dos / (dos.sum() * STORAGE_GRID.width)


def toy_sample(number: int, split: Split | None = None, dopants: int | None = None) -> Sample:
    """A row that is a function of its number (and of the split and number of dopants asked for)."""
    rng = np.random.default_rng(number)
    while True:
        host = tuple(sorted(rng.choice(VOCABULARY, 2, replace=False)))
        if split is None or split_of(chemical_system(host)) == split:
            break
    wanted = int(rng.integers(0, 4)) if dopants is None else dopants
    others = [symbol for symbol in VOCABULARY if symbol not in host]
    guests = tuple(rng.choice(others, wanted, replace=False).tolist())
    counts = tuple(int(n) for n in rng.integers(2, 6, wanted))
    sites = tuple(rng.choice(ATOMS, sum(counts), replace=False).tolist())
    on_first = sum(site < ATOMS // 2 for site in sites)
    cell = {host[0]: ATOMS // 2 - on_first, host[1]: ATOMS // 2 - sum(counts) + on_first}
    cell |= dict(zip(guests, counts, strict=True))
    lightest = min(MASS[INDEX[symbol]] for symbol in host)
    shape = {symbol: _lines(MASS[INDEX[symbol]], lightest) for symbol in cell}
    return Sample(
        row_id=f"toy-{number}/0",
        host_id=f"toy-{number}",
        formula="".join(host),
        chemical_system=chemical_system(host),
        split=split_of(chemical_system(host)),
        host_elements=host,
        host_dos=np.stack([0.5 * shape[symbol] for symbol in host]).astype(np.float32),
        doped_elements=tuple(cell),
        doped_counts=tuple(cell.values()),
        doped_dos=np.stack([n / ATOMS * shape[symbol] for symbol, n in cell.items()]).astype(np.float32),
        edge_mev=float(rng.uniform(15.0, 120.0)),
        dopants=guests,
        dopant_counts=counts,
        sites=sites,
        site_dopants=tuple(g for g, n in zip(guests, counts, strict=True) for _ in range(n)),
        atoms=ATOMS,
        supercell=(4, 0, 0, 0, 4, 0, 0, 0, 2),
        qpoints=1,
        imaginary_fraction=0.0,
        overflow=0.0,
        max_force_ev_per_angstrom=0.01,
        placement="random",
        variant="as-is",
        potential="toy",
        potential_sha256="0" * 64,
        seed=0,
        host_numbers=tuple(int(NUMBERS[INDEX[symbol]]) for symbol in host),
        host_cell=(4.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 4.0),
        host_frac=(0.0, 0.0, 0.0, 0.5, 0.5, 0.5),
    )


def write_toy_folder(folder: Path, samples: list[Sample], shards: int = 3) -> Path:
    """Write samples in their order to shard files of unequal size."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts = np.linspace(0.0, 1.0, shards + 1) ** 1.5 * len(samples)
    for i, (begin, end) in enumerate(zip(cuts[:-1].astype(int), cuts[1:].astype(int), strict=True)):
        write_shard(folder / f"shard-{i:05d}.parquet", samples[begin:end], {})
    return folder


def toy_folder(folder: Path, train: int = 16, val: int = 4, test: int = 4, shards: int = 3) -> Path:
    """Write a folder with so many rows of each split, mixed over the shards."""
    samples = [
        toy_sample(1000 * k + i, split)
        for k, (split, n) in enumerate((("train", train), ("val", val), ("test", test)))
        for i in range(n)
    ]
    order = np.random.default_rng(0).permutation(len(samples))
    return write_toy_folder(folder, [samples[i] for i in order], shards)


def permuted(sample: Sample) -> Sample:
    """The same row with its elements in the opposite order."""
    return replace(
        sample,
        host_elements=sample.host_elements[::-1],
        host_dos=sample.host_dos[::-1],
        doped_elements=sample.doped_elements[::-1],
        doped_counts=sample.doped_counts[::-1],
        doped_dos=sample.doped_dos[::-1],
    )
