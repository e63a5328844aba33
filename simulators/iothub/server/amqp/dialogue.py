"""One AMQP connection between a client and the hub, without the socket.

Handles: SASL, the order of frames, sessions and links, heartbeats, the tokens that were put. Leaves to the caller:
bytes in and out, time (`tick`, about once a second), and when there may be something new to send (`pump`).
"""

import enum
import logging
from collections.abc import Callable
from typing import Any

from simulators.iothub.core.access import Gatekeeper
from simulators.iothub.core.claims import Claims, read_plain
from simulators.iothub.errors import ProtocolError, ServiceError
from simulators.iothub.server.amqp.links import (
    HANDLE_MAX,
    LINKS_MAX,
    MESSAGE_BYTES_MAX,
    InboundLink,
    Link,
    LinkError,
    Node,
    OutboundLink,
    Session,
)
from simulators.iothub.server.dialogue import Outlet
from simulators.iothub.wire.amqp.frames import (
    AMQP_PROTOCOL,
    FRAME_BYTES_MIN,
    SASL_PROTOCOL,
    Decoder,
    Frame,
    Heartbeat,
    Piece,
    ProtocolHeader,
    SaslFrame,
    encode_piece,
)
from simulators.iothub.wire.amqp.performatives import (
    RECEIVER,
    SENDER,
    AmqpError,
    Attach,
    Begin,
    Close,
    Composite,
    Detach,
    Disposition,
    End,
    Flow,
    Open,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Transfer,
)

logger = logging.getLogger(__name__)

FRAME_BYTES_MAX = 64 * 1024
CHANNEL_MAX = 15
# What waits to leave before no more events are read for it.
OUTBOUND_BYTES_HIGH = 256 * 1024
# Event Hubs says four minutes; a client then sends a heartbeat at least every two.
IDLE_TIMEOUT_S = 240.0
OPEN_TIMEOUT_S = 30.0
# Without a token that is good, a connection is for nobody.
UNCLAIMED_TIMEOUT_S = 60.0
MECHANISMS = ("MSSBCBS", "ANONYMOUS", "PLAIN")
_SASL_OK, _SASL_AUTH = 0, 1


class State(enum.Enum):
    AWAITING_HEADER = "awaiting a protocol header"
    AWAITING_SASL_INIT = "awaiting sasl-init"
    AWAITING_AMQP_HEADER = "awaiting the AMQP header"
    AWAITING_OPEN = "awaiting open"
    OPEN = "open"
    CLOSED = "closed"


Resolve = Callable[["AmqpDialogue", Attach], Node]


