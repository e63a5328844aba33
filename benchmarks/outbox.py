"""The outbox on this disk, and a day of it delivered: the real agent, the vendor's SDK and a hub over TLS.

With ``--full`` also what a week that waits costs an agent that starts.
"""

import asyncio
import base64
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.adapters.sample_files import FileBounds, SampleFiles
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core.collection import CollectionRules
from device_agent.core.inference import Answer
from device_agent.core.outbox import Arriving, Bounds, Outbox
from device_agent.ports import Reading, Stored
from device_agent.runtime.collection import Collection
from device_agent.runtime.serving import Scored, Served, View
from manifests.release import Release
from manifests.telemetry import Envelope, read_envelopes
from simulators.hub_client import HubClient, SimulatorError
from tests.tiny_models import onnx_classifier

T = TypeVar("T")

REPEATS = 5
MESSAGES = 4_000
# As long as an envelope is on the wire.
BODY = b'{"device":"dev-01","module":"slipway"}'.ljust(260)
DAY_S = 86_400
WEEK_S = 7 * DAY_S
TRANSACTION = 256
DEADLINE_S = 180.0
BATCH_BYTES = 252 * 1024
MIB = 1024 * 1024


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    """Rows for batches of one (a slow sensor: an fsync each) and of 256 (one that is faster than the disk), and a day.

    A day is 86,400 readings, one a second, that waited while the hub was away.
    """
    rows = [*(_row(batch) for batch in (1, TRANSACTION)), asyncio.run(_collecting()), _day()]
    return [*rows, _week()] if is_full else rows


def _row(batch: int) -> dict[str, Any]:
    count = MESSAGES if batch > 1 else MESSAGES // 10
    rates = [_once(count, batch) for _ in range(REPEATS)]
    enqueue, settle, rules = (statistics.median(rate[index] for rate in rates) for index in range(3))
    return {
        "messages a transaction": batch,
        "stored /s": round(enqueue),
        "acknowledged and deleted /s": round(settle),
        "rules alone, enqueue to acknowledge /s": round(rules),
    }


def _once(count: int, batch: int) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as directory:
        state = SqliteState.open(Path(directory))
        began_s = time.perf_counter()
        for first in range(1, count + 1, batch):
            last = min(count, first + batch - 1)
            state.enqueue([Stored(number, f"boot-{number}", BODY) for number in range(first, last + 1)], [])
        stored_s = time.perf_counter()
        for first in range(1, count + 1, batch):
            state.acknowledge(list(range(first, min(count, first + batch - 1) + 1)))
        settled_s = time.perf_counter()
        state.close()
    rules_s = _rules_s(count)
    return count / (stored_s - began_s), count / (settled_s - stored_s), count / rules_s


def _rules_s(count: int) -> float:
    outbox = Outbox([], 0, Bounds())
    began_s = time.perf_counter()
    for _ in range(count):
        arriving = [Arriving(len(BODY))]
        outbox.dropped(outbox.room_for(arriving))
        outbox.stored(arriving)
        outbox.take(BATCH_BYTES)
        outbox.acknowledged()
    return time.perf_counter() - began_s


async def _collecting() -> dict[str, Any]:
    """What the rules of collection cost for each reading, on the event loop and not in the scoring thread."""
    features = np.random.default_rng(1).normal(size=(3, 224, 224)).astype(np.float32)
    small, image = Reading("r", {"x": features[0, 0, :4]}), Reading("r", {"x": features})
    return {
        "what a reading costs with collection": "µs",
        "every 100th kept, 4 numbers": round(_offer_us(CollectionRules(every_nth=100), small), 1),
        "and drift watched": round(_offer_us(CollectionRules(every_nth=100, drift_above=0.25), small), 1),
        "and drift watched, 3x224x224 numbers": round(_offer_us(CollectionRules(drift_above=0.25), image), 1),
    }


def _offer_us(rules: CollectionRules, reading: Reading) -> float:
    with tempfile.TemporaryDirectory() as name:
        files = SampleFiles.open(Path(name), FileBounds(MIB, MIB, 3600.0))
        collection = Collection(rules, files, None, "boot", lambda: 0.5)
        release = Release(
            generation=1, rollout="r", version=1, format="onnx", digest="sha256:" + "0" * 64, size_bytes=1, target="t"
        )
        model = OnnxEngine().load(onnx_classifier(np.eye(4)), release.digest)
        scored = Scored(View("digits", Served(model, release)), reading, 0.1, Answer("7", 0.9, {}))
        now = datetime.now(UTC)
        took_us = []
        for _ in range(REPEATS):
            began_s = time.perf_counter()
            for sequence in range(MESSAGES):
                collection.offer(scored, sequence, now)
            took_us.append((time.perf_counter() - began_s) / MESSAGES * 1e6)
        return statistics.median(took_us)


# A day, and a week ---------------------------------------------------------------------------------------------------


