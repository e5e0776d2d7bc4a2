"""The command line. A command is one function in `COMMANDS`; it imports what it needs itself, so that help is fast.

Its keyword-only arguments are options, others are given without a name.

Training (``fit``, ``validate``, ``test``) has Lightning's own command line and is handed over before any parsing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from defectnet.errors import DefectNetError, LabError

if TYPE_CHECKING:
    from rich.table import Table

    from defectnet.prediction import Prediction

DEFAULT_CHECKPOINT = "defectnet-small"
TRAINING = ("fit", "validate", "test")
EXIT_ERROR = 2
BLIND_ROWS = 10
SURE = 0.9  # least probability of an element that is said to be there without a "probably"
UNSURE = 0.3  # where no element reaches this, none is named as found, whatever the threshold

_DESCRIPTION = (
    "Which dopants are in a crystal, and how much: from its phonon density of states. "
    "Training: defectnet fit|validate|test -c configs/<name>.yaml (each with its own --help)."
)


def simulate(
    *,
    hosts: str,
    potential: str,
    out: str,
    spectra_per_host: int = 6,
    atoms: str = "100-250",
    workers: int = 1,
    seed: int = 0,
    recipe: str | None = None,
    preconditioner: str | None = None,
    device: str = "cpu",
    batch: int = 1,
    precision: int = 64,
    executor: str = "local",
    parsl_config: str | None = None,
    memory_gib: float = 0.0,
) -> None:
    """Simulate pairs of spectra into Parquet shards. Stopped and started again, it goes on where it was.

    Args:
        hosts: JSON list of crystals, a structure file that ase reads, or a folder of them.
        potential: Path of a NEP potential in GPUMD's text format, or nep89 (fetched once from PyPI); or of a Nequix
            network (.nqx), by finite displacements.
        out: Folder for the shards.
        spectra_per_host: Doped cells tried for each host.
        atoms: Atoms in a supercell, one number (met within a fifth) or a range such as 100-250.
        workers: Processes; one thread each.
        seed: With the same hosts, potential and settings the same seed gives the same shards.
        recipe: JSON file with all settings, such as configs/defectnet-sim-v1.json; in place of spectra-per-host, atoms
            and seed.
        preconditioner: A cheaper potential, such as nep89, that speeds up the relaxation with a slow one.
        device: Where the potential is evaluated: cpu or cuda.
        batch: Hosts that each process works on side by side, for a GPU; 1 is best on a CPU.
        precision: Bits of the products in a Hessian, 64 or 32.
        executor: Who starts the processes: local, or parsl, also on clusters (docs/large-runs.md).
        parsl_config: Python file that sets config, such as configs/parsl-slurm.py; without it parsl uses this machine.
        memory_gib: Most memory of a process, GiB; a structure that needs more is rejected. 0 for no limit.
    """
    from pathlib import Path

    from defectnet.simulate.executors import make_executor
    from defectnet.simulate.hosts import read_hosts
    from defectnet.simulate.rows import Settings, atom_range
    from defectnet.simulate.runner import simulate as run

    if recipe is None:
        smallest, largest = atom_range(atoms)
        settings = Settings(seed=seed, spectra_per_host=spectra_per_host, smallest=smallest, largest=largest)
    else:
        settings = Settings.read(recipe)
    totals = run(
        read_hosts(hosts),
        potential,
        Path(out),
        settings,
        executor=make_executor(
            executor, workers=workers, folder=Path(out), memory_gib=memory_gib, parsl_config=parsl_config
        ),
        device=device,
        preconditioner=preconditioner,
        batch=batch,
        precision=precision,
    )
    print(f"{totals.pop('rows')} rows in {out}")
    for reason, count in totals.most_common():
        print(f"  {count} rejected: {reason}")


def identify(
    *,
    host: str,
    doped: str,
    formula: str,
    candidates: str | None = None,
    unit: str | None = None,
    kind: str | None = None,
    element: str | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    revision: str | None = None,
    plot: str | None = None,
    json: bool = False,
) -> None:
    """Identify the dopants of a sample from its spectrum and the host's.

    Args:
        host: File with the DOS of the pristine crystal.
        doped: File with the DOS of the doped sample.
        formula: Formula of the host, such as GaAs.
        candidates: Elements that may be there, such as Al,In. Without it every element is in question.
        unit: Energy unit of both files where they do not declare it: meV, THz, cm-1 or eV.
        kind: Kind of DOS where the files do not declare it: total, neutron-weighted or projected.
        element: Element that the DOS is projected on, or to select from a file of projected DOS.
        checkpoint: Bundled name, a folder such as ./run/best, or org/repo on the Hugging Face Hub.
        revision: Branch, tag or full commit of org/repo.
        plot: File to draw the spectra and the answer to: .png, .pdf or .svg.
        json: Print JSON and nothing else.
    """
    from defectnet.elements import parse_formula
    from defectnet.io import read_spectrum

    parse_formula(formula)
    pair = [read_spectrum(path, unit=unit, kind=kind, element=element) for path in (host, doped)]
    # Only now, so that a wrong file is reported at once: importing torch takes longer than reading.
    from defectnet.hub import from_pretrained

    names = None if candidates is None else candidates.replace(",", " ").replace(";", " ").split()
    prediction = from_pretrained(checkpoint, revision=revision).predict(pair[0], pair[1], formula, candidates=names)
    if plot is not None:
        from defectnet.plotting import plot_pair

        plot_pair(pair[0], pair[1], prediction, plot)
    if json:
        from json import dumps

        print(dumps(prediction.to_dict(), indent=2))
    else:
        _print(prediction)


def benchmark(
    *,
    model: list[str],
    track: str = "all",
    condition: str = "all",
    split: str = "test",
    data: str = "data/defectnet-sim-v1",
    bootstrap: int = 1000,
    seed: int = 0,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Measure models on crystals that none of them has seen: networks, baselines, and classes of your own.

    Args:
        model: A baseline such as ridge or lightgbm, a checkpoint (bundled name, ./folder, org/repo), or module:attr for
            a class with predict(batch), see defectnet.benchmark.protocol. Repeat the option for more.
        track: Whether candidates are named: candidates, blind or all.
        condition: How is measured: clean, lab or all.
        split: Rows: test, or val while choosing between models.
        data: Folder of shards, or a data set on the Hugging Face Hub.
        bootstrap: Resamples of the intervals; 0 for none.
        seed: Of the resamples.
        out: Folder for one JSON file of each model.
        json: Print JSON and nothing else.
    """
    try:
        from defectnet.benchmark.command import measure
    except ImportError as error:
        from defectnet.errors import ConfigError

        raise ConfigError(
            "the benchmark needs more packages", why=str(error), fix="Install them: pip install 'defectnet[benchmark]'"
        ) from error

    results = measure(
        model, track=track, condition=condition, split=split, data=data, bootstrap=bootstrap, seed=seed, out=out
    )
    if json:
        from json import dumps

        print(dumps(results, indent=1))
    else:
        from rich.console import Console

        from defectnet.benchmark.bars import by_name
        from defectnet.benchmark.tables import SCREEN_NOTE, describe, screen_tables

        console = Console(highlight=False, soft_wrap=True)
        console.width = max(console.width, 140)  # a line that the terminal wraps is better than a column cut off
        console.print(describe(results[0]), style="bold", markup=False)
        for title, table in screen_tables(by_name(results)):
            console.print(f"\n{title}", style="bold", markup=False)
            console.print(table)
        console.print(f"\n{SCREEN_NOTE}", style="dim", markup=False)


