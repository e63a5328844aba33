"""Which files an ONNX model keeps weights in, read from its structure alone. Pure."""

from collections.abc import Iterator

from cloud_registry.core.model_bytes import LENGTH, VARINT, Field, MalformedModelError, field_text, protobuf_fields
from cloud_registry.core.tensor_extents import GRAPH_DEPTH_MAX

_EXTERNAL = 1  # TensorProto.DataLocation


def weight_files(view: memoryview) -> tuple[str, ...]:
    """Their locations, relative to the model, each once; raises MalformedModelError."""
    found: dict[str, None] = {}
    for field in protobuf_fields(view, 0, len(view)):
        if field.number == 7 and field.wire_type == LENGTH:  # ModelProto.graph
            found |= dict.fromkeys(_in_graph(view, field, 0))
    return tuple(found)


def _in_graph(view: memoryview, graph: Field, depth: int) -> Iterator[str]:
    if depth > GRAPH_DEPTH_MAX:
        raise MalformedModelError("graphs within graphs, deeper than any model has")
    for field in protobuf_fields(view, graph.start, graph.end):
        if field.wire_type == LENGTH and field.number == 5:  # GraphProto.initializer
            yield from _of_tensor(view, field)
        elif field.wire_type == LENGTH and field.number == 1:  # GraphProto.node
            yield from _in_node(view, field, depth)


def _in_node(view: memoryview, node: Field, depth: int) -> Iterator[str]:
    for attribute in protobuf_fields(view, node.start, node.end):
        if attribute.wire_type != LENGTH or attribute.number != 5:  # NodeProto.attribute
            continue
        for field in protobuf_fields(view, attribute.start, attribute.end):
            if field.wire_type == LENGTH and field.number in (5, 10):  # AttributeProto.t, tensors
                yield from _of_tensor(view, field)
            elif field.wire_type == LENGTH and field.number in (6, 11):  # AttributeProto.g, graphs
                yield from _in_graph(view, field, depth + 1)


def _of_tensor(view: memoryview, tensor: Field) -> Iterator[str]:
    location, is_external = "", False
    for field in protobuf_fields(view, tensor.start, tensor.end):
        if field.number == 14 and field.wire_type == VARINT:  # TensorProto.data_location
            is_external = field.value == _EXTERNAL
        elif field.number == 13 and field.wire_type == LENGTH:  # TensorProto.external_data
            entry = {
                part.number: field_text(view, part)
                for part in protobuf_fields(view, field.start, field.end)
                if part.wire_type == LENGTH
            }
            location = entry.get(2, "") if entry.get(1) == "location" else location
    if is_external and location:
        yield location
