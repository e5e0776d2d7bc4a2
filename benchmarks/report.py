"""The results page: tables and figures from result files, and the short form for README and model card.

python benchmarks/report.py benchmarks/results --out benchmarks/RESULTS.md --into README.md MODEL_CARD.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from defectnet.benchmark.results import by_name, read_results
from defectnet.benchmark.tables import LEADERBOARD, describe, ranked
from defectnet.data.candidates import CONDITIONS
from defectnet.errors import ConfigError, DefectNetError
from defectnet.files import into_block, replacing
from report_tables import elements, head, leaderboard, line, parts, ratios, short_form

BLOCK: Final = "results"
"""Name of the block that the short form goes into."""

_LEGEND: Final = """\
AP: average precision; micro over all elements in question, macro the mean over elements. recall@k: share of a row's
dopants among its k most probable elements, k being their number. top 1 and top 5, marked *: share of rows whose single
dopant, of 2 at.% or more, is the most probable element or among the five most probable. F1 and exact set: at the
threshold that is best on validation rows, chosen alike for every entrant. MAE, RMSE and R2: expected concentration over
all elements in question. ECE: expected calibration error, ten bins. limit: of detection, the lowest concentration from
which nine of ten dopants are found at 5 % false alarms; a dash where that is not reached. In brackets: 95 % intervals
over resampled chemical systems."""

_CAPTIONS: Final = {
    "concentration.png": "Expected against true concentration of dopants, candidates named; on the line is right.",
    "precision-recall.png": "Precision and recall over all elements in question.",
    "reliability.png": "Share of elements that are there, against the probability that was said.",
    "detection.png": "Share of dopants found at 5 % false alarms, and detection limit, by the mass difference to the "
    "replaced atom. A limit is the lowest concentration from which nine of ten dopants are found.",
    "periodic-table.png": "Share of the dopants of each element that are among the k most probable, k being the number "
    "of dopants of their row.",
    "examples.png": "Two answers drawn from the best tenth and two from the worst: host and doped spectrum, what is "
    "there, and what was said.",
}


def page(results: Mapping[str, Mapping[str, Any]], shown: Sequence[str] = (), figures: str = "") -> str:
    """Write the results page.

    Args:
        results: Results by name.
        shown: Entrants that long tables show, the first of them beside all others and by element; see `featured`.
        figures: Folder of the figures as the page links to it; empty for a page without them.

    Returns:
        Markdown.

    Raises:
        ConfigError: An entrant of `shown` was not measured.
    """
    first = next(iter(results.values()))
    model, *_ = chosen = featured(results, shown)
    lines = [
        "# Results of the benchmark",
        "",
        f"{describe(first)} No system of these is in the training or the validation split. Written by "
        "`benchmarks/report.py` from the files of `defectnet benchmark --out`; not edited by hand.",
        "",
        *_leaderboards(results),
    ]
    if len(results) > 1:
        lines += [f"## {model} over the others", "", "Ratios, with intervals over the same resamples.", ""]
        lines += [*ratios(results, model), ""]
    if figures:
        lines += ["## Figures", ""]
        for name, caption in _CAPTIONS.items():
            lines += [f"![{caption}]({figures}/{name})", "", caption, ""]
    lines += ["## In parts", "", "recall is recall@k for rows, and that at the threshold for dopants.", ""]
    for track in LEADERBOARD:
        if ranked(results, track, "clean"):
            lines += [f"**{track}, clean**", "", *parts(chosen, results, track, "clean"), ""]
    lines += [f"## {model} by element", "", "Clean conditions.", "", *elements(results[model]), ""]
    return "\n".join([*lines, *_entrants(results)]) + "\n"


def _leaderboards(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Leaderboard", ""]
    for track in LEADERBOARD:
        for condition in CONDITIONS:
            if ranked(results, track, condition):
                lines += [f"**{track}, {condition}**", "", *leaderboard(results, track, condition), ""]
    return [*lines, _LEGEND, ""]


def featured(results: Mapping[str, Mapping[str, Any]], shown: Sequence[str] = ()) -> list[str]:
    """Return the few entrants that long tables and figures show: those named, or the best of each track.

    Raises:
        ConfigError: One that is named was not measured.
    """
    for name in shown:
        if name not in results:
            raise ConfigError(f"there is no result of {name!r}", fix=f"Measured are {', '.join(results)}")
    best = [name for track in LEADERBOARD for condition in CONDITIONS for name in ranked(results, track, condition)]
    return list(shown) or list(dict.fromkeys(best))[:4]


def _entrants(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["## Entrants", "", *head(["", "what", "settings", "fit, s", "answer, s"])]
    for name, result in results.items():
        notes, seconds = result["notes"], result["seconds"]
        settings = ", ".join(f"{key} {value}" for key, value in notes.get("settings", {}).items())
        if "parameters" in notes:
            settings = f"{notes['architecture']}, {notes['parameters']:,} parameters"
        what = str(notes.get("description", "")).replace("|", "/")
        cells = [name, what, settings.replace("|", "/") or "-", f"{seconds['fit']:.0f}", f"{seconds['answer']:.0f}"]
        lines.append(line(cells))
    skipped = [
        f"{name} is not asked {track}: it {why}."
        for name, result in results.items()
        for track, why in result["skipped"].items()
    ]
    versions = sorted({", ".join(f"{k} {v}" for k, v in result["versions"].items()) for result in results.values()})
    return [*lines, "", *skipped, *([""] if skipped else []), f"Measured with {'; and '.join(versions)}."]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page and its figures, and put the short form into the block ``results`` of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="folder of result files, or single files")
    parser.add_argument("--out", type=Path, help="page to write; its figures go to the folder figures beside it")
    parser.add_argument("--show", nargs="+", default=[], help="entrants of long tables and figures")
    parser.add_argument("--into", type=Path, nargs="+", default=[], help="Markdown files with a block 'results'")
    chosen = parser.parse_args(arguments)
    results = by_name(read_results(chosen.results))
    short = "\n".join(short_form(results))
    changed = {path: into_block(path.read_text(encoding="utf-8"), BLOCK, short) for path in chosen.into}
    if chosen.out:
        from report_figures import write_figures

        folder = chosen.out.parent / "figures"
        write_figures(results, featured(results, chosen.show), folder)
        changed[chosen.out] = page(results, chosen.show, folder.name)
    elif not chosen.into:
        print(page(results, chosen.show))
    for path, text in changed.items():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (DefectNetError, OSError) as error:
        print(f"report: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
