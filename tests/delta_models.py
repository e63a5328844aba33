"""Model files for deltas, written by the formats' own libraries, and what a change does to them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def onnx_file(tensors: dict[str, np.ndarray], *, producer: str = "tests", notes: str = "") -> bytes:
    """An ONNX file whose initializers are the tensors in raw data; its graph does nothing."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )
    model = helper.make_model(graph, producer_name=producer)
    if notes:
        helper.set_model_props(model, {"notes": notes})
    content: bytes = model.SerializeToString()
    return content


def tflite_file(tensors: dict[str, np.ndarray], *, description: str = "tests") -> bytes:
    """A TFLite file whose buffers are the tensors, float32 or int8."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.description = 3, description
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors = []
    for name, array in tensors.items():
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, list(array.shape), len(model.buffers)
        tensor.type = schema.TensorType.INT8 if array.dtype == np.int8 else schema.TensorType.FLOAT32
        model.buffers.append(buffer)
        graph.tensors.append(tensor)
    model.subgraphs = [graph]
    model.operatorCodes = []
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def weights(seed: int = 0, *, width: int = 64, layers: int = 4) -> dict[str, np.ndarray]:
    """A small network's float32 tensors: matrices and their biases."""
    numbers = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(layers):
        scale = np.float32(np.sqrt(2 / width))
        tensors[f"layer{layer}.weight"] = numbers.standard_normal((width, width), np.float32) * scale
        tensors[f"layer{layer}.bias"] = numbers.standard_normal(width, np.float32) * np.float32(0.1)
    return tensors


def trained_on(tensors: dict[str, np.ndarray], noise: float, seed: int = 1) -> dict[str, np.ndarray]:
    """The tensors with noise on every weight, relative to the tensor's standard deviation."""
    numbers = np.random.default_rng(seed)
    return {
        name: (tensor + numbers.standard_normal(tensor.shape) * noise * tensor.std()).astype(tensor.dtype)
        for name, tensor in tensors.items()
    }


def quantised(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Matrices as int8 with a scale for each row; vectors stay."""
    made: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            made[name] = tensor
            continue
        rows = tensor.reshape(len(tensor), -1)
        scale = (np.abs(rows).max(axis=1, keepdims=True) / 127).astype(np.float32)
        made[name] = np.clip(np.rint(rows / scale), -127, 127).astype(np.int8).reshape(tensor.shape)
        made[f"{name}.scale"] = scale.ravel()
    return made
