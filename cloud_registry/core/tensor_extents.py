"""Where the tensors of a model file stand: byte extents in the original, found without re-writing anything. Pure.

Two small readers, of protobuf (ONNX) and of flatbuffers (TFLite), since neither format's own library tells offsets.
They trust nothing: each offset and length is checked against the file, and a file that breaks a rule has no extents.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from manifests.delta import Element

# A tensor that is smaller is left among the bytes between: naming it costs more than it has.
TENSOR_BYTES_MIN = 32
TENSORS_MAX = 100_000
GRAPH_DEPTH_MAX = 16

_TFLITE_IDENTIFIER = b"TFL3"


@dataclass(frozen=True, slots=True)
class TensorExtent:
    """A tensor's `length` bytes from `offset` on in the model file, little-endian, in row-major order."""

    name: str
    element: Element
    shape: tuple[int, ...]
    offset: int
    length: int


class MalformedModelError(ValueError):
    """The bytes are no model of a known format."""


def find_extents(model: bytes | memoryview) -> list[TensorExtent]:
    """The tensors of an ONNX or TFLite file in the order of their offsets, none of them overlapping.

    Empty for a file of another format and for one that is damaged: such a file still has a delta, only a larger one.
    """
    view = memoryview(model).cast("B")
    try:
        found = _tflite_extents(view) if bytes(view[4:8]) == _TFLITE_IDENTIFIER else _onnx_extents(view)
    except MalformedModelError:
        return []
    disjoint: list[TensorExtent] = []
    end = 0
    for extent in sorted(found, key=lambda extent: (extent.offset, extent.length)):
        is_whole = extent.length % extent.element.width_bytes == 0
        if is_whole and extent.offset >= end and extent.length >= TENSOR_BYTES_MIN:
            disjoint.append(extent)
            end = extent.offset + extent.length
    return disjoint


