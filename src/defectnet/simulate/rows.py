"""One row of a data set: a pure function of the relaxed host, the row's id and the settings."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectnet.config import STORAGE_GRID, Bounded, bounded
from defectnet.crystal.doping import (
    CONTROLS,
    HIGHEST,
    LOWEST,
    NUMBER_WEIGHTS,
    DopedCell,
    build,
    draw_mix,
    split_dopant,
)
from defectnet.crystal.hosts import Host
from defectnet.crystal.plausible import plausible_dopants
from defectnet.data.sample import Doping, HostSpectrum, make_sample
from defectnet.data.shards import AS_IS, Sample
from defectnet.data.splits import split_of
from defectnet.errors import DefectNetError, SimulationError
from defectnet.files import read_json
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.neighbours import Crystal
from defectnet.potentials.phonons import Modes, band_edge, folded, modes, projected_dos, q_mesh
from defectnet.potentials.potential import Potential
from defectnet.potentials.relax import Relaxation, relax
from defectnet.potentials.supercells import supercell, supercell_matrix
from defectnet.simulate.stiffness import StiffnessFactors, scaled

FloatArray = NDArray[np.float64]
INTERPOLATED_LIMIT = 0.06
"""Largest share of imaginary modes where finite displacements of one cell are interpolated to other wave vectors: some
soft acoustic ones are artefacts of the small cell. At Gamma, where it is exact, the limits of the settings hold."""

LATER = ("highest", "controls", "dopants", "plausible")
"""Settings that the first data sets do not have: left out where they are at their default, so that these go on."""


Kind = TypeVar("Kind", bound=Bounded)


def read_settings(kind: type[Kind], path: str | Path) -> Kind:
    """Read settings from a JSON object, or from an existing data set's manifest.

    Args:
        kind: `SimulationSettings`, or `PairSettings` of pairs from host packs.
        path: The file.

    Raises:
        SimulationError: The file is not such an object, or names a setting that does not exist.
    """
    if not Path(path).is_file():
        raise SimulationError(f"settings {path} cannot be read", why="there is no such file", fix="Check the path")
    try:
        values = read_json(path)
        if isinstance(values, dict) and "parts" in values:
            raise SimulationError(
                f"{path} is of a data set in parts", fix=f"Give one: {', '.join(map(str, values['parts']))}"
            )
        return kind(**values.get("settings", values))
    except DefectNetError:
        raise
    except (ValueError, AttributeError, TypeError) as error:
        known = ", ".join(field.name for field in fields(kind))  # type: ignore[arg-type]
        raise SimulationError(
            f"{path} is no JSON object of settings", why=str(error)[:160], fix=f"Settings are {known}"
        ) from error


@dataclass(frozen=True)
class SimulationSettings(Bounded, error=SimulationError):
    """What fixes a data set beside its hosts and its potential.

    Attributes:
        seed: Seed of the data set.
        spectra_per_host: Doped cells tried for each host.
        hosts_per_shard: Hosts in one file.
        smallest, largest: Fewest and most atoms of a host's supercell.
        dilute_smallest, dilute_largest: The same of a second, larger supercell; 0 for none.
        dilute_share: Share of cells that are the larger ones. They hold dopants of any concentration, so that the
            size does not give it away.
        dilute_lowest: Least concentration of each dopant in the larger cells.
        most_dopants: Most coexisting dopants.
        lowest: Least concentration of each dopant.
        highest: Greatest concentration of all dopants together.
        clustered: Share of cells with clustered dopants.
        controls: Share of cells without a dopant.
        dopants: The only ones that are substituted in, as ``Al`` or ``Al@Mg`` (in place of magnesium); any if empty.
        plausible: If not 0, only so many of each host's likeliest dopants are (see `plausible_dopants`).
        stiffness_share: Share of training cells that are also computed with one or two randomised stiffnesses.
        keep_hessians: Write the doped cells and their Hessians too, beside each shard.
        tolerance: Largest force left, eV/angstrom (and virial per atom, eV).
        imaginary_limit: Largest share of imaginary modes in a doped cell.
        host_imaginary_limit: The same in a host.
        volume_limit: Largest relative change of the host's volume: beyond, the potential describes another crystal.
        highest_edge_mev: Highest believable edge; above, atoms sit on each other.
    """

    seed: int = bounded(0, 0)
    spectra_per_host: int = bounded(6, 1)
    hosts_per_shard: int = bounded(8, 1)
    smallest: int = 100
    largest: int = 250
    dilute_smallest: int = bounded(0, 0, 5000)
    dilute_largest: int = bounded(0, 0, 5000)
    dilute_share: float = bounded(0.35, 0.0, 1.0)
    dilute_lowest: float = LOWEST
    most_dopants: int = bounded(6, 1, len(NUMBER_WEIGHTS))
    lowest: float = bounded(LOWEST, above=0.0)
    highest: float = bounded(HIGHEST, above=0.0, most=HIGHEST)
    clustered: float = bounded(0.1, 0.0, 1.0)
    controls: float = bounded(CONTROLS, 0.0, 1.0)
    dopants: tuple[str, ...] = ()
    plausible: int = bounded(0, 0)
    stiffness_share: float = bounded(0.0, 0.0, 1.0)
    keep_hessians: bool = False
    tolerance: float = bounded(0.01, above=0.0)
    imaginary_limit: float = 0.005
    host_imaginary_limit: float = 0.0
    volume_limit: float = 0.2
    highest_edge_mev: float = 250.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.smallest <= self.largest <= 5000:
            raise SimulationError(
                f"atoms: {self.smallest} to {self.largest} is no range within 8 to 5000", fix="Check --atoms"
            )
        if self.has_dilute:
            ordered = self.largest < self.dilute_smallest <= self.dilute_largest
            self.require(ordered, "dilute_smallest", f"Use more than {self.largest}, at most dilute_largest")
        ordered = self.lowest * self.most_dopants <= self.highest
        self.require(ordered, "lowest", f"Use {self.highest} over all dopants at most")
        self.require(not isinstance(self.dopants, str), "dopants", 'Use a list, such as ["Al@Mg"]')
        self.require(not (self.plausible and self.dopants), "plausible", "Name dopants, or have likely ones chosen")
        object.__setattr__(self, "dopants", tuple(self.dopants))  # JSON has lists
        for dopant in self.dopants:
            split_dopant(dopant)

    @property
    def has_dilute(self) -> bool:
        """Whether dilute dopants get cells of their own."""
        return self.dilute_largest > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values; of those in `LATER`, what is not the default."""
        values = asdict(self) | {"dopants": list(self.dopants)}
        defaults = {field.name: field.default for field in fields(self)}
        return {k: v for k, v in values.items() if k not in LATER or getattr(self, k) != defaults[k]}


