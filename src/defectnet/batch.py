"""What goes into a network and what comes out, as named tuples of plain tensors.

Shape letters, everywhere in the project: B batch, L energy bins, T tokens, D width, E elements of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Pairs of spectra on the common grid: energies relative to the host's edge (see `defectnet.config.Grid`).

    Attributes:
        host: (B, L) phonon DOS of the host per relative energy; unit area.
        doped: (B, L) the same of the doped sample, on the *host's* relative energies.
        edge_mev: (B,) the host's band edge in meV, the unit of the relative energies.
        composition: (B, E) atomic fractions of the host; a row sums to 1.
        candidates: (B, E) bool, elements that may be dopants. All true when nothing is named.
        candidates_given: (B,) bool, true when the user named candidates.
        kind: (B,) long, index into `defectnet.spectrum.KINDS`: how the elements' shares are weighted.
    """

    host: Tensor
    doped: Tensor
    edge_mev: Tensor
    composition: Tensor
    candidates: Tensor
    candidates_given: Tensor
    kind: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return Batch(*(field.to(device) for field in self))

    def rows(self, rows: slice | Tensor) -> Batch:
        """Return some rows (a slice; or a tensor, long or bool)."""
        return Batch(*(field[rows] for field in self))


class Targets(NamedTuple):
    """What is true of each sample.

    Attributes:
        concentration: (B, E) dopant atoms of each element over all atoms, 0 to 1; zero where absent.
        projected: (B, 2, E, N) DOS of each element in the host and in the doped sample, on `PROJECTED_BINS` bins and
            at the resolution of the spectra; areas are atomic fractions. In training alone, for
            networks that learn from them.
    """

    concentration: Tensor
    projected: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """(B, E) bool, true where an element was substituted in."""
        return self.concentration > 0

    def rows(self, rows: Tensor) -> Targets:
        """Return those of some rows (long or bool)."""
        return Targets(self.concentration[rows], None if self.projected is None else self.projected[rows])


class Item(NamedTuple):
    """A batch for training or evaluation.

    Attributes:
        batch: What the network sees.
        targets: What is true.
        rows: (B,) long, positions of the rows in their split or table.
        weight: (B,) what a row's loss is multiplied by; the loss of the batch is the sum. Under DDP the mean over the
            ranks of these sums is minimised, so the weights carry a factor of the number of ranks. None for the mean.
    """

    batch: Batch
    targets: Targets
    rows: Tensor
    weight: Tensor | None = None


class Output(NamedTuple):
    """What a network says; the same meaning in training and in evaluation.

    Attributes:
        identity_logits: (B, E) log-odds that the element is a dopant; minus infinity is never used: elements
            that are not candidates carry `defectnet.models.base.ABSENT_LOGIT`.
        concentration: (B, E) expected concentration of the element *if* it is present, 0 to 1.
    """

    identity_logits: Tensor
    concentration: Tensor
