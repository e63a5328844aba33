"""AMQP over a socket and over a websocket, with our own client: promises kept, and clients that misbehave."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiohttp
import pytest

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import StorageError
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.wire.amqp.client import AmqpClient, messages_in, of_kind
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.performatives import Accepted, Attach, Close, Disposition, Transfer

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
PATH = "/$servicebus/websocket"


class Carrier(Protocol):
    """Bytes to the hub and back; `receive` gives none when the hub has closed."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes: ...


class PlainCarrier:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> bytes:
        try:
            return await self._reader.read(65536)
        except ConnectionError:
            return b""


class WebsocketCarrier:
    def __init__(self, websocket: aiohttp.ClientWebSocketResponse) -> None:
        self.websocket = websocket

    async def send(self, data: bytes) -> None:
        await self.websocket.send_bytes(data)

    async def receive(self) -> bytes:
        message = await self.websocket.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else b""


@asynccontextmanager
async def plain(hub: BackgroundHub) -> AsyncIterator[PlainCarrier]:
    reader, writer = await asyncio.open_connection(hub.address, 5672)
    try:
        yield PlainCarrier(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def websocket(hub: BackgroundHub, protocol: str = "AMQPWSB10") -> AsyncIterator[WebsocketCarrier]:
    tls = ssl.create_default_context(cafile=str(hub.ca_file))
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"wss://{hub.authority}{PATH}", protocols=(protocol,), ssl=tls) as opened,
    ):
        yield WebsocketCarrier(opened)


CARRIERS: dict[str, Any] = {"a socket": plain, "a websocket": websocket}


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 60)

    asyncio.run(bounded())


class Talker:
    """Our client on a carrier, with a token put."""

    def __init__(self, carrier: Carrier) -> None:
        self.client = AmqpClient()
        self.carrier = carrier

    async def start(self, hub: BackgroundHub) -> "Talker":
        self.client.start()
        self.client.attach_reader("$cbs", 10)
        policy = hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy("service"))
        token = make_token(policy.keys[0], hub.host_name, int(time.time()) + 600, policy.name)
        self.client.put_token(self.client.attach_writer("$cbs"), token, f"https://{hub.host_name}")
        await self.hear(lambda heard: messages_in(heard) and of_kind(heard, Disposition))
        return self

    async def hear(self, is_enough: Any) -> list[Any]:
        """What the hub says, until it is enough or the hub has closed."""
        await self.carrier.send(self.client.data_to_send())
        heard: list[Any] = []
        while not is_enough(heard):
            async with asyncio.timeout(DEADLINE_S):
                data = await self.carrier.receive()
            if not data:
                break
            heard += self.client.receive(data)
        return heard


def to_d1(body: bytes) -> Message:
    return Message(properties=Properties(to="/devices/d1/messages/devicebound"), data=(body,))


class BrokenKeeper:
    """A journal on a full disk."""

    def flush(self) -> None:
        raise StorageError("the disk is full")


@pytest.mark.parametrize("connect", CARRIERS.values(), ids=CARRIERS)
def test_what_cannot_be_written_down_is_not_accepted(
    hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch, connect: Any
) -> None:
    hub.create_device("d1")

    async def story() -> None:
        async with connect(hub) as carrier:
            talker = await Talker(carrier).start(hub)
            writer = talker.client.attach_writer("/messages/devicebound")
            talker.client.send(writer, to_d1(b"kept"))
            heard = await talker.hear(lambda heard: bool(of_kind(heard, Disposition)))
            assert [disposition.state for disposition in of_kind(heard, Disposition)] == [Accepted()]
            monkeypatch.setattr(hub.server.switchboard, "_keeper", BrokenKeeper())
            talker.client.send(writer, to_d1(b"lost"))
            heard = await talker.hear(lambda heard: bool(of_kind(heard, Disposition)))
            assert heard == []

    run(story())