def atom_range(text: str) -> tuple[int, int]:
    """Read ``160`` (met within a fifth) or ``100-250``.

    Raises:
        SimulationError: It is neither.
    """
    parts = text.split("-")
    if not 1 <= len(parts) <= 2 or not all(part.strip().isdigit() for part in parts):
        raise SimulationError(f"atoms: {text!r} is no number and no range", fix="Write 160 or 100-250")
    if len(parts) == 1:
        return round(0.8 * int(text)), round(1.2 * int(text))
    return int(parts[0]), int(parts[1])


class RejectedCell(Exception):  # noqa: N818  (an outcome that is listed, not an error)
    """A host or a cell that does not enter the data set, with the reason."""


def row_generator(seed: int, row_id: str) -> np.random.Generator:
    """Return the random generator of a row: it depends on the seed and the row's id alone."""
    digest = hashlib.sha256(row_id.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def relax_host(
    potential: Potential, host: Host, settings: SimulationSettings, preconditioner: Potential | None = None
) -> Crystal:
    """Relax atoms and cell of a host.

    The result is rounded to single precision, as it is stored: a row can be made again from what is stored.

    Args:
        potential: Relaxes.
        host: The crystal as listed.
        settings: See `SimulationSettings`.
        preconditioner: See `relax`.

    Raises:
        RejectedCell: It does not converge, or ends as another crystal.
    """
    result = relax(
        potential, host.crystal, cell="full", tolerance=settings.tolerance / 10, preconditioner=preconditioner
    )
    change = result.crystal.volume / host.crystal.volume - 1.0
    collapsed = not np.isfinite(result.max_force)
    if not result.converged and not collapsed:
        raise RejectedCell("host not relaxed")
    if collapsed or abs(change) > settings.volume_limit:
        raise RejectedCell("host volume changed")
    return as_stored(result.crystal)


def as_stored(crystal: Crystal) -> Crystal:
    """Round cell and fractional coordinates to single precision."""
    cell = crystal.cell.astype(np.float32).astype(np.float64)
    frac = crystal.frac.astype(np.float32).astype(np.float64)
    return Crystal(crystal.numbers, cell, frac @ cell)


@dataclass(frozen=True)
class SimulatedCell:
    """What one doped cell gives.

    Attributes:
        samples: The pair as it is, then those with randomised stiffness.
        crystal: The relaxed doped cell.
        force_constants: Its second derivatives.
    """

    samples: list[Sample]
    crystal: Crystal
    force_constants: ForceConstants


class HostSimulation:
    """A relaxed host, its supercells, and everything its rows share.

    Args:
        potential: Relaxes and vibrates the cells.
        host: Names the rows.
        relaxed: The host after `relax_host`, or read from a stored row.
        settings: See `SimulationSettings`.
        preconditioner: See `relax`.
    """

    def __init__(
        self,
        potential: Potential,
        host: Host,
        relaxed: Crystal,
        settings: SimulationSettings,
        preconditioner: Potential | None = None,
    ) -> None:
        self.potential = potential
        self.host = host
        self.relaxed = relaxed
        self.settings = settings
        self.preconditioner = preconditioner
        self.split = split_of(host.chemical_system)
        self.dopants = plausible_dopants(relaxed, settings.plausible) if settings.plausible else settings.dopants
        rng = row_generator(settings.seed, host.id)
        self.regular = self._supercell(rng, settings.smallest, settings.largest)
        self.dilute = (
            self._supercell(rng, settings.dilute_smallest, settings.dilute_largest)
            if settings.has_dilute
            else self.regular
        )
        self._dos: dict[tuple[bytes, str], tuple[float, FloatArray]] = {}

    def row(self, number: int) -> SimulatedCell:
        """Simulate one doped cell.

        Args:
            number: Number of the row within its host.

        Raises:
            RejectedCell: The cell does not relax, or host or cell have imaginary modes.
        """
        settings = self.settings
        row_id = f"{self.host.id}/{number:04d}"
        rng = row_generator(settings.seed, row_id)
        dilute = settings.has_dilute and rng.random() < settings.dilute_share
        mix = draw_mix(
            self.relaxed,
            rng,
            most=settings.most_dopants,
            lowest=settings.dilute_lowest if dilute else settings.lowest,
            highest=settings.highest,
            clustered=settings.clustered,
            controls=settings.controls,
            dopants=self.dopants,
        )
        cell = build(self.relaxed, mix, rng, self.dilute if dilute else self.regular)
        stiffnesses = int(rng.integers(1, 3)) if rng.random() < settings.stiffness_share else 0
        return self.vibrate(row_id, cell, stiffnesses)

    def vibrate(self, row_id: str, cell: DopedCell, stiffnesses: int = 0) -> SimulatedCell:
        """Relax a doped cell of this host and take its spectra.

        Args:
            row_id: Name of the row.
            cell: What `build` made of `relaxed`.
            stiffnesses: How many randomised stiffnesses to add; only training hosts have them.

        Raises:
            RejectedCell: As `row`.
        """
        settings, potential = self.settings, self.potential
        self._host_dos(cell.supercell, AS_IS)  # an unstable host is known before its cells are relaxed
        result = relax(
            potential, cell.crystal, cell="volume", tolerance=settings.tolerance, preconditioner=self.preconditioner
        )
        if not result.converged:
            raise RejectedCell("doped cell not relaxed")
        force_constants = potential.force_constants(result.crystal)
        samples = [self._sample(row_id, cell, result, force_constants, AS_IS)]
        if self.split == "train":
            for k in range(1, stiffnesses + 1):
                with suppress(RejectedCell):
                    samples.append(self._sample(row_id, cell, result, force_constants, f"stiffness-{k}"))
        return SimulatedCell(samples, result.crystal, force_constants)

    def _supercell(self, rng: np.random.Generator, smallest: int, largest: int) -> NDArray[np.int64]:
        # In the lower half: larger cells cost more, and the upper half is for crystals that do not fit.
        wanted = int(rng.uniform(smallest, (smallest + largest) / 2))
        return supercell_matrix(self.relaxed.cell, len(self.relaxed), wanted, (smallest, largest))

    def _stiffness(self, variant: str) -> StiffnessFactors:
        return StiffnessFactors(self.settings.seed, f"{self.host.id}/{variant}")

    def _host_dos(self, matrix: NDArray[np.int64], variant: str) -> tuple[float, FloatArray]:
        """Return edge and projected DOS of the pristine supercell."""
        key = (matrix.tobytes(), variant)
        if key not in self._dos:
            # An exact potential gives the modes of the supercell from the small cell, at the wave vectors that fold.
            mesh = q_mesh(len(self.relaxed) * round(abs(np.linalg.det(matrix))))
            if self.potential.exact:
                crystal, points = self.relaxed, [k for q in mesh for k in folded(matrix, q)]
            else:
                crystal, points = supercell(self.relaxed, matrix), mesh
            force_constants: ForceConstants = self.potential.force_constants(crystal)
            if variant != AS_IS:
                force_constants = scaled(force_constants, self._stiffness(variant).of(crystal.numbers))
            found = self._stable_modes(force_constants, crystal, points, self.settings.host_imaginary_limit, "host")
            edge_mev = band_edge(found)
            if edge_mev > self.settings.highest_edge_mev:
                raise RejectedCell("host edge not believable")
            self._dos[key] = edge_mev, projected_dos(found, crystal, edge_mev, STORAGE_GRID)[0]
        return self._dos[key]

    def _stable_modes(
        self, force_constants: ForceConstants, crystal: Crystal, points: list[FloatArray], limit: float, what: str
    ) -> Modes:
        """Return the modes, or reject a crystal with too many imaginary ones."""
        found = modes(force_constants, crystal, points)
        fraction, most = found.imaginary_fraction, limit
        if not self.potential.exact:
            most = INTERPOLATED_LIMIT
            if modes(force_constants, crystal, [np.zeros(3)]).imaginary_fraction > limit:
                raise RejectedCell(f"imaginary modes in the {what}")
        if fraction > most:
            raise RejectedCell(f"imaginary modes in the {what}")
        return found

    def _sample(
        self, row_id: str, cell: DopedCell, result: Relaxation, force_constants: ForceConstants, variant: str
    ) -> Sample:
        """Vibrate a relaxed doped cell, as it is or with randomised stiffness."""
        crystal, points = result.crystal, q_mesh(len(cell.crystal))
        edge_mev, host_dos = self._host_dos(cell.supercell, variant)
        if variant != AS_IS:
            force_constants = scaled(force_constants, self._stiffness(variant).of(crystal.numbers))
        phonons = self._stable_modes(force_constants, crystal, points, self.settings.imaginary_limit, "doped cell")
        return make_sample(
            row_id if variant == AS_IS else f"{row_id}/{variant}",
            HostSpectrum(
                Host(self.host.id, self.host.formula, self.relaxed),
                cell.supercell,
                edge_mev,
                host_dos,
                self.potential.name,
                self.potential.sha256,
            ),
            Doping(cell.sites, cell.symbols, cell.placement),
            crystal.numbers,
            phonons,
            qpoints=len(points),
            seed=self.settings.seed,
            max_force=result.max_force,
            variant=variant,
        )
