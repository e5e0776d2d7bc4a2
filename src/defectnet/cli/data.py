"""``defectnet simulate`` and ``defectnet data``: data sets, made and looked into."""

from __future__ import annotations

import sys
from typing import Any

from defectnet.cli.screen import print_json, terminal


def simulate(
    *,
    out: str,
    hosts: str | None = None,
    potential: str | None = None,
    from_: str | None = None,
    rows: int = 1000,
    spectra_per_host: int = 6,
    atoms: str | None = None,
    dopants: str | None = None,
    workers: int = 1,
    seed: int = 0,
    settings: str | None = None,
    preconditioner: str | None = None,
    device: str = "cpu",
    batch: int = 1,
    precision: int = 64,
    executor: str = "local",
    parsl_config: str | None = None,
    memory_gib: float = 0.0,
    shards: str | None = None,
) -> None:
    """Simulate pairs of spectra into Parquet shards. Stopped and started again, it goes on where it was.

    Either hosts and a potential are given: every doped cell is relaxed. Or host packs, --from: pairs are drawn from
    them by superposed force constants, in a tenth of a second each.

    Args:
        out: Folder for the shards.
        hosts: JSON list of crystals, a structure file that ase reads, or a folder of them.
        potential: defectnet-nep, nequix (better and much slower, by finite displacements), or nep89 (fetched once from
            PyPI); or path of a NEP potential in GPUMD's text format, or of a folder like theirs.
        from_: Folder of host packs, one pack, or bundled.
        rows: Pairs that are drawn from host packs.
        spectra_per_host: Doped cells tried for each host.
        atoms: Atoms in a supercell, one number (met within a fifth) or a range; 100-250 by default, from packs 64-200.
        dopants: The only elements that are substituted in, such as Al,Ga or, in place of magnesium alone, Al@Mg,Ga@Mg.
        workers: Processes; one thread each.
        seed: With the same hosts, potential and settings the same seed gives the same shards.
        settings: JSON file with all settings, such as configs/defectnet-sim-v1.json (from packs: of
            defectnet.data.packs.PairSettings); in place of spectra-per-host, atoms, dopants and seed.
        preconditioner: A cheaper potential, such as nep89, that speeds up the relaxation with a slow one.
        device: Where the potential is evaluated: cpu or cuda.
        batch: Hosts that each process works on side by side, for a GPU; 1 is best on a CPU.
        precision: Bits of the products in a Hessian, 64 or 32.
        executor: Who starts the processes: local, or parsl, also on clusters (docs/large-runs.md).
        parsl_config: Python file that sets config, such as configs/parsl-slurm.py; without it parsl uses this machine.
        memory_gib: Most memory of a process, GiB; a structure that needs more is rejected. 0 for no limit.
        shards: Numbers of the shards to make, one or a range such as 100-199; machines with a range each share the
            work. All by default.
    """
    from pathlib import Path

    from defectnet.errors import SimulationError
    from defectnet.simulate.executors import make_executor
    from defectnet.simulate.rows import SimulationSettings, atom_range, read_settings
    from defectnet.simulate.runner import shard_range

    workforce = make_executor(
        executor, workers=workers, folder=Path(out), memory_gib=memory_gib, parsl_config=parsl_config
    )
    only = None if shards is None else shard_range(shards)
    sizes: dict[str, Any] = {}
    if atoms is not None and settings is None:
        sizes["smallest"], sizes["largest"] = atom_range(atoms)
    if from_ is not None:
        foreign = {
            "hosts": hosts is not None,
            "potential": potential is not None,
            "dopants": dopants is not None,
            "preconditioner": preconditioner is not None,
            "spectra-per-host": spectra_per_host != 6,
            "device": device != "cpu",
            "batch": batch != 1,
            "precision": precision != 64,
        }
        given = [name for name, there in foreign.items() if there]
        if given:
            raise SimulationError(f"--from and --{given[0]} are both given", fix="A data set is of packs or of hosts")
        from defectnet.data.packs import PairSettings
        from defectnet.simulate.from_packs import simulate_packs

        pairs = PairSettings(seed=seed, **sizes) if settings is None else read_settings(PairSettings, settings)
        totals = simulate_packs(from_, Path(out), rows, pairs, executor=workforce, only=only)
    else:
        if hosts is None or potential is None:
            raise SimulationError(
                f"--{'hosts' if hosts is None else 'potential'} is missing",
                fix="Give --hosts and --potential, or host packs with --from",
            )
        from defectnet.crystal.hosts import read_hosts
        from defectnet.simulate.runner import simulate as run

        if settings is None:
            named = tuple(part.strip() for part in (dopants or "").split(",") if part.strip())
            chosen = SimulationSettings(seed=seed, spectra_per_host=spectra_per_host, dopants=named, **sizes)
        else:
            chosen = read_settings(SimulationSettings, settings)
        totals = run(
            read_hosts(hosts),
            potential,
            Path(out),
            chosen,
            preconditioner=preconditioner,
            device=device,
            batch=batch,
            precision=precision,
            executor=workforce,
            only=only,
        )
    print(f"{totals.pop('rows')} rows in {out}")
    for reason, count in totals.most_common():
        print(f"  {count} rejected: {reason}")


