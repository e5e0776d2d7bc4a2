"""A residual network over the spectra: what a machine-learning practitioner would bring to the task.

Blocks as in He et al., arXiv 1512.03385, in one dimension as in Wang et al., arXiv 1611.06455 (time series), with group
instead of batch normalisation, so that an answer does not depend on its batch mates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from defectnet.batch import Batch, Output
from defectnet.config import ModelSpec, Settings, bounded
from defectnet.models.base import ABSENT_LOGIT, DefectModel
from defectnet.models.defectnet import contrast, contrast_summary, element_descriptors, log_shift
from defectnet.nn.heads import MAX_CONCENTRATION
from defectnet.spectrum import KINDS

_CHANNELS = 5
_SUMMARY = 7  # six sums of the contrast, and the shift of the mean log energy
_GROUPS = 8


@dataclass(frozen=True)
class ResNetConfig(Settings, called="net"):
    """Size of `ResNet1d`.

    Attributes:
        channels: Channels of the first block, a multiple of 8; doubled by each of the first two blocks after the stem.
        blocks: Residual blocks, each of which halves the length.
        kernel: Kernel of the convolutions; odd.
        hidden: Width of the layer before the heads.
        dropout: Share of that layer's activations dropped in training.
    """

    channels: int = bounded(32, 8, 1024, multiple=8)
    blocks: int = bounded(3, 1, 6)
    kernel: int = bounded(5, 1, 31)
    hidden: int = bounded(256, 8, 8192)
    dropout: float = bounded(0.1, 0.0, below=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.kernel % 2 == 1, "kernel", "Use an odd number")


class ResidualBlock(nn.Module):
    """Two convolutions with a shortcut; halves the length.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Kernel of both convolutions; odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        pad = kernel // 2
        self.first = nn.Conv1d(inputs, outputs, kernel, stride=2, padding=pad)
        self.first_norm = nn.GroupNorm(_GROUPS, outputs)
        self.second = nn.Conv1d(outputs, outputs, kernel, padding=pad)
        self.second_norm = nn.GroupNorm(_GROUPS, outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, L) -> (B, outputs, L / 2), rounded up."""
        y = relu(self.first_norm(self.first(x)))
        return relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet1d(DefectModel):
    """Residual blocks over host, doped spectrum and contrast; then, with the host beside it, two linear heads.

    There is no attention and no query: position k of either head speaks of element k. Candidates enter as one more
    vector, all ones when nothing is named.

    Args:
        spec: What the network reads and answers.
        net: Its size.
    """

    net: ResNetConfig
    config_type: ClassVar[type[ResNetConfig]] = ResNetConfig

    descriptors: Tensor
    bins: Tensor

    def __init__(self, spec: ModelSpec | None = None, net: ResNetConfig | None = None) -> None:
        super().__init__(spec, net)
        net, elements = self.net, len(self.spec.elements)
        bins = torch.as_tensor(self.spec.grid.centres, dtype=torch.float32)
        self.register_buffer("bins", bins, persistent=False)  # (L,), a function of the spec
        table = element_descriptors()
        self.register_buffer("descriptors", table, persistent=False)  # (E, P), a table of facts
        width = net.channels
        self.stem = nn.Conv1d(_CHANNELS, width, net.kernel, padding=net.kernel // 2)
        sizes = [width * 2 ** min(i, 2) for i in range(net.blocks + 1)]
        self.blocks = nn.Sequential(
            *(ResidualBlock(sizes[i], sizes[i + 1], net.kernel) for i in range(net.blocks)),
        )
        # Mean and largest value over the energies: the first says how much, the second whether at all.
        context = 2 * elements + 2 * table.shape[1] + _SUMMARY + 3 + len(KINDS)
        self.trunk = nn.Sequential(
            nn.Linear(2 * sizes[-1] + context, net.hidden), nn.ReLU(), nn.Dropout(net.dropout), nn.LayerNorm(net.hidden)
        )
        self.identity = nn.Linear(net.hidden, elements)
        self.amount = nn.Linear(net.hidden, elements)
        nn.init.constant_(self.identity.bias, -2.0)  # near the base rate
        nn.init.constant_(self.amount.bias, -2.5)  # near 4 at.%

    def forward(self, batch: Batch) -> Output:
        """Answer for every element of the vocabulary.

        Args:
            batch: Spectra (B, L), composition and candidates (B, E); see `defectnet.batch.Batch`.

        Returns:
            Logits (B, E) and concentrations (B, E) in (0, 0.5). Elements that are no candidates have `ABSENT_LOGIT`
            and concentration 0.
        """
        channels = contrast(batch.host, batch.doped, self.spec.grid.width)
        features = self.blocks(relu(self.stem(channels)))  # (B, D, T)
        read = torch.cat([features.mean(dim=-1), features.amax(dim=-1), self._context(batch)], dim=-1)
        x = self.trunk(read)
        logits = self.identity(x).masked_fill(~batch.candidates, ABSENT_LOGIT)
        amount = MAX_CONCENTRATION * torch.sigmoid(self.amount(x))
        return Output(logits, amount.masked_fill(~batch.candidates, 0.0))

    def _context(self, batch: Batch) -> Tensor:
        """Return (B, F): composition, candidates, mean descriptors of both, sums of the contrast, edge, kind."""
        width, dtype = self.spec.grid.width, batch.host.dtype
        named = batch.candidates.to(dtype)
        number = named.sum(dim=-1, keepdim=True)
        shift = 10.0 * log_shift(batch.host, batch.doped, self.bins, width).unsqueeze(-1)
        return torch.cat(
            [
                4.0 * batch.composition,
                named,
                batch.composition @ self.descriptors,
                named @ self.descriptors / number.clamp_min(1.0),
                contrast_summary(batch.host, batch.doped, self.bins, width),
                shift,
                batch.edge_mev.log().unsqueeze(-1) - 4.0,
                batch.candidates_given.to(dtype).unsqueeze(-1),
                number.clamp_min(1.0).log(),
                nn.functional.one_hot(batch.kind, len(KINDS)).to(dtype),
            ],
            dim=-1,
        )
