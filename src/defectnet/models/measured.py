"""A network that has measured how dopants act in some hosts, and falls back on itself for all others.

Dilute dopants act one by one: the DOS of the doped sample less that of its host is the sum of their concentrations
times a response of each. What a network must guess for a host that it has never seen, a laboratory can measure: some
samples of known composition correct the guess by ridge regression, and what they leave unexplained gives the
covariance of everything else (noise, placement, what is not linear). An unknown sample of the same host is then a
non-negative least squares problem in that metric (classical least squares of multivariate calibration: Haaland and
Thomas, Anal. Chem. 60, 1193 (1988)).

Concentrated dopants act less than in proportion, for they replace one another's neighbours: what is linear is the
amount a = c / (1 + s A), A the sum of all c. What is still not linear counts as an error, whose variance grows by
1 + g times the square of the sum of all a. One s and one g hold for a host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from defectnet.batch import Batch, Output, Targets
from defectnet.config import ModelSpec, Settings, bounded
from defectnet.elements import VOCABULARY
from defectnet.errors import ConfigError
from defectnet.models.base import ABSENT_LOGIT, DefectModel
from defectnet.models.defectnet import DefectNet
from defectnet.models.resnet import ResNet1d

ALIKE: Final = 0.2
"""Total-variation distance below which the spectra of two hosts of one formula are of the same crystal."""

FEWEST: Final = 4
"""Pairs of a host from which on its responses are worth more than the network's guess."""

RIDGES: Final = (1e-8, 1e-6, 1e-4)
"""Variances of the error of a spectrum over that of a response that are tried: 1e-4 is as much as 1 at.% changes."""

BELIEFS: Final = (0.0, 0.5, 1.0)
"""Shares of what the network expects of a host's dopants that measuring may begin with."""

CURVED: Final = 15
"""Pairs from which on saturation and growing errors are told from chance."""

SATURATIONS: Final = (0.0, 4.0)
"""Values of s that are tried; with 4, dopants of 25 at.% together act as 12.5 at.% would if they stayed dilute."""

GROWTHS: Final = (0.0, 1e2, 1e3)
"""Values of g that are tried; with 1e3, the error at an amount of 10 at.% is 3.3 times that without dopants."""

_SHRINKAGE: Final = 0.2  # of the covariance, towards white noise of its mean variance
_WIDEST: Final = 0.1  # concentration that is expected of a dopant before anything is seen, as a standard deviation
_SURE: Final = 12.0  # no sample is proof: greatest log-odds
_UNSEEN: Final = 0.1  # of a sample in which every element counts as seen beforehand: a new one may come
_SWEEPS: Final = 200
_RATES: Final = {True: 0.35, False: 0.03}
"""Share of elements in question that are there, where candidates are named and where not, in the network's training."""


INNER: Final[dict[str, type[DefectModel]]] = {"DefectNet": DefectNet, "ResNet1d": ResNet1d}
"""Networks that can answer for other hosts: those that tell presence and amount apart."""


@dataclass(frozen=True)
class MeasuredConfig(Settings, called="net"):
    """What `MeasuredResponses` is made of.

    Attributes:
        inner: Architecture of the network that answers for other hosts.
        inner_net: Its size; what is left out takes the network's defaults.
        hosts: Hosts with measured responses.
    """

    inner: str = bounded("DefectNet", choices=tuple(INNER))
    inner_net: dict[str, Any] = field(default_factory=dict)
    hosts: int = bounded(0, 0, 1000)


