"""A blob's bytes while they are still being written: whoever sends them follows the file, and may go back in it.

The file is the memory: a sender that is slow, or that has to go back because the registry lost something, reads it
again, so that neither side holds more than a piece.
"""

import os
import threading
from pathlib import Path

from cloud_registry.errors import RegistryError


class AbandonedBlobError(RegistryError):
    """The blob will never be whole: what wrote it failed, and tells why by itself."""


class GrowingFile:
    """A BlobBytes of a file that one thread writes and others read. The name may change meanwhile."""

    def __init__(self, path: Path) -> None:
        self._file, self._buffer = path.open("rb"), bytearray()
        self._changed = threading.Condition()
        self._size_bytes, self._digest, self._is_abandoned = 0, "", False

    # --- for the one who writes ----------------------------------------------

    def grown(self, size_bytes: int) -> None:
        """So many bytes are in the file now."""
        with self._changed:
            self._size_bytes = size_bytes
            self._changed.notify_all()

    def completed(self, digest: str) -> None:
        with self._changed:
            self._digest = digest
            self._changed.notify_all()

    def abandon(self) -> None:
        """Nothing follows any more; after `completed` this says nothing new."""
        with self._changed:
            self._is_abandoned = not self._digest
            self._changed.notify_all()

    # --- for those who read --------------------------------------------------

    @property
    def size_bytes(self) -> int:
        with self._changed:
            return self._size_bytes

    def read(self, start: int, bytes_min: int, bytes_max: int) -> memoryview:
        with self._changed:
            self._changed.wait_for(lambda: self._digest or self._is_abandoned or self._size_bytes - start >= bytes_min)
            self._check()
            wanted = min(self._size_bytes - start, bytes_max)
        self._buffer, found = _read_at(self._file.fileno(), start, max(wanted, 0), self._buffer)
        return found

    def digest(self) -> str:
        with self._changed:
            self._changed.wait_for(lambda: self._digest or self._is_abandoned)
            self._check()
            return self._digest

    def close(self) -> None:
        self._file.close()

    def _check(self) -> None:
        if self._is_abandoned:
            raise AbandonedBlobError("the layer was not finished, so that it was not sent either")


class StoredFile:
    """A BlobBytes of a file that is whole."""

    def __init__(self, path: Path, digest: str, size_bytes: int) -> None:
        self._path, self._digest, self.size_bytes = path, digest, size_bytes
        self._file, self._buffer = path.open("rb"), bytearray()

    def read(self, start: int, bytes_min: int, bytes_max: int) -> memoryview:  # noqa: ARG002  (all of it is there)
        wanted = min(bytes_max, self.size_bytes - start)
        self._buffer, chunk = _read_at(self._file.fileno(), start, max(wanted, 0), self._buffer)
        if wanted > 0 and not chunk:
            raise RegistryError(f"{self._path} is shorter than the {self.size_bytes:,} bytes it should have")
        return chunk

    def digest(self) -> str:
        return self._digest

    def close(self) -> None:
        self._file.close()


def _read_at(file: int, start: int, size_bytes: int, buffer: bytearray) -> tuple[bytearray, memoryview]:
    """Bytes of a file in a buffer that is used again, or in a larger one: fresh memory costs more than to read."""
    if len(buffer) < size_bytes:
        buffer = bytearray(size_bytes)
    room = memoryview(buffer)[:size_bytes]
    return buffer, room[: os.preadv(file, [room], start) if size_bytes else 0]
