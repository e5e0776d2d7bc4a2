"""Embeddings: energies, spectra, elements in a host, and elements in question.

Shape letters: B batch, L energy bins, T tokens, D width, E elements, C channels, P properties of an element.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from defectnet.elements import properties


class Fourier(nn.Module):
    """Sines and cosines of a number, at fixed wavelengths in geometric steps.

    Args:
        bands: Number of wavelengths.
        longest: Longest wavelength, in the unit of the number.
        shortest: Shortest wavelength.
    """

    omega: Tensor

    def __init__(self, bands: int, longest: float, shortest: float) -> None:
        super().__init__()
        wavelengths = torch.logspace(math.log10(longest), math.log10(shortest), bands)
        self.register_buffer("omega", 2.0 * math.pi / wavelengths)

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (..., 2 * bands)."""
        phase = x.unsqueeze(-1) * self.omega
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class EnergyEncoding(nn.Module):
    """Where a token lies: relative to the host's edge, and in absolute energy on a log scale.

    The relative energy says which branch of the host a feature sits in; the absolute energy speaks of mass and
    stiffness (a local mode of boron is near 65 to 80 meV in silicon and germanium alike).

    Args:
        width: D.
        bands: Wavelengths of each of the two encodings.
    """

    def __init__(self, width: int, bands: int = 8) -> None:
        super().__init__()
        self.relative = Fourier(bands, longest=5.12, shortest=0.04)  # twice the reach, down to a token
        self.logarithmic = Fourier(bands, longest=16.0, shortest=0.1)  # ln meV: five decades, down to 10 %
        self.project = nn.Linear(4 * bands, width)

    def forward(self, centres: Tensor, edge_mev: Tensor) -> Tensor:
        """Encode the energies of the tokens.

        Args:
            centres: (T,) relative energies.
            edge_mev: (B,) the hosts' band edges.

        Returns:
            (B, T, D).
        """
        absolute = self.logarithmic((edge_mev[:, None] * centres).log())  # (B, T, 2 bands)
        relative = self.relative(centres).expand(edge_mev.shape[0], -1, -1)
        out: Tensor = self.project(torch.cat([relative, absolute], dim=-1))
        return out


class SpectrumEmbedding(nn.Module):
    """Patches of a many-channel spectrum: a convolution at full resolution, then one token per patch.

    Args:
        channels: C.
        width: D.
        patch: Bins per token; divides L.
        kernel: Width of the first convolution in bins; odd.
    """

    def __init__(self, channels: int, width: int, patch: int, kernel: int = 7) -> None:
        super().__init__()
        self.smooth = nn.Conv1d(channels, width, kernel, padding=kernel // 2)
        self.patch = nn.Conv1d(width, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, L) -> (B, T, D) with T = L / patch."""
        out: Tensor = self.patch(nn.functional.gelu(self.smooth(x))).transpose(1, 2)
        return out


class HostEmbedding(nn.Module):
    """One token per element of the host: who it is, what it is like, how much of it there is.

    Args:
        descriptors: (E, P) standardised properties of the elements.
        width: D.
        slots: Most host elements kept, the most abundant ones.
    """

    descriptors: Tensor

    def __init__(self, descriptors: Tensor, width: int, slots: int = 6) -> None:
        super().__init__()
        self.slots = slots
        self.register_buffer("descriptors", descriptors)
        self.element = nn.Embedding(len(descriptors), width)
        self.project = nn.Linear(descriptors.shape[1] + 2, width)
        nn.init.normal_(self.element.weight, std=0.3)

    def forward(self, composition: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the host's elements.

        Args:
            composition: (B, E) atomic fractions.

        Returns:
            Tokens (B, slots, D), and (B, slots) bool, true where a slot holds an element.
        """
        fraction, index = composition.topk(self.slots, dim=-1)
        features = torch.cat([self.descriptors[index], fraction.unsqueeze(-1), fraction.sqrt().unsqueeze(-1)], dim=-1)
        tokens: Tensor = self.element(index) + self.project(features)
        return tokens, fraction > 0


class ElementQueries(nn.Module):
    """One query per element of the vocabulary: a learned vector, its properties, and its relation to the host.

    A dopant shows by its mass and radius *relative to the atom that it replaces*, which is unknown. Two guesses
    stand in: the average over the host, and the host element nearest in properties (softly chosen).

    The shift of the mean log energy speaks of mass (see `defectnet.models.defectnet.log_shift`). For each element and
    each of the two guesses the query holds the concentration that this shift would mean if the element were alone.

    Args:
        descriptors: (E, P) standardised properties of the elements.
        width: D.
    """

    descriptors: Tensor
    log_mass: Tensor

    def __init__(self, descriptors: Tensor, width: int) -> None:
        super().__init__()
        size = descriptors.shape[1]
        self.register_buffer("descriptors", descriptors)
        self.register_buffer("log_mass", torch.as_tensor(np.log(properties("mass_u")), dtype=torch.float32))
        self.element = nn.Embedding(len(descriptors), width)
        self.relation = nn.Sequential(nn.Linear(3 * size + 6, width), nn.GELU(), nn.Linear(width, width))
        self.flag = nn.Embedding(2, width)
        nn.init.normal_(self.element.weight, std=0.3)
        nn.init.normal_(self.flag.weight, std=0.3)

    def forward(self, composition: Tensor, candidates_given: Tensor, shift: Tensor, elements: Tensor) -> Tensor:
        """Build the queries.

        Args:
            composition: (B, E) atomic fractions of the host.
            candidates_given: (B,) bool.
            shift: (B,) change of the mean log energy.
            elements: (B, K) long, the elements in question.

        Returns:
            (B, K, D).
        """
        own = self.descriptors.expand(composition.shape[0], -1, -1)  # (B, E, P)
        average = (composition @ self.descriptors).unsqueeze(1)  # (B, 1, P)
        # Softmax over host elements of the likeness; an element outside the host has weight exactly 0.
        likeness = -torch.cdist(self.descriptors, self.descriptors).square()  # (E, E)
        scores = likeness + composition.clamp_min(1e-30).log().unsqueeze(1)  # (B, E, E)
        weights = scores.masked_fill(~(composition > 0).unsqueeze(1), -torch.inf).softmax(-1)
        replaced = weights @ self.descriptors  # (B, E, P)
        site_fraction = weights @ composition.unsqueeze(-1)  # (B, E, 1)
        own_fraction = composition.unsqueeze(-1)
        mean = (composition @ self.log_mass).unsqueeze(1).expand(-1, len(self.log_mass))
        heavier = torch.stack([mean, weights @ self.log_mass], dim=-1)
        heavier = self.log_mass[:, None] - heavier  # (B, E, 2) against the average and against what is replaced
        # Per unit of concentration the mean log energy falls by half of this; the ratio is damped where masses agree.
        implied = -2.0 * shift[:, None, None] * heavier / (heavier.square() + 0.05)
        features = torch.cat(
            [own, own - average, own - replaced, site_fraction, own_fraction, heavier, 10.0 * implied], dim=-1
        )
        features = features.gather(1, elements.unsqueeze(-1).expand(-1, -1, features.shape[-1]))  # (B, K, ...)
        flag = self.flag(candidates_given.long()).unsqueeze(1)
        out: Tensor = self.element(elements) + self.relation(features) + flag
        return out
