"""Alloys whose spectra are known: SiGe's three modes, Al in MgB2, and Pt in vanadium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment

from defectnet.elements import INDEX, properties
from defectnet.potentials.neighbours import Crystal, find_pairs
from defectnet.potentials.phonons import MEV_PER_ROOT, Modes, modes, q_mesh
from defectnet.potentials.potential import Potential
from defectnet.potentials.supercells import supercell
from physics_suite.cells import (
    Failed,
    Vibrating,
    box,
    random_sites,
    settle,
    substitute,
    textbook,
    vibrating_supercell,
)
from physics_suite.curves import CM1_PER_MEV, Curve, coarse, from_modes, histogram, shape_distance
from physics_suite.local_modes import read_csv

FloatArray = NDArray[np.float64]

BONDS = ("Ge-Ge", "Si-Ge", "Si-Si")
BOND_ANGSTROM = 2.9
"""Longest bond of SiGe: between the first and the second shell at any composition."""

LINE_CM1 = 6.0
"""Standard deviation of a Raman line, 1/cm: alloys measure 10 to 20 of full width."""

OPTIC_CM1 = 200.0
"""Raman lines are sought above this."""

FARTHEST = 0.2
"""Largest relative difference of a computed peak from the measured one that it is taken for."""

SIGMA_MGB2 = 1.5
"""Resolution at which peaks of MgB2 are sought, meV: near that of the measurement, 4 % of the energy transferred."""

ACOUSTIC_MEV = 40.0
"""The measured optic peaks lie above; the acoustic ones end at 36 meV."""

WINDOWS_MEV = {"70": (60.0, 80.0), "89": (80.0, 98.0)}
"""Where Yokoo (2004) saw what Al does: "around 70 and 89 meV"."""


def sige_lines(folder: Path, x: float) -> dict[str, float]:
    """Return the measured Raman lines (1/cm) of relaxed Si1-xGex by bond, from ``sige.csv``."""
    rows = {row["bond"]: row for row in read_csv(folder / "sige.csv")}
    return {bond: sum(float(rows[bond][f"c{k}"]) * x**k for k in range(4)) for bond in BONDS}


def sige_cell(potential: Potential, x: float, repeats: int, seed: int) -> Crystal:
    """Return a relaxed random Si1-xGex crystal of 8 repeats^3 atoms, at the volume that it wants.

    Raises:
        Failed: It does not relax.
    """
    silicon = supercell(textbook("Si"), box("Si", repeats))
    stretch = 1.0 + x * (5.6575 / 5.4309 - 1.0)  # Vegard's law, as a start
    start = substitute(silicon.strained(stretch * np.eye(3)), random_sites(silicon, "Si", x, seed), "Ge")
    return settle(potential, start, "volume", 0.01)


def raman(crystal: Crystal, hessian: FloatArray) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Return first-order Raman intensities by bond, in the bond-polarisability model.

    A bond that stretches along its direction r changes the polarisability by r r times the stretch, all bonds alike
    (Alonso and Winer, Phys. Rev. B 39, 10056 (1989)); the off-diagonal components are what tetrahedral crystals show.

    Args:
        crystal: Si and Ge on a diamond lattice; N atoms.
        hessian: (3 N, 3 N), eV/angstrom^2.

    Returns:
        (M,) energies in meV, and by bond the (M,) intensity of its part of the amplitude; and ``all`` of the whole.
    """
    mass = np.repeat(atomic_masses[crystal.numbers], 3)
    values, vectors = eigh(hessian / np.sqrt(mass[:, None] * mass[None, :]), driver="evd")
    energy = np.sign(values) * np.sqrt(np.abs(values)) * MEV_PER_ROOT
    moves = (vectors / np.sqrt(mass)[:, None]).reshape(len(crystal), 3, -1)
    pairs = find_pairs(crystal, BOND_ANGSTROM)
    once = (pairs.centre < pairs.neighbour).numpy()
    i, j = pairs.centre.numpy()[once], pairs.neighbour.numpy()[once]
    unit = pairs.vector.numpy()[once] / pairs.distance.numpy()[once][:, None]
    stretch = np.einsum("bc,bcm->bm", unit, moves[j] - moves[i])
    germanium = (crystal.numbers[i] == atomic_numbers["Ge"]).astype(int) + (crystal.numbers[j] == atomic_numbers["Ge"])
    amplitude = {}
    for bond, count in zip(BONDS, (2, 1, 0), strict=True):
        kind = germanium == count
        tensor = np.stack([unit[kind, a] * unit[kind, b] for a, b in ((1, 2), (2, 0), (0, 1))])
        amplitude[bond] = tensor @ stretch[kind]
    amplitude["all"] = sum(amplitude[bond] for bond in BONDS)
    occupied = np.maximum(energy, 1.0)  # amplitude of a mode goes as energy^-1/2; translations do not stretch bonds
    return energy, {bond: (value**2).sum(0) / occupied for bond, value in amplitude.items()}


