"""The artifact server over real sockets: whole files and parts, validators, and nothing that was not asked for."""

import hashlib
import http.client
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests

from cloud_registry.ports import ProofTerms
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.model import ModelManifest
from tests.unit.registry.registry_models import IDENTITY, ROWS, linear_onnx, save_arrays
from tests.wire.registry.conftest import RunningServer, wait_until

pytestmark = pytest.mark.wire

Serve = Callable[..., RunningServer]


@pytest.fixture
def large(models: ModelService, tmp_path: Path) -> tuple[ModelManifest, bytes]:
    """A model of four megabytes, no two blocks of which are alike."""
    weights = np.random.default_rng(7).random((1000, 1000))
    path = linear_onnx(tmp_path / "large.onnx", weights)
    return models.register(Registration("large", (path,))).manifest, path.read_bytes()


@pytest.fixture
def small(models: ModelService, tmp_path: Path) -> tuple[ModelManifest, bytes]:
    path = linear_onnx(tmp_path / "small.onnx", IDENTITY)
    sample = save_arrays(tmp_path / "sample.npz", input_x=ROWS)
    return models.register(Registration("small", (path,), ProofTerms(sample=sample))).manifest, path.read_bytes()


def get(server: RunningServer, target: str, method: str = "GET", **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    verify = str(server.ca_file) if server.ca_file else True
    return requests.request(method, server.url + target, headers=named, verify=verify, timeout=20)


def test_a_device_fetches_a_model_and_its_golden_set(serve: Serve, small: tuple[ModelManifest, bytes]):
    manifest, content = small
    server = serve("--no-controller")
    assert server.url.startswith("https://")
    answer = get(server, "small/1/model.onnx")
    assert (answer.status_code, answer.content) == (200, content)
    assert {name: answer.headers[name] for name in ("ETag", "Content-Length", "Accept-Ranges", "Content-Type")} == {
        "ETag": f'"{manifest.artifacts[0].digest}"',
        "Content-Length": str(len(content)),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    assert manifest.golden is not None
    golden = get(server, manifest.golden.target)
    assert "sha256:" + hashlib.sha256(golden.content).hexdigest() == manifest.golden.digest
    head = get(server, "small/1/model.onnx", "HEAD")
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(len(content)))
    health = requests.get(server.url.replace("artifacts/", "healthz"), verify=str(server.ca_file), timeout=20)
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    assert server.stop() == 0


def test_parts_are_slices_and_validators_are_the_digest(serve: Serve, large: tuple[ModelManifest, bytes]):
    manifest, content = large
    server, target, tag = serve("--no-controller"), "large/1/model.onnx", f'"{manifest.artifacts[0].digest}"'
    size = len(content)
    for start, stop in ((0, 1), (0, size), (size - 1, size), (262143, 262145), (1_000_000, 3_000_001)):
        answer = get(server, target, Range=f"bytes={start}-{stop - 1}", If_Range=tag)
        assert answer.status_code == 206
        assert answer.content == content[start:stop]
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
        assert answer.headers["Content-Length"] == str(stop - start)
    assert get(server, target, Range="bytes=-5").content == content[-5:]
    changed = get(server, target, Range="bytes=5-", If_Range='"sha256:old"')
    assert (changed.status_code, changed.content) == (200, content)
    beyond = get(server, target, Range=f"bytes={size}-")
    assert (beyond.status_code, beyond.content, beyond.headers["Content-Range"]) == (416, b"", f"bytes */{size}")
    known = get(server, target, If_None_Match=tag)
    assert (known.status_code, known.content, known.headers["ETag"]) == (304, b"", tag)
    head = get(server, target, "HEAD", Range="bytes=0-9")
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (206, b"", "10")


def test_many_devices_download_at_once_and_all_get_the_same(serve: Serve, large: tuple[ModelManifest, bytes]):
    _, content = large
    server, target, devices = serve("--no-controller"), "large/1/model.onnx", 24

    def download(number: int) -> bytes:
        # As after a cut: the first part, then the rest from there.
        at = 100_000 + number * 12_345
        first = get(server, target, Range=f"bytes=0-{at - 1}").content
        return first + get(server, target, Range=f"bytes={at}-").content

    with ThreadPoolExecutor(devices) as pool:
        digests = {hashlib.sha256(whole).hexdigest() for whole in pool.map(download, range(devices))}
    assert digests == {hashlib.sha256(content).hexdigest()}


NOWHERE = [
    "small/2/model.onnx",
    "small/1/model.tflite",
    "small/1/",
    "small/1/model.onnx/",
    "Small/1/model.onnx",
    "",
    "../catalog.db",
    "small/1/../1/model.onnx",
    "%2e%2e/catalog.db",
    "..%2fcatalog.db",
    "/etc/passwd",
    "//etc/passwd",
    "small/1/model.onnx%00",
    "small/1/model.onnx?x=" + "y" * 10,
    "x" * 5000,
    "caf%C3%A9/1/model.onnx",
    "%ff/1/model.onnx",
]


def raw_get(server: RunningServer, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    """A request whose path no client has tidied up."""
    place = urlsplit(server.url)
    assert place.hostname is not None
    context = ssl.create_default_context(cafile=str(server.ca_file))
    connection = http.client.HTTPSConnection(place.hostname, place.port, timeout=20, context=context)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_what_is_not_in_the_catalog_cannot_be_had_by_any_spelling(
    serve: Serve, small: tuple[ModelManifest, bytes], home: Path
):
    server = serve("--no-controller")
    (home / "artifacts" / "secret").write_text("secret")
    (home / "artifacts" / "blobs" / "secret").write_text("secret")
    for path in [*NOWHERE, "secret", "blobs/secret", "../secret"]:
        status, kind, body = raw_get(server, "/artifacts/" + path)
        if path.startswith("small/1/model.onnx?"):
            assert (status, body) == (200, small[1])
            continue
        assert (status, kind) == (404, "application/json"), path
        assert b"error" in body
        assert b"secret" not in body.replace(path.encode(), b"")
    assert raw_get(server, "/")[0] == 404
    assert raw_get(server, "/artifacts/small/1/model.onnx", "POST")[:2] == (405, "application/json")
    assert raw_get(server, "/artifacts/small/1/model.onnx", "DELETE")[0] == 405


def test_a_deleted_version_is_gone_and_the_others_are_not(
    serve: Serve, models: ModelService, small: tuple[ModelManifest, bytes], large: tuple[ModelManifest, bytes]
):
    server = serve("--no-controller")
    assert get(server, "small/1/model.onnx").status_code == 200
    models.delete(small[0].reference, None)
    gone = get(server, "small/1/model.onnx", If_None_Match="*")
    assert (gone.status_code, gone.json()["error"]) == (404, "there is no artifact 'small/1/model.onnx'")
    assert get(server, "large/1/model.onnx").content == large[1]


def test_a_blob_that_is_not_whole_is_an_error_and_no_short_answer(
    serve: Serve, small: tuple[ModelManifest, bytes], home: Path
):
    digits = small[0].artifacts[0].digest.removeprefix("sha256:")
    blob = home / "artifacts" / "blobs" / "sha256" / digits[:2] / digits
    blob.write_bytes(small[1][:-1])
    server = serve("--no-controller")
    size = len(small[1])
    answer = get(server, "small/1/model.onnx")
    words = f"the store holds {size - 1} bytes for small/1/model.onnx; the catalog says {size} bytes"
    told = {"error": words, "hint": "", "kind": "RegistryError", "exitCode": 1}
    assert (answer.status_code, answer.json()) == (500, told)
    blob.unlink()
    assert get(server, "small/1/model.onnx").status_code == 500


def test_a_server_that_is_stopped_in_a_download_ends_well_and_the_download_is_resumed(
    serve: Serve, large: tuple[ModelManifest, bytes]
):
    manifest, content = large
    server = serve("--no-controller")
    with requests.get(server.url + "large/1/model.onnx", stream=True, verify=str(server.ca_file), timeout=20) as answer:
        have = answer.raw.read(100_000)
        # The client reads no further, so the server cannot finish; it waits for it a while and then ends.
        assert server.stop() == 0
    again = serve("--no-controller")
    rest = get(again, "large/1/model.onnx", Range=f"bytes={len(have)}-", If_Range=f'"{manifest.artifacts[0].digest}"')
    assert rest.status_code == 206
    assert have + rest.content == content


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_stop_stops_with_exit_code_0(number: int, serve: Serve):
    server = serve()
    assert get(server, "none/1/model.onnx").status_code == 404
    assert server.stop(number) == 0


def test_without_a_certificate_it_serves_plain_http(serve: Serve, small: tuple[ModelManifest, bytes]):
    server = serve("--no-controller", tls=False)
    assert server.url.startswith("http://")
    assert get(server, "small/1/model.onnx").content == small[1]


def test_a_port_in_use_is_said_in_one_sentence(
    slipway: Callable[..., subprocess.CompletedProcess[str]], environment: dict[str, str]
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = slipway("serve", "--port", port, "--no-controller")
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == (
        f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
        "Choose another --port (0 takes a free one), or stop what listens there.\n"
    )


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it counts open files in /proc")
def test_downloads_leave_no_file_open(serve: Serve, large: tuple[ModelManifest, bytes]):
    server = serve("--no-controller")

    def open_blobs() -> list[str]:
        links = Path(f"/proc/{server.process.pid}/fd").iterdir()
        targets = [str(link.readlink()) for link in links if link.is_symlink()]
        return [target for target in targets if "/blobs/" in target]

    for number in range(5):
        get(server, "large/1/model.onnx", "HEAD")
        get(server, "large/1/model.onnx", Range=f"bytes={number}-{number + 9}")
    # The server closes a file after the answer has left, so the client may be here first.
    wait_until(lambda: open_blobs() == [])
