"""The fourteen packets of MQTT 3.1.1 as values, and the rules for what they may hold.

Section numbers are those of the OASIS standard, http://docs.oasis-open.org/mqtt/mqtt/v3.1.1/os/.
"""

import enum

import msgspec

from simulators.iothub.errors import ProtocolError

STRING_BYTES_MAX = 65_535
REMAINING_LENGTH_MAX = 268_435_455
PROTOCOL_NAME = "MQTT"
PROTOCOL_LEVEL = 4


class PacketType(enum.IntEnum):
    """The high four bits of a fixed header (2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class ConnackCode(enum.IntEnum):
    """Connect return codes (3.2.2.3)."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL_LEVEL = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_USERNAME_OR_PASSWORD = 4
    NOT_AUTHORIZED = 5


SUBACK_FAILURE = 0x80


class Will(msgspec.Struct, frozen=True, kw_only=True):
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class Connect(msgspec.Struct, frozen=True, kw_only=True):
    client_id: str
    clean_session: bool = True
    keep_alive_s: int = 0
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None


class Connack(msgspec.Struct, frozen=True, kw_only=True):
    session_present: bool = False
    code: ConnackCode = ConnackCode.ACCEPTED


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """`packet_id` is None exactly when `qos` is 0."""

    topic: str
    payload: bytes = b""
    qos: int = 0
    retain: bool = False
    duplicate: bool = False
    packet_id: int | None = None


class Puback(msgspec.Struct, frozen=True):
    packet_id: int


class Pubrec(msgspec.Struct, frozen=True):
    packet_id: int


class Pubrel(msgspec.Struct, frozen=True):
    packet_id: int


class Pubcomp(msgspec.Struct, frozen=True):
    packet_id: int


class Subscribe(msgspec.Struct, frozen=True, kw_only=True):
    """`filters` holds (topic filter, requested QoS), at least one."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


class Suback(msgspec.Struct, frozen=True, kw_only=True):
    """One code per requested filter: the granted QoS, or `SUBACK_FAILURE`."""

    packet_id: int
    codes: tuple[int, ...]


class Unsubscribe(msgspec.Struct, frozen=True, kw_only=True):
    packet_id: int
    filters: tuple[str, ...]


class Unsuback(msgspec.Struct, frozen=True):
    packet_id: int


class Pingreq(msgspec.Struct, frozen=True):
    pass


class Pingresp(msgspec.Struct, frozen=True):
    pass


class Disconnect(msgspec.Struct, frozen=True):
    pass


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
)


def check_packet_id(packet_id: int) -> int:
    """Packet identifiers are 1 to 65535 (MQTT-2.3.1-1)."""
    if not 1 <= packet_id <= 65_535:
        raise ProtocolError(f"packet identifier {packet_id} is not between 1 and 65535 [MQTT-2.3.1-1]")
    return packet_id


def check_text(text: str) -> str:
    """Strings hold no U+0000 (MQTT-1.5.3-2); surrogates never get here, since UTF-8 cannot spell them."""
    if "\0" in text:
        raise ProtocolError("a string holds U+0000 [MQTT-1.5.3-2]")
    return text


def check_topic_name(topic: str) -> str:
    """The topic of a message: not empty, no wildcard (MQTT-3.3.2-2, MQTT-4.7.3-1)."""
    if not topic:
        raise ProtocolError("a topic is empty [MQTT-4.7.3-1]")
    if "+" in topic or "#" in topic:
        raise ProtocolError(f"topic {topic!r} holds a wildcard [MQTT-3.3.2-2]")
    return check_text(topic)


def check_topic_filter(topic_filter: str) -> str:
    """A subscription: ``#`` only as the whole last level, ``+`` only as a whole level (MQTT-4.7.1-2, -3)."""
    if not topic_filter:
        raise ProtocolError("a topic filter is empty [MQTT-4.7.3-1]")
    levels = topic_filter.split("/")
    for position, level in enumerate(levels):
        if "#" in level and (level != "#" or position != len(levels) - 1):
            raise ProtocolError(f"topic filter {topic_filter!r} has '#' where it may not be [MQTT-4.7.1-2]")
        if "+" in level and level != "+":
            raise ProtocolError(f"topic filter {topic_filter!r} has '+' where it may not be [MQTT-4.7.1-3]")
    return check_text(topic_filter)


def check_qos(qos: int) -> int:
    if qos not in (0, 1, 2):
        raise ProtocolError(f"QoS {qos} does not exist [MQTT-3.3.1-4]")
    return qos
