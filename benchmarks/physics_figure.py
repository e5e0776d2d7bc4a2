"""The figure of the physics suite: potentials side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from defectnet.errors import ConfigError
from defectnet.files import replacing
from physics_suite.curves import CM1_PER_MEV

Record = Mapping[str, Any]

COLOURS = ("#1f6f8b", "#c1440e", "#7a5195", "#c58b00")
MEASURED = "0.25"
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 100,
}
TARGETS = {"a": (0.20, 0.06), "g": (0.12, 0.03)}
"""What a fast potential is wished to reach: medians of shape distance and of the error of the mean energy."""


def draw(runs: Sequence[Record], path: Path) -> None:
    """Draw what the runs hold, one panel a part; a part that no run holds stays empty.

    Raises:
        ConfigError: The file's ending is unknown, or its folder is not writable.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(11.0, 10.0), layout="constrained")
        axes = figure.subplots(3, 3)
        _errors(axes[0, 0], runs, "a", "(a) pristine crystals against DFT")
        _ratios(axes[0, 1], runs)
        _isotopes(axes[0, 2], runs)
        _sige_lines(axes[1, 0], runs)
        _sige_spectra(axes[1, 1], runs)
        _spectra(axes[1, 2], runs, "e", ("MgB2", "Al x=0.25"), "(e) MgB$_2$: dashed, with 25 % Al")
        _mark(axes[1, 2], (54, 78, 89, 97))
        _vanadium(axes[2, 0], runs)
        _errors(axes[2, 1], runs, "g", "(g) held-out cells against the teacher")
        _names(axes[2, 2], runs)
        try:
            with replacing(path) as temporary:
                figure.savefig(temporary, format=path.suffix.lstrip(".").lower() or "png")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"figure {path} cannot be written", why=str(error)[:120], fix="Use .png, .pdf or .svg in a folder"
            ) from error


def _items(results: Record, part: str) -> dict[str, Record]:
    items = results["parts"].get(part, {}).get("items", {})
    return {key: record for key, record in items.items() if "failed" not in record}


def _empty(axes: Axes, title: str, drawn: bool) -> None:
    axes.set_title(title)
    if not drawn:
        axes.text(0.5, 0.5, "not computed", transform=axes.transAxes, ha="center", color="0.5")
        axes.set_xticks([])
        axes.set_yticks([])


