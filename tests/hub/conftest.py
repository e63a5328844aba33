"""One hub for the contract suite: the simulated one, or a real one where its connection string is given.

SLIPWAY_CONTRACT_HUB is the service connection string (policy iothubowner) of a hub that may be written to; a free one
will do. SLIPWAY_CONTRACT_EVENTHUB is the connection string of its built-in endpoint. Everything made there has a name
that starts with ``contract-`` and is deleted again.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import certifi
import pytest
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient
from azure.iot.hub import IoTHubRegistryManager
from msrest.exceptions import HttpOperationError

from tests.wire.conftest import start_hub

DEADLINE_S = 30.0
REAL_HUB = os.environ.get("SLIPWAY_CONTRACT_HUB", "")
REAL_EVENT_HUB = os.environ.get("SLIPWAY_CONTRACT_EVENTHUB", "")


@dataclass(frozen=True)
class HubUnderTest:
    """What a stranger knows of a hub."""

    service_connection_string: str
    device_host: str
    ca_certificate: str | None
    event_hub_connection_string: str
    is_real: bool

    def device_options(self) -> dict[str, Any]:
        return {} if self.ca_certificate is None else {"server_verification_cert": self.ca_certificate}


@dataclass(frozen=True)
class Thing:
    """A device that a test has for itself."""

    device_id: str
    connection_string: str
    hub: HubUnderTest

    def client(self, **options: Any) -> IoTHubDeviceClient:
        return IoTHubDeviceClient.create_from_connection_string(
            self.connection_string, **{**self.hub.device_options(), **options}
        )


def eventually(reached: Callable[[], Any], what: str) -> Any:
    """Wait for a value that is true and return it."""
    end_s = time.monotonic() + DEADLINE_S
    while not (value := reached()):
        assert time.monotonic() < end_s, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.02 if not REAL_HUB else 1.0)
    return value


def refused(call: Callable[[], Any]) -> tuple[int, str]:
    """How the service refuses a call: HTTP status and reason phrase."""
    with pytest.raises(HttpOperationError) as err:
        call()
    return err.value.response.status_code, err.value.response.reason


@pytest.fixture(scope="session")
def hub_under_test(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubUnderTest]:
    if REAL_HUB:
        host = dict(part.split("=", 1) for part in REAL_HUB.split(";"))["HostName"]
        yield HubUnderTest(REAL_HUB, host, None, REAL_EVENT_HUB, is_real=True)
        return
    running = start_hub(tmp_path_factory.mktemp("contract") / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(running.ca_file))
        # uamqp, with which azure-iot-hub sends messages to devices, trusts certifi's bundle and nothing else.
        patch.setattr(certifi, "where", lambda: str(running.ca_file))
        yield HubUnderTest(
            running.service_connection_string,
            running.host_name,
            running.ca_file.read_text(),
            running.event_hub_connection_string,
            is_real=False,
        )
    running.stop()


@pytest.fixture
def registry(hub_under_test: HubUnderTest) -> Iterator[IoTHubRegistryManager]:
    manager = IoTHubRegistryManager.from_connection_string(hub_under_test.service_connection_string)
    yield manager
    manager.amqp_svc_client.disconnect_sync()


@pytest.fixture
def new_id(registry: IoTHubRegistryManager) -> Iterator[Callable[[], str]]:
    """Ids for devices; what was made under them is deleted at the end."""
    given: list[str] = []

    def give() -> str:
        given.append(f"contract-{uuid.uuid4().hex[:12]}")
        return given[-1]

    yield give
    for device_id in given:
        # A test may have deleted it itself.
        with contextlib.suppress(HttpOperationError):
            registry.delete_device(device_id)


@pytest.fixture
def thing(registry: IoTHubRegistryManager, hub_under_test: HubUnderTest, new_id: Callable[[], str]) -> Thing:
    device_id = new_id()
    key = registry.create_device_with_sas(device_id, None, None, "enabled").authentication.symmetric_key.primary_key
    return Thing(
        device_id, f"HostName={hub_under_test.device_host};DeviceId={device_id};SharedAccessKey={key}", hub_under_test
    )


@pytest.fixture
def connected(thing: Thing) -> Iterator[IoTHubDeviceClient]:
    client = thing.client()
    client.connect()
    yield client
    client.shutdown()


@pytest.fixture
def module(thing: Thing, registry: IoTHubRegistryManager, hub_under_test: HubUnderTest) -> Iterator[IoTHubModuleClient]:
    """A connected module `m1` on the thing."""
    made = registry.create_module_with_sas(thing.device_id, "m1", "", None, None)
    key = made.authentication.symmetric_key.primary_key
    client = IoTHubModuleClient.create_from_connection_string(
        f"HostName={hub_under_test.device_host};DeviceId={thing.device_id};ModuleId=m1;SharedAccessKey={key}",
        **hub_under_test.device_options(),
    )
    client.connect()
    yield client
    client.shutdown()
