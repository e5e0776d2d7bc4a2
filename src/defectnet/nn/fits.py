"""Fits of responses to the change of a spectrum.

Shape letters: B batch, K elements, N bins.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch import Tensor, nn

_RIDGE: Final = (-7.0, 2.0)  # bounds of the logarithm: below, single precision would not do
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
        variance = self.log_shapes.clamp(*_ERRORS).exp().repeat_interleave(shapes.shape[1] // len(self.log_shapes))
        weighted = shapes * variance.sqrt()[:, None]
        white = self.log_white.clamp(*_ERRORS).exp() * torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
        power = seen.square().mean(1)[:, None, None] + 1e-4
        factor = torch.linalg.cholesky(power * (white + weighted.transpose(1, 2) @ weighted))
        both = torch.cat([response, seen[:, None]], dim=1).transpose(1, 2)
        whitened = torch.linalg.solve_triangular(factor, both, upper=False)  # (B, N, K + 1)
        x, d = whitened[..., :-1], whitened[..., -1:]
        gram, right = x.transpose(1, 2) @ x, (x * d).sum(1)
        size = gram.diagonal(dim1=1, dim2=2)
        # The second term: where the change is weak, the first alone would not do in single precision.
        prior = self.log_prior.clamp(0.0, 9.0).exp() + 1e-5 * size.amax(1)
        root = torch.linalg.cholesky(gram + torch.diag_embed(prior[:, None].expand_as(size)))
        mean = torch.cholesky_solve(right.unsqueeze(-1), root).squeeze(-1)
        deviation = torch.cholesky_inverse(root).diagonal(dim1=1, dim2=2).clamp_min(1e-9).sqrt()
        rest = (d.square().sum((1, 2)) - (right * mean).sum(1)).clamp_min(1e-3)[:, None]
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


SWEEPS: Final = 60
"""Sweeps of coordinate descent: amounts of a dozen elements settle to a thousandth."""

_LEFT: Final = 1e-3  # of the squared change: what is always left unexplained


@torch.no_grad()
def non_negative_fits(response: Tensor, seen: Tensor) -> Tensor:
    """Fit amounts that are not negative, by coordinate descent, and again without each element.

    Args:
        response: (B, K, N) responses; zeros for what is not in question.
        seen: (B, N) change of the spectrum.

    Returns:
        (B, K, 4), each of order 1: amount; its share in the change; how much worse the fit is without the element, as
        a logarithm; and that of what the fit leaves, the same for all elements.
    """
    norm = response.norm(dim=2)
    unit = response / norm.clamp_min(1e-9)[..., None]
    gram, right, square = unit @ unit.transpose(1, 2), (unit @ seen[..., None])[..., 0], seen.square().sum(1) + 1e-9
    count = response.shape[1]
    amount = torch.zeros_like(right)
    there = norm > 1e-9

    def descend(x: Tensor, allowed: Tensor, products: Tensor, aim: Tensor, sweeps: int) -> Tensor:
        for _ in range(sweeps):
            for k in range(count):
                step = aim[..., k] - (products[..., k, :] * x).sum(-1)
                x[..., k] = ((x[..., k] + step) * allowed[..., k]).clamp_min(0.0)
        return x

    amount = descend(amount, there, gram, right, SWEEPS)
    left = _rest(square, gram, right, amount)
    own = torch.eye(count, dtype=torch.bool, device=seen.device)
    without = amount[:, None].masked_fill(own, 0.0)  # (B, K, K): a fit for each element that is left out
    without = descend(without, there[:, None] & ~own, gram[:, None], right[:, None], SWEEPS // 4)
    worse = _rest(square[:, None], gram[:, None], right[:, None], without)
    floor = _LEFT * square[:, None]
    return torch.stack(
        [
            8.0 * (amount / norm.clamp_min(1e-6)).clamp_max(1.0),
            2.0 * amount / square.sqrt()[:, None],
            ((worse + floor) / (left[:, None] + floor)).log(),
            (0.5 * ((left + floor[:, 0]) / square).log() + 1.0)[:, None].expand_as(amount),
        ],
        -1,
    )


def _rest(square: Tensor, gram: Tensor, right: Tensor, amount: Tensor) -> Tensor:
    explained = 2.0 * (right * amount).sum(-1) - ((gram @ amount[..., None])[..., 0] * amount).sum(-1)
    return (square - explained).clamp_min(0.0)
