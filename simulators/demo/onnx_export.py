"""Write a digits network as an ONNX file, by skl2onnx."""

from typing import Any, Final

from simulators.demo.digits import CLASSES, PIXELS, Network

INPUT_NAME: Final = "pixels"
OUTPUT_NAME: Final = "probabilities"
# Old enough for every onnxruntime of the last years, new enough for the operators that skl2onnx writes.
OPSET: Final = 17


def to_onnx(network: Network) -> bytes:
    """The network as ONNX: ``pixels`` float32 [N, 64] in, ``probabilities`` float32 [N, 10] out, nothing else.

    scikit-learn's own idea of an answer has a label beside the probabilities, and by default wraps the latter into a
    sequence of maps, which other formats cannot carry. Both are cut away, so that every format has the same signature.
    """
    from skl2onnx import to_onnx as convert
    from skl2onnx.common.data_types import FloatTensorType
    from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs

    model = convert(
        network.classifier,
        initial_types=[(INPUT_NAME, FloatTensorType([None, PIXELS]))],
        options={id(network.classifier): {"zipmap": False}},
        target_opset=OPSET,
    )
    model = select_model_inputs_outputs(model, outputs=[OUTPUT_NAME])
    _repair_after_cutting(model)
    model.graph.name = f"digits_{network.recipe.version}"
    model.doc_string = network.recipe.description
    content: bytes = model.SerializeToString()
    return content


def _repair_after_cutting(model: Any) -> None:
    """Cutting a graph forgets the type of its output, and leaves the constants of what was cut away."""
    from onnx import TensorProto, checker, helper

    graph = model.graph
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, TensorProto.FLOAT, ["N", CLASSES]))
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    checker.check_model(model)
