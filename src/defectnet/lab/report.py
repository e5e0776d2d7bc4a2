"""What a fine-tuning says at its end: a table, a JSON object, and the card of the checkpoint."""

from __future__ import annotations

from typing import Any, Final

from rich.table import Table

REPORT_SCHEMA: Final = 1
REPORT: Final = "finetune.json"
"""Name of the report in the folder of the checkpoint."""

_TITLES: Final = {
    "candidates/mae": "MAE (at.%), candidates given",
    "candidates/ap": "AP, candidates given",
    "blind/mae": "MAE (at.%), blind",
    "blind/ap": "AP, blind",
}


def rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the lines of the table: metric, before, after, difference, each with its 95 % interval."""
    judged = report["held_out"]
    before, after, difference = judged["before"], judged["after"], judged["difference"]
    return [
        (title, _number(before[name]), _number(after[name]), _number(difference[name], signed=True))
        for name, title in _TITLES.items()
        if name in before
    ]


def _number(estimate: dict[str, float | None], *, signed: bool = False) -> str:
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    if value is None:
        return "no dopants"
    sign = "+" if signed else ""
    ends = "" if low is None or high is None else f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return f"{value:{sign}.3f}{ends}"


def sentence(report: dict[str, Any]) -> str:
    """Say the verdict, and which network was kept."""
    judged = report["held_out"]
    over = f"{report['pairs_held_out']} held-out pairs of {judged['groups']} {_plural(report['grouped_by'])}"
    found = {
        "improved": f"Fine-tuning improved {report['checkpoint']} on {over}. The fine-tuned network is kept.",
        "not distinguishable": f"On {over} the fine-tuned network cannot be told from {report['checkpoint']}, "
        "which is kept as it was.",
        "worse": f"Fine-tuning made {report['checkpoint']} worse on {over}. It is kept as it was.",
    }
    return found[judged["verdict"]]


def _plural(grouping: str) -> str:
    return {"sample": "samples", "host": "hosts"}[grouping]


def remarks(report: dict[str, Any]) -> list[str]:
    """Return what a reader should know beside the numbers, one sentence each."""
    training = report["settings"]
    said = [_how_judged(report)]
    if report["kept"] == "after":
        said.append(report["calibration"]["says"])
        if report["forgetting"] is not None:
            old, new = report["forgetting"]["before"], report["forgetting"]["after"]
            said.append(
                f"On simulated crystals that were not trained on ({report['forgetting']['rows']} pairs of the replayed "
                f"data's validation split) the error of the concentration went from {old:.3f} to {new:.3f} at.%."
            )
        elif training["method"] == "responses":
            said.append("Of other crystals it says what it said before: the network inside is the same.")
        elif training["replay"] is None:
            said.append("How much of what it knew of other crystals was forgotten was not measured; give --replay.")
    return said


def _how_judged(report: dict[str, Any]) -> str:
    what = _plural(report["grouped_by"])
    meaning = "MAE is over the elements in question, of the expected concentration; AP is the average precision."
    if not report["folds"]:
        return (
            f"{meaning} Whole {what} were held out, once: the numbers are those of the very network that was trained."
        )
    last = " The network that is kept was trained on all pairs." if report["kept"] == "after" else ""
    return (
        f"{meaning} Whole {what} were held out in {report['folds']} turns, each by a network trained on the others: "
        f"the numbers are those of the procedure.{last}"
    )


def to_table(report: dict[str, Any]) -> Table:
    """Return the errors before and after, for a terminal: intervals of the differences only, for want of room."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(("held-out pairs", "before", "after", "difference, 95 % interval")):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for title, before, after, difference in rows(report):
        table.add_row(title, before.split(" (")[0], after.split(" (")[0], difference)
    return table


def to_card(name: str, report: dict[str, Any]) -> str:
    """Return the card, README.md, of the checkpoint."""
    lines = [
        f"# {name}",
        "",
        f"`{report['checkpoint']}`, fine-tuned with the method `{report['settings']['method']}` on {report['pairs']} "
        f"measured pairs of {report['samples']} samples ({', '.join(report['systems'])}; {report['kind']} DOS)."
        if report["kept"] == "after"
        else f"`{report['checkpoint']}`, unchanged: fine-tuning on {report['pairs']} pairs did not improve it.",
        "",
        sentence(report),
        "",
        "| on held-out pairs, with 95 % intervals | before | after | difference |",
        "|---|---|---|---|",
        *(f"| {' | '.join(line)} |" for line in rows(report)),
        "",
        *(f"- {text}" for text in remarks(report)),
        "",
        "Intended for spectra like those it was tuned on: these hosts, this instrument, this kind of DOS. For anything "
        f"else use `{report['checkpoint']}`, whose own card says where that fails.",
    ]
    return "\n".join(lines)
