"""Blends of rows of one host: what is mixed, what is kept, and that they change with the epoch alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from defectnet.data import dataset
from defectnet.data.blending import LEAST_CONCENTRATION, MOST_DOPANTS, blend, by_host, hard_negatives, key
from defectnet.data.candidates import TrackSettings
from defectnet.data.dataset import ShardDataset, Stream, View, index_folder
from defectnet.data.module import SpectraDataModule
from defectnet.data.shards import Row, projected_pairs, read_rows
from defectnet.errors import ConfigError
from defectnet.measure.settings import CLEAN
from make_shards import toy_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toy"), train=40, val=5, test=5, shards=2)


@pytest.fixture(scope="module")
def group(folder) -> list[Row]:
    """Five rows that are taken for one host's: its spectrum, different dopants."""
    rows = [row for _, row in read_rows(sorted(folder.glob("shard-*.parquet"))[0], range(20))]
    first = rows[0]
    made = []
    for number, row in enumerate(row for row in rows if len(row.dopants)):
        made.append(
            replace(
                row,
                row_id=f"host/{number}",
                edge_mev=first.edge_mev,
                hosts=first.hosts,
                elements=np.concatenate([first.elements[: first.hosts], row.elements[row.hosts :]]),
                codes=np.concatenate([first.codes[: first.hosts], row.codes[row.hosts :]]),
                areas=np.concatenate([first.areas[: first.hosts], row.areas[row.hosts :]]),
            )
        )
    assert len(made) >= 5
    return made[:5]


def curves(row: Row) -> np.ndarray:
    pairs = projected_pairs([row])
    return pairs.curves(np.ones(len(pairs.elements)))[0]


def blends(group: list[Row], count: int = 200) -> list[Row]:
    return [blend(group[i % 5], group, 1.0, np.random.default_rng(i)) for i in range(count)]


def test_a_blend_is_the_average_of_its_parts(group):
    parts = np.stack([curves(row)[0] for row in group[:1]] + [curves(row)[1] for row in group])  # host, doped, ...
    amounts = np.zeros((6, 62))
    for row, out in zip(group, amounts[1:], strict=True):
        out[row.dopants] = row.concentration
    several = 0
    for row in blends(group):
        host, doped = curves(row)
        np.testing.assert_allclose(host, parts[0], atol=1e-5)
        shares = np.linalg.lstsq(parts.T, doped, rcond=None)[0]
        assert shares.sum() == pytest.approx(1.0, abs=1e-3)
        assert (shares > -1e-3).all()
        expected = shares @ amounts
        np.testing.assert_allclose(expected[row.dopants], row.concentration, atol=1e-3)
        assert expected.sum() == pytest.approx(row.concentration.sum(), abs=2e-3)
        several += (shares > 0.01).sum() > 1
    assert several > 100


def test_blends_stay_in_what_is_simulated(group):
    for row in blends(group):
        assert len(row.dopants) == len(set(row.dopants.tolist())) <= MOST_DOPANTS
        assert (row.concentration >= LEAST_CONCENTRATION).all()
        assert row.areas[row.hosts :].sum() == pytest.approx(1.0, abs=1e-4)
        assert len(row.elements) == len(row.codes) == len(row.areas)


def test_a_blend_that_would_be_too_dilute_or_too_rich_is_given_up(group):
    faint = [replace(row, concentration=np.full(len(row.dopants), LEAST_CONCENTRATION, np.float32)) for row in group]
    assert all(row in faint for row in blends(faint, 20) if len(row.areas) == len(faint[0].areas))
    rich = [
        replace(row, dopants=np.arange(6 * i, 6 * i + 6), concentration=np.full(6, 0.04)) for i, row in enumerate(group)
    ]
    assert {len(row.dopants) for row in blends(rich)} == {6}


def test_no_chance_and_no_partner(group):
    assert blend(group[0], group, 0.0, np.random.default_rng(0)) is group[0]
    alone = [blend(group[0], group[:1], 1.0, np.random.default_rng(i)) for i in range(20)]
    assert all((row.dopants == group[0].dopants).all() for row in alone)
    assert any((row.concentration < 0.9 * group[0].concentration).all() for row in alone)


