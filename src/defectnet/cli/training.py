"""``defectnet fit``, ``finetune``, ``benchmark``, ``export``: networks, trained, trained further, measured, written."""

from __future__ import annotations

from defectnet.cli.screen import print_json, terminal
from defectnet.defaults import DEFAULT_CHECKPOINT


def fit(*words: str) -> None:
    """Train a network by a recipe, such as fit -c configs/defectnet-small.yaml; its options are Lightning's.

    Args:
        words: Options; fit --help lists them.
    """
    from defectnet.train import main

    main(["fit", *words])


def validate(*words: str) -> None:
    """Score a trained network on the validation crystals: validate -c RECIPE --ckpt_path RUN.

    Args:
        words: Options; validate --help lists them.
    """
    from defectnet.train import main

    main(["validate", *words])


def test(*words: str) -> None:
    """Score a trained network on the test crystals: test -c RECIPE --ckpt_path RUN.

    Args:
        words: Options; test --help lists them.
    """
    from defectnet.train import main

    main(["test", *words])


def finetune(
    *,
    data: str,
    out: str,
    checkpoint: str = DEFAULT_CHECKPOINT,
    method: str = "responses",
    devices: int = 1,
    accelerator: str = "auto",
    precision: str = "32-true",
    epochs: int = 60,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    validation: float = 0.0,
    seed: int = 0,
    holdout: float = 0.25,
    folds: int = 0,
    group: str = "auto",
    replay: str | None = None,
    replay_share: float = 0.5,
    ema: float = 0.0,
    logger: str = "auto",
    json: bool = False,
) -> None:
    """Fine-tune a checkpoint on your own pairs of spectra, judge it on pairs held out, keep the better network.

    Stopped and started again with the same options, it goes on where it was.

    Args:
        data: Table of the pairs (.csv), or a folder with pairs.csv; its columns stand in docs/fine-tuning.md.
        out: Folder to write the checkpoint to.
        checkpoint: Bundled name, a folder such as ./run/best, or org/repo on the Hugging Face Hub.
        method: responses, which trains nothing and needs a few pairs of each host; or full, which trains the network.
        devices: Devices that train together, one process each.
        accelerator: auto, cpu or gpu.
        precision: 32-true, or bf16-mixed on GPUs; losses and metrics are in single precision always.
        epochs: Most epochs.
        learning_rate: Peak learning rate.
        batch_size: Pairs of a batch, over all devices together.
        validation: Share of the samples kept aside to stop by, for hundreds of samples; 0 trains for all epochs.
        seed: Fixes splits, order and every random choice.
        holdout: Share of the samples that is held out where there are many.
        folds: Turns in which all samples are held out; 0 decides by their number, 1 holds out a share once.
        group: What is held out as a whole: sample, host, or auto.
        replay: Folder of simulated shards to mix in, against forgetting.
        replay_share: Share of each batch that they make up.
        ema: Decay of an average of the weights, such as 0.98; 0 for none.
        logger: What notes the course of training in OUT-logs: tensorboard, csv, wandb or none; auto is TensorBoard if
            it is installed, and CSV otherwise.
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
        validation=validation,
        ema=ema,
        replay=replay,
        replay_share=replay_share,
        seed=seed,
        devices=devices,
        accelerator=accelerator,
        precision=precision,
    )
    report = run(checkpoint, data, out, training, Holdout(holdout, folds, group), logger)
    if json:
        print_json(report)
        return

    from defectnet.lab.report import remarks, sentence, to_table

    console = terminal()
    console.print(sentence(report), style="bold", markup=False)
    console.print(to_table(report))
    for text in remarks(report):
        console.print(text, style="dim", markup=False)
    console.print(f"wrote {out}", markup=False)


def benchmark(
    *,
    model: list[str],
    track: str = "all",
    condition: str = "all",
    split: str = "test",
    data: str = "data/defectnet-sim-v1",
    extra: list[str] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    out: str | None = None,
    json: bool = False,
) -> None:
    """Measure models on crystals that none of them has seen: networks, baselines, and classes of your own.

    Args:
        model: A baseline such as ridge or lightgbm, a checkpoint (bundled name, ./folder, org/repo), or module:attr for
            an Estimator of your own, see defectnet.benchmark.protocol. Several joined by + are an ensemble. Repeat
            the option for more.
        track: Whether candidates are named: candidates, blind or all.
        condition: How is measured: clean, lab or all.
        split: Rows: test, or val while choosing between models.
        data: Folder of shards, or a data set on the Hugging Face Hub.
        extra: A further data set whose training rows baselines learn from too. Repeat the option for more.
        bootstrap: Resamples of the intervals; 0 for none.
        seed: Of the resamples.
        out: Folder for one JSON file of each model.
        json: Print JSON and nothing else.
    """
    from defectnet.benchmark.command import measure

    results = measure(
        model,
        track=track,
        condition=condition,
        split=split,
        data=data,
        extra=extra or (),
        bootstrap=bootstrap,
        seed=seed,
        out=out,
    )
    if json:
        print_json(results)
    else:
        from defectnet.benchmark.results import by_name
        from defectnet.benchmark.tables import SCREEN_NOTE, describe, screen_tables

        console = terminal()
        console.width = max(console.width, 140)  # a line that the terminal wraps is better than a column cut off
        console.print(describe(results[0]), style="bold", markup=False)
        for title, table in screen_tables(by_name(results)):
            console.print(f"\n{title}", style="bold", markup=False)
            console.print(table)
        console.print(f"\n{SCREEN_NOTE}", style="dim", markup=False)


def export(
    *,
    run: str,
    out: str,
    data: str,
    extra: list[str] | None = None,
    card: str | None = None,
    coverage: float = 0.9,
    half: bool = False,
    known: dict[str, str] | None = None,
) -> None:
    """Calibrate a trained network on the validation crystals and write it as a checkpoint folder.

    Args:
        run: The .ckpt of a `defectnet fit` run.
        out: Folder to write, such as checkpoints/my-model.
        data: Folder of the shards that it was trained on.
        extra: A further data set whose training rows it was trained on (data.extra of the recipe). Repeat the option
            for more.
        card: Markdown file that becomes the checkpoint's README.md; a short one is written by default.
        coverage: Nominal coverage of the concentrations' intervals.
        half: Keep the weights in half precision, for a file of half the size.
        known: For networks that read computed responses: folders of shards and, of each, that of the responses of its
            hosts, such as '{runs/pairs: runs/responses}'.
    """
    from pathlib import Path

    from defectnet.export import export as write

    text = Path(card).read_text(encoding="utf-8") if card else None
    print(f"wrote {write(run, out, data, extra=extra or (), card=text, coverage=coverage, half=half, known=known)}")
