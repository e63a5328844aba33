"""The loop that never stops: reading after reading through whatever serves, in a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from device_agent.errors import AgentError, SensorEndedError
from device_agent.ports import Reading, ReadingAnswer, SensorFacts, Source
from device_agent.runtime.serving import Scored, Serving, View, score
from device_agent.runtime.watchdog import Pulse

# How often an agent that serves nothing yet looks again.
IDLE_WAIT_S = 0.05
# After a sensor failed; it is asked again for as long as the agent runs.
SENSOR_WAIT_S = 1.0
# A sensor that fails in the same way all the time is mentioned this often.
REMINDER_S = 300.0

_log = logging.getLogger(__name__)


def accepts_all(model: str, reading: Reading) -> bool:  # noqa: ARG001  the rule where none is configured
    return True


class ScoringLoop:
    """Paces readings, scores them and hands them on. `take` may block: so a slow disk slows the sensor down.

    `accepts` tells which model wants which reading; `pulse` beats while a model is asked.
    """

    def __init__(
        self,
        source: Source,
        serving: Serving,
        take: Callable[[Scored], None],
        interval_s: float,
        now: Callable[[], datetime],
        accepts: Callable[[str, Reading], bool] = accepts_all,
        pulse: Pulse | None = None,
    ) -> None:
        self._source = source
        self._serving = serving
        self._take = take
        self._interval_s = 0.0 if source.paces_itself else interval_s
        self._now = now
        self._accepts = accepts
        self._pulse = pulse or Pulse()
        self._stop = threading.Event()
        self._held: Reading | None = None
        self._taken = self._ignored = self._failed = 0
        self._last_at: datetime | None = None
        self._has_ended = False
        self._problem = ""
        self._told_s = 0.0

    def stop(self) -> None:
        """End `run` and close the source; never blocks, so that the loop which stores goes on meanwhile."""
        self._stop.set()
        self._source.close()

    def facts(self) -> SensorFacts:
        """The sensor's health; from any thread."""
        source = self._source.facts()
        return SensorFacts(
            kind=source.kind,
            taken=self._taken,
            ignored=self._ignored,
            failed=self._failed + source.failed,
            dropped=source.dropped,
            last_at=self._last_at,
            has_ended=self._has_ended,
            problem=self._problem or source.problem,
        )

    def run(self) -> None:
        """Until `stop`; blocks. No reading is taken while no model serves, so none is lost for want of one."""
        due_s = time.monotonic()
        while not self._stop.is_set():
            if not self._serving.views():
                self._stop.wait(IDLE_WAIT_S)
                due_s = time.monotonic()
                continue
            self._score_one()
            if not self._interval_s:
                continue
            due_s += self._interval_s
            ahead_s = due_s - time.monotonic()
            if ahead_s > 0:
                self._stop.wait(ahead_s)
            else:
                # Late readings are not caught up with in a burst.
                due_s = time.monotonic()

    def _score_one(self) -> None:
        try:
            reading = self._held or self._source.next_reading()
        except SensorEndedError as err:
            self._end(err)
            return
        except (AgentError, OSError) as err:
            self._fail(str(err))
            return
        views = self._serving.views()
        if not views:
            # The model went while the sensor was waited for; the reading is for the next one.
            self._held = reading
            return
        self._held = None
        if self._problem:
            _log.info("The sensor gives readings again.")
            self._problem = ""
        self._last_at = self._now()
        self._hand_on(reading, views)

    def _hand_on(self, reading: Reading, views: Mapping[str, View]) -> None:
        """Score for every model that wants it. Position and receipt go with the last: what is stored before it, is."""
        wanting = [view for name, view in views.items() if self._accepts(name, reading)]
        if not wanting:
            self._ignored += 1
            if reading.receipt is not None:
                reading.receipt.answered(())
                reading.receipt.stored()
            return
        self._taken += 1
        part = replace(reading, position=None, receipt=None) if len(wanting) > 1 else reading
        answers = []
        for number, view in enumerate(wanting, 1):
            is_last = number == len(wanting)
            with self._pulse:
                scored = score(view, reading if is_last else part)
            if reading.receipt is not None:
                answers.append(_answer(scored))
                if is_last:
                    reading.receipt.answered(answers)
            self._take(scored)

    def _fail(self, problem: str) -> None:
        self._failed += 1
        now_s = time.monotonic()
        if problem != self._problem or now_s - self._told_s >= REMINDER_S:
            _log.warning("The sensor gave no reading: %s", problem)
            self._told_s = now_s
        self._problem = problem
        self._stop.wait(SENSOR_WAIT_S)

    def _end(self, err: SensorEndedError) -> None:
        if not self._stop.is_set():
            _log.info("The sensor has given its last reading: %s", err.message)
            self._has_ended = True
        self._stop.wait()


def _answer(scored: Scored) -> ReadingAnswer:
    answer = scored.answer
    return ReadingAnswer(
        model=scored.view.name,
        version=scored.view.served.release.version,
        prediction=answer.prediction if answer else None,
        confidence=answer.confidence if answer else None,
        latency_ms=scored.latency_ms,
        values=answer.values if answer else {},
        error=scored.error,
    )
