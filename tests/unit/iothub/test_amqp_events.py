"""The built-in endpoint over AMQP: readers, filters, credit, epochs, management."""

from typing import Any

import pytest
from amqp_peers import (
    EVENT_HUB,
    Peer,
    bodies,
    error_of,
    events_address,
    peer,
    send_event,
    world,
)
from hub_worlds import HOST, NOON, World

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.wire.amqp.client import messages_in, of_kind
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.performatives import (
    Detach,
    Flow,
    Transfer,
)
from simulators.iothub.wire.amqp.values import Array, Symbol, Timestamp, ULong

# The fixtures that the tests ask for by name.
__all__ = ["peer", "world"]


# Events ---------------------------------------------------------------------------------------------------------------


def test_a_reader_gets_what_was_and_what_comes_at_once(world: World, peer: Peer) -> None:
    partition = send_event(world, b"0")
    peer.client.attach_reader(events_address(partition), 10, "amqp.annotation.x-opt-offset > '-1'")
    assert bodies(peer.exchange()) == [b"0"]
    send_event(world, b"1")
    assert bodies(peer.hear()) == [b"1"]


def test_an_event_says_where_it_is_and_where_it_came_from(world: World, peer: Peer) -> None:
    world.register("d1", "m1")
    system = {"messageId": "m", "contentType": "application/json", "userId": "u", "interfaceId": "urn:i"}
    event = world.hub.accept_event(IdentityId("d1", "m1"), system, {"k": "v"}, b"body", NOON + 0.5)
    peer.client.attach_reader(events_address(event.partition), 1)
    ((_, message),) = messages_in(peer.exchange())
    assert message == Message(
        annotations={
            "x-opt-sequence-number": 0,
            "x-opt-offset": "0",
            "x-opt-enqueued-time": Timestamp(NOON * 1000 + 500),
            "iothub-connection-device-id": "d1",
            "iothub-connection-module-id": "m1",
            "iothub-connection-auth-method": '{"scope":"module","type":"sas","issuer":"iothub",'
            '"acceptingIpFilterRule":null}',
            "iothub-connection-auth-generation-id": event.generation_id,
            "iothub-enqueuedtime": Timestamp(NOON * 1000 + 500),
            "iothub-message-source": "Telemetry",
            "iothub-interface-id": "urn:i",
        },
        properties=Properties(message_id="m", content_type="application/json", user_id=b"u"),
        application_properties={"k": "v"},
        data=(b"body",),
    )
    assert message.annotations
    kinds = {str(key): type(value) for key, value in message.annotations.items()}
    assert (kinds["x-opt-sequence-number"], kinds["x-opt-offset"], kinds["x-opt-enqueued-time"]) == (
        int,
        str,
        Timestamp,
    )


def test_a_device_that_set_nothing_gives_no_properties_section(world: World, peer: Peer) -> None:
    peer.client.attach_reader(events_address(send_event(world, b"x")), 1)
    ((_, message),) = messages_in(peer.exchange())
    assert (message.properties, message.application_properties) == (None, None)


# Ten events of a byte each, a second apart: number n has offset n and was enqueued at NOON + n.
SELECTORS: dict[str, tuple[str | None, list[int]]] = {
    "no filter": (None, list(range(10))),
    "the beginning": ("amqp.annotation.x-opt-offset > '-1'", list(range(10))),
    "the end": ("amqp.annotation.x-opt-offset > '@latest'", []),
    "after an offset": ("amqp.annotation.x-opt-offset > '6'", [7, 8, 9]),
    "from an offset on": ("amqp.annotation.x-opt-offset >= '6'", [6, 7, 8, 9]),
    "beyond every offset": ("amqp.annotation.x-opt-offset > '99'", []),
    "after a number": ("amqp.annotation.x-opt-sequence-number > '7'", [8, 9]),
    "from a number on": ("amqp.annotation.x-opt-sequence-number >= '7'", [7, 8, 9]),
    "before every number": ("amqp.annotation.x-opt-sequence-number > '-1'", list(range(10))),
    "after a time": (f"amqp.annotation.x-opt-enqueued-time > '{int(NOON + 7) * 1000}'", [8, 9]),
    "from a time on": (f"amqp.annotation.x-opt-enqueued-time >= '{int(NOON + 7) * 1000}'", [7, 8, 9]),
    "between two times": (f"amqp.annotation.x-opt-enqueued-time > '{int(NOON + 7) * 1000 + 500}'", [8, 9]),
    "before every time": ("amqp.annotation.x-opt-enqueued-time > '0'", list(range(10))),
}