def data_stats(folder: str, *, hosts: str | None = None, into: str | None = None, json: bool = False) -> None:
    """Count what a data set holds: rows, elements, concentrations, rejects and yield.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        hosts: JSON list of hosts that it was made from, for the yield by chemistry; looked for beside the folder.
        into: Markdown file to put the tables into, between <!-- stats NAME:start --> and <!-- stats NAME:end -->, NAME
            being that of the folder.
        json: Print JSON and nothing else.
    """
    from pathlib import Path

    from defectnet.data.stats import read_contents, statistics, summary, tables, to_markdown

    stats = statistics(read_contents(folder), hosts)
    if into is not None:
        from defectnet.files import into_block, replacing

        text = into_block(Path(into).read_text(encoding="utf-8"), f"stats {stats['name']}", to_markdown(stats))
        with replacing(into) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if json:
        print_json(stats)
    elif into is None:
        console = terminal()
        console.print(f"{stats['name']}: {summary(stats)}", style="bold", markup=False)
        for title, table in tables(stats):
            console.print(f"\n{title}", style="bold", markup=False)
            console.print(table)


def data_show(
    row: str, *, data: str | None = None, plot: str | None = None, structure: str | None = None, json: bool = False
) -> None:
    """Show a row of a data set: what was doped with what, and how it was made.

    Args:
        row: Id of the row, such as Si-diamond/0001.
        data: Folder of shards; the only data set in ./data by default.
        plot: File to draw its spectra to: .png, .pdf or .svg.
        structure: File to write the unrelaxed doped supercell to, in any format that ase knows: .cif, .xyz, .vasp.
        json: Print JSON and nothing else.
    """
    from defectnet.data.stats import default_folder, describe, find_row, row_table

    sample, shard = find_row(default_folder() if data is None else data, row)
    if plot is not None:
        from defectnet.plotting import plot_row

        plot_row(sample, plot)
    if structure is not None:
        from defectnet.simulate.structure import write_structure

        write_structure(sample, structure)
    if json:
        print_json(describe(sample) | {"shard": shard.name})
    else:
        console = terminal()
        console.print(sample.row_id, style="bold", markup=False)
        console.print(row_table(sample, shard))


def data_verify(
    folder: str,
    *,
    potential: str = "nep89",
    preconditioner: str | None = None,
    packs: str | None = None,
    rows: int = 10,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Simulate random rows of a data set again, from the host and the seed that each holds, and compare.

    On the machine that made them nearly all are identical; another processor rounds differently.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        potential: The one that the data set was made with.
        preconditioner: The one that it was made with, if any.
        packs: The host packs that the data set was made from, if it was; in place of a potential.
        rows: How many.
        seed: Chooses the rows.
        json: Print JSON and nothing else.
    """
    from dataclasses import asdict

    from defectnet.simulate.regenerate import verify

    found = verify(folder, potential, rows=rows, seed=seed, preconditioner=preconditioner, packs=packs)
    if json:
        print_json({row_id: asdict(result) for row_id, result in found.items()})
    else:
        for row_id, result in found.items():
            same = "identical" if result.identical else "the same but for rounding"
            print(f"{row_id}: {'differs in ' + ', '.join(result.differs) if result.differs else same}")
    if any(result.differs for result in found.values()):
        sys.exit(1)


def data_measure(
    folder: str,
    *,
    out: str,
    kind: str = "neutron-weighted",
    element: str | None = None,
    fwhm_mev: float = 1.5,
    fwhm_growth: float = 1.6,
    noise: float = 0.01,
    background: float = 0.0,
    cut_low_mev: float = 0.0,
    energy_factor: float = 1.0,
) -> None:
    """Measure the rows of a data set on a virtual instrument, into a table that `defectnet finetune` reads.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        out: Folder for the table and its spectra.
        kind: Kind of DOS: total, neutron-weighted or projected.
        element: Host element of a projected DOS.
        fwhm_mev: Resolution at zero energy (Gaussian, full width at half maximum).
        fwhm_growth: Resolution at the host's band edge over that at zero energy.
        noise: Counting noise at the peak, relative to it, in bins of a hundredth of the edge.
        background: Area of a smooth background that was not subtracted, relative to that of the DOS.
        cut_low_mev: Energy below which nothing is measured; the DOS is continued as energy squared.
        energy_factor: Energy that the instrument reads over the true one.
    """
    from pathlib import Path

    from defectnet.lab.virtual import Instrument, as_is, write_lab

    instrument = Instrument(kind, element, fwhm_mev, fwhm_growth, noise, background, cut_low_mev, energy_factor)
    print(f"{write_lab(Path(out), as_is(Path(folder)), instrument)} pairs in {out}")
