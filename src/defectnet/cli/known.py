"""``defectnet identify`` where the crystal is known: by a host pack, or by a structure that one is made for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from defectnet.cli.host_screen import Watch, packages
from defectnet.cli.screen import print_json, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from defectnet.crystal.make import Progress
    from defectnet.crystal.pack import HostPack
    from defectnet.inference.known_crystal import KnownCrystalAnswer, Standard
    from defectnet.inference.parting import Parting
    from defectnet.spectrum import Spectrum

ROWS = 10
"""Elements that are shown where none was named."""


def identify_known(
    host: Spectrum,
    doped: Spectrum,
    *,
    candidates: Sequence[str] | None,
    formula: str | None,
    structure: str | None,
    pack: str | None,
    potential: str,
    minutes: float | None,
    fwhm_mev: float | None,
    edge_mev: float | None,
    same_potential: bool,
    standards: str | None,
    plot: str | None,
    json: bool,
) -> None:
    """Answer, and print it; arguments as those of `defectnet.cli.identify.identify`."""
    with packages():
        from defectnet.inference.known_crystal import KnownCrystal, check_pair
        from defectnet.inference.parting import part
    samples = () if standards is None else read_standards(standards)
    from rich.console import Console
    from rich.progress import Progress as Bar

    found, candidates, remarks = pack_for(structure, pack, candidates, potential, minutes, formula)
    check_pair(found, host, doped, fwhm_mev=fwhm_mev, edge_mev=edge_mev)  # before cells are made
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("superposed cells")
        known = KnownCrystal(
            found, candidates, report=lambda done, total: bar.update(task, completed=done, total=total)
        )
        bar.update(task, description="inference", total=None)
        answer = known.identify(
            host, doped, fwhm_mev=fwhm_mev, edge_mev=edge_mev, same_potential=same_potential, standards=samples
        )
        parting = part(known, answer, element=host.element, same_potential=same_potential)
    if plot is not None:
        from defectnet.plotting import plot_known

        plot_known(answer, plot)
    if json:
        to_part = None if parting is None else parting.to_dict()
        print_json({**answer.to_dict(), "to_part": to_part, "pack": list(remarks)})
    else:
        _print(answer, parting, remarks, candidates is not None)


def pack_for(
    structure: str | None,
    pack: str | None,
    candidates: Sequence[str] | None,
    potential: str,
    minutes: float | None,
    formula: str | None,
) -> tuple[HostPack, Sequence[str] | None, tuple[str, ...]]:
    """Return the pack that options name, or one for a structure; candidates that it holds; and where it comes from.

    Where time was up candidates may be missing, which is among the remarks; otherwise a missing one is an error.
    """
    from defectnet.crystal.pack import HostPack
    from defectnet.crystal.structures import read_structure
    from defectnet.inference.known_crystal import known_dopants
    from defectnet.inference.packs import check_fits, check_formula, find_pack_for, in_time

    if pack is not None:
        found = HostPack.load(pack)
        if structure is not None:
            check_fits(found, read_structure(structure))
        remarks: tuple[str, ...] = (f"pack {pack}, computed with {found.host.potential}",)
    else:
        with ExitStack() as stack:
            watches: list[Watch] = []

            def report(progress: Progress) -> None:
                if not watches:  # a pack that is there needs no bar
                    watches.append(stack.enter_context(Watch(progress.total, 1)))
                watches[0](progress)

            found, remarks = find_pack_for(structure, candidates, potential=potential, minutes=minutes, report=report)
        if minutes is not None:
            candidates = in_time(found, candidates, minutes)
    check_formula(formula, found)
    known_dopants(found, candidates)
    return found, candidates, remarks


def read_standards(table: str) -> tuple[Standard, ...]:
    """Return the samples of known content of a table."""
    from defectnet.inference.known_crystal import Standard
    from defectnet.lab.table import read_table

    return tuple(Standard(one.host, one.doped, one.dopants) for one in read_table(table, fewest=1))


def _print(answer: KnownCrystalAnswer, parting: Parting | None, remarks: Sequence[str], named: bool) -> None:
    from rich.table import Table

    from defectnet.inference.answer_text import sentence, verdict

    console, p = terminal(), answer.posterior
    console.print(sentence(answer), style="bold", markup=False)
    console.print(verdict(answer), markup=False)
    if parting is not None:
        console.print(str(parting), markup=False)
    about = f"known crystal, {answer.kind}, edge {answer.edge_mev:.1f} meV, {answer.fwhm_mev:.2g} meV wide"
    console.print("; ".join([about, *remarks]) + "\n", style="dim", markup=False)
    table = Table("element", box=None, pad_edge=False, header_style="bold")
    for title in ("probability", "at.% if present", f"{p.coverage:.0%} interval", "at most"):
        table.add_column(title, justify="right")
    order = sorted(range(len(p.elements)), key=lambda i: -p.probability[i])
    for i in order if named else order[:ROWS]:
        there = p.elements[i] in answer.present
        table.add_row(
            p.elements[i],
            f"{p.probability[i]:.3f}",
            f"{100 * p.if_present[i]:.2f}" if there else "",
            f"{100 * p.low[i]:.1f} to {100 * p.high[i]:.1f}" if there else "",
            "" if there else f"{100 * p.upper[i]:.1f}",
            style="bold" if there else "dim",
        )
    table.add_row("something else", f"{p.other:.3f}", "", "", "", style="bold" if p.other >= 0.5 else "dim")
    console.print(table)
    for warning in answer.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
