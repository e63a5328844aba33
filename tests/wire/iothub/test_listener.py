"""The hub's sockets and timers, with clients that do not behave."""

import socket
import ssl
import time
from collections.abc import Callable

import pytest

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.wire.client import ClientSession, Connected, Event, Published, Subscribed
from simulators.iothub.wire.mqtt import Connect, Publish, encode

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0


class TlsClient:
    """Our client half on a TLS socket, registered at the hub."""

    def __init__(self, hub: BackgroundHub, device_id: str, keep_alive_s: int = 60) -> None:
        hub.create_device(device_id)
        identity = hub.call(lambda: hub.server.switchboard.hub.registry.get(IdentityId(device_id)))
        token = make_token(str(identity.keys[0]), f"{hub.host_name}/devices/{device_id}", int(time.time()) + 600)
        self.socket = tls_socket(hub)
        self.session = ClientSession()
        self.session.connect(
            Connect(
                client_id=device_id,
                clean_session=False,
                keep_alive_s=keep_alive_s,
                username=f"{hub.host_name}/{device_id}/?api-version=2019-10-01",
                password=token.encode(),
            )
        )
        assert self.hear() == [Connected(is_session_present=False)]

    def hear(self) -> list[Event]:
        """Send what is to be sent and wait for one answer at least."""
        events: list[Event] = []
        self.socket.sendall(self.session.data_to_send())
        while not events:
            data = self.socket.recv(65536)
            assert data, "the hub closed the connection"
            events = self.session.receive(data)
        return events

    def send_telemetry(self, device_id: str) -> None:
        packet_id = self.session.publish(f"devices/{device_id}/messages/events/", b"x")
        assert packet_id is not None
        assert self.hear() == [Published(packet_id)]


def tls_socket(hub: BackgroundHub, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    context.minimum_version = context.maximum_version = version
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    plain = socket.create_connection((hub.address, 8883), timeout=DEADLINE_S)
    return context.wrap_socket(plain, server_hostname=hub.host_name)


def is_closed_by_hub(connection: socket.socket) -> bool:
    """Read until the hub closes; a time-out means that it does not."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_strict_verifier_accepts_the_certificate(hub: BackgroundHub, version: ssl.TLSVersion) -> None:
    with tls_socket(hub, version) as connection:
        names = connection.getpeercert()
        assert names is not None
        assert ("IP Address", hub.address) in names["subjectAltName"]


def test_a_silent_client_is_closed_after_one_and_a_half_keep_alives(hub: BackgroundHub) -> None:
    client = TlsClient(hub, "d1", keep_alive_s=1)
    started = time.monotonic()
    assert is_closed_by_hub(client.socket)
    assert 1.4 <= time.monotonic() - started < 10
    assert hub.connected_clients() == []


def garbage(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")


def half_a_packet(connection: ssl.SSLSocket) -> None:
    connection.sendall(encode(Connect(client_id="d9"))[:5])


def a_message_before_connect(connection: ssl.SSLSocket) -> None:
    connection.sendall(encode(Publish(topic="devices/d1/messages/events/")))


@pytest.mark.parametrize(
    ("misbehave", "is_closed"), [(garbage, True), (half_a_packet, False), (a_message_before_connect, True)]
)
def test_a_client_that_misbehaves_harms_nobody(
    hub: BackgroundHub, misbehave: Callable[[ssl.SSLSocket], None], is_closed: bool
) -> None:
    good = TlsClient(hub, "good")
    with tls_socket(hub) as bad:
        bad.settimeout(1 if not is_closed else DEADLINE_S)
        misbehave(bad)
        assert is_closed_by_hub(bad) is is_closed
        good.send_telemetry("good")


def ask_until_stuck(connection: ssl.SSLSocket) -> int:
    """Ask for twins until the hub takes no more; returns how often."""
    for number in range(200_000):
        try:
            connection.sendall(encode(Publish(topic=f"$iothub/twin/GET/?$rid={number}")))
        except OSError:
            return number
    raise AssertionError("the hub read everything")


def test_a_client_that_never_reads_is_not_read_either_and_harms_nobody(hub: BackgroundHub) -> None:
    good, greedy = TlsClient(hub, "good"), TlsClient(hub, "greedy")
    body = {"properties": {"desired": {f"k{number}": "x" * 4000 for number in range(8)}}}
    hub.call(lambda: hub.server.switchboard.hub.patch_twin(IdentityId("greedy"), body, None, time.time()))
    greedy.session.subscribe(("$iothub/twin/res/#", 1))
    assert greedy.hear() == [Subscribed(1, (1,))]
    greedy.socket.settimeout(1)
    asked = ask_until_stuck(greedy.socket)
    # Each answer would be 32 KB: what was read of its requests is bounded, and so is what waits for it.
    waiting_bytes = hub.call(
        lambda: sum(dialogue.outlet.waiting_bytes for dialogue in hub.server.switchboard.dialogues_of("greedy"))
    )
    assert waiting_bytes <= 4 * 1024 * 1024
    assert asked > 100
    good.send_telemetry("good")
