"""A hub with the limits of a tier, and the vendor's unmodified SDKs at their limits, over real sockets."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.iot.device import IoTHubDeviceClient
from azure.iot.device.exceptions import ClientError, NoConnectionError
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, ExportImportDevice, QuerySpecification
from msrest.exceptions import HttpOperationError

from manifests.exit_codes import ExitCode
from simulators.hub_client import HubClient
from simulators.iothub.core.throttles import Operation, Throttles
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
DEADLINE_S = 30.0
QUERY = QuerySpecification(query="SELECT deviceId FROM devices")


class StoppableThrottles(Throttles):
    """Limits whose clock can be stopped, so that nothing is given back while a busy machine takes its time."""

    stopped_at: float | None = None

    def admit(self, operation: Operation, now: float, cost: float = 1.0) -> float:
        return super().admit(operation, self.stopped_at or now, cost)

    def has_room(self, operation: Operation, now: float) -> bool:
        return super().has_room(operation, self.stopped_at or now)


@pytest.fixture
def small_hub(hub: BackgroundHub) -> BackgroundHub:
    hub.call(lambda: hub.server.switchboard.hub.impose(StoppableThrottles.of("S1", 1)))
    return hub


@contextlib.contextmanager
def stopped_clock(hub: BackgroundHub) -> Iterator[None]:
    throttles = hub.call(lambda: hub.server.switchboard.hub.throttles)
    assert isinstance(throttles, StoppableThrottles)
    throttles.stopped_at = time.time()
    yield
    throttles.stopped_at = None


@pytest.fixture
def registry(small_hub: BackgroundHub) -> IoTHubRegistryManager:
    return IoTHubRegistryManager.from_connection_string(small_hub.service_connection_string)


def spend(hub: BackgroundHub, operation: Operation, times: int) -> None:
    """Have the hub count operations that nobody did."""

    def count() -> None:
        throttles = hub.server.switchboard.hub.throttles
        assert throttles
        for _ in range(times):
            throttles.has_room(operation, time.time())

    hub.call(count)


def refusal(err: HttpOperationError) -> tuple[int, str]:
    return err.response.status_code, err.response.headers["iothub-errorcode"]


def test_twenty_queries_pass_the_next_waits_and_then_they_are_refused(
    small_hub: BackgroundHub, registry: IoTHubRegistryManager
) -> None:
    with stopped_clock(small_hub):
        for _ in range(20):
            registry.query_iot_hub(QUERY)
        began_at = time.monotonic()
        registry.query_iot_hub(QUERY)
        assert time.monotonic() - began_at > 2.9, "one query in three seconds"
        spend(small_hub, Operation.QUERY, 24)
        with pytest.raises(HttpOperationError) as refused:
            registry.query_iot_hub(QUERY)
    assert refusal(refused.value) == (429, "ThrottlingException")


def test_each_device_of_a_bulk_request_counts(small_hub: BackgroundHub, registry: IoTHubRegistryManager) -> None:
    with stopped_clock(small_hub):
        registry.bulk_create_or_update_devices(several("d"))
        registry.get_device("d1")
        with pytest.raises(HttpOperationError) as refused:
            registry.bulk_create_or_update_devices(several("e"))
    assert refusal(refused.value) == (429, "ThrottlingException")
    registry.get_device("d2")


def several(prefix: str) -> list[ExportImportDevice]:
    return [ExportImportDevice(id=f"{prefix}{number}", import_mode="create") for number in range(90)]


def test_a_call_counts_by_its_size(small_hub: BackgroundHub, registry: IoTHubRegistryManager) -> None:
    small_hub.create_device("d1")
    with stopped_clock(small_hub):
        spend(small_hub, Operation.METHOD, 2400 - 1)
        assert refusal(called(registry, 10)) == (404, "DeviceNotOnline")
        spend(small_hub, Operation.METHOD, 380)
        # Of 400 meters that may wait 20 are left.
        assert refusal(called(registry, 100_000)) == (429, "ThrottlingException")


def called(registry: IoTHubRegistryManager, size: int) -> HttpOperationError:
    with pytest.raises(HttpOperationError) as refused:
        registry.invoke_device_method("d1", CloudToDeviceMethod(method_name="m", payload="x" * size))
    return refused.value


@pytest.fixture
def device(small_hub: BackgroundHub) -> Iterator[IoTHubDeviceClient]:
    client = IoTHubDeviceClient.create_from_connection_string(
        small_hub.create_device("d1"),
        server_verification_cert=small_hub.ca_file.read_text(),
        connection_retry_interval=1,
    )
    client.connect()
    yield client
    client.shutdown()


def test_a_device_hears_429_for_its_twin(small_hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    device.get_twin()
    with stopped_clock(small_hub):
        spend(small_hub, Operation.TWIN_UPDATE, 5000)
        with pytest.raises(ClientError) as refused:
            device.patch_twin_reported_properties({"a": 1})
    assert "429" in repr(refused.value.__cause__)
    assert device.get_twin()["reported"] == {"$version": 1}


def events_of(hub: BackgroundHub) -> list[Any]:
    return hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))


def connections_lost(hub: BackgroundHub) -> int:
    return sum(event.properties.get("opType") == "deviceDisconnected" for event in events_of(hub))


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s in vain for {what}"
        time.sleep(0.02)


def test_a_device_above_the_limit_is_slowed_down_and_then_cut_off_and_loses_nothing(
    small_hub: BackgroundHub, device: IoTHubDeviceClient
) -> None:
    spend(small_hub, Operation.EVENT, 6000 + 100)
    began_at = time.monotonic()
    device.send_message("late")
    assert time.monotonic() - began_at > 0.5

    def send() -> None:
        # The SDK sends again by itself, unless it finds the connection gone at that very moment.
        while True:
            with contextlib.suppress(NoConnectionError):
                device.send_message("cut off")
                return

    sending = threading.Thread(target=send, daemon=True)
    with stopped_clock(small_hub):
        spend(small_hub, Operation.EVENT, 2000)
        sending.start()
        until(lambda: connections_lost(small_hub) >= 1, "the device to be cut off")
    sending.join(DEADLINE_S)
    assert not sending.is_alive()
    events = events_of(small_hub)
    # Twice where the SDK sent it again although it had told the sender to: at least once is what it promises.
    bodies = [event.body for event in events if event.source == "Telemetry"]
    assert list(dict.fromkeys(bodies)) == [b"late", b"cut off"]
    opened = [event for event in events if event.properties.get("opType") == "deviceConnected"]
    assert len(opened) >= 2


def test_the_quota_of_the_day_can_be_used_up(small_hub: BackgroundHub, registry: IoTHubRegistryManager) -> None:
    small_hub.create_device("d1")

    def use_up() -> None:
        throttles = small_hub.server.switchboard.hub.throttles
        assert throttles
        throttles.meter(400_000 * 4096, time.time())

    small_hub.call(use_up)
    with pytest.raises(HttpOperationError) as refused:
        registry.get_twin("d1")
    assert refusal(refused.value) == (403, "IotHubQuotaExceeded")


def test_without_a_tier_nothing_is_counted(hub: BackgroundHub, tmp_path: Path) -> None:
    registry = IoTHubRegistryManager.from_connection_string(hub.service_connection_string)
    for _ in range(40):
        registry.query_iot_hub(QUERY)
    assert shown(HubClient(tmp_path / "hub")) == {"tier": None}


def shown(client: HubClient) -> dict[str, Any]:
    response = requests.get(
        f"https://{client.note.authority}/simulator/throttles",
        headers={"Authorization": client.note.token()},
        verify=client.note.ca_file,
        timeout=DEADLINE_S,
    )
    document: dict[str, Any] = response.json()
    return document


def test_the_command_line_chooses_tier_and_units(tmp_path: Path, start: Callable[..., "subprocess.Popen[str]"]) -> None:
    start("--tier", "S2", "--units", "3")
    document = shown(HubClient(tmp_path / "hub"))
    assert (document["tier"], document["units"], document["dailyMessages"]["limit"]) == ("S2", 3, 18_000_000)
    assert document["operations"]["queries"] == {"perMinute": 60.0, "taken": 0, "delayed": 0, "refused": 0}


USAGE_ERRORS = {
    ("--tier", "F1", "--units", "2"): "Error: a hub of tier F1 has 1 to 1 units, not 2\n",
    ("--units", "2"): "Error: --units says how many units of a tier: it needs --tier\n",
}


@pytest.mark.parametrize(("options", "said"), USAGE_ERRORS.items())
def test_a_tier_that_cannot_be_had_is_a_usage_error(
    start: Callable[..., "subprocess.Popen[str]"], options: tuple[str, ...], said: str
) -> None:
    process = start(*options, is_awaited=False)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (ExitCode.USAGE, said)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    started: list[subprocess.Popen[str]] = []

    def begin(*options: str, is_awaited: bool = True) -> "subprocess.Popen[str]":
        state = tmp_path / "hub"
        command = [sys.executable, "-m", "simulators.cli", "hub", "--state", str(state), "--address", address, *options]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
        )
        started.append(process)
        end = time.monotonic() + DEADLINE_S
        while is_awaited and not is_ready(state / "hub.json"):
            assert process.poll() is None, "the hub ended before it was ready"
            assert time.monotonic() < end, "the hub did not become ready"
            time.sleep(0.02)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE_S)


def is_ready(note: Path) -> bool:
    try:
        return bool(json.loads(note.read_text())["hostName"])
    except (FileNotFoundError, ValueError):
        return False
