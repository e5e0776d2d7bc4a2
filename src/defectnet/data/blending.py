"""Blends of rows of one host: more mixtures and concentrations than were simulated.

A spectrum is an average over atoms, so a mixture of two doped samples of a host and of the pure host has the average of
their spectra, and at small concentrations a sample with both dopants has nearly the same. A network that sees a host's
few rows again and again learns by heart how much of which dopants goes with it; of a blend the amounts are new. Which
dopants a host's rows have stays the same, and is asked about by `hard_negatives`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from defectnet.data.shards import Row

MOST_PARTNERS: Final = 2
MOST_DOPANTS: Final = 6  # as many as are simulated
LEAST_CONCENTRATION: Final = 0.002  # as little
MOST_HOST: Final = 0.5  # share of the pure host in a blend
_LEAST_HOST: Final = 1e-9  # below which what is missing from 1 is rounding


def by_host(rows: Iterable[Row]) -> dict[tuple[str, float], list[Row]]:
    """Group rows that may be blended: of one host, with one stiffness.

    Args:
        rows: Rows in any order; each group keeps it.

    Returns:
        Groups by host id and band edge, which differs between stiffnesses.
    """
    groups: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def key(row: Row) -> tuple[str, float]:
    """Return the key of a row's group in `by_host`."""
    return row.row_id.rpartition("/")[0], row.edge_mev


def hard_negatives(groups: Mapping[tuple[str, float], Sequence[Row]]) -> dict[str, tuple[int, ...]]:
    """Return host id -> positions of the dopants of all its rows in groups of `by_host`, sorted."""
    found: dict[str, set[int]] = defaultdict(set)
    for (host, _), rows in groups.items():
        found[host].update(dopant for row in rows for dopant in row.dopants.tolist())
    return {host: tuple(sorted(dopants)) for host, dopants in found.items()}


def draw_shares(others: int, chance: float, rng: np.random.Generator) -> tuple[list[int], list[float]]:
    """Draw what a row is blended with.

    Args:
        others: How many rows it may be blended with.
        chance: Probability that it is blended.
        rng: Source of every random choice.

    Returns:
        Positions among the others, `MOST_PARTNERS` at most; and the share of the row itself, followed by theirs. What
        the shares lack from 1 is the pure host's. ``[], [1.0]`` where nothing is blended.
    """
    if rng.random() >= chance:
        return [], [1.0]
    partners = rng.permutation(others)[: rng.integers(MOST_PARTNERS + 1)].tolist()
    host = MOST_HOST * rng.random() if rng.random() < 0.5 or not partners else 0.0
    return partners, ((1.0 - host) * rng.dirichlet(np.full(1 + len(partners), 2.0))).tolist()


def blend(row: Row, group: Sequence[Row], chance: float, rng: np.random.Generator) -> Row:
    """Blend a row with up to two of its group and with the pure host, or return it as it is.

    Args:
        row: The row that is due.
        group: Rows of the same host and stiffness, `row` among them.
        chance: Probability that a blend is tried. A blend with too many or too dilute dopants is given up.
        rng: Source of every random choice.

    Returns:
        A row whose doped cell has a part for each of the blended ones, so that elements may stand in it repeatedly.
    """
    others = [other for other in group if other.row_id != row.row_id]
    partners, shares = draw_shares(len(others), chance, rng)
    if shares == [1.0]:
        return row
    parts, host = [row, *(others[i] for i in partners)], 1.0 - sum(shares)
    concentration: dict[int, float] = defaultdict(float)
    for part, share in zip(parts, shares, strict=True):
        for dopant, value in zip(part.dopants.tolist(), part.concentration.tolist(), strict=True):
            concentration[dopant] += share * value
    if len(concentration) > MOST_DOPANTS or min(concentration.values(), default=1.0) < LEAST_CONCENTRATION:
        return row
    first = row.hosts
    kept = (
        first if host > _LEAST_HOST else 0
    )  # no curves without area: an element of the host may be gone from the doped cells
    areas = [row.areas[:first], *(part.areas[part.hosts :] * share for part, share in zip(parts, shares, strict=True))]
    return replace(
        row,
        elements=np.concatenate([row.elements, *(p.elements[p.hosts :] for p in parts[1:]), row.elements[:kept]]),
        codes=np.concatenate([row.codes, *(part.codes[part.hosts :] for part in parts[1:]), row.codes[:kept]]),
        areas=np.concatenate([*areas, row.areas[:kept] * host]).astype(np.float32),
        dopants=np.array(list(concentration), dtype=np.intp),
        concentration=np.array(list(concentration.values()), dtype=np.float32),
    )


def pristine(row: Row) -> Row:
    """Return a row whose sample is the host itself: what differs between the two is how they are measured."""
    first = row.hosts
    return replace(
        row,
        elements=np.concatenate([row.elements[:first]] * 2),
        codes=np.concatenate([row.codes[:first]] * 2),
        areas=np.concatenate([row.areas[:first]] * 2),
        dopants=row.dopants[:0],
        concentration=row.concentration[:0],
    )