@pytest.mark.parametrize(("selector", "expected"), SELECTORS.values(), ids=SELECTORS)
def test_a_filter_says_where_to_start(world: World, peer: Peer, selector: str | None, expected: list[int]) -> None:
    for number in range(10):
        partition = send_event(world, b"%d" % number)
        world.clock.now += 1
    peer.client.attach_reader(events_address(partition), 100, selector)
    assert bodies(peer.exchange()) == [b"%d" % number for number in expected]
    send_event(world, b"new")
    assert bodies(peer.hear()) == [b"new"]


@pytest.mark.parametrize(
    "selector", ["", "x = 1", "amqp.annotation.x-opt-offset > 'abc'", "amqp.annotation.x-opt > '1'"]
)
def test_a_filter_that_says_nothing_is_refused(peer: Peer, selector: str) -> None:
    peer.client.attach_reader(events_address(0), 1, selector)
    assert error_of(peer.exchange()) == "com.microsoft:argument-error"


def test_credit_is_never_overdrawn_and_may_be_given_again(world: World, peer: Peer) -> None:
    for number in range(20):
        partition = send_event(world, b"%d" % number)
    reader = peer.client.attach_reader(events_address(partition), 3)
    assert bodies(peer.exchange()) == [b"0", b"1", b"2"]
    peer.client.give_credit(reader, 4, delivery_count=3)
    assert bodies(peer.exchange()) == [b"3", b"4", b"5", b"6"]
    # A flow that crossed the transfers on its way counts from where the client was.
    peer.client.give_credit(reader, 5, delivery_count=5)
    assert bodies(peer.exchange()) == [b"7", b"8", b"9"]


def test_a_drained_link_uses_its_credit_up(world: World, peer: Peer) -> None:
    partition = send_event(world, b"0")
    reader = peer.client.attach_reader(events_address(partition), 0)
    peer.exchange()
    peer.client.give_credit(reader, 50, is_draining=True)
    heard = peer.exchange()
    assert bodies(heard) == [b"0"]
    (flow,) = of_kind(heard, Flow)
    assert (flow.handle, flow.link_credit, flow.delivery_count) == (reader, 0, 50)
    send_event(world, b"1")
    assert bodies(peer.hear()) == []


def test_a_large_event_is_cut_to_the_frames_that_the_client_takes(world: World) -> None:
    peer = Peer(world, frame_bytes_max=512).start()
    peer.claim()
    body = bytes(range(256)) * 40
    peer.client.attach_reader(events_address(send_event(world, body)), 1)
    heard = peer.exchange()
    assert bodies(heard) == [body]
    assert len(of_kind(heard, Transfer)) > 20


def test_the_window_of_a_session_is_kept(world: World) -> None:
    peer = Peer(world, window=3).start()
    peer.claim()
    for number in range(8):
        partition = send_event(world, b"%d" % number)
    reader = peer.client.attach_reader(events_address(partition), 100)
    # One of three was the answer to the token; attaching renewed the window.
    assert bodies(peer.exchange()) == [b"0", b"1", b"2"]
    peer.client.give_credit(reader, 97, delivery_count=3)
    assert bodies(peer.exchange()) == [b"3", b"4", b"5"]


