"""DefectNet: tokens of a pair of spectra and of the host, read by one query per element.

An independent network; it shares the name and the task with Cheng et al., arXiv 2506.00725, but not the design.
Their published network is `defectnet.models.paper.PaperDefectNet`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d, binary_cross_entropy_with_logits, pad

from defectnet.batch import Batch, Output, Targets
from defectnet.config import DefectNetConfig, ModelSpec
from defectnet.elements import properties
from defectnet.errors import ConfigError
from defectnet.models.base import ABSENT_LOGIT, DefectModel
from defectnet.models.losses import HURDLE_WEIGHTS, LossTerm, hurdle_terms
from defectnet.nn.attention import DecoderBlock, EncoderBlock
from defectnet.nn.computed import ComputedFits
from defectnet.nn.embed import ElementQueries, EnergyEncoding, Fourier, HostEmbedding, SpectrumEmbedding
from defectnet.nn.heads import ConcentrationHead, IdentityHead
from defectnet.nn.impurity import Explained, ResponseDictionary, is_exporting
from defectnet.spectrum import KINDS

_FLOOR: Final = 1e-2  # added to both spectra before the ratio: 1 % of the mean level, about a measurement's noise
_CHANNELS: Final = 5
_GLOBAL_FEATURES: Final = 18
_SUMMARY: Final = 6


def contrast(host: Tensor, doped: Tensor, width: float) -> Tensor:
    """Make the input channels from a pair of unit-area spectra.

    Args:
        host: (B, L) DOS of the host per relative energy; its mean inside the band is about 1.
        doped: (B, L) DOS of the doped sample.
        width: Width of a bin.

    Returns:
        (B, 5, L): host, doped, difference, log10 ratio (which keeps local modes above the edge, where the host is
        empty), and the cumulated difference (which shows small shifts and is robust to noise); each of order 1.
    """
    difference = doped - host
    ratio = torch.log10((doped.clamp_min(0.0) + _FLOOR) / (host.clamp_min(0.0) + _FLOOR))
    cumulated = difference.cumsum(dim=-1) * width
    return torch.stack([host, doped, 4.0 * difference, ratio, 20.0 * cumulated], dim=1)


def log_shift(host: Tensor, doped: Tensor, centres: Tensor, width: float) -> Tensor:
    """Return the change of the mean logarithm of the energy, (B,).

    In a harmonic crystal the mean of ln E over all modes is half of ln det(force constants) less ln(masses), each per
    atom: it falls by half of the change of the mean log mass, whatever the modes look like, and the rest is stiffness.

    Args:
        host: (B, L) DOS of the host per relative energy, unit area.
        doped: (B, L) DOS of the doped sample.
        centres: (L,) relative energies; below 0.05 the logarithm is held, where noise would rule.
        width: Width of a bin.
    """
    return (doped - host) @ centres.clamp_min(0.05).log() * width


def contrast_summary(host: Tensor, doped: Tensor, centres: Tensor, width: float) -> Tensor:
    """Sum up how much, and which way, doping changed the spectrum.

    The plain distance of the two spectra alone goes with the total concentration; a small network on little data does
    not find that out of patches.

    Args:
        host: (B, L) DOS of the host per relative energy.
        doped: (B, L) DOS of the doped sample.
        centres: (L,) relative energies.
        width: Width of a bin.

    Returns:
        (B, 6), each of order 1: log distance (total variation) at full resolution and in coarse bins, where noise
        averages out; shift of the first and second moment; change of the area above the edge and at low energy.
    """
    difference = (doped - host) * width
    coarse = avg_pool1d(difference.unsqueeze(1), 8, ceil_mode=True).squeeze(1) * 8.0
    return torch.stack(
        [
            (0.5 * difference.abs().sum(-1) + 1e-3).log() + 2.0,
            (0.5 * coarse.abs().sum(-1) + 1e-3).log() + 2.0,
            10.0 * difference @ centres,
            10.0 * difference @ centres.square(),
            10.0 * difference @ (centres > 1.02).to(difference.dtype),
            10.0 * difference @ (centres < 0.3).to(difference.dtype),
        ],
        dim=-1,
    )


def element_descriptors() -> Tensor:
    """Return (E, 5) properties of the vocabulary, each with mean 0 and standard deviation 1.

    Log mass, covalent radius, electronegativity, group, period.
    """
    columns = [
        np.log(properties("mass_u")),
        properties("covalent_radius_angstrom"),
        properties("electronegativity"),
        properties("group"),
        properties("period"),
    ]
    table = np.stack(columns, axis=1)
    return torch.as_tensor((table - table.mean(axis=0)) / table.std(axis=0), dtype=torch.float32)


class DefectNet(DefectModel):
    """Encoder over tokens, decoder over element queries, two heads.

    Tokens: one per patch of the spectra, one per host element, one for the whole (band edge, kind of DOS, how many
    candidates). Queries: one per element of the vocabulary, each with a summary of the contrast; they read the tokens
    and then each other, where an element that is no candidate is not read. With candidates given, what is not one
    cannot change the answer.

    Args:
        spec: What the network reads and answers.
        net: Its size.
    """

    net: DefectNetConfig
    config_type: ClassVar[type[DefectNetConfig]] = DefectNetConfig
    loss_weights: Mapping[str, float] = MappingProxyType(
        {
            **HURDLE_WEIGHTS,
            "response": 2.0,
            "host_share": 1.0,
            "dopant_dos": 0.5,
            "host_change": 1.0,
            "something_else": 1.0,
        }
    )

    centres: Tensor
    bins: Tensor

    def __init__(self, spec: ModelSpec | None = None, net: DefectNetConfig | None = None) -> None:
        super().__init__(spec, net)
        net, grid = self.net, self.spec.grid
        if grid.bins % net.patch:
            raise ConfigError(f"net.patch is {net.patch}", fix=f"It must divide the grid's {grid.bins} bins")
        width, descriptors = net.d_model, element_descriptors()
        centres = torch.as_tensor(grid.centres.reshape(-1, net.patch).mean(axis=1), dtype=torch.float32)
        self.register_buffer("centres", centres, persistent=False)  # (T,), a function of the spec
        bins = torch.as_tensor(grid.centres, dtype=torch.float32)
        self.register_buffer("bins", bins, persistent=False)  # (L,)
        self.spectrum = SpectrumEmbedding(_CHANNELS, width, net.patch)
        self.energy = EnergyEncoding(width)
        self.host = HostEmbedding(descriptors, width)
        self.edge = Fourier((_GLOBAL_FEATURES - 2) // 2, longest=16.0, shortest=0.2)
        self.whole = nn.Linear(_GLOBAL_FEATURES, width)
        self.kind = nn.Embedding(len(KINDS), width)
        self.queries = ElementQueries(descriptors, width)
        self.summary = nn.Linear(_SUMMARY, width)
        size = (width, net.heads, net.mlp_ratio, net.dropout)
        self.impurity = ResponseDictionary(grid, descriptors, *size)
        self.computed = ComputedFits(grid, width) if net.computed_responses else None
        self.encoder = nn.ModuleList(EncoderBlock(*size) for _ in range(net.encoder_layers))
        self.encoded = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderBlock(*size) for _ in range(net.decoder_layers))
        self.identity = IdentityHead(width)
        self.concentration = ConcentrationHead(width)
        if net.something_else:
            self.other_query = nn.Parameter(0.02 * torch.randn(width))
            self.something_else = IdentityHead(width)

    def forward(self, batch: Batch) -> Output:
        """Answer for every element of the vocabulary.

        Args:
            batch: Spectra (B, L), composition and candidates (B, E); see `defectnet.batch.Batch`.

        Returns:
            Logits (B, E) and concentrations (B, E) in (0, 0.5). Elements that are no candidates have
            `ABSENT_LOGIT` and concentration 0; mask them before a loss takes a root or a logarithm.
        """
        return self._answer(batch)[0]

    def loss_terms(self, output: Output, batch: Batch, targets: Targets) -> dict[str, LossTerm]:
        """Add the cross entropy of a dopant that is not in the list, over rows whose candidates are named."""
        terms = hurdle_terms(output, batch, targets)
        if output.something_else is not None:
            missed = (targets.present & ~batch.candidates).any(dim=1)
            cross = binary_cross_entropy_with_logits(output.something_else, missed.float(), reduction="none")
            given = batch.candidates_given.float()
            terms["something_else"] = LossTerm(cross * given, given)
        return terms

    def forward_training(self, batch: Batch, targets: Targets) -> tuple[Output, dict[str, LossTerm]]:
        """Answer; the auxiliary losses are those of the responses of the dictionary, and of their parts."""
        output, auxiliary = self._answer(batch, targets)
        return output, {name: LossTerm(rows) for name, rows in auxiliary.items()}

    @property
    def wants_projected(self) -> bool:
        """True: what dopants do to the elements of a host is learnt from projected DOS."""
        return True

    def expected_responses(self, batch: Batch) -> Tensor:
        """Return the responses of the dictionary; see `DefectModel.expected_responses`."""
        everything = torch.arange(batch.candidates.shape[1], device=batch.host.device).expand_as(batch.candidates)
        response: Tensor = self.impurity(batch, everything).response
        if self.computed is not None and batch.computed is not None:
            response = self.computed.responses(batch, everything, response)[0][:, :, 0]
        return response.repeat_interleave(batch.host.shape[1] // response.shape[2], dim=2)

    def _answer(self, batch: Batch, targets: Targets | None = None) -> tuple[Output, dict[str, Tensor]]:
        """Return the answer and, with targets, the losses of the dictionary by name, (B,) each."""
        tokens, readable = self._tokens(batch)  # (B, T, D), (B, T)
        for block in self.encoder:
            tokens = block(tokens, readable[:, None, None, :])
        tokens = self.encoded(tokens)
        logits = batch.host.new_full(batch.candidates.shape, ABSENT_LOGIT)
        concentration = torch.zeros_like(logits)
        other = logits.new_full(logits.shape[:1], ABSENT_LOGIT) if self.net.something_else else None
        losses: dict[str, Tensor] = defaultdict(lambda: batch.host.new_zeros(len(logits)))
        for rows, elements in _questions(batch):
            part = batch.rows(rows)
            x, explained = self._queries(part, elements)  # (b, K, D)
            # A query may always read itself, so that a row without any candidate is not an empty softmax.
            own = torch.eye(elements.shape[1], dtype=torch.bool, device=x.device)
            asked = part.candidates.gather(1, elements)
            candidates = (asked[:, None, :] | own).unsqueeze(1)  # (b, 1, K, K)
            if other is not None:
                x, candidates = self._with_other(part, x, candidates, asked)
            for block in self.decoder:
                x = block(x, tokens[rows], readable[rows, None, None, :], candidates)
            if other is not None:
                said = self.something_else(x[:, -1]).to(logits.dtype)
                other = other.index_put((rows,), said.masked_fill(~part.candidates_given, ABSENT_LOGIT))
                x = x[:, :-1]
            at = (rows.unsqueeze(-1), elements)
            # Under autocast the heads answer in half precision, and what they are put into is single.
            answers = (head(x).to(logits.dtype) for head in (self.identity, self.concentration))
            identity, amount = (
                y.masked_fill(~asked, none) for y, none in zip(answers, (ABSENT_LOGIT, 0.0), strict=True)
            )
            logits, concentration = logits.index_put(at, identity), concentration.index_put(at, amount)
            if targets is not None:
                for name, value in self.impurity.losses(part, elements, targets.rows(rows), explained).items():
                    losses[name] = losses[name].index_put((rows,), value)
        return Output(logits, concentration, something_else=other), dict(losses)

    def _with_other(self, batch: Batch, x: Tensor, readable: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Add a query for what is not in the list; it reads all candidates, and none of them reads it.

        Args:
            batch: The rows.
            x: (b, K, D) queries.
            readable: (b, 1, K, K) bool, which of them reads which.
            asked: (b, K) bool, which are candidates.

        Returns:
            (b, K + 1, D) queries, and (b, 1, K + 1, K + 1) which of them reads which.
        """
        seen = self.summary(contrast_summary(batch.host, batch.doped, self.bins, self.spec.grid.width))
        query = (self.other_query + seen).unsqueeze(1).to(x.dtype)
        last = pad(asked, (0, 1), value=True)[:, None, None, :]
        return torch.cat([x, query], dim=1), torch.cat([pad(readable, (0, 1)), last], dim=2)

    def _queries(self, batch: Batch, elements: Tensor) -> tuple[Tensor, Explained]:
        """Return the queries (B, K, D) of elements (B, K), and what the dictionary says of them."""
        width = self.spec.grid.width
        x = self.queries(
            batch.composition, batch.candidates_given, log_shift(batch.host, batch.doped, self.bins, width), elements
        )
        x = x + self.summary(contrast_summary(batch.host, batch.doped, self.bins, width)).unsqueeze(1)
        explained: Explained = self.impurity(batch, elements)
        x = x + explained.features
        if self.computed is None or batch.computed is None:
            return x, explained
        rows = self.reads_computed(batch).to(x.device).nonzero()[:, 0]
        if len(rows):
            with torch.autocast(x.device.type, enabled=False):  # for the fits half precision would not do
                said = self.computed(batch.rows(rows), elements[rows], explained.response[rows])
            x = x.index_put((rows,), x[rows] + said.to(x.dtype))
        return x, explained

    def _tokens(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, D) of spectra, host and whole, and (B, T) bool: false where a host slot is empty."""
        channels = contrast(batch.host, batch.doped, self.spec.grid.width)
        spectrum = self.spectrum(channels) + self.energy(self.centres, batch.edge_mev)
        host, filled = self.host(batch.composition)
        given = batch.candidates_given.to(channels.dtype)
        share = batch.candidates.sum(dim=-1).clamp_min(1).to(channels.dtype).log() / 4.0
        features = torch.cat([self.edge(batch.edge_mev.log()), given[:, None], share[:, None]], dim=-1)
        whole = (self.whole(features) + self.kind(batch.kind)).unsqueeze(1)
        ones = torch.ones(whole.shape[0], 1, dtype=torch.bool, device=whole.device)
        readable = torch.cat([ones.expand(-1, spectrum.shape[1]), filled, ones], dim=1)
        return torch.cat([spectrum, host, whole], dim=1), readable


def _questions(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Part a batch by whether candidates are named, so that few queries are made where few elements are in question.

    Yields:
        Rows (b,), and for each of them the elements (b, K) that are asked for; rows with fewer than K are filled up
        with elements that are no candidates. A program that is exported has sizes of its own: all elements.
    """
    if is_exporting():
        rows, elements = (torch.arange(size, device=batch.host.device) for size in batch.candidates.shape)
        yield rows, elements.expand_as(batch.candidates)
        return
    counts = batch.candidates.sum(dim=1)
    for rows in (batch.candidates_given.nonzero()[:, 0], (~batch.candidates_given).nonzero()[:, 0]):
        if len(rows):
            most = max(int(counts[rows].max()), 1)
            yield rows, batch.candidates[rows].to(torch.uint8).topk(most, dim=1).indices
