"""Memory of models that are gone, back to the system."""

import contextlib
import ctypes
from collections.abc import Callable

# Below that the pause costs more than the memory is worth: while glibc walks its heaps, every thread that allocates
# waits, for two to four milliseconds in an agent of 90 MB.
FREED_BYTES_MIN = 4 * 1024 * 1024


def trim() -> None:
    """glibc keeps what a swapped-out model held until it is asked; other C libraries do not, and need no asking."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


class FreedMemory:
    """Counts the bytes of model files that left memory, and asks for the return once they are worth it."""

    def __init__(self, trim: Callable[[], None] = trim) -> None:
        self._trim = trim
        self._waiting_bytes = 0

    def freed(self, size_bytes: int) -> None:
        self._waiting_bytes += size_bytes
        if self._waiting_bytes >= FREED_BYTES_MIN:
            self._waiting_bytes = 0
            self._trim()
