"""The unmodified azure-iot-hub, and plain HTTPS, against the hub over real sockets."""

import base64
import json
import logging
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.iot.device import IoTHubModuleClient, MethodResponse
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, QuerySpecification, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
KEYS = ("MDEyMzQ1Njc4OWFiY2RlZg==", "ZmVkY2JhOTg3NjU0MzIxMA==")


@pytest.fixture
def registry(hub: BackgroundHub) -> IoTHubRegistryManager:
    return IoTHubRegistryManager.from_connection_string(hub.service_connection_string)


def refusal(err: HttpOperationError) -> tuple[int, str, str]:
    return err.response.status_code, err.response.reason, err.response.headers["iothub-errorcode"]


def test_a_device_lives_and_dies(registry: IoTHubRegistryManager) -> None:
    created = registry.create_device_with_sas("d1", *KEYS, "enabled")
    assert (created.device_id, created.connection_state, created.authentication.type) == ("d1", "Disconnected", "sas")
    assert created.authentication.symmetric_key.primary_key == KEYS[0]
    with pytest.raises(HttpOperationError) as twice:
        registry.create_device_with_sas("d1", *KEYS, "enabled")
    assert refusal(twice.value) == (409, "Conflict", "DeviceAlreadyExists")
    updated = registry.update_device_with_sas("d1", created.etag, *KEYS, "disabled", status_reason="lost")
    assert (updated.status, updated.status_reason, updated.generation_id) == ("disabled", "lost", created.generation_id)
    with pytest.raises(HttpOperationError) as stale:
        registry.update_device_with_sas("d1", created.etag, *KEYS, "enabled")
    assert refusal(stale.value) == (412, "Precondition Failed", "PreconditionFailed")
    assert registry.get_device("d1").etag == updated.etag
    registry.delete_device("d1")
    with pytest.raises(HttpOperationError) as gone:
        registry.get_device("d1")
    assert refusal(gone.value) == (404, "Not Found", "DeviceNotFound")
    assert json.loads(gone.value.response.text)["Message"].startswith("ErrorCode:DeviceNotFound;")


def test_keys_are_made_when_none_are_given_and_x509_devices_have_none(registry: IoTHubRegistryManager) -> None:
    generated = registry.create_device_with_sas("d1", None, None, "enabled").authentication.symmetric_key
    assert len(base64.b64decode(generated.primary_key)) == 32
    x509 = registry.create_device_with_x509("d2", "A" * 40, "B" * 40, "enabled").authentication
    assert (x509.type, x509.symmetric_key.primary_key) == ("selfSigned", None)
    edge = registry.create_device_with_sas("d3", None, None, "enabled", iot_edge=True)
    assert edge.capabilities.iot_edge
    assert [module.module_id for module in registry.get_modules("d3")] == ["$edgeAgent", "$edgeHub"]
    assert [device.device_id for device in registry.get_devices()] == ["d1", "d2", "d3"]
    assert len(registry.get_devices(2)) == 2


def test_a_module_lives_and_dies(registry: IoTHubRegistryManager) -> None:
    registry.create_device_with_sas("d1", *KEYS, "enabled")
    created = registry.create_module_with_sas("d1", "m1", "someone", *KEYS)
    assert (created.module_id, created.managed_by) == ("m1", "someone")
    updated = registry.update_module_with_sas("d1", "m1", "other", created.etag, *KEYS)
    assert (updated.managed_by, registry.get_module("d1", "m1").etag) == ("other", updated.etag)
    with pytest.raises(HttpOperationError) as stale:
        registry.delete_module("d1", "m1", created.etag)
    assert refusal(stale.value)[0] == 412
    registry.delete_module("d1", "m1")
    with pytest.raises(HttpOperationError) as gone:
        registry.get_module("d1", "m1")
    assert refusal(gone.value) == (404, "Not Found", "ModuleNotFound")


