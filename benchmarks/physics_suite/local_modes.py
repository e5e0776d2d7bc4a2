"""Local vibrational modes of single impurities, against measured frequencies."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_masses, atomic_numbers
from numpy.typing import NDArray

from defectnet.errors import SimulationError
from defectnet.potentials.force_constants import ForceConstants
from defectnet.potentials.phonons import IMAGINARY_MEV, MEV_PER_ROOT, band_edge, eigenvalues_and_shares
from defectnet.potentials.potential import Potential
from defectnet.potentials.supercells import supercell
from physics_suite.cells import Failed, Vibrating, box, settle, substitute
from physics_suite.curves import CM1_PER_MEV

FloatArray = NDArray[np.float64]

NEAR_EDGE = 1.25
"""Measured modes below this many host edges are spread out, and take the larger cell."""

SMALL, LARGE = 2, 3
"""Repetitions of the cubic cell: 64 and 216 atoms."""

LOWEST = 0.85
"""Local modes are sought above this share of the host's edge: those of heavy atoms may lie just inside the band."""

TOGETHER_MEV = 1.0
"""Modes this near to the one with the largest share on the impurity are one mode that the cell splits."""

RATTLE = 0.02
"""Displacements, angstrom, that break the symmetry where the symmetric place of an impurity is not stable."""


@dataclass(frozen=True)
class LocalMode:
    """A measured local mode of one impurity.

    Attributes:
        host, dopant, site: For instance Si, C, C_Si; the site's element follows the underscore.
        isotope: For instance 12C; mass_u: its atomic mass.
        measured_cm1: Frequency; edge_cm1: the host's highest one.
        scored: Whether it enters the mean error.
        status: ``V`` where the source was read, ``U`` where the value is commonly quoted.
        source: Of the frequency.
    """

    host: str
    dopant: str
    site: str
    isotope: str
    mass_u: float
    measured_cm1: float
    edge_cm1: float
    scored: bool
    status: str
    source: str

    @property
    def key(self) -> str:
        """Name, for instance ``Si:C_Si 12C``."""
        return f"{self.host}:{self.site} {self.isotope}"

    @property
    def measured_ratio(self) -> float:
        """Measured frequency over the measured edge of the host."""
        return self.measured_cm1 / self.edge_cm1


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table of facts.

    Raises:
        SimulationError: It is missing.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise SimulationError(
            f"table {path} cannot be read", why=error.strerror or "", fix="Take it from the repository"
        ) from error


