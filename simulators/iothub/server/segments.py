"""Files that only grow, in numbered segments of checked frames: what the journal is made of.

A frame is its length, the CRC-32 of its content and the content. A frame that was cut short by the end of the process
is found by that and cut off; everything before it is whole.
"""

import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from simulators.iothub.errors import HubStartError

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<II")


class Segments:
    """One series of segments, ``<name>-000001.log`` and so on; the last one is written to."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._descriptor = -1
        self.size_bytes = 0
        self.number = 0

    def numbers(self) -> list[int]:
        """The segments there are, oldest first."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self._directory.glob(f"{self._name}-*.log"))

    def read(self, number: int) -> Iterator[bytes]:
        """The frames of a segment, oldest first.

        The last segment is cut off after its last whole frame, since the process that wrote it may have been killed
        half-way; any other has to be whole.

        Raises:
            HubStartError: a segment that was closed is damaged.
        """
        path = self._path(number)
        content = path.read_bytes()
        position = 0
        while (frame := _frame_at(content, position)) is not None:
            yield frame
            position += _HEADER.size + len(frame)
        if position == len(content):
            return
        if number != self.numbers()[-1]:
            raise HubStartError(
                f"{path} is damaged at byte {position} of {len(content)}",
                hint="Move it away to go on without it, or choose another directory with --state.",
            )
        logger.warning("%s: %s bytes of an unfinished write are cut off", path, len(content) - position)
        os.truncate(path, position)

    def open(self, number: int, first: bytes | None = None) -> None:
        """Write to a segment from now on; a new one starts with the frame `first`.

        Raises:
            OSError: it cannot be opened or written; the segment before it is then still the one that is written to.
        """
        descriptor = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size_bytes = os.fstat(descriptor).st_size
            if first is not None and not size_bytes:
                size_bytes = _append(descriptor, first, 0)
        except BaseException:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor, self.size_bytes, self.number = descriptor, size_bytes, number

    def append(self, content: bytes) -> None:
        """Add a frame; where that fails, nothing of it stays. Raises OSError.

        It is in the file when this returns, and so outlives this process; only the machine may still lose it, since
        nothing waits for the disk here.
        """
        self.size_bytes = _append(self._descriptor, content, self.size_bytes)

    def remove(self, number: int) -> None:
        self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _path(self, number: int) -> Path:
        return self._directory / f"{self._name}-{number:06d}.log"


def _append(descriptor: int, content: bytes, size_bytes: int) -> int:
    """Add a frame to a file of this size; returns the size it then has."""
    frame = _HEADER.pack(len(content), zlib.crc32(content)) + content
    view = memoryview(frame)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.ftruncate(descriptor, size_bytes)
        raise
    return size_bytes + len(frame)


def _frame_at(content: bytes, position: int) -> bytes | None:
    """The frame at a position, or None where no whole one is."""
    start = position + _HEADER.size
    if start > len(content):
        return None
    length, checksum = _HEADER.unpack_from(content, position)
    frame = content[start : start + length]
    return frame if len(frame) == length and zlib.crc32(frame) == checksum else None
