"""A client and the hub in conversation over AMQP: its beginning, its end, time and tokens."""

from collections.abc import Callable
from uuid import UUID

import pytest
from amqp_peers import (
    DEVICEBOUND,
    EVENT_HUB,
    FEEDBACK,
    Peer,
    error_of,
    events_address,
    peer,
    world,
)
from hub_worlds import HOST, NOON, World

from simulators.iothub.core.access import make_token, signature
from simulators.iothub.server.amqp.dialogue import TRANSITIONS, State
from simulators.iothub.server.amqp.links import LINKS_MAX
from simulators.iothub.wire.amqp.client import messages_in, of_kind
from simulators.iothub.wire.amqp.frames import Frame, Heartbeat, Piece, ProtocolHeader, SaslFrame
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.performatives import (
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    Open,
    Rejected,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Transfer,
)
from simulators.iothub.wire.amqp.values import Int

# The fixtures that the tests ask for by name.
__all__ = ["peer", "world"]


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
    "an empty token of Microsoft Entra": (
        Message(application_properties={"operation": "put-token", "type": "jwt", "name": "x"}, value=""),
        401,
    ),
    "a token of a sort that nobody knows": (
        Message(application_properties={"operation": "put-token", "type": "saml", "name": "x"}, value="e30"),
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
