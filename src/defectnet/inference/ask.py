"""From what a user gives to an answer about a known crystal: what the command line and the page both call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectnet.crystal.make import Progress
from defectnet.crystal.pack import HostPack
from defectnet.crystal.responses import HostResponses
from defectnet.crystal.structures import read_structure
from defectnet.defaults import QUICK_CHECKPOINT
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.comparison import Standard, check_formula, check_pair, check_standard
from defectnet.inference.known_crystal import KnownCrystal, known_dopants
from defectnet.inference.packs import check_fits, find_pack_for, in_time
from defectnet.inference.parting import Parting, part
from defectnet.inference.plan import Plan, Setup, check_setup, plan
from defectnet.inference.responses import compute_responses
from defectnet.models.base import DefectModel
from defectnet.spectrum import Spectrum

Report = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done, and of how much; None where that is not known."""


def _quiet(what: str, done: int, total: int | None) -> None:
    pass


@dataclass(frozen=True)
class CrystalWanted:
    """The crystal that a question is about, and what of it is in question.

    Attributes:
        structure: File of its structure, or an object, as for `read_structure`; None where `pack` says it.
        pack: Host pack, or as for `HostPack.load`; None for one that fits the structure, or is computed.
        candidates: Such as ``Al`` or ``Al@Ga``; None for what the pack holds, or the plausible ones.
        formula: To be compared with the crystal's, a text or an object; None for no check.
        potential: What computes substitutions of a structure that no bundled pack has.
        minutes: When to stop computing them; what is missing then is said.
    """

    structure: Any = None
    pack: HostPack | str | Path | None = None
    candidates: Sequence[str] | None = None
    formula: Any = None
    potential: str = "nequix"
    minutes: float | None = None

    def find(
        self, made: Callable[[Progress], None] = lambda _: None
    ) -> tuple[HostPack, Sequence[str] | None, tuple[str, ...]]:
        """Return the pack that is named, or one for the structure; candidates that it holds; and where it comes from.

        Where time was up candidates may be missing, which is among the remarks; otherwise a missing one is an error.

        Args:
            made: Called after each substitution that is computed.

        Raises:
            SimulationError: There is no such pack or structure, they do not fit, or a candidate cannot be there.
        """
        candidates = self.candidates
        if self.pack is not None:
            found = self.pack if isinstance(self.pack, HostPack) else HostPack.load(self.pack)
            name = found.host.id if isinstance(self.pack, HostPack) else self.pack
            if self.structure is not None:
                check_fits(found, read_structure(self.structure))
            remarks: tuple[str, ...] = (f"pack {name}, computed with {found.host.potential}",)
        else:
            found, remarks = find_pack_for(
                self.structure, candidates, potential=self.potential, minutes=self.minutes, report=made
            )
            if self.minutes is not None:
                candidates = in_time(found, candidates, self.minutes)
        check_formula(self.formula, found)
        known_dopants(found, candidates)
        return found, candidates, remarks


@dataclass(frozen=True)
class KnownReply:
    """An answer about a known crystal, and what stands beside it.

    Attributes:
        crystal: What was asked, for further questions.
        answer: What it says.
        parting: What would part the two likeliest explanations; None where there is one alone, or none explains.
        remarks: Where the pack comes from.
        named: Whether candidates were named.
    """

    crystal: KnownCrystal
    answer: KnownCrystalAnswer
    parting: Parting | None
    remarks: tuple[str, ...]
    named: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        to_part = None if self.parting is None else self.parting.to_dict()
        return {**self.answer.to_dict(), "to_part": to_part, "pack": list(self.remarks)}


def ask_known(
    host: Spectrum,
    doped: Spectrum,
    wanted: CrystalWanted,
    *,
    fwhm_mev: float | None = None,
    edge_mev: float | None = None,
    same_potential: bool = False,
    sample_atoms: float | None = None,
    standards: Sequence[Standard] = (),
    network: DefectModel | str = QUICK_CHECKPOINT,
    made: Callable[[Progress], None] = lambda _: None,
    report: Report = _quiet,
) -> KnownReply:
    """Answer a question about a known crystal; see `KnownCrystal.identify` for arguments and errors.

    Args:
        host: DOS of the pristine crystal.
        doped: DOS of the sample.
        wanted: The crystal, and what is in question.
        fwhm_mev: As for `KnownCrystal.identify`, as the next three.
        edge_mev: Band edge of the host.
        same_potential: Whether the spectra were simulated with the pack's potential.
        sample_atoms: Atoms of the simulated cell.
        standards: Samples of known content.
        network: What gives a second opinion.
        made: Called after each substitution that is computed.
        report: Called as the rest goes on.
    """
    pack, candidates, remarks = wanted.find(made)
    check_pair(pack, host, doped, fwhm_mev=fwhm_mev, edge_mev=edge_mev)  # before cells are made
    names = known_dopants(pack, candidates)
    for one in standards:
        check_standard(pack, names, one, doped.kind)
    crystal = KnownCrystal(
        pack, candidates, network=network, report=lambda done, total: report("superposed cells", done, total)
    )
    if candidates is not None and not crystal.unlisted and not crystal.many:
        remarks = (*remarks, "no dopant beside the candidates was weighed: the pack holds none")
    report("inference", 0, None)
    answer = crystal.identify(
        host,
        doped,
        fwhm_mev=fwhm_mev,
        edge_mev=edge_mev,
        same_potential=same_potential,
        sample_atoms=sample_atoms,
        standards=standards,
    )
    told = answer.verdict != "does not explain"
    parting = part(crystal, answer, element=host.element, same_potential=same_potential) if told else None
    return KnownReply(crystal, answer, parting, remarks, candidates is not None)


def ask_responses(
    wanted: CrystalWanted, *, made: Callable[[Progress], None] = lambda _: None, report: Report = _quiet
) -> tuple[HostResponses, list[str]]:
    """Return the computed responses of a crystal, for `DefectModel.predict`, and the elements in question.

    Args:
        wanted: The crystal, and what is in question; of sites that a candidate can take the likeliest.
        made: Called after each substitution that is computed.
        report: Called as the rest goes on.
    """
    pack, candidates, _ = wanted.find(made)
    report("computed responses", 0, None)
    names = known_dopants(pack, candidates)
    return compute_responses(pack, names), list(dict.fromkeys(name.partition("@")[0] for name in names))


def ask_plan(
    wanted: CrystalWanted,
    setup: Setup,
    amounts: Sequence[float],
    *,
    vary: bool = True,
    made: Callable[[Progress], None] = lambda _: None,
    report: Report = _quiet,
) -> tuple[Plan, tuple[str, ...]]:
    """Return a plan of a measurement, see `plan`, and where its pack comes from.

    Args:
        wanted: The crystal, and its dopants in question.
        setup: How it will be measured.
        amounts: Concentrations at which intervals are told.
        vary: Whether other instruments and standards are looked at, too.
        made: Called after each substitution that is computed.
        report: Called as the rest goes on.
    """
    pack, candidates, remarks = wanted.find(made)
    check_setup(pack, setup)
    crystal = KnownCrystal(
        pack, candidates, unlisted=0, report=lambda done, total: report("superposed cells", done, total)
    )
    report("samples to come", 0, None)
    made_plan = plan(
        crystal,
        setup=setup,
        amounts=amounts,
        vary=vary,
        report=lambda done, total: report("samples to come", done, total),
    )
    return made_plan, remarks
