"""Is the fine-tuned network better? Errors before and after on held-out pairs, with intervals, and a verdict.

Two conditions must both hold for "improved": the 95 % bootstrap interval of the difference excludes zero, and the
groups agree so well that random signs of their differences would do as well in at most 5 % of the cases. The second is
for small tables, where a bootstrap of a few groups is too sure of itself: four groups never suffice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from defectnet.data.candidates import Track
from defectnet.lab.data import EncodedPairs
from defectnet.models.answers import Answers, answer
from defectnet.models.base import DefectModel

FloatArray = NDArray[np.float64]
Verdict = Literal["improved", "not distinguishable", "worse"]

RESAMPLES: Final = 2000
LEVEL: Final = 0.05
_EXACT_GROUPS: Final = 14  # so many signs are tried in all combinations
_METRICS: Final = ("mae", "ap")


@dataclass(frozen=True)
class MetricValue:
    """A metric with its 95 % interval.

    Attributes:
        value: Over all held-out pairs.
        low: Lower end, by bootstrap over groups.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values; what is not defined (no dopant at all) is None."""
        return {name: float(x) if np.isfinite(x) else None for name, x in asdict(self).items()}


@dataclass(frozen=True)
class Judgement:
    """Errors of two networks on the same pairs.

    Attributes:
        before: Metric of each track, such as ``candidates/mae`` (at.%) and ``blind/ap``, of the pretrained network.
        after: The same of the fine-tuned one.
        difference: After less before, on the same resamples.
        p_better: Share of random signs that lower the error in the candidates track as much.
        p_worse: Share that raises it as much.
        groups: Groups held out.
        verdict: ``improved``, ``not distinguishable`` or ``worse``.
    """

    before: dict[str, MetricValue]
    after: dict[str, MetricValue]
    difference: dict[str, MetricValue]
    p_better: float
    p_worse: float
    groups: int
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        parts = {
            part: {name: estimate.to_dict() for name, estimate in getattr(self, part).items()}
            for part in ("before", "after", "difference")
        }
        scalars = {name: getattr(self, name) for name in ("p_better", "p_worse", "groups", "verdict")}
        return parts | scalars


def ask(model: DefectModel, pairs: EncodedPairs) -> dict[Track, Answers]:
    """Ask a network about pairs, on one device, in every track that it can answer; the same questions every time.

    Args:
        model: The network; its calibration is not applied.
        pairs: Pairs on its grid.
    """
    everything = range(len(pairs))
    return {track: answer(model, [pairs.item(everything, track)]) for track in model.tracks}


def join(parts: Sequence[tuple[Sequence[int], Mapping[Track, Answers]]]) -> dict[Track, Answers]:
    """Put the answers of several folds back into the order of the table.

    Args:
        parts: For each fold the positions of its pairs and the answers.
    """
    order = torch.argsort(torch.tensor([row for rows, _ in parts for row in rows]))
    return {track: Answers.join([found[track] for _, found in parts]).rows(order) for track in parts[0][1]}


def judge(
    before: Mapping[Track, Answers], after: Mapping[Track, Answers], groups: Sequence[str], seed: int = 0
) -> Judgement:
    """Compare two networks on held-out pairs.

    Args:
        before: Answers of the pretrained network.
        after: Answers of the fine-tuned one to the same questions.
        groups: Group of each pair; pairs of a group are resampled together.
        seed: Of the bootstrap.
    """
    names = sorted(set(groups))
    group = np.array([names.index(name) for name in groups])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), RESAMPLES).astype(np.float64)
    counts = np.concatenate([np.ones((1, len(names))), drawn])  # the first row is the data themselves
    values = [
        {f"{track}/{name}": v for track in side for name, v in _metrics(side[track], group, counts).items()}
        for side in (before, after)
    ]
    difference = {name: values[1][name] - values[0][name] for name in values[0]}
    old, new = (_errors(side["candidates"])[0] for side in (before, after))
    asked = before["candidates"].batch.candidates.numpy()
    change = np.bincount(group, weights=((new - old) * asked).sum(axis=1)).astype(np.float64)
    better, worse = _sign_flips(change, rng), _sign_flips(-change, rng)
    estimates = [{name: _estimate(v) for name, v in part.items()} for part in (*values, difference)]
    return Judgement(
        estimates[0], estimates[1], estimates[2], better, worse, len(names), _verdict(estimates[2], better, worse)
    )


def _verdict(difference: Mapping[str, MetricValue], p_better: float, p_worse: float) -> Verdict:
    """The error of the concentration decides; a clear loss in identification vetoes, or is worse by itself."""
    mae = difference["candidates/mae"]
    identity_lost = any(estimate.high < 0.0 for name, estimate in difference.items() if name.endswith("/ap"))
    if (mae.low > 0.0 and p_worse <= LEVEL) or identity_lost:
        return "worse"
    return "improved" if mae.high < 0.0 and p_better <= LEVEL else "not distinguishable"


def _errors(answers: Answers) -> tuple[FloatArray, FloatArray]:
    """Return absolute errors of the expected concentration in at.%, and logits, (B, E) each."""
    error = 100.0 * (answers.expected_concentration - answers.targets.true_concentration).abs()
    return error.double().numpy(), answers.output.identity_logits.double().numpy()


def _metrics(answers: Answers, group: NDArray[np.intp], counts: FloatArray) -> dict[str, FloatArray]:
    """Return each metric for each way of counting the groups.

    Args:
        answers: Of one track.
        group: (B,) group of each pair.
        counts: (R, groups) how often each group is counted.

    Returns:
        ``mae`` (at.%, over elements in question) and ``ap`` (average precision over them), (R,) each.
    """
    asked = answers.batch.candidates.numpy()
    error, logits = _errors(answers)
    sums = np.bincount(group, weights=(error * asked).sum(axis=1))
    sizes = np.bincount(group, weights=asked.sum(axis=1))
    owner = np.broadcast_to(group[:, None], asked.shape)[asked]
    present = answers.targets.present.numpy()[asked]
    return {
        "mae": (counts @ sums) / (counts @ sizes),
        "ap": average_precision(logits[asked], present, counts[:, owner]),
    }


def average_precision(score: FloatArray, present: NDArray[np.bool_], weight: FloatArray) -> FloatArray:
    """Return the average precision for several weightings of the same answers.

    Args:
        score: (n,) larger means more probably present.
        present: (n,) what is true.
        weight: (R, n) what each answer counts for.

    Returns:
        (R,) average precision; NaN where nothing is present. Equal scores count as one step.
    """
    order = np.argsort(-score, kind="stable")
    score, present, weight = score[order], present[order], weight[:, order]
    ends = np.flatnonzero(np.append(score[1:] < score[:-1], True))
    hits = np.cumsum(weight * present, axis=1)[:, ends]
    taken = np.cumsum(weight, axis=1)[:, ends]
    steps = np.diff(hits, axis=1, prepend=0.0)
    precision = hits / np.maximum(taken, 1e-12)
    with np.errstate(invalid="ignore"):
        return np.asarray((steps * precision).sum(axis=1) / hits[:, -1])


def _estimate(values: FloatArray) -> MetricValue:
    value, drawn = float(values[0]), values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, [LEVEL / 2, 1.0 - LEVEL / 2]) if len(drawn) else (np.nan, np.nan)
    return MetricValue(value, float(low), float(high))


def _sign_flips(change: FloatArray, rng: np.random.Generator) -> float:
    """Return the share of sign patterns of `change` (one number a group) whose sum is as low as its own.

    All patterns for few groups, random ones with the data's own among them for more.
    """
    n = len(change)
    if n <= _EXACT_GROUPS:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.concatenate([np.ones((1, n)), rng.choice([-1.0, 1.0], (2**_EXACT_GROUPS, n))])
    slack = 1e-12 * float(np.abs(change).sum())  # rounding must not part what is equal
    return float((signs @ change <= change.sum() + slack).mean())
