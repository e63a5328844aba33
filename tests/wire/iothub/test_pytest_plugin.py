"""The pytest plugin as its users have it: by its entry point, in projects of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.wire
ROOT = Path(__file__).parents[3]
DEADLINE_S = 100.0


def run(directory: Path, test: str, *options: str) -> tuple[int, str]:
    (directory / "test_mine.py").write_text(test)
    (directory / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=DEADLINE_S)
    return done.returncode, done.stdout + done.stderr


def example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing-with-slipway.md").read_text(), re.DOTALL)
    return str(found)


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    assert len([line for line in example().splitlines() if line.strip()]) <= 20
    code, text = run(tmp_path, example())
    assert (code, "1 passed" in text) == (0, True), text


def test_the_example_fails_when_the_program_does_not_do_its_work(tmp_path: Path) -> None:
    silent = example().replace("    thermometer.send_message", "    str").replace("timeout_s=10", "timeout_s=0.2")
    code, text = run(tmp_path, silent)
    assert (code, "AssertionError: 0 of 1 events came from any device in 0.2 s" in text) == (1, True), text


TRUST = """
import os, ssl, socket
import certifi, requests
from azure.eventhub import EventHubConsumerClient
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.device import IoTHubDeviceClient

BEFORE = certifi.where(), os.environ.get("SSL_CERT_FILE")

def test_every_sdk_trusts_the_hub_untold(iothub, iothub_device, iothub_events):
    device = iothub_device("d1", tags={"site": "north"})
    client = IoTHubDeviceClient.create_from_connection_string(device.connection_string)
    client.connect()
    client.send_message("hello")
    assert [event.body for event in iothub_events.wait_for()] == [b"hello"]
    received = []
    client.on_message_received = received.append
    manager = IoTHubRegistryManager.from_connection_string(os.environ["IOTHUB_CONNECTION_STRING"])
    assert manager.get_twin("d1").tags == {"site": "north"}
    manager.send_c2d_message("d1", "over AMQP, which asks certifi")
    with_tls = os.environ["EVENTHUB_CONNECTION_STRING"].replace(";UseDevelopmentEmulator=true", "")
    with EventHubConsumerClient.from_connection_string(with_tls, "$Default") as consumer:
        assert len(consumer.get_partition_ids()) == 4
    client.shutdown()

def test_other_servers_stay_trusted(iothub):
    theirs, both = open(BEFORE[0]).read(), open(certifi.where()).read()
    assert theirs in both and iothub.ca_file.read_text() in both

def test_afterwards_all_is_as_before():
    assert (certifi.where(), os.environ.get("SSL_CERT_FILE")) == BEFORE
    assert "IOTHUB_CONNECTION_STRING" not in os.environ
"""


def test_every_sdk_trusts_the_hub_for_as_long_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IOTHUB_CONNECTION_STRING", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    code, text = run(tmp_path, TRUST)
    assert (code, "3 passed" in text) == (0, True), text


SHARED = """
import pytest
HOSTS = []

@pytest.mark.parametrize("number", [1, 2])
def test_of_a_shared_hub(iothub, iothub_device, iothub_events, number):
    HOSTS.append(iothub.address)
    assert HOSTS == [iothub.address] * number
    device, module = iothub_device(f"d{number}"), iothub_device(f"d{number}", "camera")
    assert iothub_events.all() == []
    device.connect().send_message("of the device")
    module.connect().send_message("of the module")
    of_both = iothub_events.wait_for(2, device_id=f"d{number}")
    assert {(event.module_id, event.body) for event in of_both} == {
        ("", b"of the device"), ("camera", b"of the module")
    }
    assert iothub_events.all("nobody") == []

def test_clients_of_earlier_tests_are_gone(iothub):
    assert iothub.connected_clients() == []
"""


def test_tests_may_share_a_hub_and_not_their_events(tmp_path: Path) -> None:
    code, text = run(tmp_path, SHARED, "-o", "iothub_scope=session")
    assert (code, "3 passed" in text) == (0, True), text
    code, text = run(tmp_path, SHARED, "-o", "iothub_scope=fortnight")
    assert (code != 0, "iothub_scope is 'fortnight'; function, module, session exist" in text) == (True, True), text


UNUSED = """
import sys

def test_nothing_of_the_hub_is_imported():
    ours = {name for name in sys.modules if name.startswith("simulators")}
    assert ours <= {"simulators", "simulators.pytest_plugin"}
    assert not {"aiohttp", "cryptography", "uvloop", "lark", "azure.iot"} & set(sys.modules)
"""


def test_a_project_that_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    code, text = run(tmp_path, UNUSED, "-p", "slipway_iothub")
    assert (code, "1 passed" in text) == (0, True), text
