"""Single substitutions: relaxed in a supercell, and what they change of the force constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray
from scipy.linalg import eigh

from defectnet.crystal.host import HostModel
from defectnet.crystal.pairs import as_pairs, encoded, expanded, fixing, from_pairs, reduced
from defectnet.elements import INDEX, NUMBERS, element_index
from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import IMAGES, ForceConstants, aligned, total, unique_rows
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.potential import Potential
from defectnet.potentials.reference import ReferencePotential
from defectnet.potentials.relax import CellMode, Relaxation, relax
from defectnet.potentials.supercells import Supercell
from defectnet.potentials.symmetry import (
    Operations,
    find_operations,
    kept_by,
    symmetrised_displacements,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RADIUS = 12.0
"""Angstrom from the substituted site within which atoms are displaced, where the potential is not exact: all atoms of
the usual supercells. In GaAs (128 atoms) 8 leave 0.012 of the change unexplained, 6.5 leave 0.2; in MgO 5.5 will do."""

CLOSE = 4.5
"""The same for the derivative by the volume."""

KEEP = 0.003
"""Smallest norm of the change of a block, eV/angstrom^2, that is kept beside the change of volume."""

TIE = 0.02
"""Images of a substitution whose distances from a pair of atoms differ by less, in angstrom, share what it changes."""

NEAR_IMAGES = np.concatenate([IMAGES, 2 * IMAGES[1:]])
"""Lattice shifts among which the nearest image of a substitution is found."""

FAR = 0.65
"""Share of the largest distance in the supercell, from which on a substitution is felt as a change of volume alone."""

OFF_CENTRE = 0.05
"""Displacement of a dopant, in angstrom, from which on it has left its site."""

SYMMETRIC = 0.03
"""Displacements that are alike within this, in angstrom, are made alike."""

UNSTABLE = -0.02
"""Curvature of the energy, eV/angstrom^2, below which a relaxed cell is a saddle."""

SOFT = 0.2
"""Share of the host atom's own stiffness: a dopant with less is tried off its site, too."""

LOWER = 0.002
"""Energy, eV, by which a substitution off its site must be lower to be taken."""

LARGEST_DISPLACEMENT = 1.5
"""Displacement of an atom, in angstrom, from which on the crystal has changed into something else."""


@dataclass(frozen=True)
class Relaxed:
    """A supercell with one substitution, at rest.

    Attributes:
        crystal: N atoms.
        displacement: (N, 3) from the ideal sites, angstrom.
        operations: Symmetry that is left.
        energy: eV of the supercell.
    """

    crystal: Crystal
    displacement: FloatArray
    operations: Operations
    energy: float


@dataclass(frozen=True)
class Substitution:
    """What one substituted atom changes; m atoms around it.

    Attributes:
        dopant: Symbol.
        site: Atom of the primitive cell that is replaced, in the cell at the origin.
        basis: (m,) atoms of the primitive cell, and lattice: (m, 3) their lattice vectors.
        change: (3 m, 3 m) of the force constants, eV/angstrom^2, beside what the change of volume does; symmetric, with
            the acoustic sum rule.
        by_volume: (3 m, 3 m) its derivative by ln V; zero where it is not known.
        far: What it changes of the pristine crystal's force constants farther away, of all primitive cells together:
            one substitution in C cells changes each by a C-th.
        volume: Change of volume, cubic angstrom.
        far_volume: The part of it that atoms far away feel: volume of the supercell times their change of ln V.
        energy: Change of the supercell's energy, eV: of two sites of one element the lower is preferred.
        displacement: How far the dopant is from the site, angstrom.
        rotations: (K, 3, 3) of the crystal's operations that leave the substitution as it is, in fractional coordinates
            of the primitive cell.
        orientations: In how many ways that are alike by symmetry it can sit there.
    """

    dopant: str
    site: int
    basis: IntArray
    lattice: IntArray
    change: FloatArray
    by_volume: FloatArray
    far: ForceConstants
    volume: float
    far_volume: float
    energy: float
    displacement: float
    rotations: IntArray
    orientations: int

    @property
    def off_centre(self) -> bool:
        """Whether the dopant has left its site."""
        return self.displacement > OFF_CENTRE


