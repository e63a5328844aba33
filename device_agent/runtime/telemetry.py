"""Telemetry from the score to the hub's acknowledgement: stored first, sent then, deleted last."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime

from device_agent.core.outbox import Bounds, Outbox
from device_agent.errors import LinkError, RefusedMessageError, StateError
from device_agent.ports import HubLink, Mirror, Store, Stored
from device_agent.runtime.serving import Scored
from manifests.telemetry import Envelope

# Scores that are not stored yet. More would be lost with the process; beyond it the sensor waits.
UNSTORED_MAX = 512
# Messages in one transaction: the fsync is the price, and it is paid once for all of them.
BATCH_MAX = 256
FULL_DISK_WAIT_S = 1.0
# After the store failed: the link is no part of that, so nothing else would wake the sender.
STORE_RETRY_S = 0.5

_log = logging.getLogger(__name__)

# Runs a blocking call of the store in the one thread that owns it, after the calls before it.
InStore = Callable[..., Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes envelopes."""

    device: str
    module: str
    boot: str


def envelope(scored: Scored, author: Author, sequence: int, taken_at: datetime) -> Envelope:
    """A scored reading as it travels."""
    release = scored.view.served.release
    answer = scored.answer
    return Envelope(
        device=author.device,
        module=author.module,
        boot=author.boot,
        sequence=sequence,
        device_time=taken_at.isoformat(timespec="milliseconds"),
        kind="inference" if answer is not None else "error",
        model=scored.view.name,
        version=release.version,
        generation=release.generation,
        reading=scored.reading.id,
        prediction=answer.prediction if answer else None,
        confidence=round(answer.confidence, 6) if answer and answer.confidence is not None else None,
        latency_ms=round(scored.latency_ms, 4),
        values=dict(answer.values) if answer else {},
        error=scored.error,
    )


