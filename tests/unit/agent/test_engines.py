"""Engines by their settings, what they say of inputs that do not fit, and files that are no models."""

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from device_agent.adapters.onnx_engine import OnnxEngine, reason
from device_agent.adapters.tflite_engine import TfliteEngine
from device_agent.config.settings import EngineSettings, read_settings
from device_agent.core.inference import unservable, zeros
from device_agent.errors import ConfigurationError, InferenceError, StepError
from device_agent.ports import Reading
from device_agent.runtime.serving import Served, Serving, load, score
from manifests.canonical import digest_of
from manifests.model import Signature, TensorSpec
from manifests.processing import LabelFile, Processing
from manifests.release import Release
from tests.tiny_models import GOOD, onnx_classifier
from tests.unit.registry.registry_models import IDENTITY, linear_tflite


@pytest.fixture
def tflite(tmp_path) -> bytes:
    """Three numbers in and the same out, the batch fixed at one."""
    return linear_tflite(tmp_path / "model.tflite", IDENTITY).read_bytes()


def loaded(engine, content):
    return engine.load(content, digest_of(content))


# Settings -------------------------------------------------------------------------------------------------------------


def test_engine_settings_come_from_a_table_and_the_environment():
    table = {"engine": {"threads": 2, "provider_options": {"CPUExecutionProvider": {"use_arena": "0"}}}}
    environment = {"SLIPWAY_AGENT_ENGINE_PROVIDERS": "CUDAExecutionProvider, CPUExecutionProvider"}
    engine = read_settings(table, environment).engine
    assert (engine.threads, engine.providers) == (2, ("CUDAExecutionProvider", "CPUExecutionProvider"))
    with pytest.raises(ConfigurationError, match=r"optimisation in \[engine\] is 'most'"):
        read_settings({"engine": {"optimisation": "most"}}, {})


def test_a_provider_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ConfigurationError) as caught:
        OnnxEngine(EngineSettings(providers=("CUDAExecutionProvider", "CPUExecutionProvider")))
    assert caught.value.message == "The execution provider 'CUDAExecutionProvider' is not in this onnxruntime."
    assert "CPUExecutionProvider" in caught.value.hint


def test_the_cpu_takes_its_place_where_that_is_allowed(caplog):
    with caplog.at_level(logging.WARNING):
        engine = OnnxEngine(EngineSettings(providers=("CUDAExecutionProvider",), fallback="cpu"))
    assert "CUDAExecutionProvider" in caplog.text
    assert engine.facts().providers == ("CPUExecutionProvider",)
    assert loaded(engine, onnx_classifier(GOOD)).run({"features": np.eye(1, 4, dtype=np.float32)})


def test_a_delegate_that_cannot_be_loaded_is_refused_by_name(tflite, caplog):
    with pytest.raises(ConfigurationError, match=r"The TFLite delegate 'libedgetpu\.so\.1' cannot be loaded"):
        TfliteEngine(EngineSettings(delegates=("libedgetpu.so.1",)))
    with caplog.at_level(logging.WARNING):
        engine = TfliteEngine(EngineSettings(delegates=("libedgetpu.so.1",), fallback="cpu"))
    assert "libedgetpu.so.1" in caplog.text
    assert engine.facts().providers == ()
    np.testing.assert_array_equal(
        loaded(engine, tflite).run({"x": np.array([[1, 2, 3]], np.float32)})["y"], [[1, 2, 3]]
    )


@pytest.mark.parametrize("optimisation", ["off", "basic", "extended", "all"])
def test_a_graph_gives_the_same_answers_however_far_it_is_rewritten(optimisation):
    model = loaded(OnnxEngine(EngineSettings(optimisation=optimisation, threads=2)), onnx_classifier(GOOD))
    answer = model.run({"features": np.eye(1, 4, dtype=np.float32)})["probabilities"]
    assert answer.argmax() == 0


# Inputs that do not fit -----------------------------------------------------------------------------------------------