def export(*, run: str, out: str, data: str, card: str | None = None, coverage: float = 0.9) -> None:
    """Calibrate a trained network on the validation crystals and write it as a checkpoint folder.

    Args:
        run: The .ckpt of a `defectnet fit` run.
        out: Folder to write, such as checkpoints/my-model.
        data: Folder of the shards that it was trained on.
        card: Markdown file that becomes the checkpoint's README.md; a short one is written by default.
        coverage: Nominal coverage of the concentrations' intervals.
    """
    from pathlib import Path

    from defectnet.export import export as write

    text = Path(card).read_text(encoding="utf-8") if card else None
    print(f"wrote {write(run, out, data, card=text, coverage=coverage)}")


def push(
    name: str,
    repo: str,
    *,
    tag: str | None = None,
    private: bool = False,
    metrics: str | None = None,
    dataset: str | None = None,
    message: str | None = None,
) -> None:
    """Publish a checkpoint on the Hugging Face Hub: weights, settings, golden outputs and card, in one commit.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        name: Bundled name, or a folder such as ./run/best.
        repo: Where to, as org/repo; made if it is not there.
        tag: Name of the version, such as v1.
        private: Make the repository private if it is not there.
        metrics: JSON file of `defectnet benchmark`, whose numbers the card then states.
        dataset: The data set on the Hub that the metrics were measured on, as org/name; adds them to its leaderboard.
        message: Of the commit.
    """
    from defectnet.hub import push_checkpoint

    print(
        push_checkpoint(name, repo, tag=tag, private=private, metrics=metrics, dataset=dataset, commit_message=message)
    )


