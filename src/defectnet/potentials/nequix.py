"""Nequix (Koker et al., arXiv 2508.16067; phonon fine-tuned: arXiv 2601.07742) for the reference path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal, Pairs, find_pairs
from defectnet.potentials.nep import EnergyForcesStress, joined_pairs
from defectnet.potentials.nequix_folder import load_network
from defectnet.potentials.nequix_network import NequixNetwork
from defectnet.potentials.reference import ReferencePotential

FloatArray = NDArray[np.float64]

TOGETHER = 8
"""Displacements whose changed edges are computed at a time."""


class NequixPotential(ReferencePotential):
    """A Nequix network behind the protocol of the simulator; energies and forces in single precision.

    Args:
        network: The network.
        name, sha256: Of its file.
        batch: Displaced cells in one call; 1 is best on a CPU.
        displacement: Angstrom. One direction only: the network's forces are single precision and nearly linear there.
    """

    def __init__(
        self, network: NequixNetwork, *, name: str, sha256: str, batch: int | None = None, displacement: float = 0.01
    ) -> None:
        super().__init__(None, name=name, sha256=sha256, displacement=displacement, both_directions=False)
        self.network = network
        self.batch = batch or (1 if network.device.type == "cpu" else 48)
        self._index = {z: i for i, z in enumerate(network.form.elements)}

    @classmethod
    def from_folder(cls, folder: str | Path, device: torch.device | str = "cpu", **settings: Any) -> Self:
        """Load a network from a potential's folder, see `load_network`; `settings` are those of the class."""
        form, tensors, sha256 = load_network(folder)
        network = NequixNetwork(form, tensors, device)
        return cls(network, name=Path(folder).resolve().name, sha256=sha256, **settings)

    def check(self, crystal: Crystal) -> None:
        """See that the network knows all elements.

        Raises:
            SimulationError: It does not.
        """
        unknown = sorted({int(z) for z in crystal.numbers} - set(self._index))
        if unknown:
            raise SimulationError(
                f"potential {self.name} does not know the element with Z = {unknown[0]}", fix="Leave the crystal out"
            )

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress."""
        return self.evaluate_many([crystal])[0]

    def evaluate_many(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Compute energy, forces and stress of several crystals, `batch` of them in one call."""
        out = []
        for start in range(0, len(crystals), self.batch):
            out += self._evaluate(crystals[start : start + self.batch])
        return out

    def displaced_forces(self, crystal: Crystal, atoms: Sequence[int], shifts: FloatArray) -> list[FloatArray]:
        """Compute the (N, 3) forces when one atom is displaced; what did not move is computed once for all."""
        if self.batch > 1:
            return super().displaced_forces(crystal, atoms, shifts)
        # Edges that no displacement brings within the cut-off are in vain, but for all displacements the same.
        pairs = find_pairs(crystal, self.network.form.cutoff + float(np.linalg.norm(shifts, axis=1).max()))
        species = torch.tensor([self._index[int(z)] for z in crystal.numbers])
        terms = self.network.edge_terms(pairs.vector)
        out = []
        for first in range(0, len(atoms), TOGETHER):
            vectors, moved = [], []
            for atom, shift in zip(atoms[first : first + TOGETHER], torch.from_numpy(shifts[first:]), strict=False):
                away = (pairs.neighbour == atom).double() - (pairs.centre == atom).double()
                vectors.append(pairs.vector + away[:, None] * shift)
                moved.append(away.nonzero()[:, 0])
            changed = torch.cat([vector[edges] for vector, edges in zip(vectors, moved, strict=True)])
            parts = self.network.edge_terms(changed).split([len(edges) for edges in moved])
            for vector, edges, part in zip(vectors, moved, parts, strict=True):
                with terms.replaced(edges, part):
                    _, gradient = self.network.evaluate(vector, species, pairs.neighbour, pairs.centre, terms)
                out.append(_pulled(gradient.to("cpu", torch.float64), pairs, len(crystal)))
        return out

    def _evaluate(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Evaluate crystals side by side, as one graph."""
        bounds = [0, *accumulate(len(crystal) for crystal in crystals)]
        pairs = joined_pairs([find_pairs(crystal, self.network.form.cutoff) for crystal in crystals], bounds)
        species = torch.tensor([self._index[int(z)] for crystal in crystals for z in crystal.numbers])
        energies, gradient = self.network.evaluate(pairs.vector, species, pairs.neighbour, pairs.centre)
        gradient = gradient.to("cpu", torch.float64)
        forces = _pulled(gradient, pairs, len(species))
        cuts = torch.searchsorted(pairs.centre, torch.tensor(bounds)).tolist()
        out = []
        for k, crystal in enumerate(crystals):
            atoms, mine = slice(bounds[k], bounds[k + 1]), slice(cuts[k], cuts[k + 1])
            virial = pairs.vector[mine].T @ gradient[mine]
            stress = (virial + virial.T).numpy() / (2.0 * crystal.volume)
            out.append(EnergyForcesStress(float(energies[atoms].sum()), forces[atoms], stress))
        return out


def _pulled(gradient: Tensor, pairs: Pairs, atoms: int) -> FloatArray:
    """Return (N, 3) forces: an edge pulls at both of its atoms."""
    forces = torch.zeros(atoms, 3, dtype=torch.float64)
    return forces.index_add_(0, pairs.centre, gradient).index_add_(0, pairs.neighbour, -gradient).numpy()
