"""Figures of the results page: small multiples, readable at the width of a README, in colours that everybody can tell.

Colours are those of Okabe and Ito (2008), which stay apart for all common kinds of colour blindness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from defectnet.benchmark.results import part
from defectnet.data.candidates import CONDITIONS, TRACKS
from defectnet.elements import INDEX, VOCABULARY, properties
from defectnet.errors import ConfigError
from defectnet.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LARGEST_KB: Final = 80

_GREY: Final = "0.55"
_DOTS: Final = 130
_PALETTE: Final = 64  # colours; enough for smooth edges of letters
_STYLE: Any = {  # Any: the keys that matplotlib types differ between its versions
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
}

Results = Mapping[str, Mapping[str, Any]]


def write_figures(results: Results, names: Sequence[str], folder: Path) -> list[Path]:
    """Draw all figures for which something was measured.

    Args:
        results: Results by name.
        names: Entrants that are shown; figures of a single one show the first.
        folder: Where the files go; made if it is not there.

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is not installed, or a file cannot be written.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ConfigError("figures need matplotlib", fix="Install it: pip install 'defectnet[plot]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    shown = {name: results[name] for name in names}
    written = []
    with rc_context(_STYLE):
        for file, draw in FIGURES.items():
            path = folder / file
            with replacing(path) as temporary:
                _save(draw(shown), temporary)
            written.append(path)
    return written


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG with a palette: a third of the size, and no colour that the eye would miss."""
    from io import BytesIO

    from PIL import Image  # matplotlib brings it

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS)
    image = Image.open(buffer).convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE)
    image.save(path, format="PNG", optimize=True)


def concentration(results: Results) -> Figure:
    """Draw expected against true concentrations, one panel for each entrant and condition."""
    shown = [name for name in results if part(results[name], "candidates", "clean") or _lab(results, name)][:3]
    figure, axes = _panels(2, max(len(shown), 1), 2.5, 2.3)
    limits = (0.08, 40.0)
    for row, condition in enumerate(CONDITIONS):
        for column, name in enumerate(shown):
            ax = axes[row, column]
            ax.plot(limits, limits, color=_GREY, linewidth=0.8)
            ax.set(xscale="log", yscale="log", xlim=limits, ylim=limits, title=f"{name}, {condition}")
            found = part(results[name], "candidates", condition)
            if found is not None:
                points = found["curves"]["concentration"]
                one = np.array(points["dopants"]) == 1
                x, y = np.array(points["true"]), np.maximum(points["expected"], limits[0] * 1.05)
                for chosen, colour, label in ((~one, COLOURS[4], "2 to 6 dopants"), (one, COLOURS[0], "1 dopant")):
                    ax.plot(x[chosen], y[chosen], "o", color=colour, markersize=2.6, alpha=0.6, mew=0, label=label)
            _plain_log_ticks(ax)
    axes[0, 0].legend(loc="upper left", handletextpad=0.1, markerscale=1.8)
    figure.supxlabel("true concentration (at.%)", fontsize=9)
    figure.supylabel("expected concentration (at.%)", fontsize=9)
    return figure


def _lab(results: Results, name: str) -> Mapping[str, Any] | None:
    return part(results[name], "candidates", "lab")


def _plain_log_ticks(ax: Axes) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks([0.1, 1.0, 10.0], ["0.1", "1", "10"])
        axis.set_ticks([], minor=True)


def precision_recall(results: Results) -> Figure:
    """Draw precision against recall, one panel for each track and condition."""
    figure, axes = _panels(2, 2, 3.7, 2.4)
    for ax, track, condition in _cells(axes):
        for colour, name in zip(COLOURS, results, strict=False):
            found = part(results[name], track, condition)
            if found is not None:
                curve = found["curves"]["precision_recall"]
                label = f"{name} ({found['identity']['ap_micro'] or 0.0:.2f})"
                ax.plot(curve["recall"], curve["precision"], color=colour, linewidth=1.4, label=label)
                ax.axhline(found["identity"]["prevalence"] or 0.0, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        ax.set(xlim=(0, 1), ylim=(0, 1.02), title=f"{track}, {condition}")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="best", title="average precision", title_fontsize=7.5)
    figure.supxlabel("recall", fontsize=9)
    figure.supylabel("precision (dashed: guessing)", fontsize=9)
    return figure


def reliability(results: Results) -> Figure:
    """Draw the share of elements that are there against the probability that was said; larger dots, more cases."""
    figure, axes = _panels(1, 4, 2.0, 2.3)
    for ax, track, condition in _cells(axes):
        ax.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8)
        for colour, name in zip(COLOURS, results, strict=False):
            found = part(results[name], track, condition)
            if found is not None:
                bins = found["curves"]["reliability"]
                count = np.array([row["count"] for row in bins], dtype=float)
                said, true = ([row[key] for row in bins] for key in ("said", "true"))
                ax.plot(said, true, color=colour, linewidth=1.0, alpha=0.7)
                ax.scatter(said, true, s=6 + 60 * np.sqrt(count / count.sum()), color=colour, linewidth=0, label=name)
        ax.set(xlim=(0, 1), ylim=(0, 1), title=f"{track}, {condition}", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    axes[0, 0].legend(loc="upper left", handletextpad=0.2, borderpad=0.1)
    figure.supxlabel("probability that was said", fontsize=9)
    figure.supylabel("share that is there", fontsize=9)
    return figure


def detection(results: Results) -> Figure:
    """Draw recall at 5 % false alarms and the detection limit by relative mass difference, for the first entrant."""
    name, result = next(iter(results.items()))
    figure, axes = _panels(2, 2, 3.7, 2.1, sharey="row")
    labels = ("up to 1 at.%", "1 to 5", "above 5")
    for column, track in enumerate(TRACKS):
        upper, lower = axes[0, column], axes[1, column]
        upper.set(title=f"{name}: {track}, clean", ylim=(0, 1.02))
        lower.set(ylim=(0.15, 30), yscale="log")
        found = part(result, track, "clean")
        bins = found["detection"]["by_mass"] if found else []
        x = np.arange(len(bins))
        for i, (colour, label) in enumerate(zip(COLOURS, labels, strict=False)):
            values = [row["by_range"][i]["recall"] if row["by_range"][i]["dopants"] >= 5 else np.nan for row in bins]
            y = np.array(values, dtype=float)
            upper.plot(x, y, "o-", color=colour, markersize=4, linewidth=1.2, label=label)
        upper.axhline(0.9, color=_GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        limits = np.array([row["limit"] for row in bins], dtype=float)
        lower.plot(x, limits, "s", color=COLOURS[0], markersize=5)
        for missing in np.flatnonzero(np.isnan(limits)).tolist():
            lower.annotate("not\nreached", (missing, 28), ha="center", va="top", fontsize=6.5, color="0.45")
        lower.set_yticks([0.2, 1, 5, 25], ["0.2", "1", "5", "25"])
        lower.set_yticks([], minor=True)
        for ax in (upper, lower):
            ax.set_xticks(x, [_mass_label(row) for row in bins], fontsize=7)
            ax.set_xlim(-0.6, max(len(bins), 1) - 0.4)
    axes[0, 0].set_ylabel("recall at 5 %\nfalse alarms")
    axes[1, 0].set_ylabel("detection limit\n(at.%)")
    axes[0, 0].legend(loc="upper left", ncols=3, columnspacing=1.0, handlelength=1.2)
    figure.supxlabel("mass of the dopant relative to the atom that it replaced, %", fontsize=9)
    return figure


def _mass_label(row: Mapping[str, Any]) -> str:
    low, high = (f"{100 * row[key]:+.0f}".replace("-", "\N{MINUS SIGN}") for key in ("from", "to"))
    if row["from"] <= -1.0:
        return f"below\n{high}"
    return f"above\n{low}" if row["to"] >= 100.0 else f"{low}\nto {high}"


def periodic_table(results: Results) -> Figure:
    """Draw the periodic table coloured by recall among the k most probable, for the first entrant and each track."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle

    name, result = next(iter(results.items()))
    figure, axes = _panels(2, 1, 7.6, 2.3)
    group, period = properties("group"), properties("period")
    colours = colormaps["viridis"]
    for ax, track in zip(axes[:, 0], TRACKS, strict=True):
        found = part(result, track, "clean")
        table = found["elements"] if found else {}
        for symbol in VOCABULARY:
            recall = table.get(symbol, {}).get("recall_at_k")
            x, y = group[INDEX[symbol]], -period[INDEX[symbol]]
            face = "0.94" if recall is None else colours(recall)
            ink = "0.5" if recall is None else "white" if recall < 0.6 else "black"
            ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=face, linewidth=0))
            ax.text(x, y + 0.14, symbol, ha="center", va="center", fontsize=7.5, color=ink, fontweight="bold")
            if recall is not None:
                ax.text(x, y - 0.24, f"{recall:.2f}", ha="center", va="center", fontsize=5.5, color=ink)
        ax.set(xlim=(0.4, 18.6), ylim=(-6.6, -1.4), aspect="equal")
        ax.set_title(f"{name}: {track}, clean")
        ax.axis("off")
    bar = figure.colorbar(ScalarMappable(cmap="viridis"), ax=axes, shrink=0.5, pad=0.01, aspect=25)
    bar.set_label("recall among the k most probable")
    bar.outline.set_linewidth(0)
    return figure


