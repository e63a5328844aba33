"""How quickly bytes may come, and how slowly they must not."""

import threading
import time
from collections.abc import Callable

# What a line must bring on average over a window to count as one that works: less than the slowest modem.
PROGRESS_BYTES_PER_SECOND_MIN = 50
PROGRESS_WINDOW_S = 60.0
_SLICE_S = 0.1


class BandwidthLimit:
    """Shared by all downloads of an agent. It slows the reading, and TCP slows the server."""

    def __init__(
        self,
        bytes_per_second_max: int,
        monotonic_s: Callable[[], float] = time.monotonic,
        sleep_s: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_second_max = bytes_per_second_max
        self._monotonic_s = monotonic_s
        self._sleep_s = sleep_s
        self._lock = threading.Lock()
        # When everything that was let through so far is paid for.
        self._free_at_s = monotonic_s()

    @property
    def chunk_bytes_max(self) -> int:
        """So few bytes that a wait for one chunk stays short."""
        return max(1, self._bytes_per_second_max // 4)

    def spend(self, size_bytes: int, is_cancelled: Callable[[], bool]) -> None:
        """Wait until that many bytes are within the limit. Time in which nothing came is not saved up."""
        with self._lock:
            self._free_at_s = max(self._free_at_s, self._monotonic_s()) + size_bytes / self._bytes_per_second_max
            due_s = self._free_at_s
        while (left_s := due_s - self._monotonic_s()) > 0 and not is_cancelled():
            self._sleep_s(min(left_s, _SLICE_S))


class ProgressWatch:
    """Tells a line that drips from one that is slow."""

    def __init__(self, window_s: float, now_s: float) -> None:
        self._window_s = window_s
        self._began_s = now_s
        self._seen_bytes = 0

    def is_stalled(self, size_bytes: int, now_s: float) -> bool:
        """Count what came; whether a whole window has passed with next to nothing in it."""
        self._seen_bytes += size_bytes
        if now_s - self._began_s < self._window_s:
            return False
        is_stalled = self._seen_bytes < PROGRESS_BYTES_PER_SECOND_MIN * (now_s - self._began_s)
        self._began_s, self._seen_bytes = now_s, 0
        return is_stalled
