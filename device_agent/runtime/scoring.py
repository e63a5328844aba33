"""The loop that never stops: reading after reading through whatever serves, in a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable

from device_agent.errors import AgentError
from device_agent.ports import Source
from device_agent.runtime.serving import Scored, Serving, score
from device_agent.runtime.watchdog import Pulse

# How often an agent that serves nothing yet looks again.
IDLE_WAIT_S = 0.05
# After a sensor failed; it is asked again for as long as the agent runs.
SENSOR_WAIT_S = 1.0

_log = logging.getLogger(__name__)


class ScoringLoop:
    """Paces readings, scores them and hands them on. `take` may block: so a slow disk slows the sensor down."""

    def __init__(
        self, source: Source, serving: Serving, take: Callable[[Scored], None], interval_s: float, pulse: Pulse
    ) -> None:
        self._source = source
        self._serving = serving
        self._take = take
        self._interval_s = interval_s
        self._pulse = pulse
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        """Until `stop`; blocks. No reading is taken while no model serves, so none is lost for want of one."""
        due_s = time.monotonic()
        while not self._stop.is_set():
            if not self._serving.views():
                self._stop.wait(IDLE_WAIT_S)
                due_s = time.monotonic()
                continue
            if not self._score_one():
                self._stop.wait(SENSOR_WAIT_S)
            due_s += self._interval_s
            ahead_s = due_s - time.monotonic()
            if ahead_s > 0:
                self._stop.wait(ahead_s)
            else:
                # Late readings are not caught up with in a burst.
                due_s = time.monotonic()

    def _score_one(self) -> bool:
        try:
            reading = self._source.next_reading()
        except (AgentError, OSError) as err:
            _log.warning("The sensor gave no reading: %s", err)
            return False
        for view in self._serving.views().values():
            with self._pulse:
                scored = score(view, reading)
            self._take(scored)
        return True
