"""``defectnet identify``: which dopants, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defectnet.cli.screen import print_json, terminal

if TYPE_CHECKING:
    from defectnet.prediction import Prediction

DEFAULT_CHECKPOINT = "defectnet-small"


def identify(
    *,
    host: str,
    doped: str,
    formula: str,
    candidates: str | None = None,
    unit: str | None = None,
    kind: str | None = None,
    element: str | None = None,
    edge: float | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    revision: str | None = None,
    plot: str | None = None,
    json: bool = False,
) -> None:
    """Identify the dopants of a sample from its spectrum and the host's.

    Args:
        host: File with the DOS of the pristine crystal.
        doped: File with the DOS of the doped sample.
        formula: Formula of the host, such as GaAs.
        candidates: Elements that may be there, such as Al,In. Without it every element is in question.
        unit: Energy unit of both files where they do not declare it: meV, THz, cm-1 or eV.
        kind: Kind of DOS where the files do not declare it: total, neutron-weighted or projected.
        element: Element that the DOS is projected on, or to select from a file of projected DOS.
        edge: Band edge of the host in meV, where noise or a short file hides it. Without it, it is read from the file.
        checkpoint: Bundled name, a folder such as ./run/best, or org/repo on the Hugging Face Hub.
        revision: Branch, tag or full commit of org/repo.
        plot: File to draw the spectra and the answer to: .png, .pdf or .svg.
        json: Print JSON and nothing else.
    """
    from defectnet.elements import parse_formula
    from defectnet.io import read_spectrum

    parse_formula(formula)
    pair = [read_spectrum(path, unit=unit, kind=kind, element=element) for path in (host, doped)]
    # Only now, so that a wrong file is reported at once: importing torch takes longer than reading.
    from defectnet.hub import from_pretrained

    names = None if candidates is None else candidates.replace(",", " ").replace(";", " ").split()
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
