"""The composite types of AMQP 1.0: performatives, SASL frames, sources, targets, outcomes, errors; and their fields.

They are written full width, trailing nulls included, with a small descriptor and never as a list without bytes, since
azure-eventhub reads fields by position and descriptors by their third byte.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.amqp.values import (
    Array,
    Described,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    encode_value,
)

SENDER, RECEIVER = False, True
# Sender settle modes (2.8.2).
UNSETTLED, SETTLED, MIXED = 0, 1, 2
UINT_MAX = 2**32 - 1


class Composite(msgspec.Struct, frozen=True, kw_only=True):
    """What all of them are."""


class AmqpError(Composite, frozen=True, kw_only=True):
    condition: str
    description: str | None = None
    info: dict[Any, Any] | None = None


class Source(Composite, frozen=True, kw_only=True):
    address: Any = None
    durable: int = 0
    expiry_policy: str = "session-end"
    timeout: int = 0
    dynamic: bool = False
    dynamic_node_properties: dict[Any, Any] | None = None
    distribution_mode: str | None = None
    filter: dict[Any, Any] | None = None
    default_outcome: Any = None
    outcomes: tuple[str, ...] | None = None
    capabilities: tuple[str, ...] | None = None


class Target(Composite, frozen=True, kw_only=True):
    address: Any = None
    durable: int = 0
    expiry_policy: str = "session-end"
    timeout: int = 0
    dynamic: bool = False
    dynamic_node_properties: dict[Any, Any] | None = None
    capabilities: tuple[str, ...] | None = None


class Received(Composite, frozen=True, kw_only=True):
    section_number: int
    section_offset: int


class Accepted(Composite, frozen=True, kw_only=True):
    pass


class Rejected(Composite, frozen=True, kw_only=True):
    error: AmqpError | None = None


class Released(Composite, frozen=True, kw_only=True):
    pass


class Modified(Composite, frozen=True, kw_only=True):
    delivery_failed: bool | None = None
    undeliverable_here: bool | None = None
    message_annotations: dict[Any, Any] | None = None


class Open(Composite, frozen=True, kw_only=True):
    container_id: str
    hostname: str | None = None
    max_frame_size: int = UINT_MAX
    channel_max: int = 65_535
    idle_timeout_ms: int | None = None
    outgoing_locales: tuple[str, ...] | None = None
    incoming_locales: tuple[str, ...] | None = None
    offered_capabilities: tuple[str, ...] | None = None
    desired_capabilities: tuple[str, ...] | None = None
    properties: dict[Any, Any] | None = None


class Begin(Composite, frozen=True, kw_only=True):
    remote_channel: int | None = None
    next_outgoing_id: int
    incoming_window: int
    outgoing_window: int
    handle_max: int = UINT_MAX
    offered_capabilities: tuple[str, ...] | None = None
    desired_capabilities: tuple[str, ...] | None = None
    properties: dict[Any, Any] | None = None


class Attach(Composite, frozen=True, kw_only=True):
    name: str
    handle: int
    role: bool
    snd_settle_mode: int = MIXED
    rcv_settle_mode: int = 0
    source: Any = None
    target: Any = None
    unsettled: dict[Any, Any] | None = None
    incomplete_unsettled: bool = False
    initial_delivery_count: int | None = None
    max_message_size: int | None = None
    offered_capabilities: tuple[str, ...] | None = None
    desired_capabilities: tuple[str, ...] | None = None
    properties: dict[Any, Any] | None = None


class Flow(Composite, frozen=True, kw_only=True):
    next_incoming_id: int | None = None
    incoming_window: int
    next_outgoing_id: int
    outgoing_window: int
    handle: int | None = None
    delivery_count: int | None = None
    link_credit: int | None = None
    available: int | None = None
    drain: bool = False
    echo: bool = False
    properties: dict[Any, Any] | None = None


class Transfer(Composite, frozen=True, kw_only=True):
    handle: int
    delivery_id: int | None = None
    delivery_tag: bytes | None = None
    message_format: int | None = None
    settled: bool | None = None
    more: bool = False
    rcv_settle_mode: int | None = None
    state: Any = None
    resume: bool = False
    aborted: bool = False
    batchable: bool = False


class Disposition(Composite, frozen=True, kw_only=True):
    role: bool
    first: int
    last: int | None = None
    settled: bool = False
    state: Any = None
    batchable: bool = False


class Detach(Composite, frozen=True, kw_only=True):
    handle: int
    closed: bool = False
    error: AmqpError | None = None


class End(Composite, frozen=True, kw_only=True):
    error: AmqpError | None = None


class Close(Composite, frozen=True, kw_only=True):
    error: AmqpError | None = None


class SaslMechanisms(Composite, frozen=True, kw_only=True):
    mechanisms: tuple[str, ...]


class SaslInit(Composite, frozen=True, kw_only=True):
    mechanism: str
    initial_response: bytes | None = None
    hostname: str | None = None


class SaslChallenge(Composite, frozen=True, kw_only=True):
    challenge: bytes


class SaslResponse(Composite, frozen=True, kw_only=True):
    response: bytes


class SaslOutcome(Composite, frozen=True, kw_only=True):
    code: int
    additional_data: bytes | None = None


# --- fields -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldKind:
    """How a field is read from an AMQP value (ValueError where it has another type), and written as one."""

    name: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


def _instance(name: str, kind: type, write: Callable[[Any], Any]) -> FieldKind:
    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"a {name} is wanted")  # noqa: TRY004  the callers turn ValueErrors into ProtocolErrors
        return value

    return FieldKind(name, read, write)


def _unsigned(name: str, kind: type[int], largest: int) -> FieldKind:
    def read(value: Any) -> int:
        # Other widths than the standard's are read too: what counts is the number.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
            raise ValueError(f"a {name} is wanted")
        return int(value)

    return FieldKind(name, read, kind)


def _read_symbols(value: Any) -> tuple[str, ...]:
    items = value.items if isinstance(value, Array) else (value,)
    if not all(isinstance(item, str) for item in items):
        raise ValueError("one symbol or an array of them is wanted")
    return tuple(map(str, items))


def _read_error(value: Any) -> AmqpError:
    composite = read_composite(value)
    if not isinstance(composite, AmqpError):
        raise ValueError("an error is wanted")  # noqa: TRY004
    return composite


STRING = _instance("string", str, str)
SYMBOL = FieldKind("symbol", lambda value: str(STRING.read(value)), Symbol)
TEXT = FieldKind("string", lambda value: str(STRING.read(value)), str)
BINARY = _instance("binary", bytes, bytes)
BOOLEAN = _instance("boolean", bool, bool)
MAP = _instance("map", dict, dict)
UBYTE = _unsigned("ubyte", UByte, 2**8 - 1)
USHORT = _unsigned("ushort", UShort, 2**16 - 1)
UINT = _unsigned("uint", UInt, UINT_MAX)
ULONG = _unsigned("ulong", ULong, 2**64 - 1)
TIMESTAMP = _instance("timestamp", int, Timestamp)
SYMBOLS = FieldKind("symbols", _read_symbols, lambda values: Array(tuple(map(Symbol, values))))
ERROR = FieldKind("error", _read_error, lambda error: write_composite(error))
# A composite of one of the kinds below, or any other value as it is.
ANY = FieldKind("value", lambda value: read_composite(value), lambda value: write_composite(value))

_CAPABILITIES = {"offered_capabilities": SYMBOLS, "desired_capabilities": SYMBOLS, "properties": MAP}
_TERMINUS = {
    "address": ANY,
    "durable": UINT,
    "expiry_policy": SYMBOL,
    "timeout": UINT,
    "dynamic": BOOLEAN,
    "dynamic_node_properties": MAP,
}
FIELDS: dict[int, tuple[type[Composite], dict[str, FieldKind]]] = {
    0x10: (
        Open,
        {
            "container_id": TEXT,
            "hostname": TEXT,
            "max_frame_size": UINT,
            "channel_max": USHORT,
            "idle_timeout_ms": UINT,
            "outgoing_locales": SYMBOLS,
            "incoming_locales": SYMBOLS,
            **_CAPABILITIES,
        },
    ),
    0x11: (
        Begin,
        {
            "remote_channel": USHORT,
            "next_outgoing_id": UINT,
            "incoming_window": UINT,
            "outgoing_window": UINT,
            "handle_max": UINT,
            **_CAPABILITIES,
        },
    ),
    0x12: (
        Attach,
        {
            "name": TEXT,
            "handle": UINT,
            "role": BOOLEAN,
            "snd_settle_mode": UBYTE,
            "rcv_settle_mode": UBYTE,
            "source": ANY,
            "target": ANY,
            "unsettled": MAP,
            "incomplete_unsettled": BOOLEAN,
            "initial_delivery_count": UINT,
            "max_message_size": ULONG,
            **_CAPABILITIES,
        },
    ),
    0x13: (
        Flow,
        {
            "next_incoming_id": UINT,
            "incoming_window": UINT,
            "next_outgoing_id": UINT,
            "outgoing_window": UINT,
            "handle": UINT,
            "delivery_count": UINT,
            "link_credit": UINT,
            "available": UINT,
            "drain": BOOLEAN,
            "echo": BOOLEAN,
            "properties": MAP,
        },
    ),
    0x14: (
        Transfer,
        {
            "handle": UINT,
            "delivery_id": UINT,
            "delivery_tag": BINARY,
            "message_format": UINT,
            "settled": BOOLEAN,
            "more": BOOLEAN,
            "rcv_settle_mode": UBYTE,
            "state": ANY,
            "resume": BOOLEAN,
            "aborted": BOOLEAN,
            "batchable": BOOLEAN,
        },
    ),
    0x15: (
        Disposition,
        {"role": BOOLEAN, "first": UINT, "last": UINT, "settled": BOOLEAN, "state": ANY, "batchable": BOOLEAN},
    ),
    0x16: (Detach, {"handle": UINT, "closed": BOOLEAN, "error": ERROR}),
    0x17: (End, {"error": ERROR}),
    0x18: (Close, {"error": ERROR}),
    0x1D: (AmqpError, {"condition": SYMBOL, "description": TEXT, "info": MAP}),
    0x23: (Received, {"section_number": UINT, "section_offset": ULONG}),
    0x24: (Accepted, {}),
    0x25: (Rejected, {"error": ERROR}),
    0x26: (Released, {}),
    0x27: (Modified, {"delivery_failed": BOOLEAN, "undeliverable_here": BOOLEAN, "message_annotations": MAP}),
    0x28: (
        Source,
        {
            **_TERMINUS,
            "distribution_mode": SYMBOL,
            "filter": MAP,
            "default_outcome": ANY,
            "outcomes": SYMBOLS,
            "capabilities": SYMBOLS,
        },
    ),
    0x29: (Target, {**_TERMINUS, "capabilities": SYMBOLS}),
    0x40: (SaslMechanisms, {"mechanisms": SYMBOLS}),
    0x41: (SaslInit, {"mechanism": SYMBOL, "initial_response": BINARY, "hostname": TEXT}),
    0x42: (SaslChallenge, {"challenge": BINARY}),
    0x43: (SaslResponse, {"response": BINARY}),
    0x44: (SaslOutcome, {"code": UBYTE, "additional_data": BINARY}),
}
_CODES: dict[type, int] = {kind: code for code, (kind, _) in FIELDS.items()}
# Descriptors may be spelled as symbols too (1.3, and the "descriptor" of each type).
_SYMBOLIC = {
    f"amqp:{name}:list": code
    for code, name in {
        0x10: "open", 0x11: "begin", 0x12: "attach", 0x13: "flow", 0x14: "transfer", 0x15: "disposition",
        0x16: "detach", 0x17: "end", 0x18: "close", 0x1D: "error", 0x23: "received", 0x24: "accepted",
        0x25: "rejected", 0x26: "released", 0x27: "modified", 0x28: "source", 0x29: "target",
        0x40: "sasl-mechanisms", 0x41: "sasl-init", 0x42: "sasl-challenge", 0x43: "sasl-response",
        0x44: "sasl-outcome",
    }.items()
}  # fmt: skip


def descriptor_code(descriptor: Any) -> int | None:
    """The number of a descriptor, however it is spelled; None for one that is not the standard's."""
    if isinstance(descriptor, Symbol):
        return _SYMBOLIC.get(descriptor)
    return int(descriptor) if isinstance(descriptor, ULong) else None


