"""What the agent costs over plain onnxruntime, what a swap costs those who wait, and what a process takes to start.

Ratios of two things measured in turns in one run, so that a busy machine slows both sides. The last figures are of real
processes: the agent against a simulated hub.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks._mobilenet import SIDE, mobilenet
from device_agent.adapters.freed_memory import FreedMemory
from device_agent.adapters.onnx_engine import OnnxEngine
from device_agent.adapters.sqlite_state import SqliteState
from device_agent.ports import Reading, SourceFacts
from device_agent.runtime.scoring import ScoringLoop
from device_agent.runtime.serving import Scored, Served, Serving, load, score
from device_agent.wiring import background_threads
from manifests.canonical import digest_of
from manifests.release import Release
from tests.tiny_models import onnx_classifier

REPEATS = 15
PROCESSES = 6
SWAP_REPEATS = 4
SWAPS_A_REPEAT = 8
SWAP_PAUSE_S = 0.25
SWAPS = 1000
# The agent settles on its memory in the first swaps.
SWAPS_SETTLING = 50
# How long the agent serves before its memory is read.
SERVED_S = 3.0
START_S_MAX = 60.0


@dataclass(frozen=True)
class Subject:
    """A model to measure with, and one reading for it."""

    name: str
    content: bytes
    inputs: dict[str, np.ndarray]
    # Readings of one turn.
    count: int


def subjects() -> list[Subject]:
    image = np.random.default_rng(1).random((3, SIDE, SIDE), np.float32)
    seven_kilobytes = onnx_classifier(np.eye(4) * 5.0, padding_bytes=6_700)
    return [
        Subject("7 KB", seven_kilobytes, {"features": np.array([1, 0, 0, 0], np.float32)}, 5_000),
        Subject("MobileNet v2, 14 MB", mobilenet(), {"image": image}, 15),
    ]


def run(*, is_full: bool = False) -> list[dict[str, Any]]:
    measured = subjects()
    turns = 3 if is_full else 1
    return [
        *(_loop_cost(place, subject, PROCESSES * turns) for place, subject in enumerate(measured)),
        *(_swap_cost(subject, SWAP_REPEATS * turns) for subject in measured),
        _swap_memory(SWAPS),
        *_processes(5 if is_full else 3),
    ]


# The loop -------------------------------------------------------------------------------------------------------------


class _Counting:
    """A source that has its reading ready, and a sink that stops the loop after so many."""

    def __init__(self, subject: Subject) -> None:
        self.reading = Reading("r", subject.inputs)
        self.left = 0
        self.loop: ScoringLoop | None = None

    def next_reading(self) -> Reading:
        return self.reading

    @property
    def paces_itself(self) -> bool:
        return True

    def seek(self, position: int) -> None:
        """There is but one place to be."""

    def facts(self) -> SourceFacts:
        return SourceFacts(kind="ready")

    def close(self) -> None:
        """Nothing is held."""

    def take(self, scored: Scored) -> None:
        assert scored.error is None, scored.error
        self.left -= 1
        if self.left <= 0:
            assert self.loop is not None
            self.loop.stop()


_LOOPING = """
import json, sys
from benchmarks.agent import loop_turns, subjects
place, repeats, agent_first = map(int, sys.argv[1:])
print(json.dumps(loop_turns(subjects()[place], repeats, agent_first=bool(agent_first))))
"""


def _loop_cost(place: int, subject: Subject, processes: int) -> dict[str, Any]:
    """The agent's own loop, from the source to the hand-over of the answer, against `session.run` on ready inputs.

    In several processes: where the memory of a session happens to lie makes one of two equal sessions up to 4 % slower
    than the other for the whole life of a process.
    """
    turns: list[tuple[float, float]] = []
    ratios: list[float] = []
    for number in range(processes):
        command = [sys.executable, "-c", _LOOPING, str(place), str(REPEATS), str(number % 2)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken = [(plain, agent) for plain, agent in json.loads(done.stdout)]
        ratios.append(statistics.median(plain / agent for plain, agent in taken))
        turns += taken
    plain_us, agent_us = (statistics.median(taken) for taken in zip(*turns, strict=True))
    return {
        "what": f"{subject.name}: agent's loop over plain onnxruntime",
        "plain µs": round(plain_us, 1),
        "agent µs": round(agent_us, 1),
        "added µs": round(statistics.median(agent - plain for plain, agent in turns), 1),
        "throughput": round(statistics.median(ratios), 3),
        f"of {processes} processes": f"{min(ratios):.3f} to {max(ratios):.3f}",
    }


def loop_turns(subject: Subject, repeats: int, *, agent_first: bool) -> list[tuple[float, float]]:
    """Microseconds an inference, (plain, agent) in each turn."""
    serving = Serving()
    if agent_first:
        serving.serve("model", _served(subject))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(subject.content, options, providers=["CPUExecutionProvider"])
    if not agent_first:
        serving.serve("model", _served(subject))
    batch = {name: value[np.newaxis] for name, value in subject.inputs.items()}

    def plain_turn() -> None:
        for _ in range(subject.count):
            plain.run(None, batch)

    def agent_turn() -> None:
        ends = _Counting(subject)
        ends.left = subject.count
        ends.loop = ScoringLoop(ends, serving, ends.take, 0.0, lambda: datetime.now(UTC))
        ends.loop.run()

    return _in_turns(plain_turn, agent_turn, repeats, subject.count)


def _in_turns(
    one: Callable[[], None], other: Callable[[], None], repeats: int, count: int
) -> list[tuple[float, float]]:
    """Microseconds of both in each of the turns: of processor time, which other programs lengthen least."""
    taken: list[tuple[float, float]] = []
    one()
    other()
    for _ in range(repeats):
        pair = []
        for turn in (one, other):
            began_s = time.thread_time()
            turn()
            pair.append((time.thread_time() - began_s) / count * 1e6)
        taken.append((pair[0], pair[1]))
    return taken


def _release(content: bytes) -> Release:
    return Release(
        generation=1,
        rollout="r-0001",
        version=1,
        format="onnx",
        digest=digest_of(content),
        size_bytes=len(content),
        target="model/1/model.onnx",
    )


def _served(subject: Subject) -> Served:
    return load(OnnxEngine(), _release(subject.content), lambda _: subject.content, warm_up_runs=1)


# Swaps ----------------------------------------------------------------------------------------------------------------


def _swap_cost(subject: Subject, repeats: int) -> dict[str, Any]:
    """Readings without pause while another thread loads and swaps, as an update does; quiet and busy in turns.

    The peer is one plain session that a thread replaces by another: what onnxruntime itself costs those who wait.
    """
    row: dict[str, Any] = {
        "what": f"{subject.name}: p99 of a reading while a model is loaded, warmed up and swapped in"
    }
    sides = {"agent": _agent_side, "plain": _plain_side}
    latencies: dict[tuple[str, bool], list[float]] = {(by, busy): [] for by in sides for busy in (False, True)}
    swap_ms: dict[str, list[float]] = {by: [] for by in sides}
    for _ in range(repeats):
        for by, make in sides.items():
            for is_busy in (False, True):
                quiet, during, swaps = _readings_while(*make(subject), swaps=SWAPS_A_REPEAT if is_busy else 0)
                latencies[by, is_busy] += during if is_busy else quiet
                swap_ms[by] += swaps
    for by in sides:
        before, busy_ms = (float(np.percentile(latencies[by, busy], 99)) for busy in (False, True))
        row |= {
            f"{by}: swap ms": round(statistics.median(taken for taken in swap_ms[by][::2]), 1),
            f"{by}: without ms": round(before, 4),
            f"{by}: during ms": round(busy_ms, 4),
            f"{by}: longest ms": round(max(latencies[by, True]), 2),
            f"{by}: ratio": round(busy_ms / before, 2),
        }
    return row | {"readings": sum(map(len, latencies.values())), "failed": 0}


# What a swap does, step by step; between the two the new model is on trial and the old one stays in memory.
Swap = tuple[Callable[[], None], Callable[[], None]]


def _agent_side(subject: Subject) -> tuple[Callable[[], None], Swap]:
    """(a reading, a swap) of the agent's own parts."""
    serving, reading, memory = Serving(), Reading("r", subject.inputs), FreedMemory()
    serving.serve("model", _served(subject))
    engine, release = OnnxEngine(), _release(subject.content)

    def read() -> None:
        scored = score(serving.views()["model"], reading)
        assert scored.error is None, scored.error

    before: list[Served] = []

    def activate() -> None:
        before.append(serving.views()["model"].served)
        serving.serve("model", load(engine, release, lambda _: subject.content, warm_up_runs=1))

    def let_go() -> None:
        before.clear()
        memory.freed(len(subject.content))

    return read, (activate, let_go)