def test_a_slow_reader_is_given_no_more_than_it_has_room_for(world: World, peer: Peer) -> None:
    for _ in range(20):
        partition = send_event(world, bytes(100_000))
    peer.client.attach_reader(events_address(partition), 100)
    world.switchboard.amqp.receive(peer.dialogue, peer.client.data_to_send())
    world.switchboard.amqp.pump()
    assert peer.pipe.waiting_bytes < 256 * 1024 + 110_000
    assert len(bodies(peer.hear())) == 20


NO_READERS = {
    "another event hub": f"amqps://{HOST}/other/ConsumerGroups/$Default/Partitions/0",
    "no partition": f"amqps://{HOST}/{EVENT_HUB}/ConsumerGroups/$Default",
    "something that is no node": f"amqps://{HOST}/nothing",
    "an empty address": "",
}


@pytest.mark.parametrize("address", NO_READERS.values(), ids=NO_READERS)
def test_what_is_not_there_cannot_be_read(peer: Peer, address: str) -> None:
    peer.client.attach_reader(address, 1)
    assert error_of(peer.exchange()) == "amqp:not-found"


def test_a_partition_that_is_not_there_cannot_be_read(peer: Peer) -> None:
    peer.client.attach_reader(events_address(4), 1)
    assert error_of(peer.exchange()) == "com.microsoft:argument-out-of-range"


def test_the_endpoint_may_be_called_messages_events_and_groups_know_no_case(world: World, peer: Peer) -> None:
    partition = send_event(world, b"0")
    peer.client.attach_reader(f"/messages/events/ConsumerGroups/mine/Partitions/{partition}", 1)
    assert bodies(peer.exchange()) == [b"0"]


def test_a_reader_that_asks_for_it_hears_how_far_the_partition_is(world: World, peer: Peer) -> None:
    partition = send_event(world, b"0")
    send_event(world, b"1")
    capability = ("com.microsoft:enable-receiver-runtime-metric",)
    peer.client.attach_reader(events_address(partition), 1, capabilities=capability)
    ((_, message),) = messages_in(peer.exchange())
    assert message.delivery_annotations == {
        "last_enqueued_sequence_number": 1,
        "last_enqueued_offset": "1",
        "last_enqueued_time_utc": Timestamp(NOON * 1000),
        "runtime_info_retrieval_time_utc": Timestamp(NOON * 1000),
    }


def epoch(number: int) -> dict[Any, Any]:
    return {Symbol("com.microsoft:epoch"): number}


EPOCHS: dict[str, tuple[list[int | None], list[bool]]] = {
    "a higher epoch takes the partition": ([1, 2], [False, True]),
    "the same epoch takes the partition": ([1, 1], [False, True]),
    "a lower epoch is not let in": ([2, 1], [True, False]),
    "an epoch ends readers without one": ([None, None, 0], [False, False, True]),
    "without an epoch nobody comes beside one": ([0, None], [True, False]),
    "readers without an epoch are beside each other": ([None, None], [True, True]),
}


@pytest.mark.parametrize(("epochs", "stay"), EPOCHS.values(), ids=EPOCHS)
def test_epochs_decide_who_reads(world: World, epochs: list[int | None], stay: list[bool]) -> None:
    partition = send_event(world, b"0")
    peers = []
    lost = [False] * len(epochs)
    for number in epochs:
        peer = Peer(world).start()
        peer.claim()
        peers.append(peer)
        # The group's name in any case is the same group.
        group = "$Default" if len(peers) % 2 else "$default"
        properties = None if number is None else epoch(number)
        peer.client.attach_reader(
            events_address(partition, group), 100, "amqp.annotation.x-opt-offset > '@latest'", properties
        )
        # The newest speaks first, then the others hear what it brings them.
        for index, each in reversed(tuple(enumerate(peers))):
            if detaches := of_kind(each.exchange(), Detach):
                assert detaches[0].error.condition == "amqp:link:stolen"
                lost[index] = True
    assert [not gone for gone in lost] == stay
    send_event(world, b"new")
    assert [bool(bodies(peer.hear())) for peer in peers] == stay


