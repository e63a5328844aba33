"""Makes deltas: what a device downloads instead of a whole model when it has an earlier one.

Two ways are tried and the smaller one is kept: tensor by tensor, and the file as text with the base as prefix.
"""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud_registry.core.delta_plan import DELTA_SHARE_MAX, Piece, gaps_of, pair_tensors, pieces_of, window_of
from cloud_registry.core.delta_reading import result_digest
from cloud_registry.core.plane_coding import Bytes, CodedBlock, code_differences, code_values
from cloud_registry.core.tensor_extents import find_extents
from cloud_registry.errors import RegistryError
from manifests.delta import (
    BLOCK_BYTES,
    CHUNK_BYTES_MAX,
    HEAD,
    MAGIC,
    MIB,
    OPERATIONS_MAX,
    PIECES_MAX,
    PLAN_BYTES_MAX,
    PREFIX_BYTES_MAX,
    PREFIX_BYTES_MIN,
    PREFIX_RANGES_MAX,
    STREAMS_MAX,
    Artifact,
    Change,
    Chunk,
    Copy,
    Element,
    Elements,
    Insert,
    Operation,
    Plan,
    Range,
    Stream,
    Text,
)
from manifests.errors import ManifestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Streams of elements besides the text; more kinds than this in one model are taken as text.
_ELEMENT_STREAMS_MAX = STREAMS_MAX - 2
# Beside element streams a prefix is shorter, so that a device's bound holds for all of it together.
_PREFIX_BYTES_MAX_BESIDE = PREFIX_BYTES_MAX // 4
# Text with its prefix up to this size is compressed as well as can be; beyond, that would take seconds.
_THOROUGH_BYTES_MAX = MIB
_PLAN_LEVEL = 19
# Log2 of bytes; holds the longest prefix and its chunk.
_SEARCH_WINDOW_LOG = 25

_Kind = tuple[Element, bool]  # and whether its elements are changes


@dataclass(frozen=True, slots=True)
class MadeDelta:
    """What was written. `method` is ``tensors`` or ``prefix``."""

    size_bytes: int
    sha256: str
    result_size_bytes: int
    method: str

    @property
    def is_worth_sending(self) -> bool:
        return self.size_bytes <= DELTA_SHARE_MAX * self.result_size_bytes


