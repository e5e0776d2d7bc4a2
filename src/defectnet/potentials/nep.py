"""Neuroevolution potential (NEP): energy, forces and stress, with every derivative in closed form.

The energy of atom i is `U_i(A_i)`: a small network of invariants of *additive* sums `A_i = sum_j phi(r_ij)`
(Fan et al., PRB 104, 104309 (2021); JCP 157, 114801 (2022)). `defectnet.potentials.hessian` builds on that.

Letters: N atoms, P ordered pairs, n radial functions, H harmonics, S = n_radial + n_angular * H additive sums.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectnet.errors import SimulationError
from defectnet.potentials.harmonics import cubic_invariant, harmonic_tables
from defectnet.potentials.neighbours import Crystal, Pairs, find_pairs
from defectnet.potentials.nep_file import NEPParameters, read_nep

QUARTIC_WEIGHT = 7.0 / 15.0
"""Weight of the five-body invariant (sum_m A_1m^2)^2, from the coupling (1 1 1 1) of NEP."""


@dataclass(frozen=True)
class RadialFunctions:
    """Radial functions at the pairs and their derivatives; each (P, n)."""

    value: Tensor
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class PaddedRows:
    """Pairs laid out in one row for each atom, filled up with zeros: few large products in place of many small ones.

    Attributes:
        slot: (P,) place of each pair in the N rows, counted through.
        atoms: N; width: w, most pairs that an atom has.
    """

    slot: Tensor
    atoms: int
    width: int

    @classmethod
    def of(cls, pairs: Pairs, atoms: int) -> PaddedRows:
        """Lay out pairs that are ordered by centre."""
        counts = torch.bincount(pairs.centre, minlength=atoms)
        width = int(counts.max())
        before = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(pairs.centre), device=counts.device) - before[pairs.centre]
        return cls(pairs.centre * width + place, atoms, width)

    def fill(self, values: Tensor) -> Tensor:
        """Lay out (P, ...) values as (N, w, ...)."""
        out = values.new_zeros(self.atoms * self.width, *values.shape[1:]).index_copy(0, self.slot, values)
        return out.view(self.atoms, self.width, *values.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """Return the (P, ...) values of (N, w, ...) rows."""
        return rows.flatten(0, 1).index_select(0, self.slot)


@dataclass(frozen=True)
class Sums:
    """State of a crystal from which all derivatives follow.

    Attributes:
        radial: (N, n_r) and angular: (N, n_a, H) additive sums.
        pairs_radial, pairs_angular: Pairs within the two cut-offs.
        g_radial, g_angular: Radial functions at those pairs.
        harmonics: (P, H) at the angular pairs; monomials: (P, C).
        rows: The angular pairs in one row for each atom.
    """

    radial: Tensor
    angular: Tensor
    pairs_radial: Pairs
    pairs_angular: Pairs
    g_radial: RadialFunctions
    g_angular: RadialFunctions
    harmonics: Tensor
    monomials: Tensor
    rows: PaddedRows


@dataclass(frozen=True)
class EnergyForcesStress:
    """What a potential says of a crystal.

    Attributes:
        energy: eV per cell.
        forces: (N, 3) eV/angstrom.
        stress: (3, 3) eV/angstrom^3; ASE's sign: negative under compression.
    """

    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]


class NEP:
    """A NEP potential, ready to evaluate.

    Args:
        parameters: From `read_nep`, or made by a network that is trained (`defectnet.distil`).
        device: Where to compute.
        dtype: In what; float64 but for training.
    """

    def __init__(
        self, parameters: NEPParameters, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        self.parameters = parameters
        self.device, self.dtype = torch.device(device), dtype
        p, at = parameters, self.device
        self.w0 = (p.w0 * p.scaler).to(at, dtype)
        self.b0, self.w1, self.b1 = p.b0.to(at, dtype), p.w1.to(at, dtype), p.b1.to(at, dtype)
        self.c_radial, self.c_angular = p.c_radial.to(at, dtype), p.c_angular.to(at, dtype)
        self.tables = harmonic_tables(p.l_max).to(self.device, dtype)
        self.degree = self.tables.degree
        self.cubic = cubic_invariant().to(at, dtype)
        self.n_radial, self.n_angular = p.c_radial.shape[2], p.c_angular.shape[2]
        self.n_harmonics = len(self.degree)
        # (H, l_max): which harmonics make up which three-body invariant
        orders = torch.arange(1, p.l_max + 1, device=self.device)
        self.members = (self.degree[:, None] == orders).to(dtype)
        self._type = {z: t for t, z in enumerate(p.species)}

    @classmethod
    def from_file(cls, path: str | Path, device: torch.device | str = "cpu") -> NEP:
        """Read a potential in GPUMD's text format."""
        return cls(read_nep(path), device)

    def types(self, crystal: Crystal) -> Tensor:
        """Return (N,) species indices of the atoms.

        Raises:
            SimulationError: The potential does not know an element.
        """
        missing = sorted({int(z) for z in crystal.numbers} - set(self._type))
        if missing:
            raise SimulationError(
                f"potential {self.parameters.name} does not know the element with Z = {missing[0]}",
                fix="Leave such hosts out, or use another potential",
            )
        return torch.tensor([self._type[int(z)] for z in crystal.numbers], device=self.device)

    def pairs(self, crystal: Crystal) -> Pairs:
        """List the pairs within the larger cut-off."""
        cutoff = max(self.parameters.cutoff_radial, self.parameters.cutoff_angular, self.parameters.zbl_outer)
        return find_pairs(crystal, cutoff, self.device)

    # -- additive sums -----------------------------------------------------------------------------------------

    def sums(self, types: Tensor, pairs: Pairs, *, second: bool = True) -> Sums:
        """Compute the additive sums of all atoms; without `second`, no second derivatives of radial functions."""
        p = self.parameters
        atoms = len(types)
        radial, angular = pairs.within(p.cutoff_radial), pairs.within(p.cutoff_angular)
        g_r = _radial_functions(radial, types, self.c_radial, p.cutoff_radial, second)
        g_a = _radial_functions(angular, types, self.c_angular, p.cutoff_angular, second)
        monomials = self.tables.monomials(angular.vector / angular.distance[:, None])
        harmonics = monomials @ self.tables.value
        rows = PaddedRows.of(angular, atoms)
        return Sums(
            radial=_zeros(self, atoms, self.n_radial).index_add_(0, radial.centre, g_r.value),
            angular=rows.fill(g_a.value).transpose(1, 2) @ rows.fill(harmonics),
            pairs_radial=radial,
            pairs_angular=angular,
            g_radial=g_r,
            g_angular=g_a,
            harmonics=harmonics,
            monomials=monomials,
            rows=rows,
        )

    def descriptors(self, sums: Sums) -> Tensor:
        """Return the (N, Q) invariants that enter the networks, unscaled, in the order of the file format."""
        squares = sums.angular**2 @ self.members  # (N, n, l_max)
        blocks = [sums.radial, squares.transpose(1, 2).flatten(1)]
        if self.parameters.with_4body:
            quintet = sums.angular[:, :, 3:8]
            blocks.append(torch.einsum("abc,ina,inb,inc->in", self.cubic, quintet, quintet, quintet))
        if self.parameters.with_5body:
            blocks.append(QUARTIC_WEIGHT * squares[:, :, 0] ** 2)
        return torch.cat(blocks, dim=1)

    def atomic_energies(self, types: Tensor, descriptors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the networks.

        Returns:
            (N,) energies in eV; (N, Q) derivative by the descriptors; (N, neurons) second derivative of the energy
            by each neuron's argument, from which the (Q, Q) second derivatives follow.
        """
        hidden = descriptors.new_empty(len(types), self.w0.shape[1])
        by_descriptor = torch.empty_like(descriptors)
        present = [(t, torch.nonzero(types == t)[:, 0]) for t in torch.unique(types).tolist()]
        for t, atoms in present:  # one net per element: a gather per atom would copy it for each
            hidden[atoms] = torch.tanh(descriptors[atoms] @ self.w0[t].T - self.b0[t])
        w1 = self.w1[types]
        slope = w1 * (1.0 - hidden**2)
        for t, atoms in present:
            by_descriptor[atoms] = slope[atoms] @ self.w0[t]
        return (w1 * hidden).sum(1) - self.b1, by_descriptor, -2.0 * hidden * slope

    def sum_gradient(self, sums: Sums, by_descriptor: Tensor) -> tuple[Tensor, Tensor]:
        """Chain dU/dq to the additive sums: (N, n_r) and (N, n_a, H)."""
        n_r, n_a = self.n_radial, self.n_angular
        radial = by_descriptor[:, :n_r]
        rest = by_descriptor[:, n_r:].reshape(len(by_descriptor), -1, n_a)
        l_max = self.parameters.l_max
        by_square = rest[:, :l_max].transpose(1, 2)  # (N, n, l_max)
        following = l_max
        gradient = torch.zeros_like(sums.angular)
        if self.parameters.with_4body:
            quintet = sums.angular[:, :, 3:8]
            cubic = 3.0 * torch.einsum("abc,inb,inc->ina", self.cubic, quintet, quintet)
            gradient[:, :, 3:8] = rest[:, following, :, None] * cubic
            following += 1
        if self.parameters.with_5body:
            square = (sums.angular[:, :, :3] ** 2).sum(2)
            by_square = by_square.clone()
            by_square[:, :, 0] += 2.0 * QUARTIC_WEIGHT * rest[:, following] * square
        return radial, gradient + 2.0 * sums.angular * (by_square @ self.members.T)

    # -- energy, forces, stress --------------------------------------------------------------------------------

    def evaluate(self, crystal: Crystal) -> EnergyForcesStress:
        """Compute energy, forces and stress."""
        return self.evaluate_many([crystal])[0]

    def evaluate_many(self, crystals: Sequence[Crystal]) -> list[EnergyForcesStress]:
        """Compute energy, forces and stress of several crystals at once."""
        types = torch.cat([self.types(crystal) for crystal in crystals])
        bounds = [0, *itertools.accumulate(len(crystal) for crystal in crystals)]
        pairs = joined_pairs([self.pairs(crystal) for crystal in crystals], bounds)
        energies, forces, virials = self.forces_many(types, pairs, bounds, second=False)
        return [
            EnergyForcesStress(
                energy=float(energies[k]),
                forces=forces[bounds[k] : bounds[k + 1]].cpu().numpy(),
                stress=virials[k].cpu().numpy() / crystal.volume,
            )
            for k, crystal in enumerate(crystals)
        ]

    def forces_many(
        self, types: Tensor, pairs: Pairs, bounds: Sequence[int], *, second: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute energies, forces and virials of B crystals with N atoms in all, as tensors.

        All is in closed form, so autograd need only follow the parameters: this is what training calls.

        Args:
            types: (N,) species indices.
            pairs: Of all crystals, in their order, atoms counted through; vectors in this potential's dtype.
            bounds: (B + 1) offsets of the crystals' atoms.
            second: See `sums`.

        Returns:
            (B,) energies in eV, (N, 3) forces in eV/angstrom, (B, 3, 3) virials (stress times volume) in eV.
        """
        sums = self.sums(types, pairs, second=second)
        atomic, by_descriptor, _ = self.atomic_energies(types, self.descriptors(sums))
        terms, repulsion = self._pair_gradients(types, pairs, sums, by_descriptor)
        forces = _zeros(self, len(types), 3)
        for part, gradient in terms:
            forces.index_add_(0, part.centre, gradient).index_add_(0, part.neighbour, -gradient)
        edges = torch.tensor(bounds, device=self.device)
        cuts = [torch.searchsorted(part.centre, edges).tolist() for part, _ in terms]
        energies, virials = [], []
        for k in range(len(bounds) - 1):
            energy, virial = atomic[bounds[k] : bounds[k + 1]].sum(), _zeros(self, 3, 3)
            for (part, gradient), cut in zip(terms, cuts, strict=True):
                mine = slice(cut[k], cut[k + 1])
                virial += gradient[mine].T @ part.vector[mine]
            if repulsion is not None:
                energy = energy + repulsion[cuts[-1][k] : cuts[-1][k + 1]].sum()
            energies.append(energy)
            virials.append(virial)
        return torch.stack(energies), forces, torch.stack(virials)

    def _pair_gradients(
        self, types: Tensor, pairs: Pairs, sums: Sums, by_descriptor: Tensor
    ) -> tuple[list[tuple[Pairs, Tensor]], Tensor | None]:
        """Gradient of the energy by the pair vectors, (P, 3) at each set of pairs; and the repulsive energies."""
        f_radial, f_angular = self.sum_gradient(sums, by_descriptor)
        radial, angular = sums.pairs_radial, sums.pairs_angular
        slope = (f_radial.index_select(0, radial.centre) * sums.g_radial.first).sum(1)
        terms = [(radial, slope[:, None] * (radial.vector / radial.distance[:, None]))]
        terms.append((angular, self._angular_gradient(sums, f_angular)))
        if self.parameters.zbl_outer <= 0:
            return terms, None
        close = pairs.within(self.parameters.zbl_outer)
        repulsion, first, _ = zbl(close, self.atomic_numbers(types), self.parameters)
        return [*terms, (close, first[:, None] * (close.vector / close.distance[:, None]))], repulsion

    def atomic_numbers(self, types: Tensor) -> Tensor:
        """Return (N,) atomic numbers of species indices, as floats."""
        species = torch.tensor(self.parameters.species, device=self.device, dtype=self.dtype)
        return species[types]

    def _angular_gradient(self, sums: Sums, f_angular: Tensor) -> Tensor:
        """Gradient of sum_a F_a phi_a by the pair vector, (P, 3)."""
        pairs, g, rows = sums.pairs_angular, sums.g_angular, sums.rows
        both = rows.fill(torch.stack([g.value / pairs.distance[:, None], g.first], 1))  # (N, w, 2, n)
        both = (both.flatten(1, 2) @ f_angular).view(rows.atoms, rows.width, 2, self.n_harmonics)
        value, slope = rows.take(both).unbind(1)
        along = ((slope - self.degree * value) * sums.harmonics).sum(1)
        unit = pairs.vector / pairs.distance[:, None]
        return along[:, None] * unit + self.tables.combined_gradient(value, sums.monomials)


def joined_pairs(pairs: Sequence[Pairs], bounds: Sequence[int]) -> Pairs:
    """Put the pairs of several crystals side by side; `bounds` are the offsets of their atoms."""
    if len(pairs) == 1:
        return pairs[0]
    return Pairs(
        centre=torch.cat([p.centre + first for p, first in zip(pairs, bounds, strict=False)]),
        neighbour=torch.cat([p.neighbour + first for p, first in zip(pairs, bounds, strict=False)]),
        shift=torch.cat([p.shift for p in pairs]),
        vector=torch.cat([p.vector for p in pairs]),
        distance=torch.cat([p.distance for p in pairs]),
    )


def _zeros(model: NEP, *shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=model.dtype, device=model.device)


def _radial_functions(
    pairs: Pairs, types: Tensor, coefficients: Tensor, cutoff: float, second: bool
) -> RadialFunctions:
    """Expand in Chebyshev polynomials times a cosine cut-off (NEP, PRB 104, 104309, Eqs. 7 to 9)."""
    kinds, _, functions, size = coefficients.shape
    kind = types[pairs.centre] * kinds + types[pairs.neighbour]
    # Pairs of one kind share their coefficients: one product for each kind in place of one for each pair.
    order = torch.argsort(kind, stable=True)
    basis = _radial_basis(pairs.distance[order], cutoff, size, orders=3 if second else 2)
    present, counts = torch.unique_consecutive(kind[order], return_counts=True)
    table = coefficients.flatten(0, 1)
    values, first_pair = basis.new_empty(len(basis), functions, len(order)), 0
    for k, count in zip(present.tolist(), counts.tolist(), strict=True):
        own = slice(first_pair, first_pair + count)
        values[:, :, own] = table[k] @ basis[:, :, own]
        first_pair += count
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    values = values.flatten(0, 1).T.contiguous().index_select(0, back).view(-1, len(basis), functions)
    value, first, *rest = values.unbind(1)
    return RadialFunctions(value, first, rest[0] if second else torch.zeros_like(value))


def _radial_basis(distance: Tensor, cutoff: float, size: int, orders: int) -> Tensor:
    """Return the basis functions and their derivatives, (orders, size, P); 2 or 3 orders."""
    scaled = distance / cutoff - 1.0
    twice_x, dx, d2x = 4.0 * scaled**2 - 2.0, 4.0 * scaled / cutoff, 4.0 / cutoff**2
    out = distance.new_empty(orders, size, len(distance))
    t, dt = out[0], out[1]  # Chebyshev polynomials, and derivatives by the distance
    t[0], dt[0] = 1.0, 0.0
    t[1:2], dt[1:2] = 0.5 * twice_x, dx
    for k in range(2, size):
        torch.mul(twice_x, t[k - 1], out=t[k]).sub_(t[k - 2])
        torch.mul(twice_x, dt[k - 1], out=dt[k]).sub_(dt[k - 2]).addcmul_(2.0 * dx, t[k - 1])
    omega = math.pi / cutoff
    fc = 0.25 * torch.cos(omega * distance) + 0.25  # half the cut-off function: the basis is (t + 1) / 2
    dfc = (-0.25 * omega) * torch.sin(omega * distance)
    if orders == 3:
        d2t = out[2]
        d2t[0], d2t[1:2] = 0.0, d2x
        for k in range(2, size):
            torch.mul(twice_x, d2t[k - 1], out=d2t[k]).sub_(d2t[k - 2])
            d2t[k].addcmul_(4.0 * dx, dt[k - 1]).add_(t[k - 1], alpha=2.0 * d2x)
        d2t.mul_(fc).addcmul_(dt, 2.0 * dfc).addcmul_(t + 1.0, -(omega**2) * (fc - 0.25))
    t.add_(1.0)
    dt.mul_(fc).addcmul_(t, dfc)
    t.mul_(fc)
    return out


def zbl(pairs: Pairs, z: Tensor, parameters: NEPParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Universal repulsion of Ziegler, Biersack and Littmark, switched off between two radii.

    Returns:
        Energy of each ordered pair (half a bond's), its first and second derivative by the distance; each (P,).
    """
    coulomb = 14.399645  # e^2 / (4 pi eps0) in eV angstrom
    r = pairs.distance
    z_i, z_j = z[pairs.centre], z[pairs.neighbour]
    inverse = (z_i**0.23 + z_j**0.23) * 2.134563  # 1 / screening length
    strength = 0.5 * coulomb * z_i * z_j
    phi = dphi = d2phi = torch.zeros_like(r)
    for weight, rate in ((0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162)):
        k = rate * inverse
        term = weight * torch.exp(-k * r)
        phi, dphi, d2phi = phi + term, dphi - k * term, d2phi + k**2 * term
    value = strength * phi / r
    first = strength * (dphi / r - phi / r**2)
    second = strength * (d2phi / r - 2.0 * dphi / r**2 + 2.0 * phi / r**3)
    width = parameters.zbl_outer - parameters.zbl_inner
    angle = math.pi * ((r - parameters.zbl_inner) / width).clamp(0.0, 1.0)
    inside = (r > parameters.zbl_inner).to(r.dtype)
    fc = 0.5 * torch.cos(angle) + 0.5
    dfc = -0.5 * math.pi / width * torch.sin(angle)
    d2fc = -0.5 * (math.pi / width) ** 2 * torch.cos(angle) * inside
    return value * fc, first * fc + value * dfc, second * fc + 2.0 * first * dfc + value * d2fc
