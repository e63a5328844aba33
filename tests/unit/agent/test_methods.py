"""Direct methods: who is answered with what."""

import asyncio

import numpy as np
import pytest

from device_agent.adapters.local_door import LocalDoor, NobodyListensError, ask
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
    restart_method,
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

    asked = []

    class Collector:
        def request(self, count, duration_s):
            if count > 1000:
                raise ValueError("count is too large")
            asked.append((count, duration_s))

    table = {"collect": collect_method(Collector())}
    assert answer(table, "collect", {"count": 3, "seconds": 20}) == (200, {"collecting": 3, "seconds": 20})
    assert answer(table, "collect")[0] == 200
    assert asked == [(3, 20.0), (100, 600.0)]
    assert answer(table, "collect", {"count": 2000}) == (400, {"error": "count is too large."})
    status, found = answer(table, "collect", {"count": "all"})
    assert (status, "collect takes" in found["error"]) == (400, True)


def test_a_restart_is_answered_before_it_begins():
    async def story():
        begun = asyncio.Event()
        found = await Methods({"restart": restart_method(begun.set, 0.01)}).answer("restart", None)
        assert not begun.is_set()
        async with asyncio.timeout(5):
            await begun.wait()
        return found

    assert asyncio.run(story()) == (200, {"restarting": True})


# The local door -------------------------------------------------------------------------------------------------------


def test_the_local_door_leads_to_the_same_methods_for_its_owner_alone(tmp_path):
    deep = tmp_path / ("a-name-that-no-socket-address-would-hold-" * 4)
    deep.mkdir()

    async def story():
        door = asyncio.ensure_future(LocalDoor(deep).serve(Methods(TABLE).answer))
        while not (deep / "agent.sock").exists():
            await asyncio.sleep(0.005)
        found = [await asyncio.to_thread(ask, deep, name) for name in ("ping", "dance")]
        mode = (deep / "agent.sock").stat().st_mode & 0o777
        door.cancel()
        await asyncio.gather(door, return_exceptions=True)
        return found, mode

    (ping, dance), mode = asyncio.run(story())
    assert (ping, dance[0], mode) == ((200, {"pong": True}), 404, 0o600)
    assert not (deep / "agent.sock").exists()
    with pytest.raises(NobodyListensError, match="No agent answers"):
        ask(deep, "ping")


def test_what_a_killed_agent_left_of_its_door_is_no_obstacle(tmp_path):
    (tmp_path / "agent.sock").write_text("left behind")

    async def story():
        door = asyncio.ensure_future(LocalDoor(tmp_path).serve(Methods(TABLE).answer))
        async with asyncio.timeout(5):
            while True:
                try:
                    found = await asyncio.to_thread(ask, tmp_path, "ping")
                    break
                except NobodyListensError:
                    await asyncio.sleep(0.005)
        door.cancel()
        await asyncio.gather(door, return_exceptions=True)
        return found

    assert asyncio.run(story()) == (200, {"pong": True})
