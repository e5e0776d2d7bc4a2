"""The command: ``python -m defectnet.distil fit -c configs/potential-small.yaml`` or ``export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningCLI

from defectnet.distil.calibrate import calibrate
from defectnet.distil.data import DistilDataModule
from defectnet.distil.task import DistilTask, load_student, training_record
from defectnet.errors import DefectNetError, SimulationError
from defectnet.potentials.folder import find_folder, licence_of, load_folder, save_student

HOSTS = ("data/hosts.json.xz", "data/teacher/prototypes.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fit``, ``validate`` or ``test`` with a recipe, or ``export`` a run as a potential.

    Args:
        arguments: Words of the command line; those of the process by default.

    Returns:
        Exit status: 0, or 2 after an error of the user's, which is named.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["export"]:
            _export(words[1:])
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


if __name__ == "__main__":
    sys.exit(main())
