"""Messages to devices over AMQP, and what became of them."""

import json
from typing import Any
from uuid import UUID

import pytest
from amqp_peers import (
    DEVICEBOUND,
    EVENT_HUB,
    FEEDBACK,
    Peer,
    error_of,
    peer,
    world,
)
from hub_worlds import HOST, NOON, World

from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.server.amqp.links import INBOUND_CREDIT, MESSAGE_BYTES_MAX
from simulators.iothub.wire.amqp.client import messages_in, of_kind
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.performatives import (
    RECEIVER,
    Accepted,
    AmqpError,
    Close,
    Detach,
    Disposition,
    Flow,
    Modified,
    Transfer,
)
from simulators.iothub.wire.amqp.values import Described, Symbol, ULong

# The fixtures that the tests ask for by name.
__all__ = ["peer", "world"]


# Messages to devices --------------------------------------------------------------------------------------------------


def to_device(device: str = "d1", body: bytes = b"hello", **properties: Any) -> Message:
    address = f"/devices/{device}/messages/devicebound"
    return Message(properties=Properties(message_id="m1", to=address, **properties), data=(body,))


def test_a_message_reaches_the_queue_of_its_device(world: World, peer: Peer) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    message = Message(
        properties=Properties(
            message_id=UUID(int=1),
            correlation_id="c",
            user_id=b"u",
            to="/devices/d1/messages/deviceBound",
            content_type="text/plain",
            content_encoding="utf-8",
            absolute_expiry_time_ms=int(NOON * 1000) + 5000,
        ),
        application_properties={"iothub-ack": "full", "k": "v", "n": 3, "b": True},
        data=(b"hel", b"lo"),
    )
    delivery_id = peer.client.send(writer, message)
    assert of_kind(peer.exchange(), Disposition) == [
        Disposition(role=RECEIVER, first=delivery_id, settled=True, state=Accepted())
    ]
    entry = world.hub.cloud_to_device.receive("d1", NOON)
    assert entry
    assert entry.item == CloudMessage(
        message_id=str(UUID(int=1)),
        correlation_id="c",
        user_id="u",
        to="/devices/d1/messages/deviceBound",
        content_type="text/plain",
        content_encoding="utf-8",
        expires_at=NOON + 5,
        ack="full",
        properties={"k": "v", "n": "3", "b": "true"},
        body=b"hello",
    )


REFUSED_MESSAGES: dict[str, tuple[Message, str]] = {
    "an unknown device": (to_device("nobody"), "amqp:not-found"),
    "an address that is none": (Message(properties=Properties(to="d1"), data=(b"x",)), "com.microsoft:argument-error"),
    "no address": (Message(data=(b"x",)), "com.microsoft:argument-error"),
    "a message that is too large": (to_device(body=bytes(65_537)), "amqp:link:message-size-exceeded"),
    "a body that is no bytes": (
        Message(properties=Properties(to="/devices/d1/messages/devicebound"), value=[1]),
        "com.microsoft:argument-error",
    ),
}


@pytest.mark.parametrize(("message", "condition"), REFUSED_MESSAGES.values(), ids=REFUSED_MESSAGES)
def test_a_message_that_the_hub_refuses_is_rejected_and_the_link_goes_on(
    peer: Peer, message: Message, condition: str
) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    peer.exchange()
    # More than a frame is sent in two.
    payload_id = send_in_parts(peer, writer, message)
    (refused,) = of_kind(peer.exchange(), Disposition)
    assert (refused.first, refused.settled, refused.state.error.condition) == (payload_id, True, condition)
    peer.client.send(writer, to_device())
    assert of_kind(peer.exchange(), Disposition)[0].state == Accepted()


def send_in_parts(peer: Peer, writer: int, message: Message, part_bytes: int = 30_000) -> int:
    from simulators.iothub.wire.amqp.messages import encode_message

    data = encode_message(message)
    delivery_id = 0
    for start in range(0, len(data), part_bytes):
        more = start + part_bytes < len(data)
        peer.client.say(
            Transfer(handle=writer, delivery_id=0, delivery_tag=b"0", more=more), data[start : start + part_bytes]
        )
    peer.client._deliveries += 1
    return delivery_id


def test_the_fifty_first_message_is_rejected(peer: Peer) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    for _ in range(51):
        peer.client.send(writer, to_device())
    states = [disposition.state for disposition in of_kind(peer.exchange(), Disposition)]
    assert states[:50] == [Accepted()] * 50
    assert states[50].error.condition == "amqp:resource-limit-exceeded"


