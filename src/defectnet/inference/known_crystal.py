"""Ask a crystal that is known: a measured pair is compared with the spectra that a host pack predicts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from defectnet.crystal.pack import HostPack
from defectnet.crystal.plausible import plausible_dopants
from defectnet.crystal.responses import HostResponses
from defectnet.defaults import QUICK_CHECKPOINT
from defectnet.elements import SYMBOLS, element_index
from defectnet.errors import ConfigError, DefectNetError, SimulationError, SpectrumError
from defectnet.hub import from_pretrained
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.comparison import (
    ANOTHER_HOST,
    REACH,
    Compared,
    Standard,
    binned,
    changed,
    check_pair,
    check_standard,
    meant,
)
from defectnet.inference.emulator import Cells, CellSource, Emulator, draw_concentrations
from defectnet.inference.instrument import InstrumentMap, fit_instrument, gaussian_kernel
from defectnet.inference.likelihood import Amplitude, Errors, Likelihood, SeenStandard
from defectnet.inference.posterior import Opinion, infer, likely_places, screened
from defectnet.inference.responses import compute_responses
from defectnet.inference.second_opinion import RESPONSE_CELLS, second_opinion
from defectnet.io.objects import as_spectrum
from defectnet.models.base import DefectModel
from defectnet.provenance import made_with, weights_sha256
from defectnet.spectrum import Spectrum

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

SCALE, BACKGROUND, RESOLUTION = 0.002, 0.003, 0.03
"""Deviations of what a measurement may change between host and sample: energy scale, constant background as a share
of the highest value, and width of the resolution."""

SIMULATED_ATOMS: Final = 128.0
"""Atoms of the cell of a simulated sample, where nothing is said of it."""

SAME_HOST: Final = 0.35
"""Largest squared distance of measured and computed host over the square of the former that is one crystal's."""

BENT: Final = 0.27
"""The same of the logarithm of measured over computed energies: 77 of 78 hosts of one potential, asked with the pack of
another, stay below it; six of nine other crystals with such an edge do not."""


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
        found = meant(name, pack.dopants)
        if not found:
            symbols = list(dict.fromkeys(SYMBOLS[int(z)] for z in pack.host.primitive.numbers))
            if dopant in symbols:
                raise SimulationError(f"candidates: {dopant} is in {pack.host.formula} already", fix="Leave it out")
            if "@" in name and name.partition("@")[2] not in symbols:
                raise SimulationError(
                    f"candidates: {name} names no site of {pack.host.formula}",
                    fix=f"Write {dopant}@{symbols[0]}, or {dopant} alone",
                )
            failed = [f.reason for f in pack.failures if f.dopant == dopant]
            raise SimulationError(
                f"the pack of {pack.host.id} does not hold {name}",
                why=f"it could not be made: {failed[0]}" if failed else f"it holds {', '.join(pack.dopants)}",
                fix="Leave it out, or make a pack with it: "
                f"`defectnet host make --structure FILE --dopants {name} --out FOLDER`",
            )
        out += [one for one in found if one not in out]
    return tuple(out)


