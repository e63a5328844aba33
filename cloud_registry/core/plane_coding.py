"""Elements of tensors as byte planes, each stored by the smallest of its coders. Pure.

Where a model is trained on, most of its numbers change a little. As integers that keep the numbers' order, old and new
differ by few units in the last place; zigzag makes those small differences small unsigned integers, and a plane for
each byte of them is mostly noise below and mostly zeros above. What compresses is order-0: no byte tells of the next.
So the usual coder of a plane is rANS, which comes within a percent of the entropy, where zstd's Huffman stage cannot
go below a bit a symbol and bzip2 takes five times as long. docs/agent/delta-format.md gives the layout of each.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.delta import (
    RANS_HEAD,
    RANS_LANES_LOG_MIN,
    RANS_SCALE_LOG,
    RANS_STATE_MIN,
    Block,
    Coder,
    Element,
    Plane,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]  # unsigned, as wide as the element

_SCALE = 1 << RANS_SCALE_LOG
_SAMPLE_ELEMENTS = 16_384
_TRIAL_BYTES = 16_384
# A plane with more bits a byte than this in a sample is stored as it is.
_RAW_BITS_MIN = 7.97
_PLANE_LEVEL = 1
_TABLE_LEVEL = 9
# A power of two, so that a segment is whole steps; and how many of them are tried as one.
_SEGMENT_BYTES = 16_384
_MERGES = (1, 2, 4, 8, 32, 128)
_LANES_LOG_MAX = 11
_RANS_BYTES_MIN = 1024
# What the lanes' states may add to a plane; more only where it would take more steps than this, each of which costs
# some calls of numpy in coding and in proving.
_LANES_SHARE_MAX = 0.05
_STEPS_MAX = 2048


@dataclass(frozen=True, slots=True)
class CodedBlock:
    """A block of the plan, with the payload that belongs to it."""

    block: Block
    payload: bytes


def differences(element: Element, base: Bytes, target: Bytes) -> Integers:
    """Zigzagged differences of the elements as ordered integers; small where the numbers are near each other."""
    kind = np.dtype(f"<u{element.width_bytes}")
    change = _ordered(element, target.view(kind)) - _ordered(element, base.view(kind))
    signed = change.view(kind.str.replace("u", "i"))
    zigzag: Integers = ((signed << 1) ^ (signed >> (8 * element.width_bytes - 1))).view(kind)
    return zigzag


def values(element: Element, target: Bytes) -> Integers:
    """The elements themselves; a float is rotated by a bit, so that its exponent fills the highest bytes."""
    kind = np.dtype(f"<u{element.width_bytes}")
    numbers = target.view(kind)
    if not element.exponent_bits:
        return numbers
    rotated: Integers = (numbers << kind.type(1)) | (numbers >> kind.type(8 * element.width_bytes - 1))
    return rotated


def difference_bits(element: Element, base: Bytes, target: Bytes) -> float:
    """About how many bits an element's difference takes; judged by a sample of the elements."""
    return _planes_bits(differences(element, _sample(element, base), _sample(element, target)))


def value_bits(element: Element, target: Bytes) -> float:
    """About how many bits an element's value takes; judged by a sample of the elements."""
    return _planes_bits(values(element, _sample(element, target)))


def code_differences(element: Element, base: Bytes, target: Bytes) -> CodedBlock:
    numbers = differences(element, base, target)
    if not element.exponent_bits:
        return _code(numbers, is_sorted=False)
    # Where noise is absolute, its size in units in the last place follows from the exponent of what it was added to.
    return _code(numbers[np.argsort(_exponents(element, base), kind="stable")], is_sorted=True)


def code_values(element: Element, target: Bytes) -> CodedBlock:
    return _code(values(element, target), is_sorted=False)


