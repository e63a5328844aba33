"""A model delta: how to make one artifact from another that the device already has. docs/agent/delta-format.md.

A delta is a file of three parts: a head of fixed length, the plan (MessagePack, compressed), and the payload, which
is the stored pieces of the plan's streams, one stream after the other. This module has the plan's types and the rules
that every plan keeps; it does no IO and compresses nothing.
"""

import enum
import struct
from collections.abc import Iterator
from typing import Annotated, Self

import msgspec

from manifests.errors import ManifestError

# The last byte is the version of the format.
MAGIC = b"SLDELTA\x01"
HEAD = struct.Struct("<8sI")  # magic, length of the stored plan

MIB = 1024 * 1024
PLAN_BYTES_MAX = 2 * MIB  # as MessagePack; what a plan's objects need in memory is several times that
BLOCK_BYTES = 2 * MIB  # of an element stream; the last block of a stream may be shorter
CHUNK_BYTES_MAX = 4 * MIB  # of a text stream
PREFIX_BYTES_MAX = 16 * MIB
PREFIX_BYTES_MIN = 8  # zstd takes no shorter one
PREFIX_RANGES_MAX = 64
STREAMS_MAX = 8
# Of every zstd frame in a delta, log2 of bytes.
WINDOW_LOG_MAX = 22
# rANS: frequencies of a table add up to 2**14, states stay in 2**16 ≤ x < 2**32, words have 16 bits.
RANS_SCALE_LOG = 14
RANS_STATE_MIN = 1 << 16
RANS_LANES_LOG_MIN, RANS_LANES_LOG_MAX = 6, 12
RANS_SEGMENTS_MAX = 256
RANS_HEAD = struct.Struct("<BHI")  # log2 of lanes, steps of a segment, length of the stored tables

# What an application needs besides: its buffers for reading and writing, and the arrays that decode one block.
_WORK_BYTES = 2 * MIB + 10 * BLOCK_BYTES

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
Length = Annotated[int, msgspec.Meta(ge=1, lt=1 << 48)]
Skip = Annotated[int, msgspec.Meta(gt=-(1 << 48), lt=1 << 48)]
StreamIndex = Annotated[int, msgspec.Meta(ge=0, lt=STREAMS_MAX)]
Sha256 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class Element(enum.IntEnum):
    """How the bytes of a tensor are read: little-endian, integers of either sign alike."""

    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    FLOAT16 = 5
    BFLOAT16 = 6
    FLOAT32 = 7
    FLOAT64 = 8

    @property
    def width_bytes(self) -> int:
        return _WIDTHS[self]

    @property
    def exponent_bits(self) -> int:
        """Zero for integers; a float's exponent stands right below its sign, which is the highest bit."""
        return _EXPONENT_BITS.get(self, 0)


_WIDTHS = {
    Element.INT8: 1, Element.INT16: 2, Element.INT32: 4, Element.INT64: 8,
    Element.FLOAT16: 2, Element.BFLOAT16: 2, Element.FLOAT32: 4, Element.FLOAT64: 8,
}  # fmt: skip
_EXPONENT_BITS = {Element.FLOAT16: 5, Element.BFLOAT16: 8, Element.FLOAT32: 8, Element.FLOAT64: 11}


