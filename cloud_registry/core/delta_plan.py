"""Which bytes of a new model come from where: from the old model, as changes to its tensors, or anew. Pure.

Handles: pairing of tensors, and the bytes between them. Leaves to the caller: streams, coding, files.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cloud_registry.core.plane_coding import Bytes, difference_bits, value_bits
from cloud_registry.core.tensor_extents import TensorExtent
from manifests.delta import Element, Range

# A delta of more than this share of the artifact saves nothing worth its risk: the artifact is sent whole.
DELTA_SHARE_MAX = 0.85
# Equal bytes at the ends of a gap are copied from here on: below, an operation costs as much as the bytes.
COPY_BYTES_MIN = 16
# How many tensors of the same shape are tried for one that has lost its name.
CANDIDATES_MAX = 16
_COMPARED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes of the result from `start` on.

    From `base_start` on where the base has them: the same, or (`element`) changed elements. Otherwise (`base_start`
    is None) new: elements or text.
    """

    start: int
    length: int
    base_start: int | None = None
    element: Element | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the result, and the tensor of the base that it is nearest to."""

    target: TensorExtent
    base: TensorExtent | None
    is_equal: bool = False


def pair_tensors(
    base: Bytes, target: Bytes, base_extents: Sequence[TensorExtent], target_extents: Sequence[TensorExtent]
) -> list[Pair]:
    """Each tensor of the target with one of the base: an equal one, else its namesake, else the nearest of its shape.

    Exporters number the tensors they have no name for, and a new layer shifts the numbers: so equal content counts
    more than an equal name, and a namesake is taken only where it spares something.
    """
    named = {_key(extent): extent for extent in base_extents}
    pairs: dict[int, Pair] = {}
    for extent in target_extents:
        namesake = named.get(_key(extent))
        if namesake and np.array_equal(_bytes(base, namesake), _bytes(target, extent)):
            pairs[extent.offset] = Pair(extent, namesake, is_equal=True)
    _pair_by_content(pairs, base, target, base_extents, target_extents)
    for extent in target_extents:
        namesake = named.get(_key(extent))
        if extent.offset not in pairs and namesake and _spares(base, target, namesake, extent):
            pairs[extent.offset] = Pair(extent, namesake)
    _pair_by_shape(pairs, base, target, base_extents, target_extents)
    return [pairs.get(extent.offset, Pair(extent, None)) for extent in target_extents]


def pieces_of(base: Bytes, target: Bytes, pairs: Iterable[Pair]) -> list[Piece]:
    """The whole result in pieces, in their order, given its tensors in theirs."""
    plan = _Pieces(base, target)
    for pair in pairs:
        extent, origin = pair.target, pair.base
        plan.between(extent.offset, len(base) if origin is None else origin.offset)
        if origin is None:
            plan.add(Piece(extent.offset, extent.length, None, extent.element))
        else:
            element = None if pair.is_equal else extent.element
            plan.add(Piece(extent.offset, extent.length, origin.offset, element))
    plan.between(len(target), len(base))
    return plan.pieces


def gaps_of(size_bytes: int, extents: Iterable[TensorExtent]) -> list[Range]:
    """What is between the tensors of a file."""
    gaps: list[Range] = []
    end = 0
    for extent in extents:
        if extent.offset > end:
            gaps.append(Range(end, extent.offset - end))
        end = extent.offset + extent.length
    if size_bytes > end:
        gaps.append(Range(end, size_bytes - end))
    return gaps


def window_of(ranges: Sequence[Range], center: int, size_bytes_max: int, ranges_max: int) -> tuple[Range, ...]:
    """The part of some ranges, taken as one text, that is around a place in it and within the bounds."""
    total = sum(part.length for part in ranges)
    first = max(0, min(center - size_bytes_max // 2, total - size_bytes_max))
    window: list[Range] = []
    position = 0
    for part in ranges:
        start, end = max(first, position), min(first + size_bytes_max, position + part.length)
        if end > start:
            window.append(Range(part.offset + start - position, end - start))
        position += part.length
    # The longest are kept: short ones are the heads of tensors, all alike.
    kept = sorted(window, key=lambda part: part.length, reverse=True)[:ranges_max]
    return tuple(sorted(kept, key=lambda part: part.offset))


class _Pieces:
    """Collects pieces from the start of the result to its end."""

    def __init__(self, base: Bytes, target: Bytes) -> None:
        self._base, self._target = base, target
        self._end = 0
        self._cursor = 0
        self.pieces: list[Piece] = []

    def add(self, piece: Piece) -> None:
        assert piece.start == self._end, "pieces leave no gap"
        self._end += piece.length
        if piece.base_start is not None:
            self._cursor = piece.base_start + piece.length
        last = self.pieces[-1] if self.pieces else None
        if last and _continues(last, piece):
            self.pieces[-1] = Piece(last.start, last.length + piece.length, last.base_start, last.element)
        else:
            self.pieces.append(piece)

    def between(self, end: int, base_end: int) -> None:
        """The bytes up to `end`: likely those of the base after the last piece, or those before `base_end`."""
        length = end - self._end
        if not length:
            return
        text = self._target[self._end : end]
        head = _common_prefix(self._base[self._cursor :], text)
        tail = _common_prefix(self._base[:base_end][::-1], text[::-1])
        if tail == length and head < length:
            head = 0
        tail = min(tail, length - head)
        if head and (head >= COPY_BYTES_MIN or head == length):
            self.add(Piece(self._end, head, self._cursor))
        if tail < COPY_BYTES_MIN and tail < length:
            tail = 0
        if middle := end - tail - self._end:
            self.add(Piece(self._end, middle))
        if tail:
            self.add(Piece(self._end, tail, base_end - tail))


def _continues(last: Piece, piece: Piece) -> bool:
    """Whether two pieces are one: of one kind, and where they come from the base, from adjoining places."""
    if last.element is not piece.element or (last.base_start is None) != (piece.base_start is None):
        return False
    return last.base_start is None or last.base_start + last.length == piece.base_start


def _common_prefix(one: Bytes, other: Bytes) -> int:
    """How many bytes are equal at the start."""
    length = min(len(one), len(other))
    for first in range(0, length, _COMPARED_BYTES):
        end = min(first + _COMPARED_BYTES, length)
        differing = np.flatnonzero(one[first:end] != other[first:end])
        if len(differing):
            return first + int(differing[0])
    return length


def _pair_by_content(
    pairs: dict[int, Pair],
    base: Bytes,
    target: Bytes,
    base_extents: Sequence[TensorExtent],
    target_extents: Sequence[TensorExtent],
) -> None:
    wanted = {extent.length for extent in target_extents if extent.offset not in pairs}
    contents = {_digest(base, extent): extent for extent in base_extents if extent.length in wanted}
    lengths = {extent.length for extent in contents.values()}
    for extent in target_extents:
        if extent.offset not in pairs and extent.length in lengths:
            origin = contents.get(_digest(target, extent))
            if origin:
                pairs[extent.offset] = Pair(extent, origin, is_equal=True)


def _pair_by_shape(
    pairs: dict[int, Pair],
    base: Bytes,
    target: Bytes,
    base_extents: Sequence[TensorExtent],
    target_extents: Sequence[TensorExtent],
) -> None:
    """Pair what is left with the nearest of its kind that is left."""
    used = {pair.base.offset for pair in pairs.values() if pair.base}
    free: dict[tuple[Element, tuple[int, ...], int], list[TensorExtent]] = defaultdict(list)
    for extent in base_extents:
        if extent.offset not in used:
            free[extent.element, extent.shape, extent.length].append(extent)
    for extent in target_extents:
        candidates = free[extent.element, extent.shape, extent.length][:CANDIDATES_MAX]
        if extent.offset in pairs or not candidates:
            continue
        new = _bytes(target, extent)
        bits = [difference_bits(extent.element, _bytes(base, candidate), new) for candidate in candidates]
        if min(bits) < value_bits(extent.element, new):
            nearest = candidates[bits.index(min(bits))]
            free[extent.element, extent.shape, extent.length].remove(nearest)
            pairs[extent.offset] = Pair(extent, nearest)


def _spares(base: Bytes, target: Bytes, origin: TensorExtent, extent: TensorExtent) -> bool:
    new = _bytes(target, extent)
    return difference_bits(extent.element, _bytes(base, origin), new) < value_bits(extent.element, new)


def _key(extent: TensorExtent) -> tuple[str, Element, tuple[int, ...], int]:
    return extent.name, extent.element, extent.shape, extent.length


def _bytes(content: Bytes, extent: TensorExtent) -> Bytes:
    return content[extent.offset : extent.offset + extent.length]


def _digest(content: Bytes, extent: TensorExtent) -> bytes:
    return hashlib.sha256(_bytes(content, extent).data).digest()
