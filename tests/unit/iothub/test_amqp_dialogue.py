"""A client and the hub in conversation over AMQP, through our own client half and without a socket."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hub_worlds import HOST, NOON, Pipe, World

from simulators.iothub.core.access import make_token, signature
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.amqp.dialogue import TRANSITIONS, State
from simulators.iothub.server.amqp.links import INBOUND_CREDIT, LINKS_MAX, MESSAGE_BYTES_MAX
from simulators.iothub.wire.amqp.client import AmqpClient, messages_in, of_kind
from simulators.iothub.wire.amqp.frames import Frame, Heartbeat, Piece, ProtocolHeader, SaslFrame
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.performatives import (
    RECEIVER,
    Accepted,
    AmqpError,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Modified,
    Open,
    Rejected,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Transfer,
)
from simulators.iothub.wire.amqp.values import Array, Described, Int, Symbol, Timestamp, ULong

EVENT_HUB = "iothub-ehub-hub-test"
FEEDBACK = "/messages/serviceBound/feedback"
DEVICEBOUND = f"amqps://{HOST}/messages/devicebound"


class Peer:
    """A client on a world's exchange."""

    def __init__(self, world: World, **limits: int) -> None:
        self.world = world
        self.client = AmqpClient(**limits)
        self.pipe = Pipe()
        self.dialogue = world.switchboard.amqp.open(self.pipe)

    def exchange(self) -> list[Piece]:
        """Carry what the client has written to the hub; returns what the hub says."""
        if data := self.client.data_to_send():
            self.world.switchboard.amqp.receive(self.dialogue, data)
        return self.hear()

    def hear(self) -> list[Piece]:
        heard: list[Piece] = []
        while True:
            self.world.switchboard.amqp.pump()
            data = self.pipe.take()
            if not data:
                return heard
            heard += self.client.receive(data)

    def start(self) -> "Peer":
        self.client.start()
        self.exchange()
        return self

    def claim(self, policy: str = "iothubowner", lifetime_s: int = 3600, audience: str | None = None) -> Any:
        """Put a token; returns the status of the answer."""
        self.client.attach_reader("$cbs", 10)
        writer = self.client.attach_writer("$cbs")
        token = self.token(policy, lifetime_s, HOST)
        self.client.put_token(writer, token, audience or f"https://{HOST}")
        ((_, answer),) = messages_in(self.exchange())
        return (answer.application_properties or {})["status-code"]

    def token(self, policy: str, lifetime_s: int, resource: str) -> str:
        key = self.world.hub.gatekeeper.policy(policy).keys[0]
        return make_token(key, resource, int(self.world.clock.now) + lifetime_s, policy)


@pytest.fixture
def world() -> World:
    world = World()
    world.register("d1")
    return world


@pytest.fixture
def peer(world: World) -> Peer:
    peer = Peer(world).start()
    assert peer.claim() == 200
    return peer


def error_of(pieces: list[Piece], kind: type[Any] = Detach) -> str:
    (found,) = of_kind(pieces, kind)
    return str(found.error.condition)


def send_event(world: World, body: bytes, device: str = "d1", **properties: str) -> int:
    """Returns the partition that the event went to."""
    event = world.hub.accept_event(IdentityId(device), {}, properties, body, world.clock.now)
    world.switchboard.settle()
    return event.partition


def events_address(partition: int, group: str = "$Default") -> str:
    return f"amqps://{HOST}/{EVENT_HUB}/ConsumerGroups/{group}/Partitions/{partition}"


def bodies(pieces: list[Piece]) -> list[bytes]:
    return [b"".join(message.data) for _, message in messages_in(pieces)]


# The beginning --------------------------------------------------------------------------------------------------------


def test_a_connection_begins_with_sasl_headers_and_open(world: World) -> None:
    peer = Peer(world)
    peer.client.start("MSSBCBS")
    heard = peer.exchange()
    assert heard[0] == ProtocolHeader(3)
    assert of_kind(heard, SaslMechanisms) == [SaslMechanisms(mechanisms=("MSSBCBS", "ANONYMOUS", "PLAIN"))]
    assert of_kind(heard, SaslOutcome) == [SaslOutcome(code=0)]
    assert of_kind(heard, Open)[0].container_id == HOST
    assert of_kind(heard, Begin)[0].remote_channel == 0
    assert peer.dialogue.state is State.OPEN


