"""Computed responses of a known crystal, fitted to the change of a spectrum.

Shape letters: B batch, K elements in question, C levels of concentration, L bins of the grid, N bins of the fits.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from defectnet.batch import Batch, Computed
from defectnet.config import Grid
from defectnet.measure.broadening import FWHM_TO_SIGMA
from defectnet.nn.fits import non_negative_fits

BINS: Final = 128
"""N: twice as fine as what is fitted to responses that the network expects itself."""

LEVELS: Final = 2
"""C, see `defectnet.crystal.responses.LEVELS`."""

SMOOTHED: Final = (0.04, 0.08)
"""Standard deviations, in edges, of the Gaussians that curves are smoothed with before they are fitted."""

_SCALES: Final = (0.86, 1.14, 29)
_WIDTHS: Final = (0.0, 0.03, 0.05, 0.08, 0.12, 0.18)
"""Ratios of measured to computed energies, and FWHM over the edge, under which computed hosts are compared."""


class Alignment(nn.Module):
    """Brings what was computed to the energies and the resolution of what was measured.

    Of a few factors between measured and computed energies and a few widths those are taken under which the computed
    host is most like the measured one. It has no weights.

    Args:
        grid: Grid of the spectra.
    """

    operators: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        centres = torch.as_tensor(grid.centres, dtype=torch.float32)
        edges = torch.linspace(0.0, grid.reach, BINS + 1)
        made = []
        for scale in torch.linspace(*_SCALES):
            for fwhm in _WIDTHS:
                sigma = max(fwhm * FWHM_TO_SIGMA, 0.5 * grid.width)
                above = torch.special.ndtr((edges[:, None] - scale * centres) / sigma)
                mirrored = torch.special.ndtr((-edges[:, None] - scale * centres) / sigma)  # at zero energy
                share = above.diff(dim=0) - mirrored.diff(dim=0)
                made.append(share * (grid.bins * grid.width / BINS) ** -1 * grid.width)
        self.register_buffer("operators", torch.stack(made), persistent=False)  # (S, N, L)

    @torch.no_grad()
    def forward(self, measured: Tensor, computed: Tensor) -> tuple[Tensor, Tensor]:
        """Find what each row is brought into line by.

        Args:
            measured: (B, N) host, pooled.
            computed: (B, L) the same crystal as computed.

        Returns:
            (B, N, L) operators; and (B,) what they leave of the measured host, squared, over its square.
        """
        tried = torch.einsum("snl,bl->bsn", self.operators, computed)
        left = (tried - measured[:, None]).square().sum(-1)
        best = left.argmin(1)
        rest = left.gather(1, best[:, None])[:, 0] / measured.square().sum(-1).clamp_min(1e-6)
        return self.operators[best], rest


class ComputedFits(nn.Module):
    """What fits of computed responses say of each element.

    Elements without one are fitted with the network's own response beside those that have one. Curves are smoothed
    first: two potentials agree on the coarse shape of a change, not on its peaks.

    Args:
        grid: Grid of the spectra.
        width: D.
    """

    smoothing: Tensor

    def __init__(self, grid: Grid, width: int) -> None:
        super().__init__()
        self.pool = grid.bins // BINS
        self.align = Alignment(grid)
        at = torch.arange(BINS) * (grid.reach / BINS)
        apart = (at[:, None] - at) / torch.tensor(SMOOTHED)[:, None, None]
        kernels = (-0.5 * apart.square()).exp()
        self.register_buffer("smoothing", kernels / kernels.sum(-1, keepdim=True), persistent=False)  # (F, N, N)
        last = nn.Linear(width, width)
        features = 4 * LEVELS * len(SMOOTHED) + LEVELS + 2
        self.read = nn.Sequential(nn.Linear(features, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), last)
        # At first nothing changes in what a network says without them.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, batch: Batch, elements: Tensor, own: Tensor) -> Tensor:
        """Fit.

        Args:
            batch: Spectra (B, L), candidates (B, E), and what is known of the crystals, of each something.
            elements: (B, K) long, the elements in question.
            own: (B, K, N or fewer) what the network itself expects of each.

        Returns:
            (B, K, D).
        """
        host, doped = (avg_pool1d(curve.unsqueeze(1), self.pool)[:, 0] for curve in (batch.host, batch.doped))
        computed = _of(batch)
        response, rest = self.responses(batch, elements, own)
        level = computed.concentration.gather(1, elements[:, :, None].expand(-1, -1, LEVELS))
        chosen = response * batch.candidates.gather(1, elements)[..., None, None]
        said = [
            non_negative_fits(chosen[:, :, c] @ kernel, (doped - host) @ kernel)
            for kernel in self.smoothing.transpose(1, 2)
            for c in range(LEVELS)
        ]
        one = torch.ones_like(level[..., :1])
        known = computed.known.gather(1, elements)[..., None].to(one)
        said += [level.clamp_min(1e-3).log() + 3.0, (rest + 1e-3).log()[:, None, None] * one, known]
        features: Tensor = self.read(torch.cat(said, -1).clamp(-20.0, 20.0))
        return features

    def responses(self, batch: Batch, elements: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Bring responses into line with the measured hosts; arguments as those of `forward`.

        Returns:
            (B, K, C, N), `own` where none was computed; and (B,) what is left of the measured hosts, see `Alignment`.
        """
        computed = _of(batch)
        operator, rest = self.align(avg_pool1d(batch.host.unsqueeze(1), self.pool)[:, 0], computed.host)
        at = elements[:, :, None, None]
        response = computed.response.gather(1, at.expand(-1, -1, *computed.response.shape[2:]))  # (B, K, C, L)
        response = torch.einsum("bnl,bkcl->bkcn", operator, response)
        own = own.detach().repeat_interleave(BINS // own.shape[2], dim=2)
        return torch.where(computed.known.gather(1, elements)[..., None, None], response, own[:, :, None]), rest


def _of(batch: Batch) -> Computed:
    if batch.computed is None:
        raise ValueError("a batch without computed responses")
    return batch.computed