class KnownCrystal:
    """A host whose spectra are computed from its pack, asked about its dopants.

    Superposed cells are made once; each pair that is asked about adds some near to what it shows. Of more than
    `SCREENED` candidates each is looked at alone first, and the likeliest in all mixtures.

    Args:
        pack: Host and substitutions.
        candidates: Such as ``["Al", "Si@Ga"]``; None for all that the pack holds.
        unlisted: How many of the pack's other dopants, the likeliest in such a crystal, something else may be.
        network: What gives a second opinion on measured samples: a network that reads computed responses, or the name
            of a checkpoint; None for none.
        seed: Of the cells.
        report: Called with the number of cells done and of all.
    """

    def __init__(
        self,
        pack: HostPack,
        candidates: Sequence[str] | None = None,
        *,
        unlisted: int = UNLISTED,
        network: DefectModel | str | None = QUICK_CHECKPOINT,
        seed: int = 0,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.pack, self._network = pack, network
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
        host, doped = (
            spectrum if error is None else replace(spectrum, error=error)
            for spectrum, error in ((host, host_error), (doped, doped_error))
        )
        known = () if same_potential else tuple(standards)
        taught = any(amount for one in known for amount in one.dopants.values())  # an undoped one teaches nothing
        exact = same_potential or taught
        seen = self.compare(host, doped, fwhm_mev, edge_mev, same_potential, exact=exact)
        own_edge = self.pack.host.band_edge_mev
        warnings = []
        bent = max(np.abs(seen.instrument.log_scale[1:-1]))
        if seen.distance > SAME_HOST or bent > BENT:
            how = f"they differ by {np.sqrt(seen.distance):.0%}, in energies by up to {np.expm1(bent):.0%}"
            warnings.append(
                f"the host's spectrum is not that of {self.pack.host.formula} as computed ({how}): "
                "check structure, unit and kind"
            )
        if self.left_out:
            names = ", ".join(self.left_out)
            warnings.append(f"not in question, as nearly all superposed cells are unstable: {names}")
        if self.many:
            emulator = Emulator(self.cells, seen.instrument)
            every = Likelihood(emulator, self._errors_of(seen, emulator, same_potential, atoms), seen.change)
            chosen, probability, place = screened(every, CLOSER)
            closer = self._looking_at(chosen, known)
            likelihood = closer.likelihood_near(seen, known, same_potential, atoms, asked=len(self.dopants))
        else:
            closer, likelihood = self, self.likelihood_near(seen, known, same_potential, atoms)
        # Of the pack's own world, and of what standards teach, a network knows nothing.
        opinion, pooled = None, "inference alone"
        if not (same_potential or taught or self._network is None):
            opinion, pooled = closer.second_opinion(host, doped, seen.edge_mev)
        found = infer(likelihood, coverage=coverage, opinion=opinion)
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
            pooled=pooled,
            warnings=tuple(warnings),
            provenance=self._made_with(
                None if opinion is None else closer.network,
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

    def second_opinion(self, host: Spectrum, doped: Spectrum, edge_mev: float) -> tuple[Opinion | None, str]:
        """Return what the network says of a measured pair, if it can say anything, and how that is told."""
        network = self.network
        assert network is not None
        elements = list(dict.fromkeys(name.partition("@")[0] for name in self.dopants))
        try:
            found = second_opinion(network, self._responses, host, doped, elements, edge_mev=edge_mev)
        except DefectNetError as error:
            return None, f"inference alone, for {network.name} cannot answer ({error.what})"
        return found, f"inference and {network.name}"

    @property
    def network(self) -> DefectModel | None:
        """What gives the second opinion."""
        if isinstance(self._network, str):
            self._network = from_pretrained(self._network)
        return self._network

    @cached_property
    def _responses(self) -> HostResponses:
        return compute_responses(self.pack, self.dopants, seed=self._seed, cells=RESPONSE_CELLS, source=self.source)

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
        known = tuple(one for one in known if one.concentration.any())
        places = [(0.5 / len(known), one.concentration) for one in known]
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
            self._closer[key] = KnownCrystal(self.pack, key, unlisted=0, network=self._network, seed=self._seed)
            if len(self._closer) > REMEMBERED_LOOKS:
                self._closer.popitem(last=False)
        return self._closer[key]

    def _made_with(self, network: DefectModel | None, **options: Any) -> dict[str, Any]:
        """Return what an answer was made with, the network of a second opinion included."""
        host = self.pack.host
        found = made_with(self.pack.source, "pack", {"candidates": list(self.dopants), "seed": self._seed, **options})
        found |= {"potential": host.potential, "potential_sha256": host.potential_sha256}
        if network is not None:
            found |= {"weights": network.name, "weights_sha256": weights_sha256(network.source)}
        return found

    def compare(
        self,
        host: Spectrum,
        doped: Spectrum,
        fwhm_mev: float | None,
        edge_mev: float | None,
        same_potential: bool,
        *,
        refine: bool = True,
        exact: bool | None = None,
    ) -> Compared:
        """Bring a pair to the bins in which it is compared; arguments as for `identify`.

        Unless `refine` the host's spectrum, the pack's own, does not fix the map of energies. If `exact`, by default in
        the pack's own world, its sharp peaks do: where standards tell what the potential gets wrong, that is better.
        """
        exact = same_potential if exact is None else exact
        edge = check_pair(self.pack, host, doped, fwhm_mev=fwhm_mev, edge_mev=edge_mev)
        instrument = self._instrument(host, doped, edge, fwhm_mev)
        unit = self.pack.host.band_edge_mev
        instrument = replace(instrument, fwhm=(fwhm_mev or 0.0) / unit)
        finest = FINE if same_potential else COARSE
        smooth = np.eye(len(instrument.middle))
        if refine:
            measured, noise = binned(host, instrument, unit)
            instrument = fit_instrument(
                instrument,
                *self.host,
                measured,
                noise=float(np.trace(noise)),
                same_potential=same_potential,
                coarse=0.0 if exact else finest,
            )
        if instrument.fwhm < finest:
            smooth = gaussian_kernel(instrument.middle, float(np.sqrt(finest**2 - instrument.fwhm**2)))
            instrument = replace(instrument, fwhm=finest)
        pristine, change, noise = changed(host, doped, instrument, unit, smooth)
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
        unit = self.pack.host.band_edge_mev
        pristine, change, noise = changed(standard.host, standard.doped, seen.instrument, unit, seen.smooth)
        apart = float(((pristine - seen.pristine) ** 2).sum() / (seen.pristine**2).sum())
        if apart > ANOTHER_HOST:
            raise SpectrumError(
                f"standard {standard.doped.name}: its host is not that of the pair in question",
                why=f"their spectra differ by {np.sqrt(apart):.0%}",
                fix="Give samples of this crystal, measured on the same instrument",
            )
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
