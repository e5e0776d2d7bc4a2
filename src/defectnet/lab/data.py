"""From rows of a lab table to batches: encoding, light augmentation, replay of simulated rows, one line for all ranks.

A batch is one of all devices together: each takes its share of the rows, and their losses carry such weights that
training on any number of devices minimises the same numbers. No row is given out twice in an epoch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import Any, cast

import numpy as np
import torch
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset

from defectnet.batch import Batch, Item, Targets
from defectnet.config import MODEL_GRID, STORAGE_GRID, Bounded, Grid, ModelSpec, bounded
from defectnet.data.blending import draw_shares
from defectnet.data.candidates import TRACKS, Track, TrackSettings, questions
from defectnet.data.dataset import View, index_folder
from defectnet.data.module import ShardLoader
from defectnet.data.shards import Row, read_rows
from defectnet.elements import INDEX, VOCABULARY
from defectnet.errors import ConfigError
from defectnet.lab.splits import hold_out
from defectnet.lab.table import LabPair, read_table
from defectnet.measure.encode import candidate_mask, encode_pair, on_grid, stack
from defectnet.measure.forward import ProjectedPairs, measure_pairs
from defectnet.measure.settings import AUGMENT, Measurement
from defectnet.models.measured import same_host
from defectnet.rng import row_rng
from defectnet.spectrum import KINDS

_TRAIN, _REPLAY = "lab", "replay"  # purposes of random numbers


@dataclass(frozen=True)
class Augmentation(Bounded, called="augmentation"):
    """Changes to a measured pair, new in every epoch.

    Blends change what is in the sample: to first order a spectrum is linear in the concentrations, so that a sum of
    what several dopings do to a host is what a sample with all of them would show. The other changes are small, and
    what the spectra show stays what it was.

    Attributes:
        share: Share of the pairs that is changed; the others are seen as they were measured.
        blend: Share of the pairs that is blended with up to two others of their host, and with the pure host.
        broadening: Most extra resolution (FWHM), relative to the row's own; added in squares.
        resolution: Resolution assumed where a row states none, relative to the host's band edge.
        noise: Most extra noise, as `defectnet.measure.settings.Measurement.noise`.
        energy_scale: Standard deviation of the relative error of the energy axis, shared by host and doped sample.
    """

    share: float = bounded(0.75, 0.0, 1.0)
    blend: float = bounded(0.5, 0.0, 1.0)
    broadening: float = bounded(0.7, 0.0)
    resolution: float = 0.02
    noise: float = bounded(0.01, 0.0)
    energy_scale: float = bounded(0.01, 0.0)

    def measurement(self, pair: LabPair, edge_mev: float) -> Measurement:
        """Return the forward model that changes one pair."""
        own = pair.resolution_mev or self.resolution * edge_mev
        least = 0.05  # meV; the forward model knows no sharper instrument
        return Measurement(
            fwhm_mev=(least, float(np.clip(self.broadening * own, least, 20.0))),
            noise=(0.0, self.noise),
            energy_scale=self.energy_scale,
        )


@dataclass(frozen=True)
class Replay(Bounded, called="replay"):
    """Simulated rows that are mixed in, against forgetting.

    Attributes:
        folder: Folder of shards.
        share: Share of each batch that they make up.
        pool: Rows drawn from the training split, once, and held in memory (about 5 kB each).
    """

    folder: str
    share: float = bounded(0.5, above=0.0, below=1.0)
    pool: int = bounded(1024, 1)

    def rows(self, seed: int) -> list[Row]:
        """Read the pool.

        Raises:
            ShardError: The folder cannot be used.
        """
        index = index_folder(self.folder, "train")
        size = min(self.pool, len(index))
        chosen = np.sort(row_rng(_REPLAY, seed).choice(len(index), size, replace=False))
        places = [(int(index.shard[i]), int(index.row[i])) for i in chosen]
        shards = [(index.paths[n], [row for _, row in part]) for n, part in groupby(places, key=itemgetter(0))]
        return [row for _, row in chain.from_iterable(read_rows(path, rows) for path, rows in shards)]


class EncodedPairs:
    """Pairs as a network sees them, and as the forward model takes them.

    Args:
        pairs: Rows of a table.
        grid: Grid of the network.
        tracks: How candidate sets are drawn where a row names none.
        batch: The pairs, if they are encoded already.
    """

    def __init__(
        self,
        pairs: Sequence[LabPair],
        grid: Grid = MODEL_GRID,
        tracks: TrackSettings = TrackSettings(),  # noqa: B008
        batch: Batch | None = None,
    ) -> None:
        self.pairs, self.grid, self.tracks = list(pairs), grid, tracks
        self.batch = batch or stack([encode_pair(p.host, p.doped, p.formula, grid=grid) for p in pairs])
        concentration = torch.zeros(len(self.pairs), len(VOCABULARY))
        for row, pair in zip(concentration, self.pairs, strict=True):
            for symbol, share in pair.dopants.items():
                row[INDEX[symbol]] = share
        self.targets = Targets(concentration)
        self.partners = self._partners()

    def _partners(self) -> list[list[int]]:
        """Return for each row the others of its host, whose dopants may stand in a blend with its own."""
        found: list[list[int]] = [[] for _ in self.pairs]
        for rows in (group.tolist() for group in same_host(self.batch)):
            for row in rows:
                named = self.pairs[row].candidates
                found[row] = [
                    other
                    for other in rows
                    if other != row and (named is None or self.pairs[other].dopants.keys() <= set(named))
                ]
        return found

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of DOS of the pairs."""
        found = {pair.host.kind for pair in self.pairs}
        return tuple(kind for kind in KINDS if kind in found)

    def take(self, rows: Sequence[int], tracks: TrackSettings | None = None) -> EncodedPairs:
        """Return some of the pairs, in this order.

        Args:
            rows: Positions.
            tracks: How candidate sets are drawn; as for all by default.
        """
        return EncodedPairs([self.pairs[i] for i in rows], self.grid, tracks or self.tracks, self._rows(rows))

    def item(self, rows: Sequence[int], track: Track) -> Item:
        """Return rows as they were measured; what is asked of a row depends on the row alone."""
        return self._asked(rows, self._rows(rows), track, ())

    def augmented(self, rows: Sequence[int], augmentation: Augmentation, keys: tuple[int, ...], track: Track) -> Item:
        """Return rows with small changes and questions that (row, keys) fix."""
        batch = self._rows(rows)
        concentration = self.targets.true_concentration[torch.as_tensor(rows, dtype=torch.long)]
        for place, row in enumerate(rows):
            rng = row_rng(_TRAIN, self.pairs[row].key, *keys)
            shares = self._shares(row, augmentation, rng)
            concentration[place] = sum(share * self.targets.true_concentration[k] for k, share in shares.items())
            if rng.random() < augmentation.share or shares != {row: 1.0}:
                self._change(batch, place, row, shares, augmentation, rng)
        return self._asked(rows, batch, track, keys, concentration)

    def _shares(self, row: int, augmentation: Augmentation, rng: np.random.Generator) -> dict[int, float]:
        """Return row -> its share in a blend; what they lack from 1 is the pure host's."""
        others = self.partners[row]
        chosen, shares = draw_shares(len(others), augmentation.blend, rng)
        return dict(zip([row, *(others[k] for k in chosen)], shares, strict=True))

    def _rows(self, rows: Sequence[int]) -> Batch:
        return self.batch.rows(torch.as_tensor(rows, dtype=torch.long))

    def _change(
        self,
        batch: Batch,
        place: int,
        row: int,
        shares: Mapping[int, float],
        augmentation: Augmentation,
        rng: np.random.Generator,
    ) -> None:
        edge = float(self.batch.edge_mev[row])
        host = on_grid(self.pairs[row].host, edge, STORAGE_GRID)
        doped = host.copy()
        for k, share in shares.items():
            own = host if k == row else on_grid(self.pairs[k].host, edge, STORAGE_GRID)
            doped += share * (on_grid(self.pairs[k].doped, edge, STORAGE_GRID) - own)
        curves = np.stack([host, doped.clip(min=0.0)])
        # One projected DOS each, of whatever element: all count alike, so that the curve itself is measured again.
        one = ProjectedPairs(curves, np.ones(2), np.zeros(2, np.intp), np.array([0, 1]), np.array([edge]))
        measured = measure_pairs(one, augmentation.measurement(self.pairs[row], edge), [rng], grid=self.grid)
        batch.host[place] = torch.from_numpy(measured.host[0])
        batch.doped[place] = torch.from_numpy(measured.doped[0])
        batch.edge_mev[place] = float(measured.edge_mev[0])

    def _asked(
        self,
        rows: Sequence[int],
        batch: Batch,
        track: Track,
        keys: tuple[int, ...],
        concentration: Tensor | None = None,
    ) -> Item:
        if concentration is None:
            concentration = self.targets.true_concentration[torch.as_tensor(rows, dtype=torch.long)]
        rngs = [row_rng("candidates", self.pairs[row].key, *keys) for row in rows]
        hosts, present = (batch.composition > 0).numpy(), (concentration > 0).numpy()
        asked, given = questions(hosts, present, track, self.tracks, rngs)
        for place, row in enumerate(rows):
            named = self.pairs[row].candidates
            if given[place] and named:
                asked[place] = candidate_mask(self.pairs[row].formula, named)
        batch = batch._replace(candidates=torch.from_numpy(asked), candidates_given=torch.from_numpy(given))
        return Item(batch, Targets(concentration), torch.as_tensor(rows, dtype=torch.long))


