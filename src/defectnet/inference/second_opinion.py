"""A second opinion of a known crystal: a network that reads its computed responses.

The inference knows one crystal and how spectra of it come about; the network has learnt over many crystals how far
computed responses can be trusted. Where the potential errs, both together are right more often than either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from defectnet.crystal.responses import READABLE, HostResponses
from defectnet.errors import SpectrumError
from defectnet.inference.posterior import Opinion
from defectnet.models.base import DefectModel
from defectnet.spectrum import Spectrum

RESPONSE_CELLS: Final = (12, 6)
"""Superposed cells of each dopant that its response is the mean of, see `defectnet.inference.responses.CELLS`."""


def second_opinion(
    network: DefectModel,
    responses: HostResponses,
    host: Spectrum,
    doped: Spectrum,
    elements: Sequence[str],
    *,
    edge_mev: float,
) -> Opinion:
    """Return what a network says of a measured pair.

    Args:
        network: One that reads computed responses.
        responses: Of the crystal.
        host: DOS of the pristine crystal.
        doped: DOS of the sample.
        elements: In question.
        edge_mev: Band edge of the host.

    Raises:
        DefectNetError: It cannot say anything of this pair.
    """
    if host.kind not in READABLE:
        raise SpectrumError(
            f"no network reads computed responses of {host.kind} DOS", fix=f"Give {' or '.join(READABLE)} DOS"
        )
    found = network.predict(host, doped, responses.formula, candidates=elements, edge=edge_mev, responses=responses)
    return Opinion(found.elements, found.probability)