def examples(results: Results) -> Figure:
    """Draw rows that the first entrant answers well and badly: one column for each track."""
    name, result = next(iter(results.items()))
    figure, axes = _panels(4, 2, 3.8, 1.6)
    for column, track in enumerate(TRACKS):
        found = part(result, track, "clean")
        rows = found["curves"]["examples"] if found else []
        for ax, row in zip(axes[:, column], rows, strict=False):
            _example(ax, row)
        for ax in axes[len(rows) :, column]:
            ax.axis("off")
    figure.suptitle(f"{name}, clean: candidates named (left), blind (right)", fontsize=9, fontweight="bold")
    axes[0, 0].legend(loc="lower right", handlelength=1.2)
    figure.supxlabel("energy over the host's band edge", fontsize=9)
    figure.supylabel("phonon DOS", fontsize=9)
    return figure


def _example(ax: Axes, row: Mapping[str, Any]) -> None:
    energy = (np.arange(len(row["host"])) + 0.5) * row["bin"]
    ax.fill_between(energy, row["host"], color="0.85", linewidth=0, label="host")
    ax.plot(energy, row["doped"], color=COLOURS[0], linewidth=1.0, label="doped")
    there = ", ".join(f"{symbol} {amount:.2g}" for symbol, amount in row["true"].items())
    said = "\n".join(
        f"{symbol} {100 * answer['probability']:.0f} %, {answer['concentration']:.2g}"
        for symbol, answer in list(row["said"].items())[:4]
    )
    mark = "well" if row["good"] else "badly"
    title = fill(f"{row['formula']}, {mark} answered; there (at.%): {there}", 64)
    ax.set_title(title, fontsize=7, fontweight="normal")
    ax.set(xlim=(0, 2.3), ylim=(0, 1.05 * max(*row["host"], *row["doped"])), yticks=[])
    ax.text(0.99, 0.97, f"said:\n{said}", transform=ax.transAxes, ha="right", va="top", fontsize=6.8)


def _cells(axes: Any) -> Iterator[tuple[Axes, str, str]]:
    pairs = [(track, condition) for track in TRACKS for condition in CONDITIONS]
    for ax, (track, condition) in zip(axes.flat, pairs, strict=True):
        yield ax, track, condition


def _panels(rows: int, columns: int, width: float, height: float, **settings: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width + 0.3, rows * height + 0.3), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


FIGURES: Final[dict[str, Callable[[Results], Figure]]] = {
    "concentration.png": concentration,
    "precision-recall.png": precision_recall,
    "reliability.png": reliability,
    "detection.png": detection,
    "periodic-table.png": periodic_table,
    "examples.png": examples,
}
"""File name -> what draws it from the results that are shown."""
