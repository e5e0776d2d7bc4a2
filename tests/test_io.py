from __future__ import annotations

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.phonon.dos import CompletePhononDos, PhononDos

from defectnet.io import read_spectrum, write_spectrum
from defectnet.spectrum import UNITS, Spectrum
from spectra import dos_of, grid, spectrum, table, write_table

THZ = 1.0 / UNITS["THz"]


def assert_same(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found.energy_mev, expected.energy_mev, rtol=rtol)
    np.testing.assert_allclose(
        found.normalised().to("meV").dos, expected.normalised().to("meV").dos, rtol=rtol, atol=1e-7
    )


@pytest.mark.parametrize(
    ("header", "unit", "delimiter"),
    [
        ("energy_meV,dos", "meV", ","),
        ("E (cm-1),DOS", "cm-1", ","),
        ("frequency/THz;dos", "THz", ";"),
        ("Energy [eV]\tDOS", "eV", "\t"),
        ("# unit: THz", "THz", " "),
        ("# Units: cm-1; arb.", "cm-1", ","),
        ("# E(THz)  DOS", "THz", "  "),
        ("E (meV)   DOS (1/meV)", "meV", "   "),
        ('"wavenumber_cm^-1","dos"', "cm-1", ","),
        ("% energy unit = eV\nE,g", "eV", ","),
    ],
)
def test_headers_that_declare_a_unit(tmp_path, header, unit, delimiter):
    path = write_table(tmp_path / "any.name", table(1.0 / UNITS[unit]), header, delimiter)
    found = read_spectrum(path)
    assert found.unit == unit
    assert found.kind == "total"
    assert_same(found, spectrum())
    assert read_spectrum(path, unit=unit).unit == unit  # saying it again is no contradiction


def test_unit_from_the_caller(tmp_path):
    path = write_table(tmp_path / "dos.txt", table(THZ), header="", delimiter=" ")
    assert_same(read_spectrum(path, unit="THz"), spectrum())


def test_windows_file_with_mark(tmp_path):
    path = tmp_path / "dos.csv"
    text = write_table(path, table()).read_text(encoding="utf-8").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert_same(read_spectrum(path), spectrum())


def test_empty_cells_of_a_spreadsheet_are_no_column(tmp_path):
    lines = ["energy_meV,dos,,", *(f"{energy:.8g},{dos:.8g},," for energy, dos in table())]
    (tmp_path / "x.csv").write_text("\n".join([*lines, ",,,"]), encoding="utf-8")
    np.testing.assert_allclose(read_spectrum(tmp_path / "x.csv").dos, dos_of(grid()), atol=1e-7)


def test_third_column_is_the_error_that_tells_noise(tmp_path):
    rows = table(error=np.full(361, 0.1))
    rows[-30:, 1] = -0.3
    found = read_spectrum(write_table(tmp_path / "a.csv", rows, "energy_meV,dos,err"))
    assert found.dos[-1] == -0.3  # within the error, and kept: cut, noise would make a background
    np.testing.assert_array_equal(found.error, 0.1)


@pytest.mark.parametrize(
    ("header", "kind", "element"),
    [
        ("# kind: neutron-weighted", "neutron-weighted", None),
        ("# kind: neutron weighted", "neutron-weighted", None),
        ("# kind: projected\n# element: Fe", "projected", "Fe"),
        ("# element: Fe", "projected", "Fe"),
        ("# element: Fe\n# fraction: 1", "total", None),
        ("# kind: EXP-INS\n# element: total (neutron-weighted)", "neutron-weighted", None),
        ("# quantity: 57Fe PARTIAL phonon DOS (NRIXS), 1/eV", "projected", "Fe"),
        ("# comment: nothing is said", "total", None),
    ],
)
def test_headers_that_declare_a_kind(tmp_path, header, kind, element):
    found = read_spectrum(write_table(tmp_path / "dos.csv", table(), f"{header}\nenergy_meV,dos"))
    assert (found.kind, found.element) == (kind, element)


