"""Data sets of pairs from host packs; killed and started again, they end in the same shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from defectnet.data.packs import PackFile, PackPairs, PairSettings, find_packs
from defectnet.data.shards import SCHEMA_VERSION, Sample, manifest_file, read_extra, read_manifest, write_shard
from defectnet.errors import SimulationError
from defectnet.simulate.executors import Executor
from defectnet.simulate.rows import read_settings
from defectnet.simulate.runner import DEADLY, counts, run_shards, whole_shard, write_manifest

ROWS_PER_SHARD: Final = 256


@dataclass(frozen=True)
class RowShard:
    """A shard to be written.

    Attributes:
        path: Where it goes.
        rows: Numbers of its rows.
    """

    path: Path
    rows: range

    def __len__(self) -> int:
        return len(self.rows)


def simulate_packs(
    packs: str | Path | Sequence[str | Path],
    out: Path,
    rows: int,
    settings: PairSettings,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    executor: Executor | None = None,
    only: range | None = None,
) -> Counter[str]:
    """Write rows 0 to `rows` - 1 of host packs into a folder; shards that are there and whole are kept.

    Args:
        packs: See `find_packs`.
        out: Folder; made if needed.
        rows: How many.
        settings: See `PairSettings`.
        rows_per_shard: Rows in one file.
        executor: Who does the work; by default one process beside this one.
        only: Numbers of the shards to make; all by default.

    Returns:
        Number of rows (``"rows"``) and of rejected draws by reason, of the shards that were asked for.

    Raises:
        SimulationError: The folder holds another data set, or shards could not be made; the others are made first.
    """
    for name, value in (("rows", rows), ("rows-per-shard", rows_per_shard)):
        if value < 1:
            raise SimulationError(f"{name} is {value}", fix="Use 1 or more")
    pairs = PackPairs(find_packs(packs), settings)
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(
        out,
        {
            "schema_version": SCHEMA_VERSION,
            "rows": rows,
            "rows_per_shard": rows_per_shard,
            "packs": [pack.identity() for pack in pairs.packs],
            "settings": settings.to_dict(),
        },
    )
    firsts = range(0, rows, rows_per_shard)
    planned = [
        RowShard(out / f"shard-{i:05d}.parquet", range(first, min(first + rows_per_shard, rows)))
        for i, first in enumerate(firsts)
    ]
    shards = run_shards(
        planned,
        out,
        RowWork(pairs.packs, settings),
        whole=lambda shard: whole_shard(shard.path, _notes(shard, pairs)) is not None,
        executor=executor,
        only=only,
        deaths=DEADLY,
        units="rows",
    )
    totals: Counter[str] = Counter()
    for shard in shards:
        totals.update(counts(read_extra(shard.path)))
    return totals


@dataclass(frozen=True)
class RowWork:
    """Writes a shard in a worker process, with packs that it loads for itself."""

    packs: tuple[PackFile, ...]
    settings: PairSettings

    def __call__(self, shard: RowShard) -> Counter[str]:
        """Make a shard."""
        pairs = _pairs(self)
        drawn = [pairs.draw(number) for number in shard.rows]
        samples = [each.sample for each in drawn]
        rejects = [reject for each in drawn for reject in each.rejects]
        hosts = sorted({sample.host_id for sample in samples})
        extra = {"hosts": hosts, "rejects": rejects, **_notes(shard, pairs)}
        write_shard(shard.path, samples, extra)
        return counts(extra)


@lru_cache(maxsize=1)
def _pairs(work: RowWork) -> PackPairs:
    return PackPairs(work.packs, work.settings)


def _notes(shard: RowShard, pairs: PackPairs) -> dict[str, Any]:
    """Return what the notes of a shard say of its origin."""
    return {
        "rows": len(shard),
        "first_row": shard.rows.start,
        "packs_sha256": pairs.sha256,
        "settings": pairs.settings.to_dict(),
    }


def is_from_packs(folder: str | Path) -> bool:
    """Whether a data set was made from host packs, by its manifest."""
    return "packs" in read_manifest(folder)


def pairs_of(folder: str | Path, packs: str | Path) -> PackPairs:
    """Return the pairs that a data set was made of.

    Args:
        folder: Of the data set.
        packs: Where its packs are; others beside them are passed over.

    Raises:
        SimulationError: A pack is missing, or another one than the data set was made from.
    """
    path = manifest_file(folder)
    wanted = read_manifest(folder).get("packs", [])
    known = {pack.id: pack for pack in find_packs(packs)}
    for entry in wanted:
        pack = known.get(entry["id"])
        if pack is None or pack.identity() != entry:
            raise SimulationError(
                f"{packs} holds {'no pack' if pack is None else 'another pack'} of {entry['id']}",
                why=f"{path} names one with sha256 {entry['weights_sha256'][:12]}",
                fix="Give the packs that the data set was made from",
            )
    return PackPairs([known[entry["id"]] for entry in wanted], read_settings(PairSettings, path))


def regenerate_pair(sample: Sample, pairs: PackPairs) -> Sample:
    """Make a row again; see `pairs_of`.

    Raises:
        SimulationError: The row is not of these pairs.
    """
    number = sample.row_id.rpartition("/")[2]
    made = pairs.row(int(number)) if number.isdecimal() else None
    if made is None or made.row_id != sample.row_id:
        raise SimulationError(
            f"row {sample.row_id} cannot be made again",
            why="no such row" if made is None else f"it is {made.row_id} now",
            fix="Use its own packs and settings",
        )
    return made
