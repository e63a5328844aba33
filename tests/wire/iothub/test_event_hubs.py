"""The unmodified azure-eventhub against the built-in endpoint, over real sockets and in all its ways to connect."""

import asyncio
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from queue import Empty, Queue
from typing import Any

import pytest
from azure.eventhub import EventData, EventHubConsumerClient, TransportType
from azure.eventhub.aio import EventHubConsumerClient as AsyncConsumerClient
from azure.eventhub.exceptions import AuthenticationError, ConnectError

from simulators.iothub.core.access import make_token
from simulators.iothub.core.events import Event
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.wire.amqp.client import AmqpClient, messages_in

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
Options = dict[str, Any]


def without_emulator(hub: BackgroundHub) -> str:
    return hub.event_hub_connection_string.replace(";UseDevelopmentEmulator=true", "")


def of_namespace(hub: BackgroundHub) -> str:
    """A connection string of a namespace that is somewhere else, as a program in production has it."""
    return re.sub(r"sb://[^/]*/", "sb://some-ns.servicebus.windows.net/", without_emulator(hub))


# The four ways of an Event Hubs client to connect; the last in both its spellings.
WAYS: dict[str, Callable[[BackgroundHub], tuple[str, Options]]] = {
    "the emulator's plain port": lambda hub: (hub.event_hub_connection_string, {}),
    "TLS": lambda hub: (without_emulator(hub), {"connection_verify": str(hub.ca_file)}),
    "TLS at a custom endpoint": lambda hub: (
        of_namespace(hub),
        {
            "custom_endpoint_address": f"sb://{hub.host_name}:5671",
            "transport_type": TransportType.Amqp,
            "connection_verify": str(hub.ca_file),
        },
    ),
    "a custom endpoint and so a websocket": lambda hub: (
        of_namespace(hub),
        {"custom_endpoint_address": f"sb://{hub.authority}", "connection_verify": str(hub.ca_file)},
    ),
    "a websocket": lambda hub: (
        without_emulator(hub),
        {"transport_type": TransportType.AmqpOverWebsocket, "connection_verify": str(hub.ca_file)},
    ),
}


def send(hub: BackgroundHub, body: bytes, device: str = "d1", **properties: str) -> str:
    """Returns the partition's id."""

    def accept() -> str:
        event = hub.server.switchboard.hub.accept_event(
            IdentityId(device), {"messageId": "m", "contentType": "text/plain"}, properties, body, time.time()
        )
        return str(event.partition)

    return hub.call(accept)


class Follower:
    """A consumer in a thread of its own."""

    def __init__(self, client: EventHubConsumerClient, **options: Any) -> None:
        self.client = client
        self.events: Queue[tuple[str, EventData, float]] = Queue()
        self.errors: Queue[Exception] = Queue()
        self._options = {"starting_position": "-1", **options}
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        self.client.receive(on_event=self._note, on_error=lambda _context, err: self.errors.put(err), **self._options)

    def _note(self, context: Any, event: EventData) -> None:
        self.events.put((context.partition_id, event, time.time()))

    def next(self) -> tuple[str, EventData, float]:
        try:
            return self.events.get(timeout=DEADLINE_S)
        except Empty:
            raise AssertionError(f"no event came; errors: {list(self.errors.queue)}") from None

    def bodies(self, count: int) -> list[str]:
        return [self.next()[1].body_as_str() for _ in range(count)]

    def stop(self) -> None:
        self.client.close()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@contextmanager
def following(
    hub: BackgroundHub, way: str = "the emulator's plain port", group: str = "$Default", **options: Any
) -> Iterator[Follower]:
    connection_string, more = WAYS[way](hub)
    client = EventHubConsumerClient.from_connection_string(connection_string, group, retry_total=0, **more)
    follower = Follower(client, **options)
    try:
        yield follower
    finally:
        follower.stop()


