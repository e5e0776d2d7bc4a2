"""Figures: an answer (two spectra, their difference, what the model says), a row of a data set, host packs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID
from defectnet.elements import VOCABULARY, parse_formula, properties
from defectnet.errors import ConfigError
from defectnet.files import replacing
from defectnet.inference.answer_text import NAMED, something_else
from defectnet.measure.broadening import broaden
from defectnet.measure.encode import host_edge_mev
from defectnet.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from defectnet.crystal.pack import HostPack
    from defectnet.crystal.spectra import DopedSpectrum
    from defectnet.data.shards import Sample
    from defectnet.inference.answer import KnownCrystalAnswer
    from defectnet.inference.plan import Plan
    from defectnet.prediction import Prediction

HOST_COLOUR = "#8a94a0"  # the four differ in grey, too
DOPED_COLOUR = "#c1440e"
PRESENT_COLOUR = "#0b4f6c"
ABSENT_COLOUR = "#c3ccd4"
GRID_POINTS = 1024
MOST_ELEMENTS = 8
CORNER = 4  # elements of a corner plot
SITE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")  # Okabe and Ito
LINES = ("-", "--", ":", "-.")
FEW_LABELS = 8  # dopants of a matrix whose numbers are written large
BROADENING = 0.02  # of the edge: a supercell has few modes, which as lines hide the shape
LEAST_ROWS = 6  # so that two bars are not drawn as two blocks

STYLE: Any = {  # Any: the keys that matplotlib types differ between its versions
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
    with _drawn((9.2, 4.4), path) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(2.1, 0.8, 1.0), height_ratios=(2.6, 1.0))
        top = figure.add_subplot(grid[0, 0])
        bottom = figure.add_subplot(grid[1, 0], sharex=top)
        left = figure.add_subplot(grid[:, 1])
        right = figure.add_subplot(grid[:, 2], sharey=left)
        _draw_spectra(top, bottom, host, doped, prediction)
        _draw_elements(left, right, prediction)
    return figure


def plot_row(sample: Sample, path: str | Path | None = None) -> Figure:
    """Draw a row of a data set: total DOS of host and doped cell, and the projected DOS of each dopant.

    Args:
        sample: The row.
        path: As in `plot_pair`, like what is returned and raised.
    """
    with _drawn((8.0, 4.8), path) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1.5, 1.0))
        _draw_row(top, bottom, sample)
    return figure


def plot_pack(pack: HostPack, path: str | Path | None = None) -> Figure:
    """Draw a host pack: the host's projected DOS, and a periodic table of what is substituted.

    Args:
        pack: Host and substitutions.
        path: As in `plot_pair`, like what is returned and raised.
    """
    sites = list(dict.fromkeys(pack.replaced(int(site)) for site in pack.host.sites))
    colours = {symbol: SITE_COLOURS[k % len(SITE_COLOURS)] for k, symbol in enumerate(sites)}
    with _drawn((11.0, 3.9), path) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.5))
        _draw_host(left, pack, colours)
        _draw_table(right, pack, colours)
    return figure


def plot_known(answer: KnownCrystalAnswer, path: str | Path | None = None) -> Figure:
    """Draw what an answer about a known crystal explains: the change, measured and predicted, and what is left of it.

    Args:
        answer: From `KnownCrystal.identify`.
        path: As in `plot_pair`, like what is returned and raised.
    """
    with _drawn((9.2, 5.6), path) as figure:
        grid = figure.add_gridspec(3, 2, width_ratios=(2.0, 1.0), height_ratios=(1.4, 1.4, 0.8))
        top = figure.add_subplot(grid[0, 0])
        middle, bottom = (figure.add_subplot(grid[k, 0], sharex=top) for k in (1, 2))
        _draw_change(top, middle, bottom, answer)
        _draw_amounts(figure.add_subplot(grid[:, 1]), answer)
    return figure


def plot_corner(answer: KnownCrystalAnswer, path: str | Path | None = None) -> Figure:
    """Draw the posterior of concentrations: of each of the likeliest elements, and of each two of them.

    Args:
        answer: From `KnownCrystal.identify`.
        path: As in `plot_pair`.

    Returns:
        The figure, independent of pyplot's state.

    Raises:
        ConfigError: As `plot_pair`.
    """
    p = answer.posterior
    order = np.argsort(-p.probability, kind="stable")[:CORNER]
    size = 1.7 * len(order) + 0.6
    with _drawn((size, size), path) as figure:
        cells = figure.subplots(len(order), len(order), sharex="col", squeeze=False)
        for y, second in enumerate(order):
            for x, first in enumerate(order):
                _draw_corner(cells[y, x], answer, int(first), int(second), x, y, last=y == len(order) - 1)
        figure.align_ylabels(cells[:, 0])
        figure.suptitle(f"{answer.formula}: concentrations, {len(p.samples):,} draws", fontsize=10.0, x=0.01, ha="left")
    return figure


def _draw_corner(
    axes: Axes, answer: KnownCrystalAnswer, first: int, second: int, x: int, y: int, *, last: bool
) -> None:
    if x > y:
        axes.set_axis_off()
        return
    p = answer.posterior
    across, up = 100.0 * p.samples[:, first], 100.0 * p.samples[:, second]
    ends = [max(1.0, 1.05 * float(np.quantile(values, 0.995))) for values in (across, up)]
    axes.set_xlim(0.0, ends[0])
    if x == y:
        there = across[across > 0.0]
        weights = np.full(len(there), 1.0 / len(across))
        axes.hist(there, bins=30, range=(0.0, ends[0]), weights=weights, color=PRESENT_COLOUR)
        for end in 100.0 * np.array([p.low[first], p.high[first]]) if p.elements[first] in answer.present else ():
            axes.axvline(end, color="black", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set_yticks([])
        axes.set_title(f"{p.elements[first]}  {p.probability[first]:.0%}")
    else:
        # Absent is a concentration of zero: such draws lie along the axes.
        axes.plot(across, up, ".", color=HOST_COLOUR, markersize=1.6, alpha=0.35, rasterized=True)
        axes.set_ylim(-0.03 * ends[1], ends[1])
        axes.set_xlim(-0.03 * ends[0], ends[0])
    if last:
        axes.set_xlabel(f"{p.elements[first]} (at.%)")
    if x == 0 and y > 0:
        axes.set_ylabel(f"{p.elements[second]} (at.%)")


def _draw_change(top: Axes, middle: Axes, bottom: Axes, answer: KnownCrystalAnswer) -> None:
    energy, host = answer.energy_mev, answer.pristine
    top.fill_between(energy, host, color=HOST_COLOUR, alpha=0.18, linewidth=0)
    top.plot(energy, host, color=HOST_COLOUR, label="host, measured")
    top.plot(energy, host + answer.measured, color=DOPED_COLOUR, label="sample, measured")
    top.plot(energy, host + answer.predicted, color=PRESENT_COLOUR, linestyle="--", label="sample, predicted")
    top.legend(fontsize=8.0)
    top.set(ylabel="DOS (1/edge)", title=f"{answer.formula}, {answer.kind}, {answer.fwhm_mev:.2g} meV wide")
    middle.axhline(0.0, color=HOST_COLOUR, linewidth=0.6)
    low, high = answer.predicted - 2.0 * answer.band, answer.predicted + 2.0 * answer.band
    middle.fill_between(energy, low, high, color=PRESENT_COLOUR, alpha=0.2, linewidth=0.0, label="two deviations")
    middle.plot(energy, answer.predicted, color=PRESENT_COLOUR, linestyle="--", label="predicted")
    middle.plot(energy, answer.measured, color=DOPED_COLOUR, label="measured")
    middle.legend(fontsize=8.0, ncols=3)
    middle.set(ylabel="sample $-$ host", title=f"The change: {answer.posterior.explained:.0%} explained")
    rest = (answer.measured - answer.predicted) / np.sqrt(answer.noise**2 + answer.band**2)
    bottom.axhspan(-2.0, 2.0, color=ABSENT_COLOUR, alpha=0.5, linewidth=0.0)
    bottom.plot(energy, rest, color="black", linewidth=0.9)
    bottom.set(xlabel="Energy (meV)", ylabel="left over /\ndeviation", ylim=(-5.0, 5.0))


def _draw_amounts(axes: Axes, answer: KnownCrystalAnswer) -> None:
    p = answer.posterior
    order = np.argsort(-p.probability, kind="stable")[:MOST_ELEMENTS][::-1]
    place = np.arange(len(order))
    for y, i in zip(place, order, strict=True):
        if p.elements[i] in answer.present:
            axes.plot([100 * p.low[i], 100 * p.high[i]], [y, y], color=PRESENT_COLOUR, linewidth=5.0, alpha=0.4)
            axes.plot(100 * p.if_present[i], y, "o", color=PRESENT_COLOUR)
        else:
            axes.plot([0.0, 100 * answer.upper_limit[i]], [y, y], color=ABSENT_COLOUR, linewidth=3.0)
    axes.set_yticks(place, [f"{p.elements[i]}  {p.probability[i]:.0%}" for i in order])
    axes.set(
        xlabel="Concentration (at.%)",
        title=f"Dopants, {p.coverage:.0%} intervals",
        ylim=(-0.7, max(len(order), 4) - 0.3),
    )
    axes.set_xlim(left=0.0)
    text = f"{something_else(answer)}: {p.other:.0%}"
    axes.annotate(text, (1.0, 0.0), (-2, 4), "axes fraction", "offset points", ha="right", fontsize=8.0)


def plot_plan(plan: Plan, path: str | Path | None = None) -> Figure:
    """Draw what a measurement will tell: detection limits, what changes them, look-alikes, intervals.

    For a few dopants bars and curves; for many a periodic table coloured by detection limit.

    Args:
        plan: From `defectnet.plan`.
        path: As in `plot_pair`, like what is returned and raised.
    """
    setup = plan.setup
    seen = setup.kind if setup.element is None else f"{setup.element}-{setup.kind}"
    title = (
        f"{plan.formula}: {seen} DOS, {setup.fwhm_mev:.3g} meV FWHM, noise {100 * setup.noise:.2g} % "
        f"at points {setup.points_mev:.2g} meV apart"
    )
    if not plan.by_instrument.size:
        with _drawn((13.6, 4.9), path) as figure:
            left, right = figure.subplots(1, 2, width_ratios=(1.45, 1.0))
            _draw_limit_table(left, plan)
            _draw_apart(right, plan)
            figure.suptitle(title, fontsize=10.0, x=0.01, ha="left")
        return figure
    with _drawn((9.6, 6.4), path) as figure:
        axes = figure.subplots(2, 2)
        _draw_limits(axes[0, 0], plan)
        _draw_instruments(axes[0, 1], plan)
        _draw_apart(axes[1, 0], plan)
        _draw_intervals(axes[1, 1], plan)
        figure.suptitle(title, fontsize=10.0, x=0.01, ha="left")
    return figure


def _draw_limits(axes: Axes, plan: Plan) -> None:
    rows = np.arange(len(plan.dopants))
    widest = 120.0 * max(max(one.limit or one.room, one.named or 0.0) for one in plan.detections)
    for y, one in zip(rows, plan.detections, strict=True):
        known = one.limit is not None
        end = 100.0 * (one.limit if one.limit is not None else one.room)
        style: Any = {"color": SITE_COLOURS[y % len(SITE_COLOURS)]} if known else {"color": "0.9", "hatch": "////"}
        axes.barh(y, end, height=0.55, **style)
        beside: Any = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
        words = f"{end:.2g}" if known else "not found"
        if known and end > 0.2 * widest:
            axes.annotate(words, (end, y), (-5, 0), **beside, ha="right", color="white", fontweight="bold")
        else:
            axes.annotate(words, (end, y), (5, 0), **beside)
        if one.named is not None:
            named = 100.0 * one.named
            axes.plot([named] * 2, [y - 0.38, y + 0.38], color="black", linewidth=1.4)
            axes.annotate(f"{named:.2g}", (named, y), (5, 0), **beside)
    axes.plot([], [], color="black", linewidth=1.4, label=f"named by identify ($P \\geq {NAMED}$)")
    axes.set_xlim(0.0, widest)
    axes.set_yticks(rows, plan.dopants)
    axes.set_ylim(max(len(rows), 4) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.legend(fontsize=8.0, loc="lower right")
    axes.set(xlabel="smallest detectable concentration (at.%)", title="Limit: 90 % power, 5 % false alarms")


def _draw_instruments(axes: Axes, plan: Plan) -> None:
    from matplotlib.lines import Line2D

    styles: Any = LINES
    noise = 100.0 * np.array(plan.noises)
    for i in range(len(plan.dopants)):
        for f in range(len(plan.fwhms_mev)):
            axes.plot(
                noise,
                100.0 * plan.by_instrument[i, f],
                color=SITE_COLOURS[i % len(SITE_COLOURS)],
                linestyle=styles[f],
                marker="o",
                markersize=3.0,
                linewidth=1.3,
            )
    if len(noise) > 1:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(noise, [f"{one:.3g}" for one in noise])
        axes.minorticks_off()
        _plain_ticks(axes.yaxis)
        upper = axes.secondary_xaxis("top")
        upper.set_xticks(noise, [f"$\\times${(plan.setup.noise / one * 100.0) ** 2:.3g}" for one in noise])
        upper.minorticks_off()
        upper.set_xlabel("counting time", fontsize=8.5)
    handles = [
        Line2D([], [], color=SITE_COLOURS[i % len(SITE_COLOURS)], label=name) for i, name in enumerate(plan.dopants)
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle=styles[f], label=f"{w:.2g} meV") for f, w in enumerate(plan.fwhms_mev)
    ]
    axes.legend(handles=handles, fontsize=8.0, ncols=2, handlelength=2.0)
    axes.set(xlabel="noise at a point (% of the maximum)", ylabel="detection limit (at.%)")


def _draw_apart(axes: Axes, plan: Plan) -> None:
    from matplotlib.colors import LogNorm

    k = len(plan.dopants)
    shown = 100.0 * np.where(np.eye(k, dtype=bool), np.nan, plan.apart)
    image = axes.imshow(
        np.ma.masked_invalid(shown), cmap="cividis", norm=LogNorm(0.1, 25.0), origin="upper", aspect="equal"
    )
    axes.set_facecolor("0.88")
    small = k > FEW_LABELS
    for i in range(k):
        for j in range(k):
            if i == j:
                continue
            known = np.isfinite(shown[i, j])
            dark = known and shown[i, j] < 1.5
            axes.text(
                j,
                i,
                _concentration(shown[i, j], 1 if small else 2) if known else "-" if small else "never",
                ha="center",
                va="center",
                fontsize=5.4 if small else 8.5,
                color="white" if dark else "black",
            )
    names = plan.dopants
    axes.set_xticks(range(k), names, rotation=90 if small else 0, fontsize=6.5 if small else 9.0)
    axes.set_yticks(range(k), names, fontsize=6.5 if small else 9.0)
    axes.tick_params(length=0)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label("95 % told apart from (at.%)")
    _plain_ticks(bar.ax.yaxis)
    axes.set_title("Look-alikes")


def _concentration(value: float, digits: int) -> str:
    """Return at.% as plain text of so many digits, as many as it takes from ten on."""
    return f"{value:.0f}" if value >= 9.5 else f"{value:.{digits}g}"


def _draw_intervals(axes: Axes, plan: Plan) -> None:
    chosen = [s for s in range(len(plan.standards)) if plan.standards[s] in (0, 1, 5)]
    k, fade = len(plan.dopants), (1.0, 0.55, 0.3)
    for i, one in enumerate(plan.detections):
        colour = SITE_COLOURS[i % len(SITE_COLOURS)]
        for a, amount in enumerate(plan.amounts):
            if one.intervals[a] is None:
                continue
            ends = plan.intervals_by_standards[i, chosen, a] if chosen else np.array([one.intervals[a]])
            for s, (low, high) in enumerate(ends):
                x = a + 0.8 * ((i + 0.5) / k - 0.5) + (s - 0.5 * (len(ends) - 1)) * 0.2 / k
                axes.plot([x, x], [low / amount, high / amount], color=colour, linewidth=4.0, alpha=fade[s])
    axes.axhline(1.0, color="0.35", linewidth=0.8)
    axes.set_xticks(range(len(plan.amounts)), [f"{100 * amount:g}" for amount in plan.amounts])
    axes.set_xlim(-0.6, len(plan.amounts) - 0.4)
    handles = [axes.plot([], [], color=SITE_COLOURS[i], linewidth=4.0, label=n)[0] for i, n in enumerate(plan.dopants)]
    for s, number in enumerate(chosen):
        words = f"{plan.standards[number] or 'no'} standard" + ("s" if plan.standards[number] > 1 else "")
        handles += axes.plot([], [], color="0.3", alpha=fade[s], linewidth=4.0, label=words)
    axes.legend(handles=handles, fontsize=8.0, ncols=2, loc="upper right")
    axes.set(xlabel="true concentration (at.%)", ylabel="found / true", title="Expected 90 % interval")
    axes.set_ylim(0.0, 1.4 * axes.get_ylim()[1])  # room for the legend


def _draw_limit_table(axes: Axes, plan: Plan) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    best: dict[str, tuple[float, str]] = {}
    for one in plan.detections:
        symbol, _, site = one.dopant.partition("@")
        best[symbol] = min(best.get(symbol, (np.inf, "")), (np.inf if one.limit is None else 100.0 * one.limit, site))
    finite = [value for value, _ in best.values() if np.isfinite(value)] or [1.0]
    norm, colours = LogNorm(0.8 * min(finite), 1.25 * max(finite)), colormaps["cividis"]
    for symbol, x, y in zip(VOCABULARY, properties("group"), properties("period"), strict=True):
        value, site = best.get(symbol, (np.nan, ""))
        style: Any = {"facecolor": "white", "edgecolor": "0.88", "linewidth": 0.6}
        ink = "0.65"
        if np.isfinite(value):
            colour = colours(norm(value))
            style, ink = {"facecolor": colour, "linewidth": 0}, _on_colour(colour)
        elif np.isinf(value):
            style, ink = {"facecolor": "white", "edgecolor": "0.5", "hatch": "////", "linewidth": 0.6}, "black"
        if symbol in parse_formula(plan.formula):
            style |= {"edgecolor": "black", "linewidth": 1.4}
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **style))
        axes.text(x, y - (0.17 if site else 0.0), symbol, ha="center", va="center", fontsize=9.0, color=ink)
        if np.isfinite(value):
            axes.text(x, y + 0.22, _concentration(value, 2), ha="center", va="center", fontsize=6.8, color=ink)
    _frame_table(axes)
    inset = axes.inset_axes((0.26, 0.9, 0.4, 0.035))  # where the table is empty
    bar = axes.figure.colorbar(ScalarMappable(norm, colours), cax=inset, orientation="horizontal")
    bar.set_label("detection limit (at.%)", fontsize=8.5)
    _plain_ticks(bar.ax.xaxis)
    axes.set_title("Limit: 90 % power, 5 % false alarms; best site; host outlined")


def _frame_table(axes: Axes) -> None:
    """Frame a periodic table, whose elements stand at their group and period."""
    axes.set(xlim=(0.4, 17.6), ylim=(6.6, 1.4), aspect="equal")
    axes.axis("off")


def _plain_ticks(axis: Any) -> None:
    """Write the ticks of a logarithmic axis as plain numbers: 0.1, 0.2, 0.5, 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_host(axes: Axes, pack: HostPack, colours: dict[str, str]) -> None:
    from defectnet.crystal.spectra import host_dos

    edge = pack.host.band_edge_mev
    elements, dos = host_dos(pack, BROADENING * edge)
    energy, curves = STORAGE_GRID.centres * edge, dos / edge
    axes.stackplot(energy, curves, colors=[colours[s] for s in elements], labels=elements, alpha=0.75, linewidth=0)
    axes.plot(energy, curves.sum(0), color="0.25", linewidth=0.9)
    _mark_edge(edge, axes)
    axes.set_xlim(0.0, 1.3 * edge)
    axes.set_ylim(0.0, 1.12 * float(curves.sum(0).max()))
    axes.set_xlabel(f"Energy (meV); Gaussian of {BROADENING * edge:.1f} meV FWHM")
    axes.set_ylabel("Projected DOS, stacked (meV$^{-1}$)")
    axes.set_title(f"{pack.host.id}, {pack.host.potential}")
    axes.legend(loc="upper left", fontsize=8, borderaxespad=0.2, handlelength=1.2)