def make_delta(base: Path, target: Path, output: Path) -> MadeDelta:
    """Write to `output` a delta that turns `base` into `target`, byte for byte.

    Takes about a second for 28 MB, and memory for both files where the system has it (they are mapped).

    Raises:
        OSError: a file could not be read or written; no output is left behind.
        RegistryError: the target is too large for any delta (16 GiB of text).
    """
    maker = _Maker(_mapped(base), _mapped(target))
    content, method = maker.by_tensors(), "tensors"
    by_prefix = maker.by_prefix(None if content is None else len(content))
    if by_prefix is not None:
        content, method = by_prefix, "prefix"
    if content is None:
        raise RegistryError(
            f"No delta to {target.name} was made: {target.stat().st_size:,} bytes are more than one can describe.",
            hint="Send the artifact whole.",
        )
    unfinished = output.with_name(output.name + ".part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return MadeDelta(len(content), hashlib.sha256(content).hexdigest(), target.stat().st_size, method)


def make_proven_delta(base: Path, target: Path, output: Path) -> MadeDelta:
    """As `make_delta`, and applied to the base once before anybody else does.

    Raises:
        OSError: as `make_delta` does.
        RegistryError: it does not give the target back, or none can be made; no output is left behind.
    """
    made = make_delta(base, target, output)
    try:
        prove_delta(output, base, target)
    except RegistryError:
        output.unlink(missing_ok=True)
        raise
    return made


def prove_delta(delta: Path, base: Path, target: Path) -> None:
    """Apply a delta to its base; raises RegistryError where it does not give the target."""
    wanted = "sha256:" + _artifact(_mapped(target)).sha256.hex()
    try:
        seen = result_digest(_mapped(delta).data, _mapped(base))
    except (ValueError, IndexError, ManifestError, zstd.ZstdError) as err:
        seen = str(err)
    if seen != wanted:
        raise RegistryError(
            f"the delta to {target.name} gives {seen} instead of {wanted}; it was thrown away",
            hint="Devices fetch the whole file. Please report the two files.",
        )


def _artifact(content: Bytes) -> Artifact:
    return Artifact(hashlib.sha256(content.data).digest(), len(content))


def _mapped(path: Path) -> Bytes:
    if path.stat().st_size == 0:
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r").view(np.ndarray)


class _Maker:
    def __init__(self, base: Bytes, target: Bytes) -> None:
        self._base, self._target = base, target
        self._artifacts = _artifact(base), _artifact(target)

    def by_tensors(self) -> bytes | None:
        """None where the target is no model, or the plan would be longer than a device reads."""
        base_extents, target_extents = find_extents(self._base.data), find_extents(self._target.data)
        if not target_extents:
            return None
        pairs = pair_tensors(self._base, self._target, base_extents, target_extents)
        pieces = _few_kinds(pieces_of(self._base, self._target, pairs))
        return self._coded(pieces, gaps_of(len(self._base), base_extents))

    def by_prefix(self, size_bytes_max: int | None) -> bytes | None:
        """None where it would not be smaller than that."""
        pieces = pieces_of(self._base, self._target, [])
        return self._coded(pieces, gaps_of(len(self._base), []), size_bytes_max)

    def _coded(
        self, pieces: Sequence[Piece], context: Sequence[Range], size_bytes_max: int | None = None
    ) -> bytes | None:
        """The whole delta; None where it has `size_bytes_max` bytes or more."""
        kinds = list(dict.fromkeys(kind for piece in pieces if (kind := _kind(piece))))
        streams: list[Stream] = []
        payload: list[bytes] = []
        for element, is_change in kinds:
            mine = [piece for piece in pieces if _kind(piece) == (element, is_change)]
            coded = self._coded_elements(element, mine, is_change=is_change)
            streams.append(Elements(element, tuple(one.block for one in coded)))
            payload.extend(one.payload for one in coded)
        texts = [piece for piece in pieces if piece.base_start is None and piece.element is None]
        if texts:
            room = None if size_bytes_max is None else size_bytes_max - sum(map(len, payload))
            chunks = self._coded_text(texts, context, _PREFIX_BYTES_MAX_BESIDE if kinds else PREFIX_BYTES_MAX, room)
            if chunks is None:
                return None
            streams.append(Text(tuple(chunk for chunk, _ in chunks)))
            payload.extend(frame for _, frame in chunks)
        plan = Plan(self._artifacts[0], self._artifacts[1], _operations(pieces, kinds), tuple(streams))
        plan.check()
        content = plan.to_msgpack()
        packed = zstd.compress(content, _PLAN_LEVEL)
        delta = b"".join((HEAD.pack(MAGIC, len(packed)), packed, *payload))
        is_smaller = size_bytes_max is None or len(delta) < size_bytes_max
        return delta if is_smaller and _is_readable(plan, content) else None

    def _coded_elements(self, element: Element, pieces: Sequence[Piece], *, is_change: bool) -> list[CodedBlock]:
        new = _Joined(self._target, [(piece.start, piece.length) for piece in pieces])
        old = _Joined(self._base, [(piece.base_start or 0, piece.length) for piece in pieces])
        return [
            code_differences(element, old.block(first), new.block(first))
            if is_change
            else code_values(element, new.block(first))
            for first in range(0, new.length, BLOCK_BYTES)
        ]

    def _coded_text(
        self, pieces: Sequence[Piece], context: Sequence[Range], prefix_bytes_max: int, room_bytes: int | None
    ) -> list[tuple[Chunk, bytes]] | None:
        text = _Joined(self._target, [(piece.start, piece.length) for piece in pieces])
        chunks: list[tuple[Chunk, bytes]] = []
        stored = 0
        for first in range(0, text.length, CHUNK_BYTES_MAX):
            content = text.block(first, CHUNK_BYTES_MAX).tobytes()
            center = pieces[0].start + first + len(content) // 2
            prefix = window_of(context, center, prefix_bytes_max, PREFIX_RANGES_MAX)
            prefix, frame = self._compressed(content, prefix)
            chunks.append((Chunk(len(content), len(frame), prefix), frame))
            stored += len(frame)
            if room_bytes is not None and stored >= room_bytes:
                return None
        return chunks

    def _compressed(self, content: bytes, prefix: tuple[Range, ...]) -> tuple[tuple[Range, ...], bytes]:
        """The smaller of the content as it is and with a prefix, which costs a few bytes of the plan."""
        before = b"".join(self._base[part.offset : part.offset + part.length].tobytes() for part in prefix)
        is_small = len(content) + len(before) <= _THOROUGH_BYTES_MAX
        level: dict[int, int] = {zstd.CompressionParameter.compression_level: 19 if is_small else 1}
        plain = zstd.compress(content, options=level)
        if len(before) < PREFIX_BYTES_MIN:
            return (), plain
        with_prefix = zstd.compress(
            content,
            options=level
            | {
                # Without both of them only what is near is found. The frame says the content's size, so a decoder's
                # window is no larger than that, however far this one searched.
                zstd.CompressionParameter.enable_long_distance_matching: 1,
                zstd.CompressionParameter.window_log: _SEARCH_WINDOW_LOG,
            },
            zstd_dict=zstd.ZstdDict(before, is_raw=True).as_prefix,
        )
        return (prefix, with_prefix) if len(with_prefix) + 6 * len(prefix) < len(plain) else ((), plain)


class _Joined:
    """Extents of a file one after another, as one run of bytes."""

    def __init__(self, content: Bytes, extents: Sequence[tuple[int, int]]) -> None:
        self._content, self._extents = content, extents
        self._starts = np.concatenate(([0], np.cumsum([length for _, length in extents])))
        self.length = int(self._starts[-1])

    def block(self, first: int, size_bytes: int = BLOCK_BYTES) -> Bytes:
        end = min(first + size_bytes, self.length)
        parts: list[Bytes] = []
        index = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < end:
            start, length = self._extents[index]
            skipped = first - int(self._starts[index])
            taken = min(length - skipped, end - first)
            parts.append(self._content[start + skipped : start + skipped + taken])
            first += taken
            index += 1
        return np.concatenate(parts)


def _is_readable(plan: Plan, content: bytes) -> bool:
    """Whether the plan is within what a device reads."""
    pieces = [len(stream.chunks) if isinstance(stream, Text) else len(stream.blocks) for stream in plan.streams]
    return (
        len(content) <= PLAN_BYTES_MAX
        and len(plan.operations) <= OPERATIONS_MAX
        and max(pieces, default=0) <= PIECES_MAX
    )


def _kind(piece: Piece) -> _Kind | None:
    return None if piece.element is None else (piece.element, piece.base_start is not None)


def _few_kinds(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, the least of their kinds taken as text where there are more kinds than a device keeps streams of."""
    sizes: dict[_Kind, int] = {}
    for piece in pieces:
        if (kind := _kind(piece)) is not None:
            sizes[kind] = sizes.get(kind, 0) + piece.length
    kept = sorted(sizes, key=lambda kind: sizes[kind], reverse=True)[:_ELEMENT_STREAMS_MAX]
    return [piece if _kind(piece) in (None, *kept) else Piece(piece.start, piece.length) for piece in pieces]


def _operations(pieces: Sequence[Piece], kinds: Sequence[_Kind]) -> tuple[Operation, ...]:
    operations: list[Operation] = []
    cursor = 0
    for piece in pieces:
        kind = _kind(piece)
        stream = len(kinds) if kind is None else kinds.index(kind)
        if piece.base_start is None:
            operations.append(Insert(stream, piece.length))
            continue
        skip, cursor = piece.base_start - cursor, piece.base_start + piece.length
        operations.append(Copy(skip, piece.length) if kind is None else Change(stream, skip, piece.length))
    return tuple(operations)
