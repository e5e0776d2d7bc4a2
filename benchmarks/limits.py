"""What the spectra themselves allow: simulate dopants one by one in a few hosts, and see which of them part.

    python benchmarks/limits.py simulate --hosts data/hosts.json.xz --potential nep89 --out runs/limits
    python benchmarks/limits.py analyse --cells runs/limits --out benchmarks/limits.json --figures benchmarks/figures

``simulate`` goes on where it was; ``analyse`` prints what it writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.crystal.doping import DopantMix, build, likeness
from defectnet.crystal.hosts import read_hosts
from defectnet.data.shards import Sample, read_shard, shard_files, write_shard
from defectnet.elements import VOCABULARY
from defectnet.files import replacing
from defectnet.measure.settings import CLEAN, LAB, Measurement
from defectnet.potentials.potential import load_potential
from defectnet.simulate.rows import HostSimulation, RejectedCell, SimulationSettings, relax_host, row_generator
from oracle import (
    Contrasts,
    Whitened,
    detectability,
    oracle,
    parting_noise,
    right_choice,
    separation,
    whiten,
)

HOSTS = ("GaAs-zincblende", "Si-diamond", "mp-549706")  # the last one is MgO
CONCENTRATIONS = (0.01, 0.02, 0.05, 0.10)
CONDITIONS = {"clean": CLEAN, "lab": LAB}


def simulate(options: argparse.Namespace) -> None:
    """Simulate every element of the vocabulary in each host, some placements each; one shard for each element."""
    potential = load_potential(options.potential)
    settings = SimulationSettings(seed=7, smallest=128, largest=199)
    listed = {host.id: host for host in read_hosts(options.hosts)}
    for name in options.host:
        host = listed[name]
        folder = Path(options.out) / name
        folder.mkdir(parents=True, exist_ok=True)
        simulation = HostSimulation(potential, host, relax_host(potential, host, settings), settings)
        symbols = tuple(host.chemical_system.split("-"))
        fits = likeness(symbols)
        for index, element in enumerate(VOCABULARY):
            path = folder / f"shard-{index:05d}.parquet"
            if element in symbols or path.is_file():
                continue
            site = symbols[int(fits[index].argmax())]
            samples, rejected = [], []
            for placement in range(options.placements):
                row = f"{name}/{element}-{placement}"
                rng = row_generator(settings.seed, row)
                mix = DopantMix((element,), (1.0,), options.concentration, (site,))
                try:
                    cell = build(simulation.relaxed, mix, rng, simulation.regular)
                    samples += simulation.vibrate(row, cell).samples
                except RejectedCell as reason:
                    rejected.append(str(reason))
            write_shard(path, samples, {"rows": len(samples), "rejected": rejected})
            print(f"{name}: {element} on {site}, {len(samples)} cells {' '.join(rejected)}", flush=True)


def cells_of(folder: Path) -> list[Sample]:
    """Read the cells of a host; elements that lost a placement to rejection are left out."""
    found = [list(read_shard(path)) for path in shard_files(folder)]
    most = max(len(samples) for samples in found)
    return [sample for samples in found if len(samples) == most for sample in samples]


def analyse(options: argparse.Namespace) -> None:
    """Write what parts and what does not, for each host, condition and concentration."""
    report: dict[str, Any] = {}
    for folder in sorted(path for path in Path(options.cells).iterdir() if path.is_dir()):
        samples = cells_of(folder)
        report[folder.name] = {name: _condition(samples, CONDITIONS[name]) for name in CONDITIONS}
        if options.figures:
            Path(options.figures).mkdir(parents=True, exist_ok=True)
            _figure(samples, report[folder.name], Path(options.figures) / f"limits-{folder.name}.png")
    text = json.dumps({"hosts": report}, indent=1)
    if options.out:
        with replacing(options.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


def _chances(whitened: Whitened) -> NDArray[np.float64]:
    """Return (E, E) probabilities that the best decision between two elements is right."""
    far = separation(whitened)
    return right_choice(np.minimum(far, far.T))


def _condition(samples: list[Sample], measurement: Measurement) -> dict[str, Any]:
    contrasts = Contrasts.of_samples(samples, measurement)
    elements = contrasts.elements
    pairs = list(zip(*np.triu_indices(len(elements), 1), strict=True))
    found: dict[str, Any] = {
        "elements": len(elements),
        "placements": contrasts.values.shape[1],
        "simulated_concentration": round(contrasts.concentration, 5),
    }
    for concentration in CONCENTRATIONS:
        whitened = whiten(contrasts, concentration)
        chance = _chances(whitened)
        answers = oracle(whitened, np.random.default_rng(0))
        close = sorted((chance[i, j], elements[i], elements[j]) for i, j in pairs)
        found[f"{100 * concentration:g} at.%"] = {
            "oracle_top_1": round(answers.top_1, 3),
            "oracle_top_5": round(answers.top_5, 3),
            "oracle_relative_error_of_amount": round(answers.amount_error, 3),
            "pairs_that_part_at_90_percent": round(float(np.mean([c >= 0.9 for c, _, _ in close])), 3),
            "hardest_pairs": {f"{first}-{second}": round(float(c), 2) for c, first, second in close[:10]},
            "hardest_to_see": {
                elements[i]: round(float(value), 1)
                for value, i in sorted(zip(detectability(whitened), range(len(elements)), strict=True))[:5]
            },
        }
    found["parting_noise_at_5_at.%"] = {
        f"{first}-{second}": round(level, 4)
        for (first, second), level in parting_noise(samples, measurement, 0.05).items()
    }
    return found


def _figure(samples: list[Sample], found: dict[str, Any], path: Path) -> None:
    """Draw the maps of confusion at 2 at.%, and the noise at which neighbours part."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), width_ratios=(1, 1, 0.9), layout="constrained")
    elements = tuple(dict.fromkeys(sample.dopants[0] for sample in samples))
    ticks = np.arange(0, len(elements), 3)
    for axis, (name, measurement) in zip(axes, CONDITIONS.items(), strict=False):
        chance = _chances(whiten(Contrasts.of_samples(samples, measurement), 0.02))
        np.fill_diagonal(chance, 0.5)
        image = axis.imshow(chance, vmin=0.5, vmax=1.0, cmap="viridis", interpolation="nearest")
        labels = [elements[i] for i in ticks]
        axis.set_xticks(ticks, labels, fontsize=6, rotation=90)
        axis.set_yticks(ticks, labels, fontsize=6)
        axis.set_title(f"{samples[0].formula} with 2 at.%, {name}", fontsize=10)
    figure.colorbar(image, ax=axes[:2], shrink=0.8, label="chance that the best decision between two is right")
    for (name, part), marker in zip(found.items(), "o^", strict=True):
        noise = part["parting_noise_at_5_at.%"]
        axes[2].plot([max(value, 3e-5) for value in noise.values()], marker, markersize=3, label=name)
    axes[2].set_xticks(ticks[:-1], [list(noise)[i] for i in ticks[:-1]], fontsize=6, rotation=90)
    axes[2].set_yscale("log")
    axes[2].axhline(0.01, color="0.6", linewidth=0.8)
    axes[2].text(0, 0.011, "lab condition", fontsize=7, color="0.4")
    axes[2].set_ylabel("counting noise, relative to the peak")
    axes[2].set_title("neighbours part below this noise (5 at.%)", fontsize=10)
    axes[2].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("simulate")
    first.add_argument("--hosts", required=True)
    first.add_argument("--host", nargs="+", default=list(HOSTS), help="ids in the list")
    first.add_argument("--potential", required=True)
    first.add_argument("--out", required=True)
    first.add_argument("--placements", type=int, default=3)
    first.add_argument("--concentration", type=float, default=0.04)
    first.set_defaults(run=simulate)
    second = commands.add_parser("analyse")
    second.add_argument("--cells", required=True)
    second.add_argument("--out")
    second.add_argument("--figures")
    second.set_defaults(run=analyse)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
