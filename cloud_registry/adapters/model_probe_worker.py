"""The process that loads a model on registration: ``python -m cloud_registry.adapters.model_probe_worker REPORT``.

Reads a request as JSON from stdin and writes its report as JSON to the file REPORT: what it saw, or why it refuses.
"""

import ctypes
import json
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cloud_registry.core.golden import (
    INPUT_PREFIX,
    OUTPUT_PREFIX,
    Array,
    check_answers,
    check_finite,
    check_fit,
    check_same_interface,
    check_tensors,
    named,
    renamed,
)
from cloud_registry.errors import RefusedModelError
from manifests.model import Signature, TensorSpec

# Samples travel to devices: a set of more than this is a data set.
ARRAYS_BYTES_MAX = 256 * 1024 * 1024
LATENCY_RUNS_MIN = 10
REASON_LENGTH_MAX = 200
PARENT_DEATH_SIGNAL = 1  # prctl(2), PR_SET_PDEATHSIG


class Engine(Protocol):
    signature: Signature

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Answers to one sample, batch axis included on both sides."""
        ...


def main() -> None:
    request = json.loads(sys.stdin.read())
    _die_with_parent(request["parent"], request["durationMaxS"])
    try:
        report = examine(request)
    except RefusedModelError as err:
        report = {"refused": err.message, "hint": err.hint}
    path = Path(sys.argv[1])
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(report))
    unfinished.replace(path)


def examine(request: dict[str, Any]) -> dict[str, Any]:
    """Load the model, run what it was given, and compare or record the answers."""
    name: str = request["name"]
    engine = _load(request["format"], request["model"], name)
    signature = engine.signature
    check_tensors(signature, name)
    like = Signature.from_wire(request["like"]) if request["like"] else signature
    check_same_interface(like, signature, request["likeName"], name)
    arrays_path = request["golden"] or request["sample"]
    if arrays_path is None:
        latency_ms = _run_on_zeros(engine, name)
        return {"signature": signature.to_wire(), "samples": 0, "latencyMedianMs": latency_ms}
    arrays = read_arrays(Path(arrays_path), request["arraysName"])
    inputs = renamed(named(arrays, INPUT_PREFIX), signature.inputs, like.inputs)
    samples = check_fit(signature.inputs, inputs, INPUT_PREFIX, request["arraysName"])
    answers, latency_ms = _run_samples(engine, inputs, samples, name)
    check_finite(answers, name)
    if request["golden"]:
        expected = renamed(named(arrays, OUTPUT_PREFIX), signature.outputs, like.outputs)
        _check_golden(signature, expected, samples, request)
        check_answers(expected, answers, request["tolerance"], name, request["against"])
    if request["recorded"]:
        _record(Path(request["recorded"]), inputs, answers)
    return {"signature": signature.to_wire(), "samples": samples, "latencyMedianMs": latency_ms}


def _die_with_parent(parent: int, duration_max_s: float) -> None:
    # Twice over: the kernel tells at once, where it is Linux; the alarm holds everywhere.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    signal.alarm(int(duration_max_s) + 5)
    if os.getppid() != parent:
        raise SystemExit("the registration that asked for this is gone")


def _load(format_: str, path: str, name: str) -> Engine:
    try:
        return OnnxEngine(path, name) if format_ == "onnx" else TfliteEngine(path)
    except RefusedModelError:
        raise
    except Exception as err:
        raise RefusedModelError(
            f"{name} does not load: {engine_reason(str(err), path)}", hint=_load_hint(str(err))
        ) from err


def engine_reason(text: str, path: str) -> str:
    """The engine's reason without its private prefixes and our private path."""
    for noise in (f"Load model from {path} failed:", path, "Fatal error: "):
        text = text.replace(noise, "")
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    text = " ".join(text.split())
    return text if len(text) <= REASON_LENGTH_MAX else text[:REASON_LENGTH_MAX] + "…"


