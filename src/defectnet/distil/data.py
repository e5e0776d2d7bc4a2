"""The LightningDataModule over label files and kept Hessians."""

from __future__ import annotations

import glob
import heapq
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from lightning import LightningDataModule

from defectnet.crystal.hosts import read_hosts
from defectnet.data.splits import Split
from defectnet.distil.batch import Example, PairCache, collate
from defectnet.distil.labels import chemical_systems, read_curved, read_labels, structures
from defectnet.errors import ConfigError
from defectnet.potentials.batch import CellBatch


class ExampleLoader:
    """Batches of whole structures with about equally many atoms, in an order fixed by seed and epoch.

    Its state travels in Lightning's checkpoints, by way of `DistilDataModule.state_dict`.

    Args:
        examples: Structures.
        cache: Of their pairs, within the student's cut-off.
        atoms: Of a batch, on average; a batch is larger by less than one structure.
        seed: Of the order; None keeps the same batches every time.
    """

    def __init__(self, examples: Sequence[Example], cache: PairCache, atoms: int, seed: int | None) -> None:
        self.examples, self.cache, self.seed = examples, cache, seed
        self._count = max(1, -(-sum(example.atoms for example in examples) // atoms))
        self._next = (0, 0)
        self._given = (0, 0)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._count

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the numbers of the structures of each batch: each goes where the fewest atoms are so far."""
        order = np.arange(len(self.examples))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        batches: list[list[int]] = [[] for _ in range(self._count)]
        heap = [(0, k) for k in range(self._count)]
        for number in order.tolist():
            filled, k = heapq.heappop(heap)
            batches[k].append(number)
            heapq.heappush(heap, (filled + self.examples[number].atoms, k))
        return [batch for batch in batches if batch]

    def batch(self, numbers: Sequence[int]) -> CellBatch:
        """Return a batch of some structures."""
        examples = [self.examples[number] for number in numbers]
        return collate(examples, [self.cache.pairs(n, e) for n, e in zip(numbers, examples, strict=True)])

    def __iter__(self) -> Iterator[CellBatch]:
        """Give out the batches of an epoch; the next call those of the next."""
        epoch, first = self._next
        self._next = (epoch + 1, 0)
        self._given = (epoch, first)
        return self._batches(epoch, first)

    def _batches(self, epoch: int, first: int) -> Iterator[CellBatch]:
        for number, members in enumerate(self.plan(epoch)[first:], first):
            self._given = (epoch, number + 1)
            yield self.batch(members)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the batches of it that were given out."""
        epoch, given = self._given
        return {"epoch": epoch, "batches": given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken; after the last batch, with the next epoch."""
        epoch, given = state["epoch"], state["batches"]
        self._next = (epoch, given) if given < len(self) else (epoch + 1, 0)
        self._given = (epoch, given)


class DistilDataModule(LightningDataModule):
    """Labels of a slow potential, split by the chemical system of their hosts.

    Args:
        labels: Label files (`defectnet.distil.labels`), or patterns of them.
        hosts: The lists of hosts that the labels were made from.
        hessians: Folder of a data set that keeps Hessians of relaxed doped cells beside its shards; None for none.
        batch_atoms: Atoms of a batch.
        draws: Random displacements of each cell with a Hessian.
        displacement: Standard deviation of the displacements, angstrom.
        seed: Fixes the displacements, and with the epoch the order.
        cache_gigabytes: Memory for pair lists.
    """

    def __init__(
        self,
        labels: list[str],
        hosts: list[str] | str = "data/hosts.json.xz",
        hessians: str | None = None,
        batch_atoms: int = 400,
        draws: int = 4,
        displacement: float = 0.02,
        seed: int = 0,
        cache_gigabytes: float = 2.0,
    ) -> None:
        super().__init__()
        if batch_atoms < 1 or draws < 1 or displacement <= 0.0:
            raise ConfigError(
                f"data: batch_atoms {batch_atoms}, draws {draws}, displacement {displacement}",
                fix="All must be above zero",
            )
        self.labels, self.hessians = labels, hessians
        self.hosts = [hosts] if isinstance(hosts, str) else hosts
        self.batch_atoms, self.draws, self.displacement = batch_atoms, draws, displacement
        self.seed, self.cache_gigabytes = seed, cache_gigabytes
        self.cutoff = 0.0
        """Angstrom within which pairs are listed; `DistilTask` sets it to what its student needs."""
        self._examples: dict[Split, list[Example]] = {}
        self._train: ExampleLoader | None = None
        self._position: dict[str, int] | None = None

    def examples(self, split: Split) -> list[Example]:
        """Return the structures of a split: labelled ones, then those with a Hessian.

        Raises:
            SimulationError: A file is damaged, or a host is not in the list.
            ConfigError: No file is there, or nothing belongs to the split.
        """
        if not self._examples:
            self._read()
        if not self._examples[split]:
            raise ConfigError(f"data.labels: no structure belongs to the split {split!r}", fix="Give more labels")
        return self._examples[split]

    def _read(self) -> None:
        paths = sorted({path for pattern in self.labels for path in glob.glob(pattern)})
        if not paths:
            raise ConfigError(
                f"data.labels {self.labels} match no file",
                fix="Give label files of the slow potential with --data.labels",
            )
        systems = chemical_systems(read_hosts(*self.hosts))
        found: dict[Split, list[Example]] = {"train": [], "val": [], "test": []}
        for path in paths:
            for structure in structures(read_labels(path), systems):
                found[structure.split].append(Example.of_labels(structure))
        rng = np.random.default_rng([self.seed, 1])
        for curved in read_curved(self.hessians) if self.hessians else []:
            for _ in range(self.draws):
                displacement = rng.normal(0.0, self.displacement, (len(curved.crystal), 3))
                found[curved.split].append(Example.of_hessian(curved, displacement))
        self._examples = found

    def setup(self, stage: str) -> None:
        """Read everything, so that a damaged file is named before anything runs."""
        for split in {"fit": ("train", "val"), "validate": ("train", "val"), "test": ("train", "test")}[stage]:
            self.examples(split)  # type: ignore[arg-type]

    def loader(self, split: Split, *, shuffle: bool = False) -> ExampleLoader:
        """Return batches of a split; without `shuffle` the same each time."""
        if self.cutoff <= 0.0:
            raise ConfigError("the cut-off of the pairs is not known", fix="Set the data's attribute cutoff")
        cache = PairCache(self.cutoff, self.cache_gigabytes)
        return ExampleLoader(self.examples(split), cache, self.batch_atoms, self.seed if shuffle else None)

    def train_dataloader(self) -> ExampleLoader:
        """Return shuffled training batches."""
        self._train = self.loader("train", shuffle=True)
        if self._position is not None:
            self._train.load_state_dict(self._position)
        return self._train

    def val_dataloader(self) -> ExampleLoader:
        """Return validation batches."""
        return self.loader("val")

    def test_dataloader(self) -> ExampleLoader:
        """Return test batches."""
        return self.loader("test")

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands."""
        return {} if self._train is None else {"train": self._train.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` at the next `train_dataloader`."""
        self._position = state_dict.get("train")