def sige(potential: Potential, folder: Path, x: float, repeats: int, arrangements: int) -> dict[str, Any]:
    """Compare the three Raman lines of a random alloy with the measured ones.

    Each line is the highest point of the intensity of its own bonds, broadened by `LINE_CM1`, of all arrangements.

    Args:
        potential: Relaxes and vibrates.
        folder: Holds the facts.
        x: Share of Ge.
        repeats: Of the cubic cell: 3 for 216 atoms, as Alonso and Winer took.
        arrangements: Random ones that are averaged.

    Raises:
        Failed: A cell does not relax, or a line is not there.
    """
    energies, parts = [], []
    atoms = 0
    for seed in range(arrangements):
        crystal = sige_cell(potential, x, repeats, seed)
        energy, intensity = raman(crystal, potential.force_constants(crystal).hessian().cpu().double().numpy())
        energies.append(energy)
        parts.append(intensity)
        atoms = len(crystal)
    energy_mev = np.concatenate(energies)
    out: dict[str, Any] = {"x": x, "atoms": atoms, "arrangements": arrangements, "lines": {}}
    measured = sige_lines(folder, x)
    for bond in BONDS:
        line = _highest_cm1(energy_mev, np.concatenate([part[bond] for part in parts]))
        out["lines"][bond] = {
            "cm1": round(line, 1),
            "measured_cm1": round(measured[bond], 1),
            "error": round(line / measured[bond] - 1.0, 4),
        }
    whole = np.concatenate([part["all"] for part in parts])
    out["raman"] = coarse(histogram(np.where(energy_mev > 5.0, energy_mev, -1e3), whole))
    out["dos"] = coarse(histogram(energy_mev))
    return out


def _highest_cm1(energy_mev: FloatArray, intensity: FloatArray) -> float:
    optic = energy_mev * CM1_PER_MEV > OPTIC_CM1
    curve = histogram(energy_mev[optic], intensity[optic]).smoothed(LINE_CM1 / CM1_PER_MEV)
    peaks = curve.peaks_mev(height=0.5)
    if not peaks:
        raise Failed("no Raman line")
    top = float(curve.energy_mev[int(curve.dos.argmax())])
    return min(peaks, key=lambda peak: abs(peak - top)) * CM1_PER_MEV


def neutron_curve(phonons: Modes, crystal: Crystal) -> Curve:
    """Return the DOS that neutrons see: each atom's share weighted with its cross section over its mass."""
    column = [INDEX[chemical_symbols[z]] for z in crystal.numbers]
    weight = properties("scattering_cross_section_barn")[column] / properties("mass_u")[column]
    return histogram(phonons.energy_mev, phonons.weight @ weight)


def matched(peaks_mev: list[float], measured_mev: list[float]) -> list[float | None]:
    """Return for each measured peak the nearest computed one, each taken once, in the order that errs least.

    A peak without a partner within `FARTHEST` is None.
    """
    out: list[float | None] = [None] * len(measured_mev)
    if peaks_mev:
        cost = np.abs(np.subtract.outer(np.array(measured_mev), np.array(peaks_mev)))
        for row, column in zip(*linear_sum_assignment(cost), strict=True):
            if cost[row, column] <= FARTHEST * measured_mev[row]:
                out[int(row)] = round(peaks_mev[int(column)], 1)
    return out


def mgb2_host(host: Vibrating, folder: Path) -> dict[str, Any]:
    """Compare the peaks of MgB2's neutron-weighted DOS with the measured ones."""
    measured = [float(row["peak_mev"]) for row in read_csv(folder / "mgb2.csv")]
    curve = neutron_curve(host.phonons, host.crystal).smoothed(SIGMA_MGB2)
    optic = [peak for peak in curve.peaks_mev() if peak > ACOUSTIC_MEV]
    found = matched(optic, measured)
    return {
        "peaks_mev": [round(peak, 1) for peak in curve.peaks_mev()],
        "measured_mev": measured,
        "matched_mev": found,
        "error": [None if p is None else round(p / m - 1.0, 4) for p, m in zip(found, measured, strict=True)],
        "edge_mev": round(float(host.phonons.energy_mev.max()), 1),
        "mean_mev": round(from_modes(host.phonons).mean_mev, 2),
        "imaginary_fraction": round(host.phonons.imaginary_fraction, 5),
        "dos": coarse(neutron_curve(host.phonons, host.crystal)),
    }


