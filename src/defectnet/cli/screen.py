"""What commands print with, and how they read lists."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


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
