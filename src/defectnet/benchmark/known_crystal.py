"""The track ``known-crystal``: each host's likeliest dopants are in question, and its crystal may be used.

Networks answer from formula and spectra, as ever; `KnownCrystalEstimator` with host packs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.batch import Batch, Estimate
from defectnet.benchmark.protocol import KNOWN_CRYSTAL
from defectnet.crystal.pack import HostPack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.data.packs import find_packs
from defectnet.elements import INDEX, NUMBERS, VOCABULARY, composition
from defectnet.errors import ConfigError
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.models.base import SAME_COMPOSITION
from defectnet.models.estimator import Estimator, NamedTrack
from defectnet.potentials.neighbours import Crystal
from defectnet.spectrum import KINDS, Spectrum

PREFIX: Final = "known-crystal:"
"""What the name of an entrant begins with that asks host packs: ``known-crystal:FOLDER``."""

CANDIDATES: Final = 8
"""Elements in question."""

SAME_EDGE: Final = 1.6
"""Largest ratio of the edge of a measured host to that of its pack; of several crystals of one formula the nearest."""


@lru_cache(maxsize=4096)
def _likeliest(atoms: tuple[int, ...]) -> tuple[str, ...]:
    crystal = Crystal(np.array(atoms), np.eye(3), np.zeros((len(atoms), 3)))
    return tuple(name.partition("@")[0] for name in plausible_dopants(crystal, CANDIDATES))


def likeliest_candidates(compositions: torch.Tensor) -> torch.Tensor:
    """Return the (B, E) mask of the `CANDIDATES` likeliest dopants of (B, E) compositions."""
    mask = torch.zeros_like(compositions, dtype=torch.bool)
    for row, shares in zip(mask, compositions.double().numpy(), strict=True):
        row[[INDEX[symbol] for symbol in _likeliest(_smallest_cell(shares))]] = True
    return mask


def _smallest_cell(shares: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the atomic numbers of the smallest whole amounts that have these atomic fractions."""
    for atoms in range(1, 201):
        counts = shares * atoms
        if np.abs(counts - counts.round()).max() < 1e-3:
            return tuple(int(NUMBERS[i]) for i in np.flatnonzero(shares) for _ in range(round(counts[i])))
    raise ConfigError("a host's composition has no whole amounts up to 200 atoms", fix="Leave it out")


class KnownCrystalEstimator(Estimator):
    """Known-crystal inference with host packs.

    Args:
        packs: See `defectnet.data.packs.find_packs`.
        same_potential: The rows were simulated with the packs' potential.
        sample_atoms: As for `KnownCrystal.identify`.
    """

    def __init__(
        self,
        packs: str | Path | Sequence[str | Path],
        *,
        same_potential: bool = False,
        sample_atoms: float | None = None,
    ) -> None:
        self.same_potential, self.sample_atoms = same_potential, sample_atoms
        files = find_packs(packs)
        self._packs = [(composition(one.formula), one) for one in files]
        self._loaded: dict[Path, HostPack] = {}
        self._last: tuple[tuple[Path, tuple[str, ...]], KnownCrystal] | None = None
        self.potentials = sorted({one.potential for one in files})
        self.settings: dict[str, Any] = {
            "packs": len(files),
            "potentials": self.potentials,
            "same_potential": same_potential,
            "sample_atoms": sample_atoms,
        }

    @property
    def tracks(self) -> tuple[NamedTrack, ...]:
        """Only the one that its packs are made for."""
        return (KNOWN_CRYSTAL,)

    @property
    def coverage(self) -> float:
        """Nominal coverage of its intervals."""
        return 0.9

    def estimate(self, batch: Batch) -> Estimate:
        """Answer a batch; seconds for each row, and some more for each new crystal, so rows are counted on stderr."""
        answers = torch.zeros(5, *batch.composition.shape, dtype=torch.float64)
        for row in range(len(batch.composition)):
            p = self.answer(batch.rows(slice(row, row + 1))).posterior
            at = [INDEX[symbol] for symbol in p.elements]
            answers[:, row, at] = torch.from_numpy(np.stack([p.probability, p.mean, p.if_present, p.low, p.high]))
            print(f"\r{row + 1} of {len(batch.composition)} rows", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        probability, mean, amount, low, high = answers
        return Estimate(probability, mean, amount, low, high)

    def answer(self, batch: Batch) -> KnownCrystalAnswer:
        """Return the whole answer to a batch of one.

        Raises:
            ConfigError: No pack is of the host.
        """
        edge, shares = float(batch.edge_mev[0]), batch.composition[0].double().numpy()
        asked = [VOCABULARY[i] for i in np.flatnonzero(batch.candidates[0].numpy())]
        folder, pack = self._pack(shares, edge)
        # What a pack does not hold cannot be told by it: it stays at zero.
        held = {name.partition("@")[0] for name in pack.dopants}
        key = folder, tuple(symbol for symbol in asked if symbol in held)
        if self._last is None or self._last[0] != key:
            self._last = key, KnownCrystal(pack, key[1])
        kind = KINDS[int(batch.kind[0])]
        energies = self.grid.centres * edge
        pair = [Spectrum(energies, dos[0].double().numpy(), "meV", kind=kind) for dos in (batch.host, batch.doped)]
        return self._last[1].identify(
            *pair, edge_mev=edge, same_potential=self.same_potential, sample_atoms=self.sample_atoms
        )

    def _pack(self, shares: NDArray[np.float64], edge: float) -> tuple[Path, HostPack]:
        nearest, found = np.log(SAME_EDGE), None
        for own, file in self._packs:
            if np.abs(own - shares).sum() < SAME_COMPOSITION:
                if file.folder not in self._loaded:
                    self._loaded[file.folder] = HostPack.load(file.folder)
                pack = self._loaded[file.folder]
                ratio = abs(np.log(pack.host.band_edge_mev / edge))
                if ratio < nearest:
                    nearest, found = ratio, (file.folder, pack)
        if found is None:
            formula = " ".join(f"{VOCABULARY[i]} {shares[i]:.3f}" for i in np.flatnonzero(shares))
            raise ConfigError(
                f"no host pack is of the crystal {formula} with its edge at {edge:.1f} meV",
                fix="Make one with `defectnet host make`, or leave the row out",
            )
        return found

    def describe(self) -> dict[str, Any]:
        """Return what is kept with its results."""
        return {"description": f"Known-crystal inference, packs of {' and '.join(self.potentials)}."}
