"""Telemetry from devices with the vendor's SDK, through a hub, into the database: all of it, once."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from azure.iot.device import IoTHubModuleClient, Message

from cloud_registry import telemetry_wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.errors import HubUnreachableError, TrustError
from cloud_registry.ports import StoreCounts
from manifests.telemetry import Envelope
from simulators.iothub.server.background import BackgroundHub
from tests.wire.registry.conftest import SLIPWAY, wait_until

pytestmark = pytest.mark.wire


def envelope(sequence: int, device: str = "dev-01", boot: str = "b1") -> Envelope:
    return Envelope(
        device=device,
        module="slipway",
        boot=boot,
        sequence=sequence,
        device_time="2026-11-21T09:00:00Z",
        model="digits",
        version=1,
        prediction="7",
        confidence=0.75,
    )


@contextmanager
def module(hub: BackgroundHub, device: str = "dev-01") -> Iterator[Callable[[Sequence[Envelope]], None]]:
    """A connected module of a device; sends envelopes as an agent does."""
    client = IoTHubModuleClient.create_from_connection_string(
        hub.create_module(device, "slipway"), server_verification_cert=hub.ca_file.read_text()
    )
    client.connect()

    def send(envelopes: Sequence[Envelope]) -> None:
        for one in envelopes:
            message = Message(one.to_json())
            message.message_id = one.message_id
            message.content_type, message.content_encoding = "application/json", "utf-8"
            client.send_message(message)

    try:
        yield send
    finally:
        client.shutdown()


def settings(home: Path, hub: BackgroundHub, **changes: str) -> RegistryConfig:
    environment = {
        "IOTHUB_CONNECTION_STRING": hub.service_connection_string,
        "SLIPWAY_CA_FILE": str(hub.ca_file),
        "SLIPWAY_TELEMETRY_URL": hub.telemetry_url,
    }
    return read_config(home, {**environment, **changes})


def collect(config: RegistryConfig, said: list[str] | None = None) -> StoreCounts:
    source = telemetry_wiring.open_telemetry_source(config, (said if said is not None else []).append)
    return telemetry_wiring.open_telemetry(config).collect(source, follow=False)


def stored(config: RegistryConfig) -> list[Envelope]:
    return list(telemetry_wiring.open_telemetry(config).envelopes())


def test_what_devices_send_arrives_once_each_and_gaps_are_seen(hub: BackgroundHub, home: Path):
    config = settings(home, hub)
    with module(hub, "dev-01") as first, module(hub, "dev-02") as second:
        first([envelope(1), envelope(2), envelope(2), envelope(5)])
        second([envelope(1, "dev-02")])
        assert collect(config) == StoreCounts(stored=4, duplicates=1)
        assert collect(config) == StoreCounts()
        first([envelope(3), envelope(6, boot="b2")])
        assert collect(config) == StoreCounts(stored=2)
    summary = telemetry_wiring.open_telemetry(config).summary()
    assert [
        (device["device"], device["received"], device["lastSeq"], device["gaps"], device["duplicates"])
        for device in summary["devices"]
    ] == [("dev-01", 5, 6, [[4, 4]], 1), ("dev-02", 1, 1, [], 0)]
    assert sorted(stored(config), key=lambda one: (one.device, one.sequence)) == [
        envelope(1),
        envelope(2),
        envelope(3),
        envelope(5),
        envelope(6, boot="b2"),
        envelope(1, "dev-02"),
    ]


def test_a_message_that_is_no_reading_is_counted_and_stops_nothing(hub: BackgroundHub, home: Path):
    config = settings(home, hub)
    client = IoTHubModuleClient.create_from_connection_string(
        hub.create_module("dev-01", "slipway"), server_verification_cert=hub.ca_file.read_text()
    )
    client.connect()
    for body in (b"hello", envelope(1).to_json(), envelope(1, "dev-02").to_json(), b"", envelope(2).to_json()):
        client.send_message(Message(body))
    client.shutdown()
    assert collect(config) == StoreCounts(stored=2, unreadable=3)
    assert telemetry_wiring.open_telemetry(config).summary()["unreadableBy"] == [
        {"device": "dev-01", "module": "slipway", "count": 3}
    ]


def test_a_backlog_of_thousands_comes_in_batches(hub: BackgroundHub, home: Path):
    config = settings(home, hub)
    backlog = [envelope(number) for number in range(1, 2501)]
    put_into_log(hub, backlog)
    batches: list[StoreCounts] = []
    source = telemetry_wiring.open_telemetry_source(config, lambda _: None)
    total = telemetry_wiring.open_telemetry(config).collect(source, follow=False, on_batch=batches.append)
    assert total == StoreCounts(stored=2500)
    assert len(batches) < 250
    assert stored(config) == backlog


def put_into_log(hub: BackgroundHub, envelopes: Sequence[Envelope]) -> None:
    """Events in the hub's log without a device that sends them one by one."""
    from simulators.iothub.core.registry import IdentityId

    for device in {one.device for one in envelopes}:
        identity = IdentityId(device, "slipway")
        if hub.call(lambda identity=identity: hub.server.switchboard.hub.registry.find(identity)) is None:
            hub.create_module(device, "slipway")

    def append() -> None:
        switchboard = hub.server.switchboard
        for one in envelopes:
            sender = IdentityId(one.device, one.module)
            switchboard.hub.accept_event(sender, {"messageId": one.message_id}, {}, one.to_json(), switchboard.now())

    hub.call(append)


