"""Many samples: one function for all three ways to ask, and tables of pairs, answered row by row and gone on with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from defectnet.defaults import default_checkpoint
from defectnet.errors import ConfigError, DefectNetError
from defectnet.files import file_sha256, home_expanded, locked, replacing
from defectnet.hub import from_pretrained
from defectnet.io.objects import as_spectrum
from defectnet.models.base import DefectModel, Query, SpectrumLike
from defectnet.prediction import Prediction, Unanswered
from defectnet.provenance import made_with, weights_sha256
from defectnet.spectrum import Spectrum

if TYPE_CHECKING:
    from defectnet.inference.answer import KnownCrystalAnswer
    from defectnet.inference.comparison import Standard

    Answer: TypeAlias = Prediction | KnownCrystalAnswer

TOGETHER: Final = 64
"""Rows that a network is asked at a time: so many are asked again after a kill."""

HELD: Final = 4
"""Known crystals whose cells are kept for further rows."""

FORMATS: Final = (".csv", ".jsonl", ".parquet")

_RECORDED: Final = (DefectNetError, ArithmeticError, OSError, np.linalg.LinAlgError)


@dataclass(frozen=True)
class Question:
    """One pair, and what is known of it; see `identify`."""

    host: SpectrumLike
    doped: SpectrumLike
    formula: Any = None
    structure: Any = None
    pack: Any = None
    candidates: Sequence[str] | None = None
    host_unit: str | None = None
    doped_unit: str | None = None
    kind: str | None = None
    element: str | None = None
    edge: float | None = None

    @property
    def known(self) -> bool:
        """Whether the crystal is known, by a structure or a pack."""
        return self.structure is not None or self.pack is not None

    def spectra(self) -> tuple[Spectrum, Spectrum]:
        """Return host and doped sample, read.

        Raises:
            SpectrumError: One cannot be.
        """
        units = {"host": self.host_unit, "doped": self.doped_unit}
        host, doped = (
            as_spectrum(getattr(self, role), role, unit=unit, kind=self.kind, element=self.element)
            for role, unit in units.items()
        )
        return host, doped


@dataclass
class Asker:
    """Answers questions; networks and known crystals stay loaded for the next one.

    Attributes:
        checkpoint, revision: Network, as for `from_pretrained`: it answers where the formula alone is known, or with
            `quick`, and gives known crystals a second opinion. By default defectnet-small, of known crystals
            defectnet-quick.
        potential, minutes: For structures without a bundled pack, as for `find_pack_for`.
        fwhm_mev, same_potential, sample_atoms, standards: As for `KnownCrystal.identify`.
        quick: Whether the network reads what is computed of known crystals, in the place of the inference.
    """

    checkpoint: str | os.PathLike[str] | None = None
    revision: str | None = None
    potential: str = "nequix"
    minutes: float | None = None
    fwhm_mev: float | None = None
    same_potential: bool = False
    sample_atoms: float | None = None
    standards: Sequence[Standard] = ()
    quick: bool = False
    _networks: dict[str, DefectModel] = field(default_factory=dict, repr=False)
    _known: OrderedDict[Any, Any] = field(default_factory=OrderedDict, repr=False)

    def network(self, known: bool) -> DefectModel:
        """Return the network for crystals that are known, or for others; it is loaded when it is first needed."""
        name = os.fspath(self.checkpoint or default_checkpoint(known))
        if name not in self._networks:
            self._networks[name] = from_pretrained(name, revision=self.revision)
        return self._networks[name]

    def ask(self, question: Question) -> Answer:
        """Answer one question.

        Raises:
            DefectNetError: It cannot be answered.
        """
        if not question.known and question.formula is None:
            raise ConfigError("the host is not named", fix="Give structure, pack or formula")
        host, doped = question.spectra()
        if not question.known:
            query = Query(host, doped, question.formula, question.candidates, question.edge)
            return self.network(known=False).predict_many([query], kind=question.kind)[0]
        crystal = self._crystal(question)
        if self.quick:
            responses, elements = crystal
            query = Query(host, doped, responses.formula, elements, question.edge, responses)
            return self.network(known=True).predict_many([query], kind=question.kind)[0]
        found: KnownCrystalAnswer = crystal.identify(
            host,
            doped,
            fwhm_mev=self.fwhm_mev,
            edge_mev=question.edge,
            same_potential=self.same_potential,
            sample_atoms=self.sample_atoms,
            standards=self.standards,
        )
        return found

    def ask_many(self, questions: Sequence[Question]) -> list[Answer | Unanswered]:
        """Answer each question, in order; where one cannot be answered an `Unanswered` says why."""
        found: list[Answer | Unanswered | None] = [None] * len(questions)
        queries: dict[int, Query] = {}
        for i, one in enumerate(questions):
            try:
                if one.known or one.formula is None:
                    found[i] = self.ask(one)
                else:
                    queries[i] = Query(*one.spectra(), one.formula, one.candidates, one.edge)
            except _RECORDED as error:
                found[i] = Unanswered.of(error)
        if queries:
            answers = self.network(known=False).predict_many(list(queries.values()), on_error="record")
            for i, answer in zip(queries, answers, strict=True):
                found[i] = answer
        return [one for one in found if one is not None]

    def _crystal(self, question: Question) -> Any:
        """Return a crystal, or its computed responses and the elements in question; the last ones asked are kept."""
        from defectnet.inference.ask import CrystalWanted, ask_responses  # here, because networks do without it
        from defectnet.inference.known_crystal import KnownCrystal

        names = None if question.candidates is None else tuple(question.candidates)
        key = (_name(question.structure), _name(question.pack), names)
        if key not in self._known:
            wanted = CrystalWanted(
                question.structure, question.pack, names, question.formula, self.potential, self.minutes
            )
            if self.quick:
                self._known[key] = ask_responses(wanted)
            else:
                self._known[key] = KnownCrystal(*wanted.find()[:2], network=self.network(known=True))
            if len(self._known) > HELD:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]


def _name(source: Any) -> Any:
    """Return what an object or path is known by, while it lives."""
    if source is None or isinstance(source, str | os.PathLike):
        return source and os.fspath(source)
    return id(source)


def identify(
    host: SpectrumLike,
    doped: SpectrumLike,
    *,
    formula: Any = None,
    structure: Any = None,
    pack: Any = None,
    candidates: Sequence[str] | None = None,
    unit: str | None = None,
    kind: str | None = None,
    element: str | None = None,
    edge: float | None = None,
    **settings: Any,
) -> Answer:
    """Say which elements were substituted in, and how much of each: what ``defectnet identify`` does.

    Args:
        host: DOS of the pristine crystal, of any form that docs/pipelines.md lists.
        doped: DOS of the doped sample, the same.
        formula: Formula of the host: a text, Composition, Structure or Element of pymatgen, or Atoms of ase.
        structure: Its structure: a file, Structure of pymatgen, Atoms of ase or of phonopy. The crystal is then known.
        pack: Host pack, by name, folder or repository, or a `HostPack`. The crystal is then known.
        candidates: Elements that may be there, such as Al, or Al@Ga where the crystal is known; None asks about all.
        unit: Energy unit of what does not say it.
        kind: Kind of DOS, likewise.
        element: Of a projected DOS.
        edge: Band edge of the host in meV.
        **settings: Of `Asker`: checkpoint, revision, potential, minutes, fwhm_mev, same_potential, sample_atoms,
            standards, quick.

    Raises:
        DefectNetError: It cannot be answered: which field or file is wrong, and how to mend it.
    """
    known = [one.name for one in fields(Asker) if one.init and one.repr]
    for name in settings:
        if name not in known:
            raise ConfigError(f"there is no setting {name}", fix=f"Settings are {', '.join(known)}")
    question = Question(host, doped, formula, structure, pack, candidates, unit, unit, kind, element, edge)
    return Asker(**settings).ask(question)


def answer_from_dict(document: Mapping[str, Any]) -> Answer | Unanswered:
    """Return the answer that `to_dict` of either kind wrote, or why there is none.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(document, Mapping):
        raise ConfigError(
            "this is no answer", why=f"it is a {type(document).__name__}", fix="Give what to_dict returned"
        )
    if "error" in document and "what" in document:
        return Unanswered(document["error"], document["what"])
    if document.get("way") != "known crystal":
        return Prediction.from_dict(document)
    from defectnet.inference.answer import KnownCrystalAnswer  # here, because networks do without it

    return KnownCrystalAnswer.from_dict(document)


