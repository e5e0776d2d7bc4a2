"""The networks that answer where none is named. Apart, because a command line starts without all that they need."""

from __future__ import annotations

from typing import Final

DEFAULT_CHECKPOINT: Final = "defectnet-small"
QUICK_CHECKPOINT: Final = "defectnet-quick"


def default_checkpoint(known: bool) -> str:
    """Return the network for crystals that are known, which reads computed responses, or for others."""
    return QUICK_CHECKPOINT if known else DEFAULT_CHECKPOINT
