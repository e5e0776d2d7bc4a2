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