def substitute(
    potential: Potential,
    host: HostModel,
    site: int,
    dopant: str,
    *,
    starts: int = 2,
    radius: float = RADIUS,
    keep: float = KEEP,
    volume_step: float = 0.03,
    preconditioner: Potential | None = None,
    tolerance: float = 0.005,
) -> Substitution:
    """Put one atom into a host and see what it changes.

    The atoms begin on their sites, and keep the site's symmetry. Where that is a saddle, or the dopant is soft, as many
    rattled starts follow; the lowest energy is kept. Charges and spins are those that the potential implies: none.

    Args:
        potential: What `host` was computed with.
        host: The pristine crystal.
        site: Atom of the primitive cell.
        dopant: Symbol of another element.
        starts: Rattled starts.
        radius: See `RADIUS`.
        keep: See `KEEP`; 0 keeps all.
        volume_step: Change of ln V at which the substitution is computed again, for its derivative by the volume; in
            the direction in which the dopant changes the volume. 0 for none.
        preconditioner: See `relax`.
        tolerance: Largest force left, eV/angstrom.

    Raises:
        FormulaError: The dopant is no element of the vocabulary.
        SimulationError: There is no such site; or the cell does not come to rest, or not as the same crystal, or not
            in a minimum.
    """
    task = _Task(potential, host, site, dopant, radius, keep, preconditioner, tolerance)
    relaxed = task.relax(task.ideal, "volume", task.site_symmetry)
    found = task.force_constants(relaxed)
    lowest, along = task.softest(found)
    if lowest < UNSTABLE or task.is_soft(found):
        rng = np.random.default_rng([site, INDEX[dopant]])
        others = [task.rattled(relaxed, along if lowest < UNSTABLE else None, rng) for _ in range(starts)]
        best = min((other for other in others if other is not None), key=lambda r: r.energy, default=None)
        if best is not None and best.energy < relaxed.energy - (0.0 if lowest < UNSTABLE else LOWER):
            relaxed = best
            found = task.force_constants(relaxed)
            lowest, _ = task.softest(found)
    if lowest < UNSTABLE:
        raise SimulationError(
            f"{dopant} on site {site} of {host.id} has no stable place",
            why=f"the softest direction has {lowest:.2f} eV/angstrom^2",
            fix="Leave it out, or allow more starts",
        )
    whole = float(np.log(relaxed.crystal.volume / task.ideal.volume))
    local = task.localised(found, whole)
    by_volume = np.zeros_like(local.change)
    if volume_step:
        step = volume_step if relaxed.crystal.volume >= task.ideal.volume else -volume_step
        strained = task.relax(relaxed.crystal.strained(np.eye(3) * np.exp(step / 3.0)), "fixed", relaxed.operations)
        there = task.localised(task.force_constants(strained, beside=(relaxed, found)), whole, local, step)
        by_volume = (there.on(local) - local.change) / step
    atom = task.atom
    group = task.kept(relaxed)
    basis, lattice, change = local.basis, local.lattice, local.change
    if len(group) > len(relaxed.operations):
        basis, lattice, (change, by_volume) = _averaged(local, (change, by_volume), group, site)
    return Substitution(
        dopant=dopant,
        site=site,
        basis=basis,
        lattice=lattice,
        change=change,
        by_volume=by_volume,
        far=local.far,
        volume=relaxed.crystal.volume - task.ideal.volume,
        far_volume=local.log_volume * task.ideal.volume,
        energy=relaxed.energy - host.energy * host.cell.repeats,
        displacement=float(np.linalg.norm(relaxed.displacement[atom])),
        rotations=group.rotation,
        orientations=len(host.operations.fixing(site)) // len(group),
    )


