"""Nequix (Koker et al., arXiv 2508.16067; phonon fine-tuned: arXiv 2601.07742) for the reference path."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from defectnet.errors import SimulationError
from defectnet.files import file_sha256
from defectnet.simulate.neighbours import Crystal, find_pairs
from defectnet.simulate.nep import EnergyForcesStress, joined_pairs
from defectnet.simulate.nequix_network import NequixNetwork
from defectnet.simulate.reference import ReferencePotential


class NequixPotential(ReferencePotential):
    """A Nequix network behind the protocol of the simulator.

    The package reads the weights; energies and forces are computed in torch (`NequixNetwork`), in single precision.

    Args:
        path: Weights, ``.nqx``.
        device: ``cpu`` or ``cuda``.
        batch: Displaced cells in one call; 1 is best on a CPU.
        displacement: Angstrom. One direction only: the network's forces are single precision and nearly linear there.

    Raises:
        SimulationError: The package is missing, or the file is no such network.
    """

    def __init__(
        self, path: str | Path, device: str = "cpu", *, batch: int | None = None, displacement: float = 0.01
    ) -> None:
        path = Path(path)
        if not path.is_file():
            raise SimulationError(f"potential {path} does not exist", fix="Check the path")
        try:
            model, config = _load(path)
        except ImportError as error:
            raise SimulationError(
                f"potential {path} needs the package nequix", why=str(error), fix="pip install 'defectnet[reference]'"
            ) from error
        super().__init__(
            None, name=path.stem, sha256=file_sha256(path), displacement=displacement, both_directions=False
        )
        self.network = NequixNetwork(model, float(config["avg_n_neighbors"]), device)
        self.batch = batch or (1 if device == "cpu" else 48)
        self._index = {int(z): i for i, z in enumerate(sorted(config["atomic_numbers"]))}

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

    def _evaluate(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Evaluate crystals side by side, as one graph."""
        bounds = [0, *accumulate(len(crystal) for crystal in crystals)]
        pairs = joined_pairs([find_pairs(crystal, self.network.cutoff) for crystal in crystals], bounds)
        species = torch.tensor([self._index[int(z)] for crystal in crystals for z in crystal.numbers])
        energies, gradient = self.network.evaluate(pairs.vector, species, pairs.neighbour, pairs.centre)
        gradient = gradient.to("cpu", torch.float64)
        # An edge pulls at both of its atoms.
        forces = torch.zeros(len(species), 3, dtype=torch.float64)
        forces.index_add_(0, pairs.centre, gradient).index_add_(0, pairs.neighbour, -gradient)
        cuts = torch.searchsorted(pairs.centre, torch.tensor(bounds)).tolist()
        out = []
        for k, crystal in enumerate(crystals):
            atoms, mine = slice(bounds[k], bounds[k + 1]), slice(cuts[k], cuts[k + 1])
            virial = pairs.vector[mine].T @ gradient[mine]
            stress = (virial + virial.T).numpy() / (2.0 * crystal.volume)
            out.append(EnergyForcesStress(float(energies[atoms].sum()), forces[atoms].numpy(), stress))
        return out


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    """Load the package's network and its settings."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX reads the weights, and computes nothing
    from nequix.model import load_model  # type: ignore[import-untyped,import-not-found,unused-ignore]

    try:
        model, config = load_model(path, False)
    except (ValueError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise SimulationError(
            f"potential {path} is no Nequix network, or truncated", why=str(error)[:120], fix="Get the file again"
        ) from error
    return model, config
