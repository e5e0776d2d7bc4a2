"""``defectnet host``: packs made, gone on with, shown, turned into spectra, published and fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from crystals import entry
from defectnet import HostPack, cli
from defectnet.crystal.pack import FailedSubstitution
from defectnet.crystal.publish import push_pack
from defectnet.crystal.requests import read_requests
from defectnet.crystal.substitution import substitute
from defectnet.errors import SimulationError
from defectnet.hub import Pushed
from defectnet.io import read_spectrum
from defectnet.processes import forking
from packs import gallium_arsenide
from spectra import band_edge

TESTS = Path(__file__).parent
FAST = ["--potential", "defectnet-nep", "--atoms", "16", "--starts", "0"]


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packs") / "gaas"
    gallium_arsenide().save(folder)
    return folder


@pytest.fixture
def cif(tmp_path) -> Path:
    path = tmp_path / "GaP.cif"
    ase.io.write(path, bulk("GaP", "zincblende", a=5.45, cubic=True))
    return path


def fails(*words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["host", *words])
    assert caught.value.code == 2


# -- make --------------------------------------------------------------------------------------------------------------


def test_a_pack_is_made_and_gone_on_with(cif, tmp_path, capsys):
    out = tmp_path / "packs" / "gap"
    words = ["host", "make", "--structure", str(cif), *FAST, "--out", str(out)]
    cli.main([*words, "--dopants", "Al@Ga,As@P"])
    said = capsys.readouterr()
    assert said.out == f"{out}: 2 substitutions in GaP\n"
    assert said.err.startswith(f"2 substitutions in GaP with defectnet-nep, into {out}\n")
    assert "GaP: 2 of 2, As@P" in said.err
    assert "left" in said.err
    made = HostPack.load(out)
    assert (made.host.id, made.dopants) == ("GaP", ("Al@Ga", "As@P"))
    assert len(made.host.primitive) == 2
    cli.main([*words, "--dopants", "Al@Ga,In@Ga"])
    assert "GaP: 2 of 2, In@Ga" in capsys.readouterr().err
    assert HostPack.load(out).dopants == ("Al@Ga", "As@P", "In@Ga")


def test_a_list_has_dopants_of_its_own_and_a_folder_for_each_host(tmp_path, capsys):
    hosts = [entry(bulk(name, "zincblende", a=a), f"{name}-zb") for name, a in (("GaP", 5.45), ("AlAs", 5.66))]
    hosts[0]["dopants"], hosts[1]["dopants"] = ["Al@Ga"], ["Ga@Al", "P"]
    source = tmp_path / "list.json"
    source.write_text(json.dumps(hosts))
    found = read_requests(source, ["listed"])
    assert [(one.host.id, one.pairs) for one in found] == [
        ("GaP-zb", (("Al", "Ga"),)),
        ("AlAs-zb", (("Ga", "Al"), ("P", "Al"), ("P", "As"))),
    ]
    words = ["--structure", str(source), "--dopants", "listed", *FAST, "--out", str(tmp_path / "out")]
    cli.main(["host", "make", *words])
    assert capsys.readouterr().err.startswith("4 substitutions in GaP, AlAs with")
    assert HostPack.load(tmp_path / "out" / "GaP-zb").dopants == ("Al@Ga",)
    assert HostPack.load(tmp_path / "out" / "AlAs-zb").dopants == ("P@Al", "P@As", "Ga@Al")


def test_sites_that_are_alike_are_counted_once(tmp_path):
    ase.io.write(tmp_path / "rutile.cif", ase.io.read(_rutile(tmp_path)))
    (found,) = read_requests(tmp_path / "rutile.cif", ["Zr@Ti", "S", "plausible"])
    assert found.substitutions == len(found.pairs)
    assert {("Zr", "Ti"), ("S", "O"), ("S", "Ti")} <= set(found.pairs)
    assert len(found.pairs) > 12


def _rutile(folder: Path) -> Path:
    from ase.spacegroup import crystal

    sites = [(0, 0, 0), (0.305, 0.305, 0)]
    rutile = crystal(["Ti", "O"], sites, spacegroup=136, cellpar=[4.6, 4.6, 2.95, 90, 90, 90])
    ase.io.write(folder / "POSCAR", rutile)
    return folder / "POSCAR"


def test_a_folder_gives_a_pack_for_each_file(tmp_path):
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, a in (("GaP", 5.45), ("GaAs", 5.65)):
        ase.io.write(folder / f"{name}.cif", bulk(name, "zincblende", a=a, cubic=True))
    assert [one.host.id for one in read_requests(folder, ["Al@Ga"])] == ["GaAs", "GaP"]
    ase.io.write(folder / "GaP.xyz", bulk("GaP", "zincblende", a=5.45))
    with pytest.raises(SimulationError, match="2 files called GaP"):
        read_requests(folder, ["Al@Ga"])


def test_a_host_that_fails_is_one_line_and_code_2(tmp_path, capsys):
    """Caesium chloride's structure is no minimum for GaP, and a good host beside it is made all the same."""
    frac = [[0, 0, 0], [0.5, 0.5, 0.5]]
    bad = {"id": "GaP-CsCl", "cell": [3.2, 3.2, 3.2, 90, 90, 90], "species": ["Ga", "P"], "frac": frac}
    (tmp_path / "list.json").write_text(json.dumps([bad, entry(bulk("GaP", "zincblende", a=5.45), "good")]))
    out = tmp_path / "out"
    fails("make", "--structure", str(tmp_path / "list.json"), "--dopants", "Al@Ga", *FAST, "--out", str(out))
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("defectnet: ")]
    assert len(lines) == 1
    assert "GaP-CsCl" in lines[0]
    assert said.out == f"{out / 'good'}: 1 substitutions in GaP\n"
    assert (out / "good" / "config.json").is_file()


