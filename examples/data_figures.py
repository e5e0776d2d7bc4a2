"""Figures of a data set: what is in its cells, and of which elements.

python examples/data_figures.py data/defectnet-sim-v1 --out data/figures
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from defectnet.data.shards import AS_IS
from defectnet.data.stats import CLASS_NAMES, Contents, concentrations, read_contents, statistics, summary
from defectnet.elements import INDEX, VOCABULARY, properties
from defectnet.files import replacing

COLOUR, SECOND = "#1f6f8b", "#c1440e"
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "savefig.dpi": 120,
}
PLACE = {s: (int(properties("group")[i]), int(properties("period")[i])) for s, i in INDEX.items()}


def _title(stats: Mapping[str, Any]) -> str:
    """Return the data set's name and what it holds, a sentence a line: one line is wider than the narrower figure."""
    return f"{stats['name']}: {summary(stats)}".replace(". ", ".\n")


def figure_of_cells(contents: Contents, stats: Mapping[str, Any]) -> Figure:
    """Draw concentrations, numbers of dopants, sizes of cells, and edges."""
    rows = contents.rows[contents.rows.variant == AS_IS]
    found = concentrations(rows)
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    figure.suptitle(_title(stats), fontsize=8.5, x=0.01, ha="left")
    (one, two), (three, four) = figure.subplots(2, 2)
    percent = {name: 100.0 * np.array(values) for name, values in found.items()}
    low = min((values.min() for values in percent.values() if len(values)), default=0.1)
    bins = np.geomspace(0.95 * low, 26.0, 31)
    for name, title, colour in (("single", "each dopant", COLOUR), ("total", "all of a pair", SECOND)):
        one.hist(percent[name], bins, histtype="stepfilled", color=colour, alpha=0.25)
        one.hist(percent[name], bins, histtype="step", color=colour, linewidth=1.2, label=title)
    one.set_xscale("log")
    one.set_xticks([v for v in (0.2, 0.5, 1, 2, 5, 10, 20) if v > 0.9 * low])
    one.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    one.xaxis.set_minor_locator(_no_ticks())
    one.legend(loc="upper right", fontsize=8)
    _label(one, "Concentration", "at.%", "dopants, pairs")
    numbers = Counter(len(symbols) for symbols in rows["dopants"])
    bars = two.bar(range(7), [numbers[k] for k in range(7)], color=COLOUR, width=0.7)
    two.bar_label(bars, fmt="{:,.0f}", fontsize=7.5, color="0.3")
    two.margins(y=0.1)
    _label(two, "Coexisting dopants (0: controls)", "dopants", "pairs")
    sizes = np.array(rows["atoms"])
    three.hist(sizes, np.arange(10 * (sizes.min() // 10), sizes.max() + 11, 10), color=COLOUR)
    _label(three, "Size of the cell", "atoms", "pairs")
    edges = dict(zip(rows["host_id"], rows["edge_mev"], strict=True))
    four.hist(list(edges.values()), np.arange(0.0, max(edges.values()) + 5.0, 5.0), color=COLOUR)
    _label(four, "Edge of the host", "highest phonon energy, meV", "hosts")
    return figure


def _no_ticks() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def figure_of_elements(contents: Contents, stats: Mapping[str, Any]) -> Figure:
    """Draw how often each element occurs in hosts and as a dopant, and the yield by chemistry."""
    figure = Figure(figsize=(9.6, 4.7), layout="constrained")
    figure.suptitle(_title(stats), fontsize=8.5, x=0.01, ha="left")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.5, 1.0))
    for row, (key, title) in enumerate((("host", "Hosts that hold the element"), ("dopant", "Pairs with the dopant"))):
        _periodic_table(figure.add_subplot(grid[row, 0]), stats["elements"][key], title)
    found = stats["yield"]
    axes = figure.add_subplot(grid[:, 1])
    groups = {name: found["by_class"][name] for name in CLASS_NAMES if name in (found["by_class"] or {})}
    _yield(axes, {"all": found["all"], **groups})
    return figure


def _periodic_table(axes: Axes, counts: Mapping[str, int], title: str) -> None:
    norm = PowerNorm(0.5, 0.0, max(counts.values(), default=1))  # oxygen would leave the others pale
    shade: Callable[[float], tuple[float, ...]] = _colours()
    for symbol in VOCABULARY:
        group, period = PLACE[symbol]
        share = float(norm(counts.get(symbol, 0)))
        axes.add_patch(_box(group, period, shade(0.04 + 0.76 * share) if symbol in counts else (1.0, 1.0, 1.0, 1.0)))
        ink = "white" if share > 0.72 else "0.15"
        axes.text(group, period - 0.14, symbol, ha="center", va="center", fontsize=7.5, color=ink, weight="bold")
        axes.text(group, period + 0.26, str(counts.get(symbol, 0)), ha="center", va="center", fontsize=5.5, color=ink)
    axes.set_xlim(0.4, 17.6)
    axes.set_ylim(6.6, 1.4)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title)


def _colours() -> Callable[[float], tuple[float, ...]]:
    from matplotlib import colormaps

    return colormaps["Blues"]


def _box(group: int, period: int, colour: tuple[float, ...]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((group - 0.47, period - 0.47), 0.94, 0.94, facecolor=colour, edgecolor="0.8", linewidth=0.5)


def _yield(axes: Axes, groups: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(groups)
    # Without the wished number only the share of hosts is known.
    cells = all(part["share"] is not None for part in groups.values())
    shares = [part["share"] if cells else part["hosts"] / max(part["hosts_tried"], 1) for part in groups.values()]
    bars = axes.barh(range(len(names)), shares, color=[SECOND, *[COLOUR] * (len(names) - 1)], height=0.6)
    axes.bar_label(bars, [f"{s:.0%} ({groups[n]['hosts_tried']:,} hosts)" for n, s in zip(names, shares, strict=True)],
                   fontsize=7.5, padding=3, color="0.3")  # fmt: skip
    axes.set_yticks(
        range(len(names)), [name.replace(" or ", "\nor ").replace("boride, ", "boride,\n") for name in names]
    )
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(names), 6) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.45)
    axes.set_xticks([0.0, 0.5, 1.0], ["0", "50 %", "100 %"])
    axes.set_title("Yield by chemistry")
    axes.set_xlabel("pairs over cells wished" if cells else "hosts with a pair over hosts tried")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write <name>-cells and <name>-elements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures; made if needed")
    parser.add_argument("--hosts", type=Path, help="JSON list of hosts; looked for beside the data")
    parser.add_argument("--format", choices=("png", "svg", "pdf"), default="png")
    chosen = parser.parse_args(arguments)
    contents = read_contents(chosen.data)
    stats = statistics(contents, chosen.hosts)
    if not stats["rows"]:
        parser.error(f"{chosen.data} holds no rows")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        for name, draw in (("cells", figure_of_cells), ("elements", figure_of_elements)):
            path = chosen.out / f"{stats['name']}-{name}.{chosen.format}"
            with replacing(path) as temporary:
                draw(contents, stats).savefig(temporary, format=chosen.format)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
