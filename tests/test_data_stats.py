"""`defectnet data`: every number against a count by hand."""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest

import data_figures
from defectnet import cli
from defectnet.data.shards import SCHEMA, write_shard
from defectnet.data.stats import (
    CLASSES,
    chemical_class,
    default_folder,
    describe,
    find_row,
    nearest,
    read_contents,
    statistics,
    summary,
    to_markdown,
)
from defectnet.elements import VOCABULARY
from defectnet.errors import ShardError
from defectnet.plotting import plot_row
from make_shards import toy_folder, toy_sample

ROOT = Path(__file__).resolve().parents[1]
PNICTIDE, CARBIDE = "other pnictide", "boride, carbide, silicide or germanide"


def samples():
    """AsRb with B and Hg; CZr with clustered Cl, and a control; MgV with Cd, B and Os; HgSb with Br, 128 atoms."""
    one, two, three = toy_sample(1, "train", 2), toy_sample(2, "train", 1), toy_sample(3, "val", 3)
    two = replace(two, placement="clustered")
    control = replace(toy_sample(2, "train", 0), row_id="toy-2/1")
    four = toy_sample(4, "test", 1)
    counts = {name: tuple(2 * n for n in getattr(four, name)) for name in ("doped_counts", "dopant_counts")}
    four = replace(four, atoms=128, qpoints=2, **counts)
    first = [one, stiff(one, 1), stiff(one, 2), two, stiff(two, 1), control]
    return first, [three, four]


def stiff(sample, k):
    return replace(sample, row_id=f"{sample.row_id}/stiffness-{k}", variant=f"stiffness-{k}")


REJECTS = (
    [
        {"id": "toy-2/2", "reason": "doped cell not relaxed"},
        {"id": "dead-1", "reason": "host volume changed"},
    ],
    [
        {"id": "dead-2/0", "reason": "imaginary modes in the host"},
        {"id": "dead-2/1", "reason": "imaginary modes in the host"},
        {"id": "toy-4/1", "reason": "doped cell not relaxed"},
    ],
)
HOSTS = {
    "toy-1": ["As", "Rb"],
    "toy-2": ["C", "Zr"],
    "dead-1": ["Na", "Cl"],
    "toy-3": ["Mg", "V"],
    "toy-4": ["Hg", "Sb"],
    "dead-2": ["Mg", "O"],
    "later": ["Si", "Si"],
}


def write(folder, manifest=True, hosts=True):
    made = folder / "made-up"
    made.mkdir(parents=True)
    ids = list(HOSTS)
    for k, rows in enumerate(samples()):
        extra = {"hosts": ids[3 * k : 3 * k + 3], "rejects": REJECTS[k], "rows": len(rows), "settings": {}}
        write_shard(made / f"shard-{k:05d}.parquet", rows, extra)
    if manifest:
        identity = {"schema_version": 1, "hosts": 7, "settings": {"spectra_per_host": 3, "hosts_per_shard": 3}}
        (made / "dataset.json").write_text(json.dumps(identity))
    if hosts:
        with lzma.open(folder / "hosts.json.xz", "wt") as file:
            json.dump([{"id": name, "species": species} for name, species in HOSTS.items()], file)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("stats"))


@pytest.fixture(scope="module")
def stats(folder):
    return statistics(read_contents(folder))


def part(tried, hosts, rows):
    return {
        "hosts_tried": tried,
        "hosts": hosts,
        "cells_wished": 3 * tried,
        "rows": rows,
        "share": round(rows / (3 * tried), 4),
    }


