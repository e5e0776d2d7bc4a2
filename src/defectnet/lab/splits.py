"""Which lab pairs are learnt from and which judge: whole samples, or whole hosts, never parts of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from defectnet.errors import ConfigError, LabError
from defectnet.lab.table import LabPair
from defectnet.rng import row_rng

MIN_GROUPS: Final = 5
"""With fewer groups held out no difference can be told from chance (see `defectnet.lab.judge`)."""

MANY_GROUPS: Final = 40
"""From so many groups on one part is held out; fewer are all held out in turn (folds)."""

FOLDS: Final = 4


def groups_of(pairs: Sequence[LabPair], grouping: str) -> tuple[list[str], str]:
    """Name the group of each pair.

    Args:
        pairs: Rows of a table.
        grouping: ``sample``; ``host``, by chemical system; or ``auto``: by host where there are enough of them.

    Returns:
        The names, and which grouping was taken.

    Raises:
        ConfigError: The grouping is not known.
    """
    names = {"sample": [pair.sample for pair in pairs], "host": [pair.system for pair in pairs]}
    if grouping == "auto":
        grouping = "host" if len(set(names["host"])) >= MIN_GROUPS else "sample"
    if grouping not in names:
        raise ConfigError(f"group is {grouping!r}", fix="Use auto, sample or host")
    return names[grouping], grouping


def hold_out(groups: Sequence[str], share: float, seed: int) -> list[int]:
    """Choose pairs to hold out, by whole groups.

    Args:
        groups: Group of each pair.
        share: Share of the groups that is held out; one at least, and not all.
        seed: Fixes which.

    Returns:
        Positions of the pairs that are held out.

    Raises:
        ConfigError: The share is not between 0 and 1.
        LabError: There is only one group.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"share of held-out samples is {share}", fix="Use a number between 0 and 1")
    order = _shuffled(groups, seed)
    out = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    return [i for i, group in enumerate(groups) if group in out]


def folds(groups: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """Spread groups over folds of about equally many pairs.

    Args:
        groups: Group of each pair.
        count: Number of folds; each has one group at least.
        seed: Fixes which groups lie together.

    Returns:
        Positions of the pairs that each fold holds out; every pair is in one fold.

    Raises:
        ConfigError: There are fewer groups than folds, or fewer than 2 folds.
    """
    order = _shuffled(groups, seed)
    if not 2 <= count <= len(order):
        raise ConfigError(f"folds is {count}, with {len(order)} groups", fix=f"Use 2 to {len(order)}")
    sizes = {group: list(groups).count(group) for group in order}
    members: list[list[str]] = [[] for _ in range(count)]
    # The largest group first, always to the smallest fold; ties stay in shuffled order.
    for group in sorted(order, key=lambda name: -sizes[name]):
        min(members, key=lambda fold: (sum(sizes[name] for name in fold), len(fold))).append(group)
    return [[i for i, group in enumerate(groups) if group in fold] for fold in members]


def _shuffled(groups: Sequence[str], seed: int) -> list[str]:
    names = sorted(set(groups))
    if len(names) < 2:
        raise LabError("all pairs belong to one group", fix="Give more samples, or group by sample")
    return [names[i] for i in np.argsort(row_rng("groups", seed).random(len(names)))]
