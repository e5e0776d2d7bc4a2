"""A data set as a table, for those who bring their own model: nothing of shards, noise or batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from defectnet.config import STORAGE_GRID
from defectnet.crystal.spectra import element_weights
from defectnet.data.shards import Sample, read_shard, shard_files
from defectnet.data.splits import SPLITS
from defectnet.errors import ShardError
from defectnet.spectrum import parse_kind

if TYPE_CHECKING:
    import pandas as pd

_KEPT: Final = (
    "row_id", "host_id", "formula", "chemical_system", "split", "edge_mev", "atoms", "potential", "source", "stratum",
    "variant",
)  # fmt: skip


def load_dataset(folder: str | Path, split: str | None = None, *, kind: str = "total") -> pd.DataFrame:
    """Read a data set as a table with one row for each pair; some 10 kB of memory a row.

    Args:
        folder: Of shards: of the project, or made by ``defectnet simulate``.
        split: ``train``, ``val`` or ``test``; None for all.
        kind: How elements are weighted: ``total`` or ``neutron-weighted``.

    Returns:
        Columns row_id, host_id, formula, chemical_system, split, edge_mev (the host's highest phonon energy, meV),
        atoms, potential, source, stratum, variant; host and doped: (600,) DOS per relative energy, of unit area;
        host_projected and doped_projected: the total DOS of each element, by symbol, each with its atomic fraction as
        its area; concentrations: dopant -> dopant atoms over all atoms. ``attrs["energy"]`` holds the (600,) relative
        energies: times edge_mev, in meV. No instrument has broadened them.

    Raises:
        ShardError: There are no shards, one is damaged, or no row is of the split.
        SpectrumError: There is no such kind.
    """
    import pandas as pd  # here, because it takes half a second to import

    if split is not None and split not in SPLITS:
        raise ShardError(f"split is {split!r}", fix=f"Use {', '.join(SPLITS)}, or None for all")
    kind = parse_kind(kind)
    if kind == "projected":
        raise ShardError("kind is projected", why="on which element is not said", fix="Read host_projected")
    found = [
        _plain(sample, kind)
        for path in shard_files(folder)
        for sample in read_shard(path)
        if split is None or sample.split == split
    ]
    if not found:
        raise ShardError(f"{folder} holds no row of the split {split}", fix="Read another, or all")
    frame = pd.DataFrame(found)
    frame.attrs["energy"] = STORAGE_GRID.centres
    return frame


def _plain(sample: Sample, kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(sample, name) for name in _KEPT}
    for name in ("host", "doped"):
        elements, dos = getattr(sample, f"{name}_elements"), getattr(sample, f"{name}_dos")
        curve = element_weights(elements, kind, None) @ dos
        row[name] = np.asarray(curve / (curve.sum() * STORAGE_GRID.width), dtype=np.float32)
        row[f"{name}_projected"] = dict(zip(elements, dos, strict=True))
    return {**row, "concentrations": sample.concentrations}
