"""Training from the command line: ``defectnet fit -c configs/<name>.yaml`` (also validate and test)."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from defectnet.data.module import SpectraDataModule
from defectnet.tasks.defect import DefectTask


class DefectCLI(LightningCLI):
    """LightningCLI on `DefectTask` and `SpectraDataModule`; what the network reads follows from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the spec: grid and kinds of DOS have one home, the data."""
        parser.link_arguments("data.spec", "model.spec", apply_on="instantiate")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``fit``, ``validate`` or ``test`` with a recipe.

    Args:
        arguments: Words of the command line; those of the process by default.
    """
    DefectCLI(
        DefectTask,
        SpectraDataModule,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        args=None if arguments is None else list(arguments),
    )