def code_plane(plane: Bytes) -> tuple[Coder, bytes]:
    """The smallest stored form of a plane."""
    if _entropy_bits(plane[:: max(1, len(plane) // _SAMPLE_ELEMENTS)]) > _RAW_BITS_MIN:
        return Coder.RAW, plane.tobytes()
    best: tuple[Coder, bytes] = (Coder.RAW, plane.tobytes())
    if not _is_order_0(plane):
        packed = zstd.compress(best[1], _PLANE_LEVEL)
        if len(packed) < len(best[1]):
            best = Coder.ZSTD, packed
    layout = _Layout.of(plane)
    if len(plane) >= _RANS_BYTES_MIN and layout.size_bytes < len(best[1]):
        coded = _rans(plane, layout)
        if len(coded) < len(best[1]):
            best = Coder.RANS, coded
    return best


def _is_order_0(plane: Bytes) -> bool:
    """Whether zstd finds no more in samples of a long plane than how often each byte is: it need not try the whole."""
    if len(plane) < 8 * _TRIAL_BYTES:
        return False
    starts = (0, len(plane) // 2, len(plane) - _TRIAL_BYTES)
    samples = [plane[start : start + _TRIAL_BYTES] for start in starts]
    return all(
        8 * len(zstd.compress(sample.tobytes(), _PLANE_LEVEL)) > _TRIAL_BYTES * _entropy_bits(sample) > 0
        for sample in samples
    )


def _code(numbers: Integers, *, is_sorted: bool) -> CodedBlock:
    width = numbers.dtype.itemsize
    columns = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, width)
    coded = [code_plane(np.ascontiguousarray(columns[:, index])) for index in range(width)]
    planes = tuple(Plane(coder, len(stored)) for coder, stored in coded)
    return CodedBlock(Block(is_sorted, planes), b"".join(stored for _, stored in coded))


def _ordered(element: Element, numbers: Integers) -> Integers:
    """Bit patterns as unsigned integers that differ by one where two floats are neighbours. Its own inverse."""
    if not element.exponent_bits:
        return numbers
    bits = 8 * element.width_bytes
    signed = numbers.view(numbers.dtype.str.replace("u", "i"))
    magnitude = signed.dtype.type((1 << (bits - 1)) - 1)
    ordered: Integers = (signed ^ ((signed >> (bits - 1)) & magnitude)).view(numbers.dtype)
    return ordered


def _exponents(element: Element, base: Bytes) -> Integers:
    numbers = base.view(np.dtype(f"<u{element.width_bytes}"))
    shift = 8 * element.width_bytes - 1 - element.exponent_bits
    mask = (1 << element.exponent_bits) - 1
    # One byte where it suffices: numpy sorts bytes by counting.
    exponents: Integers = (numbers >> numbers.dtype.type(shift)) & numbers.dtype.type(mask)
    return exponents.astype(np.uint8 if element.exponent_bits <= 8 else np.uint16)


def _sample(element: Element, numbers: Bytes) -> Bytes:
    elements = numbers.view(np.dtype(f"<u{element.width_bytes}"))
    return np.ascontiguousarray(elements[:: max(1, len(elements) // _SAMPLE_ELEMENTS)]).view(np.uint8)


def _planes_bits(numbers: Integers) -> float:
    columns = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, numbers.dtype.itemsize)
    return sum(_entropy_bits(columns[:, index]) for index in range(columns.shape[1]))


def _entropy_bits(plane: Bytes) -> float:
    """Shannon's entropy of the bytes, in bits a byte."""
    return _code_bits(np.bincount(plane, minlength=256)) / max(1, len(plane))


def _code_bits(counts: npt.NDArray[np.int64]) -> float:
    seen = counts[counts > 0].astype(np.float64)
    return float((seen * (np.log2(seen.sum()) - np.log2(seen))).sum())


# --- rANS ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a plane is cut: into steps of one symbol a lane, and segments of steps with a table each."""

    lanes_log: int
    segment_steps: int
    counts: tuple[npt.NDArray[np.int64], ...]
    size_bytes: int

    @classmethod
    def of(cls, plane: Bytes) -> "_Layout":
        """The layout that is estimated to need least: longer segments spare tables, shorter ones follow the data."""
        counts = _segment_counts(plane)
        merges = [merged for merged in _MERGES if merged // 2 < len(counts)]
        lanes_log_min = max(RANS_LANES_LOG_MIN, math.ceil(math.log2(max(1, len(plane)) / _STEPS_MAX)))
        estimated = (cls._estimated(counts, merged, lanes_log_min) for merged in merges)
        return min(estimated, key=lambda layout: layout.size_bytes)

    @classmethod
    def _estimated(cls, counts: list[npt.NDArray[np.int64]], merged: int, lanes_log_min: int) -> "_Layout":
        segments = tuple(np.sum(counts[first : first + merged], axis=0) for first in range(0, len(counts), merged))
        payload_bytes = sum(_code_bits(segment) for segment in segments) / 8
        lanes_log = int(math.log2(max(1.0, payload_bytes * _LANES_SHARE_MAX / 2)))
        lanes_log = min(max(lanes_log, lanes_log_min), _LANES_LOG_MAX)
        tables_bytes = sum(int(np.count_nonzero(segment)) for segment in segments)
        size_bytes = int(payload_bytes) + (2 << lanes_log) + tables_bytes
        return cls(lanes_log, merged * _SEGMENT_BYTES >> lanes_log, segments, size_bytes)


def _segment_counts(plane: Bytes) -> list[npt.NDArray[np.int64]]:
    return [
        np.bincount(plane[first : first + _SEGMENT_BYTES], minlength=256)
        for first in range(0, len(plane), _SEGMENT_BYTES)
    ]


def _frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts scaled to add up to the scale, with one at least for each symbol that occurs."""
    scaled: npt.NDArray[np.int64] = np.maximum(counts * _SCALE // counts.sum(), counts > 0).astype(np.int64)
    while (excess := int(scaled.sum()) - _SCALE) > 0:
        largest = int(np.argmax(scaled))
        scaled[largest] -= min(excess, max(1, int(scaled[largest]) // 2))
    scaled[int(np.argmax(scaled))] -= excess
    return scaled


def _rans(plane: Bytes, layout: _Layout) -> bytes:
    """Range asymmetric numeral systems (Duda 2013), one state for each lane: symbol i belongs to lane i mod lanes.

    Encoding runs backwards and its words are stored in reverse, so that the decoder reads forwards.
    """
    lanes = 1 << layout.lanes_log
    tables = [_frequencies(counts) for counts in layout.counts]
    steps = -(-len(plane) // lanes)
    symbols = np.full(steps * lanes, int(np.argmax(tables[-1])), np.uint8)
    symbols[: len(plane)] = plane
    rows = symbols.reshape(steps, lanes)
    state = np.full(lanes, RANS_STATE_MIN, np.uint32)
    words: list[npt.NDArray[np.uint16]] = []
    for segment in range(len(tables) - 1, -1, -1):
        first = segment * layout.segment_steps
        _encode_segment(rows[first : first + layout.segment_steps], tables[segment], state, words)
    packed_tables = zstd.compress(np.stack(tables).astype("<u2").T.tobytes(), _TABLE_LEVEL)
    head = RANS_HEAD.pack(layout.lanes_log, layout.segment_steps, len(packed_tables))
    stream = np.concatenate(words[::-1]) if words else np.zeros(0, np.uint16)
    return b"".join((head, packed_tables, state.astype("<u4").tobytes(), stream.astype("<u2").tobytes()))


def _encode_segment(
    rows: Bytes, table: npt.NDArray[np.int64], state: npt.NDArray[np.uint32], words: list[npt.NDArray[np.uint16]]
) -> None:
    """Put the rows' symbols into the states, the last row first; words that overflow are appended."""
    # The largest state that still has room for the symbol.
    limit = ((table << (32 - RANS_SCALE_LOG)) - 1).clip(0)
    # Looked up for all rows at once: numpy's price is by the call.
    symbols = rows.astype(np.intp)
    limits, frequencies, complements, starts = (
        column.astype(np.uint32).take(symbols) for column in (limit, table, _SCALE - table, np.cumsum(table) - table)
    )
    for row in range(len(rows) - 1, -1, -1):
        full = (state > limits[row]).nonzero()[0]
        if len(full):
            overflowing = state[full]
            words.append(overflowing.astype(np.uint16))
            state[full] = overflowing >> 16
        state += state // frequencies[row] * complements[row]
        state += starts[row]