def test_every_number_is_as_counted_by_hand(folder, stats):
    edges = sorted(sample.edge_mev for rows in samples() for sample in rows if sample.variant == "as-is")
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    assert stats == {
        "name": "made-up",
        "schema_version": 1,
        "shards": {"found": 2, "expected": 3, "finished": False},
        "rows": 5,
        "hosts": 4,
        "chemical_systems": 4,
        "variants": {"stiffness-1": 2, "stiffness-2": 1},
        "all_rows": 8,
        "splits": {
            "train": {"rows": 3, "hosts": 2, "chemical_systems": 2, "variants": 3},
            "val": {"rows": 1, "hosts": 1, "chemical_systems": 1, "variants": 0},
            "test": {"rows": 1, "hosts": 1, "chemical_systems": 1, "variants": 0},
        },
        "elements": {
            "host": dict.fromkeys(["C", "Mg", "V", "As", "Rb", "Zr", "Sb", "Hg"], 1),
            "dopant": {"B": 2, "Cl": 1, "Br": 1, "Cd": 1, "Os": 1, "Hg": 1},
        },
        "dopants": {"0": 1, "1": 2, "2": 1, "3": 1},
        "concentration_deciles": {
            # 2, 3, 4, 5, 5, 5, 5 and 4, 5, 10, 10 atoms of 64, interpolated
            "single": [round(v / 64, 6) for v in (2, 2.6, 3.2, 3.8, 4.4, 5, 5, 5, 5, 5, 5)],
            "total": [round(v / 64, 6) for v in (4, 4.3, 4.6, 4.9, 6, 7.5, 9, 10, 10, 10, 10)],
        },
        "placements": {"clustered": 1, "random": 4},
        "potentials": [{"name": "toy", "sha256": "0" * 64, "rows": 5}],
        "atoms": {"least": 64, "median": 64.0, "greatest": 128},
        "edge_mev": {"least": round(edges[0], 3), "median": round(edges[2], 3), "greatest": round(edges[4], 3)},
        "qpoints": {
            "1": {"rows": 4, "fewest_atoms": 64, "most_atoms": 64},
            "2": {"rows": 1, "fewest_atoms": 128, "most_atoms": 128},
        },
        "rejects": {
            "hosts": {"host volume changed": 1},
            "cells": {"doped cell not relaxed": 2, "imaginary modes in the host": 2},
        },
        "yield": {
            "host_list": "hosts.json.xz",
            "all": part(6, 4, 5),
            "by_class": {
                "halide": part(1, 0, 0),
                "oxide": part(1, 0, 0),
                PNICTIDE: part(2, 2, 2),
                CARBIDE: part(1, 1, 2),
                "intermetallic": part(1, 1, 1),
            },
            "by_element": {
                "C": part(1, 1, 2),
                "O": part(1, 0, 0),
                "Na": part(1, 0, 0),
                "Mg": part(2, 1, 1),
                "Cl": part(1, 0, 0),
                "V": part(1, 1, 1),
                "As": part(1, 1, 1),
                "Rb": part(1, 1, 1),
                "Zr": part(1, 1, 2),
                "Sb": part(1, 1, 1),
                "Hg": part(1, 1, 1),
            },
        },
        "bytes": {"shards": size, "per_row": round(size / 8, 1), "hessians": 0},
    }


def test_keys_come_in_the_order_of_the_vocabulary(stats):
    assert list(stats["elements"]["host"]) == [s for s in VOCABULARY if s in stats["elements"]["host"]]
    assert list(stats["yield"]["by_class"])[:2] == ["halide", "oxide"]


def test_without_the_list_of_hosts_the_yield_is_that_of_all(tmp_path):
    folder = write(tmp_path, hosts=False)
    found = statistics(read_contents(folder))["yield"]
    assert found == {"host_list": None, "all": part(6, 4, 5), "by_class": None, "by_element": None}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"id": name, "species": species} for name, species in HOSTS.items()]))
    assert statistics(read_contents(folder), path)["yield"]["by_class"]["oxide"] == part(1, 0, 0)
    path.write_text(json.dumps([{"id": name, "species": species} for name, species in list(HOSTS.items())[1:]]))
    with pytest.raises(ShardError, match="is not the list of hosts"):
        statistics(read_contents(folder), path)
    for text in ("[", "[1]", '[{"id": "a"}]'):
        path.write_text(text)
        with pytest.raises(ShardError, match="is no list of hosts"):
            statistics(read_contents(folder), path)


def test_a_list_of_other_hosts_is_not_taken_for_this_one(tmp_path):
    folder = write(tmp_path)
    others = [{"id": f"mp-{k}", "species": ["Si"]} for k in range(7)]
    (tmp_path / "hosts.json").write_text(json.dumps(others))
    (tmp_path / "hosts-broken.json").write_text("[")
    assert statistics(read_contents(folder))["yield"]["host_list"] == "hosts.json.xz"
    (tmp_path / "hosts.json.xz").unlink()
    assert statistics(read_contents(folder))["yield"]["host_list"] is None


