"""Does `identify` find at the detection limit what `plan` says that it finds?

    python benchmarks/plan.py --json                    # truth: cells of the same pack that the emulator has not seen
    python benchmarks/plan.py --world defectnet-nep --json    # truth: a pack by the other potential, default settings

For each host and dopant, and each of two instruments, `plan` gives the detection limit (90 % power, 5 % false alarms)
and the probability from which on a dopant counts as found. `--draws` pairs are made at that limit, and as many undoped
ones, each with noise of its own, and `identify` is asked about every one. In the pack's own world that is
`same_potential`; in the other one the pairs also differ in energy scale, background and resolution, as two measurements
do. Changes are means over superposed cells of 100 atoms; below 1.5 at.% they are scaled down to the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.hosts import Host
from defectnet.crystal.make import MakeSettings, make_packs
from defectnet.crystal.pack import HostPack
from defectnet.inference.emulator import CellSource
from defectnet.inference.instrument import InstrumentMap
from defectnet.inference.known_crystal import BACKGROUND, RESOLUTION, SCALE, KnownCrystal
from defectnet.inference.plan import Setup, plan
from defectnet.spectrum import Spectrum

FloatArray = NDArray[np.float64]

CASES = {"GaAs": ("In@Ga", "P@As"), "MgB2": ("Al@Mg", "C@B"), "Si": ("Ge@Si", "B@Si"), "MgO": ("Ca@Mg", "Zn@Mg")}
INSTRUMENTS = {"fine": ("total", 0.05, 0.01), "coarse": ("neutron-weighted", 0.1, 0.01)}
"""Kind, FWHM over the edge, noise over the highest value at points a third of the FWHM apart."""

CELLS, ATOMS, LEAST = 42, 100, 0.015

ENDS = 2.2, 1.5
"""Where spectra end, in edges, in the pack's own world and in the other: with background and noise a longer one is
refused as negative."""


class Truth:
    """Pairs of a crystal with one dopant, from superposed cells."""

    def __init__(self, pack: HostPack, dopant: str) -> None:
        self.unit = pack.host.band_edge_mev
        self.source = CellSource(pack, [dopant], atoms=ATOMS)
        self.elements = self.source.elements
        self.host = self.source.host

    def at(self, amount: float) -> None:
        """Compute cells for an amount."""
        wished = np.full((CELLS, 1), max(amount, LEAST))
        cells = self.source.draw(wished, np.random.default_rng(4711))
        self.changes = (cells.doped - cells.pristine[cells.source]) * (amount / cells.concentration)[:, :, None]

    def pair(self, setup: Setup, doped: bool, lab: bool, rng: np.random.Generator) -> tuple[list[Spectrum], FloatArray]:
        """Return host and sample with noise, and the standard deviation at each point."""
        fwhm, step = setup.fwhm_mev / self.unit, setup.points_mev / self.unit
        edges = np.arange(0.0, ENDS[lab], step)
        scale, background, width = rng.normal(0.0, 1.0, 3) * (SCALE, BACKGROUND, RESOLUTION) * lab
        chosen = rng.integers(0, len(self.changes), len(self.changes))
        sample = self.host + (self.changes[chosen].mean(0) if doped else 0.0)
        other = InstrumentMap(edges, fwhm * (1.0 + width), setup.kind, log_scale=(scale,) * 6)
        curves = [
            InstrumentMap(edges, fwhm, setup.kind).seen(self.elements, self.host),
            other.seen(self.elements, sample),
        ]
        highest = float(curves[0].max())
        sigma = np.full(len(edges) - 1, setup.noise * highest)
        energy = 0.5 * (edges[1:] + edges[:-1]) * self.unit
        spectra = []
        for curve, extra in zip(curves, (0.0, background * highest), strict=True):
            noisy = curve + extra + rng.normal(0.0, 1.0, len(curve)) * sigma
            spectra.append(Spectrum(energy, np.maximum(noisy, -0.03 * highest), "meV", kind=setup.kind))
        return spectra, sigma


def other_world(pack: HostPack, dopants: tuple[str, ...], potential: str) -> HostPack:
    """Return a pack of the same crystal by another potential."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / pack.host.id
        host = Host(pack.host.id, pack.host.formula, pack.host.primitive)
        pairs = [tuple(name.split("@")) for name in dopants]
        failed = make_packs([(host, pairs, folder)], MakeSettings(potential=potential, starts=1))  # type: ignore[list-item]
        if failed:
            raise SystemExit(failed[pack.host.id])
        return HostPack.load(folder)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--world", default="same", help="same, or the potential of the truth")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    same = chosen.world == "same"
    for name in chosen.hosts:
        pack = HostPack.load(name)
        world = pack if same else other_world(pack, CASES[name], chosen.world)
        for dopant in CASES[name]:
            known = KnownCrystal(pack, [dopant])
            truth = Truth(world, dopant)
            for label, (kind, fwhm, noise) in INSTRUMENTS.items():
                edge = world.host.band_edge_mev
                setup = Setup(
                    kind=kind,
                    fwhm_mev=fwhm * edge,
                    noise=noise,
                    reach_mev=ENDS[not same] * edge,
                    same_potential=same,
                    sample_atoms=CELLS * ATOMS if same else None,
                )
                expected = plan(known, setup=setup, amounts=(0.03,), vary=False).detections[0]
                if expected.limit is None:
                    rows.append({"host": name, "dopant": dopant, "instrument": label, "limit": None})
                    continue
                truth.at(expected.limit)
                rng = np.random.default_rng([len(rows), chosen.draws])
                row: dict[str, Any] = {"host": name, "dopant": dopant, "instrument": label, "limit": expected.limit}
                row |= {"threshold": expected.threshold, "named_from": expected.named}
                for doped in (True, False):
                    found = []
                    for _ in range(chosen.draws):
                        pair, sigma = truth.pair(setup, doped, not same, rng)
                        answer = known.identify(
                            *pair,
                            host_error=sigma,
                            doped_error=sigma,
                            fwhm_mev=setup.fwhm_mev,
                            same_potential=same,
                            sample_atoms=CELLS * ATOMS if same else None,
                        )
                        found.append(float(answer.posterior.probability[0]))
                    row["doped" if doped else "undoped"] = np.round(found, 4).tolist()
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps({"world": chosen.world, **summary(rows), "rows": rows}, indent=1))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares found and named, of doped and undoped pairs."""
    out: dict[str, Any] = {"hosts": len({row["host"] for row in rows})}
    asked = [row for row in rows if row["limit"] is not None]
    for name in ("doped", "undoped"):
        probability = np.concatenate([row[name] for row in asked])
        threshold = np.concatenate([np.full(len(row[name]), row["threshold"]) for row in asked])
        out |= {f"{name}_pairs": len(probability)}
        out |= {f"{name}_found": round(float((probability >= threshold).mean()), 3)}
        out |= {f"{name}_named": round(float((probability >= 0.5).mean()), 3)}
    return out


if __name__ == "__main__":
    main()
