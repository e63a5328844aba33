"""Mosquitto as a stranger on both ends: its clients against the hub, our client half against its broker."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.wire.client import ClientSession, Connected, Event, PingAnswered, Published, Received, Subscribed
from simulators.iothub.wire.mqtt import Connect

pytestmark = [pytest.mark.wire, pytest.mark.mosquitto]
DEADLINE_S = 15.0


def binary(name: str) -> str:
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if path is None:
        message = f"{name} is not installed (Debian: mosquitto, mosquitto-clients)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


def login(hub: BackgroundHub, device_id: str) -> list[str]:
    """Options of mosquitto's clients that make one this device."""
    hub.create_device(device_id)
    identity = hub.call(lambda: hub.server.switchboard.hub.registry.get(IdentityId(device_id)))
    token = make_token(str(identity.keys[0]), f"{hub.host_name}/devices/{device_id}", int(time.time()) + 600)
    return [
        *("-h", hub.host_name, "-p", "8883", "--cafile", str(hub.ca_file), "-V", "mqttv311", "-q", "1"),
        *("-i", device_id, "-u", f"{hub.host_name}/{device_id}/?api-version=2021-04-12", "-P", token),
    ]


def telemetry(hub: BackgroundHub) -> list[Any]:
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))
    return [event for event in events if event.source == "Telemetry"]


def test_mosquitto_pub_sends_telemetry(hub: BackgroundHub) -> None:
    topic = "devices/d1/messages/events/colour=red"
    subprocess.run(
        [binary("mosquitto_pub"), *login(hub, "d1"), "-t", topic, "-m", "21.5"], check=True, timeout=DEADLINE_S
    )
    (event,) = telemetry(hub)
    assert (event.body, event.properties, event.source_id) == (b"21.5", {"colour": "red"}, IdentityId("d1"))


def test_mosquitto_pub_is_refused_with_a_wrong_password(hub: BackgroundHub) -> None:
    options = login(hub, "d1")
    options[-1] = "SharedAccessSignature sr=x&sig=y&se=9999999999"
    done = subprocess.run(
        [binary("mosquitto_pub"), *options, "-t", "devices/d1/messages/events/", "-m", "x"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode != 0
    assert "not authorised" in done.stderr
    assert telemetry(hub) == []


def test_mosquitto_sub_hears_a_desired_patch(hub: BackgroundHub) -> None:
    device = IdentityId("d1")
    topic = "$iothub/twin/PATCH/properties/desired/#"
    options = login(hub, "d1")
    listener = subprocess.Popen(
        [binary("mosquitto_sub"), *options, "-t", topic, "-C", "1", "-F", "%t %q %p"], stdout=subprocess.PIPE, text=True
    )
    try:
        end = time.monotonic() + DEADLINE_S
        while not hub.call(lambda: hub.server.switchboard.hub.hears(device, "desiredPatches")):
            assert time.monotonic() < end, "mosquitto_sub did not subscribe"
            time.sleep(0.02)
        body = {"properties": {"desired": {"a": 1}}}
        hub.call(lambda: hub.server.switchboard.hub.patch_twin(device, body, None, time.time()))
        out, _ = listener.communicate(timeout=DEADLINE_S)
    finally:
        listener.kill()
    heard_topic, qos, payload = out.strip().split(" ", 2)
    assert (heard_topic, qos) == ("$iothub/twin/PATCH/properties/desired/?$version=2", "1")
    assert json.loads(payload) == {"a": 1, "$version": 2}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    """A Mosquitto of our own on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
    process = subprocess.Popen([binary("mosquitto"), "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < end, "mosquitto did not start"
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


class SocketClient:
    """Our client half on a blocking socket."""

    def __init__(self, port: int, session: ClientSession) -> None:
        self.session = session
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)

    def flush(self) -> None:
        self._socket.sendall(self.session.data_to_send())

    def hear(self, count: int) -> list[Event]:
        """Talk until `count` events were heard; acknowledgements go out on the way."""
        events: list[Event] = []
        self.flush()
        while len(events) < count:
            data = self._socket.recv(65536)
            assert data, f"the broker closed after {events}"
            events += self.session.receive(data)
            self.flush()
        return events

    def close(self) -> None:
        self._socket.close()


def test_our_client_half_is_understood_by_mosquitto(broker: int) -> None:
    session = ClientSession()
    client = SocketClient(broker, session)
    session.connect(Connect(client_id="ours", clean_session=False, keep_alive_s=30))
    assert client.hear(1) == [Connected(is_session_present=False)]
    session.subscribe(("a/+", 1), ("b/#", 0))
    assert client.hear(1) == [Subscribed(1, (1, 0))]
    payload = bytes(range(256)) * 600
    packet_id = session.publish("a/é", payload)
    assert packet_id is not None
    heard = client.hear(2)
    assert sorted(heard, key=repr) == sorted([Published(packet_id), Received("a/é", payload, 1, False)], key=repr)
    session.publish("b/x/y", b"", qos=0)
    assert client.hear(1) == [Received("b/x/y", b"", 0, False)]
    session.ping()
    assert client.hear(1) == [PingAnswered()]
    client.close()

    # The session waits at the broker; what was published meanwhile comes with the next connection.
    session.connection_lost()
    other_session = ClientSession()
    other = SocketClient(broker, other_session)
    other_session.connect(Connect(client_id="other"))
    other.hear(1)
    other_session.publish("a/later", b"kept")
    other.hear(1)
    other_session.disconnect()
    other.flush()
    other.close()
    client = SocketClient(broker, session)
    session.connect(Connect(client_id="ours", clean_session=False, keep_alive_s=30))
    assert client.hear(2) == [Connected(is_session_present=True), Received("a/later", b"kept", 1, False)]
    session.disconnect()
    client.flush()
    client.close()
