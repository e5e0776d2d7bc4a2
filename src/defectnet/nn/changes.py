"""Responses of a crystal, put together from what a dopant does to the atoms of each of the crystal's elements.

A spectrum is a sum over elements, and a simulation knows the terms. To each unit of concentration a dopant k adds the
DOS p of its own atoms, takes places from the elements s of the host, and moves the modes of those that stay:

    S = w_k p_k + sum over s of w_s C_ks - a G,    a = w_k + sum over s of w_s times the area of C_ks

with C_ks the change of the projected DOS of s, G the host's spectrum, w what an atom counts for over the mean of the
host (1, or cross section over mass), and a what keeps the area at 1. The projected DOS of the host is not measured:
each element's share of G is predicted as well. All of these parts are learnt from projected DOS, many numbers for each
pair, where the spectra alone show their sum.

Shape letters: B batch, K elements in question, S elements of the host, N bins, D width.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from defectnet.batch import Targets
from defectnet.config import PROJECTED_BINS
from defectnet.spectrum import KINDS

NODES: Final = 16
_NODE_STEP: Final = 0.08  # in units of the edge: the host's band has 13 nodes
GAINS: Final = (0.02, 20.0)
"""Bounds of what an atom may count for, over the mean of the host, lest a strong scatterer rule the responses."""

_NEVER: Final = -1e4  # a logit that means no: minus infinity has no gradient
_LEAST: Final = 1e-6
_LEAST_SHARE: Final = 1e-4
_LEVEL: Final = 0.02  # added to a DOS before its logarithm
_WORST: Final = 2.0  # losses are cut, lest the few rows that no response explains rule the gradient


class HostModes(nn.Module):
    """What doping does to a host's own modes, in pieces.

    Args:
        reach: Upper end of the grid.
    """

    hats: Tensor
    energies: Tensor

    def __init__(self, reach: float) -> None:
        super().__init__()
        energies = (torch.arange(PROJECTED_BINS) + 0.5) * (reach / PROJECTED_BINS)
        nodes = torch.arange(NODES) * _NODE_STEP
        # Hats around the nodes, which add up to 1: (nodes, N).
        hats = (1.0 - (energies - nodes[:, None]).abs() / _NODE_STEP).clamp_min(0.0)
        self.register_buffer("hats", hats, persistent=False)
        self.register_buffer("energies", energies, persistent=False)

    def forward(self, dos: Tensor) -> Tensor:
        """Return the pieces.

        Args:
            dos: (..., N) DOS of the host, or of one of its elements.

        Returns:
            (..., 3 nodes, N): the DOS under each hat, its change if all energies under the hat grow in proportion,
            and its change if the DOS under the hat is broadened by a bin or two.
        """
        under = dos.unsqueeze(-2) * self.hats
        flow = self.energies * under / (2.0 * (self.energies[1] - self.energies[0]))
        padded = pad(under, (2, 2))
        blurred = (padded[..., :-4] + padded[..., 1:-3] + padded[..., 3:-1] + padded[..., 4:]) / 4.0
        return torch.cat([under, pad(flow, (1, -1)) - pad(flow, (-1, 1)), blurred - under], -2)


class HostAtoms(NamedTuple):
    """The elements of hosts; slots that hold none have the fraction zero.

    Attributes:
        slots: (B, S) long, positions in the vocabulary.
        fraction: (B, S) atomic fractions.
        gain: (B, S) what an atom of each counts for in the spectrum, over the mean of the host.
        tokens: (B, S, D) what is known of each.
    """

    slots: Tensor
    fraction: Tensor
    gain: Tensor
    tokens: Tensor


class Parts(NamedTuple):
    """What responses are made of.

    Attributes:
        atoms: The host's elements.
        share: (B, S, N) logarithm of each one's share of the host's spectrum.
        dopant_dos: (B, K, N) logarithm of the DOS of each dopant's own atoms, as a probability of bins.
        change: (B, K, S, N) change of the projected DOS of each element of the host, per concentration.
    """

    atoms: HostAtoms
    share: Tensor
    dopant_dos: Tensor
    change: Tensor


class ElementChanges(nn.Module):
    """Predicts the parts of responses, and puts them together.

    Args:
        reach: Upper end of the grid.
        width: D.
    """

    def __init__(self, reach: float, width: int) -> None:
        super().__init__()
        self.bin = reach / PROJECTED_BINS
        self.modes = HostModes(reach)
        self.context, self.share = nn.Linear(2 * width, width), nn.Linear(width, PROJECTED_BINS)
        self.own = nn.Linear(width, PROJECTED_BINS)  # of `Parts.dopant_dos`; the name stands in checkpoints
        self.dopant, self.atom = nn.Linear(width, width), nn.Linear(width, width)
        self.site = nn.Linear(width, 1)
        self.bend = nn.Linear(width, 3 * NODES)
        self.correction = nn.Linear(width, PROJECTED_BINS)
        # At first shares go with the amounts, dopants move as theory has it, and the host's modes stay as they are.
        for layer in (self.share, self.own, self.bend, self.correction):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, host: Tensor, atoms: HostAtoms, x: Tensor, theory: Tensor, gain: Tensor) -> tuple[Tensor, Parts]:
        """Predict responses.

        Args:
            host: (B, N) spectrum of the host, unit area.
            atoms: Its elements.
            x: (B, K, D) what is known of each element in question.
            theory: (B, K, N) DOS of each as an impurity, by theory.
            gain: (B, K) what an atom of each counts for in the spectrum, over the mean of the host.

        Returns:
            (B, K, N) change of the spectrum per concentration, and what it is made of.
        """
        held = atoms.fraction > 0
        weight = atoms.gain.clamp(*GAINS)
        mean = (atoms.tokens * held.unsqueeze(-1)).sum(1, keepdim=True).expand_as(atoms.tokens)
        share = self.share(gelu(self.context(torch.cat([atoms.tokens, mean], -1))))
        share = share + (atoms.fraction * weight).clamp_min(_LEAST).log().unsqueeze(-1)
        share = share.masked_fill(~held.unsqueeze(-1), _NEVER).log_softmax(1)
        projected = host[:, None] * share.exp() / weight.unsqueeze(-1)  # (B, S, N), areas are about the fractions
        dopant_dos = ((theory.clamp_min(0.0) + _LEVEL).log() + self.own(x)).log_softmax(-1)
        z = gelu(self.dopant(x).unsqueeze(2) + self.atom(atoms.tokens).unsqueeze(1))  # (B, K, S, D)
        site = self.site(z).squeeze(-1) + atoms.fraction.clamp_min(_LEAST).log().unsqueeze(1)
        site = site.masked_fill(~held.unsqueeze(1), _NEVER).softmax(-1)  # (B, K, S), which places it takes
        taken = site / atoms.fraction.clamp_min(1e-3).unsqueeze(1)
        bent = (self.bend(z).transpose(1, 2) @ self.modes(projected)).transpose(1, 2)
        change = bent + self.correction(z) - taken.unsqueeze(-1) * projected.unsqueeze(1)
        change = change * held[:, None, :, None]
        added = gain.clamp_max(GAINS[1]).unsqueeze(-1) * dopant_dos.exp() / self.bin
        total = added + (weight[:, None, :, None] * change).sum(2)
        response = total - total.sum(-1, keepdim=True) * self.bin * host.unsqueeze(1)
        return response, Parts(atoms, share, dopant_dos, change)

    def losses(self, parts: Parts, kind: Tensor, elements: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Return how far the parts are from the truth.

        Args:
            parts: What `forward` returned.
            kind: (B,) kinds of DOS; of those projected on one element it is not known on which, so they count zero.
            elements: (B, K) elements in question.
            targets: With projected DOS.

        Returns:
            (B,) each. ``host_share``: divergence (Kullback and Leibler) of the host's elements, mean over its
            spectrum; ``dopant_dos``: the same of the dopants' own DOS, mean over the dopants; ``host_change``: what the
            true concentrations leave unexplained of the changes of the host's elements, 1 if all, 2 at most.
        """
        if targets.projected is None:
            raise ValueError("targets without projected DOS")
        atoms = parts.atoms
        held, weight = (atoms.fraction > 0).unsqueeze(-1), atoms.gain.clamp(*GAINS).unsqueeze(-1)
        host, doped = targets.projected.unbind(1)  # (B, E, N)
        at = atoms.slots.unsqueeze(-1).expand(-1, -1, PROJECTED_BINS)
        before, after = host.gather(1, at) * weight * held, doped.gather(1, at) * weight * held  # (B, S, N)
        whole = before.sum(1, keepdim=True)
        true = (before / whole.clamp_min(_LEAST)).clamp_min(_LEAST_SHARE).log()
        share = (before * (true - parts.share.clamp_min(-12.0))).sum((1, 2)) / whole.sum((1, 2)).clamp_min(_LEAST)
        dos = doped.gather(1, elements.unsqueeze(-1).expand(-1, -1, PROJECTED_BINS))
        area = dos.sum(-1, keepdim=True)
        dos = dos / area.clamp_min(1e-9)  # (B, K, N)
        concentration = targets.true_concentration.gather(1, elements)
        present = (concentration > 0) & (area.squeeze(-1) > 1e-9)  # all of a local mode may lie above the grid
        divergence = (dos * (dos.clamp_min(_LEAST).log() - parts.dopant_dos)).sum(-1)
        divergence = (divergence * present).sum(1) / present.sum(1).clamp_min(1)
        explained = weight * torch.einsum("bk,bksn->bsn", concentration, parts.change)
        seen = after - before
        left = (seen - explained).square().sum((1, 2)) / (seen.square().sum((1, 2)) + 1e-3 * PROJECTED_BINS)
        known = (kind != KINDS.index("projected")).to(share.dtype)
        return {
            "host_share": known * share,
            "dopant_dos": divergence,
            "host_change": known * left.clamp_max(_WORST),
        }