def _day() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with _hub(directory / "hub") as hub:
            hub.create("dev-01")
            hub.create("dev-01", "slipway")
            _fill(directory / "state", DAY_S)
            with _agent(directory, hub) as agent:
                arrived, first_s, last_s = _arrivals(hub, DAY_S)
                peak_bytes = _peak_bytes(agent)
            left = _waiting(directory / "state")
    sequences = [envelope.sequence for envelope in arrived]
    took_s = last_s - first_s
    return {
        "a day offline": f"{DAY_S:,} readings",
        "kept": f"{len(set(sequences)):,}",
        "in order": sequences == sorted(sequences),
        "twice": len(sequences) - len(set(sequences)),
        "left in the outbox": left,
        "s to drain": round(took_s, 2),
        "readings /s": round(DAY_S / took_s),
        "agent's peak MiB": round(peak_bytes / MIB, 1),
    }


def _week() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _fill(directory / "state", WEEK_S)
        command = [sys.executable, "-c", _LOAD, str(directory / "state")]
        taken = subprocess.run(command, capture_output=True, text=True, check=True)
        wall_s, cpu_s, memory_kib, count = (float(word) for word in taken.stdout.split())
        size_bytes = sum(path.stat().st_size for path in (directory / "state").iterdir())
    return {
        "a week waits": f"{count:,.0f} readings",
        "on disk MiB": round(size_bytes / MIB, 1),
        "s to take up": round(wall_s, 2),
        "of that CPU s": round(cpu_s, 2),
        "memory MiB": round(memory_kib / 1024, 1),
    }


# A process of its own, so that nothing but the outbox grows it.
_LOAD = """
import sys, time
from pathlib import Path
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core.outbox import Bounds, Outbox

def resident_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:"))

state = SqliteState.open(Path(sys.argv[1]))
counts = state.counts()
before_kib = resident_kib()
began_s, began_cpu_s = time.perf_counter(), time.process_time()
outbox = Outbox(state.waiting(), counts.last_sequence, Bounds())
taken_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
print(taken_s, cpu_s, resident_kib() - before_kib, outbox.waiting_count)
"""


def _fill(directory: Path, count: int) -> None:
    """What the agent stores while its hub is away: envelopes as it writes them."""
    state = SqliteState.open(directory)
    for first in range(1, count + 1, TRANSACTION):
        batch = [_envelope(number) for number in range(first, min(count, first + TRANSACTION - 1) + 1)]
        state.enqueue([Stored(one.sequence, one.message_id, one.to_json(), clock_s=one.sequence) for one in batch], [])
    state.close()


def _envelope(number: int) -> Envelope:
    return Envelope(
        device="dev-01",
        module="slipway",
        boot="0123456789abcdef",
        sequence=number,
        device_time=f"2026-01-01T{number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02}.000+00:00",
        model="digits",
        version=3,
        generation=7,
        reading=f"reading-{number:06}",
        prediction=str(number % 10),
        confidence=0.987654,
        latency_ms=0.0512,
    )


def _waiting(directory: Path) -> int:
    state = SqliteState.open_to_read(directory)
    try:
        counts = state.counts()
        return counts.waiting
    finally:
        state.close()


@contextmanager
def _hub(directory: Path) -> Iterator[HubClient]:
    numbers = random.SystemRandom()
    address = f"127.{numbers.randint(1, 250)}.{numbers.randint(1, 250)}.{numbers.randint(1, 250)}"
    command = [sys.executable, "-m", "simulators.cli", "hub", "--state", str(directory), "--address", address]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield _until(lambda: _client(directory), "the hub is there")
    finally:
        process.terminate()
        process.wait(30)


def _client(directory: Path) -> HubClient | None:
    try:
        client = HubClient(directory)
        client.device_count()
    except SimulatorError:
        return None
    return client


@contextmanager
def _agent(directory: Path, hub: HubClient) -> Iterator[subprocess.Popen[bytes]]:
    np.savez(directory / "source.npz", **{"input.features": np.zeros((1, 4), np.float32)})  # type: ignore[arg-type]
    command = [
        *(str(Path(sys.executable).with_name("slipway-agent")), "run", "--ca-file", hub.note.ca_file),
        *("--artifacts", "https://localhost/", "--state", str(directory / "state")),
        *("--source", f"replay:{directory / 'source.npz'}"),
    ]
    environment = {**os.environ, "SLIPWAY_AGENT_CONNECTION_STRING": hub.connection_string("dev-01", "slipway")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _arrivals(hub: HubClient, count: int) -> tuple[list[Envelope], float, float]:
    """Every envelope that came to the hub until all have, and when the first and the last were seen there."""
    arrived: list[Envelope] = []
    seen: set[int] = set()
    first_s = 0.0
    for event in hub.events(0, is_following=True):
        first_s = first_s or time.perf_counter()
        envelopes = read_envelopes(base64.b64decode(event["body"]))
        arrived += envelopes
        seen.update(envelope.sequence for envelope in envelopes)
        if len(seen) >= count:
            break
    return arrived, first_s, time.perf_counter()


def _peak_bytes(process: subprocess.Popen[bytes]) -> int:
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the agent has no resident memory: it has ended")


def _until(reached: Callable[[], T | None], what: str) -> T:
    give_up_s = time.monotonic() + DEADLINE_S
    while (found := reached()) is None:
        if time.monotonic() > give_up_s:
            raise RuntimeError(f"not within {DEADLINE_S:.0f} s: {what}")
        time.sleep(0.05)
    return found