def test_measured_file_with_its_whole_header(tmp_path):
    header = (
        "# material: Fe composition {'Fe': 1.0}\n# phase: bcc  P_GPa: 0.0  T: 300 K\n"
        "# quantity: 57Fe PARTIAL phonon DOS (NRIXS), 1/eV, 3 modes per Fe atom\n"
        "# resolution_FWHM_meV (from .res file): 1.19\n# licence: MIT\nenergy_meV,pdos_per_eV,err"
    )
    found = read_spectrum(write_table(tmp_path / "fe.csv", table(error=np.full(361, 0.01)), header))
    assert (found.unit, found.kind, found.element) == ("meV", "projected", "Fe")


def phonopy_text(columns, comment):
    """Write as phonopy 4 does: one comment, then %20.10f."""
    return f"# {comment}\n" + "".join("".join(f"{value:20.10f}" for value in row) + "\n" for row in columns)


@pytest.mark.parametrize("comment", ["Sigma = 0.100000", "Tetrahedron method"])
def test_phonopy_total(tmp_path, comment):
    path = tmp_path / "total_dos.dat"
    path.write_text(phonopy_text(table(THZ), comment))
    found = read_spectrum(path)
    assert (found.unit, found.kind) == ("THz", "total")
    assert_same(found, spectrum(), rtol=1e-4)


def test_phonopy_writes_what_we_read(tmp_path):
    from phonopy.phonon.dos import write_projected_dos, write_total_dos

    energy = grid()
    parts = np.array([0.3, 0.7])[:, None] * dos_of(energy)
    write_total_dos(energy * THZ, dos_of(energy), "Sigma = 0.05", str(tmp_path / "t.dat"))
    write_projected_dos(energy * THZ, parts, "Sigma = 0.05", str(tmp_path / "p.dat"))
    for name in ("t.dat", "p.dat"):
        assert_same(read_spectrum(tmp_path / name), spectrum(), rtol=1e-4)


def test_phonopy_smearing_below_zero_is_cut(tmp_path):
    energy = np.linspace(-1.0, 90.0, 400)
    dos = dos_of(np.maximum(energy, 0.0)) + 1e-3 * np.exp(-(energy**2))
    path = tmp_path / "total_dos.dat"
    path.write_text(phonopy_text(np.column_stack([energy * THZ, dos]), "Sigma = 0.1"))
    assert read_spectrum(path).energy[0] >= 0.0


def euphonic(name="Spectrum1D", *, edges=False, lines=None, **metadata):
    energy = grid()
    step = energy[1]
    x = np.append(energy - step / 2, energy[-1] + step / 2) if edges else energy
    y = dos_of(energy) if lines is None else [share * dos_of(energy) for share in lines]
    return {
        "__euphonic_class__": name,
        "__euphonic_version__": "1.3.1",
        "x_data": x.tolist(),
        "x_data_unit": "millielectron_volt",
        "y_data": np.asarray(y).tolist(),
        "y_data_unit": "1 / millielectron_volt",
        "x_tick_labels": None,
        "metadata": metadata,
    }


def write_json(path, document):
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("edges", [False, True])
def test_euphonic_centres_and_edges(tmp_path, edges):
    found = read_spectrum(write_json(tmp_path / "dos.txt", euphonic(edges=edges)))
    np.testing.assert_allclose(found.energy, grid(), atol=1e-9)
    assert found.unit == "meV"


def test_euphonic_units_and_species(tmp_path):
    document = euphonic(species="Si")
    document["x_data"] = (grid() / UNITS["cm-1"]).tolist()
    document["x_data_unit"] = "1 / centimeter"
    found = read_spectrum(write_json(tmp_path / "a.json", document))
    assert (found.unit, found.kind, found.element) == ("cm-1", "projected", "Si")
    assert_same(found, spectrum())


def test_euphonic_collection(tmp_path):
    lines = [{"index": 0, "species": "O"}, {"index": 1, "species": "O"}, {"index": 2, "species": "Si"}]
    document = euphonic("Spectrum1DCollection", lines=[0.2, 0.3, 0.5], line_data=lines)
    path = write_json(tmp_path / "a.json", document)
    assert_same(read_spectrum(path), spectrum())
    oxygen = read_spectrum(path, element="O")
    assert (oxygen.kind, oxygen.element) == ("projected", "O")
    assert oxygen.area == pytest.approx(0.5 * spectrum().area)


