"""``defectnet identify``: which dopants, and how much."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defectnet.cli.screen import print_json, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from defectnet.prediction import Prediction

DEFAULT_CHECKPOINT = "defectnet-small"
BLIND_ROWS = 10
SURE = 0.9  # least probability of an element that is said to be there without a "probably"
UNSURE = 0.3  # where no element reaches this, none is named as found, whatever the threshold


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


def answer(prediction: Prediction) -> str:
    """Say a prediction in one sentence."""
    if not prediction.present:
        best = prediction.order[0]
        return (
            f"No dopant found in {prediction.formula}: the most probable element, {prediction.elements[best]}, "
            f"has probability {prediction.probability[best]:.2f}, below the threshold of {prediction.threshold:.2f}."
        )
    if max(prediction.probability) < UNSURE:
        likely = [f"{prediction.elements[i]} ({prediction.probability[i]:.0%})" for i in prediction.order[:3]]
        return f"No dopant of {prediction.formula} stands out; the most probable are {', '.join(likely)}."
    parts = []
    for symbol in prediction.present:
        i = prediction.elements.index(symbol)
        band = _interval(prediction, i)
        amount = f"about {100 * prediction.concentration[i]:.1f} at.%{', ' + band if band else ''}"
        parts.append(f"{symbol} ({prediction.probability[i]:.0%}; {amount})")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    least = min(prediction.probability[prediction.elements.index(symbol)] for symbol in prediction.present)
    verb = "contains" if least >= SURE else "probably contains" if least >= 0.5 else "may contain"
    return f"{prediction.formula} {verb} {listed}."


def _interval(prediction: Prediction, i: int) -> str:
    low, high = prediction.low[i], prediction.high[i]
    return "" if low != low else f"{100 * low:.1f} to {100 * high:.1f}"  # NaN where not calibrated


def _table(prediction: Prediction) -> Table:
    from rich.table import Table

    known = prediction.coverage == prediction.coverage
    interval = f"{prediction.coverage:.0%} interval" if known else "interval"
    table = Table("element", box=None, pad_edge=False, header_style="bold")
    for title in ("probability", "at.% if present", interval):
        table.add_column(title, justify="right")
    table.add_column("above threshold")
    rows = prediction.order if prediction.candidates_given else prediction.order[:BLIND_ROWS]
    for i in rows:
        present = bool(prediction.probability[i] >= prediction.threshold)
        table.add_row(
            prediction.elements[i],
            f"{prediction.probability[i]:.3f}",
            f"{100 * prediction.concentration[i]:.2f}",
            _interval(prediction, i) or "not calibrated",
            "yes" if present else "no",
            style="bold" if present else "dim",
        )
    return table


def _print(prediction: Prediction) -> None:
    console = terminal()
    console.print(answer(prediction), style="bold", markup=False)
    asked = "candidates given" if prediction.candidates_given else f"every element in question, {BLIND_ROWS} shown"
    edge = f"host's band edge {prediction.edge_mev:.1f} meV"  # a wrong unit shows here
    console.print(
        f"{prediction.model}, {asked}, threshold {prediction.threshold:.2f}, {edge}\n", style="dim", markup=False
    )
    console.print(_table(prediction))
    for warning in prediction.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)