def test_failed_substitutions_are_listed(cif, tmp_path, capsys, monkeypatch):
    def broken(potential, host, site, dopant, **_):
        raise SimulationError(f"{dopant} does not come to rest", fix="Leave it out")

    monkeypatch.setattr("defectnet.crystal.make.substitute", broken)
    out = tmp_path / "gap"
    cli.main(["host", "make", "--structure", str(cif), "--dopants", "Al@Ga,In@Ga", *FAST, "--out", str(out)])
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 0 substitutions in GaP",
        "  Al@Ga on site 0 failed: Al does not come to rest",
        "  In@Ga on site 0 failed: In does not come to rest",
    ]


def test_sigkill_loses_no_finished_substitution(cif, tmp_path, monkeypatch):
    out = tmp_path / "gap"
    words = ["host", "make", "--structure", str(cif), "--dopants", "Al@Ga,In@Ga,As@P,Sb@P,N@P", *FAST]
    parts = tmp_path / ".gap.parts"

    def finished() -> set[str]:
        return {path.parent.name.split("-")[0] for path in parts.glob("[!.]*-[01]/config.json")}

    process = forking("defectnet.crystal.make").Process(target=cli.main, args=([*words, "--out", str(out)],))
    process.start()
    while len(finished()) < 2:
        assert process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not out.exists()
    kept = finished()
    made = []

    def recorded(potential, host, site, dopant, **settings):
        made.append(dopant)
        return substitute(potential, host, site, dopant, **settings)

    monkeypatch.setattr("defectnet.crystal.make.substitute", recorded)
    cli.main([*words, "--out", str(out)])
    assert set(made) == {"Al", "In", "As", "Sb", "N"} - kept
    found = HostPack.load(out)
    assert {dopant for dopant, _ in found.substitutions} | {one.dopant for one in found.failures} == {*made, *kept}
    assert not parts.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dopants", "Al@In"], "In is not in GaP"),
        (["--dopants", ","], "no dopants are named"),
        (["--dopants", "listed"], "lists no dopants for GaP"),
        (["--dopants", "Al", "--workers", "0"], "workers is 0"),
        (["--dopants", "Al", "--potential", "nowhere"], "nowhere"),
        (["--dopants", "Al", "--structure", "none.cif"], "none.cif does not exist"),
    ],
)
def test_a_wrong_request_is_one_line(cif, tmp_path, capsys, words, message):
    base = ["--structure", str(cif)] if "--structure" not in words else []
    potential = ["--potential", "defectnet-nep"] if "--potential" not in words else []
    fails("make", *base, *potential, *words, "--out", str(tmp_path / "out"))
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("defectnet: ")
    assert message in said


