"""The command: ``python -m defectnet.simulate.distil fit -c configs/potential-small.yaml``, or ``export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningCLI

from defectnet.errors import DefectNetError
from defectnet.simulate.distil.data import DistilDataModule
from defectnet.simulate.distil.task import DistilTask, load_student


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fit``, ``validate`` or ``test`` with a recipe, or ``export`` a run as a NEP file.

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
    except DefectNetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _export(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m defectnet.simulate.distil export", description=_export.__doc__)
    parser.add_argument("--run", type=Path, required=True, help="training checkpoint (.ckpt)")
    parser.add_argument("--out", type=Path, required=True, help="NEP file to write")
    chosen = parser.parse_args(words)
    written = load_student(chosen.run).export(chosen.out)
    print(f"{chosen.out}: NEP4 of {len(written.species)} elements, sha256 {written.sha256}")


if __name__ == "__main__":
    sys.exit(main())