@pytest.mark.parametrize("connect", CARRIERS.values(), ids=CARRIERS)
def test_a_goodbye_of_the_hub_arrives_before_it_closes(hub: BackgroundHub, connect: Any) -> None:
    async def story() -> None:
        async with connect(hub) as carrier:
            talker = await Talker(carrier).start(hub)
            await carrier.send(b"\xff" * 100)
            heard = await talker.hear(lambda _heard: False)
            (close,) = of_kind(heard, Close)
            assert close.error.condition == "amqp:connection:framing-error"

    run(story())


def test_a_websocket_of_another_protocol_is_closed(hub: BackgroundHub) -> None:
    async def story() -> None:
        async with websocket(hub, "mqtt") as carrier:
            message = await carrier.websocket.receive()
            assert (message.type, carrier.websocket.close_code) == (aiohttp.WSMsgType.CLOSE, 1002)

    run(story())


def test_a_text_frame_holds_no_amqp(hub: BackgroundHub) -> None:
    async def story() -> None:
        async with websocket(hub) as carrier:
            await carrier.websocket.send_str("hello")
            assert await carrier.receive() == b""

    run(story())


def waiting_bytes(hub: BackgroundHub) -> list[int]:
    return hub.call(lambda: [dialogue.outlet.waiting_bytes for dialogue in hub.server.switchboard.amqp.dialogues()])


@pytest.mark.parametrize("connect", CARRIERS.values(), ids=CARRIERS)
def test_a_reader_of_a_backlog_that_stops_reading_is_given_a_bounded_amount(hub: BackgroundHub, connect: Any) -> None:
    hub.create_device("d1")

    def fill() -> int:
        core, partition = hub.server.switchboard.hub, 0
        for _ in range(300):
            partition = core.accept_event(IdentityId("d1"), {}, {}, bytes(100_000), time.time()).partition
        return partition

    partition = hub.call(fill)
    address = f"/messages/events/ConsumerGroups/x/Partitions/{partition}"

    async def story() -> None:
        async with connect(hub) as bad, connect(hub) as carrier:
            greedy, good = await Talker(bad).start(hub), await Talker(carrier).start(hub)
            greedy.client.attach_reader(address, 1_000_000)
            await bad.send(greedy.client.data_to_send())
            good.client.attach_reader(address, 1000)
            heard = await good.hear(lambda heard: count(heard) > 300)
            # The first says that the device was made.
            assert count(heard) == 301
            assert max(waiting_bytes(hub)) > 100_000
            assert sum(waiting_bytes(hub)) < 1024 * 1024

    run(story())


def count(heard: list[Any]) -> int:
    return sum(not transfer.more for transfer in of_kind(heard, Transfer))


@pytest.mark.parametrize("connect", CARRIERS.values(), ids=CARRIERS)
def test_a_client_that_asks_for_ever_and_never_reads_is_not_read_for_ever(hub: BackgroundHub, connect: Any) -> None:
    """Each answer to a question is as long as the question, so answers pile up somewhere if anybody lets them."""
    hub.create_device("d1")

    async def story() -> None:
        async with connect(hub) as bad, connect(hub) as carrier:
            greedy, good = await Talker(bad).start(hub), await Talker(carrier).start(hub)
            writer = greedy.client.attach_writer("/messages/devicebound")
            # An address of that length is repeated in the refusal.
            for _ in range(200):
                for _ in range(40):
                    greedy.client.send(writer, Message(properties=Properties(to="x" * 2000), data=(b"",)))
                try:
                    async with asyncio.timeout(0.5):
                        await bad.send(greedy.client.data_to_send())
                except (TimeoutError, ConnectionError):
                    break
            assert sum(waiting_bytes(hub)) <= 4 * 1024 * 1024
            writer = good.client.attach_writer("/messages/devicebound")
            good.client.send(writer, to_d1(b"x"))
            heard = await good.hear(lambda heard: bool(of_kind(heard, Disposition)))
            assert (len(of_kind(heard, Attach)), of_kind(heard, Disposition)[0].state) == (1, Accepted())

    run(story())
