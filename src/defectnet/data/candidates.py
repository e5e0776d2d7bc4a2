"""What a user would have asked: the candidate set of a row, or nothing (blind)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from defectnet.config import Bounded, bounded
from defectnet.elements import VOCABULARY, properties

Track = Literal["candidates", "blind", "mixed", "known-crystal"]

TRACKS: Final[tuple[Track, ...]] = ("candidates", "blind")
"""The two questions that networks are trained for; ``mixed`` draws one of them for each row, for training."""

CONDITIONS: Final = ("clean", "lab")
"""Measurements under which networks are calibrated, baselines learn and all are judged."""


OPEN_SHARE: Final = 0.4
"""Share of lists that may miss dopants, where networks that tell what is not in the list are trained and calibrated."""


@dataclass(frozen=True)
class TrackSettings(Bounded, called="tracks"):
    """How candidate sets are drawn.

    Attributes:
        blind_share: Share of training rows that name no candidates. At 0 validation asks the candidates track alone.
        max_distractors: Up to this many elements that are not there are added to the true ones; uniform from 0.
        likely_share: Share of the distractors drawn by chemical likeness to the host, the rest uniformly.
        hard_negative_share: Share of the distractors that training draws first, among the dopants of other rows of the
            same host. Without them, to know by heart which dopants go with a host answers most questions about it.
        open_share: Share of the named rows whose list may be incomplete. At 0, as in the benchmark, all dopants are in
            every list.
        missing_all: Share of the open lists that hold no true dopant; from the others each dopant is missing half of
            the times.
        twin_share: Share of the distractors drawn by chemical likeness to the true dopants, named or not.
    """

    blind_share: float = bounded(0.5, 0.0, 1.0)
    max_distractors: int = bounded(6, 1, 40)
    likely_share: float = bounded(0.5, 0.0, 1.0)
    hard_negative_share: float = bounded(0.0, 0.0, 1.0)
    open_share: float = bounded(0.0, 0.0, 1.0)
    missing_all: float = bounded(0.5, 0.0, 1.0)
    twin_share: float = bounded(0.0, 0.0, 1.0)


def _likeness() -> NDArray[np.float64]:
    names = ("covalent_radius_angstrom", "electronegativity", "group", "period")
    columns = np.stack([properties(name) for name in names], axis=1)
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    squared = ((scaled[:, None] - scaled) ** 2).sum(axis=2)
    return np.asarray(np.exp(-squared))


LIKENESS: Final = _likeness()
"""(62, 62) likeness of two elements, 1 for the same: by radius, electronegativity, group and period."""


def questions(
    hosts: NDArray[np.bool_],
    dopants: NDArray[np.bool_],
    track: Track,
    settings: TrackSettings,
    rngs: Sequence[np.random.Generator],
    hard_negatives: NDArray[np.bool_] | None = None,
    askable: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Draw what a user would ask of each row: about named elements, or about all but the host's (blind).

    Named are the true dopants, but for what open lists miss, and some distractors, never an element of the host, and
    at least one element, also of an undoped control. A dopant that an open list misses is no distractor.

    Args:
        hosts: (B, 62) elements of the hosts.
        dopants: (B, 62) elements that were substituted in.
        track: Whether candidates are named.
        settings: How candidate sets are drawn.
        rngs: One generator for each row; it alone decides what is drawn for that row.
        hard_negatives: (B, 62) dopants of other rows of the same hosts, in training.
        askable: (B, 62) elements that may be distractors where candidates are named; by default all.

    Returns:
        (B, 62) masks: all elements but the host's where nothing is named, else the dopants and some distractors, one
        element at least; and (B,) whether they were named.
    """
    each = 2 if hard_negatives is None else 4
    uniform = np.empty((len(rngs), 2 + each * settings.max_distractors))
    # Numbers of their own, after the others: those of complete lists are what they were without these settings.
    odd = np.ones((len(rngs), 2 + len(VOCABULARY) + settings.max_distractors))
    for row, more, rng in zip(uniform, odd, rngs, strict=True):
        rng.random(out=row)
        if settings.open_share or settings.twin_share:
            rng.random(out=more)
    given = np.full(len(rngs), track == "candidates") | ((track == "mixed") & (uniform[:, 0] >= settings.blind_share))
    masks = ~hosts
    asked = np.flatnonzero(given)
    if len(asked):
        first = None if hard_negatives is None else hard_negatives[asked]
        free = ~hosts[asked] if askable is None else ~hosts[asked] & askable[asked]
        masks[asked] = _candidate_sets(
            hosts[asked], dopants[asked], settings, uniform[asked, 1:], odd[asked], first, free
        )
    return masks, given


def _candidate_sets(
    hosts: NDArray[np.bool_],
    dopants: NDArray[np.bool_],
    settings: TrackSettings,
    uniform: NDArray[np.float64],
    odd: NDArray[np.float64],
    hard_negatives: NDArray[np.bool_] | None,
    free: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Add distractors to (B, 62) true dopants.

    `uniform` is (B, 1 + 2 or 4 max_distractors), `odd` (B, 2 + 62 + max_distractors) numbers; `free` (B, 62)
    are the elements that may be distractors.
    """
    rows = np.arange(len(hosts))
    missing = (odd[:, 1, None] < settings.missing_all) | (odd[:, 2 : 2 + len(VOCABULARY)] < 0.5)
    masks = dopants & ~(missing & (odd[:, 0, None] < settings.open_share))
    likely = np.where(hosts[:, :, None], LIKENESS, 0.0).max(axis=1)
    taken = ~free | dopants  # neither is a distractor
    fewest = np.where(masks.any(axis=1), 0, 1)
    twins = np.where(dopants[:, :, None], LIKENESS, 0.0).max(axis=1)
    wanted = fewest + (uniform[:, 0] * (settings.max_distractors + 1 - fewest)).astype(int)
    for k in range(int(wanted.max())):
        by_likeness = uniform[:, 2 * k + 1, None] < settings.likely_share
        weights = np.where(masks | taken, 0.0, np.where(by_likeness, likely, 1.0))
        if hard_negatives is not None:
            known = hard_negatives & ~masks & ~taken
            drawn = uniform[:, 2 * (settings.max_distractors + k) + 1]
            first = (drawn < settings.hard_negative_share) & known.any(axis=1)
            weights = np.where(first[:, None], known, weights)
        twin = (odd[:, 2 + len(VOCABULARY) + k] < settings.twin_share) & dopants.any(axis=1)
        if twin.any():
            weights = np.where(twin[:, None], np.where(masks | taken, 0.0, twins), weights)
        running = np.cumsum(weights, axis=1)
        # Rounding must not lead past the last element that is free.
        target = np.minimum(uniform[:, 2 * k + 2] * running[:, -1], np.nextafter(running[:, -1], 0.0))
        chosen = (running <= target[:, None]).sum(axis=1)
        more = (wanted > k) & (running[:, -1] > 0.0)
        masks[rows[more], chosen[more]] = True
    return masks
