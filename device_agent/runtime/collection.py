"""Samples of readings from the score to the cloud: chosen at once, written behind a bounded queue, uploaded as files.

Scoring never waits here. What the queue, the disk or the bounds cannot take is dropped and counted.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from device_agent.core.backoff import Backoff
from device_agent.core.collection import CollectionRules, DriftWatch, Observed, Reference, Sampler
from device_agent.errors import AgentError
from device_agent.ports import FileSink, Reading, Sample, SampleStore
from device_agent.runtime.serving import Scored
from manifests.errors import ManifestError
from manifests.twin import ReportedCollection

QUEUE_SAMPLES_MAX = 64
QUEUE_BYTES_MAX = 16 * 1024 * 1024
# Of an input's numbers so many are enough to see where it lies.
MEAN_NUMBERS_MAX = 4096
# How often the age of journals is looked at, and whether there is something to upload.
LOOK_S = 1.0
RETRY_BASE_S = 1.0
RETRY_MAX_S = 300.0
# A request by direct method; more would be a way to fill a disk.
REQUEST_COUNT_MAX = 10_000
REQUEST_DURATION_MAX_S = 24 * 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectionCounts:
    """Since the process began. `taken` were chosen; `written` of them are, or were, on the disk."""

    taken: int = 0
    written: int = 0
    dropped_queue: int = 0
    files_uploaded: int = 0


class Collection:
    """One for all models of an agent. Make it on the event loop; `offer` is called there, too.

    `sink` is None where files have nowhere to go: they are then kept within their bounds, the newest of them.
    """

    def __init__(
        self,
        rules: CollectionRules,
        files: SampleStore,
        sink: FileSink | None,
        boot: str,
        chance: Callable[[], float],
    ) -> None:
        self.counts = CollectionCounts()
        self._sampler = Sampler(rules)
        self._files = files
        self._sink = sink
        self._boot = boot
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        # The store is one thread's at a time.
        self._at_files = asyncio.Lock()
        # Chosen, while their telemetry is not stored yet; then queued for the disk.
        self._offered: list[Sample] = []
        self._queue: deque[Sample] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._sealed = asyncio.Event()
        self._watches: dict[str, DriftWatch] = {}
        self._references: list[tuple[str, bytes]] = []
        self._was_requested = False
        self._size_bytes = 0

    # On the loop, for every reading -----------------------------------------------------------------------------------

    def offer(self, scored: Scored, sequence: int, taken_at: datetime) -> bool:
        """See a reading that is about to be stored under `sequence`; whether a sample of it is kept."""
        observed = self._observed(scored)
        index = self._drift_index(observed)
        reason = self._sampler.choose(observed, index, self._loop.time(), self._chance())
        if reason is None:
            return False
        size_bytes = sum(value.nbytes for value in scored.reading.inputs.values())
        # The sample that is too large for the queue may still be the only one in it.
        count = len(self._offered) + len(self._queue)
        if count and (count >= QUEUE_SAMPLES_MAX or self._queued_bytes + size_bytes > QUEUE_BYTES_MAX):
            self.counts = replace(self.counts, dropped_queue=self.counts.dropped_queue + 1)
            return False
        self._offered.append(_sample(scored, self._boot, sequence, taken_at, reason))
        self._queued_bytes += size_bytes
        self.counts = replace(self.counts, taken=self.counts.taken + 1)
        return True

    def confirm(self) -> None:
        """The telemetry of what was offered is stored. A sample without it could never be joined with anything."""
        if self._offered:
            self._queue.extend(self._offered)
            self._offered.clear()
            self._arrived.set()

    def request(self, count: int, duration_s: float) -> None:
        """Keep the next `count` readings of any model that come within `duration_s`, then send them at once.

        Raises ValueError for what cannot be asked for.
        """
        if not 1 <= count <= REQUEST_COUNT_MAX:
            raise ValueError(f"count is {count}; it is 1 to {REQUEST_COUNT_MAX:,}")
        if not 0 < duration_s <= REQUEST_DURATION_MAX_S:
            raise ValueError(f"seconds is {duration_s:g}; it is more than 0 and at most {REQUEST_DURATION_MAX_S:,.0f}")
        self._sampler.request(count, duration_s, self._loop.time())
        self._was_requested = True

    def drift(self) -> dict[str, tuple[float | None, float | None]]:
        """The index of predictions and of inputs in the last full window, by model."""
        return {name: (watch.predictions_index, watch.inputs_index) for name, watch in self._watches.items()}

    def reported(self) -> ReportedCollection:
        lost = self._files.lost()
        return ReportedCollection(
            taken=self.counts.taken,
            written=self.counts.written,
            uploaded_files=self.counts.files_uploaded,
            waiting_bytes=self._size_bytes,
            dropped=self.counts.dropped_queue + sum(lost.values()),
            drift={name: round(watch.index, 4) for name, watch in self._watches.items() if watch.reference},
        )

    def _observed(self, scored: Scored) -> Observed:
        answer, rules = scored.answer, self._sampler.rules
        return Observed(
            model=scored.view.name,
            digest=scored.view.served.model.digest,
            prediction=answer.prediction if answer else None,
            confidence=answer.confidence if answer else None,
            input_mean=_mean_of(scored.reading) if rules.drift_above and answer else None,
            is_committed=scored.view.tally is None and answer is not None,
        )

    def _drift_index(self, observed: Observed) -> float:
        if not self._sampler.rules.drift_above or not observed.is_committed:
            return 0.0
        watch = self._watches.get(observed.model)
        if watch is None or watch.digest != observed.digest:
            watch = self._watches[observed.model] = DriftWatch(observed.digest, self._reference(observed.model))
        if watch.observe(observed) and watch.reference is not None:
            self._references.append((observed.model, watch.reference.to_json()))
            self._arrived.set()
        return watch.index

    def _reference(self, model: str) -> Reference | None:
        """Read once for each model and start: a small file."""
        content = self._files.reference(model)
        try:
            return None if content is None else Reference.from_json(content)
        except ManifestError:
            return None

    # Behind -----------------------------------------------------------------------------------------------------------

    async def keep_writing(self) -> None:
        """Write what was chosen, and seal files as they are due; runs until it is cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._arrived.wait()
            except TimeoutError:
                pass
            self._arrived.clear()
            await self._write()

    async def _write(self) -> None:
        batch = list(self._queue)
        self._queue.clear()
        self._queued_bytes = sum(_size_bytes(sample) for sample in self._offered)
        references, self._references = self._references, []
        is_over = self._was_requested and not self._offered and not self._sampler.is_requested(self._loop.time())
        self._was_requested = self._was_requested and not is_over

        def write() -> int:
            for model, content in references:
                self._files.save_reference(model, content)
            lost = sum(self._files.lost().values())
            self._files.append(batch)
            # Who asked waits for it.
            self._files.seal_due(is_forced=is_over)
            return sum(self._files.lost().values()) - lost

        try:
            async with self._at_files:
                lost = await asyncio.to_thread(write)
                self._size_bytes = await asyncio.to_thread(self._files.size_bytes)
        except OSError as err:
            # Whatever is wrong with that folder, the agent goes on without samples.
            _log.warning("%d samples could not be written: %s.", len(batch), err.strerror)
            lost = len(batch)
        self.counts = replace(self.counts, written=self.counts.written + max(0, len(batch) - lost))
        self._sealed.set()

    async def keep_uploading(self) -> None:
        """Upload sealed files, oldest first, until each is accepted; runs until it is cancelled."""
        if self._sink is None:
            _log.info(
                "Collected samples stay on this device: the hub takes files from device identities only, and "
                "[collection] names no container_url."
            )
            return
        backoff = Backoff(RETRY_BASE_S, RETRY_MAX_S)
        while True:
            await self._sealed.wait()
            self._sealed.clear()
            while (delay_s := await self._upload_next(self._sink, backoff)) is not None:
                await asyncio.sleep(delay_s)

    async def _upload_next(self, sink: FileSink, backoff: Backoff) -> float | None:
        """Upload one file; how long to wait before the next attempt, None where nothing waits."""
        try:
            async with self._at_files:
                path = await asyncio.to_thread(self._first_whole)
            if path is None:
                return None
            await sink.upload(self._files.blob_name(path), path)
        except FileNotFoundError:
            # Given up for newer ones meanwhile, and counted there.
            return 0.0
        except (AgentError, OSError) as err:
            delay_s = backoff.failed(self._chance())
            tell = _log.warning if backoff.failures == 1 else _log.debug
            tell("%s The next attempt is in %.0f s.", _words(err), delay_s)
            return delay_s
        backoff.succeeded()
        async with self._at_files:
            await asyncio.to_thread(self._files.remove, path)
        self.counts = replace(self.counts, files_uploaded=self.counts.files_uploaded + 1)
        return 0.0

    def _first_whole(self) -> Path | None:
        """The oldest file that is whole; those that are not are dropped and counted."""
        return next((path for path in self._files.waiting() if self._files.is_whole(path)), None)

    async def finish(self) -> None:
        """Write what was chosen before the process ends; what is not uploaded goes after the next start."""
        await self._write()


