"""Telemetry through an Event Hubs endpoint, by the vendor's SDK, into the database: all of it, once."""

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud_registry import telemetry_wiring
from cloud_registry.config import RegistryConfig, read_config
from cloud_registry.errors import HubUnreachableError, TrustError, UsageError
from cloud_registry.ports import StoreCounts
from manifests.telemetry import Envelope
from simulators.iothub.server.background import BackgroundHub
from tests.wire.registry.conftest import wait_until
from tests.wire.registry.test_hub_telemetry import Follower, envelope, module, put_into_log, stored

pytestmark = pytest.mark.wire
DEVICES = [f"dev-{number:02d}" for number in range(1, 9)]


def settings(home: Path, hub: BackgroundHub, **changes: str) -> RegistryConfig:
    environment = {
        "EVENTHUB_CONNECTION_STRING": encrypted(hub),
        "SLIPWAY_CA_FILE": str(hub.ca_file),
    }
    return read_config(home, {**environment, **changes})


def encrypted(hub: BackgroundHub) -> str:
    """The endpoint over TLS, as Azure has it; the plain port is for emulators."""
    return hub.event_hub_connection_string.replace(";UseDevelopmentEmulator=true", "")


def keep_quiet(hub: BackgroundHub) -> None:
    """No events of the hub's own, so that the last event of a partition is a reading."""
    hub.call(lambda: setattr(hub.server.switchboard.hub.own_events, "sources", frozenset()))


def collect(config: RegistryConfig, said: list[str] | None = None) -> StoreCounts:
    sources = telemetry_wiring.open_telemetry_sources(config, (said if said is not None else []).append)
    return telemetry_wiring.open_telemetry(config).collect_all(sources, follow=False)


def ordered(config: RegistryConfig) -> list[Envelope]:
    return sorted(stored(config), key=lambda one: (one.device, one.sequence))


def test_what_devices_send_arrives_once_each_from_every_partition(hub: BackgroundHub, home: Path):
    config = settings(home, hub)
    sent = [envelope(number, device) for device in DEVICES for number in range(1, 41)]
    keep_quiet(hub)
    put_into_log(hub, sent)
    with module(hub, "dev-20") as send:
        send([envelope(1, "dev-20")])
    names = [source.name for source in telemetry_wiring.open_telemetry_sources(config, lambda _: None)]
    assert len(set(names)) == len(names) == 4
    assert not any("SharedAccessKey" in name for name in names)
    assert collect(config) == StoreCounts(stored=len(sent) + 1)
    assert collect(config) == StoreCounts()
    put_into_log(hub, [envelope(41, "dev-01"), envelope(41, "dev-01")])
    assert collect(config) == StoreCounts(stored=1, duplicates=1)
    assert ordered(config) == sorted(
        [*sent, envelope(1, "dev-20"), envelope(41, "dev-01")], key=lambda one: (one.device, one.sequence)
    )


def test_the_hubs_own_events_are_passed_over(hub: BackgroundHub, home: Path):
    config = settings(home, hub)
    put_into_log(hub, [envelope(1)])
    hub.create_device("another")
    assert collect(config) == StoreCounts(stored=1)


# How many readings the endpoint has after it was made anew, of five that were collected before.
@pytest.mark.parametrize("count", [3, 8])
def test_an_endpoint_that_was_made_anew_is_read_from_its_start(
    hub: BackgroundHub, home: Path, tmp_path: Path, count: int
):
    keep_quiet(hub)
    put_into_log(hub, [envelope(number) for number in range(1, 6)])
    assert collect(settings(home, hub)) == StoreCounts(stored=5)
    hub.stop()
    reborn = BackgroundHub(tmp_path / "reborn", hub.address)
    said: list[str] = []
    try:
        keep_quiet(reborn)
        put_into_log(reborn, [envelope(number) for number in range(6, 6 + count)])
        assert collect(settings(home, reborn), said) == StoreCounts(stored=count)
    finally:
        reborn.stop()
    assert len(said) == 1
    assert said[0].endswith("was begun anew: reading it from the start, not after 5.")