class Coder(enum.IntEnum):
    """How the bytes of one plane are stored."""

    RAW = 0
    ZSTD = 1
    RANS = 2


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A part of a plan: an array of its fields in their order."""


class Artifact(_Part, frozen=True):
    """The SHA-256 of some bytes, and how many they are."""

    sha256: Sha256
    size_bytes: Count


class Copy(_Part, frozen=True, tag=0):
    """Moves the cursor by `skip`, then copies `length` bytes of the base from there and moves the cursor past them."""

    skip: Skip
    length: Length


class Change(_Part, frozen=True, tag=1):
    """As Copy, but each element is changed by the next difference of an element stream."""

    stream: StreamIndex
    skip: Skip
    length: Length


class Insert(_Part, frozen=True, tag=2):
    """The next `length` bytes of a stream, which do not come from the base. The cursor stays."""

    stream: StreamIndex
    length: Length


Operation = Copy | Change | Insert


class Range(_Part, frozen=True):
    """Bytes of the base."""

    offset: Count
    length: Length


class Chunk(_Part, frozen=True):
    """`size` bytes of text as one zstd frame of `stored` bytes, its prefix the ranges of the base one after another."""

    size: Annotated[int, msgspec.Meta(ge=1, le=CHUNK_BYTES_MAX)]
    stored: Annotated[int, msgspec.Meta(ge=1, le=CHUNK_BYTES_MAX + 64 * 1024)]
    prefix: Annotated[tuple[Range, ...], msgspec.Meta(max_length=PREFIX_RANGES_MAX)] = ()


class Plane(_Part, frozen=True):
    coder: Coder
    stored: Annotated[int, msgspec.Meta(ge=1, le=BLOCK_BYTES)]


class Block(_Part, frozen=True):
    """One plane for each byte of an element, the lowest first.

    Where `is_sorted`, the elements stand in the order of the exponents of the base's elements, equal ones as they were.
    """

    is_sorted: bool
    planes: tuple[Plane, ...]


class Text(_Part, frozen=True, tag=0):
    """Bytes of no kind."""

    chunks: tuple[Chunk, ...]


class Elements(_Part, frozen=True, tag=1):
    """Elements of one kind in blocks of BLOCK_BYTES: differences where operations change, values where they insert."""

    element: Element
    blocks: tuple[Block, ...]


Stream = Text | Elements


class Plan(_Part, frozen=True):
    """The result is what the operations give, in their order. The cursor starts at 0."""

    base: Artifact
    result: Artifact
    operations: tuple[Operation, ...]
    streams: Annotated[tuple[Stream, ...], msgspec.Meta(max_length=STREAMS_MAX)]

    @classmethod
    def from_msgpack(cls, content: bytes) -> Self:
        """Read and check a plan; raises ManifestError where it is malformed or breaks a rule."""
        if len(content) > PLAN_BYTES_MAX:
            raise ManifestError(f"the delta's plan has {len(content):,} bytes; at most {PLAN_BYTES_MAX:,} are taken")
        try:
            plan = msgspec.msgpack.decode(content, type=cls)
        except msgspec.DecodeError as err:
            raise ManifestError(f"the delta's plan is malformed: {err}") from err
        plan.check()
        return plan

    def to_msgpack(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def placed(self) -> Iterator[tuple[Operation, int]]:
        """Each operation with the cursor where it reads the base; for an insertion, where the cursor stays."""
        cursor = 0
        for operation in self.operations:
            if isinstance(operation, Insert):
                yield operation, cursor
            else:
                cursor += operation.skip
                yield operation, cursor
                cursor += operation.length

    def lengths_bytes(self) -> list[int]:
        """What the operations take of each stream."""
        lengths = [0] * len(self.streams)
        for operation in self.operations:
            if not isinstance(operation, Copy):
                lengths[operation.stream] += operation.length
        return lengths

    def payload_bytes(self) -> list[int]:
        """The stored length of each stream."""
        return [
            sum(chunk.stored for chunk in stream.chunks)
            if isinstance(stream, Text)
            else sum(plane.stored for block in stream.blocks for plane in block.planes)
            for stream in self.streams
        ]

    def memory_bytes(self) -> int:
        """An upper bound of what an application needs over the plan itself."""
        held = 0
        for stream, length in zip(self.streams, self.lengths_bytes(), strict=True):
            if isinstance(stream, Text):
                # A prefix is held twice for a moment, while the decompressor takes it over.
                held += max(
                    (2 * sum(part.length for part in chunk.prefix) + 2 * chunk.size for chunk in stream.chunks),
                    default=0,
                )
            else:
                held += min(length, BLOCK_BYTES)
        return held + _WORK_BYTES

    def check(self) -> None:
        """Raises ManifestError where the plan reads outside the base, or its parts do not add up."""
        self._check_operations()
        for number, (stream, length) in enumerate(zip(self.streams, self.lengths_bytes(), strict=True)):
            if isinstance(stream, Text):
                self._check_text(number, stream, length)
            else:
                _check_elements(number, stream, length)

    def _check_operations(self) -> None:
        changes: dict[int, bool] = {}
        for number, (operation, cursor) in enumerate(self.placed()):
            if not isinstance(operation, Insert) and not 0 <= cursor <= self.base.size_bytes - operation.length:
                raise ManifestError(f"operation {number} of the delta reads outside its base")
            if isinstance(operation, Copy):
                continue
            if operation.stream >= len(self.streams):
                raise ManifestError(
                    f"operation {number} of the delta takes from stream {operation.stream}: there is none"
                )
            stream, is_change = self.streams[operation.stream], isinstance(operation, Change)
            if changes.setdefault(operation.stream, is_change) != is_change:
                raise ManifestError(f"operation {number} of the delta mixes changes and insertions in one stream")
            if isinstance(stream, Text):
                if is_change:
                    raise ManifestError(f"operation {number} of the delta changes elements by text")
            elif operation.length % stream.element.width_bytes:
                raise ManifestError(f"operation {number} of the delta ends within an element")
        length = sum(operation.length for operation in self.operations)
        if length != self.result.size_bytes:
            raise ManifestError(f"the delta makes {length:,} bytes and says {self.result.size_bytes:,}")

    def _check_text(self, number: int, text: Text, length: int) -> None:
        if sum(chunk.size for chunk in text.chunks) != length:
            raise ManifestError(f"text stream {number} of the delta is not as long as what is taken of it")
        for chunk in text.chunks:
            prefix_bytes = sum(part.length for part in chunk.prefix)
            if chunk.prefix and not PREFIX_BYTES_MIN <= prefix_bytes <= PREFIX_BYTES_MAX:
                raise ManifestError(f"text stream {number} of the delta has a prefix of {prefix_bytes:,} bytes")
            if any(part.offset + part.length > self.base.size_bytes for part in chunk.prefix):
                raise ManifestError(f"text stream {number} of the delta has a prefix outside the base")


def _check_elements(number: int, stream: Elements, length: int) -> None:
    if len(stream.blocks) != -(-length // BLOCK_BYTES):
        raise ManifestError(f"element stream {number} of the delta is not as long as what is taken of it")
    for index, block in enumerate(stream.blocks):
        elements = min(BLOCK_BYTES, length - index * BLOCK_BYTES) // stream.element.width_bytes
        if len(block.planes) != stream.element.width_bytes:
            raise ManifestError(f"block {index} of stream {number} of the delta has {len(block.planes)} planes")
        if block.is_sorted and not stream.element.exponent_bits:
            raise ManifestError(f"block {index} of stream {number} of the delta sorts integers by exponent")
        for plane in block.planes:
            is_raw = plane.coder is Coder.RAW
            if (is_raw and plane.stored != elements) or plane.stored > elements + 64:
                raise ManifestError(
                    f"block {index} of stream {number} of the delta has a plane of {plane.stored:,} bytes"
                )
