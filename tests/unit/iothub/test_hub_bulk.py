"""Bulk registry requests: each device by itself, and every refusal named."""

from typing import Any

import pytest
from hub_worlds import World

from simulators.iothub.core.bulk import run_bulk
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError


@pytest.fixture
def world() -> World:
    world = World()
    world.register("old")
    world.register("old", "m1")
    return world


def item(name: str, mode: str | None, **fields: Any) -> dict[str, Any]:
    return {"id": name, "importMode": mode, **fields}


def errors(world: World, *items: Any) -> list[tuple[Any, ...]]:
    result = run_bulk(world.hub, list(items), world.clock.now).document()
    assert result["isSuccessful"] is (not result["errors"])
    assert result["warnings"] == []
    return [(error["deviceId"], error["errorCode"], error["operation"]) for error in result["errors"]]


def test_every_mode_does_its_work(world: World) -> None:
    old = world.hub.registry.get(IdentityId("old"))
    module = {"moduleId": "m2"}
    assert errors(
        world,
        item("new", "create", tags={"a": 1}, properties={"desired": {"b": 2}}, capabilities={"iotEdge": True}),
        item("old", "create", **module),
        item("old", "updateIfMatchETag", eTag=old.etag, status="disabled"),
        item("either", None, status="disabled"),
    ) == []  # fmt: skip
    new = world.hub.twin_document(IdentityId("new"))
    assert (new["tags"], new["properties"]["desired"]["b"], new["capabilities"]) == ({"a": 1}, 2, {"iotEdge": True})
    assert world.hub.registry.find(IdentityId("new", "$edgeAgent")) is not None
    assert world.hub.registry.find(IdentityId("old", "m2")) is not None
    assert (old.status, world.hub.registry.get(IdentityId("either")).status) == ("disabled", "disabled")
    assert errors(
        world,
        item("new", "updateTwin", tags={"a": None, "c": 3}),
        item("old", "update", status="enabled"),
        item("either", None, status="enabled"),
    ) == []  # fmt: skip
    assert world.hub.twin_document(IdentityId("new"))["tags"] == {"c": 3}
    assert (old.status, world.hub.registry.get(IdentityId("either")).status) == ("enabled", "enabled")
    etag = world.hub.twin_document(IdentityId("new"))["etag"]
    assert errors(world, item("new", "updateTwinIfMatchETag", twinETag=etag, tags={"d": 4})) == []
    assert world.hub.twin_document(IdentityId("new"))["tags"] == {"c": 3, "d": 4}
    assert errors(world, item("old", "deleteIfMatchETag", eTag=old.etag), item("new", "delete")) == []
    assert [device.id.device_id for device in world.hub.registry.devices()] == ["either"]


REFUSALS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a device that is there": (item("old", "create"), ("old", "DeviceAlreadyExists", "create")),
    "a device that is not": (item("no", "update"), ("no", "DeviceNotFound", "update")),
    "the twin of none": (item("no", "updateTwin", tags={}), ("no", "DeviceNotFound", "updateTwin")),
    "a deletion of none": (item("no", "delete"), ("no", "DeviceNotFound", "delete")),
    "a module of none": (item("no", "create", moduleId="m"), ("no", "DeviceNotFound", "create")),
    "a stale tag": (item("old", "updateIfMatchETag", eTag="x"), ("old", "PreconditionFailed", "updateIfMatchETag")),
    "a stale tag of a twin": (
        item("old", "updateTwinIfMatchETag", twinETag="x", tags={}),
        ("old", "PreconditionFailed", "updateTwinIfMatchETag"),
    ),
    "a missing tag": (item("old", "deleteIfMatchETag"), ("old", "ArgumentInvalid", "deleteIfMatchETag")),
    "an unknown mode": (item("old", "upsert"), ("old", "ArgumentInvalid", "upsert")),
    "a mode that is no text": (item("old", {}) | {"importMode": [1]}, ("old", "ArgumentInvalid", None)),
    "an id that is none": (item("a b", "create"), ("a b", "ArgumentInvalid", "create")),
    "no id": ({"importMode": "create"}, (None, "ArgumentInvalid", "create")),
    "a twin that is none": (item("new", "create", tags={"a.b": 1}), ("new", "ArgumentInvalid", "create")),
}


@pytest.mark.parametrize(("refused", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_one_refusal_leaves_the_others_done(world: World, refused: Any, expected: tuple[Any, ...]) -> None:
    assert errors(world, item("a", "create"), refused, item("b", "create")) == [expected]
    assert [device.id.device_id for device in world.hub.registry.devices()] == ["old", "a", "b"]


def test_a_device_twice_is_refused_the_second_time(world: World) -> None:
    assert errors(world, item("a", "create"), item("a", "delete"), item("a", "create", moduleId="m")) == [
        ("a", "DeviceDefinedMultipleTimes", "delete")
    ]


@pytest.mark.parametrize("body", [None, {}, [1], [], [item(f"d{number}", "create") for number in range(101)]])
def test_a_body_that_is_no_list_of_devices_changes_nothing(world: World, body: Any) -> None:
    with pytest.raises(ServiceError) as refused:
        run_bulk(world.hub, body, world.clock.now)
    assert refused.value.fault.name == "ArgumentInvalid"
    assert [device.id.device_id for device in world.hub.registry.devices()] == ["old"]
