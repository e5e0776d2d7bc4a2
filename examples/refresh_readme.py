"""Bring up to date what follows from checkpoints and results: parts of README.md, cards, docs/trust.md: make docs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any

from defectnet import from_pretrained, list_checkpoints
from defectnet.cli import main as command_line
from defectnet.defaults import DEFAULT_CHECKPOINT
from defectnet.files import into_block, replacing
from defectnet.hub.card import checkpoint_card, read_results
from defectnet.hub.catalogue import bundled
from defectnet.hub.io import CARD, CONFIG

EXAMPLES = Path(__file__).resolve().parent
README = EXAMPLES.parent / "README.md"
TRUST = EXAMPLES.parent / "docs" / "trust.md"
BENCHMARKS = EXAMPLES.parent / "benchmarks"
SHOWN = ("defectnet-small", "defectnet-base", "composition", "mean")  # networks, and what sees no spectrum
FAMILIES = ("SiGe", "MgB2-Al", "GaAs", "LiAlO2")
CARD_END = """\
What it is for, what it was trained on and where it fails: MODEL_CARD.md of the project. Above all: in crystals that it
has not seen an answer is a hint, best with candidates named, and no decision should rest on it alone. An independent
implementation, not by the authors of DefectNet (arXiv:2506.00725) and not endorsed by them.
"""


def checkpoint_table() -> str:
    """Return the bundled checkpoints as a Markdown table."""
    lines = ["| name | network | parameters | trained on | can be asked |", "|---|---|---|---|---|"]
    for name in list_checkpoints():
        model = from_pretrained(name)
        size = sum(parameter.numel() for parameter in model.parameters())
        seen = model.training_info
        default = " (default)" if name == DEFAULT_CHECKPOINT else ""
        lines.append(
            f"| `{name}`{default} | {type(model).__name__} | {size:,} | "
            f"{seen['train_pairs']:,} pairs of {seen['train_hosts']:,} crystals | {', '.join(model.tracks)} |"
        )
    return "\n".join(lines)


def example_output(known: bool) -> str:
    """Return the example's command and what it prints, as a Markdown code block: with a host pack, or by a network."""
    answer = json.loads((EXAMPLES / "answer.json").read_text(encoding="utf-8"))
    pair = ["--host", "examples/host.csv", "--doped", "examples/doped.csv"]
    pair += ["--pack", answer["pack"]] if known else ["--formula", answer["formula"]]
    pair += ["--candidates", answer["candidates"]]
    screen = StringIO()
    with redirect_stdout(screen):
        command_line(["identify", *(str(README.parent / word) if word.endswith(".csv") else word for word in pair)])
    lines = [f"$ defectnet identify {' '.join(pair)}", *(line.rstrip() for line in screen.getvalue().splitlines())]
    return "\n".join(["```text", *lines, "```"])


def refresh(text: str) -> str:
    """Return README.md with its blocks as they should be."""
    blocks = {
        "checkpoints": checkpoint_table(),
        "example": example_output(known=True),
        "network": example_output(known=False),
    }
    for name, block in blocks.items():
        text = into_block(text, name, block)
    return text


def _measured(name: str) -> Any:
    return json.loads((BENCHMARKS / name).read_text(encoding="utf-8"))


def _table(*rows: Sequence[str]) -> str:
    lines = [" | ".join(row) for row in (rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:])]
    return "\n".join(f"| {line} |" for line in lines)


def known_table() -> str:
    """Return what answers about known crystals are worth, across worlds and in one, as a Markdown table."""
    apart, same = _measured("known-crystal-cross-world.json"), _measured("known-crystal.json")
    columns = [apart["known-crystal"], same["known-crystal"], apart["defectnet-small"]]

    def row(name: str, value: Callable[[Any], float], digits: int = 2) -> list[str]:
        return [name, *(f"{value(one):.{digits}f}" for one in columns)]

    return _table(
        ["", "another world", "same world", "network, rows of the first"],
        row("90 % intervals that hold the truth", lambda one: one["coverage"]),
        row("one dopant of 2 at.% or more: likeliest of eight", lambda one: one["one_dopant_plenty"]["top_1"]),
        row("the same, among five", lambda one: one["one_dopant_plenty"]["top_5"]),
        row("average precision of probabilities", lambda one: one["average_precision"]),
        row("share of candidates that is present", lambda one: one["prevalence"]),
        row("calibration error of probabilities", lambda one: one["calibration_error"]),
        row("R2 of the content, one dopant", lambda one: one["r2_one_dopant"]),
        row("R2 of the content, all samples", lambda one: one["r2"]),
        row("mean error over that of answering zero", lambda one: one["mae_over_zero"]),
    )