@pytest.fixture
def device(hub: BackgroundHub) -> str:
    """A device whose partition holds what it sends and nothing that the hub tells of itself."""
    hub.call(lambda: setattr(hub.server.switchboard.hub.own_events, "sources", frozenset()))
    hub.create_device("d1")
    return "d1"


@pytest.mark.parametrize("way", WAYS)
def test_events_are_read_by_every_way_to_connect(hub: BackgroundHub, device: str, way: str) -> None:
    partition = send(hub, b"before", k="v")
    with following(hub, way) as follower:
        assert follower.client.get_partition_ids() == ["0", "1", "2", "3"]
        found_in, event, _ = follower.next()
        assert (found_in, event.body_as_str(), event.properties) == (partition, "before", {b"k": b"v"})
        assert (event.sequence_number, event.offset, event.message_id, event.content_type) == (
            0,
            "0",
            "m",
            "text/plain",
        )
        assert event.enqueued_time is not None
        assert abs(event.enqueued_time.timestamp() - time.time()) < DEADLINE_S
        annotations = event.system_properties
        assert annotations[b"iothub-connection-device-id"] == device.encode()
        assert annotations[b"iothub-message-source"] == b"Telemetry"
        send(hub, b"while reading")
        assert follower.bodies(1) == ["while reading"]


def test_the_endpoint_describes_itself(hub: BackgroundHub, device: str) -> None:
    partition = send(hub, b"abc")
    client = EventHubConsumerClient.from_connection_string(hub.event_hub_connection_string, "$Default")
    with client:
        described = client.get_eventhub_properties()
        name = f"iothub-ehub-{hub.host_name.replace('.', '-')}"
        assert (described["eventhub_name"], described["partition_ids"]) == (name, ["0", "1", "2", "3"])
        found = client.get_partition_properties(partition)
        assert found.pop("last_enqueued_time_utc").timestamp() == pytest.approx(time.time(), abs=DEADLINE_S)
        assert found == {
            "eventhub_name": name,
            "id": partition,
            "beginning_sequence_number": 0,
            "last_enqueued_sequence_number": 0,
            "last_enqueued_offset": "0",
            "is_empty": False,
        }


def test_a_wrong_key_is_refused_in_the_vendors_words(hub: BackgroundHub) -> None:
    wrong = re.sub("SharedAccessKey=[^;]*", "SharedAccessKey=d3Jvbmc=", hub.event_hub_connection_string)
    with (
        EventHubConsumerClient.from_connection_string(wrong, "$Default", retry_total=0) as client,
        pytest.raises(AuthenticationError, match="401"),
    ):
        client.get_partition_ids()


def test_another_event_hub_is_not_found(hub: BackgroundHub) -> None:
    other = re.sub("EntityPath=[^;]*", "EntityPath=other", hub.event_hub_connection_string)
    with (
        EventHubConsumerClient.from_connection_string(other, "$Default", retry_total=0) as client,
        pytest.raises(ConnectError),
    ):
        client.get_partition_ids()


STARTS: dict[str, tuple[Callable[[list[Event]], Any], bool, list[int]]] = {
    "after an offset": (lambda events: str(events[5].offset), False, [6, 7, 8, 9]),
    "from an offset on": (lambda events: str(events[5].offset), True, [5, 6, 7, 8, 9]),
    "after a sequence number": (lambda events: events[7].number, False, [8, 9]),
    "from a time on": (lambda events: datetime.fromtimestamp(events[8].enqueued_at, UTC), True, [8, 9]),
    "the beginning": (lambda _events: "-1", False, list(range(10))),
}


@pytest.mark.parametrize(("start", "is_inclusive", "expected"), STARTS.values(), ids=STARTS)
def test_a_reader_starts_where_it_says(
    hub: BackgroundHub, device: str, start: Callable[[list[Event]], Any], is_inclusive: bool, expected: list[int]
) -> None:
    for number in range(10):
        partition = send(hub, b"%d" % number)
        # Enqueued times are told in milliseconds, and each is to have its own.
        hub.call(lambda: time.sleep(0.002))
    position = start(hub.call(lambda: hub.server.switchboard.hub.events.read(0, 10)))
    with following(
        hub, partition_id=partition, starting_position=position, starting_position_inclusive=is_inclusive
    ) as follower:
        assert follower.bodies(len(expected)) == [str(number) for number in expected]


