"""A server on loopback that speaks as much of the Hugging Face Hub as publishing and loading need, from memory.

Standard library only. Repositories, tokens and the requests that came in are plain attributes, for a test to set and to
look at.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = ("*.safetensors", "*.parquet")
"""Files that the Hub keeps apart from git (LFS), as its default .gitattributes says."""


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """git's hash of what git itself keeps: the content, or the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        data = pointer.encode() if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Commits in their order, and what points at them. `closed` is the error that readers get: (status, code)."""

    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    private: bool = False
    closed: tuple[int, str] | None = None

    def commit(self, files: dict[str, File], message: str = "a commit") -> str:
        text = json.dumps([len(self.commits), message, {path: item.sha256 for path, item in sorted(files.items())}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.refs["main"] = sha
        self.messages.append(message)
        return sha

    def files(self, path: str = "main") -> dict[str, File]:
        return self.commits[self.refs.get(path, path)]


class RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        super().__init__(message or code or str(status))
        self.status, self.code, self.more = status, code, more


class HubServer(ThreadingHTTPServer):
    """The server; `with HubServer() as server:` runs it.

    Args:
        lfs: Whether large files go by the LFS protocol; otherwise everything is inside the commit.
    """

    daemon_threads = True

    def __init__(self, *, lfs: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)  # port 0: any free one
        self.lfs = lfs
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}  # (models or datasets, org/name) -> repository
        self.writers = {"hf_writer"}
        self.readers = {"hf_reader"}
        self.requests: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.connections: list[socket.socket] = []
        self.lock = threading.Lock()

    def __enter__(self) -> HubServer:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From here on nobody listens, and connections that the client kept open are cut."""
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
            self.server_close()
            for connection in self.connections:
                with contextlib.suppress(OSError):  # the client has closed it already
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def add(self, name: str, files: dict[str, bytes], kind: str = "models") -> Repo:
        """Put a repository there that nobody pushed."""
        repo = self.repos[kind, name] = Repo()
        repo.commit({path: File(data, self.is_large(path)) for path, data in files.items()})
        return repo

    def is_large(self, path: str) -> bool:
        return self.lfs and any(fnmatch.fnmatch(path, pattern) for pattern in LARGE)


NAME = r"(?P<name>[^/]+/[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{NAME}"
ROUTES = {
    ("POST", r"/api/repos/create"): "create",
    ("POST", r"/api/validate-yaml"): "validate",
    ("POST", rf"{API}/preupload/(?P<rev>[^/]+)"): "preupload",
    ("POST", rf"/(?:(?P<kind>datasets)/)?{NAME}\.git/info/lfs/objects/batch"): "batch",
    ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})"): "upload",
    ("POST", rf"{API}/commit/(?P<rev>[^/]+)"): "commit",
    ("POST", rf"{API}/tag/(?P<rev>[^/]+)"): "tag",
    ("GET", API): "info",
    ("GET", rf"{API}/revision/(?P<rev>[^/]+)"): "info",
    ("GET", rf"{API}/tree/(?P<rev>[^/]+)"): "tree",
    ("GET", rf"/(?:(?P<kind>datasets)/)?{NAME}/resolve/(?P<rev>[^/]+)/(?P<path>.+)"): "resolve",
}


class Handler(BaseHTTPRequestHandler):
    """One request: the route's method gets the parts of the address, and returns what is sent as JSON."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def handle_any(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            try:
                self.send(200, self.route(path, body))
            except RefusedError as error:
                told = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
                self.send(error.status, {"error": str(error)} | error.more, told)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def route(self, path: str, body: bytes) -> Any:
        for (method, pattern), name in ROUTES.items():
            match = re.fullmatch(pattern, path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value}
                if "name" in match.groupdict():
                    parts.setdefault("kind", "models")
                return getattr(self, name)(body, **parts)
        raise RefusedError(404)

    def send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        if isinstance(answer, tuple):
            answer, headers = answer
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Rights

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def readable(self, kind: str, name: str, rev: str | None = None) -> tuple[Repo, str]:
        """Return a repository and the commit that a revision means."""
        if self.token and self.token not in self.server.writers | self.server.readers:
            raise RefusedError(401, message="Invalid credentials in Authorization header")
        repo = self.server.repos.get((kind, name))
        known = self.token in self.server.writers | self.server.readers
        if repo is None or (repo.private and not known):
            raise RefusedError(404 if known else 401, "RepoNotFound", "Repository not found")
        if repo.closed:
            raise RefusedError(*repo.closed)
        sha = repo.refs.get(rev or "main", rev)
        if sha not in repo.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return repo, sha

    def may_write(self) -> None:
        if self.token not in self.server.writers:
            known = self.token in self.server.readers
            raise RefusedError(
                403 if known else 401, message="This token may only read" if known else "Invalid credentials"
            )

    # Writing

    def create(self, body: bytes) -> Any:
        self.may_write()
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        kind = f"{asked.get('type', 'model')}s"
        url = f"{self.server.address}/{'datasets/' if kind == 'datasets' else ''}{name}"
        if (kind, name) in self.server.repos:
            raise RefusedError(409, message=f"You already created this repo: {name}", url=url)
        repo = self.server.add(name, {".gitattributes": b"".join(b"%s filter=lfs\n" % p.encode() for p in LARGE)}, kind)
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return {"url": url, "name": name}

    def validate(self, body: bytes) -> Any:
        whole = json.loads(body)["content"].startswith("---\n")
        return {"errors": [] if whole else [{"message": "no front matter"}], "warnings": []}

    def preupload(self, body: bytes, kind: str, name: str, rev: str) -> Any:
        self.may_write()
        repo, sha = self.readable(kind, name, rev)
        present = repo.files(sha)
        return {
            "files": [
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if self.server.is_large(asked["path"]) else "regular",
                    "shouldIgnore": False,
                    "oid": self.known_oid(present.get(asked["path"])),
                }
                for asked in json.loads(body)["files"]
            ]
        }

    def known_oid(self, item: File | None) -> str | None:
        return None if item is None else item.sha256 if item.lfs else item.oid

    def batch(self, body: bytes, kind: str, name: str) -> Any:
        self.may_write()
        self.readable(kind, name)
        return {
            "transfer": "basic",
            "objects": [
                {**item, "actions": {"upload": {"href": f"{self.server.address}/upload/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ],
        }

    def upload(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, message="the content is not that of its oid")
        self.server.uploads[oid] = body
        return {}

    def commit(self, body: bytes, kind: str, name: str, rev: str) -> Any:
        self.may_write()
        repo, sha = self.readable(kind, name, rev)
        files, message = dict(repo.files(sha)), ""
        for line in body.splitlines():
            step = json.loads(line)
            value = step["value"]
            match step["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]))
                case "lfsFile":
                    files[value["path"]] = File(self.server.uploads[value["oid"]], lfs=True)
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise RefusedError(400, message=f"unknown operation {other}")
        sha = repo.commit(files, message)
        prefix = "datasets/" if kind == "datasets" else ""
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.server.address}/{prefix}{name}/commit/{sha}"}

    def tag(self, body: bytes, kind: str, name: str, rev: str) -> Any:
        self.may_write()
        repo, sha = self.readable(kind, name, rev)
        tag = json.loads(body)["tag"]
        if tag in repo.refs:
            raise RefusedError(409, message=f"Tag {tag} already exists")
        repo.refs[tag] = sha
        return {}

    # Reading

    def info(self, _: bytes, kind: str, name: str, rev: str | None = None) -> Any:
        repo, sha = self.readable(kind, name, rev)
        siblings = [{"rfilename": path} for path in sorted(repo.files(sha))]
        return {"id": name, "sha": sha, "private": repo.private, "siblings": siblings, "tags": [], "downloads": 0}

    def tree(self, _: bytes, kind: str, name: str, rev: str) -> Any:
        repo, sha = self.readable(kind, name, rev)
        return [
            {"type": "file", "path": path, "size": len(item.content), "oid": item.oid}
            | ({"lfs": {"oid": item.sha256, "size": len(item.content), "pointerSize": 130}} if item.lfs else {})
            for path, item in sorted(repo.files(sha).items())
        ]

    def resolve(self, _: bytes, kind: str, name: str, rev: str, path: str) -> Any:
        repo, sha = self.readable(kind, name, rev)
        if path not in repo.files(sha):
            raise RefusedError(404, "EntryNotFound", f"{path} does not exist")
        item = repo.files(sha)[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{item.oid}"'}
        if item.lfs:
            headers |= {"X-Linked-Etag": f'"{item.sha256}"', "X-Linked-Size": str(len(item.content))}
        return item.content, headers
