"""The networks that answer where none is named. Apart, because a command line starts without all that they need."""

from __future__ import annotations

from typing import Final

DEFAULT_CHECKPOINT: Final = "defectnet-small"
QUICK_CHECKPOINT: Final = "defectnet-quick"


def default_checkpoint(quick: bool) -> str:
    """Return the network that answers, with computed responses or with the formula alone."""
    return QUICK_CHECKPOINT if quick else DEFAULT_CHECKPOINT
