"""The examination of a new model while the old one serves: its golden set, its speed and its memory. Blocking.

Also the look at the machine before anything is fetched. The update driver calls both in threads.
"""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_agent.core import preflight
from device_agent.core.codes import Code
from device_agent.core.inference import fitted, golden_difference, golden_pairs
from device_agent.core.shadow import evidence_of, shadow_problem, signature_conflict
from device_agent.errors import AgentError, InferenceError, StepError
from device_agent.ports import Engine, Machine, Model, Reading, Slots
from device_agent.runtime.fetching import files_of
from device_agent.runtime.serving import Served
from manifests.model import GoldenSet
from manifests.release import Release, TrialTerms
from manifests.twin import ShadowEvidence

Tensors = Mapping[str, Any]

# A median of fewer says little; of more it costs time in which the old model shares the machine.
_MEASUREMENTS_MIN = 24
_MEASURING_S_MAX = 2.0
# What an engine sets up at its first runs is no part of its speed.
_WARM_UP_RUNS = 2


def find_machine(release: Release, slots: Slots, engine: Engine | None, machine: Machine) -> preflight.Machine:
    """What the machine has for the release at this moment."""
    missing = [(digest, size_bytes) for digest, size_bytes in files_of(release) if not slots.has(digest)]
    parts = [part for digest, _ in missing if (part := slots.part(digest)).is_file()]
    arrived_bytes = sum(part.stat().st_size for part in parts)
    return preflight.Machine(
        is_present=not missing,
        missing_bytes=max(0, sum(size_bytes for _, size_bytes in missing) - arrived_bytes),
        room_bytes=slots.room_bytes(),
        memory_bytes=machine.memory_free_bytes(),
        engine=engine.facts() if engine is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Examination:
    """What is examined, against what. `memory_before_bytes` was taken before the candidate was loaded."""

    candidate: Served
    serving: Served | None
    reading: Reading | None
    terms: TrialTerms
    memory_before_bytes: int | None


def examine(examination: Examination, slots: Slots, machine: Machine) -> ShadowEvidence:
    """Raises StepError with the code of the first thing that speaks against the candidate."""
    _must_take_what_the_sensor_gives(examination)
    golden = examination.candidate.release.golden
    asked: list[Tensors] = []
    prepare: Callable[[Served, Tensors], Tensors] = _as_a_reading
    if golden is not None:
        # Golden inputs are the model's own tensors; what a sensor gives goes through the declared steps.
        asked, prepare = _ask_golden_set(examination.candidate.model, golden, slots.read(golden.digest)), _as_tensors
    elif examination.reading is not None:
        asked = [examination.reading.inputs]
    new_ms, reference_ms = _latencies(examination, asked, prepare)
    used_bytes, before_bytes = machine.memory_used_bytes(), examination.memory_before_bytes
    growth_bytes = None if used_bytes is None or before_bytes is None else max(0, used_bytes - before_bytes)
    evidence = evidence_of(len(asked), new_ms, reference_ms, growth_bytes)
    seen = shadow_problem(evidence, examination.terms)
    if seen is not None:
        raise StepError(seen.code, seen.message)
    return evidence


def _must_take_what_the_sensor_gives(examination: Examination) -> None:
    """A reading that the old model had an answer to is the sensor's word; before one came, the old signature is."""
    candidate, serving = examination.candidate, examination.serving
    why: str | None = None
    if examination.reading is not None:
        try:
            candidate.pipeline.prepare(examination.reading.inputs)
        except InferenceError as err:
            why = err.message
    elif serving is not None and candidate.release.processing == serving.release.processing is None:
        why = signature_conflict(serving.model.signature, candidate.model.signature)
    if why is not None:
        version = candidate.release.version
        raise StepError(Code.SIGNATURE_MISMATCH, f"Version {version} does not take what the sensor gives: {why}.")


def _ask_golden_set(model: Model, golden: GoldenSet, content: bytes) -> list[Tensors]:
    """The golden inputs, sample by sample, after the model has answered each of them rightly."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            inputs, outputs = golden_pairs({name: file[name] for name in file.files})
    except (ValueError, OSError, EOFError, AgentError) as err:
        raise StepError(Code.GOLDEN_MISMATCH, f"The golden set cannot be read: {err}.") from err
    samples = len(next(iter(inputs.values())))
    readings: list[Tensors] = [{name: array[index] for name, array in inputs.items()} for index in range(samples)]
    for index, reading in enumerate(readings):
        expected = {name: np.asarray(array[index]) for name, array in outputs.items()}
        try:
            actual = model.run(fitted(reading, model.signature))
        except AgentError as err:
            raise StepError(Code.GOLDEN_MISMATCH, f"The golden set cannot be asked: {err.message}.") from err
        why = golden_difference(expected, actual, golden.tolerance_absolute)
        if why is not None:
            raise StepError(Code.GOLDEN_MISMATCH, f"Golden sample {index + 1} of {samples}: {why}.")
    return readings


def _latencies(
    examination: Examination, readings: list[Tensors], prepare: Callable[[Served, Tensors], Tensors]
) -> tuple[list[float], list[float]]:
    """Milliseconds of both models, measured in turns so that a busy machine slows both; empty without inputs."""
    models: list[tuple[Served, list[float]]] = [(examination.candidate, [])]
    if examination.serving is not None:
        models.append((examination.serving, []))
    if readings:
        deadline_s = time.perf_counter() + _MEASURING_S_MAX
        for count, reading in enumerate(_over_and_over(readings)):
            is_warm = count >= _WARM_UP_RUNS
            for served, seen_ms in models:
                took_ms = _latency_ms(served, reading, prepare)
                if took_ms is not None and is_warm:
                    seen_ms.append(took_ms)
            is_over = time.perf_counter() > deadline_s
            if is_warm and (is_over or count >= _WARM_UP_RUNS + max(_MEASUREMENTS_MIN, len(readings)) - 1):
                break
    return models[0][1], models[1][1] if len(models) > 1 else []


def _as_tensors(served: Served, tensors: Tensors) -> Tensors:
    return fitted(tensors, served.model.signature)


def _as_a_reading(served: Served, reading: Tensors) -> Tensors:
    return served.pipeline.prepare(reading)[0]


def _over_and_over(readings: list[Tensors]) -> Iterator[Tensors]:
    while True:
        yield from readings


def _latency_ms(served: Served, reading: Tensors, prepare: Callable[[Served, Tensors], Tensors]) -> float | None:
    """None where the model does not take this input: the golden set is made for the new one."""
    try:
        inputs = prepare(served, reading)
        began_s = time.perf_counter()
        served.model.run(inputs)
    except InferenceError:
        return None
    return (time.perf_counter() - began_s) * 1000
