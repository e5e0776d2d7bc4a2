"""``defectnet identify``: which dopants, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from defectnet.cli.screen import check_plot, print_json, terminal, words
from defectnet.defaults import default_checkpoint

if TYPE_CHECKING:
    from defectnet.prediction import Prediction


def identify_pair(
    *,
    host: str | None = None,
    doped: str | None = None,
    table: str | None = None,
    out: str | None = None,
    formula: str | None = None,
    structure: str | None = None,
    pack: str | None = None,
    candidates: str | None = None,
    unit: str | None = None,
    host_unit: str | None = None,
    doped_unit: str | None = None,
    kind: str | None = None,
    element: str | None = None,
    edge: float | None = None,
    checkpoint: str | None = None,
    revision: str | None = None,
    potential: str = "nequix",
    minutes: float | None = None,
    fwhm_mev: float | None = None,
    same_potential: bool = False,
    sample_atoms: float | None = None,
    standards: str | None = None,
    quick: bool = False,
    plot: str | None = None,
    json: bool = False,
) -> None:
    """Identify the dopants of a sample from its spectrum and the host's.

    With --structure or --pack the crystal is known: spectra of what may be in it are computed and compared, see
    docs/known-crystal.md. With the formula alone a network answers: a hint. Many pairs: --table, see docs/pipelines.md.

    Args:
        host: File with the DOS of the pristine crystal.
        doped: File with the DOS of the doped sample.
        table: CSV of many pairs, in the place of --host and --doped: columns host_file, doped_file, and, where rows
            differ, formula, structure, pack, candidates, unit, host_unit, doped_unit, kind, element, edge. The other
            options hold for rows that leave them out.
        out: With --table: file of the answers, .csv, .jsonl or .parquet. Stopped, the same command goes on.
        formula: Formula of the host, such as GaAs; it can be left out where --structure or --pack says it.
        structure: Crystal structure of the host, such as a CIF file. A bundled host pack that fits is taken, or one is
            computed and kept.
        pack: Host pack: a bundled name, a folder, or org/repo on the Hugging Face Hub.
        candidates: Elements that may be there, such as Al,In, or Al@Ga with a known crystal. Without it every element
            that can be is in question.
        unit: Energy unit of both files where they do not declare it: meV, THz, cm-1, eV, rad/ps (2 pi THz) or Hartree.
        host_unit: The same of the host's file alone.
        doped_unit: The same of the doped sample's file alone.
        kind: Kind of DOS where the files do not declare it: total, neutron-weighted or projected.
        element: Element that the DOS is projected on, or to select from a file of projected DOS.
        edge: Band edge of the host in meV, where noise or a short file hides it. Without it, it is read from the file.
        checkpoint: Network: a bundled name (by default defectnet-small, of a known crystal defectnet-quick), a folder
            such as ./run/best, or org/repo on the Hugging Face Hub. It answers where the formula alone is given, or
            with --quick, and gives a known crystal a second opinion.
        revision: Branch, tag or full commit of org/repo.
        potential: With --structure: what computes substitutions. nequix, defectnet-nep (faster, less exact), or a path.
        minutes: With --structure: when to stop computing; what is missing then is said.
        fwhm_mev: With a known crystal: resolution of the spectra; fitted to the host's by default.
        same_potential: With a known crystal: the spectra were simulated with the pack's own potential.
        sample_atoms: With --same-potential: atoms of the simulated cell, 128 by default.
        standards: With a known crystal: table of samples of known content, measured on the same instrument, as for
            `defectnet finetune`; one is enough.
        quick: With a known crystal: a network reads what is computed of it, in the place of the inference; worth it for
            many pairs of one crystal.
        plot: File to draw the spectra and the answer to: .png, .pdf or .svg.
        json: Print JSON and nothing else.
    """
    from defectnet.elements import parse_formula
    from defectnet.errors import ConfigError
    from defectnet.io import read_spectrum

    if table is not None or out is not None:
        if table is None or out is None or host or doped or plot or json:
            raise ConfigError("--table goes with --out", fix="Leave out --host, --doped, --plot and --json beside them")
        cells = {"formula": formula, "structure": structure, "pack": pack, "candidates": candidates, "unit": unit}
        cells |= {"host_unit": host_unit, "doped_unit": doped_unit, "kind": kind, "element": element}
        cells |= {"edge": None if edge is None else str(edge)}
        _table(
            table,
            out,
            {name: text for name, text in cells.items() if text is not None},
            standards,
            checkpoint=checkpoint,
            revision=revision,
            potential=potential,
            minutes=minutes,
            fwhm_mev=fwhm_mev,
            same_potential=same_potential,
            sample_atoms=sample_atoms,
            quick=quick,
        )
        return
    if host is None or doped is None:
        missing = "--host" if host is None else "--doped"
        raise ConfigError(f"{missing} is missing", fix="Give --host and --doped, or --table and --out for many pairs")
    if sample_atoms is not None and not (same_potential and sample_atoms >= 1.0):
        raise ConfigError(
            f"--sample-atoms is {sample_atoms:g}",
            why="it is of a cell that is simulated",
            fix="Give its atoms, and --same-potential with it",
        )
    known = structure is not None or pack is not None
    needless = {
        "--standards": standards,
        "--minutes": minutes,
        "--fwhm-mev": fwhm_mev,
        "--same-potential": same_potential or None,
    }
    if not known and (given := [name for name, value in needless.items() if value is not None]):
        raise ConfigError(
            f"{', '.join(given)} needs a known crystal",
            fix="Give --structure or --pack; without one, `defectnet finetune` learns from samples of known content",
        )
    check_plot(plot)
    if formula is not None:
        parse_formula(formula)
    elif not known:
        raise ConfigError("the host is not named", fix="Give --structure, --pack or --formula")
    pair = [
        read_spectrum(path, unit=own or unit, kind=kind, element=element)
        for path, own in ((host, host_unit), (doped, doped_unit))
    ]
    names = None if candidates is None else words(candidates)
    # Only now, so that a wrong file is reported at once: importing torch takes longer than reading.
    if quick and not known:
        raise ConfigError("--quick needs a known crystal", fix="Give --structure or --pack")
    if quick and (standards or same_potential or fwhm_mev):
        raise ConfigError(
            "--quick takes no --standards, --same-potential or --fwhm-mev", fix="Leave them out, or --quick"
        )
    if known and not quick:
        from defectnet.cli.known import identify_known

        identify_known(
            pair[0],
            pair[1],
            candidates=names,
            formula=formula,
            structure=structure,
            pack=pack,
            checkpoint=checkpoint,
            revision=revision,
            potential=potential,
            minutes=minutes,
            fwhm_mev=fwhm_mev,
            edge_mev=edge,
            same_potential=same_potential,
            sample_atoms=sample_atoms,
            standards=standards,
            plot=plot,
            json=json,
        )
        return
    from defectnet.hub import from_pretrained

    model = from_pretrained(checkpoint or default_checkpoint(quick), revision=revision)
    responses = None
    if quick:
        from defectnet.cli.host_screen import Steps
        from defectnet.inference.ask import CrystalWanted, ask_responses

        wanted = CrystalWanted(structure, pack, names, formula, potential, minutes)
        with Steps() as steps:
            responses, names = ask_responses(wanted, made=steps.made, report=steps.report)
        formula = responses.formula
    assert formula is not None
    prediction = model.predict(pair[0], pair[1], formula, candidates=names, edge=edge, responses=responses)
    if plot is not None:
        from defectnet.plotting import plot_pair

        plot_pair(pair[0], pair[1], prediction, plot)
    if json:
        print_json(prediction.to_dict())
    else:
        _print(prediction)


def _table(table: str, out: str, cells: dict[str, str], standards: str | None, **settings: Any) -> None:
    """Answer a table of pairs, with a bar, and say how many rows failed."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from defectnet.cli.known import read_standards
    from defectnet.pipeline import Asker, identify_table

    asker = Asker(standards=() if standards is None else read_standards(standards), **settings)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pairs", total=None)
        told = identify_table(
            table, out, asker, report=lambda done, total: bar.update(task, completed=done, total=total), **cells
        )
    kept = f" ({told.kept} rows were done before)" if told.kept else ""
    failed = f"; {told.failed} failed, see the column error" if told.failed else ""
    print(f"{out}: {told.answered} of {told.answered + told.failed} pairs answered{kept}{failed}.")
    if not told.answered:
        raise SystemExit(1)


def _print(prediction: Prediction) -> None:
    """Print an answer as `Prediction.__str__` has it: the sentence in bold, warnings in yellow."""
    console = terminal()
    for number, line in enumerate(str(prediction).split("\n")):
        style = "yellow" if line.startswith("warning: ") else "" if number else "bold"
        console.print(line, style=style, markup=False)
