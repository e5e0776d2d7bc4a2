"""Training from the command line: ``defectnet fit -c configs/<name>.yaml`` (also validate and test)."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from defectnet.data.module import SpectraDataModule
from defectnet.errors import ConfigError
from defectnet.tasks.defect import DefectTask


class DefectCLI(LightningCLI):
    """LightningCLI on `DefectTask` and `SpectraDataModule`; what the network reads follows from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the spec: grid and kinds of DOS have one home, the data."""
        parser.link_arguments("data.spec", "model.spec", apply_on="instantiate")

    def init_parser(self, **settings: Any) -> LightningArgumentParser:
        """Make a parser that raises what is wrong, instead of printing it below pages of usage."""
        return super().init_parser(exit_on_error=False, **settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``fit``, ``validate`` or ``test`` with a recipe.

    Args:
        arguments: Words of the command line; those of the process by default.

    Raises:
        ConfigError: An option or the recipe cannot be used.
    """
    # Lightning warns about words that it could have read from the process itself.
    words = None if arguments is None or list(arguments) == sys.argv[1:] else list(arguments)
    try:
        DefectCLI(
            DefectTask,
            SpectraDataModule,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            args=words,
        )
    except ArgumentError as error:
        command = next(iter(arguments or sys.argv[1:]), "fit")
        raise ConfigError(f"{command}: {error}", fix=f"defectnet {command} --help lists the options") from error
