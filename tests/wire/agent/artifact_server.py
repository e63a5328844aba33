"""An artifact server for tests: files by target over HTTP with single ranges, and the faults of a bad line."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class ArtifactServer:
    """Serves ``/artifacts/{target}``. Faults are attributes that a test sets; `requests` tells what was asked for."""

    def __init__(self, address: str) -> None:
        self.files: dict[str, bytes] = {}
        # (target, Range header or "") in order of arrival.
        self.requests: list[tuple[str, str]] = []
        # Target -> how many bytes of one answer are sent before the connection is cut; once each.
        self.cuts: dict[str, int] = {}
        # Target -> bytes sent in place of the file's, under the file's own ETag.
        self.corrupt: dict[str, bytes] = {}
        # Targets that are answered only in part until `release` is set.
        self.held: set[str] = set()
        self.release = threading.Event()
        self._server = ThreadingHTTPServer((address, 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}/artifacts/"

    def stop(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                target = unquote(self.path.partition("?")[0].removeprefix("/artifacts/"))
                asked = self.headers.get("Range", "")
                server.requests.append((target, asked))
                if target not in server.files:
                    self.send_error(404)
                    return
                server.answer(self, target, asked)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                return

        return Handler

    def answer(self, handler: BaseHTTPRequestHandler, target: str, asked: str) -> None:
        whole = self.files[target]
        etag = f'"sha256:{hashlib.sha256(whole).hexdigest()}"'
        content = self.corrupt.get(target, whole)
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        is_range = bool(asked) and handler.headers.get("If-Range", etag) == etag
        body = content[first:] if is_range else content
        handler.send_response(206 if is_range else 200)
        if is_range:
            handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if target in self.held:
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            self.release.wait(60)
            body = body[len(body) // 2 :]
        cut = self.cuts.pop(target, None)
        if cut is not None:
            handler.wfile.write(body[:cut])
            handler.close_connection = True
            return
        handler.wfile.write(body)
