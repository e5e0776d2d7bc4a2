"""Endless batches of pairs from host packs, each row once, whatever reads them.

Batches are numbered through, over all ranks, and a batch's number says which rows are in it. A rank takes every R-th
batch and its worker w of W every W-th of these, as the loader asks its workers in turn. So which rows come next depends
on how many batches were given out, and on nothing else: a run can go on with other numbers of workers or ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, cast

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from defectnet.batch import Batch, Item
from defectnet.data.dataset import View
from defectnet.data.packs import PackPairs
from defectnet.data.shards import Row, in_brief
from defectnet.errors import ConfigError, DefectNetError


@dataclass(frozen=True)
class PackPart:
    """What a set of packs gives to each batch.

    Attributes:
        pairs: Where its rows come from.
        rows: How many of a batch.
    """

    pairs: PackPairs
    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ConfigError(
                f"data.packs: a batch would hold {self.rows} rows of {self.pairs.packs[0].folder.parent}",
                fix="Use a larger share or batch_size, or leave it out",
            )


class PackDataset(IterableDataset[Item | DefectNetError]):
    """Batches without end, to be read by `PackLoader`.

    Args:
        parts: What batches are made of, in order.
        view: How rows become input.
        rank: This process among `ranks`.
        ranks: Processes that train together.
    """

    def __init__(self, parts: Sequence[PackPart], view: View, *, rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        if not parts:
            raise ConfigError("data.packs names no packs", fix="Leave it out, or name some")
        if not 0 <= rank < ranks:
            raise ConfigError(f"data: rank is {rank} of {ranks}", fix="Use 0 <= rank < ranks")
        self.parts, self.view, self.rank, self.ranks = tuple(parts), view, rank, ranks
        self._first = [0] * len(self.parts)

    def enter(self, rows: Sequence[int]) -> None:
        """Say which row of each part comes next, over all ranks; workers that have begun do not hear of it.

        Raises:
            ConfigError: There are as many parts as there are not numbers.
        """
        if len(rows) != len(self.parts):
            raise ConfigError(
                f"data.packs names {len(self.parts)} sets of packs, the run that goes on had {len(rows)}",
                fix="Use the same ones, in the same order",
            )
        self._first = [int(row) for row in rows]

    def after(self, batches: int) -> list[int]:
        """Return which row of each part is next once every rank has given out so many batches since `enter`."""
        return [first + batches * self.ranks * part.rows for first, part in zip(self._first, self.parts, strict=True)]

    def __iter__(self) -> Iterator[Item | DefectNetError]:
        info = get_worker_info()
        if info is None:
            yield from self.batches(0, 1)
            return
        threadpool_limits(1)  # as many processes as cores work side by side
        try:
            yield from self.batches(info.id, info.num_workers)
        except DefectNetError as error:
            yield error  # raised here, DataLoader would bury it in a traceback

    def batches(self, worker: int, workers: int) -> Iterator[Item]:
        """Yield the batches of one worker of this rank."""
        for turn in count(worker, workers):
            yield self.batch(turn)

    def batch(self, turn: int) -> Item:
        """Return the batch of this rank's turn, counted from `enter` on."""
        rows: list[Row] = []
        numbers: list[int] = []
        for part, first in zip(self.parts, self._first, strict=True):
            begin = first + (turn * self.ranks + self.rank) * part.rows
            for number in range(begin, begin + part.rows):
                sample = part.pairs.row(number)
                rows.append(replace(in_brief([sample])[0], hard_negatives=part.pairs.hard_negatives(sample)))
                numbers.append(number)
        return self.view.collate(rows, numbers, 0)


class PackLoader(DataLoader[Item]):
    """A DataLoader without end that can be resumed.

    Args:
        dataset: Batches.
        workers: Loader processes.
        pin_memory: Whether batches go to page-locked memory, for a faster copy to the GPU.
    """

    def __init__(self, dataset: PackDataset, workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(cast(Any, dataset), batch_size=None, num_workers=workers, pin_memory=pin_memory)
        self._given = 0

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        dataset = cast(PackDataset, self.dataset)
        dataset.enter(dataset.after(self._given))  # what was made and not given out comes again
        self._given = 0
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Item | DefectNetError]) -> Iterator[Item]:
        for batch in batches:
            if isinstance(batch, DefectNetError):
                raise batch
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, list[int]]:
        """Return the next row of each part, over all ranks."""
        return {"rows": cast(PackDataset, self.dataset).after(self._given)}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        """Go on where `state_dict` was taken, at the next iterator."""
        cast(PackDataset, self.dataset).enter(state["rows"])
        self._given = 0


def joined(items: Sequence[Item]) -> Item:
    """Return batches as one."""
    first = items[0]
    batch = Batch.join([item.batch for item in items])
    concentration = torch.cat([item.targets.true_concentration for item in items])
    shown = [item.targets.projected for item in items if item.targets.projected is not None]
    targets = type(first.targets)(concentration, torch.cat(shown) if shown else None)
    return Item(batch, targets, torch.cat([item.rows for item in items]))
