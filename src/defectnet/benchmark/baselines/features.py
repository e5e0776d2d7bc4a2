"""Features that the baselines share: of a pair of spectra, and of an element beside a host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import savgol_filter
from sklearn.decomposition import PCA

from defectnet.benchmark.baselines.table import Array, Questions
from defectnet.config import MODEL_GRID
from defectnet.data.candidates import LIKENESS
from defectnet.elements import VOCABULARY, properties
from defectnet.models.defectnet import contrast, contrast_summary, element_descriptors, log_shift
from defectnet.spectrum import KINDS

E: Final = len(VOCABULARY)
CHUNK: Final = 1024
"""Rows that are worked on at a time where (rows, E, features) would be too large at once."""

DESCRIPTORS: Final[Array] = element_descriptors().double().numpy()
"""(E, 5) log mass, covalent radius, electronegativity, group, period; standardised."""

LOG_MASS: Final = np.log(properties("mass_u"))
RELATIONS: Final = 2 * DESCRIPTORS.shape[1] + 5
"""R, the number of columns of `relations`."""


@dataclass(frozen=True)
class Preprocess:
    """How spectra are prepared, as in chemometrics.

    Attributes:
        window: Bins of a Savitzky-Golay filter of second order on both spectra; 0 for none.
        derivative: 1 adds nothing but the first derivative of the difference in place of the difference.
        snv: Whether each contrast is divided by its own standard deviation (standard normal variate), so that only
            its shape is left; its size is kept apart, among the moments.
    """

    window: int = 0
    derivative: int = 0
    snv: bool = False


def smooth(dos: NDArray[np.float32], window: int) -> Array:
    """Apply a Savitzky-Golay filter of second order along the energies; (B, L)."""
    spectra = dos.astype(np.float64)
    return spectra if window < 3 else np.asarray(savgol_filter(spectra, window, 2, axis=1))


def principal_components(x: NDArray[Any], count: int) -> PCA:
    """Fit a principal component analysis to (n, F) rows, by whichever exact way is the cheaper one."""
    tall = x.shape[0] > x.shape[1]
    return PCA(min(count, *x.shape), svd_solver="covariance_eigh" if tall else "full").fit(x)


def contrasts(questions: Questions, how: Preprocess) -> Array:
    """Return (B, 3 L): difference (or its derivative), log ratio and cumulated difference of the two spectra.

    The channels are those of `defectnet.models.defectnet.contrast`, so that no baseline sees less than the network.

    Args:
        questions: ElementPairs.
        how: Preparation.
    """
    # The log ratio needs spectra that are not negative, which a Savitzky-Golay filter may break.
    pair = [torch.from_numpy(np.maximum(smooth(dos, how.window), 0.0)) for dos in (questions.host, questions.doped)]
    channels = contrast(pair[0], pair[1], MODEL_GRID.width).numpy()[:, 2:]
    if how.derivative:
        channels[:, 0] = savgol_filter(channels[:, 0], max(how.window, 5), 2, deriv=1, axis=1)
    if how.snv:
        # Of a pair without any contrast (an undoped control, clean) no shape is left: 1e-3 keeps it at zero.
        channels = channels / (channels.std(axis=2, keepdims=True) + 1e-3)
    return np.asarray(channels.reshape(len(channels), -1))


def moments(questions: Questions) -> Array:
    """Return (B, 7): change of the mean log energy, size of the contrast, shifts of moments, area above the edge.

    See `defectnet.models.defectnet.log_shift` and `contrast_summary`.
    """
    host, doped = (torch.from_numpy(dos).double() for dos in (questions.host, questions.doped))
    centres = torch.from_numpy(MODEL_GRID.centres)
    shift = 10.0 * log_shift(host, doped, centres, MODEL_GRID.width)
    return np.column_stack([shift.numpy(), contrast_summary(host, doped, centres, MODEL_GRID.width).numpy()])


def host_features(questions: Questions) -> Array:
    """Return (B, 15): mean and spread of the descriptors, number of elements, log band edge, kind of DOS (one-hot)."""
    share = questions.composition
    mean = share @ DESCRIPTORS
    spread = np.sqrt(np.maximum(share @ DESCRIPTORS**2 - mean**2, 0.0))
    kinds = np.eye(len(KINDS))[questions.kind]
    return np.column_stack([mean, spread, (share > 0).sum(axis=1), np.log(questions.edge_mev), kinds])


def replaced(composition: Array) -> NDArray[np.int64]:
    """Return (B, E): the host element that is most alike to each element, the one it would most likely replace."""
    likeness = np.where(composition[:, None, :] > 0, LIKENESS[None], -1.0)
    return np.asarray(likeness.argmax(axis=2))


def relations(composition: Array) -> Array:
    """Return what each element is beside a host, (B, E, R).

    Differences of the descriptors to the element it would most likely replace, and to the host's mean; then
    likeness to that element, its share of the host, log mass beside the lightest and the heaviest host element, and
    the log mass itself. Mass comes first: column 0 is the log mass ratio to the replaced element, standardised.

    Args:
        composition: (B, E) atomic fractions of hosts.
    """
    sites = replaced(composition)
    inside = composition > 0
    lightest = np.where(inside, LOG_MASS, np.inf).min(axis=1, keepdims=True)
    heaviest = np.where(inside, LOG_MASS, -np.inf).max(axis=1, keepdims=True)
    single = np.stack(
        [
            LIKENESS[np.arange(E), sites],
            np.take_along_axis(composition, sites, axis=1),
            LOG_MASS - lightest,
            LOG_MASS - heaviest,
            np.broadcast_to(LOG_MASS, sites.shape),
        ],
        axis=2,
    )
    to_site = DESCRIPTORS - DESCRIPTORS[sites]
    to_mean = DESCRIPTORS - (composition @ DESCRIPTORS)[:, None, :]
    return np.concatenate([to_site, to_mean, single], axis=2)


def prior_features(questions: Questions, *, host: bool) -> Array:
    """Return what can be known of each element without a spectrum, (B, E, F).

    Args:
        questions: Only composition and candidates are read.
        host: Whether the host may be looked at; else only the list of candidates.
    """
    asked = questions.asked
    others = asked[:, None, :] & ~np.eye(E, dtype=bool)
    likeness = np.where(others, LIKENESS, 0.0)
    number = asked.sum(axis=1, keepdims=True).clip(1)
    columns = [
        likeness.sum(axis=2) / others.sum(axis=2).clip(1),
        likeness.max(axis=2),
        np.broadcast_to(np.log(number), asked.shape),
        np.broadcast_to(questions.given[:, None], asked.shape),
        np.broadcast_to(np.arange(E), asked.shape),
    ]
    own = np.broadcast_to(DESCRIPTORS, (len(asked), *DESCRIPTORS.shape))
    blocks = [np.stack(columns, axis=2).astype(np.float64), own]
    if host:
        relation = relations(questions.composition)
        # Without band edge and kind: those are read off the spectra.
        per_row = host_features(questions)[:, :11]
        to_host = np.where(questions.composition[:, None, :] > 0, LIKENESS[None], 0.0).max(axis=2)
        rank = (to_host[:, None, :] * asked[:, None, :] > to_host[:, :, None]).sum(axis=2)
        rows = np.broadcast_to(per_row[:, None, :], (*asked.shape, per_row.shape[1]))
        blocks += [relation, np.abs(relation[..., :10]), rank[..., None] / number[..., None], rows]
    return np.concatenate(blocks, axis=2)
