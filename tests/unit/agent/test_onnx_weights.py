"""A file without its weights is the same model, and whatever is no model is left to the engine's own words."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.core.onnx_weights import TENSOR_BYTES_MIN, WEIGHTS, without_weights
from device_agent.errors import InferenceError, StepError
from manifests.canonical import digest_of

NUMBERS = 1000


def model_of(*tensors: onnx.TensorProto, **more) -> bytes:
    """Each tensor of 1,000 numbers, cast to doubles and added to the input."""
    nodes, before = [], "x"
    for number, tensor in enumerate(tensors):
        nodes += [
            helper.make_node("Cast", [tensor.name], [f"c{number}"], to=TensorProto.DOUBLE),
            helper.make_node("Add", [before, f"c{number}"], [f"s{number}"]),
        ]
        before = f"s{number}"
    one, two = (helper.make_tensor_value_info(name, TensorProto.DOUBLE, [1, NUMBERS]) for name in ("x", before))
    graph = helper.make_graph(nodes, "sum", [one], [two], list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, **more)
    return model.SerializeToString()


def tensor_of(name: str, dtype: str = "float32") -> onnx.TensorProto:
    return numpy_helper.from_array((np.arange(NUMBERS) % 100).astype(dtype), name)


def plain_answer(content: bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.zeros((1, NUMBERS))})[0]


def engine_answer(content: bytes) -> np.ndarray:
    model = OnnxEngine().load(content, digest_of(content))
    return next(iter(model.run({"x": np.zeros((1, NUMBERS))}).values()))


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_weights_of_every_type_are_read_from_the_file(dtype):
    content = model_of(tensor_of("a", dtype), tensor_of("b"))
    assert np.array_equal(engine_answer(content), plain_answer(content))


def test_a_large_tensor_is_named_by_its_place_and_a_small_one_stays():
    large, small = tensor_of("large"), numpy_helper.from_array(np.zeros(3, np.float32), "small")
    content = model_of(large)
    graph = onnx.load_from_string(content).graph
    graph.initializer.append(small)
    content = helper.make_model(graph, producer_name="behind the graph").SerializeToString()
    light = without_weights(content)
    assert light is not None
    assert len(light) < len(content) - large.ByteSize() + 200
    model = onnx.load_from_string(light)
    assert model.producer_name == "behind the graph"
    named, stays = model.graph.initializer
    place = {entry.key: entry.value for entry in named.external_data}
    start, length = int(place["offset"]), int(place["length"])
    assert (named.data_location, place["location"]) == (TensorProto.EXTERNAL, WEIGHTS)
    assert content[start : start + length] == large.raw_data
    assert stays == small


def test_a_file_of_small_tensors_is_taken_as_it_is():
    assert without_weights(model_of(numpy_helper.from_array(np.zeros(3, np.float32), "small"))) is None


@pytest.mark.parametrize("change", ["typed fields", "packed", "external already"])
def test_tensors_of_other_kinds_stay_where_they_are(change):
    tensor = tensor_of("a")
    if change == "typed fields":
        values = numpy_helper.to_array(tensor)
        tensor = helper.make_tensor("a", TensorProto.FLOAT, [NUMBERS], values)
    elif change == "packed":
        tensor.data_type = TensorProto.INT4
    else:
        tensor.external_data.add(key="location", value="elsewhere.bin")
    assert without_weights(model_of(tensor)) is None


def test_a_tensor_with_bytes_for_another_shape_is_refused_either_way():
    tensor = tensor_of("a")
    tensor.raw_data = tensor.raw_data[:-400]
    content = model_of(tensor)
    assert len(tensor.raw_data) >= TENSOR_BYTES_MIN
    assert without_weights(content) is not None
    with pytest.raises(StepError) as caught:
        engine_answer(content)
    assert caught.value.code == "LOAD_FAILED"


WHOLE = model_of(tensor_of("a"), tensor_of("b", "int8"))


@given(st.data())
def test_a_damaged_file_is_judged_as_plain_onnxruntime_judges_it(data):
    """Cut short or with bytes changed: the same answer, or no model for both."""
    damaged = bytearray(WHOLE[: data.draw(st.integers(0, len(WHOLE)))] if data.draw(st.booleans()) else WHOLE)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(damaged)
    try:
        expected = plain_answer(content)
    except Exception:  # noqa: BLE001  onnxruntime's own errors
        expected = None
    try:
        seen = engine_answer(content)
    except (StepError, InferenceError):
        seen = None
    assert (seen is None) == (expected is None)
    if expected is not None:
        assert np.array_equal(seen, expected, equal_nan=True)
