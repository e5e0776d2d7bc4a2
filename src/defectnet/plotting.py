"""One figure of an answer: the two spectra with their difference, and what the model says of the elements."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import ConfigError
from defectnet.files import replacing
from defectnet.prediction import Prediction
from defectnet.spectrum import Spectrum, band_edge_mev

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOST_COLOUR = "#5b6470"
DOPED_COLOUR = "#c1440e"
PRESENT_COLOUR = "#1f6f8b"
ABSENT_COLOUR = "#c3ccd4"
GRID_POINTS = 1024
MOST_ELEMENTS = 8
LEAST_ROWS = 6  # so that two bars are not drawn as two blocks

_STYLE: Any = {  # Any: the keys that matplotlib types differ between its versions
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.direction": "out",
    "legend.frameon": False,
    "mathtext.default": "regular",
    "savefig.dpi": 200,
}


def plot_pair(host: Spectrum, doped: Spectrum, prediction: Prediction, path: str | Path | None = None) -> Figure:
    """Draw host and doped spectrum, their difference, and the most probable elements.

    Args:
        host: DOS of the pristine crystal.
        doped: DOS of the doped sample.
        prediction: What the model says of the pair.
        path: Where to save the figure; its ending (png, pdf, svg) says how. None does not save.

    Returns:
        The figure, independent of pyplot's state: no window opens, nothing has to be closed.

    Raises:
        ConfigError: matplotlib is not installed, or the figure cannot be saved.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib", fix="Install it: pip install 'defectnet[plot]'") from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 4.4), layout="constrained")
        grid = figure.add_gridspec(2, 3, width_ratios=(2.1, 0.8, 1.0), height_ratios=(2.6, 1.0))
        top = figure.add_subplot(grid[0, 0])
        bottom = figure.add_subplot(grid[1, 0], sharex=top)
        left = figure.add_subplot(grid[:, 1])
        right = figure.add_subplot(grid[:, 2], sharey=left)
        _draw_spectra(top, bottom, host, doped, prediction.formula)
        _draw_elements(left, right, prediction)
        if path is not None:
            _save(figure, Path(path))
    return figure


def _save(figure: Figure, path: Path) -> None:
    suffix = path.suffix.lower().lstrip(".")
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise ConfigError(f"plot {path}: unknown ending {path.suffix!r}", fix="Use .png, .pdf or .svg")
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=suffix)
    except OSError as error:
        raise ConfigError(
            f"plot {path} cannot be written",
            why=error.strerror or "",
            fix="Check that its folder exists and is writable",
        ) from error


def _unit_area(spectrum: Spectrum, energy_mev: NDArray[np.float64]) -> NDArray[np.float64]:
    unit = spectrum.to("meV").normalised()
    return np.interp(energy_mev, unit.energy, unit.dos, left=0.0, right=0.0)


def _shown_up_to(spectra: tuple[Spectrum, Spectrum], edge_mev: float) -> float:
    """Return an energy below which 99.5 % of both spectra lie: local modes of light dopants are above the edge."""
    ends = []
    for spectrum in spectra:
        energy = spectrum.energy_mev
        running = np.cumsum(spectrum.dos * np.gradient(energy))
        ends.append(float(np.interp(0.995 * running[-1], running, energy)))
    longest = max(float(s.energy_mev[-1]) for s in spectra)
    return float(min(longest, max(1.25 * edge_mev, 1.06 * max(ends))))


def _draw_spectra(top: Axes, bottom: Axes, host: Spectrum, doped: Spectrum, formula: str) -> None:
    edge = band_edge_mev(host.energy_mev, host.dos, source="host")
    end = _shown_up_to((host, doped), edge)
    energy = np.linspace(0.0, end, GRID_POINTS)
    curves = [_unit_area(spectrum, energy) for spectrum in (host, doped)]
    top.fill_between(energy, curves[0], color=HOST_COLOUR, alpha=0.13, linewidth=0)
    top.plot(energy, curves[0], color=HOST_COLOUR, linewidth=1.2, label=f"host, {formula}")
    top.plot(energy, curves[1], color=DOPED_COLOUR, linewidth=1.2, label="doped")
    for axes in (top, bottom):
        axes.axvline(edge, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)))
    top.annotate(
        f"host's edge\n{edge:.1f} meV",
        (edge, 1.0),
        xycoords=top.get_xaxis_transform(),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        fontsize=7.5,
        color="0.35",
    )
    top.set_ylabel("DOS (meV$^{-1}$)")
    top.set_ylim(0.0, 1.12 * max(float(curve.max()) for curve in curves))
    top.tick_params(labelbottom=False)
    top.legend(loc="upper left", fontsize=8, borderaxespad=0.2, handlelength=1.4)
    kind = host.kind if host.element is None else f"{host.element}-{host.kind}"
    top.set_title(f"Phonon density of states ({kind}, unit area)")
    difference = curves[1] - curves[0]
    bottom.axhline(0.0, color="0.35", linewidth=0.8)
    bottom.fill_between(energy, difference, color=DOPED_COLOUR, alpha=0.25, linewidth=0)
    bottom.plot(energy, difference, color=DOPED_COLOUR, linewidth=0.9)
    bottom.set_ylabel("doped $-$ host")
    bottom.set_xlabel("Energy (meV)")
    bottom.set_xlim(0.0, end)


def _draw_elements(left: Axes, right: Axes, prediction: Prediction) -> None:
    order = prediction.order[:MOST_ELEMENTS]
    rows = np.arange(len(order))
    colours = [PRESENT_COLOUR if prediction.probability[i] >= prediction.threshold else ABSENT_COLOUR for i in order]
    left.barh(rows, prediction.probability[order], color=colours, height=0.62)
    left.axvline(prediction.threshold, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)))
    left.set_xlim(0.0, 1.0)
    left.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    left.set_xlabel(f"Probability\n(threshold {prediction.threshold:.2f})")
    left.set_yticks(rows, [prediction.elements[i] for i in order])
    left.set_ylim(max(len(order), LEAST_ROWS) - 0.4, -0.6)
    left.tick_params(axis="y", length=0)
    left.set_title("Dopants, of the candidates" if prediction.candidates_given else "Dopants, of all elements")
    amount = 100.0 * prediction.concentration[order]
    low, high = 100.0 * prediction.low[order], 100.0 * prediction.high[order]
    for row, colour in zip(rows, colours, strict=True):
        if not math.isnan(low[row]):
            right.plot(
                [low[row], high[row]], [row, row], color=colour, linewidth=3.0, alpha=0.55, solid_capstyle="butt"
            )
        right.plot(amount[row], row, "o", color=colour, markersize=5.0)
    ends = np.nan_to_num(np.concatenate([amount, high]))
    right.set_xlim(0.0, 1.12 * max(float(ends.max(initial=0.0)), 1.0))
    right.tick_params(axis="y", labelleft=False, length=0)
    right.spines["left"].set_visible(False)
    right.set_axisbelow(True)
    right.grid(axis="x", color="0.9", linewidth=0.7)
    known = not math.isnan(prediction.coverage)
    right.set_xlabel(
        "Concentration if present (at.%)" + (f"\nwith {prediction.coverage:.0%} interval" if known else "")
    )
