"""The page, as a person uses it: a real browser, files, clicks; and what it must refuse."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import pytest

import app_questions
from browser import Served, browser
from defectnet import cli
from defectnet.app import jobs
from defectnet.app.jobs import Jobs, sentence
from defectnet.app.server import LARGEST, _Guard
from defectnet.crystal.pack import HostPack
from defectnet.errors import ConfigError, DefectNetError
from defectnet.files import plain_name
from defectnet.io import read_spectrum
from defectnet.io.write import write_spectrum
from spectra import grid, spectrum, table, write_table

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A pair of one kind, a pair of the zoo's smallest host as an example, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    rows = table()
    write_table(folder / "host.csv", rows)
    rows[(rows[:, 0] > 42) & (rows[:, 0] < 43), 1] = 0.5
    write_table(folder / "doped.csv", rows)
    write_table(folder / "bare.csv", table(), header="")
    (folder / "picture.png").write_bytes(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"))
    made = HostPack.load("V").spectrum("Al=0.06", cells=3, atoms=54, fwhm_mev=2.0)
    example = folder / "example"
    example.mkdir()
    write_spectrum(example / "host.csv", made.host_spectrum("total"))
    write_spectrum(example / "doped.csv", made.doped_spectrum("total"))
    (files := folder / "samples").mkdir()
    host, doped = made.host_spectrum("total"), made.doped_spectrum("total")
    for amount in (4, 8):
        between = host.dos + amount / 6 * (doped.dos - host.dos)
        write_spectrum(files / f"al{amount}.csv", replace(host, dos=between))
    (files / "pairs.csv").write_text(
        "sample,host_file,doped_file,formula,dopants\n# with folders, as they lie on a disk\n"
        "a,../example/host.csv,samples/al4.csv,V,Al:0.04\n"
    )
    about = {"pack": "V", "candidates": "Al", "dopants": {"Al": 0.06}}
    (example / "answer.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def served(files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_answer", app_questions.answer)
        with Served(files / "example", {"long": 1, "short": 2}) as running:
            yield running


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(chromium, served):
    """The page, loaded; nothing may go elsewhere, and no script may fail."""
    opened = chromium.new_page()
    opened.set_viewport_size(dict(zip(("width", "height"), WIDTHS["desktop"], strict=True)))
    wrong = []
    opened.on("request", lambda one: one.url.startswith((served.url, "data:", "blob:")) or wrong.append(one.url))
    opened.on("pageerror", lambda one: wrong.append(str(one)))
    opened.goto(served.url)
    opened.wait_for_selector("body[data-ready]")
    yield opened
    opened.close()
    assert wrong == []


def give(page, files, *names):
    """Choose files as one does in the dialogue, and wait until they are read."""
    page.set_input_files("#file-host", [str(files / name) for name in names])
    page.wait_for_function("() => ![...document.querySelectorAll('.facts')].some((e) => e.textContent === 'reading …')")


def element(page, tab, symbol):
    return page.locator(f"#{tab} .candidates .elements button", has_text=symbol).and_(
        page.get_by_role("button", name=symbol, exact=True)
    )


def test_the_example_by_one_click(page):
    page.click("#example")
    assert "contains Al" in page.text_content(".says")
    assert "explains" in page.text_content(".verdict")
    assert "pack V, computed with nequix" in page.text_content("[data-way=pack]")
    assert "Samples of known content" in page.text_content("[data-way=pack]")
    assert "6 at.% Al" in page.text_content(".truth")
    assert page.locator("svg.chart").count() == 3
    assert page.locator("svg.chart path.c-answer").count() == 2
    page.wait_for_selector("th:has-text('detectable from')")
    row = page.locator("tr[data-element=Al]")
    assert int(re.search(r"(\d+) %", row.text_content())[1]) >= 90
    assert row.locator("td").nth(3).text_content().endswith(" at.%")
    with page.expect_download() as saved:
        page.click("[data-save=json]")
    answer = json.loads(saved.value.path().read_text(encoding="utf-8"))
    assert (answer["way"], answer["present"]) == ("known crystal", ["Al"])
    assert saved.value.suggested_filename == "V-answer.json"
    for form, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        with page.expect_download() as saved:
            page.click(f"[data-save={form}]")
        assert saved.value.path().read_bytes().startswith(magic)
    page.get_by_text("Plan with this instrument").click()
    assert page.is_visible("#plan .primary")
    assert page.input_value("#plan [name=fwhm_mev]") == f"{answer['fwhm_mev']:.3g}"
    assert page.input_value("#plan .crystal select") == "V"


def test_two_files_with_a_formula_and_clicked_elements(page, files, capsys):
    give(page, files, "doped.csv", "host.csv")
    assert "host.csv" in page.text_content("[data-role=host]")
    assert "361 points, 0 to 90 meV, band edge 35.3 meV" in page.text_content("[data-role=host]")
    assert "assumed" in page.text_content("[data-role=doped]")
    page.get_by_text("Formula alone").click()
    assert "write the formula" in page.text_content("#identify .missing")
    page.fill("[aria-label=Formula]", "GaAs")
    assert element(page, "identify", "Ga").is_disabled()
    for symbol in ("Al", "In", "P"):
        element(page, "identify", symbol).click()
    element(page, "identify", "P").click()
    assert page.locator("#identify .chip").count() == 2
    page.click("#identify .primary")
    assert "GaAs" in page.text_content(".says")
    way = page.locator("[data-way=network]")
    assert "by a network from the formula alone (defectnet-small): a hint" in way.text_content()
    assert way.get_by_text("Ask with GaAs of the zoo").is_visible()
    assert page.locator("tr[data-element]").count() == 2
    with page.expect_download() as saved:
        page.click("[data-save=json]")
    page.wait_for_selector("[data-save=png]")
    pair = ["--host", str(files / "host.csv"), "--doped", str(files / "doped.csv")]
    cli.main(["identify", *pair, "--formula", "GaAs", "--candidates", "Al,In", "--json"])
    of_command, of_page = json.loads(capsys.readouterr().out), json.loads(saved.value.path().read_text())
    assert of_page.keys() == of_command.keys()
    assert of_page["elements"] == of_command["elements"]


def test_samples_of_known_content(page, files):
    give(page, files, "example/host.csv", "example/doped.csv")
    page.select_option("#identify .crystal select", "V")
    element(page, "identify", "Al").click()
    page.click(".samples summary")
    page.set_input_files("#file-samples", [str(files / "samples" / f"al{x}.csv") for x in (4, 8)])
    page.wait_for_selector(".sample input")
    assert "say what is in al4.csv and al8.csv" in page.text_content("#identify .missing")
    page.fill("[aria-label='Content of al4.csv']", "Al 4")
    page.fill("[aria-label='Content of al8.csv']", "Al much")
    page.keyboard.press("Tab")
    assert "Content of al8.csv: 'Al much' cannot be read" in page.text_content(".samples .problem")
    assert page.is_disabled("#identify .primary")
    page.fill("[aria-label='Content of al8.csv']", "Al@V: 8 %")
    page.keyboard.press("Tab")
    assert page.text_content(".told") == "2 samples, at.%: al4.csv Al 4; al8.csv Al@V 8."
    page.click("#identify .primary")
    assert "Corrected by 2 samples of known content." in page.text_content("[data-way=pack]")
    page.set_input_files("#file-samples", str(files / "samples" / "pairs.csv"))
    assert "pairs.csv names ../example/host.csv" in page.text_content(".samples .problem")
    page.set_input_files("#file-samples", str(files / "example" / "host.csv"))
    assert page.text_content(".told") == "One sample, at.%: al4.csv Al 4."
    page.get_by_role("button", name="Remove pairs.csv").click()
    assert page.locator(".told, .sample").count() == 0


def test_a_quick_answer(page, files):
    give(page, files, "example/host.csv", "example/doped.csv")
    page.select_option("#identify .crystal select", "V")
    element(page, "identify", "Al").click()
    page.click(".settings summary")
    page.check("[name=quick]")
    assert not page.is_visible(".samples")
    assert not page.is_visible("[name=fwhm_mev]")
    page.click("#identify .primary")
    way = page.text_content("[data-way=network]")
    assert "reads what is computed of this crystal (defectnet-quick): a hint" in way
    assert "network with computed responses: V" in way
    assert page.locator("tr[data-element]").count() == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("picture.png", "host/picture.png is not text. Export energy and DOS as CSV"),
        ("example/answer.json", "host/answer.json is JSON of no known class. Give"),
    ],
)
def test_a_wrong_file_is_one_sentence(page, files, name, told):
    give(page, files, name)
    text = page.text_content("[data-role=host] .problem")
    assert told in text
    assert "Traceback" not in page.content()
    assert page.is_disabled("#identify .primary")


def test_unit_and_kind_can_be_said_and_corrected(page, files):
    give(page, files, "bare.csv", "doped.csv")
    bare, other = page.locator("[data-role=host]"), page.locator("[data-role=doped]")
    assert "declares no energy unit" in bare.locator(".problem").text_content()
    bare.locator("[data-key=unit]").select_option("THz")
    bare.get_by_text("0 to 372 meV").wait_for()
    other.get_by_text("from the file").first.wait_for()
    other.locator("[data-key=unit]").select_option("cm-1")
    other.get_by_text("0 to 11.2 meV").wait_for()
    assert "you say so" in other.text_content()
    other.locator("[data-key=kind]").select_option("neutron-weighted")
    # What no file says is the same of both.
    page.wait_for_function(
        "() => document.querySelector('[data-role=host] [data-key=kind]')?.value === 'neutron-weighted'"
    )


def test_a_file_that_is_too_large_is_not_sent(page, files, tmp_path):
    large = tmp_path / "host.csv"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    page.set_input_files("#file-host", str(large))
    assert "host.csv has 21.0 MB, at most 21 MB are taken." in page.text_content("[data-role=host] .problem")
    page.set_input_files("#file-host", [str(files / "host.csv")] * 3)
    assert "3 files were dropped. Drop two" in page.text_content("[data-role=host] .problem")


def test_a_structure_finds_its_host(page, files, tmp_path):
    from ase.build import bulk

    bulk("V", "bcc", 3.0, cubic=True).write(tmp_path / "POSCAR", format="vasp")
    page.locator("#identify").get_by_text("Structure file").click()
    page.set_input_files("#identify-crystal-structure", str(tmp_path / "POSCAR"))
    page.get_by_text("The bundled host V fits").wait_for()
    assert "V, space group 229, 1 atoms" in page.text_content("#identify .crystal")
    element(page, "identify", "Na").click()
    page.set_input_files("#identify-crystal-structure", str(files / "picture.png"))
    text = page.text_content("#identify .crystal .problem")
    assert "picture.png" in text
    assert "Give a CIF" in text


def test_a_plan_colours_the_periodic_table(page):
    page.click("#tab-plan")
    page.select_option("#plan .crystal select", "V")
    element(page, "plan", "Al").click()
    page.fill("#plan [name=fwhm_mev]", "999")
    page.click("#plan .primary")
    assert "fwhm_mev is 999: that hides all of V" in page.text_content("#plan .reply .problem")
    page.fill("#plan [name=fwhm_mev]", "2")
    page.click("#plan .primary")
    page.wait_for_selector("#plan .says")
    assert "In V this measurement finds Al@V from" in page.text_content("#plan .says")
    assert page.locator("#plan [data-limits] .limit").count() == 1
    colour = page.locator("#plan [data-limits] .limit").evaluate("(one) => getComputedStyle(one).backgroundColor")
    assert colour.startswith("rgb(")
    assert colour != "rgb(255, 255, 255)"
    assert "at.% of all atoms. Limit: found in 90 %" in page.text_content("#plan .reply")
    cards = page.locator("#plan .reply .card")
    limit = cards.nth(1).locator("td strong").text_content()
    assert cards.nth(2).locator("td strong").all_text_contents() == [limit]  # as asked, among other instruments
    assert cards.nth(3).locator("tbody td").nth(1).text_content() == limit
    with page.expect_download() as saved:
        page.click("#plan [data-save=png]")
    assert saved.value.suggested_filename == "V-plan.png"


def test_long_work_waits_its_turn_and_stops(page, chromium, served):
    second = chromium.new_page()
    second.goto(served.url)
    for tab in (page, second):  # all but the question, for which the first is long enough
        tab.click("#tab-plan")
        tab.select_option("#plan .crystal select", app_questions.LONG)
    page.click("#plan .primary")
    page.get_by_text("of 4").or_(page.get_by_text("Superposed cells")).first.wait_for()
    second.click("#plan .primary")
    second.get_by_text("This machine computes").wait_for()
    assert "yours is the next" in second.text_content(".doing")
    first = next(job for job in served.jobs._jobs.values() if job.state == "running")
    process = first.process
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    process.join(10.0)
    assert not process.is_alive()
    assert page.is_enabled("#plan .primary")
    second.wait_for_function("() => !document.querySelector('.doing')?.textContent.includes('Waiting')")
    second.close()  # and what it asked ends with it
    end = time.monotonic() + 10.0
    while any(not job.over for job in served.jobs._jobs.values()) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(job.over for job in served.jobs._jobs.values())


@pytest.mark.parametrize("name", WIDTHS)
def test_it_fits_the_screen_and_elements_a_finger(page, name):
    width, height = WIDTHS[name]
    page.set_viewport_size({"width": width, "height": height})
    for tab in ("plan", "identify"):
        page.click(f"#tab-{tab}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [one.bounding_box() for one in page.locator(f"#{tab} .candidates .elements button").all()]
        assert len(boxes) == 62
        assert len({(round(b["x"]), round(b["y"])) for b in boxes}) == 62
        assert min(b["width"] for b in boxes) >= 24
        assert min(b["height"] for b in boxes) >= (40 if name == "phone" else 24)


def post(url, body=b"", **headers):
    request = urllib.request.Request(url, body, headers={name.replace("_", "-"): v for name, v in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


MULTIPART = {"Content_Type": "multipart/form-data; boundary=x"}


def form(question: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="question"\r\n\r\n{question}\r\n--x--\r\n'.encode()


@pytest.mark.parametrize(
    ("place", "body", "headers", "status", "told"),
    [
        ("identify", form("[]"), MULTIPART, 400, "The question is no JSON object. Reload the page."),
        ("identify", form("{}"), {**MULTIPART, "Origin": "http://elsewhere.org"}, 403, "Another page asked."),
        ("identify", b"", {"Content_Length": str(10 * LARGEST)}, 413, "MB are taken."),
        ("jobs/none/stop", b"", {}, 404, "This question is gone"),
        ("start_all", form("{}"), MULTIPART, 404, "There is nothing here."),
    ],
)
def test_what_is_no_question_is_refused(served, place, body, headers, status, told):
    found, answer = post(f"{served.url}/api/{place}", body, **headers)
    assert found == status
    assert told in answer["error"]


@pytest.mark.parametrize(
    ("name", "question", "told"),
    [
        ("identify", {}, "The file of the pristine host is missing. Drop it, or choose it."),
        ("plan", {"pack": "../GaAs"}, "Host '../GaAs' is not in the zoo."),
        ("plan", {"pack": "org/repo"}, "Host 'org/repo' is not in the zoo."),
        ("plan", {"mode": "structure", "potential": "mine.py"}, "Potential 'mine.py' is not bundled."),
        ("plan", {"pack": "V", "noise": "much"}, "Noise is 'much'. Give a number."),
        ("plan", {"pack": "V", "candidates": ["Xx"]}, "'Xx' is not an element of the vocabulary"),
        ("plan", {"pack": "V", "amounts": "1,x"}, "are not numbers"),
        ("plan", {"pack": "V", "candidates": 7}, "not foreseen (TypeError)"),
        (
            "samples",
            {"samples": [{"name": "x", "data": b""}] * 2},
            "Two samples are called x. Give their files different",
        ),
        ("samples", {"samples": [{"name": "x", "data": b'dopants,doped_file\n"1'}]}, "x, line 2 is broken"),
        (
            "samples",
            {"samples": [{"name": n, "data": b"dopants,doped_file"} for n in "xy"]},
            "X and y are both tables.",
        ),
    ],
)
def test_a_question_that_cannot_be_answered_is_one_sentence(served, name, question, told):
    job = served.jobs.start(name, {"files": {}, **question}, "short")
    end = time.monotonic() + 60.0
    while not job.over and time.monotonic() < end:
        time.sleep(0.02)
    assert job.state == "failed"
    assert told in job.error
    assert "\n" not in job.error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Al 5; In 2.5 at.%", {"Al": 0.05, "In": 0.025}),
        ("Al@Ga: .5%", {"Al@Ga": 0.005}),
        ("None", {}),
        ("Al 5, Al 2", "an element is named twice"),
        ("Al 30, In 30", "60 at.%. "),
        ("Al 0", "0 at.%. "),
        ("Al 2,5", "'5' cannot be read"),
        ("Xx 5", "'Xx' is not an element"),
    ],
)
def test_contents_as_they_are_typed(text, told):
    from defectnet.app.work import content

    if isinstance(told, dict):
        assert content("x.csv", text) == pytest.approx(told)
    else:
        with pytest.raises(DefectNetError) as error:
            content("x.csv", text)
        assert told in str(error.value)


def test_only_this_page_may_ask():
    guard = _Guard(None, frozenset({"localhost", "127.0.0.1"}))
    from starlette.requests import Request

    def refused(method="GET", **headers):
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        return guard._refused(Request({"type": "http", "method": method, "headers": raw}))

    assert refused(host="127.0.0.1:8765") is None
    assert refused(host="evil.org:8765")[0] == 403
    own = {"host": "localhost:8765", "origin": "http://localhost:8765"}
    assert refused("POST", content_length="10", **own) is None
    assert refused("POST", **own)[0] == 411


def test_names_of_files_stay_in_their_folder():
    names = {
        "../../etc/passwd": "passwd",
        "C:\\data\\a b.csv": "a b.csv",
        "..": "file",
        "a\nb;$(x).csv": "a_b__(x).csv",
    }
    assert {name: plain_name(name) for name in names} == names
    assert plain_name(None) == "file"
    assert len(plain_name("x" * 500 + ".csv")) <= 80


def test_errors_are_one_line():
    assert sentence(ConfigError("a\nb", fix="Do c")) == "A b. Do c."
    assert sentence(ModuleNotFoundError(name="h5py")) == "This needs h5py. Install it: pip install 'defectnet[app]'."
    assert "not foreseen (KeyError)" in sentence(KeyError("x"))


def test_too_many_questions_are_not_taken(served):
    jobs = Jobs({"long": 0})
    for _ in range(20):
        jobs.start("plan", {}, "long")
    with pytest.raises(ConfigError, match="20 questions wait already"):
        jobs.start("plan", {}, "long")
    last = list(jobs._jobs.values())[-1]
    assert jobs.ahead(last) == 19
    jobs.close()
    assert last.state == "stopped"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "70000"], "--port is 70000. Use 1 to 65535, or 0"),
        (["--port=-1"], "--port is -1."),
        (["--host", " "], "--host is empty."),
        (["--host", "no.such.host.invalid"], "is not known. Use 127.0.0.1"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1"),
    ],
)
def test_options_are_checked(words, told, capsys):
    with pytest.raises(SystemExit):
        cli.main(["app", "--no-open", *words])
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit):
            cli.main(["app", "--no-open", "--port", str(taken.getsockname()[1])])
    assert "Give another --port, or 0 for any free one" in capsys.readouterr().err


def test_without_its_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['starlette'] = None; from defectnet.cli import main; main(['app'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == "defectnet: this command needs starlette. Install it: pip install 'defectnet[app]'."
    )


def test_the_formats_of_the_case_are_told(tmp_path):
    """The name of the format is of the reader that took the file."""
    from defectnet.io.read import NAMES, describe_file

    assert describe_file(write_table(tmp_path / "x.csv", table()))[0] == NAMES["table"]
    (tmp_path / "total_dos.dat").write_text("# Sigma = 0.1\n" + "\n".join(f"{x} {x * x}" for x in grid(20.0, 40)))
    name, raw = describe_file(tmp_path / "total_dos.dat")
    assert (name, raw.usual_unit or raw.unit) == ("phonopy", "THz")
    assert read_spectrum(tmp_path / "x.csv").unit == spectrum().unit
