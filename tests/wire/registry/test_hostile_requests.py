"""Requests that no client of ours sends: each is answered with a sentence, none with a failure of the server."""

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from jsonschema import Draft202012Validator

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.service.registration import Registration
from cloud_registry.service.served import ServedModels
from cloud_registry.service.verbs import VERBS
from cloud_registry.web import bounded_head
from cloud_registry.web.verb_routes import LONG_THREADS_MAX
from tests.postgresql import PostgresqlServer
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.wire.registry.served import Served, serving

pytestmark = pytest.mark.wire

NESTED = b"[" * 100_000
HUGE = 10**30


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("hostile") / "home"
    config = read_config(home, {})
    if request.param == "postgresql":
        postgresql: PostgresqlServer = request.getfixturevalue("postgresql")
        config = replace(config, database_url=postgresql.empty_database())
    with serving(home, config) as running:
        model = linear_onnx(home.parent / "digits.onnx", IDENTITY)
        wiring.open_models(config).register(Registration("digits", (model,)))
        yield running


# Method, path below /api/v1, role, body.
REQUESTS: list[tuple[str, str, str, bytes | None]] = [
    ("GET", f"/models/digits:{HUGE}", "reader", None),
    ("GET", f"/models/digits:{HUGE}/lineage", "reader", None),
    ("PATCH", f"/models/digits:{HUGE}/tags", "publisher", b'{"changes": {}, "removed": []}'),
    ("PATCH", "/models/digits:1/tags", "publisher", b'{"changes": {"a\\u0000": "b"}, "removed": []}'),
    ("PATCH", "/models/digits:1/tags", "publisher", b'{"changes": {"a": "\\u001b[2J"}, "removed": []}'),
    ("PATCH", "/models/digits:1/tags", "publisher", b'{"changes": {"a": "\\ud800"}, "removed": []}'),
    ("PATCH", "/models/digits:1/properties", "publisher", b'{"properties": {"a": "\\n"}}'),
    ("POST", "/models/history", "reader", b'{"query": {"limit": 99999999999999999999}}'),
    ("POST", "/models/search", "reader", b'{"query": {"where": "' + b"(" * 50_000 + b'"}}'),
    ("POST", "/rollouts/r-1/pause", "operator", b'{"reason": "\\u0000"}'),
    ("POST", "/rollouts/r-1/abort", "operator", b'{"reason": "' + b"x" * 100_000 + b'"}'),
    ("POST", "/rollouts/r-1/rollback", "operator", b'{"request": {"reason": "\\u001b"}}'),
    ("GET", "/rollouts/a%00b", "reader", None),
    ("GET", f"/rollouts/r-1/events?after={HUGE}", "reader", None),
    ("GET", f"/telemetry/readings?limit={HUGE}", "reader", None),
    ("GET", "/telemetry/readings?device=%00", "reader", None),
    ("POST", "/uploads", "publisher", json.dumps({"digest": "sha256:" + "a" * 64, "size": -1}).encode()),
    ("POST", "/uploads", "publisher", NESTED),
    *((verb.method, verb.path, str(verb.role), NESTED) for verb in VERBS if verb.method not in ("GET", "DELETE")),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: f"{each[0]} {each[1][:40]} {str(each[3])[:30]}")
def test_a_hostile_request_is_answered_with_a_sentence(server: Served, request_: tuple[str, str, str, bytes | None]):
    method, path, role, body = request_
    words = {"text": "digits:1", "reference": "digits:1", "rollout_id": "r-1", "name": "digits", "alias": "best"}
    answer = server.ask(method, "/api/v1" + path.format(**words), role, data=body)
    # PostgreSQL refuses what SQLite only does not find.
    found_nothing = answer.status_code == 200 and answer.content in (b"", b"[]")
    assert 400 <= answer.status_code < 500 or found_nothing, answer.text
    assert found_nothing or set(answer.json()) == {"error", "hint", "kind", "exitCode"}


@pytest.mark.parametrize("target", ["a%00b", "%00", "..%2f..%2fcatalog.db", "x" * 5000, "%ff%fe", "digits:1"])
def test_a_target_that_nothing_can_have_is_not_there(server: Served, target: str):
    assert server.ask("GET", "/artifacts/" + target, "reader").status_code in (400, 404)
    assert server.ask("GET", "/artifacts/" + target, "device").status_code == 403


