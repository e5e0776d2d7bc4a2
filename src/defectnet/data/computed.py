"""Computed responses of the hosts of a data set, as networks read them beside the rows.

Training shows them as another potential than the rows' might have computed them (`Disturbance`): a network learns how
far to trust them, where it would else take for exact what is exact of no measured crystal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from defectnet.config import MODEL_GRID, Bounded, bounded
from defectnet.crystal.responses import READABLE, HostResponses, read_responses
from defectnet.errors import ShardError
from defectnet.spectrum import KINDS

FloatArray = NDArray[np.float64]

_KNOTS: Final = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.25])


@dataclass(frozen=True)
class Disturbance(Bounded, called="data.responses"):
    """How responses of one potential are made into those of another, for training.

    The defaults are of the size that `benchmarks/discrepancy.py` finds between Nequix and defectnet-nep.

    Attributes:
        shown: Share of the rows of hosts with responses that are shown with them.
        forgotten: Share of the elements, there or not, whose response is then left out: a pack may lack some.
        disturbed: Share of the rows shown whose responses are disturbed.
        energy: Deviation of the logarithm of an energy.
        common, own: Deviation of the logarithm of the responses' amplitudes, of a host and of each dopant beside it.
        shares: What else is wrong with a response, as squared norms over its own; of a host one of them.
        chances: Of each of `shares`.
        spread: Deviation of the logarithm of that of each dopant.
        correlated: Length over which it hangs together, in edges.
    """

    shown: float = bounded(0.75, 0.0, 1.0)
    forgotten: float = bounded(0.08, 0.0, 1.0)
    disturbed: float = bounded(0.8, 0.0, 1.0)
    energy: float = bounded(0.03, 0.0)
    common: float = bounded(0.2, 0.0)
    own: float = bounded(0.3, 0.0)
    shares: tuple[float, ...] = (0.02, 0.1, 0.35, 1.0, 4.0)
    chances: tuple[float, ...] = (0.15, 0.2, 0.3, 0.2, 0.15)
    spread: float = bounded(0.7, 0.0)
    correlated: float = bounded(0.05, above=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(self.shares))  # recipes have lists
        object.__setattr__(self, "chances", tuple(self.chances))
        super().__post_init__()
        self.require(len(self.shares) == len(self.chances) > 0, "chances", "Give one for each of shares")
        self.require(sum(self.chances) > 0.0, "chances", "Give one that is not zero")

    def __call__(
        self, host: FloatArray, response: FloatArray, rng: np.random.Generator
    ) -> tuple[FloatArray, FloatArray]:
        """Return the DOS of a host (L,) and the responses of its dopants (K, C, L), disturbed."""
        if rng.random() >= self.disturbed:
            return host, response
        count = len(response)
        bend = rng.normal(0.0, self.energy) + rng.normal(0.0, 0.5 * self.energy, len(_KNOTS))
        at = MODEL_GRID.centres * np.exp(np.interp(MODEL_GRID.centres, _KNOTS, bend))
        both = np.concatenate([host[None], response.reshape(-1, len(host))])
        moved = np.array([np.interp(at, MODEL_GRID.centres, row, right=0.0) for row in both])
        host = moved[0] / (moved[0].sum() * MODEL_GRID.width)
        response = moved[1:].reshape(response.shape)
        factor = np.exp(rng.normal(0.0, self.common) + rng.normal(0.0, self.own, count))
        chances = np.array(self.chances)
        share = rng.choice(self.shares, p=chances / chances.sum()) * np.exp(rng.normal(0.0, self.spread, count))
        low = response[:, 0]
        norm = np.linalg.norm(low, axis=1)[:, None]
        width = self.correlated / MODEL_GRID.width
        envelope = gaussian_filter1d(np.abs(low), width) + 0.1 * norm * host / np.linalg.norm(host)
        wrong = _unit(gaussian_filter1d(rng.normal(size=low.shape), 0.5 * width) * envelope)
        if count > 1:  # an error looks like what another dopant does
            wrong = _unit(wrong + rng.random((count, 1)) * _unit(rng.normal(size=(count, count)) @ low))
        response = factor[:, None, None] * (response + (np.sqrt(share)[:, None] * norm * wrong)[:, None])
        area = response.sum(-1, keepdims=True) * MODEL_GRID.width
        return host, response - area * host


def _unit(rows: FloatArray) -> FloatArray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class ResponseTable:
    """Responses of many hosts.

    Attributes:
        hosts: Responses by the id of the host; more than one where several potentials have computed them: training
            shows one of them, evaluation the first.
        disturbance: How training shows them.
    """

    hosts: dict[str, tuple[HostResponses, ...]]
    disturbance: Disturbance = field(default_factory=Disturbance)

    @classmethod
    def read(cls, folders: Sequence[str], disturbance: Disturbance) -> ResponseTable:
        """Read folders of them, see `read_responses`.

        Raises:
            ShardError: A folder holds none, or a file is damaged.
        """
        if not folders:
            raise ShardError("data.responses names no folder", fix="Name one, or leave it out")
        found: dict[str, tuple[HostResponses, ...]] = {}
        for folder in folders:
            for name, one in read_responses(folder).items():
                found[name] = (*found.get(name, ()), one)
        return cls(found, disturbance)

    def choose(self, host: str, kind: int, rng: np.random.Generator | None) -> HostResponses | None:
        """Return the responses of a host, by its id, measured as a kind of DOS; None where there are none."""
        found = self.hosts.get(host, ())
        if not found or KINDS[kind] not in READABLE:
            return None
        return found[0 if rng is None else int(rng.integers(len(found)))]
