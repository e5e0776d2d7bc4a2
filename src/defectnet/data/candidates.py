"""What a user would have asked: the candidate set of a row, or nothing (blind)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from defectnet.elements import VOCABULARY, multi_hot, properties
from defectnet.errors import ConfigError

Track = Literal["candidates", "blind", "mixed"]

TRACKS: Final[tuple[Track, ...]] = ("candidates", "blind")
"""The two questions of the benchmark; ``mixed`` draws one of them for each row, for training."""


@dataclass(frozen=True)
class TrackSettings:
    """How candidate sets are drawn.

    Attributes:
        blind_share: Share of training rows that name no candidates. At 0 validation asks the candidates track alone.
        max_distractors: Up to this many elements that are not there are added to the true ones; uniform from 0.
        likely_share: Share of the distractors drawn by chemical likeness to the host, the rest uniformly.
    """

    blind_share: float = 0.5
    max_distractors: int = 6
    likely_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("blind_share", "likely_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"tracks.{name} is {getattr(self, name)}", fix="Use a share between 0 and 1")
        if not 1 <= self.max_distractors <= 40:
            raise ConfigError(f"tracks.max_distractors is {self.max_distractors}", fix="Use 1 to 40")


def _likeness() -> NDArray[np.float64]:
    names = ("covalent_radius_angstrom", "electronegativity", "group", "period")
    columns = np.stack([properties(name) for name in names], axis=1)
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    squared = ((scaled[:, None] - scaled) ** 2).sum(axis=2)
    return np.asarray(np.exp(-squared))


LIKENESS: Final = _likeness()
"""(62, 62) likeness of two elements, 1 for the same: by radius, electronegativity, group and period."""


def candidate_set(
    host: Iterable[str], dopants: Iterable[str], settings: TrackSettings, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw the elements a user would name: the true dopants and some distractors, never an element of the host.

    Returns:
        (62,) mask with at least one element, also for an undoped control.
    """
    hosts, true = multi_hot(host), multi_hot(dopants)
    mask = true.copy()
    wanted = int(rng.integers(0 if true.any() else 1, settings.max_distractors + 1))
    likely = LIKENESS[hosts].max(axis=0)
    for _ in range(wanted):
        free = ~(mask | hosts)
        weight = likely * free if rng.random() < settings.likely_share else free.astype(np.float64)
        mask[rng.choice(len(VOCABULARY), p=weight / weight.sum())] = True
    return mask


def question(
    host: Iterable[str], dopants: Iterable[str], track: Track, settings: TrackSettings, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], bool]:
    """Return the elements in question and whether the user named them.

    Returns:
        (62,) mask, all elements but the host's when blind; and true for a named set.
    """
    host = tuple(host)
    if track == "blind" or (track == "mixed" and rng.random() < settings.blind_share):
        return ~multi_hot(host), False
    return candidate_set(host, dopants, settings, rng), True
