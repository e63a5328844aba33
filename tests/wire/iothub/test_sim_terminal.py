"""`slipway-sim` for people at a terminal: to show, disable, replace, watch and filter."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.device.exceptions import CredentialError

from simulators.iothub.server.background import BackgroundHub
from simulators.twin_changes import changes_between

pytestmark = pytest.mark.wire
DEADLINE_S = 30.0
SIM = (sys.executable, "-m", "simulators.cli")


def sim(hub: BackgroundHub, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "SLIPWAY_SIM_STATE": str(hub.ca_file.parent)}
    done = subprocess.run([*SIM, *arguments], capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def result(hub: BackgroundHub, *arguments: str) -> Any:
    code, out, err = sim(hub, *arguments)
    assert code == 0, err
    return json.loads(out)


def client_of(hub: BackgroundHub, connection_string: str) -> IoTHubDeviceClient:
    return IoTHubDeviceClient.create_from_connection_string(
        connection_string, server_verification_cert=hub.ca_file.read_text(), connection_retry=False
    )


def test_a_device_is_shown(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    hub.create_module("d1", "camera")
    code, out, _ = sim(hub, "device", "show", "d1")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0
    assert (lines["device"], lines["status"], lines["modules"]) == ("d1", "enabled", "camera")
    assert (lines["authentication"], lines["messages"]) == ("sas", "0 waiting")
    assert (lines["connection"], lines["last"]) == ("Disconnected since ever", "activity   never")
    identity = result(hub, "device", "show", "d1", "--json")
    assert identity["authentication"]["symmetricKey"]["primaryKey"] not in out
    assert "module          camera\n" in sim(hub, "device", "show", "d1", "--module", "camera")[1]
    assert sim(hub, "device", "show", "nobody")[0] == 6


def test_a_disabled_device_is_cut_off_and_refused_until_it_is_enabled(hub: BackgroundHub) -> None:
    connection_string = hub.create_device("d1")
    client = client_of(hub, connection_string)
    client.connect()
    try:
        code, out, err = sim(hub, "device", "disable", "d1", "--reason", "stolen")
        assert (code, out, err) == (0, "", "d1 is disabled.\n")
        assert "status          disabled stolen\n" in sim(hub, "device", "show", "d1")[1]
        end = time.monotonic() + DEADLINE_S
        while hub.connected_clients():
            assert time.monotonic() < end
        with pytest.raises(CredentialError):
            client_of(hub, connection_string).connect()
        enabled = result(hub, "device", "enable", "d1", "--json")
        assert (enabled["status"], enabled["statusReason"]) == ("enabled", None)
        again = client_of(hub, connection_string)
        again.connect()
        again.shutdown()
    finally:
        client.shutdown()


def test_a_twin_is_replaced(hub: BackgroundHub) -> None:
    hub.create_device("d1", {"site": "north", "floor": 1})
    sim(hub, "twin", "set", "d1", '{"properties": {"desired": {"a": 1}}}')
    twin = result(hub, "twin", "replace", "d1", '{"tags": {"site": "south"}, "properties": {"desired": {"b": 2}}}')
    desired = {key: value for key, value in twin["properties"]["desired"].items() if not key.startswith("$")}
    assert (twin["tags"], desired) == ({"site": "south"}, {"b": 2})
    assert result(hub, "twin", "get", "d1") == result(hub, "twin", "show", "d1") == twin
    code, _, err = sim(hub, "twin", "replace", "d1", "{}")
    assert (code, "neither tags nor properties" in err) == (2, True)


def test_a_watcher_sees_each_change_of_a_twin(hub: BackgroundHub) -> None:
    client = client_of(hub, hub.create_device("d1"))
    watch = subprocess.Popen(
        [*SIM, "twin", "watch", "d1", "--state", str(hub.ca_file.parent)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    assert watch.stderr is not None
    assert watch.stderr.readline().startswith("Watching the twin, version ")
    try:
        sim(hub, "twin", "set", "d1", '{"properties": {"desired": {"camera": {"fps": 5}}}}')
        assert watch.stdout.readline() == "desired.camera.fps: (none) -> 5\n"
        client.connect()
        assert watch.stdout.readline() == 'connectionState: "Disconnected" -> "Connected"\n'
        client.patch_twin_reported_properties({"fps": 5})
        assert watch.stdout.readline() == "reported.fps: (none) -> 5\n"
    finally:
        client.shutdown()
        watch.send_signal(signal.SIGINT)
        watch.communicate(timeout=DEADLINE_S)
    assert watch.returncode == 0


CHANGES: dict[str, tuple[Any, Any, list[str]]] = {
    "a value": ({"tags": {"a": 1}}, {"tags": {"a": "x"}}, ['tags.a: 1 -> "x"']),
    "one that goes": ({"tags": {"a": 1, "b": 2}}, {"tags": {"b": 2}}, ["tags.a: 1 -> (gone)"]),
    "an object for a value": (
        {"tags": {"a": 1}},
        {"tags": {"a": {"b": 2}}},
        ["tags.a: 1 -> (gone)", "tags.a.b: (none) -> 2"],
    ),
    "nothing but the version": ({"tags": {}}, {"tags": {}}, ["(written anew, version 2)"]),
    "metadata": ({"$metadata": {"a": 1}}, {"$metadata": {"a": 2}}, ["(written anew, version 2)"]),
}  # fmt: skip


@pytest.mark.parametrize("story", CHANGES)
def test_changes_are_lines(story: str) -> None:
    before, after, lines = CHANGES[story]
    assert changes_between({**before, "version": 1}, {**after, "version": 2}) == lines
    assert changes_between({**after, "version": 2}, {**after, "version": 2}) == []


@pytest.fixture
def talkative(hub: BackgroundHub) -> BackgroundHub:
    """A hub to which camera-1, camera-2 and door said something."""
    for device_id, body in (("camera-1", "x" * 500), ("camera-2", "second\x1b[2J\x9b\nthird"), ("door", "open")):
        client = client_of(hub, hub.create_device(device_id))
        message = Message(body)
        message.custom_properties["kind"] = "test"
        message.content_type = "text/plain"
        client.send_message(message)
        client.shutdown()
    return hub


def test_events_are_filtered_and_shown_as_wished(talkative: BackgroundHub) -> None:
    def bodies(*arguments: str) -> list[str]:
        lines = sim(talkative, "events", "--json", *arguments)[1].splitlines()
        return [json.loads(line)["deviceId"] for line in lines]

    assert bodies() == ["camera-1", "camera-2", "door"]
    assert bodies("--device", "camera-*") == ["camera-1", "camera-2"]
    assert bodies("--device", "door", "--device", "camera-1") == ["camera-1", "door"]
    assert bodies("--module", "m") == []

    def line(*arguments: str) -> str:
        return sim(talkative, "events", *arguments)[1]

    assert "x" * 161 not in line("--device", "camera-1")
    assert "x" * 160 + "… (500 bytes)" in line("--device", "camera-1")
    assert "x" * 500 in line("--device", "camera-1", "--wide")
    shown = {
        which: ("'kind'" in text, "text/plain" in text)
        for which in ("application", "system", "all", "none")
        for text in (line("--device", "door", "--properties", which),)
    }
    assert shown == {
        "application": (True, False),
        "system": (False, True),
        "all": (True, True),
        "none": (False, False),
    }


def test_colours_are_for_terminals_and_devices_do_not_steer_them(talkative: BackgroundHub) -> None:
    command = [*SIM, "events", "--device", "camera-2", "--state", str(talkative.ca_file.parent)]
    ours, theirs = pty.openpty()
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, timeout=DEADLINE_S)
    os.close(theirs)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "\x1b[36mcamera-2\x1b[0m" in seen
    assert "\x1b[2J" not in seen
    assert "second\\x1b[2J\\x9b\\nthird" in seen
    piped = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert "\x1b" not in piped.stdout
