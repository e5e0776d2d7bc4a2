"""The Nequix network in torch, evaluated a few times faster than by its package on a CPU.

Nequix (Koker et al., arXiv 2508.16067) is an equivariant message passing network of the NequIP kind (Batzner et al.,
Nat. Commun. 13, 2453 (2022)). Here a message is a small matrix product for each edge, from the 2 l + 1 components of
the sender's features to all components that they couple to, for all channels at once; edges are taken a chunk at a
time, forward and backward, so that what lies between stays in the processor's cache. What the radial networks make of
an edge's length, most of the work, is computed once with its derivative, and can be kept from call to call for the
edges that have not changed: in a finite displacement few have.

A network is a form and named tensors, see `NequixForm.shapes`; examples/convert_nequix.py makes both from a
file of the package.

Shape letters: N atoms, E edges, S species, U channels, M components (2 l + 1, or those of several l side by side).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement, groupby, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot, silu

from defectnet.config import Settings, within
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
class NequixForm(Settings, called="form"):
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
    cutoff: float = field(metadata=within(above=0.0))
    power: float = field(metadata=within(above=0.0))
    functions: int = field(metadata=within(least=1))
    radial_width: int = field(metadata=within(least=1))
    radial_layers: int = field(metadata=within(least=1))
    l_max: int = field(metadata=within(least=0, most=8))
    channels: tuple[int, ...] = field(metadata=within(least=0))
    layers: int = field(metadata=within(least=1))
    neighbours: float = field(metadata=within(above=0.0))
    scale: float
    shift: float
    norm: bool
    skip_by_species: bool
    scalar_gain: float
    gate_gain: float

    def __post_init__(self) -> None:
        fix = "Get the potential again"
        super().__post_init__()
        if not self.elements or list(self.elements) != sorted(set(self.elements)) or self.elements[0] < 1:
            raise ConfigError("form.elements are no ascending atomic numbers", fix=fix)
        if not 1 <= len(self.channels) <= self.l_max + 1 or self.channels[0] < 1:
            raise ConfigError(f"form.channels are {list(self.channels)}, with l_max {self.l_max}", fix=fix)

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
        product: Number of the map from spherical harmonics to the matrix of each edge, see `NequixNetwork.products`.
        targets: l of each target, ascending, in the order of its components.
        columns: Where the weights of its targets, (targets U), stand among those of the layer.
    """

    degree: int
    channels: int
    product: int
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

    def shaped(self, matrix: Tensor) -> Tensor:
        """Return matrices of edges as (E, M, 2 l + 1)."""
        return matrix.view(len(matrix), self.components, 2 * self.degree + 1)

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
class EdgeTerms:
    """What depends on nothing but the vector of each edge.

    Attributes:
        values: (E, weights) of each layer, from the radial networks.
        slopes: Their derivatives by the length, 1/angstrom.
        matrices: (E, M (2 l + 1)) of each coupling; layers whose couplings are alike share them.
        unit: (E, 3) directions.
        turns: (E, 3, Y) derivatives of the spherical harmonics by the vector, 1/angstrom.
    """

    values: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    matrices: tuple[Tensor, ...]
    unit: Tensor
    turns: Tensor

    @contextmanager
    def replaced(self, edges: Tensor, other: EdgeTerms) -> Iterator[EdgeTerms]:
        """Put other terms for some edges, (K,) long, while the context lasts."""
        edges = edges.to(self.unit.device)
        before = [term.index_select(0, edges) for term in self._terms()]
        try:
            for term, new in zip(self._terms(), other._terms(), strict=True):
                term.index_copy_(0, edges, new)
            yield self
        finally:
            for term, old in zip(self._terms(), before, strict=True):
                term.index_copy_(0, edges, old)

    def split(self, counts: list[int]) -> list[EdgeTerms]:
        """Return the terms of successive runs of edges."""
        n = len(self.values)
        each = zip(*(torch.split(term, counts) for term in self._terms()), strict=True)
        return [EdgeTerms(part[:n], part[n : 2 * n], part[2 * n : -2], part[-2], part[-1]) for part in each]

    def _terms(self) -> tuple[Tensor, ...]:
        return (*self.values, *self.slopes, *self.matrices, self.unit, self.turns)


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
        kinds = {key: None for number in range(form.layers) for key in _kinds(form, number).values()}
        self.products = tuple(_product_of(form, tensors, kind) for kind in kinds)
        """(Y, M (2 l + 1)) from spherical harmonics to the matrix of each edge, all targets side by side."""
        self.layers = tuple(_layer(form, tensors, number, list(kinds)) for number in range(form.layers))

    def evaluate(
        self,
        vector: Tensor,
        species: Tensor,
        sender: Tensor,
        receiver: Tensor,
        terms: EdgeTerms | None = None,
    ) -> tuple[NDArray[np.float64], Tensor]:
        """Compute energies and their gradient.

        Args:
            vector: (E, 3) from the receiver to the sender, angstrom.
            species: (N,) long.
            sender: (E,) long, whose features each message carries.
            receiver: (E,) long, where it arrives.
            terms: What `edge_terms` gave for `vector`, if that is known.

        Returns:
            (N,) energies of the atoms in eV, in double precision; and (E, 3) derivatives of their sum by `vector`.
        """
        species, sender, receiver = (index.to(self.device) for index in (species, sender, receiver))
        terms = terms or self.edge_terms(vector)
        matrices = [matrix.detach().requires_grad_() for matrix in terms.matrices]
        distance = terms.unit.new_zeros(len(vector)).requires_grad_()  # its value is in the radial weights
        energies = self._energies(species, sender, receiver, terms, distance, matrices)
        by_distance, *by_matrix = torch.autograd.grad(energies.sum(), [distance, *matrices])
        by_harmonics = terms.unit.new_zeros(len(vector), self.harmonics.shape[1])
        for by, product in zip(by_matrix, self.products, strict=True):
            by_harmonics.addmm_(by, product.T)
        gradient = torch.baddbmm((by_distance[:, None] * terms.unit)[:, :, None], terms.turns, by_harmonics[:, :, None])
        kinds = species.cpu().numpy()
        network = energies.detach().cpu().numpy().astype(np.float64)
        # In double precision here: these sums are thousands of times what changes along a relaxation.
        energies_ev = network * self.form.scale + self.form.shift + self.atom_energies[kinds]
        return energies_ev, gradient[:, :, 0] * self.form.scale

    @torch.no_grad()
    def edge_terms(self, vector: Tensor) -> EdgeTerms:
        """Compute what depends on the (E, 3) vectors of edges alone."""
        vector = vector.to(self.device, self.dtype)
        distance = vector.norm(dim=1, keepdim=True)
        basis, slope = _with_slope(self._radial_basis, distance, torch.ones_like(distance))
        values, slopes = [], []
        for layer in self.layers:
            value, rise = basis, slope
            for matrix in layer.radial[:-1]:
                value, rise = value @ matrix, rise @ matrix
                share = value.sigmoid()
                value = value * share  # SiLU
                rise = rise * (share + value * (1.0 - share))
            values.append(value @ layer.radial[-1])
            slopes.append(rise @ layer.radial[-1])
        axes = torch.eye(3, dtype=self.dtype, device=self.device).repeat(len(vector), 1)
        harmonics, turns = _with_slope(self._harmonics, vector.repeat_interleave(3, dim=0), axes)
        return EdgeTerms(
            values=tuple(values),
            slopes=tuple(slopes),
            matrices=tuple(harmonics[::3] @ product for product in self.products),
            unit=vector / distance,
            turns=turns.view(len(vector), 3, -1),
        )

    def _energies(
        self,
        species: Tensor,
        sender: Tensor,
        receiver: Tensor,
        terms: EdgeTerms,
        distance: Tensor,
        matrices: Sequence[Tensor],
    ) -> Tensor:
        features = {0: one_hot(species, len(self.form.elements)).to(self.dtype)[:, None]}
        for layer, values, slopes in zip(self.layers, terms.values, terms.slopes, strict=True):
            edges = _Edges(sender, receiver, values, slopes, self.chunk)
            sent = [features[c.degree] @ layer.before[c.degree] for c in layer.couplings]
            mine = [matrices[c.product] for c in layer.couplings]
            arrived: tuple[Tensor, ...] = _Messages.apply(  # type: ignore[no-untyped-call]
                layer.couplings, edges, distance, *mine, *sent
            )
            features = self._update(layer, features, species, arrived)
        return features[0][:, 0] @ self.readout

    def _harmonics(self, vector: Tensor) -> Tensor:
        """Return (E, Y) spherical harmonics."""
        return monomials(vector / vector.norm(dim=1, keepdim=True), self.form.l_max) @ self.harmonics

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


