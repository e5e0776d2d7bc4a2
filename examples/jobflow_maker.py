"""A job for jobflow: which dopants are in a sample, from what earlier jobs computed or a file holds.

    job = IdentifyMaker(pack="CdTe", candidates=["Mg", "Zn"]).make("host.csv", "doped.csv")
    run_locally(job)

`host` and `doped` may be the output of other jobs, such as the phonon DOS of atomate2's documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobflow import Maker, job

import defectnet


@dataclass
class IdentifyMaker(Maker):
    """Makes jobs whose output is an answer as plain values; `defectnet.answer_from_dict` reads it.

    Attributes:
        name: Of the jobs.
        candidates: Elements that may be there; None asks about all.
        pack: Host pack, where the crystal is known by one.
        unit, kind: Of spectra that do not say it.
        checkpoint: Network, where the formula alone is known.
    """

    name: str = "identify dopants"
    candidates: list[str] | None = None
    pack: str | None = None
    unit: str | None = None
    kind: str | None = None
    checkpoint: str = "defectnet-small"

    @job
    def make(self, host: Any, doped: Any, formula: Any = None, structure: Any = None) -> dict[str, Any]:
        """Ask about one pair; `formula` or `structure` say which crystal it is, unless `pack` does."""
        answer = defectnet.identify(
            host,
            doped,
            formula=formula,
            structure=structure,
            pack=self.pack,
            candidates=self.candidates,
            unit=self.unit,
            kind=self.kind,
            checkpoint=self.checkpoint,
        )
        return answer.to_dict()
