"""Force constants of any composition of a host, from those of single substitutions, and the phonons that follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.crystal.host import HostModel
from defectnet.crystal.substitution import Substitution
from defectnet.elements import INDEX, NUMBERS
from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import ForceConstants, total
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, modes_of
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import Operations

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


EXPECTED = (-4.936, 0.494, 0.659, 10.614)
"""Logarithm of the unexplained share: constant, and factors of the logarithm of the overlap plus 0.03, of the root of
the relative change of volume, and of the root of the share of imaginary modes. Fitted, see `expected_unexplained`."""

EXPECTED_SPREAD = 4.8
"""Standard deviation of what is measured over what is expected, as a factor, in hosts that were left out of the fit."""

REMEMBERED = 2000
"""Substituted sites of which it is remembered what atoms they change, some 20 kB each: all those of small cells."""


@dataclass(frozen=True, eq=False)
class _Placed:
    """A substitution turned onto a site of the primitive cell, in the cell at the origin; see `Substitution`.

    Attributes:
        basis, lattice: m atoms.
        first, second: (P,) pairs of these whose blocks change: few of all.
        change, by_volume: (P, 3, 3) their blocks.
    """

    basis: IntArray
    lattice: IntArray
    first: IntArray
    second: IntArray
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
        self.q_points, self._single = np.asarray(q_points, dtype=np.float64).reshape(-1, 3), False
        self._spread: dict[tuple[str, int], NDArray[np.inexact]] = {}
        self._placed: dict[tuple[str, int, int], _Placed] = {}
        self._reached: dict[tuple[_Placed, int], tuple[IntArray, IntArray]] = {}
        operations = host.operations
        orbits = self._orbits = operations.orbits()
        self._onto: dict[int, Operations] = {}
        for site in range(len(host.primitive)):
            self._onto[site] = operations.only(operations.image[:, orbits[site]] == site)

    def at(self, q_points: Sequence[FloatArray], *, single: bool = False) -> Superposition:
        """Return the same supercell sampled at other wave vectors; what does not depend on them is shared.

        Args:
            q_points: (Q, 3) as for the supercell itself.
            single: Whether Hessians are added up and diagonalised in single precision, in half the time.
        """
        _ = self._folded  # before it is copied, or each would fold anew
        other = copy(self)
        other.q_points, other._single = np.asarray(q_points, dtype=np.float64).reshape(-1, 3), single
        other._spread = {}
        other.__dict__.pop("_pristine", None)
        return other

    @cached_property
    def _folded(self) -> tuple[ForceConstants, ...]:
        """The host's force constants in the supercell, and their derivatives by ln V."""
        return tuple(self.cell.folded(part) for part in (self.host.force_constants, *self.host.by_volume))

    @cached_property
    def _pristine(self) -> tuple[NDArray[np.inexact], ...]:
        """The host's Hessians at the wave vectors, and their derivatives by ln V; (Q, 3 N, 3 N) each."""
        return tuple(self._held(part) for part in self._folded)

    def _held(self, part: ForceConstants) -> NDArray[np.inexact]:
        """Return the (Q, 3 N, 3 N) Hessians as they are added up: real where phases are signs."""
        found = part.at(self.q_points).numpy()
        if np.allclose(2.0 * self.q_points, np.round(2.0 * self.q_points)):
            return found.real.astype(np.float32 if self._single else np.float64)
        return found.astype(np.complex64) if self._single else np.asarray(found)

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

    def crystal(self, occupation: Occupation) -> Crystal:
        """Return a doped supercell, its atoms on the sites of the pristine one."""
        return self._with(self.numbers(occupation))

    def _with(self, numbers: IntArray) -> Crystal:
        return Crystal(numbers, self.cell.crystal.cell, self.cell.crystal.positions)

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
        for (dopant, basis), count in self._counts(occupation).items():
            out += (count / self.cell.repeats) * self._far(dopant, basis)
        for site, placed, change in self._changes(occupation, log_volume, rng):
            self._add(out, site, placed, change)
        return out

    def force_constants(self, occupation: Occupation, rng: np.random.Generator | None = None) -> ForceConstants:
        """Return the force constants of a doped supercell, of which `hessians` are made, without any dense matrix.

        Args:
            occupation: Which atoms are substituted.
            rng: As in `hessians`; in the same state it chooses the same.

        Returns:
            Pairs of atoms, whose blocks add up.
        """
        log_volume = self._sum(occupation, "far_volume")
        far = [
            self.substitutions[key].far * (count / self.cell.repeats) for key, count in self._counts(occupation).items()
        ]
        pristine = self.cell.folded(total([self.host.at_volume(log_volume), *far]))
        parts = [[pristine.first, pristine.second, pristine.shift, pristine.block]]
        for site, placed, change in self._changes(occupation, log_volume, rng):
            index, shift = self._atoms(placed, site)
            apart = shift[placed.second] - shift[placed.first]
            found = (index[placed.first], index[placed.second], apart, change)
            parts.append([torch.from_numpy(part) for part in found])
        first, second, shifts, block = (torch.cat(column) for column in zip(*parts, strict=True))
        return ForceConstants(len(self.cell), first, second, shifts, block)

    def _changes(
        self, occupation: Occupation, log_volume: float, rng: np.random.Generator | None
    ) -> Iterator[tuple[int, _Placed, FloatArray]]:
        """Yield each substituted site, the substitution turned onto it, and its blocks at this volume."""
        for site, dopant in zip(occupation.sites, occupation.dopants, strict=True):
            # The derivative counts from the volume that the substitution was made at.
            own = self._substitution(site, dopant).far_volume / self.host.cell.crystal.volume
            placed = self._turned(dopant, int(self.cell.basis[site]), rng)
            yield site, placed, placed.change + (log_volume - own) * placed.by_volume

    def overlap(self, occupation: Occupation) -> float:
        """Return how much the changes of different substitutions overlap: what superposition cannot know.

        Where two dopants change the same pair of atoms, their changes need not add up. This is the mean number of
        other substitutions that have a part in a block that is changed, weighted by the squared norm of the change;
        0 for a single dopant, and small where dopants are far apart.
        """
        n = len(self.cell)
        pairs, norms = [], []
        for site, placed, change in self._changes(occupation, self._sum(occupation, "far_volume"), None):
            index, _ = self._atoms(placed, site)
            first, second = index[placed.first], index[placed.second]
            pairs.append((first * n + second)[first != second])
            norms.append(np.linalg.norm(change, axis=(1, 2))[first != second])
        if not pairs:
            return 0.0
        size = np.concatenate(norms)
        _, place = np.unique(np.concatenate(pairs), return_inverse=True)
        alone = float((size**2).sum())
        return float(((np.bincount(place, size) ** 2).sum() - alone) / alone)

    def expected_unexplained(self, occupation: Occupation, imaginary: float = 0.0) -> float:
        """Return the share of the change of the DOS that superposition is expected to leave unexplained.

        The square of the error over the square of the true change, at a resolution of a twentieth of the edge; known
        from the pack alone, by a fit to full simulations (`benchmarks/superposition.py`): a median, with a factor of
        about `EXPECTED_SPREAD` up or down. Above 0.1 the sum of single substitutions should not be trusted.

        Args:
            occupation: Which atoms are substituted.
            imaginary: Share of imaginary modes of the superposed cell beyond the host's.
        """
        constant, overlap, volume, unstable = EXPECTED
        found = constant + overlap * np.log(self.overlap(occupation) + 0.03)
        found += volume * np.sqrt(abs(self.volume_change(occupation))) + unstable * np.sqrt(max(imaginary, 0.0))
        return float(min(np.exp(found), 1.0))

    def _counts(self, occupation: Occupation) -> Counter[tuple[str, int]]:
        sites = (int(self._orbits[self.cell.basis[site]]) for site in occupation.sites)
        return Counter(zip(occupation.dopants, sites, strict=True))

    def _far(self, dopant: str, site: int) -> NDArray[np.inexact]:
        """Return what a substitution changes far away, in the supercell, of all cells together."""
        if (dopant, site) not in self._spread:
            self._spread[dopant, site] = self._held(self.cell.folded(self.substitutions[dopant, site].far))
        return self._spread[dopant, site]

    def _substitution(self, site: int, dopant: str) -> Substitution:
        first = int(self._orbits[self.cell.basis[site]])
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
        first = int(self._orbits[basis])
        found = self.substitutions[dopant, first]
        choice = 0 if rng is None or found.orientations == 1 else int(rng.integers(len(onto)))
        key = (dopant, basis, choice)
        if key not in self._placed:
            self._placed[key] = turned(found, onto.only(np.array([choice])), basis)
        return self._placed[key]

    def _atoms(self, placed: _Placed, site: int) -> tuple[IntArray, IntArray]:
        """Return which atoms of the supercell, and of which of its images, a substitution on a site changes."""
        found = self._reached.get((placed, site))
        if found is None:
            found = self.cell.find(placed.basis, placed.lattice + self.cell.lattice[site])
            if len(self._reached) < REMEMBERED:
                self._reached[placed, site] = found
        return found

    def _add(self, out: NDArray[np.inexact], site: int, placed: _Placed, change: FloatArray) -> None:
        index, shift = self._atoms(placed, site)
        n = len(self.cell)
        first, second = index[placed.first], index[placed.second]
        keys = first * n + second
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        change = change.astype(out.real.dtype, copy=False)
        for matrix, q in zip(out.reshape(-1, n, 3, n, 3), self.q_points, strict=True):
            phase = np.exp(2j * np.pi * (shift @ q))
            phase = phase.astype(out.dtype) if np.iscomplexobj(out) else phase.real
            blocks = change * (phase.conj()[placed.first] * phase[placed.second])[:, None, None]
            # In a small cell several images of an atom are within reach: their blocks add up.
            there = order[starts]
            matrix[first[there], :, second[there]] += np.add.reduceat(blocks[order], starts)

    def _modes(self, hessians: NDArray[np.inexact], numbers: IntArray) -> Modes:
        return modes_of(map(torch.from_numpy, hessians), self._with(numbers), list(self.q_points))


def turned(substitution: Substitution, operation: Operations, basis: int) -> _Placed:
    """Return a substitution as an operation of the crystal turns it, onto an atom in the cell at the origin."""
    image, shift = operation.image[0], operation.shift[0]
    rotation, cartesian = operation.rotation[0], operation.cartesian[0]
    assert image[substitution.site] == basis
    lattice = substitution.lattice @ rotation.T + shift[substitution.basis] - shift[substitution.site]
    m = len(lattice)

    blocks = np.stack([substitution.change, substitution.by_volume]).reshape(2, m, 3, m, 3).transpose(0, 1, 3, 2, 4)
    first, second = np.nonzero((blocks != 0.0).any((0, 3, 4)))
    change, by_volume = cartesian @ blocks[:, first, second] @ cartesian.T
    return _Placed(image[substitution.basis], lattice, first, second, change, by_volume)
