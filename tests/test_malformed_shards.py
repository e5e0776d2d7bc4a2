"""Every broken shard, folder or setting of the data gives one clear error that names it and says what to do."""

from __future__ import annotations

import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from defectnet.cli import main
from defectnet.data.candidates import TrackSettings
from defectnet.data.dataset import Stream
from defectnet.data.module import LoaderSettings, SpectraDataModule
from defectnet.data.shards import SCHEMA, SCHEMA_VERSION, check_shard
from defectnet.errors import ConfigError, DefectNetError, ShardError
from defectnet.measure.settings import Measurement, measurement_named
from defectnet.tasks.defect import DefectTask, OptimiserSettings
from make_shards import toy_folder

VERSION = b"defectnet.schema_version"
CURRENT = str(SCHEMA_VERSION).encode()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return toy_folder(tmp_path_factory.mktemp("sound") / "data", train=8, val=3, test=3, shards=2)


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "data")


def rewrite(path, change=lambda table: table, version=None):
    """Write a shard again with other content; `version` replaces the schema version."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    metadata = {k: v for k, v in metadata.items() if k != VERSION} | ({VERSION: version} if version else {})
    table = change(table)
    pq.write_table(table.replace_schema_metadata(metadata), path, compression="none", write_page_checksum=True)


def column(name, change):
    """A change of one column, value by value."""

    def apply(table):
        values = [change(value) for value in table.column(name).to_pylist()]
        position = table.schema.get_field_index(name)
        return table.set_column(position, table.schema.field(name), pa.array(values, SCHEMA.field(name).type))

    return lambda path: rewrite(path, apply, CURRENT)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def flip(path):
    """Change a byte inside the pages of the doped DOS, where Parquet itself would not notice."""
    rewrite(path, version=CURRENT)
    data = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(c for i in range(data.num_columns) if (c := data.column(i)).path_in_schema.startswith("doped_dos"))
    raw = bytearray(path.read_bytes())
    raw[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size // 2] ^= 0xFF
    path.write_bytes(raw)


def astype(name, kind):
    def apply(table):
        position = table.schema.get_field_index(name)
        return table.set_column(position, name, table.column(name).cast(kind))

    return lambda path: rewrite(path, apply, CURRENT)


SHARDS = {
    "truncated": (truncate, "truncated or no Parquet"),
    "empty file": (lambda path: path.write_bytes(b""), "truncated or no Parquet"),
    "text": (lambda path: path.write_text("energy,dos\n1,2\n"), "truncated or no Parquet"),
    "no schema version": (lambda path: rewrite(path), "carries no schema version"),
    "newer version": (lambda path: rewrite(path, version=b"99"), r"schema version 99.*Upgrade defectnet"),
    "older version": (lambda path: rewrite(path, version=b"0"), r"schema version 0.*Simulate again"),
    "version is no number": (lambda path: rewrite(path, version=b"one"), "schema version one"),
    "missing column": (lambda path: rewrite(path, lambda t: t.drop_columns(["doped_dos"]), CURRENT), "doped_dos"),
    "additional column": (
        lambda path: rewrite(path, lambda t: t.append_column("x", pa.array([1] * len(t))), CURRENT),
        r"other columns.*\(x\)",
    ),
    "other type": (astype("atoms", pa.int64()), r"types of columns.*\(atoms\)"),
    "flipped byte": (flip, "is damaged"),
    "unknown split": (column("split", lambda _: "holdout"), "unknown split 'holdout'"),
    "no split": (column("split", lambda _: None), "unknown split 'None'"),
    "atoms do not add up": (column("atoms", lambda n: n + 1), "counts of atoms do not add up"),
    "host cell does not add up": (column("host_numbers", lambda n: [*n, 118]), "counts of atoms do not add up"),
    "dopants contradict": (column("dopant_counts", lambda n: [c + 1 for c in n] or n), "dopants contradict"),
    "dopant without count": (column("dopants", lambda s: [*s, "Si"]), "dopants and dopant_counts differ"),
    "element without count": (column("doped_elements", lambda s: s[:-1]), "doped_elements and doped_counts differ"),
    "DOS of another type": (astype("doped_dos", pa.list_(pa.list_(pa.float64()))), r"types of columns.*\(doped_dos\)"),
    "short spectrum": (column("host_dos", lambda d: [d[0], d[1][:-1]]), "host_dos has not 600 numbers for each"),
    "bins of another element": (
        column("host_dos", lambda d: [d[0][:-1], d[1] + d[0][-1:]]),
        "host_dos has not 600 numbers for each",
    ),
    "element without spectrum": (column("doped_dos", lambda d: d[:-1]), "doped_dos has not 600 numbers for each"),
    "DOS of NaN": (column("doped_dos", lambda d: [[float("nan")] * 600 for _ in d]), "doped_dos holds nan"),
    "DOS below zero": (column("doped_dos", lambda d: [[-x for x in one] for one in d]), "doped_dos holds -"),
    "empty bin": (column("doped_dos", lambda d: [[None, *one[1:]] for one in d]), "doped_dos is empty"),
    "other areas": (
        column("doped_dos", lambda d: [[2 * x for x in one] for one in d]),
        "doped_dos has not the atomic fractions as areas",
    ),
    "empty value": (column("doped_dos", lambda _: None), "doped_dos is empty"),
    "edge of zero": (column("edge_mev", lambda _: 0.0), "edge_mev holds 0.0"),
    "edge of NaN": (column("edge_mev", lambda _: float("nan")), "edge_mev holds nan"),
    "infinite edge": (column("edge_mev", lambda _: float("inf")), "edge_mev holds inf"),
    "no atoms": (column("atoms", lambda _: 0), "atoms holds 0"),
    "atom number zero": (column("host_numbers", lambda n: [0] * len(n)), "host_numbers holds 0"),
    "row in another folder": (column("row_id", lambda _: "../victim/0"), "row_id is no name"),
    "row without a name": (column("row_id", lambda _: ""), "row_id is no name"),
    "unknown element": (column("host_elements", lambda s: ["Xx", s[1]]), "'Xx' is not an element"),
}


def read_all(folder, workers=0):
    module = SpectraDataModule(str(folder), batch_size=4, loader=LoaderSettings(workers=workers))
    return [item for split in ("train", "val", "test") for item in module.evaluation(split, "candidates")]


def one_clear_error(found: pytest.ExceptionInfo[BaseException], name: str) -> None:
    """Exactly one line that names the file, and a way out."""
    message = str(found.value)
    assert name in message
    assert "\n" not in message
    assert found.value.fix in message


def test_a_sound_folder_is_read(folder):
    assert sum(len(item.rows) for item in read_all(folder)) == 14


@pytest.mark.parametrize("case", SHARDS)
def test_a_broken_shard(case, folder):
    spoil, message = SHARDS[case]
    spoil(folder / "shard-00001.parquet")
    with pytest.raises(DefectNetError, match=message) as found:
        read_all(folder)
    one_clear_error(found, "shard-00001.parquet")
    if case != "unknown element":
        assert isinstance(found.value, ShardError)


WHOLE = {
    "host in another folder": (column("host_id", lambda _: "../victim"), "host_id is no name"),
    "host at the root": (column("host_id", lambda _: "/victim"), "host_id is no name"),
    "host with a control character": (column("host_id", lambda _: "a\n"), "host_id is no name"),
    "supercell of two numbers": (column("supercell", lambda _: [1, 2]), "supercell has not 9 numbers"),
    "cell of NaN": (column("host_cell", lambda _: [float("nan")] * 9), "host_cell holds nan"),
    "one coordinate": (column("host_frac", lambda _: [0.5]), "host_frac and host_numbers differ in length"),
    "share of modes": (column("imaginary_fraction", lambda _: 7.0), "imaginary_fraction holds 7"),
    "overflow of NaN": (column("overflow", lambda _: float("nan")), "overflow holds nan"),
    "no wave vector": (column("qpoints", lambda _: 0), "qpoints holds 0"),
    "seed below zero": (column("seed", lambda _: -1), "seed holds -1"),
    "site without dopant": (column("sites", lambda s: [*s, 1]), "site_dopants and sites differ in length"),
    "site below zero": (column("sites", lambda s: [-1 for _ in s]), "sites holds -1"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_broken_value_that_loaders_do_not_read(case, folder, tmp_path, capsys):
    spoil, message = WHOLE[case]
    spoil(folder / "shard-00001.parquet")
    with pytest.raises(ShardError, match=message) as found:
        check_shard(folder / "shard-00001.parquet")
    one_clear_error(found, "shard-00001.parquet")
    with pytest.raises(SystemExit):
        main(["data", "measure", str(folder), "--out", str(tmp_path / "lab" / "here")])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "lab").exists()


NOTES = {
    "a list": (b"[1, 2]", "its notes hold no JSON object"),
    "nested": (b"[" * 100_000, "carries no readable notes"),
    "rejects without reason": (b'{"rejects": ["a"]}', "rejects without id or reason"),
    "hosts that are none": (b'{"hosts": [[1]]}', "hosts that are no names"),
    "rows in words": (b'{"rows": "nine"}', "a number of rows that is none"),
    "settings in a list": (b'{"settings": [1]}', "settings that are no object"),
}


@pytest.mark.parametrize("case", NOTES)
def test_broken_notes(case, folder, capsys):
    notes, message = NOTES[case]
    path = folder / "shard-00001.parquet"
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"defectnet.extra": notes}
    pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)
    with pytest.raises(ShardError, match=message):
        check_shard(path)
    with pytest.raises(SystemExit):
        main(["data", "stats", str(folder)])
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "dataset.json is no readable JSON"),
        ('{"settings": 7}', "dataset.json holds settings that are no object"),
        ('{"packs": ["a"]}', "dataset.json holds packs without id"),
        ('{"preconditioner": [1]}', "dataset.json holds a preconditioner that is no name"),
    ],
)
def test_a_broken_description(folder, capsys, text, message):
    (folder / "dataset.json").write_text(text)
    for words in (["stats"], ["verify", "--potential", "none"]):
        with pytest.raises(SystemExit):
            main(["data", words[0], str(folder), *words[1:]])
        assert re.search(message, capsys.readouterr().err)


def test_words_of_a_shard_are_not_taken_for_markup(folder, capsys):
    for path in folder.glob("*.parquet"):
        column("potential", lambda _: "mine[/x] [bold]")(path)
    main(["data", "stats", str(folder)])
    assert "mine[/x] [bold]" in capsys.readouterr().out


def test_a_virtual_lab_writes_over_nothing(folder, tmp_path, capsys):
    words = ["data", "measure", str(folder), "--out", str(tmp_path / "lab")]
    main(words)
    main(words)  # the same again
    (tmp_path / "lab" / "pairs.csv").write_text("sample\nmine\n")
    with pytest.raises(SystemExit):
        main(words)
    assert "pairs.csv is there already, and another file" in capsys.readouterr().err
    assert (tmp_path / "lab" / "pairs.csv").read_text() == "sample\nmine\n"


def test_a_broken_shard_is_the_same_error_in_a_worker(folder):
    flip(folder / "shard-00001.parquet")
    with pytest.raises(ShardError, match="is damaged") as found:
        read_all(folder, workers=1)
    one_clear_error(found, "shard-00001.parquet")


def drop_split(folder, split):
    for path in folder.glob("*.parquet"):
        rewrite(path, lambda t: t.filter(pa.array([s != split for s in t.column("split").to_pylist()])), CURRENT)


FOLDERS = {
    "missing": (shutil.rmtree, "does not exist"),
    "empty": (lambda folder: [path.unlink() for path in folder.iterdir()], r"holds no shard-\*\.parquet"),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "is a file"),
    "other names": (
        lambda folder: [p.rename(p.with_name(f"part{i}.parquet")) for i, p in enumerate(list(folder.iterdir()))],
        "holds no shard",
    ),
    "no validation rows": (lambda folder: drop_split(folder, "val"), "no row of the split 'val'"),
    "no training rows": (lambda folder: drop_split(folder, "train"), "no row of the split 'train'"),
    "no test rows": (lambda folder: drop_split(folder, "test"), "no row of the split 'test'"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_broken_folder(case, folder):
    spoil, message = FOLDERS[case]
    spoil(folder)
    with pytest.raises(ShardError, match=message) as found:
        read_all(folder)
    one_clear_error(found, str(folder))


ARGUMENTS = {
    "batch_size": (lambda: Stream(batch_size=0), "batch_size is 0"),
    "buffer": (lambda: Stream(buffer_rows=0), "buffer_rows is 0"),
    "cache": (lambda: Stream(cache_rows=-1), "cache_rows is -1"),
    "workers": (lambda: Stream(workers=-1), "workers is -1"),
    "rank": (lambda: Stream(rank=2, ranks=2), "rank is 2"),
    "measurement": (lambda: measurement_named("labb"), "'labb' is not known"),
    "weights": (lambda: Measurement(weights=(1.0, 2.0)), "measurement.weights"),
    "blind share": (lambda: TrackSettings(blind_share=1.5), "tracks.blind_share is 1.5"),
    "distractors": (lambda: TrackSettings(max_distractors=0), "tracks.max_distractors is 0"),
    "learning rate": (lambda: OptimiserSettings(learning_rate=0.0), "learning_rate is 0.0"),
    "warm-up": (lambda: OptimiserSettings(warmup_share=2.0), "optimiser.warmup_share is 2.0"),
    "architecture": (lambda: DefectTask("DefectNett"), r"'DefectNett' is not known.*DefectNet"),
    "field of the net": (lambda: DefectTask("DefectNet", net={"width": 3}), "net.width is not a known field"),
    "value of the net": (lambda: DefectTask("DefectNet", net={"heads": 7}), "net.heads"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_a_wrong_argument(case):
    make, message = ARGUMENTS[case]
    with pytest.raises(ConfigError, match=message) as found:
        make()
    one_clear_error(found, "")


def test_the_command_line_says_it_in_one_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    truncate(folder / "shard-00000.parquet")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{architecture: DefectNet}}\ndata: {{folder: {folder}}}\ntrainer: {{logger: false}}\n")
    with pytest.raises(SystemExit) as found:
        main(["fit", "-c", str(recipe), "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"])
    assert found.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("defectnet: shard ")
    assert "shard-00000.parquet is truncated" in last