def test_a_reader_from_the_end_gets_only_what_comes(hub: BackgroundHub, device: str) -> None:
    partition = send(hub, b"old")
    with following(hub, partition_id=partition, starting_position="@latest") as follower:
        wait_until(lambda: readers_of(hub) == 1)
        for number in range(5):
            send(hub, b"%d" % number)
            assert follower.bodies(1) == [str(number)]


def test_an_event_is_with_its_reader_within_milliseconds(hub: BackgroundHub, device: str) -> None:
    """Read with our own client: the vendor's looks for news five times a second only."""
    delays = []
    with plain_socket(hub) as connection:
        reader = RawReader(hub, connection, hub.call(lambda: partition_of(hub, device)))
        for number in range(50):
            sent_at = time.monotonic()
            send(hub, b"%d" % number)
            assert reader.bodies(1) == [b"%d" % number]
            delays.append(time.monotonic() - sent_at)
    # Two milliseconds on a machine at rest; this one may be shared.
    assert sorted(delays)[len(delays) // 2] < 0.05


def partition_of(hub: BackgroundHub, device: str) -> int:
    return hub.server.switchboard.hub.events.partition_of(device)


class RawReader:
    """Our own client on a socket, with a token, reading what comes to one partition."""

    def __init__(self, hub: BackgroundHub, connection: socket.socket, partition: int, credit: int = 1_000_000) -> None:
        self.connection = connection
        self.client = opened(connection)
        self.client.attach_reader("$cbs", 10)
        writer = self.client.attach_writer("$cbs")
        policy = hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy("service"))
        token = make_token(policy.keys[0], hub.host_name, int(time.time()) + 600, policy.name)
        self.client.put_token(writer, token, f"https://{hub.host_name}")
        ((_, answer),) = self._hear(1)
        assert answer.application_properties
        assert answer.application_properties["status-code"] == 200
        before = readers_of(hub)
        address = f"/messages/events/ConsumerGroups/x/Partitions/{partition}"
        self.client.attach_reader(address, credit, "amqp.annotation.x-opt-offset > '@latest'")
        connection.sendall(self.client.data_to_send())
        wait_until(lambda: readers_of(hub) == before + 1)

    def bodies(self, count: int) -> list[bytes]:
        return [b"".join(message.data) for _, message in self._hear(count)]

    def _hear(self, count: int) -> list[Any]:
        self.connection.sendall(self.client.data_to_send())
        heard: list[Any] = []
        while len(messages_in(heard)) < count:
            heard += self.client.receive(self.connection.recv(65536))
        return messages_in(heard)


def readers_of(hub: BackgroundHub) -> int:
    return hub.call(
        lambda: sum(
            type(link.node).__name__ == "EventReader"
            for dialogue in hub.server.switchboard.amqp.dialogues()
            for link in dialogue.links()
        )
    )


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def test_every_consumer_group_reads_everything(hub: BackgroundHub, device: str) -> None:
    send(hub, b"1")
    with following(hub) as first, following(hub, group="another") as second:
        assert (first.bodies(1), second.bodies(1)) == (["1"], ["1"])


def test_a_higher_owner_level_takes_the_partition_over(hub: BackgroundHub, device: str) -> None:
    partition = send(hub, b"1")
    with following(hub, partition_id=partition, owner_level=1) as first:
        assert first.bodies(1) == ["1"]
        with following(hub, partition_id=partition, owner_level=2) as second:
            assert second.bodies(1) == ["1"]
            assert "stolen" in str(first.errors.get(timeout=DEADLINE_S))
            with following(hub, partition_id=partition, owner_level=1) as third:
                assert "stolen" in str(third.errors.get(timeout=DEADLINE_S))
            send(hub, b"2")
            assert second.bodies(1) == ["2"]


