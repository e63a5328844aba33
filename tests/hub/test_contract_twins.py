"""Twins, queries over them and direct methods, as every hub has them."""

import threading

import pytest
from azure.iot.device import MethodResponse
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties

from tests.hub.conftest import eventually, refused

pytestmark = pytest.mark.wire


def desired(**values) -> Twin:
    return Twin(properties=TwinProperties(desired=values))


def plain(section: dict) -> dict:
    return {key: value for key, value in section.items() if not key.startswith("$")}


def test_a_new_twin_is_empty_and_at_its_first_versions(registry, thing):
    twin = registry.get_twin(thing.device_id)
    assert (twin.etag, twin.version, twin.tags) == ("AAAAAAAAAAE=", 2, None)
    assert (plain(twin.properties.desired), twin.properties.desired["$version"]) == ({}, 1)
    assert (plain(twin.properties.reported), twin.properties.reported["$version"]) == ({}, 1)


def test_a_patch_merges_and_null_deletes(registry, thing):
    registry.update_twin(thing.device_id, desired(a={"b": 1, "c": [1, 2]}, d="x"))
    twin = registry.update_twin(thing.device_id, desired(a={"b": None, "e": True}, d=2))
    assert plain(twin.properties.desired) == {"a": {"c": [1, 2], "e": True}, "d": 2}
    assert twin.properties.desired["$version"] == 3


def test_tags_leave_the_version_of_desired_alone_and_are_absent_when_empty(registry, thing):
    tagged = registry.update_twin(thing.device_id, Twin(tags={"site": {"line": 3}}))
    assert (tagged.tags, tagged.properties.desired["$version"]) == ({"site": {"line": 3}}, 1)
    assert registry.update_twin(thing.device_id, Twin(tags={"site": None})).tags is None


def test_a_replacement_forgets_what_it_does_not_name(registry, thing):
    registry.update_twin(thing.device_id, Twin(tags={"x": 1}, properties=TwinProperties(desired={"a": 1})))
    twin = registry.replace_twin(thing.device_id, desired(b=2))
    assert (twin.tags, plain(twin.properties.desired)) == (None, {"b": 2})


def test_a_stale_etag_changes_nothing(registry, thing):
    first = registry.get_twin(thing.device_id)
    second = registry.update_twin(thing.device_id, Twin(tags={"x": 1}), first.etag)
    assert refused(lambda: registry.update_twin(thing.device_id, Twin(tags={"x": 2}), first.etag))[0] == 412
    assert registry.get_twin(thing.device_id).etag == second.etag


@pytest.mark.parametrize("key", ["a.b", "a b", "$a"])
def test_keys_that_a_twin_may_not_have_are_refused(registry, thing, key):
    assert refused(lambda: registry.update_twin(thing.device_id, Twin(tags={key: 1})))[0] == 400
    assert registry.get_twin(thing.device_id).tags is None


def test_a_device_hears_what_is_desired_with_its_version_and_nulls(registry, thing, connected):
    heard: list[dict] = []
    connected.on_twin_desired_properties_patch_received = heard.append
    registry.update_twin(thing.device_id, desired(a=1, b={"c": 2}))
    eventually(lambda: len(heard) == 1, "the first patch")
    registry.update_twin(thing.device_id, desired(a=None))
    eventually(lambda: len(heard) == 2, "the second patch")
    assert heard == [{"a": 1, "b": {"c": 2}, "$version": 2}, {"a": None, "$version": 3}]
    assert connected.get_twin()["desired"] == {"b": {"c": 2}, "$version": 3}


def test_what_a_device_reports_is_in_its_twin(registry, thing, connected):
    connected.patch_twin_reported_properties({"a": {"b": 1}, "c": 2})
    connected.patch_twin_reported_properties({"c": None})
    section = eventually(
        lambda: (
            (found := registry.get_twin(thing.device_id).properties.reported)["$version"] == 3 and found
        ),
        "the report",
    )  # fmt: skip
    assert plain(section) == {"a": {"b": 1}}


def test_a_module_has_a_twin_of_its_own(registry, thing, module):
    registry.update_module_twin(thing.device_id, "m1", desired(a=1))
    eventually(lambda: module.get_twin()["desired"].get("a") == 1, "the module's desired value")
    module.patch_twin_reported_properties({"b": 2})
    eventually(
        lambda: registry.get_module_twin(thing.device_id, "m1").properties.reported.get("b") == 2, "the module's report"
    )
    assert registry.get_twin(thing.device_id).properties.desired["$version"] == 1


# Queries --------------------------------------------------------------------------------------------------------------


def rows(registry, text: str) -> list:
    return registry.query_iot_hub(QuerySpecification(query=text)).items


def test_a_query_finds_twins_by_their_tags(registry, thing):
    registry.update_twin(thing.device_id, Twin(tags={"contract": thing.device_id}))
    # A real hub's index lags behind.
    found = eventually(
        lambda: rows(registry, f"SELECT * FROM devices WHERE tags.contract = '{thing.device_id}'"),
        "the twin in a query",
    )
    assert [twin.device_id for twin in found] == [thing.device_id]


def test_a_projection_has_the_names_that_were_asked_for(registry, thing):
    text = f"SELECT deviceId AS device, status FROM devices WHERE deviceId = '{thing.device_id}'"
    (row,) = eventually(lambda: rows(registry, text), "the row")
    assert (row.additional_properties["device"], row.status) == (thing.device_id, "enabled")


def test_an_aggregate_counts(registry, thing):
    text = f"SELECT COUNT() AS n FROM devices WHERE deviceId = '{thing.device_id}'"
    eventually(lambda: [row.additional_properties["n"] for row in rows(registry, text)] == [1], "a count of one")


@pytest.mark.parametrize(
    "text", ["SELECT", "SELECT * FROM nowhere", "SELECT * FROM devices WHERE", "DELETE FROM devices"]
)
def test_what_is_no_query_is_refused(registry, text):
    assert refused(lambda: rows(registry, text))[0] == 400


# Direct methods -------------------------------------------------------------------------------------------------------


def call(name: str = "say", payload=None, timeout_s: int = 20) -> CloudToDeviceMethod:
    return CloudToDeviceMethod(method_name=name, payload=payload, response_timeout_in_seconds=timeout_s)


@pytest.mark.parametrize("payload", [{"a": [1, None]}, [1, 2], "text", 5])
def test_a_method_takes_and_gives_any_json(registry, thing, connected, payload):
    def answer(request):
        connected.send_method_response(
            MethodResponse.create_from_method_request(request, 201, {"name": request.name, "said": request.payload})
        )

    connected.on_method_request_received = answer
    result = registry.invoke_device_method(thing.device_id, call(payload=payload))
    assert (result.status, result.payload) == (201, {"name": "say", "said": payload})


def test_a_device_that_is_away_cannot_be_called(registry, thing):
    assert refused(lambda: registry.invoke_device_method(thing.device_id, call())) == (404, "Not Found")


def test_a_method_without_an_answer_times_out(registry, thing, connected):
    called = threading.Event()
    connected.on_method_request_received = lambda _request: called.set()
    assert refused(lambda: registry.invoke_device_method(thing.device_id, call(timeout_s=5)))[0] == 504
    assert called.is_set()