def data_push(
    folder: str, repo: str, *, tag: str | None = None, public: bool = False, message: str | None = None
) -> None:
    """Publish a data set on the Hugging Face Hub, as one commit; every shard is read first.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        repo: Where to, as org/name; made if it is not there.
        tag: Name of the version, such as v1.
        public: Make the repository public if it is not there.
        message: Of the commit.
    """
    from defectnet.data.source import push_dataset

    print(push_dataset(folder, repo, tag=tag, private=not public, commit_message=message))


def checkpoints() -> None:
    """List the checkpoints that have a name: those that come with the package, and published ones."""
    from json import loads

    from rich.console import Console
    from rich.table import Table

    from defectnet.hub.catalogue import PUBLISHED, bundled

    table = Table("name", "architecture", box=None, pad_edge=False, header_style="bold")
    for name, folder in bundled().items():
        table.add_row(name, loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"])
    for name in sorted(PUBLISHED.keys() - bundled()):
        table.add_row(name, "{} on the Hub, commit {}".format(*PUBLISHED[name]))
    if table.row_count:
        Console().print(table)
    else:
        print("This installation carries no checkpoints; give a folder or org/repo instead.")


def data_stats(folder: str, *, hosts: str | None = None, into: str | None = None, json: bool = False) -> None:
    """Count what a data set holds: rows, elements, concentrations, rejects and yield.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        hosts: JSON list of hosts that it was made from, for the yield by chemistry; looked for beside the folder.
        into: Markdown file to put the tables into, between <!-- stats NAME:start --> and <!-- stats NAME:end -->, NAME
            being that of the folder.
        json: Print JSON and nothing else.
    """
    from pathlib import Path

    from defectnet.data.stats import read_contents, statistics, summary, tables, to_markdown

    stats = statistics(read_contents(folder), hosts)
    if into is not None:
        from defectnet.benchmark.report import into_block
        from defectnet.files import replacing

        text = into_block(Path(into).read_text(encoding="utf-8"), f"stats {stats['name']}", to_markdown(stats))
        with replacing(into) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if json:
        from json import dumps

        print(dumps(stats, indent=2))
    elif into is None:
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        console.print(f"{stats['name']}: {summary(stats)}", style="bold", markup=False)
        for title, table in tables(stats):
            console.print(f"\n{title}", style="bold", markup=False)
            console.print(table)


def data_show(
    row: str, *, data: str | None = None, plot: str | None = None, structure: str | None = None, json: bool = False
) -> None:
    """Show a row of a data set: what was doped with what, and how it was made.

    Args:
        row: Id of the row, such as Si-diamond/0001.
        data: Folder of shards; the only data set in ./data by default.
        plot: File to draw its spectra to: .png, .pdf or .svg.
        structure: File to write the unrelaxed doped supercell to, in any format that ase knows: .cif, .xyz, .vasp.
        json: Print JSON and nothing else.
    """
    from defectnet.data.stats import default_folder, describe, find_row, row_table

    sample, shard = find_row(default_folder() if data is None else data, row)
    if plot is not None:
        from defectnet.plotting import plot_row

        plot_row(sample, plot)
    if structure is not None:
        from defectnet.simulate.structure import write_structure

        write_structure(sample, structure)
    if json:
        from json import dumps

        print(dumps(describe(sample) | {"shard": shard.name}, indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        console.print(sample.row_id, style="bold", markup=False)
        console.print(row_table(sample, shard))


def data_verify(
    folder: str,
    *,
    potential: str = "nep89",
    preconditioner: str | None = None,
    rows: int = 10,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Simulate random rows of a data set again, from the host and the seed that each holds, and compare.

    Args:
        folder: Folder of shards, as `defectnet simulate` writes it.
        potential: The one that the data set was made with.
        preconditioner: The one that it was made with, if any.
        rows: How many.
        seed: Chooses the rows.
        json: Print JSON and nothing else.
    """
    from defectnet.simulate.regenerate import verify

    found = verify(folder, potential, rows=rows, seed=seed, preconditioner=preconditioner)
    if json:
        from json import dumps

        print(dumps(found, indent=2))
    else:
        for row_id, differences in found.items():
            print(f"{row_id}: {'differs in ' + ', '.join(differences) if differences else 'the same'}")
    if any(found.values()):
        sys.exit(1)


def finetune(
    *,
    data: str,
    out: str,
    checkpoint: str = DEFAULT_CHECKPOINT,
    method: str = "l2sp",
    devices: int = 1,
    accelerator: str = "auto",
    precision: str = "32-true",
    epochs: int = 60,
    learning_rate: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    holdout: float = 0.25,
    folds: int = 0,
    group: str = "auto",
    replay: str | None = None,
    replay_share: float = 0.5,
    ema: float = 0.0,
    json: bool = False,
) -> None:
    """Fine-tune a checkpoint on your own pairs of spectra, judge it on pairs held out, keep the better network.

    Stopped and started again with the same options, it goes on where it was.

    Args:
        data: Table of the pairs (.csv), or a folder with pairs.csv; its columns stand in docs/fine-tuning.md.
        out: Folder to write the checkpoint to.
        checkpoint: Bundled name, a folder such as ./run/best, or org/repo on the Hugging Face Hub.
        method: head, gradual, full or l2sp.
        devices: Devices that train together, one process each.
        accelerator: auto, cpu or gpu.
        precision: 32-true, or bf16-mixed on GPUs; losses and metrics are in single precision always.
        epochs: Most epochs.
        learning_rate: Peak learning rate; the method's own by default.
        batch_size: Pairs of a batch, over all devices together.
        seed: Fixes splits, order and every random choice.
        holdout: Share of the samples that is held out where there are many.
        folds: Turns in which all samples are held out; 0 decides by their number, 1 holds out a share once.
        group: What is held out as a whole: sample, host, or auto.
        replay: Folder of simulated shards to mix in, against forgetting.
        replay_share: Share of each batch that they make up.
        ema: Decay of an average of the weights, such as 0.98; 0 for none.
        json: Print JSON and nothing else.
    """
    from defectnet.lab.finetune import Holdout
    from defectnet.lab.finetune import finetune as run
    from defectnet.lab.jobs import TrainingSettings

    training = TrainingSettings(
        method=method,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        ema=ema,
        replay=replay,
        replay_share=replay_share,
        seed=seed,
        devices=devices,
        accelerator=accelerator,
        precision=precision,
    )
    report = run(checkpoint, data, out, training, Holdout(holdout, folds, group))
    if json:
        from json import dumps

        print(dumps(report, indent=2))
        return
    from rich.console import Console

    from defectnet.lab.report import remarks, sentence, to_table

    console = Console(highlight=False, soft_wrap=True)
    console.print(sentence(report), style="bold", markup=False)
    console.print(to_table(report))
    for text in remarks(report):
        console.print(text, style="dim", markup=False)
    console.print(f"wrote {out}", markup=False)


COMMANDS: dict[str, Callable[..., Any] | dict[str, Any]] = {
    "identify": identify,
    "simulate": simulate,
    "data": {
        "_help": "Look into a data set: its numbers, one row of it, whether rows come out again; publish it.",
        "stats": data_stats,
        "show": data_show,
        "verify": data_verify,
        "push": data_push,
    },
    "finetune": finetune,
    "benchmark": benchmark,
    "export": export,
    "push": push,
    "checkpoints": checkpoints,
}


def answer(prediction: Prediction) -> str:
    """Say a prediction in one sentence."""
    if not prediction.present:
        best = prediction.order[0]
        return (
            f"No dopant found in {prediction.formula}: the most probable element, {prediction.elements[best]}, "
            f"has probability {prediction.probability[best]:.2f}, below the threshold of {prediction.threshold:.2f}."
        )
    if max(prediction.probability) < UNSURE:
        likely = [f"{prediction.elements[i]} ({prediction.probability[i]:.0%})" for i in prediction.order[:3]]
        return f"No dopant of {prediction.formula} stands out; the most probable are {', '.join(likely)}."
    parts = []
    for symbol in prediction.present:
        i = prediction.elements.index(symbol)
        band = _interval(prediction, i)
        amount = f"about {100 * prediction.concentration[i]:.1f} at.%{', ' + band if band else ''}"
        parts.append(f"{symbol} ({prediction.probability[i]:.0%}; {amount})")
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    least = min(prediction.probability[prediction.elements.index(symbol)] for symbol in prediction.present)
    verb = "contains" if least >= SURE else "probably contains" if least >= 0.5 else "may contain"
    return f"{prediction.formula} {verb} {listed}."


def _interval(prediction: Prediction, i: int) -> str:
    low, high = prediction.low[i], prediction.high[i]
    return "" if low != low else f"{100 * low:.1f} to {100 * high:.1f}"  # NaN where not calibrated


def _table(prediction: Prediction) -> Table:
    from rich.table import Table

    known = prediction.coverage == prediction.coverage
    interval = f"{prediction.coverage:.0%} interval" if known else "interval"
    table = Table("element", box=None, pad_edge=False, header_style="bold")
    for title in ("probability", "at.% if present", interval):
        table.add_column(title, justify="right")
    table.add_column("above threshold")
    rows = prediction.order if prediction.candidates_given else prediction.order[:BLIND_ROWS]
    for i in rows:
        present = bool(prediction.probability[i] >= prediction.threshold)
        table.add_row(
            prediction.elements[i],
            f"{prediction.probability[i]:.3f}",
            f"{100 * prediction.concentration[i]:.2f}",
            _interval(prediction, i) or "not calibrated",
            "yes" if present else "no",
            style="bold" if present else "dim",
        )
    return table


def _print(prediction: Prediction) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(answer(prediction), style="bold", markup=False)
    asked = "candidates given" if prediction.candidates_given else f"every element in question, {BLIND_ROWS} shown"
    edge = f"host's band edge {prediction.edge_mev:.1f} meV"  # a wrong unit shows here
    console.print(
        f"{prediction.model}, {asked}, threshold {prediction.threshold:.2f}, {edge}\n", style="dim", markup=False
    )
    console.print(_table(prediction))
    for warning in prediction.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def _parse_and_run(arguments: list[str]) -> None:
    if arguments and arguments[0] in TRAINING:
        from defectnet.train import main as train

        # Lightning warns about words that it could have read from the process itself.
        train(None if arguments == sys.argv[1:] else arguments)
        return
    if arguments == ["--version"]:
        from defectnet import __version__

        print(f"defectnet {__version__}")
        return
    from jsonargparse import ArgumentParser, auto_cli

    class Parser(ArgumentParser):
        """Parser whose switches take no value (``--json``, not ``--json true``) and whose lists are repeated."""

        def add_argument(self, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("type") is bool and kwargs.get("default") is False:
                del kwargs["type"]
                kwargs["action"] = "store_true"
            if str(args[-1]).endswith("+"):  # jsonargparse's spelling of an option that may be repeated
                args, kwargs["action"] = args[:-1], "append"
            args = tuple(a.replace("_", "-") if str(a).startswith("--") else a for a in args)  # as users expect
            return super().add_argument(*args, **kwargs)

    # dict(): jsonargparse types its argument as a dict of more than functions.
    auto_cli(
        dict(COMMANDS),
        args=arguments,
        prog="defectnet",
        description=_DESCRIPTION,
        parser_class=Parser,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; anything wrong with the input is one line on stderr and exit code 2.

    Args:
        arguments: Words of the command line; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _parse_and_run(words)
    except (DefectNetError, OSError) as error:
        # One line, but for a table of lab spectra, whose faults are listed one below the other.
        text = str(error) if isinstance(error, LabError) else " ".join(str(error).split())
        print(f"defectnet: {text}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
