"""The data set `defectnet-sim-v2`: what is bundled, and the command that makes the rest."""

from __future__ import annotations

import json
import lzma
from functools import partial

import pandas as pd
import pytest
from ase.build import bulk

import sim_v2
from defectnet.crystal.hosts import host_from_atoms
from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.data.shards import read_shard, shard_files
from defectnet.data.splits import split_of
from documents import ROOT

SMALL = partial(MakeSettings, atoms=16, starts=0, volume_step=0.0)


def entry(name, atoms):
    cell = atoms.cell.cellpar().tolist()
    return {"id": name, "cell": cell, "species": list(atoms.symbols), "frac": atoms.get_scaled_positions().tolist()}


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small one: packs of MgO and of GaAs, which is for tests; both are listed, with LiF and KCl."""
    crystals = {
        "MgO": (bulk("MgO", "rocksalt", 4.21), "Ca@Mg"),
        "GaAs": (bulk("GaAs", "zincblende", 5.65), "Al@Ga"),
        "LiF": (bulk("LiF", "rocksalt", 4.03), "Na@Li"),
        "KCl": (bulk("KCl", "rocksalt", 6.29), "Na@K"),
    }
    jobs = [
        (host_from_atoms(atoms, name), [tuple(dopant.split("@"))], tmp_path / "bundled" / name)
        for name, (atoms, dopant) in list(crystals.items())[:2]
    ]
    assert make_packs(jobs, SMALL(potential="defectnet-nep")) == {}
    with lzma.open(tmp_path / "hosts.json.xz", "wt") as file:
        json.dump([entry(name, atoms) for name, (atoms, _) in crystals.items()], file)
    splits = {name: split_of("-".join(sorted(set(atoms.symbols)))) for name, (atoms, _) in crystals.items()}
    order = [{"id": name, "split": splits[name], "dopants": [dopant]} for name, (_, dopant) in crystals.items()]
    (tmp_path / "pack-order.json").write_text(json.dumps(order))
    monkeypatch.setattr(sim_v2, "DATA", tmp_path)
    monkeypatch.setattr(sim_v2, "bundled_packs", partial(sim_v2.bundled_packs, [tmp_path / "bundled"]))
    monkeypatch.setattr(sim_v2, "MakeSettings", SMALL)
    (tmp_path / "settings.json").write_text('{"seed": 3, "smallest": 12, "largest": 24, "cells": 1, "visit": 2}')
    return tmp_path


def words(repository, *more):
    settings = ("--settings", str(repository / "settings.json"))
    return ["--out", str(repository / "out"), "--hosts", "2", "--rows", "12", *settings, *more]


def test_it_says_how_long_it_takes(repository, capsys):
    sim_v2.main(words(repository, "--dry-run", "--workers", "2"))
    said = capsys.readouterr().out
    assert said.startswith("1 packs are there, 2 crystals more are tried")
    assert "With 2 workers 0:00:53 for packs" in said
    assert not (repository / "out").exists()


def test_packs_are_made_then_pairs_and_no_test_crystal_is_used(repository, capsys):
    sim_v2.main(words(repository))
    out = repository / "out"
    assert capsys.readouterr().out.endswith(f"12 rows in {out / 'pairs'}\n")
    assert sorted(path.name for path in (out / "packs").glob("[!.]*")) == ["KCl", "LiF"]
    rows = [row for path in shard_files(out / "pairs") for row in read_shard(path)]
    assert {row.host_id for row in rows} <= {"MgO", "LiF", "KCl"}
    assert {row.split for row in rows} <= {"train", "val"}
    assert {row.source for row in rows} == {"superposed"}
    assert len(pd.read_parquet(out / "pairs")) == len(rows) == 12
    whole = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    next((out / "pairs").glob("*.parquet")).unlink()
    sim_v2.main(words(repository))
    assert {path: path.read_bytes() for path in whole} == whole


def test_no_bundled_pack_that_is_trained_with_is_of_a_test_crystal():
    packs = sim_v2.bundled_packs()
    assert {"nequix"} == {pack.potential for pack in packs}
    assert {pack.split for pack in packs} == {"train", "val"}
    more = sim_v2.further_hosts(packs, None)
    assert not {one["id"] for one in more} & {pack.id for pack in packs}
    assert {split_of("-".join(sorted(set(one["species"])))) for one in more} == {"train", "val"}


def test_what_is_bundled_is_made_of_full_simulations(tmp_path):
    folder = ROOT / "data" / "defectnet-sim-v2"
    rows = pd.read_parquet(folder)
    assert rows.groupby(["potential", "split"]).size().to_dict() == {
        ("defectnet-nep", "test"): 84,
        ("nequix-oam-1-pft", "test"): 40,
        ("nequix-oam-1-pft", "val"): 31,
    }
    assert set(rows.source) == {"simulated"}
    sim_v2.evaluation(tmp_path)
    for name in ("_dataset.json", "nequix/_dataset.json"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    again = pd.read_parquet(tmp_path)
    pd.testing.assert_frame_equal(again, rows[rows.potential != "defectnet-nep"].reset_index(drop=True))
