"""The same network as ONNX and as TFLite gives scikit-learn's answers, under the same tensor names."""

import numpy as np
import pytest

from simulators.demo.onnx_export import to_onnx
from simulators.demo.tflite_export import to_tflite

TOLERANCE = 1e-4


def run_onnx(content: bytes, pixels: np.ndarray) -> tuple[list[tuple], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    tensors = [(node.name, node.type, node.shape) for node in (*session.get_inputs(), *session.get_outputs())]
    return tensors, session.run(None, {"pixels": pixels})[0]


def run_tflite(content: bytes, pixels: np.ndarray) -> tuple[list[tuple], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    source, answer = interpreter.get_input_details(), interpreter.get_output_details()
    tensors = [(entry["name"], entry["dtype"].__name__, entry["shape"].tolist()) for entry in (*source, *answer)]
    answers = []
    for row in pixels:
        interpreter.set_tensor(source[0]["index"], row[np.newaxis])
        interpreter.invoke()
        answers.append(interpreter.get_tensor(answer[0]["index"])[0].copy())
    return tensors, np.array(answers)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("scaled", [False, True], ids=["camera pixels", "the network's own scale"])
def test_both_engines_answer_as_scikit_learn_on_every_live_digit(networks, split, version, scaled):
    network = networks[version]
    pixels = network.recipe.scale.of(split.live_pixels) if scaled else split.live_pixels
    expected = network.probabilities(pixels)

    onnx_tensors, onnx_answers = run_onnx(to_onnx(network), pixels)
    tflite_tensors, tflite_answers = run_tflite(to_tflite(network), pixels)

    assert onnx_tensors == [
        ("pixels", "tensor(float)", [None, 64]),
        ("probabilities", "tensor(float)", ["N", 10]),
    ]
    assert tflite_tensors == [("pixels", "float32", [1, 64]), ("probabilities", "float32", [1, 10])]
    np.testing.assert_allclose(onnx_answers, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(tflite_answers, expected, atol=TOLERANCE, rtol=0)


def test_exporting_twice_gives_the_same_bytes(networks):
    assert to_onnx(networks[2]) == to_onnx(networks[2])
    assert to_tflite(networks[2]) == to_tflite(networks[2])


def test_the_onnx_file_carries_nothing_that_its_answer_does_not_need(networks):
    import onnx

    model = onnx.load_from_string(to_onnx(networks[1]))
    used = {name for node in model.graph.node for name in node.input}
    assert {constant.name for constant in model.graph.initializer} <= used
    assert [output.name for output in model.graph.output] == ["probabilities"]
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx.ml"}


def test_the_tflite_file_is_marked_as_one(networks):
    # https://github.com/tensorflow/tensorflow/blob/master/tensorflow/compiler/mlir/lite/schema/schema.fbs
    assert to_tflite(networks[1])[4:8] == b"TFL3"
