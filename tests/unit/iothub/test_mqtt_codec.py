"""The codec against the standard: bytes written out by hand, and every rule that one packet can break."""

import pytest

from simulators.iothub.wire.mqtt import (
    Connack,
    ConnackCode,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    ProtocolError,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    UnsupportedProtocolLevelError,
    Will,
    encode,
)

# Bytes as the standard lays them out, fields apart by blanks.
ON_THE_WIRE: dict[str, tuple[str, Packet]] = {
    "CONNECT with everything": (
        "10 26  0004 4d515454  04 f6 003c  0002 6431  0001 77  0003 627965  0006 6875622f6431  0006 706173737764",
        Connect(
            client_id="d1",
            clean_session=True,
            keep_alive_s=60,
            username="hub/d1",
            password=b"passwd",
            will=Will(topic="w", payload=b"bye", qos=2, retain=True),
        ),
    ),
    "CONNECT with nothing": ("10 0c  0004 4d515454  04 02 0000  0000", Connect(client_id="")),
    "CONNACK": ("20 02  01 00", Connack(session_present=True)),
    "CONNACK that refuses": ("20 02  00 05", Connack(code=ConnackCode.NOT_AUTHORIZED)),
    "PUBLISH of QoS 0": ("30 05  0003 612f62", Publish(topic="a/b")),
    "PUBLISH of QoS 1, repeated and retained": (
        "3b 09  0003 612f62  000a  6869",
        Publish(topic="a/b", payload=b"hi", qos=1, retain=True, duplicate=True, packet_id=10),
    ),
    "PUBACK": ("40 02  ffff", Puback(65535)),
    "PUBREC": ("50 02  0001", Pubrec(1)),
    "PUBREL": ("62 02  0001", Pubrel(1)),
    "PUBCOMP": ("70 02  0001", Pubcomp(1)),
    "SUBSCRIBE": (
        "82 0c  0001  0001 23 01  0003 2b2f61 02",
        Subscribe(packet_id=1, filters=(("#", 1), ("+/a", 2))),
    ),
    "SUBACK": ("90 04  0001 01 80", Suback(packet_id=1, codes=(1, 0x80))),
    "UNSUBSCRIBE": ("a2 05  0001  0001 23", Unsubscribe(packet_id=1, filters=("#",))),
    "UNSUBACK": ("b0 02  0001", Unsuback(1)),
    "PINGREQ": ("c0 00", Pingreq()),
    "PINGRESP": ("d0 00", Pingresp()),
    "DISCONNECT": ("e0 00", Disconnect()),
}


@pytest.mark.parametrize(("text", "packet"), ON_THE_WIRE.values(), ids=ON_THE_WIRE.keys())
def test_a_packet_has_the_bytes_of_the_standard(text: str, packet: Packet) -> None:
    data = bytes.fromhex(text)
    assert encode(packet) == data
    assert Decoder().feed(data) == [packet]


