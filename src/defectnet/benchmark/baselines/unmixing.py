"""Unmixing of the contrast into one template per element in question, with coefficients that are not negative."""

from __future__ import annotations

from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from defectnet.benchmark.baselines.base import LEAST, RawScores
from defectnet.benchmark.baselines.composition import WithPrior
from defectnet.benchmark.baselines.features import RELATIONS, E, Preprocess, relations, smooth
from defectnet.benchmark.baselines.table import Array, FitArrays, FitRows, Questions, thin
from defectnet.config import MODEL_GRID

_BLOCK: Final = 512
_CHANNELS: Final = 2


class Nnls(WithPrior):
    """Non-negative least squares of doped minus host, with a template for each element *in its host*.

    A template is the mean contrast per unit of concentration. It is made, bin by bin, by a ridge regression over all
    training rows (with all their dopants together) from what the element is beside the host (`relations`), from that
    times the host's own spectrum and its slope (a change of mass moves modes along it), and from a correction for the
    element itself that is held smaller. So pairs of element and host that were never seen have a template too.

    Residuals of that fit give the noise; contrast and templates are whitened by it and cut to the leading directions
    before scipy's `nnls` (Lawson & Hanson, 1974) solves for the elements in question, with an L1 penalty.
    Scores: the coefficient, and the gain in log-likelihood of each element alone. Searched on validation, one after the
    other: Savitzky-Golay window, penalty of the templates, directions kept, L1 penalty.
    """

    def _fit_method(self, data: FitArrays) -> None:
        part = thin(data.spectra)
        best: dict[str, Any] = {"window": 0, "penalty": 1.0, "directions": 48, "sparsity": 1.0}
        score = self._skill(data, Templates(**best).fit(part).raw)
        steps = (("window", (7, 15)), ("penalty", (0.1, 10.0)), ("directions", (24, 96)), ("sparsity", (0.0, 4.0)))
        for name, values in steps:
            for value in values:
                option = {**best, name: value}
                found = self._skill(data, Templates(**option).fit(part).raw)
                if found > score:
                    score, best = found, option
        self._templates = Templates(**best).fit(data.spectra)
        self.settings = best

    def _raw(self, questions: Questions) -> RawScores:
        return self._templates.raw(questions)


