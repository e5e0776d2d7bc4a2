"""Whether a potential holds crystals that its training has not seen: imaginary modes, and relaxation of doped cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from defectnet.crystal.doping import build, draw_mix
from defectnet.crystal.hosts import Host
from defectnet.errors import SimulationError
from defectnet.potentials.potential import Potential
from defectnet.potentials.supercells import supercell_matrix
from defectnet.simulate.rows import row_generator
from physics_suite.cells import VOLUME_LIMIT, Failed, attempt
from physics_suite.heldout import Start, Taught, held_out, vibrate

CELLS = 200
"""Doped cells, each of another host."""

ATOMS = (48, 72, 108)
"""Fewest, wanted and most atoms of a doped cell."""

HIGHEST = 0.25
"""Greatest concentration of all dopants together."""

TOLERANCE = 0.01
"""Largest force left, eV/angstrom, and virial per atom, eV."""

UNSTABLE = 0.01
"""Share of imaginary modes from which a host counts as unstable."""

SEED = 707
"""Of the dopants."""


def imaginary(potential: Potential, taught: Taught) -> dict[str, Any]:
    """Relax a host that the teacher was asked about, and return the share of imaginary modes beside the teacher's.

    Raises:
        Failed: The potential does not hold it.
    """
    _, fraction = vibrate(potential, taught.start)
    return {
        "atoms": len(taught.start.crystal),
        "imaginary_fraction": round(fraction, 5),
        "unstable": fraction > UNSTABLE,
        "teacher_unstable": teacher_unstable(taught),
    }


def teacher_unstable(taught: Taught) -> bool:
    """Return whether the teacher has imaginary modes in a crystal, or does not hold it."""
    return bool(taught.failed) or taught.imaginary_fraction > UNSTABLE


def choose_cells(hosts: Sequence[Host], count: int = CELLS) -> list[Start]:
    """Return randomly doped cells of crystals of the test split, one of each crystal, in the order of a hash."""
    found: list[Start] = []
    fewest, wanted, most = ATOMS
    for host in held_out(hosts, "stability"):
        if len(found) == count:
            break
        try:
            matrix = supercell_matrix(host.crystal.cell, len(host.crystal), wanted, (fewest, most))
        except SimulationError:
            continue
        rng = row_generator(SEED, host.id)
        mix = draw_mix(host.crystal, rng, lowest=1.0 / wanted, highest=HIGHEST, controls=0.0)
        found.append(Start(host.id, "doped", build(host.crystal, mix, rng, matrix).crystal))
    return found


def relaxes(potential: Potential, start: Start) -> dict[str, Any]:
    """Relax atoms and volume, as the simulator does.

    Raises:
        Failed: The potential does not know an element, or the cell explodes or does not come to rest.
    """
    result = attempt(potential, start.crystal, "volume", tolerance=TOLERANCE, evaluations=80, rounds=6)
    if not np.isfinite(result.max_force):
        raise Failed("explodes")
    if not result.converged:
        raise Failed(f"does not relax: {result.max_force:.3f} eV/angstrom are left")
    change = result.crystal.volume / start.crystal.volume - 1.0
    return {
        "atoms": len(start.crystal),
        "evaluations": result.evaluations,
        "volume_change": round(change, 4),
        "another_crystal": abs(change) > VOLUME_LIMIT,
    }
