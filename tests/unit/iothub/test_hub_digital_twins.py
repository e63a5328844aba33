"""Digital twins: the device twin by the conventions of Plug and Play, and JSON patches of it."""

from typing import Any

import pytest

from simulators.iothub.core.digital_twins import command_name, desired_patch, digital_twin_document
from simulators.iothub.core.twins import Twin
from simulators.iothub.errors import ServiceError

WROTE, SAID = 1_700_000_000.0, 1_700_000_060.0
WROTE_AT, SAID_AT = "2023-11-14T22:13:20.0000000Z", "2023-11-14T22:14:20.0000000Z"


@pytest.fixture
def twin() -> Twin:
    twin = Twin(model_id="dtmi:example:Controller;1")
    twin.patch(
        {"properties": {"desired": {"thermostat1": {"__t": "c", "target": 21.5, "unheard": 1}, "level": "info"}}},
        None,
        WROTE,
    )
    acknowledged = {"value": 20.4, "ac": 200, "av": 2, "ad": "done"}
    twin.report(
        {"serial": "s1", "place": {"x": 1}, "thermostat1": {"__t": "c", "target": acknowledged, "highest": 25.3}}, SAID
    )
    return twin


def test_a_digital_twin_shows_what_is_wanted_and_what_is(twin: Twin) -> None:
    assert digital_twin_document("d1", twin) == {
        "$dtId": "d1",
        "serial": "s1",
        "place": {"x": 1},
        "thermostat1": {
            "target": 20.4,
            "highest": 25.3,
            "$metadata": {
                "target": {
                    "desiredValue": 21.5,
                    "desiredVersion": 2,
                    "ackVersion": 2,
                    "ackCode": 200,
                    "ackDescription": "done",
                    "lastUpdateTime": SAID_AT,
                },
                "unheard": {"desiredValue": 1, "desiredVersion": 2, "lastUpdateTime": WROTE_AT},
                "highest": {"lastUpdateTime": SAID_AT},
            },
        },
        "$metadata": {
            "$model": "dtmi:example:Controller;1",
            "level": {"desiredValue": "info", "desiredVersion": 2, "lastUpdateTime": WROTE_AT},
            "serial": {"lastUpdateTime": SAID_AT},
            "place": {"lastUpdateTime": SAID_AT},
        },
    }


def test_a_twin_without_a_model_is_shown_too() -> None:
    assert digital_twin_document("d1", Twin()) == {"$dtId": "d1", "$metadata": {"$model": ""}}


PATCHES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "a property of the root": ([{"op": "add", "path": "/level", "value": "debug"}], {"level": "debug"}),
    "a property of a component": (
        [{"op": "replace", "path": "/thermostat1/target", "value": 30}],
        {"thermostat1": {"target": 30}},
    ),
    "a property of a component that is not there yet": (
        [{"op": "add", "path": "/thermostat2/target", "value": 30}],
        {"thermostat2": {"__t": "c", "target": 30}},
    ),
    "a whole component": (
        [{"op": "replace", "path": "/thermostat1", "value": {"target": 7, "$metadata": {}}}],
        {"thermostat1": {"target": 7, "unheard": None}},
    ),
    "a new component": (
        [{"op": "add", "path": "/thermostat2", "value": {"target": 7, "$metadata": {}}}],
        {"thermostat2": {"__t": "c", "target": 7}},
    ),
    "an object of the root": ([{"op": "add", "path": "/place", "value": {"x": 2}}], {"place": {"x": 2}}),
    "within an object of the root": ([{"op": "add", "path": "/place/x", "value": 3}], {"place": {"x": 3}}),
    "a removal": ([{"op": "remove", "path": "/thermostat1/unheard"}], {"thermostat1": {"unheard": None}}),
    "the removal of a component": ([{"op": "remove", "path": "/thermostat1"}], {"thermostat1": None}),
    "several, in order": (
        [
            {"op": "add", "path": "/a", "value": 1},
            {"op": "replace", "path": "/a", "value": False},
            {"op": "remove", "path": "/level"},
        ],
        {"a": False, "level": None},
    ),
    "what is so already": ([{"op": "add", "path": "/level", "value": "info"}], {}),
}


@pytest.mark.parametrize(("operations", "patch"), PATCHES.values(), ids=PATCHES.keys())
def test_a_json_patch_becomes_a_desired_patch(twin: Twin, operations: Any, patch: dict[str, Any]) -> None:
    assert desired_patch(twin, operations) == patch


REFUSALS: dict[str, tuple[Any, str]] = {
    "no list": ({}, "InvalidDigitalTwinJsonPatch"),
    "an empty list": ([], "InvalidDigitalTwinJsonPatch"),
    "no operation": (["x"], "InvalidDigitalTwinJsonPatch"),
    "a test": ([{"op": "test", "path": "/a", "value": 1}], "InvalidDigitalTwinJsonPatch"),
    "no path": ([{"op": "add", "value": 1}], "InvalidDigitalTwinPatchPath"),
    "a path without a slash": ([{"op": "add", "path": "a", "value": 1}], "InvalidDigitalTwinPatchPath"),
    "the whole twin": ([{"op": "add", "path": "", "value": {}}], "InvalidDigitalTwinPatchPath"),
    "metadata": ([{"op": "add", "path": "/$metadata", "value": {}}], "InvalidDigitalTwinPatchPath"),
    "the mark of a component": ([{"op": "remove", "path": "/thermostat1/__t"}], "InvalidDigitalTwinPatchPath"),
    "nothing to remove": ([{"op": "remove", "path": "/thermostat1/x"}], "InvalidDigitalTwinPatchPath"),
    "a reported property to remove": ([{"op": "remove", "path": "/serial"}], "InvalidDigitalTwinPatchPath"),
    "no value": ([{"op": "add", "path": "/a"}], "InvalidDigitalTwinPatch"),
}


@pytest.mark.parametrize(("body", "fault"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_patch_is_refused(twin: Twin, body: Any, fault: str) -> None:
    with pytest.raises(ServiceError) as refused:
        desired_patch(twin, body)
    assert (refused.value.fault.name, refused.value.status) == (fault, 400)


def test_commands_are_methods_whose_names_hold_the_component() -> None:
    assert (command_name("reboot"), command_name("getReport", "thermostat1")) == ("reboot", "thermostat1*getReport")
    for names in (("a*b",), ("a", "b*c"), ("",), ("a b",)):
        with pytest.raises(ServiceError):
            command_name(*names)
