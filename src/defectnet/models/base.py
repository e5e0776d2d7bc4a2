"""What every network has in common: a batch in, an `Output` out, and from there to an `Estimate` and a `Prediction`."""

from __future__ import annotations

import copy
import math
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol, Self, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from defectnet.batch import Batch, Computed, Estimate, Output, Targets
from defectnet.config import Grid, ModelSpec, Settings
from defectnet.elements import INDEX, VOCABULARY, composition, formula_text
from defectnet.errors import ConfigError, DefectNetError
from defectnet.measure.encode import examine_pair, stack
from defectnet.models.calibration import Calibration, calibrated
from defectnet.models.estimator import NEEDS_CANDIDATES, Estimator
from defectnet.models.goodness import goodness
from defectnet.models.losses import HURDLE_WEIGHTS, LossTerm, hurdle_expected, hurdle_terms
from defectnet.nn.heads import MAX_CONCENTRATION
from defectnet.prediction import Fit, Prediction, Unanswered, recorded
from defectnet.provenance import made_with
from defectnet.spectrum import KINDS, Spectrum

ABSENT_LOGIT: Final = -30.0
"""Log-odds of an element that is no candidate: a probability of 1e-13, and finite, so that losses stay finite."""

NETWORK: Final = "network"
"""What `Provenance.answered_by` says of a network's own answer."""

NETWORK_WITH_RESPONSES: Final = "network with computed responses"
"""The same where it read those of the crystal."""

SAME_COMPOSITION: Final = 0.01
"""Sum of the differences of the atomic fractions below which two formulas are of one host."""

MOST_ROWS: Final = 256
"""Rows that a network is asked at a time: 200 MB."""

_FITTED: Final = 64  # questions whose responses are held at a time, a quarter of a megabyte each

SpectrumLike: TypeAlias = str | os.PathLike[str] | Spectrum | tuple[ArrayLike, ...] | Any
"""A file, a `Spectrum`, arrays (energy, dos) or (energy, dos, error), or what else `as_spectrum` takes."""


class Responses(Protocol):
    """Computed responses of a host, such as `defectnet.crystal.responses.HostResponses`."""

    @property
    def formula(self) -> str:
        """Of the host."""

    @property
    def source(self) -> str:
        """Where they come from, for the answer."""

    def computed(self, kind: int) -> Computed:
        """Return what a network reads of them: of one question, whose spectra are of a kind of DOS."""


class Query(NamedTuple):
    """One question, for `DefectModel.predict_many`.

    Attributes:
        host: DOS of the pristine crystal.
        doped: DOS of the doped sample.
        formula: Formula of the host.
        candidates: Elements that may be dopants; None asks about all.
        edge: The host's band edge in meV; None reads it from its spectrum.
        responses: What a host pack says of the crystal; None where nothing is computed.
    """

    host: SpectrumLike
    doped: SpectrumLike
    formula: str | Any
    candidates: Sequence[str] | None = None
    edge: float | None = None
    responses: Responses | None = None


def _query(number: int, query: Any) -> Query:
    """Return a question that may be a plain tuple.

    Raises:
        ConfigError: It is none.
    """
    least, most = len(Query._fields) - len(Query._field_defaults), len(Query._fields)
    if not isinstance(query, tuple | list) or not least <= len(query) <= most:
        raise ConfigError(
            f"query {number} is a {type(query).__name__}",
            why="a query is (host, doped, formula[, candidates[, edge[, responses]]])",
            fix="Give a list of these",
        )
    asked = Query(*query)
    if asked.candidates is None or isinstance(asked.candidates, str):
        return asked
    try:
        return asked._replace(candidates=list(asked.candidates))
    except TypeError as error:
        raise ConfigError(f"candidates is {asked.candidates!r}", fix='Give a list such as ["Al", "In"]') from error


class Provenance(NamedTuple):
    """Which way an answer came about.

    Attributes:
        answered_by: ``network``, ``network with computed responses`` or ``measured responses``.
        reason: Why it was not the better one, or what it holds for; a sentence without a full stop, or empty.
    """

    answered_by: str
    reason: str = ""


