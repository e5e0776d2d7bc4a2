"""Files as users and programs write them: each is read right, or refused with the way out; `data/cases` holds them.

Spectra are those of `examples/` or made up, and thinned; forms, titles and faults are as the programs write them.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from defectnet.config import MODEL_GRID
from defectnet.errors import SpectrumError
from defectnet.io import read_spectrum
from defectnet.io.read import JSON, NAMES, TEXT, describe_file
from defectnet.measure.encode import Examined, examine_pair, host_edge_mev
from spectra import dos_of

CASES = Path(__file__).parent / "data" / "cases"
CDTE = 19.67
"""Band edge, meV, of the host that most files hold."""


class Read(NamedTuple):
    """What must be read: unit, kind, whether a file says the kind; the edge; and a warning, if any."""

    unit: str
    kind: str = "total"
    told: bool = False
    edge: float = CDTE
    warning: str = ""
    errors: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012
    formula: str = "CdTe"
    candidates: tuple[str, ...] = ("Hg", "Mn", "Se", "Zn")


READ = {
    "alamode_dos_total": Read("cm-1", told=True),
    "background_4_percent": Read("meV", warning=r"does not fall to zero: 4\.0% of its maximum"),
    "castep_phonon_dos": Read("cm-1", told=True),
    "decimal_comma_comma_separated": Read("meV"),
    "elastic_tail_cut": Read("meV", warning="doped spectrum begins too high, at 1.5 meV"),
    "euphonic_to_text_file": Read("meV"),
    "euphonic_to_text_file_pdos_unit": Read("meV", "neutron-weighted", True, options={"unit": "meV"}),
    "fortran_d_exponent": Read("meV"),
    "gzip_phonopy_total_dos": Read("THz", told=True),
    "hdf5_final_dos": Read("meV", errors=True),
    "header_2pi_THz": Read("rad/ps"),
    "local_mode_cut_off": Read(
        "meV", edge=61.4, warning="local modes of B, C would lie above", formula="Si", candidates=("B", "C", "Ge", "P")
    ),
    "mantid_saveascii": Read("meV", told=True, errors=True, options={"unit": "meV", "kind": "total"}),
    "materials_project_emmet_phonon_dos": Read("THz", told=True),
    "mdanse_text": Read("rad/ps"),
    "origin_with_error_column": Read("meV", errors=True),
    "phoenix_csv": Read("meV", "projected", True, errors=True),
    "phonopy_factor_cm1_unit_given": Read("cm-1", told=True, options={"unit": "cm-1"}),
    "qe_matdyn_dos": Read("cm-1", told=True),
    "title_gdos_not_recognised": Read("meV", "neutron-weighted", True, errors=True),
    "undoped_half_percent_noise_to_40_meV": Read("meV"),
}

REFUSED = {
    "columns_swapped": ("the columns are swapped", "Give energy first", {}),
    "electronic_dos_positive": ("is an electronic DOS: it says 'E-E_F'", "DOS of the phonons", {}),
    "one_unit_option_for_two_files": (r"share only 2\d% of their area", "--host-unit", {"unit": "meV"}),
    "projected_three_columns_no_header": ("too large for a standard deviation", "Title it error", {"unit": "THz"}),
    "raman_spectrum": ("is a Raman spectrum", "Measure or compute the phonon DOS", {}),
    "two_blocks": ("holds 2 blocks, one below the other", "in a file of its own", {}),
}


def files(name: str) -> list[Path]:
    """Return host and doped file."""
    found = list((CASES / name).iterdir())
    return sorted(found, key=lambda path: not path.name.startswith("host"))


def examined(name: str, given: Read) -> Examined:
    host, doped = (read_spectrum(path, **given.options) for path in files(name))
    return examine_pair(host, doped, given.formula, grid=MODEL_GRID, candidates=given.candidates)


def test_every_case_is_expected_here():
    assert {path.name for path in CASES.iterdir()} == READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_case_is_read(name):
    given = READ[name]
    pair = examined(name, given)
    assert (pair.unit, pair.kind, pair.kind_told) == (given.unit, given.kind, given.told)
    assert float(pair.batch.edge_mev[0]) == pytest.approx(given.edge, rel=0.02)
    text = "; ".join(pair.warnings)
    assert len(pair.warnings) == (1 if given.warning else 0), text
    assert re.search(given.warning, text), text
    assert bool(read_spectrum(files(name)[0], **given.options).error is not None) == given.errors
    assert bool(pair.unchanged) == name.startswith("undoped")


@pytest.mark.parametrize("name", REFUSED)
def test_case_is_refused(name):
    what, fix, options = REFUSED[name]
    with pytest.raises(SpectrumError, match=what) as error:
        examined(name, Read("meV", options=options))
    assert fix in error.value.fix


# Kin of the cases, made here.

E = np.arange(0.0, 60.0, 0.25)
DOS = dos_of(E)
THZ, CM, RAD, HARTREE = E / 4.135667696923859, E / 0.12398419843320026, E / 0.6582119569509066, E / 27211.386245988
ERROR = 0.01 * DOS.max() + 0.02 * DOS


def rows(*columns: np.ndarray, head: str = "", mark: str = " ", comma: bool = False, form: str = "%.9g") -> str:
    text = "".join(mark.join(form % value for value in row) + "\n" for row in zip(*columns, strict=True))
    return (head + "\n" if head else "") + (text.replace(".", ",") if comma else text)


def fortran(value: float, width: int, digits: int) -> str:
    """Write a number as Fortran's Ew.d does."""
    power = 0 if value == 0 else int(np.floor(np.log10(abs(value)))) + 1
    return f"{value / 10.0**power:.{digits}f}E{power:+03d}".rjust(width)


