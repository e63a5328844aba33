"""An ONNX file without its weights, which then are read from the file's own bytes. Pure.

onnxruntime takes a file by copying it into a string and reading that into messages, while no other Python thread runs:
five milliseconds for 14 MB, in which a reading waits, and two more copies in memory. A graph whose large tensors are
external data (onnx.proto: TensorProto.external_data) is taken at once, and the tensors are copied from the bytes that
are there already, while other threads run.
"""

from collections.abc import Iterator
from dataclasses import dataclass

# What the tensors name as the file they stand in.
WEIGHTS = "weights"
# Naming a smaller tensor costs more than moving it.
TENSOR_BYTES_MIN = 1024

# onnx.proto: ModelProto.graph, GraphProto.initializer, and the fields of TensorProto.
_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 2, 9, 13, 14
_EXTERNAL = 1
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
# TensorProto.DataType of whole bytes: float, uint8, int8, uint16, int16, int32, int64, float16, double, uint32, uint64,
# bfloat16. What packs two elements into a byte stays where it is.
_TYPES = frozenset({1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 16})
_VARINT_BYTES_MAX = 10


class _MalformedError(ValueError):
    """No protobuf."""


@dataclass(frozen=True, slots=True)
class _Field:
    """One field: from `at` with its key, from `start` without; `value` is a varint's."""

    number: int
    wire_type: int
    at: int
    start: int
    end: int
    value: int = 0


def without_weights(content: bytes, tensor_bytes_min: int = TENSOR_BYTES_MIN) -> bytes | None:
    """The model with each large initializer as external data at its place in `content`; None where there is none.

    None as well for bytes that are no model: onnxruntime has the better words for those.
    """
    try:
        parts = [_part(content, field, tensor_bytes_min) for field in _fields(content, 0, len(content))]
    except _MalformedError:
        return None
    light = b"".join(parts)
    return light if len(light) < len(content) else None


def _part(content: bytes, field: _Field, tensor_bytes_min: int) -> bytes:
    if field.number != _GRAPH or field.wire_type != _LENGTH:
        return content[field.at : field.end]
    parts, reached = [], field.start
    for inner in _fields(content, field.start, field.end):
        if inner.number != _INITIALIZER or inner.wire_type != _LENGTH or inner.end - inner.start < tensor_bytes_min:
            continue
        tensor = _reference(content, inner, tensor_bytes_min)
        if tensor is not None:
            parts += [content[reached : inner.at], _block(_INITIALIZER, tensor)]
            reached = inner.end
    return _block(_GRAPH, b"".join([*parts, content[reached : field.end]]))


def _reference(content: bytes, tensor: _Field, tensor_bytes_min: int) -> bytes | None:
    """The tensor with a reference in place of its bytes; None for one that has to stay as it is."""
    raw: _Field | None = None
    data_type, parts = 0, []
    for field in _fields(content, tensor.start, tensor.end):
        if field.number in (_EXTERNAL_DATA, _DATA_LOCATION) or (field.number == _RAW_DATA and raw is not None):
            return None
        if field.number == _RAW_DATA:
            raw = field
            continue
        if field.number == _DATA_TYPE:
            data_type = field.value
        parts.append(content[field.at : field.end])
    if raw is None or data_type not in _TYPES or raw.end - raw.start < tensor_bytes_min:
        return None
    for key, value in (("location", WEIGHTS), ("offset", str(raw.start)), ("length", str(raw.end - raw.start))):
        parts.append(_block(_EXTERNAL_DATA, _block(1, key.encode()) + _block(2, value.encode())))
    parts.append(_varint(_DATA_LOCATION << 3) + _varint(_EXTERNAL))
    return b"".join(parts)


def _fields(content: bytes, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        key, after = _read_varint(content, at, end)
        number, wire_type, value = key >> 3, key & 7, 0
        if wire_type == _LENGTH:
            length, after = _read_varint(content, after, end)
            stop = after + length
        elif wire_type == _VARINT:
            value, stop = _read_varint(content, after, end)
        elif wire_type in (_FIXED32, _FIXED64):
            stop = after + (4 if wire_type == _FIXED32 else 8)
        else:
            raise _MalformedError(f"wire type {wire_type}")
        if stop > end:
            raise _MalformedError("a field that is longer than what it stands in")
        yield _Field(number, wire_type, at, after, stop, value)
        at = stop


def _read_varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = 0
    for place in range(_VARINT_BYTES_MAX):
        if at + place >= end:
            break
        byte = content[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise _MalformedError("a number without an end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _block(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH) + _varint(len(content)) + content
