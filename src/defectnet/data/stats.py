"""What a folder of shards holds: its numbers, as JSON, tables or Markdown, and single rows. No spectrum is decoded."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from defectnet.data.shards import (
    AS_IS,
    DAMAGE,
    Sample,
    check_values,
    open_shard,
    read_extra,
    read_manifest,
    read_shard,
    shard_files,
)
from defectnet.data.splits import SPLITS
from defectnet.elements import INDEX, VOCABULARY, element_index, properties
from defectnet.errors import ShardError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from rich.table import Table

COLUMNS = (
    "row_id", "host_id", "chemical_system", "split", "host_elements", "dopants", "dopant_counts", "atoms", "qpoints",
    "edge_mev", "placement", "variant", "potential", "potential_sha256",
)  # fmt: skip
"""Columns that the numbers come from."""

CLASSES: dict[str, tuple[str, ...]] = {
    "halide": ("F", "Cl", "Br", "I"),
    "oxide": ("O",),
    "sulfide": ("S",),
    "selenide or telluride": ("Se", "Te"),
    "nitride": ("N",),
    "other pnictide": ("P", "As", "Sb", "Bi"),
    "boride, carbide, silicide or germanide": ("B", "C", "Si", "Ge"),
}
"""Chemical class -> the elements that make it."""

ELEMENT, INTERMETALLIC = "element", "intermetallic"
CLASS_NAMES = (*CLASSES, INTERMETALLIC, ELEMENT)

_CLASS_OF = {symbol: name for name, symbols in CLASSES.items() for symbol in symbols}
_ELECTRONEGATIVITY = properties("electronegativity")
_AGAIN = "Run the same `defectnet simulate` command again"
_NEAREST = 3
_WORST, _FEWEST_HOSTS = 8, 10  # elements shown with their yield, and of how many hosts it is worth showing


def chemical_class(symbols: Iterable[str]) -> str:
    """Return the class of a host, one of `CLASS_NAMES`: that of the most electronegative of its anion formers.

    An oxychloride is an oxide, an oxyfluoride a halide.
    """
    elements = set(symbols)
    if len(elements) == 1:
        return ELEMENT
    anions = sorted(elements & set(_CLASS_OF), key=lambda symbol: _ELECTRONEGATIVITY[INDEX[symbol]])
    return _CLASS_OF[anions[-1]] if anions else INTERMETALLIC


@dataclass(frozen=True)
class Contents:
    """A folder of shards, read without its spectra.

    Attributes:
        folder: Where it is.
        shards: Its files, sorted by name.
        manifest: What `read_manifest` says; empty without one.
        rows: `COLUMNS` of all rows.
        tried: Ids of the hosts of these shards, with and without rows.
        rejects: Id and reason of every host and cell that was left out; ids of cells have a slash.
        spectra_per_host: Cells wished for each host; None if that is not recorded.
    """

    folder: Path
    shards: tuple[Path, ...]
    manifest: dict[str, Any]
    rows: pd.DataFrame
    tried: tuple[str, ...]
    rejects: tuple[dict[str, str], ...]
    spectra_per_host: int | None

    @property
    def expected_shards(self) -> int | None:
        """Number of shards when finished; None if that is not recorded."""
        if "parts" in self.manifest:
            return len(self.shards)  # a part that is missing is an error
        hosts = _count_or_none(self.manifest.get("hosts"))
        # The oldest data sets have it beside their settings.
        settings = self.manifest.get("settings")
        inside = settings.get("hosts_per_shard") if isinstance(settings, dict) else None
        size = _count_or_none(inside or self.manifest.get("hosts_per_shard"))
        if "packs" in self.manifest:
            hosts, size = (_count_or_none(self.manifest.get(name)) for name in ("rows", "rows_per_shard"))
        return None if hosts is None or size is None else -(-hosts // size)


def _count_or_none(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def read_contents(folder: str | Path) -> Contents:
    """Read the short columns and the notes of all shards of a folder.

    Raises:
        ShardError: The folder is missing, has no shards, or one of its files is not whole.
    """
    import pyarrow as pa

    folder = Path(folder)
    shards = shard_files(folder)
    tables, notes = [], []
    for path in shards:
        tables.append(_read_columns(path, COLUMNS))
        notes.append(read_extra(path))
    rows = pa.concat_tables(tables).to_pandas()
    tried = list(dict.fromkeys(host for note in notes for host in note.get("hosts", [])))
    if not tried:  # a shard from elsewhere need not have notes
        tried = rows.host_id.unique().tolist()
    rejects = [reject for note in notes for reject in note.get("rejects", [])]
    manifest = read_manifest(folder)
    settings = manifest.get("settings") or notes[0].get("settings")
    wished = None
    if isinstance(settings, dict) and "parts" not in manifest:
        wished = _count_or_none(settings.get("spectra_per_host"))
    return Contents(folder, shards, manifest, rows, tuple(tried), tuple(rejects), wished)


def default_folder(root: str | Path = "data") -> Path:
    """Return the only data set among the folders of `root`.

    Raises:
        ShardError: There is none, or more than one.
    """
    found = sorted({path.parent for path in Path(root).glob("*/shard-*.parquet")})
    if len(found) != 1:
        which = f"holds {', '.join(path.name for path in found)}" if found else "holds no data set"
        raise ShardError(f"no data set was named, and ./{root} {which}", fix="Name one with --data")
    return found[0]


def _read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    with open_shard(path) as file:
        try:
            table = file.read(columns=list(names), use_threads=False)
            table.validate(full=True)
        except DAMAGE as error:
            raise ShardError(
                f"shard {path} is damaged",
                why=(str(error).splitlines() or [""])[0][:160],
                fix=_AGAIN,
            ) from error
    check_values(table, path)
    for name in {"host_elements", "dopants"} & set(names):
        for symbol in table.column(name).combine_chunks().flatten().unique().to_pylist():
            element_index(symbol, field=f"shard {path}, {name}")
    return table


# -- hosts of which there is no row: their chemistry is in the list that the data set was made from -------------


def find_host_list(contents: Contents) -> Path | None:
    """Return the list that a data set was made from, if it lies in its folder or beside it.

    A list is that one if it holds every host tried, and as many hosts as the manifest says.
    """
    places = (contents.folder, contents.folder.resolve().parent)
    for path in (path for place in places for path in sorted(place.glob("hosts*.json*"))):
        try:
            if _fits(read_host_list(path), contents):
                return path
        except ShardError:
            continue
    return None


def read_host_list(path: str | Path) -> dict[str, frozenset[str]]:
    """Read a JSON list of hosts, plain or ``.xz``; id -> elements.

    Raises:
        ShardError: It is missing or no such list.
    """
    path = Path(path)
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
            return {str(entry["id"]): frozenset(entry["species"]) for entry in json.load(file)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, EOFError, lzma.LZMAError) as error:
        raise ShardError(
            f"{path} is no list of hosts", why=str(error)[:120], fix="Give what `defectnet simulate --hosts` was given"
        ) from error


def _fits(hosts: Mapping[str, object], contents: Contents) -> bool:
    return set(contents.tried) <= set(hosts) and contents.manifest.get("hosts", len(hosts)) == len(hosts)


# -- numbers -----------------------------------------------------------------------------------------------------


def statistics(contents: Contents, hosts: str | Path | None = None) -> dict[str, Any]:
    """Count what a data set holds. Rows are those as they are; rows of randomised stiffness are under ``variants``.

    Args:
        contents: From `read_contents`.
        hosts: The list that the data set was made from, for the yield by chemistry; searched for by default.

    Returns:
        Plain values under keys that stay:

        - ``name``; ``schema_version`` (None without a manifest).
        - ``shards``: ``found``, ``expected``, ``finished`` (both None if not recorded).
        - ``rows``, ``hosts``, ``chemical_systems``: of rows as they are.
        - ``variants``: name -> rows; ``all_rows``: with these.
        - ``splits``: split -> ``rows``, ``hosts``, ``chemical_systems``, ``variants`` (rows of these).
        - ``elements``: ``host`` (element -> hosts that hold it), ``dopant`` (element -> rows that it is a dopant of).
        - ``dopants``: number of dopants -> rows; ``"0"`` are the controls.
        - ``concentration_deciles``: ``single`` (of each dopant) and ``total`` (of each row with dopants): 11 values
          from the least to the greatest, atoms over all atoms; None without dopants.
        - ``placements``: ``random``, ``clustered`` -> rows.
        - ``potentials``: list of ``name``, ``sha256``, ``rows``.
        - ``atoms``, ``edge_mev``: ``least``, ``median``, ``greatest``; None without rows.
        - ``qpoints``: number of q points -> ``rows``, ``fewest_atoms``, ``most_atoms``.
        - ``rejects``: ``hosts`` and ``cells``, each reason -> number.
        - ``yield``: ``host_list`` (name of the list, None if not found); ``all``; ``by_class`` (see `CLASSES`) and
          ``by_element`` (host element), None without a list. Each: ``hosts_tried``, ``hosts`` (with a row),
          ``cells_wished`` (hosts tried times spectra per host), ``rows``, ``share`` (rows over cells wished).
        - ``bytes``: ``shards``, ``per_row`` (all rows), ``hessians``.

    Raises:
        ShardError: The list of hosts cannot be read, or is not that of this data set.
    """
    everything = contents.rows
    rows = everything[everything.variant == AS_IS]
    hosts_of_rows = rows.drop_duplicates("host_id")
    expected = contents.expected_shards
    size = sum(path.stat().st_size for path in contents.shards)
    rejects: dict[str, Counter[str]] = {"hosts": Counter(), "cells": Counter()}
    for reject in contents.rejects:
        rejects["cells" if "/" in reject["id"] else "hosts"][reject["reason"]] += 1
    potentials = rows.groupby(["potential", "potential_sha256"]).size().reset_index(name="rows")
    cells = rows.groupby("qpoints").atoms.agg(["size", "min", "max"])
    return {
        "name": contents.folder.resolve().name,
        "schema_version": contents.manifest.get("schema_version"),
        "shards": {
            "found": len(contents.shards),
            "expected": expected,
            "finished": None if expected is None else len(contents.shards) >= expected,
        },
        **_sizes(rows),
        "variants": _counts(everything.variant[everything.variant != AS_IS]),
        "all_rows": len(everything),
        "splits": {
            split: {**_sizes(rows[rows.split == split]), "variants": int((part.variant != AS_IS).sum())}
            for split in SPLITS
            for part in [everything[everything.split == split]]
        },
        "elements": {"host": _by_element(hosts_of_rows.host_elements), "dopant": _by_element(rows.dopants)},
        "dopants": _counts(rows.dopants.map(len)),
        "concentration_deciles": {name: _deciles(values) for name, values in concentrations(rows).items()},
        "placements": _counts(rows.placement),
        "potentials": [
            {"name": name, "sha256": sha256, "rows": int(count)} for _, name, sha256, count in potentials.itertuples()
        ],
        "atoms": _middle(rows.atoms),
        "edge_mev": _middle(rows.edge_mev),
        "qpoints": {
            str(q): {"rows": int(count), "fewest_atoms": int(low), "most_atoms": int(high)}
            for q, count, low, high in cells.itertuples()
        },
        "rejects": {kind: dict(counts.most_common()) for kind, counts in rejects.items()},
        "yield": _yields(contents, hosts, rows),
        "bytes": {
            "shards": size,
            "per_row": round(size / max(len(everything), 1), 1),
            "hessians": sum(path.stat().st_size for path in contents.folder.glob("hessians-*.npz")),
        },
    }


def concentrations(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Return the concentration of each dopant (``single``), and that of all of a row (``total``) without controls."""
    shares = [np.asarray(counts) / size for counts, size in zip(rows.dopant_counts, rows.atoms, strict=True)]
    return {
        "single": [float(share) for row in shares for share in row],
        "total": [float(row.sum()) for row in shares if len(row)],
    }