@dataclass(frozen=True)
class _Local:
    """A change of force constants around a site, see `Substitution`; far away, a change of ln V and what is left."""

    basis: IntArray
    lattice: IntArray
    change: FloatArray
    log_volume: float
    far: ForceConstants

    def blocks(self) -> FloatArray:
        """Return the (m, m, 3, 3) blocks."""
        m = len(self.basis)
        return self.change.reshape(m, 3, m, 3).transpose(0, 2, 1, 3)

    def keys(self) -> list[tuple[int, ...]]:
        """Return the atom of the primitive cell and the lattice vector of each atom."""
        return [(int(b), *map(int, v)) for b, v in zip(self.basis, self.lattice, strict=True)]

    def pairs(self) -> IntArray:
        """Return the (B, 8) pairs of atoms with a block that is not zero."""
        first, second = np.nonzero((self.blocks() != 0.0).any((2, 3)))
        atoms = np.column_stack([self.basis, self.lattice])
        return np.concatenate([atoms[first], atoms[second]], axis=1)

    def on(self, other: _Local) -> FloatArray:
        """Return the change on the atoms of another."""
        places = {key: k for k, key in enumerate(self.keys())}
        keys = other.keys()
        mine = np.array([k for k, key in enumerate(keys) if key in places])
        theirs = np.array([places[keys[k]] for k in mine])
        out = np.zeros((len(keys), len(keys), 3, 3))
        out[np.ix_(mine, mine)] = self.blocks()[np.ix_(theirs, theirs)]
        return with_sum_rule(out)


class _Stiffness:
    """The host's force constants as preconditioner of a relaxation; forces are those of a potential."""

    exact = True

    def __init__(self, potential: Potential, force_constants: ForceConstants) -> None:
        self.name, self.sha256 = potential.name, potential.sha256
        self.check, self.evaluate = potential.check, potential.evaluate
        self._force_constants = force_constants

    def force_constants(self, crystal: Crystal) -> ForceConstants:
        """Return the host's force constants, whatever the crystal."""
        del crystal
        return self._force_constants