def _draw_table(axes: Axes, pack: HostPack, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch, Rectangle

    made: dict[str, set[str]] = {}
    failed: dict[str, set[str]] = {}
    for dopant, atom in pack.substitutions:
        made.setdefault(dopant, set()).add(pack.replaced(atom))
    for failure in pack.failures:
        failed.setdefault(failure.dopant, set()).add(pack.replaced(failure.site))
    off = {dopant for (dopant, _), one in pack.substitutions.items() if one.off_centre}
    groups, periods = properties("group"), properties("period")
    for symbol, x, y in zip(VOCABULARY, groups, periods, strict=True):
        stripes = [site for site in colours if site in made.get(symbol, set()) | failed.get(symbol, set())]
        own = symbol in colours
        for k, site in enumerate(stripes):
            place, width = (x - 0.46 + 0.92 * k / len(stripes), y - 0.46), 0.92 / len(stripes)
            if site in made.get(symbol, set()):
                axes.add_patch(Rectangle(place, width, 0.92, facecolor=colours[site], linewidth=0))
            else:
                style: Any = {"facecolor": "white", "edgecolor": colours[site], "hatch": "/////", "linewidth": 0.6}
                axes.add_patch(Rectangle(place, width, 0.92, **style))
        if not stripes:
            style = {"edgecolor": colours[symbol], "linewidth": 1.8} if own else {"edgecolor": "0.88", "linewidth": 0.6}
            axes.add_patch(Rectangle((x - 0.44, y - 0.44), 0.88, 0.88, facecolor="white", **style))
        whole = len(stripes) == 1 and stripes[0] in made.get(symbol, set())
        colour = _on_colour(colours[stripes[0]]) if whole else "0.1" if own or stripes else "0.6"
        label = axes.text(x, y, symbol, ha="center", va="center", fontsize=8, color=colour)
        if stripes and not whole:
            label.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.8})
        if symbol in off:
            axes.plot(x + 0.33, y - 0.33, "o", color="black", markeredgecolor="white", markersize=3.5)
    handles: list[Any] = [Patch(facecolor=colours[site], label=f"on {site}") for site in colours]
    handles.append(Patch(facecolor="white", edgecolor="0.3", hatch="/////", label="failed"))
    handles.append(Patch(facecolor="white", edgecolor="0.88", label="not made"))
    if off:
        handles.append(axes.plot([], [], "o", color="black", markersize=3.5, linestyle="", label="off its site")[0])
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), fontsize=8, ncols=6)
    _frame_table(axes)
    axes.set_title(f"{len(pack.substitutions)} substitutions; host outlined")


