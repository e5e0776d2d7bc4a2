"""The parts of the suite, run one item after another; results are kept after each, so that a run can be resumed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from defectnet.crystal.hosts import read_hosts
from defectnet.errors import SimulationError
from defectnet.files import file_sha256, replacing
from defectnet.potentials.potential import Potential
from physics_suite import alloys, heldout, library, local_modes, stability
from physics_suite.cells import Failed, Vibrating, pristine, textbook
from physics_suite.local_modes import Impurity, LocalMode
from physics_suite.summary import SUMMARIES

SCHEMA = 1
"""Of the results."""

Record = dict[str, Any]
Items = dict[str, Callable[[], Record]]

GE_SHARES = (0.3, 0.5, 0.7)
AL_SHARES = (0.1, 0.25)
PT_SHARE = 0.0625
BORON_SITES = ("Si:B_Si", "GaP:B_Ga")


@dataclass
class Context:
    """What the parts share.

    Attributes:
        potential: The potential that is looked at.
        facts: Folder with the tables of facts.
        teacher: File with the teacher's curves.
        hosts: The project's list of crystals.
        skipped: By part, what is left out and why.
    """

    potential: Potential
    facts: Path
    teacher: Path
    hosts: Path = Path("data/hosts.json.xz")
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    _hosts: dict[str, Vibrating] = field(default_factory=dict)
    _impurities: dict[tuple[str, str], Impurity] = field(default_factory=dict)

    def host(self, name: str) -> Vibrating:
        """Return a relaxed textbook crystal, computed once."""
        if name not in self._hosts:
            self._hosts[name] = pristine(self.potential, textbook(name))
        return self._hosts[name]

    def impurity(self, mode: LocalMode) -> Impurity:
        """Return the relaxed cell of an impurity, computed once for all its isotopes."""
        key = (mode.host, mode.site)
        if key not in self._impurities:
            self._impurities[key] = local_modes.impurity(self.potential, self.host(mode.host), mode)
        return self._impurities[key]


def pristine_crystals(context: Context) -> Items:
    """Part a: crystals with a computed DOS."""
    found, skipped = library.read_library(context.facts)
    context.skipped["a"] = skipped
    found.sort(key=lambda reference: (len(reference.crystal), reference.file))
    return {reference.file: partial(library.compare, context.potential, reference) for reference in found}


def impurities(context: Context) -> Items:
    """Part b: local modes."""
    rows = local_modes.read_csv(context.facts / "local_modes.csv")
    context.skipped["b"] = {
        f"{row['host']}:{row['site']} {row['freq_cm1']}": row["use"] for row in rows if row["use"].startswith("not")
    }

    def compute(mode: LocalMode) -> Record:
        try:
            return local_modes.record(context.impurity(mode), mode)
        except Failed as reason:
            return {"failed": str(reason), "scored": mode.scored}

    return {mode.key: partial(compute, mode) for mode in local_modes.read_local_modes(context.facts)}


def isotopes(context: Context) -> Items:
    """Part c: 10B against 11B."""
    modes = {mode.key: mode for mode in local_modes.read_local_modes(context.facts)}

    def compute(site: str) -> Record:
        light, heavy = modes[f"{site} 10B"], modes[f"{site} 11B"]
        return local_modes.isotope_shift(context.impurity(light), light, heavy)

    return {site: partial(compute, site) for site in BORON_SITES}


def silicon_germanium(context: Context) -> Items:
    """Part d: the three lines of SiGe, in four times 216 atoms; twice 64 where atoms are displaced one by one."""
    size = (3, 4) if context.potential.exact else (2, 2)
    return {f"x={x:g}": partial(alloys.sige, context.potential, context.facts, x, *size) for x in GE_SHARES}


def magnesium_diboride(context: Context) -> Items:
    """Part e: MgB2, and Al in it: 192 atoms, or 81."""
    repeats = 4 if context.potential.exact else 3

    def pure() -> Record:
        return alloys.mgb2_host(context.host("MgB2"), context.facts)

    def doped(share: float) -> Record:
        return alloys.mgb2_al(context.potential, context.host("MgB2"), share, repeats)

    return {"MgB2": pure, **{f"Al x={x:g}": partial(doped, x) for x in AL_SHARES}}


def vanadium(context: Context) -> Items:
    """Part f: Pt in V: 128 atoms, or 54."""
    repeats = 4 if context.potential.exact else 3

    def compute() -> Record:
        return alloys.vanadium_platinum(context.potential, context.host("V"), PT_SHARE, repeats)

    return {"V:Pt": compute}


def against_teacher(context: Context) -> Items:
    """Part g: student against teacher."""
    name, taught = heldout.read_taught(context.teacher)
    context.skipped["g"] = {item.start.key: f"{name}: {item.failed}" for item in taught if item.failed}
    good = [item for item in taught if not item.failed]
    return {item.start.key: partial(heldout.compare, context.potential, item) for item in good}


def hosts_hold(context: Context) -> Items:
    """Part h: imaginary modes of the hosts that the teacher was asked about, those among them that it does not hold."""
    _, taught = heldout.read_taught(context.teacher)
    asked = [item for item in taught if item.start.kind == "pristine"]

    def compute(item: heldout.Taught) -> Record:
        try:
            return stability.imaginary(context.potential, item)
        except Failed as reason:
            return {"failed": str(reason), "teacher_unstable": stability.teacher_unstable(item)}

    return {item.start.key: partial(compute, item) for item in asked}


def cells_relax(context: Context) -> Items:
    """Part i: relaxation of doped cells."""
    starts = stability.choose_cells(read_hosts(context.hosts))
    return {start.key: partial(stability.relaxes, context.potential, start) for start in starts}


@dataclass(frozen=True)
class Part:
    """One part of the suite.

    Attributes:
        title: One line.
        items: Makes the items, each a function that computes one record.
        reads: The file that it depends on, if there is one that a user may change: then all is computed anew.
    """

    title: str
    items: Callable[[Context], Items]
    reads: Callable[[Context], Path] | None = None


PARTS: dict[str, Part] = {
    "a": Part("pristine crystals against density-functional theory", pristine_crystals),
    "b": Part("local modes of impurities against measurements", impurities),
    "c": Part("isotope shift 10B/11B", isotopes),
    "d": Part("three Raman lines of Si1-xGex", silicon_germanium),
    "e": Part("MgB2 and Al in it", magnesium_diboride),
    "f": Part("V stiffens with Pt", vanadium),
    "g": Part(
        "student against teacher, held-out crystals and doped cells", against_teacher, lambda context: context.teacher
    ),
    "h": Part("imaginary modes of held-out hosts", hosts_hold, lambda context: context.teacher),
    "i": Part("doped cells of held-out hosts come to rest", cells_relax, lambda context: context.hosts),
}


def parse_parts(text: str) -> list[str]:
    """Read ``a,b,d``.

    Raises:
        SimulationError: A part is unknown, or none is named.
    """
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    for part in parts or [""]:
        if part not in PARTS:
            known = ", ".join(f"{letter} ({entry.title})" for letter, entry in PARTS.items())
            raise SimulationError(f"part {part!r} of the physics suite is unknown", fix=f"Known are {known}")
    return sorted(set(parts))


def run(context: Context, parts: Sequence[str], out: Path, say: Callable[[str], None] = lambda _: None) -> Record:
    """Run parts of the suite; what `out` holds already is kept.

    Args:
        context: The potential and the facts.
        parts: Letters of `PARTS`.
        out: Results, JSON; written after each item.
        say: Is told of each item.

    Returns:
        The results, of all parts that `out` holds.

    Raises:
        SimulationError: A table is missing, or `out` holds results of something else.
    """
    results = _begin(context.potential, out)
    # Before hours are spent: a part that cannot run is known now.
    wanted = {part: PARTS[part].items(context) for part in parts}
    for part, items in wanted.items():
        entry = results["parts"].setdefault(part, {"title": PARTS[part].title, "items": {}})
        entry["skipped"] = context.skipped.get(part, {})
        reads = PARTS[part].reads
        if reads is not None:
            found = file_sha256(reads(context))
            if entry.setdefault("input_sha256", found) != found:
                say(f"{part}: {reads(context)} has changed, all is computed anew")
                entry.update(input_sha256=found, items={})
        for number, (key, compute) in enumerate(items.items(), 1):
            if key in entry["items"]:
                continue
            start = time.perf_counter()
            try:
                record = compute()
            except Failed as reason:
                record = {"failed": str(reason)}
            record["seconds"] = round(time.perf_counter() - start, 1)
            entry["items"][key] = record
            _write(results, out)
            say(f"{part} {number}/{len(items)} {key}: {record.get('failed', 'done')}, {record['seconds']:g} s")
        entry["items"] = {key: entry["items"][key] for key in items}
        entry["summary"] = SUMMARIES[part](entry["items"])
    results["parts"] = dict(sorted(results["parts"].items()))
    spent = [record["seconds"] for entry in results["parts"].values() for record in entry["items"].values()]
    results["seconds"] = round(sum(spent), 1)
    _write(results, out)
    return results


def _begin(potential: Potential, out: Path) -> Record:
    """Return the results so far, or empty ones."""
    empty: Record = {"schema": SCHEMA, "suite": "defectnet physics", "parts": {}}
    empty["potential"] = {"name": potential.name, "sha256": potential.sha256}
    if not out.exists():
        return empty
    results = read_results(out)
    if results["potential"]["sha256"] != potential.sha256:
        raise SimulationError(
            f"results {out} are of another potential",
            why=f"{results['potential']['name']}, not {potential.name}",
            fix="Give another file with --out, or remove this one",
        )
    return results


def read_results(path: Path) -> Record:
    """Read results.

    Raises:
        SimulationError: The file is missing, or holds no results of this schema.
    """
    fix = "Give a file that benchmarks/physics.py wrote"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SimulationError(f"results {path} cannot be read", why=str(error)[:120], fix=fix) from error
    if not isinstance(results, dict) or not {"schema", "potential", "parts"} <= set(results):
        raise SimulationError(f"results {path} are none of the physics suite", fix=fix)
    if results["schema"] != SCHEMA:
        raise SimulationError(
            f"results {path} have schema {results['schema']!r}, this version reads {SCHEMA}", fix="Run the suite again"
        )
    return dict(results)


def _write(results: Record, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        text = json.dumps(results, indent=1)
        # A curve on one line: a hundred lines of one number each are no easier to read.
        text = re.sub(r"\[\s+([^\[\]{}\"]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        temporary.write_text(text + "\n", encoding="utf-8")
