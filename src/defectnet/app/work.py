"""What the page asks, answered by what the command line calls. Runs in a process and a folder of its own.

Requests hold plain values and uploaded files; what is told of them are plain values for JSON.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401 - loaded once, before processes are forked
from matplotlib.figure import Figure
from numpy.typing import NDArray

from defectnet import __version__
from defectnet.crystal.make import Progress
from defectnet.crystal.pack import HostPack, bundled_packs
from defectnet.crystal.structures import read_structure, spacegroup
from defectnet.defaults import DEFAULT_CHECKPOINT, QUICK_CHECKPOINT
from defectnet.elements import SYMBOLS, VOCABULARY, element_index, parse_formula, properties
from defectnet.errors import ConfigError, SimulationError
from defectnet.files import plain_name
from defectnet.hub import from_pretrained
from defectnet.hub.catalogue import bundled, bundled_root
from defectnet.inference import plan as planning
from defectnet.inference.answer_text import sentence, something_else, verdict
from defectnet.inference.ask import CrystalWanted, KnownReply, ask_known, ask_plan, ask_responses
from defectnet.inference.comparison import Standard
from defectnet.inference.packs import bundled_packs_of, check_fits
from defectnet.inference.parting import as_measured
from defectnet.io import read_spectrum
from defectnet.io.read import describe_file
from defectnet.lab.table import MAX_CONCENTRATION, read_table
from defectnet.measure.encode import host_edge_mev
from defectnet.plotting import plot_known, plot_pair, plot_plan
from defectnet.prediction import Prediction
from defectnet.spectrum import KINDS, UNITS, Spectrum, parse_unit

FloatArray = NDArray[np.float64]

POTENTIALS: Final = ("nequix", "defectnet-nep")
"""What may compute substitutions: those that are bundled. A path is for the command line."""

POINTS: Final = 400
"""Most points of a curve that is sent to the page."""

FIGURES: Final = ("png", "pdf")


@dataclass(frozen=True)
class Tell:
    """Where answers go.

    Attributes:
        progress: Called with what is being done, how much of it is done, and of how much.
        part: Called with the name of a part of the answer, and its values.
    """

    progress: Callable[[str, int, int | None], None]
    part: Callable[[str, Any], None]

    def made(self, progress: Progress) -> None:
        """Take in that a substitution is done."""
        self.progress(f"substitutions in {progress.host}: {progress.last} done", progress.done, progress.total)


# -- what the page starts with -----------------------------------------------------------------------------------------


def start(request: Mapping[str, Any], tell: Tell) -> None:
    """Tell what does not change: elements, kinds, units, the zoo, and the example."""
    packs = []
    for name, folder in bundled_packs().items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dopants = list(dict.fromkeys(f"{one['dopant']}@{one['replaces']}" for one in config["substitutions"]))
        packs.append(_crystal(name, config["formula"], dopants) | {"edge_mev": config.get("band_edge_mev")})
    places = zip(VOCABULARY, properties("group"), properties("period"), strict=True)
    example = _example(Path(request["example"]) if request.get("example") else None)
    tell.part(
        "start",
        {
            "version": __version__,
            "elements": [{"symbol": s, "group": int(g), "period": int(p)} for s, g, p in places],
            "kinds": KINDS,
            "units": list(UNITS),
            "packs": packs,
            "potentials": POTENTIALS,
            "networks": list(bundled()),
            "network": DEFAULT_CHECKPOINT,
            "example": example,
        },
    )


def _crystal(pack: str | None, formula: str, dopants: list[str]) -> dict[str, Any]:
    return {"pack": pack, "formula": formula, "elements": list(parse_formula(formula)), "dopants": dopants}


def example_folder() -> Path | None:
    """Return the folder of the bundled example: inside the package (wheel), or in a source tree."""
    root = bundled_root()
    if root is None:
        return None
    return next((f for f in (root / "example", root.parent / "examples") if (f / "answer.json").is_file()), None)


def _example(folder: Path | None) -> dict[str, Any] | None:
    folder = folder or example_folder()
    if folder is None:
        return None
    about = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    texts = {role: (folder / f"{role}.csv").read_text(encoding="utf-8") for role in ("host", "doped")}
    true = ", ".join(f"{100 * share:.3g} at.% {name}" for name, share in about["dopants"].items()) or "no dopant"
    return {"pack": about["pack"], "candidates": about["candidates"].split(","), "true": true, **texts}


# -- files -------------------------------------------------------------------------------------------------------------


def _saved(request: Mapping[str, Any], role: str) -> Path:
    """Write an uploaded file under the name that the user gave it; errors name it so."""
    file = request.get("files", {}).get(role)
    if file is None:
        raise ConfigError(f"the file of the {_ROLES[role]} is missing", fix="Drop it, or choose it")
    return _written(file, role)


def _written(file: Mapping[str, Any], folder: str) -> Path:
    path = Path(folder) / str(file["name"])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file["data"])
    return path


_ROLES: Final = {"host": "pristine host", "doped": "doped sample", "structure": "crystal structure"}


def _read(request: Mapping[str, Any], role: str, path: Path | None = None) -> tuple[Spectrum, dict[str, Any]]:
    """Return a spectrum, and how it was read: what its file declares, corrected by what the user says of its role.

    Raises:
        SpectrumError: It is no DOS; or neither file nor user says its unit.
    """
    path = path or _saved(request, role)
    said = request.get("read", {}).get(role) or {}
    unit, kind, element = (said.get(key) or None for key in ("unit", "kind", "element"))
    name, raw = describe_file(path, element=element)
    found = read_spectrum(path, unit=None if raw.unit else unit, kind=None if raw.kind else kind, element=element)
    told = found.kind_told
    # The command line refuses what contradicts a file; here a person sees what the file says, and corrects it.
    if unit is not None and parse_unit(unit) != found.unit:
        found = replace(found, unit=unit)
    if kind is not None and kind != found.kind:
        found = replace(found, kind=kind, element=element if kind == "projected" else None, kind_told=True, remark="")
    how = {
        "format": name,
        "unit": found.unit,
        "unit_from": "you" if unit and unit != raw.unit else "the file" if raw.unit else "its format",
        "kind": found.kind,
        "kind_from": "you" if kind and kind != raw.kind else "the file" if told else "assumed",
        "element": found.element,
    }
    return found, how


def read(request: Mapping[str, Any], tell: Tell) -> None:
    """Tell what an uploaded spectrum is."""
    role = request["role"]
    path = _saved(request, role)
    said = request.get("read", {}).get(role) or {}
    name, raw = describe_file(path, element=said.get("element") or None)
    if not (raw.unit or raw.usual_unit or said.get("unit")):
        tell.part("read", {"format": name, "unit": None, "kind": raw.kind or "total", "element": raw.element})
        return
    found, how = _read(request, role)
    edge = host_edge_mev(found) if role == "host" else None
    energy, dos = _unit_area(found, None)
    tell.part(
        "read",
        how
        | {
            "points": len(found.energy),
            "from_mev": float(found.energy_mev[0]),
            "to_mev": float(found.energy_mev[-1]),
            "error": found.error is not None,
            "edge_mev": edge,
            "remark": found.remark,
            "curve": {"x": _short(energy), "y": _short(dos)},
        },
    )


def structure(request: Mapping[str, Any], tell: Tell) -> None:
    """Tell what an uploaded structure is, and which bundled pack fits it."""
    with warnings.catch_warnings(record=True) as dropped:
        warnings.simplefilter("always")
        host = read_structure(_saved(request, "structure"))
    name, dopants = None, list[str]()
    for file in bundled_packs_of(host.formula):
        pack = HostPack.load(file.folder)
        with suppress(SimulationError):
            check_fits(pack, host)
            name, dopants = file.folder.name, list(pack.dopants)
            break
    elements = list(dict.fromkeys(SYMBOLS[int(z)] for z in host.crystal.numbers))
    tell.part(
        "structure",
        _crystal(name, host.formula, dopants)
        | {
            "elements": elements,
            "spacegroup": spacegroup(host.crystal),
            "atoms": len(host.crystal.numbers),
            "remarks": [str(one.message) for one in dropped if issubclass(one.category, UserWarning)],
        },
    )


# -- samples of known content ------------------------------------------------------------------------------------------

_CONTENT: Final = re.compile(r"([A-Z][a-z]?(?:@[A-Z][a-z]?)?)\s*[:=]?\s*(\d+\.?\d*|\.\d+)\s*(?:at\.?)?\s*%?")


def content(name: str, text: str) -> dict[str, float]:
    """Return the concentrations that a text such as ``Al 5, In 2``, in at.%, names.

    Raises:
        ConfigError: It cannot be read, or cannot be.
    """
    if text.strip().lower() == "none":
        return {}
    parts = [part.strip() for part in re.split(r"[,;]", text)]
    found = [_CONTENT.fullmatch(part) for part in parts]
    fix = "Write at.% of all atoms, such as Al 5, In 2.5, or none"
    for part, one in zip(parts, found, strict=True):
        if one is None:
            raise ConfigError(f"content of {name}: {part!r} cannot be read", fix=fix)
        element_index(one[1].partition("@")[0])
    shares = {one[1]: float(one[2]) / 100.0 for one in found if one is not None}
    total = sum(shares.values())
    if len(shares) < len(parts) or not 0.0 < total <= MAX_CONCENTRATION:
        what = "an element is named twice" if len(shares) < len(parts) else f"{100 * total:g} at.%"
        raise ConfigError(f"content of {name}: {what}", fix=f"{fix}; {100 * MAX_CONCENTRATION:g} at most together")
    return shares


def _standards(request: Mapping[str, Any]) -> list[Standard]:
    """Return the samples of a table, or those whose content was typed, each beside the pristine host of the question.

    Raises:
        LabError, SpectrumError, ConfigError: A file or a content cannot be read.
    """
    files = list(request.get("samples") or [])
    names = [str(file["name"]) for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two samples are called {twice}", fix="Give their files different names")
    paths = [_written(file, "samples") for file in files]
    tables = [path for path in paths if _is_table(path)]
    if len(tables) > 1:
        raise ConfigError(f"{tables[0].name} and {tables[1].name} are both tables", fix="Put all samples into one")
    if tables:
        _beside(tables[0], names)
        return [Standard(one.host, one.doped, one.dopants, one.formula) for one in read_table(tables[0], fewest=1)]
    if not paths:
        return []
    contents = list(request.get("contents") or [])
    host = _read(request, "host")[0]
    return [
        Standard(host, _read(request, "doped", path)[0], content(path.name, str(text)))
        for path, text in zip(paths, contents, strict=True)
    ]


def _beside(table: Path, names: list[str]) -> None:
    """Have a table name uploaded files by their names alone: a browser tells no folders.

    Raises:
        ConfigError: It names a file that was not uploaded.
    """
    with suppress(UnicodeDecodeError, csv.Error):  # which is said when it is read
        rows = list(csv.reader(table.read_text(encoding="utf-8-sig").splitlines(), skipinitialspace=True, strict=True))
        titles = next((row for row in rows if "doped_file" in row), [])
        columns = [titles.index(title) for title in ("host_file", "doped_file") if title in titles]
        for row in rows[rows.index(titles) + 1 :] if titles else []:
            for at in columns if len(row) == len(titles) and not row[0].startswith("#") else []:
                if row[at] and plain_name(row[at]) not in names:
                    raise ConfigError(f"{table.name} names {row[at]}, which was not given", fix="Drop that file too")
                row[at] = row[at] and plain_name(row[at])
        with table.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def _is_table(path: Path) -> bool:
    head = path.read_bytes()[:4096]
    return b"doped_file" in head and b"dopants" in head


def samples(request: Mapping[str, Any], tell: Tell) -> None:
    """Tell what is known of samples."""
    tell.part(
        "samples",
        [
            {"file": Path(one.doped.source).name, "content": {name: 100.0 * c for name, c in one.dopants.items()}}
            for one in _standards(request)
        ],
    )


# -- questions ---------------------------------------------------------------------------------------------------------


def identify(request: Mapping[str, Any], tell: Tell) -> None:
    """Answer which dopants: with a pack or a structure by computed spectra, with a formula alone by a network."""
    names = list(request.get("candidates") or []) or None
    pair = [_read(request, role)[0] for role in ("host", "doped")]
    edge = _number(request, "edge_mev")
    if request.get("mode") == "formula" or request.get("quick"):
        _ask_network(request, pair[0], pair[1], names, edge, tell)
        return
    simulated = bool(request.get("same_potential"))
    standards = _standards(request)
    reply = ask_known(
        pair[0],
        pair[1],
        _wanted(request, names, tell),
        standards=standards,
        fwhm_mev=_number(request, "fwhm_mev"),
        edge_mev=edge,
        same_potential=simulated,
        made=tell.made,
        report=tell.progress,
    )
    setup = as_measured(reply.answer, element=pair[0].element, same_potential=simulated)
    tell.part("answer", {"json": reply.to_dict(), "view": _known_view(reply, setup, len(standards))})
    tell.progress("figure", 0, None)
    tell.part("figure", _figure(plot_known(reply.answer)))
    tell.progress("detection limits", 0, None)
    limits = planning.plan(
        reply.crystal,
        setup=setup,
        vary=False,
        report=lambda done, total: tell.progress("detection limits", done, total),
    )
    tell.part("limits", _limits(limits))


def _ask_network(
    request: Mapping[str, Any],
    host: Spectrum,
    doped: Spectrum,
    names: list[str] | None,
    edge: float | None,
    tell: Tell,
) -> None:
    responses = None
    if request.get("quick"):
        network = QUICK_CHECKPOINT
        responses, names = ask_responses(_wanted(request, names, tell), made=tell.made, report=tell.progress)
        formula = responses.formula
    else:
        network = request.get("network") or DEFAULT_CHECKPOINT
        formula = str(request.get("formula") or "").strip()
        parse_formula(formula)
    if network not in bundled():
        raise ConfigError(f"network {network!r} is not bundled", fix=f"Choose one of {', '.join(bundled())}")
    tell.progress("network", 0, None)
    model = from_pretrained(network)
    prediction = model.predict(host, doped, formula, candidates=names, edge=edge, responses=responses)
    view = _network_view(host, doped, prediction, quick=responses is not None)
    tell.part("answer", {"json": prediction.to_dict(), "view": view})
    tell.part("figure", _figure(plot_pair(host, doped, prediction)))


def plan(request: Mapping[str, Any], tell: Tell) -> None:
    """Tell what a measurement would say."""
    setup = planning.Setup(
        kind=request.get("kind") or "total",
        element=(request.get("element") or None) if request.get("kind") == "projected" else None,
        fwhm_mev=_number(request, "fwhm_mev", 3.0),
        noise=_number(request, "noise", 0.02),
    )
    amounts = planning.parse_amounts(str(request.get("amounts") or "1,3,10"))
    wanted = _wanted(request, list(request.get("candidates") or []) or None, tell)
    vary = bool(request.get("vary", True))
    made, remarks = ask_plan(wanted, setup, amounts, vary=vary, made=tell.made, report=tell.progress)
    tell.part("plan", {"json": {**made.to_dict(), "pack": list(remarks)}, "view": _plan_view(made, remarks)})
    tell.progress("figure", 0, None)
    tell.part("figure", _figure(plot_plan(made)))


WORK: Final[dict[str, Callable[[Mapping[str, Any], Tell], None]]] = {
    one.__name__: one for one in (start, read, structure, samples, identify, plan)
}


def _number(request: Mapping[str, Any], name: str, default: float | None = None) -> Any:
    value = request.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}", fix="Give a number")
    return float(value)


def _wanted(request: Mapping[str, Any], names: list[str] | None, tell: Tell) -> CrystalWanted:
    if request.get("mode") == "structure":
        tell.progress("host: found among the bundled, or relaxed and computed", 0, None)
        potential = request.get("potential") or POTENTIALS[0]
        if potential not in POTENTIALS:
            raise ConfigError(f"potential {potential!r} is not bundled", fix=f"Choose {' or '.join(POTENTIALS)}")
        path = _saved(request, "structure")
        return CrystalWanted(structure=path, candidates=names, potential=potential, minutes=_number(request, "minutes"))
    pack = request.get("pack")
    if pack not in bundled_packs():  # a path or a repository is for the command line
        raise ConfigError(f"host {pack!r} is not in the zoo", fix="Choose one of the list, or give a structure")
    return CrystalWanted(pack=pack, candidates=names)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _known_view(reply: KnownReply, setup: planning.Setup, standards: int) -> dict[str, Any]:
    a, p = reply.answer, reply.answer.posterior
    order = np.argsort(-p.probability, kind="stable")
    spread = np.sqrt(a.noise**2 + a.band**2)
    return {
        "way": {
            "title": "Answered by spectra computed for this crystal",
            "text": f"Host {'; '.join(reply.remarks)}.",
            "better": f"Corrected by {standards} sample{'s' if standards > 1 else ''} of known content."
            if standards
            else "Samples of known content, given beside the candidates, would make it better: "
            "they correct what the potential gets wrong.",
        },
        "sentence": sentence(a),
        "verdict": {"state": a.verdict, "text": verdict(a)},
        "notes": [] if reply.parting is None else [str(reply.parting)],
        "about": f"{_kind(a.kind, None)}, band edge {a.edge_mev:.1f} meV, {a.fwhm_mev:.2g} meV wide; {a.pooled}",
        "warnings": list(a.warnings),
        "coverage": p.coverage,
        "something_else": p.other,
        "something_else_name": something_else(a),
        "rows": [
            {
                "element": p.elements[i],
                "probability": float(p.probability[i]),
                "found": p.elements[i] in a.present,
                "amount": 100 * float(p.if_present[i]),
                "low": 100 * float(p.low[i]),
                "high": 100 * float(p.high[i]),
                "upper": 100 * float(a.upper_limit[i]),
            }
            for i in order
        ],
        "curves": {
            "x": _list(a.energy_mev),
            "edge_mev": a.edge_mev,
            "host": _list(a.pristine),
            "doped": _list(a.pristine + a.measured),
            "answer": _list(a.pristine + a.predicted),
            "change": {
                "x": _list(a.energy_mev),
                "measured": _list(a.measured),
                "predicted": _list(a.predicted),
                "low": _list(a.predicted - 2.0 * a.band),
                "high": _list(a.predicted + 2.0 * a.band),
            },
            "rest": _list((a.measured - a.predicted) / spread),
        },
        "setup": {"kind": setup.kind, "element": setup.element, "fwhm_mev": setup.fwhm_mev, "noise": setup.noise},
    }


def _network_view(host: Spectrum, doped: Spectrum, p: Prediction, *, quick: bool) -> dict[str, Any]:
    article = "the " if p.answered_by.startswith("network") else ""
    packs = [] if quick else [file.folder.name for file in bundled_packs_of(p.formula)]
    title = f"Answered by a network from the formula alone ({p.model}): a hint"
    better = (
        f"The zoo has {' and '.join(packs)}: choose it as the crystal, "
        if packs
        else "Give the structure (CIF, POSCAR), "
    ) + "and what each candidate does to the spectrum is computed."
    if quick:
        title = f"Answered by a network that reads what is computed of this crystal ({p.model}): a hint"
        better = (
            "Asked without a quick answer, spectra are computed and compared, which finds more and is surer of amounts."
        )
    energy, pristine = _unit_area(host, None)
    _, sample = _unit_area(doped, energy)
    curves: dict[str, Any] = {
        "x": _short(energy),
        "edge_mev": None if math.isnan(p.edge_mev) else p.edge_mev,
        "host": _short(pristine),
        "doped": _short(sample),
        "change": {"x": _short(energy), "measured": _short(sample - pristine)},
    }
    if p.fit is not None and p.found:
        fit = p.fit
        curves["change"] = {
            "x": _list(fit.energy_mev),
            "measured": _list(fit.measured),
            "predicted": _list(fit.predicted),
            "rest": _list(fit.measured - fit.predicted),
        }
    explained = "" if math.isnan(p.explained) else f" ({p.explained:.0%} of its change)"
    verdicts = {
        "explains": "The elements found explain the change of the spectrum",
        "explains part": "The elements found explain only part of the change of the spectrum",
        "does not explain": "The change of the spectrum is not explained",
        "not known": "Whether the answer explains the spectrum is not known",
    }
    return {
        "way": {
            "title": title,
            "text": f"Answered by {article}{p.answered_by}{': ' + p.reason if p.reason else ''}.",
            "better": better,
            "packs": packs,
        },
        "sentence": p.sentence,
        "verdict": {"state": p.verdict, "text": f"{verdicts[p.verdict]}{explained}."},
        "notes": [f"An element counts as found from a probability of {p.threshold:.2f} on."],
        "about": f"{_kind(p.kind, None)} in {p.unit}"
        + ("" if math.isnan(p.edge_mev) else f", band edge {p.edge_mev:.1f} meV"),
        "warnings": list(p.warnings),
        "coverage": None if math.isnan(p.coverage) else p.coverage,
        "something_else": None if math.isnan(p.something_else) else p.something_else,
        "rows": [
            {
                "element": p.elements[i],
                "probability": float(p.probability[i]),
                "found": p.elements[i] in p.found,
                "amount": 100 * float(p.concentration_if_present[i]),
                "low": _percent(p.low[i]),
                "high": _percent(p.high[i]),
                "upper": _percent(p.high[i]),
            }
            for i in p.order
        ],
        "curves": curves,
    }


def _plan_view(made: planning.Plan, remarks: tuple[str, ...]) -> dict[str, Any]:
    s = made.setup
    rows = []
    for i, one in enumerate(made.detections):
        rows.append(
            {
                "dopant": one.dopant,
                "limit": _percent(one.limit),
                "text": planning.percent(one.limit, one.room),
                "named": planning.percent(one.named, one.room),
                "intervals": [None if pair is None else [100 * pair[0], 100 * pair[1]] for pair in one.intervals],
                "apart": planning.look_alikes(made, i),
                "by_instrument": [
                    [planning.percent(v, one.room) for v in made.by_instrument[i, :, n]]
                    for n in range(len(made.noises))
                ]
                if made.by_instrument.size
                else None,
                "by_standards": [planning.percent(v, one.room) for v in made.by_standards[i]]
                if made.by_standards.size
                else None,
            }
        )
    return {
        "sentence": planning.sentence(made),
        "about": f"{_kind(s.kind, s.element)}, {s.fwhm_mev:.3g} meV wide, noise {100 * s.noise:.3g} %; compared "
        f"{made.fwhm_mev:.3g} meV wide; {'; '.join(remarks)}",
        "elements": list(parse_formula(made.formula)),
        "amounts": [100 * a for a in made.amounts],
        "rows": rows,
        "fwhm_mev": s.fwhm_mev,
        "fwhms_mev": list(made.fwhms_mev),
        "noises": list(made.noises),
        "times": [(s.noise / n) ** 2 if n else None for n in made.noises],
        "standards": list(made.standards),
        "power": planning.POWER,
        "false_alarms": planning.FALSE_ALARMS,
    }


def _limits(made: planning.Plan) -> dict[str, Any]:
    """Return the lowest detection limit of each element, over its sites."""
    best: dict[str, planning.Detection] = {}
    for one in made.detections:
        symbol = one.dopant.partition("@")[0]
        if symbol not in best or (one.limit or np.inf) < (best[symbol].limit or np.inf):
            best[symbol] = one
    return {
        "elements": {s: planning.percent(one.limit, one.room) for s, one in best.items()},
        "power": planning.POWER,
        "false_alarms": planning.FALSE_ALARMS,
        "noise": made.setup.noise,
    }


def _kind(kind: str, element: str | None) -> str:
    return f"{kind} DOS" if element is None else f"DOS projected on {element}"


def _percent(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else 100 * float(value)


def _unit_area(spectrum: Spectrum, energy: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """Return energies in meV, those given or the spectrum's own, and the DOS there, of unit area."""
    unit = spectrum.to("meV").normalised()
    if energy is None:
        return unit.energy, unit.dos
    return energy, np.interp(energy, unit.energy, unit.dos, left=0.0, right=0.0)


def _list(values: FloatArray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _short(values: FloatArray) -> list[float]:
    """Return at most `POINTS` values of a curve, evenly chosen."""
    return _list(values[:: max(1, -(-len(values) // POINTS))])


def _figure(figure: Figure) -> dict[str, str]:
    out = {}
    for form in FIGURES:
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=160)
        out[form] = base64.b64encode(file.getvalue()).decode()
    return out
