"""Labels for `python -m defectnet.distil fit`: a slow potential follows doped and pristine cells of training crystals.

    python examples/make_labels.py --teacher nequix --known data/teacher/labels-*.npz --out labels-9.npz --count 500

It follows them to near their equilibrium.
A fast potential's Hessian preconditions the descent, so that few calls of the slow one suffice; then the cell is
rattled, because differences between rattled cells carry its curvature.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import spglib
from numpy.typing import NDArray

from defectnet.config import Bounded, bounded
from defectnet.crystal.doping import build, draw_mix
from defectnet.crystal.hosts import Host, read_hosts
from defectnet.data.splits import split_of
from defectnet.distil.__main__ import HOSTS
from defectnet.distil.labels import Record, read_labels, write_labels
from defectnet.elements import NUMBERS, VOCABULARY, element_index
from defectnet.errors import ConfigError, DefectNetError, SimulationError
from defectnet.files import replacing
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.nep import EnergyForcesStress
from defectnet.potentials.potential import ManyPotential, Potential, load_potential
from defectnet.potentials.relax import CellMode, relax
from defectnet.potentials.supercells import supercell, supercell_matrix
from defectnet.simulate.batching import BatchedPotential

LIGHT = ("Be", "B", "C", "N", "O", "F", "Si", "P", "S")
"""Dopants whose local modes lie above a host's band: labels of them are always too few."""

BLOCK = 20
"""Structures, times those side by side, after which the file is written."""

FARTHEST = 25.0
"""A cell with a greater force component, eV/angstrom, teaches nothing about phonons."""

NEAREST = 2.0
"""Greatest force component, eV/angstrom, that the guide sees in a cell of its path that is labelled."""

WIDEST = 0.4
"""Greatest change of volume along the guide's path of a cell that is labelled: beyond, atoms part."""


@dataclass(frozen=True)
class LabelSettings(Bounded, called="labels"):
    """How labels are drawn.

    Attributes:
        atoms: Fewest, wanted and most atoms of a cell.
        pristine: Share of cells without dopants.
        light: Share of doped cells whose dopants are all of `light_dopants`.
        highest: Greatest concentration of all dopants together.
        cell: Of a doped cell that the guide relaxes: ``fixed``, or ``volume`` where many atoms are replaced.
        strain: Standard deviation of each component of a random strain.
        raw: Share of doped cells that the teacher sees as substituted; the others are relaxed by the guide first.
        swelling: Standard deviation of a uniform strain of the last rattled cell, which tells of the bulk modulus.
        evaluations: Force calls of a descent.
        rattles: Standard deviations of the displacements of rattled cells, angstrom.
        astray: If above 0, the guide relaxes all of every cell, and only those whose volume it changes by more than
            this share are labelled, along its path: a student, as guide, is told where it goes astray.
    """

    atoms: tuple[int, int, int] = (28, 40, 55)
    pristine: float = 0.15
    light: float = bounded(0.35, 0.0, 1.0)
    light_dopants: tuple[str, ...] = LIGHT
    highest: float = bounded(0.25, above=0.0, below=1.0)
    cell: CellMode = "fixed"
    strain: float = 0.007
    raw: float = 0.2
    swelling: float = 0.015
    evaluations: int = 4
    rattles: tuple[float, ...] = (0.015, 0.025, 0.04)
    astray: float = bounded(0.0, 0.0, below=WIDEST)

    def __post_init__(self) -> None:
        for symbol in self.light_dopants:
            element_index(symbol, field="light_dopants")
        super().__post_init__()


DEFAULT = LabelSettings()


class _Recorder:
    """A potential that keeps what it was asked."""

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.name, self.sha256, self.exact = potential.name, potential.sha256, potential.exact
        self.kept: list[tuple[Crystal, EnergyForcesStress]] = []

    def check(self, crystal: Crystal) -> None:
        self.potential.check(crystal)

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        said = self.potential.evaluate(crystal)
        self.kept.append((crystal, said))
        return said

    def force_constants(self, crystal: Crystal) -> ForceConstants:
        return self.potential.force_constants(crystal)


def choose_hosts(
    hosts: Sequence[Host], space_groups: Sequence[int] = (), elements: int | None = None, largest: int = 40
) -> list[Host]:
    """Return the crystals that may teach: none of the test split, and of some space groups only if any are given.

    Args:
        hosts: All.
        space_groups: Numbers of the International Tables; every one if there are none.
        elements: Most elements in a host; any number by default.
        largest: Most atoms of a host's cell.

    Raises:
        SimulationError: None is left.
    """
    found = []
    for host in hosts:
        crystal = host.crystal
        if len(crystal) > largest or split_of(host.chemical_system) == "test":
            continue
        if elements is not None and len(set(crystal.numbers.tolist())) > elements:
            continue
        if space_groups:
            cell = (crystal.cell.tolist(), crystal.frac.tolist(), crystal.numbers.tolist())
            data = spglib.get_symmetry_dataset(cell, symprec=0.02)
            if data is None or data.number not in space_groups:
                continue
        found.append(host)
    if not found:
        raise SimulationError("no host is left to make labels from", fix="Give more hosts, or other space groups")
    return found


