"""Draw the pictures of the documentation from bundled data: python examples/gallery.py [names].

Some five minutes for all. The page that shows them is docs/gallery.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from PIL import Image

import defectnet
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.emulator import Emulator
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.inference.plan import Setup
from defectnet.plotting import (
    DOPED_COLOUR,
    HOST_COLOUR,
    PRESENT_COLOUR,
    STYLE,
    plot_corner,
    plot_doped,
    plot_known,
    plot_pack,
    plot_pair,
    plot_plan,
    plot_row,
)
from make_example import find_row

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "images"
DPI = 110
COLOURS = 256  # of a palette, which halves a file
HALF = 0.53  # of the picture of the landing page: where it is cut in two, one above the other on a phone
SHOWN = 1.75  # of the edge: local modes of light dopants
LIKELY = ("C", "N", "Mg", "Al", "Si", "P", "Zn", "Ge", "Se", "In", "Sn", "Sb")
SHIFTS = ((0, 0, 0), (3, -3, 0))  # primitive vectors to the two dopants of the sketch


@cache
def crystal() -> KnownCrystal:
    """Return the example's crystal with its candidates."""
    answer = json.loads((ROOT / "examples" / "answer.json").read_text(encoding="utf-8"))
    return KnownCrystal(defectnet.HostPack.load(answer["pack"]), answer["candidates"].split(","))


@cache
def pair() -> tuple[defectnet.Spectrum, defectnet.Spectrum]:
    """Return the example pair."""
    host, doped = (defectnet.read_spectrum(ROOT / "examples" / f"{name}.csv") for name in ("host", "doped"))
    return host, doped


@cache
def answer() -> KnownCrystalAnswer:
    """Return the answer to the example pair."""
    return crystal().identify(*pair())


def idea(path: Path) -> None:
    """Two spectra, what each dopant changes in the crystal, and which of them explains the spectra; in two halves."""
    found, known = answer(), crystal()
    with rc_context(STYLE):
        figure = Figure(figsize=(11.0, 4.0))
        outer = figure.add_gridspec(1, 4, width_ratios=(1.0, 1.12, 0.85, 1.05), left=0.045, right=0.985, top=0.78,
                                    bottom=0.14, wspace=0.3)  # fmt: skip
        spectra, atoms, changes, result = (figure.add_subplot(outer[0, k]) for k in range(4))
        _spectra(spectra, found)
        _atoms(atoms, known)
        _changes(changes, known, found)
        _result(result, found)
        titles = ("Two spectra", "The crystal", "Computed changes", "The answer")
        notes = (
            "phonon densities of states\nof host and sample",
            "force constants that a dopant alters,\nadded up for any composition",
            "of the spectrum, by 3 at.% of each\ncandidate, seen by the instrument",
            "what explains the measured change,\nand how much of it is there",
        )
        for number, (axes, title, note) in enumerate(zip(figure.axes, titles, notes, strict=True), 1):
            left = axes.get_position().x0
            figure.text(left, 0.955, f"{number}  {title}", fontsize=10.5, weight="bold", va="center")
            figure.text(left, 0.925, note, fontsize=8.5, color="0.3", va="top")
        figure.savefig(path, dpi=DPI)


def _spectra(axes: Any, found: KnownCrystalAnswer) -> None:
    sample = found.pristine + found.measured
    axes.fill_between(found.energy_mev, found.pristine, color=HOST_COLOUR, alpha=0.15, linewidth=0)
    axes.plot(found.energy_mev, found.pristine, color=HOST_COLOUR, label=found.formula)
    axes.plot(found.energy_mev, sample, color=DOPED_COLOUR, linestyle=(0, (4, 1.5)), label=f"{found.formula}:?")
    axes.set(xlabel="Energy (meV)", ylabel="DOS", yticks=[], xlim=(0.0, SHOWN * found.edge_mev))
    axes.set_ylim(0.0, 1.3 * float(sample.max()))
    axes.legend(loc="upper right", fontsize=9.0, handlelength=1.8)


