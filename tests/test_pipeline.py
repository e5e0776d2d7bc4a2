"""Forms in memory, tables of pairs, answers as data: what a pipeline needs."""

from __future__ import annotations

import copy
import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import defectnet
import pipeline_forms
from defectnet import Prediction, Unanswered, answer_from_dict, identify, identify_table
from defectnet.cli import known, main
from defectnet.errors import ConfigError, SimulationError, SpectrumError
from defectnet.inference.answer import KnownCrystalAnswer
from defectnet.inference.ask import KnownReply
from defectnet.inference.known_crystal import KnownCrystal
from defectnet.io import as_spectrum
from defectnet.models.base import DefectModel
from defectnet.pipeline import Asker
from packs import bundled
from spectra import dos_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
E = np.arange(0.0, 60.0, 0.25)
DOS = dos_of(E)


@pytest.fixture(scope="module")
def model() -> DefectModel:
    return defectnet.from_pretrained("defectnet-small")


@pytest.fixture(scope="module")
def network() -> Prediction:
    answer = identify(EXAMPLES / "host.csv", EXAMPLES / "doped.csv", formula="CdTe", candidates=["Mg", "Zn"])
    assert isinstance(answer, Prediction)
    return answer


@pytest.fixture(scope="module")
def crystal() -> KnownCrystalAnswer:
    """An answer of a known crystal, which takes the forms that a network takes."""
    spectra = [defectnet.read_spectrum(EXAMPLES / name) for name in ("host.csv", "doped.csv")]
    tables = [pd.DataFrame({"energy_meV": one.energy_mev, "dos": one.dos}) for one in spectra]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defectnet.inference.known_crystal.CELLS", (8, 16))
        patch.setattr("defectnet.inference.known_crystal.ROUNDS", 0)
        return KnownCrystal(bundled("CdTe"), ["Mg"]).identify(*tables, kind="neutron-weighted")


@pytest.mark.parametrize("told", [True, False])
def test_the_command_says_where_nobody_said_the_kind(crystal, capsys, told):
    known._print(KnownReply(None, crystal, None, ("pack CdTe",), True), told)
    shown = " ".join(capsys.readouterr().out.split())
    assert "pack CdTe" in shown
    assert ("neutron-weighted DOS is assumed: no file says the kind, nor --kind" in shown) != told


# Forms


def test_every_documented_form_gives_the_same_answer():
    said = dict(line.split(": ", 1) for line in pipeline_forms.main()[:-1])
    names = [*pipeline_forms.forms(E, DOS)]
    # Of a DOS without errors; with them it weighs more than noise.
    assert {said[name] for name in names if name != "array with errors"} == {said["pymatgen"]}
    assert said["array with errors"]
    assert all("vocabulary" in said[name] for name in pipeline_forms.hosts())


def euphonic(unit: str = "meV", **metadata: object) -> object:
    from euphonic import Spectrum1D, ureg

    return Spectrum1D((E * ureg("meV")).to(unit), DOS / ureg("meV"), metadata=metadata)


def ase(*symbols: str, grid: bool = True) -> object:
    from ase.spectrum.doscollection import GridDOSCollection
    from ase.spectrum.dosdata import GridDOSData, RawDOSData

    if not symbols:
        return (GridDOSData if grid else RawDOSData)(E / 1000, DOS)
    return GridDOSCollection([GridDOSData(E / 1000, DOS / 2, {"symbol": symbol}) for symbol in symbols])


def phonopy(*, run: bool = True) -> object:
    """Return a crystal of independent oscillators."""
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(["Ga", "As"], cell=4.0 * np.eye(3), scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]])
    made = Phonopy(cell, np.eye(3, dtype=int))
    made.force_constants = np.eye(2)[:, :, None, None] * 5.0 * np.eye(3)
    if run:
        made.run_mesh([2, 2, 2], with_eigenvectors=True, is_mesh_symmetry=False)
        made.run_total_dos(sigma=0.3, freq_min=0.0, freq_max=15.0)
        made.run_projected_dos(sigma=0.3, freq_min=0.0, freq_max=15.0)
    return made


