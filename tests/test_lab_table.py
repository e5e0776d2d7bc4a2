"""Every malformed table of lab spectra gives one clear error, and leaves nothing behind."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from defectnet.cli import EXIT_ERROR, main
from defectnet.errors import LabError
from defectnet.lab.table import MAX_SHOWN, OPTIONAL, REQUIRED, read_table
from lab_tables import HEADER, doped_rows, rows, write_lab, write_spectra
from spectra import write_table

GOOD = rows()


@dataclass
class Case:
    """A table, and what its one error must say: where and what before, the way out after."""

    name: str
    text: str | bytes
    what: str
    fix: str


def table(*changed: str, header: str = HEADER) -> str:
    """Good rows, of which the first are changed."""
    return "\n".join([header, *changed, *GOOD[len(changed) :]]) + "\n"


def wider(column: str, *values: str) -> str:
    """Good rows with one more column, filled in the first rows."""
    filled = [*values, *[""] * (len(GOOD) - len(values))]
    return table(*(f"{row},{value}" for row, value in zip(GOOD, filled, strict=True)), header=f"{HEADER},{column}")


CASES = [
    Case("empty", "", "is empty", "Give one row for each pair"),
    Case("blank", "\n,,\n\n", "is empty", "Give one row"),
    Case("only a header", HEADER + "\n", "holds no rows", "Columns are sample, host_file"),
    Case("spreadsheet", b"PK\x03\x04\x14\0\0\0", "is not text", "Save it from the spreadsheet as CSV"),
    Case("UTF-16", table().encode("utf-16"), "is not text", "CSV"),
    Case("Latin-1", table("Probe \xe4,host.csv,s0.csv,GaAs,Al:0.01").encode("latin-1"), "line 2 is not UTF-8", "UTF-8"),
    Case("semicolons", table().replace(",", ";"), "line 1: columns are not separated by commas", "with commas"),
    Case("open quotation", table('"S0,host.csv,s0.csv,GaAs,Al:0.01'), "is broken", "Close every quotation mark"),
    Case("missing column", table(header=HEADER.replace("formula,", "")), "line 1, formula: the column is missing", ""),
    Case("unknown column", wider("remark", "x"), "line 1, remark: unknown column", "Columns are sample"),
    Case("column twice", wider("formula", "GaAs"), "line 1, formula: the column is there twice", "Keep one"),
    Case("a cell too few", table("S0,host.csv,s0.csv,GaAs"), "line 2: 4 cells, the header has 5", "one cell for each"),
    Case("comma in a cell", table("S0,host.csv,s0.csv,GaAs,Al:0.01,Ga:0.02"), "line 2: 6 cells", "quotation marks"),
    Case("sample or comment", table("#1,host.csv,s0.csv,GaAs,Al:0.01"), "line 2: '#1' begins a whole row", "Call the"),
    Case("per cent below a half", table("S0,host.csv,s0.csv,GaAs,Al:0.3"), "30 at.% are said to be in it", "0.003 for"),
    Case("no sample", table(",host.csv,s0.csv,GaAs,Al:0.01"), "line 2, sample: the cell is empty", "Fill it in"),
    Case("no host", table("S0,,s0.csv,GaAs,Al:0.01"), "line 2, host_file: the cell is empty", "Fill it in"),
    Case("no formula", table("S0,host.csv,s0.csv,,Al:0.01"), "line 2, formula: the cell is empty", "Fill it in"),
    Case("missing file", table("S0,host.csv,no.csv,GaAs,Al:0.01"), "no.csv does not exist", "Give the path"),
    Case("file is a folder", table("S0,host.csv,.,GaAs,Al:0.01"), "is a folder", "Give the path"),
    Case("no spectrum", table("S0,host.csv,words.csv,GaAs,Al:0.01"), "words.csv holds no numbers", "energy and DOS"),
    Case("negative DOS", table("S0,host.csv,negative.csv,GaAs,Al:0.01"), "negative beyond noise", "Subtract less"),
    Case("no unit", table("S0,host.csv,bare.csv,GaAs,Al:0.01"), "doped_file: bare.csv declares no energy unit", "unit"),
    Case("unknown unit", wider("unit", "parsec"), "unknown unit 'parsec'", "Use one of meV"),
    Case(
        "unit against file",
        wider("unit", "THz").replace("host.csv", "bare.csv", 1),
        "s0.csv declares unit meV, but unit='THz'",
        "Leave unit out",
    ),
    Case("unknown kind", wider("kind", "nuetron"), "unknown kind of DOS 'nuetron'", "Use one of total"),
    Case("mixed kinds", wider("kind", "neutron-weighted"), "rows are of different kinds of DOS: neutron-", "kind"),
    Case("host's grid", table("S0,short.csv,s0.csv,GaAs,Al:0.01"), "the grid ends below the band edge", "Give the DOS"),
    Case("formula", table("S0,host.csv,s0.csv,gaas,Al:0.01"), "formula: 'gaas' cannot be read", "Write it like GaAs"),
    Case("unknown element", table("S0,host.csv,s0.csv,GaAs,Xx:0.01"), "'Xx' is not an element", "Known are"),
    Case("dopant in host", table("S0,host.csv,s0.csv,GaAs,Ga:0.01"), "Ga is part of the host", "not in the host"),
    Case("dopant twice", table("S0,host.csv,s0.csv,GaAs,Al:0.01;Al:0.02"), "Al is named twice", "once"),
    Case("no concentration", table("S0,host.csv,s0.csv,GaAs,Al"), "'Al' has no concentration", "Al:0.05;Ga:0.01"),
    Case("no number", table("S0,host.csv,s0.csv,GaAs,Al:much"), "'much' of Al is not a number", "atomic fractions"),
    Case("NaN", table("S0,host.csv,s0.csv,GaAs,Al:nan"), "'nan' of Al is not a number", "atomic fractions"),
    Case("percent", table("S0,host.csv,s0.csv,GaAs,Al:5"), "Al:5 is written in per cent", "Al:0.05"),
    Case("percent sign", table("S0,host.csv,s0.csv,GaAs,Al:0.5%"), "Al:0.5% is written in per cent", "Al:0.005"),
    Case("too much", table("S0,host.csv,s0.csv,GaAs,Al:0.6"), "concentration 0.6 of Al is above 0.5", "as the host"),
    Case("negative", table("S0,host.csv,s0.csv,GaAs,Al:-0.1"), "concentration -0.1 of Al is not positive", "positive"),
    Case("all together", table("S0,host.csv,s0.csv,GaAs,Al:0.4;In:0.2"), "add up to 0.6", "atomic fractions"),
    Case("negative weight", wider("weight", "-1"), "line 2, weight: -1 is not above 0", "Leave the cell empty"),
    Case("bad weight", wider("weight", "heavy"), "line 2, weight: 'heavy' is not a number", "decimal point"),
    Case("resolution", wider("resolution_mev", "2 meV"), "resolution_mev: '2 meV' is not a number", "without a unit"),
    Case("candidate of the host", wider("candidates", "Al;Ga"), "candidates: Ga is part of the host", "not in the"),
    Case("dopant no candidate", wider("candidates", "In"), "Al is a dopant, but no candidate", "Name all the dopants"),
    Case("row twice", table() + GOOD[0] + "\n", "line 8, doped_file: the pair is line 2 again", "Keep one"),
    Case("file of another", table() + "S9,host2.csv,s0.csv,GaAs,Al:0.01\n", "as that of line 2, another sample", "one"),
    Case("host as sample", table("S0,host.csv,host.csv,GaAs,Al:0.01"), "the same as host_file", "doped sample"),
    Case("sample of two minds", table("S1,host.csv,s0.csv,GaAs,Al:0.01"), "S1 has another host or other", "different"),
    Case(
        "host of two formulas",
        table(GOOD[0], GOOD[1].replace("GaAs", "GaAs2")),
        "line 3, host_file: the host of GaAs2 is that of line 2, GaAs",
        "Correct the formula",
    ),
    Case("few samples", "\n".join([HEADER, *GOOD[:3]]), "3 different samples are too few", "Give 4 samples"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Spectra, good and bad."""
    folder = tmp_path_factory.mktemp("lab")
    write_spectra(folder)
    shutil.copy(folder / "host.csv", folder / "host2.csv")
    with (folder / "host2.csv").open("a", encoding="utf-8") as file:
        file.write("90.25,0\n")
    (folder / "words.csv").write_text("there is\nno spectrum here\n", encoding="utf-8")
    write_table(folder / "bare.csv", doped_rows(0.01), header="")
    write_table(folder / "short.csv", doped_rows(0.01)[:100])
    negative = doped_rows(0.01)
    negative[100, 1] = -0.5
    write_table(folder / "negative.csv", negative)
    return folder


