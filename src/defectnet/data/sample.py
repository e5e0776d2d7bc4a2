"""From the phonons of a doped supercell to a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.crystal.doping import Placement
from defectnet.crystal.hosts import Host
from defectnet.data.shards import AS_IS, SIMULATED, Sample
from defectnet.data.splits import split_of
from defectnet.elements import SYMBOLS
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, projected_dos

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class HostSpectrum:
    """The pristine crystal of a pair.

    Attributes:
        host: With the relaxed crystal, in the small cell.
        supercell: (3, 3) integers that make the supercell.
        edge_mev: Highest phonon energy.
        dos: (elements, 600) projected DOS on `STORAGE_GRID`.
        potential, potential_sha256: What computed it.
    """

    host: Host
    supercell: NDArray[np.int64]
    edge_mev: float
    dos: FloatArray
    potential: str
    potential_sha256: str


@dataclass(frozen=True)
class Doping:
    """What is substituted in a supercell.

    Attributes:
        sites: (K,) substituted atoms of the supercell.
        symbols: K, the element on each.
        placement: ``random`` or ``clustered``.
        stratum: ``plausible`` or ``arbitrary``; empty for a control, and where no difference is made.
    """

    sites: NDArray[np.int64]
    symbols: tuple[str, ...]
    placement: Placement
    stratum: str = ""


def make_sample(
    row_id: str,
    pristine: HostSpectrum,
    doping: Doping,
    numbers: NDArray[np.int64],
    phonons: Modes,
    *,
    qpoints: int,
    seed: int,
    max_force: float = 0.0,
    variant: str = AS_IS,
    source: str = SIMULATED,
) -> Sample:
    """Return the row of a host and the same supercell with dopants.

    Args:
        row_id: Its name.
        pristine: The host.
        doping: What is substituted.
        numbers: (N,) atomic numbers of the doped cell.
        phonons: Of the doped cell.
        qpoints: At how many wave vectors.
        seed: Of the data set.
        max_force: Left after relaxation, eV/angstrom; 0 where nothing was relaxed.
        variant: See `Sample`.
        source: See `Sample`.
    """
    host, relaxed = pristine.host, pristine.host.crystal
    dos, overflow = projected_dos(phonons, _atoms(numbers), pristine.edge_mev, STORAGE_GRID)
    dopants = tuple(dict.fromkeys(doping.symbols))
    elements = np.unique(numbers)
    return Sample(
        row_id=row_id,
        host_id=host.id,
        formula=host.formula,
        chemical_system=host.chemical_system,
        split=split_of(host.chemical_system),
        host_elements=tuple(SYMBOLS[int(z)] for z in np.unique(relaxed.numbers)),
        host_dos=pristine.dos.astype(np.float32),
        doped_elements=tuple(SYMBOLS[int(z)] for z in elements),
        doped_counts=tuple(int((numbers == z).sum()) for z in elements),
        doped_dos=dos.astype(np.float32),
        edge_mev=pristine.edge_mev,
        dopants=dopants,
        dopant_counts=tuple(doping.symbols.count(symbol) for symbol in dopants),
        sites=tuple(int(site) for site in doping.sites),
        site_dopants=doping.symbols,
        atoms=len(numbers),
        supercell=tuple(int(v) for v in pristine.supercell.ravel()),
        qpoints=qpoints,
        imaginary_fraction=phonons.imaginary_fraction,
        overflow=overflow,
        max_force_ev_per_angstrom=max_force,
        placement=doping.placement,
        variant=variant,
        potential=pristine.potential,
        potential_sha256=pristine.potential_sha256,
        seed=seed,
        host_numbers=tuple(int(z) for z in relaxed.numbers),
        host_cell=tuple(float(v) for v in relaxed.cell.ravel()),
        host_frac=tuple(float(v) for v in relaxed.frac.astype(np.float32).ravel()),
        source=source,
        stratum=doping.stratum,
    )


def _atoms(numbers: NDArray[np.int64]) -> Crystal:
    """Return a crystal of which only the elements count."""
    return Crystal(numbers, np.eye(3), np.zeros((len(numbers), 3)))