def _load_hint(text: str) -> str:
    if "is not a registered function/op" in text or "com.microsoft.extensions" in text:
        return (
            "It uses operators that no plain runtime has. Export it without custom pre- and post-processing operators."
        )
    if "external data" in text.lower():
        return (
            "Its weights are in another file. Save it as one file: onnx.save(model, path, save_as_external_data=False)."
        )
    if "quantiz" in text.lower():
        return "Its quantization is not what this runtime takes. Convert it again with a newer converter."
    if "opset" in text.lower() or "IR version" in text:
        return "It was exported for a newer runtime. Export it with an older opset."
    if "Protobuf" in text or "Flatbuffer" in text:
        return "The file is damaged or cut short. Export or copy it again."
    return "Export the model again, or with another version of the converter."


class OnnxEngine:
    def __init__(self, path: str, name: str) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.signature = Signature(
            inputs=tuple(_onnx_spec(node, name) for node in self._session.get_inputs()),
            outputs=tuple(_onnx_spec(node, name) for node in self._session.get_outputs()),
        )

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        feed = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in inputs.items()}
        answers = self._session.run(None, feed)
        return {spec.name: np.asarray(answer) for spec, answer in zip(self.signature.outputs, answers, strict=True)}


_ONNX_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


def _onnx_spec(node: Any, name: str) -> TensorSpec:
    kind: str = node.type
    if not kind.startswith("tensor("):
        raise RefusedModelError(
            f"{name} has {node.name!r}, which is no tensor but {kind}",
            hint="Export it with tensors only; scikit-learn models with the option zipmap=False.",
        )
    element = kind.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(name=node.name, dtype=_ONNX_DTYPES.get(element, element), shape=shape)


class TfliteEngine:
    def __init__(self, path: str) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(path)
        self._interpreter.allocate_tensors()
        self._inputs = {detail["name"]: detail["index"] for detail in self._interpreter.get_input_details()}
        self._outputs = {detail["name"]: detail["index"] for detail in self._interpreter.get_output_details()}
        self.signature = Signature(
            inputs=tuple(_tflite_spec(detail) for detail in self._interpreter.get_input_details()),
            outputs=tuple(_tflite_spec(detail) for detail in self._interpreter.get_output_details()),
        )

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        shapes = {detail["name"]: tuple(detail["shape"]) for detail in self._interpreter.get_input_details()}
        if any(shapes[name] != array.shape for name, array in inputs.items()):
            for name, array in inputs.items():
                self._interpreter.resize_tensor_input(self._inputs[name], array.shape, strict=True)
            self._interpreter.allocate_tensors()
        for name, array in inputs.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        return {name: np.array(self._interpreter.get_tensor(index)) for name, index in self._outputs.items()}


def _tflite_spec(detail: Any) -> TensorSpec:
    shape = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return TensorSpec(
        name=detail["name"], dtype=np.dtype(detail["dtype"]).name, shape=tuple(max(-1, int(size)) for size in shape)
    )


def read_arrays(path: Path, name: str) -> dict[str, Array]:
    """The arrays of an ``.npz`` file; raises RefusedModelError where it is none, pickled or too large."""
    hint = f"Save arrays {INPUT_PREFIX}<tensor> with numpy.savez."
    try:
        with zipfile.ZipFile(path) as archive:
            size_bytes = sum(member.file_size for member in archive.infolist())
        if size_bytes > ARRAYS_BYTES_MAX:
            raise RefusedModelError(
                f"{name} holds {size_bytes:,} bytes of arrays; at most {ARRAYS_BYTES_MAX:,} are taken",
                hint="A few dozen samples are enough: devices run all of them before they trust a model.",
            )
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError) as err:
        raise RefusedModelError(f"{name} is not an .npz file: {err}", hint=hint) from err
    except ValueError as err:
        raise RefusedModelError(f"{name} cannot be read without unpickling: {err}", hint=hint) from err


