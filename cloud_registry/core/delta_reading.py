"""What a delta makes of its base, to prove a delta before it is published. Pure; docs/agent/delta-format.md's rules.

Written from the format's description and not from the coder, so that a fault of the coder shows. It trusts what it
reads to be ours; a device's reader, which must not, is the agent's.
"""

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.delta import (
    BLOCK_BYTES,
    HEAD,
    RANS_HEAD,
    RANS_SCALE_LOG,
    RANS_STATE_MIN,
    Coder,
    Copy,
    Element,
    Elements,
    Insert,
    Plan,
    Text,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Bytes = npt.NDArray[np.uint8]

_SCALE_SHIFT, _WORD_SHIFT = np.uint32(RANS_SCALE_LOG), np.uint32(16)
_SLOT_MASK = np.uint32((1 << RANS_SCALE_LOG) - 1)
_STATE_MIN = np.uint32(RANS_STATE_MIN)
_SLOTS = np.arange(1 << RANS_SCALE_LOG, dtype=np.uint32)
_SYMBOLS = np.arange(256, dtype=np.uint8)


def result_digest(delta: memoryview, base: Bytes) -> str:
    """The digest of what the delta makes of this base.

    Raises:
        ValueError: it is meant for another base, or ends too early; also what the decoders raise for damaged bytes.
    """
    _, plan_bytes = HEAD.unpack_from(delta)
    plan = Plan.from_msgpack(zstd.decompress(delta[HEAD.size : HEAD.size + plan_bytes]))
    if hashlib.sha256(base.data).digest() != plan.base.sha256:
        raise ValueError("the delta is meant for another base")
    origins: list[list[Bytes]] = [[] for _ in plan.streams]
    for operation, cursor in plan.placed():
        if not isinstance(operation, Copy | Insert):
            origins[operation.stream].append(base[cursor : cursor + operation.length])
    parts = []
    position = HEAD.size + plan_bytes
    sizes = zip(plan.streams, origins, plan.lengths_bytes(), plan.payload_bytes(), strict=True)
    for stream, origin, length, stored in sizes:
        payload = delta[position : position + stored]
        position += stored
        contents = (
            _texts(stream, payload, base)
            if isinstance(stream, Text)
            else _blocks(stream, payload, length, _Joined(iter(origin)) if origin else None)
        )
        parts.append(_Joined(contents))
    sha256 = hashlib.sha256()
    for operation, cursor in plan.placed():
        if isinstance(operation, Copy):
            sha256.update(base[cursor : cursor + operation.length].data)
        else:
            for content in parts[operation.stream].take(operation.length):
                sha256.update(content.data)
    return "sha256:" + sha256.hexdigest()


class _Joined:
    """A stream's contents as one text, taken in lengths of the operations' choice."""

    def __init__(self, contents: Iterator[Bytes]) -> None:
        self._contents = contents
        self._rest = np.zeros(0, np.uint8)

    def take(self, length: int) -> Iterator[Bytes]:
        while length:
            if not len(self._rest):
                content = next(self._contents, None)
                if content is None:
                    raise ValueError("a stream of the delta ends too early")
                self._rest = content
            taken, self._rest = self._rest[:length], self._rest[length:]
            length -= len(taken)
            yield taken


def _texts(text: Text, payload: memoryview, base: Bytes) -> Iterator[Bytes]:
    position = 0
    for chunk in text.chunks:
        prefix = b"".join(base[part.offset : part.offset + part.length].tobytes() for part in chunk.prefix)
        dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
        frame = payload[position : position + chunk.stored]
        position += chunk.stored
        yield np.frombuffer(zstd.decompress(frame, zstd_dict=dictionary), np.uint8)


def _blocks(stream: Elements, payload: memoryview, length: int, old: _Joined | None) -> Iterator[Bytes]:
    element, position = stream.element, 0
    kind = np.dtype(f"<u{element.width_bytes}")
    for index, block in enumerate(stream.blocks):
        size_bytes = min(BLOCK_BYTES, length - index * BLOCK_BYTES)
        count = size_bytes // element.width_bytes
        columns = []
        for plane in block.planes:
            columns.append(_plane(plane.coder, payload[position : position + plane.stored], count))
            position += plane.stored
        numbers = np.stack(columns, axis=1).reshape(-1).view(kind)
        if old is None:
            yield _values(element, numbers).view(np.uint8)
        else:
            origin = np.concatenate(list(old.take(size_bytes))).view(kind)
            yield _added(element, origin, numbers, is_sorted=block.is_sorted).view(np.uint8)


def _values(element: Element, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A float stands with its sign below its lowest bit."""
    if not element.exponent_bits:
        return numbers
    top = numbers.dtype.type(8 * element.width_bytes - 1)
    rotated: npt.NDArray[Any] = (numbers >> numbers.dtype.type(1)) | (numbers << top)
    return rotated


def _added(
    element: Element, origin: npt.NDArray[Any], numbers: npt.NDArray[Any], *, is_sorted: bool
) -> npt.NDArray[Any]:
    """The base's elements, as integers in the order of their numbers, with the zigzagged differences added."""
    if is_sorted:
        shift = origin.dtype.type(8 * element.width_bytes - 1 - element.exponent_bits)
        exponents = (origin >> shift) & origin.dtype.type((1 << element.exponent_bits) - 1)
        places = np.argsort(exponents.astype(np.uint16), kind="stable")
        ordered = numbers
        numbers = np.empty_like(ordered)
        numbers[places] = ordered
    one = numbers.dtype.type(1)
    # Odd numbers stand for negative differences: their halves are complemented.
    differences = (numbers >> one) ^ -(numbers & one)
    return _in_order(element, _in_order(element, origin) + differences)


def _in_order(element: Element, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not element.exponent_bits:
        return numbers
    # Where the sign bit is set, all bits below it are turned over.
    sign_place = numbers.dtype.type(8 * element.width_bytes - 1)
    below = numbers.dtype.type((1 << int(sign_place)) - 1)
    turned: npt.NDArray[Any] = numbers ^ ((numbers >> sign_place) * below)
    return turned


def _plane(coder: Coder, stored: memoryview, count: int) -> Bytes:
    if coder is Coder.RANS:
        return _rans(stored, count)
    content = np.frombuffer(stored if coder is Coder.RAW else zstd.decompress(stored), np.uint8)
    if len(content) != count:
        raise ValueError("a plane of the delta is not as long as its block")
    return content


def _rans(stored: memoryview, count: int) -> Bytes:
    """Each lane gives one symbol a step; a lane whose state is too small takes the next word, lowest lane first."""
    lanes_log, segment_steps, tables_bytes = RANS_HEAD.unpack_from(stored)
    lanes, at = 1 << lanes_log, RANS_HEAD.size + tables_bytes
    steps = -(-count // lanes)
    segments = -(-steps // segment_steps)
    tables = np.frombuffer(zstd.decompress(stored[RANS_HEAD.size : at]), "<u2").reshape(256, segments).astype(np.uint32)
    state = np.frombuffer(stored[at : at + 4 * lanes], "<u4").astype(np.uint32)
    words = np.frombuffer(stored[at + 4 * lanes :], "<u2").astype(np.uint32)
    symbols = np.empty((steps, lanes), np.uint8)
    slots = np.empty((min(steps, segment_steps), lanes), np.intp)
    used = 0
    for segment in range(segments):
        rows = symbols[segment * segment_steps : (segment + 1) * segment_steps]
        used = _decode_segment(tables[:, segment], state, words, used, slots[: len(rows)], rows)
    if used != len(words) or (state != RANS_STATE_MIN).any():
        raise ValueError("a plane of the delta does not end where it must")
    return symbols.reshape(-1)[:count]


def _decode_segment(
    table: npt.NDArray[np.uint32],
    state: npt.NDArray[np.uint32],
    words: npt.NDArray[np.uint32],
    used: int,
    slots: npt.NDArray[np.intp],
    rows: Bytes,
) -> int:
    """Take a segment's rows out of the states, `used` words being used before it; how many are after it."""
    # By slot: the frequency of its symbol, and how far into the symbol's slots it is.
    frequencies = np.repeat(table, table)
    offsets = _SLOTS - np.repeat(np.cumsum(table, dtype=np.uint32) - table, table)
    for row in slots:
        # Written out in steps of numpy without copies: its price is by the call, and this is most of a proof.
        np.bitwise_and(state, _SLOT_MASK, out=row, casting="unsafe")
        np.right_shift(state, _SCALE_SHIFT, out=state)
        np.multiply(state, frequencies.take(row), out=state)
        np.add(state, offsets.take(row), out=state)
        small = (state < _STATE_MIN).nonzero()[0]
        if small.size:
            end = used + small.size
            state[small] = (state.take(small) << _WORD_SHIFT) | words[used:end]
            used = end
    np.repeat(_SYMBOLS, table).take(slots, out=rows, mode="clip")
    return used