def test_sasl_may_be_left_out(world: World) -> None:
    peer = Peer(world)
    peer.client.write(ProtocolHeader(0), Frame(0, Open(container_id="c")))
    assert len(of_kind(peer.exchange(), Open)) == 1


@pytest.mark.parametrize("spell", [lambda key, token: key, lambda key, token: token], ids=["a key", "a token"])
def test_plain_sasl_with_a_policy_is_as_good_as_a_token(world: World, spell: Callable[[str, str], str]) -> None:
    peer = Peer(world)
    password = spell(world.hub.gatekeeper.policy("service").keys[1], peer.token("service", 60, HOST))
    peer.client.start("PLAIN", f"\0service@sas.root.hub\0{password}".encode())
    assert of_kind(peer.exchange(), SaslOutcome) == [SaslOutcome(code=0)]
    peer.client.attach_writer(DEVICEBOUND)
    assert of_kind(peer.exchange(), Detach) == []


def test_plain_sasl_with_a_wrong_key_is_refused(world: World) -> None:
    peer = Peer(world)
    peer.client.start("PLAIN", b"\0service\0d3Jvbmc=")
    assert of_kind(peer.exchange(), SaslOutcome) == [SaslOutcome(code=1)]
    assert peer.pipe.is_closed


@pytest.mark.parametrize(
    "first",
    [ProtocolHeader(3, (0, 9, 1)), ProtocolHeader(2), Heartbeat(), Frame(0, Open(container_id="c"))],
    ids=["another version", "TLS within TCP", "a heartbeat", "open without a header"],
)
def test_what_is_no_beginning_ends_the_connection(world: World, first: Piece) -> None:
    peer = Peer(world)
    peer.client.write(first)
    peer.exchange()
    assert (peer.pipe.is_closed, peer.dialogue.state) == (True, State.CLOSED)


def test_the_table_says_what_each_state_takes() -> None:
    """What is not in the table ends the connection; the number is written down so that a change is seen."""
    assert len(TRANSITIONS) == 14
    assert {kind for state, kind in TRANSITIONS if state is State.OPEN} == {
        Heartbeat, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close,
    }  # fmt: skip
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.CLOSED}


VIOLATIONS: dict[str, list[Piece]] = {
    "open twice": [Frame(0, Open(container_id="c"))],
    "a session begun twice": [Frame(0, Begin(next_outgoing_id=0, incoming_window=1, outgoing_window=1))],
    "a channel beyond the bound": [Frame(99, Begin(next_outgoing_id=0, incoming_window=1, outgoing_window=1))],
    "a link without a session": [Frame(5, Attach(name="l", handle=0, role=True))],
    "a transfer on no link": [Frame(0, Transfer(handle=7, delivery_id=0))],
    "a detach of no link": [Frame(0, Detach(handle=7))],
    "a handle beyond the bound": [Frame(0, Attach(name="l", handle=256, role=True))],
    "SASL after SASL": [SaslFrame(SaslInit(mechanism="ANONYMOUS"))],
    "a header in the middle": [ProtocolHeader(0)],
}


