"""The command line `slipway-sim`, as processes that a person or a script would start."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.wire
DEADLINE_S = 30.0
SIM = (sys.executable, "-m", "simulators.cli")


def start(state: Path, address: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [*SIM, "hub", "--state", str(state), "--address", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + DEADLINE_S
    while pid_in(state / "hub.json") != process.pid:
        assert process.poll() is None, "the hub ended before it was ready"
        assert time.monotonic() < end, "the hub did not become ready"
        time.sleep(0.02)
    return process


def pid_in(note: Path) -> int | None:
    """Whose note it is; one that a killed hub left does not count."""
    try:
        return int(json.loads(note.read_text())["pid"])
    except FileNotFoundError:
        return None


def stop(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


@pytest.fixture
def address() -> str:
    return f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"


@pytest.fixture
def state(tmp_path: Path, address: str) -> Iterator[Path]:
    directory = tmp_path / "with a blank"
    process = start(directory, address)
    yield directory
    if process.poll() is None:
        stop(process)


def sim(state: Path, *arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "SLIPWAY_SIM_STATE": str(state), "REQUESTS_CA_BUNDLE": "/nowhere"}
    done = subprocess.run([*SIM, *arguments], capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def result(state: Path, *arguments: str) -> Any:
    code, out, err = sim(state, *arguments)
    assert code == 0, err
    return json.loads(out)


def test_a_hub_says_where_it_is_and_leaves_no_trace_of_running(tmp_path: Path, address: str) -> None:
    process = start(tmp_path / "hub", address)
    note = json.loads((tmp_path / "hub" / "hub.json").read_text())
    assert note["pid"] == process.pid
    assert note.keys() == {
        "pid",
        "hostName",
        "address",
        "mqttPort",
        "httpsPort",
        "serviceConnectionString",
        "caFile",
        "certificateFile",
        "keyFile",
        "telemetryUrl",
        "amqpPort",
        "amqpsPort",
        "eventHubConnectionString",
        "idScope",
        "provisioningConnectionString",
    }
    for name in ("hub.json", "policies.json", "hub-key.pem", "ca-key.pem", "id-scope"):
        assert stat.S_IMODE((tmp_path / "hub" / name).stat().st_mode) == 0o600, name
    code, out, err = stop(process)
    assert code == 0
    assert note["serviceConnectionString"] in out
    assert note["caFile"] in out
    assert "Traceback" not in err
    assert not (tmp_path / "hub" / "hub.json").exists()


def test_keys_and_trust_outlive_the_hub(tmp_path: Path, address: str) -> None:
    notes = []
    for _ in range(2):
        process = start(tmp_path, address)
        note = json.loads((tmp_path / "hub.json").read_text())
        notes.append((note["serviceConnectionString"], Path(note["caFile"]).read_text()))
        stop(process)
    assert notes[0] == notes[1]


def test_what_keeps_a_hub_from_starting(state: Path, address: str, tmp_path: Path) -> None:
    taken = sim(state, "hub", "--state", str(tmp_path / "other"), "--address", address)
    assert (taken[0], taken[2].splitlines()[-2]) == (
        1,
        f"Error: cannot serve MQTT on {address} port 8883: Address already in use",
    )
    again = sim(state, "hub")
    assert (again[0], again[2].splitlines()[0]) == (
        1,
        f"Error: a hub is running with the state in {state} already",
    )
    (tmp_path / "file").write_text("")
    nowhere = sim(state, "hub", "--state", str(tmp_path / "file" / "below"))
    assert (nowhere[0], "cannot use" in nowhere[2]) == (1, True)


def test_a_shell_takes_its_environment_from_the_hub(state: Path) -> None:
    code, out, _ = sim(state, "env")
    assert code == 0
    names = ("IOTHUB_CONNECTION_STRING", "EVENTHUB_CONNECTION_STRING", "SLIPWAY_CA_FILE", "SLIPWAY_TELEMETRY_URL")
    script = "\n".join((out, *(f'echo "${name}"' for name in names)))
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    note = json.loads((state / "hub.json").read_text())
    keys = ("serviceConnectionString", "eventHubConnectionString", "caFile", "telemetryUrl")
    assert shell.stdout.splitlines() == [note[key] for key in keys]


def test_devices_and_twins_at_the_terminal(state: Path) -> None:
    created = result(state, "device", "create", "d1", "--module", "slipway", "--tag", "site=north", "--json")
    assert created == {
        "deviceId": "d1",
        "moduleId": "slipway",
        "connectionString": sim(state, "device", "connection-string", "d1", "--module", "slipway")[1].strip(),
    }
    assert sim(state, "device", "create", "d2")[1].startswith("HostName=127.")
    assert result(state, "device", "list", "--json") == [
        {
            "deviceId": "d1",
            "status": "enabled",
            "connectionState": "Disconnected",
            "tags": {"site": "north"},
            "modules": [{"moduleId": "slipway", "connectionState": "Disconnected"}],
        },
        {"deviceId": "d2", "status": "enabled", "connectionState": "Disconnected", "tags": {}, "modules": []},
    ]
    patch = '{"properties": {"desired": {"a": 1}}}'
    assert result(state, "twin", "set", "d1", patch, "--module", "slipway")["properties"]["desired"]["a"] == 1
    assert result(state, "twin", "show", "d1", "--module", "slipway", "--json")["version"] == 3
    query = "SELECT deviceId FROM devices WHERE tags.site = 'north'"
    assert result(state, "query", query, "--json") == [{"deviceId": "d1"}]
    assert sim(state, "events", "--json") == (0, "", "")
    assert sim(state, "device", "delete", "d1")[0] == 0
    assert [device["deviceId"] for device in result(state, "device", "list", "--json")] == ["d2"]


REFUSED: dict[str, tuple[tuple[str, ...], int, str]] = {
    "a device that exists": (("device", "create", "there"), 5, "DeviceAlreadyExists"),
    "a device that does not": (("twin", "show", "nobody"), 6, "DeviceNotFound"),
    "a module that does not": (("device", "delete", "there", "--module", "m"), 6, "ModuleNotFound"),
    "a method on who is away": (("method", "there", "ping"), 6, "DeviceNotOnline"),
    "a query that is none": (("query", "SELECT"), 2, "the query ends too early"),
    "a patch that is no JSON": (("twin", "set", "there", "{"), 2, "the patch is not JSON"),
    "a patch of nothing": (("twin", "set", "there", '{"desired": {}}'), 2, "neither tags nor properties"),
    "a payload that is no JSON": (("method", "there", "ping", "--payload", "x"), 2, "the payload is not JSON"),
    "a tag that is none": (("device", "create", "new", "--tag", "site"), 2, "is not KEY=VALUE"),
}


def test_refusals_have_a_sentence_and_a_code(state: Path) -> None:
    sim(state, "device", "create", "there")
    for story, (arguments, code, sentence) in REFUSED.items():
        seen, out, err = sim(state, *arguments)
        assert (story, seen, out) == (story, code, "")
        assert err.startswith("Error: "), story
        assert sentence in err, story


def test_without_a_hub_every_command_says_how_to_start_one(tmp_path: Path) -> None:
    for arguments in (
        ("env",),
        ("status",),
        ("stop",),
        ("device", "list"),
        ("events",),
        ("query", "SELECT * FROM devices"),
    ):
        code, out, err = sim(tmp_path, *arguments)
        assert (code, out) == (4, "")
        assert f"Start one with: slipway-sim hub --state {tmp_path}" in err


def test_a_hub_that_was_killed_is_found_out(tmp_path: Path, address: str) -> None:
    process = start(tmp_path, address)
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    code, _, err = sim(tmp_path, "device", "list")
    assert (code, "its last hub was killed" in err) == (4, True)
    again = start(tmp_path, address)
    assert sim(tmp_path, "device", "list")[0] == 0
    stop(again)


def test_a_follower_learns_that_the_hub_stopped(state: Path) -> None:
    follower = subprocess.Popen(
        [*SIM, "events", "--follow", "--state", str(state)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    os.kill(json.loads((state / "hub.json").read_text())["pid"], signal.SIGTERM)
    out, err = follower.communicate(timeout=DEADLINE_S)
    assert (follower.returncode, out) == (4, "")
    assert err.startswith("Error: ")