def test_credit_for_sending_never_runs_out(peer: Peer) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    (granted,) = of_kind(peer.exchange(), Flow)
    assert (granted.handle, granted.link_credit, granted.delivery_count) == (writer, INBOUND_CREDIT, 0)
    for _ in range(5):
        for _ in range(INBOUND_CREDIT // 2 + 1):
            peer.client.send(writer, to_device("nobody"))
        renewed = [flow for flow in of_kind(peer.exchange(), Flow) if flow.handle == writer]
        assert [flow.link_credit for flow in renewed] == [INBOUND_CREDIT]


def test_sending_beyond_the_credit_ends_the_link(peer: Peer) -> None:
    reader = peer.client.attach_reader("$cbs", 0)
    writer = peer.client.attach_writer("$cbs")
    peer.exchange()
    (link,) = [link for link in peer.dialogue.links() if link.handle == writer]
    link.credit = 0
    peer.client.send(writer, Message())
    assert error_of(peer.exchange()) == "amqp:link:transfer-limit-exceeded"
    # What was on its way when the link ended is dropped in silence.
    peer.client.send(writer, Message())
    assert peer.exchange() == []
    assert reader != writer


def test_a_message_without_end_ends_its_link(peer: Peer) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    for _ in range(MESSAGE_BYTES_MAX // 60_000 + 1):
        peer.client.say(Transfer(handle=writer, delivery_id=0, delivery_tag=b"0", more=True), bytes(60_000))
    assert error_of(peer.exchange()) == "amqp:link:message-size-exceeded"
    assert peer.dialogue.partial_bytes == 0


def test_many_messages_without_end_end_the_connection(peer: Peer) -> None:
    for delivery_id in range(5):
        writer = peer.client.attach_writer(DEVICEBOUND)
        for _ in range(5):
            peer.client.say(
                Transfer(handle=writer, delivery_id=delivery_id, delivery_tag=b"0", more=True), bytes(60_000)
            )
    assert error_of(peer.exchange(), Close) == "amqp:not-allowed"
    assert peer.dialogue.partial_bytes == 0


def test_a_message_that_is_taken_back_does_nothing(peer: Peer) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    peer.client.say(Transfer(handle=writer, delivery_id=0, delivery_tag=b"0", more=True), b"\x00\x53")
    peer.client.say(Transfer(handle=writer, delivery_id=0, delivery_tag=b"0", aborted=True))
    peer.client._deliveries = 1
    delivery_id = peer.client.send(writer, to_device())
    (disposition,) = of_kind(peer.exchange(), Disposition)
    assert (disposition.first, disposition.state) == (delivery_id, Accepted())


def test_bytes_that_are_no_message_end_the_link(peer: Peer) -> None:
    writer = peer.client.attach_writer(DEVICEBOUND)
    peer.client.say(Transfer(handle=writer, delivery_id=0, delivery_tag=b"0"), b"garbage")
    assert error_of(peer.exchange()) == "amqp:decode-error"


@pytest.mark.parametrize("address", ["/messages/upwards", "", f"{EVENT_HUB}/Partitions/0"])
def test_what_is_not_there_cannot_be_sent_to(peer: Peer, address: str) -> None:
    peer.client.attach_writer(address)
    assert error_of(peer.exchange()) == "amqp:not-found"


# Feedback -------------------------------------------------------------------------------------------------------------


def finish_message(world: World, message_id: str) -> None:
    """A device completes a message whose sender wants to hear of it."""
    world.hub.send_to_device("d1", CloudMessage(message_id, ack="full"), world.clock.now)
    entry = world.hub.cloud_to_device.receive("d1", world.clock.now)
    assert entry
    world.hub.cloud_to_device.complete("d1", entry.lock_token, world.clock.now)


def test_feedback_is_read_and_completed(world: World, peer: Peer) -> None:
    finish_message(world, "m1")
    peer.client.attach_reader(FEEDBACK, 5)
    ((delivery_id, message),) = messages_in(peer.exchange())
    assert message.properties == Properties(
        content_type="application/vnd.microsoft.iothub.feedback.json",
        content_encoding="utf-8",
        user_id=HOST.encode(),
        creation_time_ms=int(NOON * 1000),
    )
    (record,) = json.loads(message.data[0])
    assert (record["originalMessageId"], record["statusCode"]) == ("m1", "Success")
    assert len(world.hub.feedback) == 1
    peer.client.settle(delivery_id, Accepted())
    assert peer.exchange() == []
    assert len(world.hub.feedback) == 0


def test_feedback_that_was_not_accepted_comes_again(world: World, peer: Peer) -> None:
    finish_message(world, "m1")
    peer.client.attach_reader(FEEDBACK, 5)
    ((delivery_id, first),) = messages_in(peer.exchange())
    peer.client.settle(delivery_id, Modified(delivery_failed=True))
    ((_, second),) = messages_in(peer.exchange())
    assert second.data == first.data


@pytest.mark.parametrize("leave", ["detach", "lose the connection"])
def test_feedback_that_was_not_settled_is_for_the_next_reader(world: World, peer: Peer, leave: str) -> None:
    finish_message(world, "m1")
    reader = peer.client.attach_reader(FEEDBACK, 5)
    assert len(messages_in(peer.exchange())) == 1
    if leave == "detach":
        peer.client.say(Detach(handle=reader, closed=True))
        assert of_kind(peer.exchange(), Detach) == [Detach(handle=reader, closed=True)]
    else:
        world.switchboard.amqp.closed(peer.dialogue)
    other = Peer(world).start()
    other.claim()
    other.client.attach_reader(FEEDBACK, 5)
    assert len(messages_in(other.exchange())) == 1


def test_a_reader_that_wants_no_settlement_completes_by_reading(world: World, peer: Peer) -> None:
    finish_message(world, "m1")
    peer.client.attach_reader(FEEDBACK, 5, settle_mode=1)
    heard = peer.exchange()
    assert len(messages_in(heard)) == 1
    assert of_kind(heard, Transfer)[0].settled is True
    assert len(world.hub.feedback) == 0


def test_file_notifications_are_read_likewise(world: World, peer: Peer) -> None:
    world.hub.file_notifications.post({"deviceId": "d1", "blobName": "b"}, NOON)
    peer.client.attach_reader("/messages/serviceBound/filenotifications", 5)
    ((_, message),) = messages_in(peer.exchange())
    assert message.properties
    assert message.properties.content_type == "application/vnd.microsoft.iothub.filenotification.json"
    assert json.loads(message.data[0]) == {"deviceId": "d1", "blobName": "b"}


def test_an_error_says_its_condition_first() -> None:
    """What the vendor's clients read by position: condition, description, info."""
    from simulators.iothub.wire.amqp.performatives import write_composite

    written = write_composite(AmqpError(condition="amqp:not-found", description="no"))
    assert written == Described(ULong(0x1D), [Symbol("amqp:not-found"), "no", None])
