"""What the agent's loop costs over plain onnxruntime in one process, and what a swap costs those who wait."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.ports import Reading
from device_agent.runtime.serving import Served, Serving, score
from device_agent.wiring import give_memory_back
from manifests.canonical import digest_of
from manifests.release import Release
from tests.tiny_models import onnx_classifier

REPEATS = 5
LOOP_S = 0.5
SWAP_EVERY_S = 0.1


def run() -> list[dict]:
    """Medians of repeats that take turns, so that a busy machine slows both sides."""
    content = onnx_classifier(np.eye(4) * 5.0)
    return [_loop_cost(content), _swap_cost(content)]


def _loop_cost(content: bytes) -> dict:
    features = np.array([1, 0, 0, 0], np.float32)
    batch = features[np.newaxis]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    serving = Serving()
    serving.serve("digits", _served(content))
    reading = Reading("r", {"features": features})
    plain_us, agent_us = [], []
    for _ in range(REPEATS):
        plain_us.append(_microseconds(lambda: plain.run(None, {"features": batch})))
        agent_us.append(_microseconds(lambda: score(serving.views()["digits"], reading)))
    base, ours = statistics.median(plain_us), statistics.median(agent_us)
    return {
        "what": "tiny model, scored and interpreted",
        "plain onnxruntime µs": round(base, 1),
        "agent µs": round(ours, 1),
        "added µs": round(ours - base, 1),
    }


def _swap_cost(content: bytes) -> dict:
    quiet = _latencies_us(content, swapping=False)
    busy = _latencies_us(content, swapping=True)
    return {
        "what": f"p99 of a reading, swapping every {SWAP_EVERY_S:g} s",
        "without µs": round(quiet, 1),
        "with µs": round(busy, 1),
        "ratio": round(busy / quiet, 2),
    }


def _latencies_us(content: bytes, *, swapping: bool) -> float:
    serving = Serving()
    serving.serve("digits", _served(content))
    reading = Reading("r", {"features": np.array([1, 0, 0, 0], np.float32)})
    stop = threading.Event()

    def swap() -> None:
        while not stop.wait(SWAP_EVERY_S):
            serving.serve("digits", _served(content))
            give_memory_back()

    thread = threading.Thread(target=swap if swapping else stop.wait)
    thread.start()
    taken_us = []
    until_s = time.perf_counter() + LOOP_S * REPEATS
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        scored = score(serving.views()["digits"], reading)
        taken_us.append((time.perf_counter() - began_s) * 1e6)
        assert scored.error is None
    stop.set()
    thread.join()
    return float(np.percentile(taken_us, 99))


def _served(content: bytes) -> Served:
    digest = digest_of(content)
    release = Release(
        generation=1,
        rollout="r-0001",
        version=1,
        format="onnx",
        digest=digest,
        size_bytes=len(content),
        target="digits/1/model.onnx",
    )
    return Served(OnnxEngine().load(content, digest), release)


def _microseconds(call: Callable[[], Any]) -> float:
    call()
    count = 0
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < LOOP_S:
        for _ in range(50):
            call()
        count += 50
    return (time.perf_counter() - began_s) / count * 1e6
