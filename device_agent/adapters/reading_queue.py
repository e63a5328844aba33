"""Readings between the thread that hears a sensor and the one that scores: bounded, with a rule for when it is full."""

import threading
from collections import deque
from typing import Literal

from device_agent.errors import SensorEndedError
from device_agent.ports import Reading

Overflow = Literal["drop_oldest", "drop_newest", "refuse"]


class ReadingQueue:
    """Safe between threads. What is dropped is counted, and its receipt hears of it as if it were stored: the sensor
    must not give it again, since there was no room for it."""

    def __init__(self, readings_max: int, overflow: Overflow) -> None:
        self._readings: deque[Reading] = deque()
        self._readings_max = readings_max
        self._overflow = overflow
        self._changed = threading.Condition()
        self._is_closed = False
        self.dropped = 0

    def offer(self, reading: Reading) -> bool:
        """Add a reading; False where it is not taken: the queue is closed, or full and its rule is to refuse."""
        lost: Reading | None = None
        with self._changed:
            if self._is_closed or (self._is_full and self._overflow == "refuse"):
                return False
            if self._is_full:
                self.dropped += 1
                lost = self._readings.popleft() if self._overflow == "drop_oldest" else reading
            if lost is not reading:
                self._readings.append(reading)
                self._changed.notify()
        if lost is not None and lost.receipt is not None:
            lost.receipt.stored()
        return True

    def take(self) -> Reading:
        """The oldest reading; waits for one. Raises SensorEndedError once the queue is closed."""
        with self._changed:
            while not self._readings and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise SensorEndedError("The sensor is closed.")
            return self._readings.popleft()

    def withdraw(self, reading: Reading) -> bool:
        """Take back a reading that nobody took yet; False where it is being scored or gone."""
        with self._changed:
            for index, waiting in enumerate(self._readings):
                if waiting is reading:
                    del self._readings[index]
                    return True
        return False

    def close(self) -> list[Reading]:
        """End every wait, take nothing more, and return what was never taken."""
        with self._changed:
            self._is_closed = True
            left = list(self._readings)
            self._readings.clear()
            self._changed.notify_all()
        return left

    def __len__(self) -> int:
        return len(self._readings)

    @property
    def _is_full(self) -> bool:
        return len(self._readings) >= self._readings_max
