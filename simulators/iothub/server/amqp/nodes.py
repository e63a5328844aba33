"""What links are for: tokens (`$cbs`), questions (`$management`), events, messages to devices and their feedback."""

from collections.abc import Callable
from typing import Any

from simulators.iothub.core.access import Right
from simulators.iothub.core.claims import Claims, Path, read_bearer, read_claim
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.event_readers import BEGINNING, Position, Readers
from simulators.iothub.core.faults import Point, error_of
from simulators.iothub.core.feedback import ServiceQueue
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.amqp.event_messages import event_message, last_enqueued
from simulators.iothub.server.amqp.links import LinkError, Node, OutboundLink
from simulators.iothub.wire.amqp.messages import Message, Properties, encode_message
from simulators.iothub.wire.amqp.performatives import Accepted, AmqpError, Composite, Rejected
from simulators.iothub.wire.amqp.values import Array, Int, Timestamp

# Answers that wait for a client without credit for them.
ANSWERS_MAX = 64
# Events given to a link before others get their turn.
EVENTS_PER_TURN = 100
BATCHES_UNSETTLED_MAX = 10
SAS_TOKEN_TYPES = frozenset(("servicebus.windows.net:sastoken",))
# As uamqp and azure-eventhub call what a credential of azure-identity gives.
BEARER_TOKEN_TYPES = frozenset(("bearer", "jwt"))
_CONDITIONS = {
    Fault.DeviceNotFound: "amqp:not-found",
    Fault.ModuleNotFound: "amqp:not-found",
    Fault.DeviceMaximumQueueDepthExceeded: "amqp:resource-limit-exceeded",
    Fault.MessageTooLarge: "amqp:link:message-size-exceeded",
    Fault.IotHubUnauthorizedAccess: "amqp:unauthorized-access",
    Fault.IotHubUnauthorized: "amqp:unauthorized-access",
    Fault.ThrottlingException: "com.microsoft:device-container-throttled",
    Fault.ServerError: "amqp:internal-error",
    Fault.ServiceUnavailable: "com.microsoft:server-busy",
    Fault.GatewayTimeout: "com.microsoft:timeout",
}


def condition_of(fault: Fault) -> str:
    """An error of the service as AMQP names it."""
    return _CONDITIONS.get(fault, "com.microsoft:argument-error")


class Open:
    """What every client may use."""

    def check(self, now: float) -> None:
        """Needs no right."""

    def closed(self) -> None:
        """Nothing is kept for it."""


class Guarded:
    """What needs a right on a path, shown by a token that has not ended."""

    def __init__(self, claims: Claims, path: Path, now: float) -> None:
        self._claims, self._path = claims, path
        self.check(now)

    def check(self, now: float) -> None:
        if not self._claims.allow(self._path, Right.SERVICE_CONNECT, now):
            raise LinkError(
                "amqp:unauthorized-access",
                f"Unauthorized: no token on this connection gives ServiceConnect on /{'/'.join(self._path)} now",
            )

    def closed(self) -> None:
        """Nothing is kept for it."""


# --- questions and answers --------------------------------------------------------------------------------------------


