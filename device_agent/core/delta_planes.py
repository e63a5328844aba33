"""Reads the planes of a delta: stored bytes to elements. Pure; the layout is docs/agent/delta-format.md's.

Nothing here trusts its input: whatever the bytes are, the answer has the length that was asked for or there is a
`MalformedDeltaError`, and no array is larger than a block and its sort order.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.delta import (
    RANS_HEAD,
    RANS_LANES_LOG_MAX,
    RANS_LANES_LOG_MIN,
    RANS_SCALE_LOG,
    RANS_SEGMENTS_MAX,
    RANS_STATE_MIN,
    WINDOW_LOG_MAX,
    Coder,
    Element,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[Any]

_SCALE = 1 << RANS_SCALE_LOG
_LOOKUP_ELEMENTS = 65_536


class MalformedDeltaError(ValueError):
    """The delta's bytes are not what its plan says."""


def unpacked(frame: bytes, size_bytes: int, *, is_exact: bool = True) -> bytes:
    """One zstd frame of so many bytes, or of that many at most; never more are made of it, whatever it says."""
    decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX})
    try:
        content = decompressor.decompress(frame, max_length=size_bytes + 1)
    except zstd.ZstdError as err:
        raise MalformedDeltaError(f"a compressed part is damaged: {err}") from err
    if not decompressor.eof or decompressor.unused_data or len(content) > size_bytes:
        raise MalformedDeltaError(f"a compressed part does not end after {size_bytes:,} bytes")
    if is_exact and len(content) != size_bytes:
        raise MalformedDeltaError(f"a compressed part has {len(content):,} bytes instead of {size_bytes:,}")
    return content


def read_plane(coder: Coder, stored: bytes, count: int) -> Bytes:
    """The `count` bytes of a plane."""
    if coder is Coder.RANS:
        return _read_rans(stored, count)
    content = stored if coder is Coder.RAW else unpacked(stored, count)
    if len(content) != count:
        raise MalformedDeltaError(f"a plane has {len(content):,} bytes instead of {count:,}")
    return np.frombuffer(content, np.uint8)


def changed(element: Element, base: Bytes, planes: Sequence[Bytes], *, is_sorted: bool) -> Bytes:
    """The base's elements with their differences added."""
    kind = np.dtype(f"<u{element.width_bytes}")
    old = base.view(kind)
    zigzag = _joined(planes, kind)
    if is_sorted:
        unsorted = np.empty_like(zigzag)
        unsorted[np.argsort(_exponents(element, old), kind="stable")] = zigzag
        zigzag = unsorted
    one = kind.type(1)
    # The lowest bit is the sign: -1 turns every bit over, 0 none.
    zigzag = (zigzag >> one) ^ (~(zigzag & one) + one)
    zigzag += _ordered(element, old)
    return _ordered(element, zigzag).view(np.uint8)


def inserted(element: Element, planes: Sequence[Bytes]) -> Bytes:
    """Elements that have nothing to do with the base."""
    numbers = _joined(planes, np.dtype(f"<u{element.width_bytes}"))
    if element.exponent_bits:
        one, rest = numbers.dtype.type(1), numbers.dtype.type(8 * element.width_bytes - 1)
        numbers = (numbers >> one) | (numbers << rest)
    return numbers.view(np.uint8)


def _joined(planes: Sequence[Bytes], kind: np.dtype[Any]) -> Integers:
    columns = np.empty((len(planes[0]), len(planes)), np.uint8)
    for index, plane in enumerate(planes):
        columns[:, index] = plane
    return columns.reshape(-1).view(kind)


def _ordered(element: Element, numbers: Integers) -> Integers:
    """Floats as integers in the order of their numbers: a negative one has its other bits turned over."""
    if not element.exponent_bits:
        return numbers
    bits = numbers.dtype.type(8 * element.width_bytes - 1)
    one = numbers.dtype.type(1)
    sign = numbers >> bits
    # All bits but the highest where the sign is set, none where it is not.
    turned: Integers = numbers ^ ((~sign + one) >> one)
    return turned