@pytest.mark.parametrize("pieces", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_ends_the_connection_with_a_reason(world: World, pieces: list[Piece]) -> None:
    peer = Peer(world).start()
    peer.client.write(*pieces)
    assert error_of(peer.exchange(), Close) in ("amqp:not-allowed", "amqp:illegal-state")
    assert peer.pipe.is_closed


def test_garbage_on_an_open_connection_is_a_framing_error(world: World) -> None:
    peer = Peer(world).start()
    world.switchboard.amqp.receive(peer.dialogue, b"\xff" * 100)
    assert error_of(peer.hear(), Close) == "amqp:connection:framing-error"


def test_a_goodbye_is_returned(peer: Peer) -> None:
    peer.client.say(Close())
    assert of_kind(peer.exchange(), Close) == [Close()]
    assert peer.pipe.is_closed


def test_a_session_ends_and_may_begin_again(peer: Peer) -> None:
    peer.client.say(End())
    peer.client.say(Begin(next_outgoing_id=0, incoming_window=10, outgoing_window=10))
    heard = peer.exchange()
    assert (of_kind(heard, End), len(of_kind(heard, Begin))) == ([End()], 1)


def test_links_have_a_bound(peer: Peer) -> None:
    for _ in range(LINKS_MAX):
        peer.client.attach_reader("$cbs", 0)
    heard = peer.exchange()
    assert len(of_kind(heard, Attach)) == LINKS_MAX - 2
    assert error_of(heard, Close) == "amqp:not-allowed"


# Time -----------------------------------------------------------------------------------------------------------------


def after(peer: Peer, seconds: float) -> list[Piece]:
    peer.world.clock.now += seconds
    peer.world.switchboard.amqp.tick()
    return peer.hear()


def test_a_client_that_wants_heartbeats_gets_them_at_half_its_timeout(world: World) -> None:
    peer = Peer(world)
    peer.client.start(idle_timeout_ms=10_000)
    peer.exchange()
    assert after(peer, 4.9) == []
    assert after(peer, 0.2) == [Heartbeat()]
    assert after(peer, 4.0) == []


def test_a_client_that_never_opens_is_closed(world: World) -> None:
    peer = Peer(world)
    assert (after(peer, 29), peer.pipe.is_closed) == ([], False)
    assert (after(peer, 2), peer.pipe.is_closed) == ([], True)


def test_a_client_without_a_token_is_closed_after_a_minute(world: World) -> None:
    peer = Peer(world).start()
    assert after(peer, 59) == []
    assert error_of(after(peer, 2), Close) == "amqp:unauthorized-access"


def test_a_silent_client_is_closed_and_one_that_sends_heartbeats_is_not(peer: Peer) -> None:
    for _ in range(3):
        assert after(peer, 200) == []
        peer.client.write(Heartbeat())
        peer.exchange()
    assert error_of(after(peer, 241), Close) == "amqp:resource-limit-exceeded"


def test_the_end_of_a_token_ends_what_needs_it_and_a_new_one_renews_it(world: World) -> None:
    peer = Peer(world).start()
    assert peer.claim(lifetime_s=100) == 200
    peer.client.attach_writer(DEVICEBOUND)
    peer.exchange()
    assert after(peer, 90) == []
    assert peer.claim(lifetime_s=100) == 200
    assert after(peer, 90) == []
    assert error_of(after(peer, 11)) == "amqp:unauthorized-access"


# Tokens ---------------------------------------------------------------------------------------------------------------


def event_hubs_token(peer: Peer, resource: str) -> str:
    """Signed with the text of the key, as Event Hubs clients do."""
    import base64
    from urllib.parse import quote

    key = peer.world.hub.gatekeeper.policy("iothubowner").keys[0]
    quoted, expires_at = quote(resource, safe=""), int(NOON) + 60
    sig = signature(base64.b64encode(key.encode()).decode(), quoted, expires_at)
    return f"SharedAccessSignature sr={quoted}&sig={quote(sig, safe='')}&se={expires_at}&skn=iothubowner"


TOKENS: dict[str, tuple[Callable[[Peer], tuple[str, str]], int]] = {
    "a service token for the hub": (lambda peer: (peer.token("service", 60, HOST), f"https://{HOST}"), 200),
    "an unquoted resource": (
        lambda peer: (peer.token("service", 60, HOST).replace("%2F", "/"), f"amqps://{HOST}:5671/messages/devicebound"),
        200,
    ),
    "an Event Hubs token for a consumer group": (
        lambda peer: (
            event_hubs_token(peer, f"sb://{HOST}/{EVENT_HUB}/consumergroups/$default"),
            f"sb://{HOST}/{EVENT_HUB}/ConsumerGroups/$Default",
        ),
        200,
    ),
    "an Event Hubs token for a namespace of another name": (
        lambda peer: (
            event_hubs_token(peer, f"sb://ns.servicebus.windows.net/{EVENT_HUB}"),
            f"sb://ns.servicebus.windows.net/{EVENT_HUB}",
        ),
        200,
    ),
    "a token of another key": (lambda peer: (make_token("d3Jvbmc=", HOST, int(NOON) + 60, "service"), HOST), 401),
    "a token of an unknown policy": (
        lambda peer: (make_token("d3Jvbmc=", HOST, int(NOON) + 60, "nobody"), HOST),
        401,
    ),
    "a token that has ended": (lambda peer: (peer.token("service", -1, HOST), f"https://{HOST}"), 401),
    "a token for another hub": (lambda peer: (peer.token("service", 60, "else.where"), f"https://{HOST}"), 401),
    "a token for something else on the hub": (
        lambda peer: (peer.token("service", 60, f"{HOST}/devices"), f"https://{HOST}/messages/devicebound"),
        401,
    ),
    "something that is no token": (lambda peer: ("Bearer abc", f"https://{HOST}"), 401),
}


@pytest.mark.parametrize(("make", "status"), TOKENS.values(), ids=TOKENS)
def test_a_token_is_judged(world: World, make: Callable[[Peer], tuple[str, str]], status: int) -> None:
    peer = Peer(world).start()
    peer.client.attach_reader("$cbs", 10)
    token, audience = make(peer)
    message_id = UUID(int=7)
    peer.client.put_token(peer.client.attach_writer("$cbs"), token, audience, message_id)
    ((_, answer),) = messages_in(peer.exchange())
    assert answer.properties == Properties(correlation_id=message_id)
    assert answer.application_properties
    code = answer.application_properties["status-code"]
    assert (type(code), code) == (Int, status)
    assert isinstance(answer.application_properties["status-description"], str)


PUTS: dict[str, tuple[Message, int]] = {
    "another operation": (Message(application_properties={"operation": "delete-token"}), 400),
    "a token of Microsoft Entra": (
        Message(application_properties={"operation": "put-token", "type": "jwt", "name": "x"}, value="e30"),
        401,
    ),
    "a token that is no text": (
        Message(
            application_properties={"operation": "put-token", "type": "servicebus.windows.net:sastoken"}, data=(b"x",)
        ),
        400,
    ),
    "nothing": (Message(), 400),
}


@pytest.mark.parametrize(("message", "status"), PUTS.values(), ids=PUTS)
def test_what_is_no_put_of_a_token_is_answered(world: World, message: Message, status: int) -> None:
    peer = Peer(world).start()
    peer.client.attach_reader("$cbs", 10)
    peer.client.send(peer.client.attach_writer("$cbs"), message)
    ((_, answer),) = messages_in(peer.exchange())
    assert (answer.application_properties or {})["status-code"] == status


def test_a_question_that_nobody_reads_the_answer_of_is_rejected(world: World) -> None:
    peer = Peer(world).start()
    peer.client.send(peer.client.attach_writer("$cbs"), Message())
    (disposition,) = of_kind(peer.exchange(), Disposition)
    assert isinstance(disposition.state, Rejected)


def test_an_answer_waits_for_credit(world: World) -> None:
    peer = Peer(world).start()
    reader = peer.client.attach_reader("$cbs", 0)
    peer.client.send(peer.client.attach_writer("$cbs"), Message())
    assert messages_in(peer.exchange()) == []
    peer.client.give_credit(reader, 1)
    assert len(messages_in(peer.exchange())) == 1


@pytest.mark.parametrize("policy", ["device", "registryRead", "registryReadWrite"])
def test_a_policy_without_the_right_may_put_its_token_and_gets_no_link(world: World, policy: str) -> None:
    peer = Peer(world).start()
    assert peer.claim(policy) == 200
    for attach in (
        lambda: peer.client.attach_writer(DEVICEBOUND),
        lambda: peer.client.attach_reader(FEEDBACK, 1),
        lambda: peer.client.attach_reader(events_address(0), 1),
    ):
        attach()
        heard = peer.exchange()
        assert error_of(heard) == "amqp:unauthorized-access"
        # The vendor's readers want to see source and target before the error.
        (attached,) = of_kind(heard, Attach)
        assert (attached.source is None, attached.target is None) == (False, False)


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
    for number in range(10):
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
    for peer in peers:
        peer.claim()
        peer.client.attach_reader(events_address(0), 1)
        refused.append([detach.error.condition for detach in of_kind(peer.exchange(), Detach)])
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