class Answers(Open):
    """The reading side of a node that answers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.link: OutboundLink | None = None
        self._waiting: list[bytes] = []

    def put(self, message: Message) -> None:
        if len(self._waiting) >= ANSWERS_MAX:
            raise LinkError("amqp:resource-limit-exceeded", f"{ANSWERS_MAX} answers wait to be read")
        self._waiting.append(encode_message(message))
        if self.link is not None:
            self.pump(self.link, 0.0)

    def pump(self, link: OutboundLink, now: float) -> bool:  # noqa: ARG002
        self.link = link
        while self._waiting and link.can_send:
            link.deliver(self._waiting.pop(0))
        return False

    def settled(self, token: Any, outcome: Any) -> None:
        """An answer was read; it does not matter."""


class Questions(Open):
    """The writing side of a node that answers.

    Args:
        reply_to: finds where to put the answer; None where the client reads no answers.
        answer: status, description and body for a question.
    """

    def __init__(
        self,
        reply_to: Callable[[str | None], Answers | None],
        answer: Callable[[Message, float], tuple[int, str, Any]],
    ) -> None:
        self._reply_to, self._answer = reply_to, answer

    def accept(self, message: Message, now: float) -> Composite:
        properties = message.properties or Properties()
        answers = self._reply_to(properties.reply_to)
        if answers is None:
            error = AmqpError(condition="amqp:not-found", description="no link of this connection reads the answer")
            return Rejected(error=error)
        status, description, body = self._answer(message, now)
        answers.put(
            Message(
                properties=Properties(correlation_id=properties.message_id),
                # An AMQP int: uamqp takes no other integer.
                application_properties={"status-code": Int(status), "status-description": description},
                value=body,
            )
        )
        return Accepted()


def text_of(properties: dict[Any, Any] | None, name: str) -> str:
    """A property that is a string; empty where it is missing or something else."""
    value = (properties or {}).get(name)
    return value if isinstance(value, str) else ""


def put_token(hub: Hub, claims: Claims, message: Message, now: float) -> tuple[int, str, Any]:
    """Answer a question to `$cbs` (https://docs.oasis-open.org/amqp/amqp-cbs/v1.0/amqp-cbs-v1.0.html)."""
    operation = text_of(message.application_properties, "operation")
    kind = text_of(message.application_properties, "type")
    audience = text_of(message.application_properties, "name")
    if operation != "put-token":
        return 400, f"operation {operation!r:.40} does not exist; put-token does", None
    if kind not in SAS_TOKEN_TYPES | BEARER_TOKEN_TYPES:
        return 401, f"tokens of type {kind!r:.60} are not known here", None
    if not isinstance(message.value, str):
        return 400, "the body of put-token is the token, a string", None
    try:
        is_bearer = kind in BEARER_TOKEN_TYPES
        claims.add(
            read_bearer(message.value, now) if is_bearer else read_claim(hub.gatekeeper, message.value, audience, now)
        )
    except ServiceError as err:
        return err.status, err.message, None
    return 200, "OK", None


def read_management(
    hub: Hub, event_hub: str, started_at: float, claims: Claims, message: Message, now: float
) -> tuple[int, str, Any]:
    """Answer a question to `$management`: what the event hub or one of its partitions is."""
    asked = message.application_properties
    if text_of(asked, "operation") != "READ":
        return 400, "the operation of a management request is READ", None
    if text_of(asked, "name").lower() not in (event_hub, "messages/events"):
        return 404, f"The messaging entity {text_of(asked, 'name')!r:.80} could not be found.", None
    if not claims.allow((event_hub,), Right.SERVICE_CONNECT, now) and not _shows_token(hub, event_hub, asked, now):
        return 401, f"Unauthorized: no token gives ServiceConnect on /{event_hub}", None
    kind = text_of(asked, "type")
    if kind == "com.microsoft:eventhub":
        return 200, "OK", _describe(hub, event_hub, started_at)
    if kind == "com.microsoft:partition":
        return _describe_partition(hub, event_hub, text_of(asked, "partition"))
    return 400, f"type {kind!r:.60} cannot be read", None


def _shows_token(hub: Hub, event_hub: str, asked: dict[Any, Any] | None, now: float) -> bool:
    claims = Claims()
    try:
        claims.add(
            read_claim(hub.gatekeeper, text_of(asked, "security_token"), f"sb://{hub.host_name}/{event_hub}", now)
        )
    except ServiceError:
        return False
    return claims.allow((event_hub,), Right.SERVICE_CONNECT, now)


def _describe(hub: Hub, event_hub: str, started_at: float) -> dict[Any, Any]:
    count = len(hub.events.partitions)
    return {
        "name": event_hub,
        "type": "com.microsoft:eventhub",
        "created_at": Timestamp(int(started_at * 1000)),
        "partition_count": Int(count),
        "partition_ids": Array(tuple(map(str, range(count)))),
    }


def _describe_partition(hub: Hub, event_hub: str, partition_id: str) -> tuple[int, str, Any]:
    index = partition_index(hub, partition_id)
    if index is None:
        return 404, f"partition {partition_id!r:.40} does not exist", None
    partition = hub.events.partitions[index]
    return (
        200,
        "OK",
        {
            "name": event_hub,
            "type": "com.microsoft:partition",
            "partition": str(index),
            "begin_sequence_number": partition.first_number,
            "last_enqueued_sequence_number": partition.last_number,
            "last_enqueued_offset": str(partition.last_offset),
            "last_enqueued_time_utc": last_enqueued(partition),
            "is_partition_empty": partition.is_empty,
        },
    )


def partition_index(hub: Hub, text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        return None
    return index if (index := int(text)) < len(hub.events.partitions) else None


# --- events -----------------------------------------------------------------------------------------------------------


class EventReader(Guarded):
    """A reader of one partition."""

    def __init__(
        self,
        hub: Hub,
        claims: Claims,
        path: Path,
        partition: int,
        position: Position | None,
        readers: "Readers[Node]",
        now: float,
        *,
        has_metrics: bool = False,
    ) -> None:
        super().__init__(claims, path, now)
        self._hub, self._readers, self._has_metrics = hub, readers, has_metrics
        self._index, self._group = partition, path[2]
        self._partition = hub.events.partitions[partition]
        self._next = (position or BEGINNING).number_in(self._partition)

    def pump(self, link: OutboundLink, now: float) -> bool:
        if self._next >= self._partition.next_number:
            return False
        events = self._partition.read(max(self._next, self._partition.first_number), min(link.credit, EVENTS_PER_TURN))
        metrics = self._partition if self._has_metrics else None
        for event in events:
            if not link.can_send:
                return False
            identity = self._hub.registry.find(event.source_id)
            link.deliver(encode_message(event_message(event, identity, metrics, now)))
            self._next = event.number + 1
        return self._next < self._partition.next_number

    def settled(self, token: Any, outcome: Any) -> None:
        """Reading takes nothing away, so it does not matter what becomes of an event."""

    def closed(self) -> None:
        self._readers.leave(self._group, self._index, self)


# --- messages to devices and what became of them ----------------------------------------------------------------------


class DeviceboundSink(Guarded):
    """Takes messages for devices. What the hub refuses is rejected, and the link goes on."""

    def __init__(self, hub: Hub, claims: Claims, path: Path, now: float, device_id: str | None = None) -> None:
        super().__init__(claims, path, now)
        self._hub, self._device_id = hub, device_id

    def accept(self, message: Message, now: float) -> Composite:
        try:
            device_id = self._device_id or device_of((message.properties or Properties()).to)
            if fault := self._hub.faults.strike(Point.REQUEST, IdentityId(device_id), now):
                raise error_of(fault)
            if self._hub.throttles:
                self._hub.throttles.admit_message(len(_body(message)), now)
            self._hub.send_to_device(device_id, cloud_message(message, now), now)
        except ServiceError as err:
            return Rejected(error=AmqpError(condition=condition_of(err.fault), description=err.message[:1000]))
        return Accepted()


def device_of(address: str | None) -> str:
    """The device of ``/devices/{id}/messages/devicebound``.

    Raises:
        ServiceError: ArgumentInvalid.
    """
    parts = (address or "").split("/")
    if (
        len(parts) != 5
        or not parts[2]
        or [part.lower() for part in (parts[0], parts[1], *parts[3:])]
        != [
            "",
            "devices",
            "messages",
            "devicebound",
        ]
    ):
        raise ServiceError(
            Fault.ArgumentInvalid, f"a message is for {address!r:.120}, not for /devices/<id>/messages/devicebound"
        )
    return parts[2]


def cloud_message(message: Message, now: float) -> CloudMessage:
    """A message as the hub keeps it.

    Raises:
        ServiceError: ArgumentInvalid, for a body that is not bytes.
    """
    properties = message.properties or Properties()
    custom = {str(key): _text(value) for key, value in (message.application_properties or {}).items()}
    expires_at = None
    if properties.absolute_expiry_time_ms is not None:
        expires_at = properties.absolute_expiry_time_ms / 1000
    elif message.header is not None and message.header.ttl_ms is not None:
        expires_at = now + message.header.ttl_ms / 1000
    return CloudMessage(
        message_id=_text(properties.message_id) if properties.message_id is not None else "",
        correlation_id=_text(properties.correlation_id) if properties.correlation_id is not None else None,
        user_id=properties.user_id.decode(errors="replace") if properties.user_id is not None else None,
        to=properties.to or "",
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        expires_at=expires_at,
        ack=custom.pop("iothub-ack", "none") or "none",
        properties=custom,
        body=_body(message),
    )


def _body(message: Message) -> bytes:
    if message.data:
        return b"".join(message.data)
    match message.value:
        case bytes() if not message.sequences:
            return message.value
        case str() if not message.sequences:
            return message.value.encode()
        case None if not message.sequences:
            return b""
    raise ServiceError(Fault.ArgumentInvalid, "the body of a message to a device is bytes")


def _text(value: Any) -> str:
    """A property as the text that a device gets."""
    match value:
        case str():
            return str(value)
        case bytes():
            return value.decode(errors="replace")
        case bool():
            return "true" if value else "false"
        case Timestamp():
            return _time_text(value)
        case _:
            return str(value)


def _time_text(value: Timestamp) -> str:
    try:
        return wire_time(value / 1000)
    except (ValueError, OverflowError, OSError):
        return str(int(value))


class OutcomeSpring(Guarded):
    """Gives batches of feedback or of file notifications; one that is not accepted comes again."""

    def __init__(self, queue: ServiceQueue, claims: Claims, path: Path, now: float) -> None:
        super().__init__(claims, path, now)
        self._queue = queue
        self._held: set[str] = set()

    def pump(self, link: OutboundLink, now: float) -> bool:
        while link.can_send and len(self._held) < BATCHES_UNSETTLED_MAX:
            batch = self._queue.receive(now)
            if batch is None:
                return False
            properties = Properties(
                content_type=batch.content_type,
                content_encoding="utf-8",
                user_id=batch.user_id.encode(),
                creation_time_ms=int(batch.enqueued_at * 1000),
            )
            message = Message(annotations=None, properties=properties, data=(batch.body,))
            self._held.add(batch.lock_token)
            link.deliver(encode_message(message), batch.lock_token)
            if link.is_presettled:
                self.settled(batch.lock_token, Accepted())
        return False

    def settled(self, token: Any, outcome: Any) -> None:
        self._held.discard(token)
        act = self._queue.complete if isinstance(outcome, (Accepted, Rejected)) else self._queue.abandon
        try:
            act(token)
        except ServiceError:
            # Its lock had ended: somebody else has the batch, or gets it next.
            return

    def closed(self) -> None:
        for token in tuple(self._held):
            self.settled(token, None)
