"""Force constants of any composition of a host, from those of single substitutions, and the phonons that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.crystal.host import HostModel
from defectnet.crystal.substitution import Substitution
from defectnet.elements import INDEX, NUMBERS
from defectnet.errors import SimulationError
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, modes_of
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import Operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class _Placed:
    """A substitution turned onto a site of the primitive cell, in the cell at the origin; see `Substitution`."""

    basis: IntArray
    lattice: IntArray
    change: FloatArray
    by_volume: FloatArray


@dataclass(frozen=True)
class Occupation:
    """Which atoms of a supercell are substituted; K of them.

    Attributes:
        sites: (K,) atoms of the supercell.
        dopants: K symbols.
    """

    sites: tuple[int, ...]
    dopants: tuple[str, ...]


class Superposition:
    """A supercell of a host in which single substitutions add up.

    The force constants of a cell are those of the host at the cell's volume, and the change of each substitution at
    its place; volumes of substitutions add up (Vegard's law). Masses are exact.

    Args:
        host: The pristine crystal.
        substitutions: By (dopant, inequivalent site).
        matrix: (3, 3) integers, rows in units of the primitive cell vectors: any supercell.
        q_points: (Q, 3) at which phonons are sampled, the host's and the doped cells' alike, in units of the
            supercell's reciprocal lattice vectors.
    """

    def __init__(
        self,
        host: HostModel,
        substitutions: Mapping[tuple[str, int], Substitution],
        matrix: IntArray,
        q_points: Sequence[FloatArray],
    ) -> None:
        self.host = host
        self.substitutions = dict(substitutions)
        self.cell = Supercell.of(host.primitive, matrix)
        self.q_points = np.asarray(q_points, dtype=np.float64).reshape(-1, 3)
        self._placed: dict[tuple[str, int, int], _Placed] = {}
        operations = host.operations
        orbits = operations.orbits()
        self._onto: dict[int, Operations] = {}
        for site in range(len(host.primitive)):
            self._onto[site] = operations.only(operations.image[:, orbits[site]] == site)

    @cached_property
    def _pristine(self) -> tuple[NDArray[np.inexact], ...]:
        """The host's Hessians at the wave vectors, and their derivatives by ln V; (Q, 3 N, 3 N) each."""
        parts = (self.host.force_constants, *self.host.by_volume)
        found = [self.cell.folded(part).at(self.q_points).numpy() for part in parts]
        if np.allclose(2.0 * self.q_points, np.round(2.0 * self.q_points)):
            return tuple(part.real.copy() for part in found)  # phases are signs
        return tuple(found)

    def host_modes(self) -> Modes:
        """Return the phonons of the pristine supercell."""
        return self._modes(self._pristine[0].copy(), self.cell.crystal.numbers)

    def modes(self, occupation: Occupation, rng: np.random.Generator | None = None) -> Modes:
        """Return the phonons of a doped supercell."""
        return self._modes(self.hessians(occupation, rng), self.numbers(occupation))

    def numbers(self, occupation: Occupation) -> IntArray:
        """Return the (N,) atomic numbers of a doped supercell."""
        self._check(occupation)
        numbers = self.cell.crystal.numbers.copy()
        numbers[list(occupation.sites)] = [NUMBERS[INDEX[symbol]] for symbol in occupation.dopants]
        return numbers

    def _check(self, occupation: Occupation) -> None:
        """See that each site is there, once, and that its substitution is known."""
        sites, dopants = occupation.sites, occupation.dopants
        if len(sites) != len(dopants):
            raise SimulationError(
                f"{len(sites)} sites have {len(dopants)} dopants", fix="Name one dopant for each site"
            )
        for site, dopant in zip(sites, dopants, strict=True):
            if not 0 <= site < len(self.cell):
                raise SimulationError(
                    f"site {site} is not in the supercell", fix=f"Its atoms are 0 to {len(self.cell) - 1}"
                )
            if sites.count(site) > 1:
                raise SimulationError(f"site {site} is substituted twice", fix="Name each site once")
            self._substitution(site, dopant)

    def volume_change(self, occupation: Occupation) -> float:
        """Return the relative change of volume of a doped supercell: volumes of substitutions add up."""
        return self._sum(occupation, "volume")

    def _sum(self, occupation: Occupation, name: str) -> float:
        self._check(occupation)
        found = (self._substitution(s, x) for s, x in zip(occupation.sites, occupation.dopants, strict=True))
        return float(sum(getattr(one, name) for one in found) / self.cell.crystal.volume)

    def hessians(self, occupation: Occupation, rng: np.random.Generator | None = None) -> NDArray[np.inexact]:
        """Return the (Q, 3 N, 3 N) Hessians of a doped supercell, eV/angstrom^2; Hermitian.

        Args:
            occupation: Which atoms are substituted.
            rng: Chooses among orientations of dopants off their sites; the first one without.

        Raises:
            SimulationError: A site is not in the supercell, or comes twice, or its substitution is not known.
        """
        log_volume = self._sum(occupation, "far_volume")
        pristine, first, second = self._pristine
        out = np.asarray(pristine + log_volume * first + (0.5 * log_volume**2) * second)
        for site, dopant in zip(occupation.sites, occupation.dopants, strict=True):
            placed = self._turned(dopant, int(self.cell.basis[site]), rng)
            # The derivative counts from the volume that the substitution was made at.
            own = self._substitution(site, dopant).far_volume / self.host.cell.crystal.volume
            self._add(out, site, placed, placed.change + (log_volume - own) * placed.by_volume)
        return out

    def _substitution(self, site: int, dopant: str) -> Substitution:
        first = int(self.host.operations.orbits()[self.cell.basis[site]])
        found = self.substitutions.get((dopant, first))
        if found is None:
            symbol = self.cell.crystal.numbers[site]
            raise SimulationError(
                f"host {self.host.id} has no substitution of {dopant} on site {first} (Z = {symbol})",
                fix="Make it, or name another dopant or site",
            )
        return found

    def _turned(self, dopant: str, basis: int, rng: np.random.Generator | None) -> _Placed:
        """Return a substitution turned onto an atom of the primitive cell by an operation of the crystal."""
        onto = self._onto[basis]
        first = int(self.host.operations.orbits()[basis])
        found = self.substitutions[dopant, first]
        choice = 0 if rng is None or found.orientations == 1 else int(rng.integers(len(onto)))
        key = (dopant, basis, choice)
        if key not in self._placed:
            self._placed[key] = turned(found, onto.only(np.array([choice])), basis)
        return self._placed[key]

    def _add(self, out: NDArray[np.inexact], site: int, placed: _Placed, change: FloatArray) -> None:
        index, shift = self.cell.find(placed.basis, placed.lattice + self.cell.lattice[site])
        m = len(index)
        targets, place = np.unique(index, return_inverse=True)
        rows = (3 * targets[:, None] + np.arange(3)).ravel()
        blocks = change.reshape(m, 3, m, 3).transpose(0, 2, 1, 3)
        for matrix, q in zip(out, self.q_points, strict=True):
            phase = np.exp(2j * np.pi * (shift @ q))
            phase = phase if np.iscomplexobj(out) else phase.real
            local = np.zeros((len(targets), len(targets), 3, 3), dtype=out.dtype)
            # In a small cell several images of an atom are within reach.
            factor = (phase.conj()[:, None] * phase[None, :])[..., None, None]
            np.add.at(local, (place[:, None], place[None, :]), blocks * factor)
            matrix[np.ix_(rows, rows)] += local.transpose(0, 2, 1, 3).reshape(len(rows), len(rows))

    def _modes(self, hessians: NDArray[np.inexact], numbers: IntArray) -> Modes:
        crystal = Crystal(numbers, self.cell.crystal.cell, self.cell.crystal.positions)
        return modes_of(map(torch.from_numpy, hessians), crystal, list(self.q_points))


def turned(substitution: Substitution, operation: Operations, basis: int) -> _Placed:
    """Return a substitution as an operation of the crystal turns it, onto an atom in the cell at the origin."""
    image, shift = operation.image[0], operation.shift[0]
    rotation, cartesian = operation.rotation[0], operation.cartesian[0]
    assert image[substitution.site] == basis
    lattice = substitution.lattice @ rotation.T + shift[substitution.basis] - shift[substitution.site]
    m = len(lattice)

    def turn(change: FloatArray) -> FloatArray:
        blocks = change.reshape(m, 3, m, 3).transpose(0, 2, 1, 3)
        return np.asarray((cartesian @ blocks @ cartesian.T).transpose(0, 2, 1, 3).reshape(3 * m, 3 * m))

    return _Placed(image[substitution.basis], lattice, turn(substitution.change), turn(substitution.by_volume))
