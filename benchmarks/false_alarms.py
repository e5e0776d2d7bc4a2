"""How often a model names dopants that are not there: ``python benchmarks/false_alarms.py --json``.

Test crystals as files would show them: points of energy and DOS, with noise, background or another instrument, asked
through `predict_many` as a user asks. Of undoped samples it counts those of which the answer names a dopant; of doped
ones those of which it names an element although the list holds no true dopant; of complete lists what is found.

    D=data/defectnet-sim-v2/defectnet-nep
    python benchmarks/false_alarms.py --data $D --packs data/known-crystal-v1/packs --kinds total --hosts 5 --json

asks known-crystal inference instead, of crystals simulated with another potential than their packs'; candidates are
what the pack holds, at most eight.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from defectnet import Spectrum, from_pretrained
from defectnet.benchmark.known_crystal import CANDIDATES
from defectnet.config import STORAGE_GRID
from defectnet.crystal.pack import HostPack
from defectnet.data.candidates import LIKENESS, TrackSettings, questions
from defectnet.data.dataset import index_folder
from defectnet.data.packs import find_packs
from defectnet.data.shards import Row, Sample, projected_pairs, read_shard
from defectnet.elements import INDEX, NEUTRON_WEIGHT, VOCABULARY, multi_hot
from defectnet.errors import SpectrumError
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.measure.broadening import broaden
from defectnet.models.base import DefectModel, Query
from defectnet.prediction import Prediction
from defectnet.rng import row_rng
from defectnet.spectrum import KINDS

LEVELS = (0.002, 0.005, 0.01, 0.02)
"""Standard deviation of a point, of the maximum."""
ENDS = (1.0, 1.5, 2.0, 3.0)
LEAST_TOTAL = 0.03
POINTS, FWHM_MEV = 300, 1.0


class Instrument(NamedTuple):
    """How one spectrum comes about.

    Attributes:
        end: Last energy, in units of the edge.
        noise: Standard deviation of a point, of the maximum, the same everywhere.
        counting: The same at the maximum, falling with the root of the signal.
        background: Area of a smooth background, of that of the DOS up to the edge.
        fwhm_mev: Resolution.
        axis: Energy that is read over the true one.
        points: How many.
        start: First energy, in units of the edge.
    """

    end: float = 2.0
    noise: float = 0.0
    counting: float = 0.0
    background: float = 0.0
    fwhm_mev: float = FWHM_MEV
    axis: float = 1.0
    points: int = POINTS
    start: float = 0.0


PLAIN = Instrument()
APART: dict[str, tuple[Instrument, Instrument]] = {
    "two measurements, 1 % counting noise": (PLAIN._replace(counting=0.01),) * 2,
    "two measurements, 0.5 % constant noise": (PLAIN._replace(noise=0.005),) * 2,
    "background of 1 % in one": (PLAIN, PLAIN._replace(background=0.01)),
    "background of 4 % in one": (PLAIN, PLAIN._replace(background=0.04)),
    "resolution of 1.0 and 1.1 meV": (PLAIN, PLAIN._replace(fwhm_mev=1.1)),
    "resolution of 1.0 and 1.5 meV": (PLAIN, PLAIN._replace(fwhm_mev=1.5)),
    "axis off by 0.5 %": (PLAIN, PLAIN._replace(axis=1.005)),
    "axis off by 1 %": (PLAIN, PLAIN._replace(axis=1.01)),
    "lowest tenth cut off in one": (PLAIN, PLAIN._replace(start=0.1)),
    "300 and 900 points": (PLAIN, PLAIN._replace(points=900)),
    "300 and 900 points, 0.5 % constant noise": (PLAIN._replace(noise=0.005), PLAIN._replace(noise=0.005, points=900)),
}
"""Host and sample on two instruments."""


def curve(sample: Sample, doped: bool, kind: str, see: Instrument, rng: np.random.Generator) -> Spectrum:
    """Return a spectrum of a row as a file would hold it."""
    row = Row.of(sample)
    pairs = projected_pairs([row])
    weights = np.ones(len(row.elements))
    element = sample.host_elements[0]
    if kind == "neutron-weighted":
        weights = NEUTRON_WEIGHT[row.elements]
    elif kind == "projected":
        weights = (row.elements == INDEX[element]).astype(float)
    one = np.ones(1)
    dos = broaden(pairs.curves(weights), pairs.edge_mev, see.fwhm_mev * one, one)[0, int(doped)].astype(float)
    x = np.linspace(max(see.start, see.end / see.points), see.end, see.points)
    y = np.interp(x, STORAGE_GRID.centres, dos, left=0.0)
    if see.background:
        shape = np.stack([np.ones(len(x)), (1.0 - x / 3.0) ** 2, x / 3.0])
        mixed = rng.dirichlet(np.ones(3)) @ shape
        y = y + mixed * see.background * dos.sum() * STORAGE_GRID.width / max(np.trapezoid(mixed, x), 1e-9)
    peak = y.max()
    noise = see.noise * peak * rng.standard_normal(len(x))
    noise += see.counting * np.sqrt(np.maximum(y, 0.0) * peak) * rng.standard_normal(len(x))
    energy = x * sample.edge_mev * see.axis
    return Spectrum(energy, y + noise, "meV", kind=kind, element=element if kind == "projected" else None)


class Answer(NamedTuple):
    """What is counted of an answer: elements that it names, and the probability of something else."""

    found: tuple[str, ...]
    something_else: float


class Packs:
    """Known-crystal inference, asked as a model is.

    Attributes:
        held: Host id -> elements that its pack can put in, the likeliest first.
    """

    def __init__(self, folder: str) -> None:
        self.files = {one.id: one for one in find_packs(folder)}
        self.packs = {name: HostPack.load(one.folder) for name, one in self.files.items()}
        self.held = {
            name: list(dict.fromkeys(x.partition("@")[0] for x in pack.dopants)) for name, pack in self.packs.items()
        }
        self._last: tuple[tuple[str, tuple[str, ...]], KnownCrystal] | None = None

    def predict_many(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer questions; `formula` holds the host's id."""
        answers = []
        for query in queries:
            key = query.formula, tuple(query.candidates or ())
            if self._last is None or self._last[0] != key:
                self._last = key, KnownCrystal(self.packs[query.formula], query.candidates)
            found = self._last[1].identify(query.host, query.doped)
            answers.append(Answer(found.present, found.posterior.other))
            print(query.formula, found.present, file=sys.stderr, flush=True)
        return answers