def test_shards_without_manifest_and_notes(tmp_path):
    stats = statistics(read_contents(toy_folder(tmp_path / "toy", train=6, val=2, test=2, shards=2)))
    assert stats["shards"] == {"found": 2, "expected": None, "finished": None}
    assert stats["schema_version"] is None
    assert {split: numbers["rows"] for split, numbers in stats["splits"].items()} == {"train": 6, "val": 2, "test": 2}
    assert stats["yield"]["all"] == {"hosts_tried": 10, "hosts": 10, "cells_wished": None, "rows": 10, "share": None}
    assert stats["rejects"] == {"hosts": {}, "cells": {}}
    assert "not recorded" in summary(stats)


def test_manifest_of_an_old_data_set_has_the_size_of_shards_beside_the_settings(tmp_path):
    folder = write(tmp_path, manifest=False)
    (folder / "dataset.json").write_text('{"hosts": 6, "hosts_per_shard": 3, "settings": {"spectra_per_host": 3}}')
    stats = statistics(read_contents(folder))
    assert stats["shards"] == {"found": 2, "expected": 2, "finished": True}
    assert "Unfinished" not in summary(stats)


def test_a_shard_without_rows_and_controls_alone(tmp_path):
    write_shard(tmp_path / "shard-00000.parquet", [], {"hosts": ["a"], "rejects": [{"id": "a", "reason": "x"}]})
    stats = statistics(read_contents(tmp_path))
    assert (stats["rows"], stats["atoms"], stats["concentration_deciles"]["total"]) == (0, None, None)
    assert to_markdown(stats)
    write_shard(tmp_path / "shard-00001.parquet", [toy_sample(2, "train", 0)], {})
    stats = statistics(read_contents(tmp_path))
    assert stats["dopants"] == {"0": 1}
    assert stats["concentration_deciles"] == {"single": None, "total": None}


@pytest.mark.parametrize(
    ("elements", "name"),
    [
        (["Si"], "element"),
        (["Fe", "Ni"], "intermetallic"),
        (["Fe", "Cl", "O"], "oxide"),
        (["La", "O", "F"], "halide"),
        (["Au", "Te"], "selenide or telluride"),
        (["Ga", "As"], PNICTIDE),
        (["Si", "C"], CARBIDE),
        (["Mg", "B"], CARBIDE),
        (["Si", "N"], "nitride"),
    ],
)
def test_chemical_class(elements, name):
    assert chemical_class(elements) == name
    assert sum(len(symbols) for symbols in CLASSES.values()) == len({s for some in CLASSES.values() for s in some})


# -- the command line ----------------------------------------------------------------------------------------------


def call(*words):
    cli.main(["data", *map(str, words)])


def test_stats_as_json_and_nothing_else(folder, stats, capsys):
    call("stats", folder, "--json")
    assert json.loads(capsys.readouterr().out) == stats


def test_stats_on_a_screen(folder, capsys):
    call("stats", folder)
    out = capsys.readouterr().out
    assert out.startswith("made-up: 5 pairs of 4 hosts in 4 chemical systems, and 3 with randomised stiffness.")
    assert "Unfinished: 2 of 3 shards" in out
    words = [line.split() for line in out.splitlines()]
    assert ["pairs", "3", "1", "1", "5"] in words
    assert ["host", "host", "volume", "changed", "1"] in words
    assert ["oxide", "1", "0", "0", "0%"] in words


def test_stats_go_into_a_document(folder, tmp_path, capsys):
    card = tmp_path / "card.md"
    card.write_text("# Mine\n<!-- stats made-up:start -->\nold\n<!-- stats made-up:end -->\nend\n")
    call("stats", folder, "--into", card)
    text = card.read_text()
    assert capsys.readouterr().out == ""
    assert text.startswith("# Mine\n")
    assert text.endswith("end\n")
    assert "old" not in text
    assert "| pairs | 3 | 1 | 1 | 5 |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    call("stats", folder, "--into", card)
    assert card.read_text() == text


def test_show_as_json(folder, capsys):
    call("show", "toy-3/0", "--data", folder, "--json")
    row = json.loads(capsys.readouterr().out)
    sample = toy_sample(3, "val", 3)
    assert row.pop("edge_mev") == pytest.approx(sample.edge_mev, rel=1e-5)
    assert row == {
        "row_id": "toy-3/0",
        "host_id": "toy-3",
        "formula": "MgV",
        "chemical_system": "Mg-V",
        "split": "val",
        "dopants": [
            {"element": "Cd", "atoms": 3, "concentration": 0.046875},
            {"element": "B", "atoms": 2, "concentration": 0.03125},
            {"element": "Os", "atoms": 5, "concentration": 0.078125},
        ],
        "sites": 10,
        "atoms": 64,
        "supercell": [[4, 0, 0], [0, 4, 0], [0, 0, 2]],
        "qpoints": 1,
        "placement": "random",
        "variant": "as-is",
        "potential": "toy",
        "potential_sha256": "0" * 64,
        "max_force_ev_per_angstrom": 0.01,
        "imaginary_fraction": 0.0,
        "overflow": 0.0,
        "seed": 0,
        "source": "simulated",
        "stratum": "",
        "shard": "shard-00001.parquet",
    }


