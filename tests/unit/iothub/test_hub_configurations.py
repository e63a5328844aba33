"""Configurations: what is taken, who is targeted, what is written, and what is taken back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_worlds import Client, World

from simulators.iothub.core.configuration_documents import complaints_about
from simulators.iothub.core.configurations import Configurations
from simulators.iothub.core.desired_settings import patch_between, with_node, without_node
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.twins import merged
from simulators.iothub.errors import ServiceError


@pytest.fixture
def world() -> World:
    world = World()
    for name, site in (("n1", "north"), ("n2", "north"), ("s1", "south")):
        tag(world, world.register(name), site=site)
    return world


def tag(world: World, identity_id: IdentityId, **tags: Any) -> None:
    world.hub.patch_twin(identity_id, {"tags": tags}, None, world.clock.now)


def put(world: World, name: str, content: Any, if_match: str | None = None, **fields: Any) -> dict[str, Any]:
    world.clock.now += 1
    body = {"id": name, "content": content, "targetCondition": "tags.site = 'north'", "priority": 10, **fields}
    world.hub.configurations.put(name, body, if_match, world.clock.now)
    work(world)
    return world.hub.configurations.document(name)


def delete(world: World, name: str) -> None:
    world.hub.configurations.delete(name, None)
    work(world)


def work(world: World) -> None:
    for _ in range(1000):
        if not world.hub.advance(world.clock.now):
            return
    raise AssertionError("the work does not end")


def for_devices(**settings: Any) -> dict[str, Any]:
    return {"deviceContent": {f"properties.desired.{key.replace('__', '.')}": value for key, value in settings.items()}}


def desired(world: World, name: str, module: str = "") -> dict[str, Any]:
    return world.hub.twin(IdentityId(name, module)).desired.values


def statuses(world: World, name: str, module: str = "") -> dict[str, str]:
    shown = world.hub.twin_document(IdentityId(name, module)).get("configurations", {})
    assert all(set(entry) == {"status"} for entry in shown.values())
    return {key: entry["status"] for key, entry in shown.items()}


# --- documents ------------------------------------------------------------------------------------------------------


def test_a_new_configuration_is_shown_whole(world: World) -> None:
    shown = put(
        world,
        "c1",
        for_devices(a=1),
        labels={"k": "v"},
        metrics={"queries": {"on": "SELECT deviceId FROM devices WHERE properties.desired.a = 1"}},
    )
    assert shown == {
        "id": "c1",
        "schemaVersion": "1.0",
        "labels": {"k": "v"},
        "content": {"deviceContent": {"properties.desired.a": 1}},
        "targetCondition": "tags.site = 'north'",
        "createdTimeUtc": "2023-11-14T22:13:21.0000000Z",
        "lastUpdatedTimeUtc": "2023-11-14T22:13:21.0000000Z",
        "priority": 10,
        "systemMetrics": {
            "results": {"targetedCount": 2, "appliedCount": 2},
            "queries": {
                "targetedCount": "select deviceId from devices where tags.site = 'north'",
                "appliedCount": "select deviceId from devices where configurations.[[c1]].status = 'Applied'",
            },
        },
        "metrics": {
            "results": {"on": 2},
            "queries": {"on": "SELECT deviceId FROM devices WHERE properties.desired.a = 1"},
        },
        "etag": "MQ==",
    }


def test_the_content_stays_and_the_rest_may_change(world: World) -> None:
    made = put(world, "c1", for_devices(a=1))
    with pytest.raises(ServiceError) as changed:
        put(world, "c1", for_devices(a=2), made["etag"])
    assert changed.value.fault.name == "CannotModifyImmutableConfigurationContent"
    updated = put(world, "c1", for_devices(a=1), f'"{made["etag"]}"', priority=3, targetCondition="*")
    assert (updated["priority"], updated["etag"], updated["createdTimeUtc"]) == (3, "Mg==", made["createdTimeUtc"])
    assert updated["systemMetrics"]["results"]["targetedCount"] == 3
    with pytest.raises(ServiceError) as stale:
        put(world, "c1", None, made["etag"])
    assert stale.value.fault.name == "PreconditionFailed"
    assert put(world, "c1", None, "*")["content"] == made["content"]


BASE = {
    "$edgeAgent": {"properties.desired": {"schemaVersion": "1.1", "modules": {"a": {"image": "a:1"}}}},
    "$edgeHub": {"properties.desired": {"schemaVersion": "1.1", "routes": {"r": "x"}}},
}
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no content": ({"content": None}, "InvalidConfigurationContent"),
    "two contents": ({"content": {"deviceContent": {}, "moduleContent": {}}}, "InvalidConfigurationContent"),
    "a path beside desired properties": (
        {"content": {"deviceContent": {"properties.reported.a": 1}}},
        "InvalidConfigurationContent",
    ),
    "a path that only begins so": (
        {"content": {"deviceContent": {"properties.desireda": 1}}},
        "InvalidConfigurationContent",
    ),
    "an empty path element": (
        {"content": {"deviceContent": {"properties.desired.a..b": 1}}},
        "InvalidConfigurationContent",
    ),
    "a key that no twin has": (
        {"content": {"deviceContent": {"properties.desired.a": {"b.c": 1}}}},
        "InvalidConfigurationContent",
    ),
    "no edge agent": ({"content": {"modulesContent": {"$edgeHub": {}}}}, "InvalidConfigurationContent"),
    "half a base": ({"content": {"modulesContent": {"$edgeAgent": BASE["$edgeAgent"]}}}, "InvalidConfigurationContent"),
    "a layer with a runtime": (
        {"content": {"modulesContent": {"$edgeAgent": {"properties.desired.runtime": {}}}}},
        "InvalidConfigurationContent",
    ),
    "too many modules": (
        {"content": {"modulesContent": {**BASE, **{f"m{number}": {} for number in range(49)}}}},
        "InvalidConfigurationContent",
    ),
    "a condition that is none": ({"targetCondition": "tags.site == 1"}, "InvalidConfigurationTargetCondition"),
    "a condition over modules": (
        {"targetCondition": "FROM devices.modules WHERE tags.a = 1"},
        "InvalidConfigurationTargetCondition",
    ),
    "a condition over devices for modules": (
        {"content": {"moduleContent": {"properties.desired.a": 1}}},
        "InvalidConfigurationTargetCondition",
    ),
    "a negative priority": ({"priority": -1}, "ArgumentInvalid"),
    "a priority that is no number": ({"priority": True}, "ArgumentInvalid"),
    "labels that are no texts": ({"labels": {"a": 1}}, "ArgumentInvalid"),
    "a metric that is no query": (
        {"metrics": {"queries": {"m": "SELECT"}}},
        "InvalidConfigurationCustomMetricsQuery",
    ),
    "six metrics": (
        {"metrics": {"queries": {str(number): "SELECT * FROM devices" for number in range(6)}}},
        "InvalidConfigurationCustomMetricsQuery",
    ),
    "another id": ({"id": "c2"}, "ArgumentInvalid"),
}


@pytest.mark.parametrize(("fields", "fault"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_document_is_refused_and_changes_nothing(world: World, fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ServiceError) as refused:
        put(world, "c1", **{"content": for_devices(a=1), **fields})
    assert refused.value.fault.name == fault
    assert world.hub.configurations.documents(10) == []
    assert not world.hub.configurations.is_pending


@pytest.mark.parametrize("name", ["A", "a b", "a&b", "a/b", "x" * 129, ""])
def test_an_id_that_is_none_is_refused(world: World, name: str) -> None:
    with pytest.raises(ServiceError, match="id"):
        put(world, name, for_devices(a=1))


def test_a_hub_has_a_hundred_of_each_sort(world: World) -> None:
    for number in range(100):
        put(world, f"c{number}", for_devices(a=1), targetCondition="")
    with pytest.raises(ServiceError) as refused:
        put(world, "one-more", for_devices(a=1))
    assert (refused.value.fault.name, refused.value.status) == ("ConfigurationCountLimitExceeded", 413)
    put(world, "deployment", {"modulesContent": BASE})


def test_queries_are_judged_before_they_are_used() -> None:
    verdict = complaints_about(
        {"targetCondition": "tags.a =", "customMetricQueries": {"good": "SELECT * FROM devices", "bad": "SELECT"}}
    )
    assert verdict == {
        "targetConditionError": "the condition ends too early",
        "customMetricQueryErrors": {"bad": "the query ends too early"},
    }
    assert complaints_about({"targetCondition": "from devices.modules where tags.b = 9"}) == {
        "targetConditionError": None,
        "customMetricQueryErrors": {},
    }


# --- devices and modules --------------------------------------------------------------------------------------------


def test_targets_get_the_content_and_the_others_do_not(world: World) -> None:
    client = Client(world, IdentityId("n1"))
    client.connect()
    client.session.subscribe(("$iothub/twin/PATCH/properties/desired/#", 0))
    client.exchange()
    put(world, "c1", for_devices(a__b={"c": 1}, d=[1]))
    world.switchboard.settle()
    heard = [json.loads(event.payload) for event in client.exchange() if hasattr(event, "payload")]
    assert heard == [{"a": {"b": {"c": 1}}, "d": [1], "$version": 2}]
    assert desired(world, "n1") == desired(world, "n2") == {"a": {"b": {"c": 1}}, "d": [1]}
    assert (desired(world, "s1"), statuses(world, "s1")) == ({}, {})
    assert statuses(world, "n1") == {"c1": "Applied"}


def test_a_node_is_replaced_and_its_siblings_stay(world: World) -> None:
    world.hub.patch_twin(
        IdentityId("n1"), {"properties": {"desired": {"a": {"old": 1}, "mine": {"x": 1}}}}, None, world.clock.now
    )
    put(world, "c1", for_devices(a={"new": 2}, mine__y=2))
    assert desired(world, "n1") == {"a": {"new": 2}, "mine": {"x": 1, "y": 2}}
    delete(world, "c1")
    assert desired(world, "n1") == {"mine": {"x": 1}}
    assert (statuses(world, "n1"), "configurations" in world.hub.twin_document(IdentityId("n1"))) == ({}, False)


def test_for_each_path_the_highest_priority_wins(world: World) -> None:
    put(world, "low", for_devices(a=1, b=1), priority=1)
    put(world, "high", for_devices(b=2, c=2), priority=5)
    put(world, "middle", for_devices(b=3, c=3), priority=3)
    assert desired(world, "n1") == {"a": 1, "b": 2, "c": 2}
    assert statuses(world, "n1") == {"low": "Applied", "middle": "Targeted", "high": "Applied"}
    delete(world, "high")
    assert desired(world, "n1") == {"a": 1, "b": 3, "c": 3}
    put(world, "middle", None, "*", priority=0)
    assert desired(world, "n1") == {"a": 1, "b": 1, "c": 3}
    delete(world, "low")
    delete(world, "middle")
    assert desired(world, "n1") == {}


def test_of_equal_priorities_the_younger_wins(world: World) -> None:
    put(world, "z-older", for_devices(a=1))
    put(world, "a-younger", for_devices(a=2))
    assert desired(world, "n1") == {"a": 2}
    assert statuses(world, "n1") == {"z-older": "Targeted", "a-younger": "Applied"}


def test_a_twin_that_changes_comes_into_scope_and_leaves_it(world: World) -> None:
    put(world, "c1", for_devices(a=1), targetCondition="tags.site = 'east' OR properties.reported.up = true")
    tag(world, IdentityId("s1"), site="east")
    assert desired(world, "s1") == {"a": 1}
    tag(world, IdentityId("s1"), site="west")
    assert (desired(world, "s1"), statuses(world, "s1")) == ({}, {})
    world.hub.report(IdentityId("s1"), b'{"up": true}', world.clock.now)
    assert desired(world, "s1") == {"a": 1}
    newcomer = world.register("new")
    tag(world, newcomer, site="east")
    assert desired(world, "new") == {"a": 1}
    world.hub.delete_identity(newcomer, None, world.clock.now)
    assert world.hub.configurations.document("c1")["systemMetrics"]["results"] == {
        "targetedCount": 1,
        "appliedCount": 1,
    }


def test_an_empty_condition_targets_nobody_and_a_star_everybody(world: World) -> None:
    put(world, "c1", for_devices(a=1), targetCondition="")
    assert world.hub.configurations.document("c1")["systemMetrics"]["results"]["targetedCount"] == 0
    put(world, "c1", None, "*", targetCondition="*")
    assert [desired(world, name) for name in ("n1", "n2", "s1")] == [{"a": 1}] * 3
    put(world, "c1", None, "*", targetCondition=" ")
    assert [desired(world, name) for name in ("n1", "n2", "s1")] == [{}] * 3


def test_modules_are_targeted_by_their_own_twins(world: World) -> None:
    for name in ("m1", "m2"):
        tag(world, world.register("n1", name), role=name)
    content = {"moduleContent": {"properties.desired.a": 1}}
    shown = put(world, "c1", content, targetCondition="FROM devices.modules WHERE tags.role = 'm1'")
    assert (desired(world, "n1", "m1"), desired(world, "n1", "m2"), desired(world, "n1")) == ({"a": 1}, {}, {})
    assert statuses(world, "n1", "m1") == {"c1": "Applied"}
    assert shown["systemMetrics"] == {
        "results": {"targetedCount": 1, "appliedCount": 1},
        "queries": {
            "targetedCount": "select deviceId, moduleId from devices.modules where tags.role = 'm1'",
            "appliedCount": "select deviceId, moduleId from devices.modules"
            " where configurations.[[c1]].status = 'Applied'",
        },
    }


def test_a_twin_without_room_stays_targeted(world: World) -> None:
    full = {"full": {str(number): "x" * 4000 for number in range(8)}}
    world.hub.patch_twin(IdentityId("n1"), {"properties": {"desired": full}}, None, world.clock.now)
    shown = put(world, "c1", for_devices(a="y" * 4000))
    assert (statuses(world, "n1"), statuses(world, "n2")) == ({"c1": "Targeted"}, {"c1": "Applied"})
    assert shown["systemMetrics"]["results"] == {"targetedCount": 2, "appliedCount": 1}
    assert desired(world, "n1") == full


def test_a_condition_on_what_it_writes_does_not_run_in_a_circle(world: World) -> None:
    put(world, "c1", for_devices(a=1), targetCondition="NOT IS_DEFINED(properties.desired.a)")
    assert desired(world, "n1") == {"a": 1}


def test_system_metrics_count_what_their_queries_select(world: World) -> None:
    edge_device(world, "e1", site="north")
    edge_device(world, "e2", site="north")
    put(world, "c1", for_devices(a=1))
    put(world, "base", {"modulesContent": BASE})
    put(world, "higher", {"modulesContent": BASE}, priority=20, targetCondition="deviceId = 'e1'")
    agent = IdentityId("e1", "$edgeAgent")
    world.hub.report(agent, b'{"lastDesiredVersion": 2, "lastDesiredStatus": {"code": 200}}', world.clock.now)
    agent = IdentityId("e2", "$edgeAgent")
    world.hub.report(agent, b'{"lastDesiredVersion": 2, "lastDesiredStatus": {"code": 412}}', world.clock.now)
    expected = {"c1": (4, 4), "base": (2, 1, 0, 1), "higher": (1, 1, 1, 0)}
    for name, counts in expected.items():
        metrics = world.hub.configurations.document(name)["systemMetrics"]
        by_query = {key: len(world.hub.query(text, None, 100).rows) for key, text in metrics["queries"].items()}
        assert metrics["results"] == by_query
        assert (name, tuple(metrics["results"].values())) == (name, counts)


# --- edge -----------------------------------------------------------------------------------------------------------


def edge_device(world: World, name: str, **tags: Any) -> IdentityId:
    identity_id = world.register(name, capabilities={"iotEdge": True})
    tag(world, identity_id, **tags)
    return identity_id


def layer(module: str, image: str, settings: Any = None) -> dict[str, Any]:
    return {
        "modulesContent": {
            "$edgeAgent": {f"properties.desired.modules.{module}": {"image": image}},
            **({module: settings} if settings else {}),
        }
    }


def test_a_base_deployment_is_written_whole_to_edge_devices_only(world: World) -> None:
    edge_device(world, "e1", site="north")
    world.hub.patch_twin(IdentityId("e1", "$edgeAgent"), {"properties": {"desired": {"old": 1}}}, None, 1.0)
    content = {**BASE, "a": {"properties.desired": {"x": 1}}}
    assert put(world, "base", {"modulesContent": content})["schemaVersion"] == "2.0"
    assert desired(world, "e1", "$edgeAgent") == BASE["$edgeAgent"]["properties.desired"]
    assert desired(world, "e1", "$edgeHub") == BASE["$edgeHub"]["properties.desired"]
    assert desired(world, "e1", "a") == {"x": 1}
    assert world.hub.registry.get(IdentityId("e1", "a")).managed_by == "IotEdge"
    assert (statuses(world, "e1"), statuses(world, "e1", "$edgeAgent")) == ({"base": "Applied"},) * 2
    assert statuses(world, "n1") == {}
    assert world.hub.registry.modules_of("n1") == []


def test_of_several_bases_the_highest_wins_and_losing_all_leaves_the_device_as_it_is(world: World) -> None:
    edge_device(world, "e1", site="north")
    other = json.loads(json.dumps(BASE).replace("a:1", "a:2"))
    put(world, "low", {"modulesContent": BASE}, priority=1)
    put(world, "high", {"modulesContent": other}, priority=2)
    assert desired(world, "e1", "$edgeAgent")["modules"]["a"] == {"image": "a:2"}
    assert statuses(world, "e1") == {"low": "Targeted", "high": "Applied"}
    delete(world, "high")
    assert desired(world, "e1", "$edgeAgent")["modules"]["a"] == {"image": "a:1"}
    delete(world, "low")
    assert desired(world, "e1", "$edgeAgent")["modules"]["a"] == {"image": "a:1"}
    assert statuses(world, "e1") == {}


def test_layers_above_the_base_are_stacked(world: World) -> None:
    edge_device(world, "e1", site="north")
    put(world, "base", {"modulesContent": BASE}, priority=5)
    put(world, "below", layer("b", "below"), priority=5)
    put(
        world, "l1", layer("b", "l1", {"properties.desired.s": {"p": 1, "q": 1}, "properties.desired.t": 1}), priority=6
    )
    put(world, "l2", layer("b", "l2", {"properties.desired.s": {"p": 2}}), priority=7)
    put(world, "empty", {"modulesContent": {"$edgeAgent": {}, "c": {"properties.desired": {"z": 1}}}}, priority=8)
    assert desired(world, "e1", "$edgeAgent")["modules"] == {"a": {"image": "a:1"}, "b": {"image": "l2"}}
    assert (desired(world, "e1", "b"), desired(world, "e1", "c")) == ({"s": {"p": 2}, "t": 1}, {"z": 1})
    assert statuses(world, "e1", "$edgeAgent") == {
        "base": "Applied",
        "below": "Targeted",
        "l1": "Applied",
        "l2": "Applied",
        "empty": "Targeted",
    }
    delete(world, "l2")
    assert desired(world, "e1", "$edgeAgent")["modules"]["b"] == {"image": "l1"}
    assert desired(world, "e1", "b") == {"s": {"p": 1, "q": 1}, "t": 1}
    delete(world, "l1")
    assert desired(world, "e1", "$edgeAgent")["modules"] == {"a": {"image": "a:1"}}
    assert desired(world, "e1", "b") == {}


def test_what_was_taken_back_belongs_to_others_again(world: World) -> None:
    edge_device(world, "e1", site="north")
    put(world, "base", {"modulesContent": BASE}, priority=1)
    put(world, "l1", layer("b", "l1", {"properties.desired.s": 1}), priority=2)
    delete(world, "l1")
    world.hub.patch_twin(IdentityId("e1", "b"), {"properties": {"desired": {"s": "by hand"}}}, None, world.clock.now)
    put(world, "l2", layer("c", "l2"), priority=2)
    assert desired(world, "e1", "b") == {"s": "by hand"}


def test_a_whole_section_in_a_layer_covers_what_lies_below(world: World) -> None:
    edge_device(world, "e1", site="north")
    put(world, "base", {"modulesContent": {**BASE, "m": {"properties.desired": {"x": 1, "y": 1}}}}, priority=1)
    put(world, "whole", layer("m", "w", {"properties.desired": {"z": 2}}), priority=2)
    assert desired(world, "e1", "m") == {"z": 2}
    put(world, "part", layer("m", "p", {"properties.desired.y": 3}), priority=3)
    assert desired(world, "e1", "m") == {"z": 2, "y": 3}


def test_layers_without_a_base_write_nothing(world: World) -> None:
    edge_device(world, "e1", site="north")
    put(world, "l1", layer("b", "l1"))
    assert (desired(world, "e1", "$edgeAgent"), statuses(world, "e1")) == ({}, {"l1": "Targeted"})
    put(world, "base", {"modulesContent": BASE}, priority=1)
    assert statuses(world, "e1") == {"l1": "Applied", "base": "Applied"}
    assert desired(world, "e1", "$edgeAgent")["modules"]["b"] == {"image": "l1"}


def test_a_manifest_for_one_device_replaces_what_it_names(world: World) -> None:
    edge_device(world, "e1")
    content = {"modulesContent": {**BASE, "m": {"properties.desired": {"x": 1}}, "n": {"properties.desired.y": 2}}}
    world.hub.fleet.apply_content("e1", content, world.clock.now)
    world.hub.fleet.apply_content("e1", {"modulesContent": {"m": {"properties.desired": {"z": 1}}}}, world.clock.now)
    assert (desired(world, "e1", "m"), desired(world, "e1", "n")) == ({"z": 1}, {"y": 2})
    assert desired(world, "e1", "$edgeAgent") == BASE["$edgeAgent"]["properties.desired"]
    for device, body, fault in (
        ("n1", content, "ArgumentInvalid"),
        ("nobody", content, "DeviceNotFound"),
        ("e1", {}, "InvalidConfigurationContent"),
        ("e1", None, "InvalidConfigurationContent"),
    ):
        with pytest.raises(ServiceError) as refused:
            world.hub.fleet.apply_content(device, body, world.clock.now)
        assert refused.value.fault.name == fault


MANIFESTS = Path(__file__).parents[4] / "shared/data/manifests/valid"


def test_manifests_of_the_wild_lie_upon_each_other(world: World) -> None:
    names = {"base": "iot-edge-deployment-engine__manifests_AutomaticDeployment_automatic3.json"}
    names |= {"layered1": "iot-edge-deployment-engine__docs_baselayersample.json"}
    names |= {f"layered{n}": f"iot-edge-deployment-engine__manifests_LayeredDeployment_layered{n}.json" for n in (4, 5)}
    found = {name: MANIFESTS / file for name, file in names.items()}
    if not all(path.exists() for path in found.values()):
        pytest.skip("the collection of public manifests is not beside this repository")
    edge_device(world, "e1", site="north")
    for priority, (name, path) in enumerate(found.items()):
        document = json.loads(path.read_text())
        put(world, name, document.get("content", document), priority=priority)
    assert set(statuses(world, "e1").values()) == {"Applied"}
    modules = desired(world, "e1", "$edgeAgent")["modules"]
    assert {"SimulatedTemperatureSensor", "AzureBlobStorageonIoTEdge", "SQLite"} <= set(modules)
    assert desired(world, "e1", "$edgeAgent")["systemModules"]["edgeAgent"]["type"] == "docker"


# --- durable --------------------------------------------------------------------------------------------------------


def test_what_was_recorded_goes_on_where_it_ended(world: World) -> None:
    journal: dict[str, Any] = {}
    configurations = world.hub.configurations
    configurations._touch = lambda key: journal.__setitem__(key, json.loads(json.dumps(configurations.record(key))))
    edge_device(world, "e1", site="north")
    put(world, "c1", for_devices(a=1))
    put(world, "gone", for_devices(b=1), labels={"x": "y"}, metrics={"queries": {"m": "SELECT * FROM devices"}})
    put(world, "base", {"modulesContent": BASE})
    delete(world, "gone")
    before = configurations.documents(100)
    restored = world.hub.configurations = Configurations(world.hub.fleet)
    for key in sorted(journal, reverse=True):
        if journal[key] is not None:
            restored.restore(key, journal[key])
    assert restored.documents(100) == before
    assert statuses(world, "n1") == {"c1": "Applied"}
    assert restored.is_pending
    work(world)
    assert restored.documents(100) == before
    delete(world, "c1")
    assert desired(world, "n1") == {}
    assert put(world, "next", for_devices(z=1))["etag"] == "NA=="


# --- trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}),
        ({"a": {"b": 1}}, {"a": 5}),
        ({"a": 5}, {"a": {"b": 1}}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": [1, {"b": 1}]}, {"a": [1, {"b": True}]}),
        ({"a": {"b": {"c": 1}}, "d": 1}, {"e": {}}),
    ],
)
def test_a_patch_leads_from_one_tree_to_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    patched, _ = merged(before, {}, patch_between(before, after), {})
    assert json.dumps(patched, sort_keys=True) == json.dumps(after, sort_keys=True)
    assert patch_between(after, after) == {}


def test_nodes_come_and_go_with_their_empty_parents() -> None:
    tree = {"x": 1}
    grown = with_node(with_node(tree, ("a", "b"), 1), ("a", "c", "d"), 2)
    assert grown == {"x": 1, "a": {"b": 1, "c": {"d": 2}}}
    assert without_node(grown, ("a", "c", "d")) == {"x": 1, "a": {"b": 1}}
    assert without_node(without_node(grown, ("a", "c")), ("a", "b")) == {"x": 1}
    assert without_node(grown, ("a", "z", "d")) == grown
    assert without_node(grown, ("x", "y")) == grown
    assert without_node(grown, ()) == {}
    assert tree == {"x": 1}