def of_packs(samples: Sequence[Sample], packs: Packs, kinds: Sequence[str]) -> Iterator[Case]:
    """Yield the same questions with candidates that packs hold, and hosts by their id."""
    for sample in samples:
        names = packs.held[sample.host_id][:CANDIDATES]
        for case in undoped([sample], 1, kinds):
            if case.group.endswith("candidates"):
                yield case._replace(query=case.query._replace(formula=sample.host_id, candidates=names))
            elif case.group.endswith("refused"):
                yield case


def doped_of_packs(samples: Sequence[Sample], packs: Packs) -> Iterator[Case]:
    """Yield doped pairs whose list holds no true dopant, and complete lists."""
    for sample in samples:
        held, true = packs.held[sample.host_id], frozenset(sample.dopants)
        rng = row_rng("false alarms", sample.row_id)
        host, other = (curve(sample, part, "total", PLAIN, rng) for part in (False, True))
        wrong = [name for name in held if name not in true][:CANDIDATES]
        if sum(sample.concentrations.values()) >= LEAST_TOTAL and wrong:
            one = [str(rng.choice(wrong))]
            yield Case("doped, no true dopant, one candidate", "", Query(host, other, sample.host_id, one), true)
            yield Case("doped, no true dopant, a list", "", Query(host, other, sample.host_id, wrong), true)