def test_stiffness_parts_rows_of_a_host(group):
    other = replace(group[1], edge_mev=group[1].edge_mev * 1.1)
    groups = by_host([group[0], other, group[2]])
    assert [len(rows) for rows in groups.values()] == [2, 1]
    assert groups[key(other)] == [other]


def batches(folder, share, epoch, first=0, seed: int | None = 3):
    view = View(measurement=CLEAN, seed=seed, blend=share)
    stream = Stream(batch_size=4, shuffle=True, buffer_rows=16)
    return list(ShardDataset(index_folder(folder, "train"), view, stream).batches(0, epoch, first))


def test_blends_change_with_the_epoch_and_are_the_same_again(folder):
    def amounts(*args, **named):
        return {
            int(r): item.targets.true_concentration[i]
            for item in batches(folder, *args, **named)
            for i, r in enumerate(item.rows)
        }

    plain, first, again, second = amounts(0.0, 0), amounts(1.0, 0), amounts(1.0, 0), amounts(1.0, 1)
    assert all((first[row] == again[row]).all() for row in first)
    assert sum(bool((first[row] != plain[row]).any()) for row in first) > 10
    assert sum(bool((first[row] != second[row]).any()) for row in first) > 10
    resumed = batches(folder, 1.0, 0, first=5)
    for one, other in zip(resumed, batches(folder, 1.0, 0)[5:], strict=True):
        assert (one.batch.doped == other.batch.doped).all()
        assert (one.targets.true_concentration == other.targets.true_concentration).all()


def test_evaluation_is_never_blended(folder):
    plain = SpectraDataModule(str(folder), batch_size=4)
    blended = SpectraDataModule(str(folder), batch_size=4, blend=1.0)
    pairs = zip(plain.val_dataloader()[0], blended.val_dataloader()[0], strict=True)
    assert all((one.targets.true_concentration == other.targets.true_concentration).all() for one, other in pairs)


def test_a_share_above_one_is_refused():
    with pytest.raises(ConfigError, match=r"data.blend is 1.5. Use a number from 0, up to 1"):
        View(blend=1.5)


def test_no_part_without_area(group):
    # An element that no doped cell has left must not come back, empty, with the host: a projected DOS would take it.
    assert all((row.areas[row.hosts :] > 0).all() for row in blends(group))


def questions_of(folder, share, seed: int | None = 3):
    view = View(measurement=CLEAN, seed=seed, tracks=TrackSettings(hard_negative_share=share))
    stream = Stream(batch_size=8, shuffle=True, buffer_rows=40)
    return [
        item
        for epoch in range(3)
        for item in ShardDataset(index_folder(folder, "train"), view, stream).batches(0, epoch)
    ]


def test_dopants_of_a_host_are_known_whatever_its_stiffness(group):
    rows = [replace(group[0], edge_mev=1.0), group[1], replace(group[2], row_id="other/0")]
    known = hard_negatives(by_host(rows))
    assert known["host"] == tuple(sorted({*group[0].dopants.tolist(), *group[1].dopants.tolist()}))
    assert known["other"] == tuple(sorted(group[2].dopants.tolist()))


def test_distractors_are_dopants_of_the_hosts_other_rows_first(folder, monkeypatch):
    few = np.arange(40, 44)  # elements that are said to go with every host
    monkeypatch.setattr(dataset, "hard_negatives", lambda groups: {host: tuple(few.tolist()) for host, _ in groups})
    counts = {1.0: [0, 0], 0.0: [0, 0]}
    for share, count in counts.items():
        for item in questions_of(folder, share):
            free = ~item.targets.present & (item.batch.composition == 0)
            distractors = item.batch.candidates & free
            among = distractors[:, few].sum(1)
            first = torch.minimum(distractors.sum(1), free[:, few].sum(1))  # all of the few, if there are as many
            assert share == 0.0 or (among == first).all()
            count[0] += int(among.sum())
            count[1] += int(distractors.sum())
    assert counts[1.0][1] == counts[0.0][1] > 200  # as many distractors as without
    assert counts[1.0][0] > 3 * counts[0.0][0] > 0


def test_without_hard_negatives_and_in_evaluation_nothing_changes(folder):
    for seed, share in ((3, 0.0), (None, 1.0)):
        for one, other in zip(questions_of(folder, share, seed), questions_of(folder, 0.0, seed), strict=True):
            assert (one.batch.candidates == other.batch.candidates).all()