def _sizes(rows: pd.DataFrame) -> dict[str, int]:
    systems = rows.chemical_system.nunique()
    return {"rows": len(rows), "hosts": rows.host_id.nunique(), "chemical_systems": systems}


def _counts(values: pd.Series[Any]) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}


def _by_element(lists: pd.Series[Any]) -> dict[str, int]:
    counts = lists.explode().value_counts()
    return {symbol: int(counts[symbol]) for symbol in VOCABULARY if symbol in counts}


def _deciles(values: Sequence[float]) -> list[float] | None:
    return [round(float(v), 6) for v in np.quantile(values, np.linspace(0.0, 1.0, 11))] if values else None


def _middle(values: pd.Series[Any]) -> dict[str, float] | None:
    if values.empty:
        return None
    found = {"least": values.min(), "median": float(values.median()), "greatest": values.max()}
    return {name: round(np.asarray(value).item(), 3) for name, value in found.items()}


def _yields(contents: Contents, hosts: str | Path | None, rows: pd.DataFrame) -> dict[str, Any]:
    path = find_host_list(contents) if hosts is None else Path(hosts)
    listed = None if path is None else read_host_list(path)
    if hosts is not None and listed is not None and not _fits(listed, contents):
        raise ShardError(
            f"{path} is not the list of hosts of {contents.folder}", fix="Give what `defectnet simulate` was given"
        )
    made = Counter(rows.host_id)
    elements = dict(zip(rows.host_id, rows.host_elements, strict=True))

    def share(some: Sequence[str]) -> dict[str, Any]:
        wished = None if contents.spectra_per_host is None else contents.spectra_per_host * len(some)
        found = [made[host] for host in some]
        return {
            "hosts_tried": len(some),
            "hosts": sum(count > 0 for count in found),
            "cells_wished": wished,
            "rows": sum(found),
            "share": round(sum(found) / wished, 4) if wished else None,
        }

    out: dict[str, Any] = {"host_list": None if path is None else path.name, "all": share(contents.tried)}
    groups: dict[str, dict[str, list[str]]] = {"by_class": {}, "by_element": {}}
    if listed is None:
        return {**out, **dict.fromkeys(groups)}
    for host in contents.tried:
        symbols = elements.get(host, listed[host])
        groups["by_class"].setdefault(chemical_class(symbols), []).append(host)
        for symbol in symbols:
            groups["by_element"].setdefault(symbol, []).append(host)
    for key, names in (("by_class", CLASS_NAMES), ("by_element", VOCABULARY)):
        out[key] = {name: share(groups[key][name]) for name in names if name in groups[key]}
    return out


