"""Direct methods: who is answered with what."""

import asyncio

import numpy as np
import pytest

from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.core.json_reading import reading_of
from device_agent.errors import ConfigurationError, InferenceError
from device_agent.runtime import methods
from device_agent.runtime.methods import (
    CALLS_AT_ONCE_MAX,
    PAYLOAD_BYTES_MAX,
    Method,
    Methods,
    collect_method,
    logs_method,
    plain_method,
    score_method,
)
from device_agent.runtime.serving import Served, Serving
from manifests.canonical import digest_of
from manifests.model import Signature, TensorSpec
from manifests.release import Release
from tests.tiny_models import BETTER, GOOD, onnx_classifier


def answer(table, name, payload=None):
    return asyncio.run(Methods(table).answer(name, payload))


def serving(**weights) -> Serving:
    made = Serving()
    for name, matrix in weights.items():
        content = onnx_classifier(matrix)
        model = OnnxEngine().load(content, digest_of(content))
        release = Release(
            generation=3, rollout="r-3", version=3, format="onnx", digest=model.digest, size_bytes=1, target="t"
        )
        made.serve(name, Served(model, release))
    return made


async def trips(_):
    raise KeyError("a bug")


async def refuses(_):
    raise ConfigurationError("It cannot be.", hint="Do it otherwise.")


async def hangs(_):
    await asyncio.Event().wait()


TABLE = {
    "ping": plain_method(lambda: {"pong": True}),
    "trips": Method(trips, "nothing"),
    "refuses": Method(refuses, "nothing"),
    "large": plain_method(lambda: "x" * PAYLOAD_BYTES_MAX),
}


def test_a_call_is_answered_whatever_becomes_of_it():
    assert answer(TABLE, "ping") == (200, {"pong": True})
    assert answer(TABLE, "ping", {}) == (200, {"pong": True})
    assert answer(TABLE, "dance") == (
        404,
        {"error": "There is no method dance; there are large, ping, refuses, trips."},
    )
    assert answer(TABLE, "ping", [1]) == (400, {"error": "ping takes nothing; this payload is no JSON object."})
    assert answer(TABLE, "refuses") == (400, {"error": "It cannot be.", "hint": "Do it otherwise."})
    assert answer(TABLE, "trips") == (500, {"error": "trips failed unexpectedly: KeyError; its log says more."})
    assert answer(TABLE, "large")[0] == 413


def test_a_method_that_hangs_is_answered_in_time(monkeypatch):
    monkeypatch.setattr(methods, "METHOD_TIMEOUT_S", 0.05)
    assert answer({"hangs": Method(hangs, "nothing")}, "hangs")[0] == 504


def test_only_so_many_are_answered_at_once():
    async def story():
        table = Methods({"hangs": Method(hangs, "nothing")})
        waiting = [asyncio.ensure_future(table.answer("hangs", None)) for _ in range(CALLS_AT_ONCE_MAX)]
        await asyncio.sleep(0)
        status, _ = await table.answer("hangs", None)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        # Those that ended leave room again.
        again = asyncio.ensure_future(table.answer("hangs", None))
        await asyncio.sleep(0)
        assert not again.done()
        again.cancel()
        return status

    assert asyncio.run(story()) == 503


# score ----------------------------------------------------------------------------------------------------------------


def test_inputs_are_scored_by_the_model_that_serves():
    status, found = answer(
        {"score": score_method(serving(digits=GOOD))}, "score", {"inputs": {"features": [0, 0, 1, 0]}}
    )
    assert status == 200
    assert (found["model"], found["version"], found["prediction"]) == ("digits", 3, "2")
    assert found["confidence"] == pytest.approx(np.exp(5) / (np.exp(5) + 3), abs=1e-5)
    assert found["latencyMs"] > 0


def test_a_lone_tensor_needs_no_name_but_one_of_several_models_does():
    table = {"score": score_method(serving(digits=GOOD, faces=BETTER))}
    assert answer(table, "score", {"inputs": [0, 1, 0, 0]}) == (
        400, {"error": "Which model? There are digits, faces."}
    )  # fmt: skip
    assert answer(table, "score", {"inputs": [0, 1, 0, 0], "model": "cats"})[0] == 404
    assert answer(table, "score", {"inputs": [0, 1, 0, 0], "model": "faces"})[1]["prediction"] == "1"


def test_without_a_model_nothing_is_scored():
    assert answer({"score": score_method(Serving())}, "score", {"inputs": [1]}) == (
        503, {"error": "No model serves on this device yet."}
    )  # fmt: skip


