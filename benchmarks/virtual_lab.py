"""Fine-tuning for a laboratory that no training row has seen: what a handful of its samples is worth.

    python benchmarks/virtual_lab.py simulate --family SiGe --potential nequix --preconditioner nep89
    python benchmarks/virtual_lab.py study --checkpoint defectnet-small --replay data/defectnet-sim-v1
    python benchmarks/virtual_lab.py report

Four families of samples, on hosts of test systems, are simulated into `virtual_lab/`, two of them with the teacher
(Nequix-OAM-PFT, finite displacements), and measured on an instrument whose energy axis reads 3 % too high. `study`
fine-tunes on 5 to 40 of a family's pairs with every method, from scratch, and by calibration transfer (direct and
piecewise direct standardisation), and asks about others; each run is kept under `runs/`, so that it goes on where it
was. `report` writes `virtual-lab.json` and the figure; what was not run anew stays as it is there.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from chemotools.adaptation import DirectStandardization, PiecewiseDirectStandardization
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from defectnet import from_pretrained
from defectnet.batch import Batch, Item, Targets
from defectnet.crystal.hosts import Host, read_hosts
from defectnet.data.module import SpectraDataModule
from defectnet.data.shards import Row, projected_pairs
from defectnet.files import replacing
from defectnet.lab.data import EncodedPairs
from defectnet.lab.jobs import Job, TrainingSettings, run_jobs
from defectnet.lab.judge import average_precision
from defectnet.lab.table import read_table
from defectnet.lab.virtual import Instrument, as_is, write_lab
from defectnet.measure.forward import measure_pairs
from defectnet.measure.settings import CLEAN
from defectnet.models.answers import answer
from defectnet.models.base import DefectModel
from defectnet.models.registry import build_model
from defectnet.potentials.potential import load_potential
from defectnet.rng import row_rng
from defectnet.simulate.executors import LocalExecutor
from defectnet.simulate.rows import SimulationSettings
from defectnet.simulate.runner import simulate
from defectnet.spectrum import KINDS

Record = Mapping[str, Any]

HERE = Path(__file__).parent
HOSTS = HERE.parent / "data" / "hosts.json.xz"
FOLDER, RUNS, RESULT = HERE / "virtual_lab", HERE.parent / "runs" / "virtual-lab", HERE / "virtual-lab.json"
FIGURE = HERE / "figures" / "virtual-lab.png"

RECORD = "record.json"

INSTRUMENT = Instrument(fwhm_mev=1.5, fwhm_growth=1.6, noise=0.01, cut_low_mev=2.0, energy_factor=1.03)
SIZES, SEEDS = (5, 10, 20, 40), 3


@dataclass(frozen=True)
class Family:
    """Samples of one host.

    Attributes:
        host: Id in the list of hosts; of a test system.
        settings: Of the simulation.
        asked: Pairs that are kept to ask about.
        batches: Times that the host is listed, each with a supercell of its own and `settings.spectra_per_host` cells.
    """

    host: str
    settings: SimulationSettings
    batches: int
    asked: int = 20

    def hosts(self) -> list[Host]:
        """Return the host, once for each batch, under a name of its own."""
        host = next(host for host in read_hosts(HOSTS) if host.id == self.host)
        return [replace(host, id=f"{host.id}-{number}") for number in range(self.batches)]


_SMALL = SimulationSettings(
    seed=7, spectra_per_host=5, hosts_per_shard=2, smallest=32, largest=50, clustered=0.0, controls=0.05
)
_LARGE = replace(_SMALL, spectra_per_host=10, smallest=128, largest=199, lowest=0.02, most_dopants=2)

FAMILIES = {
    "SiGe": Family("Si-diamond", replace(_SMALL, dopants=("Ge",), lowest=0.05, most_dopants=1), 8),
    "MgB2-Al": Family("MgB2", replace(_SMALL, dopants=("Al@Mg",), lowest=0.02, most_dopants=1), 6, asked=10),
    "GaAs": Family("GaAs-zincblende", replace(_LARGE, dopants=("Al@Ga", "In@Ga", "B@Ga", "P@As", "Sb@As", "N@As")), 6),
    "LiAlO2": Family(
        "mp-8001", replace(_LARGE, dopants=("Na@Li", "Mg", "Ga@Al", "Fe@Al", "Co@Al", "Ti@Al")), 6, asked=17
    ),
}
"""The first two with the teacher, the others with the fast potential in larger cells."""


@dataclass(frozen=True)
class Method:
    """A way to learn from a family's pairs.

    Attributes:
        training: How.
        scratch: Start from random weights.
        replays: Mix in simulated rows.
    """

    training: TrainingSettings
    scratch: bool = False
    replays: bool = False


ZERO_SHOT = "zero-shot"
RIVALS = {"ds": DirectStandardization, "pds": partial(PiecewiseDirectStandardization, window_length=8)}
METHODS = {
    "responses": Method(TrainingSettings("responses")),
    "full": Method(TrainingSettings("full")),
    "full + replay": Method(TrainingSettings("full"), replays=True),
    # Random weights are given more than three times the epochs.
    "scratch": Method(TrainingSettings("full", epochs=200), scratch=True),
}


@dataclass(frozen=True)
class Lab:
    """A family as its laboratory has it.

    Attributes:
        pairs: Its pairs, encoded.
        item: All of them, with the questions that are asked.
        twins: The same pairs as the training data would show them: of the fast potential, clean.
    """

    pairs: EncodedPairs
    item: Item
    twins: Batch


def open_lab(name: str, model: DefectModel, fast: str) -> Lab:
    """Measure a family, and simulate its twins if it is not of the fast potential itself."""
    rows, family, table = as_is(FOLDER / name), FAMILIES[name], RUNS / "labs" / name
    write_lab(table, rows, INSTRUMENT)
    others = rows
    if rows[0].potential != load_potential(fast).name:
        simulate(family.hosts(), fast, RUNS / "twins" / name, family.settings, executor=LocalExecutor(workers=1))
        others = as_is(RUNS / "twins" / name)
    by_id = {row.row_id: row for row in others}
    pairs = EncodedPairs(read_table(table, grid=model.spec.grid), model.spec.grid)
    item = pairs.item(range(len(pairs)), "candidates")
    for row in rows:
        if by_id[row.row_id].concentrations != row.concentrations:
            raise SystemExit(f"{row.row_id} and its twin differ in composition")
    same = projected_pairs([Row.of(by_id[row.row_id]) for row in rows])
    seen = measure_pairs(same, CLEAN, [row_rng("twin", row.row_id) for row in rows], grid=model.spec.grid)
    twins = item.batch._replace(
        host=torch.from_numpy(seen.host),
        doped=torch.from_numpy(seen.doped),
        edge_mev=torch.from_numpy(seen.edge_mev).to(item.batch.edge_mev.dtype),
        kind=torch.full_like(item.batch.kind, KINDS.index("total")),
    )
    return Lab(pairs, item, twins)


def metrics(model: DefectModel, items: Sequence[Item]) -> dict[str, float]:
    """Return the error over the elements in question (at.%), and the average precision of their probabilities."""
    found = answer(model, items)
    asked = found.batch.candidates
    error = (found.expected_concentration - found.targets.true_concentration).abs()[asked]
    score, present = found.output.identity_logits[asked].double().numpy(), found.targets.present[asked].numpy()
    precision = average_precision(score, present, np.ones((1, len(score))))[0]
    return {"mae": 100.0 * float(error.mean()), "ap": float(precision)}


def rows_of(item: Item, rows: Sequence[int]) -> Item:
    """Return some rows of a batch."""
    chosen = torch.as_tensor(rows, dtype=torch.long)
    batch = item.batch.rows(chosen)
    return Item(batch, Targets(item.targets.true_concentration[chosen]), item.rows[chosen])


def standardised(lab: Lab, learn: Sequence[int], held: Sequence[int], rival: str) -> Item:
    """Map held-out spectra onto what the fast potential would show, by what the pairs to learn from say.

    Hosts and doped samples alike are transfer samples. The map is linear (Wang et al., Anal. Chem. 63, 2750 (1991)).
    """
    batch = lab.item.batch
    source, target = (
        torch.cat([b.host[list(learn)], b.doped[list(learn)]]).double().numpy() for b in (lab.twins, batch)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at energies where no spectrum has anything there is nothing to fit
        transfer = RIVALS[rival]().fit(target, X_source=source)
    asked = rows_of(lab.item, held)
    curves = []
    for curve in (asked.batch.host, asked.batch.doped):
        mapped = torch.from_numpy(transfer.transform(curve.double().numpy())).clamp_min(0.0).float()
        curves.append(mapped * (curve.sum(dim=1) / mapped.sum(dim=1).clamp_min(1e-9))[:, None])
    kind = torch.full_like(asked.batch.kind, KINDS.index("total"))
    # Of the edge only its mean ratio is to be learnt.
    ratio = (lab.twins.edge_mev[list(learn)] / batch.edge_mev[list(learn)]).mean()
    moved = asked.batch._replace(host=curves[0], doped=curves[1], kind=kind, edge_mev=ratio * asked.batch.edge_mev)
    return Item(moved, asked.targets, asked.rows)


def split(count: int, asked: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the pairs to learn from, in the order in which a lab would add them, and those that are asked about."""
    order = np.random.default_rng([seed, count]).permutation(count).tolist()
    return order[asked:], order[:asked]


