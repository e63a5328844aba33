"""The load generator: a process of its own that connects devices to a server of MQTT and makes them talk.

It reads commands from standard input and answers on standard output, one JSON object a line. It speaks with the
client half of our codec and measures alike whatever server it is given.
"""

import asyncio
import json
import resource
import ssl
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import uvloop

from simulators.iothub.wire.client import ClientSession, Connected, Published, Received, Refused, Subscribed
from simulators.iothub.wire.mqtt import Connect

TWIN_ANSWERS = "$iothub/twin/res/#"
# So short that at the rates of these runs no device has two messages in one tick, however few devices there are.
TICK_S = 0.002
GRACE_S = 10.0


@dataclass
class Tally:
    """What was measured: instants are those of `time.perf_counter`, since uvloop's own clock has milliseconds only."""

    latencies_s: list[float] = field(default_factory=list)
    twin_latencies_s: list[float] = field(default_factory=list)
    lost: int = 0


class Device(asyncio.Protocol):
    """One device. `due` holds when each unacknowledged message should have left, in the order of their PUBACKs."""

    def __init__(self, name: str, login: dict[str, Any], tally: Tally) -> None:
        self.topic = f"devices/{name}/messages/events/"
        self.tally = tally
        self.session = ClientSession()
        self.due: deque[float] = deque()
        self.twin_due: deque[float] = deque()
        self.payload = b""
        self.window = 0
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answered: asyncio.Future[None] | None = None
        self._packet = Connect(
            client_id=name,
            clean_session=True,
            keep_alive_s=1200,
            username=login["username"].format(name) if login.get("username") else None,
            password=login["password"].encode() if login.get("password") else None,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.session.connect(self._packet)
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self.tally.lost += 1
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(f"the server closed the connection: {exc}"))

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        for event in self.session.receive(data):
            match event:
                case Published():
                    self.tally.latencies_s.append(now - self.due.popleft())
                    if self.window:
                        self.publish(now)
                case Received():
                    self.tally.twin_latencies_s.append(now - self.twin_due.popleft())
                case Connected():
                    self.ready.set_result(None)
                case Subscribed() if self.answered:
                    self.answered.set_result(None)
                case Refused():
                    self.ready.set_exception(ConnectionError(f"refused: {event.code.name}"))
        self.send()

    def send(self) -> None:
        if data := self.session.data_to_send():
            self.transport.write(data)  # type: ignore[attr-defined]

    def publish(self, due: float) -> None:
        self.due.append(due)
        self.session.publish(self.topic, self.payload)

    def report(self, due: float) -> None:
        """Write the device's twin; the answer comes as a message."""
        self.twin_due.append(due)
        number = len(self.tally.twin_latencies_s)
        self.session.publish(
            f"$iothub/twin/PATCH/properties/reported/?$rid={number}", b'{"temperature":%d}' % number, qos=0
        )


class Generator:
    """Carries out the commands, each a method that returns what it measured."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._address, self._port, self._login = target["address"], target["port"], target["login"]
        self._tls = ssl.create_default_context(cafile=target["ca"])
        self._tls.check_hostname = False
        self.tally = Tally()
        self.devices: list[Device] = []

    async def connect(self, count: int, at_once: int) -> dict[str, Any]:
        """Connect `count` more devices, `at_once` handshakes side by side."""
        names = iter(range(len(self.devices), len(self.devices) + count))
        began_s, own_s = time.perf_counter(), time.process_time()

        async def keep_connecting() -> None:
            for number in names:
                _, device = await asyncio.get_running_loop().create_connection(
                    lambda number=number: Device(f"load-{number:05d}", self._login, self.tally),  # type: ignore[misc]
                    self._address, self._port, ssl=self._tls, server_hostname=self._address,
                    ssl_handshake_timeout=120,
                )  # fmt: skip
                await device.ready
                self.devices.append(device)

        await asyncio.gather(*(keep_connecting() for _ in range(at_once)))
        return {"s": time.perf_counter() - began_s, "own_cpu_s": time.process_time() - own_s}

    async def subscribe_twins(self, count: int) -> dict[str, Any]:
        for device in self.devices[:count]:
            device.answered = asyncio.get_running_loop().create_future()
            device.session.subscribe((TWIN_ANSWERS, 0))
            device.send()
            await device.answered
        return {}

    async def saturate(self, devices: int, window: int, seconds: float, size_bytes: int) -> dict[str, Any]:
        """Keep `window` messages of each device under way for so long."""
        self._begin()
        began_s = time.perf_counter()
        for device in self.devices[:devices]:
            device.payload, device.window = bytes(size_bytes), window
            for _ in range(window):
                device.publish(time.perf_counter())
            device.send()
        await asyncio.sleep(seconds)
        taken_s, count = time.perf_counter() - began_s, len(self.tally.latencies_s)
        for device in self.devices[:devices]:
            device.window = 0
        await self._settle()
        return self._summary(count, taken_s)

    async def pace(
        self, devices: int, rate: float, twin_rate: float, seconds: float, size_bytes: int
    ) -> dict[str, Any]:
        """Send at a rate, evenly over the devices, whether or not the server keeps up; latency counts from when due."""
        self._begin()
        for device in self.devices[:devices]:
            device.payload = bytes(size_bytes)
        began_s = time.perf_counter()
        sent = reported = 0
        while (passed_s := time.perf_counter() - began_s) < seconds:
            while sent < passed_s * rate:
                device = self.devices[sent % devices]
                device.publish(began_s + sent / rate)
                device.send()
                sent += 1
            while reported < passed_s * twin_rate:
                device = self.devices[reported % devices]
                device.report(began_s + reported / twin_rate)
                device.send()
                reported += 1
            await asyncio.sleep(TICK_S)
        await self._settle()
        return {
            **self._summary(len(self.tally.latencies_s), time.perf_counter() - began_s),
            "sent": sent,
            "reported": reported,
        }

    def _begin(self) -> None:
        self.tally.latencies_s.clear()
        self.tally.twin_latencies_s.clear()
        self.tally.lost = 0
        self._own_s = time.process_time()

    async def _settle(self) -> None:
        """Wait until everything is answered."""
        deadline = time.monotonic() + GRACE_S
        while any(device.due or device.twin_due for device in self.devices) and time.monotonic() < deadline:
            await asyncio.sleep(TICK_S)

    def _summary(self, count: int, taken_s: float) -> dict[str, Any]:
        latencies_s = sorted(self.tally.latencies_s)
        twins_s = sorted(self.tally.twin_latencies_s)
        return {
            "count": count,
            "s": taken_s,
            "answered": len(latencies_s),
            "unanswered": sum(len(device.due) + len(device.twin_due) for device in self.devices),
            "p50_ms": _percentile(latencies_s, 0.5) * 1000,
            "p99_ms": _percentile(latencies_s, 0.99) * 1000,
            "max_ms": _percentile(latencies_s, 1.0) * 1000,
            "twin_count": len(twins_s),
            "twin_p99_ms": _percentile(twins_s, 0.99) * 1000,
            "lost": self.tally.lost,
            "own_cpu_s": time.process_time() - self._own_s,
        }


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


async def _serve(target: dict[str, Any]) -> None:
    generator = Generator(target)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        result = await getattr(generator, command.pop("do"))(**command)
        print(json.dumps(result), flush=True)


def raise_file_limit() -> None:
    """As many open files as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    raise_file_limit()
    uvloop.run(_serve(json.loads(sys.argv[1])))