def named(sample: Sample, rng: np.random.Generator, *, missing: bool) -> list[str]:
    """Return candidates as the benchmark draws them; without the true dopants if they shall be missing."""
    settings = TrackSettings(open_share=float(missing), missing_all=float(missing))
    hosts, dopants = multi_hot(sample.host_elements)[None], multi_hot(sample.dopants)[None]
    mask, _ = questions(hosts, dopants, "candidates", settings, [rng])
    return [VOCABULARY[i] for i in np.flatnonzero(mask[0])]


def twin(sample: Sample) -> list[str]:
    """Return the element that is most like the main dopant and neither a dopant nor the host's."""
    main = max(sample.concentrations, key=lambda symbol: sample.concentrations[symbol])
    free = ~(multi_hot(sample.host_elements) | multi_hot(sample.dopants))
    return [VOCABULARY[int(np.argmax(np.where(free, LIKENESS[INDEX[main]], -1.0)))]]


class Case(NamedTuple):
    """A question, and what it counts for."""

    group: str
    part: str
    query: Query
    true: frozenset[str]


def undoped(samples: Sequence[Sample], draws: int, kinds: Sequence[str] = KINDS) -> Iterator[Case]:
    """Yield undoped pairs: constant noise, and two instruments."""
    for sample in samples:
        for draw in range(draws):
            for kind in kinds:
                plans: list[tuple[str, str, tuple[Instrument, Instrument]]] = []
                for level in LEVELS:
                    for end in ENDS:
                        see = PLAIN._replace(noise=level, end=end)
                        plans.append(("constant noise", f"{level:.1%}, {end:g} edges, {kind}", (see, see)))
                plans += [("two instruments", name, pair) for name, pair in APART.items()]
                for group, part, pair in plans:
                    rng = row_rng("false alarms", sample.row_id, part, kind, draw)
                    try:
                        spectra = [curve(sample, False, kind, see, rng) for see in pair]
                    except SpectrumError:
                        yield Case(f"undoped, {group}, refused", part, Query("", "", ""), frozenset())
                        continue
                    for track, asked in (("candidates", named(_pure(sample), rng, missing=False)), ("blind", None)):
                        query = Query(*spectra, sample.formula, asked)
                        yield Case(f"undoped, {group}, {track}", part, query, frozenset())


def _pure(sample: Sample) -> Sample:
    return replace(sample, dopants=(), dopant_counts=())


def doped(samples: Sequence[Sample]) -> Iterator[Case]:
    """Yield doped pairs, clean and with 0.5 % constant noise, with lists that are wrong, and that are complete."""
    for sample in samples:
        for condition, see in {"clean": PLAIN, "noisy": PLAIN._replace(noise=0.005)}.items():
            rng = row_rng("false alarms", sample.row_id, condition)
            try:
                host, other = (curve(sample, part, "total", see, rng) for part in (False, True))
            except SpectrumError:
                yield Case("doped, refused", condition, Query("", "", ""), frozenset())
                continue
            true = frozenset(sample.dopants)
            many = sum(sample.concentrations.values()) >= LEAST_TOTAL
            wrong = named(sample, rng, missing=True)
            lists = {
                "no true dopant, one candidate": [str(rng.choice(wrong))],
                "no true dopant, a list": wrong,
                "no true dopant, its twin": twin(sample),
                "complete list": named(sample, rng, missing=False),
                "blind": None,
            }
            for name, asked in lists.items():
                if many or name in ("complete list", "blind"):
                    yield Case(f"doped, {name}", condition, Query(host, other, sample.formula, asked), true)


def ask(model: DefectModel | Packs, cases: Sequence[Case], chunk: int = 64) -> list[Prediction | Answer | None]:
    """Answer all questions; None where the files are refused."""
    found: list[Prediction | Answer | None] = []
    for begin in range(0, len(cases), chunk):
        part = cases[begin : begin + chunk]
        try:
            found += model.predict_many([case.query for case in part])
        except SpectrumError:
            for case in part:
                try:
                    found += model.predict_many([case.query])
                except SpectrumError:
                    found.append(None)
    return found


