"""What the hub tells of itself in the built-in endpoint: twins, identities, connections."""

import json
from typing import Any

import pytest
from hub_worlds import NOON, Client, World

from simulators.iothub.core.hub_events import SOURCES
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError

D1 = IdentityId("d1")
NEVER = {"$lastUpdated": "0001-01-01T00:00:00Z"}
STAMP = "2023-11-14T22:13:20.0000000Z"


@pytest.fixture
def world() -> World:
    return World()


def told(world: World, after: int = 0) -> list[tuple[str, str, str, Any]]:
    """Source, operation, who it is about, and the body."""
    return [
        (event.source, event.properties["opType"], event.source_id.client_id, json.loads(event.body))
        for event in world.hub.events.read(after, 1000)
        if event.source in SOURCES
    ]


def empty_twin(**identity: str) -> dict[str, Any]:
    section = {"$metadata": NEVER, "$version": 1}
    return {**identity, "etag": "AAAAAAAAAAE=", "version": 2, "properties": {"desired": section, "reported": section}}


def test_identities_come_and_go_with_their_modules(world: World) -> None:
    world.register("d1", "m1")
    world.hub.delete_identity(D1, None, NOON)
    device, module = empty_twin(deviceId="d1"), empty_twin(deviceId="d1", moduleId="m1")
    assert told(world) == [
        ("deviceLifecycleEvents", "createDeviceIdentity", "d1", device),
        ("deviceLifecycleEvents", "createModuleIdentity", "d1/m1", module),
        ("deviceLifecycleEvents", "deleteDeviceIdentity", "d1", device),
        ("deviceLifecycleEvents", "deleteModuleIdentity", "d1/m1", module),
    ]


def test_an_event_says_whom_it_is_about_and_how_it_is_written(world: World) -> None:
    world.register("d1", "m1")
    event = world.hub.events.read(1, 1)[0]
    assert event.properties == {
        "hubName": "hub",
        "deviceId": "d1",
        "moduleId": "m1",
        "operationTimestamp": STAMP,
        "iothub-message-schema": "deviceLifecycleNotification",
        "opType": "createModuleIdentity",
    }
    assert event.system_properties == {
        "contentType": "application/json",
        "contentEncoding": "utf-8",
        "userId": "hub",
    }
    assert event.generation_id == world.hub.registry.get(IdentityId("d1", "m1")).generation_id


def test_a_changed_twin_is_told_as_it_was_changed_with_nulls_and_metadata(world: World) -> None:
    world.register("d1")
    patch = {"a": {"b": 1}, "gone": None, "$version": 99}
    world.hub.patch_twin(D1, {"properties": {"desired": {"old": 1, "gone": 2}}}, None, NOON - 60)
    world.hub.patch_twin(D1, {"tags": {"site": None}, "properties": {"desired": patch}}, None, NOON)
    world.hub.patch_twin(D1, {"tags": {"site": "x"}}, None, NOON)
    world.hub.report(D1, b'{"r": {"s": null}}', NOON)
    stamp = {"$lastUpdated": STAMP, "$lastUpdatedVersion": 3}
    device_stamp = {"$lastUpdated": STAMP}
    assert told(world)[2:] == [
        (
            "twinChangeEvents",
            "updateTwin",
            "d1",
            {
                "version": 4,
                "tags": {"site": None},
                "properties": {
                    "desired": {
                        "a": {"b": 1},
                        "gone": None,
                        "$metadata": {**stamp, "a": {**stamp, "b": stamp}},
                        "$version": 3,
                    }
                },
            },
        ),
        ("twinChangeEvents", "updateTwin", "d1", {"version": 5, "tags": {"site": "x"}}),
        (
            "twinChangeEvents",
            "updateTwin",
            "d1",
            {
                "version": 6,
                "properties": {
                    "reported": {
                        "r": {"s": None},
                        "$metadata": {**device_stamp, "r": device_stamp},
                        "$version": 2,
                    }
                },
            },
        ),
    ]


def test_a_replaced_twin_is_told_whole(world: World) -> None:
    world.register("d1", "m1")
    module = IdentityId("d1", "m1")
    world.hub.replace_twin(module, {"tags": {"t": 1}, "properties": {"desired": {"a": 1}}}, None, NOON)
    twin = world.hub.twin_document(module)
    assert told(world)[2:] == [
        (
            "twinChangeEvents",
            "replaceTwin",
            "d1/m1",
            {"version": 3, "tags": {"t": 1}, "properties": twin["properties"]},
        )
    ]


def test_what_is_refused_is_not_told(world: World) -> None:
    world.register("d1")
    for payload in (b"[]", b"{", b'{"a.b": 1}'):
        with pytest.raises(ServiceError):
            world.hub.report(D1, payload, NOON)
    with pytest.raises(ServiceError, match="ETag"):
        world.hub.patch_twin(D1, {"tags": {"a": 1}}, "stale", NOON)
    with pytest.raises(ServiceError, match="ETag"):
        world.hub.delete_identity(D1, "stale", NOON)
    assert len(told(world)) == 1


def test_connections_are_told_once_each_and_their_numbers_grow_as_text(world: World) -> None:
    client = Client(world, world.register("d1"))
    client.connect()
    # Another connection of the same device takes over: it was connected, and is.
    again = Client(world, D1)
    again.connect()
    world.clock.now += 1
    again.lose_connection()
    world.clock.now += 1
    again.connect()
    states = told(world)[1:]
    assert [(source, operation) for source, operation, _, _ in states] == [
        ("deviceConnectionStateEvents", "deviceConnected"),
        ("deviceConnectionStateEvents", "deviceDisconnected"),
        ("deviceConnectionStateEvents", "deviceConnected"),
    ]
    numbers = [body["sequenceNumber"] for *_, body in states]
    assert numbers == sorted(set(numbers))
    assert {len(number) for number in numbers} == {64}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_is_off_is_silent_and_the_others_are_not(world: World, source: str) -> None:
    world.hub.own_events.sources = frozenset(SOURCES) - {source}
    client = Client(world, world.register("d1"))
    client.connect()
    world.hub.patch_twin(D1, {"tags": {"a": 1}}, None, NOON)
    assert {name for name, *_ in told(world)} == set(SOURCES) - {source}


def test_telemetry_and_what_the_hub_tells_of_one_device_share_a_partition(world: World) -> None:
    client = Client(world, world.register("d1"))
    client.connect()
    client.session.publish("devices/d1/messages/events/", b"x")
    client.exchange()
    events = world.hub.events.read(0, 10)
    assert len({event.partition for event in events}) == 1
    assert [event.number for event in events] == [0, 1, 2]
