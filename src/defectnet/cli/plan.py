"""``defectnet plan``: what a measurement of a known crystal will tell."""

from __future__ import annotations

from defectnet.cli.host_screen import Steps
from defectnet.cli.screen import check_plot, print_json, words


def plan_measurement(
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
    See docs/planning.md.

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
    from defectnet.cli.plan_screen import print_plan
    from defectnet.errors import ConfigError
    from defectnet.inference import plan as planning
    from defectnet.inference.ask import CrystalWanted, ask_plan

    check_plot(plot)
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
    names = words(dopants)
    if not names:
        raise ConfigError("--dopants names none", fix="Name some, such as Al@Mg,C@B, or all")
    candidates = None if names == ["all"] else names
    wanted = CrystalWanted(structure, pack, candidates, potential=potential, minutes=minutes)
    with Steps() as steps:
        made, remarks = ask_plan(wanted, setup, at, made=steps.made, report=steps.report)
    if plot is not None:
        from defectnet.plotting import plot_plan

        plot_plan(made, plot)
    if json:
        print_json({**made.to_dict(), "pack": list(remarks)})
    else:
        print_plan(made, remarks)
