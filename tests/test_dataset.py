import shutil
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import errors
from lightning import Callback, Trainer

import leakage
from conftest import NotFoundResponse
from defectnet.data import dataset as dataset_module
from defectnet.data.candidates import LIKENESS, TrackSettings, questions
from defectnet.data.dataset import ShardDataset, Stream, View, index_folder
from defectnet.data.module import LoaderSettings, ShardLoader, SpectraDataModule
from defectnet.data.shards import read_rows, read_shard
from defectnet.data.source import HubData, fetch, parse_source, push_dataset
from defectnet.data.splits import HELD_OUT, split_of
from defectnet.elements import INDEX, composition, multi_hot
from defectnet.errors import ConfigError, ShardError
from defectnet.measure.settings import AUGMENT, CLEAN, LAB
from defectnet.tasks.defect import DefectTask
from make_shards import toy_folder, toy_sample, write_toy_folder

ROWS = 53


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"), train=ROWS, val=5, test=5, shards=4)


def make(folder, *, split="train", view=None, **stream):
    stream = {"batch_size": 4, "shuffle": True, **stream}
    return ShardDataset(index_folder(folder, split), view or View(seed=0), Stream(**stream))


def epoch_of(folder, ranks, workers, epoch=0, **stream):
    """Rows of each rank and worker of an epoch."""
    return [
        [
            [
                item.rows.tolist()
                for item in make(folder, rank=rank, ranks=ranks, workers=workers, **stream).batches(w, epoch)
            ]
            for w in range(workers)
        ]
        for rank in range(ranks)
    ]


def rows_of(nested):
    return [row for rank in nested for worker in rank for batch in worker for row in batch]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (3, 1), (4, 2), (2, 6), (1, 9)])
def test_every_row_comes_exactly_once_over_all_ranks_and_workers(folder, ranks, workers, shuffle):
    nested = epoch_of(folder, ranks, workers, shuffle=shuffle, buffer_rows=8)  # up to 12 workers on 4 shards
    assert sorted(rows_of(nested)) == list(range(ROWS))
    assert max(len(batch) for rank in nested for worker in rank for batch in worker) <= 4


@pytest.mark.parametrize(("ranks", "workers"), [(2, 2), (3, 1), (4, 2), (5, 2)])
def test_every_rank_gets_the_same_number_of_batches(folder, ranks, workers):
    counts = {sum(len(worker) for worker in rank) for rank in epoch_of(folder, ranks, workers)}
    assert counts == {len(make(folder, ranks=ranks, workers=workers))}
    sizes = [len(batch) for rank in epoch_of(folder, ranks, workers) for worker in rank for batch in worker]
    assert max(sizes) - min(sizes) <= 1 or workers > 1


def test_ranks_that_cannot_have_the_same_number_are_one_clear_error(folder):
    with pytest.raises(ConfigError, match="same number of batches"):
        make(folder, batch_size=1, ranks=2)


def test_epochs_differ_and_a_seed_repeats_them(folder):
    first, again, second = (rows_of(epoch_of(folder, 1, 1, epoch)) for epoch in (0, 0, 1))
    other = rows_of(epoch_of(folder, 1, 1, seed=1))
    assert first == again
    assert first != second
    assert first != other


def test_rows_are_what_their_number_says(folder):
    index = index_folder(folder, "train")
    written = [list(read_shard(path)) for path in index.paths]
    data = make(folder, view=View(measurement=CLEAN))
    for item in data.batches(0, 0):
        for i, row in enumerate(item.rows.tolist()):
            sample = written[index.shard[row]][index.row[row]]
            assert sample.split == "train"
            true = {symbol: item.targets.true_concentration[i, INDEX[symbol]].item() for symbol in sample.dopants}
            assert true == pytest.approx(sample.concentrations)
            assert item.targets.present[i].sum() == len(sample.dopants)
            assert np.allclose(item.batch.composition[i], composition(sample.formula))


def test_augmentation_changes_with_the_epoch_and_evaluation_does_not(folder):
    training, fixed = View(measurement=AUGMENT, track="mixed", seed=0), View(measurement=AUGMENT, track="candidates")
    for view, same in ((training, False), (fixed, True)):
        data = make(folder, view=view, shuffle=False)
        first, again, later = (next(data.batches(0, epoch)) for epoch in (0, 0, 1))
        assert torch.equal(first.batch.doped, again.batch.doped)
        assert torch.equal(first.batch.doped, later.batch.doped) == same
        assert torch.equal(first.batch.candidates, later.batch.candidates) == same


