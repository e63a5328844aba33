"""Readers of the two forms that model files have: protobuf (ONNX) and flatbuffers (TFLite). Pure.

They are small because they read structure and never weights, and they tell offsets, which neither format's own library
does. They trust nothing: each offset and length is checked against the file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

VARINT, _FIXED64, LENGTH, _FIXED32 = 0, 1, 2, 5


class MalformedModelError(ValueError):
    """The bytes are no model of a known format."""


@dataclass(frozen=True, slots=True)
class Field:
    """A protobuf field: a varint's `value`, or the extent of anything else."""

    number: int
    wire_type: int
    value: int
    start: int
    end: int


def packed_numbers(view: memoryview, field: Field) -> Iterator[int]:
    position = field.start
    while position < field.end:
        value, position = _varint(view, position, field.end)
        yield value


def field_text(view: memoryview, field: Field) -> str:
    return bytes(view[field.start : field.end]).decode("utf-8", "replace")


def protobuf_fields(view: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of a message; raises MalformedModelError where one reaches past its end."""
    position = start
    while position < end:
        key, position = _varint(view, position, end)
        number, wire_type = key >> 3, key & 7
        value, first = 0, position
        if wire_type == VARINT:
            value, position = _varint(view, position, end)
        elif wire_type == LENGTH:
            length, first = _varint(view, position, end)
            position = first + length
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise MalformedModelError(f"wire type {wire_type} at byte {first}")
        if position > end or number == 0:
            raise MalformedModelError(f"a field at byte {first} reaches past the end of its message")
        yield Field(number, wire_type, value, first, position)


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise MalformedModelError(f"a number at byte {position} does not end")


class Flatbuffer:
    """Reads tables and vectors; raises MalformedModelError for any offset outside the file."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def number(self, layout: str, position: int) -> int:
        if not 0 <= position <= len(self._view) - struct.calcsize(layout):
            raise MalformedModelError(f"an offset leads to byte {position}, outside the file")
        value: int = struct.unpack_from(layout, self._view, position)[0]
        return value

    def field(self, table: int, index: int) -> int:
        """Where a table's field stands; zero where it is absent."""
        layout = table - self.number("<i", table)
        if 4 + 2 * index + 2 > self.number("<H", layout):
            return 0
        offset = self.number("<H", layout + 4 + 2 * index)
        return table + offset if offset else 0

    def scalar(self, table: int, index: int, layout: str) -> int:
        position = self.field(table, index)
        return self.number(layout, position) if position else 0

    def vector(self, table: int, index: int, width_bytes: int) -> tuple[int, int]:
        """The extent of a vector's items; empty where it is absent."""
        position = self.field(table, index)
        if not position:
            return 0, 0
        start = position + self.number("<I", position)
        end = start + 4 + self.number("<I", start) * width_bytes
        if end > len(self._view):
            raise MalformedModelError(f"a vector at byte {start} reaches past the end of the file")
        return start + 4, end

    def tables(self, table: int, index: int) -> Iterator[int]:
        start, end = self.vector(table, index, 4)
        for position in range(start, end, 4):
            yield position + self.number("<I", position)

    def buffer_extent(self, buffer: int) -> tuple[int, int] | None:
        """Offset and length of a buffer's data, which large files keep behind the flatbuffer."""
        start, end = self.vector(buffer, 0, 1)
        if end > start:
            return start, end - start
        offset, length = self.scalar(buffer, 1, "<Q"), self.scalar(buffer, 2, "<Q")
        if offset > 1 and length and offset + length <= len(self._view):
            return offset, length
        return None
