"""The LightningDataModule over a folder of shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader

from defectnet.config import MODEL_GRID, Grid, ModelSpec
from defectnet.data.candidates import TRACKS, Track, TrackSettings
from defectnet.data.dataset import Failure, Item, ShardDataset, ShardIndex, Stream, View, index_folder
from defectnet.data.measurement import measurement_named
from defectnet.data.source import fetch, parse_source
from defectnet.data.splits import Split
from defectnet.errors import ConfigError
from defectnet.spectrum import KINDS


@dataclass(frozen=True)
class LoaderSettings:
    """What loading may cost.

    Attributes:
        workers: Loader processes; 0 loads in the training process.
        buffer_rows: Rows that are shuffled among each other, held in memory by each worker.
        cache_rows: Rows that each worker keeps between epochs, about 5 kB each; 0 reads every time.
    """

    workers: int = 0
    buffer_rows: int = 1024
    cache_rows: int = 4096


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

    def _count(self, batches: Iterator[Item | Failure]) -> Iterator[Item]:
        for batch in batches:
            if isinstance(batch, Failure):
                raise batch.error()
            epoch, given = self._given
            self._given = (epoch, given + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the batches of it that were given out."""
        epoch, given = self._given
        return {"epoch": epoch, "batches": given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken; after the last batch, with the next epoch."""
        epoch, given = state["epoch"], state["batches"]
        self._next = (epoch, given) if given < len(self) else (epoch + 1, 0)
        self._given = (epoch, given)


class SpectraDataModule(LightningDataModule):
    """Pairs of spectra from simulated shards, measured on the fly.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it; or a data set on the Hugging Face Hub, as
            ``org/name`` or ``hf://datasets/org/name[@revision][/folder]`` (see `defectnet.data.source`).
        batch_size: Largest batch; sizes differ by a little, so that every rank has equally many.
        grid: Common grid of the spectra, in units of the host's band edge.
        tracks: How candidate sets are drawn.
        loader: Worker processes, shuffle buffer and cache.
        train_measurement: Name of the forward model in training: ``augment``, ``clean`` or ``lab``.
        val_measurement: The same for validation.
        seed: Fixes the order of the rows, and every choice made on them, together with the epoch.
        variants: Whether training uses rows of randomised stiffness; validation and test never do.
        extra: Further data sets, named like `folder`, whose training rows join its own; one that is named twice
            counts twice. Validation and test are of `folder` alone.
        blend: Share of the training rows that are blended with others of their host, see `defectnet.data.blending`.
        projected: Whether training shows projected DOS too, for networks that learn from them (`net.resolved`).
    """

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
        extra: Sequence[str] = (),
        blend: float = 0.0,
        projected: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(extra, str):
            raise ConfigError(f"data.extra is the text {extra!r}", fix="Give a list, such as [data/more]")
        self.extra = tuple(parse_source(name) for name in extra)
        self.source, self.batch_size, self.grid, self.tracks = parse_source(folder), batch_size, grid, tracks
        self.loader, self.seed, self.variants = loader, seed, variants
        self.blend, self.projected = blend, projected
        self.train_measurement = measurement_named(train_measurement)
        self.val_measurement = measurement_named(val_measurement)
        self._folder: Path | None = None
        self._indices: dict[Split, ShardIndex] = {}
        self._train: ShardLoader | None = None
        self._position: dict[str, int] | None = None

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
            folders = [self.folder]
            if split == "train":
                folders += [fetch(source, local_files_only=self.trainer is not None) for source in self.extra]
            parts = [index_folder(folder, split, variants=self.variants) for folder in folders]
            self._indices[split] = ShardIndex.joined(parts)
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Index the splits that the stage needs, so that a broken folder is named before anything runs."""
        needed: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in needed.get(stage, ()):
            self.index(split)

    def train_dataloader(self) -> ShardLoader:
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
        )
        self._train = self._loader("train", view, shuffle=True)
        if self._position is not None:
            self._train.load_state_dict(self._position)
        return self._train

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

    def evaluation(self, split: Split, track: Track, measurement: str | None = None) -> ShardLoader:
        """Return fixed batches of a split: a row's noise and distractors depend on the row alone.

        Args:
            split: ``train``, ``val`` or ``test``.
            track: ``candidates`` or ``blind``.
            measurement: Name of the condition; by default the one of validation.
        """
        chosen = measurement_named(measurement) if measurement else self.val_measurement
        return self._loader(split, View(self.grid, chosen, track, self.tracks), shuffle=False)

    def _loader(self, split: Split, view: View, *, shuffle: bool) -> ShardLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        index = self.index(split)
        if len(index) < ranks:
            raise ConfigError(
                f"data folder {self.folder} holds {len(index)} rows of the split {split!r} for {ranks} devices",
                fix="Use fewer devices",
            )
        workers = min(self.loader.workers, len(index) // ranks)
        stream = Stream(
            self.batch_size, shuffle, self.seed, self.loader.buffer_rows, self.loader.cache_rows, rank, ranks, workers
        )
        # The length is exact: every worker knows its share.
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return ShardLoader(ShardDataset(index, view, stream), workers, pin_memory=cuda)
