"""What an answer about a known crystal says, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from defectnet.inference.answer import KnownCrystalAnswer
    from defectnet.inference.posterior import Posterior

SURE = 0.9
"""Least probability of an element that is said to be there without a "probably"."""

NAMED, POSSIBLE = 0.7, 0.4
"""Least probabilities of an element that is said to be there, and of one that is said to be possible: of those between
about half are look-alikes, and where the list lacks the true dopant it is they that would be named."""

OTHER = 0.5
"""Probability of something else from which on it is named first."""

ALIKE = 0.1
"""Probability of a dopant that is no candidate from which on it is said that it may be what else is there."""

LISTED = 3
"""Elements whose limits are listed where nothing explains the change."""

_VERDICTS = {
    "explains": "It explains the change of the spectrum",
    "explains part": "It explains only part of the change of the spectrum",
    "does not explain": "It does not explain the change of the spectrum: the probabilities below are worth little",
}


def sentence(answer: KnownCrystalAnswer) -> str:
    """Say an answer in one sentence."""
    p, limits = answer.posterior, answer.upper_limit
    if answer.verdict == "does not explain":
        names = _named(p, [x for x, c in zip(p.dopants, p.best, strict=True) if c])
        best = f"the best explanation, {names}, accounts for {max(p.explained, 0.0):.0%} of the change beyond noise"
        if p.other >= OTHER or not names:
            told = f" ({best})" if names else ""
            best = f"something that is none of the candidates, or that the force constants do not describe{told}"
        room = ", ".join(f"{100 * limits[i]:.2g} at.% {p.elements[i]}" for i in np.argsort(limits)[:LISTED])
        return f"Cannot tell what changed {answer.formula}: {best}. The change has room for no more than {room}."
    if not answer.present:
        if p.other >= OTHER:
            return (
                f"{answer.formula} is changed by something that is none of the candidates (probability {p.other:.0%}), "
                f"or that the force constants do not describe{_alike(answer)}."
            )
        worst = int(np.argmax(limits))
        top = int(np.argmax(p.probability))
        if p.probability[top] >= POSSIBLE:
            maybe = [i for i in np.argsort(-p.probability, kind="stable") if p.probability[i] >= POSSIBLE]
            return (
                f"{answer.formula} may contain {' or '.join(_amounts(answer, i) for i in maybe)}: too unsure to tell."
            )
        return (
            f"No dopant found in {answer.formula}: the likeliest, {p.elements[top]}, has probability "
            f"{p.probability[top]:.0%}. Upper limits ({p.coverage:.0%}): at most {100 * limits[worst]:.1f} at.% "
            f"({p.elements[worst]})."
        )
    parts = [_amounts(answer, p.elements.index(symbol)) for symbol in answer.present]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    least = min(p.probability[p.elements.index(symbol)] for symbol in answer.present)
    sure = least >= SURE and p.other < 1.0 - SURE and answer.verdict == "explains"
    verb = "contains" if sure else "probably contains"
    more = f", and probably something else ({p.other:.0%}){_alike(answer)}" if p.other >= OTHER else ""
    return f"{answer.formula} {verb} {listed}{more}."


def _amounts(answer: KnownCrystalAnswer, element: int) -> str:
    """Say how likely an element is, and how much of it there is."""
    p, i = answer.posterior, element
    interval = f"{100 * p.low[i]:.2g} to {100 * p.high[i]:.2g}"
    return f"{p.elements[i]} ({p.probability[i]:.0%}; {100 * p.if_present[i]:.2g} at.%, {interval})"


def _named(p: Posterior, dopants: Sequence[str]) -> str:
    """Name dopants, and say which is no candidate."""
    words = [x.partition("@")[0] + (", which is no candidate" if x in p.by_unlisted else "") for x in dopants]
    return " and ".join(words)


def _alike(answer: KnownCrystalAnswer) -> str:
    """Say which of the pack's other dopants looks most like what was found."""
    best = next(iter(answer.resembles.items()), ("", 0.0))
    return f"; of what else the pack holds, {best[0]} fits best ({best[1]:.0%})" if best[1] >= ALIKE else ""


def verdict(answer: KnownCrystalAnswer) -> str:
    """Say whether the answer explains the spectrum, and what the next explanation is."""
    p = answer.posterior
    text = _VERDICTS[answer.verdict]
    if answer.changed and not p.best.any() and answer.verdict == "explains":
        text = (
            "What changed is within noise and what two measurements may differ by: energy scale, background, resolution"
        )
    told = answer.verdict != "does not explain"
    elsewhere = [x for x, c in zip(p.dopants, p.best, strict=True) if told and c and x in p.by_unlisted]
    if elsewhere:
        text += f" with {_named(p, elsewhere)}"
    text += f" ({max(0.0, p.explained):.0%} of it beyond noise)" if answer.present or elsewhere else ""
    others = [one for one in p.likeliest[1:] if one.probability >= 0.05][:1]
    if others:
        names = _named(p, others[0].dopants) or "no dopant"
        known = set(others[0].dopants).isdisjoint(p.by_unlisted)
        names += " with something else" if others[0].other and known else ""
        text += f"; next likely: {names} ({others[0].probability:.0%})"
    return text + "."


def rows(answer: KnownCrystalAnswer) -> list[tuple[str, ...]]:
    """Return titles and cells of an answer's table, the likeliest element first and something else last."""
    p, limits, present = answer.posterior, answer.upper_limit, answer.present
    table = [("element", "probability", "at.% if present", f"{p.coverage:.0%} interval", "at most")]
    for i in np.argsort(-p.probability, kind="stable"):
        there = p.elements[i] in present
        interval = f"{100 * p.low[i]:.1f} to {100 * p.high[i]:.1f}" if there else ""
        amount, limit = (f"{100 * p.if_present[i]:.2f}", "") if there else ("", f"{100 * limits[i]:.1f}")
        table.append((p.elements[i], f"{p.probability[i]:.3f}", amount, interval, limit))
    return [*table, (something_else(answer), f"{p.other:.3f}", "", "", "")]


def something_else(answer: KnownCrystalAnswer) -> str:
    """Name something else, and what it may be of what the pack holds."""
    alike = [symbol for symbol, share in answer.resembles.items() if share >= ALIKE][:LISTED]
    return f"something else ({', '.join(alike)}?)" if alike else "something else"


def about(answer: KnownCrystalAnswer, remarks: Sequence[str] = ()) -> str:
    """Say how an answer came about; remarks on its pack take the place of what computed it."""
    how = f"known crystal, {answer.kind}, edge {answer.edge_mev:.1f} meV, {answer.fwhm_mev:.2g} meV wide"
    return "; ".join([how, answer.pooled, *(remarks or [f"computed with {answer.potential}"])])