def test_a_piece_is_put_where_the_upload_stands_and_nowhere_else(server: Served):
    digest = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    begun = server.ask("POST", "/api/v1/uploads", "publisher", json={"digest": digest, "size": 5}).json()
    path = "/api/v1/uploads/" + begun["id"]

    def send(content: bytes, offset: str | bytes) -> int:
        return server.ask("PATCH", path, "publisher", data=content, headers={"Upload-Offset": offset}).status_code

    assert [send(b"hello", offset) for offset in ("", "x", "-1", b"\xb2", "9" * 30, "0, 0")] == [400] * 6
    assert (send(b"hello", "1"), send(b"hellohello", "0")) == (409, 413)
    assert send(b"hellX", "0") == 422
    assert server.ask("GET", path, "publisher").status_code == 404


BODIES = {
    "models.search": {"query": {}},
    "models.history": {"query": {}},
    "models.tag": {"changes": {"a": "b"}, "removed": []},
    "models.add_properties": {"properties": {"a": "b"}},
}


def test_every_answer_is_as_the_description_says(server: Served):
    document = server.ask("GET", "/openapi.json").json()
    words = {"reference": "digits:1", "name": "digits", "alias": "best", "rollout_id": "r-1"}
    words |= {"target": "digits/1/model.onnx", "file": "root.json", "id": "0" * 32}
    words |= {"digest": "sha256:" + "0" * 64, "key_id": "0" * 12}
    served = 0
    for path, method, operation in (
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method not in ("parameters", "delete")
    ):
        said = operation.get("description", "").removeprefix("Takes the role ").rstrip(".")
        role = said or ("publisher" if "/uploads" in path else "reader")
        body = {} if method == "get" else {"json": BODIES.get(operation.get("operationId"), {})}
        answer = server.ask(method.upper(), path.format(**words), role, **body)
        described = operation["responses"].get(str(answer.status_code)) or operation["responses"]["default"]
        kind = answer.headers["Content-Type"].partition(";")[0]
        assert kind in described["content"], (path, method, answer.status_code)
        if kind == "application/json":
            schema = described["content"][kind].get("schema", {})
            Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json())
        served += answer.status_code == 200
    assert served >= 12


def test_no_redirect_and_no_such_address(server: Served):
    """A redirect would name the host that the request named, whoever's it is."""
    for path in ("/api/v1/rollouts/", "/healthz/", "/artifacts"):
        answer = requests.get(server.url + path, headers={"Host": "evil.example"}, allow_redirects=False, timeout=20)
        assert (answer.status_code, answer.json()["exitCode"]) == (404, 1)
        assert f"this server answers no GET {path}" in answer.json()["error"]
    assert requests.put(server.url + "/api/v1/rollouts", timeout=20).status_code == 405


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: "], ids=["nothing", "half a head"])
def test_a_head_that_never_ends_is_not_waited_for(server: Served, sent: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded_head, "HEAD_TIMEOUT_S", 0.2)
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as line:
        # The second head of a connection is bounded as well.
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" if sent else b"")
        assert not sent or line.recv(65536).startswith(b"HTTP/1.1 200")
        line.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(65536) == b""


def test_a_body_may_come_more_slowly_than_a_head(server: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded_head, "HEAD_TIMEOUT_S", 0.1)
    paused = threading.Event()

    def parts() -> Iterator[bytes]:
        yield b'{"query": '
        paused.wait(0.4)
        yield b"{}}"

    assert server.ask("POST", "/api/v1/models/search", "reader", data=parts()).status_code == 200


def test_whoever_is_not_let_in_hears_so_while_registrations_go_on(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    is_over, begun = threading.Event(), threading.Semaphore(0)

    def waiting(*_: object, **__: object) -> None:
        begun.release()
        assert is_over.wait(20)
        raise ValueError("enough")

    monkeypatch.setattr(ServedModels, "register", waiting)
    body = {"registration": {"name": "digits", "files": [], "terms": {}, "facts": {}}}
    busy = [
        threading.Thread(target=server.ask, args=("POST", "/api/v1/models", "publisher"), kwargs={"json": body})
        for _ in range(LONG_THREADS_MAX)
    ]
    for thread in busy:
        thread.start()
        assert begun.acquire(timeout=20)
    try:
        assert requests.post(server.url + "/api/v1/models", json=body, timeout=5).status_code == 401
        assert server.ask("POST", "/api/v1/models", "reader", json=body).status_code == 403
    finally:
        is_over.set()
        for thread in busy:
            thread.join(20)
