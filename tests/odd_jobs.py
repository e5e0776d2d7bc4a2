"""Work for the tests of executors: a module that loads fast, since every new worker loads it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from defectnet.errors import SimulationError
from defectnet.processes import end_with_parent


def killed(signum: int = signal.SIGKILL) -> None:
    """End this process, or wait until the signal does."""
    os.kill(os.getpid(), signum)
    time.sleep(60)


def odd_job(task: tuple[Path, str]) -> str:
    """Do what `task` says, with a file that grows with each try."""
    path, what = task
    with path.open("a") as file:
        file.write(".")
    tries = len(path.read_text())
    if what == "wrong":
        raise SimulationError("this is wrong", fix="Do not")
    if what == "fails" or (what == "fails once" and tries == 1):
        raise OSError("disk full")
    if what == "kills" or (what == "kills once" and tries == 1):
        killed()
    if what == "ends its block once" and tries == 1:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    if what == "meets":
        block = os.environ["PARSL_WORKER_BLOCK_ID"]
        (path.parent / f"met-{block}").touch()
        deadline = time.monotonic() + 60
        while len(list(path.parent.glob("met-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        return block
    if what == "sleeps":
        time.sleep(60)
    if what == "environment":
        import torch

        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "XLA_FLAGS")
        return " ".join(f"{name}={os.environ[name]}" for name in names) + f" torch={torch.get_num_threads()}"
    return f"{what} done"


def outlives() -> None:
    """Say who this is, and wait for ever."""
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(600)
