"""A hub in the background: started, asked how it is, trusted and stopped from the command line."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.iot.device import IoTHubDeviceClient

pytestmark = pytest.mark.wire
DEADLINE_S = 30.0
SIM = (sys.executable, "-m", "simulators.cli")


def sim(state: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    environment = {**os.environ, "SLIPWAY_SIM_STATE": str(state), **variables}
    done = subprocess.run([*SIM, *arguments], capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def address() -> str:
    return f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"


@pytest.fixture
def state(tmp_path: Path, address: str) -> Iterator[Path]:
    directory = tmp_path / "it's a hub"
    code, _, err = sim(directory, "hub", "--address", address, "--detach")
    assert code == 0, err
    yield directory
    sim(directory, "stop")


def test_a_detached_hub_is_ready_when_the_command_returns(state: Path, address: str) -> None:
    code, out, err = sim(state, "status", "--json")
    seen = json.loads(out)
    assert (code, err) == (0, "")
    uptime_s, ports = seen.pop("uptimeSeconds"), seen.pop("ports")
    assert 0 <= uptime_s < DEADLINE_S
    assert (ports["mqtt"], ports["amqps"], ports["amqp"], ports["https"] in (443, 8443)) == (8883, 5671, 5672, True)
    assert seen == {
        "running": True,
        "state": str(state),
        "pid": json.loads((state / "hub.json").read_text())["pid"],
        "hostName": address,
        "address": address,
        "devices": 0,
        "connected": 0,
        "log": str(state / "hub.log"),
    }
    os.kill(seen["pid"], 0)
    assert os.getsid(seen["pid"]) == seen["pid"]
    assert "Service connection string" in (state / "hub.log").read_text()


def test_a_broker_that_has_the_ports_of_amqp_is_no_obstacle(tmp_path: Path, address: str) -> None:
    with socket.create_server((address, 5672)):
        code, _, err = sim(tmp_path, "hub", "--address", address, "--detach")
        assert code == 1
        assert f"cannot serve AMQP on {address} port 5672: Address already in use" in err
        assert "--amqp-port" in err
        assert (
            sim(tmp_path, "hub", "--address", address, "--amqp-port", "15672", "--amqps-port", "15671", "--detach")[0]
            == 0
        )
    ports = json.loads(sim(tmp_path, "status", "--json")[1])["ports"]
    assert (ports["amqp"], ports["amqps"]) == (15672, 15671)
    assert f"Endpoint=sb://{address}:15672/;" in sim(tmp_path, "env")[1]
    assert sim(tmp_path, "stop")[0] == 0


def test_status_counts_devices_and_connections(state: Path) -> None:
    _, connection_string, _ = sim(state, "device", "create", "d1")
    sim(state, "device", "create", "d2")
    authority = (state / "ca.pem").read_text()
    client = IoTHubDeviceClient.create_from_connection_string(
        connection_string.strip(), server_verification_cert=authority
    )
    client.connect()
    try:
        assert "devices   2, 1 connected" in sim(state, "status")[1].splitlines()
    finally:
        client.shutdown()


def test_stop_waits_until_the_hub_is_gone(state: Path, address: str) -> None:
    code, out, err = sim(state, "stop")
    assert (code, out, "has stopped" in err) == (0, "", True)
    assert not (state / "hub.json").exists()
    code, out, err = sim(state, "status", "--json")
    assert (code, json.loads(out)) == (4, {"running": False, "state": str(state)})
    assert sim(state, "stop")[0] == 4
    # Ports and lock are free: the next one may come at once.
    assert sim(state, "hub", "--address", address, "--detach")[0] == 0
    assert (state / "hub.log.old").exists()


def test_a_detached_hub_that_cannot_start_tells_why(state: Path, address: str, tmp_path: Path) -> None:
    code, _, err = sim(state, "hub", "--address", address, "--detach")
    assert (code, f"a hub is running with the state in {state} already" in err) == (5, True)
    code, out, err = sim(tmp_path / "other", "hub", "--address", address, "--detach")
    assert (code, out) == (1, "")
    assert f"cannot serve MQTT on {address} port 8883: Address already in use" in err
    assert "--address 127.0.0.2" in err


def test_two_hubs_run_side_by_side(state: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    assert sim(second, "hub", "--address", address, "--detach")[0] == 0
    try:
        sim(second, "device", "create", "only-there")
        counts = [json.loads(sim(place, "status", "--json")[1])["devices"] for place in (state, second)]
        assert counts == [0, 1]
    finally:
        assert sim(second, "stop")[0] == 0
    assert sim(state, "status")[0] == 0


def test_a_killed_hub_is_not_taken_for_a_running_one(state: Path, address: str) -> None:
    pid = json.loads(sim(state, "status", "--json")[1])["pid"]
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + DEADLINE_S
    while sim(state, "status")[0] == 0:
        assert time.monotonic() < end
    for command in ("status", "stop", "env"):
        code, _, err = sim(state, command)
        assert (command, code, "its last hub was killed" in err) == (command, 4, True)
    assert sim(state, "hub", "--address", address, "--detach")[0] == 0


def test_a_hub_on_8443_says_who_will_not_find_it(tmp_path: Path, address: str) -> None:
    code, out, err = sim(tmp_path, "hub", "--address", address, "--https-port", "8443", "--detach")
    try:
        assert (code, "HTTPS 8443" in out, f"HostName={address}:8443;" in out) == (0, True, True)
        assert "HTTPS is on port 8443, as 443 could not be had or was not wanted" in err
        assert sim(tmp_path, "device", "list")[0] == 0
    finally:
        sim(tmp_path, "stop")


def test_env_is_a_script_for_fish_too(state: Path) -> None:
    note = json.loads((state / "hub.json").read_text())
    _, script, _ = sim(state, "env", "--shell", "fish")
    quoted = str(state).replace("'", "\\'")
    assert script.splitlines()[0] == (
        f"set --global --export IOTHUB_CONNECTION_STRING '{note['serviceConnectionString']}';"
    )
    assert script.splitlines()[-1] == f"set --global --export SLIPWAY_SIM_STATE '{quoted}';"
    assert sim(state, "env", SHELL="/usr/bin/fish")[1] == script
    assert sim(state, "env", SHELL="/bin/bash")[1].startswith("export ")


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_takes_its_environment_from_the_hub(state: Path) -> None:
    script = sim(state, "env", "--shell", "fish")[1] + "\necho $SLIPWAY_SIM_STATE"
    shell = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True)
    assert shell.stdout == f"{state}\n"


def test_env_takes_back_what_it_set(state: Path) -> None:
    sets, unsets = sim(state, "env", "--shell", "sh")[1], sim(state, "env", "--shell", "sh", "--unset")[1]
    script = f"set -eu\n{sets}\n: $SSL_CERT_FILE\n{unsets}\nenv"
    clean = {"PATH": os.environ["PATH"]}
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env=clean)
    assert {line.partition("=")[0] for line in shell.stdout.splitlines()} <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_the_shell(tmp_path: Path, shell: str) -> None:
    code, out, _ = sim(tmp_path, "completion", shell)
    assert (code, "_SLIPWAY_SIM_COMPLETE" in out, "slipway-sim" in out) == (0, True, True)
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=out, text=True, check=True)
