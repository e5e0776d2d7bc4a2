"""What ``defectnet plan`` shows; apart from its command for the reason that `defectnet.cli.host_screen` gives."""

from __future__ import annotations

from collections.abc import Sequence

from defectnet.cli.screen import terminal
from defectnet.inference.plan import FALSE_ALARMS, POWER, Plan, look_alikes, percent, sentence


def print_plan(plan: Plan, remarks: Sequence[str]) -> None:
    """Print a plan as tables; remarks say where its pack comes from."""
    from rich.table import Table

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
        limit, named = percent(one.limit, one.room), percent(one.named, one.room)
        table.add_row(one.dopant, limit, named, *ends, ", ".join(look_alikes(plan, i)))
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
