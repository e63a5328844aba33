"""Where tensors stand in real and hand-made model files, and what damaged ones give."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud_registry.core.tensor_extents import find_extents
from manifests.delta import Element
from tests.delta_models import onnx_file, quantised, tflite_file, weights

MODELS = Path(__file__).parents[4] / "shared" / "data" / "models"
needs_published_models = pytest.mark.skipif(
    not MODELS.is_dir(), reason="the published models are not beside this checkout"
)


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
def test_each_tensor_is_found_where_its_bytes_are(write):
    tensors = quantised(weights())
    content = write(tensors)
    found = {extent.name: extent for extent in find_extents(content)}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        extent = found[name]
        assert content[extent.offset : extent.offset + extent.length] == tensor.tobytes()
        assert extent.shape == tensor.shape
        assert extent.element is (Element.INT8 if tensor.dtype == np.int8 else Element.FLOAT32)


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        ("float16", Element.FLOAT16),
        ("float64", Element.FLOAT64),
        ("int16", Element.INT16),
        ("uint16", Element.INT16),
        ("int32", Element.INT32),
        ("int64", Element.INT64),
        ("uint64", Element.INT64),
        ("bool", Element.INT8),
    ],
)
def test_onnx_kinds(kind, element):
    assert [extent.element for extent in find_extents(onnx_file({"t": np.ones(64, kind)}))] == [element]


def test_bfloat16_is_known_by_its_type():
    tensor = helper.make_tensor("t", TensorProto.BFLOAT16, [64], bytes(128), raw=True)
    graph = helper.make_graph([], "g", [], [], [tensor])
    assert [extent.element for extent in find_extents(helper.make_model(graph).SerializeToString())] == [
        Element.BFLOAT16
    ]


def test_packed_floats_are_an_extent_as_well():
    values = np.arange(40, dtype=np.float32)
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [40], values)
    assert not tensor.HasField("raw_data")
    content = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    (extent,) = find_extents(content)
    assert content[extent.offset : extent.offset + extent.length] == values.tobytes()


def test_constants_and_branches_are_named_by_their_outputs():
    constant = helper.make_node("Constant", [], ["gain"], value=numpy_helper.from_array(np.ones(16, np.float32)))
    branch = helper.make_graph([constant], "then", [], [])
    other = helper.make_graph([], "else", [], [], [numpy_helper.from_array(np.zeros(16, np.float32), "loss")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)
    content = helper.make_model(helper.make_graph([node], "g", [], [])).SerializeToString()
    assert sorted(extent.name for extent in find_extents(content)) == ["gain", "loss"]


@pytest.mark.parametrize("content", [b"", b"x", b"\x00\x00\x00\x00TFL3", b"\xff" * 64, b"\x08" * 9, bytes(1000)])
def test_what_is_no_model_has_no_tensors(content):
    assert find_extents(content) == []


@pytest.mark.parametrize("write", [onnx_file, tflite_file])
def test_no_damage_leads_outside_the_file(write):
    """Every byte of a small model turned in three ways: extents are within the file and disjoint, or there are none."""
    content = write(weights(width=8, layers=2))
    head = [index for index in range(len(content)) if index < 400 or index > len(content) - 400]
    for index in head:
        for turn in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[index] ^= turn
            end = 0
            for extent in find_extents(bytes(damaged)):
                assert end <= extent.offset < extent.offset + extent.length <= len(damaged)
                end = extent.offset + extent.length
    for length in range(0, len(content), 37):
        assert all(extent.offset + extent.length <= length for extent in find_extents(content[:length]))


def test_graphs_within_graphs_do_not_exhaust_the_stack():
    graph = b""
    for _ in range(400):
        attribute = b"\x32" + _length(graph) + graph + b"\x0a\x20" + b"n" * 32
        node = b"\x2a" + _length(attribute) + attribute
        graph = b"\x0a" + _length(node) + node
    assert find_extents(b"\x3a" + _length(graph) + graph) == []


def _length(content: bytes) -> bytes:
    length, made = len(content), b""
    while length >= 0x80:
        made += bytes([length & 0x7F | 0x80])
        length >>= 7
    return made + bytes([length])


@needs_published_models
@pytest.mark.parametrize(
    ("name", "tensors", "share"),
    [
        ("mlperf-tiny/ad01_fp32.onnx", 20, 0.999),
        ("mlperf-tiny/ad01_int8.tflite", 20, 0.977),
        ("coral/mobilenet_v2_1.0_224_quant.tflite", 106, 0.981),
        ("tflm/person_detect.tflite", 55, 0.728),
    ],
)
def test_published_models_are_mostly_tensors(name, tensors, share):
    content = (MODELS / name).read_bytes()
    found = find_extents(content)
    assert (len(found), sum(extent.length for extent in found) / len(content)) == (
        tensors,
        pytest.approx(share, abs=1e-3),
    )


@needs_published_models
def test_a_published_onnx_model_agrees_with_its_own_library():
    content = (MODELS / "mlperf-tiny/ad01_fp32.onnx").read_bytes()
    found = {extent.name: content[extent.offset : extent.offset + extent.length] for extent in find_extents(content)}
    expected = {
        tensor.name: numpy_helper.to_array(tensor).tobytes()
        for tensor in onnx.load_model_from_string(content).graph.initializer
    }
    assert found == {name: data for name, data in expected.items() if len(data) >= 32}