class _Task:
    """One substitution: the steps of `substitute`."""

    def __init__(
        self,
        potential: Potential,
        host: HostModel,
        site: int,
        dopant: str,
        radius: float,
        keep: float,
        preconditioner: Potential | None,
        tolerance: float,
    ) -> None:
        number = int(NUMBERS[element_index(dopant, field="dopant")])
        if not 0 <= site < len(host.primitive):
            raise SimulationError(
                f"site is {site}", fix=f"Atoms of the primitive cell of {host.id} are 0 to {len(host.primitive) - 1}"
            )
        if host.primitive.numbers[site] == number:
            raise SimulationError(f"{dopant} is on site {site} of {host.id} already", fix="Name another dopant")
        self.potential, self.host, self.site, self.dopant = potential, host, site, dopant
        self.radius, self.keep = radius, keep
        self.preconditioner, self.tolerance = preconditioner, tolerance
        self._pristine = host.at_gamma(potential, preconditioner)
        self.stiffness = _Stiffness(preconditioner or potential, self._pristine[0])
        self.atom = int(host.cell.find(np.array([site]), np.zeros((1, 3), dtype=np.int64))[0][0])
        numbers = host.cell.crystal.numbers.copy()
        numbers[self.atom] = number
        self.ideal = Crystal(numbers, host.cell.crystal.cell, host.cell.crystal.positions)
        potential.check(self.ideal)
        found = find_operations(self.ideal, 1e-3)
        # A crystal that relaxes to within that tolerance of a higher symmetry must not lend it to its substitutions.
        own = {rotation.tobytes() for rotation in host.operations.fixing(site).rotation}
        self.site_symmetry = found.only(np.array([turned.tobytes() in own for turned in self._rotations(found)]))

    def relax(self, start: Crystal, cell: CellMode, symmetry: Operations) -> Relaxed:
        """Relax a cell and put it on symmetric places; `_settled` says when that fails."""
        # Most of the crystal is the host, whose force constants are known: a dopant that differs much needs its own.
        found = relax(
            self.potential,
            start,
            cell=cell,
            tolerance=self.tolerance,
            preconditioner=self.stiffness,
            rounds=1,
            evaluations=30,
        )
        if not found.converged and np.isfinite(found.max_force):
            found = relax(
                self.potential, found.crystal, cell=cell, tolerance=self.tolerance, preconditioner=self.preconditioner
            )
        return self._settled(found, symmetry)

    def _settled(self, found: Relaxation, symmetry: Operations) -> Relaxed:
        name = f"{self.dopant} on site {self.site} of {self.host.id}"
        if not found.converged:
            raise SimulationError(f"{name} does not come to rest", fix="Leave it out")
        displacement = self._displacement(found.crystal)
        if np.linalg.norm(displacement, axis=1).max() > LARGEST_DISPLACEMENT:
            raise SimulationError(f"{name} changes the crystal into another", fix="Leave it out")
        kept = kept_by(displacement, symmetry, SYMMETRIC)
        displacement = symmetrised_displacements(displacement, kept)
        ideal = Crystal(self.ideal.numbers, found.crystal.cell, self.ideal.frac @ found.crystal.cell)
        crystal = ideal.moved(displacement)
        return Relaxed(crystal, displacement, kept, self.potential.evaluate(crystal).energy)

    def _displacement(self, crystal: Crystal) -> FloatArray:
        """Return (N, 3) displacements from the sites, the crystal as a whole not displaced."""
        displacement = (crystal.frac - self.ideal.frac) @ crystal.cell
        return np.asarray(displacement - displacement.mean(axis=0))

    def rattled(self, centred: Relaxed, along: FloatArray | None, rng: np.random.Generator) -> Relaxed | None:
        """Relax from a start off the symmetric places; None where that ends nowhere."""
        shift = rng.normal(0.0, 0.02, centred.displacement.shape)
        if along is None:
            shift[self.atom] += 0.3 * _unit(rng.normal(size=3))
        else:
            shift += 0.3 * rng.choice([-1.0, 1.0]) * along / np.linalg.norm(along, axis=1).max()
        try:
            return self.relax(centred.crystal.moved(shift), "volume", self.site_symmetry)
        except SimulationError:
            return None

    def force_constants(self, relaxed: Relaxed, beside: tuple[Relaxed, ForceConstants] | None = None) -> ForceConstants:
        """Compute the force constants of the supercell.

        Args:
            relaxed: The cell.
            beside: The same cell at another volume and its force constants: where the potential is not exact, only
                atoms close to the substitution are displaced again, others change as the host does.
        """
        if self.potential.exact:
            return self.potential.force_constants(relaxed.crystal)
        assert isinstance(self.potential, ReferencePotential)
        radius, fallback = self.radius, self._host_at(relaxed.crystal)
        if beside is not None:
            radius = min(radius, CLOSE)
            fallback = total([beside[1], fallback, self._host_at(beside[0].crystal) * -1.0])
        hessian = self.potential.hessian(
            relaxed.crystal,
            relaxed.operations,
            atoms=np.flatnonzero(self._distance() < radius),
            fallback=fallback.hessian().numpy(),
        )
        return ForceConstants.from_hessian(hessian, self.ideal)

    def kept(self, relaxed: Relaxed) -> Operations:
        """Return the crystal's operations that leave the substitution as it is.

        A supercell may lack some of the crystal's symmetry. What lies nearer than half the way to the next image tells
        then which operations the substitution itself has: those that it has lost to the shape of the supercell alone
        must not depend on how the crystal is oriented.
        """
        host, cell = self.host, self.host.cell
        site = host.operations.fixing(self.site)
        if len(self.site_symmetry) >= len(site):
            return fixing(host.operations, self.site, self._rotations(relaxed.operations))
        reduced = minkowski_reduce(cell.crystal.cell)[0]  # type: ignore[no-untyped-call]
        near = np.flatnonzero(self._distance() < 0.5 * np.linalg.norm(reduced, axis=1).min() - TIE)
        place = np.full(len(cell), -1)
        place[near] = np.arange(len(near))
        basis, lattice = self._around(near)
        image = np.stack([place[cell.find(*_turned(basis, lattice, op, self.site))[0]] for op in _each(site)])
        displacement = relaxed.displacement[near]
        local = Operations(site.rotation, site.translation, site.cartesian, image, site.shift)
        kept = kept_by(displacement - displacement.mean(axis=0), local, SYMMETRIC)
        return fixing(host.operations, self.site, kept.rotation)

    def _rotations(self, operations: Operations) -> IntArray:
        """Return the (G, 3, 3) rotations of operations of the supercell, in coordinates of the primitive cell."""
        vectors = self.host.primitive.cell.T
        found = np.linalg.inv(vectors) @ operations.cartesian @ vectors
        return np.ascontiguousarray(np.round(found), dtype=np.int64)

    def _around(self, atoms: IntArray) -> tuple[IntArray, IntArray]:
        """Return the atoms of the primitive cell and the lattice vectors of the images nearest to the site."""
        cell = self.host.cell
        frac = self.ideal.frac[atoms] - self.ideal.frac[self.atom]
        base = -np.round(frac).astype(np.int64)
        distance = np.linalg.norm((frac + base)[:, None] @ self.ideal.cell + IMAGES @ self.ideal.cell, axis=2)
        shift = base + IMAGES[distance.argmin(axis=1)]
        return cell.basis[atoms], cell.lattice[atoms] + shift @ cell.matrix - cell.lattice[self.atom]

    def _distance(self) -> FloatArray:
        """Return the distance of each atom's nearest image from the site."""
        apart = self.ideal.frac - self.ideal.frac[self.atom] + 0.0
        apart -= np.round(apart)
        vectors = (apart[:, None] + IMAGES) @ self.ideal.cell
        return np.asarray(np.linalg.norm(vectors, axis=2).min(axis=1))

    def _host_at(self, crystal: Crystal) -> ForceConstants:
        """Return the host's force constants in the supercell at the volume of a crystal."""
        log_volume = float(np.log(crystal.volume / self.ideal.volume))
        middle, first, second = self._pristine
        return total([middle, first * log_volume, second * (0.5 * log_volume**2)])

    def softest(self, found: ForceConstants) -> tuple[float, FloatArray]:
        """Return the lowest curvature beside those of translations, eV/angstrom^2, and its (N, 3) direction."""
        hessian = found.hessian().numpy()
        n = len(hessian) // 3
        shift = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
        # Translations are lifted out of the way.
        values, vectors = eigh(hessian + 100.0 * shift @ shift.T, subset_by_index=[0, 0])
        return float(values[0]), vectors[:, 0].reshape(n, 3)

    def is_soft(self, found: ForceConstants) -> bool:
        """Whether the dopant is held much less than the atom that it replaces."""
        there = found.hessian().numpy()
        own = slice(3 * self.atom, 3 * self.atom + 3)
        pristine = self._pristine[0].hessian().numpy()[own, own]
        return bool(np.linalg.eigvalsh(there[own, own])[0] < SOFT * np.linalg.eigvalsh(pristine)[0])

    def localised(self, found: ForceConstants, whole: float, like: _Local | None = None, strain: float = 0.0) -> _Local:
        """Return what the substitution changes around it.

        Far from it the crystal feels a change of volume, less than that of the supercell, and shear that has no mean;
        in a metal the electrons that came with the dopant, too. So small blocks are left out. The change of volume is
        the one that describes them best, and of the rest the mean over the crystal is kept.

        Args:
            found: Force constants of the supercell.
            whole: Change of ln V of the supercell by the substitution: far away it is between this and none.
            like: What was found at another volume: the same blocks are kept.
            strain: Further change of ln V of that volume.
        """
        cell = self.host.cell
        keys, blocks = aligned([found, *self._pristine])
        around = _Attributed.of(keys.numpy(), cell, self.atom)
        change, first, second = (blocks[0] - blocks[1]).numpy(), blocks[2].numpy(), blocks[3].numpy()
        between = ((keys[:, 0] != keys[:, 1]) | (keys[:, 2:] != 0).any(1)).numpy()
        out = between & (around.distance > FAR * around.distance.max())
        held = None if like is None else around.among(like)
        # Without bounds the electrons of an aliovalent dopant, which reach as far, are taken for a change of volume.
        bounds = strain + min(0.0, whole), strain + max(0.0, whole)
        log_volume, rest = strain, change - strain * first - 0.5 * strain**2 * second
        for _ in range(5):
            if not out.any():
                break
            slope = (first + 0.5 * log_volume * second)[out]
            log_volume = float(np.clip((slope * change[out]).sum() / (slope**2).sum(), *bounds))
            rest = change - log_volume * first - 0.5 * log_volume**2 * second
            # The norm of a block, unlike its largest element, is the same for all that symmetry makes alike.
            out = between & (np.linalg.norm(rest, axis=(1, 2)) < self.keep if held is None else ~held)
        left = keys[out]
        far = self._mean(ForceConstants(len(cell), left[:, 0], left[:, 1], left[:, 2:], torch.from_numpy(rest[out])))
        rest[out] = 0.0
        return around.gathered(rest, cell, log_volume, far)

    def _mean(self, dropped: ForceConstants) -> ForceConstants:
        """Return the sum over the cells of force constants of the supercell, with the symmetry of the crystal."""
        found = self.host.cell.unfolded(dropped) * float(self.host.cell.repeats)
        if len(found.first) == 0:
            return found
        pairs, blocks = as_pairs([found])
        kept, means = reduced(pairs, blocks, self.host.operations, None)
        return from_pairs(found.atoms, *expanded(pairs[kept], means, self.host.operations, None))[0]


