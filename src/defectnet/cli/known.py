"""``defectnet identify`` where the crystal is known: by a host pack, or by a structure that one is made for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defectnet.cli.host_screen import Steps
from defectnet.cli.screen import print_json, terminal
from defectnet.defaults import default_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from defectnet.inference.ask import KnownReply
    from defectnet.inference.comparison import Standard
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
    checkpoint: str | None,
    revision: str | None,
    potential: str,
    minutes: float | None,
    fwhm_mev: float | None,
    edge_mev: float | None,
    same_potential: bool,
    sample_atoms: float | None,
    standards: str | None,
    plot: str | None,
    json: bool,
) -> None:
    """Answer, and print it; arguments as those of `defectnet.cli.identify.identify_pair`."""
    from defectnet.hub import from_pretrained
    from defectnet.inference.ask import CrystalWanted, ask_known

    samples = () if standards is None else read_standards(standards)
    wanted = CrystalWanted(structure, pack, candidates, formula, potential, minutes)
    with Steps() as steps:
        reply = ask_known(
            host,
            doped,
            wanted,
            fwhm_mev=fwhm_mev,
            edge_mev=edge_mev,
            same_potential=same_potential,
            sample_atoms=sample_atoms,
            standards=samples,
            network=default_checkpoint(known=True)
            if checkpoint is None
            else from_pretrained(checkpoint, revision=revision),
            made=steps.made,
            report=steps.report,
        )
    if plot is not None:
        from defectnet.plotting import plot_known

        plot_known(reply.answer, plot)
    if json:
        print_json(reply.to_dict())
    else:
        _print(reply, host.kind_told and doped.kind_told)


def read_standards(table: str) -> tuple[Standard, ...]:
    """Return the samples of known content of a table."""
    from defectnet.inference.comparison import Standard
    from defectnet.lab.table import read_table

    return tuple(Standard(one.host, one.doped, one.dopants, one.formula) for one in read_table(table, fewest=1))


def _print(reply: KnownReply, kind_told: bool) -> None:
    from rich.table import Table

    from defectnet.inference.answer_text import OTHER, about, rows, sentence, verdict

    console, answer = terminal(), reply.answer
    console.print(sentence(answer), style="bold", markup=False)
    console.print(verdict(answer), markup=False)
    if reply.parting is not None:
        console.print(str(reply.parting), markup=False)
    assumed = () if kind_told else (f"{answer.kind} DOS is assumed: no file says the kind, nor --kind",)
    console.print(about(answer, (*reply.remarks, *assumed)) + "\n", style="dim", markup=False)
    titles, *elements, other = rows(answer)
    table = Table(titles[0], box=None, pad_edge=False, header_style="bold")
    for title in titles[1:]:
        table.add_column(title, justify="right")
    for cells in elements if reply.named else elements[:ROWS]:
        table.add_row(*cells, style="bold" if cells[0] in answer.present else "dim")
    table.add_row(*other, style="bold" if answer.posterior.other >= OTHER else "dim")
    console.print(table)
    for warning in answer.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
