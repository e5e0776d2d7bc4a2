"""How processes are started."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import ForkServerContext, SpawnContext


def forking(module: str) -> ForkServerContext | SpawnContext:
    """Return a context whose processes are forked, where that can be, from one that has imported what is slow to.

    That one lives as long as this process. What it has in memory all of them share.

    Args:
        module: Imported before the first process is started; later ones import for themselves what it lacks.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however it went: an orphan would wait for ever."""
    threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # for a long call into a library, during which Python handles no signals
        os._exit(1)
