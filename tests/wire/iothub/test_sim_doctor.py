"""`slipway-sim doctor` tells what keeps a client from the hub, one cause at a time."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import certifi
import pytest

from simulators.hub_client import HubNote
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
SIM = (sys.executable, "-m", "simulators.cli")
NAMES = [
    "name",
    "ports",
    "port 443",
    "clock and certificate",
    "service key",
    "connection strings",
    "trust of azure-iot-device",
    "trust of azure-iot-hub over REST",
    "trust of uamqp and azure-eventhub over TLS",
]


def doctor(state: Path, variables: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    command = [*SIM, "doctor", "--state", str(state), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def findings(state: Path, variables: dict[str, str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = doctor(state, variables, "--json", *arguments)
    found = json.loads(out)
    assert [finding["check"] for finding in found] == NAMES
    assert all(bool(finding["fix"]) == (finding["ok"] is not True) for finding in found)
    return code, {finding["check"]: finding["ok"] for finding in found}


@pytest.fixture
def exports(hub: BackgroundHub) -> dict[str, str]:
    state = hub.ca_file.parent
    return HubNote.read(state).environment(state)


@pytest.fixture
def venv(tmp_path: Path, hub: BackgroundHub) -> Path:
    """An environment whose certifi trusts the hub."""
    bundle = tmp_path / "venv" / "lib" / "python3.11" / "site-packages" / "certifi" / "cacert.pem"
    bundle.parent.mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    bundle.write_text(Path(certifi.where()).read_text() + hub.ca_file.read_text())
    return tmp_path / "venv"


def test_nothing_is_found_where_all_is_well(hub: BackgroundHub, exports: dict[str, str], venv: Path) -> None:
    is_443 = True if hub.endpoints.https_port == 443 else None
    code, found = findings(hub.ca_file.parent, exports, "--venv", str(venv))
    assert (code, found) == (0, {**dict.fromkeys(NAMES, True), "port 443": is_443})


# What is taken from a healthy environment, and what is then found and exited with.
ILLS: dict[str, tuple[str, dict[str, bool], int]] = {
    "the device SDK does not trust": ("SSL_CERT_FILE", {"trust of azure-iot-device": False}, 7),
    "requests does not trust": ("REQUESTS_CA_BUNDLE", {"trust of azure-iot-hub over REST": False}, 7),
    "no connection string is set": ("IOTHUB_CONNECTION_STRING", {"connection strings": False}, 1),
}


@pytest.mark.parametrize("ill", ILLS)
def test_one_cause_is_one_finding(hub: BackgroundHub, exports: dict[str, str], venv: Path, ill: str) -> None:
    variable, wanted, exit_code = ILLS[ill]
    del exports[variable]
    code, found = findings(hub.ca_file.parent, exports, "--venv", str(venv))
    is_443 = found.pop("port 443")
    assert is_443 is (True if hub.endpoints.https_port == 443 else None)
    assert ({name: ok for name, ok in found.items() if ok is not True}, code) == (wanted, exit_code)


def test_connection_strings_are_told_by_what_is_wrong_with_each(hub: BackgroundHub, exports: dict[str, str]) -> None:
    del exports["IOTHUB_CONNECTION_STRING"]
    exports["EVENTHUB_CONNECTION_STRING"] = "Endpoint=sb://elsewhere/"
    _, out, _ = doctor(hub.ca_file.parent, exports)
    said = "connection strings: not set: IOTHUB_CONNECTION_STRING; of another hub: EVENTHUB_CONNECTION_STRING"
    assert f"FAILS  {said}" in out


def test_certifi_is_a_note_since_few_programs_mind(hub: BackgroundHub, exports: dict[str, str], venv: Path) -> None:
    (bundle,) = venv.rglob("cacert.pem")
    shutil.copy(certifi.where(), bundle)
    code, out, _ = doctor(hub.ca_file.parent, exports, "--venv", str(venv))
    assert code == 0
    assert f"note   trust of uamqp and azure-eventhub over TLS: {bundle}: the certificate is not accepted" in out
    assert "slipway-sim trust --venv VENV" in out


def test_a_hub_that_stopped_listening_is_not_reached(hub: BackgroundHub, exports: dict[str, str], venv: Path) -> None:
    hub.go_away()
    code, found = findings(hub.ca_file.parent, exports, "--venv", str(venv))
    hub.come_back()
    assert (code, found["name"], found["ports"], found["service key"]) == (4, True, False, False)


def test_without_a_hub_it_says_how_to_start_one(tmp_path: Path) -> None:
    code, out, err = doctor(tmp_path, {})
    assert (code, out, f"slipway-sim hub --state {tmp_path}" in err) == (4, "", True)


def test_8443_is_told_with_its_cure(tmp_path: Path) -> None:
    address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
    running = BackgroundHub(tmp_path / "hub", address, https_port=8443)
    try:
        state = running.ca_file.parent
        code, out, _ = doctor(state, HubNote.read(state).environment(state))
    finally:
        running.stop()
    assert code == 0
    assert "note   port 443: HTTPS is on 8443\n" in out
    assert "ip_unprivileged_port_start=443" in out