# -- as tables ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """A table of results: its title, the titles of its columns and its lines."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def summary(stats: Mapping[str, Any]) -> str:
    """Say in a sentence or two how much there is, and whether it is all."""
    shards, extra = stats["shards"], stats["all_rows"] - stats["rows"]
    text = f"{stats['rows']:,} pairs of {stats['hosts']:,} hosts in {stats['chemical_systems']:,} chemical systems"
    text += f", and {extra:,} with randomised stiffness." if extra else "."
    if shards["finished"] is False:
        text += f" Unfinished: {shards['found']} of {shards['expected']} shards are there."
    elif shards["finished"] is None:
        text += " How many shards there should be is not recorded."
    return text


def sections(stats: Mapping[str, Any]) -> list[Section]:
    """Return the numbers as tables, for a screen or a document; those without content are left out."""
    found = [
        Section(
            "Splits",
            ("", "train", "val", "test", "all"),
            (
                *(
                    (title, *(_count(stats["splits"][split][key]) for split in SPLITS), _count(stats[key]))
                    for title, key in (("pairs", "rows"), ("hosts", "hosts"), ("chemical systems", "chemical_systems"))
                ),
                (
                    "pairs with randomised stiffness",
                    *(_count(stats["splits"][split]["variants"]) for split in SPLITS),
                    _count(stats["all_rows"] - stats["rows"]),
                ),
            ),
        ),
        Section(
            "Dopants in a pair (none: controls)",
            ("dopants", *stats["dopants"]),
            (("pairs", *(_count(n) for n in stats["dopants"].values())),),
        ),
        Section(
            "Concentration, at.%, deciles",
            ("", "min", *(f"{k}0 %" for k in range(1, 10)), "max"),
            tuple(
                (title, *(f"{100 * v:.2f}" for v in stats["concentration_deciles"][key]))
                for key, title in (("single", "each dopant"), ("total", "all of a pair"))
                if stats["concentration_deciles"][key]
            ),
        ),
        Section(
            "Cells",
            ("q points", "pairs", "atoms"),
            tuple(
                (q, _count(part["rows"]), f"{part['fewest_atoms']} to {part['most_atoms']}")
                for q, part in stats["qpoints"].items()
            ),
        ),
        Section("Properties", ("", ""), tuple(_properties(stats))),
        Section(
            "Rejected",
            ("", "reason", "number"),
            tuple(
                (title, reason, _count(n))
                for kind, title in (("hosts", "host"), ("cells", "cell"))
                for reason, n in stats["rejects"][kind].items()
            ),
        ),
        _yield_section(stats["yield"]),
    ]
    return [section for section in found if section.lines]