def general(value: float) -> str:
    """Write a number as Fortran's G18.10 does."""
    if value and abs(value) < 0.1:
        return fortran(value, 18, 10)
    whole = 1 if value == 0 else int(np.floor(np.log10(abs(value)))) + 1
    return f"{value:.{10 - whole}f}".rjust(14) + "    "


def of_shengbte(*columns: np.ndarray) -> str:
    return "".join("".join(fortran(x, 14, 5) for x in row) + "\n" for row in zip(*columns, strict=True))


def of_abinit(*columns: np.ndarray, by: str = "atom type ", titles: str = "INT_PHDOS   PJDOS[atom_type=1]") -> str:
    head = f"# \n# Phonon density of states and {by}projected DOS\n# \n# Energy in Ha, DOS in states/Ha\n"
    head += f"# Tetrahedron method, nqibz= 256\n# \n# omega     PHDOS    {titles} ...  \n# "
    return rows(*columns, head=head, mark="", form="%17.8E")


def of_dave(energy: np.ndarray, unit: str, groups: int = 1) -> str:
    head = f"# Number of Energy transfer values\n{len(E)}\n# Number of Y values\n{groups}\n"
    head += f"# Energy transfer ({unit}) values\n{rows(energy)}# Y () values\n" + "1\n" * groups
    return head + "".join(f"# Group {i}\n{rows(DOS, ERROR)}" for i in range(groups))


def of_gpumd(first: float = 0.25) -> str:
    omega = first + 0.25 * np.arange(400)
    noise = np.random.default_rng(0).normal(size=(3, 400))
    return rows(omega, *(np.interp(omega, RAD, DOS, right=0.0) * (1.0 + 0.03 * noise)), form="%g")


def document(**more: Any) -> str:
    return json.dumps({"frequencies": THZ.tolist(), "densities": DOS.tolist(), **more})


PLAIN = rows(E, DOS, head="energy_meV,dos", mark=",")
GRACE = '@xaxis label "energy (meV)"\n@yaxis label "partial phonon DOS (1/eV)"'
MANTID = "XYDATA\n# File generated by Mantid, Instrument MARI\n# The X-axis unit is: DeltaE, The Y-axis unit is: 1/meV"
EUPHONIC = "# Generated by Euphonic 1.4.0\n# x_data in ({})\n# Common metadata: {{}}\n# Column 1: x_data\n"
MATDYN = " # Frequency[cm^-1] DOS PDOS"
ALAMODE = "#   Cd   Te\n#    1    1\n# Energy [cm^-1]"

