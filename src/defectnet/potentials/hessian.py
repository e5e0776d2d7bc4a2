"""Exact force constants of a NEP, without finite differences.

With `E = sum_i U_i(A_i)` and `A_i = sum_j phi(r_ij)` the second derivative has two parts:

- `J_i^T (d2U_i / dA dA) J_i`, where J_i holds dphi/dr of every neighbour, and minus their sum for the centre;
- pair terms `sum_a (dU_i/dA_a) d2phi_a/dr dr`, one 3 x 3 block a pair, plus the repulsive pair potential.

Both are batched matrix products over atoms. Every atom keeps its lattice shift, so that each pair of atoms, image by
image, gets its own block: they hold at any wave vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from defectnet.potentials.force_constants import ForceConstants, total
from defectnet.potentials.harmonics import VOIGT
from defectnet.potentials.neighbours import Crystal, Pairs
from defectnet.potentials.nep import NEP, QUARTIC_WEIGHT, Sums, zbl

CHUNK_BYTES = 256 * 2**20
"""Upper bound of one temporary block of the product over atoms."""

LARGEST_TABLE = 60_000_000
"""Most entries of a table of all pairs of atoms and images; beyond, pairs are sorted."""


def force_constants(model: NEP, crystal: Crystal, dtype: torch.dtype = torch.float64) -> ForceConstants:
    """Compute the force constants of a crystal.

    Args:
        model: The potential.
        crystal: N atoms.
        dtype: In which the products are made; half the precision takes half the time or less.
    """
    types, pairs = model.types(crystal), model.pairs(crystal)
    sums = model.sums(types, pairs)
    _, by_descriptor, bend = model.atomic_energies(types, model.descriptors(sums))
    f_radial, f_angular = model.sum_gradient(sums, by_descriptor)
    atoms = len(types)
    parts = [
        _pair_terms(atoms, sums.pairs_radial, _radial_second(sums, f_radial)),
        _pair_terms(atoms, sums.pairs_angular, _angular_second(model, sums, f_angular)),
    ]
    if model.parameters.zbl_outer > 0:
        close = pairs.within(model.parameters.zbl_outer)
        parts.append(_pair_terms(atoms, close, _zbl_second(model, types, close)))
    jacobians = _Jacobians(
        radial=_radial_first(sums).to(dtype),
        angular=_angular_first(model, sums).to(dtype),
        pairs_radial=sums.pairs_radial,
        pairs_angular=sums.pairs_angular,
        slots=_Slots.of(pairs, atoms),
    )
    bent = _curvature(model, sums, types, by_descriptor, bend).to(dtype)
    parts.append(_many_body_terms(jacobians, bent))
    return total([part.to(dtype) for part in parts])


def _pair_terms(atoms: int, pairs: Pairs, block: Tensor) -> ForceConstants:
    """Return the force constants of pair vectors with second derivatives (P, 3, 3)."""
    i, j, shift = pairs.centre, pairs.neighbour, pairs.shift
    home = torch.zeros_like(shift)
    return ForceConstants(
        atoms,
        torch.cat([i, j, i, j]),
        torch.cat([i, j, j, i]),
        torch.cat([home, home, shift, -shift]),
        torch.cat([block, block, -block, -block]),
    )


def _many_body_terms(jacobians: _Jacobians, curvature: Tensor) -> ForceConstants:
    """Return the force constants J^T H J of (N, S, S) second derivatives of the atomic energies by the sums."""
    slots = jacobians.slots
    atoms, width = slots.atom.shape
    both = slots.used[:, :, None] & slots.used[:, None, :]
    found, place = slots.ends(both)
    block = curvature.new_zeros(len(found), 3, 3)
    counts = both.flatten(1).sum(1)
    ends_of = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)]).tolist()
    for first, last in _chunks(atoms, block.element_size() * 9 * width**2):
        jacobian = jacobians.of(first, last)
        local = (jacobian @ curvature[first:last]) @ jacobian.transpose(1, 2)
        local = local.view(last - first, width, 3, width, 3).transpose(2, 3)[both[first:last]]
        block.index_add_(0, place[ends_of[first] : ends_of[last]], local)
    return ForceConstants(atoms, found[:, 0], found[:, 1], found[:, 2:], block)


def _chunks(atoms: int, bytes_each: int) -> Iterator[tuple[int, int]]:
    """Yield first and last of as many centres as `CHUNK_BYTES` hold."""
    step = max(1, CHUNK_BYTES // bytes_each)
    for first in range(0, atoms, step):
        yield first, min(first + step, atoms)


@dataclass(frozen=True)
class _Jacobians:
    """Derivatives of the additive sums by the atoms that they depend on.

    Attributes:
        radial, angular: (P, 3, n) derivatives by the pair vectors, at the pairs of the two cut-offs.
        pairs_radial, pairs_angular: Those pairs.
        slots: Atoms of each centre.
    """

    radial: Tensor
    angular: Tensor
    pairs_radial: Pairs
    pairs_angular: Pairs
    slots: _Slots

    def of(self, first: int, last: int) -> Tensor:
        """Return (last - first, 3 width, S): derivatives by the atoms in the slots of each centre."""
        n_radial, width = self.radial.shape[2], self.slots.width
        out = self.radial.new_zeros((last - first) * width, 3, n_radial + self.angular.shape[2])
        for pairs, values, target in (
            (self.pairs_radial, self.radial, out[:, :, :n_radial]),
            (self.pairs_angular, self.angular, out[:, :, n_radial:]),
        ):
            bounds = torch.tensor([first, last], device=pairs.centre.device)
            low, high = torch.searchsorted(pairs.centre, bounds).tolist()
            row = (pairs.centre[low:high] - first) * width
            target.index_add_(0, row + self.slots.place(pairs, low, high), values[low:high])
        out = out.view(last - first, width, 3, -1)
        # What moves with a neighbour, a centre undoes; its own image, which moves with it, counts for nothing.
        out[torch.arange(last - first, device=out.device), self.slots.own[first:last]] -= out.sum(1)
        return out.view(last - first, 3 * width, -1)


@dataclass(frozen=True)
class _Slots:
    """The atoms that each centre's sums depend on; w slots at most.

    Attributes:
        atom: (N, w) index of the atom; shift: (N, w, 3) its lattice shift; used: (N, w) whether the slot is.
        own: (N,) slot of the centre itself.
        keys: Sorted keys of the used slots; base: (N,) number of used slots before those of each centre.
        reach: (3,) largest lattice shift, and spans: (5,) multipliers of centre, neighbour and shift in a key.
    """

    atom: Tensor
    shift: Tensor
    used: Tensor
    own: Tensor
    keys: Tensor
    base: Tensor
    reach: Tensor
    spans: Tensor

    @property
    def width(self) -> int:
        return self.atom.shape[1]

    @classmethod
    def of(cls, pairs: Pairs, atoms: int) -> _Slots:
        device = pairs.centre.device
        shift = pairs.shift
        reach = torch.cat([shift.abs(), shift.new_zeros(1, 3)]).amax(0)
        span = 2 * reach + 1
        images = span.prod()
        spans = torch.stack([atoms * images, images, span[1] * span[2], span[2], torch.ones_like(images)])
        centre = torch.arange(atoms, device=device)
        own_keys = _keys(centre, centre, shift.new_zeros(atoms, 3), reach, spans)
        keys = torch.unique(torch.cat([_keys(pairs.centre, pairs.neighbour, shift, reach, spans), own_keys]))
        owner = keys // spans[0]
        counts = torch.bincount(owner, minlength=atoms)
        base = torch.cumsum(counts, 0) - counts
        place = torch.arange(len(keys), device=device) - base[owner]
        width = int(counts.max())
        atom = shift.new_zeros(atoms, width)
        atom[owner, place] = keys % spans[0] // spans[1]
        shifts = shift.new_zeros(atoms, width, 3)
        image = keys % spans[1]
        shifts[owner, place] = (
            torch.stack([image // spans[2], image % spans[2] // spans[3], image % spans[3]], 1) - reach
        )
        used = torch.zeros(atoms, width, dtype=torch.bool, device=device)
        used[owner, place] = True
        own = torch.searchsorted(keys, own_keys) - base
        return cls(atom, shifts, used, own, keys, base, reach, spans)

    def ends(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pairs of atoms that centres have in common, image by image.

        Args:
            both: (N, w, w) whether both slots of a pair are used; T of them are.

        Returns:
            (B, 5) first atom, second atom and shift of the second; and (T,) where each pair of slots stands there.
        """
        reach = 2 * self.shift.abs().amax((0, 1))
        span = 2 * reach + 1
        factors = torch.stack([span[1] * span[2], span[2], torch.ones_like(span[0])])
        images, atoms = int(span.prod()), len(self.atom)
        along = (self.shift * factors).sum(2)
        first = self.atom * atoms * images - along
        second = self.atom * images + along + (reach * factors).sum()
        keys = (first[:, :, None] + second[:, None, :])[both]
        if atoms * atoms * images < LARGEST_TABLE:  # several times as fast as sorting
            there = torch.zeros(atoms * atoms * images, dtype=torch.int32, device=keys.device)
            there[keys] = 1
            unique = there.nonzero()[:, 0]
            place = (torch.cumsum(there, 0, dtype=torch.int32) - 1)[keys].long()
        else:
            unique, place = torch.unique(keys, return_inverse=True)
        pair, image = unique // images, unique % images
        shift = image[:, None] // factors % span - reach
        return torch.cat([(pair // atoms)[:, None], (pair % atoms)[:, None], shift], 1), place

    def place(self, pairs: Pairs, low: int, high: int) -> Tensor:
        """Return the slot of each pair's neighbour among those of its centre."""
        centre, shift = pairs.centre[low:high], pairs.shift[low:high]
        keys = _keys(centre, pairs.neighbour[low:high], shift, self.reach, self.spans)
        return torch.searchsorted(self.keys, keys) - self.base[centre]


def _keys(centre: Tensor, neighbour: Tensor, shift: Tensor, reach: Tensor, spans: Tensor) -> Tensor:
    """Number (centre, neighbour, shift) so that the order of the numbers is that of the triples."""
    return centre * spans[0] + neighbour * spans[1] + ((shift + reach) * spans[2:]).sum(1)


def _curvature(model: NEP, sums: Sums, types: Tensor, by_descriptor: Tensor, bend: Tensor) -> Tensor:
    """Second derivative of each atomic energy by its additive sums, (N, S, S)."""
    w0 = model.w0[types]
    second = (w0 * bend[:, :, None]).transpose(1, 2) @ w0  # (N, Q, Q)
    jacobian = _descriptor_jacobian(model, sums)
    out = jacobian.transpose(1, 2) @ (second @ jacobian)
    n_r, n_a, h = model.n_radial, model.n_angular, model.n_harmonics
    rest = by_descriptor[:, n_r:].reshape(len(by_descriptor), -1, n_a)
    l_max = model.parameters.l_max
    direct = torch.diag_embed(2.0 * rest[:, :l_max].transpose(1, 2) @ model.members.T)  # (N, n, H, H)
    following = l_max
    if model.parameters.with_4body:
        cubic = 6.0 * torch.einsum("abc,inc->inab", model.cubic, sums.angular[:, :, 3:8])
        direct[:, :, 3:8, 3:8] += rest[:, following, :, None, None] * cubic
        following += 1
    if model.parameters.with_5body:
        dipole = sums.angular[:, :, :3]
        square = (dipole**2).sum(2)[:, :, None, None]
        eye = torch.eye(3, dtype=torch.float64, device=model.device)
        quartic = QUARTIC_WEIGHT * (4.0 * square * eye + 8.0 * dipole[:, :, :, None] * dipole[:, :, None, :])
        direct[:, :, :3, :3] += rest[:, following, :, None, None] * quartic
    for n in range(n_a):
        block = slice(n_r + n * h, n_r + (n + 1) * h)
        out[:, block, block] += direct[:, n]
    return out


def _descriptor_jacobian(model: NEP, sums: Sums) -> Tensor:
    """Derivative of the invariants by the additive sums, (N, Q, S)."""
    n_r, n_a, h = model.n_radial, model.n_angular, model.n_harmonics
    l_max = model.parameters.l_max
    atoms = len(sums.radial)
    invariants = l_max + model.parameters.with_4body + model.parameters.with_5body
    rows = torch.zeros(atoms, invariants, n_a, h, dtype=torch.float64, device=model.device)
    rows[:, :l_max] = 2.0 * (model.members.T[:, None] * sums.angular[:, None])
    following = l_max
    if model.parameters.with_4body:
        quintet = sums.angular[:, :, 3:8]
        rows[:, following, :, 3:8] = 3.0 * torch.einsum("abc,inb,inc->ina", model.cubic, quintet, quintet)
        following += 1
    if model.parameters.with_5body:
        dipole = sums.angular[:, :, :3]
        rows[:, following, :, :3] = 4.0 * QUARTIC_WEIGHT * (dipole**2).sum(2, keepdim=True) * dipole
    angular = torch.diag_embed(rows.permute(0, 1, 3, 2)).permute(0, 1, 3, 4, 2)  # (N, invariant, n, n', H)
    out = torch.zeros(atoms, n_r + invariants * n_a, n_r + n_a * h, dtype=torch.float64, device=model.device)
    out[:, :n_r, :n_r] = torch.eye(n_r, dtype=torch.float64, device=model.device)
    out[:, n_r:, n_r:] = angular.reshape(atoms, invariants * n_a, n_a * h)
    return out


def _radial_first(sums: Sums) -> Tensor:
    pairs = sums.pairs_radial
    return (pairs.vector / pairs.distance[:, None])[:, :, None] * sums.g_radial.first[:, None, :]


def _angular_first(model: NEP, sums: Sums) -> Tensor:
    """dphi/dr = (g' - l g / r) u Y + (g / r) grad Y, at unit vectors; (P, 3, n H)."""
    pairs, g = sums.pairs_angular, sums.g_angular
    unit = pairs.vector / pairs.distance[:, None]
    value = g.value / pairs.distance[:, None]  # (P, n)
    slope = g.first[:, :, None] - value[:, :, None] * model.degree  # (P, n, H)
    along = unit[:, :, None, None] * (slope * sums.harmonics[:, None, :])[:, None]
    across = (sums.monomials @ model.tables.gradient).view(-1, 3, 1, model.n_harmonics)
    return (along + value[:, None, :, None] * across).flatten(2)


def _radial_second(sums: Sums, f_radial: Tensor) -> Tensor:
    pairs, g = sums.pairs_radial, sums.g_radial
    weight = f_radial[pairs.centre]
    return _pair_block(pairs, (weight * g.first).sum(1), (weight * g.second).sum(1))


def _zbl_second(model: NEP, types: Tensor, pairs: Pairs) -> Tensor:
    _, first, second = zbl(pairs, model.atomic_numbers(types), model.parameters)
    return _pair_block(pairs, first, second)


def _pair_block(pairs: Pairs, first: Tensor, second: Tensor) -> Tensor:
    """Second derivative of a function of the distance by the pair vector, (P, 3, 3)."""
    unit = pairs.vector / pairs.distance[:, None]
    outer = unit[:, :, None] * unit[:, None, :]
    eye = torch.eye(3, dtype=unit.dtype, device=unit.device)
    across = (first / pairs.distance)[:, None, None]
    return second[:, None, None] * outer + across * (eye - outer)


def _angular_second(model: NEP, sums: Sums, f_angular: Tensor) -> Tensor:
    """Second derivative of sum_a F_a phi_a by the pair vector, (P, 3, 3).

    With phi = g(r) r^-l Y(r) and Y homogeneous of degree l, all parts are taken at the unit vector u:
    (h'' u u + (h'/r)(1 - u u)) Y + (h'/r)(u grad Y + grad Y u) + (h / r^2) grad grad Y, h-parts times r^l.
    """
    pairs, g, degree = sums.pairs_angular, sums.g_angular, model.degree
    r = pairs.distance[:, None]
    weight = f_angular[pairs.centre]
    value, slope, bend = (torch.einsum("pnh,pn->ph", weight, part) for part in (g.value, g.first, g.second))
    h1 = slope / r - degree * value / r**2  # h' / r
    h2 = bend - 2.0 * degree * slope / r + degree * (degree + 1.0) * value / r**2  # h''
    unit = pairs.vector / r
    outer = unit[:, :, None] * unit[:, None, :]
    eye = torch.eye(3, dtype=torch.float64, device=model.device)
    along, across = (h2 * sums.harmonics).sum(1), (h1 * sums.harmonics).sum(1)
    gradient = (sums.monomials @ model.tables.gradient).view(-1, 3, model.n_harmonics)
    mixed = unit[:, :, None] * (h1[:, None, :] * gradient).sum(2)[:, None, :]
    second = (sums.monomials @ model.tables.second).view(-1, 6, model.n_harmonics)
    curved = ((value / r**2)[:, None, :] * second).sum(2)
    out = (along - across)[:, None, None] * outer + across[:, None, None] * eye + mixed + mixed.transpose(1, 2)
    for k, (a, b) in enumerate(VOIGT):
        out[:, a, b] += curved[:, k]
        if a != b:
            out[:, b, a] += curved[:, k]
    return out
