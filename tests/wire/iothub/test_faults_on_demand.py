"""Faults that are planted, and how the vendor's unmodified SDKs fare with them, over real sockets."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from azure.eventhub import EventHubConsumerClient
from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.device.exceptions import ConnectionFailedError, CredentialError
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification
from msrest.exceptions import ClientRequestError, HttpOperationError

from manifests.exit_codes import ExitCode
from simulators.hub_client import HubClient
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
DEADLINE_S = 30.0
D1 = IdentityId("d1")


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {DEADLINE_S} s in vain for {what}"
        time.sleep(0.02)
    return value


@pytest.fixture
def faults(hub: BackgroundHub, tmp_path: Path) -> HubClient:
    return HubClient(tmp_path / "hub")


@pytest.fixture
def make_device(hub: BackgroundHub) -> Iterator[Callable[..., IoTHubDeviceClient]]:
    made = []

    def make(**settings: Any) -> IoTHubDeviceClient:
        made.append(
            IoTHubDeviceClient.create_from_connection_string(
                hub.create_device("d1"), server_verification_cert=hub.ca_file.read_text(), **settings
            )
        )
        return made[-1]

    yield make
    for client in made:
        client.shutdown()


@pytest.fixture
def device(make_device: Callable[..., IoTHubDeviceClient]) -> IoTHubDeviceClient:
    client = make_device(connection_retry_interval=1)
    client.connect()
    return client


@pytest.fixture
def registry(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> Iterator[IoTHubRegistryManager]:
    monkeypatch.setattr(certifi, "where", lambda: str(hub.ca_file))
    manager = IoTHubRegistryManager.from_connection_string(hub.service_connection_string)
    yield manager
    manager.amqp_svc_client.disconnect_sync()


def bodies(hub: BackgroundHub) -> list[str]:
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))
    return [event.body.decode() for event in events if event.source == "Telemetry"]


def patch_desired(hub: BackgroundHub, patch: dict[str, Any]) -> None:
    body = {"properties": {"desired": patch}}
    hub.call(lambda: hub.server.switchboard.hub.patch_twin(D1, body, None, time.time()))


def connection_count(hub: BackgroundHub) -> int:
    def count() -> int:
        events = hub.server.switchboard.hub.events.read(0, 1000)
        return sum(event.properties.get("opType") == "deviceConnected" for event in events)

    return hub.call(count)


@pytest.mark.parametrize("kind", ["kill", "expire-token"])
def test_a_device_comes_back_after_its_connection_ended(
    hub: BackgroundHub, faults: HubClient, device: IoTHubDeviceClient, kind: str
) -> None:
    assert faults.plant_fault({"kind": kind, "deviceId": "d1"})["struck"] == 1
    until(lambda: connection_count(hub) == 2 and device.connected, "the device to come back")
    device.send_message("after")
    assert bodies(hub) == ["after"]


@pytest.mark.parametrize("kind", ["kill", "expire-token"])
def test_a_device_on_a_websocket_comes_back_too(
    hub: BackgroundHub, faults: HubClient, make_device: Callable[..., IoTHubDeviceClient], kind: str
) -> None:
    if hub.endpoints.https_port != 443:
        pytest.skip("the SDK knows no other port for websockets than 443, which may not be bound here")
    client = make_device(connection_retry_interval=1, websockets=True)
    client.connect()
    faults.plant_fault({"kind": "late-error", "durationInSeconds": 600})
    assert faults.plant_fault({"kind": kind, "deviceId": "d1"})["struck"] == 1
    until(lambda: connection_count(hub) == 2 and client.connected, "the device to come back")
    client.send_message("after")
    assert bodies(hub) == ["after"]
    assert [fault["struck"] for fault in faults.faults()] == [0]


@pytest.mark.parametrize(("code", "error"), [(3, ConnectionFailedError), (5, CredentialError)])
def test_a_refused_device_hears_why(
    faults: HubClient, make_device: Callable[..., IoTHubDeviceClient], code: int, error: type[Exception]
) -> None:
    client = make_device(connection_retry=False)
    faults.plant_fault({"kind": "refuse", "value": code})
    with pytest.raises(error):
        client.connect()

    def is_let_in() -> bool:
        # The SDK may take the end of the refused connection for that of the next one.
        with contextlib.suppress(ConnectionFailedError):
            client.connect()
        return bool(client.connected)

    until(is_let_in, "the device to be let in")


def test_a_dropped_message_is_sent_again_when_the_connection_is(
    hub: BackgroundHub, faults: HubClient, device: IoTHubDeviceClient
) -> None:
    faults.plant_fault({"kind": "drop", "deviceId": "d1"})
    sending = threading.Thread(target=device.send_message, args=("1",), daemon=True)
    sending.start()
    until(lambda: faults.faults() == [], "the message to be lost")
    assert (bodies(hub), sending.is_alive()) == ([], True)
    faults.plant_fault({"kind": "kill", "deviceId": "d1"})
    sending.join(DEADLINE_S)
    assert (bodies(hub), sending.is_alive()) == (["1"], False)


def test_a_message_without_acknowledgement_arrives_twice(
    hub: BackgroundHub, faults: HubClient, device: IoTHubDeviceClient
) -> None:
    faults.plant_fault({"kind": "withhold-puback"})
    sending = threading.Thread(target=device.send_message, args=("1",), daemon=True)
    sending.start()
    until(lambda: bodies(hub) == ["1"], "the message")
    faults.plant_fault({"kind": "kill"})
    sending.join(DEADLINE_S)
    assert (bodies(hub), sending.is_alive()) == (["1", "1"], False)


def test_a_late_acknowledgement_and_a_late_twin_are_waited_for(faults: HubClient, device: IoTHubDeviceClient) -> None:
    device.get_twin()
    faults.plant_fault({"kind": "delay", "value": 1})
    began_at = time.monotonic()
    device.send_message("1")
    assert time.monotonic() - began_at >= 1
    faults.plant_fault({"kind": "delay", "value": 1, "count": 2})
    began_at = time.monotonic()
    assert device.get_twin()["desired"] == {"$version": 1}
    assert time.monotonic() - began_at >= 1


def test_a_message_to_a_device_can_come_twice(
    hub: BackgroundHub, faults: HubClient, device: IoTHubDeviceClient, registry: IoTHubRegistryManager
) -> None:
    heard: list[bytes] = []
    device.on_message_received = lambda message: heard.append(message.data)
    until(lambda: hub.call(lambda: hub.server.switchboard.hub.hears(D1, "c2d")), "the subscription")
    faults.plant_fault({"kind": "duplicate-message", "deviceId": "d1"})
    registry.send_c2d_message("d1", "1")
    registry.send_c2d_message("d1", "2")
    until(lambda: len(heard) >= 3, "three messages")
    assert heard == [b"1", b"1", b"2"]


def test_a_lost_patch_shows_as_a_gap_in_the_versions(
    hub: BackgroundHub, faults: HubClient, device: IoTHubDeviceClient
) -> None:
    heard: list[dict[str, Any]] = []
    device.on_twin_desired_properties_patch_received = heard.append
    until(lambda: hub.call(lambda: hub.server.switchboard.hub.hears(D1, "desiredPatches")), "the subscription")
    faults.plant_fault({"kind": "lose-desired"})
    patch_desired(hub, {"a": 1})
    patch_desired(hub, {"b": 2})
    until(lambda: heard, "the second patch")
    assert heard == [{"b": 2, "$version": 3}]
    assert device.get_twin()["desired"] == {"a": 1, "b": 2, "$version": 3}


def test_the_service_sdk_hears_that_it_is_throttled(
    hub: BackgroundHub, faults: HubClient, registry: IoTHubRegistryManager
) -> None:
    hub.create_device("d1")
    planted = faults.plant_fault({"kind": "error", "value": 429, "durationInSeconds": 600})
    with pytest.raises(HttpOperationError) as refused:
        registry.get_device("d1")
    response = refused.value.response
    assert (response.status_code, response.headers["iothub-errorcode"]) == (429, "ThrottlingException")
    assert faults.clear_faults(planted["id"]) == 1
    assert registry.get_device("d1").device_id == "d1"


@pytest.mark.parametrize("status", [500, 503, 504])
def test_the_service_sdk_sits_a_short_burst_of_errors_out_and_no_longer_one(
    hub: BackgroundHub, faults: HubClient, registry: IoTHubRegistryManager, status: int
) -> None:
    hub.create_device("d1")
    faults.plant_fault({"kind": "error", "value": status, "count": 2})
    assert registry.get_device("d1").device_id == "d1"
    assert faults.faults() == []
    faults.plant_fault({"kind": "error", "value": status, "durationInSeconds": 600})
    with pytest.raises((HttpOperationError, ClientRequestError), match=str(status)):
        registry.get_device("d1")


def test_a_request_that_failed_may_have_been_carried_out(
    hub: BackgroundHub, faults: HubClient, registry: IoTHubRegistryManager
) -> None:
    faults.plant_fault({"kind": "late-error", "count": 100})
    with pytest.raises(HttpOperationError):
        registry.create_device_with_sas("d2", None, None, "enabled")
    faults.clear_faults()
    assert registry.get_device("d2").status == "enabled"


def test_a_slow_request_is_slow_for_one_device_only(
    hub: BackgroundHub, faults: HubClient, registry: IoTHubRegistryManager
) -> None:
    hub.create_device("d1")
    hub.create_device("d2")
    faults.plant_fault({"kind": "slow", "value": 1, "deviceId": "d1"})
    registry.get_device("d2")
    assert [fault["struck"] for fault in faults.faults()] == [0]
    began_at = time.monotonic()
    registry.get_device("d1")
    assert time.monotonic() - began_at >= 1
    assert faults.faults() == []


def test_a_message_to_a_device_that_is_refused_over_amqp_is_sent_again_by_the_sdk(
    hub: BackgroundHub, faults: HubClient, registry: IoTHubRegistryManager
) -> None:
    hub.create_device("d1")
    faults.plant_fault({"kind": "error", "value": 429, "deviceId": "d1"})
    registry.send_c2d_message("d1", "1")
    assert faults.faults() == []
    assert hub.call(lambda: hub.server.switchboard.hub.registry.get(D1).message_count) == 1


def test_a_reader_of_events_goes_on_after_its_connection_broke(hub: BackgroundHub, faults: HubClient) -> None:
    hub.create_device("d1")
    heard: list[str] = []
    client = EventHubConsumerClient.from_connection_string(hub.event_hub_connection_string, "$default")
    following = threading.Thread(
        target=lambda: client.receive(
            lambda _context, event: heard.append(event.body_as_str()), starting_position="-1"
        ),
        daemon=True,
    )
    following.start()

    def send(text: str) -> None:
        accept = hub.server.switchboard.hub.accept_event
        hub.call(lambda: accept(D1, {}, {}, text.encode(), time.time()))

    try:
        send("before")
        until(lambda: "before" in heard, "the first event")
        assert faults.plant_fault({"kind": "kill-amqp"})["struck"] == 1
        send("after")
        until(lambda: "after" in heard, "the second event")
    finally:
        client.close()
        following.join(DEADLINE_S)


def test_a_query_right_after_a_write_sees_nothing_when_the_index_lags(
    hub: BackgroundHub, faults: HubClient, registry: IoTHubRegistryManager
) -> None:
    faults.plant_fault({"kind": "lag", "value": 1})
    registry.create_device_with_sas("d1", None, None, "enabled")

    def found() -> int:
        return len(registry.query_iot_hub(QuerySpecification(query="SELECT * FROM devices")).items)

    assert found() == 0
    until(lambda: found() == 1, "the index")


@pytest.mark.parametrize("operation", ["KillTcp", "ShutDownMqtt"])
def test_a_message_asks_the_service_itself_for_a_fault(
    hub: BackgroundHub, device: IoTHubDeviceClient, operation: str
) -> None:
    message = Message("")
    message.custom_properties = {
        "AzIoTHub_FaultOperationType": operation,
        "AzIoTHub_FaultOperationCloseReason": "boom",
        "AzIoTHub_FaultOperationDelayInSecs": "1",
    }
    device.send_message(message)
    assert connection_count(hub) == 1
    until(lambda: connection_count(hub) == 2 and device.connected, "the device to come back")
    device.send_message("after")
    assert bodies(hub) == ["", "after"]


def sim(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "simulators.cli", "fault", *arguments, "--state", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def test_a_person_plants_lists_and_clears_faults(hub: BackgroundHub, tmp_path: Path) -> None:
    directory = tmp_path / "hub"
    planted = sim(directory, "plant", "drop", "--device", "d1", "--count", "3")
    fault_id = planted.stdout.strip()
    assert (planted.returncode, planted.stderr) == (0, "")
    listed = sim(directory, "list")
    assert listed.stdout == f"{fault_id}  drop  d1  struck 0  left:  3 times\n"
    assert sim(directory, "clear", fault_id).returncode == 0
    again = sim(directory, "clear", fault_id)
    assert (again.returncode, "slipway-sim fault list" in again.stderr) == (ExitCode.NOT_FOUND, True)
    wrong = sim(directory, "plant", "error", "--value", "418")
    assert (wrong.returncode, "429, 500, 503 or 504" in wrong.stderr) == (ExitCode.USAGE, True)