def _run_samples(engine: Engine, inputs: dict[str, Array], samples: int, name: str) -> tuple[dict[str, Array], float]:
    """Answers stacked by sample, and the median latency of one sample."""
    rows: list[dict[str, Array]] = []
    durations_s: list[float] = []
    # A few samples are run over again, so that the median is one.
    for number in range(max(samples, LATENCY_RUNS_MIN)):
        sample = number % samples
        one = {key: np.ascontiguousarray(array[sample : sample + 1]) for key, array in inputs.items()}
        answers, duration_s = _run_once(engine, one, name)
        durations_s.append(duration_s)
        if number < samples:
            rows.append(answers)
    stacked = {spec.name: _stacked(rows, spec, name) for spec in engine.signature.outputs}
    # The first run warms caches and is not what a device sees later.
    return stacked, round(float(np.median(durations_s[1:]) * 1000), 4)


def _run_once(engine: Engine, inputs: dict[str, Array], name: str) -> tuple[dict[str, Array], float]:
    started = time.perf_counter()
    try:
        answers = engine.run(inputs)
    except Exception as err:
        shapes = ", ".join(f"{key} {array.dtype}{list(array.shape)}" for key, array in inputs.items())
        raise RefusedModelError(
            f"{name} loads and fails when it is run on {shapes}: {engine_reason(str(err), '')}",
            hint="Check the sample's shape, or export the model again.",
        ) from err
    return answers, time.perf_counter() - started


def _stacked(rows: list[dict[str, Array]], spec: TensorSpec, name: str) -> Array:
    arrays = [row[spec.name] for row in rows]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1 or not arrays[0].ndim or arrays[0].shape[0] != 1:
        raise RefusedModelError(
            f"{name} answers {spec.name!r} in the shape {sorted(shapes)} to one sample; expected a batch axis of 1 and "
            "the same shape for every sample",
            hint="Export the model so that each output has a batch axis in front.",
        )
    stacked = np.concatenate(arrays)
    # Text comes back as objects, which only a pickle could keep.
    return stacked.astype(str) if stacked.dtype.kind == "O" else stacked


def _run_on_zeros(engine: Engine, name: str) -> float | None:
    """The latency on zeros; None where open dimensions or text leave us no honest input to make up."""
    inputs: dict[str, Array] = {}
    for spec in engine.signature.inputs:
        if spec.dtype == "str" or any(size < 0 for size in spec.shape[1:]):
            return None
        inputs[spec.name] = np.zeros((1, *spec.shape[1:]), dtype=spec.dtype)
    return _run_samples(engine, inputs, 1, name)[1]


def _check_golden(signature: Signature, expected: dict[str, Array], samples: int, request: dict[str, Any]) -> None:
    # What a golden set says of dtypes is not judged: answers are compared as numbers.
    name = request["arraysName"]
    for spec in signature.outputs:
        if spec.name not in expected:
            raise RefusedModelError(
                f"{name} holds no {OUTPUT_PREFIX}{spec.name}: the answers of the model's tensor {spec.name!r}",
                hint=f"Its answers are: {', '.join(OUTPUT_PREFIX + key for key in expected) or 'none'}.",
            )
        if len(expected[spec.name]) != samples:
            raise RefusedModelError(
                f"{name} holds {samples} samples and {len(expected[spec.name])} answers in {OUTPUT_PREFIX}{spec.name}"
            )
    unknown = sorted(set(expected) - {spec.name for spec in signature.outputs})
    if unknown:
        raise RefusedModelError(
            f"{name} holds answers of {unknown[0]!r}, and {request['name']} has no such output",
            hint=f"The model's are: {', '.join(spec.name for spec in signature.outputs)}.",
        )


def _record(path: Path, inputs: dict[str, Array], answers: dict[str, Array]) -> None:
    arrays = {INPUT_PREFIX + key: array for key, array in inputs.items()}
    arrays |= {OUTPUT_PREFIX + key: array for key, array in answers.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
