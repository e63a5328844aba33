"""Scores a bare model file by the engines and steps that serve on a device, without hub, state or release."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.core.inference import unservable
from device_agent.core.processing import Pipeline
from device_agent.errors import AgentError, InferenceError
from device_agent.ports import Engine, Model
from manifests.canonical import digest_of
from manifests.model import ModelFormat
from manifests.processing import Processing

Array = np.ndarray[Any, Any]

# Numbers of one output that are told one by one; a picture is told by its shape.
OUTPUT_NUMBERS_MAX = 4096

# The identifier of a TFLite flatbuffer, at bytes 4 to 8. An ONNX file has none.
_TFLITE_IDENTIFIER = b"TFL3"


def score_file(
    model: Path,
    inputs: Mapping[str, Array] | Array,
    engines: Mapping[ModelFormat, Callable[[], Engine]],
    processing: Processing | None = None,
) -> dict[str, Any]:
    """Load the file and answer each reading of the inputs.

    An array is one reading, or several along its first axis: whichever fits the model. Raises AgentError where the
    file cannot be read, is no model, or does not take the inputs; the message names the tensor.

    Returns JSON values: ``{"model": {"file", "format", "digest", "size"}, "engine": {"name", "version"}, "inputs",
    "outputs": [{"name", "dtype", "shape"}], "readings": n, "answers": [{"prediction", "confidence", "values",
    "outputs", "latencyMs"}]}``, where `outputs` of an answer leaves out what has more numbers than can be read.
    """
    content = _read(model)
    format_ = format_of(content)
    make = engines.get(format_)
    if make is None:
        raise AgentError(
            f"No engine for {format_} is installed here.", hint="Install Slipway with its agent extra, which has both."
        )
    engine = make()
    loaded = engine.load(content, digest_of(content))
    why = unservable(loaded.signature)
    if why is not None:
        raise AgentError(f"{model.name} cannot answer readings: {why}.")
    pipeline = Pipeline(loaded.signature, processing, loaded.quantisation)
    given = inputs if isinstance(inputs, Mapping) else {"input": inputs}
    readings = readings_of(given, pipeline)
    facts = engine.facts()
    return {
        "model": {"file": model.name, "format": format_, "digest": loaded.digest, "size": len(content)},
        "engine": {"name": facts.name, "version": facts.version},
        "inputs": [spec.to_wire() for spec in loaded.signature.inputs],
        "outputs": [spec.to_wire() for spec in loaded.signature.outputs],
        "readings": len(readings),
        "answers": [answer_of(loaded, pipeline, reading) for reading in readings],
    }


def format_of(content: bytes) -> ModelFormat:
    """By the bytes, whatever the file is called."""
    return "tflite" if content[4:8] == _TFLITE_IDENTIFIER else "onnx"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise AgentError(f"The model {path} cannot be read: {err.strerror}.") from err


def readings_of(given: Mapping[str, Array], pipeline: Pipeline) -> list[dict[str, Array]]:
    """The arrays as one reading, or as several along their first axis; raises InferenceError where neither fits."""
    whole = dict(given)
    try:
        pipeline.prepare(whole)
    except InferenceError as err:
        lengths = {value.shape[0] if value.ndim else 0 for value in given.values()}
        if len(lengths) != 1 or 0 in lengths:
            raise
        each = [{name: value[index] for name, value in given.items()} for index in range(lengths.pop())]
        try:
            pipeline.prepare(each[0])
        except InferenceError:
            # What was said of the whole is what the caller has before them.
            raise err from None
        return each
    return [whole]


def answer_of(model: Model, pipeline: Pipeline, reading: Mapping[str, Array]) -> dict[str, Any]:
    """One reading's answer as JSON values, as `score_file` gives them."""
    inputs, compared = pipeline.prepare(reading)
    began_s = time.perf_counter()
    outputs = model.run(inputs)
    latency_ms = (time.perf_counter() - began_s) * 1000
    answer = pipeline.answer(outputs, compared)
    return {
        "prediction": answer.prediction,
        "confidence": answer.confidence,
        "values": answer.values,
        "outputs": {
            name: _numbers_or_text(np.asarray(value))
            for name, value in outputs.items()
            if np.asarray(value).size <= OUTPUT_NUMBERS_MAX
        },
        "latencyMs": round(latency_ms, 4),
    }


def _numbers_or_text(value: Array) -> Any:
    return (value.astype(str) if value.dtype.kind in "OS" else value).tolist()