def frame(title: str, *names: str) -> pd.DataFrame:
    return pd.DataFrame({title: E, **{name: DOS * (0.02 if name == "error" else 1.0) for name in names}})


FORMS = {
    "Euphonic in cm-1": (lambda: euphonic("1/cm"), {}, ("cm-1", "total", None, False)),
    "Euphonic in Hartree": (lambda: euphonic("hartree"), {}, ("Hartree", "total", None, False)),
    "Euphonic, weighted": (lambda: euphonic(weighting="incoherent"), {}, ("meV", "neutron-weighted", None, True)),
    "Euphonic, a unit too many": (euphonic, {"unit": "THz"}, ("meV", "total", None, False)),
    "ase": (ase, {}, ("eV", "total", None, True)),
    "ase's elements": (lambda: ase("Ga", "As"), {"element": "As"}, ("eV", "projected", "As", True)),
    "ase's sum": (lambda: ase("Ga", "As"), {}, ("eV", "total", None, True)),
    "Phonopy": (phonopy, {}, ("THz", "total", None, True)),
    "ProjectedDos": (lambda: phonopy().projected_dos, {}, ("THz", "total", None, True)),
    "Phonopy's element": (phonopy, {"element": "Ga"}, ("THz", "projected", "Ga", True)),
    "titles": (lambda: frame("energy_meV", "GDOS", "error"), {}, ("meV", "neutron-weighted", None, True)),
    "shares": (lambda: frame("E (meV)", "Ga", "As"), {}, ("meV", "total", None, True)),
    "a share": (lambda: frame("E (meV)", "Ga", "As"), {"element": "As"}, ("meV", "projected", "As", True)),
    "Series": (lambda: frame("energy_meV", "dos").set_index("energy_meV")["dos"], {}, ("meV", "total", None, False)),
    "energies as index": (
        lambda: frame("energy_meV", "dos", "Ga", "As").set_index("energy_meV")[["Ga", "As"]],
        {},
        ("meV", "total", None, True),
    ),
    "an index beside energies": (
        lambda: frame("energy_meV", "dos").set_index(np.linspace(0.0, 1.0, len(E))),
        {},
        ("meV", "total", None, False),
    ),
    "unnamed index": (
        lambda: pd.DataFrame({"dos": DOS}, index=E),
        {"unit": "meV"},
        ("meV", "total", None, False),
    ),
    "quantities": (lambda: (quantity(E, "meV"), quantity(DOS, "1/meV")), {}, ("meV", "total", None, False)),
    "no titles": (lambda: pd.DataFrame(np.column_stack([E, DOS])), {"unit": "meV"}, ("meV", "total", None, False)),
    "points": (lambda: np.column_stack([E, DOS]).tolist(), {"unit": "meV"}, ("meV", "total", None, False)),
}


@pytest.mark.parametrize("name", FORMS)
def test_form(name):
    make, options, expected = FORMS[name]
    found = as_spectrum(make(), "host", **options)
    assert (found.unit, found.kind, found.element, found.kind_told) == expected
    if "onopy" not in name and name != "ProjectedDos":
        np.testing.assert_allclose(found.energy_mev, E, atol=1e-6)
    assert (found.error is not None) == (name == "titles")


