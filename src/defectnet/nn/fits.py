"""Fits of responses to the change of a spectrum.

Shape letters: B batch, K elements, N bins.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

_RIDGE: Final = (-7.0, 2.0)  # bounds of the logarithm: below, single precision would not do
_NEVER: Final = -1e4  # log-odds that mean no: minus infinity has no gradient
_ERRORS: Final = (-6.0, 2.0)  # the same for variances of errors, in units of the mean square of the change


def ridge_fits(response: Tensor, seen: Tensor, log_ridge: Tensor) -> Tensor:
    """Fit responses alone, and together with ridge regression.

    Args:
        response: (B, K, N) responses; zeros for what is not in question.
        seen: (B, 1, N) change of the spectrum.
        log_ridge: (R,) logarithms of penalties.

    Returns:
        (B, K, 2 + R), each of order 1: amount of each element alone, likeness of its response to the change, and its
        amount together with the others under each penalty.
    """
    both = (response * seen).mean(-1)  # (B, K)
    gram = response @ response.transpose(1, 2) / response.shape[-1]  # (B, K, K)
    size = gram.diagonal(dim1=1, dim2=2)
    alone = both / (size + 1e-2)
    likeness = both / ((size * seen.square().mean(-1)).clamp_min(0.0) + 1e-6).sqrt()
    together = []
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    for penalty in log_ridge:
        root = torch.linalg.cholesky(gram + penalty.clamp(*_RIDGE).exp() * one)
        together.append(torch.cholesky_solve(both.unsqueeze(-1), root).squeeze(-1))
    return torch.stack([5.0 * alone, 2.0 * likeness, *(8.0 * c for c in together)], -1)


class CorrelatedFit(nn.Module):
    """Fit of responses to a change whose errors hang together: generalised least squares, a posterior of each amount.

    What responses leave unexplained is not white: modes of the host that are shifted, broadened, or fewer than
    predicted are wrong over a whole peak at once. The covariance of the errors is that of such changes, each with a
    variance that is learnt, and of white noise; it is in units of the mean square of the change that is seen, for
    errors grow with the amount. Amounts are normal with one learnt variance beforehand.
    """

    features: ClassVar[int] = 6

    def __init__(self) -> None:
        super().__init__()
        self.log_white = nn.Parameter(torch.tensor(-2.0))
        self.log_shapes = nn.Parameter(torch.tensor([-4.0, -3.0, -4.0]))
        self.log_prior = nn.Parameter(torch.tensor(4.0))  # of the inverse variance

    def forward(self, response: Tensor, seen: Tensor, shapes: Tensor) -> Tensor:
        """Fit.

        Args:
            response: (B, K, N) responses; zeros for what is not in question.
            seen: (B, N) change of the spectrum.
            shapes: (B, 3 nodes, N) changes of the host's own modes: more or less, shifted, broadened.

        Returns:
            (B, K, 6), each of order 1: amount and score of each element alone; mean of all together, mean over its
            standard deviation, log of the deviation; and log of what no amount explains, the same for all elements.
        """
        gram, right, square, prior = self.normal_equations(response, seen, shapes)
        size = gram.diagonal(dim1=1, dim2=2)
        root = torch.linalg.cholesky(gram + torch.diag_embed(prior[:, None].expand_as(size)))
        mean = torch.cholesky_solve(right.unsqueeze(-1), root).squeeze(-1)
        deviation = torch.cholesky_inverse(root).diagonal(dim1=1, dim2=2).clamp_min(1e-9).sqrt()
        rest = (square - (right * mean).sum(1)).clamp_min(1e-3)[:, None]
        return torch.stack(
            [
                5.0 * right / (size + 10.0),
                0.3 * right / (size + 1e-3).sqrt(),
                8.0 * mean,
                0.5 * mean / deviation,
                deviation.log() + 3.0,
                (0.3 * rest.log1p()).expand_as(mean),
            ],
            dim=-1,
        )

    def normal_equations(self, response: Tensor, seen: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return, whitened, products of responses (B, K, K), with the change (B, K), its square and the prior (B,)."""
        variance = self.log_shapes.clamp(*_ERRORS).exp().repeat_interleave(shapes.shape[1] // len(self.log_shapes))
        weighted = shapes * variance.sqrt()[:, None]
        white = self.log_white.clamp(*_ERRORS).exp() * torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
        power = seen.square().mean(1)[:, None, None] + 1e-4
        factor = torch.linalg.cholesky(power * (white + weighted.transpose(1, 2) @ weighted))
        both = torch.cat([response, seen[:, None]], dim=1).transpose(1, 2)
        whitened = torch.linalg.solve_triangular(factor, both, upper=False)  # (B, N, K + 1)
        x, d = whitened[..., :-1], whitened[..., -1:]
        gram, right = x.transpose(1, 2) @ x, (x * d).sum(1)
        # The second term: where the change is weak, the first alone would not do in single precision.
        prior = self.log_prior.clamp(0.0, 9.0).exp() + 1e-5 * gram.diagonal(dim1=1, dim2=2).amax(1)
        return gram, right, d.square().sum((1, 2)), prior


class SubsetFit(CorrelatedFit):
    """The same fit, and beside it how probable each element is where none, one or two elements make up the change.

    Each subset has the evidence of its fit, raised to a learnt power, and a learnt prior; one in which an amount would
    be negative has none.
    """

    features: ClassVar[int] = CorrelatedFit.features + 2

    def __init__(self) -> None:
        super().__init__()
        self.log_odds = nn.Parameter(torch.tensor(-1.0))
        self.log_power = nn.Parameter(torch.tensor(-1.0))

    def forward(self, response: Tensor, seen: Tensor, shapes: Tensor) -> Tensor:
        """Fit; arguments as those of `CorrelatedFit`.

        Returns:
            (B, K, 8): what that returns, log-odds of each element and its mean amount.
        """
        return torch.cat([super().forward(response, seen, shapes), self._subsets(response, seen, shapes)], -1)

    def _subsets(self, response: Tensor, seen: Tensor, shapes: Tensor) -> Tensor:
        gram, right, _, prior = self.normal_equations(response, seen, shapes)
        prior = prior[:, None]
        size = gram.diagonal(dim1=1, dim2=2) + prior
        power, log_odds = self.log_power.clamp(-4.0, 0.0).exp(), self.log_odds.clamp(-6.0, 2.0)
        alone = right / size
        one = power * 0.5 * (right * alone - (size / prior).log()) + log_odds
        one = one.masked_fill((right <= 0) | (size <= prior), _NEVER)
        a, b, r = size[:, :, None], size[:, None, :], right[:, :, None]
        det = (a * b - gram.square()).clamp_min(1e-6 * a * b)
        amount = (b * r - gram * right[:, None, :]) / det  # (B, K, K) of the first of two
        both = amount * r
        two = power * 0.5 * (both + both.transpose(1, 2) - (det / prior[:, None].square()).log()) + 2.0 * log_odds
        wrong = (amount <= 0) | (amount <= 0).transpose(1, 2) | (size <= prior)[:, :, None] | (size <= prior)[:, None]
        own = torch.eye(size.shape[1], dtype=torch.bool, device=size.device)
        two = two.masked_fill(wrong | own, _NEVER)
        none = torch.zeros_like(prior)
        pairs = torch.triu_indices(size.shape[1], size.shape[1], 1, device=size.device)
        total = torch.cat([none, one, two[:, pairs[0], pairs[1]]], 1).logsumexp(1, keepdim=True)
        chance_one, chance_two = (one - total).exp(), (two - total[:, None]).exp()
        chance = (chance_one + chance_two.sum(2)).clamp(1e-5, 1.0 - 1e-5)
        mean = chance_one * alone + (chance_two * amount).sum(2)
        return torch.stack([0.3 * chance.logit(), 8.0 * mean.clamp(-1.0, 1.0)], -1)
