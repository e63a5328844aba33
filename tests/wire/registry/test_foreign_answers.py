"""Whatever answers in place of a registry, or in another edition of it: a sentence and the right exit code."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_registry.adapters import remote_registry
from cloud_registry.adapters.remote_registry import HttpRegistry
from cloud_registry.cli import main
from cloud_registry.errors import ServerUnreachableError

pytestmark = pytest.mark.wire

JSON, EVENTS = "application/json", "application/x-ndjson"


class _Foreign(BaseHTTPRequestHandler):
    status, headers_sent, content = 200, {}, b""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.content)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def answers(status: int, kind: str, content: bytes, **more: str) -> None:
    _Foreign.status, _Foreign.content = status, content
    _Foreign.headers_sent = {"Content-Type": kind, **{name.replace("_", "-"): value for name, value in more.items()}}


ANSWERS = {
    "a proxy's page": ((200, "text/html", b"<html>Log in</html>"), 4, "cannot be read"),
    "a proxy's page of an error": ((502, "text/html", b"<html>Bad gateway</html>"), 4, "not as a registry does"),
    "a proxy that wants to know who asks": ((401, "text/html", b"who?"), 7, "not as a registry does"),
    "somebody else's refusal": ((403, JSON, b'{"message": "denied"}'), 7, "not as a registry does"),
    "nothing at all": ((200, JSON, b""), 4, "cannot be read"),
    "JSON of something else": ((200, JSON, b'{"hello": 1}'), 4, "cannot be read"),
    "JSON without end": ((200, JSON, b"[" * 100_000), 4, "cannot be read"),
    "a problem without end": ((500, JSON, b"[" * 60_000), 4, "not as a registry does"),
    "a failure that calls itself done": ((400, JSON, b'{"error": "x", "kind": "New", "exitCode": 0}'), 1, "Error: x"),
    "our own failure": ((500, JSON, b'{"error": "the server failed"}'), 1, "the server failed"),
}


@pytest.mark.parametrize("story", ANSWERS)
@pytest.mark.parametrize("command", [("model", "show", "digits:1"), ("model", "delete", "digits:1")], ids=" ".join)
def test_who_answers_otherwise_is_told_from_a_registry(url: str, story: str, command: tuple[str, ...]):
    answer, exit_code, words = ANSWERS[story]
    answers(*answer)
    result = CliRunner().invoke(main, [*command], env={"SLIPWAY_REGISTRY": url, "SLIPWAY_API_KEY": "slipway_x"})
    assert (result.exit_code, result.stdout) == (exit_code, ""), result.stderr
    assert words in result.stderr


def test_a_redirect_is_named_and_not_followed(url: str):
    answers(302, "text/html", b"", Location="https://login.example/")
    result = CliRunner().invoke(main, ["model", "list"], env={"SLIPWAY_REGISTRY": url, "SLIPWAY_API_KEY": "slipway_x"})
    assert result.exit_code == 4
    assert "answered 302 Found and leads to 'https://login.example/'" in result.stderr


@pytest.mark.parametrize("said", ["\xb2", "Wed, 21 Oct 2099 07:28:00 GMT", "-1", "99999999999"])
def test_a_busy_server_is_asked_again_whatever_it_says_of_when(url: str, said: str):
    answers(429, JSON, b"", Retry_After=said)
    slept: list[float] = []
    with pytest.raises(ServerUnreachableError, match="is busy"):
        HttpRegistry(url, "slipway_x", sleep=slept.append).call("GET", "/models/a", {}, None)
    assert max(slept) <= remote_registry.DELAY_MAX_S


EVENT_LINES = {
    "no JSON": b"garbage\n",
    "no object": b"[1]\n",
    "a problem that is none": b'{"problem": 7}\n',
    "an event of another form": b'{"event": 7, "values": 7}\n',
    "nothing": b"\n\n",
}


@pytest.mark.parametrize("story", EVENT_LINES)
def test_a_row_of_events_that_is_none_is_no_success(url: str, story: str):
    answers(200, EVENTS, EVENT_LINES[story])
    with pytest.raises(ServerUnreachableError):
        HttpRegistry(url, "slipway_x").call("POST", "/models", {}, b"{}", lambda *_: None)


def test_what_a_newer_server_tells_besides_is_passed_over(url: str):
    answers(200, EVENTS, b'{"mood": "good"}\n{"event": "on_progress", "values": [1]}\n{"result": 7}\n')
    heard: list[object] = []
    result = HttpRegistry(url, "slipway_x").call("POST", "/m", {}, b"{}", lambda *event: heard.append(event))
    assert (result, heard) == (b"7", [("on_progress", [1])])


UPLOADS = {
    "of another form": b'{"hello": 1}',
    "that begins before its begin": b'{"id": "a", "offset": -1, "isWhole": false}',
    "that never gets on": b'{"id": "a", "offset": 0, "isWhole": false}',
}


@pytest.mark.parametrize("story", UPLOADS)
def test_an_upload_ends(url: str, story: str, tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    answers(200, JSON, UPLOADS[story])
    with pytest.raises(ServerUnreachableError):
        HttpRegistry(url, "slipway_x", sleep=lambda _: None).upload(tmp_path / "model.onnx")
