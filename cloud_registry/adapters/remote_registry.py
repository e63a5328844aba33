"""A registry's server over HTTP: requests, errors as they were raised there, transfers that go on after a cut."""

import hashlib
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlsplit

import msgspec
import requests
import urllib3

from cloud_registry import errors
from cloud_registry.core.wire_problems import Problem, error_of
from cloud_registry.errors import RegistryError, ServerUnreachableError, TrustError, UsageError
from cloud_registry.ports import EventListener, ProgressListener

API_ROOT = "/api/v1"
# Asks for results in the form that our types have, not in the documented one for everybody.
STATE_FORM = "application/vnd.slipway.state+json"
EVENT_FORM = "application/x-ndjson"
CONNECT_TIMEOUT_S = 10.0
# Between two bytes. Registering a model is quiet for a while; the server sends a blank line meanwhile.
READ_TIMEOUT_S = 120.0
UPLOAD_CHUNK_BYTES = 8 * 1024 * 1024
READ_CHUNK_BYTES = 256 * 1024
ATTEMPTS_MAX = 8
# For whoever waits for an answer; a transfer that gets on has more patience.
LINE_ATTEMPTS_MAX = 3
DELAY_MAX_S = 10.0
_BUSY = (429, 503)
_NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)


class _CutError(Exception):
    """The line broke, or the server is busy; `delay_s` is what it asked for."""

    def __init__(self, reason: str, delay_s: float | None = None) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


class _Upload(msgspec.Struct, frozen=True, rename="camel"):
    """How far an upload is, as the server tells it."""

    id: str
    offset: Annotated[int, msgspec.Meta(ge=0)]
    is_whole: bool


