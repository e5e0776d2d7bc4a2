"""A data set as a table of arrays."""

from __future__ import annotations

import numpy as np
import pytest

import defectnet
from defectnet.config import STORAGE_GRID
from defectnet.data.shards import read_shard, shard_files
from defectnet.elements import INDEX, NEUTRON_WEIGHT
from defectnet.errors import DefectNetError

FOLDER = "data/defectnet-sim-v2/defectnet-nep"


def test_a_data_set_is_a_table_of_arrays():
    samples = [sample for path in shard_files(FOLDER) for sample in read_shard(path)]
    frame = defectnet.load_dataset(FOLDER, "test")
    assert list(frame.row_id) == [sample.row_id for sample in samples]
    host, doped = np.stack(frame.host), np.stack(frame.doped)
    assert host.shape == doped.shape == (len(samples), 600)
    np.testing.assert_allclose(host.sum(1) * STORAGE_GRID.width, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(frame.attrs["energy"], STORAGE_GRID.centres)
    for row, sample in zip(frame.itertuples(), samples, strict=True):
        assert row.concentrations == sample.concentrations
        np.testing.assert_allclose(row.host, sample.host_dos.sum(0), atol=2e-3 * row.host.max())
        assert list(row.doped_projected) == list(sample.doped_elements)


def test_neutrons_see_elements_by_their_weight():
    frame = defectnet.load_dataset(FOLDER, kind="neutron-weighted")
    row = frame.iloc[-1]
    curve = sum(NEUTRON_WEIGHT[INDEX[symbol]] * dos for symbol, dos in row.doped_projected.items())
    np.testing.assert_allclose(row.doped, curve / (curve.sum() * STORAGE_GRID.width), rtol=1e-5)


@pytest.mark.parametrize(
    ("folder", "settings", "named"),
    [
        ("nowhere", {}, "nowhere"),
        (FOLDER, {"split": "train"}, "split train"),
        (FOLDER, {"split": "Test"}, "'Test'"),
        (FOLDER, {"kind": "projected"}, "projected"),
        (FOLDER, {"kind": "raman"}, "raman"),
    ],
)
def test_what_cannot_be_read_is_named(folder, settings, named):
    with pytest.raises(DefectNetError, match=named):
        defectnet.load_dataset(folder, **settings)
