"""Frames and protocol headers: a stream of bytes cut into them, and written (2.2, 2.3, 5.3).

Handles: any chunks, bounds on size, every fault as a ProtocolError. Leaves to the caller: which frame a state allows.
"""

from dataclasses import dataclass

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.amqp.performatives import (
    Attach,
    Begin,
    Close,
    Composite,
    Detach,
    Disposition,
    End,
    Flow,
    Open,
    SaslChallenge,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    SaslResponse,
    Transfer,
    encode_composite,
    read_composite,
)
from simulators.iothub.wire.amqp.values import Reader

# No peer may be asked for less (2.7.1).
FRAME_BYTES_MIN = 512
AMQP_PROTOCOL, TLS_PROTOCOL, SASL_PROTOCOL = 0, 2, 3
_AMQP_TYPE, _SASL_TYPE = 0, 1
_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class ProtocolHeader:
    protocol: int
    version: tuple[int, int, int] = (1, 0, 0)

    @property
    def is_spoken(self) -> bool:
        return self.version == (1, 0, 0) and self.protocol in (AMQP_PROTOCOL, SASL_PROTOCOL)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A frame without a body."""

    channel: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    channel: int
    performative: Composite
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class SaslFrame:
    performative: Composite


Piece = ProtocolHeader | Heartbeat | Frame | SaslFrame
_PERFORMATIVES = (Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close)
_SASL_FRAMES = (SaslMechanisms, SaslInit, SaslChallenge, SaslResponse, SaslOutcome)


class Decoder:
    """Cuts one direction of a connection into headers and frames. After an error it stays in error.

    Args:
        frame_bytes_max: the largest frame accepted; its size stands first, so nothing is kept of one that is larger.
    """

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._failure: ProtocolError | None = None

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Piece]:
        """Take the next bytes and return what they complete.

        Raises:
            ProtocolError: the stream is broken from here on; `decoded` holds the pieces before the fault.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure.message)
        self._buffer += data
        pieces: list[Piece] = []
        position = 0
        try:
            while (end := self._end_of(position)) is not None:
                pieces.append(_piece(bytes(self._buffer[position:end])))
                position = end
        except ProtocolError as err:
            err.decoded = tuple(pieces)
            self._failure = err
            self._buffer.clear()
            raise
        del self._buffer[:position]
        return pieces

    def _end_of(self, position: int) -> int | None:
        """Where the piece at `position` ends; None while bytes are missing."""
        if len(self._buffer) - position < 4:
            return None
        start = bytes(self._buffer[position : position + 4])
        # As a size this would be a gigabyte, so a header is never mistaken for a frame.
        size = _HEADER_BYTES if start == b"AMQP" else int.from_bytes(start)
        if not _HEADER_BYTES <= size <= self._frame_bytes_max:
            raise ProtocolError(f"a frame of {size} bytes; {_HEADER_BYTES} to {self._frame_bytes_max} are accepted")
        return position + size if len(self._buffer) - position >= size else None


def _piece(data: bytes) -> Piece:
    if data.startswith(b"AMQP"):
        return ProtocolHeader(data[4], (data[5], data[6], data[7]))
    body_at, frame_type = data[4] * 4, data[5]
    if not _HEADER_BYTES <= body_at <= len(data):
        raise ProtocolError(f"a frame's body starts at {body_at} of {len(data)} bytes [2.3.1]")
    if frame_type == _AMQP_TYPE:
        return _amqp_frame(int.from_bytes(data[6:8]), data, body_at)
    if frame_type == _SASL_TYPE:
        performative, position = _performative(data, body_at, _SASL_FRAMES)
        if position != len(data):
            raise ProtocolError("bytes follow the performative of a SASL frame [5.3.1]")
        return SaslFrame(performative)
    raise ProtocolError(f"a frame of type {frame_type}; 0 and 1 exist [2.3.1]")


def _amqp_frame(channel: int, data: bytes, body_at: int) -> Frame | Heartbeat:
    if body_at == len(data):
        return Heartbeat(channel)
    performative, position = _performative(data, body_at, _PERFORMATIVES)
    payload = data[position:]
    if payload and not isinstance(performative, Transfer):
        raise ProtocolError(f"{type(performative).__name__} has a payload; only Transfer has one [2.3.2]")
    return Frame(channel, performative, payload)


def _performative(data: bytes, position: int, kinds: tuple[type, ...]) -> tuple[Composite, int]:
    reader = Reader(data, position)
    value = read_composite(reader.value())
    if not isinstance(value, Composite) or not isinstance(value, kinds):
        raise ProtocolError(f"a frame holds {value!r:.60}, which is no performative for it [2.3.2]")
    return value, reader.position


def encode_piece(piece: Piece) -> bytes:
    match piece:
        case ProtocolHeader(protocol, version):
            return b"AMQP" + bytes((protocol, *version))
        case Heartbeat(channel):
            return _frame(_AMQP_TYPE, channel, b"")
        case Frame(channel, performative, payload):
            return _frame(_AMQP_TYPE, channel, encode_composite(performative) + payload)
        case SaslFrame(performative):
            return _frame(_SASL_TYPE, 0, encode_composite(performative))


def _frame(frame_type: int, channel: int, body: bytes) -> bytes:
    return (_HEADER_BYTES + len(body)).to_bytes(4) + bytes((2, frame_type)) + channel.to_bytes(2) + body