def read_local_modes(folder: Path) -> list[LocalMode]:
    """Read ``local_modes.csv`` and ``host_edges.csv``, without the rows that say why they are not computed."""
    edges = {row["host"]: float(row["edge_cm1"]) for row in read_csv(folder / "host_edges.csv")}
    rows = [row for row in read_csv(folder / "local_modes.csv") if row["use"] in ("scored", "shown")]
    return [
        LocalMode(
            host=row["host"],
            dopant=row["dopant"],
            site=row["site"],
            isotope=row["isotope"],
            mass_u=float(row["mass_u"]),
            measured_cm1=float(row["freq_cm1"]),
            edge_cm1=edges[row["host"]],
            scored=row["use"] == "scored",
            status=row["status"],
            source=row["source"],
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Impurity:
    """A relaxed supercell with one impurity.

    Attributes:
        force_constants: Second derivatives of the cell.
        numbers: (N,) atomic numbers; atom: index of the impurity.
        distorted: Whether its symmetric place was not stable.
        edge_mev: Highest phonon energy of the host.
    """

    force_constants: ForceConstants
    numbers: NDArray[np.int64]
    atom: int
    distorted: bool
    edge_mev: float


def impurity(potential: Potential, host: Vibrating, mode: LocalMode) -> Impurity:
    """Put one impurity into a supercell of the relaxed host and relax the atoms; the cell keeps the host's lattice.

    Raises:
        Failed: It does not relax, or its place is not stable even without symmetry.
    """
    size = LARGE if mode.measured_ratio < NEAR_EDGE else SMALL
    perfect = supercell(host.crystal, box(mode.host, size))
    replaced = mode.site.split("_")[1]
    atom = int(np.flatnonzero(perfect.numbers == atomic_numbers[replaced])[0])
    start = substitute(perfect, np.array([atom]), mode.dopant)
    edge_mev = band_edge(host.phonons)
    for rattle in (0.0, RATTLE):
        relaxed = settle(potential, start, "fixed", rattle)
        force_constants = potential.force_constants(relaxed)
        found = Impurity(force_constants, relaxed.numbers, atom, rattle > 0, edge_mev)
        if gamma(found, {})[0].min() > -IMAGINARY_MEV:
            return found
    raise Failed("the impurity's place is not stable")


def gamma(cell: Impurity, masses: dict[int, float]) -> tuple[FloatArray, FloatArray]:
    """Return the modes at Gamma without the three translations.

    Args:
        cell: The supercell.
        masses: Masses (u) of single atoms by index; the others have their standard atomic weights.

    Returns:
        (M,) energies in meV, imaginary ones negative, and (M,) shares of the impurity.
    """
    mass = atomic_masses[cell.numbers].copy()
    for atom, value in masses.items():
        mass[atom] = value
    values, shares = eigenvalues_and_shares(cell.force_constants.hessian(), np.repeat(mass**-0.5, 3))
    keep = np.ones(len(values), dtype=bool)
    keep[np.argsort(np.abs(values))[:3]] = False
    energy = np.sign(values) * np.sqrt(np.abs(values)) * MEV_PER_ROOT
    return energy[keep], shares[keep, cell.atom]


def local_energy(energy_mev: FloatArray, share: FloatArray, edge_mev: float) -> tuple[float, float]:
    """Choose the local mode.

    Of the modes above `LOWEST` host edges the one with the largest share on the impurity is taken; modes within
    `TOGETHER_MEV` of it belong to it, and count by their shares (in a tetrahedral place there are three alike).

    Args:
        energy_mev: (M,) energies.
        share: (M,) shares of the impurity.
        edge_mev: Highest phonon energy of the host.

    Returns:
        Its energy in meV, and how much of the impurity's motion it carries, 0 to 1.

    Raises:
        Failed: No mode lies there.
    """
    above = energy_mev > LOWEST * edge_mev
    if not above.any():
        raise Failed("no mode near the host's edge")
    energy, weight = energy_mev[above], share[above]
    near = np.abs(energy - energy[int(weight.argmax())]) < TOGETHER_MEV
    total = float(weight[near].sum())
    return float(energy[near] @ weight[near]) / total, total / 3.0


def record(cell: Impurity, mode: LocalMode) -> dict[str, Any]:
    """Compare one local mode with its measurement.

    Returns:
        Frequencies in 1/cm, their ratios to the host's edge, and relative errors.
    """
    energy_mev, localised = local_energy(*gamma(cell, {cell.atom: mode.mass_u}), cell.edge_mev)
    ratio = energy_mev / cell.edge_mev
    return {
        "host": mode.host,
        "dopant": mode.dopant,
        "site": mode.site,
        "isotope": mode.isotope,
        "scored": mode.scored,
        "atoms": len(cell.numbers),
        "distorted": cell.distorted,
        "localised": round(localised, 3),
        "cm1": round(energy_mev * CM1_PER_MEV, 1),
        "measured_cm1": mode.measured_cm1,
        "error": round(energy_mev * CM1_PER_MEV / mode.measured_cm1 - 1.0, 4),
        "edge_cm1": round(cell.edge_mev * CM1_PER_MEV, 1),
        "measured_edge_cm1": mode.edge_cm1,
        "edge_error": round(cell.edge_mev * CM1_PER_MEV / mode.edge_cm1 - 1.0, 4),
        "ratio": round(ratio, 4),
        "measured_ratio": round(mode.measured_ratio, 4),
        "ratio_error": round(ratio / mode.measured_ratio - 1.0, 4),
        "status": mode.status,
        "source": mode.source,
    }


def isotope_shift(cell: Impurity, light: LocalMode, heavy: LocalMode) -> dict[str, Any]:
    """Compare the shift between two isotopes of one impurity: one Hessian, two masses.

    Returns:
        Both frequencies (1/cm), their difference and ratio, beside the measured ones.
    """
    found = [
        local_energy(*gamma(cell, {cell.atom: mode.mass_u}), cell.edge_mev)[0] * CM1_PER_MEV for mode in (light, heavy)
    ]
    shift, measured = found[0] - found[1], light.measured_cm1 - heavy.measured_cm1
    return {
        "light_cm1": round(found[0], 1),
        "heavy_cm1": round(found[1], 1),
        "shift_cm1": round(shift, 2),
        "measured_shift_cm1": measured,
        "shift_error": round(shift / measured - 1.0, 4),
        "ratio": round(found[0] / found[1], 5),
        "measured_ratio": round(light.measured_cm1 / heavy.measured_cm1, 5),
        "ratio_error": round(found[0] / found[1] / (light.measured_cm1 / heavy.measured_cm1) - 1.0, 5),
        "lone_atom_ratio": round(float(np.sqrt(heavy.mass_u / light.mass_u)), 5),
    }
