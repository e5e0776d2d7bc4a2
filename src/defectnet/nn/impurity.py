"""What a single impurity would add to a host's spectrum, from the host's spectrum alone.

The oldest theory of impurity vibrations (Mannheim, Phys. Rev. 165, 1011 (1968); Sievers and Page in Dynamical
Properties of Solids, vol. 1, 1974) gives the spectrum of one substituted atom from the DOS of the host, the ratio of
the masses and the ratio of the force constants. Here its isotropic one-site form, without free parameters:

The DOS g of the host, per site, fixes the response of an average site to a force, G(z) = integral of
g(y) / (z - y^2), and with it the dynamic stiffness that the crystal holds against it, D(z) = z - 1/G(z). The springs
of the atom itself, whose stiffness is the second moment mu of g, are in series with the rest of the crystal. An
impurity of m times the mean mass on springs of s times the stiffness therefore feels

    D'(z) = D(z) / (1 + D(z) (1/s - 1) / mu)

and its spectrum is  g'(x) = -(2 x m / pi) Im 1 / (m z - D'(z)),  z = (x + i eta)^2, of unit area for any m and s.
Local modes above the band, gap modes and resonances come out by themselves.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from defectnet.batch import Batch, Targets
from defectnet.config import PROJECTED_BINS, Grid
from defectnet.elements import NEUTRON_WEIGHT, properties
from defectnet.errors import ConfigError
from defectnet.nn.attention import CrossBlock, EncoderBlock
from defectnet.nn.changes import ElementChanges, HostAtoms, HostModes, Parts
from defectnet.nn.embed import ElementQueries, EnergyEncoding, HostEmbedding, SpectrumEmbedding
from defectnet.nn.fits import CorrelatedFit, ridge_fits
from defectnet.spectrum import KINDS

STIFFNESS: Final = (0.35, 0.6, 1.0, 1.6)
"""Ratios of force constants that are tried: the true one is not known."""

POINTS: Final = 128  # energies at which the response is computed
BINS: Final = PROJECTED_BINS  # bins in which it is compared
_ETA: Final = 1.0  # width of a line, in points
_PATCH: Final = 8  # bins of the host's DOS per token


is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether a program is being exported; torch 2.6 says only whether something is compiled."""


