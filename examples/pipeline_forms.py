"""Every form of a spectrum and of a host that a pipeline may hand over; mypy checks this file, and the tests run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from ase.build import bulk
from ase.spectrum.dosdata import GridDOSData
from euphonic import Spectrum1D, ureg
from phonopy.phonon.dos import TotalDos
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.phonon.dos import CompletePhononDos, PhononDos

import defectnet
from defectnet.models.base import Query

THZ = 4.135667696923859
"""meV."""


def total_dos(frequency: np.ndarray, dos: np.ndarray) -> TotalDos:
    """Return what phonopy's `run_total_dos` leaves in `Phonopy.total_dos`, without a run."""
    made = TotalDos.__new__(TotalDos)
    made._frequency_points, made._dos = frequency, dos
    return made


def forms(energy: np.ndarray, dos: np.ndarray) -> dict[str, object]:
    """Return one DOS, energies in meV, as each library has it; the arrays alone need `unit`."""
    structure = Structure(Lattice.cubic(6.5), ["Cd", "Te"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    whole = PhononDos(energy / THZ, dos)
    return {
        "pymatgen": whole,
        "pymatgen, of sites": CompletePhononDos(structure, whole, {structure[0]: 0.5 * dos, structure[1]: 0.5 * dos}),
        "document": {"phonon_dos": {"frequencies": (energy / THZ).tolist(), "densities": dos.tolist()}},
        "phonopy": total_dos(energy / THZ, dos),
        "Euphonic": Spectrum1D(energy * ureg("meV"), dos * ureg("1/meV")),
        "ase": GridDOSData(energy / 1000, dos),
        "pandas": pd.DataFrame({"energy_meV": energy, "dos": dos}),
        "columns": (energy, dos),
        "array": np.column_stack([energy, dos]),
        "array with errors": np.column_stack([energy, dos, 0.02 * dos + 1e-4]),
    }


def hosts() -> dict[str, object]:
    """Return one formula as each library has it."""
    structure = Structure(Lattice.cubic(6.5), ["Cd", "Te"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    return {
        "text": "CdTe",
        "Composition": Composition("CdTe"),
        "Structure": structure,
        "Atoms": bulk("CdTe", "zincblende", 6.5),
    }


def main(folder: Path = Path(__file__).parent) -> list[str]:
    """Ask a network about each form, and about a table of them in which one cannot be answered."""
    host, doped = (defectnet.read_spectrum(folder / name) for name in ("host.csv", "doped.csv"))
    model = defectnet.from_pretrained("defectnet-small")
    said = []
    whole, sample = (forms(one.energy_mev, one.dos) for one in (host, doped))
    for name in whole:
        answer = model.predict(whole[name], sample[name], "CdTe", candidates=["Mg", "Zn"], unit="meV")
        said.append(f"{name}: {answer.sentence}")
    for name, formula in hosts().items():
        answers = model.predict_many([Query(host, doped, formula), Query(host, doped, "Xx")], on_error="record")
        for one in answers:
            said.append(f"{name}: {one.error if isinstance(one, defectnet.Unanswered) else one.sentence}")
    single = defectnet.identify(host, doped, formula="CdTe", candidates=["Mg", "Zn"])
    again = defectnet.answer_from_dict(single.to_dict())
    assert not isinstance(again, defectnet.Unanswered)
    said.append(f"{len(again.to_frame())} elements; {again.provenance['weights_sha256']}")
    return said


if __name__ == "__main__":
    print("\n".join(main()))