class DefectModel(nn.Module, Estimator):
    """Base of all networks.

    A subclass sets `config_type` and writes `forward`. One whose answer means something else than presence and
    concentration if present has a `loss_terms`, an `expected` and `loss_weights` of its own. What belongs to a
    checkpoint rather than to the network (name, calibration, what it was trained on) is set by
    `defectnet.hub.io.load`.

    Args:
        spec: What the network reads and answers; the default of `ModelSpec` if None.
        net: Its size, of the subclass's `config_type`; the default of that if None.

    Attributes:
        config_type: Class of `net`.
        hurdle: Whether presence and concentration are told apart, so that `Output.concentration_if_present` is what
            its name says.
        loss_weights: Names of all terms that the network's loss may have, with their weights where a recipe sets none.
        name: Name of the checkpoint; the name of the class before it is saved.
        source: Folder that it was loaded from; None for a network that was not.
        calibration: Numbers that `estimate` applies; None before calibration.
        training_info: Where the weights come from; `edge_mev` (lowest and highest band edge seen) and
            `host_elements` (symbols seen) draw warnings where a question lies outside.
    """

    config_type: ClassVar[type[Settings]]
    hurdle: ClassVar[bool] = True
    loss_weights: Mapping[str, float] = HURDLE_WEIGHTS

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

    def expected(self, output: Output) -> Tensor:
        """Return the expected concentration of each element, (B, E): what the candidates track is scored on.

        Args:
            output: What the network says, calibrated or not.
        """
        return hurdle_expected(output)

    def loss_terms(self, output: Output, batch: Batch, targets: Targets) -> dict[str, LossTerm]:
        """Return the terms of the loss of an answer by name; each is a key of `loss_weights`.

        Args:
            output: What `forward` returned.
            batch: What was asked.
            targets: What is true.
        """
        return hurdle_terms(output, batch, targets)

    def forward_training(self, batch: Batch, targets: Targets) -> tuple[Output, dict[str, LossTerm]]:
        """Answer a training batch; a network may add auxiliary losses, which validation leaves out.

        Args:
            batch: As for `forward`.
            targets: What is true.

        Returns:
            What `forward` returns, and auxiliary terms by name; each is a key of `loss_weights`.
        """
        return self(batch), {}

    @property
    def tells_something_else(self) -> bool:
        """Whether it tells how probable a dopant is that is not in the list (`Output.something_else`)."""
        return bool(getattr(self.net, "something_else", False))

    @property
    def can_read_computed(self) -> bool:
        """Whether it reads what a host pack says of a crystal (`Batch.computed`)."""
        return bool(getattr(self.net, "computed_responses", False))

    @property
    def wants_projected(self) -> bool:
        """Whether `forward_training` learns from projected DOS, too (`Targets.projected`)."""
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
        formula: str | Any,
        *,
        candidates: Sequence[str] | None = None,
        unit: str | None = None,
        kind: str | None = None,
        edge: float | None = None,
        responses: Responses | None = None,
    ) -> Prediction:
        """Say which elements were substituted in, and how much of each.

        Args:
            host: DOS of the pristine crystal: a file, a `Spectrum`, arrays (energy, dos) or (energy, dos, error), or
                what else `defectnet.io.objects.as_spectrum` takes.
            doped: DOS of the doped sample, the same.
            formula: Formula of the host, for instance ``GaAs``; or a Composition, Structure or Element of pymatgen, or
                Atoms of ase.
            candidates: Elements that may be there; None asks about every element that is not in the host.
            unit: Energy unit of files that declare none and of arrays: meV, THz, cm-1, eV, rad/ps or Hartree.
            kind: Kind of DOS of files that declare none and of arrays: total, neutron-weighted or projected.
            edge: The host's band edge in meV, where it is known better than its spectrum tells, for instance where
                noise hides it; None reads it from there.
            responses: What a host pack says of the crystal, `defectnet.compute_responses(pack)`, for networks that read
                it; without `candidates`, all elements that it holds are in question.

        Raises:
            SpectrumError: A spectrum or its file cannot be used, or the two do not belong together.
            FormulaError: The formula or a candidate cannot be used.
        """
        query = Query(host, doped, formula, candidates, edge, responses)
        return self.predict_many([query], unit=unit, kind=kind)[0]

    @overload
    def predict_many(
        self,
        queries: Sequence[Query],
        *,
        unit: str | None = None,
        kind: str | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> list[Prediction]: ...

    @overload
    def predict_many(
        self,
        queries: Sequence[Query],
        *,
        unit: str | None = None,
        kind: str | None = None,
        on_error: Literal["record"],
    ) -> list[Prediction | Unanswered]: ...

    def predict_many(
        self,
        queries: Sequence[Query],
        *,
        unit: str | None = None,
        kind: str | None = None,
        on_error: Literal["raise", "record"] = "raise",
    ) -> list[Prediction] | list[Prediction | Unanswered]:
        """Answer many questions at once; each answer is what `predict` gives alone.

        Args:
            queries: Questions, or plain tuples (host, doped, formula[, candidates[, edge[, responses]]]).
            unit: As in `predict`.
            kind: As in `predict`.
            on_error: ``raise``, or ``record``: a query that cannot be answered is an `Unanswered` in its place.

        Raises:
            DefectNetError: As `predict`, naming the query, counted from 0.
        """
        if on_error not in ("raise", "record"):
            raise ConfigError(f"on_error is {on_error!r}", fix="Use raise or record")
        if not queries:
            return []
        if on_error == "record":
            return recorded(lambda some: self.predict_many(some, unit=unit, kind=kind), queries)
        asked = [_query(number, query) for number, query in enumerate(queries)]
        from defectnet.io.objects import as_spectrum  # here, because training needs no readers

        pairs, spectra = [], []
        for number, query in enumerate(asked):
            try:
                host = as_spectrum(query.host, "host", unit=unit, kind=kind)
                doped = as_spectrum(query.doped, "doped", unit=unit, kind=kind)
                spectra.append((host, doped))
                pairs.append(
                    examine_pair(
                        host,
                        doped,
                        formula_text(query.formula),
                        grid=self.spec.grid,
                        candidates=query.candidates,
                        edge_mev=query.edge,
                    )
                )
            except DefectNetError as error:
                if len(asked) == 1:
                    raise
                raise type(error)(f"query {number}: {error.what}", why=error.why, fix=error.fix) from error
        batch = stack([self._with_responses(pair.batch, query) for pair, query in zip(pairs, asked, strict=True)])
        calibrations = self.calibrations(batch)
        estimate = calibrated(self.predict_batch(batch), batch, calibrations, self.expected)
        paths = self.provenance(batch)
        said = []
        for i, (query, pair) in enumerate(zip(asked, pairs, strict=True)):
            formula = formula_text(query.formula)
            answer = self._prediction(batch.rows(slice(i, i + 1)), estimate, i, calibrations[i], paths[i], formula)
            told = {name: getattr(pair, name) for name in ("unit", "kind", "kind_told", "unchanged")}
            asked_for = {"candidates": query.candidates, "edge": query.edge}
            told["provenance"] = made_with(self.source, "weights", {**asked_for, "unit": unit, "kind": kind})
            if query.responses is not None and bool(self.reads_computed(batch.rows(slice(i, i + 1)))):
                told |= {"answered_by": NETWORK_WITH_RESPONSES, "reason": query.responses.source}
            said.append(replace(answer, warnings=(*pair.warnings, *answer.warnings), pair=spectra[i], **told))
        return [
            answer
            for i in range(0, len(said), _FITTED)
            for answer in self._with_fit(batch.rows(slice(i, i + _FITTED)), said[i : i + _FITTED])
        ]

    def _with_responses(self, batch: Batch, query: Query) -> Batch:
        """Add the computed responses of a question to a batch of one.

        Raises:
            ConfigError: The network reads none, or they are of another host or not for this kind of DOS.
        """
        found = query.responses
        if found is None:
            return batch
        if not self.can_read_computed:
            raise ConfigError(f"{self.name} reads no computed responses", fix="Leave out responses, or take another")
        shares = torch.as_tensor(composition(found.formula), dtype=batch.composition.dtype)
        if float((batch.composition[0] - shares).abs().sum()) >= SAME_COMPOSITION:
            raise ConfigError(
                f"the responses are of {found.formula}, the host is {formula_text(query.formula)}",
                fix="Compute those of this host",
            )
        computed = found.computed(int(batch.kind[0]))
        if query.candidates is None:  # with those of a few elements no blind question is answered
            batch = batch._replace(candidates=computed.known, candidates_given=torch.ones(1, dtype=torch.bool))
        return batch._replace(computed=computed)

    def _with_fit(self, batch: Batch, said: Sequence[Prediction]) -> list[Prediction]:
        """Add how much of each change the elements found account for, with amounts within their intervals."""
        device = next(self.parameters()).device
        with torch.no_grad():
            responses = self.expected_responses(batch.to(device))
        if responses is None:
            return list(said)
        low, high = torch.zeros(2, *batch.candidates.shape, dtype=torch.float64)
        for i, answer in enumerate(said):
            for symbol in answer.found:
                at, k = INDEX[symbol], answer.elements.index(symbol)
                known = np.isfinite(answer.high[k])
                low[i, at], high[i, at] = (answer.low[k], answer.high[k]) if known else (0.0, MAX_CONCENTRATION)
        change = (batch.doped - batch.host).double().cpu()
        found = goodness(change, responses.double().cpu(), low, high)
        energy = batch.edge_mev.double().cpu().numpy()[:, None] * self.spec.grid.centres
        curves = [(x / batch.edge_mev.cpu()[:, None]).numpy() for x in (change, found.predicted)]
        return [  # of a change that is within its errors there is nothing to explain
            replace(answer, explained=math.nan if answer.unchanged else round(float(share), 4), fit=Fit(*rows))
            for answer, share, *rows in zip(said, found.explained, energy, *curves, strict=True)
        ]

    @property
    def grid(self) -> Grid:
        """Grid that it reads spectra on."""
        return self.spec.grid

    @property
    def coverage(self) -> float | None:
        """Nominal coverage of its intervals, 0 to 1; None without intervals."""
        interval = self.calibration.interval if self.calibration else None
        return None if interval is None else interval.coverage

    def describe(self) -> dict[str, Any]:
        """Return architecture, size and training as plain values."""
        keys = ("data_sha256", "train_rows", "train_pairs", "train_hosts")
        return {
            **super().describe(),
            "architecture": type(self).__name__,
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            "training": {key: self.training_info[key] for key in keys if key in self.training_info},
        }

    def estimate(self, batch: Batch) -> Estimate:
        """Answer a batch, calibrated; see `Estimator.estimate`. Elements not in question have probability 0."""
        found = calibrated(self.predict_batch(batch), batch, self.calibrations(batch), self.expected)
        # An interval for some hosts only is none that a coverage can be stated of.
        return found if self.coverage is not None else found._replace(low=None, high=None)

    def calibrations(self, batch: Batch) -> list[Calibration]:
        """Return the calibration of each question: its host's, that of computed responses, or the general one."""
        general = self.calibration or Calibration()
        read = self.reads_computed(batch).tolist()
        others = [general.computed if known and general.computed is not None else general for known in read]
        return [
            other if i < 0 else general.hosts[i].numbers
            for i, other in zip(self.calibrated_host(batch), others, strict=True)
        ]

    def reads_computed(self, batch: Batch) -> Tensor:
        """Return (B,) bool, which questions are answered with computed responses of some of their candidates."""
        if batch.computed is None or not self.can_read_computed:
            return torch.zeros(len(batch.host), dtype=torch.bool)
        return (batch.computed.known & batch.candidates).any(dim=1).cpu()

    def calibrated_host(self, batch: Batch) -> list[int]:
        """Return which of `Calibration.hosts` each question is about, -1 for none: by formula and kind of DOS."""
        found = [-1] * len(batch.host)
        for i, host in enumerate(self.calibration.hosts if self.calibration else ()):
            if host.measured < 0:
                shares = torch.as_tensor(composition(host.formula), dtype=batch.composition.dtype)
                same = (batch.composition.cpu() - shares).abs().sum(dim=1) < SAME_COMPOSITION
                same &= batch.kind.cpu() == KINDS.index(host.kind)
                found = [i if match else old for match, old in zip(same.tolist(), found, strict=True)]
        return found

    @property
    def _trained_since(self) -> bool:
        """Whether the weights are others than those that the general calibration was fitted to."""
        return self.calibration is not None and self.training_info.get("finetuning", {}).get("kept") == "after"

    def provenance(self, batch: Batch) -> list[Provenance]:
        """Say of each question which way it is answered, and why not a better one."""
        tuned = self.training_info.get("finetuning", {})
        if tuned.get("kept") != "after" or not tuned.get("hosts"):
            return [Provenance(NETWORK)] * len(batch.host)
        hosts = ", ".join(tuned["hosts"])
        shares = [composition(formula) for formula in tuned["hosts"]]
        found = []
        for row in batch.composition.double().cpu().numpy():
            inside = any(np.abs(row - host).sum() < SAME_COMPOSITION for host in shares)
            reason = f"fine-tuned on pairs of {hosts}" + ("" if inside else ", not of this host")
            found.append(Provenance(NETWORK, reason))
        return found

    def predict_batch(self, batch: Batch, batch_size: int = 256, *, precision: int = 64) -> Output:
        """Run the network without gradients and without dropout, in pieces.

        Computed in double precision: in single precision the last digits depend on the shape of the batch and on
        the machine, and an answer should depend on neither. It is a copy of the network that runs: weights and mode
        of this one are left as they are, so that threads can share it.

        Args:
            batch: Any number of rows.
            batch_size: Rows at a time, `MOST_ROWS` at most: so much memory is needed however many are asked.
            precision: 64, or 32 for two to three times the speed where the last digits do not matter.

        Returns:
            Output on the CPU, float32, concentrations cut to 0 to 1; the same for any `batch_size`.

        Raises:
            ConfigError: A setting cannot be, or a row holds NaN or infinity or no host.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}", fix="Use 1 or more")
        if precision not in (32, 64):
            raise ConfigError(f"precision is {precision}", fix="Use 32 or 64")
        _check_rows(batch, self.spec.grid)
        device = next(self.parameters()).device
        single = precision == 32 or device.type == "mps"  # Apple's GPUs have no doubles
        dtype = torch.float32 if single else torch.float64
        network = _for_answers(self, dtype)
        size = min(batch_size, MOST_ROWS)
        parts = []
        with torch.no_grad():
            for i in range(0, len(batch.host), size):
                piece = batch.rows(slice(i, i + size))
                try:
                    output: Output = network(piece.map(lambda x: _cast(x.to(device), dtype)))
                except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # not in its __all__
                    what = f"the network cannot answer rows {i} to {i + len(piece.host) - 1} of the batch"
                    fix = "Look whether these spectra, or its weights, are of believable size"
                    raise ConfigError(what, why=" ".join(str(error).split())[:160], fix=fix) from error
                output = output.map(lambda x: x.float().cpu())
                amount = output.concentration_if_present.clamp(0.0, 1.0)
                parts.append(output._replace(concentration_if_present=amount))
        if not parts:
            empty = torch.zeros(0, len(self.spec.elements))
            return Output(empty, empty, something_else=torch.zeros(0) if self.tells_something_else else None)
        return Output.join(parts)

    def _prediction(
        self,
        batch: Batch,
        estimate: Estimate,
        row: int,
        calibration: Calibration,
        provenance: Provenance,
        formula: str,
    ) -> Prediction:
        """Return one row of an estimate; `batch` is the question alone."""
        given = bool(batch.candidates_given[0])
        chosen = batch.candidates[0].numpy()
        band = calibration.interval

        def values(field: Tensor | None) -> np.ndarray:
            return np.full(int(chosen.sum()), np.nan) if field is None else field[row].double().numpy()[chosen]

        return Prediction(
            elements=tuple(VOCABULARY[i] for i in np.flatnonzero(chosen)),
            probability=values(estimate.probability),
            concentration_if_present=values(estimate.concentration_if_present),
            low=values(estimate.low),
            high=values(estimate.high),
            expected_concentration=values(estimate.expected_concentration),
            coverage=float("nan") if band is None else band.coverage,
            threshold=calibration.threshold(given, int(chosen.sum())),
            candidates_given=given,
            formula=formula,
            model=self.name,
            answered_by=provenance.answered_by,
            reason=provenance.reason,
            warnings=tuple(self._warnings(batch, calibration)),
            edge_mev=float(batch.edge_mev[0]),
            further={name: values(x) for name, x in estimate.further.items()},
            something_else=float("nan") if estimate.something_else is None else float(estimate.something_else[row]),
        )

    def _warnings(self, batch: Batch, calibration: Calibration) -> list[str]:
        """Say where a question (a batch of one) lies outside of what the network was trained and calibrated on."""
        found = []
        if self.calibration is None:
            found.append("not calibrated: probabilities and the threshold are the network's raw ones")
        if calibration.interval is None:
            found.append("not calibrated: there is no interval of the concentration")
        if self._trained_since and self.calibrated_host(batch)[0] < 0:
            found.append("not calibrated: the numbers are those of the weights before fine-tuning")
        track = "candidates" if batch.candidates_given[0] else "blind"
        found += [text for text in calibration.at_bounds if f"({track})" in text]
        if not self.asks_blind and track == "blind":
            found.append(f"out of domain: asked without candidates; the network {NEEDS_CANDIDATES}")
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


def _check_rows(batch: Batch, grid: Grid) -> None:
    """See that every row can be answered: one that cannot would end all others with it, by an error of algebra.

    Raises:
        ConfigError: Which row cannot, and why.
    """
    if batch.host.shape[1:] != (grid.bins,) or batch.doped.shape != batch.host.shape:
        raise ConfigError(f"spectra of a batch have shape {tuple(batch.host.shape)}", fix=f"Use {grid.bins} bins")
    wrong = {
        f"{name} holds NaN or infinity": ~torch.isfinite(x).reshape(len(x), -1).all(dim=1)
        for name, x in batch.tensors().items()
    }
    wrong["composition names no element"] = batch.composition.sum(dim=1) <= 0
    wrong["the band edge is not positive"] = batch.edge_mev <= 0
    wrong["kind is none of the known ones"] = (batch.kind < 0) | (batch.kind >= len(KINDS))
    for what, rows in wrong.items():
        if rows.any():
            raise ConfigError(f"row {int(rows.nonzero()[0, 0])} of the batch: {what}", fix="Leave it out, or mend it")


def _one_thread() -> None:
    """Keep a forked process to one thread: those of OpenMP do not survive a fork, and are waited for ever."""
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_one_thread)


def _for_answers(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a module with tensors of another type, in evaluation mode; it shares all else with the first.

    `torch.func.functional_call` would put such tensors into the module itself for the time of a call, and threads that
    share it would find them there.
    """
    twin = copy.copy(module)
    twin.__dict__ |= {
        "training": False,
        "_parameters": {name: x if x is None else _cast(x, dtype) for name, x in module._parameters.items()},
        "_buffers": {name: x if x is None else _cast(x, dtype) for name, x in module._buffers.items()},
        "_modules": {name: x if x is None else _for_answers(x, dtype) for name, x in module._modules.items()},
    }
    return twin


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype) if x.is_floating_point() else x
