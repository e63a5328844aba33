"""An artifact server that misbehaves as servers, portals and proxies do; a test gives each target its behaviour."""

import base64
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.wire.agent.artifact_server import ArtifactServer

Behaviour = Callable[[BaseHTTPRequestHandler, bytes], None]


class RoughServer(ArtifactServer):
    """`behaviours` take the place of an ordinary answer for their target."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.behaviours: dict[str, Behaviour] = {}
        super().__init__(address)

    def answer(self, handler: BaseHTTPRequestHandler, target: str, asked: str) -> None:
        behaviour = self.behaviours.get(target)
        if behaviour is None:
            super().answer(handler, target, asked)
        else:
            behaviour(handler, self.files[target])
            handler.close_connection = True

    def count(self, target: str) -> int:
        return [asked for asked, _ in self.requests].count(target)


def head(handler: BaseHTTPRequestHandler, status: int, **headers: object) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def status(code: int) -> Behaviour:
    return lambda handler, content: handler.send_error(code)


def web_page(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """What a hotel's gateway answers to everything."""
    page = b"<html><h1>Welcome! Please log in.</h1></html>"
    head(handler, 200, Content_Type="text/html; charset=utf-8", Content_Length=len(page))
    handler.wfile.write(page)


def whole_only(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """No ranges: 200 and the whole file, whatever was asked for."""
    head(handler, 200, Content_Length=len(content))
    handler.wfile.write(content)


def no_such_range(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    if handler.headers.get("Range"):
        head(handler, 416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
    else:
        whole_only(handler, content)


def other_range(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    if handler.headers.get("Range"):
        head(handler, 206, Content_Range=f"bytes 1-{len(content) - 1}/{len(content)}", Content_Length=len(content) - 1)
        handler.wfile.write(content[1:])
    else:
        whole_only(handler, content)


def endless(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """No length, and no end until the other side has had enough."""
    head(handler, 200)
    try:
        while True:
            handler.wfile.write(b"\0" * 65536)
    except OSError:
        return


def squeezed(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    head(handler, 200, Content_Encoding="gzip", Content_Length=len(content))
    handler.wfile.write(content)


def renamed(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Says by its ETag that it holds another file."""
    head(handler, 200, ETag='"sha256:' + "0" * 64 + '"', Content_Length=len(content))
    handler.wfile.write(content)


def drip(interval_s: float, *, in_head: bool = False) -> Behaviour:
    """Slow-loris turned round: a byte now and then, never so late that a socket would time out."""

    def behave(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        if not in_head:
            head(handler, 200, Content_Length=len(content))
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        try:
            for byte in content:
                handler.wfile.write(b"a" if in_head else bytes([byte]))
                handler.wfile.flush()
                time.sleep(interval_s)
        except OSError:
            return

    return behave


class Proxy:
    """A forward proxy for plain HTTP that wants a user name and a password; `asked` lists the URLs it was asked for."""

    def __init__(self, user: str, password: str) -> None:
        self.asked: list[str] = []
        wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                proxy.asked.append(self.path)
                if self.headers.get("Proxy-Authorization") != wanted:
                    head(self, 407, Proxy_Authenticate="Basic")
                    return
                try:
                    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.path) as answer:
                        content = answer.read()
                except urllib.error.URLError:
                    head(self, 502, Content_Length=0)
                    return
                head(self, 200, Content_Length=len(content))
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = "{}:{}".format(*self._server.server_address[:2])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
