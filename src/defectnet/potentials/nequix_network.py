"""The Nequix network in torch, evaluated a few times faster than by its package on a CPU.

Nequix (Koker et al., arXiv 2508.16067) is an equivariant message passing network of the NequIP kind (Batzner et al.,
Nat. Commun. 13, 2453 (2022)). Here a message is a small matrix product for each edge, from the 2 l + 1 components of
the sender's features to all components that they couple to, for all channels at once; edges are taken a chunk at a
time, forward and backward, so that what lies between stays in the processor's cache. What the radial networks make of
an edge's length, most of the work, is computed once with its derivative, and can be kept from call to call for the
edges that have not changed: in a finite displacement few have.

A network is a form and named tensors, see `NequixForm.shapes`; `convert_nequix` makes both from a file of the package.

Shape letters: N atoms, E edges, S species, U channels, M components (2 l + 1, or those of several l side by side).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot, silu

from defectnet.config import Settings
from defectnet.errors import ConfigError

try:
    from defectnet.potentials import nequix_kernels
except ImportError:  # numba
    nequix_kernels = None  # type: ignore[assignment]

CHUNK = 128
"""Edges at a time on a CPU without compiled kernels: their messages fit into its cache."""

CHUNK_DEVICE = 1 << 15
"""The same on an accelerator."""


@dataclass(frozen=True)
class NequixForm(Settings):
    """Settings of a network.

    Features of degree l have the parity of their l.

    Attributes:
        elements: Atomic numbers, ascending: S of them.
        cutoff: Angstrom.
        power: p of the polynomial cut-off.
        functions: Radial functions.
        radial_width: Neurons in a layer of the radial networks.
        radial_layers: Hidden layers of the radial networks.
        l_max: Largest l of the spherical harmonics.
        channels: U of the features of each l = 0, 1, ...; 0 where there are none.
        layers: Convolutions.
        neighbours: Mean number of neighbours; sums of messages are divided by its root.
        scale, shift: Of an atom's energy, eV.
        norm: Whether features are normalised.
        skip_by_species: Whether each species has its own skip connections.
        scalar_gain, gate_gain: Factors of the activations of scalars and of gates.
    """

    elements: tuple[int, ...]
    cutoff: float
    power: float
    functions: int
    radial_width: int
    radial_layers: int
    l_max: int
    channels: tuple[int, ...]
    layers: int
    neighbours: float
    scale: float
    shift: float
    norm: bool
    skip_by_species: bool
    scalar_gain: float
    gate_gain: float

    def __post_init__(self) -> None:
        fix = "Get the potential again"
        for name in ("functions", "radial_width", "radial_layers", "layers", "power", "neighbours", "cutoff"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"form.{name} is {getattr(self, name)}, not positive", fix=fix)
        if not self.elements or list(self.elements) != sorted(set(self.elements)) or self.elements[0] < 1:
            raise ConfigError("form.elements are no ascending atomic numbers", fix=fix)
        if not 0 <= self.l_max <= 8 or not 1 <= len(self.channels) <= self.l_max + 1:
            raise ConfigError(f"form.l_max is {self.l_max}, with {len(self.channels)} channels", fix=fix)
        if min(self.channels) < 0 or self.channels[0] < 1:
            raise ConfigError(f"form.channels are {list(self.channels)}", fix=fix)

    def features(self, layer: int) -> dict[int, int]:
        """Return l -> channels of the features that enter a layer; those that leave the last one enter `layers`."""
        if layer == 0:
            return {0: len(self.elements)}
        hidden = {degree: count for degree, count in enumerate(self.channels) if count}
        return hidden if layer < self.layers else {0: self.channels[0]}

    def paths(self, layer: int) -> dict[int, list[tuple[int, int]]]:
        """Return, for each l of the features of a layer, the (l, l) of harmonics and messages, by that of messages."""
        targets = self.features(layer + 1)
        return {
            source: [
                (harmonic, target)
                for target in sorted(targets)
                for harmonic in range(self.l_max + 1)
                if abs(source - harmonic) <= target <= source + harmonic and (source + harmonic + target) % 2 == 0
            ]
            for source in self.features(layer)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors.

        `harmonics` is from monomials to spherical harmonics; `coupling.A.B.C`, from harmonics of l = B and features of
        l = A to messages of l = C. Of layer K, `layers.K.before.L`, `after` and `skip` are linear maps of the features
        of l = L, `norm` their weights in the normalisation, and `layers.K.radial.J` the radial network, whose last
        weights are ordered by l of the features, then as in `paths`, then by channel.
        """
        harmonics = (self.l_max + 1) ** 2
        out: dict[str, tuple[int, ...]] = {
            "atom_energies": (len(self.elements),),
            "harmonics": (math.comb(self.l_max + 3, 3), harmonics),
            "readout": (self.channels[0],),
        }
        for layer in range(self.layers):
            enter, leave, paths = self.features(layer), self.features(layer + 1), self.paths(layer)
            widths = {**leave, 0: sum(leave.values())}  # one gate for each channel that is no scalar
            weights = sum(enter[source] * len(found) for source, found in paths.items())
            sizes = [self.functions, *[self.radial_width] * self.radial_layers, weights]
            name = f"layers.{layer}"
            out |= {f"{name}.radial.{k}": shape for k, shape in enumerate(pairwise(sizes))}
            out |= {f"{name}.before.{degree}": (count, count) for degree, count in enter.items()}
            for degree, width in widths.items():
                arriving = [enter[source] for source, found in paths.items() for _, target in found if target == degree]
                out[f"{name}.after.{degree}"] = (sum(arriving), width)
                if self.norm:
                    out[f"{name}.norm.{degree}"] = (width,)
                if degree in enter:
                    each = (len(self.elements),) if self.skip_by_species else ()
                    out[f"{name}.skip.{degree}"] = (*each, enter[degree], width)
            for source, found in paths.items():
                for harmonic, target in found:
                    components = (2 * harmonic + 1, 2 * target + 1, 2 * source + 1)
                    out[f"coupling.{source}.{harmonic}.{target}"] = components
        return out


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
        gated: (l, channels) of the features that are gated.
    """

    before: dict[int, Tensor]
    after: dict[int, Tensor]
    skip: dict[int, Tensor]
    radial: tuple[Tensor, ...]
    couplings: tuple[Coupling, ...]
    norm: dict[int, Tensor] | None
    gated: tuple[tuple[int, int], ...]


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
        form: Its settings.
        tensors: By name, see `NequixForm.shapes`.
        device: Where it is evaluated.
        dtype: Precision.
    """

    def __init__(
        self,
        form: NequixForm,
        tensors: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.form, self.device, self.dtype = form, torch.device(device), dtype
        self.root_neighbours = math.sqrt(form.neighbours)
        compiled = nequix_kernels is not None and self.device.type == "cpu"
        self.chunk = 0 if compiled else CHUNK if self.device.type == "cpu" else CHUNK_DEVICE
        self.atom_energies = tensors["atom_energies"].double().cpu().numpy()
        tensors = {name: tensor.to(self.device, dtype) for name, tensor in tensors.items()}
        self.harmonics, self.readout = tensors["harmonics"], tensors["readout"]
        self.layers = tuple(_layer(form, tensors, number) for number in range(form.layers))

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
        return network * self.form.scale + self.form.shift + self.atom_energies[kinds], gradient * self.form.scale

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
        angular = monomials(vector / distance, self.form.l_max) @ self.harmonics
        features = {0: one_hot(species, len(self.form.elements)).to(self.dtype)[:, None]}
        for layer, values, slopes in zip(self.layers, radial.values, radial.slopes, strict=True):
            sent = [features[c.degree] @ layer.before[c.degree] for c in layer.couplings]
            arrived: tuple[Tensor, ...] = _Messages.apply(  # type: ignore[no-untyped-call]
                layer.couplings, self.chunk, sender, receiver, values, slopes, distance, angular, *sent
            )
            features = self._update(layer, features, species, arrived)
        return features[0][:, 0] @ self.readout

    def _radial_basis(self, distance: Tensor) -> Tensor:
        """Return (E, functions): Bessel functions times a polynomial cut-off (DimeNet, arXiv 2003.03123, Eq. 8)."""
        cutoff, p = self.form.cutoff, self.form.power
        wave = torch.arange(1, self.form.functions + 1, dtype=self.dtype, device=self.device) * (math.pi / cutoff)
        x = distance / cutoff
        inner = 1.0 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
        return (2.0 / cutoff) * torch.sin(wave * distance) / distance * torch.where(x < 1.0, inner, 0.0)

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
        scalars = self.form.channels[0]
        gates = silu(out[0][..., scalars:]) * self.form.gate_gain
        gated = {0: silu(out[0][..., :scalars]) * self.form.scalar_gain}
        at = 0
        for degree, channels in layer.gated:
            gated[degree] = out[degree] * gates[..., at : at + channels]
            at += channels
        return gated


def _layer(form: NequixForm, tensors: Mapping[str, Tensor], number: int) -> Layer:
    """Build a convolution from tensors of the right precision."""

    def each(part: str) -> dict[int, Tensor]:
        start = f"layers.{number}.{part}."
        found = {int(name.removeprefix(start)): value for name, value in tensors.items() if name.startswith(start)}
        return dict(sorted(found.items()))

    couplings, column = [], 0
    for source, paths in form.paths(number).items():
        channels = form.features(number)[source]
        blocks = []
        for harmonic, target in paths:
            values = tensors[f"coupling.{source}.{harmonic}.{target}"]
            block = values.new_zeros((form.l_max + 1) ** 2, *values.shape[1:])
            block[harmonic**2 : (harmonic + 1) ** 2] = values
            blocks.append(block)
        couplings.append(
            Coupling(
                degree=source,
                channels=channels,
                product=torch.cat(blocks, dim=1).flatten(1),
                targets=tuple(target for _, target in paths),
                columns=slice(column, column + channels * len(paths)),
            )
        )
        column += channels * len(paths)
    return Layer(
        before=each("before"),
        after=each("after"),
        skip=each("skip"),
        radial=tuple(each("radial").values()),
        couplings=tuple(couplings),
        norm=each("norm") if form.norm else None,
        gated=tuple((degree, count) for degree, count in form.features(number + 1).items() if degree),
    )


def _with_slope(function: Callable[[Tensor], Tensor], value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function and its derivative along `slope`."""
    outputs = torch.func.jvp(function, (value,), (slope,))
    return outputs[0], outputs[1]


def monomials(unit: Tensor, l_max: int) -> Tensor:
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
