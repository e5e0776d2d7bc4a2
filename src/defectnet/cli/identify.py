"""``defectnet identify``: which dopants, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defectnet.cli.screen import print_json, terminal, words

if TYPE_CHECKING:
    from defectnet.prediction import Prediction

DEFAULT_CHECKPOINT = "defectnet-small"


def identify(
    *,
    host: str,
    doped: str,
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
    checkpoint: str = DEFAULT_CHECKPOINT,
    revision: str | None = None,
    potential: str = "nequix",
    minutes: float | None = None,
    fwhm_mev: float | None = None,
    same_potential: bool = False,
    standards: str | None = None,
    plot: str | None = None,
    json: bool = False,
) -> None:
    """Identify the dopants of a sample from its spectrum and the host's.

    With --structure or --pack the crystal is known: spectra of what may be in it are computed and compared, see
    docs/known-crystal.md. With the formula alone a network answers: a hint.

    Args:
        host: File with the DOS of the pristine crystal.
        doped: File with the DOS of the doped sample.
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
        checkpoint: Network, where the formula alone is given: a bundled name, a folder such as ./run/best, or org/repo
            on the Hugging Face Hub.
        revision: Branch, tag or full commit of org/repo.
        potential: With --structure: what computes substitutions. nequix, defectnet-nep (faster, less exact), or a path.
        minutes: With --structure: when to stop computing; what is missing then is said.
        fwhm_mev: With a known crystal: resolution of the spectra; fitted to the host's by default.
        same_potential: With a known crystal: the spectra were simulated with the pack's own potential.
        standards: With a known crystal: table of samples of known content, measured on the same instrument, as for
            `defectnet finetune`; one is enough.
        plot: File to draw the spectra and the answer to: .png, .pdf or .svg.
        json: Print JSON and nothing else.
    """
    from defectnet.elements import parse_formula
    from defectnet.errors import ConfigError
    from defectnet.io import read_spectrum

    known = structure is not None or pack is not None
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
    if known:
        from defectnet.cli.known import identify_known

        identify_known(
            pair[0],
            pair[1],
            candidates=names,
            formula=formula,
            structure=structure,
            pack=pack,
            potential=potential,
            minutes=minutes,
            fwhm_mev=fwhm_mev,
            edge_mev=edge,
            same_potential=same_potential,
            standards=standards,
            plot=plot,
            json=json,
        )
        return
    assert formula is not None
    from defectnet.hub import from_pretrained

    model = from_pretrained(checkpoint, revision=revision)
    prediction = model.predict(pair[0], pair[1], formula, candidates=names, edge=edge)
    if plot is not None:
        from defectnet.plotting import plot_pair

        plot_pair(pair[0], pair[1], prediction, plot)
    if json:
        print_json(prediction.to_dict())
    else:
        _print(prediction)


def _print(prediction: Prediction) -> None:
    """Print an answer as `Prediction.__str__` has it: the sentence in bold, warnings in yellow."""
    console = terminal()
    for number, line in enumerate(str(prediction).split("\n")):
        style = "yellow" if line.startswith("warning: ") else "" if number else "bold"
        console.print(line, style=style, markup=False)
