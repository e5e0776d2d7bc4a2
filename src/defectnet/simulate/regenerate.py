"""Making a stored row again, from the host, the seed and the settings that are stored with it."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from defectnet.data.shards import Sample, decoded
from defectnet.errors import SimulationError
from defectnet.simulate.hosts import Host
from defectnet.simulate.neighbours import Crystal
from defectnet.simulate.potential import Potential
from defectnet.simulate.rows import HostSimulation, Rejected, Settings


def stored_host(sample: Sample) -> Crystal:
    """Return the relaxed host of a row."""
    cell = np.reshape(sample.host_cell, (3, 3))
    return Crystal(np.array(sample.host_numbers), cell, np.reshape(sample.host_frac, (-1, 3)) @ cell)


def regenerate(
    sample: Sample, potential: Potential, settings: Settings, preconditioner: Potential | None = None
) -> Sample:
    """Simulate a row again.

    Args:
        sample: The row, as stored.
        potential: The one it was made with.
        settings: Of its data set.
        preconditioner: The one of its data set, if it has one.

    Returns:
        The row with its spectra in full precision.

    Raises:
        SimulationError: The potential is another one, or the row cannot be made with these settings.
    """
    if potential.sha256 != sample.potential_sha256:
        raise SimulationError(
            f"row {sample.row_id} was made with {sample.potential} (sha256 {sample.potential_sha256[:12]}), not with "
            f"this {potential.name} ({potential.sha256[:12]})",
            fix="Name the potential of the data set",
        )
    host = Host(sample.host_id, sample.formula, stored_host(sample))
    number = sample.row_id.removeprefix(f"{sample.host_id}/").split("/")[0]
    try:
        row = HostSimulation(potential, host, host.crystal, settings, preconditioner).row(int(number))
        return next(made for made in row.samples if made.row_id == sample.row_id)
    except (Rejected, ValueError, StopIteration) as error:
        raise SimulationError(
            f"row {sample.row_id} cannot be made again", why=str(error) or "no such row", fix="Use its own settings"
        ) from error


def differences(stored: Sample, again: Sample) -> list[str]:
    """Return the names of the fields in which a row made again differs from the stored one, after the same rounding."""
    again = decoded(again)
    return [
        field.name
        for field in fields(Sample)
        if not np.array_equal(getattr(stored, field.name), getattr(again, field.name))
    ]
