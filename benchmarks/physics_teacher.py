"""Compute the curves of a slow potential, the teacher, on held-out crystals and doped cells: part g of the suite.

    python benchmarks/physics_teacher.py --potential nequix --preconditioner nep89

Which crystals is fixed by hash. A crystal takes minutes; the file is written after each, and a run that was stopped
goes on where it was. Crystals that the teacher does not hold are noted, and the next ones take their places.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from defectnet.crystal.hosts import read_hosts
from defectnet.errors import DefectNetError
from defectnet.potentials.potential import load_potential
from physics_suite.cells import Preconditioned
from physics_suite.heldout import choose, teach

OUT = Path(__file__).resolve().parent / "physics" / "teacher.npz"


def main() -> int:
    """Compute, and say how long each took; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", required=True, help="the teacher, nequix, or any potential")
    parser.add_argument("--preconditioner", help="a fast potential, such as nep89, that speeds up relaxations")
    parser.add_argument("--hosts", default="data/hosts.json.xz", help="list of crystals")
    parser.add_argument("--out", type=Path, default=OUT, help="curves, .npz")
    parser.add_argument("--most", type=int, help="stop after as many crystals")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        potential = load_potential(options.potential, options.device)
        if options.preconditioner is not None:
            potential = Preconditioned(potential, load_potential(options.preconditioner, options.device))
        start = time.perf_counter()
        for item in teach(potential, choose(read_hosts(options.hosts)), options.out, options.most):
            now = time.perf_counter()
            atoms = len(item.start.crystal)
            print(f"{item.start.key}, {atoms} atoms: {item.failed or 'done'}, {now - start:.0f} s", flush=True)
            start = now
    except DefectNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
