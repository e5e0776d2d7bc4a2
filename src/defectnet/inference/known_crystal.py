"""Ask a crystal that is known: a measured pair is compared with the spectra that a host pack predicts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectnet.crystal.pack import HostPack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.elements import SYMBOLS, element_index
from defectnet.errors import ConfigError, SimulationError, SpectrumError
from defectnet.inference.answer_text import NAMED, OTHER, SURE, about, rows, sentence, verdict
from defectnet.inference.emulator import Cells, CellSource, Emulator, draw_concentrations
from defectnet.inference.instrument import InstrumentMap, fit_instrument, gaussian_kernel
from defectnet.inference.posterior import (
    Amplitude,
    Errors,
    Likelihood,
    Likely,
    Posterior,
    SeenStandard,
    infer,
    likely_places,
    screened,
)
from defectnet.io.objects import as_spectrum
from defectnet.measure.curves import cumulative, integral_errors, integrals
from defectnet.measure.encode import host_edge_mev
from defectnet.prediction import answer_html, plain
from defectnet.provenance import made_with
from defectnet.spectrum import Spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FloatArray = NDArray[np.float64]

CELLS: Final = (20, 80)
"""Superposed cells for each candidate, and beside that, from which the emulator is learnt."""

UNLISTED, UNLISTED_CELLS = 4, 8
"""Most dopants of the pack that are no candidates and that something else may be, and superposed cells for each."""

SCREENED, ALONE_CELLS, CLOSER = 18, 8, 12
"""Most candidates that are not looked at alone first, cells of each of more, and how many are looked at closer then."""

REMEMBERED_LOOKS: Final = 4
"""Such closer looks whose cells are kept: samples of one crystal are often alike."""

ROUNDS, NEAR_CELLS = 2, 40
"""How often, and with how many cells, it is learnt again near to what it has found."""

BINS: Final = (3.0, 0.012)
"""Bins to a FWHM, and the narrowest bin in edges."""

REACH: Final = 2.2
"""Highest energy, in edges, that is compared."""

DISCREPANCY: Final = ((0.04, 0.08), (0.12, 0.17), (0.37, 0.29), (1.0, 0.26), (4.0, 0.2))
"""Shares of a response, as its squared norm, that the pack's potential gets wrong, and their probabilities: those under
which the responses of training and validation crystals in one world are likeliest given the other's
(`benchmarks/discrepancy.py`), 0.02 more, and the first, for a potential that is nearly right: without it, what is too
small to be such an error would be taken for a smaller concentration."""

AMPLITUDE: Final = Amplitude(mean=0.7, own=0.35, common=0.25)
"""Factor between true and computed responses, from there, too: the likelihood is flat between 0.35 and 0.5 for a
dopant's own. The common one is how far the means of hosts lie apart."""

POWER: Final = 0.5
"""To which the likelihood is raised unless the spectra are of the pack's own world: of pairs of training and validation
crystals in one world, asked with packs of the other, probabilities are then best (log loss)."""

SAME_POWER: Final = 0.5
"""The same in the pack's own world, where superposition alone errs: of 66 full simulations of eleven training and
validation crystals log loss is 0.37 with it and 0.42 with 1, and more of the intervals hold the truth (0.82, 0.68)."""

TAUGHT_POWER: Final = 0.2
"""The same where there are standards: with it 0.89 of the 90 % intervals held the truth, of samples of 15 training and
validation crystals in one world, asked with packs of the other (drawn as by `benchmarks/standards_across.py`)."""

CORRELATED: Final = 0.05
"""Length, in edges, over which that error is correlated: peaks of local modes lie elsewhere."""

SUPERPOSED: Final = 0.03
"""The same for what superposition leaves unexplained."""

FINE, COARSE = 0.065, 0.1
"""FWHM, in edges, to which finer spectra are broadened: what the emulator's cells resolve, in the pack's own world; and
elsewhere, where two worlds agree on the coarse shape of a change, not on its peaks."""

QUIET: Final = 0.002
"""Least noise, as a share of the highest value: interpolation and rounding of a file."""

LIVE, FEWEST = 0.1, 20
"""Share of the highest value from which on points tell the noise, and the least number of such points."""

LEAST_NOISE: Final = 6.0
"""However much of the scatter looks like the curve's, a tenth of its square is taken for noise."""

SCALE, BACKGROUND, RESOLUTION = 0.002, 0.003, 0.03
"""Deviations of what a measurement may change between host and sample: energy scale, constant background as a share
of the highest value, and width of the resolution."""

SIMULATED_ATOMS: Final = 128.0
"""Atoms of the cell of a simulated sample, where nothing is said of it."""

UNFIT: Final = 1e-3
"""p-value below which an answer does not explain the spectrum."""

EXPLAINS, EXPLAINS_PART = 0.9, 0.5
"""Shares of the change from which on an answer explains it, and a part of it that is worth a name."""

