"""The client half by itself: what it sends, and what it takes from a server."""

import pytest

from simulators.iothub.wire.client import ClientSession, ClientState, Connected, Published, Refused
from simulators.iothub.wire.mqtt import (
    Connack,
    ConnackCode,
    Connect,
    Decoder,
    Packet,
    ProtocolError,
    Puback,
    Publish,
    Suback,
    encode,
)


def sent(session: ClientSession) -> list[Packet]:
    return Decoder().feed(session.data_to_send())


def connected(clean_session: bool = False) -> ClientSession:
    session = ClientSession()
    session.connect(Connect(client_id="d", clean_session=clean_session))
    session.receive(encode(Connack()))
    session.data_to_send()
    return session


def reconnect(session: ClientSession, *, clean_session: bool = False) -> list[Packet]:
    """Come back on a new connection; returns what the client sends of its own accord."""
    session.connection_lost()
    session.connect(Connect(client_id="d", clean_session=clean_session))
    session.data_to_send()
    assert session.receive(encode(Connack(session_present=not clean_session))) == [Connected(not clean_session)]
    return sent(session)


def test_unacknowledged_messages_are_sent_again_in_order_and_marked() -> None:
    session = connected()
    for body in (b"1", b"2", b"3"):
        session.publish("t", body)
    assert session.receive(encode(Puback(2))) == [Published(2)]
    assert reconnect(session) == [
        Publish(topic="t", payload=b"1", qos=1, packet_id=1, duplicate=True),
        Publish(topic="t", payload=b"3", qos=1, packet_id=3, duplicate=True),
    ]
    session.receive(encode(Puback(1)) + encode(Puback(3)))
    assert (session.in_flight_count, reconnect(session)) == (0, [])


def test_a_clean_session_forgets_what_was_in_flight() -> None:
    session = connected()
    session.publish("t", b"1")
    assert reconnect(session, clean_session=True) == []


def test_a_packet_identifier_in_flight_is_not_given_twice() -> None:
    session = connected()
    assert session.publish("t", b"waits") == 1
    for expected in range(2, 65_536):
        packet_id = session.publish("t", b"")
        assert packet_id == expected
        session.receive(encode(Puback(packet_id)))
    assert session.publish("t", b"") == 2


def test_a_refusal_leaves_the_session_disconnected() -> None:
    session = ClientSession()
    session.connect(Connect(client_id="d"))
    assert session.receive(encode(Connack(code=ConnackCode.SERVER_UNAVAILABLE))) == [
        Refused(ConnackCode.SERVER_UNAVAILABLE)
    ]
    assert session.state is ClientState.DISCONNECTED


SERVER_FAULTS: dict[str, bytes] = {
    "a second CONNACK": encode(Connack()),
    "a client's packet": encode(Connect(client_id="x")),
    "a SUBACK that nobody waits for": encode(Suback(packet_id=9, codes=(0,))),
    "a message of QoS 2": encode(Publish(topic="t", qos=2, packet_id=1)),
    "garbage": b"\xff",
}


@pytest.mark.parametrize("data", SERVER_FAULTS.values(), ids=SERVER_FAULTS.keys())
def test_a_server_that_breaks_the_rules_is_found_out(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        connected().receive(data)


def test_nothing_is_sent_out_of_order() -> None:
    session = ClientSession()
    for act in (
        lambda: session.publish("t", b""),
        session.ping,
        lambda: session.subscribe(("t", 0)),
        session.disconnect,
    ):
        with pytest.raises(RuntimeError, match="needs a session that is connected; it is disconnected"):
            act()
    session.connect(Connect(client_id="d"))
    with pytest.raises(RuntimeError, match="it is connecting"):
        session.connect(Connect(client_id="d"))
