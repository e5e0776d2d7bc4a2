"""``defectnet host``: host packs, made, looked into, turned into spectra, and published."""

from __future__ import annotations

import sys
from typing import Any

from defectnet.cli.host_screen import Watch, about, load, say_made, substitutions
from defectnet.cli.screen import check_plot, print_json, terminal


def host_make(
    *,
    structure: str,
    dopants: str,
    out: str,
    potential: str = "nequix",
    workers: int = 1,
    atoms: int = 0,
    starts: int = 2,
    device: str = "cpu",
) -> None:
    """Make host packs: force constants of a crystal and of single substitutions in it.

    Each substitution is kept as soon as it is done: a run that is stopped, by SIGKILL too, goes on where it was when
    it is started again. A pack that is there gets the dopants that it lacks.

    Args:
        structure: A file that ase reads, such as a CIF, a folder of them, or a JSON list of crystals.
        dopants: Such as Al@Ga,In (In on every site), plausible (the twelve likeliest), all, or, with a JSON list whose
            entries have dopants of their own, listed.
        out: Folder of the pack; with several structures each gets a folder in it, named by its id.
        potential: nequix, defectnet-nep (faster, less exact), nep89, or a path.
        workers: Processes; one thread each.
        atoms: Most atoms of the supercell; 0 for what suits the potential.
        starts: Rattled starts of a substitution that may leave its site.
        device: Where the potential is evaluated: cpu or cuda.
    """
    from concurrent.futures.process import BrokenProcessPool
    from pathlib import Path

    from defectnet.crystal.make import MakeSettings, make_packs
    from defectnet.crystal.pack import HostPack
    from defectnet.crystal.requests import read_requests
    from defectnet.errors import SimulationError

    requests = read_requests(structure, [part.strip() for part in dopants.split(",") if part.strip()])
    settings = MakeSettings(potential=potential, atoms=atoms, starts=starts, device=device)
    folders = [Path(out) if len(requests) == 1 else Path(out) / one.host.id for one in requests]
    total = sum(one.substitutions for one in requests)
    names = ", ".join(one.host.formula for one in requests[:5]) + (", ..." if len(requests) > 5 else "")
    print(f"{total} substitutions in {names} with {potential}, into {out}", file=sys.stderr)
    try:
        with Watch(total, workers) as watch:
            jobs = [(one.host, one.pairs, folder) for one, folder in zip(requests, folders, strict=True)]
            failed = make_packs(jobs, settings, workers=workers, report=watch)
    except BrokenProcessPool as error:
        raise SimulationError(
            "a process was ended from outside, for want of memory perhaps",
            fix="Give the same command again, with fewer --workers: finished substitutions are kept",
        ) from error
    for request, folder in zip(requests, folders, strict=True):
        if request.host.id not in failed:
            say_made(HostPack.load(folder), folder)
    for reason in failed.values():
        print(f"defectnet: {' '.join(reason.split())}", file=sys.stderr)
    if failed:
        sys.exit(2)


def host_show(pack: str, *, revision: str | None = None, plot: str | None = None, json: bool = False) -> None:
    """Show what is in a host pack.

    Args:
        pack: Bundled name, a folder, or org/repo on the Hugging Face Hub.
        revision: Branch, tag or full commit of org/repo.
        plot: File to draw the host's DOS and a periodic table of the substitutions to: .png, .pdf or .svg.
        json: Print JSON and nothing else.
    """
    check_plot(plot)
    found = load(pack, revision)
    from defectnet.crystal.summary import describe

    if plot is not None:
        from defectnet.plotting import plot_pack

        plot_pack(found, plot)
    told = describe(found)
    if json:
        print_json(told)
        return
    console = terminal()
    cell = " x ".join(str(row) for row in told["supercell"])
    console.print(f"{told['id']}: {told['formula']}, {told['potential']}", style="bold", markup=False)
    console.print(f"supercell of {told['supercell_atoms']} atoms, {cell}", style="dim", markup=False)
    console.print(f"band edge {told['band_edge_mev']:.1f} meV\n", style="dim", markup=False)
    console.print(substitutions(told))
    console.print("\nvolume: change at 1 at.%; largest change: of a force constant", style="dim", markup=False)
    for failure in told["failures"]:
        text = f"failed: {failure['dopant']}@{failure['replaces']} on site {failure['site']}: {failure['reason']}"
        console.print(text, style="yellow", markup=False)


