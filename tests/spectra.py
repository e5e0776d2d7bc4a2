"""Spectra for tests: a smooth DOS with an acoustic and an optic part, and the ways to write it to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectnet.measure.edge import band_edges
from defectnet.spectrum import Spectrum

Array = NDArray[np.float64]


def dos_of(energy: Array, edge: float = 36.0) -> Array:
    """E^2 at low energy, two peaks, and an end at the edge."""
    x = energy / edge
    curve = (
        0.6 * x**2 * (x < 0.75) + np.exp(-0.5 * ((x - 0.45) / 0.07) ** 2) + 1.4 * np.exp(-0.5 * ((x - 0.9) / 0.03) ** 2)
    )
    fall = 1.0 / (1.0 + np.exp(np.minimum((x - 0.99) / 0.004, 50.0)))
    return np.asarray(curve * fall * np.clip(x / 0.1, 0, 1) ** 2)


def band_edge(energy: Array, dos: Array) -> float:
    return float(band_edges(energy, dos[None])[0])


def grid(end: float = 90.0, points: int = 361) -> Array:
    return np.linspace(0.0, end, points)


def spectrum(unit: str = "meV", kind: str = "total", element: str | None = None) -> Spectrum:
    energy = grid()
    return Spectrum(energy, dos_of(energy), "meV", kind=kind, element=element).to(unit)


def write_table(path: Path, rows: Array, header: str = "energy_meV,dos", delimiter: str = ",") -> Path:
    lines = [header] if header else []
    lines += [delimiter.join(f"{value:.8g}" for value in row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table(scale: float = 1.0, **columns: Array) -> Array:
    """Energy, DOS and further columns; `scale` converts the energies."""
    energy = grid()
    return np.column_stack([energy * scale, dos_of(energy), *columns.values()])
