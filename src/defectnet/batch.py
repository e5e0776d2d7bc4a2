"""What goes into a network and what comes out, as named tuples of plain tensors.

Shape letters, everywhere in the project: B batch, L energy bins, T tokens, D width, E elements of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

NOTHING_FURTHER: Final[Mapping[str, Tensor]] = MappingProxyType({})


class Computed(NamedTuple):
    """What host packs say of the crystals of a batch: spectra on the common grid, before any instrument.

    Energies are relative to the *computed* host's edge; C levels of concentration.

    Attributes:
        host: (B, L) DOS of the host, unit area; zeros where nothing was computed.
        response: (B, E, C, L) change of the DOS per concentration of each element; zeros where `known` is false.
        concentration: (B, E, C) at which each was computed; zeros where `known` is false.
        known: (B, E) bool, elements whose response was computed.
    """

    host: Tensor
    response: Tensor
    concentration: Tensor
    known: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> Computed:
        """Return it with a function applied to every tensor."""
        return Computed._make(map(function, self))

    def none(self, rows: int) -> Computed:
        """Return what says nothing of some other rows."""
        return self.map(lambda x: x.new_zeros(rows, *x.shape[1:]))


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
        computed: What host packs say of these crystals; None where none is known.
    """

    host: Tensor
    doped: Tensor
    edge_mev: Tensor
    composition: Tensor
    candidates: Tensor
    candidates_given: Tensor
    kind: Tensor
    computed: Computed | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch with a function applied to every tensor."""
        computed = None if self.computed is None else self.computed.map(function)
        return Batch._make((*map(function, self.tensors().values()), computed))

    def tensors(self) -> dict[str, Tensor]:
        """Return all fields but `computed` by name."""
        return {name: x for name, x in zip(self._fields, self, strict=True) if isinstance(x, Tensor)}

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on another device."""
        return self.map(lambda x: x.to(device))

    def rows(self, rows: slice | Tensor) -> Batch:
        """Return some rows (a slice, or an index or mask tensor)."""
        return self.map(lambda x: x[rows])

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """Put the rows of one batch or more one after the other."""
        fields = zip(*(part.tensors().values() for part in parts), strict=True)
        known = next((part.computed for part in parts if part.computed is not None), None)
        if known is None:
            return cls._make((*map(torch.cat, fields), None))
        computed = [known.none(len(part.host)) if part.computed is None else part.computed for part in parts]
        return cls._make((*map(torch.cat, fields), Computed._make(map(torch.cat, zip(*computed, strict=True)))))


MEASURED: Final = tuple(name for name in Batch._fields if name != "computed")
"""Fields of a batch that are there in all."""


class Targets(NamedTuple):
    """What is true of each sample.

    Attributes:
        true_concentration: (B, E) dopant atoms of each element over all atoms, 0 to 1; zero where absent.
        projected: (B, 2, E, N) DOS of each element in the host and in the doped sample, on `PROJECTED_BINS` bins and
            at the resolution of the spectra; areas are atomic fractions. In training alone, for
            networks that learn from them.
    """

    true_concentration: Tensor
    projected: Tensor | None = None

    @property
    def present(self) -> Tensor:
        """(B, E) bool, true where an element was substituted in."""
        return self.true_concentration > 0

    def rows(self, rows: Tensor) -> Targets:
        """Return those of some rows (long or bool)."""
        return Targets(self.true_concentration[rows], None if self.projected is None else self.projected[rows])


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
    """What a network says, before calibration; the same meaning in training and in evaluation.

    Attributes:
        identity_logits: (B, E) log-odds that the element is a dopant; minus infinity is never used: elements
            that are not candidates carry `defectnet.models.base.ABSENT_LOGIT`.
        concentration_if_present: (B, E) expected concentration of the element *if* it is present, 0 to 1.
        further: What else a network says of each element, by name, (B, E) each. It reaches golden outputs, `Estimate`
            and `Prediction` without anything between having to know the name.
        something_else: (B,) log-odds that an element was substituted in that is no candidate; of no meaning where none
            were named, for then all are in question. NaN where it is not told, None of networks that never tell.
    """

    identity_logits: Tensor
    concentration_if_present: Tensor
    further: Mapping[str, Tensor] = NOTHING_FURTHER
    something_else: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Output:
        """Return an output with a function applied to every tensor."""
        return Output(
            function(self.identity_logits),
            function(self.concentration_if_present),
            {name: function(x) for name, x in self.further.items()},
            None if self.something_else is None else function(self.something_else),
        )

    def rows(self, rows: Tensor) -> Output:
        """Return some rows (an index or mask tensor)."""
        return self.map(lambda x: x[rows])

    @classmethod
    def join(cls, parts: Sequence[Output]) -> Output:
        """Put the rows of one output or more, of one network, one after the other."""
        others: list[Any] = [part.something_else for part in parts]
        return cls(
            torch.cat([part.identity_logits for part in parts]),
            torch.cat([part.concentration_if_present for part in parts]),
            {name: torch.cat([part.further[name] for part in parts]) for name in parts[0].further},
            None if others[0] is None else torch.cat(others),
        )


class Estimate(NamedTuple):
    """What an estimator says of a batch, calibrated. Concentrations are atomic fractions, 0 to 1.

    Elements that are not in question (`Batch.candidates`) are left out of every score, whatever stands there.

    Attributes:
        probability: (B, E) that the element was substituted in, 0 to 1. Only its order matters to average precision
            and recall; the threshold of F1 is chosen on validation rows by the benchmark, for every estimator alike.
        expected_concentration: (B, E) near 0 where the element is likely absent: probability times
            `concentration_if_present`, where an estimator keeps the two apart.
        concentration_if_present: (B, E) concentration if the element is present; `expected_concentration` where None.
        low: (B, E) lower end of the interval of `concentration_if_present`; None without intervals.
        high: (B, E) upper end.
        further: See `Output.further`.
        something_else: (B,) probability that an element was substituted in that was not named; NaN where none were
            named. None of estimators that do not say.
    """

    probability: Tensor
    expected_concentration: Tensor
    concentration_if_present: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    further: Mapping[str, Tensor] = NOTHING_FURTHER
    something_else: Tensor | None = None
