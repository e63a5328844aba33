"""Models in TFLite, by LiteRT or, where that is not installed, the older tflite-runtime."""

import ctypes
import functools
import importlib.metadata
import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from device_agent.config.settings import EngineSettings
from device_agent.core.inference import mismatch
from device_agent.errors import ConfigurationError, InferenceError, StepError
from device_agent.ports import EngineFacts, Quantisation
from manifests.model import ModelFormat, Signature, TensorSpec

# The identifier of a TFLite flatbuffer, at bytes 4 to 8. The interpreter trusts its input, so a file that is plainly
# something else is not handed to it.
_IDENTIFIER = b"TFL3"

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    _PACKAGE, _NAME = "ai-edge-litert", "LiteRT"
except ImportError:
    from tflite_runtime.interpreter import Interpreter, load_delegate

    _PACKAGE, _NAME = "tflite-runtime", "tflite-runtime"

_log = logging.getLogger(__name__)


class TfliteModel:
    """Satisfies `ports.Model`. The interpreter is not re-entrant, so a lock makes runs take turns."""

    format: ModelFormat = "tflite"

    def __init__(self, interpreter: Any, digest: str) -> None:
        self._interpreter = interpreter
        self._lock = threading.Lock()
        self.digest = digest
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self.signature = Signature(
            inputs=tuple(_tensor_spec(detail) for detail in inputs),
            outputs=tuple(_tensor_spec(detail) for detail in outputs),
        )
        self.quantisation: Mapping[str, Quantisation] = {
            detail["name"]: found for detail in (*inputs, *outputs) if (found := _quantisation(detail)) is not None
        }
        self._inputs = {detail["name"]: detail["index"] for detail in inputs}
        self._outputs = {detail["name"]: detail["index"] for detail in outputs}
        self._shapes = {detail["name"]: tuple(int(n) for n in detail["shape"]) for detail in inputs}

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        # A tensor that is not set would keep what the reading before put there.
        if inputs.keys() != self._inputs.keys():
            raise InferenceError(f"the model was not run: {mismatch(inputs, self.signature)}")
        try:
            with self._lock:
                self._resize(inputs)
                for name, value in inputs.items():
                    self._interpreter.set_tensor(self._inputs[name], value)
                self._interpreter.invoke()
                return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}
        except (RuntimeError, ValueError, TypeError) as err:
            why = mismatch(inputs, self.signature)
            raise InferenceError(
                f"the model was not run: {why}" if why else f"{_NAME} could not run the model: {reason(err)}"
            ) from err

    def _resize(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
        changed = {name: value.shape for name, value in inputs.items() if value.shape != self._shapes[name]}
        if not changed:
            return
        # Left to itself the interpreter resizes a length that the file fixes, and answers nonsense or crashes.
        why = mismatch(inputs, self.signature)
        if why is not None:
            raise InferenceError(f"the model was not run: {why}")
        for name, shape in changed.items():
            self._interpreter.resize_tensor_input(self._inputs[name], shape)
        self._interpreter.allocate_tensors()
        self._shapes |= changed


class TfliteEngine:
    """Satisfies `ports.Engine`."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        """Raises ConfigurationError for a delegate that cannot be loaded, unless the CPU may take its place."""
        self._settings = settings = settings or EngineSettings()
        self._delegates = {name: made for name in settings.delegates if (made := _delegate(name, settings)) is not None}

    def facts(self) -> EngineFacts:
        return EngineFacts(name=_PACKAGE, version=_version(), opset_max=None, providers=tuple(self._delegates))

    def load(self, content: bytes, digest: str) -> TfliteModel:
        if content[4:8] != _IDENTIFIER:
            raise StepError("LOAD_FAILED", "The file is no TFLite model: its identifier is missing.")
        try:
            interpreter = self._interpreter(content, list(self._delegates.values()))
        except (RuntimeError, ValueError) as err:
            if not self._delegates or self._settings.fallback == "refuse":
                raise StepError("LOAD_FAILED", f"{_NAME} cannot load the model: {reason(err)}") from err
            _log.warning("The delegates do not take the model, so it runs on the CPU: %s", reason(err))
            try:
                interpreter = self._interpreter(content, [])
            except (RuntimeError, ValueError) as err_of_cpu:
                raise StepError("LOAD_FAILED", f"{_NAME} cannot load the model: {reason(err_of_cpu)}") from err_of_cpu
        _check_names(interpreter)
        return TfliteModel(interpreter, digest)

    def _interpreter(self, content: bytes, delegates: list[Any]) -> Any:
        interpreter = Interpreter(
            model_content=content, num_threads=self._settings.threads, experimental_delegates=delegates or None
        )
        interpreter.allocate_tensors()
        return interpreter


def _delegate(name: str, settings: EngineSettings) -> Any:
    """The delegate of a shared library; None where it cannot be had and the CPU may take its place."""
    try:
        # Looked for first: where there is no library, LiteRT's own class fails a second time when it is collected.
        ctypes.CDLL(name)
        return load_delegate(name, settings.delegate_options.get(name))
    except (OSError, ValueError, RuntimeError, AttributeError) as err:
        if settings.fallback == "refuse":
            raise ConfigurationError(
                f"The TFLite delegate {name!r} cannot be loaded: {reason(err)}",
                hint="Name a shared library in [engine] delegates that the loader finds and that exports "
                'tflite_plugin_create_delegate, or set fallback = "cpu".',
            ) from err
        _log.warning("The TFLite delegate %s cannot be loaded, so the CPU takes its place: %s", name, reason(err))
        return None


def _check_names(interpreter: Any) -> None:
    """Readings and answers go by name; raises StepError where two tensors share one."""
    for role, details in (("inputs", interpreter.get_input_details()), ("outputs", interpreter.get_output_details())):
        names = [detail["name"] for detail in details]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise StepError("LOAD_FAILED", f"Two of the model's {role} are called '{twice}'; export it with names.")


@functools.cache
def _version() -> str:
    return importlib.metadata.version(_PACKAGE)


def _tensor_spec(detail: Mapping[str, Any]) -> TensorSpec:
    signature = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    dtype = np.dtype(detail["dtype"])
    # Text is an array of bytes objects on this side.
    name = "str" if dtype.kind in "OSU" else dtype.name
    return TensorSpec(name=detail["name"], dtype=name, shape=tuple(max(int(n), -1) for n in shape))


def _quantisation(detail: Mapping[str, Any]) -> Quantisation | None:
    """Inputs and outputs have one scale for the whole tensor; only weights have one a channel."""
    scale, zero_point = detail.get("quantization", (0.0, 0))
    return Quantisation(float(scale), int(zero_point)) if scale else None


_REASON_CHARACTERS_MAX = 300


def reason(err: Exception) -> str:
    """An error as one short sentence; the interpreter strings the complaints of all tensors together."""
    text = (str(err).strip() or type(err).__name__).splitlines()[0]
    if len(text) > _REASON_CHARACTERS_MAX:
        text = text[: _REASON_CHARACTERS_MAX - 1] + "…"
    return text.rstrip(".") + "."