@dataclass(frozen=True)
class _Attributed:
    """Pairs of atoms in a supercell, attributed to the nearest image of one atom; B pairs, T of them and an image.

    Attributes:
        distance: (B,) root mean square distance of both atoms of a pair from that image, angstrom.
        pair: (T,) the pair; several images may be equally near. share: (T,) of each.
        ends: (2 T, 4) atom of the primitive cell and lattice vector of all first, then of all second atoms, as they
            stand when the image is in the cell of the atom itself.
    """

    distance: FloatArray
    pair: IntArray
    share: FloatArray
    ends: IntArray

    @classmethod
    def of(cls, keys: IntArray, cell: Supercell, atom: int) -> _Attributed:
        """Attribute (B, 5) pairs, see `aligned`."""
        positions, lattice = cell.crystal.positions, cell.crystal.cell
        first, second, shift = keys[:, 0], keys[:, 1], keys[:, 2:]
        one = positions[first] - positions[atom]
        other = positions[second] + shift @ lattice - positions[atom]
        middle, half = 0.5 * (one + other), 0.5 * (other - one)
        base = -np.round(np.linalg.solve(lattice.T, middle.T).T).astype(np.int64)
        # The root mean square of both distances is that of the middle and of half the vector between them.
        moved = (middle + base @ lattice)[:, None] + NEAR_IMAGES @ lattice
        distance = np.sqrt((moved**2).sum(2) + (half**2).sum(1)[:, None])
        nearest = distance.min(axis=1)
        pair, image = np.nonzero(distance < nearest[:, None] + TIE)
        share = 1.0 / np.bincount(pair)[pair]
        place = base[pair] + NEAR_IMAGES[image]
        ends = []
        for index, offset in ((first[pair], place), (second[pair], place + shift[pair])):
            vector = cell.lattice[index] + offset @ cell.matrix - cell.lattice[atom]
            ends.append(np.column_stack([cell.basis[index], vector]))
        return cls(nearest, pair, share, np.concatenate(ends))

    def among(self, local: _Local) -> NDArray[np.bool_]:
        """Return (B,) whether a pair is one of those whose blocks a local change holds."""
        there = np.isin(encoded(np.concatenate(np.split(self.ends, 2), axis=1)), encoded(local.pairs()))
        out = np.zeros(len(self.distance), dtype=bool)
        np.logical_or.at(out, self.pair, there)
        return out

    def gathered(self, blocks: FloatArray, cell: Supercell, log_volume: float, far: ForceConstants) -> _Local:
        """Return (B, 3, 3) blocks on the atoms around the one that made the change; pairs of zeros are left out."""
        kept = (blocks[self.pair] != 0.0).any((1, 2))
        ends = self.ends.reshape(2, -1, 4)[:, kept].reshape(-1, 4)
        found, number = unique_rows(torch.from_numpy(ends))
        a, b = np.split(number.numpy(), 2)
        m = len(found)
        out = np.zeros((m * m, 3, 3))
        np.add.at(out, a * m + b, blocks[self.pair[kept]] * self.share[kept, None, None])
        keys = found.numpy()
        return _Local(keys[:, 0], keys[:, 1:], with_sum_rule(out.reshape(m, m, 3, 3)), log_volume, far)


