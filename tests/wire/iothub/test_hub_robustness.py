"""Clients that do harm, by accident or on purpose: others notice nothing, and what they cost is bounded."""

import contextlib
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server import mqtt_listener, tls
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.wire.client import ClientSession, Connected, Event, Published, Refused
from simulators.iothub.wire.mqtt import ConnackCode, Connect, Pingreq, Publish, encode

pytestmark = pytest.mark.wire
DEADLINE_S = 30.0
# What a good client may wait for a PUBACK while others misbehave; a busy machine is slow, a blocked hub is slower.
PATIENCE_S = 5.0


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("this system does not say how much memory a process has")


def plain_socket(hub: BackgroundHub) -> socket.socket:
    return socket.create_connection((hub.address, 8883), timeout=DEADLINE_S)


def tls_socket(hub: BackgroundHub) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    return context.wrap_socket(plain_socket(hub), server_hostname=hub.host_name)


class Client:
    """A client half on a TLS socket that is registered at the hub and has asked to be let in."""

    def __init__(self, hub: BackgroundHub, device_id: str, keep_alive_s: int = 60) -> None:
        if hub.call(lambda: hub.server.switchboard.hub.registry.find(IdentityId(device_id))) is None:
            hub.create_device(device_id)
        identity = hub.call(lambda: hub.server.switchboard.hub.registry.get(IdentityId(device_id)))
        token = make_token(str(identity.keys[0]), f"{hub.host_name}/devices/{device_id}", int(time.time()) + 600)
        self.device_id = device_id
        self.socket = tls_socket(hub)
        self.session = ClientSession()
        self.session.connect(
            Connect(
                client_id=device_id,
                keep_alive_s=keep_alive_s,
                username=f"{hub.host_name}/{device_id}/?api-version=2021-04-12",
                password=token.encode(),
            )
        )
        self.answer = self.hear()

    def hear(self) -> list[Event]:
        events: list[Event] = []
        self.socket.sendall(self.session.data_to_send())
        while not events:
            data = self.socket.recv(65536)
            assert data, "the hub closed the connection"
            events = self.session.receive(data)
        return events

    def tell(self) -> float:
        """Send a message; returns how long its PUBACK took."""
        began_s = time.monotonic()
        packet_id = self.session.publish(f"devices/{self.device_id}/messages/events/", b"x")
        assert packet_id is not None
        assert self.hear() == [Published(packet_id)]
        return time.monotonic() - began_s


@pytest.fixture
def good(hub: BackgroundHub) -> Iterator[Client]:
    client = Client(hub, "good")
    assert client.answer == [Connected(is_session_present=False)]
    yield client
    client.socket.close()


def connection_count(hub: BackgroundHub) -> int:
    return hub.call(lambda: hub.server.switchboard.connection_count)


