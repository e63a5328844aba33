"""A message and its sections (3.2)."""

from collections.abc import Callable
from typing import Any

import msgspec

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.amqp.performatives import (
    ANY,
    BINARY,
    BOOLEAN,
    SYMBOL,
    TEXT,
    TIMESTAMP,
    UBYTE,
    UINT,
    FieldKind,
    make,
    write_fields,
)
from simulators.iothub.wire.amqp.values import Described, Reader, Symbol, ULong, encode_value


class Header(msgspec.Struct, frozen=True, kw_only=True):
    durable: bool | None = None
    priority: int | None = None
    ttl_ms: int | None = None
    first_acquirer: bool | None = None
    delivery_count: int | None = None


class Properties(msgspec.Struct, frozen=True, kw_only=True):
    """`message_id` and `correlation_id` keep their AMQP type: an answer repeats it."""

    message_id: Any = None
    user_id: bytes | None = None
    to: str | None = None
    subject: str | None = None
    reply_to: str | None = None
    correlation_id: Any = None
    content_type: str | None = None
    content_encoding: str | None = None
    absolute_expiry_time_ms: int | None = None
    creation_time_ms: int | None = None
    group_id: str | None = None
    group_sequence: int | None = None
    reply_to_group_id: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """The body is `data` (sections of bytes), or `sequences`, or, where both are empty, `value`."""

    header: Header | None = None
    delivery_annotations: dict[Any, Any] | None = None
    annotations: dict[Any, Any] | None = None
    properties: Properties | None = None
    application_properties: dict[Any, Any] | None = None
    data: tuple[bytes, ...] = ()
    sequences: tuple[list[Any], ...] = ()
    value: Any = None
    footer: dict[Any, Any] | None = None


_HEADER_FIELDS: dict[str, FieldKind] = {
    "durable": BOOLEAN,
    "priority": UBYTE,
    "ttl_ms": UINT,
    "first_acquirer": BOOLEAN,
    "delivery_count": UINT,
}
_PROPERTIES_FIELDS: dict[str, FieldKind] = {
    "message_id": ANY,
    "user_id": BINARY,
    "to": TEXT,
    "subject": TEXT,
    "reply_to": TEXT,
    "correlation_id": ANY,
    "content_type": SYMBOL,
    "content_encoding": SYMBOL,
    "absolute_expiry_time_ms": TIMESTAMP,
    "creation_time_ms": TIMESTAMP,
    "group_id": TEXT,
    "group_sequence": UINT,
    "reply_to_group_id": TEXT,
}
_HEADER, _DELIVERY_ANNOTATIONS, _ANNOTATIONS, _PROPERTIES, _APPLICATION_PROPERTIES = range(0x70, 0x75)
_DATA, _SEQUENCE, _VALUE, _FOOTER = range(0x75, 0x79)
_SYMBOLIC = {
    "amqp:header:list": _HEADER,
    "amqp:delivery-annotations:map": _DELIVERY_ANNOTATIONS,
    "amqp:message-annotations:map": _ANNOTATIONS,
    "amqp:properties:list": _PROPERTIES,
    "amqp:application-properties:map": _APPLICATION_PROPERTIES,
    "amqp:data:binary": _DATA,
    "amqp:amqp-sequence:list": _SEQUENCE,
    "amqp:amqp-value:*": _VALUE,
    "amqp:footer:map": _FOOTER,
}
_BODY_SECTIONS = frozenset((_DATA, _SEQUENCE))


def decode_message(data: bytes) -> Message:
    """Read a whole message.

    Raises:
        ProtocolError: a section is unknown, malformed, twice there or out of its order.
    """
    reader = Reader(data)
    fields: dict[str, Any] = {}
    last = 0
    while reader.left:
        section = reader.value()
        code = _section_code(section)
        if code < last or (code == last and code not in _BODY_SECTIONS):
            raise ProtocolError(f"section 0x{code:02x} of a message follows section 0x{last:02x} [3.2]")
        if {last, code} in ({_DATA, _SEQUENCE}, {_DATA, _VALUE}, {_SEQUENCE, _VALUE}):
            raise ProtocolError("a message has bodies of two kinds [3.2]")
        last = code
        name, read = _SECTIONS[code]
        content = read(section.value)
        fields[name] = (*fields.get(name, ()), content) if code in _BODY_SECTIONS else content
    return Message(**fields)


def _section_code(section: Any) -> int:
    descriptor = section.descriptor if isinstance(section, Described) else None
    code = _SYMBOLIC.get(descriptor) if isinstance(descriptor, Symbol) else descriptor
    if not isinstance(code, int) or code not in _SECTIONS:
        raise ProtocolError(f"{section!r:.60} is no section of a message [3.2]")
    return int(code)


def _exactly(kind: type, name: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ProtocolError(f"{name} of a message is {value!r:.60} [3.2]")
        return value

    return read


def _structure(kind: type, fields: dict[str, FieldKind]) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if not isinstance(value, list) or len(value) > len(fields):
            raise ProtocolError(f"{kind.__name__} of a message is no list of at most {len(fields)} fields [3.2]")
        return make(kind, fields, value)

    return read


_SECTIONS: dict[int, tuple[str, Callable[[Any], Any]]] = {
    _HEADER: ("header", _structure(Header, _HEADER_FIELDS)),
    _DELIVERY_ANNOTATIONS: ("delivery_annotations", _exactly(dict, "delivery-annotations")),
    _ANNOTATIONS: ("annotations", _exactly(dict, "message-annotations")),
    _PROPERTIES: ("properties", _structure(Properties, _PROPERTIES_FIELDS)),
    _APPLICATION_PROPERTIES: ("application_properties", _exactly(dict, "application-properties")),
    _DATA: ("data", _exactly(bytes, "data")),
    _SEQUENCE: ("sequences", _exactly(list, "amqp-sequence")),
    _VALUE: ("value", lambda value: value),
    _FOOTER: ("footer", _exactly(dict, "footer")),
}


def encode_message(message: Message) -> bytes:
    """Write a message; an empty section is left out, since azure-eventhub takes one that is there to be filled."""
    sections: list[tuple[int, Any]] = []
    if message.header is not None:
        sections.append((_HEADER, write_fields(message.header, _HEADER_FIELDS)))
    if message.delivery_annotations:
        sections.append((_DELIVERY_ANNOTATIONS, message.delivery_annotations))
    if message.annotations:
        sections.append((_ANNOTATIONS, message.annotations))
    if message.properties is not None and message.properties != Properties():
        sections.append((_PROPERTIES, write_fields(message.properties, _PROPERTIES_FIELDS)))
    if message.application_properties:
        sections.append((_APPLICATION_PROPERTIES, message.application_properties))
    sections += [(_DATA, content) for content in message.data]
    sections += [(_SEQUENCE, content) for content in message.sequences]
    if not message.data and not message.sequences:
        sections.append((_VALUE, message.value))
    if message.footer:
        sections.append((_FOOTER, message.footer))
    return b"".join(encode_value(Described(ULong(code), content)) for code, content in sections)
