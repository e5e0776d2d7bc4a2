"""What the Hub reads of a checkpoint: the front matter of README.md with `model-index`, and `.eval_results/*.yaml`.

Both forms are written, because the Hub shows the first on a model's page and ranks by the second
(https://huggingface.co/docs/hub/eval-results).
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from defectnet.errors import CheckpointError
from defectnet.models.calibration import DOPED, FALSE_ALARMS, WRONG_LISTS

TAGS: Final = ("defectnet", "materials-science", "phonons", "dopants")
"""What a published checkpoint is found by, beside the tags of its own card."""

METRICS: Final = {
    "concentration.mae": ("mae", "MAE of the concentration, at.%"),
    "concentration.rmse": ("rmse", "RMSE of the concentration, at.%"),
    "concentration.r2": ("r_squared", "R2 of the concentration"),
    "identity.ap_micro": ("average_precision", "average precision of the elements, micro-averaged"),
    "identity.ap_macro": ("average_precision", "average precision of the elements, macro-averaged"),
    "identity.recall_at_k": ("recall", "share of the dopants among the k most probable elements"),
    "identity.f1": ("f1", "F1 of the elements"),
}
"""Path of a number inside a result of the benchmark -> its kind on the Hub, and what it is."""

_FOLDER: Final = ".eval_results"
_FILE: Final = "defectnet-{}.yaml"
STALE: Final = re.escape(f"{_FOLDER}/") + r"defectnet-[^/]*\.yaml"
"""Paths of the results that an earlier push left."""


class MetricNumber(NamedTuple):
    """One number of the benchmark.

    Attributes:
        track: How was asked: candidates or blind.
        condition: How was measured: clean or lab.
        metric: A key of `METRICS`.
        value: The number.
    """

    track: str
    condition: str
    metric: str
    value: float


@dataclass(frozen=True)
class Results:
    """What a benchmark measured of one network.

    Attributes:
        data: Name of the data set.
        split: Which part of it.
        numbers: Those of `METRICS` that are there, in the order of the file.
    """

    data: str
    split: str
    numbers: tuple[MetricNumber, ...]


def read_results(source: str | os.PathLike[str] | Mapping[str, Any], entrant: str | None = None) -> Results:
    """Take the numbers that a card states from a result of ``defectnet benchmark``.

    Args:
        source: Its JSON file, or what such a file holds.
        entrant: Name of the network that the numbers must be of; None to take any.

    Raises:
        CheckpointError: It is no such result, holds no number of `METRICS`, or is of another network.
    """
    fix = "Give what `defectnet benchmark --out` wrote for this network"
    if isinstance(source, Mapping):
        where, tree = "metrics", dict(source)
    else:
        where, tree = str(source), _read_json(Path(source), fix)
    found = tree.get("results")
    numbers = tuple(_numbers(found)) if isinstance(found, dict) else ()
    if not numbers:
        raise CheckpointError(f"{where} holds no results[track][condition] with known metrics", fix=fix)
    of = tree.get("entrant")
    if entrant is not None and isinstance(of, str) and Path(of).name != Path(entrant).name:
        raise CheckpointError(f"{where} is a result of {of!r}, not of {entrant!r}", fix=fix)
    data = tree.get("data", tree.get("dataset"))
    name = data.get("name") if isinstance(data, dict) else data
    return Results(name if isinstance(name, str) and name else "unnamed", str(tree.get("split", "test")), numbers)


def _read_json(path: Path, fix: str) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read", why=str(error.strerror), fix=fix) from error
    except (ValueError, RecursionError) as error:  # JSON and text encoding alike
        raise CheckpointError(f"{path} is not valid JSON", why=str(error)[:160], fix=fix) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}, not an object", fix=fix)
    return tree


def _numbers(results: Mapping[str, Any]) -> Iterator[MetricNumber]:
    for track, conditions in results.items():
        for condition, tree in (conditions if isinstance(conditions, dict) else {}).items():
            for metric in METRICS:
                value = _value(tree, metric)
                if value is not None:
                    yield MetricNumber(track, condition, metric, value)


def _value(tree: Any, metric: str) -> float | None:
    """Return a number by its path; None where it is absent, or was not defined for these rows."""
    for key in metric.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, bool) or not isinstance(tree, int | float) or not math.isfinite(tree):
        return None
    return float(f"{tree:.6g}")  # more digits than the rows support are noise in a card


def checkpoint_card(
    name: str, config: Mapping[str, Any], parameters: int, results: Results | None = None, licence: str = ""
) -> str:
    """Write the card of a checkpoint from its own numbers.

    Args:
        name: Of the checkpoint.
        config: What its config.json holds: architecture, spec, net, calibration, training.
        parameters: Numbers that were trained.
        results: What a benchmark measured of it.
        licence: Of the weights, as the Hub writes it; left out if empty.

    Returns:
        Markdown, with front matter.
    """
    spec, seen, calibration = config["spec"], config["training"], config["calibration"] or {}
    front = ["---", *([f"license: {licence}"] if licence else []), "library_name: defectnet", "tags:"]
    front += [*(f"  - {tag}" for tag in TAGS), "---"]
    edges = "{:.1f} to {:.1f} meV".format(*seen["edge_mev"]) if "edge_mev" in seen else "not recorded"
    facts = {
        "network": f"{config['architecture']}, {parameters:,} parameters",
        "trained on": f"{seen.get('train_pairs', 0):,} pairs of {seen.get('train_hosts', 0):,} crystals",
        "calibrated on": f"{seen.get('val_rows', 0):,} pairs of other crystals, "
        f"{' and '.join(seen.get('calibration_conditions', ['unknown']))}",
        "reads": f"{', '.join(spec['kinds'])} DOS; {spec['grid']['bins']} bins up to {spec['grid']['reach']:g} times "
        "the host's band edge",
        "answers for": f"{len(spec['elements'])} elements",
        "band edges seen": edges,
        "elements in hosts seen": str(len(seen.get("host_elements", ()))),
    }
    for track in ("candidates", "blind"):
        raw = (calibration.get(f"temperature_{track}", 1.0), calibration.get(f"threshold_{track}", 0.5)) == (1.0, 0.5)
        if not raw:  # a track that the network cannot be asked has no calibration
            few = calibration.get("threshold_few", ()) if track == "candidates" else ()
            limits = [f"{value:.3f} of {n}" for n, value in enumerate(few, start=1)]
            more = f"{calibration[f'threshold_{track}']:.3f}" + (" of more" if few else "")
            facts[f"threshold, {track}"] = ", ".join([*limits, more])
    if (calibration.get("interval") or {}).get("belts"):
        facts["thresholds are for"] = (
            f"an element called present in at most {FALSE_ALARMS:.0%} of undoped samples, and in {WRONG_LISTS:.0%} of "
            f"those with {100 * DOPED:g} at.% and more whose list holds no true dopant; on the calibration crystals"
        )
    if calibration.get("interval"):
        facts["interval of a concentration"] = f"{calibration['interval']['coverage']:.0%} on the calibration pairs"
    lines = [*front, "", f"# {name}", "", "Says which elements were substituted into a crystal, and how much of each,"]
    lines += ["from a pair of phonon densities of states (DOS) and the host's formula.", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "```python", "import defectnet", "", f'model = defectnet.from_pretrained("{name}")']
    lines += ['model.predict("host.csv", "doped.csv", "GaAs", candidates=["Al", "In"])', "```", "", "## Results", ""]
    lines += _result_lines(results)
    net = json.dumps(config["net"])
    return "\n".join([*lines, "", "## Size", "", "```json", net, "```"]) + "\n"


def _result_lines(results: Results | None) -> list[str]:
    if results is None:
        return ["Not evaluated yet: run `defectnet benchmark` and state its numbers here."]
    asked = list(dict.fromkeys((number.track, number.condition) for number in results.numbers))
    found = {(number.track, number.condition, number.metric): number.value for number in results.numbers}
    lines = [f"{results.data}, {results.split} split, crystals of chemical systems that were not trained on:", ""]
    titles = " | ".join(f"{track}, {condition}" for track, condition in asked)
    lines += [f"| | {titles} |", "|---|" + "---:|" * len(asked)]
    for metric, (_, meaning) in METRICS.items():
        cells = [f"{found[key]:.3f}" if (key := (*place, metric)) in found else "-" for place in asked]
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return lines


def model_card(text: str, repo: str, results: Results | None = None, dataset: str | None = None) -> str:
    """Complete the front matter of a card; what it states already stays, its text is not touched.

    Args:
        text: README.md of the checkpoint.
        repo: ``org/repo`` that it goes to.
        results: Numbers for `model-index`, in place of those that are there; None to leave these.
        dataset: ``org/name`` of the data set that the numbers were measured on, if it is on the Hub.

    Raises:
        CheckpointError: The front matter is not valid.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
        data: Any = card.data  # its fields are set as they come
        data.library_name = data.get("library_name") or "defectnet"
        data.tags = _joined(data.get("tags"), TAGS)
        if dataset is not None:
            data.datasets = _joined(data.get("datasets"), [dataset])
        if results is not None:
            data.metrics = list(dict.fromkeys(METRICS[number.metric][0] for number in results.numbers))
            data.model_name = repo.partition("/")[2]
            data.eval_results = [_index_entry(number, results, dataset) for number in results.numbers]
        return str(card).rstrip() + "\n"
    except Exception as error:  # the YAML library's errors have no base that is part of our dependencies
        why = " ".join(str(error).split())[:160]
        fix = "Mend what stands between the two lines of ---"
        raise CheckpointError("README.md: the front matter cannot be used", why=why, fix=fix) from error


