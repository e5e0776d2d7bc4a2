"""The published DefectNet, as an independent implementation to compare with.

Cheng, Fu, Yu, Rha, Chotrattanapituk, Abernathy, Cheng, Li, "A foundation model for non-destructive defect
identification from vibrational spectra", arXiv 2506.00725 (2025).

Differences that the common interface asks for:

- The vocabulary of 62 elements replaces the first 56 elements and a vacancy.
- There is no identity head. The predicted concentration is the score: a larger one means more probably present.
- Bins follow this project's grid: the band edge is the last bin's upper end. Histograms are densities per relative
  energy with mean 1 in the band, so that the 1e-2 added before the ratio is 1 % of the mean level; the published
  histograms have an area of 1/28, on an energy axis that we do not know, so that scale is not taken over.

With ``net.input: grid`` the same network reads the two spectra on this project's grid instead of the histograms that
end at the band edge. It tells what the input costs apart from what the network costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from defectnet.batch import Batch, Output, Targets
from defectnet.config import Grid, ModelSpec, Settings, bounded
from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError
from defectnet.models.base import ABSENT_LOGIT, DefectModel
from defectnet.models.losses import LossTerm, mean_over

TARGET_SCALE: Final = 10.0
"""The network is trained on the concentration times this."""

_FLOOR: Final = 1e-2  # added to both histograms before the ratio
_SHARPNESS: Final = 200.0  # 1 / 0.005: concentrations far below 0.5 % are as good as absent


@dataclass(frozen=True)
class PaperConfig(Settings, called="net"):
    """Size of `PaperDefectNet`; the defaults are the published values.

    Attributes:
        bins: Bins of both histograms and length of the padded composition, from 0 to the host's edge.
        channels: Width of the convolutions' output and of the attention; the convolutions grow to it by two
            doublings.
        heads: Attention heads; must divide `channels`.
        hidden: Width of the MLP's two hidden layers.
        kernel: Kernel of the convolutions; odd.
        input: ``paper`` for the histograms above; ``grid`` for the spectra on this project's own grid, which reaches
            above the edge, in their place (`bins` says nothing then). All else stays.
    """

    bins: int = bounded(100, len(VOCABULARY), 4096)
    channels: int = bounded(128, 4, 4096, multiple=4)
    heads: int = bounded(8, 1, 64)
    hidden: int = bounded(256, 1, 8192)
    kernel: int = bounded(5, 1, 31)
    input: str = bounded("paper", choices=("paper", "grid"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.channels % self.heads == 0, "heads", f"It must divide channels = {self.channels}")
        self.require(self.kernel % 2 == 1, "kernel", "Use an odd number")


def rebin_matrix(grid: Grid, bins: int) -> NDArray[np.float64]:
    """Return the (L, bins) matrix that turns a density on `grid` into a density on equal bins from 0 to the edge.

    Each entry is the share of the new bin that the old bin covers, so areas are kept below the edge and what lies
    above it is lost: the published histogram of the doped sample spans the host's own range.
    """
    new = np.linspace(0.0, 1.0, bins + 1)
    overlap = np.minimum(grid.edges[1:, None], new[None, 1:]) - np.maximum(grid.edges[:-1, None], new[None, :-1])
    return np.asarray(np.maximum(overlap, 0.0) * bins)


class PaperDefectNet(DefectModel):
    """Three convolutions over stacked vectors, read by a single query made of the candidates, then an MLP.

    The loss is the mean squared error of `TARGET_SCALE` times the concentration, over candidates only. So its one
    number, `Output.concentration_if_present`, is the expected concentration, too.

    Args:
        spec: What the network reads and answers.
        net: Its size; the defaults are the published values.
    """

    net: PaperConfig
    config_type: ClassVar[type[PaperConfig]] = PaperConfig
    loss_weights: Mapping[str, float] = MappingProxyType({"expected": 1.0})
    hurdle: ClassVar[bool] = False
    asks_blind = False

    rebin: Tensor

    def __init__(self, spec: ModelSpec | None = None, net: PaperConfig | None = None) -> None:
        super().__init__(spec, net)
        net, elements = self.net, len(self.spec.elements)
        grid = self.spec.grid
        if net.input == "grid" and grid.bins < elements:
            raise ConfigError(f"grid.bins is {grid.bins}", fix=f"The composition needs {elements} bins or more")
        rebin = torch.as_tensor(rebin_matrix(grid, net.bins), dtype=torch.float32)
        self.register_buffer("rebin", rebin, persistent=False)  # (L, bins), a function of the spec
        width, pad = net.channels, net.kernel // 2
        self.convolutions = nn.Sequential(
            nn.Conv1d(3, width // 4, net.kernel, padding=pad),
            nn.ReLU(),
            nn.Conv1d(width // 4, width // 2, net.kernel, padding=pad),
            nn.ReLU(),
            nn.Conv1d(width // 2, width, net.kernel, padding=pad),
        )
        self.query = nn.Linear(elements, width)
        self.attention = nn.MultiheadAttention(width, net.heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, net.hidden),
            nn.ReLU(),
            nn.Linear(net.hidden, net.hidden),
            nn.ReLU(),
            nn.Linear(net.hidden, elements),
        )

    def preprocess(self, batch: Batch) -> Tensor:
        """Make the published input from a pair of spectra.

        Args:
            batch: Spectra (B, L) and composition (B, E).

        Returns:
            (B, 3, bins): host histogram of unit area; log10 ratio of the doped histogram, also of unit area on the
            host's range, to the host's; composition padded with zeros. With ``net.input: grid`` there are L bins,
            which reach above the host's range, and the host's mean inside its band is 1.
        """
        host, doped = (self._histogram(dos) for dos in (batch.host, batch.doped))
        ratio = torch.log10((doped.clamp_min(0.0) + _FLOOR) / (host.clamp_min(0.0) + _FLOOR))
        composition = functional.pad(batch.composition, (0, host.shape[-1] - batch.composition.shape[-1]))
        return torch.stack([host, ratio, composition], dim=1)

    def _histogram(self, dos: Tensor) -> Tensor:
        """(B, L) -> (B, bins), mean 1 over the band; on the grid the spectra have that area already."""
        if self.net.input == "grid":
            return dos
        binned = dos @ self.rebin
        return binned / binned.mean(dim=-1, keepdim=True).clamp_min(1e-12)

    def forward(self, batch: Batch) -> Output:
        """Answer for every element of the vocabulary.

        Args:
            batch: Spectra (B, L), composition and candidates (B, E); see `defectnet.batch.Batch`.

        Returns:
            Logits (B, E) and concentrations (B, E). A concentration is the plain output of a linear layer and may
            fall below 0, as in the paper; `predict_batch` cuts it to 0 to 1. The logit is that of the concentration,
            made positive by a softplus so that the order of the concentrations is kept. Elements that are no
            candidates have `ABSENT_LOGIT` and concentration 0.
        """
        features = self.convolutions(self.preprocess(batch)).transpose(1, 2)  # (B, bins, D)
        query = self.query(batch.candidates.to(features.dtype)).unsqueeze(1)  # (B, 1, D)
        read, _ = self.attention(query, features, features, need_weights=False)
        concentration = self.mlp(read.squeeze(1)) / TARGET_SCALE  # (B, E)
        score = functional.softplus(concentration, beta=_SHARPNESS).clamp(1e-12, 1.0 - 1e-6)
        logits = torch.logit(score).masked_fill(~batch.candidates, ABSENT_LOGIT)
        return Output(logits, concentration.masked_fill(~batch.candidates, 0.0))

    def expected(self, output: Output) -> Tensor:
        """Return what the network regresses over all candidates: the expectation already, (B, E)."""
        return output.concentration_if_present.clamp(0.0, 1.0)

    def loss_terms(self, output: Output, batch: Batch, targets: Targets) -> dict[str, LossTerm]:
        """Return the squared error of ten times the concentration, over the candidates only (arXiv 2506.00725)."""
        error = TARGET_SCALE * (output.concentration_if_present - targets.true_concentration)
        return {"expected": mean_over(error.square(), batch.candidates)}
