"""Telemetry from an Event Hubs endpoint, the built-in one of IoT Hub or one that it routes to, by the vendor's SDK.

Each partition is a stream of its own: it has its own order, and its own place to go on from.
https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-read-builtin
"""

import contextlib
import hashlib
import json
import logging
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from azure.eventhub import EventData, EventHubConsumerClient, parse_connection_string
from azure.eventhub.exceptions import AuthenticationError, ConnectError, EventHubError

from cloud_registry.adapters.telemetry_following import batches_through_outages
from cloud_registry.errors import HubUnreachableError, RegistryError, TrustError, UsageError
from cloud_registry.ports import StreamPosition, TelemetryBatch, TelemetryEvent

BATCH_EVENTS_MAX = 500
# How long a partition that has nothing new is waited for before it is looked at again.
WAIT_S = 0.5
# Batches that are read ahead of the one that is stored.
BATCHES_AHEAD_MAX = 4
CLOSE_TIMEOUT_S = 10.0

_TELEMETRY = b"Telemetry"

# The SDK tells each refused connection as a warning, with a trace; what matters of it is said by the errors here.
logging.getLogger("azure.eventhub").setLevel(logging.CRITICAL)


class _BegunAnewError(Exception):
    """Another event stands under the number that was read last: the endpoint was made anew behind its name."""


@dataclass(frozen=True, slots=True)
class EventHubEndpoint:
    """An event hub, who reads it, and by which authority's certificate it is known."""

    connection_string: str
    host: str
    entity: str
    group: str
    ca_file: Path | None = None

    def client(self) -> EventHubConsumerClient:
        return EventHubConsumerClient.from_connection_string(
            self.connection_string,
            self.group,
            connection_verify=str(self.ca_file) if self.ca_file else None,
            # Ours are slower and told to the person; the SDK's would hide that nobody answers.
            retry_total=0,
        )


def read_endpoint(connection_string: str, group: str, ca_file: Path | None = None) -> EventHubEndpoint:
    """The endpoint of a connection string; raises UsageError where it is none, or where there is no CA file."""
    if ca_file is not None and not ca_file.is_file():
        raise UsageError(f"there is no CA file {ca_file}", hint="Set SLIPWAY_CA_FILE to the CA's PEM file.")
    try:
        found = parse_connection_string(connection_string)
    except ValueError:
        found = None
    if found is None or not found.eventhub_name:
        raise UsageError(
            "EVENTHUB_CONNECTION_STRING is not the connection string of an event hub",
            hint="It reads Endpoint=sb://…;SharedAccessKeyName=…;SharedAccessKey=…;EntityPath=…",
        )
    host, entity = str(found.fully_qualified_namespace), str(found.eventhub_name)
    return EventHubEndpoint(connection_string, host, entity, group, ca_file)


def event_hub_partitions(endpoint: EventHubEndpoint, say: Callable[[str], None]) -> list["EventHubPartition"]:
    """A TelemetrySource for each partition of the endpoint.

    Raises:
        TrustError: the key or the certificate is refused.
        HubUnreachableError: nobody answers.
    """
    with _sdk_words(endpoint), endpoint.client() as client:
        partition_ids = list(client.get_partition_ids())
    return [EventHubPartition(endpoint, each, say) for each in partition_ids]


def read_event_data(event: EventData) -> tuple[TelemetryEvent, str]:
    """An event as the hub logged it, and its mark. Numbers count from one here, from zero there."""
    system = event.system_properties or {}
    read = TelemetryEvent(
        sequence=int(event.sequence_number or 0) + 1,
        enqueued_time=event.enqueued_time.isoformat() if event.enqueued_time is not None else "",
        device_id=_text(system.get(b"iothub-connection-device-id")),
        module_id=_text(system.get(b"iothub-connection-module-id")),
        body=_body(event),
        message_id=_text(event.message_id),
    )
    facts = (read.sequence, read.enqueued_time, read.device_id, read.module_id, read.message_id)
    return read, hashlib.sha256(json.dumps(facts).encode() + read.body).hexdigest()[:32]


