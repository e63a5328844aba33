"""Models in TFLite, by LiteRT or, where that is not installed, the older tflite-runtime."""

import functools
import importlib.metadata
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from device_agent.errors import InferenceError, StepError
from device_agent.ports import EngineFacts
from manifests.model import ModelFormat, Signature, TensorSpec

# The identifier of a TFLite flatbuffer, at bytes 4 to 8. The interpreter trusts its input, so a file that is plainly
# something else is not handed to it.
_IDENTIFIER = b"TFL3"

try:
    from ai_edge_litert.interpreter import Interpreter

    _PACKAGE = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter

    _PACKAGE = "tflite-runtime"


class TfliteModel:
    """Satisfies `ports.Model`. The interpreter is not re-entrant, so a lock makes runs take turns."""

    format: ModelFormat = "tflite"

    def __init__(self, interpreter: Any, digest: str) -> None:
        self._interpreter = interpreter
        self._lock = threading.Lock()
        self.digest = digest
        self._inputs = {detail["name"]: detail for detail in interpreter.get_input_details()}
        self._outputs = {detail["name"]: detail for detail in interpreter.get_output_details()}
        self.signature = Signature(
            inputs=tuple(_tensor_spec(detail) for detail in self._inputs.values()),
            outputs=tuple(_tensor_spec(detail) for detail in self._outputs.values()),
        )
        self._shapes = {name: tuple(int(n) for n in detail["shape"]) for name, detail in self._inputs.items()}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        try:
            with self._lock:
                self._resize(inputs)
                for name, value in inputs.items():
                    self._interpreter.set_tensor(self._inputs[name]["index"], value)
                self._interpreter.invoke()
                return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in self._outputs.items()}
        except Exception as err:
            raise InferenceError(f"LiteRT could not run the model: {_first_line(err)}") from err

    def _resize(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
        changed = {name: value.shape for name, value in inputs.items() if value.shape != self._shapes[name]}
        for name, shape in changed.items():
            self._interpreter.resize_tensor_input(self._inputs[name]["index"], shape)
            self._shapes[name] = shape
        if changed:
            self._interpreter.allocate_tensors()


class TfliteEngine:
    """Satisfies `ports.Engine`."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def facts(self) -> EngineFacts:
        return EngineFacts(name=_PACKAGE, version=_version(), opset_max=None, providers=())

    def load(self, content: bytes, digest: str) -> TfliteModel:
        if content[4:8] != _IDENTIFIER:
            raise StepError("LOAD_FAILED", "The file is no TFLite model: its identifier is missing.")
        try:
            interpreter = Interpreter(model_content=content, num_threads=self._threads)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as err:
            raise StepError("LOAD_FAILED", f"LiteRT cannot load the model: {_first_line(err)}") from err
        return TfliteModel(interpreter, digest)


@functools.cache
def _version() -> str:
    return importlib.metadata.version(_PACKAGE)


def _tensor_spec(detail: Mapping[str, Any]) -> TensorSpec:
    signature = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    return TensorSpec(name=detail["name"], dtype=np.dtype(detail["dtype"]).name, shape=tuple(int(n) for n in shape))


def _first_line(err: Exception) -> str:
    text = str(err).strip() or type(err).__name__
    return text.splitlines()[0].rstrip(".") + "."