def _words(err: Exception) -> str:
    return f"{err.message} {err.hint}".strip() if isinstance(err, AgentError) else f"A sample cannot be read: {err}."


def _size_bytes(sample: Sample) -> int:
    return sum(len(content) for _, _, content in sample.inputs.values())


def _mean_of(reading: Reading) -> float | None:
    """The mean of all numbers of a reading, or of a few thousand of them."""
    means = []
    for value in reading.inputs.values():
        if value.dtype.kind in "fiub" and value.size:
            flat = value.reshape(-1)
            means.append(float(np.mean(flat[:: 1 + flat.size // MEAN_NUMBERS_MAX], dtype=np.float64)))
    mean = sum(means) / len(means) if means else None
    return mean if mean is not None and np.isfinite(mean) else None


def _sample(scored: Scored, boot: str, sequence: int, taken_at: datetime, reason: str) -> Sample:
    release, answer = scored.view.served.release, scored.answer
    inputs = {
        name: (value.dtype.str, value.shape, np.ascontiguousarray(value).tobytes())
        for name, value in scored.reading.inputs.items()
        if not value.dtype.hasobject
    }
    return Sample(
        model=scored.view.name,
        version=release.version,
        digest=scored.view.served.model.digest,
        generation=release.generation,
        boot=boot,
        sequence=sequence,
        at=taken_at.isoformat(timespec="milliseconds"),
        reason=reason,
        reading=scored.reading.id,
        prediction=answer.prediction if answer else None,
        confidence=answer.confidence if answer else None,
        values=json.dumps(dict(answer.values)) if answer else "{}",
        error=scored.error,
        inputs=inputs,
    )