def test_a_row_in_evaluation_does_not_depend_on_its_batch(folder):
    view = View(measurement=AUGMENT)
    by_size = []
    for size in (1, 7):
        items = list(make(folder, split="val", view=view, batch_size=size, shuffle=False).batches(0, 0))
        by_size.append(torch.cat([item.batch.doped for item in items]))
    assert torch.equal(*by_size)


@pytest.mark.parametrize("measurement", [CLEAN, LAB, AUGMENT])
def test_a_row_in_training_does_not_depend_on_its_batch_or_on_who_reads_it(folder, measurement):
    view, seen = View(measurement=measurement, track="mixed", seed=3), []
    for stream in ({"batch_size": 1}, {"batch_size": 53, "shuffle": False}, {"ranks": 2, "workers": 2}):
        found = {}
        for rank in range(stream.get("ranks", 1)):
            for worker in range(stream.get("workers", 1)):
                for item in make(folder, view=view, rank=rank, **stream).batches(worker, 1):
                    fields = (*item.batch.tensors().values(), item.targets.true_concentration)
                    found |= {row: [x[i] for x in fields] for i, row in enumerate(item.rows.tolist())}
        seen.append(found)
    for row, fields in seen[0].items():
        for other in seen[1:]:
            assert all(torch.equal(a, b) for a, b in zip(fields, other[row], strict=True))


@pytest.mark.parametrize("stop", [1, 3])
def test_two_ranks_of_two_workers_stopped_in_an_epoch_and_resumed_lose_no_row(folder, stop):
    def loader(rank):
        data = make(folder, ranks=2, workers=2, rank=rank, buffer_rows=8, view=View(seed=0))
        return ShardLoader(data, workers=2)

    rows = []
    for rank in range(2):
        before = loader(rank)
        stream = iter(before)
        head = [next(stream).rows.tolist() for _ in range(stop)]
        state = before.state_dict()
        del stream, before
        after = loader(rank)
        after.load_state_dict(state)
        rows += [row for batch in (*head, *(item.rows.tolist() for item in after)) for row in batch]
    assert sorted(rows) == list(range(ROWS))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_epoch_can_be_entered_at_any_batch(folder, workers):
    data = make(folder, workers=workers, buffer_rows=8)
    for worker in range(workers):
        whole = [item.rows.tolist() for item in data.batches(worker, 3)]
        for first in range(len(whole)):
            assert [item.rows.tolist() for item in data.batches(worker, 3, first)] == whole[first:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_in_the_middle_of_an_epoch_exactly(folder, workers):
    def loader():
        return ShardLoader(make(folder, workers=workers, view=View(measurement=AUGMENT, seed=0)), workers)

    undisturbed = loader()
    whole = [item for _ in range(2) for item in undisturbed]
    broken = loader()
    stream = iter(broken)
    head = [next(stream) for _ in range(5)]
    state = broken.state_dict()
    assert (state["epoch"], state["batches"], state["of"]) == (0, 5, len(broken))
    resumed = loader()
    resumed.load_state_dict(state)
    tail = [item for _ in range(2) for item in resumed]
    assert [i.rows.tolist() for i in head + tail] == [i.rows.tolist() for i in whole]
    assert torch.equal(tail[0].batch.doped, whole[5].batch.doped)
    del stream


def test_a_state_at_the_end_of_an_epoch_goes_on_with_the_next(folder):
    loader = ShardLoader(make(folder))
    whole = [item.rows.tolist() for _ in range(2) for item in loader]
    resumed = ShardLoader(make(folder))
    resumed.load_state_dict({"epoch": 0, "batches": len(resumed)})
    assert [item.rows.tolist() for item in resumed] == whole[len(resumed) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 2}, "data: workers is 2, the run that goes on in the middle of epoch 0 had 1"),
        ({"buffer_rows": 8}, "buffer_rows is 8, .* had 1024"),
        ({"seed": 1}, "seed is 1, .* had 0"),
        ({"batch_size": 5}, "batch_size is 5, .* had 4"),
    ],
)
def test_a_run_does_not_go_on_in_an_epoch_that_is_shared_out_in_another_way(folder, change, message):
    before = ShardLoader(make(folder))
    state, stream = before.state_dict(), iter(before)
    after = ShardLoader(make(folder, **change), change.get("workers", 0))
    after.load_state_dict(state)  # nothing was given out yet
    next(stream)
    with pytest.raises(ConfigError, match=message):
        after.load_state_dict(before.state_dict())
    list(stream)
    after.load_state_dict(before.state_dict())  # at the end of an epoch
    assert sorted(row for item in after for row in item.rows.tolist()) == list(range(ROWS))


