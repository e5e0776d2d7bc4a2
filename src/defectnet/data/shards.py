"""Shards: Parquet files of simulated pairs, with the projected phonon DOS quantised to one byte a bin.

A row holds everything needed to make it again (host, sites, seed, potential) and everything that training needs.
The DOS of each element is stored as ``round(255 * sqrt(dos / max))``: the root spends the codes on the weak bins
where dopants show. Its area is not stored but known, the element's atomic fraction, and is restored on reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.elements import NUMBERS, element_index
from defectnet.errors import ShardError
from defectnet.files import replacing

SCHEMA_VERSION = 1
_VERSION_KEY = b"defectnet.schema_version"
_EXTRA_KEY = b"defectnet.extra"


@dataclass(frozen=True)
class Sample:
    """One simulated pair: a host and the same supercell with dopants.

    Attributes:
        row_id: ``<host_id>/<number>``, unique in a data set.
        host_id: Id of the host crystal, for instance a Materials Project id.
        formula: Reduced formula of the host.
        chemical_system: Host elements, sorted, joined by dashes.
        split: ``train``, ``val`` or ``test``.
        host_elements: Elements of the host, in the order of `host_dos`.
        host_dos: (len(host_elements), 600) projected DOS per relative energy on `STORAGE_GRID`; the area of an
            element is its atomic fraction, the total area is 1.
        doped_elements: Elements of the doped cell, in the order of `doped_dos`.
        doped_counts: Atoms of each of `doped_elements`.
        doped_dos: (len(doped_elements), 600) the same of the doped cell, on the host's relative energies.
        edge_mev: Highest phonon energy of the host, the unit of the relative energies.
        dopants: Elements substituted in; empty for a control.
        dopant_counts: Atoms of each dopant.
        sites: Substituted sites, indices into the supercell.
        site_dopants: Element put on each of `sites`.
        atoms: Atoms in the supercell.
        supercell: 9 integers, rows of the matrix that makes the supercell from the host cell.
        qpoints: Number of q points that were sampled, after time reversal.
        imaginary_fraction: Share of imaginary modes in the doped cell.
        overflow: Share of the doped cell's DOS above the grid, counted into the last bin.
        max_force_ev_per_angstrom: Largest force left after relaxation of the doped cell.
        placement: ``random`` or ``clustered``.
        variant: ``as-is``, or the name of a randomised stiffness.
        potential: Name of the potential.
        potential_sha256: sha256 of its file.
        seed: Seed of the data set; with `row_id` it fixes the row.
        host_numbers: Atomic numbers of the relaxed host cell.
        host_cell: 9 numbers, rows of the relaxed host cell in angstrom.
        host_frac: 3 n numbers, fractional coordinates of the relaxed host cell.
    """

    row_id: str
    host_id: str
    formula: str
    chemical_system: str
    split: str
    host_elements: tuple[str, ...]
    host_dos: NDArray[np.float32]
    doped_elements: tuple[str, ...]
    doped_counts: tuple[int, ...]
    doped_dos: NDArray[np.float32]
    edge_mev: float
    dopants: tuple[str, ...]
    dopant_counts: tuple[int, ...]
    sites: tuple[int, ...]
    site_dopants: tuple[str, ...]
    atoms: int
    supercell: tuple[int, ...]
    qpoints: int
    imaginary_fraction: float
    overflow: float
    max_force_ev_per_angstrom: float
    placement: str
    variant: str
    potential: str
    potential_sha256: str
    seed: int
    host_numbers: tuple[int, ...]
    host_cell: tuple[float, ...]
    host_frac: tuple[float, ...]

    @property
    def concentrations(self) -> dict[str, float]:
        """Dopant -> atoms of it over all atoms."""
        return {symbol: n / self.atoms for symbol, n in zip(self.dopants, self.dopant_counts, strict=True)}


_STRING_LIST = pa.list_(pa.string())
_DOS = ("host_dos", "doped_dos")
_TYPES: dict[str, pa.DataType] = {
    "row_id": pa.string(),
    "host_id": pa.string(),
    "formula": pa.string(),
    "chemical_system": pa.string(),
    "split": pa.string(),
    "host_elements": _STRING_LIST,
    "host_dos": pa.binary(),
    "doped_elements": _STRING_LIST,
    "doped_counts": pa.list_(pa.int32()),
    "doped_dos": pa.binary(),
    "edge_mev": pa.float64(),
    "dopants": _STRING_LIST,
    "dopant_counts": pa.list_(pa.int32()),
    "sites": pa.list_(pa.int32()),
    "site_dopants": _STRING_LIST,
    "atoms": pa.int32(),
    "supercell": pa.list_(pa.int32()),
    "qpoints": pa.int32(),
    "imaginary_fraction": pa.float32(),
    "overflow": pa.float32(),
    "max_force_ev_per_angstrom": pa.float32(),
    "placement": pa.string(),
    "variant": pa.string(),
    "potential": pa.string(),
    "potential_sha256": pa.string(),
    "seed": pa.int64(),
    "host_numbers": pa.list_(pa.int32()),
    "host_cell": pa.list_(pa.float64()),
    "host_frac": pa.list_(pa.float64()),
}
SCHEMA = pa.schema(list(_TYPES.items()))
"""Column names and types of a shard, version `SCHEMA_VERSION`."""


DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises where a file is damaged; page checksums are OSErrors, a damaged footer can be any of them."""


