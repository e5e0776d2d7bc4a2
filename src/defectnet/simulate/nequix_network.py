"""The Nequix network in torch: the package's weights, evaluated a few times faster than by the package on a CPU.

Nequix (Koker et al., arXiv 2508.16067) is an equivariant message passing network of the NequIP kind (Batzner et al.,
Nat. Commun. 13, 2453 (2022)). Here a message is a small matrix product for each edge, from the 2 l + 1 components of
the sender's features to all components that they couple to, for all channels at once; edges are taken a chunk at a
time, forward and backward, so that what lies between stays in the processor's cache.

How the package normalises and orders its tensors is not written again: each of its linear maps is read off by applying
it to unit vectors.

Shape letters: N atoms, E edges, S species, U channels, M components (2 l + 1, or those of several l side by side).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot, silu

from defectnet.errors import SimulationError

CHUNK = 128
"""Edges at a time on a CPU: their messages fit into its cache."""

CHUNK_DEVICE = 1 << 15
"""The same on an accelerator."""


@dataclass(frozen=True)
class Coupling:
    """How features of one l become messages.

    Attributes:
        degree: l of the features.
        channels: U.
        product: (Y, M (2 l + 1)) from spherical harmonics to the matrix of each edge, all targets side by side.
        targets: l of each target, ascending, in the order of its components.
        weights: (hidden, targets U) last layer of the radial network.
        owner: (M,) target of each component.
    """

    degree: int
    channels: int
    product: Tensor
    targets: tuple[int, ...]
    weights: Tensor
    owner: Tensor


@dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
        before, after, skip: For each l, (U, U') matrices of the linear maps; `skip` is (S, U, U') if each species has
            its own.
        radial: Layers of the radial network but the last.
        couplings: One for each l of the features.
        norm: (U,) weights of each l in the normalisation; None without one.
        scalars: Channels of l = 0 that are features; the others are gates.
        gated: (l, channels) of the features that are gated.
        scale, gate_scale: Factors of the activations.
    """

    before: dict[int, Tensor]
    after: dict[int, Tensor]
    skip: dict[int, Tensor]
    radial: tuple[Tensor, ...]
    couplings: tuple[Coupling, ...]
    norm: dict[int, Tensor] | None
    scalars: int
    gated: tuple[tuple[int, int], ...]
    scale: float
    gate_scale: float


