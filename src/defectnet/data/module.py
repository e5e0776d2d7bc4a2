"""The LightningDataModule over folders of shards and host packs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from defectnet.batch import Item
from defectnet.config import MODEL_GRID, Bounded, Grid, ModelSpec, bounded
from defectnet.data.candidates import TRACKS, Track, TrackSettings
from defectnet.data.computed import Disturbance, ResponseTable
from defectnet.data.dataset import ShardDataset, ShardIndex, Stream, View, index_folder
from defectnet.data.endless import PackDataset, PackLoader, PackPart, joined
from defectnet.data.packs import PackPairs, PairSettings, find_packs
from defectnet.data.source import fetch, parse_source
from defectnet.data.splits import Split
from defectnet.errors import ConfigError, DefectNetError
from defectnet.measure.settings import measurement_named
from defectnet.spectrum import KINDS


@dataclass(frozen=True)
class LoaderSettings(Bounded, called="data.loader"):
    """What loading may cost.

    Attributes:
        workers: Loader processes; 0 loads in the training process.
        buffer_rows: Rows that are shuffled among each other, held in memory by each worker.
        cache_rows: Rows that each worker keeps between epochs, about 5 kB each; 0 reads every time.
        pack_workers: Further processes that make pairs from host packs, where the data name some: 5 to 50 rows a second
            each, by the size of the cells.
    """

    workers: int = bounded(0, 0)
    buffer_rows: int = bounded(1024, 1)
    cache_rows: int = bounded(4096, 0)
    pack_workers: int = bounded(1, 0)


class ShardLoader(DataLoader[Item]):
    """A DataLoader that tells its data set the epoch, and that can be resumed in the middle of one.

    Its state travels in Lightning's checkpoints, by way of `SpectraDataModule.state_dict`.

    Args:
        dataset: Batches.
        workers: Loader processes.
        pin_memory: Whether batches go to page-locked memory, for a faster copy to the GPU.
    """

    def __init__(self, dataset: ShardDataset, workers: int = 0, pin_memory: bool = False) -> None:
        super().__init__(
            cast(Any, dataset),
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )
        self._next = (0, 0)
        self._given = (0, 0)

    def __iter__(self) -> Iterator[Item]:  # type: ignore[override]
        epoch, first = self._next
        cast(ShardDataset, self.dataset).enter(epoch, first)
        # An epoch that is left early (limit_train_batches) is over all the same.
        self._next, self._given = (epoch + 1, 0), (epoch, first)
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Item | DefectNetError]) -> Iterator[Item]:
        for batch in batches:
            if isinstance(batch, DefectNetError):
                raise batch
            epoch, given = self._given
            self._given = (epoch, given + 1)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, the batches of it that were given out, of how many, and what fixes which rows they held."""
        epoch, given = self._given
        return {"epoch": epoch, "batches": given, "of": len(self), "layout": self._layout}

    @property
    def _layout(self) -> dict[str, int]:
        return {"workers": max(self.num_workers, 1), **getattr(self.dataset, "layout", {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; after the last batch, with the next epoch.

        Raises:
            ConfigError: In the middle of an epoch, and rows are shared out in another way than before: some would come
                twice and others not at all.
        """
        epoch, given = state["epoch"], state["batches"]
        done = given >= state.get("of", len(self))
        if given and not done:
            for name, before in state.get("layout", {}).items():
                now = self._layout.get(name)
                if now != before:
                    raise ConfigError(
                        f"data: {name} is {now}, the run that goes on in the middle of epoch {epoch} had {before}",
                        fix=f"Use {before}, or go on from a checkpoint of the end of an epoch",
                    )
        self._next = (epoch + 1, 0) if done else (epoch, given)
        self._given = (epoch, given)


class MixedLoader:
    """Batches that consist of rows of shards and of rows made from host packs.

    Args:
        shards: Its epochs are the epochs; None for rows of packs alone.
        packs: Goes on from epoch to epoch.
        batches: Batches in an epoch where there are no shards.
    """

    def __init__(self, shards: ShardLoader | None, packs: PackLoader, batches: int) -> None:
        self.shards, self.packs = shards, packs
        self._batches = batches
        self._stream: Iterator[Item] | None = None
        self._first = self._given = 0

    def __len__(self) -> int:
        """Batches in an epoch on this rank."""
        return self._batches if self.shards is None else len(self.shards)

    def __iter__(self) -> Iterator[Item]:
        if self._stream is None:
            self._stream = iter(self.packs)
        first, self._first = self._first, 0
        self._given = first
        return self._mixed(self._stream, first)

    def _mixed(self, stream: Iterator[Item], first: int) -> Iterator[Item]:
        others = range(first, self._batches) if self.shards is None else self.shards
        for other in others:
            made = next(stream)
            self._given += 1
            yield made if isinstance(other, int) else joined([other, made])

    def state_dict(self) -> dict[str, Any]:
        """Return where the shards stand, the next rows of the packs, and the batches of this epoch."""
        shards = None if self.shards is None else self.shards.state_dict()
        return {"shards": shards, "packs": self.packs.state_dict(), "batches": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; after the last batch, with the next epoch."""
        if self.shards is not None and state["shards"] is not None:
            self.shards.load_state_dict(state["shards"])
        self.packs.load_state_dict(state["packs"])
        self._stream = None
        self._first = state["batches"] if self.shards is None and state["batches"] < self._batches else 0


class SpectraDataModule(LightningDataModule):
    """Pairs of spectra from simulated shards, measured on the fly.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it; or a data set on the Hugging Face Hub, as
            ``org/name`` or ``hf://datasets/org/name[@revision][/folder]`` (see `defectnet.data.source`).
        batch_size: Largest batch; sizes differ by a little, so that every rank has equally many.
        grid: Common grid of the spectra, in units of the host's band edge.
        tracks: How candidate sets are drawn.
        loader: Worker processes, shuffle buffer and cache.
        train_measurement: Name of the forward model in training: ``augment``, ``clean``, ``lab`` or ``raw``.
        val_measurement: The same for validation.
        seed: Fixes the order of the rows, and every choice made on them, together with the epoch.
        variants: Whether training uses rows of randomised stiffness; validation and test never do.
        extra: Further data sets, named like `folder`, whose training rows join its own, and how often each of their
            rows comes in an epoch. Validation and test are of `folder` alone.
        blend: Share of the training rows that are blended with others of their host, see `defectnet.data.blending`.
        undoped: Share of the training rows that are shown without their dopants, as two measurements of the host.
        packs: Share of each training batch that is made from host packs while training, by where the packs are: a
            folder of packs, one pack, or ``bundled``. The rest comes from the shards. Hosts of other splits are left
            out. No row comes twice.
        pack_settings: How such pairs are drawn.
        epoch_rows: Rows in an epoch where all are made from packs.
        responses: Folders of computed responses (`defectnet host responses`), shown beside the rows of their hosts.
        disturbance: How training shows them.

    Attributes:
        projected: Whether training shows projected DOS, too; a `defectnet.tasks.defect.DefectTask` sets it where its
            network learns from them.
    """

    projected: bool = False

    def __init__(
        self,
        folder: str,
        batch_size: int = 64,
        grid: Grid = MODEL_GRID,
        tracks: TrackSettings = TrackSettings(),  # noqa: B008
        loader: LoaderSettings = LoaderSettings(),
        train_measurement: str = "augment",
        val_measurement: str = "clean",
        seed: int = 0,
        variants: bool = True,
        extra: Mapping[str, int] | None = None,
        blend: float = 0.0,
        undoped: float = 0.0,
        packs: Mapping[str, float] | None = None,
        pack_settings: PairSettings = PairSettings(),  # noqa: B008
        epoch_rows: int = 100_000,
        responses: list[str] | None = None,
        disturbance: Disturbance = Disturbance(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.responses = None if responses is None else ResponseTable.read(responses, disturbance)
        self.packs, self.pack_settings, self.epoch_rows = _checked(packs or {}, epoch_rows), pack_settings, epoch_rows
        for name, weight in (extra or {}).items():
            if not isinstance(weight, int) or weight < 1:
                raise ConfigError(f"data.extra[{name!r}] is {weight!r}", fix="Use a whole number from 1 on")
        self.extra = {parse_source(name): weight for name, weight in (extra or {}).items()}
        self.source, self.batch_size, self.grid, self.tracks = parse_source(folder), batch_size, grid, tracks
        self.loader, self.seed, self.variants = loader, seed, variants
        self.blend, self.undoped = blend, undoped
        self.train_measurement = measurement_named(train_measurement)
        self.val_measurement = measurement_named(val_measurement)
        self._folder: Path | None = None
        self._indices: dict[Split, ShardIndex] = {}
        self._train: ShardLoader | MixedLoader | None = None
        self._position: dict[str, Any] | None = None

    @property
    def val_tracks(self) -> tuple[Track, ...]:
        """Tracks that validation asks, in the order of its loaders."""
        return TRACKS if self.tracks.blind_share > 0 else TRACKS[:1]

    @property
    def spec(self) -> ModelSpec:
        """What a network trained on these data reads: the grid, and the kinds of DOS that training measures."""
        weights = self.train_measurement.weights
        return ModelSpec(grid=self.grid, kinds=tuple(k for k, w in zip(KINDS, weights, strict=True) if w > 0))

    @property
    def folder(self) -> Path:
        """Where the shards lie; data of the Hub are fetched when this is first asked for."""
        if self._folder is None:
            # Under a trainer one process has fetched them in `prepare_data`, and the others must not ask again.
            self._folder = fetch(self.source, local_files_only=self.trainer is not None)
        return self._folder

    def prepare_data(self) -> None:
        """Fetch data of the Hub; Lightning calls this on one process of each machine."""
        for source in (self.source, *self.extra):
            fetch(source)

    def index(self, split: Split) -> ShardIndex:
        """Return where the rows of a split lie; read once."""
        if split not in self._indices:
            parts = [index_folder(self.folder, split, variants=self.variants)]
            for source, weight in self.extra.items() if split == "train" else ():
                folder = fetch(source, local_files_only=self.trainer is not None)
                parts += [index_folder(folder, split, variants=self.variants)] * weight
            self._indices[split] = ShardIndex.joined(parts)
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Index the splits that the stage needs, so that a broken folder is named before anything runs."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in needed.get(stage, ()):
            if split != "train" or not self._packs_alone:
                self.index(split)

    @property
    def _packs_alone(self) -> bool:
        return sum(self.packs.values()) > 1.0 - 1e-9

    def train_dataloader(self) -> ShardLoader | MixedLoader:
        """Return shuffled training batches; measurement and candidates change with every epoch."""
        track: Track = "mixed" if self.tracks.blind_share > 0 else "candidates"
        view = View(
            self.grid,
            self.train_measurement,
            track,
            self.tracks,
            seed=self.seed,
            blend=self.blend,
            projected=self.projected,
            undoped=self.undoped,
            responses=self.responses,
        )
        self._train = self._mixed(view) if self.packs else self._loader("train", view, shuffle=True)
        if self._position is not None:
            if ("packs" in self._position) != bool(self.packs):
                raise ConfigError(
                    f"data.packs names {len(self.packs)} sets of packs, which the run that goes on had not"
                    if self.packs
                    else "data.packs is empty, the run that goes on had packs",
                    fix="Use the data of that run, or start another",
                )
            self._train.load_state_dict(self._position)
        return self._train

    def _mixed(self, view: View) -> MixedLoader:
        """Return training batches with rows made from packs."""
        rank, ranks = self._rank
        parts = [
            PackPart(
                PackPairs(find_packs(source), self.pack_settings).of_split("train"), round(share * self.batch_size)
            )
            for source, share in self.packs.items()
        ]
        left = self.batch_size - sum(part.rows for part in parts)
        if not self._packs_alone and left < 1:
            raise ConfigError("data.packs leaves no row of a batch to the shards", fix="Use a larger batch_size")
        made = PackLoader(
            PackDataset(parts, view, rank=rank, ranks=ranks), self.loader.pack_workers, pin_memory=self._cuda
        )
        shards = None if self._packs_alone else self._loader("train", view, shuffle=True, batch_size=left)
        return MixedLoader(shards, made, max(1, self.epoch_rows // (self.batch_size * ranks)))

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands: the epoch, and the batches of it that were given out on this rank."""
        return {} if self._train is None else {"train": self._train.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` at the next `train_dataloader`.

        Lightning restores the states of loaders too, but too late: the schedule of the learning rate asks for the
        number of steps, which makes the loader and its first iterator before those states are looked at.
        """
        self._position = state_dict.get("train")

    def val_dataloader(self) -> list[ShardLoader]:
        """Return one loader for each of `val_tracks`; the same batches every time."""
        return [self.evaluation("val", track) for track in self.val_tracks]

    def test_dataloader(self) -> list[ShardLoader]:
        """Return the same as validation, on the test crystals."""
        return [self.evaluation("test", track) for track in self.val_tracks]

    def evaluation(
        self,
        split: Split,
        track: Track,
        measurement: str | None = None,
        *,
        tracks: TrackSettings | None = None,
        undoped: bool = False,
    ) -> ShardLoader:
        """Return fixed batches of a split: a row's noise and distractors depend on the row alone.

        Args:
            split: ``train``, ``val`` or ``test``.
            track: ``candidates`` or ``blind``.
            measurement: Name of the condition; by default the one of validation.
            tracks: How candidate sets are drawn; by default as in training.
            undoped: Whether all rows are shown without their dopants, as two measurements of the host.
        """
        chosen = measurement_named(measurement) if measurement else self.val_measurement
        view = View(self.grid, chosen, track, tracks or self.tracks, undoped=float(undoped), responses=self.responses)
        return self._loader(split, view, shuffle=False)

    @property
    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @property
    def _cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _loader(self, split: Split, view: View, *, shuffle: bool, batch_size: int | None = None) -> ShardLoader:
        rank, ranks = self._rank
        index = self.index(split)
        if len(index) < ranks:
            raise ConfigError(
                f"data folder {self.folder} holds {len(index)} rows of the split {split!r} for {ranks} devices",
                fix="Use fewer devices",
            )
        workers = min(self.loader.workers, len(index) // ranks)
        stream = Stream(
            batch_size or self.batch_size,
            shuffle,
            self.seed,
            self.loader.buffer_rows,
            self.loader.cache_rows,
            rank,
            ranks,
            workers,
        )
        # The length is exact: every worker knows its share.
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        return ShardLoader(ShardDataset(index, view, stream), workers, pin_memory=self._cuda)


def _checked(packs: Mapping[str, float], epoch_rows: int) -> dict[str, float]:
    """See that shares are shares."""
    for source, share in packs.items():
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"data.packs[{source!r}] is {share}", fix="Use a share of more than 0, at most 1")
    if sum(packs.values()) > 1.0 + 1e-9:
        raise ConfigError(f"data.packs: the shares add up to {sum(packs.values()):g}", fix="Use at most 1 in all")
    if epoch_rows < 1:
        raise ConfigError(f"data.epoch_rows is {epoch_rows}", fix="Use 1 or more")
    return dict(packs)