def _properties(stats: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    potentials = (f"{p['name']} (sha256 {p['sha256'][:12]}): {p['rows']:,}" for p in stats["potentials"])
    yield "potential", "; ".join(potentials)
    yield "placement", "; ".join(f"{name}: {n:,}" for name, n in stats["placements"].items())
    for key, title in (("atoms", "atoms, median"), ("edge_mev", "host's edge, meV, median")):
        if stats[key]:
            digits = 0 if key == "atoms" else 1
            low, mid, high = (f"{stats[key][name]:.{digits}f}" for name in ("least", "median", "greatest"))
            yield title, f"{mid} ({low} to {high})"
    for key, title in (("host", "elements in hosts"), ("dopant", "elements as dopants")):
        missing = [symbol for symbol in VOCABULARY if symbol not in stats["elements"][key]]
        short = f"; not {', '.join(missing)}" if 0 < len(missing) <= 12 else ""
        yield title, f"{len(VOCABULARY) - len(missing)} of {len(VOCABULARY)}{short}"
    size = stats["bytes"]
    beside = f"; Hessians beside them {size['hessians'] / 1e6:.1f} MB" if size["hessians"] else ""
    yield "shards on disk", f"{size['shards'] / 1e6:.2f} MB, {size['per_row']:,.0f} bytes a row{beside}"


def _yield_section(found: Mapping[str, Any]) -> Section:
    groups = [*(found["by_class"] or {}).items(), ("all", found["all"])]
    lines = [_yield_line(name, part) for name, part in groups]
    common = [item for item in (found["by_element"] or {}).items() if item[1]["hosts_tried"] >= _FEWEST_HOSTS]
    worst = sorted(common, key=lambda item: item[1]["share"] or 0.0)[:_WORST]
    lines += [_yield_line(f"with {name}", part) for name, part in worst]
    title = "Yield by chemistry of the host" if found["by_class"] else "Yield (without the list of hosts: of all)"
    title += f"; elements with the least, of those in {_FEWEST_HOSTS} hosts or more" if worst else ""
    return Section(title, ("", "hosts tried", "with a pair", "pairs", "share of the cells wished"), tuple(lines))


def _yield_line(name: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    share = "-" if part["share"] is None else f"{part['share']:.0%}"
    return (name, _count(part["hosts_tried"]), _count(part["hosts"]), _count(part["rows"]), share)


def _count(number: int) -> str:
    return f"{number:,}"


def tables(stats: Mapping[str, Any]) -> list[tuple[str, Table]]:
    """Return the numbers as titles and tables for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    out = []
    for section in sections(stats):
        table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(section.head))
        words = not any(section.head) or section.head[:2] == ("", "reason")
        for k, title in enumerate(section.head):
            table.add_column(title, justify="left" if k < 1 + words else "right", overflow="fold")
        for line in section.lines:
            table.add_row(*map(escape, line))
        out.append((section.title, table))
    return out


def to_markdown(stats: Mapping[str, Any]) -> str:
    """Return the numbers as Markdown."""
    lines = [summary(stats), ""]
    for section in sections(stats):
        lines += [f"**{section.title}**", "", _cells(section.head), "|" + "---|" * len(section.head)]
        lines += [*(_cells(line) for line in section.lines), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cells(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"


# -- single rows -------------------------------------------------------------------------------------------------


def find_row(folder: str | Path, row_id: str) -> tuple[Sample, Path]:
    """Find a row by its id; only the ids of other rows are read.

    Returns:
        The row and the shard that it is in.

    Raises:
        ShardError: The folder or a shard cannot be read, or has no such row: the nearest ids are named, or why the
            row was left out.
    """
    ids: list[str] = []
    shards = shard_files(folder)
    for path in shards:
        here: list[str] = _read_columns(path, ("row_id",)).column("row_id").to_pylist()
        if row_id in here:
            return next(islice(read_shard(path), here.index(row_id), None)), path
        ids += here
    for path in shards:
        for reject in read_extra(path).get("rejects", []):
            if reject["id"] in (row_id, row_id.split("/")[0]):
                raise ShardError(
                    f"{folder} has no row {row_id}",
                    why=f"{reject['id']} was rejected: {reject['reason']}",
                    fix="Name another row",
                )
    near = nearest(row_id, ids)
    fix = f"The nearest are {', '.join(near)}" if near else "Rows are named <host id>/<number>"
    raise ShardError(f"{folder} has no row {row_id}", fix=fix)


def nearest(row_id: str, ids: Sequence[str]) -> list[str]:
    """Return the ids of rows that are most like one that does not exist: of the same host, or of hosts like it."""
    hosts: dict[str, list[str]] = {}
    for name in ids:
        hosts.setdefault(name.split("/")[0], []).append(name)
    wished = row_id.split("/")[0]
    if wished in hosts:
        return get_close_matches(row_id, hosts[wished], n=_NEAREST, cutoff=0.0)
    alike = get_close_matches(wished, list(hosts), n=_NEAREST, cutoff=0.6)
    return [get_close_matches(row_id, hosts[name], n=1, cutoff=0.0)[0] for name in alike]


def describe(sample: Sample) -> dict[str, Any]:
    """Return what is known of a row beside its spectra, as plain values.

    Keys: those of `Sample` of the same names (``supercell`` as three rows), ``dopants`` as a list of ``element``,
    ``atoms`` and ``concentration``, and ``sites``, their number.
    """
    plain = (
        "row_id", "host_id", "formula", "chemical_system", "split", "atoms", "qpoints", "placement", "variant",
        "potential", "potential_sha256", "seed", "source", "stratum",
    )  # fmt: skip
    reals = ("edge_mev", "max_force_ev_per_angstrom", "imaginary_fraction", "overflow")
    return {
        **{name: getattr(sample, name) for name in plain},
        "dopants": [
            {"element": symbol, "atoms": count, "concentration": round(count / sample.atoms, 6)}
            for symbol, count in zip(sample.dopants, sample.dopant_counts, strict=True)
        ],
        "sites": len(sample.sites),
        "supercell": np.reshape(sample.supercell, (3, 3)).tolist(),
        **{name: float(f"{getattr(sample, name):.6g}") for name in reals},
    }


def row_table(sample: Sample, shard: Path) -> Table:
    """Return what is known of a row beside its spectra as a table for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    shares = sample.concentrations
    counts = zip(sample.dopants, sample.dopant_counts, strict=True)
    matrix = np.reshape(sample.supercell, (3, 3)).tolist()
    lines = {
        "host": f"{sample.formula}, {sample.host_id}",
        "dopants": ", ".join(f"{s} {100 * shares[s]:.2f} at.% ({n})" for s, n in counts) or "none (control)",
        "split": sample.split,
        "atoms": f"{sample.atoms}, {len(sample.sites)} of them substituted ({sample.placement})",
        "supercell": "; ".join(" ".join(map(str, row)) for row in matrix),
        "q points": str(sample.qpoints),
        "variant": sample.variant,
        "host's edge": f"{sample.edge_mev:.2f} meV",
        "largest force": f"{sample.max_force_ev_per_angstrom:.2g} eV/angstrom",
        "imaginary modes": f"{sample.imaginary_fraction:.2%}",
        "above the grid": f"{sample.overflow:.2%} of the modes",
        "potential": f"{sample.potential} (sha256 {sample.potential_sha256[:12]})",
        "seed": str(sample.seed),
        "source": ", ".join(filter(None, (sample.source, f"{sample.stratum} dopants" if sample.stratum else ""))),
        "shard": shard.name,
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for title, text in lines.items():
        table.add_row(title, escape(text))
    return table