def _on_colour(colour: Any) -> str:
    """Return the colour of a text that can be read on a colour."""
    from matplotlib.colors import to_rgb

    return "black" if float(np.dot(to_rgb(colour), (0.299, 0.587, 0.114))) > 0.45 else "white"


def plot_doped(found: DopedSpectrum, path: str | Path | None = None, *, kind: str = "total") -> Figure:
    """Draw spectra from a host pack: host, doped sample with its standard error, and their difference.

    Args:
        found: What `HostPack.spectrum` returns.
        path: As in `plot_pair`, like what is returned and raised.
        kind: total or neutron-weighted.
    """
    with _drawn((7.0, 4.6), path) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1.0))
        _draw_doped(top, bottom, found, kind)
    return figure


def _draw_doped(top: Axes, bottom: Axes, found: DopedSpectrum, kind: Any) -> None:
    host, doped, error = found.host_spectrum(kind), found.doped_spectrum(kind), found.doped_error(kind)
    energy, edge = found.energy_mev, found.edge_mev
    top.fill_between(energy, host.dos, color=HOST_COLOUR, alpha=0.13, linewidth=0)
    top.plot(energy, host.dos, color=HOST_COLOUR, linewidth=1.2, label=f"host, {found.formula}")
    top.fill_between(energy, doped.dos - error, doped.dos + error, color=DOPED_COLOUR, alpha=0.3, linewidth=0)
    reached = ", ".join(f"{symbol} {100 * share:.2f}" for symbol, share in found.concentrations.items())
    top.plot(energy, doped.dos, color=DOPED_COLOUR, linewidth=1.2, label=f"{reached} at.%" if reached else "no dopants")
    _mark_edge(edge, top, bottom)
    top.set_ylabel("DOS (meV$^{-1}$)")
    top.set_ylim(0.0, 1.12 * max(float(host.dos.max()), float(doped.dos.max())))
    top.legend(loc="upper left", fontsize=8, borderaxespad=0.2, handlelength=1.4)
    top.set_title(
        f"{found.host}, {found.potential} ({kind}, unit area): {len(found.cells)} cells of {found.atoms} atoms"
    )
    difference = doped.dos - host.dos
    bottom.axhline(0.0, color="0.35", linewidth=0.8)
    bottom.fill_between(energy, difference - error, difference + error, color=DOPED_COLOUR, alpha=0.3, linewidth=0)
    bottom.plot(energy, difference, color=DOPED_COLOUR, linewidth=0.9)
    bottom.set_ylabel("doped $-$ host\n$\\pm$ one error")
    bottom.set_xlabel(
        "Energy (meV)" + ("" if found.fwhm_mev is None else f"; Gaussian of {found.fwhm_mev:.2g} meV FWHM")
    )
    bottom.set_xlim(0.0, _shown_up_to((host, doped), edge))


