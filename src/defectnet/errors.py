"""Errors that a user can act on: each says what is wrong, why, and how to mend it."""

from __future__ import annotations

from functools import partial
from typing import Any


class DefectNetError(ValueError):
    """Base of every error that bad input raises.

    Args:
        what: What is wrong, naming the file or the field.
        fix: What the user can do about it. Required: an error without a way out is half an error.
        why: What was found, where that is not already clear from `what`.
    """

    def __init__(self, what: str, *, fix: str, why: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(format_error(what, why=why, fix=fix))

    def __reduce__(self) -> tuple[Any, ...]:
        """Come out of another process as it went in: by default an exception is made again without its keywords."""
        return partial(type(self), self.what, fix=self.fix, why=self.why), ()


class SpectrumError(DefectNetError):
    """A spectrum, or the file it came from, cannot be used."""


class FormulaError(DefectNetError):
    """A formula or an element symbol cannot be used."""


class CheckpointError(DefectNetError):
    """A checkpoint cannot be found, or is not whole."""


class ShardError(DefectNetError):
    """A data shard, or a folder of shards, is not whole or has another schema."""


class SimulationError(DefectNetError):
    """A structure, a potential or a setting of the simulator cannot be used."""


class LabError(DefectNetError):
    """A table of lab spectra, or a row of it, cannot be used."""


class ConfigError(DefectNetError):
    """A setting has a value that it cannot have."""


def format_error(what: str, *, why: str = "", fix: str) -> str:
    """Join the three parts of an error into one message.

    Returns:
        `what`, then `why` in brackets if given, then the fix.
    """
    reason = f" ({why})" if why else ""
    return f"{what.rstrip('.')}{reason}. {fix.rstrip('.')}."