class AmqpDialogue:
    """The hub's side of one AMQP connection.

    Args:
        gatekeeper: judges SASL PLAIN.
        container_id: how the hub calls itself.
        resolve: finds the node that a link is for, or raises LinkError.
    """

    def __init__(self, gatekeeper: Gatekeeper, container_id: str, resolve: Resolve, outlet: Outlet, now: float) -> None:
        self.state = State.AWAITING_HEADER
        self.claims = Claims()
        self.outlet = outlet
        self.peer = "a client"
        self.frame_bytes_max = FRAME_BYTES_MIN
        self.partial_bytes = 0
        self._gatekeeper, self._container_id, self._resolve = gatekeeper, container_id, resolve
        self._decoder = Decoder(FRAME_BYTES_MAX)
        self._sessions: dict[int, Session] = {}
        self._opened_at = self._heard_at = self._sent_at = now
        self._heartbeat_s: float | None = None
        self._now = now

    # --- from outside -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes from the client; whatever breaks a rule closes this connection and harms no other."""
        self._now = self._heard_at = now
        try:
            pieces = self._decoder.feed(data)
        except ProtocolError as err:
            self._handle_all(err.decoded)
            self._fail("amqp:connection:framing-error", err.message)
            return
        self._handle_all(pieces)

    def pump(self, now: float) -> bool:
        """Send what is there for links with credit; returns whether there is more to send at once."""
        self._now = now
        is_more = False
        for session in tuple(self._sessions.values()):
            for link in tuple(session.links.values()):
                if isinstance(link, OutboundLink) and self.state is State.OPEN:
                    is_more |= self._pump(session, link)
        return is_more

    def tick(self, now: float) -> None:
        """What time alone brings about: heartbeats, timeouts, tokens that end."""
        self._now = now
        if self.state is State.CLOSED:
            return
        if self.state is not State.OPEN:
            if now - self._opened_at > OPEN_TIMEOUT_S:
                self.close("amqp:connection:forced", f"nothing but {self.state.value} for {OPEN_TIMEOUT_S:.0f} s", now)
            return
        if now - self._heard_at > IDLE_TIMEOUT_S:
            self.close("amqp:resource-limit-exceeded", f"the client was silent for {IDLE_TIMEOUT_S:.0f} s", now)
            return
        if self.claims.is_empty and now - self._opened_at > UNCLAIMED_TIMEOUT_S:
            self.close("amqp:unauthorized-access", f"no token came within {UNCLAIMED_TIMEOUT_S:.0f} s", now)
            return
        for session in self._sessions.values():
            for link in tuple(session.links.values()):
                self._guard(session, link, lambda link=link: link.node.check(now))  # type: ignore[misc]
        if self._heartbeat_s is not None and now - self._sent_at >= self._heartbeat_s:
            self._write(Heartbeat())

    def close(self, condition: str, description: str, now: float) -> None:
        """End the connection from our side, and say why."""
        self._now = now
        self._fail(condition, description)

    def lost(self, now: float) -> None:
        """The connection is gone."""
        self._now = now
        if self.state is not State.CLOSED:
            logger.info("AMQP: %s went away", self.peer)
        self._end()

    def links(self) -> list[Link]:
        return [link for session in self._sessions.values() for link in session.links.values()]

    def end_link(self, node: Node, error: AmqpError) -> None:
        """End the link of a node from our side."""
        for session in self._sessions.values():
            for link in tuple(session.links.values()):
                if link.node is node:
                    session.detach(link, error)

    # --- as a session sees it ---------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        return self.outlet.waiting_bytes <= OUTBOUND_BYTES_HIGH

    def send(self, channel: int, performative: Composite, payload: bytes = b"") -> None:
        self._write(Frame(channel, performative, payload))

    # --- within -----------------------------------------------------------------------------------------------------

    def _handle_all(self, pieces: Any) -> None:
        for piece in pieces:
            if self.state is State.CLOSED:
                return
            content = piece.performative if isinstance(piece, (Frame, SaslFrame)) else piece
            handler = TRANSITIONS.get((self.state, type(content)))
            if handler is None:
                self._fail("amqp:illegal-state", f"{type(content).__name__} has no place while {self.state.value}")
                return
            try:
                handler(self, piece)
            except ProtocolError as err:
                self._fail("amqp:not-allowed", err.message)

    def _write(self, piece: Piece) -> None:
        if self.state is not State.CLOSED:
            self._sent_at = self._now
            self.outlet.write(encode_piece(piece))

    def _fail(self, condition: str, description: str) -> None:
        if self.state is State.CLOSED:
            return
        logger.info("AMQP: closing the connection of %s: %s", self.peer, description)
        if self.state is State.OPEN:
            error = AmqpError(condition=condition, description=description[:1000])
            self._write(Frame(0, Close(error=error)))
        self._end()
        self.outlet.close()

    def _end(self) -> None:
        self.state = State.CLOSED
        for session in self._sessions.values():
            session.drop_all()
        self._sessions.clear()

    def _guard(self, session: Session, link: Link, act: Callable[[], Any]) -> Any:
        """Do something for a link; the link ends where that cannot be."""
        try:
            return act()
        except LinkError as err:
            logger.info("AMQP: ending link %s of %s: %s", link.name, self.peer, err)
            session.detach(link, err.error)
            return None

    def _pump(self, session: Session, link: OutboundLink) -> bool:
        is_more = bool(self._guard(session, link, lambda: link.node.pump(link, self._now)))
        if link.is_draining and not is_more and link.credit > 0 and session.is_clear:
            link.finish_drain()
        return is_more and link.can_send

    # --- the start --------------------------------------------------------------------------------------------------

    def _first_header(self, header: ProtocolHeader) -> None:
        if not header.is_spoken:
            self._write(ProtocolHeader(SASL_PROTOCOL))
            self._fail("", f"protocol {header.protocol} version {header.version} is not spoken here")
            return
        self._write(header)
        if header.protocol == AMQP_PROTOCOL:
            self.state = State.AWAITING_OPEN
            return
        self._write(SaslFrame(SaslMechanisms(mechanisms=MECHANISMS)))
        self.state = State.AWAITING_SASL_INIT

    def _sasl_init(self, frame: SaslFrame) -> None:
        init = frame.performative
        assert isinstance(init, SaslInit)
        try:
            self._check_sasl(init)
        except ServiceError as err:
            self._write(SaslFrame(SaslOutcome(code=_SASL_AUTH)))
            self._fail("", f"SASL {init.mechanism!r:.40}: {err.message}")
            return
        self._write(SaslFrame(SaslOutcome(code=_SASL_OK)))
        self.state = State.AWAITING_AMQP_HEADER

    def _check_sasl(self, init: SaslInit) -> None:
        if init.mechanism not in MECHANISMS:
            raise ProtocolError(f"SASL mechanism {init.mechanism!r:.40} was not offered")
        if init.mechanism == "PLAIN":
            parts = (init.initial_response or b"").decode(errors="replace").split("\0")
            if len(parts) != 3:
                raise ProtocolError("SASL PLAIN has an identity, a user name and a password (RFC 4616)")
            self.claims.add(read_plain(self._gatekeeper, parts[1], parts[2], self._now))

    def _second_header(self, header: ProtocolHeader) -> None:
        if not header.is_spoken or header.protocol != AMQP_PROTOCOL:
            self._write(ProtocolHeader(AMQP_PROTOCOL))
            self._fail("", "the AMQP header has to follow SASL")
            return
        self._write(header)
        self.state = State.AWAITING_OPEN

    def _open(self, frame: Frame) -> None:
        performative = frame.performative
        assert isinstance(performative, Open)
        if performative.max_frame_size < FRAME_BYTES_MIN:
            raise ProtocolError(f"frames of {performative.max_frame_size} bytes are too small [2.7.1]")
        self.peer = f"AMQP container {performative.container_id!r:.80}"
        self.frame_bytes_max = min(performative.max_frame_size, FRAME_BYTES_MAX)
        if performative.idle_timeout_ms:
            # Half of it: the standard has it so that a late heartbeat is no timeout (2.4.5).
            self._heartbeat_s = max(performative.idle_timeout_ms / 2000, 0.1)
        self.state = State.OPEN
        self._opened_at = self._now
        self.send(
            0,
            Open(
                container_id=self._container_id,
                max_frame_size=FRAME_BYTES_MAX,
                channel_max=CHANNEL_MAX,
                idle_timeout_ms=int(IDLE_TIMEOUT_S * 1000),
            ),
        )

    # --- sessions and links -----------------------------------------------------------------------------------------

    def _session(self, frame: Frame) -> Session:
        session = self._sessions.get(frame.channel)
        if session is None:
            raise ProtocolError(f"{type(frame.performative).__name__} on channel {frame.channel} without a session")
        return session

    def _begin(self, frame: Frame) -> None:
        performative = frame.performative
        assert isinstance(performative, Begin)
        if frame.channel > CHANNEL_MAX or frame.channel in self._sessions:
            raise ProtocolError(f"channel {frame.channel} is beyond {CHANNEL_MAX} or taken [2.7.2]")
        session = self._sessions[frame.channel] = Session(self, frame.channel, performative)
        session.begin()

    def _end_session(self, frame: Frame) -> None:
        session = self._session(frame)
        session.drop_all()
        session.send(End())
        del self._sessions[frame.channel]

    def _attach(self, frame: Frame) -> None:
        session, attach = self._session(frame), frame.performative
        assert isinstance(attach, Attach)
        if attach.handle > HANDLE_MAX or attach.handle in session.links or attach.handle in session.ending:
            raise ProtocolError(f"handle {attach.handle} is beyond {HANDLE_MAX} or taken [2.7.3]")
        if sum(len(each.links) + len(each.ending) for each in self._sessions.values()) >= LINKS_MAX:
            raise ProtocolError(f"a connection has at most {LINKS_MAX} links")
        error = None
        node: Node | None = None
        try:
            node = self._resolve(self, attach)
        except LinkError as err:
            error = err.error
        # A refused link is attached first and detached then (2.6.3). Its source and target are repeated: the vendor's
        # readers look for them before they look for the error.
        session.send(
            Attach(
                name=attach.name,
                handle=attach.handle,
                role=SENDER if attach.role is RECEIVER else RECEIVER,
                snd_settle_mode=attach.snd_settle_mode,
                rcv_settle_mode=attach.rcv_settle_mode,
                source=attach.source,
                target=attach.target,
                initial_delivery_count=0 if attach.role is RECEIVER else None,
                max_message_size=MESSAGE_BYTES_MAX,
                offered_capabilities=attach.desired_capabilities,
            )
        )
        if node is None:
            logger.info("AMQP: refusing link %r of %s: %s", attach.name, self.peer, error and error.description)
            session.ending.add(attach.handle)
            session.send(Detach(handle=attach.handle, closed=True, error=error))
            return
        link: Link
        if attach.role is RECEIVER:
            link = session.links[attach.handle] = OutboundLink(session, attach, node)  # type: ignore[arg-type]
        else:
            link = session.links[attach.handle] = InboundLink(session, attach, node)  # type: ignore[arg-type]
            link.grant()

    def _flow(self, frame: Frame) -> None:
        performative = frame.performative
        assert isinstance(performative, Flow)
        session = self._session(frame)
        link = session.take_flow(performative)
        for candidate in (link,) if link else tuple(session.links.values()):
            if isinstance(candidate, OutboundLink):
                self._pump(session, candidate)

    def _transfer(self, frame: Frame) -> None:
        performative = frame.performative
        assert isinstance(performative, Transfer)
        session = self._session(frame)
        try:
            session.take_transfer(performative, frame.payload, self._now)
        except LinkError as err:
            link = session.links.get(performative.handle)
            if link is not None:
                logger.info("AMQP: ending link %s of %s: %s", link.name, self.peer, err)
                session.detach(link, err.error)

    def _disposition(self, frame: Frame) -> None:
        performative = frame.performative
        assert isinstance(performative, Disposition)
        session = self._session(frame)
        session.take_disposition(performative)
        for link in tuple(session.links.values()):
            if isinstance(link, OutboundLink):
                self._pump(session, link)

    def _detach(self, frame: Frame) -> None:
        performative = frame.performative
        assert isinstance(performative, Detach)
        session = self._session(frame)
        if performative.handle in session.ending:
            session.ending.discard(performative.handle)
            return
        if performative.handle not in session.links:
            raise ProtocolError(f"detach of handle {performative.handle}, which is not attached")
        session.drop(performative.handle)
        session.send(Detach(handle=performative.handle, closed=performative.closed))

    def _close(self, _frame: Frame) -> None:
        logger.info("AMQP: %s said goodbye", self.peer)
        self._write(Frame(0, Close()))
        self._end()
        self.outlet.close()

    def _heartbeat(self, _piece: Heartbeat) -> None:
        """That it came is all that it says."""


TRANSITIONS: dict[tuple[State, type], Callable[[AmqpDialogue, Any], None]] = {
    (State.AWAITING_HEADER, ProtocolHeader): AmqpDialogue._first_header,
    (State.AWAITING_SASL_INIT, SaslInit): AmqpDialogue._sasl_init,
    (State.AWAITING_AMQP_HEADER, ProtocolHeader): AmqpDialogue._second_header,
    (State.AWAITING_OPEN, Open): AmqpDialogue._open,
    (State.AWAITING_OPEN, Heartbeat): AmqpDialogue._heartbeat,
    (State.OPEN, Heartbeat): AmqpDialogue._heartbeat,
    (State.OPEN, Begin): AmqpDialogue._begin,
    (State.OPEN, Attach): AmqpDialogue._attach,
    (State.OPEN, Flow): AmqpDialogue._flow,
    (State.OPEN, Transfer): AmqpDialogue._transfer,
    (State.OPEN, Disposition): AmqpDialogue._disposition,
    (State.OPEN, Detach): AmqpDialogue._detach,
    (State.OPEN, End): AmqpDialogue._end_session,
    (State.OPEN, Close): AmqpDialogue._close,
}