def test_show_on_a_screen(folder, capsys):
    call("show", "toy-2/0", "--data", folder)
    out = capsys.readouterr().out
    assert "CZr, toy-2" in out
    assert "Cl 6.25 at.% (4)" in out
    assert "64, 4 of them substituted (clustered)" in out
    call("show", "toy-2/1", "--data", folder)
    assert "none (control)" in capsys.readouterr().out
    call("show", "toy-1/0/stiffness-2", "--data", folder)
    assert re.search(r"variant +stiffness-2", capsys.readouterr().out)


def test_the_only_data_set_is_the_default(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ShardError, match=r"\./data holds no data set"):
        default_folder()
    write(tmp_path / "data")
    call("show", "toy-2/0")
    assert "CZr" in capsys.readouterr().out
    toy_folder(tmp_path / "data" / "other", 2, 1, 1, 1)
    with pytest.raises(ShardError, match="made-up, other"):
        default_folder()


@pytest.mark.parametrize("row", ["toy-1/0", "toy-2/1", "toy-1/0/stiffness-1"])
def test_plot_is_an_image(folder, tmp_path, capsys, row):
    from matplotlib.image import imread

    call("show", row, "--data", folder, "--plot", tmp_path / "row.png")
    height, width, _ = imread(tmp_path / "row.png").shape
    assert height > 500
    assert width > 1000
    capsys.readouterr()


def test_plot_shows_the_spectra(folder):
    sample, _ = find_row(folder, "toy-3/0")
    top, bottom = plot_row(sample).axes
    energy = top.get_lines()[0].get_xdata()
    step = energy[1] - energy[0]
    for line in [*top.get_lines()[:2], *bottom.get_lines()[1:]]:  # the first one of the lower axes is the edge
        assert line.get_ydata().sum() * step == pytest.approx(1.0, abs=1e-3)
    assert [text.get_text() for text in bottom.get_legend().get_texts()] == [
        "Cd, 4.69 at.%",
        "B, 3.12 at.%",
        "Os, 7.81 at.%",
    ]
    for axes in (top, bottom):
        assert any(np.allclose(line.get_xdata(), sample.edge_mev) for line in axes.get_lines())