def _each(operations: Operations) -> list[Operations]:
    """Return operations one by one."""
    return [operations.only(np.array([k])) for k in range(len(operations))]


def _turned(basis: IntArray, lattice: IntArray, operation: Operations, site: int) -> tuple[IntArray, IntArray]:
    """Return where one operation that leaves a site where it is puts (m,) atoms in (m, 3) cells."""
    shift = operation.shift[0]
    return operation.image[0, basis], lattice @ operation.rotation[0].T + shift[basis] - shift[site]


def _averaged(
    local: _Local, changes: Sequence[FloatArray], group: Operations, site: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the mean of changes over the operations that a substitution has, and the atoms that it reaches.

    Args:
        local: Around the site; m atoms.
        changes: K of (3 m, 3 m).
        group: Operations that leave the site where it is.
        site: In the cell at the origin.

    Returns:
        (M,) atoms of the primitive cell, (M, 3) their lattice vectors, and (K, 3 M, 3 M) changes.
    """
    atoms = [np.column_stack(_turned(local.basis, local.lattice, op, site)) for op in _each(group)]
    found, number = unique_rows(torch.from_numpy(np.concatenate(atoms)))
    m = len(local.basis)
    blocks = np.stack(changes).reshape(-1, m, 3, m, 3).transpose(0, 1, 3, 2, 4)
    out = np.zeros((len(blocks), len(found), len(found), 3, 3))
    for rotation, place in zip(group.cartesian, number.numpy().reshape(len(group), m), strict=True):
        turned = np.einsum("ab,kijbc,dc->kijad", rotation, blocks, rotation, optimize=True)
        out[:, place[:, None], place[None, :]] += turned / len(group)
    keys = found.numpy()
    return keys[:, 0], keys[:, 1:], np.stack([with_sum_rule(part) for part in out])


def with_sum_rule(blocks: FloatArray) -> FloatArray:
    """Return (3 m, 3 m) from (m, m, 3, 3) force constants, symmetric, with the acoustic sum rule."""
    m = len(blocks)
    blocks = 0.5 * (blocks + blocks.transpose(1, 0, 3, 2))
    diagonal = np.arange(m)
    blocks[diagonal, diagonal] = 0.0
    own = -blocks.sum(axis=1)
    blocks[diagonal, diagonal] = 0.5 * (own + own.transpose(0, 2, 1))
    return np.asarray(blocks.transpose(0, 2, 1, 3).reshape(3 * m, 3 * m))


def _unit(vector: FloatArray) -> FloatArray:
    return np.asarray(vector / np.linalg.norm(vector))
