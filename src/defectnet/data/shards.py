"""Shards: Parquet files of simulated pairs, plain columns that any reader of Parquet gives as numbers, texts and lists.

A row holds everything needed to make it again (host, sites, seed, potential) and everything that training needs.
The DOS of each element is rounded to a number of levels, ``round(levels * sqrt(dos / max))`` the code of each: the root
spends the codes on the weak bins where dopants show. Rarer elements get fewer levels: what they add to a spectrum is
small, and so is what rounding them does to it. Schema 2 stores the rounded DOS itself, to nine significant bits, its
area the element's atomic fraction within 0.2 %; our readers take the codes from it, and restore the area to all digits.
Schema 1 stored the codes, as bytes, and is read to the same numbers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.elements import INDEX, NUMBERS, VOCABULARY, element_index
from defectnet.errors import ShardError
from defectnet.files import is_file_name, read_json, replacing
from defectnet.measure.forward import ProjectedPairs

SCHEMA_VERSION = 2
AS_IS = "as-is"
"""Variant of a row with the potential's own stiffness; every other variant is for training alone."""

SIMULATED, SUPERPOSED = "simulated", "superposed"
"""Sources of a row: a relaxation of the doped cell, or superposed force constants."""

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
        max_force_ev_per_angstrom: Largest force left after relaxation of the doped cell; 0 where none was relaxed.
        placement: ``random`` or ``clustered``.
        variant: ``as-is``, or the name of a randomised stiffness.
        potential: Name of the potential.
        potential_sha256: sha256 of its file.
        seed: Seed of the data set; with `row_id` it fixes the row.
        host_numbers: Atomic numbers of the relaxed host cell.
        host_cell: 9 numbers, rows of the relaxed host cell in angstrom.
        host_frac: 3 n numbers, fractional coordinates of the relaxed host cell.
        source: ``simulated``, or ``superposed`` from a host pack.
        stratum: ``plausible`` if all dopants are among the likeliest on their sites, ``arbitrary`` if one is not; empty
            for a control, and where no difference is made.
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
    source: str = SIMULATED
    stratum: str = ""

    @property
    def concentrations(self) -> dict[str, float]:
        """Dopant -> atoms of it over all atoms."""
        return {symbol: n / self.atoms for symbol, n in zip(self.dopants, self.dopant_counts, strict=True)}


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Row:
    """What is measured of a row: a `Sample` in brief, its DOS still as stored (about 5 kB).

    Attributes:
        row_id: As in `Sample`.
        formula: As in `Sample`.
        edge_mev: As in `Sample`.
        elements: (n,) positions in the vocabulary: those of the host, then those of the doped cell.
        hosts: How many of `elements` are the host's.
        codes: (n, 600) roots of the DOS in any scale; read from a shard, one byte a bin, as `quantise` gives it.
        areas: (n,) area of each element's DOS: its atomic fraction in the host or in the doped cell.
        dopants: (k,) positions of the dopants in the vocabulary.
        concentration: (k,) atoms of each dopant over all atoms.
        hard_negatives: Positions of the dopants of all rows of the host that a training stream holds with this one.
    """

    row_id: str
    formula: str
    edge_mev: float
    elements: NDArray[np.intp]
    hosts: int
    codes: NDArray[np.uint8] | NDArray[np.float32]
    areas: NDArray[np.float32]
    dopants: NDArray[np.intp]
    concentration: NDArray[np.float32]
    hard_negatives: tuple[int, ...] = ()

    @classmethod
    def of(cls, sample: Sample) -> Row:
        """Return a sample in brief, its DOS as precise as it is there."""
        dos = np.concatenate([sample.host_dos, sample.doped_dos])
        symbols = (*sample.host_elements, *sample.doped_elements)
        return cls(
            row_id=sample.row_id,
            formula=sample.formula,
            edge_mev=sample.edge_mev,
            elements=np.array([INDEX[symbol] for symbol in symbols], dtype=np.intp),
            hosts=len(sample.host_elements),
            codes=np.sqrt(dos, dtype=np.float32),
            areas=(dos.sum(axis=1) * STORAGE_GRID.width).astype(np.float32),
            dopants=np.array([INDEX[symbol] for symbol in sample.dopants], dtype=np.intp),
            concentration=np.array(list(sample.concentrations.values()), dtype=np.float32),
        )