def test_twins_are_updated_and_replaced_under_their_etag(registry: IoTHubRegistryManager) -> None:
    registry.create_device_with_sas("d1", *KEYS, "enabled")
    first = registry.get_twin("d1")
    assert (first.etag, first.version, first.tags) == ("AAAAAAAAAAE=", 2, None)
    patch = Twin(tags={"site": "north"}, properties=TwinProperties(desired={"a": {"b": 1}}))
    second = registry.update_twin("d1", patch, first.etag)
    assert (second.tags, second.properties.desired["a"], second.properties.desired["$version"]) == (
        {"site": "north"},
        {"b": 1},
        2,
    )
    with pytest.raises(HttpOperationError) as stale:
        registry.update_twin("d1", patch, first.etag)
    assert refusal(stale.value) == (412, "Precondition Failed", "PreconditionFailed")
    third = registry.replace_twin("d1", Twin(properties=TwinProperties(desired={"c": 2})))
    assert (third.tags, third.properties.desired["c"], third.properties.desired.get("a")) == (None, 2, None)
    with pytest.raises(HttpOperationError) as bad:
        registry.update_twin("d1", Twin(tags={"a.b": 1}))
    assert refusal(bad.value) == (400, "Bad Request", "ArgumentInvalid")


def test_module_twins_are_updated_and_replaced(registry: IoTHubRegistryManager) -> None:
    registry.create_device_with_sas("d1", *KEYS, "enabled")
    registry.create_module_with_sas("d1", "m1", "", *KEYS)
    updated = registry.update_module_twin("d1", "m1", Twin(properties=TwinProperties(desired={"a": 1, "b": 2})))
    assert (updated.module_id, updated.properties.desired["a"]) == ("m1", 1)
    replaced = registry.replace_module_twin("d1", "m1", Twin(properties=TwinProperties(desired={"b": 3})))
    assert {key: value for key, value in replaced.properties.desired.items() if "$" not in key} == {"b": 3}
    assert registry.get_module_twin("d1", "m1").etag == replaced.etag
    assert registry.get_twin("d1").properties.desired["$version"] == 1


def test_a_query_comes_in_pages(registry: IoTHubRegistryManager) -> None:
    for number in range(5):
        registry.create_device_with_sas(f"d{number}", *KEYS, "enabled")
        registry.update_twin(f"d{number}", Twin(tags={"site": "north" if number else "south"}))
    specification = QuerySpecification(query="SELECT * FROM devices WHERE tags.site = 'north'")
    seen, continuation = [], None
    for expected in (2, 2):
        page = registry.query_iot_hub(specification, continuation, max_item_count=expected)
        seen += [twin.device_id for twin in page.items]
        continuation = page.continuation_token
    assert (seen, continuation) == (["d1", "d2", "d3", "d4"], None)
    count = registry.query_iot_hub(QuerySpecification(query="SELECT COUNT() AS total FROM devices"))
    assert count.items[0].additional_properties == {"total": 5}
    with pytest.raises(HttpOperationError) as bad:
        registry.query_iot_hub(QuerySpecification(query="SELECT FROM"))
    assert refusal(bad.value) == (400, "Bad Request", "ArgumentInvalid")


def test_methods_reach_a_device_or_say_why_not(hub: BackgroundHub, registry: IoTHubRegistryManager) -> None:
    connection_string = hub.create_module("d1", "m1")
    call = CloudToDeviceMethod(method_name="ping", payload={"a": 1}, response_timeout_in_seconds=5)
    for invoke in (
        lambda: registry.invoke_device_method("d1", call),
        lambda: registry.invoke_device_module_method("d1", "m1", call),
    ):
        with pytest.raises(HttpOperationError) as offline:
            invoke()
        assert refusal(offline.value) == (404, "Not Found", "DeviceNotOnline")
    client = IoTHubModuleClient.create_from_connection_string(
        connection_string, server_verification_cert=hub.ca_file.read_text()
    )
    answers = [{"pong": True}]

    def on_method(request: Any) -> None:
        if answers:
            client.send_method_response(MethodResponse(request.request_id, 200, answers.pop()))

    try:
        client.connect()
        client.on_method_request_received = on_method
        result = registry.invoke_device_module_method("d1", "m1", call)
        assert (result.status, result.payload) == (200, {"pong": True})
        started = time.monotonic()
        with pytest.raises(HttpOperationError) as silent:
            registry.invoke_device_module_method("d1", "m1", call)
        assert refusal(silent.value) == (504, "Gateway Timeout", "GatewayTimeout")
        assert time.monotonic() - started >= 5
    finally:
        client.shutdown()