# -- tables ----------------------------------------------------------------------------------------------------------

_ROLES: Final = {"host_file": "host", "doped_file": "doped"}
_OTHER: Final = ("sample", "unit", "dopants", "weight", "resolution_mev")
COLUMNS: Final = (*_ROLES, *(one.name for one in fields(Question) if one.name not in _ROLES.values()), *_OTHER)
"""Columns that a table of pairs may have. `dopants`, `weight` and `resolution_mev`, of lab tables, are not read."""

_LISTS, _NUMBERS = ("present", "warnings"), ("something_else", "explained", "edge_mev")
_TEXTS = ("sample", "host_file", "doped_file", "formula", "way", "sentence", "verdict", "error", "answer")
_ANSWER: Final = ("line", *_TEXTS[:6], "present", *_NUMBERS, "verdict", "warnings", "error", "answer")
"""Columns of the answers."""


class Told(NamedTuple):
    """How a table went: rows answered and failed, and of these those that an earlier, stopped run had done."""

    answered: int
    failed: int
    kept: int


class _Row(NamedTuple):
    line: int
    cells: dict[str, str]
    question: Question | Unanswered
    key: str


def identify_table(
    table: str | os.PathLike[str],
    out: str | os.PathLike[str],
    asker: Asker | None = None,
    *,
    report: Callable[[int, int], None] = lambda done, total: None,
    **defaults: str,
) -> Told:
    """Answer every row of a table of pairs, and write the answers in its order.

    What is done is kept beside `out` until all is: after a kill the same call goes on. A row whose files, settings,
    network or pack have changed since is asked again. A row that cannot be answered has its reason in `error`.

    Args:
        table: CSV with columns host_file and doped_file, relative to it, and any of `COLUMNS`.
        out: .csv, .jsonl or .parquet. In `answer` is JSON that `answer_from_dict` reads, in .jsonl a document.
        asker: What answers.
        report: Called with the number of rows done and of all.
        **defaults: By column, for rows that leave it empty.

    Raises:
        ConfigError: The table or the name of `out` cannot be used, or another process writes to it.
    """
    out, asker = home_expanded(out), asker or Asker()
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out is {out}", fix=f"Let it end with {', '.join(FORMATS)}")
    for name in defaults:
        if name not in COLUMNS:
            raise ConfigError(f"there is no column {name}", fix=f"Columns are {', '.join(COLUMNS)}")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out is {out}", why="its folder does not exist", fix="Make it, or mend the path")
    if out.suffix == ".parquet":
        import pyarrow  # noqa: F401 - what is missing is said before the work
    table = home_expanded(table)
    rows = _rows(table, asker, defaults)
    _check_out(out, table, rows)
    with locked(out, "answers"):
        journal = out.with_name(f".{out.name}.part")
        done = _read_journal(journal)
        kept = sum(row.key in done for row in rows)
        report(kept, len(rows))
        with journal.open("ab") as file:
            for some in _together([row for row in rows if row.key not in done]):
                told = [row.question if isinstance(row.question, Unanswered) else None for row in some]
                asked = [row.question for row in some if isinstance(row.question, Question)]
                answers = iter(asker.ask_many(asked))
                for row, failure in zip(some, told, strict=True):
                    done[row.key] = _record(row, next(answers) if failure is None else failure)
                    file.write(json.dumps([row.key, done[row.key]]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                report(sum(row.key in done for row in rows), len(rows))
        records = [{**done[row.key], "line": row.line, "sample": row.cells.get("sample", "")} for row in rows]
        with replacing(out) as temporary:
            _write(temporary, out.suffix, records)
        journal.unlink()
    failed = sum(bool(record["error"]) for record in records)
    return Told(len(records) - failed, failed, kept)


def _check_out(out: Path, table: Path, rows: Sequence[_Row]) -> None:
    """Refuse to write answers over what they are about."""
    questions = [row.question for row in rows if isinstance(row.question, Question)]
    files = {table.resolve()}
    files |= {Path(str(file)).resolve() for one in questions for file in (one.host, one.doped, one.structure) if file}
    if out.resolve() in files:
        raise ConfigError(f"--out is {out}, which the answers are about", fix="Give another name")


def _rows(path: Path, asker: Asker, defaults: Mapping[str, str]) -> list[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"table {path} cannot be read", why=str(error), fix="Give a CSV file in UTF-8") from error
    head = text.partition("\n")[0]
    delimiter = ";" if ";" in head and "," not in head else ","  # as spreadsheets of some languages write it
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, delimiter=delimiter)
    titles = [(title or "").strip().lower() for title in reader.fieldnames or ()]
    known = f"Columns are {', '.join(COLUMNS)}"
    for title in titles:
        if title not in COLUMNS:
            raise ConfigError(f"{path}: unknown column {title!r}", fix=known)
        if titles.count(title) > 1:
            raise ConfigError(f"{path}: the column {title} is there {titles.count(title)} times", fix="Keep one")
    for title in _ROLES:
        if title not in titles:
            raise ConfigError(f"{path}: the column {title} is missing", fix=known)
    reader.fieldnames = titles
    digests: dict[str, str] = {}
    rows = []
    for cells in reader:
        line = reader.line_num
        question: Question | Unanswered
        if None in cells or None in cells.values():
            cells = {name: cell or "" for name, cell in cells.items() if name is not None}
            question = Unanswered.of(
                ConfigError(f"the row has not {len(titles)} cells", fix="Give one cell for each column")
            )
        else:
            given = {name: cell.strip() for name, cell in cells.items() if cell.strip()}
            question = _question({**defaults, **given}, path.parent)
        rows.append(_Row(line, {**cells}, question, _key(question, asker, digests)))
    if not rows:
        raise ConfigError(f"table {path} holds no rows", fix="Give one row for each pair")
    return rows


def _question(cells: Mapping[str, str], folder: Path) -> Question | Unanswered:
    """Return what a row asks."""
    values: dict[str, Any] = {role: str(folder / cells[title]) for title, role in _ROLES.items() if title in cells}
    unit = cells.get("unit")
    values |= {"host_unit": unit, "doped_unit": unit}
    own = {one.name for one in fields(Question)}
    values |= {name: text for name, text in cells.items() if name in own}
    if (names := cells.get("candidates")) is not None:
        values["candidates"] = names.replace(",", " ").replace(";", " ").split()
    for name in ("structure", "pack"):
        if name in values and (folder / values[name]).exists():
            values[name] = str(folder / values[name])
    try:
        if missing := [title for title, role in _ROLES.items() if role not in values]:
            raise ConfigError(f"the cell {missing[0]} is empty", fix="Fill it in")
        if "edge" in values:
            values["edge"] = _number("edge", values["edge"])
        return Question(**values)
    except DefectNetError as error:
        return Unanswered.of(error)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"{name} is {text!r}", fix="Give a number with a decimal point, in meV") from error


