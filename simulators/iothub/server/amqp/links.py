"""Sessions and links: windows, credit, deliveries (2.5 to 2.7), without knowing what a link is for.

A link belongs to a node, which takes what the peer sends (`Sink`) or gives what it reads (`Spring`).
"""

from collections import deque
from typing import Any, Protocol

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.amqp.messages import Message, decode_message
from simulators.iothub.wire.amqp.performatives import (
    RECEIVER,
    SENDER,
    SETTLED,
    AmqpError,
    Attach,
    Begin,
    Composite,
    Detach,
    Disposition,
    Flow,
    Transfer,
)

# A message of 256 KB and the sections around it.
MESSAGE_BYTES_MAX = 256 * 1024 + 64 * 1024
# Messages that are not complete yet, all of a connection together.
PARTIAL_BYTES_MAX = 1024 * 1024
LINKS_MAX = 64
HANDLE_MAX = 255
INBOUND_CREDIT = 100
INCOMING_WINDOW = 2048
UNSETTLED_MAX = 1000
_IDS = 2**32


def distance(later: int, earlier: int) -> int:
    """How far one serial number is beyond another (RFC 1982); negative where it is before."""
    return (later - earlier + _IDS // 2) % _IDS - _IDS // 2


class LinkError(Exception):
    """A link cannot be, or cannot go on; the peer is told so with a detach."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.error = AmqpError(condition=condition, description=description)


class Node(Protocol):
    def check(self, now: float) -> None:
        """Raises LinkError when the link may no longer be used."""
        ...

    def closed(self) -> None:
        """The link is gone."""
        ...


class Sink(Node, Protocol):
    """Takes what a peer sends."""

    def accept(self, message: Message, now: float) -> Composite:
        """Take a message; returns its outcome. Raises LinkError to end the link."""
        ...


class Spring(Node, Protocol):
    """Gives what a peer reads."""

    def pump(self, link: "OutboundLink", now: float) -> bool:
        """Send what there is while the link can send; returns whether there is more to send at once."""
        ...

    def settled(self, token: Any, outcome: Any) -> None:
        """The peer said what became of a message that was sent with a token."""
        ...


class Wire(Protocol):
    """The connection as a session sees it."""

    frame_bytes_max: int
    partial_bytes: int

    @property
    def has_room(self) -> bool: ...

    def send(self, channel: int, performative: Composite, payload: bytes = b"") -> None: ...


class InboundLink:
    """A link on which the peer sends."""

    def __init__(self, session: "Session", attach: Attach, node: Sink) -> None:
        self.session, self.handle, self.name, self.node = session, attach.handle, attach.name, node
        self.source, self.target = attach.source, attach.target
        self.delivery_count = attach.initial_delivery_count or 0
        self.credit = 0
        self._partial = bytearray()
        self._first: Transfer | None = None

    def grant(self) -> None:
        self.credit = INBOUND_CREDIT
        self.session.send_flow(self, INBOUND_CREDIT)

    def transfer(self, frame: Transfer, payload: bytes, now: float) -> None:
        """Take a part of a message, and with the last part the message.

        Raises:
            LinkError: the peer sends more than it may.
        """
        if self._first is None:
            if frame.delivery_id is None:
                raise LinkError("amqp:not-allowed", "the first transfer of a delivery has a delivery-id [2.7.5]")
            if self.credit <= 0:
                raise LinkError("amqp:link:transfer-limit-exceeded", "a transfer without credit")
            self._first = frame
        self._keep(payload)
        if frame.more and not frame.aborted:
            return
        if frame.aborted:
            self._forget()
        else:
            first, data = self._first, bytes(self._partial)
            self._forget()
            self._deliver(first, data, is_settled=bool(first.settled or frame.settled), now=now)
        self.credit -= 1
        self.delivery_count = (self.delivery_count + 1) % _IDS
        if self.credit < INBOUND_CREDIT // 2:
            self.grant()

    def forget_partial(self) -> None:
        self._forget()

    def _keep(self, payload: bytes) -> None:
        if len(self._partial) + len(payload) > MESSAGE_BYTES_MAX:
            raise LinkError("amqp:link:message-size-exceeded", f"messages are at most {MESSAGE_BYTES_MAX} bytes")
        if self.session.wire.partial_bytes + len(payload) > PARTIAL_BYTES_MAX:
            raise ProtocolError(f"more than {PARTIAL_BYTES_MAX} bytes of messages that are not complete")
        self._partial += payload
        self.session.wire.partial_bytes += len(payload)

    def _forget(self) -> None:
        self.session.wire.partial_bytes -= len(self._partial)
        self._partial.clear()
        self._first = None

    def _deliver(self, first: Transfer, data: bytes, *, is_settled: bool, now: float) -> None:
        try:
            message = decode_message(data)
        except ProtocolError as err:
            raise LinkError("amqp:decode-error", err.message) from err
        outcome = self.node.accept(message, now)
        if not is_settled and first.delivery_id is not None:
            self.session.send(Disposition(role=RECEIVER, first=first.delivery_id, settled=True, state=outcome))


class OutboundLink:
    """A link on which the peer reads."""

    def __init__(self, session: "Session", attach: Attach, node: Spring) -> None:
        self.session, self.handle, self.name, self.node = session, attach.handle, attach.name, node
        self.source, self.target = attach.source, attach.target
        self.is_presettled = attach.snd_settle_mode == SETTLED
        self.delivery_count = 0
        self.credit = 0
        self.is_draining = False

    @property
    def can_send(self) -> bool:
        return self.credit > 0 and self.session.is_clear

    def deliver(self, payload: bytes, token: Any = None) -> None:
        """Send a message, while `can_send`.

        Where it leaves unsettled and has a token, the node hears of it again when the peer settles it.
        """
        self.credit -= 1
        self.delivery_count = (self.delivery_count + 1) % _IDS
        self.session.deliver(self, payload, None if self.is_presettled else token)

    def flow(self, frame: Flow) -> None:
        if frame.link_credit is not None:
            seen = frame.delivery_count if frame.delivery_count is not None else 0
            self.credit = max(0, frame.link_credit + distance(seen, self.delivery_count))
        self.is_draining = frame.drain

    def finish_drain(self) -> None:
        """Nothing more is there for a peer that asked for what there is: use its credit up (2.6.7)."""
        self.is_draining = False
        self.delivery_count = (self.delivery_count + self.credit) % _IDS
        self.credit = 0
        self.session.send_flow(self, 0)


Link = InboundLink | OutboundLink


class Session:
    """One session; our channel has the peer's number, our handles those of the peer."""

    def __init__(self, wire: Wire, channel: int, begin: Begin) -> None:
        self.wire, self.channel = wire, channel
        self.links: dict[int, Link] = {}
        # Links that we ended and the peer has not: what it sends there is of no interest (2.6.5).
        self.ending: set[int] = set()
        self._next_incoming_id = begin.next_outgoing_id
        self._next_outgoing_id = 0
        self._remote_window = begin.incoming_window
        self._window_left = INCOMING_WINDOW
        self._next_delivery_id = 0
        self._unsent: deque[tuple[Transfer, bytes]] = deque()
        self._unsettled: dict[int, tuple[OutboundLink, Any]] = {}

    @property
    def is_clear(self) -> bool:
        """Whether a message could leave at once, at least in part."""
        return (
            not self._unsent and self._remote_window > 0 and self.wire.has_room and len(self._unsettled) < UNSETTLED_MAX
        )

    def begin(self) -> None:
        self.send(
            Begin(
                remote_channel=self.channel,
                next_outgoing_id=self._next_outgoing_id,
                incoming_window=INCOMING_WINDOW,
                outgoing_window=INCOMING_WINDOW,
                handle_max=HANDLE_MAX,
            )
        )

    def send(self, performative: Composite) -> None:
        self.wire.send(self.channel, performative)

    def send_flow(self, link: Link | None = None, credit: int | None = None) -> None:
        self.send(
            Flow(
                next_incoming_id=self._next_incoming_id,
                incoming_window=self._window_left,
                next_outgoing_id=self._next_outgoing_id,
                outgoing_window=INCOMING_WINDOW,
                handle=link.handle if link else None,
                delivery_count=link.delivery_count if link else None,
                link_credit=credit,
                available=0 if isinstance(link, OutboundLink) else None,
            )
        )

    def take_flow(self, frame: Flow) -> OutboundLink | None:
        """Note the peer's window and credit; returns the link that may send more."""
        expected = 0 if frame.next_incoming_id is None else frame.next_incoming_id
        self._remote_window = max(0, frame.incoming_window + distance(expected, self._next_outgoing_id))
        self.flush()
        link = self.links.get(frame.handle) if frame.handle is not None else None
        if isinstance(link, OutboundLink):
            link.flow(frame)
        if frame.echo:
            self.send_flow(link, link.credit if link else None)
        return link if isinstance(link, OutboundLink) else None

    def take_transfer(self, frame: Transfer, payload: bytes, now: float) -> None:
        """Hand a transfer to its link.

        Raises:
            LinkError: the link ends with it.
            ProtocolError: there is no such link, or the peer sends beyond the window.
        """
        self._next_incoming_id = (self._next_incoming_id + 1) % _IDS
        self._window_left -= 1
        if self._window_left < 0:
            raise ProtocolError("a transfer beyond the window of its session [2.5.6]")
        if self._window_left < INCOMING_WINDOW // 2:
            self._window_left = INCOMING_WINDOW
            self.send_flow()
        if frame.handle in self.ending:
            return
        link = self.links.get(frame.handle)
        if not isinstance(link, InboundLink):
            raise ProtocolError(f"a transfer on handle {frame.handle}, on which nothing is sent to the hub")
        link.transfer(frame, payload, now)

    def take_disposition(self, frame: Disposition) -> None:
        if frame.role is SENDER:
            return
        last = frame.first if frame.last is None else frame.last
        span = distance(last, frame.first)
        settled = [number for number in self._unsettled if 0 <= distance(number, frame.first) <= span]
        for number in settled:
            link, token = self._unsettled[number]
            if frame.state is None and not frame.settled:
                continue
            del self._unsettled[number]
            link.node.settled(token, frame.state)
        if not frame.settled:
            # The peer settles second, after us.
            self.send(Disposition(role=SENDER, first=frame.first, last=last, settled=True, state=frame.state))

    def deliver(self, link: OutboundLink, payload: bytes, token: Any) -> None:
        delivery_id = self._next_delivery_id
        self._next_delivery_id = (delivery_id + 1) % _IDS
        if token is not None:
            self._unsettled[delivery_id] = (link, token)
        # 64 bytes hold a frame's header and a transfer performative with its delivery tag.
        part_bytes = self.wire.frame_bytes_max - 64
        for start in range(0, max(1, len(payload)), part_bytes):
            part = payload[start : start + part_bytes]
            frame = Transfer(
                handle=link.handle,
                delivery_id=delivery_id,
                delivery_tag=delivery_id.to_bytes(4),
                message_format=0,
                settled=link.is_presettled,
                more=start + part_bytes < len(payload),
            )
            self._unsent.append((frame, part))
        self.flush()

    def flush(self) -> None:
        """Send what the peer's window allows."""
        while self._unsent and self._remote_window > 0:
            frame, payload = self._unsent.popleft()
            self._remote_window -= 1
            self._next_outgoing_id = (self._next_outgoing_id + 1) % _IDS
            self.wire.send(self.channel, frame, payload)

    def detach(self, link: Link, error: AmqpError | None) -> None:
        """End a link from our side."""
        self.drop(link.handle)
        self.ending.add(link.handle)
        self.send(Detach(handle=link.handle, closed=True, error=error))

    def drop(self, handle: int) -> None:
        """Forget a link and whatever was under way on it."""
        link = self.links.pop(handle, None)
        if link is None:
            return
        if isinstance(link, InboundLink):
            link.forget_partial()
        else:
            # Frames are counted when they leave, so what has not left may be dropped.
            self._unsent = deque(part for part in self._unsent if part[0].handle != handle)
            for number in [number for number, (owner, _) in self._unsettled.items() if owner is link]:
                del self._unsettled[number]
        link.node.closed()

    def drop_all(self) -> None:
        for handle in tuple(self.links):
            self.drop(handle)
