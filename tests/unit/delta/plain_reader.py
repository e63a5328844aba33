"""A second implementation of docs/agent/delta-format.md, for tests: slow, plain, and sharing nothing with the agent's.

It trusts its input. Numbers are Python's, and nothing is borrowed but zstd and a reader of MessagePack.
"""

import hashlib
import struct
import sys

import msgspec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WIDTHS = {1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 2, 7: 4, 8: 8}
EXPONENTS = {5: 5, 6: 8, 7: 8, 8: 11}
BLOCK_BYTES = 2 * 1024 * 1024


def apply(delta: bytes, base: bytes) -> bytes:
    assert delta[:8] == b"SLDELTA\x01"
    plan_bytes = int.from_bytes(delta[8:12], "little")
    plan = msgspec.msgpack.decode(zstd.decompress(delta[12 : 12 + plan_bytes]))
    (base_sha256, _), (result_sha256, _), operations, streams = plan
    assert hashlib.sha256(base).digest() == base_sha256
    origins = [b"" for _ in streams]
    cursor = 0
    for operation in operations:
        if operation[0] != 2:
            cursor += operation[-2]
            if operation[0] == 1:
                origins[operation[1]] += base[cursor : cursor + operation[-1]]
            cursor += operation[-1]
    lengths = [sum(one[-1] for one in operations if one[0] != 0 and one[1] == index) for index in range(len(streams))]
    payload = Payload(delta, 12 + plan_bytes)
    contents = [
        read_text(stream, base, payload) if stream[0] == 0 else read_elements(stream, origin, length, payload)
        for stream, origin, length in zip(streams, origins, lengths, strict=True)
    ]
    result = b""
    cursor = 0
    for operation in operations:
        length = operation[-1]
        if operation[0] != 2:
            cursor += operation[-2]
        if operation[0] == 0:
            result += base[cursor : cursor + length]
        else:
            result += contents[operation[1]][:length]
            contents[operation[1]] = contents[operation[1]][length:]
        if operation[0] != 2:
            cursor += length
    assert hashlib.sha256(result).digest() == result_sha256
    return result


class Payload:
    def __init__(self, content: bytes, position: int) -> None:
        self.content, self.position = content, position

    def take(self, length: int) -> bytes:
        self.position += length
        return self.content[self.position - length : self.position]


def read_text(stream: list, base: bytes, payload: Payload) -> bytes:
    text = b""
    for _, stored, *prefix in stream[1]:
        before = b"".join(base[offset : offset + length] for offset, length in (prefix[0] if prefix else []))
        dictionary = zstd.ZstdDict(before, is_raw=True).as_prefix if before else None
        text += zstd.decompress(payload.take(stored), zstd_dict=dictionary)
    return text


def read_elements(stream: list, origin: bytes, length: int, payload: Payload) -> bytes:
    _, element, blocks = stream
    content = b""
    for index, (is_sorted, planes) in enumerate(blocks):
        size = min(BLOCK_BYTES, length - index * BLOCK_BYTES)
        count = size // WIDTHS[element]
        columns = [read_plane(coder, payload.take(stored), count) for coder, stored in planes]
        numbers = [sum(column[i] << 8 * place for place, column in enumerate(columns)) for i in range(count)]
        old = origin[index * BLOCK_BYTES :][:size]
        content += changed(element, old, numbers, is_sorted) if old else inserted(element, numbers)
    return content


def inserted(element: int, numbers: list[int]) -> bytes:
    bits = 8 * WIDTHS[element]
    if element in EXPONENTS:
        numbers = [(number >> 1) | ((number & 1) << (bits - 1)) for number in numbers]
    return b"".join(number.to_bytes(bits // 8, "little") for number in numbers)


def changed(element: int, old: bytes, numbers: list[int], is_sorted: bool) -> bytes:
    width = WIDTHS[element]
    base = [int.from_bytes(old[first : first + width], "little") for first in range(0, len(old), width)]
    if is_sorted:
        shift, mask = 8 * width - 1 - EXPONENTS[element], (1 << EXPONENTS[element]) - 1
        order = sorted(range(len(base)), key=lambda index: (base[index] >> shift) & mask)
        numbers = [number for _, number in sorted(zip(order, numbers, strict=True))]
    result = b""
    for number, bits in zip(numbers, base, strict=True):
        difference = (number >> 1) ^ -(number & 1)
        total = (ordered(element, bits) + difference) % (1 << 8 * width)
        result += ordered(element, total).to_bytes(width, "little")
    return result


def ordered(element: int, bits: int) -> int:
    sign = 1 << (8 * WIDTHS[element] - 1)
    return bits ^ (sign - 1) if element in EXPONENTS and bits & sign else bits


def read_plane(coder: int, stored: bytes, count: int) -> bytes:
    return [lambda: stored, lambda: zstd.decompress(stored), lambda: read_rans(stored, count)][coder]()


def read_rans(stored: bytes, count: int) -> bytes:
    lanes_log, segment_steps, tables_bytes = struct.unpack_from("<BHI", stored)
    lanes = 1 << lanes_log
    steps = -(-count // lanes)
    segments = -(-steps // segment_steps)
    frequencies = struct.unpack(f"<{256 * segments}H", zstd.decompress(stored[7 : 7 + tables_bytes]))
    states = list(struct.unpack_from(f"<{lanes}I", stored, 7 + tables_bytes))
    words = iter(
        struct.unpack(f"<{(len(stored) - 7 - tables_bytes - 4 * lanes) // 2}H", stored[7 + tables_bytes + 4 * lanes :])
    )
    symbols = bytearray()
    for step in range(steps):
        table = frequencies[step // segment_steps :: segments]
        for lane, state in enumerate(states):
            slot, start, symbol = state % (1 << 14), 0, 0
            while slot >= start + table[symbol]:
                start += table[symbol]
                symbol += 1
            symbols.append(symbol)
            state = table[symbol] * (state >> 14) + slot - start
            states[lane] = state if state >= 1 << 16 else (state << 16) | next(words)
    assert not list(words)
    assert set(states) == {1 << 16}
    return bytes(symbols[:count])
