"""Making a stored row again, from the host, the seed and the settings that are stored with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from defectnet.config import STORAGE_GRID
from defectnet.crystal.hosts import Host
from defectnet.data.shards import Sample, check_shard, decoded, manifest_file, read_manifest, read_shard, shard_files
from defectnet.errors import ShardError, SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import Potential
from defectnet.rng import checked_seed
from defectnet.simulate.from_packs import is_from_packs, pairs_of, regenerate_pair
from defectnet.simulate.rows import HostSimulation, RejectedCell, SimulationSettings, read_settings
from defectnet.simulate.runner import ToolNames

FORGIVEN: Final = 0.005
"""Total variation of a spectrum that counts as rounding: that of storing it in one byte for each bin."""


@dataclass(frozen=True)
class Verified:
    """How a row made again compares with the stored one.

    Attributes:
        identical: To the last bit.
        differs: Fields that differ by more than rounding (`differences`).
    """

    identical: bool
    differs: tuple[str, ...]


def stored_host(sample: Sample) -> Crystal:
    """Return the relaxed host of a row."""
    cell = np.reshape(sample.host_cell, (3, 3))
    return Crystal(np.array(sample.host_numbers), cell, np.reshape(sample.host_frac, (-1, 3)) @ cell)


def regenerate(
    sample: Sample, potential: Potential, settings: SimulationSettings, preconditioner: Potential | None = None
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
        made = next(made for made in row.samples if made.row_id == sample.row_id)
    except (RejectedCell, ValueError, StopIteration) as error:
        raise SimulationError(
            f"row {sample.row_id} cannot be made again", why=str(error) or "no such row", fix="Use its own settings"
        ) from error
    # The host is what it was made from; on its way through Cartesian coordinates a zero may become 1e-17.
    return replace(made, host_cell=sample.host_cell, host_frac=sample.host_frac)


def differences(stored: Sample, again: Sample, *, exact: bool = False) -> list[str]:
    """Return the names of the fields in which a row made again differs from the stored one, after the same rounding.

    Args:
        stored: The row as it was read.
        again: What `regenerate` made.
        exact: To the last bit, as on the machine that made the row. Otherwise as much is forgiven as other processors
            and libraries change: last digits, and now and then a relaxation that ends a step earlier or later.
    """
    again = decoded(again)
    same = {} if exact else _CLOSE
    return [
        field.name
        for field in fields(Sample)
        if not same.get(field.name, _equal)(getattr(stored, field.name), getattr(again, field.name))
    ]


def _equal(stored: Any, again: Any) -> bool:
    return np.array_equal(stored, again)


def _near(stored: float, again: float, *, relative: float = 0.0, absolute: float = 0.0) -> bool:
    return abs(stored - again) <= absolute + relative * abs(stored)


def _alike(stored: NDArray[np.float32], again: NDArray[np.float32]) -> bool:
    if stored.shape != again.shape:
        return False
    return float(0.5 * np.abs(stored - again).sum() * STORAGE_GRID.width) <= FORGIVEN


_CLOSE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "edge_mev": partial(_near, relative=1e-4),  # a fiftieth of a bin; finite differences in single precision
    "host_dos": _alike,
    "doped_dos": _alike,
    "imaginary_fraction": partial(_near, absolute=FORGIVEN),
    "overflow": partial(_near, absolute=FORGIVEN),
    "max_force_ev_per_angstrom": partial(_near, absolute=0.01),  # a residue; sets are relaxed to this
}


def verify(
    folder: str | Path,
    potential: str,
    *,
    rows: int = 10,
    seed: int = 0,
    preconditioner: str | None = None,
    packs: str | Path | None = None,
) -> dict[str, Verified]:
    """Make random rows of a data set again, on one thread, as the workers did.

    Args:
        folder: Folder of shards with its manifest.
        potential: Path or name of the one it was made with; without a meaning if it was made from packs.
        rows: How many.
        seed: Chooses the rows.
        preconditioner: The one that it was made with, if any.
        packs: Where the host packs are that it was made from, if it was.

    Returns:
        Row id -> what was found.

    Raises:
        ShardError: No shard is there, or a shard is damaged.
        SimulationError: Another potential, preconditioner or pack; a row cannot be made again.
    """
    folder = Path(folder)
    if rows < 1:
        raise SimulationError(f"rows is {rows}", fix="Use 1 or more")
    if is_from_packs(folder) != (packs is not None):
        raise SimulationError(
            f"{folder} was made from {'host packs' if packs is None else 'a potential, not from host packs'}",
            fix="Give them with --packs" if packs is None else "Leave out --packs",
        )
    places = [(path, i) for path in shard_files(folder) for i in range(check_shard(path)["rows"])]
    if not places:
        raise ShardError(f"{folder} holds no rows", fix="Give a folder that `defectnet simulate` wrote")
    chosen = np.random.default_rng(checked_seed(seed)).permutation(len(places))[:rows]
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums split over threads end in other last digits
    try:
        with threadpool_limits(1):
            again_of = _maker(folder, potential, preconditioner) if packs is None else _pack_maker(folder, packs)
            for path, number in (places[i] for i in chosen):
                sample = next(islice(read_shard(path), number, None))
                again = again_of(sample)
                found[sample.row_id] = Verified(
                    identical=not differences(sample, again, exact=True), differs=tuple(differences(sample, again))
                )
    finally:
        torch.set_num_threads(threads)
    return found


def _maker(folder: Path, potential: str, preconditioner: str | None) -> Callable[[Sample], Sample]:
    """Return what simulates a row of a data set again."""
    settings = read_settings(SimulationSettings, manifest_file(folder))
    tools = ToolNames(potential, preconditioner).load()
    _check_preconditioner(folder, None if tools.preconditioner is None else tools.preconditioner.name)
    return lambda sample: regenerate(sample, tools.potential, settings, tools.preconditioner)


def _pack_maker(folder: Path, packs: str | Path) -> Callable[[Sample], Sample]:
    """Return what makes a row of a data set from packs again."""
    pairs = pairs_of(folder, packs)
    return lambda sample: regenerate_pair(sample, pairs)


def _check_preconditioner(folder: Path, name: str | None) -> None:
    """See that relaxations go the way they went: another one ends elsewhere within the tolerance."""
    wanted = read_manifest(folder).get("preconditioner")
    if wanted != name:
        raise SimulationError(
            f"{folder} was made with {f'preconditioner {wanted}' if wanted else 'no preconditioner'}, not {name}",
            fix=f"Give --preconditioner {wanted}" if wanted else "Leave out --preconditioner",
        )