@pytest.mark.parametrize("name", ["row.cif", "row.xyz", "row.extxyz", "POSCAR", "row.vasp"])
def test_structure_reads_back(folder, tmp_path, capsys, name):
    call("show", "toy-2/0", "--data", folder, "--structure", tmp_path / name)
    sample, _ = find_row(folder, "toy-2/0")
    atoms = ase.io.read(tmp_path / name)
    assert Counter(atoms.get_chemical_symbols()) == dict(zip(sample.doped_elements, sample.doped_counts, strict=True))
    assert atoms.cell.lengths() == pytest.approx([16.0, 16.0, 8.0])
    if name.endswith("xyz"):
        assert [atoms.symbols[site] for site in sample.sites] == list(sample.site_dopants)
    if name == "POSCAR":
        assert (tmp_path / name).read_text().splitlines()[5].split() == ["C", "Cl", "Zr"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    capsys.readouterr()


WRONG = {
    "folder": (["stats", "nope"], "data folder nope does not exist"),
    "no shards": (["stats", "."], "holds no shard"),
    "hosts": (["stats", "FOLDER", "--hosts", "nope.json"], r"nope\.json is no list of hosts"),
    "document": (["stats", "FOLDER", "--into", "empty.md"], "has not exactly one block 'stats made-up'"),
    "row": (["show", "toy-1/7", "--data", "FOLDER"], r"has no row toy-1/7\. The nearest are .*toy-1/0"),
    "host": (["show", "toy-11/0", "--data", "FOLDER"], r"The nearest are .*toy-1/0"),
    "another name": (["show", "xx", "--data", "FOLDER"], "Rows are named <host id>/<number>"),
    "rejected cell": (["show", "toy-2/2", "--data", "FOLDER"], "toy-2/2 was rejected: doped cell not relaxed"),
    "rejected host": (["show", "dead-1/0", "--data", "FOLDER"], "dead-1 was rejected: host volume changed"),
    "no data": (["show", "toy-1/0"], "no data set was named"),
    "plot": (["show", "toy-1/0", "--data", "FOLDER", "--plot", "a.xyz"], "unknown ending"),
    "structure": (["show", "toy-1/0", "--data", "FOLDER", "--structure", "a.nope"], r"structure a\.nope cannot"),
    "structure without a writer": (
        ["show", "toy-1/0", "--data", "FOLDER", "--structure", "a.cell.out"],
        r"structure a\.cell\.out cannot be written",
    ),
    "structure's folder": (
        ["show", "toy-1/0", "--data", "FOLDER", "--structure", "absent/a.cif"],
        "cannot be written .*folder exists",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(folder, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.md").write_text("# Nothing\n")
    words, message = WRONG[name]
    refused([folder if word == "FOLDER" else word for word in words], message, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.md"]


def refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        call(*words)
    captured = capsys.readouterr()
    assert stop.value.code == cli.EXIT_ERROR
    assert captured.out == ""
    assert captured.err.startswith("defectnet: ")
    assert captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err


def test_damage_is_one_line(tmp_path, capsys):
    folder = write(tmp_path)
    shard = folder / "shard-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    refused(["stats", folder], r"shard-00001\.parquet is truncated", capsys)
    refused(["show", "toy-3/0", "--data", folder], r"shard-00001\.parquet is truncated", capsys)
    call("show", "toy-1/0", "--data", folder)  # the shard that holds it is whole
    capsys.readouterr()
    shard.write_bytes(whole)
    for text, message in (("{", "no readable JSON"), ("[]", "no JSON object")):
        (folder / "dataset.json").write_text(text)
        refused(["stats", folder], message, capsys)
    (folder / "dataset.json").unlink()
    write_shard(shard, samples()[1], {"rejects": [{"id": "a"}]})
    refused(["stats", folder], "rejects without id or reason", capsys)


def test_a_damaged_page_is_noticed(tmp_path, capsys):
    """Bytes all over the pages: an error or the same numbers (another column), never others."""
    folder = write(tmp_path)
    shard = folder / "shard-00000.parquet"
    whole = shard.read_bytes()
    right = statistics(read_contents(folder))
    footer = int.from_bytes(whole[-8:-4], "little")  # its text has no checksum
    errors = 0
    for place in range(8, len(whole) - 8 - footer, (len(whole) - footer) // 60):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert statistics(read_contents(folder)) == right
        except ShardError:
            errors += 1
    assert errors > 5


def test_nearest_prefers_rows_of_the_same_host():
    ids = ["mp-1/0000", "mp-1/0003", "mp-12/0000", "Si-diamond/0001"]
    assert nearest("mp-1/0004", ids)[0] in ids[:2]
    assert set(nearest("mp-1/0004", ids)) == set(ids[:2])
    assert nearest("Si-diamnd/0001", ids) == ["Si-diamond/0001"]
    assert nearest("zzz", ids) == []


def test_describe_is_json(folder):
    assert json.loads(json.dumps(describe(find_row(folder, "toy-1/0")[0])))["sites"] == 10


# -- what goes with the data ---------------------------------------------------------------------------------------


def test_figures_are_small_files(folder, tmp_path, capsys):
    data_figures.main([str(folder), "--out", str(tmp_path / "figures")])
    files = sorted((tmp_path / "figures").iterdir())
    assert [path.name for path in files] == ["made-up-cells.png", "made-up-elements.png"]
    for path in files:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 10_000 < path.stat().st_size < 150_000
    capsys.readouterr()


def test_card_describes_every_column():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    table = "\n".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert set(SCHEMA.names) <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("name", ["defectnet-sim-v1", "defectnet-sim-v2", "defectnet-hifi-v1"])
def test_card_has_the_numbers_of_the_data(name):
    from defectnet.files import into_block

    folder = ROOT / "data" / name
    if (folder / ".parts").exists() or not list(folder.rglob("shard-*.parquet")):
        pytest.skip("its shards are being made; the card follows when they are there")
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    current = into_block(card, f"stats {name}", to_markdown(statistics(read_contents(folder))))
    assert current == card, f"run: defectnet data stats data/{name} --into data/README.md"