SAME_HOST: Final = 0.35
"""Largest squared distance of measured and computed host over the square of the former that is one crystal's."""


_CURVES: Final = ("energy_mev", "measured", "predicted", "band", "noise", "pristine", "scale")
_PLAIN: Final = ("host", "formula", "potential", "kind", "edge_mev", "fwhm_mev", "host_distance", "changed")
_COLUMNS: Final = {
    "probability": "probability",
    "mean": "expected_concentration",
    "if_present": "concentration_if_present",
    "low": "low",
    "high": "high",
    "upper": "upper_limit",
}


@dataclass(frozen=True, repr=False)
class KnownCrystalAnswer:
    """What a measured pair says of a known crystal.

    Attributes:
        posterior: Elements, probabilities and concentrations (dopant atoms over all atoms).
        host, formula, potential: What it was compared with.
        kind: Of the spectra. edge_mev: Band edge of the measured host.
        energy_mev: (M,) bins; measured: (M,) change, doped less host, per edge; predicted: (M,) that of the best
            explanation; band: (M,) its standard deviation; noise: (M,) that of the measurement; pristine: (M,) host.
        scale: (M,) measured over computed energy, from the host's spectra. fwhm_mev: Resolution taken.
        host_distance: Squared distance of measured and computed host over the former's square.
        warnings: Reasons to trust the answer less.
        provenance: What it was made with, see `defectnet.provenance`.
        changed: Whether the spectra differ by more than noise; by default it is told from the curves.
    """

    posterior: Posterior
    host: str
    formula: str
    potential: str
    kind: str
    edge_mev: float
    energy_mev: FloatArray
    measured: FloatArray
    predicted: FloatArray
    band: FloatArray
    noise: FloatArray
    pristine: FloatArray
    scale: FloatArray
    fwhm_mev: float
    host_distance: float
    warnings: tuple[str, ...] = field(default=())
    provenance: Mapping[str, Any] = field(default_factory=dict)
    changed: bool | None = None

    def __post_init__(self) -> None:
        if self.changed is None:
            changed = float((self.measured**2).sum()) > 2.0 * float((self.noise**2).sum())
            object.__setattr__(self, "changed", changed)

    @property
    def verdict(self) -> str:
        """``explains``, ``explains part`` or ``does not explain``."""
        found = self.posterior
        fits = found.p_value >= UNFIT
        # Without a dopant what is left may be an instrument's: energy scale, background and resolution.
        if not self.changed or (fits and (found.explained >= EXPLAINS or not found.best.any())):
            return "explains"
        return "explains part" if found.explained >= EXPLAINS_PART else "does not explain"

    @property
    def present(self) -> tuple[str, ...]:
        """Elements that are likely enough to be named, the likeliest first; none if they do not explain the change.

        Where something else is there, what it leaves of the change tells little: then only those that are sure.
        """
        p = self.posterior.probability
        if self.verdict == "does not explain":
            return ()
        least = SURE if self.posterior.other >= OTHER else NAMED
        return tuple(self.posterior.elements[i] for i in np.argsort(-p, kind="stable") if p[i] >= least)

    @property
    def resembles(self) -> dict[str, float]:
        """Elements that are no candidates and that the pack holds -> probability that each is what else is there."""
        out: dict[str, float] = {}
        for name, value in self.posterior.by_unlisted.items():
            symbol = name.partition("@")[0]
            out[symbol] = out.get(symbol, 0.0) + value
        return dict(sorted(out.items(), key=lambda one: -one[1]))

    @property
    def upper_limit(self) -> FloatArray:
        """(J,) concentrations below which elements are, absent or not.

        With the posterior's coverage where the answer explains the change; else as much as the change has room for.
        """
        p = self.posterior
        return np.maximum(p.upper, p.ceiling) if self.verdict == "does not explain" else p.upper

    def to_frame(self) -> pd.DataFrame:
        """Return a table, the likeliest element first.

        Returns:
            Columns element, probability, expected_concentration, concentration_if_present, low, high, upper_limit,
            present.
        """
        import pandas as pd  # here, because it takes longer to import than an answer takes to print

        return pd.DataFrame([{**row, "present": row["element"] in self.present} for row in self.to_dict()["elements"]])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw what the answer explains, see `defectnet.plotting.plot_known`.

        Raises:
            ConfigError: It was read again without its curves, or matplotlib is not installed.
        """
        from defectnet.plotting import plot_known  # only when asked: nothing else of an answer needs what lies above it

        if not len(self.energy_mev):
            raise ConfigError("the answer does not hold its curves", fix="Keep them: to_dict(curves=True)")
        return plot_known(self, path)

    def __str__(self) -> str:
        """The sentence, the verdict, a table, warnings."""
        table = rows(self)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in table
        ]
        warned = [f"warning: {text}" for text in self.warnings]
        return "\n".join([sentence(self), verdict(self), about(self), "", *map(str.rstrip, lines), *warned])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        warned = [f"warning: {text}" for text in self.warnings]
        return answer_html(sentence(self), [verdict(self), about(self)], rows(self), warned)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> KnownCrystalAnswer:
        """Return the answer that `to_dict` wrote, with its curves if it wrote them.

        Raises:
            ConfigError: It is not one.
        """
        try:
            found, dopants = document["elements"], tuple(document["dopants"])
            likeliest = tuple(
                Likely(
                    one["probability"],
                    tuple(one["dopants"]),
                    one["something_else"],
                    np.array([one["dopants"].get(name, 0.0) for name in dopants]),
                )
                for one in document["explanations"]
            )
            values: dict[str, Any] = {
                "dopants": dopants,
                "elements": tuple(row["element"] for row in found),
                "other": document["something_else"],
                "likeliest": likeliest,
                "best": np.array([document["best"].get(name, 0.0) for name in dopants]),
                "unlisted": np.array(list(document.get("unlisted", {}).values())),
                **{name: document[name] for name in ("coverage", "explained", "p_value")},
                **{mine: np.array([row[name] for row in found]) for mine, name in _COLUMNS.items()},
            }
            values["ceiling"] = values["upper"]  # which was told already as the larger of the two
            curves = document.get("curves", {})
            own: dict[str, Any] = {name: document[name] for name in _PLAIN}
            own |= {name: np.array(curves.get(name, ()), dtype=np.float64) for name in _CURVES}
            return cls(
                # What it holds beside these, such as draws, is not kept.
                posterior=Posterior(**{one.name: values.get(one.name, np.zeros(0)) for one in fields(Posterior)}),
                **own,
                warnings=tuple(document["warnings"]),
                provenance=document["provenance"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                "this is no answer about a known crystal",
                why=f"{type(error).__name__}: {error}",
                fix="Give what to_dict returned",
            ) from error

    def to_dict(self, *, curves: bool = False) -> dict[str, Any]:
        """Return plain values for JSON.

        Args:
            curves: Whether the spectra are among them, so that what is read again can be drawn.
        """
        p = self.posterior
        return {
            "way": "known crystal",
            "sentence": sentence(self),
            "host": self.host,
            "formula": self.formula,
            "potential": self.potential,
            "kind": self.kind,
            "edge_mev": self.edge_mev,
            "fwhm_mev": self.fwhm_mev,
            "present": list(self.present),
            "something_else": p.other,
            "verdict": self.verdict,
            "explained": p.explained,
            "p_value": p.p_value,
            "coverage": p.coverage,
            "changed": self.changed,
            "host_distance": self.host_distance,
            "dopants": list(p.dopants),
            "unlisted": p.by_unlisted,
            "best": {name: float(x) for name, x in zip(p.dopants, p.best, strict=True) if x},
            "elements": [
                {"element": p.elements[i], **{name: float(getattr(p, own)[i]) for own, name in _COLUMNS.items()}}
                | {"upper_limit": float(self.upper_limit[i])}
                for i in np.argsort(-p.probability, kind="stable")
            ],
            "explanations": [
                {
                    "probability": one.probability,
                    "dopants": {name: float(one.concentration[p.dopants.index(name)]) for name in one.dopants},
                    "something_else": one.other,
                }
                for one in p.likeliest[:5]
            ],
            "warnings": list(self.warnings),
            "provenance": dict(self.provenance),
            **({"curves": plain({name: getattr(self, name) for name in _CURVES})} if curves else {}),
        }


@dataclass(frozen=True)
class Compared:
    """A measured pair in M bins.

    Attributes:
        instrument: Bins, resolution, and map of energies.
        edge_mev: Band edge of the measured host.
        pristine: (M,) host, per edge, of unit area. change: (M,) doped less host.
        noise: (M, M) covariance of the change's noise.
        deviation: (M,) measured host less computed one.
        smooth: (M, M) broadening that was applied to what is measured.
    """

    instrument: InstrumentMap
    edge_mev: float
    pristine: FloatArray
    change: FloatArray
    noise: FloatArray
    deviation: FloatArray
    smooth: FloatArray

    @property
    def distance(self) -> float:
        """Squared distance of measured and computed host over the former's square."""
        return float((self.deviation**2).sum() / (self.pristine**2).sum())


