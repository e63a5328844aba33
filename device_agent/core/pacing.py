"""When readings of a recording are due, and which samples make one. Pure: the clock is given."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from device_agent.errors import UnreadableReadingError

# A replay that is later than this goes on from where it is: what was missed is not hurried through.
LATE_S_MAX = 1.0

Mix = Literal["mix", "left", "right", "all"]
SampleType = Literal["float32", "int16"]


class Schedule:
    """Turns a recording's own time into the clock's. Gaps are kept, divided by `speed`; a step back in time is none."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._recorded_s: float | None = None
        self._due_s = 0.0
        self._gap_s = 0.0
        self._has_wrapped = False

    def wait_s(self, recorded_s: float, now_s: float) -> float:
        """How long to wait for the reading that was recorded at that time; zero where it is due."""
        if self._recorded_s is None:
            self._due_s = now_s
        else:
            if not self._has_wrapped:
                self._gap_s = max(0.0, recorded_s - self._recorded_s)
            self._go_on(now_s)
        self._has_wrapped = False
        self._recorded_s = recorded_s
        return max(0.0, self._due_s - now_s)

    def wrap(self) -> None:
        """The recording begins anew: the next reading comes as long after the last as that one after its neighbour."""
        self._has_wrapped = True

    def _go_on(self, now_s: float) -> None:
        self._due_s += self._gap_s / self._speed
        if now_s - self._due_s > LATE_S_MAX:
            self._due_s = now_s


def time_of(text: str) -> float:
    """Seconds of a time column: a number of seconds, or ISO 8601; raises UnreadableReadingError."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as err:
            raise UnreadableReadingError(f"{text!r} is neither a number of seconds nor an ISO 8601 time") from err
        # Only differences count; a time without a zone must not jump with daylight saving.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not np.isfinite(number):
        raise UnreadableReadingError(f"{text!r} is no time")
    return number


@dataclass(frozen=True, slots=True)
class Windows:
    """How a recording is cut: windows of `length` samples, each `hop` samples after the one before it."""

    length: int
    hop: int

    def count(self, samples: int) -> int:
        """How many whole windows so many samples hold."""
        return 0 if samples < self.length else (samples - self.length) // self.hop + 1

    def start(self, index: int) -> int:
        return index * self.hop


def samples_of_pcm(data: bytes, width_bytes: int, channels: int) -> np.ndarray[Any, Any]:
    """Interleaved PCM as float32 [samples, channels] from -1 to just below 1.

    Whole numbers are little-endian and signed, but for 8 bits, which are unsigned around 128 (RIFF/WAVE).
    """
    if width_bytes == 1:
        scaled = (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    elif width_bytes == 3:
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        # Each becomes the upper three bytes of an int32, so that the sign comes along.
        wide = np.zeros((len(triples), 4), np.uint8)
        wide[:, 1:] = triples
        scaled = (wide.view("<i4").reshape(-1) / 2.0**31).astype(np.float32)
    else:
        kind, full = {2: ("<i2", 2.0**15), 4: ("<i4", 2.0**31)}[width_bytes]
        scaled = (np.frombuffer(data, kind) / full).astype(np.float32)
    return scaled.reshape(-1, channels)


def mixed(samples: np.ndarray[Any, Any], mix: Mix, sample_type: SampleType) -> np.ndarray[Any, Any]:
    """One channel [samples], or all of them [samples, channels], in the type that the model wants."""
    channels = samples.shape[1]
    if mix == "all":
        chosen = samples
    elif mix == "mix":
        chosen = samples.mean(axis=1, dtype=np.float32)
    else:
        chosen = samples[:, 0 if mix == "left" else channels - 1]
    if sample_type == "float32":
        return np.ascontiguousarray(chosen)
    return np.clip(np.round(chosen * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
