"""A rank of `defectnet.lab.jobs` that notes its epochs, and kills or stops itself where the environment says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from defectnet.lab import jobs
from defectnet.tasks.finetuning import FinetuneTask


class Mortal(FinetuneTask):
    def on_train_epoch_start(self):
        with (Path(os.environ["EPOCHS_LOG"])).open("a", encoding="utf-8") as file:
            file.write(f"{self.global_rank} {self.current_epoch}\n")
        if os.environ.get("KILL") == f"{self.global_rank} {self.current_epoch}":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("STOP") == f"{self.global_rank} {self.current_epoch}":
            os.kill(os.getpid(), signal.SIGTERM)


def rank(*arguments) -> None:
    """In place of `jobs._rank`, in the rank's own process."""
    jobs.FinetuneTask = Mortal
    jobs._rank(*arguments)
