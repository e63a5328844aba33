"""Telemetry over HTTP: a stream of JSON lines, one event a line, resumed after the last event that was stored."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote_plus

import requests

from cloud_registry.adapters.telemetry_following import batches_through_outages
from cloud_registry.errors import HubError, HubUnreachableError, RegistryError, TrustError, UsageError
from cloud_registry.ports import StreamPosition, TelemetryBatch, TelemetryEvent

CONNECT_TIMEOUT_S = 5.0
# The hub sends a blank line every few seconds when it has nothing to say; longer silence is a dead connection.
SILENCE_MAX_S = 30.0
# What is stored in one transaction, and four times what is read ahead of it, in blocks of 4 KB of a message's body: a
# message carries one reading or hundreds, and it is the readings that take memory.
BATCH_BLOCKS_MAX = 500
BLOCK_BYTES = 4096
LINE_BYTES_MAX = 1024 * 1024
TOKEN_LIFETIME_S = 3600

_END = object()
_Item = tuple[TelemetryEvent, str]


def service_token(connection_string: str, expires_at_s: int) -> str:
    """A shared access signature of a service policy, as azure-iot-hub makes it; raises UsageError.

    https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-sas#sas-token-structure
    """
    fields = dict(part.partition("=")[::2] for part in connection_string.split(";") if part)
    try:
        host, policy, key = fields["HostName"], fields["SharedAccessKeyName"], fields["SharedAccessKey"]
        secret = base64.b64decode(key, validate=True)
    except (KeyError, binascii.Error) as err:
        raise UsageError(
            "IOTHUB_CONNECTION_STRING is not the connection string of a service policy",
            hint="It reads HostName=…;SharedAccessKeyName=…;SharedAccessKey=…",
        ) from err
    resource = quote_plus(host)
    signature = hmac.new(secret, f"{resource}\n{expires_at_s}".encode(), hashlib.sha256).digest()
    signed = quote_plus(base64.b64encode(signature))
    return f"SharedAccessSignature sr={resource}&sig={signed}&se={expires_at_s}&skn={quote_plus(policy)}"


def read_line(line: bytes) -> _Item:
    """The event of one line, and its mark; raises HubError where the line is no event."""
    try:
        value = json.loads(line)
        system = value.get("systemProperties") or {}
        event = TelemetryEvent(
            sequence=int(value["sequence"]),
            enqueued_time=str(value["enqueuedTime"]),
            device_id=str(value["deviceId"]),
            module_id=str(value.get("moduleId") or ""),
            body=base64.b64decode(value["body"], validate=True),
            message_id=str(system.get("messageId") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise HubError(
            f"the telemetry stream gave a line that is no event ({err}): {line[:120]!r}",
            hint="Check that SLIPWAY_TELEMETRY_URL is the hub's telemetry stream.",
        ) from err
    facts = (event.sequence, event.enqueued_time, event.device_id, event.module_id, event.message_id)
    mark = hashlib.sha256(json.dumps(facts).encode() + event.body).hexdigest()[:32]
    return event, mark


def _blocks(item: object) -> int:
    return 1 + len(item[0].body) // BLOCK_BYTES if isinstance(item, tuple) else 1


class _BlockQueue(queue.Queue[object]):
    """A queue that is full by the size of what it holds. The queue module names these methods for subclasses."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._blocks = 0

    def _qsize(self) -> int:
        return self._blocks

    def _put(self, item: object) -> None:
        super()._put(item)
        self._blocks += _blocks(item)

    def _get(self) -> object:
        item = super()._get()
        self._blocks -= _blocks(item)
        return item


