"""The clock of a source that waits: its waits end when the source is closed."""

import threading
import time

from device_agent.errors import SensorEndedError


class Stopwatch:
    """Monotonic time, and waits on it."""

    def __init__(self) -> None:
        self._closed = threading.Event()

    def now_s(self) -> float:
        return time.monotonic()

    def wait(self, delay_s: float) -> None:
        """Wait; raises SensorEndedError once closed."""
        if self._closed.wait(delay_s) if delay_s > 0 else self._closed.is_set():
            raise SensorEndedError("The sensor is closed.")

    def close(self) -> None:
        self._closed.set()