def _errors(axes: Axes, runs: Sequence[Record], part: str, title: str) -> None:
    drawn = False
    for colour, results in zip(COLOURS, runs, strict=False):
        records = _items(results, part).values()
        if not records:
            continue
        drawn = True
        points = np.array([[record["shape_distance"], 100 * record["mean_error"]] for record in records])
        axes.plot(points[:, 0], points[:, 1], "o", color=colour, markersize=3.5, alpha=0.75)
        axes.axvline(float(np.median(points[:, 0])), color=colour, linewidth=0.9)
    _empty(axes, title, drawn)
    if drawn:
        shape, mean = TARGETS[part]
        axes.axvline(shape, color=MEASURED, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.axhspan(-100 * mean, 100 * mean, color="0.93", zorder=0)
        axes.set_xlim(0.0, None)
        axes.set_xlabel("Shape distance (line: median; dashed: goal)")
        axes.set_ylabel("Error of mean energy (%)")


def _ratios(axes: Axes, runs: Sequence[Record]) -> None:
    keys = [key for results in runs for key, record in _items(results, "b").items() if record["scored"]]
    keys = list(dict.fromkeys(keys))
    for offset, (colour, results) in enumerate(zip(COLOURS, runs, strict=False)):
        items = _items(results, "b")
        rows = [row for row, key in enumerate(keys) if key in items]
        found = [items[keys[row]]["ratio"] for row in rows]
        axes.plot(found, np.array(rows) + 0.12 * offset, "o", color=colour, markersize=4)
        for row in rows:
            axes.plot(items[keys[row]]["measured_ratio"], row, "|", color=MEASURED, markersize=10, markeredgewidth=1.6)
    _empty(axes, "(b) local modes over host's edge", bool(keys))
    if keys:
        axes.set_yticks(range(len(keys)), [key.split(" ")[0] for key in keys])
        axes.invert_yaxis()
        axes.axvline(1.0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_xlabel("Frequency over edge (bars: measured)")


def _isotopes(axes: Axes, runs: Sequence[Record]) -> None:
    keys = list(dict.fromkeys(key for results in runs for key in _items(results, "c")))
    width = 0.8 / (len(runs) + 1)
    for number, (colour, results) in enumerate(zip(COLOURS, runs, strict=False), 1):
        for row, (key, record) in enumerate(_items(results, "c").items()):
            axes.bar(keys.index(key) + number * width, record["shift_cm1"], width, color=colour)
            axes.bar(row, record["measured_shift_cm1"], width, color=MEASURED)
    _empty(axes, "(c) shift from $^{11}$B to $^{10}$B", bool(keys))
    if keys:
        axes.set_xticks(np.arange(len(keys)) + 0.5 * width * len(runs), keys)
        axes.set_ylabel("Shift (cm$^{-1}$; grey: measured)")


def _sige_lines(axes: Axes, runs: Sequence[Record]) -> None:
    drawn = False
    for colour, results in zip(COLOURS, runs, strict=False):
        records = list(_items(results, "d").values())
        drawn = drawn or bool(records)
        shares = [record["x"] for record in records]
        for bond in records[0]["lines"] if records else ():
            axes.plot(shares, [r["lines"][bond]["cm1"] for r in records], "o-", color=colour, markersize=4, linewidth=1)
            measured = [r["lines"][bond]["measured_cm1"] for r in records]
            axes.plot(shares, measured, "--", color=MEASURED, linewidth=1)
            axes.annotate(bond, (shares[0], measured[0]), (0, 3), textcoords="offset points", fontsize=7.5)
    _empty(axes, "(d) Raman lines of Si$_{1-x}$Ge$_x$", drawn)
    if drawn:
        axes.set_xlabel("x (dashed: measured)")
        axes.set_ylabel("Line (cm$^{-1}$)")


def _sige_spectra(axes: Axes, runs: Sequence[Record]) -> None:
    drawn = False
    for colour, results in zip(COLOURS, runs, strict=False):
        for row, record in enumerate(_items(results, "d").values()):
            drawn = True
            curve = np.array(record["raman"])
            energy = (np.arange(len(curve)) + 0.5) * CM1_PER_MEV
            axes.plot(energy, curve / curve.max() + 1.1 * row, color=colour, linewidth=1)
            for line in record["lines"].values():
                axes.plot([line["measured_cm1"]] * 2, [1.1 * row, 1.1 * row + 0.35], color=MEASURED, linewidth=1)
            axes.text(150, 1.1 * row + 0.2, f"x = {record['x']:g}", fontsize=7.5)
    _empty(axes, "(d) Raman spectra; bars: measured lines", drawn)
    if drawn:
        axes.set_xlim(140, 560)
        axes.set_yticks([])
        axes.set_xlabel("Raman shift (cm$^{-1}$)")


def _spectra(axes: Axes, runs: Sequence[Record], part: str, keys: Sequence[str], title: str) -> None:
    drawn = False
    for colour, results in zip(COLOURS, runs, strict=False):
        items = _items(results, part)
        for key, style in zip(keys, ("-", "--"), strict=False):
            if key in items:
                drawn = True
                curve = np.array(items[key]["dos"])
                axes.plot(np.arange(len(curve)) + 0.5, curve, style, color=colour, linewidth=1)
    _empty(axes, title, drawn)
    if drawn:
        axes.set_ylim(0.0, None)
        axes.set_xlabel("Energy (meV); bars: measured peaks")
        axes.set_ylabel("Neutron-weighted DOS (meV$^{-1}$)")


def _mark(axes: Axes, peaks_mev: Sequence[float]) -> None:
    if axes.lines:
        for peak in peaks_mev:
            axes.axvline(peak, ymax=0.08, color=MEASURED, linewidth=1.6)


def _vanadium(axes: Axes, runs: Sequence[Record]) -> None:
    drawn = False
    for colour, results in zip(COLOURS, runs, strict=False):
        for record in _items(results, "f").values():
            drawn = True
            for field, style in (("host_dos", "-"), ("dos", "--")):
                curve = np.array(record[field])
                axes.plot(np.arange(len(curve)) + 0.5, curve, style, color=colour, linewidth=1)
    _empty(axes, "(f) V; dashed: with 6 % Pt (measured: stiffer)", drawn)
    if drawn:
        axes.set_ylim(0.0, None)
        axes.set_xlabel("Energy (meV)")
        axes.set_ylabel("DOS (meV$^{-1}$)")


def _names(axes: Axes, runs: Sequence[Record]) -> None:
    axes.axis("off")
    for colour, results in zip(COLOURS, runs, strict=False):
        axes.plot([], [], "o-", color=colour, label=results["potential"]["name"])
    axes.plot([], [], color=MEASURED, label="measured or goal")
    axes.legend(loc="center left", fontsize=10)
