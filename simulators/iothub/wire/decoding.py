"""Bytes to packets, incrementally and strictly.

Handles: cutting a stream of any chunks into packets, every "MUST" of MQTT 3.1.1 that one packet alone can break, a
bound on packet size. Leaves to the caller: which packets a state allows, packet identifiers in use, time.
"""

from collections.abc import Callable
from typing import Any

from simulators.iothub.errors import ProtocolError, UnsupportedProtocolLevelError
from simulators.iothub.wire.packets import (
    PROTOCOL_LEVEL,
    PROTOCOL_NAME,
    REMAINING_LENGTH_MAX,
    SUBACK_FAILURE,
    Connack,
    ConnackCode,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
    check_text,
    check_topic_filter,
    check_topic_name,
)


class Decoder:
    """Cuts one direction of a connection into packets. After an error it stays in error.

    Args:
        packet_bytes_max: the largest remaining length that is accepted; known from the header, so nothing is buffered
            for a packet that would be refused.
    """

    __slots__ = ("_buffer", "_failure", "_packet_bytes_max", "_wanted_bytes")

    def __init__(self, packet_bytes_max: int = REMAINING_LENGTH_MAX) -> None:
        self._packet_bytes_max = packet_bytes_max
        self._buffer = bytearray()
        # What the packet whose beginning is in the buffer takes, as far as its header says.
        self._wanted_bytes = 0
        self._failure: ProtocolError | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of a packet that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Packet]:
        """Take the next bytes and return the packets that they complete.

        Raises:
            ProtocolError: the stream is broken from here on; `decoded` holds the packets before the fault.
        """
        if self._failure is not None:
            raise ProtocolError(self._failure.message)
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted_bytes:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        # Most reads bring whole packets: they are cut from what was read, and only a rest is kept.
        packets: list[Packet] = []
        position, available = 0, len(data)
        try:
            while position < available:
                first_byte = data[position]
                if first_byte not in _ALLOWED_FIRST_BYTES:
                    raise _no_such_flags(first_byte)
                start, end = self._frame_at(data, position)
                if end > available:
                    self._buffer += data[position:]
                    self._wanted_bytes = end - position
                    break
                packets.append(_DECODERS[first_byte >> 4](first_byte & 0x0F, data[start:end]))
                position = end
        except ProtocolError as err:
            err.decoded = tuple(packets)
            self._failure = err
            raise
        return packets

    def _frame_at(self, data: bytes, position: int) -> tuple[int, int]:
        """Where the body of the packet at `position` starts and ends; one byte beyond what is there while unknown."""
        length = 0
        for index, byte in enumerate(data[position + 1 : position + 5]):
            length |= (byte & 0x7F) << 7 * index
            if not byte & 0x80:
                break
            if index == 3:
                raise ProtocolError("a remaining length is longer than four bytes [2.2.3]")
        else:
            return len(data), len(data) + 1
        if length > self._packet_bytes_max:
            raise ProtocolError(f"a packet of {length} bytes is larger than the {self._packet_bytes_max} accepted")
        start = position + index + 2
        return start, start + length


# Flags of the fixed header that are reserved for each type (table 2.2); PUBLISH uses its four.
_RESERVED_FLAGS = {
    **dict.fromkeys(PacketType, 0),
    PacketType.PUBREL: 2,
    PacketType.SUBSCRIBE: 2,
    PacketType.UNSUBSCRIBE: 2,
}
_FIRST_BYTES = frozenset(kind << 4 | flags for kind, flags in _RESERVED_FLAGS.items() if kind != PacketType.PUBLISH)
# QoS 3 does not exist, and DUP is for QoS above 0 only.
_PUBLISH_FIRST_BYTES = frozenset(
    0x30 | duplicate << 3 | qos << 1 | retain
    for qos in (0, 1, 2)
    for retain in (0, 1)
    for duplicate in ((0, 1) if qos else (0,))
)
_ALLOWED_FIRST_BYTES = _FIRST_BYTES | _PUBLISH_FIRST_BYTES


_CONNACK_CODES = frozenset(code.value for code in ConnackCode)


