"""A device and the hub in conversation, through our own client half and without a socket."""

import json
from typing import Any

import pytest
from hub_worlds import HOST, NOON, Client, World

from simulators.iothub.core.access import make_token
from simulators.iothub.core.effects import EndMethod
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError
from simulators.iothub.server.dialogue import TRANSITIONS, State
from simulators.iothub.wire.client import (
    Connected,
    PingAnswered,
    Published,
    Received,
    Refused,
    Subscribed,
    Unsubscribed,
)
from simulators.iothub.wire.mqtt import (
    Connack,
    ConnackCode,
    Disconnect,
    Pingreq,
    Puback,
    Publish,
    Pubrel,
    Subscribe,
    Will,
    encode,
)

METHODS = "$iothub/methods/POST/#"
TWIN = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
EVENTS = "devices/d1/messages/events/"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world, world.register("d1"))


def patch_desired(world: World, patch: Any) -> None:
    world.hub.patch_twin(IdentityId("d1"), {"properties": {"desired": patch}}, None, world.clock.now)
    world.switchboard.settle()


def subscribed(client: Client, *filters: str) -> Client:
    client.connect()
    client.session.subscribe(*((topic_filter, 1) for topic_filter in filters))
    client.exchange()
    return client


def test_a_device_connects_and_is_seen_as_connected_until_it_says_goodbye(world: World, client: Client) -> None:
    assert client.connect() == [Connected(is_session_present=False)]
    identity = world.hub.registry.get(IdentityId("d1"))
    assert identity.connection_state == "Connected"
    assert identity.last_activity_at == "2023-11-14T22:13:20.0000000Z"
    client.session.ping()
    assert client.exchange() == [PingAnswered()]
    world.clock.now += 60
    client.session.disconnect()
    client.exchange()
    assert (identity.connection_state, client.pipe.is_closed) == ("Disconnected", True)
    assert identity.connection_updated_at == "2023-11-14T22:14:20.0000000Z"


def refusals(world: World) -> dict[str, tuple[dict[str, Any], ConnackCode]]:
    key = str(world.hub.registry.get(IdentityId("d1")).keys[0])

    def token(resource: str, expires_at: float) -> bytes:
        return make_token(key, resource, int(expires_at)).encode()

    denied = ConnackCode.NOT_AUTHORIZED
    return {
        "a wrong key": ({"password": make_token("QUJD" * 8, f"{HOST}/devices/d1", int(NOON) + 60).encode()}, denied),
        "an expired token": ({"password": token(f"{HOST}/devices/d1", NOON - 1)}, denied),
        "another device's token": ({"password": token(f"{HOST}/devices/d2", NOON + 60)}, denied),
        "no password": ({"password": None}, denied),
        "a password of random bytes": ({"password": b"\xff\xfe"}, denied),
        "an unknown device": ({"client_id": "d9", "username": f"{HOST}/d9/?api-version=1"}, denied),
        "an unknown module": ({"client_id": "d1/m", "username": f"{HOST}/d1/m/?api-version=1"}, denied),
        "another hub": ({"username": "elsewhere/d1/?api-version=1"}, denied),
        "a client id that is not the user's": ({"client_id": "d2"}, ConnackCode.IDENTIFIER_REJECTED),
        "no user name": ({"username": None, "password": None}, ConnackCode.IDENTIFIER_REJECTED),
        "a will for another topic": ({"will": Will(topic="a", payload=b"")}, ConnackCode.IDENTIFIER_REJECTED),
        "a will in another's name": (
            {"will": Will(topic="devices/d2/messages/events/", payload=b"")},
            ConnackCode.IDENTIFIER_REJECTED,
        ),
    }


def registered() -> World:
    world = World()
    world.register("d1")
    return world


@pytest.mark.parametrize("story", refusals(registered()))
def test_a_device_is_refused_with(world: World, client: Client, story: str) -> None:
    changes, code = refusals(world)[story]
    assert client.connect(**changes) == [Refused(code)]
    assert client.pipe.is_closed
    assert world.hub.registry.get(IdentityId("d1")).connection_state == "Disconnected"


