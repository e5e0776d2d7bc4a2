"""Benchmark tables reach the documents whole, or not at all."""

from __future__ import annotations

import json

import pytest

from defectnet.benchmark.report import into_block, main, to_markdown
from defectnet.errors import ConfigError

SCORES = {
    "identity": {"ap_micro": 0.25, "ap_macro": None, "recall_at_k": 0.5, "f1": 0.125},
    "concentration": {"mae": 12.34, "rmse": 1.0, "r2": -0.5},
    "interval": None,
    "by_dopants": {"1": {"rows": 3, "recall_at_k": 1.0, "mae": 0.5}},
    "by_range": {"0-1 at.%": {"dopants": 4, "recall": None, "mae": 0.75}},
}
REPORT = {
    "split": "test",
    "rows": 7,
    "hosts": 2,
    "dopants": 9,
    "results": {"candidates": {"clean": {"Floor": SCORES}}, "blind": {"clean": {"Floor": SCORES}}},
}
CARD = "# Card\n<!-- results:start -->\nold\n<!-- results:end -->\nend\n"


def test_tables_hold_the_numbers():
    lines = to_markdown(REPORT).splitlines()
    assert lines[0] == "test split, 7 pairs of 2 crystals."
    assert "| Floor | 0.250 | - | 0.500 | 0.125 | 12.3 | 1.000 | -0.500 | - |" in lines
    assert "| Floor | 0.250 | - | 0.500 | 0.125 | - |" in lines
    assert "| Floor | 1 dopant | 3 | 1.000 | 0.500 |" in lines
    assert "| Floor | 0-1 at.% | 4 | - | 0.750 |" in lines


def test_into_block_replaces_one_block_only():
    new = into_block(CARD, "results", "new\n")
    assert new == CARD.replace("old", "new")
    assert into_block(new, "results", "new") == new


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- x:start -->",
        "<!-- x:end --><!-- x:start -->",
        "<!-- x:end --><!-- x:start --><!-- x:end -->",
        2 * "<!-- x:start --><!-- x:end -->",
    ],
)
def test_into_block_wants_one_block(text):
    with pytest.raises(ConfigError, match="exactly one block 'x'"):
        into_block(text, "x", "new")


def test_command_prints_or_writes(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    main([str(tmp_path / "report.json")])
    assert capsys.readouterr().out.strip() == to_markdown(REPORT).strip()
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    main([str(tmp_path / "report.json"), "--into", str(tmp_path / "card.md")])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == into_block(CARD, "results", to_markdown(REPORT))


def test_one_document_without_a_block_leaves_all_as_they_were(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    (tmp_path / "card.md").write_text(CARD, encoding="utf-8")
    (tmp_path / "other.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(ConfigError, match="exactly one block"):
        main([str(tmp_path / "report.json"), "--into", str(tmp_path / "card.md"), str(tmp_path / "other.md")])
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == CARD