class Stop(Callback):
    """Stops, or only writes down what came."""

    def __init__(self, after=None):
        self.after, self.rows = after, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rows.append(batch[2].tolist())
        if len(self.rows) == self.after:
            trainer.save_checkpoint(trainer.default_root_dir + "/stopped.ckpt")
            trainer.should_stop = True


def test_lightning_resumes_a_run_in_the_middle_of_an_epoch(folder, tmp_path):
    net = {"d_model": 8, "heads": 1, "encoder_layers": 1, "decoder_layers": 1, "patch": 64, "mlp_ratio": 1}

    def fit(after=None, ckpt_path=None):
        torch.manual_seed(0)
        seen = Stop(after)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(
            max_epochs=2, accelerator="cpu", callbacks=[seen], default_root_dir=tmp_path, limit_val_batches=0,
            enable_model_summary=False, **quiet,
        )  # fmt: skip
        task = DefectTask("DefectNet", net={**net, "dropout": 0.0})
        trainer.fit(task, SpectraDataModule(str(folder), batch_size=8), ckpt_path=ckpt_path)
        return seen.rows, task.model.state_dict()

    rows, weights = fit()
    head, _ = fit(after=9)  # 7 batches an epoch: the second of epoch 1
    tail, resumed = fit(ckpt_path=tmp_path / "stopped.ckpt")
    assert head[:9] + tail == rows
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_memory_is_bounded_by_one_block(folder, monkeypatch):
    read, alive, most = dataset_module.read_rows, [], 0

    def watched(path, wanted):
        nonlocal most
        for number, row in read(path, wanted):
            alive.append(weakref.ref(row))
            most = max(most, sum(ref() is not None for ref in alive))
            yield number, row

    monkeypatch.setattr(dataset_module, "read_rows", watched)
    data = make(folder, buffer_rows=8)
    for epoch in range(3):
        assert len(list(data.batches(0, epoch))) == len(data)
    assert len(alive) == 3 * ROWS
    assert most <= 8 + 4 + 2  # a block, the batch before it, and the rows in the reader's hands


def test_a_row_in_brief_is_what_the_sample_says_and_holds_no_other_row(folder):
    path = index_folder(folder, "train").paths[-1]
    samples = list(read_shard(path))
    rows = dict(read_rows(path, range(1, 100, 2), batch_rows=5))
    assert list(rows) == list(range(1, len(samples), 2))
    for number, row in rows.items():
        sample = samples[number]
        assert (row.row_id, row.formula, row.edge_mev) == (sample.row_id, sample.formula, sample.edge_mev)
        assert [INDEX[s] for s in (*sample.host_elements, *sample.doped_elements)] == row.elements.tolist()
        assert row.hosts == len(sample.host_elements)
        squares = row.codes.astype(float) ** 2
        dos = squares * (row.areas / squares.sum(axis=1) / 0.005)[:, None]
        assert np.allclose(dos, np.concatenate([sample.host_dos, sample.doped_dos]), rtol=1e-5)
        assert dict(zip(row.dopants.tolist(), row.concentration.tolist(), strict=True)) == pytest.approx(
            {INDEX[symbol]: value for symbol, value in sample.concentrations.items()}
        )
        assert all(x.base is None or x.base.nbytes == x.nbytes for x in (row.codes, row.areas, row.dopants))


def test_the_cache_is_bounded_and_spares_reading(folder, monkeypatch):
    data = make(folder, cache_rows=20)
    plain = [
        rows for epoch in range(2) for rows in rows_of([[[i.rows.tolist() for i in make(folder).batches(0, epoch)]]])
    ]
    cached = [row for epoch in range(2) for item in data.batches(0, epoch) for row in item.rows.tolist()]
    assert cached == plain
    assert len(data._cache) == 20
    everything = make(folder, cache_rows=1000)
    list(everything.batches(0, 0))
    monkeypatch.setattr(dataset_module, "read_rows", lambda *_: pytest.fail("read again"))
    assert len(list(everything.batches(0, 1))) == len(everything)