class HttpTelemetry:
    """A TelemetrySource. `say` is told when the stream is lost and found again, and where it was begun anew."""

    def __init__(
        self,
        url: str,
        connection_string: str,
        ca_file: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._url = url
        self._connection_string = connection_string
        self._ca_file = ca_file
        self.say = say

    @property
    def name(self) -> str:
        return self._url

    def batches(self, after: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        yield from batches_through_outages(
            lambda position: self._stream(self._start(position), follow), after, follow=follow, say=self.say
        )

    def _start(self, position: StreamPosition) -> StreamPosition:
        """Where to go on: behind the position, or at the start where the stream was begun anew behind this address.

        The event that was stored last is asked for again. If the hub has another one under its number, or never came
        that far, its log is a new one. If it merely forgot it, what it has left is later.
        """
        if not position.sequence:
            return position
        # All kinds of events are numbered together, so any kind under this number tells.
        with self._get(position.sequence - 1, follow=False, source="*") as response:
            first = next(_lines(response), None)
        if first is not None:
            event, mark = read_line(first)
            if event.sequence > position.sequence or mark == position.mark:
                return position
        self.say(f"The telemetry stream was begun anew: reading it from the start, not after {position.sequence}.")
        return StreamPosition()

    def _stream(self, start: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        """Batches of one connection: whatever has arrived since the last one, so that they grow under load."""
        with self._get(start.sequence, follow) as response:
            arrived: queue.Queue[object] = _BlockQueue(maxsize=4 * BATCH_BLOCKS_MAX)
            is_over = threading.Event()
            reader = threading.Thread(target=_read, args=(response, arrived, is_over), daemon=True)
            reader.start()
            try:
                yield from _batches(arrived)
            finally:
                is_over.set()
                # Wakes a reader that waits for room, and one that waits for bytes.
                _drain(arrived)
                _shut(response)
                reader.join(timeout=CONNECT_TIMEOUT_S)

    @contextlib.contextmanager
    def _get(self, after: int, follow: bool, source: str = "Telemetry") -> Iterator[requests.Response]:
        token = service_token(self._connection_string, int(time.time()) + TOKEN_LIFETIME_S)
        try:
            response = requests.get(
                self._url,
                params={"from": str(after), "follow": "true" if follow else "false", "source": source},
                headers={"Authorization": token},
                stream=True,
                timeout=(CONNECT_TIMEOUT_S, SILENCE_MAX_S),
                verify=str(self._ca_file) if self._ca_file else True,
            )
        except (requests.RequestException, OSError) as err:
            raise _unreachable(self._url, err, self._ca_file) from err
        with response:
            _check_status(response, self._url)
            yield response


def _unreachable(url: str, err: Exception, ca_file: Path | None) -> RegistryError:
    if isinstance(err, requests.exceptions.SSLError):
        return TrustError(
            f"the certificate of {url} is not trusted",
            hint=f"Set SLIPWAY_CA_FILE to the CA that signed it. It is {ca_file or 'not set'}.",
        )
    if isinstance(err, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return UsageError(f"SLIPWAY_TELEMETRY_URL is no address: {url}", hint="It begins with https://")
    if isinstance(err, FileNotFoundError | IsADirectoryError) or "TLS CA certificate bundle" in str(err):
        return UsageError(f"there is no CA file {ca_file}", hint="Set SLIPWAY_CA_FILE to the CA's PEM file.")
    return HubUnreachableError(
        f"the telemetry stream at {url} does not answer ({type(err).__name__})",
        hint="Check that the hub is running and that SLIPWAY_TELEMETRY_URL is right.",
    )


def _check_status(response: requests.Response, url: str) -> None:
    if response.status_code == 200:
        return
    if response.status_code in (401, 403):
        raise TrustError(
            f"the hub refused the key of IOTHUB_CONNECTION_STRING ({response.status_code}) at {url}",
            hint="Check the key, that its policy may read telemetry (ServiceConnect), and this machine's clock.",
        )
    if response.status_code >= 500:
        raise HubUnreachableError(
            f"the telemetry stream at {url} is out of order ({response.status_code})", hint="Try again in a moment."
        )
    raise HubError(
        f"the telemetry stream at {url} answered {response.status_code} {response.reason}",
        hint="Check SLIPWAY_TELEMETRY_URL.",
        status=response.status_code,
    )


def _lines(response: requests.Response) -> Iterator[bytes]:
    """Lines as they arrive, heartbeats left out; raises HubUnreachableError where the stream breaks."""
    rest = b""
    try:
        for chunk in response.iter_content(chunk_size=None):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                raise HubError(f"the telemetry stream gave a line of more than {LINE_BYTES_MAX:,} bytes")
            yield from (line for line in lines if line.strip())
    except (requests.RequestException, OSError) as err:
        raise HubUnreachableError(f"the telemetry stream broke off ({type(err).__name__})") from err
    if rest.strip():
        raise HubUnreachableError("the telemetry stream broke off in the middle of a line")


def _read(response: requests.Response, arrived: "queue.Queue[object]", is_over: threading.Event) -> None:
    try:
        for line in _lines(response):
            arrived.put(read_line(line))
            if is_over.is_set():
                return
    except (RegistryError, ValueError, AttributeError) as err:
        # urllib3 raises the latter two where the response is closed under its reader, which is how it is ended.
        arrived.put(err)
    finally:
        arrived.put(_END)


def _batches(arrived: "queue.Queue[object]") -> Iterator[TelemetryBatch]:
    while True:
        items = [arrived.get()]
        blocks = _blocks(items[0])
        while blocks < BATCH_BLOCKS_MAX:
            try:
                items.append(arrived.get_nowait())
            except queue.Empty:
                break
            blocks += _blocks(items[-1])
        read = [item for item in items if isinstance(item, tuple)]
        if read:
            event, mark = read[-1]
            yield TelemetryBatch(tuple(one for one, _ in read), StreamPosition(event.sequence, mark))
        # What came before a failure is kept: it is whole, and the position says so.
        failure = next((item for item in items if isinstance(item, BaseException)), None)
        if failure is not None:
            raise failure
        if _END in items:
            return


def _drain(arrived: "queue.Queue[object]") -> None:
    while not arrived.empty():
        with contextlib.suppress(queue.Empty):
            arrived.get_nowait()


def _shut(response: requests.Response) -> None:
    # Closing alone would wait for the reader, which holds the buffered stream; a shutdown ends its wait. urllib3 raises
    # the latter two where the stream has ended by itself and its connection is back in the pool.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        response.raw.shutdown()