# -- show, list --------------------------------------------------------------------------------------------------------


def test_a_pack_is_shown(pack, capsys):
    cli.main(["host", "show", str(pack)])
    said = capsys.readouterr().out
    assert said.startswith("GaAs: GaAs, defectnet-nep\nsupercell of 16 atoms")
    assert [line.split()[0] for line in said.splitlines() if "eV/A^2" in line] == ["Al@Ga", "Al@As", "P@As"]


def test_json_is_all_there_is_on_stdout(pack, capsys):
    cli.main(["host", "show", str(pack), "--json"])
    told = json.loads(capsys.readouterr().out)
    found = HostPack.load(pack)
    assert told["sites"] == {"0": "Ga", "1": "As"}
    assert told["supercell_atoms"] == 16
    for row in told["substitutions"]:
        one = found.substitutions[row["dopant"], row["site"]]
        assert row["volume_percent"] == pytest.approx(2 * one.volume / found.host.primitive.volume, abs=1e-4)
        assert row["largest_change"] == pytest.approx(np.abs(one.change).max(), abs=1e-4)
    assert told["failures"] == []


def test_a_pack_is_drawn(pack, tmp_path):
    from defectnet.plotting import plot_pack

    found = replace(HostPack.load(pack), failures=(FailedSubstitution("In", 0, "does not come to rest"),))
    figure = plot_pack(found, tmp_path / "pack.png")
    assert (tmp_path / "pack.png").stat().st_size > 10_000
    left, table = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["Ga", "As"]
    hatched = [patch for patch in table.patches if patch.get_hatch()]
    coloured = [patch for patch in table.patches if patch.get_facecolor()[:3] != (1.0, 1.0, 1.0)]
    assert (len(hatched), len(coloured)) == (1, 3)
    assert len(table.texts) == 62


def test_bundled_packs_are_listed(pack, capsys, monkeypatch):
    monkeypatch.setattr("defectnet.crystal.pack.bundled_packs", dict)
    cli.main(["host", "list"])
    assert "no host packs" in capsys.readouterr().out
    monkeypatch.setattr("defectnet.crystal.pack.bundled_packs", lambda: {"GaAs": pack})
    cli.main(["host", "list"])
    assert capsys.readouterr().out.splitlines()[1].split() == ["GaAs", "GaAs", "defectnet-nep", "3"]
    cli.main(["host", "show", "gaas"])
    assert capsys.readouterr().out.startswith("GaAs: GaAs")


# -- spectra -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["total", "neutron-weighted"])
def test_spectra_are_written_as_identify_reads_them(pack, tmp_path, capsys, kind):
    out = tmp_path / "f.csv"
    words = ["host", "spectra", str(pack), "--composition", "Al@Ga=0.06,P=0.02", "--out", str(out), "--kind", kind]
    cli.main([*words, "--cells", "3", "--atoms", "64", "--plot", str(tmp_path / "f.png")])
    said = capsys.readouterr().out
    host, doped = read_spectrum(tmp_path / "f-host.csv"), read_spectrum(out)
    assert (host.kind, doped.kind, doped.unit) == (kind, kind, "meV")
    expected = HostPack.load(pack).spectrum("Al@Ga=0.06,P=0.02", cells=3, atoms=64, fwhm_mev=1.0)
    np.testing.assert_array_equal(host.dos, expected.host_spectrum(kind).dos)
    np.testing.assert_array_equal(doped.dos, expected.doped_spectrum(kind).dos)
    np.testing.assert_array_equal(np.loadtxt(out, delimiter=",", skiprows=7)[:, 2], expected.doped_error(kind))
    assert band_edge(host.energy_mev, host.dos) == pytest.approx(expected.edge_mev, rel=0.1)
    assert (tmp_path / "f.png").stat().st_size > 10_000
    command = said.splitlines()[-1].split()
    assert command[:2] == ["defectnet", "identify"]
    cli.main([*command[1:], "--candidates", "Al,In", "--json"])
    assert {row["element"] for row in json.loads(capsys.readouterr().out)["elements"]} == {"Al", "In"}


