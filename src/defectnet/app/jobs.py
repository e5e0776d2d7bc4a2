"""Questions of the page, each in a process of its own: some at a time; others wait in order; all can be stopped.

Nothing is shared between questions but what is on disk; a question that fails, or takes all memory, ends alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

from defectnet.errors import ConfigError, DefectNetError
from defectnet.processes import forking

AT_ONCE: Final = {"long": 2, "short": 4}
"""Questions that are answered at a time: those that compute, and those that a file or a network answers."""

WAITING: Final = 20
"""Most questions that wait, of each."""

ABANDONED, FORGOTTEN = 180.0, 600.0
"""Seconds after which a question that no page asks about any more is stopped, and an answer is dropped. Browsers let
pages in the background ask once a minute."""

_WORK: Final = "defectnet.app.work"


@dataclass
class PageJob:
    """A question on its way.

    Attributes:
        name: Function of `defectnet.app.work`. request: What it gets.
        lane: One of `AT_ONCE`.
        state: queued, running, done, failed or stopped.
        parts: What it has answered so far, (name, values).
        progress: What it is doing, how much is done, of how much.
        error: Why it failed, in one sentence.
    """

    name: str
    request: dict[str, Any]
    lane: str
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: str = "queued"
    parts: list[tuple[str, Any]] = field(default_factory=list)
    progress: tuple[str, int, int | None] = ("starting", 0, None)
    error: str = ""
    asked: float = field(default_factory=time.monotonic)
    process: BaseProcess | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.state in ("done", "failed", "stopped")


class Jobs:
    """All questions of a server.

    Args:
        at_once: How many are answered at a time, by lane.
    """

    def __init__(self, at_once: dict[str, int] | None = None) -> None:
        self.at_once = dict(AT_ONCE if at_once is None else at_once)
        self._context = forking(_WORK)
        self._lock = threading.RLock()
        self._jobs: dict[str, PageJob] = {}
        self._queues: dict[str, deque[PageJob]] = {lane: deque() for lane in self.at_once}
        self._running = dict.fromkeys(self.at_once, 0)
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, daemon=True).start()

    def start(self, name: str, request: dict[str, Any], lane: str) -> PageJob:
        """Take in a question.

        Raises:
            ConfigError: Too many wait already.
        """
        job = PageJob(name, request, lane)
        with self._lock:
            if len(self._queues[lane]) >= WAITING:
                raise ConfigError(f"{WAITING} questions wait already", fix="Ask again in some minutes")
            self._jobs[job.id] = job
            self._queues[lane].append(job)
            self._dispatch(lane)
        return job

    def get(self, key: str) -> PageJob | None:
        """Return a question, or None if there is none; whoever asks keeps it alive."""
        with self._lock:
            job = self._jobs.get(key)
            if job is not None:
                job.asked = time.monotonic()
            return job

    def ahead(self, job: PageJob) -> int:
        """Return how many questions come before one that waits."""
        with self._lock:
            queue = self._queues[job.lane]
            return queue.index(job) if job in queue else 0

    def stop(self, job: PageJob) -> None:
        """End a question, at once."""
        with self._lock:
            if job.over:
                return
            job.state = "stopped"
            if job in self._queues[job.lane]:
                self._queues[job.lane].remove(job)
            if job.process is not None:
                job.process.kill()

    def close(self) -> None:
        """End all questions."""
        self._closed.set()
        with self._lock:
            for job in self._jobs.values():
                self.stop(job)

    def _dispatch(self, lane: str) -> None:
        while self._queues[lane] and self._running[lane] < self.at_once[lane]:
            job = self._queues[lane].popleft()
            job.state = "running"
            self._running[lane] += 1
            threading.Thread(target=self._attend, args=(job,), daemon=True).start()

    def _attend(self, job: PageJob) -> None:
        """Run one question to its end."""
        folder = tempfile.mkdtemp(prefix="defectnet-")
        try:
            ours, theirs = self._context.Pipe(duplex=False)
            process = self._context.Process(target=_answer, args=(theirs, job.name, job.request, folder), daemon=True)
            process.start()
            theirs.close()
            with self._lock:
                job.process = process
                if job.state == "stopped":  # while it was starting
                    process.kill()
            self._listen(job, ours)
            process.join()
        except Exception:
            logging.getLogger(__name__).exception("a question could not be run")
            job.error = "The question could not be run on this machine; the terminal of `defectnet app` says why."
        finally:
            with self._lock:
                if not job.over:
                    job.state = "failed"
                    job.error = job.error or (
                        "The computation was ended from outside, for want of memory perhaps. "
                        "Ask again with fewer candidates, or on a larger machine."
                    )
                job.request, job.process = {}, None
                self._running[job.lane] -= 1
                self._dispatch(job.lane)
            shutil.rmtree(folder, ignore_errors=True)

    def _listen(self, job: PageJob, source: Connection) -> None:
        while True:
            try:
                kind, value = source.recv()
            except (EOFError, OSError):
                return
            with self._lock:
                if job.over:
                    continue
                if kind == "progress":
                    job.progress = value
                elif kind == "part":
                    job.parts.append(value)
                else:
                    job.state, job.error = kind, value

    def _sweep(self) -> None:
        """Stop what nobody asks about, and forget answers."""
        while not self._closed.wait(5.0):
            now = time.monotonic()
            with self._lock:
                for job in list(self._jobs.values()):
                    if not job.over and now - job.asked > ABANDONED:
                        self.stop(job)
                    elif job.over and now - job.asked > FORGOTTEN:
                        del self._jobs[job.id]


def sentence(error: BaseException) -> str:
    """Return an error as one line for a person: what is wrong, and how to mend it."""
    if isinstance(error, DefectNetError):
        text = " ".join(str(error).split())
        return text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text  # no file, no name of a field
    if isinstance(error, ModuleNotFoundError):
        return f"This needs {error.name}. Install it: pip install 'defectnet[app]'."
    if isinstance(error, MemoryError):
        return "There is not enough memory for this. Ask with fewer candidates, or on a larger machine."
    return (
        f"Something happened that was not foreseen ({type(error).__name__}). "
        "The terminal of `defectnet app` says more; please report it with your files."
    )


def _answer(out: Connection, name: str, request: dict[str, Any], folder: str) -> None:
    """Answer one question, in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this
    for variable in {"DEFECTNET_CACHE", "XDG_CACHE_HOME"} & os.environ.keys():
        os.environ[variable] = os.path.abspath(os.environ[variable])
    os.chdir(folder)  # so that errors name files as the user does
    try:
        from defectnet.app import work

        def progress(what: str, done: int = 0, total: int | None = None) -> None:
            out.send(("progress", (what, done, total)))

        def part(kind: str, values: Any) -> None:
            out.send(("part", (kind, values)))

        work.WORK[name](request, work.Tell(progress, part))
        out.send(("done", ""))
    except BrokenPipeError:
        sys.exit(1)  # the server is gone
    except BaseException as error:  # whatever it is, the page says it in one sentence
        if not isinstance(error, DefectNetError):
            traceback.print_exc()
        out.send(("failed", sentence(error)))
