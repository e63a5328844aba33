"""Telemetry from the score to the hub's acknowledgement: stored first, sent then, deleted last."""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from device_agent.core.alerts import AlertRule
from device_agent.core.outbox import MESSAGE_BYTES_MAX, Arriving, BatchSize, Bounds, Outbox
from device_agent.errors import LinkError, RefusedMessageError, StateError
from device_agent.ports import DropCause, HubLink, Mirror, Store, Stored
from device_agent.runtime.serving import Scored
from manifests.telemetry import Envelope, batch_body

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


@dataclass(frozen=True, slots=True)
class Sending:
    """How messages leave: at most so many bytes at once, and how long the first one waits for others to join it."""

    batch_bytes_max: int = MESSAGE_BYTES_MAX
    linger_s: float = 0.0
    alerts: AlertRule = field(default_factory=AlertRule)


class Collector(Protocol):
    """Keeps samples of readings."""

    def offer(self, scored: Scored, sequence: int, taken_at: datetime) -> bool:
        """Told of every reading before it is stored; whether a sample of it is kept."""
        ...

    def confirm(self) -> None:
        """What was offered so far is stored: a sample need not fear to outlive its telemetry."""
        ...


def envelope(
    scored: Scored, author: Author, sequence: int, taken_at: datetime, *, is_collected: bool = False
) -> Envelope:
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
        collected=is_collected,
    )


