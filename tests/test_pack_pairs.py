"""Endless pairs from host packs: rows by number, batches for training, and shards of them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk

from defectnet.cli import main
from defectnet.config import STORAGE_GRID
from defectnet.crystal.hosts import host_from_atoms
from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.crystal.pack import HostPack
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.data import packs as packs_module
from defectnet.data.candidates import TrackSettings
from defectnet.data.dataset import View
from defectnet.data.endless import PackDataset, PackLoader, PackPart
from defectnet.data.module import LoaderSettings, SpectraDataModule
from defectnet.data.packs import MOST_ATTEMPTS, PackPairs, PairSettings, find_packs
from defectnet.data.shards import (
    MANIFEST,
    in_brief,
    quantise,
    read_extra,
    read_rows,
    read_shard,
    write_shard,
)
from defectnet.data.splits import split_of
from defectnet.elements import INDEX, NUMBERS
from defectnet.errors import ConfigError, SimulationError
from defectnet.measure.settings import AUGMENT
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import projected_dos, q_mesh
from defectnet.simulate.executors import LocalExecutor
from defectnet.simulate.from_packs import simulate_packs
from defectnet.simulate.regenerate import verify
from make_shards import toy_folder

SETTINGS = PairSettings(seed=5, smallest=12, largest=36, cells=2, visit=4, clustered=0.3, controls=0.1)
ROWS = 24


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Packs of two hosts: MgO is for training, GaAs is held out."""
    out = tmp_path_factory.mktemp("packs")
    crystals = {
        "MgO": (bulk("MgO", "rocksalt", 4.21), [("Ca", "Mg"), ("Zn", "Mg"), ("S", "O"), ("Al", "Mg")]),
        "GaAs": (bulk("GaAs", "zincblende", 5.65), [("Al", "Ga"), ("In", "Ga"), ("P", "As"), ("Cu", "As")]),
    }
    jobs = [(host_from_atoms(atoms, name), pairs, out / name) for name, (atoms, pairs) in crystals.items()]
    settings = MakeSettings(potential="defectnet-nep", atoms=16, starts=0, volume_step=0.0)
    assert make_packs(jobs, settings) == {}
    return out


@pytest.fixture(scope="session")
def pairs(folder):
    return PackPairs(find_packs(folder), SETTINGS)


@pytest.fixture(scope="session")
def drawn(pairs):
    return [pairs.draw(number) for number in range(ROWS)]


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)


# -- rows ----------------------------------------------------------------------------------------------------------


def test_a_row_is_a_function_of_its_number(folder, drawn):
    """Whatever was drawn before, in another process or with another memory for packs."""
    fresh = PackPairs(find_packs(folder), SETTINGS, held=1)
    for number in (17, 3, 16):
        assert same(fresh.row(number), drawn[number].sample)
    other = PackPairs(find_packs(folder), replace(SETTINGS, seed=6))
    assert not same(other.row(3), drawn[3].sample)