def _atoms(axes: Any, known: KnownCrystal) -> None:
    pack = known.pack
    (dopant, site), one = next(item for item in pack.substitutions.items() if item[0][0] == found_first())
    primitive = pack.host.primitive
    size = np.linalg.norm(one.change.reshape(len(one.basis), 3, len(one.basis), 3), axis=(1, 3))
    change: dict[tuple[int, ...], float] = {}
    for shift in SHIFTS:
        for k, (basis, lattice) in enumerate(zip(one.basis, one.lattice, strict=True)):
            key = (int(basis), *(lattice + np.array(shift)).tolist())
            change[key] = change.get(key, 0.0) + float(np.sqrt((size[k] ** 2).sum()))
    span = range(-9, 10)
    keys = [(b, i, j, k) for b in range(len(primitive)) for i in span for j in span for k in span]
    places = np.array([(primitive.frac[b] + (i, j, k)) @ primitive.cell for b, i, j, k in keys])
    ends = np.array([(primitive.frac[site] + np.array(s)) @ primitive.cell for s in SHIFTS])
    # Along a cubic axis, turned so that the two dopants lie side by side.
    along = ends[1] - ends[0]
    along /= np.linalg.norm(along)
    normal = np.eye(3)[int(np.argmin(abs(along)))]
    up = np.cross(normal, along)
    flat = (places - ends.mean(0)) @ np.stack([along, up, normal], axis=1)
    wide = 10.4
    shown = (abs(flat[:, 0]) < wide) & (abs(flat[:, 1]) < wide) & (abs(flat[:, 2]) < 3.4)
    value = np.array([change.get(key, 0.0) for key in keys])
    order = np.flatnonzero(shown)[np.argsort(value[shown], kind="stable")]
    norm, colours = LogNorm(0.02, float(value.max())), colormaps["cividis_r"]
    base = np.array([key[0] for key in keys])
    radius = np.where(primitive.numbers[base] == primitive.numbers.max(), 110.0, 64.0)
    axes.scatter(flat[order, 0], flat[order, 1], s=radius[order], c=np.maximum(value[order], 0.02), cmap=colours,
                 norm=norm, edgecolors="0.35", linewidths=0.4)  # fmt: skip
    for x, y, _ in (ends - ends.mean(0)) @ np.stack([along, up, normal], axis=1):
        axes.scatter([x], [y], s=230.0, facecolor="white", edgecolor="black", linewidths=1.4, zorder=3)
        axes.text(x, y, dopant, ha="center", va="center", fontsize=7.5, weight="bold", zorder=4)
    axes.set(xlim=(-wide, wide), ylim=(-wide, wide), aspect="equal", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.inset_axes((0.12, -0.06, 0.76, 0.035))
    axes.figure.colorbar(axes.collections[0], cax=bar, orientation="horizontal")
    bar.set_xticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"], minor=False)
    bar.set_xticks([], minor=True)
    bar.set_xlabel(r"change (eV/$\mathrm{\AA}^2$)", labelpad=2.0)


def found_first() -> str:
    """Return the element that the answer to the example finds most probable."""
    p = answer().posterior
    return p.elements[int(np.argmax(p.probability))]


def _changes(axes: Any, known: KnownCrystal, found: KnownCrystalAnswer) -> None:
    seen = known.compare(*pair(), None, None, False)
    emulator = Emulator(known.cells, seen.instrument)
    step = 0.0
    height = 1.25 * float(np.abs(0.03 * emulator.responses).max())
    symbols = [name.partition("@")[0] for name in known.dopants]
    for name in [found_first(), *(s for s in dict.fromkeys(symbols) if s != found_first())]:
        amount = np.zeros((1, len(symbols)))
        amount[0, symbols.index(name)] = 0.03
        curve = emulator.mean(amount)[0]
        chosen = name == found_first()
        axes.axhline(step, color="0.85", linewidth=0.6)
        axes.plot(found.energy_mev, curve + step, color=PRESENT_COLOUR if chosen else "0.45",
                  linewidth=1.8 if chosen else 1.0)  # fmt: skip
        axes.text((SHOWN - 0.03) * found.edge_mev, step + 0.12 * height, name, ha="right", fontsize=9.0,
                  weight="bold" if chosen else "normal", color=PRESENT_COLOUR if chosen else "0.3")  # fmt: skip
        step -= height
    axes.set(xlabel="Energy (meV)", yticks=[], xlim=(0.0, SHOWN * found.edge_mev))
    axes.set_ylim(step + 0.3 * height, height)
    axes.spines["left"].set_visible(False)


def _result(axes: Any, found: KnownCrystalAnswer) -> None:
    axes.set_axis_off()
    top, below = axes.inset_axes((0.0, 0.56, 1.0, 0.44)), axes.inset_axes((0.16, 0.0, 0.84, 0.36))
    low, high = found.predicted - 2.0 * found.band, found.predicted + 2.0 * found.band
    top.axhline(0.0, color="0.6", linewidth=0.6)
    top.fill_between(found.energy_mev, low, high, color=PRESENT_COLOUR, alpha=0.2, linewidth=0.0)
    top.plot(found.energy_mev, found.predicted, color=PRESENT_COLOUR, linewidth=1.6, label="predicted")
    top.plot(found.energy_mev, found.measured, color=DOPED_COLOUR, linestyle=(0, (4, 1.5)), label="measured")
    top.set(yticks=[], xlim=(0.0, SHOWN * found.edge_mev), xlabel="Energy (meV)")
    top.legend(fontsize=8.0, loc="upper right", handlelength=1.8, borderaxespad=0.0)
    p = found.posterior
    order = np.argsort(-p.probability, kind="stable")[:4]
    for y, i in enumerate(order):
        there = p.probability[i] >= 0.5
        ends = (p.low[i], p.high[i]) if there else (0.0, p.upper[i])
        colour = PRESENT_COLOUR if there else "0.75"
        below.plot([100 * end for end in ends], [y, y], color=colour, linewidth=5.0, alpha=0.6 if there else 1.0)
        if there:
            below.plot(100 * p.if_present[i], y, "o", color=colour, markersize=6.0)
    truth = json.loads((ROOT / "examples" / "answer.json").read_text(encoding="utf-8"))["dopants"]
    for symbol, share in truth.items():
        below.plot(100 * share, [p.elements[i] for i in order].index(symbol), "|", color="black", markersize=13.0,
                   markeredgewidth=1.6, label="truth")  # fmt: skip
    below.set_yticks(range(len(order)), [f"{p.elements[i]}  {p.probability[i]:.0%}" for i in order])
    below.set(ylim=(len(order) - 0.5, -0.6), xlabel="at.%, 90 % interval")
    below.set_xlim(left=0.0)
    below.tick_params(axis="y", length=0)
    below.legend(fontsize=8.0, loc="lower right", handlelength=1.0, borderaxespad=0.0)


def known(path: Path) -> None:
    """An answer about a known crystal."""
    plot_known(answer(), path)


def corner(path: Path) -> None:
    """The posterior of the same answer."""
    plot_corner(answer(), path)


def plan(path: Path) -> None:
    """A plan for three dopants."""
    setup = Setup(kind="neutron-weighted", fwhm_mev=1.5, noise=0.01)
    plot_plan(defectnet.plan("GaAs", ["Al@Ga", "In@Ga", "P@As"], setup=setup), path)


def limits(path: Path) -> None:
    """Detection limits of a dozen likely dopants."""
    setup = Setup(kind="neutron-weighted", fwhm_mev=1.5, noise=0.01)
    plot_plan(defectnet.plan("GaAs", LIKELY, setup=setup), path)


def pack(path: Path) -> None:
    """A host pack."""
    plot_pack(defectnet.HostPack.load("GaAs"), path)


def doped(path: Path) -> None:
    """A spectrum from a pack, with its standard error."""
    plot_doped(defectnet.HostPack.load("GaAs").spectrum("Al=0.05,In=0.02", cells=4, atoms=60, fwhm_mev=1.0), path)


def network(path: Path) -> None:
    """The network's answer to the example pair."""
    given = json.loads((ROOT / "examples" / "answer.json").read_text(encoding="utf-8"))
    model = defectnet.from_pretrained("defectnet-small")
    plot_pair(*pair(), model.predict(*pair(), given["formula"], candidates=given["candidates"].split(",")), path)


def row(path: Path) -> None:
    """A row of a data set."""
    plot_row(find_row(ROOT / "data" / "defectnet-sim-v2" / "defectnet-nep", "MgB2/0002"), path)


DRAWINGS: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (idea, known, corner, plan, limits, pack, doped, network, row)
}


def small(path: Path) -> list[Path]:
    """Write a picture again with a resolution and a palette that keep it small; the one of the landing page as two."""
    with Image.open(path) as image:
        width = round(image.width * DPI / image.info["dpi"][0])
        shrunk = image.convert("RGB").resize(
            (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
        )
        reduced = shrunk.quantize(COLOURS, dither=Image.Dither.NONE)
    if path.stem != "idea":
        reduced.save(path, optimize=True)
        return [path]
    path.unlink()
    middle = round(HALF * reduced.width)
    halves = {"idea-1": (0, middle), "idea-2": (middle, reduced.width)}
    for name, (left, right) in halves.items():
        reduced.crop((left, 0, right, reduced.height)).save(path.with_stem(name), optimize=True)
    return [path.with_stem(name) for name in halves]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*DRAWINGS, []])
    for name in parser.parse_args(arguments).names or DRAWINGS:
        path = PICTURES / f"{name}.png"
        DRAWINGS[name](path)
        for written in small(path):
            print(written.relative_to(ROOT), written.stat().st_size)


if __name__ == "__main__":
    main()
