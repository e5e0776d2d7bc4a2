"""Calibration of a trained student: how much of the curvature it sees on crystals that it was not trained on.

A regression that is unsure predicts too little: on unseen crystals a student's changes of forces are some per cent too
small, and its phonons too soft. One factor for the energy, from validation crystals, mends that on average.
"""

from __future__ import annotations

import torch

from defectnet.distil.data import DistilDataModule
from defectnet.errors import ConfigError
from defectnet.potentials.student import Student

SMALLEST = 0.1
"""RMS change of forces, eV/angstrom: less, as in the last steps of a descent, says little of curvature beside noise."""


ROUNDS = 6


@torch.no_grad()
def curvature_share(student: Student, data: DistilDataModule) -> float:
    """Return the share of the teacher's change of forces that the student predicts, along that change.

    Args:
        student: Trained.
        data: Its validation split is read.

    Returns:
        Median over comparisons of two cells of one structure, those whose forces change by `SMALLEST` or more; 1 is
        neither too soft nor too stiff.

    Raises:
        ConfigError: The validation split holds nothing to compare.
    """
    data.cutoff = student.config.cutoff
    dtype = student.residual.dtype
    shares = []
    for batch in data.loader("val"):
        moved = batch.to(student.residual.device, dtype)
        forces = student(moved)[1]
        change = forces.index_select(0, moved.left) - forces.index_select(0, moved.right)
        products = torch.stack([(change * moved.change).sum(1), moved.change.square().sum(1)], 1)
        columns = torch.cat([products, torch.ones_like(products[:, :1])], 1)
        sums = columns.new_zeros(len(moved.structure), 3).index_add(0, moved.comparison, columns)
        sums = sums[sums[:, 1] > sums[:, 2] * SMALLEST**2]
        shares.append((sums[:, 0] / sums[:, 1]).cpu())
    if not shares or not len(torch.cat(shares)):
        raise ConfigError("labels: no validation crystal has two cells to compare", fix="Give more labels")
    return float(torch.cat(shares).median())


def calibrate(student: Student, data: DistilDataModule) -> float:
    """Multiply a student's energy by the factor that makes its `curvature_share` 1; returns that factor.

    The repulsion of nuclei is not multiplied, so that a few rounds are needed where bonds are short.
    """
    gain = 1.0
    for _ in range(ROUNDS):
        step = 1.0 / curvature_share(student, data)
        student.amplify(step)
        gain *= step
        if abs(step - 1.0) < 1e-3:
            break
    return gain