def test_a_disabled_device_is_cut_off_and_not_let_in_again_nor_are_its_modules(world: World, client: Client) -> None:
    module = Client(world, world.register("d1", "m1"))
    client.connect()
    module.connect()
    world.hub.put_identity(IdentityId("d1"), {"deviceId": "d1", "status": "disabled"}, "*", world.clock.now)
    world.switchboard.settle()
    for one in (client, module):
        assert one.pipe.is_closed
        one.session.connection_lost()
        assert one.connect() == [Refused(ConnackCode.NOT_AUTHORIZED)]


def test_a_deleted_device_is_cut_off(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    world.hub.delete_identity(IdentityId("d1"), None, world.clock.now)
    world.switchboard.settle()
    assert (client.pipe.is_closed, world.hub.service_statistics()) == (True, {"connectedDeviceCount": 0})


def test_a_second_connection_takes_over_and_the_first_one_ending_changes_nothing(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    old_pipe, old_dialogue = client.pipe, client.dialogue
    client.session.connection_lost()
    assert client.connect() == [Connected(is_session_present=True)]
    assert old_pipe.is_closed
    assert old_dialogue is not None
    world.switchboard.closed(old_dialogue)
    assert world.hub.registry.get(IdentityId("d1")).connection_state == "Connected"
    assert world.hub.service_statistics() == {"connectedDeviceCount": 1}
    patch_desired(world, {"a": 1})
    assert [event.payload for event in client.exchange() if isinstance(event, Received)] == [b'{"a":1,"$version":2}']


def test_telemetry_is_in_the_log_when_its_puback_comes(world: World, client: Client) -> None:
    client.connect()
    world.clock.now += 1.5
    client.session.publish(EVENTS + "%24.mid=m1&%24.ct=text%2Fplain&colour=red", b"21.5")
    assert client.exchange() == [Published(1)]
    assert [event.document() for event in world.telemetry()] == [
        {
            # The device's creation and its connection came before.
            "sequence": 3,
            "enqueuedTime": "2023-11-14T22:13:21.5000000Z",
            "deviceId": "d1",
            "moduleId": "",
            "source": "Telemetry",
            "systemProperties": {
                "messageId": "m1",
                "contentType": "text/plain",
                "connectionDeviceGenerationId": "id-11",
            },
            "properties": {"colour": "red"},
            "body": "MjEuNQ==",
        }
    ]


def test_a_retained_message_says_so(world: World, client: Client) -> None:
    client.connect()
    client.deliver(encode(Publish(topic=EVENTS, payload=b"x", retain=True)))
    assert world.telemetry()[0].properties == {"mqtt-retain": "true"}


def test_the_will_is_an_event_when_the_device_dies_and_none_when_it_leaves(world: World, client: Client) -> None:
    will = Will(topic=EVENTS + "last=1", payload=b"gone")
    client.connect(will=will)
    client.session.disconnect()
    client.exchange()
    assert world.events() == []
    client.connect(will=will)
    client.lose_connection()
    (event,) = world.telemetry()
    assert (event.body, event.properties) == (b"gone", {"last": "1", "iothub-MessageType": "Will"})


CLOSERS: dict[str, bytes] = {
    "a message of QoS 2": encode(Publish(topic=EVENTS, qos=2, packet_id=1)),
    "an unknown topic": encode(Publish(topic="a/b")),
    "another device's telemetry": encode(Publish(topic="devices/d2/messages/events/")),
    "its module's telemetry": encode(Publish(topic="devices/d1/modules/m1/messages/events/")),
    "a message of more than 256 KB": encode(Publish(topic=EVENTS, payload=bytes(256 * 1024 + 1), qos=1, packet_id=1)),
    "a message whose properties make it more than 256 KB": encode(
        Publish(topic=EVENTS + "k=v", payload=bytes(256 * 1024 - 1))
    ),
    "a subscription to everything": encode(Subscribe(packet_id=1, filters=(("#", 0),))),
    "another device's messages": encode(Subscribe(packet_id=1, filters=(("devices/d2/messages/devicebound/#", 0),))),
    "a second CONNECT": b"",
    "a server's packet": encode(Connack()),
    "a PUBREL": encode(Pubrel(1)),
    "garbage": b"\x00",
    "a packet that claims to be huge": b"\x30\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("data", CLOSERS.values(), ids=CLOSERS.keys())
def test_the_connection_is_closed_on(world: World, client: Client, data: bytes) -> None:
    client.connect()
    client.deliver(data or encode(world.connect_packet(client.identity_id)))
    assert (client.pipe.is_closed, client.pipe.take(), world.events()) == (True, b"", [])
    assert world.hub.registry.get(IdentityId("d1")).connection_state == "Disconnected"


@pytest.mark.parametrize("packet", [Pingreq(), Disconnect(), Puback(1), Publish(topic=EVENTS)], ids=repr)
def test_nothing_may_come_before_connect(world: World, client: Client, packet: Any) -> None:
    dialogue = world.switchboard.open(client.pipe)
    dialogue.receive(encode(packet), NOON)
    assert (client.pipe.is_closed, client.pipe.take()) == (True, b"")


def test_another_version_of_mqtt_is_told_so(world: World, client: Client) -> None:
    dialogue = world.switchboard.open(client.pipe)
    dialogue.receive(bytes.fromhex("100c00044d515454050200000000"), NOON)
    assert client.pipe.take() == encode(Connack(code=ConnackCode.UNACCEPTABLE_PROTOCOL_LEVEL))
    assert client.pipe.is_closed


def test_packets_before_garbage_in_the_same_chunk_count(world: World, client: Client) -> None:
    client.connect()
    client.deliver(encode(Publish(topic=EVENTS, payload=b"x", qos=1, packet_id=5)) + b"\xff")
    assert world.events() == [b"x"]
    assert client.pipe.take() == encode(Puback(5))


def test_nothing_after_a_goodbye_counts(world: World, client: Client) -> None:
    client.connect()
    client.deliver(encode(Disconnect()) + encode(Publish(topic=EVENTS, payload=b"late")))
    assert world.events() == []


def test_a_twin_is_read_and_reported(world: World, client: Client) -> None:
    subscribed(client, TWIN)
    patch_desired(world, {"a": 1})
    client.session.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", b'{"b":{"c":2}}')
    client.session.publish("$iothub/twin/GET/?$rid=2", b" ")
    answers = [(event.topic, event.payload) for event in client.exchange() if isinstance(event, Received)]
    assert answers[0] == ("$iothub/twin/res/204/?$rid=1&$version=2", b"")
    assert answers[1][0] == "$iothub/twin/res/200/?$rid=2"
    assert json.loads(answers[1][1]) == {"desired": {"a": 1, "$version": 2}, "reported": {"b": {"c": 2}, "$version": 2}}


BAD_REPORTS = {
    "no JSON": b"{",
    "not UTF-8": b'"\xff"',
    "NaN": b'{"a": NaN}',
    "beyond a double": b'{"a": 1e999}',
    "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a list": b"[]",
    "nothing": b"",
    "a key with a dot": b'{"a.b": 1}',
    "too deep for any parser": b'{"a":' * 20_000,
}


@pytest.mark.parametrize("payload", BAD_REPORTS.values(), ids=BAD_REPORTS.keys())
def test_a_bad_report_is_answered_and_changes_nothing(world: World, client: Client, payload: bytes) -> None:
    subscribed(client, TWIN)
    client.session.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", payload)
    (answer,) = [event for event in client.exchange() if isinstance(event, Received)]
    assert answer.topic == "$iothub/twin/res/400/?$rid=1"
    assert json.loads(answer.payload)["errorCode"] == 400004
    assert world.hub.twin(IdentityId("d1")).reported.version == 1
    assert not client.pipe.is_closed


def test_a_twin_answer_is_for_who_subscribed(world: World, client: Client) -> None:
    client.connect()
    client.session.publish("$iothub/twin/GET/?$rid=2", b"")
    assert client.exchange() == [Published(1)]


def test_desired_patches_reach_who_subscribed_as_they_were_issued(world: World, client: Client) -> None:
    client.connect()
    patch_desired(world, {"a": 1})
    assert client.exchange() == []
    client.session.subscribe((DESIRED, 2))
    assert client.exchange() == [Subscribed(1, (1,))]
    patch_desired(world, {"a": None, "b": {"c": [1]}})
    assert client.exchange() == [
        Received(
            "$iothub/twin/PATCH/properties/desired/?$version=3", b'{"a":null,"b":{"c":[1]},"$version":3}', 1, False
        )
    ]
    client.session.unsubscribe(DESIRED)
    assert client.exchange() == [Unsubscribed(2)]
    patch_desired(world, {"a": 2})
    assert client.exchange() == []


def test_tags_alone_are_no_news_for_the_device(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    world.hub.patch_twin(IdentityId("d1"), {"tags": {"a": 1}}, None, NOON)
    world.switchboard.settle()
    assert client.exchange() == []


def test_replacing_a_twin_sends_all_of_it(world: World, client: Client) -> None:
    patch_desired(world, {"a": 1, "b": 2})
    subscribed(client, DESIRED)
    world.hub.replace_twin(IdentityId("d1"), {"properties": {"desired": {"b": 3}}}, None, NOON)
    world.switchboard.settle()
    assert [event.payload for event in client.exchange() if isinstance(event, Received)] == [b'{"b":3,"$version":3}']


def test_subscriptions_outlive_the_connection(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    client.lose_connection()
    patch_desired(world, {"missed": 1})
    assert client.connect() == [Connected(is_session_present=True)]
    patch_desired(world, {"heard": 1})
    assert [event.payload for event in client.exchange() if isinstance(event, Received)] == [
        b'{"heard":1,"$version":3}'
    ]


def test_a_clean_session_forgets(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    client.lose_connection()
    assert client.connect(clean_session=True) == [Connected(is_session_present=False)]
    client.lose_connection()
    assert client.connect() == [Connected(is_session_present=False)]
    patch_desired(world, {"a": 1})
    assert client.exchange() == []


def test_a_patch_without_puback_comes_again_as_a_repetition(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    patch_desired(world, {"a": 1})
    client.lose_connection()
    first, again = client.connect()
    assert first == Connected(is_session_present=True)
    topic = "$iothub/twin/PATCH/properties/desired/?$version=2"
    assert again == Received(topic, b'{"a":1,"$version":2}', 1, True)
    client.lose_connection()
    assert client.connect() == [Connected(is_session_present=True)]


def test_a_client_that_never_acknowledges_is_cut_off(world: World, client: Client) -> None:
    subscribed(client, DESIRED)
    for number in range(101):
        assert not client.pipe.is_closed, f"closed after {number} messages"
        patch_desired(world, {"a": number})
    assert client.pipe.is_closed


def invoke(world: World, connect_timeout_s: int = 0) -> str:
    request = MethodRequest.read(
        {"methodName": "ping", "payload": {"a": 1}, "connectTimeoutInSeconds": connect_timeout_s}
    )
    return world.hub.invoke_method(IdentityId("d1"), request, world.clock.now)


def ended(world: World) -> list[Any]:
    results = [effect.result for effect in world.hub.take_effects() if isinstance(effect, EndMethod)]
    return [(result.error.fault.name if result.error else result.document()) for result in results]


def test_a_method_is_called_and_answered(world: World, client: Client) -> None:
    subscribed(client, METHODS)
    request_id = invoke(world)
    world.switchboard.settle()
    topic = f"$iothub/methods/POST/ping/?$rid={request_id}"
    assert client.exchange() == [Received(topic, b'{"a":1}', 0, False)]
    world.hub.answer_method(IdentityId("d1"), request_id, 200, b'{"b":2}', NOON)
    assert ended(world) == [{"status": 200, "payload": {"b": 2}}]
    world.hub.answer_method(IdentityId("d1"), request_id, 200, b"{}", NOON)
    assert ended(world) == []


def test_a_method_on_an_absent_device_is_refused_at_once(world: World, client: Client) -> None:
    for prepare in (lambda: None, client.connect):
        prepare()
        with pytest.raises(ServiceError) as refused:
            invoke(world)
        assert refused.value.fault.name == "DeviceNotOnline"


def test_a_method_may_wait_for_its_device(world: World, client: Client) -> None:
    request_id = invoke(world, connect_timeout_s=10)
    world.clock.now += 9
    subscribed(client, METHODS)
    assert Received(f"$iothub/methods/POST/ping/?$rid={request_id}", b'{"a":1}', 0, False) in client.events
    world.clock.now += 29
    world.hub.expire_methods(world.clock.now)
    assert ended(world) == []
    world.clock.now += 1
    world.hub.expire_methods(world.clock.now)
    assert ended(world) == ["GatewayTimeout"]


def test_a_device_that_does_not_come_in_time_is_not_online(world: World, client: Client) -> None:
    invoke(world, connect_timeout_s=10)
    world.hub.expire_methods(world.clock.now + 10)
    assert ended(world) == ["DeviceNotOnline"]
    subscribed(client, METHODS)
    assert not [event for event in client.events if isinstance(event, Received)]


def test_a_device_that_goes_away_owes_no_answer(world: World, client: Client) -> None:
    subscribed(client, METHODS)
    invoke(world)
    world.switchboard.settle()
    assert client.dialogue is not None
    client.dialogue.lost(world.clock.now)
    assert ended(world) == ["DeviceConnectionClosedRemotely"]


def test_an_answer_that_is_no_json_fails_the_call(world: World, client: Client) -> None:
    subscribed(client, METHODS)
    request_id = invoke(world)
    world.switchboard.settle()
    world.hub.answer_method(IdentityId("d1"), request_id, 200, b"{", NOON)
    assert ended(world) == ["ArgumentInvalid"]


def test_another_device_cannot_answer(world: World, client: Client) -> None:
    other = world.register("d2")
    subscribed(client, METHODS)
    request_id = invoke(world)
    world.switchboard.settle()
    world.hub.answer_method(other, request_id, 200, b"{}", NOON)
    assert ended(world) == []


BAD_METHODS: dict[str, tuple[Any, str]] = {
    "no name": ({}, "ArgumentInvalid"),
    "a list": ([], "ArgumentInvalid"),
    "a name with a slash": ({"methodName": "a/b"}, "ArgumentInvalid"),
    "a timeout of four seconds": ({"methodName": "a", "responseTimeoutInSeconds": 4}, "ArgumentInvalid"),
    "a timeout of 301 seconds": ({"methodName": "a", "responseTimeoutInSeconds": 301}, "ArgumentInvalid"),
    "a timeout that is true": ({"methodName": "a", "connectTimeoutInSeconds": True}, "ArgumentInvalid"),
    "more than 128 KB": ({"methodName": "a", "payload": "x" * 131_072}, "MessageTooLarge"),
}


@pytest.mark.parametrize(("body", "code"), BAD_METHODS.values(), ids=BAD_METHODS.keys())
def test_a_bad_method_call_is_refused(body: Any, code: str) -> None:
    with pytest.raises(ServiceError) as refused:
        MethodRequest.read(body)
    assert refused.value.fault.name == code


def test_keep_alive_and_token_set_the_timers(world: World, client: Client) -> None:
    assert client.dialogue is None
    client.connect(keep_alive_s=60)
    assert client.dialogue is not None
    assert (client.dialogue.idle_timeout_s, client.dialogue.expires_at) == (90.0, NOON + 3600)
    client.lose_connection()
    client.connect(keep_alive_s=1740)
    assert client.dialogue.idle_timeout_s == 1767
    client.lose_connection()
    client.connect(keep_alive_s=0)
    assert client.dialogue.idle_timeout_s == 1767


def test_a_model_id_is_noted_on_the_twin(world: World, client: Client) -> None:
    client.connect(username=f"{HOST}/d1/?api-version=2020-09-30&model-id=dtmi%3Acom%3Ax%3B1")
    assert world.hub.twin_document(IdentityId("d1"))["modelId"] == "dtmi:com:x;1"


def test_the_table_of_the_dialogue_is_complete() -> None:
    listed = sorted((state.name, packet.__name__) for state, packet in TRANSITIONS)
    assert listed == [
        ("AWAITING_CONNECT", "Connect"),
        ("OPEN", "Disconnect"),
        ("OPEN", "Pingreq"),
        ("OPEN", "Puback"),
        ("OPEN", "Publish"),
        ("OPEN", "Subscribe"),
        ("OPEN", "Unsubscribe"),
        ("PROVISIONING", "Disconnect"),
        ("PROVISIONING", "Pingreq"),
        ("PROVISIONING", "Puback"),
        ("PROVISIONING", "Publish"),
        ("PROVISIONING", "Subscribe"),
        ("PROVISIONING", "Unsubscribe"),
    ]
    assert not [state for state, _ in TRANSITIONS if state is State.CLOSED]
