"""Models in ONNX, by onnxruntime."""

import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime

from device_agent.config.settings import EngineSettings
from device_agent.core.inference import mismatch
from device_agent.core.onnx_weights import WEIGHTS, without_weights
from device_agent.errors import ConfigurationError, InferenceError, StepError
from device_agent.ports import EngineFacts, Quantisation
from manifests.model import ModelFormat, Signature, TensorSpec

_CPU = "CPUExecutionProvider"

# Element types whose ONNX name is not numpy's.
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}

_OPTIMISATION = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

# Older ones read weights from the model's own bytes only.
_TAKES_WEIGHTS = hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory")

# Every onnxruntime that the package allows runs this one, so the search begins behind it.
_OPSET_SURE = 15
# A search that gets this far was not refused for being too new: the environment has switched that check off.
_OPSET_SEARCH_MAX = 120

_log = logging.getLogger(__name__)


class OnnxModel:
    """Satisfies `ports.Model`. An onnxruntime session may be run from several threads."""

    format: ModelFormat = "onnx"
    # A quantised ONNX model holds its own QuantizeLinear nodes: the tensors at its rim are what they seem.
    quantisation: Mapping[str, Quantisation] = {}

    def __init__(self, session: Any, digest: str) -> None:
        self._session = session
        self.digest = digest
        self.signature = Signature(
            inputs=tuple(_tensor_spec(tensor) for tensor in session.get_inputs()),
            outputs=tuple(_tensor_spec(tensor) for tensor in session.get_outputs()),
        )
        self._output_names = [spec.name for spec in self.signature.outputs]

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        try:
            answers = self._session.run(None, dict(inputs))
        except Exception as err:
            # Looked for only now: inputs that fit, which is nearly all of them, pay nothing for the better words.
            why = mismatch(inputs, self.signature)
            raise InferenceError(
                f"the model was not run: {why}" if why else f"onnxruntime could not run the model: {reason(err)}"
            ) from err
        return dict(zip(self._output_names, answers, strict=True))


class OnnxEngine:
    """Satisfies `ports.Engine`."""

    def __init__(self, settings: EngineSettings | None = None) -> None:
        """Raises ConfigurationError for a provider that this onnxruntime does not have, unless it may fall back."""
        self._settings = settings = settings or EngineSettings()
        self._providers = _available(settings)

    def facts(self) -> EngineFacts:
        return EngineFacts(
            name="onnxruntime",
            version=str(onnxruntime.__version__),
            opset_max=newest_opset(),
            providers=self._providers,
        )

    def load(self, content: bytes, digest: str) -> OnnxModel:
        options = self._options()
        light = without_weights(content) if _TAKES_WEIGHTS else None
        if light is not None:
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [content], [len(content)])
        try:
            session = onnxruntime.InferenceSession(
                content if light is None else light,
                options,
                providers=list(self._providers),
                provider_options=[self._settings.provider_options.get(name, {}) for name in self._providers],
                enable_fallback=0,
            )
        except Exception as err:
            raise StepError("LOAD_FAILED", f"onnxruntime cannot load the model: {reason(err)}") from err
        self._check_providers(session)
        # The session keeps the file's bytes for a change of providers that never comes: a second copy of the weights.
        session._model_bytes = None
        return OnnxModel(session, digest)

    def _options(self) -> Any:
        options, settings = onnxruntime.SessionOptions(), self._settings
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        # A thread that waits by spinning is quick to wake, and heats the device meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = settings.arena
        options.graph_optimization_level = _OPTIMISATION[settings.optimisation]
        options.log_severity_level = 4
        return options

    def _check_providers(self, session: Any) -> None:
        """A provider whose library or device is missing is left out by onnxruntime, with no more than a log line."""
        missing = [name for name in self._providers if name not in session.get_providers()]
        if not missing:
            return
        if self._settings.fallback == "refuse":
            raise StepError(
                "LOAD_FAILED",
                f"onnxruntime has the provider {missing[0]}, but cannot start it here; the model would run by "
                f"{', '.join(session.get_providers())}.",
            )
        _log.warning("The provider %s cannot be started; the model runs by the next one.", missing[0])


def _available(settings: EngineSettings) -> tuple[str, ...]:
    has = onnxruntime.get_available_providers()
    missing = [name for name in settings.providers if name not in has]
    if missing and settings.fallback == "refuse":
        raise ConfigurationError(
            f"The execution provider {missing[0]!r} is not in this onnxruntime.",
            hint=f"It has {', '.join(has)}. Name one of them in [engine] providers, install a build that has the "
            'other, or set fallback = "cpu".',
        )
    if missing:
        _log.warning("Not in this onnxruntime: %s. Models run by what is.", ", ".join(missing))
    kept = tuple(name for name in settings.providers if name in has)
    return kept if _CPU in kept else (*kept, _CPU)


@functools.cache
def newest_opset() -> int | None:
    """The newest opset of the standard domain that this onnxruntime calls released: it refuses any newer model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    for opset in range(_OPSET_SURE + 1, _OPSET_SEARCH_MAX):
        try:
            onnxruntime.InferenceSession(_identity_model(opset), options, providers=[_CPU])
        except Exception:  # noqa: BLE001  onnxruntime's own errors are plain exceptions of its native module
            return opset - 1
    return None


def _identity_model(opset: int) -> bytes:
    """``y = Identity(x)`` on one float as ONNX protobuf (onnx.proto3: the key of a field is number * 8 + wire type)."""

    def field(number: int, content: bytes) -> bytes:
        return bytes((number * 8 + 2, len(content))) + content

    def integer(number: int, value: int) -> bytes:
        return bytes((number * 8, value))

    def one_float(name: bytes) -> bytes:
        shape = field(1, integer(1, 1))
        return field(1, name) + field(2, field(1, integer(1, 1) + field(2, shape)))

    node = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Identity"))
    graph = node + field(2, b"identity") + field(11, one_float(b"x")) + field(12, one_float(b"y"))
    # IR version 8 came in 2021, with opset 15.
    return integer(1, 8) + field(7, graph) + field(8, integer(2, opset))


def _tensor_spec(tensor: Any) -> TensorSpec:
    kind: str = tensor.type
    if not kind.startswith("tensor("):
        return TensorSpec(name=tensor.name, dtype=kind, shape=())
    element = kind.removeprefix("tensor(").removesuffix(")")
    shape = tuple(length if isinstance(length, int) and length >= 0 else -1 for length in tensor.shape)
    return TensorSpec(name=tensor.name, dtype=_DTYPES.get(element, element), shape=shape)


# What onnxruntime puts before its sentences: a number, a kind, and the place in its own sources.
_ORIGIN = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : (?:.*?\.(?:h|cc|cpp):\d+ [^()]*(?:\([^()]*\))* ?)?")
_REASON_CHARACTERS_MAX = 300


def reason(err: Exception) -> str:
    """The first line of an error as a sentence, without onnxruntime's own file names."""
    text = (str(err).strip() or type(err).__name__).splitlines()[0]
    text = _ORIGIN.sub("", text).strip() or text
    if len(text) > _REASON_CHARACTERS_MAX:
        text = text[: _REASON_CHARACTERS_MAX - 1] + "…"
    return text.rstrip(".") + "."