def test_statistics_follow_connections(hub: BackgroundHub, registry: IoTHubRegistryManager) -> None:
    client = IoTHubModuleClient.create_from_connection_string(
        hub.create_module("d1", "m1"), server_verification_cert=hub.ca_file.read_text()
    )
    try:
        client.connect()
        assert registry.get_service_statistics().connected_device_count == 1
        assert registry.get_module("d1", "m1").connection_state == "Connected"
        assert registry.get_module_twin("d1", "m1").connection_state == "Connected"
    finally:
        client.shutdown()
    assert registry.get_service_statistics().connected_device_count == 0
    statistics = registry.get_device_registry_statistics()
    assert (statistics.total_device_count, statistics.enabled_device_count) == (1, 1)


def key_of(hub: BackgroundHub, policy: str) -> str:
    return hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy(policy).keys[0])


def call(hub: BackgroundHub, method: str, path: str, policy: str = "iothubowner", **settings: Any) -> Any:
    token = make_token(key_of(hub, policy), hub.authority, int(time.time()) + 60, policy)
    headers = {"Authorization": token, **settings.pop("headers", {})}
    return requests.request(
        method, f"https://{hub.authority}{path}", headers=headers, verify=str(hub.ca_file), timeout=20, **settings
    )


def test_a_policy_opens_what_it_is_for(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    rights = {
        "iothubowner": (200, 200, 200),
        "service": (401, 401, 200),
        "registryRead": (200, 401, 401),
        "registryReadWrite": (200, 200, 401),
        "device": (401, 401, 401),
    }
    for policy, expected in rights.items():
        read = call(hub, "GET", "/devices/d1", policy)
        write = call(hub, "PUT", "/devices/d1", policy, json={"deviceId": "d1"}, headers={"If-Match": "*"})
        twin = call(hub, "GET", "/twins/d1", policy)
        assert (policy, (read.status_code, write.status_code, twin.status_code)) == (policy, expected)


def test_an_expired_token_is_refused_in_the_services_words(hub: BackgroundHub) -> None:
    token = make_token(key_of(hub, "iothubowner"), hub.authority, int(time.time()) - 7, "iothubowner")
    answer = requests.get(f"https://{hub.authority}/devices", headers={"Authorization": token}, timeout=20)
    assert (answer.status_code, answer.reason) == (401, "Unauthorized")
    assert answer.headers["iothub-errorcode"] == "IotHubUnauthorizedAccess"
    assert "Unauthorized: the token expired " in answer.json()["Message"]
    assert answer.json()["ExceptionMessage"].startswith("Tracking ID:")


HTTP_REFUSALS: dict[str, tuple[str, str, dict[str, Any], tuple[int, str]]] = {
    "an unknown route": ("GET", "/nowhere", {}, (404, "RouteNotFound")),
    "a verb that is not for it": ("POST", "/devices/d1", {}, (405, "MethodNotAllowed")),
    "a body that is no JSON": ("POST", "/devices/query", {"data": b"{"}, (400, "ArgumentInvalid")),
    "a body beyond every limit": ("PATCH", "/twins/d1", {"data": b" " * 1_100_000}, (413, "MessageTooLarge")),
    "a page of no rows": (
        "POST",
        "/devices/query",
        {"json": {"query": "SELECT * FROM devices"}, "headers": {"x-ms-max-item-count": "0"}},
        (400, "ArgumentInvalid"),
    ),
    "a page of too many rows": (
        "POST",
        "/devices/query",
        {"json": {"query": "SELECT * FROM devices"}, "headers": {"x-ms-max-item-count": "1001"}},
        (400, "ArgumentInvalid"),
    ),
    "a token of another hub": (
        "GET",
        "/devices",
        {"headers": {"Authorization": "SharedAccessSignature sr=x"}},
        (401, "IotHubUnauthorizedAccess"),
    ),
    "a header of odd bytes": (
        "GET",
        "/devices",
        {"headers": {"Authorization": b"SharedAccessSignature \xff\xfe"}},
        (401, "IotHubUnauthorizedAccess"),
    ),
    "an id that is none": ("PUT", "/devices/a%20b", {"json": {"deviceId": "a b"}}, (400, "ArgumentInvalid")),
    "events from nowhere": ("GET", "/telemetry/events?from=-1", {}, (400, "ArgumentInvalid")),
    "events of another source": ("GET", "/telemetry/events?source=x", {}, (400, "ArgumentInvalid")),
    "events in another way": ("GET", "/telemetry/events?follow=maybe", {}, (400, "ArgumentInvalid")),
}


@pytest.mark.parametrize(("method", "path", "settings", "expected"), HTTP_REFUSALS.values(), ids=HTTP_REFUSALS.keys())
def test_a_bad_request_is_refused(
    hub: BackgroundHub, method: str, path: str, settings: dict[str, Any], expected: tuple[int, str]
) -> None:
    hub.create_device("d1")
    answer = call(hub, method, path, **dict(settings))
    assert (answer.status_code, answer.headers["iothub-errorcode"]) == expected


def test_an_id_may_hold_what_a_url_has_to_quote(hub: BackgroundHub) -> None:
    name = "a.b%_*?!(),:=@$'"
    path = f"/devices/{requests.utils.quote(name, safe='')}"
    assert call(hub, "PUT", path, json={"deviceId": name}).status_code == 200
    assert call(hub, "GET", path).json()["deviceId"] == name
    assert hub.call(lambda: hub.server.switchboard.hub.registry.find(IdentityId(name))) is not None


def send(hub: BackgroundHub, connection_string: str, *bodies: str) -> None:
    client = IoTHubModuleClient.create_from_connection_string(
        connection_string, server_verification_cert=hub.ca_file.read_text()
    )
    try:
        client.connect()
        for body in bodies:
            client.send_message(body)
    finally:
        client.shutdown()


def test_the_stream_of_events_ends_where_the_log_does(hub: BackgroundHub) -> None:
    send(hub, hub.create_module("d1", "m1"), "a", "b", "c")

    def bodies(query: str) -> list[tuple[int, str]]:
        answer = call(hub, "GET", f"/telemetry/events{query}", "service")
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        return [(line["sequence"], base64.b64decode(line["body"]).decode()) for line in lines]

    # Two identities were made and one connected before; the hub tells so in events of its own.
    assert bodies("") == [(4, "a"), (5, "b"), (6, "c")]
    assert bodies("?from=0&follow=false&source=Telemetry") == [(4, "a"), (5, "b"), (6, "c")]
    assert bodies("?from=5") == [(6, "c")]
    assert bodies("?from=6") == []
    assert bodies("?from=99") == []
    states = [json.loads(line) for line in call(hub, "GET", "/telemetry/events?source=*").text.splitlines()]
    assert [(state["sequence"], state["source"], state["properties"].get("opType")) for state in states] == [
        (1, "deviceLifecycleEvents", "createDeviceIdentity"),
        (2, "deviceLifecycleEvents", "createModuleIdentity"),
        (3, "deviceConnectionStateEvents", "moduleConnected"),
        (4, "Telemetry", None),
        (5, "Telemetry", None),
        (6, "Telemetry", None),
        (7, "deviceConnectionStateEvents", "moduleDisconnected"),
    ]


def test_a_hub_writes_the_events_of_its_own_that_are_wanted(hub: BackgroundHub) -> None:
    def written() -> list[str]:
        lines = call(hub, "GET", "/telemetry/events?source=*").text.splitlines()
        return [json.loads(line)["properties"]["opType"] for line in lines]

    answer = call(hub, "PATCH", "/simulator/event-sources", json={"deviceLifecycleEvents": False})
    assert answer.json() == {
        "twinChangeEvents": True,
        "deviceLifecycleEvents": False,
        "deviceConnectionStateEvents": True,
    }
    assert call(hub, "GET", "/simulator/event-sources").json() == answer.json()
    hub.create_device("d1", {"site": "north"})
    assert written() == ["updateTwin"]
    for wrong in ([], {"Telemetry": False}, {"twinChangeEvents": 0}):
        assert call(hub, "PATCH", "/simulator/event-sources", json=wrong).status_code == 400


def test_a_follower_hears_new_events_and_goes_home_when_the_hub_stops(hub: BackgroundHub) -> None:
    connection_string = hub.create_module("d1", "m1")
    send(hub, connection_string, "old")
    heard: list[str] = []
    first, last = threading.Event(), threading.Event()
    answer = call(hub, "GET", "/telemetry/events?from=0&follow=true", stream=True)

    def follow() -> None:
        for line in answer.iter_lines(chunk_size=None):
            if line:
                heard.append(base64.b64decode(json.loads(line)["body"]).decode())
                first.set()
        last.set()

    threading.Thread(target=follow, daemon=True).start()
    assert first.wait(DEADLINE_S)
    send(hub, connection_string, "new", "newer")
    end = time.monotonic() + DEADLINE_S
    while len(heard) < 3 and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert heard == ["old", "new", "newer"]
    hub.stop()
    assert last.wait(DEADLINE_S)


def test_a_quiet_stream_has_a_heartbeat(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.iothub.server.rest_api.telemetry_stream.HEARTBEAT_S", 0.05)
    answer = call(hub, "GET", "/telemetry/events?follow=true", stream=True)
    assert next(answer.iter_content(chunk_size=1)) == b"\n"
    answer.close()


def test_a_follower_hears_a_heartbeat_also_while_only_other_events_happen(
    hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulators.iothub.server.rest_api.telemetry_stream.HEARTBEAT_S", 0.2)
    hub.create_device("d1")
    answer = call(hub, "GET", "/telemetry/events?follow=true", stream=True)
    is_over = threading.Event()

    def chatter() -> None:
        patch = {"tags": {"a": 1}}
        while not is_over.wait(0.01):
            hub.call(lambda: hub.server.switchboard.hub.patch_twin(IdentityId("d1"), patch, None, time.time()))

    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        assert next(answer.iter_content(chunk_size=1)) == b"\n"
    finally:
        is_over.set()
        thread.join()
        answer.close()


def test_a_follower_that_goes_away_is_no_error(
    hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("simulators.iothub.server.rest_api.telemetry_stream.HEARTBEAT_S", 0.02)
    caplog.set_level(logging.DEBUG)
    answer = call(hub, "GET", "/telemetry/events?follow=true", stream=True)
    assert next(answer.iter_content(chunk_size=1)) == b"\n"
    answer.close()
    end = time.monotonic() + DEADLINE_S
    while not any("has gone" in record.message for record in caplog.records) and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert any("has gone" in record.message for record in caplog.records)


def test_events_need_the_right_of_a_service(hub: BackgroundHub) -> None:
    assert call(hub, "GET", "/telemetry/events", "registryRead").status_code == 401


def test_a_hub_goes_to_8443_where_443_is_taken_and_the_sdk_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    # The privilege to bind 443 differs by machine; a port that is taken is the same to the hub.
    monkeypatch.setattr("simulators.iothub.server.hub_server.HTTPS_PORT", 8883)
    running = BackgroundHub(tmp_path, address)
    try:
        assert running.service_connection_string.startswith(f"HostName={running.host_name}:8443;")
        assert running.telemetry_url == f"https://{running.host_name}:8443/telemetry/events"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.ca_file))
        registry = IoTHubRegistryManager.from_connection_string(running.service_connection_string)
        assert registry.create_device_with_sas("d1", *KEYS, "enabled").device_id == "d1"
        # Devices know no port but 8883, so theirs names none.
        assert running.create_module("d1", "m1").startswith(f"HostName={running.host_name};DeviceId=d1;")
    finally:
        running.stop()
