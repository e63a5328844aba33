"""What a disk may refuse: room, bytes, writing at all. To be asked before every operation of a recording."""

import errno
import os
from collections.abc import Callable

from simulators.kernel import disk as d
from simulators.kernel.recording import Recording


class Room:
    """A disk of `capacity_bytes`: what would grow beyond it fails with ENOSPC, and what is removed gives room again."""

    def __init__(self, recording: Recording, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._disk = recording.disk
        self._sizes: dict[d.FileId, int] = {}
        for path, content in recording.disk.tree().items():
            file = recording.disk.file_at(path)
            if file is not None and content is not None:
                self._sizes[file] = len(content)

    @property
    def used_bytes(self) -> int:
        return sum(self._sizes.values())

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes)

    def __call__(self, operation: d.Operation) -> None:
        """Raises OSError where there is no room for it."""
        match operation:
            case d.Write(file, offset, content):
                self._resize(file, max(self._sizes.get(file, 0), offset + len(content)))
            case d.Truncate(file, size_bytes):
                self._resize(file, size_bytes)
            case d.Create(_, file):
                self._resize(file, 0)
            case d.Remove(path):
                self._forget(path)
            case d.Rename(_, destination):
                self._forget(destination)

    def _resize(self, file: d.FileId, size_bytes: int) -> None:
        growth = size_bytes - self._sizes.get(file, 0)
        if growth > 0 and growth > self.free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sizes[file] = size_bytes

    def _forget(self, path: str) -> None:
        file = self._disk.file_at(path)
        if file is not None:
            self._sizes.pop(file, None)


class Refusal:
    """From the n-th change on (counted from 1) every change fails with one error, as long as `is_over` says no."""

    CHANGES = (d.Create, d.Write, d.Truncate, d.Sync, d.Rename, d.Remove, d.MakeFolder)

    def __init__(self, nth: int, number: int, is_over: Callable[[], bool]) -> None:
        self._nth = nth
        self._number = number
        self._is_over = is_over
        self.changes = 0
        self.refused = 0

    def __call__(self, operation: d.Operation) -> None:
        if not isinstance(operation, self.CHANGES):
            return
        self.changes += 1
        if self.changes >= self._nth and not self._is_over():
            self.refused += 1
            raise OSError(self._number, os.strerror(self._number))
