"""Answers to a whole split as plain arrays, beside what is true and what is known of each row.

Shape letters: N rows, E elements of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.batch import Estimate, Targets
from defectnet.data.dataset import ShardIndex
from defectnet.data.shards import DAMAGE, open_shard
from defectnet.elements import INDEX, NUMBERS, VOCABULARY, properties
from defectnet.errors import ShardError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

RANGES: Final = ((0.0, 0.01), (0.01, 0.05), (0.05, 1.0))
"""Ranges of the true concentration, lower end open: up to 1, 1 to 5, and above 5 at.% (the data end at 0.2 and 25)."""

_COLUMNS: Final = (
    "row_id", "host_id", "formula", "chemical_system", "placement", "sites", "site_dopants", "atoms", "host_numbers",
)  # fmt: skip
_MASS: Final = properties("mass_u")
_MASS_OF_NUMBER: Final = dict(zip(NUMBERS.tolist(), _MASS.tolist(), strict=True))


class Facts(NamedTuple):
    """What the shards say of the rows beside their spectra.

    Attributes:
        row_id: (N,) names of the rows.
        host_id: (N,) names of the crystals.
        formula: (N,) formulas of the hosts.
        system: (N,) chemical systems of the hosts; rows of one system are resampled together.
        placement: (N,) ``random`` or ``clustered``.
        mass_ratio: (N, E) mass of a dopant over the mean mass of the atoms that it replaced; NaN where absent.
    """

    row_id: NDArray[np.str_]
    host_id: NDArray[np.str_]
    formula: NDArray[np.str_]
    system: NDArray[np.str_]
    placement: NDArray[np.str_]
    mass_ratio: Floats

    def rows(self, chosen: NDArray[Any]) -> Facts:
        """Return the facts of some rows."""
        return Facts(*(field[chosen] for field in self))


class Scores(NamedTuple):
    """Answers of one track under one condition.

    Attributes:
        probability: (N, E) probability that the element is there; -1 for what is not in question, so that it ranks
            behind everything that is.
        expected: (N, E) expected concentration.
        amount: (N, E) concentration if present.
        asked: (N, E) elements in question.
        present: (N, E) elements that are there; all of them are in question.
        true: (N, E) true concentrations.
        low: (N, E) lower end of the interval of the amount; None without intervals.
        high: (N, E) upper end.
        facts: What else is known of the rows.
    """

    probability: Floats
    expected: Floats
    amount: Floats
    asked: Bools
    present: Bools
    true: Floats
    low: Floats | None
    high: Floats | None
    facts: Facts

    @classmethod
    def of(cls, estimate: Estimate, targets: Targets, asked: torch.Tensor, facts: Facts) -> Scores:
        """Take over checked answers (see `defectnet.benchmark.entrants.ask`)."""
        mask = asked.numpy()
        if_present = estimate.concentration_if_present
        amount = estimate.expected_concentration if if_present is None else if_present
        low, high = (None if x is None else x.double().numpy() for x in (estimate.low, estimate.high))
        return cls(
            probability=np.where(mask, estimate.probability.double().numpy(), -1.0),
            expected=np.where(mask, estimate.expected_concentration.double().numpy(), 0.0),
            amount=np.where(mask, amount.double().numpy(), 0.0),
            asked=mask,
            present=targets.present.numpy() & mask,
            true=targets.true_concentration.double().numpy(),
            low=low,
            high=high,
            facts=facts,
        )

    def rows(self, chosen: NDArray[Any]) -> Scores:
        """Return the scores of some rows."""
        kept: dict[str, Any] = {
            name: field if field is None else field[chosen] for name, field in self._asdict().items() if name != "facts"
        }
        return Scores(**kept, facts=self.facts.rows(chosen))

    @property
    def dopants(self) -> NDArray[np.intp]:
        """(N,) number of dopants of each row."""
        return np.asarray(self.present.sum(axis=1))


def read_facts(index: ShardIndex) -> Facts:
    """Read the facts of the rows of a split, in the order of the split.

    Raises:
        ShardError: A shard is damaged, or the sites of a row contradict its host.
    """
    found: list[tuple[Any, ...]] = []
    for number, path in enumerate(index.paths):
        rows = index.row[index.shard == number]
        if len(rows):
            found += _facts_of_shard(path, rows.tolist())
    texts = list(zip(*(row[:5] for row in found), strict=True))
    ratios = np.full((len(found), len(VOCABULARY)), np.nan)
    for out, row in zip(ratios, found, strict=True):
        for symbol, ratio in row[5].items():
            out[INDEX[symbol]] = ratio
    row_id, host_id, formula, system, placement = (np.array(text, dtype=np.str_) for text in texts)
    return Facts(row_id, host_id, formula, system, placement, ratios)


def _facts_of_shard(path: Path, rows: Sequence[int]) -> list[tuple[Any, ...]]:
    with open_shard(path) as file:
        try:
            columns = file.read(columns=list(_COLUMNS), use_threads=False).take(rows).to_pydict()
        except DAMAGE as error:
            raise ShardError(
                f"shard {path} is damaged", why=str(error)[:160], fix="Simulate the shard again"
            ) from error
    facts = []
    for values in zip(*(columns[name] for name in _COLUMNS), strict=True):
        row = dict(zip(_COLUMNS, values, strict=True))
        facts.append((*values[:5], _mass_ratios(row, path)))
    return facts


def _mass_ratios(row: dict[str, Any], path: Path) -> dict[str, float]:
    """Return, for each dopant, its mass over the mean mass of the atoms that were at its sites."""
    cell = row["host_numbers"]
    copies = row["atoms"] // max(len(cell), 1)  # the copies of one host atom stand together in the supercell
    if copies * len(cell) != row["atoms"] or any(not 0 <= site < row["atoms"] for site in row["sites"]):
        raise ShardError(f"shard {path}, row {row['row_id']}: sites outside the cell", fix="Simulate the shard again")
    replaced: dict[str, list[float]] = {}
    for site, symbol in zip(row["sites"], row["site_dopants"], strict=True):
        replaced.setdefault(symbol, []).append(_MASS_OF_NUMBER[cell[site // copies]])
    return {symbol: float(_MASS[INDEX[symbol]] / np.mean(masses)) for symbol, masses in replaced.items()}