def quantise(dos: NDArray[np.floating[Any]]) -> bytes:
    """Quantise projected DOS, (elements, 600), to one byte a bin."""
    peak = np.maximum(dos.max(axis=1, keepdims=True), 1e-30)
    return bytes(np.round(255.0 * np.sqrt(np.clip(dos / peak, 0.0, 1.0))).astype(np.uint8).tobytes())


def dequantise(codes: bytes, areas: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Undo `quantise`.

    Args:
        codes: Bytes of (elements, 600) codes.
        areas: (elements,) area of each element's DOS: its atomic fraction.

    Returns:
        (elements, 600) DOS per relative energy.
    """
    shape = (len(areas), STORAGE_GRID.bins)
    dos = np.frombuffer(codes, dtype=np.uint8).reshape(shape).astype(np.float32) ** 2
    total = dos.sum(axis=1, keepdims=True) * np.float32(STORAGE_GRID.width)
    return np.asarray(dos * (np.asarray(areas, dtype=np.float32)[:, None] / np.maximum(total, 1e-30)))


def write_shard(path: str | os.PathLike[str], samples: Sequence[Sample], extra: dict[str, Any]) -> None:
    """Write a shard: to a temporary name, then renamed, so that a shard is whole or absent.

    Args:
        path: File to write; the folder must exist.
        samples: Rows, in order.
        extra: JSON-able notes kept in the file's metadata, for instance the rejected cells.
    """
    path = Path(path)
    columns = {name: [_encode(name, getattr(sample, name)) for sample in samples] for name in _TYPES}
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION).encode(), _EXTRA_KEY: json.dumps(extra, sort_keys=True).encode()}
    table = pa.table(columns, schema=SCHEMA.with_metadata(metadata))
    with replacing(path) as temporary:
        # Statistics would repeat whole spectra; the host's spectrum repeats where supercells do.
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=19,
            write_page_checksum=True,
            write_statistics=False,
            use_dictionary=["host_dos"],
        )


def _encode(name: str, value: Any) -> Any:
    return quantise(value) if name in _DOS else list(value) if isinstance(value, tuple) else value


def open_shard(path: str | os.PathLike[str]) -> pq.ParquetFile:
    """Open a shard and check that it is whole and of the known schema.

    Raises:
        ShardError: The file is missing, truncated, no Parquet, or has another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise ShardError(f"shard {path} does not exist", fix="Check the folder, or run `defectnet simulate` again")
    rebuild = "Run the same `defectnet simulate` command again: it rebuilds this shard"
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
        names = schema.names
    except DAMAGE as error:
        raise ShardError(f"shard {path} is truncated or no Parquet file", why=_first(error), fix=rebuild) from error
    metadata = schema.metadata or {}
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise ShardError(f"shard {path} carries no schema version", fix="Use a shard that defectnet wrote")
    if not version.isdigit() or int(version) != SCHEMA_VERSION:
        newer = version.isdigit() and int(version) > SCHEMA_VERSION
        raise ShardError(
            f"shard {path} has schema version {version.decode()}, this defectnet reads {SCHEMA_VERSION}",
            fix="Upgrade defectnet" if newer else "Simulate again with this version",
        )
    if not schema.remove_metadata().equals(SCHEMA):
        wrong = sorted(set(SCHEMA.names) ^ set(names)) or ["column types"]
        raise ShardError(f"shard {path} has other columns than its schema version", why=", ".join(wrong), fix=rebuild)
    return file


def read_shard(path: str | os.PathLike[str], *, batch_rows: int = 64) -> Iterator[Sample]:
    """Read a shard row by row; at most `batch_rows` rows are in memory.

    Raises:
        ShardError: As `open_shard`, or a page is damaged, or a row contradicts itself.
    """
    file = open_shard(path)
    try:
        for batch in file.iter_batches(batch_size=batch_rows):
            for row in batch.to_pylist():
                yield _decode(row, Path(path))
    except DAMAGE as error:
        raise ShardError(
            f"shard {path} is damaged", why=_first(error), fix="Run the same `defectnet simulate` command again"
        ) from error
    finally:
        file.close()


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the notes that were written with a shard, for instance its rejected cells.

    Raises:
        ShardError: As `open_shard`, or the notes are missing.
    """
    with open_shard(path) as file:
        notes = (file.schema_arrow.metadata or {}).get(_EXTRA_KEY)
    try:
        return dict(json.loads(notes or b""))
    except ValueError as error:
        raise ShardError(f"shard {path} carries no readable notes", fix="Simulate the shard again") from error


def check_shard(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a whole shard to see that nothing is damaged; returns its notes.

    Raises:
        ShardError: As `read_shard`, or rows are missing.
    """
    extra = read_extra(path)
    rows = sum(1 for _ in read_shard(path))
    if rows != extra.get("rows", rows):
        raise ShardError(f"shard {path} has {rows} rows, {extra['rows']} were written", fix="Simulate the shard again")
    return extra


def _decode(row: dict[str, Any], path: Path) -> Sample:
    where = f"shard {path}, row {row['row_id']}"
    empty = [name for name, value in row.items() if value is None]
    if empty:
        raise ShardError(f"{where}: {', '.join(empty)} is empty", fix="Simulate the shard again")
    for name, other in (("doped_elements", "doped_counts"), ("dopants", "dopant_counts")):
        if len(row[name]) != len(row[other]):
            raise ShardError(f"{where}: {name} and {other} differ in length", fix="Simulate the shard again")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    numbers, atoms = np.asarray(values["host_numbers"]), values["atoms"]
    host_counts = [int((numbers == NUMBERS[element_index(s, field=where)]).sum()) for s in values["host_elements"]]
    counts = dict(zip(values["doped_elements"], values["doped_counts"], strict=True))
    if sum(host_counts) != len(numbers) or sum(counts.values()) != atoms:
        raise ShardError(f"{where}: counts of atoms do not add up", fix="Simulate the shard again")
    if [counts.get(symbol, 0) for symbol in values["dopants"]] != list(values["dopant_counts"]):
        raise ShardError(f"{where}: dopants contradict the doped cell", fix="Simulate the shard again")
    areas = {"host_dos": np.array(host_counts) / len(numbers), "doped_dos": np.array(list(counts.values())) / atoms}
    for name, area in areas.items():
        if len(values[name]) != len(area) * STORAGE_GRID.bins:
            raise ShardError(f"{where}: {name} has {len(values[name])} bytes", fix="Simulate the shard again")
        values[name] = dequantise(values[name], area)
    return Sample(**values)


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