class NequixNetwork:
    """Energies of atoms and their derivatives by the edges.

    Args:
        model: A `nequix.model.Nequix`, as `nequix.model.load_model` returns it.
        neighbours: Mean number of neighbours that messages are divided by.
        device: Where it is evaluated.
        dtype: Precision.

    Raises:
        SimulationError: The network has features of both parities for one l.
    """

    def __init__(
        self, model: Any, neighbours: float, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.cutoff, self.power = float(model.cutoff), float(model.radial_polynomial_p)
        self.functions, self.species, self.l_max = int(model.radial_basis_size), int(model.n_species), int(model.lmax)
        self.root_neighbours = math.sqrt(neighbours)
        self.chunk = CHUNK if self.device.type == "cpu" else CHUNK_DEVICE
        reader = _Reader(self.l_max, self._tensor)
        self.harmonics = reader.harmonics()
        self.layers = tuple(reader.layer(layer) for layer in model.layers)
        self.readout = reader.linear(model.readout, model.readout.irreps_in)[0][:, 0]
        self.scale, self.shift = float(model.scale), float(model.shift)
        self.atom_energies = np.asarray(model.atom_energies, dtype=np.float64)

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64), dtype=self.dtype, device=self.device)

    def evaluate(
        self, vector: Tensor, species: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[NDArray[np.float64], Tensor]:
        """Compute energies and their gradient.

        Args:
            vector: (E, 3) from the receiver to the sender, angstrom.
            species: (N,) long.
            sender: (E,) long, whose features each message carries.
            receiver: (E,) long, where it arrives.

        Returns:
            (N,) energies of the atoms in eV, in double precision; and (E, 3) derivatives of their sum by `vector`.
        """
        vector = vector.detach().to(self.device, self.dtype).requires_grad_()
        species, sender, receiver = (index.to(self.device) for index in (species, sender, receiver))
        energies = self._energies(vector, species, sender, receiver)
        (gradient,) = torch.autograd.grad(energies.sum(), vector)
        kinds = species.cpu().numpy()
        network = energies.detach().cpu().numpy().astype(np.float64)
        # In double precision here: these sums are thousands of times what changes along a relaxation.
        return network * self.scale + self.shift + self.atom_energies[kinds], gradient * self.scale

    def _energies(self, vector: Tensor, species: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        distance = vector.norm(dim=1, keepdim=True)
        angular = _monomials(vector / distance, self.l_max) @ self.harmonics
        radial = self._radial_basis(distance)
        features = {0: one_hot(species, self.species).to(self.dtype)[:, None]}
        for layer in self.layers:
            features = self._convolve(layer, features, species, angular, radial, sender, receiver)
        return features[0][:, 0] @ self.readout

    def _radial_basis(self, distance: Tensor) -> Tensor:
        """Return (E, functions): Bessel functions times a polynomial cut-off (DimeNet, arXiv 2003.03123, Eq. 8)."""
        wave = torch.arange(1, self.functions + 1, dtype=self.dtype, device=self.device) * (math.pi / self.cutoff)
        x, p = distance / self.cutoff, self.power
        inner = 1.0 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        return (2.0 / self.cutoff) * torch.sin(wave * distance) / distance * torch.where(x < 1.0, inner, 0.0)

    def _convolve(
        self,
        layer: Layer,
        features: Mapping[int, Tensor],
        species: Tensor,
        angular: Tensor,
        radial: Tensor,
        sender: Tensor,
        receiver: Tensor,
    ) -> dict[int, Tensor]:
        """Return the features of the next layer, (N, 2 l + 1, U) for each l."""
        messages = [features[c.degree] @ layer.before[c.degree] for c in layer.couplings]
        arrived: tuple[Tensor, ...] = _Messages.apply(  # type: ignore[no-untyped-call]
            layer, self.chunk, sender, receiver, angular, radial, *messages
        )
        parts: dict[int, list[Tensor]] = {}
        for coupling, total in zip(layer.couplings, arrived, strict=True):
            at = 0
            for degree in coupling.targets:
                parts.setdefault(degree, []).append(total[:, at : at + 2 * degree + 1])
                at += 2 * degree + 1
        out = {}
        for degree, found in parts.items():
            out[degree] = (torch.cat(found, dim=2) / self.root_neighbours) @ layer.after[degree]
            if degree in layer.skip and degree in features:
                matrix = layer.skip[degree]
                out[degree] = out[degree] + features[degree] @ (matrix[species] if matrix.dim() == 3 else matrix)
        if layer.norm is not None:
            power = sum(x.square().sum(2).mean(1) / (x.shape[1] * len(out)) for x in out.values())
            factor = (torch.as_tensor(power) + 1e-12).rsqrt()[:, None, None]
            out = {degree: x * layer.norm[degree] * factor for degree, x in out.items()}
        gates = silu(out[0][..., layer.scalars :]) * layer.gate_scale
        gated = {0: silu(out[0][..., : layer.scalars]) * layer.scale}
        at = 0
        for degree, channels in layer.gated:
            gated[degree] = out[degree] * gates[..., at : at + channels]
            at += channels
        return gated


def _monomials(unit: Tensor, l_max: int) -> Tensor:
    """Return all monomials of the components of (P, 3) vectors up to a degree, (P, C); autograd can follow."""
    components = unit.unbind(1)
    out = [torch.ones_like(components[0])]
    for degree in range(1, l_max + 1):
        for axes in combinations_with_replacement(range(3), degree):
            product = components[axes[0]]
            for axis in axes[1:]:
                product = product * components[axis]
            out.append(product)
    return torch.stack(out, dim=1)


def _edge_messages(layer: Layer, angular: Tensor, radial: Tensor, *sent: Tensor) -> list[Tensor]:
    """Return the (E, M, U) messages of each coupling from (E, 2 l + 1, U) features of the senders."""
    hidden = radial
    for matrix in layer.radial:
        hidden = silu(hidden @ matrix)
    out = []
    for coupling, features in zip(layer.couplings, sent, strict=True):
        edges, components, channels = features.shape
        matrix = (angular @ coupling.product).view(edges, -1, components)
        moved = matrix * features if components == 1 else torch.bmm(matrix, features)
        weights = (hidden @ coupling.weights).view(edges, len(coupling.targets), channels)
        out.append(moved * weights.index_select(1, coupling.owner))
    return out


class _Messages(torch.autograd.Function):
    """Messages summed at their receivers. Nothing of an edge is kept for the way back: it is computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        chunk: int,
        sender: Tensor,
        receiver: Tensor,
        angular: Tensor,
        radial: Tensor,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.layer, ctx.chunk = layer, chunk
        ctx.save_for_backward(sender, receiver, angular, radial, *features)
        atoms = len(features[0])
        totals = tuple(angular.new_zeros(atoms, len(c.owner), c.channels) for c in layer.couplings)
        for first in range(0, len(sender), chunk):
            edges = slice(first, first + chunk)
            sent = (x.index_select(0, sender[edges]) for x in features)
            for total, part in zip(totals, _edge_messages(layer, angular[edges], radial[edges], *sent), strict=True):
                total.index_add_(0, receiver[edges], part)
        return totals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sender, receiver, angular, radial, *features = ctx.saved_tensors
        by_angular, by_radial = torch.empty_like(angular), torch.empty_like(radial)
        by_features = [torch.zeros_like(x) for x in features]
        for first in range(0, len(sender), ctx.chunk):
            edges = slice(first, first + ctx.chunk)
            sent = [x.index_select(0, sender[edges]) for x in features]
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in (angular[edges], radial[edges], *sent)]
                messages = _edge_messages(ctx.layer, *inputs)
                arriving = [x.index_select(0, receiver[edges]) for x in gradients]
                found = torch.autograd.grad(messages, inputs, arriving)
            by_angular[edges], by_radial[edges] = found[:2]
            for total, part in zip(by_features, found[2:], strict=True):
                total.index_add_(0, sender[edges], part)
        return None, None, None, None, by_angular, by_radial, *by_features


class _Reader:
    """Reads the package's modules.

    Args:
        l_max: Largest l of the spherical harmonics.
        tensor: Makes a tensor of an array.
    """

    def __init__(self, l_max: int, tensor: Callable[[Any], Tensor]) -> None:
        import e3nn_jax  # type: ignore[import-untyped,import-not-found,unused-ignore]

        self.e3nn, self.l_max, self.tensor = e3nn_jax, l_max, tensor

    def harmonics(self) -> Tensor:
        """Return (monomials, spherical harmonics), from the package's harmonics at more directions than monomials."""
        directions = np.random.default_rng(0).normal(size=(400, 3))
        directions /= np.linalg.norm(directions, axis=1)[:, None]
        values = self.e3nn.spherical_harmonics(
            self.e3nn.s2_irreps(self.l_max), directions, normalize=True, normalization="component"
        )
        table = _monomials(torch.from_numpy(directions), self.l_max).numpy()
        # On the sphere some monomials depend on others; the smallest solution is as good as any.
        return self.tensor(np.linalg.lstsq(table, np.asarray(values.array, dtype=np.float64), rcond=None)[0])

    def linear(self, call: Callable[[Any], Any], irreps: Any) -> dict[int, Tensor]:
        """Return for each l the (U, U') matrix of an equivariant linear map, from what it makes of unit vectors."""
        irreps = self._regrouped(irreps)
        matrices = {}
        for (channels, kind), part in zip(irreps, irreps.slices(), strict=True):
            units = np.zeros((channels, irreps.dim), dtype=np.float32)
            units[np.arange(channels), part.start + kind.dim * np.arange(channels)] = 1.0
            out = call(self.e3nn.IrrepsArray(irreps, units))
            for (into, target), place in zip(out.irreps, out.irreps.slices(), strict=True):
                if target == kind:
                    values = np.asarray(out.array[:, place]).reshape(channels, into, kind.dim)
                    matrices[int(kind.l)] = self.tensor(values[:, :, 0])
        return matrices

    def layer(self, layer: Any) -> Layer:
        """Read a convolution."""
        irreps = self._regrouped(layer.linear_1.irreps_in)
        hidden = self._regrouped(layer.output_irreps)
        *radial, last = (self.tensor(part.weights) for part in layer.radial_mlp.layers)
        couplings = self._couplings(irreps, hidden, last)
        if layer.index_weights:
            number = int(layer.skip.num_indexed_weights)
            each = [self.linear(partial(_skip_of, layer.skip, kind), irreps) for kind in range(number)]
            skip = {degree: torch.stack([matrices[degree] for matrices in each]) for degree in each[0]}
        else:
            skip = self.linear(layer.skip, irreps)
        norm = None
        if layer.layer_norm is not None:
            pairs = zip(layer.layer_norm.irreps, layer.layer_norm.affine_weight, strict=True)
            norm = {int(kind.l): self.tensor(weight) for (_, kind), weight in pairs}
        scale, gate_scale = self._activations()
        return Layer(
            before=self.linear(layer.linear_1, irreps),
            after=self.linear(layer.linear_2, layer.linear_2.irreps_in),
            skip=skip,
            radial=tuple(radial),
            couplings=couplings,
            norm=norm,
            scalars=hidden.count("0e"),
            gated=tuple((int(kind.l), int(channels)) for channels, kind in hidden if kind.l > 0),
            scale=scale,
            gate_scale=gate_scale,
        )

    def _couplings(self, irreps: Any, hidden: Any, last: Tensor) -> tuple[Coupling, ...]:
        """Return the couplings, in the order of the paths, in which messages of one l lie side by side."""
        harmonics = self.e3nn.s2_irreps(self.l_max)
        paths = [
            (source, l2, target)
            for source, (_, kind) in enumerate(irreps)
            for l2, (_, harmonic) in enumerate(harmonics)
            for target in kind * harmonic
            if target in hidden
        ]
        sizes = [int(irreps[source].mul) for source, _, _ in paths]
        ordered = sorted(range(len(paths)), key=lambda k: paths[k][2].l)  # stable
        column = dict(zip(ordered, np.cumsum([0] + [sizes[k] for k in ordered]).tolist(), strict=False))
        out = []
        for source, (channels, kind) in enumerate(irreps):
            mine = [k for k in ordered if paths[k][0] == source]
            targets = tuple(int(paths[k][2].l) for k in mine)
            columns = [column[k] for k in mine]
            blocks = [
                self._coefficients(int(kind.l), paths[k][1], target) for k, target in zip(mine, targets, strict=True)
            ]
            product = np.concatenate(blocks, axis=1)  # (Y, M, 2 l + 1)
            owner = [i for i, target in enumerate(targets) for _ in range(2 * target + 1)]
            out.append(
                Coupling(
                    degree=int(kind.l),
                    channels=int(channels),
                    product=self.tensor(product.reshape(len(product), -1)),
                    targets=targets,
                    weights=torch.cat([last[:, first : first + int(channels)] for first in columns], dim=1),
                    owner=torch.tensor(owner, device=last.device),
                )
            )
        return tuple(out)

    def _coefficients(self, l1: int, l2: int, l3: int) -> NDArray[np.float64]:
        """Return (harmonics, 2 l3 + 1, 2 l1 + 1) coupling coefficients, zero but for the harmonics of `l2`."""
        values = np.asarray(self.e3nn.clebsch_gordan(l1, l2, l3), dtype=np.float64) * math.sqrt(2 * l3 + 1)
        out = np.zeros(((self.l_max + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1))
        out[l2**2 : (l2 + 1) ** 2] = values.transpose(1, 2, 0)
        return out

    def _activations(self) -> tuple[float, float]:
        """Return the factors that the package's gate gives to the activations of scalars and of gates."""
        import jax

        one = self.e3nn.IrrepsArray("2x0e+1x1o", np.array([[1.0, 1.0, 1.0, 0.0, 0.0]], dtype=np.float32))
        out = self.e3nn.gate(one, even_act=jax.nn.silu, odd_act=jax.nn.tanh, even_gate_act=jax.nn.silu).array[0]
        plain = 1.0 / (1.0 + math.exp(-1.0))
        return float(out[0]) / plain, float(out[1]) / plain

    def _regrouped(self, irreps: Any) -> Any:
        regrouped = self.e3nn.Irreps(irreps).regroup()
        degrees: Sequence[int] = [int(kind.l) for _, kind in regrouped]
        if len(set(degrees)) < len(degrees) or any(kind.p != (-1) ** kind.l for _, kind in regrouped):
            raise SimulationError(
                f"the network has features {irreps}", fix="Only networks whose features have the parity of their l work"
            )
        return regrouped


def _skip_of(skip: Any, kind: int, features: Any) -> Any:
    """Apply the skip connection of one species."""
    return skip(np.full(len(features.array), kind), features)
