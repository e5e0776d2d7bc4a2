"""What a potential says of phonons that others have measured or computed.

    python benchmarks/physics.py --potential nep89 --out benchmarks/physics-nep89.json
    python benchmarks/physics.py --potential student.txt --parts a,b --beside benchmarks/physics-nep89.json
    python benchmarks/physics.py --beside benchmarks/physics-*.json --figure benchmarks/figures/physics.png

Parts: a pristine crystals against density-functional theory (needs the package ncrystal), b local modes of impurities,
c isotope shift, d Raman lines of SiGe, e MgB2 with Al, f V with Pt, g student against teacher, h imaginary modes of
hosts (both need the curves that physics_teacher.py computes), i relaxation of doped cells. Stopped and started again,
a run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from defectnet.errors import DefectNetError, SimulationError
from defectnet.potentials.potential import load_potential
from physics_suite.cells import Preconditioned
from physics_suite.report import detail_table, skipped_lines, summary_table
from physics_suite.suite import PARTS, Context, parse_parts, read_results, run

HERE = Path(__file__).resolve().parent
FACTS = HERE / "physics"
TEACHER = FACTS / "teacher.npz"
WIDTH = 160


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--potential", help="a name such as nep89, or a path; without it, results are only shown")
    out.add_argument("--parts", help="letters, such as a,b; all by default (g and h only with the teacher's curves)")
    out.add_argument("--out", type=Path, help="results, JSON, kept after each item; runs/physics-NAME.json by default")
    out.add_argument("--beside", type=Path, nargs="*", default=[], help="results of other potentials to show beside")
    out.add_argument("--teacher", type=Path, default=TEACHER, help="curves of the teacher, for part g")
    out.add_argument("--hosts", type=Path, default=HERE.parent / "data" / "hosts.json.xz", help="crystals of part i")
    out.add_argument("--figure", type=Path, help="where to draw (.png, .pdf, .svg)")
    out.add_argument("--json", action="store_true", help="print the results as JSON in place of tables")
    out.add_argument("--preconditioner", help="a fast potential, such as nep89, that speeds up relaxations")
    out.add_argument("--device", default="cpu")
    return out


def compute(options: argparse.Namespace) -> dict[str, object]:
    """Run the suite for one potential."""
    default = [part for part in PARTS if part not in "gh" or options.teacher.exists()]
    parts = default if options.parts is None else parse_parts(options.parts)
    potential = load_potential(options.potential, options.device)
    if options.preconditioner is not None:
        potential = Preconditioned(potential, load_potential(options.preconditioner, options.device))
    path = options.out or Path("runs") / f"physics-{potential.name}.json"
    options.beside = [other for other in options.beside if other.resolve() != path.resolve()]
    context = Context(potential, FACTS, options.teacher, options.hosts)
    return run(context, parts, path, say=lambda text: print(text, file=sys.stderr, flush=True))


def main() -> int:
    """Run, print, draw; returns the exit status."""
    options = parser().parse_args()
    torch.set_num_threads(1)
    try:
        if options.potential is None and not options.beside:
            raise SimulationError("nothing to do", fix="Name a potential with --potential, or results with --beside")
        runs = [compute(options)] if options.potential is not None else []
        runs = [*(read_results(path) for path in options.beside), *runs]
        if options.figure is not None:
            from physics_figure import draw  # beside this file

            draw(runs, options.figure)
    except DefectNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(runs[-1] if len(runs) == 1 else runs, indent=1))
        return 0
    console = Console(width=WIDTH if not sys.stdout.isatty() else None)
    console.print(detail_table(runs))
    for results in runs:
        for line in skipped_lines(results):
            console.print(line, highlight=False, markup=False)
    console.print(summary_table(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