@pytest.fixture
def follow(environment: dict[str, str], hub: BackgroundHub):
    changed = {**environment, "EVENTHUB_CONNECTION_STRING": encrypted(hub)}
    del changed["SLIPWAY_TELEMETRY_URL"]
    followers: list[Follower] = []

    def start() -> Follower:
        followers.append(Follower(changed))
        return followers[-1]

    yield start
    for follower in followers:
        if follower.process.poll() is None:
            follower.stop(signal.SIGKILL)


def test_a_follower_reads_all_partitions_at_once_and_goes_on_after_a_kill_and_an_outage(
    hub: BackgroundHub, home: Path, follow: Callable[[], Follower]
):
    config = settings(home, hub)
    put_into_log(hub, [envelope(1, device) for device in DEVICES])
    first = follow()
    wait_until(lambda: len(stored(config)) == len(DEVICES))
    first.stop(signal.SIGKILL)
    put_into_log(hub, [envelope(2, device) for device in DEVICES])
    second = follow()
    wait_until(lambda: len(stored(config)) == 2 * len(DEVICES))
    hub.go_away()
    wait_until(lambda: any("Trying again until it is there" in line for line in second.said))
    hub.come_back()
    put_into_log(hub, [envelope(3, device) for device in DEVICES])
    wait_until(lambda: len(stored(config)) == 3 * len(DEVICES))
    code, output = second.stop(signal.SIGTERM)
    assert (code, output) == (0, f"Stored {2 * len(DEVICES)} readings (0 duplicates, 0 unreadable)\n")
    assert telemetry_wiring.open_telemetry(config).summary()["missing"] == 0


def test_a_wrong_key_is_a_matter_of_trust(hub: BackgroundHub, home: Path):
    wrong = re.sub("SharedAccessKey=[^;]*", "SharedAccessKey=d3Jvbmc=", encrypted(hub))
    with pytest.raises(TrustError, match="refused the key"):
        collect(settings(home, hub, EVENTHUB_CONNECTION_STRING=wrong))


def test_a_certificate_that_nobody_vouches_for_ends_it(hub: BackgroundHub, home: Path, tmp_path: Path):
    from datetime import UTC, datetime

    from simulators.iothub.server.certificates import ensure_certificates

    (tmp_path / "other").mkdir()
    other = ensure_certificates(tmp_path / "other", (hub.address,), datetime.now(UTC))
    with pytest.raises(TrustError, match="is not trusted"):
        collect(settings(home, hub, SLIPWAY_CA_FILE=str(other.ca)))


WRONG = {
    "no connection string": ("nothing", UsageError),
    "no event hub in it": ("Endpoint=sb://127.0.0.1/;SharedAccessKeyName=a;SharedAccessKey=YQ==", UsageError),
}


@pytest.mark.parametrize("story", WRONG)
def test_a_string_that_names_no_event_hub_is_told(hub: BackgroundHub, home: Path, story: str):
    text, error = WRONG[story]
    with pytest.raises(error, match="not the connection string of an event hub"):
        collect(settings(home, hub, EVENTHUB_CONNECTION_STRING=text))


def test_an_endpoint_that_is_not_there_is_said_to_be_so(
    hub: BackgroundHub, home: Path, slipway: Callable[..., subprocess.CompletedProcess[str]]
):
    hub.go_away()
    with pytest.raises(HubUnreachableError):
        collect(settings(home, hub))
    said = slipway("telemetry", "collect", EVENTHUB_CONNECTION_STRING=encrypted(hub), SLIPWAY_TELEMETRY_URL="")
    assert (said.returncode, said.stdout) == (4, "")
    assert said.stderr.startswith("Error: the telemetry endpoint ")
    assert "SharedAccessKey=" not in said.stderr
    hub.come_back()
