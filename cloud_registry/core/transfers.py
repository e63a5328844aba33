"""How a blob is cut into parts that travel one by one, so that an upload that was cut can go on. Pure.

A part's bounds follow from the blob's size alone: whoever goes on with an upload cuts it as the one who began it did.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Memory is what bounds a part from above; S3 asks for 5 MiB at least, and takes 10,000 parts (Azure Blob takes 50,000).
PART_BYTES = 16 * 1024 * 1024
PARTS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Part:
    """`number` counts from 1."""

    number: int
    content: bytes


def part_bytes_for(size_bytes: int, part_bytes: int = PART_BYTES) -> int:
    """The size of each part but the last: the usual one, doubled until so many parts are enough."""
    while part_bytes * PARTS_MAX < size_bytes:
        part_bytes *= 2
    return part_bytes


def parts_of(chunks: Iterable[bytes], part_bytes: int) -> Iterator[Part]:
    """The parts that a stream of chunks makes; an empty stream makes none."""
    number, pending = 1, bytearray()
    for chunk in chunks:
        pending += chunk
        while len(pending) >= part_bytes:
            yield Part(number, bytes(pending[:part_bytes]))
            del pending[:part_bytes]
            number += 1
    if pending:
        yield Part(number, bytes(pending))
