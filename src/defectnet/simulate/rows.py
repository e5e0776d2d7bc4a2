"""One row of a data set: a pure function of the relaxed host, the row's id and the settings."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from defectnet.config import STORAGE_GRID
from defectnet.data.shards import Sample
from defectnet.data.splits import split_of
from defectnet.elements import NUMBERS, VOCABULARY
from defectnet.errors import SimulationError
from defectnet.simulate.doping import DopedCell, build, draw_recipe
from defectnet.simulate.hosts import Host
from defectnet.simulate.neighbours import Crystal
from defectnet.simulate.phonons import Modes, band_edge, folded, modes, projected_dos, q_mesh
from defectnet.simulate.potential import Potential
from defectnet.simulate.relax import relax

_SYMBOL = dict(zip(NUMBERS.tolist(), VOCABULARY, strict=True))


@dataclass(frozen=True)
class Settings:
    """What fixes a data set beside its hosts and its potential.

    Attributes:
        seed: Seed of the data set.
        spectra_per_host: Rows tried for each host.
        smallest, largest: Fewest and most atoms in a supercell.
        tolerance: Largest force left, eV/angstrom (and virial per atom, eV).
        imaginary_limit: Largest share of imaginary modes in a doped cell; a host may have none.
        volume_limit: Largest relative change of the host's volume: beyond, the potential describes another crystal.
        highest_edge_mev: Highest believable edge; above, atoms sit on each other.
    """

    seed: int = 0
    spectra_per_host: int = 6
    smallest: int = 100
    largest: int = 250
    tolerance: float = 0.005
    imaginary_limit: float = 0.005
    volume_limit: float = 0.2
    highest_edge_mev: float = 250.0

    def __post_init__(self) -> None:
        fix = "Check --spectra-per-host and --atoms"
        if self.spectra_per_host < 1:
            raise SimulationError(f"spectra_per_host is {self.spectra_per_host}, at least 1 is needed", fix=fix)
        if not 8 <= self.smallest <= self.largest <= 5000:
            raise SimulationError(f"atoms: {self.smallest} to {self.largest} is no range within 8 to 5000", fix=fix)
        if self.seed < 0:
            raise SimulationError(f"seed is {self.seed}", fix="Use a number from 0 on")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)


def atom_range(text: str) -> tuple[int, int]:
    """Read ``160`` (met within a fifth) or ``100-250``.

    Raises:
        SimulationError: It is neither.
    """
    parts = text.split("-")
    if not 1 <= len(parts) <= 2 or not all(part.strip().isdigit() for part in parts):
        raise SimulationError(f"atoms: {text!r} is no number and no range", fix="Write 160 or 100-250")
    if len(parts) == 1:
        return round(0.8 * int(text)), round(1.2 * int(text))
    return int(parts[0]), int(parts[1])


class Rejected(Exception):  # noqa: N818  (an outcome that is listed, not an error)
    """A host or a cell that does not enter the data set, with the reason."""


def row_generator(seed: int, row_id: str) -> np.random.Generator:
    """Return the random generator of a row: it depends on the seed and the row's id alone."""
    digest = hashlib.sha256(row_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def relax_host(potential: Potential, host: Host, settings: Settings) -> Crystal:
    """Relax atoms and cell of a host.

    Raises:
        Rejected: It does not converge, or ends as another crystal.
    """
    result = relax(potential, host.crystal, cell="full", tolerance=settings.tolerance / 5)
    change = result.crystal.volume / host.crystal.volume - 1.0
    collapsed = not np.isfinite(result.max_force)
    if not result.converged and not collapsed:
        raise Rejected("host not relaxed")
    if collapsed or abs(change) > settings.volume_limit:
        raise Rejected("host volume changed")
    return result.crystal


def simulate_row(potential: Potential, host: Host, relaxed: Crystal, number: int, settings: Settings) -> Sample:
    """Simulate one pair.

    Args:
        potential: Relaxes and vibrates the cells.
        host: Names the row.
        relaxed: The host after `relax_host`.
        number: Number of the row within its host.
        settings: See `Settings`.

    Raises:
        Rejected: The doped cell does not relax, or has imaginary modes.
    """
    row_id = f"{host.id}/{number:04d}"
    rng = row_generator(settings.seed, row_id)
    cell = build(relaxed, draw_recipe(relaxed, rng), rng, settings.smallest, settings.largest)
    q_points = q_mesh(len(cell.crystal))
    host_modes = _host_modes(potential, relaxed, cell, settings)
    result = relax(potential, cell.crystal, cell="volume", tolerance=settings.tolerance)
    if not result.converged:
        raise Rejected("doped cell not relaxed")
    doped_modes = modes(potential.curvature(result.crystal), result.crystal, q_points)
    if doped_modes.imaginary_fraction > settings.imaginary_limit:
        raise Rejected("imaginary modes in the doped cell")
    edge_mev = band_edge(host_modes)
    host_dos, _ = projected_dos(host_modes, relaxed, edge_mev, STORAGE_GRID)
    doped_dos, overflow = projected_dos(doped_modes, result.crystal, edge_mev, STORAGE_GRID)
    dopants = tuple(dict.fromkeys(cell.symbols))
    doped_elements = np.unique(result.crystal.numbers)
    return Sample(
        row_id=row_id,
        host_id=host.id,
        formula=host.formula,
        chemical_system=host.chemical_system,
        split=split_of(host.chemical_system),
        host_elements=tuple(_SYMBOL[int(z)] for z in np.unique(relaxed.numbers)),
        host_dos=host_dos.astype(np.float32),
        doped_elements=tuple(_SYMBOL[int(z)] for z in doped_elements),
        doped_counts=tuple(int((result.crystal.numbers == z).sum()) for z in doped_elements),
        doped_dos=doped_dos.astype(np.float32),
        edge_mev=edge_mev,
        dopants=dopants,
        dopant_counts=tuple(cell.symbols.count(symbol) for symbol in dopants),
        sites=tuple(int(site) for site in cell.sites),
        site_dopants=cell.symbols,
        atoms=len(result.crystal),
        supercell=tuple(int(v) for v in cell.supercell.ravel()),
        qpoints=len(q_points),
        imaginary_fraction=doped_modes.imaginary_fraction,
        overflow=overflow,
        max_force_ev_per_angstrom=result.max_force,
        placement="random",
        variant="as-is",
        potential=potential.name,
        potential_sha256=potential.sha256,
        seed=settings.seed,
        host_numbers=tuple(int(z) for z in relaxed.numbers),
        host_cell=tuple(float(v) for v in relaxed.cell.ravel()),
        host_frac=tuple(float(v) for v in relaxed.frac.ravel()),
    )


def _host_modes(potential: Potential, relaxed: Crystal, cell: DopedCell, settings: Settings) -> Modes:
    """Modes of the pristine supercell, from the small cell at the wave vectors that fold onto the same mesh."""
    points = [k for q in q_mesh(len(cell.crystal)) for k in folded(cell.supercell, q)]
    host_modes = modes(potential.curvature(relaxed), relaxed, points)
    if host_modes.imaginary_fraction > 0.0:
        raise Rejected("imaginary modes in the host")
    if band_edge(host_modes) > settings.highest_edge_mev:
        raise Rejected("host edge not believable")
    return host_modes