@contextmanager
def _drawn(size: tuple[float, float], path: str | Path | None) -> Iterator[Figure]:
    """Open a figure of a size in inches in the style of all; save it in the end, if there is a path."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib", fix="Install it: pip install 'defectnet[plot]'") from error
    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        if path is not None:
            _save(figure, Path(path))


def _draw_row(top: Axes, bottom: Axes, sample: Sample) -> None:
    edge = sample.edge_mev
    energy = STORAGE_GRID.centres * edge
    doped = dict(zip(sample.doped_elements, sample.doped_dos, strict=True))
    totals = [_broadened(dos.sum(0)) / edge for dos in (sample.host_dos, sample.doped_dos)]
    # Per atom, so that a trace is seen beside a main dopant.
    dopants = {s: _broadened(doped[s]) / edge / share for s, share in sample.concentrations.items()}
    curves = [*totals, *dopants.values()]
    ends = [float(energy[int(np.searchsorted(np.cumsum(curve) / curve.sum(), 0.998))]) for curve in curves]
    end = min(float(energy[-1]), max(1.2 * edge, 1.05 * max(ends)))
    top.fill_between(energy, totals[0], color=HOST_COLOUR, alpha=0.13, linewidth=0)
    top.plot(energy, totals[0], color=HOST_COLOUR, linewidth=1.2, label=f"host, {sample.formula}")
    label = "doped" if dopants else "no dopants"
    top.plot(energy, totals[1], color=DOPED_COLOUR, linewidth=1.2, label=label)
    _mark_edge(edge, top, bottom)
    top.set_ylabel("Total DOS (meV$^{-1}$)")
    top.set_ylim(0.0, 1.12 * max(float(curve.max()) for curve in totals))
    beside: Any = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 8, "handlelength": 1.4}
    top.legend(**beside)
    from defectnet.data.shards import AS_IS

    stiffness = "" if sample.variant == AS_IS else f", {sample.variant}"
    top.set_title(f"{sample.row_id}: {sample.atoms} atoms, {sample.placement}{stiffness}")
    top.tick_params(labelbottom=False)
    for number, (symbol, curve) in enumerate(dopants.items()):
        style: Any = {"color": SITE_COLOURS[number % len(SITE_COLOURS)], "linestyle": LINES[number % len(LINES)]}
        share = f"{symbol}, {100.0 * sample.concentrations[symbol]:.2f} at.%"
        bottom.plot(energy, curve, linewidth=1.2, label=share, **style)
    if dopants:
        bottom.set_ylim(0.0, 1.12 * max(float(curve.max()) for curve in dopants.values()))
        bottom.legend(**beside)
    else:
        bottom.text(0.5, 0.5, "no dopants", transform=bottom.transAxes, ha="center", color="0.35")
        bottom.set_yticks([])
    bottom.set_ylabel("DOS per dopant\natom (meV$^{-1}$)")
    bottom.set_xlabel(f"Energy (meV); Gaussian of {BROADENING * edge:.1f} meV FWHM")
    bottom.set_xlim(0.0, end)


def _broadened(dos: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Return a stored (600,) DOS with a Gaussian of `BROADENING`."""
    one = np.ones(1)
    return np.asarray(broaden(dos[None, None].astype(np.float32), one, BROADENING * one, one)[0, 0])