def limit_table() -> str:
    """Return what detection limits are worth as a Markdown table."""
    plan = _measured("plan.json")
    pairs = f"{plan['doped_pairs']} + {plan['undoped_pairs']}"
    return _table(
        ["pairs, doped and undoped", "found at the limit (0.90 promised)", "false alarms (0.05 allowed)"],
        [pairs, f"{plan['doped_found']:.2f}", f"{plan['undoped_found']:.2f}"],
    )


def standards_table() -> str:
    """Return the error in virtual labs by the number of samples of known content as a Markdown table."""
    results = _measured("virtual-lab.json")["results"]
    found = {(one["family"], one["method"], one["pairs"]): mean(one["lab_mae"]) for one in results}
    counts = sorted({one["pairs"] for one in results if one["method"] == "responses"})
    rows = []
    for family in FAMILIES:
        errors = [found[family, "zero-shot", 0], *(found.get((family, "responses", count)) for count in counts)]
        rows.append([family, *("" if error is None else f"{error:.2f}" for error in errors)])
    return _table(["virtual lab", "none", *map(str, counts)], *rows)


def formula_table() -> str:
    """Return what networks are worth, which know the formula alone, as a Markdown table."""
    files = [_measured(f"results/{name}.json")["results"] for name in SHOWN]
    alarms = _measured("false-alarms.json")
    both = ("clean", "lab")

    def row(name: str, track: str, value: Callable[[Any], float]) -> list[str]:
        return [name, *(" / ".join(f"{value(one[track][condition]):.2f}" for condition in both) for one in files)]

    undoped = [alarms[n]["undoped, constant noise, candidates"]["all"]["some dopant named"] for n in SHOWN[:2]]
    rows = [
        row("candidates: average precision", "candidates", lambda one: one["identity"]["ap_micro"]),
        row("candidates: R2, one dopant", "candidates", lambda one: one["one_dopant"]["r2"]),
        row("candidates: mean error, at.%", "candidates", lambda one: one["concentration"]["mae"]),
        row("blind: likeliest of all, one dopant of 2 at.%", "blind", lambda one: one["one_dopant_plenty"]["top_1"]),
        row("blind: among five", "blind", lambda one: one["one_dopant_plenty"]["top_5"]),
        ["undoped samples in which a dopant is named", *(f"{share:.2f}" for share in undoped), "", ""],
    ]
    return _table(["*clean* / *lab*", *(f"`{name}`" for name in SHOWN)], *rows)


def trust(text: str) -> str:
    """Return docs/trust.md with its tables as they should be."""
    tables = {"known": known_table, "limits": limit_table, "standards": standards_table, "formula": formula_table}
    for name, table in tables.items():
        text = into_block(text, name, table())
    return text


def card(name: str) -> str:
    """Return the card of a bundled checkpoint."""
    config = json.loads((bundled()[name] / CONFIG).read_text(encoding="utf-8"))
    parameters = sum(parameter.numel() for parameter in from_pretrained(name).parameters())
    results = read_results(EXAMPLES.parent / "benchmarks" / "results" / f"{name}.json", name)
    text = checkpoint_card(name, config, parameters, results, licence="mit")
    return f"{text}\n{CARD_END}"


def main() -> None:
    """Write README.md, docs/trust.md and the cards."""
    changed = {README: refresh(README.read_text(encoding="utf-8")), TRUST: trust(TRUST.read_text(encoding="utf-8"))}
    changed |= {folder / CARD: card(name) for name, folder in bundled().items()}
    for path, text in changed.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