def _joined(present: Any, new: Sequence[str]) -> list[str]:
    """Return both lists without repeats; the Hub also allows a single text in place of a list."""
    old = [present] if isinstance(present, str) else list(present or [])
    return list(dict.fromkeys([*old, *new]))


def _index_entry(number: MetricNumber, results: Results, dataset: str | None) -> Any:
    from huggingface_hub import EvalResult

    kind, meaning = METRICS[number.metric]
    return EvalResult(
        task_type="other",  # the Hub has no task of this kind
        task_name=f"dopants from phonon spectra, {_task(number)}",
        dataset_type=dataset or results.data,
        dataset_name=results.data,
        dataset_config=_task(number),
        dataset_split=results.split,
        metric_type=kind,
        metric_name=meaning,
        metric_value=number.value,
    )


def _task(number: MetricNumber) -> str:
    return f"{number.track}-{number.condition}"


def eval_results(results: Results, dataset: str) -> dict[str, bytes]:
    """Write the numbers in the form that leaderboards of a data set read.

    A task is one number of one track under one condition, such as ``blind-lab-identity-ap-micro``: the names that
    the data set's `eval.yaml` lists.

    Args:
        results: Numbers of one network.
        dataset: ``org/name`` of the data set on the Hub.

    Returns:
        Path in the repository -> content.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]

    entries = [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=f"{_task(number)}-{re.sub(r'[._]', '-', number.metric)}",
            value=number.value,
            notes=f"{METRICS[number.metric][1]}; {results.split} split",
        )
        for number in results.numbers
    ]
    name = _FILE.format(dataset.partition("/")[2])
    return {f"{_FOLDER}/{name}": yaml_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()}
