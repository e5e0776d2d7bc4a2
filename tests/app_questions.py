"""Plans and corrected answers of the page with few cells and few draws: what it shows does not hang on their number."""

from __future__ import annotations

from defectnet.app import jobs

LONG = "GaAs"
"""Host of the plan that takes its time: it shall still be at work when it is stopped."""


def answer(out, name, request, folder) -> None:
    """In place of `jobs._answer`, in the question's own process."""
    from defectnet.inference import known_crystal, plan

    if (name == "plan" and request.get("pack") != LONG) or request.get("samples"):
        known_crystal.CELLS, known_crystal.NEAR_CELLS, known_crystal.ROUNDS = (8, 20), 8, 1
        plan.FINE_DRAWS, plan.NULL_DRAWS, plan.PAIR_DRAWS, plan.INTERVAL_DRAWS = 100, 200, 50, 20
        plan.FWHM_FACTORS, plan.NOISE_FACTORS, plan.STANDARDS = (1.0, 2.0), (0.5, 1.0), (0, 5)
    _answer(out, name, request, folder)


_answer = jobs._answer
