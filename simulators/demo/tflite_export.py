"""Write a digits network as a TFLite flatbuffer, without TensorFlow.

The schema classes are generated from TensorFlow's ``schema.fbs`` and come with ai-edge-litert; the file format is
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs.
"""

from typing import Any, Final

import numpy as np

from simulators.demo.digits import CLASSES, PIXELS, Floats, Network
from simulators.demo.onnx_export import INPUT_NAME, OUTPUT_NAME

FILE_IDENTIFIER: Final = b"TFL3"
SCHEMA_VERSION: Final = 3


def to_tflite(network: Network) -> bytes:
    """The network as TFLite: ``pixels`` float32 [1, 64] in, ``probabilities`` float32 [1, 10] out.

    Hidden layers are FULLY_CONNECTED with a fused ReLU, the last one is plain and followed by SOFTMAX.
    """
    import flatbuffers

    writer = _GraphWriter()
    current = writer.tensor(INPUT_NAME, (1, PIXELS))
    network_input = current
    layers = network.layers()
    for number, layer in enumerate(layers, start=1):
        is_last = number == len(layers)
        # TFLite keeps a dense layer's weights with one row an output, scikit-learn with one row an input.
        weights = writer.constant(f"dense_{number}/weights", layer.weights.T)
        bias = writer.constant(f"dense_{number}/bias", layer.bias)
        output = writer.tensor("logits" if is_last else f"dense_{number}", (1, len(layer.bias)))
        writer.dense(current, weights, bias, output, has_relu=not is_last)
        current = output
    network_output = writer.tensor(OUTPUT_NAME, (1, CLASSES))
    writer.softmax(current, network_output)

    model = writer.model(network_input, network_output, f"digits:{network.recipe.version}")
    builder = flatbuffers.Builder(64 * 1024)
    builder.Finish(model.Pack(builder), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


class _GraphWriter:
    """Collects the tables of one model with one graph; tensors are known by their index."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._operator_codes: list[Any] = []
        self._operators: list[Any] = []
        self._tensors: list[Any] = []
        # By convention the first buffer is empty, and tensors computed at run time point to it.
        self._buffers: list[Any] = [schema.BufferT()]

    def tensor(self, name: str, shape: tuple[int, ...], buffer: int = 0) -> int:
        self._tensors.append(
            self._schema.TensorT(
                name=name, shape=list(shape), type=self._schema.TensorType.FLOAT32, buffer=buffer, hasRank=True
            )
        )
        return len(self._tensors) - 1

    def constant(self, name: str, values: Floats) -> int:
        content = np.ascontiguousarray(values, dtype="<f4")
        self._buffers.append(self._schema.BufferT(data=np.frombuffer(content.tobytes(), dtype=np.uint8)))
        return self.tensor(name, content.shape, len(self._buffers) - 1)

    def dense(self, source: int, weights: int, bias: int, output: int, *, has_relu: bool) -> None:
        schema = self._schema
        activation = schema.ActivationFunctionType
        options = schema.FullyConnectedOptionsT(
            fusedActivationFunction=activation.RELU if has_relu else activation.NONE
        )
        self._operator(
            schema.BuiltinOperator.FULLY_CONNECTED,
            (source, weights, bias),
            output,
            schema.BuiltinOptions.FullyConnectedOptions,
            options,
        )

    def softmax(self, source: int, output: int) -> None:
        schema = self._schema
        self._operator(
            schema.BuiltinOperator.SOFTMAX,
            (source,),
            output,
            schema.BuiltinOptions.SoftmaxOptions,
            schema.SoftmaxOptionsT(beta=1.0),
        )

    def _operator(self, code: int, inputs: tuple[int, ...], output: int, options_type: int, options: Any) -> None:
        self._operators.append(
            self._schema.OperatorT(
                opcodeIndex=self._operator_code(code),
                inputs=list(inputs),
                outputs=[output],
                builtinOptionsType=options_type,
                builtinOptions=options,
            )
        )

    def _operator_code(self, code: int) -> int:
        known = [entry.builtinCode for entry in self._operator_codes]
        if code not in known:
            # Readers older than schema 3a know the deprecated field only; codes below 127 are written to both.
            entry = self._schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=1)
            self._operator_codes.append(entry)
            return len(known)
        return known.index(code)

    def model(self, network_input: int, network_output: int, description: str) -> Any:
        graph = self._schema.SubGraphT(
            tensors=self._tensors,
            inputs=[network_input],
            outputs=[network_output],
            operators=self._operators,
            name="main",
        )
        return self._schema.ModelT(
            version=SCHEMA_VERSION,
            operatorCodes=self._operator_codes,
            subgraphs=[graph],
            description=description,
            buffers=self._buffers,
        )