ROW = np.array([[1, 2, 3]], np.float32)
UNFIT = {
    "under another name": ({"z": ROW}, "the model was not run: there is no tensor 'z'; the model wants x"),
    "none": ({}, "the model was not run: tensor 'x' is missing; the model wants float32 of [1, 3]"),
    "too long": (
        {"x": np.zeros((1, 4), np.float32)}, "the model was not run: tensor 'x' wants shape [1, 3], but got [1, 4]",
    ),
    "of another type": (
        {"x": ROW.astype(np.int8)}, "the model was not run: tensor 'x' wants float32, but got int8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", UNFIT)
@pytest.mark.parametrize("engine", ["onnx", "tflite"])
def test_inputs_are_refused_by_the_tensor_in_either_engine(engine, story, tflite):
    inputs, words = UNFIT[story]
    model = loaded(OnnxEngine(), _onnx_of_three()) if engine == "onnx" else loaded(TfliteEngine(), tflite)
    with pytest.raises(InferenceError) as caught:
        model.run(inputs)
    assert caught.value.message == words
    # A refusal leaves the model as it was.
    np.testing.assert_array_equal(model.run({"x": ROW})["y"], ROW)


def _onnx_of_three() -> bytes:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    model: onnx.ModelProto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return model.SerializeToString()


# Files that are no models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_tflite_file_that_was_cut_short_is_refused(share, tflite):
    cut = tflite[: int(len(tflite) * share)]
    with pytest.raises(StepError) as caught:
        loaded(TfliteEngine(), cut)
    assert caught.value.code == "LOAD_FAILED"


REASONS = {
    "[ONNXRuntimeError] : 1 : FAIL : /src/core/graph/model_load_utils.h:46 void onnxruntime::model_load_utils::"
    "ValidateOpsetForDomain(const std::unordered_map<std::string, int>&, bool) Opset 27 is under development.": (
        "Opset 27 is under development."
    ),
    "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : No graph was found in the protobuf.": (
        "No graph was found in the protobuf."
    ),
    "plain words": "plain words.",
}


@pytest.mark.parametrize("text", REASONS)
def test_a_reason_is_told_without_the_places_in_foreign_sources(text):
    assert reason(RuntimeError(text)) == REASONS[text]


# Serving --------------------------------------------------------------------------------------------------------------

SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 2))
UNSERVABLE = {
    "a sequence of maps": (
        (SPEC, TensorSpec(name="p", dtype="seq(map(int64,tensor(float)))", shape=())),
        "its output 'p' is a seq(map(int64,tensor(float))), which no reading or answer can carry (export the "
        "classifier with zipmap off)",
    ),
    "eight at a time": (
        (TensorSpec(name="x", dtype="float32", shape=(8, 2)), SPEC),
        "its input 'x' wants 8 readings at a time; a device has one",
    ),
    "one at a time": ((SPEC, SPEC), None),
}


@pytest.mark.parametrize("story", UNSERVABLE)
def test_a_model_for_a_device_takes_one_reading_and_gives_tensors(story):
    (given, answer), why = UNSERVABLE[story]
    assert unservable(Signature(inputs=(given,), outputs=(answer,))) == why


def test_zeros_are_made_up_only_where_every_length_is_known():
    assert zeros(Signature(inputs=(SPEC,), outputs=()))["x"].tolist() == [[0.0, 0.0]]
    assert zeros(Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, -1)),), outputs=())) is None


def release_of(content: bytes, **more) -> Release:
    return Release(
        generation=1, rollout="r-1", version=1, format="onnx", digest=digest_of(content), size_bytes=len(content),
        target="m", **more,
    )  # fmt: skip


def test_a_release_brings_its_steps_and_its_labels_to_the_model():
    content, labels = onnx_classifier(GOOD), b"north\neast\nsouth\nwest\n"
    declared = Processing.from_wire(
        {"inputs": [{"steps": [{"step": "scale", "factor": 0.1}]}], "outputs": [{"steps": [{"step": "labels"}]}]}
    )
    file = LabelFile(digest=digest_of(labels), size_bytes=len(labels), target="l")
    release = release_of(content, processing=Processing(inputs=declared.inputs, outputs=declared.outputs,
                                                        label_file=file))  # fmt: skip
    blobs = {digest_of(content): content, digest_of(labels): labels}
    served = load(OnnxEngine(), release, blobs.__getitem__, warm_up_runs=2)
    serving = Serving()
    serving.serve("m", served)
    scored = score(serving.views()["m"], Reading("r", {"x": np.array([0, 10, 0, 0], np.int64)}))
    assert (scored.answer.prediction, scored.error) == ("east", None)
    # The same bytes under a release with other steps are another thing to serve.
    assert served.under(release_of(content)) is None
    assert served.under(release).labels == ("north", "east", "south", "west")


def test_steps_that_do_not_fit_fail_the_load_and_not_every_reading():
    content = onnx_classifier(GOOD)
    release = release_of(content, processing=Processing.from_wire({"inputs": [{"tensor": "pixels"}]}))
    with pytest.raises(StepError) as caught:
        load(OnnxEngine(), release, lambda _: content)
    assert caught.value.message == (
        "The processing does not fit the model: the processing is for the input 'pixels', and the model has 'features'."
    )


def test_a_model_whose_answers_no_envelope_can_carry_is_refused_before_it_serves():
    value = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("SequenceConstruct", ["x"], ["s"])], "g", [given], [value])
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    content = made.SerializeToString()
    with pytest.raises(StepError, match=r"its output 's' is a seq\(tensor\(float\)\), which no reading"):
        load(OnnxEngine(), release_of(content), lambda _: content)
    # The engine itself carries it.
    assert OnnxEngine().load(content, "d").run({"x": ROW})["s"][0].tolist() == [[1, 2, 3]]


def test_a_model_that_dislikes_zeros_is_served_all_the_same(caplog):
    """It gathers by its input as an index, which zero is not for an empty table."""
    tensors = [
        helper.make_tensor_value_info("x", TensorProto.INT64, [1, 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    table = helper.make_tensor("table", TensorProto.FLOAT, [0], [])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])], "g", tensors[:1], tensors[1:], [table]
    )
    content = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    with caplog.at_level(logging.INFO):
        served = load(OnnxEngine(), release_of(content), lambda _: content, warm_up_runs=1)
    assert isinstance(served, Served)
    assert "could not be warmed up on zeros" in caplog.text