def wait_for_connections(hub: BackgroundHub, wanted: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (count := connection_count(hub)) != wanted:
        assert time.monotonic() < deadline, f"{count} connections are open, not {wanted}"
        time.sleep(0.02)


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def garbage_before_tls(hub: BackgroundHub) -> socket.socket:
    connection = plain_socket(hub)
    connection.sendall(random.Random(1).randbytes(5_000))
    return connection


def garbage_within_tls(hub: BackgroundHub) -> socket.socket:
    connection = tls_socket(hub)
    connection.sendall(random.Random(2).randbytes(5_000))
    return connection


def a_packet_larger_than_any(hub: BackgroundHub) -> socket.socket:
    client = Client(hub, "large")
    client.socket.sendall(b"\x30\xff\xff\xff\x7f" + bytes(1_000))
    return client.socket


@pytest.mark.parametrize("misbehave", [garbage_before_tls, garbage_within_tls, a_packet_larger_than_any])
def test_what_cannot_be_a_packet_ends_the_connection_and_no_other(
    hub: BackgroundHub, good: Client, misbehave: Callable[[BackgroundHub], socket.socket]
) -> None:
    with misbehave(hub) as bad:
        assert is_closed(bad)
    assert good.tell() < PATIENCE_S
    wait_for_connections(hub, 1)


def test_who_stalls_within_a_packet_is_held_to_its_keep_alive_even_if_bytes_trickle(
    hub: BackgroundHub, good: Client
) -> None:
    stalling = Client(hub, "stalling", keep_alive_s=1)
    packet = encode(Publish(topic="devices/stalling/messages/events/", payload=bytes(200_000)))
    began_s = time.monotonic()
    # A byte every tenth of a second is traffic, but no packet [MQTT-3.1.2-24].
    with contextlib.suppress(OSError):
        for position in range(300):
            stalling.socket.sendall(packet[position : position + 1])
            stalling.socket.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                if not stalling.socket.recv(100):
                    break
    assert 1.4 <= time.monotonic() - began_s < 15
    assert good.tell() < PATIENCE_S
    wait_for_connections(hub, 1)


def test_stalled_packets_take_no_more_memory_than_what_was_sent(hub: BackgroundHub, good: Client) -> None:
    packet = encode(Publish(topic="devices/stalling/messages/events/", payload=bytes(250_000)))
    before = resident_bytes()
    stalled = [Client(hub, f"stalling-{number}") for number in range(20)]
    for client in stalled:
        client.socket.sendall(packet[:-1])
    assert good.tell() < PATIENCE_S
    # Twenty times 250 KB, in the sockets of this test too, and what twenty connections take.
    assert resident_bytes() - before < 60 * 2**20
    for client in stalled:
        client.socket.close()
    wait_for_connections(hub, 1)


def test_a_flood_of_pings_leaves_others_their_turn(hub: BackgroundHub, good: Client) -> None:
    flood = Client(hub, "flood")
    flood.socket.settimeout(0.2)
    pings = encode(Pingreq()) * 100_000
    waited_s = []
    for _ in range(5):
        with contextlib.suppress(OSError):
            flood.socket.sendall(pings)
        waited_s.append(good.tell())
    assert max(waited_s) < PATIENCE_S
    waiting = hub.call(lambda: sum(each.outlet.waiting_bytes for each in hub.server.switchboard.dialogues_of("flood")))
    assert waiting <= mqtt_listener.OUTBOUND_BYTES_MAX
    flood.socket.close()


def test_messages_that_are_all_properties_do_not_outgrow_the_log(hub: BackgroundHub) -> None:
    log = hub.server.switchboard.hub.events
    hub.call(lambda: setattr(log, "_bytes_max", 1_000_000))
    client = Client(hub, "wordy")
    bag = "&".join(f"key{number}={'v' * 1_000}" for number in range(50))
    for _ in range(60):
        packet_id = client.session.publish(f"devices/wordy/messages/events/{bag}", b"")
        assert client.hear() == [Published(packet_id or 0)]
    assert hub.call(lambda: len(log.read(0, 1_000))) == 19
    client.socket.close()


def test_a_storm_of_connections_that_come_and_go_leaves_nothing_behind(hub: BackgroundHub, good: Client) -> None:
    for _ in range(4):
        storm = [plain_socket(hub) for _ in range(100)]
        for number, connection in enumerate(storm):
            if number % 2:
                connection.sendall(b"\x16\x03\x01\x02")
            connection.close()
        assert good.tell() < PATIENCE_S
    storm = [tls_socket(hub) for _ in range(30)]
    for connection in storm:
        connection.close()
    wait_for_connections(hub, 1)


def test_a_handshake_that_does_not_end_is_ended(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_TIMEOUT_S", 0.5)
    hub.go_away()
    hub.come_back()
    good = Client(hub, "good")
    for beginning in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
        with plain_socket(hub) as half_open:
            half_open.sendall(beginning)
            assert is_closed(half_open)
        assert good.tell() < PATIENCE_S
    good.socket.close()


def test_who_never_sends_connect_goes_after_a_while_however_it_trickles(
    hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulators.iothub.server.dialogue.CONNECT_TIMEOUT_S", 0.6)
    packet = encode(Connect(client_id="x" * 1_000))
    with tls_socket(hub) as slow:
        began_s = time.monotonic()
        with contextlib.suppress(OSError):
            for position in range(200):
                slow.sendall(packet[position : position + 1])
                slow.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(100):
                        break
        assert 0.5 < time.monotonic() - began_s < 9
    wait_for_connections(hub, 0)


def test_beyond_the_most_connections_a_client_is_told_that_there_is_no_room(
    hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt_listener, "CONNECTIONS_MAX", 2)
    first, second = Client(hub, "first"), Client(hub, "second")
    late = Client(hub, "late")
    assert late.answer == [Refused(ConnackCode.SERVER_UNAVAILABLE)]
    assert is_closed(late.socket)
    assert first.tell() < PATIENCE_S
    second.socket.close()
    wait_for_connections(hub, 1)
    assert Client(hub, "late").answer == [Connected(is_session_present=False)]


def test_clients_that_crowd_to_be_refused_are_cut(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_listener, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(mqtt_listener, "REFUSALS_MAX", 3)
    good = Client(hub, "good")
    waiting = [tls_socket(hub) for _ in range(3)]
    with tls_socket(hub) as cut:
        # Well before the time in which a CONNECT has to come.
        cut.settimeout(PATIENCE_S)
        assert is_closed(cut)
    assert good.tell() < PATIENCE_S
    assert connection_count(hub) == 4
    for connection in waiting:
        connection.close()
