"""What is stored of rows: plain columns for any reader of Parquet, the same rows for ours, in every schema."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from defectnet.config import STORAGE_GRID
from defectnet.data.shards import (
    MANIFEST,
    SCHEMAS,
    Sample,
    check_shard,
    merge_shards,
    open_shard,
    read_extra,
    read_rows,
    read_shard,
    shard_files,
    write_shard,
)
from defectnet.errors import ShardError
from make_shards import toy_folder

OLD = shard_files("data/defectnet-hifi-v1")


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """The rows of a shard of schema 1, written anew."""
    path = tmp_path_factory.mktemp("new") / "shard-00000.parquet"
    write_shard(path, list(read_shard(OLD[0])), read_extra(OLD[0]))
    return path


def test_rows_are_the_same_in_every_schema(new):
    for path, version in ((OLD[0], 1), (new, 2)):
        with open_shard(path) as file:
            assert any(file.schema_arrow.remove_metadata().equals(schema) for schema in SCHEMAS[version])
    for old, again in zip(read_shard(OLD[0]), read_shard(new), strict=True):
        for field in fields(Sample):
            assert np.array_equal(getattr(old, field.name), getattr(again, field.name)), field.name
    for (_, old), (_, again) in zip(read_rows(OLD[0], range(99)), read_rows(new, range(99)), strict=True):
        assert old.codes.dtype == again.codes.dtype == np.uint8
        assert np.array_equal(old.codes, again.codes)


def test_what_was_read_is_written_to_the_same_bytes(new, tmp_path):
    write_shard(tmp_path / "again.parquet", list(read_shard(new)), read_extra(new))
    assert (tmp_path / "again.parquet").read_bytes() == new.read_bytes()
    merge_shards(tmp_path / "merged.parquet", [OLD[0], new], {})
    rows = [*read_shard(OLD[0])] * 2
    assert [row.row_id for row in read_shard(tmp_path / "merged.parquet")] == [row.row_id for row in rows]


def test_pandas_reads_the_dos_as_arrays(new):
    """Equal to ours within 0.3 % of each value, areas within 0.2 %."""
    (new.parent / MANIFEST).write_text("{}")
    frame = pd.read_parquet(new.parent)
    for row, sample in zip(frame.itertuples(), read_shard(new), strict=True):
        for name in ("host_dos", "doped_dos"):
            plain = np.stack(getattr(row, name))
            assert plain.dtype == np.float32
            np.testing.assert_allclose(plain, getattr(sample, name), rtol=3e-3)
        areas = np.stack(row.doped_dos).sum(1) * STORAGE_GRID.width
        np.testing.assert_allclose(areas, np.array(sample.doped_counts) / sample.atoms, rtol=2e-3)


def test_bytes_of_a_wrong_number_are_named(tmp_path):
    table = pq.read_table(OLD[0])
    at = table.schema.get_field_index("host_dos")
    short = [value.as_py()[:-1] for value in table.column("host_dos")]
    path = tmp_path / "shard-00000.parquet"
    pq.write_table(table.set_column(at, table.schema.field(at), [short]), path)
    with pytest.raises(ShardError, match=r"shard-00000\.parquet, row .*: host_dos has \d+ bytes"):
        check_shard(path)


def test_a_data_set_may_consist_of_folders(tmp_path):
    parts = [toy_folder(tmp_path / name, train=4, val=1, test=1, shards=1) for name in ("b", "a")]
    with pytest.raises(ShardError, match="holds no shard"):
        shard_files(tmp_path)
    (tmp_path / MANIFEST).write_text('{"parts": ["b", "a"]}')
    assert shard_files(tmp_path) == tuple(path for part in parts for path in shard_files(part))
    (tmp_path / MANIFEST).write_text('{"parts": ["b", "c"]}')
    with pytest.raises(ShardError, match="c does not exist"):
        shard_files(tmp_path)
    (tmp_path / MANIFEST).write_text('{"parts": ["../b"]}')
    with pytest.raises(ShardError, match="parts that are no names of folders"):
        shard_files(tmp_path)
