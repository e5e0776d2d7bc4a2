"""How processes are started."""

from __future__ import annotations

from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext, ForkServerContext


def forking(module: str) -> BaseContext:
    """Return a context whose processes are forked, where that can be, from one that has imported what is slow to.

    That one lives as long as this process. What it has in memory all of them share.

    Args:
        module: Imported before the first process is started; later ones import for themselves what it lacks.
    """
    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload([module])
    return context