def read_composite(value: Any) -> Any:
    """A described list as the composite it is; any other value as it is.

    Raises:
        ProtocolError: a composite with too many fields, one of a wrong type, or without one that it must have.
    """
    if not isinstance(value, Described):
        return value
    entry = FIELDS.get(descriptor_code(value.descriptor) or 0)
    if entry is None:
        return value
    kind, fields = entry
    if not isinstance(value.value, list) or len(value.value) > len(fields):
        raise ProtocolError(f"{kind.__name__} is no list of at most {len(fields)} fields")
    return make(kind, fields, value.value)


def make(kind: type[Any], fields: dict[str, FieldKind], values: list[Any]) -> Any:
    """A structure from the fields of a list; null is the same as not being there (1.4)."""
    read = {}
    for (name, field), value in zip(fields.items(), values, strict=False):
        if value is None:
            continue
        try:
            read[name] = field.read(value)
        except ValueError as err:
            raise ProtocolError(f"{kind.__name__} has {value!r:.60} as {name}: {err}") from err
    try:
        return kind(**read)
    except TypeError as err:
        raise ProtocolError(f"{kind.__name__} lacks a field: {err}") from err


def write_fields(value: Any, fields: dict[str, FieldKind]) -> list[Any]:
    return [
        None if (content := getattr(value, name)) is None else field.write(content) for name, field in fields.items()
    ]


def write_composite(value: Any) -> Any:
    """A composite as a described list, full width; any other value as it is."""
    code = _CODES.get(type(value))
    if code is None:
        return value
    return Described(ULong(code), write_fields(value, FIELDS[code][1]))


def encode_composite(value: Composite) -> bytes:
    return encode_value(write_composite(value))
