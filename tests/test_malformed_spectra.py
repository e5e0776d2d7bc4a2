"""Every malformed file or argument gives exactly one clear error: it names the file or field, and says the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectnet.config import MODEL_GRID
from defectnet.errors import DefectNetError, FormulaError, SpectrumError
from defectnet.io import read_spectrum, write_spectrum
from defectnet.measure.encode import encode_pair
from defectnet.spectrum import Spectrum
from spectra import dos_of, grid, spectrum, table, write_table


@dataclass
class Case:
    """A malformed file, how it is read, and what the error must say: `what` before, `fix` after."""

    name: str
    content: str | bytes | Callable[[], str]
    what: str
    fix: str
    arguments: dict[str, Any] = field(default_factory=dict)


def text(rows: np.ndarray, header: str = "energy_meV,dos", delimiter: str = ",") -> str:
    lines = ([header] if header else []) + [delimiter.join(f"{value:.8g}" for value in row) for row in rows]
    return "\n".join(lines) + "\n"


def changed(change: Callable[[np.ndarray], Any], header: str = "energy_meV,dos") -> str:
    rows = table()
    result = change(rows)
    return text(rows if result is None else result, header)


def put(index: Any, value: Any) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[index] = value

    return change


def elastic_line(rows: np.ndarray) -> None:
    rows[:, 1] += 20.0 * np.exp(-0.5 * (rows[:, 0] / 0.8) ** 2)


def imaginary(rows: np.ndarray) -> np.ndarray:
    below = np.linspace(-8.0, -0.25, 32)
    return np.concatenate([np.column_stack([below, np.exp(-0.5 * ((below + 4) / 1.5) ** 2)]), rows])


def euphonic(**changes: Any) -> str:
    document = {
        "__euphonic_class__": "Spectrum1D",
        "x_data": grid().tolist(),
        "x_data_unit": "millielectron_volt",
        "y_data": dos_of(grid()).tolist(),
        "metadata": {},
    }
    return json.dumps(document | changes)


def collection(line_data: list[dict[str, str]], **changes: Any) -> str:
    y = np.tile(dos_of(grid()), (2, 1)).tolist()
    changed_metadata = {"line_data": line_data} | changes
    return euphonic(__euphonic_class__="Spectrum1DCollection", y_data=y, metadata=changed_metadata)


def pymatgen(**changes: Any) -> str:
    document = {"@class": "PhononDos", "frequencies": (grid() / 4.1357).tolist(), "densities": dos_of(grid()).tolist()}
    document |= changes
    return json.dumps({key: value for key, value in document.items() if value is not None})


SITES = {"sites": [{"species": [{"element": "Ga", "occu": 1}]}, {"species": [{"element": "As", "occu": 1}]}]}
MIXED = {"sites": [{"species": [{"element": "Ga", "occu": 0.5}, {"element": "Al", "occu": 0.5}]}]}
GRACE = '@xaxis label "energy (meV)"\n@yaxis label "partial phonon DOS (1/eV)"\n'
THREE = "0.0 0.0 0.0\n1.0 0.1 0.0\n"
PHONOPY = "# Sigma = 0.1\n"
ROWS = text(table(), header="")

FILES = [
    Case("empty", "", "is empty", "Give a file"),
    Case("blank", " \n\n\t\n", "is empty", "Give a file"),
    Case("binary", b"\x89HDF\r\n\x1a\n\0\0\0\0\0", "is damaged HDF5", "Write it again"),
    Case("pdf", b"%PDF-1.7 and so on", "is not text", "Export"),
    Case("words only", "there is\nno spectrum here\n", "holds no numbers", "energy and DOS"),
    Case("no unit", ROWS, "declares no energy unit", "Say unit="),
    Case("unit only of the DOS", text(table(), "energy,dos_per_meV"), "declares no energy unit", "Say unit="),
    Case("unknown unit in a title", text(table(), "E (K),dos"), "unknown unit 'K'", "Use one of meV"),
    Case("unknown unit in a comment", "# unit: parsec\n" + ROWS, "unit: unknown unit 'parsec'", "Use one of meV"),
    Case("mega for milli", text(table(), "E (MeV),dos"), "unknown unit 'MeV'", "Use one of meV"),
    Case("unknown unit argument", ROWS, "unit: unknown unit 'furlong'", "Use one of", {"unit": "furlong"}),
    Case("two units", "# unit: THz\n" + text(table()), "declares THz and meV", "Declare one unit"),
    Case("unit against argument", text(table()), "declares unit meV, but unit='THz'", "Leave unit", {"unit": "THz"}),
    Case("unknown kind", "# kind: nuetron\n" + text(table()), "unknown kind of DOS 'nuetron'", "Use one of total"),
    Case("unknown kind argument", text(table()), "unknown kind of DOS 'x'", "Use one of total", {"kind": "x"}),
    Case("two kinds", "# kind: total\n# element: Fe\n" + text(table()), "two kinds of DOS", "Keep one"),
    Case(
        "kind against argument",
        "# kind: projected\n" + text(table()),
        "declares kind projected, but kind='total'",
        "Leave kind out",
        {"kind": "total"},
    ),
    Case("unknown element", "# element: Xx\n" + text(table()), "element: 'Xx' is not an element", "Known are"),
    Case(
        "wrong element",
        "# element: Fe\n" + text(table()),
        "declares element Fe",
        "give another file",
        {"element": "Ni"},
    ),
    Case("NaN energy", changed(put((7, 0), np.nan)), "the energy is nan at point 8", "Remove or mend"),
    Case("NaN DOS", changed(put((7, 1), np.nan)), "the DOS is nan at point 8", "Remove or mend"),
    Case("infinite DOS", changed(put((7, 1), np.inf)), "the DOS is inf at point 8", "Remove or mend"),
    Case("infinite energy", changed(put((-1, 0), np.inf)), "the energy is inf at point 361", "Remove or mend"),
    Case("unsorted", changed(lambda rows: rows[::-1]), "smaller than the one before", "Sort the points"),
    Case("duplicate energy", changed(put((8, 0), 1.75)), "energy 1.75 at point 9 is there twice", "Keep one point"),
    Case("too few points", text(table()[:10]), "10 points are too few", "Give 16 points"),
    Case("only negative energies", changed(put((..., 0), np.linspace(-90, -1, 361))), "only 0 points", "positive"),
    Case("negative beyond noise", changed(put((100, 1), -0.5)), "negative beyond noise", "Subtract less background"),
    Case("negative plateau", changed(put((slice(170, 361), 1), -0.03)), "negative beyond noise", "Subtract less"),
    Case("elastic line", changed(elastic_line), "rises to 100% of its maximum at zero energy", "Subtract the elastic"),
    Case("imaginary modes", changed(imaginary), "lies at negative energies", "Relax the structure"),
    Case("all zeros", changed(put((slice(None), 1), 0.0)), "nowhere positive", "second column"),
    Case("text in a column", text(table()) + "90.5,high\n", "line 363: 'high' is not a number", "Leave only numbers"),
    Case("missing value", text(table()) + "90.5,\n", "line 363: '' is not a number", "Leave only numbers"),
    Case("ragged", text(table()) + "90.5\n", "line 363: 1 columns, 2 in the lines above", "Leave only numbers"),
    Case("one column", "energy_meV\n" + "\n".join(map(str, grid())), "has one column", "Give energy and DOS"),
    Case("four columns", text(table(a=grid(), b=grid())), "4 columns of unknown meaning", "Keep energy, DOS"),
    Case("third column", text(table(a=grid()), "E (meV),dos,dos_As"), "the third column is called 'dos_As'", "or call"),
    Case("decimal commas, commas between", "E (meV),dos\n0,0,0,0\n0,5,0,1\n", "has decimal commas", "decimal points"),
    Case("broken JSON", euphonic()[:-40], "is broken JSON", "Write the file again"),
    Case("JSON list", "[1, 2, 3]", "JSON of no known class", "Give Euphonic's Spectrum1D"),
    Case("JSON without a class", '{"x": [1, 2]}', "JSON of no known class", "Give Euphonic's Spectrum1D"),
    Case("Euphonic class", euphonic(__euphonic_class__="Spectrum2D"), "class 'Spectrum2D'", "Save a DOS as"),
    Case("Euphonic lengths", euphonic(x_data=grid()[:50].tolist()), r"shapes \(50,\) and \(361,\)", "as many points"),
    Case("Euphonic without y", euphonic(y_data=[]), "y_data is missing or empty", "Write the file again"),
    Case("Euphonic ragged", euphonic(y_data=[[1.0], [1.0, 2.0]]), "y_data does not hold plain numbers", "Write the"),
    Case("Euphonic unit", euphonic(x_data_unit="1 / angstrom"), "unknown unit '1 / angstrom'", "Use one of"),
    Case("Euphonic without unit", euphonic(x_data_unit=None), "x_data_unit: unknown unit", "Use one of"),
    Case(
        "Euphonic element",
        euphonic(metadata={"species": "Si"}),
        "projected on O",
        "Leave element out",
        {"element": "O"},
    ),
    Case("Euphonic species", collection([{}, {}]), "does not name the species", "Save the total DOS"),
    Case(
        "Euphonic weighted share",
        collection([{"species": "O"}, {"species": "Si"}], weighting="coherent"),
        "weighted by scattering cross sections and projected on O",
        "Give the sum",
        {"element": "O"},
    ),
    Case(
        "Euphonic absent element",
        collection([{"species": "O"}, {"species": "Si"}]),
        "has no DOS projected on Fe",
        "Choose one of O, Si",
        {"element": "Fe"},
    ),
    Case("pymatgen class", pymatgen(**{"@class": "Structure"}), "the class 'Structure'", "Save pymatgen's PhononDos"),
    Case("pymatgen densities", pymatgen(densities=None), "densities is missing", "Write the file again"),
    Case("pymatgen lengths", pymatgen(densities=[1.0] * 20), r"shapes \(361,\) and \(20,\)", "Give one density"),
    Case("pymatgen unit", pymatgen(), "declares unit THz, but unit='meV'", "Leave unit out", {"unit": "meV"}),
    Case("pymatgen sites", pymatgen(), "pdos, the DOS of each site", "Write the file again", {"element": "Ga"}),
    Case(
        "pymatgen structure",
        pymatgen(pdos=[[1.0] * 361] * 2, structure={}),
        "does not name the element of each site",
        "Write the file again",
        {"element": "Ga"},
    ),
    Case(
        "pymatgen alloy",
        pymatgen(pdos=[[1.0] * 361], structure=MIXED),
        "a site of the structure holds several elements",
        "ordered structure",
        {"element": "Ga"},
    ),
    Case(
        "pymatgen absent element",
        pymatgen(pdos=[[1.0] * 361] * 2, structure=SITES),
        "has no DOS projected on In",
        "Choose one of Ga, As",
        {"element": "In"},
    ),
    Case("phonopy without numbers", PHONOPY, "holds no numbers", "Run phonopy again"),
    Case("phonopy text", PHONOPY + "0.0 abc\n", "line 2: '0.0 abc' are not all numbers", "Run phonopy again"),
    Case("phonopy ragged", PHONOPY + "0.0 0.0 0.0\n0.1 0.0\n", "line 3: 2 columns", "Run phonopy again"),
    Case("phonopy element", PHONOPY + "0.0 0.0\n", "column belongs to Ga", "Leave element out", {"element": "Ga"}),
    Case("Grace plot of something else", GRACE.replace("DOS", "psn") + THREE, "not of a DOS", "<name>_dos.dat"),
    Case("Grace plot without axes", "@type xydy\n" + THREE, "it names no y axis", "<name>_dos.dat"),
    Case("Grace without unit", GRACE.replace(" (meV)", "") + THREE, "the x axis names no unit", "Restore the line"),
    Case("Grace columns", GRACE + "0.0 0.0 0.0\n0.1 0.0\n", "line 4: 2 columns, not 3", "Run PHOENIX again"),
    Case("Grace text", GRACE + "0.0 0.0 x\n", "line 3: '0.0 0.0 x' are not all", "Run PHOENIX again"),
    Case("Grace without numbers", GRACE, "holds no numbers", "Run PHOENIX again"),
]


def check(error: pytest.ExceptionInfo[DefectNetError], what: str, fix: str) -> None:
    message = str(error.value)
    assert re.search(what, message), message
    assert fix in error.value.fix, message
    assert message.endswith(error.value.fix.rstrip(".") + ".")
    assert "\n" not in message


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_malformed_file(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "measured.dat"
    path.write_bytes(case.content if isinstance(case.content, bytes) else str(case.content).encode())
    with pytest.raises((SpectrumError, FormulaError)) as error:
        read_spectrum(path, **case.arguments)
    check(error, case.what, case.fix)
    assert case.arguments or "measured.dat" in str(error.value), "the error does not name the file"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SpectrumError, match=r"nope\.csv does not exist"):
        read_spectrum(tmp_path / "nope.csv")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(SpectrumError, match=r"is a folder\. Give the path"):
        read_spectrum(tmp_path)


def test_unwritable(tmp_path: Path) -> None:
    with pytest.raises(SpectrumError, match=r"out\.csv cannot be written"):
        write_spectrum(tmp_path / "absent" / "out.csv", spectrum())


def cut(end: float) -> Spectrum:
    energy = grid(end, 300)
    return Spectrum(energy, dos_of(energy), "meV")


def late(start: float) -> Spectrum:
    energy = np.linspace(start, 90.0, 300)
    return Spectrum(energy, dos_of(energy), "meV")


PAIRS: dict[str, tuple[Spectrum, Spectrum, str, str, str]] = {
    "host ends early": (cut(33.0), spectrum(), "GaAs", "host: the grid ends below the band edge", "fallen to zero"),
    "doped ends early": (spectrum(), cut(33.0), "GaAs", "doped: the grid ends below the band edge", "fallen to zero"),
    "doped ends in a gap": (spectrum(), cut(26.0), "GaAs", "doped: the grid ends below", "fallen to zero"),
    "host starts late": (late(25.0), spectrum(), "GaAs", "host: the grid starts at 25 meV", "from low energies on"),
    "doped starts late": (spectrum(), late(25.0), "GaAs", "doped: the grid starts at 25 meV", "from low energies on"),
    "different kinds": (
        spectrum(),
        spectrum(kind="neutron-weighted"),
        "GaAs",
        "host and doped are different kinds of DOS .total and neutron-weighted",
        "Give two spectra of one kind",
    ),
    "different elements": (
        spectrum(kind="projected", element="Ga"),
        spectrum(kind="projected", element="As"),
        "GaAs",
        "projected on different elements .Ga and As",
        "on the same element",
    ),
    "element outside the host": (
        spectrum(kind="projected", element="Fe"),
        spectrum(kind="projected", element="Fe"),
        "GaAs",
        "projected on Fe, which is not in the host GaAs",
        "Check the formula",
    ),
    "no formula": (spectrum(), spectrum(), "", "formula: '' is not complete", "Write it like GaAs"),
    "lower case": (spectrum(), spectrum(), "gaas", "formula: 'gaas' cannot be read", "Write it like GaAs"),
    "no such element": (spectrum(), spectrum(), "GaXx", "'Xx' is not an element", "Known are"),
    "open bracket": (spectrum(), spectrum(), "Ca3(PO4", "formula: 'Ca3.PO4' is not complete", "Write it like"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_malformed_pair(name: str) -> None:
    host, doped, formula, what, fix = PAIRS[name]
    with pytest.raises((SpectrumError, FormulaError)) as error:
        encode_pair(host, doped, formula, grid=MODEL_GRID)
    check(error, what, fix)


ARRAYS: dict[str, tuple[Any, Any, dict[str, Any], str, str]] = {
    "two dimensions": (np.ones((20, 2)), np.ones((20, 2)), {}, "have shapes", "two 1-D arrays"),
    "lengths": (grid(), dos_of(grid())[:-1], {}, "have shapes", "one length"),
    "words": (["a"] * 20, ["b"] * 20, {}, "must be numbers", "two 1-D arrays"),
    "element of a total": (grid(), dos_of(grid()), {"element": "Fe"}, "but its kind is total", "Leave element out"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_malformed_arrays(name: str) -> None:
    energy, dos, arguments, what, fix = ARRAYS[name]
    with pytest.raises(SpectrumError) as error:
        Spectrum(energy, dos, "meV", **arguments)
    check(error, what, fix)


@pytest.mark.parametrize("fwhm", [-1.0, np.nan, np.inf])
def test_malformed_width(fwhm: float) -> None:
    with pytest.raises(SpectrumError, match="fwhm_mev is"):
        spectrum().broadened(fwhm)


def test_good_file_is_read(tmp_path: Path) -> None:
    """The table above fails for what it says, not for the rest of its files."""
    assert read_spectrum(write_table(tmp_path / "a.csv", table())).unit == "meV"
    for content in (euphonic(), pymatgen(), collection([{"species": "O"}, {"species": "Si"}])):
        (tmp_path / "a.json").write_text(content)
        assert read_spectrum(tmp_path / "a.json").area > 0
