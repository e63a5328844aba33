"""The rows that queries run over: lazily looked up, alike to the document, and late where a lag is set."""

from typing import Any

import pytest
from hub_worlds import Client, World

from simulators.iothub.core.query.expressions import UNDEFINED, lookup


@pytest.fixture
def world() -> World:
    world = World()
    device = world.register("d1", capabilities={"iotEdge": True})
    world.register("d2", status="disabled", statusReason="lost")
    world.register("d1", "m1")
    world.hub.patch_twin(device, {"tags": {"a": {"b": [1]}}, "properties": {"desired": {"x": {"y": 1}}}}, None, 5.0)
    world.hub.report(device, b'{"up": true}', 6.0)
    return world


def paths_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = (
        [found for name, item in value.items() for found in paths_of(item, (*path, name))]
        if isinstance(value, dict)
        else []
    )
    return [path, *below] if path else below


def test_a_row_looks_up_what_its_document_holds(world: World) -> None:
    compared = 0
    for collection in ("devices", "devices.modules"):
        for _, row in world.hub.index.rows(collection):
            document = row.document()
            for path in paths_of(document):
                expected: Any = document
                for name in path:
                    expected = expected[name]
                assert (path, lookup(row, path)) == (path, expected)
                compared += 1
            for absent in (
                ("tags", "z"),
                ("properties", "desired", "z"),
                ("properties", "z"),
                ("nothing",),
                ("etag", "z"),
            ):
                assert lookup(row, absent) is UNDEFINED
    assert compared > 100


def test_empty_tags_and_a_devices_module_id_are_undefined(world: World) -> None:
    found = world.hub.query("SELECT deviceId FROM devices WHERE IS_DEFINED(tags) OR IS_DEFINED(moduleId)", None, 10)
    assert found.rows == [{"deviceId": "d1"}]


def ids(world: World, text: str) -> list[str]:
    return [row["deviceId"] for row in world.hub.query(text, None, 100, world.clock.now).rows]


def test_a_lagging_index_shows_a_write_when_its_time_has_come(world: World) -> None:
    world.hub.index.set_lag(5.0)
    d1 = world.register("d3")
    world.hub.patch_twin(d1, {"tags": {"a": 2}}, None, world.clock.now + 1)
    world.hub.delete_identity(d1._replace(device_id="d2"), None, world.clock.now)
    everything, tagged = "SELECT * FROM devices", "SELECT * FROM devices WHERE tags.a = 2"
    assert (ids(world, everything), ids(world, tagged)) == (["d1", "d2"], [])
    world.clock.now += 5
    assert (ids(world, everything), ids(world, tagged)) == (["d1", "d2", "d3"], [])
    world.clock.now += 1
    assert (ids(world, everything), ids(world, tagged)) == (["d1", "d3"], ["d3"])


def test_a_lagging_index_trails_connections_and_reports_too(world: World) -> None:
    world.hub.index.set_lag(2.0)
    identity_id = world.register("d9")
    world.clock.now += 2
    client = Client(world, identity_id)
    client.connect()
    world.hub.report(identity_id, b'{"n": 1}', world.clock.now)
    text = "SELECT * FROM devices WHERE connectionState = 'Connected' AND properties.reported.n = 1"
    assert ids(world, text) == []
    world.clock.now += 2
    assert ids(world, text) == ["d9"]


def test_without_a_lag_again_everything_is_seen_at_once(world: World) -> None:
    world.hub.index.set_lag(1000.0)
    world.register("d3")
    assert ids(world, "SELECT * FROM devices") == ["d1", "d2"]
    world.hub.index.set_lag(0)
    assert ids(world, "SELECT * FROM devices") == ["d1", "d2", "d3"]