def _key(question: Question | Unanswered, asker: Asker, digests: dict[str, str]) -> str:
    """Return what must be the same for an answer to be the same."""

    def digest(path: str) -> str:
        if path not in digests:
            digests[path] = file_sha256(path) if Path(path).is_file() else ""
        return digests[path]

    of: list[Any] = [question.to_dict()] if isinstance(question, Unanswered) else [asdict(question)]
    if isinstance(question, Question):
        of += [digest(str(path)) for path in (question.host, question.doped, question.structure)]
        if question.pack is not None:
            of.append(weights_sha256(_folder(question.pack)))
        if question.known or question.formula is not None:
            of.append(weights_sha256(asker.network(question.known).source))
        settings = (
            asker.potential,
            asker.minutes,
            asker.fwhm_mev,
            asker.same_potential,
            asker.sample_atoms,
            asker.quick,
        )
        standards = [[one.host.energy.tolist(), one.doped.dos.tolist(), dict(one.dopants)] for one in asker.standards]
        of += [*settings, standards, made_with(None, "weights", {})["defectnet"]]
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()


def _folder(pack: str) -> Path | None:
    from defectnet.crystal.pack import find_pack  # here, because networks do without it

    try:
        return find_pack(pack)
    except DefectNetError:  # said when it is asked
        return None