def test_an_error_in_a_worker_arrives_as_the_same_clear_error(folder):
    with pytest.raises(ConfigError, match="workers"):
        next(iter(ShardLoader(make(folder), workers=2)))


def asked(hosts, dopants, track, settings, *, known=None):
    """What is asked of rows, as `View.collate` asks it."""
    masks = [np.stack([multi_hot(symbols) for symbols in rows]) for rows in (hosts, dopants)]
    rngs = [np.random.default_rng(i) for i in range(len(hosts))]
    return (*questions(*masks, track, settings, rngs, known), *masks)


def test_candidates_hold_the_dopants_and_never_a_host_element():
    samples = [toy_sample(number % 20) for number in range(200)]
    hosts, dopants = [s.host_elements for s in samples], [s.dopants for s in samples]
    named, given, host, true = asked(hosts, dopants, "candidates", TrackSettings())
    assert given.all()
    assert named.any(axis=1).all()
    assert not (named & host).any()
    assert (named | ~true).all()
    assert set(named.sum(axis=1) - true.sum(axis=1)) == set(range(7))
    few = asked(hosts, dopants, "candidates", TrackSettings(max_distractors=2))[0]
    assert set(few.sum(axis=1) - true.sum(axis=1)) == {0, 1, 2}


def test_likely_distractors_resemble_the_host():
    def mean_likeness(share):
        sets = asked([("Ga", "As")] * 200, [()] * 200, "candidates", TrackSettings(likely_share=share))[0]
        likeness = LIKENESS[[INDEX["Ga"], INDEX["As"]]].max(axis=0)
        return np.mean([likeness[mask].mean() for mask in sets])

    assert mean_likeness(1.0) > 2 * mean_likeness(0.0)


def test_hard_negatives_come_first():
    known = np.tile(multi_hot(("In", "P", "Ga")), (200, 1))
    rows = [("Ga", "As")] * 200, [("Al",)] * 200
    named = asked(*rows, "candidates", TrackSettings(hard_negative_share=1.0), known=known)[0]
    few = named.sum(axis=1) - 1
    assert (np.minimum(few, 2) == named[:, [INDEX["In"], INDEX["P"]]].sum(axis=1)).all()
    assert not named[:, INDEX["Ga"]].any()


def test_blind_asks_about_all_but_the_host():
    rows = [("Ga", "As")] * 300, [("Al",)] * 300
    masks, given, host, _ = asked(*rows, "blind", TrackSettings())
    assert not given.any()
    assert np.array_equal(masks, ~host)
    masks, given, host, _ = asked(*rows, "mixed", TrackSettings(blind_share=0.3))
    assert given.mean() == pytest.approx(0.7, abs=0.1)
    assert np.array_equal(masks[~given], ~host[~given])
    assert (masks[given].sum(axis=1) <= 7).all()


def test_training_asks_the_questions_of_its_track(folder):
    for share in (0.0, 0.4, 1.0):
        module = SpectraDataModule(str(folder), batch_size=64, tracks=TrackSettings(blind_share=share))
        batches = [item.batch for item in module.train_dataloader()]
        given, named = (torch.cat([getattr(b, n) for b in batches]) for n in ("candidates_given", "candidates"))
        assert given.float().mean() == pytest.approx(1.0 - share, abs=0.2)
        assert (named.sum(1)[given] <= 9).all()
        assert (named.sum(1)[~given] == 60).all()


def test_splits_depend_on_the_set_of_elements_alone():
    assert {split_of(name) for name in HELD_OUT} == {"test"}
    assert split_of("O-Ti") == split_of("Ti-O")
    found = [split_of(f"{a}-{b}") for a, b in pairwise(sorted(INDEX) * 1)] + [
        split_of(f"{a}-{b}-O") for a in INDEX for b in INDEX if a < b < "O"
    ]
    assert found.count("train") / len(found) == pytest.approx(0.8, abs=0.03)
    assert found.count("val") / len(found) == pytest.approx(0.1, abs=0.03)


def test_the_module_shares_rows_among_few_workers(folder):
    module = SpectraDataModule(str(folder), batch_size=2, loader=LoaderSettings(workers=50))
    loader = module.evaluation("val", "blind", "lab")
    assert loader.num_workers == 5
    assert module.spec.kinds == ("total", "neutron-weighted", "projected")
    with pytest.raises(ShardError, match="does not exist"):
        SpectraDataModule(str(folder / "nowhere")).setup("fit")


