"""What commands print with, and how they read lists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


PLOTS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".eps", ".ps")
"""Endings of figures."""


def check_plot(plot: str | None) -> None:
    """See that a figure can be written, before what is drawn is computed.

    Raises:
        ConfigError: It cannot.
    """
    if plot is None:
        return
    from defectnet.errors import ConfigError
    from defectnet.files import home_expanded

    path = home_expanded(plot)
    if path.suffix.lower() not in PLOTS:
        raise ConfigError(f"plot {plot}: unknown ending {path.suffix!r}", fix="Use .png, .pdf or .svg")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"plot {plot} cannot be written", why="its folder does not exist", fix="Make it")


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def terminal() -> Console:
    """Return a console that neither colours numbers nor cuts lines."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def words(text: str) -> list[str]:
    """Return the parts of a list that is written with commas, semicolons or blanks."""
    return text.replace(",", " ").replace(";", " ").split()
