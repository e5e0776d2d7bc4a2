"""Lab tables for tests: a folder with spectra of one host and of samples whose line moves with the concentration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spectra import dos_of, grid, write_table

HEADER = "sample,host_file,doped_file,formula,dopants"
SHARES = (0.01, 0.03, 0.05, 0.08, 0.1, 0.12, 0.15, 0.18, 0.2, 0.22, 0.25, 0.02)


def doped_rows(share: float, seed: int = 0) -> np.ndarray:
    """Energy and DOS of a sample: the host's, less of it, and a local mode that grows."""
    energy = grid()
    mode = np.exp(-0.5 * ((energy - 42.0) / 1.0) ** 2)
    noise = 1.0 + 0.01 * np.random.default_rng(seed).standard_normal(len(energy))
    return np.column_stack([energy, ((1.0 - share) * dos_of(energy) + 5.0 * share * mode) * noise])


def write_spectra(folder: Path, shares: Sequence[float] = SHARES[:6]) -> None:
    """Write host.csv and s0.csv, s1.csv and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "host.csv", np.column_stack([grid(), dos_of(grid())]))
    for number, share in enumerate(shares):
        write_table(folder / f"s{number}.csv", doped_rows(share, number))


def rows(shares: Sequence[float] = SHARES[:6]) -> list[str]:
    return [f"S{i},host.csv,s{i}.csv,GaAs,Al:{share}" for i, share in enumerate(shares)]


def write_lab(folder: Path, shares: Sequence[float] = SHARES[:6]) -> Path:
    """Write a good table with its spectra; return the folder."""
    write_spectra(folder, shares)
    (folder / "pairs.csv").write_text("\n".join([HEADER, *rows(shares)]) + "\n", encoding="utf-8")
    return folder