def host_spectra(
    pack: str,
    *,
    composition: str,
    out: str,
    cells: int = 8,
    atoms: int = 200,
    seed: int = 0,
    fwhm_mev: float = 1.0,
    kind: str = "total",
    clustered: bool = False,
    revision: str | None = None,
    plot: str | None = None,
) -> None:
    """Compute spectra of a host and of a doped sample, into two files that `defectnet identify` reads.

    Args:
        pack: Bundled name, a folder, or org/repo on the Hugging Face Hub.
        composition: Such as Al=0.03,In@Ga=0.01: dopant atoms over all atoms, 0.25 in total at most.
        out: CSV file of the doped sample, with a column of standard errors; the host's is beside it, NAME-host.csv.
        cells: Supercells with dopants at random places, whose mean is taken.
        atoms: In a supercell; to 300 it is diagonalised, to 10000 its DOS is estimated.
        seed: The same seed gives the same spectra.
        fwhm_mev: Resolution, full width at half maximum of a Gaussian; 0 for none.
        kind: total or neutron-weighted.
        clustered: Put dopants side by side.
        revision: Branch, tag or full commit of org/repo.
        plot: File to draw the spectra to: .png, .pdf or .svg.
    """
    from pathlib import Path

    from defectnet.errors import ConfigError
    from defectnet.io.write import write_spectrum
    from defectnet.spectrum import parse_kind

    check_plot(plot)
    weighting: Any = parse_kind(kind, field="--kind")
    if weighting == "projected":
        raise ConfigError("--kind is projected", fix="Use total or neutron-weighted; projected DOS are in Python")
    found = load(pack, revision).spectrum(
        composition, cells=cells, atoms=atoms, seed=seed, fwhm_mev=fwhm_mev or None, clustered=clustered
    )
    doped = Path(out)
    host = doped.with_name(f"{doped.stem}-host{doped.suffix}")
    if plot is not None:
        from defectnet.plotting import plot_doped

        plot_doped(found, plot, kind=weighting)
    lines = about(found, seed)
    write_spectrum(host, found.host_spectrum(weighting), comments=[lines[0], "the host, without dopants", *lines[2:]])
    write_spectrum(doped, found.doped_spectrum(weighting), error=found.doped_error(weighting), comments=lines)
    for line in lines:
        print(line)
    for remark in found.remarks:
        print(f"note: {remark}")
    print(f"wrote {doped} and {host}")
    print(f"defectnet identify --host {host} --doped {doped} --formula {found.formula}")


def host_responses(packs: str, *, out: str, workers: int = 1) -> None:
    """Compute what each substitution changes of the spectrum: what networks read of a known crystal.

    What is there is kept, so that a run that was stopped goes on. A host takes half a second for each substitution.

    Args:
        packs: Folder of host packs, one pack, or bundled.
        out: Folder for one file of each host.
        workers: Processes; one thread each.
    """
    from pathlib import Path

    from rich.console import Console
    from rich.progress import track

    from defectnet.inference.responses import make_responses

    made: Any = make_responses(packs, Path(out), workers=workers)
    for name, failure in track(made, "hosts", total=next(made), console=Console(stderr=True)):
        if failure:
            print(f"{name}: left out: {failure}", file=sys.stderr)


def host_list() -> None:
    """List the host packs that come with the package."""
    from json import loads

    from rich.table import Table

    from defectnet.crystal.pack import bundled_packs

    table = Table("name", "formula", "potential", "substitutions", box=None, pad_edge=False, header_style="bold")
    for name, folder in bundled_packs().items():
        config = loads((folder / "config.json").read_text(encoding="utf-8"))
        table.add_row(name, config["formula"], config["potential"], str(len(config["substitutions"])))
    if table.row_count:
        terminal().print(table)
    else:
        print("This installation carries no host packs; `defectnet host make` makes one.")


def host_push(
    pack: str, repo: str, *, tag: str | None = None, private: bool = False, message: str | None = None
) -> None:
    """Publish a host pack on the Hugging Face Hub, in one commit, after it has been read.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        pack: Bundled name, or a folder.
        repo: Where to, as org/repo; made if it is not there.
        tag: Name of the version, such as v1.
        private: Make the repository private if it is not there.
        message: Of the commit.
    """
    from defectnet.crystal.publish import push_pack

    print(push_pack(pack, repo, tag=tag, private=private, commit_message=message))