BROKEN = {
    "packet type 0": "00 00",
    "packet type 15": "f0 00",
    "reserved flags of PUBACK": "41 02 0001",
    "PUBREL without its flag": "60 02 0001",
    "SUBSCRIBE without its flag": "80 06 0001 0001 61 00",
    "PUBLISH of QoS 3": "36 05 0001 61 0001",
    "DUP at QoS 0": "38 03 0001 61",
    "a remaining length of five bytes": "30 80 80 80 80 01",
    "a remaining length that never ends, after its fourth byte": "30 ff ff ff ff",
    "packet identifier 0 in PUBLISH": "32 05 0001 61 0000",
    "packet identifier 0 in PUBACK": "40 02 0000",
    "packet identifier 0 in SUBSCRIBE": "82 06 0000 0001 61 00",
    "a PUBLISH topic with #": "30 03 0001 23",
    "a PUBLISH topic with +": "30 03 0001 2b",
    "an empty PUBLISH topic": "30 02 0000",
    "U+0000 in a topic": "30 03 0001 00",
    "a topic that is not UTF-8": "30 03 0001 ff",
    "an overlong spelling of a slash": "30 04 0002 c0af",
    "a surrogate in UTF-8": "30 05 0003 eda080",
    "a topic longer than its packet": "30 03 0005 61",
    "a PUBLISH too short for its packet identifier": "32 04 0001 61 00",
    "a PUBACK that is too long": "40 03 0001 00",
    "a PUBACK that is too short": "40 01 00",
    "a PINGREQ with a body": "c0 01 00",
    "a DISCONNECT with a body": "e0 01 00",
    "SUBSCRIBE to nothing": "82 02 0001",
    "SUBSCRIBE with QoS 3": "82 06 0001 0001 61 03",
    "SUBSCRIBE with reserved bits": "82 06 0001 0001 61 81",
    "a filter with # in the middle": "82 08 0001 0003 232f61 00",
    "a filter with # in a word": "82 07 0001 0002 6123 00",
    "a filter with + in a word": "82 07 0001 0002 612b 00",
    "an empty filter": "82 05 0001 0000 00",
    "SUBACK with QoS 3": "90 03 0001 03",
    "SUBACK of nothing": "90 02 0001",
    "UNSUBSCRIBE from nothing": "a2 02 0001",
    "CONNECT with another protocol name": "10 0c 0004 4d515458 04 02 0000 0000",
    "CONNECT with the reserved flag": "10 0c 0004 4d515454 04 03 0000 0000",
    "CONNECT with a password and no user name": "10 0e 0004 4d515454 04 42 0000 0000 0000",
    "CONNECT with a will QoS and no will": "10 0c 0004 4d515454 04 0a 0000 0000",
    "CONNECT with a retained will and no will": "10 0c 0004 4d515454 04 22 0000 0000",
    "CONNECT with a will of QoS 3": "10 11 0004 4d515454 04 1e 0000 0000 0001 61 0000",
    "CONNECT with a wildcard in its will topic": "10 11 0004 4d515454 04 06 0000 0000 0001 23 0000",
    "CONNECT with more than its flags say": "10 0d 0004 4d515454 04 02 0000 0000 00",
    "CONNECT that ends early": "10 0b 0004 4d515454 04 02 0000 00",
    "CONNACK with reserved flags": "20 02 02 00",
    "CONNACK with return code 6": "20 02 00 06",
    "CONNACK that refuses a session that is present": "20 02 01 05",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_packet_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        Decoder().feed(bytes.fromhex(text))
    assert not isinstance(refusal.value, UnsupportedProtocolLevelError)


@pytest.mark.parametrize(
    "text",
    ["10 0c 0004 4d515454 05 02 0000 0000", "10 0e 0006 4d5149736470 03 02 0000 0000"],
    ids=["MQTT 5", "MQTT 3.1"],
)
def test_another_version_of_mqtt_is_told_apart_from_garbage(text: str) -> None:
    with pytest.raises(UnsupportedProtocolLevelError):
        Decoder().feed(bytes.fromhex(text))


UNWRITABLE: dict[str, Packet] = {
    "a message of QoS 1 without a packet identifier": Publish(topic="a", qos=1),
    "a message of QoS 0 with one": Publish(topic="a", packet_id=1),
    "a message of QoS 0 that claims to be a repetition": Publish(topic="a", duplicate=True),
    "a message of QoS 3": Publish(topic="a", qos=3, packet_id=1),
    "a topic with a wildcard": Publish(topic="a/#"),
    "a topic of more than 65535 bytes": Publish(topic="é" * 40_000),
    "a topic with a surrogate": Publish(topic="\ud800"),
    "a packet identifier of 65536": Puback(65536),
    "a packet identifier of 0": Suback(packet_id=0, codes=(0,)),
    "a refusal with a session": Connack(session_present=True, code=ConnackCode.SERVER_UNAVAILABLE),
    "a password without a user name": Connect(client_id="d", password=b""),
    "a keep-alive beyond two bytes": Connect(client_id="d", keep_alive_s=65536),
    "a subscription to nothing": Subscribe(packet_id=1, filters=()),
    "an end of no subscription": Unsubscribe(packet_id=1, filters=()),
    "an unknown code in SUBACK": Suback(packet_id=1, codes=(3,)),
}


@pytest.mark.parametrize("packet", UNWRITABLE.values(), ids=UNWRITABLE.keys())
def test_what_may_not_be_on_the_wire_is_never_written(packet: Packet) -> None:
    with pytest.raises(ProtocolError):
        encode(packet)


def test_packets_before_a_fault_are_not_lost() -> None:
    with pytest.raises(ProtocolError) as refusal:
        Decoder().feed(bytes.fromhex("c000 40020007 ff"))
    assert refusal.value.decoded == (Pingreq(), Puback(7))


def test_a_decoder_stays_in_error() -> None:
    decoder = Decoder()
    with pytest.raises(ProtocolError, match="0xff"):
        decoder.feed(b"\xff")
    with pytest.raises(ProtocolError, match="0xff"):
        decoder.feed(encode(Pingreq()))


def test_a_packet_that_is_too_large_is_refused_by_its_header_alone() -> None:
    decoder = Decoder(packet_bytes_max=1000)
    assert decoder.feed(encode(Publish(topic="t", payload=bytes(997)))) == [Publish(topic="t", payload=bytes(997))]
    with pytest.raises(ProtocolError, match="1001 bytes is larger than the 1000"):
        decoder.feed(encode(Publish(topic="t", payload=bytes(998)))[:3])


@pytest.mark.parametrize("size_bytes", [0, 1, 121, 122, 125, 16_377, 16_378, 2_097_146, 2_097_147])
def test_remaining_lengths_of_one_to_four_bytes(size_bytes: int) -> None:
    packet = Publish(topic="abc", payload=bytes(size_bytes))
    decoder = Decoder()
    assert decoder.feed(encode(packet)) == [packet]
    assert decoder.buffered_bytes == 0
