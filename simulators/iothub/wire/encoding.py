"""Packets to bytes. Refuses, as a ProtocolError, what no peer may be sent."""

import struct
from collections.abc import Callable
from typing import Any

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.packets import (
    PROTOCOL_LEVEL,
    PROTOCOL_NAME,
    REMAINING_LENGTH_MAX,
    STRING_BYTES_MAX,
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
    check_packet_id,
    check_qos,
    check_text,
    check_topic_filter,
    check_topic_name,
)

_SHORT = struct.Struct("!H")
# Most packets are short: their remaining length is one byte, made once.
_SHORT_LENGTHS = tuple(bytes((length,)) for length in range(128))


def encode(packet: Packet) -> bytes:
    """The bytes of one packet.

    Raises:
        ProtocolError: a field cannot be on the wire; the message names the rule.
    """
    return _ENCODERS[type(packet)](packet)


def encode_remaining_length(length: int) -> bytes:
    """A length of up to four bytes, seven bits each, least significant first (2.2.3)."""
    if length < 128:
        return _SHORT_LENGTHS[length]
    if length > REMAINING_LENGTH_MAX:
        raise ProtocolError(f"a packet of {length} bytes is longer than MQTT allows ({REMAINING_LENGTH_MAX})")
    encoded = bytearray()
    while length > 127:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


def _binary(content: bytes) -> bytes:
    if len(content) > STRING_BYTES_MAX:
        raise ProtocolError(f"a field of {len(content)} bytes is longer than MQTT allows ({STRING_BYTES_MAX})")
    return _SHORT.pack(len(content)) + content


def _text(text: str) -> bytes:
    try:
        return _binary(check_text(text).encode())
    except UnicodeEncodeError as err:
        raise ProtocolError(f"a string holds a surrogate, which UTF-8 cannot spell [MQTT-1.5.3-1]: {err}") from err


def _framed(first_byte: int, *parts: bytes) -> bytes:
    return b"".join((bytes((first_byte,)), encode_remaining_length(sum(map(len, parts))), *parts))


def _connect(packet: Connect) -> bytes:
    if packet.password is not None and packet.username is None:
        raise ProtocolError("CONNECT has a password but no user name [MQTT-3.1.2-22]")
    if not 0 <= packet.keep_alive_s <= 65_535:
        raise ProtocolError(f"CONNECT has a keep-alive of {packet.keep_alive_s} s; 0 to 65535 fit")
    flags = packet.clean_session << 1
    payload = [_text(packet.client_id)]
    if packet.will is not None:
        flags |= 0x04 | check_qos(packet.will.qos) << 3 | packet.will.retain << 5
        payload += [_text(check_topic_name(packet.will.topic)), _binary(packet.will.payload)]
    if packet.username is not None:
        flags |= 0x80
        payload.append(_text(packet.username))
    if packet.password is not None:
        flags |= 0x40
        payload.append(_binary(packet.password))
    header = _text(PROTOCOL_NAME) + bytes((PROTOCOL_LEVEL, flags)) + _SHORT.pack(packet.keep_alive_s)
    return _framed(PacketType.CONNECT << 4, header, *payload)


def _connack(packet: Connack) -> bytes:
    if packet.session_present and packet.code != ConnackCode.ACCEPTED:
        raise ProtocolError("CONNACK refuses and yet says that a session is present [MQTT-3.2.2-4]")
    return bytes((PacketType.CONNACK << 4, 2, packet.session_present, packet.code))


def _publish(packet: Publish) -> bytes:
    topic = _text(check_topic_name(packet.topic))
    qos = packet.qos
    first_byte = 0x30 | packet.duplicate << 3 | qos << 1 | packet.retain
    if qos == 0:
        if packet.packet_id is not None or packet.duplicate:
            raise ProtocolError("PUBLISH with QoS 0 has a packet identifier or the DUP flag [MQTT-2.3.1-5, 3.3.1-2]")
        return _framed(first_byte, topic, packet.payload)
    check_qos(qos)
    if packet.packet_id is None:
        raise ProtocolError(f"PUBLISH with QoS {qos} has no packet identifier [MQTT-2.3.1-1]")
    return _framed(first_byte, topic, _SHORT.pack(check_packet_id(packet.packet_id)), packet.payload)


def _acknowledgement(first_byte: int) -> Callable[[Any], bytes]:
    def encode_acknowledgement(packet: Any) -> bytes:
        return bytes((first_byte, 2)) + _SHORT.pack(check_packet_id(packet.packet_id))

    return encode_acknowledgement


def _subscribe(packet: Subscribe) -> bytes:
    if not packet.filters:
        raise ProtocolError("SUBSCRIBE has no topic filter [MQTT-3.8.3-3]")
    parts = [_text(check_topic_filter(text)) + bytes((check_qos(qos),)) for text, qos in packet.filters]
    return _framed(PacketType.SUBSCRIBE << 4 | 2, _SHORT.pack(check_packet_id(packet.packet_id)), *parts)


def _suback(packet: Suback) -> bytes:
    if not packet.codes or any(code not in (0, 1, 2, SUBACK_FAILURE) for code in packet.codes):
        raise ProtocolError(f"SUBACK has the codes {packet.codes}; 0, 1, 2 and 128 exist [MQTT-3.9.3-2]")
    return _framed(PacketType.SUBACK << 4, _SHORT.pack(check_packet_id(packet.packet_id)), bytes(packet.codes))


def _unsubscribe(packet: Unsubscribe) -> bytes:
    if not packet.filters:
        raise ProtocolError("UNSUBSCRIBE has no topic filter [MQTT-3.10.3-2]")
    parts = [_text(check_topic_filter(text)) for text in packet.filters]
    return _framed(PacketType.UNSUBSCRIBE << 4 | 2, _SHORT.pack(check_packet_id(packet.packet_id)), *parts)


def _bare(packet_type: PacketType) -> Callable[[Any], bytes]:
    content = bytes((packet_type << 4, 0))
    return lambda _packet: content


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    Connect: _connect,
    Connack: _connack,
    Publish: _publish,
    Puback: _acknowledgement(PacketType.PUBACK << 4),
    Pubrec: _acknowledgement(PacketType.PUBREC << 4),
    Pubrel: _acknowledgement(PacketType.PUBREL << 4 | 2),
    Pubcomp: _acknowledgement(PacketType.PUBCOMP << 4),
    Subscribe: _subscribe,
    Suback: _suback,
    Unsubscribe: _unsubscribe,
    Unsuback: _acknowledgement(PacketType.UNSUBACK << 4),
    Pingreq: _bare(PacketType.PINGREQ),
    Pingresp: _bare(PacketType.PINGRESP),
    Disconnect: _bare(PacketType.DISCONNECT),
}
