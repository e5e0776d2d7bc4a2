"""The faults of benchmarks/mutations.py fit the source; that tests notice them is what that script says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mutations():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import mutations

        return mutations


def test_every_fault_fits_its_file_and_names_tests_that_are_there(mutations):
    defined = {
        path.name: re.findall(r"^def (test_\w+)", path.read_text(), re.M) for path in ROOT.glob("tests/test_*.py")
    }
    for one in mutations.MUTATIONS:
        text = (ROOT / mutations.PACKAGE / one.file).read_text(encoding="utf-8")
        assert text.count(one.before) == 1, (one.file, one.before)
        assert one.before != one.after
        ast.parse(text.replace(one.before, one.after))
        for test in one.tests:
            file, _, name = test.partition("::")
            assert any(known.startswith(name) for known in defined[Path(file).name]), test
    assert len({(one.step, one.fault) for one in mutations.MUTATIONS}) == len(mutations.MUTATIONS)


def test_a_fault_is_killed_or_survives(mutations, tmp_path, monkeypatch):
    (tmp_path / "src" / "doubled").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "src" / "doubled" / "__init__.py").write_text("def double(x):\n    return 2 * x + 0\n")
    (tmp_path / "tests" / "test_it.py").write_text(
        "import doubled\n\ndef test_double():\n    assert doubled.double(3) == 6\n"
    )
    monkeypatch.setattr(mutations, "ROOT", tmp_path)
    monkeypatch.setattr(mutations, "PACKAGE", Path("src") / "doubled")
    tests = ("tests/test_it.py::test_double",)
    faults = [
        mutations.Mutation("step", "thrice", "__init__.py", "2 * x", "3 * x", tests),
        mutations.Mutation("step", "the same", "__init__.py", "+ 0", "- 0", tests),
    ]
    found = mutations.study(faults)
    assert [one["killed"] for one in found] == [True, False]
    assert "| step | thrice; the same (**survived**) | 1 of 2 |" in mutations.markdown(found)
    with pytest.raises(SystemExit, match="stands there 0 times"):
        mutations.study([mutations.Mutation("step", "none", "__init__.py", "4 * x", "x", tests)])
    broken = mutations.Mutation("step", "no Python", "__init__.py", "return", "retur", tests)
    with pytest.raises(SystemExit, match="cannot run"):
        mutations.study([broken])