def test_a_reader_hears_how_far_its_partition_has_got(hub: BackgroundHub, device: str) -> None:
    send(hub, b"1")
    partition = send(hub, b"2")
    with following(hub, partition_id=partition, track_last_enqueued_event_properties=True) as follower:
        _, event, _ = follower.next()
        known = event.raw_amqp_message.delivery_annotations
    assert (known[b"last_enqueued_sequence_number"], known[b"last_enqueued_offset"]) == (1, b"1")


@pytest.mark.parametrize("way", ["the emulator's plain port", "TLS", "a websocket"])
def test_a_backlog_of_large_and_small_events_arrives_whole_and_in_order(
    hub: BackgroundHub, device: str, way: str
) -> None:
    sizes = [200_000 if number % 50 == 0 else 100 for number in range(1000)]
    for number, size in enumerate(sizes):
        partition = send(hub, b"%06d" % number + bytes(size))
    with following(hub, way, partition_id=partition, prefetch=300) as follower:
        found = [follower.next()[1].body_as_str(encoding="latin-1") for _ in sizes]
    assert [(int(body[:6]), len(body) - 6) for body in found] == list(enumerate(sizes))


def test_the_asynchronous_client_reads_too(hub: BackgroundHub, device: str) -> None:
    send(hub, b"1")

    async def read_one() -> str:
        client = AsyncConsumerClient.from_connection_string(hub.event_hub_connection_string, "$Default")
        found: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def note(_context: Any, event: EventData) -> None:
            if not found.done():
                found.set_result(event.body_as_str())

        async with client:
            reading = asyncio.create_task(client.receive(on_event=note, starting_position="-1"))
            try:
                return await asyncio.wait_for(found, DEADLINE_S)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    assert asyncio.run(read_one()) == "1"


def test_readers_come_back_after_an_outage(hub: BackgroundHub, device: str) -> None:
    connection_string = hub.event_hub_connection_string
    client = EventHubConsumerClient.from_connection_string(
        connection_string, "$Default", retry_total=10, retry_backoff_factor=0.1
    )
    partition = send(hub, b"1")
    follower = Follower(client, partition_id=partition)
    try:
        assert follower.bodies(1) == ["1"]
        hub.go_away()
        hub.come_back()
        send(hub, b"2")
        assert follower.bodies(1) == ["2"]
    finally:
        follower.stop()


# Clients that misbehave -----------------------------------------------------------------------------------------------


def plain_socket(hub: BackgroundHub) -> socket.socket:
    return socket.create_connection((hub.address, 5672), timeout=DEADLINE_S)


def tls_socket(hub: BackgroundHub) -> socket.socket:
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    raw = socket.create_connection((hub.address, 5671), timeout=DEADLINE_S)
    return context.wrap_socket(raw, server_hostname=hub.host_name)


def is_closed_by_hub(connection: socket.socket, timeout_s: float) -> bool:
    connection.settimeout(timeout_s)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def opened(connection: socket.socket) -> AmqpClient:
    client = AmqpClient()
    client.start()
    connection.sendall(client.data_to_send())
    return client


MISBEHAVIOUR: dict[str, tuple[Callable[[socket.socket], Any], bool]] = {
    "garbage": (lambda connection: connection.sendall(b"\x00" * 1000), True),
    "HTTP": (lambda connection: connection.sendall(b"GET / HTTP/1.1\r\n\r\n"), True),
    "a frame of two gigabytes": (lambda connection: connection.sendall(b"AMQP\0\1\0\0\x7f\xff\xff\xff"), True),
    "garbage after open": (lambda connection: (opened(connection), connection.sendall(b"\xff" * 1000)), True),
    "half a frame": (lambda connection: connection.sendall(b"AMQP\0\1\0\0\x00\x00\x01"), False),
    "nothing": (lambda _connection: None, False),
}


