"""The outbox on this disk: readings stored durably, and sent and deleted again."""

import statistics
import tempfile
import time
from pathlib import Path

from device_agent.adapters.sqlite_state import SqliteState
from device_agent.core.outbox import Bounds, Outbox
from device_agent.ports import Stored

REPEATS = 5
MESSAGES = 4_000
# As long as an envelope is on the wire.
BODY = b'{"device":"dev-01","module":"slipway"}'.ljust(260)


def run() -> list[dict]:
    """Rows for batches of one (a slow sensor: an fsync each) and of 256 (one that is faster than the disk)."""
    return [_row(batch) for batch in (1, 256)]


def _row(batch: int) -> dict:
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
        sizes = [len(BODY)]
        outbox.dropped(outbox.room_for(sizes))
        outbox.stored(sizes)
        for sequence in outbox.take():
            outbox.acknowledged(sequence)
    return time.perf_counter() - began_s
