"""The server of the page: takes files and questions, and hands out answers as they come. It keeps nothing."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import python_multipart  # noqa: F401 - what reads uploads; named here so that its lack is told at once
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from defectnet.app.jobs import Jobs, PageJob, sentence
from defectnet.errors import ConfigError, DefectNetError
from defectnet.files import plain_name

STATIC: Final = Path(__file__).with_name("static")

LARGEST: Final = 20 << 20
"""Bytes of an uploaded file."""

FILES: Final = ("host", "doped", "structure")
"""Files that a question may have one of."""

SAMPLES: Final = 60
"""Spectra of samples of known content, and tables of them, that a question may have."""

LONGEST: Final = 1 << 16
"""Characters of a question, without its files."""

ASKED: Final = ("read", "structure", "samples", "identify", "plan")

NEEDS: Final = ("ase", "matplotlib", "scipy", "spglib", "vesin")
"""Packages that answers need, beside those of the server."""

HEADERS: Final = {
    # The browser itself holds that the page fetches and sends nothing elsewhere.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Guard:
    """Lets in requests to this very page alone, and no body that is too large; adds `HEADERS`."""

    def __init__(self, app: Any, names: frozenset[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        refused = self._refused(Request(scope))
        if refused is None:
            await self.app(scope, receive, with_headers)
        else:
            await _failed(refused[0], refused[1])(scope, receive, with_headers)

    def _refused(self, request: Request) -> tuple[int, str] | None:
        host = request.headers.get("host", "")
        name = re.sub(r":\d+$", "", host)
        if self.names is not None and name not in self.names:  # another site's name that leads here (DNS rebinding)
            return 403, "This page answers to the address that `defectnet app` printed alone. Open that one."
        if request.method == "GET":
            return None
        origin = request.headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "Another page asked. Ask from this one."
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return 411, "The request does not say how long it is. Send a Content-Length."
        if int(length) > len(FILES) * LARGEST + LONGEST:
            return 413, _too_large("What was sent", int(length))
        return None


def _too_large(what: str, size: int) -> str:
    return (
        f"{what} has {size / 1e6:.0f} MB, at most {LARGEST / 1e6:.0f} MB are taken. "
        "A spectrum has far fewer: export energy and DOS alone."
    )


def _failed(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def prepare(jobs: Jobs, example: Path | None = None) -> dict[str, Any]:
    """Load what is slow to load, and return what the page starts with.

    Args:
        jobs: What will run questions.
        example: Folder with host.csv, doped.csv and answer.json in place of the bundled example.

    Raises:
        ConfigError: Questions cannot be run.
    """
    job = jobs.start("start", {"example": None if example is None else str(example.resolve())}, "short")
    while not job.over:
        time.sleep(0.02)
    if job.state != "done":
        raise ConfigError("the page cannot answer questions", why=job.error, fix="Install defectnet[app] anew")
    facts: dict[str, Any] = job.parts[0][1]
    return facts | {"largest": LARGEST}


def create_app(running: Jobs, facts: dict[str, Any], names: frozenset[str] | None = None) -> Starlette:
    """Return the application.

    Args:
        running: What runs questions; ended with the application.
        facts: From `prepare`.
        names: Names of the server that requests may come to; None for any.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        running.close()

    async def page(_: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    async def start(_: Request) -> Response:
        return JSONResponse(facts)

    async def ask(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in ASKED:
            raise HTTPException(404)
        question = await _question(request)
        short = name in ("read", "structure", "samples") or question.get("mode") == "formula"
        job = running.start(name, question, "short" if short else "long")
        return JSONResponse({"id": job.id})

    def found(request: Request) -> PageJob:
        job = running.get(request.path_params["id"])
        if job is None:
            raise HTTPException(
                404, "This question is gone: the server was started anew, or the page slept too long. Ask again."
            )
        return job

    async def state(request: Request) -> Response:
        job = found(request)
        text = request.query_params.get("seen", "0")
        seen = int(text) if text.isdecimal() else 0
        # The state first: parts that come between the two are then asked for again.
        told = {"state": job.state, "error": job.error, "ahead": running.ahead(job), "progress": job.progress}
        return JSONResponse(told | {"parts": job.parts[seen:]})

    async def stop(request: Request) -> Response:
        running.stop(found(request))
        return JSONResponse({})

    async def wrong(_: Request, error: Exception) -> Response:
        return _failed(400, sentence(error))

    async def missing(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        usual = "There is nothing here." if error.status_code == 404 else "This cannot be read. Reload the page."
        return _failed(error.status_code, error.detail if error.detail.endswith(".") else usual)

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/api/start", start),
            Route("/api/jobs/{id}", state),
            Route("/api/jobs/{id}/stop", stop, methods=["POST"]),
            Route("/api/{name}", ask, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        lifespan=lifespan,
        exception_handlers={DefectNetError: wrong, HTTPException: missing},
    )
    app.add_middleware(_Guard, names=names)
    return app


async def _question(request: Request) -> dict[str, Any]:
    """Return the question of a request, with its files.

    Raises:
        ConfigError: It is none, or a file is too large.
    """
    async with request.form(max_files=len(FILES) + SAMPLES, max_fields=1, max_part_size=LONGEST) as form:
        try:
            question = json.loads(str(form.get("question")))
        except (ValueError, RecursionError):
            question = None
        if not isinstance(question, dict):
            raise ConfigError("the question is no JSON object", fix="Reload the page")
        files = {role: await _uploaded(file) for role in FILES if isinstance(file := form.get(role), UploadFile)}
        samples = [await _uploaded(file) for file in form.getlist("sample") if isinstance(file, UploadFile)]
    return question | {"files": files, "samples": samples}


async def _uploaded(file: UploadFile) -> dict[str, Any]:
    """Return name and content of a file.

    Raises:
        ConfigError: It is too large.
    """
    data = await file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ConfigError(
            f"{plain_name(file.filename)} has more than {LARGEST / 1e6:.0f} MB",
            fix="A spectrum has far fewer: export energy and DOS alone",
        )
    return {"name": plain_name(file.filename), "data": data}


def serve(host: str, port: int, ready: Callable[[str], None]) -> None:
    """Run the page until it is interrupted.

    Args:
        host: Name or address to listen at.
        port: Port; 0 for any that is free.
        ready: Called with the address, as soon as it answers.

    Raises:
        ConfigError: The server cannot listen there.
        ModuleNotFoundError: A package is missing.
    """
    for name in NEEDS:
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))  # two questions at a time
    listening = _listen(host, port)
    names = None
    if _is_loopback(host):
        names = frozenset({"localhost", "127.0.0.1", "[::1]", host})
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    jobs = Jobs()
    app = create_app(jobs, prepare(jobs), names)
    server = _Server(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1))
    server.tell = lambda: ready(address)
    server.run(sockets=[listening])


class _Server(uvicorn.Server):
    """Says when it answers."""

    tell: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.tell()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except socket.gaierror as error:
        raise ConfigError(f"--host {host} is not known", fix="Use 127.0.0.1, or an address of this machine") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            f"the page cannot listen at {host}, port {port}",
            why=reason,
            fix="Give another --port, or 0 for any free one",
        ) from error
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