# --- ONNX: field numbers of onnx.proto --------------------------------------------------------------------------

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# TensorProto.DataType; whatever is not listed (float8, packed int4) is taken byte by byte.
_ONNX_ELEMENTS = {
    1: Element.FLOAT32, 4: Element.INT16, 5: Element.INT16, 6: Element.INT32, 7: Element.INT64, 10: Element.FLOAT16,
    11: Element.FLOAT64, 12: Element.INT32, 13: Element.INT64, 16: Element.BFLOAT16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Field:
    """A protobuf field: a varint's `value`, or the extent of anything else."""

    number: int
    wire_type: int
    value: int
    start: int
    end: int


def _onnx_extents(view: memoryview) -> list[TensorExtent]:
    found: list[TensorExtent] = []
    for field in _fields(view, 0, len(view)):
        if field.number == 7 and field.wire_type == _LENGTH:  # ModelProto.graph
            _graph_extents(view, field, found, depth=0)
    return found


def _graph_extents(view: memoryview, graph: _Field, found: list[TensorExtent], depth: int) -> None:
    if depth > GRAPH_DEPTH_MAX:
        raise MalformedModelError("graphs within graphs, deeper than any model has")
    for field in _fields(view, graph.start, graph.end):
        if field.wire_type != _LENGTH:
            continue
        if field.number == 5:  # GraphProto.initializer
            _tensor_extent(view, field, found, "")
        elif field.number == 1:  # GraphProto.node
            _node_extents(view, field, found, depth)


def _node_extents(view: memoryview, node: _Field, found: list[TensorExtent], depth: int) -> None:
    output = ""
    attributes: list[_Field] = []
    for field in _fields(view, node.start, node.end):
        if field.wire_type == _LENGTH and field.number == 2:  # NodeProto.output
            output = output or _text(view, field)
        elif field.wire_type == _LENGTH and field.number == 5:  # NodeProto.attribute
            attributes.append(field)
    for attribute in attributes:
        if attribute.end - attribute.start < TENSOR_BYTES_MIN:
            continue
        for field in _fields(view, attribute.start, attribute.end):
            if field.wire_type == _LENGTH and field.number in (5, 10):  # AttributeProto.t, tensors
                _tensor_extent(view, field, found, output)
            elif field.wire_type == _LENGTH and field.number in (6, 11):  # AttributeProto.g, graphs
                _graph_extents(view, field, found, depth + 1)


def _tensor_extent(view: memoryview, tensor: _Field, found: list[TensorExtent], name: str) -> None:
    """Note the tensor's values where they are one run of little-endian numbers."""
    shape: list[int] = []
    kind = 0
    values: list[tuple[Element | None, _Field]] = []
    for field in _fields(view, tensor.start, tensor.end):
        match field.number, field.wire_type:
            case 1, wire_type if wire_type == _VARINT:
                shape.append(field.value)
            case 1, wire_type if wire_type == _LENGTH:
                shape.extend(_packed(view, field))
            case 2, wire_type if wire_type == _VARINT:
                kind = field.value
            case 8, wire_type if wire_type == _LENGTH:
                name = _text(view, field) or name
            case 9, wire_type if wire_type == _LENGTH:  # raw_data
                values.append((None, field))
            case 4, wire_type if wire_type == _LENGTH:  # float_data, packed
                values.append((Element.FLOAT32, field))
            case 10, wire_type if wire_type == _LENGTH:  # double_data, packed
                values.append((Element.FLOAT64, field))
    if len(values) != 1 or len(found) >= TENSORS_MAX:
        return
    element, data = values[0]
    element = element or _ONNX_ELEMENTS.get(kind, Element.INT8)
    found.append(TensorExtent(name, element, tuple(shape), data.start, data.end - data.start))


def _packed(view: memoryview, field: _Field) -> Iterator[int]:
    position = field.start
    while position < field.end:
        value, position = _varint(view, position, field.end)
        yield value


def _text(view: memoryview, field: _Field) -> str:
    return bytes(view[field.start : field.end]).decode("utf-8", "replace")


def _fields(view: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of a message; raises MalformedModelError where one reaches past its end."""
    position = start
    while position < end:
        key, position = _varint(view, position, end)
        number, wire_type = key >> 3, key & 7
        value, first = 0, position
        if wire_type == _VARINT:
            value, position = _varint(view, position, end)
        elif wire_type == _LENGTH:
            length, first = _varint(view, position, end)
            position = first + length
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
        else:
            raise MalformedModelError(f"wire type {wire_type} at byte {first}")
        if position > end or number == 0:
            raise MalformedModelError(f"a field at byte {first} reaches past the end of its message")
        yield _Field(number, wire_type, value, first, position)


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


# --- TFLite: field indices of schema.fbs ------------------------------------------------------------------------

_TFLITE_ELEMENTS = {
    0: Element.FLOAT32, 1: Element.FLOAT16, 2: Element.INT32, 4: Element.INT64, 7: Element.INT16, 10: Element.FLOAT64,
    12: Element.INT64, 15: Element.INT32, 16: Element.INT16, 18: Element.BFLOAT16,
}  # fmt: skip


def _tflite_extents(view: memoryview) -> list[TensorExtent]:
    reader = _Flatbuffer(view)
    model = reader.number("<I", 0)
    buffers = list(reader.tables(model, 4))
    found: list[TensorExtent] = []
    used: set[int] = set()
    for graph in reader.tables(model, 2):
        for tensor in reader.tables(graph, 0):
            index = reader.scalar(tensor, 2, "<I")
            if index in used or not 0 < index < len(buffers) or len(found) >= TENSORS_MAX:
                continue
            used.add(index)
            extent = reader.buffer_extent(buffers[index])
            if extent is None:
                continue
            element = _TFLITE_ELEMENTS.get(reader.scalar(tensor, 1, "<b"), Element.INT8)
            name = bytes(view[slice(*reader.vector(tensor, 3, 1))]).decode("utf-8", "replace")
            start, end = reader.vector(tensor, 0, 4)
            shape = struct.unpack(f"<{(end - start) // 4}i", view[start:end])
            found.append(TensorExtent(name, element, shape, *extent))
    return found


class _Flatbuffer:
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