def _plain_side(subject: Subject) -> tuple[Callable[[], None], Swap]:
    """The same of onnxruntime alone."""
    batch = {name: value[np.newaxis] for name, value in subject.inputs.items()}
    zeros = {name: np.zeros_like(value) for name, value in batch.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    held: list[Any] = []

    def activate() -> None:
        session = onnxruntime.InferenceSession(subject.content, options, providers=["CPUExecutionProvider"])
        session.run(None, zeros)
        held.insert(0, session)

    activate()
    return lambda: held[0].run(None, batch), (activate, held.pop)


def _readings_while(read: Callable[[], object], swap: Swap, swaps: int) -> tuple[list[float], list[float], list[float]]:
    """(latencies with no swap under way, latencies that overlap one, lengths of the swaps) in milliseconds."""
    windows: list[tuple[float, float]] = []
    done = threading.Event()

    def swap_often() -> None:
        for _ in range(swaps):
            for step in swap:
                time.sleep(SWAP_PAUSE_S / len(swap))
                began_s = time.perf_counter()
                step()
                windows.append((began_s, time.perf_counter()))
        if not swaps:
            time.sleep(SWAPS_A_REPEAT * SWAP_PAUSE_S)
        done.set()

    spans: list[tuple[float, float]] = []
    with background_threads(1) as background:
        swapping = background.submit(swap_often)
        while not done.is_set():
            began_s = time.perf_counter()
            read()
            spans.append((began_s, time.perf_counter()))
        swapping.result()
    during = [_is_during(span, windows) for span in spans]
    latencies = [(end - begin) * 1e3 for begin, end in spans]
    return (
        [taken for taken, is_in in zip(latencies, during, strict=True) if not is_in],
        [taken for taken, is_in in zip(latencies, during, strict=True) if is_in],
        [(end - begin) * 1e3 for begin, end in windows],
    )


def _is_during(span: tuple[float, float], windows: list[tuple[float, float]]) -> bool:
    return any(span[0] < end and begin < span[1] for begin, end in windows)


_SWAPPING = """
import json, sys
from benchmarks.agent import subjects, swap_often
print(json.dumps(swap_often(subjects()[0], int(sys.argv[1]), sys.argv[2])))
"""


def swap_often(subject: Subject, swaps: int, by: str) -> list[int]:
    """Resident kilobytes after each swap: by the agent's engine and serving, or by one plain session after another."""
    engine, serving, memory, taken_kb = OnnxEngine(), Serving(), FreedMemory(), []
    release, reading = _release(subject.content), Reading("r", subject.inputs)
    batch = {name: value[np.newaxis] for name, value in subject.inputs.items()}
    for _ in range(swaps):
        if by == "agent":
            serving.switch("model", load(engine, release, lambda _: subject.content, warm_up_runs=1))
            serving.serve("model", serving.views()["model"].served)
            score(serving.views()["model"], reading)
            memory.freed(len(subject.content))
        else:
            session = onnxruntime.InferenceSession(subject.content, providers=["CPUExecutionProvider"])
            session.run(None, batch)
        taken_kb.append(resident_kb())
    return taken_kb


def _swap_memory(swaps: int) -> dict[str, Any]:
    """Resident memory over many swaps in a process of its own, and the same of plain sessions, for what they keep."""
    row: dict[str, Any] = {"what": f"{swaps:,} swaps of the 7 KB model, resident memory"}
    for by in ("agent", "plain"):
        command = [sys.executable, "-c", _SWAPPING, str(swaps), by]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        settled = np.array(json.loads(done.stdout))[SWAPS_SETTLING:]
        slope = float(np.polyfit(np.arange(len(settled)), settled, 1)[0])
        row |= {
            f"{by}: MB after {SWAPS_SETTLING}": round(float(settled[0]) / 1024, 1),
            f"{by}: MB at last": round(float(settled[-1]) / 1024, 1),
            f"{by}: KB a swap": round(slope, 2),
        }
    return row


def resident_kb(pid: int | str = "self") -> int:
    """VmRSS: what the process holds in memory now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


# Whole processes ------------------------------------------------------------------------------------------------------


def _processes(repeats: int) -> list[dict[str, Any]]:
    """A real agent on a tiny model: its memory when it has served for a while, and its start to the first score."""
    from simulators.iothub.server.background import BackgroundHub
    from tests.tiny_models import GOOD, TinyModel
    from tests.wire.agent.artifact_server import ArtifactServer
    from tests.wire.agent.conftest import Device

    with tempfile.TemporaryDirectory() as folder:
        address = f"127.99.{os.getpid() % 250}.1"
        hub = BackgroundHub(Path(folder) / "hub", address)
        artifacts = ArtifactServer(address)
        device = Device(hub, artifacts, Path(folder))
        try:
            device.desire(device.publish(TinyModel.of(GOOD, padding_bytes=6_700), 1))
            device.start("--log-level", "warning")
            device.until_reported("committed", 1)
            time.sleep(SERVED_S)
            assert device.process is not None
            resident_mb = resident_kb(device.process.pid) / 1024
            device.terminate()
            starts_s = [_start_to_score_s(device) for _ in range(repeats)]
        finally:
            if device.process is not None and device.process.poll() is None:
                device.kill()
            artifacts.stop()
            hub.stop()
    return [
        {"what": "agent, SDK, engine and the 7 KB model, resident", "MB": round(resident_mb, 1)},
        {
            "what": "start of the agent's process to its first score in the outbox",
            "s": round(statistics.median(taken for taken, _ in starts_s), 2),
            "of processor s": round(statistics.median(processor for _, processor in starts_s), 2),
            "plain imports s": round(statistics.median(_plain_start_s() for _ in range(repeats)), 2),
        },
    ]


def _start_to_score_s(device: Any) -> tuple[float, float]:
    """(seconds, seconds of processor) until the outbox has counted one reading more, asked from outside."""
    state = SqliteState.open_to_read(device.state)
    try:
        before, began_s = state.counts().enqueued, time.perf_counter()
        process = device.start("--log-level", "warning")
        while state.counts().enqueued == before:
            time.sleep(0.005)
            assert time.perf_counter() - began_s < START_S_MAX, device.log.read_text()[-2000:]
        taken_s, processor_s = time.perf_counter() - began_s, _processor_s(process.pid)
    finally:
        state.close()
    device.terminate()
    return taken_s, processor_s


def _processor_s(pid: int) -> float:
    """User and system time of all threads: what a start costs on a machine that does nothing else."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _plain_start_s() -> float:
    """A process that imports numpy and onnxruntime and does nothing: what no agent can be quicker than."""
    began_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import numpy, onnxruntime"], check=True)
    return time.perf_counter() - began_s