class MeasuredResponses(DefectModel):
    """Answers from measured responses where the host has them, and from the network inside for all others.

    A dopant that no sample of the host held has no response; for it the network inside is asked, and its odds are
    those of an element that has never been there.

    Args:
        spec: What it reads and answers.
        net: The network inside, and the number of hosts.
    """

    net: MeasuredConfig
    config_type: ClassVar[type[MeasuredConfig]] = MeasuredConfig
    loss: ClassVar[str] = "hurdle"

    hosts: Tensor
    compositions: Tensor
    kinds: Tensor
    pairs: Tensor
    counts: Tensor
    responses: Tensor
    unknown: Tensor
    whitening: Tensor
    saturation: Tensor
    growth: Tensor
    most: Tensor

    def __init__(self, spec: ModelSpec | None = None, net: MeasuredConfig | None = None) -> None:
        super().__init__(spec, net)
        self.inner = INNER[self.net.inner].from_config(self.spec.to_dict(), self.net.inner_net)
        number, elements, bins = self.net.hosts, len(VOCABULARY), self.spec.grid.bins
        for name, shape in {
            "hosts": (number, bins),  # DOS
            "compositions": (number, elements),
            "kinds": (number,),  # positions in `KINDS`
            "pairs": (number,),  # that were learnt from
            "counts": (number, elements),  # of them with the element
            "responses": (number, elements, bins),  # change of the DOS per amount
            "saturation": (number,),  # s
            "growth": (number,),  # g
            "most": (number,),  # largest amount of a pair, all dopants together: the law is not trusted beyond
            "unknown": (number, elements),  # variance of a response over that of a pair's error
            "whitening": (number, bins, bins),  # W with W W^T the inverse of the covariance
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    @classmethod
    def fit(cls, inner: DefectModel, batch: Batch, targets: Targets, weight: Tensor | None = None) -> MeasuredResponses:
        """Measure responses.

        Args:
            inner: Network for all other hosts; it is copied.
            batch: Pairs of known composition.
            targets: Their concentrations.
            weight: (B,) what each pair counts for; all alike if None.

        Raises:
            ConfigError: No host has `FEWEST` pairs, or `inner` is of another kind.
        """
        name = type(inner).__name__
        if name not in INNER:
            raise ConfigError(f"a {name} cannot answer beside measured responses", fix=f"Use a {' or '.join(INNER)}")
        groups = [rows for rows in same_host(batch) if len(rows) >= FEWEST]
        if not groups:
            raise ConfigError(
                f"no host has {FEWEST} pairs: too few to measure responses",
                fix="Add pairs of one host, or use another method of fine-tuning",
            )
        model = cls(inner.spec, MeasuredConfig(name, inner.net.to_dict(), len(groups)))
        model.inner.load_state_dict(inner.state_dict())
        model.calibration, model.training_info = inner.calibration, inner.training_info
        counted = torch.ones(len(batch.host)) if weight is None else weight
        model.eval()  # the network inside is asked what it expects
        for host, rows in enumerate(groups):
            model._measure(host, batch.rows(rows), targets.concentration[rows], counted[rows])
        return model

    def _measure(self, host: int, batch: Batch, concentration: Tensor, weight: Tensor) -> None:
        """Set the responses of a host.

        A share of what the network inside expects is where it begins, R. With D the changes that are seen less X R,
        independent priors of unit variance around R for the elements and errors of variance r, in units of one
        covariance S over the energies, Q = (X X^T + r)^-1 gives the responses R + X^T Q D and what the pairs leave
        unexplained: L^T D with L L^T = Q has covariance S in each row, however few pairs there are. Of the share, of r
        and its growth, and of the saturation of the amounts X those are taken that make the pairs most likely, with
        white S.
        """
        change, guess = (batch.doped - batch.host).double(), self._expected(batch)
        saturations, growths = (SATURATIONS, GROWTHS) if len(change) >= CURVED else ((0.0,), (0.0,))
        amounts = {s: saturated(concentration.double(), s) for s in saturations}
        explained = {s: x @ guess for s, x in amounts.items()}
        single = 1.0 / weight.double().clamp_min(1e-3)
        size = change.numel()

        def spread_of(x: Tensor, growth: float) -> Tensor:
            return single * (1.0 + growth * x.sum(dim=1).square())

        def unlikely(choice: tuple[float, float, float, float]) -> float:
            belief, ridge, saturation, growth = choice
            x = amounts[saturation]
            seen = change - belief * explained[saturation]
            total = x @ x.T + torch.diag(ridge * spread_of(x, growth))
            mean = (seen * torch.linalg.solve(total, seen)).sum() / size
            return float(size * mean.clamp_min(1e-30).log() + seen.shape[1] * torch.logdet(total))

        belief, ridge, saturation, growth = min(product(BELIEFS, RIDGES, saturations, growths), key=unlikely)
        x = amounts[saturation]
        spread = spread_of(x, growth)
        seen = change - belief * explained[saturation]
        inverse = torch.linalg.inv(x @ x.T + torch.diag(ridge * spread))
        whitened = torch.linalg.cholesky(inverse).T @ seen * ridge**0.5  # errors of one pair, all of weight 1
        covariance = whitened.T @ whitened / len(x)
        floor = _SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-8)
        covariance = covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype)
        self.hosts[host] = batch.host.mean(dim=0)
        self.compositions[host], self.kinds[host] = batch.composition[0], batch.kind[0]
        self.pairs[host], self.saturation[host], self.growth[host] = len(x), saturation, growth
        self.most[host] = x.sum(dim=1).max()
        self.counts[host] = (x > 0).sum(dim=0)
        self.responses[host] = belief * guess + x.T @ inverse @ seen
        self.unknown[host] = (1.0 - (x * (inverse @ x)).sum(dim=0)) / ridge
        self.whitening[host] = torch.linalg.cholesky(torch.linalg.inv(covariance))

    def _expected(self, batch: Batch) -> Tensor:
        """Return (E, L) responses that the network inside expects of pairs of one host; zeros if it has none."""
        with torch.no_grad():
            expected = self.inner.expected_responses(batch)
        return torch.zeros(self.responses.shape[1:]).double() if expected is None else expected.double().mean(dim=0)

    def forward(self, batch: Batch) -> Output:
        """Answer for every element of the vocabulary; see `DefectModel.forward`."""
        output: Output = self.inner(batch)
        with torch.no_grad():
            owner = self.host_of(batch)
            for host in torch.unique(owner[owner >= 0]).tolist():
                rows = (owner == host).nonzero()[:, 0]
                part = batch.rows(rows)
                logits, concentration = self._answer(host, part, Output(*(x[rows] for x in output)))
                output = Output(
                    output.identity_logits.index_copy(0, rows, logits.to(output.identity_logits.dtype)),
                    output.concentration.index_copy(0, rows, concentration.to(output.concentration.dtype)),
                )
        return output

    def learn(self, batch: Batch, targets: Targets) -> tuple[Output, dict[str, Tensor]]:
        """Train the network inside, as long as nothing was measured.

        Raises:
            ConfigError: There are measured responses, which training would not change.
        """
        if self.net.hosts:
            raise ConfigError(
                "a network with measured responses is not trained further",
                fix="Start from the checkpoint that it was made from",
            )
        return self.inner.learn(batch, targets)

    def host_of(self, batch: Batch) -> Tensor:
        """Return (B,) the number of each row's host, -1 where its responses were not measured."""
        if not self.net.hosts:
            return torch.full((len(batch.host),), -1, device=batch.host.device)
        distance = 0.5 * torch.cdist(batch.host, self.hosts, p=1) * self.spec.grid.width
        other = torch.cdist(batch.composition, self.compositions, p=1) > 0.01
        distance = distance.masked_fill(other | (batch.kind[:, None] != self.kinds), torch.inf)
        nearest, host = distance.min(dim=1)
        return torch.where(nearest < ALIKE, host, -1)

    def _answer(self, host: int, batch: Batch, other: Output) -> tuple[Tensor, Tensor]:
        """Return logits and concentrations (b, E) of rows of one host; `other` is what the network inside says."""
        known = self.counts[host].nonzero()[:, 0]
        asked = batch.candidates[:, known]  # (b, K)
        basis = self.responses[host, known] @ self.whitening[host]  # (K, L)
        seen = (batch.doped - batch.host) @ self.whitening[host]  # (b, L)
        both = asked[:, :, None] & asked[:, None, :]
        eye = torch.eye(len(known), dtype=basis.dtype, device=basis.device)
        gram = torch.where(both, basis @ basis.T, 0.0) + eye * torch.where(asked, 1e-9, 1.0)[:, None, :]
        overlap = torch.where(asked, seen @ basis.T, 0.0)
        amount = nonnegative(gram, overlap)
        size = gram.diagonal(dim1=1, dim2=2)
        # Where an amount is held at zero, the optimum of it alone lies below.
        free = amount + (overlap - (gram @ amount[:, :, None])[:, :, 0]) / size
        # What is not known of the responses counts as error, too.
        error = 1.0 + self.growth[host] * amount.sum(dim=1).square() + amount.square() @ self.unknown[host, known]
        variance = torch.linalg.inv(gram).diagonal(dim1=1, dim2=2) * error[:, None]
        spread = (1.0 / (1.0 / variance.clamp_min(1e-12) + _WIDEST**-2)).sqrt()
        # How far from linear: amounts are small against 1 / s, however many dopants there are.
        saturation = self.saturation[host]
        total = amount.sum(dim=1, keepdim=True).clamp_max(float(self.most[host]))
        scale = 1.0 / (1.0 - saturation * total)
        mean = free * spread.square() / variance.clamp_min(1e-12)
        z = mean / spread
        log_tail = torch.special.log_ndtr(z)
        count, pairs = self.counts[host, known], self.pairs[host]
        prior = ((count + _UNSEEN) / (pairs - count + 1.0)).log()
        evidence = (spread / _WIDEST).log() + 0.5 * z.square() + log_tail + math.log(2.0)
        present = mean + spread * (-0.5 * z.square() - log_tail).exp() / math.sqrt(2.0 * math.pi)
        named, blind = (math.log(rate / (1.0 - rate)) for rate in (_RATES[True], _RATES[False]))
        usual = torch.where(batch.candidates_given, named, blind)
        never = (_UNSEEN / (pairs + 1.0)).log() - usual  # (b,)
        logits = torch.where(batch.candidates, other.identity_logits + never[:, None], ABSENT_LOGIT)
        concentration = other.concentration.clone()
        logits[:, known] = torch.where(asked, (prior + evidence).clamp(-_SURE, _SURE).to(logits.dtype), ABSENT_LOGIT)
        concentration[:, known] = torch.where(asked, (present * scale).clamp(0.0, 0.5).to(concentration.dtype), 0.0)
        return logits, concentration


