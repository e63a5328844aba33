"""A folder of images as a camera: replayed at a rate, or the newest picture that there is."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.adapters.folder_look import check_folder, look
from device_agent.adapters.stopwatch import Stopwatch
from device_agent.config.settings import SensorSettings
from device_agent.core.folder import FileSeen, Settling
from device_agent.core.pacing import Schedule
from device_agent.core.payload import VALUE
from device_agent.errors import ConfigurationError, SensorEndedError, SensorError, UnreadableReadingError
from device_agent.ports import Reading, SourceFacts

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")

_log = logging.getLogger(__name__)


def pixels_of(path: Path, color: str) -> np.ndarray[Any, Any]:
    """A picture upright as uint8 [height, width, channels]; raises OSError and UnreadableReadingError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=("JPEG", "PNG", "BMP")) as image:
            upright = ImageOps.exif_transpose(image)
            pixels = np.asarray(upright.convert("L" if color == "gray" else "RGB"))
    except FileNotFoundError:
        raise
    # Pillow raises SyntaxError for a broken PNG, and its own ValueErrors and OSErrors for the rest.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as err:
        raise UnreadableReadingError(f"{path.name} is no picture: {err}") from err
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels


class ImageSource:
    """Satisfies `ports.Source`. Replaying, positions count pictures since the first one ever."""

    def __init__(self, folder: Path, settings: SensorSettings, stopwatch: Stopwatch) -> None:
        """Raises ConfigurationError without the folder, without a picture to replay, or without Pillow."""
        check_folder(folder)
        try:
            import PIL.Image  # noqa: F401  a missing library is told before the first picture
        except ImportError as err:
            raise ConfigurationError(
                "Pictures need the library Pillow, which is not installed.", hint="Install slipway[agent,images]."
            ) from err
        self._folder = folder
        self._settings = settings
        self._stopwatch = stopwatch
        self._settling = Settling(settings.settle_s)
        self._schedule = Schedule(settings.speed)
        self._seen: set[FileSeen] = set()
        self._names: list[str] = []
        self._index = 0
        self._position = 0
        self._frames = 0
        self._failed = 0
        self._dropped = 0
        self.paces_itself = settings.frames_per_second > 0
        if not settings.latest and not self._list():
            raise ConfigurationError(
                f"The folder {folder} holds no picture.", hint=f"Put {', '.join(SUFFIXES)} files there, or set latest."
            )

    def next_reading(self) -> Reading:
        return self._next_latest() if self._settings.latest else self._next_in_order()

    def seek(self, position: int) -> None:
        if self._settings.latest or not self._names:
            return
        count = len(self._names)
        is_there = self._settings.loop or position < count
        self._position = position + 1 if is_there else 0
        # The end of a replay that does not loop is behind its last picture.
        self._index = self._position % count if self._settings.loop else self._position

    def facts(self) -> SourceFacts:
        return SourceFacts("images", failed=self._failed, dropped=self._dropped)

    def close(self) -> None:
        self._stopwatch.close()

    def _next_in_order(self) -> Reading:
        failed = 0
        while True:
            self._stopwatch.wait(0)
            if self._index >= len(self._names):
                if not self._settings.loop:
                    raise SensorEndedError(f"{self._folder} ended after {len(self._names):,} pictures.")
                if not self._list() or failed >= len(self._names):
                    raise SensorError(f"The folder {self._folder} holds no picture that can be read.")
            name = self._names[self._index]
            self._index += 1
            self._position += 1
            pixels = self._pixels(name)
            if pixels is not None:
                self._keep_rate()
                return Reading(name, {VALUE: pixels}, self._position - 1, name)
            failed += 1

    def _next_latest(self) -> Reading:
        """The newest picture that came since the last look; those passed over for it are counted as dropped."""
        while True:
            self._stopwatch.wait(0)
            there = look(self._folder, SUFFIXES)
            # What is new is told by not having been seen, so that a clock that jumps back does not freeze the picture.
            fresh = [file for file in self._settling.complete(there, self._stopwatch.now_s()) if file not in self._seen]
            self._seen = (self._seen & set(there)) | set(fresh)
            while fresh:
                newest = fresh.pop()
                pixels = self._pixels(newest.name)
                if pixels is not None:
                    self._dropped += len(fresh)
                    self._keep_rate()
                    return Reading(newest.name, {VALUE: pixels}, None, newest.name)
            self._stopwatch.wait(self._settings.poll_s)

    def _pixels(self, name: str) -> np.ndarray[Any, Any] | None:
        try:
            return pixels_of(self._folder / name, self._settings.color)
        except FileNotFoundError:
            return None
        except UnreadableReadingError as err:
            self._failed += 1
            _log.warning("A picture is passed over: %s", err)
            return None

    def _keep_rate(self) -> None:
        if self.paces_itself:
            recorded_s = self._frames / self._settings.frames_per_second
            self._frames += 1
            self._stopwatch.wait(self._schedule.wait_s(recorded_s, self._stopwatch.now_s()))

    def _list(self) -> bool:
        """Begin a round with the pictures that are there now, in the order of their names."""
        self._names = sorted(file.name for file in look(self._folder, SUFFIXES))
        self._index = 0
        return bool(self._names)