class Follower:
    """`slipway telemetry collect --follow` as a process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*SLIPWAY, "telemetry", "collect", "--follow"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self.said.extend, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def stop(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        code = self.process.wait(20)
        self._reader.join(5)
        self.process.stdout.close()
        return code, output


@pytest.fixture
def follow(environment: dict[str, str]) -> Iterator[Callable[[], Follower]]:
    followers: list[Follower] = []

    def start() -> Follower:
        followers.append(Follower(environment))
        return followers[-1]

    yield start
    for follower in followers:
        if follower.process.poll() is None:
            follower.stop(signal.SIGKILL)


def test_a_follower_goes_on_through_an_outage_and_ends_when_it_is_told_to(
    hub: BackgroundHub, home: Path, follow: Callable[[], Follower]
):
    config = settings(home, hub)
    put_into_log(hub, [envelope(1)])
    follower = follow()
    wait_until(lambda: stored(config) == [envelope(1)])
    hub.go_away()
    put_into_log(hub, [envelope(2)])
    wait_until(lambda: any("Trying again until it is there" in line for line in follower.said))
    hub.come_back()
    put_into_log(hub, [envelope(3)])
    wait_until(lambda: len(stored(config)) == 3)
    assert follower.stop(signal.SIGTERM) == (0, "Stored 3 readings (0 duplicates, 0 unreadable)\n")
    assert follower.said[-2:] == ["The telemetry stream is back.\n", "Stopped.\n"]
    assert stored(config) == [envelope(1), envelope(2), envelope(3)]


def test_a_follower_that_is_killed_is_followed_by_one_that_goes_on_from_there(
    hub: BackgroundHub, home: Path, follow: Callable[[], Follower]
):
    config = settings(home, hub)
    sent = [envelope(number) for number in range(1, 1501)]
    for start in range(0, 1500, 500):
        follower = follow()
        put_into_log(hub, sent[start : start + 500])
        # Killed in the middle of its work, wherever that is.
        wait_until(lambda start=start: len(stored(config)) > start)
        follower.stop(signal.SIGKILL)
    assert collect(config).duplicates == 0
    assert stored(config) == sent
    assert telemetry_wiring.open_telemetry(config).summary()["duplicates"] == 0


def test_a_stream_that_was_begun_anew_is_read_from_its_start(hub: BackgroundHub, home: Path, tmp_path: Path):
    old = settings(home, hub)
    put_into_log(hub, [envelope(number) for number in range(1, 6)])
    assert collect(old).stored == 5
    hub.stop()
    reborn = BackgroundHub(tmp_path / "reborn", hub.address)
    try:
        new = settings(home, reborn)
        assert new.telemetry_url == old.telemetry_url
        said: list[str] = []
        put_into_log(reborn, [envelope(number) for number in range(6, 9)])
        assert collect(new, said) == StoreCounts(stored=3)
        # Another event under a number that is known is as good a sign as a log that is too short.
        put_into_log(reborn, [envelope(number) for number in range(9, 20)])
        assert collect(new, said) == StoreCounts(stored=11)
    finally:
        reborn.stop()
    assert said == ["The telemetry stream was begun anew: reading it from the start, not after 7."]
    assert telemetry_wiring.open_telemetry(new).summary()["missing"] == 0


def test_another_kind_of_event_under_a_known_number_also_says_that_the_stream_was_begun_anew(
    hub: BackgroundHub, home: Path, tmp_path: Path
):
    old = settings(home, hub)
    put_into_log(hub, [envelope(number) for number in range(1, 6)])
    assert collect(old).stored == 5
    hub.stop()
    reborn = BackgroundHub(tmp_path / "reborn", hub.address)
    try:
        # The last number that was stored is now that of a device's creation, with telemetry on both sides of it.
        put_into_log(reborn, [envelope(number) for number in range(6, 10)])
        reborn.create_device("another")
        put_into_log(reborn, [envelope(number) for number in range(10, 13)])
        said: list[str] = []
        assert collect(settings(home, reborn), said) == StoreCounts(stored=7)
    finally:
        reborn.stop()
    assert said == ["The telemetry stream was begun anew: reading it from the start, not after 7."]


def test_a_wrong_key_is_a_matter_of_trust(hub: BackgroundHub, home: Path):
    wrong = hub.service_connection_string.partition("SharedAccessKey=")[0] + "SharedAccessKey=d3Jvbmc="
    with pytest.raises(TrustError, match="the hub refused the key"):
        collect(settings(home, hub, IOTHUB_CONNECTION_STRING=wrong))


def test_a_hub_whose_certificate_nobody_vouches_for_is_not_talked_to(
    hub: BackgroundHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from simulators.iothub.server.certificates import ensure_certificates

    (tmp_path / "other").mkdir()
    other = ensure_certificates(tmp_path / "other", (hub.address,), datetime.now(UTC))
    with pytest.raises(TrustError, match="is not trusted"):
        collect(settings(home, hub, SLIPWAY_CA_FILE=str(other.ca)))


def test_a_hub_that_is_not_there_is_said_to_be_so_at_once(
    hub: BackgroundHub, home: Path, slipway: Callable[..., subprocess.CompletedProcess[str]]
):
    config = settings(home, hub)
    hub.go_away()
    with pytest.raises(HubUnreachableError):
        collect(config)
    said = slipway("telemetry", "collect")
    assert (said.returncode, said.stdout) == (4, "")
    assert said.stderr.startswith(f"Error: the telemetry stream at {hub.telemetry_url} does not answer")
    hub.come_back()


def test_the_commands_tell_what_is_stored(hub: BackgroundHub, slipway: Callable[..., subprocess.CompletedProcess[str]]):
    put_into_log(hub, [envelope(1), envelope(3)])
    collected = slipway("telemetry", "collect", "--json")
    assert json.loads(collected.stdout) == {"stored": 2, "duplicates": 0, "unreadable": 0}
    lines = slipway("telemetry", "list", "--json").stdout.splitlines()
    assert [Envelope.from_json(line) for line in lines] == [envelope(1), envelope(3)]
    assert slipway("telemetry", "list", "--json", "--limit", "1").stdout.splitlines() == lines[-1:]
    assert slipway("telemetry", "list", "--json", "--device", "dev-02").stdout == ""
    summary: dict[str, Any] = json.loads(slipway("telemetry", "summary", "--json").stdout)
    assert (summary["received"], summary["missing"], summary["devices"][0]["gaps"]) == (2, 1, [[2, 2]])
    assert slipway("telemetry", "summary").stdout.splitlines()[-1] == (
        "2 readings received, 1 missing, 0 duplicates, 0 unreadable"
    )
    assert "digits:1" in slipway("telemetry", "list").stdout
