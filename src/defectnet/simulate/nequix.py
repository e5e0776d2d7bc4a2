"""Nequix (Koker et al., arXiv 2508.16067; phonon fine-tuned: arXiv 2601.07742) for the reference path.

JAX compiles anew for every shape, which takes longer than a hundred force calls. So graphs are padded to few shapes,
and several displaced cells can share one call, which is what an accelerator wants.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectnet.errors import SimulationError
from defectnet.files import file_sha256
from defectnet.simulate.neighbours import Crystal, find_pairs
from defectnet.simulate.nep import EnergyForcesStress
from defectnet.simulate.reference import ReferencePotential

NODE_STEP = 56
"""Atoms of a call are padded to multiples of this: cells of up to 55 atoms, and one that takes the padding."""

EDGE_BUCKETS_PER_DOUBLING = 4
"""Pairs of a call are padded to the next 512 * 2^(k/4): nine per cent are wasted, a dozen shapes are compiled."""


class NequixPotential(ReferencePotential):
    """A Nequix network behind the protocol of the simulator.

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
            model, config, self._call = _load(path, device)
        except ImportError as error:
            raise SimulationError(
                f"potential {path} needs the package nequix", why=str(error), fix="pip install 'defectnet[reference]'"
            ) from error
        super().__init__(
            None, name=path.stem, sha256=file_sha256(path), displacement=displacement, both_directions=False
        )
        self.model = model
        self.cutoff = float(config["cutoff"])
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
        graph = _Graph(crystals, self.cutoff, self._index, cells=self.batch)
        energies, gradient, virial = (np.asarray(v, dtype=np.float64) for v in self._call(self.model, **graph.arrays))
        out = []
        for k, crystal in enumerate(crystals):
            atoms = slice(graph.first_atom[k], graph.first_atom[k + 1])
            # Summed here in double precision: the total is thousands of times its change along a relaxation.
            energy = float(energies[atoms].sum())
            out.append(EnergyForcesStress(energy, -gradient[atoms], virial[k] / crystal.volume))
        return out


class _Graph:
    """Crystals as one padded graph.

    Attributes:
        arrays: What the compiled function takes.
        first_atom: (cells + 1) offsets of the crystals' atoms.
    """

    def __init__(self, crystals: Sequence[Crystal], cutoff: float, index: dict[int, int], *, cells: int) -> None:
        self.first_atom = np.concatenate([[0], np.cumsum([len(c) for c in crystals])])
        pairs = [find_pairs(crystal, cutoff) for crystal in crystals]
        edges = sum(len(p.centre) for p in pairs)
        nodes_padded = NODE_STEP * max(cells, math.ceil((self.first_atom[-1] + 1) / NODE_STEP))
        edges_padded = _edge_bucket(edges)
        spare = nodes_padded - 1
        positions = np.zeros((nodes_padded, 3), dtype=np.float32)
        species = np.zeros(nodes_padded, dtype=np.int32)
        owner = np.full(nodes_padded, cells, dtype=np.int32)
        # Edges of the padding are longer than the cut-off: they add nothing, and no 0 / 0.
        offset = np.full((edges_padded, 3), cutoff, dtype=np.float32)
        sender, receiver = (np.full(edges_padded, spare, dtype=np.int32) for _ in range(2))
        edge = 0
        for k, (crystal, pair) in enumerate(zip(crystals, pairs, strict=True)):
            atoms = slice(self.first_atom[k], self.first_atom[k + 1])
            positions[atoms] = crystal.positions
            species[atoms] = [index[int(z)] for z in crystal.numbers]
            owner[atoms] = k
            mine = slice(edge, edge + len(pair.centre))
            receiver[mine] = pair.centre.numpy() + self.first_atom[k]
            sender[mine] = pair.neighbour.numpy() + self.first_atom[k]
            offset[mine] = pair.shift.numpy() @ crystal.cell
            edge = mine.stop
        self.arrays: dict[str, NDArray[Any]] = {
            "positions": positions,
            "strain": np.zeros((cells + 1, 3, 3), dtype=np.float32),
            "species": species,
            "owner": owner,
            "offset": offset,
            "sender": sender,
            "receiver": receiver,
        }


def _edge_bucket(edges: int) -> int:
    step = math.ceil(EDGE_BUCKETS_PER_DOUBLING * math.log2(max(edges, 1) / 512))
    return math.ceil(512 * 2 ** (max(step, 0) / EDGE_BUCKETS_PER_DOUBLING))


def _load(path: Path, device: str) -> tuple[Any, dict[str, Any], Any]:
    """Load the network, and compile nothing yet."""
    # Read when JAX starts; its name for a GPU that torch calls cuda is cuda too.
    os.environ.setdefault("JAX_PLATFORMS", device)
    import equinox
    import jax
    from nequix.model import load_model  # type: ignore[import-untyped,import-not-found,unused-ignore]

    try:
        model, config = load_model(path, False)
    except (ValueError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise SimulationError(
            f"potential {path} is no Nequix network, or truncated", why=str(error)[:120], fix="Get the file again"
        ) from error

    def energy(
        positions: Any, strain: Any, network: Any, species: Any, owner: Any, offset: Any, sender: Any, receiver: Any
    ) -> tuple[Any, Any]:
        strain = (strain + strain.swapaxes(1, 2)) / 2
        moved = positions + jax.numpy.einsum("ni,nij->nj", positions, strain[owner])
        shift = offset + jax.numpy.einsum("ei,eij->ej", offset, strain[owner[sender]])
        vector = moved[sender] - moved[receiver] + shift
        per_atom = network.node_energies(vector, species, sender, receiver)[:, 0]
        return per_atom.sum(), per_atom

    @equinox.filter_jit  # type: ignore[untyped-decorator,unused-ignore]
    def call(network: Any, positions: Any, strain: Any, **graph: Any) -> tuple[Any, Any, Any]:
        derivative = jax.grad(energy, argnums=(0, 1), has_aux=True)
        (gradient, virial), per_atom = derivative(positions, strain, network, **graph)
        return per_atom, gradient, virial

    return model, config, call