MALFORMED_INPUTS = {
    "no inputs": ({}, "inputs is missing or no object of tensors; the model takes features [4] float32"),
    "inputs that are a word": ({"inputs": "0,0,1,0"}, "inputs is missing"),
    "another shape": ({"inputs": {"features": [1, 2]}}, "tensor 'features' wants shape [4], but got [2]"),
    "ragged rows": ({"inputs": {"features": [[1, 2], [3]]}}, "tensor 'features' has rows of different lengths"),
    "words for numbers": ({"inputs": {"features": ["a", "b", "c", "d"]}}, "holds something that is no number"),
}


@pytest.mark.parametrize("story", MALFORMED_INPUTS)
def test_inputs_that_do_not_fit_are_refused_by_the_tensors_name(story):
    payload, words = MALFORMED_INPUTS[story]
    status, found = answer({"score": score_method(serving(digits=GOOD))}, "score", payload)
    assert (status, words in found["error"]) == (400, True), found


def _signature(*specs: tuple[str, str]) -> Signature:
    inputs = tuple(TensorSpec(name=name, dtype=dtype, shape=(1, 2)) for name, dtype in specs)
    return Signature(inputs=inputs, outputs=())


def test_numbers_become_the_models_own_types_and_are_never_cut_to_fit():
    pixels = _signature(("pixels", "uint8"))
    assert reading_of([0, 255], pixels)["pixels"].dtype == np.uint8
    assert reading_of([1.0, 2.0], pixels)["pixels"].tolist() == [1, 2]
    for value, words in (([0, 256], "0 to 255"), ([-1, 0], "0 to 255"), ([0.5, 1], "fractions")):
        with pytest.raises(InferenceError, match=words):
            reading_of(value, pixels)
    with pytest.raises(InferenceError, match="no finite number"):
        reading_of([float("nan"), 1.0], _signature(("x", "float32")))
    assert reading_of({"a": ["x", "y"], "b": [1, 2]}, _signature(("a", "str"), ("b", "float64")))["a"].tolist() == [
        "x",
        "y",
    ]
    raw = _signature(("image", "float32"))
    kinds = [reading_of(value, raw, is_raw=True)["image"].dtype.name for value in ([0, 255], [0, 256], [0.5, 1])]
    assert kinds == ["uint8", "int64", "float32"]
    with pytest.raises(InferenceError, match="has no input 'c'"):
        reading_of({"c": [1, 2], "b": [1, 2]}, _signature(("a", "float32"), ("b", "float32")))


# logs, collect, restart -----------------------------------------------------------------------------------------------


class Lines:
    def __init__(self, lines):
        self.lines = lines

    def recent(self, count, level):
        return self.lines[-count:]


def test_the_newest_lines_come_as_many_as_an_answer_holds():
    table = {"logs": logs_method(Lines([str(number) for number in range(300)]))}
    assert answer(table, "logs", {"lines": 2}) == (200, {"lines": ["298", "299"]})
    assert len(answer(table, "logs")[1]["lines"]) == 100
    for wrong in ({"lines": 0}, {"lines": 501}, {"lines": "many"}, {"lines": True}, {"level": "loud"}):
        assert answer(table, "logs", wrong)[0] == 400
    status, found = answer({"logs": logs_method(Lines(["\n" * 2000] * 500))}, "logs", {"lines": 500})
    assert status == 200
    assert found["lines"]


def test_collecting_is_refused_with_a_sentence_where_nothing_collects():
    status, found = answer({"collect": collect_method(None)}, "collect")
    assert (status, "[collection]" in found["error"]) == (501, True)


class Collector:
    def __init__(self):
        self.asked = []

    def request(self, count, duration_s):
        if count > 1000:
            raise ValueError(f"count is {count}; it is 1 to 1,000")
        self.asked.append((count, duration_s))


def test_collecting_is_asked_for_by_count_and_time():
    collector = Collector()
    table = {"collect": collect_method(collector)}
    assert answer(table, "collect", {"count": 3, "seconds": 0.5})[0] == 200
    assert answer(table, "collect") == (200, {"collecting": True, "count": 100, "seconds": 60.0})
    assert collector.asked == [(3, 0.5), (100, 60.0)]
    for wrong in ({"count": 2000}, {"count": "all"}, {"count": True}, {"seconds": "long"}, {"count": 1.5}):
        assert answer(table, "collect", wrong)[0] == 400
    assert len(collector.asked) == 2