def write(folder: Path, case: Case) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(case.text if isinstance(case.text, bytes) else case.text.encode())
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_table_is_one_clear_error(lab, case):
    path = write(lab, case)
    with pytest.raises(LabError) as caught:
        read_table(path)
    error = caught.value
    assert str(path) in error.what
    assert case.what in error.what
    assert case.fix in error.fix
    assert "\n" not in str(error)  # one fault, in one line


@pytest.mark.parametrize("case", CASES[:3] + CASES[16:17] + CASES[33:34], ids=lambda case: case.name)
def test_the_command_leaves_nothing_behind(lab, case, tmp_path, capsys):
    write(lab, case)
    with pytest.raises(SystemExit) as stop:
        main(["finetune", "--data", str(lab), "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert stop.value.code == EXIT_ERROR
    assert printed.out == ""
    assert printed.err.startswith("defectnet: ")
    assert case.what in printed.err
    assert list(tmp_path.iterdir()) == []


def test_all_faults_are_found_at_once(lab):
    bad = ["S0,host.csv,no.csv,gaas,Al:5", "S1,host.csv,s1.csv,GaAs,Xx:0.1", "S2,host.csv,s2.csv,GaAs"]
    path = write(lab, Case("", table(*bad), "", ""))
    with pytest.raises(LabError, match="has 5 faults") as caught:
        read_table(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert [line.split(",")[0].split(":")[0].strip() for line in lines[1:]] == ["line 2"] * 3 + ["line 3", "line 4"]


def test_no_more_than_twenty_faults_are_shown(lab):
    many = [f"S{i},host.csv,no{i}.csv,GaAs,Al:0.01" for i in range(30)]
    path = write(lab, Case("", "\n".join([HEADER, *many]), "", ""))
    with pytest.raises(LabError, match="has 30 faults") as caught:
        read_table(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + MAX_SHOWN + 1
    assert "and 10 more" in lines[-1]


def test_a_file_that_many_rows_name_is_one_fault(lab):
    path = write(lab, Case("", table().replace("host.csv", "no.csv"), "", ""))
    with pytest.raises(LabError, match=r"pairs\.csv, line 2, host_file: file .*no\.csv does not exist"):
        read_table(path)


def test_a_folder_needs_its_table(tmp_path):
    with pytest.raises(LabError, match=r"holds no pairs\.csv"):
        read_table(tmp_path)
    with pytest.raises(LabError, match="does not exist"):
        read_table(tmp_path / "no")


def test_a_good_table_is_read_whole(tmp_path):
    lab = write_lab(tmp_path)
    pairs = read_table(lab)
    assert [pair.sample for pair in pairs] == [f"S{i}" for i in range(6)]
    assert pairs[2].dopants == {"Al": 0.05}
    assert (pairs[2].weight, pairs[2].resolution_mev, pairs[2].candidates, pairs[2].line) == (1.0, None, None, 4)
    assert pairs[2].system == "As-Ga"
    np.testing.assert_allclose(pairs[2].doped.dos, np.maximum(doped_rows(0.05, 2)[:, 1], 0.0), rtol=1e-6)
    assert [pair.dopants for pair in read_table(lab / "pairs.csv")] == [pair.dopants for pair in pairs]


def test_optional_columns_comments_and_a_mark_of_the_encoding_are_read(lab):
    header = ",".join(reversed(REQUIRED + OPTIONAL))
    values = {"unit": "meV", "kind": "neutron weighted", "weight": "2", "resolution_mev": "1.5", "candidates": "Al;In"}
    lines = ["# my lab", header, ""]
    for row in GOOD:
        cells = dict(zip(REQUIRED, row.split(","), strict=True)) | values
        lines.append(",".join(cells.get(column, "") for column in header.split(",")))
    path = write(lab, Case("", ("\ufeff" + "\r\n".join(lines)).encode(), "", ""))
    pair = read_table(path)[0]
    assert (pair.weight, pair.resolution_mev, pair.candidates) == (2.0, 1.5, ("Al", "In"))
    assert pair.doped.kind == "neutron-weighted"
    assert pair.line == 4


def test_an_undoped_control_is_allowed(lab):
    path = write(lab, Case("", table("S0,host.csv,host.csv,GaAs,"), "", ""))
    assert read_table(path)[0].dopants == {}
