"""The devices of the benchmark `artifact_server`: a process of its own that fetches parts of a file, over and over.

It reads one JSON line of settings and prints one JSON line of what it measured.
"""

import asyncio
import json
import random
import resource
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import uvloop


@dataclass
class Tally:
    received_bytes: int = 0
    requests: int = 0
    errors: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)


class Fetcher(asyncio.Protocol):
    """One device on one connection: asks for a part, counts its bytes, asks for the next."""

    def __init__(self, settings: dict[str, Any], tally: Tally, seed: int) -> None:
        self._settings = settings
        self._tally = tally
        self._rng = random.Random(seed)
        self._head = b""
        self._missing_bytes = 0
        self._asked_at_s = 0.0
        self.is_stopping = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        if self.is_stopping:
            self._transport.close()
            return
        part = self._settings["part_bytes"]
        start = self._rng.randrange(self._settings["size_bytes"] - part)
        lines = [
            f"GET {self._settings['path']} HTTP/1.1",
            f"Host: {self._settings['host']}",
            f"Range: bytes={start}-{start + part - 1}",
            *self._settings["headers"],
        ]
        self._asked_at_s = time.perf_counter()
        self._transport.write("\r\n".join([*lines, "", ""]).encode())

    def data_received(self, data: bytes) -> None:
        if not self._missing_bytes:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 206"):
                self._tally.errors.append(head.partition(b"\r\n")[0].decode())
                self._transport.close()
                return
            self._head, self._missing_bytes, data = b"", self._settings["part_bytes"], body
        self._missing_bytes -= len(data)
        self._tally.received_bytes += len(data)
        if self._missing_bytes == 0:
            self._tally.requests += 1
            self._tally.latencies_s.append(time.perf_counter() - self._asked_at_s)
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and not self.is_stopping:
            self._tally.errors.append(repr(exc))
        if not self.done.done():
            self.done.set_result(None)


async def fetch(settings: dict[str, Any]) -> dict[str, Any]:
    loop, tally = asyncio.get_running_loop(), Tally()
    context = ssl.create_default_context(cafile=settings["ca_file"]) if settings["ca_file"] else None
    fetchers = []
    for number in range(settings["devices"]):
        _, fetcher = await loop.create_connection(
            lambda seed=number: Fetcher(settings, tally, seed),
            settings["host"],
            settings["port"],
            ssl=context,
        )
        fetchers.append(fetcher)
    # From here on all of them are connected.
    tally.received_bytes, tally.requests, begin_s = 0, 0, time.perf_counter()
    tally.latencies_s.clear()
    await asyncio.sleep(settings["duration_s"])
    received_bytes, requests, elapsed_s = tally.received_bytes, tally.requests, time.perf_counter() - begin_s
    latencies_s = sorted(tally.latencies_s)
    for fetcher in fetchers:
        fetcher.is_stopping = True
        fetcher._transport.abort()
    await asyncio.gather(*(fetcher.done for fetcher in fetchers))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "gbits": received_bytes * 8 / elapsed_s / 1e9,
        "requests": requests,
        "errors": tally.errors[:5],
        "median_s": latencies_s[len(latencies_s) // 2] if latencies_s else None,
        "p99_s": latencies_s[int(len(latencies_s) * 0.99)] if latencies_s else None,
        "own_cpu_share": (usage.ru_utime + usage.ru_stime) / elapsed_s,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(fetch(json.loads(sys.stdin.readline())))))