class HttpRegistry:
    """A RegistryTransport. `key` is an API key or an issuer's token."""

    def __init__(
        self,
        url: str,
        key: str | None,
        ca_file: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = _checked(url, key)
        self._host = urlsplit(self._url).netloc
        self._sleep = sleep
        self._session = requests.Session()
        # Neither a .netrc nor the environment speaks for us; proxies are asked for below.
        self._session.trust_env = False
        self._session.proxies = dict(requests.utils.get_environ_proxies(self._url))
        if ca_file is not None:
            self._session.verify = str(_checked_authority(ca_file))
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes | None,
        on_event: EventListener | None = None,
    ) -> bytes:
        form = EVENT_FORM if on_event is not None else STATE_FORM
        with self._asked(
            method, API_ROOT + path, query=query, body=body, form=form, is_repeatable=method == "GET"
        ) as answer:
            try:
                if on_event is None or EVENT_FORM not in answer.headers.get("Content-Type", ""):
                    return answer.content
                return _result_of(answer.iter_lines(chunk_size=None), on_event)
            except _NETWORK_ERRORS as err:
                raise self._cut_off(err) from err

    def lines(self, method: str, path: str, query: Mapping[str, str], body: bytes | None) -> Iterator[bytes]:
        with self._asked(method, API_ROOT + path, query=query, body=body, form=EVENT_FORM) as answer:
            try:
                yield from (line for line in answer.iter_lines(chunk_size=READ_CHUNK_BYTES) if line.strip())
            except _NETWORK_ERRORS as err:
                raise self._cut_off(err) from err

    def upload(self, path: Path, on_progress: ProgressListener | None = None) -> str:
        digest, size_bytes = _digest_of(path, on_progress)
        begun = {"digest": digest, "size": size_bytes}
        upload = self._asked_upload("POST", "/uploads", msgspec.json.encode(begun))
        place, offset_bytes, stalls = f"/uploads/{quote(upload.id, safe='')}", upload.offset, 0
        with path.open("rb") as file:
            while not upload.is_whole:
                if on_progress is not None:
                    on_progress(f"sending {path.name}", offset_bytes, size_bytes)
                file.seek(offset_bytes)
                chunk = file.read(UPLOAD_CHUNK_BYTES)
                if not chunk and offset_bytes < size_bytes:
                    raise errors.ConflictError(f"{path} became shorter while it was sent", hint="Send it once more.")
                upload = self._send(place, chunk, offset_bytes)
                stalls = 0 if upload.offset > offset_bytes else stalls + 1
                if stalls >= ATTEMPTS_MAX and not upload.is_whole:
                    raise ServerUnreachableError(
                        f"{self._host} takes no more of {path.name} than {offset_bytes:,} bytes"
                    )
                offset_bytes = upload.offset
        if on_progress is not None:
            on_progress(f"sending {path.name}", size_bytes, size_bytes)
        return upload.id

    def artifact(self, target: str, digest: str, size_bytes: int, start: int = 0) -> Iterator[bytes]:
        done_bytes, attempt = start, 0
        while done_bytes < size_bytes or not size_bytes:
            headers = {"Range": f"bytes={done_bytes}-", "If-Range": f'"{digest}"'} if done_bytes else {}
            try:
                with self._asked("GET", f"/artifacts/{quote(target)}", headers=headers) as answer:
                    if done_bytes and answer.status_code != 206:
                        raise RegistryError(f"{self._host} cannot go on with {target} where it was cut")
                    for chunk in answer.iter_content(READ_CHUNK_BYTES):
                        done_bytes += len(chunk)
                        attempt = 0
                        yield chunk
                if done_bytes >= size_bytes:
                    return
            except _NETWORK_ERRORS as err:
                if attempt + 1 >= ATTEMPTS_MAX:
                    raise self._cut_off(err) from err
            # Cut, or ended too soon as if it were whole.
            attempt += 1
            if attempt >= ATTEMPTS_MAX:
                raise ServerUnreachableError(
                    f"{self._host} sent {done_bytes:,} of the {size_bytes:,} bytes of {target}"
                )
            self._sleep(_delay_s(attempt))

    # --- parts ---------------------------------------------------------------

    def _send(self, place: str, chunk: bytes, offset_bytes: int) -> _Upload:
        """One piece of an upload. After a cut the server is asked what it has, so that no byte is sent in vain."""
        headers = {"Upload-Offset": str(offset_bytes), "Content-Type": "application/offset+octet-stream"}
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                return self._asked_upload("PATCH", place, chunk, headers)
            except (ServerUnreachableError, errors.ConflictError):
                if attempt == ATTEMPTS_MAX:
                    raise
            self._sleep(_delay_s(attempt))
            upload = self._asked_upload("GET", place, None)
            if upload.offset != offset_bytes or upload.is_whole:
                return upload
        raise AssertionError("the loop returns or raises")

    def _asked_upload(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> _Upload:
        with self._asked(
            method,
            API_ROOT + path,
            body=body,
            headers=headers,
            is_repeatable=method != "PATCH",
            is_read_at_once=True,
        ) as answer:
            try:
                return msgspec.json.decode(answer.content, type=_Upload)
            except (msgspec.DecodeError, RecursionError) as err:
                raise self._no_registry(answer) from err

    def _asked(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        form: str = STATE_FORM,
        headers: Mapping[str, str] | None = None,
        is_repeatable: bool = True,
        is_read_at_once: bool = False,
    ) -> requests.Response:
        """The answer to a request, where it is one of success; its body is read by the caller, or `is_read_at_once`.

        What is repeatable is asked again where the line breaks.
        """
        sent = {"Accept": form, "Accept-Encoding": "identity", "Content-Type": "application/json", **(headers or {})}
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                answer = self._once(method, path, query, body, sent)
                if is_read_at_once:
                    # Within the attempt, so that a line that breaks in the middle of it counts as one that broke.
                    _ = answer.content
            except _CutError as err:
                if attempt == ATTEMPTS_MAX:
                    raise ServerUnreachableError(
                        f"the registry at {self._host} is busy: {err}", hint="Try again in a while."
                    ) from err
                self._sleep(_delay_s(attempt) if err.delay_s is None else min(err.delay_s, DELAY_MAX_S))
            except _NETWORK_ERRORS as err:
                if not is_repeatable or attempt >= LINE_ATTEMPTS_MAX or isinstance(err, requests.exceptions.SSLError):
                    raise self._cut_off(err) from err
                self._sleep(_delay_s(attempt))
            else:
                return answer
        raise AssertionError("the loop returns or raises")

    def _once(
        self, method: str, path: str, query: Mapping[str, str] | None, body: bytes | None, headers: Mapping[str, str]
    ) -> requests.Response:
        answer = self._session.request(
            method,
            self._url + path,
            params=dict(query or {}),
            data=body,
            headers=dict(headers),
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            stream=True,
            # A key is shown to the server that was named, and to no other.
            allow_redirects=False,
        )
        if answer.status_code < 300:
            return answer
        with answer:
            if answer.status_code in _BUSY:
                raise _CutError(f"it answered {answer.status_code}", _retry_after_s(answer))
            raise self._raised_there(answer)

    def _raised_there(self, answer: requests.Response) -> Exception:
        try:
            problem = msgspec.json.decode(answer.raw.read(65536, decode_content=True), type=Problem)
        except (msgspec.DecodeError, RecursionError, *_NETWORK_ERRORS):
            return self._no_registry(answer)
        return error_of(problem)

    def _no_registry(self, answer: requests.Response) -> RegistryError:
        kind = TrustError if answer.status_code in (401, 403, 407) else ServerUnreachableError
        place = answer.headers.get("Location", "") if answer.is_redirect else ""
        led = f" and leads to {place[:200]!r}" if place else ""
        return kind(
            f"{self._host} answered {answer.status_code} {answer.reason}{led}, not as a registry does",
            hint="Check SLIPWAY_REGISTRY, and what stands between here and there.",
        )

    def _cut_off(self, err: Exception) -> RegistryError:
        if isinstance(err, requests.exceptions.SSLError):
            return _tls_error(self._host, str(err))
        if isinstance(err, requests.ConnectTimeout):
            reason = "it did not answer in time"
        elif isinstance(err, requests.ConnectionError):
            reason = "the connection failed"
        else:
            reason = f"the connection was cut ({type(err).__name__})"
        return ServerUnreachableError(
            f"the registry at {self._host} is not reachable: {reason}",
            hint="Check SLIPWAY_REGISTRY, and that `slipway serve` runs there. What was asked last may have been done.",
        )


def _tls_error(host: str, said: str) -> RegistryError:
    """What OpenSSL saw, by its own words, and what to do about it."""
    if "certificate has expired" in said or "not yet valid" in said:
        return TrustError(
            f"the certificate of {host} is not valid at this time",
            hint="Check this machine's clock, and ask who runs the server for a new one.",
        )
    if "mismatch" in said or "doesn't match" in said:
        return TrustError(
            f"the certificate of {host} is for another name",
            hint="Write the name that it is for into SLIPWAY_REGISTRY.",
        )
    if "CERTIFICATE_VERIFY_FAILED" in said:
        return TrustError(
            f"the certificate of {host} is not trusted", hint="Name its authority's PEM file in SLIPWAY_CA_FILE."
        )
    return ServerUnreachableError(
        f"{host} does not agree on TLS", hint="Check SLIPWAY_REGISTRY: perhaps that port is plain http, or its TLS old."
    )


def _checked_authority(ca_file: Path) -> Path:
    try:
        ssl.create_default_context(cafile=str(ca_file))
    except OSError as err:
        reason = "no PEM file of certificates" if isinstance(err, ssl.SSLError) else err.strerror
        raise UsageError(
            f"SLIPWAY_CA_FILE names {ca_file}: {reason}", hint="It is the authority's certificate as a PEM file."
        ) from err
    return ca_file


def _checked(url: str, key: str | None) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as err:
        raise UsageError(f"SLIPWAY_REGISTRY is no URL of a server: {err}") from err
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("SLIPWAY_API_KEY is neither a key nor a token", hint="Set it to one line, without blanks.")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"SLIPWAY_REGISTRY is no URL of a server: {parts.scheme}://{parts.hostname or ''}")
    if parts.username or parts.password:
        raise UsageError("SLIPWAY_REGISTRY holds a user name or a password", hint="Set SLIPWAY_API_KEY instead.")
    if key and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise UsageError(
            "SLIPWAY_REGISTRY is plain http, so that everyone on the way could read the key", hint="Use https."
        )
    return url.rstrip("/")