def mgb2_al(potential: Potential, host: Vibrating, share: float, repeats: int) -> dict[str, Any]:
    """Say what Al on Mg sites does to MgB2.

    The pristine supercell is sampled as the doped one, so that the difference shows Al and not sampling.

    Args:
        potential: Relaxes and vibrates.
        host: Relaxed MgB2.
        share: Of the Mg sites.
        repeats: Of the primitive cell along each vector.

    Raises:
        Failed: The cell does not relax.
    """
    perfect = supercell(host.crystal, box("MgB2", repeats))
    pure = vibrating_supercell(potential, perfect, "full", 0.0)
    sites = random_sites(perfect, "Mg", share, 0)
    doped = vibrating_supercell(potential, substitute(perfect, sites, "Al"), "full")
    curves = [neutron_curve(cell.phonons, cell.crystal) for cell in (pure, doped)]
    smooth = [curve.smoothed() for curve in curves]
    size = min(len(curve.dos) for curve in smooth)
    energy = smooth[0].energy_mev[:size]
    change = smooth[1].dos[:size] - smooth[0].dos[:size]
    out: dict[str, Any] = {
        "x": round(len(sites) / repeats**3, 4),
        "atoms": len(perfect),
        "shape_distance": round(shape_distance(curves[0], curves[1]), 4),
        "mean_shift": round(curves[1].mean_mev / curves[0].mean_mev - 1.0, 4),
        "edge_mev": [round(float(cell.phonons.energy_mev.max()), 1) for cell in (pure, doped)],
        "imaginary_fraction": round(doped.phonons.imaginary_fraction, 5),
        "dos": coarse(curves[1]),
    }
    for name, (low, high) in WINDOWS_MEV.items():
        inside = (energy >= low) & (energy < high)
        centres = [float(c.dos[:size][inside] @ energy[inside] / c.dos[:size][inside].sum()) for c in smooth]
        out[f"near_{name}_mev"] = {
            "moved_share": round(float(0.5 * np.abs(change[inside]).sum()), 4),
            "centre_shift_mev": round(centres[1] - centres[0], 2),
        }
    return out


def vanadium_platinum(
    potential: Potential, host: Vibrating, share: float, repeats: int, arrangements: int = 2
) -> dict[str, Any]:
    """See whether Pt stiffens vanadium, averaged over random arrangements.

    Beside it: the same crystal of vanadium with nothing but the masses changed, whose mean energy must fall.

    Raises:
        Failed: A cell does not relax.
    """
    perfect = supercell(host.crystal, box("V", repeats))
    pure = vibrating_supercell(potential, perfect, "volume", 0.0)
    mean = from_modes(pure.phonons).mean_mev
    shifts, by_mass, projected, curves, count, imaginary = [], [], [], [], 0, []
    for seed in range(arrangements):
        sites = random_sites(perfect, "V", share, seed)
        alloy = substitute(perfect, sites, "Pt")
        doped = vibrating_supercell(potential, alloy, "volume")
        points = q_mesh(len(perfect)) if potential.exact else [np.zeros(3)]
        heavy = modes(pure.force_constants, Crystal(alloy.numbers, perfect.cell, pure.crystal.positions), points)
        on_v = doped.phonons.weight[:, alloy.numbers == atomic_numbers["V"]].sum(1)
        shifts.append(from_modes(doped.phonons).mean_mev / mean - 1.0)
        by_mass.append(from_modes(heavy).mean_mev / mean - 1.0)
        projected.append(histogram(doped.phonons.energy_mev, on_v).mean_mev / mean - 1.0)
        imaginary.append(doped.phonons.imaginary_fraction)
        curves.append(doped.phonons.energy_mev)
        count = len(sites)
    return {
        "x": round(count / len(perfect), 4),
        "atoms": len(perfect),
        "arrangements": arrangements,
        "mean_mev": round(mean, 2),
        "mean_shift": round(float(np.mean(shifts)), 4),
        "mean_shift_of_vanadium": round(float(np.mean(projected)), 4),
        "mean_shift_by_mass_alone": round(float(np.mean(by_mass)), 4),
        "stiffens": bool(np.mean(shifts) > 0),
        "imaginary_fraction": round(float(np.mean(imaginary)), 5),
        "dos": coarse(histogram(np.concatenate(curves))),
        "host_dos": coarse(from_modes(pure.phonons)),
    }