def _together(rows: Iterable[_Row]) -> list[list[_Row]]:
    """Part rows: those of one known crystal one after the other, each alone, for they take long; others together."""
    found: list[list[_Row]] = []
    plain = [row for row in rows if isinstance(row.question, Unanswered) or not row.question.known]
    known = [row for row in rows if isinstance(row.question, Question) and row.question.known]
    found += [plain[i : i + TOGETHER] for i in range(0, len(plain), TOGETHER)]
    known.sort(key=lambda row: json.dumps([getattr(row.question, x) for x in ("pack", "structure", "candidates")]))
    return [*found, *([row] for row in known)]


def _record(row: _Row, answer: Answer | Unanswered) -> dict[str, Any]:
    """Return the columns of an answer, as plain values."""
    record: dict[str, Any] = dict.fromkeys(_ANSWER)
    record |= {title: row.cells.get(title, "") for title in ("host_file", "doped_file", "formula")}
    if isinstance(answer, Unanswered):
        return {**record, **{name: [] for name in _LISTS}, "error": answer.error}
    document = answer.to_dict()
    record |= {name: document[name] for name in record if name in document}
    return {**record, "way": document.get("way", "network"), "answer": document}


def _read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """Return what an earlier run had done; what a kill left half written at the end is cut off."""
    done: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return done
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                key, record = json.loads(line) if line.endswith(b"\n") else (None, {})
            except ValueError:
                key = None
            if key is None:
                break
            done[key] = record
            end += len(line)
    os.truncate(path, end)
    return done


def _write(path: Path, ending: str, records: Sequence[Mapping[str, Any]]) -> None:
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return
    flat = [{**one, "answer": one["answer"] and json.dumps(one["answer"])} for one in records]
    if ending == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _ANSWER)
            writer.writeheader()
            writer.writerows(
                {**one, "present": ";".join(one["present"]), "warnings": " | ".join(one["warnings"])} for one in flat
            )
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "line": pa.int64(),
        **dict.fromkeys(_NUMBERS, pa.float64()),
        **dict.fromkeys(_LISTS, pa.list_(pa.string())),
    }
    schema = pa.schema([(name, types.get(name, pa.string())) for name in _ANSWER])
    pq.write_table(pa.Table.from_pylist(flat, schema), path)
