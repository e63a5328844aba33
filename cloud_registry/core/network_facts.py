"""What a model file says of its network: the opset it needs and its operators, read without loading it. Pure."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cloud_registry.core.model_bytes import (
    LENGTH,
    VARINT,
    Field,
    Flatbuffer,
    MalformedModelError,
    field_text,
    protobuf_fields,
)
from cloud_registry.core.tensor_extents import GRAPH_DEPTH_MAX

OPERATORS_MAX = 1_000_000
# schema.fbs: the code that stands for an operator with a name of its own.
TFLITE_CUSTOM = 32


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """`opset` is that of the standard operators; `operators` counts nodes, others as ``domain.name``."""

    opset: int | None
    operators: dict[str, int]


def onnx_facts(view: memoryview) -> NetworkFacts:
    """The facts of an ONNX file, subgraphs and local functions included; raises MalformedModelError."""
    opset: int | None = None
    counts: Counter[str] = Counter()
    for field in protobuf_fields(view, 0, len(view)):
        if field.wire_type != LENGTH:
            continue
        if field.number == 8:  # ModelProto.opset_import
            domain, version = _opset(view, field)
            opset = version if domain in ("", "ai.onnx") else opset
        elif field.number == 7:  # ModelProto.graph
            counts.update(_operators(view, field, node_number=1, depth=0))
        elif field.number == 25:  # ModelProto.functions
            counts.update(_operators(view, field, node_number=7, depth=0))
    return NetworkFacts(opset, _sorted(counts))


def _opset(view: memoryview, message: Field) -> tuple[str, int]:
    domain, version = "", 0
    for field in protobuf_fields(view, message.start, message.end):
        if field.number == 1 and field.wire_type == LENGTH:
            domain = field_text(view, field)
        elif field.number == 2 and field.wire_type == VARINT:
            version = field.value
    return domain, version


def _operators(view: memoryview, graph: Field, node_number: int, depth: int) -> Iterator[str]:
    if depth > GRAPH_DEPTH_MAX:
        raise MalformedModelError("graphs within graphs, deeper than any model has")
    for field in protobuf_fields(view, graph.start, graph.end):
        if field.number == node_number and field.wire_type == LENGTH:
            yield from _node(view, field, depth)


def _node(view: memoryview, node: Field, depth: int) -> Iterator[str]:
    operator = domain = ""
    for field in protobuf_fields(view, node.start, node.end):
        if field.wire_type != LENGTH:
            continue
        if field.number == 4:  # NodeProto.op_type
            operator = field_text(view, field)
        elif field.number == 7:  # NodeProto.domain
            domain = field_text(view, field)
        elif field.number == 5:  # NodeProto.attribute
            for part in protobuf_fields(view, field.start, field.end):
                if part.wire_type == LENGTH and part.number in (6, 11):  # AttributeProto.g, graphs
                    yield from _operators(view, part, node_number=1, depth=depth + 1)
    yield operator if domain in ("", "ai.onnx") else f"{domain}.{operator}"


def tflite_operators(view: memoryview) -> dict[int | str, int]:
    """How often each operator occurs: by its number in schema.fbs, or by its name where it is a custom one.

    Raises:
        MalformedModelError: the bytes are no TFLite file.
    """
    reader = Flatbuffer(view)
    model = reader.number("<I", 0)
    codes = [_tflite_code(reader, view, code) for code in reader.tables(model, 1)]
    counts: Counter[int | str] = Counter()
    for graph in reader.tables(model, 2):
        for operator in reader.tables(graph, 3):
            index = reader.scalar(operator, 0, "<I")
            if index >= len(codes) or counts.total() >= OPERATORS_MAX:
                raise MalformedModelError(f"an operator has the code {index}, and the file has {len(codes)}")
            counts[codes[index]] += 1
    return dict(counts)


def _tflite_code(reader: Flatbuffer, view: memoryview, code: int) -> int | str:
    # Numbers beyond the old field's stand in the new one, and older files have the old one only.
    number = max(reader.scalar(code, 0, "<b"), reader.scalar(code, 3, "<i"))
    if number != TFLITE_CUSTOM:
        return number
    return bytes(view[slice(*reader.vector(code, 1, 1))]).decode("utf-8", "replace")


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))
