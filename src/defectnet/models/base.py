"""What every network has in common: a batch in, an `Output` out, and from there to a `Prediction`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from defectnet.batch import Batch, Output, Targets
from defectnet.config import Calibration, ModelSpec, Settings
from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError
from defectnet.measure.encode import encode_pair, stack
from defectnet.prediction import Prediction
from defectnet.spectrum import KINDS, Spectrum

ABSENT_LOGIT: Final = -30.0
"""Log-odds of an element that is no candidate: a probability of 1e-13, and finite, so that losses stay finite."""

SpectrumLike: TypeAlias = str | os.PathLike[str] | Spectrum | tuple[ArrayLike, ArrayLike]
"""A file, a `Spectrum`, or a pair of arrays (energy, dos)."""


class Query(NamedTuple):
    """One question, for `DefectModel.predict_many`.

    Attributes:
        host: DOS of the pristine crystal.
        doped: DOS of the doped sample.
        formula: Formula of the host.
        candidates: Elements that may be dopants; None asks about all.
        edge: The host's band edge in meV; None reads it from its spectrum.
    """

    host: SpectrumLike
    doped: SpectrumLike
    formula: str
    candidates: Sequence[str] | None = None
    edge: float | None = None


class DefectModel(nn.Module, ABC):
    """Base of all networks.

    A subclass sets the class attributes and writes `forward`. What belongs to a checkpoint rather than to the
    network (name, calibration, what it was trained on) is set by `defectnet.hub.io.load`.

    Args:
        spec: What the network reads and answers; the default of `ModelSpec` if None.
        net: Its size, of the subclass's `config_type`; the default of that if None.

    Attributes:
        config_type: Class of `net`.
        loss: Name of the loss that the network is trained with.
        name: Name of the checkpoint; the name of the class before it is saved.
        source: Folder that it was loaded from; None for a network that was not.
        calibration: Numbers that `predict` applies; None before calibration.
        training_info: Where the weights come from; `edge_mev` (lowest and highest band edge seen) and
            `host_elements` (symbols seen) draw warnings where a question lies outside.
    """

    config_type: ClassVar[type[Settings]]
    loss: ClassVar[str]

    def __init__(self, spec: ModelSpec | None = None, net: Settings | None = None) -> None:
        super().__init__()
        self.spec = spec or ModelSpec()
        unknown = [kind for kind in self.spec.kinds if kind not in KINDS]
        if unknown:
            raise ConfigError(f"spec.kinds names {', '.join(unknown)}", fix=f"Known are {', '.join(KINDS)}")
        self.net: Any = net if net is not None else self.config_type()
        if not isinstance(self.net, self.config_type):
            raise ConfigError(
                f"net is a {type(self.net).__name__}", fix=f"{type(self).__name__} takes a {self.config_type.__name__}"
            )
        self.name = type(self).__name__
        self.source: Path | None = None
        self.calibration: Calibration | None = None
        self.training_info: dict[str, Any] = {}

    @property
    def config(self) -> dict[str, Any]:
        """Architecture, spec and size as plain values; `from_config` undoes it, without the weights."""
        return {"architecture": type(self).__name__, "spec": self.spec.to_dict(), "net": self.net.to_dict()}

    @classmethod
    def from_config(cls, spec: Any, net: Any) -> Self:
        """Build an untrained network from plain values.

        Args:
            spec: What `ModelSpec.to_dict` returned.
            net: What `config_type.to_dict` returned.

        Raises:
            ConfigError: A field is unknown, missing, of the wrong type or out of range.
        """
        return cls(ModelSpec.from_dict(spec, where="spec"), cls.config_type.from_dict(net, where="net"))

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Answer for every element of the vocabulary; the same meaning in training and in evaluation.

        Args:
            batch: Spectra (B, L), composition and candidates (B, E); see `defectnet.batch.Batch`.

        Returns:
            Logits (B, E) and concentrations (B, E); elements that are no candidates have `ABSENT_LOGIT` and 0.
        """

    def learn(self, batch: Batch, targets: Targets) -> tuple[Output, dict[str, Tensor]]:
        """Answer a training batch; a subclass may add terms to the loss, each with a value for every row.

        Args:
            batch: As for `forward`.
            targets: True concentrations.

        Returns:
            What `forward` returns, and further terms of the loss by name, (B,) each.
        """
        return self(batch), {}

    @property
    def wants_projected(self) -> bool:
        """Whether `learn` learns from projected DOS, too (`Targets.projected`)."""
        return False

    def expected_responses(self, batch: Batch) -> Tensor | None:
        """Return what a unit of each element is expected to change in the spectra of these hosts, before any is seen.

        Args:
            batch: Of the pairs only the hosts matter.

        Returns:
            (B, E, L) change of the DOS per concentration; None if the network keeps no such thing.
        """
        return None

    def predict(
        self,
        host: SpectrumLike,
        doped: SpectrumLike,
        formula: str,
        *,
        candidates: Sequence[str] | None = None,
        unit: str | None = None,
        kind: str | None = None,
        edge: float | None = None,
    ) -> Prediction:
        """Say which elements were substituted in, and how much of each.

        Args:
            host: DOS of the pristine crystal: a file, a `Spectrum`, or arrays (energy, dos).
            doped: DOS of the doped sample, the same.
            formula: Formula of the host, for instance ``GaAs``.
            candidates: Elements that may be there; None asks about every element that is not in the host.
            unit: Energy unit of files that declare none and of arrays: meV, THz, cm-1 or eV.
            kind: Kind of DOS of files that declare none and of arrays: total, neutron-weighted or projected.
            edge: The host's band edge in meV, where it is known better than its spectrum tells, for instance where
                noise hides it; None reads it from there.

        Raises:
            SpectrumError: A spectrum or its file cannot be used, or the two do not belong together.
            FormulaError: The formula or a candidate cannot be used.
        """
        return self.predict_many([Query(host, doped, formula, candidates, edge)], unit=unit, kind=kind)[0]

    def predict_many(
        self, queries: Sequence[Query], *, unit: str | None = None, kind: str | None = None
    ) -> list[Prediction]:
        """Answer many questions at once; each answer is what `predict` gives alone.

        Args:
            queries: Questions, or plain tuples (host, doped, formula[, candidates[, edge]]).
            unit: As in `predict`.
            kind: As in `predict`.
        """
        if not queries:
            return []
        asked = [Query(*query) for query in queries]
        batch = stack(
            [
                encode_pair(
                    _spectrum(query.host, "host", unit, kind),
                    _spectrum(query.doped, "doped", unit, kind),
                    query.formula,
                    grid=self.spec.grid,
                    candidates=query.candidates,
                    edge_mev=query.edge,
                )
                for query in asked
            ]
        )
        output = self.predict_batch(batch)
        return [
            self._prediction(batch.rows(slice(i, i + 1)), output, i, query.formula) for i, query in enumerate(asked)
        ]

    def predict_batch(self, batch: Batch, batch_size: int = 256, *, precision: int = 64) -> Output:
        """Run the network without gradients and without dropout, in pieces.

        Computed in double precision: in single precision the last digits depend on the shape of the batch and on
        the machine, and an answer should depend on neither. Weights and mode of the network are left as they are.

        Args:
            batch: Any number of rows.
            batch_size: Rows at a time.
            precision: 64, or 32 for two to three times the speed where the last digits do not matter.

        Returns:
            Output on the CPU, float32, concentrations cut to 0 to 1; the same for any `batch_size`.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", fix="Use 1 or more")
        if precision not in (32, 64):
            raise ConfigError(f"precision is {precision}", fix="Use 32 or 64")
        device = next(self.parameters()).device
        single = precision == 32 or device.type == "mps"  # Apple's GPUs have no doubles
        dtype = torch.float32 if single else torch.float64
        state = {key: _cast(value, dtype) for key, value in (*self.named_parameters(), *self.named_buffers())}
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                rows = [batch.rows(slice(i, i + batch_size)) for i in range(0, len(batch.host), batch_size)]
                parts = [self._run(state, Batch(*(_cast(x.to(device), dtype) for x in piece))) for piece in rows]
        finally:
            self.train(training)
        if not parts:
            empty = torch.zeros(0, len(self.spec.elements))
            return Output(empty, empty)
        return Output(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def _run(self, state: dict[str, Tensor], batch: Batch) -> Output:
        output: Output = torch.func.functional_call(self, state, (batch,))
        logits, concentration = (x.float().cpu() for x in output)
        return Output(logits, concentration.clamp(0.0, 1.0))

    def _prediction(self, batch: Batch, output: Output, row: int, formula: str) -> Prediction:
        """Apply the calibration to one row of an output."""
        given = bool(batch.candidates_given[0])
        calibration = self.calibration or Calibration()
        temperature = calibration.temperature_candidates if given else calibration.temperature_blind
        chosen = batch.candidates[0].numpy()
        logits = output.identity_logits[row].numpy()[chosen].astype(np.float64)
        amount = output.concentration[row].numpy()[chosen].astype(np.float64)
        band = calibration.interval
        half = np.full_like(amount, np.nan) if band is None else band.offset + band.slope * amount
        return Prediction(
            elements=tuple(VOCABULARY[i] for i in np.flatnonzero(chosen)),
            probability=1.0 / (1.0 + np.exp(-logits / temperature)),
            concentration=amount,
            low=np.clip(amount - half, 0.0, 1.0),
            high=np.clip(amount + half, 0.0, 1.0),
            coverage=float("nan") if band is None else band.coverage,
            threshold=calibration.threshold_candidates if given else calibration.threshold_blind,
            candidates_given=given,
            formula=formula,
            model=self.name,
            warnings=tuple(self._warnings(batch)),
            edge_mev=float(batch.edge_mev[0]),
        )

    def _warnings(self, batch: Batch) -> list[str]:
        """Say where a question (a batch of one) lies outside of what the network was trained and calibrated on."""
        found = []
        if self.calibration is None:
            found.append("not calibrated: probabilities and the threshold are the network's raw ones")
        if self.calibration is None or self.calibration.interval is None:
            found.append("not calibrated: there is no interval of the concentration")
        kind = KINDS[int(batch.kind[0])]
        if kind not in self.spec.kinds:
            found.append(f"out of domain: a {kind} DOS; trained on {', '.join(self.spec.kinds)}")
        edge = float(batch.edge_mev[0])
        low, high = self.training_info.get("edge_mev", (0.0, float("inf")))
        if not low <= edge <= high:
            found.append(f"out of domain: the band edge is {edge:.1f} meV; trained on {low:.1f} to {high:.1f} meV")
        inside = [VOCABULARY[i] for i in np.flatnonzero(batch.composition[0].numpy())]
        unseen = [symbol for symbol in inside if symbol not in self.training_info.get("host_elements", VOCABULARY)]
        if unseen:
            found.append(f"out of domain: no training host contains {', '.join(unseen)}")
        return found


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype) if x.is_floating_point() else x


def _spectrum(source: SpectrumLike, role: str, unit: str | None, kind: str | None) -> Spectrum:
    """Return any of the three forms of a spectrum as a `Spectrum`."""
    if isinstance(source, Spectrum):
        return source
    if isinstance(source, str | os.PathLike):
        from defectnet.io import read_spectrum  # here, because training needs no readers

        return read_spectrum(source, unit=unit, kind=kind)
    if not isinstance(source, tuple | list) or len(source) != 2:
        raise ConfigError(
            f"{role} is a {type(source).__name__}", fix="Give a file, a Spectrum, or a pair of arrays (energy, dos)"
        )
    if unit is None:
        raise ConfigError(f"{role} is given as arrays without a unit", fix="Say unit='meV', 'THz', 'cm-1' or 'eV'")
    energy, dos = (np.asarray(part, dtype=np.float64) for part in source)
    return Spectrum(energy, dos, unit, kind=kind or "total", source=role)
