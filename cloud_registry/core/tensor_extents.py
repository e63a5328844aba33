"""Where the tensors of a model file stand: byte extents in the original, found without re-writing anything. Pure.

A file that breaks a rule of its format has no extents.
"""

import struct
from dataclasses import dataclass

from cloud_registry.core.model_bytes import (
    LENGTH,
    VARINT,
    Field,
    Flatbuffer,
    MalformedModelError,
    field_text,
    packed_numbers,
    protobuf_fields,
)
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

# TensorProto.DataType; whatever is not listed (float8, packed int4) is taken byte by byte.
_ONNX_ELEMENTS = {
    1: Element.FLOAT32, 4: Element.INT16, 5: Element.INT16, 6: Element.INT32, 7: Element.INT64, 10: Element.FLOAT16,
    11: Element.FLOAT64, 12: Element.INT32, 13: Element.INT64, 16: Element.BFLOAT16,
}  # fmt: skip


def _onnx_extents(view: memoryview) -> list[TensorExtent]:
    found: list[TensorExtent] = []
    for field in protobuf_fields(view, 0, len(view)):
        if field.number == 7 and field.wire_type == LENGTH:  # ModelProto.graph
            _graph_extents(view, field, found, depth=0)
    return found


def _graph_extents(view: memoryview, graph: Field, found: list[TensorExtent], depth: int) -> None:
    if depth > GRAPH_DEPTH_MAX:
        raise MalformedModelError("graphs within graphs, deeper than any model has")
    for field in protobuf_fields(view, graph.start, graph.end):
        if field.wire_type != LENGTH:
            continue
        if field.number == 5:  # GraphProto.initializer
            _tensor_extent(view, field, found, "")
        elif field.number == 1:  # GraphProto.node
            _node_extents(view, field, found, depth)


def _node_extents(view: memoryview, node: Field, found: list[TensorExtent], depth: int) -> None:
    output = ""
    attributes: list[Field] = []
    for field in protobuf_fields(view, node.start, node.end):
        if field.wire_type == LENGTH and field.number == 2:  # NodeProto.output
            output = output or field_text(view, field)
        elif field.wire_type == LENGTH and field.number == 5:  # NodeProto.attribute
            attributes.append(field)
    for attribute in attributes:
        if attribute.end - attribute.start < TENSOR_BYTES_MIN:
            continue
        for field in protobuf_fields(view, attribute.start, attribute.end):
            if field.wire_type == LENGTH and field.number in (5, 10):  # AttributeProto.t, tensors
                _tensor_extent(view, field, found, output)
            elif field.wire_type == LENGTH and field.number in (6, 11):  # AttributeProto.g, graphs
                _graph_extents(view, field, found, depth + 1)


def _tensor_extent(view: memoryview, tensor: Field, found: list[TensorExtent], name: str) -> None:
    """Note the tensor's values where they are one run of little-endian numbers."""
    shape: list[int] = []
    kind = 0
    values: list[tuple[Element | None, Field]] = []
    for field in protobuf_fields(view, tensor.start, tensor.end):
        match field.number, field.wire_type:
            case 1, wire_type if wire_type == VARINT:
                shape.append(field.value)
            case 1, wire_type if wire_type == LENGTH:
                shape.extend(packed_numbers(view, field))
            case 2, wire_type if wire_type == VARINT:
                kind = field.value
            case 8, wire_type if wire_type == LENGTH:
                name = field_text(view, field) or name
            case 9, wire_type if wire_type == LENGTH:  # raw_data
                values.append((None, field))
            case 4, wire_type if wire_type == LENGTH:  # float_data, packed
                values.append((Element.FLOAT32, field))
            case 10, wire_type if wire_type == LENGTH:  # double_data, packed
                values.append((Element.FLOAT64, field))
    if len(values) != 1 or len(found) >= TENSORS_MAX:
        return
    element, data = values[0]
    element = element or _ONNX_ELEMENTS.get(kind, Element.INT8)
    found.append(TensorExtent(name, element, tuple(shape), data.start, data.end - data.start))


# --- TFLite: field indices of schema.fbs ------------------------------------------------------------------------

_TFLITE_ELEMENTS = {
    0: Element.FLOAT32, 1: Element.FLOAT16, 2: Element.INT32, 4: Element.INT64, 7: Element.INT16, 10: Element.FLOAT64,
    12: Element.INT64, 15: Element.INT32, 16: Element.INT16, 18: Element.BFLOAT16,
}  # fmt: skip


def _tflite_extents(view: memoryview) -> list[TensorExtent]:
    reader = Flatbuffer(view)
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