class ImpurityTheory(nn.Module):
    """Spectrum of each element as an impurity, for each of `STIFFNESS`; it has no weights.

    Args:
        grid: Grid of the spectra.
    """

    energies: Tensor
    real: Tensor
    imaginary: Tensor
    moments: Tensor
    masses: Tensor
    softness: Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.eta = _ETA * grid.reach / POINTS
        x = (np.arange(POINTS) + 0.5) * (grid.reach / POINTS)
        kernel = grid.width / ((x[:, None] + 1j * self.eta) ** 2 - grid.centres[None, :] ** 2)  # G = kernel @ g
        for name, value in {
            "energies": x,
            "real": kernel.real.T,
            "imaginary": kernel.imag.T,
            "moments": grid.centres**2 * grid.width,
            "masses": properties("mass_u"),
            "softness": 1.0 / np.array(STIFFNESS) - 1.0,
        }.items():
            self.register_buffer(name, torch.as_tensor(value.copy(), dtype=torch.float32), persistent=False)

    def forward(self, host: Tensor, composition: Tensor, elements: Tensor) -> Tensor:
        """Compute the spectra.

        Args:
            host: (B, L) DOS of the host per relative energy, unit area.
            composition: (B, E) atomic fractions of the host.
            elements: (B, K) long, the elements in question.

        Returns:
            (B, K, S, BINS) DOS per relative energy; the area is 1 less what lies above the grid.
        """
        z_real, z_imaginary = self.energies.square() - self.eta**2, 2.0 * self.eta * self.energies  # (N,)
        g_real, g_imaginary = host @ self.real, host @ self.imaginary  # (B, N)
        norm = (g_real.square() + g_imaginary.square()).clamp_min(1e-12)
        d_real, d_imaginary = (z_real - g_real / norm)[:, None], (z_imaginary + g_imaginary / norm)[:, None]
        mu = (host @ self.moments).clamp_min(1e-3)
        softness = (self.softness / mu[:, None])[..., None]  # (B, S, 1)
        a, b = 1.0 + softness * d_real, softness * d_imaginary  # (B, S, N)
        norm = (a.square() + b.square()).clamp_min(1e-12)
        d_real, d_imaginary = (d_real * a + d_imaginary * b) / norm, (d_imaginary * a - d_real * b) / norm
        mass = (self.masses[elements] / (composition @ self.masses)[:, None])[..., None, None]  # (B, K, 1, 1)
        a = mass * z_real - d_real[:, None]  # (B, K, S, N)
        b = mass * z_imaginary - d_imaginary[:, None]
        dos = b / (a.square() + b.square()).clamp_min(1e-12) * (mass * (2.0 / math.pi * self.energies))
        pooled: Tensor = avg_pool1d(dos.clamp_min(0.0).flatten(0, 2), POINTS // BINS)
        return pooled.reshape(*dos.shape[:3], BINS)


class Explained(NamedTuple):
    """What the dictionary says.

    Attributes:
        features: (B, K, D) what fits of the responses say of each element.
        response: (B, K, BINS) change of the DOS per concentration.
        parts: What responses are made of.
    """

    features: Tensor
    response: Tensor
    parts: Parts


class ResponseDictionary(nn.Module):
    """What a unit of each element would change in the spectrum of this host, and how much of each explains the change.

    Dilute dopants act one by one: doped less host is the sum of their concentrations times a response S of each. The
    responses are predicted from the host alone: the theory of `ImpurityTheory`, softly chosen, and a network that reads
    the host say what each dopant does to each element of it, and a response is the sum
    (`defectnet.nn.changes.ElementChanges`). They are taught on the true concentrations and on projected DOS
    (`losses`), and are then fitted to what is seen: alone, together with ridge regression over the candidates, and
    with correlated errors (`CorrelatedFit`).

    Args:
        grid: Grid of the spectra.
        descriptors: (E, P) standardised properties of the elements.
        width: D.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over D.
        dropout: Share of activations dropped in training.
        layers: Blocks that read the host.
    """

    weights: Tensor

    def __init__(
        self,
        grid: Grid,
        descriptors: Tensor,
        width: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        layers: int = 2,
    ) -> None:
        super().__init__()
        if grid.bins % BINS or grid.bins % _PATCH:
            raise ConfigError(
                f"DefectNet with a grid of {grid.bins} bins", fix=f"Use a grid whose bins are a multiple of {BINS}"
            )
        self.pool = grid.bins // BINS
        self.theory = ImpurityTheory(grid)
        self.register_buffer("weights", torch.as_tensor(NEUTRON_WEIGHT, dtype=torch.float32), persistent=False)
        centres = torch.as_tensor(grid.centres.reshape(-1, _PATCH).mean(axis=1), dtype=torch.float32)
        self.register_buffer("centres", centres, persistent=False)
        self.spectrum = SpectrumEmbedding(2, width, _PATCH)
        self.energy = EnergyEncoding(width)
        self.host = HostEmbedding(descriptors, width)
        self.encoder = EncoderBlock(width, heads, mlp_ratio, dropout)
        self.encoded = nn.LayerNorm(width)
        self.queries = ElementQueries(descriptors, width)
        curves = len(STIFFNESS) * BINS
        self.profile = nn.Linear(curves, width)
        self.gain = nn.Linear(2, width, bias=False)
        self.readers = nn.ModuleList(CrossBlock(width, heads, mlp_ratio, dropout) for _ in range(layers))
        self.read = nn.LayerNorm(width)
        self.choice = nn.Linear(width, len(STIFFNESS))
        self.modes = HostModes(grid.reach)
        self.changes = ElementChanges(grid.reach, width)
        self.log_ridge = nn.Parameter(torch.tensor([-5.0, -2.5]))
        self.overlap = nn.Linear(BINS, width, bias=False)
        self.fit = nn.Linear(5, width, bias=False)
        self.correlated = CorrelatedFit()
        self.correlated_fit = nn.Linear(CorrelatedFit.features, width, bias=False)

    def forward(self, batch: Batch, elements: Tensor) -> Explained:
        """Predict the responses and fit them.

        Args:
            batch: Spectra (B, L), composition and candidates (B, E).
            elements: (B, K) long, the elements in question; those that are no candidates are not fitted.

        Returns:
            What the fits say of each element, and the responses.
        """
        host = batch.host
        channels = torch.stack([host, torch.log10(host.clamp_min(0.0) + 1e-2)], dim=1)
        spectrum = self.spectrum(channels) + self.energy(self.centres, batch.edge_mev)
        atoms, filled = self.host(batch.composition)
        tokens = torch.cat([spectrum, atoms], dim=1)
        ones = torch.ones(spectrum.shape[:2], dtype=torch.bool, device=host.device)
        readable = torch.cat([ones, filled], dim=1)[:, None, None, :]
        tokens = self.encoded(self.encoder(tokens, readable))
        gain = self._gain(batch, elements, if_projected=0.0)  # (B, K)
        # Half precision would not do for the theory's near-singular sums, nor for the fits.
        with torch.no_grad(), torch.autocast(host.device.type, enabled=False):
            before, after = (avg_pool1d(curve.unsqueeze(1), self.pool) for curve in (host, batch.doped))  # (B, 1, N)
            seen = after - before
            added = self.theory(host, batch.composition, elements) - before.unsqueeze(1)  # (B, K, S, N)
        none = torch.zeros_like(batch.candidates_given)
        x = self.queries(batch.composition, none, torch.zeros_like(batch.edge_mev), elements)
        log_gain = gain.clamp_min(0.02).log()
        x = (
            x
            + self.profile(added.clamp(-2.0, 6.0).flatten(2))
            + self.gain(torch.stack([gain.clamp_max(5.0), log_gain], -1))
        )
        for reader in self.readers:
            x = reader(x, tokens, readable)
        x = self.read(x)
        mixed = (self.choice(x).softmax(-1).unsqueeze(-1) * added).sum(2)
        known = self._atoms(batch, tokens[:, spectrum.shape[1] :])
        response, parts = self.changes(before[:, 0], known, x, mixed + before, gain)  # (B, K, N)
        with torch.autocast(host.device.type, enabled=False):
            response = response.to(host.dtype)
            chosen = response * batch.candidates.gather(1, elements).unsqueeze(-1)
            fit = torch.cat([ridge_fits(chosen, seen, self.log_ridge), log_gain.unsqueeze(-1)], -1)
            overlap = (8.0 * chosen * seen).clamp(-6.0, 6.0)
            correlated = self.correlated(chosen, seen.squeeze(1), self.modes(before[:, 0]))
        # Nothing but fits goes on: what an element would do in this host says nothing of whether it is there, and a
        # network that is shown it learns crystals by heart.
        out: Tensor = self.overlap(overlap) + self.fit(fit) + self.correlated_fit(correlated)
        return Explained(out, response, parts)

    def _gain(self, batch: Batch, elements: Tensor, *, if_projected: float) -> Tensor:
        """Return what an atom of each element (B, K) counts for in the spectra, over the mean of the host."""
        neutron = (batch.kind == KINDS.index("neutron-weighted"))[:, None]
        projected = (batch.kind == KINDS.index("projected"))[:, None]
        gain = self.weights[elements] / (batch.composition @ self.weights)[:, None].clamp_min(1e-6)
        return torch.where(neutron, gain, torch.where(projected, if_projected, 1.0))

    def _atoms(self, batch: Batch, tokens: Tensor) -> HostAtoms:
        """Return the elements of the hosts, as many slots as the richest of them fills; tokens are (B, slots, D)."""
        fraction, slots = batch.composition.topk(self.host.slots, dim=-1)
        # A program that is exported has sizes of its own: all slots.
        most = self.host.slots if is_exporting() else max(int((fraction > 0).sum(1).max()), 1)
        gain = self._gain(batch, slots, if_projected=1.0)
        return HostAtoms(slots[:, :most], fraction[:, :most], gain[:, :most], tokens[:, :most])

    def losses(self, batch: Batch, elements: Tensor, targets: Targets, explained: Explained) -> dict[str, Tensor]:
        """Return how well the responses explain what is seen, (B,) each.

        Args:
            batch: Spectra (B, L).
            elements: (B, K) elements in question.
            targets: True concentrations, and projected DOS if the parts of responses are taught.
            explained: What `forward` returned.

        Returns:
            ``response`` (`response_loss`), and with projected DOS those of `ElementChanges.losses`.
        """
        true = targets.true_concentration.gather(1, elements)
        found = {"response": self.response_loss(batch, true, explained.response)}
        if targets.projected is not None:
            found |= self.changes.losses(explained.parts, batch.kind, elements, targets)
        return found

    def response_loss(self, batch: Batch, concentration: Tensor, response: Tensor) -> Tensor:
        """Return how much of the change of the spectrum the true concentrations leave unexplained.

        Args:
            batch: Spectra (B, L).
            concentration: (B, K) true concentrations.
            response: (B, K, BINS) responses of the same elements.

        Returns:
            (B,), 1 if nothing is explained and 0 if all is; 2 at most.
        """
        seen = avg_pool1d((batch.doped - batch.host).unsqueeze(1), self.pool).squeeze(1)
        explained = (concentration.unsqueeze(-1) * response).sum(1)
        # Cut, lest the few rows that no linear response explains rule the gradient.
        return ((seen - explained).square().mean(-1) / (seen.square().mean(-1) + 1e-3)).clamp_max(2.0)