class EventHubPartition:
    """A TelemetrySource: one partition of the endpoint."""

    def __init__(
        self, endpoint: EventHubEndpoint, partition_id: str, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._endpoint = endpoint
        self._partition_id = partition_id
        self.say = say

    @property
    def name(self) -> str:
        return f"eventhub:{self._endpoint.host}/{self._endpoint.entity}/{self._endpoint.group}/{self._partition_id}"

    def batches(self, after: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        yield from batches_through_outages(
            lambda position: self._connected(position, follow), after, follow=follow, say=self.say
        )

    def _connected(self, position: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        last = self._last_number()
        if last < position.sequence:
            position = self._anew(position)
        return self._checked(position, None if follow else last)

    def _checked(self, position: StreamPosition, last: int | None) -> Iterator[TelemetryBatch]:
        try:
            yield from self._stream(position, last)
        except _BegunAnewError:
            yield from self._stream(self._anew(position), last)

    def _anew(self, position: StreamPosition) -> StreamPosition:
        self.say(f"{self.name} was begun anew: reading it from the start, not after {position.sequence}.")
        return StreamPosition()

    def _last_number(self) -> int:
        """The number of the newest event, counted from one; 0 for an empty partition."""
        with _sdk_words(self._endpoint), self._endpoint.client() as client:
            found = client.get_partition_properties(self._partition_id)
        return 0 if found["is_empty"] else int(found["last_enqueued_sequence_number"]) + 1

    def _stream(self, start: StreamPosition, last: int | None) -> Iterator[TelemetryBatch]:
        """Batches of one connection; with `last` until that number."""
        if last is not None and start.sequence >= last:
            return
        reached = start
        for events in self._received(start):
            read = [(event, *read_event_data(event)) for event in events]
            if start.sequence and reached is start and read[0][1].sequence == start.sequence:
                if read[0][2] != start.mark:
                    raise _BegunAnewError
                read = read[1:]
            if read:
                reached = StreamPosition(read[-1][1].sequence, read[-1][2])
                yield TelemetryBatch(tuple(one for event, one, _ in read if _is_telemetry(event)), reached)
            if last is not None and reached.sequence >= last:
                return

    def _received(self, start: StreamPosition) -> Iterator[list[EventData]]:
        """The SDK's callbacks as an iterator, with the event of the position itself as the first."""
        arrived: queue.Queue[list[EventData] | Exception] = queue.Queue(maxsize=BATCHES_AHEAD_MAX)
        is_over = threading.Event()
        client = self._endpoint.client()

        def put(item: list[EventData] | Exception) -> None:
            while not is_over.is_set():
                with contextlib.suppress(queue.Full):
                    arrived.put(item, timeout=WAIT_S)
                    return

        reader = threading.Thread(target=self._receive, args=(client, start, put), daemon=True)
        reader.start()
        try:
            while True:
                item = arrived.get()
                if isinstance(item, Exception):
                    raise _told(item, self._endpoint) from item
                yield item
        finally:
            is_over.set()
            client.close()
            reader.join(timeout=CLOSE_TIMEOUT_S)

    def _receive(self, client: EventHubConsumerClient, start: StreamPosition, put: Callable[[Any], None]) -> None:
        try:
            client.receive_batch(
                on_event_batch=lambda _context, events: put(list(events)) if events else None,
                on_error=lambda _context, err: put(err),
                partition_id=self._partition_id,
                starting_position=start.sequence - 1 if start.sequence else "-1",
                starting_position_inclusive=bool(start.sequence),
                max_batch_size=BATCH_EVENTS_MAX,
                max_wait_time=WAIT_S,
            )
        except Exception as err:  # noqa: BLE001  (whatever it is, the reader of the queue has to hear of it)
            put(err)


@contextlib.contextmanager
def _sdk_words(endpoint: EventHubEndpoint) -> Iterator[None]:
    try:
        yield
    except (EventHubError, OSError) as err:
        raise _told(err, endpoint) from err


def _told(err: Exception, endpoint: EventHubEndpoint) -> RegistryError:
    host = endpoint.host
    if isinstance(err, AuthenticationError):
        return TrustError(
            f"{host} refused the key of EVENTHUB_CONNECTION_STRING",
            hint="Check the key, that its policy may read telemetry (ServiceConnect), and this machine's clock.",
        )
    text = f"{err} {err.__cause__}"
    if isinstance(err, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return TrustError(
            f"the certificate of {host} is not trusted",
            hint=f"Set SLIPWAY_CA_FILE to the CA that signed it. It is {endpoint.ca_file or 'not set'}.",
        )
    if isinstance(err, ConnectError) and "not-found" in text.lower().replace("_", "-"):
        return UsageError(f"{host} has no such event hub", hint="Check EntityPath in EVENTHUB_CONNECTION_STRING.")
    return HubUnreachableError(
        f"the telemetry endpoint {host} does not answer ({type(err).__name__})",
        hint="Check that the hub is running and that EVENTHUB_CONNECTION_STRING is right.",
    )


def _is_telemetry(event: EventData) -> bool:
    """What a device sent; the hub's own events about twins and identities stand in the same partitions."""
    source = (event.system_properties or {}).get(b"iothub-message-source", _TELEMETRY)
    return _text(source) == _TELEMETRY.decode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _body(event: EventData) -> bytes:
    try:
        return b"".join(event.body)
    except TypeError:
        # A body of an AMQP value or sequence is no reading; it is kept as its text and counted as unreadable.
        return str(event.body_as_str(encoding="UTF-8")).encode()