@pytest.mark.parametrize(("misbehave", "is_closed"), MISBEHAVIOUR.values(), ids=MISBEHAVIOUR)
@pytest.mark.parametrize("connect", [plain_socket, tls_socket], ids=["plain", "TLS"])
def test_a_client_that_misbehaves_harms_nobody(
    hub: BackgroundHub,
    device: str,
    connect: Callable[[BackgroundHub], socket.socket],
    misbehave: Callable[[socket.socket], Any],
    is_closed: bool,
) -> None:
    with plain_socket(hub) as good, connect(hub) as bad:
        reader = RawReader(hub, good, partition_of(hub, device))
        misbehave(bad)
        assert is_closed_by_hub(bad, DEADLINE_S if is_closed else 0.5) is is_closed
        send(hub, b"1")
        assert reader.bodies(1) == [b"1"]


def waiting_bytes(hub: BackgroundHub) -> int:
    return hub.call(lambda: sum(dialogue.outlet.waiting_bytes for dialogue in hub.server.switchboard.amqp.dialogues()))


@pytest.mark.parametrize("connect", [plain_socket, tls_socket], ids=["plain", "TLS"])
def test_a_reader_that_never_reads_is_given_a_bounded_amount_and_harms_nobody(
    hub: BackgroundHub, device: str, connect: Callable[[BackgroundHub], socket.socket]
) -> None:
    partition = partition_of(hub, device)
    with connect(hub) as bad, plain_socket(hub) as good:
        RawReader(hub, bad, partition)
        reader = RawReader(hub, good, partition)
        for number in range(300):
            send(hub, b"%06d" % number + bytes(100_000))
            assert reader.bodies(1)[0][:6] == b"%06d" % number
        wait_until(lambda: waiting_bytes(hub) > 100_000)
        assert waiting_bytes(hub) < 1024 * 1024


def test_many_links_and_many_connections_harm_nobody(hub: BackgroundHub, device: str) -> None:
    crowd = []
    for _ in range(100):
        connection = plain_socket(hub)
        client = opened(connection)
        for _ in range(100):
            client.attach_reader("$cbs", 1)
        connection.sendall(client.data_to_send())
        crowd.append(connection)
    with plain_socket(hub) as good:
        reader = RawReader(hub, good, partition_of(hub, device))
        send(hub, b"1")
        assert reader.bodies(1) == [b"1"]
    # Each asked for more links than there may be.
    assert all(is_closed_by_hub(connection, DEADLINE_S) for connection in crowd)
    for connection in crowd:
        connection.close()
    wait_until(lambda: hub.call(lambda: hub.server.switchboard.amqp.connection_count) == 0)


def test_connections_have_a_bound(hub: BackgroundHub, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.iothub.server.amqp.exchange.CONNECTIONS_MAX", 2)
    with plain_socket(hub) as first, plain_socket(hub) as second:
        opened(first)
        opened(second)
        wait_until(lambda: hub.call(lambda: hub.server.switchboard.amqp.connection_count) == 2)
        with plain_socket(hub) as third:
            assert is_closed_by_hub(third, DEADLINE_S)
        assert not is_closed_by_hub(first, 0.2)


def test_what_the_hub_tells_of_itself_is_read_beside_telemetry(hub: BackgroundHub) -> None:
    hub.create_device("d1", {"site": "north"})
    send(hub, b"x")
    with following(hub) as follower:
        events = [follower.next()[1] for _ in range(3)]
    assert [event.system_properties[b"iothub-message-source"] for event in events] == [
        b"deviceLifecycleEvents",
        b"twinChangeEvents",
        b"Telemetry",
    ]
    lifecycle, change, _ = events
    assert (lifecycle.properties[b"opType"], change.properties[b"opType"]) == (b"createDeviceIdentity", b"updateTwin")
    assert change.properties[b"iothub-message-schema"] == b"twinChangeNotification"
    assert (change.content_type, change.body_as_json()["tags"]) == ("application/json", {"site": "north"})