KIN: dict[str, tuple[str | bytes, dict[str, Any], str, str, str | None]] = {
    "UTF-16": (PLAIN.encode("utf-16"), {}, "meV", "total", None),
    "UTF-16 without mark": (PLAIN.encode("utf-16-be"), {}, "meV", "total", None),
    "bzip2": (bz2.compress(PLAIN.encode()), {}, "meV", "total", None),
    "xz": (lzma.compress(PLAIN.encode()), {}, "meV", "total", None),
    "Hartree": (rows(HARTREE, DOS, head="Energy (Hartree),DOS", mark=","), {}, "Hartree", "total", None),
    "unit in words": (rows(HARTREE, DOS, head="# Energy in Hartree, states/Hartree"), {}, "Hartree", "total", None),
    "2 pi THz": (rows(RAD, DOS, head="omega (2pi*THz),dos", mark=","), {}, "rad/ps", "total", None),
    "angular THz, told": (
        rows(RAD, DOS, head="angular freq (THz),g", mark=","),
        {"unit": "rad/ps"},
        "rad/ps",
        "total",
        None,
    ),
    "phonopy in meV, told": (rows(E, DOS, head="# Sigma = 0.05"), {"unit": "meV"}, "meV", "total", None),
    "decimal commas": (rows(E, DOS, head="E (meV);DOS", mark=";", comma=True), {}, "meV", "total", None),
    "decimal commas, tabs": (rows(E, DOS, head="E (meV)\tDOS", mark="\t", comma=True), {}, "meV", "total", None),
    "decimal commas, blanks": (rows(E, DOS, head="# E(meV) DOS", comma=True), {}, "meV", "total", None),
    "Fortran, three digits": (
        rows(E, DOS + 1e-150, head="# E(meV) DOS", form="%.8E").replace("E-150", "-150"),
        {},
        "meV",
        "total",
        None,
    ),
    "Origin with comments": (
        rows(E, DOS, ERROR, head="Energy\tDOS\tyEr±\nmeV\ta.u.\ta.u.\n\thost\t", mark="\t"),
        {},
        "meV",
        "total",
        None,
    ),
    "matdyn of one atom": (rows(CM, DOS, DOS, head=MATDYN), {}, "cm-1", "total", None),
    "matdyn of four atoms": (rows(CM, DOS, *[DOS / 4] * 4, head=MATDYN), {}, "cm-1", "total", None),
    "ALAMODE's atoms": (
        rows(CM, DOS, 0.6 * DOS, 0.4 * DOS, head=ALAMODE + ", TOTAL-DOS, Atom Projected-DOS"),
        {},
        "cm-1",
        "total",
        None,
    ),
    "ALAMODE's atoms alone": (
        rows(CM, 0.6 * DOS, 0.4 * DOS, head=ALAMODE + ", Atom Projected-DOS"),
        {},
        "cm-1",
        "total",
        None,
    ),
    "Mantid, tabs": (rows(E, DOS, ERROR, head="# X \t Y \t E\n1", mark="\t"), {"unit": "meV"}, "meV", "total", None),
    "Mantid's header": (rows(E, DOS, ERROR, head=MANTID), {}, "meV", "total", None),
    "Mantid, errors of X": (
        rows(E, DOS, ERROR, 0 * E, head="# X , Y , E , DX\n1", mark=","),
        {"unit": "meV"},
        "meV",
        "total",
        None,
    ),
    "emmet in a document": (json.dumps({"id": "mp-1", "phonon_dos": json.loads(document())}), {}, "THz", "total", None),
    "emmet in a response": (json.dumps({"data": [{"ph_dos": json.loads(document())}]}), {}, "THz", "total", None),
    "Euphonic's species": (
        rows(
            CM,
            0.6 * DOS,
            0.4 * DOS,
            head=EUPHONIC.format("1 / centimeter")
            + '# Column 2: y_data[0] {"species": "Cd"}\n# Column 3: y_data[1] {"species": "Te"}',
        ),
        {"element": "Te"},
        "cm-1",
        "projected",
        "Te",
    ),
    "abinit": (of_abinit(HARTREE, DOS, DOS.cumsum(), DOS, DOS.cumsum()), {}, "Hartree", "total", None),
    "abinit, by atom": (
        of_abinit(HARTREE, DOS, 0.4 * DOS, 0.6 * DOS, by="atom ", titles="PJDOS[atom=1]  PJDOS[atom=2]"),
        {},
        "Hartree",
        "total",
        None,
    ),
    "GPUMD": (of_gpumd(), {}, "rad/ps", "total", None),
    "ShengBTE": (of_shengbte(RAD[1:], DOS[1:]), {}, "rad/ps", "total", None),
    "ShengBTE's atoms": (of_shengbte(RAD[1:], 0.4 * DOS[1:], 0.6 * DOS[1:]), {}, "rad/ps", "total", None),
    "ShengBTE, told": (of_shengbte(E[1:], DOS[1:]), {"unit": "meV"}, "meV", "total", None),
    "elk": (
        "".join(
            general(x) + general(y) + "\n" for x, y in zip(np.r_[-HARTREE[3], HARTREE], np.r_[0, DOS], strict=True)
        ),
        {},
        "Hartree",
        "total",
        None,
    ),
    "DAVE": (of_dave(E, "meV"), {"kind": "neutron-weighted"}, "meV", "neutron-weighted", None),
    "DAVE, micro eV": (of_dave(1000 * E, "micro eV"), {}, "meV", "total", None),
    "monty's arrays": (
        document(densities={"@module": "numpy", "@class": "array", "dtype": "float64", "data": DOS.tolist()}),
        {},
        "THz",
        "total",
        None,
    ),
    "columns of elements": (rows(E, 0.6 * DOS, 0.4 * DOS, head="E (meV),B,N", mark=","), {}, "meV", "total", None),
    "one of them": (
        rows(E, 0.6 * DOS, 0.4 * DOS, head="E (meV),Cd,Te", mark=","),
        {"element": "Cd"},
        "meV",
        "projected",
        "Cd",
    ),
    "total beside elements": (
        rows(E, DOS, 0.6 * DOS, 0.4 * DOS, head="E (meV),total,Cd,Te", mark=","),
        {},
        "meV",
        "total",
        None,
    ),
    "total and its integral": (
        rows(E, DOS, DOS.cumsum(), head="E (meV),DOS,integrated DOS", mark=","),
        {},
        "meV",
        "total",
        None,
    ),
    "generalized DOS": (
        "# generalized phonon density of states\n" + PLAIN,
        {},
        "meV",
        "neutron-weighted",
        None,
    ),
    "GGA is no GDOS": ("# PBE, a generalized gradient approximation\n" + PLAIN, {}, "meV", "total", None),
    "nuclear resonance": (
        rows(E, DOS, ERROR, head="# 57Fe NRIXS\nE (meV),partial DOS,error", mark=","),
        {},
        "meV",
        "projected",
        "Fe",
    ),
    "DOS made of S(Q,w)": ("# DOS from S(Q,w)\n" + PLAIN, {}, "meV", "total", None),
    "selenium is no standard error": (
        rows(E, 0.6 * DOS, 0.4 * DOS, head="energy_meV,Cd,Se", mark=","),
        {"element": "Se"},
        "meV",
        "projected",
        "Se",
    ),
    "untitled total and its shares": (rows(CM, DOS, 0.6 * DOS, 0.4 * DOS), {"unit": "cm-1"}, "cm-1", "total", None),
    "sum with selenium": (rows(E, 0.6 * DOS, 0.4 * DOS, head="# E(meV) Zn Se"), {}, "meV", "total", None),
    "2 pi divides": (rows(THZ, DOS, head="omega/2pi THz,dos", mark=","), {}, "THz", "total", None),
    "energy of neutrons": (
        rows(CM, DOS, head="# Incident energy (meV): 60\n# Wavenumber in cm-1\nx,g(E)", mark=","),
        {},
        "cm-1",
        "total",
        None,
    ),
    "energy of electrons, told": (
        rows(THZ, DOS, head="# Total energy (eV): -345.2\nfrequency,dos", mark=","),
        {"unit": "THz"},
        "THz",
        "total",
        None,
    ),
    "chopper": (
        rows(E, DOS, head="# Fermi chopper 300 Hz, wavelength 1.1 A\nE (meV),g", mark=","),
        {},
        "meV",
        "total",
        None,
    ),
    "elements of the crystal": ("# Elements: Cd, Te\n" + PLAIN, {}, "meV", "total", None),
    "Grace, two columns": (rows(E, DOS, head=GRACE), {}, "meV", "projected", None),
    "Grace project": (rows(E, DOS, head="# Grace project file\n#\n" + GRACE), {}, "meV", "projected", None),
    "sections": (rows(E, DOS, head="[APL_DOS_CALCULATION]START\nE (meV) DOS"), {}, "meV", "total", None),
    "JSON with its unit": (
        json.dumps({"frequencies": CM.tolist(), "densities": DOS.tolist(), "unit": "cm-1"}),
        {},
        "cm-1",
        "total",
        None,
    ),
    "JSON of no class, told": (
        json.dumps({"frequencies": E.tolist(), "densities": DOS.tolist()}),
        {"unit": "meV"},
        "meV",
        "total",
        None,
    ),
    "unnamed errors": (
        rows(E, DOS + ERROR * np.random.default_rng(0).normal(size=len(E)), ERROR),
        {"unit": "meV"},
        "meV",
        "total",
        None,
    ),
}