def test_rows_say_what_is_in_them(pairs, drawn):
    dopants = {pack.id: set(HostPack.load(pack.folder).dopants) for pack in pairs.packs}
    names = {int(z): symbol for symbol, z in zip(INDEX, NUMBERS, strict=True)}
    for sample in (one.sample for one in drawn):
        host = np.repeat(sample.host_numbers, sample.atoms // len(sample.host_numbers))
        put = {f"{x}@{names[int(host[s])]}" for s, x in zip(sample.sites, sample.site_dopants, strict=True)}
        assert put <= dopants[sample.host_id]
        assert len(put) == len(sample.dopants)  # each dopant on one element
        assert len(set(sample.sites)) == len(sample.sites) == sum(sample.dopant_counts)
        assert sum(sample.concentrations.values()) <= 0.25 + 1e-9
        assert SETTINGS.smallest <= sample.atoms <= SETTINGS.largest
        assert sample.split == split_of(sample.chemical_system) == {"MgO": "train", "GaAs": "test"}[sample.host_id]
        for elements, dos in ((sample.host_elements, sample.host_dos), (sample.doped_elements, sample.doped_dos)):
            assert dos.shape == (len(elements), STORAGE_GRID.bins)
            assert dos.sum() * STORAGE_GRID.width == pytest.approx(1.0, abs=1e-5)
        assert (sample.source, sample.seed, sample.potential) == ("superposed", 5, "defectnet-nep")
    assert {one.sample.host_id for one in drawn} == {"MgO", "GaAs"}
    assert {len(one.sample.dopants) for one in drawn} >= {0, 1, 2}
    assert {one.sample.placement for one in drawn} == {"random", "clustered"}
    assert len({one.sample.atoms for one in drawn}) > 1
    hosts = [one.sample.host_id for one in drawn]
    assert all(len(set(hosts[i : i + 4])) == 1 for i in range(0, ROWS, 4))


def test_strata_are_clean(pairs):
    for pack in pairs.packs:
        host = packs_module._Host(pack, SETTINGS)
        names = [f"{dopant}@{replaced}" for dopant, replaced in host.pairs]
        likely = {name for name, one in zip(names, host.plausible, strict=True) if one}
        assert likely < set(names) == set(host.pack.dopants)
        for wanted, share in (("plausible", 1.0), ("arbitrary", 0.0)):
            host.settings = replace(SETTINGS, plausible=share)
            cell = packs_module._Cell(host, 0)
            for number in range(30):
                chosen, stratum = cell._pairs(np.random.default_rng(number))
                assert stratum == wanted
                assert ({f"{x}@{y}" for x, y in chosen} <= likely) == (wanted == "plausible")


def test_the_spectrum_is_that_of_the_superposition(pairs, drawn):
    """Against double precision, and the host against its supercell: what is stored is the same within a level."""
    sample = next(one.sample for one in drawn if len(one.sample.dopants) > 1)
    pack = HostPack.load(next(pack.folder for pack in pairs.packs if pack.id == sample.host_id))
    matrix, mesh = np.reshape(sample.supercell, (3, 3)), q_mesh(sample.atoms)
    full = Superposition(pack.host, pack.substitutions, matrix, mesh)
    occupation = Occupation(sample.sites, sample.site_dopants)
    pristine = full.host_modes()
    assert sample.edge_mev == pytest.approx(pristine.energy_mev.max(), abs=1e-9)
    crystal = full.cell.crystal
    single = packs_module._Cell(packs_module._Host(pairs._by_id[sample.host_id], SETTINGS), 0)
    single.superposition, single.mesh, single.crystal = full, mesh, crystal
    exact, fast = full.modes(occupation), single.phonons(occupation, np.random.default_rng(0))
    assert np.abs(np.sort(exact.energy_mev) - np.sort(fast.energy_mev)).max() < 1e-3
    for numbers, found, stored in (
        (crystal.numbers, pristine, sample.host_dos),
        (full.numbers(occupation), exact, sample.doped_dos),
    ):
        dos, _ = projected_dos(found, Crystal(numbers, crystal.cell, crystal.positions), sample.edge_mev, STORAGE_GRID)
        areas = np.unique(numbers, return_counts=True)[1] / len(numbers)
        levels = [quantise(one, areas).astype(int) for one in (dos, stored)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
        assert (levels[0] != levels[1]).mean() < 0.01


def test_a_row_in_brief_is_as_a_loader_reads_it(drawn, tmp_path):
    samples = [one.sample for one in drawn]
    write_shard(tmp_path / "shard.parquet", samples, {"rows": ROWS})
    for (_, read), made in zip(read_rows(tmp_path / "shard.parquet", range(ROWS)), in_brief(samples), strict=True):
        assert all(
            np.array_equal(getattr(read, name), getattr(made, name)) for name in made.__slots__ if name[0] != "_"
        )


def test_unstable_cells_are_drawn_again_and_counted(folder):
    packs, crowded = find_packs(folder / "MgO"), replace(SETTINGS, lowest=0.2, number_weights=(1.0,))
    loose, strict = (PackPairs(packs, replace(crowded, imaginary_limit=limit)) for limit in (1.0, 0.0))
    unstable = 0
    for number in range(ROWS):
        taken, one = loose.row(number), strict.draw(number)
        assert one.sample.imaginary_fraction == 0.0
        if taken.imaginary_fraction == 0.0:
            assert same(one.sample, taken)
            assert one.rejects == ()
        else:
            unstable += 1
            first = {"id": f"{taken.row_id}/0", "reason": "imaginary modes in the doped cell"}
            assert one.rejects[0] == first
    assert 0 < unstable < ROWS


def test_packs_that_are_always_rejected_are_one_clear_error(pairs, monkeypatch):
    def unstable(self, occupation, rng):
        raise packs_module.Rejected("imaginary modes in the doped cell")

    monkeypatch.setattr(packs_module._Cell, "phonons", unstable)
    with pytest.raises(SimulationError, match=rf"{MOST_ATTEMPTS} draws were rejected \({MOST_ATTEMPTS} for imaginary"):
        PackPairs(pairs.packs, SETTINGS).row(0)


def test_a_rejected_draw_goes_on_with_the_next_and_another_host_in_the_end(pairs, monkeypatch):
    plain, tried = packs_module._Cell.phonons, []

    def fails(self, occupation, rng):
        tried.append(self.host.file.id)
        if len(set(tried)) == 1:
            raise packs_module.Rejected("imaginary modes in the doped cell")
        return plain(self, occupation, rng)

    monkeypatch.setattr(packs_module._Cell, "phonons", fails)
    one = PackPairs(pairs.packs, SETTINGS).draw(0)
    assert len(one.rejects) == len(tried) - 1 >= packs_module.HOST_ATTEMPTS
    assert one.sample.row_id == f"{tried[-1]}/00000000"
    assert len({reject["id"] for reject in one.rejects}) == len(one.rejects)


def test_what_are_no_packs_or_settings(folder, tmp_path):
    with pytest.raises(SimulationError, match="no such folder"):
        find_packs(tmp_path / "nothing")
    with pytest.raises(SimulationError, match="holds no host packs"):
        find_packs(tmp_path)
    with pytest.raises(SimulationError, match="both packs of MgO"):
        find_packs([folder, folder / "MgO"])
    with pytest.raises(SimulationError, match="none of 1 host packs is of the split 'val'"):
        PackPairs(find_packs(folder / "MgO")).of_split("val")
    for wrong in ({"smallest": 4}, {"plausible": 2.0}, {"highest": 0.5}, {"visit": 0}, {"number_weights": ()}):
        with pytest.raises(SimulationError, match=f"{next(iter(wrong))}|atoms"):
            PairSettings(**wrong)


# -- training --------------------------------------------------------------------------------------------------------


def dataset(pairs, rank=0, ranks=1, **view):
    part = PackPart(pairs.of_split("train"), 4)
    return PackDataset([part], View(measurement=AUGMENT, track="mixed", seed=0, **view), rank=rank, ranks=ranks)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_every_row_comes_once_over_all_ranks_and_workers(pairs, monkeypatch, ranks, workers):
    monkeypatch.setattr(PackDataset, "batch", lambda self, turn: (turn * self.ranks + self.rank, *self.after(turn)))
    seen = []
    for rank in range(ranks):
        for worker in range(workers):
            stream = dataset(pairs, rank, ranks).batches(worker, workers)
            seen += [next(stream)[0] for _ in range(12 // (ranks * workers))]
    assert sorted(seen) == list(range(12))


def test_two_workers_stopped_and_resumed_with_other_numbers_of_them(pairs):
    """Two ranks with two workers each, then one rank without: rows 0, 1, 2, ... and no other."""
    rows, state = [], []
    for rank in range(2):
        loader = PackLoader(dataset(pairs, rank, 2), workers=2)
        stream = iter(loader)
        rows += [next(stream).rows.tolist() for _ in range(2)]
        state.append(loader.state_dict())
        del stream
    assert sorted(row for batch in rows for row in batch) == list(range(16))
    assert state == [{"rows": [16]}] * 2
    resumed = PackLoader(dataset(pairs))
    resumed.load_state_dict(state[0])
    assert [next(iter(resumed)).rows.tolist() for _ in range(2)] == [[16, 17, 18, 19], [20, 21, 22, 23]]
    assert resumed.state_dict() == {"rows": [24]}


def test_a_batch_does_not_depend_on_who_makes_it(pairs):
    here = dataset(pairs).batch(1)
    there = next(iter(PackLoader(dataset(pairs, rank=1, ranks=2), workers=1)))
    assert here.rows.tolist() == there.rows.tolist() == [4, 5, 6, 7]
    assert torch.allclose(here.batch.doped, there.batch.doped, atol=1e-5)
    assert torch.equal(here.targets.true_concentration, there.targets.true_concentration)


def test_hard_negatives_are_other_dopants_of_the_pack(pairs):
    tracks = TrackSettings(blind_share=0.0, hard_negative_share=1.0, max_distractors=2)
    item = dataset(pairs, tracks=tracks).batch(0)
    mgo = [INDEX[symbol] for symbol in ("Al", "S", "Ca", "Zn")]
    assert not (item.batch.candidates & (item.batch.composition > 0)).any()
    inside = torch.zeros(item.batch.candidates.shape[1], dtype=torch.bool)
    inside[mgo] = True
    few = item.targets.present.sum(1) <= 2
    assert few.any()
    assert not (item.batch.candidates[few] & ~inside).any()


def test_errors_in_a_worker_arrive_as_they_are(pairs, folder, tmp_path):
    gone = shutil.copytree(folder, tmp_path / "packs")
    loader = PackLoader(PackDataset([PackPart(PackPairs(find_packs(gone), SETTINGS), 2)], View(seed=0)), workers=1)
    shutil.rmtree(gone)
    with pytest.raises(SimulationError, match="no such folder"):
        next(iter(loader))


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("toys"), train=20, val=3, test=3, shards=2)


def module(toys, folder, share=0.5, workers=0, projected=False, **more):
    data = SpectraDataModule(
        str(toys), batch_size=8, packs={str(folder): share}, pack_settings=SETTINGS,
        loader=LoaderSettings(pack_workers=workers), seed=0, **more,
    )  # fmt: skip
    data.projected = projected
    return data


def test_the_data_module_mixes_shards_and_packs_and_resumes(toys, folder):
    whole = [(i.rows.tolist(), i.batch.doped) for i in module(toys, folder, projected=True).train_dataloader()]
    assert [rows[4:] for rows, _ in whole] == [list(range(4 * i, 4 * i + 4)) for i in range(5)]
    assert sorted(row for rows, _ in whole for row in rows[:4]) == list(range(20))
    first = module(toys, folder, workers=2)
    stream = iter(first.train_dataloader())
    for _ in range(3):
        next(stream)
    state = first.state_dict()
    del stream
    second = module(toys, folder)
    second.load_state_dict(state)
    loader = second.train_dataloader()
    rest = [(item.rows.tolist(), item.batch.doped) for item in loader]
    assert [rows for rows, _ in rest] == [rows for rows, _ in whole[3:]]
    assert torch.allclose(rest[0][1], whole[3][1], atol=1e-5)
    assert next(item.rows.tolist()[4:] for item in loader) == [20, 21, 22, 23]  # the next epoch
    other = SpectraDataModule(str(toys), batch_size=8)
    other.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"data\.packs is empty, the run that goes on had packs"):
        other.train_dataloader()


def test_packs_alone_have_epochs_of_their_own(toys, folder):
    data = module(toys, folder, share=1.0, epoch_rows=24)
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(loader) == 3
    stream = iter(loader)
    assert next(stream).rows.tolist() == list(range(8))
    state = data.state_dict()
    again = module(toys, folder, share=1.0, epoch_rows=24)
    again.load_state_dict(state)
    loader = again.train_dataloader()
    epochs = [[item.rows.tolist()[0] for item in loader] for _ in range(2)]
    assert epochs == [[8, 16], [24, 32, 40]]
    assert len(data.val_dataloader()) == 2


@pytest.mark.parametrize(
    ("share", "message"), [(0.0, "Use a share"), (1.5, "Use a share"), (0.01, "would hold 0 rows"), (0.99, "no row")]
)
def test_shares_that_cannot_be(toys, folder, share, message):
    with pytest.raises(ConfigError, match=message):
        module(toys, folder, share=share).train_dataloader()


# -- shards ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """A data set made in this process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    return out, simulate_packs(folder, out, ROWS, SETTINGS, rows_per_shard=10, executor=_Here())


class _Here:
    """Does the work in this process."""

    def run(self, work, tasks, *, deaths=0):
        for task in tasks:
            yield task, work(task)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_hold_the_rows(undisturbed, drawn, pairs):
    out, totals = undisturbed
    assert sorted(contents(out)) == [MANIFEST, *(f"shard-0000{i}.parquet" for i in range(3))]
    rows = [row for path in sorted(out.glob("shard-*")) for row in read_shard(path)]
    assert [row.row_id for row in rows] == [one.sample.row_id for one in drawn]
    assert [row.stratum for row in rows] == [one.sample.stratum for one in drawn]
    assert totals["rows"] == ROWS
    assert sum(totals.values()) - ROWS == sum(len(one.rejects) for one in drawn)
    manifest = json.loads((out / MANIFEST).read_text())
    assert manifest["packs"] == [pack.identity() for pack in pairs.packs]
    assert (manifest["rows"], manifest["settings"]["seed"]) == (ROWS, 5)


def test_workers_kills_and_damage_change_no_byte(undisturbed, folder, tmp_path, capfd):
    out = tmp_path / "out"
    simulate_packs(folder, out, ROWS, SETTINGS, rows_per_shard=10, executor=LocalExecutor(2), only=range(1, 3))
    (out / ".shard-00000.parquet.123.tmp").write_bytes(b"left over by a kill")
    (out / "shard-00002.parquet").write_bytes((out / "shard-00002.parquet").read_bytes()[:-100])
    assert simulate_packs(folder, out, ROWS, SETTINGS, rows_per_shard=10, executor=_Here()) == undisturbed[1]
    assert contents(out) == contents(undisturbed[0])
    assert "Rebuilding: shard" in capfd.readouterr().err
    with pytest.raises(SimulationError, match="seed is 5 there and 6 here"):
        simulate_packs(folder, out, ROWS, replace(SETTINGS, seed=6), rows_per_shard=10)


def test_rows_come_out_again(undisturbed, folder, tmp_path):
    found = verify(undisturbed[0], "", packs=folder, rows=4)
    assert len(found) == 4
    assert all(not one.differs for one in found.values())
    with pytest.raises(SimulationError, match="Give them with --packs"):
        verify(undisturbed[0], "defectnet-nep")
    with pytest.raises(SimulationError, match="holds no pack of GaAs"):
        verify(undisturbed[0], "", packs=folder / "MgO")


def test_a_changed_row_is_found(undisturbed, folder, tmp_path):
    out = shutil.copytree(undisturbed[0], tmp_path / "out")
    path = out / "shard-00000.parquet"
    rows, notes = list(read_shard(path)), read_extra(path)
    write_shard(path, [replace(row, doped_dos=row.doped_dos[:, ::-1].copy()) for row in rows], notes)
    found = verify(out, "", packs=folder, rows=ROWS)
    changed = {row.row_id for row in rows}
    assert {row_id for row_id, one in found.items() if one.differs} == changed


def test_the_command_line(undisturbed, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(LocalExecutor, "run", _Here.run)  # its processes: the test of workers above
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(SETTINGS.to_dict()))
    out = tmp_path / "out"
    words = ["simulate", "--from", str(folder), "--rows", "6", "--settings", str(path), "--out", str(out)]
    main(words)
    assert capsys.readouterr().out.startswith(f"6 rows in {out}")
    first = next(iter(read_shard(undisturbed[0] / "shard-00000.parquet")))
    main(["data", "show", first.row_id, "--data", str(out), "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert (shown["source"], shown["stratum"]) == ("superposed", first.stratum)
    main(["data", "stats", str(undisturbed[0]), "--json"])
    stats = json.loads(capsys.readouterr().out)
    assert stats["shards"] == {"found": 3, "expected": 3, "finished": True}
    assert (stats["rows"], stats["hosts"], stats["yield"]["all"]["hosts_tried"]) == (ROWS, 2, 2)
    for words, message in (
        (["--from", str(folder), "--hosts", "x"], "--from and --hosts are both given"),
        (["--from", str(folder), "--device", "cuda"], "--from and --device are both given"),
        (["--from", str(folder), "--spectra-per-host", "3"], "--from and --spectra-per-host are both given"),
        ([], "--hosts is missing"),
        (["--from", str(folder), "--rows", "0"], "rows is 0"),
    ):
        with pytest.raises(SystemExit):
            main(["simulate", "--out", str(tmp_path / "other"), *words])
        assert message in capsys.readouterr().err


def test_the_host_alone_gives_its_modes(pairs):
    """Folded wave vectors of the small cell are those of the supercell."""
    cell = packs_module._Cell(packs_module._Host(pairs.packs[0], SETTINGS), 1)
    whole = cell.superposition.host_modes()
    crystal = cell.superposition.cell.crystal
    assert cell.pristine.edge_mev == pytest.approx(whole.energy_mev.max(), abs=1e-9)
    assert np.allclose(cell.pristine.dos, projected_dos(whole, crystal, cell.pristine.edge_mev, STORAGE_GRID)[0])