def _digest_of(path: Path, on_progress: ProgressListener | None) -> tuple[str, int]:
    digest, done_bytes = hashlib.sha256(), 0
    try:
        total_bytes = path.stat().st_size
        with path.open("rb") as file:
            while chunk := file.read(1024 * 1024):
                digest.update(chunk)
                done_bytes += len(chunk)
                if on_progress is not None:
                    on_progress(f"reading {path.name}", done_bytes, total_bytes)
    except FileNotFoundError as err:
        raise errors.NotFoundError(f"there is no file {path}") from err
    return "sha256:" + digest.hexdigest(), done_bytes


def _result_of(lines: Iterator[bytes], on_event: EventListener) -> bytes:
    """The result at the end of a row of events; raises what the server raised, RegistryError where the row is cut."""
    for line in lines:
        if not line.strip():
            continue
        try:
            event = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
            if "problem" in event:
                raise error_of(msgspec.json.decode(event["problem"], type=Problem))
            if "result" in event:
                return bytes(event["result"])
            # What a newer server tells besides is not for us.
            if "event" in event and "values" in event:
                on_event(msgspec.json.decode(event["event"], type=str), msgspec.json.decode(event["values"], type=list))
        except (msgspec.DecodeError, RecursionError) as err:
            raise ServerUnreachableError(
                f"a line of the registry's answer cannot be understood: {err}",
                hint="Look whether it was done: slipway model list",
            ) from err
    raise ServerUnreachableError(
        "the registry's answer was cut before its end", hint="Look whether it was done: slipway model list"
    )


def _retry_after_s(answer: requests.Response) -> float | None:
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdigit() else None


def _delay_s(attempt: int) -> float:
    return min(DELAY_MAX_S, 0.1 * 2.0**attempt)