def untrained(model: DefectModel, seed: int) -> DefectModel:
    """Return the same network with random weights."""
    torch.manual_seed(seed)
    return build_model(type(model).__name__, model.spec, model.net.to_dict()).eval()


def study(
    checkpoint: str,
    replay: str,
    fast: str,
    families: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    seeds: int,
) -> None:
    """Run what has not been run yet."""
    torch.set_num_threads(1)
    base = from_pretrained(checkpoint)
    loader = SpectraDataModule(replay, batch_size=64, grid=base.spec.grid).evaluation("test", "candidates", "clean")
    home = list(loader)
    trained = [method for method in methods if method != ZERO_SHOT]
    for name in families:
        lab = open_lab(name, base, fast)
        for seed in range(seeds):
            learn, held = split(len(lab.pairs), FAMILIES[name].asked, seed)
            runs = [(ZERO_SHOT, 0)] if ZERO_SHOT in methods else []
            runs += [(method, size) for size in sizes if size <= len(learn) for method in trained]
            for method, size in runs:
                out = RUNS / base.name / name / f"{method.replace(' ', '')}-{size}-{seed}"
                if (out / RECORD).is_file():
                    continue
                started = time.monotonic()
                found = run(method, base, lab, learn[:size], held, out, home, replay, seed)
                record = {"checkpoint": base.name, "family": name, "method": method, "pairs": size, "seed": seed}
                record |= found | {"seconds": round(time.monotonic() - started, 1)}
                out.mkdir(parents=True, exist_ok=True)
                with replacing(out / RECORD) as temporary:
                    temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
                print(json.dumps(record), flush=True)