def saturated(concentration: Tensor, saturation: float) -> Tensor:
    """Return the amounts (B, E) that concentrations (B, E) act as: c / (1 + s sum of c)."""
    return concentration / (1.0 + saturation * concentration.sum(dim=-1, keepdim=True))


def same_host(batch: Batch) -> list[Tensor]:
    """Group pairs by host: one composition, one kind of DOS, and spectra closer than `ALIKE` to the group's first.

    Args:
        batch: Any number of pairs.

    Returns:
        Rows of each group, in order.
    """
    groups: list[list[int]] = []
    for row in range(len(batch.host)):
        for group in groups:
            first = group[0]
            if batch.kind[row] != batch.kind[first]:
                continue
            if float((batch.composition[row] - batch.composition[first]).abs().sum()) > 0.01:
                continue
            distance = (batch.host[row] - batch.host[first]).abs().sum() / batch.host[first].sum()
            if 0.5 * float(distance) < ALIKE:
                group.append(row)
                break
        else:
            groups.append([row])
    return [torch.tensor(group) for group in groups]


def nonnegative(gram: Tensor, overlap: Tensor) -> Tensor:
    """Solve non-negative least squares by coordinate descent.

    Args:
        gram: (B, K, K) positive definite.
        overlap: (B, K).

    Returns:
        (B, K), the x >= 0 with the least x^T gram x / 2 - overlap^T x.
    """
    x = torch.zeros_like(overlap)
    size = gram.diagonal(dim1=1, dim2=2)
    for _ in range(_SWEEPS):
        before = x.clone()
        for k in range(x.shape[1]):
            rest = overlap[:, k] - (gram[:, k] * x).sum(dim=1) + size[:, k] * x[:, k]
            x[:, k] = (rest / size[:, k]).clamp_min(0.0)
        if not (x - before).abs().gt(1e-9).any():
            break
    return x
