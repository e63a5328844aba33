"""Turns the model that is on the disk into the offered one with the help of a delta.

A delta comes from outside: it may be damaged, cut short or made by an enemy. Its plan is checked before anything is
written, every part is read within the bounds that the plan sets, and what comes out counts only by its digest.
"""

import errno
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from device_agent.core.delta_planes import Bytes, MalformedDeltaError, changed, inserted, read_plane, unpacked
from device_agent.errors import StepError
from manifests.delta import (
    BLOCK_BYTES,
    HEAD,
    MAGIC,
    MIB,
    PLAN_BYTES_MAX,
    WINDOW_LOG_MAX,
    Artifact,
    Change,
    Chunk,
    Copy,
    Elements,
    Plan,
    Range,
    Text,
)
from manifests.errors import ManifestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What one application may need over what the process needs anyway, whatever the size of the model.
MEMORY_BYTES_MAX = 64 * MIB
_READ_BYTES = MIB


def apply_delta(
    delta: Path,
    base: Path,
    output: Path,
    *,
    result_digest: str | None = None,
    result_size_bytes: int | None = None,
    memory_bytes_max: int = MEMORY_BYTES_MAX,
) -> None:
    """Write to `output` what `delta` makes of `base`; an `output` that is there already is written over.

    The base's digest is checked before anything is written and the result's digest before this returns, both against
    the delta. The caller gives the digest and size that the offer says, and a delta that says otherwise is refused
    before it costs anything. Neither file is synced: sealing an artifact is the caller's work.
    Blocks its thread for about a second per 30 MB, so it belongs in a worker thread.

    Raises:
        StepError: DELTA_FAILED where the delta is malformed, is meant for another base, needs more memory than
            `memory_bytes_max` or gives another result; NO_SPACE where the disk is full. `output` is then gone.
    """
    try:
        with ExitStack() as files:
            patch = _Patch(files.enter_context(delta.open("rb")), files.enter_context(base.open("rb")))
            patch.check(result_digest, result_size_bytes, memory_bytes_max)
            patch.write(files.enter_context(output.open("wb")))
    except (MalformedDeltaError, ManifestError) as err:
        output.unlink(missing_ok=True)
        raise _failed(str(err)) from err
    except OSError as err:
        output.unlink(missing_ok=True)
        if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StepError("NO_SPACE", f"The disk is full: applying the delta to {output.name} failed.") from err
        raise _failed(f"the operating system refused it ({err.strerror})") from err
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _failed(reason: str) -> StepError:
    return StepError("DELTA_FAILED", f"The delta was not applied: {reason}. The whole artifact is needed.")


class _Patch:
    """One application of a delta. Raises MalformedDeltaError and ManifestError for what is wrong with it."""

    def __init__(self, delta: BinaryIO, base: BinaryIO) -> None:
        self._delta, self._base = delta, base
        head = _read(delta, 0, HEAD.size)
        magic, stored_bytes = HEAD.unpack(head)
        if magic[:-1] != MAGIC[:-1]:
            raise MalformedDeltaError("the file is no delta")
        if magic != MAGIC:
            raise MalformedDeltaError(f"its format is version {magic[-1]}; this agent reads version {MAGIC[-1]}")
        if stored_bytes > PLAN_BYTES_MAX:
            raise MalformedDeltaError(f"its plan has {stored_bytes:,} bytes; at most {PLAN_BYTES_MAX:,} are read")
        self._plan = Plan.from_msgpack(unpacked(_read(delta, HEAD.size, stored_bytes), PLAN_BYTES_MAX, is_exact=False))
        self._payload_at = HEAD.size + stored_bytes

    def check(self, result_digest: str | None, result_size_bytes: int | None, memory_bytes_max: int) -> None:
        """Whether the delta is whole, is the one that was offered and is meant for this base."""
        plan = self._plan
        size_bytes = self._payload_at + sum(plan.payload_bytes())
        if _size_of(self._delta) != size_bytes:
            raise MalformedDeltaError(f"it has {_size_of(self._delta):,} bytes instead of {size_bytes:,}")
        if result_digest is not None and result_digest != _digest(plan.result):
            raise MalformedDeltaError(f"it makes {_digest(plan.result)}; the offer says {result_digest}")
        if result_size_bytes is not None and result_size_bytes != plan.result.size_bytes:
            raise MalformedDeltaError(
                f"it makes {plan.result.size_bytes:,} bytes; the offer says {result_size_bytes:,}"
            )
        if plan.memory_bytes() > memory_bytes_max:
            raise MalformedDeltaError(f"it needs {plan.memory_bytes():,} bytes of memory of {memory_bytes_max:,}")
        if _size_of(self._base) != plan.base.size_bytes:
            raise MalformedDeltaError(f"it is meant for a base of {plan.base.size_bytes:,} bytes, which this is not")
        if self._base_sha256() != plan.base.sha256:
            raise MalformedDeltaError(f"it is meant for {_digest(plan.base)}, which the base is not")

    def write(self, output: BinaryIO) -> None:
        """Make the result."""
        streams = self._streams()
        sha256 = hashlib.sha256()

        def put(content: bytes | memoryview) -> None:
            sha256.update(content)
            output.write(content)

        for operation, cursor in self._plan.placed():
            if isinstance(operation, Copy):
                for content in self._read_base(Range(cursor, operation.length)):
                    put(content)
            else:
                streams[operation.stream].take(operation.length, put)
        if sha256.digest() != self._plan.result.sha256:
            raise MalformedDeltaError(f"the result is sha256:{sha256.hexdigest()}, not {_digest(self._plan.result)}")

    def _streams(self) -> list["_Stream"]:
        changes: list[list[Range]] = [[] for _ in self._plan.streams]
        for operation, cursor in self._plan.placed():
            if isinstance(operation, Change):
                changes[operation.stream].append(Range(cursor, operation.length))
        streams: list[_Stream] = []
        position = self._payload_at
        for stream, origin, length, stored in zip(
            self._plan.streams, changes, self._plan.lengths_bytes(), self._plan.payload_bytes(), strict=True
        ):
            if isinstance(stream, Text):
                streams.append(_Stream(_texts(stream, self._delta, position, self._prefix)))
            else:
                old = _Stream(part for each in origin for part in self._read_base(each)) if origin else None
                streams.append(_Stream(_elements(stream, self._delta, position, length, old)))
            position += stored
        return streams

    def _prefix(self, chunk: Chunk) -> bytes:
        return b"".join(part for each in chunk.prefix for part in self._read_base(each))

    def _read_base(self, part: Range) -> Iterator[bytes]:
        for first in range(part.offset, part.offset + part.length, _READ_BYTES):
            yield _read(self._base, first, min(_READ_BYTES, part.offset + part.length - first))

    def _base_sha256(self) -> bytes:
        sha256 = hashlib.sha256()
        for content in self._read_base(Range(0, self._plan.base.size_bytes)) if self._plan.base.size_bytes else ():
            sha256.update(content)
        return sha256.digest()


