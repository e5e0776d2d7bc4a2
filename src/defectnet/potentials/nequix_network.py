"""The Nequix network in torch: the package's weights, evaluated a few times faster than by the package on a CPU.

Nequix (Koker et al., arXiv 2508.16067) is an equivariant message passing network of the NequIP kind (Batzner et al.,
Nat. Commun. 13, 2453 (2022)). Here a message is a small matrix product for each edge, from the 2 l + 1 components of
the sender's features to all components that they couple to, for all channels at once; edges are taken a chunk at a
time, forward and backward, so that what lies between stays in the processor's cache. What the radial networks make of
an edge's length, most of the work, is computed once with its derivative, and can be kept from call to call for the
edges that have not changed: in a finite displacement few have.

How the package normalises and orders its tensors is not written again: each of its linear maps is read off by applying
it to unit vectors.

Shape letters: N atoms, E edges, S species, U channels, M components (2 l + 1, or those of several l side by side).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations_with_replacement, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot, silu

from defectnet.errors import SimulationError

try:
    from defectnet.potentials import nequix_kernels
except ImportError:  # numba
    nequix_kernels = None  # type: ignore[assignment]

CHUNK = 128
"""Edges at a time on a CPU without compiled kernels: their messages fit into its cache."""

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
        columns: Where the weights of its targets, (targets U), stand among those of the layer.
    """

    degree: int
    channels: int
    product: Tensor
    targets: tuple[int, ...]
    columns: slice

    @cached_property
    def column(self) -> Tensor:
        """(M,) column at which the weights of each component begin."""
        owner = [target for target, degree in enumerate(self.targets) for _ in range(2 * degree + 1)]
        return torch.tensor([self.columns.start + self.channels * target for target in owner])

    @property
    def components(self) -> int:
        """M, of all targets together."""
        return sum(2 * degree + 1 for degree in self.targets)

    def alike(self, components: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the targets of each l: views (E, targets, 2 l + 1, U) of components and (E, targets, U) of weights."""
        edges = len(components)
        weights = weights[:, self.columns].view(edges, len(self.targets), self.channels)
        row = target = 0
        for degree, members in groupby(self.targets):
            count = len(list(members))
            rows = components[:, row : row + count * (2 * degree + 1)]
            yield rows.view(edges, count, 2 * degree + 1, -1), weights[:, target : target + count]
            row, target = row + count * (2 * degree + 1), target + count


@dataclass(frozen=True)
class Layer:
    """A convolution.

    Attributes:
        before, after, skip: For each l, (U, U') matrices of the linear maps; `skip` is (S, U, U') if each species has
            its own.
        radial: Layers of the radial network; the last one gives the weights of all couplings.
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


@dataclass(frozen=True)
class RadialWeights:
    """What the radial networks make of the lengths of edges.

    Attributes:
        values: (E, weights) of each layer.
        slopes: Their derivatives by the length, 1/angstrom.
    """

    values: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]

    @contextmanager
    def replaced(self, edges: Tensor, other: RadialWeights) -> Iterator[RadialWeights]:
        """Put other weights for some edges, (K,) long, while the context lasts."""
        mine = (*self.values, *self.slopes)
        before = [values[edges] for values in mine]
        try:
            for values, new in zip(mine, (*other.values, *other.slopes), strict=True):
                values[edges] = new
            yield self
        finally:
            for values, old in zip(mine, before, strict=True):
                values[edges] = old


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
        compiled = nequix_kernels is not None and self.device.type == "cpu"
        self.chunk = 0 if compiled else CHUNK if self.device.type == "cpu" else CHUNK_DEVICE
        reader = _Reader(self.l_max, self._tensor)
        self.harmonics = reader.harmonics()
        self.layers = tuple(reader.layer(layer) for layer in model.layers)
        self.readout = reader.linear(model.readout, model.readout.irreps_in)[0][:, 0]
        self.scale, self.shift = float(model.scale), float(model.shift)
        self.atom_energies = np.asarray(model.atom_energies, dtype=np.float64)

    def _tensor(self, values: Any) -> Tensor:
        return torch.tensor(np.asarray(values, dtype=np.float64), dtype=self.dtype, device=self.device)

    def evaluate(
        self,
        vector: Tensor,
        species: Tensor,
        sender: Tensor,
        receiver: Tensor,
        radial: RadialWeights | None = None,
    ) -> tuple[NDArray[np.float64], Tensor]:
        """Compute energies and their gradient.

        Args:
            vector: (E, 3) from the receiver to the sender, angstrom.
            species: (N,) long.
            sender: (E,) long, whose features each message carries.
            receiver: (E,) long, where it arrives.
            radial: What `radial_weights` gave for the lengths of `vector`, if that is known.

        Returns:
            (N,) energies of the atoms in eV, in double precision; and (E, 3) derivatives of their sum by `vector`.
        """
        vector = vector.detach().to(self.device, self.dtype).requires_grad_()
        species, sender, receiver = (index.to(self.device) for index in (species, sender, receiver))
        energies = self._energies(vector, species, sender, receiver, radial or self.radial_weights(vector.detach()))
        (gradient,) = torch.autograd.grad(energies.sum(), vector)
        kinds = species.cpu().numpy()
        network = energies.detach().cpu().numpy().astype(np.float64)
        # In double precision here: these sums are thousands of times what changes along a relaxation.
        return network * self.scale + self.shift + self.atom_energies[kinds], gradient * self.scale

    @torch.no_grad()
    def radial_weights(self, vector: Tensor) -> RadialWeights:
        """Compute what the radial networks make of the lengths of (E, 3) vectors."""
        distance = vector.to(self.device, self.dtype).norm(dim=1, keepdim=True)
        basis, slope = _with_slope(self._radial_basis, distance, torch.ones_like(distance))
        values, slopes = [], []
        for layer in self.layers:
            value, rise = basis, slope
            for matrix in layer.radial[:-1]:
                value, rise = _with_slope(silu, value @ matrix, rise @ matrix)
            values.append(value @ layer.radial[-1])
            slopes.append(rise @ layer.radial[-1])
        return RadialWeights(tuple(values), tuple(slopes))

    def _energies(
        self, vector: Tensor, species: Tensor, sender: Tensor, receiver: Tensor, radial: RadialWeights
    ) -> Tensor:
        distance = vector.norm(dim=1, keepdim=True)
        angular = _monomials(vector / distance, self.l_max) @ self.harmonics
        features = {0: one_hot(species, self.species).to(self.dtype)[:, None]}
        for layer, values, slopes in zip(self.layers, radial.values, radial.slopes, strict=True):
            sent = [features[c.degree] @ layer.before[c.degree] for c in layer.couplings]
            arrived: tuple[Tensor, ...] = _Messages.apply(  # type: ignore[no-untyped-call]
                layer.couplings, self.chunk, sender, receiver, values, slopes, distance, angular, *sent
            )
            features = self._update(layer, features, species, arrived)
        return features[0][:, 0] @ self.readout

    def _radial_basis(self, distance: Tensor) -> Tensor:
        """Return (E, functions): Bessel functions times a polynomial cut-off (DimeNet, arXiv 2003.03123, Eq. 8)."""
        wave = torch.arange(1, self.functions + 1, dtype=self.dtype, device=self.device) * (math.pi / self.cutoff)
        x, p = distance / self.cutoff, self.power
        inner = 1.0 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        return (2.0 / self.cutoff) * torch.sin(wave * distance) / distance * torch.where(x < 1.0, inner, 0.0)

    def _update(
        self, layer: Layer, features: Mapping[int, Tensor], species: Tensor, arrived: Sequence[Tensor]
    ) -> dict[int, Tensor]:
        """Return the features of the next layer, (N, 2 l + 1, U) for each l, from the messages that arrived."""
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