def _no_such_flags(first_byte: int) -> ProtocolError:
    return ProtocolError(
        f"a fixed header starts with 0x{first_byte:02x}: packet type {first_byte >> 4} has no such flags "
        "[MQTT-2.2.2-2, MQTT-3.3.1-2, MQTT-3.3.1-4]"
    )


class _Reader:
    """Takes fields off the front of one packet's body."""

    def __init__(self, name: str, body: bytes) -> None:
        self._name = name
        self._body = body
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._body):
            raise ProtocolError(f"{self._name} ends inside a field: {count} bytes wanted, {self.left} left")
        content = self._body[self._position : end]
        self._position = end
        return content

    def byte(self) -> int:
        return self.take(1)[0]

    def short(self) -> int:
        return int.from_bytes(self.take(2))

    def binary(self) -> bytes:
        return self.take(self.short())

    def text(self) -> str:
        try:
            return check_text(self.binary().decode())
        except UnicodeDecodeError as err:
            raise ProtocolError(f"{self._name} holds a string that is not UTF-8 [MQTT-1.5.3-1]: {err.reason}") from err

    def packet_id(self) -> int:
        packet_id = self.short()
        if packet_id == 0:
            raise ProtocolError(f"{self._name} has the packet identifier 0 [MQTT-2.3.1-1]")
        return packet_id

    @property
    def left(self) -> int:
        return len(self._body) - self._position

    def finish(self) -> None:
        if self.left:
            raise ProtocolError(f"{self._name} has {self.left} bytes after its last field")


def _connect(_flags: int, body: bytes) -> Connect:
    reader = _Reader("CONNECT", body)
    name = reader.text()
    if name not in (PROTOCOL_NAME, "MQIsdp"):
        raise ProtocolError(f"CONNECT names the protocol {name!r}, not {PROTOCOL_NAME!r} [MQTT-3.1.2-1]")
    level = reader.byte()
    if level != PROTOCOL_LEVEL or name != PROTOCOL_NAME:
        raise UnsupportedProtocolLevelError(f"CONNECT asks for {name} level {level}; 4, which is MQTT 3.1.1, is spoken")
    flags = reader.byte()
    keep_alive_s = reader.short()
    _check_connect_flags(flags)
    packet = Connect(
        client_id=reader.text(),
        clean_session=bool(flags & 0x02),
        keep_alive_s=keep_alive_s,
        will=_will(reader, flags) if flags & 0x04 else None,
        username=reader.text() if flags & 0x80 else None,
        password=reader.binary() if flags & 0x40 else None,
    )
    reader.finish()
    return packet


def _check_connect_flags(flags: int) -> None:
    if flags & 0x01:
        raise ProtocolError("CONNECT sets the reserved flag [MQTT-3.1.2-3]")
    if not flags & 0x04 and flags & 0x38:
        raise ProtocolError("CONNECT has no will but sets will flags [MQTT-3.1.2-11, 13, 15]")
    if flags >> 3 & 0x03 == 3:
        raise ProtocolError("CONNECT asks for a will of QoS 3 [MQTT-3.1.2-14]")
    if flags & 0x40 and not flags & 0x80:
        raise ProtocolError("CONNECT has a password but no user name [MQTT-3.1.2-22]")


def _will(reader: _Reader, flags: int) -> Will:
    return Will(
        topic=check_topic_name(reader.text()),
        payload=reader.binary(),
        qos=flags >> 3 & 0x03,
        retain=bool(flags & 0x20),
    )


def _connack(_flags: int, body: bytes) -> Connack:
    reader = _Reader("CONNACK", body)
    flags, code = reader.byte(), reader.byte()
    reader.finish()
    if flags & 0xFE:
        raise ProtocolError("CONNACK sets reserved flags [3.2.2.1]")
    if code not in _CONNACK_CODES:
        raise ProtocolError(f"CONNACK has the return code {code}, which is reserved [3.2.2.3]")
    if flags and code:
        raise ProtocolError("CONNACK refuses and yet says that a session is present [MQTT-3.2.2-4]")
    return Connack(session_present=bool(flags), code=ConnackCode(code))