def test_the_program_is_told(tmp_path):
    for program in ("abinit", "DAVE", "Euphonic", "GPUMD", "Mantid", "ShengBTE", "elk"):
        content = next(given[0] for name, given in KIN.items() if name.startswith(program))
        (tmp_path / "file").write_text(content)
        assert describe_file(tmp_path / "file")[0] == program
    readers = {read.__module__.rpartition(".")[2] for _, read in (*TEXT, *JSON)} | {"hdf5", "table"}
    assert readers - {"untitled"} == NAMES.keys()


@pytest.mark.parametrize("name", KIN)
def test_kin_is_read(tmp_path, name):
    content, options, unit, kind, element = KIN[name]
    path = tmp_path / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_spectrum(path, **options)
    assert (found.unit, found.kind, found.element) == (unit, kind, element)
    assert host_edge_mev(found) == pytest.approx(35.3, rel=0.02)


BAD: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "GPUMD, or three atoms": (of_gpumd(0.0), {}, "declares no energy unit", "--unit"),
    "GPUMD, which atom": (of_gpumd(), {"element": "Te"}, "GPUMD does not write which", "Leave element out"),
    "abinit, which atom": (of_abinit(HARTREE, DOS, DOS), {"element": "Te"}, "does not write here", r"PHDOS.nc"),
    "abinit without unit": (of_abinit(HARTREE, DOS).replace("Energy in Ha", ""), {}, "has no line", "anaddb"),
    "DAVE's S(Q,E)": (of_dave(E, "meV", 3), {}, "holds 3 groups of Y", "Convert it to a DOS"),
    "DAVE, cut off": (of_dave(E, "meV")[:-40], {}, "240 values are said", "SaveDaveGrp"),
    "DAVE, momentum": (of_dave(E, "1/Angstroms"), {}, "unknown unit '1/Angstroms'", "Use one of"),
    "NCMAT of a gas": ("NCMAT v1\n", {}, "is not read by NCrystal", "Mend"),
    "angular THz": (rows(RAD, DOS, head="angular freq (THz),g", mark=","), {}, "declares no energy unit", "rad/ps"),
    "commas for everything": (
        rows(E + 0.01, DOS + 0.01, head="E (meV),DOS", mark=",", comma=True, form="%.4f"),
        {},
        "has decimal commas, and commas between",
        "semicolons",
    ),
    "swapped, untitled": (rows(DOS, E), {"unit": "meV"}, "the second one rises like energies", "energy first"),
    "swapped, in a comment": (
        rows(DOS, THZ, head="# DOS Frequency(THz)"),
        {},
        "stands over the second one",
        "energy first",
    ),
    "blocks without a blank line": (
        rows(E, DOS, head="# E(meV) DOS") + rows(E[9:], DOS[9:]),
        {},
        "holds 2 blocks",
        "of its own",
    ),
    "two spectra of Mantid": (
        rows(E, DOS, ERROR, head="# X , Y , E\n1", mark=",") + rows(E, DOS, ERROR, head="2", mark=","),
        {"unit": "meV"},
        "holds 2 spectra",
        "Save one of them",
    ),
    "Mantid without a unit": (
        rows(E, DOS, ERROR, head="# X , Y , E\n1", mark=","),
        {},
        "declares no energy unit",
        "--unit",
    ),
    "matdyn, which atom": (
        rows(CM, DOS, DOS, head=MATDYN),
        {"element": "Te"},
        "does not say which column",
        "Leave element out",
    ),
    "S(Q,w)": (rows(E, DOS, head="Energy transfer (meV),S(Q,w)", mark=","), {}, r"is S\(Q,E\)", "Convert it to a DOS"),
    "infrared": (
        rows(CM, DOS, head="Wavenumber (cm-1),Absorbance", mark=","),
        {},
        "is an optical spectrum",
        "phonon DOS",
    ),
    "Raman in a comment": (
        "# Raman spectrum\n" + rows(CM, DOS, head="k (cm-1),counts", mark=","),
        {},
        "is a Raman",
        "phonon DOS",
    ),
    "electronic in a comment": ("# electronic DOS of CdTe\n" + PLAIN, {}, "is an electronic DOS", "DOS of the phonons"),
    "errors in per cent": (
        rows(E, DOS, ERROR, head="E (meV),DOS,error (%)", mark=","),
        {},
        "a column is called 'error [(]%[)]'",
        "Convert it",
    ),
    "relative errors": (
        rows(E, DOS, ERROR, head="E (meV),DOS,rel. error", mark=","),
        {},
        "a column is called 'rel. error'",
        "Convert it",
    ),
    "variances as errors": (
        rows(E, DOS, ERROR, head="E (meV),DOS,error^2", mark=","),
        {},
        "a column is called 'error.2'",
        "Convert it",
    ),
    "errors of energies": (
        rows(E, DOS, ERROR, head="E (meV),DOS,E_err", mark=","),
        {},
        "a column is called 'E_err'",
        "Convert it",
    ),
    "uncorrected is no uncertainty": (
        rows(E, DOS, ERROR, head="E (meV),DOS,DOS uncorrected", mark=","),
        {},
        "the third column is called 'DOS uncorrected'",
        "call the third column error",
    ),
    "a signal is no sigma": (
        rows(E, DOS, ERROR, head="E (meV),DOS,signal", mark=","),
        {},
        "the third column is called 'signal'",
        "call the third column error",
    ),
    "a window": (
        rows(E, DOS, ERROR, head="E (meV),DOS,window function", mark=","),
        {},
        "the third column is called 'window function'",
        "call the third column error",
    ),
    "smoothed": (
        rows(E, DOS, ERROR, head="E (meV),DOS,DOS with Gaussian sigma 1", mark=","),
        {},
        "the third column is called 'DOS with Gaussian sigma 1'",
        "call the third column error",
    ),
    "thousands": (
        "\n".join(["E (meV)\tDOS", *(f"{e:g}\t{d:,.0f}" for e, d in zip(E, 1e5 * DOS, strict=True))]),
        {},
        "has a comma between thousands",
        "without separators",
    ),
    "rows counted": (
        rows(np.arange(len(E)), E, DOS, mark=","),
        {"unit": "meV"},
        "the first column only counts the rows",
        "index=False",
    ),
    "circular frequency": (
        rows(RAD, DOS, head="circular frequency (THz),g", mark=","),
        {},
        "declares no energy unit",
        "rad/ps",
    ),
    "2 pi times": (rows(RAD, DOS, head="2*pi*nu (THz),g", mark=","), {}, "declares no energy unit", "rad/ps"),
    "untitled shares, which atom": (
        rows(CM, DOS, 0.6 * DOS, 0.4 * DOS),
        {"unit": "cm-1", "element": "Te"},
        "does not say which column",
        "Leave element out",
    ),
    "untitled, not the sum": (rows(CM, DOS, DOS, 0.4 * DOS), {"unit": "cm-1"}, "4 columns of unknown", "Keep energy"),
    "two units in words": (
        rows(E, DOS, head="# energy in meV\n# frequency in THz\nx,dos", mark=","),
        {},
        "declares no energy unit",
        "--unit",
    ),
    "energy_K": (rows(E, DOS, head="energy_K,dos", mark=","), {"unit": "meV"}, "unknown unit 'K'", "Use one of"),
    "Frequency_GHz": (
        rows(E, DOS, head="Frequency_GHz,dos", mark=","),
        {"unit": "meV"},
        "unknown unit 'GHz'",
        "Use one of",
    ),
    "energy_Ry": (rows(E, DOS, head="energy_Ry,dos", mark=","), {"unit": "meV"}, "unknown unit 'Ry'", "Use one of"),
    "E/µeV": (rows(E, DOS, head="E/µeV,dos", mark=","), {"unit": "meV"}, "unknown unit 'µeV'", "Use one of"),
    "10^3 E / eV": (
        rows(E, DOS, head="10^3 E / eV,dos", mark=","),
        {},
        "energies are scaled",
        "Give energies themselves",
    ),
    "E x 1000 (eV)": (
        rows(E, DOS, head="E x 1000 (eV),dos", mark=","),
        {},
        "energies are scaled",
        "Give energies themselves",
    ),
    "log10 E (meV)": (
        rows(E, DOS, head="log10 E (meV),dos", mark=","),
        {},
        "energies are scaled",
        "Give energies themselves",
    ),
    "100*E/eV": (rows(E, DOS, head="100*E/eV,dos", mark=","), {}, "energies are scaled", "Give energies themselves"),
    "E/Emax meV": (
        rows(E, DOS, head="E/Emax meV,dos", mark=","),
        {},
        "energies are scaled",
        "Give energies themselves",
    ),
    "lifetime (ps)": (
        rows(E, DOS, head="E (meV),lifetime (ps)", mark=","),
        {},
        "is no phonon DOS",
        "energy and phonon DOS",
    ),
    "alpha2F": (rows(E, DOS, head="E (meV),alpha2F", mark=","), {}, "is no phonon DOS", "energy and phonon DOS"),
    "group velocity": (
        rows(E, DOS, head="E (meV),group velocity", mark=","),
        {},
        "is no phonon DOS",
        "energy and phonon DOS",
    ),
    "ln(DOS)": (rows(E, DOS, head="E (meV),ln(DOS)", mark=","), {}, "is no phonon DOS", "energy and phonon DOS"),
    "integrated DOS": (
        rows(E, DOS, head="E (meV),integrated DOS", mark=","),
        {},
        "is no phonon DOS",
        "energy and phonon DOS",
    ),
    "scattering phase space": (
        rows(E, DOS, head="E (meV),scattering phase space", mark=","),
        {},
        "is no phonon DOS",
        "energy and phonon DOS",
    ),
    "two shares, untitled": (rows(E, 0.85 * DOS, 0.15 * DOS), {"unit": "meV"}, "too large for a standard", "their sum"),
    "several DOS in JSON": (json.dumps([json.loads(document())] * 2), {}, "holds 2 phonon DOS", "Save pymatgen"),
    "Euphonic without unit": (rows(E, DOS, head="# Generated by Euphonic 1.4"), {}, "has no line", "to_text_file"),
    "Euphonic's metadata": (
        rows(E, DOS, head=EUPHONIC.format("meV") + "# Column 2: y_data[0] {broken}"),
        {},
        "metadata are broken",
        "again",
    ),
    "CASTEP, broken": (
        " BEGIN header\n END header\n BEGIN DOS   Freq (cm-1)  g(f)   Cd  Te\n 1.0 2.0 3.0\n END DOS\n",
        {},
        "line 4: 3 columns, not 4",
        "Run CASTEP again",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_kin_is_refused(tmp_path, name):
    content, options, what, fix = BAD[name]
    (tmp_path / "file").write_text(content)
    with pytest.raises(SpectrumError, match=what) as error:
        read_spectrum(tmp_path / "file", **options)
    assert fix in error.value.fix


def test_damaged_archive_and_missing_package(tmp_path, monkeypatch):
    (tmp_path / "a.xz").write_bytes(lzma.compress(PLAIN.encode())[:-40])
    with pytest.raises(SpectrumError, match=r"a\.xz is damaged"):
        read_spectrum(tmp_path / "a.xz")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(SpectrumError, match=r"needs h5py.*pip install 'defectnet\[hdf5\]'"):
        read_spectrum(files("hdf5_final_dos")[0])


def test_nexus_of_mantid_and_nxdata(tmp_path):
    import h5py

    edges = np.append(E, E[-1] + 0.25) - 0.125
    with h5py.File(tmp_path / "mantid.nxs", "w") as file:
        group = file.create_group("mantid_workspace_1/workspace")
        group["values"], group["errors"], group["axis1"] = DOS[None], ERROR[None], edges
        group["axis1"].attrs["units"] = "DeltaE"
    with h5py.File(tmp_path / "nxdata.h5", "w") as file:
        group = file.create_group("entry/dos")
        group["g"], group["g_errors"], group["E"] = DOS, ERROR, THZ
        group["E"].attrs["units"] = "THz"
        group.attrs.update({"signal": "g", "axes": ["E"]})
    for name, unit in (("mantid.nxs", "meV"), ("nxdata.h5", "THz")):
        found = read_spectrum(tmp_path / name)
        assert found.unit == unit
        np.testing.assert_allclose(found.error, ERROR)
        np.testing.assert_allclose(found.energy_mev, E, atol=1e-9)
    for name in ("abinit.nc", "classic.nc"):
        write_abinit(tmp_path / name, classic=name.startswith("classic"))
        found = [read_spectrum(tmp_path / name, element=element) for element in (None, "Te")]
        assert [(one.unit, one.kind, one.element) for one in found] == [
            ("eV", "total", None),
            ("eV", "projected", "Te"),
        ]
        np.testing.assert_allclose(found[1].dos, 0.6 * found[0].dos)
        with pytest.raises(SpectrumError, match="no DOS projected on Al"):
            read_spectrum(tmp_path / name, element="Al")
    (tmp_path / "cut.nc").write_bytes((tmp_path / "classic.nc").read_bytes()[:60])
    with pytest.raises(SpectrumError, match="is damaged netCDF"):
        read_spectrum(tmp_path / "cut.nc")
    with h5py.File(tmp_path / "mdanse.h5", "w") as file:
        file["romega"], file["dos_total"] = RAD, DOS
        file["romega"].attrs["units"], file["dos_total"].attrs["units"] = "rad/ps", "au"
    assert read_spectrum(tmp_path / "mdanse.h5").unit == "rad/ps"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = E
    with pytest.raises(SpectrumError, match="holds no curves"):
        read_spectrum(tmp_path / "other.h5")


def write_abinit(path: Path, *, classic: bool) -> None:
    """Write what anaddb writes, as netCDF 4 or as the classic one."""
    import h5py
    from scipy.io import netcdf_file

    symbols = np.array([[b"C", b"d", b" "], [b"T", b"e", b" "]], dtype="S1")
    values = {"wmesh": E / 1000, "phdos": 1000 * DOS, "pjdos_type": 1000 * np.array([0.4 * DOS, 0.6 * DOS])}
    if not classic:
        with h5py.File(path, "w") as file:
            for name, value in {**values, "chemical_symbols": symbols}.items():
                file[name] = value
        return
    with netcdf_file(path, "w") as file:
        for size, length in {"w": len(E), "t": 2, "c": 3}.items():
            file.createDimension(size, length)
        for name, value in values.items():
            file.createVariable(name, "d", ("t", "w")[2 - value.ndim :])[:] = value
        file.createVariable("chemical_symbols", "c", ("t", "c"))[:] = symbols


def test_ncmat(tmp_path, monkeypatch):
    import NCrystal

    path = tmp_path / "ZnS.ncmat"
    path.write_text(NCrystal.createTextData("ZnS_sg216_Sphalerite.ncmat").rawData)
    total, zinc, sulphur = (read_spectrum(path, element=element) for element in (None, "Zn", "S"))
    assert (total.kind, zinc.kind, zinc.element, total.unit) == ("total", "projected", "Zn", "eV")
    np.testing.assert_allclose(zinc.dos + sulphur.dos, total.dos, atol=1e-9)
    assert zinc.area == pytest.approx(0.5, rel=1e-3)  # each of its own has unit area, times its fraction
    assert host_edge_mev(total) == pytest.approx(43.5, rel=0.02)
    path.write_text(NCrystal.createTextData("GaN_sg186_GalliumNitride.ncmat").rawData.replace("vdos\n", "vdos \n", 1))
    with pytest.raises(SpectrumError, match="no DOS projected on Zn"):
        read_spectrum(path, element="Zn")
    path.write_text(NCrystal.createTextData("Ar_Gas_STP.ncmat").rawData)
    with pytest.raises(SpectrumError, match="holds no vibrational DOS of Ar"):
        read_spectrum(path)
    monkeypatch.setitem(sys.modules, "NCrystal", None)
    with pytest.raises(SpectrumError, match=r"needs NCrystal.*pip install 'defectnet\[formats\]'"):
        read_spectrum(path)


def test_large_tables_are_read_as_small_ones(tmp_path, monkeypatch):
    """And what is wrong in them is found in the same line."""
    energy = np.linspace(0.0, 60.0, 2_000)
    texts = {
        "csv": rows(energy, dos_of(energy), head="energy_meV,dos", mark=",", form="%.17g"),
        "blanks": rows(energy, dos_of(energy), 0.01 + 0 * energy, head="# E(meV) DOS error", mark="  ", form="%.17g"),
        "comment below": rows(energy, dos_of(energy), head="energy,dos", mark=",", form="%.17g") + "# unit: meV\n",
        "word": rows(energy, dos_of(energy), head="energy_meV,dos", mark=",", form="%.17g") + "60.1,none\n",
        "cell": rows(energy, dos_of(energy), head="energy_meV,dos", mark=",", form="%.17g") + "60.1,1,2\n",
        "empty": rows(energy, dos_of(energy), head="energy_meV,dos", mark=",", form="%.17g") + "60.1,\n",
    }
    monkeypatch.setattr("defectnet.io.table._HEAD", 1 << 10)
    for name, text in texts.items():
        (tmp_path / "file").write_text(text)
        found = []
        for large in (1 << 14, 1 << 30):
            monkeypatch.setattr("defectnet.io.table._LARGE", large)
            try:
                found.append(read_spectrum(tmp_path / "file"))
            except SpectrumError as error:
                found.append(str(error))
        if isinstance(found[0], str):
            assert found[0] == found[1]
            assert "line 2002" in found[0]
        else:
            assert name in ("csv", "blanks", "comment below")
            for field in ("energy", "dos", "error"):
                np.testing.assert_array_equal(getattr(found[0], field), getattr(found[1], field))


def phoenix(path: Path, dos: np.ndarray, error: np.ndarray) -> Path:
    path.write_text(rows(E, 1000 * dos, 1000 * error, head=GRACE))
    return path


def test_bins_without_counts_are_read_though_their_errors_are_too_small(tmp_path):
    rng = np.random.default_rng(3)
    error = np.full(len(E), 0.05 * DOS.max())
    seen = DOS + error * rng.normal(size=len(E))
    seen[-3:], error[-3:] = -0.08 * DOS.max(), 5e-4 * DOS.max()
    found = read_spectrum(phoenix(tmp_path / "Fe_dos.dat", seen, error), element="Fe")
    np.testing.assert_allclose(found.dos, 1000 * seen, rtol=1e-6, atol=1e-6)
    seen[120] = -0.4 * DOS.max()  # eight of its errors
    with pytest.raises(SpectrumError, match="negative beyond noise"):
        read_spectrum(phoenix(tmp_path / "Fe_dos.dat", seen, error), element="Fe")


def test_two_measurements_of_one_sample_show_no_dopant(tmp_path):
    """And a sample that differs does."""
    error = 0.03 * DOS.max() + 0.03 * DOS
    other = dos_of(E, 37.5)
    wrong = missed = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        host, again, doped = (
            read_spectrum(phoenix(tmp_path / f"{i}_dos.dat", curve + error * rng.normal(size=len(E)), error))
            for i, curve in enumerate((DOS, DOS, other))
        )
        wrong += not examine_pair(host, again, "Fe", grid=MODEL_GRID).unchanged
        missed += bool(examine_pair(host, doped, "Fe", grid=MODEL_GRID).unchanged)
    assert wrong <= 1
    assert missed == 0