class Templates:
    """Templates of elements in hosts, and what is left when they are taken away.

    Args:
        window: Bins of the Savitzky-Golay filter; 0 for none.
        penalty: Of the ridge regression that makes the templates.
        directions: Leading whitened directions that are kept.
        sparsity: L1 penalty of the coefficients, in units of the noise.
    """

    def __init__(self, window: int, penalty: float, directions: int, sparsity: float) -> None:
        self._how, self._penalty = Preprocess(window), penalty
        self._directions, self._sparsity = directions, sparsity

    def fit(self, part: FitRows) -> Self:
        """Fit templates and noise to rows."""
        self._relation_mean, self._relation_spread = np.zeros(RELATIONS), np.ones(RELATIONS)
        table = relations(thin(part).questions.composition).reshape(-1, RELATIONS)
        self._relation_mean, self._relation_spread = table.mean(axis=0), table.std(axis=0) + 1e-6
        width, bins = 3 * (RELATIONS + 1) + E, MODEL_GRID.bins
        gram, right = np.zeros((bins, width, width)), np.zeros((bins, width))
        for begin in range(0, len(part.true_concentration), _BLOCK):
            piece = part.take(slice(begin, begin + _BLOCK))
            design = self._design(piece)  # (B, L, width)
            by_bin = design.transpose(1, 2, 0)
            gram += by_bin @ by_bin.transpose(0, 2, 1)
            right += (by_bin @ self._contrast(piece.questions).T[..., None])[..., 0]
        # The penalty is in units of the mean squared concentration; an element's own correction is held ten times.
        unit = self._penalty * float((part.true_concentration**2).sum(axis=1).mean()) * 100.0
        held = np.where(np.arange(width) < width - E, unit, 10.0 * unit)
        held[: 3 * (RELATIONS + 1) : RELATIONS + 1] *= 0.1  # what is common to all elements
        self._weights = np.linalg.solve(gram + np.diag(held), right[..., None])[..., 0]  # (L, width)
        self._whiten(thin(part))
        return self

    def raw(self, questions: Questions) -> RawScores:
        """Unmix the contrast of each row over the elements in question."""
        answers = [self._unmix(questions.take(slice(i, i + _BLOCK))) for i in range(0, len(questions.host), _BLOCK)]
        return RawScores(*(np.concatenate(fields) for fields in zip(*answers, strict=True)))

    def matched(self, questions: Questions) -> RawScores:
        """Score each element as if it were alone: a matched filter, which needs no unmixing."""
        _, _, overlap, norm = self._overlaps(questions)
        alone = np.log1p(overlap.clip(0.0) ** 2 / (2.0 * norm + 1e-9))
        return RawScores(alone[..., None], (overlap / (norm + 1e-9)).clip(LEAST, 0.5))

    def _overlaps(self, questions: Questions) -> tuple[Array, Array, Array, Array]:
        """Return whitened contrast (B, K) and templates (B, E, K), their overlaps and the templates' squares (B, E)."""
        contrast = self._contrast(questions) @ self._whitener
        templates = self._templates(questions) @ self._whitener
        overlap = np.einsum("bek,bk->be", templates, contrast)
        return contrast, templates, overlap, np.einsum("bek,bek->be", templates, templates)

    def _unmix(self, questions: Questions) -> RawScores:
        contrast, templates, overlap, norm = self._overlaps(questions)
        alone = overlap.clip(0.0) ** 2 / (2.0 * norm + 1e-9)
        coefficient = np.zeros(overlap.shape)
        for row, asked in enumerate(questions.asked):
            chosen = np.flatnonzero(asked)
            if len(chosen):
                coefficient[row, chosen] = _sparse_nnls(templates[row, chosen], contrast[row], self._sparsity)
        single = (overlap / (norm + 1e-9)).clip(LEAST, 0.5)
        # Of an element that the mixture has no use for, the amount that it would have alone says the most.
        amount = np.where(coefficient > LEAST, coefficient, single).clip(LEAST, 1.0)
        strength = coefficient * np.sqrt(norm)  # in units of the noise
        scores = np.stack([np.log1p(strength), np.log(coefficient.clip(LEAST, 1.0)), np.log1p(alone)], axis=2)
        return RawScores(scores, amount)

    def _whiten(self, part: FitRows) -> None:
        """Find the directions in which templates stand out of what they leave unexplained."""
        rows = [part.take(slice(i, i + _BLOCK)) for i in range(0, len(part.true_concentration), _BLOCK)]
        found = [np.einsum("blw,lw->bl", self._design(piece), self._weights) for piece in rows]
        contrast = np.concatenate([self._contrast(piece.questions) for piece in rows])
        explained = np.concatenate(found)
        noise = np.cov(contrast - explained, rowvar=False)
        noise += (
            np.eye(len(noise)) * max(np.trace(noise) / len(noise), 1e-9) * 0.05
        )  # so that no bin is trusted blindly
        values, vectors = np.linalg.eigh(noise)
        whitener = vectors / np.sqrt(values)
        # Signal over noise, not noise alone: generalised eigenvectors of the explained contrast.
        _, leading = np.linalg.eigh(np.cov(explained @ whitener, rowvar=False))
        self._whitener = whitener @ leading[:, ::-1][:, : self._directions]

    def _contrast(self, questions: Questions) -> Array:
        return smooth(questions.doped, self._how.window) - smooth(questions.host, self._how.window)

    def _basis(self, questions: Questions) -> Array:
        """Return (B, L, 3): one, the host's spectrum, and the change of it when all its modes are moved."""
        host = smooth(questions.host, max(self._how.window, 7))
        moved = np.gradient(host * MODEL_GRID.centres, MODEL_GRID.width, axis=1) / 5.0
        return np.stack([np.ones_like(host), host, moved], axis=2)

    def _beside(self, questions: Questions) -> Array:
        """Return (B, E, R + 1): one, and the standardised relations."""
        table = (relations(questions.composition) - self._relation_mean) / self._relation_spread
        return np.concatenate([np.ones((*table.shape[:2], 1)), table], axis=2)

    def _design(self, part: FitRows) -> Array:
        """Return (B, L, 3 (R + 1) + E): sum over dopants of concentration times what a template is made of."""
        relation = np.einsum("be,ber->br", part.true_concentration, self._beside(part.questions))
        basis = self._basis(part.questions)
        common = (basis[..., None] * relation[:, None, None, :]).reshape(*basis.shape[:2], -1)
        own = np.broadcast_to(part.true_concentration[:, None, :], (*basis.shape[:2], E))
        return np.concatenate([common, own], axis=2)

    def _templates(self, questions: Questions) -> Array:
        """Return (B, E, L)."""
        width = RELATIONS + 1
        weights = self._weights[:, : 3 * width].reshape(-1, 3, width)
        shared = np.einsum("blk,lkr->blr", self._basis(questions), weights)
        own = self._weights[:, 3 * width :].T  # (E, L)
        return np.asarray(self._beside(questions) @ shared.transpose(0, 2, 1) + own)


def _sparse_nnls(templates: Array, contrast: Array, sparsity: float) -> NDArray[np.float64]:
    """Minimise |contrast - c templates|^2 / 2 + sparsity * sum(c |template|) over c >= 0; (n, K) and (K,) to (n,).

    The penalty is completed to a square: with G the Gram matrix and b the overlaps, the problem is one of plain
    non-negative least squares in the Cholesky factor of G.
    """
    gram = templates @ templates.T
    norms = np.sqrt(np.diag(gram))
    gram[np.diag_indices_from(gram)] += 1e-3 * (gram.trace() / len(gram) + 1e-9)  # templates of like elements are close
    factor = np.linalg.cholesky(gram)
    right = np.linalg.solve(factor, templates @ contrast - sparsity * norms)
    solution, _ = nnls(factor.T, right)
    return np.asarray(solution)
