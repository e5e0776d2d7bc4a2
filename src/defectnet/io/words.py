"""What the words of a header say about the quantity: kinds of DOS, and what is no phonon DOS."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from defectnet.elements import INDEX
from defectnet.errors import SpectrumError

_OTHER: Final = (
    (r"raman|stokes", "a Raman spectrum", "its intensities are not a density of states"),
    (r"infra-?red|ftir|absorb|transmitt|reflectan|\bIR (?:spec|int)", "an optical spectrum", "not a density of states"),
    (
        r"S\s*\(\s*\|?Q|\bS\s*\(\s*(?:E|w|omega|ω)\b|\bSQ[wE]\b|dynamic(?:al)? structure factor|scattering function",
        "S(Q,E)",
        "a scattering function is not a density of states",
    ),
    (
        r"\bE\s*-\s*E_?\{?F|fermi(?![\s_-]*chopper)|\belectron(?:s|ic)?\b|\bspin[\s_-]*(?:up|down)|\b[tp]dos_?(?:up|down)",
        "an electronic DOS",
        "energies are counted from the Fermi level",
    ),
)
_OTHER_TITLE: Final = re.compile(
    r"2[\s_-]*theta|2θ|wavelength|time[\s_-]of[\s_-]flight|heat[\s_]capacity|life[\s_-]?time|line[\s_-]?width|a(?:lpha)?\^?2\s*F|"
    r"eliashberg|\bchi''|suscept|group[\s_-]velocit|phase[\s_-]space|conductivity|\bkappa\b|magnon|(?:two|2|multi)[\s_-]?phonon|"
    r"\bjoint\b|\bj-?dos\b|(?<![a-z])(?:ln|log(?:10)?|sqrt)(?![a-z])|integrated[\s_]+(?:\w+[\s_]+)?(?:p?h?v?dos\b|densit)|cumul|"
    r"dos\s*[*/x]\s*E\b",
    re.IGNORECASE,
)
_FIX: Final = {
    "a Raman spectrum": "Measure or compute the phonon DOS; Raman lines show single modes, weighted by selection rules",
    "an optical spectrum": "Measure or compute the phonon DOS; infrared lines show single modes",
    "S(Q,E)": "Convert it to a DOS first (getDOS, Mantid's ComputeIncoherentDOS) and give that",
    "an electronic DOS": "Give the DOS of the phonons",
}
_WHAT: Final = r"[\s_-]+(?:\w+[\s_-]+)?(?:phonon|vibration|v?p?dos\b|densit)"
_DOS: Final = re.compile(r"dos\b|densit(?:y|ies)[\s_]of[\s_]states|\bg\s*\(\s*[Eωw]", re.IGNORECASE)
_ELECTRONIC: Final = re.compile(r"\belectron(?:ic)?[\s_-]+(?:dos\b|densit)", re.IGNORECASE)
_NEUTRON: Final = re.compile(
    rf"neutron[\s_-]*weight|\bG[VP]?[\s_-]*DOS\b|generali[sz]ed{_WHAT}|\bNW[\s_-]?P?DOS\b|cross[\s_-]section[\s_-]weight",
    re.IGNORECASE,
)
_NEUTRONS: Final = re.compile(r"\bneutrons?\b|\bINS\b", re.IGNORECASE)
_INTENSITY: Final = re.compile(r"intensit\w*|counts?\b|signal", re.IGNORECASE)
_RESONANT: Final = re.compile(
    rf"\bNRIXS\b|\bNRVS\b|nuclear[\s_-]+(?:resonan|inelastic)|\bpartial{_WHAT}", re.IGNORECASE
)
_NUCLEUS: Final = re.compile(r"(?<!\w)\d{2,3}([A-Z][a-z]?)(?![a-z])")
_PROJECTED: Final = re.compile(r"\bpartial|\bprojected", re.IGNORECASE)
_OF: Final = re.compile(r"(?<![A-Za-z])\d{0,3}([A-Z][a-z]?)[\s_-]+(?i:partial|projected|p-?dos\b|dos\b)")
_OF_AFTER: Final = re.compile(r"(?i:dos)[_(\[-]\s*\d{0,3}([A-Z][a-z]?)[)\]]?(?![A-Za-z])")


def quantity(titles: Sequence[str], comments: Sequence[str], source: str) -> tuple[str | None, str | None]:
    """Return the kind of DOS, and the element that it is projected on, that words name; None where they do not.

    Args:
        titles: Words over the columns of energy and DOS.
        comments: Other words of the file; they refuse nothing where "DOS" stands somewhere.
        source: File name, for the error.

    Raises:
        SpectrumError: They name something that is no phonon DOS.
    """
    title, comment = " | ".join(titles), " | ".join(comments)
    words = f"{title} | {comment}"
    dos = _DOS.search(words) is not None
    for pattern, what, why in _OTHER:
        found = re.search(pattern, title if dos else words, re.IGNORECASE)
        found = _ELECTRONIC.search(comment) if found is None and what == "an electronic DOS" else found
        if found and not (dos and what == "S(Q,E)"):  # a DOS may say that it comes from one
            raise SpectrumError(f"{source} is {what}: it says {found[0].strip()!r}", why=why, fix=_FIX[what])
    if found := _OTHER_TITLE.search(title):
        raise SpectrumError(
            f"{source} is no phonon DOS: a title says {found[0].strip()!r}", fix="Give a table of energy and phonon DOS"
        )
    element = next((symbol for text in titles if (symbol := element_of(text)) is not None), None)
    if _NEUTRON.search(words):
        return "neutron-weighted", None
    if _RESONANT.search(comment) and element is None and (nucleus := _NUCLEUS.search(words)) and nucleus[1] in INDEX:
        element = nucleus[1]
    return ("projected" if element or _PROJECTED.search(title) or _RESONANT.search(comment) else None), element


def doubt(titles: Sequence[str], comments: Sequence[str], kind: str | None, source: str) -> str:
    """Return what a reader should be told of words that do not settle the kind; empty where there is nothing."""
    title, comment = " | ".join(titles), " | ".join(comments)
    if kind is None and (found := _NEUTRONS.search(f"{title} | {comment}")):
        return f"{source} says {found[0]!r}, yet is taken for a total DOS: is it neutron-weighted (--kind)?"
    if not _DOS.search(f"{title} | {comment}") and (found := _INTENSITY.search(title)):
        return f"{source} calls its second column {found[0]!r}, not a DOS: it is taken for one"
    return ""


def element_of(title: str, *, alone: bool = False) -> str | None:
    """Return the element that a title such as ``Fe partial DOS``, ``dos_As`` or ``57Fe-DOS`` names.

    Args:
        title: Words over a column.
        alone: Whether a symbol of one letter is one, too: Y may be yttrium, or an axis.
    """
    for pattern in (_OF, _OF_AFTER):
        match = pattern.search(title)
        # "P DOS" and "V DOS" are phonon and vibrational.
        if match and match[1] in INDEX and (len(match[1]) > 1 or pattern is _OF_AFTER or alone):
            return match[1]
    bare = re.fullmatch(r"\s*\d{0,3}([A-Z][a-z]?)\d*\s*", title)
    return bare[1] if bare and bare[1] in INDEX and (alone or len(bare[1]) > 1) else None