class _Stream:
    """Hands out parts of any length of what comes in parts of other lengths."""

    def __init__(self, parts: Iterator[bytes] | Iterator[memoryview]) -> None:
        self._parts: Iterator[bytes | memoryview] = iter(parts)
        self._rest = memoryview(b"")

    def take(self, length: int, put: Callable[[memoryview], None]) -> None:
        while length:
            if not self._rest:
                self._rest = memoryview(next(self._parts, b""))
                if not self._rest:
                    raise MalformedDeltaError("a stream ends before all of it is taken")
            taken = min(length, len(self._rest))
            put(self._rest[:taken])
            self._rest = self._rest[taken:]
            length -= taken


def _texts(text: Text, delta: BinaryIO, position: int, prefix: Callable[[Chunk], bytes]) -> Iterator[bytes]:
    for chunk in text.chunks:
        yield from _chunk_parts(chunk, delta, position, prefix)
        position += chunk.stored


def _chunk_parts(chunk: Chunk, delta: BinaryIO, position: int, prefix: Callable[[Chunk], bytes]) -> Iterator[bytes]:
    """The text of one chunk in parts, so that it is never held as a whole beside its prefix."""
    try:
        dictionary = zstd.ZstdDict(prefix(chunk), is_raw=True).as_prefix if chunk.prefix else None
        decompressor = zstd.ZstdDecompressor(
            zstd_dict=dictionary, options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}
        )
        stored = _read(delta, position, chunk.stored)
        made = 0
        while not decompressor.eof:
            part = decompressor.decompress(stored, max_length=min(_READ_BYTES, chunk.size - made + 1))
            stored = b""
            made += len(part)
            if made > chunk.size or (not part and not decompressor.eof):
                raise MalformedDeltaError(f"a text does not end after {chunk.size:,} bytes")
            if part:
                yield part
    except zstd.ZstdError as err:
        raise MalformedDeltaError(f"a text is damaged: {err}") from err
    if made != chunk.size or decompressor.unused_data:
        raise MalformedDeltaError(f"a text has {made:,} bytes instead of {chunk.size:,}")


def _elements(
    stream: Elements, delta: BinaryIO, position: int, length: int, old: _Stream | None
) -> Iterator[memoryview]:
    for index, block in enumerate(stream.blocks):
        size_bytes = min(BLOCK_BYTES, length - index * BLOCK_BYTES)
        planes: list[Bytes] = []
        for plane in block.planes:
            stored = _read(delta, position, plane.stored)
            planes.append(read_plane(plane.coder, stored, size_bytes // stream.element.width_bytes))
            position += plane.stored
        if old is None:
            yield inserted(stream.element, planes).data
            continue
        base = bytearray()
        old.take(size_bytes, base.extend)
        yield changed(stream.element, np.frombuffer(base, np.uint8), planes, is_sorted=block.is_sorted).data


def _read(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    content = file.read(length)
    if len(content) != length:
        raise MalformedDeltaError(f"a file ends at byte {offset + len(content):,}, before byte {offset + length:,}")
    return content


def _size_of(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _digest(artifact: Artifact) -> str:
    return f"sha256:{artifact.sha256.hex()}"
