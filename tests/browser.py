"""A headless browser, and the page served to it."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from defectnet.app.jobs import Jobs
from defectnet.app.server import create_app, prepare

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
REQUIRED = "DEFECTNET_BROWSER_TESTS"
"""Variable of the environment; with the value ``required`` a missing browser is a failure."""


def program() -> str:
    """Return the browser, or skip the test, saying why."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        told = "no chromium: on Debian `apt-get install chromium`"
        pytest.fail(told) if os.environ.get(REQUIRED) == "required" else pytest.skip(told)
    return found


class Served:
    """The page on a free port, in this process; its questions run in processes of their own."""

    def __init__(self, example: Path, at_once: dict[str, int]) -> None:
        self.jobs = Jobs(at_once)
        app = create_app(self.jobs, prepare(self.jobs, example))
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server has ended"
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(20.0)


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """A browser with an empty profile."""
    executable = program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        opened = play.chromium.launch_persistent_context(
            str(folder),
            executable_path=executable,
            headless=True,
            args=FLAGS,
            accept_downloads=True,
            reduced_motion="reduce",  # a moving bar is drawn by the processor that computes the answer
        )
        opened.set_default_timeout(240_000.0)
        yield opened
        opened.close()
