"""A streaming data set over a folder of shards: each row once per epoch, over all ranks and workers.

The order of an epoch is a function of (seed, epoch) alone. Shards are shuffled; their rows, in that order, form one
line, which ranks and then workers cut into equal consecutive parts; each part is shuffled in blocks of `buffer_rows`.
So at most one block and one row batch of the reader are in memory, a shard is read by more than one worker only where
a cut falls into it, and an epoch can be entered at any batch without reading what came before its block.

Every rank gets the same number of batches: nothing is dropped or repeated, sizes of batches differ instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from defectnet.batch import Batch, Computed, Item, Targets
from defectnet.config import MODEL_GRID, Bounded, Grid, bounded
from defectnet.crystal.responses import HostResponses, computed_batch, known_elements
from defectnet.data.blending import blend, by_host, hard_negatives, key, pristine
from defectnet.data.candidates import Track, TrackSettings, questions
from defectnet.data.computed import ResponseTable
from defectnet.data.shards import AS_IS, DAMAGE, Row, open_shard, projected_pairs, read_rows, shard_files
from defectnet.data.splits import SPLITS, Split
from defectnet.elements import VOCABULARY, composition
from defectnet.errors import ConfigError, DefectNetError, ShardError
from defectnet.measure.forward import measure_pairs
from defectnet.measure.settings import CLEAN, Measurement
from defectnet.rng import row_rng


@dataclass(frozen=True)
class ShardIndex:
    """Where the rows of one split lie.

    Attributes:
        paths: Shard files, sorted by name.
        shard: (rows,) index into `paths`.
        row: (rows,) row number within its shard, ascending within a shard.
        placement: (rows,) ``random`` or ``clustered``, as in `defectnet.data.shards.Sample`.
        variant: (rows,) ``as-is``, or the name of a randomised stiffness.
    """

    paths: tuple[Path, ...]
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    placement: NDArray[np.str_]
    variant: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.shard)

    @classmethod
    def joined(cls, parts: Sequence[ShardIndex]) -> ShardIndex:
        """Return the rows of several data sets as one, in order."""
        before = np.cumsum([0, *(len(part.paths) for part in parts[:-1])])
        return cls(
            paths=tuple(path for part in parts for path in part.paths),
            shard=np.concatenate([part.shard + n for part, n in zip(parts, before, strict=True)]).astype(np.int32),
            row=np.concatenate([part.row for part in parts]),
            placement=np.concatenate([part.placement for part in parts]),
            variant=np.concatenate([part.variant for part in parts]),
        )


def index_folder(folder: str | Path, split: Split, *, variants: bool = True) -> ShardIndex:
    """Find the rows of a split, reading three short columns of each shard.

    Rows of randomised stiffness are for training: of the other splits they are left out wherever they come from.

    Args:
        folder: Folder of shards.
        split: ``train``, ``val`` or ``test``.
        variants: Whether training uses rows of randomised stiffness.

    Raises:
        ShardError: The folder is missing, has no shards, no row of the split, or a shard is not whole.
    """
    paths = shard_files(folder)
    with_variants = variants and split == "train"
    shards, rows = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    placements, names = [np.zeros(0, np.str_)], [np.zeros(0, np.str_)]
    for number, path in enumerate(paths):
        splits, placement, variant = _short_columns(path)
        found = np.flatnonzero((splits == split) & (with_variants | (variant == AS_IS))).astype(np.int32)
        rows.append(found)
        shards.append(np.full(len(found), number, np.int32))
        placements.append(placement[found])
        names.append(variant[found])
    index = ShardIndex(
        paths, np.concatenate(shards), np.concatenate(rows), np.concatenate(placements), np.concatenate(names)
    )
    if not len(index):
        raise ShardError(f"data folder {folder} holds no row of the split {split!r}", fix="Simulate more hosts")
    return index


def _short_columns(path: Path) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[np.str_]]:
    """Return the columns split, placement and variant of a shard, (rows,) each."""
    names = ("split", "placement", "variant")
    with open_shard(path) as file:
        try:
            table = file.read(columns=list(names), use_threads=False)
            splits, placement, variant = (np.array(table.column(name).to_pylist(), dtype=np.str_) for name in names)
        except DAMAGE as error:
            raise ShardError(
                f"shard {path} is damaged", why=str(error)[:160], fix="Simulate the shard again"
            ) from error
    unknown = sorted(set(splits.tolist()) - set(SPLITS))
    if unknown:
        raise ShardError(f"shard {path} has the unknown split {unknown[0]!r}", fix=f"Known are {', '.join(SPLITS)}")
    return splits, placement, variant


@dataclass(frozen=True)
class View(Bounded, called="data"):
    """How rows become network input.

    Attributes:
        grid: Common grid.
        measurement: Forward model of the measurement.
        track: Whether candidates are named.
        tracks: How candidate sets are drawn.
        seed: Set in training: the choices change with (seed, epoch). None in evaluation: they depend on the row alone.
        blend: Share of the rows that training blends with others of their host (`defectnet.data.blending`).
        undoped: Share of the rows that are shown as two measurements of the host, without its dopants.
        projected: Whether targets hold projected DOS.
        responses: Computed responses of some hosts. Distractors of rows that are shown with them are elements that have
            one: else to have one would tell what is there.
    """

    grid: Grid = MODEL_GRID
    measurement: Measurement = CLEAN
    track: Track = "candidates"
    tracks: TrackSettings = field(default_factory=TrackSettings)
    seed: int | None = None
    blend: float = bounded(0.0, 0.0, 1.0)
    projected: bool = False
    undoped: float = bounded(0.0, 0.0, 1.0)
    responses: ResponseTable | None = None

    @property
    def needs_others(self) -> bool:
        """Whether a row is shown with the help of other rows of its host; in training alone."""
        return self.seed is not None and (self.blend > 0 or self.tracks.hard_negative_share > 0)

    def collate(self, samples: Sequence[Row], rows: Sequence[int], epoch: int) -> Item:
        """Measure rows of shards and stack them."""
        keys: tuple[str | int, ...] = () if self.seed is None else (self.seed, epoch)
        if self.undoped:
            samples = [
                pristine(sample) if row_rng("undoped", sample.row_id, *keys).random() < self.undoped else sample
                for sample in samples
            ]
        pairs = measure_pairs(
            projected_pairs(samples),
            self.measurement,
            [row_rng("measurement", sample.row_id, *keys) for sample in samples],
            grid=self.grid,
            projected=self.projected,
        )
        concentration = np.zeros((len(samples), len(VOCABULARY)), dtype=np.float32)
        hosts = np.zeros(concentration.shape, dtype=np.bool_)
        for i, sample in enumerate(samples):
            concentration[i, sample.dopants] = sample.concentration
            hosts[i, sample.elements[: sample.hosts]] = True
        rngs = [row_rng("candidates", sample.row_id, *keys) for sample in samples]
        others = None
        if self.seed is not None and self.tracks.hard_negative_share:
            others = np.zeros(hosts.shape, dtype=np.bool_)
            for known, sample in zip(others, samples, strict=True):
                known[list(sample.hard_negatives)] = True
        askable, chosen, kinds = None, None, pairs.kind.tolist()
        if self.responses is not None:
            chosen = self._chosen(samples, kinds, concentration > 0, keys)
            known = known_elements(chosen)
            askable = known | ~known.any(axis=1, keepdims=True)
        asked, given = questions(hosts, concentration > 0, self.track, self.tracks, rngs, others, askable)
        batch = Batch(
            host=torch.from_numpy(pairs.host),
            doped=torch.from_numpy(pairs.doped),
            edge_mev=torch.from_numpy(pairs.edge_mev.astype(np.float32)),
            composition=torch.from_numpy(np.stack([_composition(sample.formula) for sample in samples])),
            candidates=torch.from_numpy(asked),
            candidates_given=torch.from_numpy(given),
            kind=torch.from_numpy(pairs.kind.astype(np.int64)),
            computed=None if chosen is None else self._computed(chosen, samples, kinds, known & given[:, None], keys),
        )
        projected = None if pairs.projected is None else torch.from_numpy(pairs.projected)
        return Item(batch, Targets(torch.from_numpy(concentration), projected), torch.tensor(rows))

    def _chosen(
        self, samples: Sequence[Row], kinds: Sequence[int], dopants: NDArray[np.bool_], keys: tuple[str | int, ...]
    ) -> list[HostResponses | None]:
        """Return the computed responses that each row is shown with; of some rows in training none."""
        assert self.responses is not None
        chosen: list[HostResponses | None] = []
        for sample, kind, true in zip(samples, kinds, dopants, strict=True):
            rng = None if self.seed is None else row_rng("responses", sample.row_id, *keys)
            one = self.responses.choose(key(sample)[0], kind, rng)
            if one is not None and rng is not None:
                # A dopant without a response among others that have one would be known by that.
                told = set(np.flatnonzero(true).tolist()) <= set(one.elements)
                one = one if told and rng.random() < self.responses.disturbance.shown else None
            chosen.append(one)
        return chosen

    def _computed(
        self,
        chosen: list[HostResponses | None],
        samples: Sequence[Row],
        kinds: Sequence[int],
        known: NDArray[np.bool_],
        keys: tuple[str | int, ...],
    ) -> Computed | None:
        """Return the responses of (B, E) elements, in training without some, and disturbed; None for none at all."""
        assert self.responses is not None
        how, rngs = self.responses.disturbance, {}
        if self.seed is not None:
            for i in np.flatnonzero(known.any(axis=1)).tolist():
                rngs[i] = rng = row_rng("disturbance", samples[i].row_id, *keys)
                known[i] &= rng.random(len(VOCABULARY)) >= how.forgotten
        disturbed = None if self.seed is None else lambda i, host, change: how(host, change, rngs[i])
        return computed_batch(chosen, kinds, known, disturbed) if known.any() else None


@lru_cache(maxsize=1024)
def _composition(formula: str) -> NDArray[np.float32]:
    return composition(formula).astype(np.float32)


@dataclass(frozen=True)
class Stream(Bounded, called="data"):
    """How rows are shared out and buffered.

    Attributes:
        batch_size: Largest batch.
        shuffle: Whether the order changes with the epoch; otherwise rows come as they lie.
        seed: Seed of the order.
        buffer_rows: Rows that are shuffled among each other, and held in memory for it.
        cache_rows: Rows that each worker may keep between epochs (about 5 kB a row); 0 reads every time.
        rank: This process among `ranks`.
        ranks: Processes that train together.
        workers: Loader processes of each rank; 0 and 1 share the rows out alike.
    """

    batch_size: int = bounded(64, 1)
    shuffle: bool = False
    seed: int = 0
    buffer_rows: int = bounded(1024, 1)
    cache_rows: int = bounded(0, 0)
    rank: int = bounded(0, 0)
    ranks: int = bounded(1, 1)
    workers: int = bounded(0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.rank < self.ranks, "rank", f"Use less than ranks = {self.ranks}")


class ShardDataset(IterableDataset[Item | DefectNetError]):
    """Batches of one split, to be read by `defectnet.data.module.ShardLoader`.

    Args:
        index: Rows of the split.
        view: How rows become input.
        stream: Sharing, order and buffering.

    Raises:
        ConfigError: There are too few rows for every rank to get the same number of batches.
    """

    def __init__(self, index: ShardIndex, view: View, stream: Stream) -> None:
        super().__init__()
        self.index, self.view, self.stream = index, view, stream
        self._cache: dict[int, Row] = {}
        # Shared memory: workers that live on between epochs see it change. [epoch, first batch]
        self._position = torch.zeros(2, dtype=torch.long)
        self._position.share_memory_()  # type: ignore[no-untyped-call]
        for rank in range(stream.ranks):
            for worker in range(max(stream.workers, 1)):
                first, last = self._cuts(rank, worker)
                if last - first < self._batches_of(worker) and stream.ranks > 1:
                    raise ConfigError(
                        f"data: {len(index)} rows do not give {stream.ranks} ranks with {stream.workers} workers the "
                        f"same number of batches of {stream.batch_size}",
                        fix="Use fewer ranks or workers, or a larger batch_size",
                    )

    def __len__(self) -> int:
        """Batches in an epoch on this rank, all workers together."""
        return sum(self._batches_of(worker) for worker in range(max(self.stream.workers, 1)))

    @property
    def layout(self) -> dict[str, int]:
        """What fixes, with the number of an epoch and of a batch, which rows are in it."""
        stream = self.stream
        fixed = {name: getattr(stream, name) for name in ("batch_size", "seed", "buffer_rows", "ranks")}
        return {"rows": len(self.index)} | (fixed if stream.shuffle else {})

    def enter(self, epoch: int, first_batch: int = 0) -> None:
        """Say which epoch the next iteration gives, and from which batch of this rank on."""
        self._position[0], self._position[1] = epoch, first_batch

    def __iter__(self) -> Iterator[Item | DefectNetError]:
        info = get_worker_info()
        if info is None:
            yield from self._turn(0, 1)
            return
        try:
            yield from self._turn(info.id, info.num_workers)
        except DefectNetError as error:
            yield error  # raised here, DataLoader would bury it in a traceback

    def _turn(self, worker: int, workers: int) -> Iterator[Item]:
        if workers != max(self.stream.workers, 1):
            raise ConfigError(
                f"data: the loader has {workers} workers, the data set was made for {self.stream.workers}",
                fix="Give both the same number",
            )
        epoch, first = self._position.tolist()
        # The loader asks its workers in turn, from 0: to go on at batch `first`, the numbers are rotated.
        part = (worker + first) % workers
        yield from self.batches(part, epoch, first_batch=-((part - first) // workers))

    def batches(self, worker: int, epoch: int, first_batch: int = 0) -> Iterator[Item]:
        """Yield the batches of one worker of this rank, from its `first_batch` on."""
        count = self._batches_of(worker)
        sizes = self._part_sizes(worker, count)
        start = sum(sizes[:first_batch])
        rows = self._rows(worker, epoch)
        stream = self._samples(rows, start, epoch)
        for size in sizes[first_batch:]:
            numbers, samples = zip(*(next(stream) for _ in range(size)), strict=True)
            yield self.view.collate(samples, numbers, epoch)

    def _cuts(self, rank: int, worker: int) -> tuple[int, int]:
        first, last = _share(0, len(self.index), rank, self.stream.ranks)
        return _share(first, last, worker, max(self.stream.workers, 1))

    def _batches_of(self, worker: int) -> int:
        largest = max(last - first for first, last in (self._cuts(rank, worker) for rank in range(self.stream.ranks)))
        return -(-largest // self.stream.batch_size)

    def _part_sizes(self, worker: int, count: int) -> list[int]:
        first, last = self._cuts(self.stream.rank, worker)
        cuts = [_share(0, last - first, i, count) for i in range(count)]
        return [end - begin for begin, end in cuts]

    def _rows(self, worker: int, epoch: int) -> NDArray[np.int64]:
        """Rows of the split that a worker gives out, in order of reading."""
        first, last = self._cuts(self.stream.rank, worker)
        if not self.stream.shuffle:
            return np.arange(first, last)
        order = row_rng("shards", self.stream.seed, epoch).permutation(len(self.index.paths))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return np.argsort(place[self.index.shard], kind="stable")[first:last]

    def _samples(self, rows: NDArray[np.int64], start: int, epoch: int) -> Iterator[tuple[int, Row]]:
        """Yield (row, sample) from position `start` on, block by block."""
        size = self.stream.buffer_rows if self.stream.shuffle else 64
        for begin in range(start - start % size, len(rows), size):
            block = rows[begin : begin + size]
            order = np.arange(len(block))
            if self.stream.shuffle:
                order = row_rng("block", self.stream.seed, epoch, int(block[0])).permutation(len(block))
            held = dict(self._read(block.tolist()))
            # Others of a host come from the same block: its rows lie in one shard, and a shard is seldom cut.
            groups = by_host(held.values()) if self.view.needs_others else {}
            known = hard_negatives(groups) if groups else {}
            for i in order[max(start - begin, 0) :].tolist():
                row = held.pop(int(block[i]))
                if groups:
                    rng = row_rng("blend", row.row_id, str(self.view.seed), epoch)
                    row = blend(row, groups[key(row)], self.view.blend, rng)
                    row = replace(row, hard_negatives=known[key(row)[0]])
                yield int(block[i]), row

    def _read(self, rows: Iterable[int]) -> Iterator[tuple[int, Row]]:
        """Decode rows of the split; those of one shard must stand together."""
        wanted = []
        for number in rows:
            if number in self._cache:
                yield number, self._cache[number]
            else:
                wanted.append((int(self.index.shard[number]), int(self.index.row[number]), number))
        for shard, group in groupby(wanted, key=itemgetter(0)):
            numbers = {row: number for _, row, number in group}
            yield from self._read_from(self.index.paths[shard], numbers)

    def _read_from(self, path: Path, numbers: dict[int, int]) -> Iterator[tuple[int, Row]]:
        left = len(numbers)
        for row, sample in read_rows(path, numbers):
            if len(self._cache) < self.stream.cache_rows:
                self._cache[numbers[row]] = sample
            yield numbers[row], sample
            left -= 1
        if left:
            raise ShardError(
                f"shard {path} has lost rows since it was indexed", fix="Start again, with the shards at rest"
            )


def _share(first: int, last: int, part: int, parts: int) -> tuple[int, int]:
    """Cut a range into consecutive parts whose sizes differ by at most 1, larger ones first."""
    size, rest = divmod(last - first, parts)
    begin = first + part * size + min(part, rest)
    return begin, begin + size + (part < rest)