_Kind = tuple[int, tuple[tuple[int, int], ...]]
"""What decides on a product: l of the features, and (l, l) of harmonics and messages."""


def _kinds(form: NequixForm, number: int) -> dict[int, _Kind]:
    """Return the kinds of the couplings of a layer, by l of its features."""
    return {source: (source, tuple(paths)) for source, paths in form.paths(number).items()}


def _product_of(form: NequixForm, tensors: Mapping[str, Tensor], kind: _Kind) -> Tensor:
    """Return the (Y, M (2 l + 1)) product of a kind of coupling."""
    source, paths = kind
    blocks = []
    for harmonic, target in paths:
        values = tensors[f"coupling.{source}.{harmonic}.{target}"]
        block = values.new_zeros((form.l_max + 1) ** 2, *values.shape[1:])
        block[harmonic**2 : (harmonic + 1) ** 2] = values
        blocks.append(block)
    return torch.cat(blocks, dim=1).flatten(1)


def _layer(form: NequixForm, tensors: Mapping[str, Tensor], number: int, kinds: Sequence[_Kind]) -> Layer:
    """Build a convolution from tensors of the right precision."""

    def each(part: str) -> dict[int, Tensor]:
        start = f"layers.{number}.{part}."
        found = {int(name.removeprefix(start)): value for name, value in tensors.items() if name.startswith(start)}
        return dict(sorted(found.items()))

    couplings, column = [], 0
    for source, kind in _kinds(form, number).items():
        targets, channels = tuple(target for _, target in kind[1]), form.features(number)[source]
        columns = slice(column, column + channels * len(targets))
        couplings.append(Coupling(source, channels, kinds.index(kind), targets, columns))
        column = columns.stop
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
    """Messages summed at their receivers."""

    @staticmethod
    def forward(
        ctx: Any, couplings: Sequence[Coupling], edges: _Edges, distance: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """Sum messages.

        Args:
            ctx: Of torch.
            couplings: C of them.
            edges: Of the layer.
            distance: (E,), only to have a derivative by it.
            tensors: C matrices of (E, M (2 l + 1)), then C features of (N, 2 l + 1, U), which the senders send.

        Returns:
            C of (N, M, U).
        """
        ctx.couplings, ctx.edges = couplings, edges
        ctx.save_for_backward(*tensors)
        matrices, features = tensors[: len(couplings)], tensors[len(couplings) :]
        rows = zip(couplings, matrices, features, strict=True)
        return tuple(
            edges.send(coupling, coupling.shaped(matrix), sent.contiguous()) for coupling, matrix, sent in rows
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        matrices, features = ctx.saved_tensors[: len(gradients)], ctx.saved_tensors[len(gradients) :]
        by_distance, by_matrices, by_features = torch.zeros(()), [], []
        for coupling, matrix, sent, gradient in zip(ctx.couplings, matrices, features, gradients, strict=True):
            found = ctx.edges.send_back(coupling, coupling.shaped(matrix), sent.contiguous(), gradient.contiguous())
            by_features.append(found[0])
            by_matrices.append(found[1].flatten(1))
            by_distance = found[2] + by_distance
        return None, None, by_distance, *by_matrices, *by_features


@dataclass(frozen=True)
class _Edges:
    """The edges of a layer: (E,) ends, and (E, weights) of `EdgeTerms`; see `_Messages`."""

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
        by_features, by_matrix = torch.zeros_like(features), torch.empty_like(matrix)
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