def summary(cases: Sequence[Case], answers: Sequence[Prediction | Answer | None]) -> dict[str, Any]:
    """Count by group and by part."""
    groups: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for case, answer in zip(cases, answers, strict=True):
        groups[case.group][case.part].append((case, answer))
    return {
        name: {"all": _count([x for part in parts.values() for x in part])}
        | {part: _count(found) for part, found in parts.items()}
        for name, parts in groups.items()
    }


def _count(found: Sequence[tuple[Case, Prediction | Answer | None]]) -> dict[str, float]:
    answered = [(case, answer) for case, answer in found if answer is not None]
    count: dict[str, float] = {"pairs": len(found), "refused": len(found) - len(answered)}
    if not answered:
        return count
    count["some dopant named"] = round(float(np.mean([bool(a.found) for _, a in answered])), 4)
    other = [getattr(a, "something_else", float("nan")) for _, a in answered]
    if not np.isnan(other).all():
        count["something else"] = round(float(np.nanmean(other)), 3)
    if any(case.true for case, _ in answered):
        count["named"] = round(float(np.mean([len(a.found) for _, a in answered])), 3)
        count["of them right"] = round(float(np.mean([len(set(a.found) & c.true) for c, a in answered])), 3)
        count["true"] = round(float(np.mean([len(c.true) for c, _ in answered])), 3)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="names or folders; defectnet-base and defectnet-small")
    parser.add_argument("--data", default="data/defectnet-sim-v1", help="folder of shards")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--hosts", type=int, default=10, help="undoped crystals")
    parser.add_argument("--rows", type=int, default=300, help="doped samples")
    parser.add_argument("--draws", type=int, default=1, help="of noise for each undoped crystal")
    parser.add_argument(
        "--packs", help="folder of host packs of the crystals of the data: asks known-crystal inference"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of the undoped pairs")
    parser.add_argument("--json", action="store_true", help="print JSON, with all parts")
    options = parser.parse_args()
    index = index_folder(options.data, options.split)
    order = np.random.default_rng(0).permutation(len(index))
    samples: list[Sample] = []
    for number in sorted(order[: options.rows].tolist()):
        path, row = index.paths[index.shard[number]], int(index.row[number])
        samples += [sample for i, sample in enumerate(read_shard(path)) if i == row]
    hosts = list({sample.host_id: sample for sample in samples}.values())
    hosts = [hosts[i] for i in np.random.default_rng(1).permutation(len(hosts))[: options.hosts]]
    with_dopants = [sample for sample in samples if sample.dopants]
    models: dict[str, DefectModel | Packs]
    if options.packs:
        packs = Packs(options.packs)
        models = {"known crystal": packs}
        cases = [*of_packs(hosts, packs, options.kinds), *doped_of_packs(with_dopants, packs)]
    else:
        models = {name: from_pretrained(name) for name in options.model or ("defectnet-base", "defectnet-small")}
        cases = [*undoped(hosts, options.draws, options.kinds), *doped(with_dopants)]
    report: dict[str, Any] = {"split": options.split, "hosts": [sample.host_id for sample in hosts]}
    for name, model in models.items():
        askable = [case for case in cases if case.query.formula]
        report[name] = summary(askable, ask(model, askable))
        report[name] |= summary(refused, [None] * len(refused)) if (refused := _refused(cases)) else {}
    if options.json:
        print(json.dumps(report, indent=1))
        return
    for name, groups in report.items():
        if isinstance(groups, dict):
            print(name, *(f"  {group}: {parts['all']}" for group, parts in groups.items()), sep="\n")


def _refused(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if not case.query.formula]


if __name__ == "__main__":
    main()