def run(
    name: str,
    base: DefectModel,
    lab: Lab,
    learn: Sequence[int],
    held: Sequence[int],
    out: Path,
    home: Sequence[Item],
    replay: str,
    seed: int,
) -> dict[str, Any]:
    """Learn from some pairs, ask about others; return the errors in the lab and on simulated test crystals."""
    if name in RIVALS:
        return {"lab": metrics(base, [standardised(lab, learn, held, name)])}
    model = base
    if name != ZERO_SHOT:
        method = METHODS[name]
        training = replace(method.training, seed=seed, accelerator="cpu", replay=replay if method.replays else None)
        start = untrained(base, seed) if method.scratch else base
        job = Job(name, out, start, lab.pairs.take(learn), training)
        out.mkdir(parents=True, exist_ok=True)
        run_jobs([job])
        model = job.result()
        for leftover in out.iterdir():  # megabytes a run
            leftover.unlink()
    return {"lab": metrics(model, [rows_of(lab.item, held)]), "home": metrics(model, home)}


def _key(entry: Record) -> tuple[str, str, int]:
    return entry["family"], entry["method"], entry["pairs"]


def summary(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one entry for each family, method and number of pairs: mean, lowest and highest over the seeds."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault(_key(record), []).append(record)
    entries = []
    for (family, method, pairs), found in sorted(groups.items()):
        entry: dict[str, Any] = {"family": family, "method": method, "pairs": pairs, "seeds": len(found)}
        for place in ("lab", "home"):
            if all(place in record for record in found):
                for metric in ("mae", "ap"):
                    values = [record[place][metric] for record in found]
                    entry[f"{place}_{metric}"] = [round(f(values), 4) for f in (fmean, min, max)]
        entries.append(entry)
    return entries


def report(checkpoint: str) -> None:
    """Write the summary of all runs of a checkpoint, and the figure."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RUNS.glob(f"{checkpoint}/*/*/{RECORD}"))]
    if not records:
        raise SystemExit(f"there are no runs of {checkpoint}: give the step `study` first")
    families = {
        name: {
            "host": family.host,
            "pairs": len(rows),
            "potential": rows[0].potential,
            "atoms": rows[0].atoms,
            "asked": family.asked,
        }
        for name, family in FAMILIES.items()
        if (rows := as_is(FOLDER / name))
    }
    entries = {_key(entry): entry for entry in summary(records)}
    if RESULT.is_file():
        before = json.loads(RESULT.read_text(encoding="utf-8"))
        if before["checkpoint"] == checkpoint:
            entries = {_key(entry): entry for entry in before["results"]} | entries
    result = {
        "checkpoint": checkpoint,
        "instrument": asdict(INSTRUMENT),
        "families": families,
        "results": [entries[key] for key in sorted(entries)],
    }
    with replacing(RESULT) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, FIGURE)


STYLES: dict[str, tuple[str, str]] = {
    "responses": ("#c2185b", "-"),
    "full": ("#7a5195", "-"),
    "full + replay": ("#7a5195", "--"),
    "scratch": ("#c1440e", "-"),
    "ds": ("0.6", ":"),
    "pds": ("0.35", ":"),
}


def draw(result: Record, path: Path) -> None:
    """Draw the error in the lab against the number of pairs, one panel a family."""
    panels, entries = result["families"], result["results"]
    with rc_context({"font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10.0, 3.1), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(panels)))
        for axis, (family, facts) in zip(axes, panels.items(), strict=True):
            own = [entry for entry in entries if entry["family"] == family]
            axis.set_title(f"{family}\n{facts['potential']}, {facts['atoms']} atoms", loc="left", fontsize=8.5)
            for method, (colour, line) in STYLES.items():
                curve = sorted((e["pairs"], *e["lab_mae"]) for e in own if e["method"] == method)
                if curve:
                    size, mean, low, high = np.array(curve).T
                    axis.plot(size, mean, line, color=colour, marker="o", markersize=3, label=method)
                    if method in ("responses", "scratch"):
                        axis.fill_between(size, low, high, color=colour, alpha=0.15, linewidth=0)
            for entry in own:
                if entry["method"] == ZERO_SHOT:
                    axis.axhline(entry["lab_mae"][0], color="black", linewidth=1, label=ZERO_SHOT)
            axis.set(xscale="log", yscale="log", xticks=SIZES, xlabel="pairs learnt from")
            axis.set_xticklabels([str(size) for size in SIZES])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes[0].set_ylabel("mean absolute error, at.%\n(candidates given, other samples)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("simulate", "study", "report"))
    parser.add_argument("--family", choices=tuple(FAMILIES), action="append", help="all by default")
    names = (ZERO_SHOT, *METHODS, *RIVALS)
    parser.add_argument("--method", choices=names, action="append", help="study: all by default")
    parser.add_argument("--potential", default="nep89", help="simulate: of the samples")
    parser.add_argument("--preconditioner", help="simulate: a faster potential that helps to relax them")
    parser.add_argument("--fast", default="nep89", help="study: the potential of the training data")
    parser.add_argument("--checkpoint", default="defectnet-small")
    parser.add_argument("--replay", default="data/defectnet-sim-v1", help="the checkpoint's own data")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="study: orders of the pairs, and of all else")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="pairs to learn from")
    chosen = parser.parse_args(arguments)
    families = chosen.family or tuple(FAMILIES)
    if chosen.step == "simulate":
        for name in families:
            family, executor = FAMILIES[name], LocalExecutor(workers=1)
            simulate(
                family.hosts(),
                chosen.potential,
                FOLDER / name,
                family.settings,
                executor=executor,
                preconditioner=chosen.preconditioner,
            )
    elif chosen.step == "study":
        methods = chosen.method or names
        study(chosen.checkpoint, chosen.replay, chosen.fast, families, methods, chosen.sizes, chosen.seeds)
    else:
        report(chosen.checkpoint)


if __name__ == "__main__":
    main()