def _with_slope(function: Callable[[Tensor], Tensor], value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function and its derivative along `slope`."""
    outputs = torch.func.jvp(function, (value,), (slope,))
    return outputs[0], outputs[1]


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


class _Messages(torch.autograd.Function):
    """Messages summed at their receivers. Of an edge only its matrices are kept for the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        couplings: Sequence[Coupling],
        chunk: int,
        sender: Tensor,
        receiver: Tensor,
        values: Tensor,
        slopes: Tensor,
        distance: Tensor,
        angular: Tensor,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        """Sum messages.

        Args:
            ctx: Of torch.
            couplings: C of them.
            chunk: Edges at a time, where torch sums; 0 for the compiled kernels.
            sender: (E,) long.
            receiver: (E,) long.
            values: (E, weights) of `RadialWeights`.
            slopes: The same.
            distance: (E, 1), only to have a derivative by it.
            angular: (E, Y) spherical harmonics.
            features: C of (N, 2 l + 1, U), which the senders send.

        Returns:
            C of (N, M, U).
        """
        edges = _Edges(sender, receiver, values, slopes, chunk)
        matrices = [
            (angular @ coupling.product).view(len(sender), coupling.components, sent.shape[1])
            for coupling, sent in zip(couplings, features, strict=True)
        ]
        ctx.couplings, ctx.edges = couplings, edges
        ctx.save_for_backward(*matrices, *features)
        rows = zip(couplings, matrices, features, strict=True)
        return tuple(edges.send(coupling, matrix, sent.contiguous()) for coupling, matrix, sent in rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        matrices, features = ctx.saved_tensors[: len(gradients)], ctx.saved_tensors[len(gradients) :]
        by_distance, by_angular, by_features = torch.zeros(()), torch.zeros(()), []
        for coupling, matrix, sent, gradient in zip(ctx.couplings, matrices, features, gradients, strict=True):
            found = ctx.edges.send_back(coupling, matrix, sent.contiguous(), gradient.contiguous())
            by_features.append(found[0])
            by_angular = found[1].flatten(1) @ coupling.product.T + by_angular
            by_distance = found[2] + by_distance
        return None, None, None, None, None, None, by_distance[:, None], by_angular, *by_features


@dataclass(frozen=True)
class _Edges:
    """The edges of a layer: (E,) ends, and (E, weights) of `RadialWeights`; see `_Messages`."""

    sender: Tensor
    receiver: Tensor
    values: Tensor
    slopes: Tensor
    chunk: int

    def send(self, coupling: Coupling, matrix: Tensor, features: Tensor) -> Tensor:
        """Return the sums at the receivers, (N, M, U), with (E, M, 2 l + 1) matrices and (N, 2 l + 1, U) features."""
        total = features.new_zeros(len(features), coupling.components, coupling.channels)
        if not self.chunk:
            known = self._known(coupling, matrix, features)
            nequix_kernels.forward_kernel(matrix.shape[2], coupling.channels)(*known, total.numpy())
            return total
        for first in range(0, len(self.sender), self.chunk):
            edges = slice(first, first + self.chunk)
            message = _product(matrix[edges], features.index_select(0, self.sender[edges]))
            for part, weight in coupling.alike(message, self.values[edges]):
                part.mul_(weight[:, :, None])
            total.index_add_(0, self.receiver[edges], message)
        return total

    def send_back(
        self, coupling: Coupling, matrix: Tensor, features: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derivatives by features, matrices and (E,) lengths, from (N, M, U) derivatives by the sums."""
        by_features, by_matrix = torch.zeros_like(features), torch.zeros_like(matrix)
        by_distance = features.new_zeros(len(matrix))
        if not self.chunk:
            known = self._known(coupling, matrix, features)
            derivatives = (x.numpy() for x in (self.slopes, gradient, by_features, by_matrix, by_distance))
            nequix_kernels.backward_kernel(matrix.shape[2], coupling.channels)(*known, *derivatives)
            return by_features, by_matrix, by_distance
        for first in range(0, len(self.sender), self.chunk):
            edges = slice(first, first + self.chunk)
            sent = features.index_select(0, self.sender[edges])
            arriving = gradient.index_select(0, self.receiver[edges])
            for part, slope in coupling.alike(_product(matrix[edges], sent).mul_(arriving), self.slopes[edges]):
                by_distance[edges] += (part.sum(2) * slope).sum((1, 2))
            for part, weight in coupling.alike(arriving, self.values[edges]):
                part.mul_(weight[:, :, None])
            by_features.index_add_(0, self.sender[edges], torch.bmm(matrix[edges].mT, arriving))
            by_matrix[edges] = torch.bmm(arriving, sent.mT)
        return by_features, by_matrix, by_distance

    def _known(self, coupling: Coupling, matrix: Tensor, features: Tensor) -> tuple[NDArray[Any], ...]:
        tensors = (self.sender, self.receiver, matrix, coupling.column, features, self.values)
        return tuple(x.numpy() for x in tensors)


def _product(matrix: Tensor, features: Tensor) -> Tensor:
    return matrix * features if features.shape[1] == 1 else torch.bmm(matrix, features)


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
        couplings, order = self._couplings(irreps, hidden)
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
            radial=(*radial, last[:, order]),
            couplings=couplings,
            norm=norm,
            scalars=hidden.count("0e"),
            gated=tuple((int(kind.l), int(channels)) for channels, kind in hidden if kind.l > 0),
            scale=scale,
            gate_scale=gate_scale,
        )

    def _couplings(self, irreps: Any, hidden: Any) -> tuple[tuple[Coupling, ...], list[int]]:
        """Return the couplings, and the columns of the package's weights in their order."""
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
        out: list[Coupling] = []
        order: list[int] = []
        for source, (channels, kind) in enumerate(irreps):
            mine = [k for k in ordered if paths[k][0] == source]
            targets = tuple(int(paths[k][2].l) for k in mine)
            first = len(order)
            order += [column[k] + u for k in mine for u in range(int(channels))]
            blocks = [
                self._coefficients(int(kind.l), paths[k][1], target) for k, target in zip(mine, targets, strict=True)
            ]
            product = np.concatenate(blocks, axis=1)  # (Y, M, 2 l + 1)
            out.append(
                Coupling(
                    degree=int(kind.l),
                    channels=int(channels),
                    product=self.tensor(product.reshape(len(product), -1)),
                    targets=targets,
                    columns=slice(first, len(order)),
                )
            )
        return tuple(out), order

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