# Variants


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Each row as it is, clustered every third time, and once more with another stiffness, in every split."""
    samples = []
    for i, split in enumerate(("train", "val", "test") * 3):
        sample = replace(toy_sample(i, split), placement="random" if i % 3 else "clustered")
        samples += [sample, replace(sample, row_id=f"{sample.row_id}/stiffness-1", variant="stiffness-1")]
    return write_toy_folder(tmp_path_factory.mktemp("varied"), samples)


@pytest.mark.parametrize("variants", [True, False])
def test_variants_are_for_training_alone(varied, variants):
    module = SpectraDataModule(str(varied), batch_size=2, variants=variants)
    assert set(module.index("train").variant) == ({"as-is", "stiffness-1"} if variants else {"as-is"})
    assert sum(len(item.rows) for item in module.train_dataloader()) == (6 if variants else 3)
    for split in ("val", "test"):
        index = module.index(split)
        assert set(index.variant) == {"as-is"}
        assert sum(len(item.rows) for item in module.evaluation(split, "blind")) == len(index) == 3


def test_the_index_knows_the_placement_of_every_row(varied):
    index = index_folder(varied, "test")
    written = [list(read_shard(path)) for path in index.paths]
    assert [written[s][r].placement for s, r in zip(index.shard, index.row, strict=True)] == index.placement.tolist()
    assert len(set(index_folder(varied, "train").placement)) == 1


def test_training_rows_of_further_data_sets(folder, varied, tmp_path):
    more = [toy_sample(100 + i, split) for i, split in enumerate(("train", "val", "test"))]
    extra = [str(varied), str(write_toy_folder(tmp_path / "more", more, shards=1))]
    alone, module = (
        SpectraDataModule(str(folder)),
        SpectraDataModule(str(folder), batch_size=3, extra=dict.fromkeys(extra, 1)),
    )
    parts = [index_folder(path, "train") for path in (folder, *extra)]
    index = module.index("train")
    assert len(index) == sum(len(part) for part in parts)
    rows = [(part.paths[s], r) for part in parts for s, r in zip(part.shard, part.row, strict=True)]
    assert [(index.paths[s], r) for s, r in zip(index.shard, index.row, strict=True)] == rows
    assert index.variant.tolist() == [name for part in parts for name in part.variant]
    given = torch.cat([item.rows for item in module.train_dataloader()])
    assert sorted(given.tolist()) == list(range(len(index)))
    for split in ("val", "test"):
        assert module.index(split).paths == alone.index(split).paths


def test_a_further_data_set_of_weight_two_counts_twice(folder, varied):
    module = SpectraDataModule(str(folder), batch_size=3, extra={str(varied): 2})
    once = len(index_folder(varied, "train"))
    assert len(module.index("train")) == len(index_folder(folder, "train")) + 2 * once
    given = torch.cat([item.rows for item in module.train_dataloader()])
    assert sorted(given.tolist()) == list(range(len(module.index("train"))))


@pytest.mark.parametrize("weight", [0, -1, 1.5, "2"])
def test_further_data_sets_come_a_whole_number_of_times(folder, weight):
    with pytest.raises(ConfigError, match=r"data.extra\['more'\] is .*whole number from 1 on"):
        SpectraDataModule(str(folder), extra={"more": weight})


# Data on the Hub


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("lab/pairs", HubData("lab/pairs")),
        ("hf://datasets/lab/pairs", HubData("lab/pairs")),
        ("hf://datasets/lab/pairs@v1", HubData("lab/pairs", "v1")),
        ("hf://datasets/lab/pairs@refs%2Fpr%2F1/sim/v1", HubData("lab/pairs", "refs/pr/1", "sim/v1")),
        ("hf://datasets/lab/pairs/sim/", HubData("lab/pairs", None, "sim")),
        ("./lab/pairs", Path("lab/pairs")),
        ("here/pairs", Path("here/pairs")),
        ("data/defectnet-sim-v1", Path("data/defectnet-sim-v1")),  # the bundled one, outside a checkout
        (Path("lab/pairs"), Path("lab/pairs")),
        ("pairs", Path("pairs")),
        ("a/b/c", Path("a/b/c")),
        ("~/pairs", Path("~/pairs").expanduser()),
    ],
)
def test_what_a_text_names_is_not_guessed(text, source, tmp_path, monkeypatch):
    (tmp_path / "here" / "pairs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert parse_source(text) == source


@pytest.mark.parametrize("text", ["hf://lab/pairs", "hf://datasets/pairs", "hf://datasets/a/b@", "hf:a/b"])
def test_a_broken_address_is_one_clear_error(text):
    with pytest.raises(ShardError, match="no address of a data set"):
        SpectraDataModule(text)


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize("sub", ["", "sim/v1"])
def test_data_of_the_hub_give_the_same_rows(folder, tmp_path, monkeypatch, sub):
    fetched = tmp_path / COMMIT  # the Hub's client calls a folder by its commit
    shutil.copytree(folder, fetched / sub)
    asked = []

    def download(repo, **settings):
        asked.append({"repo": repo, **settings})
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    name = "hf://datasets/lab/pairs@v2" + (f"/{sub}" if sub else "")
    modules = SpectraDataModule(name, batch_size=4), SpectraDataModule(str(folder), batch_size=4)
    hub, local = ([item.rows.tolist() for item in module.train_dataloader()] for module in modules)
    assert hub == local
    assert len(asked) == 1
    assert (asked[0]["repo"], asked[0]["repo_type"], asked[0]["revision"]) == ("lab/pairs", "dataset", "v2")
    begin = f"{sub}/" if sub else ""
    assert asked[0]["allow_patterns"] == [begin + name for name in ("shard-*.parquet", "_dataset.json", "dataset.json")]


def test_only_prepare_data_uses_the_network_under_a_trainer(folder, tmp_path, monkeypatch):
    asked, fetched = [], shutil.copytree(folder, tmp_path / COMMIT)

    def download(repo, **settings):
        asked.append(settings["local_files_only"])
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    module = SpectraDataModule("lab/pairs")
    module.prepare_data()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.setup("fit")
    module.index("train")
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            errors.RepositoryNotFoundError("404", response=NotFoundResponse()),
            "'lab/pairs'.*does not exist or is not public",
        ),
        (errors.RevisionNotFoundError("404", response=NotFoundResponse()), "at revision 'v9' does not exist"),
        (errors.LocalEntryNotFoundError("offline"), "not in the cache"),
        (ConnectionResetError("reset by peer"), "could not be fetched .reset by peer."),
    ],
)
def test_a_failed_download_is_one_clear_error(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ShardError, match=message) as caught:
        SpectraDataModule("hf://datasets/lab/pairs@v9").prepare_data()
    assert "\n" not in str(caught.value)


def test_data_that_are_not_cached_are_an_error_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ShardError, match="'lab/pairs' is not in the cache"):
        fetch(HubData("lab/pairs"), local_files_only=True)


def test_only_sound_shards_are_uploaded(folder, tmp_path, monkeypatch):
    sent = []  # what the server gets of it: tests/test_hub_client.py
    monkeypatch.setattr("defectnet.hub.remote.publish", lambda remote, files, **_: sent.append((remote.repo, files)))
    push_dataset(folder, "lab/pairs", token="hf_any")
    assert sent == [("lab/pairs", {path.name: path for path in folder.iterdir()})]
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "shard-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ShardError, match=r"shard-00001.parquet is truncated"):
        push_dataset(broken, "lab/pairs", token="hf_any")
    with pytest.raises(ShardError, match="holds no shard"):
        push_dataset(tmp_path, "lab/pairs", token="hf_any")
    with pytest.raises(ShardError, match="'pairs' is no name of a repository"):
        push_dataset(folder, "pairs", token="hf_any")
    assert len(sent) == 1


def test_the_leak_check_finds_a_copied_spectrum(tmp_path):
    samples = [toy_sample(i, "train") for i in range(12)]
    other = toy_sample(50, "test")
    copy = replace(other, row_id="copy/0", host_id="copy", host_dos=samples[4].host_dos)
    folder = write_toy_folder(tmp_path / "data", [*samples, other, copy])
    report = leakage.report(leakage.read_hosts(sorted(folder.glob("*.parquet"))), 1)
    assert set(report["shared_chemical_systems"].values()) == {0}
    assert report["hosts"] == {"train": 12, "val": 0, "test": 2}
    (pair,) = report["nearest_pairs_of_test"]
    assert "copy" in pair["test"]
    assert "toy-4" in pair["train"]
    assert pair["distance"] < 0.01
