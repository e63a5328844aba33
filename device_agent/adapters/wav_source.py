"""A sound recording, replayed in windows with its timing."""

import wave
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.adapters.stopwatch import Stopwatch
from device_agent.config.settings import SensorSettings
from device_agent.core.pacing import Schedule, Windows, mixed, samples_of_pcm
from device_agent.core.payload import VALUE
from device_agent.errors import ConfigurationError, SensorEndedError, SensorError
from device_agent.ports import Reading, SourceFacts


class WavSource:
    """Satisfies `ports.Source`. Positions count windows since the first one ever, so they outlive rounds.

    A reading is one tensor: [window] samples, or [window, channels] with ``mix = "all"``. It is given at the time at
    which a microphone would have heard the window's last sample, counted from the first window on.
    """

    paces_itself = True

    def __init__(self, path: Path, settings: SensorSettings, stopwatch: Stopwatch) -> None:
        """Raises ConfigurationError where the file cannot be read or is shorter than a window."""
        self._path = path
        self._settings = settings
        self._stopwatch = stopwatch
        self._schedule = Schedule(settings.speed)
        self._file = _open(path)
        self._rate = self._file.getframerate()
        length = settings.window_samples or self._rate
        self._windows = Windows(length, settings.hop_samples or length)
        self._count = self._windows.count(self._file.getnframes())
        self._next = 0
        if not self._count:
            raise ConfigurationError(
                f"{path} has {self._file.getnframes():,} samples, less than a window of {length:,}.",
                hint="Set window_samples in [sensor] to what the model takes.",
            )

    def next_reading(self) -> Reading:
        self._stopwatch.wait(0)
        round_number, index = divmod(self._next, self._count)
        if round_number and not self._settings.loop:
            raise SensorEndedError(f"{self._path} ended after {self._count:,} windows.")
        start = self._windows.start(index)
        samples = self._read(start)
        if samples is None:
            # Cut off before its header says: the whole windows are what there is of it.
            if not index:
                raise SensorError(f"{self._path} ends within its first window.")
            self._count, self._next = index, (round_number + 1) * index
            return self.next_reading()
        if round_number and not index:
            self._schedule.wrap()
        self._stopwatch.wait(self._schedule.wait_s(start / self._rate, self._stopwatch.now_s()))
        self._next += 1
        return Reading(
            id=f"{self._path.stem}@{start / self._rate:.3f}",
            inputs={VALUE: mixed(samples, self._settings.mix, self._settings.sample_type)},
            position=self._next - 1,
            origin=self._path.name,
        )

    def seek(self, position: int) -> None:
        is_there = self._settings.loop or position < self._count
        self._next = position + 1 if is_there else 0

    def facts(self) -> SourceFacts:
        return SourceFacts("wav")

    def close(self) -> None:
        self._stopwatch.close()

    def _read(self, start: int) -> np.ndarray[Any, Any] | None:
        """A window's samples [window, channels]; None where the file holds fewer."""
        width_bytes, channels = self._file.getsampwidth(), self._file.getnchannels()
        try:
            self._file.setpos(start)
            data = self._file.readframes(self._windows.length)
        except (OSError, EOFError, wave.Error) as err:
            raise SensorError(f"{self._path} cannot be read: {err}.") from err
        if len(data) != self._windows.length * width_bytes * channels:
            return None
        return samples_of_pcm(data, width_bytes, channels)


def _open(path: Path) -> wave.Wave_read:
    hint = "Give a WAV file of PCM samples with 8, 16, 24 or 32 bits; others can be converted, for example by sox."
    try:
        file = wave.open(str(path), "rb")  # noqa: SIM115  read for as long as the agent runs
    except (OSError, EOFError, wave.Error) as err:
        reason = err.strerror if isinstance(err, OSError) else str(err) or "it ends too early"
        raise ConfigurationError(f"The recording {path} cannot be read: {reason}.", hint=hint) from err
    if file.getsampwidth() not in (1, 2, 3, 4) or not file.getframerate() or not file.getnchannels():
        raise ConfigurationError(f"The recording {path} has no samples of a known kind.", hint=hint)
    return file
