"""``defectnet plan``: what a measurement of a known crystal will tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from defectnet.cli.host_screen import packages
from defectnet.cli.screen import print_json, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from defectnet.inference.plan import Plan


def plan(
    *,
    dopants: str,
    structure: str | None = None,
    pack: str | None = None,
    kind: str = "total",
    element: str | None = None,
    fwhm_mev: float = 3.0,
    noise: float = 0.02,
    step_mev: float | None = None,
    reach_mev: float | None = None,
    amounts: str = "1,3,10",
    same_potential: bool = False,
    potential: str = "nequix",
    minutes: float | None = None,
    plot: str | None = None,
    json: bool = False,
) -> None:
    """Say what a measurement will tell, before it is made: detection limits, intervals, look-alikes.

    The smallest concentration of each dopant that is found in 90 % of samples where 5 % of undoped ones raise a false
    alarm; what noise, resolution and standards change; which dopants are taken for one another.
    See docs/known-crystal.md.

    Args:
        dopants: Dopants in question, such as Al@Mg,C@B; or all that the pack holds.
        structure: Crystal structure of the host, such as a CIF file. A bundled host pack that fits is taken, or one is
            computed and kept.
        pack: Host pack: a bundled name, a folder, or org/repo on the Hugging Face Hub.
        kind: Kind of DOS that will be measured: total, neutron-weighted or projected.
        element: Host element that a projected DOS shows.
        fwhm_mev: Resolution, FWHM in meV.
        noise: Standard deviation at each point as a share of the host's highest value, 0.02 for 2 %; of both spectra.
        step_mev: Distance of the points in meV. Without it a third of the resolution.
        reach_mev: Energy in meV at which the spectra end. Without it the highest that is compared.
        amounts: Concentrations in at.% at which the expected interval is told.
        same_potential: The spectra will be simulated with the pack's own potential.
        potential: With --structure: what computes substitutions. nequix, defectnet-nep (faster, less exact), or a path.
        minutes: With --structure: when to stop computing; what is missing then is said.
        plot: File to draw the plan to: .png, .pdf or .svg. A periodic table where there are many dopants.
        json: Print JSON and nothing else.
    """
    from defectnet.errors import ConfigError

    with packages():
        from defectnet.inference import plan as planning
        from defectnet.inference.known_crystal import KnownCrystal
    from rich.console import Console
    from rich.progress import Progress as Bar

    from defectnet.cli.known import pack_for

    setup = planning.Setup(
        kind=kind,
        element=element,
        fwhm_mev=fwhm_mev,
        noise=noise,
        step_mev=step_mev,
        reach_mev=reach_mev,
        same_potential=same_potential,
    )
    if structure is None and pack is None:
        raise ConfigError("the host is not named", fix="Give --structure or --pack")
    at = planning.parse_amounts(amounts)
    names = _words(dopants)
    if not names:
        raise ConfigError("--dopants names none", fix="Name some, such as Al@Mg,C@B, or all")
    candidates: Sequence[str] | None = None if names == ["all"] else names
    found, candidates, remarks = pack_for(structure, pack, candidates, potential, minutes, None)
    planning.check_setup(found, setup)
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("superposed cells")

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        known = KnownCrystal(found, candidates, report=report)
        bar.update(task, description="samples to come", completed=0, total=None)
        made = planning.plan(known, setup=setup, amounts=at, report=report)
    if plot is not None:
        from defectnet.plotting import plot_plan

        plot_plan(made, plot)
    if json:
        print_json({**made.to_dict(), "pack": list(remarks)})
    else:
        _print(made, remarks)


def _words(text: str) -> list[str]:
    return text.replace(",", " ").replace(";", " ").split()


def _print(plan: Plan, remarks: Sequence[str]) -> None:
    import numpy as np
    from rich.table import Table

    from defectnet.inference.plan import FALSE_ALARMS, POWER, percent, sentence

    console, s = terminal(), plan.setup
    console.print(sentence(plan), style="bold", markup=False)
    seen = s.kind if s.element is None else f"{s.kind} on {s.element}"
    about = [f"{seen}, {s.fwhm_mev:.3g} meV wide, noise {s.noise:.2%} at points {s.points_mev:.3g} meV apart"]
    about += [f"compared {plan.fwhm_mev:.3g} meV wide", *remarks]
    console.print("; ".join(about), style="dim", markup=False)
    console.print(f"at.% of all atoms; {POWER:.0%} power, {FALSE_ALARMS:.0%} false alarms\n", style="dim", markup=False)
    table = Table("dopant", box=None, pad_edge=False, header_style="bold")
    for title in ("limit", "named from", *(f"90% at {100 * a:g}" for a in plan.amounts)):
        table.add_column(title, justify="right")
    table.add_column("told apart from others at", overflow="fold")
    for i, one in enumerate(plan.detections):
        ends = ["" if pair is None else f"{100 * pair[0]:.2g} to {100 * pair[1]:.2g}" for pair in one.intervals]
        others = [j for j in range(len(plan.dopants)) if j != i]
        others.sort(key=list(-np.nan_to_num(plan.apart[i], nan=np.inf)).__getitem__)
        hardest = [f"{plan.dopants[j]} {percent(plan.apart[i, j], one.room)}" for j in others[:3]]
        table.add_row(one.dopant, percent(one.limit, one.room), percent(one.named, one.room), *ends, ", ".join(hardest))
    console.print(table)
    if plan.by_instrument.size:
        console.print()
        table = Table("limit with", "noise", "counting time", box=None, pad_edge=False, header_style="bold")
        for fwhm in plan.fwhms_mev:
            table.add_column(f"{fwhm:.3g} meV", justify="right")
        for i, name in enumerate(plan.dopants):
            for n, noise in enumerate(plan.noises):
                limits = [percent(v, plan.detections[i].room) for v in plan.by_instrument[i, :, n]]
                time = f"{(s.noise / noise) ** 2:.3g}" if noise else ""
                table.add_row(name if not n else "", f"{noise:.2%}", time, *limits)
        console.print(table)
    if plan.by_standards.size:
        console.print()
        table = Table("with standards", box=None, pad_edge=False, header_style="bold")
        for number in plan.standards:
            table.add_column(str(number), justify="right")
        for i, name in enumerate(plan.dopants):
            rows = {"limit": [percent(v, plan.detections[i].room) for v in plan.by_standards[i]]}
            for a, amount in enumerate(plan.amounts):
                ends = [f"{100 * low:.2g} to {100 * high:.2g}" for low, high in plan.intervals_by_standards[i, :, a]]
                if plan.detections[i].intervals[a] is not None:
                    rows[f"90% at {100 * amount:g}"] = ends
            for title, row in rows.items():
                table.add_row(f"{name} of {100 * plan.standard_content[i]:.3g} at.%: {title}", *row)
        console.print(table)
