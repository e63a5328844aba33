"""A new model beside the old one, with the real engine: what is measured, and what keeps it from serving."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from device_agent.adapters.file_slots import FileSlots
from device_agent.adapters.linux_machine import Hooks, LinuxMachine
from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.core.codes import Code
from device_agent.core.trial import Tally
from device_agent.errors import InferenceError, StepError
from device_agent.ports import Reading
from device_agent.runtime import serving
from device_agent.runtime.examining import Examination, examine, find_machine
from device_agent.runtime.serving import Served, View, score
from manifests.canonical import digest_of
from manifests.model import GoldenSet
from manifests.release import Release, TrialTerms
from tests.tiny_models import BETTER, CONTRARY, GOOD, TinyModel, answers, npz, readings

HERE = LinuxMachine(Hooks())


def put(slots: FileSlots, content: bytes) -> str:
    digest = digest_of(content)
    slots.part(digest).write_bytes(content)
    slots.seal(digest, len(content))
    return digest


@pytest.fixture
def slots(tmp_path: Path) -> FileSlots:
    return FileSlots(tmp_path)


def release_of(content: bytes, golden: bytes | None) -> Release:
    golden_set = golden and GoldenSet(digest=digest_of(golden), size_bytes=len(golden), target="g", samples=8)
    return Release(
        generation=2,
        rollout="r-0002",
        version=2,
        format="onnx",
        digest=digest_of(content),
        size_bytes=len(content),
        target="m",
        golden=golden_set or None,
    )


def served(slots: FileSlots, content: bytes, golden: bytes | None = None) -> Served:
    if golden is not None:
        put(slots, golden)
    digest = put(slots, content)
    return Served(OnnxEngine().load(slots.read(digest), digest), release_of(content, golden))


def better(slots: FileSlots, **terms) -> Examination:
    """A sound model beside a sound one, with a reading of the sensor."""
    new = TinyModel.of(BETTER)
    return Examination(
        candidate=served(slots, new.content, new.golden),
        serving=served(slots, TinyModel.of(GOOD).content),
        reading=Reading("reading-1", {"features": readings(1)[0]}),
        terms=TrialTerms(**terms),
        memory_before_bytes=HERE.memory_used_bytes(),
    )


def code_of(examination: Examination, slots: FileSlots) -> tuple[str, str]:
    with pytest.raises(StepError) as raised:
        examine(examination, slots, HERE)
    return raised.value.code, raised.value.message


def test_a_sound_model_is_measured_beside_the_old_one(slots):
    evidence = examine(better(slots, latency_max_ms=1000.0, memory_growth_bytes_max=10**9), slots, HERE)
    assert evidence.samples == 8
    assert 0 < evidence.latency_median_ms < 1000
    assert 0 < evidence.latency_reference_ms < 1000
    assert 0 <= evidence.memory_growth_bytes < 10**9


def test_a_first_model_has_nothing_beside_it(slots):
    evidence = examine(replace(better(slots), serving=None, reading=None), slots, HERE)
    assert evidence.latency_median_ms > 0
    assert evidence.latency_reference_ms is None


def slow_classifier(width: int) -> bytes:
    """As the tiny one, by way of a product that takes its time."""
    wide = np.zeros((4, width), np.float32)
    wide[:, :4] = np.eye(4)
    back = np.zeros((width, 4), np.float32)
    back[:4] = BETTER
    square = np.eye(width, dtype=np.float32)
    names = ["wide", *[f"square{index}" for index in range(4)], "back"]
    values = [wide, square, square, square, square, back]
    steps, last = [], "features"
    for index, name in enumerate(names):
        steps.append(helper.make_node("MatMul", [last, name], [f"x{index}"]))
        last = f"x{index}"
    graph = helper.make_graph(
        [*steps, helper.make_node("Softmax", [last], ["probabilities"], axis=1)],
        "slow",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_a_model_that_takes_much_longer_than_the_old_one_is_told_by_both_latencies(slots):
    golden = npz(input__features=readings(8), output__probabilities=answers(BETTER, readings(8)))
    slow = replace(better(slots, latency_ratio_max=2.0), candidate=served(slots, slow_classifier(1500), golden))
    code, message = code_of(slow, slots)
    assert code == Code.SHADOW_LATENCY
    assert "the previous model's" in message
    # It also holds its weights in memory, 36 MB of them, which nothing else here does.
    heavy = replace(slow, terms=TrialTerms(memory_growth_bytes_max=1), memory_before_bytes=1)
    assert code_of(heavy, slots)[0] == Code.SHADOW_MEMORY


def test_wrong_golden_answers_are_told_before_anything_is_measured(slots):
    wrong = TinyModel.of(BETTER, golden_weights=CONTRARY)
    code, message = code_of(
        replace(better(slots, latency_max_ms=1e-9), candidate=served(slots, wrong.content, wrong.golden)), slots
    )
    assert (code, message[:23]) == (Code.GOLDEN_MISMATCH, "Golden sample 1 of 8: o")


def narrow(slots: FileSlots) -> Examination:
    """The new model wants three numbers where the sensor gives four."""
    node = helper.make_node("Softmax", ["features"], ["probabilities"], axis=1)
    shape = ["batch", 3]
    graph = helper.make_graph(
        [node],
        "narrow",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return replace(better(slots), candidate=served(slots, model.SerializeToString()))


def test_a_model_that_cannot_take_what_the_sensor_gives_is_told_before_it_serves(slots):
    code, message = code_of(narrow(slots), slots)
    assert code == Code.SIGNATURE_MISMATCH
    assert message.startswith("Version 2 does not take what the sensor gives: tensor 'features' wants shape [3]")


def test_before_the_first_reading_the_old_models_signature_speaks_for_the_sensor(slots):
    code, message = code_of(replace(narrow(slots), reading=None), slots)
    assert (code, "the model that serves takes [-1, 4]" in message) == (Code.SIGNATURE_MISMATCH, True)


def test_on_trial_the_two_models_take_turns_at_being_first(slots, monkeypatch):
    """Found on a real device: whoever was always first looked six times as slow."""
    new, old = served(slots, TinyModel.of(BETTER).content), served(slots, TinyModel.of(GOOD).content)
    asked, ask = [], serving.ask
    monkeypatch.setattr(serving, "ask", lambda model, reading: asked.append(model) or ask(model, reading))
    view = View("digits", new, old, Tally())
    outcomes = [score(view, Reading("r", {"features": readings(1)[0]})).outcome for _ in range(4)]
    assert asked == [new, old, old, new, new, old, old, new]
    assert all(outcome.agrees and outcome.latency_ms > 0 < outcome.reference_ms for outcome in outcomes)
    alone = score(View("digits", new), Reading("r", {"features": readings(1)[0]})).outcome
    assert (alone.agrees, alone.reference_ms, len(asked)) == (None, None, 9)


def test_a_reading_that_fits_neither_model_says_nothing_about_the_new_one(slots):
    new, old = served(slots, TinyModel.of(BETTER).content), served(slots, TinyModel.of(GOOD).content)
    misshapen = Reading("r", {"features": readings(1)[0][:1]})
    view = View("digits", new, old, Tally())
    seen = [score(view, misshapen) for _ in range(2)]
    assert [(one.is_evidence, one.outcome.is_error) for one in seen] == [(False, True)] * 2
    # Whoever is first of the two, and with nothing to compare with it counts.
    assert score(View("digits", new, None, Tally()), misshapen).is_evidence
    narrow = Served(_Refusing(new.model), new.release)
    assert score(View("digits", narrow, old, Tally()), Reading("r", {"features": readings(1)[0]})).is_evidence


class _Refusing:
    """The new model, which cannot answer what the old one can."""

    def __init__(self, model) -> None:
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, inputs):
        raise InferenceError("it will not")


def test_the_machine_is_found_as_it_is(slots):
    model = TinyModel.of(BETTER)
    release = release_of(model.content, model.golden)
    found = find_machine(release, slots, OnnxEngine(), HERE)
    assert (found.is_present, found.missing_bytes) == (False, len(model.content) + len(model.golden))
    assert found.engine.name == "onnxruntime"
    slots.part(release.digest).write_bytes(model.content[:100])
    assert find_machine(release, slots, None, HERE).missing_bytes == found.missing_bytes - 100
    put(slots, model.content)
    put(slots, model.golden)
    found = find_machine(release, slots, None, HERE)
    assert (found.is_present, found.missing_bytes, found.engine) == (True, 0, None)
    assert found.room_bytes > 0 < found.memory_bytes