REFUSED = {
    "not run": (lambda: phonopy(run=False), {}, "without a total DOS", "run_total_dos"),
    "modes": (lambda: ase(grid=False), {}, "modes, not a curve", "sample_grid"),
    "which atom": (lambda: phonopy().projected_dos, {"element": "Ga"}, "no DOS projected on Ga", "Phonopy"),
    "Raman": (lambda: frame("Raman shift (cm-1)", "I"), {}, "is a Raman spectrum", "phonon DOS"),
    "another document": (lambda: {"structure": {}}, {}, "without a phonon DOS", "docs/pipelines.md"),
    "no element": (lambda: ase("Ga"), {"element": "As"}, "no DOS projected on As", "symbol"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_form_is_refused(name):
    make, options, what, fix = REFUSED[name]
    with pytest.raises(SpectrumError, match=what) as error:
        as_spectrum(make(), "host", **options)
    assert fix in error.value.fix


def test_words_are_no_numbers():
    with pytest.raises(ConfigError, match="does not hold plain numbers"):
        as_spectrum(np.full((20, 2), "x"), "host", unit="meV")


@pytest.mark.parametrize(
    ("dos", "what"),
    [
        (np.full(len(E), "x"), "does not hold plain numbers"),
        (np.ma.array(DOS, mask=np.isclose(DOS, DOS.max())), "holds masked points"),
        (DOS + 0.1j, "holds complex numbers"),
        (1e200 * DOS, "a number is as large as"),
    ],
)
def test_what_are_no_plain_numbers(dos, what):
    with pytest.raises((ConfigError, SpectrumError), match=what):
        as_spectrum((E, dos), "host", unit="meV")


@pytest.mark.parametrize("options", [{"unit": 5}, {"unit": []}, {"unit": "meV", "kind": True}, {"unit": b"meV"}])
def test_a_unit_or_kind_that_is_no_text(options):
    with pytest.raises(SpectrumError, match=r"(unit|kind) is"):
        as_spectrum((E, DOS), "host", **options)


def test_candidates_of_other_types(model):
    pair = EXAMPLES / "host.csv", EXAMPLES / "doped.csv", "CdTe"
    named = model.predict(*pair, candidates=["Mg", "Zn"])
    for candidates in (np.array(["Mg", "Zn"]), pd.Series(["Mg", "Zn"]), iter(["Mg", "Zn"])):
        assert model.predict(*pair, candidates=candidates).to_dict() == named.to_dict()
    with pytest.raises(ConfigError, match="candidates is 5"):
        model.predict(*pair, candidates=5)


def quantity(values, unit):
    from pint import UnitRegistry

    return values * UnitRegistry()(unit)


# Answers


@pytest.mark.parametrize("curves", [False, True])
@pytest.mark.parametrize("way", ["network", "crystal"])
def test_an_answer_survives_json(way, curves, request, tmp_path):
    answer = request.getfixturevalue(way)
    document = json.loads(json.dumps(answer.to_dict(curves=curves)))
    again = answer_from_dict(document)
    assert type(again) is type(answer)
    assert again.to_dict(curves=curves) == document
    assert str(again) == str(answer)
    assert again.verdict == answer.verdict
    pd.testing.assert_frame_equal(again.to_frame(), answer.to_frame())
    if curves:
        again.plot(tmp_path / "answer.png")
        assert (tmp_path / "answer.png").stat().st_size > 10_000
    else:
        with pytest.raises(ConfigError, match="does not hold its"):
            again.plot()
    with pytest.raises(ConfigError, match="this is no answer"):
        answer_from_dict({**document, "elements": 5})


@pytest.mark.parametrize("way", ["network", "crystal"])
def test_a_notebook_shows_an_answer(way, request):
    answer = request.getfixturevalue(way)
    shown = answer._repr_html_()
    assert shown.count("<tr>") == 3  # titles, and two elements, or one and something else
    assert f"<b>{answer.to_dict()['sentence']}</b>" in shown
    assert "<td>Mg</td>" in shown


def test_html_is_escaped():
    from defectnet.prediction import answer_html

    assert "<x>" not in answer_html("<x>", ["<x>"], [["<x>"]], ["<x>"])


def test_provenance(model, network, crystal):
    assert network.provenance["defectnet"] == crystal.provenance["defectnet"] == defectnet.__version__
    assert network.provenance["options"] == {"candidates": ["Mg", "Zn"]}
    config = json.loads((model.source / "config.json").read_text())
    assert network.provenance["weights_sha256"] == config["weights_sha256"]
    pack = bundled("CdTe")
    assert crystal.provenance["pack_sha256"] == json.loads((pack.source / "config.json").read_text())["weights_sha256"]
    assert crystal.provenance["potential_sha256"] == pack.host.potential_sha256
    quick = json.loads((EXAMPLES.parent / "checkpoints" / "defectnet-quick" / "config.json").read_text())
    assert crystal.provenance["weights"] == "defectnet-quick"
    assert crystal.provenance["weights_sha256"] == quick["weights_sha256"]
    assert crystal.provenance["options"] == {
        "candidates": ["Mg@Cd"],
        "seed": 0,
        "kind": "neutron-weighted",
        "coverage": 0.9,
    }


def test_one_that_cannot_be_answered_ends_nothing(model):
    good = (EXAMPLES / "host.csv", EXAMPLES / "doped.csv", "CdTe", ["Mg"])
    asked = [good, ("none.csv", *good[1:]), (*good[:2], "Xx"), good, (*good[:3], ["Cd"])]
    found = model.predict_many(asked, on_error="record")
    assert [isinstance(one, Unanswered) for one in found] == [False, True, True, False, True]
    assert [one.what for one in found if isinstance(one, Unanswered)][:2] == ["SpectrumError", "FormulaError"]
    assert "none.csv does not exist" in found[1].error
    assert found[0].to_dict() == model.predict_many([good])[0].to_dict()
    with pytest.raises(SpectrumError, match=r"query 1: file none\.csv"):
        model.predict_many(asked)


# Tables


@pytest.fixture
def table(tmp_path, model, crystal, monkeypatch) -> Path:
    """A table of which half cannot be answered; its known crystal answers at once."""
    monkeypatch.setattr("defectnet.pipeline.from_pretrained", lambda *args, **settings: model)
    monkeypatch.setattr(KnownCrystal, "__init__", lambda self, pack, candidates, network: None)
    monkeypatch.setattr(KnownCrystal, "identify", lambda self, host, doped, **options: crystal)
    for name in ("host.csv", "doped.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    rows = [
        "sample,host_file,doped_file,formula,candidates,pack",
        's0,host.csv,doped.csv,CdTe,"Mg,Zn",',
        "s1,host.csv,none.csv,CdTe,Mg,",
        "s2,host.csv,doped.csv,Xx,,",
        "s3,host.csv,doped.csv,,Mg,CdTe",
        "s4,host.csv,doped.csv,CdTe,Mg,",
        "s5,host.csv,doped.csv,,,",
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "pairs.csv"


class Counted(Asker):
    """Counts what it is asked, and stops where it is told to."""

    asked, stop = 0, 99

    def ask_many(self, questions):
        self.asked += len(questions)
        if self.asked >= self.stop:
            raise KeyboardInterrupt
        return super().ask_many(questions)


def test_a_known_crystal_is_found_by_pack_or_structure(table):
    from ase.build import bulk

    host, doped = EXAMPLES / "host.csv", EXAMPLES / "doped.csv"
    for given in ({"pack": "CdTe"}, {"structure": bulk("CdTe", "zincblende", 6.5)}, {"pack": bundled("CdTe")}):
        assert isinstance(identify(host, doped, candidates=["Mg"], **given), KnownCrystalAnswer)
        with pytest.raises(SimulationError, match="the formula is GaAs, the crystal CdTe"):
            identify(host, doped, candidates=["Mg"], formula="GaAs", **given)


def test_table(table):
    out = table.with_name("answers.jsonl")
    told = identify_table(table, out)
    assert told == (3, 3, 0)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["sample"] for record in records] == [f"s{i}" for i in range(6)]
    assert [bool(record["error"]) for record in records] == [False, True, True, False, False, True]
    assert records[1]["error"].startswith("file ")
    assert "the host is not named" in records[5]["error"]
    assert [record["way"] for record in records if not record["error"]] == ["network", "known crystal", "network"]
    whole = answer_from_dict(records[3]["answer"])
    assert whole.present == tuple(records[3]["present"]) == ("Mg",)
    for ending in ("csv", "parquet"):
        same = table.with_name(f"answers.{ending}")
        assert identify_table(table, same) == told
        frame = pd.read_csv(same, keep_default_na=False) if ending == "csv" else pd.read_parquet(same)
        assert list(frame["line"]) == [2, 3, 4, 5, 6, 7]
        assert json.loads(frame["answer"][3]) == records[3]["answer"]
        assert (";".join(frame["present"][3]) if ending == "parquet" else frame["present"][3]) == "Mg"
    assert not list(table.parent.glob(".*"))


def test_a_stopped_table_goes_on(table, monkeypatch):
    monkeypatch.setattr("defectnet.pipeline.TOGETHER", 2)
    out, whole = table.with_name("answers.jsonl"), table.with_name("whole.jsonl")
    identify_table(table, whole)
    stopped = Counted()
    stopped.stop = 4
    with pytest.raises(KeyboardInterrupt):
        identify_table(table, out, stopped)
    assert not out.exists()
    journal = out.with_name(".answers.jsonl.part")
    assert len(journal.read_bytes().splitlines()) == 2
    with journal.open("ab") as file:
        file.write(b'["half a li')  # what a kill leaves
    again = Counted()
    assert identify_table(table, out, again).kept == 2
    assert again.asked == 4
    assert out.read_bytes() == whole.read_bytes()
    assert not journal.exists()


def test_a_row_that_has_changed_is_asked_again(table, monkeypatch):
    monkeypatch.setattr("defectnet.pipeline.TOGETHER", 2)
    out, stopped = table.with_name("answers.jsonl"), Counted()
    stopped.stop = 4
    with pytest.raises(KeyboardInterrupt):
        identify_table(table, out, stopped)
    shutil.copy(EXAMPLES / "doped.csv", table.with_name("none.csv"))
    again = Counted()
    told = identify_table(table, out, again)
    assert (told.kept, again.asked, told.failed) == (1, 5, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("host_file,doped_file,candidate\na,b,c\n", "unknown column 'candidate'"),
        ("host_file,formula\na,b\n", "column doped_file is missing"),
        ("host_file,doped_file\n", "holds no rows"),
        ("host_file,doped_file,formula,formula\na,b,CdTe,GaAs\n", "the column formula is there 2 times"),
    ],
)
def test_a_table_that_is_none(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        identify_table(tmp_path / "pairs.csv", tmp_path / "a.csv", formula="CdTe")
    with pytest.raises(ConfigError, match=r"Let it end with \.csv"):
        identify_table(tmp_path / "pairs.csv", tmp_path / "a.xlsx")


def test_the_command(table, capsys):
    out = table.with_name("answers.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], lines[1], lines[6]]) + "\n")
    main(["identify", "--table", str(table), "--out", str(out), "--formula", "CdTe", "--candidates", "Zn"])
    assert "2 of 2 pairs answered." in capsys.readouterr().out
    with out.open() as file:
        found = [[one["element"] for one in json.loads(row["answer"])["elements"]] for row in csv.DictReader(file)]
    assert [sorted(one) for one in found] == [["Mg", "Zn"], ["Zn"]]
    for words, message in (
        (["--table", str(table)], "--table goes with --out"),
        (["--formula", "CdTe", "--doped", "x.csv"], "--host is missing"),
    ):
        with pytest.raises(SystemExit):
            main(["identify", *words])
        assert message in capsys.readouterr().err
    table.write_text(f"{lines[0]}\n{lines[2]}\n")
    with pytest.raises(SystemExit) as error:
        main(["identify", "--table", str(table), "--out", str(out)])
    assert error.value.code == 1
    assert "0 of 1 pairs answered; 1 failed" in capsys.readouterr().out


def test_a_job_of_jobflow(tmp_path):
    from jobflow import run_locally

    from jobflow_maker import IdentifyMaker

    job = IdentifyMaker(candidates=["Mg", "Zn"]).make(
        str(EXAMPLES / "host.csv"), str(EXAMPLES / "doped.csv"), formula="CdTe"
    )
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        output = run_locally(job, ensure_success=True)[job.uuid][1].output
    finally:
        os.chdir(before)
    assert answer_from_dict(output).elements == ("Mg", "Zn")


# What new users stumbled over


def test_a_row_that_asks_nothing_shifts_no_answer(table):
    """Rows that fail before they are asked stand beside others in one call."""
    rows = [
        "sample,host_file,doped_file,formula,candidates,edge",
        "empty,,doped.csv,CdTe,,",
        "right,host.csv,doped.csv,CdTe,Mg;Zn,",
        "edge,host.csv,doped.csv,CdTe,Mg,wide",
        "short,host.csv",
        "last,host.csv,doped.csv,CdTe,Mg,",
    ]
    table.write_text("\n".join(rows) + "\n")
    out = table.with_name("answers.jsonl")
    assert identify_table(table, out) == (2, 3, 0)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["sample"] for record in records] == ["empty", "right", "edge", "short", "last"]
    assert "host_file is empty" in records[0]["error"]
    assert "wide" in records[2]["error"]
    assert "the row has not 6 cells" in records[3]["error"]
    candidates = [[row["element"] for row in one["answer"]["elements"]] for one in records if not one["error"]]
    assert [set(one) for one in candidates] == [{"Mg", "Zn"}, {"Mg"}]


def test_answers_are_written_over_no_input(table):
    before = table.read_bytes(), (table.parent / "host.csv").read_bytes()
    for out in (table, table.parent / "host.csv"):
        with pytest.raises(ConfigError, match="which the answers are about"):
            identify_table(table, out)
    assert (table.read_bytes(), (table.parent / "host.csv").read_bytes()) == before


def test_a_table_with_semicolons(table):
    table.write_text("sample;Host_File;doped_file;formula;candidates\nright;host.csv;doped.csv;CdTe;Mg,Zn\n")
    assert identify_table(table, table.with_name("answers.jsonl")) == (1, 0, 0)
    told = json.loads(table.with_name("answers.jsonl").read_text())
    assert {row["element"] for row in told["answer"]["elements"]} == {"Mg", "Zn"}


def test_what_is_no_column_or_setting_is_refused(table):
    with pytest.raises(ConfigError, match="no column candidate"):
        identify_table(table, table.with_name("answers.csv"), candidate="Mg")
    with pytest.raises(ConfigError, match="folder does not exist"):
        identify_table(table, table.parent / "nowhere" / "answers.csv")
    assert not (table.parent / "nowhere").exists()
    with pytest.raises(ConfigError, match="no setting candidate"):
        identify(EXAMPLES / "host.csv", EXAMPLES / "doped.csv", formula="CdTe", candidate=["Mg"])


@pytest.mark.parametrize("way", ["network", "crystal"])
def test_answers_are_pickled_and_compared(way, request):
    answer = request.getfixturevalue(way)
    for again in (pickle.loads(pickle.dumps(answer)), copy.deepcopy(answer), answer_from_dict(answer.to_dict())):
        assert again == answer
        assert hash(again) == hash(answer)
        assert again.sentence == answer.sentence == answer.to_dict()["sentence"]
    assert answer != 5
    assert answer != replace(answer, warnings=("changed",))


def test_what_was_not_answered_is_read_again():
    failed = Unanswered.of(SpectrumError("file x does not exist", fix="Check it"))
    assert answer_from_dict(failed.to_dict()) == failed
    for wrong in ([], None, "x"):
        with pytest.raises(ConfigError, match="this is no answer"):
            answer_from_dict(wrong)


def test_queries_that_are_none(model):
    good = (EXAMPLES / "host.csv", EXAMPLES / "doped.csv", "CdTe", ["Mg"])
    found = model.predict_many([good, good[:2], None], on_error="record")
    assert [isinstance(one, Unanswered) for one in found] == [False, True, True]
    with pytest.raises(ConfigError, match="query 0 is a PosixPath"):
        model.predict_many(good)
    with pytest.raises(ConfigError, match="on_error is 'skip'"):
        model.predict_many([good], on_error="skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formula", "CdTe", "--standards", "none.csv"], "--standards needs a known crystal"),
        (["--formula", "CdTe", "--minutes", "2"], "--minutes needs a known crystal"),
        (["--formula", "CdTe", "--plot", "nowhere/answer.png"], "its folder does not exist"),
        (["--pack", "CdTe", "--plot", "answer.bmp"], "unknown ending '.bmp'"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(options, message, capsys):
    with pytest.raises(SystemExit):
        main(["identify", "--host", str(EXAMPLES / "host.csv"), "--doped", str(EXAMPLES / "doped.csv"), *options])
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_line_is_a_module():
    found = subprocess.run([sys.executable, "-m", "defectnet", "--version"], capture_output=True, text=True, check=True)
    assert defectnet.__version__ in found.stdout
