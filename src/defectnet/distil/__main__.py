"""The command: ``python -m defectnet.distil fit -c configs/potential-small.yaml``, ``export`` or ``label``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from lightning.pytorch.cli import LightningCLI

from defectnet.crystal.hosts import read_hosts
from defectnet.distil.calibrate import calibrate
from defectnet.distil.data import DistilDataModule
from defectnet.distil.label import DEFAULT, LIGHT, LabelSettings, choose_hosts, make_labels
from defectnet.distil.task import DistilTask, load_student, training_record
from defectnet.errors import ConfigError, DefectNetError, SimulationError
from defectnet.potentials.folder import find_folder, licence_of, load_folder, save_student
from defectnet.potentials.potential import load_potential
from defectnet.potentials.relax import CellMode

HOSTS = ("data/hosts.json.xz", "data/teacher/prototypes.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fit``, ``validate`` or ``test`` with a recipe, ``export`` a run as a potential, or ``label`` cells.

    Args:
        arguments: Words of the command line; those of the process by default.

    Returns:
        Exit status: 0, or 2 after an error of the user's, which is named.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["export"]:
            _export(words[1:])
        elif words[:1] == ["label"]:
            _label(words[1:])
        else:
            LightningCLI(
                DistilTask,
                DistilDataModule,
                seed_everything_default=0,
                save_config_kwargs={"overwrite": True},
                args=None if arguments is None else words,
            )
    except (DefectNetError, OSError) as error:  # OSError: --out where nothing can be written
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _export(words: Sequence[str]) -> None:
    """Write a trained student as a potential: a checkpoint folder, or a NEP file for GPUMD and LAMMPS (.txt)."""
    parser = argparse.ArgumentParser(prog="python -m defectnet.distil export", description=_export.__doc__)
    parser.add_argument("--run", required=True, help="training checkpoint (.ckpt), or a bundled name, or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, or a NEP file (.txt)")
    parser.add_argument("--licence", help="of the weights; by default as the folder in --run has it, or MIT")
    parser.add_argument("--card", type=Path, help="text of the folder's README.md")
    parser.add_argument(
        "--calibrate", nargs="*", default=[], help="label files; corrects the curvature by validation crystals"
    )
    parser.add_argument("--hosts", nargs="+", default=HOSTS, help="lists of crystals that the labels are of")
    parser.add_argument("--hessians", help="folder of a data set with kept Hessians, for --calibrate too")
    chosen = parser.parse_args(words)
    training: dict[str, Any]
    folder = find_folder(chosen.run)
    if folder is not None:
        student, training, licence = load_folder(folder)[0], {"copy_of": folder.name}, licence_of(folder)
    else:
        student, training, licence = load_student(chosen.run), training_record(chosen.run), "MIT"
        if student.config.fixed_base and chosen.licence is None and chosen.out.suffix != ".txt":
            raise SimulationError(
                f"{chosen.run} holds the numbers of the potential that it was started from",
                fix="Name that potential's licence with --licence, such as GPL-3.0 for NEP89",
            )
    if chosen.calibrate:
        data = DistilDataModule(chosen.calibrate, chosen.hosts, chosen.hessians)
        training["gain"] = round(calibrate(student, data), 4)
        print(f"energies are multiplied by {training['gain']}")
    if chosen.out.suffix == ".txt":
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        written = student.export(chosen.out)
        print(f"{chosen.out}: NEP4 of {len(written.species)} elements, sha256 {written.sha256}")
        return
    card = f"# {chosen.out.name}\n\nA neuroevolution potential of 62 elements.\n"
    if chosen.card is not None:
        try:
            card = chosen.card.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SimulationError(
                f"card {chosen.card} cannot be read", why=str(error)[:120], fix="Check the path"
            ) from error
    save_student(chosen.out, student, licence=chosen.licence or licence, training=training, card=card)
    print(f"wrote {chosen.out}")


def _label(words: Sequence[str]) -> None:
    """Make labels of a slow potential on doped and pristine cells of crystals that are not in the test split."""
    parser = argparse.ArgumentParser(prog="python -m defectnet.distil label", description=_label.__doc__)
    parser.add_argument("--teacher", required=True, help="the slow potential, nequix, or any other")
    parser.add_argument("--guide", default="nep89", help="fast potential whose Hessian guides descents")
    parser.add_argument("--hosts", nargs="+", default=HOSTS, help="lists of crystals, or folders of structures")
    parser.add_argument("--out", type=Path, required=True, help="label file (.npz); one that was stopped goes on")
    parser.add_argument("--count", type=int, default=500, help="structures, of six records each or so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--known", type=Path, nargs="*", default=[], help="other label files: rare elements come first")
    parser.add_argument("--space-groups", type=int, nargs="*", default=[], help="only hosts of these, such as 216 186")
    parser.add_argument("--elements", type=int, help="only hosts of so many elements or fewer")
    parser.add_argument("--light", type=float, default=DEFAULT.light, help="share of cells with --light-dopants alone")
    parser.add_argument("--light-dopants", nargs="+", default=LIGHT, help="Be, B, C, N, O, F, Si, P, S by default")
    parser.add_argument("--highest", type=float, default=DEFAULT.highest, help="concentration of all dopants together")
    parser.add_argument("--cell", choices=get_args(CellMode), default=DEFAULT.cell, help="what the guide relaxes")
    parser.add_argument(
        "--astray",
        type=float,
        default=0.0,
        help="only cells whose volume the guide changes by more than this share; the guide is then a student",
    )
    parser.add_argument("--device", default="cpu", help="of the teacher")
    parser.add_argument("--batch", type=int, default=1, help="structures side by side: 1 on a CPU, 48 on a GPU")
    chosen = parser.parse_args(words)
    if chosen.batch < 1 or chosen.count < 1:
        raise ConfigError(f"--batch {chosen.batch}, --count {chosen.count}", fix="Use 1 or more")
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    hosts = choose_hosts(read_hosts(*chosen.hosts), chosen.space_groups, chosen.elements)
    teacher, guide = load_potential(chosen.teacher, chosen.device), load_potential(chosen.guide)
    lines = make_labels(
        teacher,
        guide,
        hosts,
        chosen.out,
        count=chosen.count,
        seed=chosen.seed,
        batch=chosen.batch,
        settings=LabelSettings(
            light=chosen.light,
            light_dopants=tuple(chosen.light_dopants),
            highest=chosen.highest,
            cell=chosen.cell,
            astray=chosen.astray,
        ),
        known=chosen.known,
    )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
