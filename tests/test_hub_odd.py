"""A server that answers with anything but what the Hub would, or not at all, is one error."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest

from conftest import make_random_batch
from defectnet.errors import CheckpointError, ShardError
from defectnet.hub import from_pretrained, push_checkpoint, remote, save

COMMIT = "0123456789abcdef" * 2 + "01234567"


def info(**fields: Any) -> bytes:
    return json.dumps({"id": "lab/tiny", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}], **fields}).encode()


ANSWERS: dict[str, tuple[int, bytes]] = {
    "goes round in circles": (302, b""),
    "a list": (200, b"[1, 2]"),
    "nothing": (200, b""),
    "null": (200, b"null"),
    "a number": (200, b"7"),
    "prose": (200, b"hello"),
    "an empty object": (200, b"{}"),
    "no commit": (200, b'{"id": "lab/tiny", "siblings": []}'),
    "a number for a commit": (200, info(sha=7)),
    "a path for a commit": (200, info(sha="../../../evil")),
    "files that are none": (200, info(siblings=[1, 2])),
    "teapot": (418, b"\xff\xfe"),
}


class Handler(BaseHTTPRequestHandler):
    answer: tuple[int, bytes]

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", self.path)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_POST = do_GET  # noqa: N815


@pytest.fixture
def answers(request, monkeypatch) -> Iterator[None]:
    """A server on loopback that always gives the same answer."""
    handler = type("Same", (Handler,), {"answer": ANSWERS[request.param]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tiny_model, tmp_path):
    return save(tiny_model("PaperDefectNet"), tmp_path / "tiny", golden=make_random_batch(2), card="# x", training={})


def one_error(found: pytest.ExceptionInfo[CheckpointError], message: str) -> None:
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("answers", ANSWERS, indirect=True)
def test_an_answer_that_makes_no_sense_is_one_error(answers, folder, tmp_path):
    cache = tmp_path / "a" / "b" / "cache"
    for revision in (None, COMMIT):
        with pytest.raises(CheckpointError) as found:
            from_pretrained("lab/tiny", revision=revision, cache_dir=cache)
        one_error(found, "could not be fetched")
    with pytest.raises(CheckpointError) as found:
        push_checkpoint(folder, "lab/tiny", token="hf_x", tag="v1")
    one_error(found, "could not be written")
    assert not list(tmp_path.rglob("evil"))


def test_a_server_that_never_answers_is_given_up(folder, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(remote, "READING", 0.2)
        monkeypatch.setattr(remote, "WRITING", 0.2)
        with pytest.raises(CheckpointError, match=r"was not fetched .*timed out"):
            from_pretrained("lab/tiny", cache_dir=tmp_path)
        with pytest.raises(CheckpointError, match=r"could not be written .*timed out"):
            push_checkpoint(folder, "lab/tiny", token="hf_x")


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "golden.safetensors"])
def test_links_are_not_published(folder, tmp_path, name):
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to .*secret. Put the file itself there"):
        push_checkpoint(folder, "lab/tiny", token="hf_x")


def test_links_in_a_data_set_are_not_published(tmp_path):
    from defectnet.data.source import push_dataset
    from make_shards import toy_folder

    data = toy_folder(tmp_path / "data", train=2, val=1, test=1, shards=1)
    (tmp_path / "secret").write_text("x")
    (data / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(ShardError, match=r"README.md is a link to .*secret"):
        push_dataset(data, "lab/pairs", token="hf_x")