def test_euphonic_collection_with_a_total_line_is_not_counted_twice(tmp_path):
    lines = [{"label": "Total"}, {"label": "O", "species": "O"}, {"label": "Si", "species": "Si"}]
    document = euphonic("Spectrum1DCollection", lines=[1.0, 0.4, 0.6], line_data=lines)
    path = write_json(tmp_path / "a.json", document)
    assert read_spectrum(path).area == pytest.approx(spectrum().area)
    assert read_spectrum(path, element="Si").area == pytest.approx(0.6 * spectrum().area)


def test_euphonic_weighting_is_declared(tmp_path):
    lines = [{"species": "O"}, {"species": "Si"}]
    document = euphonic("Spectrum1DCollection", lines=[0.4, 0.6], line_data=lines, weighting="coherent-plus-incoherent")
    assert read_spectrum(write_json(tmp_path / "a.json", document)).kind == "neutron-weighted"


def complete_dos():
    structure = Structure(Lattice.cubic(5.65), ["Ga", "As"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    total = PhononDos(grid() * THZ, dos_of(grid()))
    shares = {structure[0]: 0.4 * dos_of(grid()), structure[1]: 0.6 * dos_of(grid())}
    return total, CompletePhononDos(structure, total, shares)


def test_pymatgen(tmp_path):
    total, complete = complete_dos()
    for dos in (total, complete):
        document = json.loads(json.dumps(dos.as_dict(), default=lambda value: value.item()))
        found = read_spectrum(write_json(tmp_path / "a.json", document))
        assert (found.unit, found.kind) == ("THz", "total")
        assert_same(found, spectrum())
    arsenic = read_spectrum(tmp_path / "a.json", element="As")
    assert (arsenic.kind, arsenic.element) == ("projected", "As")
    assert arsenic.area == pytest.approx(0.6 * THZ * spectrum().area)


PHOENIX_HEADER = (
    '@page size 600,600\n@view 0.12,0.1,0.97,0.93\n@subtitle "PHOENIX module phox, 01/25/18 at 13:17:29 -08:00"\n'
    '@xaxes scale Normal\n@xaxis label "energy (meV)"\n@yaxis label "partial phonon DOS (1/eV)"\n'
    "@s0 errorbar size 0.0\n@type xydy\n"
)


def phoenix_text(header=PHOENIX_HEADER):
    rows = table(error=np.full(361, 0.02))
    return header + "".join("".join(f"{value:13.5E}" for value in row) + "\n" for row in rows)


def test_phoenix(tmp_path):
    path = tmp_path / "Fe_dos.dat"
    path.write_text(phoenix_text())
    found = read_spectrum(path)
    assert (found.unit, found.kind, found.element) == ("meV", "projected", None)
    assert_same(found, spectrum(), rtol=1e-4)
    assert read_spectrum(path, element="Fe").element == "Fe"


@pytest.mark.parametrize(
    "original",
    [spectrum(), spectrum("THz", "neutron-weighted"), spectrum("cm-1", "projected", "Fe")],
    ids=lambda s: s.kind,
)
def test_writer_round_trips_without_loss(tmp_path, original):
    path = tmp_path / "out.csv"
    write_spectrum(path, original)
    found = read_spectrum(path)
    assert (found.unit, found.kind, found.element) == (original.unit, original.kind, original.element)
    np.testing.assert_array_equal(found.energy, original.energy)
    np.testing.assert_array_equal(found.dos, original.dos)
    assert list(tmp_path.iterdir()) == [path]


def test_format_is_told_from_content_not_from_the_name(tmp_path):
    path = tmp_path / "total_dos.dat"
    write_spectrum(path, spectrum("cm-1"))
    assert read_spectrum(path).unit == "cm-1"
    assert read_spectrum(write_json(tmp_path / "dos.csv", euphonic())).unit == "meV"


def test_source_is_kept_for_errors(tmp_path):
    path = write_table(tmp_path / "dos.csv", table())
    assert read_spectrum(path).source == str(path)
    assert isinstance(read_spectrum(str(path)), Spectrum)