@dataclass(frozen=True)
class Standard:
    """A sample of known content, measured on the same instrument as what is asked about.

    Attributes:
        host, doped: DOS of the pristine crystal and of the sample.
        dopants: Element, or ``Al@Ga`` where a pack has it on several sites -> dopant atoms over all atoms.
    """

    host: Spectrum
    doped: Spectrum
    dopants: Mapping[str, float]


def unlisted_dopants(pack: HostPack, candidates: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the likeliest of a pack's substitutions with elements that are no candidates."""
    asked = {name.partition("@")[0] for name in candidates}
    likely = {name: rank for rank, name in enumerate(plausible_dopants(pack.host.primitive, len(SYMBOLS)))}
    others = [name for name in pack.dopants if name.partition("@")[0] not in asked]
    return tuple(sorted(others, key=lambda name: likely.get(name, len(likely)))[:most])


def known_dopants(pack: HostPack, candidates: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of a pack's substitutions that candidates such as ``Al`` or ``Al@Ga`` stand for; all for None.

    Raises:
        SimulationError: The pack does not hold one.
    """
    if candidates is None:
        candidates = pack.dopants
    if not candidates:
        why = "" if pack.dopants else f"the pack of {pack.host.id} holds no substitution"
        raise SimulationError("there is no candidate", why=why, fix="Name one, such as Al or Al@Ga")
    out: list[str] = []
    for name in candidates:
        dopant = name.partition("@")[0]
        element_index(dopant, field="candidates")
        found = _meant(name, pack.dopants)
        if not found:
            failed = [f.reason for f in pack.failures if f.dopant == dopant]
            raise SimulationError(
                f"the pack of {pack.host.id} does not hold {name}",
                why=f"it could not be made: {failed[0]}" if failed else f"it holds {', '.join(pack.dopants)}",
                fix=f"Add it with `defectnet host make --dopants {name}`, or leave it out",
            )
        out += [one for one in found if one not in out]
    return tuple(out)


def _meant(name: str, dopants: Sequence[str]) -> list[str]:
    """Return which of some dopants ``Al`` (on any site) or ``Al@Ga`` stands for."""
    return [one for one in dopants if name in (one, one.partition("@")[0])]


class KnownCrystal:
    """A host whose spectra are computed from its pack, asked about its dopants.

    Superposed cells are made once; each pair that is asked about adds some near to what it shows. Of more than
    `SCREENED` candidates each is looked at alone first, and the likeliest in all mixtures.

    Args:
        pack: Host and substitutions.
        candidates: Such as ``["Al", "Si@Ga"]``; None for all that the pack holds.
        unlisted: How many of the pack's other dopants, the likeliest in such a crystal, something else may be.
        seed: Of the cells.
        report: Called with the number of cells done and of all.
    """

    def __init__(
        self,
        pack: HostPack,
        candidates: Sequence[str] | None = None,
        *,
        unlisted: int = UNLISTED,
        seed: int = 0,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.pack = pack
        self.dopants = known_dopants(pack, candidates)
        self.many = len(self.dopants) > SCREENED
        self.left_out: tuple[str, ...] = ()
        self._closer = OrderedDict[tuple[str, ...], KnownCrystal]()
        self.unlisted = () if self.many else unlisted_dopants(pack, self.dopants, unlisted)
        self.source, self._seed = CellSource(pack, self.dopants + self.unlisted), seed
        rng = np.random.default_rng([seed, 1])
        wished = self._wished(rng)
        count = len(wished)
        self.cells: Cells = self.source.draw(wished, rng, lambda done: report(done, count))
        self._leave_out_unstable()
        own = np.flatnonzero(self.source.host.any(axis=1))
        self.host = tuple(self.source.elements[i] for i in own), self.source.host[own]

    def _leave_out_unstable(self) -> None:
        """Leave out what is no candidate, or one of many, and has too few stable cells: nothing could be said of it."""
        k = len(self.dopants)
        kept = (self.cells.concentration > 0.0).sum(axis=0) >= UNLISTED_CELLS // 2
        kept[: 0 if self.many else k] = True
        if self.many:
            if not kept.any():
                raise SimulationError(
                    f"{self.pack.host.id}: nearly every superposed cell is unstable", fix="Name fewer candidates"
                )
            self.left_out = tuple(name for name, wanted in zip(self.dopants, kept, strict=True) if not wanted)
            self.dopants = tuple(name for name in self.dopants if name not in self.left_out)
            k = len(self.dopants)
        if not kept.all():
            self.cells = self.cells.only(kept)
            self.unlisted = self.cells.dopants[k:]
            self.source = self.source.only(self.cells.dopants)

    def _wished(self, rng: np.random.Generator) -> FloatArray:
        """Return the concentrations of the first cells: candidates in all mixtures, others and many alone."""
        k, room = len(self.dopants), self.source.room
        out = np.zeros((0, len(room)))
        if not self.many:
            out = draw_concentrations(room[:k], CELLS[0] * k + CELLS[1], rng)
            out = np.pad(out, ((0, 0), (0, len(self.unlisted))))
        cells = ALONE_CELLS if self.many else UNLISTED_CELLS
        for i in range(0 if self.many else k, len(room)):
            alone = np.zeros((cells, len(room)))
            alone[:, i] = draw_concentrations(room[i : i + 1], cells, rng)[:, 0]
            out = np.concatenate([out, alone])
        return out

    def identify(
        self,
        host: Any,
        doped: Any,
        *,
        host_error: ArrayLike | None = None,
        doped_error: ArrayLike | None = None,
        unit: str | None = None,
        kind: str | None = None,
        element: str | None = None,
        fwhm_mev: float | None = None,
        edge_mev: float | None = None,
        same_potential: bool = False,
        sample_atoms: float | None = None,
        coverage: float = 0.9,
        standards: Sequence[Standard] = (),
    ) -> KnownCrystalAnswer:
        """Return which dopants explain a pair of spectra.

        Args:
            host: DOS of the pristine crystal: a file, a `Spectrum`, or what else `as_spectrum` takes.
            doped: DOS of the sample, of the same kind.
            host_error: Standard deviations at the host's points; by default those of the spectrum, or, if it has none,
                estimated from how they scatter.
            doped_error: The same for the sample.
            unit: Energy unit of spectra that do not say it.
            kind: Kind of DOS, likewise.
            element: Of projected DOS, likewise.
            fwhm_mev: Resolution; fitted to the host's spectrum by default.
            edge_mev: Band edge of the host; read from its spectrum by default.
            same_potential: The spectra were simulated with the pack's potential: no discrepancy is allowed for.
            sample_atoms: Atoms of the simulated cell that `doped` comes from, which scatters more than a sample does.
                None: a measured sample, without end; with `same_potential` a cell of `SIMULATED_ATOMS`.
            coverage: Of the intervals.
            standards: Samples of known content: what the pack's potential gets wrong of their dopants is learnt.

        Raises:
            SpectrumError: The spectra do not belong together, end too early, or are not of this crystal.
            ConfigError: `sample_atoms` is no number of atoms.
            SimulationError: A standard holds what the pack does not, or is no candidate.
        """
        atoms = atoms_of_sample(sample_atoms, same_potential)
        host, doped = (
            as_spectrum(source, role, unit=unit, kind=kind, element=element)
            for source, role in ((host, "host"), (doped, "doped"))
        )
        seen = self.compare(host, doped, host_error, doped_error, fwhm_mev, edge_mev, same_potential)
        own_edge = self.pack.host.band_edge_mev
        warnings = []
        if seen.distance > SAME_HOST:
            warnings.append(
                f"the host's spectrum is not that of {self.pack.host.formula} as computed (they differ by "
                f"{np.sqrt(seen.distance):.0%}): check structure, unit and kind"
            )
        if self.left_out:
            names = ", ".join(self.left_out)
            warnings.append(f"not in question, as nearly all superposed cells are unstable: {names}")
        known = () if same_potential else tuple(standards)
        if self.many:
            emulator = Emulator(self.cells, seen.instrument)
            every = Likelihood(emulator, self._errors_of(seen, emulator, same_potential, atoms), seen.change)
            chosen, probability, place = screened(every, CLOSER)
            closer = self._looking_at(chosen, known)
            likelihood = closer.likelihood_near(seen, known, same_potential, atoms, asked=len(self.dopants))
        else:
            likelihood = self.likelihood_near(seen, known, same_potential, atoms)
        found = infer(likelihood, coverage=coverage)
        return KnownCrystalAnswer(
            posterior=found.among(self.dopants, probability, place) if self.many else found,
            host=self.pack.host.id,
            formula=self.pack.host.formula,
            potential=self.pack.host.potential,
            kind=host.kind,
            edge_mev=seen.edge_mev,
            energy_mev=seen.instrument.middle * own_edge,
            measured=seen.change,
            predicted=likelihood.predicted(found.best),
            band=np.sqrt(np.diag(likelihood.spread(found.best))),
            noise=np.sqrt(np.diag(seen.noise)),
            pristine=seen.pristine,
            scale=seen.instrument.scale(),
            fwhm_mev=seen.instrument.fwhm * own_edge,
            host_distance=seen.distance,
            warnings=tuple(warnings),
            provenance=self._made_with(
                unit=unit,
                kind=kind,
                element=element,
                fwhm_mev=fwhm_mev,
                edge_mev=edge_mev,
                same_potential=same_potential or None,
                sample_atoms=sample_atoms,
                coverage=coverage,
                standards=len(standards) or None,
            ),
        )

    def likelihood_near(
        self, seen: Compared, standards: Sequence[Standard], same_potential: bool, atoms: float, *, asked: int = 0
    ) -> Likelihood:
        """Return the likelihood of a measured change, of an emulator that is right where concentrations are likely.

        Args:
            seen: The pair.
            standards: Samples of known content.
            same_potential: As for `identify`.
            atoms: Of the sample.
            asked: See `Errors.asked`.
        """
        cells, emulator = self.cells, Emulator(self.cells, seen.instrument)
        rng = np.random.default_rng([self._seed, 2])  # the same question has the same answer, whatever was asked before
        known = tuple(self._standard(one, seen) for one in standards)
        places = [(0.5 / len(known), one.concentration) for one in known if one.concentration.any()]
        for left in range(ROUNDS, -1, -1):
            errors = replace(self._errors_of(seen, emulator, same_potential, atoms), asked=asked)
            if known:
                errors = replace(errors, standards=known, power=TAUGHT_POWER)
            likelihood = Likelihood(emulator, errors, seen.change)
            near = likely_places(likelihood) + places if left else []
            if not near:
                break
            cells = self._more(cells, near, rng)
            emulator = Emulator(cells, seen.instrument, near)
        return likelihood

    def _errors_of(self, seen: Compared, emulator: Emulator, same_potential: bool, atoms: float) -> Errors:
        """Return the errors of a measured change, with that part of its host's deviation that dopants blur.

        Whatever it comes from, dopants blur and shift what a host really shows. But most of a large one is the
        potential's, of the energies of modes: no more is taken for structure than what a simulated cell may show.
        """
        errors = self.errors(emulator, seen.instrument, seen.noise, seen.pristine, same_potential, atoms)
        return replace(errors, deviation=emulator.sampled(seen.deviation, min(atoms, SIMULATED_ATOMS)))

    def _looking_at(self, chosen: NDArray[np.int64], standards: Sequence[Standard]) -> KnownCrystal:
        """Return the crystal with the few of many candidates that are worth a closer look, and those of standards.

        Args:
            chosen: Their positions.
            standards: Samples of known content; what they hold is looked at, too.
        """
        held = {name for one in standards for name in one.dopants}
        names = [self.dopants[i] for i in chosen]
        names += [name for name in self.dopants if name not in names and held & {name, name.partition("@")[0]}]
        key = tuple(names)
        if key not in self._closer:
            self._closer[key] = KnownCrystal(self.pack, key, unlisted=0, seed=self._seed)
            if len(self._closer) > REMEMBERED_LOOKS:
                self._closer.popitem(last=False)
        return self._closer[key]

    def _made_with(self, **options: Any) -> dict[str, Any]:
        """Return what an answer was made with."""
        host = self.pack.host
        found = made_with(self.pack.source, "pack", {"candidates": list(self.dopants), "seed": self._seed, **options})
        return {**found, "potential": host.potential, "potential_sha256": host.potential_sha256}

    def compare(
        self,
        host: Spectrum,
        doped: Spectrum,
        host_error: ArrayLike | None,
        doped_error: ArrayLike | None,
        fwhm_mev: float | None,
        edge_mev: float | None,
        same_potential: bool,
        *,
        refine: bool = True,
    ) -> Compared:
        """Bring a pair to the bins in which it is compared; arguments as for `identify`.

        Unless `refine` the host's spectrum, the pack's own, does not fix the map of energies.
        """
        edge = check_pair(self.pack, host, doped, fwhm_mev=fwhm_mev, edge_mev=edge_mev)
        instrument = self._instrument(host, doped, edge, fwhm_mev)
        unit = self.pack.host.band_edge_mev
        instrument = replace(instrument, fwhm=(fwhm_mev or 0.0) / unit)
        if refine:
            measured, noise = _binned(host, host_error, instrument, unit)
            instrument = fit_instrument(
                instrument, *self.host, measured, noise=float(np.trace(noise)), same_potential=same_potential
            )
        finest = FINE if same_potential else COARSE
        smooth = np.eye(len(instrument.middle))
        if instrument.fwhm < finest:
            smooth = gaussian_kernel(instrument.middle, float(np.sqrt(finest**2 - instrument.fwhm**2)))
            instrument = replace(instrument, fwhm=finest)
        pristine, change, noise = _changed((host, host_error), (doped, doped_error), instrument, unit, smooth)
        deviation = pristine - instrument.seen(*self.host)
        return Compared(instrument, float(edge), pristine, change, noise, deviation, smooth)

    def _standard(self, standard: Standard, seen: Compared) -> SeenStandard:
        """Bring a standard to the bins of the pair that is asked about."""
        content = check_standard(self.pack, self.dopants, standard, seen.instrument.kind)
        concentration = np.pad(content, (0, len(self.unlisted)))
        reach = seen.instrument.edges[-1] * self.pack.host.band_edge_mev
        for spectrum in (standard.host, standard.doped):
            if spectrum.energy_mev[-1] < 0.98 * reach:
                raise SpectrumError(
                    f"standard {spectrum.name} ends at {spectrum.energy_mev[-1]:.4g} meV",
                    why=f"the pair in question is compared up to {reach:.4g} meV",
                    fix="Leave this standard out, or give both up to the same energy",
                )
        pair = (standard.host, None), (standard.doped, None)
        _, change, noise = _changed(*pair, seen.instrument, self.pack.host.band_edge_mev, seen.smooth)
        return SeenStandard(concentration, change, noise)

    def _more(self, cells: Cells, near: Sequence[tuple[float, FloatArray]], rng: np.random.Generator) -> Cells:
        """Add cells near to likely concentrations."""
        weights = np.array([weight for weight, _ in near])
        chosen = rng.choice(len(near), NEAR_CELLS, p=weights / weights.sum())
        places = np.array([near[k][1] for k in chosen])
        drawn = places * np.exp(rng.normal(0.0, 0.3, places.shape))
        drawn *= np.minimum(1.0, 0.28 / np.maximum(drawn.sum(1), 1e-9))[:, None]
        try:
            return cells.joined(self.source.draw(np.minimum(drawn, 0.95 * self.source.room), rng))
        except SimulationError:  # all of them unstable
            return cells

    def _instrument(self, host: Spectrum, doped: Spectrum, edge: float, fwhm_mev: float | None) -> InstrumentMap:
        """Return bins from where both spectra begin to where one ends, in units of the pack's edge."""
        unit = self.pack.host.band_edge_mev
        start = max(float(host.energy_mev[0]), float(doped.energy_mev[0]), 0.0)
        start = 0.0 if start < 0.05 * edge else start
        end = min(float(host.energy_mev[-1]), float(doped.energy_mev[-1]), REACH * edge)
        step = max(
            float(np.diff(host.energy_mev).max()), float(np.diff(doped.energy_mev).max()), (fwhm_mev or 0.0) / BINS[0]
        )
        width = max(step / unit, BINS[1])
        count = max(16, int((end - start) / unit / width))
        return InstrumentMap(
            np.linspace(start / unit, end / unit, count + 1), 0.0, host.kind, host.element or doped.element
        )

    def errors(
        self,
        emulator: Emulator,
        instrument: InstrumentMap,
        noise: FloatArray,
        pristine: FloatArray,
        same_potential: bool,
        sample_atoms: float,
    ) -> Errors:
        """Return the errors of a change in M bins: of the (M, M) noise, and of what else `Errors` names."""
        x = instrument.middle
        length = SUPERPOSED if same_potential else CORRELATED
        shape = discrepancy_shape(emulator.responses, x, length)
        slope = np.gradient(pristine, x)
        nuisance = np.stack(
            [
                SCALE * (x * slope + pristine),
                BACKGROUND * pristine.max() * np.ones_like(x),
                RESOLUTION * (instrument.fwhm / 2.3548) ** 2 * np.gradient(slope, x),
            ]
        )
        smooth = discrepancy_shape(emulator.responses, x, 0.03)
        other = emulator.responses.T @ emulator.responses / len(emulator.dopants)
        other = 0.5 * other + 0.5 * smooth * np.trace(other) / np.trace(smooth)
        return Errors(
            noise=noise,
            nuisance=nuisance[:0] if same_potential else nuisance,
            sample_atoms=sample_atoms,
            discrepancy=() if same_potential else DISCREPANCY,
            amplitude=None if same_potential else AMPLITUDE,
            shape=shape,
            other=other,
            unlisted=len(self.unlisted),
            power=SAME_POWER if same_potential else POWER,
        )


def atoms_of_sample(told: float | None, same_potential: bool) -> float:
    """Return the atoms of a sample: as told, or those of a simulated cell, or infinitely many of a measured one.

    Raises:
        ConfigError: It is no number of atoms.
    """
    if told is not None and not told >= 1.0:
        raise ConfigError(f"sample_atoms is {told}", fix="Give the atoms of the simulated cell")
    return told or (SIMULATED_ATOMS if same_potential else np.inf)


def discrepancy_shape(responses: FloatArray, x: FloatArray, length: float) -> FloatArray:
    """Return the (M, M) covariance, of unit trace, of what a potential gets wrong of a response.

    It is as large as responses are where they are large, and correlated over a length: peaks that lie elsewhere.

    Args:
        responses: (K, M) of the host's dopants.
        x: (M,) energies, in edges.
        length: Over which it is correlated, same unit.
    """
    power = np.sqrt((responses**2).mean(0))
    reach = max(1, round(0.5 * length / float(x[1] - x[0])))
    power = np.convolve(np.pad(power, reach, mode="edge"), np.ones(2 * reach + 1) / (2 * reach + 1), mode="valid")
    power = power + 0.05 * power.max()
    shape = np.exp(-0.5 * ((x[:, None] - x) / length) ** 2) * (power[:, None] * power)
    return np.asarray(shape / np.trace(shape))


def _changed(
    host: tuple[Spectrum, ArrayLike | None],
    doped: tuple[Spectrum, ArrayLike | None],
    instrument: InstrumentMap,
    unit_mev: float,
    smooth: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the (M,) host and (M,) change of a pair with its errors, broadened, and the (M, M) noise of the change."""
    (pristine, host_noise), (sample, doped_noise) = (_binned(*one, instrument, unit_mev) for one in (host, doped))
    noise = smooth @ (host_noise + doped_noise) @ smooth.T
    pristine = smooth @ pristine
    quiet = 2.0 * (QUIET * pristine.max()) ** 2 * np.eye(len(pristine))
    return pristine, smooth @ sample - pristine, noise + quiet


def check_pair(
    pack: HostPack, host: Spectrum, doped: Spectrum, *, fwhm_mev: float | None = None, edge_mev: float | None = None
) -> float:
    """See that a pair can be asked about, and return the host's band edge in meV; arguments as for `identify`.

    Raises:
        SpectrumError: The spectra do not belong together, or end too early; or a width or edge cannot be one.
    """
    if host.kind != doped.kind:
        raise SpectrumError(
            f"{host.name} and {doped.name} are different kinds of DOS",
            why=f"{host.kind} and {doped.kind}",
            fix="Give two spectra of one kind",
        )
    elements = list(dict.fromkeys(pack.replaced(atom) for atom in range(len(pack.host.primitive))))
    if host.kind == "projected":
        element = host.element or doped.element
        if element is None or element not in elements:
            raise SpectrumError(
                f"{host.name}: projected on {element or 'no element that is named'}",
                fix=f"Name one of {', '.join(elements)} with element=",
            )
    if edge_mev is not None and not 0.0 < edge_mev < np.inf:
        raise SpectrumError(f"the band edge is {edge_mev:g} meV", fix="Give the host's highest energy, in meV")
    edge = edge_mev or host_edge_mev(host)
    if fwhm_mev is not None and not 0.0 < fwhm_mev <= 0.5 * edge:
        raise SpectrumError(
            f"the resolution is {fwhm_mev:g} meV, the host's edge {edge:.4g}", fix="Give a FWHM in meV, or leave it out"
        )
    end = min(float(host.energy_mev[-1]), float(doped.energy_mev[-1]), REACH * edge)
    if end < 0.95 * edge:
        raise SpectrumError(
            f"{doped.name}: the pair ends at {end:.4g} meV, below the host's edge of {edge:.4g} meV",
            fix="Give both spectra until they have fallen to zero",
        )
    return edge


def check_standard(pack: HostPack, names: Sequence[str], standard: Standard, kind: str) -> FloatArray:
    """See that a standard belongs to a question, and return its (K,) concentrations of the candidates' names.

    Raises:
        SpectrumError: Its spectra do not belong together, end too early, or are of another kind than the pair's.
        SimulationError: It holds what is no candidate.
    """
    check_pair(pack, standard.host, standard.doped)
    if standard.doped.kind != kind:
        raise SpectrumError(
            f"standard {standard.doped.name} is of another kind of DOS than the pair in question",
            why=f"{standard.doped.kind} and {kind}",
            fix="Say its kind if it is taken for another, or leave this standard out",
        )
    concentration = np.zeros(len(names))
    for name, amount in standard.dopants.items():
        asked = _meant(name, names)
        if not asked:
            raise SimulationError(
                f"standard {standard.doped.name} holds {name}",
                why=f"the candidates are {', '.join(names)}",
                fix="Name it among the candidates too, or leave this standard out",
            )
        concentration[names.index(asked[0])] += amount
    return concentration


def estimated_noise(dos: FloatArray) -> float:
    """Return the standard deviation of the noise of (N,) values that scatter about a smooth curve.

    Third differences know neither level, slope nor curvature; their mean square is 20 times the noise's. What they
    know of the curve itself is eight times as large between points that are twice as far apart. They count where there
    is signal: elsewhere noise is cut at zero.
    """
    squares = []
    for step in (1, 2):
        third = np.abs(dos[3 * step :] - 3.0 * dos[2 * step : -step] + 3.0 * dos[step : -2 * step] - dos[: -3 * step])
        live = dos[step : len(third) + step] > LIVE * dos.max()
        third = third[live] if live.sum() >= FEWEST else third
        squares.append((np.median(third) / 0.6745) ** 2 / 20.0)
    near, far = squares
    return float(np.sqrt(max(64.0 * near - far, LEAST_NOISE * near) / 63.0))


def _binned(
    spectrum: Spectrum, error: ArrayLike | None, instrument: InstrumentMap, unit_mev: float
) -> tuple[FloatArray, FloatArray]:
    """Return the (M,) DOS per edge in the bins, of unit area, and the (M, M) covariance of its noise.

    Errors are those given, or the spectrum's own, or estimated from its scatter.
    """
    error = spectrum.error if error is None else error
    energy = spectrum.energy_mev / unit_mev
    dos = np.asarray(spectrum.dos, dtype=np.float64)
    shares = np.diff(integrals(energy, dos, cumulative(energy, dos), instrument.edges).ravel())
    area = float(shares.sum())
    width = instrument.width
    if error is None:
        sigma = np.full(len(dos), estimated_noise(dos))
    else:
        sigma = np.asarray(error, dtype=np.float64)
        if sigma.shape != dos.shape or not np.isfinite(sigma).all() or (sigma < 0).any():
            raise SpectrumError(
                f"{spectrum.name}: errors have shape {sigma.shape}, or hold NaN or negative values",
                fix=f"Give {len(dos)} standard deviations, one for each point",
            )
    variance = (integral_errors(energy, sigma, instrument.edges) / width) ** 2
    variance = np.where(variance > 0, variance, np.interp(instrument.middle, energy, sigma**2))
    return shares / area / width, np.diag(variance / area**2)
