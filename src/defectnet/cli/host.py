"""``defectnet host``: host packs, made, looked into, turned into spectra, and published."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from defectnet.cli.screen import print_json, terminal

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from defectnet.crystal.make import Progress
    from defectnet.crystal.pack import HostPack
    from defectnet.crystal.spectra import DopedSpectrum


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
        potential: nequix, defectnet-nep (a hundred times as fast, less exact), nep89, or a path.
        workers: Processes; one thread each.
        atoms: Most atoms of the supercell; 0 for what suits the potential.
        starts: Rattled starts of a substitution that may leave its site.
        device: Where the potential is evaluated: cpu or cuda.
    """
    with _packages():
        from defectnet.crystal.make import MakeSettings, make_packs
        from defectnet.crystal.pack import HostPack
        from defectnet.crystal.requests import read_requests
    from concurrent.futures.process import BrokenProcessPool
    from pathlib import Path

    from defectnet.errors import SimulationError

    requests = read_requests(structure, [part.strip() for part in dopants.split(",") if part.strip()])
    settings = MakeSettings(potential=potential, atoms=atoms, starts=starts, device=device)
    folders = [Path(out) if len(requests) == 1 else Path(out) / one.host.id for one in requests]
    total = sum(one.substitutions for one in requests)
    names = ", ".join(one.host.formula for one in requests[:5]) + (", ..." if len(requests) > 5 else "")
    print(f"{total} substitutions in {names} with {potential}, into {out}", file=sys.stderr)
    try:
        with _Watch(total, workers) as watch:
            jobs = [(one.host, one.pairs, folder) for one, folder in zip(requests, folders, strict=True)]
            failed = make_packs(jobs, settings, workers=workers, report=watch)
    except BrokenProcessPool as error:
        raise SimulationError(
            "a process was ended from outside, for want of memory perhaps",
            fix="Give the same command again, with fewer --workers: finished substitutions are kept",
        ) from error
    for request, folder in zip(requests, folders, strict=True):
        if request.host.id not in failed:
            _say_made(HostPack.load(folder), folder)
    for reason in failed.values():
        print(f"defectnet: {' '.join(reason.split())}", file=sys.stderr)
    if failed:
        sys.exit(2)


def _say_made(pack: HostPack, folder: Path) -> None:
    print(f"{folder}: {len(pack.substitutions)} substitutions in {pack.host.formula}")
    for failure in pack.failures:
        print(f"  {failure.dopant}@{pack.replaced(failure.site)} on site {failure.site} failed: {failure.reason}")


class _Watch:
    """A progress bar on stderr, or lines where that is no terminal; and once an estimate of what is left."""

    def __init__(self, total: int, workers: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("host", total=total)
        self._total, self._workers, self._start = total, workers, time.monotonic()
        self._made = 0
        self._done: dict[str, int] = {}

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Take in that a substitution is done."""
        self._made += 1
        self._done[progress.host] = progress.done
        done = sum(self._done.values())
        self._bar.update(self._task, completed=done, description=f"{progress.host}: {progress.last}")
        left = (time.monotonic() - self._start) / self._made * max(self._total - done, 0)
        if self._made == max(2, self._workers):
            self._bar.console.print(f"about {_duration(left)} left", highlight=False)
        if not self._bar.console.is_terminal:
            print(f"{progress.host}: {progress.done} of {progress.total}, {progress.last}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 5400.0 else f"{seconds / 3600.0:.1f} h"


def host_show(pack: str, *, revision: str | None = None, plot: str | None = None, json: bool = False) -> None:
    """Show what is in a host pack.

    Args:
        pack: Bundled name, a folder, or org/repo on the Hugging Face Hub.
        revision: Branch, tag or full commit of org/repo.
        plot: File to draw the host's DOS and a periodic table of the substitutions to: .png, .pdf or .svg.
        json: Print JSON and nothing else.
    """
    found = _load(pack, revision)
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
    console.print(_substitutions(told))
    console.print("\nvolume: change at 1 at.%; largest change: of a force constant", style="dim", markup=False)
    for failure in told["failures"]:
        text = f"failed: {failure['dopant']}@{failure['replaces']} on site {failure['site']}: {failure['reason']}"
        console.print(text, style="yellow", markup=False)


def _substitutions(told: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("substitution", "site", box=None, pad_edge=False, header_style="bold")
    for title in ("volume", "energy", "off its site", "largest change"):
        table.add_column(title, justify="right")
    for one in told["substitutions"]:
        table.add_row(
            f"{one['dopant']}@{one['replaces']}",
            str(one["site"]),
            f"{one['volume_percent']:+.2f} %",
            f"{one['energy_ev']:.3f} eV",
            f"{one['displacement_angstrom']:.2f} A" if one["off_centre"] else "-",
            f"{one['largest_change']:.2f} eV/A^2",
        )
    return table


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

    # Not a Literal: the parser would import what is under TYPE_CHECKING to resolve it, and help would wait for torch.
    weighting: Any = kind
    if weighting not in ("total", "neutron-weighted"):
        raise ConfigError(f"kind is {kind!r}", fix="Use total or neutron-weighted")
    found = _load(pack, revision).spectrum(
        composition, cells=cells, atoms=atoms, seed=seed, fwhm_mev=fwhm_mev or None, clustered=clustered
    )
    doped = Path(out)
    host = doped.with_name(f"{doped.stem}-host{doped.suffix}")
    if plot is not None:
        from defectnet.plotting import plot_doped

        plot_doped(found, plot, kind=weighting)
    about = _about(found, seed)
    write_spectrum(host, found.host_spectrum(weighting), comments=[about[0], "the host, without dopants", *about[2:]])
    write_spectrum(doped, found.doped_spectrum(weighting), error=found.doped_error(weighting), comments=about)
    for line in about:
        print(line)
    for remark in found.remarks:
        print(f"note: {remark}")
    print(f"wrote {doped} and {host}")
    print(f"defectnet identify --host {host} --doped {doped} --formula {found.formula}")


def _about(found: DopedSpectrum, seed: int) -> list[str]:
    """Say where spectra come from, in lines that declare nothing to a reader of tables."""
    reached = ", ".join(f"{symbol} {share:.4f}" for symbol, share in found.concentrations.items()) or "no dopants"
    width = "not broadened" if found.fwhm_mev is None else f"Gaussian of {found.fwhm_mev:g} meV FWHM"
    if found.method == "lanczos":
        width += f", estimated; a cell's statistical error is {found.sampling_error:.2%} of the area"
    return [
        f"made from the host pack of {found.host} ({found.formula}), {found.potential} {found.potential_sha256[:12]}",
        f"wished {found.wished}; reached {reached}",
        f"{len(found.cells)} cells of {found.atoms} atoms from seed {seed}, {found.left_out} left out as not stable",
        f"edge {found.edge_mev:.3f} meV; {width}",
    ]


def host_list() -> None:
    """List the host packs that come with the package."""
    from json import loads

    from rich.table import Table

    with _packages():
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
    with _packages():
        from defectnet.crystal.publish import push_pack
    print(push_pack(pack, repo, tag=tag, private=private, commit_message=message))


def _load(pack: str, revision: str | None) -> HostPack:
    with _packages():
        from defectnet.crystal.pack import HostPack
    return HostPack.load(pack, revision=revision)


@contextmanager
def _packages() -> Iterator[None]:
    """Say which extra is missing, where an import fails for want of one."""
    from defectnet.errors import ConfigError

    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"host packs need {error.name}", fix="Install it: pip install 'defectnet[sim]'") from error
