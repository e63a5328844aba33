"""A hub process that is killed under load: what it promised is there when it starts again."""

import base64
import contextlib
import json
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from simulators.hub_client import HubClient
from simulators.iothub.core.access import make_token
from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.client import ClientSession, ClientState, Connected, Event, Published, Received, Subscribed
from simulators.iothub.wire.mqtt import Connect

pytestmark = pytest.mark.wire
START_TIMEOUT_S = 30.0
DEADLINE_S = 30.0
DEVICES = 4
WINDOW = 20


class HubProcess:
    """`slipway-sim hub` with its state in a directory."""

    def __init__(self, directory: Path, address: str, *options: str) -> None:
        self.directory, self.address = directory, address
        command = [sys.executable, "-m", "simulators.cli", "hub", "--address", address, "--https-port", "8443"]
        self.process = subprocess.Popen(
            [*command, "--state", str(directory), "--log-level", "warning", *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            assert time.monotonic() < deadline, "the hub did not start"
            # A hub that was killed leaves its note behind.
            with contextlib.suppress(OSError, ValueError):
                if json.loads((directory / "hub.json").read_text())["pid"] == self.process.pid:
                    self.client = HubClient(directory)
                    return
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE_S)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(DEADLINE_S) == 0


@pytest.fixture
def address() -> str:
    return f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"


@pytest.fixture
def hubs(tmp_path: Path, address: str) -> Iterator[Any]:
    """Starts hub after hub in one directory; whatever runs at the end is killed."""
    started: list[HubProcess] = []

    def start(*options: str) -> HubProcess:
        started.append(HubProcess(tmp_path / "hub", address, *options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.kill()
        if each.process.stderr:
            each.process.stderr.close()


class Device:
    """A device that keeps its session over hubs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = ClientSession()

    def connect(self, hub: HubProcess) -> list[Event]:
        key = hub.client.device(self.name)["authentication"]["symmetricKey"]["primaryKey"]
        context = ssl.create_default_context(cafile=hub.client.note.ca_file)
        plain = socket.create_connection((hub.address, 8883), timeout=DEADLINE_S)
        self.socket = context.wrap_socket(plain, server_hostname=hub.address)
        self.session.connect(
            Connect(
                client_id=self.name,
                clean_session=False,
                username=f"{hub.address}/{self.name}/?api-version=2021-04-12",
                password=make_token(key, f"{hub.address}/devices/{self.name}", int(time.time()) + 600).encode(),
            )
        )
        return self.hear()

    def hear(self) -> list[Event]:
        """Send what is to be sent and wait for one answer at least; raises OSError when the hub is gone."""
        events: list[Event] = []
        self.socket.sendall(self.session.data_to_send())
        while not events:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the hub has gone")
            events = self.session.receive(data)
        return events


@dataclass
class Promised:
    """What the hub told one device before it died."""

    bodies: list[str] = field(default_factory=list)
    reported_version: int = 0
    sent: int = 0
    failure: BaseException | None = None


def talk(device: Device, promised: Promised, enough: int | None) -> None:
    """Keep telemetry and twin writes under way until the hub is gone, or until so many were sent and answered."""
    bodies: dict[int, str] = {}
    try:
        while enough is None or promised.sent < enough or device.session.in_flight_count:
            while device.session.in_flight_count < WINDOW and (enough is None or promised.sent < enough):
                promised.sent += 1
                body = f"{device.name}-{promised.sent}"
                packet_id = device.session.publish(f"devices/{device.name}/messages/events/", body.encode())
                assert packet_id is not None
                bodies[packet_id] = body
            report = json.dumps({"sent": promised.sent}).encode()
            device.session.publish(f"$iothub/twin/PATCH/properties/reported/?$rid={promised.sent}", report, qos=0)
            for event in device.hear():
                match event:
                    case Published(packet_id):
                        promised.bodies.append(bodies.pop(packet_id))
                    case Received(topic):
                        assert topic.startswith("$iothub/twin/res/204/")
                        promised.reported_version = int(topic.rpartition("$version=")[2])
    except OSError:
        device.session.connection_lost()
    except (AssertionError, ProtocolError, ValueError, KeyError) as err:
        promised.failure = err


def test_after_kill_9_under_load_every_acknowledged_message_and_answered_twin_write_is_there(hubs: Any) -> None:
    names = [f"d{number}" for number in range(DEVICES)]
    promises = {name: Promised() for name in names}
    devices = {name: Device(name) for name in names}
    hub = hubs()
    for name in names:
        hub.client.create(name)
    keys = {name: hub.client.connection_string(name) for name in names}
    for life in range(3):
        for device in devices.values():
            assert device.connect(hub)[0] == Connected(is_session_present=life > 0)
            if life == 0:
                device.session.subscribe(("$iothub/twin/res/#", 0))
                assert device.hear() == [Subscribed(1, (0,))]
            # What was in flight when the hub died was sent again; its acknowledgements belong to nobody here.
            while device.session.in_flight_count:
                device.hear()
        # The kernel may drop answers that a dying hub had sent; so it dies in peace too, right after its last answer.
        enough = {name: promises[name].sent + 300 if life == 0 else None for name in names}
        threads = [threading.Thread(target=talk, args=(devices[name], promises[name], enough[name])) for name in names]
        patched = hub.client.patch_twin(names[0], "", {"properties": {"desired": {"life": life}}})
        counts = {name: len(promises[name].bodies) for name in names}
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + DEADLINE_S
        while any(len(promises[name].bodies) < counts[name] + 300 for name in names) and time.monotonic() < deadline:
            time.sleep(0.0005)
        hub.kill()
        for thread in threads:
            thread.join(DEADLINE_S)
        for device in devices.values():
            device.session.connection_lost()
        assert [promise.failure for promise in promises.values()] == [None] * DEVICES
        hub = hubs()
        events = hub.client.events(0, is_following=False)
        bodies = {base64.b64decode(event["body"]).decode() for event in events}
        for name, promise in promises.items():
            assert len(promise.bodies) >= counts[name] + 300
            assert set(promise.bodies) <= bodies
            twin = hub.client.twin(name)
            assert twin["properties"]["reported"]["$version"] >= promise.reported_version > 1
        assert hub.client.twin(names[0])["properties"]["desired"] == patched["properties"]["desired"]
        assert {name: hub.client.connection_string(name) for name in names} == keys
    sequences = [event["sequence"] for event in hub.client.events(0, is_following=False, source="*")]
    assert sequences == list(range(1, len(sequences) + 1))


def test_a_device_need_not_subscribe_again_after_the_hub_was_killed(hubs: Any) -> None:
    hub, device = hubs(), Device("d1")
    hub.client.create("d1")
    device.connect(hub)
    device.session.subscribe(("$iothub/twin/PATCH/properties/desired/#", 1))
    device.hear()
    hub.kill()
    device.session.connection_lost()
    hub = hubs()
    assert device.connect(hub) == [Connected(is_session_present=True)]
    hub.client.patch_twin("d1", "", {"properties": {"desired": {"colour": "red"}}})
    (received,) = device.hear()
    assert isinstance(received, Received)
    assert json.loads(received.payload) == {"colour": "red", "$version": 2}
    assert device.session.state is ClientState.CONNECTED


def test_deleted_devices_stay_deleted_and_memory_remembers_nothing(hubs: Any) -> None:
    hub = hubs()
    for name in ("kept", "gone"):
        hub.client.create(name)
    hub.client.delete("gone")
    hub.stop()
    assert listed(hubs("--memory"), then_stop=True) == []
    assert listed(hubs(), then_stop=True) == ["kept"]


def listed(hub: HubProcess, *, then_stop: bool) -> list[str]:
    names = [row["deviceId"] for row in hub.client.query("SELECT deviceId FROM devices")]
    if then_stop:
        hub.stop()
    return names


def test_a_hub_with_a_damaged_journal_does_not_start_and_says_where_the_damage_is(hubs: Any, tmp_path: Path) -> None:
    hub = hubs()
    hub.client.create("d1")
    hub.kill()
    state = tmp_path / "hub" / "journal" / "state-000001.log"
    (tmp_path / "hub" / "journal" / "state-000002.log").write_bytes(state.read_bytes())
    state.write_bytes(b"?" + state.read_bytes()[1:])
    with pytest.raises(AssertionError, match=r"state-000001\.log is damaged at byte 0"):
        hubs()