def _exponents(element: Element, numbers: Integers) -> Integers:
    shift = numbers.dtype.type(8 * element.width_bytes - 1 - element.exponent_bits)
    exponents = (numbers >> shift) & numbers.dtype.type((1 << element.exponent_bits) - 1)
    narrow: Integers = exponents.astype(np.uint8 if element.exponent_bits <= 8 else np.uint16)
    return narrow


def _read_rans(stored: bytes, count: int) -> Bytes:
    if len(stored) < RANS_HEAD.size:
        raise MalformedDeltaError("an entropy-coded plane is cut short")
    lanes_log, segment_steps, tables_bytes = RANS_HEAD.unpack_from(stored)
    if not RANS_LANES_LOG_MIN <= lanes_log <= RANS_LANES_LOG_MAX or segment_steps < 1:
        raise MalformedDeltaError(f"an entropy-coded plane has 2**{lanes_log} lanes and segments of {segment_steps}")
    lanes = 1 << lanes_log
    steps = -(-count // lanes)
    segments = -(-steps // segment_steps)
    states_at = RANS_HEAD.size + tables_bytes
    words_at = states_at + 4 * lanes
    if segments > RANS_SEGMENTS_MAX or words_at > len(stored) or (len(stored) - words_at) % 2:
        raise MalformedDeltaError("an entropy-coded plane is not as long as its parts")
    packed = unpacked(stored[RANS_HEAD.size : states_at], segments * 256 * 2)
    tables = np.frombuffer(packed, "<u2").reshape(256, segments).T
    if (tables.sum(axis=1, dtype=np.int64) != _SCALE).any():
        raise MalformedDeltaError("the frequencies of an entropy-coded plane do not add up")
    state = np.frombuffer(stored, "<u4", lanes, states_at).astype(np.uint32)
    words = np.frombuffer(stored, "<u2", offset=words_at)
    rows = np.empty((steps, lanes), np.uint8)
    used = 0
    for segment in range(segments):
        first = segment * segment_steps
        used = _read_segment(rows[first : first + segment_steps], tables[segment], state, words, used)
    if used != len(words) or (state != RANS_STATE_MIN).any():
        raise MalformedDeltaError("an entropy-coded plane does not end where it must")
    return rows.reshape(-1)[:count]


def _read_segment(
    rows: Bytes, table: npt.NDArray[np.uint16], state: npt.NDArray[np.uint32], words: npt.NDArray[np.uint16], used: int
) -> int:
    """Fill the rows from the states and the words; returns how many words are used by then."""
    symbol_at = np.repeat(np.arange(256, dtype=np.uint8), table)
    starts = np.cumsum(table, dtype=np.int64) - table
    frequency_at = table[symbol_at].astype(np.uint32)
    within_at = (np.arange(_SCALE) - starts[symbol_at]).astype(np.uint32)
    low_bits, scale_log = np.uint32(_SCALE - 1), np.uint32(RANS_SCALE_LOG)
    state_min, word_bits = np.uint32(RANS_STATE_MIN), np.uint32(16)
    # Symbols are looked up many rows at once, since numpy's price is by the call, and few enough to bound memory.
    rows_at_once = max(1, _LOOKUP_ELEMENTS // rows.shape[1])
    for first in range(0, len(rows), rows_at_once):
        slots = np.empty(rows[first : first + rows_at_once].shape, np.uint32)
        for slot in slots:
            np.bitwise_and(state, low_bits, out=slot)
            state >>= scale_log
            state *= frequency_at[slot]
            state += within_at[slot]
            hungry = (state < state_min).nonzero()[0]
            if len(hungry):
                following = words[used : used + len(hungry)]
                if len(following) < len(hungry):
                    raise MalformedDeltaError("an entropy-coded plane ends early")
                state[hungry] = (state[hungry] << word_bits) | following
                used += len(hungry)
        rows[first : first + rows_at_once] = symbol_at[slots]
    return used
