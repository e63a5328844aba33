"""The AMQP codec against the vendor's, and against the bounds it keeps."""

from typing import Any
from uuid import UUID

import pytest
from azure.eventhub._pyamqp._decode import decode_frame, decode_payload

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.amqp import performatives as amqp
from simulators.iothub.wire.amqp.frames import Decoder, Frame, Heartbeat, Piece, ProtocolHeader, encode_piece
from simulators.iothub.wire.amqp.messages import Message, Properties, decode_message, encode_message
from simulators.iothub.wire.amqp.values import Int, Symbol, decode_value

# What the standard's own examples and tables give (1.6), and forms that our encoder never chooses.
WRITTEN: dict[str, tuple[str, Any]] = {
    "null": ("40", None),
    "a boolean in a byte": ("5601", True),
    "uint 0 without a byte": ("43", 0),
    "a long of eight bytes": ("81ffffffffffffff9c", -100),
    "a string with a length of four bytes": ("b100000003616263", "abc"),
    "a symbol": ("a303616263", Symbol("abc")),
    "a uuid": ("98" + "00" * 15 + "07", UUID(int=7)),
    "an empty list": ("45", []),
    "a wide list": ("d00000000600000002" + "4142", [True, False]),
    "a map": ("c1050254015402", {1: 2}),
}


@pytest.mark.parametrize(("text", "value"), WRITTEN.values(), ids=WRITTEN)
def test_every_form_of_a_value_is_read(text: str, value: Any) -> None:
    assert decode_value(bytes.fromhex(text)) == value


REFUSED = {
    "an unknown format code": "ff",
    "a string that is not UTF-8": "a101ff",
    "a symbol that is not ASCII": "a301c3",
    "a list that says more bytes than there are": "c0050140",
    "a list that says fewer bytes than it uses": "c002015401",
    "a list of more elements than bytes": "d000000005ffffffff40",
    "an array of a thousand million nulls": "f0000000053b9aca0040",
    "a map with a key and no value": "c10201" + "40",
    "a map with a list as a key": "c103024540",
    "a boolean that is neither": "5602",
    "lists in lists without end": "c0ff01" * 100,
    "a descriptor of a descriptor without end": "00" * 100,
    "nothing": "",
    "two values": "4040",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        decode_value(bytes.fromhex(text))


FULL_WIDTH = {
    amqp.Open(container_id="c"): 10,
    amqp.Begin(next_outgoing_id=0, incoming_window=1, outgoing_window=1): 8,
    amqp.Attach(name="l", handle=0, role=True): 14,
    amqp.Flow(incoming_window=1, next_outgoing_id=0, outgoing_window=1): 11,
    amqp.Transfer(handle=0): 11,
    amqp.Disposition(role=True, first=0): 6,
    amqp.Detach(handle=0): 3,
    amqp.End(): 1,
    amqp.Close(): 1,
}


@pytest.mark.parametrize(("performative", "width"), FULL_WIDTH.items(), ids=lambda value: type(value).__name__)
def test_the_vendor_finds_every_field_of_a_performative(performative: amqp.Composite, width: int) -> None:
    body = encode_piece(Frame(0, performative))[8:]
    assert body[:2] == b"\x00\x53"
    _, fields = decode_frame(memoryview(body))
    # The vendor puts a transfer's payload behind its fields.
    assert len(fields) == width + isinstance(performative, amqp.Transfer)


def test_an_empty_section_is_not_written() -> None:
    message = Message(properties=Properties(), annotations={}, application_properties={}, data=(b"body",))
    assert encode_message(message) == b"\x00\x53\x75\xa0\x04body"


def test_the_vendor_reads_a_message_of_every_section() -> None:
    message = Message(
        annotations={Symbol("x-opt-offset"): "7"},
        properties=Properties(message_id="m1", content_type="text/plain"),
        application_properties={"status-code": Int(200)},
        data=(b"x" * 300,),
    )
    read = decode_payload(memoryview(encode_message(message)))
    assert read.message_annotations == {b"x-opt-offset": b"7"}
    assert (read.properties.message_id, read.properties.content_type) == (b"m1", b"text/plain")
    assert (read.application_properties, read.data) == ({b"status-code": 200}, [b"x" * 300])


BAD_MESSAGES = {
    "sections out of order": b"\x00\x53\x75\xa0\x00\x00\x53\x72\xc1\x01\x00",
    "a section twice": b"\x00\x53\x72\xc1\x01\x00" * 2,
    "bodies of two kinds": b"\x00\x53\x75\xa0\x00\x00\x53\x77\x40",
    "an unknown section": b"\x00\x53\x10\x45",
    "something without a descriptor": b"\x40",
    "data that is a string": b"\x00\x53\x75\xa1\x00",
    "properties with too many fields": b"\x00\x53\x73\xc0\x0f\x0e" + b"\x40" * 14,
}


@pytest.mark.parametrize("data", BAD_MESSAGES.values(), ids=BAD_MESSAGES)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(data)


GOOD: list[Piece] = [ProtocolHeader(0), Heartbeat(3)]
BAD_STREAMS = {
    "a frame larger than accepted": b"\x00\x00\x10\x01",
    "a frame smaller than its own header": b"\x00\x00\x00\x07",
    "a body that starts beyond the frame": b"\x00\x00\x00\x08\x03\x00\x00\x00",
    "a body that starts within the header": b"\x00\x00\x00\x08\x01\x00\x00\x00",
    "a type of frame that does not exist": b"\x00\x00\x00\x08\x02\x05\x00\x00",
    "a frame of something else": b"\x00\x00\x00\x09\x02\x00\x00\x00\x40",
    "a SASL frame on the AMQP layer": b"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x44\xc0\x04\x01\x50\x00\x40",
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("data", BAD_STREAMS.values(), ids=BAD_STREAMS)
def test_a_broken_stream_gives_what_was_before_the_fault_and_stays_broken(data: bytes) -> None:
    decoder = Decoder(4096)
    with pytest.raises(ProtocolError) as broken:
        decoder.feed(b"".join(map(encode_piece, GOOD)) + data)
    assert list(broken.value.decoded) == GOOD
    assert decoder.buffered_bytes == 0
    with pytest.raises(ProtocolError):
        decoder.feed(encode_piece(Heartbeat()))


def test_a_performative_may_be_named_by_its_symbol() -> None:
    body = b"\x00\xa3\x0eamqp:end:list\x45".replace(b"\x0e", b"\x0d")
    data = (8 + len(body)).to_bytes(4) + b"\x02\x00\x00\x05" + body
    assert Decoder(4096).feed(data) == [Frame(5, amqp.End())]
