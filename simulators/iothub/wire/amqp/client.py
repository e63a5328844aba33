"""The client's half of a connection, without a socket: for tools and tests that speak to the hub in our own codec."""

from collections.abc import Sequence
from typing import Any

from simulators.iothub.wire.amqp.frames import (
    AMQP_PROTOCOL,
    SASL_PROTOCOL,
    Decoder,
    Frame,
    Piece,
    ProtocolHeader,
    SaslFrame,
    encode_piece,
)
from simulators.iothub.wire.amqp.messages import Message, Properties, decode_message, encode_message
from simulators.iothub.wire.amqp.performatives import (
    RECEIVER,
    SENDER,
    Attach,
    Begin,
    Composite,
    Disposition,
    Flow,
    Open,
    SaslInit,
    Source,
    Target,
    Transfer,
)
from simulators.iothub.wire.amqp.values import Described, Symbol

FRAME_BYTES_MAX = 64 * 1024
WINDOW = 5000
SELECTOR = Symbol("apache.org:selector-filter:string")


class AmqpClient:
    """Writes what a client says, on one session, and reads what the hub answers.

    Args:
        frame_bytes_max: the largest frame that it takes.
        window: how many transfers the hub may send before a flow.
    """

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX, window: int = WINDOW) -> None:
        self._decoder = Decoder(FRAME_BYTES_MAX)
        self._frame_bytes_max, self._window = frame_bytes_max, window
        self._out = bytearray()
        self._handles = 0
        self._deliveries = 0
        self._received = 0

    def data_to_send(self) -> bytes:
        data = bytes(self._out)
        self._out.clear()
        return data

    def write(self, *pieces: Piece) -> None:
        for piece in pieces:
            self._out += encode_piece(piece)

    def say(self, performative: Composite, payload: bytes = b"", channel: int = 0) -> None:
        self.write(Frame(channel, performative, payload))

    def start(self, mechanism: str = "ANONYMOUS", response: bytes = b"", idle_timeout_ms: int | None = None) -> None:
        """All of a connection's beginning at once, as a client may send it (2.4.1)."""
        self.write(ProtocolHeader(SASL_PROTOCOL), SaslFrame(SaslInit(mechanism=mechanism, initial_response=response)))
        self.write(ProtocolHeader(AMQP_PROTOCOL))
        self.say(Open(container_id="client", max_frame_size=self._frame_bytes_max, idle_timeout_ms=idle_timeout_ms))
        self.say(Begin(next_outgoing_id=0, incoming_window=self._window, outgoing_window=WINDOW))

    def attach_reader(
        self,
        address: str,
        credit: int,
        selector: str | None = None,
        properties: dict[Any, Any] | None = None,
        reply_to: str | None = None,
        settle_mode: int = 0,
        capabilities: tuple[str, ...] | None = None,
    ) -> int:
        """Attach a link to read on, with credit; returns its handle."""
        handle = self._next_handle()
        filters = {SELECTOR: Described(SELECTOR, selector)} if selector is not None else None
        self.say(
            Attach(
                name=f"link-{handle}",
                handle=handle,
                role=RECEIVER,
                snd_settle_mode=settle_mode,
                source=Source(address=address, filter=filters),
                target=Target(address=reply_to),
                properties=properties,
                desired_capabilities=capabilities,
            )
        )
        if credit:
            self.give_credit(handle, credit)
        return handle

    def attach_writer(self, address: str) -> int:
        """Attach a link to send on; returns its handle."""
        handle = self._next_handle()
        self.say(
            Attach(
                name=f"link-{handle}",
                handle=handle,
                role=SENDER,
                source=Source(address="client"),
                target=Target(address=address),
                initial_delivery_count=0,
            )
        )
        return handle

    def give_credit(self, handle: int, credit: int, delivery_count: int = 0, *, is_draining: bool = False) -> None:
        self.say(
            Flow(
                next_incoming_id=self._received,
                incoming_window=self._window,
                next_outgoing_id=self._deliveries,
                outgoing_window=WINDOW,
                handle=handle,
                delivery_count=delivery_count,
                link_credit=credit,
                drain=is_draining,
            )
        )

    def send(self, handle: int, message: Message) -> int:
        """Send a message in one transfer; returns its delivery id."""
        delivery_id = self._deliveries
        self._deliveries += 1
        self.say(
            Transfer(handle=handle, delivery_id=delivery_id, delivery_tag=delivery_id.to_bytes(4)),
            encode_message(message),
        )
        return delivery_id

    def settle(self, delivery_id: int, outcome: Composite) -> None:
        self.say(Disposition(role=RECEIVER, first=delivery_id, settled=True, state=outcome))

    def put_token(self, writer: int, token: str, audience: str, message_id: Any = "1") -> None:
        """Put a token with links to and from ``$cbs`` attached."""
        names = {"operation": "put-token", "type": "servicebus.windows.net:sastoken", "name": audience}
        self.send(
            writer, Message(properties=Properties(message_id=message_id), application_properties=names, value=token)
        )

    def _next_handle(self) -> int:
        self._handles += 1
        return self._handles - 1

    def receive(self, data: bytes) -> list[Piece]:
        """What the hub said."""
        pieces = self._decoder.feed(data)
        self._received += len(transfers_in(pieces))
        return pieces


def transfers_in(pieces: Sequence[Piece]) -> list[tuple[Transfer, bytes]]:
    return [
        (piece.performative, piece.payload)
        for piece in pieces
        if isinstance(piece, Frame) and isinstance(piece.performative, Transfer)
    ]


def messages_in(pieces: Sequence[Piece]) -> list[tuple[int, Message]]:
    """The whole messages among pieces, each with its delivery id."""
    messages, partial = [], b""
    for transfer, payload in transfers_in(pieces):
        partial += payload
        if not transfer.more:
            messages.append((transfer.delivery_id or 0, decode_message(partial)))
            partial = b""
    return messages


def of_kind(pieces: Sequence[Piece], kind: type[Any]) -> list[Any]:
    """The performatives of one kind among pieces."""
    return [
        piece.performative
        for piece in pieces
        if isinstance(piece, Frame | SaslFrame) and isinstance(piece.performative, kind)
    ]
