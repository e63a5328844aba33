"""The AMQP codec for every value, every frame and every byte string."""

import math
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.amqp import performatives as amqp
from simulators.iothub.wire.amqp.frames import (
    Decoder,
    Frame,
    Heartbeat,
    Piece,
    ProtocolHeader,
    SaslFrame,
    encode_piece,
)
from simulators.iothub.wire.amqp.messages import Header, Message, Properties, decode_message, encode_message
from simulators.iothub.wire.amqp.values import (
    Array,
    Byte,
    Char,
    DecimalBits,
    Described,
    Float,
    Int,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    decode_value,
    encode_value,
)

FRAME_BYTES_MAX = 4096
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SYMBOL_TEXT = st.text(st.characters(max_codepoint=127), max_size=20)


def unsigned(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


def signed(bits: int) -> st.SearchStrategy[int]:
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


SIMPLE_KINDS: list[st.SearchStrategy[Any]] = [
    st.none(),
    st.booleans(),
    unsigned(8).map(UByte),
    unsigned(16).map(UShort),
    unsigned(32).map(UInt),
    unsigned(64).map(ULong),
    signed(8).map(Byte),
    signed(16).map(Short),
    signed(32).map(Int),
    signed(64),
    signed(64).map(Timestamp),
    unsigned(32).map(Char),
    st.floats(width=32, allow_nan=False).map(Float),
    st.floats(allow_nan=False),
    *(st.binary(min_size=size, max_size=size).map(DecimalBits) for size in (4, 8, 16)),
    st.uuids(),
    st.binary(max_size=300),
    TEXT,
    SYMBOL_TEXT.map(Symbol),
]
SIMPLE = st.one_of(SIMPLE_KINDS)
ARRAYS = st.sampled_from(SIMPLE_KINDS).flatmap(lambda kind: st.lists(kind, max_size=5)).map(tuple).map(Array)
VALUES = st.recursive(
    SIMPLE | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(SIMPLE, inner, max_size=4)
        | st.builds(Described, SYMBOL_TEXT.map(Symbol) | unsigned(64).map(ULong), inner)
    ),
    max_leaves=8,
)
MAPS = st.none() | st.dictionaries(SYMBOL_TEXT.map(Symbol), SIMPLE, max_size=3)
SYMBOLS = st.none() | st.lists(SYMBOL_TEXT, max_size=3).map(tuple)
UINTS = unsigned(32)
ERRORS = st.none() | st.builds(amqp.AmqpError, condition=SYMBOL_TEXT, description=st.none() | TEXT, info=MAPS)
OUTCOMES = st.one_of(
    st.none(),
    st.just(amqp.Accepted()),
    st.just(amqp.Released()),
    st.builds(amqp.Rejected, error=ERRORS),
    st.builds(amqp.Modified, delivery_failed=st.none() | st.booleans()),
    st.builds(amqp.Received, section_number=UINTS, section_offset=unsigned(64)),
)
SOURCES = st.none() | st.builds(
    amqp.Source, address=st.none() | TEXT, durable=UINTS, filter=MAPS, outcomes=SYMBOLS, default_outcome=OUTCOMES
)
TARGETS = st.none() | st.builds(amqp.Target, address=st.none() | TEXT, dynamic=st.booleans(), capabilities=SYMBOLS)
PERFORMATIVES: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        amqp.Open,
        container_id=TEXT,
        hostname=st.none() | TEXT,
        max_frame_size=UINTS,
        channel_max=unsigned(16),
        idle_timeout_ms=st.none() | UINTS,
        offered_capabilities=SYMBOLS,
        properties=MAPS,
    ),
    st.builds(
        amqp.Begin,
        remote_channel=st.none() | unsigned(16),
        next_outgoing_id=UINTS,
        incoming_window=UINTS,
        outgoing_window=UINTS,
    ),
    st.builds(
        amqp.Attach,
        name=TEXT,
        handle=UINTS,
        role=st.booleans(),
        snd_settle_mode=unsigned(8),
        source=SOURCES,
        target=TARGETS,
        max_message_size=st.none() | unsigned(64),
        properties=MAPS,
    ),
    st.builds(
        amqp.Flow,
        incoming_window=UINTS,
        next_outgoing_id=UINTS,
        outgoing_window=UINTS,
        handle=st.none() | UINTS,
        link_credit=st.none() | UINTS,
        drain=st.booleans(),
    ),
    st.builds(amqp.Disposition, role=st.booleans(), first=UINTS, last=st.none() | UINTS, state=OUTCOMES),
    st.builds(amqp.Detach, handle=UINTS, closed=st.booleans(), error=ERRORS),
    st.builds(amqp.End, error=ERRORS),
    st.builds(amqp.Close, error=ERRORS),
)
TRANSFERS = st.builds(
    amqp.Transfer,
    handle=UINTS,
    delivery_id=st.none() | UINTS,
    delivery_tag=st.none() | st.binary(max_size=32),
    settled=st.none() | st.booleans(),
    more=st.booleans(),
    state=OUTCOMES,
)
SASL: st.SearchStrategy[Any] = st.one_of(
    st.builds(amqp.SaslMechanisms, mechanisms=st.lists(SYMBOL_TEXT, max_size=3).map(tuple)),
    st.builds(amqp.SaslInit, mechanism=SYMBOL_TEXT, initial_response=st.none() | st.binary(max_size=20)),
    st.builds(amqp.SaslOutcome, code=unsigned(8)),
)
PIECES: st.SearchStrategy[Piece] = st.one_of(
    st.builds(ProtocolHeader, unsigned(8), st.tuples(unsigned(8), unsigned(8), unsigned(8))),
    st.builds(Heartbeat, unsigned(16)),
    st.builds(SaslFrame, SASL),
    st.builds(Frame, unsigned(16), PERFORMATIVES),
    st.builds(Frame, unsigned(16), TRANSFERS, st.binary(max_size=100)),
)
IDS = st.none() | TEXT | st.uuids() | st.binary(max_size=10) | unsigned(64).map(ULong)
MESSAGES = st.builds(
    Message,
    header=st.none() | st.builds(Header, durable=st.none() | st.booleans(), ttl_ms=st.none() | UINTS),
    annotations=MAPS.map(lambda value: value or None),
    properties=st.none()
    | st.builds(
        Properties,
        message_id=IDS.filter(lambda value: value is not None),
        correlation_id=IDS,
        user_id=st.none() | st.binary(max_size=9),
        to=st.none() | TEXT,
        content_type=st.none() | SYMBOL_TEXT,
        absolute_expiry_time_ms=st.none() | signed(64),
    ),
    application_properties=MAPS.map(lambda value: value or None),
    data=st.lists(st.binary(max_size=300), max_size=3).map(tuple),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Headers and frames one after the other, often with some bytes changed, added or missing."""
    data = bytearray(b"".join(map(encode_piece, draw(st.lists(PIECES, max_size=4)))))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "add", "cut"])):
            case "change":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "add":
                data[place:place] = draw(st.binary(max_size=4))
            case "cut":
                del data[place : place + draw(st.integers(1, 10))]
    return bytes(data)


def decoded(chunks: list[bytes]) -> tuple[list[Any], str | None]:
    """All pieces of a stream, and the fault that ended it."""
    decoder = Decoder(FRAME_BYTES_MAX)
    found: list[Any] = []
    for chunk in chunks:
        try:
            found += decoder.feed(chunk)
        except ProtocolError as err:
            return [*found, *err.decoded], err.message
        assert decoder.buffered_bytes < FRAME_BYTES_MAX
    return found, None


def types_of(value: Any) -> Any:
    """A value with the type of each part, since UInt(1) == 1 == True."""
    match value:
        case list():
            return [types_of(item) for item in value]
        case dict():
            return [(types_of(key), types_of(item)) for key, item in value.items()]
        case Array(items):
            return ("array", [types_of(item) for item in items])
        case Described(descriptor, inner):
            return ("described", types_of(descriptor), types_of(inner))
        case _:
            return (type(value), value)


def without_nan(value: Any) -> bool:
    return "nan" not in repr(value)


@settings(deadline=None, max_examples=400)
@given(VALUES)
def test_a_value_that_is_written_is_read_back_with_its_type(value: Any) -> None:
    assert types_of(decode_value(encode_value(value))) == types_of(value)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=5))
def test_frames_that_are_written_are_read_back(sent: list[Piece]) -> None:
    assert decoded([b"".join(map(encode_piece, sent))]) == (sent, None)


@settings(deadline=None, max_examples=300)
@given(MESSAGES)
def test_a_message_that_is_written_is_read_back(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@settings(deadline=None, max_examples=500)
@given(st.one_of(streams(), st.binary(max_size=200)), st.data())
@example(b"AMQP\x03\x01\x00\x00\xff\xff\xff\xff", None)
@example(b"\x00\x00\x00\x08\x01\x00\x00\x00", None)
def test_a_stream_means_the_same_however_it_is_cut(stream: bytes, data: st.DataObject | None) -> None:
    whole = decoded([stream])
    # repr, since a stream may hold NaN, which is not equal to itself.
    assert repr(decoded([stream[index : index + 1] for index in range(len(stream))])) == repr(whole)
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
        pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert repr(decoded(pieces)) == repr(whole)


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    data = bytearray(encode_message(draw(MESSAGES)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data)


@settings(deadline=None, max_examples=600)
@given(st.one_of(st.binary(max_size=120), VALUES.map(encode_value), damaged_messages()))
@example(bytes.fromhex("d0" * 40))
@example(b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x40")
@example(b"\x00" * 5000)
@example(b"\xc0\x02\x01" * 2000)
def test_any_bytes_are_a_value_and_a_message_or_the_declared_error(data: bytes) -> None:
    for read, write, read_again in (
        (decode_value, encode_value, decode_value),
        (decode_message, encode_message, decode_message),
    ):
        try:
            found = read(data)
        except ProtocolError:
            continue
        if without_nan(found):
            assert read_again(write(found)) == found  # type: ignore[operator]


def test_a_float_that_is_no_number_stays_one() -> None:
    assert math.isnan(decode_value(encode_value(math.nan)))