def _mark_edge(edge: float, top: Axes, *others: Axes) -> None:
    """Draw a line at the host's edge, which the topmost axes name."""
    for axes in (top, *others):
        axes.axvline(edge, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)))
    beside: Any = {"xycoords": top.get_xaxis_transform(), "textcoords": "offset points", "va": "top"}
    top.annotate(f"host's edge\n{edge:.1f} meV", (edge, 1.0), (4, -2), **beside, fontsize=7.5, color="0.35")


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


def _draw_spectra(top: Axes, bottom: Axes, host: Spectrum, doped: Spectrum, prediction: Prediction) -> None:
    edge = host_edge_mev(host) if math.isnan(prediction.edge_mev) else prediction.edge_mev
    end = _shown_up_to((host, doped), edge)
    energy = np.linspace(0.0, end, GRID_POINTS)
    curves = [_unit_area(spectrum, energy) for spectrum in (host, doped)]
    top.fill_between(energy, curves[0], color=HOST_COLOUR, alpha=0.13, linewidth=0)
    top.plot(energy, curves[0], color=HOST_COLOUR, linewidth=1.2, label=f"host, {prediction.formula}")
    top.plot(energy, curves[1], color=DOPED_COLOUR, linewidth=1.2, label="doped")
    _mark_edge(edge, top, bottom)
    top.set_ylabel("DOS (meV$^{-1}$)")
    top.set_ylim(0.0, 1.12 * max(float(curve.max()) for curve in curves))
    top.tick_params(labelbottom=False)
    top.legend(loc="upper left", fontsize=8, borderaxespad=0.2, handlelength=1.4)
    kind = host.kind if host.element is None else f"{host.element}-{host.kind}"
    top.set_title(f"Phonon density of states ({kind}, unit area)")
    difference = curves[1] - curves[0]
    bottom.axhline(0.0, color="0.35", linewidth=0.8)
    bottom.fill_between(energy, difference, color=DOPED_COLOUR, alpha=0.25, linewidth=0)
    bottom.plot(energy, difference, color=DOPED_COLOUR, linewidth=0.9, label="measured")
    fit = prediction.fit
    if fit is not None and prediction.found:
        bottom.plot(fit.energy_mev, fit.predicted, color=PRESENT_COLOUR, linewidth=1.1, label="by the answer")
        rest = fit.measured - fit.predicted
        bottom.plot(fit.energy_mev, rest, color="0.35", linewidth=0.8, linestyle=":", label="left over")
        bottom.legend(loc="best", fontsize=7, ncols=3, borderaxespad=0.1, handlelength=1.4)
    if not math.isnan(prediction.explained):
        share = f"{prediction.explained:.0%} of the change" if prediction.found else "nothing was found"
        bottom.set_title(f"Goodness of fit: {prediction.verdict} ({share})", fontsize=8)
    bottom.set_ylabel("doped $-$ host")
    bottom.set_xlabel("Energy (meV)")
    bottom.set_xlim(0.0, end)


