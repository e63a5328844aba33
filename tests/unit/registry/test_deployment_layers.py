"""Layers upon a base, target conditions, and images by digest."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloud_registry.core.deployment.conditions import ConditionError, read_condition
from cloud_registry.core.deployment.devices import DeviceListError, read_devices
from cloud_registry.core.deployment.layers import Candidate, preview
from cloud_registry.core.deployment.manifest_shape import read_deployment
from cloud_registry.core.deployment.pinning import PinError, pinned

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
DIGEST = "sha256:" + "0" * 64


def module(image: str) -> dict[str, Any]:
    return {"type": "docker", "status": "running", "settings": {"image": image}}


def base(name: str, priority: int, *, created_at: str = "", **twins: Any) -> Candidate:
    agent = {"modules": {"base": module("base:1")}, "schemaVersion": "1.1"}
    content = {"$edgeAgent": {"properties.desired": agent}, "$edgeHub": {"properties.desired": {"routes": {}}}, **twins}
    return Candidate(name, read_deployment({"modulesContent": content}), priority, created_at)


def layer(name: str, priority: int, *, created_at: str = "", condition: str = "*", **twins: Any) -> Candidate:
    content = {"$edgeAgent": twins.pop("agent", {}), **twins}
    deployment = read_deployment({"modulesContent": content})
    return Candidate(name, deployment, priority, created_at, read_condition(condition))


def adding(image: str, name: str = "scorer") -> dict[str, Any]:
    return {f"properties.desired.modules.{name}": module(image)}


def test_layers_add_to_the_base_and_the_higher_one_wins_a_name_whole():
    merged = preview(
        [
            base("base", 0),
            layer("high", 20, agent=adding("scorer:2")),
            layer("low", 10, agent={"properties.desired.modules.scorer": {**module("scorer:1"), "version": "1"}}),
        ]
    )
    assert merged.applied == ("base", "low", "high")
    assert merged.twins["$edgeAgent"]["modules"] == {"base": module("base:1"), "scorer": module("scorer:2")}
    assert [loss.to_wire() for loss in merged.losses] == [
        {"deployment": "low", "module": "$edgeAgent", "path": "properties.desired.modules.scorer", "by": "high"}
    ]


def test_the_order_in_which_deployments_are_given_does_not_matter():
    candidates = [base("base", 0), layer("a", 10, agent=adding("a:1")), layer("b", 20, agent=adding("b:1"))]
    assert preview(candidates) == preview(candidates[::-1])


def test_of_several_bases_the_higher_wins_and_of_two_alike_the_younger():
    merged = preview([base("old", 5, created_at="2026-01-01"), base("new", 5, created_at="2026-02-01"), base("low", 1)])
    assert merged.applied == ("new",)
    assert [name for name, _ in merged.left_out] == ["low", "old"]


def test_a_layer_has_to_stand_above_its_base():
    merged = preview([base("base", 10), layer("same", 10), layer("below", 9), layer("above", 11)])
    assert merged.applied == ("base", "above")
    assert dict(merged.left_out)["same"] == "its priority 10 is not above 10 of base"


def test_without_a_base_a_layer_does_nothing():
    merged = preview([layer("alone", 10, agent=adding("a:1"))])
    assert (merged.applied, merged.twins) == ((), {})
    assert merged.left_out == (("alone", "there is no base deployment to lie upon"),)


def test_parts_of_a_twin_stand_beside_each_other_and_the_whole_writes_over_them():
    parts = [
        layer("a", 10, scorer={"properties.desired.a": 1}),
        layer("b", 20, scorer={"properties.desired.b.c": {"d": 2}}),
    ]
    merged = preview([base("base", 0), *parts])
    assert merged.twins["scorer"] == {"a": 1, "b": {"c": {"d": 2}}}
    whole = preview([base("base", 0), *parts, layer("c", 30, scorer={"properties.desired": {"e": 3}})])
    assert whole.twins["scorer"] == {"e": 3}
    assert sorted((loss.candidate, loss.path, loss.winner) for loss in whole.losses) == [
        ("a", ("a",), "c"),
        ("b", ("b", "c"), "c"),
    ]


def test_a_value_inside_a_lower_setting_is_written_over_and_told():
    merged = preview(
        [
            base("base", 0, scorer={"properties.desired": {"limit": 1, "mode": "x"}}),
            layer("same", 10, scorer={"properties.desired.mode": "x"}),
            layer("other", 20, scorer={"properties.desired.limit": 2}),
        ]
    )
    assert merged.twins["scorer"] == {"limit": 2, "mode": "x"}
    assert [(loss.candidate, loss.path, loss.winner) for loss in merged.losses] == [("base", ("limit",), "other")]


def test_only_what_targets_the_device_is_merged():
    candidates = [base("base", 0), layer("a", 10, condition="tags.site = 'a'"), layer("b", 20, condition="")]
    merged = preview(candidates, {"deviceId": "gw-1", "tags": {"site": "a"}})
    assert merged.applied == ("base", "a")
    assert dict(merged.left_out)["b"] == "its target condition does not hold for the device"


def test_the_inputs_stay_as_they_were():
    lower = {"properties.desired.model": {"a": {"b": 1}}}
    candidates = [
        base("base", 0),
        layer("a", 10, scorer=lower),
        layer("b", 20, scorer={"properties.desired.model.a.b": 2}),
    ]
    assert preview(candidates).twins["scorer"] == {"model": {"a": {"b": 2}}}
    assert lower == {"properties.desired.model": {"a": {"b": 1}}}


DEVICE = {
    "deviceId": "gw-1",
    "connectionState": "Connected",
    "capabilities": {"iotEdge": True},
    "tags": {"site": "line-3", "ring": 2, "o'hara": "x", "floors": [1, 2]},
    "properties": {"reported": {"battery": 80.5, "model": None}},
}
CONDITIONS = {
    "*": True,
    "": False,
    "tags.site = 'line-3'": True,
    "tags.site = 'LINE-3'": False,
    "TAGS.site = 'line-3' and NOT tags.ring = 1": True,
    "tags.Site = 'line-3'": False,
    "tags.missing = 'x'": False,
    "NOT tags.missing = 'x'": False,
    "tags.missing = 'x' OR deviceId = 'gw-1'": True,
    "deviceId IN ['gw-1', 'gw-2']": True,
    "deviceId NIN ['gw-1']": False,
    "deviceId in tags.floors": False,
    "2 IN tags.floors": True,
    "tags.ring >= 2 AND properties.reported.battery > 80": True,
    "tags.ring != '2'": True,
    "tags.ring + 1 = 3 AND -tags.ring = -2": True,
    "tags.ring % 2 = 0 AND 7 / 0 = 1": False,
    "is_defined(tags.ring) AND NOT is_defined(tags.none)": True,
    "is_null(properties.reported.model)": True,
    "STARTSWITH(tags.site, 'line') AND ENDS_WITH(tags.site, '3')": True,
    "lower(upper(tags.site)) = tags.site": True,
    "substring(tags.site, 0, 4) = 'line'": True,
    "tags.[[o'hara]] = 'x'": True,
    "capabilities.iotEdge = true": True,
    "'it''s' = 'it\\'s'": True,
    "(tags.site)": False,
    "0x10 = 16 AND 1.5e1 = 15": True,
}


@pytest.mark.parametrize(("text", "holds"), CONDITIONS.items())
def test_a_condition_targets_where_it_is_true_and_only_there(text: str, holds: bool):
    assert read_condition(text).holds(DEVICE) is holds


WRONG = {
    "tags.site == 'a'": "compare with =, not ==",
    "tags.site = ": "ends too early",
    "tags.site = 'a": "not understood at column 13",
    "abs(1, 2) = 1": "ABS takes 1 arguments, not 2",
    "concat('a') = 'a'": "CONCAT takes 2 or more arguments",
    "(" * 100 + "a = 1" + ")" * 100: "nests deeper",
    "a = 1 " * 2000: "longer than 8,192",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_condition_is_told_where(text: str):
    with pytest.raises(ConditionError) as refused:
        read_condition(text)
    assert WRONG[text] in str(refused.value)


def test_devices_come_as_a_list_of_twins():
    assert [device["deviceId"] for device in read_devices([{"deviceId": "a"}, {"DeviceId": "b"}])] == ["a", "b"]
    assert read_devices({"value": [{"deviceId": "a"}]}) == [{"deviceId": "a"}]
    for document in ("x", [1], [{}], {"devices": 3}):
        with pytest.raises(DeviceListError):
            read_devices(document)


def test_an_image_is_pinned_by_its_digest_in_place_of_its_tag():
    document = json.loads((EXAMPLES / "deployment.json").read_bytes())
    written, changed = pinned(document, {"slipway-digits:3": DIGEST})
    assert changed == [("slipway", f"slipway-digits@{DIGEST}")]
    again = json.dumps(written).replace(f"slipway-digits@{DIGEST}", "slipway-digits:3")
    assert json.loads(again) == document
    for digests in ({"slipway-digits:3": "sha256:0"}, {"ghost:1": DIGEST}):
        with pytest.raises(PinError):
            pinned(document, digests)
    with pytest.raises(PinError, match="by digest already"):
        pinned(written, {f"slipway-digits@{DIGEST}": DIGEST})
    host = {"modulesContent": {"$edgeAgent": {"properties.desired.modules.a": module("host:5000/a/b:1")}}}
    assert pinned(host, {"host:5000/a/b:1": DIGEST})[1] == [("a", f"host:5000/a/b@{DIGEST}")]
