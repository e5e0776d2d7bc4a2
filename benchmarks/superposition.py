"""What superposed force constants leave unexplained, against full simulations with the same potential.

    python benchmarks/superposition.py --json                                  # defectnet-nep, 18 hosts, half an hour
    python benchmarks/superposition.py --potential nequix --hosts GaAs-zincblende MgO-rocksalt --rows 1 --json

For each host a pack is made, and doped cells are relaxed and vibrated in full, in a supercell that is not the pack's,
at the wave vectors of `q_mesh`. The DOS of both, and of the host, have the resolution `--resolution` (FWHM over the
band edge). Unexplained is the square of the difference of the two changes (doped less host) over that of the true
change: 0 is perfect, 1 is no better than predicting no change. Rows are kept under `runs/`, so that a run goes on where
it was. Dopants are the five likeliest of the host and three elements drawn at random; hosts have nothing to do with
training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.crystal.host import make_host
from defectnet.crystal.hosts import Host, read_hosts
from defectnet.crystal.make import DISPLACED_ATOMS, EXACT_ATOMS, FASTER
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.substitution import Substitution, substitute
from defectnet.crystal.superposition import Occupation, Superposition
from defectnet.elements import VOCABULARY
from defectnet.errors import SimulationError
from defectnet.measure.broadening import broaden
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, band_edge, modes, projected_dos, q_mesh
from defectnet.potentials.potential import Potential, load_potential
from defectnet.potentials.relax import relax
from defectnet.potentials.supercells import supercell_matrix

ROOT = Path(__file__).parents[1]
FloatArray = NDArray[np.float64]

HOSTS = (
    "Si-diamond", "GaAs-zincblende", "MgO-rocksalt", "LiF-rocksalt", "ZnO-wurtzite", "AlN-wurtzite", "CaF2-fluorite",
    "Mg2Si-antifluorite", "TiNiSn-half-Heusler", "SnO2-rutile", "MgB2", "WSe2-2H", "Bi2Te3-tetradymite", "mp-1143",
    "mp-390", "Al-fcc", "mp-510281", "mp-2482",
)  # fmt: skip
"""Of 15 structure types; hexagonal, layered (WSe2, Bi2Te3) and monoclinic (mp-510281, CuFeO2) ones among them."""

LIMITS = (0.02, 0.05, 0.10, 0.25)
"""Upper ends of the ranges of the total concentration."""

PLAUSIBLE, ARBITRARY = 5, 3
TRUTH_ATOMS = (48, 90)


@dataclass(frozen=True)
class Case:
    """One doped cell of the benchmark."""

    host: str
    limit: float
    dopants: int
    plausible: bool
    number: int

    @property
    def key(self) -> str:
        """Name of the row."""
        return (
            f"{self.host}/{self.limit:g}/{self.dopants}/{'plausible' if self.plausible else 'arbitrary'}/{self.number}"
        )


def choose(host: Host) -> tuple[list[str], list[str]]:
    """Return plausible and arbitrary dopants, as ``Al@Ga``."""
    likely = list(plausible_dopants(host.crystal, PLAUSIBLE))
    rng = row_generator(host.id)
    symbols = sorted({one.partition("@")[2] for one in plausible_dopants(host.crystal, 40)})
    taken = {one.partition("@")[0] for one in likely} | set(symbols)
    free = [x for x in VOCABULARY if x not in taken]
    drawn = rng.choice(free, ARBITRARY, replace=False)
    return likely, [f"{x}@{rng.choice(symbols)}" for x in drawn]


def curve(found: Modes, crystal: Crystal, edge_mev: float, resolution: float) -> FloatArray:
    """Return the total DOS on energies over the edge, broadened."""
    dos = projected_dos(found, crystal, edge_mev, STORAGE_GRID)[0].sum(0)
    one = np.ones(1)
    return broaden(dos[None, None].astype(np.float32), one, resolution * one, one)[0, 0].astype(np.float64)


def draw(cell: Superposition, names: Sequence[str], case: Case, rng: np.random.Generator) -> Occupation:
    """Put dopants on random sites: `case.dopants` kinds, a total log-uniform within the range of its limit."""
    atoms, lower = len(cell.cell), dict(zip(LIMITS, (0.004, *LIMITS), strict=False))[case.limit]
    kinds = rng.choice(names, min(case.dopants, len(names)), replace=False)
    total = max(len(kinds), round(float(np.exp(rng.uniform(np.log(lower), np.log(case.limit)))) * atoms))
    counts = (
        rng.multinomial(max(0, min(total, int(case.limit * atoms)) - len(kinds)), np.ones(len(kinds)) / len(kinds)) + 1
    )
    free = np.ones(atoms, dtype=bool)
    sites: list[int] = []
    dopants: list[str] = []
    orbits = cell.host.operations.orbits()[cell.cell.basis]
    for name, count in zip(kinds, counts, strict=True):
        dopant = name.partition("@")[0]
        allowed = {s for x, s in cell.substitutions if x == dopant}
        here = [k for k in np.flatnonzero(free) if orbits[k] in allowed]
        chosen = rng.choice(here, min(int(count), len(here)), replace=False)
        free[chosen] = False
        sites += [int(k) for k in chosen]
        dopants += [dopant] * len(chosen)
    return Occupation(tuple(sites), tuple(dopants))


def row_generator(key: str) -> np.random.Generator:
    """Return the random generator of a row: it depends on its name alone."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))