def _draw_elements(left: Axes, right: Axes, prediction: Prediction) -> None:
    order = prediction.order[:MOST_ELEMENTS]
    rows = np.arange(len(order))
    colours = [PRESENT_COLOUR if prediction.elements[i] in prediction.found else ABSENT_COLOUR for i in order]
    left.barh(rows, prediction.probability[order], color=colours, height=0.62)
    left.axvline(prediction.threshold, color="0.35", linewidth=0.8, linestyle=(0, (4, 3)))
    left.set_xlim(0.0, 1.0)
    left.set_xticks([0.0, 0.5, 1.0], ["0", "0.5", "1"])
    left.set_xlabel(f"Probability\n(threshold {prediction.threshold:.2f})")
    left.set_yticks(rows, [prediction.elements[i] for i in order])
    left.set_ylim(max(len(order), LEAST_ROWS) - 0.4, -0.6)
    left.tick_params(axis="y", length=0)
    left.set_title("Dopants, of the candidates" if prediction.candidates_given else "Dopants, of all elements")
    if not math.isnan(prediction.something_else):
        likely = "bold" if prediction.something_else_is_likely else "normal"
        text = f"something else: {prediction.something_else:.0%}"
        left.annotate(text, (0.0, 0.0), (2, 3), "axes fraction", "offset points", fontsize=8, weight=likely)
    amount = 100.0 * prediction.concentration_if_present[order]
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