def projected_pairs(rows: Sequence[Row]) -> ProjectedPairs:
    """Return rows as the forward model takes them."""
    counts = [n for row in rows for n in (row.hosts, len(row.elements) - row.hosts)]
    dos = np.concatenate([row.codes for row in rows]).astype(np.float32)
    return ProjectedPairs(
        np.square(dos, out=dos),  # the root is what is stored; areas make up for the scale
        np.concatenate([row.areas for row in rows]),
        np.concatenate([row.elements for row in rows]),
        np.cumsum([0, *counts[:-1]]),
        np.array([row.edge_mev for row in rows]),
    )


_STRING_LIST = pa.list_(pa.string())
_DOS = ("host_dos", "doped_dos")
_DOS_LIST = pa.list_(pa.list_(pa.float32()))
_TYPES: dict[str, pa.DataType] = {
    "row_id": pa.string(),
    "host_id": pa.string(),
    "formula": pa.string(),
    "chemical_system": pa.string(),
    "split": pa.string(),
    "host_elements": _STRING_LIST,
    "host_dos": _DOS_LIST,
    "doped_elements": _STRING_LIST,
    "doped_counts": pa.list_(pa.int32()),
    "doped_dos": _DOS_LIST,
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
_MORE: dict[str, pa.DataType] = {"source": pa.string(), "stratum": pa.string()}
SCHEMA = pa.schema(list((_TYPES | _MORE).items()))
"""Column names and types of a shard, version `SCHEMA_VERSION`: DOS per relative energy, a list of 600 numbers for each
element, whose area (sum / 200) is the element's atomic fraction."""

_BYTES = _TYPES | dict.fromkeys(_DOS, pa.binary())
SCHEMAS: dict[int, tuple[pa.Schema, ...]] = {
    1: (pa.schema(list(_BYTES.items())), pa.schema(list((_BYTES | _MORE).items()))),
    SCHEMA_VERSION: (SCHEMA,),
}
"""Those that are read, by version; in version 1, shards of simulated rows alone lack two columns."""


MANIFEST = "_dataset.json"
"""File beside the shards that says what the data set is, or of which folders it consists (``parts``). Readers of
Parquet that are given a folder pass over names that begin so."""

OLDER_MANIFEST = "dataset.json"
"""Its name beside shards of schema 1."""

DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What pyarrow raises where a file is damaged; page checksums are OSErrors, a damaged footer can be any of them."""


LEVELS = 120.0
"""Levels of an element that is the whole crystal; others have as many times the root of their atomic fraction."""

FEWEST_LEVELS = 8.0


_SPARE_BITS = 15
"""Last bits of a stored value that are rounded away, of 24: an eighth of a file's size."""

_AREA_TOLERANCE = 4e-3
"""Twice the relative error that this rounding can make in the area of a DOS."""


def quantise(dos: NDArray[np.floating[Any]], areas: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Quantise projected DOS to one byte a bin; of a DOS that was quantised and stored, return the same codes.

    Args:
        dos: (elements, 600) DOS in any scale, nowhere below 0.
        areas: (elements,) atomic fractions.

    Returns:
        (elements, 600) codes.
    """
    levels = np.maximum(np.round(LEVELS * np.sqrt(areas)), FEWEST_LEVELS).astype(np.float32)
    peak = np.maximum(dos.max(axis=1, keepdims=True), 1e-30)
    roots = dos / peak
    np.sqrt(roots, out=roots)
    roots *= levels[:, None]
    return np.asarray(np.rint(roots, out=roots).astype(np.uint8))


def dequantise(codes: NDArray[np.uint8], areas: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Undo `quantise`.

    Args:
        codes: (elements, 600) codes.
        areas: (elements,) area of each element's DOS: its atomic fraction.

    Returns:
        (elements, 600) DOS per relative energy.
    """
    dos = codes.astype(np.float32) ** 2
    total = dos.sum(axis=1, keepdims=True) * np.float32(STORAGE_GRID.width)
    return np.asarray(dos * (np.asarray(areas, dtype=np.float32)[:, None] / np.maximum(total, 1e-30)))


def shard_files(folder: str | Path) -> tuple[Path, ...]:
    """Return the shards of a folder, sorted by name; of a data set of several folders, those of each in turn.

    Raises:
        ShardError: The folder, or one of its parts, is missing or has none; or `read_manifest` refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ShardError(f"data folder {folder} {what}", fix="Give the folder that `defectnet simulate` wrote")
    paths = tuple(sorted(folder.glob("shard-*.parquet")))
    if not paths:
        paths = tuple(path for part in read_manifest(folder).get("parts", ()) for path in shard_files(folder / part))
    if not paths:
        raise ShardError(f"data folder {folder} holds no shard-*.parquet", fix="Run `defectnet simulate --out` first")
    return paths


def write_shard(path: str | os.PathLike[str], samples: Sequence[Sample], extra: dict[str, Any]) -> None:
    """Write a shard: to a temporary name, then renamed, so that a shard is whole or absent.

    Args:
        path: File to write; the folder must exist.
        samples: Rows, in order.
        extra: JSON-able notes kept in the file's metadata, for instance the rejected cells.
    """
    table = pa.Table.from_batches([_batch(samples)])
    metadata = {_VERSION_KEY: str(SCHEMA_VERSION).encode(), _EXTRA_KEY: json.dumps(extra, sort_keys=True).encode()}
    with replacing(Path(path)) as temporary:
        # Statistics and dictionaries would repeat what is compressed already.
        pq.write_table(
            table.replace_schema_metadata(metadata),
            temporary,
            compression="zstd",
            compression_level=19,
            write_page_checksum=True,
            write_statistics=False,
            use_dictionary=False,
        )


def merge_shards(path: str | os.PathLike[str], parts: Sequence[Path], extra: dict[str, Any]) -> None:
    """Write the rows of several shards as one; what they hold stays as it is, bit for bit.

    Raises:
        ShardError: As `read_shard`, for a part.
    """
    write_shard(path, [sample for part in parts for sample in read_shard(part)], extra)


def _batch(samples: Sequence[Sample]) -> pa.RecordBatch:
    columns = {
        name: _dos_column(samples, name)
        if name in _DOS
        else [list(v) if isinstance(v := getattr(sample, name), tuple) else v for sample in samples]
        for name in SCHEMA.names
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _dos_column(samples: Sequence[Sample], name: str) -> pa.Array:
    """Return what is stored of a DOS: quantised, and the last bits rounded away."""
    found, cuts = [np.zeros((0, STORAGE_GRID.bins), np.float32)], [0]
    for sample in samples:
        if name == "host_dos":
            numbers = [NUMBERS[INDEX[symbol]] for symbol in sample.host_elements]
            areas = np.array([sample.host_numbers.count(z) for z in numbers]) / len(sample.host_numbers)
        else:
            areas = np.array(sample.doped_counts) / sample.atoms
        found.append(dequantise(quantise(getattr(sample, name), areas), areas))
        cuts.append(cuts[-1] + len(areas))
    bits = np.concatenate(found).ravel().view(np.uint32)
    rounded = (bits + np.uint32(1 << (_SPARE_BITS - 1))) >> _SPARE_BITS << _SPARE_BITS
    each = pa.array(np.arange(0, len(bits) + 1, STORAGE_GRID.bins, dtype=np.int32))
    values = pa.ListArray.from_arrays(each, pa.array(rounded.view(np.float32)))
    return pa.ListArray.from_arrays(pa.array(cuts, pa.int32()), values)


def decoded(sample: Sample) -> Sample:
    """Return a row as it will be read again, with everything rounded that is rounded when it is stored."""
    return next(_samples(_batch([sample]), Path("memory")))


def in_brief(samples: Sequence[Sample]) -> list[Row]:
    """Return rows as a loader would read them from a shard."""
    columns = _Columns(_batch(samples), Path("memory"))
    return [columns.row(i) for i in range(len(samples))]


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
    except DAMAGE as error:
        raise ShardError(f"shard {path} is truncated or no Parquet file", why=_first(error), fix=rebuild) from error
    metadata = schema.metadata or {}
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise ShardError(f"shard {path} carries no schema version", fix="Use a shard that defectnet wrote")
    known = SCHEMAS.get(int(version)) if version.isdigit() else None
    if known is None:
        newer = version.isdigit() and int(version) > SCHEMA_VERSION
        raise ShardError(
            f"shard {path} has schema version {version.decode()}, this defectnet reads {', '.join(map(str, SCHEMAS))}",
            fix="Upgrade defectnet" if newer else "Simulate again with this version",
        )
    schema = schema.remove_metadata()
    if not any(schema.equals(one) for one in known):
        wrong = min((_unlike(one, schema) for one in known), key=len)
        raise ShardError(
            f"shard {path} has other columns, or types of columns, than its schema version",
            why=", ".join(wrong) or "their order",
            fix=rebuild,
        )
    return file


def _unlike(one: pa.Schema, other: pa.Schema) -> list[str]:
    """Return the columns that two schemas have not in common, or of other types."""
    one, other = (dict(zip(schema.names, schema.types, strict=True)) for schema in (one, other))
    return sorted(name for name in one | other if one.get(name) != other.get(name))


def read_shard(path: str | os.PathLike[str], *, batch_rows: int = 64) -> Iterator[Sample]:
    """Read a shard row by row; at most `batch_rows` rows are in memory.

    Raises:
        ShardError: As `open_shard`, or a page is damaged, or a row contradicts itself.
    """
    with _damage_named(path), open_shard(path) as file:
        for batch in file.iter_batches(batch_size=batch_rows):
            yield from _samples(batch, Path(path))


def _samples(batch: pa.RecordBatch, path: Path) -> Iterator[Sample]:
    columns = _Columns(batch, path)
    for i, row in enumerate(batch.drop_columns(list(_DOS)).to_pylist()):
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
        yield Sample(**values | columns.dos(i))


def read_rows(
    path: str | os.PathLike[str], wanted: Collection[int], *, batch_rows: int = 128
) -> Iterator[tuple[int, Row]]:
    """Read some rows of a shard in brief, in the order of the file, with their numbers; stops after the last of them.

    Args:
        path: Shard.
        wanted: Row numbers; those that the shard does not have are passed over.
        batch_rows: Rows that are in memory at a time.

    Raises:
        ShardError: As `read_shard`; of what a loader does not need, nothing is read or checked.
    """
    numbers, first = np.sort(np.fromiter(wanted, dtype=np.int64, count=len(wanted))), 0
    with _damage_named(path), open_shard(path) as file:
        # Threads would fight with those of the other loader processes, for a small part of the work.
        for batch in file.iter_batches(batch_size=batch_rows, columns=_BRIEF, use_threads=False):
            columns = _Columns(batch, Path(path))
            begin, end = np.searchsorted(numbers, [first, first + len(columns)])
            for number in numbers[begin:end].tolist():
                yield number, columns.row(number - first)
            first += len(columns)
            if end == len(numbers):
                return


@contextmanager
def _damage_named(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        raise ShardError(
            f"shard {path} is damaged", why=_first(error), fix="Run the same `defectnet simulate` command again"
        ) from error


def read_extra(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the notes that were written with a shard, for instance its rejected cells.

    Raises:
        ShardError: As `open_shard`, or the notes are missing or of other types than those that are written.
    """
    with open_shard(path) as file:
        notes = (file.schema_arrow.metadata or {}).get(_EXTRA_KEY)
    fix = "Simulate the shard again"
    try:
        found = json.loads(notes or b"")
    except (ValueError, RecursionError) as error:
        raise ShardError(f"shard {path} carries no readable notes", fix=fix) from error
    wrong = _first_wrong(found, _NOTES)
    if wrong is not None:
        raise ShardError(f"shard {path}: its notes hold {wrong}", fix=fix)
    return dict(found)


def manifest_file(folder: str | Path) -> Path:
    """Return where the `MANIFEST` of a folder is, or shall be."""
    path, older = Path(folder) / MANIFEST, Path(folder) / OLDER_MANIFEST
    return older if older.exists() and not path.exists() else path


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return what the `MANIFEST` of a folder says; empty where there is none.

    Raises:
        ShardError: It is no JSON object, or a field has another type than those that are written.
    """
    path = manifest_file(folder)
    if not path.exists():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        raise ShardError(f"{path} is no readable JSON", why=str(error), fix="Restore it") from error
    wrong = _first_wrong(found, _MANIFEST)
    if wrong is not None:
        raise ShardError(f"{path} holds {wrong}", fix="Restore it")
    return dict(found)


def _texts(*keys: str) -> Callable[[Any], bool]:
    """Return a test whether a value is a list of objects with these texts."""
    return lambda value: (
        isinstance(value, list)
        and all(isinstance(item, dict) and all(isinstance(item.get(key), str) for key in keys) for item in value)
    )


_Check: TypeAlias = Callable[[Any], bool]
_SETTINGS: tuple[str, _Check] = "settings that are no object", lambda value: isinstance(value, dict)
_NOTES: dict[str, tuple[str, _Check]] = {
    "hosts": (
        "hosts that are no names",
        lambda value: isinstance(value, list) and all(isinstance(host, str) for host in value),
    ),
    "rejects": ("rejects without id or reason", _texts("id", "reason")),
    "rows": ("a number of rows that is none", lambda value: type(value) is int and value >= 0),
    "settings": _SETTINGS,
}
_MANIFEST: dict[str, tuple[str, _Check]] = {
    "settings": _SETTINGS,
    "packs": ("packs without id or weights_sha256", _texts("id", "weights_sha256")),
    "parts": (
        "parts that are no names of folders",
        lambda value: isinstance(value, list) and all(isinstance(part, str) and is_file_name(part) for part in value),
    ),
    "preconditioner": (
        "a preconditioner that is no name",
        lambda value: value is None or isinstance(value, str),
    ),
}


def _first_wrong(found: Any, checks: Mapping[str, tuple[str, _Check]]) -> str | None:
    """Return what is wrong with the first field that fails its check; None where all is well."""
    if not isinstance(found, dict):
        return "no JSON object"
    return next((what for key, (what, holds) in checks.items() if key in found and not holds(found[key])), None)


def check_shard(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a whole shard to see that nothing is damaged; returns its notes.

    Raises:
        ShardError: As `read_shard`, or rows are missing.
    """
    extra = read_extra(path)
    rows = sum(1 for _ in read_shard(path))
    if rows != extra.get("rows", rows):
        raise ShardError(f"shard {path} has {rows} rows, {extra['rows']} were written", fix="Simulate the shard again")
    return extra | {"rows": rows}


_BRIEF = [
    "row_id", "formula", "host_elements", "host_dos", "doped_elements", "doped_counts", "doped_dos", "edge_mev",
    "dopants", "dopant_counts", "atoms", "host_numbers",
]  # fmt: skip
"""Columns that make a `Row`, and that are needed to check it."""


_POSITIVE, _SHARE = (lambda x: np.isfinite(x) & (x > 0)), (lambda x: (x >= 0) & (x <= 1))
_FROM_ZERO = lambda x: np.isfinite(x) & (x >= 0)  # noqa: E731  # beside its likes
_VALUES: dict[str, Callable[[NDArray[Any]], NDArray[np.bool_]]] = {
    "edge_mev": _POSITIVE,
    "atoms": _POSITIVE,
    "qpoints": _POSITIVE,
    "imaginary_fraction": _SHARE,
    "overflow": _SHARE,
    "max_force_ev_per_angstrom": _FROM_ZERO,
    "seed": _FROM_ZERO,
    "doped_counts": _POSITIVE,
    "dopant_counts": _POSITIVE,
    "sites": _FROM_ZERO,
    "host_numbers": lambda x: (x > 0) & (x < 128),
    "host_cell": np.isfinite,
    "host_frac": np.isfinite,
    **dict.fromkeys(_DOS, _FROM_ZERO),
}
"""Which values columns, or what is in their lists, may have."""

_LENGTHS = {"supercell": 9, "host_cell": 9}


def check_values(batch: pa.RecordBatch | pa.Table, path: Path) -> None:
    """Check what can be told of each column alone, of those that are there; nothing may be empty.

    Raises:
        ShardError: A value is missing, or is none that is ever written.
    """
    ids = batch.column("row_id").to_pylist()

    def refuse(wrong: NDArray[np.bool_] | list[bool], what: str) -> None:
        found = np.flatnonzero(wrong)
        if len(found):
            raise ShardError(f"shard {path}, row {ids[found[0]]!r:.60}: {what}", fix="Simulate the shard again")

    for name in batch.schema.names:
        column = batch.column(name)
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        lists = isinstance(column, pa.ListArray)
        if _nulls(column):
            refuse([_nulls(column.slice(i, 1)) > 0 for i in range(len(column))], f"{name} is empty")
        if name in ("row_id", "host_id"):
            texts = column.to_pylist()
            refuse([not all(is_file_name(part) for part in text.split("/")) for text in texts], f"{name} is no name")
            refuse(["/" in text for text in texts] if name == "host_id" else [], "host_id is no name")
        if name in _LENGTHS:
            refuse(_lists(column).lengths != _LENGTHS[name], f"{name} has not {_LENGTHS[name]} numbers")
        if name in _VALUES and not pa.types.is_binary(column.type):
            found = _lists(column) if lists else None
            values = column.to_numpy(zero_copy_only=False) if found is None else found.values
            wrong = np.flatnonzero(~_VALUES[name](values))
            if len(wrong):
                row = int(wrong[0]) if found is None else int(found.rows[wrong[0]])
                refuse(np.arange(len(ids)) == row, f"{name} holds {values[wrong[0]]}")
    for name, other, times in (("host_frac", "host_numbers", 3), ("site_dopants", "sites", 1)):
        if {name, other} <= set(batch.schema.names):
            one, two = (np.array([len(row) for row in batch.column(each).to_pylist()]) for each in (name, other))
            refuse(one != times * two, f"{name} and {other} differ in length")


def _nulls(column: pa.Array) -> int:
    """Return how many values are missing, those in lists included."""
    inside = _nulls(column.flatten()) if isinstance(column, pa.ListArray) else 0
    return int(column.null_count + inside)


@dataclass(frozen=True)
class _Lists:
    """A column of lists: all values, and where each row's begin and end."""

    values: NDArray[Any]
    cuts: NDArray[np.int32]

    @property
    def lengths(self) -> NDArray[np.int32]:
        return np.diff(self.cuts)

    @property
    def rows(self) -> NDArray[np.intp]:
        return np.repeat(np.arange(len(self.cuts) - 1), self.lengths)

    def sums(self) -> NDArray[np.int64]:
        total = np.append(0, np.cumsum(self.values, dtype=np.int64))
        return np.asarray(np.diff(total[self.cuts]))

    def __getitem__(self, row: int) -> NDArray[Any]:
        return np.asarray(self.values[self.cuts[row] : self.cuts[row + 1]])


class _Columns:
    """Rows of a shard as arrays, checked all at once: views of Arrow's buffers where that is possible.

    Args:
        batch: Rows; the columns of `_BRIEF` at least.
        path: The shard, for errors.

    Raises:
        ShardError: A row is not whole or contradicts itself.
        FormulaError: An element is unknown.
    """

    def __init__(self, batch: pa.RecordBatch, path: Path) -> None:
        self._path, self._ids = path, batch.column("row_id").to_pylist()
        check_values(batch, path)
        self.formula: list[str] = batch.column("formula").to_pylist()
        self.edge_mev: list[float] = batch.column("edge_mev").to_pylist()
        self.atoms = batch.column("atoms").to_numpy()
        self.doped_counts = _lists(batch.column("doped_counts"))
        self.dopant_counts = _lists(batch.column("dopant_counts"))
        self.host, self.doped, self.dopants = (
            self._elements(batch.column(name)) for name in ("host_elements", "doped_elements", "dopants")
        )
        for name, one, other in (("doped_elements", self.doped, "doped"), ("dopants", self.dopants, "dopant")):
            counts = self.doped_counts if other == "doped" else self.dopant_counts
            self._refuse(one.lengths != counts.lengths, f"{name} and {other}_counts differ in length")
        numbers = _lists(batch.column("host_numbers"))
        self._check_counts(numbers)
        # Atomic fractions; the host's as counted in its cell.
        self.host_areas = self._host_counts / numbers.lengths[self.host.rows]
        self.doped_areas = self.doped_counts.values / self.atoms[self.doped.rows]
        self.host_codes = self._codes("host_dos", batch.column("host_dos"), self.host, self.host_areas)
        self.doped_codes = self._codes("doped_dos", batch.column("doped_dos"), self.doped, self.doped_areas)

    def _codes(
        self, name: str, column: pa.Array, elements: _Lists, areas: NDArray[np.floating[Any]]
    ) -> NDArray[np.uint8]:
        """Return (elements of all rows, 600) codes, read out of the DOS where it is stored as such."""
        found, bins = _lists(column), STORAGE_GRID.bins
        if pa.types.is_binary(column.type):
            wrong = np.flatnonzero(found.lengths != elements.lengths * bins)
            if len(wrong):
                self._refuse(np.arange(len(self)) == wrong[0], f"{name} has {found.lengths[wrong[0]]} bytes")
            return found.values.reshape(-1, bins)
        lengths = _lists(column.flatten()).lengths
        uneven = column.value_lengths().to_numpy() != elements.lengths
        if not uneven.any():
            uneven = np.bincount(elements.rows, lengths != bins, len(self)) > 0
        self._refuse(uneven, f"{name} has not {bins} numbers for each element")
        dos = found.values.reshape(-1, bins)
        off = np.abs(dos.sum(axis=1) * STORAGE_GRID.width - areas) > _AREA_TOLERANCE * areas
        self._refuse(np.bincount(elements.rows, off, len(self)) > 0, f"{name} has not the atomic fractions as areas")
        return quantise(dos, areas)

    def __len__(self) -> int:
        return len(self._ids)

    def _refuse(self, wrong: NDArray[np.bool_] | list[bool], what: str) -> None:
        found = np.flatnonzero(wrong)
        if len(found):
            raise ShardError(f"{self._where(found[0])}: {what}", fix="Simulate the shard again")

    def _where(self, row: int) -> str:
        return f"shard {self._path}, row {self._ids[row]}"

    def _elements(self, column: pa.ListArray) -> _Lists:
        """Return positions in the vocabulary in place of symbols."""
        offsets = column.offsets.to_numpy()
        words = column.values.slice(offsets[0], offsets[-1] - offsets[0]).dictionary_encode()
        symbols = words.dictionary.to_pylist()
        known = np.array([INDEX.get(symbol, -1) for symbol in symbols], dtype=np.intp)
        lists = _Lists(known[words.indices.to_numpy()], offsets - offsets[0])
        bad = np.flatnonzero(lists.values < 0)
        if len(bad):
            element_index(symbols[words.indices[int(bad[0])].as_py()], field=self._where(lists.rows[bad[0]]))
        return lists

    def _check_counts(self, numbers: _Lists) -> None:
        table = np.zeros((len(self), 256), dtype=np.int64)  # atoms of each atomic number in the host cell
        np.add.at(table, (numbers.rows, np.clip(numbers.values, 0, 255)), 1)
        self._host_counts = table[self.host.rows, NUMBERS[self.host.values]]
        counted = _Lists(self._host_counts, self.host.cuts).sums()
        wrong = (counted != numbers.lengths) | (self.doped_counts.sums() != self.atoms) | (counted == 0)
        self._refuse(wrong | (self.atoms <= 0), "counts of atoms do not add up")
        cell = np.zeros((len(self), len(VOCABULARY)), dtype=np.int64)
        cell[self.doped.rows, self.doped.values] = self.doped_counts.values
        rows = self.dopants.rows
        differ = cell[rows, self.dopants.values] != self.dopant_counts.values
        self._refuse(np.bincount(rows[differ], minlength=len(self)) > 0, "dopants contradict the doped cell")

    def row(self, i: int) -> Row:
        """Return a row in brief; it owns its arrays, so that it keeps no other row in memory."""
        host, doped = self._of(self.host, i), self._of(self.doped, i)
        areas = np.concatenate([self.host_areas[host], self.doped_areas[doped]])
        return Row(
            row_id=self._ids[i],
            formula=self.formula[i],
            edge_mev=self.edge_mev[i],
            elements=np.concatenate([self.host[i], self.doped[i]]),
            hosts=int(self.host.cuts[i + 1] - self.host.cuts[i]),
            codes=np.concatenate([self.host_codes[host], self.doped_codes[doped]]),
            areas=areas.astype(np.float32),
            dopants=self.dopants[i].copy(),
            concentration=(self.dopant_counts[i] / self.atoms[i]).astype(np.float32),
        )

    def dos(self, i: int) -> dict[str, NDArray[np.float32]]:
        """Return the two projected DOS of a row."""
        host, doped = self._of(self.host, i), self._of(self.doped, i)
        return {
            "host_dos": dequantise(self.host_codes[host], self.host_areas[host]),
            "doped_dos": dequantise(self.doped_codes[doped], self.doped_areas[doped]),
        }

    @staticmethod
    def _of(lists: _Lists, i: int) -> slice:
        return slice(int(lists.cuts[i]), int(lists.cuts[i + 1]))


def _lists(column: pa.Array) -> _Lists:
    """View a column of lists of numbers, in one or two levels, or of bytes."""
    if isinstance(column, pa.ListArray):
        leaf, cuts = column.values, column.offsets.to_numpy()
        if isinstance(leaf, pa.ListArray):
            leaf, cuts = leaf.values, leaf.offsets.to_numpy()[cuts]
        values = leaf.to_numpy(zero_copy_only=False)
    else:
        _, offsets, data = column.buffers()
        cuts = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
        values = np.frombuffer(data if data is not None else b"", dtype=np.uint8)
    return _Lists(values[cuts[0] : cuts[-1]], cuts - cuts[0])


def _first(error: BaseException) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