def test_spectra_may_be_left_as_they_are(pack, tmp_path, capsys):
    out = tmp_path / "f.csv"
    words = ["--composition", "Al=0.06", "--cells", "2", "--atoms", "16", "--fwhm-mev", "0"]
    cli.main(["host", "spectra", str(pack), *words, "--out", str(out)])
    said = capsys.readouterr().out
    assert "not broadened" in said
    assert "note: Al is taken to replace Ga" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--composition", "Al=3"], "Write 0.03"),
        (["--composition", "Al@Ga=0.03", "--cells", "1"], "cells is 1"),
        (["--composition", "Al@Ga=0.03", "--kind", "projected"], "Use total or neutron-weighted"),
        (["--composition", "Al@Ga=0.03", "--kind", "neutron"], "unknown kind of DOS"),
    ],
)
def test_a_wrong_spectrum_is_one_line(pack, tmp_path, capsys, words, message):
    fails("spectra", str(pack), *words, "--out", str(tmp_path / "f.csv"))
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "f.csv").exists()


# -- the Hub -----------------------------------------------------------------------------------------------------------


def test_a_pack_is_pushed_as_its_three_files(pack, capsys, monkeypatch):
    sent = {}

    def publish(remote, files, *, tag, message, **_):
        sent.update({path: x if isinstance(x, bytes) else x.read_bytes() for path, x in files.items()}, message=message)
        return Pushed(remote.repo, "c" * 40, "https://hub", tag, changed=True)

    monkeypatch.setattr("defectnet.crystal.publish.publish", publish)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    cli.main(["host", "push", str(pack), "lab/gaas", "--tag", "v1"])
    assert capsys.readouterr().out == f"lab/gaas pushed: commit {'c' * 40}, tag v1\nhttps://hub\n"
    assert sent.pop("message") == "GaAs v1: host pack of 3 substitutions"
    assert set(sent) == {"config.json", "model.safetensors", "README.md"}
    assert sent["model.safetensors"] == (pack / "model.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert "license: cc-by-4.0" in card
    assert "- host-pack" in card
    assert card.endswith((pack / "README.md").read_text().rstrip() + "\n")


def test_a_damaged_pack_is_not_pushed(pack, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    HostPack.load(pack).save(tmp_path / "gaas")
    weights = tmp_path / "gaas" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(SimulationError, match="is truncated"):
        push_pack(tmp_path / "gaas", "lab/gaas")
    with pytest.raises(SimulationError, match="is no name of a repository"):
        push_pack(pack, "gaas")


def test_revision_belongs_to_repositories(pack):
    with pytest.raises(SimulationError, match="belongs to repositories"):
        HostPack.load(pack, revision="v1")


@pytest.mark.hub
def test_a_pack_goes_to_the_hub_and_comes_back(pack, tmp_path):
    """In a process of its own: the Hub's client reads its settings when it is imported."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "pack_hub_driver.py"), str(pack)],
        env={key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        | {
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["files"] == [".gitattributes", "README.md", "config.json", "model.safetensors"]
    assert seen["dopants"] == seen["dopants again"] == ["Al@Ga", "Al@As", "P@As"]
    assert seen["requests of a commit"] == 0
    assert "does not exist" in seen["no revision"]
    assert "does not exist or is not public" in seen["no repository"]
    assert "is damaged" in seen["damaged"]
    assert "force_download=True" in seen["damaged"]
    assert seen["fetched again"] == seen["dopants"]