class HostRun:
    """One host: its pack, and the cells in which it is compared."""

    def __init__(self, potential: Potential, faster: Potential | None, host: Host, atoms: int) -> None:
        self.potential, self.faster, self.host = potential, faster, host
        start = time.perf_counter()
        self.model = make_host(potential, host, atoms=atoms, preconditioner=faster)
        self.model.check_stable()
        self.host_seconds = time.perf_counter() - start
        self.substitutions: dict[tuple[str, int], Substitution] = {}
        self.failed: dict[str, str] = {}
        self.seconds: list[float] = []
        self.likely, self.arbitrary = choose(host)
        symbols = list(Atoms(self.model.primitive.numbers).symbols)
        for name in (*self.likely, *self.arbitrary):
            dopant, _, replaced = name.partition("@")
            for site in self.model.sites:
                if symbols[site] != replaced:
                    continue
                start = time.perf_counter()
                try:
                    found = substitute(potential, self.model, int(site), dopant, preconditioner=faster)
                    self.substitutions[dopant, int(site)] = found
                except SimulationError as error:
                    self.failed[name] = error.what
                self.seconds.append(time.perf_counter() - start)
        n = len(self.model.primitive)
        bounds = (TRUTH_ATOMS[0], max(TRUTH_ATOMS[1], 2 * n))
        matrix = supercell_matrix(self.model.primitive.cell, n, 64, bounds)
        # Finite displacements in one cell tell its Hessian at Gamma; other wave vectors would be interpolated.
        points = q_mesh(n * round(abs(np.linalg.det(matrix)))) if potential.exact else np.zeros((1, 3))
        self.cell = Superposition(self.model, self.substitutions, matrix, points)
        self.pristine = self._pristine()

    def _pristine(self) -> Modes:
        """Return the true phonons of the pristine cell."""
        crystal = self.cell.cell.crystal
        return modes(self.potential.force_constants(crystal), crystal, list(self.cell.q_points))

    def row(self, case: Case, resolution: float) -> dict[str, Any]:
        """Simulate one doped cell in full and compare."""
        names = [n for n in (self.likely if case.plausible else self.arbitrary) if n not in self.failed]
        if not names:
            return {"rejected": "no dopant"}
        rng = row_generator(case.key)
        occupation = draw(self.cell, names, case, rng)
        numbers = self.cell.numbers(occupation)
        sites = self.cell.cell.crystal
        start = time.perf_counter()
        rattled = Crystal(numbers, sites.cell, sites.positions + rng.normal(0.0, 0.01, sites.positions.shape))
        relaxed = relax(self.potential, rattled, cell="volume", tolerance=0.005, preconditioner=self.faster)
        if not relaxed.converged:
            return {"rejected": "not relaxed"}
        full = modes(self.potential.force_constants(relaxed.crystal), relaxed.crystal, list(self.cell.q_points))
        middle = time.perf_counter()
        superposed = self.cell.modes(occupation, rng)
        end = time.perf_counter()
        edge = band_edge(self.pristine)
        host = self.cell.host_modes()
        truth = curve(full, Crystal(numbers, sites.cell, sites.positions), edge, resolution)
        truth = truth - curve(self.pristine, sites, edge, resolution)
        change = curve(superposed, Crystal(numbers, sites.cell, sites.positions), edge, resolution)
        change = change - curve(host, sites, edge, resolution)
        apart = (relaxed.crystal.frac - sites.frac) @ relaxed.crystal.cell
        return {
            "unexplained": float(((change - truth) ** 2).sum() / (truth**2).sum()),
            "concentration": len(occupation.sites) / len(numbers),
            "dopants": sorted(set(occupation.dopants)),
            "change": float(np.sqrt((truth**2).sum() * STORAGE_GRID.width)),
            "imaginary": [round(full.imaginary_fraction, 5), round(superposed.imaginary_fraction, 5)],
            "volume_change": [relaxed.crystal.volume / sites.volume - 1.0, self.cell.volume_change(occupation)],
            "largest_displacement": float(np.linalg.norm(apart - apart.mean(0), axis=1).max()),
            "overlap": self.cell.overlap(occupation),
            "seconds": [middle - start, end - middle],
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians and 90th percentiles by range of concentration, kind and number of dopants."""
    out: dict[str, Any] = {}
    for plausible in (True, False):
        for limit in LIMITS:
            for mixed in (False, True):
                found = [
                    r["unexplained"]
                    for r in rows
                    if "unexplained" in r
                    and (r["plausible"], r["limit"], r["kinds"] > 1) == (plausible, limit, mixed)
                    and not r["imaginary"][0] > 0.005
                ]
                name = f"{'plausible' if plausible else 'arbitrary'}, {'several' if mixed else 'one'}, to {limit:g}"
                if found:
                    out[name] = {
                        "rows": len(found),
                        "median": round(float(np.median(found)), 4),
                        "p90": round(float(np.quantile(found, 0.9)), 4),
                    }
    return out


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potential", default="defectnet-nep")
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS))
    parser.add_argument("--rows", type=int, default=2, help="cells for each host, range, number and kind of dopants")
    parser.add_argument("--resolution", type=float, default=0.05, help="FWHM over the band edge")
    parser.add_argument(
        "--out", type=Path, default=None, help="where rows are kept; runs/superposition-<potential>.jsonl"
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    out = chosen.out or ROOT / "runs" / f"superposition-{Path(chosen.potential).name}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {row["key"] for row in known}
    potential = load_potential(chosen.potential)
    faster = None if potential.exact else load_potential(FASTER)
    listed = {h.id: h for h in read_hosts(ROOT / "data" / "hosts.json.xz")}
    listed |= {h.id: h for h in read_hosts(ROOT / "data" / "zoo.json")}
    for name in chosen.hosts:
        cases = [
            Case(name, limit, kinds, plausible, number)
            for limit in LIMITS
            for kinds in (1, 3)
            for plausible in (True, False)
            for number in range(chosen.rows if plausible else 1)
        ]
        left = [case for case in cases if case.key not in done]
        if not left:
            continue
        try:
            run = HostRun(potential, faster, listed[name], EXACT_ATOMS if potential.exact else DISPLACED_ATOMS)
        except SimulationError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            continue
        for case in left:
            row = {"key": case.key, "host": name, "limit": case.limit, "kinds": case.dopants}
            row |= {"plausible": case.plausible, "pack_atoms": len(run.model.cell), "atoms": len(run.cell.cell)}
            row |= {"substitution_seconds": round(float(np.mean(run.seconds)), 2), **run.row(case, chosen.resolution)}
            known.append(row)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(case.key, row.get("unexplained", row.get("rejected")), file=sys.stderr, flush=True)
    rows = [row for row in known if row["host"] in chosen.hosts]
    found = summary(rows)
    ratio = [r["seconds"][0] / r["seconds"][1] for r in rows if "seconds" in r]
    worst = sorted((r for r in rows if "unexplained" in r and r["plausible"]), key=lambda r: -r["unexplained"])[:12]
    result = {
        "potential": chosen.potential,
        "hosts": chosen.hosts,
        "resolution": chosen.resolution,
        "unexplained": found,
        "full_over_superposed_seconds": round(float(np.median(ratio)), 1) if ratio else None,
        "worst": [{k: r[k] for k in ("key", "unexplained", "concentration", "dopants", "imaginary")} for r in worst],
    }
    print(json.dumps(result, indent=1) if chosen.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