def _publish(flags: int, body: bytes) -> Publish:
    # The hot path: fields are cut by hand rather than through a reader.
    topic_end = 2 + (body[0] << 8 | body[1]) if len(body) >= 2 else len(body) + 1
    qos = flags >> 1 & 0x03
    payload_start = topic_end + 2 if qos else topic_end
    if payload_start > len(body):
        raise ProtocolError(f"PUBLISH of {len(body)} bytes ends inside its topic or packet identifier")
    try:
        topic = body[2:topic_end].decode()
    except UnicodeDecodeError as err:
        raise ProtocolError(f"PUBLISH holds a topic that is not UTF-8 [MQTT-1.5.3-1]: {err.reason}") from err
    check_topic_name(topic)
    packet_id = None
    if qos:
        packet_id = body[topic_end] << 8 | body[topic_end + 1]
        if packet_id == 0:
            raise ProtocolError("PUBLISH has the packet identifier 0 [MQTT-2.3.1-1]")
    return Publish(
        topic=topic,
        payload=body[payload_start:],
        qos=qos,
        retain=bool(flags & 0x01),
        duplicate=bool(flags & 0x08),
        packet_id=packet_id,
    )


def _acknowledgement(name: str, make: Callable[[int], Packet]) -> Callable[[int, bytes], Packet]:
    def decode_acknowledgement(_flags: int, body: bytes) -> Packet:
        reader = _Reader(name, body)
        packet_id = reader.packet_id()
        reader.finish()
        return make(packet_id)

    return decode_acknowledgement


def _subscribe(_flags: int, body: bytes) -> Subscribe:
    reader = _Reader("SUBSCRIBE", body)
    packet_id = reader.packet_id()
    filters = []
    while reader.left:
        topic_filter, qos = check_topic_filter(reader.text()), reader.byte()
        if qos > 2:
            raise ProtocolError(f"SUBSCRIBE asks for QoS 0x{qos:02x} [MQTT-3-8.3-4]")
        filters.append((topic_filter, qos))
    if not filters:
        raise ProtocolError("SUBSCRIBE has no topic filter [MQTT-3.8.3-3]")
    return Subscribe(packet_id=packet_id, filters=tuple(filters))


def _suback(_flags: int, body: bytes) -> Suback:
    reader = _Reader("SUBACK", body)
    packet_id = reader.packet_id()
    codes = tuple(reader.take(reader.left))
    if not codes or any(code not in (0, 1, 2, SUBACK_FAILURE) for code in codes):
        raise ProtocolError(f"SUBACK has the codes {codes}; 0, 1, 2 and 128 exist [MQTT-3.9.3-2]")
    return Suback(packet_id=packet_id, codes=codes)


def _unsubscribe(_flags: int, body: bytes) -> Unsubscribe:
    reader = _Reader("UNSUBSCRIBE", body)
    packet_id = reader.packet_id()
    filters = []
    while reader.left:
        filters.append(check_topic_filter(reader.text()))
    if not filters:
        raise ProtocolError("UNSUBSCRIBE has no topic filter [MQTT-3.10.3-2]")
    return Unsubscribe(packet_id=packet_id, filters=tuple(filters))


def _bare(name: str, packet: Packet) -> Callable[[int, bytes], Packet]:
    def decode_bare(_flags: int, body: bytes) -> Packet:
        if body:
            raise ProtocolError(f"{name} has {len(body)} bytes; it has none")
        return packet

    return decode_bare


_DECODERS: dict[int, Callable[[int, bytes], Any]] = {
    PacketType.CONNECT: _connect,
    PacketType.CONNACK: _connack,
    PacketType.PUBLISH: _publish,
    PacketType.PUBACK: _acknowledgement("PUBACK", Puback),
    PacketType.PUBREC: _acknowledgement("PUBREC", Pubrec),
    PacketType.PUBREL: _acknowledgement("PUBREL", Pubrel),
    PacketType.PUBCOMP: _acknowledgement("PUBCOMP", Pubcomp),
    PacketType.SUBSCRIBE: _subscribe,
    PacketType.SUBACK: _suback,
    PacketType.UNSUBSCRIBE: _unsubscribe,
    PacketType.UNSUBACK: _acknowledgement("UNSUBACK", Unsuback),
    PacketType.PINGREQ: _bare("PINGREQ", Pingreq()),
    PacketType.PINGRESP: _bare("PINGRESP", Pingresp()),
    PacketType.DISCONNECT: _bare("DISCONNECT", Disconnect()),
}