class Telemetry:
    """Three loops around one outbox: one stores what was scored, one sends what is stored, one deletes what arrived."""

    def __init__(
        self,
        store: Store,
        bounds: Bounds,
        in_store: InStore,
        author: Author,
        now: Callable[[], datetime],
        *,
        sending: Sending | None = None,
        collector: Collector | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        # What is stored, as numbers: the same as `store.counts`, without asking the disk.
        self.counts = store.counts()
        self._outbox = Outbox(store.waiting(), self.counts.last_sequence, bounds)
        self._store = store
        self._in_store = in_store
        self._author = author
        self._now = now
        self._sending = sending or Sending()
        self._collector = collector
        self._mirror = mirror
        self._loop = asyncio.get_running_loop()
        # The outbox's clock goes on where the newest stored message left it.
        self._clock_zero_s = self._loop.time() - self._outbox.clock_s
        self._room = threading.BoundedSemaphore(UNSTORED_MAX)
        self._scored: deque[tuple[Scored, datetime]] = deque()
        self._arrived = asyncio.Event()
        self._sendable = asyncio.Event()
        self._acknowledged: list[int] = []
        self._settle = asyncio.Event()
        self._unsettled = 0
        self._link: HubLink | None = None
        self._lost: Callable[[], None] = lambda: None
        self._batch_size = BatchSize(self._sending.batch_bytes_max)
        self._attempt: asyncio.Task[None] | None = None
        # What an earlier process left has waited long enough for company, and an alert waits for none.
        self._is_urgent = True
        self._due_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # Out of the outbox, and still on the disk because that failed.
        self._dropping: dict[DropCause, list[int]] = {"age": [], "refused": []}
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
        if self._attempt is not None:
            self._attempt.cancel()

    def flush(self) -> None:
        """Let nothing wait for company any more: the process is about to end."""
        self._sending = replace(self._sending, linger_s=0.0)
        self._is_urgent = True
        self._sendable.set()

    @property
    def is_stored(self) -> bool:
        return not self._scored and not self._is_storing_batch

    @property
    def is_delivered(self) -> bool:
        """Nothing waits, and what was acknowledged is deleted and counted."""
        return self.is_stored and self._outbox.waiting_count == 0 and self._unsettled == 0

    @property
    def _clock_s(self) -> int:
        return int(self._loop.time() - self._clock_zero_s)

    # Storing ----------------------------------------------------------------------------------------------------------

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
        with contextlib.suppress(StateError):
            await self._drop_expired()
        arriving = [Arriving(len(message.body), message.clock_s, message.is_alert) for message in messages]
        await self._until_stored(messages, arriving)
        self._is_storing_batch = False
        self._room.release(len(batch))
        for (scored, _), message in zip(batch, messages, strict=True):
            self._tell_stored(scored, message)

    def _tell_stored(self, scored: Scored, message: Stored) -> None:
        if scored.reading.receipt is not None:
            scored.reading.receipt.stored()
        if self._mirror is not None:
            self._mirror.offer(scored.view.name, message.body)

    def _message(self, scored: Scored, sequence: int, taken_at: datetime) -> Stored:
        is_collected = self._collector is not None and self._collector.offer(scored, sequence, taken_at)
        made = envelope(scored, self._author, sequence, taken_at, is_collected=is_collected)
        return Stored(
            sequence,
            made.message_id,
            made.to_json(),
            scored.reading.position,
            clock_s=self._clock_s,
            is_alert=self._sending.alerts.matches(made),
        )

    async def _until_stored(self, messages: list[Stored], arriving: list[Arriving]) -> None:
        """Try until there is room: meanwhile the sensor waits, so nothing is taken that cannot be kept."""
        evicted = self._outbox.room_for(arriving)
        # Dropped before the wait, or the sender could still take one of them meanwhile.
        self._outbox.dropped(evicted)
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
                break
        self._has_stored(arriving, evicted)

    def _has_stored(self, arriving: list[Arriving], evicted: list[int]) -> None:
        was_empty = self._outbox.waiting_count == 0
        self._outbox.stored(arriving, evicted)
        if self._collector is not None:
            self._collector.confirm()
        self._count_dropped("room", len(evicted))
        self.counts = replace(
            self.counts,
            enqueued=self.counts.enqueued + len(arriving),
            last_sequence=self._outbox.last_sequence,
        )
        self._is_urgent = self._is_urgent or any(one.is_alert for one in arriving)
        if was_empty:
            self._due_s = self._loop.time() + self._sending.linger_s
        self._sendable.set()

    async def _drop_expired(self) -> None:
        """Drop what is older than may be; raises StateError."""
        await self._drop(self._outbox.expired(self._clock_s), "age")

    async def _drop(self, sequences: list[int], cause: DropCause) -> None:
        """Drop and count, with what could not be dropped before; raises StateError, and is then tried again later."""
        self._outbox.dropped(sequences)
        dropping, self._dropping[cause] = self._dropping[cause] + sequences, []
        if not dropping:
            return
        try:
            await self._in_store(self._store.drop, dropping, cause)
        except StateError:
            self._dropping[cause] += dropping
            raise
        self._count_dropped(cause, len(dropping))

    def _count_dropped(self, cause: DropCause, count: int) -> None:
        counts = replace(self.counts, dropped=self.counts.dropped + count)
        match cause:
            case "room":
                self.counts = replace(counts, dropped_room=counts.dropped_room + count)
            case "age":
                self.counts = replace(counts, dropped_age=counts.dropped_age + count)
            case "refused":
                self.counts = replace(counts, dropped_refused=counts.dropped_refused + count)

    # Sending ----------------------------------------------------------------------------------------------------------

    async def keep_sending(self) -> None:
        """Send what is stored whenever there is a link, oldest first; runs until it is cancelled."""
        while True:
            await self._sendable.wait()
            self._sendable.clear()
            while (link := self._link) is not None and await self._send_next(link):
                pass

    async def _send_next(self, link: HubLink) -> bool:
        """Send one batch; whether the next one may follow at once."""
        if self._is_lingering():
            return False
        try:
            await self._drop_expired()
            taken = self._outbox.take(self._batch_size.size_bytes)
            if not taken:
                return False
            self._is_urgent = self._is_urgent and len(taken) < self._outbox.waiting_count
            messages = await self._in_store(self._store.messages, taken)
        except StateError as err:
            _log.warning("Telemetry waits: %s", err)
            self._outbox.returned()
            self._loop.call_later(STORE_RETRY_S, self._sendable.set)
            return False
        except BaseException:
            self._outbox.returned()
            raise
        assert isinstance(messages, list)
        if not messages:
            # The disk has lost them, which the receiver sees as a gap.
            self._outbox.acknowledged()
            return True
        if self._link is not link:
            self._outbox.returned()
            return True
        return await self._send(link, messages)

    def _is_lingering(self) -> bool:
        """Whether the first message that waits is to wait longer for company; then a timer is set."""
        lingers_s = self._due_s - self._loop.time()
        if self._is_urgent or lingers_s <= 0 or self._outbox.waiting_bytes >= self._batch_size.size_bytes:
            return False
        if self._timer is None or self._timer.when() <= self._loop.time():
            self._timer = self._loop.call_later(lingers_s, self._sendable.set)
        return True

    async def _send(self, link: HubLink, messages: list[Stored]) -> bool:
        body = batch_body([message.body for message in messages])
        began_s = self._loop.time()
        attempt = self._attempt = asyncio.ensure_future(link.send(message_id_of(messages), body))
        try:
            # Waited for rather than awaited: the end of the link cancels the attempt, and not this loop.
            await asyncio.wait([attempt])
        except asyncio.CancelledError:
            attempt.cancel()
            self._outbox.returned()
            raise
        finally:
            self._attempt = None
        failure = None if attempt.cancelled() else attempt.exception()
        if failure is None and not attempt.cancelled():
            self._has_arrived(len(body), self._loop.time() - began_s)
            return True
        if isinstance(failure, RefusedMessageError):
            return await self._was_refused(failure, len(body))
        self._outbox.returned()
        self._batch_size.failed()
        if failure is not None and not isinstance(failure, LinkError):
            raise failure
        _log.debug("%d messages stay in the outbox: %s", len(messages), failure)
        if self._link is link:
            self._lost()
            return False
        return True

    def _has_arrived(self, size_bytes: int, elapsed_s: float) -> None:
        self._batch_size.answered(size_bytes, elapsed_s)
        batch = self._outbox.acknowledged()
        self._acknowledged += batch
        self._unsettled += len(batch)
        self._due_s = self._loop.time() + self._sending.linger_s
        self._settle.set()

    async def _was_refused(self, err: RefusedMessageError, size_bytes: int) -> bool:
        """A batch goes again in smaller ones, down to the message that is refused by itself."""
        self._batch_size.refused(size_bytes)
        dropped = self._outbox.refused()
        if dropped:
            _log.warning("%s It is dropped and counted.", err)
            with contextlib.suppress(StateError):
                await self._drop(dropped, "refused")
        return True

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


def message_id_of(messages: list[Stored]) -> str:
    """The id of a batch: the same whenever the same messages travel together, and that of a lone message its own."""
    first, last = messages[0], messages[-1]
    if len(messages) == 1:
        return first.message_id
    return f"{first.message_id}..{last.sequence}:{len(messages)}"
