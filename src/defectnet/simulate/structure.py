"""The doped supercell of a stored row as a structure file."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype

from defectnet.data.shards import Sample
from defectnet.elements import INDEX, NUMBERS
from defectnet.errors import SimulationError
from defectnet.files import replacing
from defectnet.potentials.supercells import supercell
from defectnet.simulate.regenerate import stored_host


def doped_supercell(sample: Sample) -> Atoms:
    """Return the supercell of the relaxed host with the dopants on its sites, not relaxed with them.

    Atoms are in the order that `Sample.sites` counts in.
    """
    crystal = supercell(stored_host(sample), np.reshape(sample.supercell, (3, 3)))
    numbers = crystal.numbers.copy()
    numbers[list(sample.sites)] = [NUMBERS[INDEX[symbol]] for symbol in sample.site_dopants]
    return Atoms(numbers, positions=crystal.positions, cell=crystal.cell, pbc=True, info={"row_id": sample.row_id})


def write_structure(sample: Sample, path: str | Path) -> None:
    """Write the doped supercell in the format that the file's name asks for.

    Args:
        sample: The row.
        path: Any name that ase knows: ``.cif``, ``.xyz``, ``.vasp``, ``POSCAR``. VASP's files list atoms by element,
            all others keep the order of the sites.

    Raises:
        SimulationError: ase does not write such files, or the folder cannot be written to.
    """
    atoms = doped_supercell(sample)
    try:
        kind = filetype(str(path), read=False)
        with replacing(path) as temporary:
            ase.io.write(temporary, atoms, format=kind, **({"sort": True} if kind == "vasp" else {}))
    except OSError as error:
        raise SimulationError(
            f"structure {path} cannot be written",
            why=error.strerror or str(error),
            fix="Check that its folder exists and is writable",
        ) from error
    except (UnknownFileTypeError, ValueError, TypeError, ImportError) as error:
        raise SimulationError(
            f"structure {path} cannot be written",
            why=str(error)[:120],
            fix="Use .cif, .xyz, .vasp or another format that ase writes",
        ) from error
