"""HTTP as all of the agent's downloads use it: one certificate authority, one proxy, and no waiting without end."""

import contextlib
import socket
import threading
from collections.abc import Mapping
from http.cookiejar import DefaultCookiePolicy
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

CONNECT_TIMEOUT_S = 10.0
# Between two bytes.
READ_TIMEOUT_S = 30.0
# From the request to the last byte of the answer's head, however slowly the bytes drip.
HEAD_TIMEOUT_S = 60.0
_REDIRECTS_MAX = 5
# The names by which requests and urllib3 call what went wrong on the way, as opposed to on our disk.
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)


class WebClient:
    """Gets URLs. May be used from several threads.

    `proxy` is a URL, with user name and password where the proxy wants them; without it the environment's HTTP_PROXY,
    HTTPS_PROXY and NO_PROXY count. `ca_file` stands in for every other authority.
    """

    def __init__(
        self, ca_file: Path | None = None, proxy: str | None = None, *, head_timeout_s: float = HEAD_TIMEOUT_S
    ) -> None:
        self._proxy = proxy
        self._session = requests.Session()
        self._session.max_redirects = _REDIRECTS_MAX
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _PromptAdapter(head_timeout_s))
        if ca_file is not None:
            self._session.verify = str(ca_file)
            # Otherwise REQUESTS_CA_BUNDLE would win over the file that was configured.
            self._session.trust_env = False

    def get(self, url: str, headers: Mapping[str, str], *, read_timeout_s: float = READ_TIMEOUT_S) -> requests.Response:
        """The answer with its body still to be read; raises one of NETWORK_ERRORS."""
        return self._session.get(
            url,
            headers=dict(headers),
            stream=True,
            timeout=(CONNECT_TIMEOUT_S, read_timeout_s),
            proxies=self._proxies(url),
        )

    def head(self, url: str, timeout_s: float) -> requests.Response:
        return self._session.head(url, timeout=timeout_s, allow_redirects=False, proxies=self._proxies(url))

    def _proxies(self, url: str) -> dict[str, str]:
        if self._proxy:
            return {"http": self._proxy, "https": self._proxy}
        host = urlsplit(url).hostname or ""
        # Asked for here, since a session with its own authority does not look into the environment.
        return {"no_proxy": host} if _is_loopback(host) else get_environ_proxies(url)


def url_of(base: str, target: str) -> str:
    """The URL of a target below a base, whose query (such as an access signature) is kept."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/" + quote(target)))


def host_of(url: str) -> str:
    """The host of a URL for people: neither user name nor query, which may be secrets."""
    return urlsplit(url).netloc.rpartition("@")[2]


def reason_of(err: Exception) -> str:
    """What went wrong on the way to a server, as a clause."""
    if isinstance(err, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        return "its certificate is not trusted"
    if isinstance(err, requests.exceptions.ProxyError | urllib3.exceptions.ProxyError):
        return "the proxy did not let it through"
    if isinstance(err, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "it did not answer in time"
    if isinstance(err, requests.exceptions.ChunkedEncodingError | urllib3.exceptions.ProtocolError):
        return "the connection was cut"
    if isinstance(err, requests.TooManyRedirects):
        return "it sends us from one address to the next"
    return "the connection failed"


def is_web_page(response: requests.Response) -> bool:
    """Whether the answer is a page for people: what a captive portal or a login puts in a file's place."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _PromptAdapter(HTTPAdapter):
    """Cuts a connection whose peer drips the head of its answer byte by byte: each byte restarts a socket's timeout."""

    def __init__(self, head_timeout_s: float) -> None:
        self._pools: dict[str, type[HTTPConnectionPool]] = _prompt_pools(head_timeout_s)
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _prompt_pools(timeout_s: float) -> dict[str, type[HTTPConnectionPool]]:
    class PromptHttp(HTTPConnection):
        def getresponse(self) -> Any:
            with _Deadline(self.sock, timeout_s):
                return super().getresponse()

    class PromptHttps(HTTPSConnection):
        def getresponse(self) -> Any:
            with _Deadline(self.sock, timeout_s):
                return super().getresponse()

    class HttpPool(HTTPConnectionPool):
        ConnectionCls = PromptHttp

    class HttpsPool(HTTPSConnectionPool):
        ConnectionCls = PromptHttps

    return {"http": HttpPool, "https": HttpsPool}


class _Deadline:
    """Ends a connection from another thread when the time is up, which wakes whoever reads from it."""

    def __init__(self, connection: socket.socket | None, timeout_s: float) -> None:
        self._connection = connection
        self._timer = threading.Timer(timeout_s, self._end)
        self._timer.daemon = True
        self._has_passed = False

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._has_passed:
            # Where the head was cut, the parser takes what came for all of it.
            raise TimeoutError("the head of the answer did not come in time")

    def _end(self) -> None:
        self._has_passed = True
        if self._connection is not None:
            # The plain socket's method: that of a TLS socket would say goodbye first.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)