class Telemetry:
    """Two loops around one outbox: one stores what was scored, one sends what is stored."""

    def __init__(
        self,
        store: Store,
        bounds: Bounds,
        in_store: InStore,
        author: Author,
        now: Callable[[], datetime],
        mirror: Mirror | None = None,
    ) -> None:
        # What is stored, as numbers: the same as `store.counts`, without asking the disk.
        self.counts = store.counts()
        self._outbox = Outbox(store.waiting(), self.counts.last_sequence, bounds)
        self._store = store
        self._in_store = in_store
        self._author = author
        self._now = now
        self._mirror = mirror
        self._loop = asyncio.get_running_loop()
        self._room = threading.BoundedSemaphore(UNSTORED_MAX)
        self._scored: deque[tuple[Scored, datetime]] = deque()
        self._arrived = asyncio.Event()
        self._stored = asyncio.Event()
        self._sendable = asyncio.Event()
        self._acknowledged: list[int] = []
        self._settle = asyncio.Event()
        self._unsettled = 0
        self._link: HubLink | None = None
        self._lost: Callable[[], None] = lambda: None
        self._sends: set[asyncio.Task[None]] = set()
        self._is_storing_batch = False

    # From the scoring thread -----------------------------------------------------------------------------------------

    def take(self, scored: Scored) -> None:
        """Hand over a score; blocks the caller while too many are not stored yet."""
        self._room.acquire()
        self._scored.append((scored, self._now()))
        self._loop.call_soon_threadsafe(self._arrived.set)

    # On the loop -----------------------------------------------------------------------------------------------------

    def connected(self, link: HubLink, lost: Callable[[], None]) -> None:
        """Send by this link from now on; `lost` is called where it does not deliver, whatever it says of itself."""
        self._link = link
        self._lost = lost
        self._sendable.set()

    def disconnected(self) -> None:
        """What is in flight on a lost link will not be answered: it waits again, for the next one."""
        self._link = None
        for task in self._sends:
            task.cancel()

    @property
    def is_stored(self) -> bool:
        return not self._scored and not self._is_storing_batch

    @property
    def is_delivered(self) -> bool:
        """Nothing waits, and what was acknowledged is deleted and counted."""
        return self.is_stored and self._outbox.waiting_count == 0 and self._unsettled == 0

    async def keep_storing(self) -> None:
        """Store what arrives, many at a time; runs until it is cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._scored:
                await self._store_batch()

    async def _store_batch(self) -> None:
        self._is_storing_batch = True
        batch = [self._scored.popleft() for _ in range(min(len(self._scored), BATCH_MAX))]
        first = self._outbox.next_sequence
        messages = [
            self._message(scored, sequence, taken_at) for sequence, (scored, taken_at) in enumerate(batch, first)
        ]
        sizes_bytes = [len(message.body) for message in messages]
        evicted = self._outbox.room_for(sizes_bytes)
        # Dropped before the wait, or the sender could still take one of them meanwhile.
        self._outbox.dropped(evicted)
        await self._until_stored(messages, evicted)
        self._outbox.stored(sizes_bytes)
        self.counts = replace(
            self.counts,
            enqueued=self.counts.enqueued + len(messages),
            dropped=self.counts.dropped + len(evicted),
            last_sequence=self._outbox.last_sequence,
        )
        self._is_storing_batch = False
        self._room.release(len(batch))
        self._sendable.set()
        for (scored, _), message in zip(batch, messages, strict=True):
            self._tell_stored(scored, message)

    def _tell_stored(self, scored: Scored, message: Stored) -> None:
        if scored.reading.receipt is not None:
            scored.reading.receipt.stored()
        if self._mirror is not None:
            self._mirror.offer(scored.view.name, message.body)

    def _message(self, scored: Scored, sequence: int, taken_at: datetime) -> Stored:
        made = envelope(scored, self._author, sequence, taken_at)
        return Stored(sequence, made.message_id, made.to_json(), scored.reading.position)

    async def _until_stored(self, messages: list[Stored], evicted: list[int]) -> None:
        """Try until there is room: meanwhile the sensor waits, so nothing is taken that cannot be kept."""
        is_told = False
        while True:
            try:
                await self._in_store(self._store.enqueue, messages, evicted)
            except StateError as err:
                if not is_told:
                    _log.warning("Readings wait: %s %s", err.message, err.hint)
                    is_told = True
                await asyncio.sleep(FULL_DISK_WAIT_S)
            else:
                return

    async def keep_sending(self) -> None:
        """Send what is stored whenever there is a link, oldest first; runs until it is cancelled."""
        while True:
            await self._sendable.wait()
            self._sendable.clear()
            link = self._link
            if link is None:
                continue
            taken = self._outbox.take()
            if not taken:
                continue
            try:
                messages = await self._in_store(self._store.messages, taken)
            except StateError as err:
                _log.warning("Telemetry waits: %s", err)
                self._give_back(taken)
                continue
            assert isinstance(messages, list)
            for message in messages:
                task = asyncio.ensure_future(self._send(link, message))
                self._sends.add(task)
                task.add_done_callback(self._sends.discard)

    async def _send(self, link: HubLink, message: Stored) -> None:
        try:
            await link.send(message.message_id, message.body)
        except RefusedMessageError as err:
            _log.warning("%s It is dropped and counted.", err)
            self._outbox.dropped([message.sequence])
            self._outbox.returned(message.sequence)
            await self._in_store(self._store.drop, [message.sequence])
            self.counts = replace(self.counts, dropped=self.counts.dropped + 1)
        except asyncio.CancelledError:
            self._outbox.returned(message.sequence)
            raise
        except LinkError as err:
            _log.debug("message %d stays in the outbox: %s", message.sequence, err)
            self._outbox.returned(message.sequence)
            if self._link is link:
                self._lost()
            else:
                self._sendable.set()
            return
        except StateError as err:
            _log.debug("message %d stays in the outbox: %s", message.sequence, err)
            self._give_back([message.sequence])
            return
        except Exception:
            # Without this the message would count as in flight until the next start.
            self._give_back([message.sequence])
            raise
        else:
            if self._outbox.acknowledged(message.sequence):
                self._acknowledged.append(message.sequence)
                self._unsettled += 1
                self._settle.set()
        self._sendable.set()

    def _give_back(self, sequences: list[int]) -> None:
        for sequence in sequences:
            self._outbox.returned(sequence)
        self._loop.call_later(STORE_RETRY_S, self._sendable.set)

    async def keep_settling(self) -> None:
        """Delete what the hub has acknowledged, many at a time; runs until it is cancelled.

        Until that is done a kill makes the message go out a second time, which the receiver sees by its sequence.
        """
        while True:
            await self._settle.wait()
            self._settle.clear()
            batch, self._acknowledged = self._acknowledged, []
            try:
                await self._in_store(self._store.acknowledge, batch)
            except StateError as err:
                _log.warning("Delivered messages wait to be deleted: %s", err)
                self._acknowledged = batch + self._acknowledged
                self._loop.call_later(FULL_DISK_WAIT_S, self._settle.set)
            else:
                self._unsettled -= len(batch)
                self.counts = replace(self.counts, acknowledged=self.counts.acknowledged + len(batch))
