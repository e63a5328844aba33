"""Small real models for the tests of the registry: built here, run by the real engines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHARED_MODELS = Path(__file__).parents[4] / "shared" / "data" / "models"


def save_onnx(path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], *constants: Any) -> Path:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def floats(name: str, shape: Sequence[int | str | None]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def linear_onnx(path: Path, weights: Any, *, input_name: str = "x", output_name: str = "y") -> Path:
    """``y = x · weights`` with an open batch axis."""
    matrix = np.asarray(weights, np.float32)
    return save_onnx(
        path,
        [helper.make_node("MatMul", [input_name, "w"], [output_name])],
        [floats(input_name, [None, matrix.shape[0]])],
        [floats(output_name, [None, matrix.shape[1]])],
        numpy_helper.from_array(matrix, "w"),
    )


def linear_tflite(path: Path, weights: Any) -> Path:
    """The same network as a TFLite flatbuffer: tensors ``x`` and ``y``, batch axis 1."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    matrix = np.asarray(weights, np.float32)
    buffers = [schema.BufferT(), schema.BufferT()]
    buffers[1].data = np.frombuffer(np.ascontiguousarray(matrix.T).tobytes(), np.uint8)

    def tensor(name: str, shape: Sequence[int], buffer: int = 0) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, list(shape), buffer, schema.TensorType.FLOAT32
        return made

    operator = schema.OperatorT()
    # FULLY_CONNECTED takes an optional bias, told as -1.
    operator.inputs, operator.outputs, operator.opcodeIndex = [0, 1, -1], [2], 0
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("x", (1, matrix.shape[0])),
        tensor("w", matrix.T.shape, 1),
        tensor("y", (1, matrix.shape[1])),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def unary_onnx(path: Path, operator: str) -> Path:
    """``y = operator(x)`` for three numbers."""
    return save_onnx(
        path, [helper.make_node(operator, ["x"], ["y"])], [floats("x", [None, 3])], [floats("y", [None, 3])]
    )


def two_outputs_onnx(path: Path) -> Path:
    nodes = [helper.make_node("Identity", ["x"], [name]) for name in ("y", "z")]
    return save_onnx(path, nodes, [floats("x", [None, 3])], [floats(name, [None, 3]) for name in ("y", "z")])


def endless_onnx(path: Path) -> Path:
    """A model that loads and never answers: a loop of 2**62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "v"], ["v_out"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("v", [None, 3]),
        ],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []), floats("v_out", [None, 3])],
    )
    return save_onnx(
        path,
        [helper.make_node("Loop", ["rounds", "yes", "x"], ["y"], body=body)],
        [floats("x", [None, 3])],
        [floats("y", [None, 3])],
        numpy_helper.from_array(np.asarray(2**62, np.int64), "rounds"),
        numpy_helper.from_array(np.asarray(True), "yes"),
    )


def crashing_onnx(path: Path) -> Path:
    """A model that kills its engine when x is -1: the quotient of -2**31 and -1 is a trap on x86 (SIGFPE)."""
    numbers = helper.make_tensor_value_info("x", TensorProto.INT32, [None, 3])
    answers = helper.make_tensor_value_info("y", TensorProto.INT32, [None, 3])
    least = numpy_helper.from_array(np.asarray([-(2**31)], np.int32), "least")
    return save_onnx(path, [helper.make_node("Div", ["least", "x"], ["y"])], [numbers], [answers], least)


def sequence_onnx(path: Path) -> Path:
    """A model whose output is a sequence, as scikit-learn's exports are by default."""
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 3]))
    output = helper.make_value_info("probabilities", kind)
    node = helper.make_node("SequenceConstruct", ["x"], ["probabilities"])
    return save_onnx(path, [node], [floats("x", [None, 3])], [output])


def save_arrays(path: Path, **arrays: Any) -> Path:
    """An .npz file; ``input_x`` is spelled ``input.x``, and a float stays a float32."""
    named = {}
    for key, value in arrays.items():
        array = np.asarray(value)
        named[key.replace("_", ".", 1)] = array.astype(np.float32) if array.dtype == np.float64 else array
    np.savez(path, **named)
    return path


IDENTITY = np.eye(3)
ROWS = np.arange(12.0).reshape(4, 3)
