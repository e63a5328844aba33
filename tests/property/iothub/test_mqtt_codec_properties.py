"""The codec for every packet and every byte string."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulators.iothub.wire import packets as mqtt
from simulators.iothub.wire.mqtt import Decoder, Packet, ProtocolError, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
TOPICS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=30)
FILTERS = st.lists(st.one_of(TOPICS.map(lambda text: text.replace("/", "")), st.just("+")), min_size=1, max_size=4).map(
    lambda levels: "/".join(levels) or "a"
) | st.just("#")
IDS = st.integers(1, 65535)
PAYLOADS = st.binary(max_size=300)
QOS = st.sampled_from([0, 1, 2])
WILLS = st.builds(mqtt.Will, topic=TOPICS, payload=PAYLOADS, qos=QOS, retain=st.booleans())


@st.composite
def connects(draw: st.DrawFn) -> mqtt.Connect:
    username = draw(st.none() | TEXT)
    return mqtt.Connect(
        client_id=draw(TEXT),
        clean_session=draw(st.booleans()),
        keep_alive_s=draw(st.integers(0, 65535)),
        username=username,
        password=None if username is None else draw(st.none() | PAYLOADS),
        will=draw(st.none() | WILLS),
    )


@st.composite
def publishes(draw: st.DrawFn) -> mqtt.Publish:
    qos = draw(QOS)
    return mqtt.Publish(
        topic=draw(TOPICS),
        payload=draw(PAYLOADS),
        qos=qos,
        retain=draw(st.booleans()),
        duplicate=bool(qos) and draw(st.booleans()),
        packet_id=draw(IDS) if qos else None,
    )


CONNACKS = st.builds(mqtt.Connack, session_present=st.booleans()) | st.builds(
    mqtt.Connack, code=st.sampled_from(mqtt.ConnackCode)
)
PACKETS: st.SearchStrategy[Packet] = st.one_of(
    connects(),
    CONNACKS,
    publishes(),
    *(st.builds(kind, IDS) for kind in (mqtt.Puback, mqtt.Pubrec, mqtt.Pubrel, mqtt.Pubcomp, mqtt.Unsuback)),
    st.builds(
        mqtt.Subscribe, packet_id=IDS, filters=st.lists(st.tuples(FILTERS, QOS), min_size=1, max_size=4).map(tuple)
    ),
    st.builds(
        mqtt.Suback,
        packet_id=IDS,
        codes=st.lists(st.sampled_from([0, 1, 2, 0x80]), min_size=1, max_size=4).map(tuple),
    ),
    st.builds(mqtt.Unsubscribe, packet_id=IDS, filters=st.lists(FILTERS, min_size=1, max_size=4).map(tuple)),
    st.sampled_from([mqtt.Pingreq(), mqtt.Pingresp(), mqtt.Disconnect()]),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Packets one after the other, often with some bytes changed, added or missing."""
    data = bytearray(b"".join(map(encode, draw(st.lists(PACKETS, max_size=5)))))
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
    """All packets of a stream, and the fault that ended it."""
    decoder = Decoder(packet_bytes_max=4096)
    found: list[Any] = []
    for chunk in chunks:
        try:
            found += decoder.feed(chunk)
        except ProtocolError as err:
            return [*found, *err.decoded], err.message
    return found, None


@settings(deadline=None, max_examples=300)
@given(st.lists(PACKETS, max_size=6))
def test_what_is_written_is_read_back(sent: list[Packet]) -> None:
    assert decoded([b"".join(map(encode, sent))]) == (sent, None)


@settings(deadline=None, max_examples=500)
@given(st.one_of(streams(), st.binary(max_size=200)), st.data())
@example(b"\x30\xff\xff\xff\xff\x01", None)
@example(b"\xc0\x00\xff", None)
def test_a_stream_means_the_same_however_it_is_cut(stream: bytes, data: st.DataObject | None) -> None:
    whole = decoded([stream])
    assert decoded([stream[index : index + 1] for index in range(len(stream))]) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
        assert (
            decoded([stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]) == whole
        )


@settings(deadline=None, max_examples=300)
@given(st.one_of(streams(), st.binary(max_size=200)))
def test_what_is_read_can_be_written_again(stream: bytes) -> None:
    found, _ = decoded([stream])
    assert decoded([b"".join(map(encode, found))]) == (found, None)