def test_a_partition_has_five_readers_of_a_group_at_most_and_one_that_leaves_makes_room(world: World) -> None:
    peers = [Peer(world).start() for _ in range(6)]
    refused = []
    for each in peers:
        each.claim()
        each.client.attach_reader(events_address(0), 1)
        refused.append([detach.error.condition for detach in of_kind(each.exchange(), Detach)])
    assert refused == [[]] * 5 + [["amqp:resource-limit-exceeded"]]
    world.switchboard.amqp.closed(peers[0].dialogue)
    again = Peer(world).start()
    again.claim()
    again.client.attach_reader(events_address(0), 1)
    assert of_kind(again.exchange(), Detach) == []


# Management -----------------------------------------------------------------------------------------------------------


def ask(peer: Peer, **properties: str) -> tuple[int, Any]:
    peer.client.attach_reader("$management", 10, reply_to="me")
    writer = peer.client.attach_writer("$management")
    question = Message(
        properties=Properties(message_id=ULong(1), reply_to="me"), application_properties=dict(properties)
    )
    peer.client.send(writer, question)
    ((_, answer),) = messages_in(peer.exchange())
    assert answer.properties == Properties(correlation_id=ULong(1))
    return (answer.application_properties or {})["status-code"], answer.value


def test_the_event_hub_can_be_described(peer: Peer) -> None:
    assert ask(peer, operation="READ", type="com.microsoft:eventhub", name=EVENT_HUB.upper()) == (
        200,
        {
            "name": EVENT_HUB,
            "type": "com.microsoft:eventhub",
            "created_at": Timestamp(NOON * 1000),
            "partition_count": 4,
            "partition_ids": Array(("0", "1", "2", "3")),
        },
    )


def test_a_partition_can_be_described(world: World, peer: Peer) -> None:
    partition = send_event(world, b"abc")
    send_event(world, b"d")
    asked = {"operation": "READ", "type": "com.microsoft:partition", "name": EVENT_HUB}
    described = {
        "name": EVENT_HUB,
        "type": "com.microsoft:partition",
        "partition": str(partition),
        "begin_sequence_number": 0,
        "last_enqueued_sequence_number": 1,
        "last_enqueued_offset": "3",
        "last_enqueued_time_utc": Timestamp(NOON * 1000),
        "is_partition_empty": False,
    }
    assert ask(peer, **asked, partition=str(partition)) == (200, described)
    empty = (200, {
        **described,
        "partition": str((partition + 1) % 4),
        "last_enqueued_sequence_number": -1,
        "last_enqueued_offset": "-1",
        "last_enqueued_time_utc": Timestamp(-62135596800000),
        "is_partition_empty": True,
    })  # fmt: skip
    assert ask(peer, **asked, partition=str((partition + 1) % 4)) == empty


REFUSED_QUESTIONS: dict[str, tuple[dict[str, str], int]] = {
    "another operation": ({"operation": "UPDATE"}, 400),
    "another event hub": ({"name": "other"}, 404),
    "another type": ({"type": "com.microsoft:topic"}, 400),
    "a partition that is not there": ({"type": "com.microsoft:partition", "partition": "4"}, 404),
    "a partition that is no number": ({"type": "com.microsoft:partition", "partition": "x"}, 404),
}


@pytest.mark.parametrize(("changes", "status"), REFUSED_QUESTIONS.values(), ids=REFUSED_QUESTIONS)
def test_a_question_that_makes_no_sense_is_refused(peer: Peer, changes: dict[str, str], status: int) -> None:
    question = {"operation": "READ", "type": "com.microsoft:eventhub", "name": EVENT_HUB, **changes}
    assert ask(peer, **question) == (status, None)


def test_a_question_needs_a_token_on_the_connection_or_within(world: World) -> None:
    question = {"operation": "READ", "type": "com.microsoft:eventhub", "name": EVENT_HUB}
    assert ask(Peer(world).start(), **question)[0] == 401
    peer = Peer(world).start()
    assert ask(peer, **question, security_token=peer.token("service", 60, HOST))[0] == 200
    assert ask(peer, **question, security_token=peer.token("device", 60, HOST))[0] == 401
