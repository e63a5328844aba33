"""Fixtures for pytest: a hub on this machine, devices on it, and what they sent.

pytest loads this module in every environment that has Slipway, so it imports the hub only in a test that asks for it.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from simulators.iothub.core.events import Event
    from simulators.iothub.server.background import BackgroundHub

START_ATTEMPTS = 20
BATCH_EVENTS = 500
WAIT_TIMEOUT_S = 10.0
# Once it is due the hub answers at once; this is for a machine that is very busy.
ANSWER_MARGIN_S = 30.0
SCOPES = ("function", "module", "session")


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """One message that a device sent, as the hub keeps it."""

    device_id: str
    module_id: str
    body: bytes
    properties: dict[str, str]
    system_properties: dict[str, str]
    enqueued_at: float
    sequence: int

    def json(self) -> Any:
        return json.loads(self.body)


class Device:
    """A device or module that the test made."""

    def __init__(self, hub: "BackgroundHub", device_id: str, module_id: str, connection_string: str) -> None:
        self._hub = hub
        self._clients: list[Any] = []
        self.device_id = device_id
        self.module_id = module_id
        self.connection_string = connection_string

    def connect(self, **options: Any) -> Any:
        """A connected client of azure-iot-device, ended with the test; `options` are those of the SDK."""
        from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient

        kind = IoTHubModuleClient if self.module_id else IoTHubDeviceClient
        options = {"server_verification_cert": self._hub.ca_file.read_text(), **options}
        client = kind.create_from_connection_string(self.connection_string, **options)
        self._clients.append(client)
        client.connect()
        return client

    def shut_down(self) -> None:
        while self._clients:
            self._clients.pop().shutdown()


class ReceivedEvents:
    """The messages that devices sent since the test began."""

    def __init__(self, hub: "BackgroundHub") -> None:
        self._hub = hub
        self._begin = hub.call(lambda: hub.server.switchboard.hub.events.last_sequence)

    def all(self, device_id: str | None = None) -> list[ReceivedEvent]:
        """What has come so far, of one device or of all, oldest first."""
        return self._hub.call(lambda: self._read(device_id))

    def wait_for(
        self, count: int = 1, timeout_s: float = WAIT_TIMEOUT_S, device_id: str | None = None
    ) -> list[ReceivedEvent]:
        """The same, once there are `count` of them at least.

        Raises:
            AssertionError: so many did not come in time; it says what came.
        """
        __tracebackhide__ = True
        received = self._hub.wait_for(lambda: self._wait(count, timeout_s, device_id), timeout_s + ANSWER_MARGIN_S)
        if len(received) < count:
            who = device_id or "any device"
            bodies = "".join(f"\n  {event.device_id}: {event.body!r}" for event in received)
            raise AssertionError(f"{len(received)} of {count} events came from {who} in {timeout_s:g} s{bodies}")
        return received

    async def _wait(self, count: int, timeout_s: float, device_id: str | None) -> list[ReceivedEvent]:
        end = time.monotonic() + timeout_s
        while len(received := self._read(device_id)) < count:
            remaining_s = end - time.monotonic()
            if remaining_s <= 0:
                break
            await self._hub.server.switchboard.events_bell.wait(remaining_s)
        return received

    def _read(self, device_id: str | None) -> list[ReceivedEvent]:
        from simulators.iothub.core.events import TELEMETRY

        log, after, found = self._hub.server.switchboard.hub.events, self._begin, []
        while events := log.read(after, BATCH_EVENTS):
            after = events[-1].sequence
            found += [
                _received(event)
                for event in events
                if event.source == TELEMETRY and device_id in (None, event.source_id.device_id)
            ]
        return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "iothub_scope", "how long the hub of the fixture iothub lives: function, module or session", default="function"
    )


def _hub_scope(fixture_name: str, config: pytest.Config) -> Any:  # noqa: ARG001
    scope = config.getini("iothub_scope")
    if scope not in SCOPES:
        raise pytest.UsageError(f"iothub_scope is {scope!r}; {', '.join(SCOPES)} exist")
    return scope


@pytest.fixture(scope=_hub_scope)
def iothub(tmp_path_factory: pytest.TempPathFactory) -> Iterator["BackgroundHub"]:
    """A running IoT Hub; the environment leads SDKs to it and makes them trust it."""
    try:
        from simulators.hub_client import HubNote
        from simulators.iothub.server.background import BackgroundHub
    except ImportError as err:
        pytest.fail(f"the fixture iothub needs: pip install 'slipway[sim]' ({err})", pytrace=False)
    directory = tmp_path_factory.mktemp("iothub")
    running = _start(BackgroundHub, directory)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in HubNote.read(directory).environment(directory).items():
                patch.setenv(name, value)
            _trust(patch, running.ca_file)
            yield running
    finally:
        running.stop()


@pytest.fixture
def iothub_device(iothub: "BackgroundHub") -> Iterator[Callable[..., Device]]:
    """Makes devices: ``iothub_device("thermometer-1", tags={"site": "north"})``, and modules with `module_id`."""
    made: list[Device] = []

    def make(device_id: str = "device-1", module_id: str = "", tags: dict[str, Any] | None = None) -> Device:
        if module_id:
            assert tags is None, "tags are the device's: make it first, then its module"
            connection_string = iothub.create_module(device_id, module_id)
        else:
            connection_string = iothub.create_device(device_id, tags)
        made.append(Device(iothub, device_id, module_id, connection_string))
        return made[-1]

    yield make
    for device in made:
        device.shut_down()


@pytest.fixture
def iothub_events(iothub: "BackgroundHub") -> ReceivedEvents:
    """What devices sent in this test: ``iothub_events.wait_for(count=1, timeout_s=10)``."""
    return ReceivedEvents(iothub)


def _start(kind: "type[BackgroundHub]", directory: Path) -> "BackgroundHub":
    """A hub on a free loopback address, as the device SDK knows one port only; 127.0.0.1 where there is no other."""
    from simulators.iothub.errors import HubStartError

    for _ in range(START_ATTEMPTS):
        address = ".".join(map(str, (127, *(random.randint(1, 250) for _ in range(3)))))  # noqa: S311
        try:
            return kind(directory, address)
        except HubStartError:
            continue
    return kind(directory)


def _trust(patch: pytest.MonkeyPatch, ca_file: Path) -> None:
    """The hub is trusted besides everybody else: a test may call other servers too."""
    import certifi

    bundle = ca_file.with_name("trusted.pem")
    bundle.write_text(f"{Path(certifi.where()).read_text()}\n{ca_file.read_text()}")
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        patch.setenv(name, str(bundle))
    # uamqp and azure-eventhub ask certifi, and heed no variable.
    patch.setattr(certifi, "where", lambda: str(bundle))


def _received(event: "Event") -> ReceivedEvent:
    return ReceivedEvent(
        device_id=event.source_id.device_id,
        module_id=event.source_id.module_id,
        body=event.body,
        properties=event.properties,
        system_properties=event.system_properties,
        enqueued_at=event.enqueued_at,
        sequence=event.sequence,
    )
