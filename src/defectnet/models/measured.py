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
from defectnet.elements import VOCABULARY, properties
from defectnet.errors import ConfigError
from defectnet.models.base import ABSENT_LOGIT, NETWORK, SAME_COMPOSITION, DefectModel, Provenance
from defectnet.models.calibration import Calibration
from defectnet.models.goodness import bounded_fit
from defectnet.models.losses import LossTerm
from defectnet.models.networks import NETWORKS, named
from defectnet.spectrum import KINDS

MEASURED: Final = "measured responses"
"""What `Provenance.answered_by` says of an answer from measured responses."""

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
_NAMED: Final = 6  # so many elements are named in a sentence
_RATES: Final = {True: 0.35, False: 0.03}
"""Share of elements in question that are there, where candidates are named and where not, in the network's training."""


@dataclass(frozen=True)
class MeasuredConfig(Settings, called="net"):
    """What `MeasuredResponses` is made of.

    Attributes:
        inner: Architecture of the network that answers for other hosts.
        inner_net: Its size; what is left out takes the network's defaults.
        hosts: Hosts with measured responses.
    """

    inner: str = "DefectNet"
    inner_net: dict[str, Any] = field(default_factory=dict)
    hosts: int = bounded(0, 0, 1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        _inner_class(self.inner)


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
        self.inner = _inner_class(self.net.inner).from_config(self.spec.to_dict(), self.net.inner_net)
        self.loss_weights = self.inner.loss_weights
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
        _inner_class(name)
        groups = [rows for rows in same_host(batch) if len(rows) >= FEWEST]
        if not groups:
            raise ConfigError(
                f"no host has {FEWEST} pairs: too few to measure responses",
                fix="Add pairs of one host, or train the network: method full",
            )
        model = cls(inner.spec, MeasuredConfig(name, inner.net.to_dict(), len(groups)))
        model.inner.load_state_dict(inner.state_dict())
        model.calibration, model.training_info = inner.calibration, inner.training_info
        counted = torch.ones(len(batch.host)) if weight is None else weight
        model.eval()  # the network inside is asked what it expects
        for host, rows in enumerate(groups):
            model._measure(host, batch.rows(rows), targets.true_concentration[rows], counted[rows])
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
                logits, concentration = self._answer(host, batch.rows(rows), output.rows(rows))
                old = output.concentration_if_present
                other = output.something_else  # whether the network inside told is of no use: responses do not
                output = output._replace(
                    something_else=None if other is None else other.index_fill(0, rows, torch.nan),
                    identity_logits=output.identity_logits.index_copy(0, rows, logits.to(output.identity_logits.dtype)),
                    concentration_if_present=old.index_copy(0, rows, concentration.to(old.dtype)),
                )
        return output

    def expected_responses(self, batch: Batch) -> Tensor | None:
        """Return the responses that were measured; those of the network inside for other hosts and elements."""
        expected = self.inner.expected_responses(batch)
        if expected is None or not self.net.hosts:
            return expected
        owner = self.host_of(batch)
        known = (owner >= 0)[:, None] & (self.counts[owner] > 0)
        return torch.where(known.unsqueeze(-1), self.responses[owner].to(expected.dtype), expected)

    def forward_training(self, batch: Batch, targets: Targets) -> tuple[Output, dict[str, LossTerm]]:
        """Train the network inside, as long as nothing was measured.

        Raises:
            ConfigError: There are measured responses, which training would not change.
        """
        if self.net.hosts:
            raise ConfigError(
                "a network with measured responses is not trained further",
                fix="Start from the checkpoint that it was made from",
            )
        return self.inner.forward_training(batch, targets)

    def host_of(self, batch: Batch) -> Tensor:
        """Return (B,) the number of each row's host, -1 where its responses were not measured."""
        if not self.net.hosts:
            return torch.full((len(batch.host),), -1, device=batch.host.device)
        same, distance = self._same_substance(batch), self._distance(batch)
        nearest, host = distance.masked_fill(~same, torch.inf).min(dim=1)
        return torch.where(nearest < ALIKE, host, -1)

    def _same_substance(self, batch: Batch) -> Tensor:
        """Return (B, hosts) bool: of one composition and kind of DOS."""
        same = torch.cdist(batch.composition, self.compositions.to(batch.composition.dtype), p=1) < SAME_COMPOSITION
        return same & (batch.kind[:, None] == self.kinds)

    def _distance(self, batch: Batch) -> Tensor:
        """Return (B, hosts) total-variation distance of the hosts' spectra."""
        return 0.5 * torch.cdist(batch.host, self.hosts.to(batch.host.dtype), p=1) * self.spec.grid.width

    def calibrated_host(self, batch: Batch) -> list[int]:
        """Return which of `Calibration.hosts` each question is about: by what `host_of` recognises."""
        numbers = {h.measured: i for i, h in enumerate(self.calibration.hosts)} if self.calibration else {}
        return [
            numbers.get(host, -1) if host >= 0 else -1 for host in self.host_of(batch.to(self.hosts.device)).tolist()
        ]

    def provenance(self, batch: Batch) -> list[Provenance]:
        """Say of each question whether measured responses answer it, and if not, why the host was not recognised."""
        batch = batch.to(self.hosts.device)
        owner = self.host_of(batch).tolist()
        return [self._provenance(batch.rows(slice(i, i + 1)), host) for i, host in enumerate(owner)]

    @property
    def _trained_since(self) -> bool:
        """Whether the network inside was trained further: measuring responses leaves it as it was."""
        return False

    def _warnings(self, batch: Batch, calibration: Calibration) -> list[str]:
        found = super()._warnings(batch, calibration)
        if self.calibrated_host(batch)[0] < 0 and int(self.host_of(batch.to(self.hosts.device))[0]) >= 0:
            found.append("not calibrated: temperature, threshold and interval are those of the network")
        return found

    def _provenance(self, question: Batch, host: int) -> Provenance:
        asked = question.candidates[0]
        if host >= 0:
            known = self.counts[host] > 0
            others = _symbols(asked & ~known)
            if not others:
                return Provenance(MEASURED)
            named = ", ".join(others) if len(others) <= _NAMED else f"the {len(others)} other elements"
            return Provenance(MEASURED, f"no pair of this host held {named}: of these the network answers")
        if not self.net.hosts:
            return Provenance(NETWORK, "no responses were measured")
        formula = _named(question.composition[0])
        composition = torch.cdist(question.composition, self.compositions.to(question.composition.dtype), p=1)[0]
        alike = composition < SAME_COMPOSITION
        if not alike.any():
            measured = ", ".join(dict.fromkeys(_named(shares) for shares in self.compositions))
            return Provenance(NETWORK, f"no responses were measured of {formula}, only of {measured}")
        if not self._same_substance(question).any():
            kinds = ", ".join(dict.fromkeys(KINDS[int(k)] for k in self.kinds[alike]))
            return Provenance(
                NETWORK,
                f"responses of {formula} were measured on {kinds} DOS, this one is {KINDS[int(question.kind)]}",
            )
        nearest = float(self._distance(question)[self._same_substance(question)].min())
        return Provenance(
            NETWORK,
            f"host not recognised: its spectrum differs by {nearest:.2f} from the {formula} whose responses were "
            f"measured, at most {ALIKE:g} is taken for the same",
        )

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
        amount = bounded_fit(gram, overlap, torch.zeros_like(overlap), torch.inf)
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
        concentration = other.concentration_if_present.clone()
        logits[:, known] = torch.where(asked, (prior + evidence).clamp(-_SURE, _SURE).to(logits.dtype), ABSENT_LOGIT)
        concentration[:, known] = torch.where(asked, (present * scale).clamp(0.0, 0.5).to(concentration.dtype), 0.0)
        return logits, concentration


def _inner_class(name: str) -> type[DefectModel]:
    """Return the class of a network that can answer for other hosts: one that tells presence and concentration apart.

    Raises:
        ConfigError: There is no such network, or it does not.
    """
    able = [key for key, cls in NETWORKS.items() if cls.hurdle]
    if name not in able and (name in NETWORKS or name == MeasuredResponses.__name__):
        raise ConfigError(f"a {name} cannot answer beside measured responses", fix=f"Use {' or '.join(able)}")
    return named(name)


def _symbols(mask: Tensor) -> tuple[str, ...]:
    return tuple(symbol for symbol, chosen in zip(VOCABULARY, mask.tolist(), strict=True) if chosen)


def _named(shares: Tensor) -> str:
    """Return a formula of atomic fractions (E,), for a reader; smallest whole numbers up to 24 atoms."""
    parts = zip(properties("electronegativity"), VOCABULARY, shares.tolist(), strict=True)
    inside = [(symbol, share) for _, symbol, share in sorted(parts) if share > 0]  # MgB2, not B2Mg
    for atoms in range(1, 25):
        counts = [share * atoms for _, share in inside]
        if all(abs(count - round(count)) < 0.01 and round(count) for count in counts):
            return "".join(
                s + (str(round(n)) if round(n) > 1 else "") for (s, _), n in zip(inside, counts, strict=True)
            )
    return "-".join(symbol for symbol, _ in inside)


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
