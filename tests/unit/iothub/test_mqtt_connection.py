"""One accepted connection between its transport and its dialogue: turns, bounds, and when bytes leave."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from hub_worlds import World

from simulators.iothub.errors import StorageError
from simulators.iothub.server import mqtt_listener
from simulators.iothub.server.mqtt_listener import MqttConnection
from simulators.iothub.server.switchboard import Switchboard
from simulators.iothub.wire.mqtt import Connack, Pingreq, Pingresp, Puback, Publish, encode

PING = encode(Pingreq())


class Transport:
    """Keeps what was written; `unread_bytes` is what a slow client has left in it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.unread_bytes = 0
        self.is_reading = True
        self.is_closed = self.is_aborted = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed, "a write after the end"
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = self.is_aborted = True


class Shelf:
    """Writes down nothing, and says when; or cannot."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.is_full = False
        self.written_before: list[int] = []

    def flush(self) -> None:
        self.written_before.append(len(self._transport.writes))
        if self.is_full:
            raise StorageError("the shelf is full")


class Line:
    """A connection of device d1 that was let in."""

    def __init__(self) -> None:
        self.world = World()
        self.transport = Transport()
        self.shelf = Shelf(self.transport)
        self.switchboard = Switchboard(self.world.hub, self.world.clock, self.shelf)
        identity_id = self.world.register("d1")
        self.connection = MqttConnection(self.switchboard)
        self.connection.connection_made(cast("asyncio.Transport", self.transport))
        self.connection.data_received(encode(self.world.connect_packet(identity_id)))

    def telemetry(self, packet_id: int) -> bytes:
        return encode(Publish(topic="devices/d1/messages/events/", payload=b"x", qos=1, packet_id=packet_id))


def story(tell: Callable[[Line], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        line = Line()
        await asyncio.sleep(0)
        assert line.transport.writes == [encode(Connack())]
        line.transport.writes.clear()
        await tell(line)

    asyncio.run(run())


def test_what_one_read_brings_is_written_down_and_then_answered_with_one_write() -> None:
    async def tell(line: Line) -> None:
        line.shelf.written_before.clear()
        line.connection.data_received(line.telemetry(1) + line.telemetry(2) + PING)
        assert line.transport.writes == []
        await asyncio.sleep(0)
        assert line.transport.writes == [encode(Puback(1)) + encode(Puback(2)) + encode(Pingresp())]
        assert line.shelf.written_before == [0]

    story(tell)


def test_what_cannot_be_written_down_is_not_acknowledged_and_the_connection_is_cut() -> None:
    async def tell(line: Line) -> None:
        line.shelf.is_full = True
        line.connection.data_received(line.telemetry(1))
        await asyncio.sleep(0)
        assert (line.transport.writes, line.transport.is_aborted) == ([], True)
        assert str(line.switchboard.storage_error) == "the shelf is full"
        line.shelf.is_full = False
        line.switchboard.settle()
        assert line.switchboard.storage_error is None

    story(tell)


@pytest.mark.parametrize("record_bytes", [120_000, 16_000])
def test_a_flood_is_taken_in_turns_and_nothing_more_is_read_meanwhile(record_bytes: int) -> None:
    async def tell(line: Line) -> None:
        count = 60_000
        flood = PING * count
        for position in range(0, len(flood), record_bytes):
            line.connection.data_received(flood[position : position + record_bytes])
        answered = []
        while sum(map(len, line.transport.writes)) < 2 * count:
            assert not line.transport.is_reading or len(answered) >= 3
            before = sum(map(len, line.transport.writes))
            await asyncio.sleep(0)
            answered.append((sum(map(len, line.transport.writes)) - before) // 2)
        assert max(answered) <= 16 * 1024
        assert len(answered) >= 4
        await asyncio.sleep(0)
        assert line.transport.is_reading

    story(tell)


def test_a_flood_that_ends_with_its_connection_is_still_taken_whole() -> None:
    async def tell(line: Line) -> None:
        messages = b"".join(line.telemetry(number) for number in range(1, 3_000))
        line.connection.data_received(messages)
        line.connection.connection_lost(None)
        assert len(line.world.events()) == 2_999
        await asyncio.sleep(0)
        assert line.transport.writes == []
        assert line.switchboard.connection_count == 0

    story(tell)


def test_who_does_not_read_is_not_read_until_it_does() -> None:
    async def tell(line: Line) -> None:
        line.connection.pause_writing()
        assert not line.transport.is_reading
        line.connection.data_received(PING * 60_000)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not line.transport.is_reading
        line.connection.resume_writing()
        assert line.transport.is_reading

    story(tell)


@pytest.mark.parametrize("excess_bytes", [0, 1])
def test_who_leaves_too_much_unread_is_cut_off(excess_bytes: int) -> None:
    async def tell(line: Line) -> None:
        line.transport.unread_bytes = mqtt_listener.OUTBOUND_BYTES_MAX + excess_bytes
        line.connection.data_received(PING)
        await asyncio.sleep(0)
        assert line.transport.is_aborted == bool(excess_bytes)

    story(tell)


def test_who_is_owed_too_much_before_it_could_leave_is_cut_off() -> None:
    async def tell(line: Line) -> None:
        for _ in range(5):
            line.connection.write(bytes(1024 * 1024))
        assert line.transport.is_aborted
        await asyncio.sleep(0)
        assert line.transport.writes == []

    story(tell)


def test_a_connection_that_closes_first_sends_what_it_owes() -> None:
    async def tell(line: Line) -> None:
        line.connection.data_received(line.telemetry(1) + b"\xff\xff")
        assert not line.transport.is_closed
        await asyncio.sleep(0)
        assert line.transport.writes == [encode(Puback(1))]
        assert line.transport.is_closed
        assert not line.transport.is_aborted

    story(tell)
