"""Registries to push to: one of ours that keeps to the specification and fails as it is told, and Debian's real one."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

DEADLINE_S = 15.0


class FaultyRegistry(ThreadingHTTPServer):
    """A registry in memory. `faults` are answers instead of the right one, each used once, by method and path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[tuple[str, str, Any]] = []
        self.received_bytes = 0
        self.token = ""
        self.login = ""
        self.lists_referrers = False

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def fail(self, method: str, pattern: str, *answers: Any) -> None:
        """Answer the next requests of this kind so.

        A status, (status, headers), "cut upload", minus a number of bytes to cut an answer after; or something to call
        before the right answer is given.
        """
        self.faults += [(method, pattern, answer) for answer in answers]

    def fault(self, method: str, path: str) -> Any:
        for number, (wanted, pattern, answer) in enumerate(self.faults):
            if wanted == method and re.search(pattern, path):
                del self.faults[number]
                return answer
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a test cuts is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyRegistry

    def log_message(self, *_args: Any) -> None:
        pass

    def _serve(self) -> None:
        self.server.requests.append((self.command, self.path))
        path = urlsplit(self.path).path
        if path == "/token":
            self._token()
            return
        fault = self.server.fault(self.command, self.path)
        if isinstance(fault, str) and fault == "cut upload":
            # Half of it arrives, and then the line is dead.
            upload = path.rsplit("/", 1)[-1]
            half = self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.server.uploads[upload] += half
            self.server.received_bytes += len(half)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if callable(fault):
            fault = fault()
        if isinstance(fault, int) and fault < 0:
            self._answer_blob(path.rsplit("/", 1)[-1], cut_after=-fault)
            return
        if fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self._answer(status, b'{"errors":[{"code":"X","message":"told to fail"}]}', headers)
            return
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            where = f'Bearer realm="http://{self.server.host}/token",service="here",scope="repository:x:pull,push"'
            self._answer(401, b"{}", {"Www-Authenticate": where})
            return
        getattr(self, f"_{self.command.lower()}")(path, body)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

    def _token(self) -> None:
        if self.server.login and self.headers.get("Authorization") != f"Basic {self.server.login}":
            self._answer(401, b"{}")
        else:
            self._answer(200, json.dumps({"token": self.server.token}).encode())

    def _head(self, path: str, _body: bytes) -> None:
        found = self.server.blobs.get(path.rsplit("/", 1)[-1])
        self._answer(404 if found is None else 200)

    def _get(self, path: str, _body: bytes) -> None:
        last = path.rsplit("/", 1)[-1]
        if "/blobs/uploads/" in path:
            if last not in self.server.uploads:
                self._answer(404, b"{}")
                return
            done = len(self.server.uploads[last])
            self._answer(204, headers={"Location": self.path, "Range": f"0-{max(done - 1, 0)}"})
        elif "/blobs/" in path:
            self._answer_blob(last)
        elif "/referrers/" in path:
            if not self.server.lists_referrers:
                self._answer(404, b"404 page not found")
                return
            found = [
                {"mediaType": kind, "digest": digest, "size": len(content), "artifactType": artifact}
                for digest, (kind, content) in self.server.manifests.items()
                if digest.startswith("sha256:")
                and (value := json.loads(content)).get("subject", {}).get("digest") == last
                and (artifact := value["artifactType"])
            ]
            self._answer(200, json.dumps({"manifests": found}).encode())
        elif last in self.server.manifests:
            kind, content = self.server.manifests[last]
            self._answer(200, content, {"Content-Type": kind})
        else:
            self._answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')

    def _post(self, path: str, _body: bytes) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if query.get("mount", [""])[0] in self.server.blobs:
            self._answer(201)
            return
        upload = f"u{len(self.server.requests)}"
        self.server.uploads[upload] = b""
        self._answer(202, headers={"Location": f"{path}{upload}?state=1"})

    def _patch(self, path: str, body: bytes) -> None:
        upload = path.rsplit("/", 1)[-1]
        if upload not in self.server.uploads:
            self._answer(404, b"{}")
            return
        start = int(self.headers["Content-Range"].partition("-")[0])
        if start != len(self.server.uploads[upload]):
            self._answer(416, b"{}")
            return
        self.server.uploads[upload] += body
        self.server.received_bytes += len(body)
        self._answer(202, headers={"Location": f"{path}?state=2"})

    def _delete(self, path: str, _body: bytes) -> None:
        known = self.server.uploads.pop(path.rsplit("/", 1)[-1], None)
        self._answer(404 if known is None else 204)

    def _put(self, path: str, body: bytes) -> None:
        last = path.rsplit("/", 1)[-1]
        if "/blobs/uploads/" in path:
            digest = parse_qs(urlsplit(self.path).query)["digest"][0]
            if last not in self.server.uploads:
                self._answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"blob upload unknown"}]}')
                return
            content = self.server.uploads.pop(last) + body
            if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
                self._answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"digest invalid"}]}')
                return
            self.server.blobs[digest] = content
            self._answer(201)
            return
        value = json.loads(body)
        blobs = [value.get("config"), *value.get("layers", ())]
        missing = [blob for blob in blobs if blob and blob["digest"] not in self.server.blobs]
        missing += [one for one in value.get("manifests", ()) if one["digest"] not in self.server.manifests]
        if missing:
            self._answer(404, b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown"}]}')
            return
        kind, digest = self.headers["Content-Type"], "sha256:" + hashlib.sha256(body).hexdigest()
        self.server.manifests[digest] = self.server.manifests[last] = (kind, body)
        subject = value.get("subject", {}).get("digest")
        self._answer(201, headers={"OCI-Subject": subject} if subject and self.server.lists_referrers else {})

    def _answer_blob(self, digest: str, cut_after: int = 0) -> None:
        content = self.server.blobs.get(digest)
        if content is None:
            self._answer(404, b"{}")
            return
        first = int((self.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        rest = content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if cut_after:
            self.wfile.write(rest[:cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextlib.contextmanager
def faulty_registry() -> Iterator[FaultyRegistry]:
    server = FaultyRegistry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def required(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or fails where CI has to have it."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        message = f"{name} is not installed (Debian: {package})"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@contextlib.contextmanager
def debian_registry(folder: Path) -> Iterator[str]:
    """Debian's docker-registry on a port of its own; gives host and port."""
    program = required("docker-registry", "docker-registry")
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{chosen.getsockname()[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\n"
        f"http: {{addr: '{host}'}}\n"
    )
    process = subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(tuple(host.split(":")), timeout=1):
                break
            assert process.poll() is None, "docker-registry ended at once"
            assert time.monotonic() < deadline, "docker-registry did not start"
            time.sleep(0.02)
        yield host
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