class _Stream(IterableDataset[Any]):
    """Batches of one rank, as `ShardLoader` reads them.

    Args:
        pairs: All rows, of all ranks.
        size: Largest number of rows of a batch, over all ranks.
        place: (rank, ranks).
    """

    def __init__(self, pairs: EncodedPairs, size: int, place: tuple[int, int]) -> None:
        super().__init__()
        self.pairs, (self.rank, self.ranks) = pairs, place
        # Every batch has a row for every rank; sizes differ instead of rows being dropped or repeated.
        self.steps = max(1, min(-(-len(pairs) // size), len(pairs) // self.ranks))
        self.epoch = self.first = 0

    def __len__(self) -> int:
        return self.steps

    @property
    def layout(self) -> dict[str, int]:
        """What fixes which rows are in a batch of an epoch."""
        return {"rows": len(self.pairs), "steps": self.steps, "ranks": self.ranks}

    def enter(self, epoch: int, first: int) -> None:
        """Begin the next iteration at this batch of this epoch."""
        self.epoch, self.first = epoch, first


class _Evaluation(_Stream):
    def __init__(self, pairs: EncodedPairs, size: int, place: tuple[int, int], track: Track) -> None:
        super().__init__(pairs, size, place)
        self.track = track

    def __iter__(self) -> Iterator[Item]:
        for rows in np.array_split(np.arange(len(self.pairs)), self.steps)[self.first :]:
            yield self.pairs.item(rows[self.rank :: self.ranks].tolist(), self.track)


class _Training(_Stream):
    def __init__(
        self,
        pairs: EncodedPairs,
        size: int,
        place: tuple[int, int],
        augmentation: Augmentation,
        replay: tuple[Replay, list[Row]] | None,
        seed: int,
    ) -> None:
        super().__init__(pairs, size, place)
        self.augmentation, self.seed = augmentation, seed
        self.share, self.pool = (replay[0].share, replay[1]) if replay else (0.0, [])
        weight = torch.tensor([pair.weight for pair in pairs.pairs])
        self.weight = weight / weight.mean()
        self.track: Track = "mixed" if pairs.tracks.blind_share > 0 else "candidates"

    def __iter__(self) -> Iterator[Item]:
        keys = (self.seed, self.epoch)
        order = row_rng("order", *keys).permutation(len(self.pairs))
        for step, rows in enumerate(np.array_split(order, self.steps)):
            if step >= self.first:
                yield self._batch(rows, step, keys)

    def _batch(self, rows: NDArray[np.intp], step: int, keys: tuple[int, int]) -> Item:
        own = rows[self.rank :: self.ranks].tolist()
        item = self.pairs.augmented(own, self.augmentation, keys, self.track)
        weight = self.weight[item.rows]
        simulated = round(self.share / (1.0 - self.share) * len(rows)) if self.pool else 0
        # What all ranks draw alike, and of which each takes its share.
        drawn = row_rng(_REPLAY, *keys, step).integers(len(self.pool), size=simulated) if simulated else rows[:0]
        mine = drawn[self.rank :: self.ranks].tolist()
        if mine:
            view = View(self.pairs.grid, AUGMENT, self.track, self.pairs.tracks, seed=self.seed)
            other = view.collate([self.pool[i] for i in mine], mine, self.epoch)
            targets = Targets(torch.cat([item.targets.true_concentration, other.targets.true_concentration]))
            # Rows of the table are counted from 0, simulated ones from -1 downwards.
            item = Item(stack([item.batch, other.batch]), targets, torch.cat([item.rows, -1 - other.rows]))
            weight = torch.cat([weight, torch.ones(len(mine))])
        return item._replace(weight=weight * (self.ranks / (len(rows) + simulated)))


class LabDataModule(LightningDataModule):
    """Lab pairs for fine-tuning with any Lightning Trainer.

    Args:
        source: A table, the folder that holds it, or its pairs, encoded or not.
        batch_size: Most pairs of a batch, over all devices together.
        grid: Grid of the network; encoded pairs have theirs.
        tracks: How candidate sets are drawn where a row names none.
        augmentation: Small changes to the training pairs.
        replay: Simulated rows that are mixed in.
        validation: Share of the samples kept aside to stop by; 0 for none.
        seed: Fixes the split, and with the epoch the order and every random choice.

    Raises:
        LabError: The table cannot be used.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[LabPair] | EncodedPairs,
        batch_size: int = 8,
        grid: Grid = MODEL_GRID,
        tracks: TrackSettings = TrackSettings(),  # noqa: B008
        augmentation: Augmentation = Augmentation(),
        replay: Replay | None = None,
        validation: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", fix="Use 1 or more")
        if not isinstance(source, EncodedPairs):
            table = read_table(source, grid=grid) if isinstance(source, str | os.PathLike) else source
            source = EncodedPairs(table, grid)
        self.batch_size, self.augmentation, self.replay, self.seed = batch_size, augmentation, replay, seed
        everything = range(len(source))
        aside = hold_out([pair.sample for pair in source.pairs], validation, seed) if validation else []
        self.train = source.take([i for i in everything if i not in aside], tracks)
        self.val = source.take(aside, tracks) if aside else None
        self._pool: list[Row] | None = None
        self._loader: ShardLoader | None = None
        self._position: dict[str, Any] | None = None

    @property
    def spec(self) -> ModelSpec:
        """What these data measure: grid, and the kinds of DOS of the table and of replayed rows."""
        kinds = set(self.train.kinds + (self.val.kinds if self.val else ()))
        if self.replay:
            kinds |= {kind for kind, odds in zip(KINDS, AUGMENT.weights, strict=True) if odds > 0}
        return ModelSpec(grid=self.train.grid, kinds=tuple(kind for kind in KINDS if kind in kinds))

    @property
    def val_tracks(self) -> tuple[Track, ...]:
        """Tracks that validation asks, in the order of its loaders."""
        return TRACKS if self.train.tracks.blind_share > 0 else TRACKS[:1]

    def train_dataloader(self) -> ShardLoader:
        """Return shuffled batches; changes and questions are new in every epoch."""
        replay = None
        if self.replay is not None:
            self._pool = self._pool or self.replay.rows(self.seed)
            replay = (self.replay, self._pool)
        place = self._place(self.train)
        stream = _Training(self.train, self.batch_size, place, self.augmentation, replay, self.seed)
        self._loader = _loader(stream)
        if self._position is not None:
            self._loader.load_state_dict(self._position)
        return self._loader

    def val_dataloader(self) -> list[ShardLoader]:
        """Return one loader for each track, or none."""
        if self.val is None:
            return []
        place = self._place(self.val)
        return [_loader(_Evaluation(self.val, 64 * place[1], place, track)) for track in self.val_tracks]

    def state_dict(self) -> dict[str, Any]:
        """Return where training stands: the epoch, and the batches of it that were given out."""
        return {} if self._loader is None else {"train": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` at the next `train_dataloader`."""
        self._position = state_dict.get("train")

    def _place(self, pairs: EncodedPairs) -> tuple[int, int]:
        place = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(pairs) < place[1]:
            raise ConfigError(f"{len(pairs)} lab pairs are too few for {place[1]} devices", fix="Use fewer devices")
        return place


def _loader(stream: _Stream) -> ShardLoader:
    # The length is exact, and a handful of pairs needs no processes to load them.
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return ShardLoader(cast(Any, stream))
