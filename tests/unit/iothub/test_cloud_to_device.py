"""Cloud-to-device messages: the queue's rules, feedback, and how they reach a device over MQTT."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hub_worlds import NOON, Client, World

from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.locking_queue import TRANSITIONS, MessageEvent, MessageState
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError
from simulators.iothub.wire.client import Connected, Event, Received

DEVICEBOUND = "devices/d1/messages/devicebound/#"


@pytest.fixture
def world() -> World:
    world = World()
    world.register("d1")
    return world


def send(world: World, message_id: str = "m1", **fields: Any) -> None:
    world.hub.send_to_device("d1", CloudMessage(message_id, **fields), world.clock.now)
    world.switchboard.settle()


def receive(world: World) -> str | None:
    """Lock the next message as an HTTPS device does; returns its lock token."""
    entry = world.hub.cloud_to_device.receive("d1", world.clock.now)
    return entry.lock_token if entry else None


def pass_time(world: World, seconds: float) -> None:
    world.clock.now += seconds
    world.switchboard.tick()


def feedback(world: World) -> list[tuple[str, str]]:
    heard = []
    while batch := world.hub.feedback.receive(world.clock.now):
        heard += [(record["originalMessageId"], record["statusCode"]) for record in json.loads(batch.body)]
        world.hub.feedback.complete(batch.lock_token)
    return heard


def waiting(world: World) -> int:
    documents = (world.hub.registry.get(IdentityId("d1")).document(), world.hub.twin_document(IdentityId("d1")))
    counts = {document["cloudToDeviceMessageCount"] for document in documents}
    assert counts == {world.hub.cloud_to_device.count("d1")}
    return counts.pop()


def test_every_pair_of_state_and_event_is_decided() -> None:
    over = {MessageState.COMPLETED, MessageState.DEAD_LETTERED}
    impossible = {
        # Only who holds the lock can say how the work went, and only what waits can be received or grow old.
        (MessageState.ENQUEUED, MessageEvent.COMPLETED),
        (MessageState.ENQUEUED, MessageEvent.ABANDONED),
        (MessageState.ENQUEUED, MessageEvent.REJECTED),
        (MessageState.INVISIBLE, MessageEvent.RECEIVED),
        (MessageState.INVISIBLE, MessageEvent.EXPIRED),
        *((state, event) for state in over for event in MessageEvent),
    }
    every = {(state, event) for state in MessageState for event in MessageEvent}
    assert set(TRANSITIONS) == every - impossible


def ten_deliveries(world: World) -> None:
    for _ in range(10):
        world.hub.cloud_to_device.abandon("d1", receive(world) or "", world.clock.now)


def ten_lost_locks(world: World) -> None:
    for _ in range(10):
        assert receive(world)
        pass_time(world, 60)


ENDS: dict[str, tuple[Callable[[World], object], str]] = {
    "completed: success": (
        lambda world: world.hub.cloud_to_device.complete("d1", receive(world) or "", world.clock.now),
        "Success",
    ),
    "rejected by the device": (
        lambda world: world.hub.cloud_to_device.reject("d1", receive(world) or "", world.clock.now),
        "Rejected",
    ),
    "not received within an hour": (lambda world: pass_time(world, 3600), "Expired"),
    "given back ten times": (ten_deliveries, "DeliveryCountExceeded"),
    "ten locks of a minute ran out": (ten_lost_locks, "DeliveryCountExceeded"),
    "purged": (lambda world: world.hub.cloud_to_device.purge("d1", world.clock.now), "Purged"),
    "purged while it was locked": (
        lambda world: (receive(world), world.hub.cloud_to_device.purge("d1", world.clock.now)),
        "Purged",
    ),
    "its device was deleted": (
        lambda world: world.hub.delete_identity(IdentityId("d1"), None, world.clock.now),
        "Purged",
    ),
}


@pytest.mark.parametrize("ack", ["none", "positive", "negative", "full"])
@pytest.mark.parametrize("how", ENDS)
def test_a_message_ends_and_its_sender_hears_what_it_asked_for(world: World, how: str, ack: str) -> None:
    end, outcome = ENDS[how]
    send(world, ack=ack)
    assert waiting(world) == 1
    end(world)
    assert world.hub.cloud_to_device.count("d1") == 0
    wanted = {"none": False, "full": True, "positive": outcome == "Success", "negative": outcome != "Success"}[ack]
    assert feedback(world) == ([("m1", outcome)] if wanted else [])


def test_a_feedback_record_says_which_device_and_when(world: World) -> None:
    send(world, ack="full")
    world.clock.now += 5
    world.hub.cloud_to_device.complete("d1", receive(world) or "", world.clock.now)
    batch = world.hub.feedback.receive(world.clock.now)
    assert batch
    assert (batch.user_id, batch.enqueued_at) == ("hub.test", NOON + 5)
    assert batch.content_type == "application/vnd.microsoft.iothub.feedback.json"
    assert json.loads(batch.body) == [
        {
            "originalMessageId": "m1",
            "description": "Success",
            "deviceGenerationId": world.hub.registry.get(IdentityId("d1")).generation_id,
            "deviceId": "d1",
            "enqueuedTimeUtc": "2023-11-14T22:13:25.0000000Z",
            "statusCode": "Success",
        }
    ]


def test_feedback_comes_in_batches_of_64_that_are_locked_for_a_minute(world: World) -> None:
    for number in range(65):
        send(world, f"m{number}", ack="full", expires_at=world.clock.now)
    first, second = world.hub.feedback.receive(world.clock.now), world.hub.feedback.receive(world.clock.now)
    assert first
    assert second
    assert [len(json.loads(batch.body)) for batch in (first, second)] == [64, 1]
    assert world.hub.feedback.receive(world.clock.now) is None
    world.hub.feedback.abandon(second.lock_token)
    pass_time(world, 60)
    with pytest.raises(ServiceError, match="its lock ran out"):
        world.hub.feedback.complete(first.lock_token)
    assert feedback(world) == [(f"m{number}", "Expired") for number in range(65)]
    assert len(world.hub.feedback) == 0


def test_feedback_that_nobody_reads_is_gone_after_an_hour(world: World) -> None:
    send(world, ack="full", expires_at=world.clock.now)
    pass_time(world, 3599)
    assert len(world.hub.feedback) == 1
    pass_time(world, 1)
    assert len(world.hub.feedback) == 0


REFUSED = {
    "a body of more than 64 KB": ({"body": b"x" * 65535}, "MessageTooLarge"),
    "a body too large with its properties": (
        {"body": b"x" * 65500, "properties": {"k": "v" * 40}},
        "MessageTooLarge",
    ),
    "an ack that does not exist": ({"ack": "maybe"}, "ArgumentInvalid"),
    "a message id of 129 characters": ({"message_id": "m" * 129}, "ArgumentInvalid"),
    "a correlation id of 129 characters": ({"correlation_id": "m" * 129}, "ArgumentInvalid"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_message_is_refused(world: World, what: str) -> None:
    fields, code = REFUSED[what]
    with pytest.raises(ServiceError) as refusal:
        send(world, **fields)
    assert (refusal.value.fault.name, waiting(world)) == (code, 0)


def test_a_message_of_exactly_64_kb_is_taken(world: World) -> None:
    send(world, body=b"x" * (65536 - 2))
    assert waiting(world) == 1


def test_a_device_that_is_not_registered_gets_no_message(world: World) -> None:
    with pytest.raises(ServiceError, match="d9 is not registered"):
        world.hub.send_to_device("d9", CloudMessage("m"), NOON)


def test_the_51st_message_is_refused_until_one_has_ended(world: World) -> None:
    for number in range(50):
        send(world, str(number), expires_at=NOON + 10 + number)
    locked = receive(world)
    with pytest.raises(ServiceError) as refusal:
        send(world)
    assert (refusal.value.fault.value.number, refusal.value.status) == (403004, 403)
    world.hub.cloud_to_device.complete("d1", locked or "", NOON)
    send(world)
    # One more has expired by now, without a tick that noticed.
    world.clock.now += 11
    send(world)
    assert waiting(world) == 50


def test_what_was_given_back_comes_first_again(world: World) -> None:
    send(world, "a")
    send(world, "b")
    world.hub.cloud_to_device.abandon("d1", receive(world) or "", NOON)
    entries = [world.hub.cloud_to_device.receive("d1", NOON) for _ in range(3)]
    assert [(entry.item.message_id, entry.delivery_count) for entry in entries if entry] == [("a", 2), ("b", 1)]


def test_a_lock_is_good_for_one_answer_within_its_minute(world: World) -> None:
    send(world)
    token = receive(world) or ""
    pass_time(world, 59)
    assert receive(world) is None
    pass_time(world, 1)
    for act in (world.hub.cloud_to_device.complete, world.hub.cloud_to_device.reject):
        with pytest.raises(ServiceError) as refusal:
            act("d1", token, world.clock.now)
        assert (refusal.value.fault.value.number, refusal.value.status) == (412002, 412)
    assert receive(world)


def test_queues_and_feedback_can_be_stored_and_taken_up_again() -> None:
    touched: set[str] = set()
    old, new = World(), World()
    for world in (old, new):
        world.register("d1")
    old.hub.cloud_to_device._touch = touched.add
    full = CloudMessage("m2", "c", "u", "", "text/plain", "utf-8", NOON + 99, "full", {"ключ": "wért &="}, b"\x00\xff")
    send(old, "m1", ack="full")
    old.hub.send_to_device("d1", full, NOON)
    send(old, "m3", ack="full")
    old.hub.cloud_to_device.complete("d1", receive(old) or "", NOON)
    receive(old)
    stored = json.loads(json.dumps({key: old.hub.cloud_to_device.record(key) for key in touched}))
    assert {key: record is None for key, record in stored.items()} == {"d1/1": True, "d1/2": False, "d1/3": False}
    for key in ("d1/3", "d1/2"):
        new.hub.cloud_to_device.restore(key, stored[key])
    for key in ("1",):
        new.hub.feedback.restore(key, json.loads(json.dumps(old.hub.feedback.record(key))))
    assert waiting(new) == 2
    assert feedback(new) == [("m1", "Success")]
    send(new, "m4")
    entries = [new.hub.cloud_to_device.receive("d1", NOON) for _ in range(3)]
    assert [(entry.item.message_id, entry.delivery_count, entry.sequence) for entry in entries if entry] == [
        ("m2", 2, 2),
        ("m3", 1, 3),
        ("m4", 1, 4),
    ]
    assert entries[0]
    assert entries[0].item == replace(full, to="/devices/d1/messages/deviceBound")
    pass_time(new, 99)
    assert feedback(new) == [("m2", "Expired")]


# --- over MQTT --------------------------------------------------------------------------------------------------------


def listener(world: World, qos: int = 1, **connecting: Any) -> Client:
    client = Client(world, IdentityId("d1"))
    client.connect(**connecting)
    client.session.subscribe((DEVICEBOUND, qos))
    client.exchange()
    return client


def messages(heard: list[Event]) -> list[tuple[bytes, bool]]:
    """What a client heard, by body, and whether it was marked as a repetition."""
    return [(event.payload, event.is_duplicate) for event in heard if isinstance(event, Received)]


def hear_without_puback(client: Client) -> list[tuple[bytes, bool]]:
    """Take what the hub sent; the PUBACKs for it stay with the client."""
    return messages(client.session.receive(client.pipe.take()))


def test_a_message_reaches_a_listening_device_with_its_properties_first_things_first(world: World) -> None:
    client = listener(world)
    body = b"\x00\xff"
    send(
        world, "a/b c", correlation_id="c=1", user_id="u&", content_type="application/json", content_encoding="utf-8",
        expires_at=NOON + 60, ack="full", properties={"k y": "v&=/é", "": "", "plain": "1"}, body=body,
    )  # fmt: skip
    topic = (
        "devices/d1/messages/devicebound/%24.to=%2Fdevices%2Fd1%2Fmessages%2FdeviceBound&%24.mid=a%2Fb%20c&%24.cid=c%3D1"
        "&%24.uid=u%26&%24.ct=application%2Fjson&%24.ce=utf-8&%24.exp=2023-11-14T22%3A14%3A20.0000000Z&iothub-ack=full"
        "&k%20y=v%26%3D%2F%C3%A9&=&plain=1"
    )
    assert waiting(world) == 1
    assert client.exchange() == [Received(topic, body, 1, is_duplicate=False)]
    assert waiting(world) == 0
    assert feedback(world) == [("a/b c", "Success")]


def test_at_qos_0_a_message_is_complete_once_it_is_sent(world: World) -> None:
    client = listener(world, qos=0)
    send(world, ack="full", body=b"1")
    assert (waiting(world), feedback(world)) == (0, [("m1", "Success")])
    assert [event.qos for event in client.exchange() if isinstance(event, Received)] == [0]


def test_what_was_sent_while_the_device_was_away_arrives_at_its_return_without_a_new_subscribe(
    world: World,
) -> None:
    client = listener(world)
    client.session.disconnect()
    client.exchange()
    for body in (b"1", b"2"):
        send(world, body=body)
    assert waiting(world) == 2
    assert messages(client.connect()) == [(b"1", False), (b"2", False)]
    assert waiting(world) == 0


def test_messages_wait_until_the_device_subscribes(world: World) -> None:
    client = Client(world, IdentityId("d1"))
    client.connect()
    send(world, body=b"1")
    assert (messages(client.exchange()), waiting(world)) == ([], 1)
    client.session.subscribe((DEVICEBOUND, 1))
    assert (messages(client.exchange()), waiting(world)) == ([(b"1", False)], 0)


def test_without_a_puback_a_message_comes_again_marked_as_a_repetition_when_the_session_resumes(world: World) -> None:
    client = listener(world)
    send(world, body=b"1")
    send(world, body=b"2")
    assert hear_without_puback(client) == [(b"1", False), (b"2", False)]
    client.lose_connection()
    send(world, body=b"3")
    assert messages(client.connect()) == [(b"1", True), (b"2", True), (b"3", False)]
    assert waiting(world) == 0


def test_in_a_clean_session_a_message_comes_again_as_if_for_the_first_time(world: World) -> None:
    client = listener(world, clean_session=True)
    send(world, body=b"1")
    hear_without_puback(client)
    client.lose_connection()
    assert client.connect(clean_session=True) == [Connected(is_session_present=False)]
    client.session.subscribe((DEVICEBOUND, 1))
    assert (messages(client.exchange()), waiting(world)) == ([(b"1", False)], 0)


def test_after_ten_deliveries_without_a_puback_a_message_is_dead(world: World) -> None:
    client = listener(world)
    send(world, ack="full", body=b"1")
    for attempt in range(10):
        assert hear_without_puback(client) == [(b"1", attempt > 0)]
        client.lose_connection()
        client.pipe.is_closed = False
        reconnect_without_puback(client)
    assert feedback(world) == [("m1", "DeliveryCountExceeded")]
    assert client.world.hub.cloud_to_device.count("d1") == 0


def reconnect_without_puback(client: Client) -> None:
    """Come back and read the CONNACK, but leave what follows it in the pipe."""
    client.pipe = type(client.pipe)()
    client.dialogue = client.world.switchboard.open(client.pipe)
    client.session.connect(client.world.connect_packet(client.identity_id))
    client.deliver(client.session.data_to_send())
    connack, client.pipe.written[:4] = bytes(client.pipe.written[:4]), b""
    assert client.session.receive(connack) == [Connected(is_session_present=True)]


def test_a_device_that_connects_twice_gets_on_its_new_connection_what_the_old_one_owed(world: World) -> None:
    first = listener(world)
    send(world, body=b"1")
    hear_without_puback(first)
    second = Client(world, IdentityId("d1"))
    assert messages(second.connect()) == [(b"1", True)]
    assert (first.pipe.is_closed, waiting(world)) == (True, 0)


def test_a_message_that_expired_while_its_device_was_away_is_not_sent_again(world: World) -> None:
    client = listener(world)
    send(world, body=b"1", expires_at=NOON + 10, ack="full")
    hear_without_puback(client)
    pass_time(world, 11)
    assert feedback(world) == []
    client.lose_connection()
    assert feedback(world) == [("m1", "Expired")]
    assert messages(client.connect()) == []
    send(world, body=b"2")
    assert messages(client.exchange()) == [(b"2", False)]


def test_a_puback_that_comes_after_the_time_of_the_message_still_completes_it(world: World) -> None:
    client = listener(world)
    send(world, body=b"1", expires_at=NOON + 10, ack="full")
    pass_time(world, 11)
    client.exchange()
    assert feedback(world) == [("m1", "Success")]


def test_a_puback_for_a_message_that_was_purged_meanwhile_changes_nothing(world: World) -> None:
    client = listener(world)
    send(world, ack="full")
    assert world.hub.cloud_to_device.purge("d1", NOON) == 1
    client.exchange()
    assert feedback(world) == [("m1", "Purged")]
    send(world, body=b"2")
    assert messages(client.exchange()) == [(b"2", False)]


def test_what_a_device_received_elsewhere_meanwhile_is_not_sent_again(world: World) -> None:
    client = listener(world)
    send(world, body=b"1")
    hear_without_puback(client)
    client.lose_connection()
    token = receive(world)
    assert messages(client.connect()) == []
    world.hub.cloud_to_device.abandon("d1", token or "", NOON)
    world.hub.offer_messages("d1", NOON)
    world.switchboard.settle()
    assert (messages(client.exchange()), waiting(world)) == ([(b"1", False)], 0)


def test_a_message_whose_lock_ran_out_goes_to_the_device_that_listens_by_now(world: World) -> None:
    send(world, body=b"1")
    receive(world)
    client = listener(world)
    pass_time(world, 59)
    assert messages(client.exchange()) == []
    pass_time(world, 1)
    assert messages(client.exchange()) == [(b"1", False)]


def test_twenty_messages_are_under_way_at_most_and_each_puback_lets_one_follow(world: World) -> None:
    client = listener(world)
    for number in range(50):
        send(world, body=str(number).encode())
    assert hear_without_puback(client) == [(str(number).encode(), False) for number in range(20)]
    assert messages(client.exchange()) == [(str(number).encode(), False) for number in range(20, 50)]
    assert waiting(world) == 0


def test_a_module_of_the_same_name_space_gets_no_message_of_its_device(world: World) -> None:
    module = Client(world, world.register("d1", "m1"))
    module.connect()
    module.session.subscribe((DEVICEBOUND, 1))
    module.exchange()
    assert module.pipe.is_closed