def host_weights(hosts: Sequence[Host], known: Counter[int]) -> NDArray[np.float64]:
    """Return the chance of each host: those of elements that few labelled structures hold come more often.

    Args:
        hosts: From `choose_hosts`.
        known: Atomic number -> structures with labels.
    """
    weights = np.array([np.mean([1.0 / (20 + known[z]) for z in set(h.crystal.numbers.tolist())]) for h in hosts])
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


def label_one(
    teacher: Potential, fast: Potential, host: Host, rng: np.random.Generator, settings: LabelSettings = DEFAULT
) -> list[Record]:
    """Make the records of one structure.

    Args:
        teacher: Says energies, forces and stresses.
        fast: Its Hessian guides the descent.
        host: Crystal to start from.
        rng: Source of every choice.
        settings: See `LabelSettings`.

    Returns:
        Records in the order of a label file; none if the cell flies apart.

    Raises:
        SimulationError: An element is unknown to one of the two, or the guide does not go astray as it should.
    """
    fewest, wanted, most = settings.atoms
    matrix = supercell_matrix(host.crystal.cell, len(host.crystal), wanted, (fewest, most))
    doped = rng.random() >= settings.pristine
    if doped:
        inside = {VOCABULARY[i] for i in np.flatnonzero(np.isin(NUMBERS, host.crystal.numbers))}
        light = [symbol for symbol in settings.light_dopants if symbol not in inside]
        mix = draw_mix(
            host.crystal,
            rng,
            most=4,
            lowest=1.0 / most,
            highest=settings.highest,
            controls=0.0,
            dopants=light if rng.random() < settings.light else (),
        )
        crystal = build(host.crystal, mix, rng, matrix).crystal
    else:
        crystal = supercell(host.crystal, matrix)
        crystal = crystal.moved(rng.normal(0.0, 0.02, (len(crystal), 3)))
    strain = rng.normal(0.0, settings.strain, (3, 3))
    crystal = crystal.strained(np.eye(3) + 0.5 * (strain + strain.T))

    if settings.astray:
        said = _astray(teacher, fast, crystal, rng, settings)
        return [Record(c, s.energy, s.forces, s.stress, host.id, doped, step) for c, s, step in said]

    raw = doped and rng.random() < settings.raw
    if not raw:
        guided = relax(fast, crystal, cell=settings.cell if doped else "fixed", tolerance=0.05)
        crystal = guided.crystal if np.isfinite(guided.max_force) else crystal
    recorder = _Recorder(teacher)
    relax(
        recorder,
        crystal,
        cell="fixed",
        tolerance=0.02,
        evaluations=settings.evaluations,
        rounds=1,
        preconditioner=fast,
    )
    steps = sorted({0, len(recorder.kept) // 2, len(recorder.kept) - 1})
    forces = [float(np.abs(recorder.kept[k][1].forces).max()) for k in steps]
    if not all(force < FARTHEST for force in forces):  # NaN too
        return []
    first = 0 if raw or not doped else 1  # 0 says of a doped cell that its atoms may be far from their places
    said = [(*recorder.kept[k], min(first + k, 8)) for k in steps]
    rest = recorder.kept[-1][0]
    for number, width in enumerate(settings.rattles, 1):
        moved = rest.moved(rng.normal(0.0, width, (len(rest), 3)))
        if number == len(settings.rattles):
            moved = moved.strained((1.0 + rng.normal(0.0, settings.swelling)) * np.eye(3))
        said.append((moved, teacher.evaluate(moved), 9))
    return [Record(c, s.energy, s.forces, s.stress, host.id, doped, step) for c, s, step in said]


def _astray(
    teacher: Potential, guide: Potential, crystal: Crystal, rng: np.random.Generator, settings: LabelSettings
) -> list[tuple[Crystal, EnergyForcesStress, int]]:
    """Label where the guide's own relaxation begins, passes and gets to, each with a rattled cell.

    Raises:
        SimulationError: The guide keeps the volume.
    """
    recorder = _Recorder(guide)
    relax(recorder, crystal, cell="full", tolerance=0.02)
    change = {
        abs(cell.volume / crystal.volume - 1.0): cell
        for cell, said in recorder.kept
        if np.abs(said.forces).max() < NEAREST
    }
    path = sorted(share for share in change if share < WIDEST)
    if not path or path[-1] < settings.astray:
        raise SimulationError("the guide keeps the volume", fix="Draw another cell")
    said = []
    for share, width in zip((path[0], path[len(path) // 2], path[-1]), settings.rattles, strict=False):
        rest = change[share]
        moved = rest.moved(rng.normal(0.0, width, (len(rest), 3)))
        said += [(rest, teacher.evaluate(rest), 1), (moved, teacher.evaluate(moved), 9)]
    return said if all(np.abs(s.forces).max() < FARTHEST for _, s, _ in said) else []


def make_labels(
    teacher: ManyPotential,
    fast: Potential,
    hosts: Sequence[Host],
    out: Path,
    *,
    count: int,
    seed: int,
    batch: int = 1,
    settings: LabelSettings = DEFAULT,
    known: Sequence[Path] = (),
) -> Iterator[str]:
    """Make a label file, structure by structure; what is there already is kept and added to.

    Args:
        teacher: Says energies, forces and stresses.
        fast: Its Hessian guides the descents.
        hosts: From `choose_hosts`.
        out: Label file (.npz), written anew after each `BLOCK` structures.
        count: Structures in the file at the end, those that failed among them.
        seed: Fixes every structure, each by its number.
        batch: Structures side by side, whose cells the teacher sees in one call: what an accelerator wants.
        settings: See `LabelSettings`.
        known: Other label files, whose elements count as labelled.

    Yields:
        A line about each structure.

    Raises:
        SimulationError: The file is there, finished.
    """
    seen = Counter(z for path in known for record in read_labels(path) for z in set(record.crystal.numbers.tolist()))
    weights = host_weights(hosts, seen)
    together = BatchedPotential(teacher, batch) if batch > 1 else teacher

    def make(number: int) -> tuple[Host, list[Record], str]:
        rng = np.random.default_rng([seed, number])
        host = hosts[int(rng.choice(len(hosts), p=weights))]
        try:
            return host, label_one(together, fast, host, rng, settings), "flies apart"
        except SimulationError as error:  # an element that one of the two does not know
            return host, [], str(error)[:80]

    progress = out.with_suffix(".done")
    start, records = _so_far(out, progress)
    with ThreadPoolExecutor(batch) as threads:
        for first in range(start, count, BLOCK * batch):
            numbers = range(first, min(first + BLOCK * batch, count))
            for number, (host, made, why) in zip(numbers, threads.map(make, numbers), strict=True):
                records += made
                yield f"{number + 1}/{count} {host.id} {host.formula}: " + (f"{len(made)} records" if made else why)
            write_labels(out, records)
            with replacing(progress) as temporary:
                temporary.write_text(f"{numbers.stop} {len(records)}")
    progress.unlink(missing_ok=True)


def _so_far(out: Path, progress: Path) -> tuple[int, list[Record]]:
    """Return the structures made so far and their records; what a kill left beyond the last note is made again."""
    if not out.is_file():
        return 0, []
    if not progress.is_file():
        raise SimulationError(
            f"labels {out} are there, finished", fix="Give another file with --out, and another --seed"
        )
    structures, count = (int(word) for word in progress.read_text().split())
    return structures, read_labels(out)[:count]


def run(words: Sequence[str] | None) -> None:
    """Make labels of a slow potential on doped and pristine cells of crystals that are not in the test split."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--teacher", required=True, help="the slow potential, nequix, or any other")
    parser.add_argument("--guide", default="nep89", help="fast potential whose Hessian guides descents")
    parser.add_argument("--hosts", nargs="+", default=HOSTS, help="lists of crystals, or folders of structures")
    parser.add_argument("--out", type=Path, required=True, help="label file (.npz); one that was stopped goes on")
    parser.add_argument("--count", type=int, default=500, help="structures, of six records each or so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="other label files: rare elements come first")
    parser.add_argument("--space-groups", type=int, nargs="*", default=[], help="only hosts of these, such as 216 186")
    parser.add_argument("--elements", type=int, help="only hosts of so many elements or fewer")
    parser.add_argument("--light", type=float, default=DEFAULT.light, help="share of cells with --light-dopants alone")
    parser.add_argument("--light-dopants", nargs="+", default=LIGHT, help="Be, B, C, N, O, F, Si, P, S by default")
    parser.add_argument("--highest", type=float, default=DEFAULT.highest, help="concentration of all dopants together")
    parser.add_argument("--cell", choices=get_args(CellMode), default=DEFAULT.cell, help="what the guide relaxes")
    parser.add_argument(
        "--astray",
        type=float,
        default=0.0,
        help="only cells whose volume the guide changes by more than this share; the guide is then a student",
    )
    parser.add_argument("--device", default="cpu", help="of the teacher")
    parser.add_argument("--batch", type=int, default=1, help="structures side by side: 1 on a CPU, 48 on a GPU")
    chosen = parser.parse_args(words)
    if chosen.batch < 1 or chosen.count < 1:
        raise ConfigError(f"--batch {chosen.batch}, --count {chosen.count}", fix="Use 1 or more")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    hosts = choose_hosts(read_hosts(*chosen.hosts), chosen.space_groups, chosen.elements)
    teacher, guide = load_potential(chosen.teacher, chosen.device), load_potential(chosen.guide)
    lines = make_labels(
        teacher,
        guide,
        hosts,
        chosen.out,
        count=chosen.count,
        seed=chosen.seed,
        batch=chosen.batch,
        settings=LabelSettings(
            light=chosen.light,
            light_dopants=tuple(chosen.light_dopants),
            highest=chosen.highest,
            cell=chosen.cell,
            astray=chosen.astray,
        ),
        known=chosen.known,
    )
    for line in lines:
        print(line, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Make labels; returns the exit status: 0, or 2 after an error of the user's, which is named."""
    try:
        run(words)
    except (DefectNetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
